"""The guard against a store whose clock jumps: better late than a shop emptied of its holds."""

import time
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from engine.keys import PartitionKeys
from engine.scripts import script
from engine.store import Store

TOLERANCE_MS: Final = 5_000
"""A step that an ordinary clock correction may make."""

MAX_DRIFT: Final = 0.001
"""How far a clock that is being slewed may run off in the time between two looks; NTP slews at
0.0005 at most."""


class ClockGuard:
    """Compares the store's clock with this machine's monotonic one.

    The first look sets the baseline. A later one that is off by more than a correction could be is
    a jump: `accept` answers False until the clock is back where it should be, or until a new guard
    is made, which takes the clock as it then is.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Take seconds from `monotonic`."""
        self._monotonic = monotonic
        self._baseline_ms: float | None = None
        self._looked_at_ms = 0.0
        self.jump_ms = 0
        """How far the store's clock was off at the last look, in ms; 0 while it is accepted."""

    def accept(self, store_ms: int) -> bool:
        """Return whether the store's clock, read just now, may be acted upon."""
        now_ms = self._monotonic() * 1000
        baseline_ms = store_ms - now_ms
        if self._baseline_ms is None:
            off_ms = 0.0
        else:
            off_ms = baseline_ms - self._baseline_ms
            if abs(off_ms) > TOLERANCE_MS + MAX_DRIFT * (now_ms - self._looked_at_ms):
                self.jump_ms = round(off_ms)
                return False
        self._baseline_ms = baseline_ms
        self._looked_at_ms = now_ms
        self.jump_ms = 0
        return True


async def clock_ms(store: Store, keys: PartitionKeys) -> int:
    """Return the clock of the server that holds a partition, in ms since 1970."""
    reply = await store.call(script("due"), (keys.holds, keys.meta), 0)
    now_ms, _, _ = msgspec.msgpack.decode(reply, type=tuple[int, int, list[str]])
    return now_ms


class Times(NamedTuple):
    """Two times in ms since 1970: a server's clock, and what the scripts of a partition go by.

    The second never goes back; see `lua/lib/group.lua`.
    """

    clock_ms: int
    now_ms: int


async def read_times(store: Store, keys: PartitionKeys) -> Times:
    """Read the time of a partition, and of the server that holds it."""
    clock, high_water = await store.read([("TIME",), ("HGET", keys.meta, "clock_ms")])
    seconds, microseconds = (int(part) for part in clock)
    clock_ms = seconds * 1000 + microseconds // 1000
    return Times(clock_ms, max(clock_ms, int(high_water or 0)))
