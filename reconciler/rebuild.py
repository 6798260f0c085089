"""Rebuilding a store: into an empty one, from an archive and whatever survives of the old store.

It goes in steps, each of which can be killed and done again:

1. The target is given the name of an archive of its own and marked, partition by partition: from
   here on it refuses every write but the rebuild's. An old store that is still there is fenced
   in the same way, so that nothing it acknowledges later is left behind.
2. Each partition of the source is recovered (see `reconciler.recovery`) and written as the snapshot
   that the target's archive begins with. Where the number of partitions changes, the recovered
   states are cut into pieces, which are put together to the target's partitions.
3. The snapshots are read back, verified and loaded (see `reconciler.restoration`).
4. Each partition gets a `rebuild` operation as the first of its ledger, and takes writes again.

A rebuild that is started again with the same arguments goes on where it was.
"""

import secrets
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, Final

import msgspec
import structlog

from engine.boot import SCHEMA_VERSION
from engine.claims import Claims, reservation_of_claim
from engine.clock import clock_ms
from engine.keys import (
    API_KEYS_KEY,
    MOVED_KEY,
    PLACES_KEY,
    POLICIES_KEY,
    STORE_KEY,
    PartitionKeys,
    claim_partition,
    moved_order_id,
    moved_reservation_id,
    order_partition,
    partition_of,
    reservation_hash,
)
from engine.outcomes import StoreUnavailable
from engine.scripts import script
from engine.store import Store, pairs
from engine.webhooks import Webhooks
from reconciler.archive import ORIGIN, Archive, Origin
from reconciler.fold import FoldedRow, PartitionState, RowKey
from reconciler.meter import Meter, OnProgress, Phase
from reconciler.objects import Objects
from reconciler.rebuild_plan import (
    RECORD,
    RebuildRefused,
    RebuildRequest,
    Record,
    Target,
    choose_partitions,
    count_operations,
    find_source,
    leftovers,
    read_record,
    read_target,
    told_losses,
)
from reconciler.recovery import Loss, Recovered, Source, recover
from reconciler.restoration import note_moved, restore
from reconciler.snapshots import SCHEMA_VERSION as SNAPSHOT_VERSION
from reconciler.snapshots import (
    SnapshotDamaged,
    SnapshotHeader,
    SnapshotName,
    Snapshots,
    pack_snapshot,
    snapshot_path,
    unpack_snapshot,
)
from reconciler.split_merge import is_part, merge_parts

PIECES: Final = "rebuild/pieces"

log = structlog.get_logger()


class RebuildResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a rebuild did, over all partitions; `resumed` where it went on with one begun before."""

    rebuild_id: str
    store_id: str
    source: str
    partitions: int
    resumed: bool
    operations: int
    rows: int
    reservations: int
    records: int
    losses: tuple[Loss, ...]


class _Mark(msgspec.Struct, frozen=True):
    """A partition of the source that is recovered: up to where, and without what."""

    partition: int
    last_sequence: int
    at_ms: int
    operations: int
    losses: tuple[Loss, ...]


async def rebuild(
    request: RebuildRequest,
    objects: Objects,
    *,
    target: Store,
    live: Store | None = None,
    on_progress: OnProgress | None = None,
) -> RebuildResult:
    """Rebuild into `target`, which must be empty, or go on with the same rebuild.

    `live` is the old store, where it can still be reached; it takes no more writes from here on.
    Raises RebuildRefused, ArchiveUnavailable, and what the stores' calls raise. The target refuses
    writes until a rebuild has come to its end.
    """
    facts = await read_target(target)
    source, origin = await find_source(request, objects, live, facts)
    record = await read_record(objects, facts)
    resumed = record is not None
    if record is None:
        record = await _begin(request, objects, source, origin, target, facts)
    else:
        _check_same(request, source, record)
    work = _Rebuild(record, source, Archive(objects, record.store_id), target, on_progress)
    return await work.run(resumed=resumed, accept_loss=request.accept_loss)


async def lift_fence(live: Store, partitions: int) -> None:
    """Let an old store take writes again whose rebuild was given up. Changes nothing otherwise.

    Raises RebuildRefused on a store that is being rebuilt into: it is not filled yet.
    """
    own = (await read_target(live)).rebuild_id
    metas = [PartitionKeys(partition).meta for partition in range(partitions)]
    marks = await live.read([("HGET", meta, "rebuilding") for meta in metas])
    if any(mark is not None and mark.decode() == own for mark in marks):
        raise RebuildRefused(
            "this is the store that is rebuilt into, not the old one: run the rebuild again"
        )
    for meta in metas:
        await live.read([("HDEL", meta, "rebuilding")])


class _Rebuild:
    """One rebuild from its first step to its last; see the module's text."""

    def __init__(
        self,
        record: Record,
        source: Source,
        archive: Archive,
        target: Store,
        on_progress: OnProgress | None,
    ) -> None:
        self._record = record
        self._source = source
        self._archive = archive
        self._target = target
        self._on_progress = on_progress
        self._snapshots = Snapshots(archive)
        self._keys = [PartitionKeys(number) for number in range(record.partitions)]
        self._same = record.partitions == source.partitions
        self._refolded = False

    async def run(self, *, resumed: bool, accept_loss: bool) -> RebuildResult:
        done = await self._mark_target()
        await self._fence_source()
        marks = await self._fold(accept_loss=accept_loss)
        headers = await self._put_together(marks)
        await self._load(headers, done)
        await self._finish(headers)
        await self._tidy_up()
        record = self._record
        log.info("store rebuilt", rebuild=record.rebuild_id, source=record.source)
        return RebuildResult(
            rebuild_id=record.rebuild_id,
            store_id=record.store_id,
            source=record.source,
            partitions=record.partitions,
            resumed=resumed,
            operations=sum(mark.operations for mark in marks),
            rows=sum(header.rows for header in headers),
            reservations=sum(header.reservations for header in headers),
            records=sum(header.seen for header in headers),
            losses=tuple(loss for mark in marks for loss in mark.losses),
        )

    # 1. Nobody else writes

    async def _mark_target(self) -> set[int]:
        """Mark every partition of the target; return those that are finished already."""
        done = set()
        for keys in self._keys:
            reply: Any = await self._target.call(
                script("rebuild_begin"),
                (keys.meta, keys.ledger, keys.holds, keys.locations),
                self._record.rebuild_id,
            )
            code = reply[0].decode()
            if code == "done":
                done.add(keys.partition)
            elif code == "taken":
                raise RebuildRefused(
                    f"partition {keys.partition} is being rebuilt by {reply[1].decode()}"
                )
            elif code == "not_empty":
                sequence, entries, holds, locations = reply[1:5]
                raise RebuildRefused(
                    f"partition {keys.partition} is not empty: last sequence {sequence}, "
                    f"{entries} ledger entries, {holds} holds, {locations} locations"
                )
        return done

    async def _fence_source(self) -> None:
        live = self._source.live
        if live is None:
            return
        for number in range(self._source.partitions):
            meta = self._source.keys(number).meta
            rebuild_id = self._record.rebuild_id
            _, found = await live.read(
                [("HSETNX", meta, "rebuilding", rebuild_id), ("HGET", meta, "rebuilding")]
            )
            if found.decode() != rebuild_id:
                raise RebuildRefused(
                    f"partition {number} of the old store is fenced by rebuild {found.decode()}"
                )

    # 2. Fold

    async def _fold(self, *, accept_loss: bool) -> list[_Mark]:
        """Recover every partition that is not recovered yet."""
        source = self._source
        total = await count_operations(source)
        meter = Meter(self._on_progress, Phase.FOLD, source.partitions, total)
        marks = []
        for partition in range(source.partitions):
            mark = await self._read_mark(partition)
            if mark is None or (mark.losses and not accept_loss):
                before = meter.done
                recovered = await recover(
                    source, partition, self._record.until, on_operations=meter.add
                )
                mark = await self._keep(partition, recovered, meter.done - before)
                self._refolded = True
            else:
                meter.add(mark.operations)
            meter.finish_partition()
            marks.append(mark)
        losses = [loss for mark in marks for loss in mark.losses]
        if losses and not accept_loss:
            await self._give_back(marks)
            raise RebuildRefused(*told_losses(losses), losses=losses)
        return marks

    async def _keep(self, partition: int, recovered: Recovered, operations: int) -> _Mark:
        """Write what was recovered, and then that it was."""
        for note in recovered.notes:
            log.warning("recovered", partition=partition, note=note)
        await self._forget(partition)
        state = recovered.state
        # Stream ids are the old store's; whoever folds on from here starts with the new stream.
        state.stream_id = "0-0"
        if self._same:
            await self._snapshots.write(partition, state, origin=True)
        else:
            await self._write_pieces(partition, state)
        mark = _Mark(partition, recovered.last_sequence, state.at_ms, operations, recovered.losses)
        await self._put(self._mark_path(partition), msgspec.json.encode(mark))
        return mark

    async def _forget(self, partition: int) -> None:
        """Remove what an earlier attempt has left of a partition of the source."""
        objects = self._archive.objects
        await objects.delete(self._mark_path(partition))
        if self._same:
            stale = [name.path for name in await self._snapshots.names(partition)]
        else:
            stale = await objects.list(self._archive.path(f"{PIECES}/{partition:04d}"))
        for path in stale:
            await objects.delete(path)

    async def _give_back(self, marks: Sequence[_Mark]) -> None:
        """Let the old store go on with its trade; what it does now is to be recovered as well."""
        live = self._source.live
        if live is None:
            return
        for mark in marks:
            await self._archive.objects.delete(self._mark_path(mark.partition))
        await lift_fence(live, self._source.partitions)

    async def _write_pieces(self, partition: int, state: PartitionState) -> None:
        for number, piece in _cut(state, self._record.partitions).items():
            data = pack_snapshot(_header(number, piece), piece)
            await self._put(self._archive.path(_piece_path(partition, number)), data)

    async def _put_together(self, marks: Sequence[_Mark]) -> list[SnapshotHeader]:
        """Return the headers of the snapshots that the target's partitions begin with."""
        if self._same:
            return [await self._origin_header(mark.partition, mark.last_sequence) for mark in marks]
        # Above every sequence that any partition has used, so that none is used twice.
        sequence = max(mark.last_sequence for mark in marks)
        at_ms = max(mark.at_ms for mark in marks)
        pieces = defaultdict(list)
        for path in await self._archive.objects.list(self._archive.path(PIECES)):
            pieces[int(PurePosixPath(path).stem)].append(path)
        headers = []
        for number in range(self._record.partitions):
            if self._refolded:
                for name in await self._snapshots.names(number):
                    await self._archive.objects.delete(name.path)
            elif await self._snapshots.names(number):
                headers.append(await self._origin_header(number, sequence))
                continue
            state = PartitionState(sequence=sequence, at_ms=at_ms)
            parts: list[tuple[int, RowKey, FoldedRow]] = []
            for path in pieces[number]:
                parts += await self._add_piece(state, path)
            merge_parts(state.rows, parts)
            _, header = await self._snapshots.write(number, state, origin=True)
            headers.append(header)
        return headers

    async def _add_piece(
        self, state: PartitionState, path: str
    ) -> list[tuple[int, RowKey, FoldedRow]]:
        """Add a piece, and return the parts of split rows in it, with where they were."""
        data = await self._archive.objects.get(path)
        if data is None:
            raise SnapshotDamaged(path, "is missing")
        piece = unpack_snapshot(path, data).state
        source = int(PurePosixPath(path).parent.name)
        parts = [(source, key, row) for key, row in piece.rows.items() if is_part(row)]
        state.rows.update((key, row) for key, row in piece.rows.items() if not is_part(row))
        state.reservations.update(piece.reservations)
        state.seen.update(piece.seen)
        state.sources.update(piece.sources)
        state.quarantine.update(piece.quarantine)
        state.shortfalls.update(piece.shortfalls)
        state.offline.update(piece.offline)
        state.definitions.update(piece.definitions)
        state.orders.update(piece.orders)
        state.buyers.update(piece.buyers)
        state.claims.update(piece.claims)
        return parts

    async def _origin_header(self, partition: int, sequence: int) -> SnapshotHeader:
        path = self._archive.path(snapshot_path(partition, sequence))
        header = await self._snapshots.header(SnapshotName(path, sequence))
        if header is None:
            raise SnapshotDamaged(path, "is missing, or its header cannot be read")
        return header

    # 3. Load

    async def _load(self, headers: Sequence[SnapshotHeader], done: set[int]) -> None:
        total = sum(_size(header) for header in headers)
        meter = Meter(self._on_progress, Phase.LOAD, len(headers), total)
        for header, keys in zip(headers, self._keys, strict=True):
            if keys.partition in done:
                meter.add(_size(header))
            else:
                path = self._archive.path(snapshot_path(keys.partition, header.sequence))
                state = (await self._snapshots.read(path)).state
                await restore(
                    self._target,
                    keys,
                    state,
                    rebuild_id=self._record.rebuild_id,
                    on_restored=meter.add,
                )
                if self._record.has_moved:
                    moved = [*state.reservations, *state.orders]
                    await note_moved(self._target, keys.partition, moved)
            meter.finish_partition()

    # 4. Go on

    async def _finish(self, headers: Sequence[SnapshotHeader]) -> None:
        record = self._record
        await self._write_origin()
        if self._source.live is not None:
            for key in (API_KEYS_KEY, POLICIES_KEY, PLACES_KEY):
                await _copy_settings(self._source.live, self._target, key)
            await _copy_webhooks(self._source.live, self._target)
        detail = msgspec.msgpack.encode(
            (record.source, record.until.text(), record.source_partitions)
        )
        meter = Meter(self._on_progress, Phase.FINISH, len(headers), len(headers))
        for header, keys in zip(headers, self._keys, strict=True):
            await self._target.call(
                script("rebuild_finish"),
                (keys.meta, keys.ledger),
                record.rebuild_id,
                header.sequence,
                header.at_ms,
                record.actor,
                detail,
            )
            meter.add(1)
            meter.finish_partition()

    async def _write_origin(self) -> None:
        """Say where the new store came from: only now is there something to rebuild it from."""
        record = self._record
        origin = Origin(
            record.store_id,
            record.partitions,
            await clock_ms(self._target, self._keys[0]),
            source=record.source,
            rebuild=record.rebuild_id,
            has_moved=record.has_moved,
        )
        found = await self._archive.read_origin()
        if found is None or found.rebuild != record.rebuild_id:
            await self._put(self._archive.path(ORIGIN), msgspec.json.encode(origin))

    async def _tidy_up(self) -> None:
        for path in await self._archive.objects.list(self._archive.path("rebuild")):
            if path.endswith(".piece"):
                await self._archive.objects.delete(path)

    # What is kept of a rebuild

    def _mark_path(self, partition: int) -> str:
        return self._archive.path(f"rebuild/recovered/{partition:04d}.json")

    async def _read_mark(self, partition: int) -> _Mark | None:
        data = await self._archive.objects.get(self._mark_path(partition))
        return None if data is None else msgspec.json.decode(data, type=_Mark)

    async def _put(self, path: str, data: bytes) -> None:
        await _replace(self._archive.objects, path, data)


