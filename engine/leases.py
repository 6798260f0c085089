"""Leases: one owner a background job and partition, fenced by a number that only rises."""

from typing import Final, Protocol

from engine.scripts import script
from engine.store import Store

LEASE_TTL_MS: Final = 10_000
"""How long a job stands still after its owner was killed."""


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

    async def renew(self, ttl_ms: int = LEASE_TTL_MS) -> bool:
        """Get or keep the lease for `ttl_ms` from now; return whether it is ours."""
        reply = await self._store.call(script("lease"), (self.key,), self._owner, ttl_ms)
        self.fence = int(reply)
        return self.fence > 0

    async def give_up(self) -> None:
        """Let another owner have it at once."""
        if self.fence:
            await self._store.call(script("lease"), (self.key,), self._owner, 0)
            self.fence = 0
