"""What travels about webhook endpoints; a secret is in the answer that made it, and in no other."""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from engine.events import EventType
from engine.model import time_text
from engine.outbox import Attempt, DeadEvent, OutboxState
from engine.webhooks import (
    MAX_FILTER_VALUES,
    MAX_OVERLAP_MS,
    EndpointStatus,
    Interest,
    StatusReason,
    WebhookEndpoint,
)
from gateway.egress import MAX_URL_CHARACTERS
from gateway.wire import Id, Page, Request, Text, Time

DEFAULT_OVERLAP_SECONDS: Final = 86_400
MAX_REPLAYED: Final = 100
"""Dead letters that one request may name."""

Url = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_URL_CHARACTERS,
        description="An https URL of a host in the public internet.",
    ),
]
Types = Annotated[
    list[EventType],
    Meta(max_length=len(EventType), description="Only events of these types; empty: all."),
]
Locations = Annotated[
    list[Id],
    Meta(max_length=MAX_FILTER_VALUES, description="Only events at these locations; empty: all."),
]
Skus = Annotated[
    list[Id],
    Meta(max_length=MAX_FILTER_VALUES, description="Only events about these SKUs; empty: all."),
]


class WebhookRequest(Request, frozen=True, kw_only=True):
    """Where events are to be sent, and which."""

    url: Url
    description: Text = ""
    types: Types = msgspec.field(default_factory=list)
    locations: Locations = msgspec.field(default_factory=list)
    skus: Skus = msgspec.field(default_factory=list)


class WebhookChangeRequest(Request, frozen=True, kw_only=True):
    """What is to be another; what is not named stays as it is."""

    url: Url | UnsetType = UNSET
    description: Text | UnsetType = UNSET
    types: Types | UnsetType = UNSET
    locations: Locations | UnsetType = UNSET
    skus: Skus | UnsetType = UNSET
    status: Literal["active", "paused"] | UnsetType = UNSET


class WebhookSecretRequest(Request, frozen=True, kw_only=True):
    """Make a new secret; the one before stays valid for `overlap_seconds`."""

    overlap_seconds: Annotated[int, Meta(ge=0, le=MAX_OVERLAP_MS // 1000)] = DEFAULT_OVERLAP_SECONDS


class ReplayRequest(Request, frozen=True, kw_only=True):
    """Which dead letters are to be sent again; without `ids` all that there are."""

    ids: (
        Annotated[
            list[Annotated[str, Meta(pattern=r"^[0-9]{1,15}-[0-9]{1,15}$")]],
            Meta(min_length=1, max_length=MAX_REPLAYED),
        ]
        | UnsetType
    ) = UNSET


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint and how it does.

    `reason` says why it is not active. `waiting` events are still to be delivered, `dropped` ones
    came while too many waited. `failures` counts attempts since the last that was delivered.
    """

    id: str
    merchant: str
    url: str
    description: str
    types: list[EventType]
    locations: list[str]
    skus: list[str]
    status: EndpointStatus
    reason: StatusReason
    status_at: Time
    created_at: Time
    old_secret_valid_until: Time | None
    waiting: int
    dead_letters: int
    dropped: int
    failures: int
    failing_since: Time | None
    delivered_at: Time | None


class WebhookWithSecret(Webhook, frozen=True, kw_only=True):
    """An endpoint with its new secret, which is not shown again."""

    secret: str


class WebhookPage(Page[Webhook], frozen=True):
    """A merchant's endpoints, the oldest first."""


class WebhookAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt to deliver: `outcome` is `delivered` or says why not."""

    at: Time
    event: str
    type: str
    attempt: int
    outcome: str
    status: int | None
    duration_ms: int
    next_attempt_at: Time | None


class WebhookAttemptPage(Page[WebhookAttempt], frozen=True):
    """The last attempts, the newest first."""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """An event that was given up; `reason` is the outcome of the last attempt."""

    id: str
    attempts: int
    reason: str
    given_up_at: Time
    event: Annotated[msgspec.Raw, Meta(description="The event as it was sent.")]


class DeadLetterPage(Page[DeadLetter], frozen=True):
    """Given-up events, the oldest first."""


class Replayed(msgspec.Struct, frozen=True):
    """How many dead letters are on their way again."""

    replayed: int


class TestDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a test event, which is sent once."""

    event: str
    delivered: bool
    outcome: str
    status: int | None
    duration_ms: int


def webhook(endpoint: WebhookEndpoint, state: OutboxState, *, now_ms: int) -> Webhook:
    """Make the answer of an endpoint."""
    old = [one.expires_at_ms for one in endpoint.secrets if one.expires_at_ms > now_ms]
    interest = endpoint.interest
    return Webhook(
        id=endpoint.id,
        merchant=endpoint.merchant,
        url=endpoint.url,
        description=endpoint.description,
        types=[EventType(one) for one in interest.types],
        locations=list(interest.locations),
        skus=list(interest.skus),
        status=endpoint.status,
        reason=endpoint.reason,
        status_at=time_text(endpoint.status_at_ms),
        created_at=time_text(endpoint.created_at_ms),
        old_secret_valid_until=_time(max(old, default=0)),
        waiting=state.waiting,
        dead_letters=state.dead,
        dropped=state.dropped,
        failures=state.failures,
        failing_since=_time(state.failing_since_ms),
        delivered_at=_time(state.delivered_at_ms),
    )


def webhook_with_secret(
    endpoint: WebhookEndpoint, state: OutboxState, secret: str, *, now_ms: int
) -> WebhookWithSecret:
    """Make the answer that shows a secret."""
    shown = msgspec.structs.asdict(webhook(endpoint, state, now_ms=now_ms))
    return WebhookWithSecret(**shown, secret=secret)


def interest(body: WebhookRequest) -> Interest:
    """Take the filters of a request."""
    return Interest(types=tuple(body.types), locations=tuple(body.locations), skus=tuple(body.skus))


def attempt(made: Attempt) -> WebhookAttempt:
    """Make the answer of a logged attempt."""
    return WebhookAttempt(
        at=time_text(made.at_ms),
        event=made.event,
        type=made.type,
        attempt=made.attempt,
        outcome=made.outcome,
        status=made.status or None,
        duration_ms=made.duration_ms,
        next_attempt_at=_time(made.next_at_ms),
    )


def dead_letter(event: DeadEvent) -> DeadLetter:
    """Make the answer of a given-up event."""
    return DeadLetter(
        id=event.place,
        attempts=event.attempts,
        reason=event.reason,
        given_up_at=time_text(event.died_at_ms),
        event=msgspec.Raw(event.body),
    )


def _time(time_ms: int) -> str | None:
    return time_text(time_ms) if time_ms else None
