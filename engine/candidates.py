"""A merchant's locations as a plan of `engine.sourcing` sees them, read from the live rows."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec

from engine.inventory import Inventory
from engine.kits import Kits
from engine.layouts import Candidate, Way, Ways
from engine.limits import DEFAULT_CHANNEL, MAX_BATCH_ROWS, MAX_SOURCING_LOCATIONS
from engine.model import CapScope, Line, Row
from engine.offline import LIVE, FreshnessView
from engine.order_records import Part
from engine.places import Places
from engine.substitutes import Choices
from engine.wishes import SUBSTITUTE, Fill, Substitution, Wish, ask, needs_rules

Known = Mapping[tuple[str, str, bool, bool], int]
"""What refusals said of a location and SKU: the most that it has, whether substitutes count, and
whether units that are to come do."""


class _At(msgspec.Struct, frozen=True):
    """How what is wanted may be served at a location, and which rows that takes units of."""

    rows: tuple[str, ...]
    ways: dict[str, Ways]


_NOTHING: Final = _At((), {})


class _Room(NamedTuple):
    """Units of a row that may be promised: on its shelf, and before they come."""

    shelf: int
    to_come: int


_NO_ROOM: Final = _Room(0, 0)


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
        stock_only: bool = False,
        own: Collection[Part] = (),
        named: Mapping[str, Sequence[Wish]] = MappingProxyType({}),
    ) -> list[tuple[Candidate, str]]:
        """Return the merchant's locations, with why one is no candidate.

        Of each row counts what is on the shelf for the channel, and unless `stock_only` what may be
        promised before it comes: with a day what comes `by` then, else what the row's backorders
        allow. What the order's `own` parts hold counts, too, and what is asked for of a location by
        its name does not. Raises LimitExceeded where what may stand for the wishes takes more rows
        than one reserve looks at.
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
        rooms: dict[tuple[str, str], _Room] = {}
        for start in range(0, len(asked), MAX_BATCH_ROWS):
            some = asked[start : start + MAX_BATCH_ROWS]
            for name, row in zip(some, await self._inventory.rows(merchant, some), strict=True):
                room = _NO_ROOM
                if row is not None:
                    room = _room(row, channel or DEFAULT_CHANNEL, by, stock_only=stock_only)
                rooms[name] = room if name[1] in kits else _at_most(known, name, room)
        substituted = {x.sku for x in wanted if x.substitutes is not Substitution.NONE}
        found = []
        for location, place, one in zip(locations, places, at, strict=True):
            also = at_named.get(location, _NOTHING)
            rows = {sku: rooms[location, sku] for sku in dict.fromkeys([*one.rows, *also.rows])}
            candidate = Candidate(
                location=location,
                available={sku: room.shelf for sku, room in rows.items()},
                to_come={sku: room.to_come for sku, room in rows.items() if room.to_come},
                ways=also.ways,
                priority=place.priority,
                coordinates=place.coordinates,
                is_degraded=fresh[location] != LIVE,
            )
            candidate = _with_own(candidate, own).without(
                [Line(wish.sku, wish.quantity) for wish in named.get(location, ())]
            )
            most, most_in_all = (
                {
                    sku: known[location, sku, sku in substituted, waits]
                    + _own_units(location, sku, own)
                    for sku in one.ways
                    if (location, sku, sku in substituted, waits) in known
                }
                for waits in (False, True)
            )
            candidate = msgspec.structs.replace(
                candidate, ways=one.ways, most=most_in_all | most, most_in_all=most_in_all
            )
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
                Way(of, for_, tuple((sku, units) for sku, _, units in parts), kind == SUBSTITUTE)
                for of, for_, _, kind, parts in candidates
            )
            has_others = any(way.is_substitute for way in found)
            ways[wish.sku] = Ways(found, has_others and wish.fill is Fill.WHOLE)
    return _At(asked.skus, ways)


def _with_own(candidate: Candidate, own: Collection[Part]) -> Candidate:
    """Count what the order's own parts hold at a location as free."""
    available, to_come = dict(candidate.available), dict(candidate.to_come)
    for part in own:
        if part.location == candidate.location:
            waiting = {line.sku: line.quantity for line in part.backordered}
            for line in part.lines:
                if line.sku in available:
                    late = waiting.get(line.sku, 0)
                    available[line.sku] += line.quantity - late
                    to_come[line.sku] = to_come.get(line.sku, 0) + late
    return msgspec.structs.replace(candidate, available=available, to_come=to_come)


def _own_units(location: str, sku: str, own: Collection[Part]) -> int:
    """Return how many units of a SKU the order's own parts serve at a location."""
    asked = [line for part in own if part.location == location for line in part.asks]
    return sum(line.quantity for line in asked if line.sku == sku)


def _at_most(known: Known, name: tuple[str, str], room: _Room) -> _Room:
    """Return the room of a row, less where a refusal said so of its SKU."""
    in_all = room.shelf + room.to_come
    in_all = min(in_all, known.get((*name, False, True), in_all))
    shelf = min(room.shelf, in_all, known.get((*name, False, False), in_all))
    return _Room(shelf, in_all - shelf)


def _room(row: Row, channel: str, by: str, *, stock_only: bool) -> _Room:
    """Return the units that a channel may be promised of a row: `lua/lib/room.lua`.

    What a buyer with a cap had before is not known here: the reserve counts that.
    """
    shelf, terms = row.available, row.terms
    if terms is None:
        return _Room(shelf, 0)
    taken = shelf
    if terms.channels:
        unmet = {name: max(0, x.minimum - x.held) for name, x in terms.channels.items()}
        dated = sum(units for units, _ in terms.waits.values())
        own = min(unmet.pop(channel, 0), max(0, row.unreserved - dated))
        of_others = sum(unmet.values())
        shelf = max(0, shelf - of_others, own)
        taken = max(taken, shelf, min(of_others, max(0, row.unreserved)))
    most = shelf
    if not stock_only and (by or terms.backorder_limit):
        days = [one.quantity - taken for one in row.available_to_promise if not by or one.by <= by]
        most += max(0, days[-1]) if days else 0
        most += 0 if by else row.beyond_supplies_available
    pool = terms.channels.get(channel)
    if pool is not None and pool.cap is not None:
        most = min(most, max(0, pool.cap - pool.held))
    # One over all locations is no limit of this one.
    if terms.buyer_cap is not None and terms.buyer_cap.scope is CapScope.LOCATION:
        most = min(most, terms.buyer_cap.units)
    shelf = min(shelf, most)
    return _Room(shelf, most - shelf)
