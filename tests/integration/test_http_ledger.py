"""The ledger over HTTP: questions, cursors, isolation, and stock as it was."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from engine.access import Role
from engine.history import History
from engine.inventory import Inventory
from gateway.app import create_app
from gateway.service import Service
from gateway.wire import Health
from reconciler.archive import Archive, open_archive
from reconciler.archiver import Archiver, ArchiverSettings
from reconciler.history import LedgerHistory
from tests.gateways import READY_SECONDS, Api, Shelf, assert_problem
from tests.stores import MakeStore, RealStore, eventually, set_up

PARTITIONS: Final = 4


@pytest.fixture
async def store(make_store: MakeStore) -> RealStore:
    """A store of the test's own, whose stream gives up entries one by one."""
    real = make_store(extra_config=["stream-node-max-entries 1"])
    await real.start()
    await set_up(real.settings, partitions=PARTITIONS)
    return real


@pytest.fixture
async def api(store: RealStore, merchant: str, tmp_path: Path) -> AsyncIterator[Api]:
    """A gateway in this process, with an archive in a folder behind it."""

    def open_history(inventory: Inventory) -> History:
        async def opened() -> Archive:
            return await open_archive(inventory.store, str(tmp_path / "archive"))

        return LedgerHistory(inventory, opened)

    async with Api(store.settings, merchant, open_history=open_history) as made:
        yield made


@pytest.fixture
async def shelf(api: Api) -> Shelf:
    return Shelf(await api.client(), api.merchant)


async def archive_all(api: Api, folder: Path) -> None:
    """Archive the whole ledger, and trim all of it from the store."""
    inventory = api.service.inventory
    archive = await open_archive(inventory.store, str(folder))
    settings = ArchiverSettings(min_age_ms=0, resume_window_ms=0, max_segment_entries=3)
    archiver = Archiver(inventory, archive, owner="test", settings=settings)
    await archiver.archive_all(flush=True)
    await archiver.give_up()


async def ledger(shelf: Shelf, **query: Any) -> dict[str, Any]:
    answer = await shelf.client.get(
        f"{shelf.merchant_path}/ledger",
        params={name.rstrip("_"): value for name, value in query.items()},
    )
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    assert page["missing"] == []
    return page


async def test_an_operation_is_told_with_its_rows_and_details(api: Api, shelf: Shelf) -> None:
    moved = await shelf.move("receive", "tea", 12, reference="delivery 7", reason="new")
    held = await shelf.reserve(("tea", 5), ("tea", 1), order_ref="order 9")
    reservation = held.json()["id"]
    await shelf.end("commit", reservation, lines=[{"sku": "tea", "quantity": 2}])
    committed, reserved, received = (await ledger(shelf))["data"]
    assert received == {
        "partition": received["partition"],
        "sequence": moved.json()["sequence"],
        "at": moved.json()["at"],
        "kind": "move",
        "id": moved.json()["id"],
        "merchant": api.merchant,
        "location": "berlin",
        "actor": received["actor"],
        "rows": [
            {
                "sku": "tea",
                "on_hand": 12,
                "reserved": 0,
                "safety_stock": 0,
                "available": 12,
                "shortfall": 0,
                "deficit": 0,
                "version": 1,
                "changes": {"on_hand": 12, "reserved": 0, "safety_stock": 0, "deficit": 0},
            }
        ],
        "row_count": 1,
        "details": {
            "type": "receive",
            "quantity": 12,
            "reason": "new",
            "reference": "delivery 7",
        },
    }
    assert (reserved["kind"], reserved["id"]) == ("reserve", reservation)
    assert reserved["rows"][0]["changes"]["reserved"] == 6
    assert reserved["details"] == {
        "order_ref": "order 9",
        "expires_at": held.json()["expires_at"],
    }
    assert committed["details"] == {
        "state_before": "held",
        "picked": [{"sku": "tea", "quantity": 2}],
    }
    assert committed["rows"][0]["changes"] == {
        "on_hand": -2,
        "reserved": -6,
        "safety_stock": 0,
        "deficit": 0,
    }
    assert received["sequence"] < reserved["sequence"] < committed["sequence"]


