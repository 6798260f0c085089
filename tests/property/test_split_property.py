"""A split row against the model of one that never heard of partitions, cut off at every step.

Two engines with memories of their own take turns, the row is spread anew and put together while
they do, and what moves units is lost before or after it happened, as when a process is killed.
Whatever comes of that, the row answers as the one row that it is, and every invariant holds.
"""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, ClassVar, Final
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

from engine import sold_out, splits
from engine.dispatch import Command
from engine.inventory import Inventory
from engine.keys import digest, partition_of, partition_of_reservation
from engine.model import Line, MovementType
from engine.outcomes import (
    HoldfastError,
    InsufficientStock,
    LimitExceeded,
    OutcomeUnknown,
    StoreUnavailable,
)
from tests import model
from tests.property.bench import Bench
from tests.shelves import Shelf
from tests.shop import ACTOR, LOCATION, Shop, new_key
from tests.stores import RealStore

PARTITIONS: Final = 5
MOST_PARTS: Final = PARTITIONS - 1
WAYS: Final = 12
"""A multiple of every number of parts."""

MAX_NAMES: Final = 10_000
SKU: Final = "tea"
TTL_MS: Final = 86_400_000
TOLD: Final = ("on_hand", "reserved", "safety_stock", "deficit")
CUT: Final = ("split", "part")

recents: Final = st.integers(0, 6)


class Breaker:
    """Loses the messages between home and parts of one engine, once, at a step that is drawn."""

    def __init__(self, inventory: Inventory) -> None:
        """Stand between the engine and its store."""
        self._run = inventory.dispatcher.run
        self.left = 0
        self.comes_through = False
        # The seam of this test: all that an engine writes goes through here.
        inventory.dispatcher.run = self.run  # type: ignore[method-assign]

    async def run(self, verb: str, partition: int, command: Command) -> list[Any]:
        """Run a command, or lose it or its answer."""
        if verb in CUT and self.left:
            self.left -= 1
            if self.left == 0:
                if not self.comes_through:
                    raise StoreUnavailable()
                await self._run(verb, partition, command)
                raise OutcomeUnknown()
        return await self._run(verb, partition, command)


