"""Wishes of rows that have backorders, pools and caps, against trying every way to serve them.

What is served is foretold row by row, and the invariants hold: so no pool or cap is exceeded, what
waits is counted, and what was declined or ended leaves nothing behind.
"""

from typing import Any, Final
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.kits import check_kit
from engine.model import BuyerCap, Line, Pool, ProposalDecision, Reservation, Terms
from engine.outcomes import (
    BackorderUnfilled,
    BuyerCapExceeded,
    HoldfastError,
    InsufficientStock,
    InvalidCommand,
)
from tests import model
from tests.model import Ask, Deal
from tests.property.bench import Bench
from tests.property.test_stateful import (
    KIT,
    KIT_PARTS,
    SKUS,
    channels,
    first,
    pairs,
    pools,
    promise_facts,
    wish_of,
    without_itself,
)
from tests.serving import Room, Served, rows_of, serve
from tests.shop import ACTOR, LOCATION, Shop, new_key

KITS: Final = {KIT: KIT_PARTS}
ROWS: Final = (*SKUS, KIT)
"""The kit was stocked under its own SKU before it became one, perhaps."""

deals = st.builds(
    Deal,
    backorder_limit=st.sampled_from((0, 3, 9)),
    pools=pools,
    buyer_cap=st.sampled_from((None, None, (4, 5_000), (9, 60_000))),
)
stocks = st.lists(st.tuples(st.integers(0, 6), deals), min_size=4, max_size=4)
who = st.fixed_dictionaries(
    {"buyer": st.sampled_from(("ann", "ann", "ann", ""))},
    optional={"stock_only": st.booleans(), "channel": channels},
)
carts = st.tuples(st.lists(st.tuples(st.sampled_from(SKUS), st.integers(1, 3)), max_size=2), who)
alternatives = st.lists(
    st.tuples(st.sampled_from(ROWS), st.integers(1, 3), st.integers(1, 3)),
    max_size=2,
    unique_by=first,
)
wish_lists = st.lists(
    st.builds(
        model.Wish,
        sku=st.sampled_from(ROWS),
        quantity=st.integers(1, 6),
        alternatives=alternatives.map(tuple),
        approve=st.booleans(),
        whole=st.sampled_from((False, False, True)),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda wish: wish.sku,
).map(lambda wishes: [without_itself(wish) for wish in wishes])
ends = st.sampled_from(("commit", "decline and release", "decline and commit", "accept and commit"))


class Shelves(model.Shop):
    """A model of the rows alone: what an asker has room for, and what a promise takes."""

    def room(self, sku: str, ask: Ask) -> Room:
        """Return what there is of a row."""
        most, shelf, _ = self._room_for(LOCATION, sku, ask)
        return Room(most, min(most, shelf), (LOCATION, sku) in self.rows)

    def needs_buyer(self, skus: list[str]) -> bool:
        """Tell whether a row has a cap a buyer."""
        return any(self.shelf(LOCATION, sku).deal.buyer_cap for sku in skus)


async def open_the_shop(bench: Bench, stock: list[tuple[int, Deal]]) -> tuple[Shop, Shelves]:
    """Return the shop of a new merchant, and its model."""
    shop = Shop(bench.inventory, bench.client, f"m-{uuid4().hex[:12]}")
    shelves = Shelves(lambda _: 0, now_ms=0, kits={KIT: KIT_PARTS})
    kit = check_kit(KIT, [Line(sku, units) for sku, units in KIT_PARTS.items()])
    for sku, (quantity, deal) in zip(ROWS, stock, strict=True):
        if quantity:
            await shop.receive(sku, quantity)
            shelves.move(LOCATION, sku, "receive", quantity, key=sku)
        if not deal.is_plain:
            cap = None if deal.buyer_cap is None else BuyerCap(*deal.buyer_cap)
            its_pools = {name: Pool(*pool) for name, pool in deal.pools.items()}
            await shop.set_terms(sku, Terms(deal.backorder_limit, its_pools, cap))
            shelves.set_terms(
                LOCATION,
                sku,
                key=sku,
                expected_version=shelves.shelf(LOCATION, sku).version,
                backorder_limit=deal.backorder_limit,
                pools=deal.pools,
                buyer_cap=deal.buyer_cap,
            )
    await shop.inventory.kits.write(shop.merchant, {KIT: kit}, actor=ACTOR)
    await shop.inventory.kits.known(shop.merchant)
    return shop, shelves


async def reserve(shop: Shop, shelves: Shelves, cart: tuple[Any, dict[str, Any]]) -> str:
    """Hold a cart of plain lines on both sides; return its id, or ''."""
    lines, ask = cart
    if not lines:
        return ""
    wanted = shelves.reserve(LOCATION, lines, name=new_key(), ttl_ms=60_000, **ask)
    if wanted["code"] != "ok":
        with pytest.raises(HoldfastError) as refused:
            await shop.reserve(lines, **ask)
        assert refused.value.code == wanted["code"]
        return ""
    made = await shop.reserve(lines, **ask)
    assert pairs(made.reservation.lines) == wanted["lines"]
    return made.reservation.id


def check_refusal(
    refusal: HoldfastError, wanted: Served, shelves: Shelves, ask: Ask, rows: list[str]
) -> None:
    """Check why wishes were refused."""
    if isinstance(refusal, InvalidCommand):
        assert refusal.field == "buyer"
        assert not ask[2]
        assert shelves.needs_buyer(rows)
        return
    assert isinstance(refusal, InsufficientStock | BuyerCapExceeded)
    told = [(x.sku, x.requested, x.available, x.known) for x in refusal.lines]
    assert told == wanted.short
    assert wanted.short


async def check_rows(shop: Shop, shelves: Shelves, wanted: Served, rooms: dict[str, Room]) -> None:
    """Check that rows hold what was served, what is there first and the rest as backorders."""
    for sku, units in wanted.units.items():
        shelf = shelves.shelf(LOCATION, sku)
        there = min(units, rooms[sku].shelf)
        (row,) = await shop.inventory.rows(shop.merchant, [(LOCATION, sku)])
        found = (row.reserved, row.backordered) if row else (0, 0)
        assert found == (shelf.reserved + there, shelf.backordered + units - there)
        for name, (cap, _) in shelf.deal.pools.items():
            held = row.terms.channels[name].held if row and row.terms else 0
            assert cap is None or held <= max(cap, shelf.held.get(name, 0))


async def end(shop: Shop, made: Reservation, how: str) -> None:
    """Decide what is proposed, and end the reservation."""
    for decision in ProposalDecision:
        if made.proposed and how.startswith(decision[:6]):
            decided = await shop.inventory.decide(shop.merchant, made.id, decision, actor=ACTOR)
            made = decided.reservation
            await shop.audit()
    if made.ended_at_ms is not None:
        return
    if how.endswith("commit") and not made.proposed:
        try:
            await shop.commit(made.id)
        except BackorderUnfilled:
            assert made.backordered
        else:
            return
    await shop.release(made.id)


async def deal(
    bench: Bench,
    stock: list[tuple[int, Deal]],
    before: list[tuple[Any, dict[str, Any]]],
    wishes: list[model.Wish],
    said: dict[str, Any],
    *,
    partial: bool,
    how: str,
) -> None:
    """Make wishes after some carts, compare what serves them, and end all of it."""
    shop, shelves = await open_the_shop(bench, stock)
    held = [await reserve(shop, shelves, cart) for cart in before]
    channel = said.get("channel", "") or "online"
    ask = (said.get("stock_only", False), channel, said.get("buyer", ""))
    rows = rows_of(wishes, KITS)
    rooms = {sku: shelves.room(sku, ask) for sku in rows}
    wanted = serve(wishes, KITS, rooms, partial=partial)
    try:
        result = await shop.inventory.reserve(
            shop.merchant,
            LOCATION,
            [wish_of(wish) for wish in wishes],
            key=new_key(),
            partial=partial,
            actor=ACTOR,
            **said,
        )
    except HoldfastError as refusal:
        check_refusal(refusal, wanted, shelves, ask, rows)
    else:
        assert ask[2] or not shelves.needs_buyer(rows)
        made = result.reservation
        facts = promise_facts(made)
        assert facts["lines"] == tuple((s, n) for s, n in wanted.units.items() if n)
        assert facts["missing"] == tuple(wanted.missing)
        assert facts["stands_for"] == tuple(wanted.stands_for)
        assert facts["proposed"] == tuple(wanted.proposed)
        assert partial or not wanted.short
        await check_rows(shop, shelves, wanted, rooms)
        await shop.audit()
        await end(shop, made, how)
    for the_id in filter(None, held):
        await shop.release(the_id)
    await shop.audit()
    for row in await shop.inventory.rows(shop.merchant, [(LOCATION, sku) for sku in ROWS]):
        if row is not None:
            assert (row.reserved, row.backordered) == (0, 0)
            its_pools = row.terms.channels.values() if row.terms else ()
            assert not any(pool.held for pool in its_pools)


@pytest.mark.slow
def test_wishes_are_served_by_the_rule_on_whatever_terms(bench: Bench) -> None:
    @given(
        stock=stocks,
        before=st.lists(carts, max_size=2),
        wishes=wish_lists,
        said=who,
        partial=st.booleans(),
        how=ends,
    )
    def check(**drawn: Any) -> None:
        bench.run(deal(bench, **drawn))

    check()
