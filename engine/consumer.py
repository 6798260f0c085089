"""For programs that follow the ledger: where each stands is kept in the store, by its name.

A consumer hands every change to a handler, in the order of each partition's ledger, and remembers
how far it is only after the handler is done: a change comes at least once, and again where the
process died in between. Whatever it keeps should therefore be written only where a row's `version`
is newer. Where changes are missing (the ledger was trimmed while the consumer was away, a failover
lost some) the handler is given the rows themselves, read anew, and goes on from there.

Of the processes that consume under one name, one works at a time and the others stand by.
"""

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import structlog

from engine.event_making import events_of
from engine.events import AnyEvent
from engine.inventory import Inventory
from engine.keys import PartitionKeys, parse_location_member
from engine.leases import LEASE_TTL_MS, Lease, new_owner
from engine.ledger import Operation, row_after
from engine.limits import MAX_PAGE
from engine.model import Row
from engine.outcomes import HoldfastError, InvalidCommand, LimitExceeded
from engine.scripts import script
from engine.store import Store, StoreSettings, pairs
from engine.tail import Batch as TailBatch
from engine.tail import Cursor, Fork, Gap, Tail, TailEntry, current_ends, stream_position
from engine.tasks import end_task

MAX_READERS: Final = 100
"""Of a partition: each holds the ledger back until it has read it."""

ADVANCE_SECONDS: Final = 0.2
"""Between two notes of how far a consumer is, so that a busy ledger does not make it write as
often as everybody else together. What was not noted when it dies comes again."""

PACE_MS: Final = 20
"""Between two reads that found something. Nobody looks at what a consumer does as closely as at a
stream, and a read for every few entries takes processor time from those who write them."""

STANDBY_SECONDS: Final = 2.0
FIRST_BACKOFF_SECONDS: Final = 0.1
MAX_BACKOFF_SECONDS: Final = 5.0

LISTED_LOCATIONS: Final = 500
"""Locations of a partition that are listed in one read."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,49}")

log = structlog.get_logger("holdfast.consumer")


class Start(StrEnum):
    """Where a consumer begins that was never there: with the rows as they are, or with what comes.

    With LATEST the handler is not given the rows first.
    """

    ROWS = "rows"
    LATEST = "latest"


class Reason(StrEnum):
    """Why a handler is given the rows."""

    START = "start"
    GAP = "gap"
    FORK = "fork"


class Told(NamedTuple):
    """One operation, with its place in its partition's ledger."""

    sequence: int
    at_ms: int
    operation: Operation


class Batch:
    """Changes of one partition, in order."""

    def __init__(self, partition: int, entries: Sequence[TailEntry]) -> None:
        """Take entries that follow one another."""
        self.partition = partition
        self.entries = tuple(entries)

    @property
    def last_sequence(self) -> int:
        """The last operation's place."""
        last = self.entries[-1]
        return last.sequence + last.count - 1

    def operations(self) -> Iterator[Told]:
        """Yield the operations. Raises msgspec.DecodeError on a kind of a newer Holdfast."""
        for entry in self.entries:
            for offset, operation in enumerate(entry.operations):
                yield Told(entry.sequence + offset, entry.at_ms, operation)

    def events(self) -> Iterator[AnyEvent]:
        """Yield what happened as events; raises as `operations` does."""
        for told in self.operations():
            yield from events_of(
                told.operation,
                sequence=told.sequence,
                at_ms=told.at_ms,
                partition=self.partition,
            )

    def rows(self) -> list[Row]:
        """Return each row that changed, as the last of its changes left it."""
        found: dict[tuple[str, str, str], Row] = {}
        for _, _, operation in self.operations():
            for change in operation.rows:
                merchant, location = operation.merchant, operation.location
                found[merchant, location, change.sku] = row_after(merchant, location, change)
        return list(found.values())


