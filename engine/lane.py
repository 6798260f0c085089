"""Coalescing: what arrives while a call is under way goes out together in the next.

So the store sees few large calls under load, and a lone caller waits for nobody.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from engine.outcomes import HoldfastError, Overloaded

Item = TypeVar("Item")
Answer = TypeVar("Answer")

RETRY_AFTER_MS = 1_000


class Backlog:
    """Counts what waits in all lanes of a process, and refuses past `most`."""

    def __init__(self, most: int) -> None:
        """Bound the waiting items to `most`."""
        self.most = most
        self.waiting = 0

    def enter(self) -> None:
        """Count one more. Raises Overloaded where the bound is reached."""
        if self.waiting >= self.most:
            raise Overloaded(retry_after_ms=RETRY_AFTER_MS)
        self.waiting += 1

    def leave(self, count: int) -> None:
        """Count `count` fewer."""
        self.waiting -= count


class Lane(Generic[Item, Answer]):
    """A queue with at most one call under way.

    `call` takes a list of items and returns as many answers; an answer that is a HoldfastError is
    raised to its own caller, an exception of the call to all of them. `weigh` gives an item's
    share of `most_weight`, the bound of one call.
    """

    def __init__(
        self,
        call: Callable[[list[Item]], Awaitable[list[Answer | HoldfastError]]],
        backlog: Backlog,
        *,
        most_items: int,
        most_weight: int,
        weigh: Callable[[Item], int],
    ) -> None:
        """Start idle; the lane needs a running event loop only from the first `submit`."""
        self._call = call
        self._backlog = backlog
        self._most_items = most_items
        self._most_weight = most_weight
        self._weigh = weigh
        self._queue: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._pump: asyncio.Task[None] | None = None

    def submit(self, item: Item) -> asyncio.Future[Answer]:
        """Queue an item and return the future of its answer. Raises Overloaded."""
        self._backlog.enter()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._queue.append((item, answer))
        if self._pump is None:
            # The task starts in the loop's next turn, with all that this turn submits.
            self._pump = loop.create_task(self._run())
        return answer

    async def _run(self) -> None:
        try:
            while self._queue:
                batch = self._take()
                if batch:
                    await self._settle(batch)
        finally:
            self._pump = None
            self._abandon()

    def _take(self) -> list[tuple[Item, asyncio.Future[Answer]]]:
        batch: list[tuple[Item, asyncio.Future[Answer]]] = []
        weight = 0
        taken = 0
        while self._queue and len(batch) < self._most_items:
            item, answer = self._queue[0]
            # A caller who has gone away before the call leaves nothing behind.
            if not answer.done():
                weight += self._weigh(item)
                if batch and weight > self._most_weight:
                    break
                batch.append((item, answer))
            self._queue.popleft()
            taken += 1
        self._backlog.leave(taken)
        return batch

    async def _settle(self, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._call([item for item, _ in batch])
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    if isinstance(error, asyncio.CancelledError):
                        future.cancel()
                    else:
                        future.set_exception(error)
            # The callers have it; only the end of the process goes on from here.
            if not isinstance(error, Exception):
                raise
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, HoldfastError):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    def _abandon(self) -> None:
        """Cancel who still waits when the pump was cancelled."""
        self._backlog.leave(len(self._queue))
        while self._queue:
            self._queue.popleft()[1].cancel()
