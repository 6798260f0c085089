"""How old an answer may be, and how old it is: rows from the view, or where need be from the store.

A caller accepts an age, 1 second unless it says otherwise, or asks for `consistency=strong`, which
always asks the store. What this gateway wrote, its own view never shows older than that; what
another one wrote, it shows as soon as the tail has brought it.
"""

import time
from collections.abc import Sequence
from math import ceil
from typing import Final

from engine.keys import partition_of
from engine.model import Row
from engine.outcomes import RowNotFound
from gateway.calls import Call
from gateway.problems import InvalidRequest
from gateway.view import Sight
from gateway.wire import MAX_STALENESS_MS, Consistency, ProblemError, Reading, Source

DEFAULT_MAX_STALENESS_MS: Final = 1_000
"""The tail is some milliseconds behind as a rule, and proves so ten times a second. A second leaves
it room for a pause, and a shopper sees no difference."""

QUERY: Final = ("max_staleness_ms", "consistency")


def max_age_of(call: Call) -> int:
    """Return how old an answer may be in ms, 0 where the store must be asked, by the query."""
    query = call.query
    if not query:
        return DEFAULT_MAX_STALENESS_MS
    text, consistency = query.get("max_staleness_ms"), query.get("consistency")
    if text is not None and not (
        text.isascii() and text.isdecimal() and int(text[:9]) <= MAX_STALENESS_MS
    ):
        raise _invalid("max_staleness_ms", f"must be an integer of 0 to {MAX_STALENESS_MS}")
    if consistency is not None and consistency not in (*Consistency,):
        raise _invalid("consistency", f"must be {' or '.join(Consistency)}")
    return max_age(None if text is None else int(text), consistency)


def max_age(max_staleness_ms: int | None, consistency: str | None) -> int:
    """Return how old an answer may be in ms, 0 where the store must be asked."""
    if consistency == Consistency.STRONG:
        return 0
    return DEFAULT_MAX_STALENESS_MS if max_staleness_ms is None else max_staleness_ms


async def read_row(call: Call, location: str, sku: str, *, max_age_ms: int) -> Reading:
    """Read one row. Raises StoreUnavailable and InvalidCommand."""
    fanout = call.service.fanout
    key = (call.merchant, location, sku)
    if max_age_ms > 0:
        sight = fanout.view.look(key, max_age_ms=max_age_ms)
        if sight is not None:
            return _seen(sight)
        fanout.wake()
    began, as_of_ms = time.monotonic(), time.time_ns() // 1_000_000
    inventory, view = call.inventory, fanout.view
    # Also where the store must be asked: whoever is told a version here must not find an older
    # one in the view the next time.
    fill = view.begin(key, partition_of(call.merchant, location, inventory.partitions))
    row: Row | None = None
    try:
        row = await inventory.row(*key)
    except RowNotFound:
        pass
    except BaseException:
        if fill is not None:
            view.abandon(fill)
        raise
    if fill is not None:
        row = view.finish(fill, row, read_at=began)
    return Reading(row, as_of_ms, ceil((time.monotonic() - began) * 1000), Source.STORE)


async def read_rows(
    call: Call, wanted: Sequence[tuple[str, str]], *, max_age_ms: int
) -> list[Reading]:
    """Read rows by (location, SKU), in order; what the view does not have in one go."""
    fanout, merchant = call.service.fanout, call.merchant
    view = fanout.view
    readings: list[Reading | None] = [None] * len(wanted)
    if max_age_ms > 0:
        for i, (location, sku) in enumerate(wanted):
            sight = view.look((merchant, location, sku), max_age_ms=max_age_ms)
            if sight is not None:
                readings[i] = _seen(sight)
    missing = [i for i, reading in enumerate(readings) if reading is None]
    if missing:
        if max_age_ms > 0:
            fanout.wake()
        for i, reading in zip(
            missing,
            await _from_store(call, [wanted[i] for i in missing]),
            strict=True,
        ):
            readings[i] = reading
    return [reading for reading in readings if reading is not None]


async def _from_store(call: Call, wanted: Sequence[tuple[str, str]]) -> list[Reading]:
    view, inventory, merchant = call.service.fanout.view, call.inventory, call.merchant
    began, as_of_ms = time.monotonic(), time.time_ns() // 1_000_000
    partitions = inventory.partitions
    fills = [
        view.begin((merchant, location, sku), partition_of(merchant, location, partitions))
        for location, sku in wanted
    ]
    try:
        rows = await inventory.rows(merchant, wanted)
    except BaseException:
        for fill in fills:
            if fill is not None:
                view.abandon(fill)
        raise
    for i, fill in enumerate(fills):
        if fill is not None:
            rows[i] = view.finish(fill, rows[i], read_at=began)
    age_ms = ceil((time.monotonic() - began) * 1000)
    return [Reading(row, as_of_ms, age_ms, Source.STORE) for row in rows]


def _seen(sight: Sight) -> Reading:
    age_ms = ceil(sight.age_ms)
    return Reading(sight.row, time.time_ns() // 1_000_000 - age_ms, age_ms, Source.VIEW)


def _invalid(parameter: str, detail: str) -> InvalidRequest:
    return InvalidRequest(ProblemError(parameter=parameter, detail=detail))
