"""What happened, for whoever is told: typed events, made from the ledger's operations.

An event is a CloudEvent (CNCF CloudEvents 1.0, JSON format) whose `data` says absolute values and
versions, never a difference: a receiver that applies one only where its version is newer may get
events twice or in any order. `events_of` is pure, so every reader of one operation makes the same
events with the same ids. Crossings (`stock.low`, `stock.out`, `stock.back`, `stock.shortfall`) are
told from the operation alone, as before = levels - deltas and after = levels: there is no memory
that a restart could lose, and each crossing fires once.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar, Final, Literal
from urllib.parse import quote, unquote

import msgspec
from msgspec import UNSET, UnsetType

from engine.keys import is_move_id
from engine.ledger import (
    Levels,
    Operation,
    OperationKind,
    RowChange,
    levels_before,
    row_after,
)
from engine.model import ProposalDecision, ReservationState, Row, StandsFor, time_text
from engine.outcomes import Outcome
from engine.outlook import LATER, Wait
from engine.spelling import nearest

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

_CROSSINGS: Final[tuple[tuple[type[StockEvent], Callable[[Levels, Levels], bool]], ...]] = (
    (StockLow, lambda before, after: _is_low(after) and not _is_low(before)),
    (StockOut, lambda before, after: _available(after) == 0 < _available(before)),
    (StockBack, lambda before, after: _available(before) == 0 < _available(after)),
    (StockShortfall, lambda before, after: _shortfall(before) == 0 < _shortfall(after)),
)


def events_of(operation: Operation, *, sequence: int, at_ms: int, partition: int) -> list[AnyEvent]:
    """Return what an operation tells, in the order in which it is told; see the module's text.

    A repair or a setting has the events of the row that it changed, and a kind that changes
    neither row nor reservation has none.
    """
    stem = f"{at_ms}-{partition}-{sequence}"
    source = source_of(operation.merchant, operation.location)
    time = time_text(at_ms)
    traceparent = operation.traceparent or UNSET
    events: list[AnyEvent] = []
    for change in operation.rows:
        for event in _stock_classes(change):
            events.append(
                event(
                    id=f"{stem}-{len(events)}",
                    source=source,
                    subject=change.sku,
                    time=time,
                    traceparent=traceparent,
                    data=_stock_data(operation, change, time),
                )
            )
    for made in _about_reservation(operation):
        events.append(
            made(
                id=f"{stem}-{len(events)}",
                source=source,
                subject=operation.id,
                time=time,
                traceparent=traceparent,
                data=_reservation_data(operation, time),
            )
        )
    if operation.kind is OperationKind.ORDER:
        events += _order_events(operation, time, stem)
    about = _about_location(operation, time)
    if about is not None:
        event, subject, data = about
        events.append(
            event(
                id=f"{stem}-{len(events)}",
                source=source,
                subject=subject,
                time=time,
                traceparent=traceparent,
                data=data,
            )
        )
    return events


def events_of_kit(
    before: Row | None,
    after: Row | None,
    operation: Operation,
    *,
    sequence: int,
    at_ms: int,
    partition: int,
) -> list[AnyEvent]:
    """Return what an operation tells of a kit, by what there was of it just before and after.

    Nothing where that is the same, whatever became of its components.
    """
    if after is None or (before is not None and before.available == after.available):
        return []
    told: list[type[Any]] = [StockChanged]
    if after.available == 0 and before is not None:
        told.append(StockOut)
    elif after.available > 0 and (before is None or before.available == 0):
        told.append(StockBack)
    time = time_text(at_ms)
    data = StockData(
        merchant=after.merchant,
        location=after.location,
        sku=after.sku,
        version=after.version,
        on_hand=after.on_hand,
        reserved=0,
        safety_stock=0,
        available=after.available,
        shortfall=0,
        deficit=0,
        low_stock_threshold=0,
        operation=operation.kind,
        as_of=time,
        kit=True,
    )
    return [
        event(
            # Of one operation a kit is told of beside its rows, which are counted.
            id=f"{at_ms}-{partition}-{sequence}-{quote(after.sku, safe='')}-{i}",
            source=source_of(after.merchant, after.location),
            subject=after.sku,
            time=time,
            traceparent=operation.traceparent or UNSET,
            data=data,
        )
        for i, event in enumerate(told)
    ]


def source_of(merchant: str, location: str) -> str:
    """Return the `source` of a location's events: the path that it has in the API."""
    return f"/v1/merchants/{quote(merchant, safe='')}/locations/{quote(location, safe='')}"


