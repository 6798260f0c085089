"""The process behind `holdfast serve`: it starts everything, keeps it up, and ends it in order.

It owns the embedded store, the listening socket, one background process and the gateway processes,
and serves nothing itself. Whatever ends it, even SIGKILL, leaves none of them behind (on Linux).
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog

from engine import metrics
from engine.access import ensure_admin_key
from engine.boot import StoreFacts, StoreRefused, check_store
from engine.outcomes import StoreUnavailable
from engine.store import StoreSettings, close_quietly, connect
from engine.tracing import TracingRefused, exporter_of
from gateway import logs
from holdfast import processes
from holdfast.datadir import DataDir, DataDirRefused, read_private, write_private
from holdfast.embedded import EmbeddedStore, NoServer, StoreFailed, find_server
from holdfast.listener import ListenRefused, listen, reachable_address, url_of
from holdfast.settings import NO_INDEX, PREFIX, Settings

EXIT_OK: Final = 0
EXIT_GAVE_UP: Final = 1
EXIT_FORCED: Final = 130
"""A second signal cut the orderly end short."""

READY_SECONDS: Final = 30.0
"""From the start of the gateways to the first answer that they are ready."""

READY_CHECK_SECONDS: Final = 0.025
READY_ANSWER_SECONDS: Final = 2.0
MAX_STATUS_LINE_BYTES: Final = 1_024

GATEWAY_GRACE_SECONDS: Final = 12.0
"""For requests under way when the service stops: a little more than a gateway gives them itself."""

BACKGROUND_GRACE_SECONDS: Final = 5.0

FIRST_BACKOFF_SECONDS: Final = 0.1
MAX_BACKOFF_SECONDS: Final = 5.0

MAX_START_CRASHES: Final = 3
"""Of one child before the service was ever ready: it is then wrong, and not unlucky."""

MAX_CRASHES: Final = 10
CRASH_WINDOW_SECONDS: Final = 60.0
"""More than MAX_CRASHES of one child in this time end the service: about 25 s of crash after crash,
after which whatever supervises this supervisor should know."""

MAX_STORE_CRASHES: Final = 120
STORE_CRASH_WINDOW_SECONDS: Final = 600.0
"""The store gets ten minutes: a full disk ends it at every start until someone makes room."""

Announce = Callable[[str], None]
"""Takes each line that the person who started the service should see."""

_log = structlog.get_logger("holdfast.supervisor")


class NotReady(Exception):
    """The gateways did not become ready in READY_SECONDS; `last` is the last that was heard."""

    def __init__(self, last: str) -> None:
        """Keep the last answer."""
        self.last = last
        super().__init__(f"the service was not ready after {READY_SECONDS:.0f} s: {last}")


class GaveUp(Exception):
    """A child crashed too often. `name` is which, `exit_code` its last one."""

    def __init__(self, name: str, *, crashes: int, exit_code: int | None) -> None:
        """Keep the child's name, the number of crashes and the last exit code."""
        self.name = name
        self.crashes = crashes
        self.exit_code = exit_code
        super().__init__(
            f"the {name} process ended {crashes} times in a row (last exit code {exit_code})"
        )


REFUSALS: Final = (
    DataDirRefused,
    ListenRefused,
    NoServer,
    NotReady,
    StoreFailed,
    StoreRefused,
    StoreUnavailable,
    TracingRefused,
)
"""What `run` raises where the service cannot start; each says for a person what to do."""


