"""Kits: SKUs that are put together of others when they are sold, and have no shelf of their own."""

from collections.abc import Mapping, Sequence

import msgspec

from engine.limits import MAX_COMPONENT_UNITS, MAX_COMPONENTS
from engine.model import Line
from engine.outcomes import InvalidCommand
from engine.validation import check_id


class Kit(msgspec.Struct, frozen=True, kw_only=True):
    """What one unit of a kit is made of, one line a component."""

    components: tuple[Line, ...]


Kits = Mapping[str, Kit]


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
