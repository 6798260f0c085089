"""Supplies: units that are expected on a day, and what is promised of them before they come."""

import asyncio
import random
import threading
from collections.abc import Sequence

import msgspec
import pytest

from engine.event_making import events_of
from engine.events import PromiseRestored, PromiseSlipped, SupplyUnknown
from engine.ledger import read_entries
from engine.model import Line, Movement, MovementType, Pool, Promised, Reservation, Row, Terms
from engine.outcomes import (
    IdempotencyKeyReused,
    InsufficientStock,
    InvalidCommand,
    LimitExceeded,
    ShortLine,
    SupplyNotFound,
)
from engine.outlook import Promisable, Supply, Wait
from engine.policies import PolicyPart
from engine.shortfalls import ShortfallKeeper
from engine.supplies import Reviewed, Supplies
from gateway.feeds import read_event
from tests.events import Till
from tests.shop import ACTOR, LOCATION, Shop, new_key

MONDAY, TUESDAY, FRIDAY = "2026-12-07", "2026-12-08", "2026-12-11"


async def waits(shop: Shop, reservation: Reservation) -> tuple[tuple[Line, ...], object]:
    """Return what a reservation waits for now, and by when it was promised."""
    found = await shop.inventory.reservation(shop.merchant, reservation.id)
    return found.backordered, found.promised


async def test_units_are_promised_by_the_day_on_which_they_come(shop: Shop) -> None:
    await shop.receive("tea", 2)
    await shop.expect("tea", "po-1", MONDAY, 10)
    row = (await shop.expect("tea", "po-2", FRIDAY, 5)).row
    assert (row.available, row.incoming) == (2, 15)
    assert row.available_to_promise == (Promisable(MONDAY, 12), Promisable(FRIDAY, 17))
    first = (await shop.reserve([("tea", 8)], by=TUESDAY)).reservation
    assert first.backordered == (Line("tea", 6),)
    assert first.promised == (Promised("tea", MONDAY, MONDAY),)
    assert first == await shop.inventory.reservation(shop.merchant, first.id)
    with pytest.raises(InsufficientStock) as refused:
        await shop.reserve([("tea", 5)], by=TUESDAY)
    assert refused.value.lines == (ShortLine("tea", 5, 4),)
    late = (await shop.reserve([("tea", 5)], by=FRIDAY)).reservation
    assert late.promised == (Promised("tea", FRIDAY, FRIDAY),)
    part = (await shop.reserve([("tea", 9)], by=FRIDAY, partial=True)).reservation
    assert (part.lines, part.missing) == ((Line("tea", 4),), (Line("tea", 5),))
    row = await shop.row("tea")
    assert (row.reserved, row.backordered, row.available) == (2, 15, 0)
    assert [one.quantity for one in row.available_to_promise] == [0, 0]
    await shop.audit()


async def test_an_earlier_day_is_promised_only_if_the_later_ones_are_kept(shop: Shop) -> None:
    await shop.expect("tea", "po-1", MONDAY, 10)
    await shop.expect("tea", "po-2", FRIDAY, 5)
    # 12 of the 15 are promised by Friday, so 3 are left by any day.
    await shop.reserve([("tea", 12)], by=FRIDAY)
    row = await shop.row("tea")
    assert row.available_to_promise == (Promisable(MONDAY, 3), Promisable(FRIDAY, 3))
    with pytest.raises(InsufficientStock):
        await shop.reserve([("tea", 4)], by=MONDAY)
    await shop.reserve([("tea", 3)], by=MONDAY)
    await shop.audit()


async def test_who_names_no_day_gets_what_comes_only_where_backorders_are_taken(
    shop: Shop,
) -> None:
    await shop.receive("tea", 1)
    await shop.expect("tea", "po-1", MONDAY, 4)
    with pytest.raises(InsufficientStock) as refused:
        await shop.reserve([("tea", 2)])
    assert refused.value.lines == (ShortLine("tea", 2, 1),)
    row = (await shop.set_terms("tea", Terms(backorder_limit=3))).row
    assert (row.incoming, row.backorder_available) == (4, 7)
    dated = (await shop.reserve([("tea", 3)])).reservation
    assert dated.promised == (Promised("tea", MONDAY, MONDAY),)
    beyond = (await shop.reserve([("tea", 4)])).reservation
    assert (beyond.backordered, beyond.promised) == ((Line("tea", 4),), ())
    assert (await shop.row("tea")).backorder_available == 1
    with pytest.raises(InsufficientStock):
        await shop.reserve([("tea", 1)], by=FRIDAY)
    with pytest.raises(InsufficientStock):
        await shop.reserve([("tea", 2)])
    await shop.audit()


