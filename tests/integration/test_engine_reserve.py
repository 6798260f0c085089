"""Reserve: what it holds, what it refuses, and what a retry is told."""

import msgspec
import pytest

from engine.model import Line, ReservationResult, ReservationState
from engine.outcomes import (
    IdempotencyKeyReused,
    InsufficientStock,
    InvalidCommand,
    ReservationNotFound,
    ShortLine,
)
from tests.shop import ACTOR, Shop

DAY_MS = 24 * 3_600_000


async def test_a_reserve_holds_the_lines(shop: Shop) -> None:
    await shop.receive("tea", 5)
    await shop.receive("milk", 3)
    result = await shop.reserve([("tea", 2), ("milk", 3)], ttl_ms=60_000, order_ref="order 7")
    held = result.reservation
    assert not result.replayed
    assert held.state is ReservationState.HELD
    assert held.lines == (Line("tea", 2), Line("milk", 3))
    assert held.missing == ()
    assert (held.order_ref, held.actor) == ("order 7", ACTOR)
    assert held.expires_at_ms == held.created_at_ms + 60_000
    assert held == await shop.inventory.reservation(shop.merchant, held.id)
    tea, milk = await shop.row("tea"), await shop.row("milk")
    assert (tea.on_hand, tea.reserved, tea.available) == (5, 2, 3)
    assert (milk.on_hand, milk.reserved, milk.available) == (3, 3, 0)
    await shop.audit()


async def test_lines_of_one_sku_are_one_line_of_their_sum(shop: Shop) -> None:
    await shop.receive("tea", 5)
    await shop.receive("milk", 5)
    result = await shop.reserve([("tea", 1), ("milk", 1), ("tea", 3)])
    assert result.reservation.lines == (Line("tea", 4), Line("milk", 1))
    assert (await shop.row("tea")).version == 2
    await shop.audit()


async def test_a_refusal_names_every_line_that_does_not_fit(shop: Shop) -> None:
    await shop.receive("tea", 5)
    await shop.receive("milk", 5)
    await shop.receive("bread", 1)
    with pytest.raises(InsufficientStock) as refused:
        await shop.reserve([("tea", 3), ("milk", 2), ("tea", 3), ("jam", 1), ("bread", 2)])
    assert refused.value.lines == (
        ShortLine("tea", 6, 5),
        ShortLine("jam", 1, 0, known=False),
        ShortLine("bread", 2, 1),
    )
    for sku in ("tea", "milk", "bread"):
        row = await shop.row(sku)
        assert (row.reserved, row.version) == (0, 1), "a refused cart leaves every row alone"
    await shop.audit()


async def test_safety_stock_is_not_promised(shop: Shop) -> None:
    await shop.receive("tea", 5)
    await shop.inventory.configure(
        shop.merchant,
        "high street",
        "tea",
        key="keep two",
        safety_stock=2,
        expected_version=1,
        actor=ACTOR,
    )
    with pytest.raises(InsufficientStock) as refused:
        await shop.reserve([("tea", 4)])
    assert refused.value.lines == (ShortLine("tea", 4, 3),)
    await shop.reserve([("tea", 3)])
    await shop.audit()


async def test_partial_holds_what_there_is_and_says_what_is_missing(shop: Shop) -> None:
    await shop.receive("tea", 2)
    await shop.receive("milk", 5)
    result = await shop.reserve([("tea", 3), ("milk", 1), ("jam", 2)], key="k", partial=True)
    assert result.reservation.lines == (Line("tea", 2), Line("milk", 1))
    assert result.reservation.missing == (Line("tea", 1), Line("jam", 2))
    again = await shop.reserve([("tea", 3), ("milk", 1), ("jam", 2)], key="k", partial=True)
    assert again == ReservationResult(result.reservation, replayed=True)
    await shop.audit()


async def test_partial_with_nothing_at_all_is_refused(shop: Shop) -> None:
    await shop.receive("tea", 1)
    await shop.reserve([("tea", 1)])
    with pytest.raises(InsufficientStock) as refused:
        await shop.reserve([("tea", 3), ("jam", 1)], partial=True)
    assert refused.value.lines == (ShortLine("tea", 3, 0), ShortLine("jam", 1, 0, known=False))
    await shop.audit()


async def test_a_retry_is_answered_to_the_byte_as_the_first_time(shop: Shop) -> None:
    await shop.receive("tea", 5)
    first = await shop.reserve([("tea", 2)], key="k")
    again = await shop.reserve([("tea", 2)], key="k")
    assert again.replayed
    assert msgspec.msgpack.encode(again.reservation) == msgspec.msgpack.encode(first.reservation)
    assert (await shop.row("tea")).reserved == 2


@pytest.mark.parametrize("ending", ["confirm", "commit", "release"])
async def test_a_retry_is_answered_as_first_whatever_came_since(shop: Shop, ending: str) -> None:
    await shop.receive("tea", 5)
    first = await shop.reserve([("tea", 2)], key="k")
    await getattr(shop.inventory, ending)(shop.merchant, first.reservation.id, actor=ACTOR)
    again = await shop.reserve([("tea", 2)], key="k")
    assert again == ReservationResult(first.reservation, replayed=True)
    await shop.audit()


