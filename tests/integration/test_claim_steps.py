"""Claims whose caller dies at each step, and what time does to them."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Final
from uuid import uuid4

import msgspec
import pytest

from engine import claim_driver
from engine.claim_driver import ClaimDriver
from engine.claims import Cap, Claimant
from engine.clock import Times, read_times
from engine.keys import (
    PartitionKeys,
    claim_member,
    claim_partition,
    digest_of_buyer,
    partition_of,
    reservation_id,
)
from engine.limits import CLAIM_LOOK_MS, CLAIM_MS
from engine.model import BuyerCap, CapScope, Line, MovementType
from engine.order_driver import OrderDriver
from engine.order_records import WantedLine
from engine.orders import Orders
from engine.outcomes import (
    BuyerCapExceeded,
    HoldfastError,
    InsufficientStock,
    StoreUnavailable,
)
from engine.relocation import Relocation
from tests.claims import HOUR_MS, buy, claims_of, left, pass_time, promised, stock
from tests.integration.test_order_steps import Killed, Reaper
from tests.shop import ACTOR, Shop, new_key, open_shop
from tests.stores import VALKEY, MakeStore, set_up

DAY_MS: Final = 24 * HOUR_MS
PLACES: Final = ("leeds", "york")
CAP: Final = BuyerCap(2, 300 * DAY_MS, CapScope.MERCHANT)
MARGIN_MS: Final = 2_000


@pytest.fixture
async def shop(make_store: MakeStore) -> AsyncIterator[Shop]:
    """A shop on a store of its own, since the tests move its clock; with several partitions."""
    store = make_store(VALKEY)
    await store.start()
    await set_up(store.settings, partitions=8)
    async with open_shop(store.settings) as opened:
        yield opened


async def open_door(shop: Shop) -> Shop:
    """Return the shop of a new merchant with two capped rows."""
    one = Shop(shop.inventory, shop.client, f"m-{uuid4().hex[:12]}")
    await stock(one, "shoe", cap=CAP, places=PLACES)
    return one


async def held(shop: Shop, units: int) -> str:
    return (await buy(shop, units, "leeds", key="cart")).id


# What a process may be doing when it dies; each is given the shop and a hold of one unit.


async def reserve(shop: Shop, _hold: str) -> None:
    await buy(shop, 1, "york")


async def reserve_too_much(shop: Shop, _hold: str) -> None:
    with suppress(BuyerCapExceeded):
        await buy(shop, 2, "york")


async def reserve_what_is_out(shop: Shop, _hold: str) -> None:
    with suppress(InsufficientStock):
        await shop.move(MovementType.COUNT, "shoe", 0, location="york")
        await buy(shop, 1, "york")


async def reserve_in_part(shop: Shop, _hold: str) -> None:
    await buy(shop, 2, "york", partial=True)


async def amend_up(shop: Shop, hold: str) -> None:
    lines = [Line("shoe", 2)]
    await shop.inventory.amend(shop.merchant, hold, lines, key=new_key(), actor=ACTOR)


async def amend_away(shop: Shop, hold: str) -> None:
    await shop.receive("sock", 1, location="leeds")
    lines = [Line("shoe", 0), Line("sock", 1)]
    await shop.inventory.amend(shop.merchant, hold, lines, key=new_key(), actor=ACTOR)


async def release(shop: Shop, hold: str) -> None:
    await shop.release(hold)


async def commit(shop: Shop, hold: str) -> None:
    await shop.commit(hold)


async def pick_nothing(shop: Shop, hold: str) -> None:
    await shop.commit(hold, [("shoe", 0)])


async def move(shop: Shop, hold: str) -> None:
    await Relocation(shop.inventory).relocate(shop.merchant, hold, "york", key="move", actor=ACTOR)


async def place(shop: Shop, _hold: str) -> None:
    lines = [WantedLine("shoe", 1, "york")]
    await Orders(shop.inventory).place(
        shop.merchant, lines, key=new_key(), ttl_ms=DAY_MS, buyer="ann", actor=ACTOR
    )


async def place_too_much(shop: Shop, _hold: str) -> None:
    lines = [WantedLine("shoe", 1, "york"), WantedLine("shoe", 1, "leeds")]
    with suppress(BuyerCapExceeded):
        await Orders(shop.inventory).place(
            shop.merchant, lines, key=new_key(), buyer="ann", actor=ACTOR
        )


ACTS: Final[tuple[Callable[[Shop, str], Awaitable[None]], ...]] = (
    reserve,
    reserve_too_much,
    reserve_what_is_out,
    reserve_in_part,
    amend_up,
    amend_away,
    release,
    commit,
    pick_nothing,
    move,
    place,
    place_too_much,
)


async def had(shop: Shop) -> int:
    """Return how many units the buyer was promised or got: the shelves tell of the latter."""
    rows = [await shop.row("shoe", location=one) for one in PLACES]
    counted_out = 20 if rows[1].on_hand == 0 else 0
    return sum(row.reserved for row in rows) + 40 - counted_out - sum(row.on_hand for row in rows)


@pytest.mark.parametrize("act", ACTS, ids=lambda act: str(act.__name__))
async def test_a_claim_whose_caller_dies_at_a_step_is_settled(
    shop: Shop, act: Callable[[Shop, str], Awaitable[None]]
) -> None:
    claiming = shop.inventory.claiming
    driver, order_driver, clean = ClaimDriver(shop.inventory), OrderDriver(shop.inventory), Reaper()
    one = await open_door(shop)
    hold = await held(one, 1)
    claiming.watch = clean.watch
    await act(one, hold)
    assert len(clean.steps) >= 2
    for at in range(len(clean.steps)):
        claiming.watch = Reaper().watch
        one = await open_door(shop)
        hold = (await buy(one, 1, "leeds", ttl_ms=DAY_MS)).id
        claiming.watch = Reaper(at).watch
        with pytest.raises(Killed):
            await act(one, hold)
        claiming.watch = Reaper().watch
        before = f"{act.__name__} killed at {clean.steps[at]}"
        # Whoever comes meanwhile gets no more than what is left.
        with suppress(HoldfastError):
            await buy(one, 2, "york", partial=True, ttl_ms=DAY_MS)
        while await order_driver.round():
            pass
        # While a hold is moved it is at both places, and one of them goes.
        assert await had(one) <= (3 if act is move else 2), before
        await pass_time(shop, driver, CLAIM_MS + MARGIN_MS)
        await order_driver.round()
        assert await had(one) <= 2, before
        await pass_time(shop, driver, CLAIM_LOOK_MS + MARGIN_MS)
        assert await left(one) == 2 - await had(one), (before, await claims_of(one))
        assert all(not claim.lapses_at_ms for claim in (await claims_of(one)).values()), before
        await one.audit()


async def test_what_was_picked_counts_for_the_window_and_what_was_not_does_not(shop: Shop) -> None:
    driver = ClaimDriver(shop.inventory)
    await stock(shop, "shoe")
    two = await buy(shop, 2, "leeds", key="cart")
    await shop.commit(two.id, [("shoe", 1)])
    assert await left(shop) == 1
    again = await shop.reserve([("shoe", 2)], location="leeds", buyer="ann", key="cart")
    assert again.replayed, "a retry gets its answer, whatever is left by now"
    assert await left(shop) == 1
    await pass_time(shop, driver, HOUR_MS + 1)
    assert await left(shop) == 2
    await shop.audit()


async def test_an_expired_hold_is_given_back_with_its_units(shop: Shop) -> None:
    await stock(shop, "shoe")
    await buy(shop, 2, "leeds", ttl_ms=60_000)
    with pytest.raises(BuyerCapExceeded):
        await buy(shop, 1, "york")
    await pass_time(shop, ClaimDriver(shop.inventory), 61_000)
    await buy(shop, 2, "york")
    await shop.audit()


async def test_a_command_that_comes_too_late_promises_nothing(shop: Shop) -> None:
    """It was claimed, and lay about until somebody gave the claim back."""
    driver = ClaimDriver(shop.inventory)
    await stock(shop, "shoe")
    run, calls = shop.inventory.dispatcher.run, []

    async def delayed(verb: str, partition: int, command: object) -> object:
        calls.append(verb)
        if verb == "promise" and calls.count("promise") == 2:
            await pass_time(shop, driver, CLAIM_MS + MARGIN_MS)
            assert await left(shop) == 2, "nobody holds anything"
            await buy(shop, 2, "york")
        return await run(verb, partition, command)  # type: ignore[arg-type]

    shop.inventory.dispatcher.run = delayed  # type: ignore[method-assign, assignment]
    with pytest.raises(BuyerCapExceeded):
        await buy(shop, 2, "leeds")
    assert await promised(shop) == 2
    await shop.audit()


async def test_an_id_that_is_used_again_counts_anew(shop: Shop) -> None:
    driver = ClaimDriver(shop.inventory)
    await stock(shop, "shoe", cap=CAP)
    first = await buy(shop, 1, "leeds", key="cart")
    await shop.commit(first.id)
    keys = shop.keys("leeds")
    await pass_time(shop, driver, 2 * DAY_MS)
    # Its record has gone by then.
    await shop.client.execute_command("DEL", keys.reservation(first.id))
    again = await buy(shop, 1, "leeds", key="cart")
    assert again.id == first.id
    assert await left(shop) == 0
    await shop.commit(again.id)
    assert await left(shop) == 0


async def test_what_became_of_a_lost_reservation_is_taken_for_the_worst(shop: Shop) -> None:
    """Its partition went back to before it: it may have been handed over."""
    driver = ClaimDriver(shop.inventory)
    await stock(shop, "shoe")
    hold = await buy(shop, 2, "leeds", ttl_ms=DAY_MS)
    await shop.client.execute_command("DEL", shop.keys("leeds").reservation(hold.id))
    await pass_time(shop, driver, CLAIM_LOOK_MS + MARGIN_MS)
    assert await left(shop) == 0
    await pass_time(shop, driver, HOUR_MS)
    assert await left(shop) == 2


def at_claims(shop: Shop, buyer: str = "ann") -> tuple[str, PartitionKeys]:
    """Return a buyer's digest, and the keys of the partition that their claims are in."""
    who = digest_of_buyer(shop.merchant, buyer)
    return who, shop.inventory.keys[claim_partition(shop.merchant, who, shop.inventory.partitions)]


