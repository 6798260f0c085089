"""Orders that span locations: placed, decided, sourced anew, committed, read and listed."""

from typing import Annotated
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Meta, UnsetType

from engine import order_records
from engine.limits import (
    DEFAULT_CHANNEL,
    DEFAULT_TTL_MS,
    MAX_LINES,
    MAX_NAME_BYTES,
    MAX_SOURCING_LOCATIONS,
)
from engine.model import time_text
from engine.order_records import OrderState, PartState, WantedLine
from engine.order_requests import Options, options_of
from engine.orders import OrderResult, Orders
from engine.places import MAX_PRIORITY, Place, Places
from engine.sourcing import Strategy
from engine.substitutes import Alternative
from engine.wishes import Fill, Substitution
from gateway.calls import Answer, Call, answer_once
from gateway.idempotency import key_of
from gateway.paging import QUERY as PAGE_QUERY
from gateway.paging import limit_of, page_answer, place_of
from gateway.reservations import PLACE, refuse_repeated
from gateway.wire import (
    Day,
    DecisionRequest,
    Id,
    LineAlternativeRequest,
    MissingLine,
    Page,
    PickRequest,
    Request,
    ReservationLine,
    Text,
    Time,
    TtlSeconds,
    WishRequest,
    held_lines,
    lines,
)

QUERY = (*PAGE_QUERY, "order_ref")
"""The query parameters of the listing."""

Latitude = Annotated[float, Meta(ge=-90, le=90, description="Degrees north, WGS 84.")]
Longitude = Annotated[float, Meta(ge=-180, le=180, description="Degrees east, WGS 84.")]


class OrderLineRequest(WishRequest, frozen=True, kw_only=True):
    """Units of one SKU, at a location or, without one, wherever they can be had.

    Where others may stand for it, they do so where there is too little of it at the location that
    the line names, or at all of them together.
    """

    location: Id | None = None


class SourcingRequest(Request, frozen=True, kw_only=True):
    """How lines without a location are sourced.

    `distance` needs the destination's coordinates. A location whose tills are silent comes last;
    with `degraded` false it is left out.
    """

    strategy: Strategy = Strategy.FEWEST_SPLITS
    latitude: Latitude | None = None
    longitude: Longitude | None = None
    degraded: bool = True


class OrderRequest(Request, frozen=True, kw_only=True):
    """An order over any number of locations: all of it is held, or nothing.

    With `stock_only` no part is a backorder, whatever the terms of its rows. `channel`, `buyer` and
    `by` are as of a reservation: each part is made with them.
    """

    lines: Annotated[list[OrderLineRequest], Meta(min_length=1, max_length=MAX_LINES)]
    ttl_seconds: TtlSeconds = DEFAULT_TTL_MS // 1000
    order_ref: Text = ""
    stock_only: bool = False
    channel: Annotated[
        str, Meta(max_length=MAX_NAME_BYTES, description="Through which units are asked for.")
    ] = DEFAULT_CHANNEL
    buyer: Annotated[
        str,
        Meta(
            max_length=MAX_NAME_BYTES,
            description="Who buys, where a row has a cap a buyer; only a digest of it is kept.",
        ),
    ] = ""
    by: Annotated[
        Day | UnsetType,
        Meta(description="Promise what is expected by this day, too, and nothing that is later."),
    ] = UNSET
    sourcing: SourcingRequest = msgspec.field(default_factory=SourcingRequest)


class CancelRequest(Request, frozen=True, kw_only=True):
    """Give back what the order holds."""

    reason: Text = ""


class ResourceRequest(Request, frozen=True, kw_only=True):
    """What a location cannot fulfil is to come from elsewhere.

    These are its open parts whole, and what it picked too few of. Without `sourcing` the order's
    own holds. `without` are further locations that nothing is to come from.
    """

    location: Id
    without: Annotated[list[Id], Meta(max_length=MAX_SOURCING_LOCATIONS)] = msgspec.field(
        default_factory=list
    )
    sourcing: SourcingRequest | UnsetType = UNSET


class CommitOrderRequest(Request, frozen=True, kw_only=True):
    """Units left the shelves: those of one location's part, or of all parts.

    With `lines` only those were picked at the location, and the rest of its part goes back.
    """

    location: Id | None = None
    lines: Annotated[list[PickRequest], Meta(min_length=1, max_length=MAX_LINES)] | UnsetType = (
        UNSET
    )


class OrderLine(msgspec.Struct, frozen=True):
    """Units of one SKU that were asked for; `location` is null where it was left to sourcing.

    `substitutes`, `fill` and `alternatives` are there where others may stand for it.
    """

    sku: str
    quantity: int
    location: str | None
    substitutes: Substitution | UnsetType = UNSET
    fill: Fill | UnsetType = UNSET
    alternatives: list[LineAlternativeRequest] | UnsetType = UNSET


