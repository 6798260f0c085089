"""The stock that the benchmarks sell: how many rows, and which of them each cart takes."""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from engine.boot import DEFAULT_PARTITIONS
from engine.inventory import Inventory
from engine.keys import partition_of, reservation_id
from engine.model import Line, Movement, MovementType
from engine.outcomes import HoldfastError

MERCHANT: Final = "bench"
ACTOR: Final = "bench"

OPENING_UNITS: Final = 10**9
"""Of each row: more than any run can sell."""

KEY_DIGITS: Final = 12
LINES_OF_A_CART: Final = 10
BATCH_ROWS: Final = 100
LOCATIONS: Final = 100
SKUS_OF_A_LOCATION: Final = 100

SEED: Final = 20_261_123
"""Of the order in which rows are met: every run meets the same ones."""

STOCKING_BATCHES: Final = 8
STOCKING_BATCH_ROWS: Final = 1_000


class Cart(msgspec.Struct, frozen=True):
    """What one reserve asks for."""

    location: str
    lines: tuple[Line, ...]


class Shop:
    """Rows, and the carts that take from them over and over in a fixed order."""

    def __init__(self, rows: Sequence[tuple[str, str]], carts: Sequence[Cart]) -> None:
        """Take the rows as (location, SKU)."""
        self.rows = tuple(rows)
        self._carts = tuple(carts)

    @property
    def carts(self) -> Sequence[Cart]:
        """Return the carts in their order."""
        return self._carts

    def cart(self, number: int) -> Cart:
        """Return the cart of request `number`."""
        return self._carts[number % len(self._carts)]

    def key(self, number: int) -> str:
        """Return the idempotency key of request `number`."""
        return f"{number:0{KEY_DIGITS}}"

    def reservation(self, number: int, partitions: int) -> str:
        """Return the id that the reservation of request `number` gets: it follows from the key."""
        location = self.cart(number).location
        partition = partition_of(MERCHANT, location, partitions)
        return reservation_id(partition, MERCHANT, location, self.key(number))

    def rows_by_cart(self) -> list[tuple[str, str]]:
        """Return the (location, SKU) of each cart's first line."""
        return [(cart.location, cart.lines[0].sku) for cart in self._carts]

    def batches(self) -> list[list[tuple[str, str]]]:
        """Return questions of BATCH_ROWS rows each, which together ask for every row."""
        rows = self.rows_by_cart()
        starts = range(0, len(rows) - BATCH_ROWS + 1, BATCH_ROWS)
        return [rows[start : start + BATCH_ROWS] for start in starts]


MakeShop = Callable[[], Shop]


def hot_row() -> Shop:
    """Everyone wants one unit of one row."""
    return Shop([("store-0", "sku-0")], [Cart("store-0", (Line("sku-0", 1),))])


def uniform() -> Shop:
    """Each of 10,000 rows is wanted as often as any other, one unit at a time."""
    rows = rows_of(LOCATIONS, SKUS_OF_A_LOCATION)
    carts = [Cart(location, (Line(sku, 1),)) for location, sku in rows]
    random.Random(SEED).shuffle(carts)
    return Shop(rows, carts)


def big_carts() -> Shop:
    """Carts of ten lines over 10,000 rows, each at one location."""
    chance = random.Random(SEED)
    rows = rows_of(LOCATIONS, SKUS_OF_A_LOCATION)
    carts = []
    for location, _ in rows:
        skus = chance.sample(range(SKUS_OF_A_LOCATION), LINES_OF_A_CART)
        carts.append(Cart(location, tuple(Line(f"sku-{sku}", 1) for sku in skus)))
    chance.shuffle(carts)
    return Shop(rows, carts)


def rows_of(locations: int, skus: int) -> list[tuple[str, str]]:
    """Return (location, SKU) of so many SKUs at each of so many locations."""
    return [(f"store-{place}", f"sku-{sku}") for place in range(locations) for sku in range(skus)]


def one_partition(make_shop: MakeShop) -> MakeShop:
    """Keep the carts of the shop that go to the partition of its first one, for full groups."""

    def make() -> Shop:
        shop = make_shop()
        wanted = partition_of(MERCHANT, shop.carts[0].location, DEFAULT_PARTITIONS)
        carts = [
            cart
            for cart in shop.carts
            if partition_of(MERCHANT, cart.location, DEFAULT_PARTITIONS) == wanted
        ]
        rows = {(cart.location, line.sku) for cart in carts for line in cart.lines}
        return Shop(sorted(rows), carts)

    return make


async def stock_up(inventory: Inventory, rows: Sequence[tuple[str, str]]) -> None:
    """Receive the opening units of every row. Raises what refused it, which nothing should."""
    todo = iter(range(0, len(rows), STOCKING_BATCH_ROWS))

    async def receive_batches() -> None:
        for start in todo:
            movements = [
                Movement(
                    key=f"opening-{sku}",
                    location=location,
                    type=MovementType.RECEIVE,
                    sku=sku,
                    quantity=OPENING_UNITS,
                )
                for location, sku in rows[start : start + STOCKING_BATCH_ROWS]
            ]
            for answer in await inventory.move_many(MERCHANT, movements, actor=ACTOR):
                if isinstance(answer, HoldfastError):
                    raise answer

    async with asyncio.TaskGroup() as group:
        for _ in range(STOCKING_BATCHES):
            group.create_task(receive_batches())
