"""The tables of the index and what is asked of them, for SQLite and PostgreSQL alike.

Calls run in threads of their own: writes one after the other on one connection, questions on a few
others. A row is written only where its version is newer, but for a resynchronisation, which takes
the store's word for what a partition holds.
"""

import asyncio
import os
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar

import msgspec

from engine.model import Row
from engine.outcomes import IndexUnavailable, ItemNotFound
from projection.text import searched_words, words_of

MAX_READERS: Final = 4
"""Questions under way at once in one process; more wait."""

BUSY_SECONDS: Final = 10.0
"""How long a write waits for that of another process, where the database has one writer."""

Result = TypeVar("Result")

Key = tuple[str, str, str]
"""Merchant, location and SKU of a row."""

Place = tuple[str, str] | tuple[int, str, str]
"""SKU and location of a hit, behind which a question goes on; before them what it is sorted by."""

MAX_MATCHES: Final = 2_000
"""SKUs with the words of a question that are looked at for one answer."""

SKUS_AT_ONCE: Final = 200

_PAST_ALL: Final = "\U0010ffff" * 51
"""Stands behind every location, which has 200 bytes at most."""


class Stocked(StrEnum):
    """What a question wants of the rows: units that can be promised, none, few, or owed ones."""

    IN = "in"
    OUT = "out"
    LOW = "low"
    BACKORDERED = "backordered"


class Sort(StrEnum):
    """In which order the rows come: by SKU and location, or those that owe the most units first."""

    SKU = "sku"
    BACKORDERED = "-backordered"


class Item(msgspec.Struct, frozen=True):
    """What a merchant calls a SKU; `attributes` are the merchant's own."""

    sku: str
    title: str
    attributes: dict[str, str]


class IndexedRow(msgspec.Struct, frozen=True):
    """What the index has of a row, in units; as the store has them, or as follows from these."""

    merchant: str
    location: str
    sku: str
    on_hand: int
    reserved: int
    safety_stock: int
    deficit: int
    version: int
    low_stock_threshold: int
    backordered: int
    available: int
    backorder_available: int

    @classmethod
    def of(cls, row: Row) -> Self:
        """Take what the index has of it."""
        return cls(
            row.merchant,
            row.location,
            row.sku,
            row.on_hand,
            row.reserved,
            row.safety_stock,
            row.deficit,
            row.version,
            row.low_stock_threshold,
            row.backordered,
            row.available,
            row.backorder_available,
        )


