"""The calls about webhooks of the HTTP API as data, like those of `holdfast.calls`."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from engine.limits import MAX_PAGE
from holdfast.calls import Call, Page, path_of


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint and how it does; `secret` is None but in the answer that made it."""

    id: str
    merchant: str
    url: str
    description: str
    types: tuple[str, ...]
    locations: tuple[str, ...]
    skus: tuple[str, ...]
    status: str
    reason: str
    status_at: datetime
    created_at: datetime
    old_secret_valid_until: datetime | None
    waiting: int
    dead_letters: int
    dropped: int
    failures: int
    failing_since: datetime | None
    delivered_at: datetime | None
    secret: str | None = None


class WebhookAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt to deliver."""

    at: datetime
    event: str
    type: str
    attempt: int
    outcome: str
    status: int | None
    duration_ms: int
    next_attempt_at: datetime | None


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """An event that was given up."""

    id: str
    attempts: int
    reason: str
    given_up_at: datetime
    event: dict[str, Any]


class Replayed(msgspec.Struct, frozen=True):
    """How many dead letters are on their way again."""

    replayed: int


class TestDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a test event."""

    event: str
    delivered: bool
    outcome: str
    status: int | None
    duration_ms: int


_WEBHOOK: Final = msgspec.json.Decoder(Webhook)
_WEBHOOKS: Final = msgspec.json.Decoder(Page[Webhook])
_ATTEMPTS: Final = msgspec.json.Decoder(Page[WebhookAttempt])
_DEAD: Final = msgspec.json.Decoder(Page[DeadLetter])
_REPLAYED: Final = msgspec.json.Decoder(Replayed)
_TEST: Final = msgspec.json.Decoder(TestDelivery)
_NOTHING: Final = msgspec.json.Decoder(None)


def _path(merchant: str, *segments: str) -> str:
    return path_of("v1", "merchants", merchant, "webhooks", *segments)


def create(merchant: str, wanted: Mapping[str, Any], *, key: str) -> Call[Webhook]:
    """Make an endpoint; `wanted` has url, description, types, locations and skus."""
    return Call(
        method="POST",
        path=_path(merchant),
        decoder=_WEBHOOK,
        headers=(("Idempotency-Key", key),),
        body=msgspec.json.encode(wanted),
    )


def list_all(merchant: str) -> Call[Page[Webhook]]:
    """List a merchant's endpoints."""
    return Call(method="GET", path=_path(merchant), decoder=_WEBHOOKS)


def read(merchant: str, webhook: str) -> Call[Webhook]:
    """Read an endpoint."""
    return Call(method="GET", path=_path(merchant, webhook), decoder=_WEBHOOK)


def change(merchant: str, webhook: str, wanted: Mapping[str, Any]) -> Call[Webhook]:
    """Change what `wanted` names."""
    return Call(
        method="PATCH",
        path=_path(merchant, webhook),
        decoder=_WEBHOOK,
        body=msgspec.json.encode(wanted),
    )


def delete(merchant: str, webhook: str) -> Call[None]:
    """Remove an endpoint."""
    return Call(method="DELETE", path=_path(merchant, webhook), decoder=_NOTHING)


def rotate(merchant: str, webhook: str, *, overlap_seconds: int, key: str) -> Call[Webhook]:
    """Make a new secret."""
    return Call(
        method="POST",
        path=_path(merchant, webhook, "secret"),
        decoder=_WEBHOOK,
        headers=(("Idempotency-Key", key),),
        body=msgspec.json.encode({"overlap_seconds": overlap_seconds}),
    )


def test(merchant: str, webhook: str) -> Call[TestDelivery]:
    """Send a test event."""
    return Call(method="POST", path=_path(merchant, webhook, "test"), decoder=_TEST)


def attempts(
    merchant: str, webhook: str, *, limit: int, cursor: str | None
) -> Call[Page[WebhookAttempt]]:
    """List the last attempts."""
    return Call(
        method="GET",
        path=_path(merchant, webhook, "attempts"),
        decoder=_ATTEMPTS,
        query=_query(limit, cursor),
    )


def dead_letters(
    merchant: str, webhook: str, *, limit: int, cursor: str | None
) -> Call[Page[DeadLetter]]:
    """List given-up events."""
    return Call(
        method="GET",
        path=_path(merchant, webhook, "dead-letters"),
        decoder=_DEAD,
        query=_query(limit, cursor),
    )


def replay(merchant: str, webhook: str, ids: Sequence[str]) -> Call[Replayed]:
    """Send given-up events again: all, where no `ids` are given."""
    return Call(
        method="POST",
        path=_path(merchant, webhook, "dead-letters", "replay"),
        decoder=_REPLAYED,
        body=msgspec.json.encode({"ids": list(ids)} if ids else {}),
    )


def _query(limit: int, cursor: str | None) -> tuple[tuple[str, str], ...]:
    asked = (("limit", str(min(limit, MAX_PAGE))), ("cursor", cursor))
    return tuple((name, text) for name, text in asked if text is not None)
