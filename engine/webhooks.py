"""Webhook endpoints: where a merchant wants events sent, which ones, and signed with what.

A record is JSON in the hash that `engine.keys.WEBHOOKS_KEY` names. It is replaced as a whole and
only if it is still what was read, so that a change over the API and one by whoever delivers never
undo each other. `engine.outbox` holds what is on its way to an endpoint.
"""

import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from engine.clock import clock_ms
from engine.keys import WEBHOOKS_KEY, PartitionKeys, WebhookKeys, digest
from engine.limits import RETENTION_MS
from engine.outcomes import (
    IdempotencyKeyReused,
    InvalidCommand,
    LimitExceeded,
    OutcomeUnknown,
    WebhookNotFound,
)
from engine.scripts import script
from engine.store import Store, pairs
from engine.validation import check_id, check_key, check_text

MAX_ENDPOINTS: Final = 1_000
"""Of a store: who delivers keeps all records in memory, and looks at each outbox every second."""

MAX_ENDPOINTS_OF_A_MERCHANT: Final = 20

MAX_FILTER_VALUES: Final = 100
"""Locations, or SKUs, that an endpoint may name; one that wants more names none, and gets all."""

MAX_OVERLAP_MS: Final = 7 * 86_400_000
"""How long a secret may stay valid after it was replaced."""

MAX_CONFLICTS: Final = 5

_REVISION: Final = b"revision"
_ID = re.compile(r"whk_[0-9a-f]{24}")


class EndpointStatus(StrEnum):
    """Whether events are sent to an endpoint, and collected for it."""

    ACTIVE = "active"
    PAUSED = "paused"
    DISABLED = "disabled"


class StatusReason(StrEnum):
    """Why an endpoint is not active."""

    NONE = ""
    REQUESTED = "requested"
    FAILING = "failing"
    GONE = "gone"


class SigningSecret(msgspec.Struct, frozen=True):
    """A secret; `expires_at_ms` is 0 for the one that is in force. `made_by` tells a retry."""

    text: str
    made_by: str
    made_at_ms: int
    expires_at_ms: int = 0

    def __repr__(self) -> str:
        """Show all but the secret."""
        return f"SigningSecret(made_at_ms={self.made_at_ms}, expires_at_ms={self.expires_at_ms})"


class Interest(msgspec.Struct, frozen=True, kw_only=True):
    """Which events an endpoint gets; empty stands for all."""

    types: tuple[str, ...] = ()
    locations: tuple[str, ...] = ()
    skus: tuple[str, ...] = ()


class WebhookEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where events are sent. `secrets` has the one in force first, and then the one it replaced.

    A `paused` endpoint collects events, up to a bound, a `disabled` one does not.
    """

    id: str
    merchant: str
    url: str
    description: str
    interest: Interest
    secrets: tuple[SigningSecret, ...]
    status: EndpointStatus = EndpointStatus.ACTIVE
    reason: StatusReason = StatusReason.NONE
    status_at_ms: int
    created_at_ms: int
    fingerprint: str
    """Of the request that made it, so that its key is not taken for another request."""

    @property
    def keys(self) -> WebhookKeys:
        """Where its events are."""
        return WebhookKeys(self.id)

    def secrets_at(self, now_ms: int) -> list[str]:
        """Return what a message of this moment is signed with, the secret in force first."""
        return [one.text for one in self.secrets if not one.expires_at_ms > 0
                or one.expires_at_ms > now_ms]  # fmt: skip


class Made(msgspec.Struct, frozen=True):
    """An endpoint with its new secret, and whether an earlier call made it."""

    endpoint: WebhookEndpoint
    secret: str
    replayed: bool


_decode = msgspec.json.Decoder(WebhookEndpoint).decode
_encode = msgspec.json.Encoder().encode


class Webhooks:
    """The endpoints of a store. Every call raises StoreUnavailable where that does not answer."""

    def __init__(self, store: Store) -> None:
        """Work on `store`."""
        self._store = store

    async def create(
        self,
        merchant: str,
        *,
        key: str,
        url: str,
        description: str,
        interest: Interest,
        new_secret: Callable[[], str],
    ) -> Made:
        """Make an endpoint; a retry under the same key gets the first answer again for 24 hours.

        Whoever calls has checked the URL. Raises InvalidCommand, LimitExceeded,
        IdempotencyKeyReused.
        """
        check_id("merchant", merchant)
        check_key(key)
        check_text("description", description)
        _check_interest(interest)
        the_id = f"whk_{digest('webhook', merchant, key)}"
        fingerprint = digest(url, description, *_flat(interest))
        found = await self._read(the_id)
        if found is not None:
            return await self._replayed(found, key, fingerprint)
        listed = await self.of_merchant(merchant)
        if len(listed) >= MAX_ENDPOINTS_OF_A_MERCHANT:
            raise LimitExceeded("webhooks", most=MAX_ENDPOINTS_OF_A_MERCHANT)
        now_ms = await self.now_ms()
        endpoint = WebhookEndpoint(
            id=the_id,
            merchant=merchant,
            url=url,
            description=description,
            interest=interest,
            secrets=(SigningSecret(new_secret(), digest("create", key), now_ms),),
            status_at_ms=now_ms,
            created_at_ms=now_ms,
            fingerprint=fingerprint,
        )
        # First, since nothing is queued for an endpoint without it.
        await self._store.read([("HSET", endpoint.keys.state, "created_at", now_ms)])
        if not await self._write(the_id, None, endpoint):
            found = await self._read(the_id)
            if found is None:
                raise OutcomeUnknown()
            return await self._replayed(found, key, fingerprint)
        return Made(endpoint, endpoint.secrets[0].text, False)

    async def take_over(self, endpoint: WebhookEndpoint) -> None:
        """Add an endpoint of another store, unless it is there. Raises LimitExceeded."""
        state = endpoint.keys.state
        await self._store.read([("HSETNX", state, "created_at", endpoint.created_at_ms)])
        await self._write(endpoint.id, None, endpoint)

    async def _replayed(self, found: WebhookEndpoint, key: str, fingerprint: str) -> Made:
        first = [one for one in found.secrets if one.made_by == digest("create", key)]
        fresh = await self.now_ms() - found.created_at_ms < RETENTION_MS
        if found.fingerprint != fingerprint or not first or not fresh:
            raise IdempotencyKeyReused(key)
        return Made(found, first[0].text, True)

    async def read(self, merchant: str, webhook: str) -> WebhookEndpoint:
        """Return an endpoint. Raises WebhookNotFound."""
        found = await self._read(webhook) if _ID.fullmatch(webhook) else None
        if found is None or found.merchant != merchant:
            raise WebhookNotFound(webhook)
        return found

    async def of_merchant(self, merchant: str) -> list[WebhookEndpoint]:
        """Return a merchant's endpoints, the oldest first."""
        return [one for one in await self.all() if one.merchant == merchant]

    async def all(self) -> list[WebhookEndpoint]:
        """Return every endpoint of the store, the oldest first."""
        (fields,) = await self._store.read([("HGETALL", WEBHOOKS_KEY)])
        found = [_decode(record) for name, record in pairs(fields) if name != _REVISION]
        return sorted(found, key=lambda one: (one.created_at_ms, one.id))

    async def revision(self) -> int:
        """Return a number that rises whenever an endpoint is made, changed or removed."""
        (text,) = await self._store.read([("HGET", WEBHOOKS_KEY, "revision")])
        return int(text or 0)

    async def change(
        self,
        merchant: str,
        webhook: str,
        *,
        url: str | None = None,
        description: str | None = None,
        types: tuple[str, ...] | None = None,
        locations: tuple[str, ...] | None = None,
        skus: tuple[str, ...] | None = None,
        status: EndpointStatus | None = None,
        reason: StatusReason = StatusReason.REQUESTED,
    ) -> tuple[WebhookEndpoint, WebhookEndpoint]:
        """Change what is not None; return the endpoint before and after.

        Raises WebhookNotFound, InvalidCommand.
        """
        if description is not None:
            check_text("description", description)
        named = {"types": types, "locations": locations, "skus": skus}
        wanted = {field: values for field, values in named.items() if values is not None}
        _check_interest(Interest(**wanted))
        now_ms = await self.now_ms()

        def changed(found: WebhookEndpoint) -> WebhookEndpoint:
            made = msgspec.structs.replace(
                found,
                url=found.url if url is None else url,
                description=found.description if description is None else description,
                interest=msgspec.structs.replace(found.interest, **wanted),
            )
            if status is None or status is found.status:
                return made
            return msgspec.structs.replace(
                made,
                status=status,
                reason=StatusReason.NONE if status is EndpointStatus.ACTIVE else reason,
                status_at_ms=now_ms,
            )

        return await self._replace(merchant, webhook, changed)

    async def rotate(
        self,
        merchant: str,
        webhook: str,
        *,
        key: str,
        overlap_ms: int,
        new_secret: Callable[[], str],
    ) -> Made:
        """Put a new secret in force; the one before stays valid for `overlap_ms`.

        Never more than two are valid. A retry under the same key gets the same secret again.
        Raises WebhookNotFound, InvalidCommand, IdempotencyKeyReused.
        """
        check_key(key)
        if not 0 <= overlap_ms <= MAX_OVERLAP_MS:
            raise InvalidCommand("overlap_seconds", f"must be 0 to {MAX_OVERLAP_MS // 1000}")
        caller = digest("rotate", key)
        made_by = f"{caller} {overlap_ms}"
        fresh = new_secret()
        now_ms = await self.now_ms()

        def rotated(found: WebhookEndpoint) -> WebhookEndpoint:
            earlier = [one.made_by for one in found.secrets if one.made_by.startswith(caller)]
            if earlier and earlier != [made_by]:
                raise IdempotencyKeyReused(key)
            if earlier:
                return found
            old = msgspec.structs.replace(found.secrets[0], expires_at_ms=now_ms + overlap_ms)
            new = SigningSecret(fresh, made_by, now_ms)
            return msgspec.structs.replace(found, secrets=(new, old) if overlap_ms else (new,))

        _, after = await self._replace(merchant, webhook, rotated)
        (secret,) = [one.text for one in after.secrets if one.made_by == made_by]
        return Made(after, secret, secret != fresh)

    async def delete(self, merchant: str, webhook: str) -> None:
        """Remove an endpoint and what waits for it. Raises WebhookNotFound."""
        for _ in range(MAX_CONFLICTS):
            found = await self.read(merchant, webhook)
            # The state first: from then on nothing is queued. Should this process die before the
            # record is gone, the same call removes the rest.
            await self._store.read([("UNLINK", key) for key in found.keys.all()])
            if await self._write(webhook, found, None):
                return
        raise OutcomeUnknown()

    async def now_ms(self) -> int:
        """Return the store's clock."""
        return await clock_ms(self._store, PartitionKeys(0))

    async def _replace(
        self, merchant: str, webhook: str, change: Callable[[WebhookEndpoint], WebhookEndpoint]
    ) -> tuple[WebhookEndpoint, WebhookEndpoint]:
        for _ in range(MAX_CONFLICTS):
            before = await self.read(merchant, webhook)
            after = change(before)
            if after == before or await self._write(webhook, before, after):
                return before, after
        raise OutcomeUnknown()

    async def _read(self, webhook: str) -> WebhookEndpoint | None:
        (record,) = await self._store.read([("HGET", WEBHOOKS_KEY, webhook)])
        return None if record is None else _decode(record)

    async def _write(
        self, webhook: str, expected: WebhookEndpoint | None, wanted: WebhookEndpoint | None
    ) -> bool:
        """Replace a record; False where it is another by now. Raises LimitExceeded."""
        reply = await self._store.call(
            script("webhook_record"),
            (WEBHOOKS_KEY,),
            webhook,
            b"" if expected is None else _encode(expected),
            b"" if wanted is None else _encode(wanted),
            MAX_ENDPOINTS,
        )
        if int(reply) < 0:
            raise LimitExceeded("webhooks", most=MAX_ENDPOINTS)
        return int(reply) == 1


