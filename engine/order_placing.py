"""Placing an order: all of its parts are held, or nothing is."""

from collections.abc import Sequence

import msgspec

from engine.keys import digest, digest_of_buyer, order_id
from engine.limits import DEFAULT_TTL_MS
from engine.order_execution import OrderExecution
from engine.order_parts import ended, next_number, shorts_of
from engine.order_planning import OrderPlanning
from engine.order_records import Order, OrderBody, OrderKind, OrderState, WantedLine
from engine.order_requests import Options, check_wanted, options_of, summed_lines, told_apart
from engine.order_steps import OrderResult, OrderSteps
from engine.outcomes import (
    BuyerCapExceeded,
    HoldfastError,
    IdempotencyKeyReused,
    InsufficientStock,
    InvalidCommand,
    ShortLine,
)
from engine.validation import check_id, check_key, check_name, check_text, check_ttl


class OrderPlacing:
    """Places orders."""

    def __init__(self, steps: OrderSteps, plans: OrderPlanning, execution: OrderExecution) -> None:
        """Nothing is read yet."""
        self._steps = steps
        self._plans = plans
        self._execution = execution
        self._inventory = steps.inventory
        self._records = steps.records

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
        order, short = await self._execution.driven(order, actor=actor)
        if replayed and order.state is OrderState.FAILED:
            # A refusal is not remembered: the key is looked at anew.
            replayed = False
            order, short = await self._place_again(order, actor=actor)
        if order.state is OrderState.FAILED:
            raise _refusal(order, short)
        if not replayed and order.state.gives_back:
            raise ended(order)
        return OrderResult(order, replayed)

    async def _begun(self, body: OrderBody, key: str) -> tuple[Order, bool]:
        """Return the record of a key, and whether it was there before this call."""
        the_id = order_id(body.kind, body.merchant, key, self._inventory.partitions)
        order = await self._records.read(the_id)
        if order is not None and order.body.fingerprint != body.fingerprint:
            raise IdempotencyKeyReused(key)
        if order is not None:
            return order, True
        plan = await self._plans.first(the_id, body)
        return await self._steps.take(
            "record place",
            lambda: self._records.make(body.kind, key, body, plan, ttl_ms=body.ttl_ms),
        )

    async def _place_again(self, order: Order, *, actor: str) -> tuple[Order, list[ShortLine]]:
        plan = await self._plans.first(
            order.id,
            order.body,
            first=next_number(order.parts),
            declined=order.plan.declined,
            declines=order.plan.declines,
        )
        again = msgspec.structs.replace(
            order, state=OrderState.PLACING, settled=False, reason="", plan=plan
        )
        order, _ = await self._steps.try_to_write(
            again, "place", actor=actor, ttl_ms=order.body.ttl_ms
        )
        return await self._execution.driven(order, actor=actor)


def _refusal(order: Order, short: Sequence[ShortLine]) -> HoldfastError:
    """Return why an order could not be held."""
    if short and all(line.limited_by == "buyer" for line in short):
        if not options_of(order.body).buyer:
            return InvalidCommand("buyer", "must be named: a row has a cap a buyer")
        return BuyerCapExceeded(tuple(short))
    return InsufficientStock(tuple(short) or shorts_of(order))
