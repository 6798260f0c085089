"""Orders whose lines ask for more than units of rows: kits, substitutes, channels and buyers."""

import asyncio
from typing import Any

import msgspec
import pytest

from engine.keys import digest
from engine.kits import check_kit
from engine.model import BuyerCap, Line, Pool, ProposalDecision, Terms
from engine.order_driver import OrderDriver
from engine.order_records import Order, OrderBody, OrderState, PartState, Plan, WantedLine
from engine.order_requests import Options
from engine.order_steps import OrderResult, OrderSteps
from engine.orders import Orders
from engine.outcomes import (
    BuyerCapExceeded,
    IdempotencyKeyReused,
    InsufficientStock,
    InvalidCommand,
    OrderEnded,
    ProposalDecided,
    ProposalOpen,
)
from engine.sourcing import Strategy
from engine.substitutes import Alternative, check_alternatives
from engine.wishes import Fill, Substitution, Wish
from tests.shop import ACTOR, LOCATION, Shop, new_key

PRIORITY = Options(strategy=Strategy.PRIORITY)


@pytest.fixture
def orders(shop: Shop) -> Orders:
    return Orders(shop.inventory)


async def stock(shop: Shop, **places: dict[str, int]) -> None:
    for location, units in places.items():
        for sku, quantity in units.items():
            await shop.receive(sku, quantity, location=location)


async def say_kit(shop: Shop, sku: str, **components: int) -> None:
    kit = check_kit(sku, [Line(*one) for one in components.items()])
    await shop.inventory.kits.write(shop.merchant, {sku: kit}, actor=ACTOR)


async def say(shop: Shop, sku: str, *alternatives: Alternative) -> None:
    rules = check_alternatives(sku, alternatives)
    await shop.inventory.substitutes.write(shop.merchant, {sku: rules}, actor=ACTOR)


def line(
    sku: str,
    quantity: int,
    location: str = "",
    *alternatives: Alternative,
    how: Substitution = Substitution.ALLOWED,
    fill: Fill = Fill.MIXED,
) -> WantedLine:
    return WantedLine(sku, quantity, location, how, fill, alternatives)


def wants_approval(sku: str, quantity: int, location: str = "") -> WantedLine:
    return line(sku, quantity, location, how=Substitution.APPROVE)


async def place(orders: Orders, shop: Shop, *lines: WantedLine, **options: Any) -> Order:
    options = {"key": new_key(), "actor": ACTOR} | options
    return (await orders.place(shop.merchant, lines, **options)).order


def held(order: Order) -> dict[str, dict[str, int]]:
    """Return what counts of an order, by location."""
    return {
        part.location: {x.sku: x.quantity for x in part.lines}
        for part in order.parts
        if part.counts and part.state.is_open
    }


async def reserved(shop: Shop, *rows: tuple[str, str]) -> int:
    return sum(row.reserved for row in await shop.inventory.rows(shop.merchant, rows) if row)


async def test_a_kit_comes_from_where_what_it_is_made_of_is(shop: Shop, orders: Orders) -> None:
    await say_kit(shop, "box", mug=1, tea=2)
    await say_kit(shop, "pair", mug=2)
    await stock(shop, depot={"mug": 2, "tea": 9}, soho={"mug": 3}, york={"tea": 9})
    # Either could have the depot's mugs, and both together not.
    order = await place(orders, shop, WantedLine("pair", 1), WantedLine("box", 2))
    assert held(order) == {"depot": {"mug": 2, "tea": 4}, "soho": {"mug": 2}}
    assert not [part for part in order.parts if part.state is PartState.REFUSED]
    with pytest.raises(InsufficientStock) as refused:
        await place(orders, shop, WantedLine("box", 1))
    (short,) = refused.value.lines
    assert (short.sku, short.requested, short.available) == ("box", 1, 0)
    picks = [Line("mug", 2), Line("tea", 3)]
    order = (
        await orders.commit(shop.merchant, order.id, location="depot", picks=picks, actor=ACTOR)
    ).order
    assert order.missing() == [Line("box", 1)], "three teas make one box whole"
    await stock(shop, york={"mug": 1})
    order = (await orders.resource(shop.merchant, order.id, "depot", key="move", actor=ACTOR)).order
    assert held(order) == {"soho": {"mug": 2}, "york": {"mug": 1, "tea": 2}}
    assert (order.state, order.missing()) == (OrderState.CONFIRMED, [])
    order = (await orders.commit(shop.merchant, order.id, actor=ACTOR)).order
    assert (order.state, order.missing()) == (OrderState.FULFILLED, [])
    await shop.audit()


async def test_a_named_kit_leaves_what_it_is_made_of_to_nobody_else(
    shop: Shop, orders: Orders
) -> None:
    await say_kit(shop, "pair", mug=2)
    await stock(shop, depot={"mug": 3}, soho={"mug": 5})
    order = await place(orders, shop, WantedLine("mug", 2), WantedLine("pair", 1, "depot"))
    assert held(order) == {"depot": {"mug": 2}, "soho": {"mug": 2}}
    assert (await orders.cancel(shop.merchant, order.id, actor=ACTOR)).order.settled
    assert await reserved(shop, ("depot", "mug"), ("soho", "mug")) == 0
    await shop.audit()


