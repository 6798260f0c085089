"""Sales files: the baskets that `holdfast replay` puts through the service.

The columns are `sold_at` (ISO 8601, UTC where it names no zone), `store_id`, `basket_id`, `sku` and
`quantity`. Real files hold what no shop planned for, and each of it is counted:

* a quantity of 0 is a line that sold nothing: it is left out;
* a quantity in the thousands is fuel, cheese or cloth, sold by weight, volume or length: it is a
  legal number of units, is kept, and is counted apart as bulk;
* a row that cannot be read is left out and named by line and column.
"""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

import msgspec

from engine.limits import MAX_LINES, MAX_QUANTITY
from engine.outcomes import InvalidCommand
from engine.validation import check_id
from holdfast.calls import Line
from holdfast.stock_file import BadRow, FileRefused, csv_cells

COLUMNS: Final = ("sold_at", "store_id", "basket_id", "sku", "quantity")

MAX_SALES_LINES: Final = 2_000_000
"""Of one file, which is held in memory: a basket's lines need not stand together. About 1 GB."""

MAX_KEPT_BAD_ROWS: Final = 100
"""Unreadable rows that are named; beyond that they are only counted."""

_MAX_QUANTITY_DIGITS: Final = len(str(MAX_QUANTITY))


class Cart(msgspec.Struct, frozen=True):
    """What one shopper took at one store, `at_seconds` after the first sale of the file.

    A basket of more than 200 lines becomes several carts, because a reservation takes no more.
    """

    at_seconds: float
    store: str
    lines: tuple[Line, ...]


class Sales(msgspec.Struct, kw_only=True):
    """A sales file: its carts in order of time, and what was found in it.

    `units` counts what each (store, SKU) sold; `lines` are data lines of any kind.
    """

    carts: list[Cart] = []
    units: dict[tuple[str, str], int] = {}
    lines: int = 0
    baskets: int = 0
    split_baskets: int = 0
    zero_lines: int = 0
    bulk_lines: int = 0
    bulk_units: int = 0
    bad_lines: int = 0
    bad_rows: list[BadRow] = []


class _Sale(msgspec.Struct, frozen=True):
    at_seconds: float
    store: str
    basket: str
    sku: str
    quantity: int


class _Basket(msgspec.Struct):
    at_seconds: float
    lines: list[Line]


def read_sales(path: Path, *, bulk_quantity: int) -> Sales:
    """Read a sales file; lines of more than `bulk_quantity` units are counted as bulk.

    Raises OSError, and FileRefused where the file as a whole cannot be read.
    """
    sales = Sales()
    baskets: dict[tuple[str, str], _Basket] = {}
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        for row in _rows(text):
            sales.lines += 1
            if sales.lines > MAX_SALES_LINES:
                reason = f"the file has more than {MAX_SALES_LINES} lines; split it"
                raise FileRefused(sales.lines + 1, reason)
            if isinstance(row, BadRow):
                sales.bad_lines += 1
                if len(sales.bad_rows) < MAX_KEPT_BAD_ROWS:
                    sales.bad_rows.append(row)
                continue
            basket = baskets.setdefault((row.store, row.basket), _Basket(row.at_seconds, []))
            basket.at_seconds = min(basket.at_seconds, row.at_seconds)
            if row.quantity == 0:
                sales.zero_lines += 1
                continue
            if row.quantity > bulk_quantity:
                sales.bulk_lines += 1
                sales.bulk_units += row.quantity
            basket.lines.append(Line(row.sku, row.quantity))
            place = (row.store, row.sku)
            sales.units[place] = sales.units.get(place, 0) + row.quantity
    _fill_carts(sales, baskets)
    return sales


def _fill_carts(sales: Sales, baskets: dict[tuple[str, str], _Basket]) -> None:
    """Make the carts, in order of time; baskets of one moment stay in the order of the file."""
    filled = [(store, basket) for (store, _), basket in baskets.items() if basket.lines]
    sales.baskets = len(filled)
    filled.sort(key=lambda pair: pair[1].at_seconds)
    start = filled[0][1].at_seconds if filled else 0.0
    for store, basket in filled:
        sales.split_baskets += len(basket.lines) > MAX_LINES
        for first in range(0, len(basket.lines), MAX_LINES):
            lines = tuple(basket.lines[first : first + MAX_LINES])
            sales.carts.append(Cart(basket.at_seconds - start, store, lines))


def _rows(text: IO[str]) -> Iterator[_Sale | BadRow]:
    positions: list[int] | None = None
    for found in csv_cells(text, COLUMNS):
        if isinstance(found, BadRow):
            yield found
        elif positions is None:
            positions = _positions(*found)
        else:
            line, cells = found
            yield _sale(line, [cells[position] for position in positions])


def _positions(line: int, cells: list[str]) -> list[int]:
    header = [cell.strip().lower() for cell in cells]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise FileRefused(line, f"the header lacks {', '.join(missing)}")
    return [header.index(name) for name in COLUMNS]


def _sale(line: int, cells: list[str]) -> _Sale | BadRow:
    sold_at, store, basket, sku, quantity = cells
    try:
        moment = datetime.fromisoformat(sold_at.strip())
    except ValueError:
        return BadRow(line, "sold_at", "is no ISO 8601 time")
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    for column, text in (("store_id", store), ("basket_id", basket), ("sku", sku)):
        try:
            check_id(column, text)
        except InvalidCommand as fault:
            return BadRow(line, column, fault.remedy)
    digits = quantity.strip()
    # The length is looked at first: int() of a million digits takes seconds.
    is_number = digits.isascii() and digits.isdecimal() and len(digits) <= _MAX_QUANTITY_DIGITS
    if not is_number or int(digits) > MAX_QUANTITY:
        return BadRow(line, "quantity", f"must be a whole number from 0 to {MAX_QUANTITY}")
    # A file of millions of lines repeats few stores and SKUs: one copy of each is enough.
    return _Sale(moment.timestamp(), sys.intern(store), basket, sys.intern(sku), int(digits))
