"""Ending background tasks for good."""

import asyncio
from typing import Final

AGAIN_SECONDS: Final = 0.05


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it has ended, however it ends.

    It is cancelled again and again: a library that connects with a time limit of its own may take
    the one for the other, and a task that loops would then go on.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=AGAIN_SECONDS)
