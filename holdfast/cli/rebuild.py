"""`holdfast rebuild`: a store again from its archive, or a live one without a bad import."""

import asyncio
import getpass
import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import click

from engine.inventory import Inventory
from engine.store import Store, StoreSettings
from holdfast.cli.connection import json_option, store_settings
from holdfast.cli.exit_codes import ExitCode
from holdfast.cli.moments import parse_moment, time_ms_of
from holdfast.cli.output import Bar, Output, time_of
from holdfast.cli.site import Site, site_options, warnings_only
from reconciler.archive import note_archive_url, read_archive_url
from reconciler.counterfactual import RowDifference, Target
from reconciler.meter import Phase, Progress
from reconciler.objects import Objects
from reconciler.rebuild import RebuildResult, rebuild
from reconciler.rebuild import lift_fence as lift_fence_of
from reconciler.rebuild_plan import RebuildPlan, RebuildRequest, plan_rebuild
from reconciler.recovery import Until
from reconciler.snapshots import Snapshots
from reconciler.undo import Affected, BlastRadius, UndoPlan, undo_apply, undo_plan

MAX_SHOWN: Final = 50
"""Losses, notes and reservations that are shown to a person; --json has them all."""

_SEQUENCES = re.compile(r"\d{1,4}:\d{1,16}(?:,\d{1,4}:\d{1,16})*")
_LABELS: Final = {
    Phase.FOLD: "reading the ledger",
    Phase.LOAD: "loading the store",
    Phase.FINISH: "opening the store",
}


def _parse_until(text: str) -> Until:
    """Read a moment, or `PARTITION:SEQUENCE` with more of them after commas."""
    if _SEQUENCES.fullmatch(text):
        pairs = [pair.split(":") for pair in text.split(",")]
        return Until(sequences={int(partition): int(last) for partition, last in pairs})
    return Until(at_ms=time_ms_of(parse_moment(text)))


@click.command("rebuild", short_help="Rebuild a store, or undo a bad import.")
@click.option("--from", "source", default="", metavar="STORE_ID", help="The store to rebuild.")
@click.option(
    "--until",
    type=_parse_until,
    metavar="TIME|P:SEQ,...",
    help="Leave out what came later: a time, or for partitions P the last sequence.",
)
@click.option("--partitions", type=click.IntRange(1, 4096), help="Of the new store.")
@click.option(
    "--live",
    metavar="URL|DIRECTORY",
    help="The old store, where it still runs: its URL, or its data directory.",
)
@click.option(
    "--lift-fence", is_flag=True, help="Let the old store go on: the rebuild is given up."
)
@click.option("--accept-loss", is_flag=True, help="Go on although operations are missing.")
@click.option(
    "--without",
    metavar="NAME",
    help="In a live store, take back an import, a reference, an actor's movements, an operation.",
)
@click.option("--merchant", "-m", default="", help="Whose movements, with --without.")
@click.option("--reason", default="", help="Why, with --without; the ledger keeps it.")
@click.option("--actor", help="Who; the ledger keeps it.  [default: cli: and your user name]")
@click.option("--plan", is_flag=True, help="Show what would be done, and do nothing.")
@site_options
@json_option
def rebuild_store(
    site: Site,
    source: str,
    until: Until | None,
    partitions: int | None,
    live: str | None,
    lift_fence: bool,
    accept_loss: bool,
    without: str | None,
    merchant: str,
    reason: str,
    actor: str | None,
    plan: bool,
    output: Output,
) -> None:
    """Rebuild into the empty store that --redis-url or --data-dir names, from the archive.

    While it runs the store answers questions and refuses writes (503 `read_only`). A rebuild that
    was killed goes on when the same command is run again. With --without nothing is rebuilt: in
    the live store, what the named movements did is taken back by compensating operations.
    """
    who = actor or f"cli:{getpass.getuser()}"
    if without is not None:
        _undo(site, Target(without, merchant), who, reason, output, only_plan=plan)
        return
    old = None if live is None else _live_settings(live)
    if lift_fence:
        _lift(old, output)
        return
    request = RebuildRequest(
        actor=who,
        source=source,
        until=until or Until(),
        partitions=partitions,
        accept_loss=accept_loss,
    )
    with output.progress("operations") as bar:
        work = _Rebuilding(site, request, old, bar)
        with warnings_only():
            planned = asyncio.run(work.plan()) if plan else None
            result = asyncio.run(work.rebuild()) if planned is None else None
    if planned is not None:
        _tell_plan(planned, output)
    if result is not None:
        _tell_result(result, output)


