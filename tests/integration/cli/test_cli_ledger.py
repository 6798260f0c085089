"""`holdfast history`, `ledger tail` and `export ledger`, on a running service."""

import csv
import io
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import pytest

from holdfast.ledger_file import COLUMNS
from tests.services import CommandLine, RunningService, clean_environment

READ_SECONDS: Final = 60.0


@pytest.fixture
def mug(cli: CommandLine) -> str:
    """The id of a committed reservation, after a delivery and before a sale."""
    cli.run("move", "receive", "leeds", "mug", 12, "--reference", "delivery 7")
    cli.run("move", "receive", "york", "mug", 3)
    held = cli.json("reserve", "leeds", "mug=3", "--order-ref", "order 9")
    cli.run("commit", held["id"])
    cli.run("move", "sale", "leeds", "mug", 2)
    return str(held["id"])


def test_history_shows_each_change_and_what_it_came_to(cli: CommandLine, mug: str) -> None:
    lines = cli.run("history", "mug", "--location", "leeds").stdout.splitlines()
    assert lines[0].split() == [
        *("at", "location", "seq", "op", "actor", "on_hand", "reserved"),
        *("=on_hand", "=reserved", "=available", "reference"),
    ]
    words = [line.split() for line in lines[1:]]
    assert [row[3] for row in words] == ["sale", "commit", "reserve", "receive"]
    assert [row[5:10] for row in words] == [
        ["-2", "+0", "7", "0", "7"],
        ["-3", "-3", "9", "0", "9"],
        ["+0", "+3", "12", "3", "9"],
        ["+12", "+0", "12", "0", "12"],
    ]
    assert words[3][10:] == ["delivery", "7"]


def test_history_takes_filters_and_a_limit(cli: CommandLine, mug: str) -> None:
    everywhere = cli.rows("history", "mug", "--oldest-first")
    assert [one["kind"] for one in everywhere] == ["move", "move", "reserve", "commit", "move"]
    assert [one["id"] for one in everywhere[2:4]] == [mug, mug]
    short = cli.run("history", "mug", "--limit", 2)
    assert len(short.stdout.splitlines()) == 3
    assert "more than 2" in short.stderr
    of_order = cli.rows("history", "mug", "--reference", "order 9")
    assert [one["kind"] for one in of_order] == ["reserve"]
    sales = cli.rows("history", "mug", "--kind", "move", "--location", "york")
    assert [one["rows"][0]["changes"]["on_hand"] for one in sales] == [3]
    at = everywhere[2]["at"]
    assert len(cli.rows("history", "mug", "--from", at)) >= 3
    assert all(one["at"] < at for one in cli.rows("history", "mug", "--to", at))
    assert "Nothing was found" in cli.run("history", "no such thing").stderr


def test_a_time_that_is_none_is_usage(cli: CommandLine) -> None:
    assert "is no time such as" in cli.run("history", "mug", "--from", "lately", expect=2).stderr


