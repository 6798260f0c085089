"""What a location may serve of an order, and how lines that need the same rows are shared out.

A kit takes units of several rows, and what may stand for a line takes units of another: so two
lines of an order may need the same units. Where they do, to give each location's units to the first
line that takes them may leave another one short that could have been had. Sharing them out so that
nothing is missing is a packing problem; here it is solved by a search with a bound (branch and
bound: Land and Doig 1960), exactly up to MAX_LOOKS.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from engine.model import Line

MAX_LOOKS: Final = 50_000
"""Looks at a line at a location that all searches of one plan take. Past that the best that was
found so far counts, which is never worse than what the first line takes."""

Served = dict[str, int]
"""Units by SKU."""


class Coordinates(msgspec.Struct, frozen=True):
    """A place on Earth in degrees (WGS 84): north and east are positive."""

    latitude: float
    longitude: float


class Way(msgspec.Struct, frozen=True):
    """How a SKU may be served: `of` units of something stand for `for_` units of it.

    A unit of that takes so many units of each of `rows`. Nobody waits for a substitute: it takes
    what is on the shelf alone.
    """

    of: int
    for_: int
    rows: tuple[tuple[str, int], ...]
    is_substitute: bool = False

    def most(self, stock: "Stock") -> int:
        """Return how many units of the SKU can be served."""
        room = min(stock.room(sku, self.is_substitute) // units for sku, units in self.rows)
        return room * self.for_ // self.of

    def take(self, served: int, stock: "Stock") -> None:
        """Take what it needs to serve so many units."""
        units = -(-served * self.of // self.for_)
        for sku, each in self.rows:
            stock.take(sku, units * each)


class Ways(msgspec.Struct, frozen=True):
    """All ways to serve a SKU at a location, the first of them first.

    With `is_whole` one of them serves all that is wanted of it, or none does.
    """

    ways: tuple[Way, ...]
    is_whole: bool = False


class Stock:
    """What is left at a location by row: on the shelf, and of what may be promised before it comes.

    The shelf is taken first.
    """

    __slots__ = ("shelf", "to_come")

    def __init__(self, shelf: Mapping[str, int], to_come: Mapping[str, int]) -> None:
        """Nothing is taken yet."""
        self.shelf, self.to_come = dict(shelf), dict(to_come)

    def room(self, sku: str, shelf_only: bool = False) -> int:
        """Return the units of a row that can be taken."""
        return self.shelf.get(sku, 0) + (0 if shelf_only else self.to_come.get(sku, 0))

    def take(self, sku: str, units: int) -> None:
        """Take units that there is room for."""
        there = min(units, self.shelf.get(sku, 0))
        self.shelf[sku] = self.shelf.get(sku, 0) - there
        if units > there:
            self.to_come[sku] -= units - there

    def copy(self) -> "Stock":
        """Return the same, to be taken from by itself."""
        return Stock(self.shelf, self.to_come)


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A location as a plan sees it, by row: units `available` on its shelf, and those `to_come`.

    The latter may be promised before they are there. A SKU is served by its own row unless `ways`
    has others; `most` bounds what may be had of it of the shelf, `most_in_all` what with those to
    come. A row or SKU that is not named has 0 units, or no bound. `is_degraded` says that the
    location's tills are silent, so its numbers are less sure: it comes last.
    """

    location: str
    available: Mapping[str, int]
    to_come: Mapping[str, int] = {}
    ways: Mapping[str, Ways] = {}
    most: Mapping[str, int] = {}
    most_in_all: Mapping[str, int] = {}
    priority: int = 0
    coordinates: Coordinates | None = None
    is_degraded: bool = False

    def ways_of(self, sku: str) -> Ways:
        """Return how a SKU may be served."""
        return self.ways.get(sku) or Ways((Way(1, 1, ((sku, 1),)),))

    def stock(self) -> Stock:
        """Return all that is left there, to be taken from."""
        return Stock(self.available, self.to_come)

    def on_shelf(self) -> "Candidate":
        """Return the same without what is to come."""
        return msgspec.structs.replace(self, to_come={}) if self.to_come else self

    def in_all(self) -> "Candidate":
        """Return the same for who may wait for what is to come."""
        return msgspec.structs.replace(self, most=self.most_in_all)

    def serve(self, wanted: Iterable[Line]) -> Served:
        """Return how many units of each SKU can be had there, line after line.

        What two of them need is counted once. Lines that only their own row can serve come first,
        as they do in a reserve.
        """
        if not self.ways:
            return {
                x.sku: min(
                    x.quantity,
                    self.available.get(x.sku, 0) + self.to_come.get(x.sku, 0),
                    self.most.get(x.sku, x.quantity),
                )
                for x in wanted
            }
        stock = self.stock()
        return {line.sku: self.serve_line(line, stock) for line in self.in_turn(wanted)}

    def in_turn(self, wanted: Iterable[Line]) -> list[Line]:
        """Return lines in the order in which a reserve serves them."""
        return sorted(wanted, key=lambda line: line.sku in self.ways) if self.ways else list(wanted)

    def without(self, lines: Sequence[Line]) -> "Candidate":
        """Return what is left there for others once these lines have what they can have."""
        stock = Stock(self.available, {})
        left = [
            Line(line.sku, line.quantity - self.serve_line(line, stock))
            for line in self.in_turn(lines)
        ]
        stock.to_come = dict(self.to_come)
        for line in left:
            self.serve_line(line, stock)
        return msgspec.structs.replace(self, available=stock.shelf, to_come=stock.to_come)

    def serve_line(self, line: Line, stock: Stock) -> int:
        """Take from a stock what serves a line; return how much of it that is."""
        wanted = min(line.quantity, self.most.get(line.sku, line.quantity))
        ways = self.ways_of(line.sku)
        if ways.is_whole:
            whole = [way for way in ways.ways if way.most(stock) >= line.quantity == wanted]
            if not whole:
                return 0
            whole[0].take(wanted, stock)
            return wanted
        left = wanted
        for way in ways.ways:
            served = min(left, way.most(stock))
            if served:
                way.take(served, stock)
                left -= served
        return wanted - left


