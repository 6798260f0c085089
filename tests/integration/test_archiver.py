"""The archiver on a real store: nothing lost, doubled or trimmed early, whatever happens to it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest
from moto.server import ThreadedMotoServer

from engine.inventory import Inventory
from engine.keys import PartitionKeys
from engine.ledger import Entry, read_entries
from engine.model import Line, Movement, MovementType
from engine.store import Store
from reconciler import reader as reader_module
from reconciler.archive import Archive, list_origins, open_archive, read_store_id
from reconciler.archiver import Archiver, ArchiverSettings, Progress, read_position
from reconciler.fold import Fold
from reconciler.objects import ArchiveUnavailable, Objects
from reconciler.reader import LedgerDamaged, LedgerReader
from reconciler.segments import SegmentDamaged
from reconciler.snapshots import Snapshots
from tests.shop import ACTOR
from tests.stores import MakeStore, RealStore, free_ports, set_up

Answer = TypeVar("Answer")

HOUR_MS: Final = 3_600_000
SEGMENT_ENTRIES: Final = 4
KEYS: Final = PartitionKeys(0)
MERCHANT: Final = "m"
LOCATION: Final = "l"


class Killed(BaseException):
    """Stands for the end of the process: nothing in the product may catch it."""


@pytest.fixture
async def real(make_store: MakeStore) -> RealStore:
    """A store of one partition whose stream gives up entries one by one."""
    made = make_store(extra_config=["stream-node-max-entries 1"])
    await made.start()
    await set_up(made.settings, partitions=1)
    return made


@pytest.fixture
async def inventory(real: RealStore) -> AsyncIterator[Inventory]:
    opened = await Inventory.open(real.settings)
    yield opened
    await opened.close()


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects.open(str(tmp_path / "archive"))


@pytest.fixture
async def archive(inventory: Inventory, objects: Objects) -> Archive:
    return Archive(objects, await read_store_id(inventory.store))


def archiver_of(
    inventory: Inventory, archive: Archive, *, keep_ms: int = HOUR_MS, min_age_ms: int = 0
) -> Archiver:
    settings = ArchiverSettings(
        min_age_ms=min_age_ms, resume_window_ms=keep_ms, max_segment_entries=SEGMENT_ENTRIES
    )
    return Archiver(inventory, archive, owner=uuid4().hex, settings=settings)


async def trade(inventory: Inventory, entries: int) -> None:
    """Write a number of ledger entries, one operation each."""
    for _ in range(entries):
        movement = Movement(
            key=uuid4().hex,
            location=LOCATION,
            type=MovementType.RECEIVE,
            sku="tea",
            quantity=5,
        )
        await inventory.move(MERCHANT, movement, actor=ACTOR)


async def everything(store: Store) -> list[Entry]:
    """Read the whole ledger from the store, which has not forgotten any of it."""
    return await read_entries(store, KEYS)


async def archived(archive: Archive) -> list[Entry]:
    """Read the whole ledger from the archive alone, verified."""
    return [entry async for entry in LedgerReader(None, None, archive).entries(0)]


async def lose_lease(store: Store) -> None:
    """Let the time of a killed archiver's lease be up."""
    await store.read([("HSET", KEYS.lease("archive"), "until", 0)])


# Following the ledger


