"""Orders beside plain reserves of the same rows, their workers killed and overtaken at any step.

A step is an order's verb, or a plain call of the shop. During an order's verb its worker may die
just before any of its steps, or somebody else may act there. After each the rows are as the model
has them, every invariant holds, and an order that is settled is whole, or holds nothing. In the end
whoever drives orders has settled all, and no unit is held that nobody was promised.
"""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar
from uuid import uuid4

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

from engine.inventory import Inventory
from engine.keys import order_id, partition_of
from engine.model import Line, Reservation, ReservationState
from engine.order_driver import OrderDriver
from engine.order_records import GRACE_MS, Order, OrderKind, OrderState, WantedLine
from engine.order_requests import Options
from engine.order_steps import OrderSteps
from engine.orders import OrderResult, Orders
from engine.outcomes import (
    HoldfastError,
    InsufficientOnHand,
    InsufficientStock,
    InvalidCommand,
    OrderEnded,
    OrderNotFound,
    ReservationEnded,
    ReservationNotFound,
)
from engine.sourcing import Strategy
from tests.ordering import (
    Part,
    Shelves,
    Wanted,
    by_name,
    can_be_had,
    fewest_locations,
    free,
    missing,
    named,
    summed,
    what_is_wrong,
)
from tests.property.bench import PARTITIONS, Bench
from tests.property.test_stateful import (
    NamedShop,
    ask,
    expect,
    id_of,
    promise_facts,
    row_facts,
)
from tests.shop import ACTOR
from tests.stores import VALKEY

LOCATIONS: Final = ("high street", "depot:{7}", "harbour")
SKUS: Final = ("tea", "кофе")
HOUR_MS: Final = 3_600_000
TTLS_MS: Final = (10_000, 60_000)
STEPS_MS: Final = (1_000, GRACE_MS + 1, 60_000)
MAX_NAMES: Final = 1_000
KINDS: Final = ("receive", "receive", "count")

Answer = TypeVar("Answer")
Act = Callable[[], Awaitable[None]]

locations = st.sampled_from(LOCATIONS)
skus = st.sampled_from(SKUS)
recents = st.integers(0, 3)
carts = st.lists(st.tuples(skus, st.integers(1, 4)), min_size=1, max_size=2)
wanted_lines = st.lists(
    st.tuples(skus, st.integers(1, 4), st.sampled_from(("", "", *LOCATIONS))),
    min_size=1,
    max_size=3,
)
DEEDS: Final = (
    "place",
    "confirm",
    "cancel",
    "commit",
    "resource",
    "drive",
    "release a part",
    "commit a part",
    "take units",
    "time passes",
)
ENDINGS: Final = ("release a part", "commit a part")
VERBS: Final = ("place", "confirm", "commit", "resource", "cancel", *ENDINGS, "sweep", "drive")
PLOTS: Final = (
    ("confirm", "commit"),
    ("confirm", "sweep", "commit"),
    ("confirm", "sweep", "drive"),
    ("release a part", "confirm"),
    ("commit a part", "confirm", "resource"),
    ("commit", "resource", "commit"),
    ("resource", "resource", "confirm"),
    ("confirm", "resource", "resource", "commit"),
    ("confirm", "release a part", "resource", "cancel"),
    ("sweep", "place", "confirm"),
    ("cancel", "drive", "place"),
)

Fate = tuple[int, str, int]
"""Of a worker: before which of its steps, what happens, and to which part or location."""

fates = st.one_of(
    st.none(),
    st.tuples(st.integers(1, 5), st.just("die"), st.just(0)),
    st.tuples(st.integers(1, 6), st.sampled_from(DEEDS), st.integers(0, 3)),
)

Chapter = tuple[str, int, Fate | None]
"""What is done to an order, where, and what comes between."""


def chapters(verb: str) -> st.SearchStrategy[Chapter]:
    """Draw what happens while something is done to an order."""
    return st.tuples(st.just(verb), st.integers(0, 3), fates)


verbs = st.one_of(
    st.sampled_from(PLOTS), st.lists(st.sampled_from(VERBS), min_size=1, max_size=3).map(tuple)
)
stories = verbs.flatmap(lambda some: st.tuples(*map(chapters, some)))


class Killed(BaseException):
    """The worker's process ended here."""


