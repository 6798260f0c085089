"""Repair after random damage to random histories: the audit is clean, and nothing is miscounted.

What should come out is worked out here from the ledger as it lies in the store, with a plain
msgpack and without the product's fold.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast
from uuid import uuid4

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.inventory import Inventory
from engine.keys import PartitionKeys
from engine.model import MovementType
from engine.outcomes import HoldfastError
from engine.store import Client, close_quietly, connect
from reconciler.repair import Mended, mend
from tests.shop import ACTOR, Shop
from tests.stores import VALKEY, RealStore, set_up

LOCATION: Final = "high street"
PARTITIONS: Final = 1
SKUS: Final = ("tea", "milk")
"""Few, so that what is done to one row meets what was done to it before."""
GHOST: Final = "rsv_0_" + "0" * 24
FIELDS: Final = ("on_hand", "reserved", "safety_stock", "version", "deficit")
COLUMNS: Final = ("on_hand", "reserved", "safety_stock", "deficit")

Step = tuple[Any, ...]

skus = st.sampled_from(SKUS)
units = st.integers(1, 9)
places = st.integers(0, 3)

trades: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("receive"), skus, units),
    st.tuples(st.just("sale"), skus, units),
    st.tuples(st.just("count"), skus, st.integers(0, 20)),
    st.tuples(st.just("configure"), skus, st.integers(0, 3)),
    st.tuples(st.just("reserve"), st.lists(st.tuples(skus, units), min_size=1, max_size=3)),
    st.tuples(st.just("reserve"), st.lists(st.tuples(skus, units), min_size=1, max_size=1)),
    st.tuples(st.just("confirm"), places),
    st.tuples(st.just("extend"), places),
    st.tuples(st.just("commit"), places, st.booleans()),
    st.tuples(st.just("release"), places),
)
edits: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("edit"), skus, st.sampled_from(COLUMNS), st.integers(0, 30)),
    st.tuples(st.just("edit"), skus, st.just("on_hand"), st.integers(0, 30)),
    st.tuples(st.just("hide hold"), places),
    st.tuples(st.just("unlist"), places),
    st.tuples(st.just("ghost")),
    st.tuples(st.just("delete row"), skus),
    st.tuples(st.just("spoil row"), skus, st.sampled_from(FIELDS), st.sampled_from(["", "1e3"])),
    st.tuples(st.just("retype row"), skus),
    st.tuples(st.just("plant row")),
    st.tuples(st.just("edit version"), skus, units),
)
losses: st.SearchStrategy[Step] = st.one_of(
    st.tuples(st.just("edit state"), places, st.sampled_from(["held", "released", "nonsense"])),
    st.tuples(st.just("lose entry"), places),
    st.tuples(st.just("lose tail")),
    st.tuples(st.just("skip"), units),
    st.tuples(st.just("go back"), units),
    st.tuples(st.just("forget records")),
)


class Workshop:
    """One store for all examples, which every example starts anew."""

    def __init__(self, store: RealStore) -> None:
        """Take a store that runs."""
        self._store = store

    async def work(self, steps: Sequence[Step], *, exactly: bool) -> None:
        """Do steps, mend, and check; `exactly` where the ledger alone says what is right."""
        await self._start_over()
        inventory = await Inventory.open(self._store.settings)
        client = connect(self._store.tester)
        try:
            shop = Shop(inventory, client, f"m-{uuid4().hex[:12]}")
            harmed = Harmed(shop, client)
            for step in (*(("receive", sku, 20) for sku in SKUS), *steps):
                await harmed.do(step)
            mended = await self._mend(inventory)
            assert mended.audit.findings == (), mended.audit.findings
            await harmed.check_sums()
            if exactly:
                await harmed.check_books()
            again = await self._mend(inventory)
            assert again.rounds == (), again.rounds
        finally:
            await close_quietly(client)
            await inventory.close()

    async def _mend(self, inventory: Inventory) -> Mended:
        return await mend(inventory, None, actor="mender", reason="a test")

    async def _start_over(self) -> None:
        """Delete every key, as a failed example may have left some damaged."""
        client = cast(Any, connect(self._store.tester))
        try:
            async for key in client.scan_iter():
                await client.delete(key)
        finally:
            await close_quietly(client)
        await set_up(self._store.settings, partitions=PARTITIONS)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """A store of this module's own."""
    folder: Path = tmp_path_factory.mktemp("repair")
    store = RealStore(VALKEY, folder / "data")
    asyncio.run(store.start())
    yield Workshop(store)
    asyncio.run(store.stop())


