"""The kits that somebody follows by name, with their rows as the tail of the ledger tells of them.

A kit has no row, and no operation of its own when there is more or less of it. So of each kit that
is followed its rows are kept here, at the locations where it is: they are read once, together, and
then every operation that changes one of them says what there is of the kit before and after it.
All rows of a location are in one ledger, so they are as they were at one place of it, on every
gateway the same, and so are the events.

Only who names a kit's SKU follows it. As long as nobody does nothing is kept, and an operation
costs the look into an empty index.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from typing import Final

import msgspec

from engine.definitions import What
from engine.event_making import events_of_kit
from engine.events import AnyEvent
from engine.inventory import Inventory
from engine.keys import partition_of
from engine.kits import Kit, kit_row
from engine.ledger import Operation, OperationKind, RowChange, row_after, row_before
from engine.metrics import SHEDS
from engine.model import Row
from engine.outcomes import Overloaded
from engine.tasks import end_task
from gateway.interests import check_rows, locations_of
from gateway.subscriptions import Interest, Subscription

MAX_KEPT_ROWS: Final = 100_000
"""Rows of followed kits in one process, at some 400 bytes each."""

READ_AT_ONCE: Final = 64
"""Locations of a kit that are read at a time."""

RETRY_AFTER_MS: Final = 5_000

_decode = msgspec.json.Decoder(Kit).decode


class KitAt:
    """A kit at one location: its own row and its components', by SKU, those that there are."""

    __slots__ = (
        "is_read",
        "kit",
        "location",
        "merchant",
        "names",
        "partition",
        "reading",
        "rows",
        "sku",
    )

    def __init__(self, merchant: str, location: str, sku: str, kit: Kit, partition: int) -> None:
        """Know no row yet; what is told meanwhile counts as soon as they are read."""
        self.merchant = merchant
        self.location = location
        self.partition = partition
        self.sku = sku
        self.kit = kit
        self.names = names_of(sku, kit)
        self.rows: dict[str, Row] = {}
        self.is_read = False
        self.reading: asyncio.Task[None] | None = None

    @property
    def row(self) -> Row | None:
        """What there is of the kit."""
        return kit_row(self.merchant, self.location, self.sku, self.kit, self.rows)

    def take_in(self, rows: Iterable[Row]) -> None:
        """Take over the rows as they were read; what was told of one since is newer."""
        for row in rows:
            known = self.rows.get(row.sku)
            if known is None or known.version < row.version:
                self.rows[row.sku] = row
        self.is_read = True

    def apply(self, operation: Operation) -> tuple[Row | None, Row | None] | None:
        """Take over what an operation did to the rows; return the kit before and after it.

        None where it did nothing to them that was not known, or they are not read yet.
        """
        changes = [
            change
            for change in operation.rows
            if change.sku in self.names and change.version > self._version(change.sku)
        ]
        if not changes:
            return None
        before = self.row
        for change in changes:
            self.rows[change.sku] = row_after(self.merchant, self.location, change)
        return (before, self.row) if self.is_read else None

    def copy(self) -> "KitAt":
        """Return it as it is now, for whoever goes back from there."""
        copied = KitAt(self.merchant, self.location, self.sku, self.kit, self.partition)
        copied.rows = dict(self.rows)
        copied.is_read = True
        return copied

    def undo(self, change: RowChange) -> None:
        """Take back a change of a row, the last that is left of it."""
        row = row_before(self.merchant, self.location, change)
        if row is None:
            self.rows.pop(change.sku, None)
        else:
            self.rows[change.sku] = row

    def tell(
        self, operation: Operation, *, sequence: int, at_ms: int, partition: int
    ) -> list[AnyEvent]:
        """Apply an operation of its location and return what it tells of the kit."""
        changed = self.apply(operation)
        if changed is None:
            return []
        return events_of_kit(
            *changed, operation, sequence=sequence, at_ms=at_ms, partition=partition
        )

    def _version(self, sku: str) -> int:
        row = self.rows.get(sku)
        return 0 if row is None else row.version


class FollowedKit:
    """A kit, and the locations where it is followed; `wanted` counts by whom, None: everywhere."""

    def __init__(
        self, merchant: str, sku: str, kit: Kit, wanted: Counter[str | None], partitions: int
    ) -> None:
        """Know no row yet."""
        self._partitions = partitions
        self.merchant = merchant
        self.sku = sku
        self.kit = kit
        self.names = names_of(sku, kit)
        self.wanted = wanted
        self.places: dict[str, KitAt] = {}
        self.everywhere: asyncio.Task[None] | None = None
        """Reads the rows of all locations, or did. A location that comes later had none before."""

    @property
    def kept_rows(self) -> int:
        """How many rows are kept, those that are not there included."""
        return len(self.names) * len(self.places)

    def at(self, location: str) -> KitAt | None:
        """Return it at a location, None where it is not followed there."""
        place = self.places.get(location)
        if place is None and self.everywhere is not None:
            place = self.place(location)
            place.reading, place.is_read = self.everywhere, self.everywhere.done()
        return place

    def place(self, location: str) -> KitAt:
        """Begin to keep it at a location."""
        partition = partition_of(self.merchant, location, self._partitions)
        place = KitAt(self.merchant, location, self.sku, self.kit, partition)
        self.places[location] = place
        return place

    def give_up(self, reading: "asyncio.Task[None] | None") -> None:
        """Forget what was to be read and could not be: the next who asks tries again."""
        for place in list(self.places.values()):
            if place.reading is reading and not place.is_read:
                del self.places[place.location]

    def leave(self, locations: Iterable[str | None]) -> None:
        """Count a follower out, and keep no more than what the others want."""
        for location in locations:
            self.wanted[location] -= 1
            if not self.wanted[location]:
                del self.wanted[location]
        if None in self.wanted:
            return
        self.everywhere = None
        for location in [place for place in self.places if place not in self.wanted]:
            del self.places[location]


