"""Orders over HTTP: what is asked where a location cannot fulfil its part, and what is answered."""

from typing import Any

import httpx

from tests.gateways import Shelf, assert_problem


async def receive(shelf: Shelf, location: str, sku: str, quantity: int) -> None:
    answer = await shelf.client.post(
        f"{shelf.merchant_path}/locations/{location}/movements",
        json={"type": "receive", "sku": sku, "quantity": quantity},
        headers=shelf.key(),
    )
    assert answer.status_code == 201, answer.text


async def resource(
    shelf: Shelf, order: str, key: dict[str, str] | None = None, **body: Any
) -> httpx.Response:
    path = f"{shelf.merchant_path}/orders/{order}/resource"
    return await shelf.client.post(path, json=body, headers=shelf.key() if key is None else key)


async def test_a_part_is_sourced_anew_once_or_the_answer_says_why_not(shelf: Shelf) -> None:
    await receive(shelf, "berlin", "tea", 4)
    await receive(shelf, "leeds", "tea", 1)
    body = {"lines": [{"sku": "tea", "quantity": 3, "location": "berlin"}]}
    path = f"{shelf.merchant_path}/orders"
    placed = (await shelf.client.post(path, json=body, headers=shelf.key())).json()
    refused = await resource(shelf, placed["id"], location="berlin")
    problem = assert_problem(refused, 409, "insufficient_stock")
    short, *passed_over = problem["errors"]
    assert (short["sku"], short["requested"], short["available"]) == ("tea", 3, 1)
    assert [error["detail"] for error in passed_over] == ["berlin: it could not fulfil its part"]
    now = (await shelf.client.get(f"{path}/{placed['id']}")).json()
    assert now == placed
    await receive(shelf, "york", "tea", 9)
    ruled_out = await resource(shelf, placed["id"], location="berlin", without=["york"])
    assert_problem(ruled_out, 409, "insufficient_stock")
    key = shelf.key()
    for replayed in (None, "true"):
        moved = await resource(
            shelf, placed["id"], key, location="berlin", sourcing={"strategy": "most_stock"}
        )
        assert (moved.status_code, moved.headers.get("idempotent-replayed")) == (200, replayed)
    old, new = moved.json()["parts"]
    assert (old["location"], old["state"], old["replaces"]) == ("berlin", "released", None)
    assert (new["location"], new["state"], new["replaces"]) == ("york", "held", "berlin")
    assert new["why"] == "the most units left, has all of it"
    assert moved.json()["state"] == "held"
    other = await resource(shelf, placed["id"], key, location="york")
    assert_problem(other, 422, "idempotency_key_reused")


async def test_an_order_by_a_day_says_when_its_units_come(shelf: Shelf) -> None:
    path = f"{shelf.merchant_path}/orders"
    announced = f"{shelf.merchant_path}/locations/berlin/stock/tea/supplies/po-1"
    day = {"expected_on": "2026-12-07", "quantity": 3}
    await shelf.client.put(announced, json=day, headers=shelf.key())
    body = {"lines": [{"sku": "tea", "quantity": 3}], "by": "2026-12-08"}
    placed = await shelf.client.post(path, json=body, headers=shelf.key())
    order = placed.json()
    assert order["by"] == "2026-12-08"
    (part,) = order["parts"]
    (line,) = part["lines"]
    assert (line["backordered"], line["promised_by"], line["expected_on"]) == (
        3,
        "2026-12-07",
        "2026-12-07",
    )
    for wrong in ({"by": "soon"}, {"stock_only": True}):
        answer = await shelf.client.post(path, json=body | wrong, headers=shelf.key())
        problem = assert_problem(answer, 400, "invalid_request")
        assert problem["errors"][0]["pointer"] == "#/by"


async def test_what_cannot_be_sourced_anew_names_the_field(shelf: Shelf) -> None:
    await receive(shelf, "berlin", "tea", 4)
    body = {"lines": [{"sku": "tea", "quantity": 3}]}
    path = f"{shelf.merchant_path}/orders"
    order = (await shelf.client.post(path, json=body, headers=shelf.key())).json()["id"]
    for said, status, code, place in (
        ({}, 400, "invalid_request", "#/location"),
        ({"location": "leeds"}, 400, "invalid_request", "#/location"),
        ({"location": "berlin", "without": [""]}, 400, "invalid_request", "#/without/0"),
        (
            {"location": "berlin", "sourcing": {"strategy": "distance"}},
            400,
            "invalid_request",
            "#/sourcing/latitude",
        ),
    ):
        problem = assert_problem(await resource(shelf, order, **said), status, code)
        assert problem["errors"][0]["pointer"] == place, problem
    unnamed = await resource(shelf, order, {}, location="berlin")
    assert_problem(unnamed, 400, "idempotency_key_required")
    await shelf.client.post(f"{path}/{order}/cancel")
    ended = await resource(shelf, order, location="berlin")
    assert_problem(ended, 409, "order_ended")
    assert_problem(await resource(shelf, order[:-1] + "z", location="x"), 404, "order_not_found")


async def test_what_is_declined_is_planned_anew_or_the_order_fails(shelf: Shelf) -> None:
    await receive(shelf, "berlin", "soy", 4)
    await receive(shelf, "leeds", "tea", 1)
    lines = [
        {
            "sku": "oat",
            "quantity": 2,
            "substitutes": "approve",
            "alternatives": [{"sku": "soy", "of": 2}],
        },
        {"sku": "tea", "quantity": 1},
    ]
    path = f"{shelf.merchant_path}/orders"
    placed = (await shelf.client.post(path, json={"lines": lines}, headers=shelf.key())).json()
    soy = placed["parts"][0]
    assert (soy["lines"][0]["quantity"], soy["proposed"]) == (4, ["oat"])
    refused = await shelf.client.post(f"{path}/{placed['id']}/confirm")
    problem = assert_problem(refused, 409, "proposal_open")
    assert [error["sku"] for error in problem["errors"]] == ["oat"]
    decline = f"{path}/{placed['id']}/decline"
    assert_problem(await shelf.client.post(decline), 400, "idempotency_key_required")
    await receive(shelf, "leeds", "oat", 2)
    answer = await shelf.client.post(decline, headers=shelf.key())
    order = answer.json()
    assert (order["state"], order["settled"]) == ("held", True)
    assert {part["location"] for part in order["parts"]} == {"leeds"}
    await shelf.client.post(f"{path}/{placed['id']}/cancel")
    movement = {"type": "sale", "sku": "oat", "quantity": 2}
    sold = f"{shelf.merchant_path}/locations/leeds/movements"
    await shelf.client.post(sold, json=movement, headers=shelf.key())
    # By the part's own id, too; and now nothing else can be had.
    placed = (await shelf.client.post(path, json={"lines": lines}, headers=shelf.key())).json()
    (soy,) = [part for part in placed["parts"] if "proposed" in part]
    declined = await shelf.client.post(
        f"{shelf.merchant_path}/reservations/{soy['reservation']}/decline"
    )
    assert declined.status_code == 200, declined.text
    now = (await shelf.client.get(f"{path}/{placed['id']}")).json()
    assert (now["state"], now["settled"]) == ("failed", True)
    assert now["reason"] == "the substitutes for oat were declined"
    assert {part["state"] for part in now["parts"]} == {"released"}
