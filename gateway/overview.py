"""What whoever watches over the service looks at first: of all of it, and of one merchant.

Counts only rise, since the processes began to count: a rate is the difference of two answers.
"""

import asyncio
from collections.abc import Iterable
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from prometheus_client import Metric

from engine import metrics
from engine.clock import clock_ms
from engine.feeds import SourceState
from engine.model import time_text
from gateway.calls import Answer, Call
from gateway.wire import Time

MAX_LOCATIONS: Final = 100
"""Of a merchant's overview, by name."""


class LatencyBucket(msgspec.Struct, frozen=True):
    """How many reserves took at most `seconds`; null is however long."""

    seconds: float | None
    count: int


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of all gateway processes. `sold_out` are carts that did not fit."""

    requests: int
    failed: Annotated[int, Meta(description="Answers of status 500 and above.")]
    reserves: int
    sold_out: int
    reserve_seconds: list[LatencyBucket]


class LiveHolds(msgspec.Struct, frozen=True):
    """Holds whose time runs, how many of them are due, and the age of the oldest."""

    live: int
    overdue: int
    oldest_ms: int


class Consumer(msgspec.Struct, frozen=True):
    """A registered reader of the ledger: the operations that it has not read, the oldest's age."""

    name: str
    behind_operations: int
    behind_ms: int


class Sources(msgspec.Struct, frozen=True):
    """Sources of events by how they are, and the events that have not come."""

    live: int
    degraded: int
    catching_up: int
    missing: int
    silent_ms: int


class Webhooks(msgspec.Struct, frozen=True):
    """Webhook endpoints by status, and their events: queued, and given up."""

    active: int
    paused: int
    disabled: int
    failing: int
    waiting: int
    dead: int


class ArchiveFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The archive: `ok`, `failing`, `off`, or `unknown` while nothing tells of it."""

    state: str
    sequence: Annotated[int, Meta(description="Operations in the ledger, all partitions.")]
    archived: Annotated[int, Meta(description="Of them in the archive.")]
    behind_operations: int
    behind_ms: int
    archived_at: Time | None


class StoreFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The store. `unsafe` says in what way it may lose what it acknowledged; empty: in none."""

    server: str | None
    unsafe: list[str]
    memory_used_bytes: int
    memory_limit_bytes: int
    delayed_fsyncs: int
    aof_failing: int


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """How the service is; `warnings` are those of `/readyz`."""

    at: Time
    warnings: list[str]
    traffic: Traffic
    holds: LiveHolds
    shortfalls: int
    intake_events: int
    subscribers: int
    consumers: list[Consumer]
    sources: Sources
    webhooks: Webhooks
    archive: ArchiveFigures
    findings: dict[str, int]
    audited_at: Time | None
    store: StoreFigures
    sweeper: Annotated[str, Meta(description="`running`, `halted`, or `silent`.")]


class LocationOverview(msgspec.Struct, frozen=True, kw_only=True):
    """A location: its open reservations and since when the oldest is there, and its feeds."""

    location: str
    open_reservations: int
    oldest_at: Time | None
    quarantined: int
    state: SourceState


class MerchantOverview(msgspec.Struct, frozen=True, kw_only=True):
    """A merchant's locations, the first of them by name."""

    at: Time
    data: list[LocationOverview]
    has_more: bool