class EndpointBook:
    """The endpoints as this process knows them, kept current by their revision."""

    def __init__(self, store: Store) -> None:
        """Know none yet."""
        self._webhooks = Webhooks(store)
        self._revision = -1
        self._endpoints: dict[str, WebhookEndpoint] = {}

    async def refresh(self) -> None:
        """Read the endpoints anew if one has changed."""
        revision = await self._webhooks.revision()
        if revision != self._revision:
            # Read after the revision, so that a change in between is noticed the next time.
            self._endpoints = {one.id: one for one in await self._webhooks.all()}
            self._revision = revision

    def get(self, webhook: str) -> WebhookEndpoint | None:
        """Return an endpoint, None where there is none."""
        return self._endpoints.get(webhook)

    def all(self) -> list[WebhookEndpoint]:
        """Return every endpoint."""
        return list(self._endpoints.values())


def _flat(interest: Interest) -> Sequence[str]:
    return ["types", *interest.types, "locations", *interest.locations, "skus", *interest.skus]


def _check_interest(interest: Interest) -> None:
    for field in ("types", "locations", "skus"):
        values = getattr(interest, field)
        if len(values) > MAX_FILTER_VALUES:
            raise InvalidCommand(field, f"must have at most {MAX_FILTER_VALUES} items")
        for i, value in enumerate(values):
            check_id(f"{field}[{i}]", value)
