"""The plan of a repair: what should be, decided from an audit's findings alone.

The ledger is the truth. Only where it lost operations itself is the live state the better witness:
a row whose version is ahead, a reservation whose rows bear it out. `reserved` is always made the
sum of the reservations that are right, so a repair cannot miscount.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from engine.ledger import Levels
from engine.limits import RETENTION_MS
from engine.model import ReservationState
from reconciler.findings import (
    LOSSES,
    ClaimsEvidence,
    Code,
    CountEvidence,
    Finding,
    HoldEvidence,
    QueueEvidence,
    RowEvidence,
    RowFacts,
    SourceEvidence,
)
from reconciler.fold import FoldedReservation, RowKey, told_waits
from reconciler.inspection import MISSING
from reconciler.sources import FoldedSource
from reconciler.steps import (
    AsideStep,
    ClaimsStep,
    CountStep,
    HoldStep,
    IndexStep,
    KnownStep,
    ListingStep,
    Place,
    QueueStep,
    RecordStep,
    RemoveStep,
    RepairStep,
    RowStep,
    SegmentStep,
    SequenceStep,
    SourceStep,
)

MAX_VERSION: Final = 2**53 - 1

_NOTHING: Final = Levels(0, 0, 0, 0)
_HISTORY: Final = frozenset(
    {
        Code.VERSIONS_SKIPPED,
        Code.VERSION_FELL,
        Code.LEVELS_JUMPED,
        Code.EFFECT_IS_NOT_WHAT_IS_SAID,
        Code.LEVELS_OUT_OF_RANGE,
        Code.PROMISED_PAST_AVAILABLE,
        Code.APPLIED_TWICE,
    }
)
"""Findings about a row's history, which a repair of the row settles."""

_CONSEQUENCES: Final = frozenset({Code.BOOKS_DIFFER, Code.RESERVED_DIFFERS, Code.OVERSOLD})
"""What else is wrong with a row that was edited; the edit itself names the repair."""

_HOLD_HISTORY: Final = frozenset({Code.NEVER_RESERVED, Code.ENDED_TWICE, Code.APPLIED_TWICE})
_INDEXES: Final = frozenset({Code.HOLD_INDEX_DIFFERS, Code.OPEN_INDEX_DIFFERS})
_RANGES: Final = frozenset({Code.ENTRIES_OVERLAP, Code.CLOCK_FELL})


def plan(findings: Iterable[Finding]) -> list[RepairStep]:
    """Make a plan of findings; pure. What needs a person has no step, its finding says so."""
    by_partition: dict[int, list[Finding]] = defaultdict(list)
    for finding in findings:
        if finding.repairable and finding.partition >= 0:
            by_partition[finding.partition].append(finding)
    steps: list[RepairStep] = []
    for partition in sorted(by_partition):
        steps += _PartitionPlan(partition, by_partition[partition]).steps()
    return steps


class _Subject(msgspec.Struct):
    """A reservation and all that was found about it."""

    hold: HoldEvidence
    sequence: int
    findings: list[Finding]
    strays: list[Place]


