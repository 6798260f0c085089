"""Where the ledger contradicts itself: looked for entry by entry, before the fold takes them.

The fold follows the ledger's absolute values whatever they are. What is noted here is how they
came about: a jump that no operation made, an effect that is not what its operation says, a second
ending. A later repair of the same row or reservation settles what was noted before it.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from engine.ledger import (
    MOVEMENTS,
    Entry,
    Levels,
    Operation,
    OperationKind,
    RowChange,
    units_of,
)
from engine.limits import MAX_TOTAL, RETENTION_MS
from engine.model import MovementType, ReservationState
from engine.reservations import Waiting
from reconciler.findings import Code, Invariant
from reconciler.fold import FoldedReservation, PartitionState, RowKey

MAX_NOTED: Final = 10_000
"""Rows, reservations and ranges that are noted of one partition; more are counted only."""

MAX_NOTES: Final = 8
"""Notes of one row or reservation; its first ones say where it began."""

ROUNDING_MS: Final = 1_000
"""How much sooner than its retention says a key may be gone."""

_ARRIVALS: Final = frozenset(
    {MovementType.RECEIVE, MovementType.RETURN, MovementType.TRANSFER_IN, MovementType.ADJUST}
)
_SUPERSEDED: Final = 6
_LATER: Final = 7
"""Where the detail of either says that a later count has it, and what came after a count."""

_EVENT_SEQUENCE: Final = 10
_WAITING: Final = 5
"""Where the detail of an amendment on terms says what waits from then on."""

_OF_NO_ROW: Final = frozenset(
    {
        OperationKind.REBUILD,
        OperationKind.SHORTFALL,
        OperationKind.ORDER,
        OperationKind.CLAIM,
        OperationKind.SETTLE,
    }
)
"""They change neither a row nor a reservation, whatever their ids name."""

_HELD_ONLY: Final = frozenset({OperationKind.CONFIRM, OperationKind.EXTEND, OperationKind.EXPIRE})
_ON_RESERVATIONS: Final = _HELD_ONLY | {
    OperationKind.AMEND,
    OperationKind.DECIDE,
    OperationKind.FILL,
    OperationKind.SLIP,
    OperationKind.COMMIT,
    OperationKind.RELEASE,
}
_REMEMBERED: Final = frozenset(
    {
        OperationKind.MOVE,
        OperationKind.CONFIGURE,
        OperationKind.TERMS,
        OperationKind.SUPPLY,
        OperationKind.EXTEND,
        OperationKind.AMEND,
    }
)
_PROMISES: Final = frozenset({OperationKind.RESERVE, OperationKind.AMEND})
_OPERATION_ID: Final = {OperationKind.EXTEND: 2, OperationKind.AMEND: 0}
"""Where the detail of a change of a reservation names the record that it left."""

_NOTHING: Final = Levels(0, 0, 0, 0)


class Note(NamedTuple):
    """One contradiction, at an operation."""

    invariant: Invariant
    code: Code
    sequence: int
    detail: str


class RangeNote(NamedTuple):
    """A contradiction of the sequence itself."""

    code: Code
    first: int
    last: int
    detail: str


class RowNotes(msgspec.Struct):
    """What is noted of a row, and what its levels owe to no operation, in units."""

    books_drift: int = 0
    safety_stock_drift: int = 0
    versions_skipped: bool = False
    notes: list[Note] = msgspec.field(default_factory=list)


class _Before(NamedTuple):
    """A row before an operation; `sequence` is that of its last one."""

    levels: Levels
    version: int
    sequence: int


class _Seen(NamedTuple):
    """What this entry did so far, as the fold does not know it yet."""

    rows: dict[RowKey, _Before]
    reservations: dict[str, ReservationState]
    operations: set[str]


class Contradictions:
    """What is noted of one partition's ledger and not settled."""

    def __init__(self) -> None:
        """Start with none."""
        self.rows: dict[RowKey, RowNotes] = {}
        self.reservations: dict[str, list[Note]] = {}
        self.dropped = 0
        self._ranges: list[RangeNote] = []
        self._known: list[tuple[int, int]] = []

    def ranges(self) -> Iterator[RangeNote]:
        """Go through the ranges that no repair has acknowledged."""
        return (note for note in self._ranges if not self.is_known(note.first, note.last))

    def is_known(self, first: int, last: int) -> bool:
        """Tell whether a repair has acknowledged all of these sequences."""
        return any(low <= first and last <= high for low, high in self._known)

    def unsettled(self, notes: list[Note]) -> list[Note]:
        """Return those of `notes` that no repair has acknowledged."""
        return [note for note in notes if not self.is_known(note.sequence, note.sequence)]

    def note_missing(self, first: int, last: int) -> None:
        """Note that no entry has these operations."""
        detail = f"no entry has the operations {first} to {last}"
        self.note_range(Code.ENTRIES_MISSING, first, last, detail)

    def note_range(self, code: Code, first: int, last: int, detail: str) -> None:
        """Note something about the sequence."""
        note = RangeNote(code, first, last, detail)
        if note in self._ranges:
            return
        if len(self._ranges) < MAX_NOTED:
            self._ranges.append(note)
        else:
            self.dropped += 1

    def check(self, entry: Entry, state: PartitionState) -> None:
        """Look at an entry before it is folded into `state`."""
        last = entry.sequence + len(entry.operations) - 1
        if entry.sequence > state.sequence + 1:
            self.note_missing(state.sequence + 1, entry.sequence - 1)
        elif entry.sequence <= state.sequence:
            detail = f"entry {entry.stream_id} counts from {entry.sequence} on once more"
            self.note_range(Code.ENTRIES_OVERLAP, entry.sequence, last, detail)
            if last <= state.sequence:
                return
        if entry.at_ms < state.at_ms:
            detail = f"the clock fell from {state.at_ms} to {entry.at_ms} ms"
            self.note_range(Code.CLOCK_FELL, entry.sequence, last, detail)
        seen = _Seen({}, {}, set())
        for number, operation in enumerate(entry.operations, entry.sequence):
            self._check_operation(operation, number, entry.at_ms, state, seen)

    def _check_operation(
        self, operation: Operation, sequence: int, at_ms: int, state: PartitionState, seen: _Seen
    ) -> None:
        kind = operation.kind
        if kind is OperationKind.REPAIR:
            self._settle(operation, sequence, seen)
            return
        if kind in _OF_NO_ROW:
            return
        reservation = state.reservations.get(operation.id)
        again = self._check_once(operation, sequence, at_ms, state, seen)
        if kind in _ON_RESERVATIONS:
            again = not self._check_ending(operation, sequence, reservation, seen)
        elif kind is OperationKind.RESERVE:
            seen.reservations[operation.id] = ReservationState.HELD
        for change in operation.changes:
            key = (operation.merchant, operation.location, change.sku)
            before = seen.rows.get(key) or _before(state, key)
            self._check_change(operation, change, sequence, before, reservation)
            if again:
                self._note_repetition(operation, key, change, sequence)
            seen.rows[key] = _Before(change.levels, change.version, sequence)

    def _settle(self, operation: Operation, sequence: int, seen: _Seen) -> None:
        """Take a repair as the answer to what was noted before it."""
        for change in operation.changes:
            key = (operation.merchant, operation.location, change.sku)
            self.rows.pop(key, None)
            seen.rows[key] = _Before(change.levels, change.version, sequence)
        detail = operation.detail
        if detail[0] in ("gap", "known"):
            self._known.append((detail[3], detail[4]))
        elif detail[0] == "reservation":
            self.reservations.pop(detail[3], None)
            seen.reservations[detail[3]] = ReservationState(detail[4][0])

    def _check_once(
        self, operation: Operation, sequence: int, at_ms: int, state: PartitionState, seen: _Seen
    ) -> bool:
        """Note an effect that was had before under the same id; return whether it was."""
        oldest = at_ms - RETENTION_MS + ROUNDING_MS
        kind = operation.kind
        again = False
        if kind in _REMEMBERED:
            place = _OPERATION_ID.get(kind)
            the_id = operation.id if place is None else operation.detail[place]
            record = state.seen.get(the_id)
            again = the_id in seen.operations or (record is not None and record.at_ms > oldest)
            seen.operations.add(the_id)
        elif kind is OperationKind.FEED:
            # One that was set aside is booked later under the same id.
            if operation.id not in state.quarantine and not operation.detail[_EVENT_SEQUENCE]:
                record = state.seen.get(operation.id)
                again = operation.id in seen.operations or record is not None
                seen.operations.add(operation.id)
        elif kind is OperationKind.RESERVE:
            held = state.reservations.get(operation.id)
            again = operation.id in seen.reservations or (
                held is not None and (held.is_open or held.ended_at_ms > oldest)
            )
        if again:
            detail = f"{kind} {operation.id} had its effect before"
            if kind in _OPERATION_ID or kind is OperationKind.RESERVE:
                note = Note(Invariant.ONCE, Code.APPLIED_TWICE, sequence, detail)
                self._note_reservation(operation.id, note)
        return again

    def _note_repetition(
        self, operation: Operation, key: RowKey, change: RowChange, sequence: int
    ) -> None:
        """Note what an effect that was had before did to a row; that much is its drift."""
        detail = f"{operation.kind} {operation.id} had its effect before"
        notes = self._note_row(key, Note(Invariant.ONCE, Code.APPLIED_TWICE, sequence, detail))
        if notes is not None and not _is_count(operation):
            notes.books_drift += _books(change.deltas)

    def _check_change(
        self,
        operation: Operation,
        change: RowChange,
        sequence: int,
        before: _Before,
        reservation: FoldedReservation | None,
    ) -> None:
        key = (operation.merchant, operation.location, change.sku)
        levels, deltas = change.levels, change.deltas
        self._check_succession(key, change, sequence, before)
        self._end_drift(operation, key)
        if not all(0 <= units <= MAX_TOTAL for units in _tuple(levels)):
            detail = f"{_tuple(levels)} is not within 0 to {MAX_TOTAL}"
            self._note_row(key, Note(Invariant.INTEGER, Code.LEVELS_OUT_OF_RANGE, sequence, detail))
        said = _said(operation, change, reservation)
        if said is not None and said != (_books(deltas), deltas.reserved, deltas.safety_stock):
            books, reserved, safety_stock = said
            invariant = Invariant.CONSERVATION if books != _books(deltas) else Invariant.HOLDS_SUM
            detail = (
                f"{operation.kind} says books {books:+d}, reserved {reserved:+d}, safety stock "
                f"{safety_stock:+d}, and did {_books(deltas):+d}, {deltas.reserved:+d}, "
                f"{deltas.safety_stock:+d}"
            )
            notes = self._note_row(
                key, Note(invariant, Code.EFFECT_IS_NOT_WHAT_IS_SAID, sequence, detail)
            )
            if notes is not None:
                notes.books_drift += _books(deltas) - books
                notes.safety_stock_drift += deltas.safety_stock - safety_stock
        if (
            operation.kind in _PROMISES
            and deltas.reserved > 0
            and levels.reserved + levels.safety_stock > levels.on_hand
        ):
            detail = (
                f"{deltas.reserved} more were promised: {levels.reserved} of {levels.on_hand} on "
                f"hand, with {levels.safety_stock} to be kept back"
            )
            self._note_row(
                key, Note(Invariant.NO_OVERSELL, Code.PROMISED_PAST_AVAILABLE, sequence, detail)
            )

    def _check_succession(
        self, key: RowKey, change: RowChange, sequence: int, before: _Before
    ) -> None:
        """Check that a row follows from what it was before."""
        notes: RowNotes | None = None
        if change.version != before.version + 1:
            skipped = change.version > before.version + 1
            code = Code.VERSIONS_SKIPPED if skipped else Code.VERSION_FELL
            detail = f"version {before.version} is followed by {change.version}"
            notes = self._note_row(key, Note(Invariant.DENSE, code, sequence, detail))
            if skipped and self._is_missing(before.sequence, sequence):
                # Operations that were lost explain what changed in between.
                if notes is not None:
                    notes.versions_skipped = True
                return
        if _follows(before.levels, change):
            return
        jump = _difference(change.levels, _sum(before.levels, change.deltas))
        detail = (
            f"between versions {before.version} and {change.version} something else changed "
            f"on hand by {jump.on_hand:+d}, reserved by {jump.reserved:+d}, safety stock by "
            f"{jump.safety_stock:+d}, deficit by {jump.deficit:+d}, low_stock_threshold by "
            f"{jump.low_stock_threshold:+d}"
        )
        notes = self._note_row(key, Note(Invariant.FOLD, Code.LEVELS_JUMPED, sequence, detail))
        if notes is not None:
            notes.books_drift += _books(jump)
            notes.safety_stock_drift += jump.safety_stock

    def _is_missing(self, after: int, before: int) -> bool:
        """Tell whether operations between two sequences are missing, known or not."""
        return any(
            note.code is Code.ENTRIES_MISSING and after < note.last and note.first < before
            for note in self._ranges
        )

    def _end_drift(self, operation: Operation, key: RowKey) -> None:
        """A count or a setting is right whatever the row was before: it ends the drift."""
        notes = self.rows.get(key)
        if notes is None:
            return
        if counted_books(operation) is not None:
            notes.books_drift = 0
        elif operation.kind is OperationKind.CONFIGURE:
            notes.safety_stock_drift = 0

    def _check_ending(
        self,
        operation: Operation,
        sequence: int,
        reservation: FoldedReservation | None,
        seen: _Seen,
    ) -> bool:
        """Note a change of a reservation that was over, or never was; return whether it was open.

        One that was never made counts as open: what is missing is its beginning.
        """
        kind, the_id = operation.kind, operation.id
        state = seen.reservations.get(the_id)
        if state is None and reservation is not None:
            state = reservation.state
        if kind not in (
            OperationKind.AMEND,
            OperationKind.DECIDE,
            OperationKind.FILL,
            OperationKind.SLIP,
        ):
            seen.reservations[the_id] = _STATES_AFTER[kind]
        if state is None:
            code, detail = Code.NEVER_RESERVED, f"{kind} of a reservation that was never made"
        elif not state.is_open or (kind in _HELD_ONLY and state is not ReservationState.HELD):
            code, detail = Code.ENDED_TWICE, f"{kind} after {state}"
        else:
            return True
        self._note_reservation(the_id, Note(Invariant.ONE_ENDING, code, sequence, detail))
        return state is None or state.is_open

    def _note_row(self, key: RowKey, note: Note) -> RowNotes | None:
        row = self.rows.get(key)
        if row is None:
            if len(self.rows) >= MAX_NOTED:
                self.dropped += 1
                return None
            row = self.rows[key] = RowNotes()
        if len(row.notes) < MAX_NOTES:
            row.notes.append(note)
        return row

    def _note_reservation(self, the_id: str, note: Note) -> None:
        if the_id not in self.reservations and len(self.reservations) >= MAX_NOTED:
            self.dropped += 1
            return
        notes = self.reservations.setdefault(the_id, [])
        if len(notes) < MAX_NOTES:
            notes.append(note)