async def read(call: Call, _body: None) -> Answer:
    """Tell how the service is."""
    figures = await call.service.figures()
    readiness = await call.service.readiness()
    metrics.settle()
    traffic, subscribers = await asyncio.to_thread(_counted)
    upkeep, backlog, servers = figures.upkeep, figures.archive, figures.servers
    feeds = None if upkeep is None else upkeep.feeds
    hooks = figures.webhooks
    return Answer(
        200,
        Overview(
            at=time_text(figures.at_ms),
            warnings=readiness.warnings,
            traffic=traffic,
            holds=LiveHolds(figures.holds.live, figures.holds.overdue, figures.holds.oldest_ms),
            shortfalls=figures.shortfalls,
            intake_events=figures.intake_events,
            subscribers=subscribers,
            consumers=[
                Consumer(one.name, one.behind_operations, one.behind_ms)
                for one in figures.consumers
            ],
            sources=Sources(0, 0, 0, 0, 0)
            if feeds is None
            else Sources(
                feeds.live, feeds.degraded, feeds.catching_up, feeds.missing, feeds.silent_ms
            ),
            webhooks=Webhooks(
                hooks.active,
                hooks.paused,
                hooks.disabled,
                hooks.failing,
                hooks.waiting,
                hooks.dead,
            ),
            archive=ArchiveFigures(
                state="unknown" if upkeep is None else upkeep.archive,
                sequence=sum(one.sequence for one in backlog.partitions),
                archived=sum(one.archived for one in backlog.partitions),
                behind_operations=backlog.behind_operations,
                behind_ms=backlog.behind_ms,
                archived_at=_time(0 if upkeep is None else upkeep.archived_at_ms),
            ),
            findings=figures.audit.by_severity,
            audited_at=_time(figures.audit.audited_at_ms),
            store=StoreFigures(
                server=readiness.store,
                unsafe=call.service.unsafe,
                memory_used_bytes=servers.memory[0],
                memory_limit_bytes=servers.memory[1],
                delayed_fsyncs=servers.delayed_fsyncs,
                aof_failing=servers.aof_failing,
            ),
            sweeper="silent" if figures.sweeper is None else figures.sweeper.state,
        ),
    )


async def read_merchant(call: Call, _body: None) -> Answer:
    """Tell how a merchant's locations are."""
    inventory, merchant = call.inventory, call.merchant
    page = await inventory.list_locations(merchant, limit=MAX_LOCATIONS)
    states = await call.service.freshness.of(merchant, page.items)
    found = await asyncio.gather(*(inventory.open_count(merchant, one) for one in page.items))
    aside = await asyncio.gather(
        *(call.feeds.count_quarantined(merchant, one) for one in page.items)
    )
    data = [
        LocationOverview(
            location=place,
            open_reservations=count,
            oldest_at=_time(oldest_ms),
            quarantined=set_aside,
            state=states[place].state,
        )
        for place, (count, oldest_ms), set_aside in zip(page.items, found, aside, strict=True)
    ]
    now = time_text(await clock_ms(inventory.store, inventory.keys[0]))
    return Answer(200, MerchantOverview(at=now, data=data, has_more=page.next_after is not None))


def _counted() -> tuple[Traffic, int]:
    """Add up what all processes counted; a file of each is read."""
    requests = failed = reserves = sold_out = subscribers = 0
    buckets: dict[float, int] = {}
    for name, labels, value in _samples(metrics.registry().collect()):
        if name == "holdfast_http_requests_total":
            requests += value
            failed += value if labels["status"] >= "500" else 0
            if labels["operation"] == "reserve":
                reserves += value if labels["status"] == "201" else 0
                sold_out += value if labels["code"] == "insufficient_stock" else 0
        elif name == "holdfast_subscribers":
            subscribers += value
        elif (
            name == "holdfast_http_request_duration_seconds_bucket"
            and labels["operation"] == "reserve"
        ):
            bound = float(labels["le"])
            buckets[bound] = buckets.get(bound, 0) + value
    latency = [
        LatencyBucket(None if bound == float("inf") else bound, buckets[bound])
        for bound in sorted(buckets)
    ]
    traffic = Traffic(
        requests=requests,
        failed=failed,
        reserves=reserves,
        sold_out=sold_out,
        reserve_seconds=latency,
    )
    return traffic, subscribers


def _samples(families: Iterable[Metric]) -> Iterable[tuple[str, dict[str, str], int]]:
    for family in families:
        for sample in family.samples:
            yield sample.name, sample.labels, int(sample.value)


def _time(time_ms: int) -> str | None:
    return time_text(time_ms) if time_ms else None