# The beginning


def _check_same(request: RebuildRequest, source: Source, record: Record) -> None:
    """Check that what is asked for is what was begun. Raises RebuildRefused."""
    partitions = request.partitions or record.partitions
    asked = (source.store_id, source.partitions, request.until, partitions)
    begun = (record.source, record.source_partitions, record.until, record.partitions)
    if asked != begun:
        raise RebuildRefused(
            f"the store is in rebuild {record.rebuild_id} from {record.source} until "
            f"{record.until.text() or 'the end'} with {record.partitions} partitions: "
            "ask for the same again, or take another empty store"
        )


async def _begin(
    request: RebuildRequest,
    objects: Objects,
    source: Source,
    origin: Origin | None,
    target: Store,
    facts: Target,
) -> Record:
    """Give the target its name and its archive. Raises RebuildRefused."""
    partitions, problems = choose_partitions(request, source, facts)
    problems += await leftovers(target)
    if problems:
        raise RebuildRefused(*problems)
    record = Record(
        rebuild_id=secrets.token_hex(8),
        store_id=await _choose_store_id(objects, facts),
        source=source.store_id,
        source_partitions=source.partitions,
        partitions=partitions,
        until=request.until,
        actor=request.actor,
        has_moved=await _has_moved(source, origin, partitions),
    )
    archive = Archive(objects, record.store_id)
    created_at_ms = await clock_ms(target, PartitionKeys(0))
    await _replace(objects, archive.path(RECORD), msgspec.json.encode(record))
    fields: list[str | int] = ["store_id", record.store_id, "rebuild", record.rebuild_id]
    if facts.partitions is None:
        # As at a first start, the partitions come last: where they stand, the rest stands too.
        fields += ["schema_version", SCHEMA_VERSION, "created_at", created_at_ms]
        fields += ["partitions", partitions]
    await target.read([("HSET", STORE_KEY, *fields)])
    return record


