"""The worker of `engine.jobs`: does with the reconciler's functions what was asked for over HTTP.

Under a lease, so one process at a time. A job whose worker was killed is taken up again: a plan or
a blast radius changes nothing, and the steps of a repair stand alone, each once, so those that were
done before answer `already`.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import structlog

from engine.inventory import Inventory
from engine.jobs import (
    BlastResult,
    EndangeredReservation,
    Job,
    JobKind,
    JobResult,
    Jobs,
    JobStep,
    RepairResult,
)
from engine.leases import Lease, under
from engine.model import time_text
from engine.outcomes import HoldfastError, InvalidCommand, OutcomeUnknown, StoreUnavailable
from reconciler.account import Snapshots
from reconciler.archive import Archive
from reconciler.audit import Audit, AuditSettings
from reconciler.continuous_audit import OpenArchive
from reconciler.counterfactual import Target, TooMuchToUndo
from reconciler.objects import ArchiveUnavailable
from reconciler.reader import LedgerDamaged
from reconciler.repair import Applied, Verdict, apply, plan
from reconciler.sealed import FileDamaged
from reconciler.steps import RepairStep
from reconciler.undo import BlastRadius, undo_plan

KEYS_PER_SECOND: Final = 10_000
"""That an audit for a plan asks of the store at most: holds are swept in the same process."""

MAX_STEPS: Final = 1_000
"""Of a plan that a job keeps, at some 1 kB each; `holdfast repair` has no such bound."""

MAX_SHOWN: Final = 100

_FAILURES: Final = (
    HoldfastError,
    ArchiveUnavailable,
    LedgerDamaged,
    FileDamaged,
    TooMuchToUndo,
)
_OUTAGES: Final = (StoreUnavailable, OutcomeUnknown)
"""After these a job is tried again."""

_decode_steps = msgspec.msgpack.Decoder(list[RepairStep]).decode

log = structlog.get_logger()


class JobWorker:
    """Does the jobs of a store, the oldest first."""

    def __init__(self, inventory: Inventory, open_archive: OpenArchive, *, owner: str) -> None:
        """`owner` is unique to the process; `open_archive` gives None where there is no archive."""
        self._inventory = inventory
        self._open_archive = open_archive
        self._jobs = Jobs(inventory)
        self._lease = Lease(inventory.store, inventory.keys[0], "jobs", owner=owner)

    async def round(self) -> int:
        """Do what waits; return how many jobs that was. Raises what the store's calls raise."""
        done = 0
        if not await self._jobs.waits() or not await self._lease.renew():
            return done
        while (job := await self._jobs.take()) is not None:
            log.info("a job begins", id=job.id, kind=job.kind, actor=job.actor, taken=job.taken)
            if await under(self._lease, self._do(job)) is None:
                # Another process has the lease by now, and the job with it.
                return done
            done += 1
        return done

    async def give_up(self) -> None:
        """Let another process go on at once."""
        await self._lease.give_up()

    async def _do(self, job: Job) -> bool:
        steps = None
        try:
            if job.kind is JobKind.REPAIR_PLAN:
                result, steps = await self._plan()
            elif job.kind is JobKind.REPAIR_APPLY:
                result = await self._apply(job)
            else:
                result = await self._blast_radius(job)
        except _OUTAGES:
            raise
        except _FAILURES as error:
            log.warning("a job failed", id=job.id, kind=job.kind, reason=str(error))
            await self._jobs.finish(job, problem=str(error))
            return True
        await self._jobs.finish(job, result, steps=steps)
        log.info("a job is done", id=job.id, kind=job.kind)
        return True

    async def _opened(self) -> tuple[Archive | None, Snapshots | None]:
        opened = await self._open_archive()
        return (None, None) if opened is None else opened

    async def _plan(self) -> tuple[JobResult, bytes | None]:
        archive, snapshots = await self._opened()
        settings = AuditSettings(keys_per_second=KEYS_PER_SECOND, whole=False)
        audit = Audit(self._inventory, archive, settings=settings, snapshots=snapshots)
        report = await audit.run()
        steps = plan(report.findings)
        appliable = 0 < len(steps) <= MAX_STEPS
        result = RepairResult(
            findings=len(report.findings) + report.dropped,
            steps=len(steps),
            shown=[_shown(step) for step in steps[:MAX_SHOWN]],
            by_verdict={},
            appliable=appliable,
        )
        kept = msgspec.msgpack.encode(steps) if appliable else None
        return JobResult(repair=result), kept

    async def _apply(self, job: Job) -> JobResult:
        data = await self._jobs.steps(job.plan)
        if data is None:
            raise InvalidCommand("plan", "its steps are not kept; plan again")
        steps = _decode_steps(data)
        archive, _ = await self._opened()
        report = await apply(
            self._inventory, steps, actor=job.actor, reason=job.reason, archive=archive
        )
        result = RepairResult(
            findings=0,
            steps=len(steps),
            shown=[_shown(one.step, one) for one in _worst_first(report.applied)[:MAX_SHOWN]],
            by_verdict=dict(Counter(one.verdict.value for one in report.applied)),
            appliable=False,
        )
        return JobResult(repair=result)

    async def _blast_radius(self, job: Job) -> JobResult:
        archive, snapshots = await self._opened()
        target = Target(job.without, job.merchant)
        planned = await undo_plan(self._inventory, archive, target, snapshots=snapshots)
        return JobResult(blast=_blast(planned.blast))


def _shown(step: RepairStep, applied: Applied | None = None) -> JobStep:
    fields: dict[str, Any] = msgspec.to_builtins(step)
    return JobStep(
        type=fields["type"],
        partition=step.partition,
        finding=fields["finding"],
        why=fields["why"],
        merchant=fields.get("merchant", ""),
        location=fields.get("location", ""),
        sku=fields.get("sku", ""),
        reservation=fields.get("reservation", ""),
        verdict="" if applied is None else applied.verdict,
        detail="" if applied is None else applied.detail,
    )


def _worst_first(applied: Sequence[Applied]) -> list[Applied]:
    worst = (Verdict.REFUSED, Verdict.STALE)
    return sorted(applied, key=lambda one: one.verdict not in worst)


def _blast(found: BlastRadius) -> BlastResult:
    return BlastResult(
        name=found.name,
        operations=found.operations,
        first_at=time_text(found.first_at_ms) if found.first_at_ms else None,
        last_at=time_text(found.last_at_ms) if found.last_at_ms else None,
        actors=list(found.actors[:MAX_SHOWN]),
        rows_touched=found.rows_touched,
        rows_differing=found.rows_differing,
        units_added=found.units_added,
        units_taken=found.units_taken,
        units_to_come=found.units_to_come,
        unfounded=found.unfounded_count,
        endangered=found.endangered_count,
        already_undone=found.already_undone,
        shown=[
            EndangeredReservation(
                reservation=one.reservation,
                merchant=one.merchant,
                location=one.location,
                sku=one.sku,
                order_ref=one.order_ref,
                state=one.state,
                missing=one.missing,
            )
            for one in found.endangered[:MAX_SHOWN]
        ],
    )