class Budget:
    """How many looks at a line at a location the searches of one plan may still take."""

    def __init__(self, looks: int = MAX_LOOKS) -> None:
        """All of them are left."""
        self.left = looks


def lay_out(some: Sequence[Candidate], wanted: Sequence[Line], budget: Budget) -> list[Served]:
    """Return what each location serves of `wanted` (each SKU once), so that least is missing.

    Of layouts that leave as much missing, the one in which the earlier locations serve the earlier
    lines.
    """
    first = _greedy(some, wanted)
    missing = sum(left_of(wanted, first).values())
    if not missing or budget.left <= 0 or not any(_compete(one, wanted) for one in some):
        return first
    return _search(some, wanted, first, missing, budget)


def left_of(wanted: Sequence[Line], layout: Iterable[Served]) -> Served:
    """Return what a layout leaves wanted, 0 where nothing is."""
    left = {line.sku: line.quantity for line in wanted}
    for served in layout:
        for sku, units in served.items():
            left[sku] -= units
    return left


def has_all(some: Sequence[Candidate], wanted: Sequence[Line], budget: Budget) -> bool:
    """Say whether locations have everything together, of which each line alone could be had."""
    budget.left -= len(some) * len(wanted)
    return not any(left_of(wanted, lay_out(some, wanted, budget)).values())


def each_alone(one: Candidate, wanted: Sequence[Line]) -> tuple[int, ...]:
    """Return how much a location has of each line, if it were the only one."""
    return tuple([one.serve([line])[line.sku] for line in wanted])


def _greedy(some: Sequence[Candidate], wanted: Sequence[Line]) -> list[Served]:
    """Have each location in turn serve all that it can."""
    left = {line.sku: line.quantity for line in wanted}
    layout = []
    for one in some:
        served = one.serve([Line(sku, units) for sku, units in left.items() if units])
        for sku, units in served.items():
            left[sku] -= units
        layout.append(served)
    return layout


def _search(
    some: Sequence[Candidate],
    wanted: Sequence[Line],
    best: list[Served],
    missing: int,
    budget: Budget,
) -> list[Served]:
    """Return the best layout there is: less than `missing` units, or the `best` so far."""
    # What locations from one on could serve of each line, if it were the only one.
    reach = [dict.fromkeys((line.sku for line in wanted), 0)]
    for one in reversed(some):
        alone = zip(wanted, each_alone(one, wanted), strict=True)
        reach.append({line.sku: reach[-1][line.sku] + units for line, units in alone})
    reach.reverse()
    seen: set[tuple[int, ...]] = set()

    def go_on(place: int, left: Served, layout: list[Served]) -> None:
        nonlocal best, missing
        least = sum(max(0, units - reach[place][sku]) for sku, units in left.items())
        if least >= missing:
            return
        if place == len(some):
            best, missing = list(layout), least
            return
        at = (place, *left.values())
        if at in seen:
            return
        seen.add(at)
        lines = [Line(sku, units) for sku, units in left.items() if units]
        for served in _shares(some[place], lines):
            budget.left -= len(lines)
            if budget.left < 0:
                return
            rest = {sku: units - served.get(sku, 0) for sku, units in left.items()}
            go_on(place + 1, rest, [*layout, served])

    go_on(0, {line.sku: line.quantity for line in wanted}, [])
    return best


def _shares(one: Candidate, lines: Sequence[Line]) -> Iterator[Served]:
    """Return each way to share a location's units out among lines, most for the first line first.

    A line that shares no row with those after it has all that it can.
    """
    in_turn = one.in_turn(lines)
    competes: list[bool] = []
    behind: set[str] = set()
    for line in reversed(in_turn):
        rows = _rows_of(one, line.sku)
        competes.append(not behind.isdisjoint(rows))
        behind |= rows
    competes.reverse()

    def share(i: int, stock: Stock, served: Served) -> Iterator[Served]:
        if i == len(in_turn):
            yield served
            return
        line = in_turn[i]
        after = stock.copy()
        most = one.serve_line(line, after)
        yield from share(i + 1, after, served | {line.sku: most})
        if not competes[i] or not most:
            return
        is_whole = one.ways_of(line.sku).is_whole
        for fewer in () if is_whole else range(most - 1, 0, -1):
            after = stock.copy()
            one.serve_line(Line(line.sku, fewer), after)
            yield from share(i + 1, after, served | {line.sku: fewer})
        yield from share(i + 1, stock, served | {line.sku: 0})

    return share(0, one.stock(), {})


def _compete(one: Candidate, wanted: Sequence[Line]) -> bool:
    """Say whether two lines may need the same row there."""
    if not one.ways:
        return False
    rows = [_rows_of(one, line.sku) for line in wanted]
    return sum(map(len, rows)) > len(frozenset().union(*rows))


def _rows_of(one: Candidate, sku: str) -> frozenset[str]:
    return frozenset(row for way in one.ways_of(sku).ways for row, _ in way.rows)
