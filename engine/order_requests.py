"""What an order asks for: its lines, its options, and how they are laid out over locations."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from engine import reservations
from engine.layouts import Coordinates
from engine.limits import MAX_LINES
from engine.model import Line
from engine.order_records import Declined, OrderBody, PassedOver, WantedLine
from engine.outcomes import InvalidCommand, ShortLine
from engine.places import check_coordinates
from engine.sourcing import Sourced, Strategy
from engine.validation import check_batch, check_day, check_id, check_quantity, check_text
from engine.wishes import Substitution, Wish, check_wishes, wish_texts


class Options(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How lines that name no location are sourced; kept with the order, for what comes later.

    `degraded` allows locations whose tills are silent, last. `stock_only`, `channel` and `by` are
    as for a reserve, `buyer` is the digest of who it is for.
    """

    strategy: Strategy = Strategy.FEWEST_SPLITS
    latitude: float | None = None
    longitude: float | None = None
    degraded: bool = True
    stock_only: bool = False
    channel: str = ""
    buyer: str = ""
    by: str = ""

    @property
    def destination(self) -> Coordinates | None:
        """Where the order goes, if that was told."""
        if self.latitude is None or self.longitude is None:
            return None
        return Coordinates(self.latitude, self.longitude)

    def check(self) -> None:
        """Take a destination where the strategy needs one, and a day. Raises InvalidCommand."""
        if self.by:
            check_day("by", self.by)
            if self.stock_only:
                raise InvalidCommand("by", "names a day for what comes: leave stock_only out")
        check_coordinates("sourcing.", self.latitude, self.longitude)
        if self.strategy is Strategy.DISTANCE and self.destination is None:
            raise InvalidCommand(
                "sourcing.latitude", "the strategy `distance` needs the destination's coordinates"
            )


def options_of(body: OrderBody) -> Options:
    """Return how an order is to be sourced and promised."""
    return decode_options(body.options)


def decode_options(text: str) -> Options:
    """Read options as a record has them."""
    return msgspec.json.decode(text, type=Options)


def chosen_options(body: OrderBody, options: Options | None) -> Options:
    """Return how an order is sourced anew: it goes where it went before unless that is told."""
    own = options_of(body)
    if options is None:
        return own
    if options.destination is None and options.latitude is None and options.longitude is None:
        options = msgspec.structs.replace(options, latitude=own.latitude, longitude=own.longitude)
    options.check()
    return msgspec.structs.replace(
        options, stock_only=own.stock_only, channel=own.channel, buyer=own.buyer, by=own.by
    )


def may_be_substituted(line: WantedLine) -> bool:
    """Say whether others may stand for a line, be it after a decision."""
    return line.substitutes is not Substitution.NONE


def substitutable(body: OrderBody, *, is_decided: bool) -> list[str]:
    """Return the SKUs that others may stand for: of a decided order without asking anybody."""
    allowed = (
        (Substitution.ALLOWED,) if is_decided else (Substitution.ALLOWED, Substitution.APPROVE)
    )
    return list(dict.fromkeys(x.sku for x in body.lines if x.substitutes in allowed))


def substituted(
    body: OrderBody, location: str, lines: Sequence[Line], sourced: Sourced
) -> tuple[str, ...]:
    """Return the SKUs of a part that others may stand for: where no line names it, by the plan."""
    named = {x.sku for x in body.lines if x.location == location and may_be_substituted(x)}
    return tuple(x.sku for x in lines if x.sku in named or x.sku in sourced.substituted)


def is_firm(body: OrderBody, location: str, sourced: Sourced) -> bool:
    """Say whether a part is to have units of the shelf alone, though others could wait there.

    What a line asks for by the location's name may wait there in any case.
    """
    return any(one.is_firm for one in sourced.sources if one.location == location) and not any(
        line.location == location for line in body.lines
    )


def wish_of(
    body: OrderBody, line: Line, *, is_decided: bool, declines: Sequence[Declined] = ()
) -> Wish:
    """Return units of a SKU that others may stand for, as the order's line says how.

    Of those others none may that somebody declined for it.
    """
    wanted = next(one for one in body.lines if one.sku == line.sku)
    wish = _without_declined(wanted.wish, declines)
    return msgspec.structs.replace(wish, quantity=line.quantity, is_decided=is_decided)


def _without_declined(wish: Wish, declines: Sequence[Declined]) -> Wish:
    declined = tuple(dict.fromkeys(one.stand_in for one in declines if one.sku == wish.sku))
    if "" in declined:
        return Wish(sku=wish.sku, quantity=wish.quantity)
    return msgspec.structs.replace(wish, declined=declined)


def explained(sourced: Sourced, substituted: Sequence[str]) -> Sourced:
    """Say of each location for which lines others may stand there, and why."""
    sources = []
    for one in sourced.sources:
        skus = [line.sku for line in one.lines if line.sku in substituted]
        told = f"; others may stand for {', '.join(skus)}, of which there is too little"
        sources.append(msgspec.structs.replace(one, why=one.why + told) if skus else one)
    return msgspec.structs.replace(
        sourced, sources=tuple(sources), substituted=frozenset(substituted)
    )


