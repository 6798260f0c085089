"""Rows on terms: units that are promised before they come."""

import asyncio

import pytest
from structlog.testing import capture_logs

from engine.event_making import events_of
from engine.events import BackorderFilled
from engine.ledger import read_entries
from engine.model import Line, MovementType, Reservation, Terms
from engine.outcomes import (
    BackorderUnfilled,
    IdempotencyKeyReused,
    InsufficientStock,
    InvalidCommand,
    ShortLine,
    StoreFault,
    VersionConflict,
)
from engine.shortfalls import LOOK_AGAIN_SECONDS, ShortfallKeeper
from tests.shop import ACTOR, LOCATION, Shop, new_key


async def test_a_row_promises_up_to_its_limit_beyond_what_is_there(shop: Shop) -> None:
    await shop.receive("tea", 2)
    await shop.receive("milk", 5)
    await shop.set_terms("tea", Terms(backorder_limit=3))
    result = await shop.reserve([("tea", 4), ("milk", 1)])
    held = result.reservation
    assert held.lines == (Line("tea", 4), Line("milk", 1))
    assert held.backordered == (Line("tea", 2),)
    assert held == await shop.inventory.reservation(shop.merchant, held.id)
    row = await shop.row("tea")
    assert (row.on_hand, row.reserved, row.backordered, row.available) == (2, 2, 2, 0)
    assert (row.backorder_available, row.shortfall) == (1, 0), "a backorder is no oversell"
    with pytest.raises(InsufficientStock) as refused:
        await shop.reserve([("tea", 2), ("milk", 1)])
    assert refused.value.lines == (ShortLine("tea", 2, 1),)
    part = (await shop.reserve([("tea", 2), ("milk", 1)], partial=True)).reservation
    assert (part.lines, part.missing) == ((Line("tea", 1), Line("milk", 1)), (Line("tea", 1),))
    await shop.audit()


async def test_a_caller_may_take_only_what_is_there(shop: Shop) -> None:
    await shop.receive("tea", 2)
    await shop.set_terms("tea", Terms(backorder_limit=3))
    with pytest.raises(InsufficientStock) as refused:
        await shop.reserve([("tea", 3)], stock_only=True)
    assert refused.value.lines == (ShortLine("tea", 3, 2),)
    held = (await shop.reserve([("tea", 2)], stock_only=True)).reservation
    assert held.backordered == ()
    await shop.audit()


async def test_a_retry_is_told_what_the_first_attempt_was(shop: Shop) -> None:
    await shop.set_terms("tea", Terms(backorder_limit=3))
    first = await shop.reserve([("tea", 2)], key="cart")
    again = await shop.reserve([("tea", 2)], key="cart")
    assert (again.replayed, again.reservation) == (True, first.reservation)
    with pytest.raises(IdempotencyKeyReused):
        await shop.reserve([("tea", 2)], key="cart", stock_only=True)
    await shop.audit()


async def test_what_comes_goes_to_backorders_before_anyone_new(shop: Shop) -> None:
    await shop.set_terms("tea", Terms(backorder_limit=3))
    await shop.reserve([("tea", 3)])
    await shop.receive("tea", 4)
    assert (await shop.row("tea")).available == 1
    with pytest.raises(InsufficientStock):
        await shop.reserve([("tea", 2)], stock_only=True)
    await shop.audit()


async def test_units_that_have_not_come_cannot_leave(shop: Shop) -> None:
    await shop.receive("tea", 2)
    await shop.set_terms("tea", Terms(backorder_limit=3))
    held = (await shop.reserve([("tea", 4)])).reservation
    with pytest.raises(BackorderUnfilled) as refused:
        await shop.commit(held.id)
    assert refused.value.lines == (ShortLine("tea", 4, 2),)
    with pytest.raises(BackorderUnfilled):
        await shop.commit(held.id, [("tea", 3)])
    committed = (await shop.commit(held.id, [("tea", 2)])).reservation
    assert (committed.picked, committed.backordered) == ((Line("tea", 2),), ())
    row = await shop.row("tea")
    assert (row.on_hand, row.reserved, row.backordered) == (0, 0, 0)
    await shop.audit()


