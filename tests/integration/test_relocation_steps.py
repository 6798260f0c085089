"""Moves whose process dies at each single step: the units are held at one place of the two.

The steps are not listed here: a first run counts them, so a new step is tested by itself.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Final
from uuid import uuid4

import pytest

from engine.keys import order_id, reservation_hash
from engine.model import BuyerCap, Line, Pool, ProposalDecision, ReservationState, Terms
from engine.order_driver import OrderDriver
from engine.order_records import GRACE_MS, Order, OrderKind, OrderState, WantedLine
from engine.orders import Orders
from engine.outcomes import (
    BuyerCapExceeded,
    HoldfastError,
    IdempotencyKeyReused,
    InsufficientStock,
    InvalidCommand,
    ReservationEnded,
)
from engine.relocation import Relocated, Relocation
from engine.substitutes import Alternative
from engine.wishes import Substitution, Wish
from tests.integration.test_order_steps import Killed, Reaper, pass_time
from tests.invariants import assert_invariants
from tests.shop import ACTOR, Shop, open_shop
from tests.stores import VALKEY, MakeStore, set_up

HERE: Final = "depot"
THERE: Final = "harbour"
LINES: Final = [("tea", 3), ("milk", 1)]
UNITS: Final = sum(units for _, units in LINES)
TERMS: Final = Terms(
    backorder_limit=2,
    channels={"store": Pool(cap=6), "online": Pool(minimum=1)},
    buyer_cap=BuyerCap(4, 3_600_000),
)
TTL_MS: Final = 60_000
MAX_STEPS: Final = 40
OPEN: Final = (ReservationState.HELD, ReservationState.CONFIRMED)


@pytest.fixture
async def shop(make_store: MakeStore) -> AsyncIterator[Shop]:
    """A shop on a store of its own, since the tests move its clock; with several partitions."""
    store = make_store(VALKEY)
    await store.start()
    await set_up(store.settings, partitions=8)
    async with open_shop(store.settings) as opened:
        yield opened


async def hold(shop: Shop, *, tea_there: int = 5, order_ref: str = "cart 7") -> tuple[Shop, str]:
    """Return the shop of a new merchant, and a reservation at the one of its two places."""
    one = Shop(shop.inventory, shop.client, f"m-{uuid4().hex[:12]}")
    for location, tea in ((HERE, 5), (THERE, tea_there)):
        await one.receive("tea", tea, location=location)
        await one.receive("milk", 2, location=location)
    made = await one.inventory.reserve(
        one.merchant,
        HERE,
        [Line(*line) for line in LINES],
        key="hold",
        ttl_ms=TTL_MS,
        order_ref=order_ref,
        actor=ACTOR,
    )
    return one, made.reservation.id


async def hold_on_terms(shop: Shop, *, tea_there: int = 5, mint_there: int = 0) -> tuple[Shop, str]:
    """The same, of rows with terms, and with mint that stands for a tea that is not there."""
    one = Shop(shop.inventory, shop.client, f"m-{uuid4().hex[:12]}")
    for location, tea, mint in ((HERE, 3, 1), (THERE, tea_there + 1, mint_there)):
        await one.set_terms("tea", TERMS, location=location)
        await one.receive("tea", tea, location=location)
        await one.receive("milk", 2, location=location)
        if mint:
            await one.receive("mint", mint, location=location)
    wish = Wish(
        sku="tea",
        quantity=3,
        substitutes=Substitution.APPROVE,
        alternatives=(Alternative(sku="mint"),),
    )
    made = await one.inventory.reserve(
        one.merchant,
        HERE,
        [wish, Line("milk", 1)],
        key="hold",
        ttl_ms=TTL_MS,
        channel="store",
        buyer="ann",
        actor=ACTOR,
    )
    assert made.reservation.proposed == ("tea",)
    return one, made.reservation.id


async def move(shop: Shop, old: str, relocation: Relocation, *, to: str = THERE) -> Relocated:
    return await relocation.relocate(shop.merchant, old, to, key="k", actor=ACTOR)


async def reserved(shop: Shop) -> dict[str, int]:
    """Add up what the rows of each place hold."""
    rows = await shop.inventory.rows(
        shop.merchant, [(place, sku) for place in (HERE, THERE) for sku in ("tea", "milk", "mint")]
    )
    held = {HERE: 0, THERE: 0}
    for row in rows:
        if row is not None:
            held[row.location] += row.reserved
    return held


async def record_of(shop: Shop, old: str) -> Order | None:
    the_id = order_id(
        OrderKind.MOVE, shop.merchant, f"{reservation_hash(old)} k", shop.inventory.partitions
    )
    return await shop.inventory.order_records.read(the_id)


async def nothing(shop: Shop, old: str) -> None:
    """Leave it a hold."""


async def accept(shop: Shop, old: str) -> None:
    await shop.inventory.decide(shop.merchant, old, ProposalDecision.ACCEPTED, actor=ACTOR)


async def accept_and_confirm(shop: Shop, old: str) -> None:
    await accept(shop, old)
    await confirm(shop, old)


async def confirm(shop: Shop, old: str) -> None:
    await shop.inventory.confirm(shop.merchant, old, order_ref="order 7", actor=ACTOR)


async def extend(shop: Shop, old: str) -> None:
    await shop.inventory.extend(shop.merchant, old, key="x", ttl_ms=10 * TTL_MS, actor=ACTOR)


async def amend(shop: Shop, old: str) -> None:
    await shop.inventory.amend(shop.merchant, old, [Line("tea", 1)], key="a", actor=ACTOR)


async def release(shop: Shop, old: str) -> None:
    await shop.inventory.release(shop.merchant, old, actor=ACTOR)


Act = Callable[[Shop, str], Awaitable[None]]


Make = Callable[..., Awaitable[tuple[Shop, str]]]


@pytest.mark.parametrize(
    ("hold", "before", "tea_there"),
    [
        (hold, nothing, 5),
        (hold, confirm, 5),
        (hold, nothing, 2),
        (hold, confirm, 2),
        (hold_on_terms, nothing, 5),
        (hold_on_terms, accept_and_confirm, 5),
        (hold_on_terms, nothing, 1),
    ],
)
async def test_a_move_that_is_killed_at_a_step_ends_at_one_place(
    shop: Shop, hold: Make, before: Act, tea_there: int
) -> None:
    driver, clean = OrderDriver(shop.inventory), Reaper()
    one, old = await hold(shop, tea_there=tea_there)
    await before(one, old)
    with suppress(InsufficientStock):
        await move(one, old, Relocation(one.inventory, watch=clean.watch))
    assert 6 <= len(clean.steps) < MAX_STEPS
    for at in range(len(clean.steps)):
        for comes_back in (False, True):
            one, old = await hold(shop, tea_there=tea_there)
            await before(one, old)
            killed = Reaper(at)
            with pytest.raises(Killed):
                await move(one, old, Relocation(one.inventory, watch=killed.watch))
            held = await reserved(one)
            assert held[HERE] == UNITS or held[THERE] == UNITS, clean.steps[at]
            if comes_back:
                with suppress(InsufficientStock):
                    await move(one, old, Relocation(one.inventory))
            else:
                await pass_time(one, driver, GRACE_MS + 1_000)
            record, held = await record_of(one, old), await reserved(one)
            told = f"killed {clean.steps[at]}: {record and record.state}, {held}"
            assert record is None or record.settled, told
            is_moved = record is not None and record.state is OrderState.FULFILLED
            assert held == ({HERE: 0, THERE: UNITS} if is_moved else {HERE: UNITS, THERE: 0}), told
            if comes_back:
                assert is_moved == (tea_there == 5), told
            await pass_time(one, driver, 2 * TTL_MS)
            expected = {HERE: 0, THERE: 0} if before is nothing else held
            assert await reserved(one) == expected, told
    await assert_invariants(shop.client, partitions=shop.inventory.partitions)


@pytest.mark.parametrize("meanwhile", [confirm, extend, amend, release])
async def test_what_is_done_to_a_hold_while_it_is_moved_is_not_lost(
    shop: Shop, meanwhile: Act
) -> None:
    clean = Reaper()
    one, old = await hold(shop)
    await move(one, old, Relocation(one.inventory, watch=clean.watch))
    driver = OrderDriver(shop.inventory)
    for at, step in enumerate(clean.steps):
        one, old = await hold(shop)
        with pytest.raises(Killed):
            await move(one, old, Relocation(one.inventory, watch=Reaper(at).watch))
        is_done = True
        try:
            await meanwhile(one, old)
        except ReservationEnded:
            is_done = False
        found = (await one.inventory.reservation(one.merchant, old)).order_ref
        is_handed_over = found.startswith("mov_")
        await pass_time(one, driver, GRACE_MS + 1_000)
        record, held = await record_of(one, old), await reserved(one)
        told = f"{step}: {record and record.state}, {held}"
        if meanwhile is release and not is_handed_over:
            assert held == {HERE: 0, THERE: 0}, told
            continue
        assert sorted(held.values()) in ([0, UNITS], [0, 2]), told
        if meanwhile is amend and is_done:
            assert sum(held.values()) == 2, told
        elif is_done and meanwhile is not release:
            # Confirmed or extended: it outlives the time that it had at first.
            await pass_time(one, driver, 2 * TTL_MS)
            assert await reserved(one) == held, told
    await assert_invariants(shop.client, partitions=shop.inventory.partitions)


class Interrupted(Relocation):
    """Has something done to the hold at the last moment, after it was looked at."""

    shop: Shop
    meanwhile: Act | None = None

    async def _hand_over(self, merchant: str, here: Any, record: Order) -> Any:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile(self.shop, here.id)
        return await super()._hand_over(merchant, here, record)


@pytest.mark.parametrize("meanwhile", [confirm, extend, amend, release])
async def test_what_is_done_to_a_hold_at_the_last_moment_is_not_lost(
    shop: Shop, meanwhile: Act
) -> None:
    one, old = await hold(shop)
    relocation = Interrupted(one.inventory)
    relocation.shop, relocation.meanwhile = one, meanwhile
    if meanwhile in (amend, release):
        with pytest.raises(HoldfastError):
            await move(one, old, relocation)
        held = {HERE: 2 if meanwhile is amend else 0, THERE: 0}
        assert await reserved(one) == held
        return
    moved = (await move(one, old, relocation)).result.reservation
    assert await reserved(one) == {HERE: 0, THERE: UNITS}
    if meanwhile is confirm:
        assert (moved.state, moved.order_ref) == (ReservationState.CONFIRMED, "order 7")
    else:
        assert moved.expires_at_ms is not None
        assert moved.expires_at_ms - moved.created_at_ms > 5 * TTL_MS


async def test_a_moved_hold_keeps_its_order_reference_and_its_time(shop: Shop) -> None:
    one, old = await hold(shop)
    before = await one.inventory.reservation(one.merchant, old)
    moved = await move(one, old, Relocation(one.inventory))
    after = moved.result.reservation
    assert (after.location, after.lines, after.order_ref) == (THERE, before.lines, "cart 7")
    assert after.expires_at_ms is not None
    assert before.expires_at_ms is not None
    assert 0 <= after.expires_at_ms - before.expires_at_ms < TTL_MS / 2
    assert (moved.before, moved.location_before) == (old, HERE)
    again = await move(one, old, Relocation(one.inventory))
    assert again.result.replayed
    assert again.result.reservation.id == after.id
    with pytest.raises(IdempotencyKeyReused):
        await move(one, old, Relocation(one.inventory), to="high street")
    there = Relocation(one.inventory)
    back = await there.relocate(one.merchant, after.id, HERE, key="back", actor=ACTOR)
    assert back.result.reservation.location == HERE
    assert await reserved(one) == {HERE: UNITS, THERE: 0}


async def test_a_refused_move_can_be_tried_again_under_its_key(shop: Shop) -> None:
    one, old = await hold(shop, tea_there=2)
    with pytest.raises(InsufficientStock) as refused:
        await move(one, old, Relocation(one.inventory))
    assert [(x.sku, x.requested, x.available) for x in refused.value.lines] == [("tea", 3, 2)]
    assert await reserved(one) == {HERE: UNITS, THERE: 0}
    await one.receive("tea", 1, location=THERE)
    moved = await move(one, old, Relocation(one.inventory))
    assert not moved.result.replayed
    assert await reserved(one) == {HERE: 0, THERE: UNITS}


async def test_what_cannot_be_moved_is_refused_with_the_reason(shop: Shop) -> None:
    one, old = await hold(shop)
    with pytest.raises(InvalidCommand, match="held there already"):
        await move(one, old, Relocation(one.inventory), to=HERE)
    placed = await Orders(one.inventory).place(
        one.merchant, [WantedLine("tea", 1, HERE)], key="o", actor=ACTOR
    )
    part = placed.order.parts[0].reservation
    for is_confirmed in (False, True):
        if is_confirmed:
            await Orders(one.inventory).confirm(one.merchant, placed.order.id, actor=ACTOR)
        with pytest.raises(InvalidCommand, match="a part of order ord_"):
            await move(one, part, Relocation(one.inventory))
    await release(one, old)
    with pytest.raises(ReservationEnded):
        await move(one, old, Relocation(one.inventory))


async def test_a_hold_on_terms_is_moved_on_those_of_the_new_place(shop: Shop) -> None:
    one, old = await hold_on_terms(shop)
    before = await one.inventory.reservation(one.merchant, old)
    moved = (await move(one, old, Relocation(one.inventory))).result.reservation
    assert (moved.lines, moved.stands_for, moved.proposed) == (
        (Line("tea", 3), Line("milk", 1)),
        (),
        (),
    ), "there is enough of what was asked for"
    assert (moved.channel, moved.buyer) == ("store", before.buyer)
    with pytest.raises(BuyerCapExceeded):
        await one.inventory.amend(one.merchant, moved.id, [Line("tea", 5)], key="five", actor=ACTOR)
    here, there = await one.inventory.rows(one.merchant, [(HERE, "tea"), (THERE, "tea")])
    assert here is not None
    assert there is not None
    assert [row.terms and row.terms.channels["store"].held for row in (here, there)] == [0, 3]
    await assert_invariants(shop.client, partitions=shop.inventory.partitions)


async def test_units_are_backordered_there_only_where_some_are_here(shop: Shop) -> None:
    one, old = await hold_on_terms(shop, tea_there=1)
    with pytest.raises(InsufficientStock):
        await move(one, old, Relocation(one.inventory))
    lines = [Line("tea", 3)]
    held = await one.inventory.reserve(
        one.merchant, HERE, lines, key="late", buyer="bob", actor=ACTOR
    )
    assert held.reservation.backordered
    moved = (await move(one, held.reservation.id, Relocation(one.inventory))).result.reservation
    assert (moved.lines, moved.backordered) == ((Line("tea", 3),), (Line("tea", 1),))
    await one.set_terms("tea", TERMS, location="york")
    await one.receive("tea", 5, location="york")
    plain = await one.inventory.reserve(
        one.merchant, HERE, [Line("milk", 1)], key="plain", actor=ACTOR
    )
    await one.set_terms("milk", TERMS, location="york")
    with pytest.raises(InvalidCommand, match="cap a buyer"):
        await move(one, plain.reservation.id, Relocation(one.inventory), to="york")
    await assert_invariants(shop.client, partitions=shop.inventory.partitions)


async def test_what_was_promised_by_a_day_is_by_that_day_there_or_stays(shop: Shop) -> None:
    one = Shop(shop.inventory, shop.client, f"m-{uuid4().hex[:12]}")
    monday, friday = "2026-12-07", "2026-12-11"
    await one.expect("tea", "po-1", monday, 5, location=HERE)
    await one.expect("mint", "po-1", friday, 5, location=HERE)
    await one.receive("tea", 1, location=THERE)
    await one.expect("mint", "po-2", monday, 5, location=THERE)
    late = (await one.expect("tea", "po-2", friday, 5, location=THERE)).row
    old = (await one.reserve([("tea", 3), ("mint", 2)], location=HERE, by=friday)).reservation
    assert {x.sku: x.by for x in old.promised} == {"tea": monday, "mint": friday}
    with pytest.raises(InsufficientStock):
        await move(one, old.id, Relocation(one.inventory))
    assert await one.inventory.reservation(one.merchant, old.id) == old
    assert (await one.row("tea", location=THERE)).terms == late.terms
    await one.expect("tea", "po-2", monday, 5, location=THERE)
    moved = (await move(one, old.id, Relocation(one.inventory))).result.reservation
    assert {x.sku: x.quantity for x in moved.backordered} == {"tea": 2, "mint": 2}
    assert {x.by for x in moved.promised} == {monday}
    assert (await one.row("tea", location=HERE)).backordered == 0
    await one.audit()


async def test_what_stands_for_something_here_may_do_so_there(shop: Shop) -> None:
    one, old = await hold_on_terms(shop, tea_there=2, mint_there=9)
    await accept(one, old)
    moved = (await move(one, old, Relocation(one.inventory))).result.reservation
    assert moved.lines == (Line("tea", 2), Line("milk", 1), Line("mint", 1))
    assert moved.proposed == (), "it was accepted already"
    two, old = await hold_on_terms(shop, tea_there=1, mint_there=9)
    with pytest.raises(InsufficientStock) as refused:
        await move(two, old, Relocation(two.inventory))
    assert [(x.sku, x.requested, x.available) for x in refused.value.lines] == [("tea", 3, 2)]


async def test_what_is_accepted_while_a_hold_is_moved_is_accepted_there(shop: Shop) -> None:
    clean, driver = Reaper(), OrderDriver(shop.inventory)
    one, old = await hold_on_terms(shop, tea_there=2, mint_there=1)
    moved = await move(one, old, Relocation(one.inventory, watch=clean.watch))
    assert moved.result.reservation.proposed == ("tea",)
    for at, step in enumerate(clean.steps):
        one, old = await hold_on_terms(shop, tea_there=2, mint_there=1)
        with pytest.raises(Killed):
            await move(one, old, Relocation(one.inventory, watch=Reaper(at).watch))
        try:
            await accept(one, old)
        except ReservationEnded:
            continue
        await pass_time(one, driver, GRACE_MS + 1_000)
        record = await record_of(one, old)
        id_there = old if record is None else record.parts[1].reservation
        found = await one.inventory.reservation(one.merchant, id_there)
        assert (found.state, found.proposed) == (ReservationState.HELD, ()), step
    await assert_invariants(shop.client, partitions=shop.inventory.partitions)


async def test_of_two_moves_of_one_hold_one_wins(shop: Shop) -> None:
    one, old = await hold(shop)
    await one.receive("tea", 5, location="high street")
    await one.receive("milk", 5, location="high street")
    first, second = Reaper(), Relocation(one.inventory)
    # The first one dies when its units are held, so both have theirs before either is decided.
    first.at = 4
    with pytest.raises(Killed):
        await move(one, old, Relocation(one.inventory, watch=first.watch))
    won = await second.relocate(one.merchant, old, "high street", key="k2", actor=ACTOR)
    assert won.result.reservation.state is ReservationState.HELD
    with pytest.raises(HoldfastError):
        await move(one, old, Relocation(one.inventory))
    assert await reserved(one) == {HERE: 0, THERE: 0}
