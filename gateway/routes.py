"""The one table of the API, of which both what is served and the OpenAPI document are made."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from engine.access import Role
from engine.limits import MAX_KEY_CHARACTERS
from engine.outcomes import (
    BackorderUnfilled,
    BuyerCapExceeded,
    HistoryUnavailable,
    HoldfastError,
    IdempotencyKeyReused,
    IndexUnavailable,
    InsufficientOnHand,
    InsufficientStock,
    InvalidCommand,
    ItemNotFound,
    KitNotFound,
    LimitExceeded,
    OrderEnded,
    OrderNotFound,
    OutcomeUnknown,
    Overloaded,
    PastNotKept,
    ProposalDecided,
    ProposalOpen,
    ReservationEnded,
    ReservationNotFound,
    ReservationNotHeld,
    ReservationOnTerms,
    RowNotFound,
    StoreReadOnly,
    StoreUnavailable,
    SubstitutesNotFound,
    VersionConflict,
    WebhookNotFound,
)
from gateway import (
    api_keys,
    audit,
    definition_wire,
    definitions,
    entries,
    feed_bodies,
    feeds,
    freshness,
    health,
    jobs,
    ledger,
    movements,
    orders,
    overview,
    reservations,
    scrape,
    search,
    search_wire,
    sessions,
    shortfalls,
    sse,
    stock,
    webhook_wire,
    webhooks,
    wire,
)
from gateway.calls import Answer, Call, Streaming
from gateway.idempotency import ATTEMPT_FORM, ATTEMPT_HEADER
from gateway.paging import QUERY
from gateway.problems import (
    Forbidden,
    ForeignOrigin,
    IdempotencyKeyRequired,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    PreconditionFailed,
    PreconditionRequired,
    RateLimited,
    Unauthenticated,
    UnsupportedMediaType,
)
from gateway.subscriptions import MAX_POSITION_CHARACTERS

Handler = Callable[[Call, Any], Awaitable[Answer]] | Callable[[Call, Any], Awaitable[Streaming]]


@dataclass(frozen=True, slots=True)
class HeaderField:
    """A request header that an operation reads."""

    name: str
    description: str
    required: bool = False
    most_characters: int | None = None
    pattern: str | None = None


@dataclass(frozen=True, slots=True)
class Success:
    """An answer that is no problem; `body` None is no body, `headers` names what it brings.

    `media_type` is of a body that has no schema.
    """

    status: int
    body: type | None
    description: str
    headers: tuple[str, ...] = ()
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    `role` None is open to everyone. `request` None takes no body; without `body_required` an empty
    body stands for `{}`. Query parameters of `lists` may stand many times. `problems` are those of
    its own, beside the ones that its kind brings.
    A path without a merchant is for keys of the whole platform, unless `any_merchant`.
    `items` counts what makes a request of many cost more than one (see `gateway.rate_limits`).
    """

    name: str
    method: str
    path: str
    tag: str
    summary: str
    handler: Handler
    successes: tuple[Success, ...]
    role: Role | None
    any_merchant: bool = False
    request: type | None = None
    body_required: bool = True
    changes: bool = False
    query: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    header_fields: tuple[HeaderField, ...] = ()
    problems: tuple[type[HoldfastError], ...] = ()
    items: Callable[[Any], int] | None = None

    @property
    def all_problems(self) -> tuple[type[HoldfastError], ...]:
        """Every class of refusal that the operation can answer with."""
        if self.role is None:
            return self.problems
        classes: list[type[HoldfastError]] = [*_COMMON]
        if self.changes:
            classes += [OutcomeUnknown, StoreReadOnly]
        if self.request is not None:
            classes += [PayloadTooLarge, UnsupportedMediaType]
        if IDEMPOTENCY_KEY in self.header_fields:
            classes += [IdempotencyKeyRequired, IdempotencyKeyReused]
        return (*classes, *self.problems)


IDEMPOTENCY_KEY: Final = HeaderField(
    "Idempotency-Key",
    "Tells a retry from a new request: send the same key with every retry. Quoted or bare, "
    f"1 to {MAX_KEY_CHARACTERS} printable ASCII characters.",
    required=True,
    most_characters=MAX_KEY_CHARACTERS,
    pattern="^[!#-~][ -~]*$",
)
_ATTEMPT: Final = HeaderField(
    ATTEMPT_HEADER,
    "Counts the attempts under this key. `1` says that the key was never sent before: a cart whose "
    "rows were all found sold out in the last 25 ms is then refused without asking the store.",
    pattern=f"^{ATTEMPT_FORM}$",
)
_IF_MATCH: Final = HeaderField(
    "If-Match", 'The version that the change is meant for, in quotes as in the row\'s ETag: `"7"`.'
)
_IF_NONE_MATCH: Final = HeaderField(
    "If-None-Match", "`*` makes a row that does not exist yet; send it in place of If-Match."
)
_IF_CHANGED: Final = HeaderField(
    "If-None-Match", "Versions that the client has, in quotes; 304 where one is still current."
)

