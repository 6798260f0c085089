"""`holdfast history`, `ledger tail` and `export ledger`: what happened, for people and for files."""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final

import click
import msgspec

from engine.history import Missing, Order, Question
from engine.keys import partition_of
from engine.ledger import OperationKind, decode_operations
from engine.limits import MAX_PAGE
from holdfast.cli.connection import Service, json_option, merchant_option, service_options
from holdfast.cli.exit_codes import ExitCode
from holdfast.cli.moments import parse_moment, time_ms_of
from holdfast.cli.output import Bar, Output, moment
from holdfast.cli.site import Place, Site, site_options
from holdfast.client import Client
from holdfast.ledger_calls import LedgerEntry, LedgerPage, LedgerRow, MissingEntries
from holdfast.ledger_calls import ledger as ledger_call
from holdfast.ledger_file import LedgerFormat, LineWriter, lines_of, open_writer
from reconciler.backlog import read_backlog
from reconciler.passage import MAX_STEP_ENTRIES, Bound, Forwards, Shelf
from reconciler.segments import RawEntry

POLL_SECONDS: Final = 1.0
MAX_PAGES: Final = 1_000_000
"""Of one answer: some 10^8 operations, more than anybody reads on a terminal."""

_COLUMNS: Final = (
    "at",
    "seq",
    "op",
    "actor",
    "on_hand",
    "reserved",
    "=on_hand",
    "=reserved",
    "=available",
    "reference",
)
"""Changes first, then what the row came to."""

_TIME: Final = "TIME"
Command = Callable[..., Any]


def _time_options(command: Command) -> Command:
    """Add `--from` and `--to`."""
    since = click.option(
        "--from", "from_time", type=parse_moment, metavar=_TIME, help="From this moment on."
    )
    until = click.option(
        "--to", "to_time", type=parse_moment, metavar=_TIME, help="Before this moment."
    )
    return since(until(command))


@click.command(short_help="Show what happened to a SKU.")
@click.argument("sku")
@merchant_option
@click.option("--location", "-l", help="Where.  [default: everywhere]")
@click.option("--actor", help="Only what this actor did.")
@click.option("--reference", help="Only movements of this reference, or this order.")
@click.option("--kind", type=click.Choice([*OperationKind]), help="Only operations of this kind.")
@_time_options
@click.option("--oldest-first", is_flag=True, help="Start with the oldest.  [default: newest]")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="How many operations to show.",
)
@service_options
@json_option
def history(
    service: Service,
    sku: str,
    merchant: str,
    from_time: datetime | None,
    to_time: datetime | None,
    oldest_first: bool,
    limit: int,
    output: Output,
    **filters: str | None,
) -> None:
    """Show the operations on SKU, each with its change and what the row came to.

    It reaches into the archive. A time may be a date, 2026-11-23, or to the second,
    2026-11-23T15:38:04Z; one without an offset is in UTC. With --json one operation a line.
    """
    missing: list[MissingEntries] = []
    with service.client() as client:
        found = _Answer(
            client,
            merchant,
            {**filters, "sku": sku},
            from_time=from_time,
            to_time=to_time,
            order=Order.OLDEST if oldest_first else Order.NEWEST,
        ).entries(limit + 1, missing)
        entries = list(found)
    for entry in entries[:limit]:
        output.document(entry)
    if not output.as_json:
        output.table(_COLUMNS, [_cells(entry, entry.rows[0]) for entry in entries[:limit]])
    if len(entries) > limit:
        output.note(f"There are more than {limit}; ask for more with --limit.")
    elif not entries:
        output.note("Nothing was found.")
    _warn_of(missing, output)


@click.group(short_help="Follow the ledger.")
def ledger() -> None:
    """Follow what happens, as the ledger tells it."""


@ledger.command(short_help="Show operations as they happen.")
@merchant_option
@click.option("--location", "-l", help="Only at this location.")
@click.option("--sku", help="Only on this SKU.")
@click.option("--reservation", help="Only on this reservation.")
@click.option("--actor", help="Only what this actor did.")
@click.option("--reference", help="Only movements of this reference, or this order.")
@click.option("--kind", type=click.Choice([*OperationKind]), help="Only operations of this kind.")
@click.option(
    "--lines",
    "-n",
    type=click.IntRange(0, MAX_PAGE),
    default=10,
    show_default=True,
    help="How many of the last operations to show first.",
)
@click.option(
    "--seconds", type=click.FloatRange(min=0), help="Stop after that long.  [default: never]"
)
@service_options
@json_option
def tail(
    service: Service,
    merchant: str,
    lines: int,
    seconds: float | None,
    output: Output,
    **filters: str | None,
) -> None:
    """Show the last operations, and then each new one, until Ctrl-C. With --json as NDJSON."""
    with service.client() as client:
        follower = _Follower(client, merchant, filters)
        give_up_at = None if seconds is None else time.monotonic() + seconds
        for entry in follower.last(lines):
            _show(entry, output)
        while True:
            for entry in follower.since():
                _show(entry, output)
            if give_up_at is not None and time.monotonic() >= give_up_at:
                return
            sys.stdout.flush()
            time.sleep(POLL_SECONDS)


