"""The store and its archive, for commands that work on them and not through the service."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import structlog

from engine.inventory import Inventory
from engine.store import StoreSettings
from holdfast.cli.connection import SetupProblem, data_dir_option, store_settings
from holdfast.datadir import DataDir
from reconciler.archive import Archive, open_archive, read_archive_url

Result = TypeVar("Result")
Command = Callable[..., Any]


class Place(NamedTuple):
    """A store and its archive, both open."""

    inventory: Inventory
    archive: Archive
    archive_url: str


class Site:
    """Where the store is and, where it was said, its archive."""

    def __init__(self, redis_url: str | None, data_dir: Path, archive_url: str | None) -> None:
        """Keep what the command line and the environment said."""
        self.redis_url = redis_url
        self.data_dir = data_dir
        self.archive_url = archive_url

    def store_settings(self) -> StoreSettings:
        """Find the store. Raises SetupProblem and NotRunning."""
        return store_settings(self.redis_url, self.data_dir)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Place]:
        """Open both. Raises SetupProblem, StoreUnavailable and ArchiveUnavailable."""
        inventory = await Inventory.open(self.store_settings())
        try:
            told = self.archive_url or await read_archive_url(inventory.store)
            url = told or self.default_archive()
            yield Place(inventory, await open_archive(inventory.store, url), url)
        finally:
            await inventory.close()

    def run(self, work: Callable[[Place], Awaitable[Result]]) -> Result:
        """Open both, do the work and close them. Raises what `open` and `work` raise."""

        async def opened() -> Result:
            async with self.open() as place:
                return await work(place)

        with warnings_only():
            return asyncio.run(opened())

    def default_archive(self) -> str:
        """Return the folder in the data directory. Raises SetupProblem where there is none."""
        folder = DataDir(self.data_dir).archive
        if self.redis_url and not folder.exists():
            raise SetupProblem(
                "it is not known where this store is archived",
                "name the folder or bucket with --archive or HOLDFAST_ARCHIVE_URL",
            )
        return str(folder)


@contextmanager
def warnings_only() -> Iterator[None]:
    """Log warnings and errors to standard error, and nothing below: results are the command's."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def store_option(command: Command) -> Command:
    """Add `--redis-url`."""
    return click.option(
        "--redis-url",
        envvar="HOLDFAST_REDIS_URL",
        help="The store, unless it is the embedded one of --data-dir.",
    )(command)


def site_options(command: Command) -> Command:
    """Add `--redis-url`, `--data-dir` and `--archive`; the command gets a `site`."""

    @click.option(
        "--archive",
        "archive_url",
        envvar="HOLDFAST_ARCHIVE_URL",
        help="The archive: a folder, or the URL of a bucket.  [default: the one that the service "
        "archives to]",
    )
    @store_option
    @data_dir_option
    @wraps(command)
    def wrapped(
        *args: Any,
        redis_url: str | None,
        data_dir: Path,
        archive_url: str | None,
        **options: Any,
    ) -> Any:
        return command(*args, site=Site(redis_url, data_dir, archive_url), **options)

    return wrapped
