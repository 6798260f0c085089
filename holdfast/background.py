"""The background process, one a deployment: what goes on behind the counter.

Expired holds, orders and claims that are to be driven on, events of tills, shortfalls, split rows,
silent stores, the archive, webhooks and the index.

Run as `python -m holdfast.background`; `holdfast serve` starts it. It takes the store from
HOLDFAST_REDIS_URL, the reconciler's settings from the variables that `reconciler.settings` names,
and stops on SIGTERM or SIGINT.
"""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from typing import Final

import structlog
import uvloop

from engine import metrics, tracing
from engine.claim_driver import ClaimDriver
from engine.feeds import Feeds
from engine.inventory import Inventory
from engine.offline import OfflineKeeper
from engine.order_driver import OrderDriver
from engine.outcomes import StoreUnavailable
from engine.shortfalls import ShortfallKeeper
from engine.splits import SplitKeeper
from engine.store import StoreSettings
from engine.sweeper import Sweeper
from engine.tracing import TracingRefused
from gateway import logs
from gateway.settings import SettingRefused as SwitchRefused
from gateway.settings import read_switch
from gateway.webhook_worker import WebhookWorker
from holdfast.intake import Intake
from projection.database import open_database
from projection.follower import IndexFollower
from reconciler.loop import Reconciler
from reconciler.settings import ReconcilerSettings, SettingRefused

OPEN_RETRY_SECONDS: Final = 0.5
MAX_OPEN_ATTEMPTS: Final = 120

log = structlog.get_logger()


async def run(
    settings: StoreSettings,
    upkeep: ReconcilerSettings,
    *,
    webhook_loopback: bool = False,
    index_url: str = "",
) -> int:
    """Work until told to stop; return the exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    inventory = await _open(settings, stop)
    if inventory is None:
        return 0 if stop.is_set() else 3
    database = open_database(index_url) if index_url else None
    try:
        log.info("background process runs", partitions=inventory.partitions)
        async with asyncio.TaskGroup() as group:
            group.create_task(_count(stop))
            group.create_task(Sweeper(inventory).run(stop))
            group.create_task(Reconciler(inventory, upkeep).run(stop))
            group.create_task(OrderDriver(inventory).run(stop))
            group.create_task(ClaimDriver(inventory).run(stop))
            group.create_task(ShortfallKeeper(inventory).run(stop))
            group.create_task(SplitKeeper(inventory.splits).run(stop))
            group.create_task(OfflineKeeper(inventory, Feeds(inventory)).run(stop))
            group.create_task(Intake(inventory, Feeds(inventory)).run(stop))
            webhooks = WebhookWorker(inventory, loopback=webhook_loopback)
            group.create_task(webhooks.run(stop))
            if database is not None:
                group.create_task(IndexFollower(inventory, database).run(stop))
    finally:
        if database is not None:
            await database.close()
        await inventory.close()
    return 0


async def _count(stop: asyncio.Event) -> None:
    """Hand on what was counted, once a second and at the end."""
    while not stop.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(metrics.SETTLE_SECONDS):
                await stop.wait()
        metrics.settle()


async def _open(settings: StoreSettings, stop: asyncio.Event) -> Inventory | None:
    """Wait for the store; it may still be starting, or be loading its data."""
    for attempt in range(MAX_OPEN_ATTEMPTS):
        if stop.is_set():
            return None
        try:
            return await Inventory.open(settings)
        except StoreUnavailable as error:
            if attempt == 0:
                log.warning("waiting for the store", error=str(error))
        try:
            async with asyncio.timeout(OPEN_RETRY_SECONDS):
                await stop.wait()
        except TimeoutError:
            continue
    log.error("the store did not come up")
    return None


def main() -> None:
    """Run as a process."""
    try:
        settings = StoreSettings.from_environment(os.environ)
    except KeyError:
        sys.exit("holdfast.background: set HOLDFAST_REDIS_URL to the store's address")
    try:
        upkeep = ReconcilerSettings.from_environment(os.environ)
    except SettingRefused as refusal:
        sys.exit(f"holdfast.background: {refusal}")
    logs.configure(
        level=os.environ.get("HOLDFAST_LOG_LEVEL") or "info",
        log_format=os.environ.get("HOLDFAST_LOG_FORMAT") or "auto",
    )
    try:
        loopback = read_switch(os.environ, "HOLDFAST_WEBHOOK_LOOPBACK")
    except SwitchRefused as refusal:
        sys.exit(f"holdfast.background: {refusal}")
    try:
        tracing.start(os.environ, process="background")
    except TracingRefused as refusal:
        sys.exit(f"holdfast.background: {refusal}")
    index_url = os.environ.get("HOLDFAST_INDEX_URL", "")
    work = run(settings, upkeep, webhook_loopback=loopback, index_url=index_url)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            sys.exit(runner.run(work))
    finally:
        tracing.stop()


if __name__ == "__main__":
    main()
