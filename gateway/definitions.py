"""What a merchant says of its SKUs: which stand for which, and what kits are made of."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from engine.kits import check_kit
from engine.outcomes import InvalidCommand, KitNotFound, SubstitutesNotFound
from engine.substitutes import check_alternatives
from gateway import definition_wire as wire
from gateway.calls import Answer, Call
from gateway.paging import cursor, limit_of, place_of

Body = TypeVar("Body", bound=wire.SubstitutesOfRequest | wire.KitOfRequest)
Checked = TypeVar("Checked", bound=msgspec.Struct)


async def list_substitutes(call: Call, _body: None) -> Answer:
    """List a merchant's rules by SKU."""
    listing = ("substitutes", call.merchant)
    page = await call.inventory.substitutes.list(
        call.merchant, after=place_of(call, listing), limit=limit_of(call)
    )
    following = cursor(listing, page.next_after)
    data = [wire.substitutes(sku, rules) for sku, rules in page.items]
    return Answer(200, wire.SubstitutesPage(data, following is not None, following))


async def read_substitutes(call: Call, _body: None) -> Answer:
    """Read what may stand for a SKU."""
    sku = call.path["sku"]
    found = await call.inventory.substitutes.read(call.merchant, sku)
    if found is None:
        raise SubstitutesNotFound(sku)
    return Answer(200, wire.substitutes(sku, found))


async def write_substitutes(call: Call, body: wire.SubstitutesRequest) -> Answer:
    """Say what may stand for a SKU."""
    sku = call.path["sku"]
    rules = check_alternatives(sku, wire.alternatives(body))
    await call.inventory.substitutes.write(call.merchant, {sku: rules}, actor=call.actor)
    return Answer(200, wire.substitutes(sku, rules))


async def delete_substitutes(call: Call, _body: None) -> Answer:
    """Let nothing stand for a SKU any more."""
    sku, substitutes = call.path["sku"], call.inventory.substitutes
    if await substitutes.read(call.merchant, sku) is None:
        raise SubstitutesNotFound(sku)
    await substitutes.write(call.merchant, {sku: None}, actor=call.actor)
    return Answer(204, None)


async def import_substitutes(call: Call, body: wire.SubstitutesImportRequest) -> Answer:
    """Say what may stand for many SKUs, all or none."""
    changes = _checked(
        "substitutes",
        body.substitutes,
        lambda one: check_alternatives(one.sku, wire.alternatives(one)),
    )
    await call.inventory.substitutes.write(call.merchant, changes, actor=call.actor)
    return Answer(200, wire.Imported(len(changes)))


async def list_kits(call: Call, _body: None) -> Answer:
    """List a merchant's kits by SKU."""
    listing = ("kits", call.merchant)
    page = await call.inventory.kits.list(
        call.merchant, after=place_of(call, listing), limit=limit_of(call)
    )
    following = cursor(listing, page.next_after)
    data = [wire.kit(sku, found) for sku, found in page.items]
    return Answer(200, wire.KitPage(data, following is not None, following))


async def read_kit(call: Call, _body: None) -> Answer:
    """Read what a kit is made of."""
    sku = call.path["sku"]
    found = await call.inventory.kits.read(call.merchant, sku)
    if found is None:
        raise KitNotFound(sku)
    return Answer(200, wire.kit(sku, found))


async def write_kit(call: Call, body: wire.KitRequest) -> Answer:
    """Say what a kit is made of."""
    sku = call.path["sku"]
    kit = check_kit(sku, wire.components(body))
    await call.inventory.kits.write(call.merchant, {sku: kit}, actor=call.actor)
    return Answer(200, wire.kit(sku, kit))


async def delete_kit(call: Call, _body: None) -> Answer:
    """Take a kit's definition away."""
    sku, kits = call.path["sku"], call.inventory.kits
    if await kits.read(call.merchant, sku) is None:
        raise KitNotFound(sku)
    await kits.write(call.merchant, {sku: None}, actor=call.actor)
    return Answer(204, None)


async def import_kits(call: Call, body: wire.KitsImportRequest) -> Answer:
    """Say what many kits are made of, all or none."""
    changes = _checked("kits", body.kits, lambda one: check_kit(one.sku, wire.components(one)))
    await call.inventory.kits.write(call.merchant, changes, actor=call.actor)
    return Answer(200, wire.Imported(len(changes)))


def _checked(
    field: str, bodies: Sequence[Body], check: Callable[[Body], Checked]
) -> dict[str, Checked | None]:
    """Check each by itself. Raises InvalidCommand, which names the first that is off."""
    found: dict[str, Checked | None] = {}
    for i, body in enumerate(bodies):
        if body.sku in found:
            raise InvalidCommand(f"{field}[{i}].sku", "stands there twice: say all of it once")
        try:
            found[body.sku] = check(body)
        except InvalidCommand as error:
            raise InvalidCommand(f"{field}[{i}].{error.field}", error.remedy) from error
    return found
