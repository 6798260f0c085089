"""What happened, to what, when and by whom: questions to the ledger, in the store and the archive.

An answer merges the partitions that the merchant has stock in, by time. One call does a bounded
amount of work: where that does not fill the page, the page says so and the next call goes on.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from engine.clock import clock_ms
from engine.history import (
    MAX_PAGE_ROWS,
    Found,
    HistoryPage,
    Order,
    PastRow,
    Position,
    Question,
)
from engine.inventory import Inventory
from engine.keys import (
    MAX_PARTITIONS,
    MOVED_KEY,
    PartitionKeys,
    encode,
    moved_reservation_id,
    partition_of,
    partition_of_reservation,
    reservation_hash,
)
from engine.ledger import RowChange, decode_operations, row_after
from engine.model import Row, Terms
from engine.outcomes import HistoryUnavailable, InvalidCommand, PastNotKept, RowNotFound
from engine.validation import check_id, check_page, check_text
from reconciler.objects import ArchiveUnavailable
from reconciler.passage import MAX_STEP_ENTRIES, Backwards, Bound, Forwards, Passage
from reconciler.segments import RawEntry
from reconciler.shelf import OpenArchive, Shelf
from reconciler.snapshots import ListedSnapshot, Snapshot, SnapshotDamaged, Snapshots

MAX_WORK: Final = 20_000
"""What one call may do, in entries that it looks through: some 100 ms in all, and others have their
turn in between. Each partition has one step on top, or a question would never end."""

SEGMENT_WORK: Final = 500
"""What opening a segment counts for, in the same unit."""

MAX_BARREN_STEPS: Final = 1_000
"""Steps in a row that find no entry at all, as only segments that cannot be read give."""

MAX_STEPS_AT_ONCE: Final = 8
MIN_STEP_ENTRIES: Final = 20

MAX_PAST_WORK: Final = 500_000
"""The same for the past of one row, which no other call can go on with. Snapshots, made every few
segments, keep it far below."""

_NO_TIME: Final = 2**53
_START: Final = {
    Order.NEWEST: Position(_NO_TIME, MAX_PARTITIONS, 0),
    Order.OLDEST: Position(0, -1, 0),
}
"""Positions before everything, in the order of the answer."""


class LedgerHistory:
    """The history of one store; see the module's text."""

    def __init__(self, inventory: Inventory, open_archive: OpenArchive) -> None:
        """The archive is opened when it is first needed."""
        self._inventory = inventory
        self._shelf = Shelf(open_archive)
        # A snapshot may be of hundreds of thousands of rows: one at a time in this process.
        self._snapshot_gate = asyncio.Semaphore(1)

    async def find(self, question: Question, *, after: Position | None = None) -> HistoryPage:
        """Answer the part of a question past `after`; see `engine.history.History`."""
        _check(question)
        question = await self._as_named_now(question)
        partitions = await self._partitions(question)
        oldest_first = question.order is Order.OLDEST
        start = after or _START[question.order]
        # What is written later than this may still be overtaken by an earlier moment elsewhere.
        settled_ms = _NO_TIME
        if oldest_first and len(partitions) > 1:
            settled_ms = await self._settled_ms(partitions)
        count = max(MIN_STEP_ENTRIES, min(MAX_STEP_ENTRIES, 4 * question.limit // len(partitions)))
        walks = [
            _Walk(self._passage(question, partition, start), question, start, settled_ms, count)
            for partition in partitions
        ]
        try:
            return await _Merge(walks, question, start, settled_ms).page()
        except ArchiveUnavailable as error:
            raise HistoryUnavailable("the archive does not answer") from error

    async def stock_at(self, merchant: str, location: str, sku: str, *, at_ms: int) -> PastRow:
        """Return a row as it was at a moment; see `engine.history.History`."""
        check_id("merchant", merchant)
        check_id("location", location)
        check_id("sku", sku)
        partition = partition_of(merchant, location, self._inventory.partitions)
        keys = self._inventory.keys[partition]
        if at_ms > await clock_ms(self._inventory.store, keys):
            raise InvalidCommand("at", "must not be in the future")
        question = Question(merchant=merchant, location=location, sku=sku)
        passage = Backwards(self._inventory.store, keys, self._shelf, Bound("at", at_ms + 1))
        try:
            return await _Past(passage, question, at_ms, self._shelf, self._snapshot_gate).row()
        except ArchiveUnavailable as error:
            raise HistoryUnavailable("the archive does not answer") from error

    async def _as_named_now(self, question: Question) -> Question:
        """Ask for a reservation by the id that it has now, which a rebuild may have changed."""
        the_id = question.reservation
        if the_id is None:
            return question
        (moved,) = await self._inventory.store.read([("HGET", MOVED_KEY, reservation_hash(the_id))])
        if moved is None:
            return question
        return msgspec.structs.replace(
            question, reservation=moved_reservation_id(the_id, int(moved))
        )

    async def _partitions(self, question: Question) -> Sequence[int]:
        """Return the partitions that can have an answer; at least one."""
        count = self._inventory.partitions
        if question.location is not None:
            return [partition_of(question.merchant, question.location, count)]
        if question.reservation is not None:
            partition = partition_of_reservation(question.reservation, count)
            return [0 if partition is None else partition]
        member = encode(question.merchant)
        replies = await self._inventory.store.read(
            [
                ("ZRANGEBYLEX", keys.locations, f"[{member}:", f"({member};", "LIMIT", 0, 1)
                for keys in self._inventory.keys
            ]
        )
        return [partition for partition, reply in enumerate(replies) if reply] or [0]

    async def _settled_ms(self, partitions: Sequence[int]) -> int:
        """Return the last moment that nothing can be written for any more in these partitions.

        Scripts take their time from the server of their partition, and none runs in its past.
        """
        gate = asyncio.Semaphore(MAX_STEPS_AT_ONCE)

        async def one(keys: PartitionKeys) -> int:
            async with gate:
                return await clock_ms(self._inventory.store, keys)

        clocks = await asyncio.gather(*(one(self._inventory.keys[p]) for p in partitions))
        return min(clocks) - 1

    def _passage(self, question: Question, partition: int, start: Position) -> Passage:
        keys = self._inventory.keys[partition]
        store = self._inventory.store
        if question.order is Order.OLDEST:
            return Forwards(store, keys, self._shelf, _lower_bound(question, partition, start))
        return Backwards(store, keys, self._shelf, _upper_bound(question, partition, start))


class _Past:
    """The search for a row's last change before a moment: back to a snapshot, and then in it."""

    def __init__(
        self,
        passage: Backwards,
        question: Question,
        at_ms: int,
        shelf: Shelf,
        snapshot_gate: asyncio.Semaphore,
    ) -> None:
        self._passage = passage
        self._question = question
        self._at_ms = at_ms
        self._shelf = shelf
        self._gate = snapshot_gate
        self._floors: list[ListedSnapshot] | None = None

    async def row(self) -> PastRow:
        """Find it. Raises RowNotFound, PastNotKept, HistoryUnavailable and ArchiveUnavailable."""
        marks = self._question.marks()
        passage = self._passage
        work = 0
        while (entries := await passage.step(MAX_STEP_ENTRIES)) is not None:
            for entry in entries:
                found = _last_change(entry, self._question, marks)
                if found is not None:
                    sequence, change = found
                    return PastRow(_row(self._question, change), self._at_ms, sequence)
            # What the store itself has tells without asking the archive.
            if passage.segments_opened or passage.missing:
                at_floor = await self._row_at_floor()
                if at_floor is not None:
                    return at_floor
            work += len(entries)
            if work + SEGMENT_WORK * passage.segments_opened > MAX_PAST_WORK:
                raise HistoryUnavailable("too much lies between that moment and its snapshot")
        lowest = passage.lowest or await self._oldest()
        at_floor = await self._row_at_floor(reached=0 if lowest is None else lowest.sequence - 1)
        if at_floor is not None:
            return at_floor
        if lowest is not None and lowest.sequence != 1:
            raise PastNotKept(at_ms=self._at_ms, earliest_ms=lowest.at_ms)
        raise self._not_found()

    async def _row_at_floor(self, *, reached: int | None = None) -> PastRow | None:
        """Look into the newest snapshot that the passage has come down to; None before that.

        `reached` is the sequence that it came down to, where its last entry does not tell. Raises
        PastNotKept where what is missing lies above it: the row may have changed there.
        """
        floors = await self._listed()
        if reached is None:
            lowest = self._passage.lowest
            reached = _NO_TIME if lowest is None else lowest.sequence - 1
        while floors:
            floor = floors[-1]
            if reached > floor.sequence:
                break
            self._check_whole(above=floor.sequence)
            snapshot = await self._read(floor.path)
            if snapshot is None:
                floors.pop()
                continue
            return self._row_in(snapshot)
        if not floors:
            self._check_whole(above=0)
        return None

    def _row_in(self, snapshot: Snapshot) -> PastRow:
        question = self._question
        location, sku = question.location or "", question.sku or ""
        folded = snapshot.state.rows.get((question.merchant, location, sku))
        if folded is None:
            raise self._not_found()
        row = Row(
            question.merchant,
            location,
            sku,
            folded.on_hand,
            folded.reserved,
            folded.safety_stock,
            folded.deficit,
            folded.version,
            folded.low_stock_threshold,
            folded.offline_buffer,
            folded.backordered,
            None if folded.terms is None else msgspec.convert(folded.terms, Terms),
        )
        return PastRow(row, self._at_ms, folded.sequence)

    def _check_whole(self, *, above: int) -> None:
        if any(gap.last_sequence > above for gap in self._passage.missing):
            lowest = self._passage.lowest
            raise PastNotKept(
                at_ms=self._at_ms, earliest_ms=None if lowest is None else lowest.at_ms
            )

    async def _listed(self) -> list[ListedSnapshot]:
        """List the snapshots from before the moment, the oldest first."""
        if self._floors is None:
            listed = await self._shelf.snapshots(self._passage.keys.partition)
            self._floors = [one for one in listed if one.header and one.header.at_ms <= self._at_ms]
        return self._floors

    async def _read(self, path: str) -> Snapshot | None:
        archive = await self._shelf.archive()
        if archive is None:
            return None
        async with self._gate:
            try:
                return await Snapshots(archive).read(path)
            except SnapshotDamaged:
                return None

    async def _oldest(self) -> RawEntry | None:
        """Return the oldest entry of the partition that is kept."""
        passage = self._passage.other_way()
        for _ in range(MAX_BARREN_STEPS):
            entries = await passage.step(1)
            if entries is None:
                return None
            if entries:
                return entries[0]
        raise HistoryUnavailable("too much of the archive in a row cannot be read")

    def _not_found(self) -> RowNotFound:
        question = self._question
        return RowNotFound(
            merchant=question.merchant, location=question.location or "", sku=question.sku or ""
        )


class _Walk:
    """A passage along one partition that picks what is asked for.

    `frontier` is the last place that was looked at. A walk that `ended` finds nothing more now; one
    that `is_over` never will.
    """

    def __init__(
        self,
        passage: Passage,
        question: Question,
        start: Position,
        settled_ms: int,
        count: int,
    ) -> None:
        self.passage = passage
        self.found: deque[Found] = deque()
        self.frontier = start
        self.ended = False
        self.is_over = False
        self.work = 0
        self._question = question
        self._marks = question.marks()
        self._oldest_first = question.order is Order.OLDEST
        self._start = start
        self._settled_ms = settled_ms
        self._count = count
        self._segments_opened = 0

    async def advance(self) -> None:
        """Look through entries until there is at least one more of them, or the end."""
        before = self.frontier
        for _ in range(MAX_BARREN_STEPS):
            await self._step()
            if self.ended or self.frontier != before:
                return
        raise HistoryUnavailable("too much of the archive in a row cannot be read")

    async def _step(self) -> None:
        entries = await self.passage.step(self._count)
        opened = self.passage.segments_opened - self._segments_opened
        self._segments_opened += opened
        self.work += (0 if entries is None else len(entries)) + SEGMENT_WORK * opened
        # Whoever is asked for again has found little in much.
        self._count = min(MAX_STEP_ENTRIES, 2 * self._count)
        if entries is None:
            self.ended = True
            return
        for entry in entries:
            self.is_over = self._is_past_end(entry.at_ms)
            if self.is_over or (self._oldest_first and entry.at_ms > self._settled_ms):
                self.ended = True
                return
            self._look_at(entry)

    def _is_past_end(self, at_ms: int) -> bool:
        from_ms, to_ms = self._question.from_ms, self._question.to_ms
        if self._oldest_first:
            return to_ms is not None and at_ms >= to_ms
        return from_ms is not None and at_ms < from_ms

    def _look_at(self, entry: RawEntry) -> None:
        partition = self.passage.keys.partition
        last = entry.sequence + entry.operation_count - 1
        end = last if self._oldest_first else entry.sequence
        place = Position(entry.at_ms, partition, end)
        if self._precedes(self.frontier, place):
            self.frontier = place
        if not all(mark in entry.operations for mark in self._marks):
            return
        found = [
            Found(partition, entry.sequence + i, entry.at_ms, operation)
            for i, operation in enumerate(decode_operations(entry.operations))
            if self._question.matches(operation)
        ]
        for item in found if self._oldest_first else reversed(found):
            if self._is_wanted(item):
                self.found.append(item)

    def _is_wanted(self, item: Found) -> bool:
        """Say whether an operation lies past the start, and within the time asked for."""
        question, start, position = self._question, self._start, item.position
        if question.from_ms is not None and item.at_ms < question.from_ms:
            return False
        if question.to_ms is not None and item.at_ms >= question.to_ms:
            return False
        if item.partition == start.partition:
            ahead, behind = start.sequence, item.sequence
            return behind > ahead if self._oldest_first else behind < ahead
        return self._precedes(start, position)

    def _precedes(self, one: Position, other: Position) -> bool:
        return one < other if self._oldest_first else one > other


class _Merge:
    """Walks merged in the order of the answer."""

    def __init__(
        self, walks: Sequence[_Walk], question: Question, start: Position, settled_ms: int
    ) -> None:
        self._walks = walks
        self._question = question
        self._oldest_first = question.order is Order.OLDEST
        self._start = start
        self._settled_ms = settled_ms
        self._items: list[Found] = []
        self._rows = 0

    async def page(self) -> HistoryPage:
        """Walk until the page is full, the work is used up, or all walks have ended."""
        await self._advance(self._walks)
        full = self._emit()
        while not full:
            hungry = [walk for walk in self._walks if not walk.found and not walk.ended]
            if not hungry or sum(walk.work for walk in self._walks) >= MAX_WORK:
                break
            try:
                await self._advance(hungry)
            except ArchiveUnavailable:
                if not self._items:
                    raise
                # What the store still has can be given; only going on from there fails.
                break
            full = self._emit()
        missing = tuple(gap for walk in self._walks for gap in walk.passage.missing)
        has_more = any(walk.found or not walk.ended for walk in self._walks)
        return HistoryPage(
            tuple(self._items), has_more, self._following(full=full, has_more=has_more), missing
        )

    async def _advance(self, walks: Sequence[_Walk]) -> None:
        gate = asyncio.Semaphore(MAX_STEPS_AT_ONCE)

        async def one(walk: _Walk) -> None:
            async with gate:
                await walk.advance()

        results = await asyncio.gather(*map(one, walks), return_exceptions=True)
        for result in results:
            if result is not None:
                raise result

    def _emit(self) -> bool:
        """Take what no unread entry can come before; return whether the page is full."""
        barrier = min(
            (
                self._rank(walk.frontier)
                for walk in self._walks
                if not walk.found and not walk.ended
            ),
            default=None,
        )
        heads = [
            (self._rank(walk.found[0].position), index)
            for index, walk in enumerate(self._walks)
            if walk.found
        ]
        heapq.heapify(heads)
        while heads and (barrier is None or heads[0][0] <= barrier):
            if len(self._items) >= self._question.limit:
                return True
            _, index = heads[0]
            walk = self._walks[index]
            if not self._take(walk.found[0]):
                return True
            walk.found.popleft()
            if walk.found:
                heapq.heapreplace(heads, (self._rank(walk.found[0].position), index))
            else:
                heapq.heappop(heads)
                if not walk.ended:
                    rank = self._rank(walk.frontier)
                    barrier = rank if barrier is None else min(barrier, rank)
        return len(self._items) >= self._question.limit

    def _take(self, found: Found) -> bool:
        rows = 1 if self._question.sku is not None else len(found.operation.rows)
        if self._items and self._rows + rows > MAX_PAGE_ROWS:
            return False
        self._rows += rows
        self._items.append(found)
        return True

    def _following(self, *, full: bool, has_more: bool) -> Position | None:
        """Return the place that everything up to was given from."""
        if full and has_more and self._items:
            return self._items[-1].position
        if has_more:
            hungry = [walk for walk in self._walks if not walk.found and not walk.ended]
            return min((walk.frontier for walk in hungry), key=self._rank)
        to_ms = self._question.to_ms
        if not self._oldest_first:
            return None
        if len(self._walks) == 1:
            return None if self._walks[0].is_over else self._walks[0].frontier
        if to_ms is not None and to_ms <= self._settled_ms:
            return None
        return max(self._start, Position(self._settled_ms, MAX_PARTITIONS, 0))

    def _rank(self, position: Position) -> tuple[int, int, int]:
        if self._oldest_first:
            return position
        return (-position.at_ms, -position.partition, -position.sequence)


def _check(question: Question) -> None:
    check_id("merchant", question.merchant)
    check_page(question.limit)
    for field in ("location", "sku", "reservation", "actor", "reference"):
        text = getattr(question, field)
        if text is not None:
            check_text(field, text)


def _upper_bound(question: Question, partition: int, start: Position) -> Bound | None:
    """Return what the newest entry of a partition must be below."""
    if partition == start.partition:
        return Bound("seq", start.sequence)
    at_ms = start.at_ms + (partition < start.partition)
    if question.to_ms is not None:
        at_ms = min(at_ms, question.to_ms)
    return None if at_ms >= _NO_TIME else Bound("at", at_ms)


def _lower_bound(question: Question, partition: int, start: Position) -> Bound | None:
    """Return what the oldest entry of a partition must reach."""
    if partition == start.partition:
        return Bound("seq", start.sequence + 1)
    at_ms = start.at_ms + (partition < start.partition)
    if question.from_ms is not None:
        at_ms = max(at_ms, question.from_ms)
    return None if at_ms <= 0 else Bound("at", at_ms)


def _row(question: Question, change: RowChange) -> Row:
    return row_after(question.merchant, question.location or "", change)


def _last_change(
    entry: RawEntry, question: Question, marks: Sequence[bytes]
) -> tuple[int, RowChange] | None:
    """Return the last change of the question's row in an entry, and its sequence."""
    if not all(mark in entry.operations for mark in marks):
        return None
    operations = decode_operations(entry.operations)
    for i in range(len(operations) - 1, -1, -1):
        if question.matches(operations[i]):
            for change in reversed(operations[i].rows):
                if change.sku == question.sku:
                    return entry.sequence + i, change
    return None
