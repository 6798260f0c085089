"""Sessions of the console: what opens one, what it may do, and from where."""

import asyncio
from typing import Any

import httpx
import pytest

from engine.access import Role, open_session, revoke_key
from engine.keys import SESSIONS_KEY
from tests.gateways import Api, Shelf, assert_problem
from tests.stores import eventually

OWN = {"Sec-Fetch-Site": "same-origin"}


async def sign_in(api: Api, secret: str, **headers: str) -> httpx.AsyncClient:
    """Return a client that has nothing but the cookie."""
    client = api.client_of(None)
    answer = await client.post(
        "/v1/session", json={"key": secret}, headers={"Origin": "http://gateway", **headers}
    )
    assert answer.status_code == 201, answer.text
    return client


async def test_a_session_stands_for_its_key(api: Api, shelf: Shelf) -> None:
    secret = await api.secret(Role.ADMIN, api.merchant)
    client = await sign_in(api, secret)
    who = (await client.get("/v1/session")).json()
    assert who == {
        "key": secret[4:12],
        "actor": f"key:{secret[4:12]}",
        "role": "admin",
        "merchant": api.merchant,
        "label": "of a test",
    }
    moved = await Shelf(client, api.merchant).client.post(
        f"{shelf.path}/movements",
        json={"type": "receive", "sku": "tea", "quantity": 1},
        headers={"Idempotency-Key": "1", **OWN},
    )
    assert moved.status_code == 201
    entries = (await client.get(f"{shelf.merchant_path}/ledger")).json()["data"]
    assert [entry["actor"] for entry in entries] == [f"key:{secret[4:12]}"]
    answer = await client.get("/v1/merchants/another/locations")
    assert_problem(answer, 404, "not_found")


async def test_a_readers_session_changes_nothing(api: Api, shelf: Shelf) -> None:
    client = await sign_in(api, await api.secret(Role.READ, api.merchant))
    answer = await client.post(
        f"{shelf.path}/movements",
        json={"type": "receive", "sku": "tea", "quantity": 1},
        headers={"Idempotency-Key": "1", **OWN},
    )
    assert_problem(answer, 403, "forbidden")


@pytest.mark.parametrize(
    ("method", "headers", "allowed"),
    [
        ("GET", {}, True),
        ("GET", OWN, True),
        ("GET", {"Sec-Fetch-Site": "same-site"}, False),
        ("GET", {"Sec-Fetch-Site": "cross-site"}, False),
        ("GET", {"Sec-Fetch-Site": "none"}, False),
        ("GET", {"Origin": "http://gateway.evil.test"}, False),
        ("PUT", {}, False),
        ("PUT", OWN, True),
        ("PUT", {"Origin": "http://gateway"}, True),
        ("PUT", {"Origin": "http://GATEWAY"}, True),
        ("PUT", {"Origin": "http://gateway:81"}, False),
        ("PUT", {"Origin": "null"}, False),
        ("PUT", {"Sec-Fetch-Site": "same-site", "Origin": "http://gateway"}, False),
    ],
)
async def test_a_cookie_counts_only_from_our_own_page(
    api: Api, method: str, headers: dict[str, str], allowed: bool
) -> None:
    client = await sign_in(api, await api.secret(Role.ADMIN, api.merchant))
    path = f"/v1/merchants/{api.merchant}/feed-policy"
    body: dict[str, Any] = {} if method == "GET" else {"json": {"late_hours": 5}}
    answer = await client.request(method, path, headers=headers, **body)
    if allowed:
        assert answer.status_code == 200, answer.text
    else:
        assert_problem(answer, 403, "foreign_origin")


