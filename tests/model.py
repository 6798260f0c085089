"""A plain-Python model of one merchant's shop: what every verb shall answer, and change.

It is written from the rules of the state model alone and imports no product code, so that a mistake
in the engine cannot repeat itself here. Units are integers, times are milliseconds since 1970, and
the clock is `Shop.now_ms`, which the test sets. An answer is a dict with a `code`: "ok", or the
code of the refusal.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import gcd
from typing import Any, Final, NamedTuple

from tests.choosing import Candidate, choose
from tests.shelves import NEVER, Ask, Deal, Room, Shelf, Wait

MAX_TOTAL: Final = 10**12
MAX_HOLD_MS: Final = 7 * 24 * 3_600_000
MIN_TTL_MS: Final = 1_000
DEFAULT_TTL_MS: Final = 15 * 60_000
MOVED: Final = "moved"
"""The order reference of what was released as it is held elsewhere: the id of the move."""


ARRIVALS: Final = ("receive", "return", "transfer_in")
DEPARTURES: Final = ("sale", "transfer_out")
SUPPLIED: Final = ("receive", "transfer_in")
"""What may be the arrival of a supply."""

Answer = dict[str, Any]
Lines = Sequence[tuple[str, int]]
Stand = tuple[str, str, int, int, int, int, str]
"""(asked, SKU, units of it, served of what was asked, of, for, kind)."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Units of a SKU, or of what may stand for it: alternatives as (SKU, of, for)."""

    sku: str
    quantity: int
    alternatives: tuple[tuple[str, int, int], ...] = ()
    approve: bool = False
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Way:
    """What may serve a wish: `of` of it for `for_`, each made of so many units of rows.

    `kind` is empty for the SKU itself. `most` units of it may be taken, where that is not None.
    """

    parts: dict[str, int]
    of: int = 1
    for_: int = 1
    kind: str = ""
    most: int | None = None


@dataclass(slots=True)
class Plan:
    """What serves wishes: units of each row, in the order in which they are held.

    `rooms` is what there is of each row for them; of an amendment its own units included.
    """

    units: dict[str, int]
    rooms: dict[str, Room]
    short: list[tuple[str, int, int, bool]] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=dict)
    stands_for: list[Stand] = field(default_factory=list)
    proposed: list[str] = field(default_factory=list)
    limits: set[str] = field(default_factory=set)
    needs_buyer: bool = False

    @property
    def is_substituted(self) -> bool:
        """True where something else is handed over than was asked for."""
        return any(stand[-1] == "substitute" for stand in self.stands_for)


class Own(NamedTuple):
    """Units that a promise has of a row and that are free for it; some of them wait."""

    units: int = 0
    waits: int = 0


@dataclass(slots=True)
class Promise:
    """A reservation, from its reserve to its ending."""

    location: str
    lines: dict[str, int]
    missing: dict[str, int]
    created_at: int
    expires_at: int
    order_ref: str
    channel: str = "online"
    buyer: str = ""
    waiting: dict[str, Wait] = field(default_factory=dict)
    pooled: set[str] = field(default_factory=set)
    capped: dict[str, int] = field(default_factory=dict)
    on_terms: bool = False
    state: str = "held"
    confirmed_at: int | None = None
    ended_at: int | None = None
    picked: dict[str, int] | None = None
    stands_for: tuple[Stand, ...] = ()
    proposed: tuple[str, ...] = ()
    decided: dict[str, str] = field(default_factory=dict)

    @property
    def is_live(self) -> bool:
        """True while units are kept for it."""
        return self.state in ("held", "confirmed")

    def _waits(self) -> list[tuple[str, Wait]]:
        return [(sku, self.waiting[sku]) for sku in self.lines if sku in self.waiting]

    def pool_of(self, sku: str) -> str:
        """Return the channel in whose pool its units of a row count; '' for none."""
        return self.channel if sku in self.pooled else ""

    def facts(self) -> Answer:
        """Return what every verb tells of it."""
        return {
            "state": self.state,
            "lines": tuple(self.lines.items()),
            "missing": tuple(self.missing.items()),
            "order_ref": self.order_ref,
            "created_at": self.created_at,
            "expires_at": self.expires_at if self.state == "held" else None,
            "confirmed_at": self.confirmed_at,
            "ended_at": self.ended_at,
            "picked": None if self.picked is None else tuple(self.picked.items()),
            "backordered": tuple((s, w.units) for s, w in self._waits()),
            "promised": tuple(
                (s, w.day, _told_day(w.late) if w.late else w.day)
                for s, w in self._waits()
                if w.is_dated
            ),
            "channel": self.channel if self.on_terms else "",
            "is_counted": bool(self.buyer),
            "stands_for": self.stands_for,
            "proposed": self.proposed,
        }


