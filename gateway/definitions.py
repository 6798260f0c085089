"""What a merchant says of its SKUs: which stand for which, and what kits are made of."""

from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

import msgspec

from engine.definitions import Definitions
from engine.inventory import Inventory
from engine.kits import Kit, Kits, check_kit
from engine.outcomes import HoldfastError, InvalidCommand, KitNotFound, SubstitutesNotFound
from engine.substitutes import Choices, Rules, check_alternatives
from gateway import definition_wire as wire
from gateway.calls import Answer, Call
from gateway.paging import limit_of, page_answer, place_of

Definition = TypeVar("Definition", bound=msgspec.Struct)
Known = TypeVar("Known")
Body = TypeVar("Body", bound=msgspec.Struct)
Shown = TypeVar("Shown", bound=msgspec.Struct)


class Kind(Generic[Definition, Known, Body, Shown]):
    """The operations of one kind of definition, of which a SKU has one at most.

    `name` is its name in paths and bodies, `of` finds where the engine keeps it; `check` makes one
    of a SKU and a request, `show` an answer of it, and `missing` is raised of a SKU that has none.
    """

    def __init__(
        self,
        name: str,
        *,
        of: Callable[[Inventory], Definitions[Definition, Known]],
        check: Callable[[str, Body], Definition],
        show: Callable[[str, Definition], Shown],
        page: Callable[[list[Shown], bool, str | None], msgspec.Struct],
        missing: Callable[[str], HoldfastError],
    ) -> None:
        """Take what is the kind's own."""
        self._name = name
        self._of = of
        self._check = check
        self._show = show
        self._page = page
        self._missing = missing

    async def list(self, call: Call, _body: None) -> Answer:
        """List a merchant's by SKU."""
        listing = (self._name, call.merchant)
        page = await self._of(call.inventory).list(
            call.merchant, after=place_of(call, listing), limit=limit_of(call)
        )
        return page_answer(self._page, listing, page, lambda item: self._show(*item))

    async def read(self, call: Call, _body: None) -> Answer:
        """Read a SKU's."""
        sku = call.path["sku"]
        return Answer(200, self._show(sku, await self._found(call, sku)))

    async def write(self, call: Call, body: Body) -> Answer:
        """Say it of a SKU, in place of what was said before."""
        sku = call.path["sku"]
        said = self._check(sku, body)
        await self._of(call.inventory).write(call.merchant, {sku: said}, actor=call.actor)
        return Answer(200, self._show(sku, said))

    async def delete(self, call: Call, _body: None) -> Answer:
        """Take a SKU's away."""
        sku = call.path["sku"]
        await self._found(call, sku)
        await self._of(call.inventory).write(call.merchant, {sku: None}, actor=call.actor)
        return Answer(204, None)

    async def take(self, call: Call, bodies: Sequence[tuple[str, Body]]) -> Answer:
        """Say it of many SKUs, all or none. Raises InvalidCommand, which names the first."""
        changes: dict[str, Definition | None] = {}
        for i, (sku, body) in enumerate(bodies):
            field = f"{self._name}[{i}]"
            if sku in changes:
                raise InvalidCommand(f"{field}.sku", "stands there twice: say all of it once")
            try:
                changes[sku] = self._check(sku, body)
            except InvalidCommand as error:
                raise InvalidCommand(f"{field}.{error.field}", error.remedy) from error
        await self._of(call.inventory).write(call.merchant, changes, actor=call.actor)
        return Answer(200, wire.Imported(len(changes)))

    async def _found(self, call: Call, sku: str) -> Definition:
        found = await self._of(call.inventory).read(call.merchant, sku)
        if found is None:
            raise self._missing(sku)
        return found


SUBSTITUTES: Final = Kind[Rules, Choices, wire.SubstitutesRequest, wire.Substitutes](
    "substitutes",
    of=lambda inventory: inventory.substitutes,
    check=lambda sku, body: check_alternatives(sku, wire.alternatives(body)),
    show=wire.substitutes,
    page=wire.SubstitutesPage,
    missing=SubstitutesNotFound,
)

KITS: Final = Kind[Kit, Kits, wire.KitRequest, wire.KitAnswer](
    "kits",
    of=lambda inventory: inventory.kits,
    check=lambda sku, body: check_kit(sku, wire.components(body)),
    show=wire.kit,
    page=wire.KitPage,
    missing=KitNotFound,
)


async def import_substitutes(call: Call, body: wire.SubstitutesImportRequest) -> Answer:
    """Say what may stand for many SKUs, all or none."""
    return await SUBSTITUTES.take(call, [(one.sku, one) for one in body.substitutes])


async def import_kits(call: Call, body: wire.KitsImportRequest) -> Answer:
    """Say what many kits are made of, all or none."""
    return await KITS.take(call, [(one.sku, one) for one in body.kits])
