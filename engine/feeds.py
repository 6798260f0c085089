"""Events of tills and suppliers: what has happened already, whenever and however often it comes.

An event is taken once, under its source's sequence or its id, and leaves its row as if everything
had come in order (docs/concepts/feeds.md). Each event has a verdict of its own.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Final, Self, cast

import msgspec

from engine import metrics
from engine.dispatch import Command
from engine.inventory import Inventory
from engine.keys import PartitionKeys, digest, encode, location_member
from engine.limits import (
    DEFAULT_PAGE,
    MAX_BATCH_EVENTS,
    MAX_LOCATION_SOURCES,
)
from engine.model import Line, MovementType, Page
from engine.outcomes import HoldfastError, InvalidCommand, Outcome
from engine.policies import Policies
from engine.refusals import refusal
from engine.spelling import nearest
from engine.trace_context import split_trace
from engine.validation import (
    check_batch,
    check_change,
    check_count,
    check_id,
    check_page,
    check_text,
)

SOURCE_FIELDS: Final = (
    "mode",
    "heard_at",
    "occurred_at",
    "watermark",
    "highest",
    "ahead",
    "skipped",
    "beats",
)
"""Of a source's hash, in the order that `_source` takes them."""

HEARTBEAT: Final = "heartbeat"


class EventType(StrEnum):
    """What an event tells of; `heartbeat` only that its source lives."""

    SALE = "sale"
    RETURN = "return"
    RECEIPT = "receipt"
    ADJUSTMENT = "adjustment"
    COUNT = "count"
    TRANSFER_IN = "transfer_in"
    TRANSFER_OUT = "transfer_out"
    HEARTBEAT = "heartbeat"


_KINDS: Final[dict[EventType, str]] = {
    EventType.SALE: MovementType.SALE.value,
    EventType.RETURN: MovementType.RETURN.value,
    EventType.RECEIPT: MovementType.RECEIVE.value,
    EventType.ADJUSTMENT: MovementType.ADJUST.value,
    EventType.COUNT: MovementType.COUNT.value,
    EventType.TRANSFER_IN: MovementType.TRANSFER_IN.value,
    EventType.TRANSFER_OUT: MovementType.TRANSFER_OUT.value,
    EventType.HEARTBEAT: HEARTBEAT,
}
"""What the ledger calls each: the movements of the API have names of their own."""

_TYPES: Final = {kind: event_type for event_type, kind in _KINDS.items()}

_ARRIVALS: Final = (EventType.RECEIPT, EventType.TRANSFER_IN)
"""What may be the arrival of a supply."""

SUPPLY_NOT_FOUND: Final = "supply_not_found"
"""Why of an event that was booked, and whose row expected nothing of the supply that it names."""


class FeedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a source.

    `quantity` is 1 to 10^9 units, for an adjustment signed and not 0, for a count the units that
    were on the shelf at `occurred_at_ms` (0 to 10^12). A heartbeat has neither SKU nor quantity. An
    adjustment needs a `reason`. `sequence` counts the source's events from 1 without a gap; 0
    where the source does not count. A receipt or a transfer_in may name the `supply` that it is the
    arrival of: so many fewer are to come.
    """

    event_id: str
    type: EventType
    occurred_at_ms: int
    sku: str = ""
    quantity: int = 0
    sequence: int = 0
    reason: str = ""
    reference: str = ""
    supply: str = ""


class Verdict(StrEnum):
    """What became of an event."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    """It came before."""
    SUPERSEDED = "superseded"
    """A later count has it already: recorded, and nothing changed."""
    QUARANTINED = "quarantined"
    """Set aside until somebody decides; `why` says why."""
    DROPPED = "dropped"
    SKIPPED = "skipped"
    ABSENT = "absent"
    """There was nothing to retry, drop or skip."""


class Taken(msgspec.Struct, frozen=True):
    """An event's verdict, and its place in the ledger (0: it left none there).

    `why` says why it was set aside, or of one that was booked SUPPLY_NOT_FOUND. Then `expects` are
    supplies that the row does expect, the nearest in spelling first.
    """

    event_id: str
    verdict: Verdict
    why: str = ""
    at_ms: int = 0
    sequence: int = 0
    expects: tuple[str, ...] = ()


class Gap(msgspec.Struct, frozen=True):
    """Sequence numbers that have not come; `since_ms` is when a later one came first."""

    first: int
    last: int
    since_ms: int


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A source of events of a location; times in ms, 0 where there is none yet.

    `watermark` is the sequence up to which everything has come, `highest` the last that came. One
    that `beats` has sent heartbeats, so its silence means something.
    """

    name: str
    counts: bool
    heard_at_ms: int
    occurred_at_ms: int
    watermark: int
    highest: int
    beats: bool
    gaps: tuple[Gap, ...]

    def state(self, now_ms: int, *, heartbeat_ms: int) -> "SourceState":
        """Return how it is."""
        if self.beats and now_ms - self.heard_at_ms > heartbeat_ms:
            return SourceState.DEGRADED
        return SourceState.CATCHING_UP if self.gaps else SourceState.LIVE

    @property
    def missing(self) -> int:
        """How many sequence numbers below the highest have not come."""
        return sum(gap.last - gap.first + 1 for gap in self.gaps)


class SourceState(StrEnum):
    """How a source is."""

    LIVE = "live"
    DEGRADED = "degraded"
    """It sends heartbeats, and was not heard of for longer than they may take."""
    CATCHING_UP = "catching_up"
    """It is heard of, and some of what it sent is still missing."""


class Quarantined(msgspec.Struct, frozen=True, kw_only=True):
    """An event that was set aside at `at_ms`, and why.

    `raw` is the text of one that could not be read as an event; the rest of it is empty then.
    """

    id: str
    at_ms: int
    why: str
    actor: str
    source: str
    event_id: str
    type: str
    sku: str
    quantity: int
    occurred_at_ms: int
    sequence: int
    reason: str
    reference: str
    raw: str
    supply: str


class _Place(msgspec.Struct, frozen=True):
    """A source of a location: what all commands about it have in common."""

    keys: PartitionKeys
    merchant: str
    location: str
    source: str
    actor: str
    window_ms: int
    row_prefix: str
    recent_prefix: str
    seen_prefix: str
    location_keys: tuple[str, str]
    source_keys: tuple[str, ...]

    @classmethod
    def of(
        cls,
        keys: PartitionKeys,
        merchant: str,
        location: str,
        source: str,
        *,
        actor: str,
        window_ms: int = 0,
    ) -> Self:
        """Build the keys once: a batch has up to a thousand events of one source."""
        return cls(
            keys,
            merchant,
            location,
            source,
            actor,
            window_ms,
            keys.stock(merchant, location, ""),
            keys.recent(merchant, location, ""),
            keys.seen(merchant, ""),
            (keys.skus(merchant, location), keys.locations),
            (
                keys.feed(merchant, location, source),
                keys.prints(merchant, location, source),
                keys.feeds(merchant, location),
                keys.feeding,
                keys.quarantine(merchant, location),
            ),
        )

    def command(
        self,
        event: FeedEvent,
        act: str,
        *,
        raw: str = "",
        the_id: str = "",
        components: Sequence[Line] = (),
    ) -> Command:
        """Make the command of `lua/feed.lua`; `components` are of an event of a kit."""
        if not the_id:
            # With its sequence: where a sender uses an id twice, one must not stand for both.
            the_id = digest(
                "feed",
                self.merchant,
                self.location,
                self.source,
                event.event_id,
                str(event.sequence),
            )
        sku = encode(event.sku)
        return Command(
            (
                self.row_prefix + sku,
                *self.location_keys,
                self.recent_prefix + sku,
                self.seen_prefix + the_id,
                *self.source_keys,
                *[
                    prefix + encode(one.sku)
                    for one in components
                    for prefix in (self.row_prefix, self.recent_prefix)
                ],
            ),
            (
                the_id,
                self.merchant,
                self.location,
                self.actor,
                _fingerprint(event),
                act,
                self.source,
                event.event_id,
                _KINDS[event.type] if act != "skip" else act,
                event.sku,
                event.quantity,
                event.occurred_at_ms,
                event.sequence,
                event.reason,
                event.reference,
                self.window_ms,
                location_member(self.merchant, self.location),
                raw,
                list(components),
                event.supply,
            ),
            self.merchant,
        )