_LAST_EVENT_ID: Final = HeaderField(
    "Last-Event-ID",
    "The `id` of the last event that the client has; it hears what it missed, or that it must "
    "start anew.",
    most_characters=MAX_POSITION_CHARACTERS,
)

_COMMON: Final[tuple[type[HoldfastError], ...]] = (
    InvalidRequest,
    InvalidCommand,
    Unauthenticated,
    Forbidden,
    ForeignOrigin,
    NotFound,
    RateLimited,
    Overloaded,
    StoreUnavailable,
    HoldfastError,
)
_ORDER_ENDING: Final = (OrderNotFound, OrderEnded)
_ENDING: Final = (ReservationNotFound, ReservationEnded)

_MERCHANT: Final = "/v1/merchants/{merchant}"
_LOCATION: Final = _MERCHANT + "/locations/{location}"
_ROW: Final = _LOCATION + "/stock/{sku}"
_RESERVATION: Final = _MERCHANT + "/reservations/{reservation}"
_ORDERS: Final = _MERCHANT + "/orders"
_ORDER: Final = _ORDERS + "/{order}"
_ITEM: Final = _MERCHANT + "/items/{sku}"
_WEBHOOKS: Final = _MERCHANT + "/webhooks"
_WEBHOOK: Final = _WEBHOOKS + "/{webhook}"
_JOBS: Final = "/v1/audit/jobs"
_KEYS: Final = "/v1/keys"
_SESSION: Final = "/v1/session"

_SUBSTITUTES: Final = _MERCHANT + "/substitutes"
_KITS: Final = _MERCHANT + "/kits"

_SOURCE: Final = _LOCATION + "/feeds/{source}"
_QUARANTINE: Final = _LOCATION + "/quarantine"

_REPLAYED: Final = "Idempotent-Replayed"

