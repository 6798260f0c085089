"""What sourcing knows of a location: where it is, which comes first, whether it ships."""

from collections.abc import Sequence
from typing import Any, Self

import msgspec

from engine.keys import PLACES_KEY, location_member
from engine.layouts import Coordinates
from engine.limits import MAX_POLICIES
from engine.outcomes import InvalidCommand, LimitExceeded
from engine.store import Store
from engine.validation import check_id

MAX_PRIORITY = 1_000_000


class Place(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A location's settings for sourcing; the lowest `priority` number comes first.

    Coordinates are degrees (WGS 84), both or neither. One that does not ship is never a source.
    """

    latitude: float | None = None
    longitude: float | None = None
    priority: int = 0
    ships: bool = True

    @property
    def coordinates(self) -> Coordinates | None:
        """Where it is, if that was told."""
        if self.latitude is None or self.longitude is None:
            return None
        return Coordinates(self.latitude, self.longitude)

    def check(self) -> Self:
        """Return it as it is. Raises InvalidCommand."""
        check_coordinates("", self.latitude, self.longitude)
        if not 0 <= self.priority <= MAX_PRIORITY:
            raise InvalidCommand("priority", f"must be 0 to {MAX_PRIORITY}")
        return self


def check_coordinates(prefix: str, latitude: float | None, longitude: float | None) -> None:
    """Take degrees, both or neither. Raises InvalidCommand."""
    if (latitude is None) != (longitude is None):
        missing = "latitude" if latitude is None else "longitude"
        raise InvalidCommand(prefix + missing, "must stand beside the other coordinate")
    if latitude is not None and not -90 <= latitude <= 90:
        raise InvalidCommand(prefix + "latitude", "must be -90 to 90 degrees")
    if longitude is not None and not -180 <= longitude <= 180:
        raise InvalidCommand(prefix + "longitude", "must be -180 to 180 degrees")


_decode = msgspec.json.Decoder(Place).decode


class Places:
    """The settings of all locations of one store."""

    def __init__(self, store: Store) -> None:
        """Keep nothing in memory: an order is placed far less often than stock is read."""
        self._store = store

    async def of(self, merchant: str, locations: Sequence[str]) -> list[Place]:
        """Read the settings of some locations, the defaults where there are none."""
        if not locations:
            return []
        fields = [location_member(merchant, location) for location in locations]
        found: list[Any]
        (found,) = await self._store.read([("HMGET", PLACES_KEY, *fields)])
        return [Place() if text is None else _decode(text) for text in found]

    async def read(self, merchant: str, location: str) -> Place:
        """Read the settings of a location."""
        check_id("merchant", merchant)
        check_id("location", location)
        (place,) = await self.of(merchant, [location])
        return place

    async def write(self, merchant: str, location: str, place: Place) -> None:
        """Replace the settings of a location. Raises InvalidCommand and LimitExceeded."""
        check_id("merchant", merchant)
        check_id("location", location)
        place.check()
        (count,) = await self._store.read([("HLEN", PLACES_KEY)])
        if count >= MAX_POLICIES:
            raise LimitExceeded("places", most=MAX_POLICIES)
        text = msgspec.json.encode(place).decode()
        await self._store.read([("HSET", PLACES_KEY, location_member(merchant, location), text)])