class Hit(msgspec.Struct, frozen=True):
    """A row that was found, with its item's title and attributes."""

    row: IndexedRow
    title: str
    attributes: dict[str, str]


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked for; None is anything. `after` is the place of the last hit.

    What is sorted by backorders has no `text`, and wants `stocked` BACKORDERED.
    """

    merchant: str
    text: str | None = None
    sku: str | None = None
    location: str | None = None
    stocked: Stocked | None = None
    sort: Sort = Sort.SKU
    after: Place | None = None
    limit: int


class Found(NamedTuple):
    """Rows that fit, and the `after` of the next question, None at the end.

    There may be fewer than were asked for, or none, and still more behind them. The newest change
    that the index has was at `as_of_ms`.
    """

    hits: list[Hit]
    after: Place | None
    as_of_ms: int


_FIELDS: Final = IndexedRow.__struct_fields__
_COLUMNS: Final = ", ".join((*_FIELDS, "partition", "stale"))
_UPDATES: Final = ", ".join(
    f"{name} = excluded.{name}" for name in (*_FIELDS[3:], "partition", "stale")
)
_PUT_ROW: Final = (
    f"INSERT INTO rows ({_COLUMNS}) "  # noqa: S608 - ours
    f"VALUES ({', '.join('?' * (len(_FIELDS) + 2))}) "
    f"ON CONFLICT (merchant, sku, location) DO UPDATE SET {_UPDATES}"
)

LAYOUT: Final = "3"
"""Of the rows. An index with another has them dropped, and is filled anew from the store; items
stay. A process of another version that still writes fails, rather than write rows without all
columns."""


class Database(ABC):
    """One database. Every call raises IndexUnavailable where it cannot be had."""

    faults: tuple[type[Exception], ...]
    """What the driver raises where the database cannot be had, or is damaged."""

    def __init__(self) -> None:
        """Connect to nothing yet; `prepare` makes the tables."""
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="index-writer")
        self._readers = ThreadPoolExecutor(MAX_READERS, thread_name_prefix="index-reader")
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[Any] = []

    # What differs

    @abstractmethod
    def connect(self) -> Any:
        """Make a DB-API connection for the calling thread."""

    lock: str
    """Lets one process at a time make the tables: those that start together would get in each
    other's way."""

    @abstractmethod
    def schema(self) -> Iterable[str]:
        """Return the statements that make the tables where they are not there."""

    matched_skus: str
    """Selects the SKUs that have certain words, in order: by what `matching` returns, merchant, the
    first SKU and how many."""

    @abstractmethod
    def matching(self, words: Sequence[str]) -> str:
        """Return what asks for all of the words, whole or as beginnings."""

    @abstractmethod
    def placeholders(self, sql: str) -> str:
        """Write a statement whose arguments are `?` as the driver wants it."""

    def names(self, values: Sequence[Any]) -> Sequence[Any]:
        """Write arguments as the database can keep them; `read_names` undoes it."""
        return values

    def read_names(self, values: Sequence[Any]) -> Sequence[Any]:
        """Read what `names` has written."""
        return values

    # Life

    async def prepare(self) -> None:
        """Make the tables where they are not there, or the rows are of another layout."""

        def make(connection: Any) -> None:
            connection.execute(self.lock)
            connection.execute(_META)
            layout = "SELECT value FROM meta WHERE name = 'layout'"
            if self._run(connection, layout).fetchone() != (LAYOUT,):
                connection.execute("DROP TABLE IF EXISTS rows")
                connection.execute("DROP TABLE IF EXISTS progress")
            for statement in self.schema():
                connection.execute(statement)
            note = (
                "INSERT INTO meta (name, value) VALUES ('layout', ?) "
                "ON CONFLICT (name) DO UPDATE SET value = excluded.value"
            )
            self._run(connection, note, (LAYOUT,))

        await self._write(make)

    async def close(self) -> None:
        """Close the connections, once what is under way is done."""

        def end() -> None:
            self._writer.shutdown()
            self._readers.shutdown()
            for connection in self._connections:
                connection.close()

        await asyncio.to_thread(end)

    # The follower's side

    async def take(self, partition: int, rows: Sequence[Row], *, as_of_ms: int) -> None:
        """Take rows that are newer than those that the index has."""
        sql = f"{_PUT_ROW} WHERE excluded.version > rows.version"

        def write(connection: Any) -> None:
            self._many(connection, sql, [_values(row, partition) for row in rows])
            self._catalogue(connection, rows)
            self._run(
                connection,
                "UPDATE progress SET as_of_ms = ? WHERE partition = ? AND as_of_ms < ?",
                (as_of_ms, partition, as_of_ms),
            )

        await self._write(write)

    async def begin_resync(self, partition: int) -> None:
        """Begin to replace what a partition has."""
        await self._write(
            lambda connection: self._run(
                connection, "UPDATE rows SET stale = 1 WHERE partition = ?", (partition,)
            )
        )

    async def replace(self, partition: int, rows: Sequence[Row]) -> None:
        """Take rows whatever the index has."""

        def write(connection: Any) -> None:
            self._many(connection, _PUT_ROW, [_values(row, partition) for row in rows])
            self._catalogue(connection, rows)

        await self._write(write)

    async def end_resync(self, partition: int) -> None:
        """Drop what the partition no longer has, and note that it is filled."""

        def write(connection: Any) -> None:
            self._run(
                connection, "DELETE FROM rows WHERE partition = ? AND stale = 1", (partition,)
            )
            self._run(
                connection,
                "INSERT INTO progress (partition, as_of_ms) VALUES (?, 0) "
                "ON CONFLICT (partition) DO NOTHING",
                (partition,),
            )

        await self._write(write)

    async def filled(self, store_id: str) -> set[int]:
        """Return the partitions that were filled from this store; of another nothing is kept."""

        def read(connection: Any) -> set[int]:
            found = self._run(
                connection, "SELECT value FROM meta WHERE name = 'store_id'"
            ).fetchone()
            if found is None or found[0] != store_id:
                self._clear(connection)
                self._run(
                    connection,
                    "INSERT INTO meta (name, value) VALUES ('store_id', ?) "
                    "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                    (store_id,),
                )
            return {one[0] for one in self._run(connection, "SELECT partition FROM progress")}

        return await self._write(read)

    async def clear(self) -> None:
        """Forget every row. Items stay: nobody else has them."""
        await self._write(self._clear)

    def _clear(self, connection: Any) -> None:
        self._run(connection, "DELETE FROM rows")
        self._run(connection, "DELETE FROM progress")
        self._run(connection, "DELETE FROM catalog WHERE described = 0")

    def _catalogue(self, connection: Any, rows: Iterable[Row]) -> None:
        """Let SKUs be found by their name, also where nobody has described them."""
        skus = {(row.merchant, row.sku) for row in rows}
        self._many(
            connection,
            "INSERT INTO catalog (merchant, sku, title, attributes, described, words) "
            "VALUES (?, ?, '', '{}', 0, ?) ON CONFLICT (merchant, sku) DO NOTHING",
            [(merchant, sku, " ".join(words_of(sku))) for merchant, sku in sorted(skus)],
        )

    # Items

    async def put_item(self, merchant: str, item: Item) -> None:
        """Describe a SKU."""
        attributes = msgspec.json.encode(item.attributes).decode()
        words = " ".join(words_of(f"{item.sku} {item.title}"))
        sql = (
            "INSERT INTO catalog (merchant, sku, title, attributes, described, words) "
            "VALUES (?, ?, ?, ?, 1, ?) ON CONFLICT (merchant, sku) DO UPDATE SET "
            "title = excluded.title, attributes = excluded.attributes, described = 1, "
            "words = excluded.words"
        )
        values = (merchant, item.sku, item.title, attributes, words)
        await self._write(lambda connection: self._run(connection, sql, values))

    async def item(self, merchant: str, sku: str) -> Item:
        """Return an item. Raises ItemNotFound."""
        sql = (
            "SELECT title, attributes FROM catalog WHERE merchant = ? AND sku = ? AND described = 1"
        )
        found = await self._read(
            lambda connection: self._run(connection, sql, (merchant, sku)).fetchone()
        )
        if found is None:
            raise ItemNotFound(sku)
        title, attributes = self.read_names(found)
        return Item(sku, title, _attributes(attributes))

    async def delete_item(self, merchant: str, sku: str) -> None:
        """Forget what a SKU is called; its rows are still found by its name."""
        sql = (
            "UPDATE catalog SET title = '', attributes = '{}', described = 0, words = ? "
            "WHERE merchant = ? AND sku = ? AND described = 1"
        )
        values = (" ".join(words_of(sku)), merchant, sku)
        count = await self._write(lambda connection: self._run(connection, sql, values).rowcount)
        if not count:
            raise ItemNotFound(sku)

    # Questions

    async def search(self, question: Question) -> Found:
        """Return the rows that fit, in the order that is asked for; names in byte order."""

        def read(connection: Any) -> Found:
            as_of = self._run(connection, "SELECT max(as_of_ms) FROM progress").fetchone()[0]
            if question.text is None:
                hits, after = self._rows(connection, question, None), None
            else:
                hits, after = self._matching(connection, question)
            if len(hits) > question.limit:
                hits = hits[: question.limit]
                after = _place(question, hits[-1].row)
            return Found(hits, after, int(as_of or 0))

        return await self._read(read)

    def _matching(self, connection: Any, question: Question) -> tuple[list[Hit], Place | None]:
        """Find the SKUs that have the words, and then their rows, until there are enough.

        The other way round, through all rows in their order, a word that few have takes seconds.
        """
        words = searched_words(question.text or "")
        if not words:
            # A question of punctuation alone has no answer, and not all of them.
            return [], None
        argument, first = self.matching(words), str((question.after or ("", ""))[0])
        values = (argument, question.merchant, first, MAX_MATCHES)
        found = self._run(connection, self.matched_skus, values).fetchall()
        skus = [self.read_names(one)[0] for one in found]
        hits: list[Hit] = []
        for start in range(0, len(skus), SKUS_AT_ONCE):
            left = msgspec.structs.replace(question, limit=question.limit - len(hits))
            hits += self._rows(connection, left, skus[start : start + SKUS_AT_ONCE])
            if len(hits) > question.limit:
                return hits, None
        return hits, (skus[-1], _PAST_ALL) if len(skus) == MAX_MATCHES else None

    def _rows(self, connection: Any, question: Question, skus: Sequence[str] | None) -> list[Hit]:
        """Read one row more than was asked for, where there is one; of `skus` unless None."""
        conditions: list[str] = ["rows.merchant = ?"]
        values: list[Any] = [question.merchant]
        for column, value in (("sku", question.sku), ("location", question.location)):
            if value is not None:
                conditions.append(f"rows.{column} = ?")
                values.append(value)
        if skus is not None:
            conditions.append(f"rows.sku IN ({', '.join('?' * len(skus))})")
            values += skus
        if question.stocked is not None:
            conditions.append(_STOCKED[question.stocked])
        order = "rows.sku, rows.location"
        if question.sort is Sort.BACKORDERED:
            order = f"rows.backordered DESC, {order}"
        if question.after is not None:
            condition, arguments = _behind(question.after)
            conditions.append(condition)
            values += arguments
        columns = ", ".join(f"rows.{name}" for name in _FIELDS)
        sql = (
            f"SELECT {columns}, catalog.title, catalog.attributes FROM rows "  # noqa: S608 - ours
            "JOIN catalog ON catalog.merchant = rows.merchant AND catalog.sku = rows.sku "
            f"WHERE {' AND '.join(conditions)} "
            f"ORDER BY {order} LIMIT {question.limit + 1}"
        )
        found = self._run(connection, sql, values).fetchall()
        return [
            Hit(IndexedRow(*one[:-2]), one[-2], _attributes(one[-1]))
            for one in map(self.read_names, found)
        ]

    # Anti-entropy

    async def page(self, partition: int, after: Key | None, limit: int) -> list[IndexedRow]:
        """Return a partition's rows in the order of their keys, from past `after`."""
        sql = (
            f"SELECT {', '.join(_FIELDS)} FROM rows WHERE partition = ? "  # noqa: S608 - ours
            "AND (merchant, location, sku) > (?, ?, ?) "
            f"ORDER BY merchant, location, sku LIMIT {int(limit)}"
        )
        values = (partition, *(after or ("", "", "")))
        found = await self._read(lambda connection: self._run(connection, sql, values).fetchall())
        return [IndexedRow(*one) for one in map(self.read_names, found)]

    async def known(self, rows: Sequence[Row]) -> set[Key]:
        """Return which of the rows the index has, of whatever version."""
        sql = "SELECT 1 FROM rows WHERE merchant = ? AND sku = ? AND location = ?"

        def read(connection: Any) -> set[Key]:
            return {
                _key(row)
                for row in rows
                if self._run(connection, sql, (row.merchant, row.sku, row.location)).fetchone()
            }

        return await self._read(read)

    async def mend(self, partition: int, pairs: Sequence[tuple[IndexedRow, Row | None]]) -> int:
        """Put what the store says in place of what the index said; return how many that were.

        A row that the index has changed meanwhile is left alone.
        """
        delete = "DELETE FROM rows WHERE merchant = ? AND sku = ? AND location = ? AND version = ?"
        columns = [*_FIELDS[3:], "partition", "stale"]
        update = (
            f"UPDATE rows SET {', '.join(f'{name} = ?' for name in columns)} "  # noqa: S608 - ours
            "WHERE merchant = ? AND sku = ? AND location = ? AND version = ?"
        )

        def write(connection: Any) -> int:
            count = 0
            for had, wanted in pairs:
                place = (had.merchant, had.sku, had.location, had.version)
                if wanted is None:
                    count += self._run(connection, delete, place).rowcount
                else:
                    values = (*_values(wanted, partition)[3:], *place)
                    count += self._run(connection, update, values).rowcount
            return count

        return await self._write(write)

    # Threads

    async def _write(self, work: Callable[[Any], Result]) -> Result:
        return await self._in(self._writer, work)

    async def _read(self, work: Callable[[Any], Result]) -> Result:
        return await self._in(self._readers, work)

    async def _in(self, threads: ThreadPoolExecutor, work: Callable[[Any], Result]) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, self._do, work)
        except self.faults as error:
            raise IndexUnavailable("the index cannot be asked") from error

    def _do(self, work: Callable[[Any], Result]) -> Result:
        """Run in a thread: one transaction on the thread's own connection."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self.connect()
            with self._lock:
                self._connections.append(connection)
        try:
            result = work(connection)
            connection.commit()
        except BaseException:
            self._drop(connection)
            raise
        return result

    def _drop(self, connection: Any) -> None:
        """Leave a connection on which something failed: the next call makes another."""
        self._local.connection = None
        with self._lock:
            self._connections.remove(connection)
        connection.close()

    def _run(self, connection: Any, sql: str, values: Sequence[Any] = ()) -> Any:
        return connection.execute(self.placeholders(sql), self.names(values))

    def _many(self, connection: Any, sql: str, values: Sequence[Sequence[Any]]) -> None:
        if values:
            named = [self.names(one) for one in values]
            connection.cursor().executemany(self.placeholders(sql), named)


_STOCKED: Final = {
    Stocked.IN: "rows.available > 0",
    Stocked.OUT: "rows.available = 0",
    Stocked.BACKORDERED: "rows.backordered > 0",
    Stocked.LOW: "(rows.low_stock_threshold > 0 AND rows.available <= rows.low_stock_threshold)",
}


def _place(question: Question, row: IndexedRow) -> Place:
    """Return the place of a row in the order that is asked for."""
    if question.sort is Sort.BACKORDERED:
        return (row.backordered, row.sku, row.location)
    return (row.sku, row.location)


def _behind(place: Place) -> tuple[str, list[Any]]:
    """Return the condition of the rows behind a place, with its arguments."""
    if len(place) == 2:
        return "(rows.sku, rows.location) > (?, ?)", [*place]
    units, *names = place
    # The first part says twice what an index needs to begin there.
    condition = (
        "rows.backordered <= ? AND (rows.backordered < ? OR (rows.sku, rows.location) > (?, ?))"
    )
    return condition, [units, units, *names]


def _key(row: Row) -> Key:
    return (row.merchant, row.location, row.sku)


def _values(row: Row, partition: int) -> tuple[Any, ...]:
    return (*msgspec.structs.astuple(IndexedRow.of(row)), partition, 0)


def _attributes(text: str) -> dict[str, str]:
    return msgspec.json.decode(text, type=dict[str, str])


def open_database(url: str) -> Database:
    """Make the database that a path or a URL names; nothing is touched before `prepare`.

    Raises IndexUnavailable where it takes a package that is not installed.
    """
    if url.startswith(("postgresql://", "postgres://")):
        from projection.postgres import Postgres  # noqa: PLC0415 - an extra that few install

        return Postgres(url)
    return Sqlite(Path(url.removeprefix("sqlite://")))


class Sqlite(Database):
    """SQLite in a file: for one machine. Any number of processes may read, and write in turn."""

    faults = (sqlite3.Error, OSError)
    lock = "BEGIN IMMEDIATE"

    def __init__(self, path: Path) -> None:
        """Keep the path."""
        super().__init__()
        self._path = path

    def connect(self) -> Any:
        """Open the file, and make it where there is none."""
        # Readable by its owner alone, as everything in a data directory; SQLite gives the files
        # beside it the same mode.
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(
            self._path, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level="IMMEDIATE"
        )
        connection.execute("PRAGMA journal_mode = WAL")
        # What was written must be there before the consumer notes that it was.
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def schema(self) -> Iterable[str]:
        """Return the tables; triggers keep the words that are searched."""
        yield from _TABLES
        yield (
            "CREATE VIRTUAL TABLE IF NOT EXISTS catalog_words USING fts5 "
            "(words, content = 'catalog', content_rowid = 'id', prefix = '2 3')"
        )
        forget = (
            "INSERT INTO catalog_words (catalog_words, rowid, words) "
            "VALUES ('delete', old.id, old.words);"
        )
        learn = "INSERT INTO catalog_words (rowid, words) VALUES (new.id, new.words);"
        for name, body in (("INSERT", learn), ("DELETE", forget), ("UPDATE", forget + learn)):
            yield (
                f"CREATE TRIGGER IF NOT EXISTS catalog_{name.lower()} AFTER {name} ON catalog "
                f"BEGIN {body} END"
            )

    # A cross join is done in the order in which it is written: the words come first.
    matched_skus = (
        "SELECT catalog.sku FROM catalog_words CROSS JOIN catalog "
        "ON catalog.id = catalog_words.rowid WHERE catalog_words MATCH ? "
        "AND catalog.merchant = ? AND catalog.sku >= ? ORDER BY catalog.sku LIMIT ?"
    )

    def matching(self, words: Sequence[str]) -> str:
        """Ask the full-text table; a word in quotes is no syntax."""
        return " ".join(f'"{word}"*' for word in words)

    def placeholders(self, sql: str) -> str:
        """Leave it as it is."""
        return sql


SCARCE: Final = (
    "CREATE INDEX IF NOT EXISTS rows_out ON rows (merchant, sku, location) WHERE available = 0",
    """CREATE INDEX IF NOT EXISTS rows_low ON rows (merchant, sku, location)
        WHERE low_stock_threshold > 0 AND available <= low_stock_threshold""",
    """CREATE INDEX IF NOT EXISTS rows_backordered ON rows (merchant, sku, location)
        WHERE backordered > 0""",
    """CREATE INDEX IF NOT EXISTS rows_owed ON rows (merchant, backordered DESC, sku, location)
        WHERE backordered > 0""",
)
"""Indexes of the rows that are out, low or owe units: few among many, so they are not to be looked
for."""

_META: Final = "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)"
_TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS progress (
        partition INTEGER PRIMARY KEY, as_of_ms INTEGER NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS rows (
        merchant TEXT NOT NULL, sku TEXT NOT NULL, location TEXT NOT NULL,
        on_hand INTEGER NOT NULL, reserved INTEGER NOT NULL, safety_stock INTEGER NOT NULL,
        deficit INTEGER NOT NULL, version INTEGER NOT NULL, low_stock_threshold INTEGER NOT NULL,
        backordered INTEGER NOT NULL, available INTEGER NOT NULL,
        backorder_available INTEGER NOT NULL, partition INTEGER NOT NULL, stale INTEGER NOT NULL,
        PRIMARY KEY (merchant, sku, location)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS rows_by_location ON rows (merchant, location, sku)",
    "CREATE INDEX IF NOT EXISTS rows_by_partition ON rows (partition, merchant, location, sku)",
    *SCARCE,
    """CREATE TABLE IF NOT EXISTS catalog (
        id INTEGER PRIMARY KEY, merchant TEXT NOT NULL, sku TEXT NOT NULL, title TEXT NOT NULL,
        attributes TEXT NOT NULL, described INTEGER NOT NULL, words TEXT NOT NULL,
        UNIQUE (merchant, sku))""",
)
