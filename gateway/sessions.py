"""Sessions of the console: an API key handed in once, for a cookie that no script can read.

The cookie is `HttpOnly` and `SameSite=Strict`, and counts only where the request comes from a page
of this gateway (`gateway.authentication`), so no other site can act for who is signed in.
"""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from engine.access import (
    SESSION_SECONDS,
    ApiKey,
    Role,
    close_session,
    is_session,
    open_session,
)
from engine.model import time_text
from gateway.authentication import SESSION_COOKIE, check_own_page, session_token
from gateway.calls import Answer, Call, Header
from gateway.problems import Unauthenticated
from gateway.wire import Request, Time


class SessionRequest(Request, frozen=True, kw_only=True):
    """The key that signs in."""

    key: Annotated[str, Meta(min_length=1, max_length=200, description="`hfk_...`")]


class SessionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Who is asking: a key without its secret. `merchant` null is the whole platform.

    `expires_at` is there where a session was just opened.
    """

    key: str
    actor: Annotated[str, Meta(description="How the ledger names it.")]
    role: Role
    merchant: str | None
    label: str
    expires_at: Time | UnsetType = UNSET


async def create(call: Call, body: SessionRequest) -> Answer:
    """Open a session for a key."""
    call.service.sign_ins.take(call.peer)
    check_own_page(call.headers)
    key = None if is_session(body.key) else await call.service.authenticate(body.key)
    if key is None:
        raise Unauthenticated
    opened = await open_session(call.inventory.store.client, key.id)
    answer = msgspec.structs.replace(_answer(key), expires_at=time_text(opened.expires_at_ms))
    return Answer(201, answer, [_cookie(call, opened.token, SESSION_SECONDS)])


async def read(call: Call, _body: None) -> Answer:
    """Tell who is asking."""
    key = await call.service.authenticate(call.credential)
    if key is None:
        raise Unauthenticated
    return Answer(200, _answer(key))


async def delete(call: Call, _body: None) -> Answer:
    """End the session of the cookie, if there is one."""
    token = session_token(call.headers)
    if token is not None:
        await close_session(call.inventory.store.client, token)
        call.service.forget(token)
    return Answer(204, None, [_cookie(call, "", 0)])


def _answer(key: ApiKey) -> SessionAnswer:
    return SessionAnswer(
        key=key.id, actor=key.actor, role=key.role, merchant=key.merchant, label=key.label
    )


def _cookie(call: Call, token: str, seconds: int) -> Header:
    # Behind a proxy that ends TLS only the page knows how it was reached, and says so.
    secure = "; Secure" if call.headers.get(b"origin", b"").startswith(b"https://") else ""
    text = f"{SESSION_COOKIE}={token}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"
    return (b"set-cookie", text.encode())
