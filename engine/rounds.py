"""Background work that goes on in rounds until it is told to stop."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import structlog

from engine.leases import Lease
from engine.outcomes import HoldfastError

log = structlog.get_logger("engine.rounds")


async def in_rounds(
    name: str,
    work: Callable[[], Awaitable[object]],
    stop: asyncio.Event,
    *,
    pause_seconds: float,
    leases: Iterable[Lease] = (),
) -> None:
    """Do the work every `pause_seconds` until `stop` is set, and give up its leases then.

    What the store refuses or does not answer is waited out, and logged once a time.
    """
    try:
        await _repeat(name, work, stop, pause_seconds)
    finally:
        for lease in leases:
            try:
                await lease.give_up()
            except HoldfastError:
                break


async def _repeat(
    name: str, work: Callable[[], Awaitable[object]], stop: asyncio.Event, pause_seconds: float
) -> None:
    told = False
    while not stop.is_set():
        try:
            await work()
            told = False
        except HoldfastError as error:
            if not told:
                log.warning("waiting", job=name, code=error.code, error=str(error))
            told = True
        try:
            async with asyncio.timeout(pause_seconds):
                await stop.wait()
        except TimeoutError:
            continue
