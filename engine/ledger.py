"""The ledger as a reader sees it: entries of operations, dense in their partition.

One stream entry is one script call: `seq` (its first operation's sequence), `at` (ms) and `ops`
(msgpack). A reader verifies as it goes: sequence +1, a row's version +1, previous + delta = result.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import msgspec

from engine.keys import PartitionKeys
from engine.model import Row, Terms
from engine.store import Store, pairs
from engine.trace_context import split_trace

MAX_READ_ENTRIES: Final = 1_000
"""Entries in one read: a group of 128 carts can make one entry of some 100 kB."""


class OperationKind(StrEnum):
    """What an operation did: one a verb, and `rebuild` for the birth of a rebuilt store."""

    RESERVE = "reserve"
    CONFIRM = "confirm"
    EXTEND = "extend"
    AMEND = "amend"
    COMMIT = "commit"
    RELEASE = "release"
    DECIDE = "decide"
    EXPIRE = "expire"
    FILL = "fill"
    SLIP = "slip"
    MOVE = "move"
    FEED = "feed"
    ORDER = "order"
    CLAIM = "claim"
    SETTLE = "settle"
    SHORTFALL = "shortfall"
    OFFLINE = "offline"
    CONFIGURE = "configure"
    TERMS = "terms"
    SUPPLY = "supply"
    DEFINE = "define"
    SPLIT = "split"
    PART = "part"
    REPAIR = "repair"
    REBUILD = "rebuild"


MOVEMENTS: Final = frozenset({OperationKind.MOVE, OperationKind.FEED})
"""Kinds of physical events: their details begin alike."""


_COMPONENTS: Final = 14
"""Where the detail of an event of a kit says of which components units were booked."""

_MOVE_SUPPLY: Final = 8
_FEED_SKU, _FEED_VERDICT, _FEED_SUPPLY = 8, 11, 15
"""Where the details of movements name the supply that came; there is no element of others."""


class Levels(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A row's units, or the change of each.

    `low_stock_threshold` is a setting and moves no unit, `offline_buffer` is held back while the
    location's tills are silent, and `backordered` is promised with nothing on the shelf for it; a
    row that has none of them does not write them.
    """

    on_hand: int
    reserved: int
    safety_stock: int
    deficit: int
    low_stock_threshold: int = 0
    offline_buffer: int = 0
    backordered: int = 0


class RowChange(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an operation did to one row: the row afterwards, and the change.

    `terms` are the row's, as they are kept; None where it has none. `is_part` where that is no row
    of its own, but a part of a split one (see `engine.splits`).
    """

    sku: str
    version: int
    levels: Levels
    deltas: Levels
    terms: dict[str, Any] | None = None
    is_part: bool = False


def row_after(merchant: str, location: str, change: RowChange) -> Row:
    """Return a row as an operation left it."""
    levels = change.levels
    return Row(
        merchant,
        location,
        change.sku,
        levels.on_hand,
        levels.reserved,
        levels.safety_stock,
        levels.deficit,
        change.version,
        levels.low_stock_threshold,
        levels.offline_buffer,
        levels.backordered,
        None if change.terms is None else msgspec.convert(change.terms, Terms),
    )


def levels_before(change: RowChange) -> Levels:
    """Return a row's units as they were just before an operation."""
    after, deltas = change.levels, change.deltas
    return Levels(
        after.on_hand - deltas.on_hand,
        after.reserved - deltas.reserved,
        after.safety_stock - deltas.safety_stock,
        after.deficit - deltas.deficit,
        after.low_stock_threshold - deltas.low_stock_threshold,
        after.offline_buffer - deltas.offline_buffer,
        after.backordered - deltas.backordered,
    )


def row_before(merchant: str, location: str, change: RowChange) -> Row | None:
    """Return a row as an operation found it, but for its terms; None where it made the row."""
    if change.version <= 1:
        return None
    levels = levels_before(change)
    before = RowChange(change.sku, change.version - 1, levels, change.deltas)
    return row_after(merchant, location, before)


class Operation(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One effect. `detail` is the kind's own array; docs/reference/ledger.md names its elements.

    `changes` are of rows, or of one part of a split row, never of both.
    """

    kind: OperationKind
    id: str
    merchant: str
    location: str
    actor: str
    fingerprint: str
    changes: tuple[RowChange, ...]
    detail: tuple[Any, ...]

    @property
    def who(self) -> str:
        """The actor without the trace that may stand behind it."""
        return split_trace(self.actor)[0]

    @property
    def traceparent(self) -> str:
        """The trace of the request that did it (W3C Trace Context); empty where it had none."""
        return split_trace(self.actor)[1]

    @property
    def rows(self) -> tuple[RowChange, ...]:
        """The changes of rows as their readers know them.

        A part's are none of these: its home tells of them in an operation of its own.
        """
        changes = self.changes
        return () if changes and changes[0].is_part else changes


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One stream entry: operations `sequence`, `sequence` + 1, ... at one moment."""

    stream_id: str
    sequence: int
    at_ms: int
    operations: tuple[Operation, ...]


decode_operations = msgspec.msgpack.Decoder(tuple[Operation, ...]).decode


def decode_entry(stream_id: bytes, fields: Mapping[bytes, bytes]) -> Entry:
    """Decode a stream entry. Raises msgspec.DecodeError or KeyError on one that is not ours."""
    return Entry(
        stream_id=stream_id.decode(),
        sequence=int(fields[b"seq"]),
        at_ms=int(fields[b"at"]),
        operations=decode_operations(fields[b"ops"]),
    )


def reader_place(entry: Entry) -> str:
    """Return what a reader that has read an entry writes down among the readers of the partition.

    As `lua/advance.lua` does: stream id, sequence, fence and time. Whoever writes it so works under
    a lease of the partition, and names no fence.
    """
    last = entry.sequence + len(entry.operations) - 1
    return f"{entry.stream_id} {last} 0 {entry.at_ms}"


async def read_entries(
    store: Store, keys: PartitionKeys, *, after: str = "0-0", count: int = MAX_READ_ENTRIES
) -> list[Entry]:
    """Read up to `count` entries of a partition past the stream id `after`, oldest first."""
    command = ("XRANGE", keys.ledger, f"({after}", "+", "COUNT", min(count, MAX_READ_ENTRIES))
    (reply,) = await store.read([command])
    return [decode_entry(stream_id, dict(pairs(fields))) for stream_id, fields in reply]


def units_of(operation: Operation, sku: str) -> int:
    """Return the units of a row that a movement or an event tells of, as it says them.

    An event of a kit tells of its components.
    """
    detail = operation.detail
    if len(detail) > _COMPONENTS and detail[_COMPONENTS]:
        return int(dict(detail[_COMPONENTS]).get(sku, 0))
    return int(detail[1])


def arrival_of(operation: Operation) -> tuple[str, str, int] | None:
    """Return the SKU, supply and units of a booked movement that names a supply; None of others.

    Also where a later count had the units already, or the row did not expect the supply.
    """
    detail = operation.detail
    if operation.kind is OperationKind.MOVE and len(detail) > _MOVE_SUPPLY:
        return operation.rows[0].sku, detail[_MOVE_SUPPLY], detail[1]
    if (
        operation.kind is OperationKind.FEED
        and len(detail) > _FEED_SUPPLY
        and detail[_FEED_VERDICT] in ("applied", "superseded")
    ):
        return detail[_FEED_SKU], detail[_FEED_SUPPLY], detail[1]
    return None
