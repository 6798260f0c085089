"""The connection to Redis or Valkey: script calls and reads, retried only where that is safe.

redis-py's own retries are off. A script call whose reply is lost may have been applied, so it is
called again with the very same commands: each finds its own earlier result in the store.
"""

import asyncio
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any, Final, Protocol, Self, cast
from urllib.parse import parse_qs, urlencode

import msgspec
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterError,
    MaxConnectionsError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from engine import metrics
from engine.multiplexed import Multiplexed
from engine.outcomes import OutcomeUnknown, StoreFault, StoreUnavailable
from engine.scripts import Script

Client = Redis | RedisCluster

MAX_CALLS: Final = 64
"""Calls in flight at once from one process; more wait their turn in order. Lanes coalesce what
waits, so more calls only make the groups smaller."""

MAX_ATTEMPTS: Final = 6
FIRST_BACKOFF_MS: Final = 20
MAX_BACKOFF_MS: Final = 400

_NOT_APPLIED = (
    BusyLoadingError,
    # A cluster that is down, or a driver that gave up after too many redirections.
    ClusterError,
    AskError,
    MaxConnectionsError,
    ReadOnlyError,
    SlotNotCoveredError,
    TryAgainError,
)
_MAYBE_APPLIED = (RedisConnectionError, RedisTimeoutError, OSError)
_RESPONSES_NEVER_SENT = (ConnectionRefusedError, FileNotFoundError)


class Carrier(Protocol):
    """Takes commands to the store and brings their replies, as bytes.

    `carry` raises the first error among the replies and whatever happens on the way, all of it as
    the driver's own exceptions.
    """

    async def carry(self, commands: Sequence[Sequence[str | bytes | int]]) -> list[Any]:
        """Send commands in one piece and return their replies in order."""
        ...

    async def close(self) -> None:
        """Close what the carrier opened."""
        ...


