"""What travels in request and response bodies, and how the engine's values become it.

The structs are the schema: msgspec decodes by them, and `gateway.openapi` publishes them. Integers
must be JSON integers, unknown fields are refused, and times are RFC 3339 in UTC with milliseconds.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from engine import model
from engine.feeds import SourceState
from engine.limits import (
    MAX_ALTERNATIVES,
    MAX_BATCH_ROWS,
    MAX_BUYER_UNITS,
    MAX_BUYER_WINDOW_MS,
    MAX_ID_BYTES,
    MAX_LINES,
    MAX_PARTS,
    MAX_QUANTITY,
    MAX_RATIO,
    MAX_TOTAL,
    MAX_TTL_MS,
    MIN_TTL_MS,
)
from engine.model import CapScope, time_text
from engine.splits import Spread
from engine.substitutes import Alternative
from engine.wishes import Fill, Substitution, Wish

Item = TypeVar("Item")

Id = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_ID_BYTES,
        description=f"Any Unicode text of 1 to {MAX_ID_BYTES} bytes in UTF-8.",
    ),
]
Text = Annotated[
    str, Meta(max_length=MAX_ID_BYTES, description=f"At most {MAX_ID_BYTES} bytes in UTF-8.")
]
Units = Annotated[int, Meta(ge=1, le=MAX_QUANTITY, description="Whole units.")]
Version = Annotated[int, Meta(ge=0, le=2**53, description="Rises by 1 at every change of the row.")]
Time = Annotated[
    str,
    Meta(
        description="RFC 3339, UTC, with milliseconds.",
        examples=["2026-11-23T15:38:04.123Z"],
        extra_json_schema={"format": "date-time"},
    ),
]
Age = Annotated[int, Meta(ge=0, description="How old the answer is at most, in milliseconds.")]
TtlSeconds = Annotated[
    int,
    Meta(
        ge=MIN_TTL_MS // 1000,
        le=MAX_TTL_MS // 1000,
        description="How long the units are held, in seconds.",
    ),
]
OccurredAt = Annotated[
    datetime,
    Meta(tz=True, description="When it happened at the shelf: RFC 3339 with an offset, from 1970."),
]
PickedUnits = Annotated[
    int, Meta(ge=0, le=MAX_QUANTITY, description="Units that leave the shelf; at most those held.")
]
AmendedUnits = Annotated[
    int, Meta(ge=0, le=MAX_QUANTITY, description="Whole units; 0 drops the line.")
]
RatioUnits = Annotated[int, Meta(ge=1, le=MAX_RATIO, description="Whole units.")]
Setting = Annotated[int, Meta(ge=0, le=MAX_QUANTITY, description="Whole units.")]
MovementQuantity = Annotated[
    int,
    Meta(
        ge=-MAX_QUANTITY,
        le=MAX_TOTAL,
        description=(
            "Units, 1 to 10^9; for `adjust` signed and not 0; for `count` the units that are on "
            "the shelf now, 0 to 10^12."
        ),
    ),
]

KitMark = (
    Annotated[
        bool,
        Meta(
            description="True of a kit: `on_hand` and `available` are what its components allow, "
            "`version` is the sum of theirs."
        ),
    ]
    | UnsetType
)


Day = Annotated[
    str,
    Meta(
        description="A day as YYYY-MM-DD, from 2000 to 2099.",
        examples=["2026-12-10"],
        extra_json_schema={"pattern": r"^20[0-9]{2}-[01][0-9]-[0-3][0-9]$"},
    ),
]
"""The engine says what is wrong with another text: msgspec would tell the pattern."""

FIRST_OCCURRED_AT: Final = datetime(1970, 1, 1, tzinfo=UTC)


MAX_STALENESS_MS: Final = 60_000
"""The oldest answer that may be asked for: beyond it an answer is none."""


class Consistency(StrEnum):
    """Whether an answer may come from the gateway's view of the rows, or must from the store."""

    BOUNDED = "bounded"
    STRONG = "strong"


