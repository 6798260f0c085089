"""Isolation, roles and keys, over every operation of the route table."""

import re
from typing import Any

import httpx
import pytest

from engine.access import Role, revoke_key
from engine.boot import DEFAULT_PARTITIONS as PARTITIONS
from engine.keys import API_KEYS_KEY, digest, order_id
from gateway.operations import Operation
from gateway.routes import OPERATIONS
from tests.gateways import Api, Shelf, assert_problem, lines_of

GUARDED = [operation for operation in OPERATIONS if "{merchant}" in operation.path]
PLATFORM = [
    operation
    for operation in OPERATIONS
    if operation.role is not None and operation not in GUARDED and not operation.any_merchant
]

LESSER: dict[Role, list[Role]] = {
    Role.READ: [],
    Role.RESERVE: [Role.READ, Role.FEED],
    Role.FEED: [Role.READ, Role.RESERVE],
    Role.ADMIN: [Role.READ, Role.RESERVE, Role.FEED],
}

BODIES: dict[str, Any] = {
    "askAvailability": {"rows": [{"location": "berlin", "sku": "tea"}]},
    "reserve": {"lines": lines_of([("tea", 1)])},
    "amend": {"lines": lines_of([("tea", 1)])},
    "extend": {"ttl_seconds": 60},
    "relocate": {"location": "hamburg"},
    "resourceOrder": {"location": "berlin"},
    "placeOrder": {"lines": [{"sku": "cup", "quantity": 1, "location": "berlin"}]},
    "writeSourcing": {"priority": 2},
    "move": {"type": "receive", "sku": "tea", "quantity": 1},
    "moveBatch": {
        "movements": [
            {"id": "1", "location": "berlin", "type": "receive", "sku": "tea", "quantity": 1}
        ]
    },
    "changeSettings": {"safety_stock": 1},
    "changeSplit": {"parts": 1},
    "setTerms": {"backorder_limit": 1},
    "expectSupply": {"expected_on": "2026-12-10", "quantity": 5},
    "takeEvents": {
        "events": [
            {"event_id": "1", "type": "heartbeat", "occurred_at": "2026-01-01T00:00:00Z"},
        ]
    },
    "skipEvents": {"through": 5},
    "writeMerchantFeedPolicy": {},
    "writeLocationFeedPolicy": {},
    "createWebhook": {"url": "https://hooks.invalid/"},
    "changeWebhook": {"description": "of a test"},
    "putItem": {"title": "Tea"},
    "createKey": {"role": "read"},
    "submitAuditJob": {"kind": "repair_plan"},
    "putSubstitutes": {"alternatives": [{"sku": "mint"}]},
    "importSubstitutes": {"substitutes": [{"sku": "tea", "alternatives": [{"sku": "mint"}]}]},
    "putKit": {"components": [{"sku": "mug", "quantity": 1}]},
    "importKits": {"kits": [{"sku": "box", "components": [{"sku": "mug", "quantity": 1}]}]},
}


DECISIONS = ("acceptOrder", "declineOrder")
"""About an order, substitutes of which were proposed."""


async def request(
    client: httpx.AsyncClient,
    operation: Operation,
    merchant: str,
    reservation: str,
    *,
    succeeds: bool = False,
) -> httpx.Response:
    """Make a request of the operation that would succeed with the right key."""
    # Another row than the one that is looked at has a supply to be cancelled.
    sku = "cup" if operation.name == "cancelSupply" else "tea"
    path = operation.path.format(
        merchant=merchant,
        location="berlin",
        # What has a shelf is no kit.
        sku="box" if "/kits/" in operation.path else sku,
        supply="po-1",
        reservation=reservation,
        source="till",
        event="0" * 24,
        key="00000000",
        job="job_none",
        # The merchant's own ones, which the fixture made under this key, and one with a proposal.
        order=order_id(
            "order",
            merchant.removesuffix("-other"),
            f"of {operation.name}" if operation.name in DECISIONS else "of a fixture",
            PARTITIONS,
        ),
        webhook=f"whk_{digest('webhook', merchant.removesuffix('-other'), 'of a fixture')}",
    )
    headers = {"Idempotency-Key": f"of {operation.name}"}
    if operation.name in ("changeSettings", "setTerms"):
        headers["If-Match"] = '"2"'
    # A stream that is let in has no end; what HEAD says of it has one.
    method = "HEAD" if operation.name == "listen" and succeeds else operation.method
    return await client.request(method, path, json=BODIES.get(operation.name), headers=headers)


