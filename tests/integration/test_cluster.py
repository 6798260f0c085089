"""The engine on a cluster of three nodes: every verb, at locations on every node."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, cast

import pytest
from redis.exceptions import ResponseError

from engine.inventory import Inventory
from engine.model import MovementType, ReservationResult, ReservationState
from engine.outcomes import BuyerCapExceeded, InsufficientStock, ReservationEnded
from tests.claims import CAP, left, stock
from tests.shop import ACTOR, Shop, new_key, open_shop
from tests.stores import RealCluster

pytestmark = pytest.mark.cluster

LOCATIONS: Final = tuple(f"store {number}" for number in range(24))


@pytest.fixture
async def chain(cluster: RealCluster, merchant: str) -> AsyncIterator[Shop]:
    """A merchant with shops on every node."""
    async with open_shop(cluster.settings, merchant) as opened:
        await cast(Any, opened.client).initialize()
        yield opened


def nodes(shop: Shop) -> set[str]:
    """Return the nodes that the locations live on."""
    client = cast(Any, shop.client)
    return {client.get_node_from_key(shop.keys(location).ledger).name for location in LOCATIONS}


async def test_the_locations_are_spread_over_all_nodes(chain: Shop) -> None:
    assert len(nodes(chain)) == 3


async def test_every_verb_at_every_location(chain: Shop) -> None:
    inventory, merchant = chain.inventory, chain.merchant

    async def trade(location: str) -> None:
        await chain.receive("tea", 10, location=location)
        await chain.move(MovementType.SALE, "milk", 2, location=location)
        await chain.move(MovementType.COUNT, "milk", 4, location=location)
        await inventory.configure(
            merchant,
            location,
            "tea",
            key=new_key(),
            safety_stock=1,
            expected_version=1,
            actor=ACTOR,
        )
        cart = [("tea", 1), ("milk", 1), ("tea", 1)]
        committed, released, kept = [
            (await chain.reserve(cart, location=location)).reservation for _ in range(3)
        ]
        with pytest.raises(InsufficientStock):
            await chain.reserve([("tea", 1), ("milk", 4)], location=location)
        await inventory.extend(merchant, kept.id, key="k", ttl_ms=3_600_000, actor=ACTOR)
        await inventory.confirm(merchant, committed.id, order_ref="order", actor=ACTOR)
        await chain.commit(committed.id, [("tea", 2)])
        await chain.release(released.id)
        with pytest.raises(ReservationEnded):
            await chain.commit(released.id)
        tea = await chain.row("tea", location=location)
        milk = await chain.row("milk", location=location)
        assert (tea.on_hand, tea.reserved, milk.on_hand, milk.reserved) == (8, 2, 4, 1)

    await asyncio.gather(*(trade(location) for location in LOCATIONS))
    rows = await inventory.rows(merchant, [(location, "tea") for location in LOCATIONS])
    assert [row and row.on_hand for row in rows] == [8] * len(LOCATIONS)
    assert (await inventory.list_locations(merchant)).items == tuple(sorted(LOCATIONS))
    for location in LOCATIONS:
        assert len((await inventory.open_reservations(merchant, location)).items) == 1
    await chain.audit()


async def test_one_unit_at_each_location_is_promised_once(
    chain: Shop, cluster: RealCluster
) -> None:
    for location in LOCATIONS:
        await chain.receive("tea", 1, location=location)
    other = Shop(await Inventory.open(cluster.settings), chain.client, chain.merchant)
    try:
        answers = await asyncio.gather(
            *(
                shop.reserve([("tea", 1)], location=location)
                for location in LOCATIONS
                for shop in (chain, other) * 5
            ),
            return_exceptions=True,
        )
    finally:
        await other.inventory.close()
    held = [a.reservation for a in answers if isinstance(a, ReservationResult)]
    assert {hold.location for hold in held} == set(LOCATIONS)
    assert len(held) == len(LOCATIONS)
    await chain.audit()


async def test_due_holds_are_taken_back_on_every_node(chain: Shop) -> None:
    holds = []
    for location in LOCATIONS[:6]:
        await chain.receive("tea", 1, location=location)
        hold = (await chain.reserve([("tea", 1)], location=location, ttl_ms=1_000)).reservation
        holds.append(hold)
        await chain.set_clock(hold.expires_at_ms or 0, location=location)
    for location in LOCATIONS[:6]:
        await chain.reserve([("tea", 1)], location=location)
    for hold in holds:
        found = await chain.inventory.reservation(chain.merchant, hold.id)
        assert found.state is ReservationState.EXPIRED
    await chain.audit()


async def test_a_node_that_forgot_the_scripts_is_told_them_again(
    chain: Shop, cluster: RealCluster
) -> None:
    for node in cluster.nodes:
        await node.run("SCRIPT", "FLUSH")
    await asyncio.gather(*(chain.receive("tea", 1, location=place) for place in LOCATIONS))
    await chain.audit()


async def test_an_undeclared_key_would_not_pass(chain: Shop) -> None:
    """What MONITOR shows on one server, the cluster enforces where the key is another node's."""
    ours, theirs = "{a}:x", "{b}:x"
    client = cast(Any, chain.client)
    assert client.get_node_from_key(ours).name != client.get_node_from_key(theirs).name
    with pytest.raises(ResponseError, match="non local key"):
        await client.execute_command(
            "EVAL", f"#!lua\nreturn redis.call('GET', '{theirs}')", 1, ours
        )


async def test_a_cap_over_all_locations_holds_over_all_nodes(chain: Shop) -> None:
    await stock(chain, "drop", places=LOCATIONS)
    answers = await asyncio.gather(
        *(
            chain.reserve(
                [("drop", 1)], location=LOCATIONS[n % len(LOCATIONS)], buyer=f"buyer {n % 4}"
            )
            for n in range(96)
        ),
        return_exceptions=True,
    )
    held = [one.reservation for one in answers if isinstance(one, ReservationResult)]
    assert all(isinstance(x, ReservationResult | BuyerCapExceeded) for x in answers), answers
    assert len(held) == 4 * CAP.units
    await asyncio.gather(*(chain.release(one.id) for one in held))
    assert [await left(chain, "drop", f"buyer {n}") for n in range(4)] == [CAP.units] * 4
    await chain.audit()
