"""What a reserve asks for beyond units of rows: lines that others may stand for, and kits.

The rules and kits that matter are turned into candidates here, and travel with the command;
`lua/promise.lua` chooses among them by what there is, and the reservation records what it took. So
nothing that happens to a reservation later on needs the rules again.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

from engine.kits import Kits
from engine.limits import MAX_MIXED_UNITS, MAX_WISH_ROWS
from engine.model import Line, StandsFor
from engine.outcomes import InvalidCommand, LimitExceeded
from engine.substitutes import Alternative, Choice, Choices, check_alternatives


class Substitution(StrEnum):
    """Whether other SKUs may stand for a line that has run short."""

    NONE = "none"
    ALLOWED = "allowed"
    APPROVE = "approve"
    """They may, once somebody has accepted them."""


class Fill(StrEnum):
    """How the SKUs that stand for a line may do so."""

    MIXED = "mixed"
    """Together, and with what there is of the SKU itself."""
    WHOLE = "whole"
    """One SKU for the whole line."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """Units of one SKU, or of what may stand for it.

    `alternatives` take the place of the merchant's rules where there are any; the first comes
    first, whatever priority it has. What is `declined` may not stand for it whatever they say. With
    `is_decided` only what nobody has to accept may.
    """

    sku: str
    quantity: int
    substitutes: Substitution = Substitution.NONE
    fill: Fill = Fill.MIXED
    alternatives: tuple[Alternative, ...] = ()
    is_decided: bool = False
    declined: tuple[str, ...] = ()


class Asked(NamedTuple):
    """What a command of `lua/promise.lua` says: the rows that it may touch, and the wishes."""

    skus: tuple[str, ...]
    wishes: list[tuple[Any, ...]]
    mixed_units: int
    """Units that several SKUs may serve together: the script looks at each number up to that."""


OWN: Final = ""
KIT: Final = "kit"
SUBSTITUTE: Final = "substitute"
"""What a candidate is to the SKU that is asked for."""


def summed_wishes(lines: Sequence[Line | Wish]) -> list[Wish]:
    """Add up the lines of one SKU, in the order of their first appearance.

    Raises InvalidCommand where they do not say the same of substitutes.
    """
    found: dict[str, Wish] = {}
    for i, line in enumerate(lines):
        wish = Wish(sku=line.sku, quantity=line.quantity) if isinstance(line, Line) else line
        earlier = found.get(wish.sku)
        if earlier is not None:
            wish = msgspec.structs.replace(wish, quantity=wish.quantity + earlier.quantity)
            if msgspec.structs.replace(earlier, quantity=wish.quantity) != wish:
                raise InvalidCommand(
                    f"lines[{i}].substitutes", "must be the same in all lines of one SKU"
                )
        found[wish.sku] = wish
    return list(found.values())


def check_wishes(lines: Sequence[Line | Wish]) -> None:
    """Check what wishes say beyond SKUs and quantities. Raises InvalidCommand."""
    mixed_units = 0
    for i, wish in enumerate(lines):
        if isinstance(wish, Line):
            continue
        if wish.alternatives:
            if wish.substitutes is Substitution.NONE:
                raise InvalidCommand(
                    f"lines[{i}].substitutes", "must be allowed or approve where SKUs are named"
                )
            try:
                check_alternatives(wish.sku, wish.alternatives)
            except InvalidCommand as error:
                raise InvalidCommand(f"lines[{i}].{error.field}", error.remedy) from error
        mixed_units += _mixed_units(wish)
        if mixed_units > MAX_MIXED_UNITS:
            raise InvalidCommand(
                f"lines[{i}].quantity",
                f"must be at most {MAX_MIXED_UNITS} together with the lines before it, of those "
                "that several SKUs may serve: say fill whole, or make it several reservations",
            )


def _mixed_units(wish: Wish) -> int:
    """Return how many units of a wish several SKUs may serve together."""
    is_mixed = wish.substitutes is not Substitution.NONE and wish.fill is Fill.MIXED
    return wish.quantity if is_mixed else 0


def ask(
    wishes: Sequence[Wish],
    choices: Choices,
    kits: Kits,
    location: str,
    held: Sequence[StandsFor] = (),
    proposed: Collection[str] = (),
) -> Asked:
    """Turn wishes into a command's rows and candidates.

    `held` is what stands for them already. A kit is made of what it was held by; and what stands
    for a wish goes on to do so, no more units of it than there are unless the wish says so. Of the
    SKUs that are `proposed` somebody has to accept it yet.
    Raises LimitExceeded, InvalidCommand.
    """
    rows: dict[str, int] = {}

    def row(sku: str) -> int:
        return rows.setdefault(sku, len(rows) + 1)

    # The rows that are asked for come first, so that they are held in the order of the request.
    own = [_own(wish, kits, row, held) for wish in wishes]
    asked = []
    mixed_units = 0
    for wish, first in zip(wishes, own, strict=True):
        parts = {sku for candidate in first for sku, *_ in candidate[-1]}
        others: list[tuple[Any, ...]] = [
            (one.of, one.for_, one.approval, SUBSTITUTE, ((one.sku, row(one.sku), 1),))
            for one in _alternatives(wish, choices, location)
            if one.sku not in parts
            and one.sku not in kits
            and one.sku not in wish.declined
            and not (wish.is_decided and one.approval)
        ]
        parts |= {sku for candidate in others for sku, *_ in candidate[-1]}
        kept = [
            (one.of, one.for_, False, SUBSTITUTE, ((one.sku, row(one.sku), 1),), one.units)
            for one in held
            if (one.asked, one.kind) == (wish.sku, SUBSTITUTE) and one.sku not in parts
        ]
        if (kept and wish.fill is Fill.MIXED) or _mixed_units(wish):
            mixed_units += wish.quantity
        others += kept
        asked.append(
            (
                wish.sku,
                wish.quantity,
                wish.fill is Fill.WHOLE,
                wish.substitutes is Substitution.APPROVE or wish.sku in proposed,
                [*first, *others],
            )
        )
    if len(rows) > MAX_WISH_ROWS:
        raise LimitExceeded("lines", most=MAX_WISH_ROWS)
    if held and mixed_units > MAX_MIXED_UNITS:
        raise InvalidCommand(
            "lines",
            f"ask for more than {MAX_MIXED_UNITS} units in all of what several SKUs may serve: say "
            "fill whole, or make it several reservations",
        )
    return Asked(tuple(rows), asked, mixed_units)


def wish_texts(wishes: Sequence[Line | Wish]) -> Iterator[str]:
    """Return what tells one request from another, for its fingerprint."""
    for wish in wishes:
        yield f"{wish.quantity} {wish.sku}"
        if isinstance(wish, Wish):
            yield f"{wish.substitutes} {wish.fill}"
            for one in wish.alternatives:
                yield msgspec.json.encode(one).decode()
            if wish.is_decided:
                yield "decided"
            if wish.declined:
                yield "declined\0" + "\0".join(wish.declined)


def _own(
    wish: Wish, kits: Kits, row: Callable[[str], int], held: Sequence[StandsFor]
) -> list[tuple[Any, ...]]:
    """Return the SKU itself as a candidate; of a kit its components, too.

    A kit has units of its own only where it was stocked before it became one. They come first.
    """
    own: list[tuple[Any, ...]] = [(1, 1, False, OWN, ((wish.sku, row(wish.sku), 1),))]
    kit = kits.get(wish.sku)
    made_of = [(x.sku, x.of) for x in held if (x.asked, x.kind) == (wish.sku, KIT)]
    if not made_of and kit is not None:
        made_of = [(one.sku, one.quantity) for one in kit.components]
    if made_of:
        parts = tuple((sku, row(sku), units) for sku, units in made_of)
        own.append((1, 1, False, KIT, parts))
    return own


def _alternatives(wish: Wish, choices: Choices, location: str) -> Iterator[Choice]:
    if wish.substitutes is Substitution.NONE:
        return
    if not wish.alternatives:
        for one in choices.get(wish.sku, ()):
            if not one.locations or location in one.locations:
                yield one
        return
    for alternative in check_alternatives(wish.sku, wish.alternatives).alternatives:
        if not alternative.locations or location in alternative.locations:
            yield Choice(
                alternative.sku,
                alternative.of,
                alternative.for_,
                alternative.priority,
                alternative.approval,
                frozenset(alternative.locations),
            )


def needs_rules(wishes: Sequence[Wish]) -> bool:
    """Say whether some wish goes by the merchant's rules."""
    return any(
        wish.substitutes is not Substitution.NONE and not wish.alternatives for wish in wishes
    )


def is_plain(lines: Sequence[Line | Wish], kits: Mapping[str, Any] | None) -> bool:
    """Say whether lines ask for nothing but units of rows."""
    if not kits:
        return all(type(line) is Line for line in lines)
    return all(type(line) is Line and line.sku not in kits for line in lines)