class _PartitionPlan:
    """The plan of one partition: reservations first, as the rows' `reserved` follows from them."""

    def __init__(self, partition: int, findings: Sequence[Finding]) -> None:
        self._partition = partition
        self._findings = findings
        self._is_lossy = any(finding.code in LOSSES for finding in findings)
        self._edited_claims = {x.key for x in findings if x.code is Code.CLAIMS_DIFFER}
        self._rows: dict[RowKey, list[Finding]] = defaultdict(list)
        self._holds: dict[str, _Subject] = {}
        for finding in findings:
            if finding.row is not None:
                key = (finding.merchant, finding.location, finding.sku)
                self._rows[key].append(finding)
            if finding.hold is not None:
                self._add_hold(finding, finding.hold)

    def _add_hold(self, finding: Finding, hold: HoldEvidence) -> None:
        subject = self._holds.setdefault(
            finding.reservation, _Subject(hold, finding.sequence, [], [])
        )
        subject.findings.append(finding)
        place = (finding.merchant, finding.location)
        if finding.code is Code.OPEN_INDEX_DIFFERS and place != _own_place(hold):
            subject.strays.append(place)

    def steps(self) -> list[RepairStep]:
        steps: list[RepairStep] = []
        freed: dict[RowKey, tuple[int, int]] = {}
        for the_id, subject in self._holds.items():
            right = _consistent(self._right_hold(subject.hold))
            _note_change(freed, subject.hold.ledger, right)
            steps += self._hold_steps(the_id, subject, right)
        repaired = set()
        for key, findings in self._rows.items():
            step = self._row_step(key, findings, freed.get(key, (0, 0)))
            if step is not None:
                steps.append(step)
                repaired.add(key)
        for finding in self._findings:
            steps += self._other_steps(finding, repaired)
        return _without_doubles(steps)

    # Reservations

    def _right_hold(self, hold: HoldEvidence) -> FoldedReservation | None:
        """Decide what a reservation should be; None for none at all.

        The ledger says so, unless it lost operations. Then a live change of an open reservation is
        taken over, and an ending or a new one where its rows show traces of lost operations too.
        """
        live, ledger = hold.live, hold.ledger
        if live == ledger or not self._is_lossy:
            return ledger
        if ledger is None:
            return live if live is not None and self._bear_out(live) else None
        if live is None:
            gone = hold.token == MISSING and hold.hold_score is None and hold.open_score is None
            if ledger.is_open and gone and self._bear_out(ledger) and self._went_back(ledger):
                return msgspec.structs.replace(
                    ledger,
                    state=ReservationState.EXPIRED,
                    ended_at_ms=max(ledger.expires_at_ms, ledger.body.created_at_ms),
                )
            return ledger
        if live.body != ledger.body or not ledger.is_open:
            return ledger
        return live if live.is_open or self._bear_out(live) else ledger

    def _bear_out(self, reservation: FoldedReservation) -> bool:
        """Tell whether every row of a reservation shows that operations on it were lost."""
        for key, _, _ in reservation.units():
            row = self._evidence(key)
            if row is None:
                return False
            is_ahead = row.live is not None and (
                row.ledger is None or row.live.version > row.ledger.version
            )
            if not is_ahead and not row.versions_skipped:
                return False
        return True

    def _went_back(self, reservation: FoldedReservation) -> bool:
        """Tell whether the rows no longer count a reservation's units."""
        for key, units, _ in reservation.units():
            row = self._evidence(key)
            facts = None if row is None else _better(row)
            if row is None or facts is None or facts.reserved > row.held - units:
                return False
        return True

    def _evidence(self, key: RowKey) -> RowEvidence | None:
        findings = self._rows.get(key)
        return findings[0].row if findings else None

    def _hold_steps(
        self, the_id: str, subject: _Subject, right: FoldedReservation | None
    ) -> list[RepairStep]:
        hold = subject.hold
        codes = {finding.code for finding in subject.findings}
        steps: list[RepairStep] = [
            KnownStep(
                partition=self._partition,
                first=finding.sequence,
                last=finding.sequence,
                finding=finding.code,
                why=f"it is put on record: {finding.detail}",
                merchant=finding.merchant,
                location=finding.location,
            )
            for finding in subject.findings
            if finding.code in _HOLD_HISTORY
        ]
        if not codes - _HOLD_HISTORY:
            return steps
        strays = tuple(dict.fromkeys(subject.strays))
        main = subject.findings[0]
        if right is None and hold.token != MISSING:
            steps.append(self._remove_hold(the_id, subject, strays, main))
        elif right is not None and codes - _HOLD_HISTORY - _INDEXES:
            taken_over = right == hold.live
            steps.append(
                HoldStep(
                    partition=self._partition,
                    merchant=right.body.merchant,
                    location=right.body.location,
                    reservation=the_id,
                    sequence=subject.sequence,
                    finding=main.code,
                    why="the live reservation is taken over by the ledger"
                    if taken_over
                    else f"restored as the ledger says: {right.state}",
                    token=hold.token,
                    right=right,
                    keep_ms=max(1, right.ended_at_ms + RETENTION_MS - hold.now_ms),
                    strays=strays,
                )
            )
        elif codes & _INDEXES:
            own = _own_place(hold)
            steps.append(
                IndexStep(
                    partition=self._partition,
                    merchant=own[0],
                    location=own[1],
                    reservation=the_id,
                    sequence=subject.sequence,
                    finding=main.code,
                    why="the indexes are made to say what the reservation says",
                    strays=strays,
                )
            )
        return steps

    def _remove_hold(
        self, the_id: str, subject: _Subject, strays: tuple[Place, ...], main: Finding
    ) -> RemoveStep:
        own = _own_place(subject.hold)
        return RemoveStep(
            partition=self._partition,
            merchant=own[0],
            location=own[1],
            key="",
            token=subject.hold.token,
            sequence=subject.sequence,
            finding=main.code,
            why="removed: no operation made it, and no row counts it",
            reservation=the_id,
            places=(own, *strays) if own[0] else strays,
        )

    # Rows

    def _row_step(
        self, key: RowKey, findings: Sequence[Finding], freed: tuple[int, int]
    ) -> RowStep | None:
        main = min(findings, key=lambda finding: finding.code in _CONSEQUENCES)
        row = main.row
        if row is None:
            return None
        ledger = _NOTHING if row.ledger is None else row.ledger.levels
        base = self._base(row)
        levels, waiting = base.levels, row.waiting + freed[1]
        terms = _with_pledges(base.terms, row.pooled, row.waits, waiting)
        books = levels.on_hand - levels.deficit - row.books_drift
        right = Levels(
            max(0, books),
            row.held + freed[0],
            max(0, levels.safety_stock - row.safety_stock_drift),
            max(0, -books),
            levels.low_stock_threshold,
            0,
            waiting,
        )
        has_history = any(finding.code in _HISTORY for finding in findings)
        readable = row.live is not None or row.token == MISSING
        is_as_told = row.live == row.ledger and right == ledger and not row.past_differs
        is_as_told = is_as_told and not row.split_differs
        if row.ledger is not None:
            is_as_told = is_as_told and terms == row.ledger.terms
        if readable and is_as_told and not has_history:
            # Its holds did not sum up, and with the reservations that are put right they do.
            return None
        return RowStep(
            partition=self._partition,
            merchant=key[0],
            location=key[1],
            sku=key[2],
            sequence=main.sequence,
            finding=main.code,
            why=_why(row, right, levels == ledger),
            token=row.token,
            version=_next_version(row),
            levels=right,
            deltas=_minus(right, ledger),
            found=row.live_text,
            past=row.past,
            terms=terms,
            split=row.split,
        )

    def _base(self, row: RowEvidence) -> RowFacts:
        """Return what a repair starts from: what is live where the ledger lost some."""
        if row.ledger is None:
            # A row that no operation made: emptied, unless operations are known to be lost.
            if row.live is not None and self._is_lossy:
                return row.live
            return RowFacts(_NOTHING, 0)
        ahead = row.live is not None and row.live.version > row.ledger.version
        if ahead and row.live is not None and self._is_lossy:
            return row.live
        return row.ledger

    # The rest

    def _other_steps(self, finding: Finding, repaired: set[RowKey]) -> list[RepairStep]:
        code = finding.code
        partition = self._partition
        if code is Code.ENTRIES_MISSING or code in _RANGES:
            return [_known_step(finding, partition)]
        if code is Code.SEQUENCE_BEHIND:
            why = "the count goes on from the ledger's last operation"
            return [SequenceStep(partition=partition, least=finding.last, finding=code, why=why)]
        if finding.segment is not None:
            return [_segment_step(finding, partition)]
        if code is Code.LISTING_DIFFERS:
            if (finding.merchant, finding.location, finding.sku) in repaired:
                return []
            return [
                ListingStep(
                    partition=partition,
                    merchant=finding.merchant,
                    location=finding.location,
                    sku=finding.sku,
                    sequence=finding.sequence,
                    finding=code,
                    why="the listing is made to say what there is",
                )
            ]
        if code is Code.INDEX_UNREADABLE:
            why = "removed; the next round makes it anew"
            return [_remove_step(finding, partition, finding.token, why)]
        if finding.source is not None:
            return [_source_step(finding, partition, finding.source, self._is_lossy)]
        if finding.aside is not None:
            return [
                AsideStep(
                    partition=partition,
                    merchant=finding.merchant,
                    location=finding.location,
                    sequence=finding.sequence,
                    finding=code,
                    why="made to be what the ledger says",
                    event=finding.aside,
                )
            ]
        if finding.queue is not None:
            return [_queue_step(finding, partition, finding.queue)]
        if finding.count is not None:
            return [_count_step(finding, partition, finding.count)]
        if finding.claims is not None:
            # What the ledger has may be all that is missing.
            is_later = code is Code.CLAIM_MISSING and finding.key in self._edited_claims
            return [] if is_later else [_claims_step(finding, partition, finding.claims)]
        record = finding.record
        # A record of an operation that the ledger lost keeps a retry from having its effect again.
        is_lost = self._is_lossy and record is not None and record.fingerprint != ""
        if record is not None and code is Code.RECORD_UNKNOWN and not is_lost:
            why = "removed: no operation made it"
            return [_remove_step(finding, partition, record.token, why)]
        if record is not None:
            return [
                RecordStep(
                    partition=partition,
                    merchant=finding.merchant,
                    location=finding.location,
                    sequence=finding.sequence,
                    finding=code,
                    why="taken over by the ledger"
                    if code is Code.RECORD_UNKNOWN
                    else "written again as the ledger says",
                    record=record,
                )
            ]
        return []