@dataclass(slots=True)
class Shop:
    """One merchant's rows and reservations. `partition_of` maps a location to its partition."""

    partition_of: Callable[[str], int]
    now_ms: int
    rows: dict[tuple[str, str], Shelf] = field(default_factory=dict)
    promises: dict[str, Promise] = field(default_factory=dict)
    requests: dict[tuple[str, ...], tuple[object, Answer]] = field(default_factory=dict)
    kits: dict[str, dict[str, int]] = field(default_factory=dict)
    moves: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    """Of each (name, key) of a move its location, and its new name once it was made."""

    def shelf(self, location: str, sku: str) -> Shelf:
        """Return the row, or an empty one that is not kept."""
        return self.rows.get((location, sku), Shelf())

    def queue(self, location: str, sku: str) -> list[tuple[str, Promise]]:
        """Return who waits for a row, in the order of their turns."""
        found = [
            (name, promise)
            for name, promise in self.promises.items()
            if promise.location == location and sku in promise.waiting
        ]
        return sorted(found, key=lambda one: one[1].waiting[sku].turn)

    def outlook(self, location: str, sku: str) -> Answer:
        """Return what a row says: of what can be promised, what who has no pool may have."""
        shelf, waits = self.shelf(location, sku), self.waits(location, sku)
        uncapped = replace(shelf, deal=replace(shelf.deal, buyer_cap=None))
        room = uncapped.room(Ask(channel=""), waits, 0)
        return {
            "available": shelf.available,
            "available_to_promise": tuple(
                (day, shelf.available + units) for day, units in room.days
            ),
            "backorder_available": room.most - room.shelf,
            "late": sum(wait.units for wait in waits if wait.late),
            "held": {name: units for name, units in shelf.held.items() if units},
        }

    def waits(self, location: str, sku: str) -> list[Wait]:
        """Return how they wait."""
        return [promise.waiting[sku] for _, promise in self.queue(location, sku)]

    def move(
        self,
        location: str,
        sku: str,
        kind: str,
        quantity: int,
        *,
        key: str,
        expected_version: int | None = None,
        may_overdraw: bool = False,
        supply: str = "",
    ) -> Answer:
        """Book a physical event. `key` counts for the location."""
        scope = ("move", location, key)
        request = (sku, kind, quantity, expected_version, may_overdraw, supply)
        if supply and kind not in SUPPLIED:
            return {"code": "invalid_request"}
        if (earlier := self._earlier(scope, request)) is not None:
            return earlier
        shelf = self.shelf(location, sku)
        if expected_version is not None and expected_version != shelf.version:
            return _conflict(expected_version, shelf.version)
        if supply and supply not in shelf.supplies:
            return {"code": "supply_not_found"}
        before = shelf.on_hand
        if kind == "count":
            on_hand, deficit = quantity, 0
        else:
            change = -quantity if kind in DEPARTURES else quantity
            if -change > shelf.on_hand and not may_overdraw and kind != "sale":
                known = (location, sku) in self.rows
                return {
                    "code": "insufficient_on_hand",
                    "lines": ((sku, -change, shelf.on_hand, known),),
                }
            books = shelf.on_hand - shelf.deficit + change
            on_hand, deficit = max(0, books), max(0, -books)
            if on_hand > MAX_TOTAL or deficit > MAX_TOTAL:
                return {"code": "limit_exceeded", "field": "quantity", "most": MAX_TOTAL}
        self.rows[location, sku] = shelf
        moment = max(self.now_ms, shelf.counted_at + 1)
        if kind == "count":
            shelf.counted_at = max(moment, shelf.changed_at)
        else:
            shelf.changed_at = max(shelf.changed_at, moment)
        if supply:
            shelf.take_from_supply(supply, quantity)
        shelf.on_hand, shelf.deficit = on_hand, deficit
        shelf.version += 1
        answer = {"code": "ok", "on_hand_change": on_hand - before, "at": self.now_ms}
        answer = self._remember(scope, request, answer | shelf.facts())
        self.fill(location, sku)
        return answer

    def configure(
        self, location: str, sku: str, *, key: str, safety_stock: int, expected_version: int
    ) -> Answer:
        """Change a row's settings, or make the row where `expected_version` is 0."""
        scope = ("configure", location, sku, key)
        request = (safety_stock, expected_version)
        if (earlier := self._earlier(scope, request)) is not None:
            return earlier
        shelf = self.shelf(location, sku)
        if expected_version != shelf.version:
            return _conflict(expected_version, shelf.version)
        self.rows[location, sku] = shelf
        shelf.safety_stock = safety_stock
        shelf.version += 1
        return self._remember(scope, request, {"code": "ok", "at": self.now_ms} | shelf.facts())

    def set_terms(
        self,
        location: str,
        sku: str,
        *,
        key: str,
        expected_version: int,
        backorder_limit: int = 0,
        pools: dict[str, tuple[int | None, int]] | None = None,
        buyer_cap: tuple[int, int] | None = None,
    ) -> Answer:
        """Set on what terms a row is promised; what is not named ends."""
        scope = ("terms", location, sku, key)
        request = (expected_version, backorder_limit, str(pools), buyer_cap)
        if (earlier := self._earlier(scope, request)) is not None:
            return earlier
        shelf = self.shelf(location, sku)
        if expected_version != shelf.version:
            return _conflict(expected_version, shelf.version)
        self.rows[location, sku] = shelf
        shelf.deal = Deal(backorder_limit, dict(pools or {}), buyer_cap)
        shelf.owes = shelf.backordered > 0
        shelf.version += 1
        return self._remember(scope, request, {"code": "ok", "at": self.now_ms} | shelf.facts())

    def expect(
        self, location: str, sku: str, *, supply: str, key: str, day: str, quantity: int
    ) -> Answer:
        """Say what is still to come with a supply, and when; nothing cancels it."""
        scope, request = ("supply", location, sku, key), (supply, day, quantity)
        answer = self._earlier(scope, request)
        if answer is None:
            shelf = self.shelf(location, sku)
            if not quantity and supply not in shelf.supplies:
                return {"code": "supply_not_found"}
            self.rows[location, sku] = shelf
            shelf.supplies.pop(supply, None)
            if quantity:
                shelf.supplies[supply] = (day, quantity)
            shelf.version += 1
            has_days = any(wait.day for wait in self.waits(location, sku))
            facts = {"code": "ok", "at": self.now_ms} | shelf.facts()
            answer = self._remember(scope, request, facts | {"reviewed": has_days})
        if answer["code"] == "ok":
            late = self.review(location, sku) if answer["reviewed"] else ()
            answer |= {"reviewed": late}
        return answer

    def feed(
        self,
        location: str,
        sku: str,
        *,
        event: str,
        kind: str,
        quantity: int,
        supply: str,
        occurred_at: int,
    ) -> Answer:
        """Take an arrival that a source tells of, which a later count may have already."""
        scope, request = ("feed", location, event), (sku, kind, quantity, supply, occurred_at)
        if self._earlier(scope, request) is not None:
            return {"code": "ok", "verdict": "duplicate", "why": ""}
        self._remember(scope, request, {})
        shelf = self.shelf(location, sku)
        is_expected = supply in shelf.supplies
        is_counted = occurred_at <= shelf.counted_at
        if is_expected or not is_counted:
            self.rows[location, sku] = shelf
            shelf.version += 1
        if is_expected:
            shelf.take_from_supply(supply, quantity)
        if not is_counted:
            books = shelf.on_hand - shelf.deficit + quantity
            shelf.on_hand, shelf.deficit = max(0, books), max(0, -books)
            shelf.changed_at = max(shelf.changed_at, occurred_at)
        verdict = "superseded" if is_counted else "applied"
        why = "supply_not_found" if supply and not is_expected else ""
        return {"code": "ok", "verdict": verdict, "why": why}

    def review(self, location: str, sku: str) -> tuple[tuple[str, int, str, str | None], ...]:
        """Tell those who wait whose day cannot be kept, or can be again; return who is late."""
        shelf, late = self.shelf(location, sku), []
        for name, wait, expected in self.expected(location, sku):
            if expected != wait.late:
                wait.late = expected
                shelf.version += 1
            if expected:
                late.append((name, wait.units, wait.day, _told_day(expected)))
        return tuple(late)

    def expected(self, location: str, sku: str) -> list[tuple[str, Wait, str]]:
        """Return who was promised a day, and when they are expected; '' where it can be kept.

        All that is to come is given out on its day, as it will be if nothing else happens.
        """
        shelf, queue = self.shelf(location, sku), self.queue(location, sku)
        left = [promise.waiting[sku].units for _, promise in queue]
        served, given = [NEVER for _ in queue], 0
        for day in ("", *shelf.days_of_supplies()):
            for i, (_, promise) in enumerate(queue):
                there = (
                    shelf.come(day)
                    - given
                    - shelf.kept_from(promise.waiting[sku], promise.pool_of(sku))
                )
                units = min(left[i], max(0, there))
                left[i], given = left[i] - units, given + units
                if not left[i]:
                    served[i] = min(served[i], day)
        return [
            (name, wait, expected if expected > wait.day else "")
            for (name, promise), expected in zip(queue, served, strict=True)
            for wait in (promise.waiting[sku],)
            if wait.is_dated
        ]

    def at_risk(self, location: str, sku: str) -> set[str]:
        """Return whose day could not be kept if nobody before them were passed by."""
        shelf, ahead, found = self.shelf(location, sku), 0, set()
        for name, promise in self.queue(location, sku):
            wait = promise.waiting[sku]
            ahead += wait.units
            if wait.is_dated and shelf.come(wait.day) < ahead:
                found.add(name)
        return found

    def fill(self, location: str, sku: str) -> None:
        """Give what is free to those who wait, in turn; the minimums of others may stay."""
        for _, promise in self.queue(location, sku):
            wait, shelf = promise.waiting[sku], self.shelf(location, sku)
            units = min(shelf.free - shelf.kept_from(wait, promise.pool_of(sku)), wait.units)
            if units > 0:
                wait.units -= units
                if not wait.units:
                    del promise.waiting[sku]
                self._change(location, sku, reserved=units, backordered=-units)

    def reserve(
        self,
        location: str,
        lines: Lines,
        *,
        name: str,
        ttl_ms: int,
        order_ref: str = "",
        partial: bool = False,
        stock_only: bool = False,
        channel: str = "",
        buyer: str = "",
        by: str = "",
    ) -> Answer:
        """Promise units. `name` stands for the reservation: its location and idempotency key."""
        if by and stock_only:
            return {"code": "invalid_request"}
        scope, ask = ("reserve", name), Ask(stock_only, channel, buyer, by)
        request = (location, tuple(lines), ttl_ms, order_ref, partial, ask)
        if (earlier := self._earlier(scope, request)) is not None:
            return earlier
        wanted: dict[str, int] = {}
        for sku, quantity in lines:
            wanted[sku] = wanted.get(sku, 0) + quantity
        if not self.kits.keys().isdisjoint(wanted):
            wishes = tuple(Wish(sku, quantity) for sku, quantity in wanted.items())
            terms: dict[str, Any] = {"ttl_ms": ttl_ms, "order_ref": order_ref, "partial": partial}
            terms |= ask._asdict()
            return self.wish(location, wishes, name=name, **terms)
        if not buyer and any(self.shelf(location, sku).deal.buyer_cap for sku in wanted):
            return {"code": "invalid_request"}
        ask = ask._replace(channel=channel or "online")
        rooms = self._rooms(location, wanted, ask)
        if any(wanted[sku] > room.most for sku, room in rooms.items()):
            self.expire_due(self.partition_of(location))
            rooms = self._rooms(location, wanted, ask)
        short = self._short(location, wanted, rooms)
        if short and not (partial and any(room.most for room in rooms.values())):
            reasons = {rooms[sku].reason for sku, *_ in short}
            code = "buyer_cap_exceeded" if reasons == {"buyer"} else "insufficient_stock"
            return {"code": code, "lines": short}
        units = {sku: min(quantity, rooms[sku].most) for sku, quantity in wanted.items()}
        missing = {sku: n - units[sku] for sku, n in wanted.items() if n > units[sku]}
        promise = Promise(location, {}, missing, self.now_ms, self.now_ms + ttl_ms, order_ref)
        self._promise(name, promise, units, rooms, ask)
        return self._remember(scope, request, {"code": "ok"} | promise.facts())

    def _promise(
        self, name: str, promise: Promise, units: dict[str, int], rooms: dict[str, Room], ask: Ask
    ) -> None:
        """Take the units of a promise that is made."""
        promise.channel = ask.channel
        for sku, quantity in units.items():
            if quantity > 0:
                self._take(promise, sku, quantity, rooms[sku])
        promise.buyer = ask.buyer if promise.capped else ""
        self.promises[name] = promise

    def wish(
        self,
        location: str,
        wishes: tuple[Wish, ...],
        *,
        name: str,
        ttl_ms: int,
        partial: bool = False,
        order_ref: str = "",
        stock_only: bool = False,
        channel: str = "",
        buyer: str = "",
        by: str = "",
        held: tuple[Stand, ...] = (),
    ) -> Answer:
        """Promise what serves wishes, each of another SKU; `held` stands for them elsewhere."""
        if by and stock_only:
            return {"code": "invalid_request"}
        scope, ask = ("reserve", name), Ask(stock_only, channel, buyer, by)
        request = (location, wishes, ttl_ms, partial, order_ref, ask)
        if (earlier := self._earlier(scope, request)) is not None:
            return earlier
        ask = ask._replace(channel=channel or "online")
        rooms = self._rooms(location, self._skus_of(wishes, held), ask)
        if not buyer and any(self.shelf(location, sku).deal.buyer_cap for sku in rooms):
            return {"code": "invalid_request"}
        plan = self._plan(location, wishes, rooms, partial=partial, held=held)
        if plan.short or plan.is_substituted:
            self.expire_due(self.partition_of(location))
            rooms = self._rooms(location, rooms, ask)
            plan = self._plan(location, wishes, rooms, partial=partial, held=held)
        if plan.short and not (partial and any(plan.units.values())):
            code = "buyer_cap_exceeded" if plan.limits == {"buyer"} else "insufficient_stock"
            return {"code": code, "lines": tuple(plan.short)}
        promise = Promise(location, {}, plan.missing, self.now_ms, self.now_ms + ttl_ms, order_ref)
        promise.stands_for, promise.proposed = tuple(plan.stands_for), tuple(plan.proposed)
        promise.on_terms = bool(plan.stands_for)
        self._promise(name, promise, plan.units, rooms, ask)
        return self._remember(scope, request, {"code": "ok"} | promise.facts())

    def _rooms(self, location: str, skus: Iterable[str], ask: Ask) -> dict[str, Room]:
        """Return what there is of rows for an asker."""
        return {
            sku: self.shelf(location, sku).room(
                ask, self.waits(location, sku), self._bought(location, sku, ask.buyer)
            )
            for sku in skus
        }

    def _plan(
        self,
        location: str,
        wishes: tuple[Wish, ...],
        rooms: dict[str, Room],
        *,
        partial: bool,
        held: tuple[Stand, ...] = (),
    ) -> Plan:
        """Serve what nothing may stand for, then what is there, then the rest.

        `held` is what stands for the wishes already.
        """
        ways = {wish: self._ways(wish, held) for wish in wishes}
        plan = Plan(dict.fromkeys(rooms, 0), rooms)
        waiting = list(wishes)
        for turn in range(3):
            for wish in list(waiting):
                own = sum(
                    _room(way, plan, on_shelf=True)
                    for way in ways[wish]
                    if way.kind != "substitute"
                )
                is_plain = all(way.kind != "substitute" for way in ways[wish])
                if turn == 2 or is_plain or (turn == 1 and own >= wish.quantity):
                    waiting.remove(wish)
                    self._serve(location, wish, ways[wish], plan, partial)
        return plan

    def _ways(self, wish: Wish, held: tuple[Stand, ...]) -> list[Way]:
        """Return what may serve a wish: as it was asked for, and what may stand for it.

        A kit is made of what it was held by, and what stands for a wish may go on to do so.
        """
        made_of = {one[1]: one[4] for one in held if (one[0], one[-1]) == (wish.sku, "kit")}
        kit = made_of or self.kits.get(wish.sku)
        ways = [Way({wish.sku: 1})]
        if kit is not None:
            ways.append(Way(kit, kind="kit"))
        taken = {wish.sku, *(kit or {})}
        for sku, of, for_ in wish.alternatives:
            if sku not in taken and sku not in self.kits:
                ratio = gcd(of, for_)
                ways.append(Way({sku: 1}, of // ratio, for_ // ratio, "substitute"))
        taken |= {sku for sku, _, _ in wish.alternatives if sku not in self.kits}
        for asked, sku, units, _, of, for_, kind in held:
            if (asked, kind) == (wish.sku, "substitute") and sku not in taken:
                ways.append(Way({sku: 1}, of, for_, kind, units))
        return ways

    def _skus_of(self, wishes: tuple[Wish, ...], held: tuple[Stand, ...] = ()) -> list[str]:
        """Return the rows in the order in which they are held: first those asked for."""
        ways = [way for wish in wishes for way in self._ways(wish, held)]
        asked = [sku for way in ways if way.kind != "substitute" for sku in way.parts]
        others = [sku for way in ways if way.kind == "substitute" for sku in way.parts]
        return list(dict.fromkeys(asked + others))

    def _serve(
        self,
        location: str,
        wish: Wish,
        ways: list[Way],
        plan: Plan,
        partial: bool,
    ) -> None:
        there, all_of_it = (
            [Candidate(_room(way, plan, on_shelf=it), way.of, way.for_) for way in ways]
            for it in (True, False)
        )
        # Nobody waits where the shelves do.
        choice = choose(wish.quantity, there, whole=wish.whole)
        if choice is None:
            choice = choose(wish.quantity, all_of_it, whole=wish.whole, partial=partial)
        can = [one.served_by(one.room) for one in all_of_it]
        most = max(can) if wish.whole else sum(can)
        if most < wish.quantity:
            known = any(
                all((location, sku) in self.rows for sku in way.parts)
                for way in ways
                if way.kind != "substitute"
            )
            plan.short.append((wish.sku, wish.quantity, most, known))
            is_capped = any(_is_bound_by_buyer(way, plan) for way in ways)
            plan.limits.add("buyer" if is_capped else "stock")
        served_in_all, is_substituted = 0, False
        for way, (units, served) in zip(ways, choice or (), strict=False):
            served_in_all += served
            # What stands for it already was accepted, or is proposed.
            is_substituted |= units > 0 and way.kind == "substitute"
            for sku, each in way.parts.items() if units else ():
                plan.units[sku] += units * each
                if way.kind:
                    ratio = each if way.kind == "kit" else way.of
                    stand = (wish.sku, sku, units * each, served, ratio, way.for_, way.kind)
                    plan.stands_for.append(stand)
        if choice is not None and served_in_all < wish.quantity:
            plan.missing[wish.sku] = wish.quantity - served_in_all
        if is_substituted and wish.approve:
            plan.proposed.append(wish.sku)

    def decide(self, name: str, *, decision: str, skus: tuple[str, ...] = ()) -> Answer:
        """Accept or decline that others stand for what was asked for."""
        promise = self.promises.get(name)
        if promise is None:
            return {"code": "reservation_not_found"}
        asked = skus or promise.proposed or tuple(promise.decided)
        if not asked or any(s not in promise.proposed and s not in promise.decided for s in asked):
            return {"code": "invalid_request"}
        if any(promise.decided.get(sku, decision) != decision for sku in asked):
            return {"code": "proposal_decided"}
        now = [sku for sku in asked if sku in promise.proposed]
        if not now:
            return {"code": "ok", "replayed": True} | promise.facts()
        if not promise.is_live:
            return _ended(promise)
        lines, missing = dict(promise.lines), dict(promise.missing)
        if decision == "declined":
            for stand in promise.stands_for:
                if stand[0] in now and stand[-1] == "substitute":
                    lines[stand[1]] -= stand[2]
            for sku in now:
                back = sum(
                    s[3] for s in promise.stands_for if s[0] == sku and s[-1] == "substitute"
                )
                missing[sku] = missing.get(sku, 0) + back
        lines = {sku: units for sku, units in lines.items() if units}
        if not lines:
            return self._end(promise, "released", {})
        for sku, held in promise.lines.items():
            if held != lines.get(sku, 0):
                self._change(promise.location, sku, reserved=lines.get(sku, 0) - held)
                if sku in promise.pooled:
                    self.shelf(promise.location, sku).held[promise.channel] += (
                        lines.get(sku, 0) - held
                    )
        promise.pooled &= lines.keys()
        promise.capped = {sku: n for sku, n in promise.capped.items() if sku in lines}
        promise.lines, promise.missing = lines, missing
        promise.proposed = tuple(sku for sku in promise.proposed if sku not in now)
        promise.decided |= dict.fromkeys(now, decision)
        if decision == "declined":
            promise.stands_for = tuple(
                s for s in promise.stands_for if s[0] not in now or s[-1] != "substitute"
            )
        return {"code": "ok", "replayed": False} | promise.facts()

    def _take(self, promise: Promise, sku: str, units: int, room: Room) -> None:
        shelf, waits = self.shelf(promise.location, sku), self.waits(promise.location, sku)
        waiting = units - min(units, room.shelf)
        promise.lines[sku] = units
        promise.on_terms = promise.on_terms or shelf.has_terms(waits)
        if waiting:
            place = shelf.version + 1
            promise.waiting[sku] = shelf.new_wait(waiting, room.days, waits, place)
        if shelf.is_pooled(promise.channel):
            promise.pooled.add(sku)
            shelf.held[promise.channel] = shelf.held.get(promise.channel, 0) + units
        if shelf.deal.buyer_cap is not None:
            promise.capped[sku] = shelf.deal.buyer_cap[1]
        self._change(promise.location, sku, reserved=units - waiting, backordered=waiting)

    def _bought(self, location: str, sku: str, buyer: str, but: Promise | None = None) -> int:
        """Return what counts for a buyer: what is promised, and lately was picked."""
        units = 0
        for promise in self.promises.values():
            if (
                promise is but
                or (promise.location, promise.buyer) != (location, buyer)
                or sku not in promise.capped
            ):
                continue
            if promise.is_live:
                units += promise.lines[sku]
            elif promise.picked and (promise.ended_at or 0) + promise.capped[sku] > self.now_ms:
                units += promise.picked.get(sku, 0)
        return units

    def confirm(self, name: str, *, order_ref: str = "") -> Answer:
        """Keep a hold for good: the order is placed."""
        promise = self.promises.get(name)
        if promise is None:
            return {"code": "reservation_not_found"}
        if promise.state == "confirmed":
            if order_ref not in ("", promise.order_ref):
                return {"code": "idempotency_key_reused"}
            return {"code": "ok", "replayed": True} | promise.facts()
        if promise.state != "held":
            return _ended(promise)
        if promise.proposed:
            return {"code": "proposal_open", "skus": promise.proposed}
        promise.state = "confirmed"
        promise.confirmed_at = self.now_ms
        promise.order_ref = order_ref or promise.order_ref
        return {"code": "ok", "replayed": False} | promise.facts()

    def extend(self, name: str, *, key: str, ttl_ms: int) -> Answer:
        """Let a hold run on; it never ends sooner for it."""
        promise = self.promises.get(name)
        if promise is None:
            return {"code": "reservation_not_found"}
        scope = ("extend", name, key)
        if (earlier := self._earlier(scope, ttl_ms)) is not None:
            return earlier
        if promise.state == "confirmed":
            return {"code": "reservation_not_held", "state": "confirmed"}
        if promise.state != "held":
            return _ended(promise)
        expires_at = max(promise.expires_at, self.now_ms + ttl_ms)
        latest = promise.created_at + MAX_HOLD_MS
        if expires_at > latest:
            return {
                "code": "limit_exceeded",
                "field": "ttl_seconds",
                "most": latest - self.now_ms,
            }
        promise.expires_at = expires_at
        return self._remember(scope, ttl_ms, {"code": "ok"} | promise.facts())

    def amend(
        self,
        name: str,
        *,
        key: str,
        lines: Sequence[tuple[str, int] | Wish],
        stock_only: bool = False,
        channel: str = "",
        buyer: str = "",
    ) -> Answer:
        """Want so many units of the SKUs named; the promise's own units are free for it."""
        promise = self.promises.get(name)
        if promise is None:
            return {"code": "reservation_not_found"}
        scope = ("amend", name, key)
        request = (tuple(lines), stock_only, channel, buyer)
        if (earlier := self._earlier(scope, request)) is not None:
            return earlier
        if not promise.is_live:
            return _ended(promise)
        if promise.on_terms and channel not in ("", promise.channel):
            return {"code": "invalid_request"}
        if promise.buyer and buyer not in ("", promise.buyer):
            return {"code": "invalid_request"}
        wishes = tuple(line if isinstance(line, Wish) else Wish(*line) for line in lines)
        own = self._freed(promise, wishes)
        if own is None:
            return {"code": "invalid_request"}
        ask = Ask(
            stock_only,
            promise.channel if promise.on_terms else channel or "online",
            promise.buyer or buyer,
        )
        is_wished = any(isinstance(line, Wish) or line[0] in self.kits for line in lines)
        plan = self._plan_amendment(promise, wishes, own, ask, is_wished=is_wished)
        # Only what goes up needs stock: taking back what is due may end the promise itself.
        if plan.short or self._substitutes_more(promise, plan, wishes):
            # It may be this very one that is due.
            self.expire_due(self.partition_of(promise.location))
            if promise.state == "expired":
                return _ended(promise)
            plan = self._plan_amendment(promise, wishes, own, ask, is_wished=is_wished)
        if plan.short:
            if plan.needs_buyer:
                return {"code": "invalid_request"}
            code = "buyer_cap_exceeded" if plan.limits == {"buyer"} else "insufficient_stock"
            return {"code": code, "lines": tuple(plan.short)}
        totals = {
            sku: promise.lines.get(sku, 0) - own.get(sku, Own()).units + units
            for sku, units in plan.units.items()
        }
        if not any({**promise.lines, **totals}.values()):
            return {"code": "invalid_request"}
        self._note_stand_ins(promise, plan, wishes)
        takes_on_terms = any(
            units > promise.lines.get(sku, 0)
            and self.shelf(promise.location, sku).has_terms(self.waits(promise.location, sku))
            for sku, units in totals.items()
        )
        if takes_on_terms or promise.stands_for:
            promise.channel, promise.on_terms = ask[1], True
        for sku, units in totals.items():
            self._hold(promise, sku, units, own.get(sku, Own()), plan, ask)
        promise.lines = {sku: n for sku, n in {**promise.lines, **totals}.items() if n}
        return self._remember(scope, request, {"code": "ok"} | promise.facts())

    def _freed(self, promise: Promise, wishes: tuple[Wish, ...]) -> dict[str, Own] | None:
        """Return the units that serve what is wanted; None where a SKU only stands for others."""
        named = {wish.sku for wish in wishes}
        freed = {sku: promise.lines.get(sku, 0) for sku in named}
        there: dict[str, int] = {}
        for stand in promise.stands_for:
            if stand[1] in named:
                freed[stand[1]] -= stand[2]
        asked = {stand[0] for stand in promise.stands_for}
        if any(s[1] in named - asked and not freed[s[1]] for s in promise.stands_for):
            return None
        for stand in promise.stands_for:
            if stand[0] in named:
                freed[stand[1]] = freed.get(stand[1], 0) + stand[2]
                if stand[-1] == "substitute":
                    there[stand[1]] = there.get(stand[1], 0) + stand[2]
        own = {}
        for sku, units in freed.items():
            wait = promise.waiting.get(sku)
            # What stands for another is there.
            waits = min(wait.units, units - there.get(sku, 0)) if wait else 0
            own[sku] = Own(units, waits)
        return own

    def _plan_amendment(
        self,
        promise: Promise,
        wishes: tuple[Wish, ...],
        own: dict[str, Own],
        ask: Ask,
        *,
        is_wished: bool,
    ) -> Plan:
        """Serve wishes beside what else the promise holds."""
        is_wished = is_wished or bool(promise.stands_for)
        skus = [wish.sku for wish in wishes]
        if is_wished:
            skus = self._skus_of(wishes, promise.stands_for)
        rooms = {sku: self._room_beside(promise, sku, own.get(sku, Own()), ask) for sku in skus}
        if is_wished:
            plan = self._plan(
                promise.location, wishes, rooms, partial=False, held=promise.stands_for
            )
            plan.needs_buyer = any(room.reason == "nobody" for room in rooms.values())
            return plan
        plan = Plan({wish.sku: wish.quantity for wish in wishes}, rooms)
        plan.short = list(self._short(promise.location, plan.units, rooms))
        plan.limits = {rooms[sku].reason for sku, *_ in plan.short}
        plan.needs_buyer = "nobody" in plan.limits
        return plan

    def _room_beside(self, promise: Promise, sku: str, own: Own, ask: Ask) -> Room:
        """Return the room for who has units of a row already, of which some are freed."""
        shelf, wait = self.shelf(promise.location, sku), promise.waiting.get(sku)
        total, there = promise.lines.get(sku, 0), own.units - own.waits
        if shelf.deal.buyer_cap is not None and not ask.buyer:
            return Room(own.units, there, "nobody")
        without = shelf.without(
            reserved=there,
            waiting=own.waits,
            channel=ask.channel,
            pooled=(total if sku in promise.pooled else 0) - (total - own.units),
        )
        others = [
            other if other is not wait else replace(other, units=other.units - own.waits)
            for other in self.waits(promise.location, sku)
        ]
        if wait and wait.day:
            # More by the same day; and nothing at a second turn.
            ask = ask._replace(by=wait.day if wait.is_dated else "")
            ask = ask._replace(stock_only=ask.stock_only or own.waits < wait.units)
        bought = self._bought(promise.location, sku, ask.buyer, but=promise) + total - own.units
        room = without.room(ask, [other for other in others if other.units], bought)
        # What it keeps on the shelf is not to come as well.
        more = max(0, there - room.kept)
        return room._replace(
            most=max(room.most, own.units),
            shelf=max(room.shelf, there),
            days=tuple((day, max(0, units - more)) for day, units in room.days),
        )

    def _hold(self, promise: Promise, sku: str, units: int, own: Own, plan: Plan, ask: Ask) -> None:
        """Have a promise hold so many units of a row in place of those that it has."""
        before, wait = promise.lines.get(sku, 0), promise.waiting.get(sku)
        waits, room = wait.units if wait else 0, plan.rooms[sku]
        shelf = self.shelf(promise.location, sku)
        waiting = waits - own.waits + max(0, plan.units[sku] - room.shelf)
        if units <= before:
            # First goes what has not come.
            waiting = min(waiting, max(0, waits - (before - units)))
        if (units, waiting) == (before, waits):
            return
        if units > before and shelf.deal.buyer_cap is not None:
            promise.buyer, promise.capped[sku] = ask.buyer, shelf.deal.buyer_cap[1]
        if sku in promise.pooled:
            shelf.held[promise.channel] += units - before
        elif units > before and shelf.is_pooled(promise.channel):
            promise.pooled.add(sku)
            shelf.held[promise.channel] = shelf.held.get(promise.channel, 0) + units
        if not units:
            promise.pooled.discard(sku)
            promise.capped.pop(sku, None)
        promise.waiting.pop(sku, None)
        if waiting > waits:
            others = self.waits(promise.location, sku)
            place = shelf.version + 1
            promise.waiting[sku] = shelf.new_wait(waiting, room.days, others, place)
        elif wait and waiting:
            wait.units = waiting
            promise.waiting[sku] = wait
        reserved = units - waiting - (before - waits)
        self._change(promise.location, sku, reserved=reserved, backordered=waiting - waits)

    @staticmethod
    def _substitutes_more(promise: Promise, plan: Plan, wishes: tuple[Wish, ...]) -> bool:
        before = _substituted(promise.stands_for)
        return any(
            units > before.get(key, 0) for key, units in _substituted(plan.stands_for).items()
        )

    def _note_stand_ins(self, promise: Promise, plan: Plan, wishes: tuple[Wish, ...]) -> None:
        """Say what stands for what, and what somebody has to accept of it."""
        named = {wish.sku for wish in wishes}
        before, after = _substituted(promise.stands_for), _substituted(plan.stands_for)
        more = {asked for (asked, sku), n in after.items() if n > before.get((asked, sku), 0)}
        still = {asked for asked, _ in after}
        promise.stands_for = (
            *(stand for stand in promise.stands_for if stand[0] not in named),
            *plan.stands_for,
        )
        still_open = [s for s in promise.proposed if s not in named or s in still]
        newly = [s for s in plan.proposed if s in more and s not in still_open]
        promise.proposed = (*still_open, *newly)
        promise.decided = {s: d for s, d in promise.decided.items() if s not in newly}

    def commit(self, name: str, *, picks: Lines = ()) -> Answer:
        """Take the units off the shelf: all that are held, or only `picks`."""
        promise = self.promises.get(name)
        if promise is None:
            return {"code": "reservation_not_found"}
        asked = dict(picks)
        if any(asked[sku] > promise.lines.get(sku, -1) for sku in asked):
            return {"code": "invalid_request"}
        units = {sku: asked.get(sku, 0) if picks else held for sku, held in promise.lines.items()}
        if not promise.is_live:
            if promise.state == "committed" and (not picks or units == promise.picked):
                return {"code": "ok", "replayed": True} | promise.facts()
            return _ended(promise)
        if promise.proposed:
            return {"code": "proposal_open", "skus": promise.proposed}
        for sku, *_ in _unfilled(promise, units):
            self.fill(promise.location, sku)
        unfilled = _unfilled(promise, units)
        if unfilled:
            return {"code": "backorder_unfilled", "lines": unfilled}
        short = tuple(
            (sku, quantity, self.shelf(promise.location, sku).on_hand, True)
            for sku, quantity in units.items()
            if quantity > self.shelf(promise.location, sku).on_hand
        )
        if short:
            return {"code": "insufficient_on_hand", "lines": short}
        promise.picked = units
        return self._end(promise, "committed", units)

    def release(self, name: str) -> Answer:
        """Give the units back."""
        promise = self.promises.get(name)
        if promise is None:
            return {"code": "reservation_not_found"}
        if promise.state == "released":
            return {"code": "ok", "replayed": True} | promise.facts()
        if not promise.is_live:
            return _ended(promise)
        return self._end(promise, "released", {})

    def relocate(self, name: str, *, key: str, location: str, to: str) -> Answer:
        """Hold what a promise holds at another location, under a new name, and there only."""
        earlier, moved_to = self.moves.get((name, key), (location, ""))
        if earlier != location:
            return {"code": "idempotency_key_reused"}
        if moved_to:
            return {"code": "ok", "replayed": True} | self.promises[moved_to].facts()
        old = self.promises.get(name)
        if old is None:
            return {"code": "reservation_not_found"}
        if not old.is_live:
            return _ended(old)
        if old.location == location or (old.proposed and old.state == "confirmed"):
            return {"code": "invalid_request"}
        self.moves[name, key] = (location, "")
        answer = self._reserve_anew(old, location, to)
        if answer["code"] != "ok":
            return answer
        new = self.promises[to]
        if old.state == "expired":
            # It was due, and was taken back to make room.
            self.release(to)
            del self.promises[to]
            return _ended(old)
        if old.state == "confirmed":
            self.confirm(to, order_ref=old.order_ref)
        self.release(name)
        old.order_ref = MOVED
        self.moves[name, key] = (location, to)
        return {"code": "ok", "replayed": False} | new.facts()

    def _reserve_anew(self, old: Promise, location: str, to: str) -> Answer:
        """Reserve what somebody asked for at another location, by the earliest of their days."""
        ttl_ms = max(MIN_TTL_MS, old.expires_at - self.now_ms)
        if old.state == "confirmed":
            ttl_ms = DEFAULT_TTL_MS
        days = [wait.day for wait in old.waiting.values() if wait.is_dated]
        terms: dict[str, Any] = {
            "ttl_ms": ttl_ms,
            "order_ref": old.order_ref,
            "stock_only": not old.waiting,
            "channel": old.channel if old.on_terms else "",
            "buyer": old.buyer,
            "by": min(days, default=""),
        }
        asked = dict(old.lines)
        for stand in old.stands_for:
            asked[stand[1]] -= stand[2]
        asked = {sku: units for sku, units in asked.items() if units}
        # Each component of a kit says how many kits it is for.
        kits = {stand[0]: stand[3] for stand in old.stands_for if stand[-1] == "kit"}
        for sku, units in kits.items():
            asked[sku] = asked.get(sku, 0) + units
        for stand in old.stands_for:
            if stand[-1] != "kit":
                asked[stand[0]] = asked.get(stand[0], 0) + stand[3]
        if not old.stands_for:
            return self.reserve(location, tuple(asked.items()), name=to, **terms)
        wishes = tuple(
            Wish(sku, units, approve=sku in old.proposed) for sku, units in asked.items()
        )
        return self.wish(location, wishes, name=to, held=old.stands_for, **terms)

    def expire_due(self, partition: int) -> int:
        """Take back what is due in a partition and return how many holds that were."""
        due = [
            promise
            for promise in self.promises.values()
            if promise.state == "held"
            and promise.expires_at <= self.now_ms
            and self.partition_of(promise.location) == partition
        ]
        for promise in due:
            self._end(promise, "expired", {})
        return len(due)

    def _end(self, promise: Promise, state: str, picked: dict[str, int]) -> Answer:
        for sku, held in promise.lines.items():
            wait = promise.waiting.pop(sku, None)
            waits = wait.units if wait else 0
            if picked.get(sku):
                shelf = self.shelf(promise.location, sku)
                shelf.changed_at = max(shelf.changed_at, self.now_ms, shelf.counted_at + 1)
            if sku in promise.pooled:
                self.shelf(promise.location, sku).held[promise.channel] -= held
            self._change(
                promise.location,
                sku,
                on_hand=-picked.get(sku, 0),
                reserved=waits - held,
                backordered=-waits,
            )
        promise.state = state
        promise.ended_at = self.now_ms
        return {"code": "ok", "replayed": False} | promise.facts()

    def _change(
        self,
        location: str,
        sku: str,
        *,
        on_hand: int = 0,
        reserved: int = 0,
        backordered: int = 0,
    ) -> None:
        shelf = self.rows[location, sku]
        shelf.backordered += backordered
        shelf.on_hand += on_hand
        shelf.reserved += reserved
        shelf.version += 1

    def _short(
        self, location: str, wanted: dict[str, int], rooms: dict[str, Room]
    ) -> tuple[tuple[str, int, int, bool], ...]:
        return tuple(
            (sku, quantity, rooms[sku].most, (location, sku) in self.rows)
            for sku, quantity in wanted.items()
            if quantity > rooms[sku].most
        )

    def _earlier(self, scope: tuple[str, ...], request: object) -> Answer | None:
        if scope not in self.requests:
            return None
        first, answer = self.requests[scope]
        if first != request:
            return {"code": "idempotency_key_reused"}
        return answer | {"replayed": True}

    def _remember(self, scope: tuple[str, ...], request: object, answer: Answer) -> Answer:
        self.requests[scope] = (request, answer)
        return answer | {"replayed": False}


def _unfilled(promise: Promise, units: dict[str, int]) -> tuple[tuple[str, int, int, bool], ...]:
    filled = {
        sku: held - (promise.waiting[sku].units if sku in promise.waiting else 0)
        for sku, held in promise.lines.items()
    }
    return tuple(
        (sku, quantity, filled[sku], True)
        for sku, quantity in units.items()
        if quantity > filled[sku]
    )


def _is_bound_by_buyer(way: Way, plan: Plan) -> bool:
    """Tell whether the buyer's cap alone is why there is not more of a way to serve a wish."""
    room = _room(way, plan, on_shelf=False)
    alone = {sku: replace(way, parts={sku: each}, most=None) for sku, each in way.parts.items()}
    scarcest = [sku for sku, one in alone.items() if _room(one, plan, on_shelf=False) == room]
    is_capped = all(
        plan.rooms[sku].reason == "buyer"
        and (way.kind != "substitute" or plan.rooms[sku].shelf == plan.rooms[sku].most)
        for sku in scarcest
    )
    return bool(scarcest) and is_capped and room != way.most


def _room(way: Way, plan: Plan, *, on_shelf: bool) -> int:
    """Return the units of a way that no wish has taken; nobody waits for a substitute."""
    on_shelf = on_shelf or way.kind == "substitute"
    units = [
        max(0, (room.shelf if on_shelf else room.most) - plan.units[sku]) // each
        for sku, each in way.parts.items()
        for room in (plan.rooms[sku],)
    ]
    return min(units if way.most is None else [*units, way.most])


def _told_day(day: str) -> str | None:
    """Return a day as it is told; nobody can say when never is."""
    return None if day == NEVER else day


def _substituted(stands: Sequence[Stand]) -> dict[tuple[str, str], int]:
    """Return the units of each SKU that substitutes hold, by what was asked for and by SKU."""
    units: dict[tuple[str, str], int] = {}
    for asked, sku, some, *_, kind in stands:
        if kind == "substitute":
            units[asked, sku] = units.get((asked, sku), 0) + some
    return units


def _conflict(expected: int, actual: int) -> Answer:
    return {"code": "version_conflict", "expected": expected, "actual": actual}


def _ended(promise: Promise) -> Answer:
    return {"code": "reservation_ended", "state": promise.state, "ended_at": promise.ended_at}
