"""What a rebuild is asked for, what it would do, and what stands in its way.

Planning recovers everything, as the rebuild itself does, and changes nothing.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from redis.exceptions import RedisError

from engine.keys import MAX_PARTITIONS, PARTITION_KEYS, STORE_KEY, parse_key
from engine.model import ReservationState
from engine.outcomes import StoreUnavailable
from engine.store import Store
from reconciler.archive import Archive, Origin, list_origins
from reconciler.meter import Meter, OnProgress, Phase
from reconciler.objects import Objects
from reconciler.recovery import Loss, Recovered, Source, Until, recover
from reconciler.segments import SegmentDamaged
from reconciler.snapshots import Snapshots

RECORD: Final = "rebuild.json"
"""Below a store's id: the `Record` of the rebuild that it comes from."""

MAX_TOLD_KEYS: Final = 5
"""Keys that a refusal names when the target is not empty."""

SCAN_COUNT: Final = 1_000
_HARMLESS: Final = frozenset({"lease", "readers", "probe", "meta"})
"""Kinds of keys that an empty store may have; what `meta` says is looked at by itself."""


class RebuildRefused(Exception):
    """The rebuild cannot be done as it was asked for; `problems` says all that is in its way."""

    def __init__(self, *problems: str, losses: Sequence[Loss] = ()) -> None:
        """Keep them; `losses` are what could not be recovered, where that is the reason."""
        self.problems = problems
        self.losses = tuple(losses)
        super().__init__("\n".join(self.problems))


class RebuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for.

    `source` is the id of the store to rebuild ('': the old store where that is at hand, or the one
    that the archive keeps), `partitions` the number that the new store gets (None: what it was made
    with, or the source's). `accept_loss` goes on although operations are missing.
    """

    actor: str
    source: str = ""
    until: Until = Until()
    partitions: int | None = None
    accept_loss: bool = False


class PartitionPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a partition of the source will be again.

    As of operation `sequence` at `as_of_ms`; the `dropped` operations after it are left out.
    `operations` have to be replayed on top of the snapshot of `base_sequence` (0: from the start).
    """

    partition: int
    sequence: int
    as_of_ms: int
    base_sequence: int
    operations: int
    dropped: int
    rows: int
    units_on_hand: int
    held: int
    confirmed: int
    ended: int
    records: int
    losses: tuple[Loss, ...]
    notes: tuple[str, ...]


class RebuildPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a rebuild would do; it can be done if there are no `problems` (see RebuildRefused)."""

    source: str
    source_partitions: int
    partitions: int
    until: Until
    parts: tuple[PartitionPlan, ...]
    problems: tuple[str, ...]


class Target(msgspec.Struct, frozen=True):
    """What the target's store key says; None and '' where it says nothing."""

    store_id: str
    partitions: int | None
    rebuild_id: str


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What a rebuild was begun with, kept in the target's archive until a later start reads it."""

    rebuild_id: str
    store_id: str
    source: str
    source_partitions: int
    partitions: int
    until: Until
    actor: str
    has_moved: bool


async def plan_rebuild(
    request: RebuildRequest,
    objects: Objects,
    *,
    target: Store | None = None,
    live: Store | None = None,
    on_progress: OnProgress | None = None,
) -> RebuildPlan:
    """Recover everything without changing anything, and say what came of it.

    `live` is the old store, where it can still be reached. Raises RebuildRefused where it is not
    even clear what to rebuild, ArchiveUnavailable, and what the stores' reads raise.
    """
    facts = None if target is None else await read_target(target)
    source, _ = await find_source(request, objects, live, facts)
    partitions, problems = choose_partitions(request, source, facts)
    if target is not None and facts is not None and not facts.rebuild_id:
        problems += await leftovers(target)
    meter = Meter(on_progress, Phase.FOLD, source.partitions, await count_operations(source))
    parts = []
    for partition in range(source.partitions):
        before = meter.done
        recovered = await recover(source, partition, request.until, on_operations=meter.add)
        meter.finish_partition()
        parts.append(_plan_partition(partition, recovered, meter.done - before))
    if not request.accept_loss:
        problems += told_losses([loss for part in parts for loss in part.losses])
    return RebuildPlan(
        source=source.store_id,
        source_partitions=source.partitions,
        partitions=partitions,
        until=request.until,
        parts=tuple(parts),
        problems=tuple(problems),
    )


async def read_target(target: Store) -> Target:
    """Read what a store was made as. Raises what the store's reads raise."""
    (fields,) = await target.read([("HMGET", STORE_KEY, "store_id", "partitions", "rebuild")])
    store_id, partitions, rebuild_id = fields
    return Target(
        (store_id or b"").decode(),
        None if partitions is None else int(partitions),
        (rebuild_id or b"").decode(),
    )


async def read_record(objects: Objects, target: Target) -> Record | None:
    """Read what the rebuild that a store is in was begun with; None where it is in none.

    Raises RebuildRefused where the archive is not the one that it was begun with.
    """
    if not target.rebuild_id:
        return None
    data = await objects.get(Archive(objects, target.store_id).path(RECORD))
    record = None if data is None else msgspec.json.decode(data, type=Record)
    if record is None or record.rebuild_id != target.rebuild_id:
        raise RebuildRefused(
            f"the store is in rebuild {target.rebuild_id}, of which the archive knows nothing: "
            "take the archive that it was begun with, or another empty store"
        )
    return record


async def find_source(
    request: RebuildRequest, objects: Objects, live: Store | None, target: Target | None
) -> tuple[Source, Origin | None]:
    """Find out what is to be rebuilt, and from what. Raises RebuildRefused."""
    origins = {origin.store_id: origin for origin in await list_origins(objects)}
    old = None if live is None else await read_target(live)
    if old is not None and old.partitions is None:
        raise RebuildRefused("the old store says nothing of itself: its key {hf}:store is gone")
    wanted = request.source or ("" if old is None else old.store_id)
    if old is not None and old.store_id != wanted:
        raise RebuildRefused(f"the old store is {old.store_id}, not {wanted}")
    if target is not None and wanted and wanted == target.store_id:
        raise RebuildRefused(f"{wanted} is the store that is to be rebuilt into")
    if not wanted and target is not None:
        begun = await read_record(objects, target)
        wanted = "" if begun is None else begun.source
    if not wanted:
        wanted = _only_source(origins, "" if target is None else target.store_id)
    origin = origins.get(wanted)
    if old is not None and old.partitions is not None:
        archive = None if origin is None else Archive(objects, wanted)
        return Source(wanted, old.partitions, archive, live), origin
    if origin is None:
        known = ", ".join(origins) or "none"
        raise RebuildRefused(f"the archive keeps nothing of a store {wanted}; it keeps: {known}")
    return Source(wanted, origin.partitions, Archive(objects, wanted), None), origin


def _only_source(origins: dict[str, Origin], own: str) -> str:
    """Return the one store that nothing was rebuilt from yet. Raises RebuildRefused."""
    replaced = {origin.source for origin in origins.values()}
    left = [store_id for store_id in origins if store_id not in replaced | {own}]
    if not left:
        raise RebuildRefused("the archive keeps no store that could be rebuilt")
    if len(left) > 1:
        raise RebuildRefused(
            f"the archive keeps several stores: say which one to rebuild: {', '.join(left)}"
        )
    return left[0]


def choose_partitions(
    request: RebuildRequest, source: Source, target: Target | None
) -> tuple[int, list[str]]:
    """Return how many partitions the target gets, and what is wrong with that."""
    made = None if target is None else target.partitions
    wanted = request.partitions or made or source.partitions
    if not 1 <= wanted <= MAX_PARTITIONS:
        return wanted, [f"a store has 1 to {MAX_PARTITIONS} partitions, not {wanted}"]
    if made not in (None, wanted):
        problem = f"the store to rebuild into was made with {made} partitions, not {wanted}"
        return wanted, [f"{problem}: take a new one, or leave the number out"]
    return wanted, []


async def leftovers(target: Store) -> list[str]:
    """Name what an empty store would not have."""
    found: list[str] = []
    try:
        async for raw in target.client.scan_iter(match=PARTITION_KEYS, count=SCAN_COUNT):
            key = raw.decode("utf-8", "backslashreplace")
            parsed = parse_key(key)
            if parsed is None or parsed.noun not in _HARMLESS:
                found.append(key)
            if len(found) == MAX_TOLD_KEYS:
                break
    except RedisError as error:
        raise StoreUnavailable(f"the store to rebuild into cannot be looked at: {error}") from error
    if not found:
        return []
    return [f"the store to rebuild into is not empty: it has {', '.join(found)} for example"]


async def count_operations(source: Source) -> int:
    """Estimate how many operations must be read."""
    total = 0
    for partition in range(source.partitions):
        last = base = 0
        if source.archive is not None:
            names = await Snapshots(source.archive).names(partition)
            base = names[-1].sequence if names else 0
            try:
                segment = await source.archive.last_segment(partition)
            except SegmentDamaged:
                segment = None
            last = 0 if segment is None else segment[1].header.last_sequence
        if source.live is not None:
            (text,) = await source.live.read([("HGET", source.keys(partition).meta, "sequence")])
            last = max(last, int(text or 0))
        total += max(0, last - base)
    return total


def _plan_partition(partition: int, recovered: Recovered, operations: int) -> PartitionPlan:
    state = recovered.state
    states = [reservation.state for reservation in state.reservations.values()]
    held = states.count(ReservationState.HELD)
    confirmed = states.count(ReservationState.CONFIRMED)
    return PartitionPlan(
        partition=partition,
        sequence=recovered.sequence,
        as_of_ms=recovered.as_of_ms,
        base_sequence=recovered.base_sequence,
        operations=operations,
        dropped=recovered.last_sequence - recovered.sequence,
        rows=len(state.rows),
        units_on_hand=sum(row.on_hand for row in state.rows.values()),
        held=held,
        confirmed=confirmed,
        ended=len(states) - held - confirmed,
        records=len(state.seen),
        losses=recovered.losses,
        notes=recovered.notes,
    )


def told_losses(losses: Sequence[Loss]) -> list[str]:
    """Say what is lost, a line each."""
    return [
        f"partition {loss.partition} lacks operations {loss.first} to {loss.last}: {loss.reason}"
        for loss in losses
    ]
