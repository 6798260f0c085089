"""Recovering one partition's state, as of its end or of an earlier moment, from all that survives.

What survives may be an archive, the store that is to be replaced, or both. Where operations are
missing the recovery goes on and says what is lost; whether that is acceptable is the caller's to
decide.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Final, NamedTuple

import msgspec

from engine.keys import PartitionKeys
from engine.ledger import Entry
from engine.store import Store
from reconciler.archive import Archive
from reconciler.fold import Fold, FoldedRow, Gap, PartitionState, RowKey, acknowledged_gap
from reconciler.reader import LedgerReader, read_sequence
from reconciler.segments import RawEntry
from reconciler.snapshots import Snapshots, apply_batch

MAX_TOLD: Final = 20
"""Contradictions of one partition that are told one by one."""


class Until(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the past is wanted; nothing given means everything.

    Operations at `at_ms` and before, and of the partitions in `sequences` those up to a sequence.
    """

    at_ms: int | None = None
    sequences: Mapping[int, int] = msgspec.field(default_factory=dict)

    @property
    def is_everything(self) -> bool:
        """True where nothing is left out."""
        return self.at_ms is None and not self.sequences

    def text(self) -> str:
        """Say it in one word, as the ledger of a rebuilt store keeps it; '' for everything."""
        parts = [] if self.at_ms is None else [f"{self.at_ms}ms"]
        parts += [f"{partition}:{last}" for partition, last in sorted(self.sequences.items())]
        return ",".join(parts)

    def wanted(self, partition: int, entry: Entry) -> int:
        """Count the operations of an entry that are wanted, from its first on."""
        count = len(entry.operations)
        if self.at_ms is not None and entry.at_ms > self.at_ms:
            return 0
        last = self.sequences.get(partition)
        return count if last is None else max(0, min(count, last - entry.sequence + 1))


class Source(NamedTuple):
    """Where a store's past is to be had: its archive, the store itself (`live`), or both."""

    store_id: str
    partitions: int
    archive: Archive | None
    live: Store | None

    def reader(self) -> LedgerReader:
        """Read the ledger from whatever there is."""
        return LedgerReader(self.live, self._keys() if self.live else None, self.archive)

    def keys(self, partition: int) -> PartitionKeys:
        """Return the keys of a partition of the store."""
        return PartitionKeys(partition)

    def _keys(self) -> Sequence[PartitionKeys]:
        return [PartitionKeys(number) for number in range(self.partitions)]


class Loss(msgspec.Struct, frozen=True):
    """Something that cannot be recovered of a partition; `first` and `last` are sequences."""

    partition: int
    first: int
    last: int
    reason: str


class Recovered(NamedTuple):
    """A partition as it is to be again.

    `sequence` is the last operation in it, `last_sequence` the last that is known of; the state
    carries the latter, and rows that changed in between a version above any that was ever seen.
    `notes` are about damage that could be made up for, `losses` about what could not.
    """

    state: PartitionState
    sequence: int
    last_sequence: int
    as_of_ms: int
    base_sequence: int
    losses: tuple[Loss, ...]
    notes: tuple[str, ...]


async def recover(
    source: Source, partition: int, until: Until, *, on_operations: Callable[[int], None]
) -> Recovered:
    """Recover a partition; `on_operations` is told how many were read since it was last told.

    Raises ArchiveUnavailable, and what the store's reads raise.
    """
    return await _Recovery(source, partition, until, on_operations).run()


