"""A bulk import sets 2,000 rows of one merchant wrong while orders flow, end to end.

The audit flags it; the plan says what undoing it would do; the undo compensates through the ledger
while orders go on; and the account balances: what is on hand is what was received and sold.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from engine.limits import MAX_SUPPLIES
from engine.model import Line, Movement, MovementType
from engine.outcomes import HoldfastError, InsufficientOnHand, InsufficientStock
from engine.outlook import Promisable
from reconciler.counterfactual import Target
from reconciler.findings import Code, Finding
from reconciler.repair import RepairReport, Verdict, accept, apply
from reconciler.undo import undo_apply, undo_plan
from tests.damage import DamagedShop, damaged_shop, only
from tests.shop import LOCATION, Shop, new_key
from tests.stores import MakeStore, eventually

pytestmark = pytest.mark.faults

ROWS: Final = 2_000
LOCATIONS: Final = ("north", "south", "east", "west")
SKUS: Final = [f"sku-{number:04d}" for number in range(ROWS // len(LOCATIONS))]
IMPORT: Final = "import:monday.csv"
IMPORTER: Final = "key:importer"
TILL: Final = "key:till"
MENDER: Final = "operator"
BATCH: Final = 1_000
SHOPPERS: Final = 4


@pytest.fixture
async def damaged(make_store: MakeStore, tmp_path: Path) -> AsyncIterator[DamagedShop]:
    async with damaged_shop(make_store, tmp_path, partitions=4) as opened:
        yield opened


class Account:
    """What this test has received, counted and sold, by row: the books that must come out."""

    def __init__(self, damaged: DamagedShop) -> None:
        """Start with empty shelves."""
        self.damaged = damaged
        self.merchant = damaged.shop.merchant
        self.units: dict[tuple[str, str], int] = {
            (location, sku): 0 for location in LOCATIONS for sku in SKUS
        }
        self.orders = 0
        self.confirmed: list[str] = []
        self._keys = 0

    async def book(
        self, kind: MovementType, quantities: dict[tuple[str, str], int], *, reference: str = ""
    ) -> None:
        """Book one movement a row, in batches, and demand that each is taken."""
        movements = []
        for (location, sku), quantity in quantities.items():
            self._keys += 1
            movements.append(
                Movement(
                    key=f"{kind}-{self._keys}",
                    location=location,
                    type=kind,
                    sku=sku,
                    quantity=quantity,
                    reference=reference,
                )
            )
        actor = IMPORTER if reference else TILL
        for start in range(0, len(movements), BATCH):
            answers = await self.damaged.inventory.move_many(
                self.merchant, movements[start : start + BATCH], actor=actor
            )
            assert not [answer for answer in answers if isinstance(answer, HoldfastError)]

    async def ordinary_days(self, seed: int, days: int = 5) -> None:
        """Make the history that a row's habits are read from: arrivals, sales, small recounts."""
        draw = random.Random(seed)
        stocked = {key: draw.randrange(20, 60) for key in self.units}
        await self.book(MovementType.RECEIVE, stocked)
        self.units = dict(stocked)
        for _ in range(days):
            sold = {key: draw.randrange(1, 4) for key in self.units}
            await self.book(MovementType.SALE, sold)
            arrived = {key: draw.randrange(1, 5) for key in self.units}
            await self.book(MovementType.RECEIVE, arrived, reference=f"delivery-{draw.random()}")
            self.units = {
                key: units - sold[key] + arrived[key] for key, units in self.units.items()
            }
        counted = {
            key: max(0, units + draw.choice((-2, -1, 0, 0, 0, 1))) for key, units in
            self.units.items()
        }  # fmt: skip
        await self.book(MovementType.COUNT, counted, reference="import:stocktaking")
        self.units = counted

    async def shop_until(self, stop: asyncio.Event, seed: int) -> None:
        """Order, and keep, commit or give back, as shoppers do; note what left the shelf."""
        draw = random.Random(seed)
        inventory = self.damaged.inventory
        while not stop.is_set():
            location = draw.choice(LOCATIONS)
            lines = [Line(sku, 1 + draw.randrange(2)) for sku in draw.sample(SKUS, 2)]
            key = f"cart-{seed}-{self.orders}-{draw.random()}"
            try:
                held = await inventory.reserve(
                    self.merchant, location, lines, key=key, order_ref=key, actor="web"
                )
                the_id = held.reservation.id
                end = draw.randrange(4)
                if end == 0:
                    await inventory.release(self.merchant, the_id, actor="web")
                elif end == 1:
                    await inventory.confirm(self.merchant, the_id, actor="web")
                    self.confirmed.append(the_id)
                else:
                    await inventory.commit(self.merchant, the_id, actor="web")
                    for line in lines:
                        self.units[location, line.sku] -= line.quantity
            except (InsufficientStock, InsufficientOnHand):
                pass
            self.orders += 1

    async def check(self) -> None:
        """Compare every row with what was received, counted and sold."""
        wrong = []
        for (location, sku), units in self.units.items():
            row = await self.damaged.inventory.row(self.merchant, location, sku)
            if row.on_hand - row.deficit != units:
                wrong.append((location, sku, row, units))
        assert not wrong, wrong[:5]


