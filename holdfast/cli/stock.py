"""`holdfast stock`, `move`, `import` and `export`."""

import asyncio
import csv
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Final

import click
import msgspec

from engine.limits import MAX_PAGE, MAX_PARTS
from engine.model import MovementType
from holdfast import calls
from holdfast.calls import NewMovement, Stock
from holdfast.cli.connection import (
    JSON_ASKED,
    Service,
    json_option,
    key_option,
    limit_option,
    merchant_option,
    service_options,
)
from holdfast.cli.exit_codes import ExitCode
from holdfast.cli.output import Bar, Output, file_option
from holdfast.client import Client, ClientError, RetryPolicy, new_key
from holdfast.stock_file import (
    MAX_IMPORT_ID_CHARACTERS,
    BadRow,
    Format,
    ImportReport,
    RowVerdict,
    StockFile,
    StockImport,
    StockRow,
    is_import_id,
    write_rows,
)

DEFAULT_ROWS: Final = 100
MAX_SHOWN_PROBLEMS: Final = 20
"""Rows that an import names on the terminal; more scroll the first ones away."""

IMPORT_RETRY: Final = RetryPolicy(max_attempts=8, max_wait_seconds=5.0)
"""An import is long and unattended: it waits out a restart of the service."""

_COLUMNS: Final = (
    "sku",
    "on_hand",
    "reserved",
    "safety_stock",
    "available",
    "shortfall",
    "deficit",
    "version",
)


@click.command(short_help="Show stock: one row, a location, or the locations.")
@click.argument("location", required=False)
@click.argument("sku", required=False)
@merchant_option
@limit_option(DEFAULT_ROWS, told="Rows or locations to show at most.")
@service_options
@json_option
def stock(
    service: Service,
    location: str | None,
    sku: str | None,
    merchant: str,
    limit: int,
    output: Output,
) -> None:
    """Show the row of SKU at LOCATION, or the rows of LOCATION, or the locations.

    With --json one row is a document; a listing is NDJSON, one document a line.
    """
    page = min(limit + 1, MAX_PAGE)
    with service.client() as client:
        if location is None:
            names = list(islice(client.all_locations(merchant, limit=page), limit + 1))
            for name in names[:limit]:
                output.document({"location": name})
            if not output.as_json:
                output.table(["location"], [[name] for name in names[:limit]])
            shown = len(names)
        elif sku is not None:
            row = client.stock(merchant, location, sku, strong=True)
            output.document(row)
            if not output.as_json:
                output.table(_COLUMNS, [_cells(row)])
            return
        else:
            rows = list(islice(client.all_stock(merchant, location, limit=page), limit + 1))
            for row in rows[:limit]:
                output.document(row)
            if not output.as_json:
                output.table(_COLUMNS, [_cells(row) for row in rows[:limit]])
            shown = len(rows)
    if shown > limit:
        output.note(f"There are more than {limit}; ask for more with --limit.")
    elif shown == 0:
        output.note("There is nothing yet.")


@click.command(short_help="Book units that came or went.")
@click.argument(
    "movement_type", metavar="TYPE", type=click.Choice([kind.value for kind in MovementType])
)
@click.argument("location")
@click.argument("sku")
@click.argument("quantity", type=int)
@merchant_option
@click.option("--reason", default="", help="Why; `adjust` needs one.")
@click.option("--reference", default="", help="The document behind it, such as a delivery note.")
@click.option("--supply", default="", help="Of what arrives, the supply that it came with.")
@key_option("book once")
@service_options
@json_option
def move(
    service: Service,
    movement_type: str,
    location: str,
    sku: str,
    quantity: int,
    merchant: str,
    reason: str,
    reference: str,
    supply: str,
    idempotency_key: str | None,
    output: Output,
) -> None:
    """Book QUANTITY units of SKU that came to LOCATION or left it.

    TYPE is receive, return, sale, transfer_in, transfer_out, adjust (QUANTITY may be negative,
    after `--`) or count (QUANTITY is what is on the shelf now).
    """
    movement = NewMovement(
        id=idempotency_key or new_key(),
        location=location,
        type=MovementType(movement_type),
        sku=sku,
        quantity=quantity,
        reason=reason,
        reference=reference,
        supply=supply,
    )
    with service.client() as client:
        booked = client.move(merchant, movement)
    output.document(booked)
    if not output.as_json:
        again = " (booked before)" if booked.replayed else ""
        output.text(
            f"{sku} at {location}: {booked.on_hand_change:+,} units, now {booked.stock.on_hand:,} "
            f"on hand, {booked.stock.available:,} available{again}"
        )


