"""Reservations: made, read, listed, confirmed, extended, amended, moved, committed, released."""

import re
from collections.abc import Sequence
from urllib.parse import quote

import msgspec
import structlog
from msgspec import UNSET

from engine.limits import DEFAULT_CHANNEL
from engine.model import ProposalDecision, Reservation, ReservationResult
from engine.outcomes import HoldfastError, InvalidCommand
from gateway import reservation_wire, wire
from gateway.calls import Answer, Call, answer_once
from gateway.idempotency import is_first_attempt, key_of
from gateway.paging import limit_of, page_answer, place_of
from gateway.problems import InvalidRequest, pointer

log = structlog.get_logger("gateway.reservations")

PLACE = re.compile(r"[0-9]{1,15}:[!-~]{1,100}")
"""Where a page of open reservations starts: when the last one was made, in ms, and its id."""


async def reserve(call: Call, body: reservation_wire.ReserveRequest) -> Answer:
    """Hold a cart at one location."""
    result = await call.inventory.reserve(
        call.merchant,
        call.path["location"],
        wire.wishes(body.lines),
        key=key_of(call),
        ttl_ms=body.ttl_seconds * 1000,
        order_ref=body.order_ref,
        partial=body.partial,
        stock_only=body.stock_only,
        channel="" if body.channel == DEFAULT_CHANNEL else body.channel,
        buyer=body.buyer,
        by="" if body.by is UNSET else body.by,
        first_attempt=is_first_attempt(call),
        actor=call.actor,
    )
    held = result.reservation
    _forget(call, held)
    path = f"/v1/merchants/{quote(held.merchant, safe='')}/reservations/{held.id}"
    return answer_once(
        201,
        reservation_wire.reservation(held),
        replayed=result.replayed,
        headers=[(b"location", path.encode())],
    )


async def list_open(call: Call, _body: None) -> Answer:
    """List a location's held and confirmed reservations."""
    location = call.path["location"]
    listing = ("reservations", call.merchant, location)
    page = await call.inventory.open_reservations(
        call.merchant,
        location,
        after=place_of(call, listing, is_place=PLACE.fullmatch),
        limit=limit_of(call),
    )
    return page_answer(
        reservation_wire.ReservationPage, listing, page, reservation_wire.reservation
    )


async def read(call: Call, _body: None) -> Answer:
    """Read one reservation; ended ones for 24 hours."""
    found = await call.inventory.reservation(call.merchant, call.path["reservation"])
    return Answer(200, reservation_wire.reservation(found))


async def confirm(call: Call, body: reservation_wire.ConfirmRequest) -> Answer:
    """Keep a hold until it is committed or released."""
    result = await call.inventory.confirm(
        call.merchant, call.path["reservation"], order_ref=body.order_ref, actor=call.actor
    )
    return _answer(result)


async def extend(call: Call, body: reservation_wire.ExtendRequest) -> Answer:
    """Let a hold run for longer."""
    result = await call.inventory.extend(
        call.merchant,
        call.path["reservation"],
        key=key_of(call),
        ttl_ms=body.ttl_seconds * 1000,
        actor=call.actor,
    )
    return _answer(result)


async def amend(call: Call, body: reservation_wire.AmendRequest) -> Answer:
    """Hold other quantities of some lines."""
    refuse_repeated(body.lines)
    result = await call.inventory.amend(
        call.merchant,
        call.path["reservation"],
        wire.wishes(body.lines),
        key=key_of(call),
        stock_only=body.stock_only,
        channel=body.channel,
        buyer=body.buyer,
        actor=call.actor,
    )
    view = call.service.fanout.view
    if not view.is_idle:
        # Of a line that was dropped, the reservation does not tell any more.
        changed = result.reservation
        skus = {line.sku for line in body.lines} | {line.sku for line in changed.lines}
        view.forget(changed.merchant, changed.location, list(skus))
    return _answer(result)


