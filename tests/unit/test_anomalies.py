"""Which changes are implausible, and that ordinary days are not."""

import random
from typing import Any, Final

import pytest

from engine.ledger import Entry, Levels, Operation, OperationKind, RowChange
from reconciler.anomalies import ChangeWatch, implausible_changes
from reconciler.findings import Code, Finding

MERCHANT: Final = "m"
MINUTE_MS: Final = 60_000
DAY_MS: Final = 24 * 60 * MINUTE_MS
START_MS: Final = 1_700_000_000_000
SKUS: Final = [f"sku-{number}" for number in range(300)]


class Days:
    """A shop whose ledger one watch sees, a movement an entry."""

    def __init__(self, seed: int = 1) -> None:
        self.draw = random.Random(seed)
        self.now_ms = START_MS
        self.units: dict[str, int] = {}
        self.watches = [ChangeWatch(), ChangeWatch()]
        self._sequence = 0

    def move(self, what: str, sku: str, units: int, reference: str = "", actor: str = "t") -> None:
        before = self.units.get(sku, 0)
        after = units if what == "count" else before + (units if what != "sale" else -units)
        self.units[sku] = after
        detail = (what, units, "", reference, "", 0)
        self._add(OperationKind.MOVE, sku, after, after - before, detail, actor)

    def settle(self, sku: str, finding: str) -> None:
        self._add(OperationKind.REPAIR, sku, self.units[sku], 0, ("row", "why", finding, []), "a")

    def _add(
        self,
        kind: OperationKind,
        sku: str,
        after: int,
        delta: int,
        detail: tuple[Any, ...],
        actor: str,
    ) -> None:
        self._sequence += 1
        change = RowChange(sku, 1, Levels(after, 0, 0, 0), Levels(delta, 0, 0, 0))
        operation = Operation(
            kind, str(self._sequence), MERCHANT, "l", actor, "", (change,), detail
        )
        entry = Entry(f"{self.now_ms}-{self._sequence}", self._sequence, self.now_ms, (operation,))
        # Two partitions, each with its own watch, as an audit has them.
        self.watches[hash(sku) % 2].observe(entry)

    def ordinary(self, days: int) -> None:
        """Sell all day, restock to par in the morning, recount some shelves at night."""
        par = {sku: 20 + number % 80 for number, sku in enumerate(SKUS)}
        for day in range(days):
            self.now_ms += DAY_MS // 2
            for sku in SKUS:
                short = par[sku] - self.units.get(sku, 0)
                if short > par[sku] // 2:
                    self.move("receive", sku, short, f"delivery-{day}", "dock")
            self.now_ms += DAY_MS // 2
            for sku in SKUS:
                rate = par[sku] // 4
                # A few things sell out on some days.
                sold = self.units[sku] if self.draw.random() < 0.05 else self.draw.randrange(rate)
                if sold:
                    self.move("sale", sku, min(sold, self.units[sku]) or 1)
            for sku in self.draw.sample(SKUS, 60):
                counted = max(0, self.units[sku] + self.draw.choice((-3, -1, 0, 0, 1, 2)))
                self.move("count", sku, counted, f"cycle-count-{day}", "clerk")

    def findings(self) -> list[Finding]:
        return implausible_changes(self.watches, self.now_ms)


@pytest.fixture
def days() -> Days:
    made = Days()
    made.ordinary(14)
    return made


@pytest.mark.parametrize("seed", range(5))
def test_ordinary_weeks_raise_no_alarm(seed: int) -> None:
    made = Days(seed)
    for _ in range(4):
        made.ordinary(7)
        assert made.findings() == []


def test_the_first_stock_of_a_shop_raises_no_alarm() -> None:
    made = Days()
    for sku in SKUS:
        made.move("count", sku, 1_000, "import:opening")
    for sku in SKUS:
        made.move("count", sku, 37, "import:opening again")

    assert made.findings() == []


@pytest.mark.parametrize("wrong", [lambda units: 12 * units + 200, lambda units: 100_000])
def test_an_import_that_sets_most_rows_wrong_is_named(days: Days, wrong: Any) -> None:
    for sku in SKUS:
        days.move("count", sku, wrong(days.units[sku]), "import:bad.csv", "importer")

    (finding,) = days.findings()

    assert finding.code is Code.BULK_CHANGE_IMPLAUSIBLE
    assert finding.change is not None
    assert (finding.change.reference, finding.change.actor) == ("import:bad.csv", "importer")
    assert (finding.change.changes, finding.change.judged) == (len(SKUS), len(SKUS))
    assert finding.change.factor > 3
    assert len(finding.change.examples) > 0


def test_without_a_reference_the_actor_is_named(days: Days) -> None:
    for sku in SKUS:
        days.move("adjust", sku, 5_000, "", "script")

    (finding,) = days.findings()

    assert finding.change is not None
    assert (finding.change.reference, finding.change.actor) == ("", "script")


def test_arrivals_are_judged_by_past_arrivals(days: Days) -> None:
    for sku in SKUS:
        days.move("receive", sku, 20_000, "delivery-typo", "dock")

    (finding,) = days.findings()

    assert finding.change is not None
    assert finding.change.reference == "delivery-typo"


def test_one_extreme_row_is_news_by_itself_and_a_large_one_is_not(days: Days) -> None:
    days.ordinary(14)
    days.move("count", SKUS[0], 3 * max(days.units[SKUS[0]], 100))
    assert days.findings() == []

    days.move("count", SKUS[1], 1_000_000)

    (finding,) = days.findings()
    assert (finding.code, finding.sku) == (Code.CHANGE_IMPLAUSIBLE, SKUS[1])


def test_a_handful_of_odd_rows_in_a_large_count_is_no_bulk(days: Days) -> None:
    for number, sku in enumerate(SKUS):
        units = days.units[sku] if number % 10 else 300
        days.move("count", sku, units, "import:stocktaking")

    assert days.findings() == []


def test_an_anomaly_is_news_for_a_week(days: Days) -> None:
    for sku in SKUS:
        days.move("count", sku, 100_000, "import:bad.csv")
    days.now_ms += 6 * DAY_MS
    assert len(days.findings()) == 1

    days.now_ms += 2 * DAY_MS

    assert days.findings() == []


@pytest.mark.parametrize("finding", ["undo bad.csv", "accept import:bad.csv", "accept importer"])
def test_what_was_undone_or_accepted_is_settled(days: Days, finding: str) -> None:
    for sku in SKUS:
        days.move("count", sku, 100_000, "import:bad.csv", "importer")

    days.settle(SKUS[0], finding)

    assert days.findings() == []
