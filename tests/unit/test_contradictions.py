"""Ledgers that contradict themselves, forged entry by entry."""

from typing import Any, Final

import pytest

from engine.ledger import Entry, Levels, Operation, OperationKind, RowChange
from engine.limits import MAX_TOTAL, RETENTION_MS
from reconciler.contradictions import Contradictions
from reconciler.findings import Code, Invariant
from reconciler.fold import Fold

MERCHANT: Final = "m"
LOCATION: Final = "depot"
SKU: Final = "tea"
KEY: Final = (MERCHANT, LOCATION, SKU)
HOLD: Final = "rsv_0_" + "a" * 24
START_MS: Final = 1_700_000_000_000

Four = tuple[int, int, int, int]


class Forger:
    """Adds entries, each checked before it is folded."""

    def __init__(self) -> None:
        self.notes = Contradictions()
        self.fold = Fold()
        self._sequence = 1

    def add(
        self,
        kind: OperationKind,
        detail: tuple[Any, ...],
        *rows: tuple[int, Four, Four],
        the_id: str = "",
        sequence: int = 0,
        at_ms: int = START_MS,
    ) -> None:
        """Add one operation; `rows` are (version, levels, deltas) of the one SKU."""
        sequence = sequence or self._sequence
        self._sequence = sequence + 1
        changes = tuple(
            RowChange(SKU, version, Levels(*levels), Levels(*deltas))
            for version, levels, deltas in rows
        )
        operation = Operation(
            kind, the_id or f"op-{sequence}", MERCHANT, LOCATION, "till", "", changes, detail
        )
        entry = Entry(f"{at_ms}-{sequence}", sequence, at_ms, (operation,))
        self.notes.check(entry, self.fold.state)
        self.fold.apply(entry)

    def move(self, what: str, units: int, version: int, levels: Four, deltas: Four) -> None:
        """Add a movement."""
        detail = (what, units, "", "", "", 0)
        self.add(OperationKind.MOVE, detail, (version, levels, deltas))

    def codes(self) -> dict[Code, Invariant]:
        """Return what is noted, and as a breach of what."""
        found = {note.code: Invariant.DENSE for note in self.notes.ranges()}
        lists = [row.notes for row in self.notes.rows.values()]
        for notes in [*lists, *self.notes.reservations.values()]:
            found |= {note.code: note.invariant for note in self.notes.unsettled(notes)}
        return found

    def drift(self) -> tuple[int, int]:
        """Return the row's drift of books and of safety stock."""
        row = self.notes.rows[KEY]
        return row.books_drift, row.safety_stock_drift


@pytest.fixture
def forger() -> Forger:
    made = Forger()
    made.move("receive", 10, 1, (10, 0, 0, 0), (10, 0, 0, 0))
    return made


def reserve(forger: Forger, version: int, before: Four, units: int) -> None:
    on_hand, reserved, safety_stock, deficit = before
    forger.add(
        OperationKind.RESERVE,
        (60_000, START_MS + 60_000, "", ()),
        (version, (on_hand, reserved + units, safety_stock, deficit), (0, units, 0, 0)),
        the_id=HOLD,
    )


def test_a_ledger_in_order_has_no_contradictions(forger: Forger) -> None:
    forger.move("sale", 12, 2, (0, 0, 0, 2), (-10, 0, 0, 2))
    forger.move("count", 30, 3, (30, 0, 0, 0), (30, 0, 0, -2))
    forger.add(OperationKind.CONFIGURE, (4,), (4, (30, 0, 4, 0), (0, 0, 4, 0)))
    reserve(forger, 5, (30, 0, 4, 0), 3)
    forger.add(OperationKind.CONFIRM, ("order", 0), the_id=HOLD)
    forger.add(
        OperationKind.COMMIT,
        ("confirmed", 0, ((SKU, 2),)),
        (6, (28, 0, 4, 0), (-2, -3, 0, 0)),
        the_id=HOLD,
    )

    assert forger.codes() == {}


