"""Feeds over HTTP: a verdict an event, and whose they are."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx

from tests.gateways import Api, Shelf, assert_problem

A_MINUTE_AGO: Final = datetime.now(UTC) - timedelta(minutes=1)


def event(event_id: str, kind: str = "sale", quantity: int = 1, **fields: Any) -> dict[str, Any]:
    """Return an event of a minute ago: always of the same moment, so that it can be repeated."""
    return {
        "event_id": event_id,
        "type": kind,
        "sku": "tea",
        "quantity": quantity,
        "occurred_at": A_MINUTE_AGO.isoformat(),
        **fields,
    }


async def send(shelf: Shelf, *events: Any, source: str = "till%204") -> httpx.Response:
    """Send events of a source."""
    return await shelf.client.post(
        f"{shelf.path}/feeds/{source}/events", json={"events": list(events)}
    )


async def test_each_event_has_its_verdict_and_a_bad_one_holds_up_nothing(shelf: Shelf) -> None:
    answer = await send(
        shelf,
        event("1", "receipt", 9, sequence=1),
        event("1", "receipt", 9, sequence=1),
        event("2", "receipt", 8, sequence=1),
        {"event_id": "3", "type": "guess"},
        event("4", sequence=2, quantity=-1),
        event("5", sequence=3, occurred_at="2020-01-01T00:00:00Z"),
        event("6", "adjustment", -1, sequence=4),
        event("7", sequence=4, extra=1),
        7,
        event("8", "count", 5, sequence=5),
        event("9", "heartbeat", 1),
    )
    body = answer.json()
    assert [one["verdict"] for one in body["data"]] == [
        "applied",
        "duplicate",
        *["rejected"] * 3,
        "quarantined",
        *["rejected"] * 3,
        "applied",
        "rejected",
    ]
    pointers = [one["error"]["errors"][0]["pointer"] for one in body["data"] if "error" in one]
    assert pointers == [
        "#/events/2/event_id",
        "#/events/3/type",
        "#/events/4/quantity",
        "#/events/6/reason",
        "#/events/7/extra",
        "#/events/8",
        "#/events/10/sku",
    ]
    assert body["data"][5]["why"] == "too_late"
    assert [one["event_id"] for one in body["data"]][3:9] == ["3", "4", "5", "6", "7", None]
    assert (body["applied"], body["rejected"], body["quarantined"]) == (2, 7, 1)
    listed = (await shelf.client.get(f"{shelf.path}/feeds")).json()
    (source,) = listed["data"]
    assert (source["source"], source["watermark"], source["missing"]) == ("till 4", 1, 2)
    assert (listed["quarantined"], source["state"]) == (1, "catching_up")


async def test_an_hours_backlog_twice_is_booked_once(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 2_000)
    backlog = [event(str(number), sequence=number) for number in range(1, 1_001)]
    first, second = await send(shelf, *backlog), await send(shelf, *reversed(backlog))
    assert (first.json()["applied"], second.json()["duplicate"]) == (1_000, 1_000)
    stock = (await shelf.client.get(f"{shelf.path}/stock/tea")).json()
    assert stock["on_hand"] == 1_000
    assert_problem(await send(shelf, *backlog, event("x")), 400, "invalid_request")


async def test_the_ledger_tells_of_events(shelf: Shelf) -> None:
    await send(shelf, event("a/1", "count", 5), event("b", occurred_at="2020-01-01T00:00:00Z"))
    answer = await shelf.client.get(f"{shelf.merchant_path}/ledger", params={"kind": "feed"})
    late, counted = answer.json()["data"]
    assert late["details"]["verdict"] == "superseded"
    assert late["rows"] == []
    details = counted["details"]
    assert (details["type"], details["source"], details["event_id"]) == ("count", "till 4", "a/1")
    assert counted["rows"][0]["on_hand"] == 5


async def test_a_delivery_says_whether_its_supply_was_announced(shelf: Shelf) -> None:
    await shelf.client.put(
        f"{shelf.path}/stock/tea/supplies/po-1",
        json={"expected_on": "2026-12-07", "quantity": 9},
        headers={"Idempotency-Key": '"announced"'},
    )
    answer = await send(
        shelf,
        event("1", "receipt", 5, supply="po-1"),
        event("2", "receipt", 1, supply="po-2"),
        event("3", "sale", 1, supply="po-1"),
    )
    first, second, third = answer.json()["data"]
    assert (first["verdict"], second["verdict"]) == ("applied", "applied")
    assert ("why" in first, second["why"]) == (False, "supply_not_found")
    assert ("expects" in first, second["expects"]) == (False, ["po-1"])
    assert third["error"]["errors"][0]["pointer"] == "#/events/2/supply"
    stock = (await shelf.client.get(f"{shelf.path}/stock/tea")).json()
    assert (stock["on_hand"], stock["incoming"]) == (6, 4)
    ledger = await shelf.client.get(f"{shelf.merchant_path}/ledger", params={"kind": "feed"})
    details = [one["details"] for one in ledger.json()["data"]]
    assert sorted((one["supply"], one.get("why")) for one in details) == [
        ("po-1", None),
        ("po-2", "supply_not_found"),
    ]


async def test_feeds_are_the_merchants_own_and_need_the_role(api: Api, shelf: Shelf) -> None:
    await send(shelf, event("1", occurred_at="2020-01-01T00:00:00Z"))
    (aside,) = (await shelf.client.get(f"{shelf.path}/quarantine")).json()["data"]
    stranger = Shelf(await api.client(merchant="another"), api.merchant)
    for method, path in (
        ("POST", f"{shelf.path}/feeds/till/events"),
        ("GET", f"{shelf.path}/feeds"),
        ("GET", f"{shelf.path}/quarantine"),
        ("POST", f"{shelf.path}/quarantine/{aside['id']}/retry"),
        ("POST", f"{shelf.path}/quarantine/{aside['id']}/drop"),
        ("PUT", f"{shelf.merchant_path}/feed-policy"),
    ):
        answer = await stranger.client.request(method, path, json={} if method != "GET" else None)
        assert_problem(answer, 404, "not_found")
    assert (await shelf.client.post(f"{shelf.path}/quarantine/nothing/drop")).json() == {
        "verdict": "absent",
        "why": "",
    }


async def test_a_policy_of_a_location_is_over_the_merchants(shelf: Shelf) -> None:
    wide, narrow = f"{shelf.merchant_path}/feed-policy", f"{shelf.path}/feed-policy"
    assert (await shelf.client.get(narrow)).json() == {}
    set_wide = {"late_hours": 100, "when_offline": "freeze"}
    assert (await shelf.client.put(wide, json=set_wide)).json() == set_wide
    await shelf.client.put(narrow, json={"late_hours": 1})
    assert (await shelf.client.get(wide)).json() == set_wide
    assert (await shelf.client.get(narrow)).json() == {"late_hours": 1}
    for bad in ({"late_hours": 169}, {"on_shortfall": "panic"}, {"surprise": 1}):
        assert_problem(await shelf.client.put(wide, json=bad), 400, "invalid_request")
