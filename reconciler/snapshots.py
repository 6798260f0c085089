"""Snapshots: one partition's folded state at one sequence, so that nobody folds from the start.

A snapshot is folded from the snapshot before it and the segments since, never from live state: it
must not depend on what it may have to replace. It is a sealed file (see `reconciler.sealed`) whose
body is a `PartitionState`. One that cannot be trusted is passed over, and the one before is used.
"""

import asyncio
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final, NamedTuple

import msgspec
import structlog

from reconciler.archive import Archive
from reconciler.fold import Fold, PartitionState
from reconciler.reader import LedgerDamaged, LedgerReader
from reconciler.sealed import (
    MAX_HEADER_BYTES,
    FileDamaged,
    Form,
    header_of,
    seal,
    unpack_body,
    unseal,
)
from reconciler.segments import RawEntry

SCHEMA_VERSION: Final = 1
DAY_MS: Final = 86_400_000

MIN_KEPT: Final = 2
"""Snapshots of a partition that no policy goes below: one may turn out to be damaged."""

MAX_STRETCH_SEGMENTS: Final = 2_000
"""Segments to replay between two snapshots, at most: a snapshot whose removal would leave more
stays for good, so that any past moment is some 10 million entries away from one, and not years."""

MAX_PRUNED: Final = 1_000
"""Snapshots of a partition that one call removes."""

log = structlog.get_logger()


class SnapshotDamaged(FileDamaged):
    """A snapshot that cannot be trusted: `path`, and what is wrong with it."""


FORM: Final = Form(b"HFSNP\x00\x00\x01", SnapshotDamaged)


class SnapshotHeader(msgspec.Struct, frozen=True):
    """What a snapshot says of itself: the last operation in it, and how much it holds.

    `origin` marks the one that a rebuilt store begins with; no segment leads up to it.
    `disagreements` counts where the ledger contradicted itself on the way here.
    """

    schema_version: int
    partition: int
    sequence: int
    stream_id: str
    at_ms: int
    rows: int
    reservations: int
    seen: int
    origin: bool = False
    disagreements: int = 0


class Snapshot(NamedTuple):
    """A verified snapshot."""

    path: str
    header: SnapshotHeader
    state: PartitionState


class SnapshotName(NamedTuple):
    """A snapshot in a listing: it holds everything up to operation `sequence`."""

    path: str
    sequence: int


class ListedSnapshot(msgspec.Struct, frozen=True):
    """A snapshot in a listing with its header, not verified; None where that cannot be read."""

    path: str
    sequence: int
    header: SnapshotHeader | None


class SnapshotPolicy(msgspec.Struct, frozen=True):
    """Which snapshots stay: the last ones, and the last of each day for `daily_days` days.

    Days are those of UTC by the ledger's own clock, counted back from the newest snapshot.
    """

    keep_last: int = 3
    daily_days: int = 14


class Made(msgspec.Struct, frozen=True):
    """A snapshot that was made, and from how much."""

    path: str
    header: SnapshotHeader
    entries: int
    base_sequence: int


class Pruned(msgspec.Struct, frozen=True):
    """What a call to `prune` removed; `kept_for_segments` it wanted to, but segments need them."""

    partition: int
    removed: tuple[str, ...]
    kept_for_segments: tuple[str, ...]