class OrderPart(msgspec.Struct, frozen=True):
    """One location's part, which is the reservation of this id.

    `lines` are what it holds. `why` says why the location was chosen. `replaces` is the location's
    that could not fulfil. `proposed` are SKUs whose substitutes there have to be accepted before
    the order can be confirmed, `declined` those for which somebody said no.
    """

    location: str
    reservation: str
    state: PartState
    lines: list[ReservationLine]
    why: str
    replaces: str | None
    proposed: list[str] | UnsetType = UNSET
    declined: list[str] | UnsetType = UNSET


class PassedOver(msgspec.Struct, frozen=True):
    """A location that nothing comes from, and why."""

    location: str
    why: str


class Order(msgspec.Struct, frozen=True):
    """An order; `expires_at` is null once it is decided, and `revision` rises at every step.

    `parts` are those that count; one that was refused, or that a later plan did without, is left
    out. `missing` are units that no part brings any more: of a short pick, or of a part that was
    released by its own id. `settled` is false while something is still to be done to the parts.
    `by` is the day that was asked for, if one was.
    """

    id: str
    merchant: str
    state: OrderState
    settled: bool
    revision: int
    order_ref: str
    lines: list[OrderLine]
    parts: list[OrderPart]
    missing: list[MissingLine]
    passed_over: list[PassedOver]
    reason: str
    created_at: Time
    expires_at: Time | None
    confirmed_at: Time | None
    ended_at: Time | None
    by: str | UnsetType = UNSET


class OrderPage(Page[Order], frozen=True):
    """Orders of a merchant, oldest first."""


class LocationSourcing(Request, frozen=True, kw_only=True):
    """A location's settings for sourcing: the lowest `priority` number comes first.

    Coordinates stand together or not at all. A location that does not ship is never a source.
    """

    latitude: Latitude | None = None
    longitude: Longitude | None = None
    priority: Annotated[int, Meta(ge=0, le=MAX_PRIORITY)] = 0
    ships: bool = True


async def place(call: Call, body: OrderRequest) -> Answer:
    """Hold an order over its locations."""
    result = await _orders(call).place(
        call.merchant,
        [_wanted(line) for line in body.lines],
        key=key_of(call),
        ttl_ms=body.ttl_seconds * 1000,
        order_ref=body.order_ref,
        options=msgspec.structs.replace(
            _options(body.sourcing),
            stock_only=body.stock_only,
            channel="" if body.channel == DEFAULT_CHANNEL else body.channel,
            by="" if body.by is UNSET else body.by,
        ),
        buyer=body.buyer,
        actor=call.actor,
    )
    found = result.order
    _forget(call, found)
    path = f"/v1/merchants/{quote(found.body.merchant, safe='')}/orders/{found.id}"
    return answer_once(
        201, order(found), replayed=result.replayed, headers=[(b"location", path.encode())]
    )


async def list_all(call: Call, _body: None) -> Answer:
    """List a merchant's orders, or those of an order reference."""
    order_ref = call.query.get("order_ref", "")
    listing = ("orders", call.merchant, order_ref)
    page = await _orders(call).listed(
        call.merchant,
        order_ref=order_ref,
        after=place_of(call, listing, is_place=PLACE.fullmatch),
        limit=limit_of(call),
    )
    return page_answer(OrderPage, listing, page, order)


async def read(call: Call, _body: None) -> Answer:
    """Read one order, its parts as they are now; ended ones for 24 hours."""
    return Answer(200, order(await _orders(call).read(call.merchant, call.path["order"])))


async def confirm(call: Call, _body: None) -> Answer:
    """Decide: keep the parts until they are committed or the order cancelled."""
    result = await _orders(call).confirm(call.merchant, call.path["order"], actor=call.actor)
    return _answer(call, result)


async def accept(call: Call, body: DecisionRequest) -> Answer:
    """Accept that others stand for what was asked for, in all parts."""
    result = await _orders(call).accept(
        call.merchant, call.path["order"], skus=body.skus, actor=call.actor
    )
    return _answer(call, result)


async def decline(call: Call, body: DecisionRequest) -> Answer:
    """Decline what stands for what was asked for: the order is planned anew without it."""
    result = await _orders(call).decline(
        call.merchant, call.path["order"], key=key_of(call), skus=body.skus, actor=call.actor
    )
    return _answer(call, result)


async def cancel(call: Call, body: CancelRequest) -> Answer:
    """Give back what the order holds."""
    result = await _orders(call).cancel(
        call.merchant, call.path["order"], reason=body.reason, actor=call.actor
    )
    return _answer(call, result)


