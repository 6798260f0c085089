"""The Python client of the HTTP API: `Client` for threads, `AsyncClient` for asyncio.

    with Client("http://127.0.0.1:8080", api_key="hfk_...") as client:
        held = client.reserve("acme", "leeds", [Line("mug-blue", 2)])
        client.commit("acme", held.id)

A call whose answer was lost is sent again, with the same idempotency key, so it is applied once. A
refusal is raised as `ApiError`, a service that cannot be reached as `ServiceUnreachable`.
"""

import asyncio
import ipaddress
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import httpx
import msgspec

from holdfast import __version__, calls
from holdfast.calls import (
    Availabilities,
    BatchResult,
    Call,
    Line,
    Location,
    Movement,
    NewMovement,
    Page,
    Problem,
    RelocatedReservation,
    Reservation,
    Split,
    Stock,
    Terms,
    Wish,
)
from holdfast.carriers import Carrier, DirectCarrier, HttpxCarrier, Reply, http_request

Answer = TypeVar("Answer")

RETRIED_STATUSES: Final = frozenset({429, 502, 503, 504})
"""Answers that may differ a moment later: over a quota, overloaded, the store or a proxy away."""

MAX_PAGES: Final = 1_000_000
"""Pages that one listing follows before it is taken for endless."""

CONNECT_TIMEOUT_SECONDS: Final = 3.0
ANSWER_TIMEOUT_SECONDS: Final = 30.0
"""A batch of 1,000 movements is answered in well under a second; the rest is a loaded machine."""


class ClientError(Exception):
    """The base of what a call may raise."""


class ApiError(ClientError):
    """The service refused the call, and says why in `problem`."""

    def __init__(self, problem: Problem) -> None:
        """Keep the problem; `code` and `status` are its most used fields."""
        self.problem = problem
        self.code = problem.code
        self.status = problem.status
        self.errors = problem.errors
        super().__init__(problem.detail or problem.title or problem.code)


class ServiceUnreachable(ClientError):
    """No answer could be had from `url`, after `attempts` attempts: `reason` is the last fault.

    The call may have been applied: to know, send it again with the same idempotency key.
    """

    def __init__(self, url: str, *, reason: str, attempts: int) -> None:
        """Keep where, why and how often."""
        self.url = url
        self.reason = reason
        self.attempts = attempts
        super().__init__(f"no answer from {url}: {reason} ({attempts} attempts)")