_STATES_AFTER: Final = {
    OperationKind.CONFIRM: ReservationState.CONFIRMED,
    OperationKind.EXTEND: ReservationState.HELD,
    OperationKind.COMMIT: ReservationState.COMMITTED,
    OperationKind.RELEASE: ReservationState.RELEASED,
    OperationKind.EXPIRE: ReservationState.EXPIRED,
}


def movement_units(operation: Operation, sku: str) -> int:
    """Return the change of on_hand - deficit that a movement other than a count says, in units."""
    kind, quantity = operation.detail[0], units_of(operation, sku)
    if is_superseded(operation):
        return 0
    return int(quantity) if MovementType(kind) in _ARRIVALS else -int(quantity)


def is_superseded(operation: Operation) -> bool:
    """Tell whether a movement or an event was inside a later count, and so changed nothing."""
    return len(operation.detail) > _SUPERSEDED and bool(operation.detail[_SUPERSEDED])


def counted_books(operation: Operation) -> int | None:
    """Return what a count makes on_hand - deficit; None where it is no count, or changed nothing.

    That is what was counted, and the units of what happened since and came before it.
    """
    if not _is_count(operation) or is_superseded(operation):
        return None
    later = operation.detail[_LATER] if len(operation.detail) > _LATER else 0
    return int(operation.detail[1]) + int(later)


