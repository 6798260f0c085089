"""What each verb costs the server: its own account of a script call, shared out over the group.

The server counts the microseconds that it spends in each kind of command (`INFO commandstats`). The
figure is the median over many groups, so that one in which the machine did something else does not
count. What it leaves out is the parsing of the call and the writing of the log.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from statistics import median
from typing import Any, Final

from bench import servers
from bench.account import Books, check
from bench.figures import Conditions, Sample
from bench.shop import ACTOR, MERCHANT, MakeShop, Shop, big_carts, hot_row, one_partition, uniform
from engine.inventory import Inventory
from engine.limits import MAX_GROUP_COMMANDS
from engine.model import Line, Movement, MovementType, Pool, Terms

ROUNDS: Final = 40
ROUNDS_WHEN_QUICK: Final = 8
"""Groups of each verb; of commands that travel alone there are as many as in one group."""

SHOPS: Final = {
    "hot_row": "one row",
    "uniform": "many rows",
    "big_carts": "carts of ten lines",
}
"""What each sells, by its name in bench.shop."""

_VERBS: Final = {
    "reserve": "a reserve in a group of 128",
    "reserve.alone": "a reserve alone in its call",
    "extend": "an extension in a group",
    "confirm": "a confirmation in a group",
    "commit": "a commit in a group",
    "release": "a release in a group",
}

MEANINGS: Final = {
    **{
        f"{verb}.{shop}": f"server time of {what}, {of}"
        for shop, of in SHOPS.items()
        for verb, what in _VERBS.items()
    },
    "move": "server time of a movement in a group, many rows",
    "reserve.on_terms": "server time of a reserve in a group, of many rows that have terms",
}
"""Of each figure, by its name."""


async def measure(conditions: Conditions) -> dict[str, Sample]:
    """Return microseconds of server time a command, by the names of MEANINGS."""
    rounds = ROUNDS_WHEN_QUICK if conditions.quick else ROUNDS
    samples: dict[str, Sample] = {}
    shops: dict[str, MakeShop] = {
        "hot_row": hot_row,
        "uniform": one_partition(uniform),
        "big_carts": one_partition(big_carts),
    }
    for name, make_shop in shops.items():
        shop = make_shop()
        async with servers.stocked_inventory(conditions, shop.rows) as inventory:
            costs = _Costs(inventory, shop, rounds)
            for verb, sample in (await costs.of_reservations()).items():
                samples[f"{verb}.{name}"] = sample
            if name == "uniform":
                samples["move"] = await costs.of_moves()
                samples["reserve.on_terms"] = await costs.on_terms()
    return samples


class _Costs:
    def __init__(self, inventory: Inventory, shop: Shop, rounds: int) -> None:
        self._inventory = inventory
        self._shop = shop
        self._groups = range(rounds)
        self._ids: list[str] = []

    async def of_reservations(self) -> dict[str, Sample]:
        """Hold carts, extend and confirm them, and end one half each way."""
        inventory, shop = self._inventory, self._shop
        books = Books(shop)
        count = len(self._groups) * MAX_GROUP_COMMANDS
        group_cost = await self._cost(self._hold, range(count))
        alone = range(count, count + MAX_GROUP_COMMANDS)
        alone_cost = await self._cost(self._hold, alone, at_once=1)
        books.hold(range(alone.stop))
        ids = [shop.reservation(number, inventory.partitions) for number in range(count)]

        async def extend(number: int) -> None:
            await inventory.extend(MERCHANT, ids[number], key="x", ttl_ms=1_800_000, actor=ACTOR)

        async def confirm(number: int) -> None:
            await inventory.confirm(MERCHANT, ids[number], order_ref="order", actor=ACTOR)

        async def commit(number: int) -> None:
            await inventory.commit(MERCHANT, ids[number], actor=ACTOR)

        async def release(number: int) -> None:
            await inventory.release(MERCHANT, ids[number], actor=ACTOR)

        half = count // 2
        costs = {
            "reserve": group_cost,
            "reserve.alone": alone_cost,
            "extend": await self._cost(extend, range(count)),
            "confirm": await self._cost(confirm, range(half)),
            "commit": await self._cost(commit, range(half)),
            "release": await self._cost(release, range(half, count)),
        }
        books.commit(range(half))
        books.release(range(half, count))
        await check(inventory, books)
        return costs

    async def of_moves(self) -> Sample:
        """Receive units and take them away again: movements over the rows of the shop."""
        rows = self._shop.rows_by_cart()
        kinds = (MovementType.RECEIVE, MovementType.SALE)

        async def move(number: int) -> None:
            location, sku = rows[number // 2 % len(rows)]
            movement = Movement(
                key=f"move-{number}",
                location=location,
                type=kinds[number % 2],
                sku=sku,
                quantity=1,
            )
            await self._inventory.move(MERCHANT, movement, actor=ACTOR)

        return await self._cost(move, range(len(self._groups) * MAX_GROUP_COMMANDS))

    async def on_terms(self) -> Sample:
        """Hold carts of rows that have a pool and a limit of backorders each."""
        inventory, shop = self._inventory, self._shop
        terms = Terms(1_000, {"online": Pool(minimum=1), "store": Pool(cap=1_000)})

        async def set_terms(location: str, sku: str) -> None:
            row = await inventory.row(MERCHANT, location, sku)
            await inventory.set_terms(
                MERCHANT,
                location,
                sku,
                terms,
                key="terms",
                expected_version=row.version,
                actor=ACTOR,
            )

        for start in range(0, len(shop.rows), MAX_GROUP_COMMANDS):
            group = shop.rows[start : start + MAX_GROUP_COMMANDS]
            await asyncio.gather(*(set_terms(*row) for row in group))

        async def hold(number: int) -> None:
            cart = shop.cart(number)
            await inventory.reserve(
                MERCHANT,
                cart.location,
                cart.lines,
                key=f"terms-{number}",
                channel="online",
                actor=ACTOR,
            )

        return await self._cost(hold, range(len(self._groups) * MAX_GROUP_COMMANDS))

    async def _hold(self, number: int) -> None:
        cart = self._shop.cart(number)
        lines: Sequence[Line] = cart.lines
        await self._inventory.reserve(
            MERCHANT, cart.location, lines, key=self._shop.key(number), actor=ACTOR
        )

    async def _cost(
        self,
        command: Callable[[int], Awaitable[None]],
        numbers: range,
        *,
        at_once: int = MAX_GROUP_COMMANDS,
    ) -> Sample:
        """Run a command for each number; the server's time for it, in microseconds a command."""
        costs: list[float] = []
        calls = 0
        for start in range(numbers.start, numbers.stop, at_once):
            group = range(start, min(start + at_once, numbers.stop))
            before = await self._spent()
            await asyncio.gather(*(command(number) for number in group))
            after = await self._spent()
            costs.append((after[0] - before[0]) / len(group))
            calls += after[1] - before[1]
        return Sample(
            value=median(costs), details={"commands_a_call": round(len(numbers) / max(calls, 1), 1)}
        )

    async def _spent(self) -> tuple[int, int]:
        """Return the server's microseconds in script calls, and how many calls there were."""
        client: Any = self._inventory.store.client
        stats = await client.info("commandstats")
        # The first call of a script after the start brings its text, and is another command.
        found = [stats[name] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in stats]
        return sum(each["usec"] for each in found), sum(each["calls"] for each in found)
