"""What may be promised by a day, against arrivals played through day by day."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice, product
from typing import NamedTuple

from engine.model import Pool, Row, Terms
from engine.outlook import LATER, Supply, Wait, is_at_risk, promisable, served_on
from tests.steps import steps

DAYS = ("2026-12-07", "2026-12-08", "2026-12-11")

Promise = tuple[str, int]
"""The day by which units were promised, and how many."""


def all_in_time(shelf: int, supplies: dict[str, Supply], promises: list[Promise]) -> bool:
    """Play the days through: what is there goes to whose day is first; is anybody late?"""
    waiting = sorted(promises)
    for day in DAYS:
        shelf += sum(one.quantity for one in supplies.values() if one.expected_on == day)
        while waiting and waiting[0][0] <= day:
            _, units = waiting.pop(0)
            if units > shelf:
                return False
            shelf -= units
    return True


def waits_of(promises: list[Promise]) -> dict[str, tuple[int, int]]:
    return {
        day: (sum(units for one, units in promises if one == day), 0)
        for day in sorted({one for one, _ in promises})
    }


def worlds() -> Iterator[tuple[int, dict[str, Supply]]]:
    """Yield each small shelf with each few small supplies."""
    for shelf, *units in product(range(3), repeat=1 + len(DAYS)):
        yield (
            shelf,
            {
                f"po-{i}": Supply(day, quantity)
                for i, (day, quantity) in enumerate(zip(DAYS, units, strict=True))
                if quantity
            },
        )


def test_what_is_promised_is_kept_and_no_more_could_be() -> None:
    asked: list[tuple[Promise, ...]] = [
        (),
        *((one,) for one in product(DAYS, range(1, 4))),
        *product(product(DAYS, range(1, 3)), repeat=2),
    ]
    tried = 0
    for shelf, supplies in worlds():
        for wanted in asked:
            promises: list[Promise] = []
            for by, units in wanted:
                backordered = sum(units for _, units in promises)
                for step in promisable(shelf, backordered, supplies, waits_of(promises)):
                    if step.by <= by and step.quantity >= units:
                        promises.append((step.by, units))
                        break
            assert all_in_time(shelf, supplies, promises)
            backordered, waits = sum(units for _, units in promises), waits_of(promises)
            assert not is_at_risk(shelf, backordered, supplies, waits)
            for step in promisable(shelf, backordered, supplies, waits):
                fits = [*promises, (step.by, step.quantity)]
                assert step.quantity == 0 or all_in_time(shelf, supplies, fits)
                more = [*promises, (step.by, step.quantity + 1)]
                assert not all_in_time(shelf, supplies, more), (shelf, supplies, promises, step)
                tried += 1
    assert tried > 5_000


def test_a_row_is_at_risk_just_where_somebody_would_be_late() -> None:
    late = 0
    for shelf, supplies in worlds():
        for wanted in product(product(DAYS, range(1, 3)), repeat=2):
            promises = list(wanted)
            backordered = sum(units for _, units in promises)
            at_risk = is_at_risk(shelf, backordered, supplies, waits_of(promises))
            assert at_risk != all_in_time(shelf, supplies, promises), (shelf, supplies, promises)
            late += at_risk
    assert late > 900


class Turn(NamedTuple):
    """`units` that somebody waits for; those of the free ones that are `kept` are not for them."""

    units: int
    kept: int


def played(shelf: int, supplies: dict[str, Supply], queue: Sequence[Turn]) -> list[str]:
    """Have all supplies come, day by day, and go through the whole queue each time."""
    left, served = [turn.units for turn in queue], [LATER for _ in queue]
    for day in ("", *DAYS):
        shelf += sum(one.quantity for one in supplies.values() if one.expected_on == day)
        for i, turn in enumerate(queue):
            given = max(0, min(left[i], shelf - turn.kept))
            left[i], shelf = left[i] - given, shelf - given
            if not left[i] and served[i] == LATER:
                served[i] = day
    return served


def test_who_is_served_when_is_what_arrivals_lead_to() -> None:
    turns = [Turn(units, kept) for units in (1, 3) for kept in (0, 1, 2)]
    found: Counter[str] = Counter()
    for books in (-2, 0, 2):
        for _, supplies in islice(worlds(), 0, 27):
            for queue in product(turns, repeat=3):
                served = played(books, supplies, queue)
                assert served_on(books, supplies, queue) == served, (books, supplies, queue)
                found.update(served)
    assert min(found[day] for day in ("", *DAYS, LATER)) > 500


def test_a_queue_is_gone_through_once_however_many_supplies_and_pools_there_are() -> None:
    supplies = {f"po-{i}": Supply(f"2026-12-{1 + i % 30:02}", 10) for i in range(50)}
    pools = {f"shop-{i}": Pool(None, i) for i in range(20)}
    row = Row("acme", "leeds", "tea", 1, 0, 0, 0, 1, terms=Terms(0, pools, supplies=supplies))
    queue = [(f"shop-{i % 20}", Wait(1, i, DAYS[0], dated=i % 2 == 0)) for i in range(2_000)]
    assert steps(lambda: row.served_on(queue)) < 20 * len(queue)


def test_in_parts_what_comes_reaches_nobody_with_a_day_later() -> None:
    earlier = 0
    for queue in product([Turn(units, kept) for units in (1, 3) for kept in (0, 2)], repeat=4):
        for parts in product(range(4), repeat=2):
            whole = {"all": Supply(DAYS[1], sum(parts))}
            split = {f"part {i}": Supply(DAYS[i], units) for i, units in enumerate(parts)}
            for turn, at_once, one_by_one in zip(
                queue, played(0, whole, queue), played(0, split, queue), strict=True
            ):
                if turn.kept == 0:
                    assert one_by_one <= at_once
                    earlier += one_by_one < DAYS[1] <= at_once
    assert earlier > 100
