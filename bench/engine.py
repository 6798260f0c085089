"""The product without HTTP: many callers of one `Inventory` in this process, on a real store."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from bench import servers
from bench.account import Books, check
from bench.figures import Conditions, Sample
from bench.load import Load, call_loop
from bench.shop import ACTOR, MERCHANT, MakeShop
from engine.inventory import Inventory
from engine.store import Store, connect

CALLERS: Final = 256
"""At once. The dispatcher makes its groups of them; a gateway worker has as many when as many
requests are under way."""

BATCH_CALLERS: Final = 16
"""At once, of batches: their rows fill groups all the same."""


async def reserve(
    conditions: Conditions, make_shop: MakeShop, *, through_driver: bool = False
) -> Sample:
    """Measure holding carts; `through_driver` lends redis-py's connections to a call each."""
    async with _stocked(conditions, make_shop, through_driver=through_driver) as (inventory, books):
        load = await _reserve(conditions, inventory, books)
        await check(inventory, books)
        return Sample.of_rate(load, callers=CALLERS)


async def commit(conditions: Conditions, make_shop: MakeShop) -> Sample:
    """Measure ending holds that this process made: the units leave the shelf."""
    async with _stocked(conditions, make_shop) as (inventory, books):
        ids = await _held(conditions, inventory, books)
        load = await call_loop(
            lambda number: inventory.commit(MERCHANT, ids[number], actor=ACTOR),
            callers=CALLERS,
            window=conditions.window,
            most=len(ids),
        )
        books.commit(range(len(load.statuses)))
        await check(inventory, books)
        return Sample.of_rate(load, callers=CALLERS)


async def release(conditions: Conditions, make_shop: MakeShop) -> Sample:
    """Measure ending holds that this process made: the units go back."""
    async with _stocked(conditions, make_shop) as (inventory, books):
        ids = await _held(conditions, inventory, books)
        load = await call_loop(
            lambda number: inventory.release(MERCHANT, ids[number], actor=ACTOR),
            callers=CALLERS,
            window=conditions.window,
            most=len(ids),
        )
        books.release(range(len(load.statuses)))
        await check(inventory, books)
        return Sample.of_rate(load, callers=CALLERS)


async def read(conditions: Conditions, make_shop: MakeShop) -> Sample:
    """Measure reading one row a call."""
    async with _stocked(conditions, make_shop) as (inventory, books):
        rows = books.shop.rows_by_cart()

        async def read_row(number: int) -> None:
            location, sku = rows[number % len(rows)]
            await inventory.row(MERCHANT, location, sku)

        load = await call_loop(read_row, callers=CALLERS, window=conditions.window)
        await check(inventory, books)
        return Sample.of_rate(load, callers=CALLERS)


async def read_batch(conditions: Conditions, make_shop: MakeShop) -> Sample:
    """Measure reading `shop.BATCH_ROWS` rows a call."""
    async with _stocked(conditions, make_shop) as (inventory, books):
        batches = books.shop.batches()

        async def read_rows(number: int) -> None:
            await inventory.rows(MERCHANT, batches[number % len(batches)])

        load = await call_loop(read_rows, callers=BATCH_CALLERS, window=conditions.window)
        await check(inventory, books)
        return Sample.of_rate(load, callers=BATCH_CALLERS)


@asynccontextmanager
async def _stocked(
    conditions: Conditions, make_shop: MakeShop, *, through_driver: bool = False
) -> AsyncIterator[tuple[Inventory, Books]]:
    shop = make_shop()
    async with servers.stocked_inventory(conditions, shop.rows) as inventory:
        if not through_driver:
            yield inventory, Books(shop)
            return
        settings = inventory.store.settings
        store = Store(connect(settings), settings)
        try:
            yield Inventory(store, partitions=inventory.partitions), Books(shop)
        finally:
            await store.close()


async def _held(conditions: Conditions, inventory: Inventory, books: Books) -> list[str]:
    """Hold carts for as long as a measurement lasts; return the reservations' ids."""
    load = await _reserve(conditions, inventory, books)
    shop, partitions = books.shop, inventory.partitions
    return [shop.reservation(number, partitions) for number in range(len(load.statuses))]


async def _reserve(conditions: Conditions, inventory: Inventory, books: Books) -> Load:
    """Hold one cart after the other, and book them."""
    shop = books.shop

    async def hold(number: int) -> None:
        cart, key = shop.cart(number), shop.key(number)
        await inventory.reserve(MERCHANT, cart.location, cart.lines, key=key, actor=ACTOR)

    load = await call_loop(hold, callers=CALLERS, window=conditions.window)
    books.hold(range(len(load.statuses)))
    return load
