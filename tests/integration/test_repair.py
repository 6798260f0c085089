"""Repair on real stores: through the ledger, once, and only what is still as it was found."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgpack
import pytest

from engine.limits import RETENTION_MS
from engine.model import MovementType, ReservationState
from engine.outcomes import (
    BuyerCapExceeded,
    InvalidCommand,
    ReservationNotFound,
    StoreReadOnly,
)
from engine.shortfalls import ShortfallKeeper
from reconciler.audit import audit
from reconciler.findings import Code, Finding
from reconciler.repair import Verdict, accept, apply, plan
from reconciler.steps import HoldStep, KnownStep, RepairStep, RowStep, SegmentStep
from tests.damage import (
    MENDER,
    REASON,
    DamagedShop,
    archived,
    codes,
    damaged_shop,
    flip,
    only,
    trade,
    trade_on_terms,
)
from tests.shop import ACTOR, LOCATION, open_shop
from tests.stores import KINDS, MakeStore, RealCluster

GHOST = "rsv_0_" + "0" * 24

Harm = Callable[[DamagedShop, list[str]], Awaitable[object]]


@pytest.fixture
async def damaged(make_store: MakeStore, tmp_path: Path) -> AsyncIterator[DamagedShop]:
    async with damaged_shop(make_store, tmp_path) as opened:
        yield opened


async def edit_row(it: DamagedShop, _: list[str]) -> None:
    await it.run("HINCRBY", it.stock_key("apple"), "on_hand", 5)


async def edit_reserved(it: DamagedShop, _: list[str]) -> None:
    await it.run("HSET", it.stock_key("apple"), "reserved", 0)


async def age_row(it: DamagedShop, _: list[str]) -> None:
    await it.run("HSET", it.stock_key("apple"), "version", 2, "on_hand", 1)


async def spoil_row(it: DamagedShop, _: list[str]) -> None:
    await it.run("HSET", it.stock_key("apple"), "on_hand", "1e3")


async def delete_row(it: DamagedShop, _: list[str]) -> None:
    await it.run("DEL", it.stock_key("apple"))


async def retype_row(it: DamagedShop, _: list[str]) -> None:
    await it.run("DEL", it.stock_key("apple"))
    await it.run("RPUSH", it.stock_key("apple"), "no", "row")


async def plant_row(it: DamagedShop, _: list[str]) -> None:
    key = it.stock_key("planted")
    await it.run("HSET", key, "on_hand", 9, "reserved", 4, "safety_stock", 1, "version", 3)


async def delete_holds(it: DamagedShop, ids: list[str]) -> None:
    for the_id in ids:
        await it.run("DEL", it.keys.reservation(the_id))


async def end_hold(it: DamagedShop, ids: list[str]) -> None:
    await it.run("HSET", it.keys.reservation(ids[0]), "state", "released", "ended_at", 5)


async def retype_hold(it: DamagedShop, ids: list[str]) -> None:
    await it.run("DEL", it.keys.reservation(ids[0]))
    await it.run("SET", it.keys.reservation(ids[0]), "no reservation")


async def plant_hold(it: DamagedShop, ids: list[str]) -> None:
    await it.run("COPY", it.keys.reservation(ids[0]), it.keys.reservation(GHOST))
    await it.run("ZADD", it.keys.holds, 1, GHOST)
    opened = it.keys.open_reservations(it.shop.merchant, LOCATION)
    await it.run("ZADD", opened, 1, GHOST)


async def mix_up_indexes(it: DamagedShop, ids: list[str]) -> None:
    merchant = it.shop.merchant
    opened = it.keys.open_reservations(merchant, LOCATION)
    await it.run("ZADD", it.keys.holds, 1, GHOST, 2, ids[1], 3, ids[2])
    await it.run("ZADD", opened, 1, GHOST, 2, ids[2])
    await it.run("ZREM", it.keys.holds, ids[0])
    await it.run("ZREM", opened, ids[1])
    await it.run("ZADD", it.keys.open_reservations(merchant, it.neighbour), 1, ids[0])
    await it.run("ZREM", it.keys.skus(merchant, LOCATION), "pear")
    await it.run("ZADD", it.keys.skus(merchant, LOCATION), 0, "unheard of")
    await it.run("ZADD", it.keys.locations, 0, f"{merchant}:{it.neighbour}")


async def retype_index(it: DamagedShop, _: list[str]) -> None:
    await it.run("SET", it.keys.holds, "no index")
    await it.run("SET", it.keys.skus(it.shop.merchant, LOCATION), "no index")


async def mix_up_records(it: DamagedShop, _: list[str]) -> None:
    merchant = it.shop.merchant
    moves = [await it.shop.receive("apple", 1) for _ in range(3)]
    seen = [it.keys.seen(merchant, moved.id) for moved in moves]
    await it.run("DEL", seen[0])
    await it.run("COPY", seen[2], seen[1], "REPLACE")
    await it.run("COPY", seen[2], it.keys.seen(merchant, "invented"))


async def skip_sequence(it: DamagedShop, _: list[str]) -> None:
    await it.run("HINCRBY", it.keys.meta, "sequence", 3)


async def set_sequence_back(it: DamagedShop, _: list[str]) -> None:
    await it.run("HINCRBY", it.keys.meta, "sequence", -3)


async def set_sequence_back_and_go_on(it: DamagedShop, ids: list[str]) -> None:
    await set_sequence_back(it, ids)
    await it.shop.receive("apple", 2)


async def lose_last_entry(it: DamagedShop, _: list[str]) -> None:
    await it.shop.receive("apple", 2)
    await it.run("XDEL", it.keys.ledger, (await it.ledger_ids())[-1])


async def lose_entries_in_between(it: DamagedShop, _: list[str]) -> None:
    ids = await it.ledger_ids()
    await it.run("XDEL", it.keys.ledger, *ids[3:7])


async def lose_every_entry(it: DamagedShop, _: list[str]) -> None:
    await it.run("XDEL", it.keys.ledger, *await it.ledger_ids())


async def edit_row_and_go_on(it: DamagedShop, ids: list[str]) -> None:
    await edit_row(it, ids)
    await it.run("HINCRBY", it.stock_key("pear"), "safety_stock", 9)
    await it.shop.move(MovementType.SALE, "apple", 1)
    await it.shop.move(MovementType.SALE, "pear", 1)


HARMS: list[Harm] = [
    edit_row,
    edit_reserved,
    age_row,
    spoil_row,
    delete_row,
    retype_row,
    plant_row,
    delete_holds,
    end_hold,
    retype_hold,
    plant_hold,
    mix_up_indexes,
    retype_index,
    mix_up_records,
    skip_sequence,
    set_sequence_back,
    set_sequence_back_and_go_on,
    lose_last_entry,
    lose_entries_in_between,
    lose_every_entry,
    edit_row_and_go_on,
]


async def mix_up_queues(it: DamagedShop, ids: list[str]) -> None:
    await it.run("ZREM", it.queue_key("tea"), ids[0])
    await it.run("ZADD", it.queue_key("tea"), 1, ids[1], 2, ids[3], 3, GHOST)
    await it.run("ZADD", it.queue_key("nothing"), 4, ids[2])


async def retype_queue(it: DamagedShop, _: list[str]) -> None:
    await it.run("SET", it.queue_key("tea"), "no queue")
    await it.run("SET", it.queue_key("nothing"), "no queue")


async def edit_count(it: DamagedShop, ids: list[str]) -> None:
    await it.run("SET", await it.buyer_key(), msgpack.packb({ids[3]: [9, 0], GHOST: [1, 0]}))


async def delete_count(it: DamagedShop, _: list[str]) -> None:
    await it.run("DEL", await it.buyer_key())


async def retype_count(it: DamagedShop, _: list[str]) -> None:
    key = await it.buyer_key()
    await it.run("DEL", key)
    await it.run("RPUSH", key, "no count")
    await it.run("SET", f"{key[:-1]}{'0' if key[-1] != '0' else '1'}", "no count")


async def edit_terms(it: DamagedShop, _: list[str]) -> None:
    terms = msgpack.unpackb(await it.run("HGET", it.stock_key("milk"), "terms"))
    terms["channels"]["web"]["held"] = 0
    await it.run("HSET", it.stock_key("milk"), "terms", msgpack.packb(terms))
    await it.run("HDEL", it.stock_key("tea"), "backordered")


async def spoil_terms(it: DamagedShop, _: list[str]) -> None:
    await it.run("HSET", it.stock_key("milk"), "terms", msgpack.packb({"channels": {"web": 1}}))
    await it.run("HSET", it.stock_key("tea"), "terms", "no terms")


async def lose_a_promise(it: DamagedShop, _: list[str]) -> None:
    """Lose the ledger's word of a promise that the store still has."""
    await it.shop.reserve([("milk", 1), ("tea", 2)], channel="web", buyer="ann")
    await it.run("XDEL", it.keys.ledger, (await it.ledger_ids())[-1])