def _is_count(operation: Operation) -> bool:
    return operation.kind in MOVEMENTS and operation.detail[0] == MovementType.COUNT


def _said(
    operation: Operation, change: RowChange, reservation: FoldedReservation | None
) -> tuple[int, int, int] | None:
    """Return the changes of books, reserved and safety stock that an operation says it makes.

    None where it cannot be told: an ending of a reservation that is not known.
    """
    kind, detail = operation.kind, operation.detail
    levels, deltas = change.levels, change.deltas
    if kind in MOVEMENTS:
        if is_superseded(operation):
            return 0, 0, 0
        counted = counted_books(operation)
        if counted is not None:
            return counted - (_books(levels) - _books(deltas)), 0, 0
        return movement_units(operation, change.sku), 0, 0
    if kind in (OperationKind.OFFLINE, OperationKind.TERMS):
        return 0, 0, 0
    if kind is OperationKind.SPLIT:
        # What it was told to be reserved at its parts is looked at with the sum of all holds.
        return -sum(units for _, units in detail[2]), deltas.reserved, 0
    if kind is OperationKind.PART:
        # Units come and go between the parts; what left the shelf left by a commit.
        return _books(deltas), 0, 0
    if kind is OperationKind.CONFIGURE:
        return 0, 0, int(detail[0]) - (levels.safety_stock - deltas.safety_stock)
    if kind is OperationKind.RESERVE:
        return 0, max(1, deltas.reserved + deltas.backordered) - deltas.backordered, 0
    if reservation is None:
        return None
    held = sum(units for key, units, _ in reservation.units() if key[2] == change.sku)
    if kind is OperationKind.FILL:
        return 0, int(detail[1]), 0
    if kind is OperationKind.SLIP:
        return 0, 0, 0
    if kind in (OperationKind.AMEND, OperationKind.DECIDE):
        left = detail[1] if kind is OperationKind.AMEND else detail[2]
        # What is backordered is no part of what is reserved; a decision leaves it as it is.
        waits = reservation.waiting
        if kind is OperationKind.AMEND:
            told = detail[_WAITING] or {} if len(detail) > _WAITING else {}
            waits = msgspec.convert(told, Waiting)
        waiting = waits[change.sku].units if change.sku in waits else 0
        return 0, sum(units for sku, units in left if sku == change.sku) - waiting - held, 0
    picked = 0
    if kind is OperationKind.COMMIT:
        picked = sum(units for sku, units in detail[2] if sku == change.sku)
    return -picked, -held, 0


