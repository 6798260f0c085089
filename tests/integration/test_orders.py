"""Orders that span locations, as a checkout, a sweeper and a picker see them."""

import asyncio
from typing import Any

import pytest

from engine.keys import order_id
from engine.model import (
    BuyerCap,
    Line,
    MovementType,
    Pool,
    Promised,
    ReservationState,
    Terms,
)
from engine.order_driver import OrderDriver
from engine.order_records import GRACE_MS, Order, OrderKind, OrderState, PartState, WantedLine
from engine.order_requests import Options
from engine.order_steps import OrderSteps
from engine.orders import Orders
from engine.outcomes import (
    BackorderUnfilled,
    IdempotencyKeyReused,
    InsufficientOnHand,
    InsufficientStock,
    InvalidCommand,
    OrderEnded,
    OrderNotFound,
    ReservationEnded,
)
from engine.places import Place, Places
from engine.sourcing import Strategy
from tests.shop import ACTOR, LOCATION, Shop, new_key

MONDAY, TUESDAY, FRIDAY = "2026-12-07", "2026-12-08", "2026-12-11"
TWO_PLACES = [WantedLine("tea", 2, "depot"), WantedLine("milk", 1, "harbour")]


@pytest.fixture
def orders(shop: Shop) -> Orders:
    return Orders(shop.inventory)


async def stock(shop: Shop) -> None:
    await shop.receive("tea", 5, location="depot")
    await shop.receive("milk", 3, location="harbour")


async def place(orders: Orders, shop: Shop, *lines: WantedLine, key: str = "k") -> Order:
    found = await orders.place(shop.merchant, lines or TWO_PLACES, key=key, actor=ACTOR)
    return found.order


async def available(shop: Shop) -> tuple[int, int]:
    tea = await shop.row("tea", location="depot")
    milk = await shop.row("milk", location="harbour")
    return tea.available, milk.available


async def test_an_order_is_held_confirmed_and_committed(shop: Shop, orders: Orders) -> None:
    await stock(shop)
    order = await place(orders, shop)
    assert order.state is OrderState.HELD
    assert [(part.location, part.lines) for part in order.parts] == [
        ("depot", (Line("tea", 2),)),
        ("harbour", (Line("milk", 1),)),
    ]
    assert await available(shop) == (3, 2)
    again = await orders.place(shop.merchant, TWO_PLACES, key="k", actor=ACTOR)
    assert (again.order, again.replayed) == (order, True)
    with pytest.raises(IdempotencyKeyReused):
        await place(orders, shop, WantedLine("tea", 1, "depot"))
    for replayed in (False, True):
        result = await orders.confirm(shop.merchant, order.id, actor=ACTOR)
        assert (result.order.state, result.replayed) == (OrderState.CONFIRMED, replayed)
        assert {part.state for part in result.order.parts} == {PartState.CONFIRMED}
    picked = await orders.commit(
        shop.merchant, order.id, location="depot", picks=[Line("tea", 1)], actor=ACTOR
    )
    assert picked.order.state is OrderState.CONFIRMED
    assert picked.order.missing() == [Line("tea", 1)]
    for replayed in (False, True):
        done = await orders.commit(shop.merchant, order.id, actor=ACTOR)
        assert (done.order.state, done.replayed) == (OrderState.FULFILLED, replayed)
    assert await available(shop) == (4, 2)
    assert await orders.read(shop.merchant, order.id) == done.order
    with pytest.raises(OrderEnded):
        await orders.cancel(shop.merchant, order.id, actor=ACTOR)
    with pytest.raises(OrderNotFound):
        await orders.read(f"{shop.merchant}-other", order.id)
    await shop.audit()


async def test_what_does_not_fit_holds_nothing_and_the_key_may_be_tried_again(
    shop: Shop, orders: Orders
) -> None:
    await stock(shop)
    for _ in range(2):
        with pytest.raises(InsufficientStock) as refused:
            await place(orders, shop, *TWO_PLACES, WantedLine("soap", 1, "harbour"))
        assert [line.sku for line in refused.value.lines] == ["soap"]
        assert await available(shop) == (5, 3)
    await shop.receive("soap", 1, location="harbour")
    order = await place(orders, shop, *TWO_PLACES, WantedLine("soap", 1, "harbour"))
    assert order.state is OrderState.HELD
    assert await available(shop) == (3, 2)
    await shop.audit()


