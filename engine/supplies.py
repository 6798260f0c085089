"""Supplies: units that are expected at a row on a day, which can be promised before they come.

`engine.outlook` has the arithmetic, `lua/lib/supplies.lua` says what is kept of them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
import structlog

from engine.dispatch import Command
from engine.inventory import Inventory
from engine.keys import PartitionKeys, digest, location_member
from engine.ledger import Operation, row_after
from engine.limits import (
    DEFAULT_PAGE,
    MAX_LATE_TOLD,
    MAX_PAGE,
    MAX_REVIEWED,
    MAX_SUPPLIES,
    MAX_SUPPLY_DAYS,
)
from engine.model import Configured, Page, ReservationState, Row
from engine.outcomes import HoldfastError, InvalidCommand, Outcome, StoreFault
from engine.outlook import LATER, Supply
from engine.refusals import refusal
from engine.reservations import FIELDS, QUEUED_FIELDS, Queued, from_hash, queued
from engine.rows import keys_of_change, replied_setting
from engine.store import pairs
from engine.validation import check_day, check_id, check_key, check_page, check_quantity

MAX_REVIEWS: Final = 8
"""How often a queue is looked through anew since its row changed meanwhile."""

Place = tuple[str, str, str]
"""(merchant, location, SKU)."""

log = structlog.get_logger()


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


class Late(msgspec.Struct, frozen=True, kw_only=True):
    """`units` of a reservation that were promised by a day which cannot be kept.

    `expected_on` is None where nothing is expected that would reach them.
    """

    reservation: str
    order_ref: str
    units: int
    promised_by: str
    expected_on: str | None


class Reviewed(msgspec.Struct, frozen=True):
    """The first of those whose day cannot be kept, how many there are, and how many were told."""

    late: tuple[Late, ...] = ()
    count: int = 0
    told: int = 0


class SupplyChanged(Configured, frozen=True, kw_only=True):
    """A row just after its supplies changed, and whose day cannot be kept now."""

    reviewed: Reviewed


class Reviewable:
    """The rows of a stretch of the ledger that promised days which may not be kept."""

    def __init__(self) -> None:
        """Know of none."""
        self._places: dict[Place, None] = {}

    def note(self, operation: Operation) -> None:
        """Take note of what an operation left a row with."""
        for change in operation.rows:
            place = (operation.merchant, operation.location, change.sku)
            self._places.pop(place, None)
            if change.terms and row_after(*place[:2], change).is_at_risk:
                self._places[place] = None

    async def review(self, review: Callable[[str, str, str], Awaitable[int]]) -> int:
        """Put on record what changed by `review`; return how often. It may raise."""
        told = 0
        for place in self._places:
            told += await review(*place)
        return told


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
    ) -> SupplyChanged:
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
    ) -> SupplyChanged:
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
    ) -> SupplyChanged:
        keys = self._inventory.keys_of(merchant, location)
        check_id("sku", sku)
        check_id("supply", supply)
        check_key(key)
        operation = digest("supply", merchant, location, sku, key)
        row_key = keys.stock(merchant, location, sku)
        command = Command(
            keys_of_change(keys, merchant, location, sku, operation),
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
        changed = replied_setting(merchant, location, sku, reply)
        return SupplyChanged(
            changed.row,
            changed.at_ms,
            changed.sequence,
            changed.replayed,
            reviewed=await self._review_soon(changed.row),
        )

    async def review(self, merchant: str, location: str, sku: str) -> Reviewed:
        """Put on record whose day cannot be kept, or can be again, and return whose it is.

        Safe to repeat. What a row that never rests keeps from being looked through is left to the
        next call: each change of such a row leads to one (see `engine.shortfalls`).
        """
        keys = self._inventory.keys_of(merchant, location)
        told = 0
        for _ in range(MAX_REVIEWS):
            (row,) = await self._inventory.rows(merchant, [(location, sku)])
            if row is None:
                break
            reviewed, is_whole = await self._look_through(keys, row)
            told += reviewed.told
            if is_whole:
                return msgspec.structs.replace(reviewed, told=told)
        return Reviewed(told=told)

    async def _look_through(self, keys: PartitionKeys, row: Row) -> tuple[Reviewed, bool]:
        """Go through a row's queue; False where the row changed meanwhile."""
        queue = await self._queue(keys, row)
        # A queue of 100,000 takes some tenths of a second, for which nobody else should wait.
        served = await asyncio.to_thread(row.served_on, [(one.channel, one.wait) for one in queue])
        late: list[Late] = []
        changed: list[tuple[str, str]] = []
        count = 0
        for one, day in zip(queue, served, strict=True):
            expected = day if one.wait.dated and day > one.wait.day else ""
            if expected != one.wait.late:
                changed.append((one.reservation, expected))
            if expected:
                count += 1
                if len(late) < MAX_LATE_TOLD:
                    late.append(_late(one, expected))
        told, version = 0, row.version
        for start in range(0, max(1, len(changed)), MAX_REVIEWED):
            some = changed[start : start + MAX_REVIEWED]
            found = await self._tell(keys, row, version, some)
            if found is None:
                return Reviewed(told=told), False
            told, version = told + len(some), found
        return Reviewed(tuple(late), count, told), True

    async def _queue(self, keys: PartitionKeys, row: Row) -> list[Queued]:
        """Read who waits for a row, in the order of their turns."""
        key = keys.waiting(row.merchant, row.location, row.sku)
        queue: list[Queued] = []
        offset = 0
        while True:
            found = await self._dispatch.read("ZRANGE", key, offset, offset + MAX_PAGE - 1)
            ids = [the_id.decode() for the_id in found]
            replies = await asyncio.gather(
                *(
                    self._dispatch.read("HMGET", keys.reservation(the_id), *QUEUED_FIELDS)
                    for the_id in ids
                )
            )
            for the_id, fields in zip(ids, replies, strict=True):
                one = queued(the_id, row.sku, fields)
                if one is not None:
                    queue.append(one)
            offset += len(ids)
            if len(ids) < MAX_PAGE:
                return queue

    async def _tell(
        self, keys: PartitionKeys, row: Row, version: int, changed: Sequence[tuple[str, str]]
    ) -> int | None:
        """Put on record who is late until when; return the row's version, None if it changed."""
        place = (row.merchant, row.location, row.sku)
        command = Command(
            (keys.stock(*place), *[keys.reservation(the_id) for the_id, _ in changed]),
            (*place[:2], "supplies", place[2], version, changed),
            place[0],
        )
        reply = await self._dispatch.run("slip", keys.partition, command)
        match Outcome(reply[0]):
            case Outcome.OK:
                return int(reply[1])
            case Outcome.VERSION_CONFLICT:
                return None
        raise refusal(reply)

    async def _review_soon(self, row: Row) -> Reviewed:
        """Review, as part of a call that has had its own effect already and must say so."""
        if row.terms is None or not row.terms.waits:
            return Reviewed()
        try:
            return await self.review(row.merchant, row.location, row.sku)
        except HoldfastError as error:
            # The background process does it.
            log.warning("promises wait to be reviewed", sku=row.sku, error=str(error))
            return Reviewed()

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


def _late(one: Queued, expected: str) -> Late:
    return Late(
        reservation=one.reservation,
        order_ref=one.order_ref,
        units=one.wait.units,
        promised_by=one.wait.day,
        expected_on=None if expected == LATER else expected,
    )
