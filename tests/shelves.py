"""A row of the model: what is there and to come, on what terms, and how much an asker may have.

See docs/concepts/promising.md. Nothing here imports product code. A day is text, YYYY-MM-DD.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

NEVER: Final = "9999-12-31"
"""Later than any day."""


class Ask(NamedTuple):
    """Who asks: whether only stock will do, the channel, the buyer, and by which day."""

    stock_only: bool = False
    channel: str = "online"
    buyer: str = ""
    by: str = ""


class Room(NamedTuple):
    """What an asker may have of a row: `most` units, of which `shelf` are there already.

    `days` says how many of the others may be promised by which day, and `reason` what there is not
    more for. `kept` units of the shelf cannot be promised as if they were to come.
    """

    most: int
    shelf: int
    reason: str = "stock"
    days: tuple[tuple[str, int], ...] = ()
    kept: int = 0


@dataclass(slots=True)
class Wait:
    """Units that wait, and their turn: by the day, those who were promised it before others.

    `place` is the row's version when they were promised. `late` is what was told last: the day on
    which they are expected, where that by which they were promised cannot be kept.
    """

    units: int
    day: str = ""
    is_dated: bool = False
    place: int = 0
    late: str = ""

    @property
    def turn(self) -> tuple[str, bool, int]:
        """When they are served."""
        return self.day, not self.is_dated, self.place


@dataclass(slots=True)
class Deal:
    """On what terms a row is promised."""

    backorder_limit: int = 0
    pools: dict[str, tuple[int | None, int]] = field(default_factory=dict)
    """Of a channel its cap (None: none) and its minimum."""
    buyer_cap: tuple[int, int] | None = None
    """Units, and the window in ms."""

    @property
    def is_plain(self) -> bool:
        """True where nothing is set."""
        return not self.backorder_limit and not self.pools and self.buyer_cap is None


@dataclass(slots=True)
class Shelf:
    """One row: (location, SKU). `waits` is who waits for its units, in the order of their turns."""

    on_hand: int = 0
    reserved: int = 0
    safety_stock: int = 0
    deficit: int = 0
    version: int = 0
    backordered: int = 0
    deal: Deal = field(default_factory=Deal)
    owes: bool = False
    """Whether units were backordered when the deal was last set, so that it is not forgotten."""
    held: dict[str, int] = field(default_factory=dict)
    """Units in the pool of each channel."""
    supplies: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Of each supply its day, and the units that are still to come."""
    counted_at: int = 0
    changed_at: int = 0
    """When the last count was taken, and when the last change happened that came since."""

    def has_terms(self, waits: Sequence[Wait]) -> bool:
        """Tell whether it is not promised like an ordinary row."""
        has_days = bool(self.supplies) or any(wait.day for wait in waits)
        return not self.deal.is_plain or self.owes or any(self.held.values()) or has_days

    def is_pooled(self, channel: str) -> bool:
        """True where units count in the channel's pool, one that ended but still holds some too."""
        return channel in self.deal.pools or self.held.get(channel, 0) > 0

    @property
    def unreserved(self) -> int:
        """Units on the shelf that are not promised or kept back; negative where too few are."""
        return self.on_hand - self.reserved - self.safety_stock

    @property
    def free(self) -> int:
        """The same, of those that are there."""
        return max(0, self.unreserved)

    @property
    def available(self) -> int:
        """Units that can still be promised."""
        return max(0, self.free - self.backordered)

    @property
    def incoming(self) -> int:
        """Units that are to come."""
        return sum(units for _, units in self.supplies.values())

    def kept_from(self, wait: Wait, channel: str) -> int:
        """Units that stay for others than one who waits and counts in this pool, or in none ("").

        A promise by a day goes before the minimums of others.
        """
        return 0 if wait.is_dated else self._unmet_but(channel)

    def _unmet_but(self, channel: str) -> int:
        """Units of their minimums that the pools of other channels do not hold yet."""
        return sum(self._unmet(name) for name in self.deal.pools if name != channel)

    def _unmet(self, channel: str) -> int:
        _, minimum = self.deal.pools.get(channel, (None, 0))
        return max(0, minimum - self.held.get(channel, 0))

    def come(self, day: str) -> int:
        """Units for who waits or asks, by the end of a day; what comes pays a deficit first."""
        arrived = sum(units for on, units in self.supplies.values() if on <= day)
        return self.unreserved - self.deficit + arrived

    def days_of_supplies(self) -> list[str]:
        """Return the days on which something comes."""
        return sorted({day for day, _ in self.supplies.values()})

    def left_by(self, waits: Sequence[Wait]) -> dict[str, int]:
        """Return what is left by each day of supplies, and on all later ones, for who waits not."""
        later = sorted({*self.days_of_supplies(), *(wait.day for wait in waits if wait.day)})
        left = {
            day: self.come(day) - sum(wait.units for wait in waits if wait.day <= day)
            for day in later
        }
        return {
            day: min(left[other] for other in later if other >= day)
            for day in self.days_of_supplies()
        }

    def room(self, ask: Ask, waits: Sequence[Wait], bought: int) -> Room:
        """Return the room for an asker who `bought` so many of it lately."""
        dated = sum(wait.units for wait in waits if wait.is_dated)
        own = min(self._unmet(ask.channel), max(0, self.free - dated))
        of_others = self._unmet_but(ask.channel)
        shelf = max(self.available - of_others, own, 0)
        reason = "channel" if shelf < self.available else "stock"
        kept = max(self.available, shelf, min(of_others, self.free))
        most = shelf
        days: tuple[tuple[str, int], ...] = ()
        if not ask.stock_only:
            left = self.left_by(waits)
            days = tuple((day, max(0, units - kept)) for day, units in left.items())
            most += self._to_come(ask.by, days)
        cap, _ = self.deal.pools.get(ask.channel, (None, 0))
        if cap is not None and cap - self.held.get(ask.channel, 0) < most:
            most, reason = max(0, cap - self.held.get(ask.channel, 0)), "channel"
        if self.deal.buyer_cap is not None and self.deal.buyer_cap[0] - bought < most:
            most, reason = max(0, self.deal.buyer_cap[0] - bought), "buyer"
        return Room(most, min(shelf, most), reason, days, kept)

    def _to_come(self, by: str, days: Sequence[tuple[str, int]]) -> int:
        """Units that may be promised before they come: by a day, or beyond all that is to come."""
        limit = self.deal.backorder_limit
        if not by and not limit:
            return 0
        by_then = max((units for day, units in days if day <= (by or NEVER)), default=0)
        if by:
            return by_then
        covered = self.incoming + min(0, self.unreserved - self.deficit)
        return by_then + max(0, limit - max(0, self.backordered - max(0, covered)))

    def new_wait(
        self, units: int, days: Sequence[tuple[str, int]], waits: Sequence[Wait], place: int
    ) -> Wait:
        """Return how units wait: by the first day that has enough, or behind all who have one."""
        for day, enough in days:
            if enough >= units:
                return Wait(units, day, True, place)
        known = [*self.days_of_supplies(), *(wait.day for wait in waits)]
        return Wait(units, max(known, default=""), False, place)

    def without(self, *, reserved: int, waiting: int, channel: str, pooled: int) -> "Shelf":
        """Return the row as if somebody had given so many units back."""
        held = self.held | {channel: self.held.get(channel, 0) - pooled}
        return replace(
            self,
            reserved=self.reserved - reserved,
            backordered=self.backordered - waiting,
            held=held,
        )

    def take_from_supply(self, supply: str, units: int) -> None:
        """Have fewer units be still to come with a supply; more may have come than that."""
        day, left = self.supplies.pop(supply)
        if left > units:
            self.supplies[supply] = (day, left - units)

    def facts(self) -> dict[str, Any]:
        """Return all columns by name, and what is to come."""
        return {
            "on_hand": self.on_hand,
            "reserved": self.reserved,
            "safety_stock": self.safety_stock,
            "deficit": self.deficit,
            "version": self.version,
            "backordered": self.backordered,
            "supplies": dict(self.supplies),
        }
