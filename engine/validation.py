"""What a command's fields must be like; each check names the field and the remedy.

Raises InvalidCommand. The scripts check quantities and TTLs again, as their last line of defence.
"""

from collections.abc import Sequence
from datetime import date
from typing import Protocol

from engine.limits import (
    MAX_BUYER_UNITS,
    MAX_BUYER_WINDOW_MS,
    MAX_CHANNELS,
    MAX_EXACT,
    MAX_ID_BYTES,
    MAX_KEY_CHARACTERS,
    MAX_LINES,
    MAX_NAME_BYTES,
    MAX_PAGE,
    MAX_QUANTITY,
    MAX_TOTAL,
    MAX_TTL_MS,
    MIN_TTL_MS,
)
from engine.model import Line, Terms
from engine.outcomes import InvalidCommand
from engine.outlook import FIRST_YEAR, LAST_YEAR


def check_id(field: str, text: str) -> None:
    """Take 1 to 200 bytes of UTF-8, of whatever characters."""
    if not text:
        raise InvalidCommand(field, f"must not be empty: 1 to {MAX_ID_BYTES} bytes of UTF-8")
    check_text(field, text)


def check_text(field: str, text: str) -> None:
    """Take up to 200 bytes of UTF-8, possibly none."""
    if text.isascii():
        size = len(text)
    else:
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise InvalidCommand(field, "must be valid Unicode, without lone surrogates") from error
    if size > MAX_ID_BYTES:
        raise InvalidCommand(field, f"must be at most {MAX_ID_BYTES} bytes of UTF-8, is {size}")


def check_terms(terms: Terms) -> None:
    """Take terms whose numbers are of their form; a pool says at least one of its two."""
    check_quantity("backorder_limit", terms.backorder_limit, least=0)
    if len(terms.channels) > MAX_CHANNELS:
        raise InvalidCommand("channels", f"must be at most {MAX_CHANNELS}")
    for name, pool in terms.channels.items():
        field = f"channels.{name}"
        check_name("channels", name)
        if not name:
            raise InvalidCommand("channels", "a channel must have a name")
        check_quantity(f"{field}.minimum", pool.minimum, least=0)
        if pool.cap is not None:
            check_quantity(f"{field}.cap", pool.cap, least=0)
            if pool.minimum > pool.cap:
                raise InvalidCommand(f"{field}.minimum", f"must be at most its cap, {pool.cap}")
        elif not pool.minimum:
            raise InvalidCommand(field, "say a cap, a minimum or both")
    cap = terms.buyer_cap
    if cap is not None:
        check_quantity("buyer_cap.units", cap.units)
        if cap.units > MAX_BUYER_UNITS:
            raise InvalidCommand("buyer_cap.units", f"must be at most {MAX_BUYER_UNITS}")
        if not 1_000 <= cap.window_ms <= MAX_BUYER_WINDOW_MS:
            most = MAX_BUYER_WINDOW_MS // 1000
            raise InvalidCommand("buyer_cap.window_seconds", f"must be 1 to {most}")


def check_day(field: str, text: str) -> None:
    """Take a day of the calendar as YYYY-MM-DD, of this century."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text or not FIRST_YEAR <= day.year <= LAST_YEAR:
        raise InvalidCommand(
            field, f"must be a day as YYYY-MM-DD, from {FIRST_YEAR} to {LAST_YEAR}"
        )


def check_name(field: str, text: str) -> None:
    """Take the name of a channel or a buyer: up to 128 bytes of UTF-8, possibly none."""
    check_text(field, text)
    if len(text.encode()) > MAX_NAME_BYTES:
        raise InvalidCommand(field, f"must be at most {MAX_NAME_BYTES} bytes of UTF-8")


def check_key(key: str) -> None:
    """Take an idempotency key of 1 to 255 characters."""
    if not 1 <= len(key) <= MAX_KEY_CHARACTERS:
        raise InvalidCommand("key", f"must have 1 to {MAX_KEY_CHARACTERS} characters")
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise InvalidCommand("key", "must be valid Unicode, without lone surrogates") from error


def check_quantity(
    field: str, quantity: int, *, least: int = 1, signed: bool = False, total: bool = False
) -> None:
    """Take whole units, `least` to 10^9 (`total`: to 10^12; `signed`: either way, but not 0)."""
    most = MAX_TOTAL if total else MAX_QUANTITY
    if type(quantity) is not int:
        raise InvalidCommand(field, "must be an integer")
    if signed:
        if quantity == 0 or abs(quantity) > most:
            raise InvalidCommand(field, f"must be -{most} to {most} and not 0, is {quantity}")
    elif not least <= quantity <= most:
        raise InvalidCommand(field, f"must be {least} to {most}, is {quantity}")


def check_change(quantity: int, reason: str, *, counts: bool, adjusts: bool) -> None:
    """Take what changes a row: a count from 0, an adjustment either way and why, or units."""
    if adjusts and not reason:
        raise InvalidCommand("reason", "say why: an adjustment needs a reason")
    if counts:
        check_quantity("quantity", quantity, least=0, total=True)
    else:
        check_quantity("quantity", quantity, signed=adjusts)


class _Asked(Protocol):
    """A line, whatever else it says."""

    @property
    def sku(self) -> str: ...
    @property
    def quantity(self) -> int: ...


def check_lines(lines: Sequence[_Asked]) -> None:
    """Take 1 to 200 lines of valid SKUs and quantities."""
    check_batch("lines", len(lines), MAX_LINES)
    for i, line in enumerate(lines):
        check_id(f"lines[{i}].sku", line.sku)
        check_quantity(f"lines[{i}].quantity", line.quantity)


def check_picks(picks: Sequence[Line]) -> None:
    """Take up to 200 picks of valid SKUs and quantities, 0 too; the script knows what is held."""
    if picks:
        check_batch("lines", len(picks), MAX_LINES)
    for i, pick in enumerate(picks):
        check_id(f"lines[{i}].sku", pick.sku)
        check_quantity(f"lines[{i}].quantity", pick.quantity, least=0)


def check_amendment(lines: Sequence[_Asked]) -> None:
    """Take up to 200 lines of valid SKUs, each once, and quantities, 0 too."""
    check_batch("lines", len(lines), MAX_LINES)
    named = set()
    for i, line in enumerate(lines):
        check_id(f"lines[{i}].sku", line.sku)
        check_quantity(f"lines[{i}].quantity", line.quantity, least=0)
        if line.sku in named:
            raise InvalidCommand(f"lines[{i}].sku", "another line names this SKU already")
        named.add(line.sku)


def check_count(field: str, count: int) -> None:
    """Take a version or a time in ms: an integer from 0 to what a script counts exactly."""
    if type(count) is not int or not 0 <= count <= MAX_EXACT:
        raise InvalidCommand(field, f"must be an integer from 0 to {MAX_EXACT}")


def check_ttl(ttl_ms: int) -> None:
    """Take 1 second to 24 hours."""
    if type(ttl_ms) is not int or not MIN_TTL_MS <= ttl_ms <= MAX_TTL_MS:
        raise InvalidCommand(
            "ttl_seconds", f"must be {MIN_TTL_MS // 1000} to {MAX_TTL_MS // 1000} seconds"
        )


def check_batch(field: str, size: int, most: int) -> None:
    """Take 1 to `most` items."""
    if not 1 <= size <= most:
        raise InvalidCommand(field, f"must have 1 to {most} items, has {size}")


def check_page(limit: int) -> None:
    """Take a page of 1 to 500 items."""
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidCommand("limit", f"must be 1 to {MAX_PAGE}, is {limit}")
