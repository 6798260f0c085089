"""What the stock would be had some movements never been booked.

The ledger is folded a second time, for the rows that the named operations touched, without these.
Everything else is carried out again on the levels as they would have been: a count says what is on
the shelf whatever was there before, other movements and commits add and take units (see
`shelf_deltas` in lua/lib/rows.lua), promises that were made stay made, and what arrives with a
supply is taken off what would have been to come. Where the two folds differ the import still has an
effect; where a later count, setting or announcement said how things are it has none.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from engine.ledger import (
    MOVEMENTS,
    Entry,
    Levels,
    Operation,
    OperationKind,
    RowChange,
    arrival_of,
)
from engine.limits import MAX_SUPPLIES, MAX_SUPPLY_DAYS
from engine.model import MovementType
from engine.outcomes import InvalidCommand
from engine.splits import Plan
from reconciler.anomalies import UNDO
from reconciler.contradictions import counted_books, movement_units
from reconciler.findings import RowFacts
from reconciler.fold import FoldedRow, PartitionState, RowKey

MAX_LISTED: Final = 10_000
"""Reservations, actors and references that are listed by name; all reservations are counted."""

MAX_UNDONE_ROWS: Final = 1_000_000
"""Rows of one undo, at some 1 kB each while it is planned."""

IMPORT: Final = "import:"
"""What stands before an import's id in the reference of its movements."""

_MAY_NAME_SUPPLY: Final = (MovementType.RECEIVE, MovementType.TRANSFER_IN)
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


class SupplyDifference(msgspec.Struct, frozen=True):
    """A supply of which `quantity` units are to come, and `without` as it would be."""

    supply: str
    expected_on: str
    quantity: int
    without: int


class RowDifference(msgspec.Struct, frozen=True):
    """A row as it is, and as it would be; `supplies` are those that would be otherwise.

    `unnamed` units came since and named no supply: they may be those of a supply that would be to
    come again, which no fold can tell. `obstacle` says what must be done before the row can be so;
    empty where nothing must.
    """

    partition: int
    merchant: str
    location: str
    sku: str
    actual: RowFacts
    without: Levels
    supplies: tuple[SupplyDifference, ...] = ()
    unnamed: int = 0
    obstacle: str = ""

    @property
    def to_come(self) -> int:
        """Units that would be to come beyond those that are."""
        return sum(one.without - one.quantity for one in self.supplies)

    @property
    def units(self) -> int:
        """By how many units the row would have more on hand, less its deficit."""
        levels = self.actual.levels
        return (self.without.on_hand - self.without.deficit) - (levels.on_hand - levels.deficit)


Supplies = dict[str, tuple[str, int]]
"""The day and the units that are still to come, by the name of a supply."""