class Snapshots:
    """The snapshots of one archive.

    `damages` lists those that were passed over so far because they cannot be trusted.
    """

    def __init__(self, archive: Archive) -> None:
        """Read and write in `archive`."""
        self._archive = archive
        self.damages: list[SnapshotDamaged] = []

    # Reading

    async def names(self, partition: int) -> list[SnapshotName]:
        """List a partition's snapshots, the oldest first. Raises ArchiveUnavailable."""
        prefix = self._archive.path(f"snapshots/{partition:04d}")
        paths = await self._archive.objects.list(prefix)
        return [
            SnapshotName(path, int(PurePosixPath(path).stem))
            for path in paths
            if path.endswith(".snapshot") and PurePosixPath(path).stem.isdecimal()
        ]

    async def listing(self, partition: int) -> list[ListedSnapshot]:
        """List a partition's snapshots with their headers, the oldest first."""
        return [
            ListedSnapshot(name.path, name.sequence, await self.header(name))
            for name in await self.names(partition)
        ]

    async def read(self, path: str) -> Snapshot:
        """Read and verify one. Raises SnapshotDamaged (also where it is gone)."""
        data = await self._archive.objects.get(path)
        if data is None:
            raise SnapshotDamaged(path, "is missing")
        snapshot = await asyncio.to_thread(unpack_snapshot, path, data)
        header = snapshot.header
        if path != self._archive.path(snapshot_path(header.partition, header.sequence)):
            raise SnapshotDamaged(path, "was made for another place")
        return snapshot

    async def newest(
        self, partition: int, *, until_sequence: int | None = None, until_ms: int | None = None
    ) -> Snapshot | None:
        """Read the newest good snapshot that holds nothing past `until_...`; None without one."""
        for name in reversed(await self.names(partition)):
            if until_sequence is not None and name.sequence > until_sequence:
                continue
            if until_ms is not None:
                header = await self.header(name)
                if header is not None and header.at_ms > until_ms:
                    continue
            try:
                return await self.read(name.path)
            except SnapshotDamaged as damage:
                self._pass_over(damage)
        return None

    async def state(
        self, partition: int, until_sequence: int | None = None
    ) -> PartitionState | None:
        """Return the state of the newest good snapshot at or before a sequence, if there is one."""
        snapshot = await self.newest(partition, until_sequence=until_sequence)
        return None if snapshot is None else snapshot.state

    # Writing

    async def make(self, partition: int, *, min_entries: int = 1) -> Made | None:
        """Fold what was archived since the newest snapshot into a new one.

        Returns None where fewer than `min_entries` stream entries were. Raises LedgerDamaged where
        segments are missing or damaged, or a gap in them is not acknowledged by a repair.
        """
        base = await self.newest(partition)
        fold = Fold() if base is None else Fold(base.state)
        base_sequence = fold.state.sequence
        entries = 0
        reader = LedgerReader(None, None, self._archive)
        async for batch in reader.batches(partition, after_sequence=base_sequence, over_gaps=True):
            # Beside the event loop: a full segment takes some 50 ms, and others have timers.
            await asyncio.to_thread(apply_batch, fold, batch)
            entries += len(batch)
        check_whole(partition, fold, reader)
        if entries < max(1, min_entries):
            return None
        fold.state.prune(fold.state.at_ms)
        before = 0 if base is None else base.header.disagreements
        path, header = await self.write(
            partition, fold.state, disagreements=before + len(fold.disagreements)
        )
        return Made(path, header, entries, base_sequence)

    async def write(
        self, partition: int, state: PartitionState, *, origin: bool = False, disagreements: int = 0
    ) -> tuple[str, SnapshotHeader]:
        """Write a state as a snapshot, read it back and verify it. Raises SnapshotDamaged."""
        path = self._archive.path(snapshot_path(partition, state.sequence))
        header = SnapshotHeader(
            schema_version=SCHEMA_VERSION,
            partition=partition,
            sequence=state.sequence,
            stream_id=state.stream_id,
            at_ms=state.at_ms,
            rows=len(state.rows),
            reservations=len(state.reservations),
            seen=len(state.seen),
            origin=origin,
            disagreements=disagreements,
        )
        data = await asyncio.to_thread(pack_snapshot, header, state)
        if not await self._archive.objects.put_new(path, data):
            await self._replace_damaged(path, data)
        back = await self._archive.objects.get(path)
        if back is None:
            raise SnapshotDamaged(path, "was written but cannot be read back")
        found = await asyncio.to_thread(unpack_snapshot, path, back)
        if back != data and found.state != state:
            raise SnapshotDamaged(path, "exists already and is not what the ledger says")
        return path, found.header

    async def prune(self, partition: int, policy: SnapshotPolicy) -> Pruned:
        """Remove what the policy does not keep, and what no segment needs; the oldest first.

        A snapshot goes only where the segments between its neighbours were read and found whole,
        so every moment can still be told without it. Damaged snapshots go once two good ones are
        kept. Raises ArchiveUnavailable.
        """
        listed = await self.listing(partition)
        kept = _kept(listed, policy)
        if len(kept) < len(listed):
            kept -= await self._damaged_among(sorted(kept, reverse=True))
        removed: list[str] = []
        needed: list[str] = []
        before = 0
        for one in listed:
            if one.header is not None and one.path in kept:
                before = one.sequence
                continue
            if len(kept) < MIN_KEPT or len(removed) >= MAX_PRUNED:
                break
            if one.header is not None and not await self._is_covered(
                partition, before, one.sequence
            ):
                needed.append(one.path)
                before = one.sequence
                continue
            await self._archive.objects.delete(one.path)
            removed.append(one.path)
        return Pruned(partition, tuple(removed), tuple(needed))

    async def _damaged_among(self, paths: Sequence[str]) -> set[str]:
        """Read on until MIN_KEPT are found good; return those that were not."""
        damaged: set[str] = set()
        good = 0
        for path in paths:
            if good == MIN_KEPT:
                break
            try:
                await self.read(path)
            except SnapshotDamaged as damage:
                self._pass_over(damage)
                damaged.add(path)
            else:
                good += 1
        return damaged

    async def _is_covered(self, partition: int, after: int, until: int) -> bool:
        """Say whether the segments tell everything past `after` up to `until`."""
        paths = await self._archive.segment_paths(partition, from_sequence=after + 1)
        last = self._archive.path(f"ledger/{partition:04d}/{until:020d}.segment")
        if sum(path <= last for path in paths) > MAX_STRETCH_SEGMENTS:
            return False
        expected = after + 1
        reader = LedgerReader(None, None, self._archive)
        try:
            async for batch in reader.batches(
                partition, after_sequence=after, until_sequence=until
            ):
                expected = batch[-1].sequence + batch[-1].operation_count
        except LedgerDamaged as damage:
            log.warning("a snapshot is kept, since segments lack what it holds", error=str(damage))
            return False
        return expected > until

    async def header(self, name: SnapshotName) -> SnapshotHeader | None:
        """Read a header alone, not verified; None where it cannot be read."""
        data = await self._archive.objects.head(name.path, MAX_HEADER_BYTES)
        try:
            header = None if data is None else _decode_header(header_of(FORM, name.path, data))
        except (SnapshotDamaged, msgspec.DecodeError):
            return None
        return header if header is not None and header.sequence == name.sequence else None

    async def _replace_damaged(self, path: str, data: bytes) -> None:
        """Write in place of a snapshot that is no good; a good one stays as it is."""
        try:
            await self.read(path)
        except SnapshotDamaged as damage:
            self._pass_over(damage)
            await self._archive.objects.delete(path)
            await self._archive.objects.put_new(path, data)

    def _pass_over(self, damage: SnapshotDamaged) -> None:
        log.error("a snapshot cannot be trusted; the one before is used", error=str(damage))
        self.damages.append(damage)


