"""`python -m bench`: takes the figures in interleaved rounds, and reports them.

Every figure is taken once a round, and the rounds follow each other, so that a slow minute of the
machine falls on all of them. The order turns around from one round to the next.
"""

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
import uvloop
from rich.console import Console
from rich.markup import escape

from bench.account import AccountWrong
from bench.catalogue import EXPERIMENTS
from bench.figures import Conditions, Experiment, Figure, Result, Sample, Skipped
from bench.load import LoadFailed, Window
from bench.machine import look
from bench.report import Report, Settings, show, write
from bench.servers import ServerFailed
from engine.boot import StoreRefused
from engine.outcomes import HoldfastError
from holdfast.embedded import NoServer, ServerBinary, StoreFailed, find_server
from reconciler.objects import ArchiveUnavailable
from reconciler.reader import LedgerDamaged
from reconciler.rebuild_plan import RebuildRefused
from reconciler.sealed import FileDamaged

WINDOW: Final = Window(warm_up_seconds=2.0, seconds=8.0)
QUICK_WINDOW: Final = Window(warm_up_seconds=0.5, seconds=2.0)

MAX_ROUNDS: Final = 20
REPORT_COLUMNS: Final = 140
RESULTS: Final = Path("bench-results")

EXIT_WRONG: Final = 1
"""A measurement failed, or left an account that does not balance."""

EXIT_CANNOT_RUN: Final = 2
EXIT_STOPPED: Final = 130

FAILURES: Final = (
    AccountWrong,
    ArchiveUnavailable,
    FileDamaged,
    HoldfastError,
    LedgerDamaged,
    LoadFailed,
    RebuildRefused,
    ServerFailed,
    StoreFailed,
    StoreRefused,
)


class RunFailed(Exception):
    """A figure could not be taken, and so the run is worth nothing."""


class Rounds:
    """Takes experiments over rounds, and keeps what comes of them."""

    def __init__(self, experiments: Sequence[Experiment], conditions: Conditions) -> None:
        """Prepare to take the experiments in their order and back."""
        self._experiments = tuple(experiments)
        self._conditions = conditions
        self._samples: dict[str, list[Sample]] = {
            name: [] for experiment in experiments for name in experiment.names
        }
        self._skipped: dict[str, str] = {}

    async def take(self, rounds: int, progress: Console) -> None:
        """Take every experiment in every round. Raises RunFailed at the first that goes wrong."""
        for number in range(rounds):
            turned = self._experiments[:: -1 if number % 2 else 1]
            for experiment in turned:
                if not self._is_due(experiment, number):
                    continue
                label = " ".join(experiment.names[:1])
                progress.print(f"round {number + 1} of {rounds}: {label}", highlight=False)
                await self._take(experiment)

    def _is_due(self, experiment: Experiment, number: int) -> bool:
        if experiment.skipped_when_quick and self._conditions.quick:
            self._skip(experiment, "takes too long for --quick")
        return experiment.names[0] not in self._skipped and not (experiment.once and number > 0)

    def _skip(self, experiment: Experiment, reason: str) -> None:
        self._skipped.update(dict.fromkeys(experiment.names, reason))

    async def _take(self, experiment: Experiment) -> None:
        try:
            samples = await experiment.measure(self._conditions)
        except Skipped as reason:
            self._skip(experiment, str(reason))
            return
        except FAILURES as error:
            raise RunFailed(f"{experiment.names[0]}: {error}") from error
        except ExceptionGroup as group:
            # Of callers that ran at once; the first tells as much as all of them.
            failures, others = group.split(FAILURES)
            if failures is None or others is not None:
                raise
            raise RunFailed(f"{experiment.names[0]}: {failures.exceptions[0]!r}") from group
        for name, taken in samples.items():
            self._samples[name] += taken

    def results(self) -> dict[str, Result]:
        """Return what came of each figure, by its name, in the catalogue's order."""
        figures: list[Figure] = [figure for e in self._experiments for figure in e.figures]
        return {
            figure.name: Result(
                figure=figure,
                samples=tuple(self._samples[figure.name]),
                skipped=self._skipped.get(figure.name),
            )
            for figure in figures
        }


