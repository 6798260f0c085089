"""Which names look like another."""

from itertools import combinations, product

from engine.spelling import CLOSE, MAX_NEAREST, close, nearest
from tests.steps import steps


def test_the_nearest_comes_first_and_ties_by_name() -> None:
    assert nearest("po-l7", ["console", "po-17", "PO-L7"]) == ("PO-L7", "po-17", "console")
    assert nearest("po-3", ["po-2", "po-1"]) == ("po-1", "po-2")
    assert nearest("po", []) == ()
    assert len(nearest("po", [f"po-{number}" for number in range(50)])) == MAX_NEAREST


def test_what_looks_like_it_and_all_where_nothing_does() -> None:
    assert close("po-l7", ["console", "po-17"]) == ("po-17",)
    assert close("xyz", ["console", "po-17"]) == ("console", "po-17")


def subsequences(name: str) -> set[str]:
    return {"".join(some) for length in range(5) for some in combinations(name, length)}


def test_names_are_as_near_as_what_they_have_in_common_in_order() -> None:
    names = ["".join(letters) for length in range(5) for letters in product("ab", repeat=length)]
    for one, other in product(names[1:], repeat=2):
        common = max(map(len, subsequences(one) & subsequences(other)))
        is_close = 2 * common / (len(one) + len(other)) >= CLOSE
        assert (close(one, [other, "-"]) == (other,)) == is_close, (one, other)


def test_long_names_are_told_apart_where_they_differ() -> None:
    stem = "urn:epcglobal:cbv:bt:" + "0614141000012:" * 10
    assert nearest(stem + "po-l7", [stem + "console", stem + "po-17"])[0] == stem + "po-17"


def test_names_that_were_made_to_take_long_do_not() -> None:
    name, *known = ["ab" * number + "ba" * (100 - number) for number in range(51)]
    assert steps(lambda: nearest(name, known)) < 50_000
