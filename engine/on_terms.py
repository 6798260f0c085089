"""Rows that this process knows to be promised on terms, so that a reserve of them asks once.

A plain reserve goes to the script `reserve`, which refuses a row with terms: `promise` is for that.
A row that was refused so is believed to have terms for BELIEF_SECONDS. `promise` takes rows without
terms too, so a belief that is out of date costs a few microseconds and is never wrong.
"""

from collections.abc import Callable, Iterable
from time import monotonic
from typing import Final

BELIEF_SECONDS: Final = 60.0

MAX_ROWS: Final = 100_000
"""Rows remembered at once, at some 200 bytes each; past it all are forgotten."""


class OnTerms:
    """The keys of rows that have terms; see the module's text."""

    def __init__(self, *, clock: Callable[[], float] = monotonic) -> None:
        """Know nothing; `clock` gives seconds that only rise."""
        self._clock = clock
        self._until: dict[str, float] = {}

    def learn(self, row: str) -> None:
        """Believe that a row has terms."""
        if len(self._until) >= MAX_ROWS:
            self._until.clear()
        self._until[row] = self._clock() + BELIEF_SECONDS

    def any_of(self, rows: Iterable[str]) -> bool:
        """Tell whether one of these rows is believed to have terms."""
        if not self._until:
            return False
        now = self._clock()
        return any(self._until.get(row, 0.0) > now for row in rows)
