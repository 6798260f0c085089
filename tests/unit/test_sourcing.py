"""Sourcing strategies by a table of examples: what is wanted, who has what, and what is chosen."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.layouts import Candidate, Coordinates, Way, Ways
from engine.model import Line
from engine.sourcing import Strategy, distance_km, source

LONDON = Coordinates(51.5074, -0.1278)
PARIS = Coordinates(48.8566, 2.3522)
LEEDS = Coordinates(53.8008, -1.5491)


def at(location: str, priority: int = 0, **fields: Any) -> Candidate:
    """Make a candidate; fields in capitals are those of the location, others its units.

    `tea_to_come` are units of tea that may be promised before they come.
    """
    coordinates = fields.pop("PLACE", None)
    is_degraded = fields.pop("SILENT", False)
    end = "_to_come"
    return Candidate(
        location=location,
        available={name: units for name, units in fields.items() if not name.endswith(end)},
        to_come={name[: -len(end)]: units for name, units in fields.items() if name.endswith(end)},
        priority=priority,
        coordinates=coordinates,
        is_degraded=is_degraded,
    )


EXAMPLES: list[tuple[str, Strategy, dict[str, int], list[Candidate], dict[str, dict[str, int]]]] = [
    (
        "the lowest number comes first, and gives all that it has",
        Strategy.PRIORITY,
        {"tea": 5},
        [at("a", 2, tea=9), at("b", 1, tea=3)],
        {"b": {"tea": 3}, "a": {"tea": 2}},
    ),
    (
        "of equal numbers, the name",
        Strategy.PRIORITY,
        {"tea": 1},
        [at("b", tea=1), at("a", tea=1)],
        {"a": {"tea": 1}},
    ),
    (
        "the nearest comes first, whatever its number",
        Strategy.DISTANCE,
        {"tea": 1},
        [at("paris", 0, tea=9, PLACE=PARIS), at("leeds", 9, tea=9, PLACE=LEEDS)],
        {"leeds": {"tea": 1}},
    ),
    (
        "without coordinates it comes last",
        Strategy.DISTANCE,
        {"tea": 1},
        [at("nowhere", tea=9), at("paris", 5, tea=9, PLACE=PARIS)],
        {"paris": {"tea": 1}},
    ),
    (
        "one location that has it all, before two that come first",
        Strategy.FEWEST_SPLITS,
        {"tea": 2, "milk": 1},
        [at("a", 0, tea=2), at("b", 1, milk=1), at("c", 9, tea=2, milk=1)],
        {"c": {"tea": 2, "milk": 1}},
    ),
    (
        "two that have it all together, where the one with most units would need three",
        Strategy.FEWEST_SPLITS,
        {"a": 2, "b": 2, "c": 2, "d": 2},
        [at("most", a=2, b=2, c=1), at("left", a=2, c=2), at("right", b=2, d=2)],
        {"left": {"a": 2, "c": 2}, "right": {"b": 2, "d": 2}},
    ),
    (
        "two live ones, before one whose tills are silent",
        Strategy.FEWEST_SPLITS,
        {"tea": 2},
        [at("a", tea=2, SILENT=True), at("b", tea=1), at("c", tea=1)],
        {"b": {"tea": 1}, "c": {"tea": 1}},
    ),
    (
        "a silent one, where the live ones do not suffice",
        Strategy.FEWEST_SPLITS,
        {"tea": 3},
        [at("a", tea=3, SILENT=True), at("b", tea=1)],
        {"a": {"tea": 3}},
    ),
    (
        "the fullest shelf gives first",
        Strategy.MOST_STOCK,
        {"tea": 4},
        [at("a", tea=5), at("b", tea=8)],
        {"b": {"tea": 4}},
    ),
    (
        "a silent one comes last by any strategy",
        Strategy.MOST_STOCK,
        {"tea": 4},
        [at("a", tea=9, SILENT=True), at("b", tea=3)],
        {"b": {"tea": 3}, "a": {"tea": 1}},
    ),
    (
        "what is on a shelf, wherever it is, before what is to come",
        Strategy.PRIORITY,
        {"tea": 2},
        [at("a", 0, tea_to_come=9), at("b", 9, tea=2)],
        {"b": {"tea": 2}},
    ),
    (
        "all shelves first, and what they lack waits where something comes from anyway",
        Strategy.PRIORITY,
        {"tea": 6},
        [at("a", 0, tea_to_come=9), at("b", 1, tea=2, tea_to_come=1), at("c", 2, tea=1)],
        {"b": {"tea": 3}, "c": {"tea": 1}, "a": {"tea": 2}},
    ),
    (
        "what nobody has waits at as few locations as can be",
        Strategy.FEWEST_SPLITS,
        {"tea": 2, "milk": 3},
        [
            at("a", tea_to_come=2),
            at("b", milk_to_come=3),
            at("c", 9, tea_to_come=2, milk_to_come=3),
        ],
        {"c": {"tea": 2, "milk": 3}},
    ),
    (
        "more is wanted than may wait",
        Strategy.FEWEST_SPLITS,
        {"tea": 5},
        [at("a", tea=1, tea_to_come=2), at("b", tea_to_come=1)],
        {"a": {"tea": 3}, "b": {"tea": 1}},
    ),
    ("nobody has it", Strategy.PRIORITY, {"tea": 1}, [at("a", milk=5)], {}),
    ("there is nobody", Strategy.FEWEST_SPLITS, {"tea": 1}, [], {}),
]


@pytest.mark.parametrize(
    ("strategy", "wanted", "candidates", "chosen"),
    [example[1:] for example in EXAMPLES],
    ids=[example[0] for example in EXAMPLES],
)
def test_a_strategy_chooses(
    strategy: Strategy,
    wanted: dict[str, int],
    candidates: list[Candidate],
    chosen: dict[str, dict[str, int]],
) -> None:
    lines = [Line(sku, units) for sku, units in wanted.items()]
    plan = source(lines, candidates, strategy, destination=LONDON)
    found = {one.location: {x.sku: x.quantity for x in one.lines} for one in plan.sources}
    assert found == chosen
    given = {sku: sum(some.get(sku, 0) for some in found.values()) for sku in wanted}
    missing = {line.sku: line.quantity for line in plan.missing}
    assert given == {sku: units - missing.get(sku, 0) for sku, units in wanted.items()}
    assert all(one.why for one in plan.sources)
    everybody = {one.location for one in candidates}
    assert everybody - found.keys() == {location for location, why in plan.passed_over if why}
    # The order in which candidates are named decides nothing.
    again = source(lines, candidates[::-1], strategy, destination=LONDON)
    assert again.sources == plan.sources


def test_the_answer_says_why_this_one_and_why_not_the_others() -> None:
    candidates = [
        at("leeds", tea=2, PLACE=LEEDS),
        at("paris", tea=2, PLACE=PARIS),
        at("silent", tea=2, SILENT=True),
        at("empty"),
    ]
    plan = source([Line("tea", 2)], candidates, Strategy.DISTANCE, destination=LONDON)
    assert plan.sources[0].why == "the nearest that has it, has all of it, 272.4 km away"
    assert dict(plan.passed_over) == {
        "paris": "has 2 of the units, and others come first",
        "silent": "its tills are silent, and others have it",
        "empty": "has none of it",
    }


def test_distances_are_those_of_the_globe() -> None:
    assert distance_km(LONDON, LONDON) == 0
    assert round(distance_km(LONDON, PARIS)) == 344
    assert distance_km(LONDON, PARIS) == distance_km(PARIS, LONDON)
    assert round(distance_km(Coordinates(0, 179.5), Coordinates(0, -179.5))) == 111
    assert round(distance_km(Coordinates(90, 0), Coordinates(-90, 0))) == 20015


BOXES = {"box": {"mug": 1, "tea": 2}, "pair": {"mug": 2}}
"""Kits that need the same component."""

units_of_rows = st.fixed_dictionaries({"mug": st.integers(0, 4), "tea": st.integers(0, 6)})


@given(
    st.lists(units_of_rows, min_size=1, max_size=4),
    st.fixed_dictionaries(dict.fromkeys(("box", "pair", "mug"), st.integers(0, 3))),
    st.sampled_from(Strategy),
)
def test_a_plan_takes_no_unit_twice_and_leaves_nothing_that_would_still_serve(
    places: list[dict[str, int]], wanted: dict[str, int], strategy: Strategy
) -> None:
    ways = {
        kit: Ways((Way(1, 1, ((kit, 1),)), Way(1, 1, tuple(rows.items()))))
        for kit, rows in BOXES.items()
    }
    candidates = [
        Candidate(location=str(i), available=rows, ways=ways) for i, rows in enumerate(places)
    ]
    lines = [Line(sku, units) for sku, units in wanted.items() if units]
    plan = source(lines, candidates, strategy, destination=LONDON)
    given_out = dict.fromkeys(wanted, 0)
    left = {str(i): dict(rows) for i, rows in enumerate(places)}
    for one in plan.sources:
        for line in one.lines:
            given_out[line.sku] += line.quantity
            for row, units in BOXES.get(line.sku, {line.sku: 1}).items():
                left[one.location][row] -= units * line.quantity
    assert all(units >= 0 for rows in left.values() for units in rows.values())
    missing = {line.sku: line.quantity for line in plan.missing}
    assert wanted == {sku: given_out[sku] + missing.get(sku, 0) for sku in wanted}
    for sku in missing:
        for rows in left.values():
            needed = BOXES.get(sku, {sku: 1}).items()
            assert any(rows[row] < units for row, units in needed), f"{sku} was still to be had"


few = st.integers(0, 3)


@given(
    st.lists(st.fixed_dictionaries({"tea": few, "milk": few}), min_size=1, max_size=4),
    st.lists(st.fixed_dictionaries({"tea": few, "milk": few}), min_size=4, max_size=4),
    st.fixed_dictionaries({"tea": st.integers(1, 8), "milk": few}),
    st.sampled_from(Strategy),
)
def test_no_unit_waits_that_a_shelf_has_and_nothing_is_refused_that_may_wait(
    shelves: list[dict[str, int]],
    coming: list[dict[str, int]],
    wanted: dict[str, int],
    strategy: Strategy,
) -> None:
    candidates = [
        Candidate(location=str(i), available=rows, to_come=coming[i])
        for i, rows in enumerate(shelves)
    ]
    lines = [Line(sku, units) for sku, units in wanted.items() if units]
    plan = source(lines, candidates, strategy, destination=LONDON)
    for sku, units in wanted.items():
        on_shelves = sum(rows[sku] for rows in shelves)
        may_wait = sum(rows[sku] for rows in coming[: len(shelves)])
        waiting = sum(x.quantity for one in plan.sources for x in one.waiting if x.sku == sku)
        missing = sum(x.quantity for x in plan.missing if x.sku == sku)
        assert waiting == min(max(0, units - on_shelves), may_wait)
        assert missing == max(0, units - on_shelves - may_wait)
    for one in plan.sources:
        shelf, to_come = shelves[int(one.location)], coming[int(one.location)]
        late = {x.sku: x.quantity for x in one.waiting}
        for line in one.lines:
            assert line.quantity - late.get(line.sku, 0) <= shelf[line.sku]
            assert late.get(line.sku, 0) <= to_come[line.sku]
        assert ("wait for what is to come" in one.why) == bool(late)
        assert one.is_firm == (not late and any(to_come.values()))


def test_the_answer_says_what_waits() -> None:
    candidates = [at("a", tea=2, tea_to_come=9), at("b", tea=1, tea_to_come=9), at("c", milk=1)]
    plan = source([Line("tea", 5), Line("milk", 1)], candidates, Strategy.PRIORITY)
    assert [(one.location, one.waiting, one.is_firm) for one in plan.sources] == [
        ("a", (Line("tea", 2),), False),
        ("b", (), True),
        ("c", (), False),
    ]
    assert plan.sources[0].why == (
        "priority 0; 2 of tea wait for what is to come, as all shelves together have too little"
    )


def test_no_location_is_said_to_have_all_of_what_waits() -> None:
    candidates = [at("a", tea=1), at("b", tea_to_come=9)]
    plan = source([Line("tea", 2)], candidates, Strategy.FEWEST_SPLITS)
    assert [one.why.split(";")[0] for one in plan.sources] == [
        "one of those that can serve some of it"
    ] * 2


def test_nobody_waits_for_what_stands_in() -> None:
    ways = {"oat": Ways((Way(1, 1, (("oat", 1),)), Way(1, 1, (("soy", 1),), is_substitute=True)))}
    one = Candidate(
        location="a", available={"oat": 1, "soy": 1}, to_come={"oat": 1, "soy": 9}, ways=ways
    )
    plan = source([Line("oat", 4)], [one], Strategy.PRIORITY)
    assert (plan.sources[0].lines, plan.sources[0].waiting) == (
        (Line("oat", 3),),
        (Line("oat", 1),),
    )
    assert plan.missing == (Line("oat", 1),)


def test_one_sku_serves_all_of_a_line_in_one_piece_or_none_of_it() -> None:
    ways = {"oat": Ways((Way(1, 1, (("oat", 1),)), Way(2, 1, (("soy", 1),), True)), is_whole=True)}
    some = Candidate(location="a", available={"oat": 2, "soy": 5}, ways=ways)
    more = Candidate(location="b", available={"oat": 2, "soy": 6}, ways=ways)
    plan = source([Line("oat", 3)], [some, more], Strategy.PRIORITY)
    assert [(one.location, one.lines) for one in plan.sources] == [("b", (Line("oat", 3),))]
    assert source([Line("oat", 4)], [some, more], Strategy.PRIORITY).missing == (Line("oat", 4),)
