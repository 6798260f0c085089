"""Webhook endpoints, items and search over HTTP."""

import json
from typing import Any

import httpx
import pytest

from engine import webhooks as records
from engine.keys import WEBHOOKS_KEY, digest
from engine.leases import Lease
from engine.outbox import Attempt, NewEvent, Outbox
from engine.webhooks import MAX_ENDPOINTS_OF_A_MERCHANT, Webhooks
from gateway.paging import cursor
from projection import follower
from projection.database import open_database
from tests.gateways import Api, Shelf, assert_problem

URL = "https://hooks.example/stock"


async def create(shelf: Shelf, key: str = "one", **fields: Any) -> httpx.Response:
    return await shelf.client.post(
        f"{shelf.merchant_path}/webhooks",
        json={"url": URL, **fields},
        headers={"Idempotency-Key": key},
    )


async def test_an_endpoint_is_made_once_and_its_secret_is_shown_once(
    api: Api, shelf: Shelf
) -> None:
    made = await create(shelf, types=["stock.out"], locations=["berlin"], skus=["tea"])
    assert made.status_code == 201, made.text
    again = await create(shelf, types=["stock.out"], locations=["berlin"], skus=["tea"])
    assert again.json() == made.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert_problem(await create(shelf), 422, "idempotency_key_reused")
    secret = made.json()["secret"]
    assert secret.startswith("whsec_")
    path = f"{shelf.merchant_path}/webhooks/{made.json()['id']}"
    for answer in (
        await shelf.client.get(path),
        await shelf.client.get(f"{shelf.merchant_path}/webhooks"),
        await shelf.client.patch(path, json={"description": "mine"}),
    ):
        assert answer.status_code == 200
        assert "whsec_" not in answer.text
    assert repr(await Webhooks(api.service.inventory.store).all()).count("whsec_") == 0

    rotated = await shelf.client.post(f"{path}/secret", headers={"Idempotency-Key": "r"})
    repeated = await shelf.client.post(f"{path}/secret", headers={"Idempotency-Key": "r"})
    assert rotated.json() == repeated.json()
    assert repeated.headers["idempotent-replayed"] == "true"
    assert rotated.json()["secret"] != secret
    assert rotated.json()["old_secret_valid_until"] is not None
    at_once = await shelf.client.post(
        f"{path}/secret", json={"overlap_seconds": 0}, headers={"Idempotency-Key": "s"}
    )
    assert at_once.json()["old_secret_valid_until"] is None
    (stored,) = await Webhooks(api.service.inventory.store).of_merchant(api.merchant)
    assert [one.text for one in stored.secrets] == [at_once.json()["secret"]]

    assert (await shelf.client.delete(path)).status_code == 204
    assert_problem(await shelf.client.delete(path), 404, "webhook_not_found")
    assert (await shelf.client.get(f"{shelf.merchant_path}/webhooks")).json()["data"] == []


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"url": "http://hooks.example/"}, "#/url"),
        ({"url": "https://127.0.0.1/"}, "#/url"),
        ({"url": "https://user:pw@hooks.example/"}, "#/url"),
        ({"url": ""}, "#/url"),
        ({"types": ["stock.gone"]}, "#/types/0"),
        ({"locations": [""]}, "#/locations/0"),
        ({"skus": ["x" * 201]}, "#/skus/0"),
        ({"skus": ["\u00e9" * 150]}, "#/skus/0"),
        ({"skus": ["x"] * 101}, "#/skus"),
        ({"secret": "whsec_mine"}, "#/secret"),
    ],
)
async def test_what_is_not_of_its_form_is_pointed_to(
    shelf: Shelf, fields: dict[str, Any], pointer: str
) -> None:
    problem = assert_problem(await create(shelf, **fields), 400, "invalid_request")
    assert problem["errors"][0]["pointer"] == pointer
    made = await create(shelf)
    path = f"{shelf.merchant_path}/webhooks/{made.json()['id']}"
    problem = assert_problem(await shelf.client.patch(path, json=fields), 400, "invalid_request")
    assert problem["errors"][0]["pointer"] == pointer


