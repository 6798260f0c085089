"""Rows on terms: pools of channels, and caps of buyers."""

import asyncio
from itertools import product
from typing import Any

import pytest

from engine.limits import MAX_FILLED
from engine.model import BuyerCap, Line, MovementType, Pool, Reservation, Terms
from engine.outcomes import BuyerCapExceeded, InsufficientStock, InvalidCommand, ShortLine
from tests.shop import LOCATION, Shop

HOUR_MS = 3_600_000


async def held(shop: Shop, sku: str) -> dict[str, int]:
    """Return what the pools of a row hold."""
    terms = (await shop.row(sku)).terms
    return {} if terms is None else {name: pool.held for name, pool in terms.channels.items()}


async def buy(shop: Shop, quantity: int, **options: Any) -> Reservation:
    """Hold units of the one SKU of these tests."""
    return (await shop.reserve([("tea", quantity)], **options)).reservation


async def refused(shop: Shop, quantity: int, **options: Any) -> ShortLine:
    """Return the line that a reserve was refused for."""
    try:
        await buy(shop, quantity, **options)
    except (InsufficientStock, BuyerCapExceeded) as refusal:
        (line,) = refusal.lines
        return line
    raise AssertionError("it was not refused")


async def now(shop: Shop, reservation: Reservation) -> Reservation:
    """Return what has become of a reservation."""
    return await shop.inventory.reservation(shop.merchant, reservation.id)


# Pools


async def test_a_channel_gets_its_cap_and_leaves_the_others_their_minimum(shop: Shop) -> None:
    await shop.receive("tea", 10)
    pools = {"partner:x": Pool(cap=4), "store": Pool(minimum=3), "online": Pool(minimum=1)}
    await shop.set_terms("tea", Terms(channels=pools))
    assert await refused(shop, 5, channel="partner:x") == ShortLine("tea", 5, 4, True, "channel")
    await buy(shop, 4, channel="partner:x")
    # 6 are left, of which the store has 3 and online, which asks, 1 of its own: 6 - 3.
    assert await refused(shop, 4) == ShortLine("tea", 4, 3, True, "channel")
    mine = await buy(shop, 3)
    assert mine.channel == "online"
    # What nobody has a pool for is refused what is guaranteed.
    assert await refused(shop, 1, channel="kiosk") == ShortLine("tea", 1, 0, True, "channel")
    await buy(shop, 3, channel="store")
    row = await shop.row("tea")
    assert (row.on_hand, row.reserved, row.available) == (10, 10, 0), "all of the shelf, once"
    assert await held(shop, "tea") == {"partner:x": 4, "store": 3, "online": 3}
    await shop.commit(mine.id)
    assert (await held(shop, "tea"))["online"] == 0, "a pool is a share of the shelf"
    await shop.audit()


async def test_no_unit_is_in_two_pools(shop: Shop) -> None:
    """One source in two pools sells twice: here both together get what is there, once."""
    await shop.receive("tea", 10)
    pools = {"a": Pool(cap=10), "b": Pool(cap=10)}
    await shop.set_terms("tea", Terms(channels=pools))
    answers = await asyncio.gather(
        *(buy(shop, 1, channel=channel) for channel in "ab" for _ in range(10)),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, Reservation) for answer in answers) == 10
    assert sum((await held(shop, "tea")).values()) == 10
    await shop.audit()


async def test_a_till_sells_what_is_there_whatever_the_pools_say(shop: Shop) -> None:
    await shop.receive("tea", 5)
    await shop.set_terms("tea", Terms(channels={"store": Pool(cap=1), "online": Pool(minimum=4)}))
    await shop.move(MovementType.SALE, "tea", 5)
    assert (await shop.row("tea")).on_hand == 0
    assert (await refused(shop, 1)).limited_by == "stock"
    await shop.audit()


