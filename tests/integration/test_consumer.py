"""Consumers on real stores: every change comes, in order, after a kill, a trim and a failover."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from engine.consumer import (
    Batch,
    Consumer,
    Reason,
    Resync,
    Start,
    Told,
    VersionGate,
    list_readers,
    remove_reader,
)
from engine.model import Row
from engine.outcomes import InvalidCommand, LimitExceeded
from engine.scripts import script
from reconciler.archiver import MAX_HELD_MS
from tests.shop import LOCATION, Shop, open_shop
from tests.stores import RealStore, eventually

WAIT_SECONDS = 20.0
Key = tuple[str, str, str]


class Mirror:
    """Keeps the rows of every partition, as somebody's own index would."""

    def __init__(self) -> None:
        self.rows: dict[Key, Row] = {}
        self.told: list[Told] = []
        self.resyncs: list[Resync] = []
        self.partitions: dict[Key, int] = {}
        self.before_apply: Callable[[Batch], Awaitable[None]] | None = None

    async def apply(self, batch: Batch) -> None:
        if self.before_apply is not None:
            await self.before_apply(batch)
        self.told += batch.operations()
        self._take(batch.partition, batch.rows())

    async def resync(self, anew: Resync) -> None:
        self.resyncs.append(anew)
        gone = [key for key, place in self.partitions.items() if place == anew.partition]
        for key in gone:
            del self.rows[key], self.partitions[key]
        async for page in anew.rows():
            self._take(anew.partition, page)

    def _take(self, partition: int, rows: Sequence[Row]) -> None:
        for row in rows:
            key = (row.merchant, row.location, row.sku)
            known = self.rows.get(key)
            if known is None or row.version > known.version:
                self.rows[key] = row
                self.partitions[key] = partition

    def of(self, merchant: str) -> dict[Key, Row]:
        return {key: row for key, row in self.rows.items() if key[0] == merchant}

    def on_hand(self, merchant: str, sku: str) -> int | None:
        """None while a row is unknown, as it is for a moment where its partition is read anew."""
        row = self.rows.get((merchant, LOCATION, sku))
        return None if row is None else row.on_hand


@asynccontextmanager
async def running(shop: Shop, mirror: Mirror, name: str, **options: Start) -> AsyncIterator[None]:
    """Run a consumer for the time of a block, and end it in order."""
    stop = asyncio.Event()
    task = asyncio.create_task(Consumer(shop.inventory, name, mirror, **options).run(stop))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(WAIT_SECONDS):
            await task


async def until(condition: Callable[[], bool]) -> None:
    async def holds() -> bool:
        return condition()

    await eventually(holds, within_seconds=WAIT_SECONDS)


async def truth(shop: Shop, places: dict[str, list[str]]) -> dict[Key, Row]:
    return {
        (shop.merchant, place, sku): await shop.row(sku, location=place)
        for place, skus in places.items()
        for sku in skus
    }


async def test_a_consumer_begins_with_the_rows_and_goes_on_with_every_change(
    shop: Shop,
) -> None:
    places = {f"shop {n}": ["tea", "mug"] for n in range(6)}
    for place in places:
        await shop.receive("tea", 5, location=place)
    mirror = Mirror()
    name = f"c-{shop.merchant}"
    async with running(shop, mirror, name):
        await until(lambda: len(mirror.resyncs) == shop.inventory.partitions)
        assert {one.reason for one in mirror.resyncs} == {Reason.START}
        for place in places:
            await shop.receive("mug", 2, location=place)
            await shop.reserve([("tea", 1)], location=place)
        wanted = await truth(shop, places)
        await until(lambda: mirror.of(shop.merchant) == wanted)

    # What happened while it was away comes when it is back, each once and in order.
    seen = len(mirror.told)
    for place in places:
        await shop.receive("tea", 1, location=place)
    second = Mirror()
    second.rows, second.partitions = dict(mirror.rows), dict(mirror.partitions)
    async with running(shop, second, name):
        wanted = await truth(shop, places)
        await until(lambda: second.of(shop.merchant) == wanted)
    assert second.resyncs == []
    assert await remove_reader(shop.inventory.store, shop.inventory.keys, name)
    mine = [told for told in second.told if told.operation.merchant == shop.merchant]
    assert len(mine) == len(places)
    assert seen > 0


