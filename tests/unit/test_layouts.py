"""Lines that need the same rows, shared out over locations: compared with trying everything."""

from collections.abc import Iterator
from itertools import combinations, product
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import layouts
from engine.layouts import MAX_LOOKS, Budget, Candidate, Way, Ways, lay_out, left_of
from engine.model import Line
from engine.sourcing import Sourced, Strategy, source
from tests.steps import steps

MADE_OF: Final = {
    "box": {"mug": 1, "tea": 2},
    "pair": {"mug": 2},
    "set": {"mug": 1, "jar": 1},
    "mug": {"mug": 1},
}
"""Three kits and a plain SKU that all need mugs."""

WAYS: Final = {
    kit: Ways((Way(1, 1, ((kit, 1),)), Way(1, 1, tuple(rows.items()))))
    for kit, rows in MADE_OF.items()
    if kit != "mug"
}

shelves = st.fixed_dictionaries(
    {"mug": st.integers(0, 4), "tea": st.integers(0, 4), "jar": st.integers(0, 2)}
)
places = st.lists(shelves, min_size=1, max_size=4)
wishes = st.tuples(*[st.integers(0, 3) for _ in MADE_OF]).map(
    lambda units: dict(zip(MADE_OF, units, strict=True))
)


def candidate(name: str, units: dict[str, int], to_come: dict[str, int] | None = None) -> Candidate:
    return Candidate(location=name, available=units, to_come=to_come or {}, ways=WAYS)


def fits(share: tuple[int, ...], rows: dict[str, int]) -> bool:
    needed = dict.fromkeys(rows, 0)
    for sku, units in zip(MADE_OF, share, strict=True):
        for row, each in MADE_OF[sku].items():
            needed[row] += each * units
    return all(needed[row] <= units for row, units in rows.items())


def most_served(some: list[dict[str, int]], wanted: dict[str, int]) -> int:
    """Return the most units that can be served, by all shares of all places."""
    reached = {(0,) * len(wanted)}
    shares = list(product(*(range(units + 1) for units in wanted.values())))
    for rows in some:
        fit = [share for share in shares if fits(share, rows)]
        reached = {
            tuple(min(a + b, most) for a, b, most in zip(one, share, wanted.values(), strict=True))
            for one in reached
            for share in fit
        }
    return max(map(sum, reached))


@given(places, wishes)
def test_no_layout_leaves_less_missing(some: list[dict[str, int]], wanted: dict[str, int]) -> None:
    lines = [Line(sku, units) for sku, units in wanted.items() if units]
    for strategy in (Strategy.PRIORITY, Strategy.FEWEST_SPLITS):
        found = [candidate(str(i), rows) for i, rows in enumerate(some)]
        plan = source(lines, found, strategy)
        missing = sum(line.quantity for line in plan.missing)
        assert sum(wanted.values()) - missing == most_served(some, wanted)
        for one in plan.sources:
            units = {line.sku: line.quantity for line in one.lines}
            share = tuple(units.get(sku, 0) for sku in MADE_OF)
            assert fits(share, some[int(one.location)])
        if strategy is Strategy.FEWEST_SPLITS and not missing and lines:
            fewer = combinations(some, len(plan.sources) - 1)
            total = sum(wanted.values())
            assert all(most_served(list(rows), wanted) < total for rows in fewer if rows)


@given(places, st.lists(shelves, min_size=4, max_size=4), wishes)
def test_nothing_is_refused_that_can_be_had_of_the_shelves_and_what_is_to_come(
    some: list[dict[str, int]], coming: list[dict[str, int]], wanted: dict[str, int]
) -> None:
    lines = [Line(sku, units) for sku, units in wanted.items() if units]
    found = [candidate(str(i), rows, coming[i]) for i, rows in enumerate(some)]
    plan = source(lines, found, Strategy.PRIORITY)
    both = [
        {row: units + coming[i][row] for row, units in rows.items()} for i, rows in enumerate(some)
    ]
    missing = sum(line.quantity for line in plan.missing)
    # What shelves serve goes first, and may leave less for the rest; never so that all is refused.
    if most_served(both, wanted) == sum(wanted.values()):
        assert not missing
    for one in plan.sources:
        units = {line.sku: line.quantity for line in one.lines}
        share = tuple(units.get(sku, 0) for sku in MADE_OF)
        assert fits(share, both[int(one.location)])
    if most_served(some, wanted) == sum(wanted.values()):
        assert not any(one.waiting for one in plan.sources)


