import pytest

from engine.outcomes import Overloaded
from gateway.crowd import Crowd


def filled(crowd: Crowd, merchant: str) -> int:
    """Let the merchant's requests in until one is refused; return how many came in."""
    for count in range(1_000):
        try:
            crowd.enter(merchant)
        except Overloaded:
            return count
    raise AssertionError("nothing was refused")


def test_a_merchant_alone_gets_half_of_the_room() -> None:
    crowd = Crowd(100)
    assert filled(crowd, "busy") == 50
    assert crowd.under_way == 50


def test_each_newcomer_finds_room_and_leaves_some() -> None:
    crowd = Crowd(100)
    taken = [filled(crowd, f"merchant-{number}") for number in range(6)]
    assert taken == [50, 25, 13, 6, 3, 2]
    crowd.enter("quiet")


def test_what_left_makes_room_again() -> None:
    crowd = Crowd(4)
    assert filled(crowd, "busy") == 2
    crowd.leave("busy")
    crowd.enter("busy")
    with pytest.raises(Overloaded):
        crowd.enter("busy")
    for _ in range(2):
        crowd.leave("busy")
    assert crowd.under_way == 0
    assert filled(crowd, "busy") == 2