class _Rebuilding:
    """The stores and the archive of one rebuild."""

    def __init__(
        self, site: Site, request: RebuildRequest, live: StoreSettings | None, bar: Bar
    ) -> None:
        self._site = site
        self._request = request
        self._live = live
        self._bar = bar

    async def plan(self) -> RebuildPlan:
        """Recover everything, and change nothing."""
        async with self._open() as (objects, target, live):
            return await plan_rebuild(
                self._request, objects, target=target, live=live, on_progress=self._show
            )

    async def rebuild(self) -> RebuildResult:
        """Do it, or go on with it."""
        async with self._open() as (objects, target, live):
            result = await rebuild(
                self._request, objects, target=target, live=live, on_progress=self._show
            )
            await note_archive_url(target, await self._archive_url(target, live))
            return result

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[tuple[Objects, Store, Store | None]]:
        target = await Store.open(self._site.store_settings())
        live = None if self._live is None else await Store.open(self._live)
        try:
            url = await self._archive_url(target, live)
            yield await asyncio.to_thread(Objects.open, url), target, live
        finally:
            await target.close()
            if live is not None:
                await live.close()

    async def _archive_url(self, target: Store, live: Store | None) -> str:
        if self._site.archive_url:
            return self._site.archive_url
        for store in (live, target):
            if store is not None and (url := await read_archive_url(store)):
                return url
        return self._site.default_archive()

    def _show(self, progress: Progress) -> None:
        self._bar.show(_LABELS[progress.phase], progress.done, progress.total)


def _live_settings(live: str) -> StoreSettings:
    """Find the old store. Raises SetupProblem and NotRunning."""
    if "://" not in live:
        return store_settings(None, Path(live))
    return StoreSettings.from_url(
        live,
        username=os.environ.get("HOLDFAST_LIVE_REDIS_USERNAME", ""),
        password=os.environ.get("HOLDFAST_LIVE_REDIS_PASSWORD", ""),
    )


def _lift(live: StoreSettings | None, output: Output) -> None:
    if live is None:
        raise click.UsageError("name the old store with --live")

    async def run(settings: StoreSettings) -> None:
        inventory = await Inventory.open(settings)
        try:
            await lift_fence_of(inventory.store, inventory.partitions)
        finally:
            await inventory.close()

    asyncio.run(run(live))
    output.document({"lifted": True})
    output.text("The old store takes writes again.")


def _tell_plan(plan: RebuildPlan, output: Output) -> None:
    output.document(plan)
    if not output.as_json:
        output.table(
            [
                "partition",
                "sequence",
                "as_of",
                "replayed",
                "dropped",
                "rows",
                "units",
                "held",
                "confirmed",
            ],
            [
                [
                    part.partition,
                    part.sequence,
                    time_of(part.as_of_ms),
                    part.operations,
                    part.dropped,
                    part.rows,
                    part.units_on_hand,
                    part.held,
                    part.confirmed,
                ]
                for part in plan.parts
            ],
        )
    for problem in plan.problems[:MAX_SHOWN]:
        output.text(f"problem   {problem}")
    for note in [note for part in plan.parts for note in part.notes][:MAX_SHOWN]:
        output.note(f"note      {note}")
    output.text(
        f"Store {plan.source} of {plan.source_partitions} partitions comes to {plan.partitions}, "
        f"with {sum(part.rows for part in plan.parts):,} rows; "
        f"{sum(part.dropped for part in plan.parts):,} operations are left out."
    )
    if plan.problems:
        raise click.exceptions.Exit(ExitCode.REFUSED)


def _tell_result(result: RebuildResult, output: Output) -> None:
    output.document(result)
    for loss in result.losses[:MAX_SHOWN]:
        output.text(
            f"lost      partition {loss.partition}, operations {loss.first} to {loss.last}: "
            f"{loss.reason}"
        )
    output.text(
        f"Rebuilt {result.source} as {result.store_id}: {result.rows:,} rows, "
        f"{result.reservations:,} reservations and {result.records:,} idempotency records in "
        f"{result.partitions} partitions, {result.operations:,} operations replayed."
    )


