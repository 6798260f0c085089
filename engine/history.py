"""Asking the ledger: what a question can be about, and what an answer is.

Whoever can reach everything that was ever written implements `History`; the engine itself knows
only the part that is still in the store.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from engine.ledger import Operation, OperationKind
from engine.limits import DEFAULT_PAGE
from engine.model import Row

MAX_PAGE_ROWS: Final = 2_000
"""Rows that the operations of one page may name in all, beside those of its first: a page of 500
carts of 200 lines would be 20 MB."""

_REFERENCES: Final = {
    OperationKind.MOVE: 3,
    OperationKind.FEED: 3,
    OperationKind.RESERVE: 1,
    OperationKind.CONFIRM: 0,
}
"""Where the `detail` of a kind has the caller's own reference (an order, an import)."""

_OF_RESERVATIONS: Final = frozenset(
    {
        OperationKind.RESERVE,
        OperationKind.CONFIRM,
        OperationKind.EXTEND,
        OperationKind.COMMIT,
        OperationKind.RELEASE,
        OperationKind.EXPIRE,
    }
)
"""The kinds whose `id` is a reservation's."""


class Order(StrEnum):
    """Which end of time an answer starts from."""

    NEWEST = "newest"
    OLDEST = "oldest"


class Position(NamedTuple):
    """A place in the ledgers of all partitions merged; positions compare as time does.

    Within a partition time never falls, so there the sequence alone decides.
    """

    at_ms: int
    partition: int
    sequence: int


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """Which operations of one merchant are asked for; None asks for any.

    `reference` is that of a movement, or the order that a reservation is for. Operations from
    `from_ms` on and before `to_ms` count, in ms since 1970.
    """

    merchant: str
    location: str | None = None
    sku: str | None = None
    reservation: str | None = None
    actor: str | None = None
    reference: str | None = None
    kind: OperationKind | None = None
    from_ms: int | None = None
    to_ms: int | None = None
    order: Order = Order.NEWEST
    limit: int = DEFAULT_PAGE

    def marks(self) -> tuple[bytes, ...]:
        """Return what the packed form of every matching operation contains somewhere.

        msgpack keeps text as it is, so an entry that lacks one of these need not be unpacked.
        """
        wanted = (
            self.merchant,
            self.location,
            self.sku,
            self.reservation,
            self.actor,
            self.reference,
            self.kind,
        )
        return tuple(text.encode() for text in wanted if text)

    def matches(self, operation: Operation) -> bool:
        """Say whether an operation is asked for, its time aside."""
        return (
            operation.merchant == self.merchant
            and self.location in (None, operation.location)
            and self.kind in (None, operation.kind)
            and self.actor in (None, operation.who)
            and self.reservation in (None, reservation_of(operation))
            and self.reference in (None, reference_of(operation))
            and (self.sku is None or any(change.sku == self.sku for change in operation.rows))
        )


class Found(msgspec.Struct, frozen=True):
    """An operation, and its place in the ledger."""

    partition: int
    sequence: int
    at_ms: int
    operation: Operation

    @property
    def position(self) -> Position:
        """Its place among those of all partitions."""
        return Position(self.at_ms, self.partition, self.sequence)


class Missing(msgspec.Struct, frozen=True):
    """Operations `first_sequence` to `last_sequence` of a partition could not be read."""

    partition: int
    first_sequence: int
    last_sequence: int


class HistoryPage(msgspec.Struct, frozen=True):
    """Part of an answer; `following` is where the next part starts.

    A page that used up the work that one call may do has fewer operations than asked for, or none,
    and still `has_more`. An answer from the oldest on is never at its end: `following` of its last
    page finds what came since.
    """

    items: tuple[Found, ...]
    has_more: bool
    following: Position | None
    missing: tuple[Missing, ...] = ()


class PastRow(msgspec.Struct, frozen=True):
    """A row as it was at `as_of_ms`; its last change by then was operation `sequence`."""

    row: Row
    as_of_ms: int
    sequence: int


class History(Protocol):
    """Answers questions about the ledger of one store, in the store and in its archive."""

    async def find(self, question: Question, *, after: Position | None = None) -> HistoryPage:
        """Answer the part of a question past `after`.

        Raises HistoryUnavailable where the archive is needed and does not answer, and
        StoreUnavailable.
        """
        ...

    async def stock_at(self, merchant: str, location: str, sku: str, *, at_ms: int) -> PastRow:
        """Return a row as it was at a moment.

        Raises RowNotFound where it was not there yet, PastNotKept where the ledger no longer tells,
        HistoryUnavailable and StoreUnavailable.
        """
        ...


def reservation_of(operation: Operation) -> str | None:
    """Return the id of the reservation that an operation is about, None where it is about none."""
    return operation.id if operation.kind in _OF_RESERVATIONS else None


def reference_of(operation: Operation) -> str | None:
    """Return the caller's own reference, empty where none was given, None where a kind has none."""
    place = _REFERENCES.get(operation.kind)
    return None if place is None else _text(operation.detail, place)


def _text(detail: Sequence[Any], place: int) -> str:
    return str(detail[place]) if len(detail) > place else ""
