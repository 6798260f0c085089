"""Folding the ledger: what the state must be after every operation.

The fold is pure: it knows entries and nothing of the store, and notes where the ledger contradicts
itself. Live state, a snapshot plus its tail, and the whole history folded must be the same
(invariant Fold).
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from engine.claims import Claim, Claims
from engine.ledger import Entry, Levels, Operation, OperationKind, RowChange, units_of
from engine.limits import FEED_RETENTION_MS, RETENTION_MS
from engine.model import Line, MovementType, ReservationState
from engine.order_records import OrderBody, OrderState, Plan
from engine.outlook import Wait, waits_of
from engine.reservations import Body, Extras, Waiting, amended, decided, told
from reconciler.past import Past
from reconciler.sources import FoldedQuarantined, FoldedSource, SourceKey

MAX_FINDINGS: Final = 10_000
"""Disagreements that one fold keeps; a ledger with more is described well enough by them."""

# Looked up once and not in every operation: members of an enum cost more than all else of a check.
_RESERVE: Final = OperationKind.RESERVE
_MOVE: Final = OperationKind.MOVE
_COMMIT: Final = OperationKind.COMMIT
_FEED: Final = OperationKind.FEED
_TERMS: Final = OperationKind.TERMS
_SUPPLY: Final = OperationKind.SUPPLY
_REPAIR: Final = OperationKind.REPAIR
_OPEN: Final = (ReservationState.HELD, ReservationState.CONFIRMED)

_COUNT: Final = MovementType.COUNT.value
_DEPARTURES: Final = frozenset({MovementType.SALE.value, MovementType.TRANSFER_OUT.value})

_SUPERSEDED: Final = 6
"""Where the detail of a movement says whether a later count has it already."""

_FED_SUPPLY: Final = 15
"""Where the detail of an event names its supply; there is no element where it names none."""

_MOVED: Final = 4
"""Where the detail of a release says which move to another location it was for."""

RowKey = tuple[str, str, str]
"""(merchant, location, SKU)."""


BuyerKey = tuple[str, str, str, str]
"""(merchant, location, SKU, digest of the buyer)."""

ClaimsKey = tuple[str, str]
"""(merchant, digest of the buyer)."""


class FoldedRow(msgspec.Struct, array_like=True, gc=False):
    """A row as the ledger says it is, in units; `sequence` is the last operation on it.

    `split` is the column of a row that is or was split, or of a part of one.
    """

    on_hand: int
    reserved: int
    safety_stock: int
    deficit: int
    version: int
    sequence: int
    low_stock_threshold: int = 0
    past: Past | None = None
    offline_buffer: int = 0
    backordered: int = 0
    terms: dict[str, Any] | None = None
    split: str = ""

    def levels(self) -> tuple[int, int, int, int, int]:
        """Return on_hand, reserved, safety_stock, deficit and low_stock_threshold."""
        return (
            self.on_hand,
            self.reserved,
            self.safety_stock,
            self.deficit,
            self.low_stock_threshold,
        )

    def facts(self) -> Levels:
        """Return the levels that the row's own key has, the units held back left out."""
        return Levels(*self.levels(), 0, self.backordered)


class FoldedReservation(msgspec.Struct, array_like=True, gc=False):
    """A reservation as the ledger says it is; times in ms, 0 where they do not apply."""

    state: ReservationState
    expires_at_ms: int
    confirmed_at_ms: int
    ended_at_ms: int
    order_ref: str
    picked: tuple[Line, ...]
    body: Body
    waiting: Waiting = {}

    @property
    def is_open(self) -> bool:
        """True while it holds units."""
        return self.state in _OPEN

    def place_at(self, key: RowKey) -> int | None:
        """Return its place in a row's queue; None where it waits for nothing of the row."""
        wait = self.waiting.get(key[2])
        if wait is None or (self.body.merchant, self.body.location) != key[:2]:
            return None
        return wait.turn

    def counts(self) -> Iterator[tuple[BuyerKey, tuple[int, int]]]:
        """Yield what it counts for its buyer, each with (units, until); of nothing, 0 units."""
        body, extras = self.body, self.body.extras
        if extras is None:
            return
        left = {line.sku: line.quantity for line in (body.lines if self.is_open else self.picked)}
        for sku, window_ms in extras.capped.items():
            until_ms = 0 if self.is_open else self.ended_at_ms + window_ms
            yield (body.merchant, body.location, sku, extras.buyer), (left.get(sku, 0), until_ms)

    def units(self) -> Iterator[tuple[RowKey, int, int]]:
        """Yield each row with the units that it holds there and those that it waits for."""
        body = self.body
        for line in body.lines:
            waits = self.waiting[line.sku].units if line.sku in self.waiting else 0
            yield (body.merchant, body.location, line.sku), line.quantity - waits, waits