async def test_each_parameter_picks_its_operations(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 12, reference="delivery 7")
    other = Shelf(shelf.client, shelf.merchant_path.rpartition("/")[2], "köln")
    await other.move("receive", "tea", 3)
    await other.move("receive", "mate", 3)
    held = await other.reserve(("mate", 1), ("tea", 1), order_ref="order 9")
    reservation = held.json()["id"]
    await other.end("confirm", reservation, order_ref="order 9")
    everything = (await ledger(shelf, order="oldest"))["data"]
    assert [entry["kind"] for entry in everything] == [*["move"] * 3, "reserve", "confirm"]
    wanted: dict[str, tuple[dict[str, str], list[int]]] = {
        "location": ({"location": "köln"}, [1, 2, 3, 4]),
        "sku": ({"sku": "tea"}, [0, 1, 3]),
        "reservation": ({"reservation": reservation}, [3, 4]),
        "order": ({"reference": "order 9"}, [3, 4]),
        "reference": ({"reference": "delivery 7"}, [0]),
        "kind": ({"kind": "confirm"}, [4]),
        "actor": ({"actor": everything[0]["actor"]}, [0, 1, 2, 3, 4]),
        "nobody": ({"actor": "nobody"}, []),
        "from": ({"from": everything[2]["at"], "location": "köln"}, [2, 3, 4]),
        "to": ({"to": everything[0]["at"]}, []),
    }
    for name, (query, places) in wanted.items():
        found = (await ledger(shelf, order="oldest", **query))["data"]
        ids = [(entry["partition"], entry["sequence"]) for entry in found]
        assert ids == [
            (everything[place]["partition"], everything[place]["sequence"]) for place in places
        ], name
    (cart,) = (await ledger(shelf, sku="tea", kind="reserve"))["data"]
    assert [row["sku"] for row in cart["rows"]] == ["tea"]
    assert cart["row_count"] == 2


@pytest.mark.parametrize("order", ["newest", "oldest"])
async def test_pages_reach_into_the_archive_and_cursors_outlive_it(
    api: Api, shelf: Shelf, tmp_path: Path, order: str
) -> None:
    for number in range(12):
        await shelf.move("receive", f"sku-{number % 3}", number + 1)
    await archive_all(api, tmp_path / "archive")
    for number in range(12, 20):
        await shelf.move("receive", f"sku-{number % 3}", number + 1)
    seen = []
    cursor: dict[str, str] = {}
    for _ in range(50):
        page = await ledger(shelf, order=order, limit=3, **cursor)
        seen += [entry["details"]["quantity"] for entry in page["data"]]
        if not page["has_more"]:
            break
        cursor = {"cursor": page["next_cursor"]}
        await archive_all(api, tmp_path / "archive")
    assert seen == sorted(range(1, 21), reverse=order == "newest")
    assert (page["next_cursor"] is None) is (order == "newest")


async def test_the_cursor_of_the_last_page_finds_what_comes_later(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 1)
    page = await ledger(shelf, order="oldest", location="berlin")
    assert not page["has_more"]
    await shelf.move("receive", "tea", 2)
    page = await ledger(shelf, order="oldest", location="berlin", cursor=page["next_cursor"])
    assert [entry["details"]["quantity"] for entry in page["data"]] == [2]


async def test_a_cursor_is_for_its_own_question_alone(shelf: Shelf) -> None:
    for number in range(3):
        await shelf.move("receive", "tea", number + 1)
    page = await ledger(shelf, limit=1)
    path = f"{shelf.merchant_path}/ledger"
    for query in (
        {"cursor": page["next_cursor"], "sku": "tea"},
        {"cursor": page["next_cursor"], "order": "oldest"},
        {"cursor": "bm90aGluZw"},
    ):
        problem = assert_problem(await shelf.client.get(path, params=query), 400, "invalid_request")
        assert problem["errors"][0]["parameter"] == "cursor"
    # How much a page has is no part of the question.
    more = await ledger(shelf, limit=500, cursor=page["next_cursor"])
    assert len(more["data"]) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("from", "yesterday"),
        ("from", "2026-11-23T15:38:04"),
        ("to", "1969-12-31T23:59:59Z"),
        ("kind", "steal"),
        ("order", "random"),
        ("limit", "0"),
        ("sku", ""),
        ("location", "x" * 201),
        ("colour", "red"),
    ],
)
async def test_a_bad_parameter_is_named(shelf: Shelf, name: str, value: str) -> None:
    answer = await shelf.client.get(f"{shelf.merchant_path}/ledger", params={name: value})
    problem = assert_problem(answer, 400, "invalid_request")
    assert [error["parameter"] for error in problem["errors"]] == [name]


