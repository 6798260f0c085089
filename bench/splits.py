"""A split row on a local cluster: what servers spend on a reserve, and a crowd at the last units.

Three servers, and the callers that keep them busy, share the machine's cores: so the rate says how
much of the machine's time a reserve takes, and not what three machines would do. What the busiest
server spends on a reserve is what bounds the row, wherever the servers are.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from bench.account import AccountWrong
from bench.figures import Conditions, Sample, Samples
from bench.load import call_loop
from bench.shop import ACTOR, MERCHANT, OPENING_UNITS, SEED
from engine.inventory import Inventory
from engine.model import Line, Movement, MovementType
from engine.outcomes import InsufficientStock, Overloaded
from engine.splits import SplitKeeper
from tests.stores import RealCluster, set_up

PARTITIONS: Final = 64
CALLERS: Final = 512
"""At once, so that the groups at each part are as large as those of a row that is not split."""

NODES: Final = 3
LOCATION: Final = "store-0"
SKU: Final = "sku-0"
ROW: Final = (MERCHANT, LOCATION, SKU)

LAST_UNITS: Final = 100
SHOPPERS: Final = 300
CROWD_PARTS: Final = 4
CROWD_ROUNDS: Final = 40
CROWD_ROUNDS_WHEN_QUICK: Final = 5
ENGINES: Final = 3
"""Each stands for a gateway's process: they know nothing of what the others are moving."""


async def reserve(conditions: Conditions, *, parts: int) -> Samples:
    """Measure reserves of one row over so many parts, and what its servers spend on them."""
    async with _inventories(conditions, 1) as (inventory,):
        await _receive(inventory, OPENING_UNITS)
        if parts > 1:
            await inventory.splits.change(ROW, parts, actor=ACTOR)

        async def hold(number: int) -> None:
            await inventory.reserve(
                MERCHANT, LOCATION, [Line(SKU, 1)], key=str(number), actor=ACTOR
            )

        before = await _cpu_seconds(inventory)
        load = await call_loop(hold, callers=CALLERS, window=conditions.window)
        spent = [
            now - then for now, then in zip(await _cpu_seconds(inventory), before, strict=True)
        ]
        count = len(load.statuses)
        await _check(inventory, reserved=count, on_hand=OPENING_UNITS)
    return {
        f"split.reserve.{parts}": [Sample.of_rate(load, callers=CALLERS, servers=NODES)],
        f"split.busiest.{parts}": [
            Sample(value=max(spent) / count * 1e6, details={"reserves": count})
        ],
        f"split.servers.{parts}": [
            Sample(value=sum(spent) / count * 1e6, details={"reserves": count})
        ],
    }


async def last_units(conditions: Conditions) -> Samples:
    """Sell 100 units over four parts to 300 shoppers at once, again and again.

    Half of the rounds give some units back meanwhile. A refusal is wrong where units are left in
    the end: as many refusals as that were not needed.
    """
    rounds = CROWD_ROUNDS_WHEN_QUICK if conditions.quick else CROWD_ROUNDS
    chance = random.Random(SEED)
    refused = wrong = busy = 0
    async with _inventories(conditions, ENGINES) as inventories:
        await _receive(inventories[0], 1)
        await inventories[0].splits.change(ROW, CROWD_PARTS, actor=ACTOR)
        sold = 0
        for number in range(rounds):
            await _count(inventories[0], sold + LAST_UNITS)
            await SplitKeeper(inventories[0].splits).round()
            answers = await _crowd(inventories, number, gives_back=number % 2, chance=chance)
            held = answers.count("held") - answers.count("released")
            for inventory in inventories:
                await inventory.splits.flush()
            left = LAST_UNITS - held
            if left < 0:
                raise AccountWrong(f"round {number}: {-left} units were sold twice")
            await _check(inventories[0], reserved=sold + held, on_hand=sold + LAST_UNITS)
            refused += answers.count("refused")
            busy += answers.count("busy")
            wrong += min(left, answers.count("refused"))
            sold += held
    details: dict[str, float | str] = {
        "refusals": refused,
        "refused_wrongly": wrong,
        "busy": busy,
        "rounds": rounds,
    }
    return {"split.wrong_refusals": [Sample(value=100 * wrong / max(1, refused), details=details)]}


async def _crowd(
    inventories: Sequence[Inventory], number: int, *, gives_back: int, chance: random.Random
) -> list[str]:
    """Have all shoppers ask at once; with `gives_back` every tenth changes their mind."""
    answers: list[str] = []

    async def shopper(who: int) -> None:
        inventory = chance.choice(inventories)
        try:
            made = await inventory.reserve(
                MERCHANT, LOCATION, [Line(SKU, 1)], key=f"{number}-{who}", actor=ACTOR
            )
        except InsufficientStock:
            answers.append("refused")
            return
        except Overloaded:
            answers.append("busy")
            return
        answers.append("held")
        if gives_back and who % 10 == 0:
            await inventory.release(MERCHANT, made.reservation.id, actor=ACTOR)
            answers.append("released")

    await asyncio.gather(*(shopper(who) for who in range(SHOPPERS)))
    return answers


@asynccontextmanager
async def _inventories(conditions: Conditions, count: int) -> AsyncIterator[list[Inventory]]:
    """Start a cluster of its own, and open engines on it."""
    async with AsyncExitStack() as stack:
        path = stack.enter_context(TemporaryDirectory(dir=conditions.work_dir))
        cluster = RealCluster(Path(path))
        stack.push_async_callback(cluster.stop)
        await cluster.start()
        await set_up(cluster.settings, partitions=PARTITIONS)
        opened = []
        for _ in range(count):
            opened.append(await Inventory.open(cluster.settings))
            stack.push_async_callback(opened[-1].close)
        yield opened


async def _cpu_seconds(inventory: Inventory) -> list[float]:
    """Return the time that each server has spent so far."""
    client: Any = inventory.store.client
    found = []
    for node in sorted(client.get_primaries(), key=lambda node: node.name):
        info = await client.execute_command("INFO", "cpu", target_nodes=node)
        if isinstance(info, bytes):
            text = info.decode()
            info = dict(line.split(":") for line in text.split("\r\n") if ":" in line)
        found.append(float(info["used_cpu_user"]) + float(info["used_cpu_sys"]))
    return found


async def _receive(inventory: Inventory, units: int) -> None:
    await _move(inventory, MovementType.RECEIVE, units)


async def _count(inventory: Inventory, units: int) -> None:
    await _move(inventory, MovementType.COUNT, units)


async def _move(inventory: Inventory, kind: MovementType, units: int) -> None:
    movement = Movement(
        key=f"{kind} {units}", location=LOCATION, type=kind, sku=SKU, quantity=units
    )
    await inventory.move(MERCHANT, movement, actor=ACTOR)


async def _check(inventory: Inventory, *, reserved: int, on_hand: int) -> None:
    row = await inventory.row(MERCHANT, LOCATION, SKU)
    if (row.reserved, row.on_hand) != (reserved, on_hand):
        raise AccountWrong(f"the row is {row}, where {reserved} units were acknowledged as held")
    holds = await inventory.store.read([("ZCARD", keys.holds) for keys in inventory.keys])
    if sum(holds) != reserved:
        raise AccountWrong(f"{sum(holds)} live holds, where {reserved} were acknowledged")
