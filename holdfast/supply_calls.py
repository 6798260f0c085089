"""What is to come to a row, and who waits for it: the calls of both clients."""

from typing import Final

import msgspec

from engine.model import ReservationState
from holdfast.calls import Call, Page, Stock, Supply, page_query, path_of


class LatePromise(msgspec.Struct, frozen=True, kw_only=True):
    """`units` of a reservation that were promised by a day which cannot be kept.

    `expected_on` is None where nothing is expected that would reach them.
    """

    reservation: str
    order_ref: str
    units: int
    promised_by: str
    expected_on: str | None


class SupplyChange(msgspec.Struct, frozen=True, kw_only=True):
    """The row just after its supplies changed, and the first 100 whose day cannot be kept now."""

    stock: Stock
    late: tuple[LatePromise, ...] = ()
    late_count: int = 0


class SupplyList(msgspec.Struct, frozen=True):
    """What is to come to a row, by the day on which it is expected."""

    data: tuple[Supply, ...]


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """`units` of a row that a reservation waits for.

    `promised_by` is the day that they were promised by, None where by none. `expected_on` is that
    day, or the later one on which they are expected now, None where nobody can say.
    """

    reservation: str
    state: ReservationState
    order_ref: str
    units: int
    promised_by: str | None
    expected_on: str | None


_CHANGE: Final = msgspec.json.Decoder(SupplyChange)
_LIST: Final = msgspec.json.Decoder(SupplyList)
_WAITING: Final = msgspec.json.Decoder(Page[Waiting])


def expect(
    merchant: str,
    location: str,
    sku: str,
    supply: str,
    *,
    expected_on: str,
    quantity: int,
    key: str,
) -> Call[SupplyChange]:
    """Say how many units are still to come with a supply, and on which day (YYYY-MM-DD)."""
    return Call(
        method="PUT",
        path=_path(merchant, location, sku, "supplies", supply),
        decoder=_CHANGE,
        headers=(("Idempotency-Key", key),),
        body=msgspec.json.encode({"expected_on": expected_on, "quantity": quantity}),
    )


def cancel(merchant: str, location: str, sku: str, supply: str, *, key: str) -> Call[SupplyChange]:
    """Say that nothing more comes with a supply."""
    return Call(
        method="DELETE",
        path=_path(merchant, location, sku, "supplies", supply),
        decoder=_CHANGE,
        headers=(("Idempotency-Key", key),),
    )


def supplies(merchant: str, location: str, sku: str) -> Call[SupplyList]:
    """List what is to come to a row."""
    return Call(method="GET", path=_path(merchant, location, sku, "supplies"), decoder=_LIST)


def waiting(
    merchant: str,
    location: str,
    sku: str,
    *,
    limit: int | None = None,
    cursor: str | None = None,
) -> Call[Page[Waiting]]:
    """List who waits for units of a row, in the order in which they get them."""
    return Call(
        method="GET",
        path=_path(merchant, location, sku, "waiting"),
        decoder=_WAITING,
        query=page_query(limit, cursor),
    )


def _path(merchant: str, location: str, sku: str, *rest: str) -> str:
    return path_of("v1", "merchants", merchant, "locations", location, "stock", sku, *rest)