async def test_others_stand_for_a_line_where_all_locations_have_too_little_of_it(
    shop: Shop, orders: Orders
) -> None:
    await say(shop, "six", Alternative(sku="twelve", of=1, for_=2))
    await stock(shop, depot={"six": 2, "twelve": 5}, soho={"six": 1})
    order = await place(orders, shop, line("six", 3))
    assert held(order) == {"depot": {"six": 2}, "soho": {"six": 1}}
    assert not any("stand" in part.why for part in order.parts)
    await orders.cancel(shop.merchant, order.id, actor=ACTOR)
    with pytest.raises(InsufficientStock) as refused:
        await place(orders, shop, WantedLine("six", 5))
    assert [(x.sku, x.available) for x in refused.value.lines] == [("six", 3)]
    order = await place(orders, shop, line("six", 5))
    (part,) = [part for part in order.parts if part.counts]
    assert held(order) == {"depot": {"six": 1, "twelve": 2}}
    assert part.why.endswith("; others may stand for six, of which there is too little")
    assert [(x.asked, x.sku, x.units, x.served) for x in part.stands_for] == [
        ("six", "twelve", 2, 4)
    ]
    confirmed = (await orders.confirm(shop.merchant, order.id, actor=ACTOR)).order
    assert confirmed.missing() == []
    picks = [Line("six", 1), Line("twelve", 1)]
    done = await orders.commit(shop.merchant, order.id, location="depot", picks=picks, actor=ACTOR)
    assert (done.order.state, done.order.missing()) == (OrderState.FULFILLED, [Line("six", 2)])
    await shop.audit()


async def test_a_line_says_itself_what_may_stand_for_it_and_whether_in_one_piece(
    shop: Shop, orders: Orders
) -> None:
    soy, rice = Alternative(sku="soy"), Alternative(sku="rice")
    await stock(shop, depot={"oat": 2, "soy": 3}, soho={"oat": 1, "rice": 6}, york={"soy": 2})
    whole = await place(orders, shop, line("oat", 5, "", soy, rice, fill=Fill.WHOLE))
    assert held(whole) == {"soho": {"rice": 5}}
    mixed = await place(orders, shop, line("oat", 7, "", soy, rice))
    assert sum(sum(units.values()) for units in held(mixed).values()) == 7
    await orders.cancel(shop.merchant, mixed.id, actor=ACTOR)
    named = await place(orders, shop, line("oat", 4, "depot", soy), WantedLine("soy", 2))
    assert held(named) == {"depot": {"oat": 2, "soy": 2}, "york": {"soy": 2}}
    with pytest.raises(InvalidCommand) as refused:
        await place(orders, shop, line("oat", 1, "", soy), line("oat", 1, "depot", rice))
    assert refused.value.field == "lines[1].substitutes"
    await shop.audit()


async def test_an_order_waits_for_whoever_accepts_its_substitutes(
    shop: Shop, orders: Orders
) -> None:
    await say(shop, "oat", Alternative(sku="soy"))
    await stock(shop, depot={"oat": 1, "soy": 5}, soho={"milk": 2})
    wanted = (wants_approval("oat", 3), WantedLine("milk", 1, "soho"))
    order = await place(orders, shop, *wanted)
    depot, _ = order.parts
    assert (order.state, depot.proposed) == (OrderState.HELD, ("oat",))
    for call in (orders.confirm, orders.commit):
        with pytest.raises(ProposalOpen) as refused:
            await call(shop.merchant, order.id, actor=ACTOR)
        assert refused.value.reservation == depot.reservation
    with pytest.raises(InvalidCommand) as unknown:
        await orders.accept(shop.merchant, order.id, skus=["milk"], actor=ACTOR)
    assert unknown.value.field == "skus[0]"
    for replayed in (False, True):
        accepted = await orders.accept(shop.merchant, order.id, actor=ACTOR)
        assert (accepted.order.state, accepted.replayed) == (OrderState.HELD, replayed)
        assert not any(part.proposed for part in accepted.order.parts)
    with pytest.raises(ProposalDecided):
        await orders.decline(shop.merchant, order.id, key=new_key(), actor=ACTOR)
    confirmed = (await orders.confirm(shop.merchant, order.id, actor=ACTOR)).order
    assert (confirmed.state, confirmed.missing()) == (OrderState.CONFIRMED, [])
    again = await orders.accept(shop.merchant, order.id, skus=["oat"], actor=ACTOR)
    assert again.replayed
    await shop.audit()


