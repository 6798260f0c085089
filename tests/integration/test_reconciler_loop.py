"""The reconciler's loop: jobs that fail alone, alarms, and what it tells in the store."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import structlog

from engine.upkeep import UpkeepStatus, read_upkeep
from gateway.service import Service
from reconciler import loop as loop_module
from reconciler.archiver import read_position
from reconciler.loop import Reconciler
from reconciler.objects import ArchiveUnavailable
from reconciler.settings import ReconcilerSettings
from reconciler.snapshots import Snapshots
from tests.shop import LOCATION, Shop, open_shop
from tests.stores import MakeStore, RealStore, eventually, set_up

WAIT_SECONDS: Final = 20.0
PARTITIONS: Final = 4


@pytest.fixture
async def store(make_store: MakeStore) -> RealStore:
    real = make_store(extra_config=["stream-node-max-entries 1"])
    await real.start()
    await set_up(real.settings, partitions=PARTITIONS)
    return real


@pytest.fixture
async def shop(store: RealStore) -> AsyncIterator[Shop]:
    async with open_shop(store.settings) as opened:
        yield opened


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds that follow each other at once; every wait of a test is on what they do."""
    for name in (
        "ARCHIVE_INTERVAL",
        "SNAPSHOT_CHECK",
        "AUDIT_INTERVAL",
        "WATCH_INTERVAL",
        "RESTART",
    ):
        monkeypatch.setattr(loop_module, f"{name}_SECONDS", 0.02)


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as events:
        yield events


def settings(folder: Path, **changes: Any) -> ReconcilerSettings:
    told: dict[str, Any] = {
        "archive_url": str(folder),
        "resume_window_seconds": 0,
        "segment_age_seconds": 0,
        "snapshot_interval_seconds": 1,
        "audit_rows_per_second": 100_000,
    }
    return ReconcilerSettings(**(told | changes))


@asynccontextmanager
async def running(reconciler: Reconciler) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(reconciler.run(stop))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(WAIT_SECONDS):
            await task


async def status_of(shop: Shop) -> UpkeepStatus:
    """Wait for a status that is newer than this call."""
    await shop.client.execute_command("DEL", "{hf}:reconciler")
    found: UpkeepStatus | None = None

    async def is_there() -> bool:
        nonlocal found
        found = await read_upkeep(shop.inventory.store)
        return found is not None

    await eventually(is_there, within_seconds=WAIT_SECONDS)
    assert found is not None
    return found


async def archived(shop: Shop) -> int:
    return (await read_position(shop.inventory.store, shop.keys())).sequence


async def sequence(shop: Shop) -> int:
    return int(await shop.client.execute_command("HGET", shop.keys().meta, "sequence"))


async def test_it_archives_trims_and_makes_snapshots_while_the_shop_sells(
    shop: Shop, tmp_path: Path
) -> None:
    reconciler = Reconciler(shop.inventory, settings(tmp_path))
    async with running(reconciler):
        await shop.receive("tea", 1_000)
        for _ in range(50):
            held = await shop.reserve([("tea", 1)])
            await shop.commit(held.reservation.id)
        total = await sequence(shop)

        async def all_archived() -> bool:
            return await archived(shop) == total

        await eventually(all_archived, within_seconds=WAIT_SECONDS)

        async def has_snapshot() -> bool:
            return (
                await Snapshots(await reconciler.open()).newest(shop.keys().partition) is not None
            )

        await eventually(has_snapshot, within_seconds=WAIT_SECONDS)

        # A round is told when it ends, which is after what it does can be seen.
        async def has_told_both() -> bool:
            told = await status_of(shop)
            return told.archived_at_ms > 0 and told.snapshot_at_ms > 0

        await eventually(has_told_both, within_seconds=WAIT_SECONDS)
        told = await status_of(shop)
    assert (told.archive, told.behind_operations, told.behind_ms) == ("ok", 0, 0)
    assert told.alarms == ()
    assert int(await shop.client.execute_command("XLEN", shop.keys().ledger)) < total
    newest = await Snapshots(await reconciler.open()).newest(shop.keys().partition)
    assert newest is not None
    row = newest.state.rows[shop.merchant, LOCATION, "tea"]
    assert row.on_hand >= 950


