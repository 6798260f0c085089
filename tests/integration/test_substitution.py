"""Lines that others may stand for, and kits: what is held, what for, and what becomes of it."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from engine.kits import check_kit
from engine.model import (
    BuyerCap,
    Line,
    Pool,
    ProposalDecision,
    Reservation,
    ReservationResult,
    ReservationState,
    Terms,
)
from engine.outcomes import (
    BuyerCapExceeded,
    IdempotencyKeyReused,
    InsufficientStock,
    InvalidCommand,
    LimitExceeded,
    ProposalDecided,
    ProposalOpen,
    ReservationEnded,
    ShortLine,
)
from engine.substitutes import Alternative, Direction, check_alternatives
from engine.wishes import Fill, Substitution, Wish
from tests.shop import ACTOR, LOCATION, Shop, new_key


def wish(
    sku: str,
    quantity: int,
    *alternatives: Alternative,
    fill: Fill = Fill.MIXED,
    how: Substitution = Substitution.ALLOWED,
) -> Wish:
    return Wish(sku=sku, quantity=quantity, substitutes=how, fill=fill, alternatives=alternatives)


async def reserve(shop: Shop, *lines: Line | Wish, **options: Any) -> Reservation:
    options = {"key": new_key(), "actor": ACTOR} | options
    result = await shop.inventory.reserve(shop.merchant, LOCATION, lines, **options)
    return result.reservation


async def stock(shop: Shop, **units: int) -> None:
    for sku, quantity in units.items():
        await shop.receive(sku, quantity)


async def say(shop: Shop, sku: str, *alternatives: Alternative) -> None:
    rules = check_alternatives(sku, alternatives)
    await shop.inventory.substitutes.write(shop.merchant, {sku: rules}, actor=ACTOR)


async def say_kit(shop: Shop, sku: str, **components: int) -> None:
    kit = check_kit(sku, [Line(*one) for one in components.items()])
    await shop.inventory.kits.write(shop.merchant, {sku: kit}, actor=ACTOR)


def held(reservation: Reservation) -> dict[str, int]:
    return {line.sku: line.quantity for line in reservation.lines}


def served(reservation: Reservation) -> list[tuple[str, str, int, int]]:
    return [(one.asked, one.sku, one.units, one.served) for one in reservation.stands_for]


async def test_what_runs_short_is_served_by_what_stands_for_it(shop: Shop) -> None:
    await stock(shop, six=3, twelve=4)
    await say(shop, "six", Alternative(sku="twelve", of=1, for_=2))
    # Three are there and the fourth would cost an extra six: two and a twelve cost none.
    found = await reserve(shop, wish("six", 4))
    assert held(found) == {"six": 2, "twelve": 1}
    assert served(found) == [("six", "twelve", 1, 2)]
    (one,) = found.stands_for
    assert (one.of, one.for_, one.kind) == (1, 2, "substitute")
    read = await shop.inventory.reservation(shop.merchant, found.id)
    assert (read.lines, read.stands_for) == (found.lines, found.stands_for)
    assert (await shop.row("twelve")).available == 3
    # What there is of it is served as it was asked for.
    assert held(await reserve(shop, wish("six", 1))) == {"six": 1}
    assert held(await reserve(shop, wish("six", 3))) == {"twelve": 2}
    with pytest.raises(InsufficientStock) as refused:
        await reserve(shop, wish("six", 5))
    assert [(x.requested, x.available) for x in refused.value.lines] == [(5, 2)]
    await shop.audit()


async def test_a_line_without_a_wish_goes_by_no_rule(shop: Shop) -> None:
    await stock(shop, six=1, twelve=4)
    await say(shop, "six", Alternative(sku="twelve", for_=2))
    for lines in ([Line("six", 2)], [wish("six", 2, how=Substitution.NONE)]):
        with pytest.raises(InsufficientStock):
            await reserve(shop, *lines)


async def test_a_line_may_bring_its_own_list_and_be_filled_whole(shop: Shop) -> None:
    await stock(shop, tea=2, mint=2, sage=9)
    own = (Alternative(sku="mint"), Alternative(sku="sage"))
    mixed = await reserve(shop, wish("tea", 5, *own))
    assert held(mixed) == {"tea": 2, "mint": 2, "sage": 1}
    await shop.release(mixed.id)
    whole = await reserve(shop, wish("tea", 5, *own, fill=Fill.WHOLE))
    assert held(whole) == {"sage": 5}
    with pytest.raises(InvalidCommand) as refused:
        await reserve(shop, wish("tea", 5, *own, how=Substitution.NONE))
    assert refused.value.field == "lines[0].substitutes"
    with pytest.raises(InvalidCommand):
        await reserve(shop, wish("tea", 1_001, *own))
    with pytest.raises(InvalidCommand):
        await reserve(shop, wish("tea", 1, *own), wish("tea", 1))
    many = [wish(f"s{i}", 1, Alternative(sku=f"a{i}")) for i in range(200)]
    many[0] = wish("s0", 1, Alternative(sku="a0"), Alternative(sku="b0"))
    with pytest.raises(LimitExceeded):
        await reserve(shop, *many)


async def test_rules_hold_where_they_say_and_the_way_they_say(shop: Shop) -> None:
    await stock(shop, oat=0 + 1, soy=5, rice=5)
    await say(shop, "soy", Alternative(sku="oat", direction=Direction.BOTH))
    await say(shop, "rice", Alternative(sku="soy", locations=("elsewhere",)))
    assert held(await reserve(shop, wish("oat", 2))) == {"oat": 1, "soy": 1}
    with pytest.raises(InsufficientStock):
        await reserve(shop, wish("rice", 6))


async def test_what_was_asked_for_by_name_is_not_handed_to_somebody_else(shop: Shop) -> None:
    await stock(shop, tea=1, mint=3)
    own = (Alternative(sku="mint"),)
    # In the order of the cart the tea would take the mint that the last line asks for.
    with pytest.raises(InsufficientStock) as refused:
        await reserve(shop, wish("tea", 2, *own), Line("mint", 3))
    assert [line.sku for line in refused.value.lines] == ["tea"]
    both = await reserve(shop, wish("tea", 2, *own), Line("mint", 2))
    assert held(both) == {"tea": 1, "mint": 3}
    assert served(both) == [("tea", "mint", 1, 1)]
    assert (await shop.row("mint")).reserved == 3


async def test_a_partial_reserve_holds_what_serves_some_and_names_the_rest(shop: Shop) -> None:
    await stock(shop, six=1, twelve=1)
    found = await reserve(shop, wish("six", 5, Alternative(sku="twelve", for_=2)), partial=True)
    assert held(found) == {"six": 1, "twelve": 1}
    assert found.missing == (Line("six", 2),)


async def test_a_retry_gets_the_first_answer_whatever_the_rules_are_by_then(shop: Shop) -> None:
    await stock(shop, tea=1, mint=5)
    await say(shop, "tea", Alternative(sku="mint"))
    lines, key = [wish("tea", 2)], new_key()
    first = await reserve(shop, *lines, key=key)
    await shop.inventory.substitutes.write(shop.merchant, {"tea": None}, actor=ACTOR)
    again = await reserve(shop, *lines, key=key)
    assert again == first
    with pytest.raises(IdempotencyKeyReused):
        await reserve(shop, wish("tea", 2, Alternative(sku="mint")), key=key)


async def test_a_substitute_is_picked_short_and_the_rest_goes_back(shop: Shop) -> None:
    await stock(shop, six=1, twelve=4)
    found = await reserve(shop, wish("six", 7, Alternative(sku="twelve", for_=2)))
    assert held(found) == {"six": 1, "twelve": 3}
    result = await shop.commit(found.id, [("six", 1), ("twelve", 2)])
    assert result.reservation.picked == (Line("six", 1), Line("twelve", 2))
    assert served(result.reservation) == [("six", "twelve", 3, 6)]
    row = await shop.row("twelve")
    assert (row.on_hand, row.reserved) == (2, 0)
    await shop.audit()


async def test_a_kit_is_held_as_its_components_and_ends_with_them(shop: Shop) -> None:
    await stock(shop, mug=5, tea=4)
    await say_kit(shop, "gift", mug=1, tea=2)
    found = await reserve(shop, Line("gift", 2), Line("mug", 1))
    assert held(found) == {"mug": 3, "tea": 4}
    assert served(found) == [("gift", "mug", 2, 2), ("gift", "tea", 4, 2)]
    with pytest.raises(InsufficientStock) as refused:
        await reserve(shop, Line("gift", 1))
    assert [(x.sku, x.available, x.known) for x in refused.value.lines] == [("gift", 0, True)]
    await shop.release(found.id)
    committed = await shop.commit((await reserve(shop, Line("gift", 1))).id)
    assert committed.reservation.state is ReservationState.COMMITTED
    assert ((await shop.row("mug")).on_hand, (await shop.row("tea")).on_hand) == (4, 2)
    await shop.audit()


async def test_components_that_kits_share_are_counted_once(shop: Shop) -> None:
    await stock(shop, mug=3, tea=9, jam=9)
    await say_kit(shop, "gift", mug=1, tea=2)
    await say_kit(shop, "pair", mug=2, jam=1)
    with pytest.raises(InsufficientStock) as refused:
        await reserve(shop, Line("gift", 2), Line("pair", 1))
    assert [(x.sku, x.available) for x in refused.value.lines] == [("pair", 0)]
    assert held(await reserve(shop, Line("gift", 1), Line("pair", 1))) == {
        "mug": 3,
        "tea": 2,
        "jam": 1,
    }


async def test_a_kit_that_others_may_stand_for_leaves_out_its_own_components(shop: Shop) -> None:
    await stock(shop, mug=2, tea=1, packed=3)
    await say_kit(shop, "gift", mug=1, tea=1)
    found = await reserve(shop, wish("gift", 3, Alternative(sku="mug"), Alternative(sku="packed")))
    assert held(found) == {"mug": 1, "tea": 1, "packed": 2}


async def test_a_kit_is_found_by_a_process_that_has_not_heard_of_it(
    shop: Shop, other_shop: Shop
) -> None:
    await stock(shop, mug=3, tea=3)
    await say_kit(shop, "gift", mug=1)
    assert other_shop.inventory.kits.known_now(shop.merchant) is None
    assert held(await reserve(other_shop, Line("gift", 1), Line("tea", 1))) == {"mug": 1, "tea": 1}
    partial = await reserve(other_shop, Line("gift", 9), Line("tea", 1), partial=True)
    assert held(partial) == {"mug": 2, "tea": 1}
    assert partial.missing == (Line("gift", 7),)


async def test_a_crowd_of_wishes_and_plain_carts_promises_no_unit_twice(shop: Shop) -> None:
    await stock(shop, six=20, twelve=10, mug=20)
    await say(shop, "six", Alternative(sku="twelve", for_=2))
    await say_kit(shop, "gift", mug=2, six=1)
    carts: Sequence[tuple[Line | Wish, ...]] = [
        (wish("six", 3),),
        (Line("six", 1), Line("twelve", 1)),
        (Line("gift", 2),),
        (wish("six", 2), Line("gift", 1)),
    ] * 10
    answers = await asyncio.gather(
        *(reserve(shop, *cart) for cart in carts), return_exceptions=True
    )
    done = [one for one in answers if isinstance(one, Reservation)]
    assert {type(one) for one in answers} == {Reservation, InsufficientStock}
    for sku, on_hand in (("six", 20), ("twelve", 10), ("mug", 20)):
        row = await shop.row(sku)
        assert row.reserved == sum(held(one).get(sku, 0) for one in done) <= on_hand
    await shop.audit()


async def test_a_wish_reclaims_what_is_due_before_it_turns_to_substitutes_or_refuses(
    own_shop: Shop,
) -> None:
    await stock(own_shop, tea=2, mint=2)
    hold = await reserve(own_shop, Line("tea", 2))
    await own_shop.set_clock(hold.expires_at_ms or 0)
    assert held(await reserve(own_shop, wish("tea", 2, Alternative(sku="mint")))) == {"tea": 2}


async def proposal(shop: Shop, **options: Any) -> Reservation:
    """Hold five teas of which three are mint, two mugs of which one is a cup, and a spoon."""
    await stock(shop, tea=2, mint=9, mug=1, cup=9, spoon=1)
    await say(shop, "mug", Alternative(sku="cup", approval=True))
    found = await reserve(
        shop,
        wish("tea", 5, Alternative(sku="mint"), how=Substitution.APPROVE),
        wish("mug", 2),
        Line("spoon", 1),
        **options,
    )
    assert found.proposed == ("tea", "mug")
    assert held(found) == {"tea": 2, "mug": 1, "spoon": 1, "mint": 3, "cup": 1}
    return found


async def decide(
    shop: Shop, reservation: Reservation, decision: ProposalDecision, *skus: str
) -> ReservationResult:
    return await shop.inventory.decide(
        shop.merchant, reservation.id, decision, skus=skus, actor=ACTOR
    )


async def test_a_proposal_waits_for_somebody_to_accept_it(shop: Shop) -> None:
    found = await proposal(shop)
    confirming = shop.inventory.confirm(shop.merchant, found.id, actor=ACTOR)
    for call in (confirming, shop.commit(found.id)):
        with pytest.raises(ProposalOpen) as refused:
            await call
        assert refused.value.skus == ("tea", "mug")
    some = await decide(shop, found, ProposalDecision.ACCEPTED, "tea")
    assert some.reservation.proposed == ("mug",)
    assert some.reservation.lines == found.lines
    assert not some.replayed
    assert (await decide(shop, found, ProposalDecision.ACCEPTED, "tea")).replayed
    with pytest.raises(ProposalDecided):
        await decide(shop, found, ProposalDecision.DECLINED, "tea")
    with pytest.raises(InvalidCommand):
        await decide(shop, found, ProposalDecision.ACCEPTED, "spoon")
    everything = await decide(shop, found, ProposalDecision.ACCEPTED)
    assert everything.reservation.proposed == ()
    assert (await decide(shop, found, ProposalDecision.ACCEPTED)).replayed
    await shop.inventory.confirm(shop.merchant, found.id, actor=ACTOR)
    committed = await shop.commit(found.id)
    assert committed.reservation.state is ReservationState.COMMITTED
    assert (await shop.row("mint")).on_hand == 6
    await shop.audit()


async def test_what_is_declined_goes_back_and_is_missing(shop: Shop) -> None:
    key = new_key()
    found = await proposal(shop, key=key)
    result = await decide(shop, found, ProposalDecision.DECLINED, "tea")
    left = result.reservation
    assert held(left) == {"tea": 2, "mug": 1, "spoon": 1, "cup": 1}
    assert left.missing == (Line("tea", 3),)
    assert served(left) == [("mug", "cup", 1, 1)]
    assert (await shop.row("mint")).reserved == 0
    await decide(shop, found, ProposalDecision.DECLINED)
    read = await shop.inventory.reservation(shop.merchant, found.id)
    assert (held(read), read.proposed) == ({"tea": 2, "mug": 1, "spoon": 1}, ())
    assert read.missing == (Line("tea", 3), Line("mug", 1))
    # A retry of the reserve is told what it was told at first.
    lines: list[Line | Wish] = [
        wish("tea", 5, Alternative(sku="mint"), how=Substitution.APPROVE),
        wish("mug", 2),
        Line("spoon", 1),
    ]
    again = await reserve(shop, *lines, key=key)
    assert (again.lines, again.missing) == (found.lines, ())
    assert (again.stands_for, again.proposed) == (found.stands_for, found.proposed)
    await shop.inventory.confirm(shop.merchant, found.id, actor=ACTOR)
    await shop.commit(found.id)
    await shop.audit()


async def test_what_is_declined_counts_in_no_pool_whatever_is_held_of_it_later(shop: Shop) -> None:
    capped = Terms(channels={"online": Pool(cap=4)})
    await shop.receive("mint", 9)
    await shop.receive("spoon", 1)
    await shop.set_terms("mint", capped)
    found = await reserve(
        shop,
        wish("tea", 3, Alternative(sku="mint"), how=Substitution.APPROVE),
        Line("spoon", 1),
    )
    await decide(shop, found, ProposalDecision.DECLINED)
    await shop.audit()
    await shop.set_terms("mint", Terms())
    await shop.inventory.amend(
        shop.merchant, found.id, [Line("mint", 2)], key=new_key(), actor=ACTOR
    )
    await shop.audit()
    await shop.set_terms("mint", capped)
    await shop.release(found.id)
    row = await shop.row("mint")
    assert row.terms is not None
    assert row.terms.channels["online"].held == 0
    await shop.audit()


async def test_a_reservation_of_which_nothing_is_left_is_released(shop: Shop) -> None:
    await stock(shop, mint=3)
    found = await reserve(shop, wish("tea", 3, Alternative(sku="mint"), how=Substitution.APPROVE))
    result = await decide(shop, found, ProposalDecision.DECLINED)
    assert result.reservation.state is ReservationState.RELEASED
    assert (await shop.row("mint")).reserved == 0
    with pytest.raises(ReservationEnded):
        await decide(shop, found, ProposalDecision.ACCEPTED)
    await shop.audit()


async def test_a_proposal_that_nobody_decides_expires(own_shop: Shop) -> None:
    found = await proposal(own_shop)
    await own_shop.set_clock(found.expires_at_ms or 0)
    assert (await own_shop.inventory.expire_due(own_shop.keys().partition)).expired == 1
    with pytest.raises(ReservationEnded):
        await decide(own_shop, found, ProposalDecision.ACCEPTED)
    await own_shop.audit()


async def test_the_decisions_of_a_crowd_come_to_one(shop: Shop) -> None:
    found = await proposal(shop)
    answers = await asyncio.gather(
        *(
            decide(shop, found, decision, "tea")
            for decision in (ProposalDecision.ACCEPTED, ProposalDecision.DECLINED) * 10
        ),
        return_exceptions=True,
    )
    done = [one for one in answers if isinstance(one, ReservationResult)]
    assert len(done) == 10
    assert sum(not one.replayed for one in done) == 1
    assert {type(one) for one in answers} == {ReservationResult, ProposalDecided}
    await shop.audit()


async def test_a_kit_whose_component_is_spread_over_partitions_is_held(shop: Shop) -> None:
    await stock(shop, mug=40, tea=40)
    await say_kit(shop, "gift", mug=1, tea=2)
    await shop.inventory.splits.change((shop.merchant, LOCATION, "mug"), 4, actor=ACTOR)
    assert held(await reserve(shop, Line("gift", 15))) == {"mug": 15, "tea": 30}


SPARE = Alternative(sku="cup")


async def refused(shop: Shop, *lines: Line | Wish) -> BuyerCapExceeded | InsufficientStock:
    try:
        await reserve(shop, *lines, buyer="ann")
    except (BuyerCapExceeded, InsufficientStock) as refusal:
        return refusal
    raise AssertionError("it was held")


@pytest.mark.parametrize(
    ("caps", "units", "asked", "limited_by"),
    [
        ({"mug": 1}, {"mug": 5}, wish("mug", 3, SPARE), "buyer"),
        ({"mug": 1}, {"mug": 5, "cup": 1}, wish("mug", 3, SPARE), "buyer"),
        ({"cup": 1}, {"mug": 1, "cup": 5}, wish("mug", 3, SPARE), "buyer"),
        ({"mug": 2}, {"mug": 1, "cup": 1}, wish("mug", 3, SPARE), "stock"),
        ({"tea": 2}, {"mug": 4, "tea": 9}, Line("gift", 2), "buyer"),
        ({"tea": 4}, {"mug": 1, "tea": 9}, Line("gift", 2), "stock"),
        ({"tea": 2}, {"mug": 1, "tea": 9}, Line("gift", 2), "stock"),
    ],
)
async def test_what_a_wish_is_limited_by(
    shop: Shop, caps: dict[str, int], units: dict[str, int], asked: Line | Wish, limited_by: str
) -> None:
    await say_kit(shop, "gift", mug=1, tea=2)
    await stock(shop, **units)
    for sku, cap in caps.items():
        await shop.set_terms(sku, Terms(buyer_cap=BuyerCap(cap, 60_000)))
    alone = await refused(shop, asked)
    assert isinstance(alone, BuyerCapExceeded) == (limited_by == "buyer")
    assert [line.limited_by for line in alone.lines] == [limited_by]
    mixed = await refused(shop, asked, Line("none", 1))
    assert isinstance(mixed, InsufficientStock)
    assert {line.sku: line.limited_by for line in mixed.lines} == {
        asked.sku: limited_by,
        "none": "stock",
    }


async def test_an_amendment_of_a_wish_says_what_it_is_limited_by(shop: Shop) -> None:
    await say_kit(shop, "gift", mug=1, tea=2)
    await stock(shop, mug=4, tea=9)
    await shop.set_terms("tea", Terms(buyer_cap=BuyerCap(4, 60_000)))
    made = await reserve(shop, Line("gift", 1), buyer="ann")
    with pytest.raises(BuyerCapExceeded) as short:
        await shop.inventory.amend(
            shop.merchant, made.id, [Line("gift", 3)], key=new_key(), actor=ACTOR
        )
    assert short.value.lines == (ShortLine("gift", 3, 2, limited_by="buyer"),)
    await shop.audit()
