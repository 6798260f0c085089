"""Invariant Fold, for random histories made through the real engine.

Live state = fold(ledger) = fold(any snapshot + tail) = the state of a rebuilt store: its rows,
reservations, indexes and idempotency records, with the same number of partitions or another.
"""

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.feeds import Feeds
from engine.inventory import Inventory
from engine.offline import OfflineKeeper
from engine.shortfalls import ShortfallKeeper
from engine.store import Store, close_quietly, connect
from reconciler.archive import Archive, read_store_id
from reconciler.archiver import Archiver, ArchiverSettings
from reconciler.audit import audit
from reconciler.findings import Code
from reconciler.fold import Fold, PartitionState
from reconciler.objects import Objects
from reconciler.reader import LedgerReader
from reconciler.rebuild import rebuild
from reconciler.rebuild_plan import RebuildRequest
from reconciler.snapshots import Snapshots
from tests.shop import ACTOR
from tests.stores import VALKEY, RealStore, set_up
from tests.trade import Trade, contents

MAX_EXAMPLES: Final = 12
"""Each starts two servers, which takes longer than all that it then does."""

MERCHANTS: Final = ("m", "corner shop")

stretches = st.tuples(
    st.integers(5, 60),  # calls
    st.sampled_from((1, 3, 20)),  # entries of a segment
    st.sampled_from((0, 3_600_000)),  # ms that archived entries stay in the store
    st.booleans(),  # whether a snapshot follows
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fold")


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@pytest.mark.slow
@settings(max_examples=MAX_EXAMPLES)
@given(
    seed=st.integers(0, 2**32),
    partitions=st.integers(1, 4),
    target_partitions=st.one_of(st.none(), st.integers(1, 6)),
    past=st.lists(stretches, min_size=1, max_size=4),
    tail=st.integers(0, 30),
)
def test_live_state_is_the_fold_of_whatever_survives(
    folder: Path,
    runner: asyncio.Runner,
    seed: int,
    partitions: int,
    target_partitions: int | None,
    past: list[tuple[int, int, int, bool]],
    tail: int,
) -> None:
    example = Example(folder / uuid4().hex, seed, partitions)
    runner.run(example.check(past, tail, target_partitions))


class Example:
    """One history, on a store of its own."""

    def __init__(self, path: Path, seed: int, partitions: int) -> None:
        """Prepare two servers below `path`."""
        self.old = RealStore(VALKEY, path / "old", extra_config=["stream-node-max-entries 1"])
        self.new = RealStore(VALKEY, path / "new")
        self.objects = Objects.open(str(path / "archive"))
        self.seed = seed
        self.partitions = partitions
        self.draw_hours = seed % 48

    async def check(
        self, past: list[tuple[int, int, int, bool]], tail: int, target_partitions: int | None
    ) -> None:
        """Make the history and compare."""
        async with self.old, self.new:
            await set_up(self.old.settings, partitions=self.partitions)
            inventory = await Inventory.open(self.old.settings)
            archive = Archive(self.objects, await read_store_id(inventory.store))
            draw = random.Random(self.seed)
            trades = [Trade(inventory, merchant, draw) for merchant in MERCHANTS]
            for calls, segment_entries, keep_ms, makes_snapshot in past:
                for trade in trades:
                    await trade.run(calls)
                await self._archive(inventory, archive, segment_entries, keep_ms)
                if makes_snapshot:
                    for partition in range(self.partitions):
                        await Snapshots(archive).make(partition)
            for trade in trades:
                await trade.run(tail)
            keeper = ShortfallKeeper(inventory)
            await keeper.round()
            now_ms = time.time_ns() // 1_000_000
            offline = OfflineKeeper(inventory, Feeds(inventory))
            await offline.round(now_ms=now_ms + self.draw_hours * 3_600_000)
            # What is held back now may make somebody late, which else a retry would put on record.
            await keeper.round()
            reader = LedgerReader(inventory.store, inventory.keys, archive)
            for partition in range(self.partitions):
                await self._check_folds(reader, archive, partition)
            # The trade's deliveries name supplies that nobody announced: one of them is a finding.
            found = (await audit(inventory, archive)).findings
            assert {finding.code for finding in found} <= {Code.SUPPLY_UNKNOWN}
            await self._check_rebuilt(inventory, trades, target_partitions)
            await inventory.close()

    async def _archive(
        self, inventory: Inventory, archive: Archive, segment_entries: int, keep_ms: int
    ) -> None:
        archiver = Archiver(
            inventory,
            archive,
            owner=uuid4().hex,
            settings=ArchiverSettings(
                min_age_ms=0, resume_window_ms=keep_ms, max_segment_entries=segment_entries
            ),
        )
        await archiver.archive_all(flush=True)
        await archiver.give_up()

    async def _check_folds(self, reader: LedgerReader, archive: Archive, partition: int) -> None:
        whole = await fold_on(reader, partition, PartitionState())
        for name in await Snapshots(archive).names(partition):
            snapshot = await Snapshots(archive).read(name.path)
            assert await fold_on(reader, partition, snapshot.state) == whole

    async def _check_rebuilt(
        self, inventory: Inventory, trades: list[Trade], partitions: int | None
    ) -> None:
        client, target = connect(self.old.settings), await Store.open(self.new.settings)
        before = await contents(client)
        request = RebuildRequest(actor=ACTOR, partitions=partitions)
        await rebuild(request, self.objects, target=target, live=inventory.store)
        assert await contents(target.client) == before
        rebuilt = await Inventory.open(self.new.settings)
        for trade in trades:
            assert await trade.retry_all(rebuilt) == []
        assert await contents(target.client) == before
        await close_quietly(client)
        await rebuilt.close()
        await target.close()


async def fold_on(reader: LedgerReader, partition: int, state: PartitionState) -> PartitionState:
    """Fold a partition from a state to its end; the ledger must not contradict itself."""
    fold = Fold(state)
    async for entry in reader.entries(partition, after_sequence=state.sequence):
        fold.apply(entry)
    assert (fold.gaps, fold.disagreements) == ([], [])
    fold.state.prune(fold.state.at_ms)
    return fold.state
