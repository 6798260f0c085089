"""Reservations as the store keeps them, decoded; `lua/lib/reservations.lua` writes them."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple, Self

import msgspec

from engine.keys import PartitionKeys
from engine.model import Line, Reservation, ReservationState
from engine.outcomes import InvalidCommand, Outcome, StoreFault
from engine.store import pairs

FIELDS: Final = (
    "state",
    "expires_at",
    "body",
    "confirmed_at",
    "ended_at",
    "order_ref",
    "picked",
)
"""Of the hash, in the order that `from_hash` takes them."""

MAX_RECENT: Final = 50_000
"""Reservations whose lines a process remembers, at some 300 bytes each."""


class Body(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What was promised; only an amendment changes it.

    `lines` are what is held now. `first_lines` are what was held at first, None where that is still
    the same; the scripts write no element for None.
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
    first_lines: tuple[Line, ...] | None = None


_decode_body = msgspec.msgpack.Decoder(Body).decode
_encode = msgspec.msgpack.Encoder().encode
_decode_lines = msgspec.msgpack.Decoder(tuple[Line, ...]).decode


class LinesOf(msgspec.Struct, frozen=True):
    """Which rows a reservation holds units of."""

    merchant: str
    location: str
    skus: tuple[str, ...]

    def keys(self, keys: PartitionKeys, reservation: str) -> tuple[str, ...]:
        """Return the keys that an ending declares."""
        return (
            keys.reservation(reservation),
            keys.open_reservations(self.merchant, self.location),
            *self.row_keys(keys),
        )

    def row_keys(self, keys: PartitionKeys) -> list[str]:
        """Return the keys of the rows."""
        return [keys.stock(self.merchant, self.location, sku) for sku in self.skus]

    def commit_keys(self, keys: PartitionKeys, reservation: str) -> tuple[str, ...]:
        """Return the keys that a commit declares: it also remembers when units left."""
        return (
            *self.keys(keys, reservation),
            *[keys.recent(self.merchant, self.location, sku) for sku in self.skus],
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
        self._lines[reservation.id] = LinesOf(reservation.merchant, reservation.location, skus)
        if len(self._lines) > self._most:
            self._lines.popitem(last=False)

    def get(self, reservation: str) -> LinesOf | None:
        """Return what is remembered."""
        return self._lines.get(reservation)


def packed_body(body: Body) -> bytes:
    """Pack a body byte for byte as the scripts do."""
    elements = msgspec.structs.astuple(body)
    return _encode(elements if body.first_lines is not None else elements[:-1])


def amended(body: Body, lines: tuple[Line, ...]) -> Body:
    """Return a body with other lines, as `lua/amend.lua` makes it."""
    first = body.lines if body.first_lines is None else body.first_lines
    return msgspec.structs.replace(body, lines=lines, first_lines=first)


def lines_of(body: bytes) -> LinesOf:
    """Read which rows are held from a reservation's body."""
    decoded = _decode_body(body)
    return LinesOf(decoded.merchant, decoded.location, tuple(line.sku for line in decoded.lines))


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
        if body.first_lines is not None:
            body = msgspec.structs.replace(body, lines=body.first_lines)
        expires_at_ms = body.created_at_ms + body.ttl_ms
        return _reservation(
            reservation, body, state=ReservationState.HELD, expires_at_ms=expires_at_ms
        )
    held = summed(lines)
    missing: tuple[Line, ...] = ()
    if len(reply) > 2:
        held, missing = msgspec.convert(reply[2:4], tuple[tuple[Line, ...], tuple[Line, ...]])
    return Reservation(
        id=reservation,
        merchant=merchant,
        location=location,
        state=ReservationState.HELD,
        lines=held,
        missing=missing,
        order_ref=order_ref,
        actor=actor,
        created_at_ms=reply[1],
        expires_at_ms=reply[1] + ttl_ms,
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
    )


def from_hash(reservation: str, fields: Sequence[bytes | None]) -> Reservation | None:
    """Make a reservation of its hash's FIELDS; None where there is no such hash.

    Raises StoreFault where a field is not what the scripts write: someone edited it.
    """
    state, expires_at_ms, body, confirmed_at_ms, ended_at_ms, order_ref, picked = fields
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
        )
    except (ValueError, msgspec.MsgspecError) as error:
        raise StoreFault("HMGET", f"reservation {reservation} is damaged: {error}") from error


def created_at(body: bytes) -> int | None:
    """Return when the reservation of a hash's body was made (ms); None where it is damaged."""
    try:
        return _decode_body(body).created_at_ms
    except msgspec.MsgspecError:
        return None


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
) -> Reservation:
    return Reservation(
        id=reservation,
        merchant=body.merchant,
        location=body.location,
        state=state,
        lines=body.lines,
        missing=body.missing,
        order_ref=order_ref or body.order_ref,
        actor=body.actor,
        created_at_ms=body.created_at_ms,
        expires_at_ms=expires_at_ms if state is ReservationState.HELD else None,
        confirmed_at_ms=confirmed_at_ms or None,
        ended_at_ms=ended_at_ms or None,
        picked=picked if state is ReservationState.COMMITTED else None,
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