async def test_a_minimum_stays_for_its_channel_while_another_waits(shop: Shop) -> None:
    await shop.receive("tea", 2)
    await shop.set_terms("tea", Terms(backorder_limit=200, channels={"store": Pool(minimum=2)}))
    many = [await buy(shop, 1) for _ in range(MAX_FILLED + 1)]
    assert all(one.backordered == (Line("tea", 1),) for one in many)
    await shop.inventory.fill(shop.merchant, LOCATION, "tea")
    mine = await buy(shop, 2, channel="store")
    assert not mine.backordered
    last = await buy(shop, 1, channel="store")
    assert last.backordered
    await shop.release(mine.id)
    # One is the store's still. Who waits in its pool gets it, behind more others than a fill reads.
    await shop.inventory.fill(shop.merchant, LOCATION, "tea")
    assert not (await now(shop, last)).backordered
    row = await shop.row("tea")
    assert (row.on_hand, row.reserved, row.backordered) == (2, 2, len(many) - 1)
    await shop.receive("tea", 3)
    waiting = [bool((await now(shop, one)).backordered) for one in many[:4]]
    assert waiting == [False, False, False, True]
    await shop.audit()


async def test_a_promise_by_a_day_goes_before_a_minimum(shop: Shop) -> None:
    await shop.set_terms("tea", Terms(channels={"store": Pool(minimum=2)}))
    await shop.expect("tea", "po-1", "2027-01-05", 3)
    mine = await buy(shop, 3, by="2027-01-05")
    await shop.arrive("tea", "po-1", 3)
    assert not (await now(shop, mine)).backordered
    await shop.audit()


async def test_pools_that_end_let_go_of_what_they_hold(shop: Shop) -> None:
    await shop.receive("tea", 5)
    await shop.set_terms("tea", Terms(channels={"online": Pool(cap=3)}))
    first, second = await buy(shop, 1), await buy(shop, 2)
    await shop.set_terms("tea", Terms())
    assert await held(shop, "tea") == {"online": 3}
    await shop.release(first.id)
    await shop.set_terms("tea", Terms(channels={"online": Pool(cap=3)}))
    assert (await refused(shop, 2)).available == 1, "what was held before counts again"
    await shop.set_terms("tea", Terms())
    await shop.release(second.id)
    assert (await shop.row("tea")).terms is None
    await shop.audit()


async def test_room_is_as_the_rule_says_in_every_small_case(shop: Shop) -> None:
    """All shelves, caps and minimums up to 3, and who came before, against the rule in words."""
    names = ("a", "b")
    cases = product((0, 1, 3), (None, 1, 2), (0, 2), (0, 1), ((), ("a",), ("b",), ("a", "b")))
    for number, (shelf, cap, minimum_a, minimum_b, before) in enumerate(cases):
        if cap is not None and minimum_a > cap:
            continue
        sku = f"case {number}"
        if shelf:
            await shop.receive(sku, shelf)
        pools = {"a": Pool(cap=cap, minimum=minimum_a), "b": Pool(cap=3, minimum=minimum_b)}
        if cap is None and not minimum_a:
            del pools["a"]
        await shop.set_terms(sku, Terms(channels=pools))
        holds = dict.fromkeys(names, 0)
        for channel in before:
            try:
                await shop.reserve([(sku, 1)], channel=channel)
            except InsufficientStock:
                continue
            holds[channel] += 1
        free = shelf - sum(holds.values())
        minimums = {"a": minimum_a, "b": minimum_b}
        unmet = {name: max(0, minimums[name] - holds[name]) for name in names}
        for channel, other in (names, names[::-1]):
            room = max(0, free - unmet[other], min(unmet[channel], free))
            if channel == "b":
                room = min(room, 3 - holds["b"])
            elif cap is not None:
                room = min(room, max(0, cap - holds["a"]))
            with pytest.raises(InsufficientStock) as refusal:
                await shop.reserve([(sku, 9)], channel=channel)
            assert refusal.value.lines[0].available == room, (shelf, pools, before, channel)
    await shop.audit()


# Caps


