"""What a subscriber asks for, checked: the same rules for the stream and for the socket."""

from collections.abc import Iterable, Sequence
from typing import Final

from engine.events import EventType
from engine.outcomes import InvalidCommand
from engine.validation import check_id
from gateway.subscriptions import Interest

MAX_NAMES: Final = 200
"""Locations, SKUs or types that one subscription names. Each SKU is an entry in an index; and who
wants more of them mostly wants all."""


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
