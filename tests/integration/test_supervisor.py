"""`supervisor.run` in a process of its own, over a real store and with a stand-in for the gateway.

The stand-in answers every request with what it was told in its environment, so that these tests are
about the supervisor alone.
"""

import asyncio
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest
from redis.exceptions import RedisError

import gateway
from engine.boot import DEFAULT_PARTITIONS
from engine.keys import STORE_KEY
from engine.store import StoreSettings, close_quietly, connect
from holdfast.supervisor import EXIT_FORCED, EXIT_GAVE_UP, GATEWAY_GRACE_SECONDS
from tests.stores import MakeStore, eventually

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="looks at processes through /proc, as only Linux has it"
)

REAL_GATEWAY: Final = str(Path(next(iter(gateway.__path__))))

LINE_SECONDS: Final = 20.0
END_SECONDS: Final = 20.0
RESTART_SECONDS: Final = 30.0

PROGRAMS: Final = {"holdfast.background": "holdfast.background", "holdfast.web": "gateway"}
"""The children's roles by the module that each runs."""

DRIVER: Final = """
import json, sys
from holdfast.settings import Settings
from holdfast.supervisor import REFUSALS, run
def announce(line):
    sys.stdout.write("announced " + line + "\\n")
    sys.stdout.flush()
try:
    sys.exit(run(Settings.read(json.loads(sys.argv[1]), {}), announce))
except REFUSALS as refusal:
    announce(f"refused {type(refusal).__name__}: {refusal}")
    sys.exit(3)
"""

ANSWERING: Final = """
import json, os, signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
listener = socket.socket(fileno=int(os.environ["HOLDFAST_LISTEN_FD"]))
told = {key: value for key, value in os.environ.items() if key.startswith("HOLDFAST_")}
body = json.dumps(told | {"pid": os.getpid(), "arguments": sys.orig_argv}).encode()
while True:
    with listener.accept()[0] as connection:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\n" + body)
"""

CRASHING: Final = "raise SystemExit(7)"

STUBBORN: Final = ANSWERING.replace(
    "lambda *_: sys.exit(0)",
    "lambda *_: os.write(1, b'announced the gateway is told to stop\\n')",
)


class Service:
    """A supervisor's process, and what it announced."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.announced: list[str] = []

    async def line(self, part: str) -> str:
        """Wait for an announcement that has `part` in it."""
        assert self.process.stdout is not None
        async with asyncio.timeout(LINE_SECONDS):
            while raw := await self.process.stdout.readline():
                text = raw.decode()
                if text.startswith("announced "):
                    self.announced.append(text.removeprefix("announced ").rstrip("\n"))
                    if part in text:
                        return self.announced[-1]
        raise AssertionError(f"it ended without {part!r}; it announced {self.announced}")

    async def ready(self) -> str:
        """Wait until it is ready; return its URL."""
        return (await self.line("is ready at ")).split("is ready at ")[1].split()[0]

    async def ended(self) -> int:
        """Wait for its end; return its exit code."""
        async with asyncio.timeout(END_SECONDS):
            await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode

    async def stop(self) -> int:
        """Stop it in order; return its exit code."""
        self.process.terminate()
        return await self.ended()

    def children(self) -> dict[str, int]:
        """Return the pids of its live children by what they run."""
        roles = {_role(pid): pid for pid in _live_children(self.process.pid)}
        return {role: pid for role, pid in roles.items() if role is not None}


Serve = Callable[..., Awaitable[Service]]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Start supervisors: `await serve(main=ANSWERING, **settings)`; each is ended at last."""
    services: list[Service] = []

    async def start(main: str = ANSWERING, **settings: object) -> Service:
        stand_in = tmp_path / f"stand-in-{len(services)}" / "gateway"
        stand_in.mkdir(parents=True)
        # All but the module that serves stays the real package, which others import from.
        (stand_in / "__init__.py").write_text(f"__path__.append({REAL_GATEWAY!r})")
        (stand_in / "process.py").write_text(main)
        told = {"data_dir": str(tmp_path / "data"), "port": 0} | settings
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", DRIVER, json.dumps(told)),
            env=os.environ | {"PYTHONPATH": str(stand_in.parent)},
            stdout=asyncio.subprocess.PIPE,
        )
        services.append(Service(process))
        return services[-1]

    yield start
    for service in services:
        if service.process.returncode is None:
            service.process.kill()
            await service.ended()


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from the state on; none where it has gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_alive(pid: int) -> bool:
    return _stat(pid)[:1] not in ([], ["Z"])


