"""Backorders that are filled: what becomes free goes to those who wait for it.

From the moment at which units come they are spoken for: a row's `available` leaves its backorders
out, so nobody who comes later gets them. Who gets which is settled just after, in order of promise,
by whoever booked the units, or by the keeper of shortfalls, which reads the ledger.
"""

from engine.inventory import Inventory
from engine.ledger import Operation, OperationKind

Place = tuple[str, str, str]
"""(merchant, location, SKU)."""


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

    async def fill(self, inventory: Inventory) -> int:
        """Fill them; return how many reservations got units. Raises what `Inventory.fill` does."""
        filled = 0
        for place in self._places:
            filled += await inventory.fill(*place)
        return filled
