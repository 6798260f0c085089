"""How far long work has come, how fast it goes, and how long it will still take."""

import time
from collections.abc import Callable
from enum import StrEnum

import msgspec


class Phase(StrEnum):
    """What a rebuild is doing: reading the ledger, loading the store, opening it again."""

    FOLD = "fold"
    LOAD = "load"
    FINISH = "finish"


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a phase has come: `done` of about `total` operations, keys or partitions.

    `per_second` is the mean since the phase began; `remaining_seconds` is None until there is one.
    """

    phase: Phase
    partitions_done: int
    partitions: int
    done: int
    total: int
    per_second: float
    remaining_seconds: float | None


OnProgress = Callable[[Progress], None]


class Meter:
    """Counts, and tells of it."""

    def __init__(
        self, on_progress: OnProgress | None, phase: Phase, partitions: int, total: int
    ) -> None:
        """Start the clock; `total` may be an estimate."""
        self.done = 0
        self._on_progress = on_progress
        self._phase = phase
        self._partitions = partitions
        self._partitions_done = 0
        self._total = total
        self._started = time.monotonic()

    def add(self, count: int) -> None:
        """Count `count` more."""
        self.done += count
        self._tell()

    def finish_partition(self) -> None:
        """Count a partition that is through."""
        self._partitions_done += 1
        self._tell()

    def _tell(self) -> None:
        if self._on_progress is None:
            return
        seconds = time.monotonic() - self._started
        per_second = self.done / seconds if seconds > 0 else 0.0
        total = max(self._total, self.done)
        self._on_progress(
            Progress(
                phase=self._phase,
                partitions_done=self._partitions_done,
                partitions=self._partitions,
                done=self.done,
                total=total,
                per_second=per_second,
                remaining_seconds=(total - self.done) / per_second if per_second else None,
            )
        )
