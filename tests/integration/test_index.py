"""The availability index, in SQLite and in PostgreSQL, kept from a real store."""

import asyncio
import random
import sqlite3
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from engine.consumer import Reason, Resync, list_readers
from engine.model import MovementType, Row, Terms
from engine.outcomes import IndexUnavailable, ItemNotFound
from projection import follower
from projection.database import (
    Database,
    Hit,
    IndexedRow,
    Item,
    Question,
    Sort,
    Stocked,
    open_database,
)
from tests.databases import running_postgres
from tests.shop import LOCATION, Shop, open_shop
from tests.stores import MakeStore, eventually, set_up

WAIT_SECONDS = 20.0
KINDS = ("sqlite", "postgres")
SEED = random.SystemRandom().randrange(2**32)


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with running_postgres() as url:
        yield url


@pytest.fixture(params=KINDS)
def index_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "index.db")
    url = str(request.getfixturevalue("postgres"))
    _execute(url, "DROP TABLE IF EXISTS rows, catalog, progress, meta")
    return url


def _execute(url: str, sql: str) -> None:
    """Do something to the database by hand."""
    if url.startswith("postgresql"):
        import psycopg  # noqa: PLC0415 - the tests run without it where there is no PostgreSQL

        with psycopg.connect(url) as connection:
            connection.execute(sql.encode())
        return
    damaged = sqlite3.connect(url)
    damaged.execute(sql)
    damaged.commit()
    damaged.close()


@pytest.fixture
async def database(index_url: str) -> AsyncIterator[Database]:
    opened = open_database(index_url)
    await opened.prepare()
    yield opened
    await opened.close()


@pytest.fixture
async def shop(make_store: MakeStore) -> AsyncIterator[Shop]:
    """A shop on a store of its own with two partitions."""
    store = make_store()
    await store.start()
    await set_up(store.settings, partitions=2)
    async with open_shop(store.settings) as opened:
        yield opened


@asynccontextmanager
async def followed(shop: Shop, database: Database) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(follower.IndexFollower(shop.inventory, database).run(stop))
    try:
        yield
    finally:
        stop.set()
        await asyncio.wait_for(task, WAIT_SECONDS)


async def ask(database: Database, merchant: str, **asked: Any) -> list[Hit]:
    found = await database.search(Question(merchant=merchant, **{"limit": 100, **asked}))
    return found.hits


async def places(database: Database, merchant: str, **asked: Any) -> list[tuple[str, str]]:
    return [(one.row.sku, one.row.location) for one in await ask(database, merchant, **asked)]


async def until_same(shop: Shop, database: Database) -> None:
    """Wait until the index has what the store has."""

    async def same() -> bool:
        return await indexed(shop, database) == await stored(shop)

    await eventually(same, within_seconds=WAIT_SECONDS)


async def indexed(shop: Shop, database: Database) -> dict[tuple[str, str], IndexedRow]:
    rows = [one.row for one in await ask(database, shop.merchant)]
    return {(row.location, row.sku): row for row in rows}


async def stored(shop: Shop) -> dict[tuple[str, str], IndexedRow]:
    found: dict[tuple[str, str], IndexedRow] = {}
    for partition in range(shop.inventory.partitions):
        async for rows in Resync(shop.inventory, partition, Reason.START).rows():
            found |= {(row.location, row.sku): IndexedRow.of(row) for row in rows}
    return found


async def test_the_index_is_filled_and_follows_and_goes_on_where_it_was(
    shop: Shop, database: Database
) -> None:
    for number in range(4):
        await shop.receive("tea", 3, location=f"l{number}")
    async with followed(shop, database):
        await until_same(shop, database)
        for number in range(3):
            await shop.reserve([("tea", 3)], location=f"l{number}")
        await shop.receive("mug", 1)
        await until_same(shop, database)
        stock = Stocked
        assert await places(database, shop.merchant, sku="tea", stocked=stock.IN) == [("tea", "l3")]
        assert await places(database, shop.merchant, location="l1", stocked=stock.OUT) == [
            ("tea", "l1")
        ]
    # While it was away.
    await shop.receive("jug", 1)
    async with followed(shop, database):
        await until_same(shop, database)
    assert [one.name for one in await list_readers(shop.inventory.store, shop.inventory.keys)] == [
        "index"
    ]


