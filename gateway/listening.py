"""How a subscriber begins: with what the rows are now, or where it left off.

The subscription is made first and what the tail brings waits in it. Then the rows are read, or the
ledger from where the subscriber stood up to where the tail stood when the subscription was made.
So between the two nothing is missing; what is in both is left out by its version. No entry tells of
a kit: what there was of it is worked out from what there is, back through the entries and forward.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from engine.event_making import events_of
from engine.events import AnyEvent, StockData
from engine.inventory import Inventory
from engine.keys import partition_of
from engine.ledger import Entry, Operation, RowChange, read_entries
from engine.limits import MAX_BATCH_ROWS, MAX_PAGE
from engine.metrics import SHEDS
from engine.model import Row, time_text
from engine.outcomes import Overloaded
from engine.tail import Cursor, cursors_before, stream_position
from gateway.fanout import Fanout
from gateway.followed_kits import FollowedKits, KitAt, kits_said, rows_unsaid
from gateway.interests import check_rows, locations_of
from gateway.subscriptions import Interest, Place, Position, Subscription, Told
from gateway.view import UNTOLD

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
    KIT_CHANGED = "kit_changed"
    GAP = "gap"
    FORK = "fork"
    UNREADABLE = "unreadable"


class RowState(msgspec.Struct, frozen=True, kw_only=True):
    """A row as a snapshot has it, in units; `version` 0 is of a row that does not exist.

    Of a kit, which has `kit` true, `on_hand` is what its components allow.
    """

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
    kit: bool | UnsetType = UNSET


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
                has_kits = await self._fanout.kits.follow(subscription)
                # What comes from here on is not in the ledger that is read for it.
                subscription.start_over(self._fanout.edge)
                anew = await self._go_on(subscription, last_event_id, has_kits=has_kits)
            if anew is None:
                beginning = Beginning(None, None, time_text(time.time_ns() // 1_000_000))
            else:
                beginning = await self.begin(subscription, anew, snapshot=snapshot)
        except BaseException:
            self._fanout.unsubscribe(subscription)
            raise
        return subscription, beginning

    async def begin(self, subscription: Subscription, anew: Anew, *, snapshot: bool) -> Beginning:
        """Return what to tell a subscriber that starts, or starts anew; see `subscribe`."""
        subscription.reset_because = None
        interest = subscription.interest
        as_of = time_text(time.time_ns() // 1_000_000)
        await self._fanout.kits.follow(subscription)
        if not snapshot or not interest.has_rows:
            if anew is Anew.OPENED:
                # Of a kit, what came before it was known as one was told of its own row.
                subscription.start_over(self._fanout.edge)
            return Beginning(anew, None, as_of)
        try:
            async with asyncio.timeout(SNAPSHOT_SECONDS), self._turns:
                rows = await self._rows(interest)
        except TimeoutError as error:
            SHEDS.add(("snapshots",))
            raise Overloaded(retry_after_ms=5_000) from error
        # As the tail has them now: whatever it gives from here on is newer.
        kits = self._kits(interest)
        check_rows(len(rows) + len(kits))
        versions = {(row.location, row.sku): row.version for row in (*rows, *kits)}
        self._fanout.start_above(subscription, versions, read_at=time.monotonic())
        states = [_state(row, as_of) for row in rows]
        states += [msgspec.structs.replace(_state(row, as_of), kit=True) for row in kits]
        return Beginning(anew, states, as_of)

    # A snapshot

    def _kits(self, interest: Interest) -> list[Row]:
        rows = []
        for place in self._fanout.kits.places(interest):
            row = place.row
            if row is None and interest.locations is not None:
                row = Row(place.merchant, place.location, place.sku, 0, 0, 0, 0, 0)
            if row is not None:
                rows.append(row)
        return rows

    async def _rows(self, interest: Interest) -> list[Row]:
        merchant, kits = interest.merchant, self._fanout.kits
        if interest.skus is not None and all((merchant, sku) in kits for sku in interest.skus):
            return []
        locations: Iterable[str] = interest.locations or await locations_of(
            self._inventory, merchant
        )
        rows: list[Row] = []
        if interest.skus is not None:
            names = [(place, sku) for place in sorted(locations) for sku in sorted(interest.skus)]
            check_rows(len(names))
            names = [name for name in names if (merchant, name[1]) not in kits]
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
                check_rows(len(rows))
                after = page.next_after
                if after is None:
                    break
        return rows

    # Where it left off

    async def _go_on(
        self, subscription: Subscription, last_event_id: str, *, has_kits: bool
    ) -> Anew | None:
        """Put what the subscriber missed ahead of what waits; or say why that cannot be."""
        position = Position.parse(last_event_id)
        if position is None:
            return Anew.UNKNOWN_POSITION
        # As the tail stood when the subscription was made: nothing was awaited since.
        until = dict(self._fanout.positions)
        inventory, interest = self._inventory, subscription.interest
        missed = _Missed(self._fanout.kits, interest)
        keys = inventory.keys
        if interest.locations is not None:
            merchant, count = interest.merchant, inventory.partitions
            numbers = {partition_of(merchant, place, count) for place in interest.locations}
            if has_kits:
                # Which says whether they were others meanwhile.
                numbers.add(partition_of(merchant, "", count))
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
            if has_kits and missed.has_other_kits(entries, one.partition):
                return Anew.KIT_CHANGED
            told += missed.told(entries, one.partition)
        if subscription.reset_because is not None:
            return Anew(subscription.reset_because)
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


class _Missed:
    """What a subscriber missed, made anew of the entries that told of it."""

    def __init__(self, kits: FollowedKits, interest: Interest) -> None:
        """Take what there is of its kits where the entries end."""
        self._interest = interest
        self._skus = {sku for sku in interest.skus or () if (interest.merchant, sku) in kits}
        self._partitions: set[int] = set()
        self._by_row: dict[tuple[str, str], list[KitAt]] = {}
        for place in kits.places(interest):
            copied = place.copy()
            self._partitions.add(place.partition)
            for name in place.names:
                self._by_row.setdefault((place.location, name), []).append(copied)

    def has_other_kits(self, entries: Iterable[Entry], partition: int) -> bool:
        """Say whether its kits were defined anew, or their rows changed otherwise than is told."""
        skus = self._interest.skus or ()
        for entry in entries:
            for operation in entry.operations:
                if operation.kind in UNTOLD and self._may_change(operation, partition):
                    return True
                if operation.merchant == self._interest.merchant and any(
                    sku in skus for sku, _ in kits_said(operation)
                ):
                    return True
        return False

    def _may_change(self, operation: Operation, partition: int) -> bool:
        """Say whether a repair or a rebuild may have changed rows of its kits."""
        if partition not in self._partitions:
            return False
        merchant, rows = operation.merchant, rows_unsaid(operation)
        if rows is None:
            return merchant in ("", self._interest.merchant)
        return merchant == self._interest.merchant and any(
            (operation.location, sku) in self._by_row for sku in rows
        )

    def told(self, entries: Sequence[Entry], partition: int) -> list[Told]:
        """Return the events of a partition's entries, in their order."""
        interest = self._interest
        if partition in self._partitions:
            self._go_back(entries)
        told: list[Told] = []
        for entry in entries:
            place = Place(*stream_position(entry.stream_id))
            for i, operation in enumerate(entry.operations):
                if operation.merchant != interest.merchant:
                    continue
                where: dict[str, int] = {
                    "sequence": entry.sequence + i,
                    "at_ms": entry.at_ms,
                    "partition": partition,
                }
                events = [one for one in events_of(operation, **where) if not self._is_hidden(one)]
                kits = {
                    kit: None for change in operation.rows for kit in self._of(operation, change)
                }
                for kit in kits:
                    events += kit.tell(operation, **where)
                told += [Told(one, partition, place) for one in events if interest.wants(one)]
        return told

    def _go_back(self, entries: Sequence[Entry]) -> None:
        """Take back what the entries did to the rows of its kits."""
        for entry in reversed(entries):
            for operation in reversed(entry.operations):
                if operation.merchant == self._interest.merchant:
                    for change in operation.rows:
                        for kit in self._of(operation, change):
                            kit.undo(change)

    def _of(self, operation: Operation, change: RowChange) -> Sequence[KitAt]:
        return self._by_row.get((operation.location, change.sku), ())

    def _is_hidden(self, event: AnyEvent) -> bool:
        """Say whether it is about the own row of a kit, of which the kit is told instead."""
        return isinstance(event.data, StockData) and event.data.sku in self._skus


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
