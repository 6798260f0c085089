"""The report of a benchmark run: medians, ratios, aims, and what it says of what is not there."""

from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from bench.catalogue import EXPERIMENTS
from bench.figures import Aim, Figure, Result, Sample, ratio
from bench.load import Latency
from bench.machine import Machine
from bench.report import Report, Settings, is_met, show, write

LIMIT = Figure(name="limit", unit="/s", meaning="nothing")
PRODUCT = Figure(
    name="product",
    unit="/s",
    meaning="something",
    aims=(Aim(at_least=0.7, of="limit"), Aim(at_least=20, of="peer")),
    beside=("limit",),
)
PEER = Figure(name="peer", unit="/s", meaning="the same elsewhere")
MEMORY = Figure(name="memory", unit="bytes", meaning="a row", aims=(Aim(at_most=250),))


def result(figure: Figure, *values: float, skipped: str | None = None) -> Result:
    latency = Latency(1.0, 2.0, 3.0)
    samples = tuple(Sample(value=value, latency=latency) for value in values)
    return Result(figure=figure, samples=samples, skipped=skipped)


def results(*found: Result) -> dict[str, Result]:
    return {one.figure.name: one for one in found}


def report(*found: Result) -> Report:
    return Report(
        taken_at=datetime(2026, 11, 23, 12, 30, tzinfo=UTC),
        settings=Settings(
            store="valkey", rounds=3, quick=False, seconds=8.0, warm_up_seconds=2.0, only=()
        ),
        machine=Machine(
            cpu="Abacus",
            cores=2,
            memory_bytes=2**34,
            kernel="Linux 6",
            python="3.11.9",
            holdfast="0.1.0",
            store="valkey 9.1.0",
            packages={},
            filesystem="ext4",
            fsync_median_us=512.0,
            load_average=0.25,
        ),
        results=results(*found),
    )


def shown(of: Report) -> str:
    text = StringIO()
    show(of, Console(file=text, width=160))
    return text.getvalue()


def test_a_ratio_is_of_medians() -> None:
    found = results(result(LIMIT, 100.0, 1_000.0, 110.0), result(PRODUCT, 80.0, 88.0, 1.0))
    assert ratio(found, "product", "limit") == pytest.approx(80 / 110)


@pytest.mark.parametrize(("value", "met"), [(70.0, True), (69.9, False)])
def test_an_aim_may_be_a_share_of_another_figure(value: float, met: bool) -> None:
    found = results(result(LIMIT, 100.0), result(PRODUCT, value))
    assert is_met(found, PRODUCT, PRODUCT.aims[0]) is met


@pytest.mark.parametrize(("value", "met"), [(250.0, True), (250.1, False)])
def test_an_aim_may_be_a_bound_of_the_figure_itself(value: float, met: bool) -> None:
    assert is_met(results(result(MEMORY, value)), MEMORY, MEMORY.aims[0]) is met


def test_an_aim_is_neither_met_nor_missed_where_its_reference_was_not_taken() -> None:
    found = results(result(PRODUCT, 70.0), result(PEER, skipped="not installed"))
    assert [is_met(found, PRODUCT, aim) for aim in PRODUCT.aims] == [None, None]


def test_the_table_gives_ratios_beside_absolutes_and_says_what_was_skipped() -> None:
    text = shown(
        report(
            result(LIMIT, 9_000.0, 10_000.0, 12_000.0),
            result(PEER, skipped="no PostgreSQL"),
            result(PRODUCT, 6_000.0, 6_000.0, 6_001.0),
            result(MEMORY, 171.5),
        )
    )
    for piece in (
        "10,000/s",
        "9,000 – 12,000",
        "0.60 × limit, aim ≥ 0.7: MISSED",
        "– × peer, aim ≥ 20: not compared",
        "skipped: no PostgreSQL",
        "172 bytes",
        "aim ≤ 250: met",
        "1.00 / 2.00 / 3.00",
        "Abacus, 2 cores",
        "512 µs",
    ):
        assert piece in text


def test_the_file_has_every_sample_and_the_same_verdicts(tmp_path: Path) -> None:
    path = tmp_path / "below" / "run.json"
    write(report(result(LIMIT, 100.0), result(PRODUCT, 50.0, 70.0, 90.0)), path)
    document = msgspec.json.decode(path.read_bytes())
    limit, product = document["figures"]
    assert (limit["name"], limit["median"], limit["aims"]) == ("limit", 100.0, [])
    assert [sample["value"] for sample in product["samples"]] == [50.0, 70.0, 90.0]
    assert (product["median"], product["min"], product["max"]) == (70.0, 50.0, 90.0)
    assert product["ratios"] == {"limit": 0.7, "peer": None}
    assert [aim["met"] for aim in product["aims"]] == [True, None]
    assert document["machine"]["fsync_median_us"] == 512.0
    assert document["taken_at"] == "2026-11-23T12:30:00Z"


def test_every_figure_of_the_catalogue_has_a_name_of_its_own_and_known_references() -> None:
    figures = [figure for experiment in EXPERIMENTS for figure in experiment.figures]
    names = [figure.name for figure in figures]
    assert len(names) == len(set(names))
    references = {name for figure in figures for name in figure.compared_with}
    assert references <= set(names)


def test_every_aim_of_the_catalogue_has_exactly_one_bound() -> None:
    figures = [figure for experiment in EXPERIMENTS for figure in experiment.figures]
    aims = [aim for figure in figures for aim in figure.aims]
    assert aims
    assert all((aim.at_least is None) != (aim.at_most is None) for aim in aims)
