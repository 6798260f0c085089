"""Amendments of what was promised on terms, or is served by what stands for it, against the model.

The machine that does every verb comes to these too seldom: here nearly every step is a promise of
that kind, an amendment of one, or something that changes what there is room for.
"""

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
    asks,
    decisions,
    pools,
    recents,
    skus,
    wish_lists,
)

WISHED, ON_TERMS = LOCATIONS
"""Wishes are modelled where no row has terms."""

MAX_EXAMPLES: Final = 70
"""More than of machines, whose steps each look at all there is."""

Step = tuple[str, dict[str, Any]]


def step(verb: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    """Return how a step of a kind is drawn."""
    return st.tuples(st.just(verb), st.fixed_dictionaries(arguments))


deals: Final = st.fixed_dictionaries(
    {
        "backorder_limit": st.sampled_from((0, 2, 9)),
        "pools": pools,
        "buyer_cap": st.sampled_from((None, None, (3, 5_000), (6, 60_000))),
    }
)
carts: Final = st.dictionaries(skus, st.integers(1, 6), min_size=1)
changes: Final = st.dictionaries(skus, st.integers(-4, 5), min_size=1)
CHANGES: Final = (
    step("change", recent=recents, by=changes, ask=st.one_of(st.just({}), st.just({}), asks)),
    step("change_wish", recent=recents, by=st.integers(-3, 3), others=wish_lists),
)
steps: Final = st.one_of(
    step("terms", sku=skus, deal=deals),
    step("receive", location=st.sampled_from(LOCATIONS), sku=skus, quantity=st.integers(1, 6)),
    step("promise", cart=carts, ask=asks),
    step("wish", wishes=wish_lists),
    *CHANGES,
    *CHANGES,
    step("decide", recent=recents, decision=decisions),
    step("extend", recent=recents),
    step("end", recent=recents, how=st.sampled_from(("release", "commit"))),
    step("retry", recent=recents),
)


class Trade:
    """Makes steps on the engine and on the model, by the machine that knows every verb."""

    def __init__(self, bench: Bench, stock: list[int]) -> None:
        """Open a shop whose two locations share a partition."""
        self.machine = ShopMachine()
        self.machine.bench = bench  # type: ignore[misc]
        self.machine.open_the_shop(stock, (0, 0))
        self.calls: list[Call] = []
        self.keys_made = 0

    @property
    def shop(self) -> model.Shop:
        return self.machine.model

    def call(self, verb: str, **what: Any) -> None:
        self.calls.append((verb, what))
        self.machine.step((verb, what))

    def key(self) -> str:
        self.keys_made += 1
        return f"trade {self.keys_made}"

    def held_at(self, location: str, recent: int) -> str | None:
        """Return what holds units there, one that was made lately rather than another."""
        live = [
            name
            for name, promise in self.shop.promises.items()
            if promise.is_live and promise.location == location
        ]
        return live[-1 - recent % len(live)] if live else None

    def terms(self, sku: str, deal: dict[str, Any]) -> None:
        version = self.shop.shelf(ON_TERMS, sku).version
        where = {"location": ON_TERMS, "sku": sku, "key": self.key(), "expected_version": version}
        self.call("set_terms", **where, **deal)

    def receive(self, location: str, sku: str, quantity: int) -> None:
        what = {"location": location, "sku": sku, "kind": "receive", "quantity": quantity}
        self.call("move", **what, key=self.key())

    def promise(self, cart: dict[str, int], ask: dict[str, Any]) -> None:
        name = f"{ON_TERMS}/{self.key()}"
        what = {"lines": tuple(cart.items()), "ttl_ms": TTLS_MS[-1], "partial": True}
        self.call("reserve", name=name, **what, **ask)

    def wish(self, wishes: list[model.Wish]) -> None:
        name = f"{WISHED}/{self.key()}"
        self.call("wish", name=name, wishes=tuple(wishes), ttl_ms=TTLS_MS[-1], partial=True)

    def change(self, recent: int, by: dict[str, int], ask: dict[str, Any]) -> None:
        """Hold some units more or fewer than there are, where rows have terms."""
        if self.held_at(ON_TERMS, recent) is None:
            self.promise({sku: abs(units) + 1 for sku, units in by.items()}, ask)
        name = self.held_at(ON_TERMS, recent)
        if name is not None:
            held = self.shop.promises[name].lines
            lines = tuple((sku, max(0, held.get(sku, 0) + units)) for sku, units in by.items())
            self.call("amend", name=name, key=self.key(), lines=lines, **ask)

    def change_wish(self, recent: int, by: int, others: list[model.Wish]) -> None:
        """Want some units more or fewer of what was asked for, perhaps of others too."""
        if self.held_at(WISHED, recent) is None:
            self.wish(others)
        name = self.held_at(WISHED, recent)
        if name is not None:
            promise = self.shop.promises[name]
            asked = {stand[0]: stand[3] for stand in promise.stands_for} or promise.lines
            sku, units = next(iter(asked.items()))
            wanted = model.Wish(sku, max(0, units + by))
            if others[0].sku == sku:
                wanted = replace(others[0], quantity=wanted.quantity)
            lines = (wanted, *(wish for wish in others[:2] if wish.sku != sku))
            self.call("amend", name=name, key=self.key(), lines=lines)

    def decide(self, recent: int, decision: str) -> None:
        name = self.held_at(WISHED, recent)
        if name is not None:
            self.machine.step(("decide", {"name": name, "decision": decision}))

    def extend(self, recent: int) -> None:
        name = self.held_at(LOCATIONS[recent % 2], recent)
        if name is not None:
            self.call("extend", name=name, key=self.key(), ttl_ms=TTLS_MS[-1])

    def end(self, recent: int, how: str) -> None:
        name = self.held_at(LOCATIONS[recent % 2], recent)
        if name is not None:
            self.machine.step((how, {"name": name}))

    def retry(self, recent: int) -> None:
        """Make a call again that was made before: the answer is the first one."""
        if self.calls:
            self.machine.step(self.calls[-1 - recent % len(self.calls)])


@pytest.mark.slow
@settings(max_examples=MAX_EXAMPLES)
@given(
    stock=st.lists(st.integers(0, 9), min_size=2 * len(SKUS), max_size=2 * len(SKUS)),
    first_deals=st.lists(deals, min_size=len(SKUS), max_size=len(SKUS)),
    program=st.lists(steps, min_size=12, max_size=40),
)
def test_amendments_do_what_the_model_does(
    bench: Bench, stock: list[int], first_deals: list[dict[str, Any]], program: list[Step]
) -> None:
    trade = Trade(bench, stock)
    try:
        for sku, deal in zip(SKUS, first_deals, strict=True):
            trade.terms(sku, deal)
        for verb, arguments in program:
            getattr(trade, verb)(**arguments)
        # Each answer was compared; what is left behind is looked at once, so that there is time for
        # more examples.
        trade.machine.is_as_modelled()
    finally:
        trade.machine.teardown()
