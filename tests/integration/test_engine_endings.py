"""Confirm, extend, commit and release: each state's answers, and one ending only."""

import asyncio

import pytest

from engine.model import Line, MovementType, Reservation, ReservationResult, ReservationState
from engine.outcomes import (
    HoldfastError,
    IdempotencyKeyReused,
    InsufficientOnHand,
    InvalidCommand,
    ReservationEnded,
    ReservationNotHeld,
    ShortLine,
)
from tests.shop import ACTOR, LOCATION, Shop

DAY_MS = 24 * 3_600_000


async def held(shop: Shop, quantity: int = 2, *, order_ref: str = "") -> Reservation:
    """Receive five units of tea and hold some."""
    await shop.receive("tea", 5)
    result = await shop.reserve([("tea", quantity)], order_ref=order_ref)
    return result.reservation


async def confirm(shop: Shop, the_id: str, order_ref: str = "") -> ReservationResult:
    return await shop.inventory.confirm(shop.merchant, the_id, order_ref=order_ref, actor=ACTOR)


async def extend(shop: Shop, the_id: str, ttl_ms: int, key: str = "k") -> ReservationResult:
    return await shop.inventory.extend(shop.merchant, the_id, key=key, ttl_ms=ttl_ms, actor=ACTOR)


async def test_a_confirmed_reservation_has_no_ttl(shop: Shop) -> None:
    hold = await held(shop)
    result = await confirm(shop, hold.id, "order 7")
    assert not result.replayed
    now = result.reservation
    assert (now.state, now.expires_at_ms) == (ReservationState.CONFIRMED, None)
    assert now.order_ref == "order 7"
    assert now.confirmed_at_ms is not None
    assert now.confirmed_at_ms >= hold.created_at_ms
    assert (await shop.row("tea")).reserved == 2
    assert await shop.inventory.reservation(shop.merchant, hold.id) == now
    await shop.audit()


@pytest.mark.parametrize("at_reserve", ["", "order 7"])
@pytest.mark.parametrize("at_confirm", ["", "order 7"])
@pytest.mark.parametrize("at_retry", ["", "order 7"])
async def test_a_second_confirm_for_the_same_order_is_a_replay(
    shop: Shop, at_reserve: str, at_confirm: str, at_retry: str
) -> None:
    hold = await held(shop, order_ref=at_reserve)
    first = await confirm(shop, hold.id, at_confirm)
    assert first.reservation.order_ref == (at_confirm or at_reserve)
    if at_retry and at_retry != first.reservation.order_ref:
        with pytest.raises(IdempotencyKeyReused):
            await confirm(shop, hold.id, at_retry)
    else:
        assert await confirm(shop, hold.id, at_retry) == ReservationResult(
            first.reservation, replayed=True
        )


async def test_confirming_for_another_order_is_refused(shop: Shop) -> None:
    hold = await held(shop)
    await confirm(shop, hold.id, "order 7")
    with pytest.raises(IdempotencyKeyReused):
        await confirm(shop, hold.id, "order 8")
    assert (await shop.inventory.reservation(shop.merchant, hold.id)).order_ref == "order 7"


async def test_extend_counts_from_now_and_never_shortens(shop: Shop) -> None:
    hold = await held(shop)
    assert hold.expires_at_ms is not None
    shorter = await extend(shop, hold.id, 1_000, "shorter")
    assert shorter.reservation.expires_at_ms == hold.expires_at_ms
    longer = await extend(shop, hold.id, DAY_MS, "longer")
    assert longer.reservation.expires_at_ms is not None
    assert longer.reservation.expires_at_ms >= hold.created_at_ms + DAY_MS
    again = await extend(shop, hold.id, DAY_MS, "longer")
    assert again == ReservationResult(longer.reservation, replayed=True)
    with pytest.raises(IdempotencyKeyReused):
        await extend(shop, hold.id, DAY_MS - 1, "longer")
    await shop.audit()


async def test_a_retried_extend_is_answered_as_first_whatever_came_since(shop: Shop) -> None:
    hold = await held(shop)
    first = await extend(shop, hold.id, DAY_MS)
    await shop.release(hold.id)
    again = await extend(shop, hold.id, DAY_MS)
    assert again == ReservationResult(first.reservation, replayed=True)


async def test_a_confirmed_reservation_has_nothing_to_extend(shop: Shop) -> None:
    hold = await held(shop)
    await confirm(shop, hold.id)
    with pytest.raises(ReservationNotHeld) as refused:
        await extend(shop, hold.id, 60_000)
    assert refused.value.state == "confirmed"


@pytest.mark.parametrize("confirmed", [False, True])
async def test_a_commit_takes_the_units(shop: Shop, confirmed: bool) -> None:
    hold = await held(shop)
    if confirmed:
        await confirm(shop, hold.id)
    result = await shop.commit(hold.id)
    assert not result.replayed
    assert result.reservation.state is ReservationState.COMMITTED
    assert result.reservation.picked == (Line("tea", 2),)
    row = await shop.row("tea")
    assert (row.on_hand, row.reserved) == (3, 0)
    assert await shop.commit(hold.id) == ReservationResult(result.reservation, replayed=True)
    assert (await shop.row("tea")).version == row.version
    await shop.audit()


