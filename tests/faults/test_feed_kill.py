"""SIGKILL of the store and of the background process while a backlog of events is taken.

Whatever dies, each event is booked once, the sequence ends whole, and the row is what it would be
had nothing happened.
"""

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import msgspec
import pytest

from engine.feeds import Feeds, Taken, Verdict
from engine.inventory import Inventory
from engine.outcomes import HoldfastError
from engine.store import StoreSettings
from tests.events import TILL, Till, entry
from tests.shop import ACTOR, LOCATION, open_shop
from tests.stores import MakeStore, RealStore, eventually, set_up

pytestmark = pytest.mark.faults

BACKLOG: Final = 3_000
BATCH: Final = 200
KILLS: Final = 6
SEED: Final = 7
WITHIN_SECONDS: Final = 60.0


@pytest.fixture
async def real(make_store: MakeStore) -> RealStore:
    made = make_store()
    await made.start()
    await set_up(made.settings, partitions=2)
    return made


@asynccontextmanager
async def background(settings: StoreSettings) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the background process; it is killed at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "holdfast.background",
        env={
            **os.environ,
            "HOLDFAST_REDIS_URL": settings.url,
            "HOLDFAST_REDIS_USERNAME": settings.username,
            "HOLDFAST_REDIS_PASSWORD": settings.password,
        },
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_backlog_is_booked_once_whatever_is_killed(real: RealStore) -> None:
    draw = random.Random(SEED)
    async with open_shop(real.settings, "acme") as shop:
        till = Till(shop)
        await shop.receive("tea", BACKLOG)
        sale = await till.event("sale", 1)
        events = [
            msgspec.structs.replace(sale, event_id=str(number), sequence=number)
            for number in range(1, BACKLOG + 1)
        ]
        intake = shop.keys().intake
        for event in events:
            fields = [part for pair in entry(shop, event).items() for part in pair]
            await shop.client.execute_command("XADD", intake, "*", *fields)

        async def left() -> int:
            with suppress(Exception):
                return int(await shop.client.execute_command("XLEN", intake))
            return BACKLOG

        for number in range(KILLS):
            goal = BACKLOG - (number + 1) * BACKLOG // (KILLS + 1)

            async def reached(goal: int = goal) -> bool:
                return await left() <= goal

            async with background(real.settings):
                await eventually(reached, within_seconds=WITHIN_SECONDS)
                await asyncio.sleep(draw.random() / 20)
                if number % 2:
                    real.kill9()
                    await real.start()

        async def done() -> bool:
            return await left() == 0

        async with background(real.settings):
            await eventually(done, within_seconds=WITHIN_SECONDS)
        assert (await shop.row("tea")).on_hand == 0
        (source,) = await till.feeds.sources("acme", LOCATION)
        assert (source.watermark, source.gaps) == (BACKLOG, ())
        assert await till.feeds.count_quarantined("acme", LOCATION) == 0
        await shop.audit()


async def test_a_sender_that_repeats_what_was_not_answered_ends_right(real: RealStore) -> None:
    """The store dies in the middle of batches; the till sends each again until it has a verdict."""
    draw = random.Random(SEED)
    async with open_shop(real.settings, "acme") as shop:
        till = Till(shop)
        sale = await till.event("sale", 1)
        events = [
            msgspec.structs.replace(sale, event_id=str(number), sequence=number)
            for number in range(1, BACKLOG + 1)
        ]
        draw.shuffle(events)

    async def send_all(inventory: Inventory) -> list[Verdict]:
        feeds = Feeds(inventory)
        verdicts: list[Verdict] = []
        for start in range(0, BACKLOG, BATCH):
            todo = events[start : start + BATCH]
            for _ in range(100):
                answers = await feeds.take("acme", LOCATION, TILL, todo, actor=ACTOR)
                verdicts += [one.verdict for one in answers if isinstance(one, Taken)]
                todo = [
                    event
                    for event, answer in zip(todo, answers, strict=True)
                    if isinstance(answer, HoldfastError)
                ]
                if not todo:
                    break
                await asyncio.sleep(0.05)
            assert not todo
        return verdicts

    async def kill_now_and_then() -> None:
        for _ in range(KILLS):
            await asyncio.sleep(draw.random() / 3)
            real.kill9()
            await real.start()

    inventory = await Inventory.open(real.settings)
    verdicts, _ = await asyncio.gather(send_all(inventory), kill_now_and_then())
    assert len(verdicts) == BACKLOG
    assert set(verdicts) <= {Verdict.APPLIED, Verdict.DUPLICATE}
    await inventory.close()
    async with open_shop(real.settings, "acme") as shop:
        assert (await shop.row("tea")).deficit == BACKLOG
        (source,) = await Feeds(shop.inventory).sources("acme", LOCATION)
        assert (source.watermark, source.gaps) == (BACKLOG, ())
        await shop.audit()
