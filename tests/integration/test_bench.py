"""The benchmarks run, and their account notices when the store and its callers disagree."""

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

from bench import instructions, shop
from bench.account import AccountWrong, Books, Fold, check
from bench.catalogue import PLAIN_RESERVE_INSTRUCTIONS
from bench.load import Window, call_loop
from bench.shop import ACTOR, MERCHANT, Shop
from engine.inventory import Inventory
from engine.model import Line
from tests.stores import MakeStore, set_up

ROOT = Path(__file__).resolve().parents[2]
RUN_SECONDS = 400
CARTS = 20

REQUIRE_VALGRIND: Final = "HOLDFAST_REQUIRE_VALGRIND"
"""Set where a missing Valgrind is a failure and no reason to skip."""


@pytest.fixture
async def inventory(make_store: MakeStore) -> AsyncIterator[Inventory]:
    """The engine on a store that only this test uses, as an account needs it."""
    store = make_store()
    await store.start()
    await set_up(store.settings, partitions=2)
    opened = await Inventory.open(store.settings)
    yield opened
    await opened.close()


def small_shop() -> Shop:
    rows = shop.rows_of(3, 4)
    carts = [shop.Cart(location, (Line(sku, 2), Line("sku-0", 1))) for location, sku in rows]
    return Shop(rows, carts)


async def hold(inventory: Inventory, books: Books, count: int = CARTS) -> list[str]:
    """Hold carts, book them and return the reservations' ids."""

    async def reserve(number: int) -> None:
        cart, key = books.shop.cart(number), books.shop.key(number)
        await inventory.reserve(MERCHANT, cart.location, cart.lines, key=key, actor=ACTOR)

    window = Window(warm_up_seconds=0.0, seconds=30.0)
    load = await call_loop(reserve, callers=4, window=window, most=count)
    books.hold(range(len(load.statuses)))
    return [books.shop.reservation(number, inventory.partitions) for number in range(count)]


@pytest.fixture
async def books(inventory: Inventory) -> Books:
    """Books of a stocked shop with some carts held, one sold and one given back."""
    books = Books(small_shop())
    await shop.stock_up(inventory, books.shop.rows)
    ids = await hold(inventory, books)
    await inventory.commit(MERCHANT, ids[0], actor=ACTOR)
    books.commit([0])
    await inventory.release(MERCHANT, ids[1], actor=ACTOR)
    books.release([1])
    return books


async def test_an_account_that_balances_passes(inventory: Inventory, books: Books) -> None:
    await check(inventory, books)
    assert books.live_holds == CARTS - 2


async def test_a_hold_that_nobody_was_told_of_is_noticed(
    inventory: Inventory, books: Books
) -> None:
    cart = books.shop.cart(0)
    await inventory.reserve(MERCHANT, cart.location, cart.lines, key="untold", actor=ACTOR)
    with pytest.raises(AccountWrong, match="rows differ from what was acknowledged"):
        await check(inventory, books)


async def test_a_hold_that_was_acknowledged_and_is_not_there_is_noticed(
    inventory: Inventory, books: Books
) -> None:
    books.hold([CARTS])
    with pytest.raises(AccountWrong, match="rows differ from what was acknowledged"):
        await check(inventory, books)


async def test_a_hold_missing_from_its_index_is_noticed(inventory: Inventory, books: Books) -> None:
    for keys in inventory.keys:
        await inventory.store.client.execute_command("ZPOPMIN", keys.holds)
    with pytest.raises(AccountWrong, match="live holds"):
        await check(inventory, books)


async def test_a_row_that_the_ledger_does_not_explain_is_noticed(
    inventory: Inventory, books: Books
) -> None:
    cart = books.shop.cart(0)
    for keys in inventory.keys:
        row = keys.stock(MERCHANT, cart.location, cart.lines[0].sku)
        if await inventory.store.client.execute_command("EXISTS", row):
            await inventory.store.client.execute_command("HINCRBY", row, "reserved", 2)
    books.held[cart.location, cart.lines[0].sku] += 2
    with pytest.raises(AccountWrong, match="fold"):
        await check(inventory, books)


async def test_a_gap_in_the_ledger_is_noticed(inventory: Inventory, books: Books) -> None:
    ledger = inventory.keys[0].ledger
    entries = await inventory.store.client.execute_command("XRANGE", ledger, "-", "+")
    await inventory.store.client.execute_command("XDEL", ledger, entries[1][0])
    with pytest.raises(AccountWrong, match="sequence"):
        await check(inventory, books)


async def test_a_ledger_whose_beginning_is_gone_is_folded_on(
    inventory: Inventory, books: Books
) -> None:
    fold = Fold()
    await fold.add_all(inventory)
    for keys in inventory.keys:
        await inventory.store.client.execute_command("DEL", keys.ledger)
    cart = books.shop.cart(CARTS)
    await inventory.reserve(MERCHANT, cart.location, cart.lines, key="one-more", actor=ACTOR)
    books.hold([CARTS])
    await check(inventory, books, fold)


@pytest.mark.slow
async def test_a_plain_reserve_takes_no_more_instructions_than_before_rows_had_terms() -> None:
    if shutil.which("valgrind") is None:
        if not os.environ.get(REQUIRE_VALGRIND):
            pytest.skip("no valgrind on PATH; Debian's package has the same name")
        pytest.fail("no valgrind on PATH")
    counted = await instructions.count(instructions.SHOPS["uniform"])
    assert 0 < counted <= PLAIN_RESERVE_INSTRUCTIONS["uniform"]


@pytest.mark.slow
def test_a_quick_run_measures_checks_and_reports(tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    only = ["limit.post", "limit.script", "engine.reserve.hot_row", "http.reserve", "http.read.at"]
    only += ["reconciler.archive", "http.refuse", "http.fair"]
    argv = [sys.executable, "-m", "bench", "--quick", "--rounds", "1", "--out", str(out)]
    for name in only:
        argv += ["--only", name]
    run = subprocess.run(
        [*argv, "--work-dir", str(tmp_path)],
        capture_output=True,
        check=False,
        cwd=ROOT,
        text=True,
        timeout=RUN_SECONDS,
    )
    assert run.returncode == 0, run.stderr
    figures = {
        figure["name"]: figure for figure in msgspec.json.decode(out.read_bytes())["figures"]
    }
    assert {name for name in only if not any(f.startswith(name) for f in figures)} == set()
    # The noisy merchant may have been served whole; then no refusal was timed.
    taken = [figure for name, figure in figures.items() if name != "http.fair.refusal"]
    assert all(figure["median"] > 0 for figure in taken)
    hot = figures["http.reserve.hot_row"]
    assert hot["latency"]["p50_ms"] <= hot["latency"]["p95_ms"] <= hot["latency"]["p99_ms"]
    assert hot["ratios"]["limit.post"] == pytest.approx(
        hot["median"] / figures["limit.post"]["median"]
    )
    assert "http.reserve.hot_row" in run.stdout
    # Nothing that it started or wrote is left.
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