def cart_of(shop: Shop) -> Claimant:
    """Return who claims for a cart that was not held yet."""
    the_id = reservation_id(shop.keys("leeds").partition, shop.merchant, "leeds", "cart")
    return Claimant(the_id, shop.merchant, "leeds", at_claims(shop)[0], ACTOR)


async def test_a_claim_stays_open_for_the_last_of_its_commands(shop: Shop) -> None:
    """The first has a location's clock for ahead, and the second, of another process, has not."""
    driver, claiming = ClaimDriver(shop.inventory), shop.inventory.claiming
    await stock(shop, "shoe")
    _, keys = at_claims(shop)
    claimant = cart_of(shop)._replace(instead_of="rsv_0_gone")
    caps = {"shoe": Cap(2, HOUR_MS)}
    pair = (partition_of(shop.merchant, "leeds", shop.inventory.partitions), keys.partition)
    claiming._ahead_ms[pair] = 600_000
    first = await claiming._take(claimant, {"shoe": 2}, caps, None, takes_less=False)
    claiming._ahead_ms.clear()
    second = await claiming._take(claimant, {"shoe": 2}, caps, None, takes_less=False)
    assert second.lapses_at_ms < first.lapses_at_ms
    claim = (await claims_of(shop))[claimant.reservation]
    assert claim.lapses_at_ms == first.lapses_at_ms
    assert not claim.beside, "there is no claim of this name to be beside"
    await pass_time(shop, driver, CLAIM_MS + MARGIN_MS)
    assert await left(shop) == 0
    await pass_time(shop, driver, 600_000)
    assert await left(shop) == 2
    await shop.audit()


