"""The parts of an order: what each has, and what is still to become of it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from engine.model import Line, Reservation
from engine.order_records import (
    Aim,
    Declined,
    Order,
    OrderState,
    Part,
    PartState,
    Resourcing,
)
from engine.outcomes import (
    BuyerCapExceeded,
    HoldfastError,
    InsufficientStock,
    InvalidCommand,
    LimitExceeded,
    OrderEnded,
    ShortLine,
)
from engine.wishes import SUBSTITUTE

_COULD_NOT: Final = "it could not fulfil its part"


def as_held(part: Part, found: Reservation) -> Part:
    """Return a part with what its reservation says; what is asked of it stays known."""
    is_plain = not (part.asked or part.substitutes or found.stands_for)
    decided = [sku for sku in part.proposed if sku not in found.proposed]
    declined = {line.sku for line in found.missing}
    return msgspec.structs.replace(
        part,
        lines=found.lines,
        asked=() if is_plain else part.asks,
        stands_for=found.stands_for,
        proposed=found.proposed,
        backordered=found.backordered,
        promised=found.promised,
        missing=found.missing,
        accepted=(*part.accepted, *(x for x in decided if x not in declined)),
    )


def lost_part(order: Order, parts: Sequence[Part]) -> Part | None:
    """Return a part that was ended since the order was held; None if there is none.

    `parts` are those of the order as they are now.
    """
    for part, before in zip(parts, order.parts, strict=True):
        if before.state.is_open and not part.state.is_open:
            return part
    return None


def declined_in(order: Order, parts: Sequence[Part], reservation: str = "") -> dict[int, set[str]]:
    """Return the SKUs whose substitutes were declined by parts' own ids, by the parts' numbers.

    A part of which nothing is left then is released, which alone does not tell why: that of
    `reservation` was released so.
    """
    found = {}
    for part, before in zip(parts, order.parts, strict=True):
        # An accept, or a decline of something else, may have written it into the record by now.
        skus = {line.sku for line in part.missing}
        if part.state is PartState.RELEASED and part.reservation == reservation:
            skus = set(before.proposed)
        if before.state.is_open and skus:
            found[part.number] = skus
    return found


def without_declined(
    order: Order, parts: Sequence[Part], declined: Mapping[int, Collection[str]], key: str = ""
) -> Order:
    """Return an undecided order that is to do without what stands for SKUs in some of its parts.

    Those parts are dropped whole, and what they were to serve is planned anew. `declined` has the
    SKUs by the parts' numbers. A part that was ended by its own id is for the decision to find.
    """
    declines, kept = list(order.plan.declines), []
    for part, before in zip(parts, order.parts, strict=True):
        skus = declined.get(part.number, ())
        for sku in sorted(skus):
            stood = stand_ins(sku, before, part)
            declines += [Declined(key, sku, stand_in) for stand_in in stood or ("",)]
        kept.append(
            msgspec.structs.replace(part, aim=Aim.DROP)
            if skus
            else msgspec.structs.replace(part, state=before.state)
        )
    again = with_declines(with_parts(order, kept), declines)
    return msgspec.structs.replace(again, state=OrderState.PLACING, settled=False, reason="")


def with_declines(order: Order, declines: Sequence[Declined]) -> Order:
    """Return an order of which just these stand-ins were declined."""
    plan = msgspec.structs.replace(
        order.plan,
        declined=tuple(dict.fromkeys(one.sku for one in declines)),
        declines=tuple(declines),
    )
    return msgspec.structs.replace(order, plan=plan)


def stand_ins(sku: str, *parts: Part) -> tuple[str, ...]:
    """Return what stands for a SKU in some parts."""
    found = [
        one.sku
        for part in parts
        for one in part.stands_for
        if one.asked == sku and one.kind == SUBSTITUTE
    ]
    return tuple(dict.fromkeys(found))


def proposals(order: Order) -> dict[str, set[str]]:
    """Return what was proposed to stand for each SKU, in any part so far."""
    found: dict[str, set[str]] = {}
    for part in order.parts:
        for sku in part.proposed:
            found.setdefault(sku, set()).update(stand_ins(sku, part))
    return found


def came_since(part: Part, seen: Mapping[str, Collection[str]]) -> set[str]:
    """Return for which SKUs a part proposes something that was not among what was `seen`."""
    if not (part.state.is_open and part.counts):
        return set()
    return {
        sku
        for sku in part.proposed
        if sku not in seen or not set(stand_ins(sku, part)).issubset(seen[sku])
    }


def picked_units(order: Order) -> dict[tuple[str, str], int]:
    """Return what parts brought that were picked by their own ids, by location and SKU.

    Of an order that is not decided: what left the shelf counts, and is not planned again.
    """
    units: dict[tuple[str, str], int] = {}
    for part in order.parts:
        if part.counts and part.state is PartState.COMMITTED:
            for line in part.brings:
                at = (part.location, line.sku)
                units[at] = units.get(at, 0) + line.quantity
    return units


def covers(order: Order) -> bool:
    """Say whether the parts of an undecided order are to serve all that it asks for."""
    units: dict[str, int] = {}
    for wanted in order.body.lines:
        units[wanted.sku] = units.get(wanted.sku, 0) + wanted.quantity
    for part in order.parts:
        if part.state.is_open and part.aim is not Aim.DROP:
            for line in part.asks:
                units[line.sku] = units.get(line.sku, 0) - line.quantity
    for (_, sku), quantity in picked_units(order).items():
        units[sku] = units.get(sku, 0) - quantity
    return all(left <= 0 for left in units.values())


def still_to_do(order: Order, parts: Sequence[Part]) -> list[Part]:
    """Return an order's parts as they are now, to be in the states that the record has them in.

    So whoever carries the record out does all that there is to do, and the decision sees what was
    ended since.
    """
    return [
        msgspec.structs.replace(part, state=before.state)
        for part, before in zip(parts, order.parts, strict=True)
    ]


def may_change(part: Part) -> bool:
    """Say whether a part's reservation may have come to hold something else by itself."""
    return bool(part.proposed or part.backordered)