class SplitMachine(RuleBasedStateMachine):
    """Makes each call on one of two engines, and on the model."""

    bench: ClassVar[Bench]
    inventories: ClassVar[list[Inventory]]
    breakers: ClassVar[list[Breaker]]

    def __init__(self) -> None:
        """Open a new merchant's shop."""
        super().__init__()
        # New, but with one home for the row, so that an example repeats.
        merchant = next(
            name
            for name in (f"m-{uuid4().hex[:12]}" for _ in range(MAX_NAMES))
            if partition_of(name, LOCATION, PARTITIONS) == 0
        )
        self.shops = [Shop(one, self.bench.client, merchant) for one in self.inventories]
        self.name = (merchant, LOCATION, SKU)
        self.model = model.Shop(partition_of=lambda _: 0, now_ms=1)
        self.ids: dict[str, str] = {}
        self.asked: dict[str, tuple[int, bool]] = {}
        self.made = 0

    @initialize(stock=st.integers(0, 40), parts=st.integers(1, MOST_PARTS))
    def open_the_shop(self, stock: int, parts: int) -> None:
        """Receive the first units, and split the row."""
        self.move(0, "receive", stock + 1)
        self.split(0, parts)

    def teardown(self) -> None:
        """Have nothing cut in the next example."""
        for breaker in self.breakers:
            breaker.left = 0

    @property
    def shelf(self) -> Shelf:
        return self.model.shelf(LOCATION, SKU)

    @rule(which=st.integers(0, 1), left=st.integers(1, 9), comes_through=st.booleans())
    def cut(self, which: int, left: int, comes_through: bool) -> None:
        """Lose one of the next messages of an engine, or just the answer to it."""
        self.breakers[which].left, self.breakers[which].comes_through = left, comes_through

    @rule(which=st.integers(0, 1), parts=st.integers(1, MOST_PARTS))
    def split(self, which: int, parts: int) -> None:
        """Spread the row anew, or not at all; now and then that is cut off half-way."""
        splits = self.shops[which].inventory.splits
        # More than so often within a day is refused.
        with suppress(StoreUnavailable, OutcomeUnknown, LimitExceeded):
            self.bench.run(splits.change(self.name, parts, actor=ACTOR))

    @rule(which=st.integers(0, 1))
    def tend(self, which: int) -> None:
        """Do what the background process does now and then."""
        with suppress(StoreUnavailable, OutcomeUnknown):
            self.bench.run(self.shops[which].inventory.splits.tend(self.name))

    def ask(self, which: int, call: Any) -> Any:
        """Make a call until it is answered, as a client does; return a refusal, too."""

        async def persist() -> Any:
            for _ in range(3):
                try:
                    return await call(self.shops[which])
                except (StoreUnavailable, OutcomeUnknown):
                    continue
                except HoldfastError as refusal:
                    return refusal
            raise AssertionError("one cut is one failure")

        return self.bench.run(persist())

    @rule(
        which=st.integers(0, 1),
        kind=st.sampled_from(("receive", "receive", "sale", "count", "return")),
        quantity=st.integers(1, 12),
    )
    def move(self, which: int, kind: str, quantity: int) -> None:
        """Book what happened on the shelf: it is never refused."""
        is_told = not any(breaker.left for breaker in self.breakers)
        for shop in self.shops:
            self.bench.run(shop.inventory.splits.flush())
        key = new_key()
        self.model.move(LOCATION, SKU, kind, quantity, key=key)
        moved = self.ask(which, lambda shop: shop.move(MovementType(kind), SKU, quantity, key=key))
        if is_told:
            # Else what the parts did just now may be missing in the answer, as in any of 25 ms.
            assert {name: getattr(moved.row, name) for name in TOLD} == self.told()

    @rule(which=st.integers(0, 1), safety_stock=st.integers(0, 6))
    def keep_back(self, which: int, safety_stock: int) -> None:
        """Keep units back."""
        key = new_key()

        async def configure(shop: Shop) -> Any:
            row = await shop.row(SKU)
            return await shop.inventory.configure(
                shop.merchant, LOCATION, SKU, key=key, safety_stock=safety_stock,
                expected_version=row.version, actor=ACTOR,
            )  # fmt: skip

        self.ask(which, configure)
        self.shelf.safety_stock = safety_stock

    @rule(which=st.integers(0, 1), quantity=st.integers(1, 9), partial=st.booleans())
    def reserve(self, which: int, quantity: int, partial: bool) -> None:
        """Hold units: as many as one row has, wherever they are, or the same refusal."""
        self._reserve(which, self._new_key(), quantity, partial)

    @precondition(lambda self: self.ids)
    @rule(which=st.integers(0, 1), recent=recents)
    def reserve_again(self, which: int, recent: int) -> None:
        """Retry, also after the row was spread anew: the answer is the first one."""
        key = list(self.ids)[-1 - recent % len(self.ids)]
        before = self.ids[key]
        self._reserve(which, key, *self.asked[key])
        assert self.ids[key] == before

    def _reserve(self, which: int, key: str, quantity: int, partial: bool) -> None:
        lines = ((SKU, quantity),)
        wanted = self.model.reserve(LOCATION, lines, name=key, ttl_ms=TTL_MS, partial=partial)

        async def reserve(shop: Shop) -> Any:
            return await shop.reserve(lines, key=key, ttl_ms=TTL_MS, partial=partial)

        self.asked[key] = (quantity, partial)
        result = self.ask(which, reserve)
        if isinstance(result, InsufficientStock):
            told = [(line.sku, line.requested, line.available, line.known) for line in result.lines]
            assert {"code": result.code, "lines": tuple(told)} == wanted
            return
        assert wanted["code"] == "ok", (wanted, result)
        found = tuple((line.sku, line.quantity) for line in result.reservation.lines)
        assert found == wanted["lines"]
        self.ids[key] = result.reservation.id

    @rule(which=st.integers(0, 1), quantity=st.integers(1, 9))
    def reserve_a_cart(self, which: int, quantity: int) -> None:
        """Hold a cart of two SKUs, which is at home in any case."""
        key, lines = self._new_key(), ((SKU, quantity), ("mug", 1))
        self.model.move(LOCATION, "mug", "receive", 1, key=f"mug {key}")
        self.ask(which, lambda shop: shop.move(MovementType.RECEIVE, "mug", 1, key=f"mug {key}"))
        wanted = self.model.reserve(LOCATION, lines, name=key, ttl_ms=TTL_MS)
        result = self.ask(which, lambda shop: shop.reserve(lines, key=key, ttl_ms=TTL_MS))
        if isinstance(result, HoldfastError):
            assert result.code == wanted["code"]
            return
        assert wanted["code"] == "ok", (wanted, result)
        # It is not asked for again: it has two lines.
        self.model.requests.pop(("reserve", key))
        self.ask(which, lambda shop: shop.release(result.reservation.id))
        self.model.release(key)

    def _new_key(self) -> str:
        """Return a key whose part follows from its number alone, over however many there are."""
        self.made += 1
        return next(
            key
            for key in (f"key {self.made}.{salt}" for salt in range(MAX_NAMES))
            if int(digest(self.name[0], LOCATION, key)[:8], 16) % WAYS == self.made % WAYS
        )

    def _is_at_a_part(self, reservation: str) -> bool:
        home = partition_of(self.name[0], LOCATION, PARTITIONS)
        return partition_of_reservation(reservation, PARTITIONS) != home

    def live(self) -> list[str]:
        """Return the keys of what holds units."""
        return [key for key in self.ids if self.model.promises[key].is_live]

    @precondition(lambda self: self.live())
    @rule(which=st.integers(0, 1), recent=recents, quantity=st.integers(1, 9))
    def amend(self, which: int, recent: int, quantity: int) -> None:
        """Hold more or fewer, at the part where it is, with what the others have."""
        live = self.live()
        key = live[-1 - recent % len(live)]
        promise = self.model.promises[key]
        change = quantity - promise.lines[SKU]

        async def amend(shop: Shop) -> Any:
            return await shop.inventory.amend(
                shop.merchant, self.ids[key], [Line(SKU, quantity)], key=the_key, actor=ACTOR
            )

        the_key = new_key()
        result = self.ask(which, amend)
        if isinstance(result, HoldfastError):
            assert result.code == "insufficient_stock"
            # A part that promises no more gets no units either.
            assert change > self.shelf.available or self._is_at_a_part(self.ids[key])
            return
        assert change <= max(0, self.shelf.available)
        promise.lines[SKU] = quantity
        self.shelf.reserved += change

    @precondition(lambda self: self.live())
    @rule(
        which=st.integers(0, 1), recent=recents, how=st.sampled_from(("commit", "release", "pick"))
    )
    def end(self, which: int, recent: int, how: str) -> None:
        """End a reservation, at the part where it is."""
        live = self.live()
        key = live[-1 - recent % len(live)]
        the_id, promise = self.ids[key], self.model.promises[key]
        picked = {"commit": promise.lines[SKU], "release": 0, "pick": 1}[how]
        if how == "release":
            result = self.ask(which, lambda shop: shop.release(the_id))
        else:
            result = self.ask(which, lambda shop: shop.commit(the_id, [(SKU, picked)]))
        if isinstance(result, HoldfastError):
            assert result.code == "insufficient_on_hand"
            assert picked > self.shelf.on_hand
            return
        # At a part the units are there, whatever is missing of the row in all: see the decision.
        books = self.shelf.on_hand - self.shelf.deficit - picked
        self.shelf.on_hand, self.shelf.deficit = max(0, books), max(0, -books)
        self.shelf.reserved -= promise.lines[SKU]
        promise.state = "released" if how == "release" else "committed"

    def told(self) -> dict[str, int]:
        """Return what the model says of the row, but for its version."""
        return {name: getattr(self.shelf, name) for name in TOLD}

    @invariant()
    def is_one_row(self) -> None:
        """Read from either engine it is the model's, its reservations are, and nothing is lost."""
        if not self.model.rows:
            return
        for breaker in self.breakers:
            if breaker.left:
                # What is to be cut is a call of the test's, and not its looking.
                return
        for shop in self.shops:
            row = self.bench.run(shop.row(SKU))
            assert {name: getattr(row, name) for name in TOLD} == self.told()
            page = self.bench.run(
                shop.inventory.open_reservations(shop.merchant, LOCATION, limit=500)
            )
            assert {one.id for one in page.items} == {self.ids[key] for key in self.live()}
            self.bench.run(shop.inventory.splits.flush())
        self.bench.run(self.bench.audit.check(merchant=self.name[0]))


@pytest.fixture(scope="module")
def split_bench(store_kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A bench whose store has partitions to spread a row over; no refusal is from memory."""
    with asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sold_out, "BELIEF_SECONDS", 0.0)
        # Told at once, so that which message is cut does not depend on the time that others took.
        patch.setattr(splits, "REPORT_SECONDS", 0.0)
        path = tmp_path_factory.mktemp("split") / "data"
        made = Bench(runner, RealStore(store_kind, path), partitions=PARTITIONS)
        yield made
        made.close()


@pytest.mark.slow
def test_a_split_row_answers_as_one_row(split_bench: Bench) -> None:
    bench = split_bench
    other = bench.run(Inventory.open(bench.inventory.store.settings))

    class Machine(SplitMachine):
        """The machine on this bench."""

    Machine.bench = bench
    Machine.inventories = [bench.inventory, other]
    Machine.breakers = [Breaker(one) for one in Machine.inventories]
    try:
        # Each step reads the row from two engines and audits all: a third of the examples will do.
        fewer = settings(max_examples=settings().max_examples // 3)
        run_state_machine_as_test(Machine, settings=fewer)
    finally:
        bench.run(other.close())
