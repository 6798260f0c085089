"""The tail of the ledger on real stores: all of it, in order, and what it says where it is torn."""

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import pairwise

import pytest

from engine.keys import PartitionKeys
from engine.tail import (
    Batch,
    Cursor,
    Fork,
    Gap,
    Reconnected,
    Tail,
    TailEntry,
    current_ends,
    cursors_before,
    stream_position,
)
from tests.shop import LOCATION, Shop, open_shop
from tests.stores import RealCluster, RealStore

WAIT_SECONDS = 20.0


class Listener:
    """Reads batches until what a test waits for has come."""

    def __init__(self, tail: Tail) -> None:
        self.tail = tail
        self.batches: list[Batch] = []

    @property
    def entries(self) -> list[TailEntry]:
        return [s for batch in self.batches for s in batch.signals if isinstance(s, TailEntry)]

    @property
    def others(self) -> list[Gap | Fork | Reconnected]:
        return [s for batch in self.batches for s in batch.signals if not isinstance(s, TailEntry)]

    def ids(self, merchant: str) -> list[str]:
        return [
            operation.id
            for entry in self.entries
            for operation in entry.operations
            if operation.merchant == merchant
        ]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                self.batches.append(await anext(self.tail))


@pytest.fixture
async def listener(shop: Shop, store: RealStore) -> AsyncIterator[Listener]:
    """A tail of the shared store from where it ends now."""
    ends = await current_ends(shop.inventory.store, shop.inventory.keys)
    async with Tail(store.settings, shop.inventory.keys, ends, block_ms=200) as tail:
        yield Listener(tail)


async def test_every_change_comes_once_in_order_and_a_later_reader_goes_on_from_its_cursor(
    shop: Shop, store: RealStore, listener: Listener
) -> None:
    places = [f"shop {i}" for i in range(20)]
    moved = await asyncio.gather(
        *(shop.receive("tea", 1 + i % 3, location=place) for i, place in enumerate(places * 10))
    )
    wanted = {one.id for one in moved}
    await listener.until(lambda: len(listener.ids(shop.merchant)) >= len(wanted))
    assert sorted(listener.ids(shop.merchant)) == sorted(wanted)
    assert listener.others == []

    by_partition: dict[int, list[TailEntry]] = {}
    for entry in listener.entries:
        by_partition.setdefault(entry.partition, []).append(entry)
    assert len(by_partition) > 1
    for entries in by_partition.values():
        for one, following in pairwise(entries):
            assert following.sequence == one.sequence + one.count
            assert stream_position(one.stream_id) < stream_position(following.stream_id)

    # Another reader that goes on from the middle gets the rest, and nothing twice.
    cursors = {number: entries[0].cursor for number, entries in by_partition.items()}
    rest = [entry.stream_id for entries in by_partition.values() for entry in entries[1:]]
    async with Tail(store.settings, shop.inventory.keys, cursors) as second:
        again = Listener(second)
        await again.until(lambda: len(again.entries) >= len(rest))
    of_this = {entry.stream_id for entry in listener.entries}
    found = [entry.stream_id for entry in again.entries if entry.stream_id in of_this]
    assert sorted(found) == sorted(rest)
    assert [s for s in again.others if not isinstance(s, Reconnected)] == []


async def test_an_idle_tail_still_says_that_it_is_up_to_date(listener: Listener) -> None:
    await listener.until(lambda: len(listener.batches) >= 2)
    assert {len(batch.caught_up) for batch in listener.batches} == {16}
    assert listener.batches[0].sent_at < listener.batches[1].sent_at


async def test_an_outage_is_waited_out_and_loses_nothing(
    own_store: RealStore, own_shop: Shop
) -> None:
    keys = own_shop.inventory.keys
    ends = await current_ends(own_shop.inventory.store, keys)
    async with Tail(own_store.settings, keys, ends, block_ms=200) as tail:
        listener = Listener(tail)
        before = await own_shop.receive("tea", 5)
        await listener.until(lambda: len(listener.entries) == 1)
        own_store.kill9()
        await own_store.start()
        after = await own_shop.receive("tea", 5)
        await listener.until(lambda: len(listener.entries) == 2)
    assert listener.ids(own_shop.merchant) == [before.id, after.id]
    # A server that is still loading may take the connection and then not answer.
    assert set(listener.others) == {Reconnected((0,))}


