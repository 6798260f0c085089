"""Webhook endpoints over HTTP: make, read, change and remove them, and see how deliveries go.

All of it needs the role `admin`: a URL says where a merchant's data goes, and may itself be a
secret. `gateway.delivery` does the deliveries, in the background process.
"""

import re
import time

from msgspec import UNSET

from engine.outbox import MAX_DEAD, Outbox
from engine.webhooks import EndpointStatus, WebhookEndpoint, Webhooks
from gateway import webhook_wire as wire
from gateway.calls import Answer, Call, answer_once
from gateway.delivery import outcome_of, send
from gateway.egress import Reply, check_url
from gateway.idempotency import key_of
from gateway.notices import gap_of_disabled, test_event
from gateway.paging import cursor, limit_of, place_of
from gateway.signing import new_secret

_PLACE = re.compile(r"[0-9]{1,15}-[0-9]{1,15}")


async def create(call: Call, body: wire.WebhookRequest) -> Answer:
    """Make an endpoint, and show its secret this once."""
    check_url("url", body.url, loopback=call.service.webhook_loopback)
    made = await _webhooks(call).create(
        call.merchant,
        key=key_of(call),
        url=body.url,
        description=body.description,
        interest=wire.interest(body),
        new_secret=new_secret,
    )
    return await _with_secret(call, 201, made.endpoint, made.secret, replayed=made.replayed)


async def list_all(call: Call, _body: None) -> Answer:
    """List a merchant's endpoints."""
    webhooks = _webhooks(call)
    found = await webhooks.of_merchant(call.merchant)
    now_ms = await webhooks.now_ms()
    data = [wire.webhook(one, await _outbox(call, one).state(), now_ms=now_ms) for one in found]
    return Answer(200, wire.WebhookPage(data, False, None))


async def read(call: Call, _body: None) -> Answer:
    """Read one endpoint and how it does."""
    return await _answer(call, await _endpoint(call))


async def change(call: Call, body: wire.WebhookChangeRequest) -> Answer:
    """Change an endpoint; setting it active again resumes it."""
    if body.url is not UNSET:
        check_url("url", body.url, loopback=call.service.webhook_loopback)
    before, after = await _webhooks(call).change(
        call.merchant,
        call.path["webhook"],
        url=None if body.url is UNSET else body.url,
        description=None if body.description is UNSET else body.description,
        types=None if body.types is UNSET else tuple(body.types),
        locations=None if body.locations is UNSET else tuple(body.locations),
        skus=None if body.skus is UNSET else tuple(body.skus),
        status=None if body.status is UNSET else EndpointStatus(body.status),
    )
    if before.status is EndpointStatus.DISABLED and after.status is EndpointStatus.ACTIVE:
        event = gap_of_disabled(after, from_ms=before.status_at_ms, until_ms=after.status_at_ms)
        await _outbox(call, after).notice(event, dropped=0)
    return await _answer(call, after)


async def delete(call: Call, _body: None) -> Answer:
    """Remove an endpoint and all that waits for it."""
    await _webhooks(call).delete(call.merchant, call.path["webhook"])
    return Answer(204, None)


async def rotate_secret(call: Call, body: wire.WebhookSecretRequest) -> Answer:
    """Put a new secret in force, and show it this once."""
    made = await _webhooks(call).rotate(
        call.merchant,
        call.path["webhook"],
        key=key_of(call),
        overlap_ms=body.overlap_seconds * 1000,
        new_secret=new_secret,
    )
    return await _with_secret(call, 200, made.endpoint, made.secret, replayed=made.replayed)


async def test(call: Call, _body: None) -> Answer:
    """Send one event now, past the queue, and tell what came of it."""
    endpoint = await _endpoint(call)
    now_ms = await _webhooks(call).now_ms()
    event = test_event(endpoint, now_ms=now_ms)
    started = time.monotonic()
    answer = await send(call.service.egress, endpoint, event.id, event.body, now_ms=now_ms)
    outcome = outcome_of(answer)
    return Answer(
        200,
        wire.TestDelivery(
            event=event.id,
            delivered=outcome == "delivered",
            outcome=outcome,
            status=answer.status if isinstance(answer, Reply) else None,
            duration_ms=round((time.monotonic() - started) * 1000),
        ),
    )


async def list_attempts(call: Call, _body: None) -> Answer:
    """List the last attempts to deliver, the newest first."""
    endpoint = await _endpoint(call)
    listing = ("attempts", call.merchant, endpoint.id)
    limit = limit_of(call)
    found = await _outbox(call, endpoint).log(
        before=place_of(call, listing, is_place=_PLACE.fullmatch), limit=limit + 1
    )
    page = found[:limit]
    following = cursor(listing, page[-1][0] if len(found) > limit else None)
    data = [wire.attempt(made) for _, made in page]
    return Answer(200, wire.WebhookAttemptPage(data, following is not None, following))


async def list_dead_letters(call: Call, _body: None) -> Answer:
    """List the events that were given up, the oldest first."""
    endpoint = await _endpoint(call)
    listing = ("dead", call.merchant, endpoint.id)
    limit = limit_of(call)
    found = await _outbox(call, endpoint).dead(
        after=place_of(call, listing, is_place=_PLACE.fullmatch), limit=limit + 1
    )
    page = found[:limit]
    following = cursor(listing, page[-1].place if len(found) > limit else None)
    data = [wire.dead_letter(event) for event in page]
    return Answer(200, wire.DeadLetterPage(data, following is not None, following))


async def replay(call: Call, body: wire.ReplayRequest) -> Answer:
    """Queue given-up events again, behind what waits."""
    outbox = _outbox(call, await _endpoint(call))
    if body.ids is not UNSET:
        return Answer(200, wire.Replayed(await outbox.replay(body.ids)))
    replayed = 0
    # No more rounds than there can be dead letters: those that die meanwhile are of another day.
    for _ in range(MAX_DEAD // wire.MAX_REPLAYED):
        places = [event.place for event in await outbox.dead(after=None, limit=wire.MAX_REPLAYED)]
        if not places:
            break
        replayed += await outbox.replay(places)
    return Answer(200, wire.Replayed(replayed))


def _webhooks(call: Call) -> Webhooks:
    return Webhooks(call.inventory.store)


def _outbox(call: Call, endpoint: WebhookEndpoint) -> Outbox:
    return Outbox(call.inventory.store, endpoint.keys)


async def _endpoint(call: Call) -> WebhookEndpoint:
    return await _webhooks(call).read(call.merchant, call.path["webhook"])


async def _answer(call: Call, endpoint: WebhookEndpoint) -> Answer:
    state = await _outbox(call, endpoint).state()
    now_ms = await _webhooks(call).now_ms()
    return Answer(200, wire.webhook(endpoint, state, now_ms=now_ms))


async def _with_secret(
    call: Call, status: int, endpoint: WebhookEndpoint, secret: str, *, replayed: bool
) -> Answer:
    state = await _outbox(call, endpoint).state()
    now_ms = await _webhooks(call).now_ms()
    shown = wire.webhook_with_secret(endpoint, state, secret, now_ms=now_ms)
    return answer_once(status, shown, replayed=replayed)