class FoldedSeen(msgspec.Struct, array_like=True, gc=False):
    """An idempotency record as the ledger says it is: what was asked, and answered at `at_ms`."""

    merchant: str
    location: str
    fingerprint: str
    reply: tuple[Any, ...]
    at_ms: int
    keep_ms: int = RETENTION_MS


class FoldedOrder(msgspec.Struct, array_like=True):
    """The record of an order as the ledger says it is; times in ms, 0 where they do not apply."""

    state: OrderState
    revision: int
    settled: bool
    created_at_ms: int
    expires_at_ms: int
    confirmed_at_ms: int
    ended_at_ms: int
    due_at_ms: int
    reason: str
    plan: Plan
    body: OrderBody
    ref: str

    def may_be_gone(self, now_ms: int) -> bool:
        """Tell whether it ended so long ago that it may have been forgotten."""
        return self.state.is_ended and self.settled and self.due_at_ms <= now_ms


class FoldedDefinitions(msgspec.Struct, array_like=True):
    """What a merchant says of its SKUs, in one kind of definitions: JSON by the SKU."""

    revision: int
    texts: dict[str, str]

    def fields(self) -> dict[str, str]:
        """Return the fields of the hash; `lua/define.lua` is the twin."""
        return {"": str(self.revision)} | {f"s{sku}": text for sku, text in self.texts.items()}


class Disagreement(msgspec.Struct, frozen=True):
    """Where the ledger contradicts itself; `invariant` is the name of the one that is broken."""

    invariant: str
    sequence: int
    detail: str
    row: RowKey | None = None
    reservation: str | None = None


class Gap(msgspec.Struct, frozen=True):
    """Sequences `first` to `last` that no entry carries."""

    first: int
    last: int


class PartitionState(msgspec.Struct):
    """One partition after operation `sequence`, at `at_ms`."""

    sequence: int = 0
    at_ms: int = 0
    stream_id: str = "0-0"
    rows: dict[RowKey, FoldedRow] = msgspec.field(default_factory=dict)
    reservations: dict[str, FoldedReservation] = msgspec.field(default_factory=dict)
    seen: dict[str, FoldedSeen] = msgspec.field(default_factory=dict)
    sources: dict[SourceKey, FoldedSource] = msgspec.field(default_factory=dict)
    quarantine: dict[str, FoldedQuarantined] = msgspec.field(default_factory=dict)
    buyers: dict[BuyerKey, dict[str, tuple[int, int]]] = msgspec.field(default_factory=dict)
    """What counts for a buyer of a row: (units, until) of each reservation, until as in the store.
    """
    claims: dict[ClaimsKey, Claims] = msgspec.field(default_factory=dict)
    """What counts for buyers over all locations; see `engine.claims`."""
    offline: dict[tuple[str, str], str] = msgspec.field(default_factory=dict)
    definitions: dict[tuple[str, str], FoldedDefinitions] = msgspec.field(default_factory=dict)
    shortfalls: dict[str, tuple[int, int, str, str, str, str]] = msgspec.field(default_factory=dict)
    orders: dict[str, FoldedOrder] = msgspec.field(default_factory=dict)

    def prune(self, now_ms: int) -> None:
        """Forget what the store has forgotten: endings and idempotency records past their time."""
        oldest = now_ms - RETENTION_MS
        self.reservations = {
            key: value
            for key, value in self.reservations.items()
            if value.is_open or value.ended_at_ms > oldest
        }
        self.seen = {
            key: value for key, value in self.seen.items() if value.at_ms + value.keep_ms > now_ms
        }
        self.orders = {
            key: value for key, value in self.orders.items() if not value.may_be_gone(now_ms)
        }
        for row in self.rows.values():
            if row.past is not None:
                row.past.prune(now_ms)
        for key, counted in list(self.buyers.items()):
            for the_id, (_, until_ms) in list(counted.items()):
                if until_ms and until_ms <= now_ms:
                    del counted[the_id]
            if not counted:
                del self.buyers[key]
        for of_buyer, claims in list(self.claims.items()):
            lasting = lasting_claims(claims, now_ms)
            if lasting:
                self.claims[of_buyer] = lasting
            else:
                del self.claims[of_buyer]


