"""What the engine takes and gives: rows, movements, reservations. All times are ms since 1970."""

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Generic, TypeVar

import msgspec

from engine.outlook import (
    Promisable,
    Supply,
    Wait,
    beyond_supplies,
    is_at_risk,
    promisable,
    served_on,
)

Item = TypeVar("Item")


class Pool(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a channel may have of a row: at most `cap` units at once, `minimum` kept for it.

    `held` is what is promised through it now.
    """

    cap: int | None = None
    minimum: int = 0
    held: int = 0


class CapScope(StrEnum):
    """Of what a cap a buyer is: of the row, or of its SKU at all locations of the merchant."""

    LOCATION = "location"
    MERCHANT = "merchant"


class BuyerCap(msgspec.Struct, frozen=True, omit_defaults=True):
    """At most so many units a buyer: what is promised, and what was picked within `window_ms`."""

    units: int
    window_ms: int
    scope: CapScope = CapScope.LOCATION


class Terms(msgspec.Struct, frozen=True, omit_defaults=True):
    """On what terms a row's units are promised; `lua/terms.lua`.

    Up to `backorder_limit` units may be promised that nothing is on the shelf for. `channels` have
    pools of it, and `buyer_cap` is the most that one buyer gets.

    The rest is not set with the others: `supplies` are to come, by their names, `waits` are the
    units (dated, undated) whose turn it is on a day, and `late` those of them whose day cannot be
    kept any more; `lua/lib/supplies.lua`.
    """

    backorder_limit: int = 0
    channels: dict[str, Pool] = {}
    buyer_cap: BuyerCap | None = None
    supplies: dict[str, Supply] = {}
    waits: dict[str, tuple[int, int]] = {}
    late: int = 0

    def settings(self) -> "Terms":
        """Return what is set of them."""
        pools = {name: Pool(pool.cap, pool.minimum) for name, pool in self.channels.items()}
        return Terms(self.backorder_limit, pools, self.buyer_cap)

    def unmet_minimums(self, channel: str = "") -> int:
        """Return the units that the pools of all channels but this one lack of their minimum."""
        return sum(
            max(0, pool.minimum - pool.held)
            for name, pool in self.channels.items()
            if name != channel
        )


class Row(msgspec.Struct, frozen=True):
    """One (merchant, location, SKU): what is there and what can still be promised, in units.

    `deficit` counts units that left the shelf although the books had none (a receipt not booked
    yet, or a miscount); arrivals pay it first. `version` rises by one at every change. The row is
    low while `available` is at or below `low_stock_threshold`; 0 is no threshold.
    `offline_buffer` is held back while the location's tills are silent. `backordered` units are
    promised with nothing on the shelf for them: what becomes free there goes to them first. `terms`
    is None where the row has none. `parts` are those that a split row promises at, 0 where it is
    not split or where that was not asked.
    """

    merchant: str
    location: str
    sku: str
    on_hand: int
    reserved: int
    safety_stock: int
    deficit: int
    version: int
    low_stock_threshold: int = 0
    offline_buffer: int = 0
    backordered: int = 0
    terms: Terms | None = None
    parts: int = 0

    @property
    def available(self) -> int:
        """Units on the shelf that can still be promised."""
        return max(0, self.unreserved - self.backordered)

    @property
    def unreserved(self) -> int:
        """Units on the shelf that nobody was promised and nothing holds back."""
        return max(0, self._free)

    @property
    def _free(self) -> int:
        """The same, negative where more are promised or held back than are there."""
        return self.on_hand - self.reserved - self.safety_stock - self.offline_buffer

    @property
    def _books(self) -> int:
        """The same less the deficit, which what arrives pays first."""
        return self._free - self.deficit

    @property
    def incoming(self) -> int:
        """Units that are to come with the row's supplies."""
        if self.terms is None:
            return 0
        return sum(supply.quantity for supply in self.terms.supplies.values())

    @property
    def available_to_promise(self) -> tuple[Promisable, ...]:
        """Units that can be promised by each day on which supplies come, the available included.

        What a channel that is guaranteed units may have beside backorders is not in it.
        """
        terms = self.terms
        if terms is None:
            return ()
        kept = terms.unmet_minimums()
        return promisable(self._books, self.backordered, terms.supplies, terms.waits, kept)

    @property
    def is_at_risk(self) -> bool:
        """True where a day that units were promised by may not be kept, or could not until now."""
        terms = self.terms
        if terms is None or not terms.waits:
            return False
        late = is_at_risk(self._books, self.backordered, terms.supplies, terms.waits)
        return late or terms.late > 0

    def served_on(self, queue: Sequence[tuple[str, Wait]]) -> list[str]:
        """Return when those who wait get their units, as `engine.outlook.served_on` does.

        `queue` says of each the channel in whose pool it counts, empty for none, and how it waits.
        """
        terms = self.terms or Terms()
        kept = {channel: terms.unmet_minimums(channel) for channel in {one for one, _ in queue}}
        waiting = [(wait.units, 0 if wait.dated else kept[channel]) for channel, wait in queue]
        return served_on(self._books, terms.supplies, waiting)

    @property
    def backorder_available(self) -> int:
        """Units beyond the available that can be promised to who names no day for them."""
        if self.terms is None or not self.terms.backorder_limit:
            return 0
        by_day = self.available_to_promise
        to_come = by_day[-1].quantity - self.available if by_day else 0
        return to_come + self.beyond_supplies_available

    @property
    def beyond_supplies_available(self) -> int:
        """Units that can be promised though neither the shelf nor a supply is to have them."""
        if self.terms is None or not self.terms.backorder_limit:
            return 0
        beyond = beyond_supplies(self._books, self.backordered, self.incoming)
        return max(0, self.terms.backorder_limit - beyond)

    @property
    def shortfall(self) -> int:
        """Units that are promised but not there."""
        return max(0, self.reserved - self.on_hand)


class MovementType(StrEnum):
    """Why units came to the shelf or left it outside of a reservation."""

    RECEIVE = "receive"
    RETURN = "return"
    SALE = "sale"
    TRANSFER_IN = "transfer_in"
    TRANSFER_OUT = "transfer_out"
    ADJUST = "adjust"
    COUNT = "count"


class Movement(msgspec.Struct, frozen=True, kw_only=True):
    """A physical event at a location, to be booked once under `key`.

    `quantity` is 1 to 10^9 units, for `adjust` signed and not 0, for `count` the units now on the
    shelf (0 to 10^12). `reason` is required for `adjust`. A `sale` is a fact and is booked even
    beyond what the books have (see `Row.deficit`); so is anything with `may_overdraw`. A `receive`
    or `transfer_in` may name the `supply` that it is the arrival of.
    """

    key: str
    location: str
    type: MovementType
    sku: str
    quantity: int
    reason: str = ""
    reference: str = ""
    source: str = ""
    occurred_at_ms: int = 0
    expected_version: int | None = None
    may_overdraw: bool = False
    supply: str = ""


class Moved(msgspec.Struct, frozen=True):
    """A booked movement: the row just after it, what it changed, and its place in the ledger."""

    id: str
    row: Row
    on_hand_change: int
    at_ms: int
    sequence: int
    replayed: bool


class Configured(msgspec.Struct, frozen=True):
    """Changed settings: the row just after."""

    row: Row
    at_ms: int
    sequence: int
    replayed: bool


class Line(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Units of one SKU."""

    sku: str
    quantity: int


class ReservationState(StrEnum):
    """held -> confirmed -> committed; held or confirmed -> released; held -> expired."""

    HELD = "held"
    CONFIRMED = "confirmed"
    COMMITTED = "committed"
    RELEASED = "released"
    EXPIRED = "expired"

    @property
    def is_open(self) -> bool:
        """True while the reservation holds units."""
        return self in (ReservationState.HELD, ReservationState.CONFIRMED)


class ProposalDecision(StrEnum):
    """What somebody says to a proposal that others stand for what was asked for."""

    ACCEPTED = "accepted"
    DECLINED = "declined"


class Promised(msgspec.Struct, frozen=True):
    """The day `by` which units of a line that wait were promised.

    `expected_on` is when they are expected now, later than that where it cannot be kept; None where
    nobody can say.
    """

    sku: str
    by: str
    expected_on: str | None


class StandsFor(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`units` of `sku` that a reservation holds for `served` units of `asked`.

    `of` units of it stand for `for_` of those. Of a kit each component is named, with the units
    that one kit has of it.
    """

    asked: str
    sku: str
    units: int
    served: int
    of: int
    for_: int
    kind: str


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """Units of one location promised to one order.

    `lines` are what is held, one a SKU; `missing` is what a partial reserve did not get.
    `expires_at_ms` is None unless held; `picked` are the units that left the shelf, one line a
    SKU, None unless committed. `channel` is through which it was promised, where a row has terms,
    `buyer` the digest of whom it counts for, where a row has a cap,
    and `backordered` are those units of `lines` that there is nothing on the shelf for yet;
    `promised` says by which days they are to come, of those that were promised by one.
    `stands_for` says which units are held for another SKU, and `proposed` for which of these
    somebody has to accept that. `claimed` says of which SKUs units count for the buyer over all
    locations, and for how long they do once they were picked, ms.
    """

    id: str
    merchant: str
    location: str
    state: ReservationState
    lines: tuple[Line, ...]
    missing: tuple[Line, ...]
    order_ref: str
    actor: str
    created_at_ms: int
    expires_at_ms: int | None
    confirmed_at_ms: int | None = None
    ended_at_ms: int | None = None
    picked: tuple[Line, ...] | None = None
    channel: str = ""
    buyer: str = ""
    backordered: tuple[Line, ...] = ()
    stands_for: tuple[StandsFor, ...] = ()
    proposed: tuple[str, ...] = ()
    promised: tuple[Promised, ...] = ()
    claimed: dict[str, int] = {}


class ReservationResult(msgspec.Struct, frozen=True):
    """The reservation as the command left it, and whether this call was a replay of an earlier."""

    reservation: Reservation
    replayed: bool


class Page(msgspec.Struct, Generic[Item], frozen=True):
    """Part of a listing; `next_after` is where the next part starts, None at the end."""

    items: tuple[Item, ...]
    next_after: str | None


def time_text(time_ms: int) -> str:
    """Format ms since 1970 as RFC 3339 in UTC."""
    return f"{_second_text(time_ms // 1000)}.{time_ms % 1000:03d}Z"


@lru_cache(maxsize=4_096)
def _second_text(time_seconds: int) -> str:
    return datetime.fromtimestamp(time_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
