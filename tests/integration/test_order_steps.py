"""Orders whose coordinator dies at each single step: whole or not at all, and no unit is stuck.

The steps are not listed here: a first run counts them, so a new step is tested by itself.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Final
from uuid import uuid4

import msgspec
import pytest

from engine.keys import order_id
from engine.order_driver import OrderDriver
from engine.order_records import GRACE_MS, Aim, OrderKind, OrderState, PartState, WantedLine
from engine.orders import Orders
from engine.outcomes import InsufficientStock, OrderNotFound
from tests.invariants import assert_invariants
from tests.shop import ACTOR, Shop, open_shop
from tests.stores import VALKEY, MakeStore, set_up

WANTED: Final = [
    WantedLine("tea", 6),
    WantedLine("milk", 1, "harbour"),
    WantedLine("soap", 2, "depot"),
]
STOCK: Final = {"depot": {"tea": 4, "soap": 5}, "high street": {"tea": 3}, "harbour": {"milk": 2}}
TOO_MUCH: Final = WantedLine("tea", 9, "high street")
UNITS: Final = sum(sum(units.values()) for units in STOCK.values())
WANTED_UNITS: Final = sum(line.quantity for line in WANTED)
TTL_MS: Final = 60_000
MAX_STEPS: Final = 100


class Killed(BaseException):
    """The coordinator's process ended here."""


class Reaper:
    """Counts the steps, and ends the process at one of them."""

    def __init__(self, at: int = -1) -> None:
        """Let everybody live unless told at which step to kill."""
        self.at = at
        self.steps: list[str] = []

    def watch(self, step: str) -> None:
        """Be told of a step."""
        if len(self.steps) == self.at:
            self.at = -1
            raise Killed(step)
        self.steps.append(step)


@pytest.fixture
async def shop(make_store: MakeStore) -> AsyncIterator[Shop]:
    """A shop on a store of its own, since the tests move its clock; with several partitions."""
    store = make_store(VALKEY)
    await store.start()
    await set_up(store.settings, partitions=8)
    async with open_shop(store.settings) as opened:
        yield opened


async def fill(shop: Shop) -> Shop:
    """Return the shop of a new merchant with the same stock."""
    one = Shop(shop.inventory, shop.client, f"m-{uuid4().hex[:12]}")
    for location, units in STOCK.items():
        for sku, quantity in units.items():
            await one.receive(sku, quantity, location=location)
    return one


async def pass_time(shop: Shop, driver: OrderDriver, ms: int) -> None:
    """Move the clock of every partition, and let everybody who works behind the counter work."""
    seconds, _ = await shop.client.execute_command("TIME")
    for keys in shop.inventory.keys:
        mark = await shop.client.execute_command("HGET", keys.meta, "clock_ms")
        now_ms = max(int(mark or 0), int(seconds) * 1000)
        await shop.client.execute_command("HSET", keys.meta, "clock_ms", str(now_ms + ms))
    for _ in range(2):
        await driver.round()
        for keys in shop.inventory.keys:
            await shop.inventory.expire_due(keys.partition)


async def reserved(shop: Shop) -> int:
    """Add up what all rows hold."""
    wanted = [(location, sku) for location, units in STOCK.items() for sku in units]
    rows = await shop.inventory.rows(shop.merchant, wanted)
    return sum(row.reserved for row in rows if row is not None)


async def on_hand(shop: Shop) -> int:
    wanted = [(location, sku) for location, units in STOCK.items() for sku in units]
    return sum(row.on_hand for row in await shop.inventory.rows(shop.merchant, wanted) if row)


class Stale(Orders):
    """Takes the depot for fuller than it is, once, as a stale index would."""

    told = False

    async def _candidates(self, merchant: str, wanted: Any, known: Any) -> Any:
        found = await super()._candidates(merchant, wanted, known)
        if self.told:
            return found
        self.told = True
        return [
            (msgspec.structs.replace(one, available={"tea": 9}), why)
            if one.location == "depot"
            else (one, why)
            for one, why in found
        ]


async def place(shop: Shop, orders: Orders) -> None:
    await orders.place(shop.merchant, WANTED, key="k", ttl_ms=TTL_MS, actor=ACTOR)


