"""What a merchant wants done about late events, silent tills and shortfalls.

A policy is a merchant's or one of its locations'; what the latter leaves open the former decides,
and what both leave open has the defaults below.
"""

import time
from enum import StrEnum
from typing import Any, Final, Self

import msgspec

from engine.keys import POLICIES_KEY, encode, location_member
from engine.limits import DEFAULT_LATE_MS, MAX_POLICIES, RECENT_MS
from engine.outcomes import InvalidCommand, LimitExceeded
from engine.store import Store
from engine.validation import check_id

CACHE_SECONDS: Final = 5.0
"""How long a process goes by a policy that was changed elsewhere."""

MAX_CACHED: Final = 10_000

DEFAULT_HEARTBEAT_MS: Final = 300_000
"""Without an event or a heartbeat for so long, a source is taken for cut off."""

DEFAULT_GAP_GRACE_MS: Final = 600_000
"""How long a sequence number may be missing before that is an alarm."""

DEFAULT_CONFIDENCE: Final = 0.99
HOUR_MS: Final = 3_600_000
MAX_HEARTBEAT_SECONDS: Final = 86_400
MAX_GRACE_SECONDS: Final = 7 * 86_400


class OnShortfall(StrEnum):
    """What becomes of the promises when fewer units are there than were promised."""

    FLAG = "flag"
    """Nothing: it is listed, with the reservations that it endangers."""
    RELEASE_NEWEST = "release_newest"
    """Holds are released, the newest first; confirmed reservations never."""


class WhenOffline(StrEnum):
    """What may be promised at a location whose tills are silent."""

    BUFFER = "buffer"
    """What is there less what the tills have probably sold."""
    FREEZE = "freeze"
    """Nothing."""
    TRUST = "trust"
    """What was there last."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A whole policy; times in ms."""

    late_ms: int = DEFAULT_LATE_MS
    heartbeat_ms: int = DEFAULT_HEARTBEAT_MS
    gap_grace_ms: int = DEFAULT_GAP_GRACE_MS
    on_shortfall: OnShortfall = OnShortfall.FLAG
    when_offline: WhenOffline = WhenOffline.BUFFER
    confidence: float = DEFAULT_CONFIDENCE


class PolicyPart(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is decided at one place; None leaves it to the wider place."""

    late_hours: int | None = None
    heartbeat_seconds: int | None = None
    gap_grace_seconds: int | None = None
    on_shortfall: OnShortfall | None = None
    when_offline: WhenOffline | None = None
    confidence_percent: float | None = None

    def check(self) -> Self:
        """Return it as it is. Raises InvalidCommand."""
        _check_range("late_hours", self.late_hours, 1, RECENT_MS // HOUR_MS)
        _check_range("heartbeat_seconds", self.heartbeat_seconds, 5, MAX_HEARTBEAT_SECONDS)
        _check_range("gap_grace_seconds", self.gap_grace_seconds, 0, MAX_GRACE_SECONDS)
        _check_range("confidence_percent", self.confidence_percent, 50, 99.99)
        return self

    def over(self, base: Policy) -> Policy:
        """Return `base` with what is decided here."""
        changes: dict[str, Any] = {
            "late_ms": _scaled(self.late_hours, HOUR_MS),
            "heartbeat_ms": _scaled(self.heartbeat_seconds, 1_000),
            "gap_grace_ms": _scaled(self.gap_grace_seconds, 1_000),
            "on_shortfall": self.on_shortfall,
            "when_offline": self.when_offline,
            "confidence": None
            if self.confidence_percent is None
            else self.confidence_percent / 100,
        }
        return msgspec.structs.replace(
            base, **{name: value for name, value in changes.items() if value is not None}
        )


_decode = msgspec.json.Decoder(PolicyPart).decode


class Policies:
    """The policies of one store; what is read is remembered for CACHE_SECONDS."""

    def __init__(self, store: Store) -> None:
        """Remember nothing yet."""
        self._store = store
        self._known: dict[tuple[str, str], tuple[float, Policy]] = {}

    async def of(self, merchant: str, location: str) -> Policy:
        """Return what holds at a location."""
        now = time.monotonic()
        known = self._known.get((merchant, location))
        if known is not None and known[0] > now:
            return known[1]
        wide, narrow = await self.parts(merchant, location)
        policy = narrow.over(wide.over(Policy()))
        if len(self._known) >= MAX_CACHED:
            self._known.clear()
        self._known[merchant, location] = (now + CACHE_SECONDS, policy)
        return policy

    async def parts(self, merchant: str, location: str) -> tuple[PolicyPart, PolicyPart]:
        """Read what is decided for a merchant, and for the location."""
        fields = (_field(merchant, ""), _field(merchant, location))
        (found,) = await self._store.read([("HMGET", POLICIES_KEY, *fields)])
        wide, narrow = (PolicyPart() if text is None else _decode(text) for text in found)
        return wide, narrow

    async def read(self, merchant: str, location: str = "") -> PolicyPart:
        """Read what is decided for a merchant, or for one of its locations."""
        check_id("merchant", merchant)
        wide, narrow = await self.parts(merchant, location)
        return narrow if location else wide

    async def write(self, merchant: str, part: PolicyPart, location: str = "") -> None:
        """Decide for a merchant, or for one of its locations. Raises LimitExceeded."""
        check_id("merchant", merchant)
        part.check()
        (count,) = await self._store.read([("HLEN", POLICIES_KEY)])
        if count >= MAX_POLICIES:
            raise LimitExceeded("policies", most=MAX_POLICIES)
        text = msgspec.json.encode(part).decode()
        await self._store.read([("HSET", POLICIES_KEY, _field(merchant, location), text)])
        self._known.clear()


def _field(merchant: str, location: str) -> str:
    return location_member(merchant, location) if location else encode(merchant)


def _scaled(value: int | None, factor: int) -> int | None:
    return None if value is None else value * factor


def _check_range(field: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not least <= value <= most:
        raise InvalidCommand(field, f"must be {least:g} to {most:g}")