async def test_an_order_whose_substitutes_are_declined_holds_nothing(
    shop: Shop, orders: Orders
) -> None:
    await say(shop, "oat", Alternative(sku="soy", approval=True))
    await stock(shop, depot={"oat": 1, "soy": 5}, soho={"milk": 2})
    wanted = (line("oat", 3), WantedLine("milk", 1, "soho"))
    rows = [("depot", "oat"), ("depot", "soy"), ("soho", "milk")]
    order = await place(orders, shop, *wanted)
    for replayed in (False, True):
        declined = await orders.decline(
            shop.merchant, order.id, key="no", skus=["oat"], actor=ACTOR
        )
        assert (declined.order.state, declined.replayed) == (OrderState.FAILED, replayed)
        assert declined.order.reason == "the substitutes for oat were declined"
    assert await reserved(shop, *rows) == 0
    with pytest.raises(OrderEnded):
        await orders.accept(shop.merchant, order.id, actor=ACTOR)
    with pytest.raises(IdempotencyKeyReused):
        await orders.decline(shop.merchant, order.id, key="no", skus=["milk"], actor=ACTOR)
    # By the part's own id nobody tells the order, until somebody wants it.
    order = await place(orders, shop, *wanted)
    await shop.inventory.decide(
        shop.merchant, order.parts[0].reservation, ProposalDecision.DECLINED, actor=ACTOR
    )
    seen = await orders.read(shop.merchant, order.id)
    assert (seen.state, seen.parts[0].missing) == (OrderState.HELD, (Line("oat", 2),))
    with pytest.raises(ProposalDecided):
        await orders.accept(shop.merchant, order.id, actor=ACTOR)
    with pytest.raises(OrderEnded) as refused:
        await orders.confirm(shop.merchant, order.id, actor=ACTOR)
    assert refused.value.reason == "the substitutes for oat were declined"
    assert await reserved(shop, *rows) == 0
    await shop.audit()


async def test_what_is_declined_is_not_proposed_again_and_something_else_is(
    shop: Shop, orders: Orders
) -> None:
    soy, rice = Alternative(sku="soy"), Alternative(sku="rice", priority=200)
    await say(shop, "oat", soy, rice)
    await stock(shop, depot={"oat": 1, "soy": 9}, soho={"rice": 3}, york={"milk": 2})
    order = await place(orders, shop, wants_approval("oat", 3), WantedLine("milk", 1, "york"))
    assert held(order) == {"depot": {"oat": 1, "soy": 2}, "york": {"milk": 1}}
    milk = order.parts[1].reservation
    for replayed in (False, True):
        answer = await orders.decline(shop.merchant, order.id, key="no soy", actor=ACTOR)
        assert (answer.order.state, answer.replayed) == (OrderState.HELD, replayed)
        assert held(answer.order) == {"soho": {"rice": 3}, "york": {"milk": 1}}
    assert answer.order.expires_at_ms == order.expires_at_ms
    assert answer.order.parts[1].reservation == milk, "what nobody declined stays"
    assert [part.proposed for part in answer.order.parts if part.counts] == [(), ("oat",)]
    with pytest.raises(ProposalOpen):
        await orders.confirm(shop.merchant, order.id, actor=ACTOR)
    # What was asked for itself has come since.
    await stock(shop, depot={"oat": 2})
    answer = await orders.decline(shop.merchant, order.id, key="no rice", skus=["oat"], actor=ACTOR)
    assert held(answer.order) == {"depot": {"oat": 3}, "york": {"milk": 1}}
    assert (await orders.confirm(shop.merchant, order.id, actor=ACTOR)).order.missing() == []
    assert await reserved(shop, ("depot", "soy"), ("soho", "rice")) == 0
    await shop.audit()


async def test_a_line_that_names_its_location_is_declined_there_and_moved_it_is_planned_elsewhere(
    shop: Shop, orders: Orders
) -> None:
    soy, rice = Alternative(sku="soy"), Alternative(sku="rice", priority=200)
    await say(shop, "oat", soy, rice)
    await stock(shop, depot={"soy": 4, "rice": 4}, soho={"soy": 4, "rice": 4})
    order = await place(orders, shop, wants_approval("oat", 2, "depot"))
    answer = await orders.decline(shop.merchant, order.id, key="a", actor=ACTOR)
    assert held(answer.order) == {"depot": {"rice": 2}}
    answer = await orders.decline(shop.merchant, order.id, key="b", actor=ACTOR)
    assert (answer.order.state, held(answer.order)) == (OrderState.FAILED, {})
    # The depot could not: what is declined after that is not asked of it again.
    order = await place(orders, shop, wants_approval("oat", 2, "depot"))
    await orders.resource(shop.merchant, order.id, "depot", key="move", actor=ACTOR)
    answer = await orders.decline(shop.merchant, order.id, key="c", actor=ACTOR)
    assert held(answer.order) == {"soho": {"rice": 2}}
    assert (await orders.cancel(shop.merchant, order.id, actor=ACTOR)).order.settled
    # Where the SKU itself has come elsewhere, nothing is proposed any more.
    order = await place(orders, shop, wants_approval("oat", 2, "depot"))
    await stock(shop, york={"oat": 2})
    await orders.resource(shop.merchant, order.id, "depot", key="move", actor=ACTOR)
    with pytest.raises(InvalidCommand) as nothing:
        await orders.decline(shop.merchant, order.id, key="d", actor=ACTOR)
    assert nothing.value.field == "skus"
    assert (await orders.read(shop.merchant, order.id)).state is OrderState.HELD
    order = await place(orders, shop, wants_approval("oat", 4, "soho"))
    await orders.accept(shop.merchant, order.id, actor=ACTOR)
    confirmed = (await orders.confirm(shop.merchant, order.id, actor=ACTOR)).order
    assert (confirmed.state, confirmed.missing()) == (OrderState.CONFIRMED, [])
    await shop.audit()


