"""What is on its way to a webhook endpoint: queued events, failed ones, given-up ones, a log.

All of it lies in the store, under keys of the endpoint alone: whoever is killed leaves everything
for the next. An event is in the outbox from when it was queued until it was delivered or given up,
so it is delivered at least once, always under the same id.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from engine.keys import WebhookKeys
from engine.leases import Lease
from engine.outcomes import LimitExceeded
from engine.scripts import script
from engine.store import Store, pairs

MAX_WAITING: Final = 10_000
"""Events in one outbox, some 10 MB. What comes after is counted and not kept, and the endpoint is
told by an event of the type `webhook.gap` that it must read anew."""

MAX_DEAD: Final = 1_000
"""Given-up events that are kept to be replayed; the oldest give way, and are counted."""

MAX_LOGGED: Final = 500
"""Attempts in the log of one endpoint, and a few more, since a stream is trimmed in blocks."""

MAX_EVENTS_A_CALL: Final = 200
"""Events that one script call queues."""

WINDOW_EVENTS: Final = 256
"""Events that whoever delivers looks at, from the oldest on: with so many held up by failures,
what lies behind them waits too. It bounds the memory that one endpoint takes."""


class NewEvent(NamedTuple):
    """An event to queue: `row` is what it is about, in whose order it is delivered."""

    sequence: int
    id: str
    row: str
    type: str
    body: bytes
    at_ms: int


class QueuedEvent(msgspec.Struct, frozen=True):
    """An event in an outbox. `attempts` failed so far; it is due at `due_ms`, 0 for at once."""

    place: str
    id: str
    row: str
    type: str
    body: bytes
    attempts: int = 0
    due_ms: int = 0


class DeadEvent(msgspec.Struct, frozen=True):
    """A given-up event; `place` is what replays it."""

    place: str
    id: str
    type: str
    body: bytes
    attempts: int
    reason: str
    died_at_ms: int


class Attempt(msgspec.Struct, frozen=True):
    """One attempt to deliver, as the log keeps it. `outcome` is `delivered` or why not."""

    at_ms: int
    event: str
    type: str
    attempt: int
    outcome: str
    status: int
    duration_ms: int
    next_at_ms: int = 0


class OutboxState(msgspec.Struct, frozen=True):
    """How an endpoint does; times in ms since 1970, 0 where there was none.

    `failures` counts the attempts since the last that was delivered, which fail since
    `failing_since_ms`. `dropped` events came while the outbox was full.
    """

    waiting: int
    dead: int
    failures: int
    failing_since_ms: int
    delivered_at_ms: int
    failed_at_ms: int
    dropped: int
    dropped_from_ms: int
    dead_dropped: int


_STATE: Final = (
    "failures",
    "failing_since",
    "delivered_at",
    "failed_at",
    "dropped",
    "dropped_from",
    "dead_dropped",
)
_pack = msgspec.msgpack.Encoder().encode
_attempt = msgspec.msgpack.Decoder(Attempt).decode


class Outbox:
    """The outbox of one endpoint. Every call raises StoreUnavailable."""

    def __init__(self, store: Store, keys: WebhookKeys) -> None:
        """Work on the endpoint of `keys`."""
        self._store = store
        self._keys = keys

    async def enqueue(self, partition: int, events: Sequence[NewEvent], *, last: int) -> int:
        """Queue a partition's events up to the sequence `last`, each once; return how many came in.

        All events of one sequence are brought in one call.
        """
        reply: Any = await self._store.call(
            script("webhook_enqueue"),
            (self._keys.state, self._keys.positions, self._keys.outbox),
            partition,
            last,
            MAX_WAITING,
            # As text: the store's unpacker cannot read the type of bytes.
            *[_pack((*event[:4], event.body.decode(), event.at_ms)) for event in events],
        )
        return int(reply[0])

    async def rewind(self, partition: int, sequence: int) -> None:
        """Take the partition's events past `sequence` from now on, whatever was looked through.

        For after a failover, which may give a sequence to another operation.
        """
        await self._store.read([("HSET", self._keys.positions, partition, sequence)])

    async def waiting(self) -> int:
        """Return how many events wait."""
        (count,) = await self._store.read([("XLEN", self._keys.outbox)])
        return int(count)

    async def window(self) -> list[QueuedEvent]:
        """Return the oldest events with what became of them so far."""
        (found,) = await self._store.read(
            [("XRANGE", self._keys.outbox, "-", "+", "COUNT", WINDOW_EVENTS)]
        )
        if not found:
            return []
        places = [place.decode() for place, _ in found]
        (retries,) = await self._store.read([("HMGET", self._keys.retries, *places)])
        return [
            _queued(place, dict(pairs(fields)), retry)
            for place, (_, fields), retry in zip(places, found, retries, strict=True)
        ]

    async def settle(
        self,
        lease: Lease,
        event: QueuedEvent,
        attempt: Attempt,
        verdict: str,
        *,
        wait_ms: int = 0,
    ) -> int | None:
        """Take note of an attempt: `delivered`, `retry` in `wait_ms`, or `dead`.

        Returns the store's time, None where the lease has another owner by now, who delivers the
        event again.
        """
        keys = self._keys
        reply: Any = await self._store.call(
            script("webhook_settle"),
            (keys.state, keys.outbox, keys.retries, keys.dead, keys.log, lease.key),
            lease.fence,
            event.place,
            verdict,
            wait_ms,
            attempt.attempt,
            _pack(attempt),
            MAX_DEAD,
            MAX_LOGGED,
            attempt.outcome,
        )
        return int(reply[1]) if int(reply[0]) else None

    async def hasten(self, places: Sequence[str], attempts: Sequence[int]) -> None:
        """Let failed events be due at once, without forgetting how often they failed."""
        fields: list[str] = []
        for place, count in zip(places, attempts, strict=True):
            fields += [place, f"{count} 0"]
        if fields:
            await self._store.read([("HSET", self._keys.retries, *fields)])

    async def notice(self, event: NewEvent, *, dropped: int) -> bool:
        """Queue an event that tells of missing ones; with `dropped`, of so many dropped ones.

        False where more were dropped meanwhile, or the endpoint is no more.
        """
        reply: Any = await self._store.call(
            script("webhook_notice"),
            (self._keys.state, self._keys.outbox),
            event.id,
            event.row,
            event.type,
            event.body,
            dropped,
        )
        return int(reply) == 1

    async def state(self) -> OutboxState:
        """Return how the endpoint does."""
        waiting, dead, fields = await self._store.read(
            [
                ("XLEN", self._keys.outbox),
                ("XLEN", self._keys.dead),
                ("HMGET", self._keys.state, *_STATE),
            ]
        )
        return OutboxState(int(waiting), int(dead), *[int(field or 0) for field in fields])

    async def dead(self, *, after: str | None, limit: int) -> list[DeadEvent]:
        """Return given-up events, the oldest first, from past the place `after`."""
        start = "-" if after is None else f"({after}"
        (found,) = await self._store.read([("XRANGE", self._keys.dead, start, "+", "COUNT", limit)])
        return [_dead(place.decode(), dict(pairs(fields))) for place, fields in found]

    async def replay(self, places: Sequence[str]) -> int:
        """Queue given-up events again; return how many of them there were.

        Raises LimitExceeded where they do not fit.
        """
        reply: Any = await self._store.call(
            script("webhook_replay"),
            (self._keys.dead, self._keys.outbox, self._keys.state),
            MAX_WAITING,
            *places,
        )
        if int(reply) < 0:
            raise LimitExceeded("waiting", most=MAX_WAITING)
        return int(reply)

    async def log(self, *, before: str | None, limit: int) -> list[tuple[str, Attempt]]:
        """Return the last attempts with their places, the newest first, from before a place."""
        end = "+" if before is None else f"({before}"
        (found,) = await self._store.read([("XREVRANGE", self._keys.log, end, "-", "COUNT", limit)])
        return [
            (place.decode(), _attempt(dict(pairs(fields))[b"attempt"])) for place, fields in found
        ]


def _queued(place: str, fields: dict[bytes, bytes], retry: bytes | None) -> QueuedEvent:
    attempts, due_ms = (0, 0) if retry is None else map(int, retry.split())
    return QueuedEvent(
        place,
        fields[b"id"].decode(),
        fields[b"row"].decode(),
        fields[b"type"].decode(),
        fields[b"body"],
        attempts,
        due_ms,
    )


def _dead(place: str, fields: dict[bytes, bytes]) -> DeadEvent:
    return DeadEvent(
        place,
        fields[b"id"].decode(),
        fields[b"type"].decode(),
        fields[b"body"],
        int(fields[b"attempts"]),
        fields[b"reason"].decode(),
        int(fields[b"died_at"]),
    )