async def test_an_archive_that_is_down_alarms_and_blocks_nothing_else(
    shop: Shop, tmp_path: Path, logged: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "MAX_BEHIND_OPERATIONS", 5)
    # A file where the folder should be: it can neither be listed nor written.
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    async with running(Reconciler(shop.inventory, settings(blocked / "archive"))):
        await shop.receive("tea", 100)
        for _ in range(10):
            assert (await shop.reserve([("tea", 1)])).reservation.lines

        async def both_alarm() -> bool:
            told = await status_of(shop)
            return {alarm.code for alarm in told.alarms} >= {"archive_failing", "archive_behind"}

        await eventually(both_alarm, within_seconds=WAIT_SECONDS)
        told = await status_of(shop)
        assert told.archive == "failing"
        assert told.behind_operations == 11
        assert "ArchiveUnavailable" in told.failing["archive"]
        assert any(e["event"] == "ALARM" and e["code"] == "archive_failing" for e in logged)
        # It heals by itself, and catches up.
        blocked.unlink()

        async def healed() -> bool:
            told = await status_of(shop)
            return told.archive == "ok" and told.behind_operations == 0 and not told.alarms

        await eventually(healed, within_seconds=WAIT_SECONDS)
    alarms = [e for e in logged if e["event"] == "ALARM" and e["code"] == "archive_failing"]
    assert len(alarms) == 1, "an alarm is not repeated at every round"


async def test_memory_alarms_before_it_is_full(
    shop: Shop, store: RealStore, tmp_path: Path, logged: list[Any]
) -> None:
    info = await store.run("INFO", "memory")
    await store.run("CONFIG", "SET", "maxmemory", int(info["used_memory"] * 1.2))
    async with running(Reconciler(shop.inventory, settings(tmp_path))):

        async def alarms() -> bool:
            told = await status_of(shop)
            return "memory_high" in {alarm.code for alarm in told.alarms}

        await eventually(alarms, within_seconds=WAIT_SECONDS)
        told = await status_of(shop)
        assert told.memory_limit_bytes == int(info["used_memory"] * 1.2)
        assert any(e["event"] == "ALARM" and e["code"] == "memory_high" for e in logged)
        await store.run("CONFIG", "SET", "maxmemory", 0)

        async def over() -> bool:
            return not (await status_of(shop)).alarms

        await eventually(over, within_seconds=WAIT_SECONDS)
    assert any(e["event"] == "an alarm is over" for e in logged)


async def test_the_running_audit_finds_what_was_edited_by_hand(
    shop: Shop, store: RealStore, tmp_path: Path, logged: list[Any]
) -> None:
    await shop.receive("tea", 100)
    async with running(Reconciler(shop.inventory, settings(tmp_path))):

        async def was_audited() -> bool:
            told = await status_of(shop)
            return told.audited_at_ms > 0 and told.findings == 0 and not told.alarms

        await eventually(was_audited, within_seconds=WAIT_SECONDS)
        row = shop.keys().stock(shop.merchant, LOCATION, "tea")
        await store.run("HSET", row, "on_hand", 101)

        async def alarms() -> bool:
            told = await status_of(shop)
            return "audit_findings" in {alarm.code for alarm in told.alarms}

        await eventually(alarms, within_seconds=WAIT_SECONDS)
        await store.run("HSET", row, "on_hand", 100)
        await eventually(was_audited, within_seconds=WAIT_SECONDS)
    assert any(e["event"] == "ALARM" and e["code"] == "audit_findings" for e in logged)


