"""How far the archive is behind the ledger."""

from collections.abc import Sequence
from typing import Final

import msgspec

from engine.clock import clock_ms
from engine.keys import PartitionKeys
from engine.store import Store, pairs

MAX_READ_PARTITIONS: Final = 64
"""Partitions asked about in one round trip."""


class PartitionBacklog(msgspec.Struct, frozen=True):
    """What of one partition is not archived; `at_ms` is when the oldest of it happened, 0 for none.

    `sequence` is the ledger's last operation, `archived` the archive's; `behind_operations` are
    those that only the store has. A rebuilt store's ledger does not begin with 1.
    """

    partition: int
    sequence: int
    archived: int
    behind_operations: int
    at_ms: int


class Backlog(msgspec.Struct, frozen=True):
    """The same of all partitions together; `behind_ms` is the age of the oldest."""

    behind_operations: int
    behind_ms: int
    partitions: tuple[PartitionBacklog, ...]


async def read_backlog(store: Store, keys: Sequence[PartitionKeys]) -> Backlog:
    """Measure it. Raises what the store's calls raise."""
    found: list[PartitionBacklog] = []
    for start in range(0, len(keys), MAX_READ_PARTITIONS):
        found += await _read(store, keys[start : start + MAX_READ_PARTITIONS])
    oldest_ms = min((one.at_ms for one in found if one.at_ms), default=0)
    behind_ms = 0
    if oldest_ms:
        behind_ms = max(0, await clock_ms(store, keys[0]) - oldest_ms)
    return Backlog(sum(one.behind_operations for one in found), behind_ms, tuple(found))


async def _read(store: Store, keys: Sequence[PartitionKeys]) -> list[PartitionBacklog]:
    positions = await store.read(
        [("HMGET", one.archive, "sequence", "stream_id") for one in keys]
        + [("HGET", one.meta, "sequence") for one in keys]
    )
    archived, sequences = positions[: len(keys)], positions[len(keys) :]
    firsts = await store.read(
        [
            ("XRANGE", one.ledger, f"({(place[1] or b'0-0').decode()}", "+", "COUNT", 1)
            for one, place in zip(keys, archived, strict=True)
        ]
    )
    found = []
    for one, place, last, reply in zip(keys, archived, sequences, firsts, strict=True):
        sequence, behind, at_ms = int(last or 0), 0, 0
        if reply:
            fields = dict(pairs(reply[0][1]))
            # What was written between the two reads is counted by the next look.
            behind = max(0, sequence - int(fields[b"seq"]) + 1)
            at_ms = int(fields[b"at"])
        found.append(PartitionBacklog(one.partition, sequence, int(place[0] or 0), behind, at_ms))
    return found