async def test_what_is_missing_and_what_is_told_anew_stands_before_the_entry(
    own_store: RealStore, own_shop: Shop
) -> None:
    (keys,) = own_shop.inventory.keys
    for _ in range(4):
        await own_shop.receive("tea", 1)
    (first, *_, last) = await own_store.run("XRANGE", keys.ledger, "-", "+")
    await own_store.run("XTRIM", keys.ledger, "MINID", last[0])
    start = Cursor(first[0].decode(), 1)
    async with Tail(own_store.settings, [keys], {0: start}, block_ms=200) as tail:
        listener = Listener(tail)
        await listener.until(lambda: len(listener.entries) == 1)
        assert listener.others == [Gap(0, 2, 4)]
        # As after a failover that lost the last two operations, and went on.
        await own_store.run("HSET", keys.meta, "sequence", 2)
        await own_shop.receive("tea", 1)
        await listener.until(lambda: len(listener.entries) == 2)
        assert listener.others[1:] == [Fork(0, 5, 3)]
        # And as after one that nobody has written to since: only the new look at it tells.
        await own_store.run("HSET", keys.meta, "sequence", 1)
        await own_store.restart()
        await listener.until(lambda: len(listener.others) == 4)
        assert listener.others[2:] == [Reconnected((0,)), Fork(0, 4, 2)]


async def test_a_fork_is_seen_by_an_entry_that_is_gone_though_the_count_went_on(
    own_store: RealStore, own_shop: Shop
) -> None:
    (keys,) = own_shop.inventory.keys
    for _ in range(3):
        await own_shop.receive("tea", 1)
    ends = await current_ends(own_shop.inventory.store, [keys])
    async with Tail(own_store.settings, [keys], ends, block_ms=200) as tail:
        listener = Listener(tail)
        await own_store.run("XDEL", keys.ledger, ends[0].stream_id)
        await own_store.run("HSET", keys.meta, "sequence", 9)
        await own_store.restart()
        await listener.until(lambda: len(listener.others) == 2)
    assert listener.others == [Reconnected((0,)), Fork(0, 4, None)]


async def test_a_time_becomes_cursors_unless_entries_since_may_be_trimmed(own_shop: Shop) -> None:
    inventory = own_shop.inventory
    (keys,) = inventory.keys

    async def cursors(at_ms: int) -> dict[int, Cursor] | None:
        return await cursors_before(inventory.store, [keys], at_ms)

    assert await cursors(1) is not None, "nothing happened yet"
    for _ in range(3):
        await own_shop.receive("tea", 1)
    entries = await own_shop.client.execute_command("XRANGE", keys.ledger, "-", "+")
    ids = [stream_position(stream_id.decode()) for stream_id, _ in entries]
    found = await cursors(ids[-1][0])
    assert found is not None
    assert ids[-2] < (*stream_position(found[0].stream_id),) or ids[-2][0] == ids[-1][0]
    assert stream_position(found[0].stream_id) < ids[-1]
    assert await cursors(1) is not None, "the first operation is still there"

    # Trimmed without a word of up to where: nobody can tell.
    await own_shop.client.execute_command("XTRIM", keys.ledger, "MAXLEN", 1)
    assert await cursors(ids[0][0] - 1) is None
    assert await cursors(ids[-1][0] + 1) is not None
    trimmed = f"{ids[-1][0]}-{ids[-1][1]}"
    await own_shop.client.execute_command("HSET", keys.archive, "trimmed_before", trimmed)
    assert await cursors(ids[-1][0] - 5_000) is None
    await own_shop.client.execute_command("XTRIM", keys.ledger, "MAXLEN", 0)
    assert await cursors(ids[-1][0] - 5_000) is None
    assert await cursors(ids[-1][0] + 1) is not None


@pytest.mark.cluster
async def test_a_cluster_is_followed_slot_by_slot(cluster: RealCluster, merchant: str) -> None:
    async with open_shop(cluster.settings, merchant) as shop:
        keys: list[PartitionKeys] = shop.inventory.keys
        ends = await current_ends(shop.inventory.store, keys)
        async with Tail(cluster.settings, keys, ends, block_ms=200) as tail:
            listener = Listener(tail)
            places = [LOCATION, *(f"shop {i}" for i in range(20))]
            moved = [await shop.receive("tea", 1, location=place) for place in places]
            await listener.until(lambda: len(listener.ids(merchant)) == len(moved))
            assert sorted(listener.ids(merchant)) == sorted(one.id for one in moved)
            assert listener.others == []
