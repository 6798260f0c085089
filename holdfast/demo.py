"""A sample shop with live shoppers, tills and deliveries, against a running service.

Shoppers arrive by chance (a Poisson process), reserve a cart, think, and then order, walk away or
forget it; tills sell over the counter; a lorry refills what runs low. A seed makes the draws
repeatable, though not the timing.
"""

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from engine.model import MovementType
from holdfast import calls
from holdfast.calls import Line, NewMovement, Reservation
from holdfast.client import ApiError, AsyncClient, RetryPolicy, ServiceUnreachable, new_key
from holdfast.replay import percentile_ms

WAREHOUSE: Final = "online-warehouse"
STORES: Final = ("riverside-store", "old-town-store")
LOCATIONS: Final = (WAREHOUSE, *STORES)

MAX_SHOPPERS: Final = 500
"""In the shop at once; more that arrive turn away at the door."""

HOLD_TTL_SECONDS: Final = 30
"""Short, so that one who watches sees forgotten carts come back."""

THINK_SECONDS: Final = (0.5, 6.0)
"""Between reserving a cart and what becomes of it, evenly distributed."""

TILL_SECONDS: Final = 2.0
"""Between two sales of one till, on average."""

DELIVERY_SECONDS: Final = 5.0
"""Between two looks at what runs low."""

OUTAGE_SECONDS: Final = 1.0
"""Before a till or a lorry tries a service again that did not answer."""

MAX_CART_LINES: Final = 4
LOW_SHARE: Final = 0.25
"""Of a shelf's full stock, below which it is refilled."""

KEPT_LATENCIES: Final = 1_000
"""The latest reserves, from which the status line takes its percentile."""

_FATAL_CODES: Final = frozenset({"unauthenticated", "forbidden", "not_found"})
"""Refusals that no waiting cures: the key is wrong, or not for this merchant."""


class Product(msgspec.Struct, frozen=True):
    """An item of the shop: how often it is asked for, and the units that fill its shelf."""

    sku: str
    popularity: int
    full_units: int


PRODUCTS: Final = tuple(
    Product(sku, popularity, full_units)
    for sku, popularity, full_units in (
        ("coffee-beans-1kg", 20, 120),
        ("coffee-filter-paper-100", 12, 100),
        ("espresso-cup-white", 8, 60),
        ("mug-stoneware-blue", 14, 80),
        ("mug-stoneware-sand", 11, 80),
        ("teapot-cast-iron-1l", 3, 12),
        ("tea-earl-grey-100g", 10, 70),
        ("tea-sencha-100g", 6, 50),
        ("french-press-600ml", 5, 24),
        ("hand-grinder-steel", 4, 16),
        ("kettle-gooseneck", 3, 12),
        ("milk-jug-350ml", 5, 30),
        ("bread-knife-25cm", 4, 20),
        ("chef-knife-20cm", 5, 18),
        ("cutting-board-oak", 6, 24),
        ("apron-linen-grey", 4, 24),
        ("tea-towel-set-of-3", 9, 60),
        ("oven-glove-pair", 5, 30),
        ("skillet-cast-iron-26cm", 4, 14),
        ("saucepan-steel-2l", 3, 14),
        ("stock-pot-8l", 1, 6),
        ("baking-tray-large", 6, 36),
        ("cake-tin-26cm", 5, 30),
        ("measuring-spoons", 7, 40),
        ("kitchen-scale-5kg", 4, 18),
        ("olive-oil-500ml", 15, 90),
        ("sea-salt-250g", 12, 90),
        ("pepper-mill-walnut", 4, 18),
        ("pasta-linguine-500g", 16, 120),
        ("honey-wildflower-350g", 9, 60),
        ("chocolate-dark-70", 18, 150),
        ("storage-jar-1l", 10, 60),
        ("lunch-box-steel", 6, 36),
        ("water-bottle-750ml", 9, 50),
        ("candle-beeswax", 7, 48),
        ("console-launch-edition", 30, 10),
    )
)


class DemoSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The shop: whose it is, what the draws start from, and how many shoppers arrive a second."""

    merchant: str = "demo"
    seed: int = 1
    carts_per_second: float = 4.0


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
        await self._deliver()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._welcome(group)),
                    group.create_task(self._drive_lorry()),
                    *(group.create_task(self._run_till(store)) for store in STORES),
                ]
                await stop.wait()
                for task in (*tasks, *self._shoppers):
                    task.cancel()
        except ExceptionGroup as faults:
            raise faults.exceptions[0] from faults

    async def _welcome(self, group: asyncio.TaskGroup) -> None:
        while True:
            await asyncio.sleep(self._draw.expovariate(self._settings.carts_per_second))
            if len(self._shoppers) >= MAX_SHOPPERS:
                continue
            shopper = group.create_task(self._shop())
            self._shoppers.add(shopper)
            shopper.add_done_callback(self._shoppers.discard)

    async def _shop(self) -> None:
        try:
            held = await self._reserve(self._draw.choice(LOCATIONS), self._cart())
            if held is not None:
                await asyncio.sleep(self._draw.uniform(*THINK_SECONDS))
                await self._decide(held)
        except ServiceUnreachable:
            self._counts.unanswered += 1
        except ApiError as refusal:
            self._excuse(refusal)

    def _cart(self) -> list[Line]:
        wanted = self._draw.choices(
            PRODUCTS,
            weights=[product.popularity for product in PRODUCTS],
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

    async def _run_till(self, store: str) -> None:
        while True:
            await asyncio.sleep(self._draw.expovariate(1 / TILL_SECONDS))
            line = self._draw.choice(self._cart())
            try:
                # A customer can only bring to the till what is on the shelf.
                asked = await self._client.availability(
                    self._settings.merchant, [(store, line.sku)]
                )
                quantity = min(line.quantity, asked.data[0].available)
                if quantity > 0:
                    await self._client.move(
                        self._settings.merchant,
                        NewMovement(
                            id=new_key(),
                            location=store,
                            type=MovementType.SALE,
                            sku=line.sku,
                            quantity=quantity,
                            reference=f"till-{store}",
                        ),
                    )
                    self._counts.till_sales += 1
            except ServiceUnreachable:
                await self._wait_out()
            except ApiError as refusal:
                self._excuse(refusal)

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
        """Fill the shelves that run low, at the opening all of them."""
        places = [(location, product) for location in LOCATIONS for product in PRODUCTS]
        asked = await self._client.availability(
            self._settings.merchant, [(location, product.sku) for location, product in places]
        )
        arriving = [
            NewMovement(
                id=new_key(),
                location=location,
                type=MovementType.RECEIVE,
                sku=product.sku,
                quantity=product.full_units - row.on_hand,
                reference="delivery",
            )
            for (location, product), row in zip(places, asked.data, strict=True)
            if row.available < LOW_SHARE * product.full_units and row.on_hand < product.full_units
        ]
        if not arriving:
            return
        await self._client.move_many(self._settings.merchant, arriving)
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
