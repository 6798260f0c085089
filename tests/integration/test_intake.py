"""The intake stream: in order, once whatever dies, and nothing holds it up."""

import asyncio
import json
from typing import Any

import pytest

from engine.feeds import Feeds
from engine.outcomes import InvalidCommand
from gateway.feeds import read_event
from holdfast import intake as intake_module
from holdfast.intake import CONSUMER, GROUP, MAX_TRIES, Intake
from tests.events import Till, entry
from tests.shop import ACTOR, LOCATION, Shop


class Desk:
    """A shop's intake stream and what reads it."""

    def __init__(self, shop: Shop) -> None:
        """Nothing runs by itself: a test does each round."""
        self.shop = shop
        self.till = Till(shop)
        self.feeds = Feeds(shop.inventory)
        self.intake = Intake(shop.inventory, self.feeds)
        self.key = shop.keys().intake

    async def add(self, fields: dict[str, Any]) -> None:
        """Write an entry."""
        flat = [part for pair in fields.items() for part in pair]
        await self.shop.client.execute_command("XADD", self.key, "*", *flat)

    async def length(self) -> int:
        """Return how many entries the stream has."""
        return int(await self.shop.client.execute_command("XLEN", self.key))

    async def aside(self, merchant: str = "", location: str = LOCATION) -> list[tuple[str, str]]:
        """Return (why, raw) of what was set aside."""
        page = await self.feeds.quarantined(merchant or self.shop.merchant, location)
        return [(event.why, event.raw) for event in page.items]


@pytest.fixture
def desk(own_shop: Shop) -> Desk:
    return Desk(own_shop)


async def test_events_are_taken_in_order_and_their_entries_go(desk: Desk) -> None:
    events = [await desk.till.event("receipt", 5, sequence=1)]
    events += [await desk.till.event("sale", 1, sequence=n) for n in (2, 3, 3)]
    for event in events:
        await desk.add(entry(desk.shop, event))
    assert await desk.intake.round() == 4
    assert (await desk.shop.row("tea")).on_hand == 3
    assert await desk.length() == 0
    assert await desk.intake.round() == 0
    await desk.shop.audit()


async def test_what_is_no_event_is_set_aside_and_holds_up_nothing(desk: Desk) -> None:
    good = entry(desk.shop, await desk.till.event("receipt", 5, sequence=1))
    other = entry(desk.shop, await desk.till.event("receipt", 6, sequence=1))
    await desk.add(good | {"event": "{"})
    await desk.add(good | {"event": good["event"].replace("5", "0")})
    await desk.add({"nonsense": "x"})
    await desk.add({key: value for key, value in good.items() if key != "source"})
    await desk.add(good)
    await desk.add(other)
    assert await desk.intake.round() == 6
    assert await desk.length() == 0
    assert (await desk.shop.row("tea")).on_hand == 5
    whys = sorted(why for why, _ in await desk.aside())
    assert whys == ["idempotency_key_reused", "unreadable", "unreadable", "unreadable"]
    assert [raw for _, raw in await desk.aside("unknown", "unknown")] == ['{"nonsense":"x"}']
    reused = next(
        event
        for event in (await desk.feeds.quarantined(desk.shop.merchant, LOCATION)).items
        if event.why == "idempotency_key_reused"
    )
    assert json.loads(reused.raw)["quantity"] == 6
    dropped = await desk.feeds.drop(desk.shop.merchant, LOCATION, reused.id, actor=ACTOR)
    assert dropped.verdict == "dropped"
    await desk.shop.audit()


async def test_a_text_that_was_set_aside_can_be_retried(desk: Desk, monkeypatch: Any) -> None:
    await desk.add(entry(desk.shop, await desk.till.event("receipt", 5)))

    def refuse(_: bytes) -> None:
        raise InvalidCommand("type", "a version that knew less")

    monkeypatch.setattr(intake_module, "read_event", refuse)
    await desk.intake.round()
    (event,) = (await desk.feeds.quarantined(desk.shop.merchant, LOCATION)).items
    taken = await desk.feeds.retry(
        desk.shop.merchant, LOCATION, event.id, actor=ACTOR, read=read_event
    )
    assert taken.verdict == "applied"
    assert (await desk.shop.row("tea")).on_hand == 5
    assert await desk.aside() == []
    await desk.shop.audit()


async def test_what_a_dead_process_had_read_is_done_by_the_next(desk: Desk) -> None:
    for number in (1, 2, 3):
        event = await desk.till.event("receipt", 1, sequence=number)
        await desk.add(entry(desk.shop, event))
    client = desk.shop.client
    await client.execute_command("XGROUP", "CREATE", desk.key, GROUP, "0")
    # It read all three, booked the first, and died before it could say so.
    await client.execute_command("XREADGROUP", "GROUP", GROUP, CONSUMER, "STREAMS", desk.key, ">")
    await desk.till.send(await desk.till.event("receipt", 1, sequence=1))
    assert await desk.intake.round() == 3
    assert await desk.length() == 0
    assert (await desk.shop.row("tea")).on_hand == 3


async def test_one_process_at_a_time_reads_a_stream(desk: Desk) -> None:
    second = Intake(desk.shop.inventory, desk.feeds)
    await desk.add(entry(desk.shop, await desk.till.event("receipt", 1)))
    assert await desk.intake.round() == 1
    await desk.add(entry(desk.shop, await desk.till.event("receipt", 2)))
    assert await second.round() == 0
    await desk.intake.give_up()
    assert await second.round() == 1


async def test_what_the_store_fails_on_is_set_aside_after_some_tries(desk: Desk) -> None:
    good = entry(desk.shop, await desk.till.event("receipt", 1))
    bad = entry(desk.shop, await desk.till.event("receipt", 1, sku="spoilt"))
    key = desk.shop.keys().recent(desk.shop.merchant, LOCATION, "spoilt")
    await desk.shop.client.execute_command("HSET", key, "no", "string")
    await desk.add(bad)
    await desk.add(good)
    done = [await desk.intake.round() for _ in range(MAX_TRIES)]
    assert done == [1, 0, 0, 0, 1]
    assert [why for why, _ in await desk.aside()] == ["store_fault"]
    assert (await desk.shop.row("tea")).on_hand == 1


async def test_it_runs_until_it_is_told_to_stop(desk: Desk, own_shop: Shop) -> None:
    stop = asyncio.Event()
    running = asyncio.create_task(desk.intake.run(stop))
    await desk.add(entry(desk.shop, await desk.till.event("receipt", 4)))
    async with asyncio.timeout(10):
        while await desk.length():  # noqa: ASYNC110 - the stream is the intake's
            await asyncio.sleep(0.02)
    stop.set()
    await running
    assert (await own_shop.row("tea")).on_hand == 4
