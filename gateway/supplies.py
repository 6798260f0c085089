"""Supplies: what is to come to a row and on which day, and who waits for it."""

import re
from collections.abc import Awaitable

import msgspec

from engine import outlook
from engine.model import ReservationState
from engine.outcomes import RowNotFound
from engine.supplies import Supplies, SupplyChanged, Waiting
from gateway import wire
from gateway.calls import Answer, Call, answer_once
from gateway.conditions import etag
from gateway.idempotency import key_of
from gateway.paging import limit_of, page_answer, place_of

_TURN = re.compile(r"[0-9]{1,16}")
"""Where a page of who waits starts: the turn of the last one, as the queue has it."""


class SupplyRequest(wire.Request, frozen=True, kw_only=True):
    """How many units are still to come, and on which day."""

    expected_on: wire.Day
    quantity: wire.Units


class SupplyList(msgspec.Struct, frozen=True):
    """What is to come to a row, by the day on which it is expected."""

    data: list[wire.Supply]


class LatePromise(msgspec.Struct, frozen=True):
    """`units` of a reservation that were promised by a day which cannot be kept.

    `expected_on` is null where nothing is expected that would reach them.
    """

    reservation: str
    order_ref: str
    units: int
    promised_by: str
    expected_on: str | None


class SupplyChange(msgspec.Struct, frozen=True):
    """The row just after, and the `late` whose day cannot be kept as things are now.

    The first 100 of them; `late_count` says how many there are.
    """

    stock: wire.Stock
    late: list[LatePromise]
    late_count: int


class WaitingReservation(msgspec.Struct, frozen=True):
    """`units` that a reservation waits for; those who are served first stand first.

    `promised_by` is the day that they were promised by, null where by none. `expected_on` is that
    day, or the later one on which they are expected now, null where nobody can say.
    """

    reservation: str
    state: ReservationState
    order_ref: str
    units: int
    promised_by: str | None
    expected_on: str | None


class WaitingPage(msgspec.Struct, frozen=True):
    """Part of those who wait for units of a row, in the order in which they get them."""

    data: list[WaitingReservation]
    has_more: bool
    next_cursor: str | None


async def list_supplies(call: Call, _body: None) -> Answer:
    """List what is to come to a row."""
    merchant, location, sku = _name(call)
    (row,) = await call.inventory.rows(merchant, [(location, sku)])
    if row is None:
        raise RowNotFound(merchant=merchant, location=location, sku=sku)
    return Answer(200, SupplyList(wire.supplies(row)), [etag(row.version)])


async def expect(call: Call, body: SupplyRequest) -> Answer:
    """Say how many units are still to come with a supply, and when."""
    key = key_of(call)
    expected = outlook.Supply(body.expected_on, body.quantity)
    return await _changed(
        call,
        Supplies(call.inventory).expect(
            *_name(call), call.path["supply"], expected, key=key, actor=call.actor
        ),
    )


async def cancel(call: Call, _body: None) -> Answer:
    """Say that nothing more comes with a supply."""
    key = key_of(call)
    return await _changed(
        call,
        Supplies(call.inventory).cancel(
            *_name(call), call.path["supply"], key=key, actor=call.actor
        ),
    )


async def list_waiting(call: Call, _body: None) -> Answer:
    """List who waits for units of a row."""
    name = _name(call)
    listing = ("waiting", *name)
    page = await Supplies(call.inventory).waiting(
        *name,
        after=place_of(call, listing, is_place=_TURN.fullmatch),
        limit=limit_of(call),
    )
    return page_answer(WaitingPage, listing, page, _waiting)


def _waiting(one: Waiting) -> WaitingReservation:
    return WaitingReservation(
        one.reservation, one.state, one.order_ref, one.units, one.promised_by, one.expected_on
    )


def _name(call: Call) -> tuple[str, str, str]:
    return (call.merchant, call.path["location"], call.path["sku"])


async def _changed(call: Call, doing: Awaitable[SupplyChanged]) -> Answer:
    done = await doing
    call.service.fanout.view.learn(done.row)
    return answer_once(
        200,
        SupplyChange(
            wire.stock(done.row),
            [
                LatePromise(
                    one.reservation, one.order_ref, one.units, one.promised_by, one.expected_on
                )
                for one in done.reviewed.late
            ],
            done.reviewed.count,
        ),
        replayed=done.replayed,
        headers=[etag(done.row.version)],
    )
