"""What wishes may ask of one reservation."""

import pytest

from engine.limits import MAX_MIXED_UNITS
from engine.outcomes import InvalidCommand
from engine.wishes import Fill, Substitution, Wish, check_wishes


def wish(sku: str, quantity: int, *, fill: Fill = Fill.MIXED) -> Wish:
    return Wish(sku=sku, quantity=quantity, substitutes=Substitution.ALLOWED, fill=fill)


def test_lines_that_several_skus_may_serve_are_bounded_together() -> None:
    most = wish("tea", MAX_MIXED_UNITS - 1)
    check_wishes([most, wish("mint", 1), wish("mug", 10**6, fill=Fill.WHOLE)])
    for over in (wish("mint", 2), wish("tea", 2)):
        with pytest.raises(InvalidCommand, match="say fill whole") as refused:
            check_wishes([most, over])
        assert refused.value.field == "lines[1].quantity"
