"""Events on real stores: once, as of their moment, in quarantine, with gaps."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from engine.feed_watch import FeedWatch
from engine.feeds import EventType, FeedEvent, Feeds, SourceState, Taken
from engine.kits import check_kit
from engine.model import Line, Movement, MovementType
from engine.outcomes import InvalidCommand, LimitExceeded, RowNotFound
from engine.policies import PolicyPart
from gateway.feeds import read_event
from reconciler import past
from reconciler.findings import Code
from reconciler.sources import PRINTS
from tests.damage import DamagedShop, codes, damaged_shop
from tests.events import TILL, Till
from tests.shop import ACTOR, LOCATION, Shop
from tests.stores import MakeStore

HOUR = 3_600


async def test_the_worked_example_of_the_page(shop: Shop) -> None:
    till = Till(shop)
    assert await till.tell("receipt", 10, ago=3 * HOUR) == "applied"
    assert await till.tell("sale", 3, ago=1 * HOUR) == "applied"
    assert await till.tell("count", 9, ago=2 * HOUR) == "applied"
    assert (await shop.row("tea")).on_hand == 6
    before = (await shop.row("tea")).version
    assert await till.tell("sale", 1, ago=2.5 * HOUR) == "superseded"
    assert await till.tell("count", 10, ago=4 * HOUR) == "superseded"
    assert (await shop.row("tea")).version == before
    await shop.audit()


async def test_a_recount_works_while_units_are_reserved_and_the_shortfall_shows(
    shop: Shop,
) -> None:
    till = Till(shop)
    await shop.receive("tea", 5)
    held = await shop.reserve([("tea", 4)])
    assert await till.tell("count", 3, ago=-1) == "applied"
    row = await shop.row("tea")
    assert (row.on_hand, row.reserved, row.shortfall, row.available) == (3, 4, 1, 0)
    await shop.commit(held.reservation.id, [("tea", 3)])
    assert await till.tell("receipt", 2, ago=0) == "superseded"
    await shop.audit()


async def test_a_movement_of_the_api_obeys_the_rule_too(shop: Shop) -> None:
    till = Till(shop)
    now_ms = await till.now_ms()

    async def move(
        kind: MovementType, quantity: int, hours: int, key: str, sku: str = "tea"
    ) -> int:
        movement = Movement(
            key=key,
            location=LOCATION,
            type=kind,
            sku=sku,
            quantity=quantity,
            occurred_at_ms=now_ms - hours * HOUR * 1_000,
        )
        return (await shop.inventory.move(shop.merchant, movement, actor=ACTOR)).on_hand_change

    assert await move(MovementType.RECEIVE, 10, 5, "a") == 10
    assert await move(MovementType.SALE, 2, 1, "b") == -2
    assert await move(MovementType.COUNT, 7, 3, "c") == -3
    assert await move(MovementType.TRANSFER_OUT, 9, 4, "d") == 0
    with pytest.raises(InvalidCommand):
        await move(MovementType.SALE, 1, -1, "of tomorrow")
    with pytest.raises(InvalidCommand):
        await move(MovementType.COUNT, 1, 24 * 8, "of last week", "milk")
    assert await till.tell("sale", 1, ago=2 * HOUR) == "applied"
    assert (await shop.row("tea")).on_hand == 4
    await shop.audit()


async def test_an_offline_sale_is_posted_once_however_often_it_is_sent(shop: Shop) -> None:
    counting, naming = Till(shop, "counts"), Till(shop, "names")
    await shop.receive("tea", 9)
    first = await counting.event("sale", 1, sequence=1)
    assert await counting.send(first, first) == ["applied", "duplicate"]
    assert await counting.send(*[first] * 5) == ["duplicate"] * 5
    other = msgspec.structs.replace(first, quantity=2)
    assert await counting.send(other) == ["idempotency_key_reused"]
    named = await naming.event("sale", 1, event_id="7")
    assert await naming.send(named, named, msgspec.structs.replace(named, quantity=2)) == [
        "applied",
        "duplicate",
        "idempotency_key_reused",
    ]
    assert await naming.send(msgspec.structs.replace(named, sequence=5)) == ["invalid_request"]
    assert (await shop.row("tea")).on_hand == 7
    await shop.audit()


async def test_gaps_show_and_are_alarmed_and_given_up(shop: Shop) -> None:
    till = Till(shop)
    events = [await till.event("sale", 1, sequence=number) for number in (1, 2, 6, 5, 9)]
    assert await till.send(*events) == ["applied"] * 5
    (source,) = await till.feeds.sources(shop.merchant, LOCATION)
    assert [(gap.first, gap.last) for gap in source.gaps] == [(3, 4), (7, 8)]
    assert (source.watermark, source.highest, source.missing) == (2, 9, 4)
    now_ms = await till.now_ms()
    assert source.state(now_ms, heartbeat_ms=60_000) is SourceState.CATCHING_UP
    # One that never sent a heartbeat may be silent.
    assert source.state(now_ms + 61_000, heartbeat_ms=60_000) is SourceState.CATCHING_UP
    await till.feeds.policies.write(shop.merchant, PolicyPart(gap_grace_seconds=5))
    watch = FeedWatch(shop.inventory, till.feeds)
    assert not [a for a in await watch.round(now_ms) if shop.merchant in a.text]
    (alarm,) = [a for a in await watch.round(now_ms + 10_000) if a.code == "feed_gap"]
    assert alarm.code == "feed_gap"
    with pytest.raises(LimitExceeded):
        await till.feeds.skip(shop.merchant, LOCATION, TILL, through=10, actor=ACTOR)
    skipped = await till.feeds.skip(shop.merchant, LOCATION, TILL, through=4, actor=ACTOR)
    assert skipped.verdict == "skipped"
    late = await till.event("sale", 1, sequence=3)
    assert await till.send(late, late) == ["applied", "duplicate"]
    assert (
        await till.send(*[await till.event("sale", 1, sequence=n) for n in (8, 7)])
        == ["applied"] * 2
    )
    (source,) = await till.feeds.sources(shop.merchant, LOCATION)
    assert (source.watermark, source.gaps) == (9, ())
    await shop.audit()


async def test_a_till_that_counts_from_one_again_is_noticed(shop: Shop) -> None:
    till = Till(shop)
    many = [
        await till.event("sale", 1, sequence=number, ago=HOUR) for number in range(1, PRINTS + 50)
    ]
    for start in range(0, len(many), 1_000):
        await till.send(*many[start : start + 1_000])
    again = await till.event("sale", 1, sequence=1, event_id="new", ago=1)
    assert await till.send(many[0], again) == ["duplicate", "idempotency_key_reused"]


async def test_what_cannot_be_booked_is_set_aside_listed_retried_and_dropped(shop: Shop) -> None:
    till = Till(shop)
    assert await till.tell("sale", 1, ago=80 * HOUR, sequence=1) == "quarantined: too_late"
    assert await till.tell("sale", 2, ago=-600, sequence=2) == "quarantined: in_the_future"
    assert await till.tell("sale", 3, ago=90 * HOUR, sequence=1) == "idempotency_key_reused"
    (source,) = await till.feeds.sources(shop.merchant, LOCATION)
    assert source.watermark == 2
    page = await till.feeds.quarantined(shop.merchant, LOCATION, limit=1)
    assert page.next_after == page.items[0].id
    rest = await till.feeds.quarantined(shop.merchant, LOCATION, after=page.next_after)
    by_why = {event.why: event for event in (*page.items, *rest.items)}
    assert set(by_why) == {"too_late", "in_the_future"}

    async def retry(the_id: str) -> str:
        taken = await till.feeds.retry(
            shop.merchant, LOCATION, the_id, actor=ACTOR, read=read_event
        )
        return taken.verdict.value

    late = by_why["too_late"].id
    assert await retry(late) == "quarantined"
    await till.feeds.policies.write(shop.merchant, PolicyPart(late_hours=100), LOCATION)
    assert await retry(late) == "applied"
    assert await retry(late) == "absent"
    assert (await shop.row("tea")).deficit == 1
    dropped = await till.feeds.drop(
        shop.merchant, LOCATION, by_why["in_the_future"].id, actor=ACTOR
    )
    assert dropped.verdict == "dropped"
    assert await till.feeds.count_quarantined(shop.merchant, LOCATION) == 0
    await shop.audit()


async def test_a_heartbeat_leaves_nothing_but_the_sign_of_life(shop: Shop) -> None:
    till = Till(shop)
    beat = FeedEvent(event_id="h", type=EventType.HEARTBEAT, occurred_at_ms=await till.now_ms())
    assert await till.send(beat, beat) == ["applied"] * 2
    (source,) = await till.feeds.sources(shop.merchant, LOCATION)
    assert source.state(await till.now_ms(), heartbeat_ms=60_000) is SourceState.LIVE
    later_ms = await till.now_ms() + 61_000
    assert source.state(later_ms, heartbeat_ms=60_000) is SourceState.DEGRADED
    assert await shop.client.execute_command("XLEN", shop.keys().ledger) >= 0
    counted = msgspec.structs.replace(beat, sequence=1)
    assert await till.send(counted, counted) == ["applied", "duplicate"]
    await shop.audit()


async def test_a_location_has_so_many_sources_and_no_more(own_shop: Shop) -> None:
    first = Till(own_shop, "first")
    assert await first.tell("receipt", 1) == "applied"
    names = [part for number in range(999) for part in ("0", f"made up {number}")]
    key = own_shop.keys().feeds(own_shop.merchant, LOCATION)
    await own_shop.client.execute_command("ZADD", key, *names)
    assert await Till(own_shop, "one more").tell("receipt", 2) == "limit_exceeded"
    assert await first.tell("receipt", 3) == "applied"
    assert (await own_shop.row("tea")).on_hand == 4


async def test_a_clock_that_is_ahead_does_not_make_later_events_look_old(shop: Shop) -> None:
    till = Till(shop)
    far = FeedEvent(event_id="h", type=EventType.HEARTBEAT, occurred_at_ms=2**52, sequence=1)
    assert await till.send(far) == ["applied"]
    (source,) = await till.feeds.sources(shop.merchant, LOCATION)
    assert source.occurred_at_ms <= await till.now_ms()
    await shop.audit()


async def test_a_row_that_changes_too_often_says_what_it_no_longer_knows(own_shop: Shop) -> None:
    till = Till(own_shop)
    assert past.MAX_DELTAS == 4_096
    now_ms = await till.now_ms()
    sale = await till.event("sale", 1)
    many = [
        msgspec.structs.replace(sale, event_id=str(k), occurred_at_ms=now_ms - 30_000 - 10 * k)
        for k in range(5_000)
    ]
    for start in range(0, len(many), 500):
        await till.send(*many[start : start + 500])
    recent = await own_shop.client.execute_command(
        "GET", own_shop.keys().recent(own_shop.merchant, LOCATION, "tea")
    )
    deltas = past.unpack_deltas(recent)
    assert len(deltas) <= past.MAX_DELTAS
    assert deltas[0][1] == past.FLOOR
    count = msgspec.structs.replace(sale, type=EventType.COUNT, quantity=5, event_id="count")
    early = msgspec.structs.replace(count, occurred_at_ms=now_ms - 76_000)
    assert await till.send(early) == ["quarantined: past_not_known"]
    late = msgspec.structs.replace(count, occurred_at_ms=now_ms - 31_000, event_id="late")
    assert await till.send(late) == ["applied"]
    row = await own_shop.row("tea")
    assert row.on_hand - row.deficit == 5 - 100


# Audit and repair


@pytest.fixture
async def damaged(make_store: MakeStore, tmp_path: Path) -> AsyncIterator[DamagedShop]:
    async with damaged_shop(make_store, tmp_path) as opened:
        yield opened


async def test_an_audit_finds_what_was_changed_behind_the_ledger_and_a_repair_mends_it(
    damaged: DamagedShop,
) -> None:
    shop = damaged.shop
    till = Till(shop)
    await till.send(*[await till.event("receipt", 5, sequence=number) for number in (1, 2, 4, 9)])
    await till.tell("count", 11, ago=0.5, sku="milk", sequence=3)
    await till.tell("sale", 1, ago=90 * HOUR, sequence=5)
    await till.tell("sale", 1, ago=91 * HOUR, sequence=6)
    assert (await damaged.audit()).is_clean
    keys, name = damaged.keys, (shop.merchant, LOCATION, TILL)
    aside = (await till.feeds.quarantined(shop.merchant, LOCATION)).items
    await damaged.run("DEL", keys.recent(shop.merchant, LOCATION, "tea"))
    await damaged.run("HDEL", keys.stock(shop.merchant, LOCATION, "milk"), "counted")
    await damaged.run("HSET", keys.feed(*name), "watermark", 1)
    await damaged.run("HDEL", keys.quarantine(shop.merchant, LOCATION), aside[0].id)
    await damaged.run("HSET", keys.quarantine(shop.merchant, LOCATION), "invented", "x")
    await damaged.run(
        "HSET",
        keys.feed(shop.merchant, LOCATION, "ghost"),
        "mode",
        "ids",
        "heard_at",
        1,
        "occurred_at",
        1,
    )
    report = await damaged.audit()
    assert codes(report.findings) == {
        Code.PAST_DIFFERS,
        Code.SOURCE_DIFFERS,
        Code.QUARANTINE_DIFFERS,
    }
    mended = await damaged.mend()
    assert mended.audit.is_clean, mended.audit.findings
    (source,) = [
        one for one in await till.feeds.sources(shop.merchant, LOCATION) if one.name == TILL
    ]
    assert source.watermark == 6
    assert len((await till.feeds.quarantined(shop.merchant, LOCATION)).items) == 2


async def test_a_till_that_sells_a_kit_sells_its_components(shop: Shop) -> None:
    feeds, merchant, now_ms = Feeds(shop.inventory), shop.merchant, time.time_ns() // 1_000_000
    kit = check_kit("gift", [Line("mug", 1), Line("tea", 2)])
    await shop.inventory.kits.write(merchant, {"gift": kit}, actor=ACTOR)
    await shop.receive("mug", 5)
    await shop.receive("tea", 5)

    def event(the_id: str, kind: EventType, sku: str, quantity: int, ago_ms: int) -> FeedEvent:
        return FeedEvent(
            event_id=the_id,
            type=kind,
            sku=sku,
            quantity=quantity,
            occurred_at_ms=now_ms - ago_ms,
        )

    async def take(*events: FeedEvent) -> list[str]:
        taken = await feeds.take(merchant, LOCATION, "till", events, actor=ACTOR)
        return [one.verdict.value for one in taken if isinstance(one, Taken)]

    sale = event("1", EventType.SALE, "gift", 2, 60_000)
    back = event("2", EventType.RETURN, "gift", 1, 50_000)
    assert await take(sale, back, sale) == ["applied", "applied", "duplicate"]
    assert ((await shop.row("mug")).on_hand, (await shop.row("tea")).on_hand) == (4, 3)
    # The tea was counted after this one was sold, and before it was delivered; the mugs were not.
    assert await take(event("3", EventType.COUNT, "tea", 9, 1_000)) == ["applied"]
    assert await take(event("4", EventType.SALE, "gift", 1, 2_000)) == ["applied"]
    assert ((await shop.row("mug")).on_hand, (await shop.row("tea")).on_hand) == (3, 14)
    # More than there is is a fact, too.
    assert await take(event("5", EventType.SALE, "gift", 4, 0)) == ["applied"]
    row = await shop.row("mug")
    assert (row.on_hand, row.deficit) == (0, 1)
    assert await take(event("6", EventType.RECEIPT, "gift", 1, 0)) == ["quarantined"]
    (aside,) = (await feeds.quarantined(merchant, LOCATION)).items
    assert aside.why == "kit"
    with pytest.raises(InvalidCommand, match="is a kit"):
        await shop.receive("gift", 1)
    with pytest.raises(RowNotFound):
        await shop.row("gift")
    await shop.audit()
