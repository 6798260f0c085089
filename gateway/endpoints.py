"""From ASGI to a handler and back: one `Endpoint` a path, one `Edge` around all of them.

A request passes: the edge (request id, the path as it was sent), the router, then here method,
key, merchant, role, rate limit, parameters, body. Whatever refuses raises a HoldfastError, and all
of them become problems in one place.
"""

import itertools
import re
import time
from collections.abc import Sequence
from secrets import token_hex
from typing import Any, Final
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine import tracing
from engine.limits import MAX_ID_BYTES
from engine.outcomes import HoldfastError, InvalidCommand
from engine.trace_context import parse_traceparent, with_trace
from engine.validation import check_id
from gateway.authentication import identify, permit
from gateway.bodies import ClientGone, decode, read
from gateway.calls import Answer, Call, Header
from gateway.logs import AccessLog
from gateway.metrics import REQUEST_SECONDS, REQUESTS
from gateway.operations import Operation
from gateway.problems import InvalidRequest, MethodNotAllowed, headers, kind_of, problem
from gateway.service import Service
from gateway.trail import TRAIL, Trail
from gateway.wire import ProblemError

REQUEST_ID: Final = "holdfast.request_id"
"""Where the edge leaves the request's id in the ASGI scope."""

MAX_QUERY_FIELDS: Final = 20
MAX_LIST_FIELDS: Final = 220
"""Where some parameters may stand many times."""

_REQUEST_ID_FORM = re.compile(rb"[!-~](?:[ -~]{0,126}[!-~])?")
_PLAIN_ID = re.compile(rf"[A-Za-z0-9._~-]{{1,{MAX_ID_BYTES}}}")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SINGLE = frozenset(
    {
        b"authorization",
        b"content-type",
        b"idempotency-attempt",
        b"idempotency-key",
        b"if-match",
        b"if-none-match",
        b"last-event-id",
    }
)
"""Headers that decide something: where one stands twice, nobody can say which is meant."""

_OWN_IDS: Final = token_hex(8).encode()
"""Begins the request ids that this process makes; a counter ends them, and costs a tenth of a UUID
each."""
_numbers = itertools.count(1)

SOCKET: Final = "socket"
"""The operation of a handshake, which is none of the HTTP API."""

CLOSED_ABNORMALLY: Final = 1006
"""What RFC 6455 calls a socket that broke, with nobody to say why."""

log = structlog.get_logger("gateway.endpoints")
_encode = msgspec.json.Encoder().encode