def run(settings: Settings, announce: Announce) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code.

    It must be called in the main thread. A second signal ends everything at once. Raises one of
    REFUSALS where the service cannot start.
    """
    logs.configure(level=settings.log_level, log_format=settings.log_format)
    # The children trace, and this process none: it only says at once what they would refuse.
    exporter_of(os.environ)
    return asyncio.run(Supervisor(settings, announce).serve())


class _Crashes:
    """When something crashed, and whether that is too often."""

    def __init__(self, name: str, *, most: int, window_seconds: float) -> None:
        self.name = name
        self._most = most
        self._window_seconds = window_seconds
        self._times: deque[float] = deque()

    def note(self, now: float, exit_code: int | None, *, most: int | None = None) -> float:
        """Count a crash; return how long to wait, in seconds. Raises GaveUp."""
        self._times.append(now)
        while self._times[0] < now - self._window_seconds:
            self._times.popleft()
        count = len(self._times)
        if count > (self._most if most is None else most):
            raise GaveUp(self.name, crashes=count, exit_code=exit_code)
        return float(min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (count - 1)))


class _Child:
    """A process to keep up. `optional` children that end well are left alone, and never end us."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        environment: dict[str, str],
        *,
        pass_fds: Sequence[int] = (),
        grace_seconds: float,
        optional: bool = False,
    ) -> None:
        self.name = name
        self.optional = optional
        self.grace_seconds = grace_seconds
        self.crashes = _Crashes(name, most=MAX_CRASHES, window_seconds=CRASH_WINDOW_SECONDS)
        self.process: subprocess.Popen[bytes] | None = None
        self.start_at: float | None = 0.0  # in the loop's time; at once
        self._argv = tuple(argv)
        self._environment = environment
        self._pass_fds = tuple(pass_fds)

    def start(self) -> None:
        """Start it now. Raises OSError."""
        self.start_at = None
        self.process = processes.spawn(
            self._argv, environment=self._environment, pass_fds=self._pass_fds
        )

    def ended(self) -> int | None:
        """Return the exit code of an end that was not seen before, else None."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        self.process = None
        return code

    async def stop(self) -> None:
        """Stop it, within its grace."""
        if self.process is not None:
            await processes.stop(self.process, grace_seconds=self.grace_seconds)
            self.process = None


class Supervisor:
    """One service: see the module's text. `serve` may be called once."""

    def __init__(self, settings: Settings, announce: Announce) -> None:
        """Prepare; nothing is touched before `serve`."""
        self._settings = settings
        self._announce = announce
        self._dir = DataDir(settings.data_dir)
        self._store: EmbeddedStore | None = None
        self._store_crashes = _Crashes(
            "store", most=MAX_STORE_CRASHES, window_seconds=STORE_CRASH_WINDOW_SECONDS
        )
        self._store_start_at: float | None = None
        self._children: list[_Child] = []
        self._listener: socket.socket | None = None
        self._woken = asyncio.Event()
        self._stopping = False
        self._forced = False
        self._was_ready = False

    async def serve(self) -> int:
        """Start, keep up and end the service; return the exit code. Raises one of REFUSALS."""
        self._handle_signals()
        try:
            with self._dir:
                return await self._serve_locked()
        finally:
            self._stopping = True

    async def _serve_locked(self) -> int:
        try:
            await self._start()
            await self._keep_up()
        except asyncio.CancelledError:
            # Only a signal cancels this task, and then ending it is what was asked for.
            if not self._stopping:
                raise
            _this_task().uncancel()
        except GaveUp as error:
            _log.error("giving up", child=error.name, crashes=error.crashes)
            self._announce(f"Holdfast stops: {error}")
            return EXIT_GAVE_UP
        finally:
            self._stopping = True
            await self._shut_down()
        return EXIT_FORCED if self._forced else EXIT_OK

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        serving = _this_task()

        def stop() -> None:
            if not self._stopping:
                self._stopping = True
                serving.cancel()
            else:
                self._forced = True
                self._kill_all()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        loop.add_signal_handler(signal.SIGCHLD, self._woken.set)

    # Start

    async def _start(self) -> None:
        # Before the store, which takes longer: a port that is taken is told at once.
        self._listener = listener = listen(self._settings.host, self._settings.port)
        store = await self._start_store()
        facts, admin_key = await self._prepare_store(store)
        for warning in facts.warnings:
            _log.warning("UNSAFE DURABILITY", problem=str(warning))
            self._announce(f"WARNING: acknowledged reservations can be lost: {warning}")
        if admin_key is not None:
            write_private(self._dir.admin_key, admin_key + "\n")
            self._announce(
                f"Admin key, shown this once and kept in {self._dir.admin_key}: {admin_key}"
            )
        self._clear_metrics()
        self._children = self._plan_children(listener.fileno())
        await self._become_ready(reachable_address(listener))
        url = url_of(listener)
        self._announce(f"Holdfast is ready at {url} (API reference at {url}docs)")
        self._announce(f"Console: {url}console, sign in with the key in {self._dir.admin_key}")
        if self._settings.with_demo:
            self._start_demo(url)

    async def _start_store(self) -> StoreSettings:
        url = self._settings.redis_url
        if url is not None:
            return StoreSettings.from_url(
                url,
                username=self._settings.redis_username,
                password=self._settings.redis_password,
            )
        self._store = EmbeddedStore(find_server(self._settings.server), self._dir)
        await self._store.start()
        return self._store.settings

    async def _prepare_store(self, store: StoreSettings) -> tuple[StoreFacts, str | None]:
        """Check the store, and make the admin key where there is none yet."""
        client = connect(store)
        try:
            facts = await check_store(
                client,
                unsafe_durability=self._settings.unsafe_durability,
                partitions=self._settings.partitions,
            )
            return facts, await ensure_admin_key(client)
        finally:
            await close_quietly(client)

    @property
    def _metrics_dir(self) -> Path:
        """Where the children keep what they count; who runs the service may name another place."""
        return Path(os.environ.get(metrics.DIRECTORY_VARIABLE) or self._dir.metrics)

    def _clear_metrics(self) -> None:
        """Begin to count anew: what is there was counted by processes that are no more."""
        self._metrics_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in self._metrics_dir.glob("*.db"):
            file.unlink()

    def _plan_children(self, listener_fd: int) -> list[_Child]:
        environment = self._child_environment()
        background = _Child(
            "background",
            _module("holdfast.background"),
            environment | {metrics.PROCESS_VARIABLE: "background"},
            grace_seconds=BACKGROUND_GRACE_SECONDS,
        )
        gateways = [
            _Child(
                f"gateway-{index}",
                _module("holdfast.web"),
                environment
                | {
                    f"{PREFIX}LISTEN_FD": str(listener_fd),
                    metrics.PROCESS_VARIABLE: f"gateway-{index}",
                },
                pass_fds=[listener_fd],
                grace_seconds=GATEWAY_GRACE_SECONDS,
            )
            for index in range(self._settings.workers)
        ]
        return [background, *gateways]

    def _child_environment(self) -> dict[str, str]:
        """Return what a child is told, secrets among it: arguments are for all users to read."""
        settings = self._settings
        told: dict[str, str] = {
            "LOG_FORMAT": settings.log_format,
            "LOG_LEVEL": settings.log_level,
            "WORKERS": str(settings.workers),
            "UNSAFE_DURABILITY": "true" if settings.unsafe_durability else "false",
            "WEBHOOK_LOOPBACK": "true" if settings.webhook_loopback else "false",
            "INDEX_URL": self._index_url(),
            "ARCHIVE_URL": settings.archive_url or str(self._dir.archive),
            "RESUME_WINDOW_SECONDS": str(settings.resume_window_seconds),
            "SEGMENT_AGE_SECONDS": str(settings.segment_age_seconds),
            "SNAPSHOT_INTERVAL_SECONDS": str(settings.snapshot_interval_seconds),
            "AUDIT_ROWS_PER_SECOND": str(settings.audit_rows_per_second),
        }
        if self._store is not None:
            store = self._store.settings
            told["REDIS_URL"] = store.url
            told["REDIS_USERNAME"], told["REDIS_PASSWORD"] = store.username, store.password
        else:
            told["REDIS_URL"] = settings.redis_url or ""
            told["REDIS_USERNAME"] = settings.redis_username
            told["REDIS_PASSWORD"] = settings.redis_password
        return (
            _environment_without_ours()
            | {PREFIX + key: value for key, value in told.items()}
            | {metrics.DIRECTORY_VARIABLE: str(self._metrics_dir)}
        )

    def _index_url(self) -> str:
        """Return where the index is, empty for none."""
        named = self._settings.index_url
        return "" if named == NO_INDEX else named or str(self._dir.index)

    def _start_demo(self, url: str) -> None:
        key = read_private(self._dir.admin_key)
        if not key:
            self._announce(f"The demo is not started: there is no key in {self._dir.admin_key}")
            return
        demo = _Child(
            "demo",
            [*_module("holdfast"), "demo", "--url", url],
            _environment_without_ours() | {f"{PREFIX}API_KEY": key},
            grace_seconds=BACKGROUND_GRACE_SECONDS,
            optional=True,
        )
        self._children.append(demo)

    async def _become_ready(self, address: tuple[str, int]) -> None:
        """Keep everything up until a gateway is ready. Raises NotReady and GaveUp."""
        ready = asyncio.create_task(_wait_ready(address))
        ready.add_done_callback(lambda _: self._woken.set())
        try:
            while not ready.done():
                await self._tend()
            ready.result()
        finally:
            ready.cancel()
        self._was_ready = True

    # Keep up

    async def _keep_up(self) -> None:
        """Restart what ends, until cancelled. Raises GaveUp."""
        while True:
            await self._tend()

    async def _tend(self) -> None:
        """Look at everything once, then wait until there may be something to do."""
        self._woken.clear()
        await self._look_after_store()
        self._look_after_children()
        await self._sleep_until_needed()

    async def _look_after_store(self) -> None:
        if self._store is None or self._store.running:
            return
        now = asyncio.get_running_loop().time()
        if self._store_start_at is None:
            backoff_seconds = self._store_crashes.note(now, None)
            _log.error("the store ended", restart_in_seconds=backoff_seconds)
            self._store_start_at = now + backoff_seconds
        if now < self._store_start_at:
            return
        self._store_start_at = None
        try:
            await self._store.start()
        except StoreFailed as error:
            # The next look counts it as one more crash.
            _log.error("the store does not start", reason=str(error))
            self._woken.set()
        else:
            _log.info("the store is back", pid=self._store.pid)

    def _look_after_children(self) -> None:
        now = asyncio.get_running_loop().time()
        for child in self._children:
            code = child.ended()
            if code is not None:
                self._note_end(child, code, now)
            if child.start_at is not None and child.start_at <= now:
                try:
                    child.start()
                except OSError as error:
                    # The machine may be short of memory or processes just now.
                    _log.error("a child does not start", child=child.name, reason=str(error))
                    self._note_end(child, None, now)

    def _note_end(self, child: _Child, code: int | None, now: float) -> None:
        metrics.forget_now(child.name, self._metrics_dir)
        if child.optional and code == 0:
            return
        try:
            backoff_seconds = child.crashes.note(
                now, code, most=None if self._was_ready else MAX_START_CRASHES
            )
        except GaveUp:
            if not child.optional:
                raise
            _log.error("a child is left alone", child=child.name, exit_code=code)
            return
        _log.error(
            "a child ended", child=child.name, exit_code=code, restart_in_seconds=backoff_seconds
        )
        child.start_at = now + backoff_seconds

    async def _sleep_until_needed(self) -> None:
        """Wait for the end of a child, or for when the next one is to be started."""
        planned = [self._store_start_at, *(child.start_at for child in self._children)]
        times = [time for time in planned if time is not None]
        try:
            async with asyncio.timeout_at(min(times, default=None)):
                await self._woken.wait()
        except TimeoutError:
            return

    # End

    async def _shut_down(self) -> None:
        """Stop the gateways and the demo, then the background process, then the store."""
        gateways = [child for child in self._children if child.name != "background"]
        background = [child for child in self._children if child.name == "background"]
        if self._listener is not None:
            # The gateways have their own copies; with the last of them the port is free.
            self._listener.close()
        try:
            for group in (gateways, background):
                await asyncio.gather(*(child.stop() for child in group))
            if self._store is not None:
                await self._store.stop()
        finally:
            self._kill_all()

    def _kill_all(self) -> None:
        for child in self._children:
            if child.process is not None:
                child.process.kill()
        if self._store is not None and self._store.running:
            self._store.kill()


