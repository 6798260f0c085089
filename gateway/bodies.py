"""Reading a request's body: bounded, plain JSON, decoded by its struct."""

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import inspect
from starlette.types import Receive

from gateway.problems import (
    InvalidRequest,
    PayloadTooLarge,
    UnsupportedMediaType,
    path_of,
    pointer,
    shortened,
)
from gateway.wire import ProblemError

MAX_BODY_BYTES: Final = 1_048_576
"""A batch of 1,000 movements is about 200 kB; more than this is no request of ours."""

_JSON = re.compile(
    rb"application/(?:json|[\w.!#$&^-]+\+json)\s*(?:;\s*charset=\"?utf-8\"?\s*)?;?", re.IGNORECASE
)

_MEMBER = re.compile(
    r"(?:Object contains unknown field|Object missing required field) `(.*)`", re.DOTALL
)
_PLACE = re.compile(r"(.*?)(?: - at `(?:key in )?\$((?:\.\w+|\[\d+\]|\[\.\.\.\])*)`)?", re.DOTALL)
_OF_ANY_KEY: Final = "[...]"
"""What msgspec says of a place in a mapping: not which key it is of."""


class ClientGone(Exception):
    """The client went away while it sent its request, so there is nobody to answer."""


async def read(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """Return the whole body. Raises PayloadTooLarge, UnsupportedMediaType and ClientGone."""
    announced = headers.get(b"content-length")
    if announced is not None and announced.isdigit() and int(announced) > MAX_BODY_BYTES:
        raise PayloadTooLarge(most_bytes=MAX_BODY_BYTES)
    body = b""
    chunks: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise PayloadTooLarge(most_bytes=MAX_BODY_BYTES)
        if more or chunks:
            chunks.append(chunk)
        else:
            body = chunk
    if chunks:
        body = b"".join(chunks)
    if body:
        _check_media_type(headers)
    return body


def decode(body: bytes, decoder: "msgspec.json.Decoder[Any]") -> Any:
    """Decode a body. Raises InvalidRequest with a pointer to the first fault."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if not body:
            detail = "the body is empty: send a JSON object"
            raise InvalidRequest(ProblemError(pointer="#", detail=detail)) from error
        raise undecodable(error, decoder.type) from error


def undecodable(error: Exception, expected: Any = Any) -> InvalidRequest:
    """Make a refusal of msgspec's words, which name the first fault and its place in text.

    `expected` is the type that was decoded into: it knows what may stand there.
    """
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequest(ProblemError(pointer="#", detail="the body is not valid UTF-8"))
    if isinstance(error, RecursionError):
        return InvalidRequest(ProblemError(pointer="#", detail="the body is nested too deeply"))
    text, place = _place_of(str(error))
    # A mapping is pointed to as a whole, and where in it is told.
    known, _, within = place.partition(_OF_ANY_KEY)
    path = path_of(known)
    member = _MEMBER.fullmatch(text)
    if text.startswith("Invalid enum value"):
        wanted = path_of(place.replace(_OF_ANY_KEY, ".*"))
        text += f", must be one of {', '.join(_choices(inspect.type_info(expected), wanted))}"
    if _OF_ANY_KEY in place:
        text += f" - at `*{within}`"
    elif member is not None:
        path = [*path, member[1]]
    return InvalidRequest(ProblemError(pointer=pointer(path), detail=shortened(text)))


def _place_of(text: str) -> tuple[str, str]:
    match = _PLACE.fullmatch(text)
    if match is None or match[2] is None:
        return text, ""
    return match[1], match[2].removeprefix(".")


def _choices(known: inspect.Type, path: Sequence[str]) -> list[str]:
    """Return what may stand at a place of a type, where that is one of a few words."""
    match known:
        case inspect.EnumType() if not path:
            return [str(one.value) for one in known.cls]
        case inspect.LiteralType() if not path:
            return [str(one) for one in known.values]
        case inspect.UnionType():
            return [found for one in known.types for found in _choices(one, path)]
        case inspect.StructType() if path:
            fields = (one.type for one in known.fields if one.encode_name == path[0])
            return [found for one in fields for found in _choices(one, path[1:])]
        case inspect.ListType() if path:
            return _choices(known.item_type, path[1:])
        case inspect.DictType() if path:
            return _choices(known.value_type, path[1:])
        case inspect.Metadata():
            return _choices(known.type, path)
        case _:
            return []


def _check_media_type(headers: dict[bytes, bytes]) -> None:
    media_type = headers.get(b"content-type")
    if media_type not in (None, b"application/json") and not _JSON.fullmatch(media_type or b""):
        raise UnsupportedMediaType("Content-Type")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise UnsupportedMediaType("Content-Encoding")