class UnexpectedAnswer(ClientError):
    """What answers at `url` does not speak the Holdfast API."""

    def __init__(self, url: str, *, status: int, reason: str) -> None:
        """Keep where, the HTTP status and what was wrong with the answer."""
        self.url = url
        self.status = status
        self.reason = reason
        super().__init__(f"{url} answered {status}, but not as Holdfast does: {reason}")


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how long to try: waits double from `first_wait_seconds`, with jitter.

    A `Retry-After` of the service is waited for as long as it is at most `max_wait_seconds`;
    beyond that the refusal is raised at once, for the caller to decide.
    """

    max_attempts: int = 5
    first_wait_seconds: float = 0.1
    max_wait_seconds: float = 5.0

    def wait_seconds(self, attempt: int, retry_after_seconds: float | None) -> float | None:
        """Return how long to wait after attempt 1, 2, ..., or None to give up.

        The jitter spreads callers that failed together over half of the wait.
        """
        if attempt >= self.max_attempts:
            return None
        asked = retry_after_seconds or 0.0
        if asked > self.max_wait_seconds:
            return None
        backoff: float = min(self.max_wait_seconds, self.first_wait_seconds * 2 ** (attempt - 1))
        return max(asked, backoff * random.uniform(0.5, 1.0))  # noqa: S311 - no secret in a wait


def new_key() -> str:
    """Make an idempotency key that nobody has used."""
    return uuid.uuid4().hex


def retry_after_seconds(text: str) -> float | None:
    """Read a `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3); None for neither."""
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        until = parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None
    return max(0.0, until - time.time())


def is_loopback(url: httpx.URL) -> bool:
    """Tell whether a URL names this machine."""
    if url.host == "localhost":
        return True
    try:
        return ipaddress.ip_address(url.host).is_loopback
    except ValueError:
        return False


def _wait_seconds(policy: RetryPolicy, reply: Reply, attempt: int) -> float | None:
    """Return how long to wait before asking again, or None where the reply stands."""
    if reply.status not in RETRIED_STATUSES:
        return None
    return policy.wait_seconds(attempt, retry_after_seconds(reply.retry_after))


class _Connection:
    """What the two clients have in common: address, headers, and the meaning of an answer."""

    def __init__(self, url: str, api_key: str, retry: RetryPolicy) -> None:
        try:
            address = httpx.URL(url.rstrip("/"))
        except httpx.InvalidURL as fault:
            message = f"{url!r} is no URL: {fault}"
            raise ValueError(message) from fault
        if address.scheme not in ("http", "https") or not address.host:
            message = f"{url!r} is no http:// or https:// URL"
            raise ValueError(message)
        if not (api_key.isascii() and api_key.isprintable()):
            message = "the API key holds characters that no key has"
            raise ValueError(message)
        self.url = str(address)
        self.retry = retry
        self.headers = {"User-Agent": f"holdfast/{__version__}", "Accept": "application/json"}
        if api_key:
            self.headers["Authorization"] = f"Bearer {api_key}"
        self.options: dict[str, Any] = {
            "headers": self.headers,
            "timeout": httpx.Timeout(ANSWER_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
            # A proxy that the environment names is not asked for the way to this machine.
            "trust_env": not is_loopback(address),
        }

    def unreachable(self, fault: httpx.TransportError, attempts: int) -> ServiceUnreachable:
        reason = str(fault) or type(fault).__name__
        return ServiceUnreachable(self.url, reason=reason, attempts=attempts)

    def answer(self, call: Call[Answer], reply: Reply) -> Answer:
        if httpx.codes.is_success(reply.status):
            try:
                return call.decode(reply.content, replayed=reply.replayed)
            except msgspec.MsgspecError as fault:
                raise UnexpectedAnswer(self.url, status=reply.status, reason=str(fault)) from fault
        problem = calls.decode_problem(reply.content)
        if problem is None:
            reason = "its answer is no problem document"
            raise UnexpectedAnswer(self.url, status=reply.status, reason=reason)
        raise ApiError(problem)


class Client:
    """A client for synchronous code; threads may share it. Close it, or use it in a `with`."""

    def __init__(
        self,
        url: str,
        api_key: str = "",
        *,
        retry: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Address a service; nothing is sent yet.

        Args:
            url: Where the service answers, `http://` or `https://`.
            api_key: The secret of an API key, `hfk_...`.
            retry: How often and how long to try, unless the default will do.
            transport: What carries the requests, for tests.

        Raises:
            ValueError: The URL or the key is none.
        """
        self._connection = _Connection(url, api_key, retry or RetryPolicy())
        self._http = httpx.Client(transport=transport, **self._connection.options)

    @property
    def url(self) -> str:
        """Where the service answers."""
        return self._connection.url

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        """Use the client for the time of a block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self.close()

    def send(self, call: Call[Answer], *, retry: RetryPolicy | None = None) -> Answer:
        """Send a call, again where its answer was lost, and return its answer.

        `retry` is for this call alone, where the client's own will not do.

        Raises:
            ApiError: The service refused it.
            ServiceUnreachable: No answer could be had.
            UnexpectedAnswer: What answered is not Holdfast.
        """
        policy = retry or self._connection.retry
        attempt = 0
        while True:
            attempt += 1
            try:
                request = http_request(self._http, self._connection.url, call)
                reply = Reply.of(self._http.send(request))
            except httpx.TransportError as fault:
                wait = policy.wait_seconds(attempt, None)
                if wait is None:
                    raise self._connection.unreachable(fault, attempt) from fault
            else:
                wait = _wait_seconds(policy, reply, attempt)
                if wait is None:
                    return self._connection.answer(call, reply)
            time.sleep(wait)
            call = call.again()

    def locations(
        self, merchant: str, *, limit: int | None = None, cursor: str | None = None
    ) -> Page[Location]:
        """List the locations that have rows."""
        return self.send(calls.locations(merchant, limit=limit, cursor=cursor))

    def all_locations(self, merchant: str, *, limit: int | None = None) -> Iterator[str]:
        """Iterate over every location, `limit` a page."""
        cursor = None
        for _ in range(MAX_PAGES):
            page = self.locations(merchant, limit=limit, cursor=cursor)
            yield from (item.location for item in page.data)
            cursor = page.next_cursor
            if cursor is None:
                return

    def stock(self, merchant: str, location: str, sku: str, *, strong: bool = False) -> Stock:
        """Read one row."""
        return self.send(calls.stock(merchant, location, sku, strong=strong))

    def stock_page(
        self, merchant: str, location: str, *, limit: int | None = None, cursor: str | None = None
    ) -> Page[Stock]:
        """List rows of a location, in the byte order of their SKUs."""
        return self.send(calls.stock_page(merchant, location, limit=limit, cursor=cursor))

    def all_stock(
        self, merchant: str, location: str, *, limit: int | None = None
    ) -> Iterator[Stock]:
        """Iterate over every row of a location, `limit` a page."""
        cursor = None
        for _ in range(MAX_PAGES):
            page = self.stock_page(merchant, location, limit=limit, cursor=cursor)
            yield from page.data
            cursor = page.next_cursor
            if cursor is None:
                return

    def configure(
        self,
        merchant: str,
        location: str,
        sku: str,
        *,
        safety_stock: int | None = None,
        low_stock_threshold: int | None = None,
        expected_version: int,
        key: str | None = None,
    ) -> Stock:
        """Change settings; `expected_version` is the row's, `calls.NEW_ROW` for none."""
        return self.send(
            calls.configure(
                merchant,
                location,
                sku,
                safety_stock=safety_stock,
                low_stock_threshold=low_stock_threshold,
                expected_version=expected_version,
                key=key or new_key(),
            )
        )

    def split(self, merchant: str, location: str, sku: str, *, parts: int | None = None) -> Split:
        """Spread a row over `parts` partitions (1: no longer), or with None ask how it is."""
        return self.send(calls.split(merchant, location, sku, parts=parts))

    def set_terms(
        self,
        merchant: str,
        location: str,
        sku: str,
        terms: Terms,
        *,
        expected_version: int,
        key: str | None = None,
    ) -> Stock:
        """Set a row's terms; what `terms` does not name ends. `expected_version` as above."""
        return self.send(
            calls.set_terms(
                merchant,
                location,
                sku,
                terms,
                expected_version=expected_version,
                key=key or new_key(),
            )
        )

    def terms(self, merchant: str, location: str, sku: str) -> Terms:
        """Read on what terms a row's units are promised."""
        return self.send(calls.terms(merchant, location, sku))

    def availability(self, merchant: str, rows: Sequence[tuple[str, str]]) -> Availabilities:
        """Ask for up to 500 rows, each a (location, SKU)."""
        return self.send(calls.availability(merchant, rows))

    def move(self, merchant: str, movement: NewMovement) -> Movement:
        """Book one movement."""
        return self.send(calls.move(merchant, movement))

    def move_many(self, merchant: str, movements: Sequence[NewMovement]) -> BatchResult:
        """Book up to 1,000 movements, each of which stands alone."""
        return self.send(calls.move_many(merchant, movements))

    def reserve(
        self,
        merchant: str,
        location: str,
        lines: Sequence[Line | Wish],
        *,
        key: str | None = None,
        ttl_seconds: int | None = None,
        order_ref: str = "",
        partial: bool = False,
        stock_only: bool = False,
        channel: str = "",
        buyer: str = "",
        by: str = "",
        new: bool = False,
    ) -> Reservation:
        """Hold units of up to 200 lines, all or (unless `partial`) nothing.

        `new` says that nobody has sent `key` before, as is known of one that is made here.
        """
        return self.send(
            calls.reserve(
                merchant,
                location,
                lines,
                key=key or new_key(),
                ttl_seconds=ttl_seconds,
                order_ref=order_ref,
                partial=partial,
                stock_only=stock_only,
                channel=channel,
                buyer=buyer,
                by=by,
                new=new or key is None,
            )
        )

    def reservation(self, merchant: str, reservation_id: str) -> Reservation:
        """Read one reservation; an ended one is kept for 24 hours."""
        return self.send(calls.reservation(merchant, reservation_id))

    def open_reservations(
        self, merchant: str, location: str, *, limit: int | None = None, cursor: str | None = None
    ) -> Page[Reservation]:
        """List held and confirmed reservations of a location, oldest first."""
        return self.send(calls.open_reservations(merchant, location, limit=limit, cursor=cursor))

    def confirm(self, merchant: str, reservation_id: str, *, order_ref: str = "") -> Reservation:
        """Keep the units for a placed order: the TTL ends."""
        return self.send(calls.confirm(merchant, reservation_id, order_ref=order_ref))

    def extend(
        self, merchant: str, reservation_id: str, *, ttl_seconds: int, key: str | None = None
    ) -> Reservation:
        """Let a hold live for `ttl_seconds` from now."""
        return self.send(
            calls.extend(merchant, reservation_id, ttl_seconds=ttl_seconds, key=key or new_key())
        )

    def amend(
        self,
        merchant: str,
        reservation_id: str,
        lines: Sequence[Line | Wish],
        *,
        key: str | None = None,
        stock_only: bool = False,
        channel: str = "",
        buyer: str = "",
    ) -> Reservation:
        """Hold so many units of each SKU named from now on; 0 drops its line, others stay.

        `channel` and `buyer` are for a reservation that has none yet, as in `reserve`.
        """
        return self.send(
            calls.amend(
                merchant,
                reservation_id,
                lines,
                key=key or new_key(),
                stock_only=stock_only,
                channel=channel,
                buyer=buyer,
            )
        )

    def relocate(
        self, merchant: str, reservation_id: str, location: str, *, key: str | None = None
    ) -> RelocatedReservation:
        """Hold the same at another location, and there only; the answer is a new reservation."""
        return self.send(calls.relocate(merchant, reservation_id, location, key=key or new_key()))

    def commit(
        self, merchant: str, reservation_id: str, *, picks: Sequence[Line] = ()
    ) -> Reservation:
        """Let the units leave the shelf: all of them, or the `picks` (lines not named are 0)."""
        return self.send(calls.commit(merchant, reservation_id, picks=picks))

    def accept(
        self, merchant: str, reservation_id: str, *, skus: Sequence[str] = ()
    ) -> Reservation:
        """Accept that others stand for `skus`, without any for all that is proposed."""
        return self.send(calls.accept(merchant, reservation_id, skus=skus))

    def decline(
        self, merchant: str, reservation_id: str, *, skus: Sequence[str] = ()
    ) -> Reservation:
        """Decline it: the substitutes go back to the shelf."""
        return self.send(calls.decline(merchant, reservation_id, skus=skus))

    def release(self, merchant: str, reservation_id: str, *, reason: str = "") -> Reservation:
        """Give the units back."""
        return self.send(calls.release(merchant, reservation_id, reason=reason))