class Fold:
    """Applies entries to a state in order, and notes where they contradict it or each other."""

    def __init__(self, state: PartitionState | None = None) -> None:
        """Go on from `state`, or from nothing."""
        self.state = PartitionState() if state is None else state
        self.disagreements: list[Disagreement] = []
        self._gaps: list[Gap] = []
        self._acknowledged: list[Gap] = []

    @property
    def gaps(self) -> list[Gap]:
        """Missing sequences that no repair has acknowledged."""
        return [gap for gap in self._gaps if gap not in self._acknowledged]

    def apply_all(self, entries: Iterable[Entry]) -> None:
        """Apply entries, oldest first."""
        for entry in entries:
            self.apply(entry)

    def apply(self, entry: Entry) -> None:
        """Apply one entry; one that was applied before changes nothing."""
        state = self.state
        expected = state.sequence + 1
        sequence = entry.sequence
        if sequence + len(entry.operations) <= expected:
            return
        if sequence > expected:
            self._gaps.append(Gap(expected, sequence - 1))
        elif sequence < expected:
            self._disagree("Dense", sequence, f"the entry overlaps {state.sequence}")
        for operation in entry.operations:
            self._apply_operation(operation, sequence, entry.at_ms)
            sequence += 1
        state.sequence = sequence - 1
        state.at_ms = entry.at_ms
        state.stream_id = entry.stream_id

    def _apply_operation(self, operation: Operation, sequence: int, at_ms: int) -> None:
        for change in operation.changes:
            self._apply_row(operation, change, sequence)
        kind = operation.kind
        if kind is _RESERVE:
            self._reserve(operation, at_ms)
        elif kind is _FEED:
            self._feed(operation, sequence, at_ms)
        elif kind is _MOVE:
            change = operation.changes[0]
            self._remember_event(operation, at_ms)
            self.state.seen[operation.id] = FoldedSeen(
                operation.merchant,
                operation.location,
                operation.fingerprint,
                (
                    at_ms,
                    sequence,
                    change.version,
                    *_units(change.levels),
                    change.deltas.on_hand,
                    *_settings(change),
                ),
                at_ms,
            )
        elif kind is OperationKind.CONFIGURE or kind is _TERMS or kind is _SUPPLY:
            change = operation.changes[0]
            self.state.seen[operation.id] = FoldedSeen(
                operation.merchant,
                operation.location,
                operation.fingerprint,
                (
                    at_ms,
                    sequence,
                    change.version,
                    *_units(change.levels),
                    *_settings(change),
                ),
                at_ms,
            )
        elif kind is OperationKind.REPAIR:
            self._repair(operation, at_ms)
        elif kind is OperationKind.OFFLINE:
            place = (operation.merchant, operation.location)
            for sku, held_back in operation.detail[2]:
                self.state.rows[*place, sku].offline_buffer = held_back
            self.state.offline.pop(place, None)
            if operation.detail[0] != "live":
                self.state.offline[place] = f"{operation.detail[0]} {operation.detail[1]}"
        elif kind is OperationKind.ORDER:
            self._order(operation, sequence, at_ms)
        elif kind is OperationKind.CLAIM or kind is OperationKind.SETTLE:
            self._claim(operation)
        elif kind is OperationKind.DEFINE:
            self._define(operation, sequence)
        elif kind is OperationKind.SHORTFALL:
            sku, units, since_ms, how, _ = operation.detail
            self.state.shortfalls.pop(operation.id, None)
            if units:
                body = (since_ms, units, how, operation.merchant, operation.location, sku)
                self.state.shortfalls[operation.id] = body
        elif kind is OperationKind.SPLIT or kind is OperationKind.PART:
            self._split(operation, at_ms)
        elif kind is not OperationKind.REBUILD:
            self._change_reservation(operation, sequence, at_ms)

    def _define(self, operation: Operation, sequence: int) -> None:
        what, revision, definitions = operation.detail
        known = self.state.definitions.setdefault(
            (what, operation.merchant), FoldedDefinitions(0, {})
        )
        if revision != known.revision + 1:
            detail = f"revision {known.revision} of {what} is followed by {revision}"
            self._disagree("Dense", sequence, detail)
        known.revision = revision
        for sku, text in definitions:
            known.texts.pop(sku, None)
            if text:
                known.texts[sku] = text

    def _apply_row(self, operation: Operation, change: RowChange, sequence: int) -> None:
        key = (operation.merchant, operation.location, change.sku)
        levels, deltas = change.levels, change.deltas
        row = self.state.rows.get(key)
        if row is None:
            row = FoldedRow(0, 0, 0, 0, 0, 0)
            self.state.rows[key] = row
        # A repair says what the row is from here on, whatever was lost before it.
        if operation.kind is not _REPAIR:
            if change.version != row.version + 1:
                self._disagree(
                    "Dense", sequence, f"version {row.version} is followed by {change.version}", key
                )
            if (
                row.on_hand + deltas.on_hand != levels.on_hand
                or row.reserved + deltas.reserved != levels.reserved
                or row.safety_stock + deltas.safety_stock != levels.safety_stock
                or row.deficit + deltas.deficit != levels.deficit
                or row.low_stock_threshold + deltas.low_stock_threshold
                != levels.low_stock_threshold
                or row.backordered + deltas.backordered != levels.backordered
            ):
                self._disagree(
                    "Fold", sequence, f"{row.levels()} plus {deltas} is not the result", key
                )
        row.on_hand = levels.on_hand
        row.reserved = levels.reserved
        row.safety_stock = levels.safety_stock
        row.deficit = levels.deficit
        row.low_stock_threshold = levels.low_stock_threshold
        row.backordered = levels.backordered
        row.terms = change.terms
        row.version = change.version
        row.sequence = sequence

    def _split(self, operation: Operation, at_ms: int) -> None:
        """Take over what a row says of its parts or its home, and what left at the parts."""
        place = (operation.merchant, operation.location)
        if operation.kind is OperationKind.PART:
            self.state.rows[*place, operation.changes[0].sku].split = operation.detail[0]
            return
        sku, split, departures = operation.detail
        key = (*place, sku)
        self.state.rows[key].split = split
        for left_at_ms, units in departures:
            self._past(key).add(left_at_ms, -units, at_ms)

    def _past(self, key: RowKey) -> Past:
        row = self.state.rows[key]
        if row.past is None:
            row.past = Past()
        return row.past

    def _remember_event(self, operation: Operation, at_ms: int) -> None:
        """Make a movement or a booked event part of its row's past."""
        kind, occurred_at_ms = operation.detail[0], operation.detail[5]
        if len(operation.detail) > _SUPERSEDED and operation.detail[_SUPERSEDED]:
            return
        for change in operation.changes:
            past = self._past((operation.merchant, operation.location, change.sku))
            if kind == _COUNT:
                past.count(occurred_at_ms, operation.id, at_ms)
            else:
                quantity = units_of(operation, change.sku)
                units = -quantity if kind in _DEPARTURES else quantity
                past.add(occurred_at_ms or past.undated(at_ms), units, at_ms)

    def _feed(self, operation: Operation, sequence: int, at_ms: int) -> None:
        """Take over what an event did beside its row; `lua/feed.lua` is the twin."""
        merchant, location, detail = operation.merchant, operation.location, operation.detail
        kind, quantity, reason, reference, name, occurred_at_ms, _, _, sku, event_id = detail[:10]
        number, verdict, why, raw = detail[10:14]
        if operation.changes:
            self._remember_event(operation, at_ms)
        if verdict == "quarantined":
            body = [at_ms, why, operation.actor, operation.fingerprint, name, event_id, kind]
            body += [sku, quantity, occurred_at_ms, number, reason, reference, raw]
            body += detail[_FED_SUPPLY:]
            self.state.quarantine[operation.id] = FoldedQuarantined(merchant, location, body)
        elif self.state.quarantine.pop(operation.id, None) is not None:
            # It was tried again or dropped: its source had been heard when it came.
            return
        if raw:
            # It could not be read, so it is no event of a source.
            return
        source = self.state.sources.setdefault((merchant, location, name), FoldedSource())
        if verdict == "skipped":
            source.hear(at_ms, 0)
            source.skip(number)
            return
        source.hear(at_ms, 0 if verdict == "quarantined" else min(occurred_at_ms, at_ms))
        source.mode = "sequence" if number else "ids"
        if number:
            source.note(number, operation.fingerprint, at_ms)
        else:
            self.state.seen[operation.id] = FoldedSeen(
                merchant,
                location,
                operation.fingerprint,
                (at_ms, sequence),
                at_ms,
                FEED_RETENTION_MS,
            )

    def _order(self, operation: Operation, sequence: int, at_ms: int) -> None:
        """Take over a step of an order's record; `lua/order.lua` is the twin."""
        _, before, state, revision, settled, expires, confirmed, ended, due, reason = (
            operation.detail[:10]
        )
        plan, body, ref = operation.detail[10:13]
        known = self.state.orders.get(operation.id)
        was = ("", 0) if known is None else (known.state, known.revision)
        if was != (before, revision - 1):
            detail = f"{operation.id} {was} is followed by {before} {revision}"
            self._disagree("Dense", sequence, detail)
        if known is None and not body:
            # What was lost cannot be told; the rest of the ledger may still be.
            return
        self.state.orders[operation.id] = FoldedOrder(
            OrderState(state),
            revision,
            settled,
            at_ms if known is None else known.created_at_ms,
            expires,
            confirmed,
            ended,
            due,
            reason,
            msgspec.convert(plan, Plan),
            msgspec.convert(body, OrderBody) if known is None else known.body,
            ref,
        )

    def _claim(self, operation: Operation) -> None:
        """Take over what a claim says from here on; `lua/lib/claims.lua` is the twin."""
        buyer, claim, name, picked = operation.detail
        key = (operation.merchant, buyer)
        claims = self.state.claims.setdefault(key, {})
        claims.pop(operation.id, None)
        if claim:
            claims[operation.id] = msgspec.convert(claim, Claim)
        else:
            for other, it in claims.items():
                if it.beside == operation.id:
                    claims[other] = msgspec.structs.replace(it, beside="")
        if name:
            claims[name] = msgspec.convert(picked, Claim)
        if not claims:
            del self.state.claims[key]

    def _reserve(self, operation: Operation, at_ms: int) -> None:
        ttl_ms, order_ref, missing, expires_at_ms, *more = operation.detail
        extras = msgspec.convert(more[0], Extras) if more else None
        held = [
            Line(change.sku, change.deltas.reserved + change.deltas.backordered)
            for change in operation.changes
        ]
        waiting: Waiting = {}
        if extras is not None and extras.backordered:
            waiting = extras.waiting({x.sku: x.version for x in operation.changes})
        reservation = FoldedReservation(
            ReservationState.HELD,
            expires_at_ms,
            0,
            0,
            "",
            (),
            Body(
                operation.merchant,
                operation.location,
                operation.actor,
                operation.fingerprint,
                ttl_ms,
                order_ref,
                tuple(held),
                tuple([Line(sku, quantity) for sku, quantity in missing]),
                at_ms,
                (),
                extras,
            ),
            waiting,
        )
        self.state.reservations[operation.id] = reservation
        self._count_for_buyer(operation.id, reservation)

    def _change_reservation(self, operation: Operation, sequence: int, at_ms: int) -> None:
        reservation = self.state.reservations.get(operation.id)
        kind = operation.kind
        if reservation is None:
            self._disagree(
                "OneEnding", sequence, f"{kind} of an unknown reservation", None, operation.id
            )
            return
        if not reservation.is_open:
            self._disagree(
                "OneEnding", sequence, f"{kind} after {reservation.state}", None, operation.id
            )
        detail = operation.detail
        if kind is _COMMIT:
            for change in operation.changes:
                past = self._past((operation.merchant, operation.location, change.sku))
                past.add(past.undated(at_ms), change.deltas.on_hand, at_ms)
        if kind is OperationKind.CONFIRM:
            reservation.state = ReservationState.CONFIRMED
            reservation.confirmed_at_ms = at_ms
            reservation.expires_at_ms = 0
            reservation.order_ref = detail[0]
        elif kind is OperationKind.EXTEND:
            reservation.expires_at_ms = detail[0]
            self.state.seen[detail[2]] = FoldedSeen(
                operation.merchant,
                operation.location,
                operation.fingerprint,
                (detail[0], *told(reservation.body, reservation.waiting)),
                at_ms,
            )
        elif kind is OperationKind.DECIDE:
            reservation.body = decided(reservation.body, detail)
            self._count_for_buyer(operation.id, reservation)
        elif kind is OperationKind.FILL:
            sku, _, left = detail
            waiting = dict(reservation.waiting)
            wait = waiting.pop(sku, Wait(0, 0))
            if left:
                waiting[sku] = msgspec.structs.replace(wait, units=left)
            reservation.waiting = waiting
        elif kind is OperationKind.SLIP:
            sku, _, promised, expected = detail
            if sku in reservation.waiting:
                late = "" if expected == promised else expected
                wait = msgspec.structs.replace(reservation.waiting[sku], late=late)
                reservation.waiting = {**reservation.waiting, sku: wait}
        elif kind is OperationKind.AMEND:
            # A line that is dropped is none of those that it counts for its buyer from then on.
            self._count_for_buyer(operation.id, reservation, no_longer=True)
            reservation.body = amended(reservation.body, detail)
            if reservation.body.extras is not None:
                reservation.waiting = msgspec.convert(detail[5] or {}, Waiting)
                self._count_for_buyer(operation.id, reservation)
            self.state.seen[detail[0]] = FoldedSeen(
                operation.merchant,
                operation.location,
                operation.fingerprint,
                (
                    reservation.expires_at_ms,
                    reservation.confirmed_at_ms,
                    *told(reservation.body, reservation.waiting),
                ),
                at_ms,
            )
        else:
            reservation.state = _ENDINGS[kind]
            reservation.ended_at_ms = at_ms
            reservation.waiting = {}
            if kind is _COMMIT:
                reservation.picked = tuple([Line(sku, units) for sku, units in detail[2]])
            elif kind is OperationKind.RELEASE and len(detail) > _MOVED:
                reservation.order_ref = detail[_MOVED]
            self._count_for_buyer(operation.id, reservation)

    def _count_for_buyer(
        self, the_id: str, reservation: FoldedReservation, *, no_longer: bool = False
    ) -> None:
        """Let a reservation count for its buyer as it stands now, or not at all."""
        for key, (units, until_ms) in reservation.counts():
            counted = self.state.buyers.setdefault(key, {})
            counted.pop(the_id, None)
            if units and not no_longer:
                counted[the_id] = (units, until_ms)
            if not counted:
                del self.state.buyers[key]

    def _repair(self, operation: Operation, at_ms: int) -> None:
        """Take over what a repair says beside its rows; `lua/repair.lua` lists the details."""
        detail = operation.detail
        for change in operation.changes:
            past = self._past((operation.merchant, operation.location, change.sku))
            units = change.deltas.on_hand - change.deltas.deficit
            past.add(past.undated(at_ms), units, at_ms, tidy=False)
        gap = acknowledged_gap(operation)
        if gap is not None:
            self._acknowledged.append(gap)
        elif detail[0] == "reservation":
            right = msgspec.convert(detail[4], FoldedReservation)
            self.state.reservations[detail[3]] = right
            self._count_for_buyer(detail[3], right)
        elif detail[0] == "claims":
            claims = msgspec.convert(detail[4] or {}, Claims)
            self.state.claims.pop((operation.merchant, detail[3]), None)
            if claims:
                self.state.claims[operation.merchant, detail[3]] = claims
        elif detail[0] == "source":
            name = (operation.merchant, operation.location, detail[3])
            before = self.state.sources.get(name)
            source = msgspec.convert(detail[4], FoldedSource)
            if before is not None and before.highest == source.highest:
                source.prints = before.prints
            self.state.sources[name] = source
        elif detail[0] == "seen":
            _, _, _, the_id, fingerprint, reply, keep_ms = detail
            self.state.seen[the_id] = FoldedSeen(
                operation.merchant, operation.location, fingerprint, tuple(reply), at_ms, keep_ms
            )

    def _disagree(
        self,
        invariant: str,
        sequence: int,
        detail: str,
        row: RowKey | None = None,
        reservation: str | None = None,
    ) -> None:
        if len(self.disagreements) < MAX_FINDINGS:
            self.disagreements.append(Disagreement(invariant, sequence, detail, row, reservation))


