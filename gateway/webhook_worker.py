"""The background side of webhooks: follows the ledger into the outboxes, and delivers from them.

A consumer named `webhooks` puts each event into the outbox of every endpoint that wants it, before
it notes how far it is; so an endpoint that is slow or down holds back neither the ledger nor
another endpoint. Any number of these workers may run on a store.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Final

import msgspec
import structlog

from engine.consumer import Batch, Consumer, Reason, Resync, Start
from engine.event_making import events_of
from engine.events import AnyEvent, EventType, StockEvent
from engine.inventory import Inventory
from engine.keys import encode
from engine.leases import new_owner
from engine.outbox import MAX_EVENTS_A_CALL, NewEvent, Outbox
from engine.webhooks import EndpointBook, EndpointStatus, WebhookEndpoint, Webhooks
from gateway.delivery import SCHEDULE_SECONDS, Deliveries
from gateway.egress import Egress
from gateway.notices import gap_of_ledger
from gateway.subscriptions import Interest

READER: Final = "webhooks"
RESTART_SECONDS: Final = 10.0
"""Before a part that struck a bug is tried again; the other part goes on meanwhile."""

log = structlog.get_logger("gateway.webhook_worker")


class WebhookWorker:
    """Does all of it until told to stop; see the module's text."""

    def __init__(
        self,
        inventory: Inventory,
        *,
        loopback: bool = False,
        schedule_seconds: Sequence[float] = SCHEDULE_SECONDS,
    ) -> None:
        """With `loopback` endpoints may be on this machine."""
        self._inventory = inventory
        self._egress = Egress(loopback=loopback)
        book = EndpointBook(inventory.store)
        self._deliveries = Deliveries(
            inventory.store,
            self._egress,
            book,
            owner=new_owner(),
            schedule_seconds=schedule_seconds,
        )
        self._intake = Intake(inventory, book, queued=self._deliveries.wake)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set."""
        consumer = Consumer(self._inventory, READER, self._intake, start=Start.LATEST)
        try:
            await asyncio.gather(
                _keep_running("intake", consumer.run, stop),
                _keep_running("deliveries", self._deliveries.run, stop),
            )
        finally:
            await self._egress.close()


class Intake:
    """Puts events into the outboxes of the endpoints that want them; a consumer's handler."""

    def __init__(
        self, inventory: Inventory, book: EndpointBook, *, queued: Callable[[], None]
    ) -> None:
        """Call `queued` when there is something new to deliver."""
        self._store = inventory.store
        self._webhooks = Webhooks(inventory.store)
        self._book = book
        self._queued = queued

    async def apply(self, batch: Batch) -> None:
        """Queue a batch's events. Raises StoreUnavailable."""
        # After the batch was read: whoever has made an endpoint gets all that happened since.
        by_merchant = await self._endpoints()
        if not by_merchant:
            return
        interests = {
            one.id: interest_of(one) for endpoints in by_merchant.values() for one in endpoints
        }
        queues: dict[str, list[NewEvent]] = {}
        for told in batch.operations():
            endpoints = by_merchant.get(told.operation.merchant)
            if not endpoints:
                continue
            for event in events_of(
                told.operation,
                sequence=told.sequence,
                at_ms=told.at_ms,
                partition=batch.partition,
            ):
                wanting = [one for one in endpoints if interests[one.id].wants(event)]
                if wanting:
                    queued = new_event(event, told.sequence, told.at_ms)
                    for one in wanting:
                        queues.setdefault(one.id, []).append(queued)
        for endpoints in by_merchant.values():
            for one in endpoints:
                if one.id in queues:
                    await self._enqueue(one, batch, queues[one.id])
        if queues:
            self._queued()

    async def _enqueue(
        self, endpoint: WebhookEndpoint, batch: Batch, events: Sequence[NewEvent]
    ) -> None:
        outbox = Outbox(self._store, endpoint.keys)
        for part in _parts(events):
            await outbox.enqueue(batch.partition, part, last=part[-1].sequence)

    async def resync(self, anew: Resync) -> None:
        """Tell every endpoint that events are missing. Raises StoreUnavailable."""
        until_ms = await self._webhooks.now_ms()
        for endpoints in (await self._endpoints()).values():
            for one in endpoints:
                outbox = Outbox(self._store, one.keys)
                if anew.reason is Reason.FORK:
                    await outbox.rewind(anew.partition, max(0, anew.found - 1))
                event = gap_of_ledger(one, partition=anew.partition, until_ms=until_ms)
                await outbox.notice(event, dropped=0)
        self._queued()

    async def _endpoints(self) -> dict[str, list[WebhookEndpoint]]:
        await self._book.refresh()
        found: dict[str, list[WebhookEndpoint]] = {}
        for one in self._book.all():
            if one.status is not EndpointStatus.DISABLED:
                found.setdefault(one.merchant, []).append(one)
        return found


def interest_of(endpoint: WebhookEndpoint) -> Interest:
    """Return what an endpoint wants, as streams say it."""
    asked = endpoint.interest
    return Interest(
        merchant=endpoint.merchant,
        locations=frozenset(asked.locations) or None,
        skus=frozenset(asked.skus) or None,
        types=frozenset(EventType(one) for one in asked.types) or None,
    )


def new_event(event: AnyEvent, sequence: int, at_ms: int) -> NewEvent:
    """Encode an event once for all endpoints; those about one row or reservation keep order."""
    row = f"{encode(event.data.location)}:{encode(event.subject)}"
    kind = "stock" if isinstance(event, StockEvent) else "rsv"
    body = msgspec.json.encode(event)
    return NewEvent(sequence, event.id, f"{kind}:{row}", event.type_name, body, at_ms)


def _parts(events: Sequence[NewEvent]) -> Iterable[list[NewEvent]]:
    """Cut events into calls, never between those of one operation."""
    part: list[NewEvent] = []
    for _, group in groupby(events, key=lambda event: event.sequence):
        following = list(group)
        if part and len(part) + len(following) > MAX_EVENTS_A_CALL:
            yield part
            part = []
        part += following
    if part:
        yield part


async def _keep_running(
    name: str, run: Callable[[asyncio.Event], Awaitable[None]], stop: asyncio.Event
) -> None:
    """Run a part until `stop` is set, whatever becomes of it."""
    while not stop.is_set():
        try:
            await run(stop)
        except Exception as fault:
            # The edge of the part: a bug in it must end neither the other nor the process.
            log.error("webhooks failed", part=name, exc_info=fault)
            with suppress(TimeoutError):
                async with asyncio.timeout(RESTART_SECONDS):
                    await stop.wait()
