from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest

from tests.gateways import Api, Shelf, assert_problem

VERSION_CONFLICT = "version_conflict"


async def test_a_row_is_read_with_its_version_as_etag(api: Api, shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 12)
    await shelf.reserve(("tea", 5))
    answer = await shelf.client.get(f"{shelf.path}/stock/tea")
    assert answer.status_code == 200
    assert answer.headers["etag"] == '"2"'
    fresh = {name: answer.json()[name] for name in ("as_of", "age_ms", "source")}
    assert answer.json() == fresh | {
        "merchant": api.merchant,
        "location": "berlin",
        "sku": "tea",
        "on_hand": 12,
        "reserved": 5,
        "safety_stock": 0,
        "available": 7,
        "shortfall": 0,
        "deficit": 0,
        "version": 2,
    }


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ('"1"', 304),
        ('W/"1"', 304),
        ('"7", "1"', 304),
        ("*", 304),
        ('"2"', 200),
        ("1", 200),
        ('"0", "11"', 200),
    ],
)
async def test_a_row_that_the_client_has_is_not_sent_again(
    shelf: Shelf, header: str, status: int
) -> None:
    await shelf.move("receive", "tea", 1)
    answer = await shelf.client.get(f"{shelf.path}/stock/tea", headers={"If-None-Match": header})
    assert answer.status_code == status
    assert answer.headers["etag"] == '"1"'
    assert (answer.content == b"") is (status == 304)


async def test_a_head_request_gets_the_headers_of_a_get(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 1)
    path = f"{shelf.path}/reservations/{(await shelf.reserve(('tea', 1))).json()['id']}"
    path = path.replace("/locations/berlin", "")
    got = await shelf.client.get(path)
    row = await shelf.client.get(f"{shelf.path}/stock/tea")
    assert (await shelf.client.head(path)).headers["content-length"] == str(len(got.content))
    head = await shelf.client.head(f"{shelf.path}/stock/tea")
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["etag"] == row.headers["etag"]


async def test_a_row_that_does_not_exist_is_not_found(shelf: Shelf) -> None:
    assert_problem(await shelf.client.get(f"{shelf.path}/stock/tea"), 404, "row_not_found")


async def test_listings_go_page_by_page_to_the_end(api: Api, shelf: Shelf) -> None:
    skus = sorted([f"sku-{n:02d}" for n in range(7)] + ["ä/b", "{x}:y"], key=str.encode)
    for sku in skus:
        assert (await shelf.move("receive", sku, 1)).status_code == 201
    seen: list[str] = []
    query: dict[str, str] = {"limit": "4"}
    for _ in range(len(skus)):
        page = (await shelf.client.get(f"{shelf.path}/stock", params=query)).json()
        seen += [row["sku"] for row in page["data"]]
        assert page["has_more"] is (page["next_cursor"] is not None)
        if not page["has_more"]:
            break
        query["cursor"] = page["next_cursor"]
    assert seen == skus
    assert page["next_cursor"] is None

    other = Shelf(shelf.client, api.merchant, quote("köln/süd", safe=""))
    await other.move("receive", "tea", 1)
    first = (await shelf.client.get(f"{shelf.merchant_path}/locations?limit=1")).json()
    rest = await shelf.client.get(
        f"{shelf.merchant_path}/locations", params={"cursor": first["next_cursor"]}
    )
    assert first["has_more"]
    assert [*first["data"], *rest.json()["data"]] == [
        {"location": "berlin"},
        {"location": "köln/süd"},
    ]


async def test_an_unknown_merchant_has_empty_listings(shelf: Shelf) -> None:
    empty = {"data": [], "has_more": False, "next_cursor": None}
    for path in ("/stock", "/reservations"):
        assert (await shelf.client.get(shelf.path + path)).json() == empty
    assert (await shelf.client.get(f"{shelf.merchant_path}/locations")).json() == empty


async def test_a_cursor_serves_only_the_listing_that_made_it(api: Api, shelf: Shelf) -> None:
    for sku in ("a", "b"):
        await shelf.move("receive", sku, 1)
    page = (await shelf.client.get(f"{shelf.path}/stock?limit=1")).json()
    elsewhere = Shelf(shelf.client, api.merchant, "hamburg")
    for path in (f"{elsewhere.path}/stock", f"{shelf.path}/reservations"):
        answer = await shelf.client.get(path, params={"cursor": page["next_cursor"]})
        problem = assert_problem(answer, 400, "invalid_request")
        assert problem["errors"][0]["parameter"] == "cursor"


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=-1", "limit"),
        ("limit=1e2", "limit"),
        ("limit=", "limit"),
        ("limit=%2B5", "limit"),
        ("limit=1&limit=2", "limit"),
        ("cursor=", "cursor"),
        ("cursor=AAAA", "cursor"),
        ("cursor=%FF", "query"),
        ("cursor=" + "A" * 7000, "cursor"),
        ("cursor=WyJzdG9jayJd", "cursor"),
        ("cursr=x", "cursr"),
        ("&".join(f"a{n}=1" for n in range(30)), "query"),
    ],
)
async def test_a_bad_query_is_refused_by_the_name_of_its_parameter(
    shelf: Shelf, query: str, parameter: str
) -> None:
    problem = assert_problem(
        await shelf.client.get(f"{shelf.path}/stock?{query}"), 400, "invalid_request"
    )
    assert [error["parameter"] for error in problem["errors"]] == [parameter]


