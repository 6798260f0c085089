"""A merchant's locations as a plan of `engine.sourcing` sees them, read from the live rows."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from engine.inventory import Inventory
from engine.kits import Kits
from engine.limits import DEFAULT_CHANNEL, MAX_BATCH_ROWS, MAX_SOURCING_LOCATIONS
from engine.model import Line, Row
from engine.offline import LIVE, FreshnessView
from engine.order_records import Part
from engine.places import Places
from engine.sourcing import Candidate, Way, Ways
from engine.substitutes import Choices
from engine.wishes import SUBSTITUTE, Fill, Substitution, Wish, ask, needs_rules

Known = Mapping[tuple[str, str, bool], int]
"""What refusals said of a location and SKU: the most that it has, with or without substitutes."""


class _At(msgspec.Struct, frozen=True):
    """How what is wanted may be served at a location, and which rows that takes units of."""

    rows: tuple[str, ...]
    ways: dict[str, Ways]


_NOTHING: Final = _At((), {})


class Candidates:
    """Reads where units of what is wanted may come from."""

    def __init__(self, inventory: Inventory) -> None:
        """Nothing is read yet."""
        self._inventory = inventory
        self._places = Places(inventory.store)
        self._freshness = FreshnessView(inventory)

    async def read(
        self,
        merchant: str,
        wanted: Sequence[Wish],
        *,
        known: Known,
        channel: str = "",
        by: str = "",
        own: Collection[Part] = (),
        named: Mapping[str, Sequence[Wish]] = MappingProxyType({}),
    ) -> list[tuple[Candidate, str]]:
        """Return the merchant's locations, with why one is no candidate.

        Of each row counts what is on the shelf for the channel, with a day what comes `by` then,
        and what the order's `own` parts hold, without what is asked for of that location by its
        name. Raises LimitExceeded where what may stand for the wishes takes more rows than one
        reserve looks at.
        """
        page = await self._inventory.list_locations(merchant, limit=MAX_SOURCING_LOCATIONS)
        locations = list(page.items)
        places = await self._places.of(merchant, locations)
        fresh = await self._freshness.of(merchant, locations)
        kits = await self._inventory.kits.known(merchant)
        choices: Choices = {}
        if needs_rules([*wanted, *(wish for some in named.values() for wish in some)]):
            choices = await self._inventory.substitutes.known(merchant)
        at = [_at(wanted, choices, kits, location) for location in locations]
        at_named = {
            location: _at(wishes, choices, kits, location) for location, wishes in named.items()
        }
        asked = [
            (location, sku)
            for location, one in zip(locations, at, strict=True)
            for sku in dict.fromkeys([*one.rows, *at_named.get(location, _NOTHING).rows])
        ]
        units: dict[tuple[str, str], int] = {}
        for start in range(0, len(asked), MAX_BATCH_ROWS):
            some = asked[start : start + MAX_BATCH_ROWS]
            for name, row in zip(some, await self._inventory.rows(merchant, some), strict=True):
                units[name] = 0 if row is None else _room(row, channel or DEFAULT_CHANNEL, by)
        substituted = {x.sku for x in wanted if x.substitutes is not Substitution.NONE}
        found = []
        for location, place, one in zip(locations, places, at, strict=True):
            also = at_named.get(location, _NOTHING)
            candidate = Candidate(
                location=location,
                available={
                    sku: _at_most(known, location, sku, units[location, sku], sku not in kits)
                    for sku in dict.fromkeys([*one.rows, *also.rows])
                },
                ways=also.ways,
                priority=place.priority,
                coordinates=place.coordinates,
                is_degraded=fresh[location] != LIVE,
            )
            candidate = _with_own(candidate, own).without(
                [Line(wish.sku, wish.quantity) for wish in named.get(location, ())]
            )
            most = {
                sku: known[location, sku, sku in substituted] + _own_units(location, sku, own)
                for sku in one.ways
                if (location, sku, sku in substituted) in known
            }
            candidate = msgspec.structs.replace(candidate, ways=one.ways, most=most)
            found.append((candidate, "" if place.ships else "it does not ship"))
        return found


def _at(wanted: Sequence[Wish], choices: Choices, kits: Kits, location: str) -> _At:
    if not kits and all(wish.substitutes is Substitution.NONE for wish in wanted):
        return _At(tuple([wish.sku for wish in wanted]), {})
    asked = ask(wanted, choices, kits, location)
    ways = {}
    for wish, (_, _, _, _, candidates) in zip(wanted, asked.wishes, strict=True):
        if len(candidates) > 1:
            found = tuple(
                Way(of, for_, tuple((sku, units) for sku, _, units in parts))
                for of, for_, _, _, parts in candidates
            )
            has_others = any(kind == SUBSTITUTE for _, _, _, kind, _ in candidates)
            ways[wish.sku] = Ways(found, has_others and wish.fill is Fill.WHOLE)
    return _At(asked.skus, ways)


def _with_own(candidate: Candidate, own: Collection[Part]) -> Candidate:
    """Count what the order's own parts hold at a location as free."""
    available = dict(candidate.available)
    for part in own:
        if part.location == candidate.location:
            for line in part.lines:
                if line.sku in available:
                    available[line.sku] += line.quantity
    return msgspec.structs.replace(candidate, available=available)


def _own_units(location: str, sku: str, own: Collection[Part]) -> int:
    """Return how many units of a SKU the order's own parts serve at a location."""
    asked = [line for part in own if part.location == location for line in part.asks]
    return sum(line.quantity for line in asked if line.sku == sku)


def _at_most(known: Known, location: str, sku: str, units: int, is_row: bool) -> int:
    """Return the units of a row, fewer where a refusal said so of its SKU."""
    return min(units, known.get((location, sku, False), units)) if is_row else units


def _room(row: Row, channel: str, by: str) -> int:
    """Return the units that a channel may be promised of a row: `lua/lib/room.lua`.

    Those on its shelf, and where a day is named what comes `by` then. What a buyer with a cap had
    before is not known here: the reserve counts that.
    """
    shelf, terms = row.available, row.terms
    if terms is None:
        return shelf
    taken = shelf
    if terms.channels:
        unmet = {name: max(0, x.minimum - x.held) for name, x in terms.channels.items()}
        dated = sum(units for units, _ in terms.waits.values())
        own = min(unmet.pop(channel, 0), max(0, row.unreserved - dated))
        of_others = sum(unmet.values())
        shelf = max(0, shelf - of_others, own)
        taken = max(taken, shelf, min(of_others, max(0, row.unreserved)))
    to_come = [one.quantity - taken for one in row.available_to_promise if one.by <= by]
    room = shelf + (max(0, to_come[-1]) if to_come else 0)
    pool = terms.channels.get(channel)
    if pool is not None and pool.cap is not None:
        room = min(room, max(0, pool.cap - pool.held))
    return room if terms.buyer_cap is None else min(room, terms.buyer_cap.units)
