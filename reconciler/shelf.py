"""Segments as readers of the past ask for them: by partition and sequence, the last ones at hand.

A rebuilt store goes on where the store that it came from ended, with an archive of its own. As long
as the number of partitions stays the same so do the sequences, and then the segments of the stores
before it stand in front of its own as if they were one archive's.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Final, NamedTuple, Self

from reconciler.archive import Archive
from reconciler.segments import (
    RawEntry,
    SegmentDamaged,
    SegmentHeader,
    segment_path,
    unpack_segment,
)
from reconciler.snapshots import ListedSnapshot, Snapshots

MAX_SHELF_BYTES: Final = 64 * 2**20
"""Of unpacked segments at hand in one process, whoever asked for them."""

MAX_KNOWN_STARTS: Final = 100_000
"""Segments whose first moment is remembered, at some 200 bytes each."""

MAX_ANCESTORS: Final = 50
"""Stores that a store was rebuilt from, one after the other."""

ENTRY_OVERHEAD_BYTES: Final = 250
"""Of an unpacked entry beside its operations."""

_NO_END: Final = 2**53

OpenArchive = Callable[[], Awaitable[Archive | None]]
"""Opens the archive of a store, None where it has none. Raises ArchiveUnavailable."""


class Shelved(NamedTuple):
    """A verified segment, unpacked as far as its entries."""

    header: SegmentHeader
    entries: Sequence[RawEntry]


class _Home(NamedTuple):
    """Where a segment of an earlier store is, and the last sequence of it that counts."""

    archive: Archive
    until: int


class Shelf:
    """The segments of one archive and of those before it; see the module's text."""

    def __init__(self, open_archive: OpenArchive) -> None:
        """Nothing is opened or read before it is asked for."""
        self._open_archive = open_archive
        self._archive: Archive | None = None
        self._opened = False
        self._line: Sequence[Archive] | None = None
        self._own: dict[int, list[int]] = {}
        self._inherited: dict[int, list[int]] = {}
        self._homes: dict[tuple[int, int], _Home] = {}
        self._starts: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._kept: OrderedDict[tuple[int, int], tuple[Shelved, int]] = OrderedDict()
        self._kept_bytes = 0

    @classmethod
    def of(cls, archive: Archive | None) -> Self:
        """Make one of an archive that is open already, or of none."""

        async def opened() -> Archive | None:
            return archive

        return cls(opened)

    async def archive(self) -> Archive | None:
        """Return the archive, opened; None where there is none. Raises ArchiveUnavailable."""
        if not self._opened:
            self._archive = await self._open_archive()
            self._opened = True
        return self._archive

    async def first_sequences(self, partition: int) -> Sequence[int]:
        """List a partition's segments by their first sequences. Raises ArchiveUnavailable."""
        archive = await self.archive()
        if archive is None:
            return ()
        known = self._own.get(partition, [])
        # Segments are only ever added at the end, so only what is past the last need be listed.
        last = archive.path(segment_path(partition, known[-1])) if known else None
        own = [*known, *await _listed(archive, partition, after=last)]
        self._own[partition] = own
        return [*await self._inherit(archive, partition), *own]

    async def segment(self, partition: int, first: int) -> Shelved | None:
        """Read a segment; None where it is gone or damaged. Raises ArchiveUnavailable."""
        key = (partition, first)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        own = await self.archive()
        if own is None:
            return None
        archive, until = self._homes.get(key, _Home(own, _NO_END))
        path = archive.path(segment_path(partition, first))
        data = await archive.objects.get(path)
        if data is None:
            # What was listed before may have been removed since.
            self._own.pop(partition, None)
            self._inherited.pop(partition, None)
            return None
        try:
            shelved = await asyncio.to_thread(_unpack, path, data, until)
        except SegmentDamaged:
            return None
        self._keep(key, shelved)
        return shelved

    async def count_before(self, partition: int, firsts: Sequence[int], at_ms: int) -> int:
        """Count the segments of `firsts` that start before a moment. Raises ArchiveUnavailable."""
        low, high = 0, len(firsts)
        while low < high:
            middle = (low + high) // 2
            probe = middle
            start_ms = await self._start_ms(partition, firsts[probe])
            while start_ms is None and probe + 1 < high:
                probe += 1
                start_ms = await self._start_ms(partition, firsts[probe])
            if start_ms is None or start_ms >= at_ms:
                high = middle
            else:
                low = probe + 1
        return low

    async def snapshots(self, partition: int) -> list[ListedSnapshot]:
        """List the snapshots of the archive and of those before it, the oldest first.

        Raises ArchiveUnavailable.
        """
        archive = await self.archive()
        if archive is None:
            return []
        found: list[ListedSnapshot] = []
        until = _NO_END
        for one in await self._lineage(archive):
            listed = await Snapshots(one).listing(partition)
            found = [each for each in listed if each.sequence < until] + found
            until = listed[0].sequence if listed else 0
        return found

    async def _lineage(self, archive: Archive) -> Sequence[Archive]:
        """Return the archive and those that its store was rebuilt from, the newest first."""
        if self._line is not None:
            return self._line
        line = [archive]
        origin = await archive.read_origin()
        if origin is None:
            # It was not begun yet, and may still become a rebuilt store's.
            return line
        while origin.source and len(line) <= MAX_ANCESTORS:
            before = Archive(archive.objects, origin.source)
            found = await before.read_origin()
            if found is None or found.partitions != origin.partitions:
                break
            line.append(before)
            origin = found
        self._line = line
        return line

    async def _inherit(self, archive: Archive, partition: int) -> list[int]:
        """List the segments of the stores before this one, up to where each next one began."""
        line = await self._lineage(archive)
        if len(line) == 1:
            return []
        if partition not in self._inherited:
            firsts: list[int] = []
            until = _NO_END
            for child, before in pairwise(line):
                names = await Snapshots(child).names(partition)
                # The first snapshot of a rebuilt store is the one that it began with.
                until = min(until, names[0].sequence if names else 0)
                older = [first for first in await _listed(before, partition) if first <= until]
                self._homes.update({(partition, first): _Home(before, until) for first in older})
                firsts = older + firsts
            self._inherited[partition] = firsts
        return self._inherited[partition]

    async def _start_ms(self, partition: int, first: int) -> int | None:
        key = (partition, first)
        if key not in self._starts:
            shelved = await self.segment(partition, first)
            return None if shelved is None else shelved.header.first_at_ms
        self._starts.move_to_end(key)
        return self._starts[key]

    def _keep(self, key: tuple[int, int], shelved: Shelved) -> None:
        self._starts[key] = shelved.header.first_at_ms
        if len(self._starts) > MAX_KNOWN_STARTS:
            self._starts.popitem(last=False)
        size = sum(len(entry.operations) + ENTRY_OVERHEAD_BYTES for entry in shelved.entries)
        if key not in self._kept:
            self._kept[key] = (shelved, size)
            self._kept_bytes += size
        while self._kept_bytes > MAX_SHELF_BYTES and len(self._kept) > 1:
            _, (_, freed) = self._kept.popitem(last=False)
            self._kept_bytes -= freed


async def _listed(archive: Archive, partition: int, *, after: str | None = None) -> list[int]:
    paths = await archive.objects.list(archive.path(f"ledger/{partition:04d}"), after=after)
    stems = [PurePosixPath(path).stem for path in paths if path.endswith(".segment")]
    return [int(stem) for stem in stems if stem.isdecimal()]


def _unpack(path: str, data: bytes, until: int) -> Shelved:
    segment = unpack_segment(path, data)
    # A store that came back after its successor had begun may have written on.
    entries = [entry for entry in segment.entries() if entry.sequence <= until]
    return Shelved(segment.header, entries)
