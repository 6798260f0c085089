"""The archiver: follows each partition's ledger into segments, then lets the store forget them.

For each partition, under a fenced lease: read what is past the archived position; write it as one
segment; read the segment back and verify it; record the new position and trim, in one script that
refuses a stale fence. Killed between any two steps it starts again from the recorded position and
finds the segment it had written: the same first sequence is the same name, which cannot be written
twice.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from engine.clock import clock_ms
from engine.inventory import Inventory
from engine.keys import PartitionKeys
from engine.leases import Lease
from engine.scripts import script
from engine.store import Store, pairs
from reconciler.archive import Archive, ensure_origin
from reconciler.segments import (
    RawEntry,
    Segment,
    SegmentDamaged,
    pack_segment,
    segment_path,
    unpack_segment,
)

MAX_SEGMENT_ENTRIES: Final = 5_000
MAX_SEGMENT_RAW_BYTES: Final = 8 * 2**20
READ_ENTRIES: Final = 500
"""Stream entries in one read, so that a read never holds the store for long."""

MAX_TRIMMED: Final = 20_000
"""Entries that one call may trim, for the same reason."""

RESUME_WINDOW_MS: Final = 3_600_000
"""How long entries stay in the store, so that subscribers can resume from it."""


MAX_HELD_MS: Final = 24 * 3_600_000
"""How long an entry may be kept for a registered reader that has not read it. One that was given up
would else fill the store's memory; one that comes back later reads the rows anew."""


class Position(msgspec.Struct, frozen=True):
    """How far a partition is archived: the last operation, its stream id, the segment's seal."""

    sequence: int = 0
    stream_id: str = "0-0"
    seal: str = ""
    at_ms: int = 0


class Progress(msgspec.Struct, frozen=True):
    """What one round did in a partition, and what it left."""

    partition: int
    segments: int = 0
    entries: int = 0
    trimmed: int = 0
    behind_entries: int = 0
    """Stream entries past the archived position, as of the round's start."""
    skipped: str = ""
    """Why nothing was done, e.g. another process has the lease."""


class ArchiverSettings(msgspec.Struct, frozen=True):
    """`min_age_ms`: a segment is written when its oldest entry is that old, or it is full."""

    min_age_ms: int = 60_000
    resume_window_ms: int = RESUME_WINDOW_MS
    max_segment_entries: int = MAX_SEGMENT_ENTRIES


