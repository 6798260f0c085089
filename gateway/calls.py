"""What a handler gets and gives: an admitted request, and the answer to it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec
from starlette.types import Receive, Send

from engine.feeds import Feeds
from engine.inventory import Inventory
from gateway.rate_limits import Bucket
from gateway.service import Service

Header = tuple[bytes, bytes]

REPLAYED: Final[Header] = (b"idempotent-replayed", b"true")
"""Marks an answer that was given before, to the same key or id."""


@dataclass(slots=True)
class Call:
    """A request whose key may make it.

    `path` holds the decoded path parameters, `query` the query's, `headers` is by lower-case name.
    `actor` is who the ledger says did it, `bucket` what is left of the key's rate limit, if any.
    `lists` holds the parameters that may stand many times. `credential` is the secret or the token
    that told who asks, `peer` the address that the connection comes from.
    """

    service: Service
    path: dict[str, str]
    query: dict[str, str]
    headers: dict[bytes, bytes]
    actor: str
    bucket: Bucket | None = None
    lists: dict[str, list[str]] = field(default_factory=dict)
    key_id: str = ""
    credential: str = ""
    peer: str = ""

    @property
    def merchant(self) -> str:
        """The merchant of the path; empty where it names none."""
        return self.path.get("merchant", "")

    @property
    def inventory(self) -> Inventory:
        """The engine. Raises StoreUnavailable while it is not open."""
        return self.service.inventory

    @property
    def feeds(self) -> Feeds:
        """The sources of events. Raises StoreUnavailable while the store is not open."""
        return self.service.feeds


@dataclass(slots=True)
class Answer:
    """A response before it is encoded; a `body` of None is none at all."""

    status: int
    body: msgspec.Struct | None
    headers: list[Header] = field(default_factory=list)
    media_type: bytes = b"application/json"


class Streaming(Protocol):
    """A response that sends itself, and may have no end."""

    async def respond(self, receive: Receive, send: Send, *, without_body: bool) -> None:
        """Send it until either side has had enough."""
        ...


def answer_once(
    status: int, body: msgspec.Struct, *, replayed: bool, headers: Sequence[Header] = ()
) -> Answer:
    """Answer a change, and say so where an earlier request made it."""
    return Answer(status, body, [*headers, REPLAYED] if replayed else list(headers))
