"""Amendments of what was promised on terms: its own units are free for it, the rest is as ever."""

import asyncio
from typing import Any

import msgspec
import pytest

from engine.event_making import events_of
from engine.events import ReservationAmended, ReservationProposed
from engine.kits import check_kit
from engine.ledger import read_entries
from engine.model import BuyerCap, Line, Pool, ProposalDecision, Reservation, Terms
from engine.outcomes import (
    BuyerCapExceeded,
    IdempotencyKeyReused,
    InsufficientStock,
    InvalidCommand,
    ProposalOpen,
    ReservationEnded,
    ReservationNotFound,
    ShortLine,
)
from engine.substitutes import Alternative
from engine.wishes import Substitution, Wish
from tests.shop import ACTOR, LOCATION, Shop, new_key

HOUR_MS = 3_600_000


async def amend(shop: Shop, held: Reservation, *lines: Line | Wish, **options: Any) -> Reservation:
    options = {"key": new_key(), "actor": ACTOR} | options
    return (await shop.inventory.amend(shop.merchant, held.id, lines, **options)).reservation


async def reserve(shop: Shop, *lines: Line | Wish, **options: Any) -> Reservation:
    options = {"key": new_key(), "actor": ACTOR} | options
    return (await shop.inventory.reserve(shop.merchant, LOCATION, lines, **options)).reservation


async def refused(shop: Shop, held: Reservation, *lines: Line, **options: Any) -> list[ShortLine]:
    """Return the lines that an amendment was refused for; it has left everything as it was."""
    before = await shop.inventory.reservation(shop.merchant, held.id)
    lines_refused: tuple[ShortLine, ...] = ()
    try:
        await amend(shop, held, *lines, **options)
    except (InsufficientStock, BuyerCapExceeded) as refusal:
        lines_refused = refusal.lines
    assert await shop.inventory.reservation(shop.merchant, held.id) == before
    return list(lines_refused)


async def levels(shop: Shop, sku: str) -> tuple[int, int, int]:
    row = await shop.row(sku)
    return row.reserved, row.backordered, row.available


def units(reservation: Reservation) -> dict[str, int]:
    return {line.sku: line.quantity for line in reservation.lines}


def served(reservation: Reservation) -> list[tuple[str, str, int, int]]:
    return [(one.asked, one.sku, one.units, one.served) for one in reservation.stands_for]


# Backorders


async def test_a_backorder_is_amended_with_its_own_units_free_for_it(shop: Shop) -> None:
    await shop.receive("tea", 2)
    await shop.set_terms("tea", Terms(backorder_limit=3))
    held = await reserve(shop, Line("tea", 4))
    assert await refused(shop, held, Line("tea", 6)) == [ShortLine("tea", 6, 5)]
    more = await amend(shop, held, Line("tea", 5))
    assert (more.lines, more.backordered) == ((Line("tea", 5),), (Line("tea", 3),))
    assert await levels(shop, "tea") == (2, 3, 0)
    less = await amend(shop, held, Line("tea", 3))
    assert less.backordered == (Line("tea", 1),), "what has not come is given back first"
    less = await amend(shop, held, Line("tea", 1))
    assert (less.lines, less.backordered) == ((Line("tea", 1),), ())
    assert await levels(shop, "tea") == (1, 0, 1)
    assert less == await shop.inventory.reservation(shop.merchant, held.id)
    with pytest.raises(InsufficientStock):
        await amend(shop, held, Line("tea", 3), stock_only=True)
    assert (await amend(shop, held, Line("tea", 2), stock_only=True)).backordered == ()
    await shop.audit()
    assert (await shop.commit(held.id)).reservation.picked == (Line("tea", 2),)
    await shop.audit()


async def test_who_waits_for_more_waits_behind_all_others(shop: Shop) -> None:
    await shop.set_terms("tea", Terms(backorder_limit=20))
    first, second, third = [await reserve(shop, Line("tea", 3)) for _ in range(3)]
    await amend(shop, first, Line("tea", 4))
    await amend(shop, second, Line("tea", 2))
    await shop.receive("tea", 3)
    found = [
        (await shop.inventory.reservation(shop.merchant, one.id)).backordered
        for one in (first, second, third)
    ]
    assert found == [(Line("tea", 4),), (), (Line("tea", 2),)], "fewer keep their place"
    await shop.audit()


