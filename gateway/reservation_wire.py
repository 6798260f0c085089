"""What travels of reservations; the lines that they share with orders are in `gateway.wire`."""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from engine import model
from engine.limits import DEFAULT_CHANNEL, DEFAULT_TTL_MS, MAX_LINES, MAX_NAME_BYTES
from engine.model import ReservationState, time_text
from gateway.wire import (
    AmendedLine,
    Day,
    Id,
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
)

StockOnly = Annotated[
    bool, Meta(description="Promise nothing that is not on the shelf, whatever the rows allow.")
]
Channel = Annotated[
    str, Meta(max_length=MAX_NAME_BYTES, description="Through which units are asked for.")
]
Buyer = Annotated[
    str,
    Meta(
        max_length=MAX_NAME_BYTES,
        description="Who buys, where a row has a cap a buyer; only a digest of it is kept.",
    ),
]


class ReserveRequest(Request, frozen=True, kw_only=True):
    """A cart at one location. Lines of one SKU are summed.

    With `partial` whatever there is gets held, and the rest is named as `missing`.
    """

    lines: Annotated[list[WishRequest], Meta(min_length=1, max_length=MAX_LINES)]
    ttl_seconds: TtlSeconds = DEFAULT_TTL_MS // 1000
    order_ref: Text = ""
    partial: bool = False
    stock_only: StockOnly = False
    channel: Channel = DEFAULT_CHANNEL
    buyer: Buyer = ""
    by: Annotated[
        Day | UnsetType,
        Meta(description="Promise what is expected by this day, too, and nothing that is later."),
    ] = UNSET


class ConfirmRequest(Request, frozen=True, kw_only=True):
    """The order was placed: keep the units until commit or release."""

    order_ref: Text = ""


class ExtendRequest(Request, frozen=True, kw_only=True):
    """Let the hold run for so long from now, if that is longer than it would."""

    ttl_seconds: TtlSeconds


class AmendRequest(Request, frozen=True, kw_only=True):
    """Hold other quantities of the lines that are named; the others stay as they are.

    A reservation that was promised on terms keeps its `channel`, and its `buyer` where it has one.
    """

    lines: Annotated[list[AmendedLine], Meta(min_length=1, max_length=MAX_LINES)]
    stock_only: StockOnly = False
    channel: Channel = ""
    buyer: Buyer = ""


class RelocateRequest(Request, frozen=True, kw_only=True):
    """Hold the same at another location."""

    location: Id


class CommitRequest(Request, frozen=True, kw_only=True):
    """The units left the shelf. Without `lines` all of them; with `lines` only those named."""

    lines: Annotated[list[PickRequest], Meta(min_length=1, max_length=MAX_LINES)] | UnsetType = (
        UNSET
    )


class ReleaseRequest(Request, frozen=True, kw_only=True):
    """Give the units back."""

    reason: Text = ""


class Reservation(msgspec.Struct, frozen=True):
    """Units of one location promised to one order; `expires_at` is null unless it is held.

    `proposed` are SKUs whose substitutes have to be accepted before it can be confirmed.
    """

    id: str
    merchant: str
    location: str
    state: ReservationState
    lines: list[ReservationLine]
    missing: list[MissingLine]
    order_ref: str
    created_at: Time
    expires_at: Time | None
    confirmed_at: Time | None
    ended_at: Time | None
    proposed: list[str] | UnsetType = UNSET


class MovedFrom(msgspec.Struct, frozen=True):
    """Which reservation held the units before, and where."""

    reservation: str
    location: str


class RelocatedReservation(Reservation, frozen=True, kw_only=True):
    """The reservation at the new location; the one of before is released."""

    moved_from: MovedFrom


class ReservationPage(Page[Reservation], frozen=True):
    """Open reservations of a location, oldest first."""


def _optional_time(time_ms: int | None) -> str | None:
    return None if time_ms is None else time_text(time_ms)


def reservation(found: model.Reservation) -> Reservation:
    """Make the answer of a reservation."""
    return Reservation(
        found.id,
        found.merchant,
        found.location,
        found.state,
        held_lines(found.lines, found.picked, found.stands_for, found.backordered, found.promised),
        [MissingLine(x.sku, x.quantity) for x in found.missing],
        found.order_ref,
        time_text(found.created_at_ms),
        _optional_time(found.expires_at_ms),
        _optional_time(found.confirmed_at_ms),
        _optional_time(found.ended_at_ms),
        list(found.proposed) or UNSET,
    )


def relocated(found: model.Reservation, before: str, location: str) -> RelocatedReservation:
    """Make the answer of a reservation that was moved."""
    return RelocatedReservation(
        *msgspec.structs.astuple(reservation(found)), moved_from=MovedFrom(before, location)
    )
