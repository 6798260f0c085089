"""What carries the calls of `AsyncClient`: httpx, or connections of our own for thousands a second.

httpx costs a call about 350 µs of processor time even with the fastest transport below it, and its
own transport searches its pool at every request: 540 calls/s against a do-nothing service, measured
with 16 tasks on two cores. `holdfast replay` and `holdfast demo` would measure their own client.
`DirectCarrier` builds the request itself and parses with httptools, as the gateway's server does;
it knows no proxies, no HTTP/2 and no streaming, so everything else takes `HttpxCarrier`.
"""

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any, Final, Protocol

import httptools
import httpx
import msgspec

from holdfast.calls import Call

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
"""Of one answer: far above a page of 500 reservations of 200 lines."""

MAX_CONNECTIONS: Final = 1_000
"""Open at once; a call beyond that waits for one to come free."""


class Reply(msgspec.Struct, frozen=True):
    """An answer: its status and body, and what two of its headers say."""

    status: int
    content: bytes
    replayed: bool
    retry_after: str

    @classmethod
    def of(cls, response: httpx.Response) -> "Reply":
        """Take what matters from httpx's answer."""
        return cls(
            response.status_code,
            response.content,
            response.headers.get("Idempotent-Replayed") == "true",
            response.headers.get("Retry-After", ""),
        )


class Carrier(Protocol):
    """Brings a call to the service and its answer back, once."""

    async def carry(self, call: Call[Any]) -> Reply:
        """Send a call and read its whole answer.

        Raises:
            httpx.TransportError: There is no answer; the call may have been applied.
        """

    async def close(self) -> None:
        """Close the connections."""


def http_request(
    client: httpx.Client | httpx.AsyncClient, url: str, call: Call[Any]
) -> httpx.Request:
    """Make a call into httpx's request."""
    headers = dict(call.headers)
    if call.body is not None:
        headers["Content-Type"] = "application/json"
    return client.build_request(call.method, url + call.target, content=call.body, headers=headers)


class HttpxCarrier:
    """Carries calls with httpx."""

    def __init__(
        self,
        url: str,
        options: Mapping[str, Any],
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Address a service; `options` are httpx's."""
        self._url = url
        self._http = httpx.AsyncClient(transport=transport, **options)

    async def carry(self, call: Call[Any]) -> Reply:
        """Send a call and read its whole answer (see Carrier)."""
        return Reply.of(await self._http.send(http_request(self._http, self._url, call)))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


class DirectCarrier:
    """Carries calls over connections that stay open, the most recently used one first."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        connect_seconds: float,
        answer_seconds: float,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """Address a service; `headers` go with every call."""
        address = httpx.URL(url)
        self._host = address.host
        self._port = address.port or (443 if address.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if address.scheme == "https" else None
        self._prefix = address.raw_path.rstrip(b"/")
        fixed = {"Host": address.netloc.decode(), **headers}
        self._fixed = b"".join(map(_header, fixed.keys(), fixed.values()))
        self._connect_seconds = connect_seconds
        self._answer_seconds = answer_seconds
        self._idle: list[_Exchange] = []
        self._places = asyncio.Semaphore(max_connections)

    async def carry(self, call: Call[Any]) -> Reply:
        """Send a call and read its whole answer (see Carrier)."""
        question = self._wire_format(call)
        async with self._places:
            exchange = await self._connected()
            try:
                async with asyncio.timeout(self._answer_seconds):
                    return await exchange.ask(question)
            except TimeoutError as fault:
                message = f"no answer within {self._answer_seconds} s"
                raise httpx.ReadTimeout(message) from fault
            finally:
                # Also after a cancellation: a connection in mid-answer must not be used again.
                if exchange.is_reusable:
                    self._idle.append(exchange)
                else:
                    exchange.close()

    async def close(self) -> None:
        """Close the connections that nobody is using."""
        while self._idle:
            self._idle.pop().close()

    def _wire_format(self, call: Call[Any]) -> bytes:
        body = call.body or b""
        parts = [
            b"%s %s%s HTTP/1.1\r\n" % (call.method.encode(), self._prefix, call.target.encode()),
            self._fixed,
            *(_header(name, text) for name, text in call.headers),
        ]
        if call.body is not None:
            parts.append(b"Content-Type: application/json\r\n")
        if call.method != "GET":
            parts.append(b"Content-Length: %d\r\n" % len(body))
        return b"".join((*parts, b"\r\n", body))

    async def _connected(self) -> "_Exchange":
        while self._idle:
            exchange = self._idle.pop()
            if exchange.is_reusable:
                return exchange
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_seconds):
                _, exchange = await loop.create_connection(
                    _Exchange, self._host, self._port, ssl=self._tls
                )
        except TimeoutError as fault:
            message = f"no connection within {self._connect_seconds} s"
            raise httpx.ConnectTimeout(message) from fault
        except OSError as fault:
            raise httpx.ConnectError(str(fault)) from fault
        return exchange


def _header(name: str, text: str) -> bytes:
    # A line break would end the header and let the rest of its text pass for another one.
    if not (text.isascii() and text.isprintable()):
        message = f"the header {name} may hold printable ASCII only"
        raise httpx.LocalProtocolError(message)
    return f"{name}: {text}\r\n".encode()


class _Exchange(asyncio.Protocol):
    """One connection: one question at a time, one answer each."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Reply] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._replayed = False
        self._retry_after = ""
        self._open = False

    @property
    def is_reusable(self) -> bool:
        """True while connected with no answer outstanding."""
        answer = self._answer
        if answer is None:
            return self._open
        is_answered = answer.done() and not answer.cancelled() and answer.exception() is None
        return self._open and is_answered

    async def ask(self, question: bytes) -> Reply:
        """Write a request and wait for its answer."""
        if self._transport is None or not self._open:
            message = "the connection was closed"
            raise httpx.WriteError(message)
        self._answer = asyncio.get_running_loop().create_future()
        self._body = bytearray()
        self._replayed = False
        self._retry_after = ""
        self._transport.write(question)
        return await self._answer

    def close(self) -> None:
        """Close the connection."""
        self._open = False
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (asyncio.Protocol)."""
        if not isinstance(transport, asyncio.Transport):
            message = "a stream connection gives a two-way transport"
            raise TypeError(message)
        self._transport = transport
        self._open = True

    def data_received(self, data: bytes) -> None:
        """Parse what arrived (asyncio.Protocol)."""
        if self._answer is None or self._answer.done():
            # Nothing was asked, so this is no answer: the connection is out of step.
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as fault:
            self._fail(f"the answer is no HTTP: {fault}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the answer that will not come (asyncio.Protocol)."""
        self._open = False
        self._fail(str(exc) if exc else "the connection was closed before the answer")

    def on_header(self, name: bytes, text: bytes) -> None:
        """Keep what a header says, if it matters (httptools)."""
        lowered = name.lower()
        if lowered == b"idempotent-replayed":
            self._replayed = text == b"true"
        elif lowered == b"retry-after":
            self._retry_after = text.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body (httptools)."""
        self._body += body
        if len(self._body) > MAX_ANSWER_BYTES:
            self._fail(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")

    def on_message_complete(self) -> None:
        """Hand the answer over (httptools)."""
        if not self._parser.should_keep_alive():
            self.close()
        if self._answer is not None and not self._answer.done():
            status = self._parser.get_status_code()
            reply = Reply(status, bytes(self._body), self._replayed, self._retry_after)
            self._answer.set_result(reply)

    def _fail(self, reason: str) -> None:
        self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(httpx.ReadError(reason))