async def test_what_was_not_noted_comes_again_and_events_keep_their_ids(
    own_shop: Shop,
) -> None:
    mirror, again = Mirror(), Mirror()
    async with running(own_shop, mirror, "index"):
        await until(lambda: len(mirror.resyncs) == 1)

    class Lost(Exception):
        pass

    async def die(batch: Batch) -> None:
        mirror.told += batch.operations()
        events.extend(event.id for event in batch.events())
        raise Lost

    events: list[str] = []
    mirror.before_apply = die
    await own_shop.receive("tea", 5)
    with pytest.raises(Lost):
        async with running(own_shop, mirror, "index"):
            await until(lambda: bool(mirror.told))
    repeated: list[str] = []

    async def note(batch: Batch) -> None:
        repeated.extend(event.id for event in batch.events())

    again.before_apply = note
    async with running(own_shop, again, "index"):
        await until(lambda: bool(again.told))
    assert again.told == mirror.told
    assert repeated == events
    assert len(events) == 2  # stock.changed and stock.back


async def test_after_a_trim_and_after_a_failover_the_rows_are_read_anew(
    own_store: RealStore, own_shop: Shop
) -> None:
    (keys,) = own_shop.inventory.keys
    mirror = Mirror()
    async with running(own_shop, mirror, "index"):
        await own_shop.receive("tea", 5)
        await until(lambda: len(mirror.rows) == 1)
    # Away while entries are trimmed, and nothing follows that would tell.
    await own_shop.receive("tea", 5)
    await own_store.run("XTRIM", keys.ledger, "MAXLEN", 0)
    async with running(own_shop, mirror, "index"):
        await until(lambda: mirror.on_hand(own_shop.merchant, "tea") == 10)
        assert (mirror.resyncs[-1].reason, mirror.resyncs[-1].expected) == (Reason.GAP, 2)

        # A failover that lost the last operation: versions go back, and what was there is no more.
        await own_shop.receive("mug", 1)
        await until(lambda: len(mirror.rows) == 2)
        await own_store.run("HSET", keys.meta, "sequence", 2)
        await own_store.run("DEL", keys.stock(own_shop.merchant, LOCATION, "mug"))
        await own_store.run("ZREM", keys.skus(own_shop.merchant, LOCATION), "mug")
        await own_shop.receive("jug", 3)
        await until(lambda: (own_shop.merchant, LOCATION, "jug") in mirror.rows)
        assert mirror.resyncs[-1].reason is Reason.FORK
        assert {sku for *_, sku in mirror.rows} == {"tea", "jug"}
        await until(lambda: mirror.told[-1].sequence == 3)

    # And one that nobody has written to since, while the consumer was away.
    await own_store.run("HSET", keys.meta, "sequence", 1)
    async with running(own_shop, mirror, "index"):
        await until(lambda: len(mirror.resyncs) == 4)
    assert (mirror.resyncs[-1].reason, mirror.resyncs[-1].found) == (Reason.FORK, 2)


async def test_one_of_two_works_and_the_other_goes_on_where_it_was(
    own_store: RealStore, own_shop: Shop
) -> None:
    first, second = Mirror(), Mirror()
    async with open_shop(own_store.settings, own_shop.merchant) as other:
        async with running(own_shop, first, "index"):
            await until(lambda: len(first.resyncs) == 1)
            stop = asyncio.Event()
            standby = asyncio.create_task(Consumer(other.inventory, "index", second).run(stop))
            await own_shop.receive("tea", 1)
            await until(lambda: len(first.told) == 1)
        await own_shop.receive("tea", 1)
        await until(lambda: len(second.told) == 1)
        assert second.told[0].sequence == 2
        assert second.resyncs == []
        assert len(first.told) == 1
        stop.set()
        await standby


