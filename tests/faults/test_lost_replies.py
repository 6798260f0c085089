"""Requests and replies that get lost between engine and store: one effect, and the same answer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import msgspec
import pytest

from engine.ledger import Operation, OperationKind, read_entries
from engine.model import Configured, Line, Moved, MovementType, ReservationResult, ReservationState
from engine.outcomes import OutcomeUnknown, StoreUnavailable
from engine.store import StoreSettings
from tests.callers import persistently
from tests.proxy import Fault, LossyProxy
from tests.shop import ACTOR, LOCATION, Shop, new_key, open_shop
from tests.stores import MakeStore, free_ports, set_up

pytestmark = pytest.mark.faults

ATTEMPT_TIMEOUT_MS: Final = 150
"""How long the engine waits for a reply that never comes: short, for the tests' sake."""

TEST_SECONDS: Final = 30.0

SHOPPERS: Final = 30
ROUNDS: Final = 6
CALLERS: Final = 200

Answer = ReservationResult | Moved | Configured
Call = Callable[[Shop, str, str], Awaitable[Answer]]
"""A call of a verb: by which shop, on which reservation, under which key."""

CALLS: Final[dict[OperationKind, Call]] = {
    OperationKind.RESERVE: lambda shop, hold, key: shop.reserve([("tea", 1), ("milk", 1)], key=key),
    OperationKind.CONFIRM: lambda shop, hold, key: shop.inventory.confirm(
        shop.merchant, hold, order_ref=key, actor=ACTOR
    ),
    OperationKind.EXTEND: lambda shop, hold, key: shop.inventory.extend(
        shop.merchant, hold, key=key, ttl_ms=3_600_000, actor=ACTOR
    ),
    OperationKind.AMEND: lambda shop, hold, key: shop.inventory.amend(
        shop.merchant, hold, [Line("tea", 1)], key=key, actor=ACTOR
    ),
    OperationKind.COMMIT: lambda shop, hold, key: shop.commit(hold, [("tea", 1)]),
    OperationKind.RELEASE: lambda shop, hold, key: shop.release(hold),
    OperationKind.MOVE: lambda shop, hold, key: shop.move(
        MovementType.SALE, "tea", 1, key=key, location=LOCATION
    ),
    OperationKind.CONFIGURE: lambda shop, hold, key: shop.inventory.configure(
        shop.merchant, LOCATION, key, key=key, safety_stock=1, expected_version=0, actor=ACTOR
    ),
}
"""Calls that succeed on a hold of two teas and a milk, and succeed again as replays."""


class Lossy:
    """Two engines behind a proxy that loses things, and one that asks the store itself."""

    def __init__(self, proxy: LossyProxy, shop: Shop, other: Shop, direct: Shop) -> None:
        """Use the fixture `lossy`."""
        self.proxy = proxy
        self.shop = shop
        self.other = other
        self.direct = direct

    async def hold(self) -> str:
        """Hold two teas and a milk, with nothing lost."""
        return (await self.direct.reserve([("tea", 2), ("milk", 1)])).reservation.id

    async def operations(self) -> list[Operation]:
        """Read all that the ledger has."""
        found: list[Operation] = []
        after = "0-0"
        while entries := await read_entries(
            self.direct.inventory.store, self.direct.keys(), after=after
        ):
            found += [operation for entry in entries for operation in entry.operations]
            after = entries[-1].stream_id
        return found


@pytest.fixture
async def lossy(store_kind: str, make_store: MakeStore) -> AsyncIterator[Lossy]:
    (port,) = free_ports(1)
    store = make_store(store_kind, tcp_port=port)
    await store.start()
    await set_up(store.settings, partitions=1)
    async with (
        asyncio.timeout(TEST_SECONDS),
        LossyProxy(port) as proxy,
        open_shop(store.settings) as direct,
        open_shop(through(proxy, store.tcp_settings), direct.merchant) as shop,
        open_shop(through(proxy, store.tcp_settings), direct.merchant) as other,
    ):
        for sku in ("tea", "milk"):
            await direct.receive(sku, 10_000)
        yield Lossy(proxy, shop, other, direct)


def through(proxy: LossyProxy, settings: StoreSettings) -> StoreSettings:
    return msgspec.structs.replace(
        settings,
        url=f"redis://127.0.0.1:{proxy.port}/0",
        attempt_timeout_ms=ATTEMPT_TIMEOUT_MS,
    )


def as_first(answer: Answer) -> Answer:
    """Take away what tells a replay from the first answer."""
    return msgspec.structs.replace(answer, replayed=False)


@pytest.mark.parametrize("fault", Fault)
async def test_a_call_that_gets_lost_once_is_applied_once_and_answered(
    lossy: Lossy, fault: Fault
) -> None:
    for losses, (kind, call) in enumerate(CALLS.items(), start=1):
        hold, key = await lossy.hold(), new_key()
        before = len(await lossy.operations())
        lossy.proxy.plan(fault)
        answer = await call(lossy.shop, hold, key)
        assert lossy.proxy.lost == {fault: losses}, kind
        assert answer.replayed is (fault is not Fault.UNSENT), kind
        again = await call(lossy.direct, hold, key)
        assert again.replayed, kind
        assert as_first(again) == as_first(answer), kind
        assert [done.kind for done in (await lossy.operations())[before:]] == [kind]
    await lossy.direct.audit()


