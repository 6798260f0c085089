"""A process of its own that buys of a split row and spreads it anew, to be killed while it does.

Run as `python -m tests.faults.split_worker <JSON>`. It prints each key that was acknowledged, with
the id of its reservation.
"""

import asyncio
import random
import sys
from typing import Final

import msgspec

from engine.inventory import Inventory
from engine.outcomes import HoldfastError, Overloaded
from engine.store import StoreSettings
from tests.callers import persistently
from tests.shop import Shop

CALLERS: Final = 8
LOCATION: Final = "high street"


class Job(msgspec.Struct, frozen=True):
    """What the process is told; its keys are `<name>-<number>`."""

    store: StoreSettings
    merchant: str
    name: str
    most_parts: int


async def work(job: Job) -> None:
    """Buy and spread until killed."""
    inventory = await Inventory.open(job.store)
    shop = Shop(inventory, inventory.store.client, job.merchant)
    numbers = iter(range(1_000_000))
    draw = random.Random(job.name)

    async def buy() -> None:
        while True:
            key = f"{job.name}-{next(numbers)}"
            try:
                held = await persistently(shop.reserve, [("tea", 1)], key=key)
            except Overloaded:
                # Its parts were closed all the time.
                continue
            sys.stdout.write(f"{key} {held.reservation.id}\n")
            sys.stdout.flush()

    async def spread() -> None:
        name = (job.merchant, LOCATION, "tea")
        while True:
            try:
                await inventory.splits.shut(name)
                await inventory.splits.change(name, draw.randint(1, job.most_parts), actor="worker")
            except HoldfastError:
                await asyncio.sleep(0.01)

    await asyncio.gather(spread(), *(buy() for _ in range(CALLERS)))


if __name__ == "__main__":
    asyncio.run(work(msgspec.json.decode(sys.argv[1], type=Job)))
