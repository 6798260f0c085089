import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from engine.model import MovementType, ReservationState
from holdfast import calls, client
from holdfast.calls import Line, NewMovement
from holdfast.client import (
    ApiError,
    AsyncClient,
    Client,
    RetryPolicy,
    ServiceUnreachable,
    UnexpectedAnswer,
)

URL = "http://holdfast.test:8080"
KEY = "hfk_secret"
QUICK = RetryPolicy(max_attempts=4, first_wait_seconds=0.0, max_wait_seconds=0.0)

RESERVATION = {
    "id": "rsv_3_abc",
    "merchant": "acme",
    "location": "leeds",
    "state": "held",
    "lines": [{"sku": "mug", "quantity": 2, "picked": None}],
    "missing": [],
    "order_ref": "",
    "created_at": "2026-11-23T15:38:04.123Z",
    "expires_at": "2026-11-23T15:53:04.123Z",
    "confirmed_at": None,
    "ended_at": None,
}
RELOCATED = RESERVATION | {"moved_from": {"reservation": "rsv_1_abc", "location": "york"}}
STOCK = {
    "merchant": "acme",
    "location": "leeds",
    "sku": "mug",
    "on_hand": 5,
    "reserved": 2,
    "safety_stock": 1,
    "available": 2,
    "shortfall": 0,
    "deficit": 0,
    "version": 7,
}
PROBLEM = {
    "type": "/problems/insufficient_stock",
    "title": "Insufficient stock",
    "status": 409,
    "detail": "1 line does not fit",
    "code": "insufficient_stock",
    "request_id": "req-1",
    "errors": [
        {
            "pointer": "#/lines/0",
            "detail": "too few",
            "sku": "mug",
            "requested": 9,
            "available": 2,
            "known": True,
        }
    ],
}


