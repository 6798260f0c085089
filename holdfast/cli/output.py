"""What a command says: JSON or plain text on standard output, everything else on standard error."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

file_option: Final = click.option(
    "--output",
    "-o",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write.  [default: standard output]",
)


class Bar:
    """A progress bar that shows what is done, of how much, and how fast."""

    def __init__(self, progress: Progress, unit: str) -> None:
        """Take the display; `unit` names what is counted."""
        self._progress = progress
        self._task = progress.add_task("", total=None, unit=unit)

    def show(self, label: str, done: int, total: int | None) -> None:
        """Show a state; the label may change as the work goes on."""
        task = self._progress.tasks[0]
        if task.description != label:
            # The rate of one kind of work says nothing of the next.
            self._progress.reset(self._task, description=label, total=total, completed=done)
        self._progress.update(self._task, completed=done, total=total)


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        if not task.speed:
            return Text("")
        return Text(f"{task.speed:,.0f} {task.fields['unit']}/s")


class Output:
    """Where a command writes. With `as_json` standard output carries JSON and nothing else."""

    def __init__(self, *, as_json: bool) -> None:
        """Choose between JSON and text for people."""
        self.as_json = as_json
        # Ids may hold what rich takes for markup, and a table must not depend on the terminal's
        # width when it goes into a file.
        width = None if sys.stdout.isatty() else 200
        self._out = Console(markup=False, highlight=False, soft_wrap=False, width=width)
        self._err = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)

    def document(self, document: object) -> None:
        """Write one JSON document on a line of its own, if JSON was asked for."""
        if self.as_json:
            click.echo(encode(document))

    def text(self, line: str) -> None:
        """Write a line for a person: the result, or a remark beside JSON."""
        click.echo(printable(line), err=self.as_json)

    def note(self, line: str) -> None:
        """Write a line that is no result: what goes on, or what to do next."""
        click.echo(printable(line), err=True)

    def status(self, line: str, *, live: bool) -> None:
        """Write a line of how things stand; a live one takes the place of the one before."""
        if live:
            fitting = printable(line)[: self._err.width - 1]
            click.echo(f"\r\x1b[K{fitting}", nl=False, err=True)
        else:
            self.note(line)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Write a table for a person; whole numbers stand to the right."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        cells = [list(row) for row in rows]
        for index, name in enumerate(columns):
            numeric = bool(cells) and all(isinstance(row[index], int | float) for row in cells)
            table.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in cells:
            table.add_row(*(printable(_cell(cell)) for cell in row))
        (self._err if self.as_json else self._out).print(table)

    @contextmanager
    def progress(self, unit: str) -> Iterator[Bar]:
        """Show a progress bar on standard error for the time of a block, if that is a terminal."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(),
        )
        shown = self._err.is_terminal
        with Progress(*columns, console=self._err, disable=not shown, transient=True) as progress:
            yield Bar(progress, unit)


def encode(document: object) -> str:
    """Write JSON in one line; times as the API writes them, in UTC with milliseconds."""
    plain = msgspec.to_builtins(document, builtin_types=(datetime,))
    return msgspec.json.encode(_with_times(plain)).decode()


def printable(text: str) -> str:
    """Make ids safe for a terminal: control characters could move its cursor or recolour it."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )


def moment(time: datetime | None) -> str:
    """Write a time as the API does; an empty text where there is none."""
    if time is None:
        return ""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def time_of(time_ms: int) -> str:
    """Write ms since 1970 as the API does; an empty text for 0, which is no time."""
    return moment(datetime.fromtimestamp(time_ms / 1000, UTC)) if time_ms else ""


def _cell(cell: object) -> str:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    return "" if cell is None else str(cell)


def _with_times(plain: Any) -> Any:
    if isinstance(plain, datetime):
        return moment(plain)
    if isinstance(plain, dict):
        return {name: _with_times(item) for name, item in plain.items()}
    if isinstance(plain, list | tuple):
        return [_with_times(item) for item in plain]
    return plain