_encode = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(SnapshotHeader).decode
_decode_state = msgspec.msgpack.Decoder(PartitionState).decode


def snapshot_path(partition: int, sequence: int) -> str:
    """Return where the snapshot of a sequence stands; zeros keep listings in order."""
    return f"snapshots/{partition:04d}/{sequence:020d}.snapshot"


def pack_snapshot(header: SnapshotHeader, state: PartitionState) -> bytes:
    """Make the file of a state."""
    return seal(FORM, _encode(header), _encode(state))


def unpack_snapshot(path: str, data: bytes) -> Snapshot:
    """Verify a file and return its snapshot. Raises SnapshotDamaged."""
    sealed = unseal(FORM, path, data)
    try:
        header = _decode_header(sealed.header)
        if header.schema_version != SCHEMA_VERSION:
            raise SnapshotDamaged(path, f"has schema version {header.schema_version}")
        state = _decode_state(unpack_body(FORM, path, sealed.body))
    except msgspec.DecodeError as error:
        raise SnapshotDamaged(path, f"cannot be read: {error}") from error
    if (state.sequence, len(state.rows)) != (header.sequence, header.rows):
        raise SnapshotDamaged(path, "holds other than its header says")
    return Snapshot(path, header, state)


def check_whole(partition: int, fold: Fold, reader: LedgerReader) -> None:
    """Check that a fold met no gap that nobody acknowledged. Raises LedgerDamaged."""
    gaps = fold.gaps
    if gaps:
        first = gaps[0]
        path = reader.damages[0].path if reader.damages else ""
        reason = f"lacks {first.first} to {first.last}"
        raise LedgerDamaged(partition=partition, sequence=first.first, reason=reason, path=path)


def apply_batch(fold: Fold, batch: Sequence[RawEntry]) -> None:
    """Unpack entries and apply them."""
    for entry in batch:
        fold.apply(entry.decode())


def _kept(listed: Sequence[ListedSnapshot], policy: SnapshotPolicy) -> set[str]:
    """Choose what stays: origins, the last ones, and the last of each day."""
    good = [one for one in listed if one.header is not None]
    kept = {one.path for one in good[-max(MIN_KEPT, policy.keep_last) :]}
    kept |= {one.path for one in good if one.header is not None and one.header.origin}
    if not good or good[-1].header is None:
        return kept
    last_day = good[-1].header.at_ms // DAY_MS
    by_day = {one.header.at_ms // DAY_MS: one.path for one in good if one.header is not None}
    kept |= {path for day, path in by_day.items() if last_day - day < policy.daily_days}
    return kept
