"""Once: one effect and one answer a key, however often and however concurrently it is sent."""

import asyncio
from typing import Any

import httpx
import pytest

from gateway.operations import IDEMPOTENCY_KEY
from gateway.routes import OPERATIONS
from tests.gateways import Shelf, assert_problem

RETRIES = 200

# Tested beside what it is about: it needs a key of the platform.
ELSEWHERE = {"submitAuditJob"}

KEYED = {
    operation.name for operation in OPERATIONS if IDEMPOTENCY_KEY in operation.header_fields
} - ELSEWHERE


async def call(shelf: Shelf, name: str, headers: dict[str, str], *, other: bool = False) -> Any:
    """Make a request of an operation that takes a key; `other` is one with another body."""
    # Made only where they are needed, since many of these requests are sent at once.
    held = await reservation(shelf) if name in ("extend", "amend", "relocate") else ""
    place = "far" if other else "near"
    if name == "relocate":
        await stock_up(shelf, place)
    if name == "cancelSupply":
        await shelf.client.put(
            f"{shelf.path}/stock/tea/supplies/po-1",
            json={"expected_on": "2026-12-10", "quantity": 1},
            headers={"Idempotency-Key": "to be cancelled"},
        )
    order = ""
    if name == "resourceOrder":
        await stock_up(shelf, "near")
        order = await placed(shelf, {"sku": "tea"})
    if name == "declineOrder":
        alternatives = [{"sku": "tea"}]
        wish = {"sku": "rum", "substitutes": "approve", "alternatives": alternatives}
        order = await placed(shelf, wish)
    method, path, body = {
        "reserve": (
            "POST",
            f"{shelf.path}/reservations",
            {"lines": [{"sku": "tea", "quantity": 2 if other else 1}]},
        ),
        "move": (
            "POST",
            f"{shelf.path}/movements",
            {"type": "receive", "sku": "tea", "quantity": 2 if other else 1},
        ),
        "changeSettings": (
            "PATCH",
            f"{shelf.path}/stock/tea/settings",
            {"safety_stock": 2 if other else 1},
        ),
        "setTerms": (
            "PUT",
            f"{shelf.path}/stock/tea/terms",
            {"backorder_limit": 2 if other else 1},
        ),
        "expectSupply": (
            "PUT",
            f"{shelf.path}/stock/tea/supplies/po-1",
            {"expected_on": "2026-12-10", "quantity": 2 if other else 1},
        ),
        "cancelSupply": (
            "DELETE",
            f"{shelf.path}/stock/tea/supplies/{'po-2' if other else 'po-1'}",
            None,
        ),
        "extend": (
            "POST",
            f"{shelf.merchant_path}/reservations/{held}/extend",
            {"ttl_seconds": 2000 if other else 1000},
        ),
        "amend": (
            "POST",
            f"{shelf.merchant_path}/reservations/{held}/amend",
            {"lines": [{"sku": "tea", "quantity": 4 if other else 3}]},
        ),
        "relocate": (
            "POST",
            f"{shelf.merchant_path}/reservations/{held}/move",
            {"location": place},
        ),
        "resourceOrder": (
            "POST",
            f"{shelf.merchant_path}/orders/{order}/resource",
            {"location": "berlin", "without": ["far"] if other else []},
        ),
        "declineOrder": (
            "POST",
            f"{shelf.merchant_path}/orders/{order}/decline",
            {"skus": ["tea" if other else "rum"]},
        ),
        "placeOrder": (
            "POST",
            f"{shelf.merchant_path}/orders",
            {"lines": [{"sku": "tea", "quantity": 2 if other else 1}]},
        ),
        "createWebhook": (
            "POST",
            f"{shelf.merchant_path}/webhooks",
            {"url": "https://hooks.example/", "description": "other" if other else ""},
        ),
        "rotateWebhookSecret": (
            "POST",
            f"{shelf.merchant_path}/webhooks/{await webhook(shelf)}/secret",
            {"overlap_seconds": 20 if other else 10},
        ),
    }[name]
    if name in ("changeSettings", "setTerms"):
        headers = {**headers, "If-Match": '"2"'}
    return await shelf.client.request(method, path, json=body, headers=headers)


async def reservation(shelf: Shelf) -> str:
    return str((await shelf.reserve(("tea", 1), key="the first")).json()["id"])


PLACED: dict[str, asyncio.Task[str]] = {}
"""The order of each merchant. Placed once: one that failed since would be placed anew."""


async def placed(shelf: Shelf, line: dict[str, Any]) -> str:
    async def place() -> str:
        made = await shelf.client.post(
            f"{shelf.merchant_path}/orders",
            json={"lines": [{**line, "quantity": 1, "location": "berlin"}]},
            headers={"Idempotency-Key": "the first order"},
        )
        return str(made.json()["id"])

    if shelf.merchant_path not in PLACED:
        PLACED[shelf.merchant_path] = asyncio.ensure_future(place())
    return await PLACED[shelf.merchant_path]


async def stock_up(shelf: Shelf, name: str) -> None:
    """Have the same SKU at another location."""
    await shelf.client.post(
        f"{shelf.merchant_path}/locations/{name}/movements",
        json={"type": "receive", "sku": "tea", "quantity": 5},
        headers={"Idempotency-Key": f"stock {name}"},
    )