async def test_what_is_beside_nothing_any_more_counts_alone(shop: Shop) -> None:
    driver = ClaimDriver(shop.inventory)
    await stock(shop, "shoe")
    hold = await buy(shop, 2, "leeds", key="cart", ttl_ms=DAY_MS)
    moving = Relocation(shop.inventory).relocate
    moved = (await moving(shop.merchant, hold.id, "york", key="move", actor=ACTOR)).result
    ((name, claim),) = (await claims_of(shop)).items()
    assert (name, claim.beside) == (moved.reservation.id, "")
    # One that was left so before is put right when somebody looks at it.
    who, keys = at_claims(shop)
    stale = {name: msgspec.structs.replace(claim, beside=hold.id)}
    text = msgspec.msgpack.encode(stale)
    await shop.client.execute_command("SET", keys.claims(shop.merchant, who), text)
    await pass_time(shop, driver, CLAIM_LOOK_MS + MARGIN_MS)
    assert (await claims_of(shop))[name].beside == ""
    # The id may come again once its record has gone.
    await shop.client.execute_command("DEL", shop.keys("leeds").reservation(hold.id))
    with pytest.raises(BuyerCapExceeded):
        await buy(shop, 2, "leeds", key="cart")
    assert await promised(shop) == 2


async def test_a_window_is_as_long_where_the_location_is_behind(shop: Shop) -> None:
    driver, window_ms = ClaimDriver(shop.inventory), 60_000
    await stock(shop, "shoe", cap=BuyerCap(2, window_ms, CapScope.MERCHANT))
    _, keys = at_claims(shop)
    count = shop.inventory.partitions
    behind = next(
        one for one in PLACES if partition_of(shop.merchant, one, count) != keys.partition
    )
    seconds, _ = await shop.client.execute_command("TIME")
    ahead_ms = int(seconds) * 1000 + 2 * window_ms
    await shop.client.execute_command("HSET", keys.meta, "clock_ms", str(ahead_ms))
    hold = await buy(shop, 2, behind, key="cart")
    await shop.commit(hold.id)
    assert await left(shop) == 0
    await pass_time(shop, driver, window_ms + MARGIN_MS)
    assert await left(shop) == 2
    again = await shop.reserve([("shoe", 2)], location=behind, buyer="ann", key="cart")
    assert again.replayed
    assert await left(shop) == 2, "a retry does not begin the window anew"
    await buy(shop, 2, "york" if behind == "leeds" else "leeds")