HARMS_ON_TERMS: list[Harm] = [
    mix_up_queues,
    retype_queue,
    edit_count,
    delete_count,
    retype_count,
    edit_terms,
    spoil_terms,
    lose_a_promise,
    delete_holds,
    end_hold,
]


@pytest.mark.parametrize("harm", HARMS_ON_TERMS)
async def test_what_was_harmed_of_promises_on_terms_is_mended(
    damaged: DamagedShop, harm: Harm
) -> None:
    ids = await trade_on_terms(damaged.shop)
    await harm(damaged, ids)

    await check_mended(damaged)

    # What came is given in order of promise, and the buyer is told of the cap that was there.
    await damaged.shop.receive("tea", 9)
    (row,) = await damaged.inventory.rows(damaged.shop.merchant, [(LOCATION, "tea")])
    assert row is not None
    assert row.backordered == 0
    with pytest.raises(BuyerCapExceeded):
        await damaged.shop.reserve([("milk", 3)], buyer="ann")
    assert (await damaged.audit()).findings == ()


async def test_what_a_lost_place_in_the_queue_missed_is_given_after_the_repair(
    damaged: DamagedShop,
) -> None:
    first, *_ = await trade_on_terms(damaged.shop)
    await damaged.run("DEL", damaged.queue_key("tea"))
    await damaged.shop.receive("tea", 9)
    assert (await damaged.shop.row("tea")).backordered == 5, "nobody could be found to have it"

    await damaged.mend()
    await ShortfallKeeper(damaged.inventory).round()

    assert (await damaged.shop.row("tea")).backordered == 0
    await damaged.shop.commit(first)
    assert (await damaged.audit()).findings == ()


