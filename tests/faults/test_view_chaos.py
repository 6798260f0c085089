"""Reads through a gateway's view while writers run and the store is killed: each answer is a row
that the ledger knows, no reader sees one go back, and none is older than the answer says.
"""

import asyncio
import random
from datetime import datetime
from typing import Any, Final, NamedTuple

import pytest

from engine.inventory import Inventory
from engine.ledger import Levels, read_entries
from engine.model import Line, Movement, MovementType
from engine.outcomes import HoldfastError
from tests.gateways import Api, Shelf
from tests.shop import ACTOR, new_key
from tests.stores import MakeStore, RealStore, eventually, set_up

pytestmark = pytest.mark.faults

SKUS: Final = tuple(f"sku-{n}" for n in range(6))
READERS: Final = 4
WRITERS: Final = 3
ROUNDS: Final = 4
ROUND_SECONDS: Final = 0.7
HEAL_SECONDS: Final = 10.0


class Answer(NamedTuple):
    """What a reader was told of a row."""

    row: dict[str, Any]
    as_of_ms: float
    least: int
    """The version that the reader had written itself before it asked."""


class Chaos:
    """Readers and writers over one gateway, and writers beside it."""

    def __init__(self, api: Api, shelf: Shelf, other: Inventory) -> None:
        self.api = api
        self.shelf = shelf
        self.other = other
        self.stop = asyncio.Event()
        self.answers: list[list[Answer]] = []
        self.sources: set[str] = set()
        self.refused = 0

    async def write(self, draw: random.Random) -> None:
        """Write as another gateway does: this one hears of it by the tail alone."""
        while not self.stop.is_set():
            sku, merchant = draw.choice(SKUS), self.api.merchant
            try:
                if draw.random() < 0.5:
                    movement = Movement(
                        key=new_key(),
                        location="berlin",
                        type=MovementType.RECEIVE,
                        sku=sku,
                        quantity=draw.randint(1, 3),
                    )
                    await self.other.move(merchant, movement, actor=ACTOR)
                else:
                    held = await self.other.reserve(
                        merchant, "berlin", [Line(sku, 1)], key=new_key(), actor=ACTOR
                    )
                    if draw.random() < 0.5:
                        await self.other.commit(merchant, held.reservation.id, actor=ACTOR)
            except HoldfastError:
                await asyncio.sleep(0.01)

    async def read(self, draw: random.Random) -> None:
        """Ask in every way there is, and now and then write through the same gateway first."""
        answers: list[Answer] = []
        self.answers.append(answers)
        written = dict.fromkeys(SKUS, 0)
        while not self.stop.is_set():
            await asyncio.sleep(0)
            sku = draw.choice(SKUS)
            if draw.random() < 0.1:
                moved = await self.shelf.move("receive", sku, 1)
                if moved.status_code == 201:
                    written[sku] = max(written[sku], moved.json()["stock"]["version"])
            elif draw.random() < 0.1:
                before = max((a.row["version"] for a in answers if a.row["sku"] == sku), default=0)
                if (await self.shelf.reserve((sku, 1))).status_code == 201:
                    # It made some version of its own, later than any that was read before.
                    written[sku] = max(written[sku], before + 1)
            least = dict(written)
            if draw.random() < 0.7:
                parameters = draw.choice(
                    ({}, {}, {"max_staleness_ms": 200}, {"consistency": "strong"})
                )
                path = f"{self.shelf.path}/stock/{sku}"
                answer = await self.shelf.client.get(path, params=parameters)
                rows = [answer.json()]
            else:
                asked = {"rows": [{"location": "berlin", "sku": one} for one in SKUS]}
                path = f"{self.shelf.merchant_path}/availability"
                answer = await self.shelf.client.post(path, json=asked)
                rows = answer.json().get("data", [])
            if answer.status_code != 200:
                self.refused += 1
                await asyncio.sleep(0.01)
                continue
            told = answer.json()
            self.sources.add(told["source"])
            as_of_ms = datetime.fromisoformat(told["as_of"]).timestamp() * 1000
            answers += [Answer(row, as_of_ms, least[row["sku"]]) for row in rows]

    async def ledger(self) -> dict[str, list[tuple[int, int, Levels]]]:
        """Return every version of each row that there ever was: its time, itself and its levels."""
        found: dict[str, list[tuple[int, int, Levels]]] = {sku: [] for sku in SKUS}
        for keys in self.other.keys:
            after = "0-0"
            while entries := await read_entries(self.other.store, keys, after=after):
                after = entries[-1].stream_id
                for entry in entries:
                    for operation in entry.operations:
                        if operation.merchant == self.api.merchant:
                            for change in operation.rows:
                                found[change.sku].append(
                                    (entry.at_ms, change.version, change.levels)
                                )
        return found


async def own(make_store: MakeStore, *, partitions: int | None = None) -> RealStore:
    store = make_store()
    await store.start()
    await set_up(store.settings, partitions=partitions)
    return store


