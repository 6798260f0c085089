"""A span for each request, around everything that is done for it; only there while traces are."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.trace_context import parse_traceparent
from engine.tracing import Spans
from gateway.trail import TRAIL


class Traced:
    """Wraps the edge; names and attributes are those of OpenTelemetry's conventions for HTTP."""

    def __init__(self, app: ASGIApp, spans: Spans) -> None:
        """Wrap `app`."""
        self._app = app
        self._spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, status = scope["method"], 0

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        theirs = parse_traceparent(dict(scope["headers"]).get(b"traceparent"))
        with self._spans.server(method, theirs) as span:
            try:
                await self._app(scope, receive, send_and_look)
            finally:
                trail = scope[TRAIL]
                # The operation and not the path, which may have an id, or a secret by mistake.
                span.name(f"{method} {trail.operation}")
                span.set("http.request.method", method)
                span.set("http.response.status_code", status)
                span.set("holdfast.operation", trail.operation)
                span.set("holdfast.merchant", trail.merchant)
                span.set("holdfast.actor", trail.actor)
                if trail.code:
                    span.set("error.type", trail.code)
                if status >= 500:
                    span.fail(trail.code)
