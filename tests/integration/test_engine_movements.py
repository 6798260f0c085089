"""Movements and settings: what they change, what they refuse, and what a retry is told."""

import msgspec
import pytest

from engine.ledger import read_entries
from engine.model import Moved, Movement, MovementType, Row
from engine.outcomes import (
    HoldfastError,
    IdempotencyKeyReused,
    InsufficientOnHand,
    InvalidCommand,
    LimitExceeded,
    RowNotFound,
    ShortLine,
    VersionConflict,
)
from tests.shop import ACTOR, LOCATION, Shop, new_key

MOST = 10**9
MOST_TOTAL = 10**12


async def configure(
    shop: Shop,
    safety_stock: int | None,
    expected_version: int,
    *,
    key: str = "",
    sku: str = "tea",
    low_stock_threshold: int | None = None,
) -> Row:
    configured = await shop.inventory.configure(
        shop.merchant,
        LOCATION,
        sku,
        key=key or new_key(),
        safety_stock=safety_stock,
        low_stock_threshold=low_stock_threshold,
        expected_version=expected_version,
        actor=ACTOR,
    )
    return configured.row


@pytest.mark.parametrize(
    ("kind", "quantity", "change"),
    [
        (MovementType.RECEIVE, 3, 3),
        (MovementType.RETURN, 3, 3),
        (MovementType.TRANSFER_IN, 3, 3),
        (MovementType.SALE, 3, -3),
        (MovementType.TRANSFER_OUT, 3, -3),
        (MovementType.ADJUST, 3, 3),
        (MovementType.ADJUST, -3, -3),
        (MovementType.COUNT, 3, -2),
        (MovementType.COUNT, 0, -5),
        (MovementType.COUNT, 5, 0),
    ],
)
async def test_a_movement_changes_what_is_on_hand(
    shop: Shop, kind: MovementType, quantity: int, change: int
) -> None:
    await shop.receive("tea", 5)
    moved = await shop.move(kind, "tea", quantity)
    assert moved.on_hand_change == change
    assert moved.row == Row(shop.merchant, LOCATION, "tea", 5 + change, 0, 0, 0, 2)
    assert moved.row == await shop.row("tea")
    await shop.audit()


@pytest.mark.parametrize("kind", [MovementType.TRANSFER_OUT, MovementType.ADJUST])
async def test_what_is_not_there_cannot_be_sent_away(shop: Shop, kind: MovementType) -> None:
    await shop.receive("tea", 5)
    quantity = -6 if kind is MovementType.ADJUST else 6
    with pytest.raises(InsufficientOnHand) as refused:
        await shop.move(kind, "tea", quantity)
    assert refused.value.lines == (ShortLine("tea", 6, 5),)
    with pytest.raises(InsufficientOnHand) as refused:
        await shop.move(kind, "jam", quantity)
    assert refused.value.lines == (ShortLine("jam", 6, 0, known=False),)
    with pytest.raises(RowNotFound):
        await shop.row("jam")
    await shop.audit()


async def test_a_sale_past_the_books_is_booked_and_later_arrivals_pay_it(shop: Shop) -> None:
    await shop.receive("tea", 5)
    sold = await shop.move(MovementType.SALE, "tea", 8)
    assert (sold.row.on_hand, sold.row.deficit, sold.on_hand_change) == (0, 3, -5)
    arrived = await shop.receive("tea", 10)
    assert (arrived.row.on_hand, arrived.row.deficit, arrived.on_hand_change) == (7, 0, 7)
    await shop.audit()


async def test_a_sale_takes_what_was_promised_and_the_shortfall_shows(shop: Shop) -> None:
    await shop.receive("tea", 5)
    hold = (await shop.reserve([("tea", 4)])).reservation
    sold = await shop.move(MovementType.SALE, "tea", 3)
    assert (sold.row.on_hand, sold.row.reserved) == (2, 4)
    assert (sold.row.available, sold.row.shortfall) == (0, 2)
    await shop.release(hold.id)
    assert (await shop.row("tea")).shortfall == 0
    await shop.audit()


async def test_a_count_is_what_is_there_and_settles_a_deficit(shop: Shop) -> None:
    await shop.move(MovementType.SALE, "tea", 4)
    counted = await shop.move(MovementType.COUNT, "tea", 6)
    assert (counted.row.on_hand, counted.row.deficit) == (6, 0)
    await shop.audit()


async def test_a_retry_is_answered_to_the_byte_as_the_first_time(shop: Shop) -> None:
    first = await shop.move(MovementType.RECEIVE, "tea", 5, key="k")
    await shop.receive("tea", 1)
    again = await shop.move(MovementType.RECEIVE, "tea", 5, key="k")
    assert not first.replayed
    assert msgspec.msgpack.encode(again) == msgspec.msgpack.encode(
        msgspec.structs.replace(first, replayed=True)
    )
    assert (await shop.row("tea")).on_hand == 6
    await shop.audit()