def answering(
    answers: list[httpx.Response | Exception], asked: list[httpx.Request] | None = None
) -> httpx.MockTransport:
    """Answer with each of `answers` in turn, and keep what was asked."""
    turn = iter(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        if asked is not None:
            asked.append(request)
        answer = next(turn)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return httpx.MockTransport(handle)


def limited(retry_after: str) -> httpx.Response:
    problem = {"code": "rate_limited", "status": 429, "title": "Rate limited"}
    return httpx.Response(429, json=problem, headers={"Retry-After": retry_after})


def unavailable(retry_after: str | None = None) -> httpx.Response:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    problem = {"code": "store_unavailable", "status": 503, "title": "Store unavailable"}
    return httpx.Response(503, json=problem, headers=headers)


def connected(
    answers: list[httpx.Response | Exception],
    asked: list[httpx.Request] | None = None,
    retry: RetryPolicy = QUICK,
) -> Client:
    return Client(URL, KEY, retry=retry, transport=answering(answers, asked))


def test_a_reservation_is_asked_for_and_decoded() -> None:
    asked: list[httpx.Request] = []
    with connected([httpx.Response(201, json=RESERVATION)], asked) as service:
        held = service.reserve("acme", "leeds", [Line("mug", 2)], key="k1", ttl_seconds=60)
    request = asked[0]
    assert request.method == "POST"
    assert request.url.raw_path == b"/v1/merchants/acme/locations/leeds/reservations"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.headers["Idempotency-Key"] == "k1"
    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(request.content) == {
        "lines": [{"sku": "mug", "quantity": 2}],
        "ttl_seconds": 60,
    }
    assert held.state is ReservationState.HELD
    assert held.lines[0].quantity == 2
    assert held.lines[0].picked is None
    assert held.expires_at is not None
    assert held.expires_at.isoformat() == "2026-11-23T15:53:04.123000+00:00"
    assert not held.replayed


def test_a_replay_is_told() -> None:
    answer = httpx.Response(201, json=RESERVATION, headers={"Idempotent-Replayed": "true"})
    with connected([answer]) as service:
        assert service.reserve("acme", "leeds", [Line("mug", 2)]).replayed


@pytest.mark.parametrize(
    ("segment", "encoded"),
    [
        ("a/b", b"a%2Fb"),
        ("..", b"%2E%2E"),
        (".", b"%2E"),
        ("50%", b"50%25"),
        ("a b?c#d", b"a%20b%3Fc%23d"),
        ("קפה", b"%D7%A7%D7%A4%D7%94"),
        ("x\r\ny\0", b"x%0D%0Ay%00"),
        ("{hf}:1", b"%7Bhf%7D%3A1"),
    ],
)
def test_an_id_reaches_the_service_as_one_segment(segment: str, encoded: bytes) -> None:
    asked: list[httpx.Request] = []
    with connected([httpx.Response(200, json=STOCK)], asked) as service:
        service.stock("acme", "leeds", segment)
    prefix = b"/v1/merchants/acme/locations/leeds/stock/"
    assert asked[0].url.raw_path == prefix + encoded


def test_every_retry_carries_the_same_idempotency_key() -> None:
    asked: list[httpx.Request] = []
    answers: list[httpx.Response | Exception] = [
        httpx.ConnectError("refused"),
        unavailable(),
        httpx.ReadTimeout("no answer"),
        httpx.Response(201, json=RESERVATION),
    ]
    with connected(answers, asked) as service:
        service.reserve("acme", "leeds", [Line("mug", 2)])
    keys = {request.headers["Idempotency-Key"] for request in asked}
    assert len(asked) == 4
    assert len(keys) == 1
    assert len({request.content for request in asked}) == 1


def test_two_calls_have_two_keys() -> None:
    asked: list[httpx.Request] = []
    answers: list[httpx.Response | Exception] = [httpx.Response(201, json=RESERVATION)] * 2
    with connected(answers, asked) as service:
        service.reserve("acme", "leeds", [Line("mug", 2)])
        service.reserve("acme", "leeds", [Line("mug", 2)])
    assert asked[0].headers["Idempotency-Key"] != asked[1].headers["Idempotency-Key"]


def test_attempts_are_bounded_and_the_refusal_is_raised() -> None:
    asked: list[httpx.Request] = []
    with connected([unavailable()] * 9, asked) as service, pytest.raises(ApiError) as raised:
        service.stock("acme", "leeds", "mug")
    assert raised.value.code == "store_unavailable"
    assert raised.value.status == 503
    assert len(asked) == QUICK.max_attempts


def test_a_service_that_is_away_is_told_with_its_address() -> None:
    faults: list[httpx.Response | Exception] = [httpx.ConnectError("refused")] * 9
    with connected(faults) as service, pytest.raises(ServiceUnreachable) as raised:
        service.stock("acme", "leeds", "mug")
    assert raised.value.url == URL
    assert raised.value.attempts == QUICK.max_attempts
    assert "refused" in str(raised.value)


def test_a_refusal_is_not_retried_and_keeps_its_fields() -> None:
    asked: list[httpx.Request] = []
    answers: list[httpx.Response | Exception] = [httpx.Response(409, json=PROBLEM)]
    with connected(answers, asked) as service, pytest.raises(ApiError) as raised:
        service.reserve("acme", "leeds", [Line("mug", 9)])
    assert len(asked) == 1
    assert raised.value.code == "insufficient_stock"
    assert raised.value.errors[0]["requested"] == 9
    assert raised.value.problem.request_id == "req-1"


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>It works!</html>"),
        httpx.Response(404, text="not here"),
        httpx.Response(200, json={"hello": "world"}),
    ],
)
def test_another_program_is_told_apart(answer: httpx.Response) -> None:
    with connected([answer]) as service, pytest.raises(UnexpectedAnswer):
        service.stock("acme", "leeds", "mug")


def test_retry_after_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("holdfast.client.time.sleep", waits.append)
    retry = RetryPolicy(max_attempts=3, first_wait_seconds=0.1, max_wait_seconds=5.0)
    answers: list[httpx.Response | Exception] = [unavailable("3"), limited("4")]
    answers.append(httpx.Response(200, json=STOCK))
    with connected(answers, retry=retry) as service:
        service.stock("acme", "leeds", "mug")
    assert waits == [3.0, 4.0]


def test_a_retry_after_beyond_the_bound_is_left_to_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("holdfast.client.time.sleep", waits.append)
    retry = RetryPolicy(max_attempts=3, max_wait_seconds=5.0)
    with connected([unavailable("60")], retry=retry) as service, pytest.raises(ApiError):
        service.stock("acme", "leeds", "mug")
    assert waits == []