async def _has_moved(source: Source, origin: Origin | None, partitions: int) -> bool:
    """Say whether reservations may go by ids that name another partition than theirs."""
    if partitions != source.partitions or (origin is not None and origin.has_moved):
        return True
    if source.live is None:
        return False
    (moved,) = await source.live.read([("HLEN", MOVED_KEY)])
    return bool(moved)


async def _choose_store_id(objects: Objects, facts: Target) -> str:
    """Keep the target's own id, so that who runs on it need not learn another, unless used."""
    if facts.store_id:
        archive = Archive(objects, facts.store_id)
        used = await objects.list(archive.path("ledger"))
        used += await objects.list(archive.path("snapshots"))
        if not used:
            return facts.store_id
    return secrets.token_hex(8)


# Small things


def _cut(state: PartitionState, partitions: int) -> dict[int, PartitionState]:
    """Cut a state into what belongs to each of `partitions` partitions."""

    def piece() -> PartitionState:
        return PartitionState(sequence=state.sequence, at_ms=state.at_ms)

    pieces: defaultdict[int, PartitionState] = defaultdict(piece)
    for key, row in state.rows.items():
        pieces[partition_of(key[0], key[1], partitions)].rows[key] = row
    for the_id, reservation in state.reservations.items():
        body = reservation.body
        number = partition_of(body.merchant, body.location, partitions)
        pieces[number].reservations[moved_reservation_id(the_id, number)] = reservation
    for operation, record in state.seen.items():
        number = partition_of(record.merchant, record.location, partitions)
        pieces[number].seen[operation] = record
    for name, source in state.sources.items():
        number = partition_of(name[0], name[1], partitions)
        pieces[number].sources[name] = source
    for the_id, event in state.quarantine.items():
        number = partition_of(event.merchant, event.location, partitions)
        pieces[number].quarantine[the_id] = event
    for place, told in state.offline.items():
        pieces[partition_of(*place, partitions)].offline[place] = told
    for the_id, order in state.orders.items():
        number = order_partition(order.body.merchant, reservation_hash(the_id), partitions)
        pieces[number].orders[moved_order_id(the_id, number)] = order
    for buyer, counted in state.buyers.items():
        number = partition_of(buyer[0], buyer[1], partitions)
        pieces[number].buyers[buyer] = {
            moved_reservation_id(the_id, number): entry for the_id, entry in counted.items()
        }
    for (merchant, digest), claims in state.claims.items():
        number = claim_partition(merchant, digest, partitions)
        pieces[number].claims[merchant, digest] = {
            _moved_claim(merchant, name, claim.location, partitions): msgspec.structs.replace(
                claim, beside=_moved_beside(merchant, claims, claim.beside, partitions)
            )
            for name, claim in claims.items()
        }
    for (what, merchant), said in state.definitions.items():
        pieces[partition_of(merchant, "", partitions)].definitions[what, merchant] = said
    for the_id, short in state.shortfalls.items():
        pieces[partition_of(short[3], short[4], partitions)].shortfalls[the_id] = short
    return pieces