class _Answer:
    """A question to the service, page by page."""

    def __init__(
        self,
        client: Client,
        merchant: str,
        filters: dict[str, str | None],
        *,
        from_time: datetime | None = None,
        to_time: datetime | None = None,
        order: Order,
    ) -> None:
        self._client = client
        self._merchant = merchant
        self._filters = filters
        self._from_time = from_time
        self._to_time = to_time
        self._order = order
        self.cursor: str | None = None

    def page(self, limit: int) -> LedgerPage:
        """Ask for the next page, and remember where it ends."""
        page = self._client.send(
            ledger_call(
                self._merchant,
                filters=self._filters,
                from_time=self._from_time,
                to_time=self._to_time,
                order=self._order,
                limit=min(limit, MAX_PAGE),
                cursor=self.cursor,
            )
        )
        self.cursor = page.next_cursor or self.cursor
        return page

    def entries(self, limit: int | None, missing: list[MissingEntries]) -> Iterator[LedgerEntry]:
        """Yield up to `limit` entries, to the end where that is None."""
        left = limit
        for _ in range(MAX_PAGES):
            page = self.page(MAX_PAGE if left is None else left)
            missing += page.missing
            yield from page.data
            if left is not None:
                left -= len(page.data)
            if not page.has_more or left == 0:
                return


class _Follower:
    """The end of the ledger, and what comes after it."""

    def __init__(self, client: Client, merchant: str, filters: dict[str, str | None]) -> None:
        self._client = client
        self._merchant = merchant
        self._filters = filters
        self._shown: set[tuple[int, int]] = set()
        self._newer: _Answer | None = None

    def last(self, count: int) -> Sequence[LedgerEntry]:
        """Return the last operations, the oldest first."""
        answer = _Answer(self._client, self._merchant, self._filters, order=Order.NEWEST)
        # One at least, to know from where on to follow.
        found = list(answer.entries(max(1, count), []))
        self._shown = {(entry.partition, entry.sequence) for entry in found}
        self._newer = _Answer(
            self._client,
            self._merchant,
            self._filters,
            from_time=found[0].at if found else None,
            order=Order.OLDEST,
        )
        return found[:count][::-1]

    def since(self) -> Iterator[LedgerEntry]:
        """Yield what came since this was last asked."""
        if self._newer is None:
            return
        for entry in self._newer.entries(None, []):
            # What the first look has shown shares its moment with what came just after it.
            if (entry.partition, entry.sequence) not in self._shown:
                yield entry


def _show(entry: LedgerEntry, output: Output) -> None:
    if output.as_json:
        output.document(entry)
        return
    rows = ", ".join(_row_text(row) for row in entry.rows) or "-"
    reference = f"  ({entry.reference})" if entry.reference else ""
    output.text(
        f"{moment(entry.at)}  {entry.location}  {_kind(entry):12} {entry.actor}  {rows}{reference}"
    )


def _row_text(row: LedgerRow) -> str:
    changes = row.changes
    said = [
        f"{units:+,} {name}"
        for name, units in (
            ("on hand", changes.on_hand),
            ("reserved", changes.reserved),
            ("safety stock", changes.safety_stock),
            ("deficit", changes.deficit),
        )
        if units
    ]
    return f"{row.sku} {' '.join(said) or '+0'} = {row.available:,} available"


def _kind(entry: LedgerEntry) -> str:
    return str(entry.details.get("type", entry.kind.value))


def _cells(entry: LedgerEntry, row: LedgerRow) -> Sequence[object]:
    return (
        moment(entry.at),
        entry.sequence,
        _kind(entry),
        entry.actor,
        f"{row.changes.on_hand:+,}",
        f"{row.changes.reserved:+,}",
        row.on_hand,
        row.reserved,
        row.available,
        entry.reference,
    )