def _stock_classes(change: RowChange) -> list[type[Any]]:
    """Return the classes of the events that one row's change has."""
    after = change.levels
    before = levels_before(change)
    found: list[type[Any]] = [StockChanged]
    found += [event for event, crossed in _CROSSINGS if crossed(before, after)]
    return found


def _stock_data(operation: Operation, change: RowChange, time: str) -> StockData:
    levels = change.levels
    to_come: dict[str, Any] = {}
    if change.terms is not None and ("supplies" in change.terms or "waits" in change.terms):
        row = row_after(operation.merchant, operation.location, change)
        by_day = [PromisableData(one.by, one.quantity) for one in row.available_to_promise]
        late = change.terms.get("late", 0)
        to_come = {"incoming": row.incoming, "available_to_promise": tuple(by_day), "late": late}
    return StockData(
        merchant=operation.merchant,
        location=operation.location,
        sku=change.sku,
        version=change.version,
        on_hand=levels.on_hand,
        reserved=levels.reserved,
        safety_stock=levels.safety_stock,
        available=_available(levels),
        shortfall=_shortfall(levels),
        deficit=levels.deficit,
        low_stock_threshold=levels.low_stock_threshold,
        operation=operation.kind,
        as_of=time,
        offline_buffer=levels.offline_buffer,
        backordered=levels.backordered,
        **to_come,
    )


def _about_reservation(operation: Operation) -> list[type[Any]]:
    """Return the classes of what is told of a reservation."""
    kind, detail = operation.kind, operation.detail
    if kind is OperationKind.DECIDE:
        accepted = detail[0] == ProposalDecision.ACCEPTED
        return [ReservationAccepted if accepted else ReservationDeclined]
    made = _RESERVATION_EVENTS.get(kind)
    if made is None:
        return []
    return [made, ReservationProposed] if _proposed(operation) else [made]


def _about_location(
    operation: Operation, time: str
) -> (
    tuple[type[Any], str, BackorderData | PromiseData | SupplyData | ShortfallData | LocationData]
    | None
):
    """Return the class, subject and data of what else is told of a location.

    A location that holds back more units, and is what it was, has only the events of its rows.
    """
    place = {"merchant": operation.merchant, "location": operation.location}
    if operation.kind is OperationKind.SHORTFALL:
        sku, units, since_ms, how, endangered = operation.detail
        shortfall = ShortfallData(
            **place,
            sku=sku,
            units=units,
            since=time_text(since_ms),
            how=how,
            endangered=tuple(
                [
                    EndangeredData(one, missing, ReservationState(s))
                    for one, missing, s in endangered
                ]
            ),
            as_of=time,
        )
        return (ShortfallRecorded if units else ShortfallClosed), sku, shortfall
    if operation.kind is OperationKind.FILL:
        sku, units, left = operation.detail
        filled = BackorderData(
            **place, reservation=operation.id, sku=sku, units=units, left=left, as_of=time
        )
        return BackorderFilled, operation.id, filled
    if operation.kind is OperationKind.SLIP:
        sku, units, promised_by, expected_on = operation.detail
        promise = PromiseData(
            **place,
            reservation=operation.id,
            sku=sku,
            units=units,
            promised_by=promised_by,
            expected_on=None if expected_on == LATER else expected_on,
            as_of=time,
        )
        is_kept = expected_on == promised_by
        return (PromiseRestored if is_kept else PromiseSlipped), operation.id, promise
    if operation.kind is OperationKind.FEED and operation.detail[12] == Outcome.SUPPLY_NOT_FOUND:
        unknown = _unknown_supply(operation, time)
        return None if unknown is None else (SupplyUnknown, unknown.sku, unknown)
    if operation.kind is OperationKind.OFFLINE:
        state, since_ms, _, before = operation.detail
        if state != before:
            since = time_text(since_ms) if since_ms else None
            data = LocationData(**place, state=state, since=since, as_of=time)
            return _LOCATION_EVENTS[state], operation.location, data
    return None


def _unknown_supply(operation: Operation, time: str) -> SupplyData | None:
    """Return what is told of an event that named a supply which its row did not expect.

    None where the row expected none at all, so that nothing counts twice. Of an event that a later
    count has already the ledger does not say what the row expected.
    """
    _, units, _, _, source, _, _, _, sku, event_id, _, _, _, _, _, supply = operation.detail[:16]
    terms = operation.rows[0].terms if operation.rows else None
    supplies = (terms or {}).get("supplies", ())
    if operation.rows and not supplies:
        return None
    return SupplyData(
        merchant=operation.merchant,
        location=operation.location,
        sku=sku,
        supply=supply,
        units=units,
        source=source,
        event_id=event_id,
        expects=nearest(supply, supplies),
        as_of=time,
    )


