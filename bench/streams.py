"""How late a listener hears of a change: from its commit in the store to the bytes at the client.

Listeners and store share one machine, so both ends of a lag are read off one clock: an event has
the time of its commit, by the store, and the client notes when it came.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from itertools import cycle
from typing import Final
from urllib.parse import quote
from uuid import uuid4

from bench import servers
from bench.figures import Conditions, Sample
from bench.load import Latency, LoadFailed
from bench.shop import ACTOR, MERCHANT, uniform
from engine.inventory import Inventory
from engine.model import Movement, MovementType

STREAMS: Final = 1_000
STREAMS_WHEN_QUICK: Final = 50
CHANGES_PER_SECOND: Final = 1_000
CHANGES_PER_SECOND_WHEN_QUICK: Final = 200

TICK_SECONDS: Final = 0.01
OPEN_AT_ONCE: Final = 50
OPEN_SECONDS: Final = 60.0
CHUNK_BYTES: Final = 65_536
LAST_SECONDS: Final = 2.0
"""For what is still under way at the end."""

_CHANGED = re.compile(rb'event: stock\.changed\r?\ndata: [^\n]*?"time":"([^"]+)"')


async def lag(conditions: Conditions) -> Sample:
    """Measure the 99th percentile, in ms, with each listener hearing of one row of its own."""
    shop = uniform()
    streams = STREAMS_WHEN_QUICK if conditions.quick else STREAMS
    rate = CHANGES_PER_SECOND_WHEN_QUICK if conditions.quick else CHANGES_PER_SECOND
    rows = shop.rows[:streams]
    async with (
        servers.service(conditions, rows) as service,
        servers.inventory(service.store) as inventory,
    ):
        listeners = _Listeners(service)
        try:
            await listeners.open(rows)
            sent = await _change(inventory, rows, rate, conditions.window.warm_up_seconds)
            await asyncio.sleep(LAST_SECONDS)
            listeners.lags_ms.clear()
            sent = await _change(inventory, rows, rate, conditions.window.seconds)
            await asyncio.sleep(LAST_SECONDS)
        finally:
            await listeners.close()
    heard = sorted(listeners.lags_ms)
    if len(heard) != sent:
        raise LoadFailed(f"{sent} changes were made, {len(heard)} were heard of")
    latency = Latency(*[heard[min(sent - 1, sent * part // 100)] for part in (50, 95, 99)])
    return Sample(
        value=latency.p99_ms,
        latency=latency,
        details={"streams": streams, "changes_per_second": round(sent / conditions.window.seconds)},
    )


class _Listeners:
    """Open streams, and how late each event came."""

    def __init__(self, service: servers.Service) -> None:
        self._service = service
        self._tasks: list[asyncio.Task[None]] = []
        self._ready = asyncio.Semaphore(0)
        self.lags_ms: list[float] = []

    async def open(self, rows: Sequence[tuple[str, str]]) -> None:
        """Open a stream for each row, some at a time, and wait until each has begun."""
        async with asyncio.timeout(OPEN_SECONDS):
            for i in range(0, len(rows), OPEN_AT_ONCE):
                some = rows[i : i + OPEN_AT_ONCE]
                self._tasks += [asyncio.create_task(self._listen(*row)) for row in some]
                for _ in some:
                    await self._ready.acquire()

    async def close(self) -> None:
        """Close all of them."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def _listen(self, location: str, sku: str) -> None:
        reader, writer = await asyncio.open_connection(*self._service.address)
        query = f"location={quote(location, safe='')}&sku={quote(sku, safe='')}"
        head = f"GET /v1/merchants/{MERCHANT}/stream?{query} HTTP/1.1\r\nHost: bench\r\n"
        writer.write(f"{head}Authorization: Bearer {self._service.api_key}\r\n\r\n".encode())
        text, is_ready = b"", False
        try:
            while chunk := await reader.read(CHUNK_BYTES):
                now = time.time()
                text += chunk
                if not is_ready and b"event: ready" in text:
                    is_ready = True
                    self._ready.release()
                end = 0
                for match in _CHANGED.finditer(text):
                    at = datetime.fromisoformat(match[1].decode()).timestamp()
                    self.lags_ms.append((now - at) * 1000)
                    end = match.end()
                text = text[max(end, len(text) - CHUNK_BYTES) :]
        finally:
            writer.close()


async def _change(
    inventory: Inventory, rows: Sequence[tuple[str, str]], rate: int, seconds: float
) -> int:
    """Change one row after the other, so many a second; return how many changes were made."""
    loop = asyncio.get_running_loop()
    began, sent = loop.time(), 0
    following = cycle(rows)
    changes: list[asyncio.Task[object]] = []
    while (elapsed := loop.time() - began) < seconds:
        while sent < elapsed * rate:
            location, sku = next(following)
            movement = Movement(
                key=uuid4().hex, location=location, type=MovementType.RECEIVE, sku=sku, quantity=1
            )
            changes.append(loop.create_task(inventory.move(MERCHANT, movement, actor=ACTOR)))
            sent += 1
        await asyncio.sleep(TICK_SECONDS)
    await asyncio.gather(*changes)
    return sent
