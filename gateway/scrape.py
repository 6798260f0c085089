"""`/metrics`: what Prometheus reads, of all processes of the service and of the store.

What is counted where it happens comes from the modules `metrics`, the figures of the store from
`engine.figures`. Nothing has a label whose values callers choose: no SKU, no location, no merchant.
"""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.metadata import version
from typing import Any, Final

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.types import Receive, Send

from engine import metrics
from engine.figures import Figures
from engine.outcomes import StoreUnavailable
from gateway.calls import Call

FIGURES_SECONDS: Final = 3.0
"""How long a scrape waits for the store, well within the ten seconds that Prometheus waits."""

_TEXT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Labelled = Iterable[tuple[tuple[str, ...], float]]


class Exposition:
    """The answer to a scrape."""

    def __init__(self, body: bytes, media_type: str) -> None:
        """Take it as it is sent."""
        self._body = body
        self._media_type = media_type

    async def respond(self, _receive: Receive, send: Send, *, without_body: bool) -> None:
        """Send it."""
        fields = [
            (b"content-type", self._media_type.encode()),
            (b"content-length", b"%d" % len(self._body)),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b"" if without_body else self._body})


async def scrape(call: Call, _body: None) -> Exposition:
    """Tell everything; while the store does not answer, what is known without it."""
    figures: Figures | None = None
    with suppress(StoreUnavailable, TimeoutError):
        async with asyncio.timeout(FIGURES_SECONDS):
            figures = await call.service.figures()
    metrics.settle()
    accept = call.headers.get(b"accept", b"").decode("latin-1")
    # The files of all processes are read; the requests of others go on meanwhile.
    body, media_type = await asyncio.to_thread(expose, figures, accept or _TEXT_TYPE)
    return Exposition(body, media_type)


def expose(figures: Figures | None, accept: str) -> tuple[bytes, str]:
    """Return what is told, and of which media type."""
    encoder, media_type = choose_encoder(accept)
    told = CollectorRegistry()
    told.register(_Told(figures))
    return _merged(encoder, metrics.registry(), told), media_type


def _merged(encoder: Any, *registries: CollectorRegistry) -> bytes:
    merged = CollectorRegistry()
    for one in registries:
        merged.register(_AllOf(one))
    body: bytes = encoder(merged)
    return body


