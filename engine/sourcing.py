"""Sourcing: which locations an order's units come from.

Pure functions: a strategy puts the locations in an order, and a plan takes from them until nothing
is wanted any more. What is on the shelves goes first; only what all of them together lack is to
wait for what comes. What they are told of stock may be stale; the decision is taken by the reserve
itself, and what its refusal says of a row is what the next plan goes by. How lines that need the
same rows are shared out is in `engine.layouts`.
"""

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from itertools import combinations
from math import asin, cos, inf, radians, sin, sqrt
from typing import Final, NamedTuple

import msgspec

from engine.layouts import (
    Budget,
    Candidate,
    Coordinates,
    Served,
    each_alone,
    has_all,
    lay_out,
    left_of,
)
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


class Source(msgspec.Struct, frozen=True):
    """What is taken from one location, and why from there.

    `waiting` are those units of `lines` that are not on its shelf yet. `is_firm` says that more
    could wait there, and none of these are meant to.
    """

    location: str
    lines: tuple[Line, ...]
    why: str
    waiting: tuple[Line, ...] = ()
    is_firm: bool = False


class Sourced(msgspec.Struct, frozen=True):
    """A plan: what comes from where, what nobody has, and which locations were passed over.

    `substituted` are the SKUs that others may stand for, since there is too little of them.
    """

    sources: tuple[Source, ...]
    missing: tuple[Line, ...]
    passed_over: tuple[tuple[str, str], ...]
    substituted: frozenset[str] = frozenset()


class _Chosen(NamedTuple):
    """The locations that serve something, in their order, and how much is missing of each SKU."""

    places: list[tuple[Candidate, Served]]
    left: Served

    @property
    def is_short(self) -> bool:
        return any(self.left.values())


def source(
    wanted: Sequence[Line],
    candidates: Sequence[Candidate],
    strategy: Strategy,
    *,
    destination: Coordinates | None = None,
    budget: Budget | None = None,
) -> Sourced:
    """Plan where the units of `wanted` (each SKU once) come from, and say why.

    What is on the shelves goes first, wherever it is: so as few units wait for what is to come as
    can be. Those that wait are taken at the locations of the shelves, where these have room for
    them, and else by the strategy. A line is split where no location of the plan has all of it.
    Equal inputs make equal plans: what the strategy leaves open, the location's name decides. All
    searches share one budget; who plans in several stages brings the same one to each.
    """
    left_to_look = budget or Budget()

    def choose(wanted: Sequence[Line], some: Sequence[Candidate]) -> _Chosen:
        return _choose(wanted, some, strategy, left_to_look, destination=destination)

    shelves = [one.on_shelf() for one in candidates]
    chosen = choose(wanted, shelves)
    is_short = chosen.is_short
    if is_short and any(one.to_come for one in candidates):
        chosen = _with_those_to_come(chosen, wanted, candidates, choose)
    own = {one.location: one for one in candidates}
    sources = []
    for one, served in chosen.places:
        lines = tuple([Line(x.sku, served[x.sku]) for x in wanted if served.get(x.sku)])
        is_whole = one is chosen.places[0][0] and not chosen.is_short and len(chosen.places) == 1
        why = _why(one, strategy, is_whole=is_whole, is_short=is_short)
        if destination is not None and one.coordinates is not None:
            why += f", {distance_km(one.coordinates, destination):.1f} km away"
        waiting = _waiting(own[one.location].on_shelf(), lines)
        if waiting:
            units = ", ".join(f"{line.quantity} of {line.sku}" for line in waiting)
            why += f"; {units} wait for what is to come, as all shelves together have too little"
        is_firm = not waiting and any(own[one.location].to_come.values())
        sources.append(Source(one.location, lines, why, waiting, is_firm))
    taken = {one.location for one in sources}
    passed = [(one.location, _why_not(one, wanted)) for one in shelves if one.location not in taken]
    missing = tuple(Line(sku, units) for sku, units in chosen.left.items() if units)
    return Sourced(tuple(sources), missing, tuple(passed))


def _with_those_to_come(
    shelves: _Chosen,
    wanted: Sequence[Line],
    candidates: Sequence[Candidate],
    choose: Callable[[Sequence[Line], Sequence[Candidate]], _Chosen],
) -> _Chosen:
    """Plan for what all shelves together lack, or all anew where that leaves less missing."""
    in_all = [one.in_all() for one in candidates]
    given = {one.location: served for one, served in shelves.places}
    rest = [_after(one, given.get(one.location, {})) for one in in_all]
    chosen = _Chosen([], shelves.left)
    for some in (
        [one for one in rest if one.location in given],
        [one for one in rest if one.location not in given],
    ):
        more = choose([Line(sku, units) for sku, units in chosen.left.items() if units], some)
        chosen = _Chosen([*chosen.places, *more.places], chosen.left | more.left)
    anew = choose(wanted, in_all) if chosen.is_short else chosen
    if sum(anew.left.values()) < sum(chosen.left.values()):
        return anew
    served = {one.location: dict(units) for one, units in shelves.places}
    for one, units in chosen.places:
        so_far = served.setdefault(one.location, {})
        for sku, more_units in units.items():
            so_far[sku] = so_far.get(sku, 0) + more_units
    by_name = {one.location: one for one in candidates}
    return _Chosen([(by_name[at], units) for at, units in served.items()], chosen.left)


