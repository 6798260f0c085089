"""Kits: SKUs that are put together of others when they are sold, and have no shelf of their own."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from engine.limits import MAX_COMPONENT_UNITS, MAX_COMPONENTS
from engine.model import Line, Row
from engine.outcomes import InvalidCommand
from engine.validation import check_id

VERSIONS_OF_A_REVISION: Final = 1_000_000_000
"""More than the versions of a kit's rows come to: a kit that is defined anew is newer than whatever
it was before. Nine million revisions fit into the integers that JSON carries exactly (RFC 8259)."""


class Kit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one unit of a kit is made of, one line a component.

    `revision` is that of the merchant's kits which said so, 0 where that was not kept.
    """

    components: tuple[Line, ...]
    revision: int = 0


Kits = Mapping[str, Kit]


def stamped(kit: Kit, revision: int) -> Kit:
    """Return a kit as a revision says it."""
    return Kit(components=kit.components, revision=revision)


def kit_row(
    merchant: str, location: str, sku: str, kit: Kit, rows: Mapping[str, Row | None]
) -> Row | None:
    """Return what there is of a kit, as a row, by the rows of its own and of its components.

    None where neither it nor all its components have one. Units that the kit's own row has were
    stocked before it became one; they are promised first. The rows of a location are in one ledger,
    so the sum of their versions rises with each change, and a new revision is above all of them.
    """
    own = rows.get(sku)
    parts = [rows.get(one.sku) for one in kit.components]
    if own is None and None in parts:
        return None
    allowed = min(
        0 if row is None else row.available // one.quantity
        for one, row in zip(kit.components, parts, strict=True)
    )
    units = allowed + (0 if own is None else own.available)
    version = kit.revision * VERSIONS_OF_A_REVISION
    version += sum(row.version for row in (own, *parts) if row is not None)
    return Row(merchant, location, sku, units, 0, 0, 0, version)


def check_kit(sku: str, components: Sequence[Line]) -> Kit:
    """Return the kit. Raises InvalidCommand; kits of kits are for `check_kits`."""
    if not 1 <= len(components) <= MAX_COMPONENTS:
        raise InvalidCommand(
            "components", f"must have 1 to {MAX_COMPONENTS} items, has {len(components)}"
        )
    named: set[str] = set()
    for i, one in enumerate(components):
        place = f"components[{i}]"
        check_id(f"{place}.sku", one.sku)
        if one.sku == sku:
            raise InvalidCommand(f"{place}.sku", "must be another SKU: a kit is no part of itself")
        if one.sku in named:
            raise InvalidCommand(f"{place}.sku", "stands there twice: add the quantities up")
        named.add(one.sku)
        if type(one.quantity) is not int or not 1 <= one.quantity <= MAX_COMPONENT_UNITS:
            raise InvalidCommand(
                f"{place}.quantity", f"must be 1 to {MAX_COMPONENT_UNITS}, is {one.quantity}"
            )
    return Kit(components=tuple(components))


def check_kits(kits: Kits, _new: Sequence[str]) -> None:
    """Refuse kits of kits: a kit is made of what lies on a shelf. Raises InvalidCommand."""
    for sku, kit in kits.items():
        for one in kit.components:
            if one.sku in kits:
                raise InvalidCommand(
                    "components",
                    f"{sku} would have {one.sku} as a component, which is a kit itself: name what "
                    "that is made of",
                )
