"""Reservations as the store keeps them, decoded; `lua/lib/reservations.lua` writes them."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, Self

import msgspec

from engine.keys import PartitionKeys
from engine.model import (
    Line,
    Promised,
    Reservation,
    ReservationResult,
    ReservationState,
    StandsFor,
)
from engine.outcomes import InvalidCommand, Outcome, StoreFault
from engine.outlook import LATER, Wait
from engine.refusals import refusal
from engine.store import pairs
from engine.trace_context import split_trace

FIELDS: Final = (
    "state",
    "expires_at",
    "body",
    "confirmed_at",
    "ended_at",
    "order_ref",
    "picked",
    "waiting",
)
"""Of the hash, in the order that `from_hash` takes them."""

MAX_RECENT: Final = 50_000
"""Reservations whose lines a process remembers, at some 300 bytes each."""


class FirstAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What a reserve answered, of what an amendment or a decision may have changed since."""

    missing: tuple[Line, ...]
    stands_for: tuple[StandsFor, ...]
    proposed: tuple[str, ...]
    channel: str | None = None
    buyer: str | None = None
    """None where they are what the extras say."""


class Extras(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a promise on a row's terms says of itself; `lua/lib/pledges.lua` lists the elements."""

    channel: str = ""
    backordered: dict[str, int] = {}
    expected: dict[str, str] = {}
    behind: dict[str, str] = {}
    pooled: tuple[str, ...] = ()
    buyer: str = ""
    capped: dict[str, int] = {}
    claimed: dict[str, int] = {}
    stands_for: tuple[StandsFor, ...] = ()
    proposed: tuple[str, ...] = ()
    decided: dict[str, str] = {}
    first: FirstAnswer | None = None

    def waiting(self, places: "dict[str, int] | None" = None) -> "Waiting":
        """Return what waited at first; `places` in the queues of the rows, where they matter."""
        return {
            sku: Wait(
                units,
                0 if places is None else places[sku],
                self.expected.get(sku) or self.behind.get(sku, ""),
                sku in self.expected,
            )
            for sku, units in self.backordered.items()
        }


NO_EXTRAS: Final = Extras()


class Body(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What was promised; only an amendment or a decision changes it.

    `lines` are what is held now. `first_lines` are what was held at first, empty where that is
    still the same. `extras` are of one that was promised on a row's terms. The scripts write no
    element for what is missing at the end.
    """

    merchant: str
    location: str
    actor: str
    fingerprint: str
    ttl_ms: int
    order_ref: str
    lines: tuple[Line, ...]
    missing: tuple[Line, ...]
    created_at_ms: int
    first_lines: tuple[Line, ...] = ()
    extras: Extras | None = None


Waiting = dict[str, Wait]
"""What a reservation waits for, by SKU."""


_decode_body = msgspec.msgpack.Decoder(Body).decode
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Any]).decode
_decode_lines = msgspec.msgpack.Decoder(tuple[Line, ...]).decode
decode_waiting = msgspec.msgpack.Decoder(Waiting).decode


class LinesOf(msgspec.Struct, frozen=True):
    """Which rows a reservation holds units of, and on what terms.

    `channel` is through which it was promised, where that was on terms; `buyer` the digest of whom
    it counts for, over all locations where some of it `is_claimed`.
    """

    merchant: str
    location: str
    skus: tuple[str, ...]
    order_ref: str = ""
    channel: str = ""
    buyer: str = ""
    stands_for: tuple[StandsFor, ...] = ()
    is_claimed: bool = False

    @property
    def has_extras(self) -> bool:
        """True where it was promised on terms, or others stand for what was asked."""
        return bool(self.channel)

    def keys(self, keys: PartitionKeys, reservation: str) -> tuple[str, ...]:
        """Return the keys that an ending declares."""
        return (*self._own_keys(keys, reservation), *self._pledge_keys(keys))

    def _own_keys(self, keys: PartitionKeys, reservation: str) -> tuple[str, ...]:
        return (
            keys.reservation(reservation),
            keys.open_reservations(self.merchant, self.location),
            *self.row_keys(keys),
        )

    def _pledge_keys(self, keys: PartitionKeys) -> list[str]:
        if not self.has_extras:
            return []
        place = (self.merchant, self.location)
        found = [keys.waiting(*place, sku) for sku in self.skus]
        if self.buyer:
            found += [keys.buyer(*place, sku, self.buyer) for sku in self.skus]
        return found

    def row_keys(self, keys: PartitionKeys) -> list[str]:
        """Return the keys of the rows."""
        return [keys.stock(self.merchant, self.location, sku) for sku in self.skus]

    def commit_keys(self, keys: PartitionKeys, reservation: str) -> tuple[str, ...]:
        """Return the keys that a commit declares: it also remembers when units left."""
        return (
            *self._own_keys(keys, reservation),
            *[keys.recent(self.merchant, self.location, sku) for sku in self.skus],
            *self._pledge_keys(keys),
        )


class RecentLines:
    """The lines of reservations made by this process, so that ending one costs no extra read.

    The script that ends a reservation checks that the rows it needs are declared, so a stale
    memory costs a second call, never a wrong one.
    """

    def __init__(self, most: int = MAX_RECENT) -> None:
        """Forget the oldest past `most`."""
        self._most = most
        self._lines: OrderedDict[str, LinesOf] = OrderedDict()

    def keep(self, reservation: Reservation) -> None:
        """Remember a reservation's lines."""
        skus = tuple([line.sku for line in reservation.lines])
        self._lines[reservation.id] = LinesOf(
            reservation.merchant,
            reservation.location,
            skus,
            reservation.order_ref,
            reservation.channel,
            reservation.buyer,
            reservation.stands_for,
            bool(reservation.claimed),
        )
        if len(self._lines) > self._most:
            self._lines.popitem(last=False)

    def get(self, reservation: str) -> LinesOf | None:
        """Return what is remembered."""
        return self._lines.get(reservation)


def packed_body(body: Body) -> bytes:
    """Pack a body byte for byte as the scripts do."""
    elements = msgspec.structs.astuple(body)
    if body.extras is None:
        elements = elements[:-1] if body.first_lines else elements[:-2]
    return _encode(elements)


def amended(body: Body, detail: Sequence[Any]) -> Body:
    """Return a body as an amendment leaves it; `detail` is the operation's, `lua/amend.lua`."""
    extras = msgspec.convert(detail[4], Extras) if len(detail) > 4 else body.extras
    return msgspec.structs.replace(
        body,
        lines=msgspec.convert(detail[1], tuple[Line, ...]),
        first_lines=body.first_lines or body.lines,
        extras=extras,
    )


def told(body: Body, waiting: Waiting) -> list[Any]:
    """Return how a remembered reply ends that tells of a reservation, as msgpack has it.

    The twin is `append_told` in `lua/lib/reservations.lua`.
    """
    extras = body.extras
    if extras is None:
        return [element for line in body.lines for element in (line.sku, line.quantity)]
    told = {name: value for name in _TOLD_EXTRAS if (value := getattr(extras, name))}
    return _decode(_encode([[body.lines, body.missing, told or (), waiting or ()]]))


_TOLD_EXTRAS: Final = ("channel", "buyer", "stands_for", "proposed")


def lines_of(body: bytes) -> LinesOf:
    """Read which rows are held from a reservation's body."""
    decoded = _decode_body(body)
    extras = decoded.extras or NO_EXTRAS
    return LinesOf(
        decoded.merchant,
        decoded.location,
        tuple([line.sku for line in decoded.lines]),
        decoded.order_ref,
        extras.channel,
        extras.buyer,
        extras.stands_for,
        bool(extras.claimed),
    )


def from_reserve(
    reservation: str,
    reply: Sequence[Any],
    *,
    merchant: str,
    location: str,
    lines: Sequence[Line],
    ttl_ms: int,
    order_ref: str,
    actor: str,
) -> Reservation:
    """Make the reservation that a reserve answered with: held, whatever became of it since.

    The answer of a first call tells only what the request does not say itself.
    """
    if reply[0] == Outcome.REPLAYED:
        body = msgspec.convert(reply[1], Body)
        if body.first_lines:
            body = msgspec.structs.replace(body, lines=body.first_lines)
        if body.extras is not None and body.extras.first is not None:
            first = body.extras.first
            extras = msgspec.structs.replace(
                body.extras,
                stands_for=first.stands_for,
                proposed=first.proposed,
                channel=body.extras.channel if first.channel is None else first.channel,
                buyer=body.extras.buyer if first.buyer is None else first.buyer,
            )
            body = msgspec.structs.replace(body, missing=first.missing, extras=extras)
        expires_at_ms = body.created_at_ms + body.ttl_ms
        return _reservation(
            reservation,
            body,
            state=ReservationState.HELD,
            expires_at_ms=expires_at_ms,
            waiting={} if body.extras is None else body.extras.waiting(),
        )
    held = summed(lines)
    missing: tuple[Line, ...] = ()
    extras = Extras()
    if len(reply) > 2:
        held, missing = msgspec.convert(reply[2:4], tuple[tuple[Line, ...], tuple[Line, ...]])
    if len(reply) > 4:
        extras = msgspec.convert(reply[4], Extras)
    return Reservation(
        id=reservation,
        merchant=merchant,
        location=location,
        state=ReservationState.HELD,
        lines=held,
        missing=missing,
        order_ref=order_ref,
        actor=split_trace(actor)[0],
        created_at_ms=reply[1],
        expires_at_ms=reply[1] + ttl_ms,
        channel=extras.channel,
        buyer=extras.buyer,
        **_told(held, extras.waiting()),
        stands_for=extras.stands_for,
        proposed=extras.proposed,
        claimed=extras.claimed,
    )


def summed(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Add up the lines of one SKU, in the order of their first appearance."""
    if len(lines) == 1:
        return (lines[0],)
    units: dict[str, int] = {}
    for line in lines:
        units[line.sku] = units.get(line.sku, 0) + line.quantity
    return tuple([Line(sku, quantity) for sku, quantity in units.items()])


def from_reply(reservation: str, reply: Sequence[Any]) -> Reservation:
    """Make a reservation of what `describe` in the scripts returns."""
    state, expires_at_ms, confirmed_at_ms, ended_at_ms, order_ref, picked, body = reply[1:8]
    return _reservation(
        reservation,
        msgspec.convert(body, Body),
        state=ReservationState(state),
        expires_at_ms=expires_at_ms,
        confirmed_at_ms=confirmed_at_ms,
        ended_at_ms=ended_at_ms,
        order_ref=order_ref,
        picked=msgspec.convert(picked, tuple[Line, ...]),
        waiting=msgspec.convert(reply[8], Waiting) if reply[8:] and reply[8] else {},
    )


def from_hash(reservation: str, fields: Sequence[bytes | None]) -> Reservation | None:
    """Make a reservation of its hash's FIELDS; None where there is no such hash.

    Raises StoreFault where a field is not what the scripts write: someone edited it.
    """
    state, expires_at_ms, body, confirmed_at_ms, ended_at_ms, order_ref, picked, waiting = fields
    if state is None or body is None:
        return None
    try:
        return _reservation(
            reservation,
            _decode_body(body),
            state=ReservationState(state.decode()),
            expires_at_ms=int(expires_at_ms or 0),
            confirmed_at_ms=int(confirmed_at_ms or 0),
            ended_at_ms=int(ended_at_ms or 0),
            order_ref=(order_ref or b"").decode(),
            picked=_decode_lines(picked) if picked else (),
            waiting=decode_waiting(waiting) if waiting else {},
        )
    except (ValueError, msgspec.MsgspecError) as error:
        raise StoreFault("HMGET", f"reservation {reservation} is damaged: {error}") from error


class Queued(msgspec.Struct, frozen=True):
    """A reservation that waits for units of a row; `channel` is the one in whose pool they count.

    It is empty where they count in none.
    """

    reservation: str
    order_ref: str
    channel: str
    wait: Wait


QUEUED_FIELDS: Final = ("body", "order_ref", "waiting")
"""Of the hash, in the order that `queued` takes them."""


def queued(reservation: str, sku: str, fields: Sequence[bytes | None]) -> Queued | None:
    """Make what a reservation waits for of a row of its hash's QUEUED_FIELDS; None for nothing.

    Raises StoreFault as `from_hash` does.
    """
    body, order_ref, waiting = fields
    try:
        wait = decode_waiting(waiting).get(sku) if waiting else None
        if wait is None or body is None:
            return None
        made = _decode_body(body)
    except (ValueError, msgspec.MsgspecError) as error:
        raise StoreFault("HMGET", f"reservation {reservation} is damaged: {error}") from error
    extras = made.extras or NO_EXTRAS
    channel = extras.channel if sku in extras.pooled else ""
    return Queued(reservation, (order_ref or b"").decode() or made.order_ref, channel, wait)


def replied(reservation: str, reply: Sequence[Any], *, key: str = "") -> ReservationResult:
    """Read the reply of a verb on a reservation. Raises its refusal."""
    code = Outcome(reply[0])
    if code not in (Outcome.OK, Outcome.REPLAYED):
        raise refusal(reply, reservation=reservation, key=key)
    return ReservationResult(from_reply(reservation, reply), code is Outcome.REPLAYED)


def created_at(body: bytes) -> int | None:
    """Return when the reservation of a hash's body was made (ms); None where it is damaged."""
    try:
        return _decode_body(body).created_at_ms
    except msgspec.MsgspecError:
        return None


def _told(lines: Sequence[Line], waiting: Waiting | None) -> dict[str, Any]:
    """Return what is told of the units that wait, in the order of the lines."""
    if not waiting:
        return {}
    waits = [(line.sku, waiting[line.sku]) for line in lines if line.sku in waiting]
    return {
        "backordered": tuple([Line(sku, wait.units) for sku, wait in waits]),
        "promised": tuple(
            [
                Promised(sku, wait.day, None if wait.late == LATER else wait.late or wait.day)
                for sku, wait in waits
                if wait.dated
            ]
        ),
    }


def decided(body: Body, detail: Sequence[Any]) -> Body:
    """Return a body as a decision leaves it; `detail` is the operation's, `lua/decide.lua`."""
    lines, missing = msgspec.convert(detail[2:4], tuple[tuple[Line, ...], tuple[Line, ...]])
    return msgspec.structs.replace(
        body,
        lines=lines,
        missing=missing,
        first_lines=body.first_lines or body.lines,
        extras=msgspec.convert(detail[4], Extras),
    )


def _reservation(
    reservation: str,
    body: Body,
    *,
    state: ReservationState,
    expires_at_ms: int,
    confirmed_at_ms: int = 0,
    ended_at_ms: int = 0,
    order_ref: str = "",
    picked: tuple[Line, ...] = (),
    waiting: Waiting | None = None,
) -> Reservation:
    extras = body.extras or NO_EXTRAS
    return Reservation(
        id=reservation,
        merchant=body.merchant,
        location=body.location,
        state=state,
        lines=body.lines,
        missing=body.missing,
        order_ref=order_ref or body.order_ref,
        actor=split_trace(body.actor)[0],
        created_at_ms=body.created_at_ms,
        expires_at_ms=expires_at_ms if state is ReservationState.HELD else None,
        confirmed_at_ms=confirmed_at_ms or None,
        ended_at_ms=ended_at_ms or None,
        picked=picked if state is ReservationState.COMMITTED else None,
        channel=extras.channel,
        buyer=extras.buyer,
        **_told(body.lines, waiting),
        stands_for=extras.stands_for,
        proposed=extras.proposed,
        claimed=extras.claimed,
    )


class Position(NamedTuple):
    """A place in a location's open reservations, ordered as the index is."""

    created_at_ms: int
    id: str

    def text(self) -> str:
        """Return the form that `parse_position` takes."""
        return f"{self.created_at_ms}:{self.id}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `text()`. Raises InvalidCommand."""
        created_at_ms, colon, the_id = text.partition(":")
        if not colon or not created_at_ms.isdecimal() or not created_at_ms.isascii():
            raise InvalidCommand("after", "must be the next_after of the page before")
        return cls(int(created_at_ms), the_id)


def parse_position(text: str | None) -> Position | None:
    """Read where a page starts; None is the beginning."""
    return None if text is None else Position.parse(text)


def positions(flat: Sequence[Any]) -> Iterator[Position]:
    """Read a sorted-set reply with scores."""
    for member, score in pairs(flat):
        yield Position(int(float(score)), member.decode())