async def test_a_bad_import_is_flagged_planned_undone_and_the_account_balances(
    damaged: DamagedShop,
) -> None:
    account = Account(damaged)
    await account.ordinary_days(seed=1)
    assert (await damaged.audit()).findings == (), "ordinary days are no anomaly"
    stop = asyncio.Event()
    target = Target(IMPORT)

    async with asyncio.TaskGroup() as group:
        for seed in range(SHOPPERS):
            group.create_task(account.shop_until(stop, seed))
        try:
            # Somebody's spreadsheet had the pack size in the wrong column.
            wrong = {key: 12 * max(1, units) + 40 for key, units in account.units.items()}
            await account.book(MovementType.COUNT, wrong, reference=IMPORT)
            await wait_for_orders(account, 50)

            flagged = only(await damaged.audit(), Code.BULK_CHANGE_IMPLAUSIBLE)
            check_flag(flagged, damaged.shop.merchant)

            plan = await undo_plan(damaged.inventory, damaged.archive, target)
            blast = plan.blast
            assert (blast.operations, blast.merchants, blast.locations) == (ROWS, 1, 4)
            assert blast.rows_touched == blast.rows_differing == len(plan.rows) == ROWS
            assert (blast.actors, blast.references) == ((IMPORTER,), (IMPORT,))
            assert (blast.units_added, blast.units_taken > ROWS * 40) == (0, True)
            await wait_for_orders(account, 50)

            undone = await undo_apply(
                damaged.inventory, damaged.archive, target, actor=MENDER, reason="pack size"
            )
        finally:
            stop.set()

    assert undone.unsettled == ()
    assert undone.rows == ROWS
    await account.check()
    report = await damaged.audit()
    assert report.findings == ()
    again = await undo_apply(
        damaged.inventory, damaged.archive, target, actor=MENDER, reason="pack size"
    )
    assert (again.rows, again.rounds, again.unsettled) == (0, (), ())
    assert (await undo_plan(damaged.inventory, damaged.archive, target)).blast.already_undone


async def test_orders_that_an_undo_leaves_without_units_are_named_beforehand(
    damaged: DamagedShop,
) -> None:
    account = Account(damaged)
    account.units = {("north", "tea"): 5, ("north", "milk"): 5}
    await account.book(MovementType.RECEIVE, account.units)
    await account.book(MovementType.COUNT, {("north", "tea"): 500}, reference=IMPORT)
    ids = []
    for number, quantity in enumerate((3, 4, 2)):
        made = await damaged.inventory.reserve(
            account.merchant,
            "north",
            [Line("tea", quantity), Line("milk", 1)],
            key=f"cart-{number}",
            order_ref=f"order-{number}",
            actor="web",
        )
        ids.append(made.reservation.id)

    blast = (await undo_plan(damaged.inventory, damaged.archive, Target(IMPORT))).blast

    assert [(one.reservation, one.missing) for one in blast.unfounded] == [(ids[1], 2), (ids[2], 2)]
    # Of nine promised there are five: the latest orders miss theirs first.
    assert [(one.reservation, one.missing) for one in blast.endangered] == [
        (ids[2], 2),
        (ids[1], 2),
    ]
    assert blast.orders_endangered == ("order-1", "order-2")
    assert (blast.units_taken, blast.rows_differing) == (495, 1)

    await undo_apply(
        damaged.inventory, damaged.archive, Target(IMPORT), actor=MENDER, reason="wrong"
    )
    row = await damaged.inventory.row(account.merchant, "north", "tea")
    assert (row.on_hand, row.reserved, row.shortfall) == (5, 9, 4)
    assert (await damaged.audit()).findings == ()


async def test_an_undo_reaches_into_the_archive(damaged: DamagedShop) -> None:
    account = Account(damaged)
    account.units = {("north", "tea"): 5, ("south", "tea"): 6}
    await account.book(MovementType.RECEIVE, account.units)
    wrong = dict.fromkeys(account.units, 500)
    await account.book(MovementType.COUNT, wrong, reference=IMPORT)
    await damaged.archiver.archive_all(flush=True)
    await account.book(MovementType.SALE, dict.fromkeys(account.units, 2))
    account.units = {key: units - 2 for key, units in account.units.items()}

    undone = await undo_apply(
        damaged.inventory, damaged.archive, Target("monday.csv"), actor=MENDER, reason="wrong"
    )

    assert undone.rows == 2
    await account.check()


