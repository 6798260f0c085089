"""`/metrics`: what it tells, of whom, and to whom; the page about it against what is served."""

import asyncio
import re
from pathlib import Path
from typing import Final

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from engine import order_driver
from engine.access import Role
from engine.clock import ClockGuard, clock_ms
from engine.consumer import Consumer, Start
from engine.feed_watch import FeedWatch
from engine.feeds import EventType, FeedEvent, Feeds
from engine.inventory import Inventory
from engine.order_driver import OrderDriver
from engine.orders import Orders
from engine.outcomes import StoreFault
from engine.shortfalls import ShortfallKeeper
from engine.sweeper import Sweeper
from reconciler.continuous_audit import ContinuousAudit
from reconciler.loop import Reconciler
from reconciler.settings import ReconcilerSettings
from tests.gateways import Api, Shelf, assert_problem
from tests.stores import KINDS, VALKEY, MakeStore, RealStore, eventually, set_up

PAGE: Final = Path(__file__).parents[2] / "docs" / "operating" / "metrics.md"
_ROW: Final = re.compile(r"^\| `(holdfast_\w+)` \| (\w+) \|", re.MULTILINE)

WAIT_SECONDS: Final = 15.0

Samples = dict[str, float]


async def scraped(client: httpx.AsyncClient) -> list[Metric]:
    answer = await client.get("/metrics")
    assert answer.status_code == 200, answer.text
    return list(text_string_to_metric_families(answer.text))


async def told(client: httpx.AsyncClient) -> Samples:
    """Return the samples by name and label values, in the order of the labels' names."""
    return {
        " ".join([sample.name, *[value for _, value in sorted(sample.labels.items())]]): (
            sample.value
        )
        for family in await scraped(client)
        for sample in family.samples
    }


def beat(name: str, *, sequence: int = 0) -> FeedEvent:
    return FeedEvent(event_id=name, type=EventType.HEARTBEAT, occurred_at_ms=1, sequence=sequence)


@pytest.fixture
async def own_store(request: pytest.FixtureRequest, make_store: MakeStore) -> RealStore:
    """A store of the test's own with one partition, of the kind that the test names or Valkey."""
    own = make_store(getattr(request, "param", VALKEY))
    await own.start()
    await set_up(own.settings, partitions=1)
    return own


@pytest.fixture
async def scraper(own_api: Api) -> httpx.AsyncClient:
    return await own_api.client(Role.READ, merchant=None)


async def test_it_is_for_keys_of_the_whole_platform(api: Api) -> None:
    for role in Role:
        of_one = await (await api.client(role)).get("/metrics")
        assert_problem(of_one, 404, "not_found")
    assert_problem(await api.client_of(None).get("/metrics"), 401, "unauthenticated")
    platform = await api.client(Role.READ, merchant=None)
    assert (await platform.head("/metrics")).status_code == 200
    assert (await platform.post("/metrics")).status_code == 405


async def test_requests_are_counted_with_their_outcome(
    own_shelf: Shelf, scraper: httpx.AsyncClient
) -> None:
    before = await told(scraper)
    await own_shelf.move("receive", "tea", 1)
    for _ in range(2):
        await own_shelf.reserve(("tea", 1))
    await own_shelf.client.get(f"{own_shelf.path}/stock/tea")
    await own_shelf.client.get("/v1/nothing/there")
    after = await told(scraper)

    def more(name: str) -> float:
        return after[name] - before.get(name, 0)

    # Labels in the order of their names: code, operation, status.
    assert more("holdfast_http_requests_total  reserve 201") == 1
    assert more("holdfast_http_requests_total insufficient_stock reserve 409") == 1
    assert more("holdfast_http_requests_total  readStock 200") == 1
    assert more("holdfast_http_requests_total not_found other 404") == 1
    assert more("holdfast_http_request_duration_seconds_count reserve") == 2
    assert more("holdfast_store_batch_commands_sum reserve") == 2
    assert more("holdfast_store_call_duration_seconds_count reserve") == 2
    assert after["holdfast_store_scripts_total"] > 0
    assert after["holdfast_store_script_seconds_total"] > 0