async def test_the_ledger_of_another_merchant_does_not_exist(api: Api, shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 1)
    held = await shelf.reserve(("tea", 1))
    reservation = held.json()["id"]
    stranger = await api.client(merchant="someone else")
    answer = await stranger.get(f"{shelf.merchant_path}/ledger")
    assert_problem(answer, 404, "not_found")
    answer = await stranger.get(f"{shelf.path}/stock/tea", params={"at": held.json()["created_at"]})
    assert_problem(answer, 404, "not_found")
    for query in ({}, {"location": "berlin"}, {"reservation": reservation}, {"sku": "tea"}):
        answer = await stranger.get("/v1/merchants/someone%20else/ledger", params=query)
        assert answer.json()["data"] == []


async def test_any_role_may_ask(api: Api, shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 1)
    for role in Role:
        client = await api.client(role)
        answer = await client.get(f"{shelf.merchant_path}/ledger")
        assert len(answer.json()["data"]) == 1


async def test_stock_is_told_as_it_was(api: Api, shelf: Shelf, tmp_path: Path) -> None:
    moments = []
    for number in range(1, 6):
        moved = await shelf.move("receive", "tea", 1)
        moments.append(moved.json()["at"])
        # The next movement must not share the millisecond.
        await asyncio.sleep(0.002)
        if number == 3:
            await archive_all(api, tmp_path / "archive")
    for number, at in enumerate(moments, 1):
        answer = await shelf.client.get(f"{shelf.path}/stock/tea", params={"at": at})
        row = answer.json()
        assert (row["on_hand"], row["version"], row["as_of"]) == (number, number, at)
        assert answer.headers["etag"] == f'"{number}"'
    now = await shelf.client.get(f"{shelf.path}/stock/tea")
    assert now.json()["as_of"] > moments[-1]
    before = {"at": "2020-01-01T00:00:00Z"}
    answer = await shelf.client.get(f"{shelf.path}/stock/tea", params=before)
    assert_problem(answer, 404, "row_not_found")


@pytest.mark.parametrize("at", ["2999-01-01T00:00:00Z", "now", "2026-11-23T15:38:04"])
async def test_a_moment_that_is_none_of_the_past_is_refused(shelf: Shelf, at: str) -> None:
    await shelf.move("receive", "tea", 1)
    answer = await shelf.client.get(f"{shelf.path}/stock/tea", params={"at": at})
    problem = assert_problem(answer, 400, "invalid_request")
    assert problem["errors"][0]["parameter"] == "at"


async def test_a_past_that_is_not_kept_says_since_when_it_is(
    api: Api, shelf: Shelf, tmp_path: Path
) -> None:
    first = await shelf.move("receive", "tea", 1)
    for _ in range(3):
        await shelf.move("receive", "coffee", 1)
    await archive_all(api, tmp_path / "archive")
    second = await shelf.move("receive", "mate", 1)
    segment, *_ = sorted((tmp_path / "archive").rglob("*.segment"))
    segment.unlink()
    answer = await shelf.client.get(f"{shelf.path}/stock/tea", params={"at": first.json()["at"]})
    problem = assert_problem(answer, 422, "past_not_kept")
    (error,) = problem["errors"]
    assert error["parameter"] == "at"
    answer = await shelf.client.get(f"{shelf.path}/stock/tea", params={"at": second.json()["at"]})
    problem = assert_problem(answer, 422, "past_not_kept")
    earliest = problem["errors"][0]["earliest"]
    assert first.json()["at"] <= earliest <= second.json()["at"]


async def test_a_gateway_that_was_given_no_history_says_so(store: RealStore, merchant: str) -> None:
    async with Api(store.settings, merchant) as api:
        api.app = create_app(bare := Service(store.settings))
        await bare.start()
        try:
            await eventually(lambda: _is_open(bare), within_seconds=READY_SECONDS)
            answer = await (await api.client()).get(f"/v1/merchants/{merchant}/ledger")
        finally:
            await bare.stop()
    assert_problem(answer, 503, "history_unavailable")
    assert int(answer.headers["retry-after"]) > 0


async def _is_open(service: Service) -> bool:
    return (await service.readiness()).status is Health.READY
