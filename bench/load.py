"""The load generator: raw HTTP/1.1 over keep-alive connections, and the arithmetic of latencies.

It shares the machine with what it measures, so it must cost next to nothing: requests are bytes
made ready beforehand, and of an answer only the status and the length are read.

In a closed loop each connection sends its next request when the last is answered: that finds the
most that the server can do, but a server that stalls is simply asked less. In an open loop requests
are due at a fixed rate whatever the server does, and a latency counts from when the request was
due. A stall then counts for every request that it kept waiting (see Gil Tene on "coordinated
omission").
"""

import asyncio
import gc
import time
from array import array
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, Protocol, Self, cast

import msgspec

DRAIN_SECONDS: Final = 30.0
"""How long the last answers of a run may take before the run has failed."""

TICK_SECONDS: Final = 0.001
"""Between two looks at what is due in an open loop: the resolution of the event loop's timers."""

MAX_HEAD_BYTES: Final = 16_384
"""Of an answer's head; more is not an answer of a server under test."""

MAX_REQUESTS: Final = 5_000_000
"""In one run: each is remembered by its status and its latency, 10 bytes together."""

MAX_CONNECTIONS: Final = 1_000
MAX_QUICK_ANSWER_BYTES: Final = 1_048_576

REFUSED: Final = frozenset({429, 503})
"""The answers of a service that is asked for more than it can or may do."""

_MS: Final = 1_000.0
_NO_BODY: Final = (204, 304)

Address = tuple[str, int]


class LoadFailed(Exception):
    """The load could not be brought to the server, so there is nothing to measure."""


class Latency(msgspec.Struct, frozen=True):
    """Percentiles of the latencies of one run."""

    p50_ms: float
    p95_ms: float
    p99_ms: float


class Load(msgspec.Struct, frozen=True):
    """What came of a run. `statuses[n]` is the answer to request n; all were answered.

    `rate_per_second` and `latency` are of the measured window alone, and so is `refusal`, which is
    of the answers that are REFUSED, None where there were none. `cpu_share` is how much of one core
    this process used meanwhile: near 1 means that the generator was the limit.
    """

    statuses: Sequence[int]
    rate_per_second: float
    latency: Latency
    cpu_share: float
    refusal: Latency | None = None

    @property
    def refused_share(self) -> float:
        """How many of the requests were REFUSED, of 1."""
        return sum(status in REFUSED for status in self.statuses) / len(self.statuses)

    def demand(self, status: int) -> Self:
        """Return self if every request was answered with `status`. Raises LoadFailed."""
        counted = Counter(self.statuses)
        if set(counted) != {status}:
            found = ", ".join(f"{n} with {code}" for code, n in counted.most_common())
            raise LoadFailed(f"every answer should have had status {status}, but: {found}")
        return self

    def accepted(self, status: int) -> list[int]:
        """Return the numbers of the requests answered with `status`; the rest must be REFUSED.

        Raises LoadFailed on any other answer.
        """
        others = Counter(self.statuses).keys() - {status} - REFUSED
        if others:
            raise LoadFailed(f"there were answers with status {', '.join(map(str, others))}")
        return [number for number, found in enumerate(self.statuses) if found == status]


class Window(NamedTuple):
    """How long a run lasts: `warm_up_seconds` that are not measured, then `seconds` that are."""

    warm_up_seconds: float
    seconds: float


