"""Kits in answers about stock: what there is of one is what its components allow."""

from collections.abc import Sequence

from engine.kits import Kit
from engine.limits import MAX_BATCH_ROWS
from engine.model import Row
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
    available, and not both. Of a kit `on_hand` is what is available, and its version the sum of its
    rows' versions, so it rises with each of them.
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
    """Make the reading of a kit; its row is None where neither it nor all its components have one.

    Units that the kit's own row has were stocked before it became one; they are promised first.
    """
    own = readings[location, sku]
    used = [own, *[readings[location, part.sku] for part in kit.components]]
    allowed = min(
        0 if reading.row is None else reading.row.available // part.quantity
        for part, reading in zip(kit.components, used[1:], strict=True)
    )
    units = allowed + (0 if own.row is None else own.row.available)
    row = None
    if own.row is not None or all(reading.row is not None for reading in used[1:]):
        version = sum(reading.row.version for reading in used if reading.row is not None)
        row = Row(merchant, location, sku, units, 0, 0, 0, version)
    in_view = all(reading.source is Source.VIEW for reading in used)
    return Reading(
        row,
        min(reading.as_of_ms for reading in used),
        max(reading.age_ms for reading in used),
        Source.VIEW if in_view else Source.STORE,
    )
