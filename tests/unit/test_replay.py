import asyncio
import json
from collections import Counter
from typing import Any

import httpx
import pytest

from holdfast import replay
from holdfast.calls import Line
from holdfast.client import AsyncClient, RetryPolicy
from holdfast.replay import (
    MerchantInUse,
    Replay,
    ReplayReport,
    ReplaySettings,
    opening_units,
    percentile_ms,
)
from holdfast.sales_file import Cart, Sales

QUICK = RetryPolicy(max_attempts=2, first_wait_seconds=0.0, max_wait_seconds=0.0)
LONG_AGO = "2026-11-23T15:38:04.123Z"


class Shop:
    """A service in memory; its flaws are what an account must find."""

    def __init__(self, *flaws: str) -> None:
        self.flaws = set(flaws)
        self.on_hand: Counter[tuple[str, str]] = Counter()
        self.reserved: Counter[tuple[str, str]] = Counter()
        self.held: dict[str, tuple[str, list[dict[str, Any]]]] = {}
        self.ttls: list[float] = []

    async def handle(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        parts = request.url.path.split("/")
        if parts[-1] == "batch":
            return self.receive(body["movements"])
        if parts[-1] in ("commit", "release"):
            return self.end(parts[-2], parts[-1])
        if parts[-1] == "reservations":
            return self.reserve(parts[-2], body)
        return self.listing(parts)

    def receive(self, movements: list[dict[str, Any]]) -> httpx.Response:
        for one in movements:
            self.on_hand[one["location"], one["sku"]] += one["quantity"]
        verdicts = [{"id": one["id"], "status": "applied"} for one in movements]
        counts = {"applied": len(movements), "replayed": 0, "refused": 0}
        return httpx.Response(200, json={"data": verdicts, **counts})

    def reserve(self, location: str, body: dict[str, Any]) -> httpx.Response:
        fits = all(
            self.on_hand[location, line["sku"]] - self.reserved[location, line["sku"]]
            >= line["quantity"]
            for line in body["lines"]
        )
        if not fits and "oversells" not in self.flaws:
            problem = {"code": "insufficient_stock", "status": 409, "detail": "too few"}
            return httpx.Response(409, json=problem)
        number = f"rsv_0_{len(self.held)}"
        self.held[number] = (location, body["lines"])
        self.move(self.reserved, number, +1)
        self.ttls.append(body["ttl_seconds"])
        if body["ttl_seconds"] < 10 and "leaks" not in self.flaws:
            loop = asyncio.get_running_loop()
            loop.call_later(body["ttl_seconds"], self.move, self.reserved, number, -1)
        return httpx.Response(201, json=self.document(number, "held"))

    def end(self, number: str, verb: str) -> httpx.Response:
        if "refuses endings" in self.flaws:
            problem = {"code": "reservation_ended", "status": 409, "detail": "expired"}
            return httpx.Response(409, json=problem)
        self.move(self.reserved, number, -1)
        if verb == "commit" and "forgets commits" not in self.flaws:
            self.move(self.on_hand, number, -1)
        return httpx.Response(
            200, json=self.document(number, "committed" if verb == "commit" else "held")
        )

    def move(self, units: Counter[tuple[str, str]], number: str, sign: int) -> None:
        location, lines = self.held[number]
        for line in lines:
            units[location, line["sku"]] += sign * line["quantity"]

    def document(self, number: str, state: str) -> dict[str, Any]:
        location, lines = self.held[number]
        committed = state == "committed"
        return {
            "id": number,
            "merchant": "m",
            "location": location,
            "state": "committed" if committed else "held",
            "lines": [
                {**line, "picked": line["quantity"] if committed else None} for line in lines
            ],
            "missing": [],
            "order_ref": "",
            "created_at": LONG_AGO,
            "expires_at": None,
            "confirmed_at": None,
            "ended_at": None,
        }

    def listing(self, parts: list[str]) -> httpx.Response:
        if parts[-1] == "locations":
            names = sorted({location for location, _ in self.on_hand})
            data: list[dict[str, Any]] = [{"location": name} for name in names]
        else:
            data = [
                {
                    "merchant": "m",
                    "location": location,
                    "sku": sku,
                    "on_hand": units,
                    "reserved": self.reserved[location, sku],
                    "safety_stock": 0,
                    "available": max(0, units - self.reserved[location, sku]),
                    "shortfall": 0,
                    "deficit": 0,
                    "version": 1,
                }
                for (location, sku), units in self.on_hand.items()
                if location == parts[-2]
            ]
        return httpx.Response(200, json={"data": data, "has_more": False, "next_cursor": None})


def sales_of(count: int) -> Sales:
    carts = [
        Cart(float(n), f"store{n % 3}", (Line("mug", 1 + n % 2), Line(f"sku{n % 5}", 2)))
        for n in range(count)
    ]
    units: Counter[tuple[str, str]] = Counter()
    for cart in carts:
        for line in cart.lines:
            units[cart.store, line.sku] += line.quantity
    return Sales(carts=carts, units=dict(units), lines=2 * count, baskets=count)


async def run(shop: Shop, sales: Sales, **settings: Any) -> ReplayReport:
    transport = httpx.MockTransport(shop.handle)
    chosen = ReplaySettings(
        merchant="m", run_id="run", **{"ttl_seconds": 0.05, "concurrency": 4, **settings}
    )
    async with AsyncClient("http://holdfast.test", retry=QUICK, transport=transport) as client:
        return await Replay(client, sales, chosen).run()


def failed_checks(report: ReplayReport) -> set[str]:
    return {check.name for check in report.account if not check.holds}


async def test_an_honest_service_balances() -> None:
    report = await run(Shop(), sales_of(200))
    assert report.balanced, report.account
    assert report.carts == 200
    assert report.committed_carts + report.released_carts + report.expired_carts == 200
    assert report.released_carts > 0
    assert report.expired_carts > 0
    assert report.received_units == report.on_hand_units + report.committed_units
    assert report.latency["reserve"].calls == 200
    assert report.requests == 200 + report.committed_carts + report.released_carts


async def test_only_carts_that_are_left_to_expire_have_the_short_ttl() -> None:
    shop = Shop()
    report = await run(shop, sales_of(100))
    assert Counter(shop.ttls)[0.05] == report.expired_carts
    assert Counter(shop.ttls)[replay.COMMIT_TTL_SECONDS] == 100 - report.expired_carts


async def test_short_stock_is_refused_and_still_balances() -> None:
    report = await run(Shop(), sales_of(200), stock_factor=0.5)
    assert report.refused_carts > 0
    assert report.balanced, report.account


async def test_no_stock_at_all_is_refused_throughout() -> None:
    report = await run(Shop(), sales_of(10), stock_factor=0.0)
    assert (report.refused_carts, report.rows, report.received_units) == (10, 0, 0)
    assert report.balanced, report.account


async def test_a_unit_promised_twice_is_found() -> None:
    report = await run(Shop("oversells"), sales_of(200), stock_factor=0.5)
    assert not report.balanced
    assert report.oversold_units > 0
    assert "units oversold" in failed_checks(report)


async def test_a_commit_that_left_no_trace_is_found() -> None:
    report = await run(Shop("forgets commits"), sales_of(50))
    assert failed_checks(report) == {
        "units on hand + committed",
        "rows that differ from what the client saw",
    }


async def test_a_hold_that_never_expires_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "EXPIRY_GRACE_SECONDS", 0.3)
    report = await run(Shop("leaks"), sales_of(100))
    assert report.reserved_units > 0
    assert "units still reserved" in failed_checks(report)


