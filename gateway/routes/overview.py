"""The operations of how the service is, of its audit and its jobs."""

from typing import Final

from engine.access import Role
from engine.outcomes import LimitExceeded
from gateway import audit, jobs, overview
from gateway.operations import IDEMPOTENCY_KEY, REPLAYED, Operation, Success
from gateway.routes.paths import MERCHANT

_JOBS: Final = "/v1/audit/jobs"

OPERATIONS: Final = (
    Operation(
        name="readOverview",
        method="GET",
        path="/v1/overview",
        tag="Overview",
        summary="Tell how the service is, to a key of the whole platform",
        handler=overview.read,
        role=Role.READ,
        successes=(Success(200, overview.Overview, "How it is"),),
    ),
    Operation(
        name="readMerchantOverview",
        method="GET",
        path=MERCHANT + "/overview",
        tag="Overview",
        summary="Tell how a merchant's locations are",
        handler=overview.read_merchant,
        role=Role.READ,
        successes=(Success(200, overview.MerchantOverview, "How they are"),),
    ),
    Operation(
        name="readAudit",
        method="GET",
        path="/v1/audit",
        tag="Overview",
        summary="Tell what the running audit last found, to a key of the whole platform",
        handler=audit.read,
        role=Role.READ,
        successes=(Success(200, audit.AuditReport, "What it found"),),
    ),
    Operation(
        name="submitAuditJob",
        method="POST",
        path=_JOBS,
        tag="Overview",
        summary="Have the background process plan or apply a repair, or look at an import",
        handler=jobs.submit,
        role=Role.ADMIN,
        request=jobs.JobRequest,
        changes=True,
        header_fields=(IDEMPOTENCY_KEY,),
        successes=(Success(202, jobs.JobAnswer, "It is queued", (REPLAYED,)),),
        problems=(LimitExceeded,),
    ),
    Operation(
        name="listAuditJobs",
        method="GET",
        path=_JOBS,
        tag="Overview",
        summary="List the jobs of the last day, the newest first",
        handler=jobs.list_all,
        role=Role.ADMIN,
        successes=(Success(200, jobs.JobList, "The jobs"),),
    ),
    Operation(
        name="readAuditJob",
        method="GET",
        path=_JOBS + "/{job}",
        tag="Overview",
        summary="Read a job and what came of it",
        handler=jobs.read,
        role=Role.ADMIN,
        successes=(Success(200, jobs.JobAnswer, "The job"),),
    ),
)
