"""When a day is over, and whom it concerns then."""

from datetime import UTC, datetime

import pytest

from engine.figures import PromiseFigures
from engine.model import ReservationState
from engine.outlook import LATER, Wait
from engine.reservations import Body
from reconciler.fold import FoldedReservation, FoldedRow
from reconciler.promises import promise_figures


def waiting(
    state: ReservationState = ReservationState.CONFIRMED, **waits: Wait
) -> FoldedReservation:
    body = Body("acme", "leeds", "test", "", 0, "", (), (), 0)
    return FoldedReservation(state, 0, 0, 0, "", (), body, waits)


@pytest.mark.parametrize(
    ("now", "past", "supplies_past"),
    [
        # It is still the 10th on Baker Island.
        ("2026-12-10T23:59:59+00:00", 0, 0),
        ("2026-12-11T11:59:59+00:00", 0, 0),
        ("2026-12-11T12:00:00+00:00", 3, 1),
        ("2026-12-25T12:00:00+00:00", 11, 2),
    ],
)
def test_a_day_is_over_when_it_is_over_everywhere(now: str, past: int, supplies_past: int) -> None:
    now_ms = int(datetime.fromisoformat(now).astimezone(UTC).timestamp() * 1000)
    supplies = {"a": ["2026-12-10", 5], "b": ["2026-12-24", 5]}
    rows = [
        FoldedRow(0, 0, 0, 0, 1, 1),
        FoldedRow(0, 0, 0, 0, 1, 1, terms={"backorder_limit": 9}),
        FoldedRow(0, 0, 0, 0, 1, 1, terms={"supplies": supplies}),
    ]
    reservations = [
        waiting(),
        waiting(tea=Wait(1, 1, "2026-12-10", True)),
        # Nobody can say when, so it is the day that they were told.
        waiting(tea=Wait(2, 2, "2026-12-10", True, LATER)),
        # Who was told a later day waits for that one.
        waiting(tea=Wait(8, 3, "2026-12-10", True, "2026-12-24")),
        # Who was promised no day is never past it.
        waiting(tea=Wait(16, 4, "2026-12-10"), cup=Wait(32, 5)),
        waiting(ReservationState.RELEASED, tea=Wait(64, 6, "2026-12-10", True)),
    ]
    found = promise_figures(rows, reservations, now_ms)
    wanted = PromiseFigures(backordered=59, late=10, past=past, supplies_past=supplies_past)
    assert found == wanted
    assert sum([wanted, wanted], PromiseFigures()).late == 20
