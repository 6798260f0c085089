"""What serves wishes of rows that have terms: the rule in its own words, found by trying all ways.

Nothing here imports product code. See docs/concepts/substitutes-and-kits.md and promising.md, and
`tests.choosing` for what serves a single wish.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import NamedTuple

from tests.choosing import Candidate, Choice, choose
from tests.model import Stand, Wish


class Room(NamedTuple):
    """Units of a row for an asker: `most` in all, of which `shelf` are there already."""

    most: int
    shelf: int
    is_known: bool


class Way(NamedTuple):
    """One unit of what may serve a wish takes these units of rows; `of` such stand for `for_`."""

    parts: Mapping[str, int]
    of: int
    for_: int
    kind: str


@dataclass(slots=True)
class Served:
    """What wishes get: units of each row, and what those are for."""

    units: dict[str, int] = field(default_factory=dict)
    short: list[tuple[str, int, int, bool]] = field(default_factory=list)
    missing: list[tuple[str, int]] = field(default_factory=list)
    stands_for: list[Stand] = field(default_factory=list)
    proposed: list[str] = field(default_factory=list)


def rows_of(wishes: Sequence[Wish], kits: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return the rows that wishes may take units of: first those that are asked for."""
    ways = [way for wish in wishes for way in ways_of(wish, kits)]
    asked = [sku for way in ways if way.kind != "substitute" for sku in way.parts]
    others = [sku for way in ways if way.kind == "substitute" for sku in way.parts]
    return list(dict.fromkeys(asked + others))


def ways_of(wish: Wish, kits: Mapping[str, Mapping[str, int]]) -> list[Way]:
    """Return what may serve a wish, the best first."""
    ways = [Way({wish.sku: 1}, 1, 1, "")]
    if wish.sku in kits:
        ways.append(Way(kits[wish.sku], 1, 1, "kit"))
    own = {sku for way in ways for sku in way.parts}
    for sku, of, for_ in wish.alternatives:
        if sku not in own and sku not in kits:
            ways.append(Way({sku: 1}, of // gcd(of, for_), for_ // gcd(of, for_), "substitute"))
    return ways


def serve(
    wishes: Sequence[Wish],
    kits: Mapping[str, Mapping[str, int]],
    rooms: Mapping[str, Room],
    *,
    partial: bool,
) -> Served:
    """Serve what nothing may stand for, then what the shelves have as it was asked for, then all.

    Nobody waits for a substitute, and nobody waits at all where the shelves do.
    """
    served = Served(dict.fromkeys(rows_of(wishes, kits), 0))
    waiting = list(wishes)
    for turn in range(3):
        for wish in list(waiting):
            ways = ways_of(wish, kits)
            own = [way for way in ways if way.kind != "substitute"]
            there = sum(_room(way, rooms, served, on_shelf=True) for way in own)
            if turn == 2 or len(own) == len(ways) or (turn == 1 and there >= wish.quantity):
                waiting.remove(wish)
                _serve_one(wish, ways, rooms, served, partial=partial)
    return served


def _room(way: Way, rooms: Mapping[str, Room], served: Served, *, on_shelf: bool) -> int:
    return min(
        max(
            0,
            (rooms[sku].shelf if on_shelf or way.kind == "substitute" else rooms[sku].most)
            - served.units[sku],
        )
        // units
        for sku, units in way.parts.items()
    )


def _serve_one(
    wish: Wish, ways: Sequence[Way], rooms: Mapping[str, Room], served: Served, *, partial: bool
) -> None:
    there, all_of_it = (
        [Candidate(_room(way, rooms, served, on_shelf=it), way.of, way.for_) for way in ways]
        for it in (True, False)
    )
    choice = choose(wish.quantity, there, whole=wish.whole)
    if choice is None:
        choice = choose(wish.quantity, all_of_it, whole=wish.whole, partial=partial)
    can = [one.served_by(one.room) for one in all_of_it]
    most = max(can) if wish.whole else sum(can)
    if most < wish.quantity:
        own = [way for way in ways if way.kind != "substitute"]
        is_known = any(all(rooms[sku].is_known for sku in way.parts) for way in own)
        served.short.append((wish.sku, wish.quantity, most, is_known))
    if choice is not None:
        _take(wish, ways, choice, served)


def _take(wish: Wish, ways: Sequence[Way], choice: Choice, served: Served) -> None:
    is_substituted = False
    for way, (units, of_it) in zip(ways, choice, strict=True):
        is_substituted |= units > 0 and way.kind == "substitute"
        for sku, each in way.parts.items() if units else ():
            served.units[sku] += units * each
            if way.kind:
                of = each if way.kind == "kit" else way.of
                stand = (wish.sku, sku, units * each, of_it, of, way.for_, way.kind)
                served.stands_for.append(stand)
    left = wish.quantity - sum(of_it for _, of_it in choice)
    if left > 0:
        served.missing.append((wish.sku, left))
    if is_substituted and wish.approve:
        served.proposed.append(wish.sku)
