"""The ledger as a file for analysts: one line for each row that an operation changed.

CSV and NDJSON are written with what Python has; Parquet with pyarrow, which the extra
`holdfast[parquet]` installs. Nothing is kept in memory but one batch of lines.
"""

import csv
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Final, Protocol

from msgspec import structs

from engine.history import reference_of
from engine.ledger import MOVEMENTS, Levels, Operation, OperationKind

BATCH_LINES: Final = 10_000
"""Lines of a row group of a Parquet file: some MB, which is what readers like."""

COLUMNS: Final = (
    "at_ms",
    "partition",
    "sequence",
    "kind",
    "id",
    "merchant",
    "location",
    "sku",
    "version",
    "actor",
    "reference",
    "movement",
    "reason",
    "on_hand",
    "reserved",
    "safety_stock",
    "deficit",
    "low_stock_threshold",
    "offline_buffer",
    "backordered",
    "on_hand_change",
    "reserved_change",
    "safety_stock_change",
    "deficit_change",
    "low_stock_threshold_change",
    "offline_buffer_change",
    "backordered_change",
)
"""Units and ms since 1970. An operation without rows, such as a confirmation, has one line with an
empty `sku` and no numbers past `sequence`."""

TEXTS: Final = frozenset(
    {
        "kind",
        "id",
        "merchant",
        "location",
        "sku",
        "actor",
        "reference",
        "movement",
        "reason",
    }
)

Line = tuple[Any, ...]
"""The values of COLUMNS."""


class LedgerFormat(StrEnum):
    """How a file is written."""

    CSV = "csv"
    NDJSON = "ndjson"
    PARQUET = "parquet"

    @classmethod
    def of(cls, name: str) -> "LedgerFormat":
        """Tell a format by a file's name, CSV where the name does not tell."""
        suffixes = {".ndjson": cls.NDJSON, ".jsonl": cls.NDJSON, ".parquet": cls.PARQUET}
        return suffixes.get(Path(name).suffix.lower(), cls.CSV)


class ParquetMissing(Exception):
    """This installation cannot write Parquet."""

    def __init__(self) -> None:
        """Say what to install."""
        super().__init__(
            "writing Parquet needs pyarrow, which is not installed; "
            "install it with: pip install 'holdfast[parquet]'"
        )


class LineWriter(Protocol):
    """Takes lines one by one."""

    def write(self, line: Line) -> None:
        """Write a line of COLUMNS."""
        ...


def lines_of(operation: Operation, *, partition: int, sequence: int, at_ms: int) -> Iterator[Line]:
    """Yield the lines of an operation."""
    head = (at_ms, partition, sequence, operation.kind.value, operation.id, operation.merchant)
    movement, reason = _movement(operation)
    rest = (operation.who, reference_of(operation) or "", movement, reason)
    for change in operation.rows:
        yield (
            *head,
            operation.location,
            change.sku,
            change.version,
            *rest,
            *_units(change.levels),
            *_units(change.deltas),
        )
    if not operation.rows:
        no_units = [None] * 2 * len(Levels.__struct_fields__)
        yield (*head, operation.location, "", None, *rest, *no_units)


def _movement(operation: Operation) -> tuple[str, str]:
    """Return an operation's type of movement and its reason, empty where it has none."""
    detail = operation.detail
    if operation.kind in MOVEMENTS:
        return str(detail[0]), str(detail[2])
    if operation.kind is OperationKind.RELEASE:
        return "", str(detail[2])
    if operation.kind is OperationKind.REPAIR:
        return "", str(detail[1])
    return "", ""


def _units(levels: Levels) -> tuple[int, ...]:
    return structs.astuple(levels)


@contextmanager
def open_writer(stream: IO[bytes], file_format: LedgerFormat) -> Iterator[LineWriter]:
    """Write lines to a stream; it is complete when the block ends. Raises ParquetMissing."""
    if file_format is LedgerFormat.PARQUET:
        with _ParquetWriter(stream) as writer:
            yield writer
        return
    with ExitStack() as stack:
        text = _TextLines(stream)
        stack.callback(text.flush)
        yield _CsvWriter(text) if file_format is LedgerFormat.CSV else _NdjsonWriter(text)


class _TextLines:
    """Gathers text, so that the stream is written to in large pieces."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._pieces: list[str] = []

    def write(self, text: str) -> int:
        """Take a piece, as `csv` hands one line after the other."""
        self._pieces.append(text)
        if len(self._pieces) >= BATCH_LINES:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Write what was gathered."""
        self._stream.write("".join(self._pieces).encode())
        self._pieces = []


class _CsvWriter:
    def __init__(self, text: _TextLines) -> None:
        self._writer = csv.writer(text, lineterminator="\n")
        self._writer.writerow(COLUMNS)

    def write(self, line: Line) -> None:
        self._writer.writerow(line)


class _NdjsonWriter:
    def __init__(self, text: _TextLines) -> None:
        self._text = text

    def write(self, line: Line) -> None:
        document = dict(zip(COLUMNS, line, strict=True))
        self._text.write(json.dumps(document, ensure_ascii=False) + "\n")


class _ParquetWriter:
    """Row groups of BATCH_LINES lines, compressed with zstd."""

    def __init__(self, stream: IO[bytes]) -> None:
        try:
            # Only whoever writes Parquet needs it, and it is larger than all the rest.
            self._arrow: Any = import_module("pyarrow")
            parquet: Any = import_module("pyarrow.parquet")
        except ImportError as error:
            raise ParquetMissing from error
        arrow = self._arrow
        self._schema = arrow.schema(
            [(name, arrow.string() if name in TEXTS else arrow.int64()) for name in COLUMNS]
        )
        self._writer = parquet.ParquetWriter(stream, self._schema, compression="zstd")
        self._lines: list[Line] = []

    def __enter__(self) -> "_ParquetWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def write(self, line: Line) -> None:
        self._lines.append(line)
        if len(self._lines) >= BATCH_LINES:
            self._flush()

    def _flush(self) -> None:
        if not self._lines:
            return
        columns = zip(*self._lines, strict=True)
        arrays = [
            self._arrow.array(column, type=field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        self._lines = []
