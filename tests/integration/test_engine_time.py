"""Time is the store's: holds end when they are due, a due hold still counts until it is taken back.

The tests put a partition's high-water mark ahead, so that its clock stands where they want it.
"""

import time
from itertools import product

import pytest

from engine.clock import TOLERANCE_MS
from engine.inventory import Inventory
from engine.model import Reservation, ReservationResult, ReservationState
from engine.outcomes import InsufficientStock, LimitExceeded, ReservationEnded
from tests.shop import ACTOR, Shop
from tests.stores import eventually

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


async def extend(shop: Shop, the_id: str, ttl_ms: int, key: str = "k") -> ReservationResult:
    return await shop.inventory.extend(shop.merchant, the_id, key=key, ttl_ms=ttl_ms, actor=ACTOR)


async def test_a_hold_ends_when_its_time_is_up(own_shop: Shop) -> None:
    shop = own_shop
    await shop.receive("tea", 5)
    hold = (await shop.reserve([("tea", 3)], ttl_ms=1_000)).reservation
    partition = shop.keys().partition
    assert (await shop.inventory.expire_due(partition)).expired == 0

    async def is_expired() -> bool:
        await shop.inventory.expire_due(partition)
        found = await shop.inventory.reservation(shop.merchant, hold.id)
        return found.state is ReservationState.EXPIRED

    await eventually(is_expired, within_seconds=10)
    found = await shop.inventory.reservation(shop.merchant, hold.id)
    assert found.ended_at_ms is not None
    assert found.ended_at_ms >= (hold.expires_at_ms or 0)
    assert (await shop.row("tea")).available == 5
    with pytest.raises(ReservationEnded) as refused:
        await shop.commit(hold.id)
    assert refused.value.state == "expired"
    await shop.audit()


async def test_a_hold_is_due_at_its_very_millisecond_and_not_before(own_shop: Shop) -> None:
    shop = own_shop
    await shop.receive("tea", 5)
    hold = (await shop.reserve([("tea", 3)], ttl_ms=HOUR_MS)).reservation
    assert hold.expires_at_ms is not None
    partition = shop.keys().partition
    await shop.set_clock(hold.expires_at_ms - 1)
    assert (await shop.inventory.expire_due(partition)).expired == 0
    await shop.set_clock(hold.expires_at_ms)
    assert (await shop.inventory.expire_due(partition)).expired == 1
    assert (await shop.inventory.expire_due(partition)).expired == 0
    await shop.audit()


@pytest.mark.parametrize("verb", ["commit", "confirm", "release"])
async def test_what_comes_before_the_sweep_wins_over_a_due_hold(own_shop: Shop, verb: str) -> None:
    shop = own_shop
    await shop.receive("tea", 5)
    hold = (await shop.reserve([("tea", 3)], ttl_ms=1_000)).reservation
    await shop.set_clock((hold.expires_at_ms or 0) + HOUR_MS)
    assert (await shop.row("tea")).available == 2, "a due hold still holds its units"
    await getattr(shop.inventory, verb)(shop.merchant, hold.id, actor=ACTOR)
    assert (await shop.inventory.expire_due(shop.keys().partition)).expired == 0
    await shop.audit()


async def test_an_extended_hold_is_not_due(own_shop: Shop) -> None:
    shop = own_shop
    await shop.receive("tea", 5)
    hold = (await shop.reserve([("tea", 3)], ttl_ms=1_000)).reservation
    await shop.set_clock((hold.expires_at_ms or 0) + 1)
    await shop.inventory.extend(shop.merchant, hold.id, key="k", ttl_ms=HOUR_MS, actor=ACTOR)
    assert (await shop.inventory.expire_due(shop.keys().partition)).expired == 0
    await shop.release(hold.id)
    await shop.audit()


async def test_a_reserve_that_is_short_takes_due_holds_back_first(own_shop: Shop) -> None:
    shop = own_shop
    await shop.receive("tea", 5)
    abandoned = [(await shop.reserve([("tea", 1)], ttl_ms=1_000)).reservation for _ in range(5)]
    await shop.set_clock((abandoned[-1].expires_at_ms or 0) + 1)
    result = await shop.reserve([("tea", 5)])
    assert result.reservation.lines[0].quantity == 5
    for hold in abandoned:
        found = await shop.inventory.reservation(shop.merchant, hold.id)
        assert found.state is ReservationState.EXPIRED
    await shop.audit()


async def test_a_partial_reserve_takes_due_holds_back_before_it_takes_less(own_shop: Shop) -> None:
    shop = own_shop
    await shop.receive("tea", 5)
    abandoned = (await shop.reserve([("tea", 4)], ttl_ms=1_000)).reservation
    await shop.set_clock((abandoned.expires_at_ms or 0) + 1)
    result = await shop.reserve([("tea", 5)], partial=True)
    assert result.reservation.missing == ()
    await shop.audit()


async def test_a_reserve_that_stays_short_is_refused_once_nothing_is_due(own_shop: Shop) -> None:
    shop = own_shop
    await shop.receive("tea", 5)
    abandoned = (await shop.reserve([("tea", 2)], ttl_ms=1_000)).reservation
    await shop.reserve([("tea", 3)], ttl_ms=HOUR_MS)
    await shop.set_clock((abandoned.expires_at_ms or 0) + 1)
    with pytest.raises(InsufficientStock) as refused:
        await shop.reserve([("tea", 3)])
    assert refused.value.lines[0].available == 2, "what came back is in the answer"
    await shop.audit()


