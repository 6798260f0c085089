"""Ledgers made by hand, for tests of what reads them: no store is needed.

A `Book` keeps one location's rows as the scripts would and writes down every operation, one a
stream entry unless `grouped` puts several into one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from engine.ledger import Levels, Operation, OperationKind, RowChange
from reconciler.archive import Archive
from reconciler.segments import RawEntry, pack_segment, segment_path, unpack_segment

MERCHANT: Final = "m"
LOCATION: Final = "l"
START_MS: Final = 1_700_000_000_000
TTL_MS: Final = 900_000

_encode = msgspec.msgpack.Encoder().encode


class Book:
    """One partition's ledger; `at_ms` is its clock, which the test moves."""

    def __init__(
        self, partition: int = 0, *, merchant: str = MERCHANT, location: str = LOCATION
    ) -> None:
        """Start empty."""
        self.partition = partition
        self.merchant = merchant
        self.location = location
        self.at_ms = START_MS
        self.sequence = 0
        self.entries: list[RawEntry] = []
        self._levels: dict[str, tuple[int, tuple[int, int, int, int]]] = {}
        self._lines: dict[str, list[tuple[str, int]]] = {}
        self._group: list[Operation] | None = None
        self._archived = 0
        self._seal = ""

    # Operations

    def receive(self, sku: str = "tea", quantity: int = 10, *, the_id: str = "") -> str:
        """Book an arrival; return the operation's id."""
        the_id = the_id or f"move-{self.sequence + 1}"
        change = self._change(sku, (quantity, 0, 0, 0))
        detail = ("receive", quantity, "", "", "", 0)
        self.write(OperationKind.MOVE, the_id, (change,), detail, fingerprint=f"print {the_id}")
        return the_id

    def configure(self, sku: str = "tea", safety_stock: int = 2) -> str:
        """Set a safety stock; return the operation's id."""
        the_id = f"configure-{self.sequence + 1}"
        _, levels = self._levels.get(sku, (0, (0, 0, 0, 0)))
        change = self._change(sku, (0, 0, safety_stock - levels[2], 0))
        self.write(OperationKind.CONFIGURE, the_id, (change,), (safety_stock,), fingerprint="print")
        return the_id

    def reserve(self, lines: Sequence[tuple[str, int]] = (("tea", 1),), *, the_id: str = "") -> str:
        """Hold units; return the reservation's id."""
        the_id = the_id or f"rsv_{self.partition}_{self.sequence + 1:024x}"
        changes = tuple(self._change(sku, (0, quantity, 0, 0)) for sku, quantity in lines)
        self._lines[the_id] = list(lines)
        detail = (TTL_MS, "order", (), self.at_ms + TTL_MS)
        self.write(OperationKind.RESERVE, the_id, changes, detail, fingerprint="print")
        return the_id

    def confirm(self, the_id: str) -> None:
        """Place the order of a reservation."""
        self.write(OperationKind.CONFIRM, the_id, (), ("order 2", self.at_ms))

    def extend(self, the_id: str, *, operation: str = "extend-1") -> int:
        """Let a hold run on; return until when (ms)."""
        expires_at_ms = self.at_ms + 2 * TTL_MS
        detail = (expires_at_ms, self.at_ms, operation)
        self.write(OperationKind.EXTEND, the_id, (), detail, fingerprint="print")
        return expires_at_ms

    def commit(self, the_id: str, *, picked: Sequence[tuple[str, int]] | None = None) -> None:
        """Take the units of a reservation from the shelf, or those of `picked`."""
        lines = self._lines[the_id]
        units = dict(lines if picked is None else picked)
        changes = tuple(self._change(sku, (-units[sku], -q, 0, 0)) for sku, q in lines)
        detail = ("held", self.at_ms, [(sku, units[sku]) for sku, _ in lines])
        self.write(OperationKind.COMMIT, the_id, changes, detail)

    def release(self, the_id: str) -> None:
        """Give the units of a reservation back."""
        self._give_back(OperationKind.RELEASE, the_id, ("held", self.at_ms, ""))

    def expire(self, the_id: str) -> None:
        """Take the units of an overdue hold back."""
        self._give_back(OperationKind.EXPIRE, the_id, ("held", self.at_ms))

    def acknowledge_gap(self, first: int, last: int) -> None:
        """Say that the loss of operations is known."""
        detail = ("gap", "a reason", "a finding", first, last)
        self.write(OperationKind.REPAIR, f"repair-{self.sequence + 1}", (), detail)

    def repair(self, sku: str, version: int, levels: tuple[int, int, int, int]) -> None:
        """Say what a row is from here on."""
        self._levels[sku] = (version, levels)
        change = RowChange(sku, version, Levels(*levels), Levels(0, 0, 0, 0))
        detail = ("row", "a reason", "a finding", 0, ())
        self.write(OperationKind.REPAIR, f"repair-{self.sequence + 1}", (change,), detail)

    def trade(self, rounds: int) -> None:
        """Write a few operations of most kinds, over and over."""
        for number in range(rounds):
            sku = f"sku-{number % 5}"
            self.receive(sku, 10)
            self.confirm(first := self.reserve([(sku, 2)]))
            self.commit(first, picked=[(sku, 1)])
            self.extend(second := self.reserve([(sku, 1)]), operation=f"extend-{self.sequence}")
            if number % 2:
                self.release(second)

    def skip(self, count: int = 1) -> None:
        """Lose sequences, as no store should."""
        self.sequence += count

    def write(
        self,
        kind: OperationKind,
        the_id: str,
        rows: tuple[RowChange, ...],
        detail: tuple[Any, ...],
        *,
        fingerprint: str = "",
    ) -> None:
        """Write an operation down, as given."""
        operation = Operation(
            kind, the_id, self.merchant, self.location, "test", fingerprint, rows, detail
        )
        self.sequence += 1
        if self._group is not None:
            self._group.append(operation)
        else:
            self._append(self.sequence, [operation])

    @contextmanager
    def grouped(self) -> Iterator[None]:
        """Put what is written within into one entry, as a script that took a group does."""
        first = self.sequence + 1
        self._group = []
        yield
        operations, self._group = self._group, None
        self._append(first, operations)

    # Files

    def segment(self, entries: Sequence[RawEntry], *, previous: str = "") -> bytes:
        """Make a segment's file of entries."""
        return pack_segment(self.partition, entries, previous=previous)

    async def archive(self, archive: Archive, *, segment_entries: int = 5) -> list[str]:
        """Write what is not archived yet as chained segments; return their paths."""
        paths = []
        while self._archived < len(self.entries):
            batch = self.entries[self._archived : self._archived + segment_entries]
            path = archive.path(segment_path(self.partition, batch[0].sequence))
            data = self.segment(batch, previous=self._seal)
            assert await archive.objects.put_new(path, data)
            self._seal = unpack_segment(path, data).seal
            self._archived += len(batch)
            paths.append(path)
        return paths

    def _append(self, first: int, operations: Sequence[Operation]) -> None:
        stream_id = f"{self.at_ms}-{len(self.entries)}"
        packed = _encode(operations)
        self.entries.append(RawEntry(stream_id, first, self.at_ms, packed, len(operations)))

    def _give_back(self, kind: OperationKind, the_id: str, detail: tuple[Any, ...]) -> None:
        changes = tuple(self._change(sku, (0, -q, 0, 0)) for sku, q in self._lines[the_id])
        self.write(kind, the_id, changes, detail)

    def _change(self, sku: str, deltas: tuple[int, int, int, int]) -> RowChange:
        version, levels = self._levels.get(sku, (0, (0, 0, 0, 0)))
        result = (
            levels[0] + deltas[0],
            levels[1] + deltas[1],
            levels[2] + deltas[2],
            levels[3] + deltas[3],
        )
        self._levels[sku] = (version + 1, result)
        return RowChange(sku, version + 1, Levels(*result), Levels(*deltas))
