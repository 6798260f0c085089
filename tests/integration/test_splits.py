"""Split rows on real stores: one row to whoever looks, whatever is where."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

from engine import splits
from engine.model import Line, MovementType, Reservation, Terms
from engine.outcomes import (
    InsufficientOnHand,
    InsufficientStock,
    InvalidCommand,
    LimitExceeded,
    Overloaded,
    RowNotFound,
    StoreUnavailable,
)
from engine.shortfalls import ShortfallKeeper, Shortfalls
from engine.store import Store
from reconciler.archive import Archive
from reconciler.audit import Audit, audit
from reconciler.findings import Code
from reconciler.objects import Objects
from reconciler.rebuild import rebuild
from reconciler.rebuild_plan import RebuildRequest
from reconciler.repair import mend
from reconciler.snapshots import Snapshots
from tests.events import Till
from tests.gateways import Shelf
from tests.shop import ACTOR, LOCATION, Shop, new_key, open_shop
from tests.stores import MakeStore, RealCluster, RealStore, set_up

PARTITIONS: Final = 8
PARTS: Final = 4
SEED: Final = 11
CALLERS: Final = 24
CALLS: Final = 25


@pytest.fixture
async def real(store_kind: str, make_store: MakeStore) -> RealStore:
    made = make_store(store_kind)
    await made.start()
    await set_up(made.settings, partitions=PARTITIONS)
    return made


@pytest.fixture
async def hot(real: RealStore) -> AsyncIterator[Shop]:
    """A shop whose row of tea, 100 units, is split."""
    async with open_shop(real.settings) as shop:
        await shop.receive("tea", 100)
        await split(shop, PARTS)
        yield shop


def name_of(shop: Shop) -> tuple[str, str, str]:
    return (shop.merchant, LOCATION, "tea")


async def split(shop: Shop, parts: int) -> splits.Spread:
    return await shop.inventory.splits.change(name_of(shop), parts, actor=ACTOR)


async def audited(shop: Shop, *others: Shop) -> None:
    """Check every invariant, by the tests' own audit and by the product's, once all is told."""
    for one in (shop, *others):
        await one.inventory.splits.flush()
    await shop.audit()
    report = await audit(shop.inventory, None)
    assert [(one.code, one.detail) for one in report.findings] == []


async def taken(shop: Shop, count: int, quantity: int = 1) -> list[Reservation]:
    """Have `count` shoppers ask at once; return what they got."""
    answers = await asyncio.gather(
        *(shop.reserve([("tea", quantity)]) for _ in range(count)), return_exceptions=True
    )
    others = [one for one in answers if isinstance(one, BaseException)]
    assert all(isinstance(one, InsufficientStock) for one in others), others
    return [one.reservation for one in answers if not isinstance(one, BaseException)]


async def test_the_last_unit_is_sold_wherever_it_is_and_none_more(hot: Shop) -> None:
    held = await taken(hot, 160)
    assert len(held) == 100
    # The parts have sold, and not home alone.
    assert len({one.id.split("_")[1] for one in held}) == PARTS
    row = await hot.row("tea")
    assert (row.on_hand, row.reserved, row.available, row.parts) == (100, 100, 0, PARTS)
    await asyncio.gather(*(hot.release(one.id) for one in held[:7]))
    (large,) = await taken(hot, 1, quantity=7)
    await hot.commit(large.id, [("tea", 5)])
    assert (await hot.row("tea")).available == 2
    with pytest.raises(InsufficientStock) as refused:
        await hot.reserve([("tea", 3)])
    assert [line.available for line in refused.value.lines] == [2]
    partial = (await hot.reserve([("tea", 3)], partial=True)).reservation
    assert [line.quantity for line in partial.lines] == [2]
    await audited(hot)


async def test_a_retry_finds_its_answer_whatever_became_of_the_split(real: RealStore) -> None:
    async with open_shop(real.settings) as shop, open_shop(real.settings, shop.merchant) as other:
        await shop.receive("tea", 50)
        made: dict[str, str] = {}
        for parts in (1, 3, 1, 2, 5):
            await split(shop, parts)
            for _ in range(3):
                key = new_key()
                made[key] = (await shop.reserve([("tea", 1)], key=key)).reservation.id
            for who in (shop, other):
                for key, the_id in made.items():
                    again = await who.reserve([("tea", 1)], key=key)
                    assert (again.replayed, again.reservation.id) == (True, the_id)
        assert (await other.row("tea")).reserved == len(made)
        page = await other.inventory.open_reservations(shop.merchant, LOCATION, limit=4)
        ids = [one.id for one in page.items]
        while page.next_after is not None:
            page = await other.inventory.open_reservations(
                shop.merchant, LOCATION, limit=4, after=page.next_after
            )
            ids += [one.id for one in page.items]
        assert sorted(ids) == sorted(made.values())
        await audited(shop, other)


async def test_on_and_off_while_everybody_buys(real: RealStore) -> None:
    draw = random.Random(SEED)
    async with open_shop(real.settings) as shop, open_shop(real.settings, shop.merchant) as other:
        await shop.receive("tea", 300)
        held: dict[str, int] = {}
        picked = sold = 0
        stop = asyncio.Event()

        async def trade(who: Shop) -> None:
            nonlocal picked, sold
            for _ in range(CALLS):
                quantity, what = draw.randint(1, 4), draw.random()
                try:
                    if what < 0.05:
                        await who.move(MovementType.SALE, "tea", 1)
                        sold += 1
                        await who.receive("tea", 1)
                    elif what < 0.6 or not held:
                        made = await who.reserve([("tea", quantity)])
                        held[made.reservation.id] = quantity
                    else:
                        the_id, units = held.popitem()
                        if what < 0.8:
                            await who.release(the_id)
                        else:
                            try:
                                await who.commit(the_id)
                            except InsufficientOnHand:
                                # The till has just taken it, and it is not back yet.
                                held[the_id] = units
                            else:
                                picked += units
                except (InsufficientStock, Overloaded):
                    # The latter where others were faster at the last units again and again.
                    continue

        async def look() -> None:
            version = 0
            while not stop.is_set():
                row = await other.row("tea")
                assert row.version >= version
                version = row.version

        async def turn() -> None:
            for parts in (2, 5, 1, 3, 4):
                await split(draw.choice((shop, other)), parts)
                await other.inventory.splits.tend(name_of(shop))
            stop.set()

        await asyncio.gather(turn(), look(), *(trade((shop, other)[i % 2]) for i in range(CALLERS)))
        row = await other.row("tea")
        assert sold > 0
        assert row.on_hand - row.deficit == 300 - picked
        assert row.reserved == sum(held.values())
        await audited(shop, other)


async def test_what_the_till_sold_is_not_promised_at_a_part(hot: Shop) -> None:
    held = await taken(hot, 60)
    moved = await hot.move(MovementType.SALE, "tea", 70)
    assert (moved.row.on_hand, moved.row.reserved, moved.row.shortfall) == (30, 60, 30)
    assert await taken(hot, 5) == []
    # What comes back is missing elsewhere, until all is there again.
    for one in held[:30]:
        await hot.release(one.id)
    assert await taken(hot, 5) == []
    await hot.release(held[30].id)
    assert len(await taken(hot, 5)) == 1
    await hot.receive("tea", 8)
    assert len(await taken(hot, 9)) == 8
    await audited(hot)


async def test_settings_and_carts_and_amendments_get_what_the_parts_have(hot: Shop) -> None:
    row = await hot.row("tea")
    await hot.inventory.configure(
        hot.merchant,
        LOCATION,
        "tea",
        key=new_key(),
        safety_stock=85,
        expected_version=row.version,
        actor=ACTOR,
    )
    await hot.receive("mug", 1)
    (cart,) = [(await hot.reserve([("tea", 10), ("mug", 1)])).reservation]
    assert len(await taken(hot, 9)) == 5
    await hot.release(cart.id)
    (alone,) = await taken(hot, 1)
    amended = await hot.inventory.amend(
        hot.merchant, alone.id, [Line("tea", 10)], key=new_key(), actor=ACTOR
    )
    assert amended.reservation.lines == (Line("tea", 10),)
    with pytest.raises(InvalidCommand, match="this row is split"):
        await hot.inventory.amend(
            hot.merchant, alone.id, [Line("mug", 1)], key=new_key(), actor=ACTOR
        )
    with pytest.raises(InsufficientStock):
        await hot.inventory.amend(
            hot.merchant, alone.id, [Line("tea", 11)], key=new_key(), actor=ACTOR
        )
    await audited(hot)


async def test_a_late_count_knows_what_left_at_the_parts(hot: Shop) -> None:
    till = Till(hot)
    held = await taken(hot, 40)
    for one in held[:20]:
        await hot.commit(one.id)
    # 80 are on the shelf; a count of just now, and then one of before all of it that comes late.
    assert await till.tell("count", 80, ago=0) == "applied"
    assert (await hot.row("tea")).on_hand == 80
    for one in held[20:25]:
        await hot.commit(one.id)
    assert (await hot.row("tea")).on_hand == 75
    assert await till.tell("count", 99, ago=30) == "superseded"
    assert await till.tell("sale", 70, ago=0) == "applied"
    row = await hot.row("tea")
    assert (row.on_hand, row.reserved, row.shortfall) == (5, 15, 10)
    await audited(hot)


async def test_a_count_of_before_counts_what_left_since(hot: Shop) -> None:
    till = Till(hot)
    (held,) = await taken(hot, 1, quantity=9)
    before = await till.now_ms() - 1
    await hot.commit(held.id)
    event = await till.event("count", 60)
    assert await till.send(msgspec.structs.replace(event, occurred_at_ms=before)) == ["applied"]
    assert (await hot.row("tea")).on_hand == 51
    await audited(hot)


async def test_a_shortfall_names_what_is_held_at_the_parts(hot: Shop) -> None:
    held = await taken(hot, 100)
    await hot.move(MovementType.SALE, "tea", 3)
    await ShortfallKeeper(hot.inventory).round()
    (short,) = await Shortfalls(hot.inventory).listed(hot.merchant, LOCATION)
    assert short.units == 3
    assert {one.reservation for one in short.endangered} <= {one.id for one in held}
    assert len(short.endangered) == 3


async def test_who_finds_something_undone_ends_it(hot: Shop, real: RealStore) -> None:
    """Grant units that nobody tells the part of, close it half-way, and sell all there is."""
    keeper, name = hot.inventory.splits, name_of(hot)
    home = await keeper._tell_home(name, grants=[(parts_of(hot)[0], 5)])
    assert home.plan is not None
    await keeper._tell_home(name, expected=home.plan.epoch, plan="close")
    async with open_shop(real.settings, hot.merchant) as other:
        assert len(await taken(other, 101)) == 100
        await audited(other, hot)


async def test_units_are_evened_out(hot: Shop) -> None:
    await hot.receive("tea", 900)
    keeper = splits.SplitKeeper(hot.inventory.splits)
    assert await keeper.round() == 1
    spread = await hot.inventory.splits.spread(name_of(hot))
    assert spread.parts == PARTS
    assert {share.is_open for share in spread.shares} == {True}
    assert [share.free for share in spread.shares] == [200] * PARTS
    assert spread.free_at_home == 200
    await split(hot, 1)
    spread = await hot.inventory.splits.spread(name_of(hot))
    assert (spread.parts, spread.free_at_home, spread.shares) == (0, 1000, ())
    plan = hot.inventory.splits.known(name_of(hot))
    assert plan is not None
    assert plan.is_over


async def test_a_row_that_cannot_be_tended_keeps_no_other_waiting(
    hot: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await hot.receive("zebra", 10)
    await hot.inventory.splits.change((hot.merchant, LOCATION, "zebra"), 2, actor=ACTOR)
    tended = []

    async def tend(name: splits.RowName) -> None:
        tended.append(name[2])
        if name[2] == "tea":
            raise StoreUnavailable()

    monkeypatch.setattr(hot.inventory.splits, "tend", tend)
    with pytest.raises(StoreUnavailable):
        await splits.SplitKeeper(hot.inventory.splits).round()
    assert tended == ["tea", "zebra"]


async def test_what_cannot_be_split_is_refused(hot: Shop) -> None:
    for parts in (0, PARTITIONS, 17):
        with pytest.raises(InvalidCommand, match="parts: must be 1 "):
            await split(hot, parts)
    with pytest.raises(RowNotFound):
        await hot.inventory.splits.change((hot.merchant, LOCATION, "none"), 2, actor=ACTOR)
    with pytest.raises(InvalidCommand, match="the row is split"):
        await give_terms(hot, "tea")
    with pytest.raises(InvalidCommand, match="the row is split"):
        await hot.expect("tea", "po-1", "2026-12-10", 5)
    await hot.receive("mug", 5)
    await give_terms(hot, "mug")
    with pytest.raises(InvalidCommand, match="the row has terms"):
        await hot.inventory.splits.change((hot.merchant, LOCATION, "mug"), 2, actor=ACTOR)
    for parts in (2, 3, 2, 3, 2, 3, 2):
        await split(hot, parts)
    with pytest.raises(LimitExceeded, match="changes"):
        await split(hot, 3)


async def test_a_row_that_is_split_during_an_audit_is_no_finding(real: RealStore) -> None:
    async with open_shop(real.settings) as shop:
        await shop.receive("tea", 100)
        running = Audit(shop.inventory, None)
        for partition in range(PARTITIONS):
            assert (await running.partition(partition)).findings == ()
        await split(shop, PARTS)
        await shop.commit((await taken(shop, 1))[0].id)
        assert await running.scan() == []
        # What no operation made there is one.
        other = shop.inventory.keys[(shop.keys().partition + PARTS + 1) % PARTITIONS]
        await shop.client.execute_command("HSET", other.stock(*name_of(shop)), "on_hand", "5")
        assert [one.code for one in await running.scan()] == [Code.KEY_UNKNOWN]


async def test_an_edited_split_is_found_and_mended(hot: Shop) -> None:
    await taken(hot, 10)
    await hot.row("tea")
    for keys in (hot.keys(), hot.inventory.keys[next(iter(parts_of(hot)))]):
        key = keys.stock(*name_of(hot))
        text = await hot.client.execute_command("HGET", key, "split")
        await hot.client.execute_command("HSET", key, "split", text.replace(b"20", b"90"))
    report = await audit(hot.inventory, None)
    assert {one.code for one in report.findings} == {Code.SPLIT_DIFFERS, Code.PARTS_DIFFER}
    await mend(hot.inventory, None, actor=ACTOR, reason="edited")
    assert len(await taken(hot, 95)) == 90
    await audited(hot)


async def give_terms(shop: Shop, sku: str) -> None:
    row = await shop.row(sku)
    await shop.inventory.set_terms(
        shop.merchant,
        LOCATION,
        sku,
        Terms(backorder_limit=5),
        key=new_key(),
        expected_version=row.version,
        actor=ACTOR,
    )


def parts_of(shop: Shop) -> list[int]:
    plan = shop.inventory.splits.known(name_of(shop))
    assert plan is not None
    return list(plan.cells)


async def test_a_row_is_split_over_http(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 40)
    client, row_path = shelf.client, f"{shelf.path}/stock/tea"
    path = f"{row_path}/split"
    answer = await client.put(path, json={"parts": 3})
    assert (answer.status_code, answer.json()["parts"]) == (200, 3)
    assert sum(one["free"] for one in answer.json()["shares"]) + answer.json()["free_at_home"] == 40
    assert (await client.get(path)).json() == answer.json()
    row = await client.get(row_path)
    assert (row.json()["parts"], row.json()["available"]) == (3, 40)
    assert (await client.put(path, json={"parts": 17})).status_code == 400
    assert (await client.put(path, json={"parts": 0})).status_code == 400
    missing = await client.put(f"{shelf.path}/stock/none/split", json={"parts": 2})
    assert missing.json()["code"] == "row_not_found"
    off = await client.put(path, json={"parts": 1})
    assert (off.json()["parts"], off.json()["shares"]) == (1, [])
    assert "parts" not in (await client.get(row_path)).json()


@pytest.mark.parametrize("partitions", [PARTITIONS, 3])
async def test_a_split_row_is_rebuilt(
    hot: Shop, make_store: MakeStore, tmp_path: Path, partitions: int
) -> None:
    held = await taken(hot, 40)
    await asyncio.gather(*(hot.commit(one.id) for one in held[:10]))
    # Granted and on the way, and changes at the parts that home has not heard of.
    await hot.inventory.splits._tell_home(name_of(hot), grants=[(parts_of(hot)[1], 5)])
    await hot.commit(held[10].id)
    target = make_store()
    await target.start()
    store = await Store.open(target.settings)
    try:
        objects = Objects.open(str(tmp_path / "archive"))
        result = await rebuild(
            RebuildRequest(actor=ACTOR, partitions=partitions),
            objects,
            target=store,
            live=hot.inventory.store,
        )
    finally:
        await store.close()
    async with open_shop(target.settings, hot.merchant) as new:
        row = await new.row("tea")
        assert (row.on_hand, row.reserved) == (89, 29)
        assert row.parts == (PARTS if partitions == PARTITIONS else 0)
        for one in held[11:21]:
            await new.release(one.id)
        assert len(await taken(new, 80)) == 70
        archive = Archive(objects, result.store_id)
        report = await audit(new.inventory, archive, snapshots=Snapshots(archive).state)
        assert [(one.code, one.detail) for one in report.findings] == []


@pytest.mark.cluster
async def test_the_parts_are_on_all_nodes_of_a_cluster(cluster: RealCluster) -> None:
    async with open_shop(cluster.settings) as shop:
        await shop.receive("tea", 60)
        spread = await split(shop, 2)
        store, keys = shop.inventory.store, shop.inventory.keys
        partitions = [spread.home, *[share.partition for share in spread.shares]]
        assert len({await store.node_of(keys[p].meta) for p in partitions}) == 3
        held = await taken(shop, 80)
        assert len(held) == 60
        await asyncio.gather(*(shop.commit(one.id) for one in held[:30]))
        await shop.move(MovementType.SALE, "tea", 20)
        await split(shop, 1)
        row = await shop.row("tea")
        assert (row.on_hand, row.reserved) == (10, 30)
        await audited(shop)
