"""The calls about substitutes and kits as data, like those of `holdfast.calls`."""

from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from engine.substitutes import DEFAULT_PRIORITY, Direction
from holdfast.calls import Call, Line, Page, page_query, path_of

Said = TypeVar("Said")


class Alternative(msgspec.Struct, frozen=True, kw_only=True):
    """A SKU that may stand for another: `of` units of it for `for_` units of that."""

    sku: str
    of: int = 1
    for_: int = msgspec.field(default=1, name="for")
    priority: int = DEFAULT_PRIORITY
    direction: Direction = Direction.ONE_WAY
    locations: tuple[str, ...] = ()
    approval: bool = False


class Substitutes(msgspec.Struct, frozen=True):
    """What may stand for a SKU."""

    sku: str
    alternatives: tuple[Alternative, ...]


class Kit(msgspec.Struct, frozen=True):
    """What one unit of a kit is made of."""

    sku: str
    components: tuple[Line, ...]


class Imported(msgspec.Struct, frozen=True):
    """How many SKUs' definitions were taken."""

    imported: int


_SUBSTITUTES_PAGE: Final = msgspec.json.Decoder(Page[Substitutes])
_KIT_PAGE: Final = msgspec.json.Decoder(Page[Kit])
_IMPORTED: Final = msgspec.json.Decoder(Imported)
_NOTHING: Final = msgspec.json.Decoder(None)


def substitutes_page(
    merchant: str, *, limit: int | None = None, cursor: str | None = None
) -> Call[Page[Substitutes]]:
    """List a merchant's rules."""
    return _page(merchant, "substitutes", _SUBSTITUTES_PAGE, limit, cursor)


def import_substitutes(merchant: str, said: Sequence[Substitutes]) -> Call[Imported]:
    """Say what may stand for up to 1,000 SKUs, all or none."""
    return _import(merchant, "substitutes", said)


def kits_page(
    merchant: str, *, limit: int | None = None, cursor: str | None = None
) -> Call[Page[Kit]]:
    """List a merchant's kits."""
    return _page(merchant, "kits", _KIT_PAGE, limit, cursor)


def import_kits(merchant: str, said: Sequence[Kit]) -> Call[Imported]:
    """Say what up to 1,000 kits are made of, all or none."""
    return _import(merchant, "kits", said)


def remove(merchant: str, what: str, sku: str) -> Call[None]:
    """Take a SKU's definition away; `what` is `substitutes` or `kits`."""
    return Call(
        method="DELETE", path=path_of("v1", "merchants", merchant, what, sku), decoder=_NOTHING
    )


def _page(
    merchant: str,
    what: str,
    decoder: msgspec.json.Decoder[Page[Said]],
    limit: int | None,
    cursor: str | None,
) -> Call[Page[Said]]:
    return Call(
        method="GET",
        path=path_of("v1", "merchants", merchant, what),
        decoder=decoder,
        query=page_query(limit, cursor),
    )


def _import(merchant: str, what: str, said: Sequence[Substitutes | Kit]) -> Call[Imported]:
    return Call(
        method="POST",
        path=path_of("v1", "merchants", merchant, what),
        decoder=_IMPORTED,
        body=msgspec.json.encode({what: list(said)}),
    )
