"""More at once than a gateway takes: refused at once, other merchants let in, nothing lost."""

import asyncio
import os
import signal
from uuid import uuid4

import httpx

from gateway.crowd import MAX_AT_ONCE, MAX_UNDER_WAY
from tests.gateways import GatewayProcess, Shelf, assert_problem
from tests.integration.test_http_process import admin_secret
from tests.stores import VALKEY, MakeStore, set_up

ITS_SHARE = MAX_UNDER_WAY // 2
MORE = 20
STOCK = 1_000


async def test_past_its_share_a_merchant_is_refused_while_another_is_let_in(
    make_store: MakeStore, merchant: str
) -> None:
    store = make_store(VALKEY)
    await store.start()
    await set_up(store.settings)
    async with GatewayProcess(store.settings) as gateway:
        await gateway.wait_until_ready()
        limits = httpx.Limits(max_connections=MAX_UNDER_WAY)
        async with httpx.AsyncClient(
            base_url=gateway.url,
            headers={"Authorization": f"Bearer {await admin_secret(store)}"},
            limits=limits,
            timeout=30,
        ) as client:
            busy, quiet = Shelf(client, merchant), Shelf(client, f"quiet-{uuid4().hex}")
            for shelf in (busy, quiet):
                assert (await shelf.move("receive", "tea", STOCK)).status_code == 201
            assert store.pid is not None
            # What was let in waits for the store, and so stays under way.
            os.kill(store.pid, signal.SIGSTOP)
            try:
                attempts = [
                    asyncio.create_task(busy.reserve(("tea", 1))) for _ in range(ITS_SHARE + MORE)
                ]
                first, _ = await asyncio.wait(
                    attempts, timeout=20, return_when=asyncio.FIRST_COMPLETED
                )
                other = asyncio.create_task(quiet.reserve(("tea", 1)))
            finally:
                os.kill(store.pid, signal.SIGCONT)
            assert first, "those past the share are answered while the store is silent"
            assert (await other).status_code == 201
            answers = await asyncio.gather(*attempts)
            refused = [answer for answer in answers if answer.status_code != 201]
            assert refused
            for answer in refused:
                assert_problem(answer, 503, "overloaded")
                assert answer.headers["retry-after"] == "1"
            row = (await client.get(f"{busy.path}/stock/tea?consistency=strong")).json()
            assert row["reserved"] == len(answers) - len(refused)
            # The room is free again.
            assert (await busy.reserve(("tea", 1))).status_code == 201


async def test_bodies_that_come_slowly_take_no_place(make_store: MakeStore, merchant: str) -> None:
    store = make_store(VALKEY)
    await store.start()
    await set_up(store.settings)
    secret = await admin_secret(store)
    async with GatewayProcess(store.settings) as gateway:
        await gateway.wait_until_ready()
        host, port = gateway.url.removeprefix("http://").split(":")
        writers = []
        for number in range(MAX_AT_ONCE + 1):
            _, writer = await asyncio.open_connection(host, int(port))
            writers.append(writer)
            writer.write(
                f"POST /v1/merchants/{merchant}/locations/berlin/reservations HTTP/1.1\r\n"
                f"Host: x\r\nAuthorization: Bearer {secret}\r\nIdempotency-Key: {number}\r\n"
                "Content-Length: 100\r\n\r\n{".encode()
            )
            await writer.drain()
        async with gateway.client(secret) as client:
            shelf = Shelf(client, merchant)
            assert (await shelf.move("receive", "tea", 1)).status_code == 201
            assert (await shelf.reserve(("tea", 1))).status_code == 201
        for writer in writers:
            writer.close()
            await writer.wait_closed()
