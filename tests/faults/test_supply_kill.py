"""SIGKILL between the change of a supply and the record of whose day cannot be kept."""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import pytest

from engine.event_making import events_of
from engine.events import PromiseSlipped
from engine.ledger import read_entries
from engine.shortfalls import ShortfallKeeper
from engine.supplies import Supplies
from reconciler.audit import audit
from tests.faults.supply_worker import KEY, Job
from tests.shop import ACTOR, LOCATION, Shop, open_shop
from tests.stores import MakeStore, set_up

pytestmark = pytest.mark.faults

ROOT: Final = Path(__file__).parents[2]
WAITING: Final = 150
"""More than one command puts on record."""

WITHIN_SECONDS: Final = 60.0


async def cancel_and_die(job: Job) -> None:
    """Have a process cancel a supply, and kill it before it does more."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.faults.supply_worker",
        msgspec.json.encode(job).decode(),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def slipped(shop: Shop) -> list[str]:
    """Return whose day was told to be late."""
    return [
        event.data.reservation
        for entry in await read_entries(shop.inventory.store, shop.keys())
        for operation in entry.operations
        for event in events_of(operation, sequence=1, at_ms=entry.at_ms, partition=0)
        if isinstance(event, PromiseSlipped)
    ]


async def test_each_who_is_late_is_told_once_whatever_was_killed(
    store_kind: str, make_store: MakeStore
) -> None:
    real = make_store(store_kind)
    await real.start()
    await set_up(real.settings, partitions=1)
    async with asyncio.timeout(WITHIN_SECONDS):
        async with open_shop(real.settings) as shop:
            await shop.expect("tea", "po-1", "2026-12-07", WAITING)
            held = await asyncio.gather(
                *(shop.reserve([("tea", 1)], by="2026-12-07") for _ in range(WAITING))
            )
            merchant = shop.merchant
            await cancel_and_die(Job(real.settings, merchant, "tea", "po-1"))
            assert (await shop.row("tea")).incoming == 0
            assert await slipped(shop) == []
        await real.restart()
        async with open_shop(real.settings) as again:
            shop = Shop(again.inventory, again.client, merchant)
            await ShortfallKeeper(shop.inventory).round()
            ids = [one.reservation.id for one in held]
            assert sorted(await slipped(shop)) == sorted(ids)
            # Whoever cancelled asks again, and hears what the first call had to tell.
            changed = await Supplies(shop.inventory).cancel(
                merchant, LOCATION, "tea", "po-1", key=KEY, actor=ACTOR
            )
            assert (changed.replayed, changed.reviewed.count) == (True, WAITING)
            await ShortfallKeeper(shop.inventory).round()
            assert len(await slipped(shop)) == WAITING
            await shop.audit()
            assert (await audit(shop.inventory, None)).findings == ()
