"""The one tail of a gateway process, and everyone who listens to it: the view and the subscribers.

It is followed only while somebody reads through the view or subscribes: a gateway that only writes
pays nothing for it. What the tail gives is applied to the view first and then offered to the
subscribers that it concerns, found by merchant and SKU, so the cost of an event does not depend on
how many others listen.
"""

import asyncio
import time
from collections.abc import Collection, Iterable
from typing import Final, TypeVar

import msgspec
import structlog

from engine.event_making import events_of
from engine.events import AnyEvent, StockData
from engine.inventory import Inventory
from engine.ledger import Operation, OperationKind
from engine.metrics import SHEDS
from engine.outcomes import Overloaded, StoreUnavailable
from engine.store import StoreSettings
from engine.tail import Batch, Cursor, Fork, Gap, Tail, TailEntry, current_ends, stream_position
from engine.tasks import end_task
from gateway.followed_kits import FollowedKits
from gateway.subscriptions import (
    MAX_LISTED,
    CutOff,
    Interest,
    Place,
    Position,
    Subscription,
    Told,
    skus_of,
)
from gateway.view import UNTOLD, View

BLOCK_MS: Final = 100
"""How long a read of the tail waits. What it has seen is proven current that often while nothing
happens, so an answer of the view is that old at most; ten idle reads a second cost nothing."""

BLOCK_IN_CLUSTER_MS: Final = 400
"""The same where each partition has a read of its own, 256 of them: less often, and still often
enough for an answer that may be a second old."""

IDLE_SECONDS: Final = 30.0
"""How long the tail is followed after the last read through the view, where nobody subscribes."""

READY_SECONDS: Final = 3.0
"""How long a new subscriber waits for the tail."""

FIRST_BACKOFF_SECONDS: Final = 0.1
MAX_BACKOFF_SECONDS: Final = 2.0

GOODBYE_SECONDS: Final = 2.0
"""What subscribers get to take their last message, before their connections are closed."""

GOODBYE_CHECK_SECONDS: Final = 0.01

CLOCK_MARGIN_MS: Final = 5_000
"""How far the clocks of a cluster's nodes may be apart. A position there is so much before the
newest entry, since other nodes may still write entries with earlier ids."""

MAX_STREAMS: Final = 20_000
"""Subscriptions of one process: at some 20 kB each they take what a process should."""

MAX_STREAMS_OF_A_KEY: Final = 2_000
"""So that one careless caller does not take them all."""

Name = TypeVar("Name")

log = structlog.get_logger("gateway.fanout")


