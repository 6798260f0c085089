"""Orders that span locations: all of their parts or none, whatever dies in between.

A part is a plain reservation. The record of the order (`engine.order_records`) is written before
anything is done that it must answer for, and says alone what is to become of the parts: those of an
undecided order are taken back, those of a decided one are kept. So whoever finds a record can drive
it to its end, any number of times; every step is idempotent. This is two-phase commit with presumed
abort (Mohan, Lindsay 1983), the held reservations being the prepared state. What needs no store is
beside it: what an order asks for in `engine.order_requests`, its parts in `engine.order_parts`.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, TypeVar

import msgspec

from engine import reservations
from engine.candidates import Candidates, Known
from engine.inventory import Inventory, digest_of_buyer
from engine.keys import digest, encode, order_id, reservation_id
from engine.limits import (
    DEFAULT_PAGE,
    DEFAULT_TTL_MS,
    MAX_ORDER_PARTS,
    MAX_ORDER_PLANS,
    MAX_SOURCING_LOCATIONS,
)
from engine.model import Line, Page, ProposalDecision, ReservationResult, ReservationState
from engine.order_parts import (
    as_held,
    check_held,
    check_proposed,
    covers,
    declined_in,
    dropping,
    lost_part,
    may_change,
    next_number,
    open_proposals,
    places_left_out,
    places_that_failed,
    refused_lines,
    resourcing_under,
    shorts_of,
    still_to_do,
    with_parts,
    without_aim,
    without_declined,
    without_stand_ins,
)
from engine.order_records import (
    Aim,
    Declined,
    Order,
    OrderBody,
    OrderChanged,
    OrderKind,
    OrderState,
    Part,
    PartState,
    Plan,
    Resourcing,
    WantedLine,
)
from engine.order_requests import (
    Options,
    check_wanted,
    chosen_options,
    decode_options,
    explained,
    free_lines,
    is_firm,
    laid_out,
    may_be_substituted,
    named_lines,
    options_of,
    passed_over,
    short_lines,
    substitutable,
    substituted,
    summed_lines,
    told_apart,
    wish_of,
    without_places,
)
from engine.outcomes import (
    BackorderUnfilled,
    BuyerCapExceeded,
    HoldfastError,
    IdempotencyKeyReused,
    InsufficientOnHand,
    InsufficientStock,
    InvalidCommand,
    LimitExceeded,
    OrderEnded,
    OrderNotFound,
    OutcomeUnknown,
    ProposalDecided,
    ProposalOpen,
    ReservationEnded,
    ReservationNotFound,
    ShortLine,
)
from engine.resourcing import Failed, StandIn, allot_picks, failed_parts, lay_out
from engine.sourcing import Sourced, source
from engine.validation import (
    check_batch,
    check_id,
    check_key,
    check_name,
    check_page,
    check_picks,
    check_text,
    check_ttl,
)
from engine.wishes import Wish

MAX_ROUNDS: Final = 20
"""How often one caller looks at a record anew because somebody took a step on it."""

NOT_PICKED: Final = (InsufficientOnHand, BackorderUnfilled, ProposalOpen)
"""Of a commit: the units are not on the shelf, or not accepted, so the part stays as it is."""

_GAVE_BACK: Final = (ReservationState.RELEASED, ReservationState.EXPIRED)

Answer = TypeVar("Answer")


class OrderResult(msgspec.Struct, frozen=True):
    """The order as it is now, and whether an earlier call had done what was asked."""

    order: Order
    replayed: bool


def _nothing(_step: str) -> None:
    """Watch no steps."""


class Orders:
    """Orders of all merchants over one engine.

    `watch` is called with the name of every step just before and just after it is taken: tests kill
    the coordinator there.
    """

    def __init__(self, inventory: Inventory, *, watch: Callable[[str], None] = _nothing) -> None:
        """Nothing is read yet."""
        self._inventory = inventory
        self._records = inventory.order_records
        self._candidates = Candidates(inventory)
        self._watch = watch

    async def _take(self, step: str, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """Take one step: everything that changes something in the store goes through here."""
        self._watch(f"before {step}")
        answer = await call()
        self._watch(f"after {step}")
        return answer

    async def _write(self, order: Order, step: str, *, actor: str, ttl_ms: int = 0) -> Order:
        return await self._take(
            f"record {step}",
            lambda: self._records.step(order, step, actor=actor, ttl_ms=ttl_ms),
        )

    # Reading

    async def read(self, merchant: str, order: str) -> Order:
        """Read an order, its parts as they are now. Raises OrderNotFound."""
        found = await self._find(merchant, order)
        return await self._seen_now(found)

    async def _find(self, merchant: str, order: str) -> Order:
        found = await self._records.read(order)
        if (
            found is None
            or found.body.merchant != merchant
            or found.body.kind is not OrderKind.ORDER
        ):
            raise OrderNotFound(order)
        return found

    async def _seen_now(self, order: Order) -> Order:
        """Return an order with what became of its parts by their own ids.

        Nothing is written: whoever drives the order does that.
        """
        if order.state is OrderState.CONFIRMED:
            return with_parts(order, [await self._part_now(order, x) for x in order.parts])
        if order.state is OrderState.HELD and any(map(may_change, order.parts)):
            parts = [
                await self._part_now(order, part) if may_change(part) else part
                for part in order.parts
            ]
            return with_parts(order, parts)
        return order

    async def _part_now(self, order: Order, part: Part) -> Part:
        if part.state not in (PartState.HELD, PartState.CONFIRMED):
            return part
        try:
            found = await self._inventory.reservation(order.body.merchant, part.reservation)
        except ReservationNotFound:
            return msgspec.structs.replace(part, state=PartState.RELEASED)
        return msgspec.structs.replace(
            as_held(part, found), state=PartState(found.state), picked=found.picked or ()
        )

    async def listed(
        self,
        merchant: str,
        *,
        order_ref: str = "",
        after: str | None = None,
        limit: int = DEFAULT_PAGE,
    ) -> Page[Order]:
        """List a merchant's orders, the oldest first, or those of an order reference.

        `after` is the `next_after` of the page before. Raises InvalidCommand where it is not.
        """
        check_id("merchant", merchant)
        check_text("order_ref", order_ref)
        check_page(limit)
        position = reservations.parse_position(after)
        if order_ref:
            found = await self._referred(merchant, order_ref)
        else:
            found = await self._of_merchant(merchant, position, limit)
        rest = sorted(one for one in found if position is None or one > position)
        page = rest[:limit]
        orders = [await self._records.read(one.id) for one in page]
        return Page(
            tuple([await self._seen_now(one) for one in orders if one is not None]),
            page[-1].text() if len(rest) > limit else None,
        )

    async def _of_merchant(
        self, merchant: str, position: reservations.Position | None, limit: int
    ) -> list[reservations.Position]:
        start = "-inf" if position is None else position.created_at_ms
        found: list[reservations.Position] = []
        for keys in self._inventory.keys:
            index, already = keys.orders(merchant), 0
            if position is not None:
                # Members of one millisecond stand in byte order: some may have been given.
                already = await self._inventory.dispatcher.read("ZCOUNT", index, start, start)
            flat = await self._inventory.dispatcher.read(
                "ZRANGEBYSCORE", index, start, "+inf", "WITHSCORES", "LIMIT", 0, limit + 1 + already
            )
            found += reservations.positions(flat)
        return found

    async def _referred(self, merchant: str, order_ref: str) -> list[reservations.Position]:
        prefix = f"{encode(order_ref)}:"
        found = []
        for keys in self._inventory.keys:
            members = await self._inventory.dispatcher.read(
                "ZRANGEBYLEX", keys.order_refs(merchant), f"[{prefix}", f"[{prefix}~"
            )
            for member in members:
                order = await self._records.read(member.decode().rpartition(":")[2])
                if order is not None:
                    found.append(reservations.Position(order.created_at_ms, order.id))
        return found

    # Placing

    async def place(
        self,
        merchant: str,
        lines: Sequence[WantedLine],
        *,
        key: str,
        ttl_ms: int = DEFAULT_TTL_MS,
        order_ref: str = "",
        options: Options | None = None,
        buyer: str = "",
        actor: str,
    ) -> OrderResult:
        """Hold the units of all lines for `ttl_ms`, at the locations they name or at sourced ones.

        Others stand for a line that allows it where there is too little of it at all locations
        together, or at the one that it names. With a day in the `options` units are promised that
        come by then, too: where no location is named, once all shelves together have too little.
        A retry under the same key finds its own order.
        Raises InsufficientStock, or BuyerCapExceeded where nothing else is in the way, and then
        holds nothing, IdempotencyKeyReused, InvalidCommand, LimitExceeded.
        """
        options = options or Options()
        check_name("channel", options.channel)
        check_name("buyer", buyer)
        if buyer:
            options = msgspec.structs.replace(options, buyer=digest_of_buyer(merchant, buyer))
        check_id("merchant", merchant)
        check_key(key)
        check_ttl(ttl_ms)
        check_text("order_ref", order_ref)
        check_wanted(lines)
        options.check()
        text = msgspec.json.encode(options).decode()
        said = [told_apart(line) for line in lines]
        body = OrderBody(
            kind=OrderKind.ORDER,
            merchant=merchant,
            actor=actor,
            fingerprint=digest(str(ttl_ms), order_ref, text, *said),
            order_ref=order_ref,
            ttl_ms=ttl_ms,
            lines=summed_lines(lines),
            options=text,
        )
        order, replayed = await self._begun(body, key)
        order, short = await self._drive(order, actor=actor)
        if replayed and order.state is OrderState.FAILED:
            # A refusal is not remembered: the key is looked at anew.
            replayed = False
            order, short = await self._place_again(order, actor=actor)
        if order.state is OrderState.FAILED:
            raise _refusal(order, short)
        if not replayed and order.state.gives_back:
            raise _ended(order)
        return OrderResult(order, replayed)

    async def _begun(self, body: OrderBody, key: str) -> tuple[Order, bool]:
        """Return the record of a key, and whether it was there before this call."""
        the_id = order_id(body.kind, body.merchant, key, self._inventory.partitions)
        order = await self._records.read(the_id)
        if order is not None and order.body.fingerprint != body.fingerprint:
            raise IdempotencyKeyReused(key)
        if order is not None:
            return order, True
        plan = await self._first_plan(the_id, body)
        return await self._take(
            "record place",
            lambda: self._records.make(body.kind, key, body, plan, ttl_ms=body.ttl_ms),
        )

    async def _place_again(self, order: Order, *, actor: str) -> tuple[Order, list[ShortLine]]:
        plan = await self._first_plan(
            order.id,
            order.body,
            first=next_number(order.parts),
            declined=order.plan.declined,
            declines=order.plan.declines,
        )
        again = msgspec.structs.replace(
            order, state=OrderState.PLACING, settled=False, reason="", plan=plan
        )
        try:
            order = await self._write(again, "place", actor=actor, ttl_ms=order.body.ttl_ms)
        except OrderChanged as changed:
            order = changed.order
        return await self._drive(order, actor=actor)

    async def _first_plan(
        self,
        the_id: str,
        body: OrderBody,
        *,
        first: int = 1,
        declined: tuple[str, ...] = (),
        declines: tuple[Declined, ...] = (),
    ) -> Plan:
        """Plan the parts of an order that holds nothing yet. Raises InsufficientStock."""
        sourced = await self._source_once_more(
            lambda: self._source(body, free_lines(body), declines=declines)
        )
        if sourced.missing:
            raise InsufficientStock(short_lines(free_lines(body), sourced))
        wanted, why = laid_out(body, sourced)
        self._check_parts(wanted)
        parts = tuple(
            self._planned(
                the_id,
                body.merchant,
                location,
                lines,
                number=number,
                why=why[location],
                substitutes=substituted(body, location, lines, sourced),
                stock_only=is_firm(body, location, sourced),
            )
            for number, (location, lines) in enumerate(sorted(wanted.items()), first)
        )
        return Plan(parts, passed_over(sourced, wanted), declined=declined, declines=declines)

    @staticmethod
    def _check_parts(wanted: dict[str, tuple[Line, ...]]) -> None:
        if len(wanted) > MAX_ORDER_PARTS:
            raise LimitExceeded("lines.location", most=MAX_ORDER_PARTS)

    def _planned(
        self,
        the_id: str,
        merchant: str,
        location: str,
        lines: tuple[Line, ...],
        *,
        number: int,
        why: str,
        replaces: int = 0,
        substitutes: tuple[str, ...] = (),
        stock_only: bool = False,
    ) -> Part:
        key = f"{the_id}/{number}"
        partition = self._inventory.keys_of(merchant, location).partition
        made = reservation_id(partition, merchant, location, key)
        return Part(
            number,
            location,
            made,
            key,
            lines,
            why=why,
            replaces=replaces,
            substitutes=substitutes,
            stock_only=stock_only,
        )

    async def _source_once_more(self, plan: Callable[[], Awaitable[Sourced]]) -> Sourced:
        """Plan, and where units are missing once more without the holds whose time is up.

        As a reserve does: what is due and not taken back yet may be enough.
        """
        sourced = await plan()
        if sourced.missing:
            for keys in self._inventory.keys:
                await self._inventory.expire_due(keys.partition)
            sourced = await plan()
        return sourced

    async def _source(
        self,
        body: OrderBody,
        wanted: Sequence[Line],
        *,
        own: Collection[Part] = (),
        known: Known | None = None,
        move: Resourcing | None = None,
        left_out: Mapping[str, str] | None = None,
        is_decided: bool = False,
        declines: Sequence[Declined] = (),
    ) -> Sourced:
        """Plan where units come from, by the live rows.

        What is on the shelves goes first, then what comes by the order's day if it has one, then
        what may stand for a line, and then, without a day, what rows take backorders for.
        `own` parts hold units that count as free; `known` is what refusals said of rows. Of an
        order that is placed already, `move` has the options, and `left_out` says why not there;
        once it `is_decided`, nobody is asked to accept anything any more. What `declines` name is
        not to stand for a line.
        """
        if not wanted:
            return Sourced((), (), ())
        options = options_of(body) if move is None else decode_options(move.options)

        async def plan(substituted: Collection[str], *, waits: bool) -> Sourced:
            wishes = [
                wish_of(body, line, is_decided=is_decided, declines=declines)
                if line.sku in substituted
                else Wish(sku=line.sku, quantity=line.quantity)
                for line in wanted
            ]
            candidates, passed = [], []
            for candidate, ships_not in await self._candidates.read(
                body.merchant,
                wishes,
                known=known or {},
                channel=options.channel,
                by=options.by,
                stock_only=not waits,
                own=own,
                # What lines that name a location need there is held once the order is placed.
                named={} if move is not None else named_lines(body, declines),
            ):
                why_not = (left_out or {}).get(candidate.location, ships_not)
                if why_not or (candidate.is_degraded and not options.degraded):
                    passed.append((candidate.location, why_not or "its tills are silent"))
                else:
                    candidates.append(candidate)
            found = source(wanted, candidates, options.strategy, destination=options.destination)
            found = msgspec.structs.replace(found, passed_over=(*passed, *found.passed_over))
            return explained(found, list(substituted)) if substituted else found

        may = substitutable(body, is_decided=is_decided)
        # What comes by the day goes before what may stand for a SKU, and that before a backorder.
        waits = not options.stock_only and bool(options.by or not may)
        found = await plan((), waits=waits)
        short = {line.sku for line in found.missing}
        substituted = [sku for sku in may if sku in short]
        if substituted:
            found = await plan(substituted, waits=waits)
        if found.missing and not waits and not options.stock_only:
            found = await plan(substituted, waits=True)
        return found

    # Sourcing anew

    async def resource(
        self,
        merchant: str,
        order: str,
        location: str,
        *,
        key: str,
        options: Options | None = None,
        without: Sequence[str] = (),
        actor: str,
    ) -> OrderResult:
        """Hold elsewhere what a location cannot fulfil: its open parts, and what it picked short.

        All of these units or none: where they cannot be had the order stays as it was. What is open
        is released there once it is held elsewhere and on record. `options` stand in for those of
        the order, `without` rules locations out beside this one. Raises OrderNotFound, OrderEnded,
        InsufficientStock (with why each location was passed over), ReservationEnded where the part
        was picked meanwhile, IdempotencyKeyReused, InvalidCommand, LimitExceeded.
        """
        check_id("location", location)
        check_key(key)
        if without:
            check_batch("without", len(without), MAX_SOURCING_LOCATIONS)
        for i, one in enumerate(without):
            check_id(f"without[{i}]", one)
        text = "" if options is None else msgspec.json.encode(options).decode()
        fingerprint = digest(location, text, *without)
        found = await self._find(merchant, order)
        chosen = chosen_options(found.body, options)
        short: list[ShortLine] = []
        begun = False
        for _ in range(MAX_ROUNDS):
            found, told = await self._drive(found, actor=actor)
            short = told or short
            known = resourcing_under(found, digest(key))
            if known is not None and known.fingerprint != fingerprint:
                raise IdempotencyKeyReused(key)
            if known is not None:
                return OrderResult(found, replayed=not begun)
            if begun:
                raise await self._not_resourced(found, location, short)
            found = await self.look_again(found, actor=actor)
            if found.state.gives_back:
                raise _ended(found)
            move = Resourcing(
                digest(key),
                fingerprint,
                location,
                msgspec.json.encode(chosen).decode(),
                tuple(without),
                next_number(found.parts),
            )
            plan = await self._first_stand_ins(found, move)
            try:
                found = await self._write(
                    msgspec.structs.replace(found, plan=plan, settled=False),
                    "resource",
                    actor=actor,
                )
            except OrderChanged as changed:
                found = changed.order
            else:
                begun = True
        raise OutcomeUnknown()

    async def _not_resourced(
        self, order: Order, location: str, short: Sequence[ShortLine]
    ) -> HoldfastError:
        """Return why what was begun came to nothing."""
        if order.state.gives_back:
            return _ended(order)
        passed = tuple((one.location, one.why) for one in order.plan.passed_over)
        if short:
            return InsufficientStock(tuple(short), passed)
        for part in order.parts:
            if part.location == location and part.state is PartState.COMMITTED:
                found = await self._inventory.reservation(order.body.merchant, part.reservation)
                return ReservationEnded(
                    part.reservation, state=found.state, ended_at_ms=found.ended_at_ms or 0
                )
        # Somebody else drove it, and nobody remembers what was there.
        lines = [line for one in self._failed(order, location) for line in one.lines]
        return InsufficientStock(tuple(ShortLine(x.sku, x.quantity, 0) for x in lines), passed)

    def _failed(self, order: Order, location: str) -> list[Failed]:
        found = failed_parts(order, location)
        if found is None:
            raise InvalidCommand("location", "no part of this order is there")
        if not found:
            raise InvalidCommand(
                "location", "every unit of its part was picked, or comes from elsewhere already"
            )
        return found

    async def _first_stand_ins(self, order: Order, move: Resourcing) -> Plan:
        """Plan the parts that stand in for those of a location. Raises InsufficientStock."""
        failed = self._failed(order, move.location)
        wanted = reservations.summed([line for one in failed for line in one.lines])
        left_out = places_left_out(order, move)
        sourced = await self._source_once_more(
            lambda: self._source(
                order.body,
                wanted,
                move=move,
                left_out=left_out,
                is_decided=not order.state.is_undecided,
                declines=order.plan.declines,
            )
        )
        if sourced.missing:
            raise InsufficientStock(short_lines(wanted, sourced), sourced.passed_over)
        parts = (*order.parts, *self._stand_ins(order, lay_out(failed, sourced), sourced))
        if len(parts) > MAX_ORDER_PARTS:
            raise LimitExceeded("location", most=MAX_ORDER_PARTS)
        places = {part.location for part in parts if part.brings or part.number >= move.first}
        passed = passed_over(sourced, places - {move.location})
        return msgspec.structs.replace(
            order.plan,
            parts=parts,
            passed_over=passed,
            resourcings=(*order.plan.resourcings, move),
        )

    def _stand_ins(self, order: Order, wanted: Iterable[StandIn], sourced: Sourced) -> list[Part]:
        sources = {one.location: one for one in sourced.sources}
        laid_out = sorted(wanted, key=lambda one: (one.location, one.replaces))
        return [
            self._planned(
                order.id,
                order.body.merchant,
                one.location,
                one.lines,
                number=number,
                why=sources[one.location].why,
                replaces=one.replaces,
                substitutes=tuple(x.sku for x in one.lines if x.sku in sourced.substituted),
                stock_only=sources[one.location].is_firm,
            )
            for number, one in enumerate(laid_out, next_number(order.parts))
        ]

    async def _next_stand_ins(self, order: Order, move: Resourcing, known: Known) -> Plan | None:
        """Plan stand-ins anew with what the refusals taught; None where nothing is left to try."""
        mine = [part for part in order.parts if part.number >= move.first]
        tried = sum(part.state is PartState.REFUSED for part in mine)
        held = [p for p in mine if p.state is PartState.HELD and p.aim is Aim.NONE]
        failed = failed_parts(order, move.location, before=move.first) or []
        wanted = reservations.summed([line for one in failed for line in one.lines])
        left_out = places_left_out(order, move)
        try:
            sourced = await self._source(
                order.body,
                wanted,
                own=held,
                known=known,
                move=move,
                left_out=left_out,
                is_decided=not order.state.is_undecided,
                declines=order.plan.declines,
            )
        except LimitExceeded:
            return None
        if tried >= MAX_ORDER_PLANS or sourced.missing:
            return None
        laid_out = {(x.location, x.replaces, x.lines): x for x in lay_out(failed, sourced)}
        kept = {
            part.number
            for part in held
            if laid_out.pop((part.location, part.replaces, part.asks), None) is not None
        }
        parts = [
            part if part.number < move.first or part.number in kept else dropping(part)
            for part in order.parts
        ]
        parts += self._stand_ins(order, laid_out.values(), sourced)
        if len(parts) > MAX_ORDER_PARTS:
            return None
        places = {part.location for part in parts if part.counts and part.state.is_open}
        passed = passed_over(sourced, places - {move.location})
        return msgspec.structs.replace(order.plan, parts=tuple(parts), passed_over=passed)

    async def _stand_in_or_next(
        self,
        order: Order,
        move: Resourcing,
        known: Known,
        short: Sequence[ShortLine],
        *,
        actor: str,
    ) -> Order:
        """Record that the stand-ins are held, or the next plan, or that there is none."""
        if not short:
            failed = failed_parts(order, move.location, before=move.first) or []
            numbers = {one.number for one in failed}
            parts = tuple(
                msgspec.structs.replace(part, aim=Aim.RELEASE)
                if part.number in numbers and part.state.is_open
                else part
                for part in order.parts
            )
            done = msgspec.structs.replace(move, is_done=True)
            plan = msgspec.structs.replace(
                order.plan, parts=parts, resourcings=(*order.plan.resourcings[:-1], done)
            )
            state = OrderState.HELD if order.state is OrderState.HELD else OrderState.CONFIRMED
            switched = msgspec.structs.replace(order, plan=plan, state=state)
            return await self._write(switched, "switch", actor=actor)
        next_plan = await self._next_stand_ins(order, move, known)
        if next_plan is not None:
            replanned = msgspec.structs.replace(order, plan=next_plan)
            return await self._write(replanned, "plan", actor=actor)
        return await self._write(without_stand_ins(order, move), "keep", actor=actor)

    # Deciding

    async def confirm(self, merchant: str, order: str, *, actor: str) -> OrderResult:
        """Decide: from here on the parts are kept until they are committed or the order cancelled.

        Raises OrderNotFound, OrderEnded, ProposalOpen where a part's substitutes were not accepted
        yet. Where they were declined by the part's own id the order is short, and so it fails.
        """
        found = await self._find(merchant, order)
        for _ in range(MAX_ROUNDS):
            found, _ = await self._drive(found, actor=actor)
            if found.state in (OrderState.CONFIRMED, OrderState.FULFILLED):
                return OrderResult(found, replayed=True)
            if found.state is not OrderState.HELD:
                raise _ended(found)
            try:
                found = await self._decide(found, actor=actor)
            except OrderChanged as changed:
                found = changed.order
                continue
            found, _ = await self._drive(found, actor=actor)
            if found.state.gives_back:
                raise _ended(found)
            return OrderResult(found, replayed=False)
        raise OutcomeUnknown()

    async def _decide(self, order: Order, *, actor: str) -> Order:
        """Record the decision, or that a part was ended by its own id and so nothing is held."""
        parts = [await self._part_now(order, part) for part in order.parts]
        if lost_part(order, parts) is not None or declined_in(order, parts):
            return await self._without_lost(order, parts, actor=actor)
        for part in parts:
            if part.state.is_open and part.proposed:
                raise ProposalOpen(part.reservation, skus=part.proposed)
        decided = msgspec.structs.replace(
            with_parts(order, still_to_do(order, parts)),
            state=OrderState.CONFIRMED,
            settled=False,
        )
        return await self._write(decided, "confirm", actor=actor)

    async def _without_lost(
        self, order: Order, parts: Sequence[Part], reservation: str = "", *, actor: str
    ) -> Order:
        """Record that an undecided order has not all of its parts any more.

        What was declined by a part's own id is planned anew; with a part that was ended the order
        fails. Of `reservation` it is known that it was declined.
        """
        declined = declined_in(order, parts, reservation)
        ended = [
            part
            for part, before in zip(parts, order.parts, strict=True)
            if before.state.is_open and not part.state.is_open and part.number not in declined
        ]
        if ended:
            failed = msgspec.structs.replace(
                with_parts(order, parts),
                state=OrderState.FAILED,
                settled=False,
                reason=f"the part at {ended[0].location} was {ended[0].state}",
            )
            return await self._write(failed, "fail", actor=actor)
        again = without_declined(order, parts, declined)
        return await self._write(again, "decline", actor=actor)

    async def heed(self, merchant: str, order: str, reservation: str, *, actor: str) -> None:
        """Have an undecided order do without what was declined by the own id of one of its parts.

        Whoever did that calls this just after; if nobody comes to, the confirmation finds it, or
        the order expires.
        """
        found = await self._find(merchant, order)
        for _ in range(MAX_ROUNDS):
            found, _ = await self._drive(found, actor=actor)
            if found.state is not OrderState.HELD:
                return
            parts = [await self._part_now(found, part) for part in found.parts]
            if not declined_in(found, parts, reservation):
                return
            try:
                found = await self._without_lost(found, parts, reservation, actor=actor)
            except OrderChanged as changed:
                found = changed.order
        raise OutcomeUnknown()

    async def accept(
        self, merchant: str, order: str, *, skus: Sequence[str] = (), actor: str
    ) -> OrderResult:
        """Accept that others stand for these SKUs, or for all of which that is proposed.

        Raises OrderNotFound, OrderEnded, ProposalDecided where one was declined, InvalidCommand.
        """
        found = await self._find(merchant, order)
        for _ in range(MAX_ROUNDS):
            found, _ = await self._drive(found, actor=actor)
            now = await self._seen_now(found)
            if now.state.gives_back:
                raise _ended(now)
            check_proposed(now, skus)
            for part in now.parts:
                if part.state.is_open and any(x.sku in skus or not skus for x in part.missing):
                    raise ProposalDecided(part.reservation)
            parts = [
                msgspec.structs.replace(
                    part, accepts=tuple(x for x in part.proposed if x in skus or not skus)
                )
                if part.state.is_open
                else part
                for part in now.parts
            ]
            if not any(part.accepts for part in parts):
                return OrderResult(now, replayed=True)
            aimed = msgspec.structs.replace(
                with_parts(found, still_to_do(found, parts)), settled=False
            )
            try:
                found = await self._write(aimed, "accept", actor=actor)
            except OrderChanged as changed:
                found = changed.order
                continue
            return await self._carried_out(found, actor=actor)
        raise OutcomeUnknown()

    async def decline(
        self, merchant: str, order: str, *, key: str, skus: Sequence[str] = (), actor: str
    ) -> OrderResult:
        """Decline what stands for these SKUs, or for all of which that is proposed.

        What is short then is planned anew, without what was declined: the order is held again, with
        other proposals perhaps, or it fails and gives back what it holds. A retry under the same
        key declines nothing that was proposed since. Raises OrderNotFound, OrderEnded,
        ProposalDecided where one was accepted, IdempotencyKeyReused, InvalidCommand.
        """
        check_key(key)
        found = await self._find(merchant, order)
        begun = False
        for _ in range(MAX_ROUNDS):
            found, _ = await self._drive(found, actor=actor)
            said = {one.sku for one in found.plan.declines if one.key == digest(key)}
            if said and not said.issuperset(skus):
                raise IdempotencyKeyReused(key)
            if said:
                return OrderResult(found, replayed=not begun)
            parts = [await self._part_now(found, part) for part in found.parts]
            now = with_parts(found, parts)
            declined = open_proposals(now, skus)
            if not declined and found.plan.declined and set(skus) <= set(found.plan.declined):
                return OrderResult(now, replayed=True)
            if now.state.gives_back:
                raise _ended(now)
            check_proposed(now, skus)
            for part in parts:
                if part.counts and set(part.accepted) & set(skus or part.accepted):
                    raise ProposalDecided(part.reservation)
            if found.state is not OrderState.HELD:
                raise _ended(now)
            if not declined:
                raise InvalidCommand("skus", "nothing is proposed for this order any more")
            try:
                again = without_declined(found, parts, declined, digest(key))
                found = await self._write(again, "decline", actor=actor)
            except OrderChanged as changed:
                found = changed.order
            else:
                begun = True
        raise OutcomeUnknown()

    async def cancel(
        self, merchant: str, order: str, *, reason: str = "", actor: str
    ) -> OrderResult:
        """Give back what the order holds, decided or not; what was committed stays so.

        Raises OrderNotFound, OrderEnded.
        """
        check_text("reason", reason)
        found = await self._find(merchant, order)
        for _ in range(MAX_ROUNDS):
            if found.state is OrderState.CANCELLED:
                found, _ = await self._drive(found, actor=actor)
                return OrderResult(found, replayed=True)
            if found.state.is_ended:
                raise _ended(found)
            cancelled = msgspec.structs.replace(
                found, state=OrderState.CANCELLED, settled=False, reason=reason
            )
            try:
                found = await self._write(cancelled, "cancel", actor=actor)
            except OrderChanged as changed:
                found = changed.order
                continue
            found, _ = await self._drive(found, actor=actor)
            return OrderResult(found, replayed=False)
        raise OutcomeUnknown()

    async def commit(
        self,
        merchant: str,
        order: str,
        *,
        location: str = "",
        picks: Sequence[Line] = (),
        actor: str,
    ) -> OrderResult:
        """The units of a location's part, or of all parts, left the shelf; with `picks` only those.

        An order that is held is confirmed by it. Raises OrderNotFound, OrderEnded,
        InsufficientOnHand, BackorderUnfilled and ProposalOpen (that part stays as it is),
        InvalidCommand.
        """
        check_picks(picks)
        check_text("location", location)
        if picks and not location:
            raise InvalidCommand("location", "name the location that was picked at")
        found = (await self.confirm(merchant, order, actor=actor)).order
        for _ in range(MAX_ROUNDS):
            found = await self.look_again(found, actor=actor)
            there = [part for part in found.parts if location in ("", part.location)]
            if not there:
                raise InvalidCommand("location", "no part of this order is there")
            due = [part for part in there if part.state in (PartState.HELD, PartState.CONFIRMED)]
            if not due:
                return self._committed_before(found, there, picks)
            check_held(due, picks)
            allotted = allot_picks(due, picks)
            aimed = with_parts(
                found,
                [
                    msgspec.structs.replace(part, aim=Aim.COMMIT, picks=allotted[part.number])
                    if part.number in allotted
                    else part
                    for part in found.parts
                ],
            )
            aimed = msgspec.structs.replace(aimed, settled=False)
            try:
                found = await self._write(aimed, "commit", actor=actor)
            except OrderChanged as changed:
                found = changed.order
                continue
            return await self._carried_out(found, actor=actor)
        raise OutcomeUnknown()

    @staticmethod
    def _committed_before(
        found: Order, there: Sequence[Part], picks: Sequence[Line]
    ) -> OrderResult:
        done = [part for part in there if part.state is PartState.COMMITTED]
        asked = {line.sku: line.quantity for line in picks}
        for some in (*([part] for part in done), done):
            units = reservations.summed([line for part in some for line in part.picked])
            picked = {line.sku: line.quantity for line in units}
            if some and (not asked or picked == {sku: asked.get(sku, 0) for sku in picked}):
                return OrderResult(found, replayed=True)
        raise _ended(found)

    # Driving

    async def drive(self, order: Order, *, actor: str) -> Order:
        """Do what a record says is still to be done. Any number may do so at once."""
        return (await self._drive(order, actor=actor))[0]

    async def expire(self, order: Order, *, actor: str) -> Order:
        """End an undecided order whose time is up."""
        expired = msgspec.structs.replace(
            order, state=OrderState.EXPIRED, settled=False, reason="its time was up"
        )
        try:
            order = await self._write(expired, "expire", actor=actor)
        except OrderChanged as changed:
            order = changed.order
        return await self.drive(order, actor=actor)

    async def look_again(self, order: Order, *, actor: str) -> Order:
        """Write down what became of a confirmed order's parts by their own ids."""
        now = await self._seen_now(order)
        if now == order or order.state is not OrderState.CONFIRMED:
            return order
        try:
            order = await self._write(
                msgspec.structs.replace(now, settled=False), "look", actor=actor
            )
        except OrderChanged as changed:
            order = changed.order
        return await self.drive(order, actor=actor)

    async def _carried_out(self, order: Order, *, actor: str) -> OrderResult:
        """Drive an order whose record was just written; raise the first refusal of a part."""
        refusals: list[HoldfastError] = []
        order, _ = await self._drive(order, actor=actor, refusals=refusals)
        if refusals:
            raise refusals[0]
        return OrderResult(order, replayed=False)

    async def _drive(
        self,
        order: Order,
        *,
        actor: str,
        refusals: list[HoldfastError] | None = None,
    ) -> tuple[Order, list[ShortLine]]:
        """Return the order once it is settled, and what was short where it could not be held."""
        short: list[ShortLine] = []
        known: dict[tuple[str, str, bool, bool], int] = {}
        for _ in range(MAX_ROUNDS):
            if order.settled:
                return order, short
            try:
                if order.state.gives_back:
                    order = await self._give_back(order, actor=actor)
                elif order.state is OrderState.PLACING or order.plan.pending is not None:
                    order = await self._hold_parts(order, short, known, actor=actor)
                else:
                    order = await self._carry_out(order, refusals, actor=actor)
            except OrderChanged as changed:
                order = changed.order
        raise OutcomeUnknown()

    async def _hold_parts(
        self,
        order: Order,
        short: list[ShortLine],
        known: dict[tuple[str, str, bool, bool], int],
        *,
        actor: str,
    ) -> Order:
        """Make the planned parts; the next best plan where one is refused, or none is left.

        What refusals say is added to `known`, and is to be thought of until all parts are held.
        """
        parts = [await self._dropped(order, part, actor=actor) for part in order.parts]
        short.clear()
        for i, part in enumerate(parts):
            if part.state is not PartState.PLANNED or part.aim is Aim.DROP or short:
                continue
            try:
                made = await self._hold_part(order, part, actor=actor)
                if made.reservation.state in _GAVE_BACK:
                    # It was ended by its own id before anybody wrote down that it was held.
                    raise InsufficientStock(
                        tuple(ShortLine(line.sku, line.quantity, 0) for line in part.lines)
                    )
            except (
                InsufficientStock,
                BuyerCapExceeded,
                InvalidCommand,
                LimitExceeded,
            ) as refused:
                lines = refused_lines(part, refused)
                stock_only = part.stock_only or options_of(order.body).stock_only
                parts[i] = msgspec.structs.replace(part, state=PartState.REFUSED)
                known |= {
                    (part.location, line.sku, line.sku in part.substitutes, not stock_only): (
                        line.available
                    )
                    for line in lines
                }
                short += lines
            else:
                # Of a split row it may be in another partition than was planned.
                the_id = made.reservation.id
                held = as_held(part, made.reservation)
                parts[i] = msgspec.structs.replace(held, state=PartState.HELD, reservation=the_id)
        order = with_parts(order, parts)
        try:
            return await self._held_or_next(order, known, short, actor=actor)
        except OrderChanged as changed:
            await self._leave_nothing(order, changed.order, actor=actor)
            raise

    async def _leave_nothing(self, mine: Order, now: Order, *, actor: str) -> None:
        """Release what was held just now for an order that somebody ended meanwhile."""
        for part in mine.parts:
            known = now.part(part.reservation)
            is_wanted = (
                known is not None
                and known.state.is_open
                and known.aim is not Aim.DROP
                and not now.state.gives_back
            )
            if part.state is PartState.HELD and not is_wanted:
                await self._release_part(mine, part, f"order {now.state}", actor=actor)

    async def _held_or_next(
        self,
        order: Order,
        known: Known,
        short: Sequence[ShortLine],
        *,
        actor: str,
    ) -> Order:
        pending = order.plan.pending
        if pending is not None:
            return await self._stand_in_or_next(order, pending, known, short, actor=actor)
        if not short and covers(order):
            held = msgspec.structs.replace(order, state=OrderState.HELD, settled=True)
            return await self._write(held, "hold", actor=actor)
        plan = await self._next_plan(order, known)
        if plan is not None:
            return await self._write(msgspec.structs.replace(order, plan=plan), "plan", actor=actor)
        reason = f"the substitutes for {', '.join(order.plan.declined)} were declined"
        if short:
            first = short[0]
            reason = f"{first.sku}: requested {first.requested}, available {first.available}"
        failed = msgspec.structs.replace(order, state=OrderState.FAILED, reason=reason)
        return await self._write(failed, "fail", actor=actor)

    async def _hold_part(self, order: Order, part: Part, *, actor: str) -> ReservationResult:
        options, is_decided = options_of(order.body), not order.state.is_undecided
        return await self._take(
            f"hold part {part.number}",
            lambda: self._inventory.reserve(
                order.body.merchant,
                part.location,
                [
                    wish_of(order.body, line, is_decided=is_decided, declines=order.plan.declines)
                    if line.sku in part.substitutes
                    else line
                    for line in part.lines
                ],
                key=part.key,
                ttl_ms=order.body.ttl_ms,
                # By this the sweeper knows whose part it is, and asks before it takes it back.
                order_ref=order.id,
                stock_only=options.stock_only or part.stock_only,
                channel=options.channel,
                buyer_digest=options.buyer,
                by="" if part.stock_only else options.by,
                actor=actor,
            ),
        )

    async def _dropped(self, order: Order, part: Part, *, actor: str) -> Part:
        """Release a part that a later plan does without."""
        if part.aim is not Aim.DROP or not part.state.is_open:
            return part
        return await self._release_part(order, part, "another plan", actor=actor)

    async def _next_plan(self, order: Order, known: Known) -> Plan | None:
        """Plan anew with what refusals and declines taught; None where nothing is left to try."""
        failed = places_that_failed(order)
        body = without_places(order.body, failed)
        tried = sum(part.state is PartState.REFUSED for part in order.parts)
        held = [p for p in order.parts if p.state is PartState.HELD and p.aim is Aim.NONE]
        try:
            sourced = await self._source(
                body,
                free_lines(body),
                own=held,
                known=known,
                left_out=failed,
                declines=order.plan.declines,
            )
        except LimitExceeded:
            # So many rows that may stand for others, no reserve looks at.
            return None
        waits = not options_of(body).stock_only
        is_named_short = any(
            known.get((line.location, line.sku, may_be_substituted(line), waits), line.quantity)
            < line.quantity
            for line in body.lines
            if line.location
        )
        wanted, why = laid_out(body, sourced)
        if tried >= MAX_ORDER_PLANS or sourced.missing or is_named_short:
            return None
        places = set(wanted)
        parts = []
        for part in order.parts:
            lines = wanted.get(part.location)
            if part.state is PartState.HELD and lines == part.asks:
                del wanted[part.location]
            elif part.state.is_open:
                part = msgspec.structs.replace(part, aim=Aim.DROP)  # noqa: PLW2901
            parts.append(part)
        if len(parts) + len(wanted) > MAX_ORDER_PARTS:
            return None
        parts += [
            self._planned(
                order.id,
                body.merchant,
                location,
                lines,
                number=number,
                why=why[location],
                substitutes=substituted(body, location, lines, sourced),
                stock_only=is_firm(body, location, sourced),
            )
            for number, (location, lines) in enumerate(sorted(wanted.items()), next_number(parts))
        ]
        passed = passed_over(sourced, places)
        return msgspec.structs.replace(order.plan, parts=tuple(parts), passed_over=passed)

    async def _carry_out(
        self, order: Order, refusals: list[HoldfastError] | None, *, actor: str
    ) -> Order:
        """Confirm the parts of a decided order, and commit or release those that are to be.

        Of a held order that was sourced anew only the latter.
        """
        parts: list[Part] = []
        picked: set[int] = set()
        for part in order.parts:
            now = await self._dropped(order, part, actor=actor)
            if now.state.is_open and now.replaces in picked:
                # Somebody picked the part by its own id before it could be released.
                now = msgspec.structs.replace(now, aim=Aim.RELEASE)
            is_kept = now.state is PartState.HELD and now.aim in (Aim.NONE, Aim.COMMIT)
            if is_kept and order.state is not OrderState.HELD:
                now = await self._confirm_part(order, now, actor=actor)
            if now.state.is_open and now.accepts:
                try:
                    now = await self._accept_part(order, now, actor=actor)
                except ProposalDecided as refused:
                    now = await self._part_now(order, now)
                    if refusals is not None:
                        refusals.append(refused)
                # What somebody ended by its own id is for the decision to find.
                now = msgspec.structs.replace(now, state=part.state, accepts=())
            if now.state.is_open and now.aim is Aim.COMMIT:
                try:
                    now = await self._commit_part(order, now, actor=actor)
                except NOT_PICKED as refused:
                    now = msgspec.structs.replace(now, aim=Aim.NONE, picks=())
                    if refusals is not None:
                        refusals.append(refused)
            elif now.state.is_open and now.aim is Aim.RELEASE:
                now = await self._release_part(order, now, "sourced elsewhere", actor=actor)
                if now.state is PartState.COMMITTED:
                    picked.add(now.number)
            parts.append(now)
        state = order.state
        if state is not OrderState.HELD:
            state = OrderState.CONFIRMED
            if not any(part.state.is_open for part in parts):
                is_done = any(part.state is PartState.COMMITTED for part in parts)
                state = OrderState.FULFILLED if is_done else OrderState.CANCELLED
        settled = msgspec.structs.replace(with_parts(order, parts), state=state, settled=True)
        if picked:
            kept = msgspec.structs.replace(settled.plan, resourcings=order.plan.resourcings[:-1])
            settled = msgspec.structs.replace(settled, plan=kept)
        return await self._write(settled, "settle", actor=actor)

    async def _confirm_part(self, order: Order, part: Part, *, actor: str) -> Part:
        async def confirm() -> None:
            # Where it was confirmed by its own id, with a reference of its own, it keeps that. One
            # that was amended just now may wait for somebody to accept that: a commit confirms it.
            with suppress(IdempotencyKeyReused, ProposalOpen):
                await self._inventory.confirm(
                    order.body.merchant,
                    part.reservation,
                    order_ref=order.body.order_ref,
                    actor=actor,
                )

        return await self._settled_part(order, part, f"confirm part {part.number}", confirm)

    async def _commit_part(self, order: Order, part: Part, *, actor: str) -> Part:
        return await self._settled_part(
            order,
            part,
            f"commit part {part.number}",
            lambda: self._inventory.commit(
                order.body.merchant, part.reservation, picks=part.picks, actor=actor
            ),
        )

    async def _accept_part(self, order: Order, part: Part, *, actor: str) -> Part:
        return await self._settled_part(
            order,
            part,
            f"accept part {part.number}",
            lambda: self._inventory.decide(
                order.body.merchant,
                part.reservation,
                ProposalDecision.ACCEPTED,
                skus=part.accepts,
                actor=actor,
            ),
        )

    async def _release_part(self, order: Order, part: Part, reason: str, *, actor: str) -> Part:
        return await self._settled_part(
            order,
            part,
            f"release part {part.number}",
            lambda: self._inventory.release(
                order.body.merchant, part.reservation, reason=reason, actor=actor
            ),
        )

    async def _settled_part(
        self, order: Order, part: Part, step: str, call: Callable[[], Awaitable[object]]
    ) -> Part:
        """Take a step on a part and return it as it is then, whoever was there before."""
        try:
            await self._take(step, call)
        except ReservationNotFound:
            # Never made, or ended so long ago that it was forgotten.
            return without_aim(part, PartState.RELEASED)
        except ReservationEnded as ended:
            if ended.state != ReservationState.COMMITTED:
                return without_aim(part, PartState(ended.state))
        known = msgspec.structs.replace(part, state=PartState.CONFIRMED)
        now = await self._part_now(order, known)
        return now if now.state.is_open else without_aim(now, now.state)

    async def _give_back(self, order: Order, *, actor: str) -> Order:
        """Release every part that is still open, or may be."""
        parts = [
            await self._release_part(order, part, f"order {order.state}", actor=actor)
            if part.state.is_open
            else part
            for part in order.parts
        ]
        settled = msgspec.structs.replace(with_parts(order, parts), settled=True)
        return await self._write(settled, "give back", actor=actor)


def _refusal(order: Order, short: Sequence[ShortLine]) -> HoldfastError:
    """Return why an order could not be held."""
    if short and all(line.limited_by == "buyer" for line in short):
        if not options_of(order.body).buyer:
            return InvalidCommand("buyer", "must be named: a row has a cap a buyer")
        return BuyerCapExceeded(tuple(short))
    return InsufficientStock(tuple(short) or shorts_of(order))


def _ended(order: Order) -> OrderEnded:
    return OrderEnded(
        order.id, state=order.state, ended_at_ms=order.ended_at_ms, reason=order.reason
    )
