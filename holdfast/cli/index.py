"""`holdfast search`, `holdfast items` and `holdfast index`: the availability index."""

import asyncio
import csv
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import IO, Final, TypeVar

import click

from engine.inventory import Inventory
from engine.limits import MAX_PAGE
from holdfast.cli.connection import (
    Service,
    data_dir_option,
    json_option,
    limit_option,
    merchant_option,
    service_options,
    store_settings,
)
from holdfast.cli.exit_codes import ExitCode
from holdfast.cli.output import Output
from holdfast.cli.site import store_option
from holdfast.client import ApiError
from holdfast.datadir import DataDir
from holdfast.search_calls import Item, SearchHit, put_item
from holdfast.search_calls import search as search_call
from holdfast.stock_file import FileRefused
from projection import follower
from projection.database import Database, Sort, Stocked, open_database

Result = TypeVar("Result")
Command = Callable[..., object]

DEFAULT_SHOWN: Final = 50
_COLUMNS: Final = ("sku", "location", "title", "available", "on_hand", "backordered", "low")
IMPORTS_AT_ONCE: Final = 32
MAX_SHOWN_PROBLEMS: Final = 20


@click.command(short_help="Find rows by words, SKU, location and stock.")
@click.argument("words", nargs=-1)
@click.option("--sku", help="Only this SKU.")
@click.option("--location", help="Only at this location.")
@click.option(
    "--stock",
    type=click.Choice([one.value for one in Stocked]),
    help="Only what can be promised (in), cannot (out), is low, or is owed (backordered).",
)
@click.option(
    "--sort",
    type=click.Choice([one.value for one in Sort]),
    help="By SKU and location, or (with --stock backordered) those that owe the most first.",
)
@limit_option(DEFAULT_SHOWN)
@merchant_option
@service_options
@json_option
def search(
    service: Service,
    merchant: str,
    words: tuple[str, ...],
    sku: str | None,
    location: str | None,
    stock: str | None,
    sort: str | None,
    limit: int,
    output: Output,
) -> None:
    """Find rows whose SKU or title has all WORDS, or words that begin so; with --json as NDJSON."""
    asked = {
        "q": " ".join(words) or None,
        "sku": sku,
        "location": location,
        "stock": stock,
        "sort": sort,
    }
    found = list(islice(_hits(service, merchant, asked, limit + 1), limit + 1))
    for hit in found[:limit]:
        output.document(hit)
    if not output.as_json:
        output.table(
            _COLUMNS,
            [[getattr(one, column) for column in _COLUMNS] for one in found[:limit]],
        )
    if len(found) > limit:
        output.note(f"There are more than {limit}; ask for more with --limit.")


def _hits(
    service: Service, merchant: str, asked: dict[str, str | None], most: int
) -> Iterator[SearchHit]:
    left, cursor = most, None
    with service.client() as client:
        while left > 0:
            limited = {**asked, "limit": str(min(left, MAX_PAGE)), "cursor": cursor}
            page = client.send(search_call(merchant, limited))
            yield from page.data
            left, cursor = left - len(page.data), page.next_cursor
            if cursor is None:
                return


@click.group(short_help="Say what SKUs are called.")
def items() -> None:
    """Titles and attributes, by which SKUs are found and shown."""


@items.command("import", short_help="Take titles and attributes from a file.")
@click.argument("path", metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True))
@merchant_option
@service_options
@json_option
def import_items(service: Service, merchant: str, path: str, output: Output) -> None:
    """Take the items of FILE, a CSV with the columns sku and title; others are attributes.

    A row that is refused is named and the others are taken. To import a file again changes nothing.
    """
    with _opened(path) as file, output.progress("items") as bar:
        rows = list(_items(file))
        problems = asyncio.run(_put_all(service, merchant, rows, bar.show))
    output.document(
        {"taken": len(rows) - len(problems), "refused": [{"sku": s, "why": w} for s, w in problems]}
    )
    output.text(f"Items: {len(rows) - len(problems)} taken, {len(problems)} refused.")
    for sku, why in problems[:MAX_SHOWN_PROBLEMS]:
        output.note(f"  {sku}: {why}")
    if problems:
        sys.exit(ExitCode.REFUSED)