def _order_events(operation: Operation, time: str, stem: str) -> list[AnyEvent]:
    """Return what a step of an order tells: its new state, or that parts changed."""
    if is_move_id(operation.id):
        # The events of its two reservations tell.
        return []
    _, before, state, revision, settled, expires_at_ms, _, _, _, reason = operation.detail[:10]
    (parts, *_), _, ref = operation.detail[10:13]
    told = _ORDER_EVENTS.get(state)
    if state == before or (before, state) == ("fulfilled", "confirmed"):
        told = OrderChanged if settled and state in ("held", "confirmed") else None
    if told is None:
        return []
    data = OrderData(
        merchant=operation.merchant,
        order=operation.id,
        state=state,
        revision=revision,
        order_ref=unquote(ref.rpartition(":")[0]) or None,
        parts=tuple([_order_part(part) for part in parts]),
        as_of=time,
        expires_at=time_text(expires_at_ms) if state == "held" else None,
        reason=reason or None,
    )
    source = f"/v1/merchants/{quote(operation.merchant, safe='')}"
    return [told(id=f"{stem}-0", source=source, subject=operation.id, time=time, data=data)]


def _order_part(part: Sequence[Any]) -> OrderPartData:
    """Read a part as the record has it; `engine.order_records.Part` names its elements."""
    _, location, reservation, _, lines, state, _, _, picked = part[:9]
    stands_for, proposed, backordered = part[13:16] if part[13:] else ((), (), ())
    stands = msgspec.convert(stands_for, tuple[StandsFor, ...])
    late = dict(backordered)
    return OrderPartData(
        location,
        reservation,
        state,
        tuple(
            [
                LineData(sku, units, late.get(sku, 0), stands_for=_told(sku, stands))
                for sku, units in lines
            ]
        ),
        tuple([LineData(sku, units) for sku, units in picked]),
        tuple(proposed),
    )


def _reservation_data(operation: Operation, time: str) -> ReservationData:
    """Read what an operation's `detail` tells; docs/reference/ledger.md names its elements."""
    kind, detail = operation.kind, operation.detail
    # Of what a reserve held and an ending gave up: each row's change of what is promised.
    stands_for = _stands_for(operation)
    promised = detail[4].get("expected", {}) if _has_extras(operation) else {}
    lines: tuple[LineData, ...] | None = tuple(
        [_line_data(change, promised, stands_for) for change in operation.changes]
    )
    state = _STATES.get(kind, ReservationState.HELD)
    expires_at_ms, order_ref, picked, reason = None, None, None, None
    if kind is OperationKind.RESERVE:
        order_ref, expires_at_ms = detail[1], detail[3]
    elif kind is OperationKind.CONFIRM:
        order_ref, lines = detail[0], None
    elif kind is OperationKind.EXTEND:
        expires_at_ms, lines = detail[0], None
    elif kind is OperationKind.AMEND:
        told = detail[_WAITING_AT] or {} if len(detail) > _WAITING_AT else {}
        waiting = msgspec.convert(told, dict[str, Wait])
        lines = tuple(
            [_amended_line(sku, units, waiting.get(sku), stands_for) for sku, units in detail[1]]
        )
        state, expires_at_ms = ReservationState(detail[2]), detail[3] or None
    elif kind is OperationKind.DECIDE:
        lines = tuple(
            [LineData(sku, units, stands_for=_told(sku, stands_for)) for sku, units in detail[2]]
        )
    elif kind is OperationKind.COMMIT:
        picked = tuple([LineData(sku, units) for sku, units in detail[2]])
    elif kind is OperationKind.RELEASE:
        reason = detail[2]
    return ReservationData(
        merchant=operation.merchant,
        location=operation.location,
        reservation=operation.id,
        state=state,
        lines=lines,
        as_of=time,
        expires_at=None if expires_at_ms is None else time_text(expires_at_ms),
        order_ref=order_ref or None,
        picked=picked,
        reason=reason or None,
        proposed=_proposed(operation) or None,
        decided=tuple(detail[1]) if kind is OperationKind.DECIDE else None,
    )


