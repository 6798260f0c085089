from typing import Any

import httpx
import pytest

from tests.gateways import Api, Shelf, assert_problem


async def held(shelf: Shelf, *lines: tuple[str, int], **fields: Any) -> str:
    answer = await shelf.reserve(*lines, **fields)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def stock(shelf: Shelf, sku: str) -> dict[str, Any]:
    return dict((await shelf.client.get(f"{shelf.path}/stock/{sku}")).json())


async def test_a_cart_is_held_and_can_be_read(api: Api, shelf: Shelf) -> None:
    for sku in ("tea", "cup"):
        await shelf.move("receive", sku, 5)
    answer = await shelf.reserve(("tea", 2), ("cup", 1), ttl_seconds=60, order_ref="cart 9")
    assert answer.status_code == 201
    made = answer.json()
    assert made["lines"] == [
        {"sku": "tea", "quantity": 2, "picked": None},
        {"sku": "cup", "quantity": 1, "picked": None},
    ]
    assert (made["merchant"], made["location"], made["state"]) == (api.merchant, "berlin", "held")
    assert (made["missing"], made["order_ref"]) == ([], "cart 9")
    assert (made["confirmed_at"], made["ended_at"]) == (None, None)
    assert made["created_at"] < made["expires_at"]
    read = await shelf.client.get(answer.headers["location"])
    assert (read.status_code, read.json()) == (200, made)
    assert (await stock(shelf, "tea"))["available"] == 3


async def test_lines_of_one_sku_are_summed(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 3)
    problem = assert_problem(await shelf.reserve(("tea", 2), ("tea", 2)), 409, "insufficient_stock")
    (error,) = problem["errors"]
    assert (error["requested"], error["available"], error["pointer"]) == (4, 3, "#/lines/0")
    made = await shelf.reserve(("tea", 1), ("tea", 2))
    assert [line["quantity"] for line in made.json()["lines"]] == [3]


async def test_every_short_line_is_named_and_nothing_is_held(shelf: Shelf) -> None:
    for sku in ("tea", "cup", "pot"):
        await shelf.move("receive", sku, 2)
    problem = assert_problem(
        await shelf.reserve(("tea", 2), ("cup", 3), ("milk", 1), ("pot", 1), ("pot", 9)),
        409,
        "insufficient_stock",
    )
    named = [
        (error["pointer"], error["sku"], error["requested"], error["available"], error["known"])
        for error in problem["errors"]
    ]
    assert named == [
        ("#/lines/1", "cup", 3, 2, True),
        ("#/lines/2", "milk", 1, 0, False),
        ("#/lines/3", "pot", 10, 2, True),
    ]
    for sku in ("tea", "cup", "pot"):
        assert (await stock(shelf, sku))["reserved"] == 0


async def test_a_partial_reservation_holds_what_there_is(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 2)
    answer = await shelf.reserve(("tea", 5), ("cup", 1), partial=True)
    assert answer.status_code == 201
    assert answer.json()["lines"] == [{"sku": "tea", "quantity": 2, "picked": None}]
    assert answer.json()["missing"] == [
        {"sku": "tea", "quantity": 3},
        {"sku": "cup", "quantity": 1},
    ]
    nothing = await shelf.reserve(("tea", 1), partial=True)
    assert_problem(nothing, 409, "insufficient_stock")


async def test_the_way_to_a_commit(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 5)
    the_id = await held(shelf, ("tea", 3), ttl_seconds=60)
    extended = await shelf.end("extend", the_id, ttl_seconds=600)
    assert (extended.status_code, extended.json()["state"]) == (200, "held")
    confirmed = await shelf.end("confirm", the_id, order_ref="order 1")
    assert confirmed.json()["state"] == "confirmed"
    assert (confirmed.json()["expires_at"], confirmed.json()["order_ref"]) == (None, "order 1")
    assert confirmed.json()["confirmed_at"] is not None
    committed = await shelf.end("commit", the_id)
    assert committed.json()["state"] == "committed"
    assert committed.json()["lines"] == [{"sku": "tea", "quantity": 3, "picked": 3}]
    assert committed.json()["ended_at"] is not None
    row = await stock(shelf, "tea")
    assert (row["on_hand"], row["reserved"], row["available"]) == (2, 0, 2)
    for verb, first in (("confirm", confirmed), ("commit", committed)):
        again = await shelf.end(
            verb, the_id, **({"order_ref": "order 1"} if verb == "confirm" else {})
        )
        if verb == "commit":
            assert again.json() == first.json()
            assert again.headers["idempotent-replayed"] == "true"
        else:
            assert_problem(again, 409, "reservation_ended")


