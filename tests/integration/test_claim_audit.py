"""What is claimed for buyers, held against the ledger and against their reservations."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgpack
import pytest

from engine.claim_driver import ClaimDriver
from engine.claims import ANY, Cap, Claimant, Seen
from engine.keys import (
    PartitionKeys,
    claim_member,
    claim_partition,
    digest_of_buyer,
    reservation_id,
)
from engine.limits import CLAIM_MS
from engine.model import ReservationState
from engine.outcomes import BuyerCapExceeded, StoreFault
from reconciler.findings import Code
from tests.claims import HOUR_MS, PLACES, buy, claims_of, left, pass_time, stock
from tests.damage import DamagedShop, codes, damaged_shop, only
from tests.shop import ACTOR
from tests.stores import MakeStore


@pytest.fixture
async def damaged(make_store: MakeStore, tmp_path: Path) -> AsyncIterator[DamagedShop]:
    async with damaged_shop(make_store, tmp_path, partitions=8) as made:
        yield made


def where(it: DamagedShop) -> tuple[PartitionKeys, str]:
    """Return the keys of the partition that Ann's claims are in, and the key of these."""
    merchant = it.shop.merchant
    who = digest_of_buyer(merchant, "ann")
    keys = it.inventory.keys[claim_partition(merchant, who, it.inventory.partitions)]
    return keys, keys.claims(merchant, who)


async def test_claims_that_were_changed_by_hand_are_found_and_written_again(
    damaged: DamagedShop,
) -> None:
    shop = damaged.shop
    await stock(shop, "shoe")
    held, picked = await buy(shop, 1, "leeds"), await buy(shop, 1, "york")
    await shop.commit(picked.id)
    keys, key = where(damaged)
    right = await claims_of(shop)
    assert (await damaged.audit()).findings == ()

    claims = msgpack.unpackb(await damaged.run("GET", key))
    claims[held.id][1]["shoe"][0] = 0
    planted = f"{key[:-1]}{'0' if key[-1] != '0' else '1'}"
    for harm in (
        ("SET", key, msgpack.packb(claims)),
        ("SET", key, "no claims"),
        ("DEL", key),
        ("ZREM", keys.claiming, claim_member(shop.merchant, key.rpartition(":")[2], held.id)),
    ):
        await damaged.run(*harm)
        finding = only(await damaged.audit(), Code.CLAIMS_DIFFER)
        assert finding.key == key
        await damaged.mend()
        assert (await damaged.audit()).findings == ()
        assert await claims_of(shop) == right
        with pytest.raises(BuyerCapExceeded):
            await buy(shop, 1, "hull")
    elsewhere = claim_partition(shop.merchant, planted.rpartition(":")[2], 8)
    planted = damaged.inventory.keys[elsewhere].claims(shop.merchant, planted.rpartition(":")[2])
    await damaged.run("SET", planted, msgpack.packb(claims))
    assert only(await damaged.audit(), Code.CLAIMS_DIFFER).key == planted
    await damaged.mend()
    assert await damaged.run("EXISTS", planted) == 0


async def test_a_reservation_without_its_claim_gets_it_back(damaged: DamagedShop) -> None:
    """As where the buyer's partition was rebuilt to an earlier moment than that of the row."""
    shop, claiming = damaged.shop, damaged.inventory.claiming
    await stock(shop, "shoe")
    held, picked = await buy(shop, 1, "leeds"), await buy(shop, 1, "york")
    await shop.commit(picked.id)
    right = await claims_of(shop)
    _, key = where(damaged)
    who = Claimant(held.id, shop.merchant, "leeds", digest_of_buyer(shop.merchant, "ann"), ACTOR)
    await claiming._settle(who, ANY, Seen(0, "leeds", ReservationState.RELEASED, 0, 1))
    claims = {name: claim for name, claim in (await claims_of(shop)).items() if "@" not in name}
    assert not claims

    report = await damaged.audit()
    assert codes(report.findings) == {Code.CLAIM_MISSING}
    assert only(report, Code.CLAIM_MISSING).key == key
    await damaged.mend()
    assert (await damaged.audit()).findings == ()
    assert {n: c.lines for n, c in (await claims_of(shop)).items()} == {
        n: c.lines for n, c in right.items()
    }
    assert await left(shop) == 0
    # What was made anew is looked at like any other.
    await ClaimDriver(damaged.inventory).round()
    assert (await damaged.audit()).findings == ()
    await shop.release(held.id)
    assert await left(shop) == 1


async def test_a_claim_that_nobody_looks_at_is_found(damaged: DamagedShop) -> None:
    shop = damaged.shop
    await stock(shop, "shoe", places=PLACES[:1])
    held = await buy(shop, 1, "leeds")
    keys, key = where(damaged)
    member = claim_member(shop.merchant, key.rpartition(":")[2], held.id)
    await damaged.run("ZADD", keys.claiming, 1, member)
    finding = only(await damaged.audit(), Code.CLAIM_OVERDUE)
    assert (finding.reservation, finding.repairable) == (held.id, False)
    await pass_time(shop, ClaimDriver(damaged.inventory), HOUR_MS // 10)
    assert (await damaged.audit()).findings == ()


async def test_claims_that_cannot_be_read_do_not_keep_those_of_others_waiting(
    damaged: DamagedShop,
) -> None:
    shop, claiming = damaged.shop, damaged.inventory.claiming
    await stock(shop, "shoe")
    held = await buy(shop, 1, "leeds")
    keys, key = where(damaged)
    await damaged.run("SET", key, "no claims")
    member = claim_member(shop.merchant, key.rpartition(":")[2], held.id)
    await damaged.run("ZADD", keys.claiming, 1, member)
    the_id = reservation_id(shop.keys("york").partition, shop.merchant, "york", "cart")
    who = Claimant(the_id, shop.merchant, "york", digest_of_buyer(shop.merchant, "bob"), ACTOR)
    await claiming._take(who, {"shoe": 2}, {"shoe": Cap(2, HOUR_MS)}, None, takes_less=False)
    with pytest.raises(StoreFault):
        await claims_of(shop)
    await pass_time(shop, ClaimDriver(damaged.inventory), CLAIM_MS + 2_000)
    assert await left(shop, buyer="bob") == 2


async def test_a_claim_that_says_too_little_is_raised_and_stays_open(damaged: DamagedShop) -> None:
    """Its reservation has more than it says, and somebody may be promising other units under it."""
    shop, claiming = damaged.shop, damaged.inventory.claiming
    await stock(shop, "shoe", "boot")
    await buy(shop, 1, "leeds", key="other")
    held = (await shop.reserve([("shoe", 1)], location="leeds", buyer="ann")).reservation
    who = Claimant(held.id, shop.merchant, "leeds", digest_of_buyer(shop.merchant, "ann"), ACTOR)
    await claiming._settle(who, ANY, Seen(0, "leeds", ReservationState.HELD))
    cap = Cap(2, HOUR_MS)
    open_for = await claiming._take(who, {"boot": 2}, {"boot": cap}, None, takes_less=False)
    only(await damaged.audit(), Code.CLAIM_MISSING)
    await damaged.mend()
    claim = (await claims_of(shop))[held.id]
    assert {sku: line[0] for sku, line in claim.lines.items()} == {"shoe": 1, "boot": 2}
    assert claim.lapses_at_ms == open_for.lapses_at_ms
    assert (await damaged.audit()).findings == ()
