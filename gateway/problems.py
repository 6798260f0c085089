"""Refusals as RFC 9457 problems: one table from exception class to status and title.

The gateway's own refusals are here too, as HoldfastErrors, so that a handler raises one kind of
thing. Nothing parses a message: places in the body, parameters and headers come from typed fields.
"""

import re
from collections.abc import Collection, Sequence
from math import ceil
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgspec

from engine.access import Role
from engine.feeds import FeedEvent
from engine.limits import MAX_KEY_CHARACTERS
from engine.model import Movement, time_text
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
    RowNotFound,
    ShortLine,
    StoreFault,
    StoreReadOnly,
    StoreUnavailable,
    SubstitutesNotFound,
    SupplyNotFound,
    VersionConflict,
    WebhookNotFound,
)
from gateway.reservation_wire import ConfirmRequest
from gateway.wire import ItemProblem, Problem, ProblemError

MAX_DETAIL_CHARACTERS: Final = 500
"""Of a problem's texts: some quote the caller, who may have sent anything."""


class InvalidRequest(HoldfastError):
    """The request is not of its form; `errors` say where."""

    code = "invalid_request"

    def __init__(self, *errors: ProblemError) -> None:
        """Keep what is wrong, at least one thing."""
        self.errors = errors
        super().__init__(errors[0].detail)


class IdempotencyKeyRequired(HoldfastError):
    """The request changes something and has no id of its own, so a retry could not be told."""

    code = "idempotency_key_required"

    def __init__(self) -> None:
        """Say how to mend it."""
        super().__init__(
            f"send an Idempotency-Key header of 1 to {MAX_KEY_CHARACTERS} printable ASCII "
            "characters, and the same one with every retry"
        )


class Unauthenticated(HoldfastError):
    """There is no valid API key."""

    code = "unauthenticated"

    def __init__(self) -> None:
        """Say the same for every reason, so that nothing can be probed."""
        super().__init__("send a valid API key as `Authorization: Bearer hfk_...`")


class Forbidden(HoldfastError):
    """The key's role does not do this; `needed` does."""

    code = "forbidden"

    def __init__(self, *, needed: Role, role: Role) -> None:
        """Keep both roles."""
        self.needed = needed
        self.role = role
        super().__init__(f"this needs a key of role {needed}; yours has role {role}")


class RateLimited(HoldfastError):
    """The key has asked for more than its rate limit; nothing was done."""

    code = "rate_limited"

    def __init__(self, *, retry_after_ms: int) -> None:
        """Keep the time to wait."""
        self.retry_after_ms = retry_after_ms
        super().__init__("the key has asked for more than its rate limit allows")


class ForeignOrigin(HoldfastError):
    """A page of another site tries to open a socket, or to use a session of the console."""

    code = "foreign_origin"

    def __init__(self) -> None:
        """Say how to mend it."""
        super().__init__("a page may call only the host that it came from")


class NotFound(HoldfastError):
    """There is no such path, or it is another merchant's: the two look alike."""

    code = "not_found"

    def __init__(self) -> None:
        """Say nothing of what was asked for."""
        super().__init__("there is nothing here")


class MethodNotAllowed(HoldfastError):
    """The path does not take the method; it takes those of `allowed`."""

    code = "method_not_allowed"

    def __init__(self, allowed: Collection[str]) -> None:
        """Keep the methods in order."""
        self.allowed = tuple(sorted(allowed))
        super().__init__(f"this path takes {', '.join(self.allowed)}")


class UnsupportedMediaType(HoldfastError):
    """The body is not plain JSON."""

    code = "unsupported_media_type"

    def __init__(self, header: str) -> None:
        """Keep the header that says so."""
        self.header = header
        super().__init__("send the body as application/json in UTF-8, not compressed")


class PayloadTooLarge(HoldfastError):
    """The body has more than `most_bytes`."""

    code = "payload_too_large"

    def __init__(self, *, most_bytes: int) -> None:
        """Keep the bound."""
        self.most_bytes = most_bytes
        super().__init__(f"a body may have {most_bytes} bytes")


