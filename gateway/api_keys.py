"""API keys over HTTP, for keys of the platform; `holdfast keys` does the same in the store."""

from typing import Annotated

import msgspec
from msgspec import Meta

from engine.access import ApiKey, Role, create_key, list_keys, revoke_key
from engine.model import time_text
from gateway.calls import Answer, Call
from gateway.problems import NotFound
from gateway.wire import Id, Request, Text, Time


class KeyRequest(Request, frozen=True, kw_only=True):
    """What a new key may do; `merchant` null is the whole platform."""

    role: Role
    merchant: Id | None = None
    label: Text = ""


class KeyAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its secret."""

    id: str
    role: Role
    merchant: str | None
    label: str
    created_at: Time
    revoked_at: Time | None


class KeyWithSecret(KeyAnswer, frozen=True, kw_only=True):
    """A new key with its secret, which is not shown again."""

    secret: Annotated[str, Meta(description="`hfk_...`")]


class KeyList(msgspec.Struct, frozen=True):
    """Every key, revoked ones too, oldest first."""

    data: list[KeyAnswer]


async def list_all(call: Call, _body: None) -> Answer:
    """List the keys."""
    found = await list_keys(call.inventory.store.client)
    return Answer(200, KeyList([_answer(one) for one in found]))


async def create(call: Call, body: KeyRequest) -> Answer:
    """Make a key."""
    key, secret = await create_key(
        call.inventory.store.client, role=body.role, merchant=body.merchant, label=body.label
    )
    shown = msgspec.structs.asdict(_answer(key))
    return Answer(201, KeyWithSecret(**shown, secret=secret), [(b"cache-control", b"no-store")])


async def revoke(call: Call, _body: None) -> Answer:
    """Revoke a key for good."""
    key = await revoke_key(call.inventory.store.client, call.path["key"])
    if key is None:
        raise NotFound
    return Answer(200, _answer(key))


def _answer(key: ApiKey) -> KeyAnswer:
    return KeyAnswer(
        id=key.id,
        role=key.role,
        merchant=key.merchant,
        label=key.label,
        created_at=time_text(key.created_at_ms),
        revoked_at=None if key.revoked_at_ms is None else time_text(key.revoked_at_ms),
    )