async def test_a_key_is_of_one_request(shop: Shop) -> None:
    await shop.receive("tea", 5)
    await shop.reserve([("tea", 2)], key="k", ttl_ms=60_000)
    for lines, ttl_ms, order_ref, partial in (
        ([("tea", 1)], 60_000, "", False),
        ([("tea", 2), ("milk", 1)], 60_000, "", False),
        ([("milk", 2)], 60_000, "", False),
        ([("tea", 2)], 61_000, "", False),
        ([("tea", 2)], 60_000, "order 7", False),
        ([("tea", 2)], 60_000, "", True),
    ):
        with pytest.raises(IdempotencyKeyReused) as refused:
            await shop.reserve(lines, key="k", ttl_ms=ttl_ms, order_ref=order_ref, partial=partial)
        assert refused.value.key == "k"
    assert (await shop.row("tea")).reserved == 2
    await shop.audit()


async def test_a_key_belongs_to_a_merchants_location(shop: Shop) -> None:
    await shop.receive("tea", 5)
    await shop.receive("tea", 5, location="depot")
    one = await shop.reserve([("tea", 2)], key="k")
    other = await shop.reserve([("tea", 3)], key="k", location="depot")
    assert not other.replayed
    assert one.reservation.id != other.reservation.id
    await shop.audit()


async def test_a_refusal_is_not_remembered(shop: Shop) -> None:
    await shop.receive("tea", 1)
    with pytest.raises(InsufficientStock):
        await shop.reserve([("tea", 2)], key="k")
    await shop.receive("tea", 1)
    assert not (await shop.reserve([("tea", 2)], key="k")).replayed
    await shop.audit()


@pytest.mark.parametrize(
    ("lines", "field"),
    [
        ([], "lines"),
        ([("tea", 0)], "lines[0].quantity"),
        ([("tea", -1)], "lines[0].quantity"),
        ([("tea", 1), ("tea", 10**9 + 1)], "lines[1].quantity"),
        ([("tea", True)], "lines[0].quantity"),
        ([("tea", 1.0)], "lines[0].quantity"),
        ([("tea", float("nan"))], "lines[0].quantity"),
        ([("tea", 2**63)], "lines[0].quantity"),
        ([("", 1)], "lines[0].sku"),
        ([("x" * 201, 1)], "lines[0].sku"),
        ([("\ud800", 1)], "lines[0].sku"),
        ([(f"s{i}", 1) for i in range(201)], "lines"),
    ],
)
async def test_a_malformed_line_is_refused_by_its_place(
    shop: Shop, lines: list[tuple[str, int]], field: str
) -> None:
    with pytest.raises(InvalidCommand) as refused:
        await shop.reserve(lines)
    assert refused.value.field == field
    assert refused.value.remedy


@pytest.mark.parametrize("ttl_ms", [0, 999, DAY_MS + 1, -1, 2**63])
async def test_a_ttl_is_a_second_to_a_day(shop: Shop, ttl_ms: int) -> None:
    with pytest.raises(InvalidCommand, match="ttl_seconds"):
        await shop.reserve([("tea", 1)], ttl_ms=ttl_ms)


async def test_the_widest_cart_is_held_in_one_step(shop: Shop) -> None:
    skus = [f"sku {i}" for i in range(200)]
    for sku in skus:
        await shop.receive(sku, 1)
    result = await shop.reserve([(sku, 1) for sku in skus])
    assert len(result.reservation.lines) == 200
    with pytest.raises(InsufficientStock) as refused:
        await shop.reserve([(sku, 1) for sku in skus])
    assert len(refused.value.lines) == 200
    await shop.commit(result.reservation.id)
    await shop.audit()


async def test_another_merchants_reservation_is_as_unknown_as_none(shop: Shop) -> None:
    await shop.receive("tea", 1)
    held = (await shop.reserve([("tea", 1)])).reservation
    stranger = Shop(shop.inventory, shop.client, shop.merchant + "-other")
    inventory = shop.inventory
    for attempt in (
        inventory.reservation(stranger.merchant, held.id),
        inventory.confirm(stranger.merchant, held.id, actor=ACTOR),
        inventory.extend(stranger.merchant, held.id, key="k", ttl_ms=60_000, actor=ACTOR),
        inventory.commit(stranger.merchant, held.id, actor=ACTOR),
        inventory.release(stranger.merchant, held.id, actor=ACTOR),
    ):
        with pytest.raises(ReservationNotFound):
            await attempt
    assert (await inventory.reservation(shop.merchant, held.id)).state is ReservationState.HELD
    await shop.audit()


@pytest.mark.parametrize(
    "the_id", ["", "rsv", "rsv_0_" + "0" * 24, "rsv_9999_" + "0" * 24, "rsv_-1_x", "{hf.0}:meta"]
)
async def test_an_unknown_id_is_not_found(shop: Shop, the_id: str) -> None:
    with pytest.raises(ReservationNotFound):
        await shop.inventory.reservation(shop.merchant, the_id)
    with pytest.raises(ReservationNotFound):
        await shop.release(the_id)
