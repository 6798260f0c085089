"""Stock files: what `holdfast import` reads and `holdfast export` writes, as CSV or NDJSON.

The columns are `location`, `sku`, `on_hand` and, optionally, `safety_stock` and those of a row's
terms (`holdfast.stock_terms`). A row becomes a `count` movement whose idempotency key is the
import's id and the row's line number, so an import that was cut short is run again and finds by
itself what it had applied. Memory stays bounded: a file is read a batch at a time, however long it
is.
"""

import asyncio
import csv
import hashlib
import io
import re
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, NamedTuple, Self

import msgspec

from engine.limits import MAX_BATCH_MOVEMENTS, MAX_QUANTITY, MAX_TOTAL
from engine.model import MovementType
from engine.outcomes import InvalidCommand
from engine.validation import check_id
from holdfast import stock_terms
from holdfast.calls import BatchVerdict, NewMovement, Stock
from holdfast.client import ApiError, AsyncClient
from holdfast.stock_terms import AskedTerms, read_terms, write_terms

REQUIRED_COLUMNS: Final = ("location", "sku", "on_hand")
STOCK_COLUMNS: Final = (*REQUIRED_COLUMNS, "safety_stock")
COLUMNS: Final = (*STOCK_COLUMNS, *stock_terms.COLUMNS)

MAX_LINE_CHARACTERS: Final = 65_536
"""Of one line: two ids and two numbers fit a hundred times."""

MAX_SPOOLED_BYTES: Final = 4 * 1024**3
"""Of a file that comes through a pipe and is kept on disk, because it is read more than once."""

MAX_BATCH_BYTES: Final = 900_000
"""Of the movements in one call, encoded: the service takes bodies of up to 1 MiB."""

MAX_IMPORT_ID_CHARACTERS: Final = 100
"""With `:`, a line number and a suffix it stays within the 255 characters of a key, and with
`import:` within the 200 bytes of a reference."""

MAX_SETTINGS_AT_ONCE: Final = 32
"""Calls for settings under way at once; each row's `safety_stock` is a call, and so are its terms.
"""

MAX_SETTINGS_ATTEMPTS: Final = 10
"""Times that a setting of one row is tried while shoppers keep changing the row's version."""

MAX_KEPT_PROBLEMS: Final = 100
"""Rows that were not taken which a report names; the file of verdicts names all."""

_CHUNK_BYTES: Final = 1024 * 1024
_UNITS = re.compile(r"[0-9]{1,13}")
_IMPORT_ID = re.compile(rf"[!-~]{{1,{MAX_IMPORT_ID_CHARACTERS}}}")
_SURROGATES = re.compile("[\ud800-\udfff]")


class Format(StrEnum):
    """How a stock file is written."""

    CSV = "csv"
    NDJSON = "ndjson"

    @classmethod
    def of(cls, name: str) -> Self:
        """Tell the format from a file's name: `.ndjson` and `.jsonl`, else CSV."""
        return cls("ndjson" if name.lower().endswith((".ndjson", ".jsonl")) else "csv")


class FileRefused(Exception):
    """The file as a whole cannot be read; `line` is where it went wrong."""

    def __init__(self, line: int, reason: str) -> None:
        """Keep the line and the reason."""
        self.line = line
        self.reason = reason
        super().__init__(f"line {line}: {reason}")


class StockRow(msgspec.Struct, frozen=True):
    """A row to import; settings are None where the file leaves them as they are."""

    line: int
    location: str
    sku: str
    on_hand: int
    safety_stock: int | None
    terms: AskedTerms | None = None


class BadRow(msgspec.Struct, frozen=True):
    """A row that cannot be imported, by its line and, where one is at fault, its column."""

    line: int
    column: str
    detail: str
    location: str = ""
    sku: str = ""