def chosen(only: Sequence[str]) -> list[Experiment]:
    """Return the experiments with a figure whose name begins with one of `only`; none means all.

    Raises click.BadParameter where one of them names nothing.
    """
    names = [name for experiment in EXPERIMENTS for name in experiment.names]
    for prefix in only:
        if not any(name.startswith(prefix) for name in names):
            raise click.BadParameter(f"no figure begins with {prefix!r}; there are: {names}")
    return [
        experiment
        for experiment in EXPERIMENTS
        if not only or any(name.startswith(tuple(only)) for name in experiment.names)
    ]


async def _until_told_to_stop(work: Coroutine[Any, Any, None]) -> None:
    """Do the work; SIGTERM ends it as Ctrl-C does, so that servers and directories go with it."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await task


def _server(kind: str) -> ServerBinary:
    """Return the store's binary. Raises NoServer."""
    if kind == "valkey":
        return find_server()
    return find_server(Path(shutil.which("redis-server") or "redis-server"))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="A few seconds a figure: to see that it runs.")
@click.option("--only", multiple=True, metavar="NAME", help="Figures whose names begin so.")
@click.option(
    "--rounds", type=click.IntRange(1, MAX_ROUNDS), default=3, show_default=True, metavar="N"
)
@click.option(
    "--store",
    "kind",
    type=click.Choice(["valkey", "redis"]),
    default="valkey",
    show_default=True,
    help="The server that comes with Holdfast, or redis-server on PATH.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Where the JSON goes  [default: {RESULTS}/<time in UTC>.json]",
)
@click.option(
    "--work-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("/var/tmp"),  # noqa: S108 - each measurement makes private directories below it
    show_default=True,
    help="Where stores keep their data meanwhile; on the kind of disk that is to be measured.",
)
def main(
    *, quick: bool, only: tuple[str, ...], rounds: int, kind: str, out: Path | None, work_dir: Path
) -> None:
    """Measure Holdfast beside its limits and a peer, on this machine."""
    progress = Console(stderr=True)
    taken_at = datetime.now(UTC)
    try:
        experiments = chosen(only)
        server = _server(kind)
        window = QUICK_WINDOW if quick else WINDOW
        with tempfile.TemporaryDirectory(dir=work_dir, prefix="holdfast-bench-") as path:
            # Servers that run as another user must be able to reach their own directories in it.
            Path(path).chmod(0o711)
            machine = look(server, Path(path))
            run = Rounds(
                experiments,
                Conditions(server=server, work_dir=Path(path), window=window, quick=quick),
            )
            uvloop.run(_until_told_to_stop(run.take(rounds, progress)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        progress.print("stopped; nothing is reported")
        sys.exit(EXIT_STOPPED)
    except NoServer as error:
        progress.print(escape(str(error)))
        sys.exit(EXIT_CANNOT_RUN)
    except RunFailed as error:
        progress.print(f"[red]failed[/red]: {escape(str(error))}", highlight=False)
        sys.exit(EXIT_WRONG)
    settings = Settings(
        store=kind,
        rounds=rounds,
        quick=quick,
        seconds=window.seconds,
        warm_up_seconds=window.warm_up_seconds,
        only=only,
    )
    report = Report(taken_at=taken_at, settings=settings, machine=machine, results=run.results())
    path_out = out or RESULTS / f"{taken_at:%Y-%m-%dT%H-%M-%SZ}.json"
    write(report, path_out)
    # A file or a pipe has no width of its own, and should not be cut to that of a narrow terminal.
    show(report, Console() if sys.stdout.isatty() else Console(width=REPORT_COLUMNS))
    progress.print(f"Every sample is in {path_out}", highlight=False)


if __name__ == "__main__":
    main()