async def test_parts_of_a_decided_order_never_expire_and_others_always_do(own_shop: Shop) -> None:
    """The coordinator dies right after the decision, or before it, and nobody drives."""
    shop = own_shop
    await stock(shop)

    def die(step: str) -> None:
        if step == "before confirm part 1":
            raise KeyboardInterrupt

    orders = Orders(shop.inventory, watch=die)
    placed = await orders.place(shop.merchant, TWO_PLACES, key="k", order_ref="web:1", actor=ACTOR)
    decided, undecided = placed.order, await place(orders, shop, key="other")
    with pytest.raises(KeyboardInterrupt):
        await orders.confirm(shop.merchant, decided.id, actor=ACTOR)
    await shop.set_clock(undecided.expires_at_ms + 60_000)
    expired = await shop.inventory.expire_due(0)
    assert (expired.expired, await available(shop)) == (2, (3, 2))
    for part in decided.parts:
        found = await shop.inventory.reservation(shop.merchant, part.reservation)
        assert (found.state, found.order_ref) == (ReservationState.CONFIRMED, "web:1")
    with pytest.raises(OrderEnded) as refused:
        await Orders(shop.inventory).confirm(shop.merchant, undecided.id, actor=ACTOR)
    assert refused.value.state == "expired"
    await shop.set_clock(undecided.expires_at_ms + 120_000)
    await OrderDriver(shop.inventory).round()
    now = await orders.read(shop.merchant, decided.id)
    assert (now.state, now.settled) == (OrderState.CONFIRMED, True)
    await shop.audit()


async def test_parts_may_be_ended_by_their_own_ids(shop: Shop, orders: Orders) -> None:
    await stock(shop)
    lost = await place(orders, shop)
    await shop.release(lost.parts[0].reservation)
    with pytest.raises(OrderEnded) as refused:
        await orders.confirm(shop.merchant, lost.id, actor=ACTOR)
    assert refused.value.reason == "the part at depot was released"
    assert await available(shop) == (5, 3), "the other part is given back"
    order = await place(orders, shop, key="other")
    order = (await orders.confirm(shop.merchant, order.id, actor=ACTOR)).order
    await shop.commit(order.parts[0].reservation)
    await shop.release(order.parts[1].reservation)
    seen = await orders.read(shop.merchant, order.id)
    assert [part.state for part in seen.parts] == [PartState.COMMITTED, PartState.RELEASED]
    assert seen.missing() == [Line("milk", 1)]
    found = await orders.look_again(order, actor=ACTOR)
    assert found.state is OrderState.FULFILLED
    await shop.audit()


async def test_a_part_confirmed_for_somebody_elses_order_is_confirmed(
    shop: Shop, orders: Orders
) -> None:
    await stock(shop)
    order = await place(orders, shop)
    part = order.parts[0].reservation
    await shop.inventory.confirm(shop.merchant, part, order_ref="till 7", actor=ACTOR)
    placed = await orders.place(shop.merchant, TWO_PLACES, key="2", order_ref="web:1", actor=ACTOR)
    theirs = placed.order.parts[0].reservation
    await shop.inventory.confirm(shop.merchant, theirs, order_ref="till 7", actor=ACTOR)
    for one in (order, placed.order):
        found = (await orders.confirm(shop.merchant, one.id, actor=ACTOR)).order
        assert (found.state, found.settled) == (OrderState.CONFIRMED, True)
        assert {part.state for part in found.parts} == {PartState.CONFIRMED}
        done = await orders.commit(shop.merchant, one.id, actor=ACTOR)
        assert done.order.state is OrderState.FULFILLED
    await shop.audit()


