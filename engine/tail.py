"""Following the ledger: every new entry of every partition, in order, for as long as one likes.

A `Tail` has connections of its own, since each waits inside the server for what comes next. It
checks as it goes that no operation is missing or told anew, and says so in between the entries:
what a reader then does about it is the reader's own affair (see docs/reference/ledger.md).

    ends = await current_ends(store, inventory.keys)
    async with Tail(settings, inventory.keys, ends) as tail:
        async for batch in tail:
            for signal in batch.signals: ...

An entry that carries operations of a kind unknown here, after an upgrade of another process, is
handed on like any other: only reading its `operations` raises.
"""

import asyncio
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self, cast

import msgspec
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import RedisClusterException, RedisError

from engine.keys import PartitionKeys
from engine.ledger import Entry, Operation, OperationKind, decode_operations, read_entries
from engine.scripts import script
from engine.store import Client, Store, StoreSettings, close_quietly, connect
from engine.tasks import end_task

MAX_BATCH_ENTRIES: Final = 1_024
"""Entries in one batch, shared among the partitions: a group of 128 carts can make one entry of
some 100 kB, so a batch stays below what a process has to spare."""

BLOCK_MS: Final = 5_000
"""How long one read waits for something new. A server that has gone without a word is noticed this
much later."""

PACE_MS: Final = 4
"""Between a read that found something and the next. A reader that is woken for every single entry
costs the store and itself more than the entries do; this much is added to the lag at most."""

MAX_WAITING_BATCHES: Final = 4
"""Batches that a slow reader lets lie; then the tail reads no further."""

FIRST_BACKOFF_SECONDS: Final = 0.05
MAX_BACKOFF_SECONDS: Final = 2.0

_CONNECTION_LOST: Final = (RedisError, RedisClusterException, OSError, TimeoutError)


class Cursor(msgspec.Struct, frozen=True):
    """Where a reader stands in a partition: everything up to entry `stream_id` is behind it.

    `sequence` is the last operation that is behind it. None where that is not known, as when one
    starts from a time: then the first entry is taken for the next.
    """

    stream_id: str = "0-0"
    sequence: int | None = None


