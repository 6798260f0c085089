"""How a store is, in figures for whoever watches over it: metrics, the console, an operator.

They are of all merchants together. They are read from the store, so that they are right whatever
process is asked and whichever of the others are dead; what only a walk over the whole store could
tell (sources of events, findings) is what the process that does that walk has left there.
"""

import asyncio
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final

import msgspec

from engine.backlog import Backlog, read_backlog
from engine.clock import clock_ms
from engine.inventory import Inventory
from engine.keys import AUDIT_KEY, PartitionKeys
from engine.outbox import Outbox
from engine.outcomes import OutcomeUnknown, StoreFault, StoreUnavailable
from engine.reservations import created_at
from engine.servers import ServerFigures, read_servers
from engine.store import pairs
from engine.sweeper import SweeperStatus, read_sweeper
from engine.upkeep import UpkeepStatus, read_upkeep
from engine.webhooks import EndpointBook, EndpointStatus

KEPT_SECONDS: Final = 1.0
"""How old figures may be: however many ask, the store is asked once a second."""

READ_PARTITIONS: Final = 64
"""Partitions asked about in one round trip."""


class HoldFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Holds whose time runs; `overdue` of them are due and were not taken back yet.

    `oldest_ms` is the age of the oldest among those that are the next to expire, one a partition,
    and `most_overdue_ms` for how long the longest is due.
    """

    live: int = 0
    overdue: int = 0
    oldest_ms: int = 0
    most_overdue_ms: int = 0


class OrderFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Orders and moves that are due to be looked at and were not yet, and the longest of them.

    A second or two is how it is meant to be.
    """

    overdue: int = 0
    most_overdue_ms: int = 0


class PromiseFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Units that were promised before they came, as the running audit last saw them.

    `late` are those whose day cannot be kept, and `past` those whose day is over, everywhere on
    earth, and who were told no later one. `supplies_past` counts supplies that are still said to
    come on such a day.
    """

    backordered: int = 0
    late: int = 0
    past: int = 0
    supplies_past: int = 0

    def __add__(self, other: "PromiseFigures") -> "PromiseFigures":
        """Add them up."""
        return PromiseFigures(
            backordered=self.backordered + other.backordered,
            late=self.late + other.late,
            past=self.past + other.past,
            supplies_past=self.supplies_past + other.supplies_past,
        )


class ConsumerFigures(msgspec.Struct, frozen=True):
    """A registered reader of the ledger: the operations that it has not read, the oldest's age."""

    name: str
    behind_operations: int
    behind_ms: int


class WebhookFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Webhook endpoints by status; `failing` of them had no delivery since they last failed.

    `waiting`, `dead` and `dropped` are events: queued, given up and kept, and never queued.
    """

    active: int = 0
    paused: int = 0
    disabled: int = 0
    failing: int = 0
    waiting: int = 0
    dead: int = 0
    dropped: int = 0


class AuditFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What the running audit last found: findings by severity.

    `oversold` of them are of units that were promised and not there, `promises` what it saw of
    units that had not come. `audited_at_ms` is of the
    partition that was audited the longest ago, 0 while there is one that never was.
    """

    audited_at_ms: int = 0
    by_severity: dict[str, int] = {}
    oversold: int = 0
    promises: PromiseFigures = PromiseFigures()


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, at one moment of the store's clock. The last two are None where nobody does it.

    `shortfalls` counts rows, `intake_events` what integrators wrote and nobody took yet.
    """

    at_ms: int
    holds: HoldFigures
    orders: OrderFigures
    shortfalls: int
    intake_events: int
    consumers: tuple[ConsumerFigures, ...]
    webhooks: WebhookFigures
    archive: Backlog
    audit: AuditFigures
    servers: ServerFigures
    sweeper: SweeperStatus | None
    upkeep: UpkeepStatus | None


class Gatherer:
    """Reads the figures of one store, and remembers them for a moment."""

    def __init__(self, inventory: Inventory) -> None:
        """Read nothing yet."""
        self._inventory = inventory
        self._store = inventory.store
        self._book = EndpointBook(inventory.store)
        self._figures: Figures | None = None
        self._read_at = 0.0
        self._reading: asyncio.Task[Figures] | None = None

    async def figures(self) -> Figures:
        """Return how the store is, as of at most KEPT_SECONDS ago. Raises StoreUnavailable."""
        if self._figures is not None and monotonic() - self._read_at < KEPT_SECONDS:
            return self._figures
        # Whoever asks meanwhile waits for the same answer, and one who goes away leaves it be.
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(self._done)
        try:
            return await asyncio.shield(self._reading)
        except OutcomeUnknown as error:
            # Nothing is written here, so it makes no difference whether it was done.
            raise StoreUnavailable() from error

    async def close(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})

    def _done(self, task: "asyncio.Task[Figures]") -> None:
        self._reading = None
        if not task.cancelled() and task.exception() is None:
            self._figures, self._read_at = task.result(), monotonic()

    async def _read(self) -> Figures:
        store, keys = self._store, self._inventory.keys
        now_ms = await clock_ms(store, keys[0])
        counts = _Counts(now_ms)
        for start in range(0, len(keys), READ_PARTITIONS):
            await self._read_partitions(keys[start : start + READ_PARTITIONS], counts)
        return Figures(
            at_ms=now_ms,
            holds=HoldFigures(
                live=counts.holds,
                overdue=counts.overdue,
                oldest_ms=counts.oldest_ms,
                most_overdue_ms=counts.most_overdue_ms,
            ),
            orders=OrderFigures(
                overdue=counts.orders_overdue, most_overdue_ms=counts.orders_most_overdue_ms
            ),
            shortfalls=counts.shortfalls,
            intake_events=counts.intake_events,
            consumers=counts.consumers(),
            webhooks=await self._webhooks(),
            archive=await read_backlog(store, keys),
            audit=await self._audit(),
            servers=await read_servers(store),
            sweeper=await read_sweeper(store),
            upkeep=await read_upkeep(store),
        )

    async def _read_partitions(self, keys: Sequence[PartitionKeys], counts: "_Counts") -> None:
        commands: list[tuple[str | int, ...]] = []
        for one in keys:
            commands += [
                ("ZCARD", one.holds),
                ("ZCOUNT", one.holds, "-inf", counts.now_ms),
                ("ZRANGE", one.holds, 0, 0, "WITHSCORES"),
                ("HLEN", one.shortfalls),
                ("XLEN", one.intake),
                ("ZCOUNT", one.driving, "-inf", counts.now_ms),
                ("ZRANGE", one.driving, 0, 0, "WITHSCORES"),
                ("HGETALL", one.readers),
                ("HGET", one.meta, "sequence"),
            ]
        width = len(commands) // len(keys)
        replies = await self._store.read(commands)
        first_holds: list[tuple[str, str]] = []
        behind: list[tuple[str, int, tuple[str | int, ...]]] = []
        for place, one in enumerate(keys):
            found = replies[width * place : width * (place + 1)]
            counts.add(*found[:5])
            counts.add_orders(*found[5:7])
            first_holds += [(one.reservation(name.decode()), "body") for name, _ in pairs(found[2])]
            for name, text in pairs(found[7]):
                words = text.decode("utf-8", "replace").split()
                read = int(words[1]) if len(words) > 1 else 0
                unread = max(0, int(found[8] or 0) - read)
                reader = name.decode("utf-8", "replace")
                after = f"({words[0]}" if words else "-"
                behind.append((reader, unread, ("XRANGE", one.ledger, after, "+", "COUNT", 1)))
        await self._read_ages(first_holds, behind, counts)

    async def _read_ages(
        self,
        holds: Sequence[tuple[str, str]],
        behind: Sequence[tuple[str, int, tuple[str | int, ...]]],
        counts: "_Counts",
    ) -> None:
        """Read what the first answers led to: bodies of holds, and entries that were not read."""
        late = [(name, command) for name, unread, command in behind if unread]
        commands: list[tuple[str | int, ...]] = [("HGET", *one) for one in holds]
        commands += [command for _, command in late]
        replies = await self._store.read(commands) if commands else []
        for body in replies[: len(holds)]:
            counts.add_hold(body)
        for name, unread, _ in behind:
            counts.add_reader(name, unread, None)
        for (name, _), entries in zip(late, replies[len(holds) :], strict=True):
            if entries:
                counts.add_reader(name, 0, int(dict(pairs(entries[0][1]))[b"at"]))

    async def _webhooks(self) -> WebhookFigures:
        await self._book.refresh()
        endpoints = self._book.all()
        states = await asyncio.gather(*(Outbox(self._store, one.keys).state() for one in endpoints))
        by_status = [one.status for one in endpoints]
        return WebhookFigures(
            active=by_status.count(EndpointStatus.ACTIVE),
            paused=by_status.count(EndpointStatus.PAUSED),
            disabled=by_status.count(EndpointStatus.DISABLED),
            failing=sum(state.failures > 0 for state in states),
            waiting=sum(state.waiting for state in states),
            dead=sum(state.dead for state in states),
            dropped=sum(state.dropped for state in states),
        )

    async def _audit(self) -> AuditFigures:
        (reply,) = await self._store.read([("HGETALL", AUDIT_KEY)])
        try:
            found = [msgspec.json.decode(text, type=_Audited) for _, text in pairs(reply)]
        except msgspec.DecodeError as error:
            raise StoreFault("HGETALL", f"what the audit found cannot be read: {error}") from error
        by_severity: dict[str, int] = {}
        for one in found:
            for severity, count in one.by_severity.items():
                by_severity[severity] = by_severity.get(severity, 0) + count
        audited = [one.at_ms for one in found if one.partition >= 0]
        return AuditFigures(
            audited_at_ms=min(audited) if len(audited) == self._inventory.partitions else 0,
            by_severity=by_severity,
            oversold=sum(one.oversold for one in found),
            promises=sum((one.promises for one in found), PromiseFigures()),
        )


class _Audited(msgspec.Struct):
    """Of what the audit leaves of a partition, that which is counted here."""

    partition: int
    at_ms: int
    by_severity: dict[str, int] = {}
    oversold: int = 0
    promises: PromiseFigures = PromiseFigures()


class _Counts:
    """Adds up what the partitions answer."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.holds = self.overdue = self.oldest_ms = self.most_overdue_ms = 0
        self.orders_overdue = self.orders_most_overdue_ms = 0
        self.shortfalls = self.intake_events = 0
        self._behind: dict[str, list[int]] = {}

    def add(self, holds: int, overdue: int, first: Any, shortfalls: int, intake: int) -> None:
        self.holds += holds
        self.overdue += overdue
        for _, score in pairs(first):
            self.most_overdue_ms = max(self.most_overdue_ms, self.now_ms - int(float(score)))
        self.shortfalls += shortfalls
        self.intake_events += intake

    def add_orders(self, overdue: int, first: Any) -> None:
        self.orders_overdue += overdue
        for _, score in pairs(first):
            late_ms = self.now_ms - int(float(score))
            self.orders_most_overdue_ms = max(self.orders_most_overdue_ms, late_ms)

    def add_hold(self, body: bytes | None) -> None:
        # One that ended meanwhile has no body any more, and one that was damaged is the audit's.
        created_at_ms = None if body is None else created_at(body)
        if created_at_ms is not None:
            self.oldest_ms = max(self.oldest_ms, self.now_ms - created_at_ms)

    def add_reader(self, name: str, operations: int, oldest_at_ms: int | None) -> None:
        behind = self._behind.setdefault(name, [0, 0])
        behind[0] += operations
        if oldest_at_ms is not None:
            behind[1] = max(behind[1], self.now_ms - oldest_at_ms)

    def consumers(self) -> tuple[ConsumerFigures, ...]:
        return tuple(
            ConsumerFigures(name, *behind) for name, behind in sorted(self._behind.items())
        )