@pytest.fixture
async def reservation(shelf: Shelf) -> str:
    await shelf.move("receive", "tea", 10)
    await shelf.client.post(
        f"{shelf.merchant_path}/webhooks",
        json=BODIES["createWebhook"],
        headers={"Idempotency-Key": "of a fixture"},
    )
    await shelf.client.put(f"{shelf.merchant_path}/items/tea", json=BODIES["putItem"])
    await shelf.move("receive", "cup", 10)
    await shelf.client.put(
        f"{shelf.path}/stock/cup/supplies/po-1",
        json=BODIES["expectSupply"],
        headers={"Idempotency-Key": "of a fixture"},
    )
    placed = await shelf.client.post(
        f"{shelf.merchant_path}/orders",
        json=BODIES["placeOrder"],
        headers={"Idempotency-Key": "of a fixture"},
    )
    assert placed.status_code == 201, placed.text
    # So that what the order holds can come from elsewhere.
    await shelf.client.post(
        f"{shelf.merchant_path}/locations/annex/movements",
        json={"type": "receive", "sku": "cup", "quantity": 10},
        headers=shelf.key(),
    )
    substitutes = f"{shelf.merchant_path}/substitutes/tea"
    await shelf.client.put(substitutes, json=BODIES["putSubstitutes"])
    held = str((await shelf.reserve(("tea", 1))).json()["id"])
    await shelf.client.put(f"{shelf.merchant_path}/kits/box", json=BODIES["putKit"])
    return held


async def untouched(shelf: Shelf, reservation: str) -> bool:
    row = (await shelf.client.get(f"{shelf.path}/stock/tea")).json()
    held = (await shelf.client.get(f"{shelf.merchant_path}/reservations/{reservation}")).json()
    return bool(row["version"] == 2 and held["state"] == "held")


def strip(problem: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in problem.items() if name != "request_id"}


@pytest.mark.parametrize("operation", GUARDED, ids=lambda operation: operation.name)
async def test_isolation_another_merchants_key_finds_nothing(
    api: Api, shelf: Shelf, reservation: str, operation: Operation
) -> None:
    unknown = strip(assert_problem(await shelf.client.get("/v1/no/such/path"), 404, "not_found"))
    for role in Role:
        stranger = await api.client(role, merchant=f"{api.merchant}-other")
        answer = await request(stranger, operation, api.merchant, reservation)
        assert strip(assert_problem(answer, 404, "not_found")) == unknown
        nobody = await request(stranger, operation, f"{api.merchant}-nobody", reservation)
        assert strip(assert_problem(nobody, 404, "not_found")) == unknown
    assert await untouched(shelf, reservation)


@pytest.mark.parametrize("operation", GUARDED, ids=lambda operation: operation.name)
async def test_isolation_a_platform_key_sees_no_reservation_under_another_merchant(
    api: Api, shelf: Shelf, reservation: str, operation: Operation
) -> None:
    platform = await api.client(Role.ADMIN, merchant=None)
    named = re.search(r"\{(reservation|webhook|order)\}", operation.path)
    if named is not None:
        answer = await request(platform, operation, f"{api.merchant}-other", reservation)
        assert_problem(answer, 404, f"{named[1]}_not_found")
        assert await untouched(shelf, reservation)
    else:
        answer = await request(platform, operation, api.merchant, reservation, succeeds=True)
        assert answer.status_code < 300, answer.text


