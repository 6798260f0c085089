"""Undoing movements: first the blast radius, then compensating operations in the ledger.

`reconciler.counterfactual` says what each row would be without them. The rows are then given these
levels by `repair` operations, so a bad import is taken back with nothing rewritten: its entries
stay, and so does the history of what was promised on the strength of them.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from engine.inventory import Inventory
from engine.ledger import Levels
from reconciler.account import Account, Snapshots
from reconciler.anomalies import UNDO
from reconciler.archive import Archive
from reconciler.counterfactual import (
    MAX_LISTED,
    MAX_UNDONE_ROWS,
    Counterfactual,
    RowDifference,
    SupplyDifference,
    Target,
    TooMuchToUndo,
)
from reconciler.evidence import to_row
from reconciler.fold import FoldedReservation, RowKey
from reconciler.inspection import MAX_INSPECTED, Look, inspect, row_token
from reconciler.past import Past
from reconciler.repair import RepairReport, Verdict, apply
from reconciler.steps import RowStep

MAX_ROUNDS: Final = 10
"""How often rows that changed meanwhile are worked out anew."""

_DIFFERS: Final = "the row differs from the ledger: audit and repair it first"
_BUSY: Final = "the row could not be changed, or changed each time: run it again"


class Affected(msgspec.Struct, frozen=True):
    """A reservation, and how many units of one of its rows would not have been there."""

    reservation: str
    merchant: str
    location: str
    sku: str
    order_ref: str
    state: str
    quantity: int
    missing: int


class BlastRadius(msgspec.Struct, frozen=True, kw_only=True):
    """What the named operations did and still do; times in ms since 1970, 0 where there are none.

    `units_added` and `units_taken` are what undoing them gives to and takes from the shelves,
    `units_to_come` what supplies are said to bring beyond what they are now.
    `unfounded` are reservations that were made although, without the operations, there would not
    have been enough; `endangered` are open ones that undoing them leaves without units, the latest
    first to miss theirs. Both list the first MAX_LISTED; the counts are of all.
    """

    name: str
    merchant: str
    operations: int
    first_at_ms: int
    last_at_ms: int
    actors: tuple[str, ...]
    references: tuple[str, ...]
    merchants: int
    locations: int
    rows_touched: int
    rows_differing: int
    units_added: int
    units_taken: int
    units_to_come: int
    unfounded_count: int
    unfounded: tuple[Affected, ...]
    endangered_count: int
    endangered: tuple[Affected, ...]
    orders_endangered: tuple[str, ...]
    already_undone: int
    """Rows that an earlier undo of the same name has put right."""


class UndoPlan(msgspec.Struct, frozen=True):
    """What undoing would do: first look, then hand it to `undo_apply`. `rows` are all of them."""

    target: Target
    planned_at_ms: int
    blast: BlastRadius
    rows: tuple[RowDifference, ...]


class Undone(msgspec.Struct, frozen=True):
    """What became of an undo. `unsettled` rows could not be done; their `obstacle` says why."""

    target: Target
    rounds: tuple[RepairReport, ...]
    rows: int
    units_added: int
    units_taken: int
    units_to_come: int
    unsettled: tuple[RowDifference, ...]


class _Partition:
    """One partition of an undo: both folds, at one place of the ledger."""

    def __init__(
        self, inventory: Inventory, archive: Archive | None, target: Target, number: int
    ) -> None:
        self.number = number
        self.now_ms = 0
        self.keys = inventory.keys[number]
        self.counterfactual = Counterfactual(target)
        self.account = Account(inventory.store, inventory.keys, number, archive)
        self.account.listeners.append(self.counterfactual.observe)

    def difference(self, key: RowKey) -> RowDifference | None:
        """Return how a row would be otherwise."""
        return self.counterfactual.difference(key, self.number, self.account.state)

    def differences(self) -> list[RowDifference]:
        """Return the rows that would be otherwise."""
        found = [self.difference(key) for key in self.counterfactual.rows]
        return [difference for difference in found if difference is not None]


async def undo_plan(
    inventory: Inventory,
    archive: Archive | None,
    target: Target,
    *,
    snapshots: Snapshots | None = None,
) -> UndoPlan:
    """Work out what undoing a target would do, and change nothing.

    Raises TooMuchToUndo, ArchiveUnavailable, StoreReadOnly while the store is being rebuilt, and
    what the store's calls raise.
    """
    now_ms = 0
    rows: list[RowDifference] = []
    summary = _Summary(target)
    for number in range(inventory.partitions):
        partition = await _open(inventory, archive, target, number, snapshots)
        now_ms = partition.now_ms
        differences = partition.differences()
        rows += differences
        if len(rows) > MAX_UNDONE_ROWS:
            raise TooMuchToUndo(len(rows))
        summary.add(partition, differences)
    return UndoPlan(target, now_ms, summary.blast(rows), tuple(rows))


async def undo_apply(
    inventory: Inventory,
    archive: Archive | None,
    target: Target,
    *,
    actor: str,
    reason: str,
    snapshots: Snapshots | None = None,
) -> Undone:
    """Undo a target by compensating `repair` operations, while traffic goes on.

    Each row is worked out at the place of the ledger that it is changed at, so what was sold since
    the plan is taken into account; a row that changes in between is worked out again. A second call
    finds nothing left to do. Raises as `undo_plan` and `apply` do.
    """
    rounds: list[RepairReport] = []
    done: list[RowDifference] = []
    unsettled: list[RowDifference] = []
    for number in range(inventory.partitions):
        partition = await _open(inventory, archive, target, number, snapshots)
        for last_round in range(MAX_ROUNDS + 1):
            due, blocked = await _due(inventory, partition)
            if not due or last_round == MAX_ROUNDS:
                unsettled += blocked
                unsettled += [
                    msgspec.structs.replace(difference, obstacle=_BUSY) for _, difference in due
                ]
                break
            report = await apply(inventory, [step for step, _ in due], actor=actor, reason=reason)
            rounds.append(report)
            done += [
                difference
                for applied, (_, difference) in zip(report.applied, due, strict=True)
                if applied.verdict in (Verdict.DONE, Verdict.ALREADY)
            ]
    return Undone(
        target=target,
        rounds=tuple(rounds),
        rows=len(done),
        units_added=sum(max(0, row.units) for row in done),
        units_taken=sum(max(0, -row.units) for row in done),
        units_to_come=sum(row.to_come for row in done),
        unsettled=tuple(unsettled),
    )


async def _open(
    inventory: Inventory,
    archive: Archive | None,
    target: Target,
    number: int,
    snapshots: Snapshots | None,
) -> _Partition:
    """Read a partition's whole ledger, up to where it now stands."""
    partition = _Partition(inventory, archive, target, number)
    await partition.account.open(snapshots=snapshots)
    inspection = await inspect(inventory.store, partition.keys, [])
    await partition.account.read_to(inspection.stream_id)
    partition.now_ms = inspection.now_ms
    return partition


