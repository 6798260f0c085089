"""Orders of kits, substitutes, backorders, pools, caps and days, killed and overtaken at any step.

A step is an order's verb, or what a shop does beside: units come and go, supplies slip, carts take
what orders want, time passes. During an order's verb its worker may die just before any of its
steps, or somebody else may act there. What serves what is not foretold (`tests.model` has that of
carts): here every order has what was asked for or holds nothing, nothing that was declined stands
for anything, no shelf promises more than it has, the ledger folds to what the store has, and in the
end nothing is held.
"""

import time
from collections import Counter
from contextlib import suppress
from typing import ClassVar, Final, NamedTuple
from uuid import uuid4

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.keys import order_id
from engine.kits import check_kit
from engine.model import BuyerCap, Line, MovementType, Pool, ProposalDecision, Reservation, Terms
from engine.order_driver import OrderDriver
from engine.order_records import GRACE_MS, Order, OrderKind, OrderState, Part, WantedLine
from engine.order_requests import Options
from engine.orders import Orders
from engine.outcomes import (
    BuyerCapExceeded,
    HoldfastError,
    InsufficientStock,
    InvalidCommand,
    ReservationEnded,
)
from engine.served import served
from engine.sourcing import Strategy
from engine.substitutes import Alternative, check_alternatives
from engine.wishes import Fill, Substitution
from tests.property.bench import PARTITIONS, Bench
from tests.property.test_orders_property import Killed, Overtaken
from tests.shop import ACTOR, Shop
from tests.stores import VALKEY

LOCATIONS: Final = ("depot", "harbour", "high street")
ROWS: Final = ("tea", "mug", "oat", "soy", "rice")
KITS: Final = {"box": {"mug": 1, "tea": 2}, "pair": {"mug": 2}}
MONDAY, FRIDAY = "2026-12-07", "2026-12-11"
HOUR_MS: Final = 3_600_000
TTL_MS: Final = 60_000
DEEDS: Final = (
    "die",
    "confirm",
    "accept",
    "decline",
    "cancel",
    "commit",
    "resource",
    "drive",
    "release a part",
    "decline a part",
    "take units",
    "time passes",
)
VERBS: Final = (
    "confirm",
    "confirm",
    "accept",
    "accept",
    "decline",
    "decline",
    "commit",
    "resource",
    "cancel",
    "place",
    "release a part",
    "decline a part",
)

PLOTS: Final = (
    ("decline", "decline", "accept", "confirm"),
    ("decline", "accept", "confirm", "commit"),
    ("decline a part", "confirm", "accept", "confirm"),
    ("decline a part", "decline", "confirm", "cancel"),
    ("accept", "confirm", "resource", "commit"),
    ("accept", "decline", "confirm", "commit"),
    ("resource", "decline", "accept", "confirm"),
    ("resource", "resource", "accept", "confirm"),
    ("release a part", "decline", "confirm", "place"),
)

Fate = tuple[int, str]
"""Of a worker: before which of its steps, and what happens there."""

Story = tuple[tuple[str, int, Fate | None], ...]
"""What is done to an order, to which of its parts, and what comes between."""

locations = st.sampled_from(LOCATIONS)
rows = st.sampled_from(ROWS)
whiches = st.integers(0, 3)
fates = st.one_of(st.none(), st.none(), st.tuples(st.integers(1, 7), st.sampled_from(DEEDS)))
wanted_skus = st.sampled_from(("oat", "oat", "oat", "box", "pair", "mug", "tea"))
verbs = st.one_of(
    st.sampled_from(PLOTS),
    st.lists(st.sampled_from(VERBS), min_size=1, max_size=4).map(tuple),
)
stories = verbs.flatmap(
    lambda some: st.tuples(*[st.tuples(st.just(x), whiches, fates) for x in some])
)
terms = st.builds(
    Terms,
    backorder_limit=st.sampled_from((0, 0, 3)),
    channels=st.sampled_from(({}, {}, {"app": Pool(minimum=1, cap=3)})),
    buyer_cap=st.sampled_from((None, None, None, BuyerCap(3, HOUR_MS))),
)
asks = st.builds(
    Options,
    strategy=st.sampled_from((Strategy.FEWEST_SPLITS, Strategy.PRIORITY, Strategy.MOST_STOCK)),
    stock_only=st.sampled_from((False, False, True)),
    channel=st.sampled_from(("", "", "", "app")),
)


