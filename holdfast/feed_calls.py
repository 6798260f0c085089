"""The calls of feeds as data, like those of `holdfast.calls`."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from engine.feeds import SourceState, Verdict
from holdfast.calls import Call, Page, path_of


class Missing(msgspec.Struct, frozen=True):
    """Sequence numbers that have not come, since a later one came."""

    first: int
    last: int
    since: datetime


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A source of events of a location."""

    source: str
    state: SourceState
    counts: bool
    heard_at: datetime
    latest_occurred_at: datetime | None
    lag_seconds: float | None
    watermark: int
    highest: int
    missing: int
    gaps: tuple[Missing, ...]


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """The sources of a location, and how many of its events were set aside."""

    data: tuple[Source, ...]
    quarantined: int
    intake: str
    as_of: datetime


class Decision(msgspec.Struct, frozen=True):
    """What became of what was asked for."""

    verdict: Verdict
    why: str


class Quarantined(msgspec.Struct, frozen=True, kw_only=True):
    """An event that was set aside, and why."""

    id: str
    at: datetime
    why: str
    source: str
    event_id: str
    type: str = ""
    sku: str = ""
    quantity: int = 0
    occurred_at: datetime | None = None
    sequence: int = 0
    supply: str = ""
    raw: str = ""


class EventOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """One event's verdict: applied, duplicate, superseded, quarantined or rejected.

    `why` it was set aside; or `supply_not_found` of one that was booked all the same: then
    `expects` are supplies that the row does expect, the nearest in spelling first.
    """

    event_id: str | None
    verdict: str
    why: str = ""
    expects: tuple[str, ...] = ()
    error: dict[str, Any] | None = None


class FeedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Verdicts in the order of the request, and how many there are of each."""

    data: tuple[EventOutcome, ...]
    applied: int
    duplicate: int
    superseded: int
    quarantined: int
    rejected: int


_SOURCES: Final = msgspec.json.Decoder(Sources)
_DECISION: Final = msgspec.json.Decoder(Decision)
_QUARANTINE: Final = msgspec.json.Decoder(Page[Quarantined])
_ANSWER: Final = msgspec.json.Decoder(FeedAnswer)
_POLICY: Final = msgspec.json.Decoder(dict[str, Any])


def take_events(
    merchant: str, location: str, source: str, events: Sequence[Mapping[str, Any]]
) -> Call[FeedAnswer]:
    """Send up to 1,000 events, each a mapping as the HTTP reference describes it."""
    return Call(
        method="POST",
        path=_path(merchant, location, "feeds", source, "events"),
        decoder=_ANSWER,
        body=msgspec.json.encode({"events": list(events)}),
    )


def sources(merchant: str, location: str) -> Call[Sources]:
    """List a location's sources."""
    return Call(method="GET", path=_path(merchant, location, "feeds"), decoder=_SOURCES)


def skip(merchant: str, location: str, source: str, *, through: int) -> Call[Decision]:
    """Give up on numbers that have not come."""
    return Call(
        method="POST",
        path=_path(merchant, location, "feeds", source, "skip"),
        decoder=_DECISION,
        body=msgspec.json.encode({"through": through}),
    )


def quarantine(
    merchant: str, location: str, *, limit: int | None = None, cursor: str | None = None
) -> Call[Page[Quarantined]]:
    """List the events of a location that were set aside."""
    asked = (("limit", None if limit is None else str(limit)), ("cursor", cursor))
    return Call(
        method="GET",
        path=_path(merchant, location, "quarantine"),
        decoder=_QUARANTINE,
        query=tuple((name, text) for name, text in asked if text is not None),
    )


def decide(merchant: str, location: str, event: str, act: str) -> Call[Decision]:
    """Retry or drop an event that was set aside."""
    return Call(
        method="POST",
        path=_path(merchant, location, "quarantine", event, act),
        decoder=_DECISION,
    )


def policy(
    merchant: str, location: str | None, part: Mapping[str, Any] | None = None
) -> Call[dict[str, Any]]:
    """Read what is decided for a merchant or a location, or decide it with `part`."""
    path = path_of("v1", "merchants", merchant, "feed-policy")
    if location is not None:
        path = _path(merchant, location, "feed-policy")
    if part is None:
        return Call(method="GET", path=path, decoder=_POLICY)
    return Call(method="PUT", path=path, decoder=_POLICY, body=msgspec.json.encode(part))


def _path(merchant: str, location: str, *rest: str) -> str:
    return path_of("v1", "merchants", merchant, "locations", location, *rest)
