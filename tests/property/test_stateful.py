"""Every verb of the engine against the plain-Python model, on a real store, step by step.

A step is a call that both sides answer; the answers must be equal, and so must every row and
reservation after it, and every invariant must hold. Time is the partition's high-water mark, which
the test moves, so nothing here waits.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar, Final
from uuid import uuid4

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.feeds import EventType, FeedEvent, Feeds, Taken
from engine.keys import is_move_id, partition_of, reservation_id
from engine.kits import check_kit
from engine.model import (
    BuyerCap,
    Configured,
    Line,
    Moved,
    MovementType,
    Pool,
    ProposalDecision,
    Reservation,
    ReservationResult,
    Row,
    Terms,
)
from engine.outcomes import (
    BackorderUnfilled,
    BuyerCapExceeded,
    HoldfastError,
    InsufficientOnHand,
    InsufficientStock,
    LimitExceeded,
    ProposalOpen,
    ReservationEnded,
    ReservationNotHeld,
    VersionConflict,
)
from engine.outlook import Supply
from engine.relocation import Relocation
from engine.substitutes import Alternative
from engine.supplies import Reviewed, Supplies
from engine.wishes import Fill, Substitution, Wish
from tests import model
from tests.model import Answer
from tests.property.bench import PARTITIONS, Bench
from tests.shop import ACTOR, Shop

LOCATIONS: Final = ("high street", "depot:{7}")
SKUS: Final = ("tea", "кофе", "a:{b}\r\n")
KIT: Final = "gift box"
KIT_PARTS: Final = {"tea": 1, "кофе": 2}
HOUR_MS: Final = 3_600_000
TTLS_MS: Final = (1_000, 5_000, 60_000, 24 * HOUR_MS - 1)
STEPS_MS: Final = (1, 1_000, 5_000, 60_000, 30 * HOUR_MS)
DAYS: Final = ("2026-12-07", "2026-12-08", "2026-12-11", "2027-01-04")
SUPPLIES: Final = ("po-1", "po:{2}")

Call = tuple[str, dict[str, Any]]
"""A verb and what it is called with. `name` stands for a reservation: "<location>/<key>"."""

MOSTLY_LIVE: Final = 6
MAX_NAMES: Final = 1_000

OTHER_BODY: Final = {
    "move": "quantity",
    "configure": "safety_stock",
    "reserve": "ttl_ms",
    "wish": "ttl_ms",
    "extend": "ttl_ms",
    "set_terms": "backorder_limit",
}
"""What a reuse of a call's key changes of the call."""

locations = st.sampled_from(LOCATIONS)
skus = st.sampled_from(SKUS)
ttls = st.sampled_from(TTLS_MS)
order_refs = st.sampled_from(("", "order 1"))
recents = st.integers(0, 2 * MOSTLY_LIVE)
channels = st.sampled_from(("", "online", "store", "partner:x"))
days = st.sampled_from(DAYS)
supplies = st.sampled_from(SUPPLIES)
terms_of_asks = {
    "stock_only": st.sampled_from((False, False, True)),
    "channel": channels,
    "buyer": st.sampled_from("ab"),
}
amendment_asks = st.fixed_dictionaries({}, optional=terms_of_asks)
asks = st.fixed_dictionaries({}, optional=terms_of_asks | {"by": st.one_of(st.just(""), days)})
arrivals = st.sampled_from(("receive", "receive", "transfer_in"))
pools = st.sampled_from(
    (
        {},
        {"online": (3, 0)},
        {"store": (None, 3), "partner:x": (2, 1)},
        {"online": (6, 2), "store": (6, 2), "partner:x": (6, 2)},
    )
)


def first(alternative: tuple[str, int, int]) -> str:
    """Return the SKU of an alternative."""
    return alternative[0]


def more_of(line: tuple[str, int] | model.Wish) -> tuple[str, int] | model.Wish:
    """Return a line of an amendment with a unit more."""
    if isinstance(line, model.Wish):
        return replace(line, quantity=line.quantity + 1)
    return line[0], line[1] + 1


def without_itself(wish: model.Wish) -> model.Wish:
    """Return a wish that nothing of its own SKU is to stand for."""
    others = tuple(one for one in wish.alternatives if one[0] != wish.sku)
    return replace(wish, alternatives=others)


carts = st.lists(st.tuples(skus, st.integers(1, 5)), min_size=1, max_size=4)


