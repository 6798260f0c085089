"""Sold-out rows on real stores: what is refused without a call, and above all what is not."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from engine.access import Role
from engine.inventory import Inventory
from engine.model import Line, MovementType
from engine.outcomes import IdempotencyKeyReused, InsufficientStock, ShortLine
from engine.sold_out import BELIEF_SECONDS, SoldOut
from gateway.idempotency import ATTEMPT_HEADER
from tests.gateways import Api, GatewayProcess, Shelf, assert_problem, lines_of
from tests.shop import ACTOR, LOCATION, Shop, new_key, open_shop
from tests.stores import RealStore

MAX_ATTEMPTS: Final = 500
"""Until a restock by another process is seen: far more than fit into the time that it may take."""


class Clock:
    def __init__(self) -> None:
        self.seconds = 5.0

    def __call__(self) -> float:
        return self.seconds


class Calls:
    """Counts what an engine asks of its store."""

    def __init__(self, inventory: Inventory, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scripts = 0
        self.reads = 0
        call, read = inventory.store.call, inventory.store.read

        async def counted_call(*args: Any) -> Any:
            self.scripts += 1
            return await call(*args)

        async def counted_read(*args: Any) -> Any:
            self.reads += 1
            return await read(*args)

        monkeypatch.setattr(inventory.store, "call", counted_call)
        monkeypatch.setattr(inventory.store, "read", counted_read)

    @contextmanager
    def expected(self, *, scripts: int, reads: int) -> Iterator[None]:
        """Check how many of each a block brings."""
        before = self.scripts, self.reads
        yield
        assert (self.scripts - before[0], self.reads - before[1]) == (scripts, reads)


class Here:
    """A shop whose engine is watched, with a clock that stands still."""

    def __init__(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shop = shop
        self.clock = Clock()
        shop.inventory._shared.sold_out = SoldOut(clock=self.clock)
        self.calls = Calls(shop.inventory, monkeypatch)

    async def want(
        self, *lines: tuple[str, int], key: str = "", first_attempt: bool = True, **fields: Any
    ) -> bool:
        """Try to reserve; say whether that was a replay. Raises the refusal."""
        result = await self.shop.inventory.reserve(
            self.shop.merchant,
            LOCATION,
            [Line(sku, quantity) for sku, quantity in lines or [("tea", 1)]],
            key=key or new_key(),
            first_attempt=first_attempt,
            actor=ACTOR,
            **fields,
        )
        return result.replayed

    async def refused(self, *lines: tuple[str, int], **fields: Any) -> tuple[ShortLine, ...]:
        """Try to reserve in vain; return what is short."""
        with pytest.raises(InsufficientStock) as refused:
            await self.want(*lines, **fields)
        return refused.value.lines

    async def sell_out(self, *, key: str = "") -> str:
        """Receive one unit of tea, hold it, and learn that there is no more."""
        await self.shop.receive("tea", 1)
        held = await self.shop.reserve([("tea", 1)], key=key)
        await self.refused()
        return held.reservation.id


@pytest.fixture
async def here(store: RealStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Here]:
    async with open_shop(store.settings) as shop:
        yield Here(shop, monkeypatch)
        await shop.audit()


@pytest.fixture
async def elsewhere(store: RealStore, here: Here) -> AsyncIterator[Shop]:
    """The same shop through an engine of its own, as another process has it."""
    async with open_shop(store.settings, here.shop.merchant) as shop:
        yield shop


async def test_a_row_that_is_out_is_refused_without_a_call_for_a_while(here: Here) -> None:
    await here.sell_out()
    with here.calls.expected(scripts=0, reads=0):
        for _ in range(20):
            assert await here.refused(("tea", 2), ("tea", 1)) == (ShortLine("tea", 3, 0),)
    with here.calls.expected(scripts=0, reads=1):
        assert await here.refused(first_attempt=False) == (ShortLine("tea", 1, 0),)
    here.clock.seconds += BELIEF_SECONDS
    with here.calls.expected(scripts=1, reads=0):
        await here.refused()
    with here.calls.expected(scripts=0, reads=0):
        await here.refused()
    row = await here.shop.row("tea")
    assert (row.reserved, row.version) == (1, 2)


async def test_a_row_that_is_not_there_is_known_too(here: Here) -> None:
    missing = (ShortLine("tea", 1, 0, known=False),)
    assert await here.refused() == missing
    with here.calls.expected(scripts=0, reads=0):
        assert await here.refused() == missing
    await here.shop.receive("tea", 1)
    assert await here.want() is False


async def test_a_crowd_costs_one_small_read_for_all_who_do_not_say_that_they_are_new(
    here: Here,
) -> None:
    await here.sell_out()
    with here.calls.expected(scripts=0, reads=1):
        await asyncio.gather(*(here.refused(first_attempt=False) for _ in range(100)))


async def test_a_retry_gets_its_first_answer_whoever_gave_that(here: Here, elsewhere: Shop) -> None:
    await here.sell_out(key="mine")
    await elsewhere.receive("tea", 1)
    held = await elsewhere.reserve([("tea", 1)], key="theirs")
    here.clock.seconds += BELIEF_SECONDS
    await here.refused()
    # The row is known to be out, and these two have what they ask for.
    assert await here.want(key="theirs", first_attempt=False) is True
    assert await here.want(key="mine", first_attempt=False) is True
    # Who says that a retry is none is believed, unless this process knows better.
    assert await here.want(key="mine", first_attempt=True) is True
    # Whatever has become of the reservation since.
    await elsewhere.release(held.reservation.id)
    await elsewhere.reserve([("tea", 1)])
    assert await here.want(key="theirs", first_attempt=False) is True
    with pytest.raises(IdempotencyKeyReused):
        await here.want(("tea", 2), key="theirs", first_attempt=False)


async def test_a_refused_key_may_be_tried_again_and_then_gets_its_units(here: Here) -> None:
    await here.sell_out()
    with here.calls.expected(scripts=0, reads=0):
        await here.refused(key="again")
    await here.shop.receive("tea", 1)
    assert await here.want(key="again", first_attempt=False) is False
    assert await here.want(key="again", first_attempt=False) is True


async def test_a_partial_reserve_and_a_cart_with_something_else_are_left_to_the_store(
    here: Here,
) -> None:
    await here.shop.receive("cup", 5)
    await here.sell_out()
    with here.calls.expected(scripts=1, reads=0):
        assert await here.want(("tea", 1), ("cup", 1), partial=True) is False
    with here.calls.expected(scripts=1, reads=0):
        short = await here.refused(("tea", 1), ("cup", 9))
    assert short == (ShortLine("tea", 1, 0), ShortLine("cup", 9, 4))
    with here.calls.expected(scripts=0, reads=0):
        assert await here.refused(("cup", 9), ("tea", 1)) == (short[1], short[0])


async def restock(here: Here, _held: str) -> None:
    await here.shop.receive("tea", 1)


async def release(here: Here, held: str) -> None:
    await here.shop.release(held)


async def count(here: Here, _held: str) -> None:
    await here.shop.move(MovementType.COUNT, "tea", 2)


async def expire(here: Here, _held: str) -> None:
    shop = here.shop
    await shop.receive("tea", 1)
    short_lived = await shop.reserve([("tea", 1)], ttl_ms=1_000)
    await here.refused()
    await shop.set_clock(short_lived.reservation.created_at_ms + 2_000)
    assert (await shop.inventory.expire_due(shop.keys().partition)).expired >= 1


async def pick_short(here: Here, _held: str) -> None:
    await here.shop.receive("tea", 2)
    held = await here.shop.reserve([("tea", 2)])
    await here.refused()
    await here.shop.commit(held.reservation.id, [("tea", 1)])


async def lower_safety_stock(here: Here, _held: str) -> None:
    shop = here.shop
    for safety_stock in (1, 0):
        row = await shop.row("tea")
        await shop.inventory.configure(
            shop.merchant,
            LOCATION,
            "tea",
            key=new_key(),
            safety_stock=safety_stock,
            expected_version=row.version,
            actor=ACTOR,
        )
        if safety_stock:
            await shop.receive("tea", 1)
            await here.refused()


@pytest.mark.parametrize(
    "bring_back", [restock, release, count, expire, pick_short, lower_safety_stock]
)
async def test_what_this_process_brings_back_is_there_at_once(
    here: Here, bring_back: Callable[[Here, str], Awaitable[None]]
) -> None:
    held = await here.sell_out()
    await bring_back(here, held)
    assert await here.want() is False


async def test_what_another_process_brings_back_is_there_when_the_time_is_up_or_it_is_seen(
    here: Here, elsewhere: Shop
) -> None:
    await here.sell_out()
    await elsewhere.receive("tea", 1)
    await here.refused()
    here.clock.seconds += BELIEF_SECONDS
    assert await here.want() is False
    await here.refused()
    await elsewhere.receive("tea", 2)
    await here.refused()
    assert (await here.shop.row("tea")).available == 2
    assert await here.want() is False
    await here.refused(("tea", 2))
    await elsewhere.receive("tea", 1)
    await here.shop.inventory.rows(here.shop.merchant, [(LOCATION, "tea")])
    assert await here.want(("tea", 2)) is False


async def test_nothing_is_oversold_or_lost_where_two_processes_shed(
    here: Here, elsewhere: Shop
) -> None:
    there = SoldOut()
    elsewhere.inventory._shared.sold_out = there
    here.shop.inventory._shared.sold_out = SoldOut()

    async def shopper(shop: Shop, number: int) -> int:
        key = f"shopper-{number}"
        try:
            first = await shop.reserve([("tea", 1)], key=key)
        except InsufficientStock:
            return 0
        # A lost answer: the same again, through the other process.
        other = elsewhere if shop is here.shop else here.shop
        again = await other.reserve([("tea", 1)], key=key)
        assert again.replayed
        assert again.reservation.id == first.reservation.id
        return 1

    held = 0
    for round_number in range(5):
        await elsewhere.receive("tea", 7)
        shops = (here.shop, elsewhere)
        held += sum(
            await asyncio.gather(
                *(shopper(shops[n % 2], 100 * round_number + n) for n in range(60))
            )
        )
    row = await here.shop.row("tea")
    assert (row.on_hand, row.reserved) == (35, held)


# Over HTTP


async def test_the_caller_says_that_a_key_is_new(api: Api, shelf: Shelf) -> None:
    api.service.inventory._shared.sold_out = SoldOut(clock=Clock())
    await shelf.move("receive", "tea", 1)
    assert (await shelf.reserve(("tea", 1), key="first")).status_code == 201

    async def ask(key: str, attempt: str) -> Any:
        return await shelf.client.post(
            f"{shelf.path}/reservations",
            json={"lines": lines_of([("tea", 1)])},
            headers={"Idempotency-Key": key, ATTEMPT_HEADER: attempt},
        )

    for attempt in ("1", "2", "999"):
        problem = assert_problem(await ask(f"k-{attempt}", attempt), 409, "insufficient_stock")
        assert (problem["errors"][0]["requested"], problem["errors"][0]["available"]) == (1, 0)
        assert problem["errors"][0]["pointer"] == "#/lines/0"
        answer = await ask("first", attempt)
        assert (answer.status_code, answer.headers["idempotent-replayed"]) == (201, "true")
    for attempt in ("0", "01", "-1", "1.0", "one", "1000", ""):
        problem = assert_problem(await ask("k", attempt), 400, "invalid_request")
        assert problem["errors"][0]["header"] == ATTEMPT_HEADER


async def test_a_restock_through_another_gateway_is_seen_soon(
    store: RealStore, merchant: str
) -> None:
    async with (
        Api(store.settings, merchant) as api,
        GatewayProcess(store.settings) as first,
        GatewayProcess(store.settings) as second,
    ):
        await first.wait_until_ready()
        await second.wait_until_ready()
        secret = await api.secret(Role.ADMIN, merchant)
        async with first.client(secret) as one, second.client(secret) as other:
            here, there = Shelf(one, merchant), Shelf(other, merchant)
            await there.move("receive", "tea", 1)
            assert (await here.reserve(("tea", 1), key="k")).status_code == 201
            for _ in range(5):
                assert_problem(await there.reserve(("tea", 1)), 409, "insufficient_stock")
                answer = await there.reserve(("tea", 1), key="k")
                assert answer.headers["idempotent-replayed"] == "true"
                assert_problem(await here.reserve(("tea", 1)), 409, "insufficient_stock")
                await there.move("receive", "tea", 1)
                for _ in range(MAX_ATTEMPTS):
                    if (await here.reserve(("tea", 1))).status_code == 201:
                        break
                else:
                    pytest.fail("the restock was never seen")
