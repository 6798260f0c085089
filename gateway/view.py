"""The rows that are being read, in memory, as the ledger's tail keeps them.

A row comes in when somebody asks for it: it is read from the store, and from the moment that the
read was begun on, what the tail tells of the row counts too. So a row in the view is always some
version of the row, never an older one than before, and no older than the tail is. How old that is
at most is known (`proven`), and who needs it younger asks the store.

Nothing here waits: all of it runs between two turns of the event loop.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from engine.ledger import Operation, OperationKind, row_after
from engine.model import Row
from engine.splits import Plan

MAX_VIEW_ROWS: Final = 100_000
"""Rows that the view holds, at some 700 bytes each; the one that was not asked for longest goes."""

RowKey = tuple[str, str, str]
"""(merchant, location, SKU)."""

UNTOLD: Final = frozenset({OperationKind.REPAIR, OperationKind.REBUILD})
"""Kinds that may change rows otherwise than their `rows` say, as when a repair removes one."""


class Sight(NamedTuple):
    """A row as the view has it, None where there is none of it.

    Every change that was made by `age_ms` ago is in it.
    """

    row: Row | None
    age_ms: float


class Fill:
    """A row that is being read from the store; `newest` is what the tail said of it meanwhile."""

    __slots__ = ("era", "key", "newest", "partition")

    def __init__(self, key: RowKey, partition: int, era: int) -> None:
        """Await the read. What is read in one `era` of a partition is nothing in the next."""
        self.key = key
        self.partition = partition
        self.era = era
        self.newest: Row | None = None


class _Cell:
    __slots__ = ("partition", "read_at", "row")

    def __init__(self, row: Row | None, partition: int, read_at: float) -> None:
        self.row = row
        self.partition = partition
        self.read_at = read_at

    @property
    def version(self) -> int:
        return 0 if self.row is None else self.row.version


class View:
    """Rows by name, the ones that were asked for last; see the module's text."""

    def __init__(self, partitions: int, *, most_rows: int = MAX_VIEW_ROWS) -> None:
        """Hold nothing; nothing is taken in before `open`."""
        self._partitions = partitions
        self._most_rows = most_rows
        self._cells: OrderedDict[RowKey, _Cell] = OrderedDict()
        self._fills: dict[RowKey, Fill] = {}
        self._proven_at = [0.0] * partitions
        self._eras = [0] * partitions
        """How often everything of a partition was dropped."""
        self._is_open = False
        self.used_at = 0.0
        """When somebody last asked, of time.monotonic()."""

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._cells)

    @property
    def is_idle(self) -> bool:
        """True where nothing that the tail could say of a row is of interest."""
        return not self._cells and not self._fills

    @property
    def proven_at(self) -> float:
        """Up to when everything has been applied, in every partition (time.monotonic())."""
        return min(self._proven_at)

    def open(self) -> None:
        """Take rows in from now on: the tail gives whatever is written after this call."""
        self.close()
        self._is_open = True

    def close(self) -> None:
        """Drop everything and take nothing in: there is no tail."""
        self._is_open = False
        self._cells.clear()
        self._fills.clear()
        self._proven_at = [0.0] * self._partitions
        self._eras = [era + 1 for era in self._eras]

    # Reading

    def look(self, key: RowKey, *, max_age_ms: int) -> Sight | None:
        """Return a row that is known to be at most so old; None: ask the store."""
        self.used_at = now = time.monotonic()
        cell = self._cells.get(key)
        if cell is None:
            return None
        known_at = self._proven_at[cell.partition]
        if cell.read_at > known_at:
            known_at = cell.read_at
        age_ms = (now - known_at) * 1000
        if age_ms > max_age_ms:
            return None
        self._cells.move_to_end(key)
        return Sight(cell.row, age_ms)

    def begin(self, key: RowKey, partition: int) -> Fill | None:
        """Say that a row is about to be read from the store; None where it is not to be kept.

        Readers of one row share a fill: whatever the tail says after the first of them began is
        noted for all.
        """
        if not self._is_open:
            return None
        fill = self._fills.get(key)
        if fill is None:
            fill = self._fills[key] = Fill(key, partition, self._eras[partition])
        return fill

    def finish(self, fill: Fill, row: Row | None, *, read_at: float) -> Row | None:
        """Take in what a read found, None where there is no such row; return the newest of it.

        `read_at` is when the read was begun. A fill that was dropped meanwhile leaves no row
        behind: what it read may be of before whatever dropped it. But where there is a row, one
        that was told a newer version here must not find it older there.
        """
        if fill.newest is not None and fill.newest.version > (0 if row is None else row.version):
            row = fill.newest
        if self._fills.get(fill.key) is not fill:
            if row is not None and fill.era == self._eras[fill.partition]:
                self._take(fill.key, row)
            return row
        del self._fills[fill.key]
        self._cells[fill.key] = _Cell(row, fill.partition, read_at)
        self._cells.move_to_end(fill.key)
        if len(self._cells) > self._most_rows:
            self._cells.popitem(last=False)
        return row

    def abandon(self, fill: Fill) -> None:
        """Forget a read that failed."""
        if self._fills.get(fill.key) is fill:
            del self._fills[fill.key]

    # What the tail tells

    def apply(self, partition: int, operation: Operation) -> None:
        """Take over what an operation did to the rows that are held."""
        if operation.kind in UNTOLD:
            self.drop_partition(partition)
            return
        for change in operation.rows:
            key = (operation.merchant, operation.location, change.sku)
            if key in self._cells or key in self._fills:
                self._take(key, row_after(operation.merchant, operation.location, change))
        if operation.kind is OperationKind.SPLIT:
            self._spread(operation)

    def prove(self, partitions: Iterable[int], at: float) -> None:
        """Note that everything that these partitions had at a time has been applied."""
        for partition in partitions:
            self._proven_at[partition] = at

    def drop_partition(self, partition: int) -> None:
        """Forget a partition's rows, and the reads of it that are under way."""
        for key in [key for key, cell in self._cells.items() if cell.partition == partition]:
            del self._cells[key]
        for key in [key for key, fill in self._fills.items() if fill.partition == partition]:
            del self._fills[key]
        self._eras[partition] += 1

    # What this process wrote itself

    def learn(self, row: Row) -> None:
        """Take over a row as the store just answered it, so that its writer reads it so."""
        self._take((row.merchant, row.location, row.sku), row)

    def forget(self, merchant: str, location: str, skus: Iterable[str]) -> None:
        """Forget rows that a write has just changed without answering what they are now.

        Reads under way may have been before the write, so they leave nothing behind either.
        """
        if not self._is_open:
            return
        for sku in skus:
            key = (merchant, location, sku)
            self._cells.pop(key, None)
            self._fills.pop(key, None)

    def _spread(self, operation: Operation) -> None:
        """Take over where a row is split, which is no change of it."""
        sku, split, _ = operation.detail
        cell = self._cells.get((operation.merchant, operation.location, sku))
        if cell is not None and cell.row is not None:
            parts = len(Plan.parse(split).places)
            cell.row = msgspec.structs.replace(cell.row, parts=parts)

    def _take(self, key: RowKey, row: Row) -> None:
        cell = self._cells.get(key)
        if cell is not None and row.version > cell.version:
            if cell.row is not None and cell.row.parts != row.parts:
                # Only a read and an operation of its own say whether it is split.
                row = msgspec.structs.replace(row, parts=cell.row.parts)
            cell.row = row
        fill = self._fills.get(key)
        if fill is not None and (fill.newest is None or row.version > fill.newest.version):
            fill.newest = row
