"""Sourcing: which locations an order's units come from.

Pure functions: a strategy puts the locations in an order, and a plan takes from them until nothing
is wanted any more. What they are told of stock may be stale; the decision is taken by the reserve
itself, and what its refusal says of a row is what the next plan goes by.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import combinations
from math import asin, cos, inf, radians, sin, sqrt
from typing import Final

import msgspec

from engine.model import Line

EARTH_RADIUS_KM: Final = 6371.0088
"""The mean radius of the WGS 84 ellipsoid (IUGG)."""

MAX_TRIED_TOGETHER: Final = 12
"""Locations among which FEWEST_SPLITS looks for the smallest set: up to 781 sets of four."""

MAX_EXACT_SPLITS: Final = 4
"""Past so many locations the one that has most of what is missing comes next (greedy set cover, at
most ln n times as many as needed: Chvatal 1979)."""


class Strategy(StrEnum):
    """What makes a location the better one."""

    PRIORITY = "priority"
    """The lowest priority number that was given to it."""
    DISTANCE = "distance"
    """The shortest way to the destination; those without coordinates come last."""
    FEWEST_SPLITS = "fewest_splits"
    """As few locations as possible; among as many, the lower priority numbers."""
    MOST_STOCK = "most_stock"
    """The most units left of what is wanted, so that shelves run down evenly."""


class Coordinates(msgspec.Struct, frozen=True):
    """A place on Earth in degrees (WGS 84): north and east are positive."""

    latitude: float
    longitude: float


class Way(msgspec.Struct, frozen=True):
    """How a SKU may be served: `of` units of something stand for `for_` units of it.

    A unit of that takes so many units of each of `rows`.
    """

    of: int
    for_: int
    rows: tuple[tuple[str, int], ...]

    def most(self, available: Mapping[str, int]) -> int:
        """Return how many units of the SKU can be served of what is available by row."""
        room = min(available.get(sku, 0) // units for sku, units in self.rows)
        return room * self.for_ // self.of

    def take(self, served: int, available: dict[str, int]) -> None:
        """Take what it needs to serve so many units."""
        units = -(-served * self.of // self.for_)
        for sku, each in self.rows:
            available[sku] -= units * each


class Ways(msgspec.Struct, frozen=True):
    """All ways to serve a SKU at a location, the first of them first.

    With `is_whole` one of them serves all that is wanted of it, or none does.
    """

    ways: tuple[Way, ...]
    is_whole: bool = False


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A location as a plan sees it: `available` units by row, 0 where a row is not named.

    A SKU is served by its own row unless `ways` has others, and `most` bounds what may be had of
    it. `is_degraded` says that the location's tills are silent, so its numbers are less sure: it
    comes last.
    """

    location: str
    available: Mapping[str, int]
    ways: Mapping[str, Ways] = {}
    most: Mapping[str, int] = {}
    priority: int = 0
    coordinates: Coordinates | None = None
    is_degraded: bool = False

    def ways_of(self, sku: str) -> Ways:
        """Return how a SKU may be served."""
        return self.ways.get(sku) or Ways((Way(1, 1, ((sku, 1),)),))

    def serve(self, wanted: Iterable[Line]) -> dict[str, int]:
        """Return how many units of each SKU can be had there, line after line.

        What two of them need is counted once. Lines that only their own row can serve come first,
        as they do in a reserve.
        """
        if not self.ways:
            return {
                x.sku: min(
                    x.quantity, self.available.get(x.sku, 0), self.most.get(x.sku, x.quantity)
                )
                for x in wanted
            }
        available = dict(self.available)
        in_turn = sorted(wanted, key=lambda line: line.sku in self.ways)
        return {line.sku: self._serve_line(line, available) for line in in_turn}

    def without(self, lines: Sequence[Line]) -> "Candidate":
        """Return what is left there for others once these lines have what they can have."""
        available = dict(self.available)
        for line in lines:
            self._serve_line(line, available)
        return msgspec.structs.replace(self, available=available)

    def _serve_line(self, line: Line, available: dict[str, int]) -> int:
        wanted = min(line.quantity, self.most.get(line.sku, line.quantity))
        ways = self.ways_of(line.sku)
        if ways.is_whole:
            whole = [way for way in ways.ways if way.most(available) >= line.quantity == wanted]
            if not whole:
                return 0
            whole[0].take(wanted, available)
            return wanted
        left = wanted
        for way in ways.ways:
            served = min(left, way.most(available))
            if served:
                way.take(served, available)
                left -= served
        return wanted - left


class Source(msgspec.Struct, frozen=True):
    """What is taken from one location, and why from there."""

    location: str
    lines: tuple[Line, ...]
    why: str


class Sourced(msgspec.Struct, frozen=True):
    """A plan: what comes from where, what nobody has, and which locations were passed over.

    `substituted` are the SKUs that others may stand for, since there is too little of them.
    """

    sources: tuple[Source, ...]
    missing: tuple[Line, ...]
    passed_over: tuple[tuple[str, str], ...]
    substituted: frozenset[str] = frozenset()


