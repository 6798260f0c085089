"""Moving a hold to another location, so that its shopper never has both nor neither.

The units are held at the new place first and given back at the old one after that, and what is in
between is on record, as with an order (`engine.order_records`): whoever finds the record drives it
to where exactly one of the two is left. The record is `placing`, `held` once the units are held
there, `confirmed` once that is decided, and `fulfilled` when the old one is released; or `failed`,
and then the old one is what it was.

The old one can be confirmed, extended, amended or ended by its own id meanwhile. So it is released
only if it is what the new one was made after; where it is not, the new one is brought up to it.

The new one is promised on the terms of the new place, through the same channel and for the same
buyer. What was asked for is served there by what serves it here, the SKU itself before others, and
no more units of those than here: so what somebody accepted needs not be accepted again.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

import msgspec

from engine.inventory import Inventory
from engine.keys import digest, order_id, reservation_hash, reservation_id
from engine.lifecycle import ReservationChanged
from engine.limits import DEFAULT_TTL_MS, MAX_TTL_MS, MIN_TTL_MS
from engine.model import (
    ProposalDecision,
    Reservation,
    ReservationResult,
    ReservationState,
)
from engine.order_records import (
    GRACE_MS,
    Order,
    OrderBody,
    OrderChanged,
    OrderKind,
    OrderState,
    Part,
    PartState,
    Plan,
    WantedLine,
)
from engine.order_steps import watch_nothing
from engine.outcomes import (
    BuyerCapExceeded,
    HoldfastError,
    IdempotencyKeyReused,
    InsufficientStock,
    InvalidCommand,
    LimitExceeded,
    OutcomeUnknown,
    ProposalDecided,
    ReservationEnded,
    ReservationNotFound,
)
from engine.served import served
from engine.validation import check_id, check_key

MAX_ROUNDS: Final = 20
"""How often one caller looks at a record anew because it, or the reservation, was changed."""

OPEN: Final = (ReservationState.HELD, ReservationState.CONFIRMED)

REFUSALS: Final = (InsufficientStock, BuyerCapExceeded, InvalidCommand, LimitExceeded)
"""Of the reserve at the new place."""

Answer = TypeVar("Answer")


class Relocated(msgspec.Struct, frozen=True):
    """The reservation at the new location, and which one it was, where, before."""

    result: ReservationResult
    before: str
    location_before: str


class Relocation:
    """Moves holds; `watch` is as for `engine.orders.Orders`."""

    def __init__(
        self, inventory: Inventory, *, watch: Callable[[str], None] = watch_nothing
    ) -> None:
        """Nothing is read yet."""
        self._inventory = inventory
        self._records = inventory.order_records
        self._watch = watch

    async def _take(self, step: str, call: Callable[[], Awaitable[Answer]]) -> Answer:
        self._watch(f"before {step}")
        answer = await call()
        self._watch(f"after {step}")
        return answer

    async def _write(self, record: Order, step: str, state: OrderState, **changes: object) -> Order:
        changed = msgspec.structs.replace(record, state=state, **changes)
        return await self._take(
            f"record {step}",
            lambda: self._records.step(changed, step, actor=record.body.actor),
        )

    async def relocate(
        self, merchant: str, reservation: str, location: str, *, key: str, actor: str
    ) -> Relocated:
        """Hold what a reservation holds at another location, and there only.

        The new one has what was asked for and its order reference, and runs for as long as it would
        have, or is confirmed where it was. Units are backordered there only where some are here,
        and by a day there where they were promised by one here. A retry under the same key finds
        its own move; a refusal is not remembered. Raises InsufficientStock, and then the old one
        stays as it is; BuyerCapExceeded, LimitExceeded, ReservationNotFound, ReservationEnded,
        IdempotencyKeyReused, InvalidCommand (also of a part of an order).
        """
        check_id("location", location)
        check_key(key)
        scope = f"{reservation_hash(reservation)} {key}"
        fingerprint = digest(reservation_hash(reservation), location)
        the_id = order_id(OrderKind.MOVE, merchant, scope, self._inventory.partitions)
        record = await self._records.read(the_id)
        replayed = record is not None
        if record is not None and record.body.fingerprint != fingerprint:
            raise IdempotencyKeyReused(key)
        if record is not None:
            record, _ = await self._drive(record)
        if record is None or record.state is OrderState.FAILED:
            try:
                old = await self._movable(merchant, reservation, location)
            except HoldfastError:
                # Unless another call under this key has just moved it.
                before, record = record, await self._records.read(the_id)
                if record is None or (before is not None and record.revision == before.revision):
                    raise
                replayed = True
            else:
                record, replayed = await self._begin(
                    old, location, record, scope, fingerprint, actor
                )
        record, refusal = await self._drive(record)
        old_part, new_part = record.parts
        if record.state is OrderState.FULFILLED:
            there = await self._inventory.reservation(merchant, new_part.reservation)
            result = ReservationResult(there, replayed)
            return Relocated(result, old_part.reservation, old_part.location)
        if refusal is not None:
            raise refusal
        await self._movable(merchant, reservation, location)
        # Somebody changed it at the same time, or failed this move: nothing is done, so try again.
        raise OutcomeUnknown()

    async def _movable(self, merchant: str, reservation: str, location: str) -> Reservation:
        """Return a reservation that may be moved there. Raises as `relocate` does."""
        old = await self._inventory.reservation(merchant, reservation)
        if old.state not in OPEN:
            raise ReservationEnded(reservation, state=old.state, ended_at_ms=old.ended_at_ms or 0)
        if old.location == location:
            raise InvalidCommand("location", "name another one: it is held there already")
        if old.proposed and old.state is ReservationState.CONFIRMED:
            raise InvalidCommand(
                "reservation", "has substitutes that nobody accepted: accept or decline them first"
            )
        order = await self._inventory.order_of(old.id)
        if order:
            raise InvalidCommand(
                "reservation", f"is a part of order {order}, whose parts stay where they are"
            )
        return old

    async def _begin(
        self,
        old: Reservation,
        location: str,
        before: Order | None,
        scope: str,
        fingerprint: str,
        actor: str,
    ) -> tuple[Order, bool]:
        """Write down what is to be moved where; a move that failed is made anew."""
        merchant, inventory = old.merchant, self._inventory
        number = 2 if before is None else before.parts[-1].number + 1
        the_id = order_id(OrderKind.MOVE, merchant, scope, inventory.partitions)
        key = f"{the_id}/{number}"
        partition = inventory.keys_of(merchant, location).partition
        made = reservation_id(partition, merchant, location, key)
        plan = Plan(
            (
                Part(1, old.location, old.id, "", old.lines, state=PartState(old.state)),
                Part(
                    number,
                    location,
                    made,
                    key,
                    old.lines,
                    replaces=1,
                    # What it was made after. It stands in the record, so that every attempt asks
                    # for the same.
                    stands_for=old.stands_for,
                    proposed=old.proposed,
                    backordered=old.backordered,
                    promised=old.promised,
                ),
            )
        )
        if before is not None:
            try:
                record = await self._write(
                    before, "place", OrderState.PLACING, settled=False, reason="", plan=plan
                )
            except OrderChanged as changed:
                return changed.order, True
            return record, False
        body = OrderBody(
            kind=OrderKind.MOVE,
            merchant=merchant,
            actor=actor,
            fingerprint=fingerprint,
            order_ref=old.order_ref,
            # Of the new hold, for every attempt.
            ttl_ms=await self._left_ms(old),
            lines=tuple([WantedLine(x.sku, x.quantity, location) for x in old.lines]),
        )
        return await self._take(
            "record place",
            lambda: self._records.make(OrderKind.MOVE, scope, body, plan, ttl_ms=GRACE_MS),
        )

    # Driving

    async def drive(self, record: Order) -> Order:
        """Do what a record says is still to be done. Any number may do so at once."""
        return (await self._drive(record))[0]

    async def _drive(self, record: Order) -> tuple[Order, HoldfastError | None]:
        refusal: HoldfastError | None = None
        for _ in range(MAX_ROUNDS):
            if record.settled:
                return record, refusal
            try:
                if record.state.gives_back:
                    record = await self._give_back(record)
                elif record.state is OrderState.PLACING:
                    record = await self._hold(record)
                elif record.state is OrderState.HELD:
                    record = await self._decide(record)
                else:
                    record = await self._let_go(record)
            except REFUSALS as refused:
                refusal = refused
                try:
                    record = await self._fail(record, str(refused))
                except OrderChanged as changed:
                    record = changed.order
            except ReservationChanged:
                continue
            except OrderChanged as changed:
                record = changed.order
        raise OutcomeUnknown()

    async def _hold(self, record: Order) -> Order:
        """Hold the units at the new place."""
        body, (old, new) = record.body, record.parts
        here = await self._read(record, old)
        if here is None or not _is_still(here, new):
            return await self._fail(record, "it was ended or changed meanwhile")
        try:
            made = await self._take("hold there", lambda: self._reserve(body, here, new))
        except IdempotencyKeyReused:
            # It has another channel or buyer than at the first attempt, by two amendments.
            return await self._fail(record, "it was changed meanwhile")
        # Of a split row it may be in another partition than was planned.
        the_id = made.reservation.id
        held = msgspec.structs.replace(new, state=PartState.HELD, reservation=the_id)
        try:
            return await self._write(record, "hold", OrderState.HELD, plan=Plan((old, held)))
        except OrderChanged as changed:
            now = changed.order
            if now.state.gives_back or now.parts[-1].number != new.number:
                await self._release(record, held)
            raise

    async def _reserve(self, body: OrderBody, here: Reservation, new: Part) -> ReservationResult:
        try:
            return await self._inventory.reserve(
                body.merchant,
                new.location,
                served(new.lines, new.stands_for, new.lines),
                key=new.key,
                ttl_ms=body.ttl_ms,
                order_ref=body.order_ref,
                stock_only=not new.backordered,
                channel=here.channel,
                buyer_digest=here.buyer,
                # All of it by the earliest, so that no line gets a later day than it has.
                by=min((one.by for one in new.promised), default=""),
                stands_for=new.stands_for,
                proposed=new.proposed,
                instead_of=here.id,
                actor=body.actor,
            )
        except InvalidCommand as refused:
            if refused.field != "buyer":
                raise
            raise InvalidCommand(
                "location", "has a row with a cap a buyer, and it is nobody's: reserve anew there"
            ) from refused

    async def _decide(self, record: Order) -> Order:
        """Decide for the new place, where both are there and the same."""
        here = await self._read(record, record.parts[0])
        if not await self._keeps_up(record, here):
            return await self._fail(record, "it was ended or changed meanwhile")
        return await self._write(record, "confirm", OrderState.CONFIRMED)

    async def _let_go(self, record: Order) -> Order:
        """Give the units back at the old place, if what is there is held at the new one."""
        merchant, (old, new) = record.body.merchant, record.parts
        here = await self._read(record, old)
        if here is not None and here.state in OPEN:
            if not await self._keeps_up(record, here):
                return await self._fail(record, "it was changed meanwhile")
            here = await self._take(
                "release here",
                lambda: self._hand_over(merchant, here, record),
            )
        if here is None or reservation_hash(here.order_ref) != reservation_hash(record.id):
            # Whoever ended it by its own id meant the units, wherever they are.
            return await self._fail(record, "it was ended meanwhile")
        released = msgspec.structs.replace(old, state=PartState.RELEASED)
        plan = Plan((released, new))
        return await self._write(record, "settle", OrderState.FULFILLED, settled=True, plan=plan)

    async def _hand_over(
        self, merchant: str, here: Reservation, record: Order
    ) -> Reservation | None:
        try:
            return await self._inventory.hand_over(
                merchant,
                here,
                record.id,
                to=record.parts[1].reservation,
                actor=record.body.actor,
            )
        except (ReservationNotFound, ReservationEnded):
            return None

    async def _keeps_up(self, record: Order, here: Reservation | None) -> bool:
        """Make the new one live as long as the old one; False where it cannot stand in for it."""
        merchant, new = record.body.merchant, record.parts[1]
        there = await self._read(record, new)
        if here is None or there is None or not _is_still(here, new):
            return False
        if there.state not in OPEN:
            # After the decision, whoever ended it by its own id did that with what was moved.
            is_decided = record.state is OrderState.CONFIRMED
            return is_decided and there.state is not ReservationState.EXPIRED
        actor = record.body.actor
        try:
            await self._accept(there, here, actor)
            if here.state is ReservationState.CONFIRMED:
                await self._take(
                    "confirm there",
                    lambda: self._inventory.confirm(
                        merchant, there.id, order_ref=here.order_ref, actor=actor
                    ),
                )
            elif there.state is ReservationState.HELD and (
                (here.expires_at_ms or 0) > (there.expires_at_ms or 0)
            ):
                ttl_ms = await self._left_ms(here)
                await self._take(
                    "extend there",
                    lambda: self._inventory.extend(
                        merchant,
                        there.id,
                        key=f"{record.id}/{here.expires_at_ms}/{ttl_ms}",
                        ttl_ms=ttl_ms,
                        actor=actor,
                    ),
                )
        except (IdempotencyKeyReused, ProposalDecided):
            # It was confirmed by its own id, for another order, or declined.
            return True
        except (ReservationEnded, ReservationNotFound):
            return False
        return True

    async def _accept(self, there: Reservation, here: Reservation, actor: str) -> None:
        """Accept what was accepted at the old place since."""
        accepted = [sku for sku in there.proposed if sku not in here.proposed]
        if accepted:
            await self._take(
                "accept there",
                lambda: self._inventory.decide(
                    there.merchant,
                    there.id,
                    ProposalDecision.ACCEPTED,
                    skus=accepted,
                    actor=actor,
                ),
            )

    async def _fail(self, record: Order, reason: str) -> Order:
        return await self._write(record, "fail", OrderState.FAILED, settled=False, reason=reason)

    async def _give_back(self, record: Order) -> Order:
        """Release the new one, and leave the old one alone."""
        old, new = record.parts
        await self._release(record, new)
        plan = Plan((old, msgspec.structs.replace(new, state=PartState.RELEASED)))
        return await self._write(record, "give back", record.state, settled=True, plan=plan)

    async def _release(self, record: Order, new: Part) -> None:
        with suppress(ReservationNotFound, ReservationEnded):
            await self._take(
                "release there",
                lambda: self._inventory.release(
                    record.body.merchant,
                    new.reservation,
                    reason="not moved",
                    actor=record.body.actor,
                ),
            )

    async def _read(self, record: Order, part: Part) -> Reservation | None:
        try:
            return await self._inventory.reservation(record.body.merchant, part.reservation)
        except ReservationNotFound:
            return None

    async def _left_ms(self, old: Reservation) -> int:
        """Return for how long a hold that takes the place of another is asked for."""
        if old.expires_at_ms is None:
            return DEFAULT_TTL_MS
        now_ms = await self._inventory.now_ms((old.merchant, old.location))
        return max(MIN_TTL_MS, min(MAX_TTL_MS, old.expires_at_ms - now_ms))


def _is_still(here: Reservation | None, new: Part) -> bool:
    """Tell whether a reservation is what the new one is made after."""
    return (
        here is not None
        and here.state in OPEN
        and (here.lines, here.stands_for) == (new.lines, new.stands_for)
    )
