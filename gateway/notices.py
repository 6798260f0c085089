"""Events about a webhook endpoint itself: something is missing, or somebody wants to see one come.

They have the envelope of all other events, so a receiver needs no second way to read them.
"""

import secrets
from enum import StrEnum
from typing import Literal
from urllib.parse import quote

import msgspec

from engine.keys import digest
from engine.model import time_text
from engine.outbox import NewEvent
from engine.webhooks import WebhookEndpoint


class GapReason(StrEnum):
    """Why events are missing."""

    BACKLOG = "backlog"
    LEDGER = "ledger"
    DISABLED = "disabled"


class GapData(msgspec.Struct, frozen=True, kw_only=True):
    """Events up to `until` are missing, since `from` and as many as `dropped`, where that is known.

    `backlog`: more waited than is kept. `ledger`: the ledger itself has a gap, or was continued
    elsewhere after a failover. `disabled`: the endpoint was disabled meanwhile.
    """

    merchant: str
    reason: GapReason
    dropped: int | None
    since: str | None = msgspec.field(name="from")
    until: str


class TestNoticeData(msgspec.Struct, frozen=True):
    """Nothing happened: somebody asked for a test delivery."""

    merchant: str
    webhook: str


class Notice(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """The envelope; `source` is the path of the endpoint in the API, `subject` its id."""

    id: str
    source: str
    subject: str
    time: str
    specversion: Literal["1.0"] = "1.0"
    datacontenttype: Literal["application/json"] = "application/json"


class WebhookGap(Notice, frozen=True, kw_only=True, tag="webhook.gap"):
    """Events are missing: read what you follow anew."""

    data: GapData


class WebhookTest(Notice, frozen=True, kw_only=True, tag="webhook.test"):
    """A test delivery."""

    data: TestNoticeData


_encode = msgspec.json.Encoder().encode


def gap_of_dropped(
    endpoint: WebhookEndpoint, *, dropped: int, from_ms: int, until_ms: int
) -> NewEvent:
    """Tell that the outbox was full."""
    return _gap(endpoint, GapReason.BACKLOG, dropped=dropped, from_ms=from_ms, until_ms=until_ms)


def gap_of_disabled(endpoint: WebhookEndpoint, *, from_ms: int, until_ms: int) -> NewEvent:
    """Tell that nothing was collected while the endpoint was disabled."""
    return _gap(endpoint, GapReason.DISABLED, dropped=None, from_ms=from_ms, until_ms=until_ms)


def gap_of_ledger(endpoint: WebhookEndpoint, *, partition: int, until_ms: int) -> NewEvent:
    """Tell that operations of a partition's ledger could not be followed."""
    return _gap(endpoint, GapReason.LEDGER, dropped=None, until_ms=until_ms, partition=partition)


def _gap(
    endpoint: WebhookEndpoint,
    reason: GapReason,
    *,
    dropped: int | None,
    until_ms: int,
    from_ms: int | None = None,
    partition: int = 0,
) -> NewEvent:
    the_id = f"gap_{digest(endpoint.id, reason, str(partition), str(until_ms))}"
    event = WebhookGap(
        id=the_id,
        source=source_of(endpoint),
        subject=endpoint.id,
        time=time_text(until_ms),
        data=GapData(
            merchant=endpoint.merchant,
            reason=reason,
            dropped=dropped,
            since=None if from_ms is None else time_text(from_ms),
            until=time_text(until_ms),
        ),
    )
    return NewEvent(0, the_id, f"webhook:{endpoint.id}", "webhook.gap", _encode(event), until_ms)


def test_event(endpoint: WebhookEndpoint, *, now_ms: int) -> NewEvent:
    """Make the event of a test delivery, each with an id of its own."""
    the_id = f"test_{secrets.token_hex(12)}"
    event = WebhookTest(
        id=the_id,
        source=source_of(endpoint),
        subject=endpoint.id,
        time=time_text(now_ms),
        data=TestNoticeData(endpoint.merchant, endpoint.id),
    )
    return NewEvent(0, the_id, f"webhook:{endpoint.id}", "webhook.test", _encode(event), now_ms)


def source_of(endpoint: WebhookEndpoint) -> str:
    """Return the path of an endpoint."""
    return f"/v1/merchants/{_quoted(endpoint.merchant)}/webhooks/{endpoint.id}"


def _quoted(text: str) -> str:
    return quote(text, safe="")