def told_apart(line: WantedLine) -> str:
    """Return what tells a line from another, for the order's fingerprint."""
    return f"{line.quantity} {line.sku}\0{line.location}{terms_of(line)}"


def terms_of(line: WantedLine) -> str:
    """Return what a line says of substitutes; nothing of a plain one."""
    if line.wish == Wish(sku=line.sku, quantity=line.quantity):
        return ""
    return "\0".join(["", *list(wish_texts([line.wish]))[1:]])


def named_lines(body: OrderBody, declines: Sequence[Declined] = ()) -> dict[str, list[Wish]]:
    """Return what lines ask for of the locations that they name."""
    named: dict[str, list[Wish]] = {}
    for line in body.lines:
        if line.location:
            named.setdefault(line.location, []).append(_without_declined(line.wish, declines))
    return named


def without_places(body: OrderBody, places: Collection[str]) -> OrderBody:
    """Return what is asked for where some locations cannot: lines that name one name none."""
    if not places:
        return body
    lines = [
        msgspec.structs.replace(line, location="") if line.location in places else line
        for line in body.lines
    ]
    return msgspec.structs.replace(body, lines=summed_lines(lines))


def without_units(body: OrderBody, picked: Mapping[tuple[str, str], int]) -> OrderBody:
    """Return what is asked for beside units that left the shelves, by location and SKU.

    They serve lines that name their location first, then those that name none.
    """
    if not picked:
        return body
    left = [line.quantity for line in body.lines]
    for (location, sku), units in picked.items():
        mine = [i for i, line in enumerate(body.lines) if line.sku == sku]
        mine.sort(key=lambda i: (body.lines[i].location != location, bool(body.lines[i].location)))
        rest = units
        for i in mine:
            served = min(rest, left[i])
            left[i] -= served
            rest -= served
    lines = [
        msgspec.structs.replace(line, quantity=units)
        for line, units in zip(body.lines, left, strict=True)
        if units
    ]
    return msgspec.structs.replace(body, lines=tuple(lines))


def free_lines(body: OrderBody) -> list[Line]:
    """Return the lines that sourcing finds a location for, one a SKU."""
    return [Line(line.sku, line.quantity) for line in body.lines if not line.location]


def summed_lines(lines: Sequence[WantedLine]) -> tuple[WantedLine, ...]:
    """Add up the lines of one SKU and location, in the order of their first appearance."""
    found: dict[tuple[str, str], WantedLine] = {}
    for line in lines:
        earlier = found.get((line.sku, line.location))
        units = line.quantity + (0 if earlier is None else earlier.quantity)
        found[line.sku, line.location] = msgspec.structs.replace(line, quantity=units)
    return tuple(found.values())


def laid_out(
    body: OrderBody, sourced: Sourced
) -> tuple[dict[str, tuple[Line, ...]], dict[str, str]]:
    """Return what each location is to hold, and why it."""
    lines: dict[str, list[Line]] = {}
    why: dict[str, str] = {}
    for wanted in body.lines:
        if wanted.location:
            lines.setdefault(wanted.location, []).append(Line(wanted.sku, wanted.quantity))
            why[wanted.location] = "it was named"
    for one in sourced.sources:
        lines.setdefault(one.location, []).extend(one.lines)
        why[one.location] = "; ".join(filter(None, (why.get(one.location, ""), one.why)))
    return {place: reservations.summed(some) for place, some in lines.items()}, why


def passed_over(sourced: Sourced, wanted: Collection[str]) -> tuple[PassedOver, ...]:
    """Return the locations that sourcing passed over, without those that a line names anyway."""
    return tuple(
        PassedOver(location, why) for location, why in sourced.passed_over if location not in wanted
    )


def check_wanted(lines: Sequence[WantedLine]) -> None:
    """Take up to 200 lines of valid names and quantities. Raises InvalidCommand, LimitExceeded."""
    check_batch("lines", len(lines), MAX_LINES)
    for i, line in enumerate(lines):
        check_id(f"lines[{i}].sku", line.sku)
        check_quantity(f"lines[{i}].quantity", line.quantity)
        if line.location:
            check_text(f"lines[{i}].location", line.location)
    check_wishes([line.wish for line in lines])
    said: dict[str, str] = {}
    for i, line in enumerate(lines):
        if said.setdefault(line.sku, terms_of(line)) != terms_of(line):
            raise InvalidCommand(
                f"lines[{i}].substitutes", "must be the same in all lines of one SKU"
            )


def short_lines(wanted: Iterable[Line], sourced: Sourced) -> tuple[ShortLine, ...]:
    """Name the lines that a plan has too few units for."""
    units = {line.sku: line.quantity for line in wanted}
    return tuple(
        ShortLine(line.sku, units[line.sku], units[line.sku] - line.quantity)
        for line in sourced.missing
    )