class StockFile:
    """A stock file that can be read more than once, also where it comes through a pipe."""

    def __init__(self, path: str, file_format: Format | None = None) -> None:
        """Take the file at `path`, or standard input for `-`; entering it opens it."""
        self.path = path
        self.format = file_format or Format.of(path)
        self._bytes: IO[bytes] | None = None
        self.lines = 0

    def __enter__(self) -> Self:
        """Open it. Raises OSError, and FileRefused where a pipe holds too much."""
        if self.path == "-":
            self._bytes = _spooled(sys.stdin.buffer)
        else:
            opened = Path(self.path).open("rb")
            if opened.seekable():
                self._bytes = opened
            else:
                with opened:
                    self._bytes = _spooled(opened)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        if self._bytes is not None:
            self._bytes.close()

    def import_id(self, merchant: str) -> str:
        """Derive the id of importing this content for this merchant; also counts the lines."""
        digest = hashlib.sha256(merchant.encode() + b"\0")
        stream = self._rewound()
        self.lines = 0
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            self.lines += chunk.count(b"\n")
        return digest.hexdigest()

    def rows(self) -> Iterator[StockRow | BadRow]:
        """Read from the start, each row good or bad. Raises FileRefused."""
        text = io.TextIOWrapper(
            self._rewound(), encoding="utf-8-sig", errors="surrogateescape", newline=""
        )
        try:
            yield from _csv_rows(text) if self.format is Format.CSV else _ndjson_rows(text)
        finally:
            # The bytes below are read again; the wrapper would close them with itself.
            text.detach()

    def _rewound(self) -> IO[bytes]:
        if self._bytes is None:
            message = "the file is not open"
            raise ValueError(message)
        self._bytes.seek(0)
        return self._bytes


def is_import_id(text: str) -> bool:
    """Tell whether `text` may be the id of an import: 1 to 100 printable ASCII characters."""
    return _IMPORT_ID.fullmatch(text) is not None


def write_rows(
    stream: IO[str], rows: Iterable[Stock], file_format: Format, *, terms: bool = False
) -> int:
    """Write rows as `import` takes them back, with their `terms` if asked to; return how many."""
    count = 0
    writer = csv.writer(stream, lineterminator="\n")
    if file_format is Format.CSV:
        writer.writerow(COLUMNS if terms else STOCK_COLUMNS)
    for row in rows:
        cells = {column: getattr(row, column) for column in STOCK_COLUMNS}
        if terms:
            cells |= write_terms(row.terms)
        if file_format is Format.CSV:
            writer.writerow(cells.values())
        else:
            stream.write(msgspec.json.encode(cells).decode() + "\n")
        count += 1
    return count


def _spooled(source: IO[bytes]) -> IO[bytes]:
    spool = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    kept = 0
    while chunk := source.read(_CHUNK_BYTES):
        kept += len(chunk)
        if kept > MAX_SPOOLED_BYTES:
            spool.close()
            raise FileRefused(1, f"the input is longer than {MAX_SPOOLED_BYTES} bytes")
        spool.write(chunk)
    return spool


def bounded_lines(text: IO[str]) -> Iterator[str]:
    """Read lines of up to MAX_LINE_CHARACTERS. Raises FileRefused at a longer one."""
    number = 0
    while line := text.readline(MAX_LINE_CHARACTERS + 1):
        number += 1
        if len(line) > MAX_LINE_CHARACTERS:
            raise FileRefused(number, f"is longer than {MAX_LINE_CHARACTERS} characters")
        yield line


def csv_cells(text: IO[str], columns: Sequence[str]) -> Iterator[tuple[int, list[str]] | BadRow]:
    """Yield the header of a CSV and then its rows, each with its line; empty ones are left out.

    A row that is no CSV, or not as wide as the header, is bad. Raises FileRefused where that is so
    of the header, or there is none, which would name `columns`.
    """
    reader = csv.reader(bounded_lines(text), strict=True)
    width = 0
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as fault:
            if not width:
                raise FileRefused(line, f"the header is no CSV: {fault}") from fault
            yield BadRow(line, "", f"is no CSV: {fault}")
            continue
        if not cells:
            continue
        width = width or len(cells)
        if len(cells) == width:
            yield line, cells
        else:
            yield BadRow(line, "", f"has {len(cells)} cells, the header names {width} columns")
    if not width:
        raise FileRefused(1, f"there is no header; it names {', '.join(columns)}")


def _csv_rows(text: IO[str]) -> Iterator[StockRow | BadRow]:
    header: list[str] | None = None
    for found in csv_cells(text, REQUIRED_COLUMNS):
        if isinstance(found, BadRow):
            yield found
        elif header is None:
            header = _header(*found)
        else:
            line, cells = found
            yield _row(line, dict(zip(header, cells, strict=True)))


