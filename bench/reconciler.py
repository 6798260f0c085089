"""The reconciler: how fast the ledger is archived, folded, audited and made a store again.

All of it is timed on a store that nobody else uses, but for what an audit costs a service under
load. Operations are counted, not stream entries: of these one has up to 128 operations.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bench import http, servers
from bench.account import AccountWrong, Books, check
from bench.figures import Conditions, Sample
from bench.load import closed_loop
from bench.memory import hold_all
from bench.servers import Service
from bench.shop import ACTOR, LOCATIONS, MERCHANT, OPENING_UNITS, MakeShop, Shop, rows_of, uniform
from bench.shop import stock_up as stock_up_rows
from engine.inventory import Inventory
from reconciler.archive import Archive, open_archive
from reconciler.archiver import Archiver, ArchiverSettings
from reconciler.audit import Audit
from reconciler.fold import Fold
from reconciler.reader import LedgerReader
from reconciler.rebuild import rebuild as rebuild_store
from reconciler.rebuild_plan import RebuildRequest
from reconciler.snapshots import Snapshots

HOLDS: Final = 200_000
HOLDS_WHEN_QUICK: Final = 20_000

LAST_HOUR: Final = 180_000
"""Orders since the last snapshot before a rebuild: 50 a second for an hour. Each is a hold and its
commit, so two operations."""

LAST_HOUR_WHEN_QUICK: Final = 5_000
COMMITS_AT_ONCE: Final = 256
MAX_AUDITS: Final = 1_000

ARCHIVE: Final = "archive"
FOLD: Final = "fold"
AUDIT: Final = "audit"


async def passes(conditions: Conditions) -> Mapping[str, Sample]:
    """Measure one pass each over a ledger: ARCHIVE and FOLD in operations/s, AUDIT in rows/s."""
    count = HOLDS_WHEN_QUICK if conditions.quick else HOLDS
    shop = uniform()
    async with (
        servers.stocked_inventory(conditions, shop.rows) as inventory,
        _archive(conditions, inventory) as archive,
    ):
        await hold_all(inventory, shop, count)
        operations = count + len(shop.rows)
        archived_seconds, entries = await _archive_all(inventory, archive)
        details: dict[str, float | str] = {"operations_of_an_entry": round(operations / entries, 1)}
        fold_seconds, folded = await _fold_all(inventory, archive)
        if folded != operations:
            raise AccountWrong(f"{folded} operations were folded, where {operations} were made")
        began_at = time.perf_counter()
        report = await Audit(inventory, archive).run()
        audit_seconds = time.perf_counter() - began_at
        if report.findings:
            raise AccountWrong(f"the audit found: {report.findings[0].detail}")
        compared = report.rows + report.reservations + report.records
        return {
            ARCHIVE: Sample(value=operations / archived_seconds, details=details),
            FOLD: Sample(
                value=folded / fold_seconds,
                details={**details, "entries_per_second": round(entries / fold_seconds)},
            ),
            AUDIT: Sample(
                value=compared / audit_seconds,
                details={"operations_per_second": round(report.operations / audit_seconds)},
            ),
        }


async def rebuild(conditions: Conditions, rows: int) -> Sample:
    """Measure how long it takes to rebuild so many rows with their last hour's ledger, in s."""
    count = LAST_HOUR_WHEN_QUICK if conditions.quick else LAST_HOUR
    shop = Shop(rows_of(LOCATIONS, rows // LOCATIONS), uniform().carts)
    async with (
        servers.store(conditions) as old_server,
        servers.inventory(old_server.settings) as old,
        _archive(conditions, old) as archive,
        servers.store(conditions) as new_server,
        servers.inventory(new_server.settings) as new,
    ):
        await stock_up_rows(old, shop.rows)
        await _archive_all(old, archive)
        await _make_snapshots(old, archive)
        await hold_all(old, shop, count)
        await _commit_all(old, shop, count)
        await _archive_all(old, archive)
        request = RebuildRequest(actor=ACTOR, source=archive.store_id)
        began_at = time.perf_counter()
        result = await rebuild_store(request, archive.objects, target=new.store)
        seconds = time.perf_counter() - began_at
        books = Books(shop)
        books.hold(range(count))
        books.commit(range(count))
        await _check_rebuilt(new, books)
        return Sample(
            value=seconds,
            details={
                "keys_per_second": round(
                    (result.rows + result.reservations + result.records) / seconds
                ),
                "operations_replayed": result.operations,
                "reservations": result.reservations,
            },
        )


async def reserve_while_audited(conditions: Conditions, make_shop: MakeShop) -> Sample:
    """Measure holding carts while one whole audit follows the other, unbounded."""
    shop = make_shop()
    async with servers.service(conditions, shop.rows) as service, _audited(service) as audits:
        load = await closed_loop(
            service.address,
            http.ReserveRequests(shop, service.api_key),
            connections=http.CONNECTIONS,
            window=conditions.window,
        )
        books = Books(shop)
        books.hold(range(len(load.demand(http.CREATED).statuses)))
        async with servers.inventory(service.store) as inventory:
            await check(inventory, books)
        return Sample.of_rate(load, connections=http.CONNECTIONS, audits=len(audits))


@asynccontextmanager
async def _audited(service: Service) -> AsyncIterator[list[int]]:
    """Audit a service's store over and over in another process; the codes it ended with."""
    codes: list[int] = []
    running: list[asyncio.subprocess.Process] = []
    environ = {
        **{name: text for name, text in os.environ.items() if not name.startswith("HOLDFAST_")},
        "HOLDFAST_REDIS_URL": service.store.url,
        "HOLDFAST_REDIS_USERNAME": service.store.username,
        "HOLDFAST_REDIS_PASSWORD": service.store.password,
    }

    async def audit_again_and_again() -> None:
        for _ in range(MAX_AUDITS):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "holdfast", "audit", "--json"),
                env=environ,
                stdout=asyncio.subprocess.DEVNULL,
            )
            running[:] = [process]
            codes.append(await process.wait())
            if codes[-1] != 0:
                raise AccountWrong(f"an audit under load ended with {codes[-1]}")

    task = asyncio.create_task(audit_again_and_again())
    try:
        yield codes
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.wait([task])
        for process in running:
            if process.returncode is None:
                process.kill()
                await process.wait()


