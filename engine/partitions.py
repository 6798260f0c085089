"""The partitions of a store, and what one process knows of the rows and reservations in them.

The parts of an `Inventory` share one `Partitions`: what one of them learns, all go by.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from engine.claims import Claiming
from engine.clock import read_times
from engine.dispatch import Dispatcher
from engine.keys import (
    MAX_PARTITIONS,
    MOVED_KEY,
    PartitionKeys,
    moved_reservation_id,
    partition_of,
    partition_of_reservation,
    reservation_hash,
)
from engine.outcomes import ReservationNotFound
from engine.reservations import LinesOf, RecentLines, lines_of
from engine.sold_out import SoldOut
from engine.splits import Splits
from engine.store import Store
from engine.validation import check_id

Answer = TypeVar("Answer")


class Partitions:
    """The partitions of one store; see the module's text."""

    def __init__(
        self, store: Store, count: int, *, expire_due: Callable[[int], Awaitable[int]]
    ) -> None:
        """`expire_due` takes back what is due in a partition, and returns how many holds."""
        self.store = store
        self.keys = [PartitionKeys(number) for number in range(count)]
        self.dispatcher = Dispatcher(store, self.keys)
        self.splits = Splits(store, self.dispatcher, self.keys, expire_due)
        self.claiming = Claiming(self.dispatcher, self.keys)
        self.sold_out = SoldOut()
        self.recent_lines = RecentLines()

    def keys_of(self, merchant: str, location: str) -> PartitionKeys:
        """Return the keys of a location's partition. Raises InvalidCommand."""
        check_id("merchant", merchant)
        check_id("location", location)
        return self.keys[partition_of(merchant, location, len(self.keys))]

    def keys_of_reservation(self, reservation: str) -> PartitionKeys:
        """Return the keys of the partition that an id names. Raises ReservationNotFound."""
        partition = partition_of_reservation(reservation, len(self.keys))
        if partition is None:
            raise ReservationNotFound(reservation)
        return self.keys[partition]

    async def wherever(self, reservation: str, call: Callable[[str], Awaitable[Answer]]) -> Answer:
        """Call with the reservation's id, and if there is none of it, with that of its new place.

        So only a miss pays for looking whether a rebuild moved the reservation.
        """
        try:
            return await call(reservation)
        except ReservationNotFound:
            if partition_of_reservation(reservation, MAX_PARTITIONS) is None:
                raise
            partition = await self.dispatcher.read("HGET", MOVED_KEY, reservation_hash(reservation))
            if partition is None:
                raise
        return await call(moved_reservation_id(reservation, int(partition)))

    async def read_lines(self, keys: PartitionKeys, reservation: str) -> LinesOf | None:
        """Read which rows a reservation of a partition holds; None where there is none of it."""
        body = await self.dispatcher.read("HGET", keys.reservation(reservation), "body")
        return None if body is None else lines_of(body)

    def note_change(self, row_key: str) -> None:
        """Take note that this process changed a row, so that units may be had there again."""
        self.sold_out.forget((row_key,))

    def note_at_part(self, lines: LinesOf, keys: PartitionKeys) -> None:
        """Have the home of a split row be told of what changed at a part of it."""
        home = self.keys_of(lines.merchant, lines.location)
        if home.partition == keys.partition:
            return
        self.sold_out.forget(lines.row_keys(home))
        for sku in lines.skus:
            self.splits.touched((lines.merchant, lines.location, sku))

    async def now_ms(self, location: tuple[str, str]) -> int:
        """Return the time as the scripts of a merchant's location have it, in ms since 1970."""
        return (await read_times(self.store, self.keys_of(*location))).now_ms
