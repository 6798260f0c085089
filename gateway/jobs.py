"""Jobs of the audit over HTTP, for admin keys of the platform; `reconciler.jobs` does them."""

from typing import Annotated

import msgspec
from msgspec import Meta

from engine.jobs import BlastResult, Job, JobKind, Jobs, JobState, RepairResult
from engine.model import time_text
from gateway.calls import Answer, Call, answer_once
from gateway.idempotency import key_of
from gateway.problems import NotFound
from gateway.wire import Request, Text, Time


class JobRequest(Request, frozen=True, kw_only=True):
    """What is to be done: `repair_apply` needs `plan` and `reason`, a blast radius `without`."""

    kind: JobKind
    plan: Annotated[Text, Meta(description="The id of the job whose plan is to be applied.")] = ""
    reason: Annotated[Text, Meta(description="Why; the ledger keeps it.")] = ""
    without: Annotated[
        Text, Meta(description="The import, by its id, or a reference or an actor.")
    ] = ""
    merchant: Annotated[Text, Meta(description="Whose import it is; empty for all.")] = ""


class JobAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A job and how far it is; `problem` says why it failed.

    `repair` is there of a plan or its application that is done, `blast` of a blast radius, where
    the job is read by its id.
    """

    id: str
    kind: JobKind
    state: JobState
    actor: str
    plan: str
    reason: str
    without: str
    merchant: str
    queued_at: Time
    started_at: Time | None
    ended_at: Time | None
    problem: str
    repair: RepairResult | None = None
    blast: BlastResult | None = None


class JobList(msgspec.Struct, frozen=True):
    """The jobs that are kept, the newest first, without their results."""

    data: list[JobAnswer]


async def submit(call: Call, body: JobRequest) -> Answer:
    """Ask for a job."""
    job, replayed = await Jobs(call.inventory).submit(
        key=key_of(call),
        kind=body.kind,
        actor=call.actor,
        plan=body.plan,
        reason=body.reason,
        without=body.without,
        merchant=body.merchant,
    )
    return answer_once(202, _answer(job), replayed=replayed)


async def list_all(call: Call, _body: None) -> Answer:
    """List the jobs."""
    return Answer(200, JobList([_answer(one) for one in await Jobs(call.inventory).list()]))


async def read(call: Call, _body: None) -> Answer:
    """Read a job, and what came of it."""
    jobs = Jobs(call.inventory)
    job = await jobs.read(call.path["job"])
    if job is None:
        raise NotFound
    answer = _answer(job)
    result = None if job.is_open else await jobs.result(job.id)
    if result is not None:
        answer = msgspec.structs.replace(answer, repair=result.repair, blast=result.blast)
    return Answer(200, answer)


def _answer(job: Job) -> JobAnswer:
    return JobAnswer(
        id=job.id,
        kind=job.kind,
        state=job.state,
        actor=job.actor,
        plan=job.plan,
        reason=job.reason,
        without=job.without,
        merchant=job.merchant,
        queued_at=time_text(job.queued_at_ms),
        started_at=time_text(job.started_at_ms) if job.started_at_ms else None,
        ended_at=time_text(job.ended_at_ms) if job.ended_at_ms else None,
        problem=job.problem,
    )
