"""A plain-Python model of one merchant's shop: what every verb shall answer, and change.

It is written from the rules of the state model alone and imports no product code, so that a mistake
in the engine cannot repeat itself here. Units are integers, times are milliseconds since 1970, and
the clock is `Shop.now_ms`, which the test sets. An answer is a dict with a `code`: "ok", or the
code of the refusal.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import gcd
from typing import Any, Final

from tests.choosing import Candidate, choose

MAX_TOTAL: Final = 10**12
MAX_HOLD_MS: Final = 7 * 24 * 3_600_000

ARRIVALS: Final = ("receive", "return", "transfer_in")
DEPARTURES: Final = ("sale", "transfer_out")

Answer = dict[str, Any]
Lines = Sequence[tuple[str, int]]
Ask = tuple[bool, str, str]
"""Whether only stock will do, the channel, and the buyer."""


@dataclass(slots=True)
class Deal:
    """On what terms a row is promised: see docs/concepts/promising.md."""

    backorder_limit: int = 0
    pools: dict[str, tuple[int | None, int]] = field(default_factory=dict)
    """Of a channel its cap (None: none) and its minimum."""
    buyer_cap: tuple[int, int] | None = None
    """Units, and the window in ms."""

    @property
    def is_plain(self) -> bool:
        """True where nothing is set."""
        return not self.backorder_limit and not self.pools and self.buyer_cap is None


@dataclass(slots=True)
class Shelf:
    """One row: (location, SKU)."""

    on_hand: int = 0
    reserved: int = 0
    safety_stock: int = 0
    deficit: int = 0
    version: int = 0
    backordered: int = 0
    deal: Deal = field(default_factory=Deal)
    owes: bool = False
    """Whether units were backordered when the deal was last set, so that it is not forgotten."""
    held: dict[str, int] = field(default_factory=dict)
    """Units in the pool of each channel."""

    @property
    def has_terms(self) -> bool:
        """True where it is not promised like an ordinary row."""
        return not self.deal.is_plain or self.owes or any(self.held.values())

    def is_pooled(self, channel: str) -> bool:
        """True where units count in the channel's pool, one that ended but still holds some too."""
        return channel in self.deal.pools or self.held.get(channel, 0) > 0

    def shelf_for(self, channel: str) -> int:
        """Units on the shelf that a channel may be promised, its cap aside."""
        unmet = self._unmet()
        own = unmet.pop(channel, 0)
        return max(0, self.available - sum(unmet.values()), min(own, self.free))

    def free_for(self, channel: str) -> int:
        """Units on the shelf for one who waits and counts in this pool, or in none ("")."""
        unmet = self._unmet()
        unmet.pop(channel, None)
        return max(0, self.free - sum(unmet.values()))

    def _unmet(self) -> dict[str, int]:
        """Units of its minimum that each pool does not hold yet."""
        return {
            name: max(0, minimum - self.held.get(name, 0))
            for name, (_, minimum) in self.deal.pools.items()
        }

    @property
    def free(self) -> int:
        """Units on the shelf that are not promised or kept back."""
        return max(0, self.on_hand - self.reserved - self.safety_stock)

    @property
    def available(self) -> int:
        """Units that can still be promised."""
        return max(0, self.free - self.backordered)

    def facts(self) -> Answer:
        """Return all columns by name."""
        return {
            "on_hand": self.on_hand,
            "reserved": self.reserved,
            "safety_stock": self.safety_stock,
            "deficit": self.deficit,
            "version": self.version,
            "backordered": self.backordered,
        }


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
    """What serves wishes: units of each row, in the order in which they are held."""

    units: dict[str, int]
    freed: dict[str, int] = field(default_factory=dict)
    short: list[tuple[str, int, int, bool]] = field(default_factory=list)
    missing: dict[str, int] = field(default_factory=dict)
    stands_for: list[Stand] = field(default_factory=list)
    proposed: list[str] = field(default_factory=list)
    shelves: dict[str, int] = field(default_factory=dict)
    """Of an amendment, the units of each row that are on the shelf for it, its own included."""
    limits: set[str] = field(default_factory=set)
    needs_buyer: bool = False

    @property
    def is_substituted(self) -> bool:
        """True where something else is handed over than was asked for."""
        return any(stand[-1] == "substitute" for stand in self.stands_for)


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
    waiting: dict[str, int] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    """Of each SKU the version of its row when it was last backordered."""
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
            "backordered": tuple((s, self.waiting[s]) for s in self.lines if s in self.waiting),
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

    def shelf(self, location: str, sku: str) -> Shelf:
        """Return the row, or an empty one that is not kept."""
        return self.rows.get((location, sku), Shelf())

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
    ) -> Answer:
        """Book a physical event. `key` counts for the location."""
        scope = ("move", location, key)
        request = (sku, kind, quantity, expected_version, may_overdraw)
        if (earlier := self._earlier(scope, request)) is not None:
            return earlier
        shelf = self.shelf(location, sku)
        if expected_version is not None and expected_version != shelf.version:
            return _conflict(expected_version, shelf.version)
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

    def fill(self, location: str, sku: str) -> None:
        """Give what is free to those who wait, in order of promise; minimums of others stay."""
        waiting = [
            promise
            for promise in self.promises.values()
            if promise.location == location and promise.is_live and sku in promise.waiting
        ]
        for promise in sorted(waiting, key=lambda one: one.places[sku]):
            shelf = self.shelf(location, sku)
            if sku in promise.waiting:
                pool = promise.channel if sku in promise.pooled else ""
                units = min(shelf.free_for(pool), promise.waiting[sku])
                if units == 0:
                    continue
                promise.waiting[sku] -= units
                if not promise.waiting[sku]:
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
    ) -> Answer:
        """Promise units. `name` stands for the reservation: its location and idempotency key."""
        scope = ("reserve", name)
        ask = (stock_only, channel, buyer)
        request = (location, tuple(lines), ttl_ms, order_ref, partial, ask)
        if (earlier := self._earlier(scope, request)) is not None:
            return earlier
        wanted: dict[str, int] = {}
        for sku, quantity in lines:
            wanted[sku] = wanted.get(sku, 0) + quantity
        if not buyer and any(self.shelf(location, sku).deal.buyer_cap for sku in wanted):
            return {"code": "invalid_request"}
        ask = (stock_only, channel or "online", buyer)
        short = self._short(location, wanted, ask)
        if short:
            self.expire_due(self.partition_of(location))
            short = self._short(location, wanted, ask)
        anything = any(self._room_for(location, sku, ask)[0] > 0 for sku in wanted)
        if short and not (partial and anything):
            reasons = {self._room_for(location, sku, ask)[2] for sku, *_ in short}
            code = "buyer_cap_exceeded" if reasons == {"buyer"} else "insufficient_stock"
            return {"code": code, "lines": short}

        promise = Promise(location, {}, {}, self.now_ms, self.now_ms + ttl_ms, order_ref)
        promise.channel, promise.buyer = ask[1], buyer
        for sku, quantity in wanted.items():
            most, shelf_units, _ = self._room_for(location, sku, ask)
            units = min(quantity, most)
            if units < quantity:
                promise.missing[sku] = quantity - units
            if units > 0:
                self._take(promise, sku, units, min(units, shelf_units))
        if not promise.capped:
            promise.buyer = ""
        self.promises[name] = promise
        return self._remember(scope, request, {"code": "ok"} | promise.facts())

    def wish(
        self, location: str, wishes: tuple[Wish, ...], *, name: str, ttl_ms: int, partial: bool
    ) -> Answer:
        """Promise what serves wishes, each of another SKU."""
        scope, request = ("reserve", name), (location, wishes, ttl_ms, partial)
        if (earlier := self._earlier(scope, request)) is not None:
            return earlier
        plan = self._plan(location, wishes, partial)
        if plan.short or plan.is_substituted:
            self.expire_due(self.partition_of(location))
            plan = self._plan(location, wishes, partial)
        if plan.short and not (partial and any(plan.units.values())):
            return {"code": "insufficient_stock", "lines": tuple(plan.short)}
        held = {sku: units for sku, units in plan.units.items() if units}
        for sku, units in held.items():
            self._change(location, sku, reserved=units)
        promise = Promise(location, held, plan.missing, self.now_ms, self.now_ms + ttl_ms, "")
        promise.stands_for, promise.proposed = tuple(plan.stands_for), tuple(plan.proposed)
        promise.on_terms = bool(plan.stands_for)
        self.promises[name] = promise
        return self._remember(scope, request, {"code": "ok"} | promise.facts())

    def _plan(
        self,
        location: str,
        wishes: tuple[Wish, ...],
        partial: bool,
        freed: dict[str, int] | None = None,
        held: tuple[Stand, ...] = (),
    ) -> Plan:
        """Serve what nothing may stand for, then what is there, then the rest.

        Units that are `freed` are free for them, and `held` is what stands for them already.
        """
        ways = {wish: self._ways(wish, held) for wish in wishes}
        plan = Plan(dict.fromkeys(self._in_order(wishes, ways), 0), freed=freed or {})
        waiting = list(wishes)
        for turn in range(3):
            for wish in list(waiting):
                own = sum(
                    self._room(location, way, plan)
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

    @staticmethod
    def _in_order(wishes: tuple[Wish, ...], ways: dict[Wish, Any]) -> list[str]:
        """Return the rows in the order in which they are held: first those asked for."""
        asked = [
            s for w in wishes for way in ways[w] if way.kind != "substitute" for s in way.parts
        ]
        others = [
            s for w in wishes for way in ways[w] if way.kind == "substitute" for s in way.parts
        ]
        return list(dict.fromkeys(asked + others))

    def _room(self, location: str, way: Way, plan: Plan) -> int:
        rooms = [
            (self.shelf(location, sku).available + plan.freed.get(sku, 0) - plan.units[sku])
            // units
            for sku, units in way.parts.items()
        ]
        return min(rooms if way.most is None else [*rooms, way.most])

    def _serve(
        self,
        location: str,
        wish: Wish,
        ways: list[Way],
        plan: Plan,
        partial: bool,
    ) -> None:
        candidates = [Candidate(self._room(location, w, plan), w.of, w.for_) for w in ways]
        can = [one.served_by(one.room) for one in candidates]
        most = max(can) if wish.whole else sum(can)
        choice = choose(wish.quantity, candidates, whole=wish.whole, partial=partial)
        if most < wish.quantity:
            known = any(
                all((location, sku) in self.rows for sku in way.parts)
                for way in ways
                if way.kind != "substitute"
            )
            plan.short.append((wish.sku, wish.quantity, most, known))
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
        promise.lines, promise.missing = lines, missing
        promise.proposed = tuple(sku for sku in promise.proposed if sku not in now)
        promise.decided |= dict.fromkeys(now, decision)
        if decision == "declined":
            promise.stands_for = tuple(
                s for s in promise.stands_for if s[0] not in now or s[-1] != "substitute"
            )
        return {"code": "ok", "replayed": False} | promise.facts()

    def _take(self, promise: Promise, sku: str, units: int, from_shelf: int) -> None:
        shelf = self.shelf(promise.location, sku)
        promise.lines[sku] = units
        promise.on_terms = promise.on_terms or shelf.has_terms
        if units > from_shelf:
            promise.waiting[sku] = units - from_shelf
        if shelf.is_pooled(promise.channel):
            promise.pooled.add(sku)
            shelf.held[promise.channel] = shelf.held.get(promise.channel, 0) + units
        if shelf.deal.buyer_cap is not None:
            promise.capped[sku] = shelf.deal.buyer_cap[1]
        self._change(promise.location, sku, reserved=from_shelf, backordered=units - from_shelf)
        promise.places[sku] = self.shelf(promise.location, sku).version

    def _room_for(self, location: str, sku: str, ask: Ask) -> tuple[int, int, str]:
        """Return the most units for an asker, those of them on the shelf, and what bounds them."""
        bought = self._bought(location, sku, ask[2])
        return self._room_of(self.shelf(location, sku), ask, bought)

    @staticmethod
    def _room_of(shelf: Shelf, ask: Ask, bought: int) -> tuple[int, int, str]:
        stock_only, channel, _ = ask
        on_shelf = shelf.shelf_for(channel)
        reason = "channel" if on_shelf < shelf.available else "stock"
        most = on_shelf
        if not stock_only:
            most += max(0, shelf.deal.backorder_limit - shelf.backordered)
        cap, _ = shelf.deal.pools.get(channel, (None, 0))
        if cap is not None and cap - shelf.held.get(channel, 0) < most:
            most, reason = max(0, cap - shelf.held.get(channel, 0)), "channel"
        if shelf.deal.buyer_cap is not None:
            left = max(0, shelf.deal.buyer_cap[0] - bought)
            if left < most:
                most, reason = left, "buyer"
        return most, on_shelf, reason

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
        ask = (
            stock_only,
            promise.channel if promise.on_terms else channel or "online",
            promise.buyer or buyer,
        )
        plan = self._plan_amendment(promise, wishes, own, ask)
        # Only what goes up needs stock: taking back what is due may end the promise itself.
        if plan.short or self._substitutes_more(promise, plan, wishes):
            # It may be this very one that is due.
            self.expire_due(self.partition_of(promise.location))
            if promise.state == "expired":
                return _ended(promise)
            plan = self._plan_amendment(promise, wishes, own, ask)
        if plan.short:
            if plan.needs_buyer:
                return {"code": "invalid_request"}
            code = "buyer_cap_exceeded" if plan.limits == {"buyer"} else "insufficient_stock"
            return {"code": code, "lines": tuple(plan.short)}
        totals = {
            sku: promise.lines.get(sku, 0) - own.get(sku, 0) + units
            for sku, units in plan.units.items()
        }
        if not any({**promise.lines, **totals}.values()):
            return {"code": "invalid_request"}
        self._note_stand_ins(promise, plan, wishes)
        takes_on_terms = any(
            units > promise.lines.get(sku, 0) and self.shelf(promise.location, sku).has_terms
            for sku, units in totals.items()
        )
        if takes_on_terms or promise.stands_for:
            promise.channel, promise.on_terms = ask[1], True
        for sku, units in totals.items():
            self._hold(promise, sku, units, own.get(sku, 0), plan, ask)
        promise.lines = {sku: n for sku, n in {**promise.lines, **totals}.items() if n}
        return self._remember(scope, request, {"code": "ok"} | promise.facts())

    def _freed(self, promise: Promise, wishes: tuple[Wish, ...]) -> dict[str, int] | None:
        """Return the units that serve what is wanted; None where a SKU only stands for others."""
        named = {wish.sku for wish in wishes}
        freed = {sku: promise.lines.get(sku, 0) for sku in named}
        for stand in promise.stands_for:
            if stand[1] in named:
                freed[stand[1]] -= stand[2]
        asked = {stand[0] for stand in promise.stands_for}
        if any(s[1] in named - asked and not freed[s[1]] for s in promise.stands_for):
            return None
        for stand in promise.stands_for:
            if stand[0] in named:
                freed[stand[1]] = freed.get(stand[1], 0) + stand[2]
        return freed

    def _plan_amendment(
        self, promise: Promise, wishes: tuple[Wish, ...], own: dict[str, int], ask: Ask
    ) -> Plan:
        """Serve wishes beside what else the promise holds."""
        is_wished = any(wish.alternatives or wish.sku in self.kits for wish in wishes)
        if promise.stands_for or is_wished:
            plan = self._plan(promise.location, wishes, False, own, promise.stands_for)
        else:
            plan = Plan({wish.sku: wish.quantity for wish in wishes})
        rooms = {sku: self._room_beside(promise, sku, own.get(sku, 0), ask) for sku in plan.units}
        plan.shelves = {sku: on_shelf for sku, (_, on_shelf, _) in rooms.items()}
        if promise.stands_for or is_wished:
            plan.needs_buyer = any(reason == "nobody" for _, _, reason in rooms.values())
            return plan
        for sku, quantity in plan.units.items():
            most, _, reason = rooms[sku]
            if quantity > most:
                known = (promise.location, sku) in self.rows
                plan.short.append((sku, quantity, most, known))
                plan.limits.add(reason)
                plan.needs_buyer |= reason == "nobody"
        return plan

    def _room_beside(
        self, promise: Promise, sku: str, freed: int, ask: Ask
    ) -> tuple[int, int, str]:
        """Return the room for who has units of a row already, of which some are freed."""
        shelf, channel = self.shelf(promise.location, sku), ask[1]
        total, waits = promise.lines.get(sku, 0), min(promise.waiting.get(sku, 0), freed)
        if shelf.deal.buyer_cap is not None and not ask[2]:
            return freed, freed - waits, "nobody"
        without = replace(
            shelf,
            reserved=shelf.reserved - (freed - waits),
            backordered=shelf.backordered - waits,
            held=dict(shelf.held),
        )
        counted = total if sku in promise.pooled else 0
        without.held[channel] = shelf.held.get(channel, 0) - counted + total - freed
        bought = self._bought(promise.location, sku, ask[2], but=promise) + total - freed
        most, on_shelf, reason = self._room_of(without, ask, bought)
        return max(most, freed), max(on_shelf, freed - waits), reason

    def _hold(
        self, promise: Promise, sku: str, units: int, freed: int, plan: Plan, ask: Ask
    ) -> None:
        """Have a promise hold so many units of a row in place of those that it has."""
        before, waits = promise.lines.get(sku, 0), promise.waiting.get(sku, 0)
        shelf = self.shelf(promise.location, sku)
        if units == before:
            return
        if units < before:
            waiting = max(0, waits - (before - units))
        else:
            waiting = max(0, waits - freed) + max(0, plan.units[sku] - plan.shelves[sku])
            if shelf.deal.buyer_cap is not None:
                promise.buyer, promise.capped[sku] = ask[2], shelf.deal.buyer_cap[1]
        if sku in promise.pooled:
            shelf.held[promise.channel] += units - before
        elif units > before and shelf.is_pooled(promise.channel):
            promise.pooled.add(sku)
            shelf.held[promise.channel] = shelf.held.get(promise.channel, 0) + units
        if not units:
            promise.pooled.discard(sku)
            promise.capped.pop(sku, None)
        reserved = units - waiting - (before - waits)
        self._change(promise.location, sku, reserved=reserved, backordered=waiting - waits)
        promise.waiting.pop(sku, None)
        if waiting:
            promise.waiting[sku] = waiting
        if waiting > waits:
            promise.places[sku] = shelf.version

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
            waits = promise.waiting.pop(sku, 0)
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
        self, location: str, wanted: dict[str, int], ask: Ask
    ) -> tuple[tuple[str, int, int, bool], ...]:
        rooms = {sku: self._room_for(location, sku, ask)[0] for sku in wanted}
        return tuple(
            (sku, quantity, rooms[sku], (location, sku) in self.rows)
            for sku, quantity in wanted.items()
            if quantity > rooms[sku]
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
    filled = {sku: held - promise.waiting.get(sku, 0) for sku, held in promise.lines.items()}
    return tuple(
        (sku, quantity, filled[sku], True)
        for sku, quantity in units.items()
        if quantity > filled[sku]
    )


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
