"""Replaying real sales against a running service, with an account at the end that must balance.

Opening stock is received for every (store, SKU) of the file; each basket is reserved as one cart
and then committed, released or left to expire; once every abandoned hold has expired the stock is
read back and compared with what this client saw, row by row.
"""

import asyncio
import math
import random
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from fractions import Fraction
from typing import Final, TypeVar

import msgspec

from engine.limits import MAX_BATCH_MOVEMENTS, MAX_PAGE, MAX_QUANTITY
from engine.model import MovementType
from holdfast import calls
from holdfast.calls import Call, NewMovement, Reservation, Stock
from holdfast.client import ApiError, AsyncClient, RetryPolicy
from holdfast.sales_file import Cart, Sales

COMMIT_TTL_SECONDS: Final = 900
"""The TTL of carts that are committed or released: long enough never to expire before that."""

MAX_BATCHES_AT_ONCE: Final = 4
"""Batches of opening stock under way at once."""

MAX_LISTINGS_AT_ONCE: Final = 8
"""Locations whose stock is read back at once."""

EXPIRY_GRACE_SECONDS: Final = 15.0
"""How long after its TTL a hold may still be there before the account calls it stuck; the sweeper
takes well under a second, a loaded machine longer."""

EXPIRY_CHECK_SECONDS: Final = 0.25
"""Between two looks at the locations that still hold units."""

Item = TypeVar("Item")
Place = tuple[str, str]
"""A (store, SKU): one row."""


class Fate(StrEnum):
    """What becomes of a cart that was reserved."""

    COMMIT = "commit"
    RELEASE = "release"
    ABANDON = "abandon"


class ReplaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """How to replay.

    `stock_factor` scales the opening stock (1 is just what was sold), `commit` and `release` are
    shares of the carts and the rest is abandoned for `ttl_seconds`, `speed` is a multiple of real
    time (0 is as fast as possible), `concurrency` counts carts under way at once.
    """

    merchant: str
    run_id: str
    seed: int = 1
    stock_factor: float = 1.0
    commit: float = 0.9
    release: float = 0.07
    ttl_seconds: int = 5
    speed: float = 0.0
    concurrency: int = 32