async def test_a_plain_hold_gets_more_of_a_row_with_terms_on_these(shop: Shop) -> None:
    await shop.receive("tea", 5)
    plain = await reserve(shop, Line("tea", 1), key="cart")
    await shop.set_terms("tea", Terms(channels={"online": Pool(cap=2), "store": Pool(cap=3)}))
    await shop.set_terms("milk", Terms(backorder_limit=2))
    more = await amend(shop, plain, Line("milk", 2), Line("tea", 1))
    assert (more.channel, more.backordered) == ("online", (Line("milk", 2),))
    assert (await shop.row("tea")).terms == Terms(
        channels={"online": Pool(cap=2), "store": Pool(cap=3)}
    ), "the line that is no more than before is as it was"
    (short,) = await refused(shop, plain, Line("tea", 3))
    assert (short.available, short.limited_by) == (2, "channel")
    await amend(shop, plain, Line("tea", 2))
    terms = (await shop.row("tea")).terms
    assert terms is not None
    assert terms.channels["online"].held == 2, "all of the line is in the pool from now on"
    with pytest.raises(InvalidCommand) as refusal:
        await amend(shop, plain, Line("tea", 1), channel="store")
    assert refusal.value.field == "channel"
    again = (await shop.reserve([("tea", 1)], key="cart")).reservation
    assert (again.lines, again.channel) == ((Line("tea", 1),), ""), "as it was told at first"
    await shop.audit()
    other = await reserve(shop, Line("tea", 1), channel="store")
    await amend(shop, other, Line("tea", 3), channel="store")
    assert (await shop.release(plain.id)).reservation.lines == (Line("tea", 2), Line("milk", 2))
    await shop.audit()


# Caps and pools


async def test_an_amendment_counts_for_its_buyer_with_the_new_quantity(shop: Shop) -> None:
    await shop.receive("tea", 20)
    await shop.receive("milk", 9)
    plain = await reserve(shop, Line("milk", 1))
    await shop.set_terms("tea", Terms(buyer_cap=BuyerCap(3, HOUR_MS)))
    held = await reserve(shop, Line("tea", 2), buyer="ann")
    await reserve(shop, Line("tea", 3), buyer="bob")
    assert await refused(shop, held, Line("tea", 4)) == [ShortLine("tea", 4, 3, True, "buyer")]
    assert (await amend(shop, held, Line("tea", 3))).lines == (Line("tea", 3),)
    await amend(shop, held, Line("tea", 1), buyer="ann")
    more = await reserve(shop, Line("tea", 2), buyer="ann")
    assert await refused(shop, held, Line("tea", 2)) == [ShortLine("tea", 2, 1, True, "buyer")]
    await shop.audit()
    for options in ({}, {"buyer": "bob"}):
        with pytest.raises(InvalidCommand) as refusal:
            await amend(shop, plain if not options else held, Line("tea", 1), **options)
        assert refusal.value.field == "buyer"
    named = await amend(shop, plain, Line("tea", 2), buyer="cid")
    assert named.buyer
    assert await refused(shop, plain, Line("tea", 4)) == [ShortLine("tea", 4, 3, True, "buyer")]
    gone = await amend(shop, plain, Line("tea", 0))
    assert gone.lines == (Line("milk", 1),)
    assert (await reserve(shop, Line("tea", 3), buyer="cid")).lines == (Line("tea", 3),)
    await shop.release(more.id)
    await shop.commit(held.id)
    await shop.commit(plain.id)
    await shop.audit()


