"""Jobs on real stores: plan, apply exactly that, once; over HTTP, and past a killed worker."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from engine import jobs as jobs_module
from engine.access import Role
from engine.jobs import MAX_OPEN, MAX_TAKEN, Job, JobKind, Jobs, JobState, RepairResult
from engine.keys import JOB_RESULTS_KEY, JOBS_KEY
from engine.ledger import OperationKind
from reconciler import jobs as worker_module
from reconciler.account import Snapshots as FindSnapshot
from reconciler.archive import Archive
from reconciler.jobs import JobWorker
from reconciler.snapshots import Snapshots
from tests.damage import DamagedShop, damaged_shop, trade
from tests.faults.reconciler_worker import Job as Told
from tests.gateways import Api, assert_problem
from tests.shop import LOCATION
from tests.stores import MakeStore, eventually

WAIT_SECONDS: Final = 30.0


@pytest.fixture
async def damaged(make_store: MakeStore, tmp_path: Path) -> AsyncIterator[DamagedShop]:
    async with damaged_shop(make_store, tmp_path) as opened:
        yield opened


def worker_of(it: DamagedShop, owner: str = "test") -> JobWorker:
    async def found() -> tuple[Archive, FindSnapshot]:
        return it.archive, Snapshots(it.archive).state

    return JobWorker(it.inventory, found, owner=owner)


async def ask(it: DamagedShop, kind: JobKind, key: str, **more: str) -> Job:
    job, _ = await Jobs(it.inventory).submit(key=key, kind=kind, actor="key:tester", **more)
    return job


async def done(it: DamagedShop, kind: JobKind, key: str, **more: str) -> tuple[Job, RepairResult]:
    """Ask for a repair's plan or application, have it done, and return what came of it."""
    job = await ask(it, kind, key, **more)
    await worker_of(it).round()
    ended = await Jobs(it.inventory).read(job.id)
    result = await Jobs(it.inventory).result(job.id)
    assert ended is not None
    assert result is not None, ended
    assert result.repair is not None
    assert ended.state is JobState.DONE
    return ended, result.repair


async def repairs(it: DamagedShop) -> list[list[Any]]:
    """Return the repairs in the ledger of the shop's partition, by what they say of themselves."""
    found = []
    for _, fields in await it.run("XRANGE", it.keys.ledger, "-", "+"):
        flat = fields if isinstance(fields, dict) else dict(zip(*[iter(fields)] * 2, strict=True))
        found += [
            operation
            for operation in msgspec.msgpack.decode(flat[b"ops"])
            if operation[0] == OperationKind.REPAIR
        ]
    return found


async def harm(it: DamagedShop) -> None:
    await trade(it.shop)
    await it.run("HINCRBY", it.stock_key("apple"), "on_hand", 5)
    await it.run("HINCRBY", it.stock_key("pear"), "safety_stock", 3)


async def test_exactly_the_plan_is_applied_and_once(damaged: DamagedShop) -> None:
    await trade(damaged.shop)
    before = await damaged.shop.row("apple")
    await damaged.run("HINCRBY", damaged.stock_key("apple"), "on_hand", 5)
    plan, planned = await done(damaged, JobKind.REPAIR_PLAN, "plan")
    assert planned.findings >= planned.steps == 1
    assert planned.appliable
    (step,) = planned.shown
    assert (step.type, step.sku, step.location) == ("row", "apple", LOCATION)
    assert await repairs(damaged) == []

    _, applied = await done(
        damaged, JobKind.REPAIR_APPLY, "apply", plan=plan.id, reason="somebody edited it"
    )
    assert applied.by_verdict == {"done": 1}
    assert (await damaged.shop.row("apple")).on_hand == before.on_hand
    (operation,) = await repairs(damaged)
    assert "key:tester" in operation
    assert "somebody edited it" in operation[7]

    _, again = await done(
        damaged, JobKind.REPAIR_APPLY, "apply again", plan=plan.id, reason="to be sure"
    )
    assert again.by_verdict == {"already": 1}
    assert len(await repairs(damaged)) == 1
    _, clean = await done(damaged, JobKind.REPAIR_PLAN, "plan again")
    assert (clean.findings, clean.steps, clean.appliable) == (0, 0, False)


async def test_what_moved_on_since_the_plan_is_left_alone(damaged: DamagedShop) -> None:
    await harm(damaged)
    plan, planned = await done(damaged, JobKind.REPAIR_PLAN, "plan")
    assert planned.steps == 2
    await damaged.shop.receive("apple", 1)
    _, applied = await done(damaged, JobKind.REPAIR_APPLY, "apply", plan=plan.id, reason="why")
    assert applied.by_verdict == {"stale": 1, "done": 1}
    assert [(one.sku, one.verdict) for one in applied.shown] == [
        ("apple", "stale"),
        ("pear", "done"),
    ]
    assert len(await repairs(damaged)) == 1


