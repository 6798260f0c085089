"""What may be promised by a day, against arrivals played through day by day."""

from collections.abc import Iterator
from itertools import product

from engine.outlook import Supply, is_at_risk, promisable

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
