"""What the running audit last found. Repairs are planned and applied with `holdfast repair`."""

from typing import Annotated

import msgspec
from msgspec import Meta

from engine.keys import AUDIT_KEY
from engine.model import time_text
from engine.store import pairs
from gateway.calls import Answer, Call
from gateway.wire import Time


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One difference; docs/operating/audit-and-repair.md says what each code means.

    `remedy` says what repairs it, or what a person has to do. What a finding is not about is empty.
    """

    code: str
    invariant: str
    severity: str
    detail: str
    remedy: str
    repairable: bool = True
    merchant: str = ""
    location: str = ""
    sku: str = ""
    reservation: str = ""


class AuditedPartition(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at in a partition, and found; partition -1 is the store as a whole."""

    partition: int
    at: Time
    sequence: int
    rows: int
    reservations: int
    by_severity: dict[str, int]
    findings: Annotated[list[Finding], Meta(description="At most 100, the worst first.")]


class AuditReport(msgspec.Struct, frozen=True):
    """What the running audit last found; empty before its first round."""

    data: list[AuditedPartition]


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the reconciler's record that is told; it has the evidence for a repair, too."""

    partition: int
    at_ms: int
    sequence: int = 0
    rows: int = 0
    reservations: int = 0
    by_severity: dict[str, int] = {}
    findings: list[Finding] = []


_decode = msgspec.json.Decoder(_Stored).decode


async def read(call: Call, _body: None) -> Answer:
    """Tell what was last found, the store as a whole first."""
    (reply,) = await call.inventory.store.read([("HGETALL", AUDIT_KEY)])
    found = sorted((_decode(text) for _, text in pairs(reply)), key=lambda one: one.partition)
    return Answer(
        200,
        AuditReport(
            [
                AuditedPartition(
                    partition=one.partition,
                    at=time_text(one.at_ms),
                    sequence=one.sequence,
                    rows=one.rows,
                    reservations=one.reservations,
                    by_severity=one.by_severity,
                    findings=one.findings,
                )
                for one in found
            ]
        ),
    )
