"""What a silent till has probably sold: a bound from the row's own recent rate of sale.

Sales of one row are taken for a Poisson process of unknown rate. Sales and time observed decay with
a half-life of 14 days, so the rate is the recent one. With a Gamma prior the rate's posterior is
Gamma(A0 + units, B0 + hours), and what is sold in the next t hours is negative binomial with size
A0 + units and probability (B0 + hours) / (B0 + hours + t): the Gamma-Poisson posterior predictive
(Gelman et al., Bayesian Data Analysis, 3rd edition, section 2.6). The buffer is its quantile, 99 %
unless the policy says otherwise; it grows with t, and with what is not known of the rate.
"""

from math import log, sqrt
from statistics import NormalDist
from typing import Final

import msgspec

HALF_LIFE_HOURS: Final = 14 * 24.0

PRIOR_UNITS: Final = 0.5
"""A0: Jeffreys' choice for a Poisson rate."""

PRIOR_HOURS: Final = 24.0
"""B0: a row that nobody has watched yet is taken to sell a unit in two days."""

MAX_TERMS: Final = 10_000
"""Of the sum up to the quantile; what sells more is nearly normal."""

MIN_LOG: Final = -700.0
"""Below it the first term is no number any more."""

HOUR_MS: Final = 3_600_000


class Rate(msgspec.Struct, frozen=True, array_like=True):
    """Decayed units sold of a row, as of `at_ms`."""

    units: float = 0.0
    at_ms: int = 0

    def after(self, at_ms: int, units: int = 0) -> "Rate":
        """Return it as of a later moment, with units sold since."""
        at_ms = max(self.at_ms, at_ms)
        return Rate(self.units * _decay(at_ms - self.at_ms) + units, at_ms)


def observed_hours(age_ms: int) -> float:
    """Return the decayed hours of a location that has been watched for so long."""
    return HALF_LIFE_HOURS / log(2) * (1 - _decay(max(0, age_ms)))


def buffer_units(
    rate: Rate, *, watched_ms: int, silent_ms: int, now_ms: int, confidence: float
) -> int:
    """Return the units that a till has sold at most in `silent_ms`, with this confidence.

    `watched_ms` is how long its sales have been recorded.
    """
    hours = PRIOR_HOURS + observed_hours(watched_ms)
    size = PRIOR_UNITS + rate.after(now_ms).units
    return quantile(size, hours / (hours + max(0, silent_ms) / HOUR_MS), confidence)


def quantile(size: float, probability: float, confidence: float) -> int:
    """Return the quantile of a negative binomial distribution."""
    if probability >= 1:
        return 0
    if size * log(probability) > MIN_LOG:
        term = total = probability**size
        for count in range(MAX_TERMS):
            if total >= confidence:
                return count
            term *= (size + count) / (count + 1) * (1 - probability)
            total += term
    mean = size * (1 - probability) / probability
    spread = sqrt(mean / probability)
    return max(0, round(mean + NormalDist().inv_cdf(confidence) * spread + 0.5))


def _decay(elapsed_ms: int) -> float:
    return float(0.5 ** (elapsed_ms / HOUR_MS / HALF_LIFE_HOURS))
