"""Caps of buyers over all locations of a merchant: claims, and what becomes of them."""

import asyncio
from typing import Any

import msgspec
import pytest

from engine.claims import Claim
from engine.keys import claim_partition, digest_of_buyer
from engine.kits import Kit
from engine.model import BuyerCap, CapScope, Line, MovementType, Reservation, Terms
from engine.order_records import WantedLine
from engine.orders import Orders
from engine.outcomes import (
    BuyerCapExceeded,
    IdempotencyKeyReused,
    InsufficientStock,
    InvalidCommand,
    LimitExceeded,
    StoreUnavailable,
)
from engine.relocation import Relocation
from tests.claims import HOUR_MS, PLACES, buy, claims_of, left, promised, stock
from tests.shop import ACTOR, Shop, new_key


async def test_a_buyer_gets_the_cap_once_over_all_locations(shop: Shop) -> None:
    await stock(shop, "shoe")
    first = await buy(shop, 1, "leeds")
    await buy(shop, 1, "york")
    for place in PLACES:
        with pytest.raises(BuyerCapExceeded) as refused:
            await buy(shop, 1, place)
        (line,) = refused.value.lines
        assert (line.requested, line.available, line.limited_by) == (1, 0, "buyer")
    await buy(shop, 2, "hull", buyer="bob")
    await shop.release(first.id)
    assert await left(shop) == 1, "it is given back at once"
    again = await buy(shop, 1, "ripon")
    await shop.commit(again.id)
    with pytest.raises(BuyerCapExceeded):
        await buy(shop, 1, "leeds")
    await shop.audit()


async def test_two_hundred_carts_over_five_locations_pass_no_cap(shop: Shop) -> None:
    await stock(shop, "shoe", "sock", quantity=200)
    lines = [("shoe", 1), ("sock", 1)]
    answers = await asyncio.gather(
        *(
            shop.reserve(lines, location=PLACES[n % len(PLACES)], buyer="ann", key=f"cart {n}")
            for n in range(200)
        ),
        return_exceptions=True,
    )
    held = [one for one in answers if not isinstance(one, BaseException)]
    assert len(held) == 2
    assert all(isinstance(one, BuyerCapExceeded) for one in answers if one not in held)
    assert await promised(shop) == 2
    await shop.audit()


async def test_what_is_not_held_is_given_back_at_once(shop: Shop) -> None:
    await stock(shop, "shoe", quantity=1, cap=BuyerCap(5, HOUR_MS, CapScope.MERCHANT))
    with pytest.raises(InsufficientStock):
        await buy(shop, 3, "leeds")
    assert await left(shop, cap=5) == 5
    part = await buy(shop, 3, "leeds", partial=True)
    assert part.lines == (Line("shoe", 1),)
    assert await left(shop, cap=5) == 4
    await shop.receive("shoe", 10, location="york")
    rest = await buy(shop, 9, "york", partial=True)
    assert rest.lines == (Line("shoe", 4),), "what is left of the cap"
    with pytest.raises(InvalidCommand, match="buyer"):
        await shop.reserve([("shoe", 1)], location="york")
    await shop.audit()


async def test_amendments_claim_first_and_give_back_after(shop: Shop) -> None:
    await stock(shop, "shoe")
    one = await buy(shop, 1, "leeds")
    amend = shop.inventory.amend

    async def to(units: int) -> Reservation:
        lines = [Line("shoe", units), Line("sock", 1)]
        made = await amend(shop.merchant, one.id, lines, key=new_key(), actor=ACTOR)
        return made.reservation

    await shop.receive("sock", 5, location="leeds")
    assert (await to(2)).lines[0].quantity == 2
    assert await left(shop) == 0
    with pytest.raises(BuyerCapExceeded):
        await to(3)
    with pytest.raises(BuyerCapExceeded):
        await buy(shop, 1, "york")
    await to(1)
    assert await left(shop) == 1
    await buy(shop, 1, "york")
    with pytest.raises(BuyerCapExceeded):
        await to(2)
    await to(0)
    assert await left(shop) == 1
    await shop.audit()


async def test_a_cap_that_is_set_anew_is_heard_of(shop: Shop) -> None:
    """What a process believes of a cap is only as good as what the row says."""
    await stock(shop, "shoe")
    await buy(shop, 2, "leeds")
    await shop.set_terms(
        "shoe", Terms(buyer_cap=BuyerCap(3, HOUR_MS, CapScope.MERCHANT)), location="york"
    )
    await buy(shop, 1, "york")
    with pytest.raises(BuyerCapExceeded):
        await buy(shop, 1, "leeds")
    await shop.set_terms("shoe", Terms(buyer_cap=BuyerCap(1, HOUR_MS)), location="hull")
    row_cap = await buy(shop, 1, "hull")
    assert not row_cap.claimed, "a cap of a row is the row's"
    await shop.set_terms("shoe", Terms(), location="ripon")
    await buy(shop, 9, "ripon")
    # Nor is anybody refused for what was believed, be it their first attempt.
    await shop.set_terms(
        "shoe", Terms(buyer_cap=BuyerCap(4, HOUR_MS, CapScope.MERCHANT)), location="leeds"
    )
    await buy(shop, 1, "leeds")
    with pytest.raises(BuyerCapExceeded):
        await buy(shop, 1, "leeds")
    await shop.set_terms("shoe", Terms(), location="leeds")
    await buy(shop, 1, "leeds", first_attempt=True)
    await shop.audit()


