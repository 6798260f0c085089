"""Deciding an order: it is confirmed, and what stands for its lines is accepted or declined."""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from engine.keys import digest
from engine.limits import MAX_ORDER_DECLINES
from engine.order_execution import OrderExecution
from engine.order_parts import (
    came_since,
    check_proposed,
    declined_in,
    ended,
    lost_part,
    open_proposals,
    proposals,
    stand_ins,
    still_to_do,
    with_declines,
    with_parts,
    without_declined,
)
from engine.order_records import Declined, Order, OrderChanged, OrderState, Part
from engine.order_steps import MAX_ROUNDS, OrderResult, OrderSteps
from engine.outcomes import (
    HoldfastError,
    IdempotencyKeyReused,
    InvalidCommand,
    LimitExceeded,
    OutcomeUnknown,
    ProposalDecided,
    ProposalOpen,
)
from engine.validation import check_key


class OrderDecisions:
    """Decides orders, and what is proposed for them."""

    def __init__(self, steps: OrderSteps, execution: OrderExecution) -> None:
        """Decide by these steps."""
        self._steps = steps
        self._execution = execution

    async def confirm(self, merchant: str, order: str, *, actor: str) -> OrderResult:
        """Decide: from here on the parts are kept until they are committed or the order cancelled.

        Raises OrderNotFound, OrderEnded, ProposalOpen where a part's substitutes were not accepted
        yet. What was declined by a part's own id is planned anew first.
        """
        found = await self._steps.find(merchant, order)
        for _ in range(MAX_ROUNDS):
            found = await self._execution.drive(found, actor=actor)
            if found.state in (OrderState.CONFIRMED, OrderState.FULFILLED):
                return OrderResult(found, replayed=True)
            if found.state is not OrderState.HELD:
                raise ended(found)
            try:
                found = await self._decide(found, actor=actor)
            except OrderChanged as changed:
                found = changed.order
                continue
            is_decided = found.state is OrderState.CONFIRMED
            found = await self._execution.drive(found, actor=actor)
            if is_decided and not found.state.gives_back:
                return OrderResult(found, replayed=False)
        raise OutcomeUnknown()

    async def _decide(self, order: Order, *, actor: str) -> Order:
        """Record the decision, or that the order has not all of its parts any more."""
        parts = [await self._steps.part_now(order, part) for part in order.parts]
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
        return await self._steps.write(decided, "confirm", actor=actor)

    async def _without_lost(
        self, order: Order, parts: Sequence[Part], reservation: str = "", *, actor: str
    ) -> Order:
        """Record that an undecided order has not all of its parts any more.

        What was declined by a part's own id is planned anew; with a part that was ended the order
        fails. Of `reservation` it is known that it was declined.
        """
        declined = declined_in(order, parts, reservation)
        lost = [
            part
            for part, before in zip(parts, order.parts, strict=True)
            if before.state.is_open and not part.state.is_open and part.number not in declined
        ]
        if lost:
            failed = msgspec.structs.replace(
                with_parts(order, parts),
                state=OrderState.FAILED,
                settled=False,
                reason=f"the part at {lost[0].location} was {lost[0].state}",
            )
            return await self._steps.write(failed, "fail", actor=actor)
        again = without_declined(order, parts, declined)
        return await self._steps.write(again, "decline", actor=actor)

    async def heed(self, merchant: str, order: str, reservation: str, *, actor: str) -> None:
        """Have an undecided order do without what was declined by the own id of one of its parts.

        Whoever did that calls this just after; if nobody comes to, the confirmation finds it, or
        the order expires.
        """
        found = await self._steps.find(merchant, order)
        for _ in range(MAX_ROUNDS):
            found = await self._execution.drive(found, actor=actor)
            if found.state is not OrderState.HELD:
                return
            parts = [await self._steps.part_now(found, part) for part in found.parts]
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

        Only what was proposed when this was called: where somebody declines it meanwhile, what is
        proposed instead is for whoever sees it. Raises OrderNotFound, OrderEnded, ProposalDecided
        where one was declined, InvalidCommand.
        """
        found = await self._steps.find(merchant, order)
        seen = proposals(await self._steps.seen_now(found))
        for _ in range(MAX_ROUNDS):
            found = await self._execution.drive(found, actor=actor)
            now = await self._steps.seen_now(found)
            if now.state.gives_back:
                raise ended(now)
            check_proposed(now, skus)
            for part in now.parts:
                decided = {*(line.sku for line in part.missing), *came_since(part, seen)}
                if part.state.is_open and decided & set(skus or decided):
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
            found, is_begun = await self._steps.try_to_write(aimed, "accept", actor=actor)
            if is_begun:
                return await self._execution.carried_out(found, actor=actor)
        raise OutcomeUnknown()

    async def decline(
        self, merchant: str, order: str, *, key: str, skus: Sequence[str] = (), actor: str
    ) -> OrderResult:
        """Decline what stands for these SKUs, or for all of which that is proposed.

        What is short then is planned anew, without what was declined: the order is held again, with
        other proposals perhaps, or it fails and gives back what it holds. Neither this call nor a
        retry under the same key declines what came to be proposed since it was made. Raises
        OrderNotFound, OrderEnded, ProposalDecided where one was accepted, IdempotencyKeyReused,
        InvalidCommand, LimitExceeded.
        """
        check_key(key)
        found = await self._steps.find(merchant, order)
        seen = proposals(await self._steps.seen_now(found))
        begun = False
        for _ in range(MAX_ROUNDS):
            found = await self._execution.drive(found, actor=actor)
            said = {one.sku for one in found.plan.declines if one.key == digest(key)}
            if said and not said.issuperset(skus):
                raise IdempotencyKeyReused(key)
            if said:
                return OrderResult(found, replayed=not begun)
            parts = [await self._steps.part_now(found, part) for part in found.parts]
            try:
                again = _declining(found, parts, skus, digest(key), seen)
            except HoldfastError:
                latest = await self._steps.find(merchant, order)
                if latest.revision == found.revision:
                    raise
                # Written while its parts were looked at: by this very decline, perhaps.
                found = latest
                continue
            if again is None:
                return OrderResult(with_parts(found, parts), replayed=True)
            found, is_written = await self._steps.try_to_write(again, "decline", actor=actor)
            begun = is_written and again.state is OrderState.PLACING
        raise OutcomeUnknown()


def _declining(
    found: Order,
    parts: Sequence[Part],
    skus: Sequence[str],
    key: str,
    seen: Mapping[str, Collection[str]],
) -> Order | None:
    """Return an order that is to do without what is proposed; None where that was declined before.

    `parts` are as they are now, and `seen` is what was proposed when the decline was made. What was
    declined since by somebody else is only noted under the key: so a retry declines nothing more.
    """
    now = with_parts(found, parts)
    fresh = {part.number: came_since(part, seen) for part in parts}
    declined = {
        number: rest
        for number, some in open_proposals(now, skus).items()
        if (rest := some - fresh[number])
    }
    before = set(found.plan.declined)
    is_known = bool(before) and before.issuperset(skus)
    if not declined and is_known and found.state is not OrderState.HELD:
        return None
    if now.state.gives_back:
        raise ended(now)
    if not is_known:
        check_proposed(now, skus)
    named = set(skus) or set[str]().union(*fresh.values()) or (set() if declined else before)
    if skus or not declined:
        for part in parts:
            if part.counts and set(part.accepted) & (named or set(part.accepted)):
                raise ProposalDecided(part.reservation)
    if found.state is not OrderState.HELD:
        raise ended(now)
    rest = named.difference(*declined.values())
    notes = _noted(now, rest, key, seen)
    if not (declined or notes) or not rest.intersection(skus) <= {one.sku for one in notes}:
        raise InvalidCommand("skus", "nothing of it is proposed for this order any more")
    if declined:
        found = without_declined(found, parts, declined, key)
    return with_declines(found, (*found.plan.declines, *notes)) if notes else found


def _noted(
    now: Order, skus: Collection[str], key: str, seen: Mapping[str, Collection[str]]
) -> list[Declined]:
    """Return that what stood for SKUs was declined under one more key. Raises LimitExceeded."""
    notes = []
    for sku in sorted(skus):
        stood = {one.stand_in for one in now.plan.declines if one.sku == sku}
        stood = stood or set(seen.get(sku, ()))
        in_use = stand_ins(sku, *(part for part in now.parts if part.counts))
        notes += [Declined(key, sku, stand_in) for stand_in in sorted(stood.difference(in_use))]
    if notes and len(now.plan.declines) + len(notes) > MAX_ORDER_DECLINES:
        raise LimitExceeded("skus", most=MAX_ORDER_DECLINES)
    return notes