class Tail:
    """`holdfast ledger tail` in a process of its own, as it runs in a terminal."""

    def __init__(self, cli: CommandLine, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "holdfast", "ledger", "tail", "--json", *arguments],
            env=clean_environment() | cli.environment | {"HOLDFAST_MERCHANT": cli.merchant},
            stdout=subprocess.PIPE,
            text=True,
        )
        # A line that never comes must not be waited for without end.
        self._watchdog = threading.Timer(READ_SECONDS, self._process.kill)
        self._watchdog.start()

    @property
    def _output(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout

    def quantity(self) -> int:
        """Wait for the next operation and return the units that it moved."""
        quantity: int = json.loads(self._output.readline())["details"]["quantity"]
        return quantity

    def end(self) -> None:
        """End it, whatever it does."""
        self._watchdog.cancel()
        self._process.kill()
        self._process.communicate()

    def interrupt(self) -> tuple[int, str]:
        """Press Ctrl-C; return the exit code and what else it wrote."""
        self._process.send_signal(signal.SIGINT)
        rest, _ = self._process.communicate(timeout=READ_SECONDS)
        return self._process.returncode, rest


@pytest.fixture
def tail(cli: CommandLine) -> Iterator[Tail]:
    for units in (1, 2, 3):
        cli.run("move", "receive", "leeds", "mug", units)
    cli.run("move", "receive", "leeds", "cup", 50)
    made = Tail(cli, "--lines", "2", "--sku", "mug")
    yield made
    made.end()


def test_tail_shows_the_last_ones_and_then_each_new_one_once(cli: CommandLine, tail: Tail) -> None:
    assert [tail.quantity(), tail.quantity()] == [2, 3]
    cli.run("move", "receive", "leeds", "cup", 60)
    cli.run("move", "receive", "leeds", "mug", 4)
    assert tail.quantity() == 4
    cli.run("move", "receive", "leeds", "mug", 5)
    assert tail.quantity() == 5
    assert tail.interrupt() == (130, "")


def test_tail_of_an_empty_ledger_waits_for_the_first(cli: CommandLine) -> None:
    assert cli.run("ledger", "tail", "--seconds", 0).stdout == ""


def lines_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_ledger_is_written_as_csv_and_ndjson(
    cli: CommandLine, mug: str, tmp_path: Path
) -> None:
    written = lines_of(cli.run("export", "ledger", "--merchant", cli.merchant).stdout)
    assert [(one["kind"], one["movement"]) for one in written if one["location"] == "leeds"] == [
        ("move", "receive"),
        ("reserve", ""),
        ("commit", ""),
        ("move", "sale"),
    ]
    path = tmp_path / "ledger.ndjson"
    document = cli.json("export", "ledger", "-m", cli.merchant, "-l", "leeds", "--output", path)
    assert (document["format"], document["operations"], document["lines"]) == ("ndjson", 4, 4)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert tuple(rows[0]) == COLUMNS
    assert [row["on_hand_change"] for row in rows] == [12, 0, -3, -2]
    assert [row["reference"] for row in rows] == ["delivery 7", "order 9", "", ""]
    assert {row["merchant"] for row in rows} == {cli.merchant}
    assert [path.name] == [file.name for file in tmp_path.iterdir()], "no draft is left"


def test_the_export_takes_a_stretch_of_time(cli: CommandLine, mug: str) -> None:
    entries = cli.rows("history", "mug", "--oldest-first", "--location", "leeds")
    middle = entries[1]["at"]
    before = cli.run("export", "ledger", "-m", cli.merchant, "-l", "leeds", "--to", middle)
    since = cli.run("export", "ledger", "-m", cli.merchant, "-l", "leeds", "--from", middle)
    sequences = [
        [int(line["sequence"]) for line in lines_of(result.stdout)] for result in (before, since)
    ]
    assert sequences[0] + sequences[1] == [entry["sequence"] for entry in entries]
    assert len(sequences[0]) == sum(entry["at"] < middle for entry in entries)


def test_everybodys_ledger_is_exported_for_the_platform(cli: CommandLine, mug: str) -> None:
    cli.environment["HOLDFAST_MERCHANT"] = ""
    merchants = {line["merchant"] for line in lines_of(cli.run("export", "ledger").stdout)}
    assert cli.merchant in merchants


def test_parquet_is_read_back_as_it_was_written(cli: CommandLine, mug: str, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "ledger.parquet"
    cli.run("export", "ledger", "-m", cli.merchant, "--output", path)
    table = parquet.read_table(path)
    assert tuple(table.column_names) == COLUMNS
    rows = [row for row in table.to_pylist() if row["location"] == "leeds"]
    assert [row["on_hand"] for row in rows] == [12, 12, 9, 7]
    assert rows[1]["id"] == mug


def test_parquet_without_its_library_says_what_to_install(
    cli: CommandLine, mug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "ledger.parquet"
    result = cli.run("export", "ledger", "-m", cli.merchant, "--output", path, expect=4)
    assert "holdfast[parquet]" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("--format", "parquet"), ("--json",), ("--location", "leeds")])
def test_an_export_that_cannot_be_is_usage(cli: CommandLine, words: tuple[str, ...]) -> None:
    cli.environment["HOLDFAST_MERCHANT"] = ""
    cli.run("export", "ledger", *words, expect=2)


def test_export_alone_is_still_that_of_stock(cli: CommandLine, service: RunningService) -> None:
    cli.run("move", "receive", "ledger", "mug", 2)
    whole = cli.run("export").stdout
    assert whole == cli.run("export", "stock").stdout
    assert whole == cli.run("export", "--format", "csv").stdout
    assert "ledger,mug,2" in whole
    # A location of that name is reached by saying which export is meant.
    assert cli.run("export", "stock", "ledger").stdout == whole