def lasting_claims(claims: Claims, now_ms: int) -> Claims:
    """Return the claims of a buyer without what counts no longer."""
    return {
        name: lasting
        for name, claim in claims.items()
        if (lasting := claim.lasting(now_ms)) is not None
    }


def held_in_pools(terms: dict[str, Any] | None) -> dict[str, int]:
    """Return what a row's terms say that the pools of its channels hold, those that hold any."""
    channels = (terms or {}).get("channels", {})
    return {name: pool["held"] for name, pool in channels.items() if pool["held"]}


def told_waits(terms: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a row's terms say of those who wait for it."""
    return {name: value for name, value in (terms or {}).items() if name in ("waits", "late")}


def waits_in(reservations: Iterable[FoldedReservation]) -> dict[RowKey, dict[str, Any]]:
    """Return what the terms of each row should say of the open reservations that wait for it."""
    found: dict[RowKey, list[Wait]] = {}
    for reservation in reservations:
        if reservation.waiting and reservation.is_open:
            place = (reservation.body.merchant, reservation.body.location)
            for sku, wait in reservation.waiting.items():
                found.setdefault((*place, sku), []).append(wait)
    return {key: told for key, waits in found.items() if (told := waits_of(waits))}


def acknowledged_gap(operation: Operation) -> Gap | None:
    """Return the gap that an operation says is known; None where it is no such repair."""
    if operation.kind is not OperationKind.REPAIR or operation.detail[0] != "gap":
        return None
    return Gap(operation.detail[3], operation.detail[4])


_ENDINGS: Final = {
    OperationKind.COMMIT: ReservationState.COMMITTED,
    OperationKind.RELEASE: ReservationState.RELEASED,
    OperationKind.EXPIRE: ReservationState.EXPIRED,
}


def _units(levels: Levels) -> tuple[int, int, int, int]:
    return (levels.on_hand, levels.reserved, levels.safety_stock, levels.deficit)


def _settings(change: RowChange) -> tuple[Any, ...]:
    """Return what a reply has at its end of a row that has more than most rows have."""
    levels = change.levels
    if change.terms is not None:
        held_back = (levels.low_stock_threshold, levels.offline_buffer)
        return (*held_back, levels.backordered, change.terms)
    if levels.offline_buffer:
        return (levels.low_stock_threshold, levels.offline_buffer)
    return (levels.low_stock_threshold,) if levels.low_stock_threshold else ()
