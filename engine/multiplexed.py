"""One connection that carries the commands of all callers at once.

Redis answers in the order of the questions, so a connection needs no caller to wait for another's
answer: commands are written as they come, and each reply goes to the one that has waited longest.
What is written within one turn of the event loop goes out in one piece. The driver's pool, which
lends a connection to one call at a time, costs this process more (docs/decisions/0009 has the
figures).

Errors are the driver's own exceptions, so a caller need not know how its commands travel. A lost
connection or an answer that does not come in time fails every command that was on its way, since
nobody can tell which of them was applied; the next command connects anew.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from ssl import SSLContext
from typing import Any, Final, cast

from hiredis import Reader, pack_command
from redis._parsers import BaseParser
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection, parse_url
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

Command = Sequence[str | bytes | int]

DEFAULT_HOST: Final = "localhost"
DEFAULT_PORT: Final = 6379

_parse_error = BaseParser.parse_error


def _pack(command: Command) -> bytes:
    # The type stub of hiredis takes tuples of one element only.
    return cast(bytes, cast(Any, pack_command)(tuple(command)))


class _Waiting:
    """Commands that were sent together, and what has come back of their replies."""

    __slots__ = ("future", "overdue_at", "replies", "wanted")

    def __init__(self, future: asyncio.Future[list[Any]], wanted: int, overdue_at: float) -> None:
        self.future = future
        self.wanted = wanted
        self.overdue_at = overdue_at
        self.replies: list[Any] = []


class _Connection(asyncio.Protocol):
    """A connection that is up, with who waits on it in the order of their questions."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._loop = asyncio.get_running_loop()
        self._reader = Reader(replyError=_parse_error)
        self._waiting: deque[_Waiting] = deque()
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._lost_to: Exception | None = None
        self.is_gone = asyncio.Event()
        """Set once the socket is closed."""

    @property
    def is_up(self) -> bool:
        """Whether commands can be sent."""
        return self._transport is not None

    def ask(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """Send commands at the end of the loop's turn; the future gets their replies.

        An error reply is an exception among the others. Raises RedisConnectionError.
        """
        if self._transport is None:
            raise RedisConnectionError("the connection was lost") from self._lost_to
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        overdue_at = self._loop.time() + self._timeout_seconds
        self._waiting.append(_Waiting(future, len(commands), overdue_at))
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent += [_pack(command) for command in commands]
        if self._watch is None:
            self._watch = self._loop.call_at(overdue_at, self._look)
        return future

    def close(self) -> None:
        """Close; whoever still waits gets an error."""
        if self._transport is not None:
            self._transport.abort()
            self._lose(RedisConnectionError("the connection was closed"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                first = waiting[0]
                first.replies.append(reply)
                if len(first.replies) == first.wanted:
                    waiting.popleft()
                    # A caller who has gone away still has its place in the order of replies.
                    if not first.future.done():
                        first.future.set_result(first.replies)
        except (RedisError, IndexError) as error:
            # Not the protocol, or an answer that nobody asked for: nothing after it can be trusted.
            self._abort(RedisConnectionError(f"the store sent what is no reply: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(exc or RedisConnectionError("the store closed the connection"))
        self.is_gone.set()

    def _flush(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def _look(self) -> None:
        """Give the connection up where the one that has waited longest has waited too long."""
        self._watch = None
        if not self._waiting:
            return
        overdue_at = self._waiting[0].overdue_at
        if self._loop.time() < overdue_at:
            self._watch = self._loop.call_at(overdue_at, self._look)
        else:
            self._abort(RedisTimeoutError("the store did not answer in time"))

    def _abort(self, reason: Exception) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._lose(reason)

    def _lose(self, reason: Exception) -> None:
        self._transport = None
        self._lost_to = reason
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        while self._waiting:
            future = self._waiting.popleft().future
            if not future.done():
                error = reason
                if not isinstance(reason, RedisError):
                    error = RedisConnectionError("the connection was lost")
                    error.__cause__ = reason
                future.set_exception(error)


class Multiplexed:
    """Carries commands to one server over one connection, which is made when it is needed."""

    def __init__(
        self, url: str, *, username: str = "", password: str = "", timeout_seconds: float
    ) -> None:
        """Take the address as redis-py does; `timeout_seconds` bounds connecting and each answer.

        Raises ValueError on an address that is none.
        """
        self._options = parse_url(url)
        self._username = username or self._options.get("username") or ""
        self._password = password or self._options.get("password") or ""
        self._timeout_seconds = timeout_seconds
        self._connection: _Connection | None = None
        self._connecting = asyncio.Lock()
        self._closed = False

    async def carry(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one piece, and return their replies in order.

        Raises the first error among the replies, RedisConnectionError and RedisTimeoutError.
        """
        connection = self._connection
        if connection is None or not connection.is_up:
            connection = await self._connected()
        replies = await connection.ask(commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def close(self) -> None:
        """Close the connection for good; whoever still waits gets an error."""
        self._closed = True
        if self._connection is not None:
            self._connection.close()
            await self._connection.is_gone.wait()

    async def _connected(self) -> _Connection:
        """Return a connection that is up; callers who come meanwhile wait for the same one."""
        async with self._connecting:
            if self._closed:
                raise RedisConnectionError("the connection was closed")
            if self._connection is not None and self._connection.is_up:
                return self._connection
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    connection = await self._connect()
                    try:
                        await self._introduce(connection)
                    except BaseException:
                        connection.close()
                        raise
            except TimeoutError as error:
                raise RedisTimeoutError("no connection to the store in time") from error
            except OSError as error:
                raise RedisConnectionError("no connection to the store") from error
            self._connection = connection
            return connection

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        options = self._options

        def protocol() -> _Connection:
            return _Connection(self._timeout_seconds)

        if options.get("connection_class") is UnixDomainSocketConnection:
            _, connection = await loop.create_unix_connection(protocol, options["path"])
            return connection
        _, connection = await loop.create_connection(
            protocol,
            options.get("host", DEFAULT_HOST),
            options.get("port", DEFAULT_PORT),
            ssl=self._tls(),
        )
        return connection

    def _tls(self) -> SSLContext | None:
        if self._options.get("connection_class") is not SSLConnection:
            return None
        names = ("host", "port", "username", "password", "db", "connection_class")
        options: dict[str, Any] = {
            name: value for name, value in self._options.items() if name not in names
        }
        # The driver's own reading of the ssl_ options, so that both ways in check alike.
        return SSLConnection(**options).ssl_context.get()

    async def _introduce(self, connection: _Connection) -> None:
        """Say who we are. Raises the server's refusal."""
        commands: list[Command] = []
        if self._password:
            commands.append(
                ("AUTH", self._username, self._password)
                if self._username
                else ("AUTH", self._password)
            )
        if self._options.get("db"):
            commands.append(("SELECT", self._options["db"]))
        if not commands:
            return
        for reply in await connection.ask(commands):
            if isinstance(reply, Exception):
                raise reply
