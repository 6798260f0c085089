"""Rebuilding a store from its archive and from what survives of it, on real servers."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from engine.access import Role, create_key, list_keys
from engine.clock import clock_ms
from engine.inventory import Inventory
from engine.keys import (
    API_KEYS_KEY,
    STORE_KEY,
    PartitionKeys,
    partition_of,
    reservation_hash,
)
from engine.ledger import OperationKind, read_entries
from engine.model import Line, Movement, MovementType, Reservation, ReservationState
from engine.outcomes import ReservationNotFound, StoreReadOnly
from engine.relocation import Relocation
from engine.store import Client, Store, close_quietly, connect
from engine.webhooks import Interest, Webhooks
from reconciler.archive import Archive, Origin, list_origins, open_archive
from reconciler.archiver import Archiver, ArchiverSettings
from reconciler.fold import Fold
from reconciler.meter import Phase, Progress
from reconciler.objects import Objects
from reconciler.reader import LedgerReader, read_sequence
from reconciler.rebuild import lift_fence, rebuild
from reconciler.rebuild_plan import RebuildRefused, RebuildRequest, plan_rebuild
from reconciler.recovery import Until
from reconciler.snapshots import Snapshots
from tests.shop import ACTOR
from tests.stores import MakeStore, RealCluster, RealStore, eventually, set_up
from tests.trade import LOCATIONS, Trade, contents

PARTITIONS: Final = 3
SEED: Final = 7
MERCHANT: Final = "corner shop"
"""Its locations are in all three partitions, and in others where their number is another."""

STEPS: Final = 120


@dataclass
class Old:
    """A store with a past, and its archive."""

    real: RealStore
    inventory: Inventory
    client: Client
    archive: Archive
    objects: Objects
    path: Path
    trade: Trade

    @property
    def store(self) -> Store:
        """The store as the rebuild reaches it."""
        return self.inventory.store

    async def archive_all(self, *, keep_ms: int = 3_600_000, segment_entries: int = 9) -> None:
        """Archive what there is; with `keep_ms` 0 the store forgets what it may."""
        await archive_all(
            self.inventory,
            self.archive,
            resume_window_ms=keep_ms,
            max_segment_entries=segment_entries,
        )

    async def snapshot_all(self) -> None:
        """Make a snapshot of every partition."""
        for partition in range(self.inventory.partitions):
            await Snapshots(self.archive).make(partition)


@dataclass
class New:
    """The store that is rebuilt into."""

    real: RealStore
    store: Store
    client: Client


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects.open(str(tmp_path / "archive"))


@pytest.fixture
async def old(make_store: MakeStore, objects: Objects, tmp_path: Path) -> AsyncIterator[Old]:
    real = make_store(extra_config=["stream-node-max-entries 1"])
    await real.start()
    await set_up(real.settings, partitions=PARTITIONS)
    inventory = await Inventory.open(real.settings)
    client = connect(real.tester)
    (store_id,) = await inventory.store.read([("HGET", STORE_KEY, "store_id")])
    archive = Archive(objects, store_id.decode())
    trade = Trade(inventory, MERCHANT, random.Random(SEED))
    yield Old(real, inventory, client, archive, objects, tmp_path / "archive", trade)
    await close_quietly(client)
    await inventory.close()


@pytest.fixture
async def new(make_store: MakeStore) -> AsyncIterator[New]:
    real = make_store()
    await real.start()
    store = await Store.open(real.settings)
    client = connect(real.tester)
    yield New(real, store, client)
    await close_quietly(client)
    await store.close()


def request(**asked: Any) -> RebuildRequest:
    return RebuildRequest(actor=ACTOR, **asked)


@pytest.mark.parametrize("partitions", [PARTITIONS, 1, 5])
async def test_everything_comes_back(old: Old, new: New, partitions: int) -> None:
    await old.trade.run(STEPS)
    await old.archive_all(keep_ms=0)
    await old.snapshot_all()
    await old.trade.run(STEPS)
    await old.archive_all()
    before = await contents(old.client)

    result = await rebuild(request(partitions=partitions), old.objects, target=new.store)

    assert await contents(new.client) == before
    assert (result.partitions, result.losses, result.resumed) == (partitions, (), False)
    async with engine_on(new) as inventory:
        assert await old.trade.retry_all(inventory) == []
        assert await contents(new.client) == before


async def test_a_store_that_is_still_there_loses_nothing_and_takes_nothing_more(
    old: Old, new: New
) -> None:
    await old.trade.run(STEPS)
    await old.archive_all(keep_ms=0)
    await old.trade.run(STEPS)
    _, secret = await create_key(old.client, role=Role.ADMIN, merchant=None, label="till")
    made = await Webhooks(old.store).create(
        "acme",
        key="k",
        url="https://hooks.example/",
        description="",
        interest=Interest(),
        new_secret=lambda: "whsec_x",
    )
    before = await contents(old.client)

    await rebuild(request(), old.objects, target=new.store, live=old.store)

    assert await contents(new.client) == before
    assert [key.label for key in await list_keys(new.client)] == ["till"]
    assert await new.client.hgetall(API_KEYS_KEY) == await old.client.hgetall(API_KEYS_KEY)
    assert secret
    assert await Webhooks(new.store).all() == [made.endpoint]
    assert await new.client.exists(made.endpoint.keys.state)
    with pytest.raises(StoreReadOnly):
        await receive(old.inventory, old.trade.merchant)
    await lift_fence(old.store, PARTITIONS)
    await receive(old.inventory, old.trade.merchant)


async def test_a_store_without_an_archive_is_cut_into_other_partitions(old: Old, new: New) -> None:
    await old.trade.run(STEPS)
    before = await contents(old.client)

    result = await rebuild(request(partitions=4), old.objects, target=new.store, live=old.store)

    assert await contents(new.client) == before
    assert result.source == old.archive.store_id


async def test_ids_and_keys_of_before_find_their_reservations_in_other_partitions(
    old: Old, new: New
) -> None:
    merchant = old.trade.merchant
    ids = {}
    for location in LOCATIONS:
        await receive(old.inventory, merchant, location=location)
        for key in ("read", "confirm", "extend", "commit", "release"):
            ids[location, key] = (await reserve(old.inventory, merchant, location, key)).id
        the_id = ids[location, "extend"]
        first = await old.inventory.extend(merchant, the_id, key="x", ttl_ms=3_600_000, actor=ACTOR)
        assert not first.replayed
    await old.archive_all()

    await rebuild(request(partitions=7), old.objects, target=new.store)

    assert any(
        partition_of(merchant, location, 7) != partition_of(merchant, location, PARTITIONS)
        for location in LOCATIONS
    )
    async with engine_on(new) as inventory:
        for location in LOCATIONS:
            found = await inventory.reservation(merchant, ids[location, "read"])
            assert (found.location, reservation_hash(found.id)) == (
                location,
                reservation_hash(ids[location, "read"]),
            )
            again = await reserve(inventory, merchant, location, "read")
            assert again.id == found.id
            the_id = ids[location, "extend"]
            extended = await inventory.extend(
                merchant, the_id, key="x", ttl_ms=3_600_000, actor=ACTOR
            )
            assert extended.replayed
            confirmed = await inventory.confirm(merchant, ids[location, "confirm"], actor=ACTOR)
            assert confirmed.reservation.state is ReservationState.CONFIRMED
            committed = await inventory.commit(merchant, ids[location, "commit"], actor=ACTOR)
            assert committed.reservation.state is ReservationState.COMMITTED
            released = await inventory.release(merchant, ids[location, "release"], actor=ACTOR)
            assert released.reservation.state is ReservationState.RELEASED
            with pytest.raises(ReservationNotFound):
                await inventory.reservation("somebody else", ids[location, "read"])
            with pytest.raises(ReservationNotFound):
                await inventory.release(merchant, "rsv_0_" + "f" * 24, actor=ACTOR)


@pytest.mark.parametrize("step", ["before hold there", "after hold there", "after release here"])
async def test_a_move_that_was_cut_off_is_finished_in_other_partitions(
    old: Old, new: New, step: str
) -> None:
    merchant, (here, there) = old.trade.merchant, LOCATIONS[:2]
    for location in (here, there):
        await receive(old.inventory, merchant, location=location)
    held = await reserve(old.inventory, merchant, here, "k")

    def die(now: str) -> None:
        if now == step:
            raise KeyboardInterrupt

    cut_off = Relocation(old.inventory, watch=die)
    with pytest.raises(KeyboardInterrupt):
        await cut_off.relocate(merchant, held.id, there, key="k", actor=ACTOR)
    await old.archive_all()
    before = await contents(old.client)

    await rebuild(request(partitions=7), old.objects, target=new.store)

    assert await contents(new.client) == before
    async with engine_on(new) as inventory:
        moved = await Relocation(inventory).relocate(merchant, held.id, there, key="k", actor=ACTOR)
        assert moved.result.reservation.location == there
        assert moved.result.reservation.lines == held.lines
        ended = await inventory.reservation(merchant, held.id)
        assert ended.state is ReservationState.RELEASED
        rows = await inventory.rows(
            merchant, [(place, line.sku) for place in (here, there) for line in held.lines]
        )
        assert sum(row.reserved for row in rows if row) == sum(x.quantity for x in held.lines)


async def test_a_rebuilt_store_has_an_archive_of_its_own_that_it_can_be_rebuilt_from(
    old: Old, new: New, make_store: MakeStore
) -> None:
    await old.trade.run(STEPS)
    await old.archive_all()
    first = await rebuild(request(partitions=5), old.objects, target=new.store)
    async with engine_on(new) as inventory:
        old.trade.inventory = inventory
        await old.trade.run(STEPS)
        archive = await open_archive(new.store, str(old.path))
        await archive_all(inventory, archive)
        before = await contents(new.client)

        origins = {origin.store_id: origin for origin in await list_origins(old.objects)}
        assert archive.store_id == first.store_id
        assert origins[first.store_id].source == old.archive.store_id
        assert origins[first.store_id].rebuild == first.rebuild_id
        for partition in range(5):
            await fold_is_whole(archive, partition)

        third = make_store()
        await third.start()
        store = await Store.open(third.settings)
        try:
            second = await rebuild(request(), old.objects, target=store)
            client = connect(third.tester)
            assert second.source == first.store_id
            assert await contents(client) == before
            await close_quietly(client)
            # Ids of the first store still lead to their reservations in the third.
            for the_id in old.trade.reservations[:20]:
                found = await inventory.reservation(old.trade.merchant, the_id)
                again = await Inventory.open(third.settings)
                assert await again.reservation(old.trade.merchant, the_id) == found
                await again.close()
        finally:
            await store.close()


async def test_the_ledger_goes_on_behind_the_last_sequence_with_the_rebuild(
    old: Old, new: New
) -> None:
    await old.trade.run(STEPS)
    await old.archive_all()
    last = await sequences(old.store)

    result = await rebuild(request(), old.objects, target=new.store)

    assert await sequences(new.store) == [sequence + 1 for sequence in last]
    for partition in range(PARTITIONS):
        (entry,) = await read_entries(new.store, PartitionKeys(partition))
        (operation,) = entry.operations
        assert entry.sequence == last[partition] + 1
        assert (operation.kind, operation.id) == (OperationKind.REBUILD, result.rebuild_id)
        assert operation.detail == (old.archive.store_id, "", PARTITIONS)


@pytest.mark.parametrize("by", ["time", "sequence"])
@pytest.mark.parametrize("snapshots", [False, True])
async def test_a_moment_of_the_past_comes_back_with_versions_that_go_on(
    old: Old, new: New, by: str, snapshots: bool
) -> None:
    await old.trade.run(STEPS)
    await old.archive_all()
    if snapshots:
        await old.snapshot_all()
    await old.trade.run(STEPS // 2)
    wanted = await contents(old.client)
    last = await sequences(old.store)
    until = Until(sequences=dict(enumerate(last)))
    if by == "time":
        until = Until(at_ms=await pass_a_moment(old))
    await old.trade.run(STEPS)
    await receive(old.inventory, old.trade.merchant, sku="new here")
    await old.archive_all()
    if snapshots:
        await old.snapshot_all()
    newest = await contents(old.client)
    end = await sequences(old.store)

    result = await rebuild(request(until=until), old.objects, target=new.store)

    found = await contents(new.client)
    for name in [name for name in newest if name[0] == "stock"]:
        version = int(found[name][b"version"])
        known = int(newest[name][b"version"])
        if name in wanted:
            changed = wanted[name] != newest[name]
            assert version == known + changed
            assert found[name] | {b"version": b""} == wanted[name] | {b"version": b""}
        else:
            assert version == known + 1
            assert {found[name][level] for level in (b"on_hand", b"reserved")} == {b"0"}
    for kind in ("rsv", "seen", "open", "holds"):
        assert part(found, kind) == part(wanted, kind)
    assert await sequences(new.store) == [sequence + 1 for sequence in end]
    plan = await plan_rebuild(request(until=until, source=old.archive.store_id), old.objects)
    assert [p.sequence for p in plan.parts] == last
    assert [p.dropped for p in plan.parts] == [b - a for a, b in zip(last, end, strict=True)]
    assert result.losses == ()


async def test_a_plan_changes_nothing_and_says_what_would_be(old: Old, new: New) -> None:
    await old.trade.run(STEPS)
    await old.archive_all()
    rows = part(await contents(old.client), "stock")
    keys_before = await new.client.dbsize()
    paths_before = await old.objects.list("")

    plan = await plan_rebuild(request(), old.objects, target=new.store)

    assert (plan.source, plan.partitions, plan.problems) == (old.archive.store_id, PARTITIONS, ())
    assert sum(p.rows for p in plan.parts) == len(rows)
    assert sum(p.units_on_hand for p in plan.parts) == sum(
        int(row[b"on_hand"]) for row in rows.values()
    )
    assert sum(p.operations for p in plan.parts) == sum(await sequences(old.store))
    assert await new.client.dbsize() == keys_before
    assert await old.objects.list("") == paths_before


async def test_a_store_that_is_not_empty_is_refused_by_name(old: Old, new: New) -> None:
    await old.trade.run(STEPS)
    await old.archive_all()
    await set_up(new.real.settings, partitions=PARTITIONS)
    await create_key(new.client, role=Role.READ, merchant=None, label="early")
    async with engine_on(new) as inventory:
        await receive(inventory, "m", location="l", sku="s")

        with pytest.raises(RebuildRefused, match=r"is not empty: it has \{hf\.\d\}:"):
            await rebuild(request(), old.objects, target=new.store)

        await receive(inventory, "m", location="l", sku="s")


async def test_a_store_that_was_only_set_up_keeps_its_id_and_its_keys(old: Old, new: New) -> None:
    await old.trade.run(STEPS)
    await old.archive_all()
    await set_up(new.real.settings, partitions=4)
    await create_key(new.client, role=Role.READ, merchant=None, label="early")
    (store_id,) = await new.store.read([("HGET", STORE_KEY, "store_id")])
    async with engine_on(new) as inventory:
        with pytest.raises(RebuildRefused, match="made with 4 partitions, not 3"):
            await rebuild(request(partitions=3), old.objects, target=new.store)

        result = await rebuild(request(), old.objects, target=new.store)

        # Who had opened the store before it was rebuilt finds everything in it.
        assert await old.trade.retry_all(inventory) == []
    assert (result.store_id, result.partitions) == (store_id.decode(), 4)
    assert [key.label for key in await list_keys(new.client)] == ["early"]


async def test_one_of_several_stores_must_be_named(old: Old, new: New) -> None:
    await old.trade.run(10)
    await old.archive_all()
    await Archive(old.objects, "another").write_origin(Origin("another", 1, 5))

    with pytest.raises(RebuildRefused, match=f"another, {old.archive.store_id}"):
        await plan_rebuild(request(), old.objects, target=new.store)
    with pytest.raises(RebuildRefused, match="nothing of a store nowhere"):
        await plan_rebuild(request(source="nowhere"), old.objects, target=new.store)
    plan = await plan_rebuild(request(source=old.archive.store_id), old.objects, target=new.store)
    assert plan.problems == ()


@pytest.mark.slow
async def test_it_can_be_stopped_at_every_step_and_run_again(
    old: Old, new: New, make_store: MakeStore
) -> None:
    await old.trade.run(40)
    await old.archive_all()
    before = await contents(old.client)
    for partitions in (PARTITIONS, 2):
        steps = 0
        stopped = True
        while stopped:
            steps += 1
            real = make_store()
            await real.start()
            store = await Store.open(real.settings)
            client = connect(real.tester)
            stop = Stop(after=steps)
            asked = request(partitions=partitions, source=old.archive.store_id)
            try:
                await rebuild(asked, old.objects, target=store, on_progress=stop)
                stopped = False
            except Stopped:
                if stop.phases[-1] is not Phase.FINISH:
                    with pytest.raises(RebuildRefused, match="not the old one"):
                        await lift_fence(store, partitions)
                    inventory = await Inventory.open(real.settings)
                    with pytest.raises(StoreReadOnly):
                        await receive(inventory, old.trade.merchant)
                    await inventory.close()
                other = request(partitions=partitions, until=Until(at_ms=1))
                with pytest.raises(RebuildRefused, match="ask for the same again"):
                    await rebuild(other, old.objects, target=store)
                again = await rebuild(asked, old.objects, target=store)
                assert again.resumed
            assert await contents(client) == before
            assert await client.xlen(PartitionKeys(0).ledger) == 1
            await close_quietly(client)
            await store.close()
            await real.stop()
        assert set(stop.phases) == {Phase.FOLD, Phase.LOAD, Phase.FINISH}


async def test_what_is_lost_is_named_and_must_be_accepted(old: Old, new: New) -> None:
    await old.trade.run(STEPS)
    await old.archive_all(keep_ms=0, segment_entries=4)
    paths = await old.archive.segment_paths(0)
    lost = (await old.archive.read_segment(paths[1])).header
    await old.objects.delete(paths[1])

    with pytest.raises(RebuildRefused) as refused:
        await rebuild(request(), old.objects, target=new.store)
    (loss,) = refused.value.losses
    assert (loss.partition, loss.first, loss.last) == (0, lost.first_sequence, lost.last_sequence)
    plan = await plan_rebuild(request(), old.objects)
    assert plan.parts[0].losses == (loss,)
    assert f"{lost.first_sequence} to {lost.last_sequence}" in plan.problems[0]

    result = await rebuild(request(accept_loss=True), old.objects, target=new.store)

    assert result.losses == (loss,)
    before, after = await contents(old.client), await contents(new.client)
    # The ledger says what rows are, not only how they change: none but those that the lost
    # operations were the last to touch can differ.
    rows = part(before, "stock")
    same = [name for name in rows if after.get(name) == rows[name]]
    assert len(same) >= len(rows) - 4


@pytest.mark.parametrize("damage", ["flipped byte", "missing"])
async def test_what_the_old_store_still_has_makes_up_for_a_damaged_segment(
    old: Old, new: New, damage: str
) -> None:
    await old.trade.run(STEPS)
    await old.archive_all(segment_entries=4)
    path = (await old.archive.segment_paths(0))[1]
    await spoil(old, path, damage)
    before = await contents(old.client)

    result = await rebuild(request(), old.objects, target=new.store, live=old.store)

    assert result.losses == ()
    assert await contents(new.client) == before


async def test_a_refusal_leaves_the_old_store_in_trade(old: Old, new: New) -> None:
    await old.trade.run(STEPS)
    await old.archive_all(keep_ms=0, segment_entries=4)
    await old.objects.delete((await old.archive.segment_paths(0))[1])

    with pytest.raises(RebuildRefused, match="lacks operations"):
        await rebuild(request(), old.objects, target=new.store, live=old.store)

    await old.trade.run(STEPS)
    before = await contents(old.client)
    asked = request(accept_loss=True)
    result = await rebuild(asked, old.objects, target=new.store, live=old.store)
    assert len(result.losses) == 1
    found = await contents(new.client)
    # What was done between the two attempts is there.
    last = old.trade.calls[-1]
    async with engine_on(new) as inventory:
        assert (await last.retry(inventory)).replayed
    assert part(found, "holds").keys() == part(before, "holds").keys()


async def test_operations_that_vanished_from_the_end_are_noticed(old: Old, new: New) -> None:
    await old.trade.run(STEPS)
    keys = PartitionKeys(0)
    (newest,) = await read_entries(old.store, keys, after=await before_last(old.store, keys))
    await old.real.run("XDEL", keys.ledger, newest.stream_id)
    last = (await sequences(old.store))[0]

    with pytest.raises(RebuildRefused, match="the newest operations are gone"):
        await rebuild(request(), old.objects, target=new.store, live=old.store)
    asked = request(accept_loss=True)
    await rebuild(asked, old.objects, target=new.store, live=old.store)
    # No sequence is given a second time.
    assert (await sequences(new.store))[0] == last + 1


async def test_a_damaged_snapshot_is_passed_over(old: Old, new: New) -> None:
    await old.trade.run(STEPS)
    await old.archive_all()
    await old.snapshot_all()
    await old.trade.run(STEPS)
    await old.archive_all()
    await old.snapshot_all()
    for partition in range(PARTITIONS):
        newest = (await Snapshots(old.archive).names(partition))[-1]
        await spoil(old, newest.path, "flipped byte")
    before = await contents(old.client)

    plan = await plan_rebuild(request(), old.objects)
    await rebuild(request(), old.objects, target=new.store)

    assert all(part.base_sequence > 0 for part in plan.parts)
    assert all("SHA-256 does not match" in " ".join(part.notes) for part in plan.parts)
    assert await contents(new.client) == before


async def test_holds_that_ran_out_meanwhile_are_swept(old: Old, new: New) -> None:
    merchant = old.trade.merchant
    await receive(old.inventory, merchant)
    line = [Line("tea", 2)]
    held = await old.inventory.reserve(
        merchant, "harbour", line, key="k", ttl_ms=1_000, actor=ACTOR
    )
    await old.archive_all()

    await rebuild(request(), old.objects, target=new.store)

    async with engine_on(new) as inventory:
        keys = PartitionKeys(partition_of(merchant, "harbour", PARTITIONS))
        due_ms = held.reservation.expires_at_ms
        assert due_ms is not None
        await new.client.hset(keys.meta, "clock_ms", str(due_ms + 1))
        assert (await inventory.expire_due(keys.partition)).expired == 1
        assert (await inventory.row(merchant, "harbour", "tea")).reserved == 0


@pytest.mark.cluster
async def test_a_cluster_is_rebuilt_into(old: Old, tmp_path: Path) -> None:
    await old.trade.run(STEPS)
    await old.archive_all()
    before = await contents(old.client)
    cluster = RealCluster(tmp_path / "cluster")
    await cluster.start()
    try:
        store = await Store.open(cluster.settings)
        await rebuild(request(partitions=8), old.objects, target=store)
        assert await contents(store.client) == before
        inventory = Inventory(store, partitions=8)
        assert await old.trade.retry_all(inventory) == []
        await inventory.close()
    finally:
        await cluster.stop()


# What the tests have in common


class Stopped(Exception):
    """Stands for the end of the process."""


class Stop:
    """Ends a rebuild at one of its reports of progress."""

    def __init__(self, *, after: int) -> None:
        self.left = after
        self.phases: list[Phase] = []

    def __call__(self, progress: Progress) -> None:
        self.phases.append(progress.phase)
        assert 0 <= progress.partitions_done <= progress.partitions
        assert progress.done <= progress.total
        self.left -= 1
        if not self.left:
            raise Stopped


@asynccontextmanager
async def engine_on(new: New) -> AsyncIterator[Inventory]:
    inventory = await Inventory.open(new.real.settings)
    try:
        yield inventory
    finally:
        await inventory.close()


async def archive_all(inventory: Inventory, archive: Archive, **settings: int) -> None:
    wanted = {"min_age_ms": 0, "max_segment_entries": 9} | settings
    archiver = Archiver(inventory, archive, owner=uuid4().hex, settings=ArchiverSettings(**wanted))
    await archiver.archive_all(flush=True)
    await archiver.give_up()


async def fold_is_whole(archive: Archive, partition: int) -> None:
    """Check that an archive alone tells everything from its first snapshot on."""
    (name,) = await Snapshots(archive).names(partition)
    base = await Snapshots(archive).read(name.path)
    assert base.header.origin
    fold = Fold(base.state)
    reader = LedgerReader(None, None, archive)
    async for entry in reader.entries(partition, after_sequence=name.sequence):
        fold.apply(entry)
    assert (fold.gaps, fold.disagreements) == ([], [])
    assert fold.state.sequence > name.sequence


async def receive(
    inventory: Inventory, merchant: str, *, location: str = "harbour", sku: str = "tea"
) -> None:
    movement = Movement(
        key=uuid4().hex, location=location, type=MovementType.RECEIVE, sku=sku, quantity=50
    )
    await inventory.move(merchant, movement, actor=ACTOR)


async def reserve(inventory: Inventory, merchant: str, location: str, key: str) -> Reservation:
    made = await inventory.reserve(merchant, location, [Line("tea", 2)], key=key, actor=ACTOR)
    return made.reservation


async def sequences(store: Store) -> list[int]:
    return [await read_sequence(store, PartitionKeys(number)) for number in range(PARTITIONS)]


async def before_last(store: Store, keys: PartitionKeys) -> str:
    """Return the stream id of the entry before the newest."""
    return (await read_entries(store, keys))[-2].stream_id


async def pass_a_moment(old: Old) -> int:
    """Return a moment (ms) that everything so far was before or at, and nothing else will be."""
    keys = PartitionKeys(0)
    now = await clock_ms(old.store, keys)

    async def has_passed() -> bool:
        return await clock_ms(old.store, keys) > now

    await eventually(has_passed, within_seconds=5)
    return now


async def spoil(old: Old, path: str, damage: str) -> None:
    data = await old.objects.get(path)
    assert data is not None
    await old.objects.delete(path)
    if damage == "flipped byte":
        middle = len(data) // 2
        spoiled = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        assert await old.objects.put_new(path, spoiled)


def part(found: dict[tuple[str, ...], Any], kind: str) -> dict[tuple[str, ...], Any]:
    return {name: value for name, value in found.items() if name[0] == kind}
