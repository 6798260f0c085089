"""Silent tills: what is held back, by which policy, and until when."""

import pytest

from engine.feeds import EventType, FeedEvent, SourceState
from engine.model import MovementType
from engine.offline import FreshnessView, OfflineKeeper
from engine.outcomes import InsufficientStock
from engine.policies import PolicyPart, WhenOffline
from tests.events import Till
from tests.gateways import Api, Shelf
from tests.shop import LOCATION, Shop

HOUR_MS = 3_600_000


class Store:
    """A shop with a till that beats, and a keeper whose clock the test sets."""

    def __init__(self, shop: Shop) -> None:
        """Nothing runs by itself: a test does each round."""
        self.shop = shop
        self.till = Till(shop)
        self.keeper = OfflineKeeper(shop.inventory, self.till.feeds)
        self.beats = 0

    async def beat(self) -> None:
        """Send a heartbeat."""
        event = FeedEvent(
            event_id="beat", type=EventType.HEARTBEAT, occurred_at_ms=await self.till.now_ms()
        )
        assert await self.till.send(event) == ["applied"]

    async def sell(self, units: int) -> None:
        """Stock the shelf, and sell some over the last hours."""
        await self.shop.receive("tea", 100 + units)
        await self.shop.receive("salt", 5)
        for number in range(units):
            event = await self.till.event("sale", 1, event_id=f"s{number}", sequence=number + 1)
            assert await self.till.send(event) == ["applied"]
        await self.beat()

    async def after(self, hours: float) -> int:
        """Do a round as if it were so much later."""
        return await self.keeper.round(now_ms=await self.till.now_ms() + int(hours * HOUR_MS))

    async def state(self) -> SourceState:
        """Return how the location is."""
        view = FreshnessView(self.shop.inventory)
        return (await view.of(self.shop.merchant, [LOCATION]))[LOCATION].state


@pytest.fixture
def it(own_shop: Shop) -> Store:
    return Store(own_shop)


async def test_what_the_tills_have_probably_sold_is_held_back(it: Store) -> None:
    await it.sell(40)
    assert await it.after(0) == 0
    assert await it.state() is SourceState.LIVE
    held = []
    for hours in (1, 3):
        assert await it.after(hours) == 1
        row = await it.shop.row("tea")
        assert row.available == 100 - row.offline_buffer
        assert row.safety_stock == 0
        held.append(row.offline_buffer)
    assert 0 < held[0] < held[1]
    assert await it.state() is SourceState.DEGRADED
    with pytest.raises(InsufficientStock) as refused:
        await it.shop.reserve([("tea", 100)])
    assert refused.value.lines[0].available == 100 - held[1]
    version = (await it.shop.row("tea")).version
    assert await it.after(3) == 0
    assert (await it.shop.row("tea")).version == version
    await it.shop.reserve([("tea", 100 - held[1])])
    await it.shop.audit()


async def test_on_reconnect_it_is_catching_up_until_the_sequence_is_whole(it: Store) -> None:
    await it.sell(40)
    await it.after(1)
    backlog = [
        await it.till.event("sale", 1, event_id=f"b{number}", sequence=41 + number)
        for number in range(5)
    ]
    await it.till.send(*backlog[2:])
    await it.after(0)
    assert await it.state() is SourceState.CATCHING_UP
    await it.till.send(*backlog[:2])
    await it.after(0)
    assert await it.state() is SourceState.LIVE
    row = await it.shop.row("tea")
    assert (row.offline_buffer, row.on_hand, row.available) == (0, 95, 95)
    key = it.shop.keys().offline(it.shop.merchant, LOCATION)
    assert await it.shop.client.execute_command("EXISTS", key) == 0
    await it.shop.audit()


@pytest.mark.parametrize(
    ("policy", "available"), [(WhenOffline.FREEZE, 0), (WhenOffline.TRUST, 100)]
)
async def test_a_merchant_may_freeze_or_trust(
    it: Store, policy: WhenOffline, available: int
) -> None:
    await it.sell(40)
    await it.till.feeds.policies.write(it.shop.merchant, PolicyPart(when_offline=policy))
    await it.after(1)
    assert (await it.shop.row("tea")).available == available
    assert await it.state() is SourceState.DEGRADED
    await it.beat()
    await it.after(0)
    assert (await it.shop.row("tea")).available == 100


async def test_a_supplier_that_never_beats_may_be_silent(it: Store) -> None:
    await it.shop.receive("tea", 5)
    await Till(it.shop, "supplier").tell("receipt", 5, ago=-0.5)
    assert await it.after(100) == 0
    assert await it.state() is SourceState.LIVE


async def test_sales_over_the_api_count_for_the_rate_too(it: Store) -> None:
    await it.shop.receive("tea", 90)
    await it.shop.move(MovementType.SALE, "tea", 40)
    await it.beat()
    await it.after(2)
    assert (await it.shop.row("tea")).offline_buffer > 0


async def test_availability_says_how_fresh_it_is(api: Api, shelf: Shelf) -> None:
    await shelf.move("receive", "tea", 50)
    await shelf.move("sale", "tea", 40)
    feeds = api.service.feeds
    beat = FeedEvent(event_id="b", type=EventType.HEARTBEAT, occurred_at_ms=1)
    await feeds.take(api.merchant, "berlin", "till", [beat], actor="test")
    (source,) = await feeds.sources(api.merchant, "berlin")
    now_ms = source.heard_at_ms + HOUR_MS
    keeper = OfflineKeeper(api.service.inventory, feeds)
    await keeper.round(now_ms=now_ms)
    rows = {"rows": [{"location": "berlin", "sku": "tea"}, {"location": "munich", "sku": "tea"}]}
    answer = (await shelf.client.post(f"{shelf.merchant_path}/availability", json=rows)).json()
    berlin, munich = answer["data"]
    assert (berlin["freshness"], munich["freshness"]) == ("degraded", "live")
    assert berlin["offline_buffer"] > 0
    assert berlin["available"] == max(0, 10 - berlin["offline_buffer"])
    stock = (await shelf.client.get(f"{shelf.path}/stock/tea")).json()
    assert stock["offline_buffer"] == berlin["offline_buffer"]
    assert stock["freshness"] == "degraded"
