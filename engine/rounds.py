"""Background work that goes on in rounds until it is told to stop."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from engine.outcomes import HoldfastError

log = structlog.get_logger("engine.rounds")


async def in_rounds(
    name: str,
    work: Callable[[], Awaitable[object]],
    stop: asyncio.Event,
    *,
    pause_seconds: float,
) -> None:
    """Do the work every `pause_seconds` until `stop` is set.

    What the store refuses or does not answer is waited out, and logged once a time.
    """
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
