"""The one way to read a partition's ledger from any sequence on: archive and store, stitched.

Segments come first, then what the store still has past them. Every entry is checked to follow the
one before, over the seam too. A segment that cannot be trusted is made up for by the store's stream
where that still has the operations; otherwise the reader says so and stops, or with `over_gaps`
goes on behind the gap, which the fold then notes.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

from engine.keys import PartitionKeys
from engine.ledger import Entry
from engine.scripts import script
from engine.store import Store
from reconciler.archive import Archive, check_succession
from reconciler.archiver import READ_ENTRIES, read_raw_entries
from reconciler.segments import RawEntry, Segment, SegmentDamaged

MAX_RELISTS: Final = 3
"""How often the archive is listed anew because the store forgot, meanwhile, what was just
archived. Entries stay an hour by default, so once is rare and twice is a fault."""

_FIRST: Final = "0-0"
_MAX_NUMBER: Final = 2**64 - 1
"""The last of the numbers that a stream gives within one millisecond."""


class LedgerDamaged(Exception):
    """Operations of a partition's ledger that cannot be had, from `sequence` on.

    `path` is the segment at fault, or '' where the store's stream is.
    """

    def __init__(self, *, partition: int, sequence: int, reason: str, path: str = "") -> None:
        """Say where and why."""
        self.partition = partition
        self.sequence = sequence
        self.reason = reason
        self.path = path
        where = path or "the store's ledger"
        super().__init__(f"partition {partition}, sequence {sequence}: {where} {reason}")


class LedgerReader:
    """Reads the ledger of one store, from its archive, from the store, or from both.

    `damages` lists the segments that could not be trusted so far and were passed over, because
    the store's stream stood in for them or because the caller goes on over gaps.
    """

    def __init__(
        self,
        store: Store | None,
        keys: Sequence[PartitionKeys] | None,
        archive: Archive | None,
    ) -> None:
        """Take the store with the keys of its partitions, or neither; and the archive, or none."""
        if (store is None) != (keys is None):
            raise ValueError("a store and the keys of its partitions come together")
        self._store = store
        self._keys = keys
        self._archive = archive
        self.damages: list[SegmentDamaged] = []

    async def entries(
        self,
        partition: int,
        *,
        after_sequence: int = 0,
        until_sequence: int | None = None,
        over_gaps: bool = False,
    ) -> AsyncGenerator[Entry, None]:
        """Read the entries past `after_sequence`, oldest first; see `batches`."""
        async for batch in self.batches(
            partition,
            after_sequence=after_sequence,
            until_sequence=until_sequence,
            over_gaps=over_gaps,
        ):
            for entry in batch:
                yield entry.decode()

    async def batches(
        self,
        partition: int,
        *,
        after_sequence: int = 0,
        until_sequence: int | None = None,
        over_gaps: bool = False,
    ) -> AsyncGenerator[Sequence[RawEntry], None]:
        """Read the same a segment's worth at a time, the operations still packed.

        An entry is given whole, also where `after_sequence` or `until_sequence` lies within it.
        Raises LedgerDamaged where operations are missing (unless `over_gaps`), ArchiveUnavailable,
        and what the store's reads raise.
        """
        walk = _Walk(self, partition, after_sequence, until_sequence, over_gaps=over_gaps)
        async for batch in walk.run():
            yield batch


class _Walk:
    """One pass over a partition; `expected` is the sequence that must come next."""

    def __init__(
        self,
        reader: LedgerReader,
        partition: int,
        after: int,
        until: int | None,
        *,
        over_gaps: bool,
    ) -> None:
        self._reader = reader
        self._archive = reader._archive
        self._store = reader._store
        self._keys = None if reader._keys is None else reader._keys[partition]
        self._partition = partition
        self._until = until
        self._over_gaps = over_gaps
        self._stream_id = ""
        self.expected = after + 1

    async def run(self) -> AsyncGenerator[Sequence[RawEntry], None]:
        for _ in range(MAX_RELISTS):
            async for batch in self._archived():
                yield batch
            trimmed = False
            async for found in self._live():
                # What the store no longer has may have been archived since the listing.
                trimmed = found[0].sequence > self.expected and await self._was_archived()
                if trimmed:
                    break
                batch = self._checked(found, path="")
                if batch:
                    yield batch
            if not trimmed:
                return
        raise self._damaged("is trimmed faster than it can be read")

    # The archive

    async def _archived(self) -> AsyncGenerator[Sequence[RawEntry], None]:
        archive = self._archive
        if archive is None or self._is_over():
            return
        paths = await archive.segment_paths(self._partition, from_sequence=self.expected)
        previous: Segment | None = None
        for path in paths:
            try:
                segment, entries = await self._segment(archive, path, previous)
            except SegmentDamaged as damage:
                self._reader.damages.append(damage)
                if await self._is_live():
                    return
                if not self._over_gaps:
                    raise self._damaged(damage.reason, path) from damage
                previous = None
                continue
            if segment.header.first_sequence > self.expected and await self._is_live():
                return
            batch = self._checked(entries, path=path)
            previous = segment
            self._stream_id = segment.header.last_stream_id
            if batch:
                yield batch
            if self._is_over():
                return

    async def _segment(
        self, archive: Archive, path: str, previous: Segment | None
    ) -> tuple[Segment, Sequence[RawEntry]]:
        """Read a segment and unpack it beside the event loop. Raises SegmentDamaged."""
        segment = await archive.read_segment(path)
        # Behind a missing segment there is nothing to be chained to; the gap shows by itself.
        if previous is not None and segment.header.first_sequence != self.expected:
            previous = None
        check_succession(path, segment, self._partition, previous)
        return segment, await asyncio.to_thread(segment.entries)

    async def _was_archived(self) -> bool:
        """Say whether the archive has the next operation by now."""
        if self._archive is None:
            return False
        paths = await self._archive.segment_paths(self._partition, from_sequence=self.expected)
        if not paths:
            return False
        try:
            header = (await self._archive.read_segment(paths[0])).header
        except SegmentDamaged:
            return False
        return header.first_sequence <= self.expected <= header.last_sequence

    # The store

    async def _live(self) -> AsyncGenerator[Sequence[RawEntry], None]:
        if self._store is None or self._keys is None or self._is_over():
            return
        after = self._stream_id or await self._seek(self._store, self._keys)
        while True:
            found = await self._read(self._store, self._keys, after)
            if found:
                after = found[-1].stream_id
                yield found
            if len(found) < READ_ENTRIES or self._is_over():
                return

    async def _read(
        self, store: Store, keys: PartitionKeys, after: str, *, count: int = READ_ENTRIES
    ) -> list[RawEntry]:
        try:
            return await read_raw_entries(store, keys, after=after, count=count)
        except (KeyError, ValueError, IndexError) as error:
            raise self._damaged(f"has an entry that is none past {after}: {error}") from error

    async def _seek(self, store: Store, keys: PartitionKeys) -> str:
        """Return the stream id past which the next operation stands, if it still does."""
        place, _ = await self._find(store, keys)
        return place

    async def _is_live(self) -> bool:
        """Say whether the store's stream still has the next operation; go on there if so."""
        if self._store is None or self._keys is None:
            return False
        place, has_it = await self._find(self._store, self._keys)
        if has_it:
            self._stream_id = place
        return has_it

    async def _find(self, store: Store, keys: PartitionKeys) -> tuple[str, bool]:
        wanted = self.expected
        reply: Any = await store.call(script("seek"), (keys.ledger,), "seq", wanted + 1)
        if not reply[0]:
            return _FIRST, False
        # The last entry that starts at the operation or before it may hold it.
        place = _just_before(reply[0].decode())
        found = await self._read(store, keys, place, count=1)
        if found and found[0].sequence + found[0].operation_count > wanted:
            return place, True
        return reply[0].decode(), False

    # Both

    def _checked(self, found: Sequence[RawEntry], *, path: str) -> Sequence[RawEntry]:
        """Drop what was read already and what is not wanted; check that the rest is dense."""
        wanted: list[RawEntry] = []
        for entry in found:
            after = entry.sequence + entry.operation_count
            if after <= self.expected:
                continue
            if self._until is not None and entry.sequence > self._until:
                self.expected = max(self.expected, self._until + 1)
                break
            if entry.sequence > self.expected and not self._over_gaps:
                raise self._damaged(f"goes on at {entry.sequence} only", path)
            if entry.sequence < self.expected and wanted:
                raise self._damaged(f"has {entry.sequence} twice", path)
            wanted.append(entry)
            self.expected = after
        return wanted

    def _is_over(self) -> bool:
        return self._until is not None and self.expected > self._until

    def _damaged(self, reason: str, path: str = "") -> LedgerDamaged:
        return LedgerDamaged(
            partition=self._partition, sequence=self.expected, reason=reason, path=path
        )


async def read_sequence(store: Store, keys: PartitionKeys) -> int:
    """Read the sequence of a partition's last operation, 0 for none."""
    (sequence,) = await store.read([("HGET", keys.meta, "sequence")])
    return int(sequence or 0)


def _just_before(stream_id: str) -> str:
    """Return the greatest stream id below one that an entry has."""
    ms, number = map(int, stream_id.split("-"))
    return f"{ms}-{number - 1}" if number else f"{ms - 1}-{_MAX_NUMBER}"
