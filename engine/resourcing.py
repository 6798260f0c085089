"""Which units of an order a location does not bring, and what stands in for which part.

Pure functions over the record of an order; `engine.order_planning` plans by them.
"""

from collections.abc import Sequence

import msgspec

from engine.model import Line
from engine.order_records import Order, Part, PartState, Plan
from engine.sourcing import Sourced


class Failed(msgspec.Struct, frozen=True):
    """A part that does not bring these units: all of an open one, or what is missing of another."""

    number: int
    lines: tuple[Line, ...]


class StandIn(msgspec.Struct, frozen=True):
    """Units to be held at a location in place of those of the part `replaces`."""

    location: str
    replaces: int
    lines: tuple[Line, ...]


def failed_parts(order: Order, location: str, *, before: int = 0) -> list[Failed] | None:
    """Return a location's parts with the units that are to come from elsewhere.

    These are whole where a part is open, and else what it left missing and nothing stands in for
    yet. With `before` only parts of lower numbers are looked at. None where no part was ever there.
    """
    parts = [part for part in order.parts if part.counts and (not before or part.number < before)]
    known = msgspec.structs.replace(order, plan=Plan(tuple(parts)))
    missing = {line.sku: line.quantity for line in known.missing()}
    there = [part for part in parts if part.location == location]
    failed = []
    for part in there:
        lines = part.asks if part.state.is_open else _left_missing(part, parts, missing)
        if lines:
            failed.append(Failed(part.number, lines))
    return failed if there else None


def _left_missing(part: Part, parts: Sequence[Part], missing: dict[str, int]) -> tuple[Line, ...]:
    """Take what a part did not bring from what is missing of the order."""
    gone = {line.sku: line.quantity for line in part.asks}
    brought = part.brings if part.state is PartState.COMMITTED else ()
    for line in (*brought, *(x for one in parts if one.replaces == part.number for x in one.asks)):
        gone[line.sku] = gone.get(line.sku, 0) - line.quantity
    lines = []
    for sku, units in gone.items():
        taken = min(units, missing.get(sku, 0))
        if taken > 0:
            missing[sku] -= taken
            lines.append(Line(sku, taken))
    return tuple(lines)


def lay_out(failed: Sequence[Failed], sourced: Sourced) -> list[StandIn]:
    """Say which units of a plan stand in for which part; the plan has all units of all parts."""
    left = {one.number: {line.sku: line.quantity for line in one.lines} for one in failed}
    laid_out = []
    for place in sourced.sources:
        free = {line.sku: line.quantity for line in place.lines}
        for number, units in left.items():
            lines = []
            for sku in units:
                taken = min(units[sku], free.get(sku, 0))
                if taken:
                    units[sku] -= taken
                    free[sku] -= taken
                    lines.append(Line(sku, taken))
            if lines:
                laid_out.append(StandIn(place.location, number, tuple(lines)))
    return laid_out


def allot_picks(due: Sequence[Part], picks: Sequence[Line]) -> dict[int, tuple[Line, ...]]:
    """Share what was picked at a location among its parts, the earlier ones first.

    No picks are every line whole; a part that gets nothing of them is told so line by line.
    """
    if not picks or len(due) == 1:
        return {part.number: tuple(picks) for part in due}
    left = {line.sku: line.quantity for line in picks}
    shares = {}
    for part in due:
        lines = []
        for line in part.lines:
            taken = min(line.quantity, left.get(line.sku, 0))
            left[line.sku] = left.get(line.sku, 0) - taken
            lines.append(Line(line.sku, taken))
        shares[part.number] = tuple(lines)
    return shares