class Fanout:
    """Follows the tail while anybody listens; see the module's text."""

    def __init__(self, inventory: Inventory, settings: StoreSettings) -> None:
        """Follow nothing yet."""
        self._inventory = inventory
        self._settings = settings
        self.view = View(inventory.partitions)
        self._following: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._wanted = False
        self._closing = False
        self.positions: dict[int, Cursor] = {}
        """How far each partition has been given out."""
        self.edge = Position(0)
        """The same as one position, for all subscribers."""
        self._newest_ms = 0
        self._whole: dict[str, dict[Subscription, None]] = {}
        self._by_sku: dict[tuple[str, str], dict[Subscription, None]] = {}
        self._all: dict[Subscription, str] = {}
        self._of_key: dict[str, int] = {}
        self.kits = FollowedKits(inventory, self._followers, self.catch_up)
        self._awaited: dict[asyncio.Future[None], dict[int, int]] = {}
        """Who waits until the tail has come to an operation of these partitions."""
        self._settling: set[Subscription] = set()
        """Those that were given a snapshot which the tail has not come up to yet."""

    @property
    def subscribers(self) -> int:
        """How many listen."""
        return len(self._all)

    def wake(self) -> None:
        """Follow the tail from now on, where it is not followed already."""
        self._wanted = True
        if self._following is None and not self._closing:
            self._following = asyncio.get_running_loop().create_task(self._follow())

    async def ready(self) -> None:
        """Wait until the tail is followed. Raises StoreUnavailable."""
        self.wake()
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._ready.wait()
        except TimeoutError as error:
            raise StoreUnavailable() from error

    async def stop(self) -> None:
        """Cut everyone off and stop following."""
        await self.say_goodbye()
        if self._following is not None:
            await end_task(self._following)
            self._following = None
        await self.kits.stop()

    async def catch_up(self, partitions: Iterable[int]) -> None:
        """Wait until the tail has given all that is in these partitions now.

        Raises StoreUnavailable.
        """
        keys, numbers = self._inventory.keys, sorted(partitions)
        if not numbers:
            return
        counts = await self._inventory.store.read(
            [("HGET", keys[number].meta, "sequence") for number in numbers]
        )
        wanted = {number: int(count or 0) for number, count in zip(numbers, counts, strict=True)}
        if self._has_come_to(wanted):
            return
        coming = asyncio.get_running_loop().create_future()
        self._awaited[coming] = wanted
        try:
            async with asyncio.timeout(READY_SECONDS):
                await coming
        except TimeoutError as error:
            raise StoreUnavailable() from error
        finally:
            del self._awaited[coming]

    def _has_come_to(self, wanted: dict[int, int]) -> bool:
        positions = self.positions
        return all((positions[number].sequence or 0) >= count for number, count in wanted.items())

    async def say_goodbye(self) -> None:
        """Tell every subscriber that this process ends, and give them a moment to hear it.

        New ones are refused.
        """
        self._closing = True
        for subscription in list(self._all):
            subscription.cut(CutOff.SHUTTING_DOWN)
        loop = asyncio.get_running_loop()
        until = loop.time() + GOODBYE_SECONDS
        while self._all and loop.time() < until:  # noqa: ASYNC110 - thousands, and only at the end
            await asyncio.sleep(GOODBYE_CHECK_SECONDS)

    # Subscribers

    def subscribe(self, interest: Interest, *, key_id: str) -> Subscription:
        """Let somebody hear whatever comes from now on. Raises Overloaded, StoreUnavailable.

        The tail must be `ready`. `key_id` is whose streams are counted together.
        """
        if self._closing:
            raise StoreUnavailable("this gateway is shutting down")
        if not self._ready.is_set():
            raise StoreUnavailable()
        if len(self._all) >= MAX_STREAMS or self._of_key.get(key_id, 0) >= MAX_STREAMS_OF_A_KEY:
            SHEDS.add(("streams",))
            raise Overloaded(retry_after_ms=5_000)
        subscription = Subscription(interest, self.edge)
        self._all[subscription] = key_id
        self._of_key[key_id] = self._of_key.get(key_id, 0) + 1
        if interest.skus is None:
            self._whole.setdefault(interest.merchant, {})[subscription] = None
        else:
            for sku in interest.skus:
                self._by_sku.setdefault((interest.merchant, sku), {})[subscription] = None
            self.kits.enter(interest)
        return subscription

    def start_above(
        self, subscription: Subscription, versions: dict[tuple[str, str], int], *, read_at: float
    ) -> None:
        """Let it hear nothing that a snapshot has already, read by `read_at` (monotonic)."""
        subscription.start_above(versions, until=read_at)
        self._settling.add(subscription)

    def unsubscribe(self, subscription: Subscription) -> None:
        """Let it hear no more."""
        self._settling.discard(subscription)
        key_id = self._all.pop(subscription, None)
        if key_id is None:
            return
        self._of_key[key_id] -= 1
        if not self._of_key[key_id]:
            del self._of_key[key_id]
        interest = subscription.interest
        if interest.skus is None:
            _discard(self._whole, interest.merchant, subscription)
        else:
            for sku in interest.skus:
                _discard(self._by_sku, (interest.merchant, sku), subscription)
            self.kits.leave(interest)

    def _followers(self, merchant: str, sku: str) -> Collection[Subscription]:
        return self._by_sku.get((merchant, sku), {})

    # The tail

    async def _follow(self) -> None:
        """Follow until nobody listens any more, from a new start after whatever went wrong."""
        backoff_seconds = FIRST_BACKOFF_SECONDS
        try:
            while True:
                self._wanted = False
                try:
                    await self._follow_once()
                except StoreUnavailable:
                    await asyncio.sleep(backoff_seconds)
                    backoff_seconds = min(MAX_BACKOFF_SECONDS, 2 * backoff_seconds)
                    continue
                backoff_seconds = FIRST_BACKOFF_SECONDS
                if not self._wanted:
                    return
        except Exception:
            # A bug here must not leave subscribers waiting for good, nor the view getting old.
            log.exception("the tail of the ledger ended")
            for subscription in list(self._all):
                subscription.cut(CutOff.STORE_UNAVAILABLE)
        finally:
            self._end()
            self._following = None

    async def _follow_once(self) -> None:
        keys = self._inventory.keys
        ends = await current_ends(self._inventory.store, keys)
        block_ms = BLOCK_IN_CLUSTER_MS if self._settings.cluster else BLOCK_MS
        async with Tail(self._settings, keys, ends, block_ms=block_ms) as tail:
            self._start_at(ends)
            async for batch in tail:
                self._take(batch)
                if not self._all and time.monotonic() - self.view.used_at > IDLE_SECONDS:
                    # At once, since whoever comes while the connection closes must start it anew.
                    self._end()
                    return

    def _end(self) -> None:
        self._ready.clear()
        self.view.close()
        self.kits.clear()

    def _start_at(self, ends: dict[int, Cursor]) -> None:
        self.positions = dict(ends)
        self._newest_ms = max(stream_position(end.stream_id)[0] for end in ends.values())
        self._move_edge(whole=True)
        self.view.open()
        self.view.used_at = time.monotonic()
        self._ready.set()

    def _take(self, batch: Batch) -> None:
        for signal in batch.signals:
            if isinstance(signal, TailEntry):
                self._take_entry(signal)
            elif isinstance(signal, Gap | Fork):
                kind = type(signal).__name__.lower()
                log.warning("the ledger is torn", kind=kind, partition=signal.partition)
                self.view.drop_partition(signal.partition)
                self._reset_all(kind)
            else:
                # The store may be another by now, and may know less than this one did.
                for partition in signal.partitions:
                    self.view.drop_partition(partition)
                self.kits.read_again(signal.partitions)
        if batch.signals:
            self._move_edge(whole=len(batch.caught_up) == len(self.positions))
        self.view.prove(batch.caught_up, batch.sent_at)
        if self._awaited:
            for coming, wanted in self._awaited.items():
                if not coming.done() and self._has_come_to(wanted):
                    coming.set_result(None)
        if self._settling:
            proven_at = self.view.proven_at
            self._settling = {one for one in self._settling if not one.tail_is_at(proven_at)}

    def _take_entry(self, entry: TailEntry) -> None:
        self.positions[entry.partition] = entry.cursor
        place = Place(*stream_position(entry.stream_id))
        self._newest_ms = max(self._newest_ms, place.at_ms)
        if self.view.is_idle and not self._all:
            return
        try:
            operations = entry.operations
        except msgspec.DecodeError:
            # A newer version of the product writes what this one cannot read.
            self.view.drop_partition(entry.partition)
            self._reset_all("unreadable")
            return
        for i, operation in enumerate(operations):
            self.view.apply(entry.partition, operation)
            if self._all and self._has_listeners(operation):
                self._tell(
                    events_of(
                        operation,
                        sequence=entry.sequence + i,
                        at_ms=entry.at_ms,
                        partition=entry.partition,
                    ),
                    entry.partition,
                    place,
                )
            if self.kits or operation.kind is OperationKind.DEFINE:
                self._take_kits(operation, entry, entry.sequence + i, place)

    def _take_kits(
        self, operation: Operation, entry: TailEntry, sequence: int, place: Place
    ) -> None:
        """Tell of the kits that an operation changed, or have their followers start anew."""
        if operation.kind is OperationKind.DEFINE:
            self.kits.redefine(operation)
        elif operation.kind in UNTOLD:
            self.kits.forget(operation, entry.partition)
        else:
            events = self.kits.tell(
                operation, sequence=sequence, at_ms=entry.at_ms, partition=entry.partition
            )
            self._tell(events, entry.partition, place)

    def _has_listeners(self, operation: Operation) -> bool:
        merchant = operation.merchant
        if merchant in self._whole:
            return True
        by_sku = self._by_sku
        return any((merchant, change.sku) in by_sku for change in operation.rows)

    def _tell(self, events: Iterable[AnyEvent], partition: int, place: Place) -> None:
        for event in events:
            told: Told | None = None
            for subscription in self._concerned(event):
                if subscription.interest.wants(event):
                    if told is None:
                        told = Told(event, partition, place)
                    subscription.offer(told)

    def _concerned(self, event: AnyEvent) -> Iterable[Subscription]:
        data = event.data
        merchant = data.merchant
        whole = self._whole.get(merchant, {})
        if self.kits and isinstance(data, StockData) and (merchant, data.sku) in self.kits:
            # Who names a kit hears of the kit, and who hears of all rows of the row of its own.
            return self._followers(merchant, data.sku) if data.kit is True else whole
        concerned = dict(whole)
        for sku in skus_of(event):
            concerned.update(self._by_sku.get((merchant, sku), {}))
        return concerned

    def _reset_all(self, reason: str) -> None:
        self.kits.forget_rows()
        for subscription in self._all:
            subscription.reset(reason)

    def _move_edge(self, *, whole: bool) -> None:
        """Say where the tail stands now, as a position that a subscriber may come back with."""
        places = {
            partition: Place(*stream_position(cursor.stream_id))
            for partition, cursor in self.positions.items()
        }
        base_ms = self._newest_ms
        if self._settings.cluster:
            base_ms -= CLOCK_MARGIN_MS
        elif not whole:
            # Some partitions have more, of after what they gave last.
            base_ms = min(base_ms, self.edge.base_ms)
        base_ms = max(base_ms, self.edge.base_ms)
        # A ledger without an entry has nothing to be behind of.
        late = [(p, at) for p, at in places.items() if at.at_ms >= base_ms and at.at_ms > 0]
        if len(late) > MAX_LISTED:
            # Of those that are left out a listener that comes back hears some again.
            late = sorted(late, key=lambda one: one[1])[-MAX_LISTED:]
        self.edge = Position(base_ms, dict(late))


def _discard(
    index: dict[Name, dict[Subscription, None]], name: Name, subscription: Subscription
) -> None:
    found = index.get(name)
    if found is not None:
        found.pop(subscription, None)
        if not found:
            del index[name]
