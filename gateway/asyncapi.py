"""The AsyncAPI 3.0 document and the JSON Schemas of all events, made of the types that encode them.

What a webhook carries, what a stream carries and what a consumer is given are the same messages;
this document has one channel a way to get them.
"""

from typing import Any, Final

import msgspec

from engine.events import AnyEvent
from gateway.notices import WebhookGap, WebhookTest
from gateway.signing import ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER

ASYNCAPI: Final = "3.0.0"
_SCHEMA: Final = "#/components/schemas/{name}"
_CONTENT_TYPE: Final = "application/cloudevents+json"

EVENT_TYPES: Final[tuple[type[msgspec.Struct], ...]] = AnyEvent.__args__
NOTICE_TYPES: Final[tuple[type[msgspec.Struct], ...]] = (WebhookGap, WebhookTest)

_INTRODUCTION: Final = """\
Every change of stock and of reservations as a CloudEvents 1.0 JSON document.

* `data` has absolute values and the row's `version`. Apply an event only where its version is newer
  than what you have, and duplicates and disorder do no harm.
* Events come at least once, under an `id` that stays the same.
* `source` is the path of the location in the API, `subject` the SKU or the reservation's id.
"""


_HEADERS: Final = {
    "type": "object",
    "description": "The headers of a webhook; see Standard Webhooks 1.0.",
    "required": [ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER],
    "properties": {
        ID_HEADER: {"type": "string", "description": "The event's id, the same at each attempt."},
        TIMESTAMP_HEADER: {
            "type": "string",
            "pattern": "^[0-9]+$",
            "description": "When this attempt was made, in seconds since 1970.",
        },
        SIGNATURE_HEADER: {
            "type": "string",
            "pattern": "^v1,[A-Za-z0-9+/=]+( v1,[A-Za-z0-9+/=]+)*$",
            "description": "A signature for each secret that is valid.",
        },
    },
}


def document(version: str) -> dict[str, Any]:
    """Build the document; `version` is the product's."""
    told = [name_of(one) for one in EVENT_TYPES]
    messages = {name_of(one): _message(one) for one in (*EVENT_TYPES, *NOTICE_TYPES)}
    return {
        "asyncapi": ASYNCAPI,
        "info": {
            "title": "Holdfast events",
            "version": version,
            "description": _INTRODUCTION,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": _CONTENT_TYPE,
        "channels": {
            "webhooks": {
                "address": None,
                "title": "Webhooks",
                "description": "A POST of one event to each endpoint whose filters want it, signed "
                "as Standard Webhooks 1.0 has it.",
                "messages": {name: _reference("messages", name) for name in messages},
            },
            "stream": {
                "address": "/v1/merchants/{merchant}/stream",
                "title": "Server-sent events",
                "description": "The `data` of each server-sent event whose name is one of these; "
                "what else a stream says stands in the reference.",
                "parameters": {"merchant": {"description": "The merchant's id."}},
                "messages": {name: _reference("messages", name) for name in told},
            },
        },
        "operations": {
            "sendWebhook": {
                "action": "send",
                "channel": {"$ref": "#/channels/webhooks"},
                "summary": "Holdfast sends an event to an endpoint, and takes any 2xx for a yes.",
                "messages": [{"$ref": f"#/channels/webhooks/messages/{name}"} for name in messages],
                "bindings": {"http": {"method": "POST", "bindingVersion": "0.3.0"}},
            },
            "sendToStream": {
                "action": "send",
                "channel": {"$ref": "#/channels/stream"},
                "summary": "Holdfast sends an event to everyone who listens and wants it.",
                "messages": [{"$ref": f"#/channels/stream/messages/{name}"} for name in told],
                "bindings": {"http": {"method": "GET", "bindingVersion": "0.3.0"}},
            },
        },
        "components": {
            "messages": messages,
            "schemas": schemas(),
        },
    }


def schemas() -> dict[str, Any]:
    """Return the JSON Schemas (2020-12) of all events and of what they are made of, by name."""
    _, found = msgspec.json.schema_components([*EVENT_TYPES, *NOTICE_TYPES], ref_template=_SCHEMA)
    return {**found, "WebhookHeaders": _HEADERS}


def name_of(event: type[msgspec.Struct]) -> str:
    """Return the `type` of an event."""
    return str(event.__struct_config__.tag)


def _message(event: type[msgspec.Struct]) -> dict[str, Any]:
    text = " ".join((event.__doc__ or "").split())
    return {
        "name": name_of(event),
        "title": event.__name__,
        "summary": text,
        "contentType": _CONTENT_TYPE,
        "payload": {"$ref": _SCHEMA.format(name=event.__name__)},
        "headers": {"$ref": "#/components/schemas/WebhookHeaders"},
    }


def _reference(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}