async def import_arrival(shop: Shop, sku: str, supply: str, units: int) -> None:
    movement = Movement(
        key=new_key(),
        location=LOCATION,
        type=MovementType.RECEIVE,
        sku=sku,
        quantity=units,
        reference=IMPORT,
        supply=supply,
    )
    await shop.inventory.move(shop.merchant, movement, actor="importer")


async def test_what_an_import_took_off_supplies_is_to_come_again(damaged: DamagedShop) -> None:
    shop = damaged.shop
    await shop.receive("tea", 1)
    await shop.expect("tea", "po-1", "2026-12-07", 10)
    await shop.expect("mug", "po-1", "2026-12-07", 5)
    await shop.expect("mug", "po-2", "2026-12-11", 5)
    held = (await shop.reserve([("tea", 8)], by="2026-12-07")).reservation
    arrivals = [("tea", "po-1", 12), ("mug", "po-1", 3), ("mug", "po-2", 2)]
    for sku, supply, units in arrivals:
        await import_arrival(shop, sku, supply, units)
    # What was said since is right, whatever the import did.
    await shop.arrive("mug", "po-1", 1)
    await shop.expect("mug", "po-2", "2026-12-12", 4)
    await shop.move(MovementType.COUNT, "mug", 1)
    assert (await shop.inventory.reservation(shop.merchant, held.id)).backordered == ()

    planned = await undo_plan(damaged.inventory, damaged.archive, Target(IMPORT))
    supplies = {
        row.sku: [(one.supply, one.expected_on, one.quantity, one.without) for one in row.supplies]
        for row in planned.rows
    }
    assert supplies == {
        "tea": [("po-1", "2026-12-07", 0, 10)],
        "mug": [("po-1", "2026-12-07", 1, 4)],
    }
    assert (planned.blast.units_taken, planned.blast.units_to_come) == (12, 13)

    for rows in (2, 0):
        undone = await undo_apply(
            damaged.inventory, damaged.archive, Target(IMPORT), actor=MENDER, reason="twice"
        )
        assert (undone.rows, undone.unsettled) == (rows, ())
    tea, mug = await shop.row("tea"), await shop.row("mug")
    assert (tea.on_hand, tea.reserved, tea.incoming) == (1, 8, 10)
    assert (mug.on_hand, mug.incoming) == (1, 8)
    assert tea.available_to_promise == (Promisable("2026-12-07", 3),)
    await shop.audit()
    assert (await damaged.audit()).findings == ()
    # What is to come again comes again.
    await shop.arrive("tea", "po-1", 10)
    assert (await shop.row("tea")).available == 3


