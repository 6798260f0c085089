"""Cursors and limits of listings.

A cursor is opaque to the caller: base64url of a JSON array that names the listing and the place in
it, so that a cursor of another listing is told apart.
"""

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec

from engine.limits import DEFAULT_PAGE, MAX_PAGE
from engine.model import Page
from gateway.calls import Answer, Call
from gateway.problems import InvalidRequest
from gateway.wire import ProblemError

MAX_CURSOR_CHARACTERS: Final = 6_000
"""The longest that we make names a merchant, a location and a SKU of 200 bytes, each of which JSON
may write in six characters."""

QUERY: Final = ("limit", "cursor")
"""The query parameters of a listing."""

_LIMIT = re.compile(r"[0-9]{1,6}")

Item = TypeVar("Item")
Shown = TypeVar("Shown")
_decode = msgspec.json.Decoder(list[str]).decode


def limit_of(call: Call) -> int:
    """Return how many items a page is to have. Raises InvalidRequest."""
    text = call.query.get("limit")
    if text is None:
        return DEFAULT_PAGE
    if not _LIMIT.fullmatch(text) or not 1 <= int(text) <= MAX_PAGE:
        raise InvalidRequest(
            ProblemError(parameter="limit", detail=f"must be an integer from 1 to {MAX_PAGE}")
        )
    return int(text)


def place_of(
    call: Call, listing: Sequence[str], *, is_place: Callable[[str], object] = bool
) -> str | None:
    """Return the place in `listing` that the cursor carries, None for the beginning.

    `is_place` tells a place of the listing from any other text. Raises InvalidRequest.
    """
    text = call.query.get("cursor")
    if text is None:
        return None
    if len(text) <= MAX_CURSOR_CHARACTERS:
        try:
            padded = text + "=" * (-len(text) % 4)
            parts = _decode(base64.b64decode(padded, altchars=b"-_", validate=True))
        except (binascii.Error, ValueError, RecursionError):
            parts = []
        if parts[:-1] == list(listing) and is_place(parts[-1]):
            return parts[-1]
    raise InvalidRequest(
        ProblemError(
            parameter="cursor", detail="must be the next_cursor of a page of this very listing"
        )
    )


def cursor(listing: Sequence[str], place: str | None) -> str | None:
    """Return the cursor of a place, None at the end of the listing."""
    if place is None:
        return None
    encoded = base64.urlsafe_b64encode(msgspec.json.encode([*listing, place]))
    return encoded.decode().rstrip("=")


def page_answer(
    make: Callable[[list[Shown], bool, str | None], msgspec.Struct],
    listing: Sequence[str],
    page: Page[Item],
    show: Callable[[Item], Shown],
) -> Answer:
    """Answer with a page of `listing`, each item as `show` makes it."""
    following = cursor(listing, page.next_after)
    return Answer(200, make([show(item) for item in page.items], following is not None, following))
