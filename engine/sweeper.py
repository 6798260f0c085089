"""The sweeper: gives the units of abandoned holds back, every 250 ms, partition by partition.

Any number of sweepers may run: the script that expires a hold checks again that it is due.
"""

import asyncio
import time
from typing import Final

import msgspec
import structlog

from engine import metrics
from engine.expiry import DueHolds
from engine.inventory import Inventory
from engine.keys import SWEEPER_KEY
from engine.outcomes import HoldfastError
from engine.store import Store

SWEEP_INTERVAL_MS: Final = 250
MAX_ROUNDS: Final = 50
"""Groups of due holds taken back in one partition before the others have their turn."""

MAX_PARTITIONS_AT_ONCE: Final = 8
STATUS_INTERVAL_MS: Final = 1_000
STATUS_TTL_MS: Final = 10_000
"""A status older than this is of a sweeper that no longer runs."""

log = structlog.get_logger()


class SweeperStatus(msgspec.Struct, frozen=True):
    """What the sweeper last did, as it tells in the store.

    `staying` holds are due and cannot be taken back.
    """

    state: str
    """`running`, or `halted` while the store's clock is off."""
    clock_jump_ms: int
    expired_total: int
    staying: int = 0


class Sweeper:
    """Sweeps until told to stop; outages of the store are waited out."""

    def __init__(self, inventory: Inventory) -> None:
        """Sweep every partition of `inventory`."""
        self._inventory = inventory
        self._expired_total = 0
        self._clock_jump_ms = 0
        self._staying = 0
        self._told_at_ms = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Sweep every 250 ms until `stop` is set."""
        while not stop.is_set():
            try:
                await self.sweep()
                await self._tell()
            except HoldfastError as error:
                log.warning("sweep failed", code=error.code, error=str(error))
            try:
                async with asyncio.timeout(SWEEP_INTERVAL_MS / 1000):
                    await stop.wait()
            except TimeoutError:
                continue

    async def sweep(self) -> int:
        """Take back what is due in every partition; return how many holds that were."""
        gate = asyncio.Semaphore(MAX_PARTITIONS_AT_ONCE)

        async def one(partition: int) -> DueHolds:
            async with gate:
                return await self._sweep_partition(partition)

        found = await asyncio.gather(
            *(one(partition) for partition in range(self._inventory.partitions))
        )
        expired = sum(result.expired for result in found)
        self._expired_total += expired
        self._staying = sum(result.staying for result in found)
        self._note_clock(max((result.clock_jump_ms for result in found), key=abs, default=0))
        return expired

    async def _sweep_partition(self, partition: int) -> DueHolds:
        expired = 0
        result = DueHolds(0, False, 0)
        for _ in range(MAX_ROUNDS):
            result = await self._inventory.expire_due(partition)
            expired += result.expired
            if not result.remaining or result.expired == 0:
                break
        return msgspec.structs.replace(result, expired=expired)

    def _note_clock(self, jump_ms: int) -> None:
        if jump_ms and not self._clock_jump_ms:
            log.error(
                "the store's clock jumped; no hold is expired until it is right again",
                clock_jump_ms=jump_ms,
                remedy="check the clock of the store's machine; if it is right now, restart the "
                "background process",
            )
        elif self._clock_jump_ms and not jump_ms:
            log.warning("the store's clock is right again; sweeping goes on")
        self._clock_jump_ms = jump_ms

    async def _tell(self) -> None:
        """Leave a sign of life that `/readyz` and `holdfast doctor` read."""
        now_ms = time.monotonic() * 1000
        if now_ms - self._told_at_ms < STATUS_INTERVAL_MS:
            return
        self._told_at_ms = now_ms
        status = SweeperStatus(
            "halted" if self._clock_jump_ms else "running",
            self._clock_jump_ms,
            self._expired_total,
            self._staying,
        )
        store = self._inventory.store
        started = time.perf_counter()
        await store.read([("GET", SWEEPER_KEY)])
        read_at = time.perf_counter()
        await store.read(
            [("SET", SWEEPER_KEY, msgspec.json.encode(status).decode(), "PX", STATUS_TTL_MS)]
        )
        # Both go the same way; only the write waits until it is on the disk.
        delay_seconds = (time.perf_counter() - read_at) - (read_at - started)
        metrics.FSYNC_DELAY.of().observe(max(0.0, delay_seconds))


async def read_sweeper(store: Store) -> SweeperStatus | None:
    """Return what the sweeper last told; None where none has run for 10 seconds."""
    (text,) = await store.read([("GET", SWEEPER_KEY)])
    return None if text is None else msgspec.json.decode(text, type=SweeperStatus)


async def sweep_warnings(store: Store) -> list[str]:
    """Say what keeps abandoned holds from coming back; nothing where all is well."""
    status = await read_sweeper(store)
    if status is None:
        silent_seconds = STATUS_TTL_MS // 1000
        warning = f"nothing has swept for {silent_seconds} seconds; abandoned holds stay"
        return [f"sweeper_missing: {warning}"]
    if status.clock_jump_ms:
        warning = f"the store's clock is off by {status.clock_jump_ms} ms; no hold is expired"
        return [f"clock_jumped: {warning}"]
    if status.staying:
        warning = f"{status.staying} holds are due and cannot be taken back; the log says why"
        return [f"holds_staying: {warning}"]
    return []