async def test_what_is_due_makes_room_beside_a_row_that_needs_a_buyer(own_shop: Shop) -> None:
    await own_shop.receive("mug", 1)
    await own_shop.receive("tea", 2)
    held = await reserve(own_shop, Line("mug", 1), ttl_ms=2 * HOUR_MS)
    due = await reserve(own_shop, Line("tea", 2), ttl_ms=HOUR_MS)
    await own_shop.set_terms("mug", Terms(buyer_cap=BuyerCap(1, HOUR_MS)))
    assert due.expires_at_ms is not None
    await own_shop.set_clock(max(due.expires_at_ms, await own_shop.clock_ms()))
    wish = Wish(sku="tea", quantity=2)
    assert units(await amend(own_shop, held, Line("mug", 1), wish)) == {"mug": 1, "tea": 2}
    await own_shop.audit()


async def test_amendments_of_a_buyer_at_once_pass_neither_cap_nor_shelf(shop: Shop) -> None:
    await shop.receive("tea", 30)
    await shop.set_terms("tea", Terms(backorder_limit=5, buyer_cap=BuyerCap(8, HOUR_MS)))
    carts = [await reserve(shop, Line("tea", 1), buyer=f"b{n % 5}") for n in range(20)]
    answers = await asyncio.gather(
        *(amend(shop, one, Line("tea", 1 + n % 7)) for n, one in enumerate(carts * 3)),
        return_exceptions=True,
    )
    assert all(isinstance(a, Reservation | InsufficientStock | BuyerCapExceeded) for a in answers)
    row = await shop.row("tea")
    assert row.reserved + row.backordered <= 35
    await shop.audit()
    for one in carts:
        await shop.release(one.id)
    assert await levels(shop, "tea") == (0, 0, 30)
    await shop.audit()


# What stands for what


async def test_what_was_asked_for_is_served_anew(shop: Shop) -> None:
    for sku, quantity in {"six": 2, "twelve": 3, "tea": 1}.items():
        await shop.receive(sku, quantity)
    wish = Wish(
        sku="six",
        quantity=4,
        substitutes=Substitution.ALLOWED,
        alternatives=(Alternative(sku="twelve", of=1, for_=2),),
    )
    held = await reserve(shop, wish, Line("tea", 1))
    assert (units(held), served(held)) == (
        {"six": 2, "tea": 1, "twelve": 1},
        [("six", "twelve", 1, 2)],
    )
    with pytest.raises(InvalidCommand, match="only stands for another") as refusal:
        await amend(shop, held, Line("twelve", 1))
    assert refusal.value.field == "lines[0].sku"
    with pytest.raises(InvalidCommand, match="more than 1000 units"):
        await amend(shop, held, Line("six", 1_001))
    assert (await refused(shop, held, Line("six", 6)))[0].available == 4, "one 12-pack is its own"
    more = await amend(shop, held, msgspec.structs.replace(wish, quantity=6))
    assert units(more) == {"six": 2, "tea": 1, "twelve": 2}
    await shop.receive("six", 2)
    anew = await amend(shop, held, Line("six", 5))
    assert (units(anew), served(anew)) == (
        {"six": 3, "tea": 1, "twelve": 1},
        [("six", "twelve", 1, 2)],
    ), "by the rule: what was asked for comes first"
    less = await amend(shop, held, Line("six", 1))
    assert (units(less), less.stands_for) == ({"six": 1, "tea": 1}, ())
    assert await levels(shop, "twelve") == (0, 0, 3)
    assert units(await amend(shop, held, Line("six", 0))) == {"tea": 1}
    with pytest.raises(InvalidCommand, match="release"):
        await amend(shop, held, Line("tea", 0))
    await shop.audit()


