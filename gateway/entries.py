"""The ledger's operations as they travel: what each kind keeps as an array gets its names here."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from engine.history import Found, HistoryPage
from engine.ledger import OperationKind, RowChange
from engine.model import MovementType, ReservationState, time_text
from gateway.wire import MissingLine, Time, Version


class Changes(msgspec.Struct, frozen=True):
    """What an operation changed of a row, in units; negative where they became fewer."""

    on_hand: int
    reserved: int
    safety_stock: int
    deficit: int
    low_stock_threshold: int | UnsetType = UNSET


class LedgerRow(msgspec.Struct, frozen=True):
    """A row just after an operation, and what the operation changed of it."""

    sku: str
    on_hand: int
    reserved: int
    safety_stock: int
    available: int
    shortfall: int
    deficit: int
    version: Version
    changes: Changes
    low_stock_threshold: int | UnsetType = UNSET


class PickedLine(msgspec.Struct, frozen=True):
    """Units of one SKU that left the shelf."""

    sku: str
    quantity: int


class Details(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an operation says beside its rows; each kind has some of these.

    `reference` is a movement's, `order_ref` a reservation's. `source`, of a rebuild, is the store
    that was rebuilt, and of a movement the system that reported it. `repaired` is what a repair put
    right, `finding` what the audit had found there.
    """

    type: MovementType | UnsetType = UNSET
    quantity: int | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    reference: str | UnsetType = UNSET
    source: str | UnsetType = UNSET
    occurred_at: Time | UnsetType = UNSET
    order_ref: str | UnsetType = UNSET
    expires_at: Time | UnsetType = UNSET
    state_before: ReservationState | UnsetType = UNSET
    missing: list[MissingLine] | UnsetType = UNSET
    picked: list[PickedLine] | UnsetType = UNSET
    safety_stock: int | UnsetType = UNSET
    low_stock_threshold: int | UnsetType = UNSET
    repaired: str | UnsetType = UNSET
    finding: str | UnsetType = UNSET


class LedgerEntry(msgspec.Struct, frozen=True):
    """One operation, number `sequence` of its partition.

    `id` is the movement's or the reservation's. Where one SKU was asked for, `rows` has that row
    alone; `row_count` says how many the operation touched.
    """

    partition: int
    sequence: Annotated[int, Meta(ge=1, description="Rises by 1 within a partition.")]
    at: Time
    kind: OperationKind
    id: str
    merchant: str
    location: str
    actor: str
    rows: list[LedgerRow]
    row_count: int
    details: Details


class MissingEntries(msgspec.Struct, frozen=True):
    """Operations that should be in this part of the ledger and cannot be read."""

    partition: int
    first_sequence: int
    last_sequence: int


class LedgerPage(msgspec.Struct, frozen=True):
    """Part of the ledger. A page may be short, or empty, and still `has_more`.

    The oldest first, `next_cursor` is there even at the end: it finds what comes later. `missing`
    names what could not be read.
    """

    data: list[LedgerEntry]
    has_more: bool
    next_cursor: str | None
    missing: list[MissingEntries]


def page(found: HistoryPage, *, sku: str | None, following: str | None) -> LedgerPage:
    """Make the answer of a page; `sku` is the one that was asked for."""
    return LedgerPage(
        [_entry(item, sku) for item in found.items],
        found.has_more,
        following,
        [
            MissingEntries(gap.partition, gap.first_sequence, gap.last_sequence)
            for gap in found.missing
        ],
    )


def _entry(found: Found, sku: str | None) -> LedgerEntry:
    operation = found.operation
    return LedgerEntry(
        found.partition,
        found.sequence,
        time_text(found.at_ms),
        operation.kind,
        operation.id,
        operation.merchant,
        operation.location,
        operation.actor,
        [_row(change) for change in operation.rows if sku in (None, change.sku)],
        len(operation.rows),
        _DETAILS[operation.kind](operation.detail),
    )


def _row(change: RowChange) -> LedgerRow:
    levels, deltas = change.levels, change.deltas
    return LedgerRow(
        change.sku,
        levels.on_hand,
        levels.reserved,
        levels.safety_stock,
        max(0, levels.on_hand - levels.reserved - levels.safety_stock),
        max(0, levels.reserved - levels.on_hand),
        levels.deficit,
        change.version,
        Changes(
            deltas.on_hand,
            deltas.reserved,
            deltas.safety_stock,
            deltas.deficit,
            deltas.low_stock_threshold or UNSET,
        ),
        levels.low_stock_threshold or UNSET,
    )


def _moved(detail: Sequence[Any]) -> Details:
    kind, quantity, reason, reference, source, occurred_at_ms = detail
    return Details(
        type=MovementType(kind),
        quantity=quantity,
        reason=reason or UNSET,
        reference=reference or UNSET,
        source=source or UNSET,
        occurred_at=time_text(occurred_at_ms) if occurred_at_ms else UNSET,
    )


def _reserved(detail: Sequence[Any]) -> Details:
    _, order_ref, missing, expires_at_ms = detail
    return Details(
        order_ref=order_ref or UNSET,
        expires_at=time_text(expires_at_ms),
        missing=[MissingLine(sku, quantity) for sku, quantity in missing] or UNSET,
    )


def _committed(detail: Sequence[Any]) -> Details:
    return Details(
        state_before=ReservationState(detail[0]),
        picked=[PickedLine(sku, quantity) for sku, quantity in detail[2]],
    )


_DETAILS: Final[dict[OperationKind, Callable[[Sequence[Any]], Details]]] = {
    OperationKind.MOVE: _moved,
    OperationKind.RESERVE: _reserved,
    OperationKind.CONFIRM: lambda detail: Details(order_ref=detail[0] or UNSET),
    OperationKind.EXTEND: lambda detail: Details(expires_at=time_text(detail[0])),
    OperationKind.COMMIT: _committed,
    OperationKind.RELEASE: lambda detail: Details(
        state_before=ReservationState(detail[0]), reason=detail[2] or UNSET
    ),
    OperationKind.EXPIRE: lambda detail: Details(state_before=ReservationState(detail[0])),
    OperationKind.CONFIGURE: lambda detail: Details(
        safety_stock=detail[0], low_stock_threshold=detail[1] if len(detail) > 1 else UNSET
    ),
    OperationKind.REPAIR: lambda detail: Details(
        repaired=detail[0], reason=detail[1] or UNSET, finding=detail[2] or UNSET
    ),
    OperationKind.REBUILD: lambda detail: Details(source=detail[0] or UNSET),
}
"""How the `detail` of each kind is read; docs/reference/ledger.md names its elements."""
