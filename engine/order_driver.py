"""The driver of orders and moves: whoever died half-way, what is recorded is carried out.

Any number may run: a lease a partition keeps them out of each other's way, and every step that they
take may be taken twice.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog

from engine.clock import ClockGuard, read_times
from engine.inventory import Inventory
from engine.leases import leases_of
from engine.metrics import ORDERS_WAITING, ORDERS_WAITING_SECONDS
from engine.order_records import GRACE_MS, RECHECK_MS, Order, OrderKind, OrderState
from engine.orders import Orders
from engine.outcomes import HoldfastError
from engine.relocation import Relocation
from engine.rounds import in_rounds

ROUND_SECONDS: Final = 1.0
MAX_DUE: Final = 200
"""Records of one partition in one round."""

FORGOTTEN_SECONDS: Final = 60.0
"""Since when a record that could not be driven was not seen again: somebody else drove it."""

ACTOR: Final = "orders"

log = structlog.get_logger()


class OrderDriver:
    """Drives the orders, and the moves of holds, of every partition."""

    def __init__(
        self,
        inventory: Inventory,
        orders: Orders | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is read yet; `monotonic` gives seconds that only go forward."""
        self._inventory = inventory
        self._orders = orders or Orders(inventory)
        self._relocation = Relocation(inventory)
        self._clock = ClockGuard()
        self._may_expire = True
        self._waiting = _Waiting(monotonic)
        self._leases = leases_of(inventory.store, inventory.keys, "orders")

    async def run(self, stop: asyncio.Event) -> None:
        """Drive once a second until `stop` is set."""
        await in_rounds(
            "orders", self.round, stop, pause_seconds=ROUND_SECONDS, leases=self._leases
        )

    async def round(self) -> int:
        """Look at every record that is due once; return how many those were."""
        due = 0
        for keys, lease in zip(self._inventory.keys, self._leases, strict=True):
            clock_ms, now_ms = await read_times(self._inventory.store, keys)
            # As with holds: a store whose clock jumped must not empty the shop of its orders.
            self._may_expire = self._clock.accept(clock_ms)
            found = await self._inventory.order_records.due(
                keys.partition, now_ms=now_ms, limit=MAX_DUE
            )
            if not found or not await lease.hold():
                continue
            due += len(found)
            for the_id in found:
                await self._look_after(the_id, now_ms)
        self._waiting.tell()
        return due

    async def _look_after(self, the_id: str, now_ms: int) -> None:
        """Look at one record; one that cannot be driven does not keep the others waiting."""
        records = self._inventory.order_records
        try:
            order = await records.read(the_id)
            if order is not None:
                await self._look_at(order, now_ms)
            else:
                # Somebody removed it by hand: there is nothing to be done, now or in a second.
                await records.put_off(the_id, now_ms + RECHECK_MS)
            self._waiting.drop(the_id)
        except HoldfastError as error:
            # Of a store that is away this raises, too, and the round is over.
            await records.put_off(the_id, now_ms + GRACE_MS)
            self._waiting.note(the_id)
            log.warning("an order waits", order=the_id, code=error.code, error=str(error))

    async def _look_at(self, order: Order, now_ms: int) -> None:
        records = self._inventory.order_records
        if order.state.is_ended and order.settled:
            await records.forget(order)
        elif order.body.kind is OrderKind.MOVE:
            # What is asked for is done, however late: the units are held at one of the two places.
            await self._relocation.drive(order)
        elif order.state.is_undecided and now_ms >= order.expires_at_ms:
            if self._may_expire:
                await self._orders.expire(order, actor=ACTOR)
        elif not order.settled:
            await self._orders.drive(order, actor=ACTOR)
        elif order.state is OrderState.CONFIRMED:
            now = await self._orders.look_again(order, actor=ACTOR)
            if now == order:
                await records.put_off(order.id, now_ms + RECHECK_MS)


class _Waiting:
    """The records that this driver could not drive: since when, and when it last tried."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._times: dict[str, tuple[float, float]] = {}

    def note(self, the_id: str) -> None:
        """One could not be driven."""
        now = self._monotonic()
        since, _ = self._times.get(the_id, (now, now))
        self._times[the_id] = (since, now)

    def drop(self, the_id: str) -> None:
        """It could."""
        self._times.pop(the_id, None)

    def tell(self) -> None:
        """Say how many there are, and for how long the longest waits."""
        now = self._monotonic()
        self._times = {
            the_id: (since, tried)
            for the_id, (since, tried) in self._times.items()
            if now - tried < FORGOTTEN_SECONDS
        }
        ORDERS_WAITING.set(len(self._times))
        ORDERS_WAITING_SECONDS.set(now - min((x for x, _ in self._times.values()), default=now))