@pytest.mark.parametrize("operation", GUARDED, ids=lambda operation: operation.name)
async def test_a_lesser_role_is_told_which_one_is_needed(
    api: Api, shelf: Shelf, reservation: str, operation: Operation
) -> None:
    assert operation.role is not None
    for role in LESSER[operation.role]:
        client = await api.client(role)
        answer = await request(client, operation, api.merchant, reservation)
        (error,) = assert_problem(answer, 403, "forbidden")["errors"]
        assert error["role"] == operation.role
    assert await untouched(shelf, reservation)


@pytest.mark.parametrize("operation", GUARDED, ids=lambda operation: operation.name)
async def test_the_needed_role_is_enough(
    api: Api, shelf: Shelf, reservation: str, operation: Operation
) -> None:
    assert operation.role is not None
    # What is of all merchants is for a key of all of them.
    merchant = api.merchant if "{merchant}" in operation.path else None
    client = await api.client(operation.role, merchant=merchant)
    if operation.name in ("accept", "decline", *DECISIONS):
        line = {
            "sku": "mint",
            "quantity": 1,
            "substitutes": "approve",
            "alternatives": [{"sku": "cup"}],
        }
        is_order = operation.name in DECISIONS
        held = await shelf.client.post(
            f"{shelf.merchant_path}/orders" if is_order else f"{shelf.path}/reservations",
            json={"lines": [line]},
            headers={"Idempotency-Key": f"of {operation.name}"},
        )
        reservation = str(held.json()["id"])
    if operation.name == "relocate":
        await shelf.client.post(
            f"{shelf.merchant_path}/locations/hamburg/movements",
            json=BODIES["move"],
            headers=shelf.key(),
        )
    answer = await request(client, operation, api.merchant, reservation, succeeds=True)
    assert answer.status_code < 300, answer.text


@pytest.mark.parametrize("operation", GUARDED, ids=lambda operation: operation.name)
async def test_without_a_key_nothing_is_told(
    api: Api, shelf: Shelf, reservation: str, operation: Operation
) -> None:
    answer = await request(api.client_of(None), operation, api.merchant, reservation)
    assert_problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert await untouched(shelf, reservation)


async def test_every_wrong_authorization_gets_the_same_answer(api: Api, shelf: Shelf) -> None:
    secret = await api.secret(Role.ADMIN, api.merchant)
    other = secret[:-1] + ("0" if secret[-1] != "0" else "1")
    client = api.client_of(None)
    answers = []
    for value in (
        "", "Bearer", "Bearer ", f"Basic {secret}", secret, f"Bearer {other}",
        f"Bearer {secret} x", f"Bearer {secret}\x7f", "Bearer hfk_\xff", "Bearer " + "x" * 5000,
        f'Bearer "{secret}"',
    ):  # fmt: skip
        answer = await client.get(
            f"{shelf.path}/stock", headers=[(b"authorization", value.encode("latin-1"))]
        )
        answers.append(strip(assert_problem(answer, 401, "unauthenticated")))
    assert all(answer == answers[0] for answer in answers)
    for scheme in ("bearer", "BEARER"):
        answer = await client.get(
            f"{shelf.path}/stock", headers={"Authorization": f"{scheme} {secret}"}
        )
        assert answer.status_code == 200


async def test_a_revoked_key_is_refused_by_a_gateway_that_did_not_know_it(api: Api) -> None:
    secret = await api.secret(Role.READ, api.merchant)
    await revoke_key(api.store, secret[4:12])
    answer = await api.client_of(secret).get(f"/v1/merchants/{api.merchant}/locations")
    assert_problem(answer, 401, "unauthenticated")


