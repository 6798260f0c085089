"""What happened, for whoever is told: typed events, which `engine.event_making` makes.

An event is a CloudEvent (CNCF CloudEvents 1.0, JSON format) whose `data` says absolute values and
versions, never a difference: a receiver that applies one only where its version is newer may get
events twice or in any order.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from engine.model import ReservationState

SPEC_VERSION: Final = "1.0"
"""Of CloudEvents."""


class EventType(StrEnum):
    """What a subscriber may ask for; the class of the same `type` has the data."""

    STOCK_CHANGED = "stock.changed"
    STOCK_LOW = "stock.low"
    STOCK_OUT = "stock.out"
    STOCK_BACK = "stock.back"
    STOCK_SHORTFALL = "stock.shortfall"
    RESERVATION_HELD = "reservation.held"
    RESERVATION_CONFIRMED = "reservation.confirmed"
    RESERVATION_EXTENDED = "reservation.extended"
    RESERVATION_AMENDED = "reservation.amended"
    RESERVATION_PROPOSED = "reservation.proposed"
    RESERVATION_ACCEPTED = "reservation.accepted"
    RESERVATION_DECLINED = "reservation.declined"
    RESERVATION_COMMITTED = "reservation.committed"
    RESERVATION_RELEASED = "reservation.released"
    RESERVATION_EXPIRED = "reservation.expired"
    BACKORDER_FILLED = "backorder.filled"
    PROMISE_SLIPPED = "promise.slipped"
    PROMISE_RESTORED = "promise.restored"
    SUPPLY_UNKNOWN = "supply.unknown"
    ORDER_HELD = "order.held"
    ORDER_CONFIRMED = "order.confirmed"
    ORDER_CHANGED = "order.changed"
    ORDER_FULFILLED = "order.fulfilled"
    ORDER_FAILED = "order.failed"
    ORDER_CANCELLED = "order.cancelled"
    ORDER_EXPIRED = "order.expired"
    SHORTFALL_RECORDED = "shortfall.recorded"
    SHORTFALL_CLOSED = "shortfall.closed"
    LOCATION_DEGRADED = "location.degraded"
    LOCATION_CATCHING_UP = "location.catching_up"
    LOCATION_LIVE = "location.live"


class PromisableData(msgspec.Struct, frozen=True):
    """Units that can be promised by a day, those that are available now among them."""

    by: str
    quantity: int


class StockData(msgspec.Struct, frozen=True, kw_only=True):
    """A row just after what happened, in units; `as_of` is when that was.

    `operation` is the kind of the operation that changed the row. Of a row with supplies, or where
    somebody waits for some, `incoming` units are to come, `available_to_promise` says what can be
    promised by each day that brings some, and `late` units were promised by a day that cannot be
    kept any more. Of a kit, which has `kit` true, `on_hand` is what its components allow.
    """

    merchant: str
    location: str
    sku: str
    version: int
    on_hand: int
    reserved: int
    safety_stock: int
    available: int
    shortfall: int
    deficit: int
    low_stock_threshold: int
    operation: str
    as_of: str
    offline_buffer: int = 0
    backordered: int = 0
    incoming: int | UnsetType = UNSET
    available_to_promise: tuple[PromisableData, ...] | UnsetType = UNSET
    late: int | UnsetType = UNSET
    kit: bool | UnsetType = UNSET


class StandsForData(msgspec.Struct, frozen=True):
    """`units` of a line that are held for `quantity` units of another SKU.

    `of` units of the line stand for `for` units of that; of a kit's component, `of` units are in
    each kit. `kind` is substitute or kit.
    """

    sku: str
    quantity: int
    units: int
    of: int
    for_: int = msgspec.field(name="for")
    kind: str


class LineData(msgspec.Struct, frozen=True):
    """Units of one SKU, of which `backordered` had not come yet.

    `promised_by` is the day that these were promised by, if by one. `stands_for` says
    which of them are held for another SKU, as long as the reservation is.
    """

    sku: str
    quantity: int
    backordered: int = 0
    promised_by: str | UnsetType = UNSET
    stands_for: tuple[StandsForData, ...] = ()


class ReservationData(msgspec.Struct, frozen=True, kw_only=True):
    """A reservation just after what happened; `as_of` is when that was.

    `lines` are the units that are held, or that were until it ended. The ledger does not repeat
    them where a reservation is confirmed or extended, so there they are None. `picked` are the
    units that left the shelf, None unless it was committed. `expires_at` is None unless it is held.
    `proposed` are the SKUs whose substitutes are to be accepted yet, `decided` those that were
    accepted or declined just now.
    """

    merchant: str
    location: str
    reservation: str
    state: ReservationState
    lines: tuple[LineData, ...] | None
    as_of: str
    expires_at: str | None = None
    order_ref: str | None = None
    picked: tuple[LineData, ...] | None = None
    reason: str | None = None
    proposed: tuple[str, ...] | None = None
    decided: tuple[str, ...] | None = None


class EndangeredData(msgspec.Struct, frozen=True):
    """A reservation that `units` are missing for."""

    reservation: str
    units: int
    state: ReservationState


class BackorderData(msgspec.Struct, frozen=True, kw_only=True):
    """How many `units` of a SKU came for a `reservation`, and how many it waits for still."""

    merchant: str
    location: str
    reservation: str
    sku: str
    units: int
    left: int
    as_of: str


class PromiseData(msgspec.Struct, frozen=True, kw_only=True):
    """When `units` of a SKU are expected that a `reservation` was promised by a day.

    `expected_on` is None where nothing is expected that would reach them.
    """

    merchant: str
    location: str
    reservation: str
    sku: str
    units: int
    promised_by: str
    expected_on: str | None
    as_of: str


class SupplyData(msgspec.Struct, frozen=True, kw_only=True):
    """What an event of a feed told of `units` that came with a `supply`.

    The row expected nothing of that name, and they were booked. `expects` are supplies that it does
    expect, the nearest in spelling first: where one of them was meant these units count twice.
    """

    merchant: str
    location: str
    sku: str
    supply: str
    units: int
    source: str
    event_id: str
    expects: tuple[str, ...]
    as_of: str


class ShortfallData(msgspec.Struct, frozen=True, kw_only=True):
    """How many `units` of a SKU are promised at a location and not there; 0 where it is over.

    `endangered` are the reservations that miss them: holds, then confirmed ones, each the newest
    first, at most 100. `how` is what made it so, or ended it.
    """

    merchant: str
    location: str
    sku: str
    units: int
    since: str
    how: str
    endangered: tuple[EndangeredData, ...]
    as_of: str


class OrderPartData(msgspec.Struct, frozen=True):
    """One location's part of an order; `picked` is what left the shelf, empty before that.

    `proposed` are the SKUs whose substitutes are to be accepted yet.
    """

    location: str
    reservation: str
    state: str
    lines: tuple[LineData, ...]
    picked: tuple[LineData, ...]
    proposed: tuple[str, ...] = ()


class OrderData(msgspec.Struct, frozen=True, kw_only=True):
    """An order just after a step, with all of its parts so far.

    `revision` rises by one at every step, so the higher one is the newer. `location` is empty: its
    parts have one each. `reason` says why it failed or was cancelled.
    """

    merchant: str
    location: str = ""
    order: str
    state: str
    revision: int
    order_ref: str | None
    parts: tuple[OrderPartData, ...]
    as_of: str
    expires_at: str | None = None
    reason: str | None = None


class LocationData(msgspec.Struct, frozen=True, kw_only=True):
    """How a location's tills are; `since` is when they were last heard of, None where live."""

    merchant: str
    location: str
    state: str
    as_of: str
    since: str | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """The envelope that every event has.

    `id` is unique with `source`, and the same whoever makes the event. `time` is the partition's
    clock. `subject` is a SKU, the id of a reservation or of an order, or a location.
    `traceparent` is that of the request which made it happen, where it had one (the extension
    Distributed Tracing).
    """

    type_name: ClassVar[EventType]

    id: str
    source: str
    subject: str
    time: str
    specversion: Literal["1.0"] = "1.0"
    datacontenttype: Literal["application/json"] = "application/json"
    traceparent: str | UnsetType = UNSET