def _warn_of(missing: Sequence[MissingEntries], output: Output) -> None:
    for gap in missing:
        output.note(
            f"Partition {gap.partition}: operations {gap.first_sequence} to {gap.last_sequence} "
            "cannot be read; `holdfast archive verify` looks for the cause."
        )


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What was exported: operations, and lines of the file; `missing` could not be read."""

    path: str
    format: LedgerFormat
    operations: int
    lines: int
    missing: tuple[Missing, ...]


@click.command("ledger", short_help="Write the ledger to a file.")
@click.option("--merchant", "-m", envvar="HOLDFAST_MERCHANT", help="Whose.  [default: everybody's]")
@click.option("--location", "-l", help="Only this location; needs --merchant.")
@_time_options
@click.option(
    "--output",
    "-o",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write.  [default: standard output]",
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice([*LedgerFormat]),
    help="How to write it; parquet needs --output.  [default: by the file's name, else csv]",
)
@site_options
@json_option
def export_ledger(
    site: Site,
    merchant: str | None,
    location: str | None,
    from_time: datetime | None,
    to_time: datetime | None,
    path: Path | None,
    file_format: str | None,
    output: Output,
) -> None:
    """Write one line for each row that an operation changed, partition by partition.

    It reads the store and its archive directly. A file takes its name when it is complete. The
    exit code is 1 where some of the ledger could not be read.
    """
    chosen = (
        LedgerFormat(file_format) if file_format else LedgerFormat.of(path.name if path else "")
    )
    if location is not None and merchant is None:
        raise click.UsageError("say whose location it is with --merchant")
    if path is None and (chosen is LedgerFormat.PARQUET or output.as_json):
        raise click.UsageError("name a file with --output")
    with output.progress("operations") as bar, _target(path) as stream:
        with open_writer(stream, chosen) as writer:
            work = _Export(writer, bar, merchant, location, from_time, to_time)
            site.run(work.run)
    document = Exported(
        path="-" if path is None else str(path),
        format=chosen,
        operations=work.operations,
        lines=work.lines,
        missing=tuple(work.missing),
    )
    output.document(document)
    output.note(f"{work.lines:,} lines of {work.operations:,} operations written.")
    if work.missing:
        lost = [MissingEntries(*msgspec.structs.astuple(gap)) for gap in work.missing]
        _warn_of(lost, output)
        raise click.exceptions.Exit(ExitCode.REFUSED)


class _Export:
    """One pass over the ledger of a store."""

    def __init__(
        self,
        writer: LineWriter,
        bar: Bar,
        merchant: str | None,
        location: str | None,
        from_time: datetime | None,
        to_time: datetime | None,
    ) -> None:
        self._writer = writer
        self._bar = bar
        self._merchant = merchant
        self._location = location
        self._from_ms = 0 if from_time is None else time_ms_of(from_time)
        self._to_ms = None if to_time is None else time_ms_of(to_time)
        self._marks: tuple[bytes, ...] = ()
        if merchant is not None:
            self._marks = Question(merchant=merchant, location=location).marks()
        self._seen = 0
        self._total = 0
        self.operations = 0
        self.lines = 0
        self.missing: list[Missing] = []

    async def run(self, place: Place) -> None:
        """Write what is asked for, the partitions one after the other."""
        inventory = place.inventory
        partitions: Sequence[int] = range(inventory.partitions)
        if self._merchant is not None and self._location is not None:
            partitions = [partition_of(self._merchant, self._location, inventory.partitions)]
        backlog = await read_backlog(inventory.store, inventory.keys)
        self._total = sum(backlog.partitions[partition].sequence for partition in partitions)
        shelf = Shelf.of(place.archive)
        bound = Bound("at", self._from_ms) if self._from_ms else None
        for partition in partitions:
            passage = Forwards(inventory.store, inventory.keys[partition], shelf, bound)
            # What is written while this runs is for the next export.
            last = backlog.partitions[partition].sequence
            while (entries := await passage.step(MAX_STEP_ENTRIES)) is not None:
                if not self._take(partition, entries, last):
                    break
            self.missing += passage.missing

    def _take(self, partition: int, entries: Sequence[RawEntry], last: int) -> bool:
        """Write entries; return whether more of the partition are wanted."""
        for entry in entries:
            if entry.sequence > last or (self._to_ms is not None and entry.at_ms >= self._to_ms):
                return False
            self._seen += entry.operation_count
            if entry.at_ms >= self._from_ms and all(m in entry.operations for m in self._marks):
                self._write(partition, entry)
        self._bar.show("exporting", self._seen, self._total)
        return True

    def _write(self, partition: int, entry: RawEntry) -> None:
        for offset, operation in enumerate(decode_operations(entry.operations)):
            if self._merchant not in (None, operation.merchant):
                continue
            if self._location not in (None, operation.location):
                continue
            self.operations += 1
            for line in lines_of(
                operation,
                partition=partition,
                sequence=entry.sequence + offset,
                at_ms=entry.at_ms,
            ):
                self._writer.write(line)
                self.lines += 1


@contextmanager
def _target(path: Path | None) -> Iterator[IO[bytes]]:
    """Open a file that takes its name only once it is complete, or standard output."""
    if path is None:
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as stream:
        draft = Path(stream.name)
        try:
            yield stream
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
    draft.replace(path)
