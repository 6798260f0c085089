"""Orders whose coordinator dies at each single step: whole or not at all, and no unit is stuck.

The steps are not listed here: a first run counts them, so a new step is tested by itself.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, Final
from uuid import uuid4

import msgspec
import pytest

from engine.candidates import Candidates
from engine.inventory import Inventory
from engine.keys import order_id
from engine.kits import check_kit
from engine.layouts import Candidate
from engine.model import Line, ProposalDecision
from engine.order_driver import OrderDriver
from engine.order_planning import OrderPlanning
from engine.order_records import (
    GRACE_MS,
    Aim,
    Order,
    OrderKind,
    OrderState,
    PartState,
    WantedLine,
)
from engine.order_requests import Options
from engine.orders import Orders
from engine.outcomes import InsufficientStock, OrderNotFound
from engine.substitutes import Alternative, check_alternatives
from engine.wishes import Substitution
from tests.invariants import assert_invariants
from tests.shop import ACTOR, Shop, open_shop
from tests.stores import VALKEY, MakeStore, set_up

WANTED: Final = [
    WantedLine("tea", 6),
    WantedLine("milk", 1, "harbour"),
    WantedLine("soap", 2, "depot"),
]
STOCK: Final = {"depot": {"tea": 4, "soap": 5}, "high street": {"tea": 3}, "harbour": {"milk": 2}}
SPARE: Final = {"annex": {"tea": 1}, "mill": {"tea": 4, "soap": 2}}
"""What just suffices for the depot's part."""

PLACES: Final = STOCK | SPARE
TOO_MUCH: Final = WantedLine("tea", 9, "high street")
WANTED_UNITS: Final = sum(line.quantity for line in WANTED)
TTL_MS: Final = 60_000
MAX_STEPS: Final = 100


class Killed(BaseException):
    """The coordinator's process ended here."""


class Reaper:
    """Counts the steps, and ends the process at one of them."""

    def __init__(self, at: int = -1) -> None:
        """Let everybody live unless told at which step to kill."""
        self.at = at
        self.steps: list[str] = []

    def watch(self, step: str) -> None:
        """Be told of a step."""
        if len(self.steps) == self.at:
            self.at = -1
            raise Killed(step)
        self.steps.append(step)


@pytest.fixture
async def shop(make_store: MakeStore) -> AsyncIterator[Shop]:
    """A shop on a store of its own, since the tests move its clock; with several partitions."""
    store = make_store(VALKEY)
    await store.start()
    await set_up(store.settings, partitions=8)
    async with open_shop(store.settings) as opened:
        yield opened


async def fill(shop: Shop) -> Shop:
    """Return the shop of a new merchant with the same stock."""
    one = Shop(shop.inventory, shop.client, f"m-{uuid4().hex[:12]}")
    for location, units in STOCK.items():
        for sku, quantity in units.items():
            await one.receive(sku, quantity, location=location)
    return one


async def pass_time(shop: Shop, driver: OrderDriver, ms: int) -> None:
    """Move the clock of every partition, and let everybody who works behind the counter work."""
    seconds, _ = await shop.client.execute_command("TIME")
    for keys in shop.inventory.keys:
        mark = await shop.client.execute_command("HGET", keys.meta, "clock_ms")
        now_ms = max(int(mark or 0), int(seconds) * 1000)
        await shop.client.execute_command("HSET", keys.meta, "clock_ms", str(now_ms + ms))
    for _ in range(2):
        await driver.round()
        for keys in shop.inventory.keys:
            await shop.inventory.expire_due(keys.partition)


async def reserved(shop: Shop) -> int:
    """Add up what all rows hold."""
    wanted = [(location, sku) for location, units in PLACES.items() for sku in units]
    rows = await shop.inventory.rows(shop.merchant, wanted)
    return sum(row.reserved for row in rows if row is not None)


async def on_hand(shop: Shop) -> int:
    wanted = [(location, sku) for location, units in PLACES.items() for sku in units]
    return sum(row.on_hand for row in await shop.inventory.rows(shop.merchant, wanted) if row)


