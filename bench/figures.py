"""What a benchmark run is made of: figures with their aims, samples, and how they are taken."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Self

import msgspec

from bench.load import Latency, Load, Window
from holdfast.embedded import ServerBinary


class Skipped(Exception):
    """A figure cannot be taken on this machine; the message says why."""


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for a whole run.

    `work_dir` takes the data of everything that is started, so that all of it meets one disk.
    """

    server: ServerBinary
    work_dir: Path
    window: Window
    quick: bool


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """A figure as one round gave it, with whatever else the round can tell about it."""

    value: float
    latency: Latency | None = None
    details: dict[str, float | str] = {}

    @classmethod
    def of_rate(cls, load: Load, **details: float | str) -> Self:
        """Make a sample of the rate that a load reached."""
        return cls(
            value=load.rate_per_second,
            latency=load.latency,
            details={"cpu_share": round(load.cpu_share, 3), **details},
        )

    @classmethod
    def of_p95(cls, load: Load, **details: float | str) -> Self:
        """Make a sample of the 95th percentile of a load's latencies, in ms."""
        return cls(
            value=load.latency.p95_ms,
            latency=load.latency,
            details={
                "answered_per_second": round(load.rate_per_second, 1),
                "cpu_share": round(load.cpu_share, 3),
                **details,
            },
        )


class Aim(msgspec.Struct, frozen=True, kw_only=True):
    """A bound: of the figure itself, or where `of` names another figure, of its ratio to that.

    Exactly one of `at_least` and `at_most` is given.
    """

    at_least: float | None = None
    at_most: float | None = None
    of: str | None = None

    def is_met(self, value: float) -> bool:
        """Say whether a value, or ratio, is within the bound."""
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the report. `beside` names figures to give the ratio to, without an aim."""

    name: str
    unit: str
    meaning: str
    aims: tuple[Aim, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def compared_with(self) -> tuple[str, ...]:
        """Return every figure that this one stands in a ratio to."""
        return (*[aim.of for aim in self.aims if aim.of is not None], *self.beside)


Samples = Mapping[str, Sequence[Sample]]
"""Of each figure, by name."""

Measure = Callable[[Conditions], Awaitable[Samples]]


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """Takes one or more figures at once.

    One that is taken `once` takes several samples in one go, or is the same in every round.
    """

    figures: tuple[Figure, ...]
    measure: Measure
    once: bool = False
    skipped_when_quick: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of its figures."""
        return tuple(figure.name for figure in self.figures)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A figure over all rounds: the samples, or why there are none."""

    figure: Figure
    samples: tuple[Sample, ...] = ()
    skipped: str | None = None

    @property
    def median(self) -> float | None:
        """Return the median, None where there is no sample."""
        return median(sample.value for sample in self.samples) if self.samples else None

    @property
    def latency(self) -> Latency | None:
        """Return the median of each percentile over the rounds."""
        found = [sample.latency for sample in self.samples if sample.latency is not None]
        if not found:
            return None
        return Latency(
            median(latency.p50_ms for latency in found),
            median(latency.p95_ms for latency in found),
            median(latency.p99_ms for latency in found),
        )


def ratio(results: Mapping[str, Result], name: str, of: str) -> float | None:
    """Return the ratio of two figures' medians, None where either was not taken."""
    if name not in results or of not in results:
        return None
    value, reference = results[name].median, results[of].median
    return value / reference if value is not None and reference else None