def test_a_jump_between_two_operations_is_a_drift(forger: Forger) -> None:
    forger.move("receive", 1, 2, (16, 0, 3, 0), (1, 0, 0, 0))

    assert forger.codes() == {Code.LEVELS_JUMPED: Invariant.FOLD}
    assert forger.drift() == (5, 3)


def test_a_count_and_a_setting_end_a_drift(forger: Forger) -> None:
    forger.move("receive", 1, 2, (16, 0, 3, 0), (1, 0, 0, 0))
    forger.move("count", 12, 3, (12, 0, 3, 0), (-4, 0, 0, 0))
    forger.add(OperationKind.CONFIGURE, (1,), (4, (12, 0, 1, 0), (0, 0, -2, 0)))

    assert forger.drift() == (0, 0)
    assert Code.LEVELS_JUMPED in forger.codes()


def test_skipped_versions_are_lost_operations_only_where_operations_are_missing(
    forger: Forger,
) -> None:
    forger.move("receive", 1, 4, (16, 0, 0, 0), (1, 0, 0, 0))
    assert forger.codes() == {
        Code.VERSIONS_SKIPPED: Invariant.DENSE,
        Code.LEVELS_JUMPED: Invariant.FOLD,
    }
    assert forger.drift() == (5, 0)

    lossy = Forger()
    lossy.move("receive", 10, 1, (10, 0, 0, 0), (10, 0, 0, 0))
    lossy.add(
        OperationKind.MOVE,
        ("receive", 1, "", "", "", 0),
        (4, (16, 0, 0, 0), (1, 0, 0, 0)),
        sequence=4,
    )
    assert lossy.codes() == {
        Code.ENTRIES_MISSING: Invariant.DENSE,
        Code.VERSIONS_SKIPPED: Invariant.DENSE,
    }
    assert lossy.drift() == (0, 0)
    assert lossy.notes.rows[KEY].versions_skipped


def test_a_version_that_falls_is_noted(forger: Forger) -> None:
    forger.move("receive", 5, 1, (5, 0, 0, 0), (5, 0, 0, 0))

    assert Code.VERSION_FELL in forger.codes()
    assert forger.drift() == (-10, 0)


@pytest.mark.parametrize(
    ("what", "units", "levels", "deltas", "drift"),
    [
        ("receive", 5, (20, 0, 0, 0), (10, 0, 0, 0), 5),
        ("sale", 5, (10, 0, 0, 0), (0, 0, 0, 0), 5),
        ("count", 5, (7, 0, 0, 0), (-3, 0, 0, 0), 2),
    ],
)
def test_an_effect_that_is_not_what_the_operation_says(
    forger: Forger, what: str, units: int, levels: Four, deltas: Four, drift: int
) -> None:
    forger.move(what, units, 2, levels, deltas)

    assert forger.codes() == {Code.EFFECT_IS_NOT_WHAT_IS_SAID: Invariant.CONSERVATION}
    assert forger.drift() == (drift, 0)


def test_an_ending_that_frees_other_units_than_were_held(forger: Forger) -> None:
    reserve(forger, 2, (10, 0, 0, 0), 3)
    forger.add(
        OperationKind.RELEASE, ("held", 0, ""), (3, (10, 1, 0, 0), (0, -2, 0, 0)), the_id=HOLD
    )

    assert forger.codes() == {Code.EFFECT_IS_NOT_WHAT_IS_SAID: Invariant.HOLDS_SUM}


def test_a_promise_past_what_is_available(forger: Forger) -> None:
    forger.add(OperationKind.CONFIGURE, (8,), (2, (10, 0, 8, 0), (0, 0, 8, 0)))
    reserve(forger, 3, (10, 0, 8, 0), 3)

    assert forger.codes() == {Code.PROMISED_PAST_AVAILABLE: Invariant.NO_OVERSELL}