@given(st.lists(st.one_of(trades, trades, edits, losses), min_size=10, max_size=40))
def test_after_any_damage_the_audit_is_clean_and_every_hold_is_counted_once(
    workshop: Workshop, steps: list[Step]
) -> None:
    asyncio.run(workshop.work(steps, exactly=False))


@given(st.lists(st.one_of(trades, trades, edits), min_size=10, max_size=40))
def test_edits_by_hand_leave_no_trace_in_the_books(workshop: Workshop, steps: list[Step]) -> None:
    asyncio.run(workshop.work(steps, exactly=True))


class Harmed:
    """One merchant's shop, to which steps are done, good and bad."""

    def __init__(self, shop: Shop, client: Client) -> None:
        """Start with nothing; the client may do everything."""
        self._shop = shop
        self._client = cast(Any, client)
        self._keys: PartitionKeys = shop.inventory.keys[0]
        self._ids: list[str] = []

    async def do(self, step: Step) -> None:
        """Do one step; what the engine refuses, or cannot read any more, is not done."""
        name, *arguments = step
        method = getattr(self, "_" + name.replace(" ", "_"))
        try:
            await method(*arguments)
        except (HoldfastError, ValueError):
            return

    def _id(self, place: int) -> str:
        return self._ids[place % len(self._ids)] if self._ids else GHOST

    def _row_key(self, sku: str) -> str:
        return self._keys.stock(self._shop.merchant, LOCATION, sku)

    def _hold_key(self, place: int) -> str:
        return self._keys.reservation(self._id(place))

    async def _run(self, *command: str | int | bytes) -> Any:
        return await self._client.execute_command(*command)

    # Trade

    async def _receive(self, sku: str, quantity: int) -> None:
        await self._shop.move(MovementType.RECEIVE, sku, quantity)

    async def _sale(self, sku: str, quantity: int) -> None:
        await self._shop.move(MovementType.SALE, sku, quantity)

    async def _count(self, sku: str, quantity: int) -> None:
        await self._shop.move(MovementType.COUNT, sku, quantity)

    async def _configure(self, sku: str, safety_stock: int) -> None:
        if await self._run("TYPE", self._row_key(sku)) not in (b"hash", b"none"):
            return
        version = await self._client.hget(self._row_key(sku), "version") or b"0"
        await self._shop.inventory.configure(
            self._shop.merchant,
            LOCATION,
            sku,
            key=uuid4().hex,
            safety_stock=safety_stock,
            expected_version=int(version) if version.isdigit() else 0,
            actor=ACTOR,
        )

    async def _reserve(self, lines: list[tuple[str, int]]) -> None:
        made = await self._shop.reserve(lines, partial=True)
        self._ids.append(made.reservation.id)

    async def _confirm(self, place: int) -> None:
        await self._shop.inventory.confirm(self._shop.merchant, self._id(place), actor=ACTOR)

    async def _extend(self, place: int) -> None:
        await self._shop.inventory.extend(
            self._shop.merchant, self._id(place), key=uuid4().hex, ttl_ms=990_000, actor=ACTOR
        )

    async def _commit(self, place: int, short: bool) -> None:
        picks: list[tuple[str, int]] = []
        if short:
            held = await self._shop.inventory.reservation(self._shop.merchant, self._id(place))
            picks = [(line.sku, line.quantity // 2) for line in held.lines]
        await self._shop.commit(self._id(place), picks)

    async def _release(self, place: int) -> None:
        await self._shop.release(self._id(place))

    # Edits

    async def _edit(self, sku: str, column: str, number: int) -> None:
        if await self._run("TYPE", self._row_key(sku)) == b"hash":
            await self._run("HSET", self._row_key(sku), column, number)

    async def _edit_version(self, sku: str, number: int) -> None:
        await self._edit(sku, "version", number)

    async def _spoil_row(self, sku: str, column: str, text: str) -> None:
        if await self._run("TYPE", self._row_key(sku)) == b"hash":
            await self._run("HSET", self._row_key(sku), column, text)

    async def _delete_row(self, sku: str) -> None:
        await self._run("DEL", self._row_key(sku))

    async def _retype_row(self, sku: str) -> None:
        await self._run("DEL", self._row_key(sku))
        await self._run("RPUSH", self._row_key(sku), "no row")

    async def _plant_row(self) -> None:
        key = self._row_key("planted")
        await self._run("HSET", key, "on_hand", 4, "reserved", 2, "safety_stock", 0, "version", 2)

    async def _hide_hold(self, place: int) -> None:
        await self._run("DEL", self._hold_key(place))

    async def _edit_state(self, place: int, state: str) -> None:
        if await self._run("EXISTS", self._hold_key(place)):
            await self._run("HSET", self._hold_key(place), "state", state)

    async def _unlist(self, place: int) -> None:
        opened = self._keys.open_reservations(self._shop.merchant, LOCATION)
        await self._run("ZREM", self._keys.holds, self._id(place))
        await self._run("ZREM", opened, self._id(place))
        await self._run("ZREM", self._keys.skus(self._shop.merchant, LOCATION), SKUS[0])

    async def _ghost(self) -> None:
        opened = self._keys.open_reservations(self._shop.merchant, LOCATION)
        await self._run("ZADD", self._keys.holds, 5, GHOST)
        await self._run("ZADD", opened, 5, GHOST)

    # Losses

    async def _lose_entry(self, place: int) -> None:
        entries = await self._run("XRANGE", self._keys.ledger, "-", "+", "COUNT", 200)
        if entries:
            await self._run("XDEL", self._keys.ledger, entries[-1 - place % len(entries)][0])

    async def _lose_tail(self) -> None:
        for entry in await self._run("XREVRANGE", self._keys.ledger, "+", "-", "COUNT", 3):
            await self._run("XDEL", self._keys.ledger, entry[0])

    async def _skip(self, count: int) -> None:
        await self._run("HINCRBY", self._keys.meta, "sequence", count)

    async def _go_back(self, count: int) -> None:
        sequence = int(await self._run("HGET", self._keys.meta, "sequence") or 0)
        await self._run("HSET", self._keys.meta, "sequence", max(0, sequence - count))

    async def _forget_records(self) -> None:
        pattern = f"{self._keys.tag}:seen:*"
        async for key in self._client.scan_iter(match=pattern):
            await self._run("DEL", key)

    # Checks

    async def check_sums(self) -> None:
        """Every row's reserved is the sum of the live holds, and no number is below zero."""
        held: dict[str, int] = defaultdict(int)
        for the_id in {*self._ids, GHOST}:
            fields = await self._client.hgetall(self._keys.reservation(the_id))
            if fields and fields[b"state"] in (b"held", b"confirmed"):
                for sku, quantity in msgpack.unpackb(fields[b"body"], raw=False)[6]:
                    held[sku] += quantity
        for sku in (*SKUS, "planted"):
            fields = await self._client.hgetall(self._row_key(sku))
            fields.pop(b"counted", None)
            row = {name.decode(): int(text) for name, text in fields.items()}
            assert all(number >= 0 for number in row.values()), (sku, row)
            assert row.get("reserved", 0) == held[sku], (sku, row, held)

    async def check_books(self) -> None:
        """Every row is what the movements and commits of the ledger add up to."""
        books: dict[str, int] = defaultdict(int)
        safety_stock: dict[str, int] = defaultdict(int)
        for kind, lines, detail in await self._operations():
            for sku, *_ in lines:
                if kind == "move" and detail[0] == "count":
                    books[sku] = detail[1]
                elif kind == "move":
                    books[sku] += detail[1] if detail[0] == "receive" else -detail[1]
                elif kind == "commit":
                    books[sku] -= dict(detail[2]).get(sku, 0)
                elif kind == "configure":
                    safety_stock[sku] = detail[0]
        for sku in SKUS:
            fields = await self._client.hgetall(self._row_key(sku))
            fields.pop(b"counted", None)
            row = {name.decode(): int(text) for name, text in fields.items()}
            assert row.get("on_hand", 0) == max(0, books[sku]), (sku, row, books)
            assert row.get("deficit", 0) == max(0, -books[sku]), (sku, row, books)
            assert row.get("safety_stock", 0) == safety_stock[sku], (sku, row)

    async def _operations(self) -> list[tuple[str, list[Any], list[Any]]]:
        found = []
        for _, fields in await self._run("XRANGE", self._keys.ledger, "-", "+"):
            flat = (
                fields if isinstance(fields, dict) else dict(zip(*[iter(fields)] * 2, strict=True))
            )
            operations = msgpack.unpackb(flat[b"ops"], raw=False)
            found += [(one[0], one[6], one[7]) for one in operations]
        return found