def test_waits_double_within_their_jitter_and_bound() -> None:
    retry = RetryPolicy(max_attempts=6, first_wait_seconds=1.0, max_wait_seconds=5.0)
    for _ in range(100):
        waits = [retry.wait_seconds(attempt, None) for attempt in range(1, 7)]
        assert waits[5] is None
        for wait, most in zip(waits[:5], (1.0, 2.0, 4.0, 5.0, 5.0), strict=True):
            assert wait is not None
            assert most / 2 <= wait <= most


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", None), ("7", 7.0), ("soon", None), ("Mon, 01 Jan 2001 00:00:00 GMT", 0.0)],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    assert client.retry_after_seconds(text) == seconds


def test_a_listing_follows_its_cursors() -> None:
    asked: list[httpx.Request] = []
    pages: list[httpx.Response | Exception] = [
        httpx.Response(
            200, json={"data": [{**STOCK, "sku": "a"}], "has_more": True, "next_cursor": "c+/1"}
        ),
        httpx.Response(
            200, json={"data": [{**STOCK, "sku": "b"}], "has_more": False, "next_cursor": None}
        ),
    ]
    with connected(pages, asked) as service:
        assert [row.sku for row in service.all_stock("acme", "leeds", limit=1)] == ["a", "b"]
    assert dict(asked[1].url.params) == {"limit": "1", "cursor": "c+/1"}


def test_a_setting_is_conditional_on_the_version_seen() -> None:
    asked: list[httpx.Request] = []
    with connected([httpx.Response(200, json=STOCK)] * 2, asked) as service:
        service.configure("acme", "leeds", "mug", safety_stock=1, expected_version=7)
        service.configure("acme", "leeds", "mug", safety_stock=1, expected_version=calls.NEW_ROW)
    assert asked[0].headers["If-Match"] == '"7"'
    assert asked[1].headers["If-None-Match"] == "*"
    assert "If-Match" not in asked[1].headers


def test_a_movement_is_sent_without_what_the_path_and_headers_say() -> None:
    asked: list[httpx.Request] = []
    movement = {
        "id": "mov_1",
        "merchant": "acme",
        "location": "leeds",
        "type": "receive",
        "sku": "mug",
        "quantity": 5,
        "on_hand_change": 5,
        "reason": "",
        "reference": "",
        "at": "2026-11-23T15:38:04.123Z",
        "sequence": 9,
        "stock": STOCK,
    }
    with connected([httpx.Response(201, json=movement)], asked) as service:
        booked = service.move(
            "acme",
            NewMovement(
                id="m1", location="leeds", type=MovementType.RECEIVE, sku="mug", quantity=5
            ),
        )
    assert asked[0].headers["Idempotency-Key"] == "m1"
    assert json.loads(asked[0].content) == {"type": "receive", "sku": "mug", "quantity": 5}
    assert booked.stock.available == 2


