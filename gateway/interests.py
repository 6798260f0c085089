"""What a subscriber asks for, checked: the same rules for the stream and for the socket."""

from collections.abc import Iterable, Sequence
from typing import Final

from engine.events import EventType
from engine.inventory import Inventory
from engine.limits import MAX_PAGE
from engine.outcomes import InvalidCommand, LimitExceeded
from engine.validation import check_id
from gateway.subscriptions import Interest

MAX_NAMES: Final = 200
"""Locations, SKUs or types that one subscription names. Each SKU is an entry in an index; and who
wants more of them mostly wants all."""


MAX_ROWS: Final = 10_000
"""Rows that a stream opens with: a list of 3 MB. Who wants to hear of more than that asks for no
snapshot, and reads the rows in pages. Of kits, rows that are kept for whoever follows one."""


def interest_of(
    merchant: str,
    *,
    locations: Sequence[str] | None,
    skus: Sequence[str] | None,
    types: Sequence[str] | None,
) -> Interest:
    """Make an interest; None or nothing named is everything. Raises InvalidCommand."""
    return Interest(
        merchant=merchant,
        locations=_names("location", locations),
        skus=_names("sku", skus),
        types=_types(types),
    )


async def locations_of(inventory: Inventory, merchant: str) -> Sequence[str]:
    """Return all locations of a merchant. Raises LimitExceeded where they have too many rows."""
    found: list[str] = []
    after: str | None = None
    while True:
        page = await inventory.list_locations(merchant, after=after, limit=MAX_PAGE)
        found += page.items
        check_rows(len(found))
        after = page.next_after
        if after is None:
            return found


def check_rows(count: int) -> None:
    """Refuse to read more rows for one subscription than MAX_ROWS. Raises LimitExceeded."""
    if count > MAX_ROWS:
        raise LimitExceeded("rows", most=MAX_ROWS)


def _names(field: str, texts: Sequence[str] | None) -> frozenset[str] | None:
    if not texts:
        return None
    _check_count(field, texts)
    for text in texts:
        check_id(field, text)
    return frozenset(texts)


def _types(texts: Sequence[str] | None) -> frozenset[EventType] | None:
    if not texts:
        return None
    _check_count("type", texts)
    unknown: Iterable[str] = [text for text in texts if text not in _KNOWN]
    for text in unknown:
        raise InvalidCommand("type", f"must be one of {', '.join(EventType)}, not {text[:50]!r}")
    return frozenset(EventType(text) for text in texts)


def _check_count(field: str, texts: Sequence[str]) -> None:
    if len(texts) > MAX_NAMES:
        raise InvalidCommand(field, f"must be named at most {MAX_NAMES} times")


_KNOWN: Final = frozenset(EventType)
