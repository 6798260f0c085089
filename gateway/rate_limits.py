"""Rate limits: how much an API key may ask of this process, and what the answers say about it.

A token bucket a key, kept as one time (the generic cell rate algorithm of ITU-T I.371): the moment
at which the bucket would be full again. So it needs no timer, and a request costs one comparison.
The response fields are those of draft-ietf-httpapi-ratelimit-headers-10.
"""

from collections import OrderedDict
from collections.abc import Callable
from math import ceil
from time import monotonic
from typing import Final

from engine.access import MAX_API_KEYS, ApiKey, RateLimit
from engine.metrics import SHEDS
from gateway.problems import RateLimited

ResponseField = tuple[bytes, bytes]

ITEMS_A_UNIT: Final = 10
"""Lines, rows or movements that a request may carry for the cost of one: an item of a batch costs a
fraction of a request of its own, so batching must pay, and yet 1,000 movements are not one."""

POLICY: Final = "key"
"""What the response fields call the limit."""

SIGN_INS: Final = RateLimit(per_second=1, burst=10)
"""Sign-ins from one address: more than a person makes, and no use for guessing 190 random bits."""

MAX_ADDRESSES: Final = 10_000
"""Addresses that are remembered; the one that was quiet for longest is forgotten first."""


_SLACK: Final = 1e-6
"""Of a unit, second or millisecond: what sums of floats may be off, for which nobody is to wait."""


class Bucket:
    """What one key may still ask for, in units; it fills by `per_second` up to `burst`."""

    __slots__ = ("_clock", "_full_at", "burst", "limit", "per_second", "policy")

    def __init__(self, limit: RateLimit, *, workers: int, clock: Callable[[], float]) -> None:
        """Start full, with the share of one of `workers` processes."""
        self.limit = limit
        self.per_second = limit.per_second / workers
        self.burst = -(-limit.burst // workers)
        fills_in = max(1, ceil(self.burst / self.per_second - _SLACK))
        self.policy: ResponseField = (
            b"ratelimit-policy",
            b'"%s";q=%d;w=%d' % (POLICY.encode(), self.burst, fills_in),
        )
        self._clock = clock
        self._full_at = clock()

    def take(self) -> None:
        """Take the unit that every request costs. Raises RateLimited where there is none."""
        now = self._clock()
        left = self._left(now)
        if left < 1 - _SLACK:
            SHEDS.add(("rate_limit",))
            raise RateLimited(retry_after_ms=ceil((1 - left) / self.per_second * 1000 - _SLACK))
        self._charge(1, now)

    def charge_items(self, count: int) -> None:
        """Take what a request of so many items costs beyond its first unit.

        The items are known only when the request was let in, so the bucket may come to owe units;
        what follows then waits for longer.
        """
        if count > ITEMS_A_UNIT:
            self._charge(-(-count // ITEMS_A_UNIT) - 1, self._clock())

    def fields(self) -> tuple[ResponseField, ResponseField]:
        """Return the response fields of the limit as it is now."""
        left = self._left(self._clock())
        whole = max(0, int(left + _SLACK))
        until_more = 0
        if whole < self.burst:
            until_more = ceil((whole + 1 - left) / self.per_second - _SLACK)
        return self.policy, (b"ratelimit", b'"%s";r=%d;t=%d' % (POLICY.encode(), whole, until_more))

    def _charge(self, units: int, now: float) -> None:
        self._full_at = max(self._full_at, now) + units / self.per_second

    def _left(self, now: float) -> float:
        return self.burst - max(0.0, self._full_at - now) * self.per_second


class RateLimits:
    """The buckets of the keys that have a limit."""

    def __init__(self, *, workers: int = 1, clock: Callable[[], float] = monotonic) -> None:
        """Grant the share of one of `workers` processes; `clock` gives seconds that only rise."""
        self._workers = workers
        self._clock = clock
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def of(self, key: ApiKey) -> Bucket | None:
        """Return the key's bucket, None where it has no limit."""
        limit = key.rate_limit
        if limit is None:
            return None
        bucket = self._buckets.get(key.id)
        if bucket is None or bucket.limit != limit:
            bucket = Bucket(limit, workers=self._workers, clock=self._clock)
            self._buckets[key.id] = bucket
            # No store has more keys, so this forgets only what is never asked for again.
            if len(self._buckets) > MAX_API_KEYS:
                self._buckets.popitem(last=False)
        return bucket


class SignIns:
    """How often each address may try to sign in at this process."""

    def __init__(self) -> None:
        """Know of no address yet."""
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, address: str) -> None:
        """Count an attempt. Raises RateLimited."""
        bucket = self._buckets.pop(address, None) or Bucket(SIGN_INS, workers=1, clock=monotonic)
        self._buckets[address] = bucket
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        bucket.take()