async def test_a_bug_in_one_job_leaves_the_others_at_work(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    async def broken(*_: Any, **__: Any) -> int:
        nonlocal calls
        calls += 1
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr(Reconciler, "snapshots", broken)
    async with running(Reconciler(shop.inventory, settings(tmp_path))):
        await shop.receive("tea", 1)

        async def is_archived() -> bool:
            return await archived(shop) == 1

        await eventually(is_archived, within_seconds=WAIT_SECONDS)

        async def was_tried_again() -> bool:
            return calls > 1

        await eventually(was_tried_again, within_seconds=WAIT_SECONDS)
        told = await status_of(shop)
    assert "ZeroDivisionError" in told.failing["snapshots"]
    assert [alarm.code for alarm in told.alarms] == ["snapshots_failing"]
    assert told.archive == "ok"


async def test_a_damaged_partition_does_not_keep_the_others(shop: Shop, tmp_path: Path) -> None:
    # Two locations of different partitions; where the first one's segment goes lies something else.
    places = {shop.keys(name).partition: name for name in (f"store {n}" for n in range(64))}
    (bad, bad_place), (good, good_place) = list(places.items())[:2]
    reconciler = Reconciler(shop.inventory, settings(tmp_path))
    archive = await reconciler.open()
    await archive.objects.put_new(archive.path(f"ledger/{bad:04d}/{1:020d}.segment"), b"nonsense")
    await shop.receive("tea", 1, location=bad_place)
    await shop.receive("tea", 1, location=good_place)
    async with running(reconciler):

        async def is_archived() -> bool:
            position = await read_position(shop.inventory.store, shop.keys(good_place))
            return position.sequence == 1

        await eventually(is_archived, within_seconds=WAIT_SECONDS)

        async def is_told() -> bool:
            told = await status_of(shop)
            return told.archive == "failing" and f"{bad:04d}" in told.failing["archive"]

        await eventually(is_told, within_seconds=WAIT_SECONDS)
    assert good != bad


async def test_two_of_them_share_the_work_without_a_double(shop: Shop, tmp_path: Path) -> None:
    one = Reconciler(shop.inventory, settings(tmp_path))
    two = Reconciler(shop.inventory, settings(tmp_path))
    async with running(one), running(two):
        await shop.receive("tea", 1_000)
        for _ in range(40):
            await shop.reserve([("tea", 1)])

        async def all_archived() -> bool:
            return await archived(shop) == 41

        await eventually(all_archived, within_seconds=WAIT_SECONDS)
    expected = 1
    async for _, segment in (await one.open()).segments(shop.keys().partition):
        assert segment.header.first_sequence == expected
        expected = segment.header.last_sequence + 1
    assert expected == 42


async def test_without_an_archive_it_says_so_and_still_watches(shop: Shop) -> None:
    async with running(Reconciler(shop.inventory, ReconcilerSettings())):
        await shop.receive("tea", 1)
        told = await status_of(shop)
    assert told.archive == "off"
    assert [alarm.code for alarm in told.alarms] == ["archive_off"]


async def test_an_outage_of_the_store_is_waited_out(
    shop: Shop, store: RealStore, tmp_path: Path
) -> None:
    async with running(Reconciler(shop.inventory, settings(tmp_path))):
        await shop.receive("tea", 1)
        store.kill9()
        await store.start()
        await shop.receive("tea", 1)

        async def is_archived() -> bool:
            return await archived(shop) == 2

        await eventually(is_archived, within_seconds=WAIT_SECONDS)


async def test_readyz_warns_and_stays_ready(shop: Shop, store: RealStore) -> None:
    service = Service(store.settings)
    await service.start()
    try:
        async with running(Reconciler(shop.inventory, ReconcilerSettings())):
            await status_of(shop)

            async def warns() -> bool:
                readiness = await service.readiness()
                return any("archive_off" in warning for warning in readiness.warnings)

            await eventually(warns, within_seconds=WAIT_SECONDS)
            assert (await service.readiness()).reasons == []
    finally:
        await service.stop()


async def test_an_archive_that_cannot_be_opened_is_told_by_its_own_exception(
    shop: Shop, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArchiveUnavailable):
        await Reconciler(shop.inventory, settings(tmp_path / "file" / "archive")).archive()


async def test_the_background_process_runs_it_and_ends_in_order(
    shop: Shop, store: RealStore, tmp_path: Path
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "holdfast.background"),
        env=os.environ
        | {
            "HOLDFAST_REDIS_URL": store.settings.url,
            "HOLDFAST_REDIS_USERNAME": store.settings.username,
            "HOLDFAST_REDIS_PASSWORD": store.settings.password,
            "HOLDFAST_ARCHIVE_URL": str(tmp_path / "archive"),
            "HOLDFAST_SEGMENT_AGE_SECONDS": "0",
            "HOLDFAST_LOG_FORMAT": "json",
        },
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        await shop.receive("tea", 1)

        async def is_archived() -> bool:
            return await archived(shop) == 1

        await eventually(is_archived, within_seconds=WAIT_SECONDS)
    finally:
        process.terminate()
        _, said = await process.communicate()
    assert process.returncode == 0
    events = [json.loads(line)["event"] for line in said.decode().splitlines()]
    # It says that it archived at the end of a round, which the signal may have cut short.
    assert "background process runs" in events