async def webhook(shelf: Shelf) -> str:
    made = await shelf.client.post(
        f"{shelf.merchant_path}/webhooks",
        json={"url": "https://hooks.example/"},
        headers={"Idempotency-Key": "the first"},
    )
    return str(made.json()["id"])


@pytest.fixture
async def stocked(shelf: Shelf) -> Shelf:
    """A row at version 2, with 10 units of which one is held."""
    await shelf.move("receive", "tea", 10)
    await reservation(shelf)
    return shelf


@pytest.mark.parametrize("name", sorted(KEYED))
async def test_a_key_is_required(stocked: Shelf, name: str) -> None:
    for headers in ({}, {"Idempotency-Key": ""}, {"Idempotency-Key": "  "}):
        problem = assert_problem(
            await call(stocked, name, headers), 400, "idempotency_key_required"
        )
        assert problem["errors"][0]["header"] == "Idempotency-Key"


@pytest.mark.parametrize("name", sorted(KEYED))
async def test_a_replay_gets_the_first_answer_and_says_so(stocked: Shelf, name: str) -> None:
    headers = stocked.key()
    first = await call(stocked, name, headers)
    assert first.status_code in (200, 201), first.text
    assert "idempotent-replayed" not in first.headers
    again = await call(stocked, name, headers)
    assert (again.status_code, again.json()) == (first.status_code, first.json())
    assert again.headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize("name", sorted(KEYED))
async def test_another_body_under_the_same_key_is_refused(stocked: Shelf, name: str) -> None:
    headers = stocked.key()
    assert (await call(stocked, name, headers)).status_code in (200, 201)
    version = (await stocked.client.get(f"{stocked.path}/stock/tea")).headers["etag"]
    problem = assert_problem(
        await call(stocked, name, headers, other=True), 422, "idempotency_key_reused"
    )
    assert problem["errors"][0]["header"] == "Idempotency-Key"
    assert (await stocked.client.get(f"{stocked.path}/stock/tea")).headers["etag"] == version


@pytest.mark.parametrize("name", sorted(KEYED))
async def test_concurrent_retries_have_one_effect_and_one_answer(stocked: Shelf, name: str) -> None:
    headers = stocked.key()
    answers: list[httpx.Response] = await asyncio.gather(
        *(call(stocked, name, headers) for _ in range(RETRIES))
    )
    assert len({(answer.status_code, answer.text) for answer in answers}) == 1
    assert answers[0].status_code in (200, 201)
    fresh = [answer for answer in answers if "idempotent-replayed" not in answer.headers]
    assert len(fresh) == 1
    row = (await stocked.client.get(f"{stocked.path}/stock/tea")).json()
    assert (row["on_hand"], row["reserved"], row["safety_stock"]) == {
        "reserve": (10, 2, 0),
        "move": (11, 1, 0),
        "changeSettings": (10, 1, 1),
        "setTerms": (10, 1, 0),
        "expectSupply": (10, 1, 0),
        "cancelSupply": (10, 1, 0),
        "extend": (10, 1, 0),
        "amend": (10, 3, 0),
        "relocate": (10, 0, 0),
        "placeOrder": (10, 2, 0),
        "declineOrder": (10, 1, 0),
        "resourceOrder": (10, 1, 0),
        "createWebhook": (10, 1, 0),
        "rotateWebhookSecret": (10, 1, 0),
    }[name]


async def test_a_refusal_is_not_recorded(shelf: Shelf) -> None:
    assert_problem(await shelf.reserve(("tea", 1), key="k"), 409, "insufficient_stock")
    await shelf.move("receive", "tea", 1)
    assert (await shelf.reserve(("tea", 1), key="k")).status_code == 201


@pytest.mark.parametrize(
    ("one", "other"),
    [("abc", '"abc"'), ("a b", '"a b"'), ('a"b', '"a\\"b"'), ("a\\b", '"a\\\\b"')],
)
async def test_a_key_is_the_same_quoted_and_bare(shelf: Shelf, one: str, other: str) -> None:
    await shelf.move("receive", "tea", 10)
    first = await shelf.reserve(("tea", 1), key=one)
    again = await shelf.reserve(("tea", 1), key=other)
    assert (first.status_code, again.json()) == (201, first.json())


@pytest.mark.parametrize("key", ["x" * 255, '"' + "x" * 255 + '"', "~" * 255, "{hf}:*"])
async def test_a_key_may_be_255_printable_characters(shelf: Shelf, key: str) -> None:
    await shelf.move("receive", "tea", 1)
    assert (await shelf.reserve(("tea", 1), key=key)).status_code == 201


@pytest.mark.parametrize("key", ["x" * 256, '"', '""', '"abc', 'x"' * 200, "é", "a\tb", '"\\a"'])
async def test_a_malformed_key_is_refused(shelf: Shelf, key: str) -> None:
    answer = await shelf.client.post(
        f"{shelf.path}/reservations",
        json={"lines": [{"sku": "tea", "quantity": 1}]},
        headers=[(b"idempotency-key", key.encode())],
    )
    problem = assert_problem(answer, 400, "invalid_request")
    assert problem["errors"][0]["header"] == "Idempotency-Key"


async def test_two_keys_are_refused(shelf: Shelf) -> None:
    answer = await shelf.client.post(
        f"{shelf.path}/reservations",
        json={"lines": [{"sku": "tea", "quantity": 1}]},
        headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")],
    )
    problem = assert_problem(answer, 400, "invalid_request")
    assert problem["errors"][0]["header"] == "Idempotency-Key"