@pytest.mark.parametrize("oats", [0, 1], ids=["all of the part", "some of the part"])
async def test_what_is_declined_by_a_parts_own_id_is_planned_anew(
    shop: Shop, orders: Orders, oats: int
) -> None:
    soy, rice = Alternative(sku="soy"), Alternative(sku="rice", priority=200)
    await say(shop, "oat", soy, rice)
    await stock(shop, depot={"soy": 4}, soho={"rice": 4})
    if oats:
        await stock(shop, depot={"oat": oats})
    order = await place(orders, shop, wants_approval("oat", 2))
    (soy_part,) = [part for part in order.parts if part.proposed]
    await shop.inventory.decide(
        shop.merchant, soy_part.reservation, ProposalDecision.DECLINED, actor=ACTOR
    )
    for _ in range(2):
        await orders.heed(shop.merchant, order.id, soy_part.reservation, actor=ACTOR)
    now = await orders.read(shop.merchant, order.id)
    assert (now.state, now.settled) == (OrderState.HELD, True)
    units = {sku: n for lines in held(now).values() for sku, n in lines.items()}
    assert units == {"rice": 2}
    assert not {"soy"} & {line.sku for part in now.parts if part.counts for line in part.lines}
    await orders.accept(shop.merchant, order.id, actor=ACTOR)
    assert (await orders.confirm(shop.merchant, order.id, actor=ACTOR)).order.missing() == []
    await shop.audit()


@pytest.mark.parametrize("has_come", [False, True])
async def test_a_confirmation_that_finds_a_decline_confirms_only_what_nobody_has_to_accept(
    shop: Shop, orders: Orders, *, has_come: bool
) -> None:
    """Whoever declined by the part's own id died before the order was told."""
    soy, rice = Alternative(sku="soy"), Alternative(sku="rice", priority=200)
    await say(shop, "oat", soy, rice)
    await stock(shop, depot={"oat": 1, "soy": 1}, soho={"rice": 2})
    order = await place(orders, shop, wants_approval("oat", 2))
    declined = ProposalDecision.DECLINED
    await shop.inventory.decide(shop.merchant, order.parts[0].reservation, declined, actor=ACTOR)
    if has_come:
        await stock(shop, york={"oat": 1})
    else:
        with pytest.raises(ProposalOpen):
            await orders.confirm(shop.merchant, order.id, actor=ACTOR)
        await orders.accept(shop.merchant, order.id, actor=ACTOR)
    confirmed = await orders.confirm(shop.merchant, order.id, actor=ACTOR)
    assert (confirmed.order.state, confirmed.replayed) == (OrderState.CONFIRMED, False)
    assert confirmed.order.missing() == []
    await shop.audit()


@pytest.mark.parametrize("decision", ["accept", "decline"])
async def test_what_is_declined_by_a_parts_own_id_is_found_whatever_is_decided_since(
    shop: Shop, orders: Orders, decision: str
) -> None:
    """Whoever declined the tea died before the order was told."""
    await say(shop, "oat", Alternative(sku="soy"), Alternative(sku="rice", priority=200))
    await say(shop, "tea", Alternative(sku="mate"))
    await stock(shop, depot={"soy": 2, "rice": 2, "mate": 4})
    # In one part with the oats where these are accepted, and in another one where not.
    place_of_tea = "depot" if decision == "accept" else "soho"
    await stock(shop, soho={"mate": 4, "tea": 1})
    wanted = (wants_approval("oat", 2, "depot"), wants_approval("tea", 3, place_of_tea))
    order = await place(orders, shop, *wanted)
    (part,) = [part for part in order.parts if part.location == place_of_tea]
    await shop.inventory.decide(
        shop.merchant, part.reservation, ProposalDecision.DECLINED, skus=["tea"], actor=ACTOR
    )
    if decision == "accept":
        await orders.accept(shop.merchant, order.id, skus=["oat"], actor=ACTOR)
    else:
        await orders.decline(shop.merchant, order.id, key="no", skus=["oat"], actor=ACTOR)
    with pytest.raises(OrderEnded) as refused:
        await orders.confirm(shop.merchant, order.id, actor=ACTOR)
    assert "tea" in refused.value.reason
    assert (await orders.read(shop.merchant, order.id)).settled
    assert await reserved(shop, ("depot", "soy"), ("depot", "rice"), ("soho", "tea")) == 0
    await shop.audit()


