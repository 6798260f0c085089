"""The product over HTTP: a really running service with one gateway worker and its own store."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from bench import servers
from bench.account import Books, check
from bench.figures import Conditions, Sample
from bench.load import MAX_REQUESTS, Load, closed_loop, open_loop
from bench.servers import Service
from bench.shop import MERCHANT, Cart, MakeShop, Shop
from engine.boot import DEFAULT_PARTITIONS

CONNECTIONS: Final = 64
"""In the closed loop: enough to keep one worker busy, few enough not to queue for long."""

BATCH_CONNECTIONS: Final = 16

OPEN_CONNECTIONS: Final = 256
"""In the open loop: so many that no request waits for a free one unless the service stalls."""

RESERVES_PER_SECOND: Final = 1_000
READS_PER_SECOND: Final = 1_000
"""What arrives in the open loop: about what a worker is planned for, well below what it can do."""

CREATED: Final = 201
OK: Final = 200


async def reserve(conditions: Conditions, make_shop: MakeShop) -> Sample:
    """Measure holding carts."""
    async with _serving(conditions, make_shop) as (service, books):
        load = await _reserve(conditions, service, books)
        await _check(service, books)
        return Sample.of_rate(load, connections=CONNECTIONS)


async def commit(conditions: Conditions, make_shop: MakeShop) -> Sample:
    """Measure ending holds that the same worker made: the units leave the shelf."""
    async with _serving(conditions, make_shop) as (service, books):
        load = await _end(conditions, service, books, "commit")
        books.commit(range(len(load.statuses)))
        await _check(service, books)
        return Sample.of_rate(load, connections=CONNECTIONS)


async def release(conditions: Conditions, make_shop: MakeShop) -> Sample:
    """Measure ending holds that the same worker made: the units go back."""
    async with _serving(conditions, make_shop) as (service, books):
        load = await _end(conditions, service, books, "release")
        books.release(range(len(load.statuses)))
        await _check(service, books)
        return Sample.of_rate(load, connections=CONNECTIONS)


async def read(conditions: Conditions, make_shop: MakeShop) -> Sample:
    """Measure reading one row a request."""
    async with _serving(conditions, make_shop) as (service, books):
        requests = row_requests(books.shop, service.api_key)
        load = await closed_loop(
            service.address, requests, connections=CONNECTIONS, window=conditions.window
        )
        await _check(service, books)
        return Sample.of_rate(load.demand(OK), connections=CONNECTIONS)


async def read_batch(conditions: Conditions, make_shop: MakeShop) -> Sample:
    """Measure asking for `shop.BATCH_ROWS` rows a request."""
    async with _serving(conditions, make_shop) as (service, books):
        requests = batch_requests(books.shop, service.api_key)
        load = await closed_loop(
            service.address, requests, connections=BATCH_CONNECTIONS, window=conditions.window
        )
        await _check(service, books)
        return Sample.of_rate(load.demand(OK), connections=BATCH_CONNECTIONS)


async def reserve_at_rate(conditions: Conditions, make_shop: MakeShop) -> Sample:
    """Measure how long reserves take that arrive at a fixed rate: the 95th percentile, in ms."""
    async with _serving(conditions, make_shop) as (service, books):
        load = await open_loop(
            service.address,
            ReserveRequests(books.shop, service.api_key),
            connections=OPEN_CONNECTIONS,
            rate_per_second=RESERVES_PER_SECOND,
            window=conditions.window,
        )
        books.hold(range(len(load.demand(CREATED).statuses)))
        await _check(service, books)
        return Sample.of_p95(load, due_per_second=RESERVES_PER_SECOND)


async def read_at_rate(conditions: Conditions, make_shop: MakeShop) -> Sample:
    """Measure how long reads take that arrive at a fixed rate: the 95th percentile, in ms."""
    async with _serving(conditions, make_shop) as (service, books):
        load = await open_loop(
            service.address,
            row_requests(books.shop, service.api_key),
            connections=OPEN_CONNECTIONS,
            rate_per_second=READS_PER_SECOND,
            window=conditions.window,
        )
        await _check(service, books)
        return Sample.of_p95(load.demand(OK), due_per_second=READS_PER_SECOND)


@asynccontextmanager
async def _serving(
    conditions: Conditions, make_shop: MakeShop
) -> AsyncIterator[tuple[Service, Books]]:
    shop = make_shop()
    async with servers.service(conditions, shop.rows) as service:
        yield service, Books(shop)


async def _reserve(conditions: Conditions, service: Service, books: Books) -> Load:
    """Hold one cart after the other, and book them."""
    load = await closed_loop(
        service.address,
        ReserveRequests(books.shop, service.api_key),
        connections=CONNECTIONS,
        window=conditions.window,
    )
    books.hold(range(len(load.demand(CREATED).statuses)))
    return load


async def _end(conditions: Conditions, service: Service, books: Books, verb: str) -> Load:
    """Hold carts for as long as a measurement lasts, then end them one after the other."""
    held = await _reserve(conditions, service, books)
    load = await closed_loop(
        service.address,
        ending_requests(books.shop, service.api_key, verb, len(held.statuses)),
        connections=CONNECTIONS,
        window=conditions.window,
    )
    return load.demand(OK)


async def _check(service: Service, books: Books) -> None:
    async with servers.inventory(service.store) as inventory:
        await check(inventory, books)


class Repeated:
    """Ready-made requests that are sent over and over."""

    def __init__(self, requests: Sequence[bytes], *, most: int = MAX_REQUESTS) -> None:
        """Take the bytes of each; `most` is how many are sent in all."""
        self._requests = requests
        self.most = most

    def __call__(self, number: int, /) -> bytes:
        """Return the bytes of one request."""
        return self._requests[number % len(self._requests)]


class ReserveRequests:
    """A reserve for each cart of a shop in turn, each under an idempotency key of its own."""

    def __init__(self, shop: Shop, api_key: str, *headers: str, merchant: str = MERCHANT) -> None:
        """Make all bytes but the keys ready; `headers` are sent with each request."""
        self._key = shop.key
        self._parts = [_around_the_key(merchant, cart, api_key, headers) for cart in shop.carts]
        self.most = MAX_REQUESTS

    def __call__(self, number: int, /) -> bytes:
        """Return the bytes of one request."""
        before, after = self._parts[number % len(self._parts)]
        return before + self._key(number).encode() + after


def row_requests(shop: Shop, api_key: str) -> Repeated:
    """Read the row of each cart's first line in turn."""
    return Repeated(
        [
            request("GET", f"/v1/merchants/{MERCHANT}/locations/{location}/stock/{sku}", api_key)
            for location, sku in shop.rows_by_cart()
        ]
    )


