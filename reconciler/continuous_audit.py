"""The audit that never ends: partition after partition, at a bounded rate, under a lease.

Where it may, it keeps a partition's folded state between two rounds, so that a round reads only
what the ledger has grown by. What it last found stays in the store, for whoever shows it.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import structlog

from engine.figures import PromiseFigures
from engine.inventory import Inventory
from engine.keys import AUDIT_KEY
from engine.leases import Lease, under
from engine.outcomes import HoldfastError
from engine.store import Store, pairs
from reconciler.account import Snapshots
from reconciler.archive import Archive, read_store_id
from reconciler.audit import Audit, AuditSettings
from reconciler.findings import Finding, Invariant, PartitionAudit, Severity, rank
from reconciler.objects import ArchiveUnavailable

MAX_STORED_FINDINGS: Final = 100
"""Findings of one partition that are kept in the store, the worst first; all are counted."""

VERIFY_INTERVAL_MS: Final = 6 * 3_600_000
"""Between two times that every segment of the archive is read."""

STORE_FIELD: Final = "store"
"""The field for what is found in no partition: anomalies, and keys that nothing names."""

OpenArchive = Callable[[], Awaitable[tuple[Archive, Snapshots] | None]]

log = structlog.get_logger()


class FindingsOfPartition(msgspec.Struct, frozen=True, kw_only=True):
    """What was last found in one partition; -1 stands for the store as a whole.

    `oversold` counts the findings that units were promised which were not there, `promises` units
    that had not come.
    """

    partition: int
    at_ms: int
    sequence: int = 0
    rows: int = 0
    reservations: int = 0
    records: int = 0
    by_severity: dict[Severity, int] = {}
    oversold: int = 0
    promises: PromiseFigures = PromiseFigures()
    findings: tuple[Finding, ...] = ()


class ContinuousAudit:
    """Audits a store round after round; any number of processes may."""

    def __init__(
        self,
        inventory: Inventory,
        open_archive: OpenArchive,
        *,
        owner: str,
        keys_per_second: int,
    ) -> None:
        """`owner` is unique to the process; `open_archive` gives None where there is no archive."""
        self.audited_at_ms = 0
        self.findings = 0
        self._inventory = inventory
        self._store = inventory.store
        self._open_archive = open_archive
        self._settings = AuditSettings(keys_per_second=keys_per_second)
        self._leases = [
            Lease(inventory.store, keys, "audit", owner=owner) for keys in inventory.keys
        ]
        self._audit: Audit | None = None
        self._store_id = ""
        self._verified_at_ms = 0

    async def run(self, stop: asyncio.Event, *, interval_seconds: float) -> None:
        """Do rounds until `stop` is set. A store or archive that is down is waited out."""
        while not stop.is_set():
            try:
                await self.round()
            except (HoldfastError, ArchiveUnavailable) as error:
                log.error("the audit could not go on", error=str(error))
            try:
                async with asyncio.timeout(interval_seconds):
                    await stop.wait()
            except TimeoutError:
                continue
        await self.give_up()

    async def give_up(self) -> None:
        """Let another process go on at once."""
        for lease in self._leases:
            await lease.give_up()

    async def round(self) -> int:
        """Audit every partition whose lease can be had, then the keys; return how many findings.

        Raises ArchiveUnavailable, StoreReadOnly while the store is being rebuilt, and what the
        store's calls raise.
        """
        audit = await self._opened()
        verify = not audit.now_ms or audit.now_ms - self._verified_at_ms >= VERIFY_INTERVAL_MS
        found = done = 0
        for lease, keys in zip(self._leases, self._inventory.keys, strict=True):
            if not await lease.renew():
                continue
            audited = await under(lease, audit.partition(keys.partition, verify_archive=verify))
            if audited is not None:
                await self._tell(audited)
                found += len(audited.findings)
                done += 1
        if done == self._inventory.partitions:
            strays = await under(self._leases[0], audit.scan())
            if strays is not None:
                found += await self._tell_of_store(strays + audit.anomalies(), audit.now_ms)
            if verify:
                self._verified_at_ms = audit.now_ms
        self.audited_at_ms, self.findings = audit.now_ms, found
        return found

    async def _opened(self) -> Audit:
        """Return the audit of the store as it now is: a rebuilt one has another history."""
        store_id = await read_store_id(self._store)
        if self._audit is None or store_id != self._store_id:
            opened = await self._open_archive()
            archive, snapshots = (None, None) if opened is None else opened
            self._audit = Audit(
                self._inventory, archive, settings=self._settings, snapshots=snapshots
            )
            self._store_id = store_id
            self._verified_at_ms = 0
        return self._audit

    async def _tell(self, audited: PartitionAudit) -> None:
        """Leave what was found in the store, and log what is critical."""
        findings = sorted(audited.findings, key=rank)
        if findings:
            log.error(
                "the audit found differences",
                partition=audited.partition,
                count=len(findings),
                first=findings[0].detail,
                code=findings[0].code,
            )
        await self._write(
            str(audited.partition),
            FindingsOfPartition(
                partition=audited.partition,
                at_ms=audited.at_ms,
                sequence=audited.sequence,
                rows=audited.rows,
                reservations=audited.reservations,
                records=audited.records,
                by_severity=dict(Counter(finding.severity for finding in findings)),
                oversold=sum(finding.invariant is Invariant.NO_OVERSELL for finding in findings),
                promises=audited.promises,
                findings=tuple(findings[:MAX_STORED_FINDINGS]),
            ),
        )

    async def _tell_of_store(self, findings: list[Finding], now_ms: int) -> int:
        findings.sort(key=rank)
        for finding in findings[:MAX_STORED_FINDINGS]:
            log.warning("the audit found", code=finding.code, detail=finding.detail)
        await self._write(
            STORE_FIELD,
            FindingsOfPartition(
                partition=-1,
                at_ms=now_ms,
                by_severity=dict(Counter(finding.severity for finding in findings)),
                findings=tuple(findings[:MAX_STORED_FINDINGS]),
            ),
        )
        return len(findings)

    async def _write(self, field: str, found: FindingsOfPartition) -> None:
        text = msgspec.json.encode(found).decode()
        await self._store.read([("HSET", AUDIT_KEY, field, text)])


async def read_findings(store: Store) -> list[FindingsOfPartition]:
    """Return what the running audit last found, the store as a whole first, then by partition.

    Raises StoreUnavailable.
    """
    (reply,) = await store.read([("HGETALL", AUDIT_KEY)])
    found = [msgspec.json.decode(text, type=FindingsOfPartition) for _, text in pairs(reply)]
    return sorted(found, key=lambda one: one.partition)
