"""Shortfalls: what was promised and is not there, and the ways out."""

import msgspec

from engine import shortfalls
from engine.model import ReservationState, time_text
from gateway.calls import Answer, Call
from gateway.wire import Time


class EndangeredReservation(msgspec.Struct, frozen=True):
    """A reservation `missing` of whose `quantity` units are not there."""

    reservation: str
    state: ReservationState
    order_ref: str
    quantity: int
    missing: int


class OtherLocation(msgspec.Struct, frozen=True):
    """Another location that can promise units of the SKU."""

    location: str
    available: int


class WaysOut(msgspec.Struct, frozen=True):
    """What resolves a shortfall.

    `elsewhere` has the SKU; `commit_short` units are on hand, so that many can be picked in all.
    """

    elsewhere: list[OtherLocation]
    commit_short: int


class Shortfall(msgspec.Struct, frozen=True):
    """`units` that are promised and not there, by a `how` since `since`.

    `endangered` names whose they are: holds, then confirmed reservations, each the newest first.
    """

    sku: str
    units: int
    since: Time
    how: str
    on_hand: int
    reserved: int
    endangered: list[EndangeredReservation]
    ways_out: WaysOut


class ShortfallList(msgspec.Struct, frozen=True):
    """The shortfalls of a location, the oldest first."""

    data: list[Shortfall]


async def list_shortfalls(call: Call, _body: None) -> Answer:
    """List a location's shortfalls."""
    found = await shortfalls.Shortfalls(call.inventory).listed(call.merchant, call.path["location"])
    return Answer(200, ShortfallList([_shortfall(one) for one in found]))


def _shortfall(found: shortfalls.Shortfall) -> Shortfall:
    return Shortfall(
        found.sku,
        found.units,
        time_text(found.since_ms),
        found.how,
        found.on_hand,
        found.reserved,
        [
            EndangeredReservation(
                one.reservation, one.state, one.order_ref, one.quantity, one.missing
            )
            for one in found.endangered
        ],
        WaysOut(
            [OtherLocation(one.location, one.available) for one in found.elsewhere], found.on_hand
        ),
    )