async def test_a_short_pick_gives_the_rest_back(shelf: Shelf) -> None:
    for sku in ("tea", "cup"):
        await shelf.move("receive", sku, 5)
    the_id = await held(shelf, ("tea", 3), ("cup", 2))
    answer = await shelf.end("commit", the_id, lines=[{"sku": "tea", "quantity": 1}])
    assert answer.json()["lines"] == [
        {"sku": "tea", "quantity": 3, "picked": 1},
        {"sku": "cup", "quantity": 2, "picked": 0},
    ]
    assert [(await stock(shelf, sku))["on_hand"] for sku in ("tea", "cup")] == [4, 5]
    assert [(await stock(shelf, sku))["reserved"] for sku in ("tea", "cup")] == [0, 0]


@pytest.mark.parametrize(
    ("lines", "pointer"),
    [
        ([{"sku": "tea", "quantity": 4}], "#/lines/0/quantity"),
        ([{"sku": "tea", "quantity": 1}, {"sku": "tea", "quantity": 1}], "#/lines/1/sku"),
        ([{"sku": "tea", "quantity": 1}, {"sku": "cup", "quantity": 0}], "#/lines/1/quantity"),
        ([{"sku": "tea", "quantity": -1}], "#/lines/0/quantity"),
        ([], "#/lines"),
    ],
)
async def test_a_pick_of_what_is_not_held_is_refused_by_its_line(
    shelf: Shelf, lines: list[dict[str, Any]], pointer: str
) -> None:
    await shelf.move("receive", "tea", 5)
    the_id = await held(shelf, ("tea", 3))
    problem = assert_problem(await shelf.end("commit", the_id, lines=lines), 400, "invalid_request")
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert (await stock(shelf, "tea"))["reserved"] == 3


async def test_a_commit_of_more_than_is_on_the_shelf_says_what_is(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 5)
    the_id = await held(shelf, ("tea", 5))
    await shelf.move("sale", "tea", 4)
    (error,) = assert_problem(await shelf.end("commit", the_id), 409, "insufficient_on_hand")[
        "errors"
    ]
    assert (error["sku"], error["requested"], error["on_hand"]) == ("tea", 5, 1)
    short = await shelf.end("commit", the_id, lines=[{"sku": "tea", "quantity": 1}])
    assert short.status_code == 200


async def test_an_ending_is_final_and_the_other_one_names_it(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 5)
    the_id = await held(shelf, ("tea", 3))
    released = await shelf.end("release", the_id, reason="changed their mind")
    assert (released.status_code, released.json()["state"]) == (200, "released")
    again = await shelf.end("release", the_id)
    assert (again.json(), again.headers["idempotent-replayed"]) == (released.json(), "true")
    for verb, fields in (("commit", {}), ("confirm", {}), ("extend", {"ttl_seconds": 60})):
        answer = await shelf.end(verb, the_id, **fields)
        (error,) = assert_problem(answer, 409, "reservation_ended")["errors"]
        assert error["state"] == "released"
        assert error["ended_at"] == released.json()["ended_at"]
    assert (await stock(shelf, "tea"))["available"] == 5


async def test_a_confirmed_reservation_has_no_ttl(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 5)
    the_id = await held(shelf, ("tea", 3))
    await shelf.end("confirm", the_id)
    answer = await shelf.end("extend", the_id, ttl_seconds=60)
    (error,) = assert_problem(answer, 409, "reservation_not_held")["errors"]
    assert error["state"] == "confirmed"


async def test_a_reservation_is_moved_to_another_location(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 3)
    made = (await shelf.reserve(("tea", 2), order_ref="cart 7")).json()
    url = f"{shelf.merchant_path}/reservations/{made['id']}"
    await shelf.client.post(f"{url}/confirm", json={"order_ref": "order 7"})

    async def move(location: str) -> httpx.Response:
        headers = {"Idempotency-Key": f"to {location}"}
        return await shelf.client.post(f"{url}/move", json={"location": location}, headers=headers)

    refused = assert_problem(await move("depot"), 409, "insufficient_stock")
    assert (refused["errors"][0]["requested"], refused["errors"][0]["available"]) == (2, 0)
    same = assert_problem(await move(made["location"]), 400, "invalid_request")
    assert "held there already" in same["errors"][0]["detail"]
    assert (await shelf.client.get(url)).json()["state"] == "confirmed"

    depot = f"{shelf.merchant_path}/locations/depot"
    await shelf.client.post(
        f"{depot}/movements",
        json={"type": "receive", "sku": "tea", "quantity": 5},
        headers={"Idempotency-Key": "stock"},
    )
    answer = await move("depot")
    moved = answer.json()
    assert answer.status_code == 201
    assert (moved["state"], moved["order_ref"], moved["location"]) == (
        "confirmed",
        "order 7",
        "depot",
    )
    assert moved["moved_from"] == {"reservation": made["id"], "location": made["location"]}
    assert (await shelf.client.get(answer.headers["location"])).json()["id"] == moved["id"]
    assert (await stock(shelf, "tea"))["reserved"] == 0
    there = (await shelf.client.get(f"{depot}/stock/tea")).json()
    assert (there["on_hand"], there["reserved"]) == (5, 2)
    assert (await shelf.client.get(url)).json()["state"] == "released"
    again = await move("depot")
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json() == moved


