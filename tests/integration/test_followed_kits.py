"""Kits that are followed: what their followers hear is what a read says, and each change of it."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

import msgspec
import pytest

from engine.events import EventType
from engine.inventory import Inventory
from engine.kits import VERSIONS_OF_A_REVISION, Kit
from engine.model import Line, MovementType, Row
from engine.outcomes import HoldfastError, Overloaded, StoreUnavailable
from engine.tail import Batch, Reconnected
from gateway.followed_kits import MAX_READS, READ_AT_ONCE
from gateway.interests import locations_of
from gateway.listening import Anew
from gateway.subscriptions import CONFLATE_FROM, CutOff, Interest
from tests.damage import damaged_shop
from tests.shop import ACTOR, LOCATION, Shop, open_shop
from tests.shoppers import Follows, Heard, Name, Shopper, following, what_a_read_says
from tests.stores import MakeStore, RealStore, eventually, set_up

GIFT: Final = (LOCATION, "gift")
PAIR: Final = (LOCATION, "pair")
PLACES: Final = (LOCATION, "low street", "pier")
PARTS: Final = ("mug", "tea", "cup", "box")


@pytest.fixture
async def gateway(store: RealStore) -> AsyncIterator[Follows]:
    async with following(store.settings) as made:
        yield made


async def define(shop: Shop, **kits: Mapping[str, int] | None) -> None:
    changes = {
        sku: None
        if parts is None
        else Kit(components=tuple(Line(part, units) for part, units in parts.items()))
        for sku, parts in kits.items()
    }
    await shop.inventory.kits.write(shop.merchant, changes, actor=ACTOR)


async def heard_by(shopper: Shopper, gateway: Follows) -> dict[Name, Heard]:
    await gateway.catch_up()
    await shopper.hear()
    return shopper.known


def available(shopper: Shopper, name: Name = GIFT) -> list[int]:
    return [heard.available for heard in shopper.told.get(name, ())]


async def test_a_kit_sells_out_and_comes_back_as_its_components_do(
    shop: Shop, gateway: Follows
) -> None:
    await shop.receive("mug", 5)
    await shop.receive("tea", 3)
    await define(shop, gift={"mug": 2, "tea": 1}, pair={"mug": 2})
    shopper = Shopper(shop.merchant, ["gift", "pair"], [LOCATION])
    await shopper.open(gateway)
    assert {name: heard.available for name, heard in shopper.known.items()} == {GIFT: 2, PAIR: 2}
    await shop.move(MovementType.SALE, "tea", 2)
    # Still two pairs, and no other gift: nobody is told what does not change it.
    await shop.move(MovementType.SALE, "mug", 1)
    held = await shop.reserve([("gift", 1)])
    await shop.receive("tea", 4)
    await shop.inventory.release(shop.merchant, held.reservation.id, actor=ACTOR)
    known = await heard_by(shopper, gateway)
    assert (available(shopper), available(shopper, PAIR)) == ([1, 0, 1, 2], [1, 2])
    assert [kind for kind, name, _ in shopper.events if name == GIFT] == [
        EventType.STOCK_CHANGED,
        EventType.STOCK_CHANGED,
        EventType.STOCK_OUT,
        EventType.STOCK_CHANGED,
        EventType.STOCK_BACK,
        EventType.STOCK_CHANGED,
    ]
    assert known == await what_a_read_says(shop.inventory, shop.merchant, [GIFT, PAIR])
    for units in range(3, 10):
        # However far behind its tail is, no gateway begins with less than was answered before.
        await shop.receive("mug", 2)
        late = Shopper(shop.merchant, ["pair"], [LOCATION])
        await late.open(gateway)
        assert late.known[PAIR].available == units
        late.close()
    shopper.close()
    assert len(gateway.fanout.kits) == 0


async def test_a_component_that_is_not_there_yet_is_made_and_so_is_a_location(
    shop: Shop, gateway: Follows
) -> None:
    await define(shop, gift={"mug": 1, "tea": 1})
    await shop.receive("mug", 5)
    named, everywhere = (
        Shopper(shop.merchant, ["gift"], [LOCATION]),
        Shopper(shop.merchant, ["gift"]),
    )
    await named.open(gateway)
    await everywhere.open(gateway)
    assert (named.known, everywhere.known) == ({GIFT: Heard(0, 0)}, {})
    await shop.receive("tea", 1, location="pier")
    await shop.receive("mug", 2, location="pier")
    await shop.receive("tea", 2)
    await shop.move(MovementType.SALE, "tea", 1, location="pier")
    assert set(await heard_by(named, gateway)) == {GIFT}
    known = await heard_by(everywhere, gateway)
    assert (available(everywhere), available(everywhere, ("pier", "gift"))) == ([2], [1, 0])
    assert known == await what_a_read_says(shop.inventory, shop.merchant, [GIFT, ("pier", "gift")])


async def test_what_the_kits_own_row_has_is_told_as_part_of_it_to_who_names_it(
    shop: Shop, gateway: Follows
) -> None:
    await shop.receive("gift", 2)
    await shop.receive("mug", 1)
    await define(shop, gift={"mug": 1})
    shopper = Shopper(shop.merchant, ["gift", "mug"], [LOCATION])
    dashboard = Shopper(shop.merchant, [], [LOCATION])
    await shopper.open(gateway)
    await dashboard.open(gateway)
    assert shopper.known[GIFT].available == 3
    assert dashboard.known[GIFT] == Heard(1, 2)
    await shop.reserve([("gift", 3)])
    await heard_by(shopper, gateway)
    await heard_by(dashboard, gateway)
    assert (available(shopper), available(shopper, (LOCATION, "mug"))) == ([0], [0])
    assert dashboard.known[GIFT] == Heard(2, 0)


async def test_who_follows_a_kit_that_is_defined_anew_starts_anew_at_what_it_is_now(
    shop: Shop, gateway: Follows
) -> None:
    await shop.receive("gift", 1)
    for sku, units in (("mug", 6), ("tea", 2)):
        await shop.receive(sku, units)
    shopper, other = (Shopper(shop.merchant, [sku], [LOCATION]) for sku in ("gift", "pair"))
    await shopper.open(gateway)
    await define(shop, pair={"mug": 2})
    await other.open(gateway)
    assert shopper.known[GIFT] == Heard(1, 1)
    expected = []
    for turn, parts in enumerate(({"mug": 1}, {"mug": 3, "tea": 2}, {"tea": 1}, None)):
        await define(shop, gift=parts)
        if turn == 1:
            # The same once more is no change.
            await define(shop, gift=parts)
        await heard_by(shopper, gateway)
        expected.append(shopper.known[GIFT])
        assert shopper.known == await what_a_read_says(shop.inventory, shop.merchant, [GIFT])
        await shop.receive("mug", 3)
        await heard_by(shopper, gateway)
        await assert_heard(shop, shopper)
    assert [heard.available for heard in expected] == [7, 2, 3, 1]
    # Each definition is above the one before, whatever its components' versions are.
    assert [heard.version // VERSIONS_OF_A_REVISION for heard in expected] == [2, 3, 4, 0]
    assert shopper.beginnings == [Anew.OPENED, *[Anew.KIT_CHANGED] * 4]
    await heard_by(other, gateway)
    assert other.beginnings == [Anew.OPENED]


async def test_who_was_away_hears_each_change_and_starts_anew_where_the_kit_is_another(
    shop: Shop, gateway: Follows, store: RealStore
) -> None:
    await shop.receive("mug", 1)
    await define(shop, gift={"mug": 1})
    shopper = Shopper(shop.merchant, ["gift"], [LOCATION])
    await shopper.open(gateway)
    shopper.close()
    for units in (4, 2):
        await shop.receive("mug", units)
    await shop.move(MovementType.SALE, "mug", 7)
    await shop.receive("mug", 1)
    async with following(store.settings) as other:
        await shopper.open(other)
        await heard_by(shopper, other)
        assert (available(shopper), shopper.beginnings) == ([5, 7, 0, 1], [Anew.OPENED, None])
        shopper.close()
        await define(shop, gift={"mug": 2})
        await shop.receive("mug", 7)
        await define(shop, gift=None)
        await define(shop, gift={"mug": 2})
        await shopper.open(gateway)
        assert shopper.beginnings[-1] is Anew.KIT_CHANGED
        assert shopper.known[GIFT].available == 4


async def test_a_slow_reader_gets_the_latest_and_a_crowd_is_told_one_event(
    shop: Shop, gateway: Follows
) -> None:
    await shop.receive("mug", 1)
    await define(shop, gift={"mug": 1})
    slow, *crowd = (Shopper(shop.merchant, ["gift"], [LOCATION]) for _ in range(50))
    for shopper in (slow, *crowd):
        await shopper.open(gateway)
    for _ in range(CONFLATE_FROM + 20):
        await shop.receive("mug", 1)
    await gateway.catch_up()
    texts = set()
    for shopper in crowd:
        (*_, last) = shopper.subscription.take(1_000, gateway.fanout.edge)
        texts.add(id(last.told.json))
    assert len(texts) == 1
    assert (len(slow.subscription), slow.subscription.cut_off) == (CONFLATE_FROM, None)
    assert (await heard_by(slow, gateway))[GIFT].available == CONFLATE_FROM + 21


async def test_as_long_as_nobody_names_a_kit_nothing_is_kept_or_looked_at(
    shop: Shop, gateway: Follows, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.receive("mug", 1)
    await define(shop, gift={"mug": 1})
    rows = Shopper(shop.merchant, ["mug"], [LOCATION])
    dashboard = Shopper(shop.merchant, [])
    await rows.open(gateway)
    await dashboard.open(gateway)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("an operation on a row was looked at for kits")

    monkeypatch.setattr(gateway.fanout.kits, "tell", never)
    monkeypatch.setattr(gateway.fanout, "_take_kits", never)
    await shop.receive("mug", 1)
    assert (await heard_by(rows, gateway))[LOCATION, "mug"].available == 2
    assert len(gateway.fanout.kits) == 0
    assert set(await heard_by(dashboard, gateway)) == {(LOCATION, "mug")}


async def test_a_kit_with_more_rows_than_are_kept_is_refused_and_nothing_stays(
    shop: Shop, gateway: Follows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.followed_kits.MAX_KEPT_ROWS", 3)
    await define(shop, gift={"mug": 1}, trio={"mug": 1, "tea": 1, "cup": 1})
    small, large = Shopper(shop.merchant, ["gift"], [LOCATION]), Shopper(shop.merchant, ["trio"])
    await small.open(gateway)
    await shop.receive("mug", 1)
    with pytest.raises(Overloaded):
        await large.open(gateway)
    assert (await heard_by(small, gateway))[GIFT].available == 1
    assert len(gateway.fanout.kits) == 1
    assert small.subscription.cut_off is not CutOff.TOO_FAR_BEHIND


async def test_a_component_is_followed_in_so_many_kits_only(
    shop: Shop, gateway: Follows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.followed_kits.MAX_KITS_OF_A_ROW", 2)
    await shop.receive("mug", 4)
    await define(shop, gift={"mug": 1}, pair={"mug": 2}, trio={"mug": 3}, other={"tea": 1})
    told, other, refused = (
        Shopper(shop.merchant, skus, [LOCATION]) for skus in (["gift", "pair"], ["other"], ["trio"])
    )
    await told.open(gateway)
    await other.open(gateway)
    with pytest.raises(Overloaded):
        await refused.open(gateway)
    # One that comes to have the component by a new definition is not told on either.
    await define(shop, other={"mug": 4})
    await gateway.catch_up()
    with pytest.raises(Overloaded):
        await other.hear()
    other.close()
    await shop.receive("mug", 2)
    await heard_by(told, gateway)
    assert (available(told), available(told, PAIR)) == ([6], [3])
    told.close()
    await refused.open(gateway)
    assert (refused.known[LOCATION, "trio"].available, len(gateway.fanout.kits)) == (2, 1)


@pytest.mark.parametrize("locations", [None, [LOCATION]])
async def test_rows_that_cannot_be_read_are_read_by_the_next_who_asks(
    shop: Shop,
    gateway: Follows,
    monkeypatch: pytest.MonkeyPatch,
    locations: list[str] | None,
) -> None:
    await shop.receive("mug", 3)
    await define(shop, gift={"mug": 1})
    shopper = Shopper(shop.merchant, ["gift"], locations)

    async def fail(*_: object) -> None:
        raise StoreUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(gateway.inventory, "rows_together", fail)
        with pytest.raises(StoreUnavailable):
            await shopper.open(gateway)
        assert gateway.fanout.subscribers == 0
        waiting = [Shopper(shop.merchant, ["gift"], locations) for _ in range(2)]
        opened = [shopper.open(gateway) for shopper in waiting]
        refused = await asyncio.gather(*opened, return_exceptions=True)
        assert [type(one) for one in refused] == [StoreUnavailable] * 2
    await shopper.open(gateway)
    assert shopper.known[GIFT].available == 3


async def test_who_comes_back_before_it_heard_that_a_kit_is_another_starts_anew(
    shop: Shop, gateway: Follows, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.receive("mug", 6)
    await shop.receive("tea", 1)
    await define(shop, gift={"mug": 1})
    shopper = Shopper(shop.merchant, ["gift", "tea"], [LOCATION])
    await shopper.open(gateway)
    read_rows = gateway.listening._rows

    async def rows(interest: Interest) -> list[Row]:
        monkeypatch.setattr(gateway.listening, "_rows", read_rows)
        found = await read_rows(interest)
        await define(shop, gift={"mug": 3})
        await gateway.catch_up()
        return found

    await define(shop, gift={"mug": 2})
    await gateway.catch_up()
    monkeypatch.setattr(gateway.listening, "_rows", rows)
    await shopper.hear()
    # The connection breaks before it is told that the kit is another once more.
    shopper.close()
    await shopper.open(gateway)
    assert shopper.beginnings[-1] is Anew.KIT_CHANGED
    assert shopper.known[GIFT].available == 2


async def test_what_is_read_for_a_kit_ends_with_its_last_follower(
    shop: Shop, gateway: Follows, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        await shop.receive("mug", 6, location=f"pier-{number}")
    kits = {f"gift-{number}": {"mug": 1} for number in range(10)}
    await define(shop, **kits)
    reads = Reads(gateway, monkeypatch)
    followed = gateway.fanout.kits
    for _ in range(10):
        leaving = asyncio.create_task(Shopper(shop.merchant, list(kits)).open(gateway))
        await soon(lambda: reads.under_way > 0 and followed.readings == len(kits))
        # What is not read yet is counted already.
        assert followed.kept_rows == len(kits) * 20 * 2
        assert reads.under_way <= MAX_READS * 20
        leaving.cancel()
        await asyncio.wait({leaving})
        await soon(lambda: reads.under_way == followed.readings == 0)
        assert (len(followed), followed.kept_rows) == (0, 0)
    reads.gate.set()
    shopper = Shopper(shop.merchant, list(kits))
    await shopper.open(gateway)
    assert len(shopper.known) == len(kits) * 20


async def test_what_one_that_left_wanted_is_not_kept_for_those_who_stay(
    shop: Shop, gateway: Follows, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(READ_AT_ONCE + 10):
        await shop.receive("mug", 6, location=f"pier-{number}")
    await define(shop, gift={"mug": 1})
    staying = Shopper(shop.merchant, ["gift"], ["pier-1"])
    await staying.open(gateway)
    listed = asyncio.Event()

    async def locations(inventory: Inventory, merchant: str) -> Sequence[str]:
        await listed.wait()
        return await locations_of(inventory, merchant)

    monkeypatch.setattr("gateway.followed_kits.locations_of", locations)
    reads = Reads(gateway, monkeypatch)
    followed = gateway.fanout.kits
    for is_listed in (False, True):
        leaving = asyncio.create_task(Shopper(shop.merchant, ["gift"]).open(gateway))
        if is_listed:
            listed.set()
            await soon(lambda: reads.under_way == READ_AT_ONCE)
        else:
            await soon(lambda: gateway.fanout.subscribers == 2)
        leaving.cancel()
        await asyncio.wait({leaving})
        assert followed.kept_rows == 2
    listed.set()
    reads.gate.set()
    await soon(lambda: followed.readings == 0)
    # Of those that still were to be read nobody wanted any.
    assert (followed.kept_rows, reads.count) == (2, READ_AT_ONCE)
    await shop.receive("mug", 1, location="pier-1")
    assert (await heard_by(staying, gateway))["pier-1", "gift"].available == 7


async def test_a_component_is_split_and_its_parts_tell_its_home(
    make_store: MakeStore, merchant: str
) -> None:
    store = make_store()
    await store.start()
    await set_up(store.settings, partitions=8)
    async with open_shop(store.settings, merchant) as shop, following(store.settings) as gateway:
        await shop.receive("mug", 40)
        await define(shop, gift={"mug": 2})
        await shop.inventory.splits.change((shop.merchant, LOCATION, "mug"), 4, actor=ACTOR)
        shopper = Shopper(shop.merchant, ["gift"], [LOCATION])
        await shopper.open(gateway)
        assert shopper.known[GIFT].available == 20
        for units in (3, 5, 32):
            await shop.reserve([("mug", units)])
            await assert_heard_soon(shop, shopper, gateway)
        assert shopper.known[GIFT].available == 0


async def test_a_repair_has_followers_start_anew_also_those_who_were_away(
    make_store: MakeStore, tmp_path: Path
) -> None:
    async with (
        damaged_shop(make_store, tmp_path) as it,
        following(it.store.settings) as gateway,
    ):
        shop = it.shop
        await shop.receive("mug", 5)
        await define(shop, gift={"mug": 1})
        there, away = (Shopper(shop.merchant, ["gift"], [LOCATION]) for _ in range(2))
        await there.open(gateway)
        await away.open(gateway)
        away.close()
        await it.run("DEL", it.stock_key("mug"))
        await it.mend()
        await heard_by(there, gateway)
        await away.open(gateway)
        for shopper in (there, away):
            assert shopper.beginnings == [Anew.OPENED, Anew.KIT_CHANGED]
            await assert_heard(shop, shopper)
            assert shopper.known[GIFT].available == 5


async def test_a_repair_is_no_news_to_who_follows_kits_that_it_does_not_touch(
    make_store: MakeStore, tmp_path: Path
) -> None:
    async with (
        damaged_shop(make_store, tmp_path) as it,
        following(it.store.settings) as gateway,
    ):
        shop = it.shop
        for sku in ("mug", "tea"):
            await shop.receive(sku, 5)
        await define(shop, gift={"mug": 1}, pair={"tea": 2})
        opened = [
            Shopper(shop.merchant, [sku], locations)
            for sku in ("gift", "pair")
            for locations in ([LOCATION], None, [it.neighbour])
        ]
        away = [Shopper(shop.merchant, [sku], [LOCATION]) for sku in ("gift", "pair")]
        for shopper in (*opened, *away):
            await shopper.open(gateway)
        for shopper in away:
            shopper.close()
        held = await shop.reserve([("tea", 1)])
        await it.run("DEL", it.stock_key("mug"))
        await it.run("ZREM", it.keys.holds, held.reservation.id)
        await it.mend()
        for shopper in away:
            await shopper.open(gateway)
        for shopper in opened:
            await heard_by(shopper, gateway)
        assert [shopper.beginnings[1:] for shopper in opened] == [
            [Anew.KIT_CHANGED],
            [Anew.KIT_CHANGED],
            *[[]] * 4,
        ]
        assert [shopper.beginnings[1:] for shopper in away] == [[Anew.KIT_CHANGED], [None]]
        for shopper in (*opened[:2], opened[3], *away):
            await assert_heard(shop, shopper)


async def test_rows_that_a_failover_lost_before_the_tail_told_of_them_are_read_anew(
    shop: Shop, gateway: Follows, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.receive("mug", 5)
    await define(shop, gift={"mug": 1})
    rows_together = gateway.inventory.rows_together

    async def lost(merchant: str, location: str, skus: Sequence[str]) -> dict[str, Row]:
        """Answer as a primary whose last operations no replica had."""
        found = await rows_together(merchant, location, skus)
        monkeypatch.setattr(gateway.inventory, "rows_together", rows_together)
        partitions = tuple(range(gateway.inventory.partitions))
        again = Batch((Reconnected(partitions),), (), time.monotonic())
        asyncio.get_running_loop().call_soon(lambda: gateway.fanout._take(again))
        return {
            sku: msgspec.structs.replace(row, on_hand=row.on_hand + 4, version=row.version + 9)
            for sku, row in found.items()
        }

    monkeypatch.setattr(gateway.inventory, "rows_together", lost)
    shopper = Shopper(shop.merchant, ["gift"], [LOCATION])
    await shopper.open(gateway)
    assert shopper.known[GIFT].available == 5
    await shop.receive("mug", 1)
    assert (await heard_by(shopper, gateway))[GIFT].available == 6
    assert shopper.beginnings == [Anew.OPENED]


@pytest.mark.faults
async def test_a_store_that_is_killed_costs_no_change_of_a_kit(
    make_store: MakeStore, merchant: str
) -> None:
    store = make_store()
    await store.start()
    await set_up(store.settings)
    async with open_shop(store.settings, merchant) as shop, following(store.settings) as gateway:
        await shop.receive("mug", 9)
        await define(shop, gift={"mug": 1})
        shopper = Shopper(shop.merchant, ["gift"], [LOCATION])
        await shopper.open(gateway)
        for turn in range(3):
            await shop.move(MovementType.SALE, "mug", 1)
            store.kill9()
            await store.restart()
            await shop.move(MovementType.SALE, "mug", 1)
            await assert_heard_soon(shop, shopper, gateway)
            assert shopper.known[GIFT].available == 7 - 2 * turn
        assert available(shopper) == list(range(8, 2, -1))


class Reads:
    """The reads of rows of kits at a gateway, which wait until the gate is open."""

    def __init__(self, gateway: Follows, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = asyncio.Event()
        self.under_way = self.count = 0
        self._read = gateway.inventory.rows_together
        monkeypatch.setattr(gateway.inventory, "rows_together", self._wait)

    async def _wait(self, merchant: str, location: str, skus: Sequence[str]) -> dict[str, Row]:
        self.under_way += 1
        self.count += 1
        try:
            await self.gate.wait()
            return await self._read(merchant, location, skus)
        finally:
            self.under_way -= 1


async def soon(condition: Callable[[], bool]) -> None:
    async def is_so() -> bool:
        return condition()

    await eventually(is_so, within_seconds=20)


class Trade:
    """Random doings of a merchant with two kits that share a component."""

    def __init__(self, shop: Shop, draw: random.Random) -> None:
        self.shop = shop
        self.draw = draw
        self.held: list[str] = []

    async def step(self) -> None:
        draw, shop = self.draw, self.shop
        place = draw.choice(PLACES)
        try:
            what = draw.random()
            if what < 0.35:
                await shop.receive(draw.choice(PARTS), draw.randint(1, 4), location=place)
            elif what < 0.6:
                kind = draw.choice((MovementType.SALE, MovementType.COUNT))
                await shop.move(kind, draw.choice(PARTS), draw.randint(1, 3), location=place)
            elif what < 0.85:
                skus = draw.sample((*PARTS, "gift", "pair"), draw.randint(1, 3))
                made = await shop.reserve([(sku, 1) for sku in skus], location=place)
                self.held.append(made.reservation.id)
            elif self.held:
                ended = self.held.pop(draw.randrange(len(self.held)))
                end = draw.choice((shop.inventory.release, shop.inventory.commit))
                await end(shop.merchant, ended, actor=ACTOR)
        except HoldfastError:
            # Refused as it should be: nothing happened.
            return

    async def redefine(self) -> None:
        draw = self.draw
        sku = draw.choice(("gift", "pair"))
        parts = {part: draw.randint(1, 2) for part in draw.sample(PARTS, draw.randint(1, 3))}
        await define(self.shop, **{sku: None if draw.random() < 0.3 else parts})


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("redefined", [False, True])
async def test_what_was_heard_last_is_what_a_read_says_whatever_happens(
    shop: Shop, store: RealStore, seed: int, redefined: bool
) -> None:
    draw = random.Random(seed)
    trade = Trade(shop, draw)
    await shop.receive("gift", 1)
    await define(shop, gift={"mug": 1, "tea": 2}, pair={"mug": 2, "cup": 1})
    wanted = (["gift"], ["gift", "pair", "mug"], ["pair"])
    async with AsyncExitStack() as stack:
        gateways = [await stack.enter_async_context(following(store.settings)) for _ in range(2)]
        steady = [
            Shopper(shop.merchant, ["gift", "pair", "mug"]),
            Shopper(shop.merchant, ["gift", "pair", "mug"], PLACES),
        ]
        for shopper, gateway in zip(steady, gateways, strict=True):
            await shopper.open(gateway)
        fickle = [
            Shopper(shop.merchant, skus, locations)
            for skus in wanted
            for locations in (None, PLACES[:2])
        ]
        for _ in range(100):
            doing = [trade.step(), trade.step()]
            if redefined and draw.random() < 0.1:
                doing.append(trade.redefine())
            shopper = draw.choice(fickle)
            if not shopper.is_open:
                doing.append(shopper.open(draw.choice(gateways)))
            elif draw.random() < 0.6:
                doing.append(shopper.hear(draw.randint(1, 20)))
            else:
                shopper.close()
            draw.shuffle(doing)
            await asyncio.gather(*doing)
        for shopper in fickle:
            if not shopper.is_open:
                await shopper.open(draw.choice(gateways))
        for gateway in gateways:
            await gateway.catch_up()
        for shopper in (*steady, *fickle):
            await shopper.hear()
        for shopper in (*steady, *fickle):
            await assert_heard(shop, shopper, f"seed {seed}")
        if not redefined:
            for shopper in (*steady, *fickle):
                assert_nothing_missed(shopper, steady[0], seed)


async def assert_heard(shop: Shop, shopper: Shopper, why: str = "") -> None:
    interest = shopper.interest
    names = [(place, sku) for place in interest.locations or PLACES for sku in interest.skus or ()]
    for name, said in (await what_a_read_says(shop.inventory, shop.merchant, names)).items():
        known = shopper.known.get(name)
        if said is None:
            assert known in (None, Heard(0, 0)), (why, name)
            continue
        assert known is not None, (why, name)
        assert (known.available, known.version <= said.version) == (said.available, True), (
            f"{why}: of {name} {known} was heard, and a read says {said}"
        )


async def assert_heard_soon(shop: Shop, shopper: Shopper, gateway: Follows) -> None:
    """Wait until nothing is under way any more: parts of a row tell its home a little later."""

    async def is_heard() -> bool:
        said = await what_a_read_says(shop.inventory, shop.merchant, [GIFT])
        with suppress(StoreUnavailable):
            await heard_by(shopper, gateway)
        return shopper.known == said

    await eventually(is_heard, within_seconds=20)


def assert_nothing_missed(shopper: Shopper, steady: Shopper, seed: int) -> None:
    """Whoever comes and goes hears what one hears that stays, from where it began."""
    for name, told in shopper.told.items():
        expected = [heard for heard in steady.told[name] if heard.version >= told[0].version]
        assert told == expected, (seed, name)