@pytest.mark.parametrize("own_store", KINDS, indirect=True)
async def test_the_stores_figures_are_what_is_in_it(
    own_api: Api, own_shelf: Shelf, scraper: httpx.AsyncClient
) -> None:
    inventory = own_api.service.inventory
    await own_shelf.move("receive", "tea", 5)
    held = await own_shelf.reserve(("tea", 2), ttl_seconds=1)
    await own_shelf.reserve(("tea", 1), ttl_seconds=600)
    confirmed = await own_shelf.reserve(("tea", 1))
    await own_shelf.end("confirm", confirmed.json()["id"])
    # The till sells what was promised.
    await own_shelf.move("sale", "tea", 3)
    await ShortfallKeeper(inventory).round()
    feeds = Feeds(inventory)
    late = FeedEvent(
        event_id="4", type=EventType.RECEIPT, sku="tea", quantity=1, occurred_at_ms=1, sequence=4
    )
    await feeds.take("acme", "berlin", "till", [beat("1", sequence=1), late], actor="t")
    await Reconciler(inventory, ReconcilerSettings(audit_rows_per_second=0)).watch()

    async def is_due() -> bool:
        return (await told(scraper))["holdfast_holds_overdue"] == 1

    await eventually(is_due, within_seconds=WAIT_SECONDS)
    found = await told(scraper)
    assert found["holdfast_holds"] == 2
    assert found["holdfast_holds_most_overdue_seconds"] > 0
    assert found["holdfast_holds_oldest_seconds"] >= 1
    assert found["holdfast_shortfalls"] == 1
    assert found["holdfast_consumer_lag_operations shortfalls"] >= 1
    assert found["holdfast_consumer_lag_seconds shortfalls"] > 0
    assert found["holdfast_feed_events_missing"] == 2
    assert found["holdfast_feed_sources catching_up"] == 1
    assert found["holdfast_store_memory_used_bytes"] > 0
    assert found["holdfast_store_memory_limit_bytes"] > found["holdfast_store_memory_used_bytes"]
    assert (found["holdfast_reconciler_up"], found["holdfast_sweeper_up"]) == (1, 0)
    # No archive is named.
    assert "holdfast_archive_lag_seconds" not in found

    sweeper = Sweeper(inventory)
    assert await sweeper.sweep() == 1
    await sweeper._tell()

    async def is_swept() -> bool:
        swept = await told(scraper)
        return (swept["holdfast_holds_overdue"], swept["holdfast_sweeper_up"]) == (0, 1)

    await eventually(is_swept, within_seconds=WAIT_SECONDS)
    assert held.json()["state"] == "held"
    assert (await told(scraper))["holdfast_store_fsync_delay_seconds_count"] >= 1


async def test_a_consumer_that_stands_still_falls_behind(
    own_api: Api, own_shelf: Shelf, scraper: httpx.AsyncClient
) -> None:
    class Blocked:
        async def apply(self, _batch: object) -> None:
            await asyncio.Event().wait()

        async def resync(self, _anew: object) -> None:
            return

    inventory = await Inventory.open(own_api.service.inventory.store.settings)
    stop = asyncio.Event()
    consumer = Consumer(inventory, "reports", Blocked(), start=Start.LATEST)
    running = asyncio.create_task(consumer.run(stop))

    async def lag() -> float:
        return (await told(scraper)).get("holdfast_consumer_lag_operations reports", -1)

    async def is_there() -> bool:
        return await lag() == 0

    async def is_behind() -> bool:
        return await lag() == 3

    try:
        await eventually(is_there, within_seconds=WAIT_SECONDS)
        for _ in range(3):
            await own_shelf.move("receive", "tea", 1)
        await eventually(is_behind, within_seconds=WAIT_SECONDS)
        assert (await told(scraper))["holdfast_consumer_lag_seconds reports"] > 0
    finally:
        running.cancel()
        await asyncio.wait([running])
        await inventory.close()