@asynccontextmanager
async def _archive(conditions: Conditions, inventory: Inventory) -> AsyncIterator[Archive]:
    """Open an archive of its own, on the disk that is measured."""
    with TemporaryDirectory(dir=conditions.work_dir) as path:
        yield await open_archive(inventory.store, str(Path(path) / "archive"))


async def _archive_all(inventory: Inventory, archive: Archive) -> tuple[float, int]:
    """Archive everything; return the seconds that it took, and how many entries there were."""
    archiver = Archiver(inventory, archive, owner=ACTOR, settings=ArchiverSettings())
    began_at = time.perf_counter()
    rounds = await archiver.archive_all(flush=True)
    seconds = time.perf_counter() - began_at
    await archiver.give_up()
    return seconds, sum(progress.entries for progress in rounds)


async def _make_snapshots(inventory: Inventory, archive: Archive) -> None:
    """Make a snapshot of every partition, as of a shop that was stocked days ago.

    So it has none of the opening receipts' idempotency records, which the store keeps for a day.
    """
    for partition in range(inventory.partitions):
        fold = Fold()
        async for batch in LedgerReader(None, None, archive).batches(partition):
            fold.apply_all(entry.decode() for entry in batch)
        fold.state.seen.clear()
        await Snapshots(archive).write(partition, fold.state)


async def _commit_all(inventory: Inventory, shop: Shop, count: int) -> None:
    """Commit the holds of the first `count` carts."""
    numbers = iter(range(count))

    async def commit() -> None:
        for number in numbers:
            reservation = shop.reservation(number, inventory.partitions)
            await inventory.commit(MERCHANT, reservation, actor=ACTOR)

    async with asyncio.TaskGroup() as group:
        for _ in range(COMMITS_AT_ONCE):
            group.create_task(commit())


async def _fold_all(inventory: Inventory, archive: Archive) -> tuple[float, int]:
    """Fold the archive from its beginning; return the seconds, and the operations."""
    operations = 0
    began_at = time.perf_counter()
    for partition in range(inventory.partitions):
        fold = Fold()
        reader = LedgerReader(None, None, archive)
        async for batch in reader.batches(partition):
            for entry in batch:
                fold.apply(entry.decode())
        if fold.disagreements:
            raise AccountWrong(f"the ledger contradicts itself: {fold.disagreements[0]}")
        operations += fold.state.sequence
    return time.perf_counter() - began_at, operations


async def _check_rebuilt(inventory: Inventory, books: Books) -> None:
    """Compare a rebuilt store with what the old one acknowledged. Raises AccountWrong."""
    live = 0
    for keys in inventory.keys:
        (holds,) = await inventory.store.read([("ZCARD", keys.holds)])
        live += int(holds)
    if live != books.live_holds:
        raise AccountWrong(f"{live} live holds were rebuilt, of {books.live_holds}")
    wanted = books.shop.rows_by_cart()[:500]
    for name, row in zip(wanted, await inventory.rows(MERCHANT, wanted), strict=True):
        if row is None or (row.on_hand, row.reserved) != (
            OPENING_UNITS - books.gone[name],
            books.held[name],
        ):
            raise AccountWrong(f"{name} was rebuilt as {row}, with {books.gone[name]} sold")
