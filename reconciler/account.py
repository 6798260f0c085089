"""The account of one partition: its ledger, read as far as it can be trusted, and folded.

Where a rebuild must stop at damage, an audit has to see what lies behind it. So an account notes
what is wrong with the ledger and its archive instead of raising it, and goes on.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple

import msgspec

from engine.keys import PartitionKeys
from engine.ledger import MAX_READ_ENTRIES, Entry
from engine.splits import Plan
from engine.store import Store
from reconciler.anomalies import ChangeWatch
from reconciler.archive import Archive
from reconciler.archiver import Position, raw_entry, read_position
from reconciler.contradictions import Contradictions
from reconciler.findings import Code, SegmentEvidence
from reconciler.fold import (
    Fold,
    PartitionState,
    RowKey,
    held_in_pools,
    told_waits,
    waits_in,
)
from reconciler.reader import LedgerDamaged, LedgerReader
from reconciler.segments import Segment, SegmentDamaged, segment_path
from reconciler.unknown_supplies import SupplyWatch

PRUNE_OPERATIONS: Final = 50_000
"""At least, between two times that endings and records past their retention are forgotten."""

MAX_CATCH_UPS: Final = 100
"""Gaps in the store's stream that are looked up in the archive: each one lists it anew."""

FOLD_OPERATIONS: Final = 2_000
"""Operations folded before others have their turn: some 20 ms."""

Snapshots = Callable[[int, int | None], Awaitable[PartitionState | None]]
"""Returns a partition's newest good snapshot, at or before a sequence where one is given."""


class BrokenSegment(NamedTuple):
    """A segment that is missing or cannot be trusted."""

    code: Code
    reason: str
    evidence: SegmentEvidence


class _Link(NamedTuple):
    """The end of the chain so far: the last sequence, and the seal ('' where nobody can tell)."""

    last: int
    seal: str


