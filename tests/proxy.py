"""A TCP proxy between the engine and its store that loses requests and replies of script calls."""

import asyncio
import re
from collections import Counter, deque
from contextlib import suppress
from enum import StrEnum
from types import TracebackType
from typing import Final, Self

CHUNK_BYTES: Final = 1 << 20
CLOSE_SECONDS: Final = 5.0

_SCRIPT_CALLS: Final = (b"\r\n$7\r\nEVALSHA\r\n", b"\r\n$4\r\nEVAL\r\n")
_ERROR: Final = re.compile(rb"(?:^|\r\n)-")


class Fault(StrEnum):
    """What becomes of a script call."""

    UNSENT = "unsent"
    """The connection breaks and the store never hears of the call."""

    CUT = "cut"
    """The store runs the script, and the connection breaks before its reply arrives."""

    SILENCE = "silence"
    """The store runs the script, and its reply never arrives; the connection stays."""


class LossyProxy:
    """Listens on the loopback and forwards to the store, but for the script calls it is told of.

    Calls that travel in one piece share their fate, and so do their replies. Only replies that
    scripts themselves made are lost, never an error such as NOSCRIPT, so with CUT and SILENCE the
    calls certainly ran. `lost` counts what was done, by fault.
    """

    def __init__(self, store_port: int) -> None:
        """Prepare; entering listens."""
        self.lost: Counter[Fault] = Counter()
        self._store_port = store_port
        self._planned: deque[Fault | None] = deque()
        self._again: tuple[Fault | None, ...] = ()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def plan(self, *faults: Fault | None, again: bool = False) -> None:
        """Do this to the next script calls, one each, None for nothing; with `again` in a ring."""
        self._planned = deque(faults)
        self._again = faults if again else ()

    def take(self) -> Fault | None:
        """Return what shall become of the script call that was just seen."""
        if not self._planned:
            self._planned.extend(self._again)
        return self._planned.popleft() if self._planned else None

    def give_back(self, fault: Fault) -> None:
        """Keep a fault for the next call, where the store did not run the script."""
        self._planned.appendleft(fault)

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close every connection."""
        assert self._server is not None
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        async with asyncio.timeout(CLOSE_SECONDS):
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(
        self, from_engine: asyncio.StreamReader, to_engine: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        from_store, to_store = await asyncio.open_connection("127.0.0.1", self._store_port)
        connection = _Connection(self, to_engine, to_store)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(connection.forward(from_engine))
                group.create_task(connection.answer(from_store))
        except* (OSError, _Over):
            # Either side left, or the plan said so; both sides end below.
            pass
        finally:
            for writer in (to_engine, to_store):
                writer.transport.abort()
            for writer in (to_engine, to_store):
                with suppress(OSError):
                    await writer.wait_closed()


class _Over(Exception):
    """The connection ends here."""


class _Connection:
    def __init__(
        self, proxy: LossyProxy, to_engine: asyncio.StreamWriter, to_store: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._to_engine = to_engine
        self._to_store = to_store
        self._fault: Fault | None = None

    async def forward(self, from_engine: asyncio.StreamReader) -> None:
        """Pass on what the engine sends, up to a call that shall not be sent."""
        while data := await from_engine.read(CHUNK_BYTES):
            # The later parts of a long call have no first word, and share its fate.
            if any(word in data for word in _SCRIPT_CALLS):
                self._fault = self._proxy.take()
                if self._fault is Fault.UNSENT:
                    self._proxy.lost[Fault.UNSENT] += 1
                    raise _Over
            self._to_store.write(data)
            await self._to_store.drain()
        raise _Over

    async def answer(self, from_store: asyncio.StreamReader) -> None:
        """Pass on what the store answers, up to a reply that shall be lost."""
        silent = False
        while data := await from_store.read(CHUNK_BYTES):
            if self._fault is not None and not silent:
                fault, self._fault = self._fault, None
                if _ERROR.search(data):
                    self._proxy.give_back(fault)
                else:
                    self._proxy.lost[fault] += 1
                    if fault is Fault.CUT:
                        raise _Over
                    silent = True
            if not silent:
                self._to_engine.write(data)
                await self._to_engine.drain()
        raise _Over
