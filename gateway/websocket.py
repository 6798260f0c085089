"""The socket: `/v1/merchants/{merchant}/ws`, the same as the stream, for clients that talk back.

One socket carries up to 20 subscriptions. One task takes what the client says, another sends; what
is to be sent waits in the subscriptions, bounded there (see `gateway.subscriptions`), and a client
that names a `window` is sent no more than that before it acknowledges.
"""

import asyncio
import time
from typing import Any, Final

import msgspec
from starlette.types import Receive, Scope, Send

from engine.access import Role
from engine.outcomes import HoldfastError, LimitExceeded
from gateway.calls import Answer, Call
from gateway.endpoints import admit_call, encoded, refusal
from gateway.frames import (
    FORMS,
    JSON,
    Ack,
    ClientMessage,
    Closed,
    EventMessage,
    Form,
    Ping,
    Pong,
    Ready,
    Refused,
    Reset,
    Snapshot,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
)
from gateway.interests import interest_of
from gateway.listening import Anew, Beginning
from gateway.operations import Operation
from gateway.problems import ForeignOrigin, NotFound
from gateway.service import Service
from gateway.sse import MAX_EVENTS_AT_ONCE, RECHECK_SECONDS, SNAPSHOT_ROWS_AT_ONCE
from gateway.subscriptions import CutOff, Subscription
from gateway.trail import TRAIL, Trail

PATH: Final = "/v1/merchants/{merchant}/ws"

MAX_MESSAGE_BYTES: Final = 64 * 1024
"""Of what a client sends: 200 SKUs of 200 bytes are 40 kB."""

MAX_SUBSCRIPTIONS: Final = 20
"""Of one socket: a page shows no more lists than that."""

MAX_ERRORS: Final = 20
"""Messages that are refused before the socket is closed: the client is broken, or worse."""

TOO_MANY_ERRORS: Final = "too_many_errors"

MAX_OUTBOX: Final = 64
"""Answers that wait; a client that asks and does not read is not read either."""

PING_SECONDS: Final = 20.0
"""Between two pings, and for the pong to each."""

CLOSE_POLICY: Final = 1008
CLOSE_RESTART: Final = 1012


async def _not_over_http(_call: Call, _body: None) -> Answer:
    raise NotFound


_HANDSHAKE: Final = Operation(
    name="socket",
    method="GET",
    path=PATH,
    tag="Real time",
    summary="Hear of every change as it happens, over a WebSocket",
    handler=_not_over_http,
    role=Role.READ,
    successes=(),
)


