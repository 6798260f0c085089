"""Coalescing: what arrives while calls are under way goes out together in the next.

So the store sees few large calls under load, and a lone caller waits for nobody.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from engine import metrics
from engine.outcomes import HoldfastError, Overloaded

Item = TypeVar("Item")
Answer = TypeVar("Answer")

RETRY_AFTER_MS: Final = 1_000

MAX_CALLS: Final = 2
"""Calls of one lane under way at once: while the store works on one, the next is made ready and
sent after it. The second goes out only when there is a full call to send, or else calls would come
to be small, and a command in a small call costs several times what it costs in a large one."""


class Backlog:
    """Counts what waits in lanes, and refuses past `most`, of one party past `most_of_one`.

    A party is whoever the items are for. Its share is smaller than the whole, so that one that
    floods the lanes leaves room for the others.
    """

    def __init__(self, most: int, most_of_one: int | None = None) -> None:
        """Bound the waiting items to `most`."""
        self.most = most
        self.most_of_one = most if most_of_one is None else most_of_one
        self.waiting = 0
        self._by_party: dict[str, int] = {}

    def enter(self, party: str) -> None:
        """Count one more. Raises Overloaded where a bound is reached."""
        its_own = self._by_party.get(party, 0)
        if self.waiting >= self.most or its_own >= self.most_of_one:
            metrics.SHEDS.add(("lane",))
            raise Overloaded(retry_after_ms=RETRY_AFTER_MS)
        self.waiting += 1
        self._by_party[party] = its_own + 1

    def leave(self, party: str) -> None:
        """Count one fewer."""
        self.waiting -= 1
        left = self._by_party[party] - 1
        if left:
            self._by_party[party] = left
        else:
            del self._by_party[party]


class Lane(Generic[Item, Answer]):
    """Queues, one a party, that are served in turn, and calls that take what waits in them.

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
        self._queues: dict[str, deque[tuple[Item, asyncio.Future[Answer]]]] = {}
        self._turns: deque[str] = deque()
        """The parties that have a queue, in the order in which they are served."""
        self._waiting = 0
        self._is_due = False
        self._under_way: set[asyncio.Task[None]] = set()

    def submit(self, item: Item, party: str = "") -> asyncio.Future[Answer]:
        """Queue an item for a party and return the future of its answer. Raises Overloaded."""
        self._backlog.enter(party)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        queue = self._queues.get(party)
        if queue is None:
            queue = self._queues[party] = deque()
            self._turns.append(party)
        queue.append((item, answer))
        self._waiting += 1
        if not self._is_due and self._may_call():
            # In the loop's next turn, with all that this turn submits.
            self._is_due = True
            loop.call_soon(self._start)
        return answer

    def _may_call(self) -> bool:
        calls = len(self._under_way)
        return calls == 0 or (calls < MAX_CALLS and self._waiting >= self._most_items)

    def _start(self) -> None:
        """Make the calls that may be made now."""
        self._is_due = False
        while self._waiting and self._may_call():
            batch = self._take()
            if batch:
                task = asyncio.get_running_loop().create_task(self._settle(batch))
                self._under_way.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            # Raises only what ends the process; all else has gone to the callers.
            task.result()
            self._start()

    def _take(self) -> list[tuple[Item, asyncio.Future[Answer]]]:
        """Take what one call can carry: an item of each party in turn, each party's in order."""
        batch: list[tuple[Item, asyncio.Future[Answer]]] = []
        weight = 0
        turns = self._turns
        while turns and len(batch) < self._most_items:
            party = turns[0]
            queue = self._queues[party]
            item, answer = queue[0]
            # A caller who has gone away before the call leaves nothing behind.
            if not answer.done():
                weight += self._weigh(item)
                if batch and weight > self._most_weight:
                    break
                batch.append((item, answer))
            queue.popleft()
            self._waiting -= 1
            self._backlog.leave(party)
            if queue:
                turns.rotate(-1)
            else:
                turns.popleft()
                del self._queues[party]
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
