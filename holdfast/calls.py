"""Every call of the HTTP API as data: what it sends, and the type that its answer has.

Nothing here does input or output: `holdfast.client` sends a call, synchronously or not, and decodes
the answer with `Call.decode`. Times are aware datetimes in UTC, quantities are units. A call whose
idempotency key cannot stand in a header raises InvalidCommand.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Generic, Self, TypeVar
from urllib.parse import quote

import msgspec

from engine.limits import MAX_KEY_CHARACTERS
from engine.model import CapScope, MovementType, ReservationState
from engine.outcomes import InvalidCommand
from engine.wishes import Fill, Substitution

Answer = TypeVar("Answer")
Item = TypeVar("Item")

ATTEMPT_HEADER: Final = "Idempotency-Attempt"

NEW_ROW: Final = 0
"""The `expected_version` of a row that does not exist yet."""


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """What a channel may have of a row: `cap` at most, `minimum` kept for it; `held` now."""

    cap: int | None = None
    minimum: int = 0
    held: int = 0


class BuyerCap(msgspec.Struct, frozen=True, omit_defaults=True):
    """At most so many units a buyer: promised, or picked within the window.

    `scope` is `location` for a cap of the row alone, `merchant` for one over all locations.
    """

    units: int
    window_seconds: int
    scope: CapScope = CapScope.LOCATION


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """On what terms a row's units are promised."""

    backorder_limit: int = 0
    channels: dict[str, Pool] = {}
    buyer_cap: BuyerCap | None = None


class Supply(msgspec.Struct, frozen=True):
    """Units that are still to come with a supply, and the day on which they are expected."""

    supply: str
    expected_on: str
    quantity: int


class Promisable(msgspec.Struct, frozen=True):
    """Units that can be promised by a day, those that are available now among them."""

    by: str
    quantity: int


class Stock(msgspec.Struct, frozen=True, kw_only=True):
    """One row: what is there and what can still be promised, in units (see the state model)."""

    merchant: str
    location: str
    sku: str
    on_hand: int
    reserved: int
    safety_stock: int
    available: int
    shortfall: int
    deficit: int
    version: int
    low_stock_threshold: int = 0
    backordered: int = 0
    backorder_available: int = 0
    terms: Terms | None = None
    incoming: int = 0
    supplies: tuple[Supply, ...] = ()
    available_to_promise: tuple[Promisable, ...] = ()
    late: int = 0
    parts: int = 0
    kit: bool = False


class SplitShare(msgspec.Struct, frozen=True, kw_only=True):
    """What one part of a split row has; one that is not `open` takes no new promises."""

    partition: int
    free: int
    reserved: int
    open: bool


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """How a row is split: over how many `parts` beside its own partition; 1 is not at all."""

    merchant: str
    location: str
    sku: str
    parts: int
    home: int
    free_at_home: int
    shares: tuple[SplitShare, ...]


class Availability(msgspec.Struct, frozen=True, kw_only=True):
    """What can be promised of one row; `known` is False, and all units 0, where there is none.

    `freshness` is `degraded` or `catching_up` while the location's tills are silent or behind, and
    `offline_buffer` units are held back then.
    """

    location: str
    sku: str
    known: bool
    available: int
    on_hand: int
    reserved: int
    safety_stock: int
    shortfall: int
    version: int
    offline_buffer: int = 0
    freshness: str = "live"
    kit: bool = False
    backorder_available: int = 0
    incoming: int = 0
    available_to_promise: tuple[Promisable, ...] = ()


