"""Arrivals that named a supply which was not expected, as one partition's entries tell of them."""

from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest

from engine.ledger import Entry, Levels, Operation, OperationKind, RowChange
from reconciler.unknown_supplies import SupplyWatch
from tests.steps import steps

NOBODY = Levels(0, 0, 0, 0)


class Watched:
    """A watch, and the entries of the rows that it looks at."""

    def __init__(self) -> None:
        self.watch = SupplyWatch()
        self._numbers = count(1)

    @property
    def open(self) -> list[tuple[str, str]]:
        return [(one.row[2], one.supply) for one in self.watch.open]

    def announce(self, sku: str, supply: str, expected: Sequence[str]) -> None:
        self._tell(OperationKind.SUPPLY, sku, expected, (supply, "2026-12-07", 5, "", 0))

    def arrive(self, sku: str, supply: str, expected: Sequence[str]) -> None:
        """Have units come with a supply; `expected` are those that the row expects then."""
        why = "" if supply.startswith("po-") else "supply_not_found"
        detail = ("receive", 3, "", "", "till", 1, False, 0, sku, "event", 0, "applied", why)
        self._tell(OperationKind.FEED, sku, expected, (*detail, "", (), supply))

    def _tell(
        self, kind: OperationKind, sku: str, expected: Sequence[str], detail: tuple[Any, ...]
    ) -> None:
        number = next(self._numbers)
        terms = {"supplies": {name: ["2026-12-07", 5] for name in expected}} if expected else None
        change = RowChange(sku, number, NOBODY, NOBODY, terms)
        operation = Operation(kind, f"op-{number}", "acme", "leeds", "me", "", (change,), detail)
        self.watch.observe(Entry(f"{number}-0", number, number, (operation,)))


def test_they_are_open_in_their_order_until_somebody_sees_to_them() -> None:
    watched = Watched()
    for sku, supply in (("tea", "o-1"), ("mug", "o-1"), ("tea", "o-2")):
        watched.arrive(sku, supply, ["po-1", "po-2"])
    assert watched.open == [("tea", "o-1"), ("mug", "o-1"), ("tea", "o-2")]
    watched.announce("tea", "po-3", ["po-1", "po-2", "po-3"])
    assert len(watched.open) == 3
    watched.announce("mug", "po-1", ["po-1", "po-2"])
    assert watched.open == [("tea", "o-1"), ("tea", "o-2")]
    watched.arrive("tea", "po-1", ["po-3"])
    assert watched.open == []
    watched.arrive("cup", "o-1", [])
    assert watched.open == []


def test_one_more_has_nobody_look_at_all_that_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 400
    monkeypatch.setattr("reconciler.unknown_supplies.MAX_ARRIVALS", most)
    watched = Watched()
    for number in range(most):
        watched.arrive(f"sku-{number}", "o-1", ["po-1"])
    assert steps(lambda: watched.arrive("tea", "o-1", ["po-1"])) < most / 4
    assert steps(lambda: watched.announce("tea", "po-1", ["po-1"])) < most / 4
    assert len(watched.open) == most
    # What has come makes room for one more, and for one only.
    watched.arrive("sku-7", "po-1", [])
    watched.arrive("tea", "o-1", ["po-1"])
    watched.arrive("mug", "o-1", ["po-1"])
    assert watched.open[-1] == ("tea", "o-1")
    assert len(watched.open) == most
