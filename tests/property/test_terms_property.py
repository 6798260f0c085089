"""All that rows on terms do together, against the model, until the last supply has come.

The machine that does every verb comes to these too seldom: here nearly every step is a promise on
terms, by a day or for what stands in, a change of one, or something that changes what there is
room for. In the end all supplies come on their days, and each promise by a day that was not told
to be late is kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import model
from tests.property.bench import Bench
from tests.property.test_stateful import (
    LOCATIONS,
    SKUS,
    TTLS_MS,
    Call,
    ShopMachine,
    amendment_asks,
    arrivals,
    days,
    decisions,
    pools,
    recents,
    supplies,
    wish_lists,
)
from tests.property.test_stateful import asks as any_asks

EXAMPLES_TO_ONE: Final = 2
"""To one of a machine, whose steps each look at all there is."""

STEPS_OF_AUDIT: Final = 10
FEWEST_STEPS: Final = 20
MOST_STEPS: Final = 45
SLIPS: Final = ("expect", "cancel", "arrive", "feed", "feed_again", "move", "keep_back", "retry")
"""What may keep a day from being kept. All else must not."""

Step = tuple[str, dict[str, Any]]
Drawn = st.SearchStrategy[dict[str, Any]]
Arguments = dict[str, st.SearchStrategy[Any]]


def step(verb: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    """Return how a step of a kind is drawn."""
    return st.tuples(st.just(verb), st.fixed_dictionaries(arguments))


sites: Final = st.sampled_from((LOCATIONS[0],) * 4 + (LOCATIONS[1],))
skus: Final = st.sampled_from((SKUS[0],) * 4 + SKUS)
"""Mostly those of one row, so that much happens to it."""

asks: Final[Drawn] = st.one_of(st.fixed_dictionaries({"by": days}), any_asks)
deals: Final = st.fixed_dictionaries(
    {
        "backorder_limit": st.sampled_from((0, 2, 9)),
        "pools": st.one_of(st.just({}), st.just({}), pools),
        "buyer_cap": st.sampled_from((None,) * 6 + ((3, 5_000), (6, 60_000))),
    }
)
carts: Final = st.dictionaries(skus, st.integers(1, 6), min_size=1, max_size=2)
changes: Final = st.dictionaries(skus, st.integers(-4, 5), min_size=1)
ttls: Final = st.sampled_from((TTLS_MS[2], TTLS_MS[-1], TTLS_MS[-1]))
some_of_asks: Final[Drawn] = st.one_of(st.just({}), st.just({}), amendment_asks)
where: Final[Arguments] = {"location": sites, "sku": skus}
units_to_come: Final = st.integers(1, 9)
STEPS: Final[dict[str, tuple[Arguments, int]]] = {
    "terms": ({**where, "deal": deals}, 2),
    "receive": ({**where, "quantity": st.integers(1, 6)}, 2),
    "move": ({**where, "kind": st.sampled_from(("sale", "count")), "quantity": recents}, 2),
    "keep_back": ({**where, "quantity": st.integers(0, 3)}, 1),
    "expect": ({**where, "supply": supplies, "day": days, "quantity": units_to_come}, 6),
    "cancel": ({**where, "supply": supplies}, 1),
    "arrive": ({**where, "supply": supplies, "kind": arrivals, "quantity": units_to_come}, 1),
    "feed": (
        {**where, "supply": supplies, "quantity": units_to_come, "ago_ms": st.integers(0, 2)},
        1,
    ),
    "feed_again": ({"recent": recents}, 1),
    "promise": ({"location": sites, "cart": carts, "ttl_ms": ttls, "ask": asks}, 9),
    "wish": ({"location": sites, "wishes": wish_lists, "ttl_ms": ttls, "ask": asks}, 7),
    "change": ({"recent": recents, "by": changes, "ask": some_of_asks}, 7),
    "change_wish": (
        {"recent": recents, "by": st.integers(-3, 3), "others": wish_lists, "ask": some_of_asks},
        8,
    ),
    "relocate": ({"recent": recents}, 3),
    "decide": ({"recent": recents, "decision": decisions}, 3),
    "confirm": ({"recent": recents}, 1),
    "extend": ({"recent": recents}, 1),
    "end": ({"recent": recents, "how": st.sampled_from(("release", "commit"))}, 2),
    "pick": ({"recent": recents, "fewer": st.integers(0, 3)}, 1),
    "expire": ({"recent": recents, "sweeps": st.booleans()}, 2),
    "fill": (where, 2),
    "review": (where, 1),
    "retry": ({"recent": recents}, 1),
}
"""How a step is drawn, and how often."""
verbs: Final = st.sampled_from([verb for verb, (_, often) in STEPS.items() for _ in range(often)])
steps: Final = verbs.flatmap(lambda verb: step(verb, **STEPS[verb][0]))


class Trade:
    """Makes steps on the engine and on the model, by the machine that knows every verb."""

    def __init__(self, bench: Bench, stock: list[int], packed: int) -> None:
        """Open a shop whose two locations share a partition."""
        self.machine = ShopMachine()
        self.machine.bench = bench  # type: ignore[misc]
        self.machine.open_the_shop(stock, packed, (0, 0))
        self.calls: list[Call] = []
        self.keys_made = 0

    @property
    def shop(self) -> model.Shop:
        return self.machine.model

    def make(self, one: Step) -> None:
        """Make a step; see that it makes nobody late whom it must not."""
        verb, arguments = one
        at_risk = self.at_risk()
        getattr(self, verb)(**arguments)
        if verb not in SLIPS:
            assert self.at_risk() <= at_risk, f"{one} made others late"

    def at_risk(self) -> set[tuple[str, str]]:
        """Return whose day could not be kept if nobody before them were passed by."""
        return {
            (name, sku)
            for location, sku in self.shop.rows
            for name in self.shop.at_risk(location, sku)
        }

    def call(self, verb: str, **what: Any) -> None:
        self.calls.append((verb, what))
        self.machine.step((verb, what))

    def key(self) -> str:
        self.keys_made += 1
        return f"trade {self.keys_made}"

    def name(self, location: str) -> str:
        """Return the name of a reservation that is to be made there."""
        self.machine.names.append(f"{location}/{self.key()}")
        return self.machine.names[-1]

    def one(self, recent: int) -> str:
        """Return what holds units, one that was made lately rather than another; or ''."""
        live = self.machine.live()
        return live[-1 - recent % len(live)] if live else ""

    def terms(self, location: str, sku: str, deal: dict[str, Any]) -> None:
        version = self.shop.shelf(location, sku).version
        row = {"location": location, "sku": sku, "key": self.key(), "expected_version": version}
        self.call("set_terms", **row, **deal)

    def receive(self, location: str, sku: str, quantity: int) -> None:
        self.move(location, sku, "receive", quantity)

    def move(self, location: str, sku: str, kind: str, quantity: int, **more: Any) -> None:
        quantity = quantity if kind == "count" else max(1, quantity)
        what = {"location": location, "sku": sku, "kind": kind, "quantity": quantity}
        self.call("move", **what, key=self.key(), **more)

    def keep_back(self, location: str, sku: str, quantity: int) -> None:
        version = self.shop.shelf(location, sku).version
        row = {"location": location, "sku": sku, "key": self.key(), "expected_version": version}
        self.call("configure", **row, safety_stock=quantity)

    def expect(self, location: str, sku: str, supply: str, day: str, quantity: int) -> None:
        what = {"supply": supply, "day": day, "quantity": quantity}
        self.call("expect", location=location, sku=sku, key=self.key(), **what)

    def cancel(self, location: str, sku: str, supply: str) -> None:
        self.expect(location, sku, supply, "", 0)

    def arrive(self, location: str, sku: str, supply: str, kind: str, quantity: int) -> None:
        self.move(location, sku, kind, quantity, supply=supply)

    def feed(self, location: str, sku: str, supply: str, quantity: int, ago_ms: int) -> None:
        self.machine.feed_it(location, sku, "receive", supply, quantity, ago_ms)

    def feed_again(self, recent: int) -> None:
        if self.machine.told:
            self.machine.step(self.machine.told[-1 - recent % len(self.machine.told)])

    def promise(
        self, location: str, cart: dict[str, int], ttl_ms: int, ask: dict[str, Any]
    ) -> None:
        what = {"lines": tuple(cart.items()), "ttl_ms": ttl_ms, "partial": True}
        self.call("reserve", name=self.name(location), **what, **ask)

    def wish(
        self, location: str, wishes: list[model.Wish], ttl_ms: int, ask: dict[str, Any]
    ) -> None:
        what = {"wishes": tuple(wishes), "ttl_ms": ttl_ms, "partial": True}
        self.call("wish", name=self.name(location), **what, **ask)

    def change(self, recent: int, by: dict[str, int], ask: dict[str, Any]) -> None:
        """Hold some units more or fewer than there are."""
        name = self.one(recent)
        if name:
            held = self.shop.promises[name].lines
            lines = tuple((sku, max(0, held.get(sku, 0) + units)) for sku, units in by.items())
            self.call("amend", name=name, key=self.key(), lines=lines, **ask)

    def change_wish(
        self, recent: int, by: int, others: list[model.Wish], ask: dict[str, Any]
    ) -> None:
        """Want some units more or fewer of what was asked for, perhaps of others too."""
        name = self.one(recent)
        if name:
            promise = self.shop.promises[name]
            asked = {stand[0]: stand[3] for stand in promise.stands_for} or promise.lines
            sku, units = next(iter(asked.items()))
            wanted = model.Wish(sku, max(0, units + by))
            if others[0].sku == sku:
                wanted = replace(others[0], quantity=wanted.quantity)
            lines = (wanted, *(wish for wish in others[1:] if wish.sku != sku))
            self.call("amend", name=name, key=self.key(), lines=lines, **ask)

    def relocate(self, recent: int) -> None:
        """Move a reservation to the other location."""
        name = self.one(recent)
        if name:
            there = LOCATIONS[self.shop.promises[name].location == LOCATIONS[0]]
            key = self.key()
            self.call("relocate", name=name, key=key, location=there, to=f"{there}/to {key}")

    def decide(self, recent: int, decision: str) -> None:
        proposed = self.machine.proposed()
        if proposed:
            name = proposed[-1 - recent % len(proposed)]
            self.machine.step(("decide", {"name": name, "decision": decision}))

    def confirm(self, recent: int) -> None:
        if name := self.one(recent):
            self.machine.step(("confirm", {"name": name}))

    def extend(self, recent: int) -> None:
        if name := self.one(recent):
            self.call("extend", name=name, key=self.key(), ttl_ms=TTLS_MS[-1])

    def end(self, recent: int, how: str) -> None:
        if name := self.one(recent):
            self.machine.step((how, {"name": name}))

    def pick(self, recent: int, fewer: int) -> None:
        """Commit some units fewer than are held of each line."""
        if name := self.one(recent):
            lines = self.shop.promises[name].lines
            picks = tuple((sku, max(0, units - fewer)) for sku, units in lines.items())
            self.machine.step(("commit", {"name": name, "picks": picks}))

    def expire(self, recent: int, sweeps: bool) -> None:
        """Let time pass up to the end of a hold, and perhaps sweep."""
        if name := self.one(recent):
            promise = self.shop.promises[name]
            if promise.state == "held":
                self.machine.set_clocks(max(self.shop.now_ms, promise.expires_at))
            if sweeps:
                self.machine.step(("expire_due", {"partition": 0}))

    def fill(self, location: str, sku: str) -> None:
        self.machine.step(("fill", {"location": location, "sku": sku}))

    def review(self, location: str, sku: str) -> None:
        self.machine.step(("review", {"location": location, "sku": sku}))

    def retry(self, recent: int) -> None:
        """Make a call again that was made before: the answer is the first one."""
        if self.calls:
            self.machine.step(self.calls[-1 - recent % len(self.calls)])

    def all_comes(self) -> None:
        """Have every supply come on its day; who was not told to be late is served by theirs."""
        shop = self.shop
        for location, sku in list(shop.rows):
            self.fill(location, sku)
            self.review(location, sku)
            told = [(name, wait.day, late) for name, wait, late in shop.expected(location, sku)]
            for day in shop.shelf(location, sku).days_of_supplies():
                for supply, (on, units) in list(shop.shelf(location, sku).supplies.items()):
                    if on == day:
                        self.arrive(location, sku, supply, "receive", units)
                for name, by, late in told:
                    if (late or by) <= day:
                        waits = shop.promises[name].waiting
                        assert sku not in waits, f"{name} waits for {sku} after {day}"


@contextmanager
def trading(bench: Bench, stock: list[int], packed: int) -> Iterator[Trade]:
    """Open a shop, and leave no hold behind."""
    trade = Trade(bench, stock, packed)
    try:
        yield trade
    finally:
        trade.machine.teardown()


@pytest.mark.slow
@settings(max_examples=EXAMPLES_TO_ONE * settings().max_examples)
@given(
    stock=st.lists(st.integers(0, 4), min_size=2 * len(SKUS), max_size=2 * len(SKUS)),
    packed=st.integers(0, 2),
    first_deals=st.lists(deals, min_size=len(SKUS), max_size=len(SKUS)),
    to_come=st.lists(
        st.tuples(skus, supplies, days, units_to_come), min_size=len(SKUS), max_size=2 * len(SKUS)
    ),
    program=st.lists(steps, min_size=FEWEST_STEPS, max_size=MOST_STEPS),
)
def test_rows_on_terms_do_what_the_model_does(
    bench: Bench,
    stock: list[int],
    packed: int,
    first_deals: list[dict[str, Any]],
    to_come: list[tuple[str, str, str, int]],
    program: list[Step],
) -> None:
    with trading(bench, stock, packed) as trade:
        for sku, deal in zip(SKUS, first_deals, strict=True):
            trade.terms(LOCATIONS[0], sku, deal)
        for row_and_supply in to_come:
            trade.expect(LOCATIONS[0], *row_and_supply)
        # Each answer is compared; what is left behind is looked at now and then, so that there is
        # time for more examples.
        for count, one in enumerate(program, start=1):
            trade.make(one)
            if count % STEPS_OF_AUDIT == 0:
                trade.machine.is_as_modelled()
        trade.all_comes()
        trade.machine.is_as_modelled()
