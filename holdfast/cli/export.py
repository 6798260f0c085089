"""`holdfast export`: stock or the ledger as a file."""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

import click
import msgspec

from engine.backlog import read_backlog
from engine.history import Missing, Question
from engine.keys import partition_of
from engine.ledger import decode_operations
from holdfast.cli.connection import json_option
from holdfast.cli.exit_codes import ExitCode
from holdfast.cli.ledger import warn_of
from holdfast.cli.moments import time_ms_of, time_options
from holdfast.cli.output import Bar, Output, file_option
from holdfast.cli.site import Place, Site, site_options
from holdfast.cli.stock import export as export_stock
from holdfast.ledger_file import LedgerFormat, LineWriter, lines_of, open_writer
from reconciler.passage import MAX_STEP_ENTRIES, Bound, Forwards
from reconciler.segments import RawEntry
from reconciler.shelf import Shelf


class _Exports(click.Group):
    """`export ledger` is one command; whatever else follows is meant for the export of stock."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in {*self.commands, "--help", "-h"}:
            args = ["stock", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Exports, short_help="Write stock, or the ledger, to a file.")
def export() -> None:
    """Write a merchant's stock (`holdfast export` alone), or the ledger, to a file."""


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
@time_options
@file_option
@click.option(
    "--format",
    "file_format",
    type=click.Choice([one.value for one in LedgerFormat]),
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
    with (
        output.progress("operations") as bar,
        _target(path) as stream,
        open_writer(stream, chosen) as writer,
    ):
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
        warn_of(work.missing, output)
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


export.add_command(export_stock, "stock")
export.add_command(export_ledger)
