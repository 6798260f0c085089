"""What the boot checks find on real servers, and what they write to a new store."""

import hashlib

import msgspec
import pytest

from engine.boot import DEFAULT_PARTITIONS, SCHEMA_VERSION, Problem, StoreRefused, check_store
from engine.keys import STORE_KEY
from engine.outcomes import StoreUnavailable
from engine.store import StoreSettings, close_quietly, connect
from tests.stores import MakeStore, RealCluster, RealStore, free_ports


async def check(
    settings: StoreSettings, *, unsafe_durability: bool = False, partitions: int | None = None
) -> list[Problem]:
    """Return the problems that the check refuses with, or the warnings that it lets pass."""
    client = connect(settings)
    try:
        facts = await check_store(
            client, unsafe_durability=unsafe_durability, partitions=partitions
        )
    except StoreRefused as refusal:
        return list(refusal.problems)
    finally:
        await close_quietly(client)
    return list(facts.warnings)


def codes(problems: list[Problem]) -> list[str]:
    return sorted(problem.code for problem in problems)


async def test_a_sound_store_passes_and_tells_what_it_is(store: RealStore) -> None:
    client = connect(store.settings)
    facts = await check_store(client, unsafe_durability=False)
    await close_quietly(client)
    (node,) = facts.nodes
    assert node.kind == store.kind.removesuffix("7")
    assert (node.role, node.append_only, node.append_fsync) == ("master", True, "always")
    assert node.maxmemory_policy == "noeviction"
    assert (facts.partitions, facts.schema_version) == (DEFAULT_PARTITIONS, SCHEMA_VERSION)
    assert facts.warnings == ()
    assert not facts.cluster


async def test_all_problems_are_reported_at_once(make_store: MakeStore, store_kind: str) -> None:
    weak = make_store(store_kind)
    await weak.start()
    await weak.run("CONFIG", "SET", "appendfsync", "everysec")
    await weak.run("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    problems = await check(weak.settings)
    assert codes(problems) == ["evicts_keys", "fsync_not_always"]
    fsync = next(problem for problem in problems if problem.code == "fsync_not_always")
    assert (fsync.found, fsync.wanted) == ("appendfsync everysec", "appendfsync always")
    assert not await weak.run("EXISTS", STORE_KEY), "a refused store must be left as it was"


async def test_unsafe_durability_turns_durability_alone_into_warnings(
    make_store: MakeStore,
) -> None:
    weak = make_store()
    await weak.start()
    await weak.run("CONFIG", "SET", "appendonly", "no")
    assert codes(await check(weak.settings)) == ["aof_off"]
    assert codes(await check(weak.settings, unsafe_durability=True)) == ["aof_off"]
    assert await weak.run("HGET", STORE_KEY, "partitions") == b"16"
    await weak.run("CONFIG", "SET", "maxmemory-policy", "volatile-ttl")
    assert codes(await check(weak.settings, unsafe_durability=True)) == ["evicts_keys"]


async def test_a_replica_is_refused(make_store: MakeStore) -> None:
    replica = make_store()
    await replica.start()
    await replica.run("REPLICAOF", "127.0.0.1", "1")
    assert codes(await check(replica.settings)) == ["command_denied", "not_primary"]


async def test_a_user_who_may_not_read_settings_is_told_what_was_not_read(
    make_store: MakeStore,
) -> None:
    managed = make_store(extra_config=[_user("managed", "+@all -config")])
    await managed.start()
    settings = _as_user(managed, "managed")
    assert codes(await check(settings)) == ["fsync_unreadable"]
    assert codes(await check(settings, unsafe_durability=True)) == ["fsync_unreadable"]


@pytest.mark.parametrize("command", ["eval", "evalsha", "xadd", "zadd", "hset", "pexpire"])
async def test_a_user_who_lacks_a_command_of_the_scripts_is_refused(
    make_store: MakeStore, command: str
) -> None:
    limited = make_store(extra_config=[_user("limited", f"+@all -{command}")])
    await limited.start()
    (problem,) = await check(_as_user(limited, "limited"))
    assert problem.code == "command_denied"
    assert command in problem.found.lower()


async def test_the_number_of_partitions_is_fixed_when_the_store_is_made(
    make_store: MakeStore,
) -> None:
    made = make_store()
    await made.start()
    assert await check(made.settings, partitions=32) == []
    assert await check(made.settings) == []
    (problem,) = await check(made.settings, partitions=16)
    assert problem.code == "partitions_differ"
    assert "32" in problem.found
    assert "16" in problem.wanted
    await made.restart()
    assert await made.run("HGET", STORE_KEY, "partitions") == b"32"


async def test_a_store_of_a_later_schema_is_refused(make_store: MakeStore) -> None:
    later = make_store()
    await later.start()
    await later.run("HSET", STORE_KEY, "partitions", "16", "schema_version", "99")
    assert codes(await check(later.settings)) == ["schema_newer"]


async def test_a_store_of_an_earlier_schema_is_refused(make_store: MakeStore) -> None:
    earlier = make_store()
    await earlier.start()
    await earlier.run("HSET", STORE_KEY, "partitions", "16", "schema_version", "1")
    assert codes(await check(earlier.settings)) == ["schema_older"]


async def test_a_damaged_store_key_is_refused_and_kept(make_store: MakeStore) -> None:
    damaged = make_store()
    await damaged.start()
    await damaged.run("HSET", STORE_KEY, "partitions", "sixteen")
    assert codes(await check(damaged.settings)) == ["store_key_damaged"]
    assert await damaged.run("HGET", STORE_KEY, "partitions") == b"sixteen"


async def test_a_store_that_is_not_there_is_unavailable(make_store: MakeStore) -> None:
    gone = make_store()
    await gone.start()
    await gone.stop()
    with pytest.raises(StoreUnavailable):
        await check(gone.settings)


@pytest.mark.parametrize("password", ["wrong", ""])
async def test_a_login_that_the_store_refuses_is_told_as_such(
    store: RealStore, password: str
) -> None:
    settings = StoreSettings(store.settings.url, username="", password=password)
    (problem,) = await check(settings)
    assert problem.code == "login_refused"


@pytest.mark.cluster
async def test_every_primary_of_a_cluster_is_checked(cluster: RealCluster) -> None:
    client = connect(cluster.settings)
    facts = await check_store(client, unsafe_durability=False)
    await close_quietly(client)
    assert facts.cluster
    assert len(facts.nodes) == 3
    weak = cluster.nodes[1]
    await weak.run("CONFIG", "SET", "appendfsync", "no")
    try:
        (problem,) = await check(cluster.settings)
    finally:
        await weak.run("CONFIG", "SET", "appendfsync", "always")
    assert (problem.code, problem.node) == ("fsync_not_always", f"127.0.0.1:{weak.tcp_port}")


@pytest.mark.cluster
async def test_the_wrong_kind_of_client_is_told_so(
    cluster: RealCluster, make_store: MakeStore
) -> None:
    assert "is_a_cluster" in codes(await check(cluster.nodes[0].settings))
    (port,) = free_ports(1)
    alone = make_store(tcp_port=port)
    await alone.start()
    wrong = msgspec.structs.replace(alone.tcp_settings, cluster=True)
    assert codes(await check(wrong)) == ["not_a_cluster"]


def _user(name: str, rules: str) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"user {name} on #{digest} ~* &* {rules}"


def _as_user(store: RealStore, name: str) -> StoreSettings:
    settings = store.settings
    return StoreSettings(settings.url, username=name, password=name)
