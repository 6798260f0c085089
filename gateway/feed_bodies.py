"""What travels in the bodies of feeds: events, verdicts, sources, and what was set aside."""

from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from engine import feeds
from engine.feeds import EventType, SourceState, Verdict
from engine.limits import MAX_BATCH_EVENTS, MAX_EXACT
from engine.model import time_text
from engine.policies import OnShortfall, PolicyPart, WhenOffline
from gateway.wire import (
    Id,
    ItemProblem,
    MovementQuantity,
    OccurredAt,
    Page,
    Request,
    Text,
    Time,
)

UndecodedEvent = Annotated[
    msgspec.Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/FeedEvent"})
]
"""Decoded one by one, so that a malformed one is rejected alone."""

SequenceNumber = Annotated[
    int,
    Meta(ge=1, le=MAX_EXACT, description="Counts the source's events, from 1 without a gap."),
]


class FeedEvent(Request, frozen=True, kw_only=True):
    """What has happened at a shelf. A heartbeat has neither SKU nor quantity.

    `quantity` is what was sold, came or went; of an adjustment signed, of a count what was on the
    shelf at `occurred_at`. An adjustment needs a `reason`.
    """

    event_id: Id
    type: EventType
    occurred_at: OccurredAt
    sku: Id | UnsetType = UNSET
    quantity: MovementQuantity | UnsetType = UNSET
    sequence: SequenceNumber | UnsetType = UNSET
    reason: Text = ""
    reference: Text = ""
    supply: Annotated[
        Text,
        Meta(
            description="Of a receipt or a transfer_in, the supply that it came with: so many "
            "fewer are to come.",
        ),
    ] = ""


class FeedRequest(Request, frozen=True, kw_only=True):
    """Events of one source, each of which stands or falls alone; see FeedEvent for one."""

    events: Annotated[list[UndecodedEvent], Meta(min_length=1, max_length=MAX_BATCH_EVENTS)]


class EventVerdict(StrEnum):
    """What became of an event of a batch."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    SUPERSEDED = "superseded"
    QUARANTINED = "quarantined"
    REJECTED = "rejected"


class EventOutcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event's verdict; `event_id` is null where it could not be read.

    `why` is there where it was set aside; or it is `supply_not_found`: it was booked, and the row
    expected nothing of the supply that it names; `expects` are supplies that it does expect, at
    most five, the nearest in spelling first. `error` is there where it was rejected.
    """

    event_id: str | None
    verdict: EventVerdict
    why: str | UnsetType = UNSET
    expects: tuple[str, ...] | UnsetType = UNSET
    error: ItemProblem | UnsetType = UNSET


class FeedAnswer(msgspec.Struct, frozen=True):
    """Verdicts in the order of the request, and how many there are of each."""

    data: list[EventOutcome]
    applied: int
    duplicate: int
    superseded: int
    quarantined: int
    rejected: int


class MissingSequences(msgspec.Struct, frozen=True):
    """Sequence numbers that have not come, since a later one came."""

    first: int
    last: int
    since: Time


class FeedSource(msgspec.Struct, frozen=True):
    """A source of events. `watermark` is the number up to which all have come, 0 without numbers.

    It is `live`; `degraded` where it sends heartbeats and was silent for too long; or
    `catching_up` where it is heard of and numbers are missing. `lag_seconds` is how long ago the
    latest thing happened that it told of.
    """

    source: str
    state: SourceState
    counts: bool
    heard_at: Time
    latest_occurred_at: Time | None
    lag_seconds: float | None
    watermark: int
    highest: int
    missing: int
    gaps: list[MissingSequences]


class FeedList(msgspec.Struct, frozen=True):
    """The sources of a location, how many of its events were set aside, and its intake stream."""

    data: list[FeedSource]
    quarantined: int
    intake: Annotated[str, Meta(description="The Redis Stream that events may be written to.")]
    as_of: Time


class SkipRequest(Request, frozen=True, kw_only=True):
    """Give up on the numbers up to `through` that have not come."""

    through: SequenceNumber


class Decision(msgspec.Struct, frozen=True):
    """What became of what was asked for: `absent` where there was nothing to decide."""

    verdict: Verdict
    why: str


class QuarantinedEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event that was set aside, and why. `raw` is the text of one that could not be read."""

    id: str
    at: Time
    why: str
    actor: str
    source: str
    event_id: str
    type: EventType | UnsetType = UNSET
    sku: str | UnsetType = UNSET
    quantity: int | UnsetType = UNSET
    occurred_at: Time | UnsetType = UNSET
    sequence: int | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    reference: str | UnsetType = UNSET
    supply: str | UnsetType = UNSET
    raw: str | UnsetType = UNSET


class QuarantinePage(Page[QuarantinedEvent], frozen=True):
    """Events of a location that were set aside, by id."""


class FeedPolicy(Request, frozen=True, kw_only=True, omit_defaults=True):
    """What is decided at one place; what is left out is decided by the wider place."""

    late_hours: Annotated[int, Meta(ge=1, le=168)] | UnsetType = UNSET
    heartbeat_seconds: Annotated[int, Meta(ge=5, le=86_400)] | UnsetType = UNSET
    gap_grace_seconds: Annotated[int, Meta(ge=0, le=604_800)] | UnsetType = UNSET
    on_shortfall: OnShortfall | UnsetType = UNSET
    when_offline: WhenOffline | UnsetType = UNSET
    confidence_percent: Annotated[float, Meta(ge=50, le=99.99)] | UnsetType = UNSET


def source(found: feeds.Source, *, state: SourceState, now_ms: int) -> FeedSource:
    """Make the answer of a source."""
    latest_ms = found.occurred_at_ms
    return FeedSource(
        found.name,
        state,
        found.counts,
        time_text(found.heard_at_ms),
        time_text(latest_ms) if latest_ms else None,
        round(max(0, now_ms - latest_ms) / 1000, 3) if latest_ms else None,
        found.watermark,
        found.highest,
        found.missing,
        [MissingSequences(gap.first, gap.last, time_text(gap.since_ms)) for gap in found.gaps],
    )


def quarantined(found: feeds.Quarantined) -> QuarantinedEvent:
    """Make the answer of an event that was set aside."""
    head: dict[str, Any] = {
        "id": found.id,
        "at": time_text(found.at_ms),
        "why": found.why,
        "actor": found.actor,
        "source": found.source,
        "event_id": found.event_id,
    }
    if found.raw:
        return QuarantinedEvent(**head, raw=found.raw)
    return QuarantinedEvent(
        **head,
        type=feeds.type_of(found.type),
        sku=found.sku or UNSET,
        quantity=found.quantity,
        occurred_at=time_text(found.occurred_at_ms),
        sequence=found.sequence or UNSET,
        reason=found.reason or UNSET,
        reference=found.reference or UNSET,
        supply=found.supply or UNSET,
    )


def policy(part: PolicyPart) -> FeedPolicy:
    """Make the answer of a policy."""
    decided = msgspec.structs.asdict(part)
    return FeedPolicy(**{name: value for name, value in decided.items() if value is not None})


def policy_part(body: FeedPolicy) -> PolicyPart:
    """Make the engine's policy of a request."""
    decided = msgspec.structs.asdict(body)
    return PolicyPart(**{name: value for name, value in decided.items() if value is not UNSET})
