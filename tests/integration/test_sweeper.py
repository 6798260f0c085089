"""The sweeper on a real store: what is due comes back, and a jump of the clock stops it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from engine.clock import TOLERANCE_MS, ClockGuard
from engine.expiry import PUT_OFF_SECONDS
from engine.inventory import Inventory
from engine.limits import MAX_GROUP_COMMANDS
from engine.model import Line, Movement, MovementType, ReservationState
from engine.order_records import WantedLine
from engine.orders import Orders
from engine.store import StoreSettings, pairs
from engine.sweeper import Sweeper, sweep_warnings
from tests.stores import MakeStore, set_up

WAIT_SECONDS = 10.0


@pytest.fixture
async def inventory(make_store: MakeStore) -> AsyncIterator[Inventory]:
    """A store of its own: the sweeper looks at all of it, and tells of itself in one key."""
    store = make_store()
    await store.start()
    settings: StoreSettings = store.settings
    await set_up(settings)
    opened = await Inventory.open(settings)
    yield opened
    await opened.close()


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait, bounded, until a condition of the store holds."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not await holds():  # noqa: ASYNC110 - another process's store signals nothing
            await asyncio.sleep(0.02)


async def hold(inventory: Inventory, merchant: str, *, ttl_ms: int) -> str:
    await inventory.move(
        merchant,
        Movement(key="m", location="here", type=MovementType.RECEIVE, sku="a", quantity=5),
        actor="test",
    )
    held = await inventory.reserve(
        merchant, "here", [Line("a", 2)], key="k", ttl_ms=ttl_ms, actor="test"
    )
    return held.reservation.id


async def state_of(inventory: Inventory, merchant: str, reservation: str) -> ReservationState:
    return (await inventory.reservation(merchant, reservation)).state


async def test_a_running_sweeper_gives_due_holds_back_and_tells_that_it_runs(
    inventory: Inventory, merchant: str
) -> None:
    assert "sweeper_missing" in (await sweep_warnings(inventory.store))[0]
    reservation = await hold(inventory, merchant, ttl_ms=1_000)
    stop = asyncio.Event()
    running = asyncio.create_task(Sweeper(inventory).run(stop))

    async def has_expired() -> bool:
        return await state_of(inventory, merchant, reservation) is ReservationState.EXPIRED

    async def tells_nothing_bad() -> bool:
        return not await sweep_warnings(inventory.store)

    await until(has_expired)
    row = await inventory.row(merchant, "here", "a")
    assert (row.on_hand, row.reserved, row.available) == (5, 0, 5)
    ended_at_ms = (await inventory.reservation(merchant, reservation)).ended_at_ms
    assert ended_at_ms is not None
    await until(tells_nothing_bad)
    stop.set()
    await running


async def test_a_damaged_order_keeps_no_other_hold_from_being_taken_back(
    inventory: Inventory, merchant: str
) -> None:
    await hold(inventory, merchant, ttl_ms=60_000)
    placed = await Orders(inventory).place(
        merchant, [WantedLine("a", 1, "here")], key="o", ttl_ms=1_000, actor="test"
    )
    (part,) = placed.order.parts
    sane = await inventory.reserve(
        merchant, "here", [Line("a", 1)], key="sane", ttl_ms=1_000, actor="test"
    )
    keys = inventory.keys[int(placed.order.id.split("_")[1])]
    await inventory.store.read([("HSET", keys.order(placed.order.id), "plan", "x")])
    sweeper = Sweeper(inventory)

    async def is_back() -> bool:
        await sweeper.sweep()
        return await state_of(inventory, merchant, sane.reservation.id) == "expired"

    with capture_logs() as logged:
        await until(is_back)
        await sweeper.sweep()
    assert await state_of(inventory, merchant, part.reservation) == "held"
    named = [one["reservation"] for one in logged if one["event"] == "a hold stays"]
    assert named == [part.reservation]
    # Whoever looks into it can still give its units back.
    await inventory.release(merchant, part.reservation, reason="damaged", actor="test")
    assert await state_of(inventory, merchant, part.reservation) == "released"


async def test_however_many_holds_stay_the_others_are_taken_back(
    inventory: Inventory, merchant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = MAX_GROUP_COMMANDS + 2
    await inventory.move_many(
        merchant,
        [
            Movement(key=sku, location="here", type=MovementType.RECEIVE, sku=sku, quantity=count)
            for sku in ("bad", "sane")
        ],
        actor="test",
    )

    async def hold_one(sku: str, key: str) -> str:
        held = await inventory.reserve(
            merchant, "here", [Line(sku, 1)], key=key, ttl_ms=1_000, actor="test"
        )
        return held.reservation.id

    staying = await asyncio.gather(*(hold_one("bad", f"bad-{n}") for n in range(count)))
    sane = await hold_one("sane", "sane")
    keys = inventory.keys_of(merchant, "here")
    row = keys.stock(merchant, "here", "bad")
    # And one that the index names although it is not there.
    lost = "rsv_0_" + "0" * 24
    (kept,) = await inventory.store.read([("HGETALL", row)])
    await inventory.store.read([("SET", row, "x"), ("ZADD", keys.holds, 1, lost)])
    now = [0.0]
    monkeypatch.setattr(inventory._expiry, "_monotonic", lambda: now[0])
    sweeper = Sweeper(inventory)

    async def is_back() -> bool:
        await sweeper.sweep()
        return await state_of(inventory, merchant, sane) == "expired"

    await until(is_back)
    assert await sweeper.sweep() == 0
    await sweeper._tell()
    (warning,) = await sweep_warnings(inventory.store)
    assert warning.startswith(f"holds_staying: {count + 1} holds")

    # Once they are mended they come back like any other, a little later.
    fields = [part for pair in pairs(kept) for part in pair]
    await inventory.store.read([("DEL", row), ("ZREM", keys.holds, lost)])
    await inventory.store.read([("HSET", row, *fields)])
    assert await sweeper.sweep() == 0
    now[0] += PUT_OFF_SECONDS
    while await sweeper.sweep():
        pass
    assert {await state_of(inventory, merchant, the_id) for the_id in staying} == {"expired"}
    sweeper._told_at_ms = 0.0
    await sweeper._tell()
    assert not await sweep_warnings(inventory.store)


@pytest.mark.parametrize("jump_ms", [-3_600_000, 25 * 3_600_000])
async def test_a_jump_of_the_clock_stops_the_sweep_and_does_not_empty_the_shop(
    inventory: Inventory, merchant: str, monkeypatch: pytest.MonkeyPatch, jump_ms: int
) -> None:
    # To a guard, a store that jumped forward is a machine that fell back by as much.
    machine: Any = {"seconds": 1_000_000.0}
    guard = ClockGuard(lambda: machine["seconds"])
    monkeypatch.setattr(inventory._expiry, "_clock", guard)
    sweeper = Sweeper(inventory)
    assert await sweeper.sweep() == 0
    reservation = await hold(inventory, merchant, ttl_ms=1_000)
    machine["seconds"] -= jump_ms / 1_000
    assert (await inventory.expire_due(0)).clock_jump_ms != 0
    assert abs(guard.jump_ms - jump_ms) < 2 * TOLERANCE_MS
    stop = asyncio.Event()
    running = asyncio.create_task(sweeper.run(stop))

    async def tells_of_the_jump() -> bool:
        return any("clock_jumped" in text for text in await sweep_warnings(inventory.store))

    await until(tells_of_the_jump)
    assert await state_of(inventory, merchant, reservation) is ReservationState.HELD
    machine["seconds"] += jump_ms / 1_000
    stop.set()
    await running
