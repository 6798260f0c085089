"""A slot moves to another node of a cluster while its partition is in use: all or nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final

import msgspec
import pytest
from redis.crc import key_slot

from engine.model import MovementType, ReservationState
from engine.outcomes import StoreUnavailable
from tests.callers import persistently
from tests.shop import LOCATION, Shop, new_key, open_shop
from tests.stores import TESTER, TESTER_PASSWORD, RealCluster, RealStore, set_up

pytestmark = [pytest.mark.faults, pytest.mark.cluster]

DEADLINE_MS: Final = 500
"""How long the engine tries: short, since a half-moved slot refuses for as long as it stays so."""

SHOPPERS: Final = 16
OPENING: Final = 1_000_000
MIGRATE_TIMEOUT_MS: Final = 5_000
MAX_STEPS: Final = 1_000
KEYS_A_STEP: Final = 20
TEST_SECONDS: Final = 30.0


class Migration:
    """Moves the only partition's slot from the node that has it to another, step by step."""

    def __init__(self, shop: Shop, cluster: RealCluster) -> None:
        """Take the cluster; `begin` tells its nodes."""
        self.keys = shop.keys()
        self._slot = key_slot(self.keys.meta.encode())
        self._nodes = cluster.nodes

    async def begin(self) -> None:
        """From now on what is not at the source any more is asked for at the target."""
        counts = [await node.run("CLUSTER", "COUNTKEYSINSLOT", self._slot) for node in self._nodes]
        source = next(index for index, count in enumerate(counts) if count)
        self._source, self._target = self._nodes[source], self._nodes[source - 1]
        await self._set_slot(self._target, "IMPORTING", await _id(self._source))
        await self._set_slot(self._source, "MIGRATING", await _id(self._target))

    async def move(self, *keys: str | bytes) -> None:
        """Move keys."""
        assert self._target.tcp_port is not None
        await self._source.run(
            *("MIGRATE", "127.0.0.1", self._target.tcp_port, "", 0, MIGRATE_TIMEOUT_MS),
            *("AUTH2", TESTER, TESTER_PASSWORD, "KEYS", *keys),
        )

    async def move_rest(self) -> None:
        """Move all keys that are left, some at a time."""
        for _ in range(MAX_STEPS):
            keys = await self._source.run("CLUSTER", "GETKEYSINSLOT", self._slot, KEYS_A_STEP)
            if not keys:
                return
            await self.move(*keys)
        raise AssertionError("the slot does not get empty")

    async def end(self) -> None:
        """Give the slot to the target, and let every node know."""
        owner = await _id(self._target)
        for node in (self._target, *self._nodes):
            await self._set_slot(node, "NODE", owner)

    async def _set_slot(self, node: RealStore, state: str, other: str) -> None:
        await node.run("CLUSTER", "SETSLOT", self._slot, state, other)


async def _id(node: RealStore) -> str:
    return bytes(await node.run("CLUSTER", "MYID")).decode()


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCluster]:
    """A cluster whose only partition may move; it is somewhere else after each test."""
    real = RealCluster(tmp_path_factory.mktemp("moving"))
    asyncio.run(real.start())
    asyncio.run(set_up(real.settings, partitions=1))
    yield real
    asyncio.run(real.stop())


@pytest.fixture
async def shop(moving: RealCluster, merchant: str) -> AsyncIterator[Shop]:
    settings = msgspec.structs.replace(moving.settings, deadline_ms=DEADLINE_MS)
    async with asyncio.timeout(TEST_SECONDS), open_shop(settings, merchant) as opened:
        for sku in ("tea", "milk"):
            await opened.receive(sku, OPENING)
        yield opened


async def test_a_half_moved_partition_refuses_whole_and_serves_again_once_it_has_moved(
    shop: Shop, moving: RealCluster
) -> None:
    cart = [("tea", 1), ("milk", 1)]
    holds = [(await shop.reserve(cart)).reservation for _ in range(2)]
    keys = shop.keys()
    halves = (
        ("meta", (keys.meta,)),
        ("a row", (keys.stock(shop.merchant, LOCATION, "tea"),)),
        ("the reservations", tuple(keys.reservation(hold.id) for hold in holds)),
    )
    key = new_key()
    calls: tuple[Callable[[], Awaitable[object]], ...] = (
        lambda: shop.reserve(cart, key=key),
        lambda: shop.move(MovementType.SALE, "tea", 1, key=key),
        lambda: shop.commit(holds[0].id),
        lambda: shop.release(holds[1].id),
        lambda: shop.inventory.expire_due(0),
    )
    migration = Migration(shop, moving)
    await migration.begin()
    for what, part in halves:
        await migration.move(*part)
        refused = await asyncio.gather(*(call() for call in calls), return_exceptions=True)
        assert [type(answer) for answer in refused] == [StoreUnavailable] * len(calls), what
    await migration.move_rest()
    await migration.end()
    tea = await shop.row("tea")
    assert (tea.on_hand, tea.reserved) == (OPENING, 2)
    await shop.audit()

    assert not (await shop.reserve(cart, key=key)).replayed
    assert not (await shop.move(MovementType.SALE, "tea", 1, key=key)).replayed
    assert not (await shop.commit(holds[0].id)).replayed
    assert not (await shop.release(holds[1].id)).replayed
    tea = await shop.row("tea")
    assert (tea.on_hand, tea.reserved) == (OPENING - 2, 1)
    await shop.audit()


async def test_shoppers_lose_nothing_while_the_slot_moves_under_them(
    shop: Shop, moving: RealCluster
) -> None:
    migrated = asyncio.Event()
    busy = asyncio.Event()

    async def shopper(number: int) -> tuple[int, int]:
        """Hold and end carts until the slot has moved, and one more; return (held, bought)."""
        carts = bought = 0
        last = False
        while not last:
            last = migrated.is_set()
            key = new_key()
            hold = (await persistently(shop.reserve, [("tea", 1)], key=key)).reservation
            carts += 1
            busy.set()
            if (carts + number) % 2:
                ended = await persistently(shop.commit, hold.id)
                assert ended.reservation.state is ReservationState.COMMITTED
                bought += 1
            else:
                ended = await persistently(shop.release, hold.id)
                assert ended.reservation.state is ReservationState.RELEASED
        return carts, bought

    async with asyncio.TaskGroup() as group:
        shoppers = [group.create_task(shopper(number)) for number in range(SHOPPERS)]
        await busy.wait()
        migration = Migration(shop, moving)
        await migration.begin()
        await migration.move(shop.keys().meta)
        await migration.move(shop.keys().stock(shop.merchant, LOCATION, "tea"))
        await migration.move_rest()
        await migration.end()
        migrated.set()
    carts = sum(task.result()[0] for task in shoppers)
    bought = sum(task.result()[1] for task in shoppers)
    assert carts >= 2 * SHOPPERS
    tea = await shop.row("tea")
    assert (tea.on_hand, tea.reserved) == (OPENING - bought, 0)
    await shop.audit()
