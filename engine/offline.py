"""Locations whose tills are silent: what may still be promised there.

A source that sends heartbeats is expected to go on. Past its deadline the location is `degraded`,
and what its tills have probably sold since is held back from promising (or everything, or nothing,
by the merchant's policy), until the source is heard of again and its sequence is whole.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import structlog

from engine.clock import clock_ms
from engine.dispatch import Command
from engine.estimator import Rate, buffer_units
from engine.feeds import Feeds, Source, SourceState
from engine.inventory import Inventory
from engine.keys import PartitionKeys, digest, parse_location_member
from engine.leases import leases_of
from engine.ledger import MOVEMENTS, Entry, read_entries, reader_place, units_of
from engine.limits import MAX_TOTAL
from engine.model import MovementType
from engine.outcomes import Outcome, StoreUnavailable
from engine.policies import Policy, WhenOffline
from engine.refusals import refusal
from engine.rounds import in_rounds
from engine.store import pairs

READER: Final = "rates"
"""Its name among the readers of the ledger."""

POLL_SECONDS: Final = 5.0
ROUND_ENTRIES: Final = 1_000
MAX_ROUNDS: Final = 20
"""Stretches of the ledger that are read of one partition before the next has its turn."""

COMMAND_ROWS: Final = 200
"""Rows that one command changes: a millisecond or two of the store's time."""

MAX_CHANGED: Final = 2_000
"""Rows of one location that one round changes; the next round goes on."""

WATCHED: Final = ""
"""The field of a location's rates that says since when they are kept."""

ACTOR: Final = "offline"

log = structlog.get_logger()

Place = tuple[str, str]
"""(merchant, location)."""


class Freshness(msgspec.Struct, frozen=True):
    """How a location is, and since when it is not live (ms; 0 where it is)."""

    state: SourceState
    since_ms: int


LIVE: Final = Freshness(SourceState.LIVE, 0)


def parse_freshness(text: bytes | None) -> Freshness:
    """Read what `lua/offline.lua` keeps of a location."""
    if text is None:
        return LIVE
    state, _, since = text.decode().partition(" ")
    return Freshness(SourceState(state), int(since))


