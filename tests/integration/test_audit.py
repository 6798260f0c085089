"""The audit on real stores: quiet on a sound one, under traffic too; it finds what is planted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from engine.keys import AUDIT_KEY
from engine.model import BuyerCap, MovementType, Pool, Terms
from engine.outcomes import BackorderUnfilled, HoldfastError, StoreReadOnly
from reconciler.archive import open_archive
from reconciler.audit import AuditSettings, audit
from reconciler.continuous_audit import ContinuousAudit, FindingsOfPartition, read_findings
from reconciler.findings import AuditReport, Code, Finding, Invariant, Severity
from reconciler.objects import Objects
from reconciler.rebuild import rebuild
from reconciler.rebuild_plan import RebuildRequest
from reconciler.repair import accept, mend
from reconciler.snapshots import Snapshots
from tests.damage import (
    DamagedShop,
    archived,
    codes,
    damaged_shop,
    flip,
    only,
    trade,
    trade_on_terms,
)
from tests.events import Till
from tests.shop import ACTOR, LOCATION, open_shop
from tests.stores import KINDS, MakeStore, set_up

GHOST = "rsv_0_" + "0" * 24


@pytest.fixture
async def damaged(make_store: MakeStore, tmp_path: Path) -> AsyncIterator[DamagedShop]:
    async with damaged_shop(make_store, tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("kind", KINDS)
async def test_a_sound_store_has_no_findings(
    kind: str, make_store: MakeStore, tmp_path: Path
) -> None:
    async with damaged_shop(make_store, tmp_path, kind=kind) as damaged:
        await trade(damaged.shop)

        before = await damaged.audit()
        await damaged.archiver.archive_all(flush=True)
        after = await damaged.audit()

    assert before.findings == after.findings == ()
    assert before.is_clean
    assert (before.rows, before.reservations, before.segments) == (4, 4, 0)
    # A move or configure leaves a record, and so does the one extension.
    assert before.records == 6
    assert before.operations == after.operations == 13
    assert after.segments > 1


async def test_a_row_edited_by_hand_is_found_with_both_values_and_its_history(
    damaged: DamagedShop,
) -> None:
    await trade(damaged.shop)
    await damaged.run("HINCRBY", damaged.stock_key("apple"), "on_hand", 5)

    report = await damaged.audit()

    finding = only(report, Code.ROW_DIFFERS)
    assert (finding.invariant, finding.severity) == (Invariant.FOLD, Severity.CRITICAL)
    assert (finding.location, finding.sku) == (LOCATION, "apple")
    assert finding.row is not None
    assert finding.row.live is not None
    assert finding.row.ledger is not None
    assert finding.row.live.levels.on_hand == finding.row.ledger.levels.on_hand + 5
    assert finding.row.live.version == finding.row.ledger.version
    kinds = [touch.kind.value for touch in finding.operations]
    assert kinds == ["commit", "release", "reserve", "reserve", "reserve"]
    assert {touch.actor for touch in finding.operations} == {ACTOR}
    assert [touch.sequence for touch in finding.operations] == sorted(
        (touch.sequence for touch in finding.operations), reverse=True
    )
    assert only(report, Code.BOOKS_DIFFER).invariant is Invariant.CONSERVATION
    assert codes(report.findings) == {Code.ROW_DIFFERS, Code.BOOKS_DIFFER}
    assert not report.is_clean


async def test_reserved_units_that_no_hold_has_are_found(damaged: DamagedShop) -> None:
    await trade(damaged.shop)
    await damaged.run("HSET", damaged.stock_key("apple"), "reserved", 100)

    report = await damaged.audit()

    assert only(report, Code.RESERVED_DIFFERS).invariant is Invariant.HOLDS_SUM
    assert only(report, Code.OVERSOLD).invariant is Invariant.NO_OVERSELL
    assert codes(report.findings) == {Code.ROW_DIFFERS, Code.RESERVED_DIFFERS, Code.OVERSOLD}


@pytest.mark.parametrize(
    "text", ["1e3", "0x10", " 5", "05", "-1", "1000000000001", "", b"\xff\xfe"]
)
async def test_a_number_that_is_not_written_as_one_is_found(
    damaged: DamagedShop, text: str | bytes
) -> None:
    await damaged.shop.receive("apple", 5)
    await damaged.run("HSET", damaged.stock_key("apple"), "on_hand", text)

    finding = only(await damaged.audit(), Code.ROW_UNREADABLE)

    assert finding.invariant is Invariant.INTEGER


async def test_a_row_of_another_type_is_found(damaged: DamagedShop) -> None:
    await damaged.shop.receive("apple", 5)
    await damaged.run("DEL", damaged.stock_key("apple"))
    await damaged.run("SADD", damaged.stock_key("apple"), "not stock")

    finding = only(await damaged.audit(), Code.ROW_UNREADABLE)

    assert finding.row is not None
    assert finding.row.live_text == {"type": "set"}


async def test_a_deleted_row_is_found(damaged: DamagedShop) -> None:
    await damaged.shop.receive("apple", 5)
    await damaged.run("DEL", damaged.stock_key("apple"))

    assert codes((await damaged.audit()).findings) == {Code.ROW_MISSING}


async def test_a_deleted_hold_is_found(damaged: DamagedShop) -> None:
    held, confirmed, released, _ = await trade(damaged.shop)
    for the_id in (held, confirmed, released):
        await damaged.run("DEL", damaged.keys.reservation(the_id))

    report = await damaged.audit()

    missing = [one for one in report.findings if one.code is Code.RESERVATION_MISSING]
    assert {one.reservation for one in missing} == {held, confirmed}
    assert {one.invariant for one in missing} == {Invariant.HOLDS_SUM}
    answer = only(report, Code.ANSWER_MISSING)
    assert (answer.reservation, answer.invariant) == (released, Invariant.ONCE)
    assert codes(report.findings) == {Code.RESERVATION_MISSING, Code.ANSWER_MISSING}


async def test_an_ending_that_is_not_in_the_ledger_is_found(damaged: DamagedShop) -> None:
    held, *_ = await trade(damaged.shop)
    await damaged.run("HSET", damaged.keys.reservation(held), "state", "released", "ended_at", 1)

    finding = only(await damaged.audit(), Code.RESERVATION_DIFFERS)

    assert (finding.reservation, finding.invariant) == (held, Invariant.ONE_ENDING)


async def test_index_entries_without_a_hold_are_found_in_both_indexes(
    damaged: DamagedShop,
) -> None:
    _, confirmed, released, _ = await trade(damaged.shop)
    opened = damaged.keys.open_reservations(damaged.shop.merchant, LOCATION)
    await damaged.run("ZADD", damaged.keys.holds, 1, GHOST, 2, released, 3, confirmed)
    await damaged.run("ZADD", opened, 1, GHOST, 2, released)

    report = await damaged.audit()

    by_code = {
        code: {one.reservation for one in report.findings if one.code is code}
        for code in codes(report.findings)
    }
    assert by_code == {
        Code.HOLD_INDEX_DIFFERS: {GHOST, released, confirmed},
        Code.OPEN_INDEX_DIFFERS: {GHOST, released},
    }
    assert {one.invariant for one in report.findings} == {Invariant.INDEX_MATCH}


async def test_missing_and_misplaced_index_entries_are_found(damaged: DamagedShop) -> None:
    held, confirmed, *_ = await trade(damaged.shop)
    merchant = damaged.shop.merchant
    await damaged.run("ZREM", damaged.keys.holds, held)
    await damaged.run("ZREM", damaged.keys.open_reservations(merchant, LOCATION), confirmed)
    await damaged.run("ZREM", damaged.keys.skus(merchant, LOCATION), "pear")
    await damaged.run("ZADD", damaged.keys.skus(merchant, LOCATION), 0, "unheard of")
    await damaged.run("ZADD", damaged.keys.locations, 0, f"{merchant}:{damaged.neighbour}")
    elsewhere = damaged.keys.open_reservations(merchant, damaged.neighbour)
    await damaged.run("ZADD", elsewhere, 1, held)

    report = await damaged.audit()

    assert only(report, Code.HOLD_INDEX_DIFFERS).reservation == held
    opened = {
        (one.reservation, one.location)
        for one in report.findings
        if one.code is Code.OPEN_INDEX_DIFFERS
    }
    assert opened == {(confirmed, LOCATION), (held, damaged.neighbour)}
    listed = {
        (one.location, one.sku) for one in report.findings if one.code is Code.LISTING_DIFFERS
    }
    assert listed == {(LOCATION, "pear"), (LOCATION, "unheard of"), (damaged.neighbour, "")}


async def test_an_index_of_another_type_is_found(damaged: DamagedShop) -> None:
    await trade(damaged.shop)
    await damaged.run("SET", damaged.keys.holds, "not an index")

    report = await damaged.audit()

    assert only(report, Code.INDEX_UNREADABLE).key == damaged.keys.holds


async def test_idempotency_records_are_held_against_the_ledger(damaged: DamagedShop) -> None:
    merchant = damaged.shop.merchant
    moves = [await damaged.shop.receive(sku, 5) for sku in ("apple", "pear", "plum")]
    keys = [damaged.keys.seen(merchant, moved.id) for moved in moves]
    await damaged.run("DEL", keys[0])
    await damaged.run("COPY", keys[2], keys[1], "REPLACE")
    await damaged.run("COPY", keys[2], damaged.keys.seen(merchant, "invented"))

    report = await damaged.audit()

    assert only(report, Code.RECORD_MISSING).key == keys[0]
    assert only(report, Code.RECORD_DIFFERS).key == keys[1]
    assert only(report, Code.RECORD_UNKNOWN).key == damaged.keys.seen(merchant, "invented")
    assert {one.invariant for one in report.findings} == {Invariant.ONCE}


async def test_a_skipped_sequence_is_found_at_once_and_after_more_operations(
    damaged: DamagedShop,
) -> None:
    await damaged.shop.receive("apple", 5)
    await damaged.run("HINCRBY", damaged.keys.meta, "sequence", 3)

    at_the_end = only(await damaged.audit(), Code.ENTRIES_MISSING)
    await damaged.shop.receive("apple", 1)
    in_between = only(await damaged.audit(), Code.ENTRIES_MISSING)

    assert (at_the_end.first, at_the_end.last) == (in_between.first, in_between.last) == (2, 4)
    assert in_between.invariant is Invariant.DENSE


async def test_a_sequence_that_was_set_back_is_found(damaged: DamagedShop) -> None:
    for _ in range(4):
        await damaged.shop.receive("apple", 5)
    await damaged.run("HSET", damaged.keys.meta, "sequence", 2)

    behind = only(await damaged.audit(), Code.SEQUENCE_BEHIND)
    await damaged.shop.receive("apple", 5)
    report = await damaged.audit()

    assert (behind.first, behind.last) == (3, 4)
    overlap = only(report, Code.ENTRIES_OVERLAP)
    assert (overlap.first, overlap.last) == (3, 3)
    assert only(report, Code.ROW_AHEAD).sku == "apple"


async def test_a_deleted_ledger_entry_is_found_with_the_row_that_it_changed(
    damaged: DamagedShop,
) -> None:
    await damaged.shop.receive("apple", 5)
    await damaged.shop.receive("pear", 5)
    await damaged.shop.receive("apple", 2)
    last = (await damaged.ledger_ids())[-1]
    await damaged.run("XDEL", damaged.keys.ledger, last)

    report = await damaged.audit()

    gap = only(report, Code.ENTRIES_MISSING)
    assert (gap.first, gap.last) == (3, 3)
    ahead = only(report, Code.ROW_AHEAD)
    assert ahead.row is not None
    assert ahead.row.live is not None
    assert ahead.row.ledger is not None
    assert (ahead.row.live.version, ahead.row.ledger.version) == (2, 1)
    # The answer that the lost operation left behind is the third trace of it.
    assert codes(report.findings) == {
        Code.ENTRIES_MISSING,
        Code.ROW_AHEAD,
        Code.RECORD_UNKNOWN,
    }


async def test_a_hand_edit_that_later_operations_built_upon_is_still_found(
    damaged: DamagedShop,
) -> None:
    await damaged.shop.receive("apple", 10)
    await damaged.run("HINCRBY", damaged.stock_key("apple"), "on_hand", 7)
    await damaged.shop.move(MovementType.SALE, "apple", 1)

    finding = only(await damaged.audit(), Code.LEVELS_JUMPED)

    assert finding.sequence == 2
    assert finding.row is not None
    assert finding.row.books_drift == 7
    assert finding.row.live == finding.row.ledger


async def test_what_no_operation_made_is_found_by_the_scan(damaged: DamagedShop) -> None:
    held, *_ = await trade(damaged.shop)
    planted = damaged.stock_key("planted")
    await damaged.run("HSET", planted, "on_hand", 9, "reserved", 0, "safety_stock", 0, "version", 1)
    await damaged.run("COPY", damaged.keys.reservation(held), damaged.keys.reservation(GHOST))
    await damaged.run("SET", f"{damaged.keys.tag}:scratch", "somebody's")
    await damaged.run("SET", "not-ours", "no concern of the audit")

    report = await damaged.audit()

    assert only(report, Code.ROW_UNKNOWN).sku == "planted"
    assert only(report, Code.RESERVATION_UNKNOWN).reservation == GHOST
    unknown = only(report, Code.KEY_UNKNOWN)
    assert (unknown.key, unknown.repairable) == (f"{damaged.keys.tag}:scratch", False)
    assert codes(report.findings) == {
        Code.ROW_UNKNOWN,
        Code.RESERVATION_UNKNOWN,
        Code.KEY_UNKNOWN,
    }
    assert (await damaged.audit(AuditSettings(scan=False))).findings == ()


async def test_a_row_s_queue_is_held_against_who_waits(damaged: DamagedShop) -> None:
    first, second, third, milk, _ = await trade_on_terms(damaged.shop)
    assert (await damaged.audit()).findings == ()
    queue = damaged.queue_key("tea")
    (place,) = await damaged.run("ZMSCORE", queue, second)
    await damaged.run("ZREM", queue, first)
    await damaged.run("ZADD", queue, 1, second, 2, milk, 3, GHOST)
    # Of a row without terms: nothing but the scan comes by there.
    await damaged.run("ZADD", damaged.queue_key("nothing"), 4, third)

    findings = {
        (one.sku, one.reservation): one.queue
        for one in (await damaged.audit()).findings
        if (one.code, one.location) == (Code.QUEUE_DIFFERS, LOCATION)
    }

    assert {
        what: evidence and (evidence.found, evidence.place) for what, evidence in findings.items()
    } == {
        ("tea", first): (None, int(place) - 1),
        ("tea", second): (1, int(place)),
        ("tea", milk): (2, None),
        ("tea", GHOST): (3, None),
        ("nothing", third): (4, None),
    }


async def test_what_counts_for_a_buyer_is_held_against_their_promises(
    damaged: DamagedShop,
) -> None:
    *_, open_one, picked = await trade_on_terms(damaged.shop)
    key = await damaged.buyer_key()
    counted = msgspec.msgpack.decode(await damaged.run("GET", key), type=dict[str, list[int]])
    assert (counted[open_one], counted[picked][0]) == ([2, 0], 1)
    nobody = f"{key[:-1]}{'0' if key[-1] != '0' else '1'}"
    await damaged.run("SET", nobody, msgspec.msgpack.encode({GHOST: [7, 0]}))
    counted[open_one] = [1, 0]
    await damaged.run("SET", key, msgspec.msgpack.encode(counted))

    report = await damaged.audit()

    assert codes(report.findings) == {Code.BUYER_COUNT_DIFFERS}
    finding, planted = sorted(report.findings, key=lambda one: one.key != key)
    assert (finding.sku, finding.reservation) == ("milk", open_one)
    text = f"{open_one} counts 1 while promised, by the ledger 2 while promised"
    assert finding.detail == f"for buyer {key.rpartition(':')[2]} of the row {text}"
    assert [touch.kind.value for touch in finding.operations] == ["reserve"]
    assert (planted.key, planted.reservation) == (nobody, GHOST)


async def test_what_counts_for_a_buyer_may_be_gone_once_its_time_is_nearly_over(
    damaged: DamagedShop,
) -> None:
    shop = damaged.shop
    await shop.receive("drop", 5)
    await shop.set_terms("drop", Terms(buyer_cap=BuyerCap(5, 30_000)))
    held = await shop.reserve([("drop", 2)], buyer="ann")
    key = await damaged.buyer_key()
    counted = await damaged.run("GET", key)
    await damaged.run("DEL", key)
    assert codes((await damaged.audit()).findings) == {Code.BUYER_COUNT_DIFFERS}

    await damaged.run("SET", key, counted)
    await shop.commit(held.reservation.id)
    assert (await damaged.audit()).findings == ()
    await damaged.run("DEL", key)
    assert (await damaged.audit()).findings == ()


async def test_what_a_row_says_of_pools_and_backorders_is_held_against_its_promises(
    damaged: DamagedShop,
) -> None:
    await trade_on_terms(damaged.shop)
    terms = msgspec.msgpack.decode(await damaged.run("HGET", damaged.stock_key("milk"), "terms"))
    terms["channels"]["web"]["held"] = 6
    packed = msgspec.msgpack.encode(terms)
    await damaged.run("HSET", damaged.stock_key("milk"), "terms", packed)
    await damaged.run("HSET", damaged.stock_key("tea"), "backordered", 4)

    report = await damaged.audit()

    told = {one.sku: one.detail for one in report.findings if one.code is Code.RESERVED_DIFFERS}
    assert told == {
        "milk": "its pools hold {'web': 6}, but its holds {'web': 2}",
        "tea": "4 backordered, but 5 wait",
    }
    assert {one.sku for one in report.findings if one.code is Code.ROW_DIFFERS} == {"milk", "tea"}


async def test_an_entry_that_is_none_is_found(damaged: DamagedShop) -> None:
    await damaged.shop.receive("apple", 5)
    await damaged.run("XADD", damaged.keys.ledger, "*", "hello", "world")
    await damaged.shop.receive("apple", 5)

    finding = only(await damaged.audit(), Code.ENTRY_UNREADABLE)

    assert (finding.invariant, finding.repairable) == (Invariant.DENSE, False)


async def test_a_ledger_of_another_type_is_reported_and_does_not_end_the_audit(
    damaged: DamagedShop,
) -> None:
    await trade(damaged.shop)
    await damaged.run("DEL", damaged.keys.ledger)
    await damaged.run("SET", damaged.keys.ledger, "gone")

    report = await damaged.audit()

    finding = only(report, Code.PARTITION_UNREADABLE)
    assert (finding.partition, finding.repairable) == (damaged.keys.partition, False)
    assert report.partitions == 2


async def test_a_flipped_byte_in_a_segment_is_found(damaged: DamagedShop) -> None:
    paths = await archived(damaged)
    flip(paths[1])

    finding = only(await damaged.audit(), Code.SEGMENT_DAMAGED)

    assert finding.invariant is Invariant.ARCHIVE_COVERS
    assert finding.segment is not None
    assert (finding.first, finding.last, finding.segment.in_ledger) == (6, 10, True)


async def test_missing_segments_are_found_in_the_middle_and_at_the_end(
    damaged: DamagedShop,
) -> None:
    paths = await archived(damaged)
    paths[1].unlink()
    paths[-1].unlink()

    report = await damaged.audit()

    missing = {(one.first, one.last) for one in report.findings}
    assert codes(report.findings) == {Code.SEGMENT_MISSING}
    assert missing == {(6, 10), (16, 18)}


async def test_a_segment_exchanged_for_another_stores_is_found(
    damaged: DamagedShop, make_store: MakeStore, tmp_path: Path
) -> None:
    paths = await archived(damaged)
    async with damaged_shop(make_store, tmp_path / "other") as other:
        others = await archived(other)
        paths[2].write_bytes(others[2].read_bytes())

    report = await damaged.audit()

    assert Code.SEGMENT_DAMAGED in codes(report.findings)
    assert {one.invariant for one in report.findings} == {Invariant.ARCHIVE_COVERS}


async def test_history_that_neither_the_archive_nor_the_store_has_is_a_gap(
    damaged: DamagedShop,
) -> None:
    paths = await archived(damaged)
    ids = await damaged.ledger_ids()
    await damaged.run("XDEL", damaged.keys.ledger, *ids[5:10])
    flip(paths[1])

    report = await damaged.audit()

    segment = only(report, Code.SEGMENT_DAMAGED).segment
    assert segment is not None
    assert not segment.in_ledger
    gap = only(report, Code.ENTRIES_MISSING)
    assert (gap.first, gap.last) == (6, 10)
    assert only(report, Code.VERSIONS_SKIPPED).sku == "apple"


async def test_an_audit_from_a_snapshot_sees_the_same_as_one_of_all_history(
    damaged: DamagedShop,
) -> None:
    await trade(damaged.shop)
    await damaged.archiver.archive_all(flush=True)
    snapshots = Snapshots(damaged.archive)
    for partition in range(damaged.inventory.partitions):
        await snapshots.make(partition)
    await damaged.shop.receive("apple", 5)
    await damaged.run("HINCRBY", damaged.stock_key("pear"), "safety_stock", 5)

    whole = await audit_with(damaged, snapshots, whole=True)
    short = await audit_with(damaged, snapshots, whole=False)

    assert (whole.operations, short.operations) == (14, 1)
    assert codes(whole.findings) == codes(short.findings) == {Code.ROW_DIFFERS}


async def audit_with(damaged: DamagedShop, snapshots: Snapshots, *, whole: bool) -> AuditReport:
    return await audit(
        damaged.inventory,
        damaged.archive,
        settings=AuditSettings(whole=whole),
        snapshots=snapshots.state,
    )


async def test_a_ledger_whose_beginning_is_elsewhere_is_not_taken_for_a_loss(
    damaged: DamagedShop,
) -> None:
    """Somebody who forgets to name the archive must not mend a sound store."""
    await trade(damaged.shop)
    await damaged.archiver.archive_all(flush=True)
    await damaged.run("XTRIM", damaged.keys.ledger, "MINID", (await damaged.ledger_ids())[-1])
    before = await damaged.ledger_ids()

    report = await audit(damaged.inventory, None)
    mended = await mend(damaged.inventory, None, actor="somebody", reason="hasty")

    finding = only(report, Code.BEGINNING_MISSING)
    assert (finding.partition, finding.repairable) == (damaged.keys.partition, False)
    assert mended.rounds == ()
    assert await damaged.ledger_ids() == before
    assert (await damaged.audit()).findings == ()


async def test_a_rebuilt_store_is_audited_from_the_snapshot_it_began_with(
    damaged: DamagedShop, make_store: MakeStore
) -> None:
    await trade(damaged.shop)
    await damaged.archiver.archive_all(flush=True)
    target = make_store()
    await target.start()
    await set_up(target.settings, partitions=2)
    objects = Objects.open(str(damaged.folder))
    async with open_shop(target.settings, damaged.shop.merchant) as shop:
        await rebuild(RebuildRequest(actor="test"), objects, target=shop.inventory.store)
        archive = await open_archive(shop.inventory.store, str(damaged.folder))
        snapshots = Snapshots(archive).state

        sound = await audit(shop.inventory, archive, snapshots=snapshots)
        await shop.receive("apple", 1)
        key = shop.keys().stock(shop.merchant, LOCATION, "apple")
        await target.run("HINCRBY", key, "on_hand", 5)
        found = await audit(shop.inventory, archive, snapshots=snapshots)
        mended = await mend(
            shop.inventory, archive, actor="test", reason="edited", snapshots=snapshots
        )
        blind = await audit(shop.inventory, None)

    assert (sound.findings, sound.rows) == ((), 4)
    assert codes(found.findings) == {Code.ROW_DIFFERS, Code.BOOKS_DIFFER}
    assert mended.audit.findings == ()
    assert codes(blind.findings) == {Code.BEGINNING_MISSING}


async def test_a_snapshot_stands_in_for_history_that_is_lost(damaged: DamagedShop) -> None:
    paths = await archived(damaged)
    for partition in range(damaged.inventory.partitions):
        await Snapshots(damaged.archive).make(partition)
    await damaged.run("XDEL", damaged.keys.ledger, *(await damaged.ledger_ids())[5:10])
    flip(paths[1])

    report = await audit(
        damaged.inventory, damaged.archive, snapshots=Snapshots(damaged.archive).state
    )

    assert codes(report.findings) == {Code.SEGMENT_DAMAGED}


async def test_a_partition_that_is_being_rebuilt_is_not_audited(damaged: DamagedShop) -> None:
    await trade(damaged.shop)
    await damaged.run("HSET", damaged.keys.meta, "rebuilding", "r1")

    with pytest.raises(StoreReadOnly):
        await damaged.audit()


async def test_traffic_makes_no_false_alarm(damaged: DamagedShop) -> None:
    shop = damaged.shop
    for number in range(30):
        await shop.receive(f"sku-{number}", 1_000)
    await shop.set_terms(
        "new",
        Terms(
            backorder_limit=10_000,
            channels={"online": Pool(cap=9_000)},
            buyer_cap=BuyerCap(1_000, 3_600_000),
        ),
    )
    stop = asyncio.Event()
    orders = 0

    async def shopper(name: int) -> None:
        nonlocal orders
        for turn in range(100_000):
            if stop.is_set():
                return
            sku = f"sku-{(name * 7 + turn) % 30}"
            held = await shop.reserve([(sku, 1), (f"sku-{name}", 1)], ttl_ms=1_000)
            new = await shop.reserve([("new", 2)], ttl_ms=1_000, buyer=f"{name} {turn % 9}")
            if turn % 3 == 0:
                await shop.receive("new", 3)
                with suppress(BackorderUnfilled):
                    await shop.commit(new.reservation.id)
            elif turn % 7 == 0:
                await shop.release(new.reservation.id)
            end = turn % 5
            if end == 0:
                await shop.commit(held.reservation.id)
            elif end == 1:
                await shop.release(held.reservation.id)
            elif end == 2:
                await shop.inventory.confirm(shop.merchant, held.reservation.id, actor=ACTOR)
            elif end == 3:
                await shop.receive(f"new-{name}-{turn}", 2)
            orders += 1
            await damaged.inventory.expire_due(damaged.keys.partition)

    async def archiver() -> None:
        while not stop.is_set():
            await damaged.archiver.archive_all(flush=True)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for name in range(8):
            group.create_task(shopper(name))
        group.create_task(archiver())
        reports = []
        for _ in range(5):
            before = orders
            reports.append(await damaged.audit())
            assert orders > before, "the audit ran while nobody traded"
        stop.set()

    assert [report.findings for report in reports] == [()] * 5
    assert reports[-1].operations > reports[0].operations


async def test_a_row_edited_while_traffic_runs_is_the_only_finding(damaged: DamagedShop) -> None:
    shop = damaged.shop
    await shop.receive("busy", 100_000)
    await shop.receive("edited", 10)
    stop = asyncio.Event()

    async def shopper() -> None:
        while not stop.is_set():
            held = await shop.reserve([("busy", 1)])
            await shop.commit(held.reservation.id)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(shopper())
        await damaged.run("HINCRBY", damaged.stock_key("edited"), "on_hand", 1)
        report = await damaged.audit()
        stop.set()

    assert {finding.sku for finding in report.findings} == {"edited"}


async def test_the_continuous_audit_keeps_up_and_leaves_its_findings_in_the_store(
    damaged: DamagedShop,
) -> None:
    await trade(damaged.shop)
    running = continuous(damaged, "one")

    assert await running.round() == 0
    await damaged.shop.receive("apple", 1)
    await damaged.run("HINCRBY", damaged.stock_key("apple"), "on_hand", 5)
    assert await running.round() == 2

    told = {one.partition: one for one in await read_findings(damaged.inventory.store)}
    partition = damaged.keys.partition
    assert set(told) == {-1, *range(damaged.inventory.partitions)}
    assert codes(told[partition].findings) == {Code.ROW_DIFFERS, Code.BOOKS_DIFFER}
    assert told[partition].by_severity == {Severity.CRITICAL: 2}
    assert running.findings == 2

    await damaged.mend()
    assert await running.round() == 0
    (text,) = await damaged.inventory.store.read([("HGET", AUDIT_KEY, str(partition))])
    assert msgspec.json.decode(text, type=FindingsOfPartition).findings == ()


async def test_two_continuous_audits_do_not_do_the_same_work(damaged: DamagedShop) -> None:
    await trade(damaged.shop)
    first, second = continuous(damaged, "one"), continuous(damaged, "two")

    await first.round()
    await damaged.run("HINCRBY", damaged.stock_key("apple"), "on_hand", 5)

    assert await second.round() == 0, "the first one has the leases"
    await first.give_up()
    assert await second.round() == 2


async def test_the_continuous_audit_outlasts_a_store_that_is_down(damaged: DamagedShop) -> None:
    await trade(damaged.shop)
    running = continuous(damaged, "one")
    await running.round()
    damaged.store.kill9()

    with pytest.raises(HoldfastError):
        await running.round()
    await damaged.store.restart()

    assert await running.round() == 0


def continuous(damaged: DamagedShop, owner: str) -> ContinuousAudit:
    async def open_archive() -> None:
        return None

    return ContinuousAudit(damaged.inventory, open_archive, owner=owner, keys_per_second=1_000_000)


def test_a_report_survives_being_written_as_json() -> None:
    finding = Finding(
        invariant=Invariant.DENSE, code=Code.ENTRIES_MISSING, detail="d", remedy="r", first=2
    )
    assert msgspec.json.decode(msgspec.json.encode(finding), type=Finding) == finding


async def test_a_supply_that_was_misspelt_is_named_until_somebody_sees_to_it(
    damaged: DamagedShop,
) -> None:
    shop, till = damaged.shop, Till(damaged.shop, "supplier")
    for sku in ("tea", "mug"):
        await shop.expect(sku, "po-17", "2026-12-07", 10)
    await shop.expect("tea", "console", "2026-12-07", 5)
    for number, sku in enumerate(("tea", "mug", "cup"), start=1):
        told = await till.tell("receipt", 4, sku=sku, supply="po-l7", sequence=number)
        assert told == "applied: supply_not_found"
    finding = only(await damaged.audit(), Code.SUPPLY_UNKNOWN)
    assert (finding.severity, finding.repairable) == (Severity.WARNING, False)
    assert "8 units of 2 SKUs came with supply po-l7" in finding.detail
    assert "while po-17 was" in finding.detail
    assert finding.change is not None
    assert finding.change.changes == 2
    # Another supply settles nothing; what is announced anew, or has come, does.
    await shop.expect("tea", "console", "2026-12-08", 5)
    await shop.expect("tea", "po-17", "2026-12-07", 6)
    assert "4 units of mug" in only(await damaged.audit(), Code.SUPPLY_UNKNOWN).detail
    await shop.arrive("mug", "po-17", 10)
    assert (await damaged.audit()).findings == ()
    # A later count has these units already, and still they are said to come.
    await till.tell("count", 20, sequence=4, ago=50)
    told = await till.tell("receipt", 4, sequence=5, ago=60, supply="po-71")
    assert told == "superseded: supply_not_found"
    assert only(await damaged.audit(), Code.SUPPLY_UNKNOWN).sku == "tea"
    await accept(shop.inventory, merchant=shop.merchant, name="po-71", actor=ACTOR, reason="a gift")
    assert (await damaged.audit()).findings == ()
