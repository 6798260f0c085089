"""Carrying out what the record of an order says, from wherever it stands to where it is settled."""

from collections.abc import Sequence
from typing import Final

import msgspec

from engine.candidates import Known
from engine.model import ReservationState
from engine.order_parts import as_held, covers, refused_lines, with_parts, without_stand_ins
from engine.order_planning import OrderPlanning
from engine.order_records import Aim, Order, OrderChanged, OrderState, Part, PartState, Resourcing
from engine.order_requests import options_of
from engine.order_steps import MAX_ROUNDS, OrderResult, OrderSteps
from engine.outcomes import (
    BackorderUnfilled,
    BuyerCapExceeded,
    HoldfastError,
    InsufficientOnHand,
    InsufficientStock,
    InvalidCommand,
    LimitExceeded,
    OutcomeUnknown,
    ProposalDecided,
    ProposalOpen,
    ShortLine,
)
from engine.resourcing import failed_parts

NOT_PICKED: Final = (InsufficientOnHand, BackorderUnfilled, ProposalOpen, InvalidCommand)
"""Of a commit: the units are not on the shelf, not accepted, or, as the part was amended by its own
id, not in it any more. So the part stays as it is."""

_GAVE_BACK: Final = (ReservationState.RELEASED, ReservationState.EXPIRED)


class OrderExecution:
    """Drives orders."""

    def __init__(self, steps: OrderSteps, plans: OrderPlanning) -> None:
        """Drive them by these steps and plans."""
        self._steps = steps
        self._plans = plans

    async def drive(self, order: Order, *, actor: str) -> Order:
        """Do what a record says is still to be done. Any number may do so at once."""
        order, _ = await self.driven(order, actor=actor)
        return order

    async def look_again(self, order: Order, *, actor: str) -> Order:
        """Write down what became of a confirmed order's parts by their own ids."""
        now = await self._steps.seen_now(order)
        if now == order or order.state is not OrderState.CONFIRMED:
            return order
        seen = msgspec.structs.replace(now, settled=False)
        order, _ = await self._steps.try_to_write(seen, "look", actor=actor)
        return await self.drive(order, actor=actor)

    async def carried_out(self, order: Order, *, actor: str) -> OrderResult:
        """Drive an order whose record was just written; raise the first refusal of a part."""
        refusals: list[HoldfastError] = []
        order, _ = await self.driven(order, actor=actor, refusals=refusals)
        if refusals:
            raise refusals[0]
        return OrderResult(order, replayed=False)

    async def driven(
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
        parts = [await self._steps.dropped(order, part, actor=actor) for part in order.parts]
        short.clear()
        for i, part in enumerate(parts):
            if part.state is not PartState.PLANNED or part.aim is Aim.DROP or short:
                continue
            try:
                made = await self._steps.hold_part(order, part, actor=actor)
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
                await self._steps.release_part(mine, part, f"order {now.state}", actor=actor)

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
            return await self._steps.write(held, "hold", actor=actor)
        plan = await self._plans.next(order, known)
        if plan is not None:
            replanned = msgspec.structs.replace(order, plan=plan)
            return await self._steps.write(replanned, "plan", actor=actor)
        reason = f"the substitutes for {', '.join(order.plan.declined)} were declined"
        if short:
            first = short[0]
            reason = f"{first.sku}: requested {first.requested}, available {first.available}"
        failed = msgspec.structs.replace(order, state=OrderState.FAILED, reason=reason)
        return await self._steps.write(failed, "fail", actor=actor)

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
            return await self._steps.write(switched, "switch", actor=actor)
        next_plan = await self._plans.next_stand_ins(order, move, known)
        if next_plan is not None:
            replanned = msgspec.structs.replace(order, plan=next_plan)
            return await self._steps.write(replanned, "plan", actor=actor)
        return await self._steps.write(without_stand_ins(order, move), "keep", actor=actor)

    async def _carry_out(
        self, order: Order, refusals: list[HoldfastError] | None, *, actor: str
    ) -> Order:
        """Confirm the parts of a decided order, and commit or release those that are to be.

        Of a held order that was sourced anew only the latter.
        """
        parts: list[Part] = []
        picked: set[int] = set()
        for part in order.parts:
            now = await self._steps.dropped(order, part, actor=actor)
            if now.state.is_open and now.replaces in picked:
                # Somebody picked the part by its own id before it could be released.
                now = msgspec.structs.replace(now, aim=Aim.RELEASE)
            is_kept = now.state is PartState.HELD and now.aim in (Aim.NONE, Aim.COMMIT)
            if is_kept and order.state is not OrderState.HELD:
                now = await self._steps.confirm_part(order, now, actor=actor)
            if now.state.is_open and now.accepts:
                try:
                    now = await self._steps.accept_part(order, now, actor=actor)
                except (ProposalDecided, InvalidCommand) as refused:
                    now = await self._steps.part_now(order, now)
                    if refusals is not None:
                        refusals.append(refused)
                # What somebody ended by its own id is for the decision to find.
                now = msgspec.structs.replace(now, state=part.state, accepts=())
            if now.state.is_open and now.aim is Aim.COMMIT:
                try:
                    now = await self._steps.commit_part(order, now, actor=actor)
                except NOT_PICKED as refused:
                    now = msgspec.structs.replace(now, aim=Aim.NONE, picks=())
                    if refusals is not None:
                        refusals.append(refused)
            elif now.state.is_open and now.aim is Aim.RELEASE:
                now = await self._steps.release_part(order, now, "sourced elsewhere", actor=actor)
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
        return await self._steps.write(settled, "settle", actor=actor)

    async def _give_back(self, order: Order, *, actor: str) -> Order:
        """Release every part that is still open, or may be."""
        parts = [
            await self._steps.release_part(order, part, f"order {order.state}", actor=actor)
            if part.state.is_open
            else part
            for part in order.parts
        ]
        settled = msgspec.structs.replace(with_parts(order, parts), settled=True)
        return await self._steps.write(settled, "give back", actor=actor)
