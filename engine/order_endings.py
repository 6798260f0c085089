"""The ends of an order: its units left the shelves, it is cancelled, or its time is up."""

from collections.abc import Sequence

import msgspec

from engine import reservations
from engine.model import Line
from engine.order_decisions import OrderDecisions
from engine.order_execution import OrderExecution
from engine.order_parts import check_held, ended, with_parts
from engine.order_records import Aim, Order, OrderState, Part, PartState
from engine.order_steps import MAX_ROUNDS, OrderResult, OrderSteps
from engine.outcomes import InvalidCommand, OutcomeUnknown
from engine.resourcing import allot_picks
from engine.validation import check_picks, check_text


class OrderEndings:
    """Ends orders."""

    def __init__(
        self, steps: OrderSteps, execution: OrderExecution, decisions: OrderDecisions
    ) -> None:
        """End them by these steps; a commit of what is held confirms it first."""
        self._steps = steps
        self._execution = execution
        self._confirm = decisions.confirm

    async def cancel(
        self, merchant: str, order: str, *, reason: str = "", actor: str
    ) -> OrderResult:
        """Give back what the order holds, decided or not; what was committed stays so.

        Raises OrderNotFound, OrderEnded.
        """
        check_text("reason", reason)
        found = await self._steps.find(merchant, order)
        for _ in range(MAX_ROUNDS):
            if found.state is OrderState.CANCELLED:
                found = await self._execution.drive(found, actor=actor)
                return OrderResult(found, replayed=True)
            if found.state.is_ended:
                raise ended(found)
            cancelled = msgspec.structs.replace(
                found, state=OrderState.CANCELLED, settled=False, reason=reason
            )
            found, is_cancelled = await self._steps.try_to_write(cancelled, "cancel", actor=actor)
            if is_cancelled:
                found = await self._execution.drive(found, actor=actor)
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
        found = (await self._confirm(merchant, order, actor=actor)).order
        for _ in range(MAX_ROUNDS):
            found = await self._execution.look_again(found, actor=actor)
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
            found, is_begun = await self._steps.try_to_write(aimed, "commit", actor=actor)
            if is_begun:
                return await self._execution.carried_out(found, actor=actor)
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
        raise ended(found)

    async def expire(self, order: Order, *, actor: str) -> Order:
        """End an undecided order whose time is up."""
        expired = msgspec.structs.replace(
            order, state=OrderState.EXPIRED, settled=False, reason="its time was up"
        )
        order, _ = await self._steps.try_to_write(expired, "expire", actor=actor)
        return await self._execution.drive(order, actor=actor)
