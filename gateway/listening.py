"""How a subscriber begins: with what the rows are now, or where it left off.

The subscription is made first and what the tail brings waits in it. Then the rows are read, or the
ledger from where the subscriber stood up to where the tail stood when the subscription was made.
So between the two nothing is missing; what is in both is left out by its version.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from engine.events import events_of
from engine.inventory import Inventory
from engine.keys import partition_of
from engine.ledger import Entry, read_entries
from engine.limits import MAX_BATCH_ROWS, MAX_PAGE
from engine.metrics import SHEDS
from engine.model import Row, time_text
from engine.outcomes import LimitExceeded, Overloaded
from engine.tail import Cursor, cursors_before, stream_position
from gateway.fanout import Fanout
from gateway.subscriptions import Interest, Place, Position, Subscription, Told

MAX_SNAPSHOT_ROWS: Final = 10_000
"""Rows that a stream opens with: a list of 3 MB. Who wants to hear of more than that asks for no
snapshot, and reads the rows in pages."""

MAX_SNAPSHOTS_AT_ONCE: Final = 4
"""Being read in one process, for when everyone comes back at once."""

MAX_REPLAYED_ENTRIES: Final = 20_000
"""Entries of the ledger that are looked through for one subscriber who comes back; a snapshot costs
less than more of them."""

SNAPSHOT_SECONDS: Final = 20.0
"""How long a subscriber waits for its turn and its rows."""


class Anew(StrEnum):
    """Why a subscriber must start anew: whatever it knew does not count any more."""

    OPENED = "opened"
    WINDOW_PASSED = "window_passed"
    TOO_FAR_BEHIND = "too_far_behind"
    UNKNOWN_POSITION = "unknown_position"
    GAP = "gap"
    FORK = "fork"
    UNREADABLE = "unreadable"


class RowState(msgspec.Struct, frozen=True, kw_only=True):
    """A row as a snapshot has it, in units; `version` 0 is of a row that does not exist."""

    merchant: str
    location: str
    sku: str
    version: int
    on_hand: int
    reserved: int
    safety_stock: int
    available: int
    shortfall: int
    deficit: int
    low_stock_threshold: int
    as_of: str
    offline_buffer: int = 0
    backordered: int = 0


class Beginning(msgspec.Struct, frozen=True):
    """What a subscriber is told first.

    `anew` None goes on where it left off. Else `rows` are all that it asked for as they are now,
    None where it wants none.
    """

    anew: Anew | None
    rows: list[RowState] | None
    as_of: str


class Listening:
    """Begins subscriptions on one fan-out."""

    def __init__(self, fanout: Fanout, inventory: Inventory) -> None:
        """Read what they begin with from `inventory`."""
        self._fanout = fanout
        self._inventory = inventory
        self._turns = asyncio.Semaphore(MAX_SNAPSHOTS_AT_ONCE)

    async def subscribe(
        self, interest: Interest, *, key_id: str, last_event_id: str | None, snapshot: bool
    ) -> tuple[Subscription, Beginning]:
        """Begin to listen; the caller unsubscribes.

        Raises StoreUnavailable, Overloaded, LimitExceeded (too many rows for a snapshot).
        """
        await self._fanout.ready()
        subscription = self._fanout.subscribe(interest, key_id=key_id)
        try:
            anew: Anew | None = Anew.OPENED
            if last_event_id is not None:
                anew = await self._go_on(subscription, last_event_id)
            beginning = await self.begin(subscription, anew, snapshot=snapshot)
        except BaseException:
            self._fanout.unsubscribe(subscription)
            raise
        return subscription, beginning

    async def begin(
        self, subscription: Subscription, anew: Anew | None, *, snapshot: bool
    ) -> Beginning:
        """Return what to tell a subscriber that starts, or starts anew; see `subscribe`."""
        subscription.reset_because = None
        interest = subscription.interest
        as_of = time_text(time.time_ns() // 1_000_000)
        if anew is None or not snapshot or not interest.has_rows:
            return Beginning(anew, None, as_of)
        try:
            async with asyncio.timeout(SNAPSHOT_SECONDS), self._turns:
                as_of = time_text(time.time_ns() // 1_000_000)
                rows = await self._rows(interest)
        except TimeoutError as error:
            SHEDS.add(("snapshots",))
            raise Overloaded(retry_after_ms=5_000) from error
        versions = {(row.location, row.sku): row.version for row in rows}
        self._fanout.start_above(subscription, versions, read_at=time.monotonic())
        return Beginning(anew, [_state(row, as_of) for row in rows], as_of)

    # A snapshot

    async def _rows(self, interest: Interest) -> list[Row]:
        merchant = interest.merchant
        locations: Iterable[str] = interest.locations or await self._locations(merchant)
        rows: list[Row] = []
        if interest.skus is not None:
            names = [(place, sku) for place in sorted(locations) for sku in sorted(interest.skus)]
            _check_rows(len(names))
            for i in range(0, len(names), MAX_BATCH_ROWS):
                some = names[i : i + MAX_BATCH_ROWS]
                found = await self._inventory.rows(merchant, some)
                for name, row in zip(some, found, strict=True):
                    if row is not None:
                        rows.append(row)
                    elif interest.locations is not None:
                        # Asked for by name, so that there is none is an answer, too.
                        rows.append(Row(merchant, *name, 0, 0, 0, 0, 0))
            return rows
        for location in sorted(locations):
            after: str | None = None
            while True:
                page = await self._inventory.list_rows(
                    merchant, location, after=after, limit=MAX_PAGE
                )
                rows += page.items
                _check_rows(len(rows))
                after = page.next_after
                if after is None:
                    break
        return rows

    async def _locations(self, merchant: str) -> Sequence[str]:
        found: list[str] = []
        after: str | None = None
        while True:
            page = await self._inventory.list_locations(merchant, after=after, limit=MAX_PAGE)
            found += page.items
            _check_rows(len(found))
            after = page.next_after
            if after is None:
                return found

    # Where it left off

    async def _go_on(self, subscription: Subscription, last_event_id: str) -> Anew | None:
        """Put what the subscriber missed ahead of what waits; or say why that cannot be."""
        position = Position.parse(last_event_id)
        if position is None:
            return Anew.UNKNOWN_POSITION
        # As the tail stood when the subscription was made: nothing was awaited since.
        until = dict(self._fanout.positions)
        inventory, interest = self._inventory, subscription.interest
        keys = inventory.keys
        if interest.locations is not None:
            merchant, count = interest.merchant, inventory.partitions
            numbers = {partition_of(merchant, place, count) for place in interest.locations}
            keys = [keys[number] for number in sorted(numbers)]
        try:
            before = await cursors_before(inventory.store, keys, position.base_ms)
        except msgspec.DecodeError:
            return Anew.UNREADABLE
        if before is None:
            return Anew.WINDOW_PASSED
        told: list[Told] = []
        left = MAX_REPLAYED_ENTRIES
        for one in keys:
            start = position.cursor(one.partition) or before[one.partition]
            try:
                entries = await self._entries(one.partition, start, until[one.partition], left)
            except msgspec.DecodeError:
                # Of a kind that only a newer version of the product knows.
                return Anew.UNREADABLE
            if isinstance(entries, Anew):
                return entries
            left -= len(entries)
            for entry in entries:
                told += _told(entry, one.partition, interest)
        if not subscription.go_on_behind(told):
            return Anew.TOO_FAR_BEHIND
        subscription.stand_at(position)
        return None

    async def _entries(
        self, partition: int, start: Cursor, until: Cursor, most: int
    ) -> list[Entry] | Anew:
        """Read a partition from behind `start` up to `until`, which is the last to be had."""
        last = stream_position(until.stream_id)
        entries: list[Entry] = []
        after = start.stream_id
        while stream_position(after) < last:
            keys = self._inventory.keys[partition]
            found = await read_entries(self._inventory.store, keys, after=after)
            for entry in found:
                if stream_position(entry.stream_id) > last:
                    break
                expected = entries[-1].sequence + len(entries[-1].operations) if entries else None
                if expected not in (None, entry.sequence):
                    return Anew.GAP
                entries.append(entry)
            if len(entries) > most:
                return Anew.TOO_FAR_BEHIND
            if not found or stream_position(found[-1].stream_id) >= last:
                break
            after = found[-1].stream_id
        return entries


def _told(entry: Entry, partition: int, interest: Interest) -> list[Told]:
    place = Place(*stream_position(entry.stream_id))
    return [
        Told(event, partition, place)
        for i, operation in enumerate(entry.operations)
        if operation.merchant == interest.merchant
        for event in events_of(
            operation, sequence=entry.sequence + i, at_ms=entry.at_ms, partition=partition
        )
        if interest.wants(event)
    ]


def _check_rows(count: int) -> None:
    if count > MAX_SNAPSHOT_ROWS:
        raise LimitExceeded("rows", most=MAX_SNAPSHOT_ROWS)


def _state(row: Row, as_of: str) -> RowState:
    return RowState(
        merchant=row.merchant,
        location=row.location,
        sku=row.sku,
        version=row.version,
        on_hand=row.on_hand,
        reserved=row.reserved,
        safety_stock=row.safety_stock,
        available=row.available,
        shortfall=row.shortfall,
        deficit=row.deficit,
        low_stock_threshold=row.low_stock_threshold,
        offline_buffer=row.offline_buffer,
        backordered=row.backordered,
        as_of=as_of,
    )