def _live_children(parent: int) -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [pid for pid in pids if _stat(pid)[1:2] == [str(parent)] and is_alive(pid)]


def _role(pid: int) -> str | None:
    """Return what a child runs; None of one that has just gone, or that is not yet what it will be.

    Between fork and exec a child still has its parent's command line.
    """
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        for program, role in PROGRAMS.items():
            if program in arguments:
                index = (
                    Path(f"/proc/{pid}/environ").read_text().partition("PROCESS=gateway-")[2][:1]
                )
                return role + index
    except FileNotFoundError:
        return None
    return "store" if any(argument.endswith("store.conf") for argument in arguments) else None


async def ask(url: str) -> dict[str, Any]:
    """Return what a stand-in says."""
    host, _, port = url.removeprefix("http://").rstrip("/").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    body = (await reader.read()).partition(b"\r\n\r\n")[2]
    writer.close()
    told: dict[str, Any] = json.loads(body)
    return told


async def gone(pids: dict[str, int]) -> None:
    async def all_gone() -> bool:
        return not any(is_alive(pid) for pid in pids.values())

    await eventually(all_gone, within_seconds=END_SECONDS)


async def replaced(service: Service, role: str, pid: int) -> int:
    async def again() -> bool:
        return service.children().get(role, pid) != pid

    await eventually(again, within_seconds=RESTART_SECONDS)
    return service.children()[role]


async def store_command(told: dict[str, Any], *command: str) -> Any:
    client = connect(StoreSettings.from_environment(told))
    try:
        return await client.execute_command(*command)
    finally:
        await close_quietly(client)


async def test_it_starts_all_of_a_service_and_leaves_nothing_behind(
    serve: Serve, tmp_path: Path
) -> None:
    service = await serve(workers=2)
    url = await service.ready()
    children = service.children()
    assert sorted(children) == ["gateway0", "gateway1", "holdfast.background", "store"]
    assert (await ask(url))["pid"] in children.values()
    for pid in children.values():
        assert os.getsid(pid) == pid, "Ctrl-C in a terminal must reach the supervisor alone"
    assert await service.stop() == 0
    await gone(children)
    left = {path.name for path in (tmp_path / "data").iterdir()}
    # The processes make these when they get to them.
    assert left - {"archive", "index.db", "metrics"} == {
        *("admin.key", "holdfast.lock"),
        *("store", "store.conf", "store.log", "store.password"),
    }


async def test_it_tells_its_children_what_they_need_by_environment_alone(serve: Serve) -> None:
    service = await serve(unsafe_durability=True, log_level="warning", log_format="json")
    told = await ask(await service.ready())
    assert told["HOLDFAST_REDIS_USERNAME"] == "holdfast"
    assert told["HOLDFAST_UNSAFE_DURABILITY"] == "true"
    assert (told["HOLDFAST_LOG_LEVEL"], told["HOLDFAST_LOG_FORMAT"]) == ("warning", "json")
    assert (told["HOLDFAST_PROCESS"], told["HOLDFAST_WORKERS"]) == ("gateway-0", "1")
    assert told["HOLDFAST_REDIS_PASSWORD"] not in " ".join(told["arguments"])
    assert told["arguments"][1:] == ["-P", "-m", "holdfast.web"]
    assert await store_command(told, "HGET", STORE_KEY, "partitions") == b"%d" % DEFAULT_PARTITIONS


async def test_the_admin_key_is_shown_once_and_kept_for_its_owner(
    serve: Serve, tmp_path: Path
) -> None:
    first = await serve()
    await first.ready()
    kept = tmp_path / "data" / "admin.key"
    (line,) = [line for line in first.announced if "Admin key" in line]
    assert line.endswith(kept.read_text().strip())
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    await first.stop()
    second = await serve()
    await second.ready()
    assert not any("Admin key" in line for line in second.announced)


