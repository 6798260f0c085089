"""Keeps the index current: a handler of the ledger's consumer, and the check of what it keeps.

This is all that a search index of one's own takes: rows are written where their version is newer,
and a partition that is resynchronised is replaced.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from engine.consumer import Batch, Consumer, Reason, Resync, remove_reader
from engine.inventory import Inventory
from engine.keys import STORE_KEY
from engine.limits import MAX_BATCH_ROWS
from engine.model import Row
from engine.outcomes import HoldfastError
from engine.tasks import end_task
from projection.database import Database, IndexedRow, Key

READER: Final = "index"
"""What the consumer is known by in the store."""

CHECK_INTERVAL_SECONDS: Final = 300.0
"""Between two rounds of the check."""

CHECK_PAUSE_SECONDS: Final = 0.1
"""Between two pages of 500 rows of a round in the background, so that it asks the store for 5,000
rows a second at most."""

RESTART_SECONDS: Final = 5.0

Progress = Callable[[int], None]
"""Is told how many rows were taken."""

log = structlog.get_logger("projection.follower")


class IndexHandler:
    """Takes changes into the database."""

    def __init__(self, database: Database, *, taken: Progress = lambda _: None) -> None:
        """Tell `taken` of rows that a resynchronisation took."""
        self._database = database
        self._taken = taken

    async def apply(self, batch: Batch) -> None:
        """Take the rows that a batch changed. Raises IndexUnavailable."""
        await self._database.take(batch.partition, batch.rows(), as_of_ms=batch.entries[-1].at_ms)

    async def resync(self, anew: Resync) -> None:
        """Take a partition's rows in place of those that it had. Raises IndexUnavailable."""
        await self._database.begin_resync(anew.partition)
        async for rows in anew.rows():
            await self._database.replace(anew.partition, rows)
            self._taken(len(rows))
        await self._database.end_resync(anew.partition)


class IndexFollower:
    """Follows the ledger and checks the index, until told to stop."""

    def __init__(self, inventory: Inventory, database: Database) -> None:
        """Keep `database` like the store of `inventory`."""
        self._inventory = inventory
        self._database = database

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; what fails is tried again."""
        checking = asyncio.create_task(self._keep_checking(stop))
        try:
            while not stop.is_set():
                try:
                    await self._follow(stop)
                except Exception as fault:
                    # The edge of this job: the process has others.
                    log.error("the index is not kept", error=str(fault), exc_info=fault)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(RESTART_SECONDS):
                            await stop.wait()
        finally:
            await end_task(checking)

    async def _follow(self, stop: asyncio.Event) -> None:
        await prepare(self._inventory, self._database)
        consumer = Consumer(self._inventory, READER, IndexHandler(self._database))
        await consumer.run(stop)

    async def _keep_checking(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await asyncio.sleep(CHECK_INTERVAL_SECONDS)
            try:
                mended = await check(
                    self._inventory, self._database, pause_seconds=CHECK_PAUSE_SECONDS
                )
            except HoldfastError as error:
                log.warning("the index cannot be checked", code=error.code, error=str(error))
                continue
            if mended:
                log.error("rows of the index were not what the store says", mended=mended)


async def prepare(inventory: Inventory, database: Database) -> None:
    """Make the tables; an index that is new, or of another store, is filled from the start.

    Raises IndexUnavailable and StoreUnavailable.
    """
    await database.prepare()
    (store_id,) = await inventory.store.read([("HGET", STORE_KEY, "store_id")])
    filled = await database.filled((store_id or b"").decode())
    if len(filled) < inventory.partitions:
        # What the store knows of this reader was of an index that is no more.
        await remove_reader(inventory.store, inventory.keys, READER)


async def rebuild(inventory: Inventory, database: Database, *, taken: Progress) -> None:
    """Empty the index and fill it from the store's rows; items stay.

    It may be kept meanwhile: of two versions of a row the newer one stays, whoever brings it.
    Raises IndexUnavailable and StoreUnavailable.
    """
    await database.prepare()
    await database.clear()
    for partition in range(inventory.partitions):
        async for rows in Resync(inventory, partition, Reason.START).rows():
            await database.take(partition, rows, as_of_ms=0)
            taken(len(rows))
        await database.end_resync(partition)


async def check(
    inventory: Inventory,
    database: Database,
    *,
    pause_seconds: float = 0.0,
    seen: Progress = lambda _: None,
) -> int:
    """Compare every row with the store's, and mend what differs; return how many rows that were.

    A row that the index is only late with is brought up to date, too, and not counted. Raises
    IndexUnavailable and StoreUnavailable.
    """
    mended = 0
    for partition in range(inventory.partitions):
        mended += await _check_indexed(inventory, database, partition, pause_seconds, seen)
        mended += await _check_missing(inventory, database, partition, pause_seconds)
    return mended


async def _check_indexed(
    inventory: Inventory, database: Database, partition: int, pause_seconds: float, seen: Progress
) -> int:
    mended = 0
    after: Key | None = None
    while page := await database.page(partition, after, MAX_BATCH_ROWS):
        # The store is read after the index, so it is never the older of the two.
        truth = await _truth(inventory, page)
        wrong = [
            (had, row)
            for had, row in zip(page, truth, strict=True)
            if row is None or had != IndexedRow.of(row)
        ]
        late = sum(row is not None and row.version > had.version for had, row in wrong)
        if wrong:
            mended += max(0, await database.mend(partition, wrong) - late)
        last = page[-1]
        after = (last.merchant, last.location, last.sku)
        seen(len(page))
        await asyncio.sleep(pause_seconds)
    return mended


async def _check_missing(
    inventory: Inventory, database: Database, partition: int, pause_seconds: float
) -> int:
    mended = 0
    async for rows in Resync(inventory, partition, Reason.START).rows():
        known = await database.known(rows)
        missing = [row for row in rows if (row.merchant, row.location, row.sku) not in known]
        if missing:
            await database.take(partition, missing, as_of_ms=0)
            mended += len(missing)
        await asyncio.sleep(pause_seconds)
    return mended


async def _truth(inventory: Inventory, rows: list[IndexedRow]) -> list[Row | None]:
    """Read the same rows from the store, merchant by merchant."""
    found: dict[Key, Row | None] = {}
    for merchant in {row.merchant for row in rows}:
        wanted = [(row.location, row.sku) for row in rows if row.merchant == merchant]
        answers = await inventory.rows(merchant, wanted)
        for (location, sku), answer in zip(wanted, answers, strict=True):
            found[merchant, location, sku] = answer
    return [found[row.merchant, row.location, row.sku] for row in rows]