async def test_one_that_was_overtaken_cannot_note_its_place(own_shop: Shop) -> None:
    (keys,) = own_shop.inventory.keys
    store = own_shop.inventory.store
    for fence, answer in ((2, 1), (1, 0), (2, 1), (3, 1)):
        reply = await store.call(
            script("advance"), (keys.readers,), "index", f"{fence}-0", fence, fence, 2
        )
        assert int(reply) == answer
    assert [one.name for one in await list_readers(store, own_shop.inventory.keys)] == ["index"]
    assert int(await store.call(script("advance"), (keys.readers,), "b", "1-0", 1, 1, 2)) == 1
    assert int(await store.call(script("advance"), (keys.readers,), "c", "1-0", 1, 1, 2)) == -1


async def test_a_store_takes_no_more_readers_than_it_can_hold_the_ledger_for(
    own_store: RealStore, own_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.consumer.MAX_READERS", 1)
    async with running(own_shop, Mirror(), "index"):
        await until_noted(own_shop, "index")
        with pytest.raises(LimitExceeded):
            await Consumer(own_shop.inventory, "other", Mirror()).run(asyncio.Event())
    store, keys = own_shop.inventory.store, own_shop.inventory.keys
    assert await remove_reader(store, keys, "index")
    assert not await remove_reader(store, keys, "index")
    async with running(own_shop, Mirror(), "other"):
        await until_noted(own_shop, "other")


async def until_noted(shop: Shop, name: str) -> None:
    async def noted() -> bool:
        readers = await list_readers(shop.inventory.store, shop.inventory.keys)
        return name in [one.name for one in readers]

    await eventually(noted, within_seconds=WAIT_SECONDS)


async def test_a_reader_holds_the_ledger_back_and_one_that_was_given_up_does_not(
    own_store: RealStore, own_shop: Shop
) -> None:
    (keys,) = own_shop.inventory.keys
    async with running(own_shop, Mirror(), "index"):
        await until_noted(own_shop, "index")
    # Entries old enough for the resume window, and far more of them than one block of the stream.
    now_ms = int((await own_store.run("TIME"))[0]) * 1000
    for age_ms in (2 * MAX_HELD_MS, MAX_HELD_MS // 2):
        for number in range(300):
            place = f"{now_ms - age_ms}-{number + 1}"
            await own_shop.client.execute_command(
                "XADD", keys.ledger, place, "seq", 1, "at", 1, "ops", "x"
            )
    await own_store.run("HSET", "lease", "fence", 1)
    end = f"{now_ms}-0"

    async def trim() -> int:
        reply = await own_shop.inventory.store.call(
            script("archived"),
            (keys.ledger, keys.archive, keys.readers, "lease"),
            *(1, 600, end, "seal", now_ms, 0, 10_000, MAX_HELD_MS),
        )
        return int(reply[1])

    # The reader is at the very beginning, but holds nothing older than MAX_HELD_MS.
    assert 200 <= await trim() <= 300
    assert await trim() == 0
    assert await remove_reader(own_shop.inventory.store, own_shop.inventory.keys, "index")
    assert await trim() >= 200


def test_a_gate_lets_a_row_pass_once_a_version() -> None:
    gate = VersionGate(most=2)

    def row(sku: str, version: int) -> Row:
        return Row("m", "l", sku, 1, 0, 0, 0, version)

    assert [one.version for one in gate.newer(0, [row("a", 2), row("a", 1), row("a", 3)])] == [2, 3]
    assert gate.newer(0, [row("a", 3)]) == []
    gate.newer(1, [row("b", 1)])
    gate.forget(0)
    assert gate.newer(0, [row("a", 1)]) == [row("a", 1)]
    gate.newer(0, [row("c", 1)])  # pushes out b, which was seen the longest ago
    assert gate.newer(1, [row("b", 1)]) == [row("b", 1)]


@pytest.mark.parametrize("name", ["", "Index", "a b", "a" * 51, "a:b", "-a"])
async def test_a_name_is_plain(name: str) -> None:
    with pytest.raises(InvalidCommand):
        Consumer(None, name, Mirror())  # type: ignore[arg-type]
