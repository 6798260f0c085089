"""What the stock would be had some movements never been booked.

The ledger is folded a second time, for the rows that the named operations touched, without these.
Everything else is carried out again on the levels as they would have been: a count says what is on
the shelf whatever was there before, other movements and commits add and take units (see
`shelf_deltas` in lua/lib/rows.lua), promises that were made stay made. Where the two folds differ
the import still has an effect; where a later count or setting said how things are it has none.
"""

from typing import Final

import msgspec

from engine.ledger import MOVEMENTS, Entry, Levels, Operation, OperationKind, RowChange
from engine.outcomes import InvalidCommand
from reconciler.anomalies import UNDO
from reconciler.contradictions import counted_books, movement_units
from reconciler.findings import RowFacts
from reconciler.fold import PartitionState, RowKey

MAX_LISTED: Final = 10_000
"""Reservations, actors and references that are listed by name; all reservations are counted."""

MAX_UNDONE_ROWS: Final = 1_000_000
"""Rows of one undo, at some 1 kB each while it is planned."""

IMPORT: Final = "import:"
"""What stands before an import's id in the reference of its movements."""

_UNDOABLE: Final = MOVEMENTS | {OperationKind.CONFIGURE}


class TooMuchToUndo(Exception):
    """More rows than one undo takes; `rows` were found so far."""

    def __init__(self, rows: int) -> None:
        """Keep how many rows were found."""
        self.rows = rows
        super().__init__(f"{rows} rows are affected; one undo takes at most {MAX_UNDONE_ROWS}")


class Target(msgspec.Struct, frozen=True):
    """The operations to leave out: movements and settings by an import's id, a reference, an actor.

    `name` may also be one operation's id; `import:` before an import's id makes no difference. An
    empty `merchant` stands for all of them. Raises InvalidCommand where the name is empty:
    movements without a reference would all match it.
    """

    name: str
    merchant: str = ""

    def __post_init__(self) -> None:
        """Check the name, and take the prefix off."""
        name = self.name.removeprefix(IMPORT)
        if not name:
            raise InvalidCommand("without", "name an import, a reference, an actor or an operation")
        msgspec.structs.force_setattr(self, "name", name)

    def matches(self, operation: Operation) -> bool:
        """Tell whether an operation is to be left out."""
        return (
            operation.kind in _UNDOABLE
            and self.merchant in ("", operation.merchant)
            and self.name in names_of(operation)
        )


def names_of(operation: Operation) -> frozenset[str]:
    """Return the names by which a target may mean a movement or a setting."""
    names = {operation.id, operation.who}
    if operation.kind in MOVEMENTS and operation.detail[3]:
        names.add(str(operation.detail[3]).removeprefix(IMPORT))
    return frozenset(names)


class RowDifference(msgspec.Struct, frozen=True):
    """A row as it is, and as it would be."""

    partition: int
    merchant: str
    location: str
    sku: str
    actual: RowFacts
    without: Levels

    @property
    def units(self) -> int:
        """By how many units the row would have more on hand, less its deficit."""
        levels = self.actual.levels
        return (self.without.on_hand - self.without.deficit) - (levels.on_hand - levels.deficit)


class _Shelf(msgspec.Struct):
    """The levels of a row as they would be, and the names of what was left out on it."""

    on_hand: int
    reserved: int
    safety_stock: int
    deficit: int
    low_stock_threshold: int
    left_out: list[frozenset[str]]

    def add(self, units: int) -> None:
        """Put units on the shelf or take them off; see lua/lib/rows.lua."""
        books = self.on_hand - self.deficit + units
        self.on_hand = max(0, books)
        self.deficit = max(0, -books)

    def levels(self) -> Levels:
        """Return them as the ledger writes them."""
        return Levels(
            self.on_hand,
            self.reserved,
            self.safety_stock,
            self.deficit,
            self.low_stock_threshold,
        )

    @property
    def available(self) -> int:
        """Units that could still be promised."""
        return max(0, self.on_hand - self.reserved - self.safety_stock)