def _opened(path: str) -> "nullcontext[IO[str]] | IO[str]":
    if path == "-":
        return nullcontext(sys.stdin)
    return open(path, encoding="utf-8-sig", newline="")


def _items(file: IO[str]) -> Iterator[Item]:
    reader = csv.DictReader(file)
    names = reader.fieldnames or []
    if "sku" not in names or "title" not in names:
        raise FileRefused(1, "must name the columns sku and title")
    for row in reader:
        attributes = {
            name: text for name, text in row.items()
            if name and text and name not in ("sku", "title")
        }  # fmt: skip
        yield Item(row["sku"], row["title"] or "", attributes)


async def _put_all(
    service: Service,
    merchant: str,
    rows: list[Item],
    show: Callable[[str, int, int | None], None],
) -> list[tuple[str, str]]:
    problems: list[tuple[str, str]] = []
    waiting = iter(rows)
    done = 0
    async with service.async_client() as client:

        async def work() -> None:
            nonlocal done
            for item in waiting:
                try:
                    await client.send(put_item(merchant, item))
                except ApiError as refusal:
                    if refusal.status >= 500:
                        raise
                    problems.append((item.sku, str(refusal)))
                done += 1
                show("items", done, len(rows))

        async with asyncio.TaskGroup() as group:
            for _ in range(IMPORTS_AT_ONCE):
                group.create_task(work())
    return problems


@click.group(short_help="Rebuild and check the availability index.")
def index() -> None:
    """Work on the availability index itself, beside the running service or without it."""


def _index_options(command: Command) -> Command:
    option = click.option(
        "--index",
        "index_url",
        envvar="HOLDFAST_INDEX_URL",
        help="A file or a postgresql:// URL.  [default: index.db in the data directory]",
    )
    return option(store_option(data_dir_option(json_option(command))))


@index.command(short_help="Fill the index anew from the store.")
@_index_options
def rebuild(redis_url: str | None, data_dir: Path, index_url: str | None, output: Output) -> None:
    """Empty the index and fill it from the store's rows; titles and attributes stay."""
    count = 0

    async def work(inventory: Inventory, database: Database) -> None:
        with output.progress("rows") as bar:

            def taken(rows: int) -> None:
                nonlocal count
                count += rows
                bar.show("rows", count, None)

            await follower.rebuild(inventory, database, taken=taken)

    _with_index(redis_url, data_dir, index_url, work)
    output.document({"rows": count})
    output.text(f"The index has {count:,} rows.")


@index.command(short_help="Compare the index with the store, and mend it.")
@_index_options
def check(redis_url: str | None, data_dir: Path, index_url: str | None, output: Output) -> None:
    """Compare every row of the index with the store's, and put right what differs."""
    count = 0

    async def work(inventory: Inventory, database: Database) -> int:
        with output.progress("rows") as bar:

            def seen(rows: int) -> None:
                nonlocal count
                count += rows
                bar.show("rows", count, None)

            await database.prepare()
            return await follower.check(inventory, database, seen=seen)

    mended = _with_index(redis_url, data_dir, index_url, work)
    output.document({"rows": count, "mended": mended})
    output.text(f"{count:,} rows compared, {mended:,} mended.")


def _with_index(
    redis_url: str | None,
    data_dir: Path,
    index_url: str | None,
    work: Callable[[Inventory, Database], Awaitable[Result]],
) -> Result:
    """Open the store and the index. Raises SetupProblem, HoldfastError."""
    settings = store_settings(redis_url, data_dir)
    url = index_url or os.environ.get("HOLDFAST_INDEX_URL") or str(DataDir(data_dir).index)

    async def run() -> Result:
        database = open_database(url)
        inventory = await Inventory.open(settings)
        try:
            return await work(inventory, database)
        finally:
            await inventory.close()
            await database.close()

    return asyncio.run(run())