async def place_in_vain(shop: Shop, orders: Orders) -> None:
    with suppress(InsufficientStock):
        await orders.place(
            shop.merchant,
            [WantedLine("milk", 1, "harbour"), WantedLine("soap", 1, "depot"), TOO_MUCH],
            key="k",
            ttl_ms=TTL_MS,
            actor=ACTOR,
        )


async def confirm(shop: Shop, orders: Orders) -> None:
    await orders.confirm(shop.merchant, made(shop), actor=ACTOR)


async def cancel(shop: Shop, orders: Orders) -> None:
    await orders.cancel(shop.merchant, made(shop), reason="changed my mind", actor=ACTOR)


async def commit(shop: Shop, orders: Orders) -> None:
    await orders.commit(shop.merchant, made(shop), actor=ACTOR)


Act = Callable[[Shop, Orders], Awaitable[None]]

SCENARIOS: Final[dict[str, tuple[tuple[Act, ...], Act, type[Orders]]]] = {
    "place": ((), place, Orders),
    "place by a stale plan": ((), place, Stale),
    "place in vain": ((), place_in_vain, Orders),
    "confirm": ((place,), confirm, Orders),
    "cancel a held one": ((place,), cancel, Orders),
    "cancel a confirmed one": ((place, confirm), cancel, Orders),
    "commit": ((place, confirm), commit, Orders),
    "commit a held one": ((place,), commit, Orders),
}
"""What happens before, what is killed at each step, and by whom it is done."""


def made(shop: Shop) -> str:
    return order_id(OrderKind.ORDER, shop.merchant, "k", shop.inventory.partitions)


async def check(shop: Shop) -> OrderState | None:
    """Check that the order is whole or not there; return what it is."""
    order = await shop.inventory.order_records.read(made(shop))
    if order is None:
        assert (await reserved(shop), await on_hand(shop)) == (0, UNITS)
        return None
    states = {part.state for part in order.parts if part.aim is Aim.NONE}
    held, there = await reserved(shop), await on_hand(shop)
    what = f"{order.state} {[(part.location, part.state) for part in order.parts]}"
    if order.state is OrderState.HELD:
        assert (held, there) == (WANTED_UNITS, UNITS), what
    elif order.state is OrderState.CONFIRMED:
        assert (held, there) == (WANTED_UNITS, UNITS), what
        assert PartState.CONFIRMED in states, what
    elif order.state is OrderState.FULFILLED:
        assert (held, there) == (0, UNITS - WANTED_UNITS), what
    else:
        assert order.state.gives_back, what
        assert held == 0, what
    assert order.settled, what
    return order.state


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_an_order_that_is_killed_at_a_step_ends_whole_or_not_at_all(
    shop: Shop, scenario: str
) -> None:
    before, act, orders = SCENARIOS[scenario]
    driver = OrderDriver(shop.inventory)
    clean = Reaper()
    one = await fill(shop)
    for earlier in before:
        await earlier(one, Orders(one.inventory))
    await act(one, orders(one.inventory, watch=clean.watch))
    assert 2 <= len(clean.steps) < MAX_STEPS
    for at in range(len(clean.steps)):
        for comes_back in (False, True):
            one = await fill(shop)
            for earlier in before:
                await earlier(one, Orders(one.inventory))
            reaper = Reaper(at)
            with pytest.raises(Killed):
                await act(one, orders(one.inventory, watch=reaper.watch))
            assert reaper.steps == clean.steps[:at]
            if comes_back:
                with suppress(OrderNotFound):
                    await act(one, Orders(one.inventory))
            else:
                await pass_time(one, driver, GRACE_MS + 1_000)
            first = await check(one)
            if comes_back and scenario != "place in vain":
                assert first is not None, clean.steps[at]
            await pass_time(one, driver, TTL_MS + GRACE_MS)
            last = await check(one)
            told = f"killed {clean.steps[at]}: {first} and then {last}"
            assert last not in (OrderState.PLACING, OrderState.HELD), told
            if first in (OrderState.CONFIRMED, OrderState.FULFILLED):
                assert last == first, told
    await assert_invariants(shop.client, partitions=shop.inventory.partitions)