async def resource(call: Call, body: ResourceRequest) -> Answer:
    """Hold elsewhere what a location cannot fulfil."""
    result = await _orders(call).resource(
        call.merchant,
        call.path["order"],
        body.location,
        key=key_of(call),
        options=None if body.sourcing is UNSET else _options(body.sourcing),
        without=body.without,
        actor=call.actor,
    )
    return _answer(call, result)


async def commit(call: Call, body: CommitOrderRequest) -> Answer:
    """The units of one part, or of all, left the shelf."""
    picks = [] if body.lines is UNSET else body.lines
    refuse_repeated(picks)
    result = await _orders(call).commit(
        call.merchant,
        call.path["order"],
        location=body.location or "",
        picks=lines(picks),
        actor=call.actor,
    )
    return _answer(call, result)


async def read_sourcing(call: Call, _body: None) -> Answer:
    """Read a location's settings for sourcing."""
    found = await Places(call.inventory.store).read(call.merchant, call.path["location"])
    return Answer(200, _sourcing(found))


async def write_sourcing(call: Call, body: LocationSourcing) -> Answer:
    """Replace a location's settings for sourcing."""
    wanted = Place(
        latitude=body.latitude,
        longitude=body.longitude,
        priority=body.priority,
        ships=body.ships,
    )
    await Places(call.inventory.store).write(call.merchant, call.path["location"], wanted)
    return Answer(200, _sourcing(wanted))


def _sourcing(found: Place) -> LocationSourcing:
    return LocationSourcing(
        latitude=found.latitude,
        longitude=found.longitude,
        priority=found.priority,
        ships=found.ships,
    )


def _options(sourcing: SourcingRequest) -> Options:
    return Options(
        strategy=sourcing.strategy,
        latitude=sourcing.latitude,
        longitude=sourcing.longitude,
        degraded=sourcing.degraded,
    )


def _wanted(line: OrderLineRequest) -> WantedLine:
    return WantedLine(
        line.sku,
        line.quantity,
        line.location or "",
        line.substitutes,
        line.fill,
        tuple(Alternative(sku=one.sku, of=one.of, for_=one.for_) for one in line.alternatives),
    )


def _orders(call: Call) -> Orders:
    return call.service.orders


def _answer(call: Call, result: OrderResult) -> Answer:
    _forget(call, result.order)
    return answer_once(200, order(result.order), replayed=result.replayed)


def _forget(call: Call, found: order_records.Order) -> None:
    """Have whoever made this change read its rows anew: it did not answer what they are now."""
    view = call.service.fanout.view
    if not view.is_idle:
        for part in found.parts:
            view.forget(found.body.merchant, part.location, [line.sku for line in part.lines])


def order(found: order_records.Order) -> Order:
    """Make the answer of an order."""
    body = found.body
    shown = [part for part in found.parts if part.counts]
    places = {part.number: part.location for part in found.parts}
    return Order(
        found.id,
        body.merchant,
        found.state,
        found.settled,
        found.revision,
        body.order_ref,
        [_order_line(line) for line in body.lines],
        [_part(part, places) for part in shown],
        [MissingLine(line.sku, line.quantity) for line in found.missing()],
        [PassedOver(one.location, one.why) for one in found.plan.passed_over],
        found.reason,
        time_text(found.created_at_ms),
        time_text(found.expires_at_ms) if found.state.is_undecided else None,
        _optional(found.confirmed_at_ms),
        _optional(found.ended_at_ms),
        options_of(body).by or UNSET,
    )


def _part(part: order_records.Part, places: dict[int, str]) -> OrderPart:
    is_committed = part.state is PartState.COMMITTED
    return OrderPart(
        part.location,
        part.reservation,
        part.state,
        held_lines(
            part.lines,
            part.picked if is_committed else None,
            part.stands_for,
            part.backordered,
            part.promised,
        ),
        part.why,
        places.get(part.replaces),
        list(part.proposed) or UNSET,
        [line.sku for line in part.missing] or UNSET,
    )


def _order_line(line: WantedLine) -> OrderLine:
    place = line.location or None
    if line.substitutes is Substitution.NONE:
        return OrderLine(line.sku, line.quantity, place)
    alternatives = [
        LineAlternativeRequest(sku=one.sku, of=one.of, for_=one.for_) for one in line.alternatives
    ]
    return OrderLine(
        line.sku, line.quantity, place, line.substitutes, line.fill, alternatives or UNSET
    )


def _optional(time_ms: int) -> str | None:
    return time_text(time_ms) if time_ms else None