def _after(one: Candidate, served: Served) -> Candidate:
    """Return what is left at a location that serves some already."""
    most = {sku: units - served.get(sku, 0) for sku, units in one.most.items()}
    lines = [Line(sku, units) for sku, units in served.items() if units]
    return msgspec.structs.replace(one.without(lines), most=most)


def _waiting(shelf: Candidate, lines: Sequence[Line]) -> tuple[Line, ...]:
    """Return those units of lines that a location's shelf does not have."""
    there = shelf.serve(lines)
    short = [Line(x.sku, x.quantity - there[x.sku]) for x in lines if there[x.sku] < x.quantity]
    return tuple(short)


def _choose(
    wanted: Sequence[Line],
    candidates: Sequence[Candidate],
    strategy: Strategy,
    budget: Budget,
    *,
    destination: Coordinates | None,
) -> _Chosen:
    """Choose locations by a strategy, and say what each of them serves."""
    useful = [one for one in candidates if _covered(one, wanted)]
    ordered = sorted(useful, key=lambda one: _rank(one, wanted, strategy, destination=destination))
    in_turn = _scarcest_first(useful, wanted)
    some: Sequence[Candidate] = ordered
    if strategy is Strategy.FEWEST_SPLITS:
        some = _fewest(ordered, in_turn, budget)
    layout = lay_out(some, in_turn, budget)
    left = left_of(wanted, layout)
    if any(left.values()) and len(some) < len(ordered):
        every = lay_out(ordered, in_turn, budget)
        left_by_all = left_of(wanted, every)
        if sum(left_by_all.values()) < sum(left.values()):
            some, layout, left = ordered, every, left_by_all
    places = [
        (one, served) for one, served in zip(some, layout, strict=True) if any(served.values())
    ]
    return _Chosen(places, left)


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


def _fewest(
    ordered: Sequence[Candidate], wanted: Sequence[Line], budget: Budget
) -> Sequence[Candidate]:
    """Return the smallest set that has everything, the first such set in the given order.

    A set without degraded locations is taken before a smaller one with them.
    """
    live = [one for one in ordered if not one.is_degraded]
    alone = {one.location: each_alone(one, wanted) for one in ordered}

    def has_each(some: Sequence[Candidate]) -> bool:
        together = zip(*(alone[one.location] for one in some), strict=True)
        return all(sum(there) >= x.quantity for there, x in zip(together, wanted, strict=True))

    def sets(pool: Sequence[Candidate]) -> Iterator[Sequence[Candidate]]:
        yield from ((one,) for one in pool)
        near = pool[:MAX_TRIED_TOGETHER]
        for size in range(2, MAX_EXACT_SPLITS + 1):
            yield from combinations(near, size)

    for pool in (live, list(ordered)):
        if not pool or not has_each(pool):
            continue
        for some in sets(pool):
            if has_each(some) and has_all(some, wanted, budget):
                return some
            if budget.left <= 0:
                break
        chosen = _greedy(pool, wanted)
        if has_all(chosen, wanted, budget):
            return chosen
    return _greedy(ordered, wanted)


def _greedy(pool: Sequence[Candidate], wanted: Sequence[Line]) -> list[Candidate]:
    left = list(wanted)
    rest, chosen = list(pool), []
    while rest and left:
        best = max(rest, key=lambda one: _covered(one, left))
        served = best.serve(left)
        if not any(served.values()):
            break
        rest.remove(best)
        chosen.append(best)
        left = [
            Line(line.sku, line.quantity - served[line.sku])
            for line in left
            if served[line.sku] < line.quantity
        ]
    return chosen


def _scarcest_first(some: Sequence[Candidate], wanted: Sequence[Line]) -> Sequence[Line]:
    """Put lines that can be had hardly anywhere before those that may leave them what they need."""
    if not any(one.ways for one in some):
        return wanted
    return sorted(wanted, key=lambda x: sum(_stock(one, [x]) for one in some) / x.quantity)


def _stock(one: Candidate, wanted: Sequence[Line]) -> int:
    """Return how many units of what is wanted there are, of each SKU by itself."""
    stock = one.stock()
    return sum(sum(way.most(stock) for way in one.ways_of(x.sku).ways) for x in wanted)


def _why(one: Candidate, strategy: Strategy, *, is_whole: bool, is_short: bool) -> str:
    reasons = {
        Strategy.PRIORITY: f"priority {one.priority}",
        Strategy.DISTANCE: "the nearest that has it" if one.coordinates else "no coordinates",
        Strategy.FEWEST_SPLITS: "one of those that can serve some of it"
        if is_short
        else "one of the fewest locations that have everything together",
        Strategy.MOST_STOCK: "the most units left",
    }
    why = reasons[strategy]
    if is_whole:
        why += ", has all of it"
    return f"{why}, its tills are silent" if one.is_degraded else why


def _why_not(one: Candidate, wanted: Sequence[Line]) -> str:
    units = _covered(one, wanted)
    if not units:
        return "has none of it"
    if one.is_degraded:
        return "its tills are silent, and others have it"
    return f"has {units} of the units, and others come first"
