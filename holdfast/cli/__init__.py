"""The `holdfast` command: one module a group of commands, and here what they have in common.

Every command ends with a code of `holdfast.cli.exit_codes`, and says what went wrong in plain words
on standard error; with `--json` also as a document on standard output.
"""

import sys
import traceback
from typing import Any

import click

from engine.outcomes import (
    HistoryUnavailable,
    HoldfastError,
    IndexUnavailable,
    InvalidCommand,
    OutcomeUnknown,
    Overloaded,
    StoreReadOnly,
    StoreUnavailable,
)
from holdfast import __version__
from holdfast.cli import (
    archive,
    definitions,
    doctor,
    export,
    feeds,
    index,
    keys,
    ledger,
    orders,
    readers,
    rebuild,
    reconcile,
    replay,
    reservations,
    serving,
    stock,
    supplies,
    webhooks,
)
from holdfast.cli.connection import JSON_ASKED, NotRunning, SetupProblem, json_option
from holdfast.cli.exit_codes import ExitCode
from holdfast.cli.output import Output
from holdfast.client import ApiError, ServiceUnreachable, UnexpectedAnswer
from holdfast.epcis import EpcisRefused
from holdfast.ledger_file import ParquetMissing
from holdfast.settings import SettingsRefused
from holdfast.stock_file import FileRefused
from holdfast.supervisor import REFUSALS
from reconciler.counterfactual import TooMuchToUndo
from reconciler.objects import ArchiveUnavailable
from reconciler.reader import LedgerDamaged
from reconciler.rebuild_plan import RebuildRefused
from reconciler.sealed import FileDamaged
from reconciler.settings import SettingRefused


class _Failure:
    """How a command failed: its exit code, a stable code, a sentence, and what the service said."""

    def __init__(
        self, exit_code: ExitCode, code: str, detail: str, problem: dict[str, Any] | None = None
    ) -> None:
        self.exit_code = exit_code
        self.code = code
        self.detail = detail
        self.problem = problem

    def document(self) -> dict[str, Any]:
        return {"error": self.problem or {"code": self.code, "detail": self.detail}}


