"""Who listens, to what, and what still has to be told to each.

A reader that keeps up is told everything. Of one that is slow a subscription keeps the latest of
each thing only: the row as it is now, not all that it was in between. Of what tells of units that
came it keeps each. So a slow reader costs a bounded amount of memory and catches up at once, and
one that falls too far behind is cut off and told why.

The *position* that goes with a delivery names a place in all partitions: every event before
`base_ms`, and of the partitions that it lists those up to an entry, too. Whoever comes back with it
gets what follows, without a gap.
"""

import asyncio
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from engine.events import (
    AnyEvent,
    BackorderData,
    EventType,
    LocationData,
    OrderData,
    PromiseData,
    ReservationData,
    ShortfallData,
    StockData,
    SupplyData,
)
from engine.tail import Cursor

MAX_PENDING: Final = 5_000
"""Things that wait for one reader; events are shared, so each costs it some 200 bytes."""

CONFLATE_FROM: Final = 256
"""So many wait for a reader that is slow: from here on a new event takes the place of an older one
of the same thing. Fewer come in one moment to a reader that keeps up."""

MAX_LAG_SECONDS: Final = 60.0
"""How long the first of them may wait: a reader that takes nothing for a minute is gone."""

MAX_LISTED: Final = 64
"""Partitions that a position names; one that would have more repeats some events instead."""

MAX_POSITION_CHARACTERS: Final = 4_000

_POSITION = re.compile(r"(\d{1,15})((?:\.\d{1,4}-\d{1,15}-\d{1,18}){0,300})")

_encode = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode


class CutOff(StrEnum):
    """Why a stream ends; GONE is its reader's own doing."""

    GONE = "gone"
    TOO_MANY_ROWS = "too_many_rows"
    TOO_FAR_BEHIND = "too_far_behind"
    SHUTTING_DOWN = "shutting_down"
    STORE_UNAVAILABLE = "store_unavailable"
    UNAUTHENTICATED = "unauthenticated"


class Place(NamedTuple):
    """The id of an entry in the stream of a partition."""

    at_ms: int
    number: int


class Position(msgspec.Struct, frozen=True):
    """A place in all partitions: before `base_ms`, or just behind the entry that is listed."""

    base_ms: int
    listed: Mapping[int, Place] = {}

    def text(self) -> str:
        """Write it; only `parse` knows how to read it."""
        base_ms = self.base_ms
        if not self.listed:
            return str(base_ms)
        listed = "".join(
            f".{partition}-{place.at_ms - base_ms}-{place.number}"
            for partition, place in self.listed.items()
        )
        return f"{base_ms}{listed}"

    def cursor(self, partition: int) -> Cursor | None:
        """Return where to go on in a partition that is listed."""
        place = self.listed.get(partition)
        return None if place is None else Cursor(f"{place.at_ms}-{place.number}")

    @classmethod
    def parse(cls, text: str) -> "Position | None":
        """Read what `text` wrote; None where it is not that."""
        if len(text) > MAX_POSITION_CHARACTERS:
            return None
        match = _POSITION.fullmatch(text)
        if match is None:
            return None
        base_ms = int(match[1])
        listed = {}
        for part in match[2].split(".")[1:]:
            partition, offset_ms, number = map(int, part.split("-"))
            listed[partition] = Place(base_ms + offset_ms, number)
        return cls(base_ms, listed)


class Interest(msgspec.Struct, frozen=True, kw_only=True):
    """What a subscriber wants to hear of one merchant; None is everything."""

    merchant: str
    locations: frozenset[str] | None = None
    skus: frozenset[str] | None = None
    types: frozenset[EventType] | None = None

    @property
    def has_rows(self) -> bool:
        """True where rows are of interest, and not only reservations."""
        return self.types is None or any(name.startswith("stock.") for name in self.types)

    def wants(self, event: AnyEvent) -> bool:
        """Say whether an event of the merchant is asked for.

        Where SKUs are named, a reservation's event is if one of its lines is; those that do not
        repeat the lines are not.
        """
        if self.types is not None and event.type_name not in self.types:
            return False
        if self.locations is not None and self.locations.isdisjoint(places_of(event)):
            return False
        return self.skus is None or not self.skus.isdisjoint(skus_of(event))


def places_of(event: AnyEvent) -> Iterable[str]:
    """Return the locations that an event is about: an order has parts at many."""
    data = event.data
    if isinstance(data, OrderData):
        return [part.location for part in data.parts]
    return (data.location,)


