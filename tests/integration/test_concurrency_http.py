"""The main promise over HTTP: 300 callers, 100 units, two gateways, exactly 100 succeed."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Final

import httpx

from engine.access import Role, create_key
from tests.gateways import GatewayProcess
from tests.shop import Shop
from tests.stores import RealStore

CALLERS: Final = 300
UNITS: Final = 100
WORKERS: Final = 2


async def test_of_300_callers_for_100_units_exactly_100_succeed(
    store: RealStore, shop: Shop
) -> None:
    await shop.receive("tea", UNITS)
    _, secret = await create_key(
        shop.client, role=Role.RESERVE, merchant=shop.merchant, label="of a test"
    )
    path = f"/v1/merchants/{shop.merchant}/locations/high%20street/reservations"
    async with AsyncExitStack() as stack:
        gateways = [GatewayProcess(store.settings) for _ in range(WORKERS)]
        await asyncio.gather(*(stack.enter_async_context(gateway) for gateway in gateways))
        await asyncio.gather(*(gateway.wait_until_ready() for gateway in gateways))
        clients = [await stack.enter_async_context(gateway.client(secret)) for gateway in gateways]

        async def call(number: int, worker: int) -> httpx.Response:
            return await clients[worker % WORKERS].post(
                path,
                json={"lines": [{"sku": "tea", "quantity": 1}]},
                headers={"Idempotency-Key": f"caller-{number}"},
            )

        answers = await asyncio.gather(*(call(n, n) for n in range(CALLERS)))
        assert Counter(a.status_code for a in answers) == {201: UNITS, 409: CALLERS - UNITS}
        held = [answer.json() for answer in answers if answer.status_code == 201]
        assert len({hold["id"] for hold in held}) == UNITS
        for answer in answers:
            if answer.status_code == 409:
                problem = answer.json()
                assert problem["code"] == "insufficient_stock"
                (line,) = problem["errors"]
                assert (line["requested"], line["available"]) == (1, 0)
        row = await shop.row("tea")
        assert (row.on_hand, row.reserved, row.available) == (UNITS, UNITS, 0)

        # Each asks again, at the other process: those who hold are told so, the others are not.
        again = await asyncio.gather(*(call(n, n + 1) for n in range(CALLERS)))
        assert [a.status_code for a in again] == [a.status_code for a in answers]
        for first, second in zip(answers, again, strict=True):
            if first.status_code == 201:
                assert second.headers["idempotent-replayed"] == "true"
                assert second.json() == first.json()
    await shop.audit()
