"""Commands that travel in one script call: each stands or falls alone, and sees those before it."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from engine.ledger import Entry, read_entries
from engine.model import Line, ReservationResult, ReservationState
from engine.outcomes import (
    HoldfastError,
    IdempotencyKeyReused,
    InsufficientStock,
    ReservationEnded,
    ShortLine,
)
from tests.shop import ACTOR, Shop

Answer = TypeVar("Answer")


async def at_once(*calls: Awaitable[Answer]) -> list[Answer | HoldfastError]:
    """Make calls in one turn of the loop, so that those of a verb travel together."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, HoldfastError):
            raise answer
    return answers  # type: ignore[return-value] # what is left after the loop


async def last_entry(shop: Shop) -> Entry:
    """Return the newest ledger entry of the shop's partition."""
    after, last = "0-0", None
    while entries := await read_entries(shop.inventory.store, shop.keys(), after=after):
        last = entries[-1]
        after = last.stream_id
    assert last is not None
    return last


def code(answer: ReservationResult | HoldfastError) -> str:
    """Return "ok", "replayed" or the code of the refusal."""
    if isinstance(answer, HoldfastError):
        return answer.code
    return "replayed" if answer.replayed else "ok"


async def test_fifty_callers_for_one_unit(shop: Shop) -> None:
    await shop.receive("tea", 1)
    answers = await at_once(*(shop.reserve([("tea", 1)]) for _ in range(50)))
    assert sorted(map(code, answers)) == ["insufficient_stock"] * 49 + ["ok"]
    assert code(answers[0]) == "ok", "first come, first served"
    for answer in answers[1:]:
        assert isinstance(answer, InsufficientStock)
        assert answer.lines == (ShortLine("tea", 1, 0),)
    await shop.audit()


async def test_a_group_is_one_ledger_entry_of_many_operations(shop: Shop) -> None:
    await shop.receive("tea", 5)
    await at_once(*(shop.reserve([("tea", 1)]) for _ in range(7)))
    entry = await last_entry(shop)
    assert [operation.merchant for operation in entry.operations] == [shop.merchant] * 5
    assert [operation.rows[0].version for operation in entry.operations] == [2, 3, 4, 5, 6]
    await shop.audit()


async def test_one_key_many_times_in_a_group_is_one_effect(shop: Shop) -> None:
    await shop.receive("tea", 5)
    answers = await at_once(
        *(shop.reserve([("tea", 2), ("tea", 1)], key="k") for _ in range(20)),
        shop.reserve([("tea", 1)], key="k"),
    )
    assert [code(answer) for answer in answers] == [
        "ok",
        *["replayed"] * 19,
        "idempotency_key_reused",
    ]
    assert isinstance(answers[20], IdempotencyKeyReused)
    told = [answer.reservation for answer in answers if isinstance(answer, ReservationResult)]
    assert told == told[:1] * 20, "every one of them was told the same"
    assert (await shop.row("tea")).reserved == 3
    await shop.audit()


async def test_a_refused_cart_between_others_changes_nothing(shop: Shop) -> None:
    await shop.receive("tea", 3)
    await shop.receive("milk", 1)
    answers = await at_once(
        shop.reserve([("tea", 1)]),
        shop.reserve([("tea", 1), ("milk", 2)]),
        shop.reserve([("tea", 2), ("milk", 1)]),
        shop.reserve([("tea", 1)]),
    )
    assert list(map(code, answers)) == ["ok", "insufficient_stock", "ok", "insufficient_stock"]
    assert isinstance(answers[1], InsufficientStock)
    assert answers[1].lines == (ShortLine("milk", 2, 1),)
    tea, milk = await shop.row("tea"), await shop.row("milk")
    assert (tea.reserved, tea.version, milk.reserved, milk.version) == (3, 3, 1, 2)
    await shop.audit()


async def test_a_partial_cart_gets_what_those_before_it_left(shop: Shop) -> None:
    await shop.receive("tea", 5)
    answers = await at_once(
        *(shop.reserve([("tea", 3)], partial=True) for _ in range(3)),
    )
    assert list(map(code, answers)) == ["ok", "ok", "insufficient_stock"]
    assert isinstance(answers[1], ReservationResult)
    assert answers[1].reservation.lines == (Line("tea", 2),)
    assert answers[1].reservation.missing == (Line("tea", 1),)
    await shop.audit()


async def test_two_different_picks_at_once(shop: Shop) -> None:
    await shop.receive("tea", 5)
    hold = (await shop.reserve([("tea", 4)])).reservation
    answers = await at_once(
        shop.commit(hold.id, [("tea", 3)]),
        shop.commit(hold.id, [("tea", 1)]),
        shop.commit(hold.id),
        shop.commit(hold.id, [("tea", 3)]),
    )
    assert list(map(code, answers)) == ["ok", "reservation_ended", "replayed", "replayed"]
    assert isinstance(answers[1], ReservationEnded)
    assert (await shop.row("tea")).on_hand == 2
    await shop.audit()


async def test_one_release_many_times_in_a_group(shop: Shop) -> None:
    await shop.receive("tea", 5)
    hold = (await shop.reserve([("tea", 4)])).reservation
    answers = await at_once(*(shop.release(hold.id) for _ in range(10)))
    assert list(map(code, answers)) == ["ok", *["replayed"] * 9]
    assert (await shop.row("tea")).version == 3
    await shop.audit()


async def test_one_extension_many_times_in_a_group(shop: Shop) -> None:
    await shop.receive("tea", 5)
    hold = (await shop.reserve([("tea", 4)], ttl_ms=60_000)).reservation
    answers = await at_once(
        *(
            shop.inventory.extend(shop.merchant, hold.id, key=key, ttl_ms=ttl_ms, actor=ACTOR)
            for key, ttl_ms in (("k", 90_000), ("k", 90_000), ("l", 120_000), ("k", 90_000))
        )
    )
    assert list(map(code, answers)) == ["ok", "replayed", "ok", "replayed"]
    ends = [a.reservation.expires_at_ms for a in answers if isinstance(a, ReservationResult)]
    assert ends[0] == ends[1] == ends[3]
    found = await shop.inventory.reservation(shop.merchant, hold.id)
    assert found.expires_at_ms == ends[2]
    await shop.audit()


async def test_more_than_a_group_may_carry_goes_in_several(shop: Shop) -> None:
    skus = [f"sku {i}" for i in range(150)]
    for sku in skus:
        await shop.receive(sku, 10)
    carts = [shop.reserve([(sku, 1) for sku in skus]) for _ in range(20)]
    singles = [shop.reserve([("sku 0", 1)]) for _ in range(300)]
    answers = await at_once(*carts, *singles)
    held = [answer for answer in answers if isinstance(answer, ReservationResult)]
    assert len(held) == 10
    assert all(result.reservation.state is ReservationState.HELD for result in held)
    assert (await shop.row("sku 0")).available == 0
    await shop.audit()