wanted_skus = st.sampled_from((*SKUS, KIT))
decisions = st.sampled_from(("accepted", "declined"))
alternative_lists = st.lists(
    st.tuples(wanted_skus, st.integers(1, 3), st.integers(1, 3)), max_size=2, unique_by=first
)
wish_lists = st.lists(
    st.builds(
        model.Wish,
        sku=wanted_skus,
        quantity=st.integers(1, 6),
        alternatives=alternative_lists.map(tuple),
        approve=st.booleans(),
        whole=st.booleans(),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda wish: wish.sku,
).map(lambda wishes: [without_itself(wish) for wish in wishes])


class ShopMachine(RuleBasedStateMachine):
    """Draws calls, new and old, and makes each on the engine and on the model."""

    calls: Bundle[Call] = Bundle("calls")

    bench: ClassVar[Bench]
    """Set by the test; hypothesis makes the instances."""

    def __init__(self) -> None:
        """Open a new merchant's shop on the bench."""
        super().__init__()
        self.merchant = ""
        self.model = model.Shop(partition_of=self.partition, now_ms=0)
        self.names = ["high street/never used"]
        self.keys_made = 0
        self.had_terms: set[str] = set()
        self.told: list[Call] = []

    def partition(self, location: str) -> int:
        """Return the partition of one of the merchant's locations."""
        return partition_of(self.merchant, location, PARTITIONS)

    @initialize(
        stock=st.lists(st.integers(0, 30), min_size=6, max_size=6),
        packed=st.integers(0, 2),
        partitions=st.sampled_from(((0, 0), (0, 1), (1, 0))),
    )
    def open_the_shop(self, stock: list[int], packed: int, partitions: tuple[int, int]) -> None:
        """Put the clock of every partition to one time ahead of the real one; fill the shelves."""
        # The merchant is new, but where its locations live is drawn, so that an example repeats.
        for _ in range(MAX_NAMES):
            self.merchant = f"m-{uuid4().hex[:12]}"
            if tuple(map(self.partition, LOCATIONS)) == partitions:
                break
        assert tuple(map(self.partition, LOCATIONS)) == partitions
        self.shop = NamedShop(self.bench.inventory, self.bench.client, self.merchant)
        marks = [
            self.bench.run(self.shop.client.execute_command("HGET", keys.meta, "clock_ms"))
            for keys in self.bench.inventory.keys
        ]
        ahead_ms = int(time.time() * 1000) + HOUR_MS
        self.set_clocks(max(ahead_ms, *(int(mark or 0) for mark in marks)) + 1)
        if packed:
            # The kit was stocked under its own SKU before it became one.
            self._move(LOCATIONS[0], KIT, "receive", packed)
        kit = check_kit(KIT, [Line(sku, units) for sku, units in KIT_PARTS.items()])
        self.bench.run(self.bench.inventory.kits.write(self.merchant, {KIT: kit}, actor=ACTOR))
        self.bench.run(self.bench.inventory.kits.known(self.merchant))
        self.model.kits[KIT] = KIT_PARTS
        rows = [(location, sku) for location in LOCATIONS for sku in SKUS]
        for (location, sku), quantity in zip(rows, stock, strict=True):
            if quantity:
                self._move(location, sku, "receive", quantity)

    def teardown(self) -> None:
        """Leave no hold behind that a later example would have to take back."""
        for name in [*self.names, *self.shop.ids]:
            with suppress(HoldfastError):
                self.bench.run(self.shop.release(id_of(self.shop, name)))

    def step(self, call: Call) -> Answer:
        """Make a call on both sides and compare the answers."""
        wanted = expect(self.model, call)
        got = self.bench.run(ask(self.shop, call))
        wanted = self.with_ids(wanted)
        assert got == wanted, f"{call} at {self.model.now_ms}: got {got}, wanted {wanted}"
        return wanted

    def with_ids(self, answer: Answer) -> Answer:
        """Return an answer of the model that names who is late as the engine does."""
        if "reviewed" not in answer:
            return answer
        late = tuple((id_of(self.shop, name), *facts) for name, *facts in answer["reviewed"])
        return answer | {"reviewed": late}

    def set_clocks(self, now_ms: int) -> None:
        """Put the clock of every partition to a time."""
        self.model.now_ms = now_ms
        for keys in self.bench.inventory.keys:
            self.bench.run(
                self.shop.client.execute_command("HSET", keys.meta, "clock_ms", str(now_ms))
            )

    def _new_key(self) -> str:
        self.keys_made += 1
        return f"key {self.keys_made}"

    def _version(self, location: str, sku: str, guess: str) -> int | None:
        version = self.model.shelf(location, sku).version
        return {"any": None, "right": version, "stale": max(0, version - 1)}[guess]

    def _cart(self, location: str, lines: model.Lines, ttl_ms: int, **options: Any) -> Call:
        name = f"{location}/{self._new_key()}"
        self.names.append(name)
        return ("reserve", {"name": name, "lines": lines, "ttl_ms": ttl_ms} | options)

    def _name(self, recent: int) -> str:
        """Return a live reservation, now and then another one, or one that was refused."""
        live = self.live()
        return self._one_of(live if live and recent < MOSTLY_LIVE else self.names, recent)

    @staticmethod
    def _one_of(names: list[str], recent: int) -> str:
        return names[-1 - recent % len(names)]

    def live(self) -> list[str]:
        """Return the names of what holds units."""
        return [name for name, promise in self.model.promises.items() if promise.is_live]

    @rule(target=calls, location=locations, sku=skus, quantity=st.integers(5, 40))
    def receive(self, location: str, sku: str, quantity: int) -> Call:
        """Book an arrival, often, so that there is something to promise."""
        return self._move(location, sku, "receive", quantity)

    @rule(
        target=calls,
        location=locations,
        sku=skus,
        kind=st.sampled_from([kind.value for kind in MovementType if kind != "adjust"]),
        quantity=st.integers(1, 12),
        guess=st.sampled_from(("any", "any", "right", "stale")),
        may_overdraw=st.booleans(),
    )
    def move(
        self, location: str, sku: str, kind: str, quantity: int, guess: str, may_overdraw: bool
    ) -> Call:
        """Book any other movement: a sale past what is on hand too."""
        return self._move(
            location,
            sku,
            kind,
            quantity,
            expected_version=self._version(location, sku, guess),
            may_overdraw=may_overdraw,
        )

    @rule(target=calls, location=locations, sku=skus, quantity=st.integers(-9, 9).filter(bool))
    def adjust(self, location: str, sku: str, quantity: int) -> Call:
        """Book a correction of either sign."""
        return self._move(location, sku, "adjust", quantity)

    @rule(target=calls, location=locations, sku=skus, quantity=st.integers(0, 9))
    def count(self, location: str, sku: str, quantity: int) -> Call:
        """Book what was counted, zero too, whatever is promised."""
        return self._move(location, sku, "count", quantity)

    def _move(self, location: str, sku: str, kind: str, quantity: int, **options: Any) -> Call:
        what = {"location": location, "sku": sku, "kind": kind, "quantity": quantity}
        call = ("move", what | options | {"key": self._new_key()})
        self.step(call)
        return call

    @rule(
        target=calls,
        location=locations,
        sku=skus,
        safety_stock=st.integers(0, 4),
        guess=st.sampled_from(("right", "right", "stale")),
    )
    def configure(self, location: str, sku: str, safety_stock: int, guess: str) -> Call:
        """Set a safety stock, now and then from a stale version."""
        call = (
            "configure",
            {
                "location": location,
                "sku": sku,
                "key": self._new_key(),
                "safety_stock": safety_stock,
                "expected_version": self._version(location, sku, guess),
            },
        )
        self.step(call)
        return call

    @rule(
        target=calls,
        location=locations,
        lines=carts,
        ttl_ms=ttls,
        partial=st.booleans(),
        order_ref=order_refs,
        ask=asks,
    )
    def reserve(
        self,
        location: str,
        lines: model.Lines,
        ttl_ms: int,
        partial: bool,
        order_ref: str,
        ask: dict[str, Any],
    ) -> Call:
        """Hold a cart, perhaps with several lines of one SKU."""
        call = self._cart(location, lines, ttl_ms, partial=partial, order_ref=order_ref, **ask)
        self.step(call)
        return call

    @rule(
        target=calls,
        location=locations,
        wishes=wish_lists,
        ttl_ms=ttls,
        partial=st.booleans(),
        ask=asks,
    )
    def wish(
        self,
        location: str,
        wishes: list[model.Wish],
        ttl_ms: int,
        partial: bool,
        ask: dict[str, Any],
    ) -> Call:
        """Hold what serves wishes: substitutes, kits, and rows that several of them want."""
        name = f"{location}/{self._new_key()}"
        self.names.append(name)
        what = {"name": name, "wishes": tuple(wishes), "ttl_ms": ttl_ms, "partial": partial} | ask
        self.step(("wish", what))
        return ("wish", what)

    @rule(recent=recents, decision=decisions, some=st.lists(wanted_skus, max_size=2))
    def decide(self, recent: int, decision: str, some: list[str]) -> None:
        """Accept or decline some or all of what is proposed, or was."""
        skus = tuple(dict.fromkeys(some))
        self.step(("decide", {"name": self._name(recent), "decision": decision, "skus": skus}))

    @precondition(lambda self: self.proposed())
    @rule(recent=recents, decision=decisions)
    def decide_what_is_proposed(self, recent: int, decision: str) -> None:
        """Accept or decline all that is proposed."""
        name = self._one_of(self.proposed(), recent)
        self.step(("decide", {"name": name, "decision": decision}))

    def proposed(self) -> list[str]:
        """Return the names of live proposals."""
        return [name for name, p in self.model.promises.items() if p.is_live and p.proposed]

    @rule(
        target=calls,
        location=locations,
        sku=skus,
        backorder_limit=st.sampled_from((0, 2, 9)),
        pools=pools,
        buyer_cap=st.sampled_from((None, None, (3, 5_000), (4, 60_000))),
        guess=st.sampled_from(("right", "right", "right", "stale")),
    )
    def set_terms(self, location: str, sku: str, guess: str, **terms: Any) -> Call:
        """Set a row's terms, or end them."""
        self.had_terms.add(location)
        what = {
            "location": location,
            "sku": sku,
            "key": self._new_key(),
            "expected_version": self._version(location, sku, guess),
        }
        call = ("set_terms", what | terms)
        self.step(call)
        return call

    @rule(
        target=calls,
        location=locations,
        sku=skus,
        supply=supplies,
        day=days,
        quantity=st.integers(1, 9),
    )
    def expect(self, location: str, sku: str, supply: str, day: str, quantity: int) -> Call:
        """Announce a supply, or say anew when it comes and with how many units."""
        return self._supply(location, sku, supply=supply, day=day, quantity=quantity)

    @rule(target=calls, location=locations, sku=skus, supply=supplies)
    def cancel(self, location: str, sku: str, supply: str) -> Call:
        """Say that nothing more comes with a supply."""
        return self._supply(location, sku, supply=supply, day="", quantity=0)

    def _supply(self, location: str, sku: str, **what: Any) -> Call:
        self.had_terms.add(location)
        call = ("expect", what | {"location": location, "sku": sku, "key": self._new_key()})
        self.step(call)
        return call

    @rule(
        target=calls,
        location=locations,
        sku=skus,
        kind=arrivals,
        supply=supplies,
        quantity=st.integers(1, 9),
    )
    def arrive(self, location: str, sku: str, kind: str, supply: str, quantity: int) -> Call:
        """Book what came with a supply, if there is one."""
        return self._move(location, sku, kind, quantity, supply=supply)

    @rule(
        location=locations,
        sku=skus,
        kind=arrivals,
        supply=st.one_of(st.just(""), supplies),
        quantity=st.integers(1, 9),
        ago_ms=st.sampled_from((0, 1, *TTLS_MS[:3])),
    )
    def feed(
        self, location: str, sku: str, kind: str, supply: str, quantity: int, ago_ms: int
    ) -> None:
        """Tell of an arrival, a late one too, which a count may have already."""
        self.feed_it(location, sku, kind, supply, quantity, ago_ms)

    def feed_it(
        self, location: str, sku: str, kind: str, supply: str, quantity: int, ago_ms: int
    ) -> None:
        """Tell of an arrival that a count may have already."""
        what: dict[str, Any] = {"location": location, "sku": sku, "kind": kind, "supply": supply}
        what |= {"quantity": quantity, "occurred_at": self.model.now_ms - ago_ms}
        self.told.append(("feed", what | {"event": self._new_key()}))
        self.step(self.told[-1])

    @precondition(lambda self: self.told)
    @rule(recent=recents)
    def feed_again(self, recent: int) -> None:
        """Tell of an arrival for the second time."""
        self.step(self.told[-1 - recent % len(self.told)])

    @rule(location=locations, sku=skus)
    def review(self, location: str, sku: str) -> None:
        """Tell whose day cannot be kept, as the background process does."""
        self.step(("review", {"location": location, "sku": sku}))

    @rule(target=calls, recent=recents, location=locations)
    def relocate(self, recent: int, location: str) -> Call:
        """Move a reservation to another location, or to where it is."""
        key = self._new_key()
        what = {"name": self._name(recent), "key": key, "location": location}
        call = ("relocate", what | {"to": f"{location}/to {key}"})
        self.step(call)
        return call

    @rule(location=locations, sku=skus)
    def fill(self, location: str, sku: str) -> None:
        """Fill what is backordered, as the background process does."""
        self.step(("fill", {"location": location, "sku": sku}))

    @rule(
        location=locations,
        wanted=st.lists(st.tuples(carts, st.booleans(), st.booleans()), min_size=2, max_size=6),
    )
    def reserve_at_once(self, location: str, wanted: list[tuple[model.Lines, bool, bool]]) -> None:
        """Hold several carts in one script call, some of them twice under one key."""
        # A reserve that has to wait for a reclaim would fall behind the others.
        self.step(("expire_due", {"partition": self.partition(location)}))
        # So would one that meets terms without expecting any: these are told to expect them.
        ask = {"channel": "online"} if location in self.had_terms else {}
        # And a partial one, that reads which kits there are.
        self.bench.run(self.shop.inventory.kits.known(self.merchant))
        burst = []
        for lines, partial, twice in wanted:
            call = self._cart(location, lines, TTLS_MS[-1], partial=partial, **ask)
            burst += [call, call] if twice else [call]
        answers = [expect(self.model, call) for call in burst]
        got = self.bench.run(ask_at_once(self.shop, burst))
        assert got == answers, f"{burst}: got {got}, wanted {answers}"

    @rule(recent=recents, order_ref=order_refs)
    def confirm(self, recent: int, order_ref: str) -> None:
        """Confirm, perhaps for the second time with another order."""
        self.step(("confirm", {"name": self._name(recent), "order_ref": order_ref}))

    @precondition(lambda self: self.confirmed())
    @rule(recent=recents, order_ref=order_refs)
    def confirm_again(self, recent: int, order_ref: str) -> None:
        """Confirm what is confirmed, for the same order or another."""
        name = self._one_of(self.confirmed(), recent)
        self.step(("confirm", {"name": name, "order_ref": order_ref}))

    def confirmed(self) -> list[str]:
        """Return the names of what is confirmed."""
        return [name for name, p in self.model.promises.items() if p.state == "confirmed"]

    @rule(target=calls, recent=recents, ttl_ms=ttls)
    def extend(self, recent: int, ttl_ms: int) -> Call:
        """Extend, perhaps past the longest life of a hold."""
        call = (
            "extend",
            {"name": self._name(recent), "key": self._new_key(), "ttl_ms": ttl_ms},
        )
        self.step(call)
        return call

    @rule(
        target=calls,
        recent=recents,
        lines=st.dictionaries(skus, st.integers(0, 8), min_size=1).map(dict.items).map(tuple),
        ask=amendment_asks,
    )
    def amend(self, recent: int, lines: model.Lines, ask: dict[str, Any]) -> Call:
        """Hold more or fewer of some lines, drop some, add others, possible or not."""
        what = {"name": self._name(recent), "key": self._new_key(), "lines": lines}
        call = ("amend", what | ask)
        self.step(call)
        return call

    @precondition(lambda self: self.live())
    @rule(
        target=calls,
        recent=recents,
        wishes=wish_lists,
        drops=st.integers(0, 1),
        ask=amendment_asks,
    )
    def amend_wishes(
        self, recent: int, wishes: list[model.Wish], drops: int, ask: dict[str, Any]
    ) -> Call:
        """Want more or less of what others may stand for, or of kits, perhaps none of one."""
        first, *others = wishes
        wanted = (replace(first, quantity=first.quantity * (1 - drops)), *others)
        name = self._one_of(self.live(), recent)
        call = ("amend", {"name": name, "key": self._new_key(), "lines": wanted} | ask)
        self.step(call)
        return call

    @precondition(lambda self: self.live())
    @rule(target=calls, recent=recents, over=st.integers(0, 1))
    def amend_to_all_there_is(self, recent: int, over: int) -> Call:
        """Hold every unit that is free and one's own, or one more than that."""
        name = self._one_of(self.live(), recent)
        promise = self.model.promises[name]
        sku, own = next(iter(promise.lines.items()))
        wanted = own + self.model.shelf(promise.location, sku).available + over
        call = ("amend", {"name": name, "key": self._new_key(), "lines": ((sku, wanted),)})
        self.step(call)
        return call

    @rule(recent=recents)
    def commit(self, recent: int) -> None:
        """Commit whole."""
        self.step(("commit", {"name": self._name(recent)}))

    @rule(recent=recents, picks=st.dictionaries(skus, st.integers(0, 6), min_size=1))
    def pick(self, recent: int, picks: dict[str, int]) -> None:
        """Commit a pick, short or not, possible or not."""
        self.step(("commit", {"name": self._name(recent), "picks": tuple(picks.items())}))

    @rule(recent=recents)
    def release(self, recent: int) -> None:
        """Release."""
        self.step(("release", {"name": self._name(recent)}))

    @rule(step_ms=st.sampled_from(STEPS_MS))
    def wait(self, step_ms: int) -> None:
        """Let time pass."""
        self.set_clocks(self.model.now_ms + step_ms)

    @precondition(lambda self: self.live())
    @rule(recent=recents, early_ms=st.integers(0, 1))
    def wait_for_the_end(self, recent: int, early_ms: int) -> None:
        """Let time pass up to the very end of a hold, or to a millisecond before it, and sweep."""
        promise = self.model.promises[self._one_of(self.live(), recent)]
        self.set_clocks(max(self.model.now_ms, promise.expires_at - early_ms))
        self.step(("expire_due", {"partition": self.partition(promise.location)}))

    @precondition(lambda self: self.live())
    @rule(target=calls, recent=recents, over=st.integers(0, 1), partial=st.booleans())
    def reserve_what_is_due(self, recent: int, over: int, partial: bool) -> Call:
        """Hold all that there will be once a hold that is due now has been taken back."""
        promise = self.model.promises[self._one_of(self.live(), recent)]
        self.set_clocks(max(self.model.now_ms, promise.expires_at))
        sku, quantity = next(iter(promise.lines.items()))
        wanted = self.model.shelf(promise.location, sku).available + quantity + over
        call = self._cart(promise.location, [(sku, wanted)], TTLS_MS[0], partial=partial)
        self.step(call)
        return call

    @precondition(lambda self: self.live())
    @rule(recent=recents, off=st.lists(st.integers(-2, 1), min_size=1, max_size=3))
    def pick_about_what_is_held(self, recent: int, off: list[int]) -> None:
        """Commit a pick of some of the lines: short, whole, or of more than is held."""
        name = self._one_of(self.live(), recent)
        lines = self.model.promises[name].lines
        picks = tuple(
            (sku, max(0, quantity + by))
            for (sku, quantity), by in zip(lines.items(), off, strict=False)
        )
        self.step(("commit", {"name": name, "picks": picks}))

    @precondition(lambda self: self.live())
    @rule(recent=recents, left=st.integers(0, 2))
    def commit_past_the_shelf(self, recent: int, left: int) -> None:
        """Commit after a count that found fewer than are held."""
        name = self._one_of(self.live(), recent)
        promise = self.model.promises[name]
        self._move(promise.location, next(iter(promise.lines)), "count", left)
        self.step(("commit", {"name": name}))

    @rule(partition=st.integers(0, PARTITIONS - 1))
    def expire_due(self, partition: int) -> None:
        """Sweep a partition."""
        self.step(("expire_due", {"partition": partition}))

    @rule(call=calls)
    def retry(self, call: Call) -> None:
        """Make a call again, as one whose reply was lost."""
        self.step(call)

    @rule(call=calls)
    def reuse_key(self, call: Call) -> None:
        """Use a call's key for another body."""
        verb, what = call
        if verb == "amend":
            other = (verb, what | {"lines": [more_of(line) for line in what["lines"]]})
        elif verb == "expect":
            other = (verb, what | {"day": DAYS[0], "quantity": what["quantity"] + 1})
        elif verb == "relocate":
            elsewhere = LOCATIONS[what["location"] == LOCATIONS[0]]
            other = (verb, what | {"location": elsewhere, "to": f"{elsewhere}/{self._new_key()}"})
        else:
            field = OTHER_BODY[verb]
            other = (verb, what | {field: what[field] + 1 or 1})
        if verb in ("reserve", "wish") and what["name"] not in self.model.promises:
            self.names.append(what["name"])
        self.step(other)

    @invariant()
    def is_as_modelled(self) -> None:
        """Every row and reservation reads as in the model, and every invariant holds."""
        names = list(self.model.rows)
        if names:
            rows = self.bench.run(self.shop.inventory.rows(self.merchant, names))
            assert [row and row_facts(row) | outlook_facts(row) for row in rows] == [
                self.model.rows[name].facts() | self.model.outlook(*name) for name in names
            ]
            for location, sku in names:
                self.queue_is_as_modelled(location, sku)
        for name, promise in self.model.promises.items():
            found = self.bench.run(
                self.shop.inventory.reservation(self.merchant, id_of(self.shop, name))
            )
            assert promise_facts(found) == promise.facts()
        self.bench.run(self.bench.audit.check(merchant=self.merchant))

    def queue_is_as_modelled(self, location: str, sku: str) -> None:
        """Who waits for a row stands in the order of the model."""
        queue = self.model.queue(location, sku)
        if queue:
            page = self.bench.run(
                Supplies(self.shop.inventory).waiting(self.merchant, location, sku)
            )
            assert [(one.reservation, one.units) for one in page.items] == [
                (id_of(self.shop, name), promise.waiting[sku].units) for name, promise in queue
            ]


class NamedShop(Shop):
    """A shop that remembers the ids of what was moved, by the name that it has in the model."""

    def __init__(self, *where: Any) -> None:
        """Know of none."""
        super().__init__(*where)
        self.ids: dict[str, str] = {}


def id_of(shop: NamedShop, name: str) -> str:
    """Return the id of the reservation that a name stands for."""
    if name in shop.ids:
        return shop.ids[name]
    location, key = name.split("/")
    return reservation_id(shop.keys(location).partition, shop.merchant, location, key)


def expect(shop: model.Shop, call: Call) -> Answer:
    """Make a call on the model."""
    verb, what = call
    if verb == "expire_due":
        return {"code": "ok", "expired": shop.expire_due(what["partition"])}
    if verb == "fill":
        shop.fill(**what)
        return {"code": "ok"}
    if verb == "review":
        return {"code": "ok", "reviewed": shop.review(**what)}
    if verb in ("reserve", "wish"):
        what = what | {"location": what["name"].split("/")[0]}
    answer: Answer = getattr(shop, verb)(**what)
    return answer


async def ask_at_once(shop: NamedShop, calls: list[Call]) -> list[Answer]:
    """Make calls on the engine at once; they travel in their order."""
    return list(await asyncio.gather(*(ask(shop, call) for call in calls)))


async def ask(shop: NamedShop, call: Call) -> Answer:
    """Make a call on the engine and put its answer as the model does."""
    verb, what = call
    what = dict(what)
    inventory, merchant = shop.inventory, shop.merchant
    if "name" in what and verb not in ("reserve", "wish"):
        what["reservation"] = id_of(shop, what.pop("name"))
    try:
        if verb == "expire_due":
            return {"code": "ok", "expired": (await inventory.expire_due(**what)).expired}
        if verb == "move":
            what["kind"] = MovementType(what["kind"])
            return moved_facts(await shop.move(**what))
        if verb == "configure":
            return moved_facts(await inventory.configure(merchant, actor=ACTOR, **what))
        if verb == "fill":
            await inventory.fill(merchant, **what)
            return {"code": "ok"}
        if verb == "review":
            return {"code": "ok"} | late_facts(await Supplies(inventory).review(merchant, **what))
        if verb == "expect":
            return await expect_supply(shop, what)
        if verb == "feed":
            return await tell(shop, what)
        if verb == "relocate":
            to = what.pop("to")
            moved = await Relocation(inventory).relocate(merchant, actor=ACTOR, **what)
            shop.ids.setdefault(to, moved.result.reservation.id)
            return result_facts(moved.result)
        if verb == "set_terms":
            cap = what.pop("buyer_cap")
            terms = Terms(
                what.pop("backorder_limit"),
                {name: Pool(*pool) for name, pool in what.pop("pools").items()},
                None if cap is None else BuyerCap(*cap),
            )
            sku, location = what.pop("sku"), what.pop("location")
            return moved_facts(
                await inventory.set_terms(merchant, location, sku, terms, actor=ACTOR, **what)
            )
        if verb == "reserve":
            what["location"], what["key"] = what.pop("name").split("/")
            return result_facts(await shop.reserve(**what))
        if verb == "wish":
            what["location"], what["key"] = what.pop("name").split("/")
            lines = [wish_of(wish) for wish in what.pop("wishes")]
            result = await inventory.reserve(merchant, lines=lines, actor=ACTOR, **what)
            return result_facts(result)
        if verb == "decide":
            what["decision"] = ProposalDecision(what["decision"])
        if verb == "commit":
            what["picks"] = [Line(*pick) for pick in what.get("picks", ())]
        if verb == "amend":
            what["lines"] = [
                wish_of(line) if isinstance(line, model.Wish) else Line(*line)
                for line in what["lines"]
            ]
        result = await getattr(inventory, verb)(merchant, actor=ACTOR, **what)
        return result_facts(result)
    except HoldfastError as refusal:
        return refusal_facts(refusal)


async def expect_supply(shop: NamedShop, what: dict[str, Any]) -> Answer:
    """Announce a supply, or cancel it where nothing of it is to come."""
    day, quantity = what.pop("day"), what.pop("quantity")
    row = (shop.merchant, what.pop("location"), what.pop("sku"), what.pop("supply"))
    supplies = Supplies(shop.inventory)
    if quantity:
        changed = await supplies.expect(*row, Supply(day, quantity), actor=ACTOR, **what)
    else:
        changed = await supplies.cancel(*row, actor=ACTOR, **what)
    return moved_facts(changed) | late_facts(changed.reviewed)


async def tell(shop: NamedShop, what: dict[str, Any]) -> Answer:
    """Tell of an event of a feed."""
    kind = EventType.RECEIPT if what["kind"] == "receive" else EventType.TRANSFER_IN
    event = FeedEvent(
        event_id=what["event"],
        type=kind,
        occurred_at_ms=what["occurred_at"],
        sku=what["sku"],
        quantity=what["quantity"],
        supply=what["supply"],
    )
    feeds = Feeds(shop.inventory)
    (taken,) = await feeds.take(shop.merchant, what["location"], "till", [event], actor=ACTOR)
    assert isinstance(taken, Taken)
    return {"code": "ok", "verdict": taken.verdict.value, "why": taken.why}


def late_facts(reviewed: Reviewed) -> Answer:
    """Return whose day cannot be kept."""
    assert reviewed.count == len(reviewed.late)
    late = [(x.reservation, x.units, x.promised_by, x.expected_on) for x in reviewed.late]
    return {"reviewed": tuple(late)}


def wish_of(wish: model.Wish) -> Wish:
    """Return a wish as the engine takes it; one that nothing may stand for says so."""
    alternatives = tuple(Alternative(sku=s, of=of, for_=for_) for s, of, for_ in wish.alternatives)
    how = Substitution.APPROVE if wish.approve else Substitution.ALLOWED
    return Wish(
        sku=wish.sku,
        quantity=wish.quantity,
        substitutes=how if alternatives else Substitution.NONE,
        fill=Fill.WHOLE if wish.whole else Fill.MIXED,
        alternatives=alternatives,
    )


def row_facts(row: Row) -> Answer:
    """Return the columns of a row."""
    return {
        "on_hand": row.on_hand,
        "reserved": row.reserved,
        "safety_stock": row.safety_stock,
        "deficit": row.deficit,
        "version": row.version,
        "backordered": row.backordered,
        "supplies": {
            name: (supply.expected_on, supply.quantity)
            for name, supply in (row.terms.supplies if row.terms else {}).items()
        },
    }


def outlook_facts(row: Row) -> Answer:
    """Return what a row says that can be promised, and who holds what of it."""
    terms = row.terms or Terms()
    return {
        "available": row.available,
        "available_to_promise": tuple((one.by, one.quantity) for one in row.available_to_promise),
        "backorder_available": row.backorder_available,
        "late": terms.late,
        "held": {name: pool.held for name, pool in terms.channels.items() if pool.held},
    }


def moved_facts(moved: Moved | Configured) -> Answer:
    """Return what a movement or a change of settings answered."""
    facts = {"code": "ok", "replayed": moved.replayed, "at": moved.at_ms} | row_facts(moved.row)
    return facts | ({"on_hand_change": moved.on_hand_change} if isinstance(moved, Moved) else {})


def promise_facts(found: Reservation) -> Answer:
    """Return what is told of a reservation."""
    return {
        "state": found.state.value,
        "lines": pairs(found.lines),
        "missing": pairs(found.missing),
        "order_ref": model.MOVED if is_move_id(found.order_ref) else found.order_ref,
        "created_at": found.created_at_ms,
        "expires_at": found.expires_at_ms,
        "confirmed_at": found.confirmed_at_ms,
        "ended_at": found.ended_at_ms,
        "picked": None if found.picked is None else pairs(found.picked),
        "backordered": pairs(found.backordered),
        "promised": tuple((one.sku, one.by, one.expected_on) for one in found.promised),
        "channel": found.channel,
        "is_counted": bool(found.buyer),
        "stands_for": tuple(msgspec.structs.astuple(one) for one in found.stands_for),
        "proposed": found.proposed,
    }


def result_facts(result: ReservationResult) -> Answer:
    """Return what a verb on a reservation answered."""
    return {"code": "ok", "replayed": result.replayed} | promise_facts(result.reservation)


def pairs(lines: tuple[Line, ...]) -> tuple[tuple[str, int], ...]:
    """Return lines as the model has them."""
    return tuple((line.sku, line.quantity) for line in lines)


def refusal_facts(refusal: HoldfastError) -> Answer:
    """Return a refusal's code, and the fields that the model foretells."""
    facts: Answer = {"code": refusal.code}
    match refusal:
        case InsufficientStock() | InsufficientOnHand() | BuyerCapExceeded() | BackorderUnfilled():
            facts["lines"] = tuple(
                (line.sku, line.requested, line.available, line.known) for line in refusal.lines
            )
        case ReservationEnded():
            facts |= {"state": refusal.state, "ended_at": refusal.ended_at_ms}
        case ProposalOpen():
            facts["skus"] = refusal.skus
        case ReservationNotHeld():
            facts["state"] = refusal.state
        case VersionConflict():
            facts |= {"expected": refusal.expected, "actual": refusal.actual}
        case LimitExceeded():
            facts |= {"field": refusal.field, "most": refusal.most}
    return facts


@pytest.mark.slow
def test_every_verb_does_what_the_model_does(bench: Bench) -> None:
    class Machine(ShopMachine):
        """The machine on this bench."""

    Machine.bench = bench
    run_state_machine_as_test(Machine)
