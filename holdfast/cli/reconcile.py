"""`holdfast reconcile`, `audit` and `repair`: is the store what its ledger says, and if not?"""

import getpass
import os
from collections.abc import Sequence
from typing import Any, Final

import click
import msgspec

from engine.outcomes import InvalidCommand
from holdfast.cli.connection import json_option
from holdfast.cli.exit_codes import ExitCode
from holdfast.cli.output import Bar, Output, time_of
from holdfast.cli.site import Place, Site, site_options
from reconciler.archiver import Progress
from reconciler.audit import Audit, AuditSettings
from reconciler.findings import AuditReport, Finding, PartitionAudit
from reconciler.loop import Reconciler
from reconciler.reader import LedgerDamaged
from reconciler.repair import Mended, RepairReport, RepairStep, Verdict, accept, mend, plan
from reconciler.sealed import FileDamaged
from reconciler.settings import ReconcilerSettings
from reconciler.snapshots import Snapshots

MAX_SHOWN: Final = 50
"""Findings and steps that are shown to a person; --json has them all."""


class Reconciled(msgspec.Struct, frozen=True, kw_only=True):
    """What one `holdfast reconcile` did and found.

    `busy_partitions` were being archived by another process; `damages` keep some of the archive
    from being used.
    """

    archived_entries: int
    archived_segments: int
    trimmed_entries: int
    busy_partitions: int
    snapshots: int
    damages: tuple[str, ...]
    audit: AuditReport | None

    @property
    def is_clean(self) -> bool:
        """True where there is nothing for a person to look at."""
        return not self.damages and (self.audit is None or not self.audit.findings)


@click.command(short_help="Archive, make snapshots and audit, once.")
@click.option("--no-audit", is_flag=True, help="Only archive and make snapshots.")
@site_options
@json_option
def reconcile(site: Site, no_audit: bool, output: Output) -> None:
    """Archive all of the ledger, make and prune snapshots, then audit; for cron.

    The exit code is 0 where all is well, 1 where something was found, 3 where the store cannot be
    reached and 4 where the archive cannot. It may run beside the service, which does the same
    bit by bit.
    """
    with output.progress("operations") as bar:
        done = site.run(lambda place: _reconcile(place, bar, with_audit=not no_audit))
    output.document(done)
    output.text(
        f"Archived {done.archived_entries:,} entries in {done.archived_segments:,} segments; "
        f"{done.trimmed_entries:,} left the store; {done.snapshots:,} snapshots made."
    )
    if done.busy_partitions:
        output.note(f"{done.busy_partitions} partitions are being archived by another process.")
    for damage in done.damages:
        output.text(f"damaged   {damage}")
    if done.audit is not None:
        _tell_audit(done.audit, output)
    if not done.is_clean:
        raise click.exceptions.Exit(ExitCode.REFUSED)


async def _reconcile(place: Place, bar: Bar, *, with_audit: bool) -> Reconciled:
    settings = msgspec.structs.replace(
        ReconcilerSettings.from_environment(os.environ), archive_url=place.archive_url
    )
    reconciler = Reconciler(place.inventory, settings)
    damages: list[str] = []
    rounds: Sequence[Progress] = ()
    made = 0
    try:
        try:
            rounds = await reconciler.archive(flush=True)
        except FileDamaged as damage:
            damages.append(str(damage))
        try:
            made = await reconciler.snapshots(flush=True)
        except (FileDamaged, LedgerDamaged) as damage:
            damages.append(str(damage))
    finally:
        await reconciler.give_up()
    report = None
    if with_audit:
        report = await _audit(place, AuditSettings(whole=False), bar)
    return Reconciled(
        archived_entries=sum(one.entries for one in rounds),
        archived_segments=sum(one.segments for one in rounds),
        trimmed_entries=sum(one.trimmed for one in rounds),
        busy_partitions=sum(bool(one.skipped) for one in rounds),
        snapshots=made,
        damages=tuple(damages),
        audit=report,
    )


@click.command(short_help="Compare the store with its ledger.")
@click.option(
    "--keys-per-second",
    type=click.IntRange(min=1),
    help="How much to ask of the store.  [default: as fast as it goes]",
)
@click.option(
    "--from-snapshots",
    is_flag=True,
    help="Start from the newest snapshots, not from the first operation.",
)
@click.option("--no-segments", is_flag=True, help="Do not verify every segment of the archive.")
@click.option("--no-scan", is_flag=True, help="Do not look for keys that nothing names.")
@site_options
@json_option
def audit(
    site: Site,
    keys_per_second: int | None,
    from_snapshots: bool,
    no_segments: bool,
    no_scan: bool,
    output: Output,
) -> None:
    """Fold the ledger, compare it with the store row by row, and check every invariant.

    Traffic may go on meanwhile. Nothing is changed. The exit code is 1 where there is a finding.
    """
    settings = AuditSettings(
        keys_per_second=keys_per_second,
        whole=not from_snapshots,
        verify_archive=not no_segments,
        scan=not no_scan,
    )
    with output.progress("operations") as bar:
        report = site.run(lambda place: _audit(place, settings, bar))
    output.document(report)
    _tell_audit(report, output)
    if report.findings:
        raise click.exceptions.Exit(ExitCode.REFUSED)


async def _audit(place: Place, settings: AuditSettings, bar: Bar) -> AuditReport:
    done = 0

    def on_partition(partition: PartitionAudit) -> None:
        nonlocal done
        done += partition.operations
        bar.show(f"audited partition {partition.partition}", done, None)

    return await Audit(
        place.inventory,
        place.archive,
        settings=settings,
        snapshots=Snapshots(place.archive).state,
        on_partition=on_partition,
    ).run()


