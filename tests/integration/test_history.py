"""Questions to the ledger, on a real store and an archive in a folder."""

import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

import msgspec
import pytest

from engine.clock import clock_ms
from engine.history import Found, Missing, Order, Position, Question, reference_of, reservation_of
from engine.ledger import OperationKind, decode_entry
from engine.model import Line, Movement, MovementType
from engine.outcomes import HistoryUnavailable, InvalidCommand, PastNotKept, RowNotFound
from reconciler import history as history_module
from reconciler.archive import Archive, read_store_id
from reconciler.archiver import Archiver, ArchiverSettings
from reconciler.history import LedgerHistory
from reconciler.objects import ArchiveUnavailable, Objects
from reconciler.rebuild import rebuild
from reconciler.rebuild_plan import RebuildRequest
from reconciler.shelf import Shelf
from reconciler.snapshots import Snapshots
from tests.shop import ACTOR, Shop, new_key, open_shop
from tests.stores import MakeStore, RealStore, set_up

LOCATIONS: Final = ("high street", "harbour", "ware:house", "køkken")
SKUS: Final = tuple(f"sku-{number}" for number in range(6))
PARTITIONS: Final = 4
SEGMENT_ENTRIES: Final = 7
SEEDS: Final = (1, 2, 3)

MAX_PAGES: Final = 1_000


@dataclass
class Past:
    """A shop with a history, part of which only the archive still has."""

    shop: Shop
    archive: Archive
    history: LedgerHistory
    everything: list[Found]
    """Every operation of the shop's merchant, the oldest first."""

    async def archive_all(self, *, keep_ms: int = 0) -> None:
        """Archive what there is, and trim all of it that may go."""
        settings = ArchiverSettings(
            min_age_ms=0, resume_window_ms=keep_ms, max_segment_entries=SEGMENT_ENTRIES
        )
        archiver = Archiver(self.shop.inventory, self.archive, owner=uuid4().hex, settings=settings)
        await archiver.archive_all(flush=True)
        await archiver.give_up()


@pytest.fixture
async def store(make_store: MakeStore) -> RealStore:
    """A store of few partitions, whose stream gives up entries one by one."""
    real = make_store(extra_config=["stream-node-max-entries 1"])
    await real.start()
    await set_up(real.settings, partitions=PARTITIONS)
    return real


@pytest.fixture
def seed() -> int:
    """What the history is drawn from."""
    return SEEDS[0]


@pytest.fixture
async def past(seed: int, store: RealStore, tmp_path: Path) -> AsyncIterator[Past]:
    """A random history: the old part archived and trimmed, a part archived, and the rest live."""
    draw = random.Random(seed)
    archive = Archive(Objects.open(str(tmp_path / "archive")), "store-1")

    async def opened() -> Archive:
        return archive

    async with open_shop(store.settings) as shop, open_shop(store.settings) as other:
        made = Past(shop, archive, LedgerHistory(shop.inventory, opened), [])
        await _trade(shop, draw, 120)
        await _trade(other, draw, 40)
        made.everything = await _written(shop)
        await made.archive_all()
        await _trade(shop, draw, 60)
        await made.archive_all(keep_ms=3_600_000)
        await _trade(shop, draw, 30)
        known = {found.position for found in made.everything}
        made.everything += [f for f in await _written(shop) if f.position not in known]
        made.everything.sort(key=lambda found: found.position)
        yield made


async def _trade(shop: Shop, draw: random.Random, rounds: int) -> None:
    open_ids: list[str] = []
    for number in range(rounds):
        location, sku = draw.choice(LOCATIONS), draw.choice(SKUS)
        choice = draw.random()
        if choice < 0.4:
            movement = Movement(
                key=new_key(),
                location=location,
                type=MovementType.RECEIVE,
                sku=sku,
                quantity=draw.randint(50, 90),
                reference=f"import:{number % 3}",
            )
            await shop.inventory.move(shop.merchant, movement, actor=draw.choice(("till", ACTOR)))
        elif choice < 0.5:
            rows = [(place, name) for place in LOCATIONS for name in SKUS]
            place, name = draw.choice(rows)
            (row,) = await shop.inventory.rows(shop.merchant, [(place, name)])
            await shop.inventory.configure(
                shop.merchant,
                place,
                name,
                key=new_key(),
                safety_stock=draw.randint(0, 3),
                expected_version=0 if row is None else row.version,
                actor=ACTOR,
            )
        elif choice < 0.75 or not open_ids:
            await shop.receive(sku, 20, location=location)
            lines = [Line(sku, draw.randint(1, 3))]
            held = await shop.inventory.reserve(
                shop.merchant,
                location,
                lines,
                key=new_key(),
                order_ref=f"order-{number % 5}",
                actor=ACTOR,
            )
            open_ids.append(held.reservation.id)
        else:
            ending = draw.choice((shop.commit, shop.release))
            await ending(open_ids.pop(draw.randrange(len(open_ids))))