async def test_a_buyer_gets_no_more_than_the_cap(shop: Shop) -> None:
    await shop.receive("tea", 50)
    await shop.receive("milk", 50)
    await shop.set_terms("tea", Terms(buyer_cap=BuyerCap(3, HOUR_MS)))
    first = await buy(shop, 2, buyer="ann")
    assert first.buyer
    assert "ann" not in first.buyer, "a digest is kept, not the name"
    with pytest.raises(BuyerCapExceeded) as refusal:
        await shop.reserve([("milk", 1), ("tea", 2)], buyer="ann")
    assert refusal.value.lines == (ShortLine("tea", 2, 1, True, "buyer"),)
    part = (await shop.reserve([("milk", 1), ("tea", 2)], buyer="ann", partial=True)).reservation
    assert part.lines == (Line("milk", 1), Line("tea", 1))
    await buy(shop, 3, buyer="bob")
    await shop.release(first.id)
    again = await buy(shop, 2, buyer="ann")
    await shop.commit(again.id, [("tea", 1)])
    await shop.release(part.id)
    assert (await refused(shop, 3, buyer="ann")).available == 2, "one that was picked counts on"
    await shop.set_clock(await shop.clock_ms() + HOUR_MS)
    await buy(shop, 3, buyer="ann")
    await shop.audit()


async def test_two_hundred_carts_of_a_buyer_at_once_pass_no_cap(shop: Shop) -> None:
    await shop.receive("tea", 500)
    await shop.set_terms("tea", Terms(buyer_cap=BuyerCap(5, HOUR_MS)))
    answers = await asyncio.gather(
        *(buy(shop, 1 + n % 2, buyer="ann") for n in range(200)), return_exceptions=True
    )
    got = sum(a.lines[0].quantity for a in answers if isinstance(a, Reservation))
    assert got == 5
    assert all(isinstance(a, Reservation | BuyerCapExceeded) for a in answers)
    await shop.audit()


async def test_a_row_with_a_cap_must_know_who_buys(shop: Shop) -> None:
    await shop.receive("tea", 5)
    await shop.set_terms("tea", Terms(buyer_cap=BuyerCap(1, HOUR_MS)))
    with pytest.raises(InvalidCommand) as refusal:
        await buy(shop, 1)
    assert refusal.value.field == "buyer"
    await shop.audit()


async def test_what_counts_for_a_buyer_goes_by_itself(shop: Shop) -> None:
    await shop.receive("tea", 5)
    await shop.set_terms("tea", Terms(buyer_cap=BuyerCap(2, HOUR_MS)))
    one = await buy(shop, 1, buyer="ann")
    key = shop.keys().buyer(shop.merchant, one.location, "tea", one.buyer)
    assert await shop.client.execute_command("PTTL", key) == -1, "as long as it is promised"
    await shop.commit(one.id)
    assert 0 < await shop.client.execute_command("PTTL", key) <= HOUR_MS
    other = await buy(shop, 1, buyer="bob")
    await shop.release(other.id)
    left = shop.keys().buyer(shop.merchant, other.location, "tea", other.buyer)
    assert await shop.client.execute_command("EXISTS", left) == 0
    await shop.audit()


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        (Terms(channels={"": Pool(cap=1)}), "channels"),
        (Terms(channels={"x" * 129: Pool(cap=1)}), "channels"),
        (Terms(channels={"a": Pool()}), "channels.a"),
        (Terms(channels={"a": Pool(cap=1, minimum=2)}), "channels.a.minimum"),
        (Terms(channels={str(n): Pool(cap=1) for n in range(51)}), "channels"),
        (Terms(buyer_cap=BuyerCap(0, HOUR_MS)), "buyer_cap.units"),
        (Terms(buyer_cap=BuyerCap(1_001, HOUR_MS)), "buyer_cap.units"),
        (Terms(buyer_cap=BuyerCap(1, 999)), "buyer_cap.window_seconds"),
    ],
)
async def test_terms_that_are_not_of_their_form_are_named(
    shop: Shop, terms: Terms, field: str
) -> None:
    with pytest.raises(InvalidCommand) as refusal:
        await shop.set_terms("tea", terms)
    assert refusal.value.field == field


async def test_names_of_channels_and_buyers_may_hold_anything(shop: Shop) -> None:
    name = "парт{нёр}:\r\n x"
    await shop.receive("tea", 5)
    await shop.set_terms("tea", Terms(channels={name: Pool(cap=2)}, buyer_cap=BuyerCap(2, HOUR_MS)))
    one = await buy(shop, 2, channel=name, buyer=name)
    assert one == await shop.inventory.reservation(shop.merchant, one.id)
    assert one.channel == name
    await shop.audit()
