"""The gateway as a process: its start and end, and a store that comes and goes."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import httpx
import pytest

from engine.access import POSITIVE_SECONDS, Role, create_key, revoke_key
from engine.store import close_quietly, connect
from gateway.service import MAX_BACKOFF_SECONDS
from tests.gateways import GatewayProcess, Shelf, assert_problem
from tests.stores import VALKEY, MakeStore, RealCluster, RealStore, eventually, set_up

HEAL_SECONDS = 10.0


@pytest.fixture
async def own_store(make_store: MakeStore) -> RealStore:
    """A store that the test may kill."""
    store = make_store(VALKEY)
    await store.start()
    await set_up(store.settings)
    return store


async def admin_secret(store: RealStore | RealCluster, merchant: str | None = None) -> str:
    client = connect(store.settings)
    try:
        _, secret = await create_key(client, role=Role.ADMIN, merchant=merchant, label="")
        return secret
    finally:
        await close_quietly(client)


@pytest.fixture
async def gateway(store: RealStore) -> AsyncIterator[GatewayProcess]:
    async with GatewayProcess(store.settings) as process:
        await process.wait_until_ready()
        yield process


async def test_it_serves_on_an_inherited_socket_and_ends_in_order(
    gateway: GatewayProcess, store: RealStore, merchant: str
) -> None:
    secret = await admin_secret(store)
    async with gateway.client(secret) as client:
        shelf = Shelf(client, merchant)
        assert (await shelf.move("receive", "a/b {x}", 3)).status_code == 201
        row = await client.get(f"{shelf.path}/stock/a%2Fb%20%7Bx%7D")
        assert row.json()["sku"] == "a/b {x}"
    code, logged = await gateway.stop()
    assert code == 0
    events = [json.loads(line) for line in logged]
    assert all(event["level"] in ("info", "warning") for event in events), logged
    assert not any("hfk_" in line for line in logged)
    with pytest.raises(httpx.ConnectError):
        async with gateway.client() as client:
            await client.get("/livez")


async def test_a_large_body_on_a_real_socket_is_refused_and_the_gateway_goes_on(
    gateway: GatewayProcess, store: RealStore, merchant: str
) -> None:
    async with gateway.client(await admin_secret(store)) as client:
        shelf = Shelf(client, merchant)
        for content in (b"x" * 10_000_000, b"[" * 1_000_000):
            answer = await client.post(
                f"{shelf.path}/reservations", content=content, headers=shelf.key()
            )
            assert answer.status_code == (413 if content[:1] == b"x" else 400)
        assert (await shelf.move("receive", "tea", 1)).status_code == 201


async def test_a_client_that_goes_away_in_its_body_does_no_harm(gateway: GatewayProcess) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    for _ in range(3):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/merchants/m/locations/l/reservations HTTP/1.1\r\nHost: x\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    async with gateway.client() as client:
        assert (await client.get("/readyz")).status_code == 200
    code, logged = await gateway.stop()
    assert code == 0
    assert not any('"error"' in json.loads(line)["level"] for line in logged)


async def test_readiness_names_the_server_that_answers(
    gateway: GatewayProcess, store: RealStore
) -> None:
    async with gateway.client() as client:
        answer = (await client.get("/readyz")).json()
    assert answer["status"] == "ready"
    assert answer["reasons"] == []
    assert [warning.split(":")[0] for warning in answer["warnings"]] == ["sweeper_missing"]
    assert answer["store"].startswith("valkey 9." if store.kind == VALKEY else "redis 7.")


async def test_it_comes_up_without_its_store_and_heals(
    make_store: MakeStore, merchant: str
) -> None:
    store = make_store(VALKEY)
    await store.start()
    await set_up(store.settings)
    secret = await admin_secret(store)
    store.kill9()
    async with GatewayProcess(store.settings) as gateway, gateway.client(secret) as client:
        assert (await client.get("/livez")).status_code == 200
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "not_ready")
        assert answer.json()["reasons"]
        shelf = Shelf(client, merchant)
        refused = await client.get(f"{shelf.path}/stock")
        assert_problem(refused, 503, "store_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        client.headers["Authorization"] = "Bearer nonsense"
        assert_problem(await client.get(f"{shelf.path}/stock"), 401, "unauthenticated")
        client.headers["Authorization"] = f"Bearer {secret}"
        await store.start()

        async def works() -> bool:
            return (await shelf.move("receive", "tea", 1)).status_code == 201

        await eventually(works, within_seconds=MAX_BACKOFF_SECONDS + HEAL_SECONDS)


async def test_it_outlives_a_kill_of_its_store_and_the_retry_finds_its_answer(
    own_store: RealStore, merchant: str
) -> None:
    secret = await admin_secret(own_store)
    async with GatewayProcess(own_store.settings) as gateway, gateway.client(secret) as client:
        await gateway.wait_until_ready()
        shelf = Shelf(client, merchant)
        await shelf.move("receive", "tea", 5)
        before = await shelf.reserve(("tea", 2), key="the cart")
        own_store.kill9()
        refused = await shelf.reserve(("tea", 1), key="another cart")
        assert refused.status_code == 503
        assert refused.json()["code"] in ("store_unavailable", "outcome_unknown")
        assert (await client.get("/livez")).status_code == 200
        not_ready = await client.get("/readyz")
        assert (not_ready.status_code, not_ready.json()["reasons"]) == (
            503,
            ["the store does not answer"],
        )
        await own_store.start()

        async def retried() -> bool:
            return (await shelf.reserve(("tea", 1), key="another cart")).status_code == 201

        await eventually(retried, within_seconds=HEAL_SECONDS)
        again = await shelf.reserve(("tea", 2), key="the cart")
        assert (again.json(), again.headers["idempotent-replayed"]) == (before.json(), "true")
        row = (await client.get(f"{shelf.path}/stock/tea")).json()
        assert (row["on_hand"], row["reserved"]) == (5, 3)
        assert (await client.get("/readyz")).status_code == 200


async def test_a_revoked_key_stops_within_two_seconds_and_a_bit(
    gateway: GatewayProcess, store: RealStore, merchant: str
) -> None:
    secret = await admin_secret(store, merchant)
    async with gateway.client(secret) as client:
        path = f"/v1/merchants/{merchant}/locations"
        assert (await client.get(path)).status_code == 200
        made = connect(store.settings)
        await revoke_key(made, secret[4:12])
        await close_quietly(made)

        async def refused() -> bool:
            return (await client.get(path)).status_code == 401

        await eventually(refused, within_seconds=POSITIVE_SECONDS + 1)


async def test_a_store_that_loses_writes_is_not_served_from(
    make_store: MakeStore, merchant: str
) -> None:
    store = make_store(VALKEY)
    await store.start()
    await set_up(store.settings)
    secret = await admin_secret(store)
    await store.run("CONFIG", "SET", "appendfsync", "everysec")
    async with GatewayProcess(store.settings) as gateway, gateway.client(secret) as client:

        async def says_why() -> bool:
            answer = await client.get("/readyz")
            return answer.status_code == 503 and "fsync_not_always" in answer.text

        await eventually(says_why, within_seconds=HEAL_SECONDS)
        answer = await client.get(f"/v1/merchants/{merchant}/locations")
        assert_problem(answer, 503, "store_unavailable")
        await store.run("CONFIG", "SET", "appendfsync", "always")
        await gateway.wait_until_ready()


async def test_unsafe_durability_is_allowed_loudly(make_store: MakeStore) -> None:
    store = make_store(VALKEY)
    await store.start()
    await store.run("CONFIG", "SET", "appendfsync", "everysec")
    environ = {"HOLDFAST_UNSAFE_DURABILITY": "true"}
    async with GatewayProcess(store.settings, environ=environ) as gateway:
        await gateway.wait_until_ready()
        async with gateway.client() as client:
            answer = (await client.get("/readyz")).json()
        assert answer["status"] == "ready"
        assert any("fsync_not_always" in warning for warning in answer["warnings"])
        _, logged = await gateway.stop()
    warnings = [json.loads(line) for line in logged if "not safe" in line]
    assert [event["level"] for event in warnings] == ["warning"]


async def test_two_gateways_on_one_store_agree(store: RealStore, merchant: str) -> None:
    secret = await admin_secret(store, merchant)
    async with GatewayProcess(store.settings) as one, GatewayProcess(store.settings) as two:
        for gateway in (one, two):
            await gateway.wait_until_ready()
        async with one.client(secret) as first, two.client(secret) as second:
            await Shelf(first, merchant).move("receive", "tea", 1)
            answers = await asyncio.gather(
                *(
                    Shelf(client, merchant).reserve(("tea", 1), key="the cart")
                    for client in (first, second) * 20
                )
            )
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.text for answer in answers}) == 1


@pytest.mark.cluster
async def test_it_serves_from_a_cluster(cluster: RealCluster, merchant: str) -> None:
    secret = await admin_secret(cluster, merchant)
    async with GatewayProcess(cluster.settings) as gateway, gateway.client(secret) as client:
        await gateway.wait_until_ready()
        for location in ("berlin", "hamburg", "köln"):
            shelf = Shelf(client, merchant, location)
            assert (await shelf.move("receive", "tea", 2)).status_code == 201
            held = await shelf.reserve(("tea", 2))
            assert (await shelf.end("commit", held.json()["id"])).status_code == 200
        listed = (await client.get(f"/v1/merchants/{merchant}/locations")).json()["data"]
        assert [one["location"] for one in listed] == ["berlin", "hamburg", "köln"]


async def test_a_port_that_is_taken_is_said_and_ends_with_4(store: RealStore) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        environ = {"HOLDFAST_LISTEN_FD": "", "HOLDFAST_PORT": port}
        code, logged = await run_to_its_end(store, environ)
    assert code == 4
    assert any("cannot listen" in line and port in line for line in logged)


async def test_a_bad_setting_is_said_in_one_line(store: RealStore) -> None:
    code, logged = await run_to_its_end(store, {"HOLDFAST_PORT": "http"})
    assert code == 1
    assert logged == ["gateway: HOLDFAST_PORT: found 'http', wanted a number up to 65535"]


async def run_to_its_end(store: RealStore, environ: dict[str, str]) -> tuple[int, list[str]]:
    gateway = GatewayProcess(store.settings, environ=environ)
    return await gateway.run_to_its_end()
