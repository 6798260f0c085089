"""The engine on a store that is full, forgetful, damaged or being rebuilt: all or nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from engine.kits import check_kit
from engine.model import Line, MovementType, Reservation, ReservationState
from engine.outcomes import StoreFault, StoreReadOnly, StoreUnavailable
from engine.store import connect
from tests.invariants import Audit
from tests.shop import ACTOR, LOCATION, Shop, new_key
from tests.stores import RealStore

Verb = Callable[[Shop, Reservation], Awaitable[object]]


async def configure(shop: Shop, hold: Reservation) -> object:
    row = await shop.row("tea")
    return await shop.inventory.configure(
        shop.merchant,
        LOCATION,
        "tea",
        key=new_key(),
        safety_stock=1,
        expected_version=row.version,
        actor=ACTOR,
    )


async def make_row(shop: Shop, hold: Reservation) -> object:
    return await shop.inventory.configure(
        shop.merchant,
        LOCATION,
        new_key(),
        key=new_key(),
        safety_stock=1,
        expected_version=0,
        actor=ACTOR,
    )


async def expire(shop: Shop, hold: Reservation) -> object:
    await shop.set_clock(hold.expires_at_ms or 0)
    await shop.inventory.expire_due(0)
    found = await shop.inventory.reservation(shop.merchant, hold.id)
    assert found.state is ReservationState.EXPIRED
    return found


VERBS: Final[dict[str, Verb]] = {
    "reserve": lambda shop, hold: shop.reserve([("tea", 1), ("milk", 1)]),
    "confirm": lambda shop, hold: shop.inventory.confirm(shop.merchant, hold.id, actor=ACTOR),
    "extend": lambda shop, hold: shop.inventory.extend(
        shop.merchant, hold.id, key=new_key(), ttl_ms=24 * 3_600_000, actor=ACTOR
    ),
    "amend": lambda shop, hold: shop.inventory.amend(
        shop.merchant, hold.id, [Line("tea", 2), Line("milk", 2)], key=new_key(), actor=ACTOR
    ),
    "commit": lambda shop, hold: shop.commit(hold.id),
    "release": lambda shop, hold: shop.release(hold.id),
    "expire": expire,
    "move": lambda shop, hold: shop.move(MovementType.RETURN, "tea", 1),
    "make": lambda shop, hold: shop.receive(new_key(), 1),
    "define": lambda shop, hold: shop.inventory.kits.write(
        shop.merchant, {new_key(): check_kit("kit", [Line("tea", 1)])}, actor=ACTOR
    ),
    "configure": configure,
    "configure new": make_row,
}
"""A call of each verb that succeeds on a sound store."""

MAY_RUN_FULL: Final = ("confirm", "commit", "release", "expire")
"""They give units back or settle what was promised, so they must work when memory is full."""

TOUCHED: Final[dict[str, tuple[str, ...]]] = {
    "reserve": ("meta", "ledger", "holds", "open", "tea", "milk"),
    "confirm": ("meta", "ledger", "holds", "rsv"),
    "extend": ("meta", "ledger", "holds", "rsv"),
    "amend": ("meta", "ledger", "holds", "rsv", "tea", "milk"),
    "commit": ("meta", "ledger", "holds", "open", "rsv", "tea", "milk"),
    "release": ("meta", "ledger", "holds", "open", "rsv", "tea", "milk"),
    "move": ("meta", "ledger", "tea"),
    "make": ("meta", "ledger", "skus", "locations"),
    "define": ("meta", "ledger"),
    "configure": ("meta", "ledger", "tea"),
    "configure new": ("meta", "ledger", "skus", "locations"),
}
"""The keys that each call reads or writes, by what they are."""


class Damaged:
    """A shop with a hold of two lines, and a tester who may damage its store."""

    def __init__(self, store: RealStore, shop: Shop, hold: Reservation) -> None:
        """Use the fixture `fragile`."""
        self.store = store
        self.shop = shop
        self.hold = hold

    def key(self, what: str) -> str:
        """Return the key of what TOUCHED names."""
        keys, merchant = self.shop.keys(), self.shop.merchant
        return {
            "meta": keys.meta,
            "ledger": keys.ledger,
            "holds": keys.holds,
            "locations": keys.locations,
            "open": keys.open_reservations(merchant, LOCATION),
            "skus": keys.skus(merchant, LOCATION),
            "rsv": keys.reservation(self.hold.id),
            "tea": keys.stock(merchant, LOCATION, "tea"),
            "milk": keys.stock(merchant, LOCATION, "milk"),
        }[what]

    @asynccontextmanager
    async def without(self, key: str) -> AsyncIterator[None]:
        """Put something of a wrong type in a key's place for a while."""
        await self.store.run("RENAME", key, f"{self.shop.keys().tag}:away")
        await self.store.run("SADD", key, "damage")
        try:
            yield
        finally:
            await self.store.run("RENAME", f"{self.shop.keys().tag}:away", key)