async def test_a_part_that_a_rows_terms_refuse_is_sourced_elsewhere_or_fails_the_order(
    own_shop: Shop,
) -> None:
    shop, terms = own_shop, Terms(buyer_cap=BuyerCap(1, 60_000))
    orders = Orders(shop.inventory)
    await shop.receive("tea", 5)
    await shop.receive("milk", 1, location="annex")
    await shop.set_terms("tea", terms)
    for lines in ([WantedLine("tea", 1)], [WantedLine("milk", 1, "annex"), WantedLine("tea", 1)]):
        with pytest.raises(InvalidCommand) as refused:
            await place(orders, shop, *lines, key=str(len(lines)))
        assert refused.value.field == "buyer"
    await shop.receive("tea", 1, location="annex")
    order = await place(orders, shop, WantedLine("tea", 1))
    assert [part.location for part in order.parts if part.counts] == ["annex"]
    assert (await shop.row("milk", location="annex")).reserved == 0
    await shop.audit()


async def test_units_that_have_not_come_keep_their_part(shop: Shop, orders: Orders) -> None:
    await shop.receive("milk", 1, location="harbour")
    await shop.set_terms("tea", Terms(backorder_limit=5))
    wanted = [WantedLine("tea", 2, LOCATION), WantedLine("milk", 1, "harbour")]
    order = await place(orders, shop, *wanted)
    with pytest.raises(BackorderUnfilled):
        await orders.commit(shop.merchant, order.id, actor=ACTOR)
    found = await orders.read(shop.merchant, order.id)
    assert (found.state, found.settled) == (OrderState.CONFIRMED, True)
    states = {part.location: part.state for part in found.parts}
    assert states == {LOCATION: PartState.CONFIRMED, "harbour": PartState.COMMITTED}
    await shop.receive("tea", 2)
    done = await orders.commit(shop.merchant, order.id, actor=ACTOR)
    assert done.order.state is OrderState.FULFILLED
    await shop.audit()


async def test_an_order_by_a_day_is_promised_what_comes_by_then(shop: Shop, orders: Orders) -> None:
    await shop.receive("tea", 2)
    await shop.receive("tea", 3, location="depot")
    await shop.expect("tea", "po-1", MONDAY, 4)
    await shop.expect("tea", "po-2", FRIDAY, 4)
    pool = Terms(channels={"app": Pool(minimum=1), "online": Pool(cap=9)})
    await shop.set_terms("tea", pool)

    async def place_by(units: int, by: str, key: str) -> Order:
        lines, options = [WantedLine("tea", units)], Options(by=by)
        found = await orders.place(shop.merchant, lines, key=key, options=options, actor=ACTOR)
        return found.order

    with pytest.raises(InsufficientStock):
        await place_by(9, "", "none")
    # What is on the shelves goes first, wherever it is.
    shelf = await place_by(3, MONDAY, "shelf")
    assert [(part.location, part.promised) for part in shelf.parts] == [("depot", ())]
    await orders.cancel(shop.merchant, shelf.id, actor=ACTOR)
    with pytest.raises(InsufficientStock) as refused:
        await place_by(9, MONDAY, "too many")
    assert refused.value.lines[0].available == 8
    made = await place_by(8, MONDAY, "monday")
    parts = {part.location: part for part in made.parts}
    assert (parts[LOCATION].lines, parts[LOCATION].backordered) == (
        (Line("tea", 5),),
        (Line("tea", 4),),
    )
    assert parts[LOCATION].promised == (Promised("tea", MONDAY, MONDAY),)
    assert await place_by(8, MONDAY, "monday") == made
    with pytest.raises(IdempotencyKeyReused):
        await place_by(8, FRIDAY, "monday")
    for options in (Options(by="soon"), Options(by=MONDAY, stock_only=True)):
        with pytest.raises(InvalidCommand):
            await orders.place(shop.merchant, TWO_PLACES, key="bad", options=options, actor=ACTOR)
    await shop.expect("tea", "po-1", TUESDAY, 4)
    (now,) = [x for x in (await orders.read(shop.merchant, made.id)).parts if x.promised]
    assert now.promised == (Promised("tea", MONDAY, TUESDAY),)
    await shop.arrive("tea", "po-1", 4)
    done = await orders.commit(shop.merchant, made.id, actor=ACTOR)
    assert done.order.state is OrderState.FULFILLED
    await shop.audit()