def _header(line: int, cells: Sequence[str]) -> list[str]:
    header = [cell.strip().lower() for cell in cells]
    missing = [name for name in REQUIRED_COLUMNS if name not in header]
    unknown = [cell for cell in header if cell not in COLUMNS]
    if missing:
        hint = "; separate the columns with commas" if any(";" in cell for cell in cells) else ""
        raise FileRefused(line, f"the header lacks {', '.join(missing)}{hint}")
    if unknown:
        known = ", ".join(COLUMNS)
        raise FileRefused(line, f"unknown columns {', '.join(unknown)}; known are {known}")
    if len(set(header)) != len(header):
        raise FileRefused(line, "a column is named twice")
    return header


def _ndjson_rows(text: IO[str]) -> Iterator[StockRow | BadRow]:
    for line, content in enumerate(bounded_lines(text), 1):
        if not content.strip():
            continue
        try:
            document = msgspec.json.decode(content.encode("utf-8", "surrogateescape"))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
            yield BadRow(line, "", f"is no JSON: {fault}")
            continue
        if not isinstance(document, dict):
            yield BadRow(line, "", "is no JSON object")
            continue
        unknown = [name for name in document if name not in COLUMNS]
        missing = [name for name in REQUIRED_COLUMNS if name not in document]
        if missing or unknown:
            column = (missing or unknown)[0]
            yield BadRow(line, column, "is missing" if missing else "is unknown")
        else:
            yield _row(line, document)


def _row(line: int, cells: Mapping[str, Any]) -> StockRow | BadRow:
    """Check a row's cells in the order of the columns; the first fault names the row."""
    named = {name: str(cells[name]) for name in ("location", "sku")}
    if any(_SURROGATES.search(text) for text in named.values()):
        column = next(name for name, text in named.items() if _SURROGATES.search(text))
        return BadRow(line, column, "is not valid UTF-8")
    for column in ("location", "sku"):
        if not isinstance(cells[column], str):
            return BadRow(line, column, "must be text", **named)
        try:
            check_id(column, cells[column])
        except InvalidCommand as fault:
            return BadRow(line, column, fault.remedy, **named)
    on_hand = _units(cells["on_hand"], MAX_TOTAL)
    if on_hand is None:
        return BadRow(line, "on_hand", _wanted_units(cells["on_hand"], MAX_TOTAL), **named)
    asked = cells.get("safety_stock")
    # An empty cell, like a missing column, leaves the setting alone.
    safety_stock = None if asked in (None, "") else _units(asked, MAX_QUANTITY)
    if safety_stock is None and asked not in (None, ""):
        return BadRow(line, "safety_stock", _wanted_units(asked, MAX_QUANTITY), **named)
    try:
        terms = read_terms(cells)
    except InvalidCommand as fault:
        return BadRow(line, fault.field, fault.remedy, **named)
    return StockRow(line, cells["location"], cells["sku"], on_hand, safety_stock, terms)


def _units(cell: object, most: int) -> int | None:
    if isinstance(cell, str):
        cell = int(cell) if _UNITS.fullmatch(cell.strip()) else None
    if type(cell) is not int:
        return None
    return cell if 0 <= cell <= most else None


def _wanted_units(cell: object, most: int) -> str:
    shown = str(cell).encode("utf-8", "replace").decode()
    if len(shown) > 40:
        shown = f"{shown[:40]}..."
    return f"must be a whole number from 0 to {most}, is {shown!r}"


class Verdict(StrEnum):
    """What became of a row."""

    APPLIED = "applied"
    REPLAYED = "replayed"
    REFUSED = "refused"
    INVALID = "invalid"
    NOT_APPLIED = "not_applied"


class RowVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one row; `code`, `column` and `detail` say why it was not taken."""

    line: int
    location: str
    sku: str
    verdict: Verdict
    code: str = ""
    column: str = ""
    detail: str = ""


class ImportReport(msgspec.Struct, kw_only=True):
    """What became of an import; it is kept up to date while the import goes on.

    `applied_through_line` is the last line up to which every row has its verdict, so a reader knows
    what an import that stopped had done. `settings_set` counts the rows whose `safety_stock` or
    terms this import set, now or in the run that it resumes. `stopped_by` says what made the
    service's answers end, if something did. `problems` are the first rows not taken.
    """

    merchant: str
    import_id: str
    applied: int = 0
    replayed: int = 0
    refused: int = 0
    invalid: int = 0
    not_applied: int = 0
    settings_set: int = 0
    applied_through_line: int = 0
    is_complete: bool = False
    stopped_by: str = ""
    problems: list[RowVerdict] = []
    problems_omitted: int = 0

    @property
    def is_clean(self) -> bool:
        """True where the whole file was taken."""
        return self.is_complete and not (self.refused or self.invalid or self.not_applied)

    def take(self, verdict: RowVerdict) -> None:
        """Count a verdict, and keep it where the row was not taken."""
        name = verdict.verdict.value
        setattr(self, name, getattr(self, name) + 1)
        if verdict.verdict in (Verdict.APPLIED, Verdict.REPLAYED, Verdict.NOT_APPLIED):
            return
        if len(self.problems) < MAX_KEPT_PROBLEMS:
            self.problems.append(verdict)
        else:
            self.problems_omitted += 1


class StockImport:
    """Applies the rows of a stock file to a merchant's stock."""

    def __init__(
        self,
        client: AsyncClient,
        *,
        merchant: str,
        import_id: str,
        on_verdict: Callable[[RowVerdict], None] = lambda _: None,
    ) -> None:
        """Prepare; `on_verdict` is told what became of each row, in the order of the file."""
        self._client = client
        self._merchant = merchant
        self._import_id = import_id
        self._on_verdict = on_verdict
        self.report = ImportReport(merchant=merchant, import_id=import_id)

    async def run(self, rows: Iterable[StockRow | BadRow], *, stop_at_refusal: bool) -> None:
        """Apply the good rows; the bad ones only get their verdict.

        With `stop_at_refusal` nothing more is sent after a batch in which the service refused a
        row. Raises ClientError where the service does not answer: the report says how far it came,
        and running the same import again carries on from there.
        """
        for batch in _batches(rows, self._movement):
            refused_before = self.report.refused
            await self._apply(batch)
            if stop_at_refusal and self.report.refused > refused_before:
                return
        self.report.is_complete = True

    def refuse_all(self, rows: Iterable[StockRow | BadRow]) -> None:
        """Give every row its verdict without applying any, for a file that is taken whole."""
        for row in rows:
            if isinstance(row, BadRow):
                self._take(_invalid(row))
            else:
                self._take(_verdict(row, Verdict.NOT_APPLIED))

    def _take(self, verdict: RowVerdict) -> None:
        self.report.take(verdict)
        self._on_verdict(verdict)

    def _movement(self, row: StockRow) -> NewMovement:
        return NewMovement(
            id=f"{self._import_id}:{row.line}",
            location=row.location,
            type=MovementType.COUNT,
            sku=row.sku,
            quantity=row.on_hand,
            reference=f"import:{self._import_id}",
        )

    async def _apply(self, batch: "Sequence[StockRow | BadRow]") -> None:
        good = [row for row in batch if isinstance(row, StockRow)]
        answers: dict[int, BatchVerdict] = {}
        if good:
            movements = [self._movement(row) for row in good]
            result = await self._client.move_many(self._merchant, movements)
            answers = {row.line: answer for row, answer in zip(good, result.data, strict=True)}
        places = asyncio.Semaphore(MAX_SETTINGS_AT_ONCE)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._settle(row, answers[row.line], places)) for row in good
                ]
        except ExceptionGroup as faults:
            # The first fault cancelled the rest, so it stands for all of them.
            raise faults.exceptions[0] from faults
        settled = {row.line: task.result() for row, task in zip(good, tasks, strict=True)}
        for row in batch:
            self._take(_invalid(row) if isinstance(row, BadRow) else settled[row.line])
            self.report.applied_through_line = row.line

    async def _settle(
        self, row: StockRow, answer: BatchVerdict, places: asyncio.Semaphore
    ) -> RowVerdict:
        """Set what the row has of settings once its count stands; return what became of the row."""
        if answer.movement is None:
            problem = answer.error
            return _verdict(
                row,
                Verdict.REFUSED,
                code=problem.code if problem else answer.status,
                detail=problem.detail if problem else "",
            )
        seen, is_set = answer.movement.stock, False
        async with places:
            for setting in self._settings(row):
                try:
                    after = await self._set(row, seen, setting)
                except ApiError as refusal:
                    detail = f"the count was {answer.status}, its {setting.name} not: {refusal}"
                    return _verdict(
                        row,
                        Verdict.REFUSED,
                        code=refusal.code,
                        column=setting.column,
                        detail=detail,
                    )
                if after is not None:
                    seen, is_set = after, True
        self.report.settings_set += is_set
        return _verdict(row, Verdict(answer.status))

    def _settings(self, row: StockRow) -> "Iterator[_Setting]":
        place = (self._merchant, row.location, row.sku)
        if row.safety_stock is not None:
            units = row.safety_stock

            async def set_safety_stock(seen: Stock, key: str) -> Stock | None:
                if seen.safety_stock == units:
                    return None
                return await self._client.configure(
                    *place, safety_stock=units, expected_version=seen.version, key=key
                )

            yield _Setting("safety_stock", "safety_stock", set_safety_stock)
        if row.terms is not None:
            asked = row.terms

            async def set_terms(seen: Stock, key: str) -> Stock | None:
                terms = asked.over(seen.terms)
                if terms == AskedTerms().over(seen.terms):
                    return None
                return await self._client.set_terms(
                    *place, terms, expected_version=seen.version, key=key
                )

            yield _Setting("terms", asked.column, set_terms)

    async def _set(self, row: StockRow, seen: Stock, setting: "_Setting") -> Stock | None:
        """Set something at the version just seen, or at a newer one where the row moved on.

        A run that resumes sees the version that the first run saw, because the count's answer is
        replayed, so the first attempt is a replay too and later changes by others are left alone.
        """
        key = f"{self._import_id}:{row.line}:{setting.name}"
        attempt = 1
        while True:
            try:
                # A key stands for one request, and the expected version is part of it.
                return await setting.set_at(seen, key if attempt == 1 else f"{key}:{seen.version}")
            except ApiError as refusal:
                if refusal.code != "version_conflict" or attempt == MAX_SETTINGS_ATTEMPTS:
                    raise
            seen = await self._client.stock(self._merchant, row.location, row.sku, strong=True)
            attempt += 1


