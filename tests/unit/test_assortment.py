"""What the sample shop sells, and how its day goes."""

import pytest

from engine.estimator import Rate, buffer_units
from engine.policies import DEFAULT_CONFIDENCE
from holdfast.assortment import MISCOUNTED_SKU, VIRAL_SKU, assortment
from holdfast.demo import (
    CONFIDENCE_PERCENT,
    DAY_SECONDS,
    MAX_CART_LINES,
    MISCOUNT_HOUR,
    ONLINE_SHARE,
    OPENING_HOUR,
    OUTAGE_HOURS,
    RECOUNT_HOUR,
    RHYTHM,
    SILENT_AFTER_SECONDS,
    STORE_HOURS,
    STORES,
    TILL_SECONDS,
    TILLS,
    Day,
    DemoSettings,
    typed_twice,
)
from reconciler.anomalies import SINGLE_FACTOR, SINGLE_MIN_CHANGES, SINGLE_MIN_UNITS
from reconciler.loop import AUDIT_INTERVAL_SECONDS


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


HOUR_SECONDS = DAY_SECONDS / 24


@pytest.mark.parametrize("seed", range(1, 41))
def test_every_miscount_is_one_that_the_audit_finds(seed: int) -> None:
    items = assortment(seed)
    (item,) = (one for one in items if one.sku == MISCOUNTED_SKU)
    for units in range(item.full_units // 2, item.full_units + 1):
        # The shelf was full once, and may be so now.
        assert typed_twice(units) - item.full_units >= SINGLE_MIN_UNITS
        assert (typed_twice(units) + 1) / (item.full_units + 1) >= SINGLE_FACTOR
    # What a store has sold of it until then, with three carts in four that come to an order.
    share = item.popularity / sum(one.popularity for one in items)
    carts = DemoSettings().carts_per_second * (1 - ONLINE_SHARE) / len(STORES)
    a_second = share * (TILLS / TILL_SECONDS + 0.75 * carts * (1 + MAX_CART_LINES) / 2)
    seconds = (MISCOUNT_HOUR - OPENING_HOUR) * HOUR_SECONDS
    assert a_second * seconds >= 1.2 * SINGLE_MIN_CHANGES
    assert (24 - MISCOUNT_HOUR) * HOUR_SECONDS > 2 * AUDIT_INTERVAL_SECONDS
    assert MISCOUNT_HOUR < RECOUNT_HOUR < 24


def test_what_a_silent_store_sold_twice_is_held_back() -> None:
    watched_ms = round((OUTAGE_HOURS[0] - OPENING_HOUR) * HOUR_SECONDS * 1000)
    silent_ms = round((OUTAGE_HOURS[1] - OUTAGE_HOURS[0]) * HOUR_SECONDS * 1000) - 10_000
    assert silent_ms > 2 * SILENT_AFTER_SECONDS * 1000
    sold = Rate(2.0, watched_ms)
    held_back = [
        buffer_units(
            sold,
            watched_ms=watched_ms,
            silent_ms=silent_ms,
            now_ms=watched_ms + silent_ms,
            confidence=confidence,
        )
        for confidence in (DEFAULT_CONFIDENCE, CONFIDENCE_PERCENT / 100)
    ]
    assert held_back == [0, 1]
