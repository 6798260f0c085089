"""The reconciler's loop: archives, makes snapshots, audits and watches, beside the sweeper.

Each job runs by itself at its own pace. One that cannot do its work says why, and the others go on:
an archive that is down stops neither the audit nor the alarm that the store's memory is filling.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any, Final

import structlog
from redis.exceptions import RedisError

from engine.backlog import Backlog, read_backlog
from engine.clock import clock_ms
from engine.feed_watch import FeedWatch
from engine.feeds import Feeds
from engine.inventory import Inventory
from engine.leases import leases_of, new_owner
from engine.outcomes import HoldfastError
from engine.servers import read_servers
from engine.upkeep import Alarm, UpkeepStatus, write_upkeep
from reconciler.account import Snapshots as FindSnapshot
from reconciler.archive import Archive, note_archive_url, open_archive, read_store_id
from reconciler.archiver import Archiver, ArchiverSettings, Progress
from reconciler.continuous_audit import ContinuousAudit
from reconciler.jobs import JobWorker
from reconciler.objects import ArchiveUnavailable
from reconciler.reader import LedgerDamaged
from reconciler.sealed import FileDamaged
from reconciler.settings import ReconcilerSettings
from reconciler.snapshots import SnapshotPolicy, Snapshots

ARCHIVE_INTERVAL_SECONDS: Final = 5.0
SNAPSHOT_CHECK_SECONDS: Final = 60.0
AUDIT_INTERVAL_SECONDS: Final = 60.0
"""Between two rounds of the audit; a round itself takes as long as its rate makes it."""

WATCH_INTERVAL_SECONDS: Final = 5.0
REQUESTS_INTERVAL_SECONDS: Final = 1.0
"""Between two looks for what was asked for over HTTP: somebody waits for it."""

MAX_SNAPSHOT_SEGMENTS: Final = 200
"""Segments after which a snapshot is due before its time: a million entries, some 5 s to fold."""

SNAPSHOT_LEASE_MS: Final = 120_000
"""How long a partition's snapshot may take before another process may try."""

MAX_MEMORY_SHARE: Final = 0.75
"""Of the store's memory. Past it somebody must act, and still has the time to."""

MAX_BEHIND_MS: Final = 600_000
"""Age of the oldest operation that is not archived: then something holds the archiver up."""

MAX_BEHIND_OPERATIONS: Final = 1_000_000
"""Some 300 MB of ledger that only the store has."""

ALARM_REPEAT_SECONDS: Final = 300.0
RESTART_SECONDS: Final = 60.0
"""Before a job that struck a bug is tried again."""

STOP_SECONDS: Final = 2.0
"""For giving up the leases; the process as a whole has 5 s to end."""

Job = Callable[[], Coroutine[Any, Any, object]]

log = structlog.get_logger()


