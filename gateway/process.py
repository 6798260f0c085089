"""The gateway process, as whoever starts it runs it.

It takes everything from the environment (see `gateway.settings`), but for what it may not import:
the archive's side of the ledger is handed in. SIGTERM and SIGINT end it in order: it stops
accepting, gives requests under way some time, and exits with 0.
"""

import asyncio
import signal
import socket
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Final, NoReturn

import structlog
import uvicorn
import uvloop

from gateway import logs
from gateway.app import create_app
from gateway.service import OpenHistory, Service
from gateway.settings import GatewaySettings, SettingRefused

GRACE_SECONDS: Final = 10
"""What requests under way get at the end; the engine gives up on the store well before that."""

KEEP_ALIVE_SECONDS: Final = 75
"""Longer than the minute after which load balancers drop an idle connection by default, so that it
is they who close it and no request meets a connection that just closed."""

BACKLOG: Final = 2_048

EXIT_CANNOT_START: Final = 4

log = structlog.get_logger("gateway")


def run(environ: Mapping[str, str], *, open_history: OpenHistory) -> None:
    """Serve until a signal; raises SystemExit where it cannot start."""
    try:
        settings = GatewaySettings.from_environment(environ)
    except SettingRefused as refusal:
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
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_server(settings, open_history).serve(sockets=[listener]))


def _server(settings: GatewaySettings, open_history: OpenHistory) -> uvicorn.Server:
    service = Service(
        settings.store,
        unsafe_durability=settings.unsafe_durability,
        partitions=settings.partitions,
        open_history=open_history,
        workers=settings.workers,
    )
    return uvicorn.Server(
        uvicorn.Config(
            create_app(service),
            http="httptools",
            ws="none",
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
    )


def _listener(settings: GatewaySettings) -> socket.socket:
    """Take the inherited socket, or bind one. Raises OSError."""
    if settings.listen_fd is not None:
        return socket.socket(fileno=settings.listen_fd)
    return socket.create_server(
        (settings.host, settings.port),
        family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET,
        backlog=BACKLOG,
    )


def _exit(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)
