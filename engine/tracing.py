"""Spans of requests, commands and webhooks: off unless asked for.

`engine.spans`, which makes them with OpenTelemetry, is imported only where they are asked for;
while they are not, a span costs one comparison. What is traced, and to where it is sent, is said by
OpenTelemetry's own variables (docs/operating/tracing.md): `OTEL_TRACES_EXPORTER` turns it on.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Final, Protocol, cast

EXPORTER_VARIABLE: Final = "OTEL_TRACES_EXPORTER"
DISABLED_VARIABLE: Final = "OTEL_SDK_DISABLED"

EXPORTERS: Final = ("otlp", "console", "none")

Attribute = str | int


class TracingRefused(Exception):
    """Tracing was asked for and cannot be done; the message says what to do."""


class Span(Protocol):
    """What can be said of a span that is under way."""

    def name(self, name: str) -> None:
        """Call it something else."""
        ...

    def set(self, name: str, value: Attribute) -> None:
        """Set an attribute."""
        ...

    def fail(self, reason: str) -> None:
        """Mark it as that of something that failed."""
        ...


class Spans(Protocol):
    """What makes spans."""

    def server(self, name: str, traceparent: str) -> AbstractContextManager[Span]:
        """Span the answering of a request that belongs to a trace, or to none yet."""
        ...

    def client(
        self, name: str, attributes: Mapping[str, Attribute], *, traceparent: str = ""
    ) -> AbstractContextManager[Span]:
        """Span a call of somebody else, in the current trace or in another."""
        ...

    def current_traceparent(self) -> str:
        """Return the current span as others are told of it; empty where none is recorded."""
        ...

    def stop(self) -> None:
        """Send what was not sent yet."""
        ...


_spans: Spans | None = None


def spans() -> Spans | None:
    """Return what makes spans, None while none are made."""
    return _spans


def use(made: Spans | None) -> None:
    """Make spans with this from now on, or none."""
    global _spans  # noqa: PLW0603 - a process has one, as OpenTelemetry has it
    _spans = made


def exporter_of(environ: Mapping[str, str]) -> str:
    """Return what the environment asks for, `none` where it does not. Raises TracingRefused."""
    wanted = environ.get(EXPORTER_VARIABLE, "").strip().lower() or "none"
    if wanted not in EXPORTERS:
        raise TracingRefused(
            f"{EXPORTER_VARIABLE}: found {wanted!r}, wanted one of {', '.join(EXPORTERS)}"
        )
    return "none" if environ.get(DISABLED_VARIABLE, "").strip().lower() == "true" else wanted


def start(environ: Mapping[str, str], *, process: str) -> None:
    """Trace, if the environment asks for it. Raises TracingRefused."""
    exporter = exporter_of(environ)
    if exporter == "none":
        return
    try:
        module = import_module("engine.spans")
    except ImportError as error:
        raise TracingRefused(
            f"{EXPORTER_VARIABLE} is {exporter!r}, but OpenTelemetry is not installed: "
            "pip install 'holdfast[otel]', or leave the variable out"
        ) from error
    use(cast(Spans, module.exporting(exporter, environ, process=process)))


def stop() -> None:
    """Make no more spans, and send what was not sent yet."""
    made = _spans
    use(None)
    if made is not None:
        made.stop()
