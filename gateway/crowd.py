"""How many requests are being served at once, so that what is too much is refused and not queued.

What arrives faster than it can be served waits somewhere: in the queues of the engine, which are
bounded, and before that in the event loop, where a request of a quiet merchant takes its turn
behind all others. So the requests under way are counted, and one past a bound is answered with 503
as soon as its sender is known, which takes a fraction of serving it.

A merchant may have as many under way as there is room left for others (the dynamic threshold of
Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", 1998, with
a factor of one): half of the room where there is nobody else, and always less than would keep a
newcomer out.
"""

from typing import Final

from engine.outcomes import Overloaded

MAX_UNDER_WAY: Final = 512
"""Requests that write or ask in bulk, in one process. It serves some thousands a second, so whoever
comes in last waits for a tenth of a second; more would only wait for longer."""

RETRY_AFTER_MS: Final = 1_000


class Crowd:
    """Counts the requests under way, in all and by merchant."""

    def __init__(self, most: int = MAX_UNDER_WAY) -> None:
        """Let in no more than `most` at once."""
        self._most = most
        self.under_way = 0
        self._of: dict[str, int] = {}

    def enter(self, merchant: str) -> None:
        """Count a request in. Raises Overloaded where the merchant has its share under way."""
        its_own = self._of.get(merchant, 0)
        if its_own >= self._most - self.under_way:
            raise Overloaded(retry_after_ms=RETRY_AFTER_MS)
        self.under_way += 1
        self._of[merchant] = its_own + 1

    def leave(self, merchant: str) -> None:
        """Count a request out that was let in."""
        self.under_way -= 1
        left = self._of[merchant] - 1
        if left:
            self._of[merchant] = left
        else:
            del self._of[merchant]
