"""Whether a store is fit to keep the truth: asked once before anything is served from it.

All that is wrong is reported at once, each problem with what was found, what is wanted and what to
do. The first start on a store also fixes in it what may never change: the number of partitions.
"""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import (
    AuthenticationError,
    RedisClusterException,
    RedisError,
    ResponseError,
)

from engine.keys import MAX_PARTITIONS, STORE_KEY, PartitionKeys
from engine.outcomes import StoreUnavailable
from engine.scripts import script
from engine.store import Client

MIN_VERSION: Final = 7
"""The first major version with `#!lua` scripts and the multi-part append-only file."""

DEFAULT_PARTITIONS: Final = 16
"""Of a new store on one server; 256 is advised for a cluster."""

SCHEMA_VERSION: Final = 2
"""Of the layout of the keys; a store of another layout is refused."""

CHECK_SECONDS: Final = 10.0
"""For all questions together. A store that takes longer is not fit to serve."""

_WHOLE: Final = "store"
"""The `node` of a problem that is not one server's."""

_DURABILITY: Final = frozenset({"aof_off", "aof_failing", "fsync_not_always", "fsync_unreadable"})
"""Codes that the explicit setting turns into warnings."""


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong. `code` is stable; the rest is for a person to read.

    `node` is the address of the server of a cluster that it is about, or `store`.
    """

    code: str
    found: str
    wanted: str
    remedy: str
    node: str = _WHOLE

    def __str__(self) -> str:
        """Return it as one line."""
        where = "" if self.node == _WHOLE else f" on {self.node}"
        return f"{self.code}{where}: found {self.found}, wanted {self.wanted}; {self.remedy}"


class NodeFacts(msgspec.Struct, frozen=True):
    """One server: `kind` is `valkey` or `redis`; None is what it would not tell."""

    node: str
    kind: str
    version: str
    role: str
    append_only: bool | None
    append_fsync: str | None
    maxmemory_policy: str | None


class StoreFacts(msgspec.Struct, frozen=True):
    """A store that may be served from: its servers (one, or a cluster's primaries).

    `warnings` are durability problems that the explicit setting let pass; what serves from the
    store says them wherever it says how it is.
    """

    nodes: tuple[NodeFacts, ...]
    cluster: bool
    partitions: int
    schema_version: int
    warnings: tuple[Problem, ...]


class StoreRefused(Exception):
    """The store is not fit to be served from; `problems` lists all that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        """Keep the problems, of which there is at least one."""
        self.problems = tuple(problems)
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        super().__init__(f"the store cannot be served from:{lines}")


async def check_store(
    client: Client, *, unsafe_durability: bool, partitions: int | None = None
) -> StoreFacts:
    """Look at every primary of the store, and fix the number of partitions of a new one.

    `partitions` is the number that is asked for: None takes the store's own, or
    DEFAULT_PARTITIONS where it has none yet. With `unsafe_durability`, what would lose
    acknowledged writes in a crash is a warning and no problem.

    Raises StoreRefused with all problems, and StoreUnavailable where the store does not answer.
    """
    if partitions is not None and not 1 <= partitions <= MAX_PARTITIONS:
        raise ValueError(f"partitions must be 1 to {MAX_PARTITIONS}, not {partitions}")
    tolerated = _DURABILITY if unsafe_durability else frozenset[str]()
    check = _Check(client, asked_partitions=partitions, tolerated=tolerated)
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            return await check.run()
    except (RedisError, RedisClusterException, OSError) as error:
        raise _told(error) from error


def _told(error: Exception) -> StoreRefused | StoreUnavailable:
    """Return what a driver's error means for a start."""
    # The driver wraps what a login was answered with in a plain connection error.
    if isinstance(error.__cause__ or error, AuthenticationError):
        return StoreRefused([_login_refused(str(error))])
    if isinstance(error, ResponseError):
        # Something as plain as HMGET was refused: most often the user may not run it.
        return StoreRefused([_denied(str(error), _WHOLE)])
    if isinstance(error, RedisClusterException):
        return StoreRefused([_not_a_cluster(str(error))])
    reason = str(error) or f"nothing within {CHECK_SECONDS:.0f} s"
    return StoreUnavailable(f"the store does not answer: {reason}")


class _Check:
    """One look at a store, which collects problems as it goes."""

    def __init__(
        self, client: Client, *, asked_partitions: int | None, tolerated: frozenset[str]
    ) -> None:
        self._client = client
        self._asked = asked_partitions
        self._tolerated = tolerated
        self._problems: list[Problem] = []

    async def run(self) -> StoreFacts:
        nodes = [await self._node(name, options) for name, options in await self._primaries()]
        if any(one.code == "still_loading" for one in self._problems):
            # It would answer nothing else that is asked of it.
            self._refuse()
        made = await self._made()
        wanted = self._asked or DEFAULT_PARTITIONS
        await self._probe(made[0] if made else wanted)
        self._refuse()
        if made is None:
            # Nothing is written to a store before it has passed.
            made = await self._make(wanted)
        return StoreFacts(
            nodes=tuple(nodes),
            cluster=isinstance(self._client, RedisCluster),
            partitions=made[0],
            schema_version=made[1],
            warnings=tuple(one for one in self._problems if one.code in self._tolerated),
        )

    def _refuse(self) -> None:
        problems = [one for one in self._problems if one.code not in self._tolerated]
        if problems:
            raise StoreRefused(problems)

    async def _primaries(self) -> list[tuple[str, dict[str, Any]]]:
        """Return each primary's name, and the options that send a command to it."""
        if not isinstance(self._client, RedisCluster):
            return [(_WHOLE, {})]
        await self._client.initialize()
        nodes = sorted(self._client.get_primaries(), key=lambda node: node.name)
        return [(node.name, {"target_nodes": node}) for node in nodes]

    async def _node(self, name: str, options: dict[str, Any]) -> NodeFacts:
        info: Mapping[str, Any] = await self._client.execute_command("INFO", **options)
        kind = "valkey" if info.get("server_name") == "valkey" else "redis"
        version = str(info.get(f"{kind}_version", info["redis_version"]))
        facts = NodeFacts(
            node=name,
            kind=kind,
            version=version,
            role=str(info.get("role", "unknown")),
            append_only=_flag(info.get("aof_enabled")),
            append_fsync=await self._setting("appendfsync", options),
            maxmemory_policy=_text(info.get("maxmemory_policy")),
        )
        mode = str(info.get("server_mode", info.get("redis_mode", "standalone")))
        self._problems += _server_problems(facts, info)
        self._problems += _durability_problems(facts, info)
        if mode == "cluster" and not isinstance(self._client, RedisCluster):
            self._problems.append(_a_cluster(name))
        return facts

    async def _setting(self, name: str, options: dict[str, Any]) -> str | None:
        try:
            reply = await self._client.execute_command("CONFIG GET", name, **options)
        except ResponseError:
            # Managed stores deny CONFIG; that it could not be read is then a problem of its own.
            return None
        return _text({_text(key): value for key, value in dict(reply).items()}.get(name))

    async def _made(self) -> tuple[int, int] | None:
        """Return what the store was made with, None for a new one; a mismatch is a problem."""
        fields = await self._client.execute_command(
            "HMGET", STORE_KEY, "partitions", "schema_version"
        )
        partitions, schema_version = map(_text, fields)
        if partitions is None:
            return None
        if not partitions.isdecimal() or not (schema_version or "").isdecimal():
            self._problems.append(_damaged(partitions, schema_version))
            return None
        made = int(partitions), int(schema_version or 0)
        if self._asked not in (None, made[0]):
            self._problems.append(_partitions_differ(made[0], self._asked))
        if made[1] > SCHEMA_VERSION:
            self._problems.append(_schema_newer(made[1]))
        if made[1] < SCHEMA_VERSION:
            self._problems.append(_schema_older(made[1]))
        return made

    async def _make(self, partitions: int) -> tuple[int, int]:
        """Write what never changes, unless another process did so just now."""
        seconds, _ = await self._client.execute_command("TIME", **self._any_node())
        # The partitions come last: where they stand, the rest stands too.
        fixed: dict[str, str | int] = {
            # Names the store's archive: a store that is made anew never writes into an old one's.
            "store_id": secrets.token_hex(8),
            "schema_version": SCHEMA_VERSION,
            "created_at": int(seconds) * 1000,
            "partitions": partitions,
        }
        for field, value in fixed.items():
            await self._client.execute_command("HSETNX", STORE_KEY, field, value)
        made = await self._made()
        self._refuse()
        if made is None:
            raise StoreUnavailable(f"{STORE_KEY} was deleted while it was written")
        return made

    def _any_node(self) -> dict[str, Any]:
        if isinstance(self._client, RedisCluster):
            return {"target_nodes": self._client.get_node_from_key(STORE_KEY)}
        return {}

    async def _probe(self, partitions: int) -> None:
        """Run the probe script once on every server that holds a partition."""
        probe = script("probe")
        probed: set[str] = set()
        for partition in range(partitions):
            keys = PartitionKeys(partition).probe()
            node = _WHOLE
            if isinstance(self._client, RedisCluster):
                holder = self._client.get_node_from_key(keys[0])
                node = holder.name if holder is not None else _WHOLE
            if node in probed:
                continue
            probed.add(node)
            try:
                await self._client.execute_command("EVAL", probe.text, len(keys), *keys)
                await self._client.execute_command("EVALSHA", probe.sha, len(keys), *keys)
            except ResponseError as error:
                self._problems.append(_denied(str(error), node))


def _server_problems(facts: NodeFacts, info: Mapping[str, Any]) -> list[Problem]:
    problems = []
    if _major(facts.version) < MIN_VERSION:
        problems.append(
            Problem(
                "server_too_old",
                f"{facts.kind} {facts.version}",
                f"version {MIN_VERSION} or later",
                "upgrade the server",
                facts.node,
            )
        )
    if facts.role != "master":
        problems.append(
            Problem(
                "not_primary",
                f"role {facts.role}",
                "a primary",
                "connect to the primary; replicas take no writes",
                facts.node,
            )
        )
    if _flag(info.get("loading")):
        problems.append(
            Problem(
                "still_loading",
                "a server that loads its data",
                "one that has loaded",
                "wait until it has, then start again",
                facts.node,
            )
        )
    if facts.maxmemory_policy != "noeviction":
        problems.append(
            Problem(
                "evicts_keys",
                f"maxmemory-policy {facts.maxmemory_policy or 'that cannot be read'}",
                "noeviction",
                "set maxmemory-policy noeviction: any other drops stock when memory is short",
                facts.node,
            )
        )
    return problems


def _durability_problems(facts: NodeFacts, info: Mapping[str, Any]) -> list[Problem]:
    problems = []
    if not facts.append_only:
        problems.append(
            Problem(
                "aof_off",
                "appendonly no",
                "appendonly yes",
                "set appendonly yes: without it a crash loses acknowledged reservations",
                facts.node,
            )
        )
    elif info.get("aof_last_write_status", "ok") != "ok":
        problems.append(
            Problem(
                "aof_failing",
                f"aof_last_write_status {info['aof_last_write_status']}",
                "ok",
                "see the server's log; most often its disk is full",
                facts.node,
            )
        )
    if facts.append_fsync is None:
        problems.append(
            Problem(
                "fsync_unreadable",
                "CONFIG GET appendfsync denied",
                "appendfsync always",
                "allow the user +config|get, or make sure of it and start with the setting that "
                "accepts unsafe durability",
                facts.node,
            )
        )
    elif facts.append_fsync != "always":
        problems.append(
            Problem(
                "fsync_not_always",
                f"appendfsync {facts.append_fsync}",
                "appendfsync always",
                "set appendfsync always: with any other a crash loses acknowledged reservations",
                facts.node,
            )
        )
    return problems


def _denied(reply: str, node: str) -> Problem:
    return Problem(
        "command_denied",
        reply,
        "every command that the scripts use, with cmsgpack",
        "allow the user the command that the answer names",
        node,
    )


def _login_refused(reply: str) -> Problem:
    return Problem(
        "login_refused",
        reply,
        "a user and password that the store knows",
        "set HOLDFAST_REDIS_USERNAME and HOLDFAST_REDIS_PASSWORD",
    )


def _a_cluster(node: str) -> Problem:
    return Problem(
        "is_a_cluster",
        "a server of a cluster",
        "a server of its own",
        "add ?cluster=true to the store's URL",
        node,
    )


def _not_a_cluster(reason: str) -> Problem:
    return Problem(
        "not_a_cluster",
        reason,
        "a cluster whose slots are all served",
        "take ?cluster=true out of the store's URL, or mend the cluster",
    )


def _partitions_differ(found: int, asked: int | None) -> Problem:
    return Problem(
        "partitions_differ",
        f"a store of {found} partitions",
        f"one of {asked}, as asked for",
        f"ask for {found}, or for none: the number is fixed when a store is made",
    )


def _schema_newer(found: int) -> Problem:
    return Problem(
        "schema_newer",
        f"schema version {found}",
        f"{SCHEMA_VERSION} or earlier",
        "run the version of Holdfast that made the store, or a later one",
    )


def _schema_older(found: int) -> Problem:
    return Problem(
        "schema_older",
        f"schema version {found}",
        str(SCHEMA_VERSION),
        "no release made such a store: export its stock with the version that did, and import that "
        "into a new store",
    )


def _damaged(partitions: str | None, schema_version: str | None) -> Problem:
    return Problem(
        "store_key_damaged",
        f"partitions {partitions!r} and schema_version {schema_version!r} in {STORE_KEY}",
        "two numbers",
        "restore the store from its last snapshot: this key is written once and never changed",
    )


def _major(version: str) -> int:
    major = version.partition(".")[0]
    return int(major) if major.isdecimal() else 0


def _flag(value: object) -> bool | None:
    return None if value is None else str(value) == "1"


def _text(value: object) -> str | None:
    if value is None:
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
