"""Receivers of webhooks on this machine: they keep what came, and answer as a test wants."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from tests.stores import eventually

WAIT_SECONDS: Final = 30.0


class Received(NamedTuple):
    """One request, its headers by lower-case name."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """The message's id."""
        return self.headers["webhook-id"]

    @property
    def event(self) -> Any:
        """The event that it carries."""
        return json.loads(self.body)


Answering = Callable[[Received], Awaitable[bytes]]
"""Returns the whole answer to a request, from its status line on."""


def answer(status: int, headers: str = "", body: bytes = b"") -> bytes:
    """Make an answer; each of `headers` ends with a line's end."""
    head = f"HTTP/1.1 {status} Some Words\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


class Receiver:
    """A server on a port of its own; `answering` may be replaced at any time."""

    def __init__(self, status: int = 204) -> None:
        """Answer with a status."""
        self.received: list[Received] = []
        self.under_way = 0
        self.most_under_way = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.status = status
        self.answering: Answering = self._answer

    async def _answer(self, _request: Received) -> bytes:
        return answer(self.status)

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}/hook"

    async def until(self, count: int) -> list[Received]:
        """Wait until so many requests have come, and return them."""

        async def came() -> bool:
            return len(self.received) >= count

        await eventually(came, within_seconds=WAIT_SECONDS)
        return self.received

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                fields = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in lines[1:] if line)
                }
                body = await reader.readexactly(int(fields.get("content-length", "0")))
                request = Received(lines[0].split()[1], fields, body)
                self.received.append(request)
                self.under_way += 1
                self.most_under_way = max(self.most_under_way, self.under_way)
                try:
                    writer.write(await self.answering(request))
                    await writer.drain()
                finally:
                    self.under_way -= 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            # The sender has gone, or the test is over: streams tell of a cancelled task otherwise.
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def __aenter__(self) -> Self:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop, whatever is under way."""
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