class TailEntry:
    """An entry of a partition's ledger, its operations packed until somebody asks for them.

    They have the sequences `sequence`, `sequence` + 1, ... and happened at `at_ms`. `packed` keeps
    text as it is, so whoever looks for a merchant can look there first.
    """

    __slots__ = ("_operations", "at_ms", "count", "packed", "partition", "sequence", "stream_id")

    def __init__(
        self, partition: int, stream_id: str, sequence: int, at_ms: int, packed: bytes
    ) -> None:
        """Take what the stream has. Raises ValueError where `packed` is no array."""
        self.partition = partition
        self.stream_id = stream_id
        self.sequence = sequence
        self.at_ms = at_ms
        self.packed = packed
        self.count = array_length(packed)
        self._operations: tuple[Operation, ...] | None = None

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The operations. Raises msgspec.DecodeError on a kind that is not known here."""
        if self._operations is None:
            self._operations = decode_operations(self.packed)
        return self._operations

    @property
    def cursor(self) -> Cursor:
        """Where a reader stands behind this entry."""
        return Cursor(self.stream_id, self.sequence + self.count - 1)


class Gap(msgspec.Struct, frozen=True):
    """Operations `expected` to `found` - 1 of a partition are not there; it goes on at `found`.

    They were trimmed before this reader came to them, or are lost.
    """

    partition: int
    expected: int
    found: int


class Fork(msgspec.Struct, frozen=True):
    """A partition tells operations from `found` on that it had told before, as others.

    A failover lost what had been acknowledged; or the store was emptied, or rebuilt. What was read
    from `found` on up to `expected` - 1 did not happen. `found` is None where it is not known yet.
    """

    partition: int
    expected: int
    found: int | None


class Reconnected(msgspec.Struct, frozen=True):
    """The connection to these partitions was lost and is there again; no entry is missing.

    A reader that holds state of the store should still look again: what it read just before may
    have been undone by a failover that no entry tells of yet.
    """

    partitions: tuple[int, ...]


Signal = TailEntry | Gap | Fork | Reconnected


class Batch(msgspec.Struct, frozen=True):
    """What one read found, in the order of each partition's ledger.

    The read was sent at `sent_at` (time.monotonic()). Every entry that `caught_up` partitions had
    by then has been given by the end of this batch.
    """

    signals: tuple[Signal, ...]
    caught_up: tuple[int, ...]
    sent_at: float


class Tail:
    """Follows partitions from given cursors; see the module's text."""

    def __init__(
        self,
        settings: StoreSettings,
        keys: Sequence[PartitionKeys],
        cursors: Mapping[int, Cursor],
        *,
        block_ms: int = BLOCK_MS,
        pace_ms: int = PACE_MS,
    ) -> None:
        """Follow the partitions that `cursors` names; `keys` are those of all partitions.

        Nothing is read before `async with`. A batch comes at least every `block_ms`, empty if need
        be, so that a reader knows that it is up to date.
        """
        # A read that waits must not look like one that hangs.
        self._settings = msgspec.structs.replace(
            settings, attempt_timeout_ms=settings.attempt_timeout_ms + block_ms
        )
        self._block_ms = block_ms
        self._pace_ms = pace_ms
        self._batches: asyncio.Queue[Batch | BaseException] = asyncio.Queue(MAX_WAITING_BATCHES)
        places = [_Place(keys[number], cursor) for number, cursor in sorted(cursors.items())]
        # One read may name the streams of one slot only, so in a cluster each has its own.
        groups = [[place] for place in places] if settings.cluster else [places]
        self._groups = [group for group in groups if group]
        self._count = max(1, MAX_BATCH_ENTRIES // max(1, len(places)))
        self._client: Client | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Begin to read; the store need not be up yet."""
        self._client = connect(self._settings, max_connections=len(self._groups) + 8)
        self._tasks = [
            asyncio.create_task(self._follow(_Reader(self._client, group, self._count)))
            for group in self._groups
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop reading and close the connections."""
        await asyncio.gather(*(end_task(task) for task in self._tasks))
        self._tasks = []
        if self._client is not None:
            await close_quietly(self._client)

    def __aiter__(self) -> Self:
        """Iterate over batches; there is no last one."""
        return self

    async def __anext__(self) -> Batch:
        """Wait for the next batch. Raises what a bug in the tail itself raised."""
        batch = await self._batches.get()
        if isinstance(batch, BaseException):
            raise batch
        return batch

    async def _follow(self, reader: "_Reader") -> None:
        """Hand on batch after batch; an outage is waited out, however long it takes."""
        backoff_seconds = FIRST_BACKOFF_SECONDS
        try:
            while True:
                try:
                    signals = await reader.check() if reader.lost else []
                    batch = await reader.read(self._block_ms, signals)
                except _CONNECTION_LOST:
                    await reader.drop()
                    reader.lost = True
                    jitter = random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret
                    await asyncio.sleep(backoff_seconds * jitter)
                    backoff_seconds = min(MAX_BACKOFF_SECONDS, 2 * backoff_seconds)
                    continue
                reader.lost = False
                backoff_seconds = FIRST_BACKOFF_SECONDS
                await self._batches.put(batch)
                if batch.signals:
                    await asyncio.sleep(self._pace_ms / 1000)
        except Exception as error:  # noqa: BLE001 - handed on: the reader must not wait for good
            await self._batches.put(error)


class _Place:
    """A partition that is being followed, and how far."""

    def __init__(self, keys: PartitionKeys, cursor: Cursor) -> None:
        self.keys = keys
        self.partition = keys.partition
        self.stream_id = cursor.stream_id
        self.sequence = cursor.sequence

    def take(self, entries: Iterable[tuple[bytes, Sequence[bytes]]]) -> list[Signal]:
        """Move on past entries; what is odd about them stands before the first concerned."""
        signals: list[Signal] = []
        for stream_id, flat in entries:
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            entry = TailEntry(
                self.partition,
                stream_id.decode(),
                int(fields[b"seq"]),
                int(fields[b"at"]),
                fields[b"ops"],
            )
            if self.sequence is not None and entry.sequence != self.sequence + 1:
                kind = Gap if entry.sequence > self.sequence else Fork
                signals.append(kind(self.partition, self.sequence + 1, entry.sequence))
            self.stream_id = entry.stream_id
            self.sequence = entry.sequence + entry.count - 1
            signals.append(entry)
        return signals

    def check(self, at_cursor: Any, first: Any, sequence: int) -> Fork | None:
        """Say whether the ledger no longer has what was read, seen anew after an outage.

        `at_cursor` are the entries at the cursor's own id, `first` the first entry that there is,
        `sequence` the last operation by the partition's own count.
        """
        if self.sequence is None or self.sequence == 0:
            return None
        expected = self.sequence + 1
        if sequence < self.sequence:
            self.sequence = sequence
            return Fork(self.partition, expected, sequence + 1)
        if at_cursor or not first:
            return None
        if stream_position(first[0][0].decode()) < stream_position(self.stream_id):
            # Only the head of a stream is ever trimmed, so this entry was never written there.
            self.sequence = None
            return Fork(self.partition, expected, None)
        return None


class _Reader:
    """Reads the partitions that one command may name."""

    def __init__(self, client: Client, places: Sequence[_Place], count: int) -> None:
        self._client = client
        self._places = places
        self._by_key = {place.keys.ledger.encode(): place for place in places}
        self._count = count
        self._connection: Any = None
        self.lost = False

    async def check(self) -> list[Signal]:
        """See after an outage whether the ledger still is the one that was read."""
        signals: list[Signal] = [Reconnected(tuple(place.partition for place in self._places))]
        for place in self._places:
            ledger, here = place.keys.ledger, place.stream_id
            at_cursor = await self._run("XRANGE", ledger, here, here)
            first = await self._run("XRANGE", ledger, "-", "+", "COUNT", 1)
            sequence = await self._run("HGET", place.keys.meta, "sequence")
            fork = place.check(at_cursor, first, int(sequence or 0))
            if fork is not None:
                signals.append(fork)
        return signals

    async def read(self, block_ms: int, signals: Sequence[Signal]) -> Batch:
        """Wait up to `block_ms` for entries; without waiting where there are `signals` to tell."""
        sent_at = time.monotonic()
        waiting = () if signals else ("BLOCK", block_ms)
        reply = await self._run(
            "XREAD",
            "COUNT",
            self._count,
            *waiting,
            "STREAMS",
            *[place.keys.ledger for place in self._places],
            *[place.stream_id for place in self._places],
        )
        found: list[Signal] = list(signals)
        more = set()
        for key, entries in reply or ():
            place = self._by_key[key]
            if len(entries) >= self._count:
                more.add(place.partition)
            found += place.take(entries)
        caught_up = [place.partition for place in self._places if place.partition not in more]
        return Batch(tuple(found), tuple(caught_up), sent_at)

    async def drop(self) -> None:
        """Give the connection up: the next command makes another one, to whoever serves then."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def _run(self, *command: str | int) -> Any:
        """Run a command on the one connection, which is never made anew behind our back.

        The driver's pool would do so, and what a failover undid in that moment would not be seen.
        """
        if self._connection is None:
            self._connection = await self._connect()
        await self._connection.send_command(*command)
        return await self._connection.read_response()

    async def _connect(self) -> Any:
        if isinstance(self._client, RedisCluster):
            await self._client.initialize()
            if self.lost:
                # The slot may be another node's by now.
                await self._client.nodes_manager.initialize()
            node = self._client.get_node_from_key(self._places[0].keys.ledger)
            return cast(Any, node).acquire_connection()
        return await cast(Any, self._client.connection_pool).get_connection()


async def current_ends(store: Store, keys: Sequence[PartitionKeys]) -> dict[int, Cursor]:
    """Return where each partition's ledger ends now: a tail from there gives what comes later.

    Raises StoreUnavailable.
    """
    replies = await asyncio.gather(
        *(store.call(script("inspect"), (one.meta, one.ledger)) for one in keys)
    )
    ends = {}
    for one, reply in zip(keys, replies, strict=True):
        sequence, _, _, last, *_ = msgspec.msgpack.decode(reply)
        ends[one.partition] = Cursor(last or "0-0", int(sequence or 0))
    return ends


async def cursors_before(
    store: Store, keys: Sequence[PartitionKeys], at_ms: int
) -> dict[int, Cursor] | None:
    """Return where each partition's ledger stood just before a time, by the ids of its entries.

    None where entries since then are trimmed, or may be: whoever was there must start anew. Raises
    StoreUnavailable.
    """
    commands: list[tuple[str | int, ...]] = []
    for one in keys:
        commands.append(("HMGET", one.archive, "trimmed_before", "stream_id"))
        commands.append(("HGET", one.meta, "sequence"))
    replies = await store.read(commands)
    firsts = await asyncio.gather(*(read_entries(store, one, count=1) for one in keys))
    cursor = Cursor(f"{max(0, at_ms - 1)}-{_LAST_OF_A_MILLISECOND}")
    start = stream_position(cursor.stream_id)
    for archived, sequence, first in zip(replies[::2], replies[1::2], firsts, strict=True):
        if not _is_whole(start, archived, int(sequence or 0), first):
            return None
    return {one.partition: cursor for one in keys}


_LAST_OF_A_MILLISECOND: Final = 2**64 - 1
"""The highest number that an id of a millisecond can have."""


def _is_whole(
    start: tuple[int, int],
    archived: Sequence[bytes | None],
    sequence: int,
    first: Sequence[Entry],
) -> bool:
    """Tell whether every entry that a partition ever had past `start` is certainly still there.

    `archived` says what may have been trimmed, `sequence` is the last operation by the partition's
    own count, and `first` the first entry that there is.
    """
    if first:
        (entry,) = first
        if stream_position(entry.stream_id) <= start or entry.sequence == 1:
            return True
        if entry.operations[0].kind is OperationKind.REBUILD:
            # What came before it was written to another store.
            return False
    elif not sequence:
        return True
    trimmed_before = archived[0] or archived[1]
    return trimmed_before is not None and stream_position(trimmed_before.decode()) <= start


def stream_position(stream_id: str) -> tuple[int, int]:
    """Return a stream id as two numbers, which compare as the entries stand."""
    at_ms, _, number = stream_id.partition("-")
    return int(at_ms), int(number or 0)


def array_length(packed: bytes) -> int:
    """Return how many elements a msgpack array has, from its first bytes alone."""
    head = packed[0] if packed else 0
    if 0x90 <= head <= 0x9F:
        return head & 0x0F
    if head == 0xDC:
        return int.from_bytes(packed[1:3], "big")
    if head == 0xDD:
        return int.from_bytes(packed[1:5], "big")
    raise ValueError("a ledger entry's `ops` is no msgpack array")