async def test_those_who_wait_are_served_by_their_days(shop: Shop) -> None:
    await shop.set_terms("tea", Terms(backorder_limit=5))
    oldest = (await shop.reserve([("tea", 1)])).reservation
    await shop.expect("tea", "po-1", MONDAY, 5)
    await shop.expect("tea", "po-2", FRIDAY, 5)
    friday = (await shop.reserve([("tea", 5)], by=FRIDAY)).reservation
    beyond = (await shop.reserve([("tea", 6)])).reservation
    assert beyond.promised == ()
    listed = await Supplies(shop.inventory).waiting(shop.merchant, LOCATION, "tea", limit=2)
    rest = await Supplies(shop.inventory).waiting(
        shop.merchant, LOCATION, "tea", after=listed.next_after
    )
    assert [(one.reservation, one.promised_by) for one in (*listed.items, *rest.items)] == [
        (oldest.id, None),
        (friday.id, FRIDAY),
        (beyond.id, None),
    ]
    await shop.release(friday.id)
    # What was promised beyond the supplies goes before who comes now, but not before their days.
    monday = (await shop.reserve([("tea", 3)], by=MONDAY)).reservation
    await shop.arrive("tea", "po-1", 5)
    assert [await waits(shop, one) for one in (oldest, monday, beyond)] == [
        ((), ()),
        ((), ()),
        ((Line("tea", 5),), ()),
    ]
    row = await shop.row("tea")
    assert (row.incoming, row.backordered, row.reserved) == (5, 5, 5)
    await shop.arrive("tea", "po-2", 7)
    row = await shop.row("tea")
    assert (row.incoming, row.backordered, row.available) == (0, 0, 2)
    assert row.terms == Terms(backorder_limit=5)
    await shop.audit()


async def test_a_row_is_a_plain_one_again_once_all_has_come(shop: Shop) -> None:
    await shop.expect("tea", "po-1", MONDAY, 5)
    held = (await shop.reserve([("tea", 4)], by=MONDAY)).reservation
    moved = await shop.arrive("tea", "po-1", 3)
    assert (moved.row.incoming, moved.row.on_hand) == (2, 3)
    assert await waits(shop, held) == ((Line("tea", 1),), (Promised("tea", MONDAY, MONDAY),))
    with pytest.raises(SupplyNotFound):
        await shop.arrive("tea", "po-9", 1)
    # More may come than was expected.
    await shop.arrive("tea", "po-1", 3)
    row = await shop.row("tea")
    assert (row.terms, row.backordered, row.available) == (None, 0, 2)
    assert (await shop.commit(held.id)).reservation.picked == (Line("tea", 4),)
    await shop.audit()


async def test_the_last_who_waits_may_be_the_end_of_the_terms(shop: Shop) -> None:
    await shop.expect("tea", "po-1", MONDAY, 5)
    held = (await shop.reserve([("tea", 4)], by=MONDAY)).reservation
    other = (await shop.reserve([("tea", 1)], by=MONDAY)).reservation
    await shop.cancel_supply("tea", "po-1")
    await shop.release(held.id)
    await shop.receive("tea", 1)
    row = await shop.row("tea")
    assert (row.terms, row.backordered, row.reserved) == (None, 0, 1)
    assert (await shop.commit(other.id)).reservation.picked == (Line("tea", 1),)
    await shop.audit()