@pytest.mark.parametrize("harm", HARMS)
async def test_what_was_harmed_is_mended_through_the_ledger_and_once(
    damaged: DamagedShop, harm: Harm
) -> None:
    ids = await trade(damaged.shop)
    await harm(damaged, ids)

    await check_mended(damaged)


async def check_mended(damaged: DamagedShop) -> None:
    """Mend, and check that all is well then, by operations of the ledger, and stays so."""

    mended = await damaged.mend()

    assert mended.audit.findings == ()
    verdicts = {one.verdict for report in mended.rounds for one in report.applied}
    assert verdicts == {Verdict.DONE}, [
        (one.verdict, one.detail, one.step) for report in mended.rounds for one in report.applied
    ]
    kind, _, _, _, actor, _, _, detail = (await damaged.last_entry())[-1]
    assert (kind, actor, detail[1]) == ("repair", MENDER, REASON)

    entries = await damaged.ledger_ids()
    again = await damaged.mend()
    assert (again.rounds, again.audit.findings) == ((), ())
    assert await damaged.ledger_ids() == entries


@pytest.mark.parametrize("kind", KINDS)
async def test_every_harm_at_once_is_mended(
    kind: str, make_store: MakeStore, tmp_path: Path
) -> None:
    async with damaged_shop(make_store, tmp_path, kind=kind) as damaged:
        ids = await trade(damaged.shop)
        for harm in (edit_row_and_go_on, plant_row, mix_up_indexes, mix_up_records, end_hold):
            await harm(damaged, ids)
        for harm in (lose_entries_in_between, spoil_row, skip_sequence):
            await harm(damaged, ids)

        mended = await damaged.mend()

        assert mended.audit.findings == ()


