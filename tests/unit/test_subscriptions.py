"""What waits for a reader: the latest of each thing, bounded, and where the reader stands."""

import time
from itertools import count
from typing import Any

import pytest

from engine.event_making import events_of
from engine.events import EventType, StockData
from engine.ledger import Levels, Operation, OperationKind, RowChange
from gateway.subscriptions import (
    CONFLATE_FROM,
    MAX_LAG_SECONDS,
    CutOff,
    Interest,
    Place,
    Position,
    Subscription,
    Told,
)

EDGE = Position(1_000)
ALL = Interest(merchant="acme")


def told(
    sku: str, version: int, place: Place, *, partition: int = 0, before: int = 5, after: int = 5
) -> list[Told]:
    change = RowChange(sku, version, Levels(after, 0, 0, 0), Levels(after - before, 0, 0, 0))
    operation = Operation(OperationKind.MOVE, "id", "acme", "leeds", "me", "", (change,), ())
    events = events_of(operation, sequence=version, at_ms=place.at_ms, partition=partition)
    return [Told(event, partition, place) for event in events]


def offer(subscription: Subscription, *many: list[Told]) -> None:
    for some in many:
        for one in some:
            subscription.offer(one)


def versions(subscription: Subscription, most: int = 100) -> list[tuple[str, int]]:
    return [(one.told.event.subject, version_of(one.told)) for one in subscription.take(most, EDGE)]


def version_of(one: Told) -> int:
    assert isinstance(one.event.data, StockData)
    return one.event.data.version


def test_a_slow_reader_gets_the_latest_of_each_row_and_no_row_starves() -> None:
    subscription = Subscription(ALL, EDGE)
    last = CONFLATE_FROM + 50
    for version in range(1, last + 1):
        offer(subscription, told("tea", version, Place(2_000 + version, 0)))
        if version == CONFLATE_FROM - 1:
            offer(subscription, told("mug", 1, Place(2_001, 1)))
    assert (len(subscription), subscription.conflated) == (CONFLATE_FROM, 51)
    taken = versions(subscription, last)
    assert taken[:-2] == [("tea", version) for version in range(1, CONFLATE_FROM - 1)]
    assert taken[-2:] == [("tea", last), ("mug", 1)]


def test_a_reader_that_keeps_up_is_told_everything() -> None:
    subscription = Subscription(ALL, EDGE)
    offer(subscription, *[told("tea", version, Place(2_000, version)) for version in range(1, 9)])
    assert versions(subscription) == [("tea", version) for version in range(1, 9)]


def test_crossings_stand_for_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.subscriptions.CONFLATE_FROM", 2)
    subscription = Subscription(ALL, EDGE)
    offer(
        subscription,
        told("tea", 2, Place(2_000, 0), before=1, after=0),
        told("tea", 3, Place(2_001, 0), before=0, after=4),
    )
    names = [delivery.told.event.type_name for delivery in subscription.take(9, EDGE)]
    assert names == ["stock.changed", "stock.out", "stock.back"]


def happened(number: int, kind: OperationKind, *detail: Any) -> list[Told]:
    operation = Operation(kind, "r-1", "acme", "leeds", "me", "", (), detail)
    place = Place(2_000, number)
    events = events_of(operation, sequence=number, at_ms=place.at_ms, partition=0)
    return [Told(event, 0, place) for event in events]


def test_a_slow_reader_is_told_last_what_is_so_now_and_of_all_units_that_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.subscriptions.CONFLATE_FROM", 1)
    subscription = Subscription(ALL, EDGE)
    numbers = count()
    for came, day in enumerate(("2026-12-10", "2026-12-08", "2026-12-11"), start=1):
        missing = came % 2
        delivery = ("receive", came, "", "", "till", 1, True, 0, "tea", f"event-{came}", 0)
        unknown = ("superseded", "supply_not_found", "", (), "po-l", ("po-1",))
        offer(
            subscription,
            happened(next(numbers), OperationKind.SLIP, "tea", 2, "2026-12-08", day),
            happened(next(numbers), OperationKind.SHORTFALL, "tea", missing, 1, "sale", ()),
            happened(next(numbers), OperationKind.FILL, "tea", came, 6 - came),
            happened(next(numbers), OperationKind.FEED, *delivery, *unknown),
        )
    found: dict[str, list[Any]] = {}
    for one in subscription.take(99, EDGE):
        found.setdefault(one.told.event.type_name, []).append(one.told.event.data)
    assert [data.expected_on for data in found.pop("promise.slipped")] == ["2026-12-11"]
    assert [data.units for data in found.pop("shortfall.recorded")] == [1]
    assert [data.units for data in found.pop("backorder.filled")] == [1, 2, 3]
    assert [data.units for data in found.pop("supply.unknown")] == [1, 2, 3]
    assert not found