class StaleCandidates(Candidates):
    """Takes a location for fuller than it is, once, as a stale index would."""

    def __init__(self, inventory: Inventory, fuller: str) -> None:
        super().__init__(inventory)
        self.fuller, self.told = fuller, False

    async def read(self, *args: Any, **options: Any) -> list[tuple[Candidate, str]]:
        found = await super().read(*args, **options)
        if self.told:
            return found
        self.told = True
        return [
            (msgspec.structs.replace(one, available={"tea": 9, "soap": 9}), why)
            if one.location == self.fuller
            else (one, why)
            for one, why in found
        ]


class Stale(Orders):
    """Takes the depot for fuller than it is."""

    fuller = "depot"

    def __init__(self, inventory: Inventory, **options: Any) -> None:
        candidates = StaleCandidates(inventory, self.fuller)
        super().__init__(inventory, plans=OrderPlanning(inventory, candidates), **options)


class StaleSpare(Stale):
    """Takes the annex for fuller than it is."""

    fuller = "annex"


async def place(shop: Shop, orders: Orders) -> None:
    await orders.place(shop.merchant, WANTED, key="k", ttl_ms=TTL_MS, actor=ACTOR)


async def place_in_vain(shop: Shop, orders: Orders) -> None:
    with suppress(InsufficientStock):
        await orders.place(
            shop.merchant,
            [WantedLine("milk", 1, "harbour"), WantedLine("soap", 1, "depot"), TOO_MUCH],
            key="k",
            ttl_ms=TTL_MS,
            actor=ACTOR,
        )


async def confirm(shop: Shop, orders: Orders) -> None:
    await orders.confirm(shop.merchant, made(shop), actor=ACTOR)


async def cancel(shop: Shop, orders: Orders) -> None:
    await orders.cancel(shop.merchant, made(shop), reason="changed my mind", actor=ACTOR)


async def commit(shop: Shop, orders: Orders) -> None:
    await orders.commit(shop.merchant, made(shop), actor=ACTOR)


async def spare(shop: Shop, orders: Orders) -> None:
    for location, units in SPARE.items():
        for sku, quantity in units.items():
            await shop.receive(sku, quantity, location=location)


async def little_to_spare(shop: Shop, orders: Orders) -> None:
    await shop.receive("tea", 1, location="annex")


async def pick_short(shop: Shop, orders: Orders) -> None:
    picks = [Line("tea", 2), Line("soap", 2)]
    await orders.commit(shop.merchant, made(shop), location="depot", picks=picks, actor=ACTOR)


async def resource(shop: Shop, orders: Orders) -> None:
    await orders.resource(shop.merchant, made(shop), "depot", key="move", actor=ACTOR)


async def resource_in_vain(shop: Shop, orders: Orders) -> None:
    with suppress(InsufficientStock):
        await resource(shop, orders)


A_DAY: Final = "2026-12-07"

ON_TERMS: Final = [
    WantedLine("box", 2),
    WantedLine("oat", 3, "", Substitution.APPROVE),
    WantedLine("milk", 1, "harbour"),
]
ON_TERMS_STOCK: Final = {
    "depot": {"tea": 4, "mug": 1, "soy": 3},
    "high street": {"tea": 3, "mug": 2, "oat": 1},
    "harbour": {"milk": 2},
}
"""Of a box, which is a mug and two teas, either place has one; oats come short of two."""
ON_TERMS_SKUS: Final = ("tea", "mug", "oat", "soy", "rice", "milk")


async def place_on_terms(shop: Shop, orders: Orders) -> None:
    await orders.place(shop.merchant, ON_TERMS, key="k", ttl_ms=TTL_MS, buyer="zoe", actor=ACTOR)


async def announce_oats(shop: Shop, orders: Orders) -> None:
    await shop.expect("oat", "po-1", A_DAY, 5)


async def place_by_a_day(shop: Shop, orders: Orders) -> None:
    options = Options(by=A_DAY)
    await orders.place(
        shop.merchant, ON_TERMS, key="k", ttl_ms=TTL_MS, options=options, actor=ACTOR
    )


async def accept(shop: Shop, orders: Orders) -> None:
    await orders.accept(shop.merchant, made(shop), actor=ACTOR)