@pytest.mark.parametrize("skus", [(), ("oat",)], ids=["all", "named"])
async def test_nobody_declines_or_accepts_what_came_to_be_proposed_meanwhile(
    shop: Shop, orders: Orders, skus: tuple[str, ...]
) -> None:
    soy, rice, nut = (Alternative(sku=x, priority=i) for i, x in enumerate(("soy", "rice", "nut")))
    await say(shop, "oat", soy, rice, nut)
    await stock(shop, depot={"soy": 9, "rice": 9, "nut": 9})

    async def decline(order: Order, key: str) -> OrderResult:
        return await orders.decline(shop.merchant, order.id, key=key, skus=skus, actor=ACTOR)

    order = await place(orders, shop, wants_approval("oat", 2))
    both = await asyncio.gather(*(decline(order, key) for key in "ab"))
    assert sorted(one.replayed for one in both) == [False, True]
    for key in "ab":
        # The answer to either was lost.
        assert (await decline(order, key)).replayed
        now = await orders.read(shop.merchant, order.id)
        assert (held(now), now.state) == ({"depot": {"rice": 2}}, OrderState.HELD)
    assert held((await decline(order, "c")).order) == {"depot": {"nut": 2}}
    # Who accepts while another one declines has seen the soy, and not the rice.
    order = await place(orders, shop, wants_approval("oat", 2))

    class Overtaken(OrderSteps):
        async def take(self, step: str, call: Any) -> Any:
            if step == "record accept":
                await decline(order, "a")
            return await super().take(step, call)

    overtaken = Orders(shop.inventory, steps=Overtaken(shop.inventory))
    with pytest.raises(ProposalDecided):
        await overtaken.accept(shop.merchant, order.id, skus=skus, actor=ACTOR)
    now = await orders.read(shop.merchant, order.id)
    (part,) = [part for part in now.parts if part.counts]
    assert (part.proposed, held(now)) == (("oat",), {"depot": {"rice": 2}})
    accepted = (await orders.accept(shop.merchant, order.id, skus=skus, actor=ACTOR)).order
    assert [part.accepted for part in accepted.parts if part.counts] == [("oat",)]
    await shop.audit()


async def test_a_decline_of_all_leaves_what_was_accepted_and_its_retry_what_came_since(
    shop: Shop, orders: Orders
) -> None:
    await say(shop, "oat", Alternative(sku="soy"), Alternative(sku="rice", priority=200))
    await say(shop, "tea", Alternative(sku="mate"), Alternative(sku="cola", priority=200))
    await stock(shop, depot={"soy": 2}, soho={"mate": 2, "cola": 2}, york={"cola": 2})
    wanted = (wants_approval("oat", 2, "depot"), wants_approval("tea", 2, "soho"))
    order = await place(orders, shop, *wanted)
    await orders.accept(shop.merchant, order.id, skus=["oat"], actor=ACTOR)
    answer = await orders.decline(shop.merchant, order.id, key="all", actor=ACTOR)
    assert held(answer.order) == {"depot": {"soy": 2}, "soho": {"cola": 2}}
    assert not answer.replayed
    # The tea itself has come: nothing is open. Later on it is proposed anew.
    await stock(shop, soho={"tea": 2})
    await orders.decline(shop.merchant, order.id, key="cola", skus=["tea"], actor=ACTOR)
    for _ in range(2):
        answer = await orders.decline(
            shop.merchant, order.id, key="late", skus=["tea"], actor=ACTOR
        )
        assert (answer.replayed, held(answer.order)["soho"]) == (True, {"tea": 2})
    await say(shop, "tea", Alternative(sku="chai"))
    await stock(shop, york={"chai": 2})
    await orders.resource(shop.merchant, order.id, "soho", key="move", actor=ACTOR)
    answer = await orders.decline(shop.merchant, order.id, key="late", skus=["tea"], actor=ACTOR)
    assert (answer.replayed, held(answer.order)) == (
        True,
        {"depot": {"soy": 2}, "york": {"chai": 2}},
    )
    await shop.audit()


async def test_what_is_planned_after_a_decline_may_have_what_is_due(own_shop: Shop) -> None:
    shop, orders = own_shop, Orders(own_shop.inventory)
    await say(shop, "oat", Alternative(sku="soy"), Alternative(sku="rice", priority=200))
    await stock(shop, depot={"soy": 2, "rice": 2})
    cart = await shop.reserve([("rice", 2)], location="depot", ttl_ms=60_000)
    order = await place(orders, shop, wants_approval("oat", 2), ttl_ms=900_000)
    # Its time is up, and nobody has taken it back yet.
    assert cart.reservation.expires_at_ms is not None
    await shop.set_clock(cart.reservation.expires_at_ms + 1, location="depot")
    answer = await orders.decline(shop.merchant, order.id, key="no soy", actor=ACTOR)
    assert (answer.order.state, held(answer.order)) == (OrderState.HELD, {"depot": {"rice": 2}})
    await shop.audit()