class PreconditionRequired(HoldfastError):
    """The change must say which version of the row it is meant for."""

    code = "precondition_required"

    def __init__(self) -> None:
        """Say how to mend it."""
        super().__init__(
            'send the row\'s version as `If-Match: "<version>"`, or `If-None-Match: *` to make '
            "the row"
        )


class PreconditionFailed(VersionConflict):
    """The row is not at the version that the request's precondition names."""


class Kind(NamedTuple):
    """What all problems of a class share."""

    status: int
    title: str


KINDS: Final[dict[type[HoldfastError], Kind]] = {
    HoldfastError: Kind(500, "Internal error"),
    StoreFault: Kind(500, "Internal error"),
    InvalidRequest: Kind(400, "Invalid request"),
    InvalidCommand: Kind(400, "Invalid request"),
    IdempotencyKeyRequired: Kind(400, "Idempotency-Key required"),
    Unauthenticated: Kind(401, "Unauthenticated"),
    Forbidden: Kind(403, "Forbidden"),
    ForeignOrigin: Kind(403, "Foreign origin"),
    NotFound: Kind(404, "Not found"),
    RowNotFound: Kind(404, "Row not found"),
    OrderNotFound: Kind(404, "Order not found"),
    ReservationNotFound: Kind(404, "Reservation not found"),
    ItemNotFound: Kind(404, "Item not found"),
    SubstitutesNotFound: Kind(404, "Substitutes not found"),
    KitNotFound: Kind(404, "Kit not found"),
    WebhookNotFound: Kind(404, "Webhook not found"),
    MethodNotAllowed: Kind(405, "Method not allowed"),
    InsufficientStock: Kind(409, "Insufficient stock"),
    InsufficientOnHand: Kind(409, "Insufficient units on hand"),
    BuyerCapExceeded: Kind(409, "Buyer cap exceeded"),
    BackorderUnfilled: Kind(409, "Backorder unfilled"),
    SupplyNotFound: Kind(404, "Supply not found"),
    OrderEnded: Kind(409, "Order ended"),
    ReservationEnded: Kind(409, "Reservation ended"),
    ReservationNotHeld: Kind(409, "Reservation not held"),
    ProposalOpen: Kind(409, "Proposal open"),
    ProposalDecided: Kind(409, "Proposal decided"),
    VersionConflict: Kind(409, "Version conflict"),
    PreconditionFailed: Kind(412, "Version conflict"),
    PayloadTooLarge: Kind(413, "Payload too large"),
    UnsupportedMediaType: Kind(415, "Unsupported media type"),
    IdempotencyKeyReused: Kind(422, "Idempotency-Key reused"),
    LimitExceeded: Kind(422, "Limit exceeded"),
    PastNotKept: Kind(422, "Past not kept"),
    PreconditionRequired: Kind(428, "Precondition required"),
    RateLimited: Kind(429, "Rate limited"),
    Overloaded: Kind(503, "Overloaded"),
    StoreUnavailable: Kind(503, "Store unavailable"),
    StoreReadOnly: Kind(503, "Store is read-only"),
    OutcomeUnknown: Kind(503, "Outcome unknown"),
    HistoryUnavailable: Kind(503, "History unavailable"),
    IndexUnavailable: Kind(503, "Index unavailable"),
}
"""Every class of refusal that can reach a caller. A test walks the subclasses."""

_INTERNAL_DETAIL = "something went wrong on our side; quote the request id when you report it"
_INDEX = re.compile(r"\[(\d+)\]")
CURSOR_FIELDS: Final = frozenset({"after"})
"""What the engine calls the place that a cursor carries."""


def kind_of(refused: type[HoldfastError]) -> Kind:
    """Return the entry of the class, or of the nearest class that it extends."""
    return next(KINDS[cls] for cls in refused.__mro__ if cls in KINDS)