@st.composite
def wanted_lines(draw: st.DrawFn) -> list[WantedLine]:
    """Draw an order's lines; all of one SKU say the same of substitutes."""
    how = draw(st.sampled_from((Substitution.APPROVE, Substitution.APPROVE, *Substitution)))
    fill = Fill.MIXED if how is Substitution.NONE else draw(st.sampled_from((Fill.MIXED, *Fill)))
    lines = []
    for sku in draw(st.lists(wanted_skus, min_size=1, max_size=2)):
        place = draw(st.sampled_from(("", "", "", "", *LOCATIONS)))
        quantity = draw(st.integers(1, 3))
        is_oat = sku == "oat"
        lines.append(
            WantedLine(
                sku,
                quantity,
                place,
                how if is_oat else Substitution.NONE,
                fill if is_oat else Fill.MIXED,
            )
        )
    return lines


SHORT_OF_OATS: Final = [WantedLine("oat", 2, "", Substitution.APPROVE), WantedLine("mug", 1)]


class Asked(NamedTuple):
    """An order as it was asked for."""

    key: str
    id: str
    lines: list[WantedLine]
    options: Options
    buyer: str


class OnTermsMachine(RuleBasedStateMachine):
    """Draws a shop's day."""

    bench: ClassVar[Bench]
    driver: ClassVar[OrderDriver]
    """Set by the test; hypothesis makes the instances."""

    def __init__(self) -> None:
        """Nothing is open yet."""
        super().__init__()
        self.merchant = ""
        self.now_ms = 0
        self.keys_made = 0
        self.asked: list[Asked] = []
        self.carts: list[str] = []
        self.ended_by_own_id: set[str] = set()
        self.cancelled: set[str] = set()

    @initialize(
        stock=st.lists(st.integers(0, 6), min_size=15, max_size=15),
        some=st.lists(st.tuples(locations, rows, terms), max_size=3),
    )
    def open_the_shop(self, stock: list[int], some: list[tuple[str, str, Terms]]) -> None:
        """Say what is sold and on which terms, and fill the shelves."""
        self.merchant = f"m-{uuid4().hex[:12]}"
        self.shop = Shop(self.bench.inventory, self.bench.client, self.merchant)
        self.now_ms = int(time.time() * 1000) + HOUR_MS
        self.bench.run(self._open(stock, some))

    async def _open(self, stock: list[int], some: list[tuple[str, str, Terms]]) -> None:
        for keys in self.shop.inventory.keys:
            mark = await self.bench.client.execute_command("HGET", keys.meta, "clock_ms")
            self.now_ms = max(self.now_ms, int(mark or 0) + 1)
        await self._set_clocks(0)
        made = {sku: check_kit(sku, [Line(*x) for x in of.items()]) for sku, of in KITS.items()}
        await self.shop.inventory.kits.write(self.merchant, made, actor=ACTOR)
        rice = Alternative(sku="rice", of=2, priority=200, approval=True)
        rules = check_alternatives("oat", [Alternative(sku="soy"), rice])
        await self.shop.inventory.substitutes.write(self.merchant, {"oat": rules}, actor=ACTOR)
        names = [(location, sku) for location in LOCATIONS for sku in ROWS]
        for (location, sku), units in zip(names, stock, strict=True):
            # Oats are scarce, so that something has to stand for them.
            if units and (sku != "oat" or units > 3):
                await self.shop.receive(sku, 1 if sku == "oat" else units, location=location)
        await self.shop.receive("soy", 2, location="depot")
        await self.shop.receive("rice", 5, location="harbour")
        for location, sku, one in some:
            await self.shop.set_terms(sku, one, location=location)

    async def _set_clocks(self, step_ms: int) -> None:
        self.now_ms += step_ms
        for keys in self.shop.inventory.keys:
            await self.bench.client.execute_command("HSET", keys.meta, "clock_ms", self.now_ms)

    async def _sweep(self) -> None:
        for keys in self.shop.inventory.keys:
            await self.shop.inventory.expire_due(keys.partition)

    async def _drive(self) -> None:
        for _ in range(2):
            await self.driver.round()
            await self._sweep()

    # What the shop does

    @rule(
        kind=st.sampled_from(("receive", "receive", "sell", "expect", "arrive", "take")),
        location=locations,
        sku=rows,
        day=st.sampled_from((MONDAY, FRIDAY)),
        quantity=st.integers(1, 4),
    )
    def trade(self, kind: str, location: str, sku: str, day: str, quantity: int) -> None:
        """Units come and go, a supply is announced, slips or comes, a cart takes all it can get."""
        if kind == "receive":
            self.bench.run(self.shop.receive(sku, quantity, location=location))
        elif kind == "expect":
            self.bench.run(self.shop.expect(sku, "po", day, quantity, location=location))
        elif kind == "take":
            self.bench.run(self._take_units(location))
        else:
            self.bench.run(self._sell_or_arrive(kind, location, sku, quantity))

    async def _sell_or_arrive(self, kind: str, location: str, sku: str, quantity: int) -> None:
        (row,) = await self.shop.inventory.rows(self.merchant, [(location, sku)])
        if row is not None and kind == "sell" and row.available:
            # Only what nobody was promised: so no shelf ever has too little.
            await self.shop.move(MovementType.SALE, sku, row.available, location=location)
        if row is not None and kind == "arrive" and row.terms and "po" in row.terms.supplies:
            received = MovementType.RECEIVE
            await self.shop.move(received, sku, quantity, location=location, supply="po")

    async def _take_units(self, location: str) -> None:
        lines = [(sku, 9) for sku in ROWS]
        with suppress(InsufficientStock, BuyerCapExceeded, InvalidCommand):
            made = await self.shop.reserve(
                lines, location=location, ttl_ms=TTL_MS, partial=True, buyer="bea"
            )
            self.carts.append(made.reservation.id)

    @rule(step_ms=st.sampled_from((1_000, GRACE_MS + 1, TTL_MS)), is_driven=st.booleans())
    def wait(self, step_ms: int, is_driven: bool) -> None:
        """Let time pass, and perhaps have whoever drives orders do so."""
        self.bench.run(self._set_clocks(step_ms))
        self.bench.run(self._drive() if is_driven else self._sweep())

    # Orders

    @rule(
        lines=st.one_of(st.just(SHORT_OF_OATS), wanted_lines()),
        options=asks,
        day=st.sampled_from(("", "", MONDAY, FRIDAY)),
        buyer=st.sampled_from(("ann", "ann", "")),
        fate=fates,
        story=stories,
    )
    def place(
        self,
        lines: list[WantedLine],
        options: Options,
        day: str,
        buyer: str,
        fate: Fate | None,
        story: Story,
    ) -> None:
        """Place an order, and take it on."""
        if not options.stock_only:
            options = msgspec.structs.replace(options, by=day)
        key = self._new_key()
        the_id = order_id(OrderKind.ORDER, self.merchant, key, PARTITIONS)
        asked = Asked(key, the_id, lines, options, buyer)
        self.asked.append(asked)
        self._do(asked, "place", 0, fate)
        self._go_on(asked, story)

    @precondition(lambda self: self.asked)
    @rule(recent=st.integers(0, 3), story=stories)
    def go_on(self, recent: int, story: Story) -> None:
        """Take one of the orders on."""
        self._go_on(self.asked[-1 - recent % len(self.asked)], story)

    def _go_on(self, asked: Asked, story: Story) -> None:
        for verb, which, fate in story:
            self.is_as_it_should_be()
            self._do(asked, verb, which, fate)

    def _do(self, asked: Asked, verb: str, which: int, fate: Fate | None) -> None:
        self.bench.run(self._try(asked, verb, which, fate))

    async def _try(self, asked: Asked, verb: str, which: int, fate: Fate | None) -> None:
        orders = Orders(self.shop.inventory)
        if fate is not None:
            at, deed = fate
            steps = Overtaken(self.shop.inventory, at=at, act=lambda: self._act(asked, deed, which))
            orders = Orders(self.shop.inventory, steps=steps)
        with suppress(Killed):
            await self._verb(asked, verb, orders, which, is_alone=fate is None)

    async def _act(self, asked: Asked, deed: str, which: int) -> None:
        """Do what comes between the steps of a worker."""
        if deed == "die":
            raise Killed
        if deed == "drive":
            order = await self.shop.inventory.order_records.read(asked.id)
            if order is not None:
                await Orders(self.shop.inventory).drive(order, actor="other")
        elif deed == "take units":
            await self._take_units(LOCATIONS[which % len(LOCATIONS)])
        elif deed == "time passes":
            await self._set_clocks(TTL_MS)
            await self._sweep()
        else:
            await self._verb(asked, deed, Orders(self.shop.inventory), which, is_alone=False)

    async def _verb(
        self, asked: Asked, verb: str, orders: Orders, which: int, *, is_alone: bool
    ) -> None:
        shop, merchant = self.shop, self.merchant
        before = await shop.inventory.order_records.read(asked.id)
        refusal: HoldfastError | None = None
        try:
            if verb == "place":
                await orders.place(
                    merchant,
                    asked.lines,
                    key=asked.key,
                    ttl_ms=TTL_MS,
                    options=asked.options,
                    buyer=asked.buyer,
                    actor=ACTOR,
                )
            elif verb == "decline":
                await orders.decline(merchant, asked.id, key=self._new_key(), actor=ACTOR)
            elif verb == "resource":
                places = [part.location for part in before.parts] if before else []
                place = places[which % len(places)] if places else LOCATIONS[0]
                key = f"{asked.key} {place}"
                await orders.resource(merchant, asked.id, place, key=key, actor=ACTOR)
            elif verb.endswith("a part"):
                await self._end_part(asked, verb.split(maxsplit=1)[0], orders, before, which)
            else:
                if verb == "cancel":
                    self.cancelled.add(asked.id)
                await getattr(orders, verb)(merchant, asked.id, actor=ACTOR)
        except HoldfastError as refused:
            refusal = refused
        if is_alone and verb == "place" and before is None and refusal is not None:
            await self._could_not_be_had(asked, refusal)
        if is_alone and not verb.endswith("a part"):
            now = await shop.inventory.order_records.read(asked.id)
            is_left = verb == "cancel" and refusal is not None
            assert now is None or now.settled or is_left, f"{verb}: {refusal}, {now}"
            if verb == "confirm" and refusal is None:
                assert now is not None
                assert now.state in (OrderState.CONFIRMED, OrderState.FULFILLED), now
                assert not any(part.proposed for part in now.parts if part.state.is_open), now

    async def _end_part(
        self, asked: Asked, how: str, orders: Orders, order: Order | None, which: int
    ) -> None:
        live = [part for part in (order.parts if order else ()) if part.state.is_open]
        if how == "decline":
            live = [part for part in live if part.proposed]
        if not live:
            return
        the_id = live[which % len(live)].reservation
        inventory = self.shop.inventory
        if how == "decline":
            declined = ProposalDecision.DECLINED
            await inventory.decide(self.merchant, the_id, declined, actor=ACTOR)
            self.ended_by_own_id.add(the_id)
            await orders.heed(self.merchant, asked.id, the_id, actor=ACTOR)
        else:
            self.ended_by_own_id.add(the_id)
            await inventory.release(self.merchant, the_id, actor=ACTOR)

    async def _could_not_be_had(self, asked: Asked, refusal: HoldfastError) -> None:
        """Check a refusal, where one plain SKU was asked for of wherever it is."""
        (first, *rest) = asked.lines
        is_plain = first.sku in ("tea", "mug") and not first.location and not rest
        if not is_plain or asked.options.channel:
            return
        names = [(location, first.sku) for location in LOCATIONS]
        there = [one for one in await self.shop.inventory.rows(self.merchant, names) if one]
        if any(one.terms and (one.terms.channels or one.terms.buyer_cap) for one in there):
            return
        units = sum(one.available for one in there)
        if asked.options.by:
            for one in there:
                by_day = [x.quantity for x in one.available_to_promise if x.by <= asked.options.by]
                units += max(0, by_day[-1] - one.available) if by_day else 0
        elif not asked.options.stock_only:
            units += sum(one.backorder_available for one in there)
        assert units < first.quantity, f"{asked} was refused: {refusal}, of {there}"

    def _new_key(self) -> str:
        self.keys_made += 1
        return f"key {self.keys_made}"

    # What holds

    @invariant()
    def is_as_it_should_be(self) -> None:
        """Check every order, every row and the ledger."""
        if self.merchant:
            self.bench.run(self._check())

    async def _check(self) -> None:
        names = [(location, sku) for location in LOCATIONS for sku in (*ROWS, *KITS)]
        for row in await self.shop.inventory.rows(self.merchant, names):
            assert row is None or row.reserved <= row.on_hand, f"an oversell: {row}"
        for asked in self.asked:
            order = await self.shop.inventory.order_records.read(asked.id)
            if order is not None and order.settled:
                await self._check_order(asked, order)
        await self.bench.audit.check(merchant=self.merchant)

    async def _check_order(self, asked: Asked, order: Order) -> None:
        parts = [(part, await self._reservation(part)) for part in order.parts]
        live = [(part, found) for part, found in parts if found and found.state.is_open]
        what = f"{order}, with {[found for _, found in parts]}"
        assert order.plan.pending is None, what
        if order.state.gives_back or order.state is OrderState.FULFILLED:
            assert not live, f"units are stuck: {what}"
        assert all(part.counts for part, _ in live), f"units are stuck: {what}"
        turned_down = {(one.sku, one.stand_in) for one in order.plan.declines}
        brought = Counter[str]()
        for _, found in live:
            assert not turned_down & {(x.asked, x.sku) for x in found.stands_for}, what
            for one in served(found.lines, found.stands_for, found.lines):
                brought[one.sku] += one.quantity
        if order.state is OrderState.HELD and not self._is_lost(order):
            wanted = Counter[str]()
            for line in asked.lines:
                wanted[line.sku] += line.quantity
            assert brought == wanted, what
            for line in asked.lines:
                is_there = any(
                    part.location == line.location
                    for part, found in live
                    if any(x.sku == line.sku for x in part.asks)
                )
                assert not line.location or is_there or order.plan.resourcings, what
        if order.state is OrderState.CONFIRMED:
            # One whose parts were all released by their own ids learns that within the hour.
            assert live or self._is_lost(order), what
            assert not any(x.sku in found.proposed for _, found in live for x in found.lines), what

    def _is_lost(self, order: Order) -> bool:
        """Tell whether a part was ended by its own id, and its order does not know that yet."""
        return any(part.reservation in self.ended_by_own_id for part in order.parts if part.counts)

    async def _reservation(self, part: Part) -> Reservation | None:
        with suppress(HoldfastError):
            return await self.shop.inventory.reservation(self.merchant, part.reservation)
        return None

    def teardown(self) -> None:
        """Let whoever drives orders settle them all; then nothing is held any more."""
        if self.merchant:
            self.bench.run(self._end())

    async def _end(self) -> None:
        for _ in range(2):
            await self._set_clocks(TTL_MS + GRACE_MS + 1)
            await self._drive()
        for asked in self.asked:
            order = await self.shop.inventory.order_records.read(asked.id)
            if order is not None:
                is_over = order.settled and not order.state.is_undecided
                assert is_over, f"{order} is stuck"
                if order.state is OrderState.CONFIRMED:
                    await Orders(self.shop.inventory).cancel(self.merchant, asked.id, actor=ACTOR)
        for cart in self.carts:
            with suppress(ReservationEnded):
                await self.shop.release(cart)
        await self._check()
        names = [(location, sku) for location in LOCATIONS for sku in ROWS]
        rows = await self.shop.inventory.rows(self.merchant, names)
        stuck = [row for row in rows if row and row.reserved + row.backordered]
        assert not stuck, f"units are stuck: {stuck}"


@pytest.mark.slow
@pytest.mark.parametrize("store_kind", [VALKEY], indirect=True, scope="module")
def test_orders_on_terms_are_whole_or_hold_nothing_whoever_dies_or_comes_between(
    bench: Bench,
) -> None:
    class Machine(OnTermsMachine):
        """The machine on this bench."""

    Machine.bench = bench
    Machine.driver = OrderDriver(bench.inventory)
    steps = settings().stateful_step_count // 4
    run_state_machine_as_test(Machine, settings=settings(stateful_step_count=steps))