async def test_an_order_that_cannot_be_driven_does_not_keep_the_others_waiting(
    own_shop: Shop,
) -> None:
    shop = own_shop
    await stock(shop)

    def die(step: str) -> None:
        if step == "before hold part 1":
            raise KeyboardInterrupt

    orders, ids = Orders(shop.inventory, watch=die), []
    for key in ("damaged", "whole"):
        with pytest.raises(KeyboardInterrupt):
            await place(orders, shop, key=key)
        ids.append(order_id(OrderKind.ORDER, shop.merchant, key, shop.inventory.partitions))
    damaged, whole = ids
    keys = shop.keys()
    await shop.client.execute_command("HSET", keys.order(damaged), "plan", "no plan")
    now_ms = await shop.inventory.now_ms((shop.merchant, "depot")) + GRACE_MS
    await shop.set_clock(now_ms)
    await OrderDriver(shop.inventory).round()
    assert (await orders.read(shop.merchant, whole)).state is OrderState.HELD
    due_ms = int(await shop.client.execute_command("ZSCORE", keys.driving, damaged))
    assert due_ms >= now_ms + GRACE_MS, "it is looked at later"


async def test_a_shelf_that_has_fewer_keeps_its_part(shop: Shop, orders: Orders) -> None:
    await stock(shop)
    order = await place(orders, shop)
    await shop.move(MovementType.COUNT, "tea", 1, location="depot")
    with pytest.raises(InsufficientOnHand):
        await orders.commit(shop.merchant, order.id, actor=ACTOR)
    now = await orders.read(shop.merchant, order.id)
    assert [part.state for part in now.parts] == [PartState.CONFIRMED, PartState.COMMITTED]
    with pytest.raises(InvalidCommand) as refused:
        await orders.commit(
            shop.merchant, order.id, location="depot", picks=[Line("tea", 3)], actor=ACTOR
        )
    assert refused.value.field == "lines[0].quantity"
    await orders.cancel(shop.merchant, order.id, reason="too few", actor=ACTOR)
    now = await orders.read(shop.merchant, order.id)
    assert [part.state for part in now.parts] == [PartState.RELEASED, PartState.COMMITTED]
    await shop.audit()


async def test_a_crowd_of_orders_never_promises_a_unit_twice(shop: Shop) -> None:
    """Thirty shoppers want a pair from two shelves, in either order, which suffice for ten."""
    await shop.receive("tea", 10, location="depot")
    await shop.receive("milk", 10, location="harbour")
    lines = [WantedLine("tea", 1), WantedLine("milk", 1)]
    two = (Orders(shop.inventory), Orders(shop.inventory))
    answers = await asyncio.gather(
        *(
            two[i % 2].place(shop.merchant, lines[:: 1 - 2 * (i % 2)], key=new_key(), actor=ACTOR)
            for i in range(30)
        ),
        return_exceptions=True,
    )
    held = [one for one in answers if not isinstance(one, BaseException)]
    assert all(isinstance(one, InsufficientStock) for one in answers if one not in held)
    assert 1 <= len(held) <= 10
    assert await available(shop) == (10 - len(held), 10 - len(held))
    await shop.audit()


async def test_lines_without_a_location_are_sourced_by_what_is_known_of_places(
    shop: Shop, orders: Orders
) -> None:
    places = Places(shop.inventory.store)
    for location, latitude, priority, ships in (
        ("leeds", 53.8, 2, True),
        ("york", 53.96, 1, True),
        ("attic", 51.5, 0, False),
    ):
        await shop.receive("tea", 5, location=location)
        place = Place(latitude=latitude, longitude=-1.5, priority=priority, ships=ships)
        await places.write(shop.merchant, location, place)
    assert (await places.read(shop.merchant, "attic")).ships is False
    chosen = {}
    for strategy in Strategy:
        options = Options(strategy=strategy, latitude=51.5, longitude=-1.5)
        found = await orders.place(
            shop.merchant, [WantedLine("tea", 1)], key=strategy, options=options, actor=ACTOR
        )
        (part,) = found.order.parts
        chosen[strategy.value] = part.location
        assert part.why
        why = {one.location: one.why for one in found.order.plan.passed_over}
        assert why["attic"] == "it does not ship"
        assert len(why) == 2
    assert chosen == {
        "priority": "york",
        "distance": "leeds",
        "fewest_splits": "york",
        "most_stock": "leeds",
    }
    with pytest.raises(InvalidCommand) as refused:
        await orders.place(
            shop.merchant,
            [WantedLine("tea", 1)],
            key="k",
            options=Options(strategy=Strategy.DISTANCE),
            actor=ACTOR,
        )
    assert refused.value.field == "sourcing.latitude"


