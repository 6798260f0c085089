"""The operations of search and of what items are called."""

from typing import Final

from engine.access import Role
from engine.outcomes import IndexUnavailable, ItemNotFound
from gateway import search, search_wire
from gateway.operations import Operation, Success
from gateway.routes.paths import MERCHANT

_ITEM: Final = MERCHANT + "/items/{sku}"

OPERATIONS: Final = (
    Operation(
        name="search",
        method="GET",
        path=MERCHANT + "/search",
        tag="Search",
        summary="Find rows by words, SKU, location and stock",
        handler=search.search,
        role=Role.READ,
        successes=(Success(200, search_wire.SearchPage, "A page"),),
        query=search.QUERY,
        problems=(IndexUnavailable,),
    ),
    Operation(
        name="putItem",
        method="PUT",
        path=_ITEM,
        tag="Search",
        summary="Say what a SKU is called",
        handler=search.put_item,
        request=search_wire.ItemRequest,
        role=Role.FEED,
        successes=(Success(200, search_wire.ItemAnswer, "The item"),),
        problems=(IndexUnavailable,),
    ),
    Operation(
        name="readItem",
        method="GET",
        path=_ITEM,
        tag="Search",
        summary="Read what a SKU is called",
        handler=search.read_item,
        role=Role.READ,
        successes=(Success(200, search_wire.ItemAnswer, "The item"),),
        problems=(ItemNotFound, IndexUnavailable),
    ),
    Operation(
        name="deleteItem",
        method="DELETE",
        path=_ITEM,
        tag="Search",
        summary="Forget what a SKU is called",
        handler=search.delete_item,
        role=Role.FEED,
        successes=(Success(204, None, "It is forgotten"),),
        problems=(ItemNotFound, IndexUnavailable),
    ),
)
