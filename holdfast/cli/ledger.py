"""`holdfast history` and `holdfast ledger tail`: what happened, as the service tells it."""

import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

import click

from engine.history import Missing, Order
from engine.ledger import OperationKind
from engine.limits import MAX_PAGE
from holdfast.cli.connection import (
    Service,
    json_option,
    limit_option,
    merchant_option,
    service_options,
)
from holdfast.cli.moments import time_options
from holdfast.cli.output import Output, moment
from holdfast.client import Client
from holdfast.ledger_calls import LedgerEntry, LedgerPage, LedgerRow, MissingEntries
from holdfast.ledger_calls import ledger as ledger_call

POLL_SECONDS: Final = 1.0
MAX_PAGES: Final = 1_000_000
"""Of one answer: some 10^8 operations, more than anybody reads on a terminal."""

_COLUMNS: Final = (
    "at",
    "location",
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

_KINDS: Final = [kind.value for kind in OperationKind]


@click.command(short_help="Show what happened to a SKU.")
@click.argument("sku")
@merchant_option
@click.option("--location", "-l", help="Where.  [default: everywhere]")
@click.option("--actor", help="Only what this actor did.")
@click.option("--reference", help="Only movements of this reference, or this order.")
@click.option("--kind", type=click.Choice(_KINDS), help="Only operations of this kind.")
@time_options
@click.option("--oldest-first", is_flag=True, help="Start with the oldest.  [default: newest]")
@limit_option(50, told="How many operations to show.")
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
    warn_of(missing, output)


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
@click.option("--kind", type=click.Choice(_KINDS), help="Only operations of this kind.")
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
            ("low-stock threshold", changes.low_stock_threshold),
        )
        if units
    ]
    return f"{row.sku} {' '.join(said) or '+0'} = {row.available:,} available"


def _kind(entry: LedgerEntry) -> str:
    return str(entry.details.get("type", entry.kind.value))


def _cells(entry: LedgerEntry, row: LedgerRow) -> Sequence[object]:
    return (
        moment(entry.at),
        entry.location,
        entry.sequence,
        _kind(entry),
        entry.actor,
        f"{row.changes.on_hand:+,}",
        f"{row.changes.reserved:+,}",
        row.on_hand,
        row.reserved,
        row.available,
        entry.reference or entry.details.get("reason", ""),
    )


def warn_of(missing: Sequence[MissingEntries | Missing], output: Output) -> None:
    """Say what could not be read."""
    for gap in missing:
        output.note(
            f"Partition {gap.partition}: operations {gap.first_sequence} to {gap.last_sequence} "
            "cannot be read; `holdfast archive verify` looks for the cause."
        )
