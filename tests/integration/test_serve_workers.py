"""`holdfast serve --workers 2` under a crowd: a unit is promised once, whichever gateway says so.

Every test lets all its callers go at once, over connections enough to keep both gateways busy.
"""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.keys import STORE_KEY
from engine.store import close_quietly, connect
from holdfast.cli.connection import store_settings
from tests.gateways import REQUEST_SECONDS, Shelf, assert_problem
from tests.invariants import assert_invariants
from tests.services import RunningService
from tests.stores import eventually

CALLERS: Final = 300
UNITS: Final = 100
CONNECTIONS: Final = 64
"""The client takes far longer for a call with one connection a caller."""

CROWD_SECONDS: Final = 30.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    running = RunningService(tmp_path_factory.mktemp("workers"), "--workers", "2")
    yield running
    assert running.stop() == 0


@pytest.fixture
async def shelf(service: RunningService, merchant: str) -> AsyncIterator[Shelf]:
    """A location of the test's own; all that is booked there is audited after the test."""
    secret = (service.data_dir / "admin.key").read_text().strip()
    async with (
        asyncio.timeout(CROWD_SECONDS),
        httpx.AsyncClient(
            base_url=service.url,
            headers={"Authorization": f"Bearer {secret}"},
            limits=httpx.Limits(max_connections=CONNECTIONS),
            timeout=REQUEST_SECONDS,
        ) as client,
    ):
        yield Shelf(client, merchant)
    store = connect(store_settings(None, service.data_dir))
    try:
        partitions = int(await store.execute_command("HGET", STORE_KEY, "partitions"))
        await assert_invariants(store, partitions=partitions, merchant=merchant)
    finally:
        await close_quietly(store)


async def stock(shelf: Shelf, sku: str) -> dict[str, Any]:
    return dict((await shelf.client.get(f"{shelf.path}/stock/{sku}")).json())


def statuses(answers: list[httpx.Response]) -> Counter[int]:
    return Counter(answer.status_code for answer in answers)


async def test_of_300_callers_for_100_units_exactly_100_succeed(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", UNITS)
    answers = await asyncio.gather(*(shelf.reserve(("tea", 1)) for _ in range(CALLERS)))
    assert statuses(answers) == {201: UNITS, 409: CALLERS - UNITS}
    assert len({a.json()["id"] for a in answers if a.status_code == 201}) == UNITS
    for answer in answers:
        if answer.status_code == 409:
            (error,) = assert_problem(answer, 409, "insufficient_stock")["errors"]
            assert (error["sku"], error["requested"], error["available"]) == ("tea", 1, 0)
    row = await stock(shelf, "tea")
    assert (row["on_hand"], row["reserved"], row["available"]) == (UNITS, UNITS, 0)


async def test_two_lines_of_one_sku_do_not_pass_each_alone(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", UNITS + 1)
    answers = await asyncio.gather(
        *(shelf.reserve(("tea", 1), ("tea", 1)) for _ in range(CALLERS // 2))
    )
    assert statuses(answers) == {201: UNITS // 2, 409: CALLERS // 2 - UNITS // 2}
    for answer in answers:
        if answer.status_code == 409:
            (error,) = assert_problem(answer, 409, "insufficient_stock")["errors"]
            assert (error["requested"], error["available"]) == (2, 1)
    assert (await stock(shelf, "tea"))["available"] == 1


async def test_carts_that_cross_neither_block_each_other_nor_oversell(shelf: Shelf) -> None:
    for sku, units in (("tea", UNITS), ("milk", UNITS // 2)):
        await shelf.move("receive", sku, units)
    forth, back = (("tea", 1), ("milk", 1)), (("milk", 1), ("tea", 1))
    answers = await asyncio.gather(
        *(shelf.reserve(*(forth, back)[n % 2]) for n in range(CALLERS // 2))
    )
    assert statuses(answers) == {201: UNITS // 2, 409: CALLERS // 2 - UNITS // 2}
    for answer in answers:
        if answer.status_code == 409:
            (error,) = assert_problem(answer, 409, "insufficient_stock")["errors"]
            assert (error["sku"], error["available"]) == ("milk", 0)
    # A cart that was refused for its milk left no hold on the tea.
    tea = await stock(shelf, "tea")
    assert (tea["reserved"], tea["available"]) == (UNITS // 2, UNITS // 2)


async def test_200_retries_of_one_key_at_once_make_one_reservation(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", UNITS)
    answers = await asyncio.gather(
        *(shelf.reserve(("tea", 3), key="the one key") for _ in range(200))
    )
    assert statuses(answers) == {201: 200}
    assert all(answer.json() == answers[0].json() for answer in answers)
    replayed = [answer.headers.get("idempotent-replayed") for answer in answers]
    assert Counter(replayed) == {None: 1, "true": 199}
    assert (await stock(shelf, "tea"))["reserved"] == 3


async def test_one_reservation_ended_in_two_ways_at_once_ends_in_one(shelf: Shelf) -> None:
    await shelf.move("receive", "tea", UNITS)
    ids = [(await shelf.reserve(("tea", 1))).json()["id"] for _ in range(20)]
    answers = await asyncio.gather(
        *(shelf.end(verb, the_id) for the_id in ids for verb in ("commit", "release") * 5)
    )
    committed = 0
    for index in range(len(ids)):
        of_one = answers[index * 10 : index * 10 + 10]
        assert statuses(of_one) == {200: 5, 409: 5}
        states = {answer.json()["state"] for answer in of_one if answer.status_code == 200}
        assert len(states) == 1
        committed += states == {"committed"}
        for answer in of_one:
            if answer.status_code == 409:
                assert_problem(answer, 409, "reservation_ended")
    row = await stock(shelf, "tea")
    assert (row["on_hand"], row["reserved"]) == (UNITS - committed, 0)


def gateway_of(service: RunningService) -> int:
    """Return the process id of one of its gateways."""
    pid = service.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(
        int(child)
        for child in children
        if "holdfast.web" in Path(f"/proc/{child}/cmdline").read_text()
    )


@pytest.mark.skipif(sys.platform != "linux", reason="finds a gateway through /proc")
async def test_any_gateway_counts_the_requests_of_all_even_of_a_killed_one(
    service: RunningService, shelf: Shelf
) -> None:
    async def reserved() -> float:
        text = (await shelf.client.get("/metrics")).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "holdfast_http_requests_total"
            and sample.labels["operation"] == "reserve"
        )

    before = await reserved()
    await shelf.move("receive", "tea", 1)
    await asyncio.gather(*(shelf.reserve(("tea", 1)) for _ in range(CALLERS)))

    async def are_counted() -> bool:
        # The connections of a killed gateway break.
        with suppress(httpx.TransportError):
            return await reserved() == before + CALLERS
        return False

    await eventually(are_counted, within_seconds=CROWD_SECONDS)
    os.kill(gateway_of(service), signal.SIGKILL)
    # Whichever answers, the killed one's requests are counted, and once.
    await eventually(are_counted, within_seconds=CROWD_SECONDS)
