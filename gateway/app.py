"""The ASGI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from engine import tracing
from engine.outcomes import HoldfastError
from gateway import console, docs, websocket
from gateway.calls import Answer
from gateway.endpoints import Edge, Endpoint, refusal, respond
from gateway.logs import AccessLog
from gateway.problems import MethodNotAllowed, NotFound
from gateway.router import Router
from gateway.routes import by_path
from gateway.service import Service
from gateway.traced import Traced


def create_app(service: Service, *, access_log: AccessLog | None = None) -> ASGIApp:
    """Make the application; its lifespan starts `service` and stops it."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = Starlette(
        routes=[
            WebSocketRoute(websocket.PATH, websocket.Socket(service)),
            *docs.routes(),
            *console.routes(),
        ],
        exception_handlers={HTTPException: _routing_refused, Exception: _failed},
        lifespan=lifespan,
    )
    # `/livez/` is another path than `/livez`, and a redirect would lose the body of a POST.
    app.router.redirect_slashes = False
    endpoints = {path: Endpoint(operations, service) for path, operations in by_path().items()}
    edge = Edge(Router(endpoints, otherwise=app), access_log or AccessLog())
    spans = tracing.spans()
    return edge if spans is None else Traced(edge, spans)


class _Refusal(Response):
    """Our answers are sent by our own code; Starlette wants one of its responses."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(status_code=answer.status)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, self._answer, without_body=scope["method"] == "HEAD")


async def _routing_refused(request: Request, error: Exception) -> Response:
    """Answer what the router or the static files refuse."""
    reason: HoldfastError = NotFound()
    if isinstance(error, HTTPException) and error.status_code == 405:
        reason = MethodNotAllowed((error.headers or {}).get("Allow", "GET, HEAD").split(", "))
    return _Refusal(refusal(reason, request.scope))


async def _failed(request: Request, _error: Exception) -> Response:
    """Answer for a bug; Starlette raises it on, and the server logs it with its trace."""
    return _Refusal(refusal(HoldfastError(), request.scope))
