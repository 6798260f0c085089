"""Arrivals that named a supply which their row did not expect, while it expected others.

Where the name was misspelt, the supply that was meant still counts the units that came with it, so
they are promised twice. Nobody can know that but whoever sent it. What looks most like the name is
said; once one of these is announced anew or cancelled, or no more comes with any of them, somebody
has seen to it.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from engine.ledger import Entry, Operation, OperationKind, arrival_of
from engine.outcomes import Outcome
from engine.spelling import close
from reconciler.anomalies import MAX_EXAMPLES, Settled
from reconciler.findings import ChangeEvidence, Code, Finding, Invariant
from reconciler.fold import RowKey

MAX_ARRIVALS: Final = 10_000
"""Of one partition that are remembered, some 300 bytes each; more are not reported."""

MAX_NAMED: Final = 3
"""Supplies that one finding names as those that may have been meant."""

_REFERENCE, _WHY = 3, 12
"""Of the detail of an event of a feed."""


class Arrival(msgspec.Struct, frozen=True):
    """`units` that came with a `supply`; `meant` are those that its row expected and look alike."""

    row: RowKey
    supply: str
    units: int
    meant: tuple[str, ...]
    sequence: int
    at_ms: int
    reference: str
    actor: str


class SupplyWatch:
    """Watches the entries of one partition in their order; see `unknown_supplies`."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._arrivals: dict[RowKey, list[Arrival]] = {}
        self._remembered = 0
        self._expected: dict[RowKey, frozenset[str]] = {}
        self._changed: set[RowKey] = set()
        """Rows with arrivals that expect others now than when these were last looked at."""

    @property
    def open(self) -> list[Arrival]:
        """The arrivals that nobody has seen to, in their order."""
        found = [one for key in self._arrivals for one in self._open_of(key)]
        return sorted(found, key=lambda one: one.sequence)

    def observe(self, entry: Entry) -> None:
        """Note what an entry's operations say of supplies."""
        for sequence, operation in enumerate(entry.operations, entry.sequence):
            for change in operation.rows:
                key = (operation.merchant, operation.location, change.sku)
                supplies = (change.terms or {}).get("supplies", ())
                if supplies or self._expected:
                    self._expect(key, frozenset(supplies))
                if operation.kind is OperationKind.SUPPLY and key in self._arrivals:
                    named = operation.detail[0]
                    self._keep(key, [one for one in self._arrivals[key] if named not in one.meant])
            is_of_feed = operation.kind is OperationKind.FEED
            if is_of_feed and operation.detail[_WHY] == Outcome.SUPPLY_NOT_FOUND:
                self._note(operation, sequence, entry.at_ms)

    def _expect(self, key: RowKey, supplies: frozenset[str]) -> None:
        if supplies == self._expected.get(key, frozenset()):
            return
        if supplies:
            self._expected[key] = supplies
        else:
            del self._expected[key]
        if key in self._arrivals:
            self._changed.add(key)

    def _open_of(self, key: RowKey) -> list[Arrival]:
        expected = self._expected.get(key, frozenset())
        return [one for one in self._arrivals[key] if not expected.isdisjoint(one.meant)]

    def _keep(self, key: RowKey, arrivals: list[Arrival]) -> None:
        """Remember only these of a row."""
        self._remembered += len(arrivals) - len(self._arrivals[key])
        if arrivals:
            self._arrivals[key] = arrivals
        else:
            del self._arrivals[key]
            self._changed.discard(key)

    def _forget(self) -> None:
        """Forget the arrivals that somebody has seen to."""
        for key in list(self._changed):
            self._keep(key, self._open_of(key))
        self._changed.clear()

    def _note(self, operation: Operation, sequence: int, at_ms: int) -> None:
        arrival = arrival_of(operation)
        if arrival is None:
            return
        sku, supply, units = arrival
        key = (operation.merchant, operation.location, sku)
        expected = self._expected.get(key)
        if not expected:
            return
        if self._remembered >= MAX_ARRIVALS:
            self._forget()
        if self._remembered >= MAX_ARRIVALS:
            return
        self._remembered += 1
        self._arrivals.setdefault(key, []).append(
            Arrival(
                row=key,
                supply=supply,
                units=units,
                meant=close(supply, expected),
                sequence=sequence,
                at_ms=at_ms,
                reference=str(operation.detail[_REFERENCE]),
                actor=operation.who,
            )
        )


def unknown_supplies(watches: Iterable[SupplyWatch], settled: Settled) -> list[Finding]:
    """Return a finding for each supply of a location that was named and not expected."""
    arrivals: dict[tuple[str, str, str], list[Arrival]] = {}
    for watch in watches:
        for one in watch.open:
            if settled.has(one.row[0], (one.supply, one.reference, one.actor), one.at_ms):
                continue
            arrivals.setdefault((*one.row[:2], one.supply), []).append(one)
    return [_finding(found) for found in arrivals.values()]


def _finding(arrivals: list[Arrival]) -> Finding:
    first = arrivals[0]
    merchant, location, sku = first.row
    units = sum(one.units for one in arrivals)
    meant = list(dict.fromkeys(name for one in arrivals for name in one.meant))
    named = ", ".join(meant[:MAX_NAMED]) + (" and others" if len(meant) > MAX_NAMED else "")
    skus = {one.row[2] for one in arrivals}
    what = sku if len(skus) == 1 else f"{len(skus)} SKUs"
    return Finding(
        invariant=Invariant.ANOMALY,
        code=Code.SUPPLY_UNKNOWN,
        detail=(
            f"{units} units of {what} came with supply {first.supply}, which was not expected, "
            f"while {named} was: if that was meant, these units count twice"
        ),
        remedy=(
            "announce anew what is still to come with it, also where that is right as it is; or "
            f"holdfast repair --accept {first.supply} --merchant {merchant}"
        ),
        merchant=merchant,
        location=location,
        sku=sku,
        sequence=first.sequence,
        change=ChangeEvidence(
            reference=first.reference,
            actor=first.actor,
            first_at_ms=first.at_ms,
            last_at_ms=arrivals[-1].at_ms,
            changes=len(arrivals),
            judged=0,
            outside=0,
            factor=1.0,
            units=units,
            examples=tuple(
                f"{one.units} of {one.row[2]}: {', '.join(one.meant[:MAX_NAMED])}"
                for one in arrivals[:MAX_EXAMPLES]
            ),
        ),
        repairable=False,
    )