class Archiver:
    """Archives the partitions of one store; see the module's text."""

    def __init__(
        self, inventory: Inventory, archive: Archive, *, owner: str, settings: ArchiverSettings
    ) -> None:
        """`owner` is unique to the process that archives."""
        self._store: Store = inventory.store
        self._archive = archive
        self._settings = settings
        self._keys = inventory.keys
        self._leases = [
            Lease(inventory.store, keys, "archive", owner=owner) for keys in inventory.keys
        ]

    async def archive_all(self, *, flush: bool = False) -> list[Progress]:
        """Do one round over all partitions; `flush` also writes what is young and little.

        Raises ArchiveUnavailable, SegmentDamaged, and what the store's calls raise.
        """
        return [
            await self.archive_partition(partition, flush=flush)
            for partition in range(len(self._keys))
        ]

    async def give_up(self) -> None:
        """Let another process go on at once."""
        for lease in self._leases:
            await lease.give_up()

    async def archive_partition(self, partition: int, *, flush: bool = False) -> Progress:
        """Archive what is there of one partition."""
        lease = self._leases[partition]
        if not await lease.renew():
            return Progress(partition, skipped="another process has the lease")
        keys = self._keys[partition]
        position = await read_position(self._store, keys)
        behind = await self._behind(keys, position)
        segments = entries = trimmed = 0
        while True:
            batch = await self._read_batch(keys, position)
            if not batch or not (flush or await self._is_ripe(keys, batch)):
                break
            if not await lease.renew():
                return Progress(partition, segments, entries, trimmed, behind, "lost the lease")
            segment = await self._write(partition, batch, position)
            header = segment.header
            position = Position(
                header.last_sequence, header.last_stream_id, segment.seal, header.last_at_ms
            )
            fenced, gone = await self._advance(keys, lease, position)
            if not fenced:
                return Progress(partition, segments, entries, trimmed, behind, "lost the lease")
            segments, entries, trimmed = segments + 1, entries + header.entries, trimmed + gone
        if position.sequence and not segments:
            _, trimmed = await self._advance(keys, lease, position)
        return Progress(partition, segments, entries, trimmed, behind)

    async def _behind(self, keys: PartitionKeys, position: Position) -> int:
        """Count the stream entries that are not archived, up to a segment's worth."""
        (found,) = await self._store.read(
            [("XRANGE", keys.ledger, f"({position.stream_id}", "+", "COUNT", READ_ENTRIES)]
        )
        return len(found)

    async def _read_batch(self, keys: PartitionKeys, position: Position) -> list[RawEntry]:
        batch: list[RawEntry] = []
        size = 0
        after = position.stream_id
        while len(batch) < self._settings.max_segment_entries and size < MAX_SEGMENT_RAW_BYTES:
            count = min(READ_ENTRIES, self._settings.max_segment_entries - len(batch))
            found = await read_raw_entries(self._store, keys, after=after, count=count)
            batch += found
            size += sum(len(entry.operations) for entry in found)
            if len(found) < count:
                break
            after = found[-1].stream_id
        return batch

    async def _is_ripe(self, keys: PartitionKeys, batch: Sequence[RawEntry]) -> bool:
        if len(batch) >= self._settings.max_segment_entries:
            return True
        if sum(len(entry.operations) for entry in batch) >= MAX_SEGMENT_RAW_BYTES:
            return True
        return await clock_ms(self._store, keys) - batch[0].at_ms >= self._settings.min_age_ms

    async def _write(
        self, partition: int, batch: Sequence[RawEntry], position: Position
    ) -> Segment:
        """Write a segment, or adopt the one that a killed archiver left at the same place."""
        if not position.seal:
            # The first segment of a partition: whoever finds it must find out whose it is.
            await ensure_origin(self._archive, self._store)
        path = self._archive.path(segment_path(partition, batch[0].sequence))
        data = pack_segment(partition, batch, previous=position.seal)
        written = await self._archive.objects.put_new(path, data)
        back = await self._archive.objects.get(path)
        if back is None:
            raise SegmentDamaged(path, "was written but cannot be read back")
        segment = unpack_segment(path, back)
        if written:
            if back != data:
                raise SegmentDamaged(path, "reads back other than it was written")
        elif not _continues(segment, batch, position):
            raise SegmentDamaged(path, "exists already and is not what the ledger says")
        return segment

    async def _advance(
        self, keys: PartitionKeys, lease: Lease, position: Position
    ) -> tuple[bool, int]:
        """Record the position and trim; False where another owner has the lease by now."""
        reply: Any = await self._store.call(
            script("archived"),
            (keys.ledger, keys.archive, keys.readers, lease.key),
            lease.fence,
            position.sequence,
            position.stream_id,
            position.seal,
            position.at_ms,
            self._settings.resume_window_ms,
            MAX_TRIMMED,
            MAX_HELD_MS,
        )
        return reply[0] == 1, reply[1]


def _continues(segment: Segment, batch: Sequence[RawEntry], position: Position) -> bool:
    """Whether a segment found in place holds the same entries, be they fewer or more."""
    if segment.header.previous != position.seal:
        return False
    found = segment.entries()
    common = min(len(found), len(batch))
    return list(found[:common]) == list(batch[:common])


async def read_position(store: Store, keys: PartitionKeys) -> Position:
    """Read how far a partition is archived."""
    (fields,) = await store.read([("HMGET", keys.archive, "sequence", "stream_id", "seal", "at")])
    sequence, stream_id, seal, at_ms = fields
    if sequence is None:
        return Position()
    return Position(int(sequence), stream_id.decode(), seal.decode(), int(at_ms))


async def read_raw_entries(
    store: Store, keys: PartitionKeys, *, after: str, count: int
) -> list[RawEntry]:
    """Read up to `count` stream entries past `after` without unpacking their operations."""
    (reply,) = await store.read([("XRANGE", keys.ledger, f"({after}", "+", "COUNT", count)])
    return [raw_entry(stream_id, fields) for stream_id, fields in reply]


def raw_entry(stream_id: bytes, reply: Any) -> RawEntry:
    """Take a stream entry as the store tells it, its operations still packed."""
    fields = dict(pairs(reply))
    operations = fields[b"ops"]
    return RawEntry(
        stream_id.decode(),
        int(fields[b"seq"]),
        int(fields[b"at"]),
        operations,
        _array_length(operations),
    )


def _array_length(packed: bytes) -> int:
    """Return how many elements a msgpack array has, from its first bytes alone."""
    head = packed[0]
    if 0x90 <= head <= 0x9F:
        return head & 0x0F
    if head == 0xDC:
        return int.from_bytes(packed[1:3], "big")
    if head == 0xDD:
        return int.from_bytes(packed[1:5], "big")
    raise ValueError("a ledger entry's `ops` is no msgpack array")
