"""SIGKILL of a process that archives, makes snapshots or rebuilds: it goes on where it was."""

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

import msgspec
import pytest

from engine.inventory import Inventory
from engine.keys import PartitionKeys
from engine.ledger import Entry
from engine.model import ReservationState
from engine.store import Store, StoreSettings, close_quietly, connect
from reconciler.archive import Archive, open_archive
from reconciler.archiver import Archiver, ArchiverSettings
from reconciler.fold import Fold
from reconciler.reader import LedgerReader, read_sequence
from reconciler.snapshots import Snapshots
from tests.faults.reconciler_worker import Job
from tests.stores import MakeStore, RealStore, set_up
from tests.trade import Trade, contents

pytestmark = pytest.mark.faults

PARTITIONS: Final = 2
MERCHANT: Final = "corner shop"
KILLS: Final = 6
SEED: Final = 11
MAX_STARTS: Final = 60
"""Of a rebuild that is killed a step later each time."""

WITHIN_SECONDS: Final = 30.0


@pytest.fixture
async def real(make_store: MakeStore) -> RealStore:
    made = make_store(extra_config=["stream-node-max-entries 1"])
    await made.start()
    await set_up(made.settings, partitions=PARTITIONS)
    return made


@pytest.fixture
async def trade(real: RealStore) -> AsyncIterator[Trade]:
    inventory = await Inventory.open(real.settings)
    yield Trade(inventory, MERCHANT, random.Random(SEED))
    await inventory.close()


@pytest.fixture
async def archive(trade: Trade, tmp_path: Path) -> Archive:
    return await open_archive(trade.inventory.store, str(tmp_path / "archive"))


class Worker:
    """The process; `step` waits until it has done something, `kill` ends it with no warning."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def step(self) -> str:
        """Return the next line, '' at the end."""
        assert self._process.stdout is not None
        async with asyncio.timeout(WITHIN_SECONDS):
            return (await self._process.stdout.readline()).decode().strip()

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        async with asyncio.timeout(WITHIN_SECONDS):
            await self._process.communicate()


@asynccontextmanager
async def worker(
    job: str, store: StoreSettings, folder: Path, *, partitions: int | None = None
) -> AsyncIterator[Worker]:
    told = msgspec.json.encode(Job(store, str(folder / "archive"), uuid4().hex, partitions))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.faults.reconciler_worker",
        job,
        told.decode(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    made = Worker(process)
    try:
        yield made
    finally:
        await made.kill()


async def end_leases(store: Store) -> None:
    """Let the time of a killed archiver's leases be up."""
    await store.read(
        [
            ("HSET", PartitionKeys(number).lease("archive"), "until", 0)
            for number in range(PARTITIONS)
        ]
    )


async def archive_rest(inventory: Inventory, archive: Archive) -> None:
    await end_leases(inventory.store)
    archiver = Archiver(
        inventory, archive, owner=uuid4().hex, settings=ArchiverSettings(min_age_ms=0)
    )
    await archiver.archive_all(flush=True)
    await archiver.give_up()


async def test_the_archiver_is_killed_under_trade(
    trade: Trade, archive: Archive, real: RealStore, tmp_path: Path
) -> None:
    draw = random.Random(SEED)
    for _ in range(KILLS):
        await trade.run(20)
        await end_leases(trade.inventory.store)
        async with worker("archive", real.settings, tmp_path) as process:
            for _ in range(draw.randint(1, 4)):
                await process.step()
                await trade.run(10)
            await process.kill()

    await archive_rest(trade.inventory, archive)

    reader = LedgerReader(None, None, archive)
    for partition in range(PARTITIONS):
        entries: list[Entry] = [entry async for entry in reader.entries(partition)]
        fold = Fold()
        fold.apply_all(entries)
        assert (fold.gaps, fold.disagreements) == ([], [])
        last = await read_sequence(trade.inventory.store, PartitionKeys(partition))
        assert fold.state.sequence == last
        held = await trade.inventory.store.read([("ZCARD", PartitionKeys(partition).holds)])
        states = [one.state for one in fold.state.reservations.values()]
        assert held == [states.count(ReservationState.HELD)]


async def test_the_maker_of_snapshots_is_killed(
    trade: Trade, archive: Archive, real: RealStore, tmp_path: Path
) -> None:
    draw = random.Random(SEED)
    for _ in range(KILLS):
        await trade.run(30)
        await archive_rest(trade.inventory, archive)
        async with worker("snapshot", real.settings, tmp_path) as process:
            for _ in range(draw.randint(1, PARTITIONS)):
                assert await process.step() == "a snapshot"

    whole = LedgerReader(None, None, archive)
    for partition in range(PARTITIONS):
        await Snapshots(archive).make(partition)
        wanted = Fold()
        async for entry in whole.entries(partition):
            wanted.apply(entry)
        wanted.state.prune(wanted.state.at_ms)
        for name in await Snapshots(archive).names(partition):
            # Whatever is there is whole: one that was being written is not there.
            fold = Fold((await Snapshots(archive).read(name.path)).state)
            async for entry in whole.entries(partition, after_sequence=name.sequence):
                fold.apply(entry)
            fold.state.prune(fold.state.at_ms)
            assert fold.state == wanted.state


@pytest.mark.parametrize("partitions", [None, 3])
async def test_a_rebuild_is_killed_again_and_again(
    trade: Trade,
    archive: Archive,
    real: RealStore,
    make_store: MakeStore,
    tmp_path: Path,
    partitions: int | None,
) -> None:
    await trade.run(200)
    await archive_rest(trade.inventory, archive)
    client = connect(real.tester)
    before = await contents(client)
    await close_quietly(client)
    target = make_store()
    await target.start()

    starts = killed = 0
    steps = ""
    while steps != "rebuilt":
        starts += 1
        assert starts < MAX_STARTS
        async with worker("rebuild", target.settings, tmp_path, partitions=partitions) as process:
            for _ in range(2 * starts):
                steps = await process.step()
                if steps == "rebuilt":
                    break
            else:
                await process.kill()
                killed += 1
    assert killed > 1

    client = connect(target.tester)
    assert await contents(client) == before
    count = PARTITIONS if partitions is None else partitions
    assert [await client.xlen(PartitionKeys(number).ledger) for number in range(count)] == [
        1
    ] * count
    await close_quietly(client)
    rebuilt = await Inventory.open(target.settings)
    assert await trade.retry_all(rebuilt) == []
    await rebuilt.close()