class Resync:
    """A partition of which a handler is to take the rows as they are now, whatever it has.

    Rows that it has and that are not among them are no more; and after a fork their versions may be
    lower than those it has. `expected` is the operation that should have come, and `found` the one
    that is there instead, 0 where that is not known.
    """

    def __init__(
        self,
        inventory: Inventory,
        partition: int,
        reason: Reason,
        *,
        expected: int = 0,
        found: int = 0,
    ) -> None:
        """Read nothing yet."""
        self._inventory = inventory
        self.partition = partition
        self.reason = reason
        self.expected = expected
        self.found = found

    async def rows(self) -> AsyncIterator[Sequence[Row]]:
        """Yield the partition's rows, up to 500 at a time. Raises StoreUnavailable."""
        async for merchant, location in self._locations():
            after: str | None = None
            while True:
                page = await self._inventory.list_rows(
                    merchant, location, after=after, limit=MAX_PAGE
                )
                if page.items:
                    yield page.items
                after = page.next_after
                if after is None:
                    break

    async def _locations(self) -> AsyncIterator[tuple[str, str]]:
        keys = self._inventory.keys[self.partition]
        start = "-"
        while True:
            (members,) = await self._inventory.store.read(
                [("ZRANGEBYLEX", keys.locations, start, "+", "LIMIT", 0, LISTED_LOCATIONS)]
            )
            for member in members:
                place = parse_location_member(member.decode())
                if (
                    place is not None
                    and self._inventory.keys_of(*place).partition == self.partition
                ):
                    # Elsewhere it is the place of a split row's part.
                    yield place
            if len(members) < LISTED_LOCATIONS:
                return
            start = f"({members[-1].decode()}"


class Handler(Protocol):
    """What a consumer's owner writes. What it raises ends the consumer."""

    async def apply(self, batch: Batch) -> None:
        """Take changes. It may get some of them twice, and must then do no harm."""
        ...

    async def resync(self, anew: Resync) -> None:
        """Take the rows of a partition in place of all that is known of it."""
        ...


class VersionGate:
    """Lets a row pass once a version, for handlers that cannot make a write conditional on it.

    It lives in memory: after a restart each row passes once more. The rows that were seen the
    longest ago are forgotten beyond `most`, and then pass again, too.
    """

    def __init__(self, *, most: int = 100_000) -> None:
        """Know no row."""
        self._most = most
        self._versions: OrderedDict[tuple[str, str, str], tuple[int, int]] = OrderedDict()

    def newer(self, partition: int, rows: Iterable[Row]) -> list[Row]:
        """Return the rows that are newer than what passed before."""
        passed = []
        for row in rows:
            key = (row.merchant, row.location, row.sku)
            _, version = self._versions.get(key, (0, 0))
            if row.version > version:
                passed.append(row)
                self._versions[key] = (partition, row.version)
                self._versions.move_to_end(key)
        while len(self._versions) > self._most:
            self._versions.popitem(last=False)
        return passed

    def forget(self, partition: int) -> None:
        """Forget a partition's rows: it is resynchronised, and versions may have gone back."""
        gone = [key for key, (place, _) in self._versions.items() if place == partition]
        for key in gone:
            del self._versions[key]


async def consume(
    store: StoreSettings | str,
    name: str,
    handler: Handler,
    *,
    stop: asyncio.Event | None = None,
    start: Start = Start.ROWS,
) -> None:
    """Hand all changes to `handler` until `stop` is set; outages of the store are waited out.

    `store` is the store's address, `name` what the consumer is known by: 1 to 50 of `a-z 0-9 . _
    -`. Once `stop` is set the handler's call under way ends, and how far it is is noted. Raises
    what the handler raises, InvalidCommand on a bad name, LimitExceeded past MAX_READERS, and
    StoreUnavailable where the store is not there at the start.
    """
    settings = StoreSettings.from_url(store) if isinstance(store, str) else store
    inventory = await Inventory.open(settings)
    try:
        await Consumer(inventory, name, handler, start=start).run(stop or asyncio.Event())
    finally:
        await inventory.close()