def _before(state: PartitionState, key: RowKey) -> _Before:
    row = state.rows.get(key)
    if row is None:
        return _Before(_NOTHING, 0, 0)
    return _Before(row.facts(), row.version, row.sequence)


def _follows(before: Levels, change: RowChange) -> bool:
    """Tell whether a row's levels are those before it plus the deltas."""
    levels, deltas = change.levels, change.deltas
    return (
        before.on_hand + deltas.on_hand == levels.on_hand
        and before.reserved + deltas.reserved == levels.reserved
        and before.safety_stock + deltas.safety_stock == levels.safety_stock
        and before.deficit + deltas.deficit == levels.deficit
        and before.low_stock_threshold + deltas.low_stock_threshold == levels.low_stock_threshold
        and before.backordered + deltas.backordered == levels.backordered
    )


def _books(levels: Levels) -> int:
    return levels.on_hand - levels.deficit


def _tuple(levels: Levels) -> tuple[int, ...]:
    return msgspec.structs.astuple(levels)


def _sum(first: Levels, second: Levels) -> Levels:
    return Levels(*[a + b for a, b in zip(_tuple(first), _tuple(second), strict=True)])


def _difference(first: Levels, second: Levels) -> Levels:
    return Levels(*[a - b for a, b in zip(_tuple(first), _tuple(second), strict=True)])
