"""A trace from the request to the ledger, the events and the webhooks; and what the log tells."""

import io
import json
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from urllib.parse import quote

import pytest
import structlog

from engine.access import Role
from engine.model import Line
from engine.trace_context import with_trace
from gateway import logs
from gateway.app import create_app
from gateway.logs import AccessLog
from reconciler.audit import Audit
from tests.gateways import Api, Shelf
from tests.integration.test_webhooks import Hooks, working
from tests.receivers import Receiver
from tests.shop import LOCATION, open_shop
from tests.stores import MakeStore, RealStore, set_up

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACED = {"traceparent": TRACE}
OTHER_VERSION = {"traceparent": "cc" + TRACE[2:] + "-and-more"}
BROKEN = {"traceparent": TRACE.upper()}


@pytest.fixture
async def own_store(make_store: MakeStore) -> RealStore:
    own = make_store()
    await own.start()
    await set_up(own.settings, partitions=1)
    return own


@pytest.fixture
async def own_api(own_store: RealStore) -> AsyncIterator[Api]:
    async with Api(own_store.settings, "acme") as made:
        yield made


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """All that is logged, every request included, as JSON."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure(level="debug", log_format="json")
    yield stream
    structlog.reset_defaults()
    root.handlers, root.level = before[0], before[1]


async def test_a_trace_is_carried_from_the_request_to_the_webhook(
    own_store: RealStore, own_api: Api
) -> None:
    client = await own_api.client()
    shelf = Shelf(client, "acme")
    async with (
        open_shop(own_store.settings, "acme") as shop,
        Receiver() as receiver,
        working(shop),
    ):
        await Hooks(shop).endpoint(receiver.url)
        movement = {"type": "receive", "sku": "tea", "quantity": 5}
        for number, headers in enumerate((TRACED, BROKEN, {})):
            made = await client.post(
                f"{shelf.path}/movements",
                json=movement,
                headers={"Idempotency-Key": f"move {number}", **headers},
            )
            assert made.status_code == 201, made.text
        held = await client.post(
            f"{shelf.path}/reservations",
            json={"lines": [{"sku": "tea", "quantity": 1}]},
            headers={"Idempotency-Key": "cart", **OTHER_VERSION},
        )
        # A retry without the trace is a retry all the same, and changes nothing.
        again = await client.post(
            f"{shelf.path}/reservations",
            json={"lines": [{"sku": "tea", "quantity": 1}]},
            headers={"Idempotency-Key": "cart"},
        )
        assert (again.json(), again.headers["idempotent-replayed"]) == (held.json(), "true")
        await shelf.end("confirm", held.json()["id"])
        # Three receipts and the hold tell of the row, `stock.back` came with the first; then the
        # reservation's own two.
        received = await receiver.until(7)
        await shop.audit()
        assert list((await Audit(shop.inventory, None).run()).findings) == []
    told = [(one.event["type"], one.event.get("traceparent")) for one in received]
    assert [one.headers.get("traceparent") for one in received] == [trace for _, trace in told]
    assert sorted(told, key=str) == sorted(
        [
            ("stock.changed", TRACE),
            ("stock.back", TRACE),
            ("stock.changed", None),
            ("stock.changed", None),
            ("stock.changed", TRACE),
            ("reservation.held", TRACE),
            ("reservation.confirmed", None),
        ],
        key=str,
    )

    key = (await own_api.secret(Role.ADMIN, "acme"))[4:12]
    page = await client.get(
        f"{shelf.merchant_path}/ledger", params={"actor": f"key:{key}", "order": "oldest"}
    )
    entries = page.json()["data"]
    assert {entry["actor"] for entry in entries} == {f"key:{key}"}
    assert [entry.get("traceparent") for entry in entries] == [TRACE, None, None, TRACE, None]


async def test_a_reservation_names_who_made_it_and_not_the_trace(own_store: RealStore) -> None:
    async with open_shop(own_store.settings, "acme") as shop:
        await shop.receive("tea", 1)
        actors = []
        for _ in range(2):
            made = await shop.inventory.reserve(
                "acme", LOCATION, [Line("tea", 1)], key="cart", actor=with_trace("Jo Bloggs", TRACE)
            )
            actors.append(made.reservation.actor)
        read = await shop.inventory.reservation("acme", made.reservation.id)
    assert [*actors, read.actor] == ["Jo Bloggs"] * 3


async def test_the_log_names_who_asked_what_and_no_secret(
    own_api: Api, logged: io.StringIO
) -> None:
    own_api.app = create_app(own_api.service, access_log=AccessLog(sample_every=1))
    client = await own_api.client()
    secret = await own_api.secret(Role.ADMIN, "acme")
    shelf = Shelf(client, "acme")
    await shelf.move("receive", "tea", 1)
    await client.get(f"{shelf.path}/stock/tea", params={"at": secret}, headers=TRACED)
    await shelf.reserve(("tea", 9))
    await client.get(f"/v1/merchants/other/locations/berlin/stock/{secret}")
    await own_api.client_of(secret + "x").get(f"{shelf.path}/stock")
    made = await client.post(
        f"{shelf.merchant_path}/webhooks",
        json={"url": "https://hooks.invalid/?token=a-token-of-theirs"},
        headers=shelf.key(),
    )
    webhook_secret = made.json()["secret"]
    await client.get(f"{shelf.merchant_path}/webhooks/{quote(webhook_secret, safe='')}")

    text = logged.getvalue()
    # As it stood in the path.
    told = quote(webhook_secret.removeprefix("whsec_"), safe="")
    for hidden in (secret[13:], webhook_secret[6:], told, "a-token-of-theirs"):
        assert hidden not in text
    actor = f"key:{secret[4:12]}"
    requests = [json.loads(line) for line in text.splitlines()]
    lines = [line for line in requests if line["event"] == "request"]
    assert [
        (line["operation"], line["status"], line["merchant"], line["actor"], line["code"])
        for line in lines
    ] == [
        ("move", 201, "acme", actor, ""),
        ("readStock", 400, "acme", actor, "invalid_request"),
        ("reserve", 409, "acme", actor, "insufficient_stock"),
        ("readStock", 404, "", actor, "not_found"),
        ("listStock", 401, "", "", "unauthenticated"),
        ("createWebhook", 201, "acme", actor, ""),
        ("readWebhook", 404, "acme", actor, "webhook_not_found"),
    ]
    assert [line.get("traceparent") for line in lines] == [None, TRACE, *[None] * 5]