async def test_availability_keeps_the_order_and_marks_unknown_rows(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 9)
    await shelf.reserve(("tea", 2))
    before = datetime.now(UTC)
    answer = await shelf.client.post(
        f"{shelf.merchant_path}/availability",
        json={
            "rows": [
                {"location": "hamburg", "sku": "tea"},
                {"location": "berlin", "sku": "tea"},
                {"location": "berlin", "sku": "tea"},
            ]
        },
    )
    assert answer.status_code == 200
    unknown, known, again = answer.json()["data"]
    numbers = ("available", "on_hand", "reserved", "safety_stock", "shortfall", "version")
    assert [unknown[name] for name in numbers] == [0] * 6
    assert (unknown["location"], unknown["known"]) == ("hamburg", False)
    assert [known[name] for name in numbers] == [7, 9, 2, 0, 0, 2]
    assert known["known"] is True
    assert again == known
    as_of = datetime.fromisoformat(answer.json()["as_of"])
    assert (as_of - before).total_seconds() == pytest.approx(0, abs=30)


async def test_availability_takes_500_rows_and_no_more(shelf: Shelf) -> None:
    rows = [{"location": "berlin", "sku": f"sku-{n}"} for n in range(501)]
    path = f"{shelf.merchant_path}/availability"
    full = await shelf.client.post(path, json={"rows": rows[:500]})
    assert [row["sku"] for row in full.json()["data"]] == [row["sku"] for row in rows[:500]]
    problem = assert_problem(
        await shelf.client.post(path, json={"rows": rows}), 400, "invalid_request"
    )
    assert problem["errors"][0]["pointer"] == "#/rows"


async def test_settings_are_changed_at_the_version_that_was_seen(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 10)
    key = shelf.key()
    path = f"{shelf.path}/stock/tea/settings"
    changed = await shelf.client.patch(
        path, json={"safety_stock": 4}, headers={**key, "If-Match": '"1"'}
    )
    assert changed.status_code == 200
    assert changed.headers["etag"] == '"2"'
    assert (changed.json()["safety_stock"], changed.json()["available"]) == (4, 6)
    assert "idempotent-replayed" not in changed.headers
    again = await shelf.client.patch(
        path, json={"safety_stock": 4}, headers={**key, "If-Match": '"1"'}
    )
    assert again.json() == changed.json()
    assert again.headers["idempotent-replayed"] == "true"

    stale = await shelf.client.patch(
        path, json={"safety_stock": 5}, headers={**shelf.key(), "If-Match": '"1"'}
    )
    (error,) = assert_problem(stale, 412, VERSION_CONFLICT)["errors"]
    assert (error["header"], error["expected"], error["actual"]) == ("If-Match", 1, 2)


async def test_settings_make_a_row_only_where_there_is_none(shelf: Shelf) -> None:
    path = f"{shelf.path}/stock/tea/settings"
    made = await shelf.client.patch(
        path, json={"safety_stock": 3}, headers={**shelf.key(), "If-None-Match": "*"}
    )
    assert (made.status_code, made.json()["on_hand"], made.json()["version"]) == (200, 0, 1)
    again = await shelf.client.patch(
        path, json={"safety_stock": 3}, headers={**shelf.key(), "If-None-Match": "*"}
    )
    (error,) = assert_problem(again, 412, VERSION_CONFLICT)["errors"]
    assert (error["header"], error["expected"], error["actual"]) == ("If-None-Match", 0, 1)
    missing = await shelf.client.patch(
        f"{shelf.path}/stock/coffee/settings",
        json={"safety_stock": 3},
        headers={**shelf.key(), "If-Match": '"1"'},
    )
    assert assert_problem(missing, 412, VERSION_CONFLICT)["errors"][0]["actual"] == 0


