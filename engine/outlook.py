"""What is to come of a row, and what may be promised of it by which day.

The arithmetic is the textbook's cumulative available-to-promise with look-ahead (for instance
Silver, Pyke and Thomas, *Inventory and Production Management in Supply Chains*, 4th edition, on
master production scheduling; APICS Dictionary, "available-to-promise"): what is promised by a day
must leave enough on every later day for those who were promised before. Those who wait are served
by the days of their turns, the earliest first, so that no promise is late while the supplies are in
time (earliest due date, Jackson 1955). `lua/lib/supplies.lua` is the twin of what stands here.

A day is text, YYYY-MM-DD: it is compared with other days only, never with a clock.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Any, Final

import msgspec

FIRST_YEAR: Final = 2000
LAST_YEAR: Final = 2099

LATER: Final = "later"
"""Instead of a day: nothing is expected that would reach those who wait."""

_PLACES: Final = 2**36
"""Places of one half of a day in a row's queue: versions of the row."""


class Supply(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Units that are still to come with a supply, and the day on which they are expected."""

    expected_on: str
    quantity: int


class Wait(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Units of a line that wait, and whose turn it is when; `lua/lib/pledges.lua`.

    `day` is the one that they were promised by where they are `dated`, and else that of the last of
    those who are served before them; empty where there were no supplies. `late` is empty while
    their day can be kept, else the day on which they are expected, or LATER where nobody can say.
    """

    units: int
    place: int
    day: str = ""
    dated: bool = False
    late: str = ""

    @property
    def turn(self) -> int:
        """Where they stand in the queue of their row, its score."""
        if not self.day:
            return self.place
        year, month, day = (int(part) for part in self.day.split("-"))
        rank = (year - FIRST_YEAR) * 512 + month * 32 + day
        return (rank * 2 + (not self.dated)) * _PLACES + self.place


class Promisable(msgspec.Struct, frozen=True):
    """Units that may be promised by a day, those that are available now among them."""

    by: str
    quantity: int


def promisable(
    unreserved: int,
    backordered: int,
    supplies: Mapping[str, Supply],
    waits: Mapping[str, tuple[int, int]],
    kept: int = 0,
) -> tuple[Promisable, ...]:
    """Return what may be promised by each day on which supplies come, in order.

    `unreserved` units are on the shelf and not promised, less the deficit that arrivals pay first;
    negative where fewer are there than were promised.
    `backordered` units wait, of which `waits` says (dated, undated) by the days of their turns.
    Of what is on the shelf `kept` units are for channels that do not hold them yet.
    """
    coming = _coming(supplies)
    left = unreserved - backordered + sum(map(sum, waits.values()))
    available = max(0, unreserved - backordered)
    taken = max(available, min(kept, unreserved))
    free: list[tuple[str, int]] = []
    for day in sorted(coming.keys() | waits.keys()):
        left += coming.get(day, 0) - sum(waits.get(day, ()))
        free.append((day, left))
    found: list[Promisable] = []
    least = free[-1][1] if free else 0
    for day, units in reversed(free):
        least = min(least, units)
        if day in coming:
            found.append(Promisable(day, available + max(0, least - taken)))
    return tuple(reversed(found))


def served_on(
    unreserved: int, supplies: Mapping[str, Supply], queue: Sequence[tuple[int, int]]
) -> list[str]:
    """Return when each of those who wait has got all its units: a day, LATER, or "" for now.

    `unreserved` units are there as `promisable` takes them, and the supplies come in time, those of
    a day together: in parts what comes reaches nobody with a day later. `queue` says of each, in
    the order of their turns, for how many units it waits, and how many of the free ones are
    `kept` from it. As long as these stay what they are, that is what `lua/fill.lua` does.
    """
    turns: dict[int, deque[int]] = {}
    for turn, (_, kept) in enumerate(queue):
        turns.setdefault(kept, deque()).append(turn)
    left = [units for units, _ in queue]
    served = [LATER for _ in queue]
    coming = _coming(supplies)
    for day in ("", *sorted(coming)):
        unreserved += coming.get(day, 0)
        # Of those whom as many are kept from only the first in turn: where nothing is left for one,
        # nothing is for the others.
        first = [(waiting[0], kept) for kept, waiting in turns.items() if waiting]
        heapify(first)
        while first:
            turn, kept = heappop(first)
            if unreserved <= kept:
                continue
            given = min(left[turn], unreserved - kept)
            left[turn] -= given
            unreserved -= given
            if not left[turn]:
                served[turn] = day
                waiting = turns[kept]
                waiting.popleft()
                if waiting:
                    heappush(first, (waiting[0], kept))
    return served


def _coming(supplies: Mapping[str, Supply]) -> dict[str, int]:
    """Return the units that come on each day."""
    coming: dict[str, int] = {}
    for supply in supplies.values():
        coming[supply.expected_on] = coming.get(supply.expected_on, 0) + supply.quantity
    return coming


def beyond_supplies(unreserved: int, backordered: int, incoming: int) -> int:
    """Return the units that were promised beyond the shelf and all that is to come."""
    return max(0, backordered - max(0, incoming + min(0, unreserved)))


def is_at_risk(
    unreserved: int,
    backordered: int,
    supplies: Mapping[str, Supply],
    waits: Mapping[str, Sequence[int]],
) -> bool:
    """Tell whether a day that somebody was promised may not be kept; as `promisable` takes it.

    All who wait before count, also those whom the pools of other channels will have passed by.
    """
    due = backordered - sum(map(sum, waits.values()))
    for day in sorted(waits):
        dated, undated = waits[day]
        come = unreserved + sum(x.quantity for x in supplies.values() if x.expected_on <= day)
        if dated and due + dated > come:
            return True
        due += dated + undated
    return False


def waits_of(waiting: Iterable[Wait]) -> dict[str, Any]:
    """Return what a row's terms say of those who wait for it: its `waits` and `late`."""
    waits: dict[str, list[int]] = {}
    late = 0
    for wait in waiting:
        if wait.day:
            waits.setdefault(wait.day, [0, 0])[0 if wait.dated else 1] += wait.units
        if wait.late:
            late += wait.units
    told: dict[str, Any] = {}
    if waits:
        told["waits"] = waits
    if late:
        told["late"] = late
    return told