OPERATIONS: Final = (
    # The busiest first: the router looks from the top.
    Operation(
        name="askAvailability",
        method="POST",
        path=_MERCHANT + "/availability",
        tag="Stock",
        summary="Ask what can be promised of up to 500 rows",
        handler=stock.ask_availability,
        request=wire.AvailabilityRequest,
        role=Role.READ,
        successes=(Success(200, wire.Availability, "The rows, in the order of the question"),),
        items=lambda body: len(body.rows),
    ),
    Operation(
        name="readStock",
        method="GET",
        path=_ROW,
        tag="Stock",
        summary="Read one row, as it is or as it was",
        handler=stock.read_stock,
        role=Role.READ,
        successes=(
            Success(200, wire.Stock, "The row", ("ETag",)),
            Success(304, None, "The row is still at a version that If-None-Match names", ("ETag",)),
        ),
        header_fields=(_IF_CHANGED,),
        query=("at", *freshness.QUERY),
        problems=(RowNotFound, PastNotKept, HistoryUnavailable),
    ),
    Operation(
        name="reserve",
        method="POST",
        path=_LOCATION + "/reservations",
        tag="Reservations",
        summary="Hold a cart, whole or not at all",
        handler=reservations.reserve,
        request=wire.ReserveRequest,
        role=Role.RESERVE,
        changes=True,
        successes=(Success(201, wire.Reservation, "The hold", ("Location", _REPLAYED)),),
        header_fields=(IDEMPOTENCY_KEY, _ATTEMPT),
        problems=(InsufficientStock, BuyerCapExceeded),
        items=lambda body: len(body.lines),
    ),
    Operation(
        name="listOpenReservations",
        method="GET",
        path=_LOCATION + "/reservations",
        tag="Reservations",
        summary="List a location's held and confirmed reservations, oldest first",
        handler=reservations.list_open,
        role=Role.READ,
        successes=(Success(200, wire.ReservationPage, "A page"),),
        query=QUERY,
    ),
    Operation(
        name="commit",
        method="POST",
        path=_RESERVATION + "/commit",
        tag="Reservations",
        summary="The units left the shelf, all or those that were picked",
        handler=reservations.commit,
        request=wire.CommitRequest,
        body_required=False,
        role=Role.RESERVE,
        changes=True,
        successes=(Success(200, wire.Reservation, "The reservation, committed", (_REPLAYED,)),),
        problems=(*_ENDING, ProposalOpen, BackorderUnfilled, InsufficientOnHand),
    ),
    Operation(
        name="release",
        method="POST",
        path=_RESERVATION + "/release",
        tag="Reservations",
        summary="Give the units back",
        handler=reservations.release,
        request=wire.ReleaseRequest,
        body_required=False,
        role=Role.RESERVE,
        changes=True,
        successes=(Success(200, wire.Reservation, "The reservation, released", (_REPLAYED,)),),
        problems=_ENDING,
    ),
    *(
        Operation(
            name=verb,
            method="POST",
            path=f"{_RESERVATION}/{verb}",
            tag="Reservations",
            summary=summary,
            handler=handler,
            request=wire.DecisionRequest,
            body_required=False,
            role=Role.RESERVE,
            changes=True,
            successes=(Success(200, wire.Reservation, "The reservation", (_REPLAYED,)),),
            problems=(*_ENDING, ProposalDecided),
        )
        for verb, summary, handler in (
            ("accept", "Accept that others stand for what was asked for", reservations.accept),
            ("decline", "Decline it: give their units back", reservations.decline),
        )
    ),
    Operation(
        name="confirm",
        method="POST",
        path=_RESERVATION + "/confirm",
        tag="Reservations",
        summary="The order is placed: keep the units until commit or release",
        handler=reservations.confirm,
        request=wire.ConfirmRequest,
        body_required=False,
        role=Role.RESERVE,
        changes=True,
        successes=(Success(200, wire.Reservation, "The reservation, confirmed", (_REPLAYED,)),),
        # Confirmed before with another order_ref; there is no key, the reservation's id is one.
        problems=(*_ENDING, ProposalOpen, IdempotencyKeyReused),
    ),
    Operation(
        name="extend",
        method="POST",
        path=_RESERVATION + "/extend",
        tag="Reservations",
        summary="Let a hold run for longer",
        handler=reservations.extend,
        request=wire.ExtendRequest,
        role=Role.RESERVE,
        changes=True,
        successes=(Success(200, wire.Reservation, "The reservation, extended", (_REPLAYED,)),),
        header_fields=(IDEMPOTENCY_KEY,),
        problems=(*_ENDING, ReservationNotHeld, LimitExceeded),
    ),
    Operation(
        name="amend",
        method="POST",
        path=_RESERVATION + "/amend",
        tag="Reservations",
        summary="Hold other quantities of some lines, up or down",
        handler=reservations.amend,
        request=wire.AmendRequest,
        role=Role.RESERVE,
        changes=True,
        successes=(Success(200, wire.Reservation, "The reservation, amended", (_REPLAYED,)),),
        header_fields=(IDEMPOTENCY_KEY,),
        problems=(ReservationOnTerms, *_ENDING, InsufficientStock, LimitExceeded),
        items=lambda body: len(body.lines),
    ),
    Operation(
        name="relocate",
        method="POST",
        path=_RESERVATION + "/move",
        tag="Reservations",
        summary="Hold the same at another location",
        handler=reservations.relocate,
        request=wire.RelocateRequest,
        role=Role.RESERVE,
        changes=True,
        successes=(
            Success(201, wire.RelocatedReservation, "The new hold", ("Location", _REPLAYED)),
        ),
        header_fields=(IDEMPOTENCY_KEY,),
        problems=(ReservationOnTerms, *_ENDING, InsufficientStock, BuyerCapExceeded),
    ),
    Operation(
        name="readReservation",
        method="GET",
        path=_RESERVATION,
        tag="Reservations",
        summary="Read a reservation; ended ones for 24 hours",
        handler=reservations.read,
        role=Role.READ,
        successes=(Success(200, wire.Reservation, "The reservation"),),
        problems=(ReservationNotFound,),
    ),
    Operation(
        name="move",
        method="POST",
        path=_LOCATION + "/movements",
        tag="Movements",
        summary="Book units that came to the shelf or left it",
        handler=movements.move,
        request=wire.MovementRequest,
        role=Role.FEED,
        changes=True,
        successes=(Success(201, wire.Movement, "The booked movement", (_REPLAYED,)),),
        header_fields=(IDEMPOTENCY_KEY,),
        problems=(InsufficientOnHand, VersionConflict, LimitExceeded),
    ),
    Operation(
        name="moveBatch",
        method="POST",
        path=_MERCHANT + "/movements/batch",
        tag="Movements",
        summary="Book up to 1,000 movements that stand or fall alone",
        handler=movements.move_batch,
        request=wire.MovementBatchRequest,
        role=Role.FEED,
        changes=True,
        successes=(Success(200, wire.MovementBatch, "What became of each movement"),),
        items=lambda body: len(body.movements),
    ),
    Operation(
        name="takeEvents",
        method="POST",
        path=_SOURCE + "/events",
        tag="Feeds",
        summary="Take up to 1,000 events of a till or a supplier, late or not",
        handler=feeds.take,
        request=feed_bodies.FeedRequest,
        role=Role.FEED,
        changes=True,
        successes=(Success(200, feed_bodies.FeedAnswer, "What became of each event"),),
    ),
    Operation(
        name="listFeeds",
        method="GET",
        path=_LOCATION + "/feeds",
        tag="Feeds",
        summary="List a location's sources of events: state, gaps, lag",
        handler=feeds.list_sources,
        role=Role.READ,
        successes=(Success(200, feed_bodies.FeedList, "The sources"),),
    ),
    Operation(
        name="skipEvents",
        method="POST",
        path=_SOURCE + "/skip",
        tag="Feeds",
        summary="Give up on the sequence numbers that have not come",
        handler=feeds.skip,
        request=feed_bodies.SkipRequest,
        role=Role.FEED,
        changes=True,
        successes=(Success(200, feed_bodies.Decision, "What became of it"),),
        problems=(LimitExceeded,),
    ),
    Operation(
        name="listQuarantine",
        method="GET",
        path=_QUARANTINE,
        tag="Feeds",
        summary="List a location's events that were set aside",
        handler=feeds.list_quarantined,
        role=Role.READ,
        successes=(Success(200, feed_bodies.QuarantinePage, "A page"),),
        query=QUERY,
    ),
    Operation(
        name="retryEvent",
        method="POST",
        path=_QUARANTINE + "/{event}/retry",
        tag="Feeds",
        summary="Book an event that was set aside, if nothing speaks against it any more",
        handler=feeds.retry,
        role=Role.FEED,
        changes=True,
        successes=(Success(200, feed_bodies.Decision, "What became of it"),),
        problems=(LimitExceeded, IdempotencyKeyReused),
    ),
    Operation(
        name="dropEvent",
        method="POST",
        path=_QUARANTINE + "/{event}/drop",
        tag="Feeds",
        summary="Give up on an event that was set aside",
        handler=feeds.drop,
        role=Role.FEED,
        changes=True,
        successes=(Success(200, feed_bodies.Decision, "What became of it"),),
    ),
    Operation(
        name="listShortfalls",
        method="GET",
        path=_LOCATION + "/shortfalls",
        tag="Feeds",
        summary="List what is promised and not there, whose it is, and the ways out",
        handler=shortfalls.list_shortfalls,
        role=Role.READ,
        successes=(Success(200, shortfalls.ShortfallList, "The shortfalls"),),
    ),
    *(
        Operation(
            name=f"{verb}{name}FeedPolicy",
            method=method,
            path=path + "/feed-policy",
            tag="Feeds",
            summary=f"{verb.title()} what is decided for a {name.lower()}'s feeds",
            handler=feeds.write_policy if method == "PUT" else feeds.read_policy,
            request=feed_bodies.FeedPolicy if method == "PUT" else None,
            role=Role.ADMIN if method == "PUT" else Role.READ,
            changes=method == "PUT",
            successes=(Success(200, feed_bodies.FeedPolicy, "What is decided there"),),
            problems=(LimitExceeded,) if method == "PUT" else (),
        )
        for name, path in (("Merchant", _MERCHANT), ("Location", _LOCATION))
        for verb, method in (("read", "GET"), ("write", "PUT"))
    ),
    Operation(
        name="changeSettings",
        method="PATCH",
        path=_ROW + "/settings",
        tag="Stock",
        summary="Set a row's safety stock",
        handler=stock.change_settings,
        request=wire.SettingsRequest,
        role=Role.ADMIN,
        changes=True,
        successes=(Success(200, wire.Stock, "The row just after", ("ETag", _REPLAYED)),),
        header_fields=(IDEMPOTENCY_KEY, _IF_MATCH, _IF_NONE_MATCH),
        problems=(PreconditionFailed, PreconditionRequired, LimitExceeded),
    ),
    Operation(
        name="readSplit",
        method="GET",
        path=_ROW + "/split",
        tag="Stock",
        summary="Tell over which partitions a row is spread",
        handler=stock.read_split,
        role=Role.ADMIN,
        successes=(Success(200, wire.Split, "How the row is split"),),
        problems=(RowNotFound,),
    ),
    Operation(
        name="changeSplit",
        method="PUT",
        path=_ROW + "/split",
        tag="Stock",
        summary="Spread a hot row over partitions, or no longer",
        handler=stock.change_split,
        request=wire.SplitRequest,
        role=Role.ADMIN,
        changes=True,
        successes=(Success(200, wire.Split, "How the row is split from here on"),),
        problems=(RowNotFound, LimitExceeded),
    ),
    Operation(
        name="placeOrder",
        method="POST",
        path=_ORDERS,
        tag="Orders",
        summary="Hold an order over any number of locations, whole or not at all",
        handler=orders.place,
        request=orders.OrderRequest,
        role=Role.RESERVE,
        changes=True,
        successes=(Success(201, orders.Order, "The order, held", ("Location", _REPLAYED)),),
        header_fields=(IDEMPOTENCY_KEY,),
        problems=(InsufficientStock, LimitExceeded, OrderEnded),
        items=lambda body: len(body.lines),
    ),
    Operation(
        name="listOrders",
        method="GET",
        path=_ORDERS,
        tag="Orders",
        summary="List a merchant's orders, oldest first",
        handler=orders.list_all,
        role=Role.READ,
        successes=(Success(200, orders.OrderPage, "A page"),),
        query=orders.QUERY,
    ),
    Operation(
        name="readOrder",
        method="GET",
        path=_ORDER,
        tag="Orders",
        summary="Read an order and its parts",
        handler=orders.read,
        role=Role.READ,
        successes=(Success(200, orders.Order, "The order"),),
        problems=(OrderNotFound,),
    ),
    Operation(
        name="confirmOrder",
        method="POST",
        path=_ORDER + "/confirm",
        tag="Orders",
        summary="The order is placed: keep all of its parts until commit or cancel",
        handler=orders.confirm,
        role=Role.RESERVE,
        changes=True,
        successes=(Success(200, orders.Order, "The order, confirmed", (_REPLAYED,)),),
        problems=_ORDER_ENDING,
    ),
    Operation(
        name="cancelOrder",
        method="POST",
        path=_ORDER + "/cancel",
        tag="Orders",
        summary="Give back what the order holds",
        handler=orders.cancel,
        request=orders.CancelRequest,
        body_required=False,
        role=Role.RESERVE,
        changes=True,
        successes=(Success(200, orders.Order, "The order, cancelled", (_REPLAYED,)),),
        problems=_ORDER_ENDING,
    ),
    Operation(
        name="commitOrder",
        method="POST",
        path=_ORDER + "/commit",
        tag="Orders",
        summary="The units of one part, or of all, left the shelf",
        handler=orders.commit,
        request=orders.CommitOrderRequest,
        body_required=False,
        role=Role.RESERVE,
        changes=True,
        successes=(Success(200, orders.Order, "The order just after", (_REPLAYED,)),),
        problems=(*_ORDER_ENDING, InsufficientOnHand),
    ),
    Operation(
        name="readSourcing",
        method="GET",
        path=_LOCATION + "/sourcing",
        tag="Orders",
        summary="Read a location's settings for sourcing",
        handler=orders.read_sourcing,
        role=Role.READ,
        successes=(Success(200, orders.LocationSourcing, "The settings"),),
    ),
    Operation(
        name="writeSourcing",
        method="PUT",
        path=_LOCATION + "/sourcing",
        tag="Orders",
        summary="Say where a location is, which comes first, and whether it ships",
        handler=orders.write_sourcing,
        request=orders.LocationSourcing,
        role=Role.ADMIN,
        successes=(Success(200, orders.LocationSourcing, "The settings"),),
        problems=(LimitExceeded,),
    ),
    Operation(
        name="readTerms",
        method="GET",
        path=_ROW + "/terms",
        tag="Stock",
        summary="On what terms a row's units are promised",
        handler=stock.read_terms,
        role=Role.READ,
        successes=(Success(200, wire.Terms, "The terms; of a plain row none", ("ETag",)),),
        problems=(RowNotFound,),
    ),
    Operation(
        name="setTerms",
        method="PUT",
        path=_ROW + "/terms",
        tag="Stock",
        summary="Set on what terms a row's units are promised",
        handler=stock.set_terms,
        request=wire.TermsRequest,
        role=Role.ADMIN,
        changes=True,
        successes=(Success(200, wire.Stock, "The row just after", ("ETag", _REPLAYED)),),
        header_fields=(IDEMPOTENCY_KEY, _IF_MATCH, _IF_NONE_MATCH),
        problems=(PreconditionFailed, PreconditionRequired, LimitExceeded),
    ),
    Operation(
        name="listStock",
        method="GET",
        path=_LOCATION + "/stock",
        tag="Stock",
        summary="List a location's rows by SKU",
        handler=stock.list_stock,
        role=Role.READ,
        successes=(Success(200, wire.StockPage, "A page"),),
        query=QUERY,
    ),
    Operation(
        name="listLocations",
        method="GET",
        path=_MERCHANT + "/locations",
        tag="Stock",
        summary="List a merchant's locations",
        handler=stock.list_locations,
        role=Role.READ,
        successes=(Success(200, wire.LocationPage, "A page"),),
        query=QUERY,
    ),
    Operation(
        name="readLedger",
        method="GET",
        path=_MERCHANT + "/ledger",
        tag="Ledger",
        summary="Ask what happened: by location, SKU, reservation, actor, reference, kind, time",
        handler=ledger.read_ledger,
        role=Role.READ,
        successes=(Success(200, entries.LedgerPage, "A page"),),
        query=ledger.QUERY,
        problems=(HistoryUnavailable,),
    ),
    Operation(
        name="search",
        method="GET",
        path=_MERCHANT + "/search",
        tag="Search",
        summary="Find rows by words, SKU, location and stock",
        handler=search.search,
        role=Role.READ,
        successes=(Success(200, search_wire.SearchPage, "A page"),),
        query=search.QUERY,
        problems=(IndexUnavailable,),
    ),
    Operation(
        name="putItem",
        method="PUT",
        path=_ITEM,
        tag="Search",
        summary="Say what a SKU is called",
        handler=search.put_item,
        request=search_wire.ItemRequest,
        role=Role.FEED,
        successes=(Success(200, search_wire.ItemAnswer, "The item"),),
        problems=(IndexUnavailable,),
    ),
    Operation(
        name="readItem",
        method="GET",
        path=_ITEM,
        tag="Search",
        summary="Read what a SKU is called",
        handler=search.read_item,
        role=Role.READ,
        successes=(Success(200, search_wire.ItemAnswer, "The item"),),
        problems=(ItemNotFound, IndexUnavailable),
    ),
    Operation(
        name="deleteItem",
        method="DELETE",
        path=_ITEM,
        tag="Search",
        summary="Forget what a SKU is called",
        handler=search.delete_item,
        role=Role.FEED,
        successes=(Success(204, None, "It is forgotten"),),
        problems=(ItemNotFound, IndexUnavailable),
    ),
    Operation(
        name="listSubstitutes",
        method="GET",
        path=_SUBSTITUTES,
        tag="Substitutes and kits",
        summary="List what may stand for which SKU",
        handler=definitions.list_substitutes,
        role=Role.READ,
        successes=(Success(200, definition_wire.SubstitutesPage, "A page"),),
        query=QUERY,
    ),
    Operation(
        name="importSubstitutes",
        method="POST",
        path=_SUBSTITUTES,
        tag="Substitutes and kits",
        summary="Say what may stand for up to 1,000 SKUs, all or none",
        handler=definitions.import_substitutes,
        request=definition_wire.SubstitutesImportRequest,
        role=Role.ADMIN,
        changes=True,
        successes=(Success(200, definition_wire.Imported, "How many were taken"),),
        problems=(LimitExceeded,),
        items=lambda body: len(body.substitutes),
    ),
    Operation(
        name="readSubstitutes",
        method="GET",
        path=_SUBSTITUTES + "/{sku}",
        tag="Substitutes and kits",
        summary="Read what may stand for a SKU",
        handler=definitions.read_substitutes,
        role=Role.READ,
        successes=(Success(200, definition_wire.Substitutes, "The rules"),),
        problems=(SubstitutesNotFound,),
    ),
    Operation(
        name="putSubstitutes",
        method="PUT",
        path=_SUBSTITUTES + "/{sku}",
        tag="Substitutes and kits",
        summary="Say what may stand for a SKU",
        handler=definitions.write_substitutes,
        request=definition_wire.SubstitutesRequest,
        role=Role.ADMIN,
        changes=True,
        successes=(Success(200, definition_wire.Substitutes, "The rules"),),
        problems=(LimitExceeded,),
    ),
    Operation(
        name="deleteSubstitutes",
        method="DELETE",
        path=_SUBSTITUTES + "/{sku}",
        tag="Substitutes and kits",
        summary="Let nothing stand for a SKU any more",
        handler=definitions.delete_substitutes,
        role=Role.ADMIN,
        changes=True,
        successes=(Success(204, None, "They are gone"),),
        problems=(SubstitutesNotFound,),
    ),
    Operation(
        name="listKits",
        method="GET",
        path=_KITS,
        tag="Substitutes and kits",
        summary="List kits and what they are made of",
        handler=definitions.list_kits,
        role=Role.READ,
        successes=(Success(200, definition_wire.KitPage, "A page"),),
        query=QUERY,
    ),
    Operation(
        name="importKits",
        method="POST",
        path=_KITS,
        tag="Substitutes and kits",
        summary="Say what up to 1,000 kits are made of, all or none",
        handler=definitions.import_kits,
        request=definition_wire.KitsImportRequest,
        role=Role.ADMIN,
        changes=True,
        successes=(Success(200, definition_wire.Imported, "How many were taken"),),
        problems=(LimitExceeded,),
        items=lambda body: len(body.kits),
    ),
    Operation(
        name="readKit",
        method="GET",
        path=_KITS + "/{sku}",
        tag="Substitutes and kits",
        summary="Read what a kit is made of",
        handler=definitions.read_kit,
        role=Role.READ,
        successes=(Success(200, definition_wire.KitAnswer, "The kit"),),
        problems=(KitNotFound,),
    ),
    Operation(
        name="putKit",
        method="PUT",
        path=_KITS + "/{sku}",
        tag="Substitutes and kits",
        summary="Say what a kit is made of",
        handler=definitions.write_kit,
        request=definition_wire.KitRequest,
        role=Role.ADMIN,
        changes=True,
        successes=(Success(200, definition_wire.KitAnswer, "The kit"),),
        problems=(LimitExceeded,),
    ),
    Operation(
        name="deleteKit",
        method="DELETE",
        path=_KITS + "/{sku}",
        tag="Substitutes and kits",
        summary="Take a kit's definition away",
        handler=definitions.delete_kit,
        role=Role.ADMIN,
        changes=True,
        successes=(Success(204, None, "It is gone"),),
        problems=(KitNotFound,),
    ),
    Operation(
        name="createWebhook",
        method="POST",
        path=_WEBHOOKS,
        tag="Webhooks",
        summary="Have events sent to a URL",
        handler=webhooks.create,
        request=webhook_wire.WebhookRequest,
        role=Role.ADMIN,
        changes=True,
        successes=(
            Success(201, webhook_wire.WebhookWithSecret, "It and its secret", (_REPLAYED,)),
        ),
        header_fields=(IDEMPOTENCY_KEY,),
        problems=(LimitExceeded,),
    ),
    Operation(
        name="listWebhooks",
        method="GET",
        path=_WEBHOOKS,
        tag="Webhooks",
        summary="List a merchant's webhooks and how they do",
        handler=webhooks.list_all,
        role=Role.ADMIN,
        successes=(Success(200, webhook_wire.WebhookPage, "All of them"),),
    ),
    Operation(
        name="readWebhook",
        method="GET",
        path=_WEBHOOK,
        tag="Webhooks",
        summary="Read a webhook and how it does",
        handler=webhooks.read,
        role=Role.ADMIN,
        successes=(Success(200, webhook_wire.Webhook, "The webhook"),),
        problems=(WebhookNotFound,),
    ),
    Operation(
        name="changeWebhook",
        method="PATCH",
        path=_WEBHOOK,
        tag="Webhooks",
        summary="Change a webhook, pause or resume it",
        handler=webhooks.change,
        request=webhook_wire.WebhookChangeRequest,
        role=Role.ADMIN,
        changes=True,
        successes=(Success(200, webhook_wire.Webhook, "The webhook just after"),),
        problems=(WebhookNotFound,),
    ),
    Operation(
        name="deleteWebhook",
        method="DELETE",
        path=_WEBHOOK,
        tag="Webhooks",
        summary="Remove a webhook and what waits for it",
        handler=webhooks.delete,
        role=Role.ADMIN,
        changes=True,
        successes=(Success(204, None, "It is gone"),),
        problems=(WebhookNotFound,),
    ),
    Operation(
        name="rotateWebhookSecret",
        method="POST",
        path=_WEBHOOK + "/secret",
        tag="Webhooks",
        summary="Make a new secret; the old one stays valid for a while",
        handler=webhooks.rotate_secret,
        request=webhook_wire.WebhookSecretRequest,
        body_required=False,
        role=Role.ADMIN,
        changes=True,
        successes=(
            Success(200, webhook_wire.WebhookWithSecret, "It and its new secret", (_REPLAYED,)),
        ),
        header_fields=(IDEMPOTENCY_KEY,),
        problems=(WebhookNotFound,),
    ),
    Operation(
        name="testWebhook",
        method="POST",
        path=_WEBHOOK + "/test",
        tag="Webhooks",
        summary="Send a test event now, and tell what came of it",
        handler=webhooks.test,
        role=Role.ADMIN,
        successes=(Success(200, webhook_wire.TestDelivery, "What came of it"),),
        problems=(WebhookNotFound,),
    ),
    Operation(
        name="listWebhookAttempts",
        method="GET",
        path=_WEBHOOK + "/attempts",
        tag="Webhooks",
        summary="List the last attempts to deliver, newest first",
        handler=webhooks.list_attempts,
        role=Role.ADMIN,
        successes=(Success(200, webhook_wire.WebhookAttemptPage, "A page"),),
        query=QUERY,
        problems=(WebhookNotFound,),
    ),
    Operation(
        name="listDeadLetters",
        method="GET",
        path=_WEBHOOK + "/dead-letters",
        tag="Webhooks",
        summary="List the events that were given up, oldest first",
        handler=webhooks.list_dead_letters,
        role=Role.ADMIN,
        successes=(Success(200, webhook_wire.DeadLetterPage, "A page"),),
        query=QUERY,
        problems=(WebhookNotFound,),
    ),
    Operation(
        name="replayDeadLetters",
        method="POST",
        path=_WEBHOOK + "/dead-letters/replay",
        tag="Webhooks",
        summary="Send given-up events again",
        handler=webhooks.replay,
        request=webhook_wire.ReplayRequest,
        body_required=False,
        role=Role.ADMIN,
        changes=True,
        successes=(Success(200, webhook_wire.Replayed, "How many are on their way"),),
        problems=(WebhookNotFound, LimitExceeded),
    ),
    Operation(
        name="listen",
        method="GET",
        path=_MERCHANT + "/stream",
        tag="Real time",
        summary="Hear of every change as it happens",
        handler=sse.listen,
        role=Role.READ,
        successes=(
            Success(
                200,
                None,
                "Server-sent events, without an end: a snapshot of the rows, then what changes",
                media_type="text/event-stream",
            ),
        ),
        query=sse.QUERY,
        lists=sse.LISTS,
        header_fields=(_LAST_EVENT_ID,),
        problems=(LimitExceeded,),
    ),
    Operation(
        name="listMerchants",
        method="GET",
        path="/v1/merchants",
        tag="Stock",
        summary="List the merchants that have stock, to a key of the whole platform",
        handler=stock.list_merchants,
        role=Role.READ,
        successes=(Success(200, wire.MerchantPage, "A page"),),
        query=QUERY,
    ),
    Operation(
        name="readOverview",
        method="GET",
        path="/v1/overview",
        tag="Overview",
        summary="Tell how the service is, to a key of the whole platform",
        handler=overview.read,
        role=Role.READ,
        successes=(Success(200, overview.Overview, "How it is"),),
    ),
    Operation(
        name="readMerchantOverview",
        method="GET",
        path=_MERCHANT + "/overview",
        tag="Overview",
        summary="Tell how a merchant's locations are",
        handler=overview.read_merchant,
        role=Role.READ,
        successes=(Success(200, overview.MerchantOverview, "How they are"),),
    ),
    Operation(
        name="readAudit",
        method="GET",
        path="/v1/audit",
        tag="Overview",
        summary="Tell what the running audit last found, to a key of the whole platform",
        handler=audit.read,
        role=Role.READ,
        successes=(Success(200, audit.AuditReport, "What it found"),),
    ),
    Operation(
        name="submitAuditJob",
        method="POST",
        path=_JOBS,
        tag="Overview",
        summary="Have the background process plan or apply a repair, or look at an import",
        handler=jobs.submit,
        role=Role.ADMIN,
        request=jobs.JobRequest,
        changes=True,
        header_fields=(IDEMPOTENCY_KEY,),
        successes=(Success(202, jobs.JobAnswer, "It is queued", (_REPLAYED,)),),
        problems=(LimitExceeded,),
    ),
    Operation(
        name="listAuditJobs",
        method="GET",
        path=_JOBS,
        tag="Overview",
        summary="List the jobs of the last day, the newest first",
        handler=jobs.list_all,
        role=Role.ADMIN,
        successes=(Success(200, jobs.JobList, "The jobs"),),
    ),
    Operation(
        name="readAuditJob",
        method="GET",
        path=_JOBS + "/{job}",
        tag="Overview",
        summary="Read a job and what came of it",
        handler=jobs.read,
        role=Role.ADMIN,
        successes=(Success(200, jobs.JobAnswer, "The job"),),
    ),
    Operation(
        name="listKeys",
        method="GET",
        path=_KEYS,
        tag="Keys",
        summary="List all API keys",
        handler=api_keys.list_all,
        role=Role.ADMIN,
        successes=(Success(200, api_keys.KeyList, "The keys"),),
    ),
    Operation(
        name="createKey",
        method="POST",
        path=_KEYS,
        tag="Keys",
        summary="Make an API key",
        handler=api_keys.create,
        request=api_keys.KeyRequest,
        role=Role.ADMIN,
        changes=True,
        successes=(Success(201, api_keys.KeyWithSecret, "It and its secret"),),
        problems=(LimitExceeded,),
    ),
    Operation(
        name="revokeKey",
        method="DELETE",
        path=_KEYS + "/{key}",
        tag="Keys",
        summary="Revoke an API key for good",
        handler=api_keys.revoke,
        role=Role.ADMIN,
        changes=True,
        successes=(Success(200, api_keys.KeyAnswer, "The key, revoked"),),
    ),
    Operation(
        name="createSession",
        method="POST",
        path=_SESSION,
        tag="Sessions",
        summary="Sign in to the console with an API key",
        handler=sessions.create,
        request=sessions.SessionRequest,
        role=None,
        successes=(
            Success(201, sessions.SessionAnswer, "Whose key it is, and a cookie", ("Set-Cookie",)),
        ),
        problems=(
            InvalidRequest,
            Unauthenticated,
            ForeignOrigin,
            PayloadTooLarge,
            UnsupportedMediaType,
            RateLimited,
            Overloaded,
            StoreUnavailable,
            HoldfastError,
        ),
    ),
    Operation(
        name="readSession",
        method="GET",
        path=_SESSION,
        tag="Sessions",
        summary="Tell whose key or session this is",
        handler=sessions.read,
        role=Role.READ,
        any_merchant=True,
        successes=(Success(200, sessions.SessionAnswer, "Whose it is"),),
    ),
    Operation(
        name="deleteSession",
        method="DELETE",
        path=_SESSION,
        tag="Sessions",
        summary="Sign out",
        handler=sessions.delete,
        role=Role.READ,
        any_merchant=True,
        successes=(Success(204, None, "The session is over", ("Set-Cookie",)),),
    ),
    Operation(
        name="live",
        method="GET",
        path="/livez",
        tag="Health",
        summary="Whether the process lives",
        handler=health.live,
        role=None,
        successes=(Success(200, wire.Liveness, "It lives"),),
    ),
    Operation(
        name="ready",
        method="GET",
        path="/readyz",
        tag="Health",
        summary="Whether requests can be served",
        handler=health.ready,
        role=None,
        successes=(
            Success(200, wire.Readiness, "They can"),
            Success(503, wire.Readiness, "They cannot; `reasons` say why"),
        ),
    ),
    Operation(
        name="metrics",
        method="GET",
        path="/metrics",
        tag="Health",
        summary="Tell Prometheus how the service and its store are; for a key of all merchants",
        handler=scrape.scrape,
        role=Role.READ,
        successes=(
            Success(
                200,
                None,
                "Metrics, as text or in the format of OpenMetrics",
                media_type="text/plain",
            ),
        ),
    ),
)


def by_path(operations: Iterable[Operation] = OPERATIONS) -> dict[str, list[Operation]]:
    """Group operations by their path, in order."""
    paths: dict[str, list[Operation]] = {}
    for operation in operations:
        paths.setdefault(operation.path, []).append(operation)
    return paths