class Reconciler:
    """Keeps one store's ledger archived, folded and audited; see the module's text."""

    def __init__(
        self,
        inventory: Inventory,
        settings: ReconcilerSettings,
        *,
        policy: SnapshotPolicy | None = None,
    ) -> None:
        """Any number may run on a store: each partition's work has one owner at a time."""
        self._inventory = inventory
        self._store = inventory.store
        self._settings = settings
        self._policy = policy or SnapshotPolicy()
        self._owner = new_owner()
        self._archive: Archive | None = None
        self._archiver: Archiver | None = None
        self._snapshot_leases = leases_of(
            self._store, inventory.keys, "snapshot", owner=self._owner
        )
        self._audit = ContinuousAudit(
            inventory,
            self._open_for_audit,
            owner=self._owner,
            keys_per_second=max(1, settings.audit_rows_per_second),
        )
        self._requests = JobWorker(inventory, self._open_for_audit, owner=self._owner)
        self._feed_watch = FeedWatch(inventory, Feeds(inventory))
        self._failing: dict[str, str] = {}
        self._told_at: dict[str, float] = {}
        self._archived_at_ms = 0
        self._snapshot_at_ms = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; nothing but that ends it."""
        if not self._settings.archive_url:
            log.warning("no archive is named, so the ledger stays in the store and only grows")
        tasks = [
            asyncio.create_task(self._keep_running(name, job, interval_seconds))
            for name, job, interval_seconds in self._jobs()
        ]
        await stop.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=STOP_SECONDS)
        with suppress(HoldfastError, TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await self.give_up()

    def _jobs(self) -> Sequence[tuple[str, Job, float]]:
        jobs: list[tuple[str, Job, float]] = [
            ("watch", self.watch, WATCH_INTERVAL_SECONDS),
            ("requests", self._requests.round, REQUESTS_INTERVAL_SECONDS),
        ]
        if self._settings.archive_url:
            jobs += [
                ("archive", self.archive, ARCHIVE_INTERVAL_SECONDS),
                ("snapshots", self.snapshots, SNAPSHOT_CHECK_SECONDS),
            ]
        if self._settings.audit_rows_per_second:
            jobs.append(("audit", self._audit.round, AUDIT_INTERVAL_SECONDS))
        return jobs

    async def _keep_running(self, name: str, job: Job, interval_seconds: float) -> None:
        """Do a job again and again, whatever becomes of it."""
        while True:
            done = asyncio.create_task(job())
            try:
                await asyncio.wait([done])
            except asyncio.CancelledError:
                done.cancel()
                await asyncio.wait([done])
                raise
            fault = done.exception()
            pause_seconds = interval_seconds
            if fault is None:
                if self._failing.pop(name, None) is not None:
                    log.info("a job works again", job=name)
            elif isinstance(fault, _EXPECTED):
                self._note_failure(name, f"{type(fault).__name__}: {fault}")
            else:
                # This task is the edge of the job: what is wrong with one is no other's concern.
                self._note_failure(name, f"a bug: {type(fault).__name__}: {fault}", bug=fault)
                pause_seconds = max(interval_seconds, RESTART_SECONDS)
            await asyncio.sleep(pause_seconds)

    def _note_failure(self, name: str, reason: str, bug: BaseException | None = None) -> None:
        if self._failing.get(name) != reason:
            log.error("a job of the reconciler failed", job=name, reason=reason, exc_info=bug)
        self._failing[name] = reason

    # The archive

    async def open(self) -> Archive:
        """Open the archive of the store as it now is: a rebuilt one begins an archive of its own.

        Raises ArchiveUnavailable and StoreUnavailable.
        """
        if self._archive is None or self._archive.store_id != await read_store_id(self._store):
            self._archive = await open_archive(self._store, self._settings.archive_url)
            await note_archive_url(self._store, self._settings.archive_url)
            self._archiver = None
        return self._archive

    async def archive(self, *, flush: bool = False) -> list[Progress]:
        """Do one round over all partitions; a damaged one does not keep the others.

        Raises FileDamaged of the first that was, ArchiveUnavailable, and what the store's calls
        raise.
        """
        archiver = await self._open_archiver()
        rounds: list[Progress] = []
        damage: FileDamaged | None = None
        for partition in range(self._inventory.partitions):
            try:
                rounds.append(await archiver.archive_partition(partition, flush=flush))
            except FileDamaged as error:
                damage = damage or error
        entries = sum(progress.entries for progress in rounds)
        if entries:
            segments = sum(progress.segments for progress in rounds)
            trimmed = sum(progress.trimmed for progress in rounds)
            log.info("archived", entries=entries, segments=segments, trimmed=trimmed)
        if damage is not None:
            raise damage
        self._archived_at_ms = await self._clock_ms()
        return rounds

    async def _open_archiver(self) -> Archiver:
        archive = await self.open()
        if self._archiver is None:
            settings = ArchiverSettings(
                min_age_ms=self._settings.segment_age_seconds * 1_000,
                resume_window_ms=self._settings.resume_window_seconds * 1_000,
            )
            self._archiver = Archiver(
                self._inventory, archive, owner=self._owner, settings=settings
            )
        return self._archiver

    async def _open_for_audit(self) -> tuple[Archive, FindSnapshot] | None:
        if not self._settings.archive_url:
            return None
        archive = await self.open()
        return archive, Snapshots(archive).state

    # Snapshots

    async def snapshots(self, *, flush: bool = False) -> int:
        """Make the snapshots that are due, and remove those that the policy does not keep.

        With `flush` all are due that would hold something new. Returns how many were made. Raises
        LedgerDamaged, FileDamaged and ArchiveUnavailable, the first two after the other partitions
        had their turn.
        """
        archive = await self.open()
        made = 0
        damage: LedgerDamaged | FileDamaged | None = None
        for partition in range(self._inventory.partitions):
            try:
                made += await self._snapshot(archive, partition, flush=flush)
            except (LedgerDamaged, FileDamaged) as error:
                damage = damage or error
        if damage is not None:
            raise damage
        return made

    async def _snapshot(self, archive: Archive, partition: int, *, flush: bool) -> int:
        snapshots = Snapshots(archive)
        if not await self._is_due(archive, snapshots, partition, flush=flush):
            return 0
        lease = self._snapshot_leases[partition]
        if not await lease.renew(SNAPSHOT_LEASE_MS):
            return 0
        try:
            made = await snapshots.make(partition)
            if made is None:
                return 0
            pruned = await snapshots.prune(partition, self._policy)
            log.info(
                "made a snapshot",
                partition=partition,
                sequence=made.header.sequence,
                rows=made.header.rows,
                entries=made.entries,
                removed=len(pruned.removed),
            )
            self._snapshot_at_ms = await self._clock_ms()
            return 1
        finally:
            await lease.give_up()

    async def _is_due(
        self, archive: Archive, snapshots: Snapshots, partition: int, *, flush: bool
    ) -> bool:
        listed = await snapshots.names(partition)
        sequence = listed[-1].sequence if listed else 0
        paths = await archive.segment_paths(partition, from_sequence=sequence + 1)
        # A snapshot holds whole segments, so what came since starts past it.
        if not paths or int(PurePosixPath(paths[-1]).stem) <= sequence:
            return False
        if flush or not listed or len(paths) > MAX_SNAPSHOT_SEGMENTS:
            return True
        (newest,) = (await snapshots.listing(partition))[-1:]
        at_ms = 0 if newest.header is None else newest.header.at_ms
        now_ms = await clock_ms(self._store, self._inventory.keys[partition])
        return now_ms - at_ms >= self._settings.snapshot_interval_seconds * 1_000

    # Watching

    async def watch(self) -> UpkeepStatus:
        """Look how things stand, alarm where they stand badly, and tell it in the store."""
        backlog = await read_backlog(self._store, self._inventory.keys)
        used_bytes, limit_bytes = (await read_servers(self._store)).memory
        alarms = self._alarms(backlog, used_bytes, limit_bytes)
        now_ms = await self._clock_ms()
        alarms += await self._feed_watch.round(now_ms)
        self._sound(alarms)
        archive = "off"
        if self._settings.archive_url:
            archive = "failing" if "archive" in self._failing else "ok"
        status = UpkeepStatus(
            at_ms=now_ms,
            archive=archive,
            behind_ms=backlog.behind_ms,
            behind_operations=backlog.behind_operations,
            archived_at_ms=self._archived_at_ms,
            snapshot_at_ms=self._snapshot_at_ms,
            audited_at_ms=self._audit.audited_at_ms,
            findings=self._audit.findings,
            memory_used_bytes=used_bytes,
            memory_limit_bytes=limit_bytes,
            failing=dict(self._failing),
            alarms=tuple(alarms),
            feeds=self._feed_watch.figures(now_ms),
        )
        await write_upkeep(self._store, status)
        return status

    def _alarms(self, backlog: Backlog, used_bytes: int, limit_bytes: int) -> list[Alarm]:
        alarms = []
        if not self._settings.archive_url:
            text = "no archive is named, so the ledger stays in the store and only grows"
            alarms.append(Alarm("archive_off", text))
        elif "archive" in self._failing:
            text = f"not everything can be archived: {self._failing['archive']}"
            alarms.append(Alarm("archive_failing", text))
        late_ms = max(MAX_BEHIND_MS, 5_000 * self._settings.segment_age_seconds)
        if backlog.behind_ms > late_ms or backlog.behind_operations > MAX_BEHIND_OPERATIONS:
            text = (
                f"{backlog.behind_operations} operations are not archived, the oldest for "
                f"{backlog.behind_ms // 1000} s; the store keeps them until they are"
            )
            alarms.append(Alarm("archive_behind", text))
        if limit_bytes and used_bytes > MAX_MEMORY_SHARE * limit_bytes:
            text = (
                f"the store uses {used_bytes / limit_bytes:.0%} of its memory "
                f"({used_bytes} of {limit_bytes} bytes); when it is full no reservation is taken"
            )
            alarms.append(Alarm("memory_high", text))
        if self._audit.findings:
            text = (
                f"the audit has {self._audit.findings} findings; `holdfast audit` names them all, "
                "and `holdfast repair --plan` what would put them right"
            )
            alarms.append(Alarm("audit_findings", text))
        alarms += [
            Alarm(f"{name}_failing", f"the job {name!r} fails: {reason}")
            for name, reason in self._failing.items()
            if name not in ("archive", "watch")
        ]
        return alarms

    def _sound(self, alarms: Sequence[Alarm]) -> None:
        """Log alarms that are new, or that were last logged some time ago."""
        now = time.monotonic()
        raised = {alarm.code for alarm in alarms}
        for code in [code for code in self._told_at if code not in raised]:
            del self._told_at[code]
            log.info("an alarm is over", code=code)
        for alarm in alarms:
            if now - self._told_at.get(alarm.code, -ALARM_REPEAT_SECONDS) >= ALARM_REPEAT_SECONDS:
                self._told_at[alarm.code] = now
                log.error("ALARM", code=alarm.code, text=alarm.text)

    async def _clock_ms(self) -> int:
        return await clock_ms(self._store, self._inventory.keys[0])

    async def give_up(self) -> None:
        """Let another process go on at once."""
        if self._archiver is not None:
            await self._archiver.give_up()
        await self._audit.give_up()
        await self._requests.give_up()


_EXPECTED: Final = (
    ArchiveUnavailable,
    FileDamaged,
    LedgerDamaged,
    HoldfastError,
    RedisError,
    OSError,
)
"""What jobs meet in operation: outages and damage. Anything else is a bug."""
