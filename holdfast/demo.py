"""A sample shop with live shoppers, tills and deliveries, against a running service.

Shoppers arrive by chance (a Poisson process) as often as the hour has them, reserve a cart, think,
and then order, walk away or forget it. Tills sell over the counter and tell of it as a till does,
through feeds with heartbeats and numbered events; one store's line drops for a while every day,
what it has probably sold is held back, and what it did sell comes in later. A lorry refills what
runs low. Once a day one item goes viral, and a clerk who types a count twice books a hundred times
too much: the audit finds it, the first time that it happens in a store, and a recount puts it
right. A shop's day passes in ten minutes. A seed makes the draws repeatable, though not the timing.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import Any, Final

import msgspec

from engine.model import MovementType
from holdfast import calls, feed_calls, search_calls
from holdfast.assortment import MISCOUNTED_SKU, VIRAL_SKU, assortment
from holdfast.calls import Line, NewMovement, Reservation
from holdfast.client import ApiError, AsyncClient, RetryPolicy, ServiceUnreachable, new_key
from holdfast.replay import percentile_ms

WAREHOUSE: Final = "online-warehouse"
STORES: Final = ("harbour-store", "old-town-store", "riverside-store")
FLAKY_STORE: Final = "harbour-store"
"""Its line drops once a day."""

LOCATIONS: Final = (WAREHOUSE, *STORES)
ONLINE_SHARE: Final = 0.7
"""Of the carts that the warehouse sends; the others are collected in a store."""

DAY_SECONDS: Final = 600.0
"""In which a shop's day passes; it begins at 10 in the morning."""

OPENING_HOUR: Final = 10.0

RHYTHM: Final = (
    0.15, 0.10, 0.10, 0.10, 0.10, 0.20, 0.40, 0.60, 0.80, 0.90, 1.00, 1.10,
    1.40, 1.20, 1.00, 0.95, 1.00, 1.20, 1.50, 1.80, 1.90, 1.50, 0.90, 0.40,
)  # fmt: skip
"""How many shoppers come in each hour of a day, 1 being the average of the waking ones: few at
night, more at noon, most in the evening."""

STORE_HOURS: Final = (8.0, 20.0)
VIRAL_HOURS: Final = (12.0, 14.0)
OUTAGE_HOURS: Final = (15.0, 18.0)
MISCOUNT_HOUR: Final = 16.0
"""Late enough for the item's shelf to have a history by which the audit can judge."""

RECOUNT_HOUR: Final = 20.0
VIRAL_WEIGHT: Final = 60.0

MAX_SHOPPERS: Final = 500
"""In the shop at once; more that arrive turn away at the door."""

HOLD_TTL_SECONDS: Final = 30
"""Short, so that one who watches sees forgotten carts come back."""

THINK_SECONDS: Final = (0.5, 6.0)
"""Between reserving a cart and what becomes of it, evenly distributed."""

TILLS: Final = 2
"""In each store."""

TILL_SECONDS: Final = 4.0
"""Between two sales of one till, on average, at the average hour."""

BEAT_SECONDS: Final = 2.0
"""Between two times that a till sends what it has, and a heartbeat where that is nothing."""

SILENT_AFTER_SECONDS: Final = 10
"""What the shop's policy has for it: a till that was not heard of for so long is silent."""

CONFIDENCE_PERCENT: Final = 99.9
"""What the shop's policy has for the units that a silent till has not sold more of. The shop's day
is short but the service's clock is not: in a minute few rows sell anything, and of what happens
less than once in a hundred times the usual 99 % hold nothing back."""

MAX_SENT_EVENTS: Final = 500

DELIVERY_SECONDS: Final = 5.0
"""Between two looks at what runs low."""

CLERK_SECONDS: Final = 1.0
"""Between two looks of the clerk at the clock."""

OUTAGE_SECONDS: Final = 1.0
"""Before a till or a lorry tries a service again that did not answer."""

MAX_CART_LINES: Final = 4
LOW_SHARE: Final = 0.25
"""Of a shelf's full stock, below which it is refilled."""

MAX_ASKED_ROWS: Final = 500

KEPT_LATENCIES: Final = 1_000
"""The latest reserves, from which the status line takes its percentile."""

_FATAL_CODES: Final = frozenset({"unauthenticated", "forbidden", "not_found"})
"""Refusals that no waiting cures: the key is wrong, or not for this merchant."""


class DemoSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The shop: whose it is, what the draws start from, and how busy it is.

    `carts_per_second` is the average; `day_seconds` is in how many seconds a day passes.
    """

    merchant: str = "demo"
    seed: int = 1
    carts_per_second: float = 4.0
    day_seconds: float = DAY_SECONDS


class Day:
    """The shop's clock, which runs faster than others."""

    def __init__(self, seconds: float, *, clock: Callable[[], float]) -> None:
        """Begin at OPENING_HOUR; `clock` gives seconds that only rise."""
        self._seconds = seconds
        self._clock = clock
        self._began_at = clock()

    @property
    def hours(self) -> float:
        """Hours since the midnight before the opening."""
        return OPENING_HOUR + 24 * (self._clock() - self._began_at) / self._seconds

    @property
    def number(self) -> int:
        """Days since the opening's."""
        return int(self.hours // 24)

    def within(self, hours: tuple[float, float]) -> bool:
        """Say whether it is between two hours of the day."""
        return hours[0] <= self.hours % 24 < hours[1]

    @property
    def demand(self) -> float:
        """How many shoppers come, 1 on average; it changes smoothly from hour to hour."""
        hour = self.hours % 24
        before, after = RHYTHM[int(hour)], RHYTHM[(int(hour) + 1) % 24]
        return before + (after - before) * (hour % 1)


class DemoCounts(msgspec.Struct, kw_only=True):
    """What happened so far. `refused` shoppers found too little; `unanswered` calls got no answer.

    `reserve_p95_ms` is of the last KEPT_LATENCIES reserves, None before the first.
    """

    reserved: int = 0
    refused: int = 0
    confirmed: int = 0
    committed: int = 0
    released: int = 0
    abandoned: int = 0
    ended_meanwhile: int = 0
    till_sales: int = 0
    deliveries: int = 0
    delivered_units: int = 0
    unanswered: int = 0
    shopping: int = 0
    reserve_p95_ms: float | None = None

    def line(self) -> str:
        """Say it in one line."""
        p95 = "-" if self.reserve_p95_ms is None else f"{self.reserve_p95_ms:.1f} ms"
        waiting = f", {self.unanswered} calls unanswered" if self.unanswered else ""
        # A narrow terminal cuts the line, so what matters most comes first.
        return (
            f"{self.shopping} shopping, reserve p95 {p95}{waiting}; carts: {self.reserved} "
            f"reserved, {self.refused} refused, {self.committed} committed, {self.released} "
            f"released, {self.abandoned} abandoned; {self.till_sales} till sales, "
            f"{self.deliveries} deliveries"
        )


class Demo:
    """The shop, open from `run` until it is told to stop."""

    def __init__(self, client: AsyncClient, settings: DemoSettings) -> None:
        """Prepare; nothing is sent yet."""
        self._client = client
        self._settings = settings
        self._draw = random.Random(settings.seed)  # noqa: S311 - shoppers, not secrets
        self._products = assortment(settings.seed)
        self._weights = [one.popularity for one in self._products]
        self._viral_weights = [
            one.popularity * (VIRAL_WEIGHT if one.sku == VIRAL_SKU else 1.0)
            for one in self._products
        ]
        self._day = Day(settings.day_seconds, clock=monotonic)
        self._latencies: deque[float] = deque(maxlen=KEPT_LATENCIES)
        self._shoppers: set[asyncio.Task[None]] = set()
        self._counts = DemoCounts()

    def counts(self) -> DemoCounts:
        """Return what happened so far."""
        self._counts.shopping = len(self._shoppers)
        if self._latencies:
            self._counts.reserve_p95_ms = percentile_ms(sorted(self._latencies), 0.95)
        return self._counts

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the shop open until `stop` is set. Holds still open then expire by themselves.

        Raises ClientError where no waiting would help: a wrong key, or what answers is no Holdfast;
        and where the service cannot be reached at the very start.
        """
        asked = calls.locations(self._settings.merchant, limit=1)
        # The client may have patience for an outage later on, but not before the first answer.
        await self._client.send(asked, retry=RetryPolicy())
        self._day = Day(self._settings.day_seconds, clock=monotonic)
        await self._deliver()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._welcome(group)),
                    group.create_task(self._drive_lorry()),
                    group.create_task(self._furnish()),
                    group.create_task(self._clerk()),
                    *(
                        group.create_task(self._run_till(store, f"till-{number + 1}"))
                        for store in STORES
                        for number in range(TILLS)
                    ),
                ]
                await stop.wait()
                for task in (*tasks, *self._shoppers):
                    task.cancel()
        except ExceptionGroup as faults:
            raise faults.exceptions[0] from faults

    async def _welcome(self, group: asyncio.TaskGroup) -> None:
        while True:
            rate = self._settings.carts_per_second * self._day.demand
            await asyncio.sleep(self._draw.expovariate(rate))
            if len(self._shoppers) >= MAX_SHOPPERS:
                continue
            shopper = group.create_task(self._shop())
            self._shoppers.add(shopper)
            shopper.add_done_callback(self._shoppers.discard)

    async def _shop(self) -> None:
        try:
            online = self._draw.random() < ONLINE_SHARE
            place = WAREHOUSE if online else self._draw.choice(STORES)
            held = await self._reserve(place, self._cart())
            if held is not None:
                await asyncio.sleep(self._draw.uniform(*THINK_SECONDS))
                await self._decide(held)
        except ServiceUnreachable:
            self._counts.unanswered += 1
        except ApiError as refusal:
            self._excuse(refusal)

    def _cart(self) -> list[Line]:
        wanted = self._draw.choices(
            self._products,
            weights=self._viral_weights if self._day.within(VIRAL_HOURS) else self._weights,
            k=self._draw.randint(1, MAX_CART_LINES),
        )
        units = {product.sku: self._draw.choice((1, 1, 1, 2, 2, 3)) for product in wanted}
        return [Line(sku, quantity) for sku, quantity in units.items()]

    async def _reserve(self, location: str, cart: Sequence[Line]) -> Reservation | None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            held = await self._client.reserve(
                self._settings.merchant, location, cart, ttl_seconds=HOLD_TTL_SECONDS
            )
        except ApiError as refusal:
            if refusal.code != "insufficient_stock":
                raise
            self._counts.refused += 1
            return None
        finally:
            self._latencies.append(loop.time() - started)
        self._counts.reserved += 1
        return held

    async def _decide(self, held: Reservation) -> None:
        merchant = self._settings.merchant
        drawn = self._draw.random()
        if drawn < 0.15:
            await self._client.release(merchant, held.id, reason="changed their mind")
            self._counts.released += 1
            return
        if drawn < 0.25:
            self._counts.abandoned += 1
            return
        if drawn < 0.35:
            await self._client.extend(merchant, held.id, ttl_seconds=2 * HOLD_TTL_SECONDS)
            await asyncio.sleep(self._draw.uniform(*THINK_SECONDS))
        await self._client.confirm(merchant, held.id, order_ref=f"order-{new_key()[:12]}")
        self._counts.confirmed += 1
        await asyncio.sleep(self._draw.uniform(*THINK_SECONDS))
        await self._client.commit(merchant, held.id, picks=self._picks(held))
        self._counts.committed += 1

    def _picks(self, held: Reservation) -> list[Line]:
        """Pick everything; now and then one unit of a line is not to be found."""
        picks = [Line(line.sku, line.quantity) for line in held.lines]
        if self._draw.random() < 0.03:
            picks[0] = Line(picks[0].sku, picks[0].quantity - 1)
        return picks

    async def _run_till(self, store: str, till: str) -> None:
        """Sell, and tell of it every BEAT_SECONDS; while the line is down it is told later."""
        till_name = f"{store}-{till}"
        merchant, loop = self._settings.merchant, asyncio.get_running_loop()
        number = await self._patiently(lambda: self._last_number(store, till_name))
        unsent: list[dict[str, Any]] = []
        next_sale = loop.time()
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            while next_sale <= loop.time():
                next_sale += self._draw.expovariate(self._day.demand / TILL_SECONDS)
                if self._day.within(STORE_HOURS):
                    line = self._draw.choice(self._cart())
                    number += 1
                    unsent.append(_event("sale", till_name, number, line))
            if store == FLAKY_STORE and self._day.within(OUTAGE_HOURS):
                continue
            events = unsent[:MAX_SENT_EVENTS] or [_event("heartbeat", till_name, 0, None)]
            told = feed_calls.take_events(merchant, store, till_name, events)
            await self._patiently(partial(self._client.send, told))
            if unsent:
                self._counts.till_sales += len(events)
                del unsent[: len(events)]

    async def _last_number(self, store: str, till: str) -> int:
        """Return how far a till counted in an earlier run."""
        listed = await self._client.send(feed_calls.sources(self._settings.merchant, store))
        return max((one.highest for one in listed.data if one.source == till), default=0)

    async def _furnish(self) -> None:
        """Say what the items are called, when a till is silent, and how sure to be then."""
        merchant = self._settings.merchant
        part = {
            "heartbeat_seconds": SILENT_AFTER_SECONDS,
            "confidence_percent": CONFIDENCE_PERCENT,
        }
        decided = feed_calls.policy(merchant, None, part)
        await self._patiently(partial(self._client.send, decided))
        for product in self._products:
            item = search_calls.Item(product.sku, product.title, {"department": product.department})
            said = search_calls.put_item(merchant, item)
            try:
                await self._client.send(said)
            except ServiceUnreachable:
                await self._wait_out()
            except ApiError as refusal:
                if refusal.code == "index_unavailable":
                    # A service without an index sells all the same.
                    return
                self._excuse(refusal)

    async def _clerk(self) -> None:
        """Miscount an item once a day, and count it again some hours later."""
        miscounted = recounted = -1
        while True:
            await asyncio.sleep(CLERK_SECONDS)
            hours, today = self._day.hours % 24, self._day.number
            if hours >= MISCOUNT_HOUR and miscounted < today and hours < RECOUNT_HOUR:
                miscounted = today
                await self._patiently(partial(self._count, today, twice=True))
            elif hours >= RECOUNT_HOUR and recounted < miscounted:
                recounted = miscounted
                await self._patiently(partial(self._count, today, twice=False))

    async def _count(self, day: int, *, twice: bool) -> None:
        """Count the shelf of MISCOUNTED_SKU; `twice` has the number typed twice."""
        merchant = self._settings.merchant
        # Another store every day: a row that has had so many units once is no news a second time.
        store = STORES[(1 + day) % len(STORES)]
        full = next(one.full_units for one in self._products if one.sku == MISCOUNTED_SKU)
        # How many are there only whoever goes and looks knows: a fair part of a shelf.
        units = self._draw.randint(full // 2, full)
        typed = typed_twice(units) if twice else units
        await self._client.move(
            merchant,
            NewMovement(
                id=new_key(),
                location=store,
                type=MovementType.COUNT,
                sku=MISCOUNTED_SKU,
                quantity=typed,
                reference=f"{'count' if twice else 'recount'}-day-{day + 1}",
            ),
        )

    async def _patiently(self, attempt: Callable[[], Awaitable[Any]]) -> Any:
        """Do it, however long the service takes to answer; None where it was refused."""
        while True:
            try:
                return await attempt()
            except ServiceUnreachable:
                await self._wait_out()
            except ApiError as refusal:
                self._excuse(refusal)
                if refusal.status < 500:
                    return None
                await asyncio.sleep(OUTAGE_SECONDS)

    async def _drive_lorry(self) -> None:
        while True:
            await asyncio.sleep(DELIVERY_SECONDS)
            try:
                await self._deliver()
            except ServiceUnreachable:
                await self._wait_out()
            except ApiError as refusal:
                self._excuse(refusal)

    async def _deliver(self) -> None:
        """Fill the shelves that run low, at the opening all of them.

        Of what goes viral more comes only when the crowd is gone.
        """
        places = [
            (location, product)
            for location in LOCATIONS
            for product in self._products
            if product.sku != VIRAL_SKU or not self._day.within(VIRAL_HOURS)
        ]
        arriving = []
        for start in range(0, len(places), MAX_ASKED_ROWS):
            some = places[start : start + MAX_ASKED_ROWS]
            asked = await self._client.availability(
                self._settings.merchant, [(location, product.sku) for location, product in some]
            )
            arriving += [
                NewMovement(
                    id=new_key(),
                    location=location,
                    type=MovementType.RECEIVE,
                    sku=product.sku,
                    quantity=product.full_units - row.on_hand,
                    reference=f"delivery-day-{self._day.number + 1}",
                )
                for (location, product), row in zip(some, asked.data, strict=True)
                if row.available < LOW_SHARE * product.full_units
                and row.on_hand < product.full_units
            ]
        if not arriving:
            return
        for start in range(0, len(arriving), MAX_ASKED_ROWS):
            await self._client.move_many(
                self._settings.merchant, arriving[start : start + MAX_ASKED_ROWS]
            )
        self._counts.deliveries += 1
        self._counts.delivered_units += sum(movement.quantity for movement in arriving)

    async def _wait_out(self) -> None:
        self._counts.unanswered += 1
        await asyncio.sleep(OUTAGE_SECONDS)

    def _excuse(self, refusal: ApiError) -> None:
        """Count a refusal that is part of a shop's day, and raise one that is not."""
        if refusal.code in _FATAL_CODES:
            raise refusal
        if refusal.status >= 500:
            self._counts.unanswered += 1
        else:
            self._counts.ended_meanwhile += 1


def typed_twice(units: int) -> int:
    """Return what is booked where a number is typed twice: 4848 for 48."""
    return int(f"{units}{units}")


def _event(kind: str, till: str, number: int, line: Line | None) -> dict[str, Any]:
    """Write an event as a till does; a heartbeat has no number and no line."""
    now = datetime.now(UTC)
    made = {"type": kind, "event_id": f"{till}-{number or new_key()}"}
    if line is None:
        return {**made, "occurred_at": now.isoformat()}
    return {
        **made,
        "occurred_at": now.isoformat(),
        "sequence": number,
        "sku": line.sku,
        "quantity": line.quantity,
    }