def modes(folder: Path, name: str) -> set[int]:
    """Return the modes of an index's file and of those beside it."""
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.glob(f"{name}*")}


async def test_an_index_that_was_lost_is_filled_again(shop: Shop, tmp_path: Path) -> None:
    await shop.receive("tea", 3)
    for name in ("first.db", "second.db"):
        database = open_database(str(tmp_path / name))
        await database.prepare()
        async with followed(shop, database):
            await until_same(shop, database)
            assert modes(tmp_path, name) == {0o600}
        await database.close()


async def test_text_stock_and_pages(
    shop: Shop, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {
        "mug-blue": (5, 0),
        "mug-red": (0, 0),
        "tea/green": (2, 3),
        "CAF\u00c9 50%_off": (1, 0),
        "nul\0sku": (1, 0),
        "\ue000": (1, 0),
    }
    for sku, (units, threshold) in rows.items():
        await shop.receive(sku, units + 1)
        await shop.move(MovementType.SALE, sku, 1)
        if threshold:
            row = await shop.row(sku)
            await shop.inventory.configure(
                shop.merchant, LOCATION, sku, key="k", low_stock_threshold=threshold,
                expected_version=row.version, actor="t",
            )  # fmt: skip
    merchant = shop.merchant
    await database.put_item(
        merchant, Item("mug-blue", "Becher, gro\u00df & Tasse", {"ean": "4006"})
    )
    await database.put_item(merchant, Item("tea/green", "Sencha", {}))
    async with followed(shop, database):
        await until_same(shop, database)

    async def found(text: str, **asked: Any) -> list[str]:
        return [sku for sku, _ in await places(database, merchant, text=text, **asked)]

    assert await found("MUG") == ["mug-blue", "mug-red"]
    assert await found("mug", stocked=Stocked.IN) == ["mug-blue"]
    assert await found("mug", stocked=Stocked.OUT) == ["mug-red"]
    assert await found("tass bech") == ["mug-blue"]
    assert await found("GROSS") == ["mug-blue"]
    assert await found("cafe") == ["CAF\u00c9 50%_off"]
    assert await found("sench", stocked=Stocked.LOW) == ["tea/green"]
    assert await found("green") == ["tea/green"]
    for nothing in ("mugs", "blue sencha", "%", "* OR mug", '"', "-", "blue | red", "NEAR(mug)"):
        assert await found(nothing) == [], nothing
    (hit,) = await ask(database, merchant, sku="mug-blue")
    assert (hit.title, hit.attributes) == ("Becher, gro\u00df & Tasse", {"ean": "4006"})
    assert hit.row == IndexedRow.of(await shop.row("mug-blue"))

    # Pages in byte order, complete, each row once.
    whole = await places(database, merchant)
    assert whole == sorted(whole, key=lambda one: one[0].encode())
    paged: list[tuple[str, str]] = []
    for _ in range(len(rows)):
        paged += await places(database, merchant, after=paged[-1] if paged else None, limit=1)
    assert paged == whole
    assert await places(database, f"{merchant}-other") == []

    # A word that very many have: a page may be short, and the next question goes on behind it.
    monkeypatch.setattr("projection.database.MAX_MATCHES", 2)
    monkeypatch.setattr("projection.database.SKUS_AT_ONCE", 1)
    for number in range(5):
        await database.put_item(merchant, Item(f"mug-{number}", "Mug without stock", {}))
    after, seen, rounds = None, [], 0
    while rounds == 0 or after is not None:
        page = await database.search(Question(merchant=merchant, text="mug", after=after, limit=1))
        seen += [hit.row.sku for hit in page.hits]
        after, rounds = page.after, rounds + 1
        assert rounds < 20
    assert seen == ["mug-blue", "mug-red"]
    assert rounds > 3
    monkeypatch.undo()

    # What a SKU is called can be changed and forgotten; the SKU is still found.
    await database.put_item(merchant, Item("mug-blue", "Cup", {}))
    assert await found("tasse") == []
    assert await found("cup") == ["mug-blue"]
    await database.delete_item(merchant, "mug-blue")
    assert await found("cup") == []
    assert await found("blue") == ["mug-blue"]
    for call in (database.item, database.delete_item):
        with pytest.raises(ItemNotFound):
            await call(merchant, "mug-blue")
    assert (await database.item(merchant, "tea/green")).title == "Sencha"


async def test_a_rebuild_keeps_items_and_a_check_mends_what_was_changed_by_hand(
    shop: Shop, database: Database, index_url: str
) -> None:
    for number in range(5):
        await shop.receive(f"sku-{number}", number + 1)
    await database.put_item(shop.merchant, Item("sku-1", "One", {}))
    taken: list[int] = []
    await follower.rebuild(shop.inventory, database, taken=taken.append)
    assert sum(taken) == 5
    assert await indexed(shop, database) == await stored(shop)
    assert await follower.check(shop.inventory, database) == 0

    # Numbers, a version ahead of the store's, a row that is none, and one that is gone.
    _execute(index_url, "UPDATE rows SET available = 77, on_hand = 77 WHERE sku = 'sku-0'")
    _execute(index_url, "UPDATE rows SET version = 99 WHERE sku = 'sku-1'")
    _execute(index_url, "UPDATE rows SET sku = 'sku-x' WHERE sku = 'sku-2'")
    _execute(index_url, "DELETE FROM rows WHERE sku = 'sku-3'")
    # That the index is late is no damage, and is made good as well.
    await shop.receive("sku-4", 1)
    assert await follower.check(shop.inventory, database) == 5
    assert await indexed(shop, database) == await stored(shop)
    (hit,) = await ask(database, shop.merchant, sku="sku-0")
    assert await places(database, shop.merchant, stocked=Stocked.IN, sku="sku-0")
    assert hit.row.available == 1
    assert await follower.check(shop.inventory, database) == 0

    await follower.rebuild(shop.inventory, database, taken=taken.append)
    assert await indexed(shop, database) == await stored(shop)
    assert (await database.item(shop.merchant, "sku-1")).title == "One"


async def test_what_is_owed_is_found_and_the_check_knows_rows_on_terms(
    shop: Shop, database: Database, index_url: str
) -> None:
    await shop.receive("tea", 2)
    await shop.receive("mug", 2)
    for sku in ("tea", "mug"):
        await shop.set_terms(sku, Terms(backorder_limit=9))
    async with followed(shop, database):
        await shop.reserve([("tea", 5)])
        await shop.expect("mug", "po-1", "2026-12-07", 4)
        await until_same(shop, database)
    assert await places(database, shop.merchant, stocked=Stocked.BACKORDERED) == [("tea", LOCATION)]
    tea, mug = sorted(
        [hit.row for hit in await ask(database, shop.merchant)], key=lambda row: row.available
    )
    assert (tea.available, tea.backordered, tea.backorder_available) == (0, 3, 6)
    assert (mug.available, mug.backordered, mug.backorder_available) == (2, 0, 13)
    assert await follower.check(shop.inventory, database) == 0
    _execute(index_url, "UPDATE rows SET backordered = 0 WHERE sku = 'tea'")
    assert await follower.check(shop.inventory, database) == 1
    assert await indexed(shop, database) == await stored(shop)


async def test_rows_that_owe_units_are_listed_by_how_many_in_an_index_of_before_too(
    database: Database, index_url: str, merchant: str
) -> None:
    owed = {"tea": 3, "mug": 7, "jug": 0, "pot": 7, "cup": 1}
    rows = [
        Row(merchant, place, sku, 0, 0, 0, 0, 1, backordered=units)
        for sku, units in owed.items()
        for place in ("york", "leeds")
    ]
    await database.take(0, rows, as_of_ms=1)
    await database.close()
    # As the version before left it: nothing is to be filled anew for an index of the database.
    _execute(index_url, "DROP INDEX rows_owed")
    upgraded = open_database(index_url)
    await upgraded.prepare()
    asked: dict[str, Any] = {"stocked": Stocked.BACKORDERED, "sort": Sort.BACKORDERED}
    whole = await places(upgraded, merchant, **asked)
    assert whole == [
        (sku, place) for sku in ("mug", "pot", "tea", "cup") for place in ("leeds", "york")
    ]
    assert await places(upgraded, merchant, location="york", **asked) == whole[1::2]
    paged: list[tuple[str, str]] = []
    after = None
    for _ in whole:
        question = Question(merchant=merchant, after=after, limit=1, **asked)
        page = await upgraded.search(question)
        paged += [(hit.row.sku, hit.row.location) for hit in page.hits]
        after = page.after
    assert (paged, after) == (whole, None)
    await upgraded.close()
    # It is there again, so it cannot be made.
    with pytest.raises(Exception, match="rows_owed"):
        _execute(index_url, "CREATE INDEX rows_owed ON rows (merchant)")


async def test_an_index_of_another_layout_is_filled_anew_and_keeps_its_items(
    shop: Shop, database: Database, index_url: str
) -> None:
    await shop.receive("tea", 2)
    async with followed(shop, database):
        await until_same(shop, database)
    await database.put_item(shop.merchant, Item("tea", "Sencha", {}))
    await database.close()
    for statement in (
        "DELETE FROM meta WHERE name = 'layout'",
        "DROP INDEX rows_backordered",
        "DROP INDEX rows_owed",
        "ALTER TABLE rows DROP COLUMN backordered",
    ):
        _execute(index_url, statement)

    upgraded, other = open_database(index_url), open_database(index_url)
    # As processes that start together do.
    await asyncio.gather(upgraded.prepare(), other.prepare())
    await other.close()
    assert await ask(upgraded, shop.merchant) == []
    async with followed(shop, upgraded):
        await until_same(shop, upgraded)
    assert await places(upgraded, shop.merchant, text="sencha") == [("tea", LOCATION)]
    # Once more is nothing more.
    await upgraded.prepare()
    assert await indexed(shop, upgraded) == await stored(shop)
    await upgraded.close()


async def test_an_index_that_cannot_be_had_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "junk.db").write_bytes(b"no database" * 1000)
    for url in (
        str(tmp_path / "no" / "such" / "folder.db"),
        str(tmp_path / "junk.db"),
        f"postgresql:///x?host={tmp_path}&connect_timeout=1",
    ):
        database = open_database(url)
        with pytest.raises(IndexUnavailable):
            await database.prepare()
        await database.close()