@click.command(short_help="Put right what the audit finds.")
@click.option("--plan", "mode", flag_value="plan", help="Show what would be done, and do nothing.")
@click.option("--apply", "mode", flag_value="apply", help="Do it, through the ledger.")
@click.option("--accept", metavar="NAME", help="Say that the anomaly of this name is right.")
@click.option("--merchant", "-m", default="", help="Whose anomaly it is, with --accept.")
@click.option(
    "--reason", default="", help="Why; the ledger keeps it. --apply and --accept need it."
)
@click.option("--actor", help="Who; the ledger keeps it.  [default: cli: and your user name]")
@site_options
@json_option
def repair(
    site: Site,
    mode: str | None,
    accept: str | None,
    merchant: str,
    reason: str,
    actor: str | None,
    output: Output,
) -> None:
    """Audit, then put right what was found by compensating operations in the ledger.

    Nothing is changed silently: each step becomes an operation of kind `repair` with its reason and
    actor. A row that changed since the audit is left alone and audited again. Running it twice
    changes nothing more. The exit code of --apply is 1 where something is left that needs a person.
    """
    if (mode is None) is (accept is None):
        raise click.UsageError("choose one of --plan, --apply and --accept")
    if mode != "plan" and not reason:
        raise click.UsageError("say why with --reason")
    who = actor or f"cli:{getpass.getuser()}"
    if accept is not None:
        _accept(site, accept, merchant, who, reason, output)
    elif mode == "plan":
        _plan(site, output)
    else:
        _apply(site, who, reason, output)


def _accept(site: Site, name: str, merchant: str, actor: str, reason: str, output: Output) -> None:
    if not merchant:
        raise click.UsageError("say whose anomaly it is with --merchant")
    applied = site.run(
        lambda place: accept(
            place.inventory, merchant=merchant, name=name, actor=actor, reason=reason
        )
    )
    output.document(applied)
    output.text(f"{name} of {merchant} is on record as right; audits no longer report it.")


def _plan(site: Site, output: Output) -> None:
    with output.progress("operations") as bar:
        report = site.run(lambda place: _audit(place, AuditSettings(), bar))
    steps = plan(report.findings)
    output.document({"findings": report.findings, "steps": steps})
    _tell_audit(report, output)
    if output.as_json:
        return
    for step in steps[:MAX_SHOWN]:
        output.text(f"would     {_step_text(step)}")
    if len(steps) > MAX_SHOWN:
        output.note(f"... and {len(steps) - MAX_SHOWN:,} more; --json has them all")
    output.text(f"{len(steps):,} steps. holdfast repair --apply --reason WHY does them.")


def _apply(site: Site, actor: str, reason: str, output: Output) -> None:
    mended = site.run(lambda place: _mend(place, actor, reason))
    output.document(mended)
    for number, done in enumerate(mended.rounds, 1):
        output.text(f"round {number}: {_counts(done)}")
        _tell_refused(done, output)
    if not mended.rounds:
        output.text("There was nothing to repair.")
    _tell_audit(mended.audit, output)
    if not mended.audit.is_clean:
        raise click.exceptions.Exit(ExitCode.REFUSED)


async def _mend(place: Place, actor: str, reason: str) -> Mended:
    if not reason.strip():
        raise InvalidCommand("reason", "say why: a repair needs a reason")
    return await mend(
        place.inventory,
        place.archive,
        actor=actor,
        reason=reason,
        snapshots=Snapshots(place.archive).state,
    )


def _counts(done: RepairReport) -> str:
    counted = {verdict: done.count(verdict) for verdict in Verdict}
    return ", ".join(f"{count:,} {verdict}" for verdict, count in counted.items() if count)


def _tell_refused(done: RepairReport, output: Output) -> None:
    refused = [one for one in done.applied if one.verdict is Verdict.REFUSED]
    for one in refused[:MAX_SHOWN]:
        output.text(f"refused   {_step_text(one.step)}: {one.detail}")


def _step_text(step: RepairStep) -> str:
    fields: dict[str, Any] = msgspec.to_builtins(step)
    names = ("merchant", "location", "sku", "reservation", "operation")
    subject = "/".join(str(fields[name]) for name in names if fields.get(name))
    where = subject or f"partition {fields['partition']}"
    return f"{fields['type']} {where}: {fields.get('why', '')}"


def _tell_audit(report: AuditReport, output: Output) -> None:
    if output.as_json:
        return
    for finding in report.findings[:MAX_SHOWN]:
        for line in _finding_lines(finding):
            output.text(line)
    hidden = len(report.findings) - MAX_SHOWN + report.dropped
    if hidden > 0:
        output.note(f"... and {hidden:,} more; --json has up to 10,000")
    output.text(
        f"Audited {report.operations:,} operations, {report.rows:,} rows, "
        f"{report.reservations:,} reservations and {report.segments:,} segments in "
        f"{report.partitions} partitions: "
        + (f"{len(report.findings) + report.dropped:,} findings." if report.findings else "clean.")
    )


def _finding_lines(finding: Finding) -> list[str]:
    names = (finding.merchant, finding.location, finding.sku, finding.reservation)
    subject = "/".join(name for name in names if name) or finding.key
    where = f"partition {finding.partition}" if finding.partition >= 0 else "the store"
    found = f"{finding.invariant} {finding.code} {subject or where} ({where}): {finding.detail}"
    lines = [f"{finding.severity:9} {found}"]
    lines += [
        f"            {touch.sequence} {touch.kind} at {time_of(touch.at_ms)} by {touch.actor}"
        + (f" ({touch.reference})" if touch.reference else "")
        for touch in finding.operations
    ]
    lines.append(f"          {finding.remedy}")
    return lines