def _consistent(right: FoldedReservation | None) -> FoldedReservation | None:
    """Take off what a reservation cannot have in its state, as a second ending leaves behind."""
    if right is None:
        return None
    return msgspec.structs.replace(
        right,
        ended_at_ms=0 if right.is_open else right.ended_at_ms,
        picked=right.picked if right.state is ReservationState.COMMITTED else (),
    )


def _own_place(hold: HoldEvidence) -> Place:
    known = hold.ledger if hold.ledger is not None else hold.live
    return ("", "") if known is None else (known.body.merchant, known.body.location)


def _with_pledges(
    terms: dict[str, Any] | None,
    pooled: Mapping[str, int],
    waits: Mapping[str, Any],
    waiting: int,
) -> dict[str, Any] | None:
    """Return terms whose pools hold, and whose days are waited for, as the open reservations say.

    As the scripts have it, a pool that was ended stays while it holds anything, and a row keeps
    terms while units of it wait.
    """
    right = {name: value for name, value in (terms or {}).items() if name not in told_waits(terms)}
    right |= waits
    channels = right.pop("channels", {})
    pools = {
        name: {**channels.get(name, {}), "held": pooled.get(name, 0)}
        for name in channels.keys() | pooled.keys()
    }
    pools = {name: pool for name, pool in pools.items() if pool["held"] or len(pool) > 1}
    if pools:
        right["channels"] = pools
    if waiting and not right:
        right["backorder_limit"] = 0
    return right or None


