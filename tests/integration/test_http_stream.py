"""Event streams of a real gateway: no change is missed, none comes twice, and they end in order."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from engine.access import Role, create_key
from engine.store import StoreSettings, close_quietly, connect
from gateway.subscriptions import MAX_PENDING
from tests.gateways import GatewayProcess, Shelf, assert_problem
from tests.stores import MakeStore, RealStore, set_up
from tests.streams import WAIT_SECONDS, EventReader, is_ready, listening

ENDING_SECONDS = 5.0


async def key(settings: StoreSettings, merchant: str | None, role: Role = Role.ADMIN) -> str:
    client = connect(settings)
    try:
        _, secret = await create_key(client, role=role, merchant=merchant, label="")
        return secret
    finally:
        await close_quietly(client)


@asynccontextmanager
async def gateway_of(settings: StoreSettings) -> AsyncIterator[GatewayProcess]:
    async with GatewayProcess(settings) as process:
        await process.wait_until_ready()
        yield process


@pytest.fixture
async def gateway(store: RealStore) -> AsyncIterator[GatewayProcess]:
    async with gateway_of(store.settings) as process:
        yield process


@pytest.fixture
async def client(
    gateway: GatewayProcess, store: RealStore, merchant: str
) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway.client(await key(store.settings, merchant)) as made:
        yield made


@pytest.fixture
def shelf(client: httpx.AsyncClient, merchant: str) -> Shelf:
    return Shelf(client, merchant)


async def test_a_snapshot_and_then_every_change_while_others_write(
    client: httpx.AsyncClient, shelf: Shelf, merchant: str
) -> None:
    skus = [f"sku-{n}" for n in range(5)]
    for sku in skus:
        await shelf.move("receive", sku, 1)

    async def write(sku: str) -> None:
        for _ in range(30):
            assert (await shelf.move("receive", sku, 1)).status_code == 201

    writing = asyncio.gather(*(write(sku) for sku in skus))
    await asyncio.sleep(0)
    async with listening(client, merchant) as reader:
        await reader.until(is_ready)
        assert reader.retry_ms > 0
        (reset,) = reader.named("reset")
        assert (reset.data["reason"], reset.data["rows"]) == ("opened", 5)
        snapshot = reader.snapshot
        assert sorted(snapshot) == skus
        await writing
        await reader.until(
            lambda r: all(31 in r.versions(sku) for sku in skus if snapshot[sku]["version"] < 31)
        )
    for sku in skus:
        # From the snapshot's version on, each one once and in order.
        assert reader.versions(sku) == list(range(snapshot[sku]["version"] + 1, 32))
    last = reader.named("stock.changed")[-1]
    assert last.data["data"]["on_hand"] == 31
    assert last.data["data"]["as_of"] == last.data["time"]


async def test_a_snapshot_tells_what_is_owed_as_the_changes_do(
    client: httpx.AsyncClient, shelf: Shelf, merchant: str
) -> None:
    made = (await shelf.move("receive", "tea", 1)).json()["stock"]["version"]
    terms = f"{shelf.path}/stock/tea/terms"
    named = {"If-Match": f'"{made}"', "Idempotency-Key": "terms"}
    assert (await client.put(terms, json={"backorder_limit": 2}, headers=named)).status_code == 200
    assert (await shelf.reserve(("tea", 3))).status_code == 201
    async with listening(client, merchant) as reader:
        await reader.until(is_ready)
        assert reader.snapshot["tea"]["backordered"] == 2
        await shelf.move("receive", "tea", 1)
        await reader.until(lambda r: r.named("stock.changed") != [])
    assert reader.named("stock.changed")[0].data["data"]["backordered"] == 2


async def test_only_what_is_asked_for_comes_and_nothing_of_another_merchant(
    client: httpx.AsyncClient,
    shelf: Shelf,
    gateway: GatewayProcess,
    store: RealStore,
    merchant: str,
) -> None:
    other = f"{merchant}-other"
    async with gateway.client(await key(store.settings, other)) as stranger:
        theirs = Shelf(stranger, other)
        assert_problem(await stranger.get(f"/v1/merchants/{merchant}/stream"), 404, "not_found")
        york = Shelf(client, merchant, "york")
        await shelf.move("receive", "tea", 5)
        async with (
            listening(client, merchant) as all_of_it,
            listening(client, merchant, sku=["tea"], location=["berlin", "bonn"]) as tea,
            listening(client, merchant, type=["stock.out", "reservation.held"]) as told,
            listening(stranger, other) as other_reader,
        ):
            for reader in (all_of_it, tea, told, other_reader):
                await reader.until(is_ready)
            # What is asked for by name and is not there is in the snapshot, at version 0.
            assert [
                (r["location"], r["version"]) for e in tea.named("snapshot") for r in e.data["rows"]
            ] == [
                ("berlin", 1),
                ("bonn", 0),
            ]
            assert other_reader.snapshot == {}
            for place in (shelf, york, theirs):
                await place.move("receive", "tea", 1)
                await place.move("receive", "mug", 1)
            held = (await shelf.reserve(("tea", 6))).json()["id"]
            await shelf.move("receive", "cup", 1)
            await theirs.move("receive", "cup", 1)
            await all_of_it.until(lambda r: r.versions("cup") != [])
            await other_reader.until(lambda r: r.versions("cup") != [])
            await tea.until(lambda r: r.named("reservation.held") != [])
            await told.until(lambda r: len(r.events) >= 5)
    assert {e.data["data"]["merchant"] for e in all_of_it.events if "id" in e.data} == {merchant}
    assert {e.data["data"]["merchant"] for e in other_reader.events if "id" in e.data} == {other}
    assert [e.name for e in tea.events if "id" in e.data] == [
        "stock.changed",
        "stock.changed",
        "stock.out",
        "reservation.held",
    ]
    assert {e.data["data"]["location"] for e in tea.events if "id" in e.data} == {"berlin"}
    assert [(e.name, e.data["subject"]) for e in told.events if "id" in e.data] == [
        ("stock.out", "tea"),
        ("reservation.held", held),
    ]


async def test_a_threshold_is_told_once_a_crossing_whatever_restarts(
    store: RealStore, merchant: str
) -> None:
    secret = await key(store.settings, merchant)
    last_id = None
    crossings: list[str] = []

    for turn, quantities in enumerate(((10, -5), (-1, -1), (3, -3)), 1):
        async with gateway_of(store.settings) as gateway, gateway.client(secret) as client:
            shelf = Shelf(client, merchant)
            if last_id is None:
                path = f"{shelf.path}/stock/tea/settings"
                headers = {**shelf.key(), "If-None-Match": "*"}
                made = await client.patch(path, json={"low_stock_threshold": 5}, headers=headers)
                assert made.json()["low_stock_threshold"] == 5
            async with listening(client, merchant, last_id=last_id, sku=["tea", "end"]) as reader:
                await reader.until(is_ready)
                for quantity in quantities:
                    kind = "receive" if quantity > 0 else "sale"
                    await shelf.move(kind, "tea", abs(quantity))
                await shelf.move("receive", "end", 1)
                await reader.until(lambda r: turn in r.versions("end"))  # noqa: B023
                last_id = reader.last_id
            crossings += [
                e.name
                for e in reader.events
                if e.data.get("subject") == "tea" and e.name != "stock.changed"
            ]
    assert crossings == ["stock.back", "stock.low", "stock.low"]


async def test_who_comes_back_after_a_kill_hears_each_version_once(
    store: RealStore, merchant: str
) -> None:
    secret = await key(store.settings, merchant)
    places = [f"shop {n}" for n in range(6)]
    heard: dict[str, list[int]] = {place: [] for place in places}

    def note(reader: EventReader) -> None:
        for event in reader.named("stock.changed"):
            heard[event.data["data"]["location"]].append(event.data["data"]["version"])

    async with (
        gateway_of(store.settings) as first,
        gateway_of(store.settings) as second,
        first.client(secret) as client,
        second.client(secret) as other,
    ):

        async def write(place: str, count: int) -> None:
            shelf = Shelf(other, merchant, place)
            for _ in range(count):
                assert (await shelf.move("receive", "tea", 1)).status_code == 201

        async with listening(client, merchant) as reader:
            await reader.until(is_ready)
            writing = asyncio.gather(*(write(place, 30) for place in places))
            await reader.until(lambda r: len(r.named("stock.changed")) > 40)
            first.process.kill()
            with pytest.raises(httpx.HTTPError):
                await reader.until(lambda _: False)
        note(reader)
        await writing
        last_id = reader.last_id
        async with listening(other, merchant, last_id=last_id) as again:
            await again.until(
                lambda r: len(r.named("stock.changed")) + sum(map(len, heard.values())) >= 180
            )
            assert again.events[0].name == "resumed"
            assert again.named("reset") == []
        note(again)
    for versions in heard.values():
        assert versions == list(range(1, 31))


@pytest.mark.parametrize("last_id", ["nonsense", "12345", "1.2-3-4"])
async def test_who_comes_back_too_late_must_start_anew_and_is_told_so(
    make_store: MakeStore, merchant: str, last_id: str
) -> None:
    store = make_store()
    await store.start()
    await set_up(store.settings, partitions=1)
    secret = await key(store.settings, merchant)
    async with gateway_of(store.settings) as gateway, gateway.client(secret) as client:
        shelf = Shelf(client, merchant)
        for _ in range(3):
            await shelf.move("receive", "tea", 1)
        await store.run("XTRIM", "{hf.0}:ledger", "MAXLEN", 1)
        async with listening(client, merchant, last_id=last_id) as reader:
            await reader.until(is_ready)
        (reset,) = reader.named("reset")
        assert reset.data["reason"] == (
            "unknown_position" if last_id == "nonsense" else "window_passed"
        )
        assert reader.snapshot["tea"]["version"] == 3


async def test_a_fork_has_listeners_start_anew(make_store: MakeStore, merchant: str) -> None:
    store = make_store()
    await store.start()
    await set_up(store.settings, partitions=1)
    secret = await key(store.settings, merchant)
    async with gateway_of(store.settings) as gateway, gateway.client(secret) as client:
        shelf = Shelf(client, merchant)
        await shelf.move("receive", "tea", 1)
        await shelf.move("receive", "tea", 1)
        async with listening(client, merchant) as reader:
            await reader.until(is_ready)
            # As after a failover that lost the second receipt.
            stock = f"{{hf.0}}:stock:{merchant}:berlin:tea"
            await store.run("HSET", stock, "version", 1, "on_hand", 1)
            await store.run("HSET", "{hf.0}:meta", "sequence", 1)
            await shelf.move("receive", "mug", 1)
            await reader.until(lambda r: len(r.named("ready")) == 2)
        assert [e.data["reason"] for e in reader.named("reset")] == ["opened", "fork"]
        assert {sku: row["version"] for sku, row in reader.snapshot.items()} == {"tea": 1, "mug": 1}


async def test_a_reader_that_takes_nothing_is_cut_off_and_harms_nobody(
    client: httpx.AsyncClient,
    shelf: Shelf,
    gateway: GatewayProcess,
    store: RealStore,
    merchant: str,
) -> None:
    secret = await key(store.settings, merchant, Role.READ)
    host, port = gateway.url.removeprefix("http://").split(":")
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    slow.settimeout(WAIT_SECONDS)
    slow.connect((host, int(port)))
    head = f"GET /v1/merchants/{merchant}/stream HTTP/1.1\r\nHost: x\r\n"
    slow.sendall(f"{head}Authorization: Bearer {secret}\r\n\r\n".encode())
    async with listening(client, merchant, snapshot="false") as reader:
        await reader.until(lambda r: r.named("ready") != [])
        # Each of these is a row of its own, so none can take another's place.
        for n in range(0, 2 * MAX_PENDING, 500):
            movements = [
                {
                    "id": f"{n + i}",
                    "location": "berlin",
                    "type": "receive",
                    "sku": f"sku-{n + i}",
                    "quantity": 1,
                }
                for i in range(500)
            ]
            path = f"/v1/merchants/{merchant}/movements/batch"
            answer = await client.post(path, json={"movements": movements})
            assert answer.json()["applied"] == 500, answer.text
            subject = f"sku-{n + 499}"
            await reader.until(lambda r: r.events[-1].data.get("subject") == subject)  # noqa: B023
    heard = [e.data["subject"] for e in reader.named("stock.changed")]
    assert sorted(heard) == sorted(f"sku-{n}" for n in range(2 * MAX_PENDING))

    def rest() -> bytes:
        parts = []
        while part := slow.recv(1 << 16):
            parts.append(part)
            if part.endswith(b"0\r\n\r\n"):
                break
        slow.close()
        return b"".join(parts)

    text = await asyncio.to_thread(rest)
    assert b'event: closed\ndata: {"reason":"too_far_behind"}' in text
    assert text.count(b"event: stock.changed") < 2 * MAX_PENDING


async def test_a_gateway_with_open_streams_ends_at_once_and_says_why(
    gateway: GatewayProcess, client: httpx.AsyncClient, shelf: Shelf, merchant: str
) -> None:
    await shelf.move("receive", "tea", 1)
    async with listening(client, merchant) as one, listening(client, merchant) as two:
        await one.until(is_ready)
        await two.until(is_ready)
        began = time.monotonic()
        code, _ = await gateway.stop()
        assert (code, time.monotonic() - began < ENDING_SECONDS) == (0, True)
        for reader in (one, two):
            await reader.until(lambda r: r.named("closed") != [])
            assert reader.events[-1].data == {"reason": "shutting_down"}


async def test_what_is_asked_for_wrongly_is_refused_before_anything_is_sent(
    client: httpx.AsyncClient, merchant: str
) -> None:
    for query, parameter in (
        ({"type": "stock.gone"}, "type"),
        ({"snapshot": "maybe"}, "snapshot"),
        ({"sku": ""}, "sku"),
        ({"colour": "red"}, "colour"),
        ({"sku": [f"s{n}" for n in range(201)]}, "sku"),
    ):
        answer = await client.get(f"/v1/merchants/{merchant}/stream", params=query)
        (error,) = assert_problem(answer, 400, "invalid_request")["errors"]
        assert parameter in str(error)