async def decline(shop: Shop, orders: Orders) -> None:
    await orders.decline(shop.merchant, made(shop), key="no", actor=ACTOR)


async def stock_rice(shop: Shop, orders: Orders) -> None:
    """What may stand for oats where soy is declined, and is taken after the soy."""
    await shop.receive("rice", 3, location="harbour")


async def decline_by_its_own_id(shop: Shop, orders: Orders) -> None:
    order = await recorded(shop)
    assert order is not None
    for part in order.parts:
        if part.proposed or part.missing:
            declined = ProposalDecision.DECLINED
            await shop.inventory.decide(shop.merchant, part.reservation, declined, actor=ACTOR)
            await orders.heed(shop.merchant, made(shop), part.reservation, actor=ACTOR)


async def spare_boxes(shop: Shop, orders: Orders) -> None:
    await shop.receive("tea", 2, location="mill")
    await shop.receive("mug", 1, location="mill")
    await shop.receive("oat", 3, location="annex")


async def spare_soy(shop: Shop, orders: Orders) -> None:
    await shop.receive("tea", 2, location="mill")
    await shop.receive("mug", 1, location="mill")
    await shop.receive("soy", 3, location="annex")


Act = Callable[[Shop, Orders], Awaitable[None]]

SCENARIOS_ON_TERMS: Final[dict[str, tuple[tuple[Act, ...], Act, type[Orders]]]] = {
    "place": ((), place_on_terms, Orders),
    "place by a day": ((announce_oats,), place_by_a_day, Orders),
    "accept": ((place_on_terms,), accept, Orders),
    "decline": ((place_on_terms,), decline, Orders),
    "decline what something else stands for": ((stock_rice, place_on_terms), decline, Orders),
    "decline by a part's own id": ((stock_rice, place_on_terms), decline_by_its_own_id, Orders),
    "decline what was sourced anew": (
        (stock_rice, place_on_terms, spare_soy, resource),
        decline,
        Orders,
    ),
    "confirm": ((place_on_terms, accept), confirm, Orders),
    "commit": ((place_on_terms, accept, confirm), commit, Orders),
    "source a proposal anew": ((place_on_terms, spare_boxes), resource, Orders),
    "source substitutes and kits anew": (
        (place_on_terms, accept, confirm, spare_boxes),
        resource,
        Orders,
    ),
}

SCENARIOS: Final[dict[str, tuple[tuple[Act, ...], Act, type[Orders]]]] = {
    "place": ((), place, Orders),
    "place by a stale plan": ((), place, Stale),
    "place in vain": ((), place_in_vain, Orders),
    "confirm": ((place,), confirm, Orders),
    "cancel a held one": ((place,), cancel, Orders),
    "cancel a confirmed one": ((place, confirm), cancel, Orders),
    "commit": ((place, confirm), commit, Orders),
    "commit a held one": ((place,), commit, Orders),
    "source a held part anew": ((place, spare), resource, Orders),
    "source a confirmed part anew": ((place, confirm, spare), resource, Orders),
    "source a part anew by a stale plan": ((place, confirm, spare), resource, StaleSpare),
    "source a part anew in vain": (
        (place, confirm, little_to_spare),
        resource_in_vain,
        StaleSpare,
    ),
    "source a short pick anew": ((place, spare, pick_short), resource, Orders),
    "source a fulfilled order's short pick anew": (
        (place, spare, pick_short, commit),
        resource,
        Orders,
    ),
}
"""What happens before, what is killed at each step, and by whom it is done."""


def made(shop: Shop) -> str:
    return order_id(OrderKind.ORDER, shop.merchant, "k", shop.inventory.partitions)


def units_of(lines: Iterable[Line]) -> int:
    return sum(line.quantity for line in lines)


def picked_of(order: Order | None) -> int:
    return units_of(line for part in order.parts for line in part.picked) if order else 0


async def recorded(shop: Shop) -> Order | None:
    return await shop.inventory.order_records.read(made(shop))


def shape(order: Order | None) -> list[tuple[str, PartState, tuple[Line, ...]]]:
    """Return what an order's parts are, without those of plans that came to nothing."""
    parts = () if order is None else order.parts
    return [(part.location, part.state, part.lines) for part in parts if part.counts]