def _undo(
    site: Site, target: Target, actor: str, reason: str, output: Output, *, only_plan: bool
) -> None:
    """Take movements back in the live store, or say what that would do."""
    if only_plan:
        planned = site.run(
            lambda place: undo_plan(
                place.inventory, place.archive, target, snapshots=Snapshots(place.archive).state
            )
        )
        output.document(planned)
        _tell_blast(planned.blast, output)
        _tell_supplies(planned, output)
        _tell_obstacles([row for row in planned.rows if row.obstacle], output)
        return
    if not reason:
        raise click.UsageError("say why with --reason, or look first with --plan")
    undone = site.run(
        lambda place: undo_apply(
            place.inventory,
            place.archive,
            target,
            actor=actor,
            reason=reason,
            snapshots=Snapshots(place.archive).state,
        )
    )
    output.document(undone)
    output.text(
        f"{undone.rows:,} rows are as they would be without {target.name}: "
        f"{undone.units_added:+,} and {-undone.units_taken:+,} units"
        + (f", and {undone.units_to_come:+,} to come." if undone.units_to_come else ".")
    )
    if undone.unsettled:
        _tell_obstacles(undone.unsettled, output)
        output.note(
            f"{len(undone.unsettled):,} rows could not be done: see to them, then run it again"
        )
        raise click.exceptions.Exit(ExitCode.REFUSED)


def _tell_blast(blast: BlastRadius, output: Output) -> None:
    if output.as_json:
        return
    output.text(
        f"{blast.name}: {blast.operations:,} operations from {time_of(blast.first_at_ms)} to "
        f"{time_of(blast.last_at_ms)} by {', '.join(blast.actors) or 'nobody'}"
    )
    output.table(
        ["merchants", "locations", "rows_touched", "rows_differing", "units_added", "units_taken"],
        [
            [
                blast.merchants,
                blast.locations,
                blast.rows_touched,
                blast.rows_differing,
                blast.units_added,
                blast.units_taken,
            ]
        ],
    )
    output.text(f"{blast.unfounded_count:,} reservations were made on stock that was not there.")
    output.text(
        f"{blast.endangered_count:,} open reservations would be left without units"
        + (
            f", of orders {', '.join(blast.orders_endangered[:MAX_SHOWN])}."
            if blast.orders_endangered
            else "."
        )
    )
    for one in blast.endangered[:MAX_SHOWN]:
        output.text(f"endangered  {_affected(one)}")
    if blast.already_undone:
        output.note(f"{blast.already_undone:,} rows were put right by an earlier undo.")


def _tell_supplies(planned: UndoPlan, output: Output) -> None:
    if output.as_json:
        return
    told = [(row, one) for row in planned.rows for one in row.supplies]
    for row, one in told[:MAX_SHOWN]:
        output.text(
            f"supply  {one.supply} of {row.sku} at {row.location}: {one.without} to come on "
            f"{one.expected_on}, not {one.quantity}"
        )
    if len(told) > MAX_SHOWN:
        output.text(f"supply  and {len(told) - MAX_SHOWN:,} more")
    for row in [row for row in planned.rows if row.unnamed][:MAX_SHOWN]:
        output.text(
            f"look    {row.unnamed:,} units of {row.sku} at {row.location} came since and named no "
            "supply: if they are of one above, cancel what is left of it afterwards"
        )


def _tell_obstacles(rows: Sequence[RowDifference], output: Output) -> None:
    if output.as_json:
        return
    for row in rows[:MAX_SHOWN]:
        output.text(f"not done  {row.sku} at {row.location}: {row.obstacle}")
    if len(rows) > MAX_SHOWN:
        output.text(f"not done  and {len(rows) - MAX_SHOWN:,} more")


def _affected(one: Affected) -> str:
    order = f", order {one.order_ref}" if one.order_ref else ""
    return (
        f"{one.reservation} ({one.state}{order}): {one.sku} at {one.location}, "
        f"{one.missing} of {one.quantity} would be missing"
    )