async def test_a_proposal_that_nobody_decides_expires_with_its_order(own_shop: Shop) -> None:
    shop, orders = own_shop, Orders(own_shop.inventory)
    await say(shop, "oat", Alternative(sku="soy"))
    await stock(shop, depot={"soy": 5})
    order = await place(orders, shop, wants_approval("oat", 3))
    await shop.set_clock(order.expires_at_ms + 60_000, location="depot")
    await OrderDriver(shop.inventory).round()
    found = await orders.read(shop.merchant, order.id)
    assert (found.state, await reserved(shop, ("depot", "soy"))) == (OrderState.EXPIRED, 0)
    await shop.audit()


async def test_what_is_decided_is_sourced_anew_without_asking_anybody(
    shop: Shop, orders: Orders
) -> None:
    await say(shop, "oat", Alternative(sku="soy", approval=True), Alternative(sku="rice"))
    await stock(shop, depot={"oat": 3}, soho={"soy": 9})
    order = await place(orders, shop, line("oat", 3))
    await orders.confirm(shop.merchant, order.id, actor=ACTOR)
    with pytest.raises(InsufficientStock):
        await orders.resource(shop.merchant, order.id, "depot", key="move", actor=ACTOR)
    await stock(shop, york={"rice": 3})
    order = (await orders.resource(shop.merchant, order.id, "depot", key="move", actor=ACTOR)).order
    assert held(order) == {"york": {"rice": 3}}
    assert (order.state, order.missing()) == (OrderState.CONFIRMED, [])
    # One that is not decided may still ask.
    order = await place(orders, shop, line("oat", 3))
    order = (await orders.resource(shop.merchant, order.id, "depot", key="move", actor=ACTOR)).order
    assert (held(order), order.parts[1].proposed) == ({"soho": {"soy": 3}}, ("oat",))
    await orders.accept(shop.merchant, order.id, actor=ACTOR)
    await orders.confirm(shop.merchant, order.id, actor=ACTOR)
    await shop.audit()


async def test_parts_are_made_for_the_orders_channel_and_buyer(shop: Shop, orders: Orders) -> None:
    await stock(shop, annex={"mug": 1})
    await shop.receive("mug", 9)
    pools = {"partner": Pool(cap=4), "store": Pool(minimum=2)}
    await shop.set_terms("mug", Terms(channels=pools, buyer_cap=BuyerCap(2, 60_000)))
    order = await place(
        orders, shop, WantedLine("mug", 3), options=Options(channel="partner"), buyer="zoe"
    )
    assert held(order) == {"annex": {"mug": 1}, LOCATION: {"mug": 2}}
    (at_the_shop,) = [part for part in order.parts if part.location == LOCATION]
    made = await shop.inventory.reservation(shop.merchant, at_the_shop.reservation)
    assert (made.channel, made.buyer) == ("partner", digest("buyer", shop.merchant, "zoe"))
    row = await shop.row("mug")
    assert row.terms is not None
    assert row.terms.channels["partner"].held == 2
    by_partner = Options(channel="partner")
    with pytest.raises(BuyerCapExceeded):
        await place(orders, shop, WantedLine("mug", 2), options=by_partner, buyer="zoe")
    with pytest.raises(InsufficientStock):
        await place(orders, shop, WantedLine("mug", 3), options=by_partner, buyer="bob")
    assert "zoe" not in msgspec.json.encode(order.body).decode()
    await place(orders, shop, WantedLine("mug", 1), buyer="cid", key="same")
    with pytest.raises(IdempotencyKeyReused):
        await place(orders, shop, WantedLine("mug", 1), buyer="dan", key="same")
    await shop.audit()


async def test_an_order_says_what_has_not_come_yet(shop: Shop, orders: Orders) -> None:
    await shop.set_terms("tea", Terms(backorder_limit=5))
    wanted = WantedLine("tea", 2, LOCATION)
    with pytest.raises(InsufficientStock):
        await place(orders, shop, wanted, options=Options(stock_only=True))
    order = await place(orders, shop, wanted)
    assert order.parts[0].backordered == (Line("tea", 2),)
    await orders.confirm(shop.merchant, order.id, actor=ACTOR)
    await shop.receive("tea", 1)
    seen = await orders.read(shop.merchant, order.id)
    assert seen.parts[0].backordered == (Line("tea", 1),)
    await shop.receive("tea", 1)
    done = (await orders.commit(shop.merchant, order.id, actor=ACTOR)).order
    assert (done.state, done.missing()) == (OrderState.FULFILLED, [])
    await shop.audit()


