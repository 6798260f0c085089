"""Structured logs on standard error, and an access log: sampled requests, and every socket.

No header and no body is ever logged, and what looks like an API key's secret is cut wherever it
stands, for instance in a path that somebody pasted it into.
"""

import logging
import re
import sys
from collections.abc import Callable
from typing import Any, Final

import structlog
from structlog.typing import EventDict, WrappedLogger

from gateway.trail import Trail

SAMPLE_EVERY: Final = 100
"""Of the requests that went well and fast, one in so many is logged: a line each costs a third of
the throughput. Failures and slow ones are logged always."""

SLOW_MS: Final = 1_000

_SECRET = re.compile(r"(hfk_[0-9A-Za-z]{8})_[0-9A-Za-z]+")
_WEBHOOK_SECRET = re.compile(r"whsec_[0-9A-Za-z+/=_%-]+")


class AccessLog:
    """Writes a line for each failed or slow request, and for one in `sample_every` others.

    A socket has one when it is opened and one when it is over.
    """

    def __init__(self, *, sample_every: int = SAMPLE_EVERY) -> None:
        """Start counting."""
        self._sample_every = sample_every
        self._until_next = 1
        self._log = structlog.get_logger("gateway.access")

    def record(
        self,
        method: str,
        path: str,
        status: int,
        duration_ms: float,
        request_id: str,
        trail: Trail,
    ) -> None:
        """Take note of an answered request; `status` 0 is one whose client went away."""
        self._until_next -= 1
        due = self._until_next <= 0
        if due:
            self._until_next = self._sample_every
        if status < 500 and duration_ms < SLOW_MS and not due:
            return
        fields = {"traceparent": trail.traceparent} if trail.traceparent else {}
        self._log.info(
            "request",
            method=method,
            path=path,
            status=status,
            duration_ms=round(duration_ms, 3),
            request_id=request_id,
            operation=trail.operation,
            merchant=trail.merchant,
            actor=trail.actor,
            code=trail.code,
            sampled=due,
            **fields,
        )

    def opened(self, path: str, request_id: str, trail: Trail) -> None:
        """Take note of a socket that was opened: each of them, as it may stay for hours."""
        fields = {"traceparent": trail.traceparent} if trail.traceparent else {}
        self._log.info(
            "socket opened",
            path=path,
            request_id=request_id,
            merchant=trail.merchant,
            actor=trail.actor,
            **fields,
        )

    def closed(
        self, path: str, request_id: str, trail: Trail, duration_ms: float, close_code: int
    ) -> None:
        """Take note of its end; `close_code` is of RFC 6455."""
        fields = {"traceparent": trail.traceparent} if trail.traceparent else {}
        self._log.info(
            "socket closed",
            path=path,
            request_id=request_id,
            merchant=trail.merchant,
            actor=trail.actor,
            duration_ms=round(duration_ms, 3),
            close_code=close_code,
            code=trail.code,
            **fields,
        )


def configure(*, level: str, log_format: str) -> None:
    """Send everything, uvicorn's own words too, through structlog to standard error.

    `log_format` is `json`, `text`, or `auto`: text on a terminal.
    """
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    renderer: Callable[..., Any] = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if as_text
        else structlog.processors.JSONRenderer()
    )
    shared: list[Any] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                hide_secrets,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())


def hide_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Cut the secret of what looks like a key, or signs webhooks (a structlog processor)."""
    for name, value in event.items():
        if isinstance(value, str) and ("hfk_" in value or "whsec_" in value):
            shown = _SECRET.sub(r"\1_(hidden)", value)
            event[name] = _WEBHOOK_SECRET.sub("whsec_(hidden)", shown)
    return event