class StockEvent(Event, frozen=True, kw_only=True):
    """The base of the events about a row."""

    data: StockData


class StockChanged(StockEvent, frozen=True, kw_only=True, tag="stock.changed"):
    """A row changed: each change has one, whatever else is told of it."""

    type_name = EventType.STOCK_CHANGED


class StockLow(StockEvent, frozen=True, kw_only=True, tag="stock.low"):
    """`available` fell to the row's `low_stock_threshold` or below it."""

    type_name = EventType.STOCK_LOW


class StockOut(StockEvent, frozen=True, kw_only=True, tag="stock.out"):
    """`available` fell to 0."""

    type_name = EventType.STOCK_OUT


class StockBack(StockEvent, frozen=True, kw_only=True, tag="stock.back"):
    """`available` rose above 0; a row that is made with stock has one, too."""

    type_name = EventType.STOCK_BACK


class StockShortfall(StockEvent, frozen=True, kw_only=True, tag="stock.shortfall"):
    """More is promised than is there, by `shortfall`, and just before it was not."""

    type_name = EventType.STOCK_SHORTFALL


class ReservationEvent(Event, frozen=True, kw_only=True):
    """The base of the events about a reservation."""

    data: ReservationData


class ReservationHeld(ReservationEvent, frozen=True, kw_only=True, tag="reservation.held"):
    """Units were promised for a while."""

    type_name = EventType.RESERVATION_HELD


