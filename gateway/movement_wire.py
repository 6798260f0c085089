"""What travels of movements, and of what became of each of a batch."""

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from engine import model
from engine.limits import MAX_BATCH_MOVEMENTS, MAX_ID_BYTES, MAX_KEY_CHARACTERS
from engine.model import MovementType, time_text
from gateway.wire import (
    Id,
    ItemProblem,
    MovementQuantity,
    OccurredAt,
    Request,
    Stock,
    Text,
    Time,
    Version,
    stock,
)

UndecodedMovement = Annotated[
    msgspec.Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/BatchMovement"})
]
"""Decoded one by one, so that a malformed one is refused alone."""


class MovementRequest(Request, frozen=True, kw_only=True):
    """A physical event at a shelf. `adjust` needs a `reason`."""

    type: MovementType
    sku: Id
    quantity: MovementQuantity
    reason: Text = ""
    reference: Text = ""
    occurred_at: OccurredAt | None = None
    expected_version: Version | None = None
    supply: Annotated[
        str,
        Meta(
            max_length=MAX_ID_BYTES,
            description="Of what arrives, the supply that it came with: so many fewer are to come.",
        ),
    ] = ""


class BatchMovement(MovementRequest, frozen=True, kw_only=True):
    """A movement of a batch; `id` is its idempotency key at its location."""

    id: Annotated[str, Meta(min_length=1, max_length=MAX_KEY_CHARACTERS)]
    location: Id


class MovementBatchRequest(Request, frozen=True, kw_only=True):
    """Movements that stand or fall alone; see BatchMovement for one."""

    movements: Annotated[
        list[UndecodedMovement], Meta(min_length=1, max_length=MAX_BATCH_MOVEMENTS)
    ]


class Movement(msgspec.Struct, frozen=True):
    """A booked movement, its `sequence` in the ledger, and the row just after it."""

    id: str
    merchant: str
    location: str
    type: MovementType
    sku: str
    quantity: int
    on_hand_change: int
    reason: str
    reference: str
    at: Time
    sequence: int
    stock: Stock


class BatchStatus(StrEnum):
    """What became of one movement of a batch."""

    APPLIED = "applied"
    REPLAYED = "replayed"
    REFUSED = "refused"


class BatchOutcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One movement's outcome; `id` is null where it could not be read."""

    id: str | None
    status: BatchStatus
    movement: Movement | UnsetType = UNSET
    error: ItemProblem | UnsetType = UNSET


class MovementBatch(msgspec.Struct, frozen=True):
    """Outcomes in the order of the request, and how many there are of each."""

    data: list[BatchOutcome]
    applied: int
    replayed: int
    refused: int


def movement(booked: model.Movement, moved: model.Moved) -> Movement:
    """Make the answer of a booked movement."""
    return Movement(
        moved.id,
        moved.row.merchant,
        moved.row.location,
        booked.type,
        booked.sku,
        booked.quantity,
        moved.on_hand_change,
        booked.reason,
        booked.reference,
        time_text(moved.at_ms),
        moved.sequence,
        stock(moved.row),
    )