class Socket:
    """The socket's path, as an ASGI application."""

    def __init__(self, service: Service) -> None:
        """Serve whoever may listen to a merchant."""
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection from its handshake to its end."""
        await receive()
        call = Call(self._service, scope["path_params"], {}, {}, "")
        try:
            await admit_call(_HANDSHAKE, scope, call)
            _check_origin(call)
            # Raises while the store is not open.
            _ = call.service.listening
        except HoldfastError as error:
            await _deny(send, refusal(error, scope))
            return
        form = next((FORMS[name] for name in scope["subprotocols"] if name in FORMS), None)
        accepted = None if form is None else form.name
        trail: Trail = scope[TRAIL]
        trail.merchant = call.merchant
        await send({"type": "websocket.accept", "subprotocol": accepted, "headers": []})
        conversation = _Conversation(call, form or JSON, receive, send)
        try:
            await conversation.run()
        finally:
            trail.code = conversation.closed_because


def _check_origin(call: Call) -> None:
    """Let no page of another site talk in the name of whoever looks at it. Raises ForeignOrigin."""
    origin = call.headers.get(b"origin")
    if origin is None:
        return
    host = call.headers.get(b"host", b"")
    if origin.lower().partition(b"://")[2] != host.lower():
        raise ForeignOrigin


async def _deny(send: Send, answer: Answer) -> None:
    body, fields = encoded(answer)
    await send(
        {"type": "websocket.http.response.start", "status": answer.status, "headers": fields}
    )
    await send({"type": "websocket.http.response.body", "body": body})


class _Listener:
    """One subscription of a socket."""

    def __init__(self, asked: Subscribe, subscription: Subscription, beginning: Beginning) -> None:
        self.id = asked.id
        self.snapshot = asked.snapshot
        self.window = asked.window
        self.subscription = subscription
        self.beginning: Beginning | None = beginning
        self.is_begun = False
        self.sent = 0
        self.acknowledged = 0

    @property
    def room(self) -> int:
        """How many events may be sent now."""
        if self.window is None:
            return MAX_EVENTS_AT_ONCE
        return min(MAX_EVENTS_AT_ONCE, self.window - (self.sent - self.acknowledged))


class _Conversation:
    """One open socket."""

    def __init__(self, call: Call, form: Form, receive: Receive, send: Send) -> None:
        self._call = call
        self._fanout = call.service.fanout
        self._form = form
        self._receive = receive
        self._send_raw = send
        self._awake = asyncio.Event()
        self._drained = asyncio.Event()
        self._outbox: list[Any] = []
        self._listeners: dict[str, _Listener] = {}
        self._errors = 0
        self._gone = False
        self._close_code: int | None = None
        self.closed_because = ""
        """Why the service ends it; empty where the client does."""
        self._checked_at = time.monotonic()

    async def run(self) -> None:
        """Talk until either side ends it."""
        listening = asyncio.create_task(self._listen())
        try:
            while not self._gone and self._close_code is None:
                self._awake.clear()
                if not await self._send_some():
                    await self._wait()
                await self._recheck()
            if not self._gone:
                await self._flush()
                await self._send_raw({"type": "websocket.close", "code": self._close_code})
        finally:
            listening.cancel()
            for listener in self._listeners.values():
                self._fanout.unsubscribe(listener.subscription)
        # A bug in the other task is one here.
        if listening.done() and not listening.cancelled():
            listening.result()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(RECHECK_SECONDS):
                await self._awake.wait()
        except TimeoutError:
            return

    async def _recheck(self) -> None:
        now = time.monotonic()
        if now - self._checked_at < RECHECK_SECONDS:
            return
        self._checked_at = now
        call = self._call
        if not await call.service.still_admits(call.credential, merchant=call.merchant):
            for listener in self._listeners.values():
                listener.subscription.cut(CutOff.UNAUTHENTICATED)
            self._close(CLOSE_POLICY, CutOff.UNAUTHENTICATED)

    def _close(self, code: int, reason: str) -> None:
        self._close_code, self.closed_because = code, reason

    # What the client says

    async def _listen(self) -> None:
        try:
            while self._errors <= MAX_ERRORS:
                message = await self._receive()
                if message["type"] != "websocket.receive":
                    self._gone = True
                    break
                while len(self._outbox) >= MAX_OUTBOX:
                    self._drained.clear()
                    await self._drained.wait()
                await self._take(message)
                self._awake.set()
            else:
                self._close(CLOSE_POLICY, TOO_MANY_ERRORS)
        finally:
            self._awake.set()

    async def _take(self, message: Any) -> None:
        text = message.get("text")
        packed = text.encode() if text is not None else message.get("bytes") or b""
        name = None
        try:
            if (text is not None) is not self._form.is_text:
                wanted = "text" if self._form.is_text else "binary"
                raise msgspec.DecodeError(f"{self._form.name} is spoken in {wanted} frames")
            asked = self._form.decode(packed)
            name = getattr(asked, "id", None)
            await self._carry_out(asked)
        except (msgspec.DecodeError, RecursionError) as error:
            self._refuse("invalid_message", str(error)[:200], name)
        except HoldfastError as error:
            self._refuse(error.code, str(error)[:200], name)

    async def _carry_out(self, asked: ClientMessage) -> None:
        if isinstance(asked, Ping):
            self._outbox.append(Pong(text=asked.text))
            return
        if isinstance(asked, Subscribe):
            await self._subscribe(asked)
            return
        listener = self._listeners.get(asked.id)
        if listener is None:
            self._refuse("unknown_subscription", "there is no subscription of this id", asked.id)
        elif isinstance(asked, Unsubscribe):
            self._forget(listener)
            self._outbox.append(Unsubscribed(id=asked.id))
        else:
            self._acknowledge(listener, asked)

    def _acknowledge(self, listener: _Listener, ack: Ack) -> None:
        if ack.number > listener.sent:
            detail = f"only {listener.sent} events were sent"
            self._refuse("invalid_ack", detail, listener.id)
            return
        listener.acknowledged = max(listener.acknowledged, ack.number)

    async def _subscribe(self, asked: Subscribe) -> None:
        if asked.id in self._listeners:
            self._refuse("id_in_use", "another subscription has this id", asked.id)
            return
        if len(self._listeners) >= MAX_SUBSCRIPTIONS:
            raise LimitExceeded("subscriptions", most=MAX_SUBSCRIPTIONS)
        interest = interest_of(
            self._call.merchant, locations=asked.locations, skus=asked.skus, types=asked.types
        )
        subscription, beginning = await self._call.service.listening.subscribe(
            interest,
            key_id=self._call.key_id,
            last_event_id=asked.last_event_id,
            snapshot=asked.snapshot,
        )
        subscription.wake_by(self._awake)
        self._listeners[asked.id] = _Listener(asked, subscription, beginning)

    def _refuse(self, code: str, detail: str, name: str | None) -> None:
        self._errors += 1
        self._outbox.append(Refused(code=code, detail=detail, id=name))

    def _forget(self, listener: _Listener) -> None:
        self._fanout.unsubscribe(listener.subscription)
        del self._listeners[listener.id]

    # What it is told

    async def _send_some(self) -> bool:
        """Send what can be sent, some of each subscription; False where there was nothing."""
        did = await self._flush()
        for listener in list(self._listeners.values()):
            did |= await self._tell(listener)
        return did

    async def _flush(self) -> bool:
        if not self._outbox:
            return False
        waiting, self._outbox = self._outbox, []
        self._drained.set()
        for message in waiting:
            await self._send(message)
        return True

    async def _tell(self, listener: _Listener) -> bool:
        subscription = listener.subscription
        if subscription.cut_off is not None:
            self._forget(listener)
            await self._send(Closed(id=listener.id, reason=subscription.cut_off))
            if subscription.cut_off is CutOff.SHUTTING_DOWN:
                self._close(CLOSE_RESTART, CutOff.SHUTTING_DOWN)
            return True
        if subscription.reset_because is not None:
            await self._begin_anew(listener, Anew(subscription.reset_because))
            return True
        if listener.beginning is not None:
            await self._begin(listener, listener.beginning)
            return True
        sent = False
        for told, position in subscription.take(listener.room, self._fanout.edge):
            listener.sent += 1
            packed = told.json if self._form.is_text else told.msgpack
            await self._send(
                EventMessage(
                    id=listener.id,
                    number=listener.sent,
                    position=position,
                    event=msgspec.Raw(packed),
                )
            )
            sent = True
        return sent

    async def _begin_anew(self, listener: _Listener, anew: Anew) -> None:
        try:
            listener.beginning = await self._call.service.listening.begin(
                listener.subscription, anew, snapshot=listener.snapshot
            )
        except LimitExceeded:
            listener.subscription.cut(CutOff.TOO_MANY_ROWS)
        except HoldfastError:
            listener.subscription.cut(CutOff.STORE_UNAVAILABLE)

    async def _begin(self, listener: _Listener, beginning: Beginning) -> None:
        listener.beginning = None
        name, anew = listener.id, beginning.anew
        position = listener.subscription.position(self._fanout.edge)
        if not listener.is_begun:
            listener.is_begun = True
            await self._send(Subscribed(id=name, resumed=anew is None))
        if anew is not None:
            rows = beginning.rows or []
            await self._send(Reset(id=name, reason=anew, rows=len(rows), as_of=beginning.as_of))
            for i in range(0, len(rows), SNAPSHOT_ROWS_AT_ONCE):
                await self._send(Snapshot(id=name, rows=rows[i : i + SNAPSHOT_ROWS_AT_ONCE]))
        await self._send(Ready(id=name, as_of=beginning.as_of, position=position))

    async def _send(self, message: Any) -> None:
        packed = self._form.encode(message)
        if self._form.is_text:
            await self._send_raw({"type": "websocket.send", "text": packed.decode()})
        else:
            await self._send_raw({"type": "websocket.send", "bytes": packed})