async def test_an_edited_row_gets_its_units_back_under_a_new_version(
    damaged: DamagedShop,
) -> None:
    await trade(damaged.shop)
    before = await damaged.shop.row("apple")
    await edit_row(damaged, [])

    await damaged.mend()

    after = await damaged.shop.row("apple")
    assert (after.on_hand, after.reserved) == (before.on_hand, before.reserved)
    assert after.version == before.version + 1
    (operation,) = await damaged.last_entry()
    what, _, finding, found = operation[7]
    assert (what, finding) == ("row", Code.ROW_DIFFERS)
    assert ["on_hand", str(before.on_hand + 5)] in found
    assert operation[6] == [
        ["apple", after.version, [after.on_hand, after.reserved, 0, 0], [0, 0, 0, 0]]
    ]


async def test_units_that_nobody_booked_are_taken_back_from_under_later_sales(
    damaged: DamagedShop,
) -> None:
    await damaged.shop.receive("apple", 10)
    await damaged.run("HINCRBY", damaged.stock_key("apple"), "on_hand", 7)
    await damaged.shop.move(MovementType.SALE, "apple", 1)

    await damaged.mend()

    assert (await damaged.shop.row("apple")).on_hand == 9


async def test_a_count_after_the_edit_says_what_is_there(damaged: DamagedShop) -> None:
    await damaged.shop.receive("apple", 10)
    await damaged.run("HINCRBY", damaged.stock_key("apple"), "on_hand", 7)
    await damaged.shop.move(MovementType.COUNT, "apple", 12)

    await damaged.mend()

    assert (await damaged.shop.row("apple")).on_hand == 12


async def test_what_the_ledger_lost_is_taken_over_from_the_store(damaged: DamagedShop) -> None:
    await damaged.shop.receive("apple", 10)
    held = (await damaged.shop.reserve([("apple", 4)], key="lost")).reservation
    await damaged.run("XDEL", damaged.keys.ledger, (await damaged.ledger_ids())[-1])

    await damaged.mend()

    row = await damaged.shop.row("apple")
    assert (row.on_hand, row.reserved) == (10, 4)
    again = await damaged.shop.reserve([("apple", 4)], key="lost")
    assert (again.replayed, again.reservation) == (True, held)
    await damaged.shop.commit(held.id)
    assert (await damaged.audit()).findings == ()


async def test_the_answer_of_a_lost_operation_still_meets_its_retry(damaged: DamagedShop) -> None:
    first = await damaged.shop.move(MovementType.RECEIVE, "apple", 10, key="once")
    await damaged.run("XDEL", damaged.keys.ledger, (await damaged.ledger_ids())[-1])

    await damaged.mend()

    again = await damaged.shop.move(MovementType.RECEIVE, "apple", 10, key="once")
    assert (again.replayed, again.id) == (True, first.id)
    assert (await damaged.shop.row("apple")).on_hand == 10


