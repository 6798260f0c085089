from typing import Any

import pytest

from tests.gateways import Api, Shelf, assert_problem


async def test_a_movement_says_what_it_changed_and_where_it_stands(api: Api, shelf: Shelf) -> None:
    answer = await shelf.move(
        "receive", "tea", 12, reference="PO-7", occurred_at="2026-11-23T10:00:00+01:00"
    )
    assert answer.status_code == 201
    movement = answer.json()
    assert {
        name: movement[name]
        for name in ("merchant", "location", "type", "sku", "quantity", "on_hand_change")
    } == {
        "merchant": api.merchant,
        "location": "berlin",
        "type": "receive",
        "sku": "tea",
        "quantity": 12,
        "on_hand_change": 12,
    }
    assert (movement["reference"], movement["reason"]) == ("PO-7", "")
    assert movement["stock"]["available"] == 12
    assert movement["sequence"] >= 1
    assert movement["at"].endswith("Z")
    assert len(movement["at"]) == len("2026-11-23T15:38:04.123Z")


@pytest.mark.parametrize(
    ("movement", "on_hand", "deficit"),
    [
        ({"type": "receive", "quantity": 3}, 13, 0),
        ({"type": "return", "quantity": 3}, 13, 0),
        ({"type": "transfer_in", "quantity": 3}, 13, 0),
        ({"type": "sale", "quantity": 3}, 7, 0),
        ({"type": "sale", "quantity": 12}, 0, 2),
        ({"type": "transfer_out", "quantity": 3}, 7, 0),
        ({"type": "adjust", "quantity": -3, "reason": "shrinkage"}, 7, 0),
        ({"type": "adjust", "quantity": 3, "reason": "found"}, 13, 0),
        ({"type": "count", "quantity": 0}, 0, 0),
        ({"type": "count", "quantity": 25}, 25, 0),
    ],
)
async def test_each_type_moves_in_its_direction(
    shelf: Shelf, movement: dict[str, Any], on_hand: int, deficit: int
) -> None:
    await shelf.move("receive", "tea", 10)
    body = dict(movement)
    answer = await shelf.move(body.pop("type"), "tea", body.pop("quantity"), **body)
    stock = answer.json()["stock"]
    assert (answer.status_code, stock["on_hand"], stock["deficit"]) == (201, on_hand, deficit)


async def test_more_than_is_on_hand_does_not_leave_by_transfer(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 3)
    problem = assert_problem(
        await shelf.move("transfer_out", "tea", 4), 409, "insufficient_on_hand"
    )
    assert problem["errors"] == [
        {
            "detail": "requested 4, on hand 3",
            "pointer": "#/quantity",
            "sku": "tea",
            "requested": 4,
            "on_hand": 3,
            "known": True,
        }
    ]


async def test_an_expected_version_that_is_stale_is_a_conflict(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 3)
    assert (await shelf.move("count", "tea", 5, expected_version=1)).status_code == 201
    answer = await shelf.move("count", "tea", 5, expected_version=1)
    (error,) = assert_problem(answer, 409, "version_conflict")["errors"]
    assert (error["pointer"], error["expected"], error["actual"]) == ("#/expected_version", 1, 2)


async def test_a_row_has_a_limit(shelf: Shelf) -> None:
    await shelf.move("count", "tea", 10**12)
    answer = await shelf.move("receive", "tea", 1)
    (error,) = assert_problem(answer, 422, "limit_exceeded")["errors"]
    assert (error["pointer"], error["most"]) == ("#/quantity", 10**12)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"type": "adjust", "sku": "a", "quantity": 1}, "#/reason"),
        ({"type": "adjust", "sku": "a", "quantity": 0, "reason": "r"}, "#/quantity"),
        ({"type": "receive", "sku": "a", "quantity": 0}, "#/quantity"),
        ({"type": "receive", "sku": "a", "quantity": -1}, "#/quantity"),
        ({"type": "receive", "sku": "a", "quantity": 10**9 + 1}, "#/quantity"),
        ({"type": "count", "sku": "a", "quantity": 10**12 + 1}, "#/quantity"),
        ({"type": "count", "sku": "a", "quantity": -1}, "#/quantity"),
        ({"type": "steal", "sku": "a", "quantity": 1}, "#/type"),
        ({"type": "receive", "quantity": 1}, "#/sku"),
        ({"type": "receive", "sku": "", "quantity": 1}, "#/sku"),
        ({"type": "receive", "sku": "é" * 101, "quantity": 1}, "#/sku"),
        ({"type": "receive", "sku": "a", "quantity": 1, "reason": "é" * 101}, "#/reason"),
        ({"type": "receive", "sku": "a", "quantity": 1, "colour": 1}, "#/colour"),
        ({"type": "receive", "sku": "a", "quantity": 1, "a/b~c d": 1}, "#/a~1b~0c%20d"),
        (
            {"type": "receive", "sku": "a", "quantity": 1, "occurred_at": "yesterday"},
            "#/occurred_at",
        ),
        (
            {"type": "receive", "sku": "a", "quantity": 1, "occurred_at": "1969-12-31T23:59:59Z"},
            "#/occurred_at",
        ),
        (
            {"type": "receive", "sku": "a", "quantity": 1, "occurred_at": "2026-01-01T00:00:00"},
            "#/occurred_at",
        ),
        (
            {"type": "receive", "sku": "a", "quantity": 1, "expected_version": -1},
            "#/expected_version",
        ),
    ],
)
async def test_a_malformed_movement_is_refused_where_it_is_wrong(
    shelf: Shelf, body: dict[str, Any], pointer: str
) -> None:
    answer = await shelf.client.post(f"{shelf.path}/movements", json=body, headers=shelf.key())
    problem = assert_problem(answer, 400, "invalid_request")
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert (await shelf.client.get(f"{shelf.path}/stock/a")).status_code == 404