def problem(
    error: HoldfastError,
    request_id: str,
    *,
    body: object = None,
    parameters: Collection[str] = (),
) -> Problem:
    """Describe a refusal.

    `body` is the decoded request, for pointers to its lines; `parameters` names those of the path,
    so that a field is known for a parameter and not for a part of the body.
    """
    kind = kind_of(type(error))
    return Problem(
        type=f"/problems/{error.code}",
        title=kind.title,
        status=kind.status,
        detail=_detail(error, kind),
        code=error.code,
        request_id=request_id,
        errors=_errors(error, body, parameters),
    )


def item_problem(error: HoldfastError, *, body: object, prefix: str) -> ItemProblem:
    """Describe the refusal of one item of a batch; `prefix` is the pointer to the item."""
    kind = kind_of(type(error))
    return ItemProblem(
        type=f"/problems/{error.code}",
        title=kind.title,
        status=kind.status,
        detail=_detail(error, kind),
        code=error.code,
        errors=[
            entry
            if entry.pointer is msgspec.UNSET
            else msgspec.structs.replace(entry, pointer=prefix + entry.pointer.removeprefix("#"))
            for entry in _errors(error, body, ())
        ],
    )


def headers(error: HoldfastError) -> list[tuple[bytes, bytes]]:
    """Return the response headers that a refusal brings."""
    match error:
        case Unauthenticated():
            return [(b"www-authenticate", b'Bearer realm="holdfast"')]
        case MethodNotAllowed():
            return [(b"allow", ", ".join(error.allowed).encode())]
        case (
            RateLimited()
            | Overloaded()
            | StoreUnavailable()
            | StoreReadOnly()
            | OutcomeUnknown()
            | HistoryUnavailable()
            | IndexUnavailable()
        ):
            return [(b"retry-after", b"%d" % max(1, ceil(error.retry_after_ms / 1000)))]
        case _:
            return []


def pointer(path: Sequence[str]) -> str:
    """Write an RFC 6901 pointer in its URI fragment form; ["lines", "0"] is `#/lines/0`."""
    return "#" + "".join(
        "/" + quote(part.replace("~", "~0").replace("/", "~1"), safe="~", errors="replace")
        for part in path
    )


def path_of(field: str) -> list[str]:
    """Split `lines[0].sku` into its parts."""
    return [part for part in _INDEX.sub(r".\1", field).split(".") if part]


def _detail(error: HoldfastError, kind: Kind) -> str:
    # What went wrong inside is for the log; a caller could neither use it nor should see it.
    return _INTERNAL_DETAIL if kind.status == 500 else shortened(str(error))


def shortened(text: str) -> str:
    """Cut what is too long to be told."""
    if len(text) <= MAX_DETAIL_CHARACTERS:
        return text
    return text[: MAX_DETAIL_CHARACTERS - 1] + "…"