async def test_a_deleted_hold_can_be_committed_after_the_repair(damaged: DamagedShop) -> None:
    held, confirmed, released, _ = await trade(damaged.shop)
    inventory, merchant = damaged.inventory, damaged.shop.merchant
    before = [await inventory.reservation(merchant, the_id) for the_id in (held, confirmed)]
    await delete_holds(damaged, [held, confirmed, released])
    with pytest.raises(ReservationNotFound):
        await damaged.shop.commit(confirmed)

    await damaged.mend()

    assert [await inventory.reservation(merchant, the_id) for the_id in (held, confirmed)] == before
    assert (await damaged.shop.commit(confirmed)).reservation.state is ReservationState.COMMITTED
    assert (await damaged.shop.release(released)).replayed
    ttl_ms = await damaged.run("PTTL", damaged.keys.reservation(released))
    assert 0 < ttl_ms <= RETENTION_MS
    assert await damaged.run("PTTL", damaged.keys.reservation(held)) == -1


async def test_a_planted_row_is_emptied_and_not_deleted(damaged: DamagedShop) -> None:
    """A reader that saw version 3 takes no notice of a row that is gone, or of an older one."""
    await plant_row(damaged, [])

    await damaged.mend()

    row = await damaged.shop.row("planted")
    assert (row.on_hand, row.reserved, row.safety_stock, row.version) == (0, 0, 0, 4)


async def test_a_plan_that_went_stale_is_refused_step_by_step(damaged: DamagedShop) -> None:
    held, *_ = await trade(damaged.shop)
    await edit_row(damaged, [])
    await damaged.run("HINCRBY", damaged.stock_key("plum"), "on_hand", 5)
    await end_hold(damaged, [held])
    steps = plan((await damaged.audit()).findings)
    await damaged.shop.receive("apple", 1)
    await damaged.run("HSET", damaged.keys.reservation(held), "ended_at", 6)

    report = await apply(damaged.inventory, steps, actor=MENDER, reason=REASON)

    assert {subject(one.step): one.verdict for one in report.applied} == {
        "apple": Verdict.STALE,
        "plum": Verdict.DONE,
        held: Verdict.STALE,
    }
    assert (await damaged.mend()).audit.findings == ()


async def test_a_repair_whose_reply_was_lost_is_not_done_twice(damaged: DamagedShop) -> None:
    await trade(damaged.shop)
    await edit_row(damaged, [])
    steps = plan((await damaged.audit()).findings)

    first = await apply(damaged.inventory, steps, actor=MENDER, reason=REASON)
    second = await apply(damaged.inventory, steps, actor=MENDER, reason=REASON)

    assert [one.verdict for one in first.applied] == [Verdict.DONE]
    assert [one.verdict for one in second.applied] == [Verdict.ALREADY]


async def test_a_loss_stays_on_record_until_all_else_is_done(damaged: DamagedShop) -> None:
    await damaged.shop.receive("apple", 10)
    await lose_last_entry(damaged, [])
    steps = plan((await damaged.audit()).findings)
    await damaged.shop.receive("apple", 1)

    report = await apply(damaged.inventory, steps, actor=MENDER, reason=REASON)

    verdicts = {type(one.step): one.verdict for one in report.applied}
    assert verdicts[RowStep] is Verdict.STALE
    assert verdicts[KnownStep] is Verdict.STALE
    assert Code.ENTRIES_MISSING in codes((await damaged.audit()).findings)


async def test_a_repair_needs_a_reason(damaged: DamagedShop) -> None:
    with pytest.raises(InvalidCommand):
        await apply(damaged.inventory, [], actor=MENDER, reason="")


async def test_a_store_that_is_being_rebuilt_takes_no_repair(damaged: DamagedShop) -> None:
    await trade(damaged.shop)
    await edit_row(damaged, [])
    steps = plan((await damaged.audit()).findings)
    await damaged.run("HSET", damaged.keys.meta, "rebuilding", "r1")

    with pytest.raises(StoreReadOnly):
        await apply(damaged.inventory, steps, actor=MENDER, reason=REASON)