async def test_an_order_waits_only_for_what_all_shelves_together_lack(
    shop: Shop, orders: Orders
) -> None:
    await stock(shop, annex={"tea": 2}, depot={"tea": 1})
    await shop.receive("tea", 1)
    await shop.set_terms("tea", Terms(backorder_limit=5))
    order = await place(orders, shop, WantedLine("tea", 4))
    assert held(order) == {"annex": {"tea": 2}, "depot": {"tea": 1}, LOCATION: {"tea": 1}}
    assert not any(part.backordered for part in order.parts)
    await orders.cancel(shop.merchant, order.id, actor=ACTOR)
    with pytest.raises(InsufficientStock) as refused:
        await place(orders, shop, WantedLine("tea", 5), options=Options(stock_only=True))
    assert refused.value.lines[0].available == 4
    with pytest.raises(InsufficientStock) as refused:
        await place(orders, shop, WantedLine("tea", 10))
    assert refused.value.lines[0].available == 9
    order = await place(orders, shop, WantedLine("tea", 6))
    assert held(order) == {"annex": {"tea": 2}, "depot": {"tea": 1}, LOCATION: {"tea": 3}}
    (late,) = [part for part in order.parts if part.backordered]
    assert (late.location, late.backordered) == (LOCATION, (Line("tea", 2),))
    assert late.why.endswith(
        "; 2 of tea wait for what is to come, as all shelves together have too little"
    )
    # Moved from where nobody may wait to where one may.
    order = (await orders.confirm(shop.merchant, order.id, actor=ACTOR)).order
    order = (await orders.resource(shop.merchant, order.id, "depot", key="move", actor=ACTOR)).order
    assert (await shop.row("tea")).backordered == 3
    await shop.receive("tea", 3)
    done = (await orders.commit(shop.merchant, order.id, actor=ACTOR)).order
    assert (done.state, done.missing()) == (OrderState.FULFILLED, [])
    await shop.audit()


async def test_what_stands_in_goes_before_a_backorder_and_after_what_comes_by_the_day(
    shop: Shop, orders: Orders
) -> None:
    await stock(shop, depot={"soy": 2})
    await shop.receive("oat", 1)
    await shop.set_terms("oat", Terms(backorder_limit=5))
    await shop.expect("oat", "po-1", "2026-12-07", 2)
    soy = Alternative(sku="soy")
    order = await place(orders, shop, line("oat", 3, "", soy))
    assert held(order) == {"depot": {"soy": 2}, LOCATION: {"oat": 1}}
    await orders.cancel(shop.merchant, order.id, actor=ACTOR)
    order = await place(orders, shop, line("oat", 3, "", soy), options=Options(by="2026-12-07"))
    assert held(order) == {LOCATION: {"oat": 3}}
    await orders.cancel(shop.merchant, order.id, actor=ACTOR)
    order = await place(orders, shop, line("oat", 7, "", soy))
    assert held(order) == {"depot": {"soy": 2}, LOCATION: {"oat": 5}}
    assert sum(x.quantity for part in order.parts for x in part.backordered) == 4
    await shop.audit()


async def test_a_part_of_shelves_waits_for_nothing_though_its_row_would_let_it(
    shop: Shop, orders: Orders
) -> None:
    """Somebody takes the units after the plan: then the shelves of others are asked first."""
    await stock(shop, annex={"tea": 3})
    await shop.receive("tea", 2)
    await shop.set_terms("tea", Terms(backorder_limit=5))

    class Overtaken(OrderSteps):
        """Somebody takes what is on the shelf just before it is held."""

        async def take(self, step: str, call: Any) -> Any:
            if step == "hold part 1":
                await shop.reserve([("tea", 2)])
            return await super().take(step, call)

    overtaken = Orders(shop.inventory, steps=Overtaken(shop.inventory))
    near = Options(strategy=Strategy.MOST_STOCK)
    await shop.inventory.reserve(shop.merchant, "annex", [Line("tea", 2)], key="k", actor=ACTOR)
    order = await place(overtaken, shop, WantedLine("tea", 1), options=near)
    assert held(order) == {"annex": {"tea": 1}}
    assert [part.state for part in order.parts] == [PartState.REFUSED, PartState.HELD]
    order = await place(orders, shop, WantedLine("tea", 1), options=near)
    assert [part.backordered for part in order.parts] == [(Line("tea", 1),)]
    await shop.audit()


async def test_kits_that_share_a_component_are_shared_out_so_that_all_can_be_had(
    shop: Shop, orders: Orders
) -> None:
    await say_kit(shop, "box", mug=1, tea=2)
    await say_kit(shop, "set", mug=1, jar=1)
    # Boxes are the scarcer ones, and yet the depot may not make as many of them as it can.
    await stock(shop, depot={"mug": 2, "tea": 4, "jar": 2}, soho={"mug": 2, "tea": 4})
    order = await place(orders, shop, WantedLine("set", 1), WantedLine("box", 3), options=PRIORITY)
    assert held(order) == {
        "depot": {"mug": 2, "tea": 2, "jar": 1},
        "soho": {"mug": 2, "tea": 4},
    }
    await shop.audit()