def test_who_falls_too_far_behind_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    subscription = Subscription(ALL, EDGE, most_pending=3)
    offer(subscription, *[told(f"sku-{n}", 1, Place(2_000, n)) for n in range(3)])
    offer(subscription, told("sku-0", 2, Place(2_001, 0)))
    assert (subscription.cut_off, len(subscription)) == (None, 3)
    offer(subscription, told("sku-3", 1, Place(2_002, 0)))
    assert subscription.cut_off is CutOff.TOO_FAR_BEHIND
    assert len(subscription) == 0

    slow = Subscription(ALL, EDGE)
    offer(slow, told("tea", 1, Place(2_000, 0)))
    later = time.monotonic() + MAX_LAG_SECONDS + 1
    monkeypatch.setattr("gateway.subscriptions.time.monotonic", lambda: later)
    offer(slow, told("mug", 1, Place(2_001, 0)))
    assert slow.cut_off is CutOff.TOO_FAR_BEHIND


def test_a_position_is_behind_what_was_taken_and_before_what_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.subscriptions.CONFLATE_FROM", 2)
    subscription = Subscription(ALL, EDGE)
    offer(
        subscription,
        told("tea", 1, Place(2_000, 0), partition=3),
        told("mug", 1, Place(2_000, 1), partition=7),
        told("tea", 2, Place(2_005, 0), partition=3),
        told("cup", 1, Place(2_006, 0), partition=3),
    )
    edge = Position(2_006, {3: Place(2_006, 0)})
    (first,) = subscription.take(1, edge)
    assert version_of(first.told) == 2
    # Behind the tea's first change, for which the second came: that one would come again, which
    # does no harm, and the mug's would still come.
    assert Position.parse(first.position) == Position(1_000, {3: Place(2_000, 0)})
    second, third = subscription.take(9, edge)
    assert Position.parse(second.position) == Position(
        1_000, {3: Place(2_000, 0), 7: Place(2_000, 1)}
    )
    assert Position.parse(third.position) == edge
    assert subscription.position(edge) == third.position


def test_between_two_events_of_one_entry_the_reader_is_still_before_it() -> None:
    subscription = Subscription(ALL, EDGE)
    offer(subscription, told("tea", 1, Place(2_000, 0), before=1, after=0))
    first, last = subscription.take(9, Position(2_000, {0: Place(2_000, 0)}))
    assert Position.parse(first.position) == EDGE
    assert Position.parse(last.position) == Position(2_000, {0: Place(2_000, 0)})


@pytest.mark.parametrize(
    "text", ["", "x", "1.2", "1.2-3", "1.2-3-4-5", "-1", "1" * 5_000, "1.a-1-1"]
)
def test_what_is_no_position_is_none(text: str) -> None:
    assert Position.parse(text) is None


def test_a_snapshot_hides_what_it_has_until_the_tail_has_come_up_to_it() -> None:
    subscription = Subscription(ALL, EDGE)
    offer(subscription, told("tea", 4, Place(2_000, 0)), told("mug", 2, Place(2_001, 0)))
    subscription.start_above({("leeds", "tea"): 5}, until=10.0)
    offer(subscription, told("tea", 5, Place(2_002, 0)), told("tea", 6, Place(2_003, 0)))
    assert versions(subscription) == [("mug", 2), ("tea", 6)]
    assert not subscription.tail_is_at(9.0)
    assert subscription.tail_is_at(10.5)
    offer(subscription, told("tea", 1, Place(2_004, 0)))
    assert versions(subscription) == [("tea", 1)]


def test_what_was_missed_comes_before_what_waits() -> None:
    subscription = Subscription(ALL, EDGE, most_pending=4)
    offer(subscription, told("tea", 9, Place(2_009, 0)), told("cup", 1, Place(2_010, 0)))
    missed = [*told("tea", 7, Place(2_001, 0)), *told("mug", 3, Place(2_002, 0))]
    assert subscription.go_on_behind(missed)
    assert versions(subscription) == [("tea", 7), ("mug", 3), ("tea", 9), ("cup", 1)]
    many = [one for n in range(9) for one in told(f"sku-{n}", 1, Place(2_000, n))]
    assert not subscription.go_on_behind(many)


def test_only_what_is_asked_for_is_wanted() -> None:
    (changed, out) = told("tea", 1, Place(2_000, 0), before=1, after=0)
    skus, leeds, york = frozenset({"tea"}), frozenset({"leeds"}), frozenset({"york"})
    for interest, expected in (
        (ALL, (True, True)),
        (Interest(merchant="acme", skus=skus, locations=leeds), (True, True)),
        (Interest(merchant="acme", locations=york), (False, False)),
        (Interest(merchant="acme", skus=frozenset({"mug"})), (False, False)),
        (Interest(merchant="acme", types=frozenset({EventType.STOCK_OUT})), (False, True)),
    ):
        assert (interest.wants(changed.event), interest.wants(out.event)) == expected


async def test_a_reader_sleeps_where_all_that_woke_it_was_left_out() -> None:
    subscription = Subscription(ALL, EDGE)
    offer(subscription, told("tea", 4, Place(2_000, 0)))
    assert await subscription.wait(0.01)
    subscription.start_above({("leeds", "tea"): 5}, until=10.0)
    assert not await subscription.wait(0.01)
    offer(subscription, told("tea", 6, Place(2_001, 0)))
    assert await subscription.wait(0.01)
