import asyncio

import pytest

from engine.outcomes import Overloaded
from gateway import crowd as crowd_module
from gateway.crowd import Crowd


async def filled(crowd: Crowd, merchant: str) -> int:
    """Let the merchant's requests in until one is refused; return how many came in."""
    for count in range(1_000):
        try:
            await crowd.enter(merchant)
        except Overloaded:
            return count
    raise AssertionError("nothing was refused")


async def test_a_merchant_alone_gets_half_of_the_room() -> None:
    crowd = Crowd(100, 100)
    assert await filled(crowd, "busy") == 50
    assert crowd.under_way == 50


async def test_each_newcomer_finds_room_and_leaves_some() -> None:
    crowd = Crowd(100, 100)
    taken = [await filled(crowd, f"merchant-{number}") for number in range(6)]
    assert taken == [50, 25, 13, 6, 3, 2]
    await crowd.enter("quiet")


async def test_what_left_makes_room_again() -> None:
    crowd = Crowd(4, 4)
    assert await filled(crowd, "busy") == 2
    crowd.leave("busy")
    await crowd.enter("busy")
    with pytest.raises(Overloaded):
        await crowd.enter("busy")
    for _ in range(2):
        crowd.leave("busy")
    assert crowd.under_way == 0
    assert await filled(crowd, "busy") == 2


async def test_merchants_take_turns_whoever_came_first() -> None:
    crowd = Crowd(100, 1)
    served: list[str] = []

    async def ask(merchant: str) -> None:
        await crowd.enter(merchant)
        served.append(merchant)
        crowd.leave(merchant)

    await crowd.enter("busy")
    tasks = [asyncio.create_task(ask("busy")) for _ in range(4)]
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(ask("quiet")))
    await asyncio.sleep(0)
    crowd.leave("busy")
    await asyncio.gather(*tasks)
    assert served == ["busy", "quiet", "busy", "busy", "busy"]
    assert crowd.under_way == 0


async def test_who_goes_away_or_waits_too_long_takes_no_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crowd = Crowd(100, 1)
    await crowd.enter("busy")
    gone = asyncio.create_task(crowd.enter("busy"))
    await asyncio.sleep(0)
    gone.cancel()
    monkeypatch.setattr(crowd_module, "MAX_WAIT_SECONDS", 0.01)
    with pytest.raises(Overloaded):
        await crowd.enter("late")
    assert crowd.under_way == 1
    crowd.leave("busy")
    await crowd.enter("next")
    crowd.leave("next")
    assert crowd.under_way == 0


async def test_a_turn_that_comes_to_who_just_went_away_goes_on_to_the_next() -> None:
    crowd = Crowd(100, 1)
    await crowd.enter("busy")
    gone = asyncio.create_task(crowd.enter("gone"))
    waits = asyncio.create_task(crowd.enter("waits"))
    await asyncio.sleep(0)
    crowd.leave("busy")
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    async with asyncio.timeout(5):
        await waits
    assert crowd.under_way == 1