@pytest.mark.parametrize("fault", Fault)
async def test_a_sweep_whose_call_gets_lost_expires_once(lossy: Lossy, fault: Fault) -> None:
    hold = (await lossy.direct.reserve([("tea", 2), ("milk", 1)])).reservation
    assert hold.expires_at_ms is not None
    await lossy.direct.inventory.expire_due(0)
    await lossy.direct.set_clock(hold.expires_at_ms)
    # The sweep asks what is due before it takes anything back; that call passes.
    lossy.proxy.plan(None, fault)
    await lossy.shop.inventory.expire_due(0)
    assert lossy.proxy.lost == {fault: 1}
    found = await lossy.direct.inventory.reservation(lossy.direct.merchant, hold.id)
    assert found.state is ReservationState.EXPIRED
    assert (await lossy.direct.row("tea")).reserved == 0
    expired = [done for done in await lossy.operations() if done.kind is OperationKind.EXPIRE]
    assert [done.id for done in expired] == [hold.id]
    await lossy.direct.audit()


async def test_an_unknown_outcome_is_settled_by_asking_again(lossy: Lossy) -> None:
    for call in CALLS.values():
        # The store has every script from here on, so no reply below is an error.
        await call(lossy.direct, await lossy.hold(), new_key())
    asked = [(kind, await lossy.hold(), new_key()) for kind in CALLS]
    before = len(await lossy.operations())
    lossy.proxy.plan(Fault.CUT, again=True)
    unknown = await asyncio.gather(
        *(CALLS[kind](lossy.shop, hold, key) for kind, hold, key in asked), return_exceptions=True
    )
    # Whoever reads a reservation's lines first may lose that read, and then has done nothing.
    assert {type(outcome) for outcome in unknown} <= {OutcomeUnknown, StoreUnavailable}
    lossy.proxy.plan()
    answers = [await CALLS[kind](lossy.shop, hold, key) for kind, hold, key in asked]
    assert [answer.replayed for answer in answers] == [
        isinstance(outcome, OutcomeUnknown) for outcome in unknown
    ]
    done = [operation.kind for operation in (await lossy.operations())[before:]]
    assert sorted(done) == sorted(CALLS)
    await lossy.direct.audit()


async def test_200_retries_of_one_key_at_once_have_one_effect_and_one_answer(lossy: Lossy) -> None:
    for kind, call in CALLS.items():
        hold, key = await lossy.hold(), new_key()
        before = len(await lossy.operations())
        lossy.proxy.plan(Fault.CUT, None, again=True)
        answers = await asyncio.gather(
            *(
                persistently(call, shop, hold, key)
                for shop in (lossy.shop, lossy.other) * (CALLERS // 2)
            )
        )
        assert len(answers) == CALLERS
        assert sum(not answer.replayed for answer in answers) <= 1, kind
        assert all(as_first(answer) == as_first(answers[0]) for answer in answers), kind
        assert [done.kind for done in (await lossy.operations())[before:]] == [kind]
    assert lossy.proxy.lost[Fault.CUT] >= len(CALLS)
    await lossy.direct.audit()


async def test_a_connection_that_loses_half_of_all_calls_loses_no_unit(lossy: Lossy) -> None:
    async def shopper(shop: Shop, number: int) -> int:
        """Buy or change one's mind in turn; return the teas that left the shelf."""
        bought = 0
        for turn in range(ROUNDS):
            key = new_key()
            cart = [("tea", 1 + turn), ("milk", 1)]
            hold = (await persistently(shop.reserve, cart, key=key)).reservation
            assert hold.lines == tuple(Line(sku, quantity) for sku, quantity in cart)
            if (turn + number) % 2:
                await persistently(shop.release, hold.id)
            else:
                await persistently(shop.commit, hold.id)
                bought += 1 + turn
        return bought

    lossy.proxy.plan(
        *(None, Fault.CUT, None, Fault.UNSENT, None, Fault.SILENCE, Fault.CUT, None), again=True
    )
    bought = await asyncio.gather(
        *(shopper((lossy.shop, lossy.other)[i % 2], i) for i in range(SHOPPERS))
    )
    assert all(lossy.proxy.lost[fault] for fault in Fault)
    tea = await lossy.direct.row("tea")
    assert (tea.on_hand, tea.reserved) == (10_000 - sum(bought), 0)
    kinds = [done.kind for done in await lossy.operations()]
    assert kinds.count(OperationKind.RESERVE) == SHOPPERS * ROUNDS
    assert kinds.count(OperationKind.COMMIT) == SHOPPERS * ROUNDS // 2
    assert kinds.count(OperationKind.RELEASE) == SHOPPERS * ROUNDS // 2
    await lossy.direct.audit()
