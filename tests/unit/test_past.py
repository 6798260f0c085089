"""The fold's twins of the scripts: the same constants, the same bytes."""

import re
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.limits import RECENT_MS
from reconciler import past, sources
from reconciler.past import FLOOR, Past, is_same_past, pack_deltas, unpack_deltas
from reconciler.sources import FoldedSource

NOW = 10 * RECENT_MS


def constants(piece: str) -> dict[str, int]:
    """Return the numbers that a script's piece names at its top."""
    text = files("lua").joinpath(f"lib/{piece}.lua").read_text("utf-8")
    found: dict[str, int] = {}
    for names, values in re.findall(r"^local ([A-Z_, ]+) = ([^\n{]+)$", text, re.MULTILINE):
        for name, value in zip(names.split(", "), values.split(", "), strict=True):
            if re.fullmatch(r"-?\d+", value):
                found[name] = int(value)
    return found


def test_the_twins_have_the_same_constants() -> None:
    told = {"MAX_DELTAS", "DELTAS_LEFT", "TIDY_EVERY", "DELTA_BYTES", "FLOOR", "TIE_DIGITS"}
    assert {name: getattr(past, name) for name in told} == constants("asof")
    kept = constants("sources")
    assert {name: kept[name] for name in ("PRINTS", "PRINT_BYTES")} == {
        "PRINTS": sources.PRINTS,
        "PRINT_BYTES": sources.PRINT_BYTES,
    }


@given(
    st.lists(st.tuples(st.integers(0, 2**47), st.integers(-(2**47), 2**47 - 1))),
)
def test_changes_come_back_as_they_were_packed(deltas: list[tuple[int, int]]) -> None:
    assert unpack_deltas(pack_deltas(deltas)) == deltas


def test_a_text_that_is_cut_is_no_past() -> None:
    with pytest.raises(ValueError, match="whole number"):
        unpack_deltas(b"x" * 13)
    assert not is_same_past(None, None, b"x" * 13, NOW)


def test_what_either_side_has_dropped_is_not_compared() -> None:
    kept = Past(5, "ab", [(NOW - 10, 3), (NOW - 5, -1)], NOW)
    assert is_same_past(kept, b"5-ab", pack_deltas([(NOW - 5, -1), (NOW - 10, 3)]), NOW)
    assert not is_same_past(kept, b"5-ab", pack_deltas([(NOW - 5, -1)]), NOW)
    floored = pack_deltas([(NOW - 10, FLOOR), (NOW - 5, -1)])
    assert is_same_past(kept, b"5-ab", floored, NOW)
    assert not is_same_past(kept, b"6-ab", floored, NOW)
    assert is_same_past(kept, b"5-ab", None, NOW + 2 * RECENT_MS)


@given(st.permutations(range(1, 12)), st.integers(0, 11))
def test_a_sequence_ends_whole_in_any_order(order: list[int], skipped: int) -> None:
    source = FoldedSource()
    for place, number in enumerate(order):
        source.note(number, f"{number:08x}" + "0" * 16, place)
        if place == 5 and skipped:
            source.skip(skipped)
        numbers = set(range(source.watermark + 1, source.highest + 1))
        covered = {n for first, last, _ in source.ahead for n in range(first, last + 1)}
        assert covered <= numbers
        assert source.watermark + 1 not in covered
    assert (source.watermark, source.ahead) == (11, [])
