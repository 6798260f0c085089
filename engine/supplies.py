"""Supplies: units that are expected at a row on a day, which can be promised before they come.

`engine.outlook` has the arithmetic, `lua/lib/supplies.lua` says what is kept of them.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from engine.dispatch import Command
from engine.inventory import Inventory, replied_row
from engine.keys import PartitionKeys, digest, location_member
from engine.limits import DEFAULT_PAGE, MAX_SUPPLIES, MAX_SUPPLY_DAYS
from engine.model import Configured, Page, ReservationState, Row
from engine.outcomes import InvalidCommand, Outcome, StoreFault
from engine.outlook import Supply
from engine.refusals import refusal
from engine.reservations import FIELDS, from_hash
from engine.store import pairs
from engine.validation import check_day, check_id, check_key, check_page, check_quantity

_FIRST_SETTING: Final = 8
"""Where a reply of `lua/supply.lua` has the settings of the row."""


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """`units` of a row that a reservation waits for, and its turn in the row's queue.

    `promised_by` is the day that they were promised by, None where they were promised without one.
    `expected_on` is that day, or where it cannot be kept the one on which they are expected now,
    None where nobody can say.
    """

    reservation: str
    state: ReservationState
    order_ref: str
    units: int
    promised_by: str | None
    expected_on: str | None
    turn: int


class Supplies:
    """The supplies of all merchants over one store."""

    def __init__(self, inventory: Inventory) -> None:
        """Read and change through `inventory`."""
        self._inventory = inventory
        self._dispatch = inventory.dispatcher

    async def expect(
        self,
        merchant: str,
        location: str,
        sku: str,
        supply: str,
        expected: Supply,
        *,
        key: str,
        actor: str,
    ) -> Configured:
        """Say how many units are still to come with a supply, and on which day, once under `key`.

        The row is made where there is none. Raises LimitExceeded, IdempotencyKeyReused,
        InvalidCommand.
        """
        check_day("expected_on", expected.expected_on)
        check_quantity("quantity", expected.quantity)
        kits = await self._inventory.kits.known(merchant)
        if sku in kits:
            raise InvalidCommand("sku", "is a kit, which has no shelf: announce its components")
        return await self._change(merchant, location, sku, supply, expected, key, actor)

    async def cancel(
        self, merchant: str, location: str, sku: str, supply: str, *, key: str, actor: str
    ) -> Configured:
        """Say that nothing more comes with a supply, once under `key`.

        Raises SupplyNotFound, IdempotencyKeyReused, InvalidCommand.
        """
        return await self._change(merchant, location, sku, supply, Supply("", 0), key, actor)

    async def _change(
        self,
        merchant: str,
        location: str,
        sku: str,
        supply: str,
        expected: Supply,
        key: str,
        actor: str,
    ) -> Configured:
        keys = self._inventory.keys_of(merchant, location)
        check_id("sku", sku)
        check_id("supply", supply)
        check_key(key)
        operation = digest("supply", merchant, location, sku, key)
        row_key = keys.stock(merchant, location, sku)
        command = Command(
            (
                row_key,
                keys.skus(merchant, location),
                keys.locations,
                keys.seen(merchant, operation),
            ),
            (
                operation,
                merchant,
                location,
                actor,
                digest(supply, expected.expected_on, str(expected.quantity)),
                sku,
                location_member(merchant, location),
                supply,
                expected.expected_on,
                expected.quantity,
                MAX_SUPPLIES,
                MAX_SUPPLY_DAYS,
            ),
            merchant,
        )
        reply = await self._dispatch.run("supply", keys.partition, command)
        self._inventory.note_change(row_key)
        code = Outcome(reply[0])
        if code is Outcome.INVALID and reply[1] == "split":
            raise InvalidCommand("supply", "the row is split: put it together first (parts 1)")
        if code not in (Outcome.OK, Outcome.REPLAYED):
            raise refusal(reply, key=key, sku=sku, supply=supply)
        return Configured(
            row=replied_row(merchant, location, sku, reply, settings_at=_FIRST_SETTING),
            at_ms=reply[1],
            sequence=reply[2],
            replayed=code is Outcome.REPLAYED,
        )

    async def waiting(
        self,
        merchant: str,
        location: str,
        sku: str,
        *,
        after: str | None = None,
        limit: int = DEFAULT_PAGE,
    ) -> Page[Waiting]:
        """List who waits for units of a row, in the order in which they get them.

        `after` is the `next_after` of the page before. Raises RowNotFound, InvalidCommand.
        """
        row = await self._inventory.row(merchant, location, sku)
        check_page(limit)
        start = "-inf"
        if after is not None:
            if not (after.isascii() and after.isdecimal()):
                raise InvalidCommand("after", "must be the next_after of the page before")
            start = f"({after}"
        keys = self._inventory.keys_of(merchant, location)
        found = await self._dispatch.read(
            "ZRANGEBYSCORE",
            keys.waiting(merchant, location, sku),
            start,
            "+inf",
            "WITHSCORES",
            "LIMIT",
            0,
            limit + 1,
        )
        turns = [(the_id.decode(), int(float(score))) for the_id, score in pairs(found)]
        page = await self._read(keys, row, turns[:limit])
        return Page(tuple(page), str(turns[limit - 1][1]) if len(turns) > limit else None)

    async def _read(
        self, keys: PartitionKeys, row: Row, turns: Sequence[tuple[str, int]]
    ) -> list[Waiting]:
        """Read what reservations wait for; those that got it just now are left out."""
        replies = await asyncio.gather(
            *(
                self._dispatch.read("HMGET", keys.reservation(the_id), *FIELDS)
                for the_id, _ in turns
            )
        )
        found = []
        for (the_id, turn), fields in zip(turns, replies, strict=True):
            reservation = from_hash(the_id, fields)
            if reservation is None or reservation.merchant != row.merchant:
                raise StoreFault("HMGET", f"the queue of {row.sku} names {the_id}")
            units = sum(line.quantity for line in reservation.backordered if line.sku == row.sku)
            if not units:
                continue
            promised = [one for one in reservation.promised if one.sku == row.sku]
            found.append(
                Waiting(
                    reservation=the_id,
                    state=reservation.state,
                    order_ref=reservation.order_ref,
                    units=units,
                    promised_by=promised[0].by if promised else None,
                    expected_on=promised[0].expected_on if promised else None,
                    turn=turn,
                )
            )
        return found
