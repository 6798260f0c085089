"""Delivers webhooks: takes events from the endpoints' outboxes and sends them, again if need be.

Each endpoint is worked on by one process at a time, under a lease, and by a task of its own, so
that one endpoint's trouble is no other's. Events about one row go one after the other, in order:
one that fails holds back those of its row, and no others. What was answered with a status of 2xx is
delivered; anything else is tried again after the waits of SCHEDULE, and given up after the last.

An endpoint of which nothing gets through is asked seldom, is paused after PAUSE_AFTER_MS, long
before anything is given up for it, and gets everything as soon as it answers again. One that
answers 410 is disabled.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec
import structlog

from engine import tracing
from engine.clock import clock_ms
from engine.keys import PartitionKeys
from engine.leases import Lease
from engine.outbox import Attempt, Outbox, OutboxState, QueuedEvent
from engine.outcomes import HoldfastError, WebhookNotFound
from engine.store import Store
from engine.tasks import end_task
from engine.webhooks import (
    EndpointBook,
    EndpointStatus,
    StatusReason,
    WebhookEndpoint,
    Webhooks,
)
from gateway.egress import Egress, NoAnswer, Reply
from gateway.metrics import WEBHOOK_ATTEMPTS, WEBHOOK_SECONDS
from gateway.notices import gap_of_dropped
from gateway.signing import headers

SCHEDULE_SECONDS: Final = (
    5, 30, 120, 600, 1_800, 3_600, 7_200, 14_400, 28_800, 43_200,
)  # fmt: skip
"""Waits before the second and every later attempt, each more or less by JITTER: 11 attempts in 28
hours, so that a receiver that is down overnight, or for a day, misses nothing."""

JITTER: Final = 0.2

MAX_RETRY_AFTER_SECONDS: Final = 3_600
"""Of a receiver that names a wait itself, with 429 or 503; a longer one is cut to this."""

TROUBLED_FAILURES: Final = 3
"""After so many failures in a row an endpoint is taken to be down: one event at a time is tried."""

MAX_PROBE_SECONDS: Final = 60
"""Between two attempts at an endpoint that is down: so soon it is noticed that it is back."""

HASTEN_AFTER_MS: Final = 60_000
"""After an outage of so long what failed meanwhile is tried at once, and not when it is due."""

PAUSE_AFTER_MS: Final = 12 * 3_600_000
"""Of nothing but failures. Events are collected on, and nothing is given up."""

PAUSE_AFTER_FAILURES: Final = 10

MAX_AT_ONCE: Final = 8
"""Attempts under way for one endpoint, each about another row."""

MAX_SOUND: Final = 256
MAX_TROUBLED: Final = 64
"""Attempts under way in this process: endpoints that failed lately have places of their own, so
that however many of them hang, the others go on."""

SCAN_SECONDS: Final = 1.0
"""How soon events are noticed that another process has queued."""

LEASE_MS: Final = 20_000
"""Longer than an attempt takes: so long does a killed process keep an endpoint from the others."""

LEASE_RENEWAL_SECONDS: Final = 5.0

STOP_SECONDS: Final = 3.0
"""For attempts under way when the process is told to end, which has 5 s in all. One that is cut off
is made again by the next process, under the same id."""

DELIVERED: Final = "delivered"
USER_AGENT: Final = "Holdfast-Webhooks/1.0"

log = structlog.get_logger("gateway.delivery")


class _Traced(msgspec.Struct):
    """Of an event's body, the trace that it belongs to."""

    traceparent: str = ""


_TRACED: Final = b'"traceparent":'
_decode_traced = msgspec.json.Decoder(_Traced).decode


class Pause(NamedTuple):
    """How long an endpoint can be left alone, of the store's time."""

    until_ms: float
    waiting: int | None = None
    """Of how many events it is known that none is due: where there are others, the pause ends
    early. None where new ones change nothing, as while an endpoint is down."""


NO_PAUSE: Final = Pause(0)