class Feeds:
    """The sources of all merchants over one store; see the module's text."""

    def __init__(self, inventory: Inventory) -> None:
        """Take events by each merchant's policy."""
        self.policies = Policies(inventory.store)
        self._inventory = inventory
        self._dispatch = inventory.dispatcher

    # Events

    async def take(
        self,
        merchant: str,
        location: str,
        source: str,
        events: Sequence[FeedEvent],
        *,
        actor: str,
    ) -> list[Taken | HoldfastError]:
        """Take up to 1,000 events; each stands alone, and gets its verdict or its refusal.

        IdempotencyKeyReused: another event came under its id or sequence. LimitExceeded: too many
        gaps, or too much set aside; the event was not taken. A store's failure may meet some of
        them; all may be sent again.
        """
        check_batch("events", len(events), MAX_BATCH_EVENTS)
        check_id("source", source)
        place = await self._place(merchant, location, source, actor)
        answers = await self._dispatch.bulk(self._take(place, event) for event in events)
        for answer in answers:
            if isinstance(answer, Exception) and not isinstance(answer, HoldfastError):
                raise answer
        return cast(list[Taken | HoldfastError], answers)

    async def _take(self, place: _Place, event: FeedEvent) -> Taken:
        check_event(event)
        components = await self._components(place, event.sku)
        command = place.command(event, "take", components=components)
        taken = await self._run(place, command, event.event_id)
        metrics.FEED_EVENTS.add((taken.verdict.value,))
        if taken.verdict is Verdict.APPLIED and event.type is not EventType.HEARTBEAT:
            late_ms = max(0, taken.at_ms - event.occurred_at_ms)
            metrics.FEED_LATENESS.of(event.type.value).observe(late_ms / 1000)
        return taken

    async def skip(
        self, merchant: str, location: str, source: str, *, through: int, actor: str
    ) -> Taken:
        """Give up on all sequence numbers up to `through` that have not come.

        One that comes after all is still taken, as long as it is among the last 1,024. Raises
        LimitExceeded where nothing as high as `through` has come.
        """
        check_id("source", source)
        check_count("through", through)
        place = await self._place(merchant, location, source, actor)
        event = FeedEvent(
            event_id=f"skip {through}", type=EventType.HEARTBEAT, occurred_at_ms=0, sequence=through
        )
        return await self._run(place, place.command(event, "skip"), event.event_id)

    # What was set aside

    async def quarantined(
        self, merchant: str, location: str, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Quarantined]:
        """List the events of a location that were set aside, by their ids."""
        keys = self._inventory.keys_of(merchant, location)
        check_page(limit)
        key = keys.quarantine(merchant, location)
        (names,) = await self._inventory.store.read([("HKEYS", key)])
        ids = sorted(name.decode() for name in names)
        wanted = [the_id for the_id in ids if after is None or the_id > after]
        page = wanted[:limit]
        bodies = []
        if page:
            (bodies,) = await self._inventory.store.read([("HMGET", key, *page)])
        found = [
            _quarantined(the_id, body)
            for the_id, body in zip(page, bodies, strict=True)
            if body is not None
        ]
        return Page(tuple(found), page[-1] if len(wanted) > limit else None)

    async def count_quarantined(self, merchant: str, location: str) -> int:
        """Count the events of a location that were set aside."""
        key = self._inventory.keys_of(merchant, location).quarantine(merchant, location)
        (count,) = await self._inventory.store.read([("HLEN", key)])
        return int(count)

    async def retry(
        self,
        merchant: str,
        location: str,
        the_id: str,
        *,
        actor: str,
        read: Callable[[bytes], FeedEvent],
    ) -> Taken:
        """Book an event that was set aside, if nothing speaks against it any more.

        `read` makes an event of a text that could not be read before. Raises what it raises, and
        what `take` tells of an event.
        """
        found = await self._find(merchant, location, the_id)
        if found is None:
            return Taken("", Verdict.ABSENT)
        if not found.raw:
            return await self._decide(merchant, location, found, "retry", actor)
        place = await self._place(merchant, location, found.source, actor)
        taken = await self._take(place, read(found.raw.encode()))
        await self._decide(merchant, location, found, "drop", actor)
        return taken

    async def drop(self, merchant: str, location: str, the_id: str, *, actor: str) -> Taken:
        """Give up on an event that was set aside; the ledger keeps it."""
        found = await self._find(merchant, location, the_id)
        if found is None:
            return Taken("", Verdict.ABSENT)
        return await self._decide(merchant, location, found, "drop", actor)

    async def set_aside(
        self,
        merchant: str,
        location: str,
        source: str,
        raw: str,
        *,
        why: str,
        name: str,
        actor: str,
    ) -> Taken:
        """Set aside a text that is no event, or one that was refused; `name` is unique to it."""
        place = await self._place(merchant, location, source, actor)
        event = FeedEvent(event_id=name, type=EventType.HEARTBEAT, occurred_at_ms=0, reason=why)
        return await self._run(place, place.command(event, "set_aside", raw=raw), name)

    async def _find(self, merchant: str, location: str, the_id: str) -> Quarantined | None:
        key = self._inventory.keys_of(merchant, location).quarantine(merchant, location)
        (body,) = await self._inventory.store.read([("HGET", key, the_id)])
        return None if body is None else _quarantined(the_id, body)

    async def _decide(
        self, merchant: str, location: str, found: Quarantined, act: str, actor: str
    ) -> Taken:
        event = FeedEvent(
            event_id=found.event_id,
            type=_TYPES[found.type],
            occurred_at_ms=found.occurred_at_ms,
            sku=found.sku,
            quantity=found.quantity,
            sequence=found.sequence,
            reason=found.reason,
            reference=found.reference,
            supply=found.supply,
        )
        place = await self._place(merchant, location, found.source, actor)
        components = await self._components(place, event.sku) if act == "retry" else ()
        command = place.command(event, act, the_id=found.id, components=components)
        return await self._run(place, command, found.event_id)

    # Sources

    async def sources(self, merchant: str, location: str) -> list[Source]:
        """List a location's sources by name."""
        keys = self._inventory.keys_of(merchant, location)
        store = self._inventory.store
        (names,) = await store.read(
            [("ZRANGE", keys.feeds(merchant, location), 0, MAX_LOCATION_SOURCES - 1)]
        )
        if not names:
            return []
        found = [name.decode() for name in names]
        hashes = await store.read(
            [("HMGET", keys.feed(merchant, location, name), *SOURCE_FIELDS) for name in found]
        )
        return [_source(name, fields) for name, fields in zip(found, hashes, strict=True)]

    def intake_key(self, merchant: str, location: str) -> str:
        """Return the stream that events of a location may be written to."""
        return self._inventory.keys_of(merchant, location).intake

    # Commands

    async def _place(self, merchant: str, location: str, source: str, actor: str) -> _Place:
        keys = self._inventory.keys_of(merchant, location)
        policy = await self.policies.of(merchant, location)
        return _Place.of(keys, merchant, location, source, actor=actor, window_ms=policy.late_ms)

    async def _components(self, place: _Place, sku: str) -> Sequence[Line]:
        """Return what a kit is made of, by its definition now; nothing of any other SKU."""
        kits = self._inventory.kits.known_now(place.merchant)
        if kits is None:
            kits = await self._inventory.kits.known(place.merchant)
        kit = kits.get(sku)
        return () if kit is None else kit.components

    async def _run(self, place: _Place, command: Command, event_id: str) -> Taken:
        reply = await self._inventory.run_fact(
            "feed", place.keys.partition, command, (place.merchant, place.location)
        )
        code = Outcome(reply[0])
        if code is Outcome.REPLAYED:
            return Taken(event_id, Verdict.DUPLICATE, "", reply[1], reply[2])
        if code is not Outcome.OK:
            raise refusal(reply, key=event_id)
        expects = nearest(str(command.arguments[-1]), reply[5]) if len(reply) > 5 else ()
        return Taken(event_id, Verdict(reply[3]), reply[4], reply[1], reply[2], expects)