class OfflineKeeper:
    """Watches heartbeats and rates of sale, and holds units back, until told to stop."""

    def __init__(self, inventory: Inventory, feeds: Feeds) -> None:
        """Any number may run on a store: a partition has one keeper at a time."""
        self._inventory = inventory
        self._store = inventory.store
        self._feeds = feeds
        self._dispatch = inventory.dispatcher
        self._leases = leases_of(inventory.store, inventory.keys, "offline")

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; outages of the store are waited out."""
        await in_rounds(
            "offline keeper", self.round, stop, pause_seconds=POLL_SECONDS, leases=self._leases
        )

    async def round(self, *, now_ms: int | None = None) -> int:
        """Look at every location with sources; return how many rows hold back another number.

        `now_ms` stands for the store's clock. Raises what the store's calls raise.
        """
        changed = 0
        for keys in self._inventory.keys:
            if not await self._leases[keys.partition].hold():
                continue
            (members,) = await self._store.read([("ZRANGE", keys.feeding, 0, -1)])
            if not members:
                # Nobody's silence means anything here, so nobody's sales need be known.
                continue
            await self._read_sales(keys)
            at_ms = await clock_ms(self._store, keys) if now_ms is None else now_ms
            for member in members:
                place = parse_location_member(member.decode())
                if place is not None:
                    changed += await self._look_at(keys, place, at_ms)
        return changed

    # Rates of sale

    async def _read_sales(self, keys: PartitionKeys) -> None:
        """Add what the ledger tells of sales to the rates.

        After a kill a stretch may be counted twice: an estimate bears that.
        """
        (position,) = await self._store.read([("HGET", keys.readers, READER)])
        after = "0-0" if position is None else position.decode().split()[0]
        for _ in range(MAX_ROUNDS):
            entries = await read_entries(self._store, keys, after=after, count=ROUND_ENTRIES)
            if not entries:
                return
            for place, sales in _sales(entries).items():
                await self._add(keys, place, sales)
            after = entries[-1].stream_id
            await self._store.read([("HSET", keys.readers, READER, reader_place(entries[-1]))])

    async def _add(
        self, keys: PartitionKeys, place: Place, sales: Mapping[str, tuple[int, int]]
    ) -> None:
        key, skus = keys.rates(*place), list(sales)
        first_ms = min(at_ms for _, at_ms in sales.values())
        (found,) = await self._store.read([("HMGET", key, *[f"s{sku}" for sku in skus])])
        fields: list[str | int] = []
        for sku, text in zip(skus, found, strict=True):
            units, at_ms = sales[sku]
            rate = (_rate(text) if text else Rate(0.0, at_ms)).after(at_ms, units)
            fields += (f"s{sku}", msgspec.json.encode(rate).decode())
        await self._store.read([("HSETNX", key, WATCHED, first_ms), ("HSET", key, *fields)])

    # Locations

    async def _look_at(self, keys: PartitionKeys, place: Place, now_ms: int) -> int:
        policy = await self._feeds.policies.of(*place)
        sources = await self._feeds.sources(*place)
        freshness, known_ms = _freshness(sources, policy, now_ms)
        (reply,) = await self._store.read([("HGETALL", keys.offline(*place))])
        held = dict(pairs(reply))
        before = parse_freshness(held.get(b""))
        if freshness == LIVE and len(held) == 0:
            return 0
        if freshness != LIVE and before != LIVE:
            # It is one absence, however often the till is heard of until all is in.
            freshness = Freshness(freshness.state, before.since_ms)
        wanted: dict[str, int] = {}
        if freshness != LIVE:
            wanted = await self._wanted(keys, place, policy, now_ms - known_ms, now_ms)
        current = {name[1:].decode(): int(units) for name, units in held.items() if name}
        changes = {
            sku: wanted.get(sku, 0)
            for sku in wanted.keys() | current.keys()
            if wanted.get(sku, 0) != current.get(sku, 0)
        }
        if freshness.state != before.state:
            log.warning(
                "a location's tills",
                merchant=place[0],
                location=place[1],
                state=freshness.state.value,
                policy=policy.when_offline.value,
            )
        return await self._hold_back(keys, place, freshness, changes)

    async def _wanted(
        self, keys: PartitionKeys, place: Place, policy: Policy, silent_ms: int, now_ms: int
    ) -> dict[str, int]:
        """Return the units to hold back of each row; those that are not named hold back none."""
        if policy.when_offline is WhenOffline.TRUST:
            return {}
        if policy.when_offline is WhenOffline.FREEZE:
            return dict.fromkeys(await self._skus(keys, place), MAX_TOTAL)
        (reply,) = await self._store.read([("HGETALL", keys.rates(*place))])
        found = dict(pairs(reply))
        watched_ms = now_ms - int(found.pop(b"", now_ms))
        wanted = {
            name[1:].decode(): buffer_units(
                _rate(text),
                watched_ms=watched_ms,
                silent_ms=silent_ms,
                now_ms=now_ms,
                confidence=policy.confidence,
            )
            for name, text in found.items()
        }
        return {sku: units for sku, units in wanted.items() if units}

    async def _skus(self, keys: PartitionKeys, place: Place) -> list[str]:
        (found,) = await self._store.read([("ZRANGE", keys.skus(*place), 0, -1)])
        return [sku.decode() for sku in found]

    async def _hold_back(
        self,
        keys: PartitionKeys,
        place: Place,
        freshness: Freshness,
        changes: Mapping[str, int],
    ) -> int:
        # What is to be given back goes first, and then what holds back the most.
        ordered = sorted(changes.items(), key=lambda one: (one[1] != 0, -one[1]))[:MAX_CHANGED]
        stretches = [
            ordered[start : start + COMMAND_ROWS] for start in range(0, len(ordered), COMMAND_ROWS)
        ]
        changed = 0
        for stretch in stretches or [[]]:
            command = Command(
                (
                    keys.offline(*place),
                    *[keys.stock(*place, sku) for sku, _ in stretch],
                ),
                (
                    digest("offline", *place),
                    *place,
                    ACTOR,
                    freshness.state,
                    freshness.since_ms,
                    stretch,
                ),
            )
            reply = await self._dispatch.run("offline", keys.partition, command)
            if Outcome(reply[0]) is not Outcome.OK:
                raise refusal(reply)
            changed += reply[1]
        return changed


class FreshnessView:
    """How locations are, remembered for a moment: availability is asked far more often."""

    KEPT_SECONDS: Final = 1.0
    MAX_KEPT: Final = 10_000

    def __init__(self, inventory: Inventory) -> None:
        """Remember nothing yet."""
        self._inventory = inventory
        self._known: dict[Place, tuple[float, Freshness]] = {}

    async def of(self, merchant: str, locations: Iterable[str]) -> dict[str, Freshness]:
        """Return how each location is; while the store is away, how it was last known to be."""
        wanted = {one: (merchant, one) for one in locations}
        old = [place for place in wanted.values() if self._known_until(place) <= time.monotonic()]
        if old:
            if len(self._known) > self.MAX_KEPT:
                self._known.clear()
            # Whoever asks meanwhile is answered with what is known, and waits for nothing.
            self._keep([place for place in old if place in self._known])
            try:
                texts = await self._read(old)
            except StoreUnavailable:
                self._keep(old)
            else:
                self._keep(old, map(parse_freshness, texts))
        return {one: self._known_of(place) for one, place in wanted.items()}

    async def _read(self, places: Sequence[Place]) -> list[Any]:
        keys = (self._inventory.keys_of(*place).offline(*place) for place in places)
        return await self._inventory.store.read([("HGET", key, "") for key in keys])

    def _keep(self, places: Sequence[Place], found: Iterable[Freshness] | None = None) -> None:
        """Take what was found, or else what is known, to hold for a moment."""
        until = time.monotonic() + self.KEPT_SECONDS
        for place, freshness in zip(
            places, map(self._known_of, places) if found is None else found, strict=True
        ):
            self._known[place] = (until, freshness)

    def _known_until(self, place: Place) -> float:
        return self._known.get(place, (0.0, LIVE))[0]

    def _known_of(self, place: Place) -> Freshness:
        return self._known.get(place, (0.0, LIVE))[1]


def _freshness(sources: Sequence[Source], policy: Policy, now_ms: int) -> tuple[Freshness, int]:
    """Return how a location is, and up to when its tills' sales are known."""
    beating = [source for source in sources if source.beats]
    states = {
        source.name: source.state(now_ms, heartbeat_ms=policy.heartbeat_ms) for source in beating
    }
    behind = [source for source in beating if states[source.name] is not SourceState.LIVE]
    if not behind:
        return LIVE, now_ms
    known_ms = min(source.occurred_at_ms for source in behind)
    silent = any(states[source.name] is SourceState.DEGRADED for source in behind)
    state = SourceState.DEGRADED if silent else SourceState.CATCHING_UP
    return Freshness(state, min(source.heard_at_ms for source in behind)), known_ms


def _sales(entries: Sequence[Entry]) -> dict[Place, dict[str, tuple[int, int]]]:
    """Add up the units of sales by location and SKU, with when the last was booked."""
    sales: dict[Place, dict[str, tuple[int, int]]] = {}
    for entry in entries:
        for operation in entry.operations:
            if operation.kind in MOVEMENTS and operation.detail[0] == MovementType.SALE:
                for row in operation.rows:
                    of_place = sales.setdefault((operation.merchant, operation.location), {})
                    units, _ = of_place.get(row.sku, (0, 0))
                    of_place[row.sku] = (units + units_of(operation, row.sku), entry.at_ms)
    return sales


_rate = msgspec.json.Decoder(Rate).decode
