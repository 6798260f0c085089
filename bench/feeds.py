"""Events of tills: how many a second, and what a backlog does to the shop: `python -m bench.feeds`.

1. Batches of 500 events of one till on a store of their own, fsync always, one location, 300 SKUs:
   events a second, once with sequence numbers and once without, and what one costs in memory.
2. A whole service with one gateway worker. Carts are reserved at a steady rate, first in peace,
   then while a backlog that was written to the intake drains.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from bench import servers
from bench.figures import Conditions
from bench.load import Window, percentile
from bench.shop import ACTOR, MERCHANT
from engine.feeds import EventType, FeedEvent, Feeds, Taken, Verdict
from engine.inventory import Inventory
from engine.keys import PartitionKeys, digest, partition_of
from engine.store import Store
from holdfast.calls import Line
from holdfast.client import AsyncClient
from holdfast.embedded import find_server

LOCATION: Final = "high street"
SKUS: Final = 300
EVENTS: Final = 20_000
BATCH: Final = 500
RESERVES_PER_SECOND: Final = 100
PEACE_SECONDS: Final = 5.0
DRAIN_SECONDS: Final = 60.0
INTAKE_BATCH: Final = 1_000

DATA: Final = Path("/var/tmp")  # noqa: S108 - each store makes a directory of its own in it


def sales(name: str, count: int, *, counts: bool) -> list[FeedEvent]:
    """Return sales of the last minutes."""
    now_ms = time.time_ns() // 1_000_000
    return [
        FeedEvent(
            event_id=f"{name} {number}",
            type=EventType.SALE,
            sku=f"sku {number % SKUS}",
            quantity=1,
            occurred_at_ms=now_ms - count + number,
            sequence=number + 1 if counts else 0,
        )
        for number in range(count)
    ]


async def take(inventory: Inventory, name: str, *, counts: bool) -> float:
    """Send all events of a till; return how many were taken a second."""
    feeds, events = Feeds(inventory), sales(name, EVENTS, counts=counts)
    began = time.perf_counter()
    for start in range(0, EVENTS, BATCH):
        answers = await feeds.take(
            MERCHANT, LOCATION, name, events[start : start + BATCH], actor=ACTOR
        )
        for answer in answers:
            assert isinstance(answer, Taken), answer
            assert answer.verdict is Verdict.APPLIED, answer
    return EVENTS / (time.perf_counter() - began)


async def rates(conditions: Conditions) -> None:
    """Print how many events are taken a second."""
    rows = [(LOCATION, f"sku {number}") for number in range(SKUS)]
    async with servers.stocked_inventory(conditions, rows) as inventory:
        for name, counts in (("with sequence numbers", True), ("without", False)):
            rate = await take(inventory, name, counts=counts)
            sys.stdout.write(f"{name:24}{rate:>10,.0f} events/s in batches of {BATCH}\n")
        keys = inventory.keys[partition_of(MERCHANT, LOCATION, inventory.partitions)]
        the_id = digest("feed", MERCHANT, LOCATION, "without", "without 7", "0")
        record = await _bytes(inventory.store, keys.seen(MERCHANT, the_id))
        recent = await _bytes(inventory.store, keys.recent(MERCHANT, LOCATION, "sku 7"))
        changes = 2 * EVENTS // SKUS
        sys.stdout.write(
            f"{record} bytes to know an event without a number again, "
            f"{recent} for the recent changes of a row with about {changes}\n"
        )


async def _bytes(store: Store, key: str) -> int:
    client: Any = store.client
    return int(await client.execute_command("MEMORY", "USAGE", key) or 0)


async def _reserve(client: AsyncClient, stop: asyncio.Event) -> list[float]:
    """Reserve carts at a steady rate until told to stop; return their latencies."""
    seconds: list[float] = []
    running: set[asyncio.Task[None]] = set()

    async def one() -> None:
        began = time.perf_counter()
        line = Line(f"sku {len(seconds) % SKUS}", 1)
        await client.reserve(MERCHANT, LOCATION, [line], key=uuid4().hex, ttl_seconds=600)
        seconds.append(time.perf_counter() - began)

    due = time.perf_counter()
    while not stop.is_set():
        task = asyncio.create_task(one())
        running.add(task)
        task.add_done_callback(running.discard)
        due += 1 / RESERVES_PER_SECOND
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
    await asyncio.gather(*running)
    return seconds


def _told(name: str, seconds: list[float]) -> str:
    ordered = sorted(seconds)
    p50, p95 = (1_000 * percentile(ordered, percent) for percent in (50, 95))
    return f"{name:24}reserve p50 {p50:6.2f} ms, p95 {p95:6.2f} ms ({len(seconds)} carts)\n"


async def _fill(store: Store, keys: PartitionKeys) -> None:
    events = sales("backlog", EVENTS, counts=True)
    for start in range(0, EVENTS, INTAKE_BATCH):
        await store.read(
            [
                (
                    "XADD",
                    keys.intake,
                    "*",
                    *("merchant", MERCHANT, "location", LOCATION, "source", "till"),
                    "event",
                    json.dumps(
                        {
                            "event_id": event.event_id,
                            "type": "sale",
                            "sku": event.sku,
                            "quantity": 1,
                            "sequence": event.sequence,
                            "occurred_at": time.strftime(
                                "%Y-%m-%dT%H:%M:%SZ", time.gmtime(event.occurred_at_ms / 1000)
                            ),
                        }
                    ),
                )
                for event in events[start : start + INTAKE_BATCH]
            ]
        )


async def backlog(conditions: Conditions) -> None:
    """Print what a backlog does to the latency of reserving."""
    rows = [(LOCATION, f"sku {number}") for number in range(SKUS)]
    async with servers.service(conditions, rows) as service:
        host, port = service.address
        url = f"http://{host}:{port}"
        async with (
            AsyncClient(url, service.api_key, direct=True) as client,
            servers.inventory(service.store) as inventory,
        ):
            keys = inventory.keys[partition_of(MERCHANT, LOCATION, inventory.partitions)]
            stop = asyncio.Event()
            asyncio.get_running_loop().call_later(PEACE_SECONDS, stop.set)
            sys.stdout.write(_told("in peace", await _reserve(client, stop)))
            # Written in one go behind the service's back, as a till's own spool would be.
            await _fill(inventory.store, keys)
            stop = asyncio.Event()
            reserving = asyncio.create_task(_reserve(client, stop))
            began = time.perf_counter()
            async with asyncio.timeout(DRAIN_SECONDS):
                while (await inventory.store.read([("XLEN", keys.intake)]))[0]:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            took = time.perf_counter() - began
            stop.set()
            sys.stdout.write(_told("while a backlog drains", await reserving))
            sys.stdout.write(f"{EVENTS:,} events drained in {took:.1f} s\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.feeds", description=__doc__)
    parser.add_argument(
        "--work-dir", type=Path, default=DATA, help="where the stores keep their data: on a disk"
    )
    asked = parser.parse_args(arguments)
    conditions = Conditions(
        server=find_server(), work_dir=asked.work_dir, window=Window(0.5, 2.0), quick=True
    )
    asyncio.run(rates(conditions))
    asyncio.run(backlog(conditions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