async def test_what_a_count_has_already_came_with_its_supply_all_the_same(shop: Shop) -> None:
    await shop.expect("tea", "po-1", MONDAY, 5)
    await shop.move(MovementType.COUNT, "tea", 5)
    now_ms = await shop.clock_ms()
    movement = Movement(
        key=new_key(),
        location=LOCATION,
        type=MovementType.TRANSFER_IN,
        sku="tea",
        quantity=5,
        occurred_at_ms=now_ms - 60_000,
        supply="po-1",
    )
    first = await shop.inventory.move(shop.merchant, movement, actor=ACTOR)
    assert (first.row.on_hand, first.row.incoming) == (5, 0)
    again = await shop.inventory.move(shop.merchant, movement, actor=ACTOR)
    assert (again.replayed, again.row) == (True, first.row)
    await shop.audit()


async def test_supplies_are_said_once_under_a_key(shop: Shop) -> None:
    first = await shop.expect("tea", "po-1", MONDAY, 5, key="k")
    again = await shop.expect("tea", "po-1", MONDAY, 5, key="k")
    assert (again.replayed, again.row) == (True, first.row)
    with pytest.raises(IdempotencyKeyReused):
        await shop.expect("tea", "po-1", MONDAY, 6, key="k")
    moved = (await shop.expect("tea", "po-1", FRIDAY, 6)).row
    assert moved.terms == Terms(supplies={"po-1": Supply(FRIDAY, 6)})
    cancelled = await shop.cancel_supply("tea", "po-1", key="gone")
    assert (await shop.cancel_supply("tea", "po-1", key="gone")).row == cancelled.row
    assert cancelled.row.terms is None
    with pytest.raises(SupplyNotFound):
        await shop.cancel_supply("tea", "po-1")
    for day, units in (("2026-02-30", 1), ("1999-12-31", 1), ("20261207", 1), (MONDAY, 0)):
        with pytest.raises(InvalidCommand):
            await shop.expect("tea", "po-1", day, units)
    with pytest.raises(InvalidCommand):
        await shop.reserve([("tea", 1)], by="soon")
    with pytest.raises(InvalidCommand):
        await shop.reserve([("tea", 1)], by=MONDAY, stock_only=True)
    await shop.audit()


async def test_a_row_expects_so_many_supplies_at_most(shop: Shop) -> None:
    for number in range(50):
        await shop.expect("tea", f"po-{number}", f"2026-12-{number % 28 + 1:02}", 1)
    with pytest.raises(LimitExceeded):
        await shop.expect("tea", "one more", MONDAY, 1)
    await shop.expect("tea", "po-7", MONDAY, 2)
    await shop.audit()


async def test_a_retry_is_told_the_day_of_the_first_answer(shop: Shop) -> None:
    await shop.expect("tea", "po-1", MONDAY, 5)
    first = await shop.reserve([("tea", 2)], by=MONDAY, key="cart")
    await shop.arrive("tea", "po-1", 5)
    again = await shop.reserve([("tea", 2)], by=MONDAY, key="cart")
    assert (again.replayed, again.reservation) == (True, first.reservation)
    with pytest.raises(IdempotencyKeyReused):
        await shop.reserve([("tea", 2)], by=FRIDAY, key="cart")
    await shop.audit()


async def test_what_was_promised_by_a_day_is_amended_by_that_day(shop: Shop) -> None:
    await shop.expect("tea", "po-1", MONDAY, 5)
    await shop.expect("tea", "po-2", FRIDAY, 5)
    held = (await shop.reserve([("tea", 3)], by=MONDAY)).reservation
    other = (await shop.reserve([("tea", 1)], by=MONDAY)).reservation

    async def amend(quantity: int) -> Reservation:
        result = await shop.inventory.amend(
            shop.merchant, held.id, [Line("tea", quantity)], key=new_key(), actor=ACTOR
        )
        return result.reservation

    with pytest.raises(InsufficientStock):
        await amend(5)
    assert (await amend(2)).promised == (Promised("tea", MONDAY, MONDAY),)
    grown = await amend(4)
    assert (grown.backordered, grown.promised) == (
        (Line("tea", 4),),
        (Promised("tea", MONDAY, MONDAY),),
    )
    page = await Supplies(shop.inventory).waiting(shop.merchant, LOCATION, "tea")
    assert [one.reservation for one in page.items] == [other.id, held.id]
    await shop.arrive("tea", "po-1", 5)
    assert (await shop.row("tea")).backordered == 0
    await shop.audit()