def _this_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("the supervisor runs in a task")
    return task


def _module(name: str) -> list[str]:
    # -P: a file named like the module, where the user happens to stand, must not take its place.
    return [sys.executable, "-P", "-m", name]


def _environment_without_ours() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}


async def _wait_ready(address: tuple[str, int]) -> None:
    """Ask until a gateway says that it is ready. Raises NotReady."""
    last = "no answer"
    try:
        async with asyncio.timeout(READY_SECONDS):
            # Another process becomes ready, and only its answer tells.
            while (last := await _ask_ready(address)) != "200":  # noqa: ASYNC110
                await asyncio.sleep(READY_CHECK_SECONDS)
    except TimeoutError as error:
        raise NotReady(last) from error


async def _ask_ready(address: tuple[str, int]) -> str:
    """Ask for /readyz; return the status code, or what went wrong instead."""
    request = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(READY_ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(*address, limit=MAX_STATUS_LINE_BYTES)
            try:
                writer.write(request)
                line = await reader.readline()
            finally:
                writer.close()
    except TimeoutError:
        return "no answer from /readyz"
    except (OSError, ValueError) as error:
        return f"no answer from /readyz: {error}"
    words = line.split()
    return words[1].decode(errors="replace") if len(words) > 1 else "an empty answer from /readyz"