async def test_more_substitutes_than_were_accepted_are_proposed_anew(shop: Shop) -> None:
    await shop.receive("mint", 9)
    wish = Wish(
        sku="tea",
        quantity=2,
        substitutes=Substitution.APPROVE,
        alternatives=(Alternative(sku="mint"),),
    )
    held = await reserve(shop, wish)
    assert held.proposed == ("tea",)
    less = await amend(shop, held, Line("tea", 1))
    assert less.proposed == ("tea",)
    await shop.inventory.decide(shop.merchant, held.id, ProposalDecision.ACCEPTED, actor=ACTOR)
    more = await amend(shop, held, msgspec.structs.replace(wish, quantity=3))
    assert (more.proposed, units(more)) == (("tea",), {"mint": 3})
    with pytest.raises(ProposalOpen):
        await shop.commit(held.id)
    await shop.inventory.decide(shop.merchant, held.id, ProposalDecision.ACCEPTED, actor=ACTOR)
    less = await amend(shop, held, msgspec.structs.replace(wish, quantity=2))
    assert less.proposed == (), "that many were accepted"
    told = [
        event
        for entry in await read_entries(shop.inventory.store, shop.keys())
        for operation in entry.operations
        if operation.id == held.id
        for event in events_of(operation, sequence=1, at_ms=entry.at_ms, partition=0)
    ]
    assert sum(isinstance(event, ReservationProposed) for event in told) == 3
    (line,) = [e for e in told if isinstance(e, ReservationAmended)][-1].data.lines or ()
    assert (line.sku, line.quantity, [s.sku for s in line.stands_for]) == ("mint", 2, ["tea"])
    await shop.commit(held.id)
    await shop.audit()


async def test_a_kit_is_amended_by_what_it_was_held_by(shop: Shop) -> None:
    for sku, quantity in {"mug": 6, "tea": 6, "card": 1}.items():
        await shop.receive(sku, quantity)
    await say_kit(shop, "box", mug=1, tea=2)
    held = await reserve(shop, Line("box", 1), Line("mug", 1))
    assert units(held) == {"mug": 2, "tea": 2}
    await say_kit(shop, "box", mug=1, card=1)
    more = await amend(shop, held, Line("box", 3))
    assert units(more) == {"mug": 4, "tea": 6}
    assert (await refused(shop, held, Line("box", 4)))[0].available == 3
    assert units(await amend(shop, held, Line("mug", 3))) == {"mug": 6, "tea": 6}
    assert units(await amend(shop, held, Line("box", 0))) == {"mug": 3}
    assert units(await amend(shop, held, Line("box", 1))) == {"mug": 4, "card": 1}
    plain = await reserve(shop, Line("tea", 1))
    assert (await refused(shop, plain, Line("box", 1)))[0].sku == "box"
    await shop.audit()


async def test_what_was_asked_for_is_amended_on_the_terms_of_the_rows(shop: Shop) -> None:
    await shop.receive("mug", 3)
    await shop.receive("tea", 20)
    await say_kit(shop, "box", mug=1, tea=2)
    pools = {"store": Pool(cap=9)}
    await shop.set_terms(
        "mug", Terms(backorder_limit=5, channels=pools, buyer_cap=BuyerCap(8, HOUR_MS))
    )
    held = await reserve(shop, Line("box", 2), Line("mug", 3), channel="store", buyer="ann")
    assert (units(held), held.backordered) == ({"mug": 5, "tea": 4}, (Line("mug", 2),))
    for line, mugs, waiting in (
        (Line("box", 1), 4, 1),
        (Line("mug", 1), 2, 0),
        (Line("box", 6), 7, 4),
        (Line("mug", 2), 8, 5),
        (Line("mug", 0), 6, 3),
    ):
        found = await amend(shop, held, line)
        assert units(found)["mug"] == mugs
        assert found.backordered == ((Line("mug", waiting),) if waiting else ())
        terms = (await shop.row("mug")).terms
        assert terms is not None
        assert terms.channels["store"].held == mugs
        await shop.audit()
    (short,) = await refused(shop, held, Line("box", 9))
    assert (short.requested, short.available) == (9, 8)
    await shop.receive("mug", 5)
    await shop.commit(held.id)
    await shop.audit()


