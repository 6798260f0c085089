"""Rows that this process knows to be out, so that it need not ask the store to say no again.

When a row has sold out, thousands a second still want it, and each of them would cost a script call
to hear what the last one heard. What a refusal said of its rows is believed for BELIEF_SECONDS, but
no longer than until this process sees the row change: by a write of its own, or by a read that
finds more units than the refusal did. What other processes write is missed until the time is up,
so that is how long a row that came back may still be refused.
"""

from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Final

import msgspec

from engine.model import Line
from engine.outcomes import ShortLine

BELIEF_SECONDS: Final = 0.025
"""How long a refusal is believed: long enough to answer all but one in a hundred of some thousand
attempts a second, too short for a person to notice."""

MAX_ROWS: Final = 10_000
"""Rows that are out at once, and changes remembered; past it all is forgotten, which costs a store
call for each row and is never wrong."""


class _Out(msgspec.Struct, frozen=True, gc=False):
    available: int
    exists: bool
    until: float


class SoldOut:
    """What refusals said of rows, by the row's key; see the module's text."""

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        """Know nothing; `clock` gives seconds that only rise."""
        self._clock = clock
        self.rows: dict[str, _Out] = {}
        """Empty while nothing is out, so whoever asks can see at once that there is no need."""
        self._changes = 0
        self._changed: dict[str, int] = {}
        self._all_changed = 0

    def mark(self) -> int:
        """Return the moment, to be given to `learn` with the answer to a question asked now."""
        return self._changes

    def learn(self, lines: Iterable[tuple[str, ShortLine]], *, asked_at: int) -> None:
        """Believe a refusal: each short line with its row's key.

        A row that changed since the question was asked may have been refused before it did, and
        then come back: of that one nothing is learnt.
        """
        until = self._clock() + BELIEF_SECONDS
        for row, line in lines:
            if self._changed.get(row, self._all_changed) > asked_at:
                continue
            if len(self.rows) >= MAX_ROWS:
                self.rows.clear()
            self.rows[row] = _Out(line.available, line.known, until)

    def forget(self, rows: Iterable[str]) -> None:
        """Take note that this process changed these rows, in a way that may bring units back."""
        self._changes += 1
        for row in rows:
            self.rows.pop(row, None)
            self._changed[row] = self._changes
        if len(self._changed) > MAX_ROWS:
            self._changed.clear()
            self._all_changed = self._changes

    def see(self, row: str, available: int) -> None:
        """Take note of a row that was read."""
        out = self.rows.get(row)
        if out is not None and available > out.available:
            del self.rows[row]

    def short_lines(self, wanted: Sequence[tuple[str, Line]]) -> tuple[ShortLine, ...] | None:
        """Return the lines, each with its row's key, if all are known not to fit; else None.

        No row may stand there twice. A cart with a line that may fit is left to the store, for the
        refusal must name every line that does not.
        """
        now = self._clock()
        short = []
        for row, line in wanted:
            out = self.rows.get(row)
            if out is None or line.quantity <= out.available:
                return None
            if now >= out.until:
                del self.rows[row]
                return None
            short.append(ShortLine(line.sku, line.quantity, out.available, out.exists))
        return tuple(short)