def _moved_claim(merchant: str, name: str, location: str, partitions: int) -> str:
    """Return the name of a claim once its reservation is where it belongs."""
    the_id, rest = reservation_of_claim(name)
    return moved_reservation_id(the_id, partition_of(merchant, location, partitions)) + rest


def _moved_beside(merchant: str, claims: Claims, beside: str, partitions: int) -> str:
    """Return the name of the claim that another is beside; '' of one that is gone."""
    there = claims.get(beside)
    return "" if there is None else _moved_claim(merchant, beside, there.location, partitions)


def _header(partition: int, state: PartitionState) -> SnapshotHeader:
    return SnapshotHeader(
        schema_version=SNAPSHOT_VERSION,
        partition=partition,
        sequence=state.sequence,
        stream_id=state.stream_id,
        at_ms=state.at_ms,
        rows=len(state.rows),
        reservations=len(state.reservations),
        seen=len(state.seen),
    )


def _size(header: SnapshotHeader) -> int:
    return header.rows + header.reservations + header.seen


def _piece_path(source: int, target: int) -> str:
    return f"{PIECES}/{source:04d}/{target:04d}.piece"


async def _replace(objects: Objects, path: str, data: bytes) -> None:
    """Write an object in place of whatever an earlier attempt has left there."""
    await objects.delete(path)
    if not await objects.put_new(path, data):
        raise RebuildRefused(f"{path} was written by another rebuild just now")


async def _copy_settings(live: Store, target: Store, key: str) -> None:
    """Take over API keys, or policies; what the target has already stays as it is."""
    try:
        (found,) = await live.read([("HGETALL", key)])
    except StoreUnavailable as error:
        log.warning("settings were not taken over", key=key, error=str(error))
        return
    for field, value in pairs(found):
        await target.read([("HSETNX", key, field, value)])


async def _copy_webhooks(live: Store, target: Store) -> None:
    """Take over the webhook endpoints, without what waits for them: of that there is no log."""
    try:
        endpoints = await Webhooks(live).all()
    except StoreUnavailable as error:
        log.warning("the webhooks were not taken over", error=str(error))
        return
    for endpoint in endpoints:
        await Webhooks(target).take_over(endpoint)
