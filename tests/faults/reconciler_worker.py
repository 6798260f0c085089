"""A process of its own that archives, makes snapshots, rebuilds or repairs, to be killed in it.

Run as `python -m tests.faults.reconciler_worker <job> <JSON>`. It prints a line at each step that
it has done, and goes on at once: whoever reads the line and kills it meets it in the next one.
"""

import asyncio
import sys
from typing import Final

import msgspec

from engine.inventory import Inventory
from engine.jobs import Job as Asked
from engine.jobs import Jobs
from engine.store import Store, StoreSettings
from reconciler.account import Snapshots as FindSnapshot
from reconciler.archive import Archive, open_archive
from reconciler.archiver import Archiver, ArchiverSettings
from reconciler.jobs import JobWorker
from reconciler.objects import Objects
from reconciler.rebuild import rebuild
from reconciler.rebuild_plan import RebuildRequest
from reconciler.snapshots import Snapshots

SEGMENT_ENTRIES: Final = 3


class Job(msgspec.Struct, frozen=True):
    """What the process is told."""

    store: StoreSettings
    archive_url: str
    owner: str = ""
    partitions: int | None = None


def step(text: str) -> None:
    """Say that a step is done."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def archive(job: Job) -> None:
    """Archive round after round; the store forgets at once what it may."""
    inventory = await Inventory.open(job.store)
    settings = ArchiverSettings(
        min_age_ms=0, resume_window_ms=0, max_segment_entries=SEGMENT_ENTRIES
    )
    opened = await open_archive(inventory.store, job.archive_url)
    archiver = Archiver(inventory, opened, owner=job.owner, settings=settings)
    while True:
        for progress in await archiver.archive_all():
            if progress.segments:
                step(f"{progress.segments} segments")


async def snapshot(job: Job) -> None:
    """Make and remove snapshots, over and over."""
    inventory = await Inventory.open(job.store)
    archive = await open_archive(inventory.store, job.archive_url)
    while True:
        for partition in range(inventory.partitions):
            for name in (await Snapshots(archive).names(partition))[2:]:
                await archive.objects.delete(name.path)
            if await Snapshots(archive).make(partition) is not None:
                step("a snapshot")


async def rebuild_store(job: Job) -> None:
    """Rebuild into the store, and say so at the end."""
    target = await Store.open(job.store)
    request = RebuildRequest(actor="test", partitions=job.partitions)
    objects = Objects.open(job.archive_url)
    await rebuild(
        request,
        objects,
        target=target,
        on_progress=lambda progress: step(f"{progress.phase} {progress.done}"),
    )
    step("rebuilt")
    await target.close()


async def repair(job: Job) -> None:
    """Do what was asked for over HTTP, and stand still before it is put on record."""

    async def stand_still(_: Jobs, asked: Asked, *__: object, **___: object) -> None:
        step(asked.kind)
        await asyncio.Event().wait()

    Jobs.finish = stand_still  # type: ignore[method-assign, assignment]
    inventory = await Inventory.open(job.store)
    opened = await open_archive(inventory.store, job.archive_url)

    async def found() -> tuple[Archive, FindSnapshot]:
        return opened, Snapshots(opened).state

    await JobWorker(inventory, found, owner=job.owner).round()


JOBS: Final = {
    "archive": archive,
    "snapshot": snapshot,
    "rebuild": rebuild_store,
    "repair": repair,
}


def main() -> None:
    """Run as a process."""
    job = msgspec.json.decode(sys.argv[2], type=Job)
    asyncio.run(JOBS[sys.argv[1]](job))


if __name__ == "__main__":
    main()
