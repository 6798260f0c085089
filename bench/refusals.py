"""A sold-out row: how fast a crowd is told so, and for how long after units have come back.

`engine.sold_out` says why a gateway may refuse without asking the store, and for how long.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import median
from typing import Final
from uuid import uuid4

from bench import servers
from bench.account import AccountWrong
from bench.figures import Conditions, Sample
from bench.http import CONNECTIONS, CREATED, ReserveRequests
from bench.load import Address, LoadFailed, closed_loop, read_head
from bench.servers import Service
from bench.shop import ACTOR, MERCHANT, OPENING_UNITS, SEED, hot_row
from engine.inventory import Inventory
from engine.model import Movement, MovementType
from gateway.idempotency import ATTEMPT_HEADER

CONFLICT: Final = 409

FIRST_ATTEMPT: Final = f"{ATTEMPT_HEADER}: 1"

CROWD: Final = 8
"""Callers who ask for the row that comes and goes: enough that it is asked for all the time, few
enough that an answer's way to them takes no time to speak of."""

RESTOCKS: Final = 100
RESTOCKS_WHEN_QUICK: Final = 10
REFUSALS_BEFORE: Final = range(50, 250)
"""Answers of a sold-out row before it is restocked. How many is left to chance, so that a restock
comes at any moment of the time for which a refusal is believed."""

PHASE_SECONDS: Final = 10.0
"""How long it may take until the crowd has seen that the row is out, or is back."""

_LOCATION, _SKU = hot_row().rows[0]


async def refuse(conditions: Conditions, *, first_attempts: bool) -> Sample:
    """Measure refusals of a row that is out, to callers who say that they are new or who do not."""
    headers = [FIRST_ATTEMPT] if first_attempts else []
    async with _serving(conditions) as (service, inventory):
        await _count(inventory, 0)
        load = await closed_loop(
            service.address,
            ReserveRequests(hot_row(), service.api_key, *headers),
            connections=CONNECTIONS,
            window=conditions.window,
        )
        await _check(inventory, on_hand=0, reserved=0)
        return Sample.of_rate(load.demand(CONFLICT), connections=CONNECTIONS)


async def restocked(conditions: Conditions) -> Sample:
    """Measure for how long a row is refused that came back through another process, in ms.

    That is from when the restock was acknowledged to the arrival of the last refusal of a request
    that was sent after that. The figure is the longest of many restocks.
    """
    rounds = RESTOCKS_WHEN_QUICK if conditions.quick else RESTOCKS
    chance = random.Random(SEED)
    async with _serving(conditions) as (service, inventory):
        crowd = _Crowd(ReserveRequests(hot_row(), service.api_key, FIRST_ATTEMPT))
        callers = [asyncio.create_task(crowd.ask(service.address)) for _ in range(CROWD)]
        try:
            late_ms = [
                await _restock(inventory, crowd, after=chance.choice(REFUSALS_BEFORE))
                for _ in range(rounds)
            ]
        finally:
            crowd.is_over = True
            await asyncio.gather(*callers)
        await _check(inventory, on_hand=OPENING_UNITS, reserved=crowd.held)
    return Sample(
        value=max(late_ms),
        details={
            "restocks": rounds,
            "median_ms": round(median(late_ms), 2),
            "refused_wrongly": crowd.refused_late,
            "refused_rightly": crowd.refused - crowd.refused_late,
        },
    )


async def _restock(inventory: Inventory, crowd: "_Crowd", *, after: int) -> float:
    """Take all units away, and bring them back after so many refusals.

    Return for how long they were then refused, in ms.
    """
    await _count(inventory, 0)
    await crowd.refusals(after)
    await _count(inventory, OPENING_UNITS)
    crowd.restocked()
    return await crowd.seen()


class _Crowd:
    """Callers who want one unit over and over, and what they heard since the last restock."""

    def __init__(self, requests: ReserveRequests) -> None:
        self._requests = requests
        self._sent = 0
        self._restocked_at = 0.0
        self._last_refusal_at = 0.0
        self._waits_for = 0
        self._waiting: asyncio.Future[None] | None = None
        self.is_over = False
        self.held = 0
        self.refused = 0
        self.refused_late = 0

    async def refusals(self, count: int) -> None:
        """Wait until so many more were refused."""
        self._waits_for = self.refused + count
        await self._wait()

    def restocked(self) -> None:
        """Take note that the units are back, now."""
        self._restocked_at = self._last_refusal_at = time.perf_counter()

    async def seen(self) -> float:
        """Wait until all of the crowd were served again; for how long they were not, in ms."""
        self._waits_for = self.held + 2 * CROWD
        await self._wait()
        late_ms = (self._last_refusal_at - self._restocked_at) * 1000
        self._restocked_at = 0.0
        return late_ms

    async def ask(self, address: Address) -> None:
        """Be one caller, until it is over."""
        reader, writer = await asyncio.open_connection(*address)
        try:
            while not self.is_over:
                number, sent_at = self._sent, time.perf_counter()
                self._sent += 1
                writer.write(self._requests(number))
                head_bytes = await reader.readuntil(b"\r\n\r\n")
                head = read_head(head_bytes)
                if head is None or head.status not in (CREATED, CONFLICT):
                    raise LoadFailed(f"the crowd was answered {head_bytes[:40]!r}")
                await reader.readexactly(head.total_bytes - len(head_bytes))
                self._take(head.status, sent_at)
        finally:
            writer.close()

    def _take(self, status: int, sent_at: float) -> None:
        if status == CREATED:
            self.held += 1
        else:
            self.refused += 1
            if self._restocked_at and sent_at >= self._restocked_at:
                self.refused_late += 1
                self._last_refusal_at = time.perf_counter()
        reached = self.held if self._restocked_at else self.refused
        if self._waiting is not None and not self._waiting.done() and reached >= self._waits_for:
            self._waiting.set_result(None)

    async def _wait(self) -> None:
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(PHASE_SECONDS):
                await self._waiting
        except TimeoutError as error:
            raise LoadFailed(f"the crowd saw no change for {PHASE_SECONDS:.0f} s") from error


@asynccontextmanager
async def _serving(conditions: Conditions) -> AsyncIterator[tuple[Service, Inventory]]:
    """Run a service with one row; the engine beside it is the other process."""
    async with (
        servers.service(conditions, hot_row().rows) as service,
        servers.inventory(service.store) as inventory,
    ):
        yield service, inventory


async def _count(inventory: Inventory, units: int) -> None:
    movement = Movement(
        key=uuid4().hex, location=_LOCATION, type=MovementType.COUNT, sku=_SKU, quantity=units
    )
    await inventory.move(MERCHANT, movement, actor=ACTOR)


async def _check(inventory: Inventory, *, on_hand: int, reserved: int) -> None:
    row = await inventory.row(MERCHANT, _LOCATION, _SKU)
    if (row.on_hand, row.reserved) != (on_hand, reserved):
        raise AccountWrong(f"the row is {row}, where {reserved} units were acknowledged as held")