async def test_what_a_line_holds_already_is_not_promised_to_it_as_yet_to_come(shop: Shop) -> None:
    await shop.receive("tea", 2)
    await shop.set_terms("tea", Terms(backorder_limit=5))
    held = (await shop.reserve([("tea", 2)])).reservation
    await shop.reserve([("tea", 2)])
    await shop.expect("tea", "po-1", MONDAY, 4)
    # Of the 4 that come 2 are for who waits already, so not all 3 more are there by then.
    amended = await shop.inventory.amend(
        shop.merchant, held.id, [Line("tea", 5)], key=new_key(), actor=ACTOR
    )
    assert amended.reservation.backordered == (Line("tea", 3),)
    assert amended.reservation.promised == ()
    await shop.arrive("tea", "po-1", 4)
    assert await waits(shop, held) == ((Line("tea", 1),), ())
    await shop.audit()


async def events(shop: Shop) -> list[tuple[object, ...]]:
    """Return what was told of days that cannot be kept, and of those that can be again."""
    return [
        (type(event), event.data.reservation, event.data.promised_by, event.data.expected_on)
        for entry in await read_entries(shop.inventory.store, shop.keys())
        for operation in entry.operations
        if operation.merchant == shop.merchant
        for event in events_of(operation, sequence=1, at_ms=entry.at_ms, partition=0)
        if isinstance(event, PromiseSlipped | PromiseRestored)
    ]


async def test_a_supply_that_slips_names_whose_day_cannot_be_kept(shop: Shop) -> None:
    await shop.expect("tea", "po-1", MONDAY, 6)
    first = (await shop.reserve([("tea", 4)], by=MONDAY)).reservation
    second = (await shop.reserve([("tea", 2)], by=MONDAY, order_ref="web 7")).reservation
    assert (await shop.expect("tea", "po-1", TUESDAY, 4)).reviewed.count == 2
    shrunk = (await shop.expect("tea", "po-1", MONDAY, 5, key="shrunk")).reviewed
    assert [(one.reservation, one.order_ref, one.expected_on) for one in shrunk.late] == [
        (second.id, "web 7", None)
    ]
    again = (await shop.expect("tea", "po-1", MONDAY, 5, key="shrunk")).reviewed
    assert (again.late, again.told) == (shrunk.late, 0)
    assert await waits(shop, second) == (
        (Line("tea", 2),),
        (Promised("tea", MONDAY, None),),
    )
    row = await shop.row("tea")
    assert row.terms is not None
    assert (row.terms.late, row.available_to_promise[0].quantity) == (2, 0)
    with pytest.raises(InsufficientStock):
        await shop.reserve([("tea", 1)], by=FRIDAY)
    await shop.expect("tea", "po-2", FRIDAY, 1)
    assert (await waits(shop, second))[1] == (Promised("tea", MONDAY, FRIDAY),)
    await shop.audit()
    # Who waited is served first all the same, and what was late is so no longer.
    await shop.arrive("tea", "po-1", 6)
    row = await shop.row("tea")
    assert (row.backordered, row.reserved, row.terms) == (
        0,
        6,
        Terms(supplies={"po-2": Supply(FRIDAY, 1)}),
    )
    assert await events(shop) == [
        (PromiseSlipped, first.id, MONDAY, TUESDAY),
        (PromiseSlipped, second.id, MONDAY, None),
        (PromiseRestored, first.id, MONDAY, MONDAY),
        (PromiseSlipped, second.id, MONDAY, FRIDAY),
    ]
    await shop.audit()