class _Shelf(msgspec.Struct):
    """A row as it would be, and the names of what was left out on it."""

    on_hand: int
    reserved: int
    safety_stock: int
    deficit: int
    low_stock_threshold: int
    supplies: Supplies
    left_out: list[frozenset[str]]
    unnamed: int = 0

    def add(self, units: int) -> None:
        """Put units on the shelf or take them off; see lua/lib/rows.lua."""
        books = self.on_hand - self.deficit + units
        self.on_hand = max(0, books)
        self.deficit = max(0, -books)

    def arrive(self, supply: str, units: int) -> None:
        """Take what came with a supply off it; see lua/lib/arrivals.lua."""
        if supply in self.supplies:
            day, expected = self.supplies[supply]
            self.expect(supply, day, expected - units)

    def expect(self, supply: str, day: str, units: int) -> None:
        """Have so many units be still to come with a supply; none end it."""
        if units > 0:
            self.supplies[supply] = (day, units)
        else:
            self.supplies.pop(supply, None)

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
        self._supplies: dict[RowKey, Supplies] = {}

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
            self._take_in(operation)

    def difference(
        self, key: RowKey, partition: int, state: PartitionState
    ) -> RowDifference | None:
        """Return how a row would be otherwise than in `state`, at the same place; None if not."""
        shelf, row = self._shelves.get(key), state.rows.get(key)
        if shelf is None or row is None:
            return None
        supplies = _differing(_supplies_of(row.terms), shelf.supplies)
        if shelf.levels() == Levels(*row.levels()) and not supplies:
            return None
        actual = RowFacts(row.facts(), row.version, row.terms)
        # What waits for units is no matter of what was left out.
        without = msgspec.structs.replace(shelf.levels(), backordered=row.backordered)
        unnamed = shelf.unnamed if any(one.without > one.quantity for one in supplies) else 0
        obstacle = _obstacle(row, supplies)
        return RowDifference(partition, *key, actual, without, supplies, unnamed, obstacle)

    def _take_in(self, operation: Operation) -> None:
        """Keep what is to come to rows by the ledger: the lines do not say what was before."""
        for change in operation.rows:
            key = (operation.merchant, operation.location, change.sku)
            supplies = _supplies_of(change.terms)
            if supplies:
                self._supplies[key] = supplies
            elif self._supplies:
                self._supplies.pop(key, None)

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
                supplies = dict(self._supplies.get(key, {}))
                shelf = self._shelves[key] = _before(change, supplies)
            shelf.left_out.append(names_of(operation))
            self._drop_if_equal(key, shelf, change)

    def _carry_out(self, operation: Operation) -> None:
        self._carry_out_arrival(operation)
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
                self._change_supplies(operation, key, change, shelf)
            # Where a part was taken back, the row comes closer to what it would have been.
            self._drop_if_equal(key, shelf, change)

    def _drop_if_equal(self, key: RowKey, shelf: _Shelf, change: RowChange) -> None:
        """Forget a row that from here on is what it would have been anyway."""
        alike = msgspec.structs.replace(change.levels, offline_buffer=0, backordered=0)
        if shelf.levels() == alike and shelf.supplies == _supplies_of(change.terms):
            del self._shelves[key]

    def _carry_out_arrival(self, operation: Operation) -> None:
        """Take what came with a supply off it, also where the row as it was did not expect it."""
        arrival = arrival_of(operation)
        if arrival is not None:
            sku, supply, units = arrival
            shelf = self._shelves.get((operation.merchant, operation.location, sku))
            if shelf is not None:
                shelf.arrive(supply, units)

    def _change_supplies(
        self, operation: Operation, key: RowKey, change: RowChange, shelf: _Shelf
    ) -> None:
        if operation.kind is OperationKind.SUPPLY:
            supply, day, units = operation.detail[:3]
            shelf.expect(supply, day, units)
        elif operation.kind not in MOVEMENTS:
            # A repair of something else: its effect is what it changed.
            before, after = self._supplies.get(key, {}), _supplies_of(change.terms)
            for one in _differing(before, after):
                _, would_be = shelf.supplies.get(one.supply, ("", 0))
                day, units = one.expected_on, would_be + one.without - one.quantity
                shelf.expect(one.supply, day, units)

    def _change(self, operation: Operation, key: RowKey, change: RowChange, shelf: _Shelf) -> None:
        kind, deltas = operation.kind, change.deltas
        counted = counted_books(operation)
        if counted is not None:
            shelf.on_hand, shelf.deficit = max(0, counted), max(0, -counted)
        elif kind in MOVEMENTS:
            shelf.add(movement_units(operation, change.sku))
            if operation.detail[0] in _MAY_NAME_SUPPLY and arrival_of(operation) is None:
                shelf.unnamed += movement_units(operation, change.sku)
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


def _supplies_of(terms: dict[str, Any] | None) -> Supplies:
    """Return what a row's terms say is to come."""
    told = (terms or {}).get("supplies", {})
    return {supply: (day, units) for supply, (day, units) in told.items()}


def _differing(actual: Supplies, without: Supplies) -> tuple[SupplyDifference, ...]:
    return tuple(
        SupplyDifference(
            supply,
            without.get(supply, actual.get(supply, ("", 0)))[0],
            actual.get(supply, ("", 0))[1],
            without.get(supply, ("", 0))[1],
        )
        for supply in sorted(actual.keys() | without.keys())
        if actual.get(supply) != without.get(supply)
    )


def _obstacle(row: FoldedRow, supplies: Sequence[SupplyDifference]) -> str:
    """Say why a row cannot expect supplies as it would; see lua/supply.lua."""
    if not any(one.without for one in supplies):
        return ""
    if row.split.startswith("home") and not Plan.parse(row.split).is_over:
        return "the row is split: put it together first (parts 1)"
    would_be = {name: day for name, (day, _) in _supplies_of(row.terms).items()}
    for one in supplies:
        if one.without:
            would_be[one.supply] = one.expected_on
        else:
            would_be.pop(one.supply, None)
    if len(would_be) > MAX_SUPPLIES:
        return (
            f"the row would expect {len(would_be)} supplies of at most {MAX_SUPPLIES}: cancel some"
        )
    days = {*would_be.values(), *(row.terms or {}).get("waits", {})}
    if len(days) > MAX_SUPPLY_DAYS:
        return (
            f"the row would know of {len(days)} days of at most {MAX_SUPPLY_DAYS}: cancel supplies"
        )
    return ""


def _before(change: RowChange, supplies: Supplies) -> _Shelf:
    levels, deltas = change.levels, change.deltas
    return _Shelf(
        levels.on_hand - deltas.on_hand,
        levels.reserved - deltas.reserved,
        levels.safety_stock - deltas.safety_stock,
        levels.deficit - deltas.deficit,
        levels.low_stock_threshold - deltas.low_stock_threshold,
        supplies,
        [],
    )