@pytest.fixture
async def fragile(own_store: RealStore, own_shop: Shop) -> Damaged:
    await own_shop.receive("tea", 9)
    await own_shop.receive("milk", 9)
    hold = (await own_shop.reserve([("tea", 2), ("milk", 2)])).reservation
    return Damaged(own_store, own_shop, hold)


@pytest.mark.parametrize("verb", TOUCHED)
async def test_a_key_of_a_wrong_type_leaves_nothing_half_done(fragile: Damaged, verb: str) -> None:
    shop, hold = fragile.shop, fragile.hold
    for what in TOUCHED[verb]:
        async with fragile.without(fragile.key(what)):
            with pytest.raises(StoreFault) as fault:
                await VERBS[verb](shop, hold)
            assert "WRONGTYPE" in fault.value.reply, what
        await shop.audit()
        assert await shop.inventory.reservation(shop.merchant, hold.id) == hold
    await VERBS[verb](shop, hold)
    await shop.audit()


async def test_one_damaged_row_harms_only_the_commands_that_name_it(fragile: Damaged) -> None:
    shop = fragile.shop
    async with fragile.without(fragile.key("milk")):
        answers = await asyncio.gather(
            shop.reserve([("tea", 1)]),
            shop.reserve([("tea", 1), ("milk", 1)]),
            shop.reserve([("tea", 1)]),
            shop.row("tea"),
            shop.row("milk"),
            shop.row("tea"),
            return_exceptions=True,
        )
    faults = [isinstance(answer, StoreFault) for answer in answers]
    assert faults == [False, True, False, False, True, False]
    assert (await shop.row("tea")).reserved == 4
    await shop.audit()


@pytest.mark.parametrize("verb", MAY_RUN_FULL)
async def test_a_full_store_still_gives_units_back(fragile: Damaged, verb: str) -> None:
    shop, hold = fragile.shop, fragile.hold
    if verb == "expire":
        await shop.set_clock(hold.expires_at_ms or 0)
    await fragile.store.run("CONFIG", "SET", "maxmemory", 1)
    if verb == "expire":
        assert (await shop.inventory.expire_due(0)).expired == 1
    else:
        await VERBS[verb](shop, hold)
    await shop.audit()


async def test_a_full_store_refuses_whole_what_needs_room(fragile: Damaged) -> None:
    shop, hold = fragile.shop, fragile.hold
    await fragile.store.run("CONFIG", "SET", "maxmemory", 1)
    for verb in sorted(VERBS.keys() - set(MAY_RUN_FULL)):
        with pytest.raises(StoreUnavailable) as refused:
            await VERBS[verb](shop, hold)
        assert "memory" in refused.value.reason, verb
    await shop.audit()
    await fragile.store.run("CONFIG", "SET", "maxmemory", 0)
    await VERBS["reserve"](shop, hold)
    await shop.audit()


async def test_a_store_that_forgot_the_scripts_is_told_them_again(fragile: Damaged) -> None:
    shop = fragile.shop
    for call in VERBS.values():
        hold = (await shop.reserve([("tea", 1)])).reservation
        await fragile.store.run("SCRIPT", "FLUSH")
        await call(shop, hold)
        await shop.receive("tea", 2)
    await shop.audit()