class Overtaken(OrderSteps):
    """Somebody acts just before one of the steps."""

    def __init__(self, inventory: Inventory, *, at: int, act: Act) -> None:
        """Count the steps from 1."""
        super().__init__(inventory)
        self._left, self._act = at, act

    async def take(self, step: str, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """Take a step, once somebody acted."""
        self._left -= 1
        if self._left == 0:
            await self._act()
        return await super().take(step, call)


@dataclass(slots=True)
class Asked:
    """An order as it was asked for, and what was answered."""

    key: str
    id: str
    wanted: tuple[Wanted, ...]
    ttl_ms: int
    order_ref: str
    strategy: Strategy
    is_confirmed: bool = False
    """Whether somebody was told so."""
    is_cancelled: bool = False
    may_be_cancelled: bool = False


class OrdersMachine(RuleBasedStateMachine):
    """Draws orders, plain calls, and what comes between an order's steps."""

    bench: ClassVar[Bench]
    driver: ClassVar[OrderDriver]
    """Set by the test; hypothesis makes the instances."""

    def __init__(self) -> None:
        """Open a new merchant's shop on the bench."""
        super().__init__()
        self.merchant = ""
        self.model = Shelves(partition_of=self.partition, now_ms=0)
        self.asked: list[Asked] = []
        self.parts: dict[str, Part] = {}
        self.records: dict[str, Order] = {}
        self.keys_made = 0

    def partition(self, location: str) -> int:
        """Return the partition of one of the merchant's locations."""
        return partition_of(self.merchant, location, PARTITIONS)

    @property
    def inventory(self) -> Inventory:
        """The engine."""
        return self.bench.inventory

    @initialize(stock=st.lists(st.integers(3, 12), min_size=6, max_size=6))
    def open_the_shop(self, stock: list[int]) -> None:
        """Put the clock of every partition to one time ahead of the real one; fill the shelves."""
        # Two locations share a partition, so that an example repeats.
        for _ in range(MAX_NAMES):
            self.merchant = f"m-{uuid4().hex[:12]}"
            if tuple(map(self.partition, LOCATIONS)) == (0, 1, 0):
                break
        self.shop = NamedShop(self.inventory, self.bench.client, self.merchant)
        marks = [
            self.bench.run(self.shop.client.execute_command("HGET", keys.meta, "clock_ms"))
            for keys in self.inventory.keys
        ]
        ahead_ms = int(time.time() * 1000) + HOUR_MS
        self.bench.run(self._set_clocks(max(ahead_ms, *(int(mark or 0) for mark in marks)) + 1))
        rows = [(location, sku) for location in LOCATIONS for sku in SKUS]
        for (location, sku), quantity in zip(rows, stock, strict=True):
            if quantity:
                self.bench.run(self._move(location, sku, "receive", quantity))

    def teardown(self) -> None:
        """Let whoever drives orders settle them all; then nothing is held but what was promised."""
        if self.merchant:
            self.bench.run(self._end())
            self.is_as_modelled()

    async def _end(self) -> None:
        for _ in range(2):
            await self._set_clocks(self.model.now_ms + max(TTLS_MS) + GRACE_MS)
            await self._drive()
        for asked in self.asked:
            order = self.records.get(asked.id)
            if order is None:
                continue
            is_over = order.settled and not order.state.is_undecided
            assert is_over, f"{order} is stuck"
            if order.state is OrderState.CONFIRMED:
                await self._cancel(asked, Orders(self.inventory))
        for name in [name for name, one in self.model.promises.items() if one.is_live]:
            await self._step("release", name=name)
        await self._look()
        held = {name: row.reserved for name, row in self.model.rows.items() if row.reserved}
        assert not held, f"units are stuck: {held}"

    # What is seen

    async def _set_clocks(self, now_ms: int) -> None:
        self.model.now_ms = now_ms
        for keys in self.inventory.keys:
            await self.bench.client.execute_command("HSET", keys.meta, "clock_ms", str(now_ms))

    async def _drive(self) -> None:
        """Have those work who drive orders and take back what is due."""
        for _ in range(2):
            await self.driver.round()
            await self._sweep()

    async def _sweep(self) -> None:
        for keys in self.inventory.keys:
            await self.inventory.expire_due(keys.partition)
        await self._look()

    async def _look(self) -> None:
        """Have the model be as far as whoever takes back what is due, and drives orders."""
        for name, promise in self.model.promises.items():
            if promise.state == "held" and promise.expires_at <= self.model.now_ms:
                found = await self.inventory.reservation(self.merchant, id_of(self.shop, name))
                if found.state is ReservationState.EXPIRED:
                    self.model.expire(name)
        for asked in self.asked:
            order = await self.inventory.order_records.read(asked.id)
            if order is None:
                continue
            self.records[asked.id] = order
            for part in order.parts:
                await self._see(part.reservation)

    async def _see(self, the_id: str) -> None:
        try:
            found = await self.inventory.reservation(self.merchant, the_id)
        except ReservationNotFound:
            assert the_id not in self.parts, f"{the_id} is gone"
            return
        now = part_of(found)
        known = self.parts.get(the_id)
        now.by_its_own_id = known is not None and known.by_its_own_id
        wrong = self.model.see(known, now)
        assert not wrong, f"{the_id} is {now}, but {wrong}"
        self.parts[the_id] = now

    def _counting(self, order: Order) -> dict[str, Part]:
        return {
            part.reservation: self.parts[part.reservation]
            for part in order.parts
            if part.counts and part.reservation in self.parts
        }

    @invariant()
    def is_as_modelled(self) -> None:
        """Rows and plain reservations read as in the model; orders are what they may be."""
        names = list(self.model.rows)
        rows = self.bench.run(self.inventory.rows(self.merchant, names)) if names else []
        assert [row and row_facts(row) for row in rows] == [
            self.model.rows[name].facts() for name in names
        ]
        for name, promise in self.model.promises.items():
            found = self.bench.run(
                self.inventory.reservation(self.merchant, id_of(self.shop, name))
            )
            assert promise_facts(found) == promise.facts()
        for asked in self.asked:
            if asked.id in self.records:
                self._check(asked, self.records[asked.id])
        self.bench.run(self.bench.audit.check(merchant=self.merchant))

    def _check(self, asked: Asked, order: Order) -> None:
        counting = self._counting(order)
        what = f"{asked} is {order}, with {self.parts}"
        if order.state is OrderState.EXPIRED:
            assert order.expires_at_ms <= self.model.now_ms, what
        if asked.is_confirmed and not asked.may_be_cancelled:
            is_lost = not any(part.brings for part in counting.values())
            assert order.state in (OrderState.CONFIRMED, OrderState.FULFILLED) or is_lost, what
        if asked.is_cancelled:
            assert order.state is OrderState.CANCELLED, what
        if not order.settled:
            return
        wrong = what_is_wrong(asked.wanted, order.state, counting)
        assert not wrong, f"{wrong}: {what}"
        useless = [
            part.reservation
            for part in order.parts
            if not part.counts and part.reservation in self.parts
        ]
        assert not any(self.parts[the_id].is_live for the_id in useless), what
        if order.state is OrderState.CONFIRMED:
            known_as = {self.parts[the_id].order_ref for the_id in self._live(order)}
            assert known_as <= {asked.order_ref or asked.id}, what
        if order.state in (OrderState.CONFIRMED, OrderState.FULFILLED):
            read = self.bench.run(Orders(self.inventory).read(self.merchant, asked.id))
            lost = missing(asked.wanted, counting.values())
            assert summed((x.sku, x.quantity) for x in read.missing()) == {
                sku: units for sku, units in lost.items() if units
            }, what

    # Plain calls

    async def _step(self, verb: str, **what: Any) -> None:
        await self._look()
        wanted = expect(self.model, (verb, what))
        got = await ask(self.shop, (verb, what))
        assert got == wanted, f"{verb} {what}: got {got}, wanted {wanted}"

    def _new_key(self) -> str:
        self.keys_made += 1
        return f"key {self.keys_made}"

    async def _move(self, location: str, sku: str, kind: str, quantity: int) -> None:
        what = {"location": location, "sku": sku, "kind": kind, "quantity": quantity}
        await self._step("move", **what, key=self._new_key())

    async def _reserve(self, location: str, lines: list[tuple[str, int]], ttl_ms: int) -> None:
        # What is due of orders is not foretold, so it is gone before.
        await self._sweep()
        name = f"{location}/{self._new_key()}"
        await self._step("reserve", name=name, lines=lines, ttl_ms=ttl_ms)

    @rule(location=locations, sku=skus, quantity=st.integers(0, 12), kind=st.sampled_from(KINDS))
    def move(self, location: str, sku: str, quantity: int, kind: str) -> None:
        """Book an arrival; or find fewer than are promised, or more than there were."""
        self.bench.run(self._move(location, sku, kind, max(quantity, 0 if kind == "count" else 1)))

    @rule(location=locations, lines=carts, ttl_ms=st.sampled_from(TTLS_MS))
    def reserve(self, location: str, lines: list[tuple[str, int]], ttl_ms: int) -> None:
        """Hold a cart of one location."""
        self.bench.run(self._reserve(location, lines, ttl_ms))

    @precondition(lambda self: self.live())
    @rule(recent=recents, verb=st.sampled_from(("confirm", "commit", "release")))
    def end(self, recent: int, verb: str) -> None:
        """Confirm, commit or release a plain reservation."""
        live = self.live()
        self.bench.run(self._step(verb, name=live[-1 - recent % len(live)]))

    def live(self) -> list[str]:
        """Return the names of plain reservations that hold units."""
        return [name for name, promise in self.model.promises.items() if promise.is_live]

    @rule(step_ms=st.sampled_from(STEPS_MS), is_driven=st.booleans())
    def wait(self, step_ms: int, is_driven: bool) -> None:
        """Let time pass, and perhaps have whoever drives orders do so."""
        self.bench.run(self._set_clocks(self.model.now_ms + step_ms))
        if is_driven:
            self.bench.run(self._drive())
            for order in self.records.values():
                assert order.settled or step_ms <= GRACE_MS, f"{order} is not driven"

    # Orders

    @rule(
        wanted=wanted_lines,
        ttl_ms=st.sampled_from(TTLS_MS),
        order_ref=st.sampled_from(("", "web:1")),
        strategy=st.sampled_from((Strategy.FEWEST_SPLITS, Strategy.PRIORITY)),
        fate=fates,
        story=stories,
    )
    def place(
        self,
        wanted: list[Wanted],
        ttl_ms: int,
        order_ref: str,
        strategy: Strategy,
        fate: Fate | None,
        story: tuple[Chapter, ...],
    ) -> None:
        """Place a new order, and take it on."""
        key = self._new_key()
        the_id = order_id(OrderKind.ORDER, self.merchant, key, PARTITIONS)
        asked = Asked(key, the_id, tuple(wanted), ttl_ms, order_ref, strategy)
        self.asked.append(asked)
        self.bench.run(self._do(asked, "place", fate))
        self._tell(asked, story)

    @precondition(lambda self: self.asked)
    @rule(recent=recents, story=stories)
    def go_on(self, recent: int, story: tuple[Chapter, ...]) -> None:
        """Take one of the orders on, or place it again."""
        self._tell(self.asked[-1 - recent % len(self.asked)], story)

    def _tell(self, asked: Asked, story: tuple[Chapter, ...]) -> None:
        for verb, which, fate in story:
            self.is_as_modelled()
            if verb == "sweep":
                self.bench.run(self._set_clocks(self.model.now_ms + max(TTLS_MS)))
                self.bench.run(self._sweep())
            elif verb == "drive":
                self.bench.run(self._set_clocks(self.model.now_ms + GRACE_MS))
                self.bench.run(self._drive())
            elif verb in ENDINGS:
                self.bench.run(self._end_part(asked, verb.split()[0], which))
            else:
                self.bench.run(self._do(asked, verb, fate, which))

    async def _do(self, asked: Asked, verb: str, fate: Fate | None, which: int = 0) -> None:
        """Have a worker do what it is asked for, whatever comes between."""
        await self._look()
        if fate is None:
            await self._verb(asked, verb, Orders(self.inventory), which)
        else:
            at, deed, whom = fate
            steps = Overtaken(
                self.inventory, at=at, act=lambda: self._act(asked, deed, whom, which)
            )
            worker = Orders(self.inventory, steps=steps)
            with suppress(Killed):
                await self._verb(asked, verb, worker, which, is_alone=False)
        await self._look()

    async def _act(self, asked: Asked, deed: str, whom: int, which: int) -> None:
        """Do what comes between the steps of a worker."""
        await self._look()
        if deed == "die":
            raise Killed
        if deed == "drive":
            if asked.id in self.records:
                await Orders(self.inventory).drive(self.records[asked.id], actor="other")
        elif deed == "time passes":
            await self._set_clocks(self.model.now_ms + max(TTLS_MS))
            await self._sweep()
        elif deed == "take units":
            await self._take_units(LOCATIONS[whom % len(LOCATIONS)])
        elif deed in ENDINGS:
            await self._end_part(asked, deed.split(maxsplit=1)[0], whom)
        else:
            await self._verb(asked, deed, Orders(self.inventory), which, is_alone=False)
        await self._look()

    async def _take_units(self, location: str) -> None:
        """Take all that is free at a location."""
        units = {sku: self.model.shelf(location, sku).available for sku in SKUS}
        lines = [(sku, quantity) for sku, quantity in units.items() if quantity]
        if lines:
            await self._reserve(location, lines, TTLS_MS[0])

    async def _end_part(self, asked: Asked, verb: str, which: int) -> None:
        await self._look()
        live = [
            part.reservation
            for part in (self.records[asked.id].parts if asked.id in self.records else ())
            if part.reservation in self.parts and self.parts[part.reservation].is_live
        ]
        if not live:
            return
        the_id = live[which % len(live)]
        self.parts[the_id].by_its_own_id = True
        try:
            if verb == "commit":
                await self.inventory.commit(self.merchant, the_id, actor=ACTOR)
            else:
                await self.inventory.release(self.merchant, the_id, actor=ACTOR)
        except InsufficientOnHand:
            self.parts[the_id].by_its_own_id = False
        await self._look()

    async def _verb(
        self, asked: Asked, verb: str, orders: Orders, which: int, *, is_alone: bool = True
    ) -> None:
        """Call a verb, and compare its answer with what is so by then."""
        before = self.records.get(asked.id)
        was_settled = before is None or before.settled
        live, is_lost = self._live(before), self._is_lost(before)
        refusal: HoldfastError | None = None
        result: OrderResult | None = None
        try:
            result = await getattr(self, f"_{verb}")(asked, orders, *self._what(verb, asked, which))
        except HoldfastError as refused:
            refusal = refused
        await self._look()
        now = self.records.get(asked.id)
        what = f"{verb} {asked}: {refusal or result}, from {before} to {now}, parts {self.parts}"
        if is_alone:
            # What cannot be cancelled is left to who ended it.
            is_left = verb == "cancel" and refusal is not None
            assert now is None or now.settled or is_left, what
            assert result is None or result.order == now, what
        if is_alone and was_settled:
            self._foretold(asked, verb, before, refusal, live, which, what, is_lost=is_lost)
        if is_alone and verb == "place" and result is not None and not result.replayed:
            self._is_laid_out_well(asked, result.order, what)

    def _what(self, verb: str, asked: Asked, which: int) -> tuple[Any, ...]:
        """Return which location a verb is about, and of a pick the units."""
        order = self.records.get(asked.id)
        if verb not in ("commit", "resource"):
            return ()
        location = self._there(order, which)
        if verb == "resource":
            return (location,)
        if which == 0:
            return ("", ())
        held = [
            part
            for part in (order.parts if order else ())
            if part.location == location and part.state.is_open and part.counts
        ]
        if which == 1 or not held:
            return (location, ())
        lines = summed((line.sku, line.quantity) for part in held for line in part.lines)
        picks = [Line(sku, max(0, units - which + 1)) for sku, units in lines.items()]
        return (location, tuple(picks))

    async def _place(self, asked: Asked, orders: Orders) -> OrderResult:
        return await orders.place(
            self.merchant,
            [WantedLine(*line) for line in asked.wanted],
            key=asked.key,
            ttl_ms=asked.ttl_ms,
            order_ref=asked.order_ref,
            options=Options(strategy=asked.strategy),
            actor=ACTOR,
        )

    async def _confirm(self, asked: Asked, orders: Orders) -> OrderResult:
        result = await orders.confirm(self.merchant, asked.id, actor=ACTOR)
        asked.is_confirmed = True
        return result

    async def _cancel(self, asked: Asked, orders: Orders) -> OrderResult:
        asked.may_be_cancelled = True
        result = await orders.cancel(self.merchant, asked.id, actor=ACTOR)
        asked.is_cancelled = True
        return result

    async def _commit(
        self, asked: Asked, orders: Orders, location: str, picks: tuple[Line, ...]
    ) -> OrderResult:
        result = await orders.commit(
            self.merchant, asked.id, location=location, picks=picks, actor=ACTOR
        )
        asked.is_confirmed = True
        return result

    async def _resource(self, asked: Asked, orders: Orders, location: str) -> OrderResult:
        result = await orders.resource(
            self.merchant, asked.id, location, key=f"{asked.key} {location}", actor=ACTOR
        )
        if not result.replayed:
            there = [part for part in result.order.parts if part.location == location]
            assert not any(part.state.is_open for part in there), result
        return result

    def _foretold(
        self,
        asked: Asked,
        verb: str,
        before: Order | None,
        refusal: HoldfastError | None,
        live: set[str],
        which: int,
        what: str,
        *,
        is_lost: bool,
    ) -> None:
        """Check what a verb answers that nobody came between."""
        state = None if before is None else before.state
        units = self.model.units(LOCATIONS, SKUS)
        if verb == "place" and state in (None, OrderState.FAILED):
            is_refused = isinstance(refusal, InsufficientStock)
            assert is_refused or refusal is None, what
            # What was held is not free any more, and what was due is taken back before a refusal.
            assert not is_refused or not can_be_had(asked.wanted, units), what
        elif verb == "place":
            assert refusal is None, what
        elif before is None:
            assert isinstance(refusal, OrderNotFound), what
        elif verb == "confirm":
            is_open = state in (OrderState.HELD, OrderState.CONFIRMED, OrderState.FULFILLED)
            is_lost = is_lost and state is OrderState.HELD
            assert isinstance(refusal, OrderEnded) == (not is_open or is_lost), what
        elif verb == "cancel":
            is_open = state in (OrderState.HELD, OrderState.CONFIRMED, OrderState.CANCELLED)
            assert isinstance(refusal, OrderEnded) == (not is_open), what
        elif verb == "commit":
            assert isinstance(refusal, OrderEnded | InsufficientOnHand | InvalidCommand | None), (
                what
            )
        elif verb == "resource":
            kinds = OrderEnded | InsufficientStock | InvalidCommand | ReservationEnded
            assert refusal is None or isinstance(refusal, kinds), what
            assert refusal is None or self._live(before) == live, what
            # Of a held order nobody has written down yet what was picked by its own id.
            assert is_lost or not isinstance(refusal, ReservationEnded), what
            if isinstance(refusal, InsufficientStock):
                assert not self._could_be_had_elsewhere(before, self._there(before, which)), what

    def _live(self, order: Order | None) -> set[str]:
        counting = self._counting(order) if order else {}
        return {the_id for the_id, part in counting.items() if part.is_live}

    def _is_lost(self, order: Order | None) -> bool:
        """Tell whether a part was ended by its own id, and its order does not know that yet."""
        return order is not None and any(
            part.state.is_open and part.counts and not self.parts[part.reservation].is_live
            for part in order.parts
            if part.reservation in self.parts
        )

    def _there(self, order: Order | None, which: int) -> str:
        places = [part.location for part in order.parts] if order else []
        return places[which % len(places)] if places else LOCATIONS[which % len(LOCATIONS)]

    def _could_be_had_elsewhere(self, order: Order, location: str) -> bool:
        """Tell whether other locations have what a location still holds of an order."""
        there = [part for part in self._counting(order).values() if part.location == location]
        tried = {one.location for one in order.plan.resourcings} | {location}
        units = self.model.units([one for one in LOCATIONS if one not in tried], SKUS)
        wanted = summed(line for part in there if part.is_live for line in part.lines.items())
        return bool(wanted) and can_be_had([(sku, n, "") for sku, n in wanted.items()], units)

    def _is_laid_out_well(self, asked: Asked, order: Order, what: str) -> None:
        """Check which locations an order's units come from, as of just before they were taken."""
        brought: dict[tuple[str, str], int] = {}
        for part in self._counting(order).values():
            for sku, quantity in part.lines.items():
                brought[part.location, sku] = brought.get((part.location, sku), 0) + quantity
        units = self.model.units(LOCATIONS, SKUS)
        for name, quantity in brought.items():
            units[name] += quantity
        assert all(brought.get(name, 0) >= n for name, n in named(asked.wanted).items()), what
        if asked.strategy is Strategy.PRIORITY:
            assert brought == by_name(asked.wanted, units), what
        if asked.strategy is Strategy.FEWEST_SPLITS and free(asked.wanted):
            there = named(asked.wanted)
            places = {name[0] for name, n in brought.items() if n > there.get(name, 0)}
            assert len(places) == fewest_locations(asked.wanted, units), what


def part_of(found: Reservation) -> Part:
    """Return a reservation as the model has parts."""
    return Part(
        found.location,
        {line.sku: line.quantity for line in found.lines},
        found.state.value,
        {line.sku: line.quantity for line in found.picked or () if line.quantity},
        found.order_ref,
    )


@pytest.mark.slow
@pytest.mark.parametrize("store_kind", [VALKEY], indirect=True, scope="module")
def test_orders_are_whole_or_not_there_whoever_dies_or_comes_between(bench: Bench) -> None:
    class Machine(OrdersMachine):
        """The machine on this bench."""

    Machine.bench = bench
    Machine.driver = OrderDriver(bench.inventory)
    # A step may be a whole story.
    steps = settings().stateful_step_count // 3
    run_state_machine_as_test(Machine, settings=settings(stateful_step_count=steps))
