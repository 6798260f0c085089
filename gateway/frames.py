"""What travels over the socket: one message a frame, JSON in text or msgpack in binary frames."""

from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from gateway.interests import MAX_NAMES
from gateway.listening import RowState
from gateway.subscriptions import MAX_PENDING, MAX_POSITION_CHARACTERS
from gateway.wire import Id

Name = Annotated[str, Meta(min_length=1, max_length=64)]
"""What the client calls a subscription."""

Names = Annotated[list[Id], Meta(max_length=MAX_NAMES)]


class FromClient(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"
):
    """The base of what a client may send."""


class Subscribe(FromClient, frozen=True, kw_only=True, tag="subscribe"):
    """Begin to hear; nothing named is everything.

    With `window` no more events than that are sent before they are acknowledged.
    """

    id: Name
    locations: Names = []
    skus: Names = []
    types: Names = []
    snapshot: bool = True
    last_event_id: Annotated[str, Meta(max_length=MAX_POSITION_CHARACTERS)] | None = None
    window: Annotated[int, Meta(ge=1, le=MAX_PENDING)] | None = None


class Unsubscribe(FromClient, frozen=True, kw_only=True, tag="unsubscribe"):
    """Hear no more."""

    id: Name


class Ack(FromClient, frozen=True, kw_only=True, tag="ack"):
    """Every event of a subscription up to this number has been dealt with."""

    id: Name
    number: Annotated[int, Meta(ge=0)]


class Ping(FromClient, frozen=True, kw_only=True, tag="ping"):
    """Answered with a pong that has the same text."""

    text: Annotated[str, Meta(max_length=64)] = ""


ClientMessage = Subscribe | Unsubscribe | Ack | Ping


class FromServer(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """The base of what the gateway sends."""


class Subscribed(FromServer, frozen=True, kw_only=True, tag="subscribed"):
    """A subscription begins; `resumed` where it goes on from what `last_event_id` named."""

    id: str
    resumed: bool


class Reset(FromServer, frozen=True, kw_only=True, tag="reset"):
    """Forget what you had of this subscription: what it has is told anew."""

    id: str
    reason: str
    rows: int
    as_of: str


class Snapshot(FromServer, frozen=True, kw_only=True, tag="snapshot"):
    """Some of the rows as they are."""

    id: str
    rows: list[RowState]


class Ready(FromServer, frozen=True, kw_only=True, tag="ready"):
    """From here on there are events."""

    id: str
    as_of: str
    position: str


class EventMessage(FromServer, frozen=True, kw_only=True, tag="event"):
    """Event `number` of this subscription, from 1; `position` is a `last_event_id`."""

    id: str
    number: int
    position: str
    event: msgspec.Raw


class Unsubscribed(FromServer, frozen=True, kw_only=True, tag="unsubscribed"):
    """It is over, as was asked."""

    id: str


class Closed(FromServer, frozen=True, kw_only=True, tag="closed"):
    """A subscription ends, and not because it was asked to."""

    id: str
    reason: str


class Pong(FromServer, frozen=True, kw_only=True, tag="pong"):
    """The answer to a ping."""

    text: str


class Refused(FromServer, frozen=True, kw_only=True, tag="error"):
    """A message that was not carried out; `id` where it was about a subscription."""

    code: str
    detail: str
    id: str | None = None


class Form:
    """One of the two ways to write messages; `name` is the subprotocol."""

    def __init__(
        self,
        name: str,
        decode: Callable[[bytes], ClientMessage],
        encode: Callable[[Any], bytes],
        *,
        is_text: bool,
    ) -> None:
        """Keep how it is done."""
        self.name = name
        self.decode = decode
        self.encode = encode
        self.is_text = is_text


JSON: Final = Form(
    "holdfast.v1.json",
    msgspec.json.Decoder(ClientMessage).decode,
    msgspec.json.Encoder().encode,
    is_text=True,
)
MSGPACK: Final = Form(
    "holdfast.v1.msgpack",
    msgspec.msgpack.Decoder(ClientMessage).decode,
    msgspec.msgpack.Encoder().encode,
    is_text=False,
)
FORMS: Final = {form.name: form for form in (JSON, MSGPACK)}
