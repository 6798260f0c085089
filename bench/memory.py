"""What the store holds in memory, in bytes of `used_memory`, and how long it takes to come up.

Rows are received through the engine, so the store also keeps each receipt's idempotency record (for
a day) and ledger entry (until it is archived). To tell them apart, one kind after the other is
deleted, and each kind is what the memory shrank by.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Final

from bench import servers
from bench.account import Books, Fold, check
from bench.figures import Conditions, Sample
from bench.shop import ACTOR, LOCATIONS, MERCHANT, Shop, rows_of, stock_up, uniform
from engine.inventory import Inventory
from holdfast.embedded import EmbeddedStore

HOLDS: Final = 100_000
HOLDS_WHEN_QUICK: Final = 10_000
HOLDS_AT_ONCE: Final = 256

STARTS: Final = 3
"""Of the store on the same data: how long reading it takes varies."""

SCAN_KEYS: Final = 1_000
MAX_SCANS: Final = 100_000

STEADY_READINGS: Final = 4
STEADY_SECONDS: Final = 0.1
MAX_READINGS: Final = 300
"""Hash tables are resized in the background for a while after a bulk of changes."""

EVERYTHING: Final = "everything"
ROW: Final = "row"
RECORD: Final = "record"
HOLD: Final = "hold"
OPERATION: Final = "operation"


async def rows(conditions: Conditions, count: int) -> Mapping[str, Sample]:
    """Measure EVERYTHING that `count` received rows take, a ROW, and an idempotency RECORD."""
    async with servers.store(conditions) as server, servers.inventory(server.settings) as inventory:
        empty_bytes = await _used_bytes(inventory)
        await _stock_up(inventory, count)
        return await _take_apart(inventory, empty_bytes, count)


async def rows_and_starts(
    conditions: Conditions, count: int
) -> tuple[Mapping[str, Sample], list[Sample]]:
    """Measure as `rows` does, and how long the store then takes to start, in seconds."""
    async with servers.store(conditions) as server, servers.inventory(server.settings) as inventory:
        empty_bytes = await _used_bytes(inventory)
        await _stock_up(inventory, count)
        starts = [await _start_again(server) for _ in range(STARTS)]
        return await _take_apart(inventory, empty_bytes, count), starts


async def holds(conditions: Conditions) -> Mapping[str, Sample]:
    """Measure a live HOLD of one line with all its indexes, and its OPERATION in the ledger."""
    count = HOLDS_WHEN_QUICK if conditions.quick else HOLDS
    shop = uniform()
    async with servers.stocked_inventory(conditions, shop.rows) as inventory:
        fold = Fold()
        await fold.add_all(inventory)
        await _delete_ledgers(inventory)
        before_bytes = await _used_bytes(inventory)
        await hold_all(inventory, shop, count)
        after_bytes = await _used_bytes(inventory)
        books = Books(shop)
        books.hold(range(count))
        await check(inventory, books, fold)
        await _delete_ledgers(inventory)
        without_ledgers_bytes = await _used_bytes(inventory)
        return {
            HOLD: Sample(value=(without_ledgers_bytes - before_bytes) / count),
            OPERATION: Sample(value=(after_bytes - without_ledgers_bytes) / count),
        }


async def _stock_up(inventory: Inventory, count: int) -> None:
    shop = Shop(rows_of(LOCATIONS, count // LOCATIONS), [])
    await stock_up(inventory, shop.rows)
    await check(inventory, Books(shop))


async def hold_all(inventory: Inventory, shop: Shop, count: int) -> None:
    """Hold the first `count` carts of a shop."""
    numbers = iter(range(count))

    async def hold() -> None:
        for number in numbers:
            cart, key = shop.cart(number), shop.key(number)
            await inventory.reserve(MERCHANT, cart.location, cart.lines, key=key, actor=ACTOR)

    async with asyncio.TaskGroup() as group:
        for _ in range(HOLDS_AT_ONCE):
            group.create_task(hold())


async def _take_apart(inventory: Inventory, empty_bytes: int, count: int) -> Mapping[str, Sample]:
    full_bytes = await _used_bytes(inventory)
    await _delete_records(inventory)
    without_records_bytes = await _used_bytes(inventory)
    await _delete_ledgers(inventory)
    rows_bytes = await _used_bytes(inventory)
    return {
        EVERYTHING: Sample(value=(full_bytes - empty_bytes) / count),
        ROW: Sample(value=(rows_bytes - empty_bytes) / count),
        RECORD: Sample(value=(full_bytes - without_records_bytes) / count),
    }


async def _start_again(server: EmbeddedStore) -> Sample:
    await server.stop()
    began_at = time.perf_counter()
    await server.start()
    return Sample(value=time.perf_counter() - began_at)


async def _used_bytes(inventory: Inventory) -> int:
    """Return the memory of the data, once it no longer changes."""
    steady = 0
    last_bytes = -1
    for _ in range(MAX_READINGS):
        facts = await inventory.store.client.execute_command("INFO", "memory")
        # What connections and unwritten commands take comes and goes with them.
        used_bytes = int(facts["used_memory"])
        used_bytes -= int(facts["mem_clients_normal"]) + int(facts["mem_aof_buffer"])
        steady = steady + 1 if used_bytes == last_bytes else 0
        if steady == STEADY_READINGS:
            return used_bytes
        last_bytes = used_bytes
        await asyncio.sleep(STEADY_SECONDS)
    raise servers.ServerFailed("the store's memory does not come to rest")


async def _delete_ledgers(inventory: Inventory) -> None:
    client = inventory.store.client
    for keys in inventory.keys:
        await client.execute_command("DEL", keys.ledger)


async def _delete_records(inventory: Inventory) -> None:
    """Delete the idempotency records, which are the only strings of a store without a sweeper."""
    client = inventory.store.client
    cursor = 0
    for _ in range(MAX_SCANS):
        cursor, found = await client.execute_command(
            "SCAN", cursor, "COUNT", SCAN_KEYS, "TYPE", "string"
        )
        if found:
            await client.execute_command("DEL", *found)
        if cursor == 0:
            return
    raise servers.ServerFailed("the scan of the store's keys does not end")
