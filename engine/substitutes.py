"""What may stand for a SKU that has run short: a merchant's rules, and whether they make sense.

A rule names an alternative with a ratio: `of` units of it stand for `for` units of the SKU, so one
12-pack for two 6-packs is 1 for 2. It goes one way, or both, the other way at the inverted ratio.
Rules are not chained: what may stand for an alternative does not stand for the SKU.
"""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from enum import StrEnum
from fractions import Fraction
from graphlib import CycleError, TopologicalSorter
from math import gcd
from typing import Final, NamedTuple

import msgspec

from engine.limits import MAX_ALTERNATIVES, MAX_RATIO, MAX_RATIO_STEPS
from engine.outcomes import InvalidCommand
from engine.validation import check_id

DEFAULT_PRIORITY: Final = 100
MAX_PRIORITY: Final = 1_000
MAX_RULE_LOCATIONS: Final = 100


class Direction(StrEnum):
    """Whether a rule holds the other way round, too."""

    ONE_WAY = "one_way"
    BOTH = "both"


class Alternative(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`of` units of `sku` stand for `for_` units of the SKU that the rule is about.

    Of several alternatives the one with the lowest `priority` comes first, then the lower SKU.
    `locations` are where the rule holds, none: everywhere. With `approval` somebody has to accept
    the substitution before the reservation can be confirmed.
    """

    sku: str
    of: int = 1
    for_: int = msgspec.field(default=1, name="for")
    priority: int = DEFAULT_PRIORITY
    direction: Direction = Direction.ONE_WAY
    locations: tuple[str, ...] = ()
    approval: bool = False

    def reduced(self) -> "Alternative":
        """Return the same with the ratio in its lowest terms."""
        common = gcd(self.of, self.for_)
        return msgspec.structs.replace(self, of=self.of // common, for_=self.for_ // common)


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """All alternatives of one SKU."""

    alternatives: tuple[Alternative, ...]


class Choice(NamedTuple):
    """An alternative as a reserve takes it, whichever way the rule was written."""

    sku: str
    of: int
    for_: int
    priority: int
    approval: bool
    locations: frozenset[str]


_Graph = defaultdict[str, dict[str, Fraction]]
"""From a SKU to what may stand for it, and how many units of it a unit of that is worth."""

Choices = Mapping[str, tuple[Choice, ...]]
"""From a SKU to what may stand for it, in the order in which it is asked."""


def check_alternatives(sku: str, alternatives: Sequence[Alternative]) -> Rules:
    """Return the rules of a SKU with their ratios reduced. Raises InvalidCommand.

    Whether they agree with the merchant's other rules is for `check_rules`.
    """
    if not 1 <= len(alternatives) <= MAX_ALTERNATIVES:
        raise InvalidCommand(
            "alternatives", f"must have 1 to {MAX_ALTERNATIVES} items, has {len(alternatives)}"
        )
    named: set[str] = set()
    reduced = []
    for i, one in enumerate(alternatives):
        place = f"alternatives[{i}]"
        check_id(f"{place}.sku", one.sku)
        if one.sku == sku:
            raise InvalidCommand(f"{place}.sku", "must be another SKU: none stands for itself")
        if one.sku in named:
            raise InvalidCommand(f"{place}.sku", "stands there twice: make it one rule")
        named.add(one.sku)
        reduced.append(_check_numbers(place, one))
        if len(one.locations) > MAX_RULE_LOCATIONS:
            raise InvalidCommand(f"{place}.locations", f"must be at most {MAX_RULE_LOCATIONS}")
        for location in one.locations:
            check_id(f"{place}.locations", location)
    return Rules(alternatives=tuple(reduced))


def _check_numbers(place: str, one: Alternative) -> Alternative:
    for name, number in (("of", one.of), ("for", one.for_)):
        if type(number) is not int or not 1 <= number <= MAX_RATIO:
            raise InvalidCommand(f"{place}.{name}", f"must be 1 to {MAX_RATIO} units, is {number}")
    if type(one.priority) is not int or not 0 <= one.priority <= MAX_PRIORITY:
        raise InvalidCommand(f"{place}.priority", f"must be 0 to {MAX_PRIORITY}, is {one.priority}")
    reduced = one.reduced()
    if min(reduced.of, reduced.for_) > MAX_RATIO_STEPS:
        raise InvalidCommand(
            f"{place}.of",
            f"{reduced.of} for {reduced.for_} is no ratio to trade at: the smaller number must be "
            f"at most {MAX_RATIO_STEPS}",
        )
    return reduced


def arrange(rules: Mapping[str, Rules]) -> Choices:
    """Turn rules into what may stand for each SKU, those that go both ways turned round too."""
    found: defaultdict[str, list[Choice]] = defaultdict(list)
    for sku, its_rules in rules.items():
        for one in its_rules.alternatives:
            where = frozenset(one.locations)
            found[sku].append(Choice(one.sku, one.of, one.for_, one.priority, one.approval, where))
            if one.direction is Direction.BOTH:
                found[one.sku].append(
                    Choice(sku, one.for_, one.of, one.priority, one.approval, where)
                )
    return {
        sku: tuple(sorted(choices, key=lambda one: (one.priority, one.sku)))
        for sku, choices in found.items()
    }


def check_rules(rules: Mapping[str, Rules], new: Sequence[str]) -> None:
    """Check a merchant's rules together, of which those of the SKUs of `new` were just said.

    A rule says that one thing may be handed over for another. Rules that lead back to where they
    began say that a thing may be handed over for itself, by way of others and at another ratio
    perhaps: that is a slip, unless each of them goes both ways and the ratios agree. Locations do
    not matter here. Raises InvalidCommand, which names the cycle.
    """
    onwards: _Graph = defaultdict(dict)
    both: _Graph = defaultdict(dict)
    one_ways: list[tuple[str, str]] = []
    for sku, its_rules in rules.items():
        for one in its_rules.alternatives:
            goes_both_ways = one.direction is Direction.BOTH
            if one.sku in onwards[sku] or (goes_both_ways and sku in onwards[one.sku]):
                raise _cycle([sku, one.sku, sku], "say it once, with direction both")
            worth = Fraction(one.for_, one.of)
            onwards[sku][one.sku] = worth
            if goes_both_ways:
                onwards[one.sku][sku] = 1 / worth
                both[sku][one.sku], both[one.sku][sku] = worth, 1 / worth
            else:
                one_ways.append((sku, one.sku))
    for sku in new:
        _check_fan(onwards, [sku, *[one.sku for one in rules[sku].alternatives]])
    kinds = _check_ratios(both)
    _check_order(onwards, one_ways, kinds)


def _check_fan(onwards: _Graph, skus: Sequence[str]) -> None:
    """Refuse more alternatives of a SKU than a reserve weighs, rules that were turned round too."""
    for sku in skus:
        count = len(onwards.get(sku, ()))
        if count > MAX_ALTERNATIVES:
            raise InvalidCommand(
                "alternatives",
                f"{sku} would have {count} SKUs that may stand for it, counting rules that go both "
                f"ways; {MAX_ALTERNATIVES} is the most",
            )


def _check_ratios(both: _Graph) -> dict[str, str]:
    """Return for each SKU one that stands for all that it goes both ways with, near or far.

    Refuses rules that go both ways round a loop and come to another ratio than 1 for 1.
    """
    kinds: dict[str, str] = {}
    worth: dict[str, Fraction] = {}
    came_from: dict[str, str] = {}
    for start in both:
        if start in worth:
            continue
        worth[start], kinds[start] = Fraction(1), start
        waiting = deque([start])
        while waiting:
            sku = waiting.popleft()
            for following, units in both[sku].items():
                if following not in worth:
                    worth[following], kinds[following] = worth[sku] * units, start
                    came_from[following] = sku
                    waiting.append(following)
                elif worth[following] != worth[sku] * units:
                    loop = _loop(came_from, following, sku)
                    raise _cycle(loop, "its ratios do not come to 1 for 1, so mend one of them")
    return kinds


def _check_order(
    onwards: _Graph, one_ways: Sequence[tuple[str, str]], kinds: Mapping[str, str]
) -> None:
    """Refuse rules that go one way and lead back, SKUs that go both ways counting as one."""
    before: defaultdict[str, set[str]] = defaultdict(set)
    for sku, alternative in one_ways:
        before[kinds.get(sku, sku)].add(kinds.get(alternative, alternative))
    wrong = next((kind for kind, others in before.items() if kind in others), None)
    if wrong is None:
        try:
            TopologicalSorter(before).prepare()
        except CycleError as error:
            wrong = error.args[1][0]
    if wrong is None:
        return
    for sku, alternative in one_ways:
        if kinds.get(sku, sku) == wrong:
            back = _path(onwards, alternative, sku)
            if back is not None:
                raise _cycle([sku, *back], "take one of these rules away")


def _path(onwards: _Graph, start: str, end: str) -> list[str] | None:
    """Return the shortest way along the rules, its ends included; None where there is none."""
    came_from: dict[str, str] = {}
    waiting = deque([start])
    while waiting:
        sku = waiting.popleft()
        if sku == end:
            return _way_to(came_from, sku)
        for following in onwards.get(sku, ()):
            if following != start and following not in came_from:
                came_from[following] = sku
                waiting.append(following)
    return None


def _way_to(came_from: Mapping[str, str], sku: str) -> list[str]:
    path = [sku]
    while path[-1] in came_from:
        path.append(came_from[path[-1]])
    return path[::-1]


def _loop(came_from: Mapping[str, str], one: str, other: str) -> list[str]:
    """Return the loop that a rule between two SKUs closes, from the first to itself."""
    ways = _way_to(came_from, one), _way_to(came_from, other)
    shared = 0
    while shared < min(map(len, ways)) and ways[0][shared] == ways[1][shared]:
        shared += 1
    return [*ways[0][shared - 1 :][::-1], *ways[1][shared:], one]


def _cycle(skus: Sequence[str], remedy: str) -> InvalidCommand:
    way = " -> ".join(skus)
    return InvalidCommand("alternatives", f"these rules lead in a circle, {way}: {remedy}")
