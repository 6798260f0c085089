"""The fold of a ledger that is made by hand: what it says things are, and what it notices."""

import pytest

from engine.ledger import Levels, OperationKind, RowChange
from engine.limits import RETENTION_MS
from engine.model import Line, ReservationState
from reconciler.fold import Fold, FoldedReservation, FoldedSeen, Gap, PartitionState
from tests.ledgers import LOCATION, MERCHANT, START_MS, TTL_MS, Book


def fold_of(book: Book) -> Fold:
    fold = Fold()
    fold.apply_all(entry.decode() for entry in book.entries)
    return fold


def clean(book: Book) -> PartitionState:
    fold = fold_of(book)
    assert (fold.disagreements, fold.gaps) == ([], [])
    return fold.state


def reservation_of(book: Book, the_id: str) -> FoldedReservation:
    return clean(book).reservations[the_id]


def test_rows_are_what_their_last_change_says() -> None:
    book = Book()
    book.receive("tea", 10)
    book.receive("mug", 3)
    book.configure("tea", 2)
    book.reserve([("tea", 4), ("mug", 1)])
    state = clean(book)
    assert state.rows[MERCHANT, LOCATION, "tea"].levels() == (10, 4, 2, 0, 0)
    assert state.rows[MERCHANT, LOCATION, "mug"].levels() == (3, 1, 0, 0, 0)
    assert state.rows[MERCHANT, LOCATION, "tea"].version == 3
    assert state.rows[MERCHANT, LOCATION, "tea"].sequence == 4
    assert (state.sequence, state.at_ms) == (4, START_MS)


def test_a_reserve_makes_a_hold_with_all_that_a_replay_answers() -> None:
    book = Book()
    book.receive("tea", 10)
    the_id = book.reserve([("tea", 4)])
    found = reservation_of(book, the_id)
    assert found.is_open
    assert (found.state, found.expires_at_ms) == (ReservationState.HELD, START_MS + TTL_MS)
    assert (found.body.lines, found.body.missing) == ((Line("tea", 4),), ())
    assert (found.body.order_ref, found.body.fingerprint) == ("order", "print")
    assert (found.body.created_at_ms, found.body.ttl_ms) == (START_MS, TTL_MS)


@pytest.mark.parametrize(
    ("ending", "state", "picked"),
    [
        ("commit", ReservationState.COMMITTED, (Line("tea", 4),)),
        ("release", ReservationState.RELEASED, ()),
        ("expire", ReservationState.EXPIRED, ()),
    ],
)
def test_an_ending_closes_the_hold(
    ending: str, state: ReservationState, picked: tuple[Line, ...]
) -> None:
    book = Book()
    book.receive("tea", 10)
    the_id = book.reserve([("tea", 4)])
    book.at_ms += 5
    getattr(book, ending)(the_id)
    found = reservation_of(book, the_id)
    assert not found.is_open
    assert (found.state, found.ended_at_ms, found.picked) == (state, START_MS + 5, picked)
    on_hand = 6 if ending == "commit" else 10
    assert clean(book).rows[MERCHANT, LOCATION, "tea"].levels() == (on_hand, 0, 0, 0, 0)


def test_a_confirm_takes_the_time_limit_away_and_names_the_order() -> None:
    book = Book()
    book.receive("tea", 10)
    the_id = book.reserve()
    book.at_ms += 7
    book.confirm(the_id)
    found = reservation_of(book, the_id)
    assert (found.state, found.expires_at_ms) == (ReservationState.CONFIRMED, 0)
    assert (found.confirmed_at_ms, found.order_ref) == (START_MS + 7, "order 2")


def test_commands_without_a_reservation_leave_a_record_of_their_answer() -> None:
    book = Book()
    moved = book.receive("tea", 10)
    configured = book.configure("tea", 2)
    extended_until_ms = book.extend(book.reserve(), operation="e")
    seen = clean(book).seen
    print_ = f"print {moved}"
    assert seen[moved] == FoldedSeen(
        MERCHANT, LOCATION, print_, (START_MS, 1, 1, 10, 0, 0, 0, 10), START_MS
    )
    assert seen[configured].reply == (START_MS, 2, 2, 10, 0, 2, 0)
    assert seen["e"].reply == (extended_until_ms, "tea", 1)