async def test_what_stands_in_is_on_the_shelf_while_more_of_the_same_row_waits(shop: Shop) -> None:
    await shop.receive("mint", 6)
    await shop.set_terms("mint", Terms(backorder_limit=9))
    other = await reserve(shop, Line("mint", 3))
    wish = Wish(
        sku="sage",
        quantity=2,
        substitutes=Substitution.APPROVE,
        alternatives=(Alternative(sku="mint"),),
    )
    held = await reserve(shop, wish, Line("mint", 1))
    held = await amend(shop, held, Line("mint", 5))
    assert (units(held), held.backordered) == ({"mint": 7}, (Line("mint", 4),))
    held = await amend(shop, held, Line("sage", 1))
    assert (units(held), held.backordered) == ({"mint": 6}, (Line("mint", 3),))
    # Units are free, and nobody was filled yet: a substitute does not wait for that.
    await shop.release(other.id)
    four = msgspec.structs.replace(wish, quantity=4)
    held = await amend(shop, held, four, Line("mint", 2))
    assert (units(held), held.backordered) == ({"mint": 6}, ())
    await shop.audit()
    declined = await shop.inventory.decide(
        shop.merchant, held.id, ProposalDecision.DECLINED, actor=ACTOR
    )
    assert units(declined.reservation) == {"mint": 2}
    assert await levels(shop, "mint") == (2, 0, 4)
    await shop.audit()


# Again


async def test_a_retry_is_told_what_the_first_answer_was(shop: Shop) -> None:
    await shop.receive("mint", 2)
    await shop.set_terms("tea", Terms(backorder_limit=9))
    wish = Wish(
        sku="sage",
        quantity=3,
        substitutes=Substitution.APPROVE,
        alternatives=(Alternative(sku="mint"),),
    )
    held = await reserve(shop, wish, Line("tea", 2), partial=True, key="cart")
    assert (held.missing, held.proposed) == ((Line("sage", 1),), ("sage",))
    inventory = shop.inventory

    async def extend() -> Reservation:
        result = await inventory.extend(
            shop.merchant, held.id, key="x", ttl_ms=3_600_000, actor=ACTOR
        )
        return result.reservation

    extended = await extend()
    amended = await amend(shop, held, Line("tea", 3), key="a")
    assert amended.backordered == (Line("tea", 3),)
    await shop.receive("tea", 2)
    await inventory.decide(shop.merchant, held.id, ProposalDecision.DECLINED, actor=ACTOR)
    await amend(shop, held, Line("tea", 1), key="b")
    assert await extend() == extended
    assert await amend(shop, held, Line("tea", 3), key="a") == amended
    assert await reserve(shop, wish, Line("tea", 2), partial=True, key="cart") == held
    with pytest.raises(IdempotencyKeyReused):
        await amend(shop, held, Line("tea", 3), key="a", stock_only=True)
    await shop.audit()
    await shop.release(held.id)
    assert await extend() == extended
    assert await amend(shop, held, Line("tea", 3), key="a") == amended
    with pytest.raises(ReservationEnded):
        await amend(shop, held, Line("tea", 3), key="c")


async def test_a_retry_comes_before_what_is_said_otherwise(shop: Shop) -> None:
    await shop.receive("tea", 9)
    held = await reserve(shop, Line("tea", 1))
    amended = await amend(shop, held, Line("tea", 2), key="a", channel="partner", buyer="ann")
    await shop.set_terms("tea", Terms(buyer_cap=BuyerCap(9, HOUR_MS)))
    await amend(shop, held, Line("tea", 3), channel="store", buyer="bob")
    again = await amend(shop, held, Line("tea", 2), key="a", channel="partner", buyer="ann")
    assert again == amended
    others: dict[str, dict[str, Any]] = {
        "channel": {"channel": "partner"},
        "buyer": {"buyer": "ann"},
    }
    for field, said in others.items():
        with pytest.raises(InvalidCommand) as invalid:
            await amend(shop, held, Line("tea", 4), **said)
        assert invalid.value.field == field
        with pytest.raises(ReservationNotFound):
            await shop.inventory.amend(
                "somebody else", held.id, [Line("tea", 4)], key="b", actor=ACTOR, **said
            )
    await shop.release(held.id)
    with pytest.raises(ReservationEnded):
        await amend(shop, held, Line("tea", 4), channel="partner")


async def say_kit(shop: Shop, sku: str, **components: int) -> None:
    kit = check_kit(sku, [Line(*one) for one in components.items()])
    await shop.inventory.kits.write(shop.merchant, {sku: kit}, actor=ACTOR)
