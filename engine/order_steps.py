"""The single steps of an order: on its record, and on one of its parts.

Each may be taken any number of times, by anybody who found the record.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

import msgspec

from engine.inventory import Inventory
from engine.model import ProposalDecision, ReservationResult, ReservationState
from engine.order_parts import as_held, may_change, with_parts, without_aim
from engine.order_records import Aim, Order, OrderChanged, OrderKind, OrderState, Part, PartState
from engine.order_requests import options_of, wish_of
from engine.outcomes import (
    IdempotencyKeyReused,
    OrderNotFound,
    ProposalOpen,
    ReservationEnded,
    ReservationNotFound,
)

MAX_ROUNDS: Final = 20
"""How often one caller looks at a record anew because somebody took a step on it."""

Answer = TypeVar("Answer")


class OrderResult(msgspec.Struct, frozen=True):
    """The order as it is now, and whether an earlier call had done what was asked."""

    order: Order
    replayed: bool


def watch_nothing(_step: str) -> None:
    """Watch no steps."""


class OrderSteps:
    """Takes steps of orders.

    `watch` is called with the name of every step just before and just after it is taken: tests kill
    the coordinator there.
    """

    def __init__(self, inventory: Inventory, watch: Callable[[str], None] = watch_nothing) -> None:
        """Nothing is read yet."""
        self.inventory = inventory
        self.records = inventory.order_records
        self._watch = watch

    async def take(self, step: str, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """Take one step: everything that changes something in the store goes through here."""
        self._watch(f"before {step}")
        answer = await call()
        self._watch(f"after {step}")
        return answer

    async def write(self, order: Order, step: str, *, actor: str, ttl_ms: int = 0) -> Order:
        """Write a record; return it as it is then. Raises OrderChanged."""
        return await self.take(
            f"record {step}",
            lambda: self.records.step(order, step, actor=actor, ttl_ms=ttl_ms),
        )

    async def try_to_write(
        self, order: Order, step: str, *, actor: str, ttl_ms: int = 0
    ) -> tuple[Order, bool]:
        """Write a record; return it as it is then, and whether this was it.

        Where somebody took a step since it was read, nothing is written: look at it anew.
        """
        try:
            return await self.write(order, step, actor=actor, ttl_ms=ttl_ms), True
        except OrderChanged as changed:
            return changed.order, False

    async def find(self, merchant: str, order: str) -> Order:
        """Read the record of a merchant's order. Raises OrderNotFound."""
        found = await self.records.read(order)
        if (
            found is None
            or found.body.merchant != merchant
            or found.body.kind is not OrderKind.ORDER
        ):
            raise OrderNotFound(order)
        return found

    async def seen_now(self, order: Order) -> Order:
        """Return an order with what became of its parts by their own ids.

        Nothing is written: whoever drives the order does that.
        """
        if order.state is OrderState.CONFIRMED:
            return with_parts(order, [await self.part_now(order, x) for x in order.parts])
        if order.state is OrderState.HELD and any(map(may_change, order.parts)):
            parts = [
                await self.part_now(order, part) if may_change(part) else part
                for part in order.parts
            ]
            return with_parts(order, parts)
        return order

    async def part_now(self, order: Order, part: Part) -> Part:
        """Return a part with what became of its reservation."""
        if part.state not in (PartState.HELD, PartState.CONFIRMED):
            return part
        try:
            found = await self.inventory.reservation(order.body.merchant, part.reservation)
        except ReservationNotFound:
            return msgspec.structs.replace(part, state=PartState.RELEASED)
        return msgspec.structs.replace(
            as_held(part, found), state=PartState(found.state), picked=found.picked or ()
        )

    async def hold_part(self, order: Order, part: Part, *, actor: str) -> ReservationResult:
        """Reserve what a part asks for. Raises as a reserve does."""
        options, is_decided = options_of(order.body), not order.state.is_undecided
        return await self.take(
            f"hold part {part.number}",
            lambda: self.inventory.reserve(
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
                instead_of=next(
                    (x.reservation for x in order.parts if x.number == part.replaces), ""
                ),
                actor=actor,
            ),
        )

    async def dropped(self, order: Order, part: Part, *, actor: str) -> Part:
        """Release a part that a later plan does without."""
        if part.aim is not Aim.DROP or not part.state.is_open:
            return part
        return await self.release_part(order, part, "another plan", actor=actor)

    async def confirm_part(self, order: Order, part: Part, *, actor: str) -> Part:
        """Keep a part, under the order's own reference."""

        async def confirm() -> None:
            # Where it was confirmed by its own id, with a reference of its own, it keeps that. One
            # that was amended just now may wait for somebody to accept that: a commit confirms it.
            with suppress(IdempotencyKeyReused, ProposalOpen):
                await self.inventory.confirm(
                    order.body.merchant,
                    part.reservation,
                    order_ref=order.body.order_ref,
                    actor=actor,
                )

        return await self._settled_part(order, part, f"confirm part {part.number}", confirm)

    async def commit_part(self, order: Order, part: Part, *, actor: str) -> Part:
        """Have a part's units leave the shelf, or its picks. Raises one of NOT_PICKED."""
        return await self._settled_part(
            order,
            part,
            f"commit part {part.number}",
            lambda: self.inventory.commit(
                order.body.merchant, part.reservation, picks=part.picks, actor=actor
            ),
        )

    async def accept_part(self, order: Order, part: Part, *, actor: str) -> Part:
        """Accept what a part says is to be accepted. Raises ProposalDecided."""
        return await self._settled_part(
            order,
            part,
            f"accept part {part.number}",
            lambda: self.inventory.decide(
                order.body.merchant,
                part.reservation,
                ProposalDecision.ACCEPTED,
                skus=part.accepts,
                actor=actor,
            ),
        )

    async def release_part(self, order: Order, part: Part, reason: str, *, actor: str) -> Part:
        """Give a part's units back."""
        return await self._settled_part(
            order,
            part,
            f"release part {part.number}",
            lambda: self.inventory.release(
                order.body.merchant, part.reservation, reason=reason, actor=actor
            ),
        )

    async def _settled_part(
        self, order: Order, part: Part, step: str, call: Callable[[], Awaitable[object]]
    ) -> Part:
        """Take a step on a part and return it as it is then, whoever was there before."""
        try:
            await self.take(step, call)
        except ReservationNotFound:
            # Never made, or ended so long ago that it was forgotten.
            return without_aim(part, PartState.RELEASED)
        except ReservationEnded as ended:
            if ended.state != ReservationState.COMMITTED:
                return without_aim(part, PartState(ended.state))
        known = msgspec.structs.replace(part, state=PartState.CONFIRMED)
        now = await self.part_now(order, known)
        return now if now.state.is_open else without_aim(now, now.state)