async def check(shop: Shop, units: int, before: Order | None) -> OrderState | None:
    """Check that the order is whole or not there, of so many units; return what it is.

    What a location could not fulfil comes from elsewhere, or the parts are what they were before.
    """
    order = await recorded(shop)
    if order is None:
        assert (await reserved(shop), await on_hand(shop)) == (0, units)
        return None
    states = {part.state for part in order.parts if part.aim is Aim.NONE}
    held, there = await reserved(shop), await on_hand(shop)
    what = f"{order.state} {[(part.location, part.state) for part in order.parts]}"
    picked = picked_of(order)
    assert there == units - picked, what
    is_same = before is not None and shape(order) == shape(before)
    missing = units_of(order.missing())
    assert missing == (units_of(before.missing()) if before and is_same else 0), what
    if order.state is OrderState.HELD:
        assert (held, picked) == (WANTED_UNITS, 0), what
    elif order.state is OrderState.CONFIRMED:
        assert held + picked + missing == WANTED_UNITS, what
        assert PartState.CONFIRMED in states, what
    elif order.state is OrderState.FULFILLED:
        assert (held, picked + missing) == (0, WANTED_UNITS), what
    else:
        assert order.state.gives_back, what
        assert held == 0, what
    if order.plan.resourcings:
        assert order.plan.pending is None, what
        assert not [p for p in order.parts if p.location == "depot" and p.state.is_open], what
    assert order.settled, what
    return order.state


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_an_order_that_is_killed_at_a_step_ends_whole_or_not_at_all(
    shop: Shop, scenario: str
) -> None:
    before, act, orders = SCENARIOS[scenario]
    driver = OrderDriver(shop.inventory)
    clean = Reaper()
    one = await fill(shop)
    for earlier in before:
        await earlier(one, Orders(one.inventory))
    await act(one, orders(one.inventory, watch=clean.watch))
    assert 2 <= len(clean.steps) < MAX_STEPS
    for at in range(len(clean.steps)):
        for comes_back in (False, True):
            one = await fill(shop)
            for earlier in before:
                await earlier(one, Orders(one.inventory))
            told_before = await recorded(one)
            units = await on_hand(one) + picked_of(told_before)
            held = await reserved(one)
            reaper = Reaper(at)
            with pytest.raises(Killed):
                await act(one, orders(one.inventory, watch=reaper.watch))
            assert reaper.steps == clean.steps[:at]
            # No place gives units up before another one holds them.
            assert act not in (resource, resource_in_vain) or await reserved(one) >= held
            if comes_back:
                with suppress(OrderNotFound):
                    await act(one, Orders(one.inventory))
            else:
                await pass_time(one, driver, GRACE_MS + 1_000)
            first = await check(one, units, told_before)
            if comes_back and scenario != "place in vain":
                assert first is not None, clean.steps[at]
            if comes_back and act is resource:
                order = await recorded(one)
                assert order is not None
                assert any(part.replaces and part.brings for part in order.parts), clean.steps[at]
            await pass_time(one, driver, TTL_MS + GRACE_MS)
            last = await check(one, units, told_before)
            told = f"killed {clean.steps[at]}: {first} and then {last}"
            assert last not in (OrderState.PLACING, OrderState.HELD), told
            if first in (OrderState.CONFIRMED, OrderState.FULFILLED):
                assert last == first, told
    await assert_invariants(shop.client, partitions=shop.inventory.partitions)


async def fill_on_terms(shop: Shop) -> Shop:
    """Return the shop of a new merchant with kits and rules of what stands for what."""
    one = Shop(shop.inventory, shop.client, f"m-{uuid4().hex[:12]}")
    kit = check_kit("box", [Line("mug", 1), Line("tea", 2)])
    await one.inventory.kits.write(one.merchant, {"box": kit}, actor=ACTOR)
    soy, rice = Alternative(sku="soy"), Alternative(sku="rice", priority=200)
    rules = check_alternatives("oat", [soy, rice])
    await one.inventory.substitutes.write(one.merchant, {"oat": rules}, actor=ACTOR)
    for location, units in ON_TERMS_STOCK.items():
        for sku, quantity in units.items():
            await one.receive(sku, quantity, location=location)
    return one


