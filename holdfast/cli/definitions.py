"""`holdfast substitutes` and `holdfast kits`: what stands for what, and what kits are made of."""

import csv
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import IO, Any, Final, TypeVar

import click

from engine.limits import MAX_BATCH_DEFINITIONS, MAX_PAGE
from engine.substitutes import DEFAULT_PRIORITY, Direction
from holdfast import definition_calls as calls
from holdfast.calls import Call, Line, Page
from holdfast.cli.connection import Service, json_option, merchant_option, service_options
from holdfast.cli.output import Output
from holdfast.client import Client
from holdfast.stock_file import FileRefused, bounded_lines

SUBSTITUTES_COLUMNS: Final = (
    "sku",
    "alternative",
    "of",
    "for",
    "priority",
    "direction",
    "locations",
    "approval",
)
KITS_COLUMNS: Final = ("sku", "component", "quantity")

LOCATION_SEPARATOR: Final = ";"

MAX_FILE_ROWS: Final = 100_000
"""Lines of a file, which is held in memory: 10,000 SKUs and what each may have."""

_YES_OR_NO: Final = {"": False, "no": False, "false": False, "yes": True, "true": True}

Said = TypeVar("Said")
Row = dict[str, str]
Command = Callable[..., Any]

_file = click.argument("path", metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True))


@click.group(short_help="SKUs that stand for others.")
def substitutes() -> None:
    """Say what may stand for a SKU that has run short."""


@substitutes.command("import", short_help="Take rules from a file.")
@_file
@merchant_option
@service_options
@json_option
def import_substitutes(service: Service, merchant: str, path: str, output: Output) -> None:
    """Take the rules of FILE, a CSV with the columns sku and alternative.

    The columns of, for, priority, direction (one_way or both), locations (several with ; between
    them) and approval (yes or no) may be left out. What FILE says of a SKU takes the place of what
    was said before; other SKUs stay as they are. A file with a mistake in it is refused; up to
    1,000 SKUs are taken at once or not at all.
    """
    by_sku = _by_sku(path, SUBSTITUTES_COLUMNS, _alternative, required=2)
    said = [calls.Substitutes(sku, tuple(some)) for sku, some in by_sku.items()]
    _send(service, output, merchant, said, calls.import_substitutes)


@substitutes.command("list", short_help="List the rules.")
@merchant_option
@service_options
@json_option
def list_substitutes(service: Service, merchant: str, output: Output) -> None:
    """List all rules of a merchant, by SKU."""
    _list(
        service,
        output,
        merchant,
        calls.substitutes_page,
        ["sku", "alternative", "of", "for", "priority", "direction", "where", "approval"],
        lambda one: [
            [
                one.sku,
                rule.sku,
                rule.of,
                rule.for_,
                rule.priority,
                rule.direction.value,
                ", ".join(rule.locations) or "everywhere",
                "needed" if rule.approval else "-",
            ]
            for rule in one.alternatives
        ],
    )


@substitutes.command("delete", short_help="Let nothing stand for a SKU.")
@click.argument("sku")
@merchant_option
@service_options
@json_option
def delete_substitutes(service: Service, sku: str, merchant: str, output: Output) -> None:
    """Take away what was said to stand for SKU."""
    _delete(service, output, merchant, "substitutes", sku)


@click.group(short_help="SKUs that are put together of others.")
def kits() -> None:
    """Say what kits are made of."""


@kits.command("import", short_help="Take kits from a file.")
@_file
@merchant_option
@service_options
@json_option
def import_kits(service: Service, merchant: str, path: str, output: Output) -> None:
    """Take the kits of FILE, a CSV with the columns sku, component and quantity.

    A line names one component of the kit `sku`. What FILE says of a kit takes the place of what was
    said before; other kits stay as they are. A file with a mistake in it is refused; up to 1,000
    kits are taken at once or not at all.
    """
    by_sku = _by_sku(path, KITS_COLUMNS, _component, required=3)
    said = [calls.Kit(sku, tuple(some)) for sku, some in by_sku.items()]
    _send(service, output, merchant, said, calls.import_kits)


@kits.command("list", short_help="List the kits.")
@merchant_option
@service_options
@json_option
def list_kits(service: Service, merchant: str, output: Output) -> None:
    """List all kits of a merchant and what they are made of, by SKU."""
    _list(
        service,
        output,
        merchant,
        calls.kits_page,
        ["kit", "component", "units"],
        lambda one: [[one.sku, part.sku, part.quantity] for part in one.components],
    )


