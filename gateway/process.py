"""The gateway process, as whoever starts it runs it.

It takes everything from the environment (see `gateway.settings`), but for what it may not import:
the archive's side of the ledger is handed in. SIGTERM and SIGINT end it in order: it stops
accepting, gives requests under way some time, and exits with 0.
"""

import asyncio
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType
from typing import Final, NoReturn

import structlog
import uvicorn
import uvloop

from engine import tracing
from engine.metrics import PROCESS_VARIABLE
from engine.tracing import TracingRefused
from gateway import logs
from gateway.app import create_app
from gateway.service import OpenHistory, Service
from gateway.settings import GatewaySettings, SettingRefused
from gateway.websocket import MAX_MESSAGE_BYTES, PING_SECONDS

GRACE_SECONDS: Final = 10
"""What requests under way get at the end; the engine gives up on the store well before that."""

KEEP_ALIVE_SECONDS: Final = 75
"""Longer than the minute after which load balancers drop an idle connection by default, so that it
is they who close it and no request meets a connection that just closed."""

BACKLOG: Final = 2_048

SEND_BUFFER_BYTES: Final = 256 * 1024
"""What the kernel keeps for a client that reads slowly. More would hide it from us for longer, and
of ten thousand open streams take gigabytes."""

STUCK_SECONDS: Final = 60
"""How long a client may take nothing of what it was sent before the kernel drops it."""

EXIT_CANNOT_START: Final = 4

log = structlog.get_logger("gateway")


def run(environ: Mapping[str, str], *, open_history: OpenHistory) -> None:
    """Serve until a signal; raises SystemExit where it cannot start."""
    try:
        settings = GatewaySettings.from_environment(environ)
        tracing.start(environ, process=environ.get(PROCESS_VARIABLE) or "gateway")
    except (SettingRefused, TracingRefused) as refusal:
        sys.exit(f"gateway: {refusal}")
    logs.configure(level=settings.log_level, log_format=settings.log_format)
    # uvicorn ends in order on the first signal, and then raises it again for whoever was there
    # before it: that is this handler, which makes an ordered end of it. It serves before, too.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _exit)
    try:
        listener = _listener(settings)
    except OSError as error:
        log.error("cannot listen", host=settings.host, port=settings.port, error=str(error))
        sys.exit(EXIT_CANNOT_START)
    _raise_file_limit()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_server(settings, open_history).serve(sockets=[listener]))
    finally:
        tracing.stop()


class _Server(uvicorn.Server):
    """Ends the streams before all else: they would keep it for its whole grace.

    Each is told so first, which the server itself would not wait for.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._service.say_goodbye()
        await super().shutdown(sockets)


def _server(settings: GatewaySettings, open_history: OpenHistory) -> uvicorn.Server:
    service = Service(
        settings.store,
        unsafe_durability=settings.unsafe_durability,
        partitions=settings.partitions,
        open_history=open_history,
        workers=settings.workers,
        webhook_loopback=settings.webhook_loopback,
        index_url=settings.index_url,
    )
    config = uvicorn.Config(
        create_app(service),
        http="httptools",
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_ping_interval=PING_SECONDS,
        ws_ping_timeout=PING_SECONDS,
        # A compressor of each connection takes more memory than all the rest of it.
        ws_per_message_deflate=False,
        lifespan="on",
        # One line a request costs a third of the throughput; see gateway.logs.
        access_log=False,
        log_config=None,
        server_header=False,
        # Nothing here asks who the client is or by which scheme it came.
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return _Server(config, service)


def _listener(settings: GatewaySettings) -> socket.socket:
    """Take the inherited socket, or bind one. Raises OSError."""
    if settings.listen_fd is not None:
        listener = socket.socket(fileno=settings.listen_fd)
    else:
        listener = socket.create_server(
            (settings.host, settings.port),
            family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET,
            backlog=BACKLOG,
        )
    # Both pass to every connection that it accepts.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STUCK_SECONDS * 1000)
    return listener


def _raise_file_limit() -> None:
    """Allow as many connections as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems say that there is no limit and then take none that high.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _exit(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)
