"""The operations of reservations."""

from typing import Final

from engine.access import Role
from engine.outcomes import (
    BackorderUnfilled,
    BuyerCapExceeded,
    IdempotencyKeyReused,
    InsufficientOnHand,
    InsufficientStock,
    LimitExceeded,
    ProposalDecided,
    ProposalOpen,
    ReservationEnded,
    ReservationNotFound,
    ReservationNotHeld,
)
from gateway import reservation_wire, reservations, wire
from gateway.idempotency import ATTEMPT_FORM, ATTEMPT_HEADER
from gateway.operations import IDEMPOTENCY_KEY, REPLAYED, HeaderField, Operation, Success
from gateway.paging import QUERY
from gateway.routes.paths import LOCATION, MERCHANT

_ATTEMPT: Final = HeaderField(
    ATTEMPT_HEADER,
    "Counts the attempts under this key. `1` says that the key was never sent before: a cart whose "
    "rows were all found sold out in the last 25 ms is then refused without asking the store.",
    pattern=f"^{ATTEMPT_FORM}$",
)
_ENDING: Final = (ReservationNotFound, ReservationEnded)
_RESERVATION: Final = MERCHANT + "/reservations/{reservation}"

OPERATIONS: Final = (
    Operation(
        name="reserve",
        method="POST",
        path=LOCATION + "/reservations",
        tag="Reservations",
        summary="Hold a cart, whole or not at all",
        handler=reservations.reserve,
        request=reservation_wire.ReserveRequest,
        role=Role.RESERVE,
        changes=True,
        successes=(Success(201, reservation_wire.Reservation, "The hold", ("Location", REPLAYED)),),
        header_fields=(IDEMPOTENCY_KEY, _ATTEMPT),
        problems=(InsufficientStock, BuyerCapExceeded),
        items=lambda body: len(body.lines),
    ),
    Operation(
        name="listOpenReservations",
        method="GET",
        path=LOCATION + "/reservations",
        tag="Reservations",
        summary="List a location's held and confirmed reservations, oldest first",
        handler=reservations.list_open,
        role=Role.READ,
        successes=(Success(200, reservation_wire.ReservationPage, "A page"),),
        query=QUERY,
    ),
    Operation(
        name="commit",
        method="POST",
        path=_RESERVATION + "/commit",
        tag="Reservations",
        summary="The units left the shelf, all or those that were picked",
        handler=reservations.commit,
        request=reservation_wire.CommitRequest,
        body_required=False,
        role=Role.RESERVE,
        changes=True,
        successes=(
            Success(200, reservation_wire.Reservation, "The reservation, committed", (REPLAYED,)),
        ),
        problems=(*_ENDING, ProposalOpen, BackorderUnfilled, InsufficientOnHand),
    ),
    Operation(
        name="release",
        method="POST",
        path=_RESERVATION + "/release",
        tag="Reservations",
        summary="Give the units back",
        handler=reservations.release,
        request=reservation_wire.ReleaseRequest,
        body_required=False,
        role=Role.RESERVE,
        changes=True,
        successes=(
            Success(200, reservation_wire.Reservation, "The reservation, released", (REPLAYED,)),
        ),
        problems=_ENDING,
    ),
    *(
        Operation(
            name=verb,
            method="POST",
            path=f"{_RESERVATION}/{verb}",
            tag="Reservations",
            summary=summary,
            handler=handler,
            request=wire.DecisionRequest,
            body_required=False,
            role=Role.RESERVE,
            changes=True,
            successes=(Success(200, reservation_wire.Reservation, "The reservation", (REPLAYED,)),),
            problems=(*_ENDING, ProposalDecided),
        )
        for verb, summary, handler in (
            ("accept", "Accept that others stand for what was asked for", reservations.accept),
            ("decline", "Decline it: give their units back", reservations.decline),
        )
    ),
    Operation(
        name="confirm",
        method="POST",
        path=_RESERVATION + "/confirm",
        tag="Reservations",
        summary="The order is placed: keep the units until commit or release",
        handler=reservations.confirm,
        request=reservation_wire.ConfirmRequest,
        body_required=False,
        role=Role.RESERVE,
        changes=True,
        successes=(
            Success(200, reservation_wire.Reservation, "The reservation, confirmed", (REPLAYED,)),
        ),
        # Confirmed before with another order_ref; there is no key, the reservation's id is one.
        problems=(*_ENDING, ProposalOpen, IdempotencyKeyReused),
    ),
    Operation(
        name="extend",
        method="POST",
        path=_RESERVATION + "/extend",
        tag="Reservations",
        summary="Let a hold run for longer",
        handler=reservations.extend,
        request=reservation_wire.ExtendRequest,
        role=Role.RESERVE,
        changes=True,
        successes=(
            Success(200, reservation_wire.Reservation, "The reservation, extended", (REPLAYED,)),
        ),
        header_fields=(IDEMPOTENCY_KEY,),
        problems=(*_ENDING, ReservationNotHeld, LimitExceeded),
    ),
    Operation(
        name="amend",
        method="POST",
        path=_RESERVATION + "/amend",
        tag="Reservations",
        summary="Hold other quantities of some lines, up or down",
        handler=reservations.amend,
        request=reservation_wire.AmendRequest,
        role=Role.RESERVE,
        changes=True,
        successes=(
            Success(200, reservation_wire.Reservation, "The reservation, amended", (REPLAYED,)),
        ),
        header_fields=(IDEMPOTENCY_KEY,),
        problems=(*_ENDING, InsufficientStock, BuyerCapExceeded, LimitExceeded),
        items=lambda body: len(body.lines),
    ),
    Operation(
        name="relocate",
        method="POST",
        path=_RESERVATION + "/move",
        tag="Reservations",
        summary="Hold the same at another location",
        handler=reservations.relocate,
        request=reservation_wire.RelocateRequest,
        role=Role.RESERVE,
        changes=True,
        successes=(
            Success(
                201, reservation_wire.RelocatedReservation, "The new hold", ("Location", REPLAYED)
            ),
        ),
        header_fields=(IDEMPOTENCY_KEY,),
        problems=(*_ENDING, InsufficientStock, BuyerCapExceeded),
    ),
    Operation(
        name="readReservation",
        method="GET",
        path=_RESERVATION,
        tag="Reservations",
        summary="Read a reservation; ended ones for 24 hours",
        handler=reservations.read,
        role=Role.READ,
        successes=(Success(200, reservation_wire.Reservation, "The reservation"),),
        problems=(ReservationNotFound,),
    ),
)
