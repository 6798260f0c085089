"""Kits in answers about stock: what there is of one is what its components allow."""

from collections.abc import Sequence

from engine.kits import Kit, kit_row
from engine.limits import MAX_BATCH_ROWS
from gateway.calls import Call
from gateway.freshness import read_row, read_rows
from gateway.wire import Reading, Source

Wanted = Sequence[tuple[str, str]]
"""Rows by (location, SKU)."""


async def read_stocked(
    call: Call, location: str, sku: str, *, max_age_ms: int
) -> tuple[Reading, bool]:
    """Read a row, or what there is of a kit, and say whether it is one."""
    kits = await call.inventory.kits.known_for_reading(call.merchant)
    if sku not in kits:
        return await read_row(call, location, sku, max_age_ms=max_age_ms), False
    (reading,) = await read_all(call, [(location, sku)], max_age_ms=max_age_ms)
    return reading, True


async def read_all(call: Call, wanted: Wanted, *, max_age_ms: int) -> list[Reading]:
    """Read rows and what there is of kits, in order.

    Each kit is answered as if nothing else were asked for: two that share a component may each be
    available, and not both. Of a kit `on_hand` is what is available.
    """
    kits = await call.inventory.kits.known_for_reading(call.merchant)
    if not any(sku in kits for _, sku in wanted):
        return await read_rows(call, wanted, max_age_ms=max_age_ms)
    parts = {
        (location, part.sku): None
        for location, sku in wanted
        if sku in kits
        for part in kits[sku].components
    }
    rows = list(dict.fromkeys([*wanted, *parts]))
    readings: dict[tuple[str, str], Reading] = {}
    for start in range(0, len(rows), MAX_BATCH_ROWS):
        some = rows[start : start + MAX_BATCH_ROWS]
        found = await read_rows(call, some, max_age_ms=max_age_ms)
        readings.update(zip(some, found, strict=True))
    return [
        _put_together(call.merchant, location, sku, kits[sku], readings)
        if sku in kits
        else readings[location, sku]
        for location, sku in wanted
    ]


def _put_together(
    merchant: str,
    location: str,
    sku: str,
    kit: Kit,
    readings: dict[tuple[str, str], Reading],
) -> Reading:
    """Make the reading of a kit of those of its own row and of its components."""
    names = (sku, *[part.sku for part in kit.components])
    used = {name: readings[location, name] for name in names}
    row = kit_row(merchant, location, sku, kit, {name: one.row for name, one in used.items()})
    in_view = all(reading.source is Source.VIEW for reading in used.values())
    return Reading(
        row,
        min(reading.as_of_ms for reading in used.values()),
        max(reading.age_ms for reading in used.values()),
        Source.VIEW if in_view else Source.STORE,
    )