@click.command(short_help="Spread a hot row over partitions, or no longer.")
@click.argument("location")
@click.argument("sku")
@click.argument("parts", type=click.IntRange(1, MAX_PARTS), required=False)
@merchant_option
@service_options
@json_option
def split(
    service: Service, location: str, sku: str, parts: int | None, merchant: str, output: Output
) -> None:
    """Spread the row of SKU at LOCATION over PARTS partitions, or show how it is spread.

    1 spreads it no longer. It can be changed while the row is in use.
    """
    with service.client() as client:
        found = client.split(merchant, location, sku, parts=parts)
    output.document(found)
    if not output.as_json:
        rows: list[list[object]] = [[found.home, "home", found.free_at_home, ""]]
        for share in found.shares:
            state = "open" if share.open else "closed"
            rows.append([share.partition, state, share.free, share.reserved])
        output.table(("partition", "part", "free", "reserved"), rows)


@click.command(short_help="Write a merchant's stock to a file.")
@click.argument("location", required=False)
@merchant_option
@file_option
@click.option(
    "--format",
    "file_format",
    type=click.Choice([one.value for one in Format]),
    help="How to write it.  [default: by the file's name, else csv]",
)
@click.option("--terms", is_flag=True, help="Also write on what terms units are promised.")
@service_options
@json_option
def export(
    service: Service,
    location: str | None,
    merchant: str,
    path: Path | None,
    file_format: str | None,
    terms: bool,
    output: Output,
) -> None:
    """Write the stock of LOCATION, or of every location, as `holdfast import` takes it back.

    The file is complete or not there: it takes its name when the last row is written. --json
    writes NDJSON rows to standard output, or with --output one document about the file.
    """
    if file_format is not None:
        chosen = Format(file_format)
    elif path is not None:
        chosen = Format.of(path.name)
    else:
        chosen = Format.NDJSON if output.as_json else Format.CSV
    with service.client() as client:
        rows = _all_rows(client, merchant, location)
        if path is None:
            # Newlines within an id must reach the file as they are, on every system.
            sys.stdout.flush()
            write_rows(sys.stdout, rows, chosen, terms=terms)
            return
        with output.progress("rows") as bar, _whole_file(path) as stream:
            count = write_rows(stream, _counted(rows, bar), chosen, terms=terms)
    output.document({"path": str(path), "format": chosen, "rows": count})
    output.text(f"{count:,} rows written to {path}")


@click.command("import", short_help="Set stock from a file.")
@click.argument("path", metavar="FILE")
@merchant_option
@click.option(
    "--format",
    "file_format",
    type=click.Choice([one.value for one in Format]),
    help="How the file is written.  [default: by its name, else csv]",
)
@click.option(
    "--import-id",
    help="Names this import; the same one resumes it.  [default: from merchant and content]",
)
@click.option(
    "--all-or-nothing", is_flag=True, help="Apply nothing unless every row of the file is good."
)
@click.option(
    "--verdicts",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A CSV file to write what became of each row to.",
)
@service_options
@json_option
def import_stock(
    service: Service,
    path: str,
    merchant: str,
    file_format: str | None,
    import_id: str | None,
    all_or_nothing: bool,
    verdicts: Path | None,
    output: Output,
) -> None:
    """Set the stock of the rows in FILE (`-` for standard input) to what it says.

    The columns are location, sku, on_hand and, optionally, safety_stock, backorder_limit, buyer_cap
    and channels. Each row is booked as a count. A bad row is named by line and column and the rest
    applied. An import that was cut short resumes when the same command is run again: rows that were
    applied say replayed.
    """
    if import_id is not None and not is_import_id(import_id):
        raise click.BadParameter(
            f"takes 1 to {MAX_IMPORT_ID_CHARACTERS} printable ASCII characters",
            param_hint="--import-id",
        )
    chosen = Format(file_format) if file_format is not None else None
    with ExitStack() as stack:
        file = stack.enter_context(StockFile(path, chosen))
        derived = file.import_id(merchant)
        bar = stack.enter_context(output.progress("rows"))
        record = stack.enter_context(_verdict_file(verdicts)) if verdicts else None
        job = _ImportJob(
            service,
            file,
            merchant=merchant,
            import_id=import_id or derived,
            record=record or (lambda _: None),
            bar=bar,
        )
        fault = job.run(all_or_nothing=all_or_nothing)
    _tell(job.report, output, fault=fault, all_or_nothing=all_or_nothing)
    if fault is not None:
        # The report is this command's one document, and names the fault.
        click.get_current_context().meta[JSON_ASKED] = False
        raise fault
    if not job.report.is_clean:
        sys.exit(ExitCode.REFUSED)