async def test_an_order_of_plain_lines_is_told_from_others_as_it_always_was(
    shop: Shop, orders: Orders
) -> None:
    """A retry of one that was placed before lines said more finds it."""
    await stock(shop, depot={"tea": 5})
    order = await place(orders, shop, WantedLine("tea", 2, "depot"), WantedLine("tea", 1))
    said = ("900000", "", "{}", "2 tea\0depot", "1 tea\0")
    assert order.body.fingerprint == digest(*said)


def test_a_record_of_before_lines_said_more_is_read_as_it_is() -> None:
    part = [1, "depot", "rsv_1_a", "k/1", [["tea", 2]], "held", "", [], [], "it was named", 0]
    plan = msgspec.msgpack.decode(msgspec.msgpack.encode([[part], [], []]), type=Plan)
    assert plan.parts[0].asks == plan.parts[0].brings == (Line("tea", 2),)
    body = ["order", "m", "a", "f", "", 900_000, [["tea", 2, "depot"]], '{"stock_only":true}']
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(body), type=OrderBody)
    assert read.lines == (WantedLine("tea", 2, "depot"),)


async def test_a_part_that_was_released_is_missed_whatever_is_accepted_after_that(
    shop: Shop, orders: Orders
) -> None:
    soy = Alternative(sku="soy")
    await stock(shop, depot={"oat": 1, "soy": 5}, soho={"soy": 5})
    wanted = [line("oat", 2, place, soy, how=Substitution.APPROVE) for place in ("depot", "soho")]
    order = await place(orders, shop, *wanted)
    await shop.release(order.parts[0].reservation)
    await orders.accept(shop.merchant, order.id, actor=ACTOR)
    with pytest.raises(OrderEnded) as refused:
        await orders.confirm(shop.merchant, order.id, actor=ACTOR)
    assert refused.value.reason == "the part at depot was released"
    assert await reserved(shop, ("depot", "soy"), ("soho", "soy")) == 0
    await shop.audit()


async def test_a_crowd_never_has_a_unit_twice_whatever_it_is_part_of(shop: Shop) -> None:
    """Thirty shoppers want kits, what they are made of and what stands for it, at two places."""
    await say_kit(shop, "box", mug=1, tea=2)
    await say(shop, "mug", Alternative(sku="cup"))
    await stock(shop, depot={"mug": 6, "tea": 9, "cup": 2}, soho={"mug": 4, "tea": 7, "cup": 3})
    two = (Orders(shop.inventory), Orders(shop.inventory))
    carts = [[WantedLine("box", 1)], [line("mug", 1)], [line("mug", 1), WantedLine("tea", 1)]]
    answers = await asyncio.gather(
        *(place(two[i % 2], shop, *carts[i % 3]) for i in range(30)), return_exceptions=True
    )
    made = [one for one in answers if isinstance(one, Order)]
    assert all(isinstance(one, InsufficientStock) for one in answers if one not in made)
    assert len(made) >= 10
    units: dict[tuple[str, str], int] = {}
    for order in made:
        for location, lines in held(order).items():
            for sku, quantity in lines.items():
                units[location, sku] = units.get((location, sku), 0) + quantity
    rows = await shop.inventory.rows(shop.merchant, list(units))
    assert {name: row.reserved for name, row in zip(units, rows, strict=True) if row} == units
    assert all(row.reserved <= row.on_hand for row in rows if row)
    await shop.audit()


async def test_what_an_amendment_proposes_keeps_its_part_until_it_is_accepted(
    shop: Shop, orders: Orders
) -> None:
    await stock(shop, depot={"oat": 1, "soy": 5}, soho={"tea": 2})
    order = await place(orders, shop, WantedLine("oat", 1), WantedLine("tea", 1))
    order = (await orders.confirm(shop.merchant, order.id, actor=ACTOR)).order
    wish = Wish(
        sku="oat",
        quantity=3,
        substitutes=Substitution.APPROVE,
        alternatives=(Alternative(sku="soy"),),
    )
    await shop.inventory.amend(
        shop.merchant, order.parts[0].reservation, [wish], key=new_key(), actor=ACTOR
    )
    with pytest.raises(ProposalOpen):
        await orders.commit(shop.merchant, order.id, actor=ACTOR)
    seen = await orders.read(shop.merchant, order.id)
    assert [part.state for part in seen.parts] == [PartState.CONFIRMED, PartState.COMMITTED]
    assert (seen.settled, seen.parts[0].proposed) == (True, ("oat",))
    await orders.accept(shop.merchant, order.id, actor=ACTOR)
    done = (await orders.commit(shop.merchant, order.id, actor=ACTOR)).order
    assert (done.state, done.missing()) == (OrderState.FULFILLED, [])
    assert (await shop.row("soy", location="depot")).on_hand == 3
    await shop.audit()
