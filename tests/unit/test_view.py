"""The view: no row goes backwards, and none is kept that may be older than the tail."""

import pytest

from engine.ledger import Levels, Operation, OperationKind, RowChange
from engine.model import Row
from gateway.view import RowKey, View

KEY: RowKey = ("acme", "leeds", "tea")
LONG_MS = 60_000


def row(version: int, key: RowKey = KEY) -> Row:
    return Row(*key, 10 + version, 0, 0, 0, version)


def change(version: int, kind: OperationKind = OperationKind.MOVE) -> Operation:
    made = RowChange("tea", version, Levels(10 + version, 0, 0, 0), Levels(1, 0, 0, 0))
    return Operation(kind, "id", "acme", "leeds", "me", "", (made,), ())


@pytest.fixture
def view() -> View:
    made = View(2)
    made.open()
    return made


def read(view: View, version: int, *, key: RowKey = KEY, at: float = 1e12) -> Row | None:
    fill = view.begin(key, 0)
    assert fill is not None
    return view.finish(fill, row(version, key), read_at=at)


def seen(view: View, key: RowKey = KEY) -> int | None:
    sight = view.look(key, max_age_ms=LONG_MS)
    return None if sight is None or sight.row is None else sight.row.version


def test_a_row_moves_on_with_the_tail_and_never_back(view: View) -> None:
    read(view, 3)
    for version, expected in ((2, 3), (4, 4), (4, 4), (9, 9), (5, 9)):
        view.apply(0, change(version))
        assert seen(view) == expected


def test_what_the_tail_says_while_a_row_is_read_is_not_missed(view: View) -> None:
    fill = view.begin(KEY, 0)
    assert fill is not None
    view.apply(0, change(5))
    view.apply(0, change(4))
    found = view.finish(fill, row(3), read_at=1e12)
    assert found == row(5)
    assert seen(view) == 5


def test_a_row_that_is_not_there_is_kept_until_it_is_made(view: View) -> None:
    fill = view.begin(KEY, 0)
    assert fill is not None
    assert view.finish(fill, None, read_at=1e12) is None
    sight = view.look(KEY, max_age_ms=LONG_MS)
    assert sight is not None
    assert sight.row is None
    view.apply(0, change(1))
    assert seen(view) == 1


@pytest.mark.parametrize("drop", ["forget", "drop_partition", "close and open", "repair"])
def test_a_read_that_began_before_rows_were_dropped_leaves_nothing(view: View, drop: str) -> None:
    read(view, 3)
    fill = view.begin(KEY, 0)
    assert fill is not None
    if drop == "forget":
        view.forget("acme", "leeds", ["tea"])
    elif drop == "drop_partition":
        view.drop_partition(0)
    elif drop == "repair":
        view.apply(0, change(4, OperationKind.REPAIR))
    else:
        view.close()
        view.open()
    assert seen(view) is None
    # The read itself is still an answer for whoever began it.
    assert view.finish(fill, row(3), read_at=1e12) == row(3)
    assert seen(view) is None
    read(view, 4)
    assert seen(view) == 4


def test_another_partitions_trouble_leaves_a_row_alone(view: View) -> None:
    read(view, 3)
    view.drop_partition(1)
    assert seen(view) == 3


def test_what_was_written_here_is_read_here_at_once(view: View) -> None:
    view.learn(row(8))
    assert seen(view) is None, "a row that nobody reads is not taken in"
    read(view, 3)
    view.learn(row(5))
    view.learn(row(4))
    assert seen(view) == 5
    fill = view.begin(KEY, 0)
    assert fill is not None
    view.learn(row(6))
    assert view.finish(fill, row(5), read_at=1e12) == row(6)


def test_an_answer_is_as_old_as_the_last_proof_or_the_read_itself(
    view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("gateway.view.time.monotonic", lambda: now)
    read(view, 3, at=now)
    now = 100.9
    assert view.look(KEY, max_age_ms=1_000) is not None
    assert view.look(KEY, max_age_ms=899) is None
    view.prove([0], 100.5)
    sight = view.look(KEY, max_age_ms=899)
    assert sight is not None
    assert sight.age_ms == pytest.approx(400)
    now = 200.0
    assert view.look(KEY, max_age_ms=60_000) is None


def test_rows_that_nobody_asks_for_make_room_for_others() -> None:
    view = View(1, most_rows=3)
    view.open()
    keys: list[RowKey] = [("acme", "leeds", f"sku-{n}") for n in range(4)]
    for key in keys[:3]:
        read(view, 1, key=key)
    assert seen(view, keys[0]) == 1
    read(view, 1, key=keys[3])
    assert [seen(view, key) for key in keys] == [1, None, 1, 1]
    assert len(view) == 3


def test_without_a_tail_nothing_is_kept() -> None:
    view = View(1)
    assert view.begin(KEY, 0) is None
    assert view.is_idle


def test_of_two_reads_of_one_row_the_later_answer_stays_whichever_came_first(view: View) -> None:
    first, second = view.begin(KEY, 0), view.begin(KEY, 0)
    assert first is not None
    assert second is not None
    view.finish(first, row(3), read_at=1e12)
    assert view.finish(second, row(4), read_at=1e12) == row(4)
    assert seen(view) == 4
    # But not where the row was dropped in between, as it is where a failover undid something.
    third, fourth = view.begin(KEY, 0), view.begin(KEY, 0)
    assert third is not None
    assert fourth is not None
    view.finish(third, row(9), read_at=1e12)
    view.drop_partition(0)
    read(view, 5)
    view.finish(fourth, row(9), read_at=1e12)
    assert seen(view) == 5