class _ImportJob:
    """One run of an import, from the checks to the last row."""

    def __init__(
        self,
        service: Service,
        file: StockFile,
        *,
        merchant: str,
        import_id: str,
        record: Callable[[RowVerdict], None],
        bar: Bar,
    ) -> None:
        self._service = service
        self._file = file
        self._record = record
        self._bar = bar
        self._merchant = merchant
        self._import_id = import_id
        self.report = ImportReport(merchant=merchant, import_id=import_id)

    def run(self, *, all_or_nothing: bool) -> ClientError | None:
        """Import the file; return what made the service's answers end, if something did."""
        return asyncio.run(self._run(all_or_nothing=all_or_nothing))

    async def _run(self, *, all_or_nothing: bool) -> ClientError | None:
        async with self._service.async_client(retry=IMPORT_RETRY) as client:
            job = StockImport(
                client,
                merchant=self._merchant,
                import_id=self._import_id,
                on_verdict=self._record,
            )
            self.report = job.report
            if all_or_nothing:
                checked = self._watched("checking", self._file.rows())
                if any(isinstance(row, BadRow) for row in checked):
                    job.refuse_all(self._watched("checking", self._file.rows()))
                    return None
            # The patience of IMPORT_RETRY is for an outage on the way, not before the first answer.
            await client.send(calls.locations(self._merchant, limit=1), retry=RetryPolicy())
            try:
                rows = self._watched("importing", self._file.rows())
                await job.run(rows, stop_at_refusal=all_or_nothing)
            except ClientError as fault:
                job.report.stopped_by = str(fault)
                return fault
        return None

    def _watched(
        self, label: str, rows: Iterable[StockRow | BadRow]
    ) -> Iterator[StockRow | BadRow]:
        for row in rows:
            self._bar.show(label, row.line, self._file.lines)
            yield row


def _tell(
    report: ImportReport, output: Output, *, fault: ClientError | None, all_or_nothing: bool
) -> None:
    output.document(report)
    for problem in report.problems[:MAX_SHOWN_PROBLEMS]:
        column = f", column {problem.column}" if problem.column else ""
        code = "" if problem.code == "invalid_row" else f" ({problem.code})"
        output.note(f"line {problem.line}{column}: {problem.detail}{code}")
    hidden = len(report.problems[MAX_SHOWN_PROBLEMS:]) + report.problems_omitted
    if hidden:
        output.note(f"... and {hidden:,} more; --verdicts writes them all to a file")
    counts = {
        "applied": report.applied,
        "applied before": report.replayed,
        "refused": report.refused,
        "bad": report.invalid,
        "not applied": report.not_applied,
    }
    said = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    output.text(f"Rows: {said or 'none'}. Import id {report.import_id}.")
    if fault is not None:
        output.note(
            f"The import stopped after line {report.applied_through_line}. Up to there "
            "every row has its verdict; the batch after it may be applied or not. Run the same "
            "command again to go on: what is applied is not applied twice."
        )
    elif all_or_nothing and report.not_applied:
        output.note("Nothing was applied, because not every row is good.")
    elif not report.is_complete:
        output.note(
            f"Stopped after line {report.applied_through_line}, in a batch in which the service "
            "refused rows: every other row up to there is applied, none after it. Mend what the "
            f"refusals name, leave every row on its line, and run it again with --import-id "
            f"{report.import_id} to go on."
        )


def _cells(row: Stock) -> list[object]:
    return [getattr(row, column) for column in _COLUMNS]


def _all_rows(client: Client, merchant: str, location: str | None) -> Iterator[Stock]:
    locations = (
        [location] if location is not None else client.all_locations(merchant, limit=MAX_PAGE)
    )
    for name in locations:
        yield from client.all_stock(merchant, name, limit=MAX_PAGE)


def _counted(rows: Iterable[Stock], bar: Bar) -> Iterator[Stock]:
    for count, row in enumerate(rows, 1):
        bar.show("exporting", count, None)
        yield row


@contextmanager
def _whole_file(path: Path) -> Iterator[IO[str]]:
    """Write a file that takes its name only once it is complete."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    draft = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
            yield stream
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def _verdict_file(path: Path) -> Iterator[Callable[[RowVerdict], None]]:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(RowVerdict.__struct_fields__)

        def record(verdict: RowVerdict) -> None:
            writer.writerow(msgspec.structs.astuple(verdict))

        yield record
