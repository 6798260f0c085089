"""Changes far outside of what their rows had ever seen: consistent, recorded, and likely wrong.

Each row's own history is the measure. A count or an adjustment is outside where it takes the row
beyond its highest level, or below its lowest, by a factor of three; an arrival where its size is a
robust z-score of 6 from the row's past arrivals and three times their median (z of the logarithms,
by the median absolute deviation: Iglewicz and Hoaglin, 1993). One such row is news only where it is
extreme. What makes an anomaly is a bulk of them: half or more of the rows that one reference (or,
without one, one actor within ten minutes) changed, and at least 30 of them.
"""

import math
from collections.abc import Collection, Iterable
from statistics import median
from typing import Final

import msgspec

from engine.ledger import MOVEMENTS, Entry, Operation, OperationKind
from engine.model import MovementType
from reconciler.findings import ChangeEvidence, Code, Finding, Invariant
from reconciler.fold import RowKey

MIN_CHANGES: Final = 3
"""Changes that a row must have seen before it is judged: a new row has no habits yet."""

MIN_ARRIVALS: Final = 6
"""Arrivals that a row must have seen before the size of another is judged."""

MAX_ARRIVALS: Final = 16
"""Arrivals that are kept a row: the last ones, so that a habit may change."""

OUTSIDE_FACTOR: Final = 3.0
MIN_UNITS_OUTSIDE: Final = 10
"""Beside the factor: 1 unit where there were 5 is a factor too."""

ROBUST_Z: Final = 6.0
MAD_TO_SIGMA: Final = 0.6745
MIN_SPREAD: Final = 0.25
"""Of the logarithms of past arrivals: a shop that always orders 24 may once order 36."""

MIN_ROWS: Final = 30
MIN_SHARE: Final = 0.5

SINGLE_FACTOR: Final = 20.0
SINGLE_MIN_UNITS: Final = 200
SINGLE_MIN_CHANGES: Final = 20
MAX_SINGLES: Final = 1_000

ACTOR_WINDOW_MS: Final = 600_000
"""Within which the changes of one actor without a reference are taken together."""

REPORTED_MS: Final = 7 * 24 * 3_600_000
"""How long an anomaly is news."""

MAX_BULKS: Final = 20_000
MAX_EXAMPLES: Final = 5
UNDO: Final = "undo "
ACCEPT: Final = "accept "
"""How the `finding` of a repair begins that took a change back, or says that it is right."""

_ARRIVALS: Final = frozenset({MovementType.RECEIVE, MovementType.RETURN, MovementType.TRANSFER_IN})
_CORRECTIONS: Final = frozenset({MovementType.COUNT, MovementType.ADJUST})


class RowHistory(msgspec.Struct):
    """What a row had seen, in units of on_hand - deficit."""

    low: int
    high: int
    changes: int = 1
    arrivals: list[int] | None = None


BulkKey = tuple[str, str, int]
"""(merchant, reference or actor, which stretch of ten minutes for an actor)."""


class Bulk(msgspec.Struct):
    """The changes of one reference, or of one actor within a while; `logarithms` of factors."""

    merchant: str
    reference: str
    actor: str
    first_at_ms: int
    last_at_ms: int
    changes: int = 0
    judged: int = 0
    outside: int = 0
    logarithms: float = 0.0
    units: int = 0
    examples: list[str] = msgspec.field(default_factory=list)


class Single(msgspec.Struct, frozen=True):
    """One change that is extreme by itself."""

    bulk: BulkKey
    row: RowKey
    sequence: int
    at_ms: int
    reference: str
    actor: str
    factor: float
    units: int