@pytest.mark.parametrize("remove", [False, True])
async def test_a_segment_is_written_again_from_the_store(
    damaged: DamagedShop, remove: bool
) -> None:
    paths = await archived(damaged)
    sound = paths[1].read_bytes()
    if remove:
        paths[1].unlink()
    else:
        flip(paths[1])

    mended = await damaged.mend()

    assert mended.audit.findings == ()
    assert [type(one.step) for one in mended.rounds[0].applied] == [SegmentStep]
    assert paths[1].read_bytes() == sound
    kept = list((damaged.folder / damaged.archive.store_id / "damaged").rglob("*.segment"))
    assert len(kept) == (0 if remove else 1)


async def test_history_that_is_lost_for_good_is_put_on_record(damaged: DamagedShop) -> None:
    paths = await archived(damaged)
    ids = await damaged.ledger_ids()
    await damaged.run("XDEL", damaged.keys.ledger, *ids[5:10])
    flip(paths[1])
    before = await damaged.shop.row("apple")

    mended = await damaged.mend()

    assert mended.audit.findings == ()
    after = await damaged.shop.row("apple")
    assert (after.on_hand, after.version) == (before.on_hand, before.version + 1)


async def test_an_accepted_anomaly_is_an_operation_in_the_ledger(damaged: DamagedShop) -> None:
    applied = await accept(
        damaged.inventory,
        merchant=damaged.shop.merchant,
        name="import:stocktaking",
        actor=MENDER,
        reason="it was counted so",
    )

    assert applied.verdict is Verdict.DONE
    assert (await damaged.audit()).findings == ()


async def test_the_plan_says_what_it_would_do(damaged: DamagedShop) -> None:
    ids = await trade(damaged.shop)
    await edit_row(damaged, ids)
    await delete_holds(damaged, ids[:1])
    report = await damaged.audit()

    steps = plan(report.findings)

    row = next(step for step in steps if isinstance(step, RowStep))
    hold = next(step for step in steps if isinstance(step, HoldStep))
    assert len(steps) == 2
    assert "restored as the ledger says" in row.why
    assert hold.why == "restored as the ledger says: held"
    assert only(report, Code.ROW_DIFFERS).remedy == "the ledger's levels are restored"
    again = plan((await damaged.audit()).findings)
    assert [subject(step) for step in again] == [subject(step) for step in steps]


def subject(step: RepairStep) -> str:
    """Return what a step of a row or a reservation is about."""
    if isinstance(step, RowStep):
        return step.sku
    assert isinstance(step, HoldStep)
    return step.reservation


async def test_a_merchant_may_go_on_trading_after_every_repair(damaged: DamagedShop) -> None:
    ids = await trade(damaged.shop)
    await lose_every_entry(damaged, ids)
    await damaged.mend()

    held = (await damaged.shop.reserve([("apple", 1)])).reservation.id
    await damaged.inventory.confirm(damaged.shop.merchant, held, actor=ACTOR)
    await damaged.shop.commit(held)
    await damaged.shop.commit(ids[1])

    assert (await damaged.audit()).findings == ()


@pytest.mark.cluster
async def test_a_cluster_is_audited_and_repaired_like_one_server(cluster: RealCluster) -> None:
    async with open_shop(cluster.settings) as shop:
        await trade(shop)
        keys = shop.keys()
        row = keys.stock(shop.merchant, LOCATION, "apple")
        ghost = keys.stock(shop.merchant, LOCATION, "planted")
        await shop.client.execute_command("HINCRBY", row, "on_hand", 5)
        await shop.client.execute_command(
            "HSET", ghost, "on_hand", 9, "reserved", 0, "safety_stock", 0, "version", 1
        )

        async def of_this_shop() -> list[Finding]:
            report = await audit(shop.inventory, None)
            return [finding for finding in report.findings if finding.merchant == shop.merchant]

        found = await of_this_shop()
        assert codes(found) == {Code.ROW_DIFFERS, Code.BOOKS_DIFFER, Code.ROW_UNKNOWN}
        await apply(shop.inventory, plan(found), actor=MENDER, reason=REASON)
        assert await of_this_shop() == []
