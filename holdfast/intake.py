"""The intake: events that integrators write to a stream of the store instead of calling the API.

Each partition has one stream; an entry names merchant, location and source, and has the event as
the JSON that it would be over HTTP. One process at a time reads a partition's (by a lease). An
entry is removed only after its event has a verdict, so whatever dies in between is done again and
found to be a duplicate. What cannot be taken is set aside with its text, and the stream goes on.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

import msgspec
import structlog
from redis.exceptions import RedisError

from engine.feeds import FeedEvent, Feeds, Taken, Verdict
from engine.inventory import Inventory
from engine.keys import PartitionKeys
from engine.leases import leases_of
from engine.limits import MAX_BATCH_EVENTS
from engine.outcomes import (
    HoldfastError,
    IdempotencyKeyReused,
    InvalidCommand,
    StoreFault,
    StoreUnavailable,
)
from engine.store import pairs
from engine.validation import check_id
from gateway.feeds import read_event
from gateway.problems import InvalidRequest

GROUP: Final = "holdfast"
CONSUMER: Final = "intake"
"""The lease sees to it that there is one at a time, so what a dead one left is the next one's."""

POLL_SECONDS: Final = 0.25
ROUND_EVENTS: Final = 500
"""Events taken of one partition before the others have their turn, and API calls theirs."""

MAX_EVENTS_PER_SECOND: Final = 4_000
"""Of all partitions together: an hour's backlog must not crowd out the shop's own calls."""

MAX_TRIES: Final = 5
"""How often an entry that the store cannot take is tried before it is set aside."""

MAX_RAW_CHARACTERS: Final = 4_000
"""Of the text that is kept of an entry that was set aside."""

UNKNOWN: Final = "unknown"
"""The merchant and location of an entry that does not name them."""

ACTOR: Final = "intake"

log = structlog.get_logger()


class _Entry(msgspec.Struct, frozen=True):
    """An entry of the stream, and how often it was tried; `event` None where it is none."""

    stream_id: str
    merchant: str
    location: str
    source: str
    raw: str
    event: FeedEvent | None
    tries: int

    @property
    def place(self) -> tuple[str, str, str]:
        """Whose event it is."""
        return (self.merchant, self.location, self.source)


