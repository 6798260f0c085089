"""Backorders that are filled: what becomes free goes to those who wait for it.

From the moment at which units come they are spoken for: a row's `available` leaves its backorders
out, so nobody who comes later gets them. Who gets which is settled just after, in order of promise,
by whoever booked the units, or by the keeper of shortfalls, which reads the ledger.
"""

from collections.abc import Awaitable, Callable

import structlog

from engine.dispatch import Command
from engine.ledger import Operation, OperationKind
from engine.limits import MAX_FILL_ROUNDS, MAX_FILLED
from engine.outcomes import HoldfastError, Outcome
from engine.partitions import Partitions
from engine.refusals import refusal

log = structlog.get_logger()

Place = tuple[str, str, str]
"""(merchant, location, SKU)."""


class Backorders:
    """Gives the units of all merchants' rows to who waits for them."""

    def __init__(self, partitions: Partitions) -> None:
        """Fill in `partitions`."""
        self._partitions = partitions
        self._dispatch = partitions.dispatcher

    async def fill(self, merchant: str, location: str, sku: str) -> int:
        """Give what is free on a row's shelf to those who wait for it, in the order of their turns.

        What the pools of other channels are guaranteed is passed by, except by who has a day.
        Returns how many reservations got units, some of them perhaps not all. Safe to repeat.
        """
        keys = self._partitions.keys_of(merchant, location)
        row, queue = keys.stock(merchant, location, sku), keys.waiting(merchant, location, sku)
        filled = passed = 0
        for _ in range(MAX_FILL_ROUNDS):
            found = await self._dispatch.read(
                "ZRANGEBYSCORE", queue, "-inf", "+inf", "LIMIT", passed, MAX_FILLED
            )
            if not found:
                break
            ids = [the_id.decode() for the_id in found]
            command = Command(
                (row, queue, *[keys.reservation(the_id) for the_id in ids]),
                (merchant, location, "backorders", sku, ids, passed),
                merchant,
            )
            reply = await self._dispatch.run("fill", keys.partition, command)
            if Outcome(reply[0]) is not Outcome.OK:
                raise refusal(reply)
            filled += reply[1]
            passed += reply[5]
            if not reply[4]:
                break
        return filled

    async def fill_soon(self, merchant: str, location: str, sku: str) -> None:
        """Fill, as part of a call that has had its own effect already and must say so."""
        try:
            await self.fill(merchant, location, sku)
        except HoldfastError as error:
            # The background process does it.
            log.warning("backorders wait to be filled", sku=sku, error=str(error))


class Fillable:
    """The rows of a stretch of the ledger that have units free beside backorders."""

    def __init__(self) -> None:
        """Know of none."""
        self._places: dict[Place, None] = {}

    def note(self, operation: Operation) -> None:
        """Take note of what an operation left a row with, or of a queue that it mended."""
        if operation.kind is OperationKind.REPAIR and operation.detail[0] == "queue":
            self._places[operation.merchant, operation.location, operation.detail[4]] = None
        for change in operation.rows:
            levels = change.levels
            place = (operation.merchant, operation.location, change.sku)
            held_back = levels.safety_stock + levels.offline_buffer
            if levels.backordered and levels.on_hand - levels.reserved > held_back:
                self._places[place] = None
            else:
                self._places.pop(place, None)

    async def fill(self, fill: Callable[[str, str, str], Awaitable[int]]) -> int:
        """Fill them by `Inventory.fill`; return how many reservations got units. It may raise."""
        filled = 0
        for place in self._places:
            filled += await fill(*place)
        return filled