async def relocate(call: Call, body: reservation_wire.RelocateRequest) -> Answer:
    """Hold the same at another location."""
    moved = await call.service.relocation.relocate(
        call.merchant, call.path["reservation"], body.location, key=key_of(call), actor=call.actor
    )
    there = moved.result.reservation
    _forget(call, there)
    _forget(call, msgspec.structs.replace(there, location=moved.location_before))
    path = f"/v1/merchants/{quote(there.merchant, safe='')}/reservations/{there.id}"
    return answer_once(
        201,
        reservation_wire.relocated(there, moved.before, moved.location_before),
        replayed=moved.result.replayed,
        headers=[(b"location", path.encode())],
    )


async def commit(call: Call, body: reservation_wire.CommitRequest) -> Answer:
    """End a reservation: its units, or those that were picked, left the shelf."""
    picks = [] if body.lines is UNSET else body.lines
    refuse_repeated(picks)
    try:
        result = await call.inventory.commit(
            call.merchant, call.path["reservation"], picks=wire.lines(picks), actor=call.actor
        )
    except InvalidCommand:
        await _refuse_unheld(call, picks)
        raise
    _forget(call, result.reservation)
    return _answer(result)


async def release(call: Call, body: reservation_wire.ReleaseRequest) -> Answer:
    """End a reservation by giving its units back."""
    result = await call.inventory.release(
        call.merchant, call.path["reservation"], reason=body.reason, actor=call.actor
    )
    _forget(call, result.reservation)
    return _answer(result)


async def accept(call: Call, body: wire.DecisionRequest) -> Answer:
    """Accept that others stand for what was asked for."""
    return await _decide(call, body, ProposalDecision.ACCEPTED)


async def decline(call: Call, body: wire.DecisionRequest) -> Answer:
    """Decline that others stand for what was asked for: their units go back.

    An order that it was a part of is planned anew without them.
    """
    answer = await _decide(call, body, ProposalDecision.DECLINED)
    reservation = call.path["reservation"]
    try:
        order = await call.inventory.order_of(reservation)
        if order:
            await call.service.orders.heed(call.merchant, order, reservation, actor=call.actor)
    except HoldfastError as error:
        # What was asked for is done; the order finds it when it is to be confirmed.
        log.warning("an order was not told", reservation=reservation, error=str(error))
    return answer


async def _decide(call: Call, body: wire.DecisionRequest, decision: ProposalDecision) -> Answer:
    result = await call.inventory.decide(
        call.merchant, call.path["reservation"], decision, skus=body.skus, actor=call.actor
    )
    _forget(call, result.reservation)
    return _answer(result)


def _forget(call: Call, changed: Reservation) -> None:
    """Have whoever made this change read its rows anew: it did not answer what they are now."""
    view = call.service.fanout.view
    if not view.is_idle:
        view.forget(changed.merchant, changed.location, [line.sku for line in changed.lines])


def _answer(result: ReservationResult) -> Answer:
    return answer_once(
        200, reservation_wire.reservation(result.reservation), replayed=result.replayed
    )


def refuse_repeated(picks: Sequence[wire.PickRequest | wire.AmendedLine]) -> None:
    """Raise InvalidRequest where two lines name one SKU: which of them is meant is not known."""
    seen = set()
    for i, pick in enumerate(picks):
        if pick.sku in seen:
            raise InvalidRequest(
                wire.ProblemError(
                    pointer=pointer(["lines", str(i), "sku"]),
                    detail="another line names this SKU already",
                    sku=pick.sku,
                )
            )
        seen.add(pick.sku)


async def _refuse_unheld(call: Call, picks: list[wire.PickRequest]) -> None:
    """Raise InvalidRequest for each pick of more than the reservation holds; it was refused."""
    found = await call.inventory.reservation(call.merchant, call.path["reservation"])
    held = {line.sku: line.quantity for line in found.lines}
    errors = [
        wire.ProblemError(
            pointer=pointer(["lines", str(i), "quantity"]),
            detail=f"picked {pick.quantity}, the reservation holds {held.get(pick.sku, 0)}",
            sku=pick.sku,
            requested=pick.quantity,
        )
        for i, pick in enumerate(picks)
        if pick.sku not in held or pick.quantity > held[pick.sku]
    ]
    if errors:
        raise InvalidRequest(*errors)
