"""What the sample shop sells, and how its day goes."""

import pytest

from holdfast.assortment import MISCOUNTED_SKU, VIRAL_SKU, assortment
from holdfast.demo import OPENING_HOUR, RHYTHM, STORE_HOURS, Day


def test_a_seed_makes_one_assortment_of_unlike_items() -> None:
    items = assortment(7)
    assert items == assortment(7)
    assert items != assortment(8)
    assert len({item.sku for item in items}) == len({item.title for item in items}) == len(items)
    assert 200 <= len(items) <= 400
    assert {VIRAL_SKU, MISCOUNTED_SKU} <= {item.sku for item in items}
    assert all(item.popularity > 0 and item.full_units > 0 for item in items)
    assert max(items, key=lambda item: item.popularity).sku == MISCOUNTED_SKU


def test_a_day_begins_at_its_hour_and_passes_in_its_seconds() -> None:
    now = 1000.0
    day = Day(240, clock=lambda: now)
    assert day.hours == OPENING_HOUR
    assert day.number == 0
    assert day.within(STORE_HOURS)
    assert day.demand == RHYTHM[10]
    now += 5
    assert day.demand == pytest.approx((RHYTHM[10] + RHYTHM[11]) / 2)
    now += 120
    assert day.hours == 22.5
    assert not day.within(STORE_HOURS)
    now += 20
    assert day.number == 1