@pytest.mark.parametrize("on_hand", [-1, MAX_TOTAL + 1])
def test_levels_out_of_range(forger: Forger, on_hand: int) -> None:
    forger.move("receive", on_hand - 10, 2, (on_hand, 0, 0, 0), (on_hand - 10, 0, 0, 0))

    assert forger.codes() == {Code.LEVELS_OUT_OF_RANGE: Invariant.INTEGER}


def test_an_effect_that_was_had_twice_is_a_drift_while_its_answer_is_kept(forger: Forger) -> None:
    detail = ("receive", 5, "", "", "", 0)
    for version, at_ms in ((2, START_MS), (3, START_MS + RETENTION_MS // 2)):
        levels = (5 * version, 0, 0, 0)
        forger.add(
            OperationKind.MOVE, detail, (version, levels, (5, 0, 0, 0)), the_id="same", at_ms=at_ms
        )
    # The row's levels are off by the first five that it had.
    assert Code.APPLIED_TWICE in forger.codes()

    later = Forger()
    for version, at_ms in ((1, START_MS), (2, START_MS + RETENTION_MS)):
        levels = (5 * version, 0, 0, 0)
        later.add(
            OperationKind.MOVE, detail, (version, levels, (5, 0, 0, 0)), the_id="same", at_ms=at_ms
        )
    assert later.codes() == {}


def test_a_second_ending_is_noted_and_its_units_are_a_drift(forger: Forger) -> None:
    reserve(forger, 2, (10, 0, 0, 0), 3)
    forger.add(
        OperationKind.RELEASE, ("held", 0, ""), (3, (10, 0, 0, 0), (0, -3, 0, 0)), the_id=HOLD
    )
    forger.add(
        OperationKind.COMMIT,
        ("held", 0, ((SKU, 3),)),
        (4, (7, 0, 0, 0), (-3, -3, 0, 0)),
        the_id=HOLD,
    )

    assert forger.codes()[Code.ENDED_TWICE] is Invariant.ONE_ENDING
    assert forger.drift()[0] == -3


def test_an_ending_of_what_was_never_reserved(forger: Forger) -> None:
    forger.add(OperationKind.CONFIRM, ("", 0), the_id=HOLD)

    assert forger.codes() == {Code.NEVER_RESERVED: Invariant.ONE_ENDING}


def test_gaps_overlaps_and_a_falling_clock(forger: Forger) -> None:
    forger.add(OperationKind.REBUILD, (), sequence=5)
    forger.add(OperationKind.REBUILD, (), sequence=3)
    forger.add(OperationKind.REBUILD, (), sequence=6, at_ms=START_MS - 1)

    ranges = {note.code: (note.first, note.last) for note in forger.notes.ranges()}
    assert ranges == {
        Code.ENTRIES_MISSING: (2, 4),
        Code.ENTRIES_OVERLAP: (3, 3),
        Code.CLOCK_FELL: (6, 6),
    }


def test_repairs_settle_what_was_noted_before_them_and_nothing_after(forger: Forger) -> None:
    jump: tuple[str, int, int, Four, Four] = ("receive", 1, 2, (16, 0, 0, 0), (1, 0, 0, 0))
    forger.move(*jump)
    forger.add(OperationKind.CONFIRM, ("", 0), the_id=HOLD)
    forger.add(
        OperationKind.CONFIGURE, (0,), (3, (16, 0, 0, 0), (0, 0, 0, 0)), sequence=9, the_id="c"
    )
    assert len(forger.codes()) == 3

    row = (4, (11, 0, 0, 0), (-5, 0, 0, 0))
    forger.add(OperationKind.REPAIR, ("row", "why", "levels_jumped", []), row)
    forger.add(OperationKind.REPAIR, ("gap", "why", "entries_missing", 4, 8))
    forger.add(OperationKind.REPAIR, ("known", "why", "never_reserved", 3, 3))
    assert forger.codes() == {}

    forger.move("receive", 1, 5, (99, 0, 0, 0), (1, 0, 0, 0))
    assert forger.codes() == {Code.LEVELS_JUMPED: Invariant.FOLD}