def dropping(part: Part) -> Part:
    """Return a part that is to be given back, if it is not over yet."""
    return msgspec.structs.replace(part, aim=Aim.DROP) if part.state.is_open else part


def without_stand_ins(order: Order, move: Resourcing) -> Order:
    """Return an order as it was before a re-sourcing that came to nothing."""
    parts = tuple(dropping(p) if p.number >= move.first else p for p in order.parts)
    plan = msgspec.structs.replace(order.plan, parts=parts, resourcings=order.plan.resourcings[:-1])
    return msgspec.structs.replace(order, plan=plan)


def next_number(parts: Sequence[Part]) -> int:
    """Return a number that no part ever had: a part's key is made of it."""
    return max((part.number for part in parts), default=0) + 1


def without_aim(part: Part, state: PartState) -> Part:
    """Return a part that came to its end; that it was dropped stays known."""
    aim = part.aim if part.aim is Aim.DROP else Aim.NONE
    return msgspec.structs.replace(part, state=state, aim=aim)


def with_parts(order: Order, parts: Iterable[Part]) -> Order:
    """Return an order with other parts."""
    plan = msgspec.structs.replace(order.plan, parts=tuple(parts))
    return msgspec.structs.replace(order, plan=plan)


def resourcing_under(order: Order, key: str) -> Resourcing | None:
    """Return the re-sourcing that was asked for under a key."""
    return next((one for one in order.plan.resourcings if one.key == key), None)


def places_that_failed(order: Order) -> dict[str, str]:
    """Return the locations that could not fulfil their parts, and that they could not."""
    return {one.location: _COULD_NOT for one in order.plan.resourcings}


def places_left_out(order: Order, move: Resourcing) -> dict[str, str]:
    """Return the locations that nothing may come from, and why."""
    ruled_out = dict.fromkeys(move.without, "it was ruled out")
    return ruled_out | places_that_failed(order) | {move.location: _COULD_NOT}


def open_proposals(order: Order, skus: Collection[str]) -> dict[int, set[str]]:
    """Return of which of `skus` something is proposed, by the numbers of the open parts.

    None are all of them. What was declined by a part's own id, and nothing came of it yet, is among
    them.
    """
    found = {}
    for part in order.parts:
        proposed = {*part.proposed, *(line.sku for line in part.missing)}
        if part.state.is_open and part.counts and (wanted := proposed & set(skus or proposed)):
            found[part.number] = wanted
    return found


def check_proposed(order: Order, skus: Sequence[str]) -> None:
    """Take SKUs of which something was proposed once, if it was decided since. InvalidCommand."""
    known = {
        sku
        for part in order.parts
        if part.counts
        for sku in (*part.proposed, *part.accepted, *(line.sku for line in part.missing))
    }
    for i, sku in enumerate(skus):
        if sku not in known:
            raise InvalidCommand(f"skus[{i}]", "nothing was proposed for it")
    if not known:
        raise InvalidCommand("skus", "nothing was proposed for this order")


def check_held(due: Sequence[Part], picks: Sequence[Line]) -> None:
    """Take picks of what the part holds only. Raises InvalidCommand."""
    held: dict[str, int] = {}
    for part in due:
        for line in part.lines:
            held[line.sku] = held.get(line.sku, 0) + line.quantity
    seen = set()
    for i, pick in enumerate(picks):
        if pick.sku in seen or pick.sku not in held:
            raise InvalidCommand(f"lines[{i}].sku", "is no line of this part, or was named before")
        if pick.quantity > held[pick.sku]:
            raise InvalidCommand(
                f"lines[{i}].quantity", f"the part holds {held[pick.sku]}, not {pick.quantity}"
            )
        seen.add(pick.sku)


def ended(order: Order) -> OrderEnded:
    """Return the refusal that names the end that an order came to."""
    return OrderEnded(
        order.id, state=order.state, ended_at_ms=order.ended_at_ms, reason=order.reason
    )


def shorts_of(order: Order) -> tuple[ShortLine, ...]:
    """Name the lines of the parts that were refused, where nobody remembers what was there."""
    refused = [part for part in order.parts if part.state is PartState.REFUSED] or order.parts
    return tuple(ShortLine(x.sku, x.quantity, 0) for part in refused for x in part.asks)


def refused_lines(part: Part, refused: HoldfastError) -> tuple[ShortLine, ...]:
    """Return what a part was refused for.

    A row with a cap a buyer has nothing for an order that names none, nor for one whose buyer has
    too many claims; which row is not said.
    """
    if isinstance(refused, InsufficientStock | BuyerCapExceeded):
        return refused.lines
    is_of_buyer = isinstance(refused, InvalidCommand) or (
        isinstance(refused, LimitExceeded) and refused.field == "buyer"
    )
    limited_by = "buyer" if is_of_buyer else "stock"
    return tuple(ShortLine(x.sku, x.quantity, 0, limited_by=limited_by) for x in part.lines)
