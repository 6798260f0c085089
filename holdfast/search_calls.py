"""The calls about the availability index as data, like those of `holdfast.calls`."""

from datetime import datetime
from typing import Final

import msgspec

from holdfast.calls import Call, path_of


class Item(msgspec.Struct, frozen=True):
    """What a SKU is called."""

    sku: str
    title: str
    attributes: dict[str, str]


class SearchHit(msgspec.Struct, frozen=True, kw_only=True):
    """A row that fits, and its item."""

    sku: str
    location: str
    title: str
    attributes: dict[str, str]
    available: int
    on_hand: int
    reserved: int
    low: bool
    version: int
    backordered: int = 0
    backorder_available: int = 0


class SearchPage(msgspec.Struct, frozen=True, kw_only=True):
    """Part of an answer; the newest change that is in it was at `as_of`."""

    data: tuple[SearchHit, ...]
    has_more: bool
    next_cursor: str | None
    as_of: datetime | None


_PAGE: Final = msgspec.json.Decoder(SearchPage)
_ITEM: Final = msgspec.json.Decoder(Item)


def search(merchant: str, asked: dict[str, str | None]) -> Call[SearchPage]:
    """Search; `asked` are the parameters by name, None where one is not given."""
    return Call(
        method="GET",
        path=path_of("v1", "merchants", merchant, "search"),
        decoder=_PAGE,
        query=tuple((name, text) for name, text in asked.items() if text is not None),
    )


def put_item(merchant: str, item: Item) -> Call[Item]:
    """Say what a SKU is called."""
    return Call(
        method="PUT",
        path=path_of("v1", "merchants", merchant, "items", item.sku),
        decoder=_ITEM,
        body=msgspec.json.encode({"title": item.title, "attributes": item.attributes}),
    )
