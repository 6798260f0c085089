"""Webhooks from the ledger to real receivers on this machine, in and out of trouble."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from standardwebhooks import Webhook as Verifier

from engine.events import EventType
from engine.model import MovementType
from engine.outbox import Outbox, OutboxState
from engine.webhooks import EndpointStatus, Interest, WebhookEndpoint, Webhooks
from gateway import delivery
from gateway.signing import new_secret
from gateway.webhook_worker import READER, WebhookWorker
from tests.receivers import Received, Receiver, answer
from tests.shop import LOCATION, Shop, open_shop
from tests.stores import MakeStore, RealCluster, RealStore, eventually, set_up

WAIT_SECONDS = 30.0
SOON = (0.05,) * 10
"""Waits between attempts that a test can wait out."""


class Hooks:
    """A shop, and the webhooks of its merchant."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.webhooks = Webhooks(shop.inventory.store)

    async def endpoint(self, url: str, **interest: tuple[str, ...]) -> tuple[WebhookEndpoint, str]:
        made = await self.webhooks.create(
            self.shop.merchant,
            key=uuid4().hex,
            url=url,
            description="",
            interest=Interest(**interest),
            new_secret=new_secret,
        )
        return made.endpoint, made.secret

    def outbox(self, endpoint: WebhookEndpoint) -> Outbox:
        return Outbox(self.shop.inventory.store, endpoint.keys)

    async def until(
        self, endpoint: WebhookEndpoint, condition: Callable[[OutboxState], bool]
    ) -> OutboxState:
        """Wait until the endpoint's state is as wanted, and return it."""
        found: list[OutboxState] = []

        async def holds() -> bool:
            found.append(await self.outbox(endpoint).state())
            return condition(found[-1])

        await eventually(holds, within_seconds=WAIT_SECONDS)
        return found[-1]

    async def status(self, endpoint: WebhookEndpoint, wanted: EndpointStatus) -> WebhookEndpoint:
        async def holds() -> bool:
            return (await self.webhooks.read(endpoint.merchant, endpoint.id)).status is wanted

        await eventually(holds, within_seconds=WAIT_SECONDS)
        return await self.webhooks.read(endpoint.merchant, endpoint.id)


@asynccontextmanager
async def working(
    shop: Shop, schedule_seconds: Sequence[float] = SOON
) -> AsyncIterator[WebhookWorker]:
    """Run a worker for the time of a block, from when it follows the ledger."""
    stop = asyncio.Event()
    worker = WebhookWorker(shop.inventory, loopback=True, schedule_seconds=schedule_seconds)
    task = asyncio.create_task(worker.run(stop))

    async def follows() -> bool:
        noted = await shop.inventory.store.read(
            [("HGET", keys.readers, READER) for keys in shop.inventory.keys]
        )
        return all(noted)

    try:
        await eventually(follows, within_seconds=WAIT_SECONDS)
        yield worker
    finally:
        stop.set()
        await asyncio.wait_for(task, WAIT_SECONDS)


@pytest.fixture
async def hooks(make_store: MakeStore) -> AsyncIterator[Hooks]:
    """A shop on a store of its own with two partitions."""
    store = make_store()
    await store.start()
    await set_up(store.settings, partitions=2)
    async with open_shop(store.settings) as shop:
        yield Hooks(shop)


def versions(received: Sequence[Received], sku: str) -> list[int]:
    """Return the versions of a row's `stock.changed` in the order in which they came."""
    return [
        one.event["data"]["version"]
        for one in received
        if one.event["type"] == "stock.changed" and one.event["subject"] == sku
    ]


async def test_events_are_signed_filtered_and_sent_in_order_on_each_kind_of_store(
    own_shop: Shop,
) -> None:
    hooks = Hooks(own_shop)
    async with Receiver() as everything, Receiver() as some, working(own_shop):
        first, secret = await hooks.endpoint(everything.url)
        await hooks.endpoint(
            some.url, types=("stock.out", "reservation.held"), locations=(LOCATION,), skus=("mug",)
        )
        await own_shop.receive("tea", 5)
        await own_shop.receive("mug", 2)
        await own_shop.receive("mug", 2, location="elsewhere")
        await own_shop.reserve([("tea", 1)])
        held = await own_shop.reserve([("mug", 2)])
        await own_shop.commit(held.reservation.id)
        await everything.until(13)
        await some.until(2)
        state = await hooks.until(first, lambda it: it.waiting == 0)
        assert (state.failures, state.dead, state.dropped) == (0, 0, 0)
        assert state.delivered_at_ms > 0

        # Two signatures while the secret is being rotated, then one.
        rotated = await hooks.webhooks.rotate(
            own_shop.merchant, first.id, key="r1", overlap_ms=60_000, new_secret=new_secret
        )
        await own_shop.receive("jug", 1)
        await everything.until(15)
        assert (await hooks.webhooks.revision()) == 3
    assert versions(everything.received, "tea") == [1, 2]
    assert versions(everything.received, "mug") == [1, 1, 2, 3]
    assert Counter(one.id for one in everything.received).most_common(1)[0][1] == 1
    for one in everything.received[:13]:
        event = Verifier(secret).verify(one.body, one.headers)
        assert event["id"] == one.id
        assert event["type"] in set(EventType)
        assert one.headers["content-type"] == "application/json"
    for one in everything.received[13:]:
        for known in (secret, rotated.secret):
            Verifier(known).verify(one.body, one.headers)
    assert sorted(one.event["type"] for one in some.received) == ["reservation.held", "stock.out"]


