"""The AsyncAPI 3.0 document and the JSON Schemas of all events, made of the types that encode them.

What a webhook carries, what a stream carries and what a consumer is given are the same messages;
this document has one channel a way to get them.
"""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from engine.events import AnyEvent
from gateway import frames
from gateway.notices import WebhookGap, WebhookTest
from gateway.signing import ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER

ASYNCAPI: Final = "3.0.0"
_SCHEMA: Final = "#/components/schemas/{name}"
_CONTENT_TYPE: Final = "application/cloudevents+json"

EVENT_TYPES: Final[tuple[type[msgspec.Struct], ...]] = AnyEvent.__args__
NOTICE_TYPES: Final[tuple[type[msgspec.Struct], ...]] = (WebhookGap, WebhookTest)

FROM_CLIENT: Final[tuple[type[msgspec.Struct], ...]] = frames.ClientMessage.__args__
FROM_SERVER: Final = tuple(frames.FromServer.__subclasses__())

_INTRODUCTION: Final = """\
Every change of stock and of reservations as a CloudEvents 1.0 JSON document.

* `data` has absolute values and the row's `version`. Apply an event only where its version is newer
  than what you have, and duplicates and disorder do no harm.
* Events come at least once, under an `id` that stays the same.
* `source` is the path of the location in the API, `subject` the SKU or the reservation's id.
* A stream or a socket that names the SKU of a kit is told of the kit as of a row; its `data` has
  `kit` true. Webhooks tell of rows alone.
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
    return {
        "asyncapi": ASYNCAPI,
        "info": {
            "title": "Holdfast events",
            "version": version,
            "description": _INTRODUCTION,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": _CONTENT_TYPE,
        "channels": _channels(),
        "operations": {
            "sendWebhook": _operation(
                "send", "webhooks", (*EVENT_TYPES, *NOTICE_TYPES), method="POST"
            )
            | {"summary": "Holdfast sends an event to an endpoint, and takes any 2xx for a yes."},
            "sendToStream": _operation("send", "stream", EVENT_TYPES, method="GET")
            | {"summary": "Holdfast sends an event to everyone who listens and wants it."},
            "sendToSocket": _operation("send", "socket", FROM_SERVER)
            | {"summary": "Holdfast answers, and sends the events of each subscription."},
            "receiveFromSocket": _operation("receive", "socket", FROM_CLIENT)
            | {"summary": "A client subscribes, unsubscribes, acknowledges, or pings."},
        },
        "components": {
            "messages": {name_of(one): _message(one) for one in (*EVENT_TYPES, *NOTICE_TYPES)},
            "schemas": schemas(),
        },
    }


def _channels() -> dict[str, Any]:
    of_merchant = {"merchant": {"description": "The merchant's id."}}
    signed = {"headers": {"$ref": "#/components/schemas/WebhookHeaders"}}
    return {
        "webhooks": {
            "address": None,
            "title": "Webhooks",
            "description": "A POST of one event to each endpoint whose filters want it, signed as "
            "Standard Webhooks 1.0 has it.",
            "messages": {
                name_of(one): _message(one) | signed for one in (*EVENT_TYPES, *NOTICE_TYPES)
            },
        },
        "stream": {
            "address": "/v1/merchants/{merchant}/stream",
            "title": "Server-sent events",
            "description": "The `data` of each server-sent event whose name is one of these; what "
            "else a stream says stands in the reference.",
            "parameters": of_merchant,
            "messages": {
                name_of(one): {"$ref": f"#/components/messages/{name_of(one)}"}
                for one in EVENT_TYPES
            },
        },
        "socket": {
            "address": "/v1/merchants/{merchant}/ws",
            "title": "WebSocket",
            "description": "The `event` of each message of the type `event` is one of those that "
            "the stream carries.",
            "parameters": of_merchant,
            "messages": {
                name_of(one): _message(one, "application/json")
                for one in (*FROM_CLIENT, *FROM_SERVER)
            },
        },
    }


def _operation(
    action: str, channel: str, types: Iterable[type[msgspec.Struct]], *, method: str = ""
) -> dict[str, Any]:
    made: dict[str, Any] = {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{name_of(one)}"} for one in types],
    }
    if method:
        made["bindings"] = {"http": {"method": method, "bindingVersion": "0.3.0"}}
    return made


def schemas() -> dict[str, Any]:
    """Return the JSON Schemas (2020-12) of all events and of what they are made of, by name."""
    types = [*EVENT_TYPES, *NOTICE_TYPES, *FROM_CLIENT, *FROM_SERVER]
    _, found = msgspec.json.schema_components(types, ref_template=_SCHEMA)
    return {**found, "WebhookHeaders": _HEADERS}


def name_of(event: type[msgspec.Struct]) -> str:
    """Return the `type` of an event."""
    return str(event.__struct_config__.tag)


def _message(event: type[msgspec.Struct], content_type: str = _CONTENT_TYPE) -> dict[str, Any]:
    text = " ".join((event.__doc__ or "").split())
    return {
        "name": name_of(event),
        "title": event.__name__,
        "summary": text,
        "contentType": content_type,
        "payload": {"$ref": _SCHEMA.format(name=event.__name__)},
    }
