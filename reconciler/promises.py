"""What a partition has promised before it came, in figures for whoever watches over it."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from engine.figures import PromiseFigures
from engine.outlook import LATER, Wait
from reconciler.fold import FoldedReservation, FoldedRow

LAST_ZONE_MS: Final = 12 * 3_600_000
"""By how much the last time zone is behind UTC: a day is over when it is over there, too."""


def promise_figures(
    rows: Iterable[FoldedRow], reservations: Iterable[FoldedReservation], now_ms: int
) -> PromiseFigures:
    """Count what rows and open reservations wait for at a moment in ms since 1970."""
    # A day is a label; here alone, and only to tell people, it is compared with a clock.
    today = datetime.fromtimestamp((now_ms - LAST_ZONE_MS) / 1000, UTC).date().isoformat()
    backordered = late = past = 0
    for reservation in reservations:
        if reservation.waiting and reservation.is_open:
            for wait in reservation.waiting.values():
                backordered += wait.units
                late += wait.units if wait.late else 0
                past += wait.units if wait.dated and _expected_on(wait) < today else 0
    supplies_past = sum(
        day < today
        for row in rows
        if row.terms
        for day, _ in row.terms.get("supplies", {}).values()
    )
    return PromiseFigures(
        backordered=backordered, late=late, past=past, supplies_past=supplies_past
    )


def _expected_on(wait: Wait) -> str:
    """Return the day that was told last; where nobody can say one, it is the one of before."""
    return wait.late if wait.late not in ("", LATER) else wait.day
