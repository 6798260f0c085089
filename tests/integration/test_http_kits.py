"""Substitutes and kits over HTTP: what is asked, and how it is answered."""

from typing import Any

from tests.gateways import Shelf, assert_problem


async def say_kit(shelf: Shelf, sku: str, **components: int) -> None:
    body = {"components": [{"sku": name, "quantity": n} for name, n in components.items()]}
    answer = await shelf.client.put(f"{shelf.merchant_path}/kits/{sku}", json=body)
    assert answer.status_code == 200, answer.text


async def available(shelf: Shelf, *skus: str, **asked: Any) -> list[dict[str, Any]]:
    rows = [{"location": "berlin", "sku": sku} for sku in skus]
    answer = await shelf.client.post(
        f"{shelf.merchant_path}/availability", json={"rows": rows, **asked}
    )
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"])


async def test_what_there_is_of_a_kit_is_what_its_components_allow(shelf: Shelf) -> None:
    await shelf.move("receive", "mug", 5)
    await say_kit(shelf, "gift", mug=2, tea=1)
    path = f"{shelf.path}/stock/gift"
    assert_problem(await shelf.client.get(path), 404, "row_not_found")
    (unknown,) = await available(shelf, "gift")
    assert (unknown["known"], unknown["available"]) == (False, 0)
    await shelf.move("receive", "tea", 1)
    for asked in ({"consistency": "strong"}, {}):
        gift, mug = await available(shelf, "gift", "mug", **asked)
        assert (gift["kit"], gift["known"], gift["available"]) == (True, True, 1)
        assert "kit" not in mug
    one = (await shelf.client.get(path)).json()
    assert (one["kit"], one["available"], one["version"]) == (True, 1, 1_000_000_002)
    held = (await shelf.reserve(("gift", 1))).json()
    assert [line["sku"] for line in held["lines"]] == ["mug", "tea"]
    (after,) = await available(shelf, "gift", consistency="strong")
    assert (after["available"], after["version"]) == (0, 1_000_000_004)
    problem = assert_problem(await shelf.reserve(("gift", 1)), 409, "insufficient_stock")
    assert problem["errors"][0]["sku"] == "gift"


async def test_a_kit_of_which_a_buyer_may_have_no_more_says_so(shelf: Shelf) -> None:
    await say_kit(shelf, "gift", mug=1, tea=2)
    await shelf.move("receive", "mug", 5)
    await shelf.move("receive", "tea", 9)
    terms = {"buyer_cap": {"units": 2, "window_seconds": 60}}
    tag = (await shelf.client.get(f"{shelf.path}/stock/tea")).headers["ETag"]
    said = await shelf.client.put(
        f"{shelf.path}/stock/tea/terms", json=terms, headers=shelf.key() | {"If-Match": tag}
    )
    assert said.status_code == 200, said.text
    cart = {"lines": [{"sku": "gift", "quantity": 2}], "buyer": "ann"}
    refused = await shelf.client.post(f"{shelf.path}/reservations", json=cart, headers=shelf.key())
    problem = assert_problem(refused, 409, "buyer_cap_exceeded")
    (line,) = problem["errors"]
    assert (line["sku"], line["available"], line["limited_by"]) == ("gift", 1, "buyer")


async def test_an_answer_names_what_stands_for_what_and_a_decision_changes_it(
    shelf: Shelf,
) -> None:
    await shelf.move("receive", "cup", 4)
    line = {
        "sku": "mug",
        "quantity": 3,
        "substitutes": "approve",
        "alternatives": [{"sku": "cup", "of": 1, "for": 2}],
    }
    made = await shelf.client.post(
        f"{shelf.path}/reservations", json={"lines": [line]}, headers=shelf.key()
    )
    held = made.json()
    assert held["proposed"] == ["mug"]
    (cups,) = held["lines"]
    assert cups["stands_for"] == [
        {"sku": "mug", "quantity": 3, "units": 2, "of": 1, "for": 2, "kind": "substitute"}
    ]
    problem = assert_problem(await shelf.end("confirm", held["id"]), 409, "proposal_open")
    assert problem["errors"][0]["sku"] == "mug"
    accepted = await shelf.end("accept", held["id"])
    assert "proposed" not in accepted.json()
    again = await shelf.end("accept", held["id"], skus=["mug"])
    assert again.headers["Idempotent-Replayed"] == "true"
    assert_problem(await shelf.end("decline", held["id"]), 409, "proposal_decided")
    wrong = dict(line, substitutes="none")
    refused = await shelf.client.post(
        f"{shelf.path}/reservations", json={"lines": [wrong]}, headers=shelf.key()
    )
    problem = assert_problem(refused, 400, "invalid_request")
    assert problem["errors"][0]["pointer"] == "#/lines/0/substitutes"