class Edge:
    """The outermost layer: gives every request its id and its line in the access log.

    It also routes on the path as it was sent, so that `%2F` in a SKU is no separator.
    """

    def __init__(self, app: ASGIApp, access_log: AccessLog) -> None:
        """Wrap `app`."""
        self.app = app
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "websocket":
            await self._talk(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = _request_id(scope["headers"])
        scope[REQUEST_ID] = request_id.decode("ascii")
        scope[TRAIL] = trail = Trail()
        scope["path"] = scope["raw_path"].decode("latin-1")
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"request-id", request_id)]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            # The edge of the process: whoever called gets an answer, and the server the trace.
            if not status:
                await respond(send_with_id, refusal(HoldfastError(), scope))
            raise
        finally:
            seconds = time.perf_counter() - started
            REQUESTS.add((trail.operation, status, trail.code))
            if not trail.streams:
                REQUEST_SECONDS.of(trail.operation).observe(seconds)
            self._access_log.record(
                scope["method"], scope["path"], status, seconds * 1000, scope[REQUEST_ID], trail
            )

    async def _talk(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a socket: a line when it is opened and one when it is over, or one of a refusal."""
        started = time.perf_counter()
        request_id = scope[REQUEST_ID] = _request_id(scope["headers"]).decode("ascii")
        path = scope["path"] = scope["raw_path"].decode("latin-1")
        scope[TRAIL] = trail = Trail(operation=SOCKET)
        status, close_code = 0, CLOSED_ABNORMALLY

        async def receive_and_look() -> Message:
            nonlocal close_code
            message = await receive()
            if message["type"] == "websocket.disconnect":
                close_code = message.get("code") or CLOSED_ABNORMALLY
            return message

        async def send_and_look(message: Message) -> None:
            nonlocal status, close_code
            await send(message)
            match message["type"]:
                case "websocket.accept":
                    status = 101
                    self._access_log.opened(path, request_id, trail)
                case "websocket.http.response.start":
                    status = message["status"]
                case "websocket.close":
                    # Before it was accepted that is how a server says 403.
                    status, close_code = status or 403, message.get("code", 1000)

        try:
            await self.app(scope, receive_and_look, send_and_look)
        finally:
            duration_ms = (time.perf_counter() - started) * 1000
            if status == 101:
                self._access_log.closed(path, request_id, trail, duration_ms, close_code)
            else:
                self._access_log.record("GET", path, status, duration_ms, request_id, trail)
            REQUESTS.add((SOCKET, status, trail.code if status != 101 else ""))


class Endpoint:
    """The operations of one path, as an ASGI application."""

    def __init__(self, operations: Sequence[Operation], service: Service) -> None:
        """Serve `operations`, which differ by method."""
        self._service = service
        self._by_method = {operation.method: operation for operation in operations}
        self.methods = {*self._by_method, *({"HEAD"} if "GET" in self._by_method else ())}
        self._decoders: dict[str, msgspec.json.Decoder[Any]] = {
            operation.method: msgspec.json.Decoder(operation.request)
            for operation in operations
            if operation.request is not None
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        method = scope["method"]
        without_body = method == "HEAD"
        body: object = None
        trail: Trail = scope[TRAIL]
        call = Call(self._service, scope["path_params"], {}, {}, "")
        try:
            operation = self._by_method.get("GET" if without_body else method)
            if operation is None:
                raise MethodNotAllowed(self.methods)
            trail.operation = operation.name
            await admit_call(operation, scope, call)
            trail.merchant = call.path.get("merchant", "")
            if operation.request is None:
                answer = await operation.handler(call, None)
            else:
                # Read first: a client that sends slowly must not have a place meanwhile.
                sent = await read(call.headers, receive)
                crowd, merchant = self._service.crowd, call.merchant
                await crowd.enter(merchant)
                try:
                    body = self._decode(operation, sent)
                    if call.bucket is not None and operation.items is not None:
                        call.bucket.charge_items(operation.items(body))
                    answer = await operation.handler(call, body)
                finally:
                    crowd.leave(merchant)
            if not isinstance(answer, Answer):
                trail.streams = True
                await answer.respond(receive, send, without_body=without_body)
                return
        except HoldfastError as error:
            answer = refusal(error, scope, body=body)
        except ClientGone:
            return
        if call.bucket is not None:
            answer.headers = [*answer.headers, *call.bucket.fields()]
        await respond(send, answer, without_body=without_body)

    def _decode(self, operation: Operation, body: bytes) -> object:
        if not body and not operation.body_required:
            body = b"{}"
        return decode(body, self._decoders[operation.method])


async def admit_call(operation: Operation, scope: Scope, call: Call) -> None:
    """Fill in the call of a request whose sender may make it. Raises its refusal."""
    call.headers = fields = _header_fields(scope["headers"])
    call.peer = (scope.get("client") or ("",))[0]
    if operation.role is None:
        return
    path, fault = _decoded_path(scope["path_params"])
    key, call.credential = await identify(call.service, scope.get("method", "GET"), fields)
    spans = tracing.spans()
    traceparent = "" if spans is None else spans.current_traceparent()
    if not traceparent and b"traceparent" in fields:
        traceparent = parse_traceparent(fields[b"traceparent"])
    call.actor = with_trace(key.actor, traceparent)
    call.key_id = key.id
    if TRAIL in scope:
        scope[TRAIL].actor = key.actor
        scope[TRAIL].traceparent = traceparent
    if key.rate_limit is not None:
        call.bucket = call.service.rate_limits.of(key)
    # What cannot be decoded is no merchant's id, so it is certainly not the caller's.
    merchant = key.merchant if operation.any_merchant else path.get("merchant")
    permit(key, needed=operation.role, merchant=merchant or "")
    if call.bucket is not None:
        call.bucket.take()
    if fault is not None:
        raise fault
    call.path = path
    if scope["query_string"]:
        call.query, call.lists = _query(scope["query_string"], operation.query, operation.lists)


def refusal(error: HoldfastError, scope: Scope, *, body: object = None) -> Answer:
    """Make the answer to a refused request, and log what is our own fault."""
    request_id = scope[REQUEST_ID]
    if TRAIL in scope:
        scope[TRAIL].code = error.code
    if kind_of(type(error)).status == 500:
        log.error("request failed", request_id=request_id, path=scope["path"], error=str(error))
    document = problem(error, request_id, body=body, parameters=scope.get("path_params", {}))
    return Answer(document.status, document, headers(error), b"application/problem+json")


def encoded(answer: Answer) -> tuple[bytes, list[Header]]:
    """Return an answer's body and headers as they are sent."""
    if answer.body is None:
        return b"", answer.headers
    body = _encode(answer.body)
    return body, [
        (b"content-type", answer.media_type),
        (b"content-length", b"%d" % len(body)),
        *answer.headers,
    ]


async def respond(send: Send, answer: Answer, *, without_body: bool = False) -> None:
    """Send an answer; for a HEAD only what its headers would be."""
    body, fields = encoded(answer)
    await send({"type": "http.response.start", "status": answer.status, "headers": fields})
    await send({"type": "http.response.body", "body": b"" if without_body else body})


def _request_id(fields: Sequence[Header]) -> bytes:
    """Take the caller's id where it is printable and short, else make one."""
    for name, value in fields:
        if name == b"request-id" and _REQUEST_ID_FORM.fullmatch(value):
            return value
    return b"%s%016x" % (_OWN_IDS, next(_numbers))


def _header_fields(fields: Sequence[Header]) -> dict[bytes, bytes]:
    """Return headers by name. Raises InvalidRequest where one that decides stands twice."""
    by_name = dict(fields)
    if len(by_name) != len(fields):
        names = [name for name, _ in fields]
        for name in _SINGLE:
            if names.count(name) > 1:
                shown = name.decode().title()
                raise InvalidRequest(ProblemError(header=shown, detail="must be sent only once"))
    return by_name


def _decoded_path(raw: dict[str, str]) -> tuple[dict[str, str], HoldfastError | None]:
    """Decode each segment by itself; the first fault is returned, for after the key's check."""
    path = {}
    fault: HoldfastError | None = None
    for name, text in raw.items():
        try:
            path[name] = _decoded_segment(name, text)
        except HoldfastError as error:
            fault = fault or error
    return path, fault


def _decoded_segment(name: str, text: str) -> str:
    if _PLAIN_ID.fullmatch(text):
        # Most ids: what follows would leave them as they are, and take a tenth of a request's time.
        return text
    if _BAD_ESCAPE.search(text):
        raise InvalidCommand(name, "must be percent-encoded: a `%` stands before two hex digits")
    try:
        segment = unquote_to_bytes(text.encode("latin-1")).decode()
    except UnicodeDecodeError as error:
        raise InvalidCommand(name, "must be percent-encoded UTF-8") from error
    check_id(name, segment)
    return segment


def _query(
    text: bytes, known: Sequence[str], lists: Sequence[str]
) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the query's parameters, and those that may stand many times.

    Raises InvalidRequest on one that is unknown, or repeated and may not be.
    """
    most = MAX_LIST_FIELDS if lists else MAX_QUERY_FIELDS
    try:
        pairs = parse_qsl(
            text.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=most,
        )
    except ValueError as error:
        raise _bad_query("query", f"must be at most {most} percent-encoded parameters") from error
    query: dict[str, str] = {}
    many: dict[str, list[str]] = {}
    for name, value in pairs:
        if name in lists:
            many.setdefault(name, []).append(value)
            continue
        if name not in known:
            raise _bad_query(name[:100], "there is no such parameter here")
        if name in query:
            raise _bad_query(name, "must be sent only once")
        query[name] = value
    return query, many


def _bad_query(name: str, detail: str) -> InvalidRequest:
    return InvalidRequest(ProblemError(parameter=name, detail=detail))
