"""What a row remembers of when its units came and went, folded: the twin of `lua/lib/asof.lua`.

A count taken at T makes the row the count plus all that happened after T, so the row keeps the
moment of the count that it stands on and its recent changes. Times are ms since 1970.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from engine.limits import RECENT_MS

FLOOR: Final = -(2**47)
"""The units of a change that is none: up to its moment, changes are no longer kept."""

MAX_DELTAS: Final = 4_096
DELTAS_LEFT: Final = 3_072
TIDY_EVERY: Final = 256
"""As in `lua/lib/asof.lua`; a test compares them."""

DELTA_BYTES: Final = 12
HALF: Final = DELTA_BYTES // 2
TIE_DIGITS: Final = 8

COMPARE_MARGIN_MS: Final = 3_600_000
"""Around the end of what is kept, changes may be there or not."""


class Past(msgspec.Struct, array_like=True, gc=False):
    """The count that a row stands on, and the changes kept; `at_ms` is when they last changed."""

    counted_at_ms: int = 0
    counted_by: str = ""
    deltas: list[tuple[int, int]] = []
    at_ms: int = 0

    def undated(self, at_ms: int) -> int:
        """Return when something happened that does not say when, and was booked at `at_ms`."""
        return max(at_ms, self.counted_at_ms + 1)

    def add(self, happened_at_ms: int, units: int, at_ms: int, *, tidy: bool = True) -> None:
        """Remember that units came or went."""
        if units == 0 or happened_at_ms <= at_ms - RECENT_MS:
            return
        self._touch(at_ms)
        self.deltas.append((happened_at_ms, units))
        if tidy and len(self.deltas) % TIDY_EVERY == 0:
            self._tidy(at_ms)

    def count(self, occurred_at_ms: int, the_id: str, at_ms: int) -> None:
        """Stand on a count from here on; 0 is a count of just now."""
        if occurred_at_ms == 0:
            occurred_at_ms = max(self.undated(at_ms), *[at for at, _ in self._kept(at_ms)], 0)
        self._touch(at_ms)
        self.counted_at_ms = occurred_at_ms
        self.counted_by = the_id[:TIE_DIGITS]
        self.deltas = [delta for delta in self.deltas if delta[0] > occurred_at_ms]

    def counted(self) -> str:
        """Return the row's column `counted`; '' where it was never counted."""
        return f"{self.counted_at_ms}-{self.counted_by}" if self.counted_by else ""

    def is_over(self, now_ms: int) -> bool:
        """Tell whether the store has forgotten the changes."""
        return now_ms - self.at_ms >= RECENT_MS

    def prune(self, now_ms: int) -> None:
        """Forget what the store has forgotten."""
        if self.is_over(now_ms):
            self.deltas = []

    def _kept(self, at_ms: int) -> Sequence[tuple[int, int]]:
        return () if self.is_over(at_ms) else self.deltas

    def _touch(self, at_ms: int) -> None:
        self.prune(at_ms)
        self.at_ms = at_ms

    def _tidy(self, at_ms: int) -> None:
        self.deltas = [delta for delta in self.deltas if delta[0] > at_ms - RECENT_MS]
        if len(self.deltas) < MAX_DELTAS:
            return
        floor = sorted(at for at, _ in self.deltas)[len(self.deltas) - DELTAS_LEFT - 1]
        self.deltas = [(floor, FLOOR), *[delta for delta in self.deltas if delta[0] > floor]]


def pack_deltas(deltas: Sequence[tuple[int, int]]) -> bytes:
    """Write changes as they are kept."""
    return b"".join(
        at.to_bytes(HALF, "big") + units.to_bytes(HALF, "big", signed=True) for at, units in deltas
    )


def unpack_deltas(text: bytes) -> list[tuple[int, int]]:
    """Read changes as they are kept. Raises ValueError where they are none."""
    if len(text) % DELTA_BYTES:
        raise ValueError(f"{len(text)} bytes are no whole number of changes")
    return [
        (
            int.from_bytes(text[place : place + HALF], "big"),
            int.from_bytes(text[place + HALF : place + DELTA_BYTES], "big", signed=True),
        )
        for place in range(0, len(text), DELTA_BYTES)
    ]


def is_same_past(past: Past | None, counted: Any, text: Any, now_ms: int) -> bool:
    """Tell whether the column `counted` and the string `recent` say what the ledger says.

    What either has dropped, and what is about to be forgotten, is not compared.
    """
    wanted = Past() if past is None else past
    if counted != (wanted.counted().encode() or None):
        return False
    if text is not None and not isinstance(text, bytes):
        return False
    try:
        live = unpack_deltas(text or b"")
    except ValueError:
        return False
    since = max(
        [now_ms - RECENT_MS + COMPARE_MARGIN_MS, wanted.counted_at_ms]
        + [at for at, units in (*live, *wanted.deltas) if units == FLOOR]
    )
    return _since(live, since) == _since(wanted.deltas, since)


def _since(deltas: Sequence[tuple[int, int]], since_ms: int) -> list[tuple[int, int]]:
    return sorted(delta for delta in deltas if delta[0] > since_ms and delta[1] != FLOOR)
