"""What a measurement runs against: a store, a whole service, all started and ended here.

Each measurement gets servers of its own over a new directory, so that none inherits the memory, the
append-only file or the mistakes of another. They listen on unix sockets and the loopback only, and
on Linux the kernel ends them with this process, whatever ends it.
"""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from urllib.parse import quote, unquote, urlsplit

import msgspec

from bench import shop
from bench.figures import Conditions
from bench.load import Address
from engine.boot import check_store
from engine.inventory import Inventory
from engine.store import StoreSettings, close_quietly, connect
from holdfast import processes
from holdfast.datadir import DataDir, read_private
from holdfast.embedded import USER, EmbeddedStore

READY_SECONDS: Final = 30.0
GRACE_SECONDS: Final = 15.0
READY_CHECK_SECONDS: Final = 0.02
MAX_OUTPUT_BYTES: Final = 65_536
MAX_TOLD_BYTES: Final = 2_000

ROOT: Final = Path(__file__).resolve().parent.parent
"""Where `bench` is imported from; it is not an installed package."""

_READY = re.compile(rb"ready at http://([0-9.]+):([0-9]+)/")


class ServerFailed(Exception):
    """A server did not start; the message ends with what it said."""


class Service(msgspec.Struct, frozen=True):
    """A running `holdfast serve`: where it listens, a key for everything, and its store."""

    address: Address
    api_key: str
    store: StoreSettings


@asynccontextmanager
async def store(conditions: Conditions) -> AsyncIterator[EmbeddedStore]:
    """Run a store of its own, set up and empty."""
    with (
        TemporaryDirectory(dir=conditions.work_dir) as path,
        DataDir(Path(path) / "data") as data_dir,
    ):
        server = EmbeddedStore(conditions.server, data_dir)
        await server.start()
        try:
            client = connect(server.settings)
            try:
                await check_store(client, unsafe_durability=False)
            finally:
                await close_quietly(client)
            yield server
        finally:
            await server.stop()


@asynccontextmanager
async def inventory(settings: StoreSettings) -> AsyncIterator[Inventory]:
    """Open the engine on a store."""
    opened = await Inventory.open(settings)
    try:
        yield opened
    finally:
        await opened.close()


@asynccontextmanager
async def stocked_inventory(
    conditions: Conditions, rows: Sequence[tuple[str, str]]
) -> AsyncIterator[Inventory]:
    """Open the engine on a store of its own that has these rows."""
    async with store(conditions) as server, inventory(server.settings) as opened:
        await shop.stock_up(opened, rows)
        yield opened


@asynccontextmanager
async def service(
    conditions: Conditions, rows: Sequence[tuple[str, str]]
) -> AsyncIterator[Service]:
    """Run `holdfast serve` with one gateway worker and a store of its own that has these rows."""
    with TemporaryDirectory(dir=conditions.work_dir) as path:
        data_dir = DataDir(Path(path) / "data")
        argv = [sys.executable, "-P", "-m", "holdfast", "serve"]
        argv += ["--data-dir", str(data_dir.path), "--server", str(conditions.server.path)]
        argv += ["--host", "127.0.0.1", "--port", "0", "--workers", "1"]
        async with child(argv, Path(path) / "output") as serving:
            address = await _address(serving)
            running = Service(address, read_private(data_dir.admin_key) or "", _settings(data_dir))
            async with inventory(running.store) as opened:
                await shop.stock_up(opened, rows)
            yield running


@asynccontextmanager
async def module(
    name: str, *arguments: str, pass_fds: Sequence[int], conditions: Conditions
) -> AsyncIterator[None]:
    """Run a module of this package as a process."""
    with TemporaryDirectory(dir=conditions.work_dir) as path:
        argv = [sys.executable, "-m", f"bench.{name}", *arguments]
        async with child(argv, Path(path) / "output", pass_fds):
            yield


@asynccontextmanager
async def module_said(
    name: str, *arguments: str, conditions: Conditions, environment: Mapping[str, str]
) -> AsyncIterator["Child"]:
    """Run a module of this package as a process whose words matter; secrets go by `environment`."""
    with TemporaryDirectory(dir=conditions.work_dir) as path:
        argv = [sys.executable, "-m", f"bench.{name}", *arguments]
        async with child(argv, Path(path) / "output", environment=environment) as running:
            yield running


async def run(argv: Sequence[str], *, within_seconds: float, cwd: Path | None = None) -> str:
    """Run a program to its end and return what it said. Raises ServerFailed."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(within_seconds):
            output, _ = await process.communicate()
    except TimeoutError as error:
        raise ServerFailed(f"{argv[0]} still ran after {within_seconds:.0f} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = output.decode(errors="replace")
    if process.returncode != 0:
        raise ServerFailed(
            f"{argv[0]} ended with {process.returncode}; it said:\n{said[-MAX_TOLD_BYTES:]}"
        )
    return said


def socket_path(settings: StoreSettings) -> str:
    """Return the path of the unix socket that an embedded store listens on."""
    return unquote(urlsplit(settings.url).path)


class Child:
    """A process started here; what it says goes to a file."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        """Watch a process that is there."""
        self._process = process
        self._output = output

    def said(self) -> bytes:
        """Return what it said, the first MAX_OUTPUT_BYTES of it."""
        with self._output.open("rb") as file:
            return file.read(MAX_OUTPUT_BYTES)

    async def ready(self, name: str, is_ready: Callable[[], Awaitable[bool]]) -> None:
        """Wait until `is_ready`. Raises ServerFailed where it ends, or READY_SECONDS pass."""
        give_up_at = time.monotonic() + READY_SECONDS
        while not await is_ready():
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                told = self.said()[-MAX_TOLD_BYTES:].decode(errors="replace")
                raise ServerFailed(f"{name} did not become ready; it said:\n{told}")
            await asyncio.sleep(READY_CHECK_SECONDS)


@asynccontextmanager
async def child(
    argv: Sequence[str],
    output: Path,
    pass_fds: Sequence[int] = (),
    *,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Child]:
    """Run a process, told `environment` beside what others are, and end it."""
    told = {k: v for k, v in os.environ.items() if not k.startswith("HOLDFAST_")}
    told |= {"PYTHONPATH": str(ROOT), **(environment or {})}
    with output.open("wb") as file:
        process = processes.spawn(argv, environment=told, pass_fds=pass_fds, output=file)
    try:
        yield Child(process, output)
    finally:
        await processes.stop(process, grace_seconds=GRACE_SECONDS)


async def _address(serving: Child) -> Address:
    """Wait until the service says where it listens. Raises ServerFailed."""

    async def is_announced() -> bool:
        return _READY.search(serving.said()) is not None

    await serving.ready("`holdfast serve`", is_announced)
    announced = _READY.search(serving.said())
    if announced is None:
        raise ServerFailed("`holdfast serve` does not say where it listens")
    return announced[1].decode(), int(announced[2])


def _settings(data_dir: DataDir) -> StoreSettings:
    """Return how to connect to the store that the service runs below `data_dir`."""
    return StoreSettings.from_url(
        f"unix://{quote(str(data_dir.socket()))}?db=0",
        username=USER,
        password=read_private(data_dir.store_password) or "",
    )
