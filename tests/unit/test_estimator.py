"""The offline buffer against the distribution that it is a quantile of."""

from math import exp, lgamma, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.estimator import HOUR_MS, Rate, buffer_units, observed_hours, quantile

DAY_MS = 24 * HOUR_MS


def cdf(count: int, size: float, probability: float) -> float:
    """Sum the negative binomial by its definition."""
    return sum(
        exp(
            lgamma(size + k)
            - lgamma(size)
            - lgamma(k + 1)
            + size * log(probability)
            + k * log(1 - probability)
        )
        for k in range(count + 1)
    )


@given(
    st.floats(0.5, 300),
    st.floats(0.3, 0.999),
    st.sampled_from((0.5, 0.9, 0.99, 0.999)),
)
def test_it_is_the_least_count_that_has_the_confidence(
    size: float, probability: float, confidence: float
) -> None:
    found = quantile(size, probability, confidence)
    assert cdf(found, size, probability) >= confidence - 1e-9
    assert found == 0 or cdf(found - 1, size, probability) < confidence + 1e-9


def test_what_sells_very_much_is_nearly_normal() -> None:
    exact = quantile(2_000, 0.75, 0.99)
    assert exact == pytest.approx(2_000 / 3 + 2.3263 * (2_000 / 3 / 0.75) ** 0.5, abs=8)
    assert quantile(20_000, 0.5, 0.99) == pytest.approx(20_000 + 2.3263 * 200, abs=20)


def test_it_grows_with_the_silence_and_with_the_confidence() -> None:
    rate = Rate(100, 0)

    def units(hours: float, confidence: float = 0.99) -> int:
        return buffer_units(
            rate,
            watched_ms=14 * DAY_MS,
            silent_ms=int(hours * HOUR_MS),
            now_ms=0,
            confidence=confidence,
        )

    assert units(0) == 0
    grown = [units(hours) for hours in (0.1, 1, 5, 24, 100)]
    assert grown == sorted(grown)
    assert grown[0] < grown[-1]
    assert units(24, 0.5) < units(24, 0.99) < units(24, 0.9999)


def test_old_sales_count_half_after_a_fortnight() -> None:
    assert Rate(100, 0).after(14 * DAY_MS).units == pytest.approx(50)
    assert Rate(100, 0).after(14 * DAY_MS, 7).units == pytest.approx(57)
    assert observed_hours(0) == 0
    assert observed_hours(10_000 * DAY_MS) == pytest.approx(14 * 24 / log(2))


def test_what_never_sells_holds_back_nothing_for_a_short_while() -> None:
    watched = {"watched_ms": 30 * DAY_MS, "now_ms": 0, "confidence": 0.99}
    assert buffer_units(Rate(), silent_ms=HOUR_MS, **watched) == 0  # type: ignore[arg-type]
