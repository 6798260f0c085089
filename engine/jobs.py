"""Jobs: what is asked for over HTTP and takes too long for a request, done in the background.

A job is a record in the store that the background process takes up, with the reconciler's own
functions. Its id comes from the idempotency key, so a retry names the same job. Records are kept
for a day, and at most MAX_KEPT of them; one worker at a time, under a lease, moves them on.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec

from engine.clock import clock_ms
from engine.inventory import Inventory
from engine.keys import JOB_RESULTS_KEY, JOBS_KEY, digest
from engine.outcomes import IdempotencyKeyReused, InvalidCommand, LimitExceeded
from engine.store import pairs
from engine.validation import check_text

KEPT_MS: Final = 24 * 3_600_000
MAX_KEPT: Final = 100
MAX_OPEN: Final = 10
"""Jobs that wait or run. Two that are asked for at the same moment may pass a bound by one."""

MAX_TAKEN: Final = 3
"""How often a job is taken up: one that ends the process each time must not do so for ever."""


class JobKind(StrEnum):
    """What is asked for."""

    REPAIR_PLAN = "repair_plan"
    """Audit, and plan what would put right what was found."""
    REPAIR_APPLY = "repair_apply"
    """Do exactly the steps of a plan, each refused where its subject changed since."""
    IMPORT_BLAST_RADIUS = "import_blast_radius"
    """Tell what undoing an import would change."""


class JobState(StrEnum):
    """How far it is."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job; times in ms since 1970, 0 where it is not that far.

    `plan` names the job whose plan is applied, for `reason`; `without` and `merchant` the import.
    `taken` counts how often it was taken up; `problem` says why it failed.
    """

    id: str
    kind: JobKind
    actor: str
    queued_at_ms: int
    plan: str = ""
    reason: str = ""
    without: str = ""
    merchant: str = ""
    state: JobState = JobState.QUEUED
    taken: int = 0
    started_at_ms: int = 0
    ended_at_ms: int = 0
    problem: str = ""

    @property
    def is_open(self) -> bool:
        """True until it is done or has failed."""
        return self.state in (JobState.QUEUED, JobState.RUNNING)

    def asks_as(self, other: "Job") -> bool:
        """Tell whether both ask for the same."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("kind", "plan", "reason", "without", "merchant")
        )


