"""What the store's servers tell of themselves: memory, the time that scripts took, the disk."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import RedisError

from engine.outcomes import StoreUnavailable
from engine.store import Store

_SECTIONS: Final = ("memory", "commandstats", "persistence")
_SCRIPTS: Final = ("cmdstat_eval", "cmdstat_evalsha")


class ServerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """All servers together (one, or a cluster's primaries), since each was started.

    `memory` is the bytes used and the limit of the fullest, a limit of 0 if unknown.
    `delayed_fsyncs` counts those for which a server held its writes up, and `aof_failing` the
    servers that cannot write their log just now.
    """

    memory: tuple[int, int] = (0, 0)
    script_calls: int = 0
    script_us: int = 0
    delayed_fsyncs: int = 0
    aof_failing: int = 0


async def read_servers(store: Store) -> ServerFigures:
    """Ask them. Raises StoreUnavailable."""
    client: Any = store.client
    try:
        nodes: list[dict[str, Any]] = [{}]
        if isinstance(client, RedisCluster):
            await client.initialize()
            nodes = [{"target_nodes": node} for node in client.get_primaries()]
        found: list[Mapping[str, Any]] = []
        for options in nodes:
            info: dict[str, Any] = {}
            for section in _SECTIONS:
                info |= await client.execute_command("INFO", section, **options)
            found.append(info)
    except (RedisError, OSError) as error:
        raise StoreUnavailable() from error
    scripts = [info[name] for info in found for name in _SCRIPTS if name in info]
    return ServerFigures(
        memory=max((_memory(info) for info in found), key=_fullness),
        script_calls=sum(int(one["calls"]) for one in scripts),
        script_us=sum(int(one["usec"]) for one in scripts),
        delayed_fsyncs=sum(int(info.get("aof_delayed_fsync", 0)) for info in found),
        aof_failing=sum(info.get("aof_last_write_status", "ok") != "ok" for info in found),
    )


def _memory(info: Mapping[str, Any]) -> tuple[int, int]:
    limit = int(info.get("maxmemory", 0)) or int(info.get("total_system_memory", 0))
    return int(info.get("used_memory", 0)), limit


def _fullness(memory: tuple[int, int]) -> float:
    used, limit = memory
    return used / limit if limit else 0.0
