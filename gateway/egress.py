"""Requests to addresses that callers name: to the public internet, and nowhere else.

Whoever may name a URL could otherwise make this machine ask its own network (server-side request
forgery). So a name is resolved once, *every* address of it is checked, and the connection goes to
an address that was checked: a name that resolves differently a moment later changes nothing. TLS
and the Host header still carry the name. Redirects are not followed, proxies are not used, and both
the time and what is read of an answer are bounded.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import httpcore
import msgspec

from engine.outcomes import InvalidCommand

MAX_URL_CHARACTERS: Final = 2_000
MAX_HOST_CHARACTERS: Final = 253
"""Of a name in the DNS."""

ATTEMPT_SECONDS: Final = 15.0
"""For one request from resolving the name to the end of the answer; Standard Webhooks advises 15 to
30 seconds."""

CONNECT_SECONDS: Final = 5.0
"""For one address of a name, so that a second one may still be tried."""

MAX_ADDRESSES: Final = 16
"""Of one name: all are checked, and a name with more is refused."""

MAX_RESOLVING: Final = 128
"""Names that are being resolved at once; a thread is made when it is needed."""

MAX_ANSWER_BYTES: Final = 16_384
"""Of an answer's body: its status is all that counts."""

MAX_CONNECTIONS: Final = 512
KEPT_CONNECTIONS: Final = 64
KEPT_SECONDS: Final = 20.0
"""An idle connection stays for the next event, at the address that was checked for it."""

_FORBIDDEN_V4: Final = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT, and metadata services of some clouds
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, and most clouds' metadata service
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
"""IANA's special-purpose registry. Written out, as `ipaddress` judges some of these differently
from one Python to the next."""

_GLOBAL_V6: Final = ipaddress.IPv6Network("2000::/3")
_FORBIDDEN_V6: Final = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which carries any IPv4 address
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
"""What a resolver of an IPv6-only network makes of an IPv4 address, which its last 32 bits are."""

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a name, as text. Raises OSError."""


class Failure(StrEnum):
    """Why there was no answer."""

    UNRESOLVED = "unresolved"
    FORBIDDEN_ADDRESS = "forbidden_address"
    UNREACHABLE = "unreachable"
    TLS = "tls"
    TIMEOUT = "timeout"
    BROKEN = "broken"


class NoAnswer(Exception):
    """The request got no answer; `failure` says why, for a program."""

    def __init__(self, failure: Failure) -> None:
        """Keep why. Nothing else is told: whoever named the URL must not learn what is there."""
        self.failure = failure
        super().__init__(failure.value)


class Reply(msgspec.Struct, frozen=True):
    """The answer's status, and its `Retry-After` where it has one."""

    status: int
    retry_after: str = ""


class _Forbidden(Exception):
    """A name has an address that may not be asked."""


class _Unresolved(Exception):
    """A name has no address."""


def check_url(field: str, url: str, *, loopback: bool) -> None:
    """Take an https URL of a public host; with `loopback` one of this machine too, by http even.

    What a name resolves to is checked at each connection. Raises InvalidCommand.
    """
    if not 1 <= len(url) <= MAX_URL_CHARACTERS:
        raise InvalidCommand(field, f"must have 1 to {MAX_URL_CHARACTERS} characters")
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise InvalidCommand(field, "must be printable ASCII: write other hosts as xn--..., "
                             "percent-encode other characters")  # fmt: skip
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidCommand(field, "is no URL") from error
    if parts.username is not None or parts.password is not None:
        raise InvalidCommand(field, "must not carry a user or a password")
    if parts.fragment or "#" in url:
        raise InvalidCommand(field, "must have no fragment")
    if not host or len(host) > MAX_HOST_CHARACTERS or port == 0:
        raise InvalidCommand(field, "must name a host, and a port from 1 to 65535 where it has one")
    if parts.scheme not in (("https", "http") if loopback else ("https",)):
        raise InvalidCommand(field, "must begin with https://")
    address = _literal(host)
    is_local = _is_loopback(address) if address is not None else host == "localhost"
    if parts.scheme == "http" and not is_local:
        raise InvalidCommand(field, "must begin with https://, but for this machine itself")
    if (is_local and not loopback) or (address is not None and not _may_ask(address, loopback)):
        raise InvalidCommand(field, "must name a host in the public internet")