async def test_two_authorizations_are_refused(api: Api) -> None:
    secret = await api.secret(Role.READ, api.merchant)
    answer = await api.client_of(None).get(
        f"/v1/merchants/{api.merchant}/locations",
        headers=[("Authorization", f"Bearer {secret}")] * 2,
    )
    problem = assert_problem(answer, 400, "invalid_request")
    assert problem["errors"][0]["header"] == "Authorization"


async def test_no_answer_and_no_record_holds_a_secret(api: Api, shelf: Shelf) -> None:
    secret = await api.secret(Role.ADMIN, api.merchant)
    records = await api.store.execute_command("HGETALL", API_KEYS_KEY)
    assert secret[13:].encode() not in b"".join(records.values())
    answer = await shelf.client.get(f"{shelf.path}/stock/tea")
    assert secret not in answer.text
    assert secret not in str(answer.headers)


async def test_health_and_documents_are_open_to_everyone(api: Api) -> None:
    anyone = api.client_of(None)
    for path in ("/livez", "/readyz", "/openapi.json", "/docs"):
        assert (await anyone.get(path)).status_code == 200


@pytest.mark.parametrize("operation", PLATFORM, ids=lambda operation: operation.name)
async def test_what_is_of_the_whole_platform_is_hidden_from_a_merchants_key(
    api: Api, shelf: Shelf, operation: Operation
) -> None:
    answer = await request(shelf.client, operation, "", "")
    assert_problem(answer, 404, "not_found")
    assert operation.role is not None
    for role in LESSER[operation.role]:
        answer = await request(await api.client(role, merchant=None), operation, "", "")
        assert_problem(answer, 403, "forbidden")
    if operation.name not in ("revokeKey", "readAuditJob"):
        client = await api.client(operation.role, merchant=None)
        assert (await request(client, operation, "", "")).status_code < 300


async def test_keys_are_made_listed_and_revoked(api: Api) -> None:
    platform = await api.client(Role.ADMIN, merchant=None)
    body = {"role": "read", "merchant": api.merchant, "label": "of a test"}
    made = (await platform.post("/v1/keys", json=body)).json()
    client = api.client_of(made.pop("secret"))
    assert (await client.get(f"/v1/merchants/{api.merchant}/locations")).status_code == 200
    assert made in (await platform.get("/v1/keys")).json()["data"]
    revoked = (await platform.delete(f"/v1/keys/{made['id']}")).json()
    assert revoked["revoked_at"]
    assert (await platform.delete(f"/v1/keys/{made['id']}")).json() == revoked
    stranger = api.client_of(await api.secret(Role.ADMIN, f"{api.merchant}-other"))
    for path in ("/v1/keys", "/v1/overview", "/v1/audit", "/v1/audit/jobs"):
        assert_problem(await stranger.get(path), 404, "not_found")
    assert_problem(await platform.delete("/v1/keys/nosuchid"), 404, "not_found")


async def test_the_overview_counts_what_happened(api: Api, shelf: Shelf) -> None:
    platform = await api.client(Role.READ, merchant=None)
    before = (await platform.get("/v1/overview")).json()
    await shelf.move("receive", "tea", 5)
    assert (await shelf.reserve(("tea", 3))).status_code == 201
    assert (await shelf.reserve(("tea", 3))).status_code == 409
    after = (await platform.get("/v1/overview")).json()
    # Other tests share the store, and this process its counts.
    assert after["traffic"]["reserves"] > before["traffic"]["reserves"]
    assert after["traffic"]["sold_out"] > before["traffic"]["sold_out"]
    counts = [bucket["count"] for bucket in after["traffic"]["reserve_seconds"]]
    assert counts == sorted(counts)
    assert after["traffic"]["reserve_seconds"][-1]["seconds"] is None
    assert after["store"]["server"]
    own = (await shelf.client.get(f"{shelf.merchant_path}/overview")).json()
    (berlin,) = own["data"]
    assert (berlin["location"], berlin["open_reservations"]) == ("berlin", 1)
    assert berlin["oldest_at"]
    assert berlin["state"] == "live"
