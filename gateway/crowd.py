"""How many requests are being served at once, whose turn is next, and what is too much.

What arrives faster than it can be served waits somewhere: in the queues of the engine, and before
that in the event loop, where the request of a quiet merchant takes its turn behind all others. So
only some are served at once. The others wait here, before their bodies are decoded, in a queue a
merchant, and the merchants take turns. One past a bound is answered with 503 at once.

A merchant may have as many under way as there is room left for others (the dynamic threshold of
Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998, with
a factor of one): half of the room where there is nobody else, and always less than would keep a
newcomer out.
"""

import asyncio
from collections import deque
from typing import Final

from engine.metrics import SHEDS
from engine.outcomes import Overloaded

MAX_UNDER_WAY: Final = 512
"""Requests that write or ask in bulk, in one process, those that wait included. It serves some
thousands a second, so whoever comes in last waits for a tenth of a second; more would only wait for
longer."""

MAX_AT_ONCE: Final = 64
"""Of these, as many are served at once: enough to keep the store and the process busy, few enough
that one whose turn has come is answered soon."""

MAX_WAIT_SECONDS: Final = 2.0
"""How long a request waits for its turn, as when the store stands still."""

RETRY_AFTER_MS: Final = 1_000


class Crowd:
    """Counts the requests under way, in all and by merchant, and serves the merchants in turn."""

    def __init__(self, most: int = MAX_UNDER_WAY, at_once: int = MAX_AT_ONCE) -> None:
        """Let in no more than `most`, and serve `at_once` of them."""
        self._most = most
        self._free = at_once
        self.under_way = 0
        self._of: dict[str, int] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._turns: deque[str] = deque()
        """The merchants that wait, in the order in which they are served."""

    async def enter(self, merchant: str) -> None:
        """Come in and wait for the merchant's turn; `leave` must follow.

        Raises Overloaded, where nothing must follow: the merchant has its share under way, or its
        turn did not come in time.
        """
        its_own = self._of.get(merchant, 0)
        if its_own >= self._most - self.under_way:
            SHEDS.add(("crowd",))
            raise Overloaded(retry_after_ms=RETRY_AFTER_MS)
        self.under_way += 1
        self._of[merchant] = its_own + 1
        if self._free and not self._turns:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        queue = self._waiting.get(merchant)
        if queue is None:
            queue = self._waiting[merchant] = deque()
            self._turns.append(merchant)
        queue.append(turn)
        try:
            async with asyncio.timeout(MAX_WAIT_SECONDS):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                # Its turn came in the same moment: somebody else may have it.
                self._pass_on()
            self._count_out(merchant)
            if isinstance(error, TimeoutError):
                SHEDS.add(("turn",))
                raise Overloaded(retry_after_ms=RETRY_AFTER_MS) from error
            raise

    def leave(self, merchant: str) -> None:
        """Go, and let the next one have its turn."""
        self._count_out(merchant)
        self._pass_on()

    def _count_out(self, merchant: str) -> None:
        self.under_way -= 1
        left = self._of[merchant] - 1
        if left:
            self._of[merchant] = left
        else:
            del self._of[merchant]

    def _pass_on(self) -> None:
        """Give a place that has become free to the next that still waits."""
        while self._turns:
            merchant = self._turns[0]
            queue = self._waiting[merchant]
            turn = queue.popleft()
            if queue:
                self._turns.rotate(-1)
            else:
                self._turns.popleft()
                del self._waiting[merchant]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