async def test_a_pause_is_not_taken_for_a_clock_that_is_ahead(shop: Shop) -> None:
    driver, claiming, pause_ms = ClaimDriver(shop.inventory), shop.inventory.claiming, 600_000
    await stock(shop, "shoe")
    await buy(shop, 1, "leeds", buyer="eve")
    run, clock, calls = shop.inventory.dispatcher.run, claiming._clock, []

    async def delayed(verb: str, partition: int, command: object) -> object:
        calls.append(verb)
        if verb == "promise" and calls.count("promise") == 1:
            await pass_time(shop, driver, pause_ms)
            claiming._clock = lambda: clock() + pause_ms / 1_000
        return await run(verb, partition, command)  # type: ignore[arg-type]

    shop.inventory.dispatcher.run = delayed  # type: ignore[method-assign, assignment]
    await buy(shop, 1, "leeds")
    assert calls.count("promise") == 2
    assert all(ahead_ms < CLAIM_MS for ahead_ms in claiming._ahead_ms.values())


async def test_a_partition_that_is_away_does_not_keep_the_claims_of_others_waiting(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stock(shop, "shoe")
    _, keys = at_claims(shop)
    caps = {"shoe": Cap(2, HOUR_MS)}
    await shop.inventory.claiming._take(cart_of(shop), {"shoe": 2}, caps, None, takes_less=False)

    async def read(store: object, of: PartitionKeys) -> Times:
        if of.partition < keys.partition:
            raise StoreUnavailable
        return await read_times(store, of)  # type: ignore[arg-type]

    monkeypatch.setattr(claim_driver, "read_times", read)
    assert await left(shop) == 0
    with suppress(StoreUnavailable):
        await pass_time(shop, ClaimDriver(shop.inventory), CLAIM_MS + MARGIN_MS)
    assert await left(shop) == 2


async def test_who_claims_while_it_is_looked_at_is_looked_after_in_time(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, claiming = ClaimDriver(shop.inventory), shop.inventory.claiming
    await stock(shop, "shoe")
    hold = await buy(shop, 1, "leeds", ttl_ms=DAY_MS)
    who, keys = at_claims(shop)
    look_after = claiming.look_after

    async def claimed_meanwhile(merchant: str, buyer: str, reservation: str) -> int:
        again_ms = await look_after(merchant, buyer, reservation)
        claimant = Claimant(hold.id, shop.merchant, "leeds", who, ACTOR)
        caps = {"shoe": Cap(2, HOUR_MS)}
        await claiming._take(claimant, {"shoe": 2}, caps, None, takes_less=True)
        return again_ms

    with monkeypatch.context() as patched:
        patched.setattr(claiming, "look_after", claimed_meanwhile)
        await pass_time(shop, driver, CLAIM_LOOK_MS + MARGIN_MS)
    assert await left(shop) == 0
    member = claim_member(shop.merchant, who, hold.id)
    due_ms = float(await shop.client.execute_command("ZSCORE", keys.claiming, member))
    assert due_ms == (await claims_of(shop))[hold.id].due_at_ms
    await pass_time(shop, driver, CLAIM_MS + MARGIN_MS)
    assert await left(shop) == 1
    await shop.audit()
