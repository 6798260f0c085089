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
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from itertools import islice
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

MAX_KITS_OF_A_ROW: Final = 2_000
"""Kits that are followed with one component: an operation on it looks at each of them."""

READ_AT_ONCE: Final = 64
"""Locations of a kit that are read at a time."""

MAX_READS: Final = 4
"""Kits that so many locations are read of at once; the others wait."""

RETRY_AFTER_MS: Final = 5_000

_REPAIRS_OF_NO_ROW: Final = frozenset(
    ("reservation", "index", "queue", "count", "claims", "seen", "source", "set_aside")
)
"""What a repair may be of that changes no row, nor where there are any (`lua/repair.lua`)."""

_decode = msgspec.json.Decoder(Kit).decode


class KitAt:
    """A kit at one location: its own row and its components', by SKU, those that there are."""

    __slots__ = (
        "is_read",
        "is_settled",
        "kit",
        "location",
        "merchant",
        "names",
        "partition",
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
        self.is_settled = False
        """Whether the tail has come to what was read: nothing is told of it before."""

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
        self.unread: dict[str, KitAt] = {}
        """Those of them that are to be read."""
        self.reading: asyncio.Task[None] | None = None
        """Reads them, as long as there are any."""
        self.is_listed = False
        """Where it is wanted everywhere: all locations are among its places. One that comes later
        had no row before."""
        self.era = 0
        """Another one where a listing of locations that was begun before counts no more."""

    @property
    def kept_rows(self) -> int:
        """How many rows are kept, those that are not there included."""
        return len(self.names) * len(self.places)

    def at(self, location: str) -> KitAt | None:
        """Return it at a location, None where it is not followed there."""
        place = self.places.get(location)
        if place is None and None in self.wanted:
            place = self.place(location)
            if self.is_listed:
                place.is_read = place.is_settled = True
                del self.unread[location]
        return place

    def place(self, location: str) -> KitAt:
        """Begin to keep it at a location, or anew: its rows there are to be read."""
        partition = partition_of(self.merchant, location, self._partitions)
        place = KitAt(self.merchant, location, self.sku, self.kit, partition)
        self.places[location] = self.unread[location] = place
        return place

    def take_in(self, place: KitAt, rows: Iterable[Row]) -> None:
        """Take over the rows of one of its places as they were read."""
        place.take_in(rows)
        if self.unread.get(place.location) is place:
            del self.unread[place.location]

    def wants(self, location: str) -> bool:
        """Say whether anybody follows it at a location."""
        return location in self.wanted or None in self.wanted

    def kept(self, locations: Collection[str] | None) -> Collection[KitAt]:
        """Return its places among some locations, None: all."""
        if locations is None:
            return self.places.values()
        places = self.places
        return [places[location] for location in locations if location in places]

    def is_known(self, locations: Collection[str] | None) -> bool:
        """Say whether all that is wanted of it at some locations can be told."""
        if locations is None:
            has_all = self.is_listed or None not in self.wanted
        else:
            has_all = all(one in self.places or one not in self.wanted for one in locations)
        return has_all and all(place.is_settled for place in self.kept(locations))

    def forget(self, partition: int | None) -> bool:
        """Have its rows read anew, of a partition or all; False where it has none there."""
        found = [
            location
            for location, place in self.places.items()
            if partition in (None, place.partition)
        ]
        for location in found:
            self.place(location)
        if None in self.wanted:
            self._unlist()
            return True
        return bool(found)

    def leave(self, locations: Iterable[str | None]) -> None:
        """Count a follower out, and keep no more than what the others want."""
        for location in locations:
            self.wanted[location] -= 1
            if not self.wanted[location]:
                del self.wanted[location]
        if None in self.wanted:
            return
        self._unlist()
        for location in [place for place in self.places if place not in self.wanted]:
            del self.places[location]
            self.unread.pop(location, None)

    def end(self) -> None:
        """Keep nothing, and read no more."""
        self.places.clear()
        self.unread.clear()
        if self.reading is not None:
            self.reading.cancel()

    def _unlist(self) -> None:
        self.is_listed = False
        self.era += 1


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
        self._turns = asyncio.Semaphore(MAX_READS)

    def __len__(self) -> int:
        """Count the kits."""
        return len(self._kits)

    def __contains__(self, name: tuple[str, str]) -> bool:
        """Say whether a merchant's SKU is a kit that is followed."""
        return name in self._kits

    @property
    def kept_rows(self) -> int:
        """How many rows are kept or to be read, those that are not there included."""
        return sum(kit.kept_rows for kit in self._kits.values())

    @property
    def readings(self) -> int:
        """How many kits are being read."""
        return len(self._tasks)

    async def stop(self) -> None:
        """Keep nothing, and end what is being read."""
        self.clear()
        for task in list(self._tasks):
            await end_task(task)

    def clear(self) -> None:
        """Keep nothing."""
        for kit in self._kits.values():
            kit.end()
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
        while True:
            await self._place(interest)
            await self._read(interest)
            places = self.places(interest)
            await self._catch_up({place.partition for place in places})
            for place in places:
                place.is_settled = True
            # Another round where some of it was forgotten meanwhile.
            if subscription.reset_because is not None or all(
                kit.is_known(interest.locations) for kit in self._named(interest)
            ):
                return True

    def places(self, interest: Interest) -> list[KitAt]:
        """Return the kits that a subscriber names, wherever it wants them and they are known."""
        return [
            place
            for kit in self._named(interest)
            for place in kit.kept(interest.locations)
            if place.is_read
        ]

    # The tail

    def tell(
        self, operation: Operation, *, sequence: int, at_ms: int, partition: int
    ) -> list[AnyEvent]:
        """Apply an operation, and return what it tells of kits."""
        events: list[AnyEvent] = []
        for kit in self._made_of(operation.merchant, [change.sku for change in operation.rows]):
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
                    # Where there is no room for it, its followers are told when they start anew.
                    with suppress(Overloaded):
                        self._add(merchant, sku, kit)
            revision = operation.detail[1]
            for subscription in followers:
                subscription.kits_told = revision
            _reset(
                one for one in followers if one.kits_read is not None and one.kits_read < revision
            )

    def forget(self, operation: Operation, partition: int) -> None:
        """Have rows read anew that a repair or a rebuild may have changed without telling how."""
        skus = rows_unsaid(operation)
        if skus is None:
            self.forget_rows(partition, merchant=operation.merchant)
            return
        merchant, location = operation.merchant, operation.location
        for kit in self._made_of(merchant, skus):
            if kit.at(location) is not None:
                kit.place(location)
                _reset(self._followers(merchant, kit.sku), location)

    def forget_rows(self, partition: int | None = None, *, merchant: str = "") -> None:
        """Have rows read anew, of a partition or all of them; who follows kits there is reset.

        Only those of a merchant, where one is named.
        """
        for kit in self._kits.values():
            if merchant in ("", kit.merchant) and kit.forget(partition):
                _reset(self._followers(kit.merchant, kit.sku))

    def read_again(self, partitions: Collection[int]) -> None:
        """Have rows read anew that the tail has not come to: the store may have lost them since.

        Nobody was told of them yet.
        """
        for kit in self._kits.values():
            for location, place in list(kit.places.items()):
                if not place.is_settled and place.partition in partitions:
                    kit.place(location)

    # Inside

    def _made_of(self, merchant: str, skus: Iterable[str]) -> Collection[FollowedKit]:
        kits: dict[FollowedKit, None] = {}
        for sku in skus:
            kits |= self._by_row.get((merchant, sku), {})
        return kits

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
        for name in names_of(sku, kit):
            if len(self._by_row.get((merchant, name), ())) >= MAX_KITS_OF_A_ROW:
                raise _overloaded()
        added = FollowedKit(merchant, sku, kit, wanted, self._inventory.partitions)
        self._kits[merchant, sku] = added
        for name in added.names:
            self._by_row.setdefault((merchant, name), {})[added] = None

    def _drop(self, kit: FollowedKit) -> None:
        del self._kits[kit.merchant, kit.sku]
        kit.end()
        for name in kit.names:
            kits = self._by_row[kit.merchant, name]
            del kits[kit]
            if not kits:
                del self._by_row[kit.merchant, name]

    async def _place(self, interest: Interest) -> None:
        """Begin to keep the kits that a subscriber names where it wants them, all or none."""
        kits, wanted = self._named(interest), interest.locations
        if wanted is None:
            eras = {kit: kit.era for kit in kits if None in kit.wanted and not kit.is_listed}
            if not eras:
                return
            locations = await locations_of(self._inventory, interest.merchant)
            # What the tail told of other locations since counts as long as each was wanted.
            kits = [kit for kit in self._named(interest) if kit.era == eras.get(kit)]
            for kit in kits:
                check_rows(len(locations) * len(kit.names))
        else:
            locations = sorted(wanted)
        missing = {}
        room = MAX_KEPT_ROWS - self.kept_rows
        for kit in kits:
            missing[kit] = [one for one in locations if one not in kit.places and kit.wants(one)]
            room -= len(kit.names) * len(missing[kit])
            # The tail makes places of one that is wanted everywhere without a look at this.
            if room < 0 and (wanted is None or missing[kit]):
                raise _overloaded()
        for kit, places in missing.items():
            for location in places:
                if kit.at(location) is None:
                    kit.place(location)
            if wanted is None:
                kit.is_listed = True

    async def _read(self, interest: Interest) -> None:
        """Wait until the rows of the kits that a subscriber names are read, or were dropped."""
        readings = {
            self._reading(kit)
            for kit in self._named(interest)
            if not all(place.is_read for place in kit.kept(interest.locations))
        }
        if readings:
            # Others may wait for the same, so they go on when this one goes away.
            done, _ = await asyncio.wait(readings, return_when=asyncio.FIRST_EXCEPTION)
            for reading in done:
                if not reading.cancelled():
                    reading.result()

    def _reading(self, kit: FollowedKit) -> asyncio.Task[None]:
        """Return what reads a kit's rows; there is one at most, and it ends with the kit."""
        if kit.reading is None or kit.reading.done():
            kit.reading = asyncio.get_running_loop().create_task(self._read_rows(kit))
            self._tasks.add(kit.reading)
            kit.reading.add_done_callback(self._end)
        return kit.reading

    async def _read_rows(self, kit: FollowedKit) -> None:
        while kit.unread:
            async with self._turns:
                # Those that are wanted still, now that it is this one's turn.
                places = list(islice(kit.unread.values(), READ_AT_ONCE))
                found = await asyncio.gather(
                    *(
                        self._inventory.rows_together(kit.merchant, place.location, kit.names)
                        for place in places
                    )
                )
            for place, rows in zip(places, found, strict=True):
                kit.take_in(place, rows.values())

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


def rows_unsaid(operation: Operation) -> Sequence[str] | None:
    """Return the SKUs of the rows that a repair may have changed; None: of all of its partition."""
    if operation.kind is OperationKind.REPAIR:
        if operation.changes:
            return [change.sku for change in operation.rows]
        if operation.detail[0] in _REPAIRS_OF_NO_ROW:
            return ()
    return None


def _overloaded() -> Overloaded:
    SHEDS.add(("kits",))
    return Overloaded(retry_after_ms=RETRY_AFTER_MS)


def _reset(followers: Iterable[Subscription], location: str | None = None) -> None:
    """Have those start anew that follow rows, of a location or any."""
    for subscription in followers:
        interest = subscription.interest
        if interest.has_rows and (
            location is None or interest.locations is None or location in interest.locations
        ):
            subscription.reset("kit_changed")


def _places(interest: Interest) -> Iterable[str | None]:
    return (None,) if interest.locations is None else interest.locations
