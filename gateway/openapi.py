"""The OpenAPI 3.1 document, made of the route table and of the structs that decode and encode."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from engine.events import EventType
from engine.history import Order
from engine.ledger import OperationKind
from engine.limits import DEFAULT_PAGE, MAX_ID_BYTES, MAX_PAGE
from gateway.authentication import SESSION_COOKIE
from gateway.feed_bodies import FeedEvent
from gateway.freshness import DEFAULT_MAX_STALENESS_MS
from gateway.interests import MAX_NAMES
from gateway.movement_wire import BatchMovement
from gateway.operations import HeaderField, Operation, Success
from gateway.paging import MAX_CURSOR_CHARACTERS
from gateway.problems import kind_of
from gateway.routes import OPERATIONS, by_path
from gateway.search_wire import MAX_QUESTION_CHARACTERS
from gateway.wire import MAX_STALENESS_MS, Consistency, Problem
from projection.database import Sort, Stocked

_REFERENCE: Final = "#/components/schemas/{name}"

_INTRODUCTION: Final = """\
One true number for every SKU at every location: stock, reservations that never oversell, and the
movements that change it.

* Every request under `/v1` carries `Authorization: Bearer hfk_...`.
* What changes something carries an `Idempotency-Key` or names something by its own id; a retry gets
  the first answer again, with `Idempotent-Replayed: true`.
* Quantities are JSON integers. Unknown fields are refused.
* Refusals are `application/problem+json` (RFC 9457); programs look at `code`.
* Ids may hold any Unicode; in a path, percent-encode them segment by segment (`/` is `%2F`).
"""

_PATH_PARAMETERS: Final = {
    "merchant": "The merchant's id.",
    "location": "The location's id.",
    "sku": "The SKU.",
    "source": "The till or supplier that tells of events.",
    "supply": "The merchant's name of the supply.",
    "event": "The id that the quarantine lists.",
    "reservation": "The reservation's id, `rsv_...`.",
    "job": "The job's id, `job_...`.",
    "key": "The key's public part: what follows `hfk_`.",
    "order": "The order's id, `ord_...`.",
    "webhook": "The webhook's id, `whk_...`.",
}

_ID: Final[dict[str, Any]] = {"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES}

_QUERY_SCHEMAS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "max_staleness_ms": (
        "How old the answer may be, in milliseconds.",
        {
            "type": "integer",
            "minimum": 0,
            "maximum": MAX_STALENESS_MS,
            "default": DEFAULT_MAX_STALENESS_MS,
        },
    ),
    "consistency": (
        "`strong` has the store asked, whatever the gateway knows.",
        {"type": "string", "enum": [*Consistency], "default": Consistency.BOUNDED},
    ),
    "snapshot": (
        "Whether the stream begins with the rows as they are.",
        {"type": "boolean", "default": True},
    ),
    "limit": (
        "How many items a page has at most.",
        {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE},
    ),
    "cursor": (
        "The `next_cursor` of the page before.",
        {"type": "string", "minLength": 1, "maxLength": MAX_CURSOR_CHARACTERS},
    ),
    "at": (
        "Answer with the row as it was then, told by the ledger.",
        {"type": "string", "format": "date-time"},
    ),
    "location": ("Only what is at this location.", _ID),
    "sku": ("Only what is about this SKU.", _ID),
    "reservation": ("Only operations on this reservation.", _ID),
    "actor": ("Only operations of this actor, as entries name it.", _ID),
    "reference": ("Only movements of this reference, or this order's reservations.", _ID),
    "kind": ("Only operations of this kind.", {"type": "string", "enum": [*OperationKind]}),
    "q": (
        "Words of the SKU or the title, each whole or its beginning.",
        {"type": "string", "minLength": 1, "maxLength": MAX_QUESTION_CHARACTERS},
    ),
    "stock": (
        "Only rows that can be promised, that cannot, that are low, or that owe units.",
        {"type": "string", "enum": [*Stocked]},
    ),
    "sort": (
        "Which rows come first; `-backordered` with stock=backordered and without q.",
        {"type": "string", "enum": [*Sort], "default": Sort.SKU},
    ),
    "from": ("Only operations from this moment on.", {"type": "string", "format": "date-time"}),
    "to": ("Only operations before this moment.", {"type": "string", "format": "date-time"}),
    "order_ref": ("Only orders of this reference.", _ID),
    "order": (
        "Which operations come first.",
        {"type": "string", "enum": [*Order], "default": Order.NEWEST},
    ),
}

_LIST_SCHEMAS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "location": ("Only what is at one of these locations.", _ID),
    "sku": ("Only what is about one of these SKUs.", _ID),
    "type": ("Only events of these types.", {"type": "string", "enum": [*EventType]}),
}

_RESPONSE_HEADERS: Final = {
    "Request-Id": "The request's id: the caller's own where it sent one.",
    "ETag": "The row's version, in quotes.",
    "Location": "The path of the reservation or order.",
    "Idempotent-Replayed": "`true` where an earlier request got this answer.",
    "Retry-After": "Seconds to wait before the next attempt.",
    "RateLimit": "What is left of the key's rate limit, where it has one, and the seconds until "
    'there is more: `"key";r=99;t=1`.',
    "RateLimit-Policy": "The key's rate limit at this gateway process, where it has one: how many "
    'units at once, and the seconds in which they come back: `"key";q=100;w=1`.',
    "WWW-Authenticate": "The scheme, `Bearer`.",
    "Set-Cookie": "The session's cookie, which no script can read.",
}

_PROBLEM_HEADERS: Final = {
    401: ("WWW-Authenticate",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}
_LIMIT_HEADERS: Final = ("RateLimit-Policy", "RateLimit")


def document(version: str) -> dict[str, Any]:
    """Build the document; `version` is the product's."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Holdfast",
            "version": version,
            "description": _INTRODUCTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "Stock", "description": "What is there and what can still be promised."},
            {"name": "Reservations", "description": "Units promised to one order."},
            {"name": "Orders", "description": "Reservations at many locations, as one."},
            {"name": "Movements", "description": "Physical events at the shelf."},
            {"name": "Real time", "description": "Hearing of changes as they happen."},
            {"name": "Ledger", "description": "What happened, when and by whom."},
            {
                "name": "Substitutes and kits",
                "description": "What stands for what, and what kits are made of.",
            },
            {"name": "Search", "description": "What is where, by words, SKU, location and stock."},
            {"name": "Webhooks", "description": "Events, sent to where you want them."},
            {"name": "Overview", "description": "How the service and its locations are."},
            {"name": "Keys", "description": "Who may call, managed by keys of the platform."},
            {"name": "Sessions", "description": "Who signed in to the console."},
            {"name": "Health", "description": "For load balancers and orchestrators."},
        ],
        "security": [{"apiKey": []}, {"session": []}],
        "paths": {
            path: {one.method.lower(): _operation(one) for one in operations}
            for path, operations in by_path().items()
        },
        "components": {
            "schemas": _schemas(),
            "headers": {
                name: {"description": text, "schema": {"type": "string"}}
                for name, text in _RESPONSE_HEADERS.items()
            },
            "securitySchemes": {
                "apiKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "hfk_<id>_<secret>",
                    "description": "An API key of role `read`, `reserve`, `feed` or `admin`, for "
                    "one merchant or the whole platform.",
                },
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": SESSION_COOKIE,
                    "description": "A session of the console, for pages of this host alone.",
                },
            },
        },
    }