class FollowedKits:
    """All kits that are followed in this process; see the module's text."""

    def __init__(
        self,
        inventory: Inventory,
        followers: Callable[[str, str], Collection[Subscription]],
        catch_up: Callable[[Iterable[int]], Awaitable[None]],
    ) -> None:
        """Keep nothing yet.

        `followers` are who follow a merchant's SKU by its name, and `catch_up` waits until the tail
        has given all that is in some partitions.
        """
        self._inventory = inventory
        self._followers = followers
        self._catch_up = catch_up
        self._kits: dict[tuple[str, str], FollowedKit] = {}
        self._by_row: dict[tuple[str, str], dict[FollowedKit, None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """Count the kits."""
        return len(self._kits)

    def __contains__(self, name: tuple[str, str]) -> bool:
        """Say whether a merchant's SKU is a kit that is followed."""
        return name in self._kits

    async def stop(self) -> None:
        """Keep nothing, and end what is being read."""
        self.clear()
        for task in list(self._tasks):
            await end_task(task)

    def clear(self) -> None:
        """Keep nothing."""
        self._kits.clear()
        self._by_row.clear()

    # Followers

    def enter(self, interest: Interest) -> None:
        """Count a new follower of the kits among what it names."""
        for kit in self._named(interest):
            kit.wanted.update(_places(interest))

    def leave(self, interest: Interest) -> None:
        """Count a follower out; a kit that nobody follows is not kept."""
        for kit in self._named(interest):
            kit.leave(_places(interest))
            if not kit.wanted:
                self._drop(kit)

    async def follow(self, subscription: Subscription) -> bool:
        """Have the kits that a subscriber names known as they are now, where it wants them.

        False where its merchant never had any. Where one is defined anew meanwhile, the subscriber
        is reset. Raises StoreUnavailable, LimitExceeded, Overloaded.
        """
        interest = subscription.interest
        if interest.skus is None or not interest.has_rows:
            return False
        merchant = interest.merchant
        subscription.kits_read = None
        revision, found = await self._inventory.kits.read_some(merchant, sorted(interest.skus))
        subscription.kits_read = revision
        if subscription.kits_told > revision:
            subscription.reset("kit_changed")
        if not revision:
            return False
        # What the tail says of definitions from here on is newer than what was read.
        await self._catch_up({partition_of(merchant, "", self._inventory.partitions)})
        if subscription.reset_because is None:
            for sku, kit in found.items():
                self._add(merchant, sku, kit)
        readings = {
            reading
            for kit in self._named(interest)
            for reading in self._read(kit, interest.locations)
        }
        if readings:
            # Others may wait for the same, so it goes on when this one goes away.
            await asyncio.shield(asyncio.gather(*readings))
        await self._catch_up({place.partition for place in self.places(interest)})
        return True

    def places(self, interest: Interest) -> list[KitAt]:
        """Return the kits that a subscriber names, wherever it wants them and they are known."""
        locations = interest.locations
        return [
            place
            for kit in self._named(interest)
            for location, place in kit.places.items()
            if place.is_read and (locations is None or location in locations)
        ]

    # The tail

    def tell(
        self, operation: Operation, *, sequence: int, at_ms: int, partition: int
    ) -> list[AnyEvent]:
        """Apply an operation, and return what it tells of kits."""
        merchant, by_row = operation.merchant, self._by_row
        kits: dict[FollowedKit, None] = {}
        for change in operation.rows:
            kits |= by_row.get((merchant, change.sku), {})
        events: list[AnyEvent] = []
        for kit in kits:
            place = kit.at(operation.location)
            if place is not None:
                events += place.tell(operation, sequence=sequence, at_ms=at_ms, partition=partition)
        return events

    def redefine(self, operation: Operation) -> None:
        """Take over a change of definitions: who does not know of it yet is to start anew."""
        merchant = operation.merchant
        for sku, text in kits_said(operation):
            followers = self._followers(merchant, sku)
            if not followers:
                continue
            known = self._kits.get((merchant, sku))
            kit = _decode(text) if text else None
            if known is None or known.kit != kit:
                if known is not None:
                    self._drop(known)
                if kit is not None:
                    self._add(merchant, sku, kit)
            revision = operation.detail[1]
            for subscription in followers:
                subscription.kits_told = revision
            _reset(
                one for one in followers if one.kits_read is not None and one.kits_read < revision
            )

    def forget_rows(self, partition: int | None = None) -> None:
        """Have rows read anew, of a partition or all of them; who follows kits there is reset."""
        for kit in list(self._kits.values()):
            places = kit.places.values()
            if (
                partition is None
                or kit.everywhere is not None
                or any(place.partition == partition for place in places)
            ):
                self._drop(kit)
                self._add(kit.merchant, kit.sku, kit.kit)
                _reset(self._followers(kit.merchant, kit.sku))

    # Inside

    def _named(self, interest: Interest) -> list[FollowedKit]:
        kits, merchant = self._kits, interest.merchant
        if not kits or interest.skus is None or not interest.has_rows:
            return []
        names = [(merchant, sku) for sku in interest.skus]
        return [kits[name] for name in names if name in kits]

    def _add(self, merchant: str, sku: str, kit: Kit) -> None:
        if (merchant, sku) in self._kits:
            return
        wanted: Counter[str | None] = Counter()
        for subscription in self._followers(merchant, sku):
            if subscription.interest.has_rows:
                wanted.update(_places(subscription.interest))
        if not wanted:
            return
        added = FollowedKit(merchant, sku, kit, wanted, self._inventory.partitions)
        self._kits[merchant, sku] = added
        for name in added.names:
            self._by_row.setdefault((merchant, name), {})[added] = None

    def _drop(self, kit: FollowedKit) -> None:
        del self._kits[kit.merchant, kit.sku]
        for name in kit.names:
            kits = self._by_row[kit.merchant, name]
            del kits[kit]
            if not kits:
                del self._by_row[kit.merchant, name]

    def _read(self, kit: FollowedKit, locations: frozenset[str] | None) -> set[asyncio.Task[None]]:
        """Return what a kit's rows are being read by, and begin what is missing."""
        if locations is None:
            if kit.everywhere is None:
                kit.everywhere = self._begin(self._read_everywhere(kit))
            return set() if kit.everywhere.done() else {kit.everywhere}
        missing = [location for location in locations if kit.at(location) is None]
        if missing:
            self._check_room(len(missing) * len(kit.names))
            places = [kit.place(location) for location in missing]
            reading = self._begin(self._read_places(kit, places))
            for place in places:
                place.reading = reading
        wanted = [kit.places[location] for location in locations]
        return {one.reading for one in wanted if one.reading is not None and not one.is_read}

    async def _read_everywhere(self, kit: FollowedKit) -> None:
        reading = asyncio.current_task()
        try:
            locations = await locations_of(self._inventory, kit.merchant)
            check_rows(len(locations) * len(kit.names))
            self._check_room(len(locations) * len(kit.names) - kit.kept_rows)
            places = [kit.places.get(location) or kit.place(location) for location in locations]
            unread = [place for place in places if not place.is_read]
            for place in unread:
                place.reading = reading
            await self._read_places(kit, unread)
        except BaseException:
            if kit.everywhere is reading:
                kit.everywhere = None
            kit.give_up(reading)
            raise
        for place in kit.places.values():
            if place.reading is reading:
                # Those that came since the listing had no row then, and were told of all.
                place.is_read = True

    async def _read_places(self, kit: FollowedKit, places: Sequence[KitAt]) -> None:
        reading = asyncio.current_task()
        try:
            for start in range(0, len(places), READ_AT_ONCE):
                some = places[start : start + READ_AT_ONCE]
                found = await asyncio.gather(
                    *(
                        self._inventory.rows_together(kit.merchant, place.location, kit.names)
                        for place in some
                    )
                )
                for place, rows in zip(some, found, strict=True):
                    place.take_in(rows.values())
        except BaseException:
            kit.give_up(reading)
            raise

    def _check_room(self, rows: int) -> None:
        if rows + sum(kit.kept_rows for kit in self._kits.values()) > MAX_KEPT_ROWS:
            SHEDS.add(("kits",))
            raise Overloaded(retry_after_ms=RETRY_AFTER_MS)

    def _begin(self, reading: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(reading)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Who waits for it gets it raised; where nobody does, the next who asks tries again.
            task.exception()


def names_of(sku: str, kit: Kit) -> tuple[str, ...]:
    """Return the SKUs of the rows that say what there is of a kit: its own and its components'."""
    return (sku, *[one.sku for one in kit.components])


def kits_said(operation: Operation) -> Iterable[tuple[str, str]]:
    """Return the kits that an operation defines, as they are kept; empty where one is none now."""
    if operation.kind is not OperationKind.DEFINE or operation.detail[0] != What.KITS:
        return ()
    return [(sku, text) for sku, text in operation.detail[2]]


def _reset(followers: Iterable[Subscription]) -> None:
    for subscription in followers:
        if subscription.interest.has_rows:
            subscription.reset("kit_changed")


def _places(interest: Interest) -> Iterable[str | None]:
    return (None,) if interest.locations is None else interest.locations