class Counterfactual:
    """The second fold of one partition: observes every entry of it, from the first on."""

    def __init__(self, target: Target) -> None:
        """Start with no row touched."""
        self.target = target
        self.operations = 0
        self.first_at_ms = 0
        self.last_at_ms = 0
        self.actors: dict[str, None] = {}
        self.references: dict[str, None] = {}
        self.touched: set[RowKey] = set()
        self.undone: set[RowKey] = set()
        self.unfounded: dict[tuple[str, RowKey], tuple[int, int]] = {}
        self.unfounded_count = 0
        self._shelves: dict[RowKey, _Shelf] = {}

    @property
    def rows(self) -> list[RowKey]:
        """The rows that are, or may be, otherwise than they would be."""
        return list(self._shelves)

    def observe(self, entry: Entry) -> None:
        """Carry out an entry's operations on the levels as they would be. Raises TooMuchToUndo."""
        for operation in entry.operations:
            if self.target.matches(operation):
                self._leave_out(operation, entry.at_ms)
            elif self._shelves:
                self._carry_out(operation)

    def difference(
        self, key: RowKey, partition: int, state: PartitionState
    ) -> RowDifference | None:
        """Return how a row would be otherwise than in `state`, at the same place; None if not."""
        shelf, row = self._shelves.get(key), state.rows.get(key)
        if shelf is None or row is None or shelf.levels() == Levels(*row.levels()):
            return None
        actual = RowFacts(row.facts(), row.version, row.terms)
        # What waits for units is no matter of what was left out.
        without = msgspec.structs.replace(shelf.levels(), backordered=row.backordered)
        return RowDifference(partition, *key, actual, without)

    def _leave_out(self, operation: Operation, at_ms: int) -> None:
        self.operations += 1
        self.first_at_ms = self.first_at_ms or at_ms
        self.last_at_ms = at_ms
        if len(self.actors) < MAX_LISTED:
            self.actors[operation.who] = None
        if operation.kind in MOVEMENTS and len(self.references) < MAX_LISTED:
            self.references[str(operation.detail[3])] = None
        for change in operation.rows:
            key = (operation.merchant, operation.location, change.sku)
            self.touched.add(key)
            self.undone.discard(key)
            shelf = self._shelves.get(key)
            if shelf is None:
                if len(self._shelves) >= MAX_UNDONE_ROWS:
                    raise TooMuchToUndo(len(self._shelves))
                shelf = self._shelves[key] = _before(change)
            shelf.left_out.append(names_of(operation))
            self._drop_if_equal(key, shelf, change)

    def _carry_out(self, operation: Operation) -> None:
        undone = ""
        if operation.kind is OperationKind.REPAIR and operation.detail[2].startswith(UNDO):
            undone = operation.detail[2].removeprefix(UNDO)
        for change in operation.rows:
            key = (operation.merchant, operation.location, change.sku)
            shelf = self._shelves.get(key)
            if shelf is None:
                continue
            covered = [undone in names for names in shelf.left_out] if undone else [False]
            if all(covered):
                # All that is left out here was taken back: the row is what it would have been.
                del self._shelves[key]
                self.undone.add(key)
                continue
            if not any(covered):
                self._change(operation, key, change, shelf)
            # Where a part was taken back, the row comes closer to what it would have been.
            self._drop_if_equal(key, shelf, change)

    def _drop_if_equal(self, key: RowKey, shelf: _Shelf, change: RowChange) -> None:
        """Forget a row that from here on is what it would have been anyway."""
        alike = msgspec.structs.replace(change.levels, offline_buffer=0, backordered=0)
        if shelf.levels() == alike:
            del self._shelves[key]

    def _change(self, operation: Operation, key: RowKey, change: RowChange, shelf: _Shelf) -> None:
        kind, deltas = operation.kind, change.deltas
        counted = counted_books(operation)
        if counted is not None:
            shelf.on_hand, shelf.deficit = max(0, counted), max(0, -counted)
        elif kind in MOVEMENTS:
            shelf.add(movement_units(operation, change.sku))
        elif kind is OperationKind.CONFIGURE:
            shelf.safety_stock = int(operation.detail[0])
            if len(operation.detail) > 1:
                shelf.low_stock_threshold = int(operation.detail[1])
        elif kind is OperationKind.RESERVE or (kind is OperationKind.AMEND and deltas.reserved > 0):
            if deltas.reserved > shelf.available:
                missing = deltas.reserved - shelf.available
                self.unfounded_count += 1
                if len(self.unfounded) < MAX_LISTED:
                    self.unfounded[operation.id, key] = (deltas.reserved, missing)
            shelf.reserved += deltas.reserved
        else:
            # Endings and repairs of something else: their effect is their deltas.
            shelf.add(deltas.on_hand - deltas.deficit)
            shelf.reserved = max(0, shelf.reserved + deltas.reserved)
            shelf.safety_stock = max(0, shelf.safety_stock + deltas.safety_stock)
            threshold = shelf.low_stock_threshold + deltas.low_stock_threshold
            shelf.low_stock_threshold = max(0, threshold)


def _before(change: RowChange) -> _Shelf:
    levels, deltas = change.levels, change.deltas
    return _Shelf(
        levels.on_hand - deltas.on_hand,
        levels.reserved - deltas.reserved,
        levels.safety_stock - deltas.safety_stock,
        levels.deficit - deltas.deficit,
        levels.low_stock_threshold - deltas.low_stock_threshold,
        [],
    )