async def test_a_short_pick_gives_the_rest_back(shop: Shop) -> None:
    await shop.receive("tea", 5)
    await shop.receive("milk", 5)
    hold = (await shop.reserve([("tea", 3), ("milk", 2)])).reservation
    result = await shop.commit(hold.id, [("tea", 1)])
    assert result.reservation.picked == (Line("tea", 1), Line("milk", 0))
    tea, milk = await shop.row("tea"), await shop.row("milk")
    assert (tea.on_hand, tea.reserved, milk.on_hand, milk.reserved) == (4, 0, 5, 0)
    same = ReservationResult(result.reservation, replayed=True)
    assert await shop.commit(hold.id, [("tea", 1)]) == same
    assert await shop.commit(hold.id, [("milk", 0), ("tea", 1)]) == same
    assert await shop.commit(hold.id) == same
    with pytest.raises(ReservationEnded) as refused:
        await shop.commit(hold.id, [("tea", 2)])
    assert refused.value.state == "committed"
    await shop.audit()


@pytest.mark.parametrize(
    "picks",
    [
        [("tea", 3)],
        [("tea", -1)],
        [("tea", 1.5)],
        [("tea", 2**70)],
        [("milk", 0)],
        [("tea", 1), ("tea", 1)],
        [("\ud800", 1)],
        [("tea", True)],
    ],
)
async def test_a_pick_is_of_what_is_held(shop: Shop, picks: list[tuple[str, int]]) -> None:
    hold = await held(shop)
    with pytest.raises(InvalidCommand) as refused:
        await shop.commit(hold.id, picks)
    assert refused.value.field.startswith("lines")
    found = await shop.inventory.reservation(shop.merchant, hold.id)
    assert found.state is ReservationState.HELD
    await shop.audit()


async def test_a_commit_past_what_is_on_hand_is_refused_whole(shop: Shop) -> None:
    await shop.receive("tea", 5)
    await shop.receive("milk", 5)
    hold = (await shop.reserve([("tea", 2), ("milk", 4)])).reservation
    await shop.move(MovementType.COUNT, "milk", 1)
    with pytest.raises(InsufficientOnHand) as refused:
        await shop.commit(hold.id)
    assert refused.value.lines == (ShortLine("milk", 4, 1),)
    assert (await shop.row("tea")).on_hand == 5
    found = await shop.inventory.reservation(shop.merchant, hold.id)
    assert found.state is ReservationState.HELD
    await shop.commit(hold.id, [("tea", 2), ("milk", 1)])
    await shop.audit()


async def test_a_release_gives_everything_back_once(shop: Shop) -> None:
    hold = await held(shop)
    result = await shop.release(hold.id)
    assert result.reservation.state is ReservationState.RELEASED
    assert result.reservation.ended_at_ms is not None
    assert (await shop.row("tea")).available == 5
    assert await shop.release(hold.id) == ReservationResult(result.reservation, replayed=True)
    assert (await shop.row("tea")).available == 5
    await shop.audit()


async def test_among_racing_endings_one_wins(shop: Shop) -> None:
    await shop.receive("tea", 100)
    holds = [(await shop.reserve([("tea", 1)])).reservation for _ in range(100)]

    async def race(verb: str, hold: Reservation) -> str:
        try:
            await getattr(shop.inventory, verb)(shop.merchant, hold.id, actor=ACTOR)
        except ReservationEnded:
            return "lost"
        return verb

    outcomes = await asyncio.gather(
        *(race(verb, hold) for hold in holds for verb in ("commit", "release"))
    )
    for commit, release in zip(outcomes[::2], outcomes[1::2], strict=True):
        assert {commit, release} in ({"commit", "lost"}, {"release", "lost"})
    row = await shop.row("tea")
    assert (row.on_hand, row.reserved) == (100 - outcomes.count("commit"), 0)
    await shop.audit()


async def test_open_reservations_are_listed_oldest_first(shop: Shop) -> None:
    await shop.receive("tea", 9)
    made = [(await shop.reserve([("tea", 1)])).reservation for _ in range(5)]
    await shop.release(made[1].id)
    await confirm(shop, made[2].id)
    found: list[Reservation] = []
    after: str | None = None
    for _ in range(5):
        page = await shop.inventory.open_reservations(shop.merchant, LOCATION, after=after, limit=2)
        found += page.items
        after = page.next_after
        if after is None:
            break
    wanted = {made[0].id, made[2].id, made[3].id, made[4].id}
    assert {reservation.id for reservation in found} == wanted
    assert len(found) == len(wanted)
    assert [r.created_at_ms for r in found] == sorted(r.created_at_ms for r in found)


async def test_a_refusal_carries_its_fields(shop: Shop) -> None:
    hold = await held(shop)
    await shop.release(hold.id)
    with pytest.raises(HoldfastError) as refused:
        await shop.commit(hold.id)
    assert refused.value.code == "reservation_ended"
    assert refused.value.fields()["state"] == "released"


async def test_a_retry_is_answered_as_first_also_after_an_amendment(shop: Shop) -> None:
    await shop.receive("tea", 5)
    cart = await shop.reserve([("tea", 2)], key="cart")
    hold = cart.reservation
    first = await extend(shop, hold.id, DAY_MS)
    await shop.inventory.amend(shop.merchant, hold.id, [Line("tea", 5)], key="k", actor=ACTOR)
    assert await extend(shop, hold.id, DAY_MS) == ReservationResult(
        first.reservation, replayed=True
    )
    assert await shop.reserve([("tea", 2)], key="cart") == ReservationResult(hold, replayed=True)
