"""Where the parts of an order come from: the first plan, the next, and what stands in for a part.

It is `engine.sourcing` that plans, of what `engine.candidates` reads. Nothing is written here.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from engine import reservations
from engine.candidates import Candidates, Known
from engine.inventory import Inventory
from engine.keys import reservation_id
from engine.layouts import Budget
from engine.limits import MAX_ORDER_PARTS, MAX_ORDER_PLANS
from engine.model import Line
from engine.order_parts import (
    dropping,
    next_number,
    picked_units,
    places_left_out,
    places_that_failed,
)
from engine.order_records import Aim, Declined, Order, OrderBody, Part, PartState, Plan, Resourcing
from engine.order_requests import (
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
    wish_of,
    without_places,
    without_units,
)
from engine.outcomes import InsufficientStock, InvalidCommand, LimitExceeded
from engine.resourcing import Failed, StandIn, failed_parts, lay_out
from engine.sourcing import Sourced, source
from engine.wishes import Wish


class OrderPlanning:
    """Plans orders by the live rows."""

    def __init__(self, inventory: Inventory, candidates: Candidates | None = None) -> None:
        """Nothing is read yet."""
        self._inventory = inventory
        self._candidates = candidates or Candidates(inventory)

    async def first(
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
        budget = Budget()

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
            found = source(
                wanted,
                candidates,
                options.strategy,
                destination=options.destination,
                budget=budget,
            )
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

    async def next(self, order: Order, known: Known) -> Plan | None:
        """Plan anew with what refusals and declines taught; None where nothing is left to try."""
        failed = places_that_failed(order)
        body = without_units(without_places(order.body, failed), picked_units(order))
        tried = sum(part.state is PartState.REFUSED for part in order.parts)
        held = [p for p in order.parts if p.state is PartState.HELD and p.aim is Aim.NONE]
        try:
            sourced = await self._source_once_more(
                lambda: self._source(
                    body,
                    free_lines(body),
                    own=held,
                    known=known,
                    left_out=failed,
                    declines=order.plan.declines,
                )
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

    def failed(self, order: Order, location: str) -> list[Failed]:
        """Return what a location does not bring of an order. Raises InvalidCommand."""
        found = failed_parts(order, location)
        if found is None:
            raise InvalidCommand("location", "no part of this order is there")
        if not found:
            raise InvalidCommand(
                "location", "every unit of its part was picked, or comes from elsewhere already"
            )
        return found

    async def first_stand_ins(self, order: Order, move: Resourcing) -> Plan:
        """Plan the parts that stand in for those of a location. Raises InsufficientStock."""
        failed = self.failed(order, move.location)
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

    async def next_stand_ins(self, order: Order, move: Resourcing, known: Known) -> Plan | None:
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