class ReservationConfirmed(
    ReservationEvent, frozen=True, kw_only=True, tag="reservation.confirmed"
):
    """The order was placed: the hold no longer expires."""

    type_name = EventType.RESERVATION_CONFIRMED


class ReservationExtended(ReservationEvent, frozen=True, kw_only=True, tag="reservation.extended"):
    """The hold runs on."""

    type_name = EventType.RESERVATION_EXTENDED


class ReservationAmended(ReservationEvent, frozen=True, kw_only=True, tag="reservation.amended"):
    """Other units are held: `lines` are all that are held now."""

    type_name = EventType.RESERVATION_AMENDED


class ReservationProposed(ReservationEvent, frozen=True, kw_only=True, tag="reservation.proposed"):
    """Somebody has to accept that others stand for the SKUs of `proposed`, or decline it."""

    type_name = EventType.RESERVATION_PROPOSED


class ReservationAccepted(ReservationEvent, frozen=True, kw_only=True, tag="reservation.accepted"):
    """It was accepted that others stand for the SKUs of `decided`."""

    type_name = EventType.RESERVATION_ACCEPTED


class ReservationDeclined(ReservationEvent, frozen=True, kw_only=True, tag="reservation.declined"):
    """It was declined that others stand for the SKUs of `decided`; their units went back."""

    type_name = EventType.RESERVATION_DECLINED


class ReservationCommitted(
    ReservationEvent, frozen=True, kw_only=True, tag="reservation.committed"
):
    """The units of `picked` left the shelf; the rest went back."""

    type_name = EventType.RESERVATION_COMMITTED


class ReservationReleased(ReservationEvent, frozen=True, kw_only=True, tag="reservation.released"):
    """The units were given back."""

    type_name = EventType.RESERVATION_RELEASED


class ReservationExpired(ReservationEvent, frozen=True, kw_only=True, tag="reservation.expired"):
    """The time of the hold was up, and the units went back."""

    type_name = EventType.RESERVATION_EXPIRED


class BackorderFilled(Event, frozen=True, kw_only=True, tag="backorder.filled"):
    """Units came for a reservation that waits; with `left` 0 nothing of the SKU is missing now."""

    type_name = EventType.BACKORDER_FILLED

    data: BackorderData


class PromiseSlipped(Event, frozen=True, kw_only=True, tag="promise.slipped"):
    """The day that units were promised by cannot be kept, or they are expected otherwise since."""

    type_name = EventType.PROMISE_SLIPPED

    data: PromiseData


class PromiseRestored(Event, frozen=True, kw_only=True, tag="promise.restored"):
    """The day that units were promised by can be kept again."""

    type_name = EventType.PROMISE_RESTORED

    data: PromiseData


