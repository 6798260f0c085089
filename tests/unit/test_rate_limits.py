"""The token bucket against a clock that only the test moves, and against one of whole units."""

import re
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.access import MAX_RATE_PER_SECOND, ApiKey, RateLimit, Role
from engine.outcomes import InvalidCommand
from gateway import rate_limits
from gateway.problems import RateLimited
from gateway.rate_limits import ITEMS_A_UNIT, Bucket, RateLimits

_POLICY = re.compile(rb'"key";q=(\d+);w=(\d+)')
_LEFT = re.compile(rb'"key";r=(\d+);t=(\d+)')


class Clock:
    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


def key(limit: RateLimit | None, key_id: str = "Ab12Cd34") -> ApiKey:
    return ApiKey(
        id=key_id, role=Role.READ, merchant=None, label="", created_at_ms=0, rate_limit=limit
    )


def bucket(clock: Clock, per_second: int, burst: int | None = None, *, workers: int = 1) -> Bucket:
    return Bucket(RateLimit.of(per_second, burst), workers=workers, clock=clock)


def taken(one: Bucket, tries: int) -> int:
    """Return how many of so many requests are let in."""
    let_in = 0
    for _ in range(tries):
        try:
            one.take()
        except RateLimited:
            continue
        let_in += 1
    return let_in


def left(one: Bucket) -> tuple[int, int]:
    """Return what the response fields say is left, and in how many seconds there is more."""
    policy, now = one.fields()
    assert (policy[0], now[0]) == (b"ratelimit-policy", b"ratelimit")
    assert _POLICY.fullmatch(policy[1])
    found = _LEFT.fullmatch(now[1])
    assert found is not None
    return int(found[1]), int(found[2])


def test_a_burst_and_then_the_rate() -> None:
    clock = Clock()
    one = bucket(clock, 10, 25)
    assert left(one) == (25, 0)
    assert taken(one, 40) == 25
    assert left(one) == (0, 1)
    for _ in range(10):
        clock.seconds += 0.1
        assert taken(one, 3) == 1
    clock.seconds += 100
    assert taken(one, 40) == 25


def test_the_fields_tell_the_burst_and_the_time_in_which_it_comes_back() -> None:
    clock = Clock()
    for per_second, burst, expected in ((10, 25, (25, 3)), (10, 10, (10, 1)), (1, 7, (7, 7))):
        found = _POLICY.fullmatch(bucket(clock, per_second, burst).policy[1])
        assert found is not None
        assert (int(found[1]), int(found[2])) == expected


def test_a_refusal_tells_when_to_come_back_and_then_holds_its_word() -> None:
    clock = Clock()
    one = bucket(clock, 1, 2)
    assert taken(one, 2) == 2
    clock.seconds += 0.25
    with pytest.raises(RateLimited) as refused:
        one.take()
    assert refused.value.retry_after_ms == 750
    clock.seconds += 0.75
    one.take()


def test_a_refused_request_costs_nothing() -> None:
    clock = Clock()
    one = bucket(clock, 10)
    assert taken(one, 1_000) == 10
    clock.seconds += 1
    assert taken(one, 1_000) == 10


@pytest.mark.parametrize(
    ("items", "units"),
    [(1, 1), (ITEMS_A_UNIT, 1), (ITEMS_A_UNIT + 1, 2), (500, 50), (1_000, 100)],
)
def test_a_request_of_many_items_costs_more_and_what_is_missing_is_owed(
    items: int, units: int
) -> None:
    clock = Clock()
    one = bucket(clock, 10, 20)
    one.take()
    one.charge_items(items)
    assert left(one)[0] == max(0, 20 - units)
    owed = max(0, units - 20)
    if owed:
        with pytest.raises(RateLimited) as refused:
            one.take()
        assert refused.value.retry_after_ms == (owed + 1) * 100
        assert left(one) == (0, ceil((owed + 1) / 10))
        clock.seconds += (owed + 1) / 10
        assert taken(one, 5) == 1


def test_workers_share_a_limit() -> None:
    clock = Clock()
    shares = [bucket(clock, 10, 21, workers=4) for _ in range(4)]
    assert sum(taken(share, 100) for share in shares) == 24
    clock.seconds += 2
    assert sum(taken(share, 100) for share in shares) == 20


@given(
    st.integers(1, 50),
    st.integers(0, 100),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(0, 3_000), st.integers(1, 300)), max_size=40),
)
def test_it_lets_in_just_what_a_bucket_of_exact_units_would(
    per_second: int, more: int, workers: int, steps: list[tuple[int, int]]
) -> None:
    clock = Clock()
    one = bucket(clock, per_second, per_second + more, workers=workers)
    # In units of a thousandth of a worker's share, so that all of it stays whole numbers.
    scale = 1_000 * workers
    full = one.burst * scale
    level = full
    for wait_ms, items in steps:
        clock.seconds += wait_ms / 1_000
        level = min(full, level + wait_ms * per_second)
        assert left(one)[0] == max(0, level // scale)
        if level >= scale:
            one.take()
            one.charge_items(items)
            level -= scale * max(1, ceil(items / ITEMS_A_UNIT))
        else:
            assert taken(one, 1) == 0


def test_keys_have_buckets_of_their_own_and_those_without_a_limit_have_none() -> None:
    clock = Clock()
    limits = RateLimits(clock=clock)
    assert limits.of(key(None)) is None
    first, second = key(RateLimit.of(5), "first000"), key(RateLimit.of(5), "second00")
    one, other = limits.of(first), limits.of(second)
    assert one is not None
    assert other is not None
    assert taken(one, 9) == 5
    assert taken(other, 9) == 5
    assert limits.of(first) is one


def test_a_new_limit_starts_with_a_full_burst() -> None:
    limits = RateLimits(clock=Clock())
    one = limits.of(key(RateLimit.of(5)))
    assert one is not None
    assert taken(one, 9) == 5
    other = limits.of(key(RateLimit.of(6)))
    assert other is not None
    assert taken(other, 9) == 6


def test_no_more_buckets_are_kept_than_there_can_be_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "MAX_API_KEYS", 3)
    limits = RateLimits(clock=Clock())
    for number in range(10):
        limits.of(key(RateLimit.of(1), f"{number:08}"))
    assert len(limits._buckets) == 3


@pytest.mark.parametrize(
    ("per_second", "burst", "field"),
    [
        (0, None, "rate_limit"),
        (-1, None, "rate_limit"),
        (MAX_RATE_PER_SECOND + 1, None, "rate_limit"),
        (10, 9, "burst"),
        (10, MAX_RATE_PER_SECOND + 1, "burst"),
    ],
)
def test_a_limit_that_is_none_is_refused(per_second: int, burst: int | None, field: str) -> None:
    with pytest.raises(InvalidCommand) as refused:
        RateLimit.of(per_second, burst)
    assert refused.value.field == field