async def test_many_due_holds_are_taken_back_a_bounded_number_at_a_time(own_shop: Shop) -> None:
    shop = own_shop
    await shop.receive("tea", 30)
    holds = [(await shop.reserve([("tea", 1)], ttl_ms=1_000)).reservation for _ in range(30)]
    await shop.set_clock((holds[-1].expires_at_ms or 0) + 1)
    partition = shop.keys().partition
    first = await shop.inventory.expire_due(partition, limit=20)
    assert (first.expired, first.remaining) == (20, True)
    last = await shop.inventory.expire_due(partition, limit=20)
    assert (last.expired, last.remaining) == (10, False)
    await shop.audit()


async def test_two_sweepers_at_once_expire_each_hold_once(own_shop: Shop) -> None:
    shop = own_shop
    await shop.receive("tea", 50)
    holds = [(await shop.reserve([("tea", 1)], ttl_ms=1_000)).reservation for _ in range(50)]
    await shop.set_clock((holds[-1].expires_at_ms or 0) + 1)
    partition = shop.keys().partition
    other = await Inventory.open(shop.inventory.store.settings)
    try:
        first = await shop.inventory.expire_due(partition)
        second = await other.expire_due(partition)
    finally:
        await other.close()
    assert first.expired + second.expired == 50
    assert (await shop.row("tea")).reserved == 0
    await shop.audit()


async def test_the_partitions_clock_never_goes_back(own_shop: Shop) -> None:
    shop = own_shop
    ahead_ms = int(time.time() * 1000) + HOUR_MS
    await shop.set_clock(ahead_ms)
    assert (await shop.receive("tea", 5)).at_ms == ahead_ms
    hold = (await shop.reserve([("tea", 1)], ttl_ms=2_000)).reservation
    assert (hold.created_at_ms, hold.expires_at_ms) == (ahead_ms, ahead_ms + 2_000)
    assert (await shop.inventory.expire_due(0)).expired == 0
    assert await shop.clock_ms() == ahead_ms
    await shop.audit()


async def test_after_a_clock_jump_nothing_expires_until_it_is_right_again(
    own_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = own_shop
    await shop.receive("tea", 5)
    hold = (await shop.reserve([("tea", 3)], ttl_ms=1_000)).reservation
    partition = shop.keys().partition
    assert (await shop.inventory.expire_due(partition)).clock_jump_ms == 0
    await shop.set_clock((hold.expires_at_ms or 0) + 1)
    real = time.monotonic
    # To this process it looks as if the store's clock had jumped 25 hours ahead.
    monkeypatch.setattr(shop.inventory._expiry._clock, "_monotonic", lambda: real() - 25 * 3_600)
    found = await shop.inventory.expire_due(partition)
    assert found.expired == 0
    assert found.clock_jump_ms == pytest.approx(25 * HOUR_MS, abs=TOLERANCE_MS)
    with pytest.raises(InsufficientStock):
        await shop.reserve([("tea", 5)])
    monkeypatch.setattr(shop.inventory._expiry._clock, "_monotonic", real)
    assert (await shop.inventory.expire_due(partition)).expired == 1
    await shop.audit()


async def test_a_hold_lives_seven_days_at_most(own_shop: Shop) -> None:
    shop = own_shop
    await shop.receive("tea", 5)
    hold = (await shop.reserve([("tea", 3)])).reservation
    await shop.set_clock(hold.created_at_ms + 6 * DAY_MS + 1)
    with pytest.raises(LimitExceeded) as refused:
        await extend(shop, hold.id, DAY_MS)
    assert (refused.value.field, refused.value.most) == ("ttl_seconds", DAY_MS - 1)
    result = await extend(shop, hold.id, DAY_MS - 1, "just so")
    assert result.reservation.expires_at_ms == hold.created_at_ms + 7 * DAY_MS
    await shop.audit()


ENDINGS = ("commit", "release", "expire")
VERBS = ("confirm", "extend", "commit", "release")


async def run(shop: Shop, verb: str, hold: Reservation) -> object:
    """Run a verb on a hold; "expire" moves the clock past its end."""
    if verb == "extend":
        return await extend(shop, hold.id, 60_000)
    if verb == "expire":
        assert hold.expires_at_ms is not None
        await shop.set_clock(max(await shop.clock_ms(), hold.expires_at_ms))
        return await shop.inventory.expire_due(shop.keys().partition)
    return await getattr(shop.inventory, verb)(shop.merchant, hold.id, actor=ACTOR)


@pytest.mark.parametrize(
    ("ending", "verb"), [pair for pair in product(ENDINGS, VERBS) if pair[0] != pair[1]]
)
async def test_after_one_ending_every_other_verb_names_it(
    own_shop: Shop, ending: str, verb: str
) -> None:
    shop = own_shop
    await shop.receive("tea", 5)
    hold = (await shop.reserve([("tea", 2)])).reservation
    await run(shop, ending, hold)
    before = await shop.row("tea")
    ended = await shop.inventory.reservation(shop.merchant, hold.id)
    with pytest.raises(ReservationEnded) as refused:
        await run(shop, verb, hold)
    assert (
        refused.value.state
        == ended.state
        == {
            "commit": "committed",
            "release": "released",
            "expire": "expired",
        }[ending]
    )
    assert refused.value.ended_at_ms == ended.ended_at_ms
    assert await shop.row("tea") == before
    await shop.audit()