async def test_a_job_whose_worker_was_killed_in_its_middle_is_taken_up_and_done_once(
    damaged: DamagedShop,
) -> None:
    await harm(damaged)
    plan, planned = await done(damaged, JobKind.REPAIR_PLAN, "plan")
    asked = await ask(damaged, JobKind.REPAIR_APPLY, "apply", plan=plan.id, reason="why")
    # The worker that planned has the lease for some seconds more.
    await damaged.run("DEL", damaged.inventory.keys[0].lease("jobs"))
    told = Told(damaged.store.settings, str(damaged.folder), "killed")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.reconciler_worker", "repair"),
        msgspec.json.encode(told).decode(),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(WAIT_SECONDS):
            async for line in process.stdout:
                if line.decode().strip() == "repair_apply":
                    break
    finally:
        process.kill()
        await process.communicate()
    left = await Jobs(damaged.inventory).read(asked.id)
    assert left is not None
    assert (left.state, left.taken) == (JobState.RUNNING, 1)
    assert len(await repairs(damaged)) == planned.steps

    other = worker_of(damaged, "another")

    async def is_taken_up() -> bool:
        return await other.round() == 1

    await eventually(is_taken_up, within_seconds=WAIT_SECONDS)
    ended = await Jobs(damaged.inventory).read(asked.id)
    result = await Jobs(damaged.inventory).result(asked.id)
    assert ended is not None
    assert (ended.state, ended.taken) == (JobState.DONE, 2)
    assert result is not None
    assert result.repair is not None
    assert result.repair.by_verdict == {"already": planned.steps}
    assert len(await repairs(damaged)) == planned.steps


async def test_a_job_that_ends_its_worker_each_time_fails_in_the_end(
    damaged: DamagedShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def kill(_: object) -> list[Any]:
        raise Killed

    monkeypatch.setattr(worker_module, "plan", kill)
    asked = await ask(damaged, JobKind.REPAIR_PLAN, "plan")
    for _ in range(MAX_TAKEN):
        with pytest.raises(Killed):
            await worker_of(damaged).round()
    assert await worker_of(damaged).round() == 0
    ended = await Jobs(damaged.inventory).read(asked.id)
    assert ended is not None
    assert ended.state is JobState.FAILED
    assert f"{MAX_TAKEN} times" in ended.problem


async def test_a_plan_of_too_many_steps_is_for_the_command_line(
    damaged: DamagedShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "MAX_STEPS", 1)
    await harm(damaged)
    plan, planned = await done(damaged, JobKind.REPAIR_PLAN, "plan")
    assert (planned.steps, planned.appliable) == (2, False)
    asked = await ask(damaged, JobKind.REPAIR_APPLY, "apply", plan=plan.id, reason="why")
    await worker_of(damaged).round()
    ended = await Jobs(damaged.inventory).read(asked.id)
    assert ended is not None
    assert ended.state is JobState.FAILED
    assert await repairs(damaged) == []


async def test_ended_jobs_make_room_and_all_are_gone_a_day_later(
    damaged: DamagedShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "MAX_KEPT", 2)
    jobs = Jobs(damaged.inventory)
    for number in range(4):
        await done(damaged, JobKind.REPAIR_PLAN, f"plan {number}")
    assert len(await jobs.list()) == 2
    assert int(await damaged.run("HLEN", JOB_RESULTS_KEY)) == 2
    for key in (JOBS_KEY, JOB_RESULTS_KEY):
        assert 0 < int(await damaged.run("PTTL", key)) <= jobs_module.KEPT_MS


async def test_jobs_over_http(damaged: DamagedShop) -> None:
    await damaged.shop.receive("apple", 10)
    async with Api(damaged.store.settings, damaged.shop.merchant) as api:
        platform = await api.client(Role.ADMIN, merchant=None)
        path, plan = "/v1/audit/jobs", {"kind": "repair_plan"}
        key = {"Idempotency-Key": "plan"}
        made = await platform.post(path, json=plan, headers=key)
        assert made.status_code == 202
        again = await platform.post(path, json=plan, headers=key)
        assert again.headers["idempotent-replayed"] == "true"
        assert again.json() == made.json()
        blast = {"kind": "import_blast_radius", "without": "delivery", "merchant": "nobody"}
        assert_problem(
            await platform.post(path, json=blast, headers=key), 422, "idempotency_key_reused"
        )
        told = made.json()["id"]
        for body, field in (
            ({"kind": "repair_apply", "plan": told, "reason": "why"}, "plan"),
            ({"kind": "repair_apply", "plan": "job_none", "reason": "why"}, "plan"),
            ({"kind": "repair_apply", "plan": told}, "reason"),
            ({"kind": "import_blast_radius"}, "without"),
            ({"kind": "repair_plan", "without": "delivery"}, "without"),
        ):
            refused = await platform.post(
                path, json=body, headers={"Idempotency-Key": os.urandom(8).hex()}
            )
            assert_problem(refused, 400, "invalid_request")
            assert field in refused.text
        seen = (await platform.post(path, json=blast, headers={"Idempotency-Key": "b"})).json()
        assert await worker_of(damaged).round() == 2
        assert (await platform.get(f"{path}/{told}")).json()["repair"]["findings"] == 0
        assert (await platform.get(f"{path}/{seen['id']}")).json()["blast"]["operations"] == 0
        assert {one["state"] for one in (await platform.get(path)).json()["data"]} == {"done"}
        assert_problem(await platform.get(f"{path}/job_none"), 404, "not_found")
        for number in range(MAX_OPEN):
            await ask(damaged, JobKind.REPAIR_PLAN, f"plan {number}")
        full = await platform.post(path, json=plan, headers={"Idempotency-Key": "one more"})
        assert_problem(full, 422, "limit_exceeded")
