"""Sourcing anew what a location cannot fulfil of an order; `engine.resourcing` says how much."""

from collections.abc import Sequence

import msgspec

from engine.keys import digest
from engine.limits import MAX_SOURCING_LOCATIONS
from engine.order_execution import OrderExecution
from engine.order_parts import ended, next_number, resourcing_under
from engine.order_planning import OrderPlanning
from engine.order_records import Order, PartState, Resourcing
from engine.order_requests import Options, chosen_options
from engine.order_steps import MAX_ROUNDS, OrderResult, OrderSteps
from engine.outcomes import (
    HoldfastError,
    IdempotencyKeyReused,
    InsufficientStock,
    OutcomeUnknown,
    ReservationEnded,
    ShortLine,
)
from engine.validation import check_batch, check_id, check_key


class OrderResourcing:
    """Has parts of orders held elsewhere."""

    def __init__(self, steps: OrderSteps, plans: OrderPlanning, execution: OrderExecution) -> None:
        """Nothing is read yet."""
        self._steps = steps
        self._plans = plans
        self._execution = execution
        self._inventory = steps.inventory

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
        found = await self._steps.find(merchant, order)
        chosen = chosen_options(found.body, options)
        short: list[ShortLine] = []
        begun = False
        for _ in range(MAX_ROUNDS):
            found, told = await self._execution.driven(found, actor=actor)
            short = told or short
            known = resourcing_under(found, digest(key))
            if known is not None and known.fingerprint != fingerprint:
                raise IdempotencyKeyReused(key)
            if known is not None:
                return OrderResult(found, replayed=not begun)
            if begun:
                raise await self._not_resourced(found, location, short)
            found = await self._execution.look_again(found, actor=actor)
            if found.state.gives_back:
                raise ended(found)
            move = Resourcing(
                digest(key),
                fingerprint,
                location,
                msgspec.json.encode(chosen).decode(),
                tuple(without),
                next_number(found.parts),
            )
            plan = await self._plans.first_stand_ins(found, move)
            found, begun = await self._steps.try_to_write(
                msgspec.structs.replace(found, plan=plan, settled=False), "resource", actor=actor
            )
        raise OutcomeUnknown()

    async def _not_resourced(
        self, order: Order, location: str, short: Sequence[ShortLine]
    ) -> HoldfastError:
        """Return why what was begun came to nothing."""
        if order.state.gives_back:
            return ended(order)
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
        lines = [line for one in self._plans.failed(order, location) for line in one.lines]
        return InsufficientStock(tuple(ShortLine(x.sku, x.quantity, 0) for x in lines), passed)