async def test_complaint_14_events_come_in_order_and_twice_only_under_one_id(hooks: Hooks) -> None:
    """A failing event holds back its row, and no other row."""
    failed: list[int] = []

    async def answering(one: Received) -> bytes:
        # Of tea, each event fails twice before it is taken.
        if (
            one.event["subject"] == "tea"
            and versions(receiver.received, "tea").count(one.event["data"]["version"]) <= 2
        ):
            failed.append(one.event["data"]["version"])
            return answer(500)
        return answer(200, body=b"thanks")

    async with Receiver() as receiver, working(hooks.shop):
        receiver.answering = answering
        endpoint, _ = await hooks.endpoint(receiver.url, types=("stock.changed",))
        for _ in range(3):
            await hooks.shop.receive("tea", 1)
            for number in range(10):
                await hooks.shop.receive(f"mug-{number}", 1)
        await receiver.until(39)
        await hooks.until(endpoint, lambda it: it.waiting == 0)
    assert failed == [1, 1, 2, 2, 3, 3]
    assert versions(receiver.received, "tea") == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    for number in range(10):
        assert versions(receiver.received, f"mug-{number}") == [1, 2, 3]
    ids = [one.id for one in receiver.received if one.event["subject"] == "tea"]
    assert sorted(Counter(ids).values()) == [3, 3, 3]
    log = await hooks.outbox(endpoint).log(before=None, limit=500)
    assert Counter(one.outcome for _, one in log) == {"delivered": 33, "refused": 6}
    assert {one.status for _, one in log} == {200, 500}


async def test_what_is_refused_to_the_last_is_given_up_and_can_be_replayed(hooks: Hooks) -> None:
    refusing = True

    async def answering(one: Received) -> bytes:
        bad = refusing and one.event["subject"] == "tea" and one.event["data"]["version"] == 1
        return answer(400 if bad else 204)

    async with Receiver() as receiver, working(hooks.shop, schedule_seconds=(0.01, 0.01)):
        receiver.answering = answering
        endpoint, _ = await hooks.endpoint(receiver.url, types=("stock.changed",))
        await hooks.shop.receive("tea", 1)
        await hooks.shop.receive("tea", 1)
        await receiver.until(4)
        state = await hooks.until(endpoint, lambda it: it.waiting == 0)
        assert (state.dead, state.dead_dropped) == (1, 0)
        # Three attempts; what comes after is no longer held back.
        assert versions(receiver.received, "tea") == [1, 1, 1, 2]
        (dead,) = await hooks.outbox(endpoint).dead(after=None, limit=10)
        assert (dead.attempts, dead.reason, dead.type) == (3, "refused", "stock.changed")
        assert dead.id == receiver.received[0].id
        refusing = False
        assert await hooks.outbox(endpoint).replay([dead.place, "1-1"]) == 1
        await receiver.until(5)
        await hooks.until(endpoint, lambda it: it.waiting == 0 and it.dead == 0)
    assert receiver.received[-1].body == dead.body
    assert await hooks.outbox(endpoint).replay([dead.place]) == 0


async def test_an_endpoint_that_is_down_is_paused_and_gets_everything_in_the_end(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "PAUSE_AFTER_MS", 0)
    monkeypatch.setattr(delivery, "PAUSE_AFTER_FAILURES", 4)
    monkeypatch.setattr(delivery, "MAX_PROBE_SECONDS", 0.05)
    async with Receiver(status=503) as receiver, working(hooks.shop):
        endpoint, _ = await hooks.endpoint(receiver.url, types=("stock.changed",))
        for number in range(20):
            await hooks.shop.receive(f"sku-{number}", 1)
        paused = await hooks.status(endpoint, EndpointStatus.PAUSED)
        assert paused.reason == "failing"
        count = len(receiver.received)
        # A few were under way at once before it was seen to be down; then it was one at a time.
        assert count <= delivery.MAX_AT_ONCE + 4
        await hooks.shop.receive("sku-0", 1)
        state = await hooks.until(endpoint, lambda it: it.waiting == 21)
        assert state.dead == 0
        receiver.status = 204
        await hooks.webhooks.change(endpoint.merchant, endpoint.id, status=EndpointStatus.ACTIVE)
        await hooks.until(endpoint, lambda it: it.waiting == 0)
        got = receiver.received[count:]
    assert len({one.id for one in got}) == 21
    assert versions(got, "sku-0") == [1, 2]