def _errors(error: HoldfastError, body: object, parameters: Collection[str]) -> list[ProblemError]:
    detail = shortened(str(error))
    match error:
        case InvalidRequest():
            return list(error.errors)
        case InvalidCommand():
            return [_field_error(error.field, error.remedy, parameters)]
        case LimitExceeded():
            entry = _field_error(error.field, detail, parameters)
            return [msgspec.structs.replace(entry, most=error.most)]
        case InsufficientStock():
            return [
                *(_short_line(line, body, "available") for line in error.lines),
                *(
                    ProblemError(parameter="location", detail=f"{location}: {why}")
                    for location, why in error.passed_over
                ),
            ]
        case BuyerCapExceeded():
            return [_short_line(line, body, "available") for line in error.lines]
        case InsufficientOnHand():
            return [_short_line(line, body, "on_hand") for line in error.lines]
        case BackorderUnfilled():
            return [_short_line(line, body, "filled") for line in error.lines]
        case SupplyNotFound():
            expects = error.expects or msgspec.UNSET
            if body is None:
                return [ProblemError(parameter="supply", detail=detail, expects=expects)]
            return [ProblemError(pointer="#/supply", detail=detail, expects=expects)]
        case ReservationEnded():
            ended_at = time_text(error.ended_at_ms)
            return [
                ProblemError(
                    parameter="reservation", detail=detail, state=error.state, ended_at=ended_at
                )
            ]
        case OrderEnded():
            ended = time_text(error.ended_at_ms) if error.ended_at_ms else msgspec.UNSET
            return [
                ProblemError(parameter="order", detail=detail, state=error.state, ended_at=ended)
            ]
        case ReservationNotHeld():
            return [ProblemError(parameter="reservation", detail=detail, state=error.state)]
        case ProposalOpen():
            return [
                ProblemError(parameter="reservation", detail=detail, sku=sku) for sku in error.skus
            ]
        case ProposalDecided():
            return [ProblemError(parameter="reservation", detail=detail)]
        case VersionConflict():
            place: dict[str, Any] = {"pointer": "#/expected_version"}
            if isinstance(error, PreconditionFailed):
                place = {"header": "If-Match" if error.expected else "If-None-Match"}
            return [
                ProblemError(
                    **place,
                    detail=detail,
                    sku=error.sku,
                    expected=error.expected,
                    actual=error.actual,
                )
            ]
        case IdempotencyKeyReused():
            return [_reused_key(body, detail)]
        case PastNotKept():
            earliest = time_text(error.earliest_ms) if error.earliest_ms else msgspec.UNSET
            return [ProblemError(parameter="at", detail=detail, earliest=earliest)]
        case IdempotencyKeyRequired():
            return [ProblemError(header="Idempotency-Key", detail=detail)]
        case UnsupportedMediaType():
            return [ProblemError(header=error.header, detail=detail)]
        case Forbidden():
            return [ProblemError(header="Authorization", detail=detail, role=error.needed)]
        case _:
            return []


def _reused_key(body: object, detail: str) -> ProblemError:
    """Point to what served as the key: a batch's item and a confirmation bring their own."""
    if isinstance(body, FeedEvent):
        taken = "another event came under this sequence, or under this id without one"
        return ProblemError(pointer="#/event_id", detail=taken)
    if isinstance(body, Movement):
        return ProblemError(pointer="#/id", detail=detail)
    if isinstance(body, ConfirmRequest):
        return ProblemError(
            pointer="#/order_ref", detail="it was confirmed before with another order_ref"
        )
    return ProblemError(header="Idempotency-Key", detail=detail)


def _field_error(field: str, detail: str, parameters: Collection[str]) -> ProblemError:
    if field in CURSOR_FIELDS:
        return ProblemError(parameter="cursor", detail=detail)
    if field in parameters:
        return ProblemError(parameter=field, detail=detail)
    if field == "key":
        return ProblemError(header="Idempotency-Key", detail=detail)
    return ProblemError(pointer=pointer(path_of(field)), detail=detail)


def _short_line(line: ShortLine, body: object, field: str) -> ProblemError:
    entry = ProblemError(
        pointer=_line_pointer(line.sku, body),
        detail=f"requested {line.requested}, {field.replace('_', ' ')} {line.available}",
        sku=line.sku,
        requested=line.requested,
        known=line.known,
        limited_by=msgspec.UNSET if line.limited_by == "stock" else line.limited_by,
    )
    return msgspec.structs.replace(entry, **{field: line.available})


def _line_pointer(sku: str, body: object) -> str | msgspec.UnsetType:
    """Point to the first line of the SKU, or to the quantity of a body that has only one."""
    lines = getattr(body, "lines", None)
    if isinstance(lines, list):
        for i, line in enumerate(lines):
            if line.sku == sku:
                return pointer(["lines", str(i)])
        return msgspec.UNSET
    return "#/quantity" if hasattr(body, "quantity") else msgspec.UNSET
