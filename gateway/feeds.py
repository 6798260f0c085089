"""Feeds: events of tills and suppliers, their sources, and what was set aside."""

import time
from datetime import timedelta
from typing import Final

import msgspec
import structlog
from msgspec import UNSET

from engine import feeds
from engine.model import time_text
from engine.outcomes import (
    HoldfastError,
    StoreFault,
)
from gateway import feed_bodies, wire
from gateway.batches import raise_if_store_failed
from gateway.bodies import decode
from gateway.calls import Answer, Call
from gateway.paging import limit_of, page_answer, place_of
from gateway.problems import InvalidRequest, item_problem, pointer

log = structlog.get_logger("gateway.feeds")

_MILLISECOND: Final = timedelta(milliseconds=1)


class _Named(msgspec.Struct, frozen=True):
    event_id: str


_events: msgspec.json.Decoder[feed_bodies.FeedEvent] = msgspec.json.Decoder(feed_bodies.FeedEvent)
_names: msgspec.json.Decoder[_Named] = msgspec.json.Decoder(_Named)


async def take(call: Call, body: feed_bodies.FeedRequest) -> Answer:
    """Take events that stand or fall alone; a malformed one is rejected and the rest taken.

    Where the store failed in mid-course the answer is a refusal of the whole: a repetition finds
    what was taken as duplicates.
    """
    items = [_event(raw) for raw in body.events]
    sound = [item for item in items if isinstance(item, feeds.FeedEvent)]
    path = call.path
    taken = iter(
        await call.feeds.take(
            call.merchant, path["location"], path["source"], sound, actor=call.actor
        )
        if sound
        else []
    )
    results = [next(taken) if isinstance(item, feeds.FeedEvent) else item for item in items]
    raise_if_store_failed(results)
    data = [
        _outcome(pointer(["events", str(i)]), raw, item, result)
        for i, (raw, item, result) in enumerate(zip(body.events, items, results, strict=True))
    ]
    verdicts = [outcome.verdict for outcome in data]
    counts = [verdicts.count(verdict) for verdict in feed_bodies.EventVerdict]
    return Answer(200, feed_bodies.FeedAnswer(data, *counts))


async def list_sources(call: Call, _body: None) -> Answer:
    """List a location's sources and their states."""
    location = call.path["location"]
    found = await call.feeds.sources(call.merchant, location)
    aside = await call.feeds.count_quarantined(call.merchant, location)
    policy = await call.feeds.policies.of(call.merchant, location)
    now_ms = time.time_ns() // 1_000_000
    data = [
        feed_bodies.source(
            source, state=source.state(now_ms, heartbeat_ms=policy.heartbeat_ms), now_ms=now_ms
        )
        for source in found
    ]
    intake = call.feeds.intake_key(call.merchant, location)
    return Answer(200, feed_bodies.FeedList(data, aside, intake, time_text(now_ms)))


async def skip(call: Call, body: feed_bodies.SkipRequest) -> Answer:
    """Give up on numbers that have not come."""
    path = call.path
    taken = await call.feeds.skip(
        call.merchant, path["location"], path["source"], through=body.through, actor=call.actor
    )
    return _decision(taken)


async def list_quarantined(call: Call, _body: None) -> Answer:
    """List what was set aside."""
    location = call.path["location"]
    listing = ("quarantine", call.merchant, location)
    page = await call.feeds.quarantined(
        call.merchant, location, after=place_of(call, listing), limit=limit_of(call)
    )
    return page_answer(feed_bodies.QuarantinePage, listing, page, feed_bodies.quarantined)


async def retry(call: Call, _body: None) -> Answer:
    """Look at what was set aside anew."""
    taken = await call.feeds.retry(
        call.merchant, call.path["location"], call.path["event"], actor=call.actor, read=read_event
    )
    return _decision(taken)


async def drop(call: Call, _body: None) -> Answer:
    """Give up on what was set aside."""
    path = call.path
    return _decision(
        await call.feeds.drop(call.merchant, path["location"], path["event"], actor=call.actor)
    )


async def read_policy(call: Call, _body: None) -> Answer:
    """Read what is decided for the merchant, or for the location of the path."""
    part = await call.feeds.policies.read(call.merchant, call.path.get("location", ""))
    return Answer(200, feed_bodies.policy(part))


async def write_policy(call: Call, body: feed_bodies.FeedPolicy) -> Answer:
    """Decide for the merchant, or for the location of the path."""
    part = feed_bodies.policy_part(body)
    await call.feeds.policies.write(call.merchant, part, call.path.get("location", ""))
    return Answer(200, feed_bodies.policy(part))


def _decision(taken: feeds.Taken) -> Answer:
    return Answer(200, feed_bodies.Decision(taken.verdict, taken.why))


def read_event(text: bytes) -> feeds.FeedEvent:
    """Read an event of its JSON. Raises InvalidRequest and InvalidCommand."""
    event = _event_of(decode(text, _events))
    feeds.check_event(event)
    return event


def _event(raw: msgspec.Raw) -> feeds.FeedEvent | HoldfastError:
    try:
        return _event_of(decode(bytes(raw), _events))
    except InvalidRequest as refusal:
        return refusal


def _event_of(request: feed_bodies.FeedEvent) -> feeds.FeedEvent:
    """Make the engine's event. Raises InvalidRequest."""
    occurred_at_ms = (request.occurred_at - wire.FIRST_OCCURRED_AT) // _MILLISECOND
    if occurred_at_ms <= 0:
        raise InvalidRequest(
            wire.ProblemError(pointer="#/occurred_at", detail="must be after 1970 began")
        )
    return feeds.FeedEvent(
        event_id=request.event_id,
        type=request.type,
        occurred_at_ms=occurred_at_ms,
        sku="" if request.sku is UNSET else request.sku,
        quantity=0 if request.quantity is UNSET else request.quantity,
        sequence=0 if request.sequence is UNSET else request.sequence,
        reason=request.reason,
        reference=request.reference,
        supply=request.supply,
    )


def _outcome(
    place: str,
    raw: msgspec.Raw,
    item: feeds.FeedEvent | HoldfastError,
    result: feeds.Taken | HoldfastError,
) -> feed_bodies.EventOutcome:
    if isinstance(result, feeds.Taken):
        return feed_bodies.EventOutcome(
            event_id=result.event_id,
            verdict=feed_bodies.EventVerdict(result.verdict),
            why=result.why or UNSET,
            expects=result.expects or UNSET,
        )
    if isinstance(result, StoreFault):
        log.error("an event failed", call=result.call, reply=result.reply)
    return feed_bodies.EventOutcome(
        event_id=item.event_id if isinstance(item, feeds.FeedEvent) else _name(raw),
        verdict=feed_bodies.EventVerdict.REJECTED,
        error=item_problem(result, body=item, prefix=place),
    )


def _name(raw: msgspec.Raw) -> str | None:
    """Return the id of a malformed event, so that its sender finds it; None where it has none."""
    try:
        return _names.decode(bytes(raw)).event_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
