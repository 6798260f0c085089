"""The archive as its readers see it: the segments of each partition, in order and verified.

A store has a `store_id`, made with it; its archive lies below that name, so a rebuilt store starts
an archive of its own and never writes into the one it came from:

    <store_id>/origin.json                      where the store came from
    <store_id>/ledger/<partition>/<first sequence>.segment
    <store_id>/snapshots/<partition>/<sequence>.snapshot
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from engine.keys import STORE_KEY
from engine.outcomes import StoreUnavailable
from engine.store import Store
from reconciler.objects import Objects
from reconciler.segments import Segment, SegmentDamaged, segment_path, unpack_segment

ORIGIN: Final = "origin.json"


class Origin(msgspec.Struct, frozen=True):
    """How a store began: new, or rebuilt from `source`; `created_at_ms` orders the stores.

    `has_moved` says that reservations may go by ids that name another partition than theirs, as the
    number of partitions was changed here or before.
    """

    store_id: str
    partitions: int
    created_at_ms: int
    source: str = ""
    rebuild: str = ""
    has_moved: bool = False


class Archive:
    """The archive of one store."""

    def __init__(self, objects: Objects, store_id: str) -> None:
        """Read and write below the store's id."""
        self.objects = objects
        self.store_id = store_id

    def path(self, name: str) -> str:
        """Return the path of a name in this archive."""
        return f"{self.store_id}/{name}"

    async def write_origin(self, origin: Origin) -> None:
        """Say where the store came from, once."""
        await self.objects.put_new(self.path(ORIGIN), msgspec.json.encode(origin))

    async def read_origin(self) -> Origin | None:
        """Read where the store came from; None where this archive was never begun."""
        data = await self.objects.get(self.path(ORIGIN))
        return None if data is None else msgspec.json.decode(data, type=Origin)

    async def segment_paths(self, partition: int, *, from_sequence: int = 0) -> list[str]:
        """List a partition's segments in order, from the one that holds `from_sequence`."""
        prefix = self.path(f"ledger/{partition:04d}")
        paths = await self.objects.list(prefix)
        wanted = self.path(segment_path(partition, from_sequence))
        # A segment is named by its first sequence, so the last one at or before holds it.
        before = [path for path in paths if path <= wanted]
        return before[-1:] + [path for path in paths if path > wanted]

    async def read_segment(self, path: str) -> Segment:
        """Read and verify one. Raises SegmentDamaged (also where it is gone)."""
        data = await self.objects.get(path)
        if data is None:
            raise SegmentDamaged(path, "is missing")
        return unpack_segment(path, data)

    async def segments(
        self, partition: int, *, from_sequence: int = 0
    ) -> AsyncIterator[tuple[str, Segment]]:
        """Read a partition's segments in order, each checked against the one before.

        Raises SegmentDamaged at the first that cannot be trusted.
        """
        previous: Segment | None = None
        for path in await self.segment_paths(partition, from_sequence=from_sequence):
            segment = await self.read_segment(path)
            check_succession(path, segment, partition, previous)
            yield path, segment
            previous = segment

    async def last_segment(self, partition: int) -> tuple[str, Segment] | None:
        """Read and verify the newest segment of a partition."""
        paths = await self.objects.list(self.path(f"ledger/{partition:04d}"))
        return (paths[-1], await self.read_segment(paths[-1])) if paths else None


def check_succession(path: str, segment: Segment, partition: int, previous: Segment | None) -> None:
    """Check that a segment is the partition's and follows `previous`. Raises SegmentDamaged."""
    header = segment.header
    if header.partition != partition:
        raise SegmentDamaged(path, f"belongs to partition {header.partition}")
    if previous is None:
        return
    if header.previous != previous.seal:
        raise SegmentDamaged(path, "is not chained to the segment before it")
    if header.first_sequence != previous.header.last_sequence + 1:
        raise SegmentDamaged(
            path,
            f"starts at sequence {header.first_sequence}, but the one before ends at "
            f"{previous.header.last_sequence}",
        )


async def open_archive(store: Store, url: str) -> Archive:
    """Open the archive of a store below `url`.

    Raises ArchiveUnavailable, and StoreUnavailable also where the store was never set up.
    """
    store_id = await read_store_id(store)
    return Archive(await asyncio.to_thread(Objects.open, url), store_id)


async def read_store_id(store: Store) -> str:
    """Return the name that a store's archive goes by.

    Raises StoreUnavailable also where the store was never set up.
    """
    (store_id,) = await store.read([("HGET", STORE_KEY, "store_id")])
    if store_id is None:
        raise StoreUnavailable("the store was not set up: run `holdfast serve` on it once")
    return str(store_id.decode())


async def read_archive_url(store: Store) -> str:
    """Return where a store was last archived to, '' where nobody ever said."""
    (url,) = await store.read([("HGET", STORE_KEY, "archive_url")])
    return "" if url is None else str(url.decode())


async def note_archive_url(store: Store, url: str) -> None:
    """Say in the store where it is archived, so that commands find the archive by themselves."""
    await store.read([("HSET", STORE_KEY, "archive_url", _address(url))])


def _address(url: str) -> str:
    """Make a folder's path whole, wherever the next process stands."""
    return url if urlsplit(url).scheme else str(Path(url).absolute())


async def ensure_origin(archive: Archive, store: Store) -> Origin:
    """Say where the archive's store came from, unless that stands there already.

    Raises ArchiveUnavailable, and StoreUnavailable also where the store was never set up.
    """
    origin = await archive.read_origin()
    if origin is not None:
        return origin
    (fields,) = await store.read([("HMGET", STORE_KEY, "partitions", "created_at")])
    if None in fields:
        raise StoreUnavailable("the store was not set up: run `holdfast serve` on it once")
    origin = Origin(archive.store_id, int(fields[0]), int(fields[1]))
    await archive.write_origin(origin)
    return origin


async def list_origins(objects: Objects) -> list[Origin]:
    """List the stores that an object store keeps the archives of, the oldest first."""
    origins = []
    for folder in await objects.folders():
        origin = await Archive(objects, folder).read_origin()
        if origin is not None:
            origins.append(origin)
    return sorted(origins, key=lambda origin: origin.created_at_ms)
