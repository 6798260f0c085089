"""The ledger's call of the HTTP API as data, like those of `holdfast.calls`."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from engine.history import Order
from engine.ledger import OperationKind
from holdfast.calls import Call, path_of


class Changes(msgspec.Struct, frozen=True):
    """What an operation changed of a row, in units."""

    on_hand: int
    reserved: int
    safety_stock: int
    deficit: int
    low_stock_threshold: int = 0
    offline_buffer: int = 0
    backordered: int = 0


class LedgerRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row just after an operation, and what the operation changed of it."""

    sku: str
    on_hand: int
    reserved: int
    safety_stock: int
    available: int
    shortfall: int
    deficit: int
    version: int
    changes: Changes
    low_stock_threshold: int = 0
    offline_buffer: int = 0
    backordered: int = 0
    part: bool = False


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One operation, number `sequence` of its partition; `details` are its kind's own.

    `traceparent` is that of the request which did it, empty where it had none.
    """

    partition: int
    sequence: int
    at: datetime
    kind: OperationKind
    id: str
    merchant: str
    location: str
    actor: str
    rows: tuple[LedgerRow, ...]
    row_count: int
    details: dict[str, Any]
    traceparent: str = ""

    @property
    def reference(self) -> str:
        """What the caller called it: a movement's reference, or the order."""
        return str(self.details.get("reference") or self.details.get("order_ref") or "")


class MissingEntries(msgspec.Struct, frozen=True):
    """Operations of a partition that cannot be read."""

    partition: int
    first_sequence: int
    last_sequence: int


class LedgerPage(msgspec.Struct, frozen=True, kw_only=True):
    """Part of the ledger; it may be short, or empty, and still `has_more`."""

    data: tuple[LedgerEntry, ...]
    has_more: bool
    next_cursor: str | None
    missing: tuple[MissingEntries, ...]


_PAGE: Final = msgspec.json.Decoder(LedgerPage)


def ledger(
    merchant: str,
    *,
    filters: Mapping[str, str | None],
    from_time: datetime | None = None,
    to_time: datetime | None = None,
    order: Order = Order.NEWEST,
    limit: int | None = None,
    cursor: str | None = None,
) -> Call[LedgerPage]:
    """Ask the ledger; `filters` are by parameter: location, sku, reservation, actor, kind, ..."""
    asked: dict[str, str | None] = {
        **filters,
        "from": None if from_time is None else from_time.isoformat(),
        "to": None if to_time is None else to_time.isoformat(),
        "order": order.value,
        "limit": None if limit is None else str(limit),
        "cursor": cursor,
    }
    return Call(
        method="GET",
        path=path_of("v1", "merchants", merchant, "ledger"),
        decoder=_PAGE,
        query=tuple((name, text) for name, text in asked.items() if text is not None),
    )