async def test_it_goes_on_where_it_was_on_the_same_directory(serve: Serve) -> None:
    first = await serve(partitions=4)
    told = await ask(await first.ready())
    await store_command(told, "HSET", "{hf.0}:probe", "field", "kept")
    await first.stop()
    second = await serve()
    told = await ask(await second.ready())
    assert await store_command(told, "HGET", "{hf.0}:probe", "field") == b"kept"
    assert await store_command(told, "HGET", STORE_KEY, "partitions") == b"4"


async def test_a_second_one_on_the_same_directory_is_refused_with_the_pid_of_the_first(
    serve: Serve,
) -> None:
    first = await serve()
    await first.ready()
    second = await serve()
    line = await second.line("refused DataDirInUse")
    assert f"process {first.process.pid}" in line
    assert await second.ended() == 3
    assert len(first.children()) == 3


async def test_a_port_that_is_taken_is_told_before_a_store_is_started(
    serve: Serve, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        service = await serve(port=port)
        line = await service.line("refused ListenRefused")
        assert f"port {port}" in line
        assert "choose another --port" in line
        assert await service.ended() == 3
    assert not (tmp_path / "data" / "store.conf").exists()


@pytest.mark.faults
@pytest.mark.parametrize("role", ["gateway0", "holdfast.background", "store"])
async def test_a_child_that_is_killed_is_replaced(serve: Serve, role: str) -> None:
    service = await serve()
    url = await service.ready()
    told = await ask(url)
    await store_command(told, "HSET", "{hf.0}:probe", "field", "kept")
    killed = service.children()[role]
    os.kill(killed, signal.SIGKILL)
    assert await replaced(service, role, killed) != killed

    async def serves_again() -> bool:
        try:
            found = await store_command(await ask(url), "HGET", "{hf.0}:probe", "field")
        except (OSError, ValueError, RedisError):
            return False
        return bool(found == b"kept")

    await eventually(serves_again, within_seconds=RESTART_SECONDS)
    children = service.children()
    assert await service.stop() == 0
    await gone(children)


@pytest.mark.faults
async def test_a_killed_supervisor_leaves_nothing_behind_and_the_next_one_starts(
    serve: Serve,
) -> None:
    first = await serve()
    await first.ready()
    children = first.children()
    first.process.kill()
    await first.ended()
    await gone(children)
    second = await serve()
    await second.ready()
    assert sorted(second.children()) == ["gateway0", "holdfast.background", "store"]


@pytest.mark.faults
async def test_it_gives_up_on_a_gateway_that_never_starts(serve: Serve) -> None:
    service = await serve(main=CRASHING)
    line = await service.line("stops")
    assert "gateway-0" in line
    assert "last exit code 7" in line
    children = service.children()
    assert await service.ended() == EXIT_GAVE_UP
    await gone(children)


async def test_a_second_signal_ends_it_at_once(serve: Serve) -> None:
    service = await serve(main=STUBBORN)
    await service.ready()
    children = service.children()
    service.process.send_signal(signal.SIGINT)
    await service.line("told to stop")
    loop = asyncio.get_running_loop()
    began = loop.time()
    service.process.send_signal(signal.SIGINT)
    assert await service.ended() == EXIT_FORCED
    assert loop.time() - began < GATEWAY_GRACE_SECONDS / 2
    await gone(children)


async def test_a_store_by_url_is_checked_and_left_running(
    serve: Serve, make_store: MakeStore
) -> None:
    real = make_store()
    await real.start()
    theirs: dict[str, object] = {
        "redis_url": real.settings.url,
        "redis_username": real.settings.username,
        "redis_password": real.settings.password,
    }
    await real.run("CONFIG", "SET", "appendfsync", "everysec")
    strict = await serve(**theirs)
    await strict.line("refused StoreRefused")
    assert await strict.ended() == 3
    relaxed = await serve(**theirs, unsafe_durability=True)
    await relaxed.ready()
    assert any("WARNING" in line and "fsync" in line for line in relaxed.announced)
    assert sorted(relaxed.children()) == ["gateway0", "holdfast.background"]
    assert await relaxed.stop() == 0
    assert await real.run("PING")
