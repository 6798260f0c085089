"""The load generator: its percentiles, its reading of answers, and what a stall does to it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load import (
    MAX_HEAD_BYTES,
    Address,
    Head,
    LoadFailed,
    Recorder,
    Window,
    ask,
    call_loop,
    closed_loop,
    latency_of,
    open_loop,
    percentile,
    read_head,
)

REQUEST = b"GET / HTTP/1.1\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
END_SECONDS = 10.0
ENDLESS = Window(warm_up_seconds=0.0, seconds=30.0)
"""For what ends with a failure: no pause of a busy machine can make the time run out first."""


class Asked:
    """As many requests as are wanted, and a record of how many were asked for."""

    def __init__(self, most: int = 1_000_000) -> None:
        self.most = most
        self.numbers: list[int] = []

    def __call__(self, number: int, /) -> bytes:
        self.numbers.append(number)
        return REQUEST


AnswerOf = Callable[[int], tuple[float, bytes | None]]
"""Given how many requests came before: for how many seconds the whole server stops, and its answer,
None for closing the connection."""


@asynccontextmanager
async def serving(answer_of: AnswerOf) -> AsyncIterator[Address]:
    """Serve on a free port of the loopback, one request at a time."""
    answered = 0
    turn = asyncio.Lock()
    handling: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                async with turn:
                    stall_seconds, answer = answer_of(answered)
                    answered += 1
                    await asyncio.sleep(stall_seconds)
                if answer is None:
                    break
                writer.write(answer)
        with contextlib.suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()

    def start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handling.add(asyncio.create_task(handle(reader, writer)))

    async with await asyncio.start_server(start, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield host, port
        async with asyncio.timeout(END_SECONDS):
            await asyncio.gather(*handling)


def test_a_percentile_is_the_value_of_nearest_rank() -> None:
    # The example of the definition: 5 values, ranks ⌈0.05·5⌉, ⌈0.3·5⌉, ⌈0.4·5⌉, ⌈0.5·5⌉, 5.
    ordered = [15.0, 20.0, 35.0, 40.0, 50.0]
    found = [percentile(ordered, percent) for percent in (5, 30, 40, 50, 100)]
    assert found == [15.0, 20.0, 20.0, 35.0, 50.0]


def test_a_percentile_that_falls_on_a_rank_is_not_rounded_up() -> None:
    assert percentile([float(n) for n in range(1, 21)], 95) == 19.0
    assert percentile([float(n) for n in range(1, 101)], 99) == 99.0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.integers(1, 100))
def test_a_percentile_is_the_least_value_that_enough_do_not_exceed(
    values: list[float], percent: int
) -> None:
    ordered = sorted(values)
    found = percentile(ordered, percent)

    def share_up_to(value: float) -> int:
        return 100 * sum(x <= value for x in ordered)

    assert share_up_to(found) >= percent * len(ordered)
    smaller = [x for x in ordered if x < found]
    assert not smaller or share_up_to(smaller[-1]) < percent * len(ordered)


@pytest.mark.parametrize("percent", [0, 101, -1])
def test_a_percentile_outside_1_to_100_is_refused(percent: int) -> None:
    with pytest.raises(ValueError, match="1 to 100"):
        percentile([1.0], percent)


def test_there_is_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


def test_latencies_are_sorted_and_told_in_milliseconds() -> None:
    found = latency_of([0.1 - n / 1000 for n in range(100)])
    assert found.p50_ms == pytest.approx(50.0)
    assert found.p95_ms == pytest.approx(95.0)
    assert found.p99_ms == pytest.approx(99.0)


def test_the_rate_counts_answers_of_the_window_and_latencies_its_requests() -> None:
    recorder = Recorder(Window(warm_up_seconds=10.0, seconds=10.0))
    start, end = recorder.starts_at, recorder.ends_at
    recorder.record(start - 9, start - 8)  # of the warm-up
    recorder.record(start - 1, start + 1)  # begun before: counts for the rate alone
    recorder.record(start + 1, start + 2)
    recorder.record(end - 1, end + 4)  # answered late: the slowest must not be left out
    load = recorder.load([200], ran_out=False, cpu_share=0.0)
    assert load.rate_per_second == pytest.approx(2 / 10)
    assert load.latency.p50_ms == pytest.approx(1_000.0)
    assert load.latency.p99_ms == pytest.approx(5_000.0)


def test_a_window_closes_with_the_last_answer_where_the_requests_ran_out() -> None:
    recorder = Recorder(Window(warm_up_seconds=0.0, seconds=100.0))
    for seconds in (1, 2, 4):
        recorder.record(recorder.starts_at, recorder.starts_at + seconds)
    load = recorder.load([200] * 3, ran_out=True, cpu_share=0.0)
    assert load.rate_per_second == pytest.approx(3 / 4)


def test_refusals_are_told_apart_and_any_other_answer_is_a_failure() -> None:
    recorder = Recorder(Window(warm_up_seconds=0.0, seconds=10.0))
    statuses = [201, 503, 201, 429, 201]
    for number, status in enumerate(statuses):
        recorder.record(recorder.starts_at, recorder.starts_at + number + 1, status)
    load = recorder.load(statuses, ran_out=False, cpu_share=0.0)
    assert load.refused_share == pytest.approx(0.4)
    assert load.refusal is not None
    assert (load.refusal.p50_ms, load.refusal.p99_ms) == pytest.approx((2_000.0, 4_000.0))
    assert load.accepted(201) == [0, 2, 4]
    with pytest.raises(LoadFailed, match="503"):
        load.demand(201)
    with pytest.raises(LoadFailed, match="status 500"):
        msgspec.structs.replace(load, statuses=[201, 429, 500]).accepted(201)


def test_nothing_answered_is_no_measurement() -> None:
    recorder = Recorder(Window(warm_up_seconds=0.0, seconds=1.0))
    with pytest.raises(LoadFailed, match="nothing was answered"):
        recorder.load([], ran_out=False, cpu_share=0.0)


@pytest.mark.parametrize("name", [b"content-length", b"Content-Length", b"CONTENT-LENGTH"])
def test_a_head_states_status_and_length_whatever_the_case(name: bytes) -> None:
    data = b"HTTP/1.1 201 Created\r\nx: y\r\n" + name + b": 5\r\n\r\nhello"
    assert read_head(data) == Head(201, len(data))


@pytest.mark.parametrize("status", [b"204", b"304"])
def test_an_answer_without_a_body_ends_with_its_head(status: bytes) -> None:
    data = b"HTTP/1.1 " + status + b" X\r\netag: 1\r\n\r\n"
    assert read_head(data) == Head(int(status), len(data))


def test_no_cut_head_is_taken_for_a_whole_one() -> None:
    head = ANSWER[: ANSWER.index(b"ok")]
    assert [read_head(head[:cut]) for cut in range(len(head))] == [None] * len(head)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", r"no HTTP/1\.1 answer"),
        (b"HTTP/1.1 2x0 OK\r\ncontent-length: 0\r\n\r\n", r"no HTTP/1\.1 answer"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "does not state"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "Content-Length"),
        (b"x" * MAX_HEAD_BYTES, "longer than"),
    ],
)
def test_what_is_no_answer_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(LoadFailed, match=reason):
        read_head(data)


async def test_every_request_of_a_closed_loop_is_sent_once_and_answered() -> None:
    requests = Asked(most=500)
    async with serving(lambda _: (0.0, ANSWER)) as address:
        load = await closed_loop(
            address, requests, connections=7, window=Window(warm_up_seconds=0.0, seconds=30.0)
        )
    assert requests.numbers == list(range(500))
    assert load.demand(200).statuses == load.statuses
    assert len(load.statuses) == 500


async def test_answers_that_come_in_pieces_are_put_together() -> None:
    body = b"x" * 3_000_000
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\n\r\n" + body
    async with serving(lambda _: (0.0, answer)) as address:
        load = await closed_loop(
            address,
            Asked(most=3),
            connections=1,
            window=Window(warm_up_seconds=0.0, seconds=30.0),
        )
    assert list(load.statuses) == [200, 200, 200]


async def test_a_stall_counts_for_every_request_that_was_due_meanwhile() -> None:
    stall_seconds, per_second = 0.4, 200

    def once(number: int) -> tuple[float, bytes]:
        return (stall_seconds if number == 20 else 0.0), ANSWER

    window = Window(warm_up_seconds=0.0, seconds=1.0)
    async with serving(once) as address:
        opened = await open_loop(
            address, Asked(), connections=4, rate_per_second=per_second, window=window
        )
    async with serving(once) as address:
        longer = Window(warm_up_seconds=0.0, seconds=3.0)
        closed = await closed_loop(address, Asked(), connections=4, window=longer)
    # 80 of the 200 requests were due during the stall, so the 95th percentile is one of them. The
    # closed loop sent only 4 into it, of however many, and its 95th percentile knows of none.
    assert len(opened.demand(200).statuses) == per_second
    assert opened.latency.p95_ms > 1_000 * stall_seconds / 2
    assert closed.latency.p95_ms < opened.latency.p95_ms


async def test_an_open_loop_sends_what_its_rate_makes_due_and_no_more() -> None:
    async with serving(lambda _: (0.0, ANSWER)) as address:
        load = await open_loop(
            address,
            Asked(),
            connections=4,
            rate_per_second=100,
            window=Window(warm_up_seconds=0.2, seconds=0.8),
        )
    assert len(load.statuses) == 100


async def test_an_open_loop_needs_as_many_requests_as_will_be_due() -> None:
    with pytest.raises(LoadFailed, match="would be due"):
        await open_loop(
            ("127.0.0.1", 1), Asked(most=10), connections=1, rate_per_second=1_000, window=ENDLESS
        )


async def test_a_connection_that_the_server_closes_fails_the_run() -> None:
    async with serving(lambda number: (0.0, ANSWER if number < 5 else None)) as address:
        with pytest.raises(LoadFailed, match="closed a connection"):
            await closed_loop(address, Asked(), connections=2, window=ENDLESS)


async def test_more_than_was_asked_for_fails_the_run() -> None:
    async with serving(lambda _: (0.0, ANSWER + ANSWER)) as address:
        with pytest.raises(LoadFailed, match="more than it was asked for"):
            await closed_loop(address, Asked(), connections=1, window=ENDLESS)


async def test_a_server_that_is_not_there_fails_the_run() -> None:
    async with serving(lambda _: (0.0, ANSWER)) as address:
        pass
    with pytest.raises(LoadFailed, match="no connection"):
        await closed_loop(address, Asked(), connections=1, window=ENDLESS)
    with pytest.raises(LoadFailed, match="no answer"):
        await ask(address, REQUEST, within_seconds=5.0)


async def test_other_statuses_than_demanded_are_counted_in_the_refusal() -> None:
    refusal = b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"
    async with serving(lambda number: (0.0, refusal if number % 2 else ANSWER)) as address:
        load = await closed_loop(
            address,
            Asked(most=10),
            connections=1,
            window=Window(warm_up_seconds=0.0, seconds=30.0),
        )
    with pytest.raises(LoadFailed, match=r"5 with 200, 5 with 503|5 with 503, 5 with 200"):
        load.demand(200)


async def test_callers_in_process_share_the_numbers_out() -> None:
    called: list[int] = []

    async def call(number: int) -> None:
        called.append(number)
        await asyncio.sleep(0)

    load = await call_loop(
        call, callers=8, window=Window(warm_up_seconds=0.0, seconds=30.0), most=1_000
    )
    assert sorted(called) == list(range(1_000))
    assert list(load.statuses) == [200] * 1_000


async def test_what_a_caller_in_process_raises_comes_out() -> None:
    async def call(number: int) -> None:
        if number == 3:
            raise LookupError(number)

    with pytest.raises(ExceptionGroup) as caught:
        await call_loop(call, callers=2, window=ENDLESS)
    assert caught.group_contains(LookupError)
