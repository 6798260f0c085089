"""How the processes of a service count together."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

from engine import metrics
from engine.metrics import DIRECTORY_VARIABLE, PROCESS_VARIABLE, Spread

BOUNDS = (0.1, 0.5, 1.0)

COUNTING = """
import sys
from prometheus_client import generate_latest
from engine import metrics

for number in map(float, sys.argv[1:]):
    metrics.SHEDS.add(("crowd",), 2)
    metrics.CALL_SECONDS.of("reserve").observe(number)
    metrics.QUEUED_COMMANDS.inc(5)
metrics.settle()
print(generate_latest(metrics.registry()).decode())
"""


def samples(text: str) -> dict[str, float]:
    return {
        sample.name + "".join(f" {value}" for _, value in sorted(sample.labels.items())): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def count(process: str, directory: Path, *numbers: float, killed: bool = False) -> dict[str, float]:
    """Count in a process of that name; return what it tells of all, before it is killed or ends."""
    code = COUNTING + ("import os\nsys.stdout.flush()\nos.kill(os.getpid(), 9)" if killed else "")
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, numbers)],
        env={**os.environ, DIRECTORY_VARIABLE: str(directory), PROCESS_VARIABLE: process},
        capture_output=True,
        check=not killed,
        text=True,
    )
    return samples(done.stdout)


@given(st.lists(st.floats(0, 2) | st.sampled_from(BOUNDS), max_size=30))
def test_a_spread_counts_as_the_library_does(numbers: list[float]) -> None:
    registry = CollectorRegistry()
    ours = Histogram("ours", "", buckets=BOUNDS, registry=registry)
    theirs = Histogram("theirs", "", buckets=BOUNDS, registry=registry)
    spread = Spread(ours, BOUNDS)
    for place, number in enumerate(numbers):
        spread.observe(number)
        theirs.observe(number)
        if place % 7 == 0:
            spread.settle()
    spread.settle()

    def told(name: str) -> list[tuple[Any, Any]]:
        return [
            (sample.labels.get("le"), pytest.approx(sample.value))
            for family in registry.collect()
            for sample in family.samples
            if sample.name.startswith(name) and not sample.name.endswith("_created")
        ]

    assert told("ours") == told("theirs")


def test_any_process_tells_of_all_and_a_killed_one_goes_on_when_it_is_back(tmp_path: Path) -> None:
    count("gateway-0", tmp_path, 0.02, 0.3, killed=True)
    told = count("gateway-1", tmp_path, 0.02)
    assert told["holdfast_sheds_total crowd"] == 6
    assert told["holdfast_store_call_duration_seconds_count reserve"] == 3
    assert told["holdfast_store_call_duration_seconds_bucket 0.025 reserve"] == 2
    # Nobody has looked after the killed one yet, so it seems to have its commands still.
    assert told["holdfast_queued_commands"] == 15

    metrics.forget_now("gateway-1", tmp_path)
    told = count("gateway-0", tmp_path, 4.0)
    assert told["holdfast_sheds_total crowd"] == 8
    assert told["holdfast_store_call_duration_seconds_count reserve"] == 4
    assert told["holdfast_queued_commands"] == 5
    assert {file.name.rpartition("_")[2] for file in tmp_path.iterdir()} == {
        "gateway-0.db",
        "gateway-1.db",
    }


def test_a_process_without_a_name_shares_nothing(tmp_path: Path) -> None:
    assert count("", tmp_path / "none", 0.02)["holdfast_sheds_total crowd"] == 2
    assert not (tmp_path / "none").exists()
