"""Snapshots: folded from segments, verified, replaced by the one before, and pruned with care."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from engine.limits import RETENTION_MS
from reconciler import snapshots as snapshots_module
from reconciler.archive import Archive
from reconciler.fold import Fold, PartitionState
from reconciler.objects import Objects
from reconciler.reader import LedgerDamaged
from reconciler.snapshots import (
    DAY_MS,
    SnapshotDamaged,
    SnapshotPolicy,
    Snapshots,
    pack_snapshot,
    snapshot_path,
    unpack_snapshot,
)
from tests.ledgers import START_MS, Book

HOUR_MS = 3_600_000


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(Objects.open(str(tmp_path)), "store")


@pytest.fixture
def snapshots(archive: Archive) -> Snapshots:
    return Snapshots(archive)


def folded(book: Book) -> PartitionState:
    fold = Fold()
    fold.apply_all(entry.decode() for entry in book.entries)
    fold.state.prune(fold.state.at_ms)
    return fold.state


async def replace(archive: Archive, path: str, data: bytes) -> None:
    await archive.objects.delete(path)
    assert await archive.objects.put_new(path, data)


async def flip_a_byte(archive: Archive, path: str, *, place: int = -40) -> None:
    data = await archive.objects.get(path)
    assert data is not None
    spoiled = bytearray(data)
    spoiled[place] ^= 1
    await replace(archive, path, bytes(spoiled))


async def test_a_snapshot_is_the_fold_of_the_segments(
    archive: Archive, snapshots: Snapshots
) -> None:
    book = Book()
    book.trade(5)
    await book.archive(archive)
    made = await snapshots.make(0)
    assert made is not None
    assert made.path == archive.path(snapshot_path(0, book.sequence))
    assert (made.entries, made.base_sequence) == (len(book.entries), 0)
    found = await snapshots.read(made.path)
    state = folded(book)
    assert found.state == state
    assert found.header == made.header
    assert (made.header.rows, made.header.reservations) == (5, len(state.reservations))
    assert (made.header.sequence, made.header.at_ms) == (book.sequence, book.at_ms)
    assert not made.header.origin


async def test_the_next_one_is_folded_from_the_one_before(
    archive: Archive, snapshots: Snapshots
) -> None:
    book = Book()
    book.trade(3)
    await book.archive(archive)
    first = await snapshots.make(0)
    assert await snapshots.make(0) is None
    book.trade(2)
    await book.archive(archive)
    assert await snapshots.make(0, min_entries=1_000) is None
    second = await snapshots.make(0)
    assert first is not None
    assert second is not None
    assert second.base_sequence == first.header.sequence
    assert (await snapshots.read(second.path)).state == folded(book)
    assert [name.sequence for name in await snapshots.names(0)] == [
        first.header.sequence,
        second.header.sequence,
    ]
    assert await snapshots.make(1) is None


async def test_what_the_store_has_forgotten_is_not_in_it(
    archive: Archive, snapshots: Snapshots
) -> None:
    book = Book()
    book.receive(the_id="old")
    book.at_ms += RETENTION_MS
    book.receive(the_id="new")
    await book.archive(archive)
    await snapshots.make(0)
    found = await snapshots.newest(0)
    assert found is not None
    assert set(found.state.seen) == {"new"}


def test_every_flipped_byte_is_found() -> None:
    book = Book()
    book.trade(1)
    state = folded(book)
    path = snapshot_path(0, state.sequence)
    header = snapshots_module.SnapshotHeader(1, 0, state.sequence, "1-1", 1, len(state.rows), 1, 1)
    data = pack_snapshot(header, state)
    assert unpack_snapshot(path, data).state == state
    for place in range(len(data)):
        with pytest.raises(SnapshotDamaged):
            unpack_snapshot(path, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


@pytest.mark.parametrize("place", [0, 10, -40])
async def test_a_damaged_one_is_passed_over_for_the_one_before(
    archive: Archive, snapshots: Snapshots, place: int
) -> None:
    book = Book()
    made = []
    for _ in range(3):
        book.trade(2)
        await book.archive(archive)
        made.append(await snapshots.make(0))
    assert made[1] is not None
    assert made[2] is not None
    await flip_a_byte(archive, made[2].path, place=place)
    found = await snapshots.newest(0)
    assert found is not None
    assert found.path == made[1].path
    assert [damage.path for damage in snapshots.damages] == [made[2].path]
    # The same one can be made again, in its place.
    again = await snapshots.make(0)
    assert again is not None
    assert (again.path, again.base_sequence) == (made[2].path, made[1].header.sequence)
    assert (await snapshots.read(again.path)).state == folded(book)


async def test_one_that_was_made_for_another_place_is_damaged(
    archive: Archive, snapshots: Snapshots
) -> None:
    book = Book()
    book.trade(2)
    await book.archive(archive)
    made = await snapshots.make(0)
    assert made is not None
    data = await archive.objects.get(made.path)
    assert data is not None
    elsewhere = archive.path(snapshot_path(1, made.header.sequence))
    await replace(archive, elsewhere, data)
    assert await snapshots.newest(1) is None
    assert "another place" in snapshots.damages[0].reason
    with pytest.raises(SnapshotDamaged, match="is missing"):
        await snapshots.read(archive.path(snapshot_path(1, 1)))


async def test_the_newest_up_to_a_sequence_or_a_moment(
    archive: Archive, snapshots: Snapshots
) -> None:
    book = Book()
    ends = []
    for _ in range(3):
        book.receive()
        await book.archive(archive)
        made = await snapshots.make(0)
        assert made is not None
        ends.append(made.header)
        book.at_ms += 10
    for until_sequence, wanted in ((0, None), (1, 1), (2, 2), (99, 3)):
        found = await snapshots.newest(0, until_sequence=until_sequence)
        assert (None if found is None else found.header.sequence) == wanted
    for until_ms, wanted in (
        (START_MS - 1, None),
        (START_MS, 1),
        (START_MS + 19, 2),
        (START_MS + 20, 3),
    ):
        found = await snapshots.newest(0, until_ms=until_ms)
        assert (None if found is None else found.header.sequence) == wanted
    state = await snapshots.state(0, 2)
    assert state is not None
    assert state.sequence == 2
    assert [one.header for one in await snapshots.listing(0)] == ends


@pytest.mark.parametrize("damage", ["missing", "spoiled"])
async def test_none_is_made_over_a_gap(archive: Archive, snapshots: Snapshots, damage: str) -> None:
    book = Book()
    book.trade(5)
    paths = await book.archive(archive)
    if damage == "missing":
        await archive.objects.delete(paths[1])
    else:
        await flip_a_byte(archive, paths[1])
    with pytest.raises(LedgerDamaged, match="lacks 6 to 10"):
        await snapshots.make(0)
    assert await snapshots.names(0) == []


async def test_a_gap_that_somebody_knows_of_is_no_obstacle(
    archive: Archive, snapshots: Snapshots
) -> None:
    book = Book()
    book.receive()
    book.skip(2)
    book.receive()
    await book.archive(archive)
    with pytest.raises(LedgerDamaged, match="lacks 2 to 3"):
        await snapshots.make(0)
    book.acknowledge_gap(2, 3)
    await book.archive(archive)
    made = await snapshots.make(0)
    assert made is not None
    assert made.header.sequence == book.sequence


async def test_a_snapshot_covers_a_segment_that_is_damaged_later(
    archive: Archive, snapshots: Snapshots
) -> None:
    book = Book()
    book.trade(3)
    paths = await book.archive(archive)
    await snapshots.make(0)
    await archive.objects.delete(paths[1])
    book.trade(1)
    await book.archive(archive)
    made = await snapshots.make(0)
    assert made is not None
    assert (await snapshots.read(made.path)).state == folded(book)


# Retention


async def hourly(
    archive: Archive, snapshots: Snapshots, hours: int, *, book: Book | None = None
) -> list[str]:
    """Make a snapshot each hour; return their paths."""
    book = book or Book()
    paths = []
    for _ in range(hours):
        book.receive()
        await book.archive(archive)
        made = await snapshots.make(0)
        assert made is not None
        paths.append(made.path)
        book.at_ms += HOUR_MS
    return paths


async def left(snapshots: Snapshots) -> list[str]:
    return [name.path for name in await snapshots.names(0)]


def last_of_days(hours: int) -> set[int]:
    """Return which of the hourly snapshots are the last of a day of UTC."""
    days = [(START_MS + hour * HOUR_MS) // DAY_MS for hour in range(hours)]
    return {hour for hour in range(hours) if hour + 1 == hours or days[hour] != days[hour + 1]}


async def test_the_last_ones_and_the_last_of_each_day_stay(
    archive: Archive, snapshots: Snapshots
) -> None:
    paths = await hourly(archive, snapshots, 80)
    pruned = await snapshots.prune(0, SnapshotPolicy(keep_last=4, daily_days=3))
    wanted = {*range(76, 80), *sorted(last_of_days(80))[-3:]}
    assert await left(snapshots) == [paths[hour] for hour in sorted(wanted)]
    assert set(pruned.removed) == set(paths) - {paths[hour] for hour in wanted}
    assert pruned.kept_for_segments == ()


async def test_days_stay_however_often_it_is_pruned(archive: Archive, snapshots: Snapshots) -> None:
    book = Book()
    paths: list[str] = []
    for _ in range(60):
        paths += await hourly(archive, snapshots, 1, book=book)
        await snapshots.prune(0, SnapshotPolicy(keep_last=2, daily_days=30))
    wanted = last_of_days(60) | {58, 59}
    assert await left(snapshots) == [paths[hour] for hour in sorted(wanted)]


@pytest.mark.parametrize("policy", [SnapshotPolicy(0, 0), SnapshotPolicy(1, 0)])
async def test_two_stay_whatever_is_asked(
    archive: Archive, snapshots: Snapshots, policy: SnapshotPolicy
) -> None:
    paths = await hourly(archive, snapshots, 5)
    await snapshots.prune(0, policy)
    assert await left(snapshots) == paths[-2:]


async def test_nothing_goes_while_too_few_are_good(archive: Archive, snapshots: Snapshots) -> None:
    paths = await hourly(archive, snapshots, 4)
    for path in paths[-2:]:
        await flip_a_byte(archive, path)
    pruned = await snapshots.prune(0, SnapshotPolicy(2, 0))
    assert pruned.removed == ()
    assert await left(snapshots) == paths


async def test_damaged_ones_go_once_enough_are_good(archive: Archive, snapshots: Snapshots) -> None:
    paths = await hourly(archive, snapshots, 5)
    await flip_a_byte(archive, paths[1], place=0)
    await flip_a_byte(archive, paths[4])
    await snapshots.prune(0, SnapshotPolicy(3, 0))
    assert await left(snapshots) == paths[2:4]


@pytest.mark.parametrize("damage", ["missing", "spoiled"])
async def test_one_that_segments_cannot_replace_stays(
    archive: Archive, snapshots: Snapshots, damage: str
) -> None:
    paths = await hourly(archive, snapshots, 6)
    segments = await archive.segment_paths(0)
    if damage == "missing":
        await archive.objects.delete(segments[1])
    else:
        await flip_a_byte(archive, segments[1])
    pruned = await snapshots.prune(0, SnapshotPolicy(2, 0))
    assert pruned.kept_for_segments == (paths[1],)
    assert await left(snapshots) == [paths[1], *paths[4:]]


async def test_one_stays_wherever_too_much_would_have_to_be_replayed(
    archive: Archive, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots_module, "MAX_STRETCH_SEGMENTS", 3)
    paths = await hourly(archive, snapshots, 12)
    await snapshots.prune(0, SnapshotPolicy(2, 0))
    kept = [paths.index(path) for path in await left(snapshots)]
    assert kept[-2:] == [10, 11]
    assert all(later - earlier <= 4 for earlier, later in pairwise(kept))
    assert len(kept) < 6


async def test_what_a_rebuilt_store_begins_with_stays(
    archive: Archive, snapshots: Snapshots
) -> None:
    book = Book()
    book.trade(1)
    path, header = await snapshots.write(0, folded(book), origin=True)
    assert header.origin
    book._archived = len(book.entries)
    paths = await hourly(archive, snapshots, 4, book=book)
    await snapshots.prune(0, SnapshotPolicy(2, 0))
    assert await left(snapshots) == [path, *paths[-2:]]


async def test_one_call_removes_a_bounded_number(
    archive: Archive, snapshots: Snapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots_module, "MAX_PRUNED", 2)
    paths = await hourly(archive, snapshots, 7)
    counts: Sequence[int] = [
        len((await snapshots.prune(0, SnapshotPolicy(2, 0))).removed) for _ in range(4)
    ]
    assert counts == [2, 2, 1, 0]
    assert await left(snapshots) == paths[-2:]