async def test_no_answer_is_wrong_goes_back_or_is_older_than_it_says(
    make_store: MakeStore, merchant: str
) -> None:
    store = await own(make_store)
    seed = random.SystemRandom().randrange(2**32)
    async with Api(store.settings, merchant) as api:
        other = await Inventory.open(store.settings)
        chaos = Chaos(api, Shelf(await api.client(), merchant), other)
        for sku in SKUS:
            await chaos.shelf.move("receive", sku, 50)
        tasks = [chaos.write(random.Random(seed + n)) for n in range(WRITERS)]
        tasks += [chaos.read(random.Random(seed - n)) for n in range(READERS)]
        running = asyncio.gather(*tasks)
        for number in range(ROUNDS):
            await asyncio.sleep(ROUND_SECONDS)
            if number % 2:
                await store.restart()
            else:
                await store.run("SCRIPT", "FLUSH")
        await asyncio.sleep(ROUND_SECONDS)
        chaos.stop.set()
        await running
        ledger = await chaos.ledger()
        await other.close()
    check(chaos, ledger, seed)


def check(chaos: Chaos, ledger: dict[str, list[tuple[int, int, Levels]]], seed: int) -> None:
    """Compare every answer with the ledger."""
    assert chaos.sources == {"view", "store"}, seed
    assert sum(map(len, chaos.answers)) > 500, seed
    levels = {(sku, v): found for sku, versions in ledger.items() for _, v, found in versions}
    for answers in chaos.answers:
        newest = dict.fromkeys(SKUS, 0)
        for row, as_of_ms, least in answers:
            sku, version = row["sku"], row["version"]
            found = levels[sku, version]
            told = (row["on_hand"], row["reserved"], row["safety_stock"])
            assert told == (found.on_hand, found.reserved, found.safety_stock), (seed, row)
            assert version >= newest[sku], (seed, row, newest)
            assert version >= least, (seed, row, least)
            newest[sku] = version
            by_then = max((v for at_ms, v, _ in ledger[sku] if at_ms < as_of_ms), default=0)
            assert version >= by_then, (seed, row, by_then)


@pytest.mark.parametrize("how", ["an entry tells", "the connection was lost"])
async def test_what_a_failover_undid_is_not_told_for_long(
    make_store: MakeStore, merchant: str, how: str
) -> None:
    store = await own(make_store, partitions=1)
    async with Api(store.settings, merchant) as api:
        shelf = Shelf(await api.client(), merchant)
        for _ in range(3):
            await shelf.move("receive", "tea", 1)

        async def told() -> tuple[int, str]:
            path = f"{shelf.path}/stock/tea"
            row = (await shelf.client.get(path, params={"max_staleness_ms": 60_000})).json()
            return row.get("version", 0), row.get("source", "")

        async def in_view() -> bool:
            return await told() == (3, "view")

        await eventually(in_view, within_seconds=HEAL_SECONDS)
        # As after a failover that lost the third receipt.
        stock = f"{{hf.0}}:stock:{merchant}:berlin:tea"
        await store.run("HSET", stock, "version", 2, "on_hand", 2)
        await store.run("HSET", "{hf.0}:meta", "sequence", 2)
        assert await told() == (3, "view"), "nothing tells of it yet"
        if how == "an entry tells":
            other = await Inventory.open(store.settings)
            mug = Movement(
                key="k", location="berlin", type=MovementType.RECEIVE, sku="mug", quantity=1
            )
            await other.move(merchant, mug, actor=ACTOR)
            await other.close()
        else:
            await store.restart()

        async def undone() -> bool:
            return await told() == (2, "view")

        await eventually(undone, within_seconds=HEAL_SECONDS)


async def test_a_store_that_is_away_is_only_spoken_for_as_long_as_the_caller_allows(
    make_store: MakeStore, merchant: str
) -> None:
    store = await own(make_store)
    async with Api(store.settings, merchant) as api:
        shelf = Shelf(await api.client(), merchant)
        await shelf.move("receive", "tea", 1)
        path = f"{shelf.path}/stock/tea"

        async def in_view() -> bool:
            return bool((await shelf.client.get(path)).json().get("source") == "view")

        await eventually(in_view, within_seconds=HEAL_SECONDS)
        store.kill9()
        answer = await shelf.client.get(path, params={"max_staleness_ms": 60_000})
        assert (answer.status_code, answer.json()["source"]) == (200, "view")
        answer = await shelf.client.get(path, params={"consistency": "strong"})
        assert answer.status_code == 503

        async def too_old() -> bool:
            return (await shelf.client.get(path)).status_code == 503

        await eventually(too_old, within_seconds=HEAL_SECONDS)
        older = await shelf.client.get(path, params={"max_staleness_ms": 60_000})
        assert older.json()["age_ms"] > 1_000
        await store.start()
        await eventually(in_view, within_seconds=HEAL_SECONDS)
