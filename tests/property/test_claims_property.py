"""Caps over all locations against a model: who has how much, and until when it counts."""

from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.claim_driver import ClaimDriver
from engine.claims import counted
from engine.keys import digest_of_buyer
from engine.model import BuyerCap, CapScope, Line
from engine.outcomes import BuyerCapExceeded
from engine.relocation import Relocation
from tests.claims import stock
from tests.property.bench import Bench
from tests.shop import ACTOR, Shop, new_key

PLACES: Final = ("leeds", "york", "hull")
SKUS: Final = ("shoe", "boot")
BUYERS: Final = ("ann", "bob")
WINDOW_MS: Final = 600_000
TTL_MS: Final = 240_000
CAP: Final = 3
MAX_EXAMPLES: Final = 40

Step = tuple[str, dict[str, Any]]

carts: Final = st.dictionaries(st.sampled_from(SKUS), st.integers(1, 4), min_size=1)
places: Final = st.sampled_from(PLACES)
recents: Final = st.integers(0, 7)


def step(verb: str, **arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    """Return how a step of a kind is drawn."""
    return st.tuples(st.just(verb), st.fixed_dictionaries(arguments))


steps: Final = st.one_of(
    step("reserve", cart=carts, place=places, buyer=st.sampled_from(BUYERS), partial=st.booleans()),
    step("amend", recent=recents, sku=st.sampled_from(SKUS), units=st.integers(0, 4)),
    step("move", recent=recents, place=places),
    step("commit", recent=recents, less=st.integers(0, 2)),
    step("release", recent=recents),
    step("wait", ms=st.sampled_from((1_000, 130_000, 500_000))),
)


@dataclass
class Had:
    """What a buyer is promised under one reservation."""

    id: str
    buyer: str
    place: str
    lines: dict[str, int]
    expires_at: int


@dataclass
class Model:
    """What every buyer has, by the rule in words: promised, or picked within the window."""

    now: int
    open: list[Had] = field(default_factory=list)
    picked: list[tuple[str, str, int, int]] = field(default_factory=list)

    def counts(self, buyer: str, sku: str) -> int:
        """Return how many units count."""
        promised = sum(one.lines.get(sku, 0) for one in self.open if one.buyer == buyer)
        return promised + sum(
            units
            for who, what, units, until in self.picked
            if (who, what) == (buyer, sku) and until > self.now
        )

    def room(self, buyer: str, sku: str) -> int:
        """Return how many more there may be."""
        return max(0, CAP - self.counts(buyer, sku))


class Drop:
    """Sells a drop on the engine and on the model."""

    def __init__(self, bench: Bench, driver: ClaimDriver) -> None:
        """Open a shop with plenty of everything."""
        self.bench, self.driver = bench, driver
        self.shop = Shop(bench.inventory, bench.client, f"m-{uuid4().hex[:12]}")
        self.model = Model(0)
        cap = BuyerCap(CAP, WINDOW_MS, CapScope.MERCHANT)
        bench.run(stock(self.shop, *SKUS, quantity=500, cap=cap, places=PLACES))
        self.wait(0)

    def wait(self, ms: int) -> None:
        """Have all clocks stand at a moment, and what is due then done."""
        run, client = self.bench.run, self.bench.client
        if not self.model.now:
            marks = [
                run(client.execute_command("HGET", keys.meta, "clock_ms"))
                for keys in self.shop.inventory.keys
            ]
            seconds, _ = run(client.execute_command("TIME"))
            # So far ahead that the server's own clock does not come there.
            ahead = int(seconds) * 1_000 + 86_400_000
            self.model.now = max(ahead, *(int(mark or 0) for mark in marks))
        self.model.now += ms
        for keys in self.shop.inventory.keys:
            run(client.execute_command("HSET", keys.meta, "clock_ms", str(self.model.now)))
        for keys in self.shop.inventory.keys:
            run(self.shop.inventory.expire_due(keys.partition))
        self.model.open = [one for one in self.model.open if one.expires_at > self.model.now]
        run(self.driver.round())

    def recent(self, number: int) -> Had | None:
        """Return one of those that are open, the latest first."""
        found = self.model.open
        return found[-1 - number % len(found)] if found else None

    def reserve(self, cart: dict[str, int], place: str, buyer: str, *, partial: bool) -> None:
        """Hold a cart, or what the buyer may still have of it."""
        room = {sku: self.model.room(buyer, sku) for sku in cart}
        held = {sku: min(units, room[sku]) for sku, units in cart.items()}
        fits = any(held.values()) if partial else held == cart
        call = self.shop.reserve(
            list(cart.items()),
            location=place,
            ttl_ms=TTL_MS,
            buyer=buyer,
            partial=partial,
        )
        if not fits:
            with pytest.raises(BuyerCapExceeded) as refused:
                self.bench.run(call)
            told = {line.sku: line.available for line in refused.value.lines}
            assert told == {sku: room[sku] for sku in cart if cart[sku] > room[sku]}
            return
        made = self.bench.run(call).reservation
        lines = {line.sku: line.quantity for line in made.lines}
        assert lines == {sku: units for sku, units in held.items() if units}
        self.model.open.append(Had(made.id, buyer, place, lines, self.model.now + TTL_MS))

    def amend(self, recent: int, sku: str, units: int) -> None:
        """Have a reservation hold so many units of a SKU."""
        one = self.recent(recent)
        if one is None:
            return
        has = one.lines.get(sku, 0)
        lines = {name: n for name, n in {**one.lines, sku: units}.items() if n}
        if not lines:
            return
        call = self.shop.inventory.amend(
            self.shop.merchant, one.id, [Line(sku, units)], key=new_key(), actor=ACTOR
        )
        if units > has + self.model.room(one.buyer, sku):
            with pytest.raises(BuyerCapExceeded):
                self.bench.run(call)
            return
        self.bench.run(call)
        one.lines = lines

    def move(self, recent: int, place: str) -> None:
        """Hold at another location what a reservation holds."""
        one = self.recent(recent)
        if one is None or one.place == place:
            return
        moved = self.bench.run(
            Relocation(self.shop.inventory).relocate(
                self.shop.merchant, one.id, place, key=new_key(), actor=ACTOR
            )
        )
        one.id, one.place = moved.result.reservation.id, place

    def commit(self, recent: int, less: int) -> None:
        """Pick a reservation, perhaps some units short."""
        one = self.recent(recent)
        if one is None:
            return
        picks = {sku: max(0, units - less) for sku, units in one.lines.items()}
        self.bench.run(self.shop.commit(one.id, list(picks.items())))
        self.model.open.remove(one)
        until = self.model.now + WINDOW_MS
        self.model.picked += [(one.buyer, sku, n, until) for sku, n in picks.items()]

    def release(self, recent: int) -> None:
        """Give a reservation back."""
        one = self.recent(recent)
        if one is not None:
            self.bench.run(self.shop.release(one.id))
            self.model.open.remove(one)

    def check(self) -> None:
        """Compare what counts with the model: just that, at once, and never more than the cap."""
        for buyer in BUYERS:
            who = digest_of_buyer(self.shop.merchant, buyer)
            claims = self.bench.run(self.shop.inventory.claiming.claims(self.shop.merchant, who))
            for sku in SKUS:
                has = counted(claims, sku, self.model.now)
                assert has == self.model.counts(buyer, sku) <= CAP
            assert all(not claim.lapses_at_ms for claim in claims.values())


def test_a_buyer_has_at_every_moment_what_the_model_says(bench: Bench) -> None:
    driver = ClaimDriver(bench.inventory)

    @settings(max_examples=MAX_EXAMPLES)
    @given(st.lists(steps, min_size=5, max_size=25))
    def deal(drawn: list[Step]) -> None:
        drop = Drop(bench, driver)
        for verb, arguments in drawn:
            getattr(drop, verb)(**arguments)
            drop.check()
        bench.run(bench.audit.check(merchant=drop.shop.merchant))

    deal()