async def test_what_an_alert_is_about_moves_its_metric(
    own_api: Api,
    own_store: RealStore,
    own_shelf: Shelf,
    scraper: httpx.AsyncClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inventory = own_api.service.inventory
    await own_shelf.move("receive", "tea", 5)
    await own_shelf.reserve(("tea", 2))
    await Feeds(inventory).take("acme", "berlin", "till", [beat("1")], actor="t")
    # The till is silent, the row is edited, the archive is a file, the clock jumps.
    await own_store.run("HSET", inventory.keys[0].stock("acme", "berlin", "tea"), "on_hand", 1)
    await own_store.run("CONFIG", "SET", "maxmemory", 1 << 30)
    (tmp_path / "archive").write_text("no folder")
    seconds = [0.0]
    monkeypatch.setattr(inventory._expiry, "_clock", ClockGuard(lambda: seconds[0]))
    await inventory.expire_due(0)
    seconds[0] -= 3_600

    async def nothing() -> None:
        return None

    await ContinuousAudit(inventory, nothing, owner="t", keys_per_second=100_000).round()
    sweeper = Sweeper(inventory)
    await sweeper.sweep()
    await sweeper._tell()
    settings = ReconcilerSettings(archive_url=str(tmp_path / "archive"))
    await Reconciler(inventory, settings).watch()
    watch = FeedWatch(inventory, Feeds(inventory))
    now_ms = await clock_ms(inventory.store, inventory.keys[0])
    await watch.round(now_ms + 3_600_000)

    found = await told(scraper)
    assert found["holdfast_oversold"] == 1
    assert found["holdfast_audit_findings critical"] >= 1
    assert found["holdfast_audit_timestamp_seconds"] > 0
    assert found["holdfast_store_memory_limit_bytes"] == 1 << 30
    assert found["holdfast_archive_lag_operations"] == 2
    assert found["holdfast_archive_lag_seconds"] > 0
    assert found["holdfast_clock_jump_seconds"] == pytest.approx(3_600, abs=60)
    silent = watch.figures(now_ms + 3_600_000)
    assert (silent.live, silent.degraded) == (0, 1)
    assert silent.silent_ms >= 3_600_000 - 1_000


async def test_orders_that_nobody_drives_or_that_cannot_be_driven_are_told(
    own_api: Api, own_shelf: Shelf, scraper: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    inventory = own_api.service.inventory
    await own_shelf.move("receive", "tea", 5)
    line = {"sku": "tea", "quantity": 1}
    body = {"lines": [line], "ttl_seconds": 1}
    placed = await own_shelf.client.post(
        "/v1/merchants/acme/orders", json=body, headers={"Idempotency-Key": "o"}
    )
    assert placed.status_code == 201

    async def is_due() -> bool:
        return (await told(scraper))["holdfast_orders_overdue"] == 1

    await eventually(is_due, within_seconds=WAIT_SECONDS)
    assert (await told(scraper))["holdfast_orders_most_overdue_seconds"] > 0

    seconds = [0.0]
    orders = Orders(inventory)
    expire = orders.expire

    async def fail(*_: object, **__: object) -> None:
        raise StoreFault("order", "it breaks")

    driver = OrderDriver(inventory, orders, monotonic=lambda: seconds[0])
    monkeypatch.setattr(orders, "expire", fail)
    monkeypatch.setattr(order_driver, "GRACE_MS", 0)
    await driver.round()
    seconds[0] += 40
    await driver.round()
    found = await told(scraper)
    assert (found["holdfast_orders_waiting"], found["holdfast_orders_waiting_seconds"]) == (1, 40)
    monkeypatch.setattr(orders, "expire", expire)
    await driver.round()
    found = await told(scraper)
    assert (found["holdfast_orders_waiting"], found["holdfast_orders_waiting_seconds"]) == (0, 0)

    async def is_driven() -> bool:
        return (await told(scraper))["holdfast_orders_overdue"] == 0

    await eventually(is_driven, within_seconds=WAIT_SECONDS)

    # One whose record was removed by hand is not due for ever.
    keys = inventory.keys[0]
    await inventory.store.read([("ZADD", keys.driving, 1, "ord_0_" + "0" * 24)])
    assert [await driver.round() for _ in range(2)] == [1, 0]

    # One that somebody else drove is not waited for for ever.
    driver._waiting.note("ord_0_0")
    seconds[0] += order_driver.FORGOTTEN_SECONDS
    await driver.round()
    assert (await told(scraper))["holdfast_orders_waiting"] == 0


async def test_promises_whose_day_is_over_are_told_once_they_were_audited(
    own_api: Api, own_shelf: Shelf, scraper: httpx.AsyncClient
) -> None:
    stock = f"{own_shelf.path}/stock/tea"
    for supply, day in (("old", "2020-01-01"), ("new", "2099-12-31")):
        announced = await own_shelf.client.put(
            f"{stock}/supplies/{supply}",
            json={"expected_on": day, "quantity": 3},
            headers={"Idempotency-Key": supply},
        )
        assert announced.status_code == 200
    for units, day in ((3, "2020-01-01"), (2, "2099-12-31")):
        assert (await own_shelf.reserve(("tea", units), by=day)).status_code == 201
    await own_shelf.client.put(
        f"{stock}/supplies/old",
        json={"expected_on": "2020-01-02", "quantity": 3},
        headers={"Idempotency-Key": "slips"},
    )

    async def nothing() -> None:
        return None

    inventory = own_api.service.inventory
    await ContinuousAudit(inventory, nothing, owner="t", keys_per_second=100_000).round()

    async def are_told() -> bool:
        found = await told(scraper)
        names = ("backordered_units", "backordered_late_units", "backordered_past_units")
        return [found[f"holdfast_{name}"] for name in (*names, "supplies_past")] == [5, 3, 3, 1]

    await eventually(are_told, within_seconds=WAIT_SECONDS)


async def test_without_its_store_a_gateway_still_tells_of_itself(
    own_api: Api, own_store: RealStore, scraper: httpx.AsyncClient
) -> None:
    assert (await told(scraper))["holdfast_store_up"] == 1
    own_store.kill9()

    async def knows() -> bool:
        return (await told(scraper))["holdfast_store_up"] == 0

    await eventually(knows, within_seconds=WAIT_SECONDS)
    found = await told(scraper)
    assert "holdfast_holds" not in found
    assert found["holdfast_store_failures_total unavailable"] > 0


async def test_the_page_has_every_metric_and_no_other(
    own_api: Api, scraper: httpx.AsyncClient
) -> None:
    inventory = own_api.service.inventory
    await Sweeper(inventory)._tell()
    await Reconciler(inventory, ReconcilerSettings(archive_url="memory:///")).watch()
    names = {"counter": "{}_total"}
    served = {}
    for family in await scraped(scraper):
        if family.name.startswith("holdfast_") and not family.name.endswith("_created"):
            served[names.get(family.type, "{}").format(family.name)] = family.type
    page = dict(_ROW.findall(PAGE.read_text("utf-8")))
    assert page == served


async def test_no_label_names_a_sku_a_location_or_a_merchant(
    own_shelf: Shelf, scraper: httpx.AsyncClient
) -> None:
    await own_shelf.move("receive", "a-sku-of-the-test", 1)
    text = (await scraper.get("/metrics")).text
    assert not re.search(r"a-sku-of-the-test|berlin|acme", text)