class MerchantInUse(Exception):
    """The merchant has stock already, so the account could not tell whose units are whose."""

    def __init__(self, merchant: str) -> None:
        """Keep the merchant."""
        self.merchant = merchant
        super().__init__(f"merchant {merchant!r} has stock already; a replay needs one of its own")


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """How long calls took as their caller saw it, retries included."""

    calls: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the closing account: what was wanted, what was found."""

    name: str
    wanted: int
    found: int

    @property
    def holds(self) -> bool:
        """Whether the two agree."""
        return self.wanted == self.found


class ReplayReport(msgspec.Struct, kw_only=True):
    """The whole of a replay: what the file held, what became of the carts, and the account.

    `carts` is committed + released + expired + refused + failed; `failures` counts the failed ones
    by the code of the refusal; `oversold_units` is what was promised or sold beyond what had been
    received, the most over any row at any moment, summed over the rows.
    """

    settings: ReplaySettings
    lines: int
    zero_lines: int
    bulk_lines: int
    bulk_units: int
    bad_lines: int
    baskets: int
    split_baskets: int
    carts: int
    rows: int
    locations: int = 0
    committed_carts: int = 0
    released_carts: int = 0
    expired_carts: int = 0
    refused_carts: int = 0
    failed_carts: int = 0
    failures: dict[str, int] = {}
    received_units: int = 0
    committed_units: int = 0
    on_hand_units: int = 0
    reserved_units: int = 0
    oversold_units: int = 0
    drive_seconds: float = 0.0
    requests: int = 0
    requests_per_second: float = 0.0
    carts_per_second: float = 0.0
    behind_schedule_seconds: float = 0.0
    latency: dict[str, Latency] = {}
    account: list[Check] = []
    balanced: bool = False


class Phase(StrEnum):
    """What a replay is doing, for a progress bar."""

    RECEIVE = "receiving opening stock"
    DRIVE = "replaying carts"
    EXPIRE = "waiting for abandoned holds to expire"
    READ_BACK = "reading the stock back"


OnProgress = Callable[[Phase, int, int], None]


def percentile_ms(ordered_seconds: Sequence[float], share: float) -> float:
    """Return a percentile by nearest rank, in ms; `ordered_seconds` must rise and not be empty."""
    rank = max(1, math.ceil(share * len(ordered_seconds)))
    return round(ordered_seconds[rank - 1] * 1000, 3)


def opening_units(sold: int, factor: float) -> int:
    """Return the units to receive where `sold` units were sold, rounded up."""
    # str() gives the digits that the user typed, where 1.1 itself is a little more than 11/10.
    return math.ceil(sold * Fraction(str(factor)))


class _Shelf:
    """One row as this client knows it, in units; `peak` is the most ever promised and sold."""

    __slots__ = ("committed", "peak", "promised", "received")

    def __init__(self, received: int) -> None:
        self.received = received
        self.promised = 0
        self.committed = 0
        self.peak = 0

    def promise(self, units: int) -> None:
        self.promised += units
        self.peak = max(self.peak, self.promised + self.committed)

    @property
    def oversold(self) -> int:
        return max(0, self.peak - self.received)


class Replay:
    """One replay of one file."""

    def __init__(
        self,
        client: AsyncClient,
        sales: Sales,
        settings: ReplaySettings,
        *,
        on_progress: OnProgress = lambda _phase, _done, _total: None,
    ) -> None:
        """Prepare; `on_progress` is told the phase, how much is done, and of how much."""
        self._client = client
        self._sales = sales
        self._settings = settings
        self._on_progress = on_progress
        self._shelves = {
            place: _Shelf(opening_units(sold, settings.stock_factor))
            for place, sold in sales.units.items()
        }
        self._seconds: dict[str, array[float]] = {
            name: array("d") for name in ("reserve", "commit", "release")
        }
        self._failures: Counter[str] = Counter()
        self._done_carts = 0
        self._last_expiry = 0.0
        self.report = ReplayReport(
            settings=settings,
            lines=sales.lines,
            zero_lines=sales.zero_lines,
            bulk_lines=sales.bulk_lines,
            bulk_units=sales.bulk_units,
            bad_lines=sales.bad_lines,
            baskets=sales.baskets,
            split_baskets=sales.split_baskets,
            carts=len(sales.carts),
            rows=sum(shelf.received > 0 for shelf in self._shelves.values()),
        )

    async def run(self) -> ReplayReport:
        """Replay the file and balance the account.

        Raises MerchantInUse, and ClientError where the service stops answering or refuses what it
        must not refuse.
        """
        asked = calls.locations(self._settings.merchant, limit=1)
        # The client may have patience for an outage on the way, but not before the first answer.
        if (await self._client.send(asked, retry=RetryPolicy())).data:
            raise MerchantInUse(self._settings.merchant)
        await self._receive_opening_stock()
        await self._drive()
        rows = await self._read_back()
        await self._wait_for_expiry(rows)
        self._balance(rows)
        return self.report

    async def _receive_opening_stock(self) -> None:
        movements = list(self._opening_movements())
        batches = [
            movements[first : first + MAX_BATCH_MOVEMENTS]
            for first in range(0, len(movements), MAX_BATCH_MOVEMENTS)
        ]
        received = 0

        async def receive(batch: list[NewMovement]) -> None:
            nonlocal received
            result = await self._client.move_many(self._settings.merchant, batch)
            for verdict in result.data:
                if verdict.error is not None:
                    raise ApiError(verdict.error)
            received += len(batch)
            self._on_progress(Phase.RECEIVE, received, len(movements))

        await _for_each(batches, receive, at_once=MAX_BATCHES_AT_ONCE)

    def _opening_movements(self) -> Iterator[NewMovement]:
        for number, ((store, sku), shelf) in enumerate(self._shelves.items()):
            # One movement takes 10^9 units at most; a year of fuel at one store may be more.
            for part, first in enumerate(range(0, shelf.received, MAX_QUANTITY)):
                yield NewMovement(
                    id=f"{self._settings.run_id}:opening:{number}:{part}",
                    location=store,
                    type=MovementType.RECEIVE,
                    sku=sku,
                    quantity=min(MAX_QUANTITY, shelf.received - first),
                    reference=f"replay:{self._settings.run_id}",
                )

    def _fates(self) -> list[Fate]:
        """Draw what becomes of each cart beforehand, so that a seed means the same at any speed."""
        draw = random.Random(self._settings.seed)  # noqa: S311 - a repeatable draw is the point
        commit, release = self._settings.commit, self._settings.release
        fates = []
        for _ in self._sales.carts:
            drawn = draw.random()
            if drawn < commit:
                fates.append(Fate.COMMIT)
            else:
                fates.append(Fate.RELEASE if drawn < commit + release else Fate.ABANDON)
        return fates

    async def _drive(self) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        report = self.report

        async def shop(numbered: tuple[int, tuple[Cart, Fate]]) -> None:
            number, (cart, fate) = numbered
            if self._settings.speed > 0:
                due = started + cart.at_seconds / self._settings.speed
                await asyncio.sleep(max(0.0, due - loop.time()))
                late_seconds = loop.time() - due
                report.behind_schedule_seconds = max(report.behind_schedule_seconds, late_seconds)
            await self._serve(number, cart, fate)
            self._done_carts += 1
            self._on_progress(Phase.DRIVE, self._done_carts, report.carts)

        numbered = enumerate(zip(self._sales.carts, self._fates(), strict=True))
        await _for_each(numbered, shop, at_once=self._settings.concurrency)
        self.report.drive_seconds = loop.time() - started

    async def _serve(self, number: int, cart: Cart, fate: Fate) -> None:
        """Take one cart from its reservation to its end."""
        abandoned = fate is Fate.ABANDON
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        try:
            held = await self._timed(
                "reserve",
                calls.reserve(
                    self._settings.merchant,
                    cart.store,
                    cart.lines,
                    key=f"{self._settings.run_id}:cart:{number}",
                    ttl_seconds=self._settings.ttl_seconds if abandoned else COMMIT_TTL_SECONDS,
                ),
            )
        except ApiError as refusal:
            if refusal.code == "insufficient_stock":
                self.report.refused_carts += 1
            else:
                self._fail(refusal)
            return
        self._promise(held, +1)
        if abandoned:
            # The hold lives at least this long, because the service started it after it was asked.
            ends_at = asked_at + self._settings.ttl_seconds
            loop.call_at(ends_at, self._promise, held, -1)
            self._last_expiry = max(self._last_expiry, loop.time() + self._settings.ttl_seconds)
            self.report.expired_carts += 1
        elif fate is Fate.COMMIT:
            await self._commit(held)
        else:
            await self._release(held)

    async def _commit(self, held: Reservation) -> None:
        try:
            done = await self._timed("commit", calls.commit(self._settings.merchant, held.id))
        except ApiError as refusal:
            self._promise(held, -1)
            self._fail(refusal)
            return
        self._promise(held, -1)
        for line in done.lines:
            self._shelves[held.location, line.sku].committed += line.picked or 0
        self.report.committed_carts += 1

    async def _release(self, held: Reservation) -> None:
        # From now on the units may be given to somebody else.
        self._promise(held, -1)
        try:
            await self._timed("release", calls.release(self._settings.merchant, held.id))
        except ApiError as refusal:
            self._fail(refusal)
            return
        self.report.released_carts += 1

    async def _timed(self, name: str, call: Call[Reservation]) -> Reservation:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            return await self._client.send(call)
        finally:
            self._seconds[name].append(loop.time() - started)

    def _promise(self, held: Reservation, sign: int) -> None:
        for line in held.lines:
            self._shelves[held.location, line.sku].promise(sign * line.quantity)

    def _fail(self, refusal: ApiError) -> None:
        self.report.failed_carts += 1
        self._failures[refusal.code] += 1

    async def _read_back(self) -> dict[Place, Stock]:
        """List every row of the merchant."""
        merchant = self._settings.merchant
        locations = [name async for name in self._client.all_locations(merchant, limit=MAX_PAGE)]
        self.report.locations = len(locations)
        rows: dict[Place, Stock] = {}
        await self._list_into(rows, locations)
        return rows

    async def _list_into(self, rows: dict[Place, Stock], locations: Sequence[str]) -> None:
        done = 0

        async def read(location: str) -> None:
            nonlocal done
            stock = self._client.all_stock(self._settings.merchant, location, limit=MAX_PAGE)
            async for row in stock:
                rows[location, row.sku] = row
            done += 1
            self._on_progress(Phase.READ_BACK, done, len(locations))

        await _for_each(locations, read, at_once=MAX_LISTINGS_AT_ONCE)

    async def _wait_for_expiry(self, rows: dict[Place, Stock]) -> None:
        """Read again, until no row holds units or every hold is long past its TTL."""
        loop = asyncio.get_running_loop()
        give_up_at = max(self._last_expiry, loop.time()) + EXPIRY_GRACE_SECONDS
        while holding := sorted({place[0] for place, row in rows.items() if row.reserved}):
            left = sum(row.reserved > 0 for row in rows.values())
            self._on_progress(Phase.EXPIRE, len(rows) - left, len(rows))
            if loop.time() > give_up_at:
                return
            await asyncio.sleep(max(EXPIRY_CHECK_SECONDS, self._last_expiry - loop.time()))
            await self._list_into(rows, holding)

    def _balance(self, rows: dict[Place, Stock]) -> None:
        """Write the account: the totals, and the rows that each rule finds at fault."""
        report = self.report
        shelves = self._shelves
        stocked = {place: shelf for place, shelf in shelves.items() if shelf.received}
        report.received_units = sum(shelf.received for shelf in shelves.values())
        report.committed_units = sum(shelf.committed for shelf in shelves.values())
        report.oversold_units = sum(shelf.oversold for shelf in shelves.values())
        report.on_hand_units = sum(row.on_hand for row in rows.values())
        report.reserved_units = sum(row.reserved for row in rows.values())
        report.failures = dict(self._failures)
        ended = (
            report.committed_carts
            + report.released_carts
            + report.expired_carts
            + report.refused_carts
        )
        accounted = report.on_hand_units + report.committed_units
        differing = sum(
            place not in rows or rows[place].on_hand != shelf.received - shelf.committed
            for place, shelf in stocked.items()
        )
        negative = sum(
            min(row.on_hand, row.reserved, row.available) < 0 or row.shortfall + row.deficit > 0
            for row in rows.values()
        )
        report.account = [
            Check(name="units on hand + committed", wanted=report.received_units, found=accounted),
            Check(name="rows", wanted=len(stocked), found=len(rows)),
            Check(name="rows that differ from what the client saw", wanted=0, found=differing),
            Check(name="rows negative, short or in deficit", wanted=0, found=negative),
            Check(name="units still reserved", wanted=0, found=report.reserved_units),
            Check(name="units oversold", wanted=0, found=report.oversold_units),
            Check(name="carts that came to their end", wanted=report.carts, found=ended),
        ]
        report.balanced = all(check.holds for check in report.account)
        self._sum_up_times()

    def _sum_up_times(self) -> None:
        report = self.report
        report.requests = sum(len(seconds) for seconds in self._seconds.values())
        if report.drive_seconds > 0:
            report.requests_per_second = round(report.requests / report.drive_seconds, 1)
            report.carts_per_second = round(report.carts / report.drive_seconds, 1)
        report.drive_seconds = round(report.drive_seconds, 3)
        report.behind_schedule_seconds = round(report.behind_schedule_seconds, 3)
        for name, seconds in self._seconds.items():
            if not seconds:
                continue
            ordered = sorted(seconds)
            report.latency[name] = Latency(
                calls=len(ordered),
                p50_ms=percentile_ms(ordered, 0.50),
                p95_ms=percentile_ms(ordered, 0.95),
                p99_ms=percentile_ms(ordered, 0.99),
                max_ms=round(ordered[-1] * 1000, 3),
            )


async def _for_each(
    items: Iterable[Item], job: Callable[[Item], Awaitable[None]], *, at_once: int
) -> None:
    """Do a job for every item, `at_once` of them at a time; the first fault ends it all."""
    queue = iter(items)

    async def work() -> None:
        # Tasks of one loop share the iterator, so items are begun in their order.
        for item in queue:
            await job(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(work())
    except ExceptionGroup as faults:
        raise faults.exceptions[0] from faults