async def _written(shop: Shop) -> list[Found]:
    """Read what the streams have of the merchant with a plain client."""
    found = []
    for keys in shop.inventory.keys:
        for stream_id, fields in await shop.client.execute_command("XRANGE", keys.ledger, "-", "+"):
            entry = decode_entry(stream_id, fields)
            found += [
                Found(keys.partition, entry.sequence + i, entry.at_ms, operation)
                for i, operation in enumerate(entry.operations)
                if operation.merchant == shop.merchant
            ]
    return sorted(found, key=lambda each: each.position)


async def ask(
    history: LedgerHistory, question: Question, *, missing: set[Missing] | None = None
) -> list[Found]:
    """Ask page by page to the end; nothing may be missing unless `missing` takes it."""
    items: list[Found] = []
    after: Position | None = None
    for _ in range(MAX_PAGES):
        page = await history.find(question, after=after)
        if missing is None:
            assert not page.missing
        else:
            missing.update(page.missing)
        assert len(page.items) <= question.limit
        items += page.items
        after = page.following
        if not page.has_more:
            return items
        assert after is not None
    raise AssertionError("the answer never ends")


def expected(past: Past, question: Question) -> list[Found]:
    """Pick from everything by the plain meaning of the question."""
    wanted = []
    for found in past.everything:
        operation = found.operation
        if question.location not in (None, operation.location):
            continue
        if question.sku is not None and question.sku not in [x.sku for x in operation.rows]:
            continue
        if question.kind not in (None, operation.kind):
            continue
        if question.actor not in (None, operation.who):
            continue
        if question.reservation not in (None, reservation_of(operation)):
            continue
        if question.reference not in (None, reference_of(operation)):
            continue
        if question.from_ms is not None and found.at_ms < question.from_ms:
            continue
        if question.to_ms is not None and found.at_ms >= question.to_ms:
            continue
        wanted.append(found)
    return wanted if question.order is Order.OLDEST else wanted[::-1]


