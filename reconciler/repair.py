"""Repair: a plan made of an audit's findings becomes compensating ledger entries.

Whatever is changed is an operation of kind `repair` in the ledger, with its reason and actor, and a
row's version goes on. A step is refused where what it was made from has changed since. See
`reconciler.repair_plan` for what is decided, and `reconciler.steps` for what each step does.
"""

import asyncio
from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec

from engine.dispatch import Dispatcher
from engine.inventory import Inventory
from engine.outcomes import InvalidCommand, Outcome, StoreFault, StoreReadOnly
from engine.validation import check_text
from reconciler.account import Snapshots
from reconciler.anomalies import ACCEPT
from reconciler.archive import Archive
from reconciler.audit import AuditSettings, audit
from reconciler.findings import AuditReport
from reconciler.reader import LedgerDamaged, LedgerReader
from reconciler.repair_plan import plan
from reconciler.segments import RawEntry, pack_segment, unpack_segment
from reconciler.steps import WAVES, KnownStep, RepairStep, ScriptStep, SegmentStep

__all__ = [
    "Applied",
    "Mended",
    "RepairReport",
    "RepairStep",
    "Verdict",
    "accept",
    "apply",
    "mend",
    "plan",
]

MAX_ROUNDS: Final = 5
"""Audits and repairs in turn: each round takes up what was refused or hidden in the one before."""

MAX_AT_ONCE: Final = 512
"""Steps on their way to the store at once."""


class Verdict(StrEnum):
    """What became of a step."""

    DONE = "done"
    ALREADY = "already"
    """It had been done before: nothing was changed."""
    STALE = "stale"
    """What it was made from has changed since: audit again."""
    REFUSED = "refused"
    """It cannot be done; `detail` says why."""


class Applied(msgspec.Struct, frozen=True):
    """A step and what became of it; `sequence` is that of its ledger operation, if it made one."""

    step: RepairStep
    verdict: Verdict
    sequence: int = 0
    detail: str = ""


class RepairReport(msgspec.Struct, frozen=True):
    """What became of a plan."""

    applied: tuple[Applied, ...]

    def count(self, verdict: Verdict) -> int:
        """Count the steps that came to this."""
        return sum(1 for one in self.applied if one.verdict is verdict)


class Mended(msgspec.Struct, frozen=True):
    """Rounds of repair, and the audit after the last one."""

    rounds: tuple[RepairReport, ...]
    audit: AuditReport


async def apply(
    inventory: Inventory,
    steps: Sequence[RepairStep],
    *,
    actor: str,
    reason: str,
    archive: Archive | None = None,
) -> RepairReport:
    """Do the steps of a plan; each stands alone, and is refused where things changed since.

    `reason` goes to the ledger with `actor` and must not be empty. `archive` is needed for segments
    only. Raises InvalidCommand, StoreReadOnly while the store is being rebuilt, ArchiveUnavailable,
    and what the store's calls raise.
    """
    if not reason:
        raise InvalidCommand("reason", "say why: a repair needs a reason")
    check_text("reason", reason)
    dispatcher = Dispatcher(inventory.store, inventory.keys)
    applied: list[Applied] = []
    unfinished: set[int] = set()
    for wave in WAVES:
        due = [step for step in steps if isinstance(step, wave)]
        if wave == (KnownStep,):
            held_back = [step for step in due if step.partition in unfinished]
            detail = "other steps of the partition have to be done first"
            applied += [Applied(step, Verdict.STALE, detail=detail) for step in held_back]
            due = [step for step in due if step.partition not in unfinished]
        for start in range(0, len(due), MAX_AT_ONCE):
            applied += await asyncio.gather(
                *(
                    _apply_segment(inventory, archive, step)
                    if isinstance(step, SegmentStep)
                    else _apply_step(inventory, dispatcher, step, actor=actor, reason=reason)
                    for step in due[start : start + MAX_AT_ONCE]
                )
            )
        unfinished = {
            one.step.partition for one in applied if one.verdict in (Verdict.STALE, Verdict.REFUSED)
        }
    return RepairReport(tuple(applied))


async def mend(
    inventory: Inventory,
    archive: Archive | None,
    *,
    actor: str,
    reason: str,
    snapshots: Snapshots | None = None,
    settings: AuditSettings | None = None,
) -> Mended:
    """Audit and repair in turn until an audit has nothing to repair or a repair did nothing.

    At most MAX_ROUNDS times.

    Raises what `audit` and `apply` raise.
    """
    rounds: list[RepairReport] = []
    while True:
        report = await audit(inventory, archive, settings=settings, snapshots=snapshots)
        steps = plan(report.findings)
        stuck = bool(rounds) and rounds[-1].count(Verdict.DONE) == 0
        if not steps or stuck or len(rounds) == MAX_ROUNDS:
            return Mended(tuple(rounds), report)
        rounds.append(await apply(inventory, steps, actor=actor, reason=reason, archive=archive))


async def accept(
    inventory: Inventory, *, merchant: str, name: str, actor: str, reason: str
) -> Applied:
    """Put on record that an anomaly is right as it is; audits no longer report it.

    `name` is its reference or actor. Raises as `apply` does.
    """
    step = KnownStep(
        partition=0,
        first=0,
        last=0,
        finding=f"{ACCEPT}{name}",
        why="the changes are right as they are",
        merchant=merchant,
    )
    return (await apply(inventory, [step], actor=actor, reason=reason)).applied[0]


async def _apply_step(
    inventory: Inventory, dispatcher: Dispatcher, step: ScriptStep, *, actor: str, reason: str
) -> Applied:
    command = step.command(inventory.keys[step.partition], actor=actor, reason=reason)
    try:
        reply = await dispatcher.run("repair", step.partition, command)
    except StoreFault as fault:
        return Applied(step, Verdict.REFUSED, detail=str(fault))
    code = Outcome(reply[0])
    if code is Outcome.READ_ONLY:
        raise StoreReadOnly()
    if code is Outcome.OK:
        return Applied(step, Verdict.DONE, sequence=reply[1])
    if code is Outcome.REPLAYED:
        return Applied(step, Verdict.ALREADY)
    if code is Outcome.VERSION_CONFLICT:
        return Applied(step, Verdict.STALE, detail="it changed since the audit")
    return Applied(step, Verdict.REFUSED, detail=f"{code}: {reply[1:]}")


async def _apply_segment(
    inventory: Inventory, archive: Archive | None, step: SegmentStep
) -> Applied:
    """Write a segment again; what stands in its place is set aside, not thrown away."""
    if archive is None:
        return Applied(step, Verdict.REFUSED, detail="no archive was given")
    segment = step.segment
    entries: list[RawEntry] = []
    reader = LedgerReader(inventory.store, inventory.keys, None)
    try:
        async for batch in reader.batches(
            step.partition, after_sequence=segment.first - 1, until_sequence=segment.last
        ):
            entries += batch
    except LedgerDamaged as damage:
        return Applied(step, Verdict.STALE, detail=str(damage))
    data = pack_segment(step.partition, entries, previous=segment.previous)
    if unpack_segment(segment.path, data).seal != segment.seal:
        detail = "what the store has does not come out under the seal that the chain names"
        return Applied(step, Verdict.REFUSED, detail=detail)
    objects = archive.objects
    damaged = await objects.get(segment.path)
    if damaged == data:
        return Applied(step, Verdict.ALREADY)
    if damaged is not None:
        aside = archive.path(f"damaged/{segment.path.removeprefix(archive.path(''))}")
        await objects.put_new(aside, damaged)
        await objects.delete(segment.path)
    await objects.put_new(segment.path, data)
    return Applied(step, Verdict.DONE)