async def _due(
    inventory: Inventory, partition: _Partition
) -> tuple[list[tuple[RowStep, RowDifference]], list[RowDifference]]:
    """Return a step for each row that is otherwise, and the rows that must be seen to first."""
    due: list[tuple[RowStep, RowDifference]] = []
    blocked: list[RowDifference] = []
    rows = partition.counterfactual.rows
    keys = partition.keys
    for start in range(0, len(rows), MAX_INSPECTED):
        chunk = rows[start : start + MAX_INSPECTED]
        looks = [Look("hash", keys.stock(*key)) for key in chunk]
        inspection = await inspect(inventory.store, keys, looks)
        await partition.account.read_to(inspection.stream_id)
        for key, value in zip(chunk, inspection.values, strict=True):
            difference = partition.difference(key)
            if difference is None:
                continue
            if to_row(value) != difference.actual:
                blocked.append(msgspec.structs.replace(difference, obstacle=_DIFFERS))
            elif difference.obstacle:
                blocked.append(difference)
            else:
                step = _step(partition, difference, row_token(value))
                due.append((step, difference))
    return due, blocked


def _step(partition: _Partition, difference: RowDifference, token: str) -> RowStep:
    levels, without = difference.actual.levels, difference.without
    row = partition.account.state.rows[difference.merchant, difference.location, difference.sku]
    name = partition.counterfactual.target.name
    return RowStep(
        partition=partition.number,
        merchant=difference.merchant,
        location=difference.location,
        sku=difference.sku,
        sequence=partition.account.state.sequence,
        finding=f"{UNDO}{name}",
        why=f"as if {name} had not been: {difference.units:+d} units{_told(difference.supplies)}",
        token=token,
        version=difference.actual.version + 1,
        levels=without,
        deltas=Levels(
            without.on_hand - levels.on_hand,
            without.reserved - levels.reserved,
            without.safety_stock - levels.safety_stock,
            without.deficit - levels.deficit,
            without.low_stock_threshold - levels.low_stock_threshold,
        ),
        past=row.past or Past(),
        terms=_terms_without(difference),
    )


def _told(supplies: Sequence[SupplyDifference]) -> str:
    return "".join(f", {one.without} to come with {one.supply}" for one in supplies)