async def test_a_row_whose_supplies_changed_in_between_is_worked_out_again(
    damaged: DamagedShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = damaged.shop
    await shop.expect("tea", "po-1", "2026-12-07", 10)
    await import_arrival(shop, "tea", "po-1", 10)
    # Its levels are right again: only what is to come is not.
    await shop.move(MovementType.COUNT, "tea", 1)

    async def apply_late(*args: Any, **options: Any) -> RepairReport:
        if (await shop.row("tea")).incoming == 0:
            await shop.expect("tea", "po-2", "2026-12-09", 3)
        return await apply(*args, **options)

    monkeypatch.setattr("reconciler.undo.apply", apply_late)
    undone = await undo_apply(
        damaged.inventory, damaged.archive, Target(IMPORT), actor=MENDER, reason="wrong"
    )

    verdicts = [one.verdict for report in undone.rounds for one in report.applied]
    assert verdicts == [Verdict.STALE, Verdict.DONE]
    assert (undone.rows, undone.units_to_come, undone.unsettled) == (1, 10, ())
    assert (await shop.row("tea")).incoming == 13
    assert (await damaged.audit()).findings == ()


async def test_a_row_that_is_split_in_between_gets_no_supplies(
    damaged: DamagedShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = damaged.shop
    await shop.expect("tea", "po", "2026-12-07", 10)
    await import_arrival(shop, "tea", "po", 10)
    name = (shop.merchant, LOCATION, "tea")

    async def apply_late(*args: Any, **options: Any) -> RepairReport:
        await damaged.inventory.splits.change(name, 2, actor=MENDER)
        return await apply(*args, **options)

    monkeypatch.setattr("reconciler.undo.apply", apply_late)
    undone = await undo_apply(
        damaged.inventory, damaged.archive, Target(IMPORT), actor=MENDER, reason="wrong"
    )
    assert (undone.rows, len(undone.unsettled)) == (0, 1)
    assert (await shop.row("tea")).incoming == 0


async def test_rows_that_may_not_expect_what_they_would_are_named_and_left(
    damaged: DamagedShop,
) -> None:
    shop = damaged.shop
    await shop.receive("split", 100)
    for sku in ("split", "full"):
        await shop.expect(sku, "po", "2026-12-07", 10)
        await import_arrival(shop, sku, "po", 10)
    await damaged.inventory.splits.change((shop.merchant, LOCATION, "split"), 2, actor=MENDER)
    for number in range(MAX_SUPPLIES):
        await shop.expect("full", f"po-{number}", "2026-12-08", 1)
    before = [await shop.row(sku) for sku in ("split", "full")]

    planned = await undo_plan(damaged.inventory, damaged.archive, Target(IMPORT))
    undone = await undo_apply(
        damaged.inventory, damaged.archive, Target(IMPORT), actor=MENDER, reason="wrong"
    )

    assert [await shop.row(sku) for sku in ("split", "full")] == before
    assert (undone.rows, undone.unsettled) == (0, planned.rows)
    obstacles = {row.sku: row.obstacle for row in planned.rows}
    assert "split" in obstacles["split"]
    assert str(MAX_SUPPLIES + 1) in obstacles["full"]

    # Once they may, the same undo does them.
    await damaged.inventory.splits.change((shop.merchant, LOCATION, "split"), 1, actor=MENDER)
    await shop.cancel_supply("full", "po-0")
    settled = False
    while not settled:
        undone = await undo_apply(
            damaged.inventory, damaged.archive, Target(IMPORT), actor=MENDER, reason="wrong"
        )
        settled = not undone.unsettled
    split, full = await shop.row("split"), await shop.row("full")
    assert (split.on_hand, split.incoming) == (100, 10)
    assert (full.on_hand, full.incoming) == (0, MAX_SUPPLIES - 1 + 10)
    assert (await damaged.audit()).findings == ()


async def test_goods_that_came_without_the_name_of_their_supply_are_pointed_out(
    damaged: DamagedShop,
) -> None:
    shop = damaged.shop
    for sku in ("tea", "mug"):
        await shop.receive(sku, 3)
        await shop.expect(sku, "po", "2026-12-07", 10)
        await import_arrival(shop, sku, "po", 10)
    # The goods come, but their supply is over: they are booked without it.
    await shop.receive("tea", 9)
    await shop.move(MovementType.RETURN, "mug", 1)
    await shop.expect("mug", "po-2", "2026-12-07", 2)
    await shop.arrive("mug", "po-2", 2)
    planned = await undo_plan(damaged.inventory, damaged.archive, Target(IMPORT))
    assert {row.sku: (row.to_come, row.unnamed) for row in planned.rows} == {
        "tea": (10, 9),
        "mug": (10, 0),
    }


async def test_a_row_that_was_edited_by_hand_waits_for_its_repair(damaged: DamagedShop) -> None:
    account = Account(damaged)
    account.units = {("north", "tea"): 5}
    await account.book(MovementType.RECEIVE, account.units)
    await account.book(MovementType.COUNT, {("north", "tea"): 500}, reference=IMPORT)
    await damaged.run("HINCRBY", damaged.stock_key("tea", location="north"), "on_hand", 1)
    target = Target(IMPORT)

    first = await undo_apply(
        damaged.inventory, damaged.archive, target, actor=MENDER, reason="wrong"
    )
    await damaged.mend()
    second = await undo_apply(
        damaged.inventory, damaged.archive, target, actor=MENDER, reason="wrong"
    )

    assert (first.rows, len(first.unsettled)) == (0, 1)
    assert (second.rows, len(second.unsettled)) == (1, 0)
    await account.check()


async def test_an_anomaly_that_was_accepted_is_not_reported_again(damaged: DamagedShop) -> None:
    account = Account(damaged)
    await account.ordinary_days(seed=2, days=2)
    moved = {key: 12 * max(1, units) + 40 for key, units in account.units.items()}
    await account.book(MovementType.COUNT, moved, reference=IMPORT)
    only(await damaged.audit(), Code.BULK_CHANGE_IMPLAUSIBLE)

    await accept(
        damaged.inventory,
        merchant=account.merchant,
        name=IMPORT,
        actor=MENDER,
        reason="the new warehouse opened",
    )

    assert (await damaged.audit()).findings == ()


def check_flag(flagged: Finding, merchant: str) -> None:
    """Check that the anomaly names what it takes to undo it."""
    change = flagged.change
    assert change is not None
    assert (flagged.merchant, change.reference, change.actor) == (merchant, IMPORT, IMPORTER)
    assert (change.changes, change.judged) == (ROWS, ROWS)
    assert change.outside > 0.9 * ROWS
    assert not flagged.repairable
    assert IMPORT in flagged.remedy


async def wait_for_orders(account: Account, count: int) -> None:
    """Wait until so many more orders were placed."""
    wanted = account.orders + count

    async def placed() -> bool:
        return account.orders >= wanted

    await eventually(placed, within_seconds=60)
