"""The rule of choosing, `lua/lib/choices.lua`, against trying everything, on real servers."""

import random
from collections.abc import Sequence
from importlib.resources import files
from itertools import product
from typing import Any, Final

import msgpack
import pytest

from tests.choosing import Candidate, choose
from tests.stores import RealStore

Case = tuple[int, tuple[Candidate, ...], bool, bool]

CASES_A_CALL: Final = 2_000

DRIVER: Final = """
local answers = {}
for i, case in ipairs(cmsgpack.unpack(ARGV[1])) do
  local candidates = {}
  for j, one in ipairs(case[2]) do
    candidates[j] = {room = one[1], of = one[2], for_ = one[3]}
  end
  answers[i] = choose(case[1], candidates, case[3], case[4]) or false
end
return cmsgpack.pack(answers)
"""


async def chosen(store: RealStore, cases: Sequence[Case]) -> list[Any]:
    """Return what the script chooses in each case."""
    text = files("lua").joinpath("lib", "choices.lua").read_text("utf-8") + DRIVER
    answers: list[Any] = []
    for start in range(0, len(cases), CASES_A_CALL):
        some = msgpack.packb(cases[start : start + CASES_A_CALL])
        answers += msgpack.unpackb(await store.run("EVAL", text, 0, some))
    return answers


async def compare(store: RealStore, cases: Sequence[Case]) -> None:
    """Check that each choice is the one that trying everything finds."""
    for case, answer in zip(cases, await chosen(store, cases), strict=True):
        quantity, candidates, whole, partial = case
        wanted = choose(quantity, candidates, whole=whole, partial=partial)
        assert (answer or None) == (None if wanted is None else [list(one) for one in wanted]), case
        if answer and not partial:
            assert sum(served for _, served in answer) == quantity, case


async def test_all_small_cases_are_chosen_as_the_rule_says(store: RealStore) -> None:
    ratios = ((1, 1), (1, 2), (2, 1), (2, 3), (1, 3))
    cases: list[Case] = [
        (quantity, (Candidate(own), Candidate(a, *first), Candidate(b, *second)), whole, partial)
        for quantity, own, a, b in product((1, 3, 4), (0, 2), (0, 1, 2), (0, 2))
        for first, second in product(ratios, ratios)
        for whole, partial in product((False, True), repeat=2)
    ]
    assert len(cases) == 3_600
    await compare(store, cases)


async def test_random_cases_are_chosen_as_the_rule_says(store: RealStore) -> None:
    draw = random.Random(21)
    cases: list[Case] = []
    for _ in range(1_500):
        others = [
            Candidate(draw.randint(0, 5), draw.randint(1, 5), draw.randint(1, 7))
            for _ in range(draw.randint(1, 3))
        ]
        cases.append(
            (
                draw.randint(1, 12),
                (Candidate(draw.randint(0, 9)), *others),
                draw.random() < 0.2,
                draw.random() < 0.3,
            )
        )
    await compare(store, cases)


@pytest.mark.parametrize("whole", [False, True])
async def test_large_numbers_are_counted_exactly(store: RealStore, whole: bool) -> None:
    huge = 10**12
    cases: list[Case] = [
        (10**9, (Candidate(0), Candidate(huge, 1, 1_000)), whole, False),
        (10**9, (Candidate(10**9 - 1), Candidate(huge, 1_000, 1)), whole, False),
        (999, (Candidate(0), Candidate(huge, 12, 997), Candidate(huge, 1_000, 7)), whole, False),
    ]
    first, second, third = await chosen(store, cases)
    assert first == [[0, 0], [10**6, 10**9]]
    assert second == ([[0, 0], [huge, 10**9]] if whole else [[10**9 - 1, 10**9 - 1], [1_000, 1]])
    # 13 units of the first stand for 1,080, 12 for 997 and the other two for the rest.
    assert third == ([[0, 0], [0, 0], [142_715, 999]] if whole else [[0, 0], [12, 997], [286, 2]])


async def test_the_worst_line_is_chosen_soon(store: RealStore) -> None:
    """As many candidates, units and steps of a ratio as may be; by the server's own clock."""
    ratios = (
        (12, 997),
        (12, 983),
        (12, 977),
        (12, 971),
        (12, 967),
        (12, 953),
        (12, 947),
        (12, 941),
    )
    candidates = (Candidate(3), *(Candidate(5, *ratio) for ratio in ratios))
    case: Case = (1_000, candidates, False, False)
    (answer,) = await chosen(store, [case])
    assert sum(served for _, served in answer) == 1_000
