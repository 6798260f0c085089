"""Spans with OpenTelemetry, which the extra `otel` brings; see `engine.tracing`."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from engine.trace_context import HEADER
from engine.tracing import Attribute

NAME: Final = "holdfast"
SERVICE_VARIABLE: Final = "OTEL_SERVICE_NAME"

FLUSH_MS: Final = 3_000
"""For spans that were not sent yet when a process ends."""

_propagator: Final = TraceContextTextMapPropagator()


class OpenTelemetrySpan:
    """A span that is under way; see `engine.tracing.Span`."""

    def __init__(self, span: trace.Span) -> None:
        """Say things of `span`."""
        self._span = span

    def name(self, name: str) -> None:
        """Call it something else."""
        self._span.update_name(name)

    def set(self, name: str, value: Attribute) -> None:
        """Set an attribute."""
        self._span.set_attribute(name, value)

    def fail(self, reason: str) -> None:
        """Mark it as that of something that failed."""
        self._span.set_status(StatusCode.ERROR, reason)


class OpenTelemetrySpans:
    """Makes spans with a provider; see `engine.tracing.Spans`."""

    def __init__(self, provider: TracerProvider) -> None:
        """Take over the provider; `stop` ends it."""
        self._provider = provider
        self._tracer = provider.get_tracer(NAME)

    @contextmanager
    def server(self, name: str, traceparent: str) -> Iterator[OpenTelemetrySpan]:
        """Span the answering of a request that belongs to a trace, or to none yet."""
        with self._span(name, SpanKind.SERVER, {}, traceparent) as span:
            yield span

    @contextmanager
    def client(
        self, name: str, attributes: Mapping[str, Attribute], *, traceparent: str = ""
    ) -> Iterator[OpenTelemetrySpan]:
        """Span a call of somebody else, in the current trace or in another."""
        with self._span(name, SpanKind.CLIENT, attributes, traceparent) as span:
            yield span

    def current_traceparent(self) -> str:
        """Return the current span as others are told of it; empty where none is recorded."""
        if not trace.get_current_span().is_recording():
            return ""
        carrier: dict[str, str] = {}
        _propagator.inject(carrier)
        return carrier.get(HEADER, "")

    def stop(self) -> None:
        """Send what was not sent yet, within FLUSH_MS."""
        self._provider.force_flush(FLUSH_MS)
        self._provider.shutdown()

    @contextmanager
    def _span(
        self, name: str, kind: SpanKind, attributes: Mapping[str, Attribute], traceparent: str
    ) -> Iterator[OpenTelemetrySpan]:
        # A refusal is an answer and no error, so an exception says nothing; whoever made the span
        # says what failed.
        with self._tracer.start_as_current_span(
            name,
            context=_propagator.extract({HEADER: traceparent}) if traceparent else None,
            kind=kind,
            attributes=dict(attributes),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield OpenTelemetrySpan(span)


def exporting(exporter: str, environ: Mapping[str, str], *, process: str) -> OpenTelemetrySpans:
    """Make spans that go where OpenTelemetry's variables say; `exporter` is otlp or console."""
    attributes = {"service.instance.id": f"{process}-{os.getpid()}"}
    if not environ.get(SERVICE_VARIABLE):
        attributes["service.name"] = NAME
    provider = TracerProvider(resource=Resource.create(attributes))
    made: SpanExporter = OTLPSpanExporter() if exporter == "otlp" else ConsoleSpanExporter()
    # In a thread of its own: a collector that is away holds nothing up, and loses spans.
    provider.add_span_processor(BatchSpanProcessor(made))
    return OpenTelemetrySpans(provider)
