"""The availability index over HTTP: search, and the items that give SKUs their titles."""

from functools import partial
from typing import Annotated, Final, TypeVar

import msgspec

from engine.keys import digest
from engine.limits import MAX_TOTAL
from engine.outcomes import InvalidCommand
from engine.validation import check_id
from gateway import search_wire as wire
from gateway.calls import Answer, Call
from gateway.paging import cursor, limit_of, place_of
from gateway.problems import InvalidRequest
from gateway.wire import ProblemError
from projection.database import Item, Place, Question, Sort, Stocked

Choice = TypeVar("Choice", Stocked, Sort)

QUERY = ("q", "sku", "location", "stock", "sort", "limit", "cursor")

_places: Final[dict[Sort, msgspec.json.Decoder[Place]]] = {
    Sort.SKU: msgspec.json.Decoder[Place](tuple[str, str]),
    # A database has no whole numbers beyond 64 bits, and a cursor is anybody's.
    Sort.BACKORDERED: msgspec.json.Decoder[Place](
        tuple[Annotated[int, msgspec.Meta(ge=0, le=MAX_TOTAL)], str, str]
    ),
}


async def search(call: Call, _body: None) -> Answer:
    """Find rows by words, SKU, location and stock."""
    query = call.query
    asked = [query.get(name) or "" for name in ("q", "sku", "location", "stock")]
    stocked = _choice(call, "stock", Stocked)
    sort = _sort(call, stocked)
    if sort is not Sort.SKU:
        asked.append(sort)
    listing = ("search", digest(call.merchant, *asked))
    limit = limit_of(call)
    after = place_of(call, listing, is_place=partial(_place, sort))
    question = Question(
        merchant=call.merchant,
        text=_text(call),
        sku=_id(call, "sku"),
        location=_id(call, "location"),
        stocked=stocked,
        sort=sort,
        after=None if after is None else _place(sort, after),
        limit=limit,
    )
    found = await (await call.service.index()).search(question)
    last = None if found.after is None else msgspec.json.encode(found.after).decode()
    following = cursor(listing, last)
    data = [wire.hit(one) for one in found.hits]
    as_of = wire.as_of(found.as_of_ms)
    return Answer(200, wire.SearchPage(data, following is not None, following, as_of))


async def put_item(call: Call, body: wire.ItemRequest) -> Answer:
    """Describe a SKU, in place of what was said of it before."""
    for name in body.attributes:
        check_id("attributes", name)
    item = Item(call.path["sku"], body.title, body.attributes)
    await (await call.service.index()).put_item(call.merchant, item)
    return Answer(200, wire.item(item))


async def read_item(call: Call, _body: None) -> Answer:
    """Read what a SKU is called."""
    index = await call.service.index()
    return Answer(200, wire.item(await index.item(call.merchant, call.path["sku"])))


async def delete_item(call: Call, _body: None) -> Answer:
    """Forget what a SKU is called."""
    await (await call.service.index()).delete_item(call.merchant, call.path["sku"])
    return Answer(204, None)


def _text(call: Call) -> str | None:
    text = call.query.get("q")
    if text is not None and not 1 <= len(text) <= wire.MAX_QUESTION_CHARACTERS:
        raise InvalidRequest(
            ProblemError(
                parameter="q", detail=f"must have 1 to {wire.MAX_QUESTION_CHARACTERS} characters"
            )
        )
    return text


def _id(call: Call, name: str) -> str | None:
    text = call.query.get(name)
    if text is not None:
        try:
            check_id(name, text)
        except InvalidCommand as error:
            raise InvalidRequest(ProblemError(parameter=name, detail=error.remedy)) from error
    return text


def _choice(call: Call, name: str, choices: type[Choice]) -> Choice | None:
    text = call.query.get(name)
    if text is None:
        return None
    try:
        return choices(text)
    except ValueError as error:
        detail = f"must be one of {', '.join(choices)}"
        raise InvalidRequest(ProblemError(parameter=name, detail=detail)) from error


def _sort(call: Call, stocked: Stocked | None) -> Sort:
    sort = _choice(call, "sort", Sort) or Sort.SKU
    if sort is Sort.BACKORDERED and (stocked is not Stocked.BACKORDERED or "q" in call.query):
        detail = f"{sort} goes with stock={Stocked.BACKORDERED} and without q"
        raise InvalidRequest(ProblemError(parameter="sort", detail=detail))
    return sort


def _place(sort: Sort, text: str) -> Place | None:
    """Read the place that a cursor carries, None where it does not."""
    try:
        return _places[sort].decode(text)
    except msgspec.DecodeError:
        return None