class _Recovery:
    def __init__(
        self,
        source: Source,
        partition: int,
        until: Until,
        on_operations: Callable[[int], None],
    ) -> None:
        self._source = source
        self._partition = partition
        self._until = until
        self._on_operations = on_operations
        self._reader = source.reader()
        self._snapshots = None if source.archive is None else Snapshots(source.archive)
        self._fold = Fold()
        self._acknowledged: list[Gap] = []
        self._losses: list[Loss] = []

    async def run(self) -> Recovered:
        base_sequence = await self._start()
        is_cut = await self._fold_wanted() or await self._is_older_than_snapshots()
        state = self._fold.state
        sequence, as_of_ms = state.sequence, state.at_ms
        if is_cut:
            await self._keep_versions(state)
        await self._note_lost_tail(state)
        self._note_gaps()
        state.prune(state.at_ms)
        return Recovered(
            state,
            sequence,
            state.sequence,
            as_of_ms,
            base_sequence,
            tuple(self._losses),
            tuple(self._notes()),
        )

    async def _start(self) -> int:
        """Start from the newest good snapshot that holds nothing unwanted."""
        if self._snapshots is None:
            return 0
        base = await self._snapshots.newest(
            self._partition,
            until_sequence=self._until.sequences.get(self._partition),
            until_ms=self._until.at_ms,
        )
        if base is not None:
            self._fold = Fold(base.state)
        return self._fold.state.sequence

    async def _fold_wanted(self) -> bool:
        """Fold what is wanted; return whether there is something past it."""
        async with aclosing(self._batches(self._fold.state.sequence)) as batches:
            async for batch in batches:
                unwanted = await asyncio.to_thread(self._apply, batch)
                if unwanted:
                    self._miss_until(unwanted - 1)
                    return True
        return False

    def _apply(self, batch: Sequence[RawEntry]) -> int:
        """Fold what is wanted of a batch; return the first sequence that is not, 0 for none."""
        if self._until.is_everything:
            apply_batch(self._fold, batch)
            return 0
        for raw in batch:
            entry = raw.decode()
            count = self._until.wanted(self._partition, entry)
            if count:
                wanted = msgspec.structs.replace(entry, operations=entry.operations[:count])
                self._fold.apply(wanted)
            if count < len(entry.operations):
                return entry.sequence + count
        return 0

    async def _is_older_than_snapshots(self) -> bool:
        """Say whether there is something past what was folded that only a snapshot tells of."""
        if self._snapshots is None or self._until.is_everything:
            return False
        names = await self._snapshots.names(self._partition)
        if not names or names[-1].sequence <= self._fold.state.sequence:
            return False
        self._miss_until(names[-1].sequence)
        return True

    def _miss_until(self, sequence: int) -> None:
        """Note that what was folded should reach up to a sequence, if it does not."""
        if sequence > self._fold.state.sequence:
            reason = "no segment and no stream has them, so nobody knows if they are wanted"
            self._lose(self._fold.state.sequence + 1, sequence, reason)

    async def _keep_versions(self, state: PartitionState) -> None:
        """Lift the versions of rows that changed past what is wanted above all that were seen.

        Whoever watches stock takes an event only if its version is newer, and has seen those. A
        row that was made past it stays, empty, for the same reason.
        """
        highest: dict[RowKey, int] = {}
        snapshot = None
        # An acknowledgement of a gap stands in the ledger alone, so then all of it is read.
        if self._snapshots is not None and not self._fold.gaps:
            snapshot = await self._snapshots.newest(self._partition)
        cut = last = state.sequence
        last_ms = state.at_ms
        if snapshot is not None and snapshot.state.sequence > cut:
            last, last_ms = snapshot.state.sequence, snapshot.state.at_ms
            highest.update(
                (key, row.version)
                for key, row in snapshot.state.rows.items()
                if row.sequence > cut or key not in state.rows
            )
        del snapshot
        async for batch in self._batches(last):
            if batch[0].sequence > last + 1:
                reason = "versions in them are unknown, so rows may get a version twice"
                self._lose(last + 1, batch[0].sequence - 1, reason)
            await asyncio.to_thread(self._note_versions, batch, cut, highest)
            last = batch[-1].sequence + batch[-1].operation_count - 1
            last_ms = batch[-1].at_ms
        for key, version in highest.items():
            row = state.rows.get(key)
            if row is None:
                row = state.rows[key] = FoldedRow(0, 0, 0, 0, 0, last)
            row.version = max(row.version, version) + 1
        state.sequence, state.at_ms = last, last_ms

    def _note_versions(
        self, batch: Sequence[RawEntry], cut: int, highest: dict[RowKey, int]
    ) -> None:
        for raw in batch:
            entry = raw.decode()
            for operation in entry.operations[max(0, cut + 1 - entry.sequence) :]:
                for change in operation.changes:
                    highest[operation.merchant, operation.location, change.sku] = change.version
                gap = acknowledged_gap(operation)
                if gap is not None:
                    self._acknowledged.append(gap)

    async def _note_lost_tail(self, state: PartitionState) -> None:
        """Compare with what the store itself says was its last operation."""
        live = self._source.live
        if live is None:
            return
        last = await read_sequence(live, self._source.keys(self._partition))
        if last > state.sequence:
            self._lose(state.sequence + 1, last, "the newest operations are gone")
            state.sequence = last

    def _note_gaps(self) -> None:
        reasons = {damage.path: damage.reason for damage in self._reader.damages}
        why = "; ".join(f"{path} {reason}" for path, reason in reasons.items())
        for gap in self._fold.gaps:
            if gap not in self._acknowledged:
                self._lose(gap.first, gap.last, why or "no segment and no stream has them")

    def _lose(self, first: int, last: int, reason: str) -> None:
        if all((loss.first, loss.last) != (first, last) for loss in self._losses):
            self._losses.append(Loss(self._partition, first, last, reason))

    def _notes(self) -> Iterable[str]:
        for damage in self._reader.damages:
            yield f"segment {damage}"
        if self._snapshots is not None:
            for spoiled in self._snapshots.damages:
                yield f"snapshot {spoiled}"
        for one in self._fold.disagreements[:MAX_TOLD]:
            yield f"{one.invariant}: sequence {one.sequence}: {one.detail}"
        more = len(self._fold.disagreements) - MAX_TOLD
        if more > 0:
            yield f"{more} more contradictions"

    async def _batches(self, after: int) -> AsyncGenerator[Sequence[RawEntry], None]:
        batches = self._reader.batches(self._partition, after_sequence=after, over_gaps=True)
        async with aclosing(batches):
            async for batch in batches:
                yield batch
                self._on_operations(sum(entry.operation_count for entry in batch))