class Availabilities(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a question of many rows, in the order of the question."""

    data: tuple[Availability, ...]
    as_of: datetime


class Location(msgspec.Struct, frozen=True):
    """A location that has at least one row."""

    location: str


class Line(msgspec.Struct, frozen=True):
    """Units of one SKU."""

    sku: str
    quantity: int


class StandsFor(msgspec.Struct, frozen=True):
    """`units` of a line that are held for `quantity` units of another SKU."""

    sku: str
    quantity: int
    units: int
    of: int
    for_: int = msgspec.field(name="for")
    kind: str


class LineAlternative(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A SKU that may stand for a line: `of` units of it for `for_` units of the line's SKU."""

    sku: str
    of: int = 1
    for_: int = msgspec.field(default=1, name="for")


class Wish(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Units of one SKU that are asked for, or of what may stand for it.

    The `alternatives` take the place of the merchant's rules where there are any.
    """

    sku: str
    quantity: int
    substitutes: Substitution = Substitution.NONE
    fill: Fill = Fill.MIXED
    alternatives: tuple[LineAlternative, ...] = ()


class HeldLine(msgspec.Struct, frozen=True):
    """Units of one SKU in a reservation, of which `backordered` have not come yet.

    `promised_by` is the day that these were promised by, None where by none, and `expected_on` that
    day or the later one on which they are expected now, None where nobody can say.

    `picked` is None unless it was committed. `stands_for` says which of them are held for another
    SKU.
    """

    sku: str
    quantity: int
    picked: int | None = None
    stands_for: tuple[StandsFor, ...] = ()
    backordered: int = 0
    promised_by: str | None = None
    expected_on: str | None = None


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """Units of one location promised to one order.

    `proposed` are SKUs whose substitutes have to be accepted before it can be confirmed.
    `replayed` is True where the call that answered it had been applied before.
    """

    id: str
    merchant: str
    location: str
    state: ReservationState
    lines: tuple[HeldLine, ...]
    missing: tuple[Line, ...]
    order_ref: str
    created_at: datetime
    expires_at: datetime | None
    confirmed_at: datetime | None
    ended_at: datetime | None
    proposed: tuple[str, ...] = ()
    replayed: bool = False


class MovedFrom(msgspec.Struct, frozen=True, kw_only=True):
    """Which reservation held the units before, and where."""

    reservation: str
    location: str


class RelocatedReservation(Reservation, frozen=True, kw_only=True):
    """The reservation at the new location; the one of before is released."""

    moved_from: MovedFrom


class Movement(msgspec.Struct, frozen=True, kw_only=True):
    """A booked movement, with the row just after it.

    `replayed` is True where the call that answered it had been applied before.
    """

    id: str
    merchant: str
    location: str
    type: MovementType
    sku: str
    quantity: int
    on_hand_change: int
    reason: str
    reference: str
    at: datetime
    sequence: int
    stock: Stock
    replayed: bool = False


class NewMovement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A movement to book; `id` is its idempotency key (1 to 255 printable ASCII characters).

    What arrives may name the `supply` that it comes with.
    """

    id: str
    location: str
    type: MovementType
    sku: str
    quantity: int
    reason: str = ""
    reference: str = ""
    supply: str = ""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What a refusal says (RFC 9457); `code` is stable, `errors` name the fields at fault."""

    code: str
    status: int
    title: str = ""
    detail: str = ""
    request_id: str = ""
    errors: tuple[dict[str, Any], ...] = ()


class BatchVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one movement of a batch: applied, replayed or refused."""

    id: str
    status: str
    movement: Movement | None = None
    error: Problem | None = None


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a batch, one verdict a movement, in the order of the batch."""

    data: tuple[BatchVerdict, ...]
    applied: int
    replayed: int
    refused: int


class Page(msgspec.Struct, Generic[Item], frozen=True, kw_only=True):
    """Part of a listing; `next_cursor` asks for the next part, None at the end."""

    data: tuple[Item, ...]
    has_more: bool
    next_cursor: str | None = None


class Call(msgspec.Struct, Generic[Answer], frozen=True, kw_only=True):
    """One request and the type of its answer.

    Every call may be sent again after a lost answer: it reads, or it carries an idempotency key,
    or it ends a reservation, which happens once however often it is asked for.
    """

    method: str
    path: str
    decoder: msgspec.json.Decoder[Answer]
    query: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None

    @property
    def target(self) -> str:
        """The path and the query, percent-encoded."""
        if not self.query:
            return self.path
        return self.path + "?" + "&".join(f"{name}={quote(text)}" for name, text in self.query)

    def again(self) -> Self:
        """Return the call as it is to be sent after the first attempt."""
        if not any(name == ATTEMPT_HEADER for name, _ in self.headers):
            return self
        kept = tuple(field for field in self.headers if field[0] != ATTEMPT_HEADER)
        return msgspec.structs.replace(self, headers=kept)

    def decode(self, content: bytes, *, replayed: bool = False) -> Answer:
        """Decode the body of a 2xx answer.

        Raises:
            msgspec.MsgspecError: The body is not the document that the API describes.
        """
        # An answer without a body (204) says nothing.
        answer = self.decoder.decode(content or b"null")
        if replayed and isinstance(answer, Reservation | Movement):
            return msgspec.structs.replace(answer, replayed=True)
        return answer


_STOCK: Final = msgspec.json.Decoder(Stock)
_SPLIT: Final = msgspec.json.Decoder(Split)
_TERMS: Final = msgspec.json.Decoder(Terms)
_STOCK_PAGE: Final = msgspec.json.Decoder(Page[Stock])
_LOCATION_PAGE: Final = msgspec.json.Decoder(Page[Location])
_AVAILABILITIES: Final = msgspec.json.Decoder(Availabilities)
_MOVEMENT: Final = msgspec.json.Decoder(Movement)
_BATCH_RESULT: Final = msgspec.json.Decoder(BatchResult)
_RESERVATION: Final = msgspec.json.Decoder(Reservation)
_RELOCATED: Final = msgspec.json.Decoder(RelocatedReservation)
_RESERVATION_PAGE: Final = msgspec.json.Decoder(Page[Reservation])
_PROBLEM: Final = msgspec.json.Decoder(Problem)
_ENCODER: Final = msgspec.json.Encoder()


def decode_problem(content: bytes) -> Problem | None:
    """Decode the body of a refusal, or return None where it is no problem document of ours."""
    try:
        return _PROBLEM.decode(content)
    except msgspec.MsgspecError:
        return None


def path_of(*segments: str) -> str:
    """Join path segments, each percent-encoded whole, so that an id may contain a slash."""
    return "".join(f"/{_encode_segment(segment)}" for segment in segments)


def _encode_segment(segment: str) -> str:
    # quote() leaves dots alone, and a client or a proxy would resolve these two as directories.
    if segment in (".", ".."):
        return segment.replace(".", "%2E")
    return quote(segment, safe="")


def _merchant_path(merchant: str, *segments: str) -> str:
    return path_of("v1", "merchants", merchant, *segments)


def _keyed(key: str) -> tuple[tuple[str, str], ...]:
    if not (1 <= len(key) <= MAX_KEY_CHARACTERS and key.isascii() and key.isprintable()):
        remedy = f"must be 1 to {MAX_KEY_CHARACTERS} printable ASCII characters"
        raise InvalidCommand("idempotency_key", remedy)
    return (("Idempotency-Key", key),)


def _condition(expected_version: int) -> tuple[str, str]:
    """Return the header by which a row is changed only where it is at this version."""
    if expected_version == NEW_ROW:
        return ("If-None-Match", "*")
    return ("If-Match", f'"{expected_version}"')


def _json(document: Mapping[str, Any]) -> bytes:
    return _ENCODER.encode(document)


def _lines(lines: Sequence[Line | Wish]) -> list[Any]:
    return [msgspec.to_builtins(line) for line in lines]


def _asker(*, stock_only: bool, channel: str, buyer: str) -> dict[str, Any]:
    """Return what is said of who asks, where it is not what is taken for granted."""
    said = {"stock_only": stock_only, "channel": channel, "buyer": buyer}
    return {name: value for name, value in said.items() if value}


def page_query(limit: int | None, cursor: str | None) -> tuple[tuple[str, str], ...]:
    """Return the query of a listing."""
    asked = (("limit", None if limit is None else str(limit)), ("cursor", cursor))
    return tuple((name, text) for name, text in asked if text is not None)


def locations(
    merchant: str, *, limit: int | None = None, cursor: str | None = None
) -> Call[Page[Location]]:
    """List the locations that have rows."""
    return Call(
        method="GET",
        path=_merchant_path(merchant, "locations"),
        decoder=_LOCATION_PAGE,
        query=page_query(limit, cursor),
    )


def stock_page(
    merchant: str, location: str, *, limit: int | None = None, cursor: str | None = None
) -> Call[Page[Stock]]:
    """List the rows of a location, in the byte order of their SKUs."""
    return Call(
        method="GET",
        path=_merchant_path(merchant, "locations", location, "stock"),
        decoder=_STOCK_PAGE,
        query=page_query(limit, cursor),
    )


def stock(merchant: str, location: str, sku: str, *, strong: bool = False) -> Call[Stock]:
    """Read one row, which may be a moment old; `strong` has the store asked."""
    return Call(
        method="GET",
        path=_merchant_path(merchant, "locations", location, "stock", sku),
        decoder=_STOCK,
        query=(("consistency", "strong"),) if strong else (),
    )


def configure(
    merchant: str,
    location: str,
    sku: str,
    *,
    safety_stock: int | None = None,
    low_stock_threshold: int | None = None,
    expected_version: int,
    key: str,
) -> Call[Stock]:
    """Change the settings that are given, if the row is still at the version given."""
    settings = {"safety_stock": safety_stock, "low_stock_threshold": low_stock_threshold}
    return Call(
        method="PATCH",
        path=_merchant_path(merchant, "locations", location, "stock", sku, "settings"),
        decoder=_STOCK,
        headers=(*_keyed(key), _condition(expected_version)),
        body=_json({name: units for name, units in settings.items() if units is not None}),
    )


def split(merchant: str, location: str, sku: str, *, parts: int | None = None) -> Call[Split]:
    """Spread a row over `parts` partitions (1: no longer), or with None ask how it is."""
    return Call(
        method="GET" if parts is None else "PUT",
        path=_merchant_path(merchant, "locations", location, "stock", sku, "split"),
        decoder=_SPLIT,
        body=b"" if parts is None else _json({"parts": parts}),
    )


def set_terms(
    merchant: str,
    location: str,
    sku: str,
    terms: Terms,
    *,
    expected_version: int,
    key: str,
) -> Call[Stock]:
    """Set a row's terms, if it is still at the version given; what `terms` does not name ends."""
    return Call(
        method="PUT",
        path=_merchant_path(merchant, "locations", location, "stock", sku, "terms"),
        decoder=_STOCK,
        headers=(*_keyed(key), _condition(expected_version)),
        body=_json(_terms(terms)),
    )


def _terms(terms: Terms) -> dict[str, Any]:
    """Return terms as a request has them."""
    document: dict[str, Any] = {}
    if terms.backorder_limit:
        document["backorder_limit"] = terms.backorder_limit
    if terms.channels:
        document["channels"] = {
            name: {"cap": pool.cap, "minimum": pool.minimum}
            for name, pool in terms.channels.items()
        }
    if terms.buyer_cap is not None:
        document["buyer_cap"] = {
            "units": terms.buyer_cap.units,
            "window_seconds": terms.buyer_cap.window_seconds,
        }
        if terms.buyer_cap.scope != CapScope.LOCATION:
            document["buyer_cap"]["scope"] = terms.buyer_cap.scope
    return document


def terms(merchant: str, location: str, sku: str) -> Call[Terms]:
    """Read on what terms a row's units are promised."""
    return Call(
        method="GET",
        path=_merchant_path(merchant, "locations", location, "stock", sku, "terms"),
        decoder=_TERMS,
    )


def availability(merchant: str, rows: Sequence[tuple[str, str]]) -> Call[Availabilities]:
    """Ask for up to 500 rows, each a (location, SKU)."""
    wanted = [{"location": location, "sku": sku} for location, sku in rows]
    return Call(
        method="POST",
        path=_merchant_path(merchant, "availability"),
        decoder=_AVAILABILITIES,
        body=_json({"rows": wanted}),
    )


def move(merchant: str, movement: NewMovement) -> Call[Movement]:
    """Book one movement."""
    document = msgspec.to_builtins(movement)
    key = document.pop("id")
    location = document.pop("location")
    return Call(
        method="POST",
        path=_merchant_path(merchant, "locations", location, "movements"),
        decoder=_MOVEMENT,
        headers=_keyed(key),
        body=_json(document),
    )


def move_many(merchant: str, movements: Sequence[NewMovement]) -> Call[BatchResult]:
    """Book up to 1,000 movements, each of which stands alone."""
    return Call(
        method="POST",
        path=_merchant_path(merchant, "movements", "batch"),
        decoder=_BATCH_RESULT,
        body=_json({"movements": movements}),
    )


def reserve(
    merchant: str,
    location: str,
    lines: Sequence[Line | Wish],
    *,
    key: str,
    ttl_seconds: int | None = None,
    order_ref: str = "",
    partial: bool = False,
    stock_only: bool = False,
    channel: str = "",
    buyer: str = "",
    by: str = "",
    new: bool = False,
) -> Call[Reservation]:
    """Hold units of up to 200 lines, all or (unless `partial`) nothing.

    With `stock_only` nothing is promised that is not on the shelf, with `by` (YYYY-MM-DD) also what
    is expected by that day; `channel` and `buyer` are asked for where rows have pools or caps.

    `new` says that the key was never sent before: where everything is sold out, a service under
    load can then say so without a look at its store.
    """
    document: dict[str, Any] = {"lines": _lines(lines)}
    if ttl_seconds is not None:
        document["ttl_seconds"] = ttl_seconds
    if order_ref:
        document["order_ref"] = order_ref
    if partial:
        document["partial"] = True
    document |= _asker(stock_only=stock_only, channel=channel, buyer=buyer)
    if by:
        document["by"] = by
    return Call(
        method="POST",
        path=_merchant_path(merchant, "locations", location, "reservations"),
        decoder=_RESERVATION,
        headers=(*_keyed(key), (ATTEMPT_HEADER, "1")) if new else _keyed(key),
        body=_json(document),
    )


def reservation(merchant: str, reservation_id: str) -> Call[Reservation]:
    """Read one reservation; an ended one is kept for 24 hours."""
    return Call(
        method="GET",
        path=_merchant_path(merchant, "reservations", reservation_id),
        decoder=_RESERVATION,
    )


def open_reservations(
    merchant: str, location: str, *, limit: int | None = None, cursor: str | None = None
) -> Call[Page[Reservation]]:
    """List a location's held and confirmed reservations, oldest first."""
    return Call(
        method="GET",
        path=_merchant_path(merchant, "locations", location, "reservations"),
        decoder=_RESERVATION_PAGE,
        query=page_query(limit, cursor),
    )


def confirm(merchant: str, reservation_id: str, *, order_ref: str = "") -> Call[Reservation]:
    """Keep the units for a placed order: the TTL ends."""
    return _step(merchant, reservation_id, "confirm", {"order_ref": order_ref} if order_ref else {})


def extend(merchant: str, reservation_id: str, *, ttl_seconds: int, key: str) -> Call[Reservation]:
    """Let a hold live for `ttl_seconds` from now."""
    document = {"ttl_seconds": ttl_seconds}
    return _step(merchant, reservation_id, "extend", document, headers=_keyed(key))


def amend(
    merchant: str,
    reservation_id: str,
    lines: Sequence[Line | Wish],
    *,
    key: str,
    stock_only: bool = False,
    channel: str = "",
    buyer: str = "",
) -> Call[Reservation]:
    """Hold so many units of each SKU named from now on; 0 drops its line, others stay.

    `channel` and `buyer` are for a reservation that has none yet, as in a reserve.
    """
    document: dict[str, Any] = {"lines": _lines(lines)}
    document |= _asker(stock_only=stock_only, channel=channel, buyer=buyer)
    return _step(merchant, reservation_id, "amend", document, headers=_keyed(key))


def relocate(
    merchant: str, reservation_id: str, location: str, *, key: str
) -> Call[RelocatedReservation]:
    """Hold the same at another location, and there only."""
    return Call(
        method="POST",
        path=_merchant_path(merchant, "reservations", reservation_id, "move"),
        decoder=_RELOCATED,
        headers=_keyed(key),
        body=_json({"location": location}),
    )


def commit(merchant: str, reservation_id: str, *, picks: Sequence[Line] = ()) -> Call[Reservation]:
    """Let the units leave the shelf: all of them, or the `picks` (lines not named are 0)."""
    return _step(merchant, reservation_id, "commit", {"lines": _lines(picks)} if picks else {})


def release(merchant: str, reservation_id: str, *, reason: str = "") -> Call[Reservation]:
    """Give the units back."""
    return _step(merchant, reservation_id, "release", {"reason": reason} if reason else {})


def accept(merchant: str, reservation_id: str, *, skus: Sequence[str] = ()) -> Call[Reservation]:
    """Accept that others stand for `skus`, without any for all that is proposed."""
    return _step(merchant, reservation_id, "accept", {"skus": list(skus)} if skus else {})


def decline(merchant: str, reservation_id: str, *, skus: Sequence[str] = ()) -> Call[Reservation]:
    """Decline that others stand for `skus`, without any for all that is proposed."""
    return _step(merchant, reservation_id, "decline", {"skus": list(skus)} if skus else {})


def _step(
    merchant: str,
    reservation_id: str,
    verb: str,
    document: Mapping[str, Any],
    *,
    headers: tuple[tuple[str, str], ...] = (),
) -> Call[Reservation]:
    return Call(
        method="POST",
        path=_merchant_path(merchant, "reservations", reservation_id, verb),
        decoder=_RESERVATION,
        headers=headers,
        body=_json(document) if document else None,
    )