def skus_of(event: AnyEvent) -> Iterable[str]:
    """Return the SKUs that an event is about, as far as it says."""
    data = event.data
    if isinstance(data, StockData | BackorderData | PromiseData | SupplyData | ShortfallData):
        return (data.sku,)
    if isinstance(data, LocationData):
        return ()
    if isinstance(data, OrderData):
        return [line.sku for part in data.parts for line in part.lines]
    return [line.sku for line in data.lines or ()]


class Told:
    """An event on its way to any number of subscribers, and the entry that it came with."""

    __slots__ = ("_json", "_msgpack", "event", "key", "partition", "place")

    def __init__(self, event: AnyEvent, partition: int, place: Place) -> None:
        """Nothing is encoded before somebody sends it."""
        self.event = event
        self.partition = partition
        self.place = place
        self.key = _key_of(event)
        self._json: bytes | None = None
        self._msgpack: bytes | None = None

    @property
    def json(self) -> bytes:
        """The event as JSON, encoded once for all."""
        if self._json is None:
            self._json = _encode(self.event)
        return self._json

    @property
    def msgpack(self) -> bytes:
        """The event as msgpack, encoded once for all."""
        if self._msgpack is None:
            self._msgpack = _pack(self.event)
        return self._msgpack


def _key_of(event: AnyEvent) -> tuple[str, ...]:
    """Return what an event is the latest of: a row, a crossing of it, a reservation, a place.

    Of what turns to and fro without a version to tell the newer by, both ways are one thing.
    """
    data = event.data
    if isinstance(data, ReservationData):
        return ("reservation", data.reservation)
    if isinstance(data, LocationData):
        return ("location", data.location)
    if isinstance(data, OrderData):
        return ("order", data.order)
    if isinstance(data, PromiseData):
        return ("promise", data.reservation, data.sku)
    if isinstance(data, ShortfallData):
        return ("shortfall", data.location, data.sku)
    if isinstance(data, BackorderData | SupplyData):
        # A later one does not count the units of those before it.
        return ("units", event.id)
    return (event.type_name, data.location, data.sku)


class _Slot:
    """What waits of one key: the latest, and the place and time of the first of it."""

    __slots__ = ("first", "since", "told")

    def __init__(self, told: Told, since: float) -> None:
        self.told = told
        self.first = told.place
        self.since = since


class Delivery(NamedTuple):
    """An event to send, and where its reader stands behind it."""

    told: Told
    position: str