class Consumer:
    """One consumer of one store; `consume` makes and runs it."""

    def __init__(
        self, inventory: Inventory, name: str, handler: Handler, *, start: Start = Start.ROWS
    ) -> None:
        """Take everything; nothing is read before `run`. Raises InvalidCommand."""
        if not _NAME.fullmatch(name):
            raise InvalidCommand("name", "must be 1 to 50 of a-z, 0-9, dot, dash and underscore")
        self._inventory = inventory
        self._store = inventory.store
        self._name = name
        self._handler = handler
        self._start = start
        self._lease = Lease(self._store, inventory.keys[0], f"reader.{name}", owner=new_owner())
        self._cursors: dict[int, Cursor] = {}
        self._noted: dict[int, Cursor] = {}
        self._lost = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop` is set. Raises what the handler raises, and LimitExceeded."""
        backoff_seconds = FIRST_BACKOFF_SECONDS
        while not stop.is_set():
            pause_seconds = STANDBY_SECONDS
            try:
                if await self._lease.renew():
                    await self._lead(stop)
                    backoff_seconds = FIRST_BACKOFF_SECONDS
                    continue
            except LimitExceeded:
                raise
            except HoldfastError as error:
                log.warning("consumer waits", name=self._name, code=error.code, error=str(error))
                pause_seconds = backoff_seconds
                backoff_seconds = min(MAX_BACKOFF_SECONDS, 2 * backoff_seconds)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_seconds):
                    await stop.wait()

    async def _lead(self, stop: asyncio.Event) -> None:
        """Work while the lease is ours."""
        self._lost.clear()
        keeper = asyncio.create_task(self._keep_lease())
        try:
            await self._open(stop)
            if not stop.is_set() and not self._lost.is_set():
                await self._follow(stop)
        finally:
            await end_task(keeper)
            with suppress(HoldfastError):
                await self._note()
            with suppress(HoldfastError):
                await self._lease.give_up()

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(LEASE_TTL_MS / 3000)
            try:
                if not await self._lease.renew():
                    self._lost.set()
                    return
            except HoldfastError as error:
                log.warning("a lease cannot be renewed", name=self._name, code=error.code)

    async def _open(self, stop: asyncio.Event) -> None:
        """Find out where we stand, and make up for what is missing."""
        keys = self._inventory.keys
        self._cursors = await read_cursors(self._store, keys, self._name)
        self._noted = dict(self._cursors)
        ends = await current_ends(self._store, keys)
        for one in keys:
            if stop.is_set() or self._lost.is_set():
                return
            cursor = self._cursors.get(one.partition)
            if cursor is None:
                if self._start is Start.ROWS:
                    await self._resync(Resync(self._inventory, one.partition, Reason.START))
                self._cursors[one.partition] = ends[one.partition]
            elif (torn := await self._torn(one, cursor, ends[one.partition])) is not None:
                await self._resync(torn)
                self._cursors[one.partition] = ends[one.partition]
        await self._note()

    async def _torn(self, keys: PartitionKeys, cursor: Cursor, end: Cursor) -> Resync | None:
        """Say whether the ledger no longer goes on from a cursor, where no entry will tell it."""
        expected = (cursor.sequence or 0) + 1
        at_cursor, first, following = await self._store.read(
            [
                ("XRANGE", keys.ledger, cursor.stream_id, cursor.stream_id),
                ("XRANGE", keys.ledger, "-", "+", "COUNT", 1),
                ("XRANGE", keys.ledger, f"({cursor.stream_id}", "+", "COUNT", 1),
            ]
        )
        ended = (end.sequence or 0) + 1
        if ended < expected:
            return self._anew(keys, Reason.FORK, expected, ended)
        if not following and ended > expected:
            return self._anew(keys, Reason.GAP, expected, ended)
        if cursor.sequence and not at_cursor and first:
            oldest = stream_position(first[0][0].decode())
            if oldest < stream_position(cursor.stream_id):
                # Only the head of a stream is ever trimmed: what we read was never written here.
                return self._anew(keys, Reason.FORK, expected, 0)
        return None

    def _anew(self, keys: PartitionKeys, reason: Reason, expected: int, found: int) -> Resync:
        return Resync(self._inventory, keys.partition, reason, expected=expected, found=found)

    async def _resync(self, anew: Resync) -> None:
        if anew.reason is not Reason.START:
            log.warning(
                "the ledger does not go on where it was left; its rows are read anew",
                name=self._name,
                partition=anew.partition,
                reason=anew.reason.value,
                expected=anew.expected,
                found=anew.found,
            )
        await self._handler.resync(anew)

    async def _follow(self, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        note_at = loop.time() + ADVANCE_SECONDS
        ends: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(stop.wait()),
            asyncio.ensure_future(self._lost.wait()),
        ]
        keys = self._inventory.keys
        async with Tail(self._store.settings, keys, self._cursors, pace_ms=PACE_MS) as tail:
            coming: asyncio.Future[TailBatch] = asyncio.ensure_future(anext(tail))
            try:
                while not stop.is_set() and not self._lost.is_set():
                    timeout = max(0.0, note_at - loop.time()) if self._is_ahead() else None
                    await asyncio.wait(
                        [coming, *ends], timeout=timeout, return_when=asyncio.FIRST_COMPLETED
                    )
                    if coming.done():
                        await self._handle(coming.result().signals)
                        coming = asyncio.ensure_future(anext(tail))
                    if loop.time() >= note_at:
                        await self._note()
                        note_at = loop.time() + ADVANCE_SECONDS
            finally:
                for one in (coming, *ends):
                    one.cancel()
                await asyncio.wait([coming, *ends])

    async def _handle(self, signals: Iterable[Any]) -> None:
        """Hand on what came; what is odd about a partition after what came of it before."""
        waiting: dict[int, list[TailEntry]] = {}
        for signal in signals:
            if isinstance(signal, TailEntry):
                waiting.setdefault(signal.partition, []).append(signal)
            elif isinstance(signal, Gap | Fork):
                await self._apply(signal.partition, waiting.pop(signal.partition, []))
                reason = Reason.GAP if isinstance(signal, Gap) else Reason.FORK
                keys = self._inventory.keys[signal.partition]
                await self._resync(self._anew(keys, reason, signal.expected, signal.found or 0))
        for partition, entries in waiting.items():
            await self._apply(partition, entries)

    async def _apply(self, partition: int, entries: Sequence[TailEntry]) -> None:
        if entries:
            await self._handler.apply(Batch(partition, entries))
            self._cursors[partition] = entries[-1].cursor

    def _is_ahead(self) -> bool:
        return self._cursors != self._noted

    async def _note(self) -> None:
        """Keep how far the handler is. Raises LimitExceeded past MAX_READERS."""
        if self._lost.is_set() or not self._lease.fence:
            return
        for partition, cursor in list(self._cursors.items()):
            if self._noted.get(partition) == cursor:
                continue
            reply = await self._store.call(
                script("advance"),
                (self._inventory.keys[partition].readers,),
                self._name,
                cursor.stream_id,
                cursor.sequence or 0,
                self._lease.fence,
                MAX_READERS,
            )
            if int(reply) < 0:
                raise LimitExceeded("readers", most=MAX_READERS)
            if int(reply) == 0:
                self._lost.set()
                return
            self._noted[partition] = cursor


class Reader(msgspec.Struct, frozen=True):
    """A registered reader: how many operations it is behind, and when it last noted its place.

    `noted_at_ms` is 0 where it was registered by hand.
    """

    name: str
    behind_operations: int
    noted_at_ms: int


async def read_cursors(store: Store, keys: Sequence[PartitionKeys], name: str) -> dict[int, Cursor]:
    """Return where a reader stands, by partition; those that it never was in are not there."""
    texts = await store.read([("HGET", one.readers, name) for one in keys])
    found = {}
    for one, text in zip(keys, texts, strict=True):
        place = _place(text)
        if place is not None and place.sequence is not None:
            found[one.partition] = place
    return found


async def list_readers(store: Store, keys: Sequence[PartitionKeys]) -> list[Reader]:
    """Return every registered reader by name. Raises StoreUnavailable."""
    commands: list[tuple[str | int, ...]] = []
    for one in keys:
        commands += [("HGETALL", one.readers), ("HGET", one.meta, "sequence")]
    replies = await store.read(commands)
    behind: dict[str, int] = {}
    noted: dict[str, int] = {}
    for readers, sequence in zip(replies[::2], replies[1::2], strict=True):
        for raw_name, text in pairs(readers):
            name = raw_name.decode("utf-8", "replace")
            place = _place(text)
            read = 0 if place is None else place.sequence or 0
            behind[name] = behind.get(name, 0) + max(0, int(sequence or 0) - read)
            words = text.split()
            noted[name] = max(noted.get(name, 0), int(words[3]) if len(words) == 4 else 0)
    return [Reader(name, behind[name], noted[name]) for name in sorted(behind)]


async def remove_reader(store: Store, keys: Sequence[PartitionKeys], name: str) -> bool:
    """Forget a reader, so that the ledger is not kept for it; False where there was none.

    One that still runs registers again. Raises StoreUnavailable.
    """
    found = await store.read([("HDEL", one.readers, name) for one in keys])
    return any(found)


def _place(text: bytes | None) -> Cursor | None:
    """Read where a reader stands: its stream id and, unless it was set by hand, the sequence."""
    words = (text or b"").decode("utf-8", "replace").split()
    if not words:
        return None
    return Cursor(words[0], int(words[1]) if len(words) > 1 else None)
