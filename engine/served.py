"""How much of what was asked for is served by units that are held for it, or left the shelf."""

from collections.abc import Sequence

from engine.model import Line, StandsFor
from engine.wishes import KIT


def served(
    lines: Sequence[Line], stands_for: Sequence[StandsFor], brought: Sequence[Line]
) -> tuple[Line, ...]:
    """Return what of `brought` units serves which SKU that was asked for.

    `lines` are what a reservation holds, some of them for another SKU as `stands_for` says. Where
    fewer units were brought, they go to what was asked for by name, then to kits as far as they
    make whole ones, then to what the rest stands for, in the order in which it was held.
    """
    if not stands_for:
        return tuple(brought)
    left = {line.sku: line.quantity for line in brought}
    units: dict[str, int] = {}

    def serve(asked: str, quantity: int) -> None:
        if quantity > 0:
            units[asked] = units.get(asked, 0) + quantity

    own = {line.sku: line.quantity for line in lines}
    kits: dict[str, list[StandsFor]] = {}
    for one in stands_for:
        own[one.sku] = own.get(one.sku, 0) - one.units
        if one.kind == KIT:
            kits.setdefault(one.asked, []).append(one)
    for sku, quantity in own.items():
        serve(sku, _take(left, sku, quantity))
    for asked, parts in kits.items():
        whole = min(min(part.served, left.get(part.sku, 0) // part.of) for part in parts)
        for part in parts:
            _take(left, part.sku, whole * part.of)
        serve(asked, whole)
    for one in stands_for:
        if one.kind != KIT:
            taken = _take(left, one.sku, one.units)
            serve(one.asked, min(one.served, taken * one.for_ // one.of))
    return tuple([Line(sku, quantity) for sku, quantity in units.items()])


def _take(left: dict[str, int], sku: str, quantity: int) -> int:
    taken = max(0, min(quantity, left.get(sku, 0)))
    left[sku] = left.get(sku, 0) - taken
    return taken