async def test_a_store_that_forgets_the_scripts_all_the_time_serves_all_the_same(
    fragile: Damaged,
) -> None:
    shop = fragile.shop
    tester = connect(fragile.store.tester)
    done = asyncio.Event()

    async def forget() -> int:
        times = 0
        while not done.is_set():
            await tester.execute_command("SCRIPT", "FLUSH", "SYNC")
            times += 1
        return times

    async def shopper() -> None:
        for _ in range(20):
            hold = (await shop.reserve([("tea", 1)])).reservation
            await shop.release(hold.id)

    forgetting = asyncio.create_task(forget())
    try:
        await asyncio.gather(*(shopper() for _ in range(5)))
    finally:
        done.set()
        times = await forgetting
        await tester.aclose()
    assert times > 0
    assert (await shop.row("tea")).reserved == 2
    await shop.audit()


async def test_a_partition_that_is_being_rebuilt_takes_no_writes(fragile: Damaged) -> None:
    shop, hold = fragile.shop, fragile.hold
    await fragile.store.run("HSET", shop.keys().meta, "rebuilding", "rebuild 1")
    for verb in sorted(VERBS.keys() - {"expire"}):
        with pytest.raises(StoreReadOnly):
            await VERBS[verb](shop, hold)
    assert await shop.inventory.reservation(shop.merchant, hold.id) == hold
    await fragile.store.run("HDEL", shop.keys().meta, "rebuilding")
    await shop.commit(hold.id)
    await shop.audit()


async def test_a_restart_keeps_every_row_hold_and_answer(fragile: Damaged) -> None:
    shop, hold = fragile.shop, fragile.hold
    moved = await shop.move(MovementType.RECEIVE, "tea", 3, key="k")
    await fragile.store.restart()
    assert await shop.inventory.reservation(shop.merchant, hold.id) == hold
    again = await shop.move(MovementType.RECEIVE, "tea", 3, key="k")
    assert again.replayed
    assert again.row == moved.row
    committed = await shop.commit(hold.id)
    assert committed.reservation.state is ReservationState.COMMITTED
    await shop.audit()


async def test_the_audit_would_notice_each_kind_of_damage(fragile: Damaged) -> None:
    """The checks themselves are checked: every edit behind the ledger's back is told by name."""
    shop, hold = fragile.shop, fragile.hold
    edits: dict[str, tuple[tuple[Any, ...], ...]] = {
        "Fold": (("HSET", fragile.key("tea"), "on_hand", 8),),
        "HoldsSum": (("HINCRBY", fragile.key("milk"), "reserved", 1),),
        "Integer": (("HSET", fragile.key("tea"), "on_hand", "9.0"),),
        "IndexMatch": (("ZREM", fragile.key("holds"), hold.id),),
        "Dense": (("HINCRBY", fragile.key("meta"), "sequence", 1),),
        "OneEnding": (("HSET", fragile.key("rsv"), "state", "released"),),
    }
    for name, commands in edits.items():
        keys = {str(command[1]) for command in commands}
        copies = {key: await fragile.store.run("DUMP", key) for key in keys}
        for command in commands:
            await fragile.store.run(*command)
        found = await Audit(shop.client, partitions=1).violations()
        assert name in {violation.name for violation in found}, name
        for key, copy in copies.items():
            await fragile.store.run("RESTORE", key, 0, copy, "REPLACE")
    await shop.audit()


async def test_what_is_over_is_kept_for_a_day_and_what_is_not_for_good(fragile: Damaged) -> None:
    shop, hold = fragile.shop, fragile.hold
    day_ms = 24 * 3_600_000
    moved = await shop.move(MovementType.RECEIVE, "tea", 1)
    record = shop.keys().seen(shop.merchant, moved.id)
    assert await fragile.store.run("PTTL", fragile.key("rsv")) == -1
    await shop.release(hold.id)
    for key in (record, fragile.key("rsv")):
        left_ms = await fragile.store.run("PTTL", key)
        assert day_ms - 60_000 < left_ms <= day_ms
    for what in ("tea", "ledger", "meta", "skus", "locations"):
        assert await fragile.store.run("PTTL", fragile.key(what)) == -1