async def check_on_terms(shop: Shop, units: int) -> OrderState | None:
    """Check that rows hold what the order's parts do, that it is whole or that nothing is held."""
    order = await recorded(shop)
    places = ("depot", "high street", "harbour", "mill", "annex")
    names = [(place, sku) for place in places for sku in ON_TERMS_SKUS]
    rows = [row for row in await shop.inventory.rows(shop.merchant, names) if row is not None]
    held = sum(row.reserved + row.backordered for row in rows)
    if order is None:
        assert held == 0
        return None
    what = f"{order.state} {[(p.location, p.state, p.lines) for p in order.parts]}"
    now = await Orders(shop.inventory).read(shop.merchant, order.id)
    open_now = [part for part in now.parts if part.state.is_open]
    assert held == sum(units_of(part.lines) for part in open_now), what
    # Declined by its own id, and nobody came to tell the order: it is not to be decided like that.
    is_short = order.state is OrderState.HELD and any(part.missing for part in open_now)
    assert sum(row.on_hand for row in rows) == units - picked_of(order), what
    assert (order.settled, order.plan.pending) == (True, None), what
    if order.state.gives_back:
        assert held == 0, what
    elif not is_short:
        brought = Counter[str]()
        for part in order.parts:
            for line in part.brings:
                brought[line.sku] += line.quantity
        assert brought == {"box": 2, "oat": 3, "milk": 1}, what
    if order.state in (OrderState.CONFIRMED, OrderState.FULFILLED):
        assert not any(part.proposed for part in order.parts), what
    return order.state


@pytest.mark.parametrize("scenario", SCENARIOS_ON_TERMS)
async def test_an_order_on_terms_that_is_killed_at_a_step_is_whole_or_holds_nothing(
    shop: Shop, scenario: str
) -> None:
    before, act, orders = SCENARIOS_ON_TERMS[scenario]
    driver, clean = OrderDriver(shop.inventory), Reaper()
    one = await fill_on_terms(shop)
    for earlier in before:
        await earlier(one, Orders(one.inventory))
    await act(one, orders(one.inventory, watch=clean.watch))
    assert 2 <= len(clean.steps) < MAX_STEPS
    for at in range(len(clean.steps)):
        one = await fill_on_terms(shop)
        for earlier in before:
            await earlier(one, Orders(one.inventory))
        names = [(place, sku) for place in PLACES for sku in ON_TERMS_SKUS]
        units = sum(row.on_hand for row in await one.inventory.rows(one.merchant, names) if row)
        with pytest.raises(Killed):
            await act(one, orders(one.inventory, watch=Reaper(at).watch))
        if at % 2:
            with suppress(OrderNotFound):
                await act(one, Orders(one.inventory))
        else:
            await pass_time(one, driver, GRACE_MS + 1_000)
        first = await check_on_terms(one, units)
        await pass_time(one, driver, TTL_MS + GRACE_MS)
        last = await check_on_terms(one, units)
        told = f"killed {clean.steps[at]}: {first} and then {last}"
        assert last not in (OrderState.PLACING, OrderState.HELD), told
        if first in (OrderState.CONFIRMED, OrderState.FULFILLED):
            assert last == first, told
    await assert_invariants(shop.client, partitions=shop.inventory.partitions)


def killed_at(shop: Shop, step: str) -> Orders:
    """Return orders whose coordinator dies as soon as it comes to a step."""

    def watch(at: str) -> None:
        if at == step:
            raise Killed(step)

    return Orders(shop.inventory, watch=watch)