async def test_a_backorder_that_ends_frees_its_place(shop: Shop) -> None:
    await shop.receive("tea", 1)
    await shop.set_terms("tea", Terms(backorder_limit=3))
    one = (await shop.reserve([("tea", 2)])).reservation
    other = (await shop.reserve([("tea", 2)], ttl_ms=1_000)).reservation
    await shop.release(one.id)
    row = await shop.row("tea")
    assert (row.reserved, row.backordered) == (0, 2)
    await shop.set_clock(other.expires_at_ms or 0)
    await shop.inventory.expire_due(shop.keys().partition)
    row = await shop.row("tea")
    assert (row.reserved, row.backordered, row.available) == (0, 0, 1)
    await shop.audit()


async def test_terms_that_end_leave_the_backorders_to_be_seen(shop: Shop) -> None:
    await shop.set_terms("tea", Terms(backorder_limit=2))
    held = (await shop.reserve([("tea", 2)])).reservation
    row = (await shop.set_terms("tea", Terms())).row
    assert (row.backordered, row.terms) == (2, Terms())
    with pytest.raises(InsufficientStock):
        await shop.reserve([("tea", 1)])
    await shop.release(held.id)
    assert (await shop.set_terms("tea", Terms())).row.terms is None
    await shop.audit()


async def test_terms_are_set_once_under_a_key_and_at_a_version(shop: Shop) -> None:
    first = await shop.set_terms("tea", Terms(backorder_limit=2), key="k", expected_version=0)
    again = await shop.set_terms("tea", Terms(backorder_limit=2), key="k", expected_version=0)
    assert (again.replayed, again.row) == (True, first.row)
    with pytest.raises(IdempotencyKeyReused):
        await shop.set_terms("tea", Terms(backorder_limit=3), key="k", expected_version=0)
    with pytest.raises(VersionConflict):
        await shop.set_terms("tea", Terms(backorder_limit=3), expected_version=0)
    with pytest.raises(InvalidCommand):
        await shop.inventory.set_terms(
            shop.merchant,
            LOCATION,
            "tea",
            Terms(backorder_limit=-1),
            key=new_key(),
            expected_version=1,
            actor=ACTOR,
        )
    moved = await shop.receive("tea", 1)
    assert moved.row == await shop.row("tea")
    await shop.audit()


async def test_what_comes_fills_backorders_in_order_of_promise(shop: Shop) -> None:
    await shop.set_terms("tea", Terms(backorder_limit=20))
    first, second, third = [(await shop.reserve([("tea", 3)])).reservation for _ in range(3)]
    await shop.inventory.confirm(shop.merchant, second.id, actor=ACTOR)
    moved = await shop.receive("tea", 4)
    assert (moved.row.on_hand, moved.row.available) == (4, 0)
    row = await shop.row("tea")
    assert (row.reserved, row.backordered) == (4, 5)

    async def waits(reservation: Reservation) -> tuple[Line, ...]:
        return (await shop.inventory.reservation(shop.merchant, reservation.id)).backordered

    assert [await waits(one) for one in (first, second, third)] == [
        (),
        (Line("tea", 2),),
        (Line("tea", 3),),
    ]
    assert (await shop.commit(first.id)).reservation.picked == (Line("tea", 3),)
    await shop.audit()
    await shop.receive("tea", 9)
    row = await shop.row("tea")
    assert (row.on_hand, row.reserved, row.backordered, row.available) == (10, 6, 0, 4)
    events = [
        (event.data.reservation, event.data.units, event.data.left)
        for entry in await read_entries(shop.inventory.store, shop.keys())
        for operation in entry.operations
        if operation.merchant == shop.merchant
        for event in events_of(operation, sequence=1, at_ms=entry.at_ms, partition=0)
        if isinstance(event, BackorderFilled)
    ]
    assert events == [(first.id, 3, 0), (second.id, 1, 2), (second.id, 2, 0), (third.id, 3, 0)]
    await shop.audit()


