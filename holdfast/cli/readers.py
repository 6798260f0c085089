"""`holdfast readers`: who follows the ledger, and how far each is."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click

from engine.consumer import Reader, list_readers, remove_reader
from engine.inventory import Inventory
from holdfast.cli.connection import data_dir_option, json_option, store_settings
from holdfast.cli.exit_codes import ExitCode
from holdfast.cli.output import Output, time_of
from holdfast.cli.site import store_option

Result = TypeVar("Result")


@click.group(short_help="List and remove readers of the ledger.")
def readers() -> None:
    """Whoever follows the ledger by name; an entry is kept for each for at most 24 hours.

    The store is --redis-url, or the embedded one of --data-dir while `holdfast serve` runs.
    """


@readers.command("list", short_help="List the readers and how far each is.")
@store_option
@data_dir_option
@json_option
def list_all(redis_url: str | None, data_dir: Path, output: Output) -> None:
    """List the readers by name; with --json as NDJSON."""

    async def ask(inventory: Inventory) -> list[Reader]:
        return await list_readers(inventory.store, inventory.keys)

    found = _with_inventory(redis_url, data_dir, ask)
    for one in found:
        output.document(
            {
                "name": one.name,
                "behind_operations": one.behind_operations,
                "noted_at": time_of(one.noted_at_ms) or None,
            }
        )
    if not output.as_json:
        output.table(
            ["name", "behind_operations", "noted_at"],
            [[one.name, one.behind_operations, time_of(one.noted_at_ms)] for one in found],
        )


@readers.command(short_help="Forget a reader.")
@click.argument("name")
@store_option
@data_dir_option
@json_option
def remove(name: str, redis_url: str | None, data_dir: Path, output: Output) -> None:
    """Forget the reader NAME, which was given up. One that runs registers again."""

    async def ask(inventory: Inventory) -> bool:
        return await remove_reader(inventory.store, inventory.keys, name)

    if not _with_inventory(redis_url, data_dir, ask):
        detail = f"there is no reader {name}"
        output.document({"error": {"code": "reader_not_found", "detail": detail}})
        output.note(f"There is no reader {name}; `holdfast readers list` shows them.")
        raise click.exceptions.Exit(ExitCode.REFUSED)
    output.document({"removed": name})
    output.text(f"Reader {name} is forgotten.")


def _with_inventory(
    redis_url: str | None, data_dir: Path, ask: Callable[[Inventory], Awaitable[Result]]
) -> Result:
    """Ask the store something. Raises SetupProblem, HoldfastError."""
    settings = store_settings(redis_url, data_dir)

    async def run() -> Result:
        inventory = await Inventory.open(settings)
        try:
            return await ask(inventory)
        finally:
            await inventory.close()

    return asyncio.run(run())