def _schemas() -> dict[str, Any]:
    types: list[type] = [Problem, BatchMovement, FeedEvent]
    for operation in OPERATIONS:
        types += [operation.request] if operation.request is not None else []
        types += [success.body for success in operation.successes if success.body is not None]
    _, schemas = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    return schemas


def _schema_of(struct: type) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(name=struct.__name__)}


def _operation(operation: Operation) -> dict[str, Any]:
    description = "Open to everyone."
    if operation.role is not None:
        description = f"Needs a key of role `{operation.role}` or `admin`."
        if operation.role == "read":
            description = "Any role may."
    made: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": description,
        "parameters": _parameters(operation),
        "responses": _responses(operation),
    }
    if operation.role is None:
        made["security"] = []
    if operation.request is not None:
        made["requestBody"] = {
            "required": operation.body_required,
            "content": {"application/json": {"schema": _schema_of(operation.request)}},
        }
    return made


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    in_path = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": text,
            "schema": {"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES},
        }
        for name, text in _PATH_PARAMETERS.items()
        if f"{{{name}}}" in operation.path
    ]
    in_query: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "query",
            "description": _QUERY_SCHEMAS[name][0],
            "schema": _QUERY_SCHEMAS[name][1],
        }
        for name in operation.query
    ]
    in_query += [
        {
            "name": name,
            "in": "query",
            "description": _LIST_SCHEMAS[name][0],
            "schema": {"type": "array", "maxItems": MAX_NAMES, "items": _LIST_SCHEMAS[name][1]},
            "style": "form",
            "explode": True,
        }
        for name in operation.lists
    ]
    return [*in_path, *in_query, *[_header_parameter(one) for one in operation.header_fields]]


def _header_parameter(field: HeaderField) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "minLength": 1}
    if field.most_characters is not None:
        schema["maxLength"] = field.most_characters
    if field.pattern is not None:
        schema["pattern"] = field.pattern
    return {
        "name": field.name,
        "in": "header",
        "required": field.required,
        "description": field.description,
        "schema": schema,
    }


def _responses(operation: Operation) -> dict[str, Any]:
    limit = () if operation.role is None else _LIMIT_HEADERS
    responses = {str(one.status): _success(one, limit) for one in operation.successes}
    codes: dict[int, list[str]] = {}
    for cls in operation.all_problems:
        known = codes.setdefault(kind_of(cls).status, [])
        if cls.code not in known:
            known.append(cls.code)
    for status, names in sorted(codes.items()):
        responses[str(status)] = {
            "description": "Refused: " + ", ".join(f"`{name}`" for name in names),
            "headers": _headers((*_PROBLEM_HEADERS.get(status, ()), *limit)),
            "content": {"application/problem+json": {"schema": _schema_of(Problem)}},
        }
    return responses


def _success(success: Success, limit: Sequence[str]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "description": success.description,
        "headers": _headers((*success.headers, *limit)),
    }
    if success.media_type:
        made["content"] = {success.media_type: {"schema": {"type": "string"}}}
    if success.body is not None:
        made["content"] = {"application/json": {"schema": _schema_of(success.body)}}
    return made


def _headers(names: Sequence[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("Request-Id", *names)}