async def test_confirming_again_with_another_order_is_refused(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 5)
    the_id = await held(shelf, ("tea", 3))
    await shelf.end("confirm", the_id, order_ref="order 1")
    again = await shelf.end("confirm", the_id, order_ref="order 1")
    assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
    other = await shelf.end("confirm", the_id, order_ref="order 2")
    (error,) = assert_problem(other, 422, "idempotency_key_reused")["errors"]
    assert error["pointer"] == "#/order_ref"


@pytest.mark.parametrize(
    "reservation",
    ["rsv_0_000000000000000000000000", "rsv_9999_000000000000000000000000", "nonsense", "%00"],
)
async def test_an_unknown_reservation_is_not_found(shelf: Shelf, reservation: str) -> None:
    path = f"{shelf.merchant_path}/reservations/{reservation}"
    assert_problem(await shelf.client.get(path), 404, "reservation_not_found")
    for verb, fields in (
        ("commit", {}),
        ("release", {}),
        ("confirm", {}),
        ("extend", {"ttl_seconds": 60}),
    ):
        answer = await shelf.end(verb, reservation, **fields)
        assert_problem(answer, 404, "reservation_not_found")


async def test_open_reservations_are_listed_oldest_first(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 50)
    made = [await held(shelf, ("tea", 1)) for _ in range(7)]
    await shelf.end("confirm", made[1])
    await shelf.end("release", made[2])
    await shelf.end("commit", made[3])
    seen: list[dict[str, Any]] = []
    query = {"limit": "2"}
    for _ in range(len(made)):
        page = (await shelf.client.get(f"{shelf.path}/reservations", params=query)).json()
        seen += page["data"]
        if not page["has_more"]:
            break
        query["cursor"] = page["next_cursor"]
    expected = [one for one in made if one not in made[2:4]]
    # Those of one millisecond stand in the order of their ids.
    assert sorted(one["id"] for one in seen) == sorted(expected)
    created = [(one["created_at"], one["id"]) for one in seen]
    assert created == sorted(created)
    assert {one["state"] for one in seen} == {"held", "confirmed"}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "#/lines"),
        ({"lines": []}, "#/lines"),
        ({"lines": [{"sku": "tea", "quantity": 1}] * 201}, "#/lines"),
        ({"lines": {}}, "#/lines"),
        ({"lines": [{"sku": "tea"}]}, "#/lines/0/quantity"),
        ({"lines": [{"sku": "tea", "quantity": 1}, {"quantity": 1}]}, "#/lines/1/sku"),
        ({"lines": [{"sku": "tea", "quantity": 1}], "ttl_seconds": 0}, "#/ttl_seconds"),
        ({"lines": [{"sku": "tea", "quantity": 1}], "ttl_seconds": 86_401}, "#/ttl_seconds"),
        ({"lines": [{"sku": "tea", "quantity": 1}], "order_ref": "é" * 101}, "#/order_ref"),
        ({"lines": [{"sku": "tea", "quantity": 1}], "partial": 1}, "#/partial"),
        ({"lines": [{"sku": "tea", "quantity": 1, "price": 3}]}, "#/lines/0/price"),
        ({"lines": [{"sku": "é" * 101, "quantity": 1}]}, "#/lines/0/sku"),
        ([], "#"),
        (7, "#"),
        (None, "#"),
    ],
)
async def test_a_malformed_cart_is_refused_where_it_is_wrong(
    shelf: Shelf, body: Any, pointer: str
) -> None:
    await shelf.move("receive", "tea", 500)
    answer = await shelf.client.post(
        f"{shelf.path}/reservations",
        content=b"null" if body is None else None,
        json=body,
        headers={**shelf.key(), "Content-Type": "application/json"},
    )
    problem = assert_problem(answer, 400, "invalid_request")
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