async def test_a_moved_hold_keeps_its_claim_once(shop: Shop) -> None:
    await stock(shop, "shoe")
    hold = await buy(shop, 2, "leeds")
    for place in ("york", "hull"):
        moved = await Relocation(shop.inventory).relocate(
            shop.merchant, hold.id, place, key=new_key(), actor=ACTOR
        )
        hold = moved.result.reservation
        assert hold.lines == (Line("shoe", 2),)
        assert await left(shop) == 0
        assert await promised(shop) == 2
    await shop.move(MovementType.ADJUST, "shoe", -20, location="ripon")
    with pytest.raises(InsufficientStock):
        await Relocation(shop.inventory).relocate(
            shop.merchant, hold.id, "ripon", key=new_key(), actor=ACTOR
        )
    assert await left(shop) == 0
    await shop.release(hold.id)
    assert await left(shop) == 2
    await shop.audit()


async def test_an_order_is_counted_as_a_whole(shop: Shop) -> None:
    await stock(shop, "shoe", quantity=1)
    orders = Orders(shop.inventory)

    async def place(units: int) -> Any:
        lines = [WantedLine("shoe", units)]
        return await orders.place(shop.merchant, lines, key=new_key(), buyer="ann", actor=ACTOR)

    with pytest.raises(BuyerCapExceeded):
        await place(3)
    assert (await left(shop), await promised(shop)) == (2, 0)
    order = (await place(2)).order
    assert len(order.parts) == 2
    with pytest.raises(BuyerCapExceeded):
        await place(1)
    await shop.receive("shoe", 1, location="selby")
    part = order.parts[0]
    moved = await orders.resource(
        shop.merchant, order.id, part.location, key=new_key(), actor=ACTOR
    )
    assert part.location not in {one.location for one in moved.order.parts if one.state.is_open}
    assert (await left(shop), await promised(shop)) == (0, 2)
    await orders.cancel(shop.merchant, order.id, actor=ACTOR)
    assert (await left(shop), await promised(shop)) == (2, 0)
    await shop.audit()


async def test_kits_and_substitutes_count_as_what_is_held(shop: Shop) -> None:
    await stock(shop, "shoe", "boot")
    await shop.inventory.kits.write(
        shop.merchant, {"pair": Kit(components=(Line("shoe", 1), Line("lace", 2)))}, actor=ACTOR
    )
    await shop.receive("lace", 50, location="leeds")
    kit = await shop.reserve([("pair", 1), ("shoe", 1)], location="leeds", buyer="ann")
    assert {line.sku: line.quantity for line in kit.reservation.lines}["shoe"] == 2
    assert await left(shop) == 0
    with pytest.raises(BuyerCapExceeded):
        await shop.reserve([("pair", 1)], location="leeds", buyer="ann")
    await shop.release(kit.reservation.id)
    assert await left(shop) == 2
    await shop.audit()


async def test_holds_that_take_the_place_of_one_count_together(shop: Shop) -> None:
    """As where one hold is moved to two locations at once: as many units as it has count once."""
    await stock(shop, "shoe")
    hold = await buy(shop, 1, "leeds")
    await buy(shop, 1, "york", instead_of=hold.id)
    assert await left(shop) == 1
    await buy(shop, 1, "hull", instead_of=hold.id)
    assert await left(shop) == 0
    with pytest.raises(BuyerCapExceeded):
        await buy(shop, 1, "ripon", instead_of=hold.id)
    await shop.release(hold.id)
    assert (await left(shop), await promised(shop)) == (0, 2)
    await shop.audit()


async def test_what_somebody_else_holds_counts_for_them_alone(shop: Shop) -> None:
    await stock(shop, "shoe")
    await buy(shop, 2, "leeds", key="cart")
    with pytest.raises(IdempotencyKeyReused):
        await buy(shop, 2, "leeds", key="cart", buyer="bob")
    assert await left(shop, buyer="bob") == 2

    await shop.receive("sock", 5, location="leeds")
    nobodys = (await shop.reserve([("sock", 1)], location="leeds")).reservation

    async def add(buyer: str) -> Any:
        lines = [Line("shoe", 1)]
        return await shop.inventory.amend(
            shop.merchant, nobodys.id, lines, key=new_key(), buyer=buyer, actor=ACTOR
        )

    await asyncio.gather(add("cy"), add("dee"), return_exceptions=True)
    assert await left(shop, buyer="cy") + await left(shop, buyer="dee") == 3
    await shop.audit()


async def test_a_buyer_who_is_named_needs_no_kits_where_nothing_is_claimed(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shop.receive("sock", 5, location="leeds")

    async def away(_merchant: str) -> None:
        raise StoreUnavailable

    monkeypatch.setattr(shop.inventory.kits, "known", away)
    await shop.reserve([("sock", 1)], location="leeds", buyer="ann")


async def test_what_counts_for_one_buyer_is_bounded(shop: Shop) -> None:
    await stock(shop, "shoe")
    hold = await buy(shop, 1, "leeds")
    who = digest_of_buyer(shop.merchant, "ann")
    keys = shop.inventory.keys[claim_partition(shop.merchant, who, shop.inventory.partitions)]
    right = await shop.client.execute_command("GET", keys.claims(shop.merchant, who))
    other = Claim("leeds", {"sock": (1, HOUR_MS, 0)}, "", 1, 0, 1, is_known=True)
    many = {f"rsv_{number}": other for number in range(999)} | {
        hold.id: (await claims_of(shop))[hold.id]
    }
    full = msgspec.msgpack.encode(many)
    await shop.client.execute_command("SET", keys.claims(shop.merchant, who), full)
    with pytest.raises(LimitExceeded) as refused:
        await buy(shop, 1, "york")
    assert (refused.value.field, refused.value.most) == ("buyer", 1_000)
    lines = [Line("shoe", 2)]
    await shop.inventory.amend(shop.merchant, hold.id, lines, key=new_key(), actor=ACTOR)
    await shop.client.execute_command("SET", keys.claims(shop.merchant, who), right)
    await shop.release(hold.id)
    await shop.audit()