class Source(StrEnum):
    """Where an answer comes from: the gateway's own view of the rows, or the store."""

    VIEW = "view"
    STORE = "store"


class Reading(NamedTuple):
    """A row, None where there is none, which was so `age_ms` ago at most, at `as_of_ms`."""

    row: model.Row | None
    as_of_ms: int
    age_ms: int
    source: Source


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of request bodies: fields that it does not know are refused."""


class LineRequest(Request, frozen=True, kw_only=True):
    """Units of one SKU that are asked for."""

    sku: Id
    quantity: Units


class LineAlternativeRequest(Request, frozen=True, kw_only=True):
    """A SKU that may stand for a line: `of` units of it for `for` units of the line's SKU."""

    sku: Id
    of: RatioUnits = 1
    for_: RatioUnits = msgspec.field(default=1, name="for")


class _SubstitutesRequest(Request, frozen=True, kw_only=True):
    substitutes: Substitution = Substitution.NONE
    fill: Fill = Fill.MIXED
    alternatives: Annotated[
        tuple[LineAlternativeRequest, ...], Meta(max_length=MAX_ALTERNATIVES)
    ] = ()


class WishRequest(_SubstitutesRequest, frozen=True, kw_only=True):
    """Units of one SKU that are asked for, or of what may stand for it.

    `substitutes` says whether others may stand for what there is too little of: `approve` where
    somebody must accept that first. They are the `alternatives`, the first of them first, or those
    of the merchant's rules where none are named. `fill` whole has one SKU serve the whole line.
    """

    sku: Id
    quantity: Units


class AmendedLine(_SubstitutesRequest, frozen=True, kw_only=True):
    """How many units of one SKU are asked for from now on; 0 drops the line.

    What else may stand for it is said as in a reserve. What does already may go on to do so.
    """

    sku: Id
    quantity: AmendedUnits


class PickRequest(Request, frozen=True, kw_only=True):
    """Units of one SKU that were picked."""

    sku: Id
    quantity: PickedUnits


class DecisionRequest(Request, frozen=True, kw_only=True):
    """The SKUs whose substitutes are accepted or declined; without any, all that are proposed."""

    skus: Annotated[tuple[Id, ...], Meta(max_length=MAX_LINES)] = ()


class SettingsRequest(Request, frozen=True, kw_only=True):
    """A row's settings, one at least. `safety_stock` units are never promised.

    The row is low, and tells so once, when `available` falls to `low_stock_threshold`; 0 is none.
    """

    safety_stock: Setting | UnsetType = UNSET
    low_stock_threshold: Setting | UnsetType = UNSET


class SplitRequest(Request, frozen=True, kw_only=True):
    """Over how many partitions a row is spread beside its own; 1 is not at all."""

    parts: Annotated[int, Meta(ge=1, le=MAX_PARTS)]


class SplitShare(msgspec.Struct, frozen=True):
    """What one part has: units that it can promise, and those that are reserved there.

    One that is not `open` takes no new promises: its last have not ended yet, or what it has is
    needed elsewhere.
    """

    partition: int
    free: int
    reserved: int
    open: bool


class Split(msgspec.Struct, frozen=True):
    """How a row is split; `parts` is 1 where it is not, and parts that it had may still be there.

    `free_at_home` can be promised in the row's own partition, where carts of several SKUs are.
    """

    merchant: str
    location: str
    sku: str
    parts: int
    home: int
    free_at_home: int
    shares: list[SplitShare]


class PoolRequest(Request, frozen=True, kw_only=True):
    """What a channel may have: at most `cap` units at once, and `minimum` that are kept for it."""

    cap: Setting | None = None
    minimum: Setting = 0


