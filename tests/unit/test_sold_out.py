"""What is known of rows that are out, against a clock that only the test moves."""

import pytest

from engine import sold_out
from engine.model import Line
from engine.outcomes import ShortLine
from engine.sold_out import BELIEF_SECONDS, SoldOut


class Clock:
    def __init__(self) -> None:
        self.seconds = 5.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def known(clock: Clock) -> SoldOut:
    """Tea is out, and of cups there are two."""
    made = SoldOut(clock=clock)
    lines = [("row:tea", ShortLine("tea", 1, 0)), ("row:cup", ShortLine("cup", 5, 2))]
    made.learn(lines, asked_at=made.mark())
    return made


def short(known: SoldOut, *lines: tuple[str, int]) -> list[tuple[str, int, int]] | None:
    found = known.short_lines([(f"row:{sku}", Line(sku, quantity)) for sku, quantity in lines])
    return None if found is None else [(x.sku, x.requested, x.available) for x in found]


def test_what_was_refused_is_refused_until_the_time_is_up(known: SoldOut, clock: Clock) -> None:
    assert short(known, ("tea", 3)) == [("tea", 3, 0)]
    clock.seconds += BELIEF_SECONDS * 0.99
    assert short(known, ("tea", 1)) == [("tea", 1, 0)]
    clock.seconds += BELIEF_SECONDS * 0.02
    assert short(known, ("tea", 1)) is None
    assert "row:tea" not in known.rows


def test_what_may_fit_is_left_to_the_store(known: SoldOut) -> None:
    assert short(known, ("cup", 2)) is None
    assert short(known, ("cup", 3)) == [("cup", 3, 2)]
    assert short(known, ("pot", 1)) is None


def test_a_cart_that_may_be_short_of_more_is_left_to_the_store(known: SoldOut) -> None:
    assert short(known, ("tea", 1), ("pot", 1)) is None
    assert short(known, ("tea", 1), ("cup", 1)) is None


def test_a_change_that_is_seen_ends_the_belief(known: SoldOut) -> None:
    known.forget(["row:tea", "row:pot"])
    assert short(known, ("tea", 1)) is None
    assert short(known, ("cup", 3)) is not None
    known.see("row:cup", 2)
    assert short(known, ("cup", 3)) is not None
    known.see("row:cup", 3)
    assert short(known, ("cup", 3)) is None


def test_a_refusal_from_before_a_change_teaches_nothing(known: SoldOut) -> None:
    asked_at = known.mark()
    known.forget(["row:pot"])
    lines = [("row:pot", ShortLine("pot", 1, 0)), ("row:jug", ShortLine("jug", 1, 0))]
    known.learn(lines, asked_at=asked_at)
    assert short(known, ("pot", 1)) is None
    assert short(known, ("jug", 1)) is not None
    known.learn(lines, asked_at=known.mark())
    assert short(known, ("pot", 1)) is not None


def test_it_stays_bounded_and_forgets_to_the_safe_side(
    known: SoldOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sold_out, "MAX_ROWS", 3)
    asked_at = known.mark()
    for number in range(50):
        known.learn([(f"row:{number}", ShortLine(f"{number}", 1, 0))], asked_at=known.mark())
        assert len(known.rows) <= 3
    assert short(known, ("49", 1)) is not None
    for number in range(50):
        known.forget([f"row:{number}"])
    assert len(known._changed) <= 3
    # Which rows changed since is no longer known: so it may have been any of them.
    known.learn([("row:tea", ShortLine("tea", 1, 0))], asked_at=asked_at)
    assert short(known, ("tea", 1)) is None
    known.learn([("row:tea", ShortLine("tea", 1, 0))], asked_at=known.mark())
    assert short(known, ("tea", 1)) is not None


def test_a_row_that_is_not_there_is_told_as_such(known: SoldOut) -> None:
    line = ShortLine("mug", 1, 0, known=False)
    known.learn([("row:mug", line)], asked_at=known.mark())
    assert known.short_lines([("row:mug", Line("mug", 1))]) == (line,)
