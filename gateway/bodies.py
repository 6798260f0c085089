"""Reading a request's body: bounded, plain JSON, decoded by its struct."""

import re
from typing import Any, Final

import msgspec
from starlette.types import Receive

from gateway.problems import PayloadTooLarge, UnsupportedMediaType, undecodable

MAX_BODY_BYTES: Final = 1_048_576
"""A batch of 1,000 movements is about 200 kB; more than this is no request of ours."""

_JSON = re.compile(
    rb"application/(?:json|[\w.!#$&^-]+\+json)\s*(?:;\s*charset=\"?utf-8\"?\s*)?;?", re.IGNORECASE
)


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
        raise undecodable(error) from error


def _check_media_type(headers: dict[bytes, bytes]) -> None:
    media_type = headers.get(b"content-type")
    if media_type not in (None, b"application/json") and not _JSON.fullmatch(media_type or b""):
        raise UnsupportedMediaType("Content-Type")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise UnsupportedMediaType("Content-Encoding")
