"""`holdfast archive` and `holdfast snapshot`: what is kept of the ledger outside of the store."""

from collections.abc import Sequence
from typing import Final

import click
import msgspec

from engine.backlog import read_backlog
from holdfast.cli.connection import json_option
from holdfast.cli.exit_codes import ExitCode
from holdfast.cli.output import Bar, Output, time_of
from holdfast.cli.site import Place, Site, site_options
from reconciler.archive import check_succession
from reconciler.sealed import FileDamaged
from reconciler.segments import Segment
from reconciler.snapshots import Made, Pruned, SnapshotPolicy, Snapshots

MAX_SHOWN: Final = 50
"""Damages that are shown to a person; --json has them all."""


class PartitionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far one partition is archived, in sequences; the newest snapshot is 0 without one."""

    partition: int
    sequence: int
    archived: int
    behind_operations: int
    segments: int
    snapshots: int
    newest_snapshot: int


class ArchiveStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far a store is archived; `behind_ms` is the age of the oldest that is not."""

    store_id: str
    url: str
    behind_operations: int
    behind_ms: int
    partitions: tuple[PartitionStatus, ...]


class Damage(msgspec.Struct, frozen=True):
    """A file of the archive that cannot be trusted."""

    path: str
    reason: str


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What was read and checked, and what of it is damaged."""

    segments: int
    operations: int
    snapshots: int
    damages: tuple[Damage, ...]


class SnapshotLine(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot as a listing shows it; `readable` is False where its header cannot be read."""

    partition: int
    sequence: int
    readable: bool
    at_ms: int
    rows: int
    reservations: int
    origin: bool
    path: str


@click.group(short_help="Look after the archive of the ledger.")
def archive() -> None:
    """Say how far the ledger is archived, and check what is there."""


@archive.command(short_help="How far the ledger is archived.")
@site_options
@json_option
def status(site: Site, output: Output) -> None:
    """Show for each partition what the archive has, and what only the store has."""
    found = site.run(_status)
    output.document(found)
    if output.as_json:
        return
    columns = ["partition", "sequence", "archived", "behind", "segments", "snapshots", "newest"]
    output.table(columns, [msgspec.structs.astuple(one) for one in found.partitions])
    output.text(
        f"{found.url} (store {found.store_id}): {found.behind_operations:,} operations behind, "
        f"the oldest for {found.behind_ms / 1000:,.0f} s."
    )


async def _status(place: Place) -> ArchiveStatus:
    inventory, kept = place.inventory, place.archive
    backlog = await read_backlog(inventory.store, inventory.keys)
    snapshots = Snapshots(kept)
    partitions = []
    for one in backlog.partitions:
        names = await snapshots.names(one.partition)
        partitions.append(
            PartitionStatus(
                partition=one.partition,
                sequence=one.sequence,
                archived=one.archived,
                behind_operations=one.behind_operations,
                segments=len(await kept.segment_paths(one.partition)),
                snapshots=len(names),
                newest_snapshot=names[-1].sequence if names else 0,
            )
        )
    return ArchiveStatus(
        store_id=kept.store_id,
        url=place.archive_url,
        behind_operations=backlog.behind_operations,
        behind_ms=backlog.behind_ms,
        partitions=tuple(partitions),
    )


@archive.command(short_help="Read and check every file of the archive.")
@site_options
@json_option
def verify(site: Site, output: Output) -> None:
    """Read every segment and snapshot, check its seal, and each segment against the one before.

    The exit code is 1 where a file is damaged or missing. `holdfast repair` writes a damaged
    segment again from what the store still has of it.
    """
    with output.progress("segments") as bar:
        found = site.run(lambda place: _verify(place, bar))
    output.document(found)
    for damage in found.damages[:MAX_SHOWN]:
        output.text(f"damaged   {damage.path}: {damage.reason}")
    output.text(
        f"{found.segments:,} segments with {found.operations:,} operations and "
        f"{found.snapshots:,} snapshots read: {len(found.damages):,} damaged."
    )
    if found.damages:
        raise click.exceptions.Exit(ExitCode.REFUSED)