def test_an_entry_that_comes_twice_changes_nothing() -> None:
    book = Book()
    book.trade(3)
    once, twice = fold_of(book), fold_of(book)
    twice.apply_all(entry.decode() for entry in book.entries)
    assert twice.state == once.state
    assert twice.disagreements == []


def test_an_entry_that_overlaps_is_noticed() -> None:
    book = Book()
    with book.grouped():
        book.receive()
        book.receive()
    fold = Fold(PartitionState(sequence=1))
    fold.apply(book.entries[0].decode())
    assert fold.disagreements[0].invariant == "Dense"
    assert fold.state.sequence == 2


def test_a_gap_is_noticed_until_a_repair_says_that_it_is_known() -> None:
    book = Book()
    book.receive()
    book.skip(3)
    book.receive("mug")
    assert fold_of(book).gaps == [Gap(2, 4)]
    book.acknowledge_gap(2, 4)
    assert fold_of(book).gaps == []
    book.skip()
    book.receive("hat")
    assert fold_of(book).gaps == [Gap(7, 7)]


def test_a_version_that_does_not_follow_is_noticed() -> None:
    book = Book()
    book.receive()
    change = RowChange("tea", 3, Levels(12, 0, 0, 0), Levels(2, 0, 0, 0))
    book.write(OperationKind.MOVE, "x", (change,), ("receive", 2, "", "", "", 0))
    (found,) = fold_of(book).disagreements
    assert (found.invariant, found.sequence) == ("Dense", 2)
    assert found.row == (MERCHANT, LOCATION, "tea")


@pytest.mark.parametrize("column", range(5))
def test_a_result_that_its_deltas_do_not_make_is_noticed(column: int) -> None:
    book = Book()
    book.receive()
    levels = [10, 0, 0, 0, 0]
    levels[column] += 1
    change = RowChange("tea", 2, Levels(*levels), Levels(0, 0, 0, 0))
    book.write(OperationKind.MOVE, "x", (change,), ("adjust", 1, "", "", "", 0))
    (found,) = fold_of(book).disagreements
    assert (found.invariant, found.sequence) == ("Fold", 2)
    assert fold_of(book).state.rows[MERCHANT, LOCATION, "tea"].levels() == tuple(levels)


def test_a_repair_is_believed() -> None:
    book = Book()
    book.receive()
    book.repair("tea", 9, (4, 0, 0, 0))
    row = clean(book).rows[MERCHANT, LOCATION, "tea"]
    assert (row.levels(), row.version) == ((4, 0, 0, 0, 0), 9)


def test_an_ending_of_nothing_and_a_second_ending_are_noticed() -> None:
    book = Book()
    book.receive()
    the_id = book.reserve()
    book.release(the_id)
    book.write(OperationKind.COMMIT, the_id, (), ("held", 0, ()))
    book.write(OperationKind.CONFIRM, "rsv_0_unknown", (), ("", 0))
    found = fold_of(book).disagreements
    assert [(one.invariant, one.sequence, one.reservation) for one in found] == [
        ("OneEnding", 4, the_id),
        ("OneEnding", 5, "rsv_0_unknown"),
    ]


def test_what_the_store_has_forgotten_is_pruned() -> None:
    book = Book()
    book.receive(the_id="old")
    ended, still_open = book.reserve(), book.reserve()
    book.release(ended)
    state = clean(book)
    state.prune(START_MS + RETENTION_MS - 1)
    assert (set(state.seen), set(state.reservations)) == ({"old"}, {ended, still_open})
    state.prune(START_MS + RETENTION_MS)
    assert (set(state.seen), set(state.reservations)) == (set(), {still_open})
    assert state.rows


@pytest.mark.parametrize("cut", range(0, 31, 5))
def test_a_fold_that_goes_on_from_a_state_is_the_fold_of_all(cut: int) -> None:
    book = Book()
    book.trade(6)
    first = Fold()
    first.apply_all(entry.decode() for entry in book.entries[:cut])
    second = Fold(first.state)
    second.apply_all(entry.decode() for entry in book.entries[cut:])
    assert second.state == fold_of(book).state
    assert second.disagreements == []


def test_a_group_of_operations_is_folded_as_if_each_came_alone() -> None:
    together, alone = Book(), Book()
    with together.grouped():
        together.trade(3)
    alone.trade(3)
    one, other = clean(together), clean(alone)
    assert (one.rows, one.reservations, one.seen) == (other.rows, other.reservations, other.seen)
    assert one.sequence == other.sequence
