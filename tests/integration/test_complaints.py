"""What users of other inventory systems complain of, each as a test that it does not happen here.

The numbers count the complaints: oversubscription, split lines, resurrected holds and so on.
"""

import asyncio

import pytest

from engine.inventory import Inventory
from engine.model import Line, MovementType, ReservationResult, ReservationState
from engine.outcomes import (
    IdempotencyKeyReused,
    InsufficientOnHand,
    InsufficientStock,
    InvalidCommand,
    ReservationEnded,
    ShortLine,
)
from tests.events import Till
from tests.shop import ACTOR, Shop, new_key


async def test_complaint_01_concurrent_reservations_do_not_oversubscribe(shop: Shop) -> None:
    """Two hundred shoppers through two engines want fifty units, one or two each."""
    await shop.receive("tea", 50)
    other = Shop(await Inventory.open(shop.inventory.store.settings), shop.client, shop.merchant)
    try:
        answers = await asyncio.gather(
            *((shop, other)[i % 2].reserve([("tea", 1 + i % 2)]) for i in range(200)),
            return_exceptions=True,
        )
    finally:
        await other.inventory.close()
    held = [a.reservation for a in answers if isinstance(a, ReservationResult)]
    refused = [a for a in answers if isinstance(a, InsufficientStock)]
    assert len(held) + len(refused) == 200
    assert sum(hold.lines[0].quantity for hold in held) == 50
    row = await shop.row("tea")
    assert (row.on_hand, row.reserved, row.available) == (50, 50, 0)
    await shop.audit()


async def test_complaint_01_the_counter_does_not_drift_under_mixed_traffic(shop: Shop) -> None:
    """Fifty shoppers reserve, and commit, release or retry; the sum is exact in the end."""
    await shop.receive("tea", 100)

    async def shopper(number: int) -> int:
        hold = (await shop.reserve([("tea", 2)], key=f"k{number}")).reservation
        await shop.reserve([("tea", 2)], key=f"k{number}")
        if number % 3 == 0:
            await shop.commit(hold.id, [("tea", 1)])
            return 1
        if number % 3 == 1:
            await shop.commit(hold.id)
            return 2
        await shop.release(hold.id)
        return 0

    taken = sum(await asyncio.gather(*(shopper(number) for number in range(50))))
    row = await shop.row("tea")
    assert (row.on_hand, row.reserved) == (100 - taken, 0)
    await shop.audit()


@pytest.mark.parametrize("partial", [False, True])
async def test_complaint_02_two_lines_of_one_sku(shop: Shop, partial: bool) -> None:
    """Neither line alone is too much, together they are."""
    await shop.receive("tea", 5)
    lines = [("tea", 3), ("tea", 3)]
    if partial:
        result = await shop.reserve(lines, partial=True)
        assert result.reservation.lines == (Line("tea", 5),)
        assert result.reservation.missing == (Line("tea", 1),)
    else:
        with pytest.raises(InsufficientStock) as refused:
            await shop.reserve(lines)
        assert refused.value.lines == (ShortLine("tea", 6, 5),)
        assert (await shop.row("tea")).reserved == 0
    await shop.audit()


@pytest.mark.parametrize("compensation", ["release", "confirm", "reserve again"])
async def test_complaint_05_a_compensation_does_not_bring_consumed_holds_back(
    shop: Shop, compensation: str
) -> None:
    """The order was fulfilled, a later step failed, and the shop undoes what it thinks it did."""
    await shop.receive("tea", 5)
    hold = (await shop.reserve([("tea", 3)], key="cart")).reservation
    await shop.commit(hold.id)
    if compensation == "reserve again":
        assert (await shop.reserve([("tea", 3)], key="cart")).replayed
    else:
        for _ in range(2):
            with pytest.raises(ReservationEnded) as refused:
                await getattr(shop.inventory, compensation)(shop.merchant, hold.id, actor=ACTOR)
            assert refused.value.state == "committed"
    row = await shop.row("tea")
    assert (row.on_hand, row.reserved, row.available) == (2, 0, 2)
    found = await shop.inventory.reservation(shop.merchant, hold.id)
    assert found.state is ReservationState.COMMITTED
    await shop.audit()


async def test_complaint_06_no_hold_is_left_after_fulfilment(shop: Shop) -> None:
    """Whole or short, what was fulfilled holds nothing any more."""
    await shop.receive("tea", 9)
    for picks in ([], [("tea", 1)], [("tea", 0)]):
        hold = (await shop.reserve([("tea", 3)])).reservation
        await shop.commit(hold.id, picks)
    row = await shop.row("tea")
    assert (row.on_hand, row.reserved) == (5, 0)
    assert (await shop.inventory.open_reservations(shop.merchant, "high street")).items == ()
    await shop.audit()


async def test_complaint_06_a_fulfilment_that_fails_keeps_its_hold(shop: Shop) -> None:
    """The shelf has fewer than were held: the commit is refused and the promise stands."""
    await shop.receive("tea", 5)
    hold = (await shop.reserve([("tea", 4)])).reservation
    await shop.inventory.confirm(shop.merchant, hold.id, actor=ACTOR)
    await shop.move(MovementType.COUNT, "tea", 2)
    with pytest.raises(InsufficientOnHand):
        await shop.commit(hold.id)
    found = await shop.inventory.reservation(shop.merchant, hold.id)
    assert found.state is ReservationState.CONFIRMED
    assert (await shop.row("tea")).reserved == 4
    await shop.receive("tea", 2)
    await shop.commit(hold.id)
    row = await shop.row("tea")
    assert (row.on_hand, row.reserved) == (0, 0)
    await shop.audit()