def _questions(past: Past, order: Order, limit: int) -> list[Question]:
    merchant = past.shop.merchant
    middle = past.everything[len(past.everything) // 3]
    late = past.everything[-len(past.everything) // 6]
    reservation = next(
        found.operation.id
        for found in past.everything
        if found.operation.kind is OperationKind.RESERVE
    )
    base = Question(merchant=merchant, order=order, limit=limit)
    changes: Sequence[dict[str, object]] = (
        {},
        {"location": LOCATIONS[0]},
        {"location": LOCATIONS[3], "sku": SKUS[0]},
        {"sku": SKUS[1]},
        {"reservation": reservation},
        {"actor": "till"},
        {"reference": "order-1"},
        {"reference": "import:2", "location": LOCATIONS[1]},
        {"kind": OperationKind.CONFIGURE},
        {"from_ms": middle.at_ms, "to_ms": late.at_ms},
        {"from_ms": late.at_ms},
        {"to_ms": middle.at_ms},
        {"location": LOCATIONS[2], "from_ms": middle.at_ms, "to_ms": late.at_ms},
        {"actor": "nobody"},
    )
    return [msgspec.structs.replace(base, **change) for change in changes]


@pytest.mark.parametrize("seed", SEEDS)
async def test_every_question_gets_all_of_its_operations_in_order(past: Past) -> None:
    for order in Order:
        for limit in (3, 500):
            for question in _questions(past, order, limit):
                assert await ask(past.history, question) == expected(past, question), question


@pytest.mark.slow
async def test_a_call_that_used_up_its_work_says_so_and_goes_on(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "MAX_WORK", 1)
    monkeypatch.setattr(history_module, "MAX_STEP_ENTRIES", 2)
    monkeypatch.setattr(history_module, "MIN_STEP_ENTRIES", 2)
    for order in Order:
        for question in _questions(past, order, 500):
            assert await ask(past.history, question) == expected(past, question), question


async def test_a_cursor_holds_while_entries_are_added_archived_and_trimmed(past: Past) -> None:
    question = Question(merchant=past.shop.merchant, limit=10)
    want = expected(past, question)
    first = await past.history.find(question)
    await _trade(past.shop, random.Random(0), 20)
    await past.archive_all()
    items, after = list(first.items), first.following
    for _ in range(MAX_PAGES):
        page = await past.history.find(question, after=after)
        items += page.items
        after = page.following
        if not page.has_more:
            break
    assert items == want


async def test_the_oldest_first_finds_later_what_came_since(past: Past) -> None:
    question = Question(merchant=past.shop.merchant, order=Order.OLDEST, limit=500)
    after: Position | None = None
    seen: list[Found] = []

    async def read_on() -> None:
        nonlocal after
        for _ in range(MAX_PAGES):
            page = await past.history.find(question, after=after)
            seen.extend(page.items)
            assert page.following is not None
            after = page.following
            if not page.has_more:
                return

    await read_on()
    for _ in range(5):
        await _trade(past.shop, random.Random(0), 4)
        # What is as young as the clock itself may have to wait for the next tick.
        newest = max(f.at_ms for f in await _written(past.shop))
        while await clock_ms(past.shop.inventory.store, past.shop.inventory.keys[0]) <= newest + 1:
            pass
        await read_on()
    written = {found.position for found in past.everything}
    written |= {found.position for found in await _written(past.shop)}
    assert [found.position for found in seen] == sorted(written)


async def test_another_merchant_sees_nothing(past: Past) -> None:
    stranger = f"m-{uuid4().hex[:12]}"
    for order in Order:
        page = await past.history.find(Question(merchant=stranger, order=order))
        assert (page.items, page.has_more) == ((), False)
    reservation = next(
        f.operation.id for f in past.everything if f.operation.kind is OperationKind.RESERVE
    )
    page = await past.history.find(Question(merchant=stranger, reservation=reservation))
    assert page.items == ()


async def test_a_damaged_segment_is_named_and_the_rest_still_told(
    past: Past, tmp_path: Path
) -> None:
    partition = past.everything[0].partition
    (path, *_) = await past.archive.segment_paths(partition)
    segment = await past.archive.read_segment(path)
    file = tmp_path / "archive" / path
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(bytes(data))
    header = segment.header
    lost = range(header.first_sequence, header.last_sequence + 1)
    for order in Order:
        question = Question(merchant=past.shop.merchant, order=order, limit=500)
        missing: set[Missing] = set()
        told = await ask(past.history, question, missing=missing)
        assert told == [
            found
            for found in expected(past, question)
            if found.partition != partition or found.sequence not in lost
        ]
        assert missing == {Missing(partition, header.first_sequence, header.last_sequence)}


async def test_an_archive_that_does_not_answer_is_told_only_where_it_is_needed(
    past: Past,
) -> None:
    async def closed() -> Archive:
        raise ArchiveUnavailable("no route")

    history = LedgerHistory(past.shop.inventory, closed)
    newest = Question(merchant=past.shop.merchant, limit=500)
    want = expected(past, newest)
    page = await history.find(newest)
    assert page.has_more
    assert 0 < len(page.items) < len(want)
    assert list(page.items) == want[: len(page.items)]
    with pytest.raises(HistoryUnavailable):
        await history.find(newest, after=page.following)
    live = await past.history.find(newest, after=page.following)
    assert live.items
    assert list(live.items) == want[len(page.items) :][: len(live.items)]


async def test_a_row_is_told_as_it_was_at_every_moment(past: Past) -> None:
    location, sku = LOCATIONS[0], SKUS[0]
    question = Question(
        merchant=past.shop.merchant, location=location, sku=sku, order=Order.OLDEST, limit=500
    )
    changes = expected(past, question)
    assert len(changes) > 5
    for change in changes:
        row = await past.history.stock_at(past.shop.merchant, location, sku, at_ms=change.at_ms)
        last = [f for f in changes if f.at_ms <= change.at_ms][-1]
        (line,) = [line for line in last.operation.rows if line.sku == sku]
        assert (row.as_of_ms, row.sequence) == (change.at_ms, last.sequence)
        assert row.row.version == line.version
        assert (row.row.on_hand, row.row.reserved) == (line.levels.on_hand, line.levels.reserved)
    with pytest.raises(RowNotFound):
        await past.history.stock_at(past.shop.merchant, location, sku, at_ms=changes[0].at_ms - 1)


async def test_the_future_is_not_known(past: Past) -> None:
    keys = past.shop.keys(LOCATIONS[0])
    now_ms = await clock_ms(past.shop.inventory.store, keys)
    with pytest.raises(InvalidCommand):
        await past.history.stock_at(
            past.shop.merchant, LOCATIONS[0], SKUS[0], at_ms=now_ms + 60_000
        )


async def test_a_past_that_is_no_longer_kept_is_refused(past: Past, tmp_path: Path) -> None:
    first = past.everything[0]
    (path, *_) = await past.archive.segment_paths(first.partition)
    (tmp_path / "archive" / path).unlink()
    sku = first.operation.rows[0].sku
    with pytest.raises(PastNotKept) as refused:
        await past.history.stock_at(
            past.shop.merchant, first.operation.location, sku, at_ms=first.at_ms
        )
    assert refused.value.at_ms == first.at_ms


async def test_the_past_of_a_row_that_rests_is_told_by_a_snapshot(
    past: Past, tmp_path: Path
) -> None:
    shop, location = past.shop, LOCATIONS[0]
    partition = shop.keys(location).partition
    moved = await shop.receive("resting", 7, location=location)
    await past.archive_all()
    made = await Snapshots(past.archive).make(partition)
    assert made is not None
    await _trade(shop, random.Random(0), 30)
    newest = max(found.at_ms for found in await _written(shop))
    await past.archive_all()
    # What led up to the snapshot is gone for good, so only the snapshot can tell.
    for path in await past.archive.segment_paths(partition):
        if (await past.archive.read_segment(path)).header.last_sequence <= made.header.sequence:
            (tmp_path / "archive" / path).unlink()
    row = await past.history.stock_at(shop.merchant, location, "resting", at_ms=newest)
    assert (row.row, row.sequence) == (moved.row, moved.sequence)
    with pytest.raises(RowNotFound):
        await past.history.stock_at(shop.merchant, location, "never", at_ms=newest)
    with pytest.raises(PastNotKept):
        await past.history.stock_at(shop.merchant, location, "resting", at_ms=moved.at_ms - 1)
    (tmp_path / "archive" / made.path).write_bytes(b"damaged")
    with pytest.raises(PastNotKept):
        await past.history.stock_at(shop.merchant, location, "resting", at_ms=newest)


async def test_a_rebuilt_store_tells_what_happened_before_it(
    past: Past, make_store: MakeStore
) -> None:
    await past.archive_all()
    target = make_store()
    await target.start()
    await set_up(target.settings, partitions=PARTITIONS)
    async with open_shop(target.settings, past.shop.merchant) as shop:
        await rebuild(
            RebuildRequest(actor=ACTOR, source=past.archive.store_id),
            past.archive.objects,
            target=shop.inventory.store,
        )
        archive = Archive(past.archive.objects, await read_store_id(shop.inventory.store))
        history = LedgerHistory(shop.inventory, Shelf.of(archive).archive)
        after = Past(shop, archive, history, past.everything)
        await _trade(shop, random.Random(5), 20)
        await after.archive_all()
        known = {found.position for found in past.everything}
        after.everything += [f for f in await _written(shop) if f.position not in known]
        after.everything.sort(key=lambda found: found.position)
        for order in Order:
            for question in _questions(after, order, 30):
                assert await ask(history, question) == expected(after, question), question
        change = past.everything[0]
        told = await history.stock_at(
            shop.merchant,
            change.operation.location,
            change.operation.rows[0].sku,
            at_ms=change.at_ms,
        )
        assert told.sequence == change.sequence


async def test_a_reservation_is_found_by_its_old_id_after_a_change_of_partitions(
    past: Past, make_store: MakeStore
) -> None:
    held = await past.shop.receive("tea", 5)
    reservation = (await past.shop.reserve([("tea", 1)])).reservation.id
    await past.archive_all()
    target = make_store()
    await target.start()
    await set_up(target.settings, partitions=PARTITIONS + 3)
    async with open_shop(target.settings, past.shop.merchant) as shop:
        await rebuild(
            RebuildRequest(actor=ACTOR, source=past.archive.store_id),
            past.archive.objects,
            target=shop.inventory.store,
        )
    # Whether reservations were ever moved is known from when the store is opened.
    async with open_shop(target.settings, past.shop.merchant) as shop:
        await shop.release(reservation)
        archive = Archive(past.archive.objects, await read_store_id(shop.inventory.store))
        history = LedgerHistory(shop.inventory, Shelf.of(archive).archive)
        question = Question(merchant=shop.merchant, reservation=reservation)
        assert [found.operation.kind for found in await ask(history, question)] == [
            OperationKind.RELEASE
        ]
        assert (await shop.row("tea")).version == held.row.version + 2