class _AllOf(Collector):
    """All that another registry has."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        return self._registry.collect()

    def describe(self) -> Iterable[Metric]:
        """Name nothing: it is only collected, once."""
        return []


class _Told(Collector):
    """The figures of the store as metrics."""

    def __init__(self, figures: Figures | None) -> None:
        self._figures = figures

    def describe(self) -> Iterable[Metric]:
        """Name nothing: it is only collected, once."""
        return []

    def collect(self) -> Iterator[Metric]:
        figures = self._figures
        yield _gauge(
            "holdfast_build_info",
            "Always 1; the version.",
            [((version("holdfast"),), 1)],
            labels=["version"],
        )
        yield _gauge(
            "holdfast_store_up", "Whether the store gave its figures.", _one(figures is not None)
        )
        if figures is not None:
            yield from _holds(figures)
            yield from _promises(figures)
            yield from _readers(figures)
            yield from _webhooks(figures)
            yield from _archive(figures)
            yield from _audit(figures)
            yield from _servers(figures)
            yield from _background(figures)


def _holds(figures: Figures) -> Iterator[Metric]:
    holds = figures.holds
    yield _gauge("holdfast_holds", "Holds whose time runs.", _one(holds.live))
    yield _gauge(
        "holdfast_holds_overdue",
        "Of these, the ones whose time is up and whose units were not given back yet.",
        _one(holds.overdue),
    )
    yield _gauge(
        "holdfast_holds_most_overdue_seconds",
        "For how long the time of the longest overdue hold is up.",
        _one(max(0, holds.most_overdue_ms) / 1000),
    )
    yield _gauge(
        "holdfast_holds_oldest_seconds",
        "Age of the oldest of the holds that are next to expire, one a partition.",
        _one(holds.oldest_ms / 1000),
    )
    yield _gauge(
        "holdfast_shortfalls", "Rows with more promised than is there.", _one(figures.shortfalls)
    )


def _promises(figures: Figures) -> Iterator[Metric]:
    orders, promises = figures.orders, figures.audit.promises
    yield _gauge(
        "holdfast_orders_overdue",
        "Orders and moves that are due to be looked at and were not yet.",
        _one(orders.overdue),
    )
    yield _gauge(
        "holdfast_orders_most_overdue_seconds",
        "For how long the longest of these is due.",
        _one(orders.most_overdue_ms / 1000),
    )
    yield _gauge(
        "holdfast_backordered_units",
        "Units that are promised and have not come, as the audit last saw them.",
        _one(promises.backordered),
    )
    yield _gauge(
        "holdfast_backordered_late_units",
        "Of these, the ones whose day cannot be kept.",
        _one(promises.late),
    )
    yield _gauge(
        "holdfast_backordered_past_units",
        "Of these, the ones whose day is over.",
        _one(promises.past),
    )
    yield _gauge(
        "holdfast_supplies_past",
        "Supplies that are said to come on a day that is over, as the audit last saw them.",
        _one(promises.supplies_past),
    )


def _readers(figures: Figures) -> Iterator[Metric]:
    yield _gauge(
        "holdfast_intake_events",
        "Events that integrators wrote to the intake and nobody took yet.",
        _one(figures.intake_events),
    )
    yield _gauge(
        "holdfast_consumer_lag_operations",
        "Operations that a reader of the ledger has not read.",
        [((one.name,), one.behind_operations) for one in figures.consumers],
        labels=["consumer"],
    )
    yield _gauge(
        "holdfast_consumer_lag_seconds",
        "Age of the oldest operation that a reader of the ledger has not read.",
        [((one.name,), one.behind_ms / 1000) for one in figures.consumers],
        labels=["consumer"],
    )


def _webhooks(figures: Figures) -> Iterator[Metric]:
    webhooks = figures.webhooks
    by_status = {
        "active": webhooks.active,
        "paused": webhooks.paused,
        "disabled": webhooks.disabled,
    }
    yield _gauge(
        "holdfast_webhook_endpoints",
        "Webhook endpoints by status.",
        [((status,), count) for status, count in by_status.items()],
        labels=["status"],
    )
    yield _gauge(
        "holdfast_webhook_endpoints_failing",
        "Endpoints whose last attempt failed.",
        _one(webhooks.failing),
    )
    yield _gauge(
        "holdfast_webhook_events_waiting", "Events to be delivered.", _one(webhooks.waiting)
    )
    yield _gauge("holdfast_webhook_events_dead", "Events given up, and kept.", _one(webhooks.dead))
    yield _gauge(
        "holdfast_webhook_events_dropped",
        "Events that came while an outbox was full, and of which its endpoint was not told yet.",
        _one(webhooks.dropped),
    )


def _archive(figures: Figures) -> Iterator[Metric]:
    upkeep = figures.upkeep
    if upkeep is not None and upkeep.archive == "off":
        return
    yield _gauge(
        "holdfast_archive_lag_seconds",
        "Age of the oldest operation that is not archived; not there without an archive.",
        _one(figures.archive.behind_ms / 1000),
    )
    yield _gauge(
        "holdfast_archive_lag_operations",
        "Operations that are not archived; not there without an archive.",
        _one(figures.archive.behind_operations),
    )


def _audit(figures: Figures) -> Iterator[Metric]:
    audit = figures.audit
    yield _gauge(
        "holdfast_oversold",
        "Findings of the audit that units were promised which were not there. Always 0.",
        _one(audit.oversold),
    )
    yield _gauge(
        "holdfast_audit_findings",
        "What the audit last found, by severity.",
        [((one,), audit.by_severity.get(one, 0)) for one in ("critical", "warning", "notice")],
        labels=["severity"],
    )
    yield _gauge(
        "holdfast_audit_timestamp_seconds",
        "When the partition was audited whose last audit is the longest ago; 0: one never was.",
        _one(audit.audited_at_ms / 1000),
    )


def _servers(figures: Figures) -> Iterator[Metric]:
    servers = figures.servers
    used, limit = servers.memory
    yield _gauge("holdfast_store_memory_used_bytes", "Memory of the fullest server.", _one(used))
    yield _gauge(
        "holdfast_store_memory_limit_bytes",
        "What it may use: maxmemory, or else all that its machine has; 0: not known.",
        _one(limit),
    )
    yield _counter("holdfast_store_scripts", "Scripts that the servers ran.", servers.script_calls)
    yield _counter(
        "holdfast_store_script_seconds",
        "Time that the servers spent in scripts.",
        servers.script_us / 1e6,
    )
    yield _counter(
        "holdfast_store_delayed_fsyncs",
        "Writes that a server held up because an fsync took too long (appendfsync everysec only).",
        servers.delayed_fsyncs,
    )
    yield _gauge(
        "holdfast_store_aof_failing",
        "Servers that cannot write their append-only file.",
        _one(servers.aof_failing),
    )


def _background(figures: Figures) -> Iterator[Metric]:
    sweeper, upkeep = figures.sweeper, figures.upkeep
    yield _gauge("holdfast_sweeper_up", "Whether holds are swept.", _one(sweeper is not None))
    yield _gauge("holdfast_reconciler_up", "Whether the reconciler runs.", _one(upkeep is not None))
    if sweeper is not None:
        yield _gauge(
            "holdfast_clock_jump_seconds",
            "By how much the store's clock is off; 0 while it is trusted.",
            _one(sweeper.clock_jump_ms / 1000),
        )
        yield _gauge(
            "holdfast_holds_staying",
            "Holds that are due and cannot be taken back.",
            _one(sweeper.staying),
        )
    if upkeep is None:
        return
    feeds = upkeep.feeds
    by_state = {
        "live": feeds.live,
        "degraded": feeds.degraded,
        "catching_up": feeds.catching_up,
    }
    yield _gauge(
        "holdfast_feed_sources",
        "Sources of events by how they are.",
        [((state,), count) for state, count in by_state.items()],
        labels=["state"],
    )
    yield _gauge(
        "holdfast_feed_events_missing",
        "Events that sources counted and that have not come.",
        _one(feeds.missing),
    )
    yield _gauge(
        "holdfast_feed_silent_seconds",
        "For how long the longest silent source that sends heartbeats was not heard of.",
        _one(feeds.silent_ms / 1000),
    )
    yield _gauge(
        "holdfast_archive_timestamp_seconds",
        "When a round of the archiver last went through; 0: not since it was started.",
        _one(upkeep.archived_at_ms / 1000),
    )
    yield _gauge(
        "holdfast_snapshot_timestamp_seconds",
        "When a snapshot was last made; 0: none since the reconciler was started.",
        _one(upkeep.snapshot_at_ms / 1000),
    )
    yield _gauge(
        "holdfast_job_failing",
        "Jobs of the reconciler that cannot do their work.",
        [((job,), 1) for job in sorted(upkeep.failing)],
        labels=["job"],
    )
    yield _gauge(
        "holdfast_alarm",
        "Alarms as /readyz tells them.",
        [((alarm.code,), 1) for alarm in upkeep.alarms],
        labels=["code"],
    )


def _one(value: float) -> Labelled:
    return [((), float(value))]


def _gauge(name: str, text: str, values: Labelled, labels: Iterable[str] = ()) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    for label_values, value in values:
        family.add_metric(list(label_values), value)
    return family


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)
