"""The driver of claims: whoever died half-way, what was claimed for a buyer is settled.

Each claim stands in an index by when somebody should look at it: just after the command that it was
made for must be through, and from then on when its reservation expires, or every ten minutes. What
is seen at the location decides (`engine.claims`). Any number may run: a lease a partition keeps
them out of each other's way, and looking twice is harmless.
"""

import asyncio
from typing import Final

import structlog

from engine.clock import read_times
from engine.inventory import Inventory
from engine.keys import PartitionKeys, claim_member, parse_row_member
from engine.leases import Lease, leases_of
from engine.outcomes import HoldfastError
from engine.rounds import in_rounds

ROUND_SECONDS: Final = 1.0
MAX_DUE: Final = 200
"""Claims of one partition in one round."""

MAX_AT_ONCE: Final = 32
PUT_OFF_MS: Final = 60_000
"""When to look again where that failed."""

log = structlog.get_logger()


class ClaimDriver:
    """Looks after the claims of every partition."""

    def __init__(self, inventory: Inventory) -> None:
        """Nothing is read yet."""
        self._inventory = inventory
        self._leases = leases_of(inventory.store, inventory.keys, "claims")

    async def run(self, stop: asyncio.Event) -> None:
        """Drive once a second until `stop` is set."""
        await in_rounds(
            "claims", self.round, stop, pause_seconds=ROUND_SECONDS, leases=self._leases
        )

    async def round(self) -> int:
        """Look at every claim that is due once; return how many those were.

        A partition that is away does not keep the others waiting: the first error is raised when
        they are through.
        """
        due, failed = 0, None
        for keys, lease in zip(self._inventory.keys, self._leases, strict=True):
            try:
                due += await self._look_at(keys, lease)
            except HoldfastError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return due

    async def _look_at(self, keys: PartitionKeys, lease: Lease) -> int:
        """Look at the claims of one partition that are due."""
        now_ms = (await read_times(self._inventory.store, keys)).now_ms
        found = await self._inventory.dispatcher.read(
            "ZRANGEBYSCORE", keys.claiming, "-inf", now_ms, "LIMIT", 0, MAX_DUE
        )
        if not found or not await lease.hold():
            return 0
        gate = asyncio.Semaphore(MAX_AT_ONCE)
        looks = (self._look_after(keys, member.decode(), now_ms, gate) for member in found)
        results = await asyncio.gather(*looks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return len(found)

    async def _look_after(
        self, keys: PartitionKeys, member: str, now_ms: int, gate: asyncio.Semaphore
    ) -> None:
        """Look at one claim; one that cannot be settled does not keep the others waiting."""
        named = parse_row_member(member)
        if named is None or claim_member(*named) != member:
            await self._inventory.store.read([("ZREM", keys.claiming, member)])
            return
        async with gate:
            try:
                again_ms = await self._inventory.claiming.look_after(*named)
            except HoldfastError as error:
                again_ms = PUT_OFF_MS
                log.warning(
                    "a claim waits", reservation=named[2], code=error.code, error=str(error)
                )
            if again_ms:
                await self._look_again(keys, named, now_ms, again_ms)

    async def _look_again(
        self, keys: PartitionKeys, named: tuple[str, str, str], now_ms: int, again_ms: int
    ) -> None:
        """Have a claim be looked at again. Raises StoreUnavailable where its partition is away."""
        (merchant, buyer, reservation), member = named, claim_member(*named)
        again = ("ZADD", keys.claiming, "XX", now_ms + again_ms, member)
        await self._inventory.store.read([again])
        if again_ms <= PUT_OFF_MS:
            return
        claim = (await self._inventory.claiming.claims(merchant, buyer)).get(reservation)
        if claim is not None and claim.due_at_ms > now_ms:
            # Somebody has claimed under it meanwhile, and may have died since.
            sooner = ("ZADD", keys.claiming, "XX", "LT", claim.due_at_ms, member)
            await self._inventory.store.read([sooner])