def test_each_line_taking_what_it_can_leaves_one_short_and_the_search_does_not() -> None:
    """The first place's mugs serve either kit; only there is tea for the box."""
    some = [candidate("a", {"mug": 2, "tea": 4}), candidate("b", {"mug": 2})]
    lines = [Line("pair", 1), Line("box", 2)]
    layout = lay_out(some, lines, Budget())
    assert [{k: n for k, n in one.items() if n} for one in layout] == [{"box": 2}, {"pair": 1}]
    assert left_of(lines, lay_out(some, lines, Budget(0))) == {"pair": 0, "box": 2}


def test_a_search_that_is_too_long_ends_with_what_it_has() -> None:
    some = [candidate(str(i), {"mug": 999, "tea": 999, "jar": 1}) for i in range(30)]
    lines = [Line("pair", 9_000), Line("box", 7_000), Line("set", 500), Line("mug", 8_000)]
    budget = Budget()
    left = left_of(lines, lay_out(some, lines, budget))
    assert budget.left < 0
    assert all(units >= 0 for units in left.values())


@pytest.mark.parametrize("strategy", [Strategy.PRIORITY, Strategy.FEWEST_SPLITS])
def test_all_searches_of_a_plan_share_its_looks(
    monkeypatch: pytest.MonkeyPatch, strategy: Strategy
) -> None:
    looked_at, shares = 0, layouts._shares

    def counted(one: Candidate, lines: list[Line]) -> Iterator[dict[str, int]]:
        nonlocal looked_at
        for share in shares(one, lines):
            looked_at += len(lines)
            yield share

    monkeypatch.setattr(layouts, "_shares", counted)
    coming = {"mug": 99, "tea": 99, "jar": 1}
    some = [candidate(str(i), {"mug": 999, "tea": 999, "jar": 1}, coming) for i in range(30)]
    lines = [Line("pair", 9_000), Line("box", 7_000), Line("set", 500), Line("mug", 8_000)]
    budget = Budget()
    plan = source(lines, some, strategy, budget=budget)
    # Each place on the way back from where the looks ended may have looked at one more.
    assert plan.missing
    assert budget.left < 0 < looked_at <= MAX_LOOKS + len(some) * len(lines)
    before = looked_at
    assert source(lines, some, strategy, budget=budget).sources
    assert looked_at == before


def test_a_plan_of_many_kits_takes_no_longer_than_its_looks() -> None:
    """Every set of four of twelve locations has each of 200 kits, and none has all of them."""
    kits = [f"kit {n}" for n in range(200)]
    ways = {kit: Ways((Way(1, 1, (("mug", 1), (kit, 1))),)) for kit in kits}
    shelf = {"mug": 60, **dict.fromkeys(kits, 1)}
    some = [Candidate(location=f"{n:02}", available=shelf, ways=ways) for n in range(12)]
    lines = [Line(kit, 2) for kit in kits]
    budget = Budget()
    plans: list[Sourced] = []
    executed = steps(
        lambda: plans.append(source(lines, some, Strategy.FEWEST_SPLITS, budget=budget))
    )
    assert budget.left <= 0
    assert sum(line.quantity for one in plans[0].sources for line in one.lines) == 400
    # Some ten lines of code a look, and what is looked at once for each location.
    assert executed < 40 * MAX_LOOKS  # it is 1.2 million