def type_of(kind: str) -> EventType:
    """Return the type of event that the ledger calls `kind`."""
    return _TYPES[kind]


def check_event(event: FeedEvent) -> None:
    """Check an event's fields. Raises InvalidCommand."""
    check_id("event_id", event.event_id)
    check_text("reason", event.reason)
    check_text("reference", event.reference)
    check_text("supply", event.supply)
    if event.supply and event.type not in _ARRIVALS:
        raise InvalidCommand("supply", "is of what arrives: a receipt or a transfer_in")
    check_count("occurred_at", event.occurred_at_ms)
    check_count("sequence", event.sequence)
    if event.occurred_at_ms == 0:
        raise InvalidCommand("occurred_at", "say when it happened")
    if event.type is EventType.HEARTBEAT:
        if event.sku or event.quantity:
            raise InvalidCommand("sku", "a heartbeat is of no SKU and has no quantity")
        return
    check_id("sku", event.sku)
    check_change(
        event.quantity,
        event.reason,
        counts=event.type is EventType.COUNT,
        adjusts=event.type is EventType.ADJUSTMENT,
    )


def _fingerprint(event: FeedEvent) -> str:
    """Return the digest of what an event says; a supply counts only where it names one."""
    *told, supply = [str(value) for value in msgspec.structs.astuple(event)]
    return digest(*told, supply) if supply else digest(*told)


