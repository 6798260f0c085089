import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import msgspec
import pytest

from holdfast import carriers
from holdfast.calls import Call
from holdfast.carriers import DirectCarrier

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@asynccontextmanager
async def serving(handle: Handler) -> AsyncIterator[str]:
    """Run a server that speaks just what a test needs; yield its address."""

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(guarded, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    async with server:
        yield f"http://{host}:{port}"


async def question(reader: asyncio.StreamReader) -> bytes:
    """Read one request with its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, text = line.partition(b":")
        if name.lower() == b"content-length":
            return head + await reader.readexactly(int(text))
    return head


def asking(path: str = "/", body: bytes | None = None, **headers: str) -> Call[object]:
    return Call(
        method="GET" if body is None else "POST",
        path=path,
        decoder=msgspec.json.Decoder(object),
        headers=tuple(headers.items()),
        body=body,
    )


@asynccontextmanager
async def carrying(
    url: str, *, max_connections: int = 10, answer_seconds: float = 10.0
) -> AsyncIterator[DirectCarrier]:
    carrier = DirectCarrier(
        url,
        {"Authorization": "Bearer hfk_x"},
        connect_seconds=5.0,
        answer_seconds=answer_seconds,
        max_connections=max_connections,
    )
    try:
        yield carrier
    finally:
        await carrier.close()


async def test_a_connection_is_used_again() -> None:
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            await question(reader)
            writer.write(OK)

    async with serving(handle) as url, carrying(url) as carrier:
        for _ in range(5):
            reply = await carrier.carry(asking("/x", b"body"))
            assert (reply.status, reply.content) == (200, b"ok")
    assert connections == 1


async def test_the_request_arrives_whole() -> None:
    asked: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await question(reader))
        writer.write(OK)

    async with serving(handle) as url, carrying(url) as carrier:
        await carrier.carry(asking("/a%2Fb", b"body", Key="k"))
    head, _, body = asked[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /a%2Fb HTTP/1.1\r\n")
    lines = head.split(b"\r\n")
    assert b"Key: k" in lines
    assert b"Authorization: Bearer hfk_x" in lines
    assert b"Content-Type: application/json" in lines
    assert lines.count(b"Content-Length: 4") == 1
    assert body == b"body"


async def test_a_chunked_answer_in_pieces_is_put_together() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await question(reader)
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        for piece in (head, b"3\r\nab", b"c\r\n2\r\nde\r\n", b"0\r\n\r\n"):
            writer.write(piece)
            await writer.drain()

    async with serving(handle) as url, carrying(url) as carrier:
        assert (await carrier.carry(asking())).content == b"abcde"


async def test_connection_close_is_honoured() -> None:
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await question(reader)
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    async with serving(handle) as url, carrying(url) as carrier:
        for _ in range(3):
            assert (await carrier.carry(asking())).status == 204
    assert connections == 3


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", b"SSH-2.0-OpenSSH\r\n\r\n"]
)
async def test_a_lost_or_broken_answer_is_a_read_error(answer: bytes) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await question(reader)
        writer.write(answer)

    async with serving(handle) as url, carrying(url) as carrier:
        with pytest.raises(httpx.ReadError):
            await carrier.carry(asking())


async def test_an_answer_that_does_not_come_times_out_and_its_connection_is_dropped() -> None:
    connections = 0
    release = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await question(reader)
        if connections == 1:
            await release.wait()
        writer.write(OK)

    async with serving(handle) as url, carrying(url, answer_seconds=0.2) as carrier:
        with pytest.raises(httpx.ReadTimeout):
            await carrier.carry(asking())
        # The late answer must not become the answer of the next request.
        release.set()
        assert (await carrier.carry(asking())).content == b"ok"
    assert connections == 2


async def test_nothing_listens() -> None:
    async def handle(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        return

    async with serving(handle) as url:
        pass
    async with carrying(url) as carrier:
        with pytest.raises(httpx.ConnectError):
            await carrier.carry(asking())


async def test_connections_are_bounded() -> None:
    open_now = 0
    most = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        try:
            while True:
                await question(reader)
                writer.write(OK)
                await writer.drain()
        finally:
            open_now -= 1

    async with serving(handle) as url, carrying(url, max_connections=3) as carrier:
        answers = await asyncio.gather(*(carrier.carry(asking()) for _ in range(20)))
    assert {answer.content for answer in answers} == {b"ok"}
    assert 1 <= most <= 3


async def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carriers, "MAX_ANSWER_BYTES", 1000)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await question(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(10_000):
            writer.write(b"64\r\n" + b"x" * 100 + b"\r\n")
            await writer.drain()

    async with serving(handle) as url, carrying(url) as carrier:
        with pytest.raises(httpx.ReadError, match="longer"):
            await carrier.carry(asking())


async def test_a_header_cannot_smuggle_another() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await question(reader)
        writer.write(OK)

    async with serving(handle) as url, carrying(url) as carrier:
        with pytest.raises(httpx.LocalProtocolError):
            await carrier.carry(asking(Name="a\r\nX-Evil: b"))


async def test_the_headers_that_matter_are_read() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await question(reader)
            writer.write(
                b"HTTP/1.1 200 OK\r\nidempotent-replayed: true\r\nRETRY-AFTER: 7\r\n"
                b"Content-Length: 0\r\n\r\n"
            )
            await question(reader)
            writer.write(OK)

    async with serving(handle) as url, carrying(url) as carrier:
        reply = await carrier.carry(asking())
        assert (reply.replayed, reply.retry_after) == (True, "7")
        # They belong to their own answer and not to the next one.
        reply = await carrier.carry(asking())
        assert (reply.replayed, reply.retry_after) == (False, "")


async def test_a_path_in_the_url_comes_first() -> None:
    asked: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await question(reader))
        writer.write(OK)

    async with serving(handle) as url, carrying(f"{url}/shop/") as carrier:
        await carrier.carry(asking("/v1/x"))
    assert asked[0].startswith(b"GET /shop/v1/x HTTP/1.1\r\n")
