"""Which names look like another."""

from engine.spelling import MAX_NEAREST, close, nearest


def test_the_nearest_comes_first_and_ties_by_name() -> None:
    assert nearest("po-l7", ["console", "po-17", "PO-L7"]) == ("PO-L7", "po-17", "console")
    assert nearest("po-3", ["po-2", "po-1"]) == ("po-1", "po-2")
    assert nearest("po", []) == ()
    assert len(nearest("po", [f"po-{number}" for number in range(50)])) == MAX_NEAREST


def test_what_looks_like_it_and_all_where_nothing_does() -> None:
    assert close("po-l7", ["console", "po-17"]) == ("po-17",)
    assert close("xyz", ["console", "po-17"]) == ("console", "po-17")