class Deliveries:
    """Delivers for the endpoints of one store until told to stop; any number may run."""

    def __init__(
        self,
        store: Store,
        egress: Egress,
        book: EndpointBook,
        *,
        owner: str,
        schedule_seconds: Sequence[float] = SCHEDULE_SECONDS,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`owner` is unique to the process; `draw` spreads the waits."""
        self._store = store
        self._egress = egress
        self._book = book
        self._owner = owner
        self._schedule_seconds = tuple(schedule_seconds)
        self._draw = draw
        self._webhooks = Webhooks(store)
        self._sound = asyncio.Semaphore(MAX_SOUND)
        self._troubled = asyncio.Semaphore(MAX_TROUBLED)
        self._working: dict[str, asyncio.Task[None]] = {}
        self._runs: dict[str, _Run] = {}
        self._pauses: dict[str, Pause] = {}
        self._woken = asyncio.Event()
        self._offset_ms = 0.0
        self._stopping = False

    def wake(self) -> None:
        """Look at the outboxes now: something was queued."""
        self._woken.set()
        for run in self._runs.values():
            run.woken.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Deliver until `stop` is set; outages of the store are waited out."""
        stopping = asyncio.create_task(stop.wait())
        stopping.add_done_callback(lambda _: self._woken.set())
        try:
            while not stop.is_set():
                self._woken.clear()
                try:
                    await self._scan()
                except HoldfastError as error:
                    log.warning("the outboxes cannot be read", code=error.code, error=str(error))
                try:
                    async with asyncio.timeout(SCAN_SECONDS):
                        await self._woken.wait()
                except TimeoutError:
                    continue
        finally:
            stopping.cancel()
            await self._end()

    async def _end(self) -> None:
        """Let the attempts under way come to their end, for a moment."""
        self._stopping = True
        tasks = list(self._working.values())
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=STOP_SECONDS)
            await asyncio.gather(*(end_task(task) for task in late))

    async def _scan(self) -> None:
        """Start work on each active endpoint that has something due and is not worked on."""
        await self._book.refresh()
        self._offset_ms = await clock_ms(self._store, PartitionKeys(0)) - time.monotonic() * 1000
        now_ms = self._now_ms()
        endpoints = self._book.all()
        known = {endpoint.id for endpoint in endpoints}
        for gone in self._pauses.keys() - known:
            del self._pauses[gone]
        idle = [
            endpoint
            for endpoint in endpoints
            if endpoint.status is EndpointStatus.ACTIVE
            and endpoint.id not in self._working
            and (
                self._pauses.get(endpoint.id, NO_PAUSE).until_ms <= now_ms
                or self._pauses[endpoint.id].waiting is not None
            )
        ]
        if not idle:
            return
        counts = await self._store.read([("XLEN", one.keys.outbox) for one in idle])
        for endpoint, count in zip(idle, counts, strict=True):
            pause = self._pauses.get(endpoint.id, NO_PAUSE)
            if count and (pause.until_ms <= now_ms or count != pause.waiting):
                self._start(endpoint.id)

    def _start(self, webhook: str) -> None:
        task = asyncio.create_task(self._work(webhook))
        self._working[webhook] = task

        def ended(done: asyncio.Task[None]) -> None:
            self._working.pop(webhook, None)
            if not done.cancelled() and done.exception() is not None:
                # The edge of an endpoint's work: a bug in it must not end the others' deliveries.
                log.error("deliveries failed", webhook=webhook, exc_info=done.exception())
                self._pause(webhook, MAX_PROBE_SECONDS * 1000)

        task.add_done_callback(ended)

    def _now_ms(self) -> float:
        """Return the store's time, as of the last look at it."""
        return time.monotonic() * 1000 + self._offset_ms

    def _pause(self, webhook: str, wait_ms: float) -> None:
        self._pauses[webhook] = Pause(self._now_ms() + wait_ms)

    async def _work(self, webhook: str) -> None:
        """Deliver what is due for one endpoint, until nothing is."""
        endpoint = self._book.get(webhook)
        if endpoint is None:
            return
        lease = Lease(self._store, endpoint.keys, "deliver", owner=self._owner)
        try:
            if not await lease.renew(LEASE_MS):
                self._pause(webhook, 1000 * SCAN_SECONDS)
                return
            keeper = asyncio.create_task(_keep(lease))
            run = self._runs[webhook] = _Run(
                self, webhook, Outbox(self._store, endpoint.keys), lease
            )
            try:
                self._pauses[webhook] = await run.deliver()
            finally:
                del self._runs[webhook]
                await end_task(keeper)
                await lease.give_up()
        except HoldfastError as error:
            log.warning("deliveries stopped", webhook=webhook, code=error.code, error=str(error))
            self._pause(webhook, 1000 * SCAN_SECONDS)