class ChangeWatch:
    """Watches the entries of one partition in their order; see `implausible_changes`."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self.bulks: dict[BulkKey, Bulk] = {}
        self.singles: list[Single] = []
        self.settled: dict[tuple[str, str], int] = {}
        self._histories: dict[RowKey, RowHistory] = {}

    def observe(self, entry: Entry) -> None:
        """Judge an entry's changes by their rows' histories, and make them part of these."""
        histories = self._histories
        for sequence, operation in enumerate(entry.operations, entry.sequence):
            if operation.kind is OperationKind.REPAIR:
                self._settle(operation, entry.at_ms)
            for change in operation.rows:
                books = change.levels.on_hand - change.levels.deficit
                moved = change.deltas.on_hand - change.deltas.deficit
                if moved == 0 and operation.kind not in MOVEMENTS:
                    continue
                key = (operation.merchant, operation.location, change.sku)
                history = histories.get(key)
                if history is None:
                    histories[key] = history = RowHistory(books, books)
                    if operation.kind in MOVEMENTS:
                        self._count(operation, entry.at_ms, moved)
                else:
                    if operation.kind in MOVEMENTS:
                        self._judge(operation, key, history, (moved, books), sequence, entry.at_ms)
                    history.low = min(history.low, books)
                    history.high = max(history.high, books)
                    history.changes += 1
                if operation.kind in MOVEMENTS and operation.detail[0] in _ARRIVALS:
                    arrivals = history.arrivals = history.arrivals or []
                    arrivals.append(moved)
                    del arrivals[:-MAX_ARRIVALS]

    def _settle(self, operation: Operation, at_ms: int) -> None:
        finding = operation.detail[2]
        for prefix in (UNDO, ACCEPT):
            if finding.startswith(prefix):
                self.settled[operation.merchant, finding.removeprefix(prefix)] = at_ms

    def _count(self, operation: Operation, at_ms: int, moved: int) -> Bulk | None:
        """Add a change to the bulk that it belongs to; None where too many are open."""
        key = _bulk_key(operation, at_ms)
        bulk = self.bulks.get(key)
        if bulk is None:
            if len(self.bulks) >= MAX_BULKS:
                self._forget(at_ms)
            if len(self.bulks) >= MAX_BULKS:
                return None
            bulk = self.bulks[key] = Bulk(
                operation.merchant, str(operation.detail[3]), operation.who, at_ms, at_ms
            )
        bulk.first_at_ms = min(bulk.first_at_ms, at_ms)
        bulk.last_at_ms = max(bulk.last_at_ms, at_ms)
        bulk.changes += 1
        bulk.units += abs(moved)
        return bulk

    def _forget(self, at_ms: int) -> None:
        """Forget the bulks that are no news any more, or are one change only."""
        self.bulks = {
            key: bulk
            for key, bulk in self.bulks.items()
            if bulk.outside > 0 and at_ms - bulk.last_at_ms <= REPORTED_MS
        }

    def _judge(
        self,
        operation: Operation,
        key: RowKey,
        history: RowHistory,
        change: tuple[int, int],
        sequence: int,
        at_ms: int,
    ) -> None:
        moved, books = change
        kind = operation.detail[0]
        if kind not in _CORRECTIONS and kind not in _ARRIVALS:
            return
        bulk = self._count(operation, at_ms, moved)
        if history.changes < MIN_CHANGES or bulk is None:
            return
        bulk.judged += 1
        if kind in _CORRECTIONS:
            factor = _factor_outside(history, books, moved)
        else:
            factor = _arrival_factor(history.arrivals or (), moved)
        if factor < OUTSIDE_FACTOR:
            return
        bulk.outside += 1
        bulk.logarithms += math.log(factor)
        if len(bulk.examples) < MAX_EXAMPLES:
            before = books - moved
            bulk.examples.append(
                f"{key[2]} at {key[1]}: {before} to {books}, had {history.low} to {history.high}"
            )
        if (
            factor >= SINGLE_FACTOR
            and abs(moved) >= SINGLE_MIN_UNITS
            and history.changes >= SINGLE_MIN_CHANGES
            and len(self.singles) < MAX_SINGLES
        ):
            self.singles.append(
                Single(
                    bulk=_bulk_key(operation, at_ms),
                    row=key,
                    sequence=sequence,
                    at_ms=at_ms,
                    reference=str(operation.detail[3]),
                    actor=operation.who,
                    factor=factor,
                    units=abs(moved),
                )
            )


class Settled:
    """What was taken back or accepted in all partitions, by the names that it was known by."""

    def __init__(self, watches: Iterable[ChangeWatch]) -> None:
        """Merge what the partitions' watches have seen."""
        self._at_ms: dict[tuple[str, str], int] = {}
        for watch in watches:
            for name, at_ms in watch.settled.items():
                self._at_ms[name] = max(at_ms, self._at_ms.get(name, 0))

    def has(self, merchant: str, names: Iterable[str], at_ms: int) -> bool:
        """Tell whether what was done by one of these names was settled since."""
        return any(self._at_ms.get((merchant, name), -1) >= at_ms for name in names if name)