def _note_change(
    units: dict[RowKey, tuple[int, int]],
    before: FoldedReservation | None,
    after: FoldedReservation | None,
) -> None:
    """Add by how much what is held of each row, and waited for, changes from one to the other."""
    for sign, reservation in ((-1, before), (1, after)):
        if reservation is not None and reservation.is_open:
            for key, held, waits in reservation.units():
                so_far = units.get(key, (0, 0))
                units[key] = (so_far[0] + sign * held, so_far[1] + sign * waits)


def _better(row: RowEvidence) -> Levels | None:
    """Return the levels of the side that knows more operations."""
    if row.live is not None and (row.ledger is None or row.live.version > row.ledger.version):
        return row.live.levels
    return None if row.ledger is None else row.ledger.levels


def _next_version(row: RowEvidence) -> int:
    """Return a version past every one that a reader may have seen."""
    versions = [0]
    versions += [facts.version for facts in (row.live, row.ledger) if facts is not None]
    text = (row.live_text or {}).get("version", "")
    if text.isascii() and text.isdecimal() and int(text) < MAX_VERSION:
        versions.append(int(text))
    return max(versions) + 1


def _why(row: RowEvidence, right: Levels, as_ledger: bool) -> str:
    text = (
        f"on hand {right.on_hand}, reserved {right.reserved}, safety stock {right.safety_stock}, "
        f"deficit {right.deficit}"
        + (f", low at {right.low_stock_threshold}" if right.low_stock_threshold else "")
    )
    if row.ledger is None:
        return f"emptied: no operation made it: {text}" if right == _NOTHING else f"booked: {text}"
    if row.books_drift or row.safety_stock_drift:
        return f"{row.books_drift:+d} units that no operation explains are taken back: {text}"
    return f"restored as the ledger says: {text}" if as_ledger else f"taken over: {text}"