@kits.command("delete", short_help="Take a kit's definition away.")
@click.argument("sku")
@merchant_option
@service_options
@json_option
def delete_kit(service: Service, sku: str, merchant: str, output: Output) -> None:
    """Take away what the kit SKU is made of; reservations keep their components."""
    _delete(service, output, merchant, "kits", sku)


def _send(
    service: Service,
    output: Output,
    merchant: str,
    said: Sequence[Said],
    call: Callable[[str, Sequence[Said]], Call[calls.Imported]],
) -> None:
    with service.client() as client:
        for start in range(0, len(said), MAX_BATCH_DEFINITIONS):
            client.send(call(merchant, said[start : start + MAX_BATCH_DEFINITIONS]))
    output.document({"imported": len(said)})
    if not output.as_json:
        output.text(f"{len(said):,} SKUs taken.")


def _list(
    service: Service,
    output: Output,
    merchant: str,
    page_of: Callable[..., Call[Page[Said]]],
    heads: Sequence[str],
    rows_of: Callable[[Said], Sequence[Sequence[Any]]],
) -> None:
    with service.client() as client:
        found = list(_all(client, merchant, page_of))
    output.document({"data": found})
    if not output.as_json:
        output.table(heads, [row for one in found for row in rows_of(one)])


def _delete(service: Service, output: Output, merchant: str, what: str, sku: str) -> None:
    with service.client() as client:
        client.send(calls.remove(merchant, what, sku))
    output.document({"deleted": sku})
    if not output.as_json:
        output.text(f"{sku} is taken out of the {what}.")


def _all(client: Client, merchant: str, page_of: Callable[..., Call[Page[Said]]]) -> Iterator[Said]:
    cursor = None
    while True:
        page = client.send(page_of(merchant, limit=MAX_PAGE, cursor=cursor))
        yield from page.data
        cursor = page.next_cursor
        if cursor is None:
            return


def _by_sku(
    path: str,
    columns: Sequence[str],
    read: Callable[[int, Row], Said],
    *,
    required: int,
) -> Mapping[str, Sequence[Said]]:
    """Read what a file says of each SKU. Raises FileRefused."""
    by_sku: defaultdict[str, list[Said]] = defaultdict(list)
    with _opened(path) as file:
        for line, row in _rows(file, columns, required=required):
            by_sku[row["sku"]].append(read(line, row))
    return by_sku


def _opened(path: str) -> "nullcontext[IO[str]] | IO[str]":
    if path == "-":
        return nullcontext(sys.stdin)
    return open(path, encoding="utf-8-sig", newline="")


def _rows(file: IO[str], columns: Sequence[str], *, required: int) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a CSV with their lines. Raises FileRefused where it is none of ours."""
    reader = csv.DictReader(bounded_lines(file), strict=True)
    try:
        names = reader.fieldnames or []
        missing = [name for name in columns[:required] if name not in names]
        if missing:
            raise FileRefused(1, f"must name the columns {', '.join(columns[:required])}")
        for name in names:
            if name not in columns:
                raise FileRefused(1, f"{name!r} is no column of ours: {', '.join(columns)}")
        for count, row in enumerate(reader, 1):
            line = reader.line_num
            if count > MAX_FILE_ROWS:
                raise FileRefused(line, f"has more than {MAX_FILE_ROWS:,} rows")
            if None in row or None in row.values():
                raise FileRefused(line, "has more or fewer cells than the header")
            yield line, row
    except csv.Error as fault:
        raise FileRefused(reader.line_num, f"is no CSV: {fault}") from fault


def _alternative(line: int, row: Row) -> calls.Alternative:
    direction = row.get("direction") or Direction.ONE_WAY.value
    if direction not in list(Direction):
        raise FileRefused(line, f"direction must be {' or '.join(Direction)}")
    approval = _YES_OR_NO.get((row.get("approval") or "").lower())
    if approval is None:
        raise FileRefused(line, "approval must be yes or no")
    places = (row.get("locations") or "").split(LOCATION_SEPARATOR)
    return calls.Alternative(
        sku=row["alternative"],
        of=_number(line, row, "of", 1),
        for_=_number(line, row, "for", 1),
        priority=_number(line, row, "priority", DEFAULT_PRIORITY),
        direction=Direction(direction),
        locations=tuple(place for place in places if place),
        approval=approval,
    )


def _component(line: int, row: Row) -> Line:
    return Line(row["component"], _number(line, row, "quantity", 0))


def _number(line: int, row: Row, name: str, default: int) -> int:
    text = row.get(name) or str(default)
    if not text.isascii() or not text.isdecimal() or len(text) > 10:
        raise FileRefused(line, f"{name} is no whole number")
    return int(text)
