"""Expiry: holds whose time is up are taken back; those that a placed order keeps are confirmed."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec
import structlog

from engine import metrics
from engine.clock import ClockGuard
from engine.dispatch import Command
from engine.keys import PartitionKeys, is_order_id
from engine.lifecycle import Lifecycle
from engine.limits import MAX_GROUP_COMMANDS, MAX_REREADS
from engine.order_records import OrderRecords
from engine.outcomes import (
    IdempotencyKeyReused,
    Outcome,
    ProposalOpen,
    ReservationEnded,
    ReservationNotFound,
    StoreFault,
)
from engine.partitions import Partitions
from engine.reservations import from_reply
from engine.scripts import script

MAX_NAMED: Final = 1_000
"""Holds that stay which a process has named in its log and does not name again."""

PUT_OFF_SECONDS: Final = 30.0
"""How long a hold that could not be taken back is passed by."""

MAX_PUT_OFF: Final = 10_000
"""Holds of one partition that are passed by; beyond these they keep the others waiting."""

log = structlog.get_logger()


class DueHolds(msgspec.Struct, frozen=True):
    """What `Inventory.expire_due` found and did in one partition.

    `staying` holds were due at an earlier call, too, and could not be taken back.
    """

    expired: int
    remaining: bool
    clock_jump_ms: int
    staying: int = 0


class Expiry:
    """Takes back the due holds of all merchants."""

    def __init__(
        self,
        partitions: Partitions,
        order_records: OrderRecords,
        lifecycle: Lifecycle,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look in `partitions`; `order_records` tell which holds an order keeps."""
        self._partitions = partitions
        self._dispatch = partitions.dispatcher
        self._order_records = order_records
        self._lifecycle = lifecycle
        self._clock = ClockGuard()
        self._named: set[str] = set()
        self._monotonic = monotonic
        self._put_off: list[dict[str, float]] = [{} for _ in partitions.keys]

    async def expire_due(self, partition: int, *, limit: int = MAX_GROUP_COMMANDS) -> DueHolds:
        """Take back the holds of a partition whose time is up, the longest overdue first.

        One that is damaged, or is part of an order whose record is, stays, and is tried again later
        and after all others. Does nothing while the store's clock is not to be trusted;
        `clock_jump_ms` says so.
        """
        keys, put_off = self._partitions.keys[partition], self._put_off[partition]
        # As many more as are passed by: however they lie, `limit` others are found.
        most = limit + len(put_off)
        reply = await self._partitions.store.call(script("due"), (keys.holds, keys.meta), most)
        now_ms, _, ids = msgspec.msgpack.decode(reply, type=tuple[int, int, list[str]])
        if not self._clock.accept(now_ms):
            return DueHolds(0, bool(ids), self._clock.jump_ms)
        others = [the_id for the_id in ids if the_id not in put_off]
        staying = [the_id for the_id in ids if the_id in put_off]
        if len(ids) < most:
            for the_id in put_off.keys() - set(staying):
                put_off.pop(the_id, None)
        now = self._monotonic()
        again = [the_id for the_id in staying if put_off.get(the_id, 0.0) <= now]
        tried = (others + again)[:limit]
        expired = await asyncio.gather(*(self._expire_or_leave(keys, the_id) for the_id in tried))
        return DueHolds(sum(expired), len(others) >= limit, 0, len(staying))

    async def _expire_or_leave(self, keys: PartitionKeys, reservation: str) -> bool:
        try:
            has_expired = await self._expire(keys, reservation)
        except StoreFault as fault:
            has_expired = False
            if reservation not in self._named:
                if len(self._named) >= MAX_NAMED:
                    self._named.clear()
                self._named.add(reservation)
                log.error("a hold stays", reservation=reservation, error=str(fault))
        # One that is no hold any more is no longer due either, unless the index is damaged.
        put_off = self._put_off[keys.partition]
        if has_expired:
            put_off.pop(reservation, None)
        elif reservation in put_off or len(put_off) < MAX_PUT_OFF:
            put_off[reservation] = self._monotonic() + PUT_OFF_SECONDS
        return has_expired

    async def _expire(self, keys: PartitionKeys, reservation: str) -> bool:
        for _ in range(MAX_REREADS):
            lines = await self._partitions.read_lines(keys, reservation)
            if lines is None:
                return False
            order = None
            if is_order_id(lines.order_ref):
                order = await self._order_records.keeper_of(lines.order_ref, reservation)
            if order is not None:
                # Whoever confirmed or ended it just now did so for good. What was amended since and
                # is to be accepted yet cannot be confirmed, and goes back as any such hold.
                with suppress(ReservationNotFound, ReservationEnded, IdempotencyKeyReused):
                    try:
                        await self._lifecycle.confirm(
                            lines.merchant,
                            reservation,
                            order_ref=order.body.order_ref,
                            actor="sweeper",
                        )
                    except ProposalOpen:
                        order = None
                if order is not None:
                    return False
            reply = await self._dispatch.run(
                "expire",
                keys.partition,
                Command(
                    lines.keys(keys, reservation),
                    (reservation, lines.merchant, "sweeper", lines.skus),
                ),
            )
            if Outcome(reply[0]) is not Outcome.LINES_CHANGED:
                self._partitions.sold_out.forget(lines.row_keys(keys))
                self._partitions.note_at_part(lines, keys)
                if Outcome(reply[0]) is not Outcome.OK:
                    return False
                if lines.is_claimed:
                    await self._partitions.claiming.ended(from_reply(reservation, reply))
                metrics.HOLDS_EXPIRED.add(())
                return True
        return False