async def test_the_ledger_is_followed_segment_by_segment(
    inventory: Inventory, archive: Archive
) -> None:
    archiver = archiver_of(inventory, archive)
    for entries in (10, 0, 1, 9):
        await trade(inventory, entries)
        (progress,) = await archiver.archive_all()
        assert progress.entries == entries
        assert progress.segments == -(-entries // SEGMENT_ENTRIES)
    assert await archived(archive) == await everything(inventory.store)
    position = await read_position(inventory.store, KEYS)
    last = await archive.last_segment(0)
    assert last is not None
    assert (position.sequence, position.seal) == (20, last[1].seal)
    assert [origin.store_id for origin in await list_origins(archive.objects)] == [archive.store_id]


async def test_little_and_young_waits_unless_it_is_flushed(
    inventory: Inventory, archive: Archive
) -> None:
    archiver = archiver_of(inventory, archive, min_age_ms=HOUR_MS)
    await trade(inventory, SEGMENT_ENTRIES + 1)
    (progress,) = await archiver.archive_all()
    assert (progress.segments, progress.entries) == (1, SEGMENT_ENTRIES)
    (progress,) = await archiver.archive_all()
    assert (progress.segments, progress.behind_entries) == (0, 1)
    (progress,) = await archiver.archive_all(flush=True)
    assert progress.entries == 1


async def test_only_what_is_archived_and_past_the_window_goes(
    inventory: Inventory, archive: Archive
) -> None:
    await trade(inventory, 6)
    before = await everything(inventory.store)
    await archiver_of(inventory, archive, keep_ms=HOUR_MS).archive_all()
    assert await everything(inventory.store) == before
    await lose_lease(inventory.store)
    await trade(inventory, 2)
    last = (await read_position(inventory.store, KEYS)).stream_id
    (progress,) = await archiver_of(inventory, archive, keep_ms=0, min_age_ms=HOUR_MS).archive_all()
    assert progress.trimmed == 5
    # The last archived entry stays, and so does everything that is not archived.
    left = await everything(inventory.store)
    assert (left[0].stream_id, len(left)) == (last, 3)


async def test_what_a_registered_reader_needs_stays(inventory: Inventory, archive: Archive) -> None:
    await trade(inventory, 6)
    third = (await everything(inventory.store))[2].stream_id
    await inventory.store.read([("HSET", KEYS.readers, "webhooks", third)])
    archiver = archiver_of(inventory, archive, keep_ms=0)
    await archiver.archive_all()
    assert (await everything(inventory.store))[0].stream_id == third
    await inventory.store.read([("HDEL", KEYS.readers, "webhooks")])
    (progress,) = await archiver.archive_all()
    assert progress.trimmed == 3


# Killed at any instant


class FailingObjects(Objects):
    """Ends the process before or after one of its calls."""

    def __init__(self, inner: Objects, at: str) -> None:
        super().__init__(inner._store, folder=inner._folder)
        self._when, self._call = at.split(" ")

    async def put_new(self, path: str, data: bytes) -> bool:
        return await self._around("put_new", super().put_new(path, data))

    async def get(self, path: str) -> bytes | None:
        return await self._around("get", super().get(path))

    async def _around(self, name: str, call: Coroutine[Any, Any, Answer]) -> Answer:
        if (self._when, self._call) == ("before", name):
            call.close()
            raise Killed
        answer = await call
        if self._call == name:
            raise Killed
        return answer


@pytest.fixture
def kill_in_script(monkeypatch: pytest.MonkeyPatch) -> Callable[[Store, str, str], None]:
    """End the process before or after a script."""

    def arm(store: Store, when: str, name: str) -> None:
        real_call = store.call

        async def call(script: Any, *rest: Any) -> Any:
            if script.name == name and when == "before":
                raise Killed
            reply = await real_call(script, *rest)
            if script.name == name:
                raise Killed
            return reply

        monkeypatch.setattr(store, "call", call)

    return arm


@pytest.mark.parametrize(
    "at",
    [
        "before put_new",
        "after put_new",
        "before get",
        "after get",
        "before archived",
        "after archived",
        "after lease",
    ],
)
async def test_killed_at_any_step_it_goes_on_without_a_gap_or_a_double(
    inventory: Inventory,
    archive: Archive,
    kill_in_script: Callable[[Store, str, str], None],
    monkeypatch: pytest.MonkeyPatch,
    at: str,
) -> None:
    when, call = at.split(" ")
    await trade(inventory, SEGMENT_ENTRIES + 2)
    await archiver_of(inventory, archive, min_age_ms=HOUR_MS, keep_ms=0).archive_all()
    await lose_lease(inventory.store)
    entries = await archived(archive) + (await everything(inventory.store))[1:]
    if call in ("archived", "lease"):
        killed = archiver_of(inventory, archive, keep_ms=0)
        kill_in_script(inventory.store, when, call)
    else:
        failing = Archive(FailingObjects(archive.objects, at), archive.store_id)
        killed = archiver_of(inventory, failing, keep_ms=0)
    with pytest.raises(Killed):
        await killed.archive_all()
    monkeypatch.undo()
    # More came before the next archiver starts, so that its segment would be another.
    await trade(inventory, 1)
    entries += (await everything(inventory.store))[-1:]
    assert (await archiver_of(inventory, archive).archive_all())[0].skipped != ""
    await lose_lease(inventory.store)
    await archiver_of(inventory, archive, keep_ms=0).archive_all()
    assert await archived(archive) == entries


async def test_a_segment_that_is_not_what_the_ledger_says_is_not_adopted(
    inventory: Inventory, archive: Archive, real: RealStore, make_store: MakeStore
) -> None:
    other = make_store()
    await other.start()
    await set_up(other.settings, partitions=1)
    foreign = await Inventory.open(other.settings)
    await trade(foreign, 3)
    await archiver_of(foreign, archive).archive_all()
    await foreign.close()
    await trade(inventory, 3)
    with pytest.raises(SegmentDamaged, match="exists already and is not what the ledger says"):
        await archiver_of(inventory, archive, keep_ms=0).archive_all()
    assert (await read_position(inventory.store, KEYS)).sequence == 0
    assert len(await everything(inventory.store)) == 3


# Two at once


async def test_one_archives_and_the_other_waits(inventory: Inventory, archive: Archive) -> None:
    first, second = archiver_of(inventory, archive), archiver_of(inventory, archive)
    await trade(inventory, 6)
    rounds = await asyncio.gather(first.archive_all(), second.archive_all())
    assert sorted(progress.entries for (progress,) in rounds) == [0, 6]
    await first.give_up()
    await second.give_up()
    await trade(inventory, 3)
    (progress,) = await second.archive_all()
    assert progress.entries == 3
    assert await archived(archive) == await everything(inventory.store)


async def test_an_archiver_that_was_overtaken_writes_nothing_more(
    inventory: Inventory, archive: Archive
) -> None:
    """It stands still behind its own segment, as after a long pause of its machine."""
    second = archiver_of(inventory, archive, keep_ms=0)
    overtaken: list[Progress] = []

    class Pausing(Objects):
        async def put_new(self, path: str, data: bytes) -> bool:
            answer = await super().put_new(path, data)
            if not overtaken and path.endswith(".segment"):
                await trade(inventory, 3)
                await lose_lease(inventory.store)
                overtaken.extend(await second.archive_all())
            return answer

    await trade(inventory, 6)
    slow = Pausing(archive.objects._store, folder=archive.objects._folder)
    first = archiver_of(inventory, Archive(slow, archive.store_id))
    before = await everything(inventory.store)
    (progress,) = await first.archive_all()
    assert progress.skipped == "lost the lease"
    assert overtaken[0].entries == 9
    assert (await read_position(inventory.store, KEYS)).sequence == 9
    assert (await archived(archive))[:6] == before
    (progress,) = await first.archive_all()
    assert progress.skipped == "another process has the lease"


# An archive that is down


async def test_an_archive_that_is_down_blocks_nobody(
    inventory: Inventory, archive: Archive
) -> None:
    (port,) = free_ports(1)
    gone = Objects.open("s3://bucket/prefix", **s3_options(port), retry_config=NO_RETRIES)
    broken = archiver_of(inventory, Archive(gone, archive.store_id), keep_ms=0)
    await trade(inventory, 6)
    with pytest.raises(ArchiveUnavailable) as unavailable:
        await broken.archive_all()
    assert "\n" not in str(unavailable.value)
    await trade(inventory, 6)
    held = await inventory.reserve(MERCHANT, LOCATION, [Line("tea", 2)], key="k", actor=ACTOR)
    await inventory.commit(MERCHANT, held.reservation.id, actor=ACTOR)
    waiting = await everything(inventory.store)
    assert len(waiting) == 14
    await broken.give_up()
    (progress,) = await archiver_of(inventory, archive).archive_all()
    assert progress.entries == 14
    assert await archived(archive) == waiting


# A bucket


NO_RETRIES: Final = {"max_retries": 0}


def s3_options(port: int) -> dict[str, Any]:
    """Point at moto's server; nothing here reaches beyond the loopback."""
    return {
        "endpoint": f"http://127.0.0.1:{port}",
        "region": "us-east-1",
        "access_key_id": "a",
        "secret_access_key": "b",
        "client_options": {"allow_http": True},
    }


@pytest.fixture
def bucket() -> Iterator[Objects]:
    """A bucket of a server that speaks S3."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    assert host == "127.0.0.1"
    make_bucket(port)
    yield Objects.open("s3://archive/shop", **s3_options(port))
    server.stop()


def make_bucket(port: int) -> None:
    with urlopen(Request(f"http://127.0.0.1:{port}/archive", method="PUT"), timeout=10) as answer:
        assert answer.status == 200


async def test_a_bucket_serves_as_well_as_a_folder(inventory: Inventory, bucket: Objects) -> None:
    archive = Archive(bucket, await read_store_id(inventory.store))
    await trade(inventory, 10)
    archiver = archiver_of(inventory, archive, keep_ms=0)
    entries = await everything(inventory.store)
    await archiver.archive_all()
    await trade(inventory, 3)
    entries += (await everything(inventory.store))[1:]
    await archiver.archive_all()
    assert await archived(archive) == entries
    snapshots = Snapshots(archive)
    made = await snapshots.make(0)
    assert made is not None
    (listed,) = await snapshots.listing(0)
    assert listed.header == made.header
    fold = Fold()
    fold.apply_all(entries)
    assert (await snapshots.read(made.path)).state == fold.state
    assert [origin.store_id for origin in await list_origins(bucket)] == [archive.store_id]
    assert not await bucket.put_new(made.path, b"again")
    await bucket.delete(made.path)
    assert await bucket.get(made.path) is None
    assert await bucket.head(made.path, 10) is None
    assert await snapshots.names(0) == []


async def test_a_segment_in_a_bucket_is_written_once_too(
    inventory: Inventory, bucket: Objects
) -> None:
    archive = Archive(bucket, await read_store_id(inventory.store))
    await trade(inventory, 3)
    failing = Archive(FailingBucket(bucket), archive.store_id)
    with pytest.raises(Killed):
        await archiver_of(inventory, failing).archive_all()
    await lose_lease(inventory.store)
    await trade(inventory, 1)
    await archiver_of(inventory, archive).archive_all()
    assert await archived(archive) == await everything(inventory.store)
    assert len(await archive.segment_paths(0)) == 2


class FailingBucket(FailingObjects):
    """A bucket behind which the process ends once a segment is written."""

    def __init__(self, inner: Objects) -> None:
        super().__init__(inner, "after put_new")

    async def put_new(self, path: str, data: bytes) -> bool:
        if not path.endswith(".segment"):
            return await Objects.put_new(self, path, data)
        return await super().put_new(path, data)


# Reading over the seam between archive and store


async def read(reader: LedgerReader, **bounds: Any) -> list[Entry]:
    return [entry async for entry in reader.entries(0, **bounds)]


@pytest.mark.parametrize("keep_ms", [0, HOUR_MS])
async def test_archive_and_store_are_read_as_one(
    inventory: Inventory, archive: Archive, keep_ms: int
) -> None:
    await trade(inventory, 9)
    entries = await everything(inventory.store)
    await archiver_of(inventory, archive, keep_ms=keep_ms).archive_all()
    await trade(inventory, 5)
    entries += (await everything(inventory.store))[-5:]
    reader = LedgerReader(inventory.store, inventory.keys, archive)
    for after in range(16):
        assert await read(reader, after_sequence=after) == entries[after:]
    assert await read(reader, after_sequence=7, until_sequence=11) == entries[7:11]
    assert reader.damages == []


async def test_a_store_is_read_without_an_archive(inventory: Inventory) -> None:
    await trade(inventory, 7)
    entries = await everything(inventory.store)
    reader = LedgerReader(inventory.store, inventory.keys, None)
    for after in range(9):
        assert await read(reader, after_sequence=after) == entries[after:]


@pytest.mark.parametrize("damage", ["spoiled", "missing"])
async def test_the_store_makes_up_for_a_damaged_segment(
    inventory: Inventory, archive: Archive, damage: str
) -> None:
    await trade(inventory, 14)
    entries = await everything(inventory.store)
    await archiver_of(inventory, archive).archive_all()
    path = (await archive.segment_paths(0))[1]
    await archive.objects.delete(path)
    if damage == "spoiled":
        await archive.objects.put_new(path, b"no segment")
    reader = LedgerReader(inventory.store, inventory.keys, archive)
    assert await read(reader) == entries
    assert [found.path for found in reader.damages] == ([path] if damage == "spoiled" else [])
    # The store forgets what it may: now nothing has the operations of that segment.
    await lose_lease(inventory.store)
    await archiver_of(inventory, archive, keep_ms=0).archive_all()
    with pytest.raises(LedgerDamaged) as found:
        await read(reader)
    assert found.value.sequence == 5
    assert await read(reader, over_gaps=True) == [*entries[:4], *entries[8:]]


async def test_a_deleted_entry_is_a_gap(inventory: Inventory, real: RealStore) -> None:
    await trade(inventory, 7)
    entries = await everything(inventory.store)
    await real.run("XDEL", KEYS.ledger, entries[3].stream_id)
    reader = LedgerReader(inventory.store, inventory.keys, None)
    with pytest.raises(LedgerDamaged, match="the store's ledger goes on at 5 only") as found:
        await read(reader)
    assert (found.value.sequence, found.value.path) == (4, "")
    with pytest.raises(LedgerDamaged):
        await read(reader, after_sequence=3)
    assert await read(reader, after_sequence=4) == entries[4:]
    assert await read(reader, over_gaps=True) == [*entries[:3], *entries[4:]]


async def test_an_entry_that_is_none_is_damage(inventory: Inventory, real: RealStore) -> None:
    await trade(inventory, 2)
    await real.run("XADD", KEYS.ledger, "*", "by", "hand")
    with pytest.raises(LedgerDamaged, match="has an entry that is none"):
        await read(LedgerReader(inventory.store, inventory.keys, None))


async def test_what_is_archived_and_trimmed_under_the_reader_is_still_read(
    inventory: Inventory, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    await trade(inventory, 6)
    archiver = archiver_of(inventory, archive)
    await archiver.archive_all()
    await trade(inventory, 6)
    entries = await everything(inventory.store)
    monkeypatch.setattr(reader_module, "READ_ENTRIES", 2)
    reader = LedgerReader(inventory.store, inventory.keys, archive)
    found: list[Entry] = []
    async for batch in reader.batches(0):
        found += [entry.decode() for entry in batch]
        if len(found) == 8:
            await archiver.give_up()
            await trade(inventory, 3)
            entries += (await everything(inventory.store))[-3:]
            await archiver_of(inventory, archive, keep_ms=0).archive_all()
    assert found == entries


async def test_an_archive_is_opened_by_its_url(
    inventory: Inventory, archive: Archive, tmp_path: Path
) -> None:
    await trade(inventory, 3)
    await archiver_of(inventory, archive).archive_all()
    opened = await open_archive(inventory.store, (tmp_path / "archive").as_uri())
    assert await archived(opened) == await everything(inventory.store)