async def test_a_key_is_of_one_movement(shop: Shop) -> None:
    await shop.move(MovementType.RECEIVE, "tea", 5, key="k")
    for kind, sku, quantity in (
        (MovementType.RECEIVE, "tea", 6),
        (MovementType.RETURN, "tea", 5),
        (MovementType.RECEIVE, "milk", 5),
    ):
        with pytest.raises(IdempotencyKeyReused):
            await shop.move(kind, sku, quantity, key="k")
    await shop.move(MovementType.RECEIVE, "tea", 5, key="k", location="depot")
    await shop.audit()


async def test_a_movement_may_name_the_version_that_it_saw(shop: Shop) -> None:
    moved = await shop.move(MovementType.RECEIVE, "tea", 5, expected_version=0)
    await shop.move(MovementType.COUNT, "tea", 3, expected_version=moved.row.version)
    with pytest.raises(VersionConflict) as refused:
        await shop.move(MovementType.COUNT, "tea", 4, expected_version=moved.row.version)
    assert (refused.value.sku, refused.value.expected, refused.value.actual) == ("tea", 1, 2)
    with pytest.raises(VersionConflict) as refused:
        await shop.move(MovementType.RECEIVE, "jam", 4, expected_version=3)
    assert (refused.value.expected, refused.value.actual) == (3, 0)
    await shop.audit()


@pytest.mark.parametrize(
    ("kind", "quantity", "field"),
    [
        (MovementType.RECEIVE, 0, "quantity"),
        (MovementType.RECEIVE, -1, "quantity"),
        (MovementType.RECEIVE, MOST + 1, "quantity"),
        (MovementType.SALE, 2**63, "quantity"),
        (MovementType.SALE, float("nan"), "quantity"),
        (MovementType.SALE, True, "quantity"),
        (MovementType.ADJUST, 0, "quantity"),
        (MovementType.ADJUST, -MOST - 1, "quantity"),
        (MovementType.COUNT, -1, "quantity"),
        (MovementType.COUNT, MOST_TOTAL + 1, "quantity"),
    ],
)
async def test_a_malformed_quantity_is_refused(
    shop: Shop, kind: MovementType, quantity: int, field: str
) -> None:
    with pytest.raises(InvalidCommand) as refused:
        await shop.move(kind, "tea", quantity)
    assert refused.value.field == field


@pytest.mark.parametrize("version", [-1, -(2**70), 2**53, 2**70, 1.0, True])
async def test_a_malformed_version_is_refused_and_harms_nobody_beside_it(
    shop: Shop, version: int
) -> None:
    bad, good = await shop.inventory.move_many(
        shop.merchant,
        [
            Movement(
                key=key,
                location=LOCATION,
                type=MovementType.RECEIVE,
                sku="tea",
                quantity=1,
                expected_version=expected,
            )
            for key, expected in (("bad", version), ("good", 0))
        ],
        actor=ACTOR,
    )
    assert isinstance(bad, InvalidCommand)
    assert bad.field == "expected_version"
    assert isinstance(good, Moved)
    with pytest.raises(InvalidCommand):
        await configure(shop, 1, version)


async def test_an_adjustment_needs_a_reason(shop: Shop) -> None:
    movement = Movement(key="k", location=LOCATION, type=MovementType.ADJUST, sku="tea", quantity=1)
    with pytest.raises(InvalidCommand) as refused:
        await shop.inventory.move(shop.merchant, movement, actor=ACTOR)
    assert refused.value.field == "reason"


async def test_a_row_has_a_trillion_units_at_most(shop: Shop) -> None:
    await shop.move(MovementType.COUNT, "tea", MOST_TOTAL - 1)
    await shop.receive("tea", 1)
    with pytest.raises(LimitExceeded) as refused:
        await shop.receive("tea", 1)
    assert (refused.value.field, refused.value.most) == ("quantity", MOST_TOTAL)
    row = await shop.row("tea")
    assert (row.on_hand, row.version) == (MOST_TOTAL, 2), "counted exactly to the last unit"
    await shop.audit()


async def test_settings_are_changed_from_the_version_that_was_seen(shop: Shop) -> None:
    made = await configure(shop, 2, 0)
    assert (made.on_hand, made.safety_stock, made.version) == (0, 2, 1)
    await shop.receive("tea", 5)
    with pytest.raises(VersionConflict) as refused:
        await configure(shop, 3, 1)
    assert (refused.value.expected, refused.value.actual) == (1, 2)
    with pytest.raises(VersionConflict) as refused:
        await configure(shop, 3, 0)
    assert (refused.value.expected, refused.value.actual) == (0, 2)
    changed = await configure(shop, 3, 2, key="k")
    assert (changed.safety_stock, changed.available, changed.version) == (3, 2, 3)
    assert await configure(shop, 3, 2, key="k") == changed
    with pytest.raises(IdempotencyKeyReused):
        await configure(shop, 4, 2, key="k")
    await shop.audit()