class Subscription:
    """What one reader still has to be told; see the module's text."""

    def __init__(self, interest: Interest, edge: Position, *, most_pending: int = MAX_PENDING):
        """Hear from `edge` on, where the tail stands now."""
        self.interest = interest
        self._most_pending = most_pending
        self._pending: dict[int, _Slot] = {}
        self._latest: dict[tuple[str, ...], int] = {}
        """Where in it the latest of each key waits."""
        self._offered = 0
        self._base_ms = edge.base_ms
        self._listed = dict(edge.listed)
        self._floor: dict[tuple[str, str], int] = {}
        self._floor_until = 0.0
        self.conflated = 0
        self.cut_off: CutOff | None = None
        self.reset_because: str | None = None
        """Set where what the reader knows may be wrong, and it must start anew."""
        self.kits_read: int | None = None
        """The revision of its merchant's kits that it was told by; None until that is known."""
        self.kits_told = 0
        """That of the last change of what it names, as the tail has told."""
        self._awake = asyncio.Event()

    def __len__(self) -> int:
        """Count what waits."""
        return len(self._pending)

    # From the tail

    def offer(self, told: Told) -> None:
        """Keep an event until the reader takes it, in place of an older one of the same thing."""
        if self.cut_off is not None:
            return
        if self._floor and self._is_below_floor(told.event):
            return
        now = time.monotonic()
        if self._pending:
            first = next(iter(self._pending.values()))
            if now - first.since > MAX_LAG_SECONDS:
                self.cut(CutOff.TOO_FAR_BEHIND)
                return
        if not self._add(told, now, CONFLATE_FROM):
            self.cut(CutOff.TOO_FAR_BEHIND)

    def _add(self, told: Told, now: float, conflate_from: int) -> bool:
        """Keep an event; False where too many wait already."""
        waiting = len(self._pending)
        if waiting >= min(conflate_from, self._most_pending):
            latest = self._latest.get(told.key)
            if latest is not None:
                self._pending[latest].told = told
                self.conflated += 1
                return True
        if waiting >= self._most_pending:
            return False
        self._offered += 1
        self._pending[self._offered] = _Slot(told, now)
        self._latest[told.key] = self._offered
        self._awake.set()
        return True

    def _clear(self) -> None:
        self._pending.clear()
        self._latest.clear()

    def cut(self, reason: CutOff) -> None:
        """End it; the first reason stays."""
        if self.cut_off is None:
            self.cut_off = reason
            self._clear()
            self._awake.set()

    def reset(self, reason: str) -> None:
        """Have the reader start anew: what it was told may not be so any more."""
        self.reset_because = reason
        self._clear()
        self._awake.set()

    def go_on_behind(self, told: Iterable[Told]) -> bool:
        """Put events of before this subscription ahead of what waits; False where it is too much.

        They come in the order of each partition's ledger.
        """
        waiting = [slot.told for slot in self._pending.values()]
        self._clear()
        now = time.monotonic()
        # All of them as long as they may wait, since they are read in one go.
        return all(self._add(one, now, self._most_pending) for one in (*told, *waiting))

    def start_over(self, edge: Position) -> None:
        """Hear from `edge` on, as if it was made only now; nothing was told yet."""
        self._clear()
        self.stand_at(edge)

    def stand_at(self, position: Position) -> None:
        """Count positions from where a reader that came back stood."""
        self._base_ms = position.base_ms
        self._listed = dict(position.listed)

    def start_above(self, versions: dict[tuple[str, str], int], *, until: float) -> None:
        """Leave out what a snapshot of rows, by (location, SKU), had in it already.

        `until` is when the snapshot was read (time.monotonic()): once the tail has come so far,
        nothing that it brings can be as old.
        """
        self._floor = versions
        self._floor_until = until
        for number, slot in list(self._pending.items()):
            if self._is_below_floor(slot.told.event):
                self._drop(number, slot)

    def tail_is_at(self, at: float) -> bool:
        """Take it that the tail gave everything up to a time; True where that is enough."""
        if at <= self._floor_until:
            return False
        self._floor = {}
        return True

    def _is_below_floor(self, event: AnyEvent) -> bool:
        data = event.data
        if not isinstance(data, StockData):
            return False
        return data.version <= self._floor.get((data.location, data.sku), 0)

    def _drop(self, number: int, slot: _Slot) -> None:
        del self._pending[number]
        if self._latest.get(slot.told.key) == number:
            del self._latest[slot.told.key]

    # To the reader

    def wake_by(self, event: asyncio.Event) -> None:
        """Set an event of the reader's own whenever there is something to do, from now on."""
        event.set()
        self._awake = event

    async def wait(self, seconds: float) -> bool:
        """Wait until there is something to do; False where the time was up first."""
        # Not by the event alone: what it was set for may have been left out since (`start_above`),
        # and a reader that is woken for nothing again and again would keep everyone else waiting.
        if self._pending or self.cut_off is not None or self.reset_because is not None:
            return True
        self._awake.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._awake.wait()
        except TimeoutError:
            return False
        return True

    def take(self, most: int, edge: Position) -> Iterator[Delivery]:
        """Take up to so many events; `edge` is where the tail stands now."""
        for _ in range(min(most, len(self._pending))):
            number, slot = next(iter(self._pending.items()))
            self._drop(number, slot)
            told = slot.told
            # Behind the first of what this stands for: what waits still may be of just after that.
            following = next(iter(self._pending.values()), None)
            if following is not None and following.first == slot.first:
                # Of the same entry, most likely: the reader is behind it with the last of it only.
                pass
            elif slot.first.at_ms >= self._base_ms:
                self._listed[told.partition] = slot.first
                if len(self._listed) > MAX_LISTED:
                    del self._listed[next(iter(self._listed))]
            yield Delivery(told, self.position(edge))
        if not self._pending and self.cut_off is None and self.reset_because is None:
            self._awake.clear()

    def position(self, edge: Position) -> str:
        """Say where the reader stands that took everything so far.

        One that is to start anew stands before what it has to be told of.
        """
        if not self._pending and self.reset_because is None:
            self._base_ms = edge.base_ms
            self._listed = dict(edge.listed)
        return Position(self._base_ms, self._listed).text()