async def test_after_an_outage_everything_is_sent_at_once_and_not_when_it_would_be_due(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "MAX_PROBE_SECONDS", 0.05)
    monkeypatch.setattr(delivery, "HASTEN_AFTER_MS", 0)
    async with Receiver(status=500) as receiver, working(hooks.shop, (3_600.0,)):
        endpoint, _ = await hooks.endpoint(receiver.url, types=("stock.changed",))
        for number in range(3):
            await hooks.shop.receive(f"sku-{number}", 1)
        await hooks.until(endpoint, lambda it: it.failures == 3)
        receiver.status = 200
        await hooks.shop.receive("sku-9", 1)
        await hooks.until(endpoint, lambda it: it.delivered_at_ms > 0 and it.waiting == 0)


async def test_an_event_that_waits_for_its_next_attempt_holds_back_no_other_row(
    hooks: Hooks,
) -> None:
    async with Receiver(status=500) as receiver, working(hooks.shop, (3_600.0,)):
        endpoint, _ = await hooks.endpoint(receiver.url, types=("stock.changed",))
        await hooks.shop.receive("tea", 1)
        await hooks.until(endpoint, lambda it: it.failures == 1)
        # Long enough for the worker to see that nothing more is due, and to leave it alone.
        await asyncio.sleep(2 * delivery.SCAN_SECONDS)
        receiver.status = 200
        await hooks.shop.receive("mug", 1)
        await hooks.until(endpoint, lambda it: it.delivered_at_ms > 0 and it.waiting == 1)


async def test_an_endpoint_that_is_gone_is_disabled_and_told_what_it_missed(hooks: Hooks) -> None:
    async with Receiver(status=410) as receiver, working(hooks.shop):
        endpoint, _ = await hooks.endpoint(receiver.url, types=("stock.changed",))
        await hooks.shop.receive("tea", 1)
        disabled = await hooks.status(endpoint, EndpointStatus.DISABLED)
        assert disabled.reason == "gone"
        waiting = (await hooks.outbox(endpoint).state()).waiting
        await hooks.shop.receive("tea", 1)
        # Nothing is collected for it; another endpoint shows that the event went by.
        async with Receiver() as other:
            await hooks.endpoint(other.url, types=("stock.changed",))
            await hooks.shop.receive("mug", 1)
            await other.until(1)
        assert (await hooks.outbox(endpoint).state()).waiting == waiting == 1
        assert len(receiver.received) == 1


async def test_one_that_hangs_delays_no_other(hooks: Hooks) -> None:
    release = asyncio.Event()

    async def hang(_: Received) -> bytes:
        await release.wait()
        return answer(204)

    async with Receiver() as hanging, Receiver() as sound, working(hooks.shop):
        hanging.answering = hang
        for _ in range(3):
            await hooks.endpoint(hanging.url)
        await hooks.endpoint(sound.url, types=("stock.changed",))
        for number in range(20):
            await hooks.shop.receive(f"sku-{number}", 1)
        await sound.until(20)
        # Each has what is allowed under way, and no more.
        await hanging.until(3 * delivery.MAX_AT_ONCE)
        assert hanging.most_under_way == 3 * delivery.MAX_AT_ONCE
        release.set()


async def test_a_redirect_and_a_private_address_are_failures(hooks: Hooks) -> None:
    async with Receiver() as inside, Receiver() as receiver, working(hooks.shop, (0.01,)):

        async def redirect(_: Received) -> bytes:
            return answer(302, f"Location: {inside.url}\r\n")

        receiver.answering = redirect
        redirected, _ = await hooks.endpoint(receiver.url, types=("stock.changed",))
        private, _ = await hooks.endpoint("https://10.0.0.1/", types=("stock.changed",))
        await hooks.shop.receive("tea", 1)
        for endpoint, outcome in ((redirected, "refused"), (private, "forbidden_address")):
            await hooks.until(endpoint, lambda it: it.dead == 1)
            log = await hooks.outbox(endpoint).log(before=None, limit=10)
            assert [one.outcome for _, one in log] == [outcome] * 2
        assert inside.received == []