class Requests(Protocol):
    """The requests of a run, by number from 0: the bytes of each, and how many there are."""

    most: int

    def __call__(self, number: int, /) -> bytes:
        """Return the bytes of one request."""
        ...


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return the smallest value that at least `percent` (1 to 100) % of the values do not exceed.

    That is the nearest-rank definition: always a value that was measured, never one in between.
    `ordered` rises. Raises ValueError where it is empty.
    """
    if not ordered:
        raise ValueError("there is no percentile of nothing")
    if not 1 <= percent <= 100:
        raise ValueError(f"percent must be 1 to 100, not {percent}")
    # In integers: in floats, 0.95 × 20 could come out a little above 19 and round up to 20.
    rank = -(-len(ordered) * percent // 100)
    return ordered[rank - 1]


def latency_of(seconds: Sequence[float]) -> Latency:
    """Return the percentiles of latencies given in seconds, in any order."""
    ordered = sorted(seconds)
    return Latency(
        p50_ms=percentile(ordered, 50) * _MS,
        p95_ms=percentile(ordered, 95) * _MS,
        p99_ms=percentile(ordered, 99) * _MS,
    )


class Recorder:
    """Keeps what belongs to the measured window, which is [starts_at, ends_at).

    The rate counts the answers that came in the window. The latencies are of the requests that
    began in it, however late their answers came: to leave those out would leave out the slowest.
    """

    def __init__(self, window: Window) -> None:
        """Start the warm-up now."""
        self.starts_at = time.perf_counter() + window.warm_up_seconds
        self.ends_at = self.starts_at + window.seconds
        self._latencies = array("d")
        self._refusals = array("d")
        self._answered = 0
        self._last_at = self.starts_at

    def record(self, begun_at: float, now: float, status: int = 200) -> None:
        """Take an answer that came `now` to a request that began, or was due, at `begun_at`."""
        if self.starts_at <= begun_at < self.ends_at:
            self._latencies.append(now - begun_at)
            if status in REFUSED:
                self._refusals.append(now - begun_at)
        if self.starts_at <= now < self.ends_at:
            self._answered += 1
            self._last_at = now

    def load(self, statuses: Sequence[int], *, ran_out: bool, cpu_share: float) -> Load:
        """Sum up. Where the requests `ran_out`, the window closed with the last answer."""
        closed_at = self._last_at if ran_out else self.ends_at
        if not self._latencies or closed_at <= self.starts_at:
            raise LoadFailed("nothing was answered within the measured time")
        return Load(
            statuses,
            self._answered / (closed_at - self.starts_at),
            latency_of(self._latencies),
            cpu_share,
            latency_of(self._refusals) if self._refusals else None,
        )


class Head(NamedTuple):
    """The head of an answer: its status, and the length of head and body together."""

    status: int
    total_bytes: int


def read_head(data: bytes) -> Head | None:
    """Read the head of an answer; None while it is incomplete.

    Raises LoadFailed on what is no HTTP/1.1 answer of stated length.
    """
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
    if end < 0:
        if len(data) >= MAX_HEAD_BYTES:
            raise LoadFailed(f"an answer's head is longer than {MAX_HEAD_BYTES} bytes")
        return None
    if data[:9] != b"HTTP/1.1 " or not data[9:12].isdigit():
        raise LoadFailed(f"no HTTP/1.1 answer: {data[:40]!r}")
    status = int(data[9:12])
    if status in _NO_BODY:
        return Head(status, end + 4)
    start = data.find(b"\r\ncontent-length:", 0, end)
    if start < 0:
        # uvicorn writes header names in lower case; others need not.
        start = data[:end].lower().find(b"\r\ncontent-length:")
        if start < 0:
            raise LoadFailed("an answer does not state its Content-Length")
    start += len(b"\r\ncontent-length:")
    length = data[start : data.find(b"\r\n", start)].strip()
    if not length.isdigit():
        raise LoadFailed(f"an answer's Content-Length is {length!r}")
    return Head(status, end + 4 + int(length))


async def closed_loop(
    address: Address,
    requests: Requests,
    *,
    connections: int,
    window: Window,
    pause_seconds: float = 0.0,
) -> Load:
    """Keep every connection busy for the window, or until the requests run out.

    A connection that was refused (429 or 503) rests for `pause_seconds`. Raises LoadFailed.
    """
    recorder = Recorder(window)
    schedule = _WhenFree(recorder, most=min(requests.most, MAX_REQUESTS))
    run = _Run(requests, recorder, schedule, pause_seconds=pause_seconds)
    return await run.over(address, connections)


async def open_loop(
    address: Address,
    requests: Requests,
    *,
    connections: int,
    rate_per_second: float,
    window: Window,
) -> Load:
    """Send at a fixed rate for the window, each request as soon after it is due as it can be.

    A request that finds every connection busy waits, and its wait counts. Raises LoadFailed, also
    where the backlog is not worked off DRAIN_SECONDS after the end.
    """
    planned = int(sum(window) * rate_per_second)
    if planned > min(requests.most, MAX_REQUESTS):
        raise LoadFailed(f"{planned} requests would be due, and there are {requests.most}")
    run = _Run(requests, Recorder(window), _AtRate(rate_per_second, most=planned))
    return await run.over(address, connections)


class _WhenFree:
    """The closed loop: the next request is due as soon as it can be sent."""

    def __init__(self, recorder: Recorder, *, most: int) -> None:
        self._recorder = recorder
        self.most = most

    def due(self, number: int, now: float) -> float | None:
        return now if number < self.most and now < self._recorder.ends_at else None

    def is_over(self, number: int, now: float) -> bool:
        return self.due(number, now) is None


class _AtRate:
    """The open loop: request n is due n / rate after the beginning."""

    def __init__(self, rate_per_second: float, *, most: int) -> None:
        self._begins_at = time.perf_counter()
        self._rate_per_second = rate_per_second
        self.most = most

    def due(self, number: int, now: float) -> float | None:
        due_at = self._begins_at + number / self._rate_per_second
        return due_at if due_at <= now and number < self.most else None

    def is_over(self, number: int, now: float) -> bool:
        return number >= self.most


class _Run:
    """One run over a set of connections, which call back with each answer."""

    def __init__(
        self,
        requests: Requests,
        recorder: Recorder,
        schedule: _WhenFree | _AtRate,
        *,
        pause_seconds: float = 0.0,
    ) -> None:
        self._pause_seconds = pause_seconds
        self._requests = requests
        self._recorder = recorder
        self._schedule = schedule
        self._statuses = array("H")
        self._in_flight = 0
        # First in, first out: a connection that idles is closed by the server after a while.
        self._free: deque[_Connection] = deque()
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def over(self, address: Address, connections: int) -> Load:
        """Connect, run to the end, and sum up."""
        if not 1 <= connections <= MAX_CONNECTIONS:
            raise ValueError(f"connections must be 1 to {MAX_CONNECTIONS}, not {connections}")
        loop = asyncio.get_running_loop()
        made: list[_Connection] = []
        begins_at = time.perf_counter()
        try:
            for _ in range(connections):
                _, protocol = await loop.create_connection(lambda: _Connection(self), *address)
                made.append(protocol)
            self._free.extend(made)
            return await self._measure(self._recorder.ends_at - begins_at + DRAIN_SECONDS)
        except OSError as error:
            raise LoadFailed(f"no connection to {address[0]}:{address[1]}: {error}") from error
        finally:
            # From here on a closed connection is no failure.
            self._done.cancel()
            for connection in made:
                connection.close()

    async def _measure(self, most_seconds: float) -> Load:
        with _quiet() as cpu:
            try:
                async with asyncio.timeout(most_seconds):
                    ticking = asyncio.create_task(self._tick())
                    try:
                        await self._done
                    finally:
                        ticking.cancel()
            except TimeoutError as error:
                raise LoadFailed(
                    f"{self._in_flight} requests had no answer {DRAIN_SECONDS:.0f} s after the "
                    f"end; {len(self._statuses)} were sent of at most {self._schedule.most}"
                ) from error
            cpu_share = cpu()
        ran_out = self._recorder.ends_at > time.perf_counter()
        return self._recorder.load(self._statuses, ran_out=ran_out, cpu_share=cpu_share)

    async def _tick(self) -> None:
        """Look at what is due; answers do so too, but in an open loop none may come for long."""
        while not self._done.done():
            self.pump(time.perf_counter())
            await asyncio.sleep(TICK_SECONDS)

    def pump(self, now: float) -> None:
        """Send what is due while connections are free, and notice the end."""
        schedule, statuses = self._schedule, self._statuses
        while self._free and (begun_at := schedule.due(len(statuses), now)) is not None:
            number = len(statuses)
            statuses.append(0)
            self._in_flight += 1
            self._free.popleft().send(number, begun_at, self._requests(number))
        if self._in_flight == 0 and schedule.is_over(len(statuses), now) and not self._done.done():
            self._done.set_result(None)

    def answered(
        self, connection: "_Connection", number: int, begun_at: float, status: int
    ) -> None:
        """Take an answer, and send the connection's next request."""
        now = time.perf_counter()
        self._statuses[number] = status
        self._recorder.record(begun_at, now, status)
        self._in_flight -= 1
        if self._pause_seconds and status in REFUSED:
            loop = asyncio.get_running_loop()
            loop.call_later(self._pause_seconds, self._free.append, connection)
        else:
            self._free.append(connection)
        self.pump(now)

    def fail(self, error: Exception) -> None:
        """End the run: a lost answer leaves its outcome unknown, and the account open."""
        if not self._done.done():
            self._done.set_exception(error)


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request in flight."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._transport: asyncio.Transport | None = None
        self._partial = b""
        self._number = -1
        self._begun_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, number: int, begun_at: float, request: bytes) -> None:
        if self._transport is None:
            raise LoadFailed("a connection was used before it was made")
        self._number = number
        self._begun_at = begun_at
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._partial:
            data = self._partial + data
        try:
            head = read_head(data)
        except LoadFailed as error:
            self._run.fail(error)
            return
        if head is None or len(data) < head.total_bytes:
            self._partial = data
            return
        if len(data) > head.total_bytes or self._number < 0:
            self._run.fail(LoadFailed("the server sent more than it was asked for"))
            return
        self._partial = b""
        number, self._number = self._number, -1
        self._run.answered(self, number, self._begun_at, head.status)

    def connection_lost(self, error: Exception | None) -> None:
        self._run.fail(LoadFailed(f"the server closed a connection ({error or 'in order'})"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def call_loop(
    call: Callable[[int], Awaitable[object]],
    *,
    callers: int,
    window: Window,
    most: int = MAX_REQUESTS,
) -> Load:
    """Run `call(number)` from so many callers at once, for the window or `most` calls in all.

    The closed loop without HTTP; every call that returns counts as status 200. What a call raises
    ends the run and comes out of it.
    """
    recorder = Recorder(window)
    numbers = iter(range(most))
    done = array("H")

    async def caller() -> None:
        while (begun_at := time.perf_counter()) < recorder.ends_at:
            number = next(numbers, None)
            if number is None:
                return
            done.append(0)
            await call(number)
            done[number] = 200
            recorder.record(begun_at, time.perf_counter())

    with _quiet() as cpu:
        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(caller())
        cpu_share = cpu()
    ran_out = recorder.ends_at > time.perf_counter()
    return recorder.load(done, ran_out=ran_out, cpu_share=cpu_share)


async def ask(address: Address, request: bytes, *, within_seconds: float) -> tuple[int, bytes]:
    """Send one request over a connection of its own; return the status and the body.

    Raises LoadFailed where no whole answer comes in time.
    """
    try:
        async with asyncio.timeout(within_seconds):
            reader, writer = await asyncio.open_connection(*address)
            try:
                writer.write(request)
                head_bytes = await reader.readuntil(b"\r\n\r\n")
                head = read_head(head_bytes)
                if head is None or head.total_bytes > MAX_QUICK_ANSWER_BYTES:
                    raise LoadFailed("the answer is too long")
                return head.status, await reader.readexactly(head.total_bytes - len(head_bytes))
            finally:
                writer.close()
                await writer.wait_closed()
    except (OSError, EOFError, TimeoutError) as error:
        raise LoadFailed(f"no answer from {address[0]}:{address[1]}: {error!r}") from error


@contextmanager
def _quiet() -> Iterator[Callable[[], float]]:
    """Keep the garbage collector out of the run; give the share of a core used since."""
    gc.collect()
    gc.disable()
    began_at, cpu_at = time.perf_counter(), time.process_time()

    def cpu_share() -> float:
        return (time.process_time() - cpu_at) / max(1e-9, time.perf_counter() - began_at)

    try:
        yield cpu_share
    finally:
        gc.enable()