async def test_there_is_a_last_endpoint(
    api: Api, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(MAX_ENDPOINTS_OF_A_MERCHANT):
        assert (await create(shelf, f"key {number}")).status_code == 201
    assert_problem(await create(shelf, "one more"), 422, "limit_exceeded")
    length = await api.store.execute_command("HLEN", WEBHOOKS_KEY)
    monkeypatch.setattr(records, "MAX_ENDPOINTS", length - 1)
    other = Shelf(await api.client(merchant=None), f"{api.merchant}-2")
    assert_problem(await create(other), 422, "limit_exceeded")


async def test_a_change_keeps_what_it_does_not_name_and_resuming_tells_what_was_missed(
    api: Api, shelf: Shelf
) -> None:
    made = (await create(shelf, types=["stock.out"], skus=["tea"])).json()
    path = f"{shelf.merchant_path}/webhooks/{made['id']}"
    paused = (await shelf.client.patch(path, json={"status": "paused"})).json()
    assert (paused["status"], paused["reason"], paused["skus"]) == ("paused", "requested", ["tea"])
    changed = (await shelf.client.patch(path, json={"skus": [], "url": f"{URL}/2"})).json()
    assert (changed["types"], changed["skus"], changed["status"]) == (["stock.out"], [], "paused")
    resumed = (await shelf.client.patch(path, json={"status": "active"})).json()
    assert (resumed["status"], resumed["reason"], resumed["waiting"]) == ("active", "", 0)

    store = Webhooks(api.service.inventory.store)
    await store.change(
        api.merchant, made["id"], status=records.EndpointStatus.DISABLED,
        reason=records.StatusReason.GONE,
    )  # fmt: skip
    enabled = (await shelf.client.patch(path, json={"status": "active"})).json()
    assert (enabled["status"], enabled["waiting"]) == ("active", 1)
    refused = await shelf.client.patch(path, json={"status": "disabled"})
    assert_problem(refused, 400, "invalid_request")


async def test_attempts_and_dead_letters_are_listed_page_by_page_and_replayed(
    api: Api, shelf: Shelf
) -> None:
    made = (await create(shelf)).json()
    path = f"{shelf.merchant_path}/webhooks/{made['id']}"
    (endpoint,) = await Webhooks(api.service.inventory.store).of_merchant(api.merchant)
    outbox = Outbox(api.service.inventory.store, endpoint.keys)
    events = [
        NewEvent(n, f"e{n}", f"row {n}", "stock.out", b'{"type":"stock.out","id":"e%d"}' % n, n)
        for n in range(1, 6)
    ]
    assert await outbox.enqueue(3, events[:3], last=3) == 3
    # Brought again after a crash, in part.
    assert await outbox.enqueue(3, events[1:], last=5) == 2
    assert [one.id for one in await outbox.window()] == ["e1", "e2", "e3", "e4", "e5"]
    lease = records_lease(api, endpoint)
    assert await lease.renew()
    for event in await outbox.window():
        attempt = Attempt(5, event.id, event.type, 11, "refused", 500, 12)
        assert await outbox.settle(lease, event, attempt, "dead") is not None
    read = (await shelf.client.get(path)).json()
    assert (read["waiting"], read["dead_letters"], read["failures"]) == (0, 5, 5)

    seen: list[Any] = []
    for listing in ("attempts", "dead-letters"):
        query: dict[str, str] = {"limit": "2"}
        for _ in range(3):
            page = (await shelf.client.get(f"{path}/{listing}", params=query)).json()
            seen += page["data"]
            query["cursor"] = page["next_cursor"] or ""
        assert not page["has_more"]
    assert [one["event"] for one in seen[:5]] == ["e5", "e4", "e3", "e2", "e1"]
    assert [one["event"]["id"] for one in seen[5:]] == ["e1", "e2", "e3", "e4", "e5"]
    bad = await shelf.client.get(f"{path}/attempts", params={"cursor": "AAAA"})
    assert_problem(bad, 400, "invalid_request")

    ids = {"ids": [seen[5]["id"], seen[6]["id"]]}
    replay = f"{path}/dead-letters/replay"
    assert (await shelf.client.post(replay, json=ids)).json() == {"replayed": 2}
    assert (await shelf.client.post(replay, json=ids)).json() == {"replayed": 0}
    assert (await shelf.client.post(replay)).json() == {"replayed": 3}
    assert_problem(await shelf.client.post(replay, json={"ids": ["x"]}), 400, "invalid_request")
    window = await outbox.window()
    assert [(one.id, one.attempts) for one in window] == [(f"e{n}", 0) for n in range(1, 6)]
    # Another owner of the lease: what this one did is not noted.
    await lease.give_up()
    taken = records_lease(api, endpoint, "other")
    assert await taken.renew()
    attempt = Attempt(5, "e1", "stock.out", 1, "delivered", 200, 12)
    lease.fence = 1
    assert await outbox.settle(lease, window[0], attempt, "delivered") is None
    assert await outbox.waiting() == 5


def records_lease(api: Api, endpoint: Any, owner: str = "test") -> Any:
    return Lease(api.service.inventory.store, endpoint.keys, "deliver", owner=owner)


async def test_items_are_described_and_rows_are_found_by_them(api: Api, shelf: Shelf) -> None:
    path = shelf.merchant_path
    for sku, units in (("tea/green", 3), ("mug", 1), ("jug", 2)):
        await shelf.move("receive", sku, units)
    await shelf.reserve(("mug", 1))
    item = {"title": "Sencha", "attributes": {"ean": "1"}}
    put = await shelf.client.put(f"{path}/items/tea%2Fgreen", json=item)
    assert put.json() == {"sku": "tea/green", **item}
    assert (await shelf.client.get(f"{path}/items/tea%2Fgreen")).json() == put.json()
    assert_problem(await shelf.client.get(f"{path}/items/mug"), 404, "item_not_found")
    database = open_database(api.index_url)
    await follower.rebuild(api.service.inventory, database, taken=lambda _: None)
    await database.close()

    async def found(**query: str) -> list[str]:
        answer = await shelf.client.get(f"{path}/search", params=query)
        assert answer.status_code == 200, answer.text
        return [one["sku"] for one in answer.json()["data"]]

    assert await found() == ["jug", "mug", "tea/green"]
    assert await found(q="sench") == ["tea/green"]
    assert await found(stock="out") == ["mug"]
    assert await found(sku="mug", location="berlin") == ["mug"]
    assert await found(location="elsewhere") == []
    first = (await shelf.client.get(f"{path}/search", params={"limit": "2"})).json()
    assert first["has_more"]
    rest = await found(cursor=first["next_cursor"])
    assert rest == ["tea/green"]
    other = await shelf.client.get(
        f"{path}/search", params={"cursor": first["next_cursor"], "stock": "in"}
    )
    assert_problem(other, 400, "invalid_request")
    owing = {"sort": "-backordered", "stock": "backordered"}
    assert await found(**owing) == []
    merchant = shelf.merchant_path.rpartition("/")[2]
    listing = ("search", digest(merchant, "", "", "", "backordered", "-backordered"))
    for units, status in ((7, 200), (10**20, 400), (-1, 400)):
        forged = owing | {"cursor": cursor(listing, json.dumps([units, "berlin", "mug"])) or ""}
        answer = await shelf.client.get(f"{path}/search", params=forged)
        assert answer.status_code == status, units
    for query in (
        {"sort": "-backordered"},
        {"sort": "-backordered", "stock": "in"},
        {**owing, "q": "mug"},
        {"sort": "most"},
    ):
        answer = await shelf.client.get(f"{path}/search", params=query)
        problem = assert_problem(answer, 400, "invalid_request")
        assert problem["errors"][0]["parameter"] == "sort"
    for query in ({"stock": "some"}, {"q": ""}, {"q": "x" * 201}, {"sku": ""}, {"limit": "0"}):
        answer = await shelf.client.get(f"{path}/search", params=query)
        problem = assert_problem(answer, 400, "invalid_request")
        assert problem["errors"][0]["parameter"] in query
    assert (await shelf.client.delete(f"{path}/items/tea%2Fgreen")).status_code == 204
    assert await found(q="sench") == []
    for body, pointer in (
        ({}, "#/title"),
        ({"title": "x" * 501}, "#/title"),
        ({"title": "x", "attributes": {"": "y"}}, "#/attributes"),
        ({"title": "x", "attributes": {str(n): "y" for n in range(51)}}, "#/attributes"),
    ):
        answer = await shelf.client.put(f"{path}/items/mug", json=body)
        problem = assert_problem(answer, 400, "invalid_request")
        assert problem["errors"][0]["pointer"].startswith(pointer)


async def test_a_gateway_without_an_index_says_so(api: Api, shelf: Shelf) -> None:
    api.service._index_url = ""
    answer = await shelf.client.get(f"{shelf.merchant_path}/search")
    assert_problem(answer, 503, "index_unavailable")
    assert answer.headers["retry-after"] == "5"
