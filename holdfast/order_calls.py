"""Orders that span locations, and what sourcing knows of locations: the calls of both clients."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from engine.order_records import OrderState, PartState
from engine.sourcing import Strategy
from engine.wishes import Fill, Substitution
from holdfast.calls import Call, HeldLine, Line, LineAlternative, Page, path_of


class OrderLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """Units of one SKU, at a location or, without one, wherever they can be had.

    With `substitutes` others may stand for it where there is too little: the `alternatives`, or
    those of the merchant's rules.
    """

    sku: str
    quantity: int
    location: str | None = None
    substitutes: Substitution = Substitution.NONE
    fill: Fill = Fill.MIXED
    alternatives: tuple[LineAlternative, ...] = ()


class OrderPart(msgspec.Struct, frozen=True, kw_only=True):
    """One location's part, which is the reservation of this id; `why` it is there.

    `proposed` are SKUs whose substitutes have to be accepted before the order can be confirmed,
    `declined` those for which somebody said no.
    """

    location: str
    reservation: str
    state: PartState
    lines: tuple[HeldLine, ...]
    why: str
    replaces: str | None = None
    proposed: tuple[str, ...] = ()
    declined: tuple[str, ...] = ()


class PassedOver(msgspec.Struct, frozen=True, kw_only=True):
    """A location that nothing comes from, and why."""

    location: str
    why: str


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """An order and its parts; see docs/concepts/orders.md for the states.

    `settled` is False while something is still to be done to the parts; it is done without you.
    """

    id: str
    merchant: str
    state: OrderState
    settled: bool
    revision: int
    order_ref: str
    lines: tuple[OrderLine, ...]
    parts: tuple[OrderPart, ...]
    missing: tuple[Line, ...]
    passed_over: tuple[PassedOver, ...]
    reason: str
    created_at: datetime
    expires_at: datetime | None
    confirmed_at: datetime | None
    ended_at: datetime | None


class Sourcing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How lines without a location are sourced; `distance` needs the destination."""

    strategy: Strategy = Strategy.FEWEST_SPLITS
    latitude: float | None = None
    longitude: float | None = None
    degraded: bool = True


class LocationSourcing(msgspec.Struct, frozen=True, kw_only=True):
    """What sourcing knows of a location: the lowest priority number comes first."""

    latitude: float | None = None
    longitude: float | None = None
    priority: int = 0
    ships: bool = True


_encode = msgspec.json.Encoder().encode

_ORDER: Final = msgspec.json.Decoder(Order)
_ORDER_PAGE: Final = msgspec.json.Decoder(Page[Order])
_SOURCING: Final = msgspec.json.Decoder(LocationSourcing)


def _path(merchant: str, *segments: str) -> str:
    return path_of("v1", "merchants", merchant, *segments)


def place(
    merchant: str,
    lines: Sequence[OrderLine],
    *,
    key: str,
    ttl_seconds: int | None = None,
    order_ref: str = "",
    sourcing: Sourcing | None = None,
    stock_only: bool = False,
    channel: str = "",
    buyer: str = "",
    by: str = "",
) -> Call[Order]:
    """Hold an order over any number of locations, whole or not at all.

    With a day (YYYY-MM-DD), units that are expected `by` then are promised, too.
    """
    document: dict[str, Any] = {"lines": lines}
    if ttl_seconds is not None:
        document["ttl_seconds"] = ttl_seconds
    if order_ref:
        document["order_ref"] = order_ref
    if stock_only:
        document["stock_only"] = True
    if channel:
        document["channel"] = channel
    if buyer:
        document["buyer"] = buyer
    if by:
        document["by"] = by
    if sourcing is not None:
        document["sourcing"] = sourcing
    return Call(
        method="POST",
        path=_path(merchant, "orders"),
        decoder=_ORDER,
        headers=(("Idempotency-Key", key),),
        body=_encode(document),
    )


def order(merchant: str, order_id: str) -> Call[Order]:
    """Read one order; an ended one is kept for 24 hours."""
    return Call(method="GET", path=_path(merchant, "orders", order_id), decoder=_ORDER)


def orders(
    merchant: str, *, order_ref: str = "", limit: int | None = None, cursor: str | None = None
) -> Call[Page[Order]]:
    """List a merchant's orders, the oldest first, or those of a reference."""
    asked = (
        ("limit", None if limit is None else str(limit)),
        ("cursor", cursor),
        ("order_ref", order_ref or None),
    )
    return Call(
        method="GET",
        path=_path(merchant, "orders"),
        decoder=_ORDER_PAGE,
        query=tuple((name, text) for name, text in asked if text is not None),
    )


def confirm(merchant: str, order_id: str) -> Call[Order]:
    """Keep all parts until they are committed or the order is cancelled."""
    return _step(merchant, order_id, "confirm", {})


def accept(merchant: str, order_id: str, *, skus: Sequence[str] = ()) -> Call[Order]:
    """Accept that others stand for `skus`, without any for all that is proposed."""
    return _step(merchant, order_id, "accept", {"skus": list(skus)} if skus else {})


def decline(merchant: str, order_id: str, *, key: str, skus: Sequence[str] = ()) -> Call[Order]:
    """Decline what stands for `skus`, or for all that is proposed.

    The order is planned anew without that: it is held with what else there is, or it fails. The key
    keeps a retry from declining what was proposed since.
    """
    return _step(merchant, order_id, "decline", {"skus": list(skus)} if skus else {}, key=key)


def cancel(merchant: str, order_id: str, *, reason: str = "") -> Call[Order]:
    """Give back what the order holds."""
    return _step(merchant, order_id, "cancel", {"reason": reason} if reason else {})


def resource(
    merchant: str,
    order_id: str,
    location: str,
    *,
    key: str,
    without: Sequence[str] = (),
    sourcing: Sourcing | None = None,
) -> Call[Order]:
    """Hold elsewhere what a location cannot fulfil; without `sourcing` as the order's says."""
    document: dict[str, Any] = {"location": location}
    if without:
        document["without"] = without
    if sourcing is not None:
        document["sourcing"] = sourcing
    return _step(merchant, order_id, "resource", document, key=key)


def commit(
    merchant: str, order_id: str, *, location: str = "", picks: Sequence[Line] = ()
) -> Call[Order]:
    """Let the units of one location, or of all, leave the shelf; with `picks` only those."""
    document: dict[str, Any] = {"location": location} if location else {}
    if picks:
        document["lines"] = [{"sku": pick.sku, "quantity": pick.quantity} for pick in picks]
    return _step(merchant, order_id, "commit", document)


def location_sourcing(merchant: str, location: str) -> Call[LocationSourcing]:
    """Read what sourcing knows of a location."""
    path = _path(merchant, "locations", location, "sourcing")
    return Call(method="GET", path=path, decoder=_SOURCING)


def set_location_sourcing(
    merchant: str, location: str, settings: LocationSourcing
) -> Call[LocationSourcing]:
    """Replace what sourcing knows of a location."""
    return Call(
        method="PUT",
        path=_path(merchant, "locations", location, "sourcing"),
        decoder=_SOURCING,
        body=_encode(msgspec.to_builtins(settings)),
    )


def _step(
    merchant: str, order_id: str, verb: str, document: dict[str, Any], *, key: str = ""
) -> Call[Order]:
    return Call(
        method="POST",
        path=_path(merchant, "orders", order_id, verb),
        decoder=_ORDER,
        headers=(("Idempotency-Key", key),) if key else (),
        body=_encode(document) if document else None,
    )