class _Commands(click.Group):
    """The process edge: turns what a command raises into words and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit):
            raise
        except (KeyboardInterrupt, click.Abort):
            click.echo("Interrupted.", err=True)
            raise click.exceptions.Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read our output has seen enough; click ends such a command quietly.
            raise
        except Exception as fault:
            # The edge of the process: whatever it is, a user gets words and an exit code.
            failure = _failure(fault)
            if failure.exit_code is ExitCode.BUG and ctx.params.get("debug"):
                traceback.print_exception(fault)
            output = Output(as_json=ctx.meta.get(JSON_ASKED, False))
            _tell(output, failure)
            raise click.exceptions.Exit(failure.exit_code) from fault


def _failure(fault: Exception) -> _Failure:
    if isinstance(fault, ApiError):
        return _refusal(fault)
    if isinstance(fault, ServiceUnreachable):
        detail = (
            f"No answer from {fault.url}: {fault.reason} ({fault.attempts} attempts). Is "
            "`holdfast serve` running? `holdfast doctor` looks for the cause."
        )
        return _Failure(ExitCode.UNREACHABLE, "service_unreachable", detail)
    if isinstance(fault, UnexpectedAnswer):
        detail = f"{fault}. Is --url right?"
        return _Failure(ExitCode.UNREACHABLE, "unexpected_answer", detail)
    if isinstance(fault, NotRunning):
        return _Failure(ExitCode.UNREACHABLE, "not_running", f"{fault}.")
    if isinstance(fault, SetupProblem):
        return _Failure(ExitCode.SETUP, "setup", f"{fault}.")
    if isinstance(fault, SettingsRefused):
        return _Failure(ExitCode.USAGE, "invalid_settings", str(fault))
    if isinstance(fault, FileRefused | EpcisRefused):
        return _Failure(ExitCode.USAGE, "invalid_file", f"The file cannot be read: {fault}.")
    if isinstance(fault, REFUSALS):
        code = ExitCode.UNREACHABLE if isinstance(fault, StoreUnavailable) else ExitCode.SETUP
        return _Failure(code, "cannot_start", f"{fault}")
    if isinstance(fault, InvalidCommand):
        return _Failure(ExitCode.USAGE, fault.code, f"{fault}.")
    if isinstance(fault, ArchiveUnavailable):
        return _Failure(ExitCode.SETUP, "archive_unavailable", f"{fault}.")
    if isinstance(fault, FileDamaged | LedgerDamaged):
        return _Failure(ExitCode.REFUSED, "archive_damaged", f"{fault}.")
    if isinstance(fault, RebuildRefused):
        return _Failure(ExitCode.REFUSED, "rebuild_refused", f"Not rebuilt: {fault}.")
    if isinstance(fault, TooMuchToUndo):
        return _Failure(ExitCode.REFUSED, "too_much_to_undo", f"{fault}.")
    if isinstance(fault, ParquetMissing):
        return _Failure(ExitCode.SETUP, "parquet_missing", f"{fault}.")
    if isinstance(fault, SettingRefused):
        return _Failure(ExitCode.USAGE, "invalid_settings", f"{fault}.")
    if isinstance(
        fault, HistoryUnavailable | IndexUnavailable | OutcomeUnknown | Overloaded | StoreReadOnly
    ):
        return _Failure(ExitCode.UNREACHABLE, fault.code, f"{fault}.")
    if isinstance(fault, HoldfastError):
        return _Failure(ExitCode.REFUSED, fault.code, f"{fault}.")
    if isinstance(fault, OSError):
        return _Failure(ExitCode.SETUP, "system", f"{fault}.")
    detail = f"This is a bug in Holdfast: {type(fault).__name__}: {fault}. --debug shows where."
    return _Failure(ExitCode.BUG, "bug", detail)


def _refusal(fault: ApiError) -> _Failure:
    problem = fault.problem
    lines = [f"Refused: {fault} ({problem.code})."]
    for error in problem.errors:
        if error.get("detail") == problem.detail:
            continue
        names = ("sku", "pointer", "parameter", "header")
        place = next((error[name] for name in names if name in error), "")
        unknown = ", which has no row here" if error.get("known") is False else ""
        lines.append(f"  {place}{unknown}: {error.get('detail', '')}")
    if problem.code == "unauthenticated":
        lines.append("The API key is not known to this service, or was revoked.")
    # The service is there but cannot answer now: a script may try again, as if it were away.
    # So it is with a rate limit.
    is_later = problem.status >= 500 or problem.status == 429
    exit_code = ExitCode.UNREACHABLE if is_later else ExitCode.REFUSED
    document = {
        "code": problem.code,
        "status": problem.status,
        "title": problem.title,
        "detail": problem.detail,
        "request_id": problem.request_id,
        "errors": problem.errors,
    }
    return _Failure(exit_code, problem.code, "\n".join(lines), document)


def _tell(output: Output, failure: _Failure) -> None:
    output.document(failure.document())
    output.note(failure.detail[:1].upper() + failure.detail[1:])


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 refused, 2 usage, 3 unreachable, 4 setup, 130 interrupted.",
)
@click.option("--debug", is_flag=True, help="Show where a bug in Holdfast struck.")
def main(debug: bool) -> None:
    """Holdfast: one true number for every SKU at every location."""


@main.command(short_help="Show the version.")
@json_option
def version(output: Output) -> None:
    """Show the version of Holdfast and of what it runs on."""
    python = ".".join(map(str, sys.version_info[:3]))
    output.document({"holdfast": __version__, "python": python})
    if not output.as_json:
        output.text(f"holdfast {__version__} (Python {python})")


for _command in (
    serving.serve,
    serving.demo,
    stock.stock,
    stock.move,
    stock.split,
    stock.import_stock,
    export.export,
    reservations.reserve,
    reservations.confirm,
    reservations.extend,
    reservations.amend,
    reservations.relocate,
    reservations.commit,
    reservations.release,
    reservations.reservation,
    reservations.reservations,
    supplies.supplies,
    orders.orders,
    feeds.feed,
    feeds.feeds,
    definitions.substitutes,
    definitions.kits,
    ledger.history,
    ledger.ledger,
    archive.archive,
    archive.snapshot,
    reconcile.reconcile,
    reconcile.audit,
    reconcile.repair,
    rebuild.rebuild_store,
    keys.keys,
    readers.readers,
    webhooks.webhooks,
    index.search,
    index.items,
    index.index,
    doctor.doctor,
    replay.replay,
    version,
):
    main.add_command(_command)