async def test_whatever_takes_the_units_is_named_by_the_background_process(own_shop: Shop) -> None:
    await own_shop.receive("tea", 5)
    held = (await own_shop.reserve([("tea", 5)])).reservation
    await own_shop.expect("tea", "po-1", MONDAY, 3)
    waiting = (await own_shop.reserve([("tea", 3)], by=MONDAY)).reservation
    keeper = ShortfallKeeper(own_shop.inventory)
    await keeper.round()
    assert await events(own_shop) == []
    await own_shop.move(MovementType.SALE, "tea", 2)
    await keeper.round()
    assert (await waits(own_shop, waiting))[1] == (Promised("tea", MONDAY, None),)
    await own_shop.release(held.id)
    await keeper.round()
    assert (await waits(own_shop, waiting))[0] == ()
    late = (await own_shop.reserve([("tea", 3)], by=MONDAY)).reservation
    await own_shop.inventory.configure(
        own_shop.merchant,
        LOCATION,
        "tea",
        key=new_key(),
        safety_stock=3,
        expected_version=(await own_shop.row("tea")).version,
        actor=ACTOR,
    )
    await keeper.round()
    assert (await waits(own_shop, late))[1] == (Promised("tea", MONDAY, None),)
    await own_shop.receive("tea", 1)
    await own_shop.expect("tea", "po-1", MONDAY, 5)
    await keeper.round()
    assert (await waits(own_shop, late))[1] == (Promised("tea", MONDAY, MONDAY),)
    await own_shop.audit()


async def test_what_arrives_pays_a_deficit_before_who_waits(own_shop: Shop) -> None:
    await own_shop.expect("tea", "po-1", MONDAY, 10)
    first = (await own_shop.reserve([("tea", 4)], by=MONDAY)).reservation
    other = (await own_shop.reserve([("tea", 3)], by=MONDAY)).reservation
    await own_shop.move(MovementType.SALE, "tea", 5)
    await ShortfallKeeper(own_shop.inventory).round()
    row = await own_shop.row("tea")
    assert (row.deficit, row.available_to_promise[0].quantity) == (5, 0)
    assert [(await waits(own_shop, one))[1] for one in (first, other)] == [
        (Promised("tea", MONDAY, MONDAY),),
        (Promised("tea", MONDAY, None),),
    ]
    with pytest.raises(InsufficientStock):
        await own_shop.reserve([("tea", 1)], by=MONDAY)
    await own_shop.arrive("tea", "po-1", 10)
    assert (await waits(own_shop, first))[0] == ()
    assert (await waits(own_shop, other))[0] == (Line("tea", 2),)
    await own_shop.audit()