def implausible_changes(watches: Collection[ChangeWatch], now_ms: int) -> list[Finding]:
    """Return the anomalies of the last seven days that nobody has settled, of all partitions."""
    bulks: dict[BulkKey, Bulk] = {}
    settled = Settled(watches)
    singles: list[Single] = []
    for watch in watches:
        singles += watch.singles
        for key, bulk in watch.bulks.items():
            bulks[key] = _merged(bulks[key], bulk) if key in bulks else bulk

    def is_news(merchant: str, reference: str, actor: str, at_ms: int) -> bool:
        names = (reference, reference.removeprefix("import:"), actor)
        return now_ms - at_ms <= REPORTED_MS and not settled.has(merchant, names, at_ms)

    found = []
    reported = set()
    for key, bulk in bulks.items():
        if (
            bulk.outside >= MIN_ROWS
            and bulk.outside >= MIN_SHARE * bulk.judged
            and is_news(bulk.merchant, bulk.reference, bulk.actor, bulk.last_at_ms)
        ):
            found.append(_bulk_finding(bulk))
            reported.add(key)
    found += [
        _single_finding(single)
        for single in singles
        if single.bulk not in reported
        and is_news(single.row[0], single.reference, single.actor, single.at_ms)
    ]
    return found


def _merged(first: Bulk, second: Bulk) -> Bulk:
    return Bulk(
        merchant=first.merchant,
        reference=first.reference,
        actor=first.actor,
        first_at_ms=min(first.first_at_ms, second.first_at_ms),
        last_at_ms=max(first.last_at_ms, second.last_at_ms),
        changes=first.changes + second.changes,
        judged=first.judged + second.judged,
        outside=first.outside + second.outside,
        logarithms=first.logarithms + second.logarithms,
        units=first.units + second.units,
        examples=[*first.examples, *second.examples][:MAX_EXAMPLES],
    )


def _bulk_key(operation: Operation, at_ms: int) -> BulkKey:
    reference = operation.detail[3]
    if reference:
        return (operation.merchant, f"reference {reference}", 0)
    return (operation.merchant, f"actor {operation.who}", at_ms // ACTOR_WINDOW_MS)


def _factor_outside(history: RowHistory, books: int, moved: int) -> float:
    """Return by which factor a level lies outside of the row's range, 1 where it lies within.

    One unit is added to both sides, so that an empty shelf has a factor too.
    """
    if abs(moved) < MIN_UNITS_OUTSIDE:
        return 1.0
    if books > history.high:
        return (max(0, books) + 1) / (max(0, history.high) + 1)
    if books < history.low:
        return (max(0, history.low) + 1) / (max(0, books) + 1)
    return 1.0


def _arrival_factor(arrivals: "list[int] | tuple[int, ...]", moved: int) -> float:
    """Return by which factor an arrival passes the row's median one, 1 where it is a usual size."""
    sizes = [math.log(size) for size in arrivals if size > 0]
    if len(sizes) < MIN_ARRIVALS or moved < MIN_UNITS_OUTSIDE:
        return 1.0
    middle = median(sizes)
    spread = max(MIN_SPREAD, median(abs(size - middle) for size in sizes))
    distance = math.log(moved) - middle
    return math.exp(distance) if MAD_TO_SIGMA * distance / spread >= ROBUST_Z else 1.0


def _bulk_finding(bulk: Bulk) -> Finding:
    name = f"reference {bulk.reference}" if bulk.reference else f"actor {bulk.actor}"
    factor = math.exp(bulk.logarithms / bulk.outside)
    return Finding(
        invariant=Invariant.ANOMALY,
        code=Code.BULK_CHANGE_IMPLAUSIBLE,
        detail=(
            f"{name} took {bulk.outside} of {bulk.judged} rows out of what they had ever seen, "
            f"typically by a factor of {factor:.1f}"
        ),
        remedy=(
            f"if it is wrong, plan its undoing with: holdfast rebuild "
            f"--without {bulk.reference or bulk.actor} --merchant {bulk.merchant} --plan"
        ),
        merchant=bulk.merchant,
        change=ChangeEvidence(
            reference=bulk.reference,
            actor=bulk.actor,
            first_at_ms=bulk.first_at_ms,
            last_at_ms=bulk.last_at_ms,
            changes=bulk.changes,
            judged=bulk.judged,
            outside=bulk.outside,
            factor=round(factor, 2),
            units=bulk.units,
            examples=tuple(bulk.examples),
        ),
        repairable=False,
    )


def _single_finding(single: Single) -> Finding:
    merchant, location, sku = single.row
    return Finding(
        invariant=Invariant.ANOMALY,
        code=Code.CHANGE_IMPLAUSIBLE,
        detail=(
            f"{single.units} units at once, a factor of {single.factor:.0f} outside of what the "
            f"row had ever seen"
        ),
        remedy="if it is wrong, count the shelf and book the count",
        merchant=merchant,
        location=location,
        sku=sku,
        sequence=single.sequence,
        change=ChangeEvidence(
            reference=single.reference,
            actor=single.actor,
            first_at_ms=single.at_ms,
            last_at_ms=single.at_ms,
            changes=1,
            judged=1,
            outside=1,
            factor=round(single.factor, 2),
            units=single.units,
            examples=(),
        ),
        repairable=False,
    )