async def test_complaint_13_a_shopper_is_not_blocked_by_their_own_hold(shop: Shop) -> None:
    """The last units are in the shopper's own cart, and the shopper sends the cart again."""
    await shop.receive("tea", 2)
    first = await shop.reserve([("tea", 2)], key="cart of Ada")
    for _ in range(3):
        again = await shop.reserve([("tea", 2)], key="cart of Ada")
        assert again == ReservationResult(first.reservation, replayed=True)
    with pytest.raises(InsufficientStock):
        await shop.reserve([("tea", 2)], key="cart of Bob")
    with pytest.raises(IdempotencyKeyReused):
        await shop.reserve([("tea", 1)], key="cart of Ada")
    await shop.release(first.reservation.id)
    await shop.reserve([("tea", 1)], key="second cart of Ada")
    await shop.audit()


@pytest.mark.parametrize("state", ["held", "confirmed"])
async def test_complaint_13_a_shopper_changes_the_quantity_of_their_own_hold(
    shop: Shop, state: str
) -> None:
    """Who holds four of five may make it five, but not six; and gets the first answer again."""
    await shop.receive("tea", 5)
    await shop.receive("milk", 1)
    hold = (await shop.reserve([("tea", 4), ("milk", 1)])).reservation
    if state == "confirmed":
        await shop.inventory.confirm(shop.merchant, hold.id, actor=ACTOR)
    with pytest.raises(InsufficientStock) as refused:
        await amend(shop, hold.id, ("tea", 6), ("milk", 0))
    assert refused.value.lines == (ShortLine("tea", 6, 5),)
    assert (await shop.row("tea")).available == 1, "it keeps what it had"
    amended = await amend(shop, hold.id, ("tea", 5), ("milk", 0), key="up")
    assert amended.reservation.lines == (Line("tea", 5),)
    assert (amended.reservation.state, amended.reservation.expires_at_ms) == (
        ReservationState(state),
        hold.expires_at_ms if state == "held" else None,
    )
    assert ((await shop.row("tea")).available, (await shop.row("milk")).available) == (0, 1)
    with pytest.raises(InvalidCommand) as nothing:
        await amend(shop, hold.id, ("tea", 0))
    assert nothing.value.field == "lines"
    await amend(shop, hold.id, ("tea", 1))
    again = await amend(shop, hold.id, ("tea", 5), ("milk", 0), key="up")
    assert (again.reservation, again.replayed) == (amended.reservation, True)
    await shop.commit(hold.id)
    assert (await shop.row("tea")).on_hand == 4
    with pytest.raises(ReservationEnded):
        await amend(shop, hold.id, ("tea", 2))
    await shop.audit()


async def amend(
    shop: Shop, the_id: str, *lines: tuple[str, int], key: str = ""
) -> ReservationResult:
    return await shop.inventory.amend(
        shop.merchant, the_id, [Line(*line) for line in lines], key=key or new_key(), actor=ACTOR
    )


async def test_complaint_15_a_recount_is_taken_while_units_are_reserved(shop: Shop) -> None:
    """What was counted is what is there, even if more was promised."""
    await shop.receive("tea", 5)
    await shop.reserve([("tea", 4)])
    counted = await shop.move(MovementType.COUNT, "tea", 3)
    assert (counted.row.on_hand, counted.row.reserved, counted.row.shortfall) == (3, 4, 1)
    await shop.audit()


async def test_complaint_15_an_offline_sale_is_not_posted_twice(shop: Shop) -> None:
    """A till sends its backlog again after a lost answer, in another order, and under way twice."""
    till = Till(shop)
    await shop.receive("tea", 20)
    backlog = [await till.event("sale", 1, sequence=number, ago=60) for number in range(1, 11)]
    first, second = await asyncio.gather(till.send(*backlog), till.send(*reversed(backlog)))
    assert sorted(first + second) == ["applied"] * 10 + ["duplicate"] * 10
    assert await till.send(*backlog[5:], *backlog[:5]) == ["duplicate"] * 10
    assert (await shop.row("tea")).on_hand == 10
    await shop.audit()


@pytest.mark.parametrize("ending", ["release", "short pick", "expire"])
async def test_complaint_16_a_hold_ends_after_the_shelf_fell_below_it(
    own_shop: Shop, ending: str
) -> None:
    """Tills sold what the hold was for: cancelling and picking short still work."""
    shop = own_shop
    await shop.receive("tea", 5)
    hold = (await shop.reserve([("tea", 4)], ttl_ms=1_000)).reservation
    sold = await shop.move(MovementType.SALE, "tea", 4)
    assert (sold.row.on_hand, sold.row.reserved, sold.row.shortfall) == (1, 4, 3)
    if ending == "release":
        await shop.release(hold.id)
    elif ending == "short pick":
        with pytest.raises(InsufficientOnHand) as refused:
            await shop.commit(hold.id)
        assert refused.value.lines == (ShortLine("tea", 4, 1),)
        await shop.commit(hold.id, [("tea", 1)])
    else:
        await shop.set_clock(hold.expires_at_ms or 0)
        assert (await shop.inventory.expire_due(0)).expired == 1
    row = await shop.row("tea")
    assert (row.on_hand, row.reserved) == (0 if ending == "short pick" else 1, 0)
    assert row.shortfall == 0
    await shop.audit()