def item(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"event-{number}",
        "location": "berlin",
        "type": "receive",
        "sku": "tea",
        "quantity": 1,
        **fields,
    }


async def send(shelf: Shelf, movements: list[Any]) -> Any:
    answer = await shelf.client.post(
        f"{shelf.merchant_path}/movements/batch", json={"movements": movements}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_in_a_batch_each_movement_stands_or_falls_alone(shelf: Shelf) -> None:
    await send(shelf, [item(0)])
    sent = [
        item(0),
        item(1, location="hamburg", quantity=5),
        item(2, quantity="5"),
        item(3, type="transfer_out", quantity=100),
        item(0, quantity=2),
        item(4, colour="red"),
        "no movement at all",
        {"sku": "tea"},
        {"id": 7},
        item(5, occurred_at="1900-01-01T00:00:00Z"),
        item(6),
        item(7, sku="é" * 101),
    ]
    answer = await send(shelf, sent)
    statuses = [outcome["status"] for outcome in answer["data"]]
    assert statuses == [
        "replayed", "applied", "refused", "refused", "refused", "refused", "refused", "refused",
        "refused", "refused", "applied", "refused",
    ]  # fmt: skip
    assert (answer["applied"], answer["replayed"], answer["refused"]) == (2, 1, 9)
    assert [outcome["id"] for outcome in answer["data"]] == [
        "event-0", "event-1", "event-2", "event-3", "event-0", "event-4", None, None, None,
        "event-5", "event-6", "event-7",
    ]  # fmt: skip
    refused = {
        i: (
            outcome["error"]["code"],
            [error.get("pointer") for error in outcome["error"]["errors"]],
        )
        for i, outcome in enumerate(answer["data"])
        if outcome["status"] == "refused"
    }
    assert refused == {
        2: ("invalid_request", ["#/movements/2/quantity"]),
        3: ("insufficient_on_hand", ["#/movements/3/quantity"]),
        4: ("idempotency_key_reused", ["#/movements/4/id"]),
        5: ("invalid_request", ["#/movements/5/colour"]),
        6: ("invalid_request", ["#/movements/6"]),
        7: ("invalid_request", ["#/movements/7/type"]),
        8: ("invalid_request", ["#/movements/8/id"]),
        9: ("invalid_request", ["#/movements/9/occurred_at"]),
        11: ("invalid_request", ["#/movements/11/sku"]),
    }
    assert answer["data"][1]["movement"]["location"] == "hamburg"
    row = await shelf.client.get(f"{shelf.path}/stock/tea")
    assert row.json()["on_hand"] == 2


async def test_a_repeated_batch_changes_nothing(shelf: Shelf) -> None:
    batch = [item(n, sku=f"sku-{n % 7}") for n in range(1000)]
    first = await send(shelf, batch)
    assert (first["applied"], first["replayed"], first["refused"]) == (1000, 0, 0)
    again = await send(shelf, batch)
    assert (again["applied"], again["replayed"], again["refused"]) == (0, 1000, 0)
    assert [x["movement"] for x in again["data"]] == [x["movement"] for x in first["data"]]
    page = (await shelf.client.get(f"{shelf.path}/stock")).json()
    assert sum(row["on_hand"] for row in page["data"]) == 1000


@pytest.mark.parametrize("size", [0, 1001])
async def test_a_batch_has_1_to_1000_movements(shelf: Shelf, size: int) -> None:
    answer = await shelf.client.post(
        f"{shelf.merchant_path}/movements/batch", json={"movements": [1] * size}
    )
    problem = assert_problem(answer, 400, "invalid_request")
    assert problem["errors"][0]["pointer"] == "#/movements"


async def test_a_batch_of_nothing_but_malformed_movements_is_answered(shelf: Shelf) -> None:
    answer = await send(shelf, [1, None, [], {}])
    assert (answer["applied"], answer["refused"]) == (0, 4)