async def test_a_cart_that_comes_to_no_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "EXPIRY_GRACE_SECONDS", 0.3)
    report = await run(Shop("refuses endings"), sales_of(20), commit=1.0, release=0.0)
    assert report.failures == {"reservation_ended": 20}
    assert "carts that came to their end" in failed_checks(report)


async def test_a_merchant_with_stock_is_left_alone() -> None:
    shop = Shop()
    shop.on_hand["leeds", "mug"] = 5
    with pytest.raises(MerchantInUse):
        await run(shop, sales_of(5))
    assert shop.on_hand == {("leeds", "mug"): 5}


async def test_a_seed_decides_what_becomes_of_the_carts() -> None:
    reports = [await run(Shop(), sales_of(100), seed=seed) for seed in (1, 1, 2)]
    ends = [(one.committed_carts, one.released_carts, one.expired_carts) for one in reports]
    assert ends[0] == ends[1]
    assert ends[0] != ends[2]


async def test_speed_follows_the_times_of_the_file() -> None:
    # 20 carts a second apart, at 100 times real time: they cannot all start before 0.19 s.
    report = await run(Shop(), sales_of(20), speed=100.0, commit=1.0, release=0.0)
    assert report.drive_seconds >= 0.19
    assert report.balanced


@pytest.mark.parametrize(
    ("sold", "factor", "units"),
    [(10, 1.0, 10), (10, 1.1, 11), (1, 0.1, 1), (3, 0.5, 2), (10, 0.0, 0), (0, 1.0, 0)],
)
def test_opening_stock_is_rounded_up(sold: int, factor: float, units: int) -> None:
    assert opening_units(sold, factor) == units


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50.0), (0.95, 95.0), (0.99, 99.0), (1.0, 100.0), (0.001, 1.0)]
)
def test_percentiles_are_nearest_rank(share: float, expected: float) -> None:
    assert percentile_ms([n / 1000 for n in range(1, 101)], share) == expected


def test_a_percentile_of_one_value_is_that_value() -> None:
    assert percentile_ms([0.004], 0.99) == 4.0