class BuyerCap(Request, frozen=True, kw_only=True, omit_defaults=True):
    """At most `units` a buyer: what is promised them, and what they got in `window_seconds`.

    It counts what they have of the row, or with the scope `merchant` what they have of the SKU at
    all locations where it has a cap of that scope.
    """

    units: Annotated[int, Meta(ge=1, le=MAX_BUYER_UNITS)]
    window_seconds: Annotated[int, Meta(ge=1, le=MAX_BUYER_WINDOW_MS // 1000)]
    scope: CapScope = CapScope.LOCATION


class TermsRequest(Request, frozen=True, kw_only=True):
    """On what terms a row's units are promised; what is left out ends.

    Up to `backorder_limit` units are promised with nothing on the shelf for them. `channels` have
    pools of the row, by their names, and `buyer_cap` is the most that one buyer gets.
    """

    backorder_limit: Setting | UnsetType = UNSET
    channels: dict[str, PoolRequest] | UnsetType = UNSET
    buyer_cap: BuyerCap | UnsetType = UNSET


class Pool(msgspec.Struct, frozen=True):
    """A channel's pool: what it may have at once, what is kept for it, what it holds now."""

    held: int
    minimum: int
    cap: int | None


class Terms(msgspec.Struct, frozen=True, omit_defaults=True):
    """On what terms a row's units are promised; what is not there is not set."""

    backorder_limit: int | UnsetType = UNSET
    channels: dict[str, Pool] | UnsetType = UNSET
    buyer_cap: BuyerCap | UnsetType = UNSET


class Supply(msgspec.Struct, frozen=True):
    """Units that are still to come with a supply."""

    supply: str
    expected_on: str
    quantity: int


class Promisable(msgspec.Struct, frozen=True):
    """Units that can be promised by a day, those that are available now among them."""

    by: str
    quantity: int


class RowRequest(Request, frozen=True, kw_only=True):
    """Which row is asked about."""

    location: Id
    sku: Id


class AvailabilityRequest(Request, frozen=True, kw_only=True):
    """The rows that are asked about, in the order in which they are answered.

    `max_staleness_ms` is how old the answer may be, 1,000 unless it is named; `consistency` strong
    has the store asked.
    """

    rows: Annotated[list[RowRequest], Meta(min_length=1, max_length=MAX_BATCH_ROWS)]
    max_staleness_ms: Annotated[int, Meta(ge=0, le=MAX_STALENESS_MS)] | None = None
    consistency: Consistency | None = None


class Stock(msgspec.Struct, frozen=True):
    """One row: what is on the shelf and what can still be promised.

    An answer to a question about it has `as_of`: every change that was made by then is in it. A row
    as it is now has `age_ms`, how long ago that is at most, and `source`.
    """

    merchant: str
    location: str
    sku: str
    on_hand: Annotated[int, Meta(ge=0, description="Units believed to be there.")]
    reserved: Annotated[int, Meta(ge=0, description="Units of open reservations.")]
    safety_stock: Annotated[int, Meta(ge=0, description="Units kept back from promising.")]
    available: Annotated[
        int,
        Meta(
            ge=0,
            description="max(0, on_hand - reserved - safety_stock - offline_buffer - backordered).",
        ),
    ]
    shortfall: Annotated[int, Meta(ge=0, description="max(0, reserved - on_hand).")]
    deficit: Annotated[int, Meta(ge=0, description="Units that left although the books had none.")]
    version: Version
    low_stock_threshold: (
        Annotated[
            int, Meta(description="Where the row has one: it is low at or below so many available.")
        ]
        | UnsetType
    ) = UNSET
    offline_buffer: (
        Annotated[
            int, Meta(ge=0, description="Units held back while the location's tills are silent.")
        ]
        | UnsetType
    ) = UNSET
    backordered: (
        Annotated[int, Meta(ge=0, description="Units promised with nothing on the shelf for them.")]
        | UnsetType
    ) = UNSET
    backorder_available: (
        Annotated[int, Meta(ge=0, description="Units that can be promised before they come.")]
        | UnsetType
    ) = UNSET
    terms: (
        Annotated[Terms, Meta(description="On what terms units are promised, where it has any.")]
        | UnsetType
    ) = UNSET
    incoming: (
        Annotated[int, Meta(ge=1, description="Units that are to come, where any are expected.")]
        | UnsetType
    ) = UNSET
    supplies: (
        Annotated[list[Supply], Meta(description="What they come with, by the day.")] | UnsetType
    ) = UNSET
    available_to_promise: (
        Annotated[
            list[Promisable], Meta(description="What can be promised by each day that brings some.")
        ]
        | UnsetType
    ) = UNSET
    late: (
        Annotated[
            int, Meta(ge=1, description="Units that were promised by a day that cannot be kept.")
        ]
        | UnsetType
    ) = UNSET
    parts: (
        Annotated[
            int, Meta(ge=2, description="Partitions that promise it, where the row is split.")
        ]
        | UnsetType
    ) = UNSET
    as_of: Time | UnsetType = UNSET
    age_ms: Age | UnsetType = UNSET
    source: Source | UnsetType = UNSET
    freshness: (
        Annotated[
            SourceState, Meta(description="The location's, where its tills are silent or behind.")
        ]
        | UnsetType
    ) = UNSET
    kit: KitMark = UNSET


class AvailabilityRow(msgspec.Struct, frozen=True):
    """One answered row; where the location has none (`known` is false) all numbers are 0.

    `freshness` is the location's: `degraded` while its tills are silent, `catching_up` while what
    they have sold meanwhile comes in. `offline_buffer` units are held back then.
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
    freshness: SourceState = SourceState.LIVE
    kit: KitMark = UNSET
    backorder_available: (
        Annotated[int, Meta(ge=0, description="Units that can be promised before they come.")]
        | UnsetType
    ) = UNSET
    incoming: (
        Annotated[int, Meta(ge=1, description="Units that are to come, where any are expected.")]
        | UnsetType
    ) = UNSET
    available_to_promise: (
        Annotated[
            list[Promisable], Meta(description="What can be promised by each day that brings some.")
        ]
        | UnsetType
    ) = UNSET


class Availability(msgspec.Struct, frozen=True):
    """The rows in the order of the question; no number is older than `as_of`.

    `source` is view where any of them came from there.
    """

    data: list[AvailabilityRow]
    as_of: Time
    age_ms: Age
    source: Source


class StandsFor(msgspec.Struct, frozen=True):
    """`units` of a line that are held for `quantity` units of another SKU.

    `of` units of the line stand for `for` units of that; of a kit's component, `of` units are in
    each kit. `kind` is substitute or kit.
    """

    sku: str
    quantity: int
    units: int
    of: int
    for_: int = msgspec.field(name="for")
    kind: str


class ReservationLine(msgspec.Struct, frozen=True):
    """Units of one SKU; `picked` is null unless the reservation is committed.

    `stands_for` is there where some of them are held for another SKU.
    """

    sku: str
    quantity: int
    picked: int | None
    stands_for: list[StandsFor] | UnsetType = UNSET
    backordered: (
        Annotated[int, Meta(ge=1, description="Those of them that have not come yet.")] | UnsetType
    ) = UNSET
    promised_by: (
        Annotated[str, Meta(description="The day that these were promised by, where by one.")]
        | UnsetType
    ) = UNSET
    expected_on: (
        Annotated[
            str | None,
            Meta(
                description="That day, or the later one on which they are expected now; null where "
                "nothing is expected that would reach them."
            ),
        ]
        | UnsetType
    ) = UNSET


class MissingLine(msgspec.Struct, frozen=True):
    """Units that a partial reservation did not get."""

    sku: str
    quantity: int


class Location(msgspec.Struct, frozen=True):
    """A location that has or had stock."""

    location: str


class Page(msgspec.Struct, Generic[Item], frozen=True):
    """Part of a listing; `next_cursor` asks for the next part and is null at the end."""

    data: list[Item]
    has_more: bool
    next_cursor: str | None


class StockPage(Page[Stock], frozen=True):
    """Rows of a location by SKU, in byte order."""


class Merchant(msgspec.Struct, frozen=True):
    """A merchant that has or had stock."""

    merchant: str


class MerchantPage(Page[Merchant], frozen=True):
    """Merchants of the store."""


class LocationPage(Page[Location], frozen=True):
    """Locations of a merchant."""


class ProblemError(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One thing that is wrong, and where: in the body, a parameter or a header.

    `pointer` is an RFC 6901 JSON pointer in URI fragment form. The other fields are there where
    the problem's code is about them; quantities are units.
    """

    detail: str
    pointer: str | UnsetType = UNSET
    parameter: str | UnsetType = UNSET
    header: str | UnsetType = UNSET
    sku: str | UnsetType = UNSET
    requested: int | UnsetType = UNSET
    available: int | UnsetType = UNSET
    on_hand: int | UnsetType = UNSET
    filled: int | UnsetType = UNSET
    known: bool | UnsetType = UNSET
    limited_by: str | UnsetType = UNSET
    expects: tuple[str, ...] | UnsetType = UNSET
    state: str | UnsetType = UNSET
    ended_at: Time | UnsetType = UNSET
    expected: int | UnsetType = UNSET
    actual: int | UnsetType = UNSET
    most: int | UnsetType = UNSET
    role: str | UnsetType = UNSET
    earliest: Time | UnsetType = UNSET


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An RFC 9457 problem; `code` is stable and is what a program should look at."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[ProblemError]


class ItemProblem(msgspec.Struct, frozen=True, kw_only=True):
    """The problem of one movement of a batch."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[ProblemError]


class Health(StrEnum):
    """How the process, or the service, is."""

    OK = "ok"
    READY = "ready"
    NOT_READY = "not_ready"


class Liveness(msgspec.Struct, frozen=True):
    """The process answers."""

    status: Health


class Readiness(msgspec.Struct, frozen=True):
    """Whether requests can be served now.

    `reasons` say why not, `warnings` what is unsafe, and `store` what server it is.
    """

    status: Health
    reasons: list[str]
    warnings: list[str]
    store: str | None


def stock(
    row: model.Row, reading: Reading | None = None, state: SourceState = SourceState.LIVE
) -> Stock:
    """Make the answer of a row, with how fresh it is where it was read just now.

    `state` is the location's.
    """
    freshness: tuple[Any, ...] = ()
    if reading is not None:
        known = UNSET if state is SourceState.LIVE else state
        freshness = (time_text(reading.as_of_ms), reading.age_ms, reading.source, known)
    return Stock(
        row.merchant,
        row.location,
        row.sku,
        row.on_hand,
        row.reserved,
        row.safety_stock,
        row.available,
        row.shortfall,
        row.deficit,
        row.version,
        row.low_stock_threshold or UNSET,
        min(row.offline_buffer, row.on_hand) or UNSET,
        row.backordered or UNSET,
        UNSET if row.terms is None else row.backorder_available,
        UNSET if row.terms is None else terms(row.terms),
        row.incoming or UNSET,
        supplies(row) or UNSET,
        _available_to_promise(row),
        UNSET if row.terms is None else row.terms.late or UNSET,
        row.parts or UNSET,
        *freshness,
    )


def supplies(row: model.Row) -> list[Supply]:
    """Make the answer of a row's supplies, those that are expected first first."""
    found = {} if row.terms is None else row.terms.supplies
    return [
        Supply(name, one.expected_on, one.quantity)
        for name, one in sorted(found.items(), key=lambda item: (item[1].expected_on, item[0]))
    ]


def _available_to_promise(row: model.Row) -> list[Promisable] | UnsetType:
    if row.terms is None:
        return UNSET
    return [Promisable(one.by, one.quantity) for one in row.available_to_promise] or UNSET


def split(merchant: str, location: str, sku: str, spread: Spread) -> Split:
    """Make the answer of how a row is split."""
    shares = [
        SplitShare(share.partition, share.free, share.reserved, share.is_open)
        for share in spread.shares
    ]
    return Split(
        merchant, location, sku, spread.parts or 1, spread.home, spread.free_at_home, shares
    )


def availability_row(
    wanted: RowRequest, row: model.Row | None, freshness: SourceState = SourceState.LIVE
) -> AvailabilityRow:
    """Make the answer of one row of a question; None is a row that does not exist."""
    if row is None:
        return AvailabilityRow(
            wanted.location, wanted.sku, False, 0, 0, 0, 0, 0, 0, freshness=freshness
        )
    return AvailabilityRow(
        row.location,
        row.sku,
        True,
        row.available,
        row.on_hand,
        row.reserved,
        row.safety_stock,
        row.shortfall,
        row.version,
        min(row.offline_buffer, row.on_hand),
        freshness,
        backorder_available=UNSET if row.terms is None else row.backorder_available,
        incoming=row.incoming or UNSET,
        available_to_promise=_available_to_promise(row),
    )


def terms_of(body: TermsRequest) -> model.Terms:
    """Make the engine's terms of a request's."""
    pools = {} if body.channels is UNSET else body.channels
    cap = body.buyer_cap
    return model.Terms(
        0 if body.backorder_limit is UNSET else body.backorder_limit,
        {name: model.Pool(pool.cap, pool.minimum) for name, pool in pools.items()},
        None if cap is UNSET else model.BuyerCap(cap.units, cap.window_seconds * 1000, cap.scope),
    )


def terms(found: model.Terms) -> Terms:
    """Make the answer of a row's terms."""
    cap = found.buyer_cap
    return Terms(
        found.backorder_limit or UNSET,
        {name: Pool(pool.held, pool.minimum, pool.cap) for name, pool in found.channels.items()}
        or UNSET,
        UNSET
        if cap is None
        else BuyerCap(units=cap.units, window_seconds=cap.window_ms // 1000, scope=cap.scope),
    )


def held_lines(
    held: Sequence[model.Line],
    picked: Sequence[model.Line] | None,
    stands_for: Sequence[model.StandsFor],
    backordered: Sequence[model.Line],
    promised: Sequence[model.Promised] = (),
) -> list[ReservationLine]:
    """Make the lines of a reservation; `picked` is None unless it is committed."""
    left = None if picked is None else {x.sku: x.quantity for x in picked}
    waiting = {x.sku: x.quantity for x in backordered}
    days = {x.sku: (x.by, x.expected_on) for x in promised}
    return [
        ReservationLine(
            x.sku,
            x.quantity,
            None if left is None else left.get(x.sku, 0),
            _stands_for(stands_for, x.sku),
            waiting.get(x.sku, UNSET),
            *days.get(x.sku, ()),
        )
        for x in held
    ]


def _stands_for(found: Sequence[model.StandsFor], sku: str) -> list[StandsFor] | UnsetType:
    if not found:
        return UNSET
    return [
        StandsFor(one.asked, one.served, one.units, one.of, one.for_, one.kind)
        for one in found
        if one.sku == sku
    ] or UNSET


def wishes(wanted: Sequence[WishRequest | AmendedLine]) -> list[model.Line | Wish]:
    """Make the engine's lines of a request's: most are units of a row and nothing more."""
    return [
        model.Line(x.sku, x.quantity)
        if x.substitutes is Substitution.NONE and not x.alternatives
        else Wish(
            sku=x.sku,
            quantity=x.quantity,
            substitutes=x.substitutes,
            fill=x.fill,
            alternatives=tuple(
                Alternative(sku=one.sku, of=one.of, for_=one.for_) for one in x.alternatives
            ),
        )
        for x in wanted
    ]


def lines(wanted: Sequence[LineRequest | PickRequest]) -> list[model.Line]:
    """Make the engine's lines of a request's."""
    return [model.Line(x.sku, x.quantity) for x in wanted]