async def test_what_a_crash_left_unsaid_is_said_by_the_background_process(
    own_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await own_shop.expect("tea", "po-1", MONDAY, 200)
    held = await asyncio.gather(*(own_shop.reserve([("tea", 1)], by=MONDAY) for _ in range(200)))

    async def crash(self: Supplies, row: object) -> Reviewed:
        return Reviewed()

    monkeypatch.setattr(Supplies, "_review_soon", crash)
    await own_shop.cancel_supply("tea", "po-1")
    keeper = ShortfallKeeper(own_shop.inventory)
    await keeper.round()
    row = await own_shop.row("tea")
    assert row.terms is not None
    assert (row.terms.late, len(await events(own_shop))) == (200, 200)
    await keeper.round()
    assert len(await events(own_shop)) == 200, "each is told once"
    # One that ends is late no longer, and those behind it come nearer.
    await own_shop.release(held[0].reservation.id)
    await own_shop.expect("tea", "po-2", MONDAY, 199)
    await keeper.round()
    row = await own_shop.row("tea")
    assert row.terms is not None
    assert (row.terms.late, len(await events(own_shop))) == (0, 399)
    await own_shop.audit()


async def test_a_queue_is_played_through_beside_the_event_loop(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[str] = []
    real = Row.served_on

    def served_on(row: Row, queue: Sequence[tuple[str, Wait]]) -> list[str]:
        played.append(threading.current_thread().name)
        return real(row, queue)

    monkeypatch.setattr(Row, "served_on", served_on)
    await shop.expect("tea", "po-1", MONDAY, 10)
    await shop.reserve([("tea", 4)], by=MONDAY)
    await shop.expect("tea", "po-1", FRIDAY, 10)
    assert played
    assert threading.current_thread().name not in played


async def test_whom_pools_have_passed_by_makes_nobody_late(own_shop: Shop) -> None:
    keeper = ShortfallKeeper(own_shop.inventory)
    pools = {"store": Pool(minimum=3)}
    await own_shop.set_terms("tea", Terms(backorder_limit=5, channels=pools))
    undated = (await own_shop.reserve([("tea", 5)])).reservation
    await own_shop.expect("tea", "po-1", MONDAY, 10)
    dated = (await own_shop.reserve([("tea", 2)], by=MONDAY)).reservation
    # 3 of the 4 are kept from who has no day, and 2 of these go to who has one.
    reviewed = (await own_shop.expect("tea", "po-1", MONDAY, 4)).reviewed
    assert (reviewed.count, await waits(own_shop, dated)) == (
        0,
        ((Line("tea", 2),), (Promised("tea", MONDAY, MONDAY),)),
    )
    await keeper.round()
    await own_shop.set_terms("tea", Terms(backorder_limit=5))
    await keeper.round()
    assert (await waits(own_shop, dated))[1] == (Promised("tea", MONDAY, None),)
    await own_shop.set_terms("tea", Terms(backorder_limit=5, channels=pools))
    await keeper.round()
    assert (await waits(own_shop, dated))[1] == (Promised("tea", MONDAY, MONDAY),)
    await own_shop.arrive("tea", "po-1", 4)
    assert await waits(own_shop, undated) == ((Line("tea", 4),), ())
    assert await waits(own_shop, dated) == ((), ())
    assert [(one[0], one[-1]) for one in await events(own_shop)] == [
        (PromiseSlipped, None),
        (PromiseRestored, MONDAY),
    ]
    await own_shop.audit()


async def test_what_a_pool_is_guaranteed_is_not_to_come_for_others(shop: Shop) -> None:
    pools = {"store": Pool(minimum=3)}
    await shop.set_terms("tea", Terms(backorder_limit=6, channels=pools))
    await shop.reserve([("tea", 5)])
    await shop.receive("tea", 3)
    row = (await shop.expect("tea", "po-1", MONDAY, 6)).row
    assert (row.available, row.backordered) == (0, 5)
    # Of the 9 units 3 stay for the store and 5 are owed.
    assert row.available_to_promise == (Promisable(MONDAY, 1),)
    assert row.backorder_available == 7
    for by, room in ((MONDAY, 1), ("", 7)):
        with pytest.raises(InsufficientStock) as refused:
            await shop.reserve([("tea", 8)], by=by)
        assert refused.value.lines[0].available == room
    await shop.reserve([("tea", 3)], channel="store")
    await shop.reserve([("tea", 1)], by=MONDAY)
    await shop.audit()


@pytest.mark.parametrize("seed", range(3))
async def test_the_script_promises_just_what_the_row_says(shop: Shop, seed: int) -> None:
    draw = random.Random(seed)
    days = (MONDAY, TUESDAY, FRIDAY)
    await shop.receive("tea", draw.randint(1, 3))
    held: list[Reservation] = []
    for _ in range(40):
        chance = draw.random()
        if chance < 0.25:
            supply = f"po-{draw.randint(1, 4)}"
            await shop.expect("tea", supply, draw.choice(days), draw.randint(1, 6))
        elif chance < 0.4 and held:
            await shop.release(held.pop(draw.randrange(len(held))).id)
        elif chance < 0.5 and (row := await shop.row("tea")).terms and row.terms.supplies:
            await shop.arrive("tea", draw.choice(sorted(row.terms.supplies)), draw.randint(1, 3))
        else:
            row, by, units = await shop.row("tea"), draw.choice(days), draw.randint(1, 4)
            steps = [one for one in row.available_to_promise if one.by <= by]
            room = steps[-1].quantity if steps else row.available
            if units > room:
                with pytest.raises(InsufficientStock) as refused:
                    await shop.reserve([("tea", units)], by=by)
                assert refused.value.lines[0].available == room
                continue
            made = (await shop.reserve([("tea", units)], by=by)).reservation
            wanted = [one.by for one in steps if one.quantity >= units][:1]
            told = [one.by for one in made.promised]
            assert told == ([] if units <= row.available else wanted)
            held.append(made)
    await shop.audit()


async def test_a_delivery_in_a_feed_is_taken_off_its_supply_once(shop: Shop) -> None:
    till = Till(shop, "supplier")
    await shop.expect("tea", "po-1", MONDAY, 10)
    held = (await shop.reserve([("tea", 6)], by=MONDAY)).reservation
    first = await till.event("receipt", 4, sequence=2, ago=100, supply="po-1")
    other = msgspec.structs.replace(first, supply="po-2")
    assert await till.send(first, first, other) == [
        "applied",
        "duplicate",
        "idempotency_key_reused",
    ]
    row = await shop.row("tea")
    assert (row.on_hand, row.incoming, [one.quantity for one in row.available_to_promise]) == (
        4,
        6,
        [4],
    )
    # A later count has the units already: they came with their supply all the same.
    assert await till.tell("count", 4, sequence=3, ago=50) == "applied"
    assert await till.tell("receipt", 3, sequence=1, ago=200, supply="po-1") == "superseded"
    row = await shop.row("tea")
    assert (row.on_hand, row.incoming) == (4, 3)
    await shop.inventory.fill(shop.merchant, LOCATION, "tea")
    assert await waits(shop, held) == ((Line("tea", 2),), (Promised("tea", MONDAY, MONDAY),))
    # More came than was expected, and what nobody announced is there as well.
    assert await till.tell("transfer_in", 5, sequence=4, supply="po-1") == "applied"
    unknown = "applied: supply_not_found"
    assert await till.tell("receipt", 1, sequence=5, supply="po-1") == unknown
    assert await till.tell("receipt", 1, sequence=6, ago=60, supply="po-9") == (
        "superseded: supply_not_found"
    )
    await shop.inventory.fill(shop.merchant, LOCATION, "tea")
    row = await shop.row("tea")
    assert (row.terms, row.on_hand, row.available) == (None, 10, 4)
    assert await till.tell("sale", 1, sequence=7, supply="po-1") == "invalid_request"
    await shop.audit()


async def test_a_delivery_with_a_supply_that_is_not_expected_is_told(own_shop: Shop) -> None:
    till = Till(own_shop, "supplier")
    assert await till.tell("receipt", 1, supply="po-1") == "applied: supply_not_found"
    await own_shop.expect("tea", "po-1", MONDAY, 10)
    await till.tell("receipt", 4, supply="po-l", event_id="misspelt")
    # A later count has these units already; of the mugs nobody ever announced any.
    for sku in ("tea", "mug"):
        await till.tell("count", 9, sku=sku, ago=50)
        told = await till.tell("receipt", 2, sku=sku, ago=60, supply="po-7")
        assert told == "superseded: supply_not_found"
    unknown = [
        event
        for entry in await read_entries(own_shop.inventory.store, own_shop.keys())
        for operation in entry.operations
        for event in events_of(operation, sequence=1, at_ms=entry.at_ms, partition=0)
        if isinstance(event, SupplyUnknown)
    ]
    assert [(one.data.supply, one.data.units, one.data.expects) for one in unknown] == [
        ("po-l", 4, ("po-1",)),
        ("po-7", 2, ("po-1",)),
    ]
    assert (unknown[0].data.source, unknown[0].data.event_id) == ("supplier", "misspelt")


async def test_a_delivery_that_was_set_aside_keeps_its_supply(own_shop: Shop) -> None:
    shop, till = own_shop, Till(own_shop)
    await shop.expect("tea", "po-1", MONDAY, 10)
    late = await till.event("receipt", 4, ago=80 * 3_600, supply="po-1")
    assert await till.send(late, late) == ["quarantined: too_late", "duplicate"]
    (aside,) = (await till.feeds.quarantined(shop.merchant, LOCATION)).items
    assert (aside.supply, (await shop.row("tea")).incoming) == ("po-1", 10)
    await shop.audit()
    await till.feeds.policies.write(shop.merchant, PolicyPart(late_hours=96))
    for verdict in ("applied", "absent"):
        taken = await till.feeds.retry(
            shop.merchant, LOCATION, aside.id, actor=ACTOR, read=read_event
        )
        assert taken.verdict == verdict
    row = await shop.row("tea")
    assert (row.on_hand, row.incoming) == (4, 6)
    await shop.audit()