async def test_a_part_that_is_amended_before_a_step_on_it_does_not_stop_its_order(
    shop: Shop,
) -> None:
    """What the record says is to be done to the part cannot be any more."""
    shop, orders = await fill(shop), Orders(shop.inventory)
    wanted = [WantedLine("tea", 2, "depot"), WantedLine("soap", 2, "depot")]
    order = (await orders.place(shop.merchant, wanted, key="a", actor=ACTOR)).order
    (part,) = order.parts
    picks = [Line("tea", 2), Line("soap", 2)]
    with pytest.raises(Killed):
        await killed_at(shop, "after record commit").commit(
            shop.merchant, order.id, location="depot", picks=picks, actor=ACTOR
        )
    await shop.inventory.amend(
        shop.merchant, part.reservation, [Line("soap", 0)], key="amend", actor=ACTOR
    )
    await pass_time(shop, OrderDriver(shop.inventory), GRACE_MS)
    found = await orders.read(shop.merchant, order.id)
    assert (found.state, found.settled, found.parts[0].aim) == (
        OrderState.CONFIRMED,
        True,
        Aim.NONE,
    )
    done = (await orders.commit(shop.merchant, order.id, actor=ACTOR)).order
    assert (done.state, done.parts[0].picked) == (OrderState.FULFILLED, (Line("tea", 2),))
    await shop.audit()


async def test_a_proposal_that_is_amended_away_before_it_is_accepted_does_not_stop_its_order(
    shop: Shop,
) -> None:
    shop, orders = await fill(shop), Orders(shop.inventory)
    soy = Alternative(sku="soap")
    wanted = [
        WantedLine("oat", 2, "depot", Substitution.APPROVE, alternatives=(soy,)),
        WantedLine("tea", 2, "depot"),
    ]
    order = (await orders.place(shop.merchant, wanted, key="a", actor=ACTOR)).order
    (part,) = order.parts
    with pytest.raises(Killed):
        await killed_at(shop, "after record accept").accept(shop.merchant, order.id, actor=ACTOR)
    await shop.inventory.amend(
        shop.merchant, part.reservation, [Line("oat", 0)], key="amend", actor=ACTOR
    )
    confirmed = (await orders.confirm(shop.merchant, order.id, actor=ACTOR)).order
    assert (confirmed.state, confirmed.settled) == (OrderState.CONFIRMED, True)
    assert (await orders.commit(shop.merchant, order.id, actor=ACTOR)).order.settled
    await shop.audit()


@pytest.mark.parametrize("picked", [2, 1], ids=["whole", "short"])
async def test_what_was_picked_before_the_decision_is_not_planned_again(
    shop: Shop, picked: int
) -> None:
    """The depot's part was picked by its own id just before it could be given back."""
    shop, orders = await fill(shop), Orders(shop.inventory)
    rules = check_alternatives("oat", [Alternative(sku="soy"), Alternative(sku="rice", priority=9)])
    await shop.inventory.substitutes.write(shop.merchant, {"oat": rules}, actor=ACTOR)
    for sku in ("soy", "rice"):
        await shop.receive(sku, 2, location="harbour")
    await shop.receive("soap", 2, location="mill")
    wanted = [WantedLine("oat", 2, "", Substitution.APPROVE), WantedLine("soap", 2, "depot")]
    order = (await orders.place(shop.merchant, wanted, key="a", actor=ACTOR)).order
    (part,) = [part for part in order.parts if part.location == "depot"]
    with pytest.raises(Killed):
        await killed_at(shop, "after record switch").resource(
            shop.merchant, order.id, "depot", key="move", actor=ACTOR
        )
    await shop.inventory.confirm(shop.merchant, part.reservation, order_ref="x", actor=ACTOR)
    picks = [Line("soap", picked)]
    await shop.inventory.commit(shop.merchant, part.reservation, picks=picks, actor=ACTOR)
    await pass_time(shop, OrderDriver(shop.inventory), GRACE_MS)
    order = (await orders.decline(shop.merchant, order.id, key="no soy", actor=ACTOR)).order
    assert order.state is OrderState.HELD
    brought = Counter[str]()
    for one in order.parts:
        brought.update({line.sku: line.quantity for line in one.brings if one.counts})
    assert brought == {"oat": 2, "soap": 2}
    await orders.accept(shop.merchant, order.id, actor=ACTOR)
    await orders.confirm(shop.merchant, order.id, actor=ACTOR)
    done = (await orders.commit(shop.merchant, order.id, actor=ACTOR)).order
    assert (done.state, done.missing()) == (OrderState.FULFILLED, [])
    await shop.audit()
