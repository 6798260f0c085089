"""What travels about substitutes and kits."""

from typing import Annotated

import msgspec
from msgspec import Meta

from engine.kits import Kit
from engine.limits import (
    MAX_ALTERNATIVES,
    MAX_BATCH_DEFINITIONS,
    MAX_COMPONENT_UNITS,
    MAX_COMPONENTS,
)
from engine.model import Line
from engine.substitutes import (
    DEFAULT_PRIORITY,
    MAX_PRIORITY,
    MAX_RULE_LOCATIONS,
    Alternative,
    Direction,
    Rules,
)
from gateway.wire import Id, Page, RatioUnits, Request

Priority = Annotated[
    int, Meta(ge=0, le=MAX_PRIORITY, description="The lowest comes first, then the lower SKU.")
]
ComponentUnits = Annotated[int, Meta(ge=1, le=MAX_COMPONENT_UNITS, description="Units in one kit.")]


class AlternativeRequest(Request, frozen=True, kw_only=True):
    """A SKU that may stand for another: `of` units of it for `for` units of that.

    With direction `both` the other stands for it, too, at the inverted ratio. `locations` are where
    that holds, none: everywhere. With `approval` somebody must accept the substitution.
    """

    sku: Id
    of: RatioUnits = 1
    for_: RatioUnits = msgspec.field(default=1, name="for")
    priority: Priority = DEFAULT_PRIORITY
    direction: Direction = Direction.ONE_WAY
    locations: Annotated[tuple[Id, ...], Meta(max_length=MAX_RULE_LOCATIONS)] = ()
    approval: bool = False


class SubstitutesRequest(Request, frozen=True, kw_only=True):
    """All that may stand for a SKU, in place of what was said before."""

    alternatives: Annotated[
        list[AlternativeRequest], Meta(min_length=1, max_length=MAX_ALTERNATIVES)
    ]


class SubstitutesOfRequest(SubstitutesRequest, frozen=True, kw_only=True):
    """All that may stand for the SKU that is named."""

    sku: Id


class SubstitutesImportRequest(Request, frozen=True, kw_only=True):
    """What may stand for many SKUs: all of it is taken, or nothing."""

    substitutes: Annotated[
        list[SubstitutesOfRequest], Meta(min_length=1, max_length=MAX_BATCH_DEFINITIONS)
    ]


class AlternativeAnswer(msgspec.Struct, frozen=True):
    """A SKU that may stand for another: `of` units of it for `for` units of that."""

    sku: str
    of: int
    for_: int = msgspec.field(name="for")
    priority: int
    direction: Direction
    locations: tuple[str, ...]
    approval: bool


class Substitutes(msgspec.Struct, frozen=True):
    """What was said to stand for a SKU; ratios are in their lowest terms."""

    sku: str
    alternatives: list[AlternativeAnswer]


class SubstitutesPage(Page[Substitutes], frozen=True):
    """Rules of a merchant by the SKU that they are about, in byte order."""


class ComponentRequest(Request, frozen=True, kw_only=True):
    """Units of a SKU in one kit."""

    sku: Id
    quantity: ComponentUnits


class KitRequest(Request, frozen=True, kw_only=True):
    """What one unit of a kit is made of, in place of what was said before."""

    components: Annotated[list[ComponentRequest], Meta(min_length=1, max_length=MAX_COMPONENTS)]


class KitOfRequest(KitRequest, frozen=True, kw_only=True):
    """What one unit of the kit that is named is made of."""

    sku: Id


class KitsImportRequest(Request, frozen=True, kw_only=True):
    """What many kits are made of: all of it is taken, or nothing."""

    kits: Annotated[list[KitOfRequest], Meta(min_length=1, max_length=MAX_BATCH_DEFINITIONS)]


class Component(msgspec.Struct, frozen=True):
    """Units of a SKU in one kit."""

    sku: str
    quantity: int


class KitAnswer(msgspec.Struct, frozen=True):
    """A kit and what one unit of it is made of."""

    sku: str
    components: list[Component]


class KitPage(Page[KitAnswer], frozen=True):
    """Kits of a merchant by SKU, in byte order."""


class Imported(msgspec.Struct, frozen=True):
    """How many SKUs' definitions were taken; those that were said before are among them."""

    imported: int


def alternatives(body: SubstitutesRequest) -> list[Alternative]:
    """Make the engine's alternatives of a request's."""
    return [
        Alternative(
            sku=one.sku,
            of=one.of,
            for_=one.for_,
            priority=one.priority,
            direction=one.direction,
            locations=one.locations,
            approval=one.approval,
        )
        for one in body.alternatives
    ]


def components(body: KitRequest) -> list[Line]:
    """Make the engine's components of a request's."""
    return [Line(one.sku, one.quantity) for one in body.components]


def substitutes(sku: str, rules: Rules) -> Substitutes:
    """Make the answer of a SKU's rules."""
    return Substitutes(
        sku,
        [
            AlternativeAnswer(
                one.sku,
                one.of,
                one.for_,
                one.priority,
                one.direction,
                one.locations,
                one.approval,
            )
            for one in rules.alternatives
        ],
    )


def kit(sku: str, found: Kit) -> KitAnswer:
    """Make the answer of a kit."""
    return KitAnswer(sku, [Component(one.sku, one.quantity) for one in found.components])