async def test_settings_need_a_precondition_of_the_right_form(shelf: Shelf) -> None:
    path = f"{shelf.path}/stock/tea/settings"
    body = {"safety_stock": 3}
    answer = await shelf.client.patch(path, json=body, headers=shelf.key())
    assert_problem(answer, 428, "precondition_required")
    for headers in (
        {"If-Match": "*"},
        {"If-Match": "1"},
        {"If-Match": 'W/"1"'},
        {"If-Match": '"0"'},
        {"If-Match": '"1", "2"'},
        {"If-None-Match": '"1"'},
        {"If-Match": '"1"', "If-None-Match": "*"},
    ):
        answer = await shelf.client.patch(path, json=body, headers={**shelf.key(), **headers})
        problem = assert_problem(answer, 400, "invalid_request")
        assert problem["errors"][0]["header"] in headers


async def test_a_row_says_what_can_be_promised_by_which_day(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 1)
    path = f"{shelf.path}/stock/tea/supplies/po%2F1"
    body = {"expected_on": "2026-12-07", "quantity": 4}
    answer = await shelf.client.put(path, json=body, headers=shelf.key())
    row = answer.json()["stock"]
    assert (answer.headers["etag"], row["incoming"]) == ('"2"', 4)
    assert row["supplies"] == [{"supply": "po/1", "expected_on": "2026-12-07", "quantity": 4}]
    steps = [{"by": "2026-12-07", "quantity": 5}]
    read = (await shelf.client.get(f"{shelf.path}/stock/tea")).json()
    assert (row["available_to_promise"], read["available_to_promise"]) == (steps, steps)
    asked = await shelf.client.post(
        f"{shelf.merchant_path}/availability",
        json={"rows": [{"location": shelf.path.rpartition("/")[2], "sku": "tea"}]},
    )
    assert asked.json()["data"][0]["available_to_promise"] == steps

    made = await shelf.client.post(
        f"{shelf.path}/reservations",
        json={"lines": [{"sku": "tea", "quantity": 3}], "by": "2026-12-10"},
        headers=shelf.key(),
    )
    (line,) = made.json()["lines"]
    told = (line["backordered"], line["promised_by"], line["expected_on"])
    assert told == (2, "2026-12-07", "2026-12-07")
    refused = await shelf.client.post(
        f"{shelf.path}/reservations",
        json={"lines": [{"sku": "tea", "quantity": 3}], "by": "2026-12-10"},
        headers=shelf.key(),
    )
    assert assert_problem(refused, 409, "insufficient_stock")["errors"][0]["available"] == 2
    waiting = (await shelf.client.get(f"{shelf.path}/stock/tea/waiting")).json()["data"]
    assert [(one["units"], one["promised_by"]) for one in waiting] == [(2, "2026-12-07")]

    arrival = {"type": "receive", "sku": "tea", "quantity": 5, "supply": "po/1"}
    movements = f"{shelf.path}/movements"
    booked = await shelf.client.post(movements, json=arrival, headers=shelf.key())
    assert (booked.status_code, "supplies" in booked.json()["stock"]) == (201, False)
    again = await shelf.client.post(movements, json=arrival, headers=shelf.key())
    problem = assert_problem(again, 404, "supply_not_found")
    assert problem["errors"][0]["pointer"] == "#/supply"
    assert "expects" not in problem["errors"][0]
    for name in ("console/7", "po/12"):
        announced = await shelf.client.put(
            f"{shelf.path}/stock/tea/supplies/{name.replace('/', '%2F')}",
            json={"expected_on": "2026-12-07", "quantity": 9},
            headers=shelf.key(),
        )
        assert announced.status_code == 200, announced.text
    misspelt = await shelf.client.post(movements, json=arrival, headers=shelf.key())
    problem = assert_problem(misspelt, 404, "supply_not_found")
    assert problem["errors"][0]["expects"] == ["po/12", "console/7"]
    assert "a supply po/1, but with po/12, console/7: announce it" in problem["detail"]
    sold = {"type": "sale", "sku": "tea", "quantity": 1, "supply": "po/1"}
    refused = await shelf.client.post(movements, json=sold, headers=shelf.key())
    assert_problem(refused, 400, "invalid_request")


@pytest.mark.parametrize(
    ("body", "remedy"),
    [
        ({"expected_on": "2026-02-30", "quantity": 1}, "must be a day as YYYY-MM-DD"),
        ({"expected_on": "7 December", "quantity": 1}, "must be a day as YYYY-MM-DD"),
        ({"expected_on": "2026-12-07", "quantity": 0}, ">= 1"),
        ({"quantity": 1}, "expected_on"),
    ],
)
async def test_a_supply_that_is_not_of_its_form_is_refused(
    shelf: Shelf, body: dict[str, Any], remedy: str
) -> None:
    answer = await shelf.client.put(
        f"{shelf.path}/stock/tea/supplies/po-1", json=body, headers=shelf.key()
    )
    assert remedy in assert_problem(answer, 400, "invalid_request")["detail"]
    assert (await shelf.client.get(f"{shelf.path}/stock/tea")).status_code == 404