async def _verify(place: Place, bar: Bar) -> Verified:
    kept = place.archive
    damages: list[Damage] = []
    segments = operations = good_snapshots = 0
    partitions = range(place.inventory.partitions)
    paths = [await kept.segment_paths(partition) for partition in partitions]
    total = sum(map(len, paths))
    snapshots = Snapshots(kept)
    for partition in partitions:
        previous: Segment | None = None
        for path in paths[partition]:
            try:
                segment = await kept.read_segment(path)
                check_succession(path, segment, partition, previous)
                previous = segment
                operations += segment.header.last_sequence - segment.header.first_sequence + 1
            except FileDamaged as damage:
                damages.append(Damage(damage.path, damage.reason))
                previous = None
            segments += 1
            bar.show("verifying", segments, total)
        for name in await snapshots.names(partition):
            try:
                await snapshots.read(name.path)
                good_snapshots += 1
            except FileDamaged as damage:
                damages.append(Damage(damage.path, damage.reason))
    return Verified(
        segments=segments,
        operations=operations,
        snapshots=good_snapshots,
        damages=tuple(damages),
    )


@click.group(short_help="Look after the snapshots of the ledger.")
def snapshot() -> None:
    """List, make and prune snapshots: states folded from the archive, so that nobody folds all."""


@snapshot.command("list", short_help="List the snapshots.")
@site_options
@json_option
def list_all(site: Site, output: Output) -> None:
    """List the snapshots of every partition, the oldest first; with --json as NDJSON."""
    lines = site.run(_listed)
    for line in lines:
        output.document(line)
    if not output.as_json:
        output.table(
            ["partition", "sequence", "as_of", "rows", "reservations", "origin"],
            [
                [
                    line.partition,
                    line.sequence,
                    time_of(line.at_ms) if line.readable else "(damaged)",
                    line.rows,
                    line.reservations,
                    line.origin,
                ]
                for line in lines
            ],
        )


async def _listed(place: Place) -> list[SnapshotLine]:
    snapshots = Snapshots(place.archive)
    lines = []
    for partition in range(place.inventory.partitions):
        for one in await snapshots.listing(partition):
            header = one.header
            lines.append(
                SnapshotLine(
                    partition=partition,
                    sequence=one.sequence,
                    readable=header is not None,
                    at_ms=0 if header is None else header.at_ms,
                    rows=0 if header is None else header.rows,
                    reservations=0 if header is None else header.reservations,
                    origin=header is not None and header.origin,
                    path=one.path,
                )
            )
    return lines


@snapshot.command(short_help="Make snapshots of what is archived.")
@site_options
@json_option
def make(site: Site, output: Output) -> None:
    """Fold what was archived since the newest snapshot of each partition into a new one."""
    with output.progress("partitions") as bar:
        made = site.run(lambda place: _make(place, bar))
    output.document({"made": made})
    output.text(
        f"{len(made):,} snapshots made of {sum(one.entries for one in made):,} entries, with "
        f"{sum(one.header.rows for one in made):,} rows."
    )


async def _make(place: Place, bar: Bar) -> Sequence[Made]:
    snapshots = Snapshots(place.archive)
    made = []
    for partition in range(place.inventory.partitions):
        bar.show("folding", partition, place.inventory.partitions)
        one = await snapshots.make(partition)
        if one is not None:
            made.append(one)
    return made


@snapshot.command(short_help="Remove snapshots that are no longer needed.")
@click.option(
    "--keep-last",
    type=click.IntRange(min=2),
    default=SnapshotPolicy().keep_last,
    show_default=True,
    help="How many of each partition stay in any case.",
)
@click.option(
    "--daily-days",
    type=click.IntRange(min=0),
    default=SnapshotPolicy().daily_days,
    show_default=True,
    help="For how many days the last one of each day stays.",
)
@site_options
@json_option
def prune(site: Site, keep_last: int, daily_days: int, output: Output) -> None:
    """Remove snapshots that the policy does not keep and that no lost segment needs."""
    policy = SnapshotPolicy(keep_last, daily_days)
    pruned = site.run(lambda place: _prune(place, policy))
    output.document({"pruned": pruned})
    removed = sum(len(one.removed) for one in pruned)
    kept = sum(len(one.kept_for_segments) for one in pruned)
    output.text(f"{removed:,} snapshots removed.")
    if kept:
        output.note(f"{kept:,} stay because segments before them are lost or too many.")


async def _prune(place: Place, policy: SnapshotPolicy) -> Sequence[Pruned]:
    snapshots = Snapshots(place.archive)
    return [
        await snapshots.prune(partition, policy) for partition in range(place.inventory.partitions)
    ]
