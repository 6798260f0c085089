"""Questions to the ledger: what happened, and what a row was at a past moment."""

import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Final, TypeVar

import msgspec

from engine.history import Order, Position, Question
from engine.keys import digest
from engine.ledger import OperationKind
from engine.model import time_text
from engine.outcomes import InvalidCommand
from engine.validation import check_id
from gateway import entries, wire
from gateway.calls import Answer, Call
from gateway.conditions import etag
from gateway.paging import cursor, limit_of, place_of
from gateway.problems import InvalidRequest
from gateway.wire import ProblemError

FILTERS: Final = ("location", "sku", "reservation", "actor", "reference")
QUERY: Final = (*FILTERS, "kind", "from", "to", "order", "limit", "cursor")
"""The query parameters of a question."""

_PLACE = re.compile(r"(\d{1,16})\.(-1|\d{1,4})\.(\d{1,16})")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_Moment = Annotated[datetime, msgspec.Meta(tz=True)]

Choice = TypeVar("Choice", bound=StrEnum)


async def read_ledger(call: Call, _body: None) -> Answer:
    """Answer one page of a question."""
    question = _question(call)
    listing = ("ledger", _fingerprint(question))
    place = place_of(call, listing, is_place=_PLACE.fullmatch)
    after = None if place is None else Position(*map(int, place.split(".")))
    found = await call.service.history.find(question, after=after)
    following = None if found.following is None else ".".join(map(str, found.following))
    return Answer(
        200,
        entries.page(found, sku=question.sku, following=cursor(listing, following)),
    )


async def read_past_stock(call: Call) -> Answer:
    """Answer with a row as it was at the moment that the query names."""
    path = call.path
    at_ms = _time_ms(call, "at")
    if at_ms is None:
        raise _bad("at", "must be there")
    try:
        past = await call.service.history.stock_at(
            path["merchant"], path["location"], path["sku"], at_ms=at_ms
        )
    except InvalidCommand as error:
        if error.field != "at":
            raise
        raise _bad("at", error.remedy) from error
    row = msgspec.structs.replace(wire.stock(past.row), as_of=time_text(past.as_of_ms))
    return Answer(200, row, [etag(past.row.version)])


def _question(call: Call) -> Question:
    """Read the question of a request. Raises InvalidRequest."""
    texts = {name: _text(call, name) for name in FILTERS}
    return Question(
        merchant=call.merchant,
        **texts,
        kind=_choice(call, "kind", OperationKind),
        from_ms=_time_ms(call, "from"),
        to_ms=_time_ms(call, "to"),
        order=_choice(call, "order", Order) or Order.NEWEST,
        limit=limit_of(call),
    )


def _fingerprint(question: Question) -> str:
    """Tell questions apart in a cursor, where the ids themselves would take too much room."""
    parts = msgspec.structs.asdict(msgspec.structs.replace(question, limit=1))
    return digest(*("" if part is None else f"={part}" for part in parts.values()))


def _text(call: Call, name: str) -> str | None:
    text = call.query.get(name)
    if text is not None:
        try:
            check_id(name, text)
        except InvalidCommand as error:
            raise _bad(name, error.remedy) from error
    return text


def _choice(call: Call, name: str, choices: type[Choice]) -> Choice | None:
    text = call.query.get(name)
    if text is None:
        return None
    try:
        return choices(text)
    except ValueError as error:
        known = ", ".join(choices)
        raise _bad(name, f"must be one of {known}") from error


def _time_ms(call: Call, name: str) -> int | None:
    """Read a moment in ms since 1970. Raises InvalidRequest."""
    text = call.query.get(name)
    if text is None:
        return None
    try:
        moment = msgspec.convert(text, _Moment)
    except msgspec.ValidationError as error:
        raise _bad(
            name, "must be a time of RFC 3339 with an offset, such as 2026-11-23T15:38:04.123Z"
        ) from error
    if moment < _EPOCH:
        raise _bad(name, "must not be before 1970")
    since = moment - _EPOCH
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


def _bad(name: str, detail: str) -> InvalidRequest:
    return InvalidRequest(ProblemError(parameter=name, detail=detail))
