"""Server-sent events: `GET /v1/merchants/{merchant}/stream`, as the HTML standard defines them.

A stream begins with `reset` (forget what you had), the rows in some `snapshot` events and `ready`;
or with `resumed`, where the client named an event that it had last and all that followed is still
there. Then every change comes as an event whose name is its type and whose data is the CloudEvent.
It ends with `closed`, which says why.
"""

import asyncio
import random
import time
from typing import Any, Final

import msgspec
from starlette.types import Receive, Send

from engine.outcomes import HoldfastError, LimitExceeded
from gateway.calls import Call, Streaming
from gateway.interests import interest_of
from gateway.listening import Anew, Beginning
from gateway.problems import InvalidRequest
from gateway.subscriptions import CutOff, Subscription
from gateway.wire import ProblemError

QUERY: Final = ("snapshot",)
LISTS: Final = ("location", "sku", "type")

HEARTBEAT_SECONDS: Final = 15.0
"""Between two signs of life on a quiet stream: proxies drop a connection after a minute or so, and
a client that hears nothing for two of these knows that its own is dead."""

MAX_EVENTS_AT_ONCE: Final = 64
"""In one write, some 40 kB: above that the next event may replace one that still waits."""

SNAPSHOT_ROWS_AT_ONCE: Final = 100

RECHECK_SECONDS: Final = 60.0
"""How often the key of an open stream is looked at again: a revoked one ends it this late."""

SEND_SECONDS: Final = 120.0
"""How long one write may take. The listening socket's own timeout comes first where the system has
one (see `gateway.process`)."""

MIN_RETRY_MS: Final = 1_000
MAX_RETRY_MS: Final = 4_000
"""When a client shall come back that was cut off, drawn anew for each, so that not all of them come
at once after a restart."""

_HEADERS: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    # nginx would keep the events until it has a buffer full of them.
    (b"x-accel-buffering", b"no"),
)

_encode = msgspec.json.Encoder().encode


async def listen(call: Call, _body: None) -> Streaming:
    """Open a stream of what happens to a merchant's rows and reservations."""
    snapshot = call.query.get("snapshot", "true")
    if snapshot not in ("true", "false"):
        raise InvalidRequest(ProblemError(parameter="snapshot", detail="must be true or false"))
    interest = interest_of(
        call.merchant,
        locations=call.lists.get("location"),
        skus=call.lists.get("sku"),
        types=call.lists.get("type"),
    )
    last = call.headers.get(b"last-event-id")
    subscription, beginning = await call.service.listening.subscribe(
        interest,
        key_id=call.key_id,
        last_event_id=None if last is None else last.decode("latin-1"),
        snapshot=snapshot == "true",
    )
    return EventStream(call, subscription, beginning, snapshot=snapshot == "true")


class EventStream:
    """One open stream."""

    def __init__(
        self, call: Call, subscription: Subscription, beginning: Beginning, *, snapshot: bool
    ) -> None:
        """Send what `subscription` has, after what it begins with."""
        self._service = call.service
        self._fanout = call.service.fanout
        self._credential = call.credential
        self._merchant = call.merchant
        self._subscription = subscription
        self._beginning: Beginning | None = beginning
        self._snapshot = snapshot
        self._headers = [*_HEADERS, *(() if call.bucket is None else call.bucket.fields())]
        self._checked_at = time.monotonic()

    async def respond(self, receive: Receive, send: Send, *, without_body: bool) -> None:
        """Send events until the client goes, falls too far behind, or this process ends."""
        watching = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self._headers})
            if without_body:
                await send({"type": "http.response.body", "body": b""})
                return
            watching = asyncio.create_task(self._watch(receive))
            await self._tell(send)
        except TimeoutError:
            # It takes nothing any more, not even a goodbye.
            return
        finally:
            self._fanout.unsubscribe(self._subscription)
            if watching is not None:
                watching.cancel()

    async def _watch(self, receive: Receive) -> None:
        """End the stream when the client goes away."""
        while (await receive())["type"] != "http.disconnect":
            continue
        self._subscription.cut(CutOff.GONE)

    async def _tell(self, send: Send) -> None:
        subscription = self._subscription
        retry_ms = random.randint(MIN_RETRY_MS, MAX_RETRY_MS)  # noqa: S311 - jitter, no secret
        await _send(send, b"retry: %d\n\n" % retry_ms)
        while subscription.cut_off is None:
            if subscription.reset_because is not None:
                await self._begin_anew(Anew(subscription.reset_because))
            if self._beginning is not None:
                await self._begin(send, self._beginning)
            elif len(subscription):
                await _send(send, self._events())
                await self._recheck()
            elif not await subscription.wait(HEARTBEAT_SECONDS):
                # An id without data is no event, but the client notes where it stands.
                position = subscription.position(self._fanout.edge)
                await _send(send, b": \nid: %s\n\n" % position.encode())
                await self._recheck()
        if subscription.cut_off is CutOff.GONE:
            return
        await _send(send, _event("closed", {"reason": subscription.cut_off}), last=True)

    async def _begin_anew(self, anew: Anew) -> None:
        try:
            self._beginning = await self._service.listening.begin(
                self._subscription, anew, snapshot=self._snapshot
            )
        except LimitExceeded:
            self._subscription.cut(CutOff.TOO_MANY_ROWS)
        except HoldfastError:
            self._subscription.cut(CutOff.STORE_UNAVAILABLE)

    async def _begin(self, send: Send, beginning: Beginning) -> None:
        """Send what a subscriber hears first; the position goes with the last of it."""
        self._beginning = None
        ready = {"as_of": beginning.as_of}
        # Before anything is sent: what comes meanwhile is behind it.
        position = self._subscription.position(self._fanout.edge)
        if beginning.anew is None:
            await _send(send, _event("resumed", ready, position=position))
            return
        rows = beginning.rows or []
        await _send(
            send,
            _event("reset", {"reason": beginning.anew, "rows": len(rows), "as_of": ready["as_of"]}),
        )
        for i in range(0, len(rows), SNAPSHOT_ROWS_AT_ONCE):
            await _send(send, _event("snapshot", {"rows": rows[i : i + SNAPSHOT_ROWS_AT_ONCE]}))
            if self._subscription.cut_off is not None:
                return
        await _send(send, _event("ready", ready, position=position))

    def _events(self) -> bytes:
        return b"".join(
            [
                b"id: %s\nevent: %s\ndata: %s\n\n"
                % (position.encode(), told.event.type_name.encode(), told.json)
                for told, position in self._subscription.take(MAX_EVENTS_AT_ONCE, self._fanout.edge)
            ]
        )

    async def _recheck(self) -> None:
        """End the stream where its key was revoked meanwhile."""
        now = time.monotonic()
        if now - self._checked_at < RECHECK_SECONDS:
            return
        self._checked_at = now
        if not await self._service.still_admits(self._credential, merchant=self._merchant):
            self._subscription.cut(CutOff.UNAUTHENTICATED)


def _event(name: str, data: Any, *, position: str | None = None) -> bytes:
    head = b"" if position is None else b"id: %s\n" % position.encode()
    return b"%sevent: %s\ndata: %s\n\n" % (head, name.encode(), _encode(data))


async def _send(send: Send, body: bytes, *, last: bool = False) -> None:
    async with asyncio.timeout(SEND_SECONDS):
        await send({"type": "http.response.body", "body": body, "more_body": not last})
