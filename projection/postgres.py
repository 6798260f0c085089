"""The index in PostgreSQL, for more than one machine; takes the extra `postgres`."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from engine.outcomes import IndexUnavailable
from projection.database import BUSY_SECONDS, SCARCE, Database

try:
    import psycopg
except ImportError as error:
    raise IndexUnavailable(
        "an index in PostgreSQL takes psycopg: pip install 'holdfast[postgres]'"
    ) from error

_LOCK: Final = 7_241_001
"""Of the advisory lock under which the tables are made."""


class Postgres(Database):
    """PostgreSQL by URL. Any number of machines may use it."""

    faults = (psycopg.Error, OSError)
    lock = f"SELECT pg_advisory_xact_lock({_LOCK})"

    def __init__(self, url: str) -> None:
        """Keep the URL."""
        super().__init__()
        self._url = url

    def connect(self) -> Any:
        """Connect."""
        return psycopg.connect(
            self._url,
            connect_timeout=round(BUSY_SECONDS),
            options=f"-c statement_timeout={round(BUSY_SECONDS * 1000)}",
        )

    def schema(self) -> Iterable[str]:
        """Return the tables; names compare by byte, as in the store."""
        yield from _TABLES

    matched_skus = (
        "SELECT sku FROM catalog WHERE to_tsvector('simple', words) @@ to_tsquery('simple', ?) "
        "AND merchant = ? AND sku >= ? ORDER BY sku LIMIT ?"
    )

    def matching(self, words: Sequence[str]) -> str:
        """Ask the text index; words are letters and digits alone, so they are no syntax."""
        return " & ".join(f"{word}:*" for word in words)

    def placeholders(self, sql: str) -> str:
        """Write `?` as `%s`; none of the statements has another `?` or a `%`."""
        return sql.replace("?", "%s")

    def names(self, values: Sequence[Any]) -> Sequence[Any]:
        """Escape NUL, which is legal in an id and not in a text of PostgreSQL."""
        return [_escape(value) if isinstance(value, str) else value for value in values]

    def read_names(self, values: Sequence[Any]) -> Sequence[Any]:
        """Undo `names`."""
        return [_unescape(value) if isinstance(value, str) else value for value in values]


_ESCAPE: Final = "\ue000"
"""A character of private use, so hardly ever doubled."""


def _escape(text: str) -> str:
    if "\0" not in text and _ESCAPE not in text:
        return text
    return text.replace(_ESCAPE, _ESCAPE + "e").replace("\0", _ESCAPE + "0")


def _unescape(text: str) -> str:
    if _ESCAPE not in text:
        return text
    return text.replace(_ESCAPE + "0", "\0").replace(_ESCAPE + "e", _ESCAPE)


_NAME: Final = 'TEXT COLLATE "C" NOT NULL'
_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS progress (partition INTEGER PRIMARY KEY, as_of_ms BIGINT NOT NULL)",
    f"""CREATE TABLE IF NOT EXISTS rows (
        merchant {_NAME}, sku {_NAME}, location {_NAME},
        on_hand BIGINT NOT NULL, reserved BIGINT NOT NULL, safety_stock BIGINT NOT NULL,
        deficit BIGINT NOT NULL, version BIGINT NOT NULL, low_stock_threshold BIGINT NOT NULL,
        backordered BIGINT NOT NULL, available BIGINT NOT NULL,
        backorder_available BIGINT NOT NULL, partition INTEGER NOT NULL, stale INTEGER NOT NULL,
        PRIMARY KEY (merchant, sku, location))""",
    "CREATE INDEX IF NOT EXISTS rows_by_location ON rows (merchant, location, sku)",
    "CREATE INDEX IF NOT EXISTS rows_by_partition ON rows (partition, merchant, location, sku)",
    *SCARCE,
    f"""CREATE TABLE IF NOT EXISTS catalog (
        id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, merchant {_NAME}, sku {_NAME},
        title TEXT NOT NULL, attributes TEXT NOT NULL, described INTEGER NOT NULL,
        words TEXT NOT NULL, UNIQUE (merchant, sku))""",
    """CREATE INDEX IF NOT EXISTS catalog_by_words ON catalog
        USING GIN (to_tsvector('simple', words))""",
)