class SupplyUnknown(Event, frozen=True, kw_only=True, tag="supply.unknown"):
    """Units came with a supply that the row did not expect."""

    type_name = EventType.SUPPLY_UNKNOWN

    data: SupplyData


class OrderEvent(Event, frozen=True, kw_only=True):
    """The base of the events about an order."""

    data: OrderData


class OrderHeld(OrderEvent, frozen=True, kw_only=True, tag="order.held"):
    """All parts of an order are held, for a while; anew after something was declined."""

    type_name = EventType.ORDER_HELD


class OrderConfirmed(OrderEvent, frozen=True, kw_only=True, tag="order.confirmed"):
    """It was decided: the parts are kept until they are committed."""

    type_name = EventType.ORDER_CONFIRMED


class OrderChanged(OrderEvent, frozen=True, kw_only=True, tag="order.changed"):
    """Something became of parts of a held or confirmed order: committed, sourced elsewhere."""

    type_name = EventType.ORDER_CHANGED


class OrderFulfilled(OrderEvent, frozen=True, kw_only=True, tag="order.fulfilled"):
    """No part is open any more, and units of one at least left the shelf."""

    type_name = EventType.ORDER_FULFILLED


class OrderFailed(OrderEvent, frozen=True, kw_only=True, tag="order.failed"):
    """The order could not be held whole, so nothing is."""

    type_name = EventType.ORDER_FAILED


class OrderCancelled(OrderEvent, frozen=True, kw_only=True, tag="order.cancelled"):
    """The order was cancelled: what it holds is given back."""

    type_name = EventType.ORDER_CANCELLED


class OrderExpired(OrderEvent, frozen=True, kw_only=True, tag="order.expired"):
    """No decision came in time: what the order holds is given back."""

    type_name = EventType.ORDER_EXPIRED


class ShortfallEvent(Event, frozen=True, kw_only=True):
    """The base of the events about a shortfall on record."""

    data: ShortfallData


class ShortfallRecorded(ShortfallEvent, frozen=True, kw_only=True, tag="shortfall.recorded"):
    """A shortfall was put on record, or is another now, with the reservations that it endangers."""

    type_name = EventType.SHORTFALL_RECORDED


class ShortfallClosed(ShortfallEvent, frozen=True, kw_only=True, tag="shortfall.closed"):
    """A shortfall is over; `how` says what ended it."""

    type_name = EventType.SHORTFALL_CLOSED


class LocationEvent(Event, frozen=True, kw_only=True):
    """The base of the events about a location."""

    data: LocationData


class LocationDegraded(LocationEvent, frozen=True, kw_only=True, tag="location.degraded"):
    """A location's tills have fallen silent."""

    type_name = EventType.LOCATION_DEGRADED


class LocationCatchingUp(LocationEvent, frozen=True, kw_only=True, tag="location.catching_up"):
    """They are heard of again, and what they have sold meanwhile is coming in."""

    type_name = EventType.LOCATION_CATCHING_UP


class LocationLive(LocationEvent, frozen=True, kw_only=True, tag="location.live"):
    """Everything that they have sold has come in."""

    type_name = EventType.LOCATION_LIVE


AnyEvent = (
    StockChanged
    | StockLow
    | StockOut
    | StockBack
    | StockShortfall
    | ReservationHeld
    | ReservationConfirmed
    | ReservationExtended
    | ReservationAmended
    | ReservationProposed
    | ReservationAccepted
    | ReservationDeclined
    | ReservationCommitted
    | ReservationReleased
    | ReservationExpired
    | BackorderFilled
    | PromiseSlipped
    | PromiseRestored
    | SupplyUnknown
    | OrderHeld
    | OrderConfirmed
    | OrderChanged
    | OrderFulfilled
    | OrderFailed
    | OrderCancelled
    | OrderExpired
    | ShortfallRecorded
    | ShortfallClosed
    | LocationDegraded
    | LocationCatchingUp
    | LocationLive
)
"""Every event there is: what a decoder, a schema or a test goes through."""

EVENTS: Final[Mapping[EventType, type[AnyEvent]]] = {
    event.type_name: event for event in AnyEvent.__args__
}