def _source(name: str, fields: Sequence[bytes | None]) -> Source:
    mode, *numbers, ahead, _, beats = fields
    heard_at_ms, occurred_at_ms, watermark, highest = (int(number or 0) for number in numbers)
    gaps = []
    reached = watermark
    for first, last, since_ms in msgspec.msgpack.decode(ahead) if ahead else ():
        gaps.append(Gap(reached + 1, first - 1, since_ms))
        reached = last
    return Source(
        name=name,
        counts=mode == b"sequence",
        heard_at_ms=heard_at_ms,
        occurred_at_ms=occurred_at_ms,
        watermark=watermark,
        highest=highest,
        beats=beats is not None,
        gaps=tuple(gaps),
    )


def _quarantined(the_id: str, body: bytes) -> Quarantined:
    parts: list[Any] = msgspec.msgpack.decode(body)
    (at_ms, why, actor, _, source, event_id, kind, sku, quantity, occurred_at_ms) = parts[:10]
    sequence, reason, reference, raw = parts[10:14]
    return Quarantined(
        id=the_id,
        at_ms=at_ms,
        why=why,
        actor=split_trace(actor)[0],
        source=source,
        event_id=event_id,
        type=kind,
        sku=sku,
        quantity=quantity,
        occurred_at_ms=occurred_at_ms,
        sequence=sequence,
        reason=reason,
        reference=reference,
        raw=raw,
        supply=parts[14] if len(parts) > 14 else "",
    )