class Intake:
    """Takes what is written to the streams of a store until told to stop."""

    def __init__(self, inventory: Inventory, feeds: Feeds) -> None:
        """Any number may run on a store."""
        self._store = inventory.store
        self._keys = inventory.keys
        self._feeds = feeds
        self._leases = leases_of(self._store, self._keys, "intake")
        self._grouped: set[int] = set()
        self._told = False

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; outages of the store are waited out."""
        while not stop.is_set():
            taken = 0
            try:
                taken = await self.round()
                self._told = False
            except HoldfastError as error:
                if not self._told:
                    log.warning("the intake waits", code=error.code, error=str(error))
                self._told = True
            pause = max(POLL_SECONDS, taken / MAX_EVENTS_PER_SECOND)
            try:
                async with asyncio.timeout(pause):
                    await stop.wait()
            except TimeoutError:
                continue
        await self.give_up()

    async def give_up(self) -> None:
        """Let another process go on at once."""
        try:
            for lease in self._leases:
                await lease.give_up()
        except HoldfastError as error:
            log.info("a lease runs out by itself", error=str(error))

    async def round(self) -> int:
        """Take up to ROUND_EVENTS of each partition; return how many entries were done.

        Raises what the store's calls raise.
        """
        lengths = await self._store.read([("EXISTS", keys.intake) for keys in self._keys])
        done = 0
        for keys, exists in zip(self._keys, lengths, strict=True):
            if exists and await self._leases[keys.partition].hold():
                done += await self._round_of(keys)
        return done

    async def _round_of(self, keys: PartitionKeys) -> int:
        await self._make_group(keys)
        entries = await self._left_behind(keys)
        if not entries:
            command = ("XREADGROUP", "GROUP", GROUP, CONSUMER, "COUNT", ROUND_EVENTS)
            (reply,) = await self._store.read([(*command, "STREAMS", keys.intake, ">")])
            entries = [_entry(one, 1) for one in _read_entries(reply)]
        done: list[str] = []
        try:
            for place, group in groupby(entries, key=lambda entry: entry.place):
                done += await self._take(keys, place, list(group))
        finally:
            if done:
                await self._store.read(
                    [("XACK", keys.intake, GROUP, *done), ("XDEL", keys.intake, *done)]
                )
        return len(done)

    async def _make_group(self, keys: PartitionKeys) -> None:
        if keys.partition in self._grouped:
            return
        try:
            await self._store.read([("XGROUP", "CREATE", keys.intake, GROUP, "0")])
        except StoreFault as fault:
            if "BUSYGROUP" not in fault.reply:
                raise
        self._grouped.add(keys.partition)

    async def _left_behind(self, keys: PartitionKeys) -> list[_Entry]:
        """Take over what was read and not done, by this process or one before it."""
        client: Any = self._store.client
        try:
            # Not read as others are: the driver must be told that the details were asked for.
            pending = await client.xpending_range(keys.intake, GROUP, "-", "+", ROUND_EVENTS)
        except (RedisError, OSError) as error:
            raise StoreUnavailable() from error
        if not pending:
            return []
        tries = {one["message_id"].decode(): one["times_delivered"] + 1 for one in pending}
        command = ("XCLAIM", keys.intake, GROUP, CONSUMER, 0, *tries)
        (claimed,) = await self._store.read([command])
        found = [_entry(one, tries[one[0].decode()]) for one in claimed if one[1] is not None]
        # What somebody deleted from the stream is nobody's any more.
        gone = tries.keys() - {entry.stream_id for entry in found}
        if gone:
            await self._store.read([("XACK", keys.intake, GROUP, *gone)])
        return found

    async def _take(
        self, keys: PartitionKeys, place: tuple[str, str, str], entries: Sequence[_Entry]
    ) -> list[str]:
        """Take events of one source; return the ids of the entries that are done."""
        sound = [entry for entry in entries if entry.event is not None]
        done = [
            await self._set_aside(keys, entry, "unreadable")
            for entry in entries
            if entry.event is None
        ]
        for start in range(0, len(sound), MAX_BATCH_EVENTS):
            chunk = sound[start : start + MAX_BATCH_EVENTS]
            events = [entry.event for entry in chunk if entry.event is not None]
            results = await self._feeds.take(*place, events, actor=ACTOR)
            for entry, result in zip(chunk, results, strict=True):
                if isinstance(result, Taken):
                    done.append(entry.stream_id)
                elif isinstance(result, IdempotencyKeyReused | InvalidCommand):
                    done.append(await self._set_aside(keys, entry, result.code))
                elif entry.tries >= MAX_TRIES and isinstance(result, StoreFault):
                    log.error("an event cannot be taken", entry=entry.stream_id, error=str(result))
                    done.append(await self._set_aside(keys, entry, "store_fault"))
        return done

    async def _set_aside(self, keys: PartitionKeys, entry: _Entry, why: str) -> str:
        merchant, location, source = entry.place
        name = f"{keys.intake} {entry.stream_id}"
        taken = await self._feeds.set_aside(
            merchant,
            location,
            source,
            entry.raw[:MAX_RAW_CHARACTERS],
            why=why,
            name=name,
            actor=ACTOR,
        )
        if taken.verdict is Verdict.QUARANTINED:
            log.warning(
                "an event was set aside", merchant=merchant, location=location, entry=name, why=why
            )
        return entry.stream_id


def _read_entries(reply: Any) -> Iterator[Sequence[Any]]:
    """Go through the entries of an XREADGROUP's reply, as the driver parsed it or not."""
    streams = reply.values() if isinstance(reply, Mapping) else [one[1] for one in reply or ()]
    for stream in streams:
        yield from stream


def _entry(raw: Sequence[Any], tries: int) -> _Entry:
    stream_id, flat = raw
    fields = {
        name.decode(errors="replace"): value.decode(errors="replace") for name, value in pairs(flat)
    }
    merchant, location, source = (
        _id_or(fields.get(name, ""), UNKNOWN) for name in ("merchant", "location", "source")
    )
    named = all(fields.get(name) for name in ("merchant", "location", "source"))
    text = fields.get("event", "")
    event = None
    if named and text:
        try:
            event = read_event(text.encode())
        except (InvalidRequest, InvalidCommand):
            event = None
    raw_text = text or msgspec.json.encode(fields).decode()
    return _Entry(stream_id.decode(), merchant, location, source, raw_text, event, tries)


def _id_or(text: str, default: str) -> str:
    try:
        check_id("id", text)
    except InvalidCommand:
        return default
    return text
