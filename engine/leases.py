"""Leases: one owner a background job and partition, fenced by a number that only rises."""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Iterable
from typing import Final, Protocol, TypeVar

from engine.scripts import script
from engine.store import Store

LEASE_TTL_MS: Final = 10_000
"""How long a job stands still after its owner was killed."""

RENEW_SECONDS: Final = LEASE_TTL_MS / 3_000
"""How often a lease is renewed, so that it outlasts one missed renewal."""

Made = TypeVar("Made")


class LeaseKeys(Protocol):
    """The keys of what a job is about: a partition, or a webhook endpoint."""

    def lease(self, job: str) -> str:
        """Return the key of a job's lease."""
        ...


class Lease:
    """One job in one partition; `fence` is 0 while somebody else has it."""

    def __init__(self, store: Store, keys: LeaseKeys, job: str, *, owner: str) -> None:
        """Name the job; `owner` is unique to the process."""
        self._store = store
        self.key = keys.lease(job)
        self._owner = owner
        self.fence = 0
        self._renewed_at = 0.0

    async def renew(self, ttl_ms: int = LEASE_TTL_MS) -> bool:
        """Get or keep the lease for `ttl_ms` from now; return whether it is ours."""
        reply = await self._store.call(script("lease"), (self.key,), self._owner, ttl_ms)
        self.fence = int(reply)
        return self.fence > 0

    async def hold(self) -> bool:
        """Get or keep the lease, without a call while most of its time is left."""
        now = time.monotonic()
        if self.fence and now - self._renewed_at < LEASE_TTL_MS / 1000 / 3:
            return True
        self._renewed_at = now
        return await self.renew()

    async def give_up(self) -> None:
        """Let another owner have it at once."""
        if self.fence:
            await self._store.call(script("lease"), (self.key,), self._owner, 0)
            self.fence = 0


def new_owner() -> str:
    """Return a name that no other owner has, which tells the machine and process."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def leases_of(
    store: Store, partitions: Iterable[LeaseKeys], job: str, *, owner: str = ""
) -> list[Lease]:
    """Name a job in each partition, for an owner of its own unless one is told."""
    owner = owner or new_owner()
    return [Lease(store, keys, job, owner=owner) for keys in partitions]


async def under(lease: Lease, work: Awaitable[Made]) -> Made | None:
    """Do work while the lease is ours; None where it was lost before the end."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            await asyncio.wait([task], timeout=RENEW_SECONDS)
            if not task.done() and not await lease.renew():
                return None
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