class StoreSettings(msgspec.Struct, frozen=True):
    """How to reach the store. `deadline_ms` bounds one call with all its retries."""

    url: str
    username: str = ""
    password: str = ""
    cluster: bool = False
    deadline_ms: int = 4_000
    attempt_timeout_ms: int = 2_000

    @classmethod
    def from_url(cls, url: str, *, username: str = "", password: str = "") -> Self:
        """Take `redis://`, `rediss://` or `unix://`; `?cluster=true` asks for a cluster client."""
        # Cut by hand: urllib takes the empty host out of `unix:///path`.
        address, _, text = url.partition("?")
        query = parse_qs(text)
        cluster = query.pop("cluster", ["false"])[-1].lower() in ("true", "yes", "1")
        rest = urlencode(query, doseq=True)
        return cls(f"{address}?{rest}" if rest else address, username, password, cluster)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read HOLDFAST_REDIS_URL, HOLDFAST_REDIS_USERNAME and HOLDFAST_REDIS_PASSWORD.

        Raises KeyError where the URL is missing.
        """
        return cls.from_url(
            environ["HOLDFAST_REDIS_URL"],
            username=environ.get("HOLDFAST_REDIS_USERNAME", ""),
            password=environ.get("HOLDFAST_REDIS_PASSWORD", ""),
        )


def connect(settings: StoreSettings, *, max_connections: int = MAX_CALLS + 16) -> Client:
    """Make a client of the store; nothing is sent before the first command."""
    options: dict[str, Any] = {
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": settings.attempt_timeout_ms / 1000,
        "socket_connect_timeout": settings.attempt_timeout_ms / 1000,
        "protocol": 2,
        # A caller waits on the semaphore, not on the pool; the few on top are for pings and keys.
        "max_connections": max_connections,
    }
    if settings.username:
        options["username"] = settings.username
    if settings.password:
        options["password"] = settings.password
    if settings.cluster:
        return RedisCluster.from_url(settings.url, **options)
    return Redis.from_url(settings.url, **options)


class Store:
    """Calls scripts and reads keys; every driver error becomes one of ours, the cause kept."""

    def __init__(
        self, client: Client, settings: StoreSettings, *, carrier: "Carrier | None" = None
    ) -> None:
        """Take over the client and the carrier; `close` closes them.

        The carrier takes script calls and reads; without one they go through the client. The
        client is there for everything else.
        """
        self.client = client
        self.settings = settings
        self._carrier: Carrier = carrier or _Driver(client)
        self._slots = asyncio.Semaphore(MAX_CALLS)

    @classmethod
    async def open(cls, settings: StoreSettings) -> Self:
        """Make a client; the store need not be up yet.

        On a cluster the driver carries everything: where a slot is, and what becomes of a call
        while it moves, is its business.
        """
        if settings.cluster:
            return cls(connect(settings), settings)
        carrier = Multiplexed(
            settings.url,
            username=settings.username,
            password=settings.password,
            timeout_seconds=settings.attempt_timeout_ms / 1000,
        )
        return cls(connect(settings), settings, carrier=carrier)

    async def close(self) -> None:
        """Close every connection."""
        await self._carrier.close()
        await close_quietly(self.client)

    async def ping(self) -> None:
        """Ask for a sign of life once, without retries. Raises StoreUnavailable."""
        try:
            async with asyncio.timeout(self.settings.attempt_timeout_ms / 1000):
                await cast(Any, self.client.ping())
        except (RedisError, OSError) as error:
            raise StoreUnavailable() from error

    async def call(self, script: Script, keys: Sequence[str], *args: str | bytes | int) -> bytes:
        """Run a script and return its reply.

        Raises OutcomeUnknown where the reply was lost for good, StoreUnavailable where the script
        certainly did not run, StoreFault where it answered with an error.
        """
        return cast(bytes, await self._persist(_ScriptCall(script, keys, args)))

    async def read(self, commands: Sequence[tuple[str | bytes | int, ...]]) -> list[Any]:
        """Run commands that change nothing in one round trip; replies in their order, as bytes.

        Raises StoreUnavailable, or StoreFault where one answers with an error.
        """
        try:
            return cast(list[Any], await self._persist(_Reads(commands)))
        except OutcomeUnknown as error:
            raise StoreUnavailable() from error

    async def node_of(self, key: str) -> str:
        """Return a name of the server that a key is on; '' where there is only one.

        Raises StoreUnavailable.
        """
        client = self.client
        if not isinstance(client, RedisCluster):
            return ""
        try:
            await client.initialize()
            return str(getattr(client.get_node_from_key(key), "name", ""))
        except (RedisError, OSError) as error:
            raise StoreUnavailable() from error

    async def _persist(self, call: "_ScriptCall | _Reads") -> Any:
        """Try until there is an answer, the attempts or the time are used up."""
        loop = asyncio.get_running_loop()
        # Not the loop's time, which is in whole milliseconds.
        started = perf_counter()
        give_up_at = loop.time() + self.settings.deadline_ms / 1000
        maybe_applied = False
        for attempt in range(MAX_ATTEMPTS):
            if attempt:
                metrics.STORE_RETRIES.add((call.name,))
            try:
                async with self._slots:
                    reply = await call.run(self._carrier)
                metrics.CALL_SECONDS.of(call.name).observe(perf_counter() - started)
                return reply
            except _NOT_APPLIED as error:
                cause: Exception = error
            except OutOfMemoryError as error:
                metrics.STORE_FAILURES.add(("memory_full",))
                raise StoreUnavailable("the store's memory is full") from error
            except ResponseError as error:
                metrics.STORE_FAILURES.add(("fault",))
                raise StoreFault(call.name, str(error)) from error
            except _MAYBE_APPLIED as error:
                cause = error
                # A connection that was never made cannot have carried the call.
                maybe_applied = maybe_applied or not _never_sent(error)
            except RedisError as error:
                metrics.STORE_FAILURES.add(("fault",))
                raise StoreFault(call.name, str(error)) from error
            backoff_ms = min(MAX_BACKOFF_MS, FIRST_BACKOFF_MS * 2**attempt)
            pause = backoff_ms / 1000 * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret
            if loop.time() + pause >= give_up_at:
                break
            await asyncio.sleep(pause)
        metrics.STORE_FAILURES.add(("outcome_unknown" if maybe_applied else "unavailable",))
        if maybe_applied:
            raise OutcomeUnknown() from cause
        raise StoreUnavailable() from cause


class _ScriptCall:
    def __init__(
        self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]
    ) -> None:
        self.name = script.name
        self._script = script
        self._rest = (len(keys), *keys, *args)

    async def run(self, carrier: Carrier) -> Any:
        try:
            (reply,) = await carrier.carry([("EVALSHA", self._script.sha, *self._rest)])
        except NoScriptError:
            # EVAL runs it and leaves it in the server's cache, on just the node that lacked it.
            (reply,) = await carrier.carry([("EVAL", self._script.text, *self._rest)])
        return reply


class _Reads:
    name = "read"

    def __init__(self, commands: Sequence[tuple[str | bytes | int, ...]]) -> None:
        self._commands = commands

    async def run(self, carrier: Carrier) -> Any:
        return await carrier.carry(self._commands)


class _Driver:
    """Carries commands through the driver's client, for whatever kind of store that is."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def carry(self, commands: Sequence[Sequence[str | bytes | int]]) -> list[Any]:
        client: Any = self._client
        if len(commands) == 1:
            return [await client.execute_command(*commands[0])]
        pipeline = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return cast(list[Any], await pipeline.execute())

    async def close(self) -> None:
        """Leave the client to its owner."""


def pairs(reply: Any) -> list[tuple[bytes, Any]]:
    """Return the pairs of a reply of HGETALL, XRANGE (an entry's fields) or one with scores.

    The driver parses them into a mapping or into tuples; the server sends them flat.
    """
    if isinstance(reply, Mapping):
        return list(reply.items())
    if reply and isinstance(reply[0], list | tuple):
        return [(name, value) for name, value in reply]
    return list(zip(reply[::2], reply[1::2], strict=True))


def _never_sent(error: BaseException) -> bool:
    seen: BaseException | None = error
    for _ in range(4):
        if seen is None:
            return False
        if isinstance(seen, _RESPONSES_NEVER_SENT):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


async def close_quietly(client: Client) -> None:
    """Close a client whose store may be gone."""
    with suppress(RedisError, OSError):
        await client.aclose()
