"""Events made of the ledger's operations.

`events_of` is pure, so every reader of one operation makes the same events with the same ids.
Crossings (`stock.low`, `stock.out`, `stock.back`, `stock.shortfall`) are told from the operation
alone, as before = levels - deltas and after = levels: there is no memory that a restart could lose,
and each crossing fires once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, unquote

import msgspec
from msgspec import UNSET

from engine.events import (
    AnyEvent,
    BackorderData,
    BackorderFilled,
    EndangeredData,
    LineData,
    LocationCatchingUp,
    LocationData,
    LocationDegraded,
    LocationLive,
    OrderCancelled,
    OrderChanged,
    OrderConfirmed,
    OrderData,
    OrderExpired,
    OrderFailed,
    OrderFulfilled,
    OrderHeld,
    OrderPartData,
    PromisableData,
    PromiseData,
    PromiseRestored,
    PromiseSlipped,
    ReservationAccepted,
    ReservationAmended,
    ReservationCommitted,
    ReservationConfirmed,
    ReservationData,
    ReservationDeclined,
    ReservationExpired,
    ReservationExtended,
    ReservationHeld,
    ReservationProposed,
    ReservationReleased,
    ShortfallClosed,
    ShortfallData,
    ShortfallRecorded,
    StandsForData,
    StockBack,
    StockChanged,
    StockData,
    StockEvent,
    StockLow,
    StockOut,
    StockShortfall,
    SupplyData,
    SupplyUnknown,
)
from engine.keys import is_move_id
from engine.ledger import Levels, Operation, OperationKind, RowChange, levels_before, row_after
from engine.model import ProposalDecision, ReservationState, Row, StandsFor, time_text
from engine.outcomes import Outcome
from engine.outlook import LATER, Wait
from engine.spelling import nearest

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

    None where the row expected none at all, so that nothing counts twice.
    """
    detail = operation.detail
    _, units, _, _, source, _, _, _, sku, event_id, _, _, _, _, _, supply = detail[:_EXPECTS_AT]
    if operation.rows:
        supplies = (operation.rows[0].terms or {}).get("supplies", ())
    else:
        supplies = detail[_EXPECTS_AT] if len(detail) > _EXPECTS_AT else ()
    if not supplies:
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

_EXPECTS_AT: Final = 16
"""Where the detail of an event of a feed that changed no row has what its row expected."""

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