async def test_two_workers_share_the_work_and_send_nothing_twice(hooks: Hooks) -> None:
    settings = hooks.shop.inventory.store.settings
    async with (
        open_shop(settings, hooks.shop.merchant) as other,
        Receiver() as receiver,
        working(hooks.shop),
        working(other),
    ):
        endpoints = [(await hooks.endpoint(receiver.url))[0] for _ in range(4)]
        await asyncio.gather(
            *(hooks.shop.receive(f"sku-{n % 7}", 1, location=f"l{n % 3}") for n in range(60))
        )
        await receiver.until(4 * 60)
        for endpoint in endpoints:
            await hooks.until(endpoint, lambda it: it.waiting == 0)
    counts = Counter((one.id, one.headers["webhook-signature"]) for one in receiver.received)
    assert set(Counter(one.id for one in receiver.received).values()) == {4}
    assert set(counts.values()) == {1}


async def test_what_does_not_fit_is_counted_and_told(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.outbox.MAX_WAITING", 5)
    async with Receiver() as receiver, working(hooks.shop):
        endpoint, _ = await hooks.endpoint(receiver.url, types=("stock.changed",))
        await hooks.webhooks.change(endpoint.merchant, endpoint.id, status=EndpointStatus.PAUSED)
        for _ in range(9):
            await hooks.shop.receive("tea", 1)
        await hooks.until(endpoint, lambda it: it.dropped == 4)
        await hooks.webhooks.change(endpoint.merchant, endpoint.id, status=EndpointStatus.ACTIVE)
        await hooks.until(endpoint, lambda it: it.waiting == 0 and it.dropped == 0)
        await receiver.until(6)
        gap = receiver.received[-1].event
        assert versions(receiver.received, "tea") == [1, 2, 3, 4, 5]
        assert gap["type"] == "webhook.gap"
        assert (gap["data"]["reason"], gap["data"]["dropped"]) == ("backlog", 4)
        assert gap["data"]["from"] <= gap["data"]["until"]
        await hooks.shop.receive("tea", 1)
        await receiver.until(7)
        assert versions(receiver.received, "tea")[-1] == 10


async def test_after_a_failover_a_gap_is_told_and_what_is_told_anew_is_sent(
    own_store: RealStore, own_shop: Shop
) -> None:
    hooks = Hooks(own_shop)
    (keys,) = own_shop.inventory.keys
    async with Receiver() as receiver, working(own_shop):
        endpoint, _ = await hooks.endpoint(receiver.url, types=("stock.changed",))
        for _ in range(3):
            await own_shop.receive("tea", 1)
        await receiver.until(3)
        # As after a failover that lost the last two: their sequences go to others now.
        await own_store.run("HSET", keys.meta, "sequence", 1)
        await own_shop.move(MovementType.RECEIVE, "mug", 1)
        await receiver.until(5)
        await hooks.until(endpoint, lambda it: it.waiting == 0)
    told: list[Any] = [one.event for one in receiver.received[3:]]
    assert [one["type"] for one in told] == ["webhook.gap", "stock.changed"]
    assert told[0]["data"]["reason"] == "ledger"
    assert told[1]["subject"] == "mug"


async def test_a_deleted_endpoint_leaves_nothing_behind(hooks: Hooks) -> None:
    async with Receiver(status=500) as receiver, working(hooks.shop, (3_600.0,)):
        endpoint, _ = await hooks.endpoint(receiver.url)
        await hooks.shop.receive("tea", 1)
        await hooks.until(endpoint, lambda it: it.failures > 0)
        await hooks.webhooks.delete(endpoint.merchant, endpoint.id)
        await hooks.shop.receive("tea", 1)
    left = [
        key for key in endpoint.keys.all() if await hooks.shop.client.execute_command("EXISTS", key)
    ]
    assert left == []
    assert await hooks.webhooks.all() == []


@pytest.mark.cluster
async def test_a_cluster_keeps_each_endpoint_in_a_slot_of_its_own(cluster: RealCluster) -> None:
    async with open_shop(cluster.settings) as shop, Receiver() as receiver, working(shop):
        hooks = Hooks(shop)
        endpoints = [
            (await hooks.endpoint(receiver.url, types=("stock.changed",)))[0] for _ in range(3)
        ]
        for number in range(8):
            await shop.receive("tea", 1, location=f"l{number}")
        await receiver.until(24)
        for endpoint in endpoints:
            await hooks.until(endpoint, lambda it: it.waiting == 0)
            await hooks.webhooks.delete(shop.merchant, endpoint.id)
    assert set(Counter(one.id for one in receiver.received).values()) == {3}