class AsyncClient:
    """A client for asyncio; tasks share it. Close it, or use it in an `async with`."""

    def __init__(
        self,
        url: str,
        api_key: str = "",
        *,
        retry: RetryPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        direct: bool = False,
    ) -> None:
        """Address a service; nothing is sent yet.

        Args:
            url: Where the service answers, `http://` or `https://`.
            api_key: The secret of an API key, `hfk_...`.
            retry: How often and how long to try, unless the default will do.
            transport: What httpx sends with, for tests.
            direct: Take connections of our own instead of httpx: for thousands of calls a second,
                without proxies (see `holdfast.carriers`).

        Raises:
            ValueError: The URL or the key is none.
        """
        self._connection = _Connection(url, api_key, retry or RetryPolicy())
        self._carrier: Carrier
        if direct:
            self._carrier = DirectCarrier(
                self._connection.url,
                self._connection.headers,
                connect_seconds=CONNECT_TIMEOUT_SECONDS,
                answer_seconds=ANSWER_TIMEOUT_SECONDS,
            )
        else:
            self._carrier = HttpxCarrier(
                self._connection.url, self._connection.options, transport=transport
            )

    @property
    def url(self) -> str:
        """Where the service answers."""
        return self._connection.url

    async def close(self) -> None:
        """Close the connections."""
        await self._carrier.close()

    async def __aenter__(self) -> Self:
        """Use the client for the time of a block."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self.close()

    async def send(self, call: Call[Answer], *, retry: RetryPolicy | None = None) -> Answer:
        """Send a call, again where its answer was lost, and return its answer.

        `retry` is for this call alone, where the client's own will not do.

        Raises:
            ApiError: The service refused it.
            ServiceUnreachable: No answer could be had.
            UnexpectedAnswer: What answered is not Holdfast.
        """
        policy = retry or self._connection.retry
        attempt = 0
        while True:
            attempt += 1
            try:
                reply = await self._carrier.carry(call)
            except httpx.TransportError as fault:
                wait = policy.wait_seconds(attempt, None)
                if wait is None:
                    raise self._connection.unreachable(fault, attempt) from fault
            else:
                wait = _wait_seconds(policy, reply, attempt)
                if wait is None:
                    return self._connection.answer(call, reply)
            await asyncio.sleep(wait)
            call = call.again()

    async def locations(
        self, merchant: str, *, limit: int | None = None, cursor: str | None = None
    ) -> Page[Location]:
        """List the locations that have rows."""
        return await self.send(calls.locations(merchant, limit=limit, cursor=cursor))

    async def all_locations(self, merchant: str, *, limit: int | None = None) -> AsyncIterator[str]:
        """Iterate over every location, `limit` a page."""
        cursor = None
        for _ in range(MAX_PAGES):
            page = await self.locations(merchant, limit=limit, cursor=cursor)
            for item in page.data:
                yield item.location
            cursor = page.next_cursor
            if cursor is None:
                return

    async def stock(self, merchant: str, location: str, sku: str, *, strong: bool = False) -> Stock:
        """Read one row."""
        return await self.send(calls.stock(merchant, location, sku, strong=strong))

    async def stock_page(
        self, merchant: str, location: str, *, limit: int | None = None, cursor: str | None = None
    ) -> Page[Stock]:
        """List rows of a location, in the byte order of their SKUs."""
        return await self.send(calls.stock_page(merchant, location, limit=limit, cursor=cursor))

    async def all_stock(
        self, merchant: str, location: str, *, limit: int | None = None
    ) -> AsyncIterator[Stock]:
        """Iterate over every row of a location, `limit` a page."""
        cursor = None
        for _ in range(MAX_PAGES):
            page = await self.stock_page(merchant, location, limit=limit, cursor=cursor)
            for row in page.data:
                yield row
            cursor = page.next_cursor
            if cursor is None:
                return

    async def configure(
        self,
        merchant: str,
        location: str,
        sku: str,
        *,
        safety_stock: int | None = None,
        low_stock_threshold: int | None = None,
        expected_version: int,
        key: str | None = None,
    ) -> Stock:
        """Change settings; `expected_version` is the row's, `calls.NEW_ROW` for none."""
        return await self.send(
            calls.configure(
                merchant,
                location,
                sku,
                safety_stock=safety_stock,
                low_stock_threshold=low_stock_threshold,
                expected_version=expected_version,
                key=key or new_key(),
            )
        )

    async def split(
        self, merchant: str, location: str, sku: str, *, parts: int | None = None
    ) -> Split:
        """Spread a row over `parts` partitions (1: no longer), or with None ask how it is."""
        return await self.send(calls.split(merchant, location, sku, parts=parts))

    async def set_terms(
        self,
        merchant: str,
        location: str,
        sku: str,
        terms: Terms,
        *,
        expected_version: int,
        key: str | None = None,
    ) -> Stock:
        """Set a row's terms; what `terms` does not name ends. `expected_version` as above."""
        return await self.send(
            calls.set_terms(
                merchant,
                location,
                sku,
                terms,
                expected_version=expected_version,
                key=key or new_key(),
            )
        )

    async def terms(self, merchant: str, location: str, sku: str) -> Terms:
        """Read on what terms a row's units are promised."""
        return await self.send(calls.terms(merchant, location, sku))

    async def availability(self, merchant: str, rows: Sequence[tuple[str, str]]) -> Availabilities:
        """Ask for up to 500 rows, each a (location, SKU)."""
        return await self.send(calls.availability(merchant, rows))

    async def move(self, merchant: str, movement: NewMovement) -> Movement:
        """Book one movement."""
        return await self.send(calls.move(merchant, movement))

    async def move_many(self, merchant: str, movements: Sequence[NewMovement]) -> BatchResult:
        """Book up to 1,000 movements, each of which stands alone."""
        return await self.send(calls.move_many(merchant, movements))

    async def reserve(
        self,
        merchant: str,
        location: str,
        lines: Sequence[Line | Wish],
        *,
        key: str | None = None,
        ttl_seconds: int | None = None,
        order_ref: str = "",
        partial: bool = False,
        stock_only: bool = False,
        channel: str = "",
        buyer: str = "",
        by: str = "",
        new: bool = False,
    ) -> Reservation:
        """Hold units of up to 200 lines, all or (unless `partial`) nothing.

        `new` says that nobody has sent `key` before, as is known of one that is made here.
        """
        return await self.send(
            calls.reserve(
                merchant,
                location,
                lines,
                key=key or new_key(),
                ttl_seconds=ttl_seconds,
                order_ref=order_ref,
                partial=partial,
                stock_only=stock_only,
                channel=channel,
                buyer=buyer,
                by=by,
                new=new or key is None,
            )
        )

    async def reservation(self, merchant: str, reservation_id: str) -> Reservation:
        """Read one reservation; an ended one is kept for 24 hours."""
        return await self.send(calls.reservation(merchant, reservation_id))

    async def open_reservations(
        self, merchant: str, location: str, *, limit: int | None = None, cursor: str | None = None
    ) -> Page[Reservation]:
        """List held and confirmed reservations of a location, oldest first."""
        return await self.send(
            calls.open_reservations(merchant, location, limit=limit, cursor=cursor)
        )

    async def confirm(
        self, merchant: str, reservation_id: str, *, order_ref: str = ""
    ) -> Reservation:
        """Keep the units for a placed order: the TTL ends."""
        return await self.send(calls.confirm(merchant, reservation_id, order_ref=order_ref))

    async def extend(
        self, merchant: str, reservation_id: str, *, ttl_seconds: int, key: str | None = None
    ) -> Reservation:
        """Let a hold live for `ttl_seconds` from now."""
        return await self.send(
            calls.extend(merchant, reservation_id, ttl_seconds=ttl_seconds, key=key or new_key())
        )

    async def amend(
        self,
        merchant: str,
        reservation_id: str,
        lines: Sequence[Line | Wish],
        *,
        key: str | None = None,
        stock_only: bool = False,
        channel: str = "",
        buyer: str = "",
    ) -> Reservation:
        """Hold so many units of each SKU named from now on; 0 drops its line, others stay.

        `channel` and `buyer` are for a reservation that has none yet, as in `reserve`.
        """
        return await self.send(
            calls.amend(
                merchant,
                reservation_id,
                lines,
                key=key or new_key(),
                stock_only=stock_only,
                channel=channel,
                buyer=buyer,
            )
        )

    async def relocate(
        self, merchant: str, reservation_id: str, location: str, *, key: str | None = None
    ) -> RelocatedReservation:
        """Hold the same at another location, and there only; the answer is a new reservation."""
        return await self.send(
            calls.relocate(merchant, reservation_id, location, key=key or new_key())
        )

    async def commit(
        self, merchant: str, reservation_id: str, *, picks: Sequence[Line] = ()
    ) -> Reservation:
        """Let the units leave the shelf: all of them, or the `picks` (lines not named are 0)."""
        return await self.send(calls.commit(merchant, reservation_id, picks=picks))

    async def accept(
        self, merchant: str, reservation_id: str, *, skus: Sequence[str] = ()
    ) -> Reservation:
        """Accept that others stand for `skus`, without any for all that is proposed."""
        return await self.send(calls.accept(merchant, reservation_id, skus=skus))

    async def decline(
        self, merchant: str, reservation_id: str, *, skus: Sequence[str] = ()
    ) -> Reservation:
        """Decline it: the substitutes go back to the shelf."""
        return await self.send(calls.decline(merchant, reservation_id, skus=skus))

    async def release(self, merchant: str, reservation_id: str, *, reason: str = "") -> Reservation:
        """Give the units back."""
        return await self.send(calls.release(merchant, reservation_id, reason=reason))