class Account:
    """One partition's expected state at a place of its ledger, and what is wrong with the ledger.

    `open` reads the archive, `read_to` what the store has past it. `listeners` are given each entry
    before it is folded.
    """

    def __init__(
        self,
        store: Store,
        keys: Sequence[PartitionKeys],
        partition: int,
        archive: Archive | None,
    ) -> None:
        """Start before the first operation; `keys` are those of all partitions."""
        self.partitions = keys
        self.keys = keys[partition]
        self.contradictions = Contradictions()
        self.broken: list[BrokenSegment] = []
        self.unreadable: list[str] = []
        self.operations = 0
        self.segments = 0
        self._store = store
        self._archive = archive
        self._reader = LedgerReader(store, keys, archive)
        self._stream = LedgerReader(store, keys, None)
        self.watch = ChangeWatch()
        self.supplies = SupplyWatch()
        self.listeners: list[Callable[[Entry], None]] = [self.watch.observe, self.supplies.observe]
        self._fold = Fold()
        self._since_prune = 0
        self._since_pause = 0
        self._catch_ups = 0
        self._heard = 0
        self._read_until = "0-0"

    @property
    def state(self) -> PartitionState:
        """The partition as the ledger says it is."""
        return self._fold.state

    @property
    def size(self) -> int:
        """How much is kept in memory, in rows, reservations, records and buyers."""
        state = self.state
        held = len(state.rows) + len(state.reservations) + len(state.seen)
        return held + len(state.buyers) + len(state.claims)

    async def open(self, *, snapshots: Snapshots | None = None, whole: bool = True) -> None:
        """Read up to the end of the archive.

        `whole` starts from the first operation that is kept rather than the newest snapshot. A
        snapshot also stands in for operations that are lost from the archive, so that only the
        history is lost and not what it came to. Raises LedgerDamaged where the beginning is kept
        elsewhere, ArchiveUnavailable, and what the store's calls raise.
        """
        number = self.keys.partition
        position = await read_position(self._store, self.keys)
        first = await self._first_sequence()
        if snapshots is not None and (first > 1 or not whole):
            base = await snapshots(number, first - 1 if whole else None)
            base = base or await snapshots(number, None)
            if base is not None:
                self._start_from(base)
        if first > self.state.sequence + 1 and await self._began_elsewhere(position):
            # Taken for lost operations, all of them would be mended away.
            reason = f"goes back to {first} only; its beginning is in an archive that was not given"
            raise LedgerDamaged(partition=number, sequence=1, reason=reason)
        await self._fold_archived(position)
        ranges = self.contradictions.ranges()
        lost = [note.last for note in ranges if note.code is Code.ENTRIES_MISSING]
        if snapshots is not None and lost:
            newest = await snapshots(number, None)
            if newest is not None and newest.sequence >= max(lost):
                self._start_from(newest)
                await self._fold_archived(position)

    def _start_from(self, base: PartitionState) -> None:
        """Go on from a snapshot, and forget what was folded before."""
        self._fold = Fold(base)
        self._read_until = base.stream_id
        self.contradictions = Contradictions()

    async def _began_elsewhere(self, position: Position) -> bool:
        """Tell whether operations before the first that is kept were archived, or are a rebuild's.

        Otherwise the store itself lost them.
        """
        (rebuilt,) = await self._store.read([("HGET", self.keys.meta, "rebuilt")])
        return position.sequence > 0 or rebuilt is not None

    async def _fold_archived(self, position: Position) -> None:
        if self._archive is None or position.sequence <= self.state.sequence:
            return
        await self._fold_read(position.sequence)
        self._read_until = max(
            position.stream_id, self._read_until, self.state.stream_id, key=_stream_order
        )

    async def verify_archive(self) -> None:
        """Read every segment and note those that are missing or cannot be trusted.

        Raises ArchiveUnavailable, and what the store's calls raise.
        """
        archive = self._archive
        if archive is None:
            return
        self.broken.clear()
        # Read before the listing: segments written meanwhile are no surprise, missing ones are.
        position = await read_position(self._store, self.keys)
        paths = await archive.segment_paths(self.keys.partition)
        link = _Link(_named_sequence(paths[0]) - 1 if paths else 0, "")
        for index, path in enumerate(paths):
            following = paths[index + 1] if index + 1 < len(paths) else None
            try:
                segment = await archive.read_segment(path)
            except SegmentDamaged as damage:
                link = await self._break_damaged(archive, damage, following, link, position)
                continue
            self.segments += 1
            if index == 0 and segment.header.previous:
                # The first of a chain names none before it, be it a rebuilt store's.
                link = _Link(0, "")
            await self._check_link(archive, path, segment, link)
            link = _Link(segment.header.last_sequence, segment.seal)
        if position.sequence > link.last:
            path = archive.path(segment_path(self.keys.partition, link.last + 1))
            reason = f"is missing, but the store says that {position.sequence} is archived"
            await self._break(
                Code.SEGMENT_MISSING, path, reason, (link.last + 1, position.sequence), link,
                position.seal,
            )  # fmt: skip

    async def _break_damaged(
        self,
        archive: Archive,
        damage: SegmentDamaged,
        following: str | None,
        link: _Link,
        position: Position,
    ) -> _Link:
        """Note a damaged segment; return the link that the next one should be chained to."""
        first = _named_sequence(damage.path)
        last, seal = max(first, position.sequence), position.seal
        if following is not None:
            last = _named_sequence(following) - 1
            try:
                seal = (await archive.read_segment(following)).header.previous
            except SegmentDamaged:
                seal = ""
        await self._break(
            Code.SEGMENT_DAMAGED, damage.path, damage.reason, (first, last), link, seal
        )
        return _Link(last, seal)

    async def _check_link(self, archive: Archive, path: str, segment: Segment, link: _Link) -> None:
        """Check that a segment follows the one before; note what is missing in between."""
        header = segment.header
        first, last = header.first_sequence, header.last_sequence
        if header.partition != self.keys.partition:
            reason = f"belongs to partition {header.partition}"
            await self._break(Code.SEGMENT_DAMAGED, path, reason, (first, last), link, "")
        elif first > link.last + 1:
            lost = archive.path(segment_path(self.keys.partition, link.last + 1))
            await self._break(
                Code.SEGMENT_MISSING, lost, "is missing", (link.last + 1, first - 1), link,
                header.previous,
            )  # fmt: skip
        elif link.seal and header.previous != link.seal:
            reason = "is not chained to the segment before it"
            await self._break(Code.SEGMENT_DAMAGED, path, reason, (first, last), link, "")

    async def _break(
        self, code: Code, path: str, reason: str, span: tuple[int, int], link: _Link, seal: str
    ) -> None:
        first, last = span
        evidence = SegmentEvidence(
            path=path,
            first=first,
            last=last,
            previous=link.seal,
            seal=seal,
            in_ledger=await self._is_in_stream(first, last),
        )
        self.broken.append(BrokenSegment(code, reason, evidence))

    async def _is_in_stream(self, first: int, last: int) -> bool:
        """Tell whether the store still has every one of these operations."""
        reached = first - 1
        try:
            async for entry in self._stream.entries(
                self.keys.partition, after_sequence=first - 1, until_sequence=last
            ):
                reached = entry.sequence + len(entry.operations) - 1
        except LedgerDamaged:
            return False
        return reached >= last

    async def _first_sequence(self) -> int:
        """Return the first sequence that is kept anywhere, 1 where nothing is or can be told."""
        if self._archive is not None:
            paths = await self._archive.segment_paths(self.keys.partition)
            if paths:
                return _named_sequence(paths[0])
        entries, _, _ = await self._read_stream("0-0", "+", 1)
        return entries[0].sequence if entries else 1

    async def read_to(self, stream_id: str) -> None:
        """Fold what the store has up to and with a stream id.

        Raises ArchiveUnavailable, and what the store's calls raise.
        """
        if _stream_order(stream_id) <= _stream_order(self._read_until):
            return
        count = MAX_READ_ENTRIES
        while count == MAX_READ_ENTRIES:
            entries, count, last = await self._read_stream(
                self._read_until, stream_id, MAX_READ_ENTRIES
            )
            for entry in entries:
                if entry.sequence > self.state.sequence + 1 and self._catch_ups < MAX_CATCH_UPS:
                    # What was archived and trimmed since the archive was read is no gap.
                    self._catch_ups += 1
                    await self._fold_read(entry.sequence - 1)
                await self._apply(entry)
            self._read_until = last
        self._read_until = stream_id

    async def _fold_read(self, until_sequence: int) -> None:
        """Fold up to a sequence from wherever it can be had; gaps are noted by the fold."""
        if self._archive is None:
            return
        try:
            async for entry in self._reader.entries(
                self.keys.partition,
                after_sequence=self.state.sequence,
                until_sequence=until_sequence,
                over_gaps=True,
            ):
                await self._apply(entry)
        except LedgerDamaged as damage:
            self.unreadable.append(str(damage))

    async def _read_stream(self, after: str, end: str, count: int) -> tuple[list[Entry], int, str]:
        """Read entries past `after` up to `end`; those that cannot be decoded are noted.

        Returns what could be decoded, how many entries there were, and the last one's id.
        """
        command = ("XRANGE", self.keys.ledger, f"({after}", end, "COUNT", count)
        (reply,) = await self._store.read([command])
        entries = []
        for stream_id, fields in reply:
            try:
                entries.append(raw_entry(stream_id, fields).decode())
            except (KeyError, ValueError, IndexError, msgspec.MsgspecError) as error:
                self.unreadable.append(f"entry {stream_id.decode()}: {error!r}")
        return entries, len(reply), reply[-1][0].decode() if reply else after

    async def _apply(self, entry: Entry) -> None:
        self.contradictions.check(entry, self.state)
        if entry.sequence > self._heard:
            # What is folded a second time, from a snapshot on, is told once.
            self._heard = entry.sequence
            for listen in self.listeners:
                listen(entry)
        self._fold.apply(entry)
        count = len(entry.operations)
        self.operations += count
        self._since_prune += count
        # Pruning goes over all there is, so the more there is the rarer it must be.
        if self._since_prune >= max(PRUNE_OPERATIONS, self.size):
            self._since_prune = 0
            self.state.prune(self.state.at_ms)
        self._since_pause += count
        if self._since_pause >= FOLD_OPERATIONS:
            self._since_pause = 0
            await asyncio.sleep(0)

    def unlike_holds(self) -> list[RowKey]:
        """Return the rows whose reserved units are not the sum of their open reservations."""
        held, rows = self.held(), self.state.rows
        pooled, waits = self.pooled(), self.waits()
        found = [
            key
            for key, row in rows.items()
            if (row.reserved, row.backordered) != held.get(key, (0, 0))
            or held_in_pools(row.terms) != pooled.get(key, {})
            or told_waits(row.terms) != waits.get(key, {})
        ]
        return found + [key for key in held if key not in rows]

    def waits(self) -> dict[RowKey, dict[str, Any]]:
        """Return what each row's terms should say of those who wait for it."""
        return waits_in(self.state.reservations.values())

    def pooled(self) -> dict[RowKey, dict[str, int]]:
        """Add up what open reservations hold in the pools of each row's channels."""
        units: dict[RowKey, dict[str, int]] = {}
        for reservation in self.state.reservations.values():
            extras = reservation.body.extras
            if extras is not None and extras.pooled and reservation.is_open:
                for key, held, waits in reservation.units():
                    if key[2] in extras.pooled:
                        pools = units.setdefault(key, {})
                        pools[extras.channel] = pools.get(extras.channel, 0) + held + waits
        return units

    def held(self) -> dict[RowKey, tuple[int, int]]:
        """Add up what open reservations hold of each row, and what they wait for."""
        units: dict[RowKey, tuple[int, int]] = {}
        for reservation in self.state.reservations.values():
            if reservation.is_open:
                for key, held, waits in reservation.units():
                    before = units.get(key, (0, 0))
                    units[key] = (before[0] + held, before[1] + waits)
        for key, row in self.state.rows.items():
            if row.split.startswith("home"):
                # Those at its parts are in other partitions: what it was told of them.
                before = units.get(key, (0, 0))
                reserved = sum(cell.reserved for cell in Plan.parse(row.split).cells.values())
                units[key] = (before[0] + reserved, before[1])
        return units


def _named_sequence(path: str) -> int:
    return int(PurePosixPath(path).stem)


def _stream_order(stream_id: str) -> tuple[int, int]:
    at_ms, _, number = stream_id.partition("-")
    return int(at_ms), int(number or 0)
