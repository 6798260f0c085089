"""Passing along one partition's ledger, either way, through the store and the archive behind it.

A passage starts at a bound, takes steps of a few hundred entries, and keeps no more than its place
between them. It says which sequences it could not read rather than stop at them: who asks what
happened is better served by the rest than by nothing.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

from engine.history import Missing
from engine.keys import PartitionKeys
from engine.scripts import script
from engine.store import Store
from reconciler.archiver import raw_entry
from reconciler.segments import RawEntry
from reconciler.shelf import Shelf

MAX_STEP_ENTRIES: Final = 500
"""Entries of one step, which take some 0.5 ms to look through; others have their turn between."""


class Bound(NamedTuple):
    """Where a passage starts: at the entries whose `at` (ms) or `seq` reaches `value`."""

    field: Literal["at", "seq"]
    value: int


class Passage(ABC):
    """What both directions have in common; `missing` is what could not be read so far."""

    def __init__(
        self, store: Store, keys: PartitionKeys, shelf: Shelf, bound: Bound | None
    ) -> None:
        """Without a bound it starts at the very end of its side."""
        self.keys = keys
        self.missing: list[Missing] = []
        self.segments_opened = 0
        self._store = store
        self._shelf = shelf
        self._bound = bound
        self._begun = False
        self._live_from: str | None = None
        """The stream id to go on from, as XRANGE takes it; None where the store has no part."""

    @abstractmethod
    async def step(self, count: int) -> Sequence[RawEntry] | None:
        """Return up to `count` entries in order, possibly none of them; None at the end.

        Raises ArchiveUnavailable and StoreUnavailable.
        """

    async def _seek(self, bound: Bound) -> tuple[str, str]:
        """Return the ids of the last entry below a bound and of the first past it, '' for none."""
        reply: Any = await self._store.call(
            script("seek"), (self.keys.ledger,), bound.field, bound.value
        )
        return reply[0].decode(), reply[1].decode()

    async def _read_live(self, command: str, start: str, end: str, count: int) -> list[RawEntry]:
        (reply,) = await self._store.read(
            [(command, self.keys.ledger, start, end, "COUNT", min(count, MAX_STEP_ENTRIES))]
        )
        return [raw_entry(stream_id, fields) for stream_id, fields in reply]

    def _miss(self, first: int, last: int) -> None:
        if first <= last:
            self.missing.append(Missing(self.keys.partition, first, last))


class Backwards(Passage):
    """From the last entry below the bound, or from the newest, down to the oldest that is kept."""

    lowest: RawEntry | None = None
    """The last entry that was returned."""

    def __init__(
        self, store: Store, keys: PartitionKeys, shelf: Shelf, bound: Bound | None
    ) -> None:
        """Nothing is read before the first step."""
        super().__init__(store, keys, shelf, bound)
        # The sequence that the next entry must end just before; None while any will do.
        self._below = bound.value if bound is not None and bound.field == "seq" else None
        self._firsts: list[int] | None = None
        self._remaining: int | None = None

    async def step(self, count: int) -> Sequence[RawEntry] | None:
        """Return up to `count` entries, the newest first; None at the end."""
        if not self._begun:
            self._begun = True
            self._live_from = "+"
            if self._bound is not None:
                self._live_from = (await self._seek(self._bound))[0] or None
        if self._live_from is not None:
            entries = await self._read_live("XREVRANGE", self._live_from, "-", count)
            short = len(entries) < min(count, MAX_STEP_ENTRIES)
            self._live_from = None if short else f"({entries[-1].stream_id}"
            return self._joined(entries)
        if self._below == 1:
            return None
        return await self._step_archived(count)

    async def _step_archived(self, count: int) -> Sequence[RawEntry] | None:
        partition = self.keys.partition
        if self._firsts is None:
            self._firsts = await self._list()
        if not self._firsts:
            return None
        first = self._firsts[-1]
        shelved = await self._shelf.segment(partition, first)
        if shelved is None:
            self._firsts.pop()
            self._miss(first, first if self._below is None else self._below - 1)
            self._below = first
            return ()
        if self._remaining is None:
            self.segments_opened += 1
            self._remaining = self._wanted_of(shelved.entries)
        start = max(0, self._remaining - count)
        entries = shelved.entries[start : self._remaining]
        self._remaining = start
        if start == 0:
            self._firsts.pop()
            self._remaining = None
        return self._joined(entries[::-1])

    async def _list(self) -> list[int]:
        firsts = await self._shelf.first_sequences(self.keys.partition)
        if self._below is not None:
            return list(firsts[: bisect_left(firsts, self._below)])
        if self._bound is not None:
            before = await self._shelf.count_before(self.keys.partition, firsts, self._bound.value)
            return list(firsts[:before])
        return list(firsts)

    def other_way(self) -> "Forwards":
        """Make a passage from the oldest entry that is kept."""
        return Forwards(self._store, self.keys, self._shelf, None)

    def _wanted_of(self, entries: Sequence[RawEntry]) -> int:
        """Count the entries of a segment that lie below where the passage is."""
        if self._below is not None:
            return bisect_left(entries, self._below, key=_sequence)
        if self._bound is not None:
            return bisect_left(entries, self._bound.value, key=_at_ms)
        return len(entries)

    def _joined(self, entries: Sequence[RawEntry]) -> list[RawEntry]:
        """Leave out what was passed already, and note what is missing in between."""
        fresh = []
        for entry in entries:
            if self._below is not None:
                if entry.sequence >= self._below:
                    continue
                self._miss(_last_sequence(entry) + 1, self._below - 1)
            self._below = entry.sequence
            self.lowest = entry
            fresh.append(entry)
        return fresh


class Forwards(Passage):
    """From the entry that holds the bound, or from the oldest that is kept, up to the newest.

    The first entries may lie before the bound.
    """

    def __init__(
        self, store: Store, keys: PartitionKeys, shelf: Shelf, bound: Bound | None
    ) -> None:
        """Nothing is read before the first step."""
        super().__init__(store, keys, shelf, bound)
        # The sequence that the next entry must hold; None while any will do.
        self._next = bound.value if bound is not None and bound.field == "seq" else None
        self._firsts: list[int] = []
        self._index = 0
        self._passed_first = -1

    async def step(self, count: int) -> Sequence[RawEntry] | None:
        """Return up to `count` entries, the oldest first; None at the end."""
        if not self._begun:
            self._begun = True
            await self._begin()
        if self._firsts:
            return await self._step_archived(count)
        if self._live_from is None:
            self._live_from = await self._live_start()
        entries = await self._read_live("XRANGE", self._live_from, "+", count)
        if not entries:
            return None
        if await self._was_overtaken(entries[0]):
            return ()
        self._live_from = f"({entries[-1].stream_id}"
        return self._joined(entries)

    async def _begin(self) -> None:
        """Find out whether the start is still in the store, or in the archive."""
        bound = self._bound
        if bound is not None:
            before, _ = await self._seek(bound)
            if before:
                self._live_from = before
                return
        oldest = await self._read_live("XRANGE", "-", "+", 1)
        if oldest:
            first = oldest[0].sequence
            if first == 1 or (self._next is not None and first <= self._next):
                self._live_from = "-"
                return
        firsts = await self._shelf.first_sequences(self.keys.partition)
        skipped = 0
        if self._next is not None:
            skipped = bisect_right(firsts, self._next) - 1
        elif bound is not None:
            partition = self.keys.partition
            skipped = await self._shelf.count_before(partition, firsts, bound.value) - 1
        self._take(firsts[max(0, skipped) :])

    def _take(self, firsts: Sequence[int]) -> None:
        self._firsts = list(firsts)
        self._index = 0
        if firsts:
            self._passed_first = firsts[-1]

    async def _live_start(self) -> str:
        if self._next is None:
            return "-"
        before, _ = await self._seek(Bound("seq", self._next))
        return before or "-"

    async def _was_overtaken(self, entry: RawEntry) -> bool:
        """Say whether what comes next went to the archive meanwhile, and if so go back to it."""
        if self._next is None or entry.sequence <= self._next:
            return False
        firsts = await self._shelf.first_sequences(self.keys.partition)
        holder = bisect_right(firsts, self._next) - 1
        self._take(firsts[max(holder, bisect_right(firsts, self._passed_first)) :])
        self._live_from = None
        return bool(self._firsts)

    async def _step_archived(self, count: int) -> Sequence[RawEntry]:
        shelved = await self._shelf.segment(self.keys.partition, self._firsts[0])
        if shelved is None:
            # The next entry that can be read shows what is missing.
            if self._next is None:
                self._next = self._firsts[0]
            self._firsts.pop(0)
            return ()
        if self._index == 0:
            self.segments_opened += 1
            self._index = self._unwanted_of(shelved.entries)
        entries = shelved.entries[self._index : self._index + count]
        self._index += len(entries)
        if self._index >= len(shelved.entries):
            self._firsts.pop(0)
            self._index = 0
        return self._joined(entries)

    def _unwanted_of(self, entries: Sequence[RawEntry]) -> int:
        """Count the entries of a segment that end before where the passage is."""
        if self._next is not None:
            return max(0, bisect_right(entries, self._next, key=_sequence) - 1)
        if self._bound is not None:
            return bisect_left(entries, self._bound.value, key=_at_ms)
        return 0

    def _joined(self, entries: Sequence[RawEntry]) -> list[RawEntry]:
        """Leave out what was passed already, and note what is missing in between."""
        fresh = []
        for entry in entries:
            last = _last_sequence(entry)
            if self._next is not None:
                if last < self._next:
                    continue
                self._miss(self._next, entry.sequence - 1)
            self._next = last + 1
            fresh.append(entry)
        return fresh


def _sequence(entry: RawEntry) -> int:
    return entry.sequence


def _at_ms(entry: RawEntry) -> int:
    return entry.at_ms


def _last_sequence(entry: RawEntry) -> int:
    return entry.sequence + entry.operation_count - 1