def source(
    wanted: Sequence[Line],
    candidates: Sequence[Candidate],
    strategy: Strategy,
    *,
    destination: Coordinates | None = None,
) -> Sourced:
    """Plan where the units of `wanted` (each SKU once) come from, and say why.

    A line is split where no location of the plan has all of it. Equal inputs make equal plans: what
    the strategy leaves open, the location's name decides.
    """
    useful = [one for one in candidates if _covered(one, wanted)]
    ordered = sorted(useful, key=lambda one: _rank(one, wanted, strategy, destination=destination))
    if strategy is Strategy.FEWEST_SPLITS:
        ordered = _fewest(ordered, _scarcest_first(useful, wanted))
    left = {line.sku: line.quantity for line in wanted}
    in_turn = [line.sku for line in _scarcest_first(useful, wanted)]
    sources: list[Source] = []
    for one in ordered:
        served = one.serve([Line(sku, left[sku]) for sku in in_turn if left[sku]])
        lines = tuple(Line(sku, served[sku]) for sku in left if served.get(sku))
        if not lines:
            continue
        for line in lines:
            left[line.sku] -= line.quantity
        why = _why(one, strategy, is_whole=not sources and not any(left.values()))
        if destination is not None and one.coordinates is not None:
            why += f", {distance_km(one.coordinates, destination):.1f} km away"
        sources.append(Source(one.location, lines, why))
    taken = {one.location for one in sources}
    passed = [
        (one.location, _why_not(one, wanted, is_useful=one in useful))
        for one in candidates
        if one.location not in taken
    ]
    missing = tuple(Line(sku, units) for sku, units in left.items() if units)
    return Sourced(tuple(sources), missing, tuple(passed))


def distance_km(one: Coordinates, other: Coordinates) -> float:
    """Return the great-circle distance by the haversine formula (Sinnott 1984), within 0.5 %."""
    north = radians(other.latitude - one.latitude)
    east = radians(other.longitude - one.longitude)
    chord = (
        sin(north / 2) ** 2
        + cos(radians(one.latitude)) * cos(radians(other.latitude)) * sin(east / 2) ** 2
    )
    return 2 * EARTH_RADIUS_KM * asin(min(1.0, sqrt(chord)))


def _covered(one: Candidate, wanted: Sequence[Line]) -> int:
    """Return how many of the wanted units a location has."""
    return sum(one.serve(wanted).values())


def _rank(
    one: Candidate,
    wanted: Sequence[Line],
    strategy: Strategy,
    *,
    destination: Coordinates | None,
) -> tuple[bool, float, int, str]:
    """Return what a strategy sorts by; live locations come first whatever it is."""
    first: float = one.priority
    if strategy is Strategy.DISTANCE:
        first = inf
        if one.coordinates is not None and destination is not None:
            first = distance_km(one.coordinates, destination)
    elif strategy is Strategy.MOST_STOCK:
        first = -_stock(one, wanted)
    return one.is_degraded, first, one.priority, one.location


def _fewest(ordered: Sequence[Candidate], wanted: Sequence[Line]) -> list[Candidate]:
    """Return the smallest set that has everything, the first such set in the given order.

    A set without degraded locations is taken before a smaller one with them.
    """
    live = [one for one in ordered if not one.is_degraded]
    for pool in (live, list(ordered)):
        near = pool[:MAX_TRIED_TOGETHER]
        singles = [one for one in pool if _has_all([one], wanted)]
        if singles:
            return singles[:1]
        for size in range(2, MAX_EXACT_SPLITS + 1):
            for some in combinations(near, size):
                if _has_all(some, wanted):
                    return list(some)
        chosen = _greedy(pool, wanted)
        if _has_all(chosen, wanted):
            return chosen
    return _greedy(ordered, wanted)


def _greedy(pool: Sequence[Candidate], wanted: Sequence[Line]) -> list[Candidate]:
    left = list(wanted)
    rest, chosen = list(pool), []
    while rest and left:
        best = max(rest, key=lambda one: _covered(one, left))
        if not _covered(best, left):
            break
        rest.remove(best)
        chosen.append(best)
        left = _left_after(best, left)
    return chosen


def _has_all(some: Sequence[Candidate], wanted: Sequence[Line]) -> bool:
    left = list(wanted)
    for one in some:
        left = _left_after(one, left)
    return not left


def _left_after(one: Candidate, wanted: Sequence[Line]) -> list[Line]:
    """Return what is still wanted once a location served what it can."""
    served = one.serve(wanted)
    return [
        Line(line.sku, line.quantity - served[line.sku])
        for line in wanted
        if served[line.sku] < line.quantity
    ]


def _scarcest_first(some: Sequence[Candidate], wanted: Sequence[Line]) -> Sequence[Line]:
    """Put lines that can be had hardly anywhere before those that may leave them what they need."""
    if not any(one.ways for one in some):
        return wanted
    return sorted(wanted, key=lambda x: sum(_stock(one, [x]) for one in some) / x.quantity)


def _stock(one: Candidate, wanted: Sequence[Line]) -> int:
    """Return how many units of what is wanted there are, of each SKU by itself."""
    return sum(sum(way.most(one.available) for way in one.ways_of(x.sku).ways) for x in wanted)


def _why(one: Candidate, strategy: Strategy, *, is_whole: bool) -> str:
    reasons = {
        Strategy.PRIORITY: f"priority {one.priority}",
        Strategy.DISTANCE: "the nearest that has it" if one.coordinates else "no coordinates",
        Strategy.FEWEST_SPLITS: "one of the fewest locations that have everything together",
        Strategy.MOST_STOCK: "the most units left",
    }
    why = reasons[strategy]
    if is_whole:
        why += ", has all of it"
    return f"{why}, its tills are silent" if one.is_degraded else why


def _why_not(one: Candidate, wanted: Sequence[Line], *, is_useful: bool) -> str:
    if not is_useful:
        return "has none of it"
    if one.is_degraded:
        return "its tills are silent, and others have it"
    return f"has {_covered(one, wanted)} of the units, and others come first"
