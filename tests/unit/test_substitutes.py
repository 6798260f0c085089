"""Rules of substitution: what is refused, and what a reserve looks up."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise, permutations
from random import Random

import pytest

from engine.kits import Kit, check_kit, check_kits
from engine.limits import MAX_ALTERNATIVES
from engine.model import Line
from engine.outcomes import InvalidCommand
from engine.substitutes import (
    Alternative,
    Direction,
    Rules,
    arrange,
    check_alternatives,
    check_rules,
)


def one(sku: str, of: int = 1, for_: int = 1, *, both: bool = False) -> Alternative:
    direction = Direction.BOTH if both else Direction.ONE_WAY
    return Alternative(sku=sku, of=of, for_=for_, direction=direction)


def rules(**alternatives: list[Alternative]) -> dict[str, Rules]:
    return {sku: Rules(alternatives=tuple(some)) for sku, some in alternatives.items()}


def refused(said: dict[str, Rules]) -> str:
    with pytest.raises(InvalidCommand) as caught:
        check_rules(said, list(said))
    return caught.value.remedy


@pytest.mark.parametrize(
    ("alternative", "field"),
    [
        (one("a", 0, 1), "alternatives[0].of"),
        (one("a", 1, 0), "alternatives[0].for"),
        (one("a", 1, 1_001), "alternatives[0].for"),
        (one("a", 13, 27), "alternatives[0].of"),
        (one("tea"), "alternatives[0].sku"),
        (one(""), "alternatives[0].sku"),
        (Alternative(sku="a", priority=-1), "alternatives[0].priority"),
        (Alternative(sku="a", locations=("",)), "alternatives[0].locations"),
    ],
)
def test_a_rule_that_is_nonsense_is_refused_with_its_field(
    alternative: Alternative, field: str
) -> None:
    with pytest.raises(InvalidCommand) as caught:
        check_alternatives("tea", [alternative])
    assert caught.value.field == field


def test_a_ratio_is_kept_in_its_lowest_terms() -> None:
    (kept,) = check_alternatives("six", [one("twelve", 26, 52)]).alternatives
    assert (kept.of, kept.for_) == (1, 2)


def test_too_many_alternatives_are_refused_with_those_turned_round_counted() -> None:
    many = [one(f"s{i}") for i in range(MAX_ALTERNATIVES)]
    assert len(check_alternatives("tea", many).alternatives) == MAX_ALTERNATIVES
    with pytest.raises(InvalidCommand):
        check_alternatives("tea", [*many, one("more")])
    said = rules(tea=many, other=[one("tea", both=True)])
    assert "tea would have 9 SKUs" in refused(said)


@pytest.mark.parametrize(
    ("said", "circle"),
    [
        (rules(a=[one("b")], b=[one("a")]), {"a", "b"}),
        (rules(a=[one("b", both=True)], b=[one("a")]), {"a", "b"}),
        (rules(a=[one("b")], b=[one("c")], c=[one("a")]), {"a", "b", "c"}),
        (rules(a=[one("b", both=True)], b=[one("c")], c=[one("a")]), {"a", "b", "c"}),
        (rules(a=[one("b", 1, 2, both=True), one("c", 1, 6, both=True)],
               b=[one("c", 1, 2, both=True)]), {"a", "b", "c"}),
    ],
)  # fmt: skip
def test_a_cycle_is_refused_and_named(said: dict[str, Rules], circle: set[str]) -> None:
    remedy = refused(said)
    way = remedy.split(", ", 1)[1].split(":")[0].split(" -> ")
    assert way[0] == way[-1]
    assert set(way) == circle
    assert len(way) == len(circle) + 1


def test_skus_that_stand_for_each_other_are_no_cycle_where_their_ratios_agree() -> None:
    said = rules(
        single=[one("six", 1, 6, both=True), one("twelve", 1, 12, both=True)],
        six=[one("twelve", 1, 2, both=True)],
    )
    check_rules(said, list(said))
    choices = arrange(said)
    assert [(c.sku, c.of, c.for_) for c in choices["six"]] == [("single", 6, 1), ("twelve", 1, 2)]
    assert [(c.sku, c.of, c.for_) for c in choices["twelve"]] == [("single", 12, 1), ("six", 2, 1)]


def test_alternatives_come_by_priority_and_then_by_sku() -> None:
    some = [Alternative(sku="z", priority=1), Alternative(sku="b"), Alternative(sku="a")]
    assert [c.sku for c in arrange(rules(tea=some))["tea"]] == ["z", "a", "b"]


def test_random_rules_are_refused_just_where_they_have_a_cycle() -> None:
    random = Random(7)
    seen = {True: 0, False: 0}
    for _ in range(2_000):
        skus = "abcd"
        said: dict[str, Rules] = {}
        for sku in skus:
            some = [
                one(other, random.choice((1, 2)), 1, both=random.random() < 0.4)
                for other in skus
                if other != sku and random.random() < 0.25
            ]
            if some:
                said[sku] = Rules(alternatives=tuple(some))
        try:
            check_rules(said, list(said))
            passed = True
        except InvalidCommand:
            passed = False
        assert passed is not any(_is_wrong(said, way) for way in _ways(skus)), said
        seen[passed] += 1
    assert min(seen.values()) > 100


def _ways(skus: str) -> Iterator[tuple[str, ...]]:
    for length in range(2, len(skus) + 1):
        for way in permutations(skus, length):
            yield (*way, way[0])


def _is_wrong(said: dict[str, Rules], way: tuple[str, ...]) -> bool:
    """By brute force: whether rules lead along a way, and they should not."""
    steps: list[list[tuple[int, bool, Fraction]]] = []
    for start, end in pairwise(way):
        found = []
        for sku, its_rules in said.items():
            for rule in its_rules.alternatives:
                is_both = rule.direction is Direction.BOTH
                worth = Fraction(rule.for_, rule.of)
                if (sku, rule.sku) == (start, end):
                    found.append((id(rule), is_both, worth))
                if is_both and (rule.sku, sku) == (start, end):
                    found.append((id(rule), is_both, 1 / worth))
        if not found:
            return False
        steps.append(found)
    if any(len(found) > 1 for found in steps):
        return True
    if len(steps) == 2 and steps[0][0][0] == steps[1][0][0]:
        # There and back by one rule that goes both ways.
        return False
    product = Fraction(1)
    for found in steps:
        product *= found[0][2]
    return product != 1 or any(not is_both for found in steps for _, is_both, _ in found)


def test_a_kit_is_made_of_what_lies_on_a_shelf() -> None:
    kit = check_kit("gift", [Line("mug", 2), Line("tea", 1)])
    check_kits({"gift": kit}, ["gift"])
    wrong = {"gift": kit, "mug": Kit(components=(Line("handle", 1),))}
    with pytest.raises(InvalidCommand, match="gift would have mug as a component"):
        check_kits(wrong, ["mug"])
    for components in ([], [Line("gift", 1)], [Line("a", 0)], [Line("a", 1), Line("a", 2)]):
        with pytest.raises(InvalidCommand):
            check_kit("gift", components)
