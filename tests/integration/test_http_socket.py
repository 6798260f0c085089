"""The socket of a real gateway: what the stream tells, asked for and acknowledged."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from engine.access import Role
from gateway.websocket import MAX_ERRORS, MAX_MESSAGE_BYTES, MAX_SUBSCRIPTIONS
from tests.gateways import GatewayProcess, Shelf
from tests.integration.test_http_stream import gateway_of, key
from tests.stores import RealStore, eventually

WAIT_SECONDS: Final = 20.0
JSON: Final = "holdfast.v1.json"
MSGPACK: Final = "holdfast.v1.msgpack"


class Talk:
    """One socket, as a client uses it."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.messages: list[dict[str, Any]] = []

    async def say(self, **message: Any) -> None:
        packed: str | bytes = json.dumps(message)
        if self.connection.subprotocol == MSGPACK:
            packed = msgspec.msgpack.encode(message)
        await self.connection.send(packed)

    async def until(self, condition: Callable[["Talk"], bool]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition(self):
                await self.hear()

    async def hear(self) -> dict[str, Any]:
        packed = await self.connection.recv()
        if self.connection.subprotocol == MSGPACK:
            assert isinstance(packed, bytes)
            message = msgspec.msgpack.decode(packed)
        else:
            assert isinstance(packed, str)
            message = json.loads(packed)
        self.messages.append(message)
        return dict(message)

    def of(self, kind: str, name: str | None = None) -> list[dict[str, Any]]:
        return [m for m in self.messages if m["type"] == kind and name in (None, m.get("id"))]

    def versions(self, name: str) -> list[int]:
        return [m["event"]["data"]["version"] for m in self.of("event", name)]


@asynccontextmanager
async def talking(
    gateway: GatewayProcess,
    secret: str | None,
    merchant: str,
    *,
    form: str | None = JSON,
    **extra: Any,
) -> AsyncIterator[Talk]:
    url = gateway.url.replace("http", "ws") + f"/v1/merchants/{merchant}/ws"
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
    async with connect(
        url,
        additional_headers=headers,
        subprotocols=None if form is None else [Subprotocol(form)],
        **extra,
    ) as connection:
        yield Talk(connection)


@pytest.fixture
async def gateway(store: RealStore) -> AsyncIterator[GatewayProcess]:
    async with gateway_of(store.settings) as process:
        yield process


@pytest.fixture
async def secret(store: RealStore, merchant: str) -> str:
    return await key(store.settings, merchant)


@pytest.fixture
async def shelf(gateway: GatewayProcess, secret: str, merchant: str) -> AsyncIterator[Shelf]:
    async with gateway.client(secret) as client:
        yield Shelf(client, merchant)


@pytest.mark.parametrize("form", [JSON, MSGPACK])
async def test_a_subscription_from_its_snapshot_to_its_end_and_again_from_where_it_was(
    gateway: GatewayProcess, shelf: Shelf, secret: str, merchant: str, form: str
) -> None:
    await shelf.move("receive", "tea", 5)
    async with talking(gateway, secret, merchant, form=form) as talk:
        assert talk.connection.subprotocol == form
        await talk.say(type="subscribe", id="a", skus=["tea"], types=["stock.changed"])
        await talk.say(type="subscribe", id="b", types=["stock.out"])
        await talk.until(lambda t: len(t.of("ready")) == 2)
        assert [m["type"] for m in talk.messages if m["id"] == "a"] == [
            "subscribed",
            "reset",
            "snapshot",
            "ready",
        ]
        assert talk.of("snapshot", "a")[0]["rows"][0]["version"] == 1
        await shelf.move("sale", "tea", 2)
        await shelf.move("sale", "tea", 3)
        await talk.until(lambda t: t.of("event", "b") != [] and len(t.of("event", "a")) == 2)
        assert [m["number"] for m in talk.of("event", "a")] == [1, 2]
        assert talk.versions("a") == [2, 3]
        assert [m["event"]["type"] for m in talk.of("event", "b")] == ["stock.out"]
        await talk.say(type="unsubscribe", id="a")
        await talk.until(lambda t: t.of("unsubscribed") != [])
        await shelf.move("receive", "tea", 1)
        await talk.say(type="ping", text="x")
        await talk.until(lambda t: t.of("pong") != [])
        assert talk.versions("a") == [2, 3]
        position = talk.of("event", "a")[0]["position"]
    async with talking(gateway, secret, merchant, form=form) as talk:
        await talk.say(
            type="subscribe", id="a", skus=["tea"], types=["stock.changed"], last_event_id=position
        )
        await talk.until(lambda t: len(t.of("event")) == 2)
        assert talk.of("subscribed")[0]["resumed"] is True
        assert talk.versions("a") == [3, 4]


async def test_no_more_is_sent_than_the_window_has_room_for(
    gateway: GatewayProcess, shelf: Shelf, secret: str, merchant: str
) -> None:
    async with talking(gateway, secret, merchant) as talk:
        await talk.say(type="subscribe", id="a", types=["stock.changed"], window=2)
        await talk.until(lambda t: t.of("ready") != [])
        for _ in range(5):
            await shelf.move("receive", "tea", 1)
        await talk.until(lambda t: len(t.of("event")) == 2)
        # A pong comes after whatever was to be sent before it.
        await talk.say(type="ping")
        await talk.until(lambda t: t.of("pong") != [])
        assert talk.versions("a") == [1, 2]
        await talk.say(type="ack", id="a", number=1)
        await talk.until(lambda t: len(t.of("event")) == 3)
        await talk.say(type="ack", id="a", number=3)
        await talk.until(lambda t: len(t.of("event")) == 5)
        assert talk.versions("a") == [1, 2, 3, 4, 5]
        await talk.say(type="ack", id="a", number=99)
        await talk.until(lambda t: t.of("error") != [])
        assert talk.of("error")[0]["code"] == "invalid_ack"


async def test_who_may_not_listen_is_told_so_in_the_handshake(
    gateway: GatewayProcess, store: RealStore, secret: str, merchant: str
) -> None:
    stranger = await key(store.settings, f"{merchant}-other", Role.READ)
    origin = {"origin": "https://elsewhere.example"}
    for given, status, code, extra in (
        (None, 401, "unauthenticated", {}),
        ("hfk_00000000_" + "0" * 43, 401, "unauthenticated", {}),
        (stranger, 404, "not_found", {}),
        (secret, 403, "foreign_origin", origin),
    ):
        with pytest.raises(InvalidStatus) as refused:
            async with talking(gateway, given, merchant, **extra):
                pass
        response = refused.value.response
        assert (response.status_code, json.loads(response.body)["code"]) == (status, code)
    own: dict[str, Any] = {"origin": gateway.url}
    async with talking(gateway, secret, merchant, form=None, **own) as talk:
        await talk.say(type="ping", text="hello")
        assert await talk.hear() == {"type": "pong", "text": "hello"}


async def test_what_is_said_wrongly_is_refused_and_the_socket_goes_on_for_a_while(
    gateway: GatewayProcess, secret: str, merchant: str
) -> None:
    async with talking(gateway, secret, merchant) as talk:
        said: tuple[tuple[str | bytes, str], ...] = (
            ("{", "invalid_message"),
            ('{"type":"dance"}', "invalid_message"),
            ('{"type":"ping","colour":1}', "invalid_message"),
            (b"\x81", "invalid_message"),
            ("[" * 10_000, "invalid_message"),
            ('{"type":"subscribe","id":"a","types":["stock.gone"]}', "invalid_request"),
            ('{"type":"unsubscribe","id":"a"}', "unknown_subscription"),
            ('{"type":"ack","id":"a","number":1}', "unknown_subscription"),
        )
        for text, code in said:
            await talk.connection.send(text)
            assert (await talk.hear())["code"] == code, text
        await talk.say(type="subscribe", id="a", types=["stock.out"])
        await talk.until(lambda t: t.of("ready") != [])
        await talk.say(type="subscribe", id="a")
        assert (await talk.hear())["code"] == "id_in_use"
        for number in range(MAX_SUBSCRIPTIONS):
            await talk.say(type="subscribe", id=f"s{number}", types=["stock.out"])
        await talk.until(lambda t: t.messages[-1].get("code") == "limit_exceeded")
        for _ in range(MAX_ERRORS):
            await talk.connection.send("{")
        with pytest.raises(ConnectionClosed) as closed:
            await talk.until(lambda _: False)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
    async with talking(gateway, secret, merchant) as talk:
        await talk.connection.send(" " * (MAX_MESSAGE_BYTES + 1))
        with pytest.raises(ConnectionClosed) as closed:
            await talk.hear()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


async def test_open_sockets_do_not_keep_a_gateway_from_ending(
    gateway: GatewayProcess, secret: str, merchant: str
) -> None:
    async with talking(gateway, secret, merchant) as talk:
        await talk.say(type="subscribe", id="a")
        await talk.until(lambda t: t.of("ready") != [])
        async with asyncio.timeout(5):
            code, _ = await gateway.stop()
        assert code == 0
        with pytest.raises(ConnectionClosed) as closed:
            await talk.until(lambda _: False)
        assert talk.of("closed") == [{"type": "closed", "id": "a", "reason": "shutting_down"}]
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012


async def test_the_access_log_says_of_each_socket_who_opened_it_and_why_it_ended(
    gateway: GatewayProcess, secret: str, merchant: str
) -> None:
    with pytest.raises(InvalidStatus):
        async with talking(gateway, None, merchant):
            pass
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    given = {"Request-Id": "by-me", "traceparent": trace, "Authorization": f"Bearer {secret}"}
    url = gateway.url.replace("http", "ws") + f"/v1/merchants/{merchant}/ws"
    async with connect(url, additional_headers=given) as connection:
        answered = Talk(connection)
        await answered.say(type="ping")
        # To close while the answer is sent may look like a connection that broke.
        await answered.until(lambda talk: talk.of("pong") != [])
    async with talking(gateway, secret, merchant) as talk:
        for _ in range(MAX_ERRORS + 1):
            await talk.connection.send("{")
        with pytest.raises(ConnectionClosed):
            await talk.until(lambda _: False)
    async with talking(gateway, secret, merchant) as talk:
        await talk.say(type="subscribe", id="a", types=["stock.out"])
        await talk.until(lambda t: t.of("ready") != [])
        _, lines = await gateway.stop()
    path = f"/v1/merchants/{merchant}/ws"
    logged = [one for one in map(json.loads, lines) if one.get("path") == path]
    opened = [one for one in logged if one["event"] == "socket opened"]
    ends = {one["request_id"]: one for one in logged if one["event"] == "socket closed"}
    # The end of one may be seen after the next was opened.
    closed = [ends[one["request_id"]] for one in opened]
    assert len(opened) == len(ends) == 3
    assert [(one["close_code"], one["code"]) for one in closed] == [
        (1000, ""),
        (1008, "too_many_errors"),
        (1012, "shutting_down"),
    ]
    actor = f"key:{secret.split('_')[1]}"
    assert {(one["merchant"], one["actor"]) for one in opened + closed} == {(merchant, actor)}
    assert (opened[0]["request_id"], closed[0]["traceparent"]) == ("by-me", trace)
    assert all(one["duration_ms"] > 0 for one in closed)
    assert secret not in "".join(lines)


async def test_handshakes_are_counted_with_their_outcome(
    gateway: GatewayProcess, store: RealStore, secret: str, merchant: str
) -> None:
    async with talking(gateway, secret, merchant):
        pass
    with pytest.raises(InvalidStatus):
        async with talking(gateway, None, merchant):
            pass
    platform = await key(store.settings, None)
    async with gateway.client(platform) as client:

        async def are_counted() -> bool:
            text = (await client.get("/metrics")).text
            name = "holdfast_http_requests_total"
            return all(
                f'{name}{{code="{code}",operation="socket",status="{status}"}} 1.0' in text
                for code, status in (("", 101), ("unauthenticated", 401))
            )

        await eventually(are_counted, within_seconds=WAIT_SECONDS)


async def test_a_plain_request_finds_no_socket(shelf: Shelf, merchant: str) -> None:
    answer: httpx.Response = await shelf.client.get(f"/v1/merchants/{merchant}/ws")
    assert answer.status_code == 404
