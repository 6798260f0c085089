"""What the engine counts, and how all parts of Holdfast count.

The counters and histograms are prometheus_client's. A service of several processes shares a
directory (PROMETHEUS_MULTIPROC_DIR), in which each process keeps its numbers in files named after
it, so that whichever gateway is asked tells of all. A process is named by its part in the service
(HOLDFAST_PROCESS), not by its process id: one that is started again goes on with its own numbers,
and no file of a dead one is ever left behind to be counted or to pile up.

A number that rises with each request is kept here in plain Python until `settle` hands it on, once
a second: that costs a tenth of what the library's own methods do (docs/operating/metrics.md has
the figures). A process that is killed loses what it counted in its last second.
"""

import os
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

DIRECTORY_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
PROCESS_VARIABLE: Final = "HOLDFAST_PROCESS"

SETTLE_SECONDS: Final = 1.0
"""How often what was counted is handed on, and what is told of now is looked at."""

SECONDS_BUCKETS: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0,
)  # fmt: skip
"""Of requests and calls: 50 ms and 150 ms, which reads and reserves are to stay below, are among
them."""

FSYNC_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
COMMANDS_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128)
LATENESS_BUCKETS: Final = (1, 5, 15, 60, 300, 900, 3_600, 6 * 3_600, 24 * 3_600, 72 * 3_600)

_NOT_PLAIN = re.compile(r"[^A-Za-z0-9.-]")


def shared_directory() -> Path | None:
    """Return where the processes of a service keep their numbers, None for a process alone."""
    named = os.environ.get(DIRECTORY_VARIABLE)
    return Path(named) if named and os.environ.get(PROCESS_VARIABLE) else None


def forget_now(process: str, directory: Path) -> None:
    """Drop what a process told of now, for it has ended; what it counted stays."""
    cast(Any, mark_process_dead)(process, str(directory))


def _share() -> None:
    """Say where the library keeps its numbers; before the first metric is made."""
    directory = shared_directory()
    if directory is None:
        values.ValueClass = values.MutexValue
        return
    # The library takes the names of its files apart at underscores.
    process = _NOT_PLAIN.sub("-", os.environ[PROCESS_VARIABLE])
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    forget_now(process, directory)
    values.ValueClass = cast(Any, values.MultiProcessValue)(lambda: process)


_share()


class Counts:
    """A counter with labels, of which `add` is cheap."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        """Take what `Counter` takes."""
        self._counter = Counter(name, text, labels)
        self._pending: defaultdict[tuple[object, ...], int] = defaultdict(int)
        _families.append(self)

    def add(self, labels: tuple[object, ...], count: int = 1) -> None:
        """Count; `labels` are values in the order of the names, of a bounded number."""
        self._pending[labels] += count

    def settle(self) -> None:
        """Hand on what was counted."""
        pending, self._pending = self._pending, defaultdict(int)
        for labels, count in pending.items():
            (self._counter.labels(*labels) if labels else self._counter).inc(count)


class Spread:
    """One histogram of a family, of which `observe` is cheap."""

    __slots__ = ("_bounds", "_child", "_counts", "_sum")

    def __init__(self, child: Histogram, bounds: Sequence[float]) -> None:
        """Count for `child`, whose buckets `bounds` are."""
        self._child = child
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def settle(self) -> None:
        """Hand on what was counted."""
        if not any(self._counts):
            return
        counts, self._counts = self._counts, [0] * len(self._counts)
        total, self._sum = self._sum, 0.0
        # The library takes values one at a time only; a test holds that these are its parts.
        child = cast(Any, self._child)
        child._sum.inc(total)
        for bucket, count in zip(child._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


class Spreads:
    """A histogram with one label or none, of which observing is cheap."""

    def __init__(self, name: str, text: str, label: str | None, buckets: Sequence[float]) -> None:
        """Take what `Histogram` takes."""
        self._label = label
        self._histogram = Histogram(name, text, [label] if label else [], buckets=buckets)
        self._bounds = tuple(map(float, buckets))
        self._of: dict[str, Spread] = {}
        _families.append(self)

    def of(self, value: str = "") -> Spread:
        """Return the histogram of one value of the label; keep it where it is hot."""
        spread = self._of.get(value)
        if spread is None:
            child = self._histogram.labels(value) if self._label else self._histogram
            spread = self._of[value] = Spread(child, self._bounds)
        return spread

    def settle(self) -> None:
        """Hand on what was counted."""
        for spread in self._of.values():
            spread.settle()


_families: list[Counts | Spreads] = []


def settle() -> None:
    """Hand on all that was counted since the last time."""
    for family in _families:
        family.settle()


def registry() -> CollectorRegistry:
    """Return what tells of all processes that share the directory, or of this one alone."""
    directory = shared_directory()
    if directory is None:
        return REGISTRY
    made = CollectorRegistry()
    cast(Any, MultiProcessCollector)(made, str(directory))
    return made


def now_gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
    """Make a gauge of what a process has now; those of the live processes are added up."""
    return Gauge(name, text, labels, multiprocess_mode="livesum")


SHEDS: Final = Counts(
    "holdfast_sheds",
    "Requests and commands that were refused because there were too many, by where they waited.",
    ["where"],
)
CALL_SECONDS: Final = Spreads(
    "holdfast_store_call_duration_seconds",
    "Calls of the store as their callers see them, retries included, by script (read: no script).",
    "script",
    SECONDS_BUCKETS,
)
BATCH_COMMANDS: Final = Spreads(
    "holdfast_store_batch_commands",
    "Commands that one script call carried, by verb.",
    "verb",
    COMMANDS_BUCKETS,
)
STORE_RETRIES: Final = Counts(
    "holdfast_store_retries", "Calls of the store that were made again, by script.", ["script"]
)
STORE_FAILURES: Final = Counts(
    "holdfast_store_failures", "Calls of the store that came to nothing, by why.", ["reason"]
)
SOLD_OUT_REFUSALS: Final = Counts(
    "holdfast_sold_out_refusals", "Carts that were refused without asking the store.", []
)
QUEUED_COMMANDS: Final = now_gauge(
    "holdfast_queued_commands", "Commands that wait in gateways to go to the store."
)
HOLDS_EXPIRED: Final = Counts(
    "holdfast_holds_expired", "Holds whose time was up and whose units went back.", []
)
FSYNC_DELAY: Final = Spreads(
    "holdfast_store_fsync_delay_seconds",
    "How much longer a durable write took than a read just before it, looked at once a second.",
    None,
    FSYNC_BUCKETS,
)
ORDERS_WAITING: Final = now_gauge(
    "holdfast_orders_waiting", "Orders and moves that cannot be driven now, and are tried again."
)
ORDERS_WAITING_SECONDS: Final = Gauge(
    "holdfast_orders_waiting_seconds",
    "For how long the longest of these could not be driven.",
    multiprocess_mode="livemax",
)
FEED_EVENTS: Final = Counts(
    "holdfast_feed_events", "Events of tills and suppliers, by what became of them.", ["verdict"]
)
FEED_LATENESS: Final = Spreads(
    "holdfast_feed_lateness_seconds",
    "How long after they happened events of tills and suppliers were booked, by type.",
    "type",
    LATENESS_BUCKETS,
)
