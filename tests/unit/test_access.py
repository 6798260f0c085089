import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from fakeredis import FakeAsyncRedis

from engine import access
from engine.access import (
    ApiKey,
    KeyCache,
    RateLimit,
    Role,
    create_key,
    ensure_admin_key,
    limit_key,
    list_keys,
    parse_secret,
    revoke_key,
)
from engine.keys import API_KEYS_KEY
from engine.outcomes import InvalidCommand, LimitExceeded, StoreFault, StoreUnavailable
from engine.store import Client


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


class Counted:
    """Counts commands, and can lose the store, or only its replies."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.commands: list[str] = []
        self.down = False
        self.lose_reply_of = ""

    async def execute_command(self, command: str, *args: Any, **options: Any) -> Any:
        self.commands.append(command)
        if self.down:
            raise ConnectionRefusedError("no store")
        reply = await self.client.execute_command(command, *args, **options)
        if command == self.lose_reply_of:
            self.lose_reply_of = ""
            raise ConnectionResetError("the reply was lost")
        return reply


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    fake = FakeAsyncRedis()
    yield fake
    await fake.aclose()


@pytest.fixture
def counted(client: Client) -> Counted:
    return Counted(client)


async def make_key(client: Client, role: Role = Role.RESERVE) -> tuple[ApiKey, str]:
    return await create_key(client, role=role, merchant="acme", label="till 4")


def test_parse_secret_takes_only_the_exact_form_with_its_checksum() -> None:
    secret = access._make_secret("Ab12Cd34")
    assert len(secret) == len("hfk_") + 8 + 1 + 32 + 6
    assert parse_secret(secret) == "Ab12Cd34"
    for position in range(len(secret)):
        other = "1" if secret[position] != "1" else "2"
        assert parse_secret(secret[:position] + other + secret[position + 1 :]) is None
    for bad in ("", "hfk_", secret + "0", secret[:-1], " " + secret, secret + "\n", "é" * 51):
        assert parse_secret(bad) is None


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        (Role.READ, {Role.READ}),
        (Role.RESERVE, {Role.READ, Role.RESERVE}),
        (Role.FEED, {Role.READ, Role.FEED}),
        (Role.ADMIN, set(Role)),
    ],
)
def test_a_role_allows_its_own_and_reading(role: Role, allowed: set[Role]) -> None:
    assert {needed for needed in Role if role.allows(needed)} == allowed


async def test_a_made_key_is_listed_and_its_secret_is_nowhere(client: Client) -> None:
    key, secret = await make_key(client)
    platform, _ = await create_key(client, role=Role.ADMIN, merchant=None, label="")
    assert parse_secret(secret) == key.id
    listed = await list_keys(client)
    assert {one.id for one in listed} == {key.id, platform.id}
    assert next(one for one in listed if one.id == key.id) == key
    assert (key.role, key.merchant, key.label, key.revoked_at_ms) == (
        Role.RESERVE,
        "acme",
        "till 4",
        None,
    )
    records = await client.execute_command("HGETALL", API_KEYS_KEY)
    assert secret[13:].encode() not in b"".join(records.values())


@pytest.mark.parametrize("merchant", ["", "x" * 201, "é" * 101, "\ud800"])
async def test_a_key_for_an_impossible_merchant_is_refused(client: Client, merchant: str) -> None:
    with pytest.raises(InvalidCommand) as refused:
        await create_key(client, role=Role.READ, merchant=merchant, label="")
    assert refused.value.field == "merchant"


async def test_there_is_a_last_key(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MAX_API_KEYS", 1)
    await make_key(client)
    with pytest.raises(LimitExceeded):
        await make_key(client)


async def test_the_admin_key_is_made_once_by_whoever_comes_first(client: Client) -> None:
    secrets = await asyncio.gather(*(ensure_admin_key(client) for _ in range(20)))
    (secret,) = [one for one in secrets if one is not None]
    key = await KeyCache(client).authenticate(secret)
    assert key is not None
    assert (key.id, key.role, key.merchant) == (access.FIRST_ADMIN_ID, Role.ADMIN, None)


async def test_a_revoked_admin_key_is_not_made_again(client: Client) -> None:
    await ensure_admin_key(client)
    assert await revoke_key(client, access.FIRST_ADMIN_ID) is not None
    assert await ensure_admin_key(client) is None


async def test_the_admin_key_is_not_lost_with_the_reply(counted: Counted) -> None:
    counted.lose_reply_of = "HSETNX"
    secret = await ensure_admin_key(cast(Client, counted))
    assert secret is not None
    assert await KeyCache(counted.client).authenticate(secret) is not None


async def test_revoking_twice_keeps_the_first_time(client: Client) -> None:
    key, _ = await make_key(client)
    first = await revoke_key(client, key.id)
    assert first is not None
    assert first.revoked_at_ms is not None
    assert await revoke_key(client, key.id) == first
    assert await revoke_key(client, "nobody00") is None


async def test_a_limit_is_of_its_key_alone_and_can_be_lifted(client: Client) -> None:
    limit = RateLimit.of(5, 9)
    limited, secret = await create_key(
        client, role=Role.READ, merchant=None, label="", rate_limit=limit
    )
    free, _ = await make_key(client)
    assert {key.id: key.rate_limit for key in await list_keys(client)} == {
        limited.id: limit,
        free.id: None,
    }
    assert await KeyCache(client).authenticate(secret) == limited
    for other in (RateLimit.of(1), None):
        changed = await limit_key(client, limited.id, other)
        assert changed is not None
        assert changed.rate_limit == other
        assert await KeyCache(client).authenticate(secret) == changed
    for nobody in ("nobody00", f"{free.id}:rate_limit"):
        assert await limit_key(client, nobody, limit) is None


async def test_a_limit_is_no_key_and_does_not_bring_a_revoked_one_back(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "MAX_API_KEYS", 2)
    key, secret = await make_key(client)
    await limit_key(client, key.id, RateLimit.of(5))
    assert await revoke_key(client, f"{key.id}:rate_limit") is None
    revoked = await revoke_key(client, key.id)
    assert revoked is not None
    assert revoked.rate_limit == RateLimit.of(5)
    changed = await limit_key(client, key.id, RateLimit.of(6))
    assert changed is not None
    assert changed.revoked_at_ms == revoked.revoked_at_ms
    assert await KeyCache(client).authenticate(secret) is None
    assert await list_keys(client) == [changed]
    await make_key(client)
    with pytest.raises(LimitExceeded):
        await make_key(client)


async def test_a_good_answer_is_believed_for_two_seconds(counted: Counted) -> None:
    key, secret = await make_key(counted.client)
    clock = Clock()
    cache = KeyCache(cast(Client, counted), clock=clock)
    for _ in range(3):
        assert await cache.authenticate(secret) == key
        clock.seconds += 0.9
    assert counted.commands == ["HMGET"]
    clock.seconds += 0.9
    assert await cache.authenticate(secret) == key
    assert len(counted.commands) == 2


async def test_a_revoked_key_stops_within_two_seconds(counted: Counted) -> None:
    key, secret = await make_key(counted.client)
    clock = Clock()
    cache = KeyCache(cast(Client, counted), clock=clock)
    assert await cache.authenticate(secret) == key
    await revoke_key(counted.client, key.id)
    clock.seconds += access.POSITIVE_SECONDS
    assert await cache.authenticate(secret) is None


async def test_an_unknown_secret_asks_the_store_once_a_second(counted: Counted) -> None:
    clock = Clock()
    cache = KeyCache(cast(Client, counted), clock=clock)
    secret = access._make_secret("unknown0")
    for _ in range(5):
        assert await cache.authenticate(secret) is None
    assert len(counted.commands) == 1
    clock.seconds += access.NEGATIVE_SECONDS
    assert await cache.authenticate(secret) is None
    assert len(counted.commands) == 2


async def test_another_secret_of_a_known_id_is_refused(client: Client) -> None:
    key, _ = await make_key(client)
    assert await KeyCache(client).authenticate(access._make_secret(key.id)) is None


async def test_a_malformed_secret_never_reaches_the_store(counted: Counted) -> None:
    cache = KeyCache(cast(Client, counted))
    for bad in ("", "hfk_x", "\ud800", "x" * 10_000):
        assert await cache.authenticate(bad) is None
    assert counted.commands == []


async def test_concurrent_callers_share_one_lookup(counted: Counted) -> None:
    key, secret = await make_key(counted.client)
    cache = KeyCache(cast(Client, counted))
    answers = await asyncio.gather(*(cache.authenticate(secret) for _ in range(50)))
    assert answers == [key] * 50
    assert counted.commands == ["HMGET"]


async def test_a_caller_who_goes_away_leaves_the_lookup_to_the_others(counted: Counted) -> None:
    key, secret = await make_key(counted.client)
    cache = KeyCache(cast(Client, counted))
    first = asyncio.create_task(cache.authenticate(secret))
    second = asyncio.create_task(cache.authenticate(secret))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == key


async def test_while_the_store_is_down_a_key_found_good_lately_is_good(counted: Counted) -> None:
    key, secret = await make_key(counted.client)
    clock = Clock()
    cache = KeyCache(cast(Client, counted), clock=clock)
    assert await cache.authenticate(secret) == key
    counted.down = True
    assert await cache.authenticate(secret) == key
    clock.seconds += access.POSITIVE_SECONDS
    assert await cache.authenticate(secret) == key
    clock.seconds += access.OUTAGE_SECONDS
    with pytest.raises(StoreUnavailable):
        await cache.authenticate(secret)
    counted.down = False
    assert await cache.authenticate(secret) == key


async def test_a_flood_of_bad_secrets_stays_bounded_and_pushes_no_good_one_out(
    counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "MAX_NEGATIVE", 10)
    key, secret = await make_key(counted.client)
    cache = KeyCache(cast(Client, counted))
    assert await cache.authenticate(secret) == key
    for number in range(50):
        assert await cache.authenticate(access._make_secret(f"{number:08d}")) is None
    assert len(cache._bad) == 10
    asked = len(counted.commands)
    assert await cache.authenticate(secret) == key
    assert len(counted.commands) == asked


async def test_an_error_of_the_store_is_a_fault_and_no_refusal(client: Client) -> None:
    await client.execute_command("SET", API_KEYS_KEY, "not a hash")
    with pytest.raises(StoreFault):
        await list_keys(client)