async def test_units_that_others_give_back_fill_backorders(shop: Shop) -> None:
    await shop.receive("tea", 2)
    await shop.set_terms("tea", Terms(backorder_limit=20))
    held = (await shop.reserve([("tea", 2)])).reservation
    late = (await shop.reserve([("tea", 1)])).reservation
    await shop.release(held.id)
    assert (await shop.row("tea")).available == 1, "one of the two is spoken for"
    # A commit that comes before the background process has it filled itself.
    assert (await shop.commit(late.id)).reservation.picked == (Line("tea", 1),)
    other = (await shop.reserve([("tea", 3)])).reservation
    assert other.backordered == (Line("tea", 2),)
    await shop.inventory.configure(
        shop.merchant,
        LOCATION,
        "tea",
        key=new_key(),
        safety_stock=1,
        expected_version=(await shop.row("tea")).version,
        actor=ACTOR,
    )
    await shop.move(MovementType.COUNT, "tea", 3)
    row = await shop.row("tea")
    assert (row.reserved, row.backordered) == (2, 1), "a unit is kept back from backorders too"
    await shop.audit()


async def test_the_background_process_fills_what_nobody_else_did(own_shop: Shop) -> None:
    await own_shop.receive("tea", 1)
    await own_shop.set_terms("tea", Terms(backorder_limit=500))
    held = (await own_shop.reserve([("tea", 1)])).reservation
    for _ in range(2):
        await asyncio.gather(*(own_shop.reserve([("tea", 1)]) for _ in range(70)))
    await own_shop.release(held.id)
    assert (await own_shop.row("tea")).backordered == 140
    keeper = ShortfallKeeper(own_shop.inventory)
    await keeper.round()
    assert (await own_shop.row("tea")).backordered == 139
    await own_shop.receive("tea", 138)
    row = await own_shop.row("tea")
    assert (row.reserved, row.backordered) == (139, 1), "more than one call fills"
    await own_shop.audit()


async def test_a_damaged_reservation_keeps_no_other_row_waiting(
    own_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    inventory, keys = own_shop.inventory, own_shop.keys(LOCATION)
    waiting = {}
    for sku in ("tea", "milk"):
        await own_shop.receive(sku, 1)
        await own_shop.set_terms(sku, Terms(backorder_limit=5))
        held = (await own_shop.reserve([(sku, 1)])).reservation
        waiting[sku] = (await own_shop.reserve([(sku, 1)])).reservation.id
        await own_shop.release(held.id)
    damaged = keys.reservation(waiting["tea"])
    (kept,) = await inventory.store.read([("HGET", damaged, "waiting")])
    await inventory.store.read([("HSET", damaged, "waiting", "\xc1")])
    seconds = [0.0]
    keeper = ShortfallKeeper(inventory, monotonic=lambda: seconds[0])

    async def refuse(*place: str) -> int:
        raise StoreFault("fill", "NOPERM this user has no permissions to run it")

    # What is no matter of a row is waited out: nothing is passed by.
    with monkeypatch.context() as patched:
        patched.setattr(inventory, "fill", refuse)
        with pytest.raises(StoreFault):
            await keeper.round()

    await keeper.round()
    assert (await own_shop.row("milk")).backordered == 0
    await own_shop.move(MovementType.COUNT, "milk", 0)
    with capture_logs() as logged:
        await keeper.round()
    assert [one["event"] for one in logged] == ["a shortfall names nobody", "a shortfall"]

    await inventory.store.read([("HSET", damaged, "waiting", kept)])
    seconds[0] += LOOK_AGAIN_SECONDS
    await keeper.round()
    assert (await own_shop.row("tea")).backordered == 0
    await own_shop.audit()