def _terms_without(difference: RowDifference) -> dict[str, Any] | None:
    """Return a row's terms with its supplies as they would be."""
    if not difference.supplies:
        return difference.actual.terms
    terms = dict(difference.actual.terms or {})
    supplies = dict(terms.pop("supplies", {}))
    for one in difference.supplies:
        supplies[one.supply] = [one.expected_on, one.without]
        if not one.without:
            del supplies[one.supply]
    if supplies:
        terms["supplies"] = supplies
    return terms or None


class _Summary:
    """Adds the partitions of a plan up to its blast radius."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._operations = 0
        self._times: list[int] = []
        self._actors: dict[str, None] = {}
        self._references: dict[str, None] = {}
        self._merchants: set[str] = set()
        self._locations: set[tuple[str, str]] = set()
        self._rows = 0
        self._undone = 0
        self._unfounded_count = 0
        self._unfounded: list[Affected] = []
        self._endangered_count = 0
        self._endangered: list[Affected] = []
        self._orders: dict[str, None] = {}

    def add(self, partition: _Partition, differences: Iterable[RowDifference]) -> None:
        """Add one partition."""
        seen = partition.counterfactual
        if not seen.operations:
            return
        self._operations += seen.operations
        self._times += [seen.first_at_ms, seen.last_at_ms]
        self._actors |= seen.actors
        self._references |= seen.references
        self._merchants |= {key[0] for key in seen.touched}
        self._locations |= {key[:2] for key in seen.touched}
        self._rows += len(seen.touched)
        self._undone += len(seen.undone)
        self._unfounded_count += seen.unfounded_count
        reservations = partition.account.state.reservations
        for (the_id, key), (quantity, missing) in seen.unfounded.items():
            affected = _affected(the_id, reservations.get(the_id), key, quantity, missing)
            if len(self._unfounded) < MAX_LISTED:
                self._unfounded.append(affected)
        for affected in _endangered(differences, reservations):
            self._endangered_count += 1
            if affected.order_ref and len(self._orders) < MAX_LISTED:
                self._orders[affected.order_ref] = None
            if len(self._endangered) < MAX_LISTED:
                self._endangered.append(affected)

    def blast(self, rows: list[RowDifference]) -> BlastRadius:
        """Return the sum."""
        return BlastRadius(
            name=self._target.name,
            merchant=self._target.merchant,
            operations=self._operations,
            first_at_ms=min(self._times, default=0),
            last_at_ms=max(self._times, default=0),
            actors=tuple(sorted(self._actors)),
            references=tuple(sorted(filter(None, self._references))),
            merchants=len(self._merchants),
            locations=len(self._locations),
            rows_touched=self._rows,
            rows_differing=len(rows),
            units_added=sum(max(0, row.units) for row in rows),
            units_taken=sum(max(0, -row.units) for row in rows),
            units_to_come=sum(row.to_come for row in rows),
            unfounded_count=self._unfounded_count,
            unfounded=tuple(self._unfounded),
            endangered_count=self._endangered_count,
            endangered=tuple(self._endangered),
            orders_endangered=tuple(sorted(self._orders)),
            already_undone=self._undone,
        )


def _affected(
    the_id: str,
    reservation: FoldedReservation | None,
    key: RowKey,
    quantity: int,
    missing: int,
) -> Affected:
    merchant, location, sku = key
    order_ref, state = "", "ended"
    if reservation is not None:
        order_ref = reservation.order_ref or reservation.body.order_ref
        state = reservation.state.value
    return Affected(the_id, merchant, location, sku, order_ref, state, quantity, missing)


def _endangered(
    differences: Iterable[RowDifference], reservations: dict[str, FoldedReservation]
) -> list[Affected]:
    """Name the open reservations that would miss units, the latest made first."""
    short: dict[RowKey, int] = {}
    for row in differences:
        levels, without = row.actual.levels, row.without
        already = max(0, levels.reserved - levels.on_hand)
        missing = max(0, without.reserved - without.on_hand) - already
        if missing > 0:
            short[row.merchant, row.location, row.sku] = missing
    if not short:
        return []
    found = []
    # The ledger's order settles which of one millisecond came first.
    oldest_first = sorted(
        (item for item in reservations.items() if item[1].is_open),
        key=lambda item: item[1].body.created_at_ms,
    )
    for the_id, reservation in reversed(oldest_first):
        body = reservation.body
        for line in body.lines:
            key = (body.merchant, body.location, line.sku)
            missing = min(short.get(key, 0), line.quantity)
            if missing > 0:
                short[key] -= missing
                found.append(_affected(the_id, reservation, key, line.quantity, missing))
    return found
