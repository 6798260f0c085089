"""What the reconciler tells of itself: how far the archive is behind, and what should alarm.

It is left in the store for whoever shows it: `/readyz`, `holdfast doctor`, metrics.
"""

from typing import Final

import msgspec

from engine.keys import RECONCILER_KEY
from engine.store import Store

STATUS_TTL_MS: Final = 60_000
"""A status older than this is of a reconciler that no longer runs."""


class Alarm(msgspec.Struct, frozen=True):
    """Something that a person must see to before it does harm; `code` is stable."""

    code: str
    text: str


class FeedFigures(msgspec.Struct, frozen=True, kw_only=True):
    """How the sources of all locations are, as they were last looked at.

    `live`, `degraded` and `catching_up` count sources, `missing` events that have not come;
    `silent_ms` is how long the longest silent of those that send heartbeats was not heard of.
    """

    live: int = 0
    degraded: int = 0
    catching_up: int = 0
    missing: int = 0
    silent_ms: int = 0


class UpkeepStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the reconciler's work, all partitions together; times in ms since 1970.

    `archive` is `ok`, `failing`, or `off` where none is named.
    `behind_ms` is the age of the oldest operation that is not archived, `behind_operations` how
    many there are. `failing` tells of each job that cannot do its work why not. Times are 0 where
    nothing was done yet, and memory is of the fullest server; a limit of 0 is not known. `feeds`
    tells how tills and suppliers are.
    """

    at_ms: int
    archive: str
    behind_ms: int = 0
    behind_operations: int = 0
    archived_at_ms: int = 0
    snapshot_at_ms: int = 0
    audited_at_ms: int = 0
    findings: int = 0
    memory_used_bytes: int = 0
    memory_limit_bytes: int = 0
    failing: dict[str, str] = {}
    alarms: tuple[Alarm, ...] = ()
    feeds: FeedFigures = FeedFigures()


async def write_upkeep(store: Store, status: UpkeepStatus) -> None:
    """Leave a status in the store. Raises StoreUnavailable."""
    text = msgspec.json.encode(status).decode()
    await store.read([("SET", RECONCILER_KEY, text, "PX", STATUS_TTL_MS)])


async def read_upkeep(store: Store) -> UpkeepStatus | None:
    """Return the reconciler's status; None where none has run for a minute."""
    (text,) = await store.read([("GET", RECONCILER_KEY)])
    return None if text is None else msgspec.json.decode(text, type=UpkeepStatus)
