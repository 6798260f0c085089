"""The store is killed again and again under load: what was acknowledged stays, and only once."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Final

import msgspec
import pytest

from engine.model import Moved, MovementType, ReservationResult
from tests.callers import persistently
from tests.invariants import Audit
from tests.shop import LOCATION, Shop, new_key, open_shop
from tests.stores import MakeStore, set_up

pytestmark = pytest.mark.faults

PARTITIONS: Final = 3
LOCATIONS: Final = (LOCATION, "harbour", "web")
SKUS: Final = ("tea", "milk", "cup")
OPENING: Final = 1_000_000

ENGINES: Final = 2
CALLERS: Final = 32
KILLS: Final = 6
ACKNOWLEDGED_BETWEEN_KILLS: Final = 200
"""So each kill meets a store at work, and not one that has just come up."""


MOST_ASKED_AGAIN: Final = 500
TEST_SECONDS: Final = 60.0

Answer = Moved | ReservationResult
Effect = tuple[str, ...]
"""As the audit names it: (kind, merchant, id)."""


class Load:
    """Callers that buy, give back and restock until they are told to stop, and what they heard.

    `acknowledged` has each answer by its effect, with the call that asks again; `on_hand` and
    `reserved` follow from the answers alone, by (location, SKU).
    """

    def __init__(self, shops: list[Shop]) -> None:
        """Call through these engines in turn."""
        self.acknowledged: dict[Effect, tuple[Answer, Callable[[], Awaitable[Answer]]]] = {}
        self.on_hand = {(location, sku): OPENING for location in LOCATIONS for sku in SKUS}
        self.reserved = dict.fromkeys(self.on_hand, 0)
        self._shops = shops
        self._stopped = False
        self._wanted = 0
        self._reached = asyncio.Event()

    async def run(self) -> None:
        """Call until `stop`; every call that was begun is brought to its answer."""
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(self._caller(number))

    def stop(self) -> None:
        """Let the callers finish what they are at."""
        self._stopped = True

    async def acknowledge_more(self, count: int) -> None:
        """Wait until `count` more effects were acknowledged."""
        self._wanted = len(self.acknowledged) + count
        self._reached.clear()
        await self._reached.wait()

    async def _caller(self, number: int) -> None:
        drawn = random.Random(number)
        shop = self._shops[number % len(self._shops)]
        while not self._stopped:
            location = drawn.choice(LOCATIONS)
            if drawn.random() < 0.3:
                await self._restock(shop, location, drawn.choice(SKUS), drawn.randint(1, 5))
            else:
                cart = [(sku, drawn.randint(1, 3)) for sku in drawn.sample(SKUS, 2)]
                await self._buy(shop, location, cart, drawn.choice(("commit", "release", "")))

    async def _restock(self, shop: Shop, location: str, sku: str, quantity: int) -> None:
        key = new_key()

        async def receive() -> Moved:
            return await shop.move(MovementType.RECEIVE, sku, quantity, key=key, location=location)

        moved = await persistently(receive)
        self._note(("move", shop.merchant, moved.id), moved, receive)
        self.on_hand[location, sku] += quantity

    async def _buy(
        self, shop: Shop, location: str, cart: list[tuple[str, int]], ending: str
    ) -> None:
        key = new_key()

        async def reserve() -> ReservationResult:
            return await shop.reserve(cart, key=key, location=location)

        held = await persistently(reserve)
        the_id = held.reservation.id
        self._note(("reserve", shop.merchant, the_id), held, reserve)
        if not ending:
            for sku, quantity in cart:
                self.reserved[location, sku] += quantity
            return

        async def end() -> ReservationResult:
            return await (shop.commit(the_id) if ending == "commit" else shop.release(the_id))

        ended = await persistently(end)
        self._note((ending, shop.merchant, the_id), ended, end)
        if ending == "commit":
            for sku, quantity in cart:
                self.on_hand[location, sku] -= quantity

    def _note(self, effect: Effect, answer: Answer, again: Callable[[], Awaitable[Answer]]) -> None:
        assert effect not in self.acknowledged
        self.acknowledged[effect] = (answer, again)
        if len(self.acknowledged) >= self._wanted:
            self._reached.set()


async def test_what_was_acknowledged_outlives_every_kill_and_the_unknown_is_settled_once(
    store_kind: str, make_store: MakeStore, merchant: str
) -> None:
    store = make_store(store_kind)
    await store.start()
    await set_up(store.settings, partitions=PARTITIONS)
    async with asyncio.timeout(TEST_SECONDS), AsyncExitStack() as stack:
        shops = [
            await stack.enter_async_context(open_shop(store.settings, merchant))
            for _ in range(ENGINES)
        ]
        load = Load(shops)
        opening: set[Effect] = set()
        for location, sku in load.on_hand:
            moved = await shops[0].receive(sku, OPENING, location=location)
            opening.add(("move", merchant, moved.id))

        async with asyncio.TaskGroup() as group:
            group.create_task(load.run())
            for _ in range(KILLS):
                await load.acknowledge_more(ACKNOWLEDGED_BETWEEN_KILLS)
                await store.restart()
            await load.acknowledge_more(ACKNOWLEDGED_BETWEEN_KILLS)
            load.stop()

        audit = Audit(shops[0].client, partitions=PARTITIONS)
        await audit.check()
        assert set(audit.effects()) == opening | load.acknowledged.keys()
        await assert_rows(shops[0], load)
        await assert_answers_stay(load)
        await audit.check()
        assert len(audit.effects()) == len(opening) + len(load.acknowledged)


async def assert_rows(shop: Shop, load: Load) -> None:
    for location, sku in load.on_hand:
        row = await shop.row(sku, location=location)
        wanted = load.on_hand[location, sku], load.reserved[location, sku]
        assert (row.on_hand, row.reserved) == wanted, (location, sku)


async def assert_answers_stay(load: Load) -> None:
    """Ask again, and hear the same answer, whether the first was heard at once or found again."""
    effects = random.Random(0).sample(
        sorted(load.acknowledged), min(MOST_ASKED_AGAIN, len(load.acknowledged))
    )
    for effect in effects:
        first, call = load.acknowledged[effect]
        again = await call()
        assert again.replayed, effect
        assert msgspec.structs.replace(first, replayed=True) == again, effect
