import asyncio

import pytest

from engine.lane import Backlog, Lane
from engine.outcomes import HoldfastError, InvalidCommand, OutcomeUnknown, Overloaded


class Recorder:
    """A call that can be held up, and remembers the batches it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.started = asyncio.Event()

    async def __call__(self, items: list[int]) -> list[int | HoldfastError]:
        self.batches.append(items)
        self.started.set()
        await self.gate.wait()
        return [InvalidCommand("item", "is odd") if item == 13 else item * 2 for item in items]


def lane_of(
    call: Recorder, *, backlog: int = 100, most_items: int = 4, most_weight: int = 1000
) -> tuple[Lane[int, int], Backlog]:
    counted = Backlog(backlog)
    lane: Lane[int, int] = Lane(
        call, counted, most_items=most_items, most_weight=most_weight, weigh=lambda item: item
    )
    return lane, counted


async def test_what_one_turn_submits_goes_out_together() -> None:
    call = Recorder()
    lane, _ = lane_of(call)
    assert await asyncio.gather(*(lane.submit(n) for n in (1, 2, 3))) == [2, 4, 6]
    assert call.batches == [[1, 2, 3]]


async def test_what_arrives_during_a_call_goes_out_in_the_next_in_order() -> None:
    call = Recorder()
    lane, _ = lane_of(call)
    call.gate.clear()
    first = lane.submit(1)
    await call.started.wait()
    others = [lane.submit(n) for n in (2, 3, 4, 5, 6)]
    call.gate.set()
    assert await asyncio.gather(first, *others) == [2, 4, 6, 8, 10, 12]
    assert call.batches == [[1], [2, 3, 4, 5], [6]]


async def test_a_call_is_bounded_by_weight_but_takes_one_heavy_item() -> None:
    call = Recorder()
    lane, _ = lane_of(call, most_weight=10)
    await asyncio.gather(*(lane.submit(n) for n in (6, 5, 50, 1)))
    assert call.batches == [[6], [5], [50], [1]]


async def test_a_refusal_reaches_its_own_caller_only() -> None:
    lane, _ = lane_of(Recorder())
    good, bad = lane.submit(1), lane.submit(13)
    assert await good == 2
    with pytest.raises(InvalidCommand):
        await bad


async def test_a_failed_call_reaches_all_its_callers_and_the_lane_goes_on() -> None:
    failures = [OutcomeUnknown()]

    async def call(items: list[int]) -> list[int | HoldfastError]:
        if failures:
            raise failures.pop()
        return [*items]

    lane: Lane[int, int] = Lane(call, Backlog(10), most_items=4, most_weight=100, weigh=lambda _: 1)
    answers = await asyncio.gather(lane.submit(1), lane.submit(2), return_exceptions=True)
    assert [type(answer) for answer in answers] == [OutcomeUnknown, OutcomeUnknown]
    assert await lane.submit(3) == 3


async def test_past_the_backlog_a_caller_is_refused_and_the_others_are_served() -> None:
    call = Recorder()
    lane, backlog = lane_of(call, backlog=2)
    call.gate.clear()
    waiting = [lane.submit(1), lane.submit(2)]
    with pytest.raises(Overloaded) as refused:
        lane.submit(3)
    assert refused.value.retry_after_ms > 0
    call.gate.set()
    assert await asyncio.gather(*waiting) == [2, 4]
    assert backlog.waiting == 0


async def test_a_caller_who_went_away_before_the_call_is_left_out() -> None:
    call = Recorder()
    lane, backlog = lane_of(call)
    call.gate.clear()
    first = lane.submit(1)
    await call.started.wait()
    gone, stays = lane.submit(2), lane.submit(3)
    gone.cancel()
    call.gate.set()
    assert [await first, await stays] == [2, 6]
    assert call.batches == [[1], [3]]
    assert backlog.waiting == 0


async def test_parties_take_turns_and_each_keeps_its_order() -> None:
    call = Recorder()
    lane, _ = lane_of(call)
    call.gate.clear()
    first = lane.submit(1, "busy")
    await call.started.wait()
    others = [lane.submit(n, "busy") for n in (2, 3, 4)] + [lane.submit(9, "quiet")]
    more = [lane.submit(n, "busy") for n in (5, 6)]
    call.gate.set()
    await asyncio.gather(first, *others, *more)
    assert call.batches == [[1], [2, 9, 3, 4], [5, 6]]


async def test_a_full_call_goes_out_while_another_is_under_way_but_no_third_does() -> None:
    call = Recorder()
    lane, _ = lane_of(call)
    call.gate.clear()
    first = lane.submit(1)
    await call.started.wait()
    others = [lane.submit(n) for n in (2, 3, 4)]
    await asyncio.sleep(0)
    assert call.batches == [[1]], "three are no full call"
    others += [lane.submit(n) for n in (5, 6, 7, 8, 9)]
    call.started.clear()
    await call.started.wait()
    assert call.batches == [[1], [2, 3, 4, 5]], "two calls are under way"
    call.gate.set()
    await asyncio.gather(first, *others)
    assert call.batches == [[1], [2, 3, 4, 5], [6, 7, 8, 9]]


async def test_one_party_fills_its_share_and_leaves_room_for_another() -> None:
    call = Recorder()
    counted = Backlog(3, 2)
    lane: Lane[int, int] = Lane(call, counted, most_items=4, most_weight=99, weigh=lambda _: 1)
    waiting = [lane.submit(1, "busy"), lane.submit(2, "busy")]
    with pytest.raises(Overloaded):
        lane.submit(3, "busy")
    waiting.append(lane.submit(4, "quiet"))
    with pytest.raises(Overloaded):
        lane.submit(5, "third")
    assert await asyncio.gather(*waiting) == [2, 4, 8]
    assert counted.waiting == 0