def _source_step(
    finding: Finding, partition: int, found: SourceEvidence, is_lossy: bool
) -> SourceStep:
    """Go by the ledger, unless it lost operations and the store knows of more.

    What is taken over comes without the prints: those that the ledger has are of other events.
    """
    right, why = found.ledger or FoldedSource(), "written again as the ledger says"
    if is_lossy and found.live is not None and found.live.highest > right.highest:
        right, why = msgspec.structs.replace(found.live, prints=bytearray()), "taken over"
    return SourceStep(
        partition=partition,
        merchant=finding.merchant,
        location=finding.location,
        source=found.source,
        sequence=finding.sequence,
        finding=finding.code,
        why=why,
        token=found.token,
        right=msgspec.structs.replace(right, skipped=0),
    )


def _queue_step(finding: Finding, partition: int, queue: QueueEvidence) -> QueueStep:
    why = "taken out: it waits for nothing" if queue.place is None else f"put at {queue.place}"
    return QueueStep(
        partition=partition,
        merchant=finding.merchant,
        location=finding.location,
        sku=finding.sku,
        reservation=finding.reservation,
        sequence=finding.sequence,
        finding=finding.code,
        why=f"in the queue of {finding.sku} {why}",
        token=queue.token,
        place=queue.place,
    )


def _count_step(finding: Finding, partition: int, count: CountEvidence) -> CountStep:
    return CountStep(
        partition=partition,
        merchant=finding.merchant,
        location=finding.location,
        sku=finding.sku,
        sequence=finding.sequence,
        finding=finding.code,
        why=f"what counts for buyer {count.buyer} is written again as the ledger says",
        count=count,
    )


def _claims_step(finding: Finding, partition: int, claims: ClaimsEvidence) -> ClaimsStep:
    return ClaimsStep(
        partition=partition,
        merchant=finding.merchant,
        location=finding.location,
        sequence=finding.sequence,
        finding=finding.code,
        why=f"what is claimed for buyer {claims.buyer} is written again",
        claims=claims,
    )


def _known_step(finding: Finding, partition: int) -> KnownStep:
    return KnownStep(
        partition=partition,
        first=finding.first,
        last=finding.last,
        finding=finding.code,
        why=f"it is put on record: {finding.detail}",
        gap=finding.code is Code.ENTRIES_MISSING,
    )


def _segment_step(finding: Finding, partition: int) -> SegmentStep | KnownStep:
    segment = finding.segment
    if segment is None or not segment.in_ledger or not segment.seal:
        return _known_step(finding, partition)
    return SegmentStep(
        partition=partition,
        finding=finding.code,
        why=f"operations {segment.first} to {segment.last} are written again from the store",
        segment=segment,
    )


def _remove_step(finding: Finding, partition: int, token: str, why: str) -> RemoveStep:
    return RemoveStep(
        partition=partition,
        merchant=finding.merchant,
        location=finding.location,
        key=finding.key,
        token=token,
        sequence=finding.sequence,
        finding=finding.code,
        why=why,
    )


def _without_doubles(steps: Sequence[RepairStep]) -> list[RepairStep]:
    seen: set[bytes] = set()
    kept = []
    for step in steps:
        form = msgspec.msgpack.encode(step)
        if form not in seen:
            seen.add(form)
            kept.append(step)
    return kept


def _minus(first: Levels, second: Levels) -> Levels:
    return Levels(
        first.on_hand - second.on_hand,
        first.reserved - second.reserved,
        first.safety_stock - second.safety_stock,
        first.deficit - second.deficit,
        first.low_stock_threshold - second.low_stock_threshold,
        0,
        first.backordered - second.backordered,
    )