@pytest.mark.parametrize(
    "url", ["holdfast.test", "ftp://holdfast.test", "http://", "http://[::", ""]
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        Client(url, KEY)


def test_a_key_that_cannot_stand_in_a_header_is_refused() -> None:
    with pytest.raises(ValueError, match="API key"):
        Client(URL, "hfk_\r\nX-Evil: 1")


CALLS: list[tuple[str, Callable[[Any], Any], dict[str, Any]]] = [
    ("confirm", lambda c: c.confirm("acme", "r", order_ref="o"), RESERVATION),
    ("amend", lambda c: c.amend("acme", "r", [Line("s", 0)], key="k"), RESERVATION),
    ("relocate", lambda c: c.relocate("acme", "r", "york", key="k"), RELOCATED),
    ("extend", lambda c: c.extend("acme", "r", ttl_seconds=9, key="k"), RESERVATION),
    ("commit", lambda c: c.commit("acme", "r", picks=[Line("mug", 1)]), RESERVATION),
    ("release", lambda c: c.release("acme", "r", reason="late"), RESERVATION),
    ("reservation", lambda c: c.reservation("acme", "r"), RESERVATION),
    ("stock", lambda c: c.stock("acme", "leeds", "mug"), STOCK),
    (
        "configure",
        lambda c: c.configure("acme", "leeds", "mug", safety_stock=1, expected_version=2, key="k"),
        STOCK,
    ),
    (
        "reserve",
        lambda c: c.reserve("acme", "leeds", [Line("mug", 1)], key="k", partial=True),
        RESERVATION,
    ),
    (
        "move_many",
        lambda c: c.move_many(
            "acme",
            [NewMovement(id="m", location="leeds", type=MovementType.COUNT, sku="mug", quantity=0)],
        ),
        {"data": [], "applied": 0, "replayed": 0, "refused": 0},
    ),
    (
        "availability",
        lambda c: c.availability("acme", [("leeds", "mug")]),
        {"data": [], "as_of": "2026-11-23T15:38:04.123Z"},
    ),
    (
        "locations",
        lambda c: c.locations("acme", limit=3),
        {"data": [], "has_more": False, "next_cursor": None},
    ),
    (
        "open_reservations",
        lambda c: c.open_reservations("acme", "leeds", cursor="x"),
        {"data": [], "has_more": False, "next_cursor": None},
    ),
]


@pytest.mark.parametrize(
    ("call", "answer"), [case[1:] for case in CALLS], ids=[case[0] for case in CALLS]
)
async def test_both_clients_send_the_same(
    call: Callable[[Any], Any], answer: dict[str, Any]
) -> None:
    asked: list[httpx.Request] = []
    with connected([httpx.Response(200, json=answer)], asked) as service:
        one = call(service)
    transport = answering([httpx.Response(200, json=answer)], asked)
    async with AsyncClient(URL, KEY, retry=QUICK, transport=transport) as async_service:
        other = await call(async_service)
    assert one == other
    assert asked[0].method == asked[1].method
    assert asked[0].url == asked[1].url
    assert asked[0].content == asked[1].content
    assert asked[0].headers == asked[1].headers


async def test_the_async_client_retries_with_the_same_key() -> None:
    asked: list[httpx.Request] = []
    answers: list[httpx.Response | Exception] = [
        httpx.ReadError("lost"),
        unavailable(),
        httpx.Response(201, json=RESERVATION),
    ]
    transport = answering(answers, asked)
    async with AsyncClient(URL, KEY, retry=QUICK, transport=transport) as service:
        await service.reserve("acme", "leeds", [Line("mug", 2)])
    assert len({request.headers["Idempotency-Key"] for request in asked}) == 1
    assert len(asked) == 3


async def test_the_async_client_gives_up_within_its_attempts() -> None:
    transport = answering([httpx.ConnectError("refused")] * 9)
    async with AsyncClient(URL, KEY, retry=QUICK, transport=transport) as service:
        with pytest.raises(ServiceUnreachable):
            await service.stock("acme", "leeds", "mug")


async def test_the_async_client_raises_refusals_and_lists_pages() -> None:
    answers: list[httpx.Response | Exception] = [
        httpx.Response(409, json=PROBLEM),
        httpx.Response(
            200, json={"data": [{"location": "a"}], "has_more": True, "next_cursor": "c"}
        ),
        httpx.Response(
            200, json={"data": [{"location": "b"}], "has_more": False, "next_cursor": None}
        ),
    ]
    async with AsyncClient(URL, KEY, retry=QUICK, transport=answering(answers)) as service:
        with pytest.raises(ApiError):
            await service.reserve("acme", "leeds", [Line("mug", 9)])
        async with asyncio.timeout(10):
            names = [name async for name in service.all_locations("acme")]
    assert names == ["a", "b"]


def test_a_key_that_is_new_is_called_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.client.time.sleep", lambda _: None)
    asked: list[httpx.Request] = []
    answers: list[httpx.Response | Exception] = []
    for _ in range(4):
        answers += [httpx.ReadError("the answer was lost"), httpx.Response(201, json=RESERVATION)]
    lines = [Line("mug", 1)]
    with connected(answers, asked) as service:
        service.reserve("acme", "leeds", lines)
        service.reserve("acme", "leeds", lines, key="cart 1", new=True)
        service.reserve("acme", "leeds", lines, key="cart 2")
    sent = [request.headers.get("Idempotency-Attempt") for request in asked]
    assert sent == ["1", None, "1", None, None, None]
    keys = [request.headers["Idempotency-Key"] for request in asked]
    assert keys[0::2] == keys[1::2]


async def test_a_lost_answer_is_asked_for_again_as_a_retry() -> None:
    asked: list[httpx.Request] = []
    answers: list[httpx.Response | Exception] = [
        httpx.ReadError("the answer was lost"),
        httpx.Response(201, json=RESERVATION),
    ]
    retry = RetryPolicy(max_attempts=2, first_wait_seconds=0.0)
    transport = answering(answers, asked)
    async with AsyncClient("http://service", retry=retry, transport=transport) as service:
        await service.reserve("acme", "leeds", [Line("mug", 1)])
    assert [request.headers.get("Idempotency-Attempt") for request in asked] == ["1", None]