class _Run:
    """The work on one endpoint, from when something is due until nothing is."""

    def __init__(self, deliveries: Deliveries, webhook: str, outbox: Outbox, lease: Lease) -> None:
        self._deliveries = deliveries
        self._webhook = webhook
        self._outbox = outbox
        self._lease = lease
        self._window: Sequence[QueuedEvent] = ()
        self._ready: list[list[QueuedEvent]] = []
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._done: set[str] = set()
        self._failures = 0
        self._failing_since_ms = 0
        self._stopped = False
        self.woken = asyncio.Event()
        """Set when the outbox may have something new."""

    async def deliver(self) -> Pause:
        """Deliver until nothing is due; return how long the endpoint can be left alone."""
        try:
            pause = NO_PAUSE
            look = True
            while not self._stopped and self._is_wanted():
                if look:
                    self.woken.clear()
                    pause = await self._look()
                self._start()
                if not self._under_way:
                    return pause
                look = await self._progress()
            # What the last look said may no longer be so.
            return NO_PAUSE
        except asyncio.CancelledError:
            for task in self._under_way.values():
                task.cancel()
            raise
        finally:
            self._stopped = True
            await self._settled()

    def _is_wanted(self) -> bool:
        endpoint = self._deliveries._book.get(self._webhook)
        active = endpoint is not None and endpoint.status is EndpointStatus.ACTIVE
        return active and bool(self._lease.fence) and not self._deliveries._stopping

    async def _look(self) -> Pause:
        """Find out which rows have something due; return how long until the next has."""
        state = await self._outbox.state()
        if not self._under_way:
            self._failures, self._failing_since_ms = state.failures, state.failing_since_ms
        self._window = await self._outbox.window()
        self._done.clear()
        self._ready = []
        now_ms = self._deliveries._now_ms()
        if not self._window:
            await self._tell_of_dropped(state, now_ms)
            return NO_PAUSE
        probe_at_ms = state.failed_at_ms + _probe_ms(state.failures)
        if probe_at_ms > now_ms:
            return Pause(probe_at_ms)
        chains = [chain for chain in _chains(self._window) if chain[0].row not in self._under_way]
        self._ready = [chain for chain in chains if chain[0].due_ms <= now_ms]
        due_ms = min((chain[0].due_ms for chain in chains), default=0)
        return Pause(due_ms, state.waiting)

    async def _tell_of_dropped(self, state: OutboxState, now_ms: float) -> None:
        """Tell an endpoint that has caught up of what was dropped meanwhile."""
        endpoint = self._deliveries._book.get(self._webhook)
        if state.dropped and endpoint is not None:
            event = gap_of_dropped(
                endpoint,
                dropped=state.dropped,
                from_ms=state.dropped_from_ms,
                until_ms=round(now_ms),
            )
            await self._outbox.notice(event, dropped=state.dropped)

    def _start(self) -> None:
        """Begin with as many rows as may be under way: one, while the endpoint is down."""
        most = 1 if self._failures >= TROUBLED_FAILURES else MAX_AT_ONCE
        while self._ready and len(self._under_way) < most and not self._stopped:
            chain = self._ready.pop(0)
            task = asyncio.create_task(self._deliver_chain(chain))
            self._under_way[chain[0].row] = task

    async def _progress(self) -> bool:
        """Wait until a row is done, or something new is there; say whether to look anew."""
        woken = asyncio.create_task(self.woken.wait())
        try:
            await asyncio.wait(
                [*self._under_way.values(), woken],
                timeout=SCAN_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            woken.cancel()
        for row in [row for row, task in self._under_way.items() if task.done()]:
            self._under_way.pop(row).result()
        # What is known to be ready comes first: a look at the outbox costs more than an event.
        return not self._ready

    async def _settled(self) -> None:
        """Let attempts under way come to their end."""
        tasks = list(self._under_way.values())
        if tasks:
            await asyncio.wait(tasks)
            self._under_way = {}

    async def _deliver_chain(self, chain: Sequence[QueuedEvent]) -> None:
        """Deliver a row's events in order, up to the first that fails."""
        try:
            for event in chain:
                if self._stopped or not await self._attempt(event):
                    return
        except HoldfastError as error:
            # The store does not answer: what was not noted down is delivered once more.
            self._stopped = True
            log.warning("deliveries stopped", webhook=self._webhook, code=error.code)

    async def _attempt(self, event: QueuedEvent) -> bool:
        """Try an event once and take note of it; say whether the next of its row may follow."""
        deliveries = self._deliveries
        async with deliveries._troubled if self._failures else deliveries._sound:
            endpoint = deliveries._book.get(self._webhook)
            if self._stopped or endpoint is None or not self._is_wanted():
                return False
            started = time.monotonic()
            answer = await send(
                deliveries._egress,
                endpoint,
                event.id,
                event.body,
                now_ms=round(deliveries._now_ms()),
            )
        duration_ms = round((time.monotonic() - started) * 1000)
        WEBHOOK_ATTEMPTS.add((outcome_of(answer),))
        WEBHOOK_SECONDS.of().observe(duration_ms / 1000)
        delivered = isinstance(answer, Reply) and 200 <= answer.status < 300
        attempt = Attempt(
            at_ms=round(deliveries._now_ms()),
            event=event.id,
            type=event.type,
            attempt=event.attempts + 1,
            outcome=outcome_of(answer),
            status=answer.status if isinstance(answer, Reply) else 0,
            duration_ms=duration_ms,
        )
        if delivered:
            return await self._note_success(event, attempt)
        return await self._note_failure(event, attempt, answer)

    async def _note_success(self, event: QueuedEvent, attempt: Attempt) -> bool:
        now_ms = await self._outbox.settle(self._lease, event, attempt, "delivered")
        self._done.add(event.place)
        if now_ms is None:
            self._stopped = True
            return False
        was_down = (
            self._failures >= TROUBLED_FAILURES
            and now_ms - self._failing_since_ms >= HASTEN_AFTER_MS
        )
        self._failures = 0
        if was_down:
            # What is under way, or was dealt with since the look, must not be noted as failed anew.
            late = [
                one
                for one in self._window
                if one.attempts and one.place not in self._done and one.row not in self._under_way
            ]
            await self._outbox.hasten([one.place for one in late], [one.attempts for one in late])
            log.info("an endpoint answers again", webhook=self._webhook)
        return True

    async def _note_failure(
        self, event: QueuedEvent, attempt: Attempt, answer: "Reply | NoAnswer"
    ) -> bool:
        schedule = self._deliveries._schedule_seconds
        is_last = attempt.attempt > len(schedule)
        wait_ms = 0 if is_last else self._wait_ms(schedule[attempt.attempt - 1], answer)
        now_ms = await self._outbox.settle(
            self._lease,
            event,
            msgspec.structs.replace(attempt, next_at_ms=0 if is_last else attempt.at_ms + wait_ms),
            "dead" if is_last else "retry",
            wait_ms=wait_ms,
        )
        if now_ms is None:
            self._stopped = True
            return False
        if not self._failures:
            self._failing_since_ms = now_ms
        self._failures += 1
        if self._failures >= TROUBLED_FAILURES:
            self._stopped = True
        if attempt.status == 410:
            await self._change(EndpointStatus.DISABLED, StatusReason.GONE)
        elif (
            self._failures >= PAUSE_AFTER_FAILURES
            and now_ms - self._failing_since_ms >= PAUSE_AFTER_MS
        ):
            await self._change(EndpointStatus.PAUSED, StatusReason.FAILING)
        if is_last:
            self._done.add(event.place)
        # What was given up no longer holds back the rest of its row.
        return is_last

    def _wait_ms(self, seconds: float, answer: "Reply | NoAnswer") -> int:
        wait_seconds = seconds * self._deliveries._draw(1 - JITTER, 1 + JITTER)
        if isinstance(answer, Reply) and answer.status in (429, 503):
            text = answer.retry_after.strip()
            if text.isascii() and text.isdecimal():
                wait_seconds = max(wait_seconds, min(int(text), MAX_RETRY_AFTER_SECONDS))
        return round(wait_seconds * 1000)

    async def _change(self, status: EndpointStatus, reason: StatusReason) -> None:
        self._stopped = True
        endpoint = self._deliveries._book.get(self._webhook)
        if endpoint is None:
            return
        try:
            await self._deliveries._webhooks.change(
                endpoint.merchant, endpoint.id, status=status, reason=reason
            )
        except WebhookNotFound:
            return
        log.error(
            "an endpoint gets no more deliveries",
            webhook=endpoint.id,
            merchant=endpoint.merchant,
            status=status.value,
            reason=reason.value,
            remedy="mend the receiver, then set the endpoint active again",
        )
        await self._deliveries._book.refresh()


async def send(
    egress: Egress, endpoint: WebhookEndpoint, event: str, body: bytes, *, now_ms: int
) -> Reply | NoAnswer:
    """Send one signed message to an endpoint."""
    traceparent = _decode_traced(body).traceparent if _TRACED in body else ""
    spans = tracing.spans()
    if spans is None:
        return await _post(egress, endpoint, event, body, traceparent, now_ms=now_ms)
    attributes = {"holdfast.webhook": endpoint.id, "holdfast.event": event}
    with spans.client("POST webhook", attributes, traceparent=traceparent) as span:
        own = spans.current_traceparent() or traceparent
        answer = await _post(egress, endpoint, event, body, own, now_ms=now_ms)
        if isinstance(answer, Reply):
            span.set("http.response.status_code", answer.status)
        if outcome_of(answer) != DELIVERED:
            span.fail(outcome_of(answer))
        return answer


async def _post(
    egress: Egress,
    endpoint: WebhookEndpoint,
    event: str,
    body: bytes,
    traceparent: str,
    *,
    now_ms: int,
) -> Reply | NoAnswer:
    signed = headers(
        event, body, signed_with=endpoint.secrets_at(now_ms), at_seconds=now_ms // 1000
    )
    fields = [("content-type", "application/json"), ("user-agent", USER_AGENT), *signed]
    if traceparent:
        fields.append(("traceparent", traceparent))
    try:
        return await egress.post(endpoint.url, body, fields)
    except NoAnswer as error:
        return error


def outcome_of(answer: Reply | NoAnswer) -> str:
    """Name what came of an attempt: `delivered`, `refused` by its status, or why no answer came."""
    if isinstance(answer, NoAnswer):
        return answer.failure.value
    return DELIVERED if 200 <= answer.status < 300 else "refused"


def _chains(window: Sequence[QueuedEvent]) -> list[list[QueuedEvent]]:
    """Group the events by row, each row's in order; the rows by their oldest event."""
    chains: dict[str, list[QueuedEvent]] = {}
    for event in window:
        chains.setdefault(event.row, []).append(event)
    return list(chains.values())


def _probe_ms(failures: int) -> float:
    """Return how long an endpoint that fails is left alone after an attempt."""
    if failures < TROUBLED_FAILURES:
        return 0
    doubled: int = 2 ** min(failures - TROUBLED_FAILURES, 16)
    return 1000.0 * min(MAX_PROBE_SECONDS, SCHEDULE_SECONDS[0] * doubled)


async def _keep(lease: Lease) -> None:
    """Renew a lease until cancelled; what is settled without it is refused."""
    while True:
        await asyncio.sleep(LEASE_RENEWAL_SECONDS)
        try:
            if not await lease.renew(LEASE_MS):
                return
        except HoldfastError as error:
            log.warning("a lease cannot be renewed", code=error.code)