async def test_a_page_of_another_site_cannot_sign_anybody_in(api: Api) -> None:
    secret = await api.secret(Role.READ, api.merchant)
    answer = await api.client_of(None).post(
        "/v1/session", json={"key": secret}, headers={"Origin": "https://evil.test"}
    )
    assert_problem(answer, 403, "foreign_origin")
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(("scheme", "secure"), [("http", False), ("https", True)])
async def test_the_cookie_is_for_the_browser_alone(api: Api, scheme: str, secure: bool) -> None:
    secret = await api.secret(Role.READ, api.merchant)
    answer = await api.client_of(None).post(
        "/v1/session", json={"key": secret}, headers={"Origin": f"{scheme}://gateway"}
    )
    parts = answer.headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(parts)
    assert ("Secure" in parts) is secure
    assert secret not in answer.headers["set-cookie"]
    assert secret not in answer.text


async def test_a_session_ends_with_its_key_by_signing_out_and_by_time(api: Api) -> None:
    secret = await api.secret(Role.READ, api.merchant)

    async def is_over(client: httpx.AsyncClient) -> bool:
        return (await client.get("/v1/session")).status_code == 401

    signed_out = await sign_in(api, secret)
    kept = dict(signed_out.cookies)
    assert (await signed_out.delete("/v1/session", headers=OWN)).status_code == 204
    assert not dict(signed_out.cookies)
    signed_out.cookies.update(kept)
    assert await is_over(signed_out)

    short = await open_session(api.store, secret[4:12], seconds=1)
    timed = api.client_of(None)
    timed.cookies.set("holdfast_session", short.token)
    assert not await is_over(timed)
    await eventually(lambda: is_over(timed), within_seconds=10)

    revoked = await sign_in(api, secret)
    assert not await is_over(revoked)
    await revoke_key(api.store, secret[4:12])
    await eventually(lambda: is_over(revoked), within_seconds=10)


async def test_a_token_is_no_key_and_the_store_does_not_know_it(api: Api) -> None:
    client = await sign_in(api, await api.secret(Role.ADMIN, None))
    token = client.cookies["holdfast_session"]
    bearing = api.client_of(token)
    assert_problem(await bearing.get("/v1/session"), 401, "unauthenticated")
    again = await bearing.post("/v1/session", json={"key": token})
    assert_problem(again, 401, "unauthenticated")
    sessions = [key async for key in api.store.scan_iter(f"{SESSIONS_KEY}*")]
    assert sessions
    assert not any(token[4:].encode() in key for key in sessions)
    for wrong in ("hfs_" + "0" * 43, token[:-1], token + "0", '"', "é"):
        guess = api.client_of(None)
        answer = await guess.get(
            "/v1/session", headers=[(b"cookie", f"holdfast_session={wrong}".encode("latin-1"))]
        )
        assert_problem(answer, 401, "unauthenticated")


async def test_sign_ins_from_one_address_are_limited(api: Api) -> None:
    client = api.client_of(None)

    async def attempt() -> httpx.Response:
        return await client.post("/v1/session", json={"key": "hfk_wrong"})

    answers = await asyncio.gather(*(attempt() for _ in range(30)))
    statuses = {answer.status_code for answer in answers}
    assert statuses == {401, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1


async def test_merchants_are_listed_once_each_in_pages(api: Api) -> None:
    names = [api.merchant + ending for ending in ("", "-a", "-a:b", "é", "/")]
    platform = await api.client(Role.ADMIN, merchant=None)
    for name in names:
        for location in ("berlin", "leeds", "riga"):
            answer = await platform.post(
                f"/v1/merchants/{name.replace('/', '%2F')}/locations/{location}/movements",
                json={"type": "receive", "sku": "tea", "quantity": 1},
                headers={"Idempotency-Key": "1"},
            )
            assert answer.status_code == 201
    found: list[str] = []
    cursor = None
    while True:
        query = {"limit": "2", **({"cursor": cursor} if cursor else {})}
        page = (await platform.get("/v1/merchants", params=query)).json()
        found += [one["merchant"] for one in page["data"]]
        cursor = page["next_cursor"]
        if not page["has_more"]:
            break
    assert len(found) == len(set(found))
    assert sorted(name for name in found if name.startswith(api.merchant)) == sorted(names)
