"""How much of what was asked for is served, by a table of examples."""

import pytest

from engine.model import Line, StandsFor
from engine.served import served

KIT = (
    StandsFor("box", "mug", 2, 2, 1, 1, "kit"),
    StandsFor("box", "tea", 4, 2, 2, 1, "kit"),
)
TWELVE = StandsFor("six", "twelve", 3, 5, 1, 2, "substitute")
HELD = [Line("mug", 3), Line("tea", 4), Line("six", 1), Line("twelve", 3)]


@pytest.mark.parametrize(
    ("brought", "expected"),
    [
        ({"mug": 3, "tea": 4, "six": 1, "twelve": 3}, {"mug": 1, "box": 2, "six": 6}),
        ({}, {}),
        ({"mug": 1, "tea": 4}, {"mug": 1}),
        ({"mug": 2, "tea": 4}, {"mug": 1, "box": 1}),
        ({"mug": 3, "tea": 3}, {"mug": 1, "box": 1}),
        ({"six": 1, "twelve": 1}, {"six": 3}),
        ({"twelve": 2}, {"six": 4}),
    ],
)
def test_what_was_brought_serves_names_then_whole_kits_then_others(
    brought: dict[str, int], expected: dict[str, int]
) -> None:
    lines = [Line(sku, units) for sku, units in brought.items()]
    assert {x.sku: x.quantity for x in served(HELD, (*KIT, TWELVE), lines)} == expected


def test_what_nothing_stands_for_serves_itself() -> None:
    lines = (Line("tea", 2), Line("milk", 0))
    assert served([Line("tea", 5), Line("milk", 1)], (), lines) == lines