class _Setting(NamedTuple):
    """A setting of a row; `column` says it.

    `set_at` sets it at the version of a row as it was seen, under an idempotency key, and returns
    the row after it; None where it is so already.
    """

    name: str
    column: str
    set_at: Callable[[Stock, str], Awaitable[Stock | None]]


def _verdict(
    row: StockRow, verdict: Verdict, *, code: str = "", column: str = "", detail: str = ""
) -> RowVerdict:
    return RowVerdict(
        line=row.line,
        location=row.location,
        sku=row.sku,
        verdict=verdict,
        code=code,
        column=column,
        detail=detail,
    )


def _invalid(row: BadRow) -> RowVerdict:
    return RowVerdict(
        line=row.line,
        location=row.location,
        sku=row.sku,
        verdict=Verdict.INVALID,
        code="invalid_row",
        column=row.column,
        detail=row.detail,
    )


def _batches(
    rows: Iterable[StockRow | BadRow], movement: Callable[[StockRow], NewMovement]
) -> Iterator[list[StockRow | BadRow]]:
    """Group rows by what one call takes: rows, bytes, and no (location, SKU) twice.

    A second count of one row in one file goes into a later call, so that the later line wins for
    its safety_stock too.
    """
    batch: list[StockRow | BadRow] = []
    in_batch: set[tuple[str, str]] = set()
    size_bytes = 0
    for row in rows:
        name = None
        row_bytes = 0
        if isinstance(row, StockRow):
            name = (row.location, row.sku)
            row_bytes = len(msgspec.json.encode(movement(row))) + 1
        is_full = len(batch) >= MAX_BATCH_MOVEMENTS or size_bytes + row_bytes > MAX_BATCH_BYTES
        if batch and (is_full or name in in_batch):
            yield batch
            batch, in_batch, size_bytes = [], set(), 0
        batch.append(row)
        size_bytes += row_bytes
        if name is not None:
            in_batch.add(name)
    if batch:
        yield batch