def row(sku: str, version: int, units: int) -> Row:
    return Row("m", "l", sku, units, 0, 0, 0, version)


HISTORY: list[Row] = [
    # Two reservations and a restock, and another row beside it.
    row("tea", 1, 5), row("tea", 2, 4), row("tea", 3, 3), row("tea", 4, 13),
    row("mug", 1, 1), row("mug", 2, 0),
]  # fmt: skip
FINAL = [HISTORY[3], HISTORY[5]]


class Rows(Resync):
    """A resynchronisation from rows at hand."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.partition = 0
        self.reason = Reason.GAP
        self._rows = rows

    async def rows(self) -> AsyncIterator[Sequence[Row]]:
        for one in self._rows:
            yield [one]


def test_whatever_comes_in_whatever_order_the_end_is_the_same(tmp_path: Path) -> None:
    """Permutations, duplicates, and drops that are followed by a resynchronisation."""

    @seed(SEED)
    @settings(
        max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(
        st.lists(st.sampled_from(HISTORY), max_size=20),
        st.permutations(HISTORY),
        st.integers(0, len(HISTORY)),
        st.booleans(),
    )
    def check(duplicates: list[Row], order: list[Row], drop: int, fork: bool) -> None:
        async def go() -> None:
            database = open_database(str(tmp_path / "property.db"))
            await database.prepare()
            await database.clear()
            told = [*duplicates, *order] if not drop else [*duplicates, *order[drop:]]
            for number in range(0, len(told), 3):
                await database.take(0, told[number : number + 3], as_of_ms=number)
            if drop or fork:
                if fork:
                    # What a failover undid: rows at versions that never come again.
                    await database.take(0, [row("tea", 9, 99), row("jug", 1, 7)], as_of_ms=1)
                await follower.IndexHandler(database).resync(Rows(FINAL))
                # And what the tail repeats behind it.
                await database.take(0, order, as_of_ms=2)
            found = {one.row for one in await ask(database, "m")}
            await database.close()
            assert found == {IndexedRow.of(one) for one in FINAL}

        asyncio.run(go())

    try:
        check()
    except BaseException as error:
        error.add_note(f"seed {SEED}")
        raise