def is_public(address: IpAddress) -> bool:
    """Say whether an address is of the public internet, and no other address in disguise."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _FORBIDDEN_V4)
    if address.scope_id is not None:
        return False
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return address in _GLOBAL_V6 and not any(address in network for network in _FORBIDDEN_V6)


def _may_ask(address: IpAddress, loopback: bool) -> bool:
    return is_public(address) or (loopback and _is_loopback(address))


def _is_loopback(address: IpAddress | None) -> bool:
    # Not the mapped form of it: what is allowed is what was written, in its plain form.
    return address is not None and address.is_loopback and not getattr(address, "ipv4_mapped", None)


def _literal(host: str) -> IpAddress | None:
    """Return the address that a URL's host is, None where it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_tls(error: BaseException) -> bool:
    """Say whether a connection failed because the two could not agree on, or trust, TLS."""
    seen: BaseException | None = error
    for _ in range(4):
        if isinstance(seen, ssl.SSLError):
            return True
        seen = None if seen is None else seen.__cause__ or seen.__context__
    return False


class SystemResolver:
    """Asks the system's resolver, in threads of its own.

    A name server that does not answer holds a thread for longer than anyone waits for it, so those
    of the event loop, which are few, must not be the ones.
    """

    def __init__(self) -> None:
        """Start no thread yet."""
        self._threads = ThreadPoolExecutor(MAX_RESOLVING, thread_name_prefix="resolver")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """Return the addresses of a name. Raises OSError."""
        loop = asyncio.get_running_loop()
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await loop.run_in_executor(self._threads, ask)
        return [str(place[4][0]) for place in found]

    def close(self) -> None:
        """Wait for nobody: what still hangs ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class _CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, in place of the name that it is given."""

    def __init__(self, find: Resolve, *, loopback: bool) -> None:
        self._find = find
        self._loopback = loopback
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve, check every address, and connect to the first that answers."""
        fault: Exception = _Unresolved()
        for address in await self._addresses(host, port):
            try:
                return await self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                fault = error
        raise fault

    async def _addresses(self, host: str, port: int) -> list[str]:
        literal = _literal(host)
        try:
            found = [host] if literal is not None else await self._find(host, port)
        except (OSError, UnicodeError) as error:
            raise _Unresolved from error
        texts = list(dict.fromkeys(found))
        if len(texts) > MAX_ADDRESSES:
            raise _Forbidden
        for text in texts:
            address = _literal(text)
            if address is None or not _may_ask(address, self._loopback):
                raise _Forbidden
        return texts

    async def sleep(self, seconds: float) -> None:
        """Wait, between attempts that are never made: retries are off."""
        await asyncio.sleep(seconds)


class Egress:
    """Sends requests to where callers want them; `close` ends the connections that are kept."""

    def __init__(
        self,
        *,
        loopback: bool = False,
        find: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
        attempt_seconds: float = ATTEMPT_SECONDS,
    ) -> None:
        """With `loopback` this machine may be asked too; `find` resolves in the system's place."""
        self._resolver = SystemResolver()
        self._attempt_seconds = attempt_seconds
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or ssl.create_default_context(),
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=KEPT_CONNECTIONS,
            keepalive_expiry=KEPT_SECONDS,
            http1=True,
            http2=False,
            retries=0,
            network_backend=_CheckedBackend(find or self._resolver, loopback=loopback),
        )

    async def post(self, url: str, body: bytes, headers: Sequence[tuple[str, str]]) -> Reply:
        """Send a body and return the answer's status. Raises NoAnswer."""
        try:
            async with asyncio.timeout(self._attempt_seconds):
                return await self._post(url, body, headers)
        except _Unresolved as error:
            raise NoAnswer(Failure.UNRESOLVED) from error
        except _Forbidden as error:
            raise NoAnswer(Failure.FORBIDDEN_ADDRESS) from error
        except (TimeoutError, httpcore.TimeoutException) as error:
            raise NoAnswer(Failure.TIMEOUT) from error
        except httpcore.ConnectError as error:
            raise NoAnswer(Failure.TLS if _is_tls(error) else Failure.UNREACHABLE) from error
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.UnsupportedProtocol,
            OSError,
        ) as error:
            raise NoAnswer(Failure.BROKEN) from error

    async def _post(self, url: str, body: bytes, headers: Sequence[tuple[str, str]]) -> Reply:
        async with self._pool.stream(
            "POST",
            url,
            headers=[("host", urlsplit(url).netloc), *headers],
            content=body,
            extensions={"timeout": {"connect": CONNECT_SECONDS}},
        ) as answer:
            read = 0
            # Read a little, so that the connection can be used again; what has more is cut off.
            async for chunk in answer.aiter_stream():
                read += len(chunk)
                if read > MAX_ANSWER_BYTES:
                    break
            fields = {name.lower(): value for name, value in answer.headers}
            return Reply(answer.status, fields.get(b"retry-after", b"")[:64].decode("latin-1"))

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()
        self._resolver.close()
