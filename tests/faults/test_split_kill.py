"""SIGKILL of processes and of the store while a split row is sold and spread anew."""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import pytest

from engine.outcomes import InsufficientStock
from engine.store import StoreSettings
from reconciler.audit import audit
from tests.callers import persistently
from tests.faults.split_worker import Job
from tests.shop import Shop, open_shop
from tests.stores import MakeStore, RealStore, set_up

pytestmark = pytest.mark.faults

ROOT: Final = Path(__file__).parents[2]
PARTITIONS: Final = 6
STOCK: Final = 500
KILLS: Final = 4
BETWEEN: Final = 60
"""Acknowledged reserves between two kills."""

WITHIN_SECONDS: Final = 60.0


@pytest.fixture
async def real(store_kind: str, make_store: MakeStore) -> RealStore:
    made = make_store(store_kind)
    await made.start()
    await set_up(made.settings, partitions=PARTITIONS)
    return made


async def sold_until_killed(settings: StoreSettings, merchant: str, name: str) -> dict[str, str]:
    """Run a worker until it has sold some; return its keys with the ids that it was told."""
    job = Job(settings, merchant, name, PARTITIONS - 1)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.faults.split_worker",
        msgspec.json.encode(job).decode(),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    told: dict[str, str] = {}
    try:
        async for line in process.stdout:
            key, the_id = line.decode().split()
            told[key] = the_id
            if len(told) == BETWEEN:
                break
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert len(told) == BETWEEN
    return told


async def sell_out(shop: Shop) -> int:
    """Sell what is left, one by one; return how many units that were."""
    for sold in range(STOCK + 1):
        try:
            await persistently(shop.reserve, [("tea", 1)], key=f"rest-{sold}")
        except InsufficientStock:
            return sold
    raise AssertionError("more than there was")


async def test_no_unit_is_sold_twice_or_lost_whatever_is_killed(real: RealStore) -> None:
    async with asyncio.timeout(WITHIN_SECONDS), open_shop(real.settings) as shop:
        await shop.receive("tea", STOCK)
        told: dict[str, str] = {}
        for kill in range(KILLS):
            told |= await sold_until_killed(real.settings, shop.merchant, f"w{kill}")
            if kill % 2:
                await real.restart()
        for key, the_id in told.items():
            again = await persistently(shop.reserve, [("tea", 1)], key=key)
            assert (again.replayed, again.reservation.id) == (True, the_id)
        row = await shop.row("tea")
        assert len(told) <= row.reserved < STOCK
        assert await sell_out(shop) == STOCK - row.reserved
        await shop.inventory.splits.flush()
        await shop.audit()
        assert (await audit(shop.inventory, None)).findings == ()
