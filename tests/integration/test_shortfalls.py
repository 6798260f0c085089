"""Shortfalls: recorded with whom they endanger, resolved, and closed with how."""

from engine.ledger import OperationKind, read_entries
from engine.model import MovementType
from engine.policies import OnShortfall, Policies, PolicyPart
from engine.shortfalls import Shortfall, ShortfallKeeper, Shortfalls
from tests.events import Till
from tests.gateways import Api, Shelf
from tests.shop import ACTOR, LOCATION, Shop


async def listed(shop: Shop) -> list[Shortfall]:
    return await Shortfalls(shop.inventory).listed(shop.merchant, LOCATION)


async def recorded(shop: Shop) -> list[tuple[int, str, list[str]]]:
    """Return (units, how, endangered reservations) of each operation on shortfalls."""
    entries = await read_entries(shop.inventory.store, shop.keys())
    return [
        (operation.detail[1], operation.detail[3], [one[0] for one in operation.detail[4]])
        for entry in entries
        for operation in entry.operations
        if operation.kind is OperationKind.SHORTFALL
    ]


async def test_a_count_that_finds_too_little_names_whom_it_endangers(own_shop: Shop) -> None:
    keeper, till = ShortfallKeeper(own_shop.inventory), Till(own_shop)
    await own_shop.receive("tea", 10)
    order = (await own_shop.reserve([("tea", 3)], order_ref="order")).reservation.id
    first = (await own_shop.reserve([("tea", 2)])).reservation.id
    other = (await own_shop.reserve([("tea", 2), ("tea", 1)])).reservation.id
    await own_shop.receive("tea", 2, location="depot")
    await own_shop.inventory.confirm(own_shop.merchant, order, actor=ACTOR)
    assert await keeper.round() == 0
    assert await till.tell("count", 4, ago=-0.5) == "applied"
    assert await keeper.round() == 1
    (short,) = await listed(own_shop)
    assert (short.units, short.how, short.on_hand, short.reserved) == (4, "count", 4, 8)
    assert [(one.reservation, one.missing) for one in short.endangered] == [(other, 3), (first, 1)]
    assert [(one.location, one.available) for one in short.elsewhere] == [("depot", 2)]
    assert await recorded(own_shop) == [(4, "count", [other, first])]
    await till.tell("count", 1, ago=-1)
    assert await keeper.round() == 1
    (short,) = await listed(own_shop)
    assert [one.reservation for one in short.endangered] == [other, first, order]
    assert short.since_ms > 0
    await own_shop.audit()


async def test_a_resolved_shortfall_closes_itself_and_says_how(own_shop: Shop) -> None:
    keeper = ShortfallKeeper(own_shop.inventory)
    ends = []
    for how in ("receive", "release", "short_pick", "count", "expire"):
        await own_shop.move(MovementType.COUNT, "tea", 4)
        held = (await own_shop.reserve([("tea", 4)])).reservation
        await own_shop.move(MovementType.SALE, "tea", 2)
        await keeper.round()
        assert [short.units for short in await listed(own_shop)] == [2]
        if how == "receive":
            await own_shop.receive("tea", 2)
            await keeper.round()
            await own_shop.release(held.id)
        elif how == "release":
            await own_shop.release(held.id)
        elif how == "short_pick":
            await own_shop.commit(held.id, [("tea", 2)])
        elif how == "count":
            await own_shop.move(MovementType.COUNT, "tea", 9)
            await keeper.round()
            await own_shop.release(held.id)
        else:
            await own_shop.set_clock((held.expires_at_ms or 0) + 1)
            await own_shop.inventory.expire_due(own_shop.keys().partition)
        await keeper.round()
        ends.append((await recorded(own_shop))[-1][:2])
        assert await listed(own_shop) == []
    assert ends == [(0, how) for how in ("receive", "release", "short_pick", "count", "expire")]
    assert await own_shop.client.execute_command("HLEN", own_shop.keys().shortfalls) == 0
    await own_shop.audit()


async def test_holds_are_released_where_the_merchant_wants_it_and_orders_never(
    own_shop: Shop,
) -> None:
    keeper = ShortfallKeeper(own_shop.inventory)
    policy = PolicyPart(on_shortfall=OnShortfall.RELEASE_NEWEST)
    await Policies(own_shop.inventory.store).write(own_shop.merchant, policy)
    await own_shop.receive("tea", 9)
    made = [(await own_shop.reserve([("tea", 3)])).reservation.id for _ in range(3)]
    await own_shop.inventory.confirm(own_shop.merchant, made[2], actor=ACTOR)
    await own_shop.move(MovementType.SALE, "tea", 4)
    await keeper.round()
    states = [(await own_shop.inventory.reservation(own_shop.merchant, one)).state for one in made]
    assert states == ["released", "released", "confirmed"]
    await keeper.round()
    await own_shop.move(MovementType.SALE, "tea", 4)
    await keeper.round()
    (short,) = await listed(own_shop)
    assert [(one.reservation, one.state) for one in short.endangered] == [(made[2], "confirmed")]
    await own_shop.audit()


async def test_a_keeper_that_died_goes_on_where_it_was(own_shop: Shop) -> None:
    await own_shop.receive("tea", 5)
    await own_shop.reserve([("tea", 5)])
    await own_shop.move(MovementType.SALE, "tea", 1)
    keeper = ShortfallKeeper(own_shop.inventory)
    await keeper.round()
    # It put the shortfall on record, and died before it could say how far it had read.
    await own_shop.client.execute_command("DEL", own_shop.keys().readers)
    await keeper.round()
    await own_shop.move(MovementType.SALE, "tea", 1)
    await keeper.round()
    assert [units for units, *_ in await recorded(own_shop)] == [1, 2]


async def test_shortfalls_over_http(own_api: Api, own_shelf: Shelf) -> None:
    await own_shelf.move("receive", "tea", 3)
    held = (await own_shelf.reserve(("tea", 3), order_ref="cart")).json()["id"]
    await own_shelf.move("sale", "tea", 2)
    await ShortfallKeeper(own_api.service.inventory).round()
    (short,) = (await own_shelf.client.get(f"{own_shelf.path}/shortfalls")).json()["data"]
    assert (short["sku"], short["units"], short["how"]) == ("tea", 2, "sale")
    assert short["ways_out"] == {"elsewhere": [], "commit_short": 1}
    assert short["endangered"] == [
        {
            "reservation": held,
            "state": "held",
            "order_ref": "cart",
            "quantity": 3,
            "missing": 2,
        }
    ]
    answer = await own_shelf.client.get(
        f"{own_shelf.merchant_path}/ledger", params={"kind": "shortfall"}
    )
    (entry,) = answer.json()["data"]
    assert entry["details"]["endangered"] == [{"reservation": held, "units": 2, "state": "held"}]
