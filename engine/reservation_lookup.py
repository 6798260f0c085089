"""Reservations looked up: by their id, or as the open ones of a location."""

import asyncio

from engine import reservations
from engine.keys import PartitionKeys, is_order_id
from engine.limits import DEFAULT_PAGE
from engine.model import Page, Reservation
from engine.outcomes import ReservationNotFound
from engine.partitions import Partitions
from engine.validation import check_page


class ReservationLookup:
    """The reservations of all merchants, to be read."""

    def __init__(self, partitions: Partitions) -> None:
        """Read in `partitions`."""
        self._partitions = partitions
        self._dispatch = partitions.dispatcher

    async def reservation(self, merchant: str, reservation: str) -> Reservation:
        """Read a reservation; ended ones for 24 hours. Raises ReservationNotFound."""
        return await self._partitions.wherever(
            reservation, lambda it: self._reservation(merchant, it)
        )

    async def _reservation(self, merchant: str, reservation: str) -> Reservation:
        keys = self._partitions.keys_of_reservation(reservation)
        fields = await self._dispatch.read(
            "HMGET", keys.reservation(reservation), *reservations.FIELDS
        )
        found = reservations.from_hash(reservation, fields)
        if found is None or found.merchant != merchant:
            raise ReservationNotFound(reservation)
        return found

    async def open_count(self, merchant: str, location: str) -> tuple[int, int]:
        """Count a location's open reservations; the second is since when the oldest is there, ms.

        0 where there is none.
        """
        index = self._partitions.keys_of(merchant, location).open_reservations(merchant, location)
        count = await self._dispatch.read("ZCARD", index)
        oldest = await self._dispatch.read("ZRANGE", index, 0, 0, "WITHSCORES")
        return int(count), int(float(oldest[1])) if oldest else 0

    async def open_reservations(
        self, merchant: str, location: str, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Reservation]:
        """List a location's held and confirmed reservations, oldest first.

        `after` is the `next_after` of the page before. Raises InvalidCommand where it is not.
        """
        check_page(limit)
        position = reservations.parse_position(after)
        # Those of split rows are held where their parts are.
        places = [
            self._partitions.keys[p]
            for p in await self._partitions.splits.partitions_of(merchant, location)
        ]
        listed = await asyncio.gather(
            *(self._list_open(keys, merchant, location, position, limit + 1) for keys in places)
        )
        found_at = {p: keys for keys, some in zip(places, listed, strict=True) for p in some}
        positions = sorted(found_at)
        page = positions[:limit]
        replies = await asyncio.gather(
            *(
                self._dispatch.read("HMGET", found_at[p].reservation(p.id), *reservations.FIELDS)
                for p in page
            )
        )
        found = [
            reservations.from_hash(p.id, fields) for p, fields in zip(page, replies, strict=True)
        ]
        return Page(
            tuple(r for r in found if r is not None and r.state.is_open),
            page[-1].text() if len(positions) > limit else None,
        )

    async def _list_open(
        self,
        keys: PartitionKeys,
        merchant: str,
        location: str,
        position: reservations.Position | None,
        most: int,
    ) -> list[reservations.Position]:
        """List up to `most` open reservations of a location in one partition, past `position`."""
        index = keys.open_reservations(merchant, location)
        # Members of one millisecond stand in byte order: skip those that the page before gave.
        already = 0
        if position is not None:
            already = await self._dispatch.read(
                "ZCOUNT", index, position.created_at_ms, position.created_at_ms
            )
        start = "-inf" if position is None else position.created_at_ms
        flat = await self._dispatch.read(
            "ZRANGEBYSCORE", index, start, "+inf", "WITHSCORES", "LIMIT", 0, most + already
        )
        found = [p for p in reservations.positions(flat) if position is None or p > position]
        return found[:most]

    async def order_of(self, reservation: str) -> str:
        """Return the id of the order that a reservation was made as a part of; empty of others.

        Raises ReservationNotFound.
        """
        return await self._partitions.wherever(reservation, self._order_of)

    async def _order_of(self, reservation: str) -> str:
        lines = await self._partitions.read_lines(
            self._partitions.keys_of_reservation(reservation), reservation
        )
        if lines is None:
            raise ReservationNotFound(reservation)
        return lines.order_ref if is_order_id(lines.order_ref) else ""
