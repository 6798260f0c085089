"""What travels about items and the availability index."""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from engine.limits import MAX_ID_BYTES
from engine.model import time_text
from gateway.wire import Page, Request, Time, Version
from projection.database import Hit, Item

MAX_TITLE_CHARACTERS: Final = 500
MAX_ATTRIBUTES: Final = 50
MAX_QUESTION_CHARACTERS: Final = 200


class ItemRequest(Request, frozen=True, kw_only=True):
    """What a SKU is called, and whatever else a search is to show."""

    title: Annotated[str, Meta(max_length=MAX_TITLE_CHARACTERS)]
    attributes: Annotated[
        dict[str, Annotated[str, Meta(max_length=MAX_TITLE_CHARACTERS)]],
        Meta(max_length=MAX_ATTRIBUTES, description=f"By names of 1 to {MAX_ID_BYTES} bytes."),
    ] = msgspec.field(default_factory=dict)


class ItemAnswer(msgspec.Struct, frozen=True):
    """An item; `attributes` are the merchant's own."""

    sku: str
    title: str
    attributes: dict[str, str]


class SearchHit(msgspec.Struct, frozen=True, kw_only=True):
    """A row that fits, and its item; `low` is true at or below the row's threshold.

    `backordered` units are owed, and `backorder_available` more can be promised before they come.
    """

    sku: str
    location: str
    title: str
    attributes: dict[str, str]
    available: int
    on_hand: int
    reserved: int
    backordered: int
    backorder_available: int
    low: bool
    version: Version


class SearchPage(Page[SearchHit], frozen=True):
    """Rows in the order that was asked for; the newest change that is in it was at `as_of`."""

    as_of: Time | None


def item(found: Item) -> ItemAnswer:
    """Make the answer of an item."""
    return ItemAnswer(found.sku, found.title, found.attributes)


def hit(found: Hit) -> SearchHit:
    """Make the answer of a row that was found."""
    row = found.row
    threshold = row.low_stock_threshold
    return SearchHit(
        sku=row.sku,
        location=row.location,
        title=found.title,
        attributes=found.attributes,
        available=row.available,
        on_hand=row.on_hand,
        reserved=row.reserved,
        backordered=row.backordered,
        backorder_available=row.backorder_available,
        low=threshold > 0 and row.available <= threshold,
        version=row.version,
    )


def as_of(time_ms: int) -> str | None:
    """Make the time of the newest change; None where there was none yet."""
    return time_text(time_ms) if time_ms else None
