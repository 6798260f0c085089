"""Watching sources: which are silent, and which miss events for longer than they may."""

from collections import Counter
from typing import Final

import msgspec

from engine.feeds import Feeds, SourceState
from engine.inventory import Inventory
from engine.keys import parse_location_member
from engine.upkeep import Alarm, FeedFigures

MAX_WATCHED: Final = 1_000
"""Locations with sources that are looked at in one round; the next round goes on from there."""

MAX_NAMED: Final = 3
"""Sources that an alarm names; it counts the rest."""


class Trouble(msgspec.Struct, frozen=True):
    """What is wrong with one source."""

    merchant: str
    location: str
    source: str
    missing: int


class _Sources(msgspec.Struct):
    """The sources of one location; `heard_at_ms` is of the one that is silent the longest."""

    states: list[SourceState] = []
    missing: int = 0
    heard_at_ms: int = 0


class FeedWatch:
    """Looks at the sources of a store, a part of them in each round."""

    def __init__(self, inventory: Inventory, feeds: Feeds) -> None:
        """Start with the first partition."""
        self._inventory = inventory
        self._feeds = feeds
        self._partition = 0
        self._after = "-"
        self._gaps: dict[tuple[str, str, str], Trouble] = {}
        self._sources: dict[tuple[str, str], _Sources] = {}

    async def round(self, now_ms: int) -> list[Alarm]:
        """Look at some locations, and return the alarms as far as they are known.

        Raises what the store's reads raise.
        """
        for merchant, location in await self._next_places():
            policy = await self._feeds.policies.of(merchant, location)
            seen = self._sources[merchant, location] = _Sources()
            for source in await self._feeds.sources(merchant, location):
                seen.states.append(source.state(now_ms, heartbeat_ms=policy.heartbeat_ms))
                seen.missing += source.missing
                if source.beats:
                    seen.heard_at_ms = min(seen.heard_at_ms or now_ms, source.heard_at_ms)
                name = (merchant, location, source.name)
                late = [gap for gap in source.gaps if now_ms - gap.since_ms > policy.gap_grace_ms]
                self._gaps.pop(name, None)
                if late:
                    missing = sum(gap.last - gap.first + 1 for gap in late)
                    self._gaps[name] = Trouble(*name, missing)
        return self._alarms()

    def figures(self, now_ms: int) -> FeedFigures:
        """Return how the sources are, as far as they are known."""
        states = Counter(state for one in self._sources.values() for state in one.states)
        heard_at_ms = [one.heard_at_ms for one in self._sources.values() if one.heard_at_ms]
        return FeedFigures(
            live=states[SourceState.LIVE],
            degraded=states[SourceState.DEGRADED],
            catching_up=states[SourceState.CATCHING_UP],
            missing=sum(one.missing for one in self._sources.values()),
            silent_ms=max(0, now_ms - min(heard_at_ms, default=now_ms)),
        )

    async def _next_places(self) -> list[tuple[str, str]]:
        """Return the locations that are next, around all partitions."""
        places: list[tuple[str, str]] = []
        keys = self._inventory.keys
        for _ in range(len(keys)):
            wanted = MAX_WATCHED - len(places)
            (members,) = await self._inventory.store.read(
                [
                    (
                        "ZRANGEBYLEX",
                        keys[self._partition].feeding,
                        self._after,
                        "+",
                        "LIMIT",
                        0,
                        wanted,
                    )
                ]
            )
            found = [parse_location_member(member.decode()) for member in members]
            places += [place for place in found if place is not None]
            if len(members) == wanted:
                self._after = f"({members[-1].decode()}"
                break
            self._partition = (self._partition + 1) % len(keys)
            self._after = "-"
        return places

    def _alarms(self) -> list[Alarm]:
        if not self._gaps:
            return []
        named = list(self._gaps.values())[:MAX_NAMED]
        told = "; ".join(
            f"{one.source} at {one.location} of {one.merchant} misses {one.missing}"
            for one in named
        )
        rest = len(self._gaps) - len(named)
        text = f"events are missing: {told}" + (f"; and {rest} more sources" if rest else "")
        return [Alarm("feed_gap", f"{text}. `holdfast feeds list` shows which numbers")]