async def test_orders_are_listed_in_pages_and_by_reference(shop: Shop, orders: Orders) -> None:
    await shop.receive("tea", 50, location="depot")
    made = []
    for number in range(5):
        found = await orders.place(
            shop.merchant,
            [WantedLine("tea", 1, "depot")],
            key=f"k{number}",
            order_ref=f"web:{number % 2}",
            actor=ACTOR,
        )
        made.append(found.order.id)
    seen, after = [], None
    while True:
        page = await orders.listed(shop.merchant, after=after, limit=2)
        seen += [one.id for one in page.items]
        after = page.next_after
        if after is None:
            break
    assert sorted(seen) == sorted(made)
    referred = await orders.listed(shop.merchant, order_ref="web:1")
    assert sorted(one.id for one in referred.items) == sorted(made[1::2])
    assert (await orders.listed(shop.merchant, order_ref="web")).items == ()


async def test_an_ended_order_is_forgotten_after_its_time(own_shop: Shop) -> None:
    shop = own_shop
    await stock(shop)
    orders, driver = Orders(shop.inventory), OrderDriver(shop.inventory)
    order = await place(orders, shop)
    await orders.cancel(shop.merchant, order.id, actor=ACTOR)
    await driver.round()
    ended = await orders.read(shop.merchant, order.id)
    await shop.set_clock(ended.ended_at_ms + 24 * 3_600_000 + 60_000)
    await driver.round()
    with pytest.raises(OrderNotFound):
        await orders.read(shop.merchant, order.id)
    keys = shop.keys()
    for index in (keys.orders(shop.merchant), keys.order_refs(shop.merchant), keys.driving):
        assert await shop.client.execute_command("EXISTS", index) == 0


async def two_shelves_of_tea(shop: Shop, orders: Orders) -> Order:
    """Confirm an order of 4 teas at the depot, which leaves its last one; the mill has 6."""
    await shop.receive("tea", 5, location="depot")
    await shop.receive("tea", 6, location="mill")
    await shop.receive("milk", 3, location="harbour")
    placed = await place(orders, shop, WantedLine("tea", 4, "depot"), WantedLine("milk", 1))
    return (await orders.confirm(shop.merchant, placed.id, actor=ACTOR)).order


async def teas(shop: Shop) -> tuple[int, int]:
    depot, mill = [await shop.row("tea", location=place) for place in ("depot", "mill")]
    return depot.reserved, mill.reserved