def _proposed(operation: Operation) -> tuple[str, ...]:
    """Return the SKUs whose substitutes are to be accepted yet, as far as the operation says."""
    if operation.kind not in _WITH_EXTRAS or len(operation.detail) <= _EXTRAS_AT:
        return ()
    return tuple(operation.detail[_EXTRAS_AT].get("proposed", ()))


def _stands_for(operation: Operation) -> tuple[StandsFor, ...]:
    """Return what stands for what in the reservation that an operation made, changed or ended."""
    place = _STANDS_FOR_AT.get(operation.kind)
    if place is None or len(operation.detail) <= place:
        return ()
    told = operation.detail[place]
    if isinstance(told, dict):
        told = told.get("stands_for", ())
    return msgspec.convert(told, tuple[StandsFor, ...])


def _has_extras(operation: Operation) -> bool:
    return operation.kind is OperationKind.RESERVE and len(operation.detail) > 4


def _line_data(
    change: RowChange, promised: Mapping[str, str], stands_for: Sequence[StandsFor]
) -> LineData:
    deltas = change.deltas
    return LineData(
        change.sku,
        abs(deltas.reserved + deltas.backordered),
        abs(deltas.backordered),
        promised.get(change.sku, UNSET),
        _told(change.sku, stands_for),
    )


def _amended_line(
    sku: str, units: int, wait: Wait | None, stands_for: Sequence[StandsFor]
) -> LineData:
    if wait is None:
        return LineData(sku, units, stands_for=_told(sku, stands_for))
    promised_by = wait.day if wait.dated else UNSET
    return LineData(sku, units, wait.units, promised_by, _told(sku, stands_for))


def _told(sku: str, stands_for: Sequence[StandsFor]) -> tuple[StandsForData, ...]:
    return tuple(
        [
            StandsForData(one.asked, one.served, one.units, one.of, one.for_, one.kind)
            for one in stands_for
            if one.sku == sku
        ]
    )


_WITH_EXTRAS: Final = (OperationKind.RESERVE, OperationKind.AMEND, OperationKind.DECIDE)
_EXTRAS_AT: Final = 4
_WAITING_AT: Final = 5
"""Where the detail of these kinds has the extras, and an amendment's what waits from then on."""

_STANDS_FOR_AT: Final[Mapping[OperationKind, int]] = dict.fromkeys(_WITH_EXTRAS, _EXTRAS_AT) | {
    OperationKind.COMMIT: 3,
    OperationKind.RELEASE: 3,
    OperationKind.EXPIRE: 2,
}
"""Where the detail of a kind says what stands for what; of the first three, inside the extras."""


_RESERVATION_EVENTS: Final[Mapping[OperationKind, type[Any]]] = {
    OperationKind.RESERVE: ReservationHeld,
    OperationKind.CONFIRM: ReservationConfirmed,
    OperationKind.EXTEND: ReservationExtended,
    OperationKind.AMEND: ReservationAmended,
    OperationKind.COMMIT: ReservationCommitted,
    OperationKind.RELEASE: ReservationReleased,
    OperationKind.EXPIRE: ReservationExpired,
}

_ORDER_EVENTS: Final[Mapping[str, type[Any]]] = {
    "held": OrderHeld,
    "confirmed": OrderConfirmed,
    "fulfilled": OrderFulfilled,
    "failed": OrderFailed,
    "cancelled": OrderCancelled,
    "expired": OrderExpired,
}

_LOCATION_EVENTS: Final[Mapping[str, type[Any]]] = {
    "degraded": LocationDegraded,
    "catching_up": LocationCatchingUp,
    "live": LocationLive,
}

_STATES: Final[Mapping[OperationKind, ReservationState]] = {
    OperationKind.RESERVE: ReservationState.HELD,
    OperationKind.CONFIRM: ReservationState.CONFIRMED,
    OperationKind.EXTEND: ReservationState.HELD,
    OperationKind.COMMIT: ReservationState.COMMITTED,
    OperationKind.RELEASE: ReservationState.RELEASED,
    OperationKind.EXPIRE: ReservationState.EXPIRED,
}


def _available(levels: Levels) -> int:
    spoken_for = levels.safety_stock + levels.offline_buffer + levels.backordered
    return max(0, levels.on_hand - levels.reserved - spoken_for)


def _shortfall(levels: Levels) -> int:
    return max(0, levels.reserved - levels.on_hand)


def _is_low(levels: Levels) -> bool:
    threshold = levels.low_stock_threshold
    return threshold > 0 and _available(levels) <= threshold