async def test_a_batch_is_answered_item_by_item(shop: Shop) -> None:
    def movement(key: str, kind: MovementType, quantity: int, sku: str = "tea") -> Movement:
        return Movement(key=key, location=LOCATION, type=kind, sku=sku, quantity=quantity)

    answers = await shop.inventory.move_many(
        shop.merchant,
        [
            movement("a", MovementType.RECEIVE, 5),
            movement("b", MovementType.TRANSFER_OUT, 6),
            movement("c", MovementType.TRANSFER_OUT, 5),
            movement("a", MovementType.RECEIVE, 5),
            movement("a", MovementType.RECEIVE, 7),
            movement("d", MovementType.RECEIVE, 0),
            movement("e", MovementType.RECEIVE, 2, sku="milk"),
        ],
        actor=ACTOR,
    )
    kinds = [
        answer.code if isinstance(answer, HoldfastError) else ("ok", answer.replayed)
        for answer in answers
    ]
    assert kinds == [
        ("ok", False),
        "insufficient_on_hand",
        ("ok", False),
        ("ok", True),
        "idempotency_key_reused",
        "invalid_request",
        ("ok", False),
    ]
    assert (await shop.row("tea")).on_hand == 0
    await shop.audit()


async def test_rows_come_in_the_order_asked_and_none_for_unknown_ones(shop: Shop) -> None:
    await shop.receive("tea", 5)
    await shop.receive("milk", 3, location="depot")
    rows = await shop.inventory.rows(
        shop.merchant, [("depot", "milk"), (LOCATION, "jam"), (LOCATION, "tea"), ("depot", "milk")]
    )
    assert [row and row.on_hand for row in rows] == [3, None, 5, 3]


async def test_a_bad_id_among_rows_is_refused_and_leaves_nothing_pending(shop: Shop) -> None:
    with pytest.raises(InvalidCommand) as refused:
        await shop.inventory.rows(shop.merchant, [(LOCATION, "tea"), (LOCATION, "")])
    assert refused.value.field == "sku"


async def test_listings_page_through_rows_and_locations(shop: Shop) -> None:
    skus = sorted(["tea", "milk", "éclair", "a:b", "%3A", "z"], key=str.encode)
    for sku in skus:
        await shop.receive(sku, 1)
    await shop.receive("tea", 1, location="depot")
    found: list[str] = []
    after: str | None = None
    for _ in range(len(skus)):
        page = await shop.inventory.list_rows(shop.merchant, LOCATION, after=after, limit=2)
        found += [row.sku for row in page.items]
        after = page.next_after
        if after is None:
            break
    assert found == skus
    first = await shop.inventory.list_locations(shop.merchant, limit=1)
    rest = await shop.inventory.list_locations(shop.merchant, after=first.next_after)
    assert first.items + rest.items == ("depot", LOCATION)
    assert rest.next_after is None


async def test_a_threshold_is_set_and_taken_away_without_touching_the_rest(shop: Shop) -> None:
    await shop.receive("tea", 5)
    await configure(shop, 2, 1)
    key = new_key()
    low = await configure(shop, None, 2, key=key, low_stock_threshold=3)
    assert low == Row(shop.merchant, LOCATION, "tea", 5, 0, 2, 0, 3, 3)
    assert low == await shop.row("tea")
    assert await configure(shop, None, 2, key=key, low_stock_threshold=3) == low
    with pytest.raises(IdempotencyKeyReused):
        await configure(shop, None, 2, key=key, low_stock_threshold=4)

    # Whatever changes the row says it in the ledger, so that a reader need not remember it.
    moved = await shop.receive("tea", 1)
    assert moved.row.low_stock_threshold == 3
    held = await shop.reserve([("tea", 1)])
    await shop.commit(held.reservation.id)
    assert (await configure(shop, 1, 6)).low_stock_threshold == 3
    gone = await configure(shop, None, 7, low_stock_threshold=0)
    assert (gone.low_stock_threshold, gone.safety_stock, gone.version) == (0, 1, 8)
    entries = await read_entries(shop.inventory.store, shop.keys())
    of_tea = [
        (change.levels.low_stock_threshold, change.deltas.low_stock_threshold)
        for entry in entries
        for operation in entry.operations
        if operation.merchant == shop.merchant
        for change in operation.rows
    ]
    assert of_tea == [(0, 0), (0, 0), (3, 3), (3, 0), (3, 0), (3, 0), (3, 0), (0, -3)]
    fields = await shop.client.execute_command(
        "HKEYS", shop.keys().stock(shop.merchant, LOCATION, "tea")
    )
    assert b"low_stock_threshold" not in fields
    with pytest.raises(InvalidCommand):
        await configure(shop, None, 8)
    await shop.audit()