def batch_requests(shop: Shop, api_key: str) -> Repeated:
    """Ask for the availability of many rows at once."""
    return Repeated(
        [
            request(
                "POST",
                f"/v1/merchants/{MERCHANT}/availability",
                api_key,
                msgspec.json.encode(
                    {"rows": [{"location": location, "sku": sku} for location, sku in rows]}
                ),
            )
            for rows in shop.batches()
        ]
    )


def ending_requests(shop: Shop, api_key: str, verb: str, count: int) -> Repeated:
    """Commit or release the reservations that requests 0 to `count` - 1 made."""
    return Repeated(
        [
            request(
                "POST",
                f"/v1/merchants/{MERCHANT}/reservations/"
                f"{shop.reservation(number, DEFAULT_PARTITIONS)}/{verb}",
                api_key,
            )
            for number in range(count)
        ],
        most=count,
    )


def request(method: str, path: str, api_key: str, body: bytes = b"", *headers: str) -> bytes:
    """Return the bytes of an HTTP/1.1 request."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: Bearer {api_key}",
        *headers,
    ]
    if body:
        lines.append("Content-Type: application/json")
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


_KEY_GOES_HERE: Final = "{key}"


def _around_the_key(
    merchant: str, cart: Cart, api_key: str, headers: Sequence[str]
) -> tuple[bytes, bytes]:
    """Return the bytes of a cart's reserve before and after its idempotency key."""
    body = msgspec.json.encode(
        {"lines": [{"sku": line.sku, "quantity": line.quantity} for line in cart.lines]}
    )
    whole = request(
        "POST",
        f"/v1/merchants/{merchant}/locations/{cart.location}/reservations",
        api_key,
        body,
        f"Idempotency-Key: {_KEY_GOES_HERE}",
        *headers,
    )
    before, _, after = whole.partition(_KEY_GOES_HERE.encode())
    return before, after
