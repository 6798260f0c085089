"""The report of a run: a table to read, and a file of the same with every sample to compare by."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from bench.figures import Aim, Figure, Result, ratio
from bench.load import Latency
from bench.machine import Machine

_DASH = "–"
_NOTHING = "there was nothing to measure"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a run was asked for."""

    store: str
    rounds: int
    quick: bool
    seconds: float
    warm_up_seconds: float
    only: tuple[str, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run. `results` are by the name of their figure, in the order of the catalogue."""

    taken_at: datetime
    settings: Settings
    machine: Machine
    results: Mapping[str, Result]


def write(report: Report, path: Path) -> None:
    """Write the run as JSON, one figure after the other, with every sample."""
    document = {
        "taken_at": report.taken_at,
        "settings": report.settings,
        "machine": report.machine,
        "figures": [_document(report.results, name) for name in report.results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def _document(results: Mapping[str, Result], name: str) -> dict[str, Any]:
    result = results[name]
    values = [sample.value for sample in result.samples]
    return {
        "name": name,
        "meaning": result.figure.meaning,
        "unit": result.figure.unit,
        "median": result.median,
        "min": min(values, default=None),
        "max": max(values, default=None),
        "latency": result.latency,
        "ratios": {of: ratio(results, name, of) for of in result.figure.compared_with},
        "aims": [
            {"aim": aim, "met": is_met(results, result.figure, aim)} for aim in result.figure.aims
        ],
        "skipped": result.skipped,
        "samples": result.samples,
    }


def is_met(results: Mapping[str, Result], figure: Figure, aim: Aim) -> bool | None:
    """Say whether an aim is met by the medians, None where something was not taken."""
    name = figure.name
    value = results[name].median if aim.of is None else ratio(results, name, aim.of)
    return None if value is None else aim.is_met(value)


def show(report: Report, console: Console) -> None:
    """Print the run as one table."""
    machine = report.machine
    console.print(
        f"{machine.cpu}, {machine.cores} cores, {machine.kernel}, Python {machine.python}, "
        f"{machine.store}; {machine.filesystem}, write and fdatasync {machine.fsync_median_us:,.0f}"
        f" µs; load average {machine.load_average:.2f} at the start",
        highlight=False,
    )
    table = Table(title=_title(report.settings))
    table.add_column("figure", no_wrap=True)
    table.add_column("median", justify="right", no_wrap=True)
    table.add_column("min – max", justify="right", no_wrap=True)
    table.add_column("p50 / p95 / p99 ms", justify="right", no_wrap=True)
    table.add_column("ratios and aims", overflow="fold")
    for name, result in report.results.items():
        values = [sample.value for sample in result.samples]
        if result.median is None:
            table.add_row(name, _DASH, "", "", f"skipped: {result.skipped or _NOTHING}")
            continue
        table.add_row(
            name,
            _quantity(result.median, result.figure.unit),
            f"{_number(min(values))} – {_number(max(values))}" if len(values) > 1 else _DASH,
            _latency(result.latency),
            "\n".join(_comparisons(report.results, result.figure)),
        )
    console.print(table)


def _title(settings: Settings) -> str:
    quick = ", quick (for a smoke test, not for figures)" if settings.quick else ""
    return f"{settings.rounds} interleaved rounds of {settings.seconds:g} s{quick}"


def _comparisons(results: Mapping[str, Result], figure: Figure) -> list[str]:
    lines = []
    for aim in figure.aims:
        met = is_met(results, figure, aim)
        verdict = {True: "met", False: "MISSED", None: "not compared"}[met]
        if aim.of is None:
            lines.append(f"aim {_bound(aim)}: {verdict}")
        else:
            lines.append(f"{_ratio(results, figure, aim.of)}, aim {_bound(aim)}: {verdict}")
    return lines + [_ratio(results, figure, of) for of in figure.beside]


def _ratio(results: Mapping[str, Result], figure: Figure, of: str) -> str:
    found = ratio(results, figure.name, of)
    return f"{_DASH if found is None else _number(found)} × {of}"


def _bound(aim: Aim) -> str:
    return f"≥ {aim.at_least:g}" if aim.at_least is not None else f"≤ {aim.at_most:g}"


def _quantity(value: float, unit: str) -> str:
    return _number(value) + (unit if unit.startswith("/") else f" {unit}")


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def _latency(latency: Latency | None) -> str:
    if latency is None:
        return ""
    return " / ".join(_number(x) for x in (latency.p50_ms, latency.p95_ms, latency.p99_ms))
