"""Which candidates serve a wish, found by trying everything: the rule in its own words.

It imports no product code, so that a mistake in `lua/lib/choices.lua` cannot repeat itself here.
"""

from collections.abc import Sequence
from itertools import product
from math import ceil
from typing import NamedTuple


class Candidate(NamedTuple):
    """`of` units stand for `for_` units of the SKU that is asked for; there are `room` units."""

    room: int
    of: int = 1
    for_: int = 1

    def served_by(self, units: int) -> int:
        """Return how many units of the SKU so many units stand for, whole ones."""
        return units * self.for_ // self.of


Choice = tuple[tuple[int, int], ...]
"""For each candidate its units, and how many of those that were asked for they serve."""


def choose(
    quantity: int, candidates: Sequence[Candidate], *, whole: bool = False, partial: bool = False
) -> Choice | None:
    """Return the choice, None where the candidates cannot serve so many.

    With `partial` it is then the most that they can serve.
    """
    ways = []
    for units in product(*(range(_enough(one, quantity) + 1) for one in candidates)):
        served = [one.served_by(n) for one, n in zip(candidates, units, strict=True)]
        if whole and sum(n > 0 for n in units) > 1:
            continue
        ways.append((units, served))
    enough = [way for way in ways if sum(way[1]) >= quantity]
    if not enough and not partial:
        return None
    most = max(sum(served) for _, served in ways)
    wanted = min(quantity, most)
    enough = [way for way in ways if sum(way[1]) >= wanted]
    # Fewest extra, then the most by the first candidate and so on, then the fewest units.
    units, served = min(
        enough, key=lambda way: (sum(way[1]), [-n for n in way[1]], sum(way[0]), way[0])
    )
    extra = sum(served) - wanted
    for i in reversed(range(len(served))):
        over = min(extra, served[i])
        served[i] -= over
        extra -= over
    return tuple(zip(units, served, strict=True))


def _enough(one: Candidate, quantity: int) -> int:
    """Return the units past which more of a candidate alone are extra."""
    return min(one.room, ceil(quantity * one.of / one.for_))