async def test_what_a_location_cannot_fulfil_comes_from_elsewhere(
    shop: Shop, orders: Orders
) -> None:
    order = await two_shelves_of_tea(shop, orders)
    for replayed in (False, True):
        result = await orders.resource(shop.merchant, order.id, "depot", key="a", actor=ACTOR)
        assert result.replayed is replayed
        assert await teas(shop) == (0, 4)
    moved = result.order
    assert [(p.location, p.state, p.replaces) for p in moved.parts] == [
        ("depot", PartState.RELEASED, 0),
        ("harbour", PartState.CONFIRMED, 0),
        ("mill", PartState.CONFIRMED, 1),
    ]
    assert moved.parts[2].why
    assert (moved.state, moved.missing(), moved.settled) == (OrderState.CONFIRMED, [], True)
    with pytest.raises(IdempotencyKeyReused):
        await orders.resource(shop.merchant, order.id, "mill", key="a", actor=ACTOR)
    with pytest.raises(InvalidCommand, match="elsewhere already"):
        await orders.resource(shop.merchant, order.id, "depot", key="b", actor=ACTOR)
    with pytest.raises(InvalidCommand, match="no part"):
        await orders.resource(shop.merchant, order.id, "attic", key="b", actor=ACTOR)
    # The mill finds 3 of 4, and the depot, which could not, is not asked again.
    picks = [Line("tea", 3)]
    await orders.commit(shop.merchant, order.id, location="mill", picks=picks, actor=ACTOR)
    with pytest.raises(InsufficientStock) as refused:
        await orders.resource(shop.merchant, order.id, "mill", key="b", actor=ACTOR)
    assert [(x.sku, x.requested, x.available) for x in refused.value.lines] == [("tea", 1, 0)]
    assert dict(refused.value.passed_over) == {
        "depot": "it could not fulfil its part",
        "mill": "it could not fulfil its part",
        "harbour": "has none of it",
    }
    await shop.receive("tea", 1, location="harbour")
    with pytest.raises(InsufficientStock) as refused:
        await orders.resource(
            shop.merchant, order.id, "mill", key="b", without=["harbour"], actor=ACTOR
        )
    assert dict(refused.value.passed_over)["harbour"] == "it was ruled out"
    again = (await orders.resource(shop.merchant, order.id, "mill", key="b", actor=ACTOR)).order
    assert (again.parts[3].location, again.parts[3].replaces, again.missing()) == ("harbour", 3, [])
    # Both parts at the harbour are picked in one go, and told again in one go.
    for replayed in (False, True):
        done = await orders.commit(
            shop.merchant,
            order.id,
            location="harbour",
            picks=[Line("milk", 1), Line("tea", 1)],
            actor=ACTOR,
        )
        assert (done.order.state, done.replayed) == (OrderState.FULFILLED, replayed)
    assert done.order.missing() == []
    assert await teas(shop) == (0, 0)
    await shop.audit()


async def test_a_part_that_is_picked_while_it_is_sourced_anew_stays_picked(
    shop: Shop, orders: Orders
) -> None:
    order = await two_shelves_of_tea(shop, orders)

    class Picker(OrderSteps):
        async def release_part(self, *args: Any, **kwargs: Any) -> Any:
            await shop.commit(order.parts[0].reservation)
            return await super().release_part(*args, **kwargs)

    overtaken = Orders(shop.inventory, steps=Picker(shop.inventory))
    with pytest.raises(ReservationEnded):
        await overtaken.resource(shop.merchant, order.id, "depot", key="a", actor=ACTOR)
    now = await orders.read(shop.merchant, order.id)
    assert [(p.location, p.state) for p in now.parts if p.state is not PartState.RELEASED] == [
        ("depot", PartState.COMMITTED),
        ("harbour", PartState.CONFIRMED),
    ]
    assert (await teas(shop), now.missing()) == ((0, 0), [])
    await shop.audit()


async def test_many_orders_that_are_sourced_anew_at_once_promise_no_unit_twice(
    shop: Shop, orders: Orders
) -> None:
    """Eight orders leave the depot, each asked by two at once, and elsewhere is room for five."""
    await shop.receive("tea", 8, location="depot")
    made = [
        await place(orders, shop, WantedLine("tea", 1, "depot"), key=f"k{number}")
        for number in range(8)
    ]
    for number, units in enumerate((2, 3)):
        await shop.receive("tea", units, location=f"mill {number}")
    answers = await asyncio.gather(
        *(
            Orders(shop.inventory).resource(
                shop.merchant, order.id, "depot", key=order.id, actor=ACTOR
            )
            for order in made * 2
        ),
        return_exceptions=True,
    )
    moved = {one.order.id for one in answers if not isinstance(one, BaseException)}
    refused = [one for one in answers if isinstance(one, BaseException)]
    assert all(isinstance(one, InsufficientStock) for one in refused), refused
    rows = [await shop.row("tea", location=place) for place in ("depot", "mill 0", "mill 1")]
    assert [row.reserved for row in rows] == [8 - len(moved), 2, 3]
    assert len(moved) == 5
    for order in made:
        now = await orders.read(shop.merchant, order.id)
        at_depot = any(p.location == "depot" and p.state.is_open for p in now.parts)
        assert at_depot is (order.id not in moved)
        assert (now.state, now.settled) == (OrderState.HELD, True)
    await shop.audit()