class JobStep(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A step of a repair, and what became of it: `done`, `already`, `stale` or `refused`."""

    type: str
    partition: int
    finding: str
    why: str
    merchant: str = ""
    location: str = ""
    sku: str = ""
    reservation: str = ""
    verdict: str = ""
    detail: str = ""


class RepairResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan would do, or what became of it; the first steps are shown, all are counted."""

    findings: int
    steps: int
    shown: list[JobStep]
    by_verdict: dict[str, int]
    appliable: bool
    """False of a plan with more steps than a job may keep: `holdfast repair` does these."""


class EndangeredReservation(msgspec.Struct, frozen=True, kw_only=True):
    """An open reservation that undoing would leave without `missing` units of one of its rows."""

    reservation: str
    merchant: str
    location: str
    sku: str
    order_ref: str
    state: str
    missing: int


class BlastResult(msgspec.Struct, frozen=True, kw_only=True):
    """What undoing an import would change; units are given to and taken from the shelves.

    `units_to_come` are said to come with supplies beyond what they are now.
    """

    name: str
    operations: int
    first_at: str | None
    last_at: str | None
    actors: list[str]
    rows_touched: int
    rows_differing: int
    units_added: int
    units_taken: int
    units_to_come: int = 0
    unfounded: int
    """Reservations that were made although, without it, there would not have been enough."""
    endangered: int
    already_undone: int
    shown: list[EndangeredReservation]


class JobResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a job: one of the two."""

    repair: RepairResult | None = None
    blast: BlastResult | None = None


_decode_job = msgspec.json.Decoder(Job).decode
_decode_result = msgspec.json.Decoder(JobResult).decode


class Jobs:
    """The jobs of one store."""

    def __init__(self, inventory: Inventory) -> None:
        """Nothing is read yet."""
        self._store = inventory.store
        self._keys = inventory.keys[0]

    async def submit(
        self,
        *,
        key: str,
        kind: JobKind,
        actor: str,
        plan: str = "",
        reason: str = "",
        without: str = "",
        merchant: str = "",
    ) -> tuple[Job, bool]:
        """Ask for a job; return it, and whether it had been asked for before.

        Raises InvalidCommand, LimitExceeded, IdempotencyKeyReused, StoreUnavailable.
        """
        now_ms = await clock_ms(self._store, self._keys)
        job = Job(
            id=f"job_{digest(actor, key)}",
            kind=kind,
            actor=actor,
            queued_at_ms=now_ms,
            plan=plan,
            reason=reason,
            without=without,
            merchant=merchant,
        )
        known = {one.id: one for one in await self.list()}
        if job.id in known:
            return _same(job, known[job.id], key), True
        _check(job, known)
        if sum(one.is_open for one in known.values()) >= MAX_OPEN:
            raise LimitExceeded("jobs", most=MAX_OPEN)
        await self._forget(_outdated(list(known.values()), now_ms))
        (made, _) = await self._store.read(
            [("HSETNX", JOBS_KEY, job.id, _text(job)), ("PEXPIRE", JOBS_KEY, KEPT_MS)]
        )
        if not made:
            # Another request with the key was a moment faster, or this one's answer was lost.
            return _same(job, await self.read(job.id) or job, key), True
        return job, False

    async def list(self) -> list[Job]:
        """Return all jobs that are kept, the newest first. Raises StoreUnavailable."""
        (reply,) = await self._store.read([("HGETALL", JOBS_KEY)])
        found = [_decode_job(text) for _, text in pairs(reply)]
        return sorted(found, key=lambda one: (-one.queued_at_ms, one.id))

    async def read(self, the_id: str) -> Job | None:
        """Return one job, None where there is none. Raises StoreUnavailable."""
        (text,) = await self._store.read([("HGET", JOBS_KEY, the_id)])
        return None if text is None else _decode_job(text)

    async def result(self, the_id: str) -> JobResult | None:
        """Return what came of a job, None before its end. Raises StoreUnavailable."""
        (text,) = await self._store.read([("HGET", JOB_RESULTS_KEY, the_id)])
        return None if text is None else _decode_result(text)

    async def steps(self, plan: str) -> bytes | None:
        """Return the steps of a plan as `finish` got them. Raises StoreUnavailable."""
        (data,) = await self._store.read([("HGET", JOB_RESULTS_KEY, f"{plan}:steps")])
        return None if data is None else bytes(data)

    # For the worker, under its lease

    async def waits(self) -> bool:
        """Tell whether any job is kept at all: the cheap look. Raises StoreUnavailable."""
        (count,) = await self._store.read([("HLEN", JOBS_KEY)])
        return int(count) > 0

    async def take(self) -> Job | None:
        """Take up the oldest open job, also one that a worker before left in its middle.

        One that was taken up MAX_TAKEN times has failed. Raises StoreUnavailable.
        """
        for job in reversed(await self.list()):
            if not job.is_open:
                continue
            if job.taken >= MAX_TAKEN:
                problem = f"the background process ended {MAX_TAKEN} times in the middle of it"
                await self.finish(job, problem=problem)
                continue
            now_ms = await clock_ms(self._store, self._keys)
            taken = msgspec.structs.replace(
                job, state=JobState.RUNNING, taken=job.taken + 1, started_at_ms=now_ms
            )
            await self._write(taken)
            return taken
        return None

    async def finish(
        self,
        job: Job,
        result: JobResult | None = None,
        *,
        steps: bytes | None = None,
        problem: str = "",
    ) -> None:
        """Put on record what came of a job. Raises StoreUnavailable."""
        fields: list[str | bytes] = []
        if result is not None:
            fields += (job.id, msgspec.json.encode(result).decode())
        if steps is not None:
            fields += (f"{job.id}:steps", steps)
        if fields:
            await self._store.read(
                [("HSET", JOB_RESULTS_KEY, *fields), ("PEXPIRE", JOB_RESULTS_KEY, KEPT_MS)]
            )
        state = JobState.FAILED if result is None else JobState.DONE
        now_ms = await clock_ms(self._store, self._keys)
        await self._write(
            msgspec.structs.replace(job, state=state, ended_at_ms=now_ms, problem=problem)
        )

    async def _write(self, job: Job) -> None:
        await self._store.read(
            [("HSET", JOBS_KEY, job.id, _text(job)), ("PEXPIRE", JOBS_KEY, KEPT_MS)]
        )

    async def _forget(self, jobs: Sequence[Job]) -> None:
        if jobs:
            ids = [job.id for job in jobs]
            results = [name for one in ids for name in (one, f"{one}:steps")]
            await self._store.read([("HDEL", JOBS_KEY, *ids), ("HDEL", JOB_RESULTS_KEY, *results)])


def _text(job: Job) -> str:
    return msgspec.json.encode(job).decode()


def _same(job: Job, known: Job, key: str) -> Job:
    if not known.asks_as(job):
        raise IdempotencyKeyReused(key)
    return known


def _outdated(jobs: Sequence[Job], now_ms: int) -> list[Job]:
    """Return the ended jobs that are a day old, or too many."""
    ended = sorted((one for one in jobs if not one.is_open), key=lambda one: one.queued_at_ms)
    too_many = max(0, len(jobs) + 1 - MAX_KEPT)
    return ended[:too_many] + [
        one for one in ended[too_many:] if now_ms - one.ended_at_ms > KEPT_MS
    ]


def _check(job: Job, known: dict[str, Job]) -> None:
    """Raise InvalidCommand where a job says too little, or names what is not there."""
    needed = {
        JobKind.REPAIR_PLAN: (),
        JobKind.REPAIR_APPLY: ("plan", "reason"),
        JobKind.IMPORT_BLAST_RADIUS: ("without",),
    }[job.kind]
    for name in needed:
        if not getattr(job, name).strip():
            raise InvalidCommand(name, f"a job of kind {job.kind} needs it")
        check_text(name, getattr(job, name))
    allowed = {*needed, *(("merchant",) if job.kind is JobKind.IMPORT_BLAST_RADIUS else ())}
    for name in ("plan", "reason", "without", "merchant"):
        if name not in allowed and getattr(job, name):
            raise InvalidCommand(name, f"a job of kind {job.kind} takes none")
    if job.kind is JobKind.REPAIR_APPLY:
        planned = known.get(job.plan)
        if planned is None or planned.kind is not JobKind.REPAIR_PLAN:
            raise InvalidCommand("plan", "no such plan is kept; plan again")
        if planned.state is not JobState.DONE:
            raise InvalidCommand("plan", f"it is {planned.state}, and only a done one is applied")
