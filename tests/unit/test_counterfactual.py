"""The fold of what would have been: against a plain simulation that never did what is left out."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ledger import Entry, Levels, Operation, OperationKind, RowChange
from engine.outcomes import InvalidCommand
from reconciler.counterfactual import Counterfactual, Target
from reconciler.fold import Fold

MERCHANT: Final = "m"
LOCATION: Final = "depot"
SKU: Final = "tea"
KEY: Final = (MERCHANT, LOCATION, SKU)
IMPORT: Final = "import:monday"
PO, DAY = "po-1", "2026-12-07"

Event = tuple[str, int, bool]
"""What happens, with how many units, and whether it is part of the import."""


@dataclass(frozen=True)
class Shelf:
    """One row, changed by the rules of the state model."""

    on_hand: int = 0
    reserved: int = 0
    safety_stock: int = 0
    deficit: int = 0

    def moved(self, units: int) -> "Shelf":
        books = self.on_hand - self.deficit + units
        return replace(self, on_hand=max(0, books), deficit=max(0, -books))

    def after(self, what: str, units: int) -> "Shelf":
        if what in ("receive", "sale"):
            return self.moved(units if what == "receive" else -units)
        if what == "count":
            return replace(self, on_hand=units, deficit=0)
        if what == "configure":
            return replace(self, safety_stock=units)
        if what == "reserve":
            return replace(self, reserved=self.reserved + units)
        shelf = replace(self, reserved=self.reserved - units)
        return shelf.moved(-units) if what == "commit" else shelf

    def levels(self) -> Levels:
        return Levels(self.on_hand, self.reserved, self.safety_stock, self.deficit)


@dataclass
class Ledger:
    """Writes entries of one operation on the one row, and keeps the row."""

    shelf: Shelf = field(default_factory=Shelf)
    to_come: int = 0
    entries: list[Entry] = field(default_factory=list)

    def book(
        self, what: str, units: int, *, reference: str = "", actor: str = "till", the_id: str = ""
    ) -> None:
        after = self.shelf.after(what, units)
        kind = OperationKind.MOVE if what in ("receive", "sale", "count") else OperationKind(what)
        details: dict[OperationKind, tuple[Any, ...]] = {
            OperationKind.MOVE: (what, units, "", reference, "", 0),
            OperationKind.CONFIGURE: (units,),
            OperationKind.RESERVE: (60_000, "order 1", (), 99_999),
            OperationKind.COMMIT: ("held", 0, ((SKU, units),)),
            OperationKind.RELEASE: ("held", 0, ""),
        }
        self.add(kind, after, details[kind], actor=actor, the_id=the_id)

    def announce(self, units: int) -> None:
        """Say how many units are still to come with the supply."""
        self.to_come = units
        detail = (PO, DAY if units else "", units, "", 0)
        self.add(OperationKind.SUPPLY, self.shelf, detail, actor="buyer")

    def arrive(self, units: int, *, reference: str = "", superseded: bool = False) -> None:
        """Book what came with the supply in a feed, whether it is expected or not."""
        why = "" if self.to_come else "supply_not_found"
        verdict = "superseded" if superseded else "applied"
        detail = ("receive", units, "", reference, "supplier", 0, superseded, 0, SKU)
        event = ("event", 0, verdict, why, "", (), PO)
        is_of_row = bool(self.to_come) or not superseded
        self.to_come = max(0, self.to_come - units)
        after = self.shelf if superseded else self.shelf.moved(units)
        self.add(OperationKind.FEED, after, (*detail, *event), actor="dock", is_of_row=is_of_row)

    def undo(self, name: str, to: Shelf) -> None:
        """Write what an undo of `name` writes."""
        self.add(OperationKind.REPAIR, to, ("row", "why", f"undo {name}", []), actor="mender")

    def add(
        self,
        kind: OperationKind,
        after: Shelf,
        detail: tuple[Any, ...],
        *,
        actor: str,
        the_id: str = "",
        is_of_row: bool = True,
    ) -> None:
        sequence = len(self.entries) + 1
        before = self.shelf.levels()
        levels = after.levels()
        deltas = Levels(
            levels.on_hand - before.on_hand,
            levels.reserved - before.reserved,
            levels.safety_stock - before.safety_stock,
            levels.deficit - before.deficit,
        )
        terms = {"supplies": {PO: [DAY, self.to_come]}} if self.to_come else None
        rows = (RowChange(SKU, sequence, levels, deltas, terms),) if is_of_row else ()
        operation = Operation(
            kind, the_id or f"op-{sequence}", MERCHANT, LOCATION, actor, "", rows, detail
        )
        self.entries.append(Entry(f"{sequence}-0", sequence, sequence, (operation,)))
        self.shelf = after


def without(entries: Sequence[Entry], target: Target) -> tuple[Counterfactual, Levels | None]:
    """Fold both ways; return the second fold and what the row would be, None where it is."""
    counterfactual = Counterfactual(target)
    fold = Fold()
    for entry in entries:
        counterfactual.observe(entry)
        fold.apply(entry)
    difference = counterfactual.difference(KEY, 0, fold.state)
    return counterfactual, None if difference is None else difference.without


events: st.SearchStrategy[list[Event]] = st.lists(
    st.tuples(
        st.sampled_from(["receive", "sale", "count", "configure", "reserve", "commit", "release"]),
        st.integers(1, 9),
        st.booleans(),
    ),
    max_size=30,
)


@given(events)
def test_the_row_is_what_it_would_have_been(events: list[Event]) -> None:
    ledger, would_be = Ledger(), Shelf()
    open_units: list[tuple[str, int]] = []
    for number, (what, drawn, is_import) in enumerate(events):
        the_id, units = f"rsv-{number}", drawn
        if what in ("commit", "release"):
            if not open_units:
                continue
            the_id, units = open_units.pop()
        if what == "reserve":
            open_units.append((the_id, units))
        left_out = is_import and what in ("receive", "sale", "count")
        ledger.book(what, units, reference=IMPORT if left_out else "", the_id=the_id)
        if not left_out:
            would_be = would_be.after(what, units)

    _, levels = without(ledger.entries, Target("monday"))

    actual = ledger.shelf.levels()
    assert (actual if levels is None else levels) == would_be.levels()
    assert levels != actual


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["arrive", "arrive", "announce", "superseded", "count", "sale"]),
            st.integers(0, 9),
            st.booleans(),
        ),
        max_size=20,
    )
)
def test_what_is_to_come_is_what_it_would_have_been(events: list[Event]) -> None:
    ledger, would_be, to_come = Ledger(), Shelf(), 0
    for what, units, is_import in events:
        reference = IMPORT if is_import else ""
        if what == "announce":
            ledger.announce(units)
            to_come = units
        elif what in ("count", "sale"):
            ledger.book(what, units)
            would_be = would_be.after(what, units)
        else:
            superseded = what == "superseded"
            ledger.arrive(units, reference=reference, superseded=superseded)
            if not is_import:
                to_come = max(0, to_come - units)
                would_be = would_be if superseded else would_be.moved(units)

    counterfactual, fold = Counterfactual(Target("monday")), Fold()
    for entry in ledger.entries:
        counterfactual.observe(entry)
        fold.apply(entry)
    found = counterfactual.difference(KEY, 0, fold.state)

    levels = ledger.shelf.levels() if found is None else found.without
    assert levels == would_be.levels()
    told = [(one.expected_on, one.quantity, one.without) for one in found.supplies] if found else []
    assert told == ([(DAY, ledger.to_come, to_come)] if ledger.to_come != to_come else [])


def test_a_later_count_ends_what_an_import_did() -> None:
    ledger = Ledger()
    ledger.book("receive", 10)
    ledger.book("count", 1_000, reference=IMPORT)
    ledger.book("sale", 2)
    assert without(ledger.entries, Target("monday"))[1] == Levels(8, 0, 0, 0)

    ledger.book("count", 7)

    assert without(ledger.entries, Target("monday"))[1] is None


def test_a_promise_that_was_made_on_imported_stock_is_named_and_stays() -> None:
    ledger = Ledger()
    ledger.book("receive", 3)
    ledger.book("receive", 100, reference=IMPORT)
    ledger.book("reserve", 2, the_id="rsv-a")
    ledger.book("reserve", 5, the_id="rsv-b")

    counterfactual, levels = without(ledger.entries, Target("monday"))

    assert levels == Levels(3, 7, 0, 0)
    assert counterfactual.unfounded == {("rsv-b", KEY): (5, 4)}


def test_units_that_left_on_the_strength_of_an_import_become_a_deficit() -> None:
    ledger = Ledger()
    ledger.book("receive", 3)
    ledger.book("receive", 100, reference=IMPORT)
    ledger.book("reserve", 5, the_id="rsv-a")
    ledger.book("commit", 5, the_id="rsv-a")

    _, levels = without(ledger.entries, Target("monday"))

    assert levels == Levels(0, 0, 0, 2)


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("monday", 1),
        (IMPORT, 1),
        ("importer", 2),
        ("the-one", 1),
        ("tuesday", 0),
        ("", None),
        ("import:", None),
    ],
)
def test_a_target_is_an_import_a_reference_an_actor_or_an_operation(
    name: str, left_out: int | None
) -> None:
    ledger = Ledger()
    ledger.book("receive", 5, the_id="the-one")
    ledger.book("receive", 5, reference=IMPORT, actor="importer")
    ledger.book("configure", 2, actor="importer")
    ledger.book("reserve", 1, actor="importer")

    if left_out is None:
        with pytest.raises(InvalidCommand):
            Target(name)
    else:
        assert without(ledger.entries, Target(name))[0].operations == left_out


def test_a_target_may_be_of_one_merchant_alone() -> None:
    ledger = Ledger()
    ledger.book("receive", 5, reference=IMPORT)

    assert without(ledger.entries, Target("monday", MERCHANT))[0].operations == 1
    assert without(ledger.entries, Target("monday", "another"))[0].operations == 0


def test_what_was_undone_is_not_undone_again() -> None:
    ledger = Ledger()
    ledger.book("receive", 10)
    ledger.book("receive", 100, reference=IMPORT)
    ledger.undo("monday", Shelf(on_hand=10))
    ledger.book("sale", 4)

    counterfactual, levels = without(ledger.entries, Target(IMPORT))

    assert levels is None
    assert counterfactual.undone == {KEY}


def test_an_import_of_which_one_operation_was_undone_loses_the_rest() -> None:
    ledger = Ledger()
    ledger.book("receive", 10)
    ledger.book("receive", 100, reference=IMPORT, the_id="first")
    ledger.book("receive", 30, reference=IMPORT, the_id="second")
    ledger.undo("first", Shelf(on_hand=40))

    assert without(ledger.entries, Target("monday"))[1] == Levels(10, 0, 0, 0)


def test_an_undo_of_more_than_the_target_leaves_nothing_of_it() -> None:
    ledger = Ledger()
    ledger.book("receive", 10)
    ledger.book("receive", 100, reference=IMPORT, actor="importer")
    ledger.book("receive", 30, reference="import:tuesday", actor="importer")
    ledger.undo("importer", Shelf(on_hand=10))

    assert without(ledger.entries, Target("monday"))[1] is None


def test_an_undo_of_something_else_is_an_effect_like_any_other() -> None:
    ledger = Ledger()
    ledger.book("receive", 100, reference=IMPORT)
    ledger.book("receive", 30, reference="import:tuesday")
    ledger.undo("tuesday", Shelf(on_hand=100))

    assert without(ledger.entries, Target("monday"))[1] == Levels(0, 0, 0, 0)
