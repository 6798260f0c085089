"""What a live key says beside what the ledger says of it, turned into findings."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from engine.ledger import Levels
from engine.limits import MAX_TOTAL
from engine.model import Line, ReservationState
from engine.reservations import Body, decode_waiting
from reconciler.contradictions import Note
from reconciler.findings import (
    Code,
    Finding,
    HoldEvidence,
    Invariant,
    RowEvidence,
    RowFacts,
)
from reconciler.fold import FoldedReservation, FoldedRow, RowKey, held_in_pools, told_waits
from reconciler.inspection import MISSING, Value

_CANONICAL: Final = re.compile(rb"0|[1-9][0-9]{0,15}")

_ROW_FIELDS: Final = (
    b"version",
    b"on_hand",
    b"reserved",
    b"safety_stock",
    b"deficit",
    b"low_stock_threshold",
    b"backordered",
)
_OPTIONAL: Final = frozenset({b"deficit", b"low_stock_threshold", b"backordered"})
"""Fields that a row does not have which never had a deficit, has no threshold, or no backorders."""


class _Pool(msgspec.Struct):
    held: int


class _Pools(msgspec.Struct):
    channels: dict[str, _Pool] = {}


_decode_body = msgspec.msgpack.Decoder(Body).decode
_decode_terms = msgspec.msgpack.Decoder(dict[str, Any]).decode
_check_pools = msgspec.msgpack.Decoder(_Pools).decode
_decode_lines = msgspec.msgpack.Decoder(tuple[Line, ...]).decode


def to_row(value: Value) -> RowFacts | None:
    """Read a row's hash; None where there is none, or a number in it is not written as it must."""
    if not isinstance(value, dict):
        return None
    texts = [value.get(name, b"0" if name in _OPTIONAL else b"") for name in _ROW_FIELDS]
    if not all(_CANONICAL.fullmatch(text) for text in texts):
        return None
    version, on_hand, reserved, safety_stock, deficit, threshold, backordered = map(int, texts)
    levels = Levels(on_hand, reserved, safety_stock, deficit, threshold, 0, backordered)
    if max(msgspec.structs.astuple(levels)) > MAX_TOTAL or version == 0:
        return None
    try:
        terms = None
        if b"terms" in value:
            _check_pools(value[b"terms"])
            terms = _decode_terms(value[b"terms"])
    except (ValueError, msgspec.MsgspecError):
        return None
    return RowFacts(levels, version, terms)


def to_reservation(value: Value) -> FoldedReservation | None:
    """Read a reservation's hash; None where there is none, or it cannot be read as one."""
    if not isinstance(value, dict):
        return None
    try:
        picked = value.get(b"picked", b"")
        return FoldedReservation(
            ReservationState(value[b"state"].decode()),
            int(value[b"expires_at"]),
            int(value.get(b"confirmed_at", b"0")),
            int(value.get(b"ended_at", b"0")),
            value.get(b"order_ref", b"").decode(),
            _decode_lines(picked) if picked else (),
            _decode_body(value[b"body"]),
            decode_waiting(value[b"waiting"]) if b"waiting" in value else {},
        )
    except (KeyError, ValueError, msgspec.MsgspecError):
        return None


def ledger_row(row: FoldedRow | None) -> RowFacts | None:
    """Return a folded row's units and version."""
    return None if row is None else RowFacts(row.facts(), row.version, row.terms)


def row_findings(
    partition: int, key: RowKey, row: RowEvidence, sequence: int, notes: Sequence[Note]
) -> list[Finding]:
    """Return what is wrong with a row: by its live levels, and by its history."""
    merchant, location, sku = key

    def finding(
        invariant: Invariant, code: Code, detail: str, remedy: str, at: int = sequence
    ) -> Finding:
        return Finding(
            invariant=invariant,
            code=code,
            detail=detail,
            remedy=remedy,
            partition=partition,
            merchant=merchant,
            location=location,
            sku=sku,
            sequence=at,
            row=row,
        )

    found = [finding(*difference) for difference in _row_differences(row)]
    # Where the row itself differs, its past is mended with it.
    if row.past_differs and row.live is not None and row.live == row.ledger:
        detail = "the row does not remember when its units came and went as the ledger says"
        remedy = "written again as the ledger says: a late count must find it"
        found.append(finding(Invariant.FOLD, Code.PAST_DIFFERS, detail, remedy))
    if row.split_differs and row.live is not None and row.live == row.ledger:
        detail = f"where the row is split is not what the ledger says: {row.split or 'nowhere'}"
        remedy = "written again as the ledger says: units could be promised twice"
        found.append(finding(Invariant.FOLD, Code.SPLIT_DIFFERS, detail, remedy))
    remedy = "what no operation explains is taken back through the ledger"
    found += [
        finding(note.invariant, note.code, note.detail, remedy, note.sequence) for note in notes
    ]
    ledger = row.ledger
    if ledger is not None and ledger.levels.reserved != row.held:
        detail = f"the ledger has {ledger.levels.reserved} reserved, its holds sum to {row.held}"
        remedy = "reserved is made the sum of the open reservations"
        found.append(finding(Invariant.HOLDS_SUM, Code.HOLDS_DIFFER, detail, remedy))
    if ledger is not None and ledger.levels.backordered != row.waiting:
        detail = f"the ledger has {ledger.levels.backordered} backordered, {row.waiting} wait"
        remedy = "backordered is made the sum of what the open reservations wait for"
        found.append(finding(Invariant.HOLDS_SUM, Code.HOLDS_DIFFER, detail, remedy))
    if ledger is not None and held_in_pools(ledger.terms) != row.pooled:
        detail = f"the ledger's pools hold {held_in_pools(ledger.terms)}, the holds {row.pooled}"
        remedy = "each pool is made the sum of the open reservations of its channel"
        found.append(finding(Invariant.HOLDS_SUM, Code.HOLDS_DIFFER, detail, remedy))
    if ledger is not None and told_waits(ledger.terms) != row.waits:
        detail = f"the ledger's row says {told_waits(ledger.terms)} of who waits, they {row.waits}"
        remedy = "the row is made to say what the open reservations wait for, by their days"
        found.append(finding(Invariant.HOLDS_SUM, Code.HOLDS_DIFFER, detail, remedy))
    return found


def _row_differences(row: RowEvidence) -> Iterator[tuple[Invariant, Code, str, str]]:
    live, ledger = row.live, row.ledger
    told = "the ledger does not know the row" if ledger is None else f"ledger {_row_text(ledger)}"
    if live is None:
        if row.token == MISSING:
            if ledger is not None:
                detail = f"the row is gone; {told}"
                yield Invariant.FOLD, Code.ROW_MISSING, detail, "written again as the ledger says"
            return
        wrong_type = row.token.startswith("type:")
        yield (
            Invariant.FOLD if wrong_type else Invariant.INTEGER,
            Code.ROW_UNREADABLE,
            f"the row cannot be read: {row.live_text}; {told}",
            "written again as the ledger says",
        )
        return
    if ledger is None:
        yield (
            Invariant.FOLD,
            Code.ROW_UNKNOWN,
            f"a row that no operation made: {_row_text(live)}",
            "emptied through the ledger; book the units if they are there",
        )
        return
    if live == ledger:
        return
    detail = f"live {_row_text(live)}; {told}"
    if live.version > ledger.version:
        remedy = "taken over where the ledger lost operations, else restored as the ledger says"
        yield Invariant.DENSE, Code.ROW_AHEAD, detail, remedy
    elif live.version < ledger.version:
        yield Invariant.FOLD, Code.ROW_BEHIND, detail, "the ledger's levels are restored"
    else:
        yield Invariant.FOLD, Code.ROW_DIFFERS, detail, "the ledger's levels are restored"
    yield from _consequences(row, live, ledger, detail)


def _consequences(
    row: RowEvidence, live: RowFacts, ledger: RowFacts, detail: str
) -> Iterator[tuple[Invariant, Code, str, str]]:
    """Name the invariants that an edited row breaks beside Fold."""
    remedy = "mended with the row"
    books = live.levels.on_hand - live.levels.deficit
    if books != ledger.levels.on_hand - ledger.levels.deficit and live.version <= ledger.version:
        yield Invariant.CONSERVATION, Code.BOOKS_DIFFER, detail, remedy
    if live.levels.reserved != row.held:
        text = f"{live.levels.reserved} reserved, but its holds sum to {row.held}"
        yield Invariant.HOLDS_SUM, Code.RESERVED_DIFFERS, text, remedy
    if live.levels.backordered != row.waiting:
        text = f"{live.levels.backordered} backordered, but {row.waiting} wait"
        yield Invariant.HOLDS_SUM, Code.RESERVED_DIFFERS, text, remedy
    if held_in_pools(live.terms) != row.pooled:
        text = f"its pools hold {held_in_pools(live.terms)}, but its holds {row.pooled}"
        yield Invariant.HOLDS_SUM, Code.RESERVED_DIFFERS, text, remedy
    if (
        live.levels.reserved > live.levels.on_hand
        and ledger.levels.reserved <= ledger.levels.on_hand
    ):
        text = f"{live.levels.reserved} reserved of {live.levels.on_hand} on hand, by no event"
        yield Invariant.NO_OVERSELL, Code.OVERSOLD, text, remedy


def reservation_findings(
    partition: int,
    the_id: str,
    hold: HoldEvidence,
    *,
    sequence: int,
    strays: Sequence[tuple[str, str]],
    may_be_gone: bool,
    notes: Sequence[Note],
) -> list[Finding]:
    """Return what is wrong with a reservation: its hash, its places in the indexes, its history.

    `strays` are locations (with their merchants) whose open index names it and should not.
    """
    known = hold.ledger if hold.ledger is not None else hold.live
    own = ("", "") if known is None else (known.body.merchant, known.body.location)

    def finding(
        invariant: Invariant,
        code: Code,
        detail: str,
        remedy: str,
        *,
        place: tuple[str, str] = own,
        at: int = sequence,
    ) -> Finding:
        return Finding(
            invariant=invariant,
            code=code,
            detail=detail,
            remedy=remedy,
            partition=partition,
            merchant=place[0],
            location=place[1],
            reservation=the_id,
            sequence=at,
            hold=hold,
        )

    found = [finding(*difference) for difference in _hold_differences(hold, may_be_gone)]
    found += [finding(*difference) for difference in _index_differences(hold)]
    for place in strays:
        detail = f"the open index of location {place[1]} names it"
        remedy = "taken from the index"
        found.append(
            finding(Invariant.INDEX_MATCH, Code.OPEN_INDEX_DIFFERS, detail, remedy, place=place)
        )
    for note in notes:
        remedy = "noted as known: the ledger is not rewritten"
        found.append(finding(note.invariant, note.code, note.detail, remedy, at=note.sequence))
    return found


def _hold_differences(
    hold: HoldEvidence, may_be_gone: bool
) -> Iterator[tuple[Invariant, Code, str, str]]:
    live, ledger = hold.live, hold.ledger
    if live is None and hold.token != MISSING:
        yield (
            Invariant.INTEGER,
            Code.RESERVATION_UNREADABLE,
            "the reservation cannot be read",
            "written again as the ledger says, or removed where it knows none",
        )
    elif live is None and ledger is not None:
        if ledger.is_open:
            detail = f"a {ledger.state} reservation of {_lines_text(ledger)} is gone"
            remedy = "restored while its promise is open"
            yield Invariant.HOLDS_SUM, Code.RESERVATION_MISSING, detail, remedy
        elif not may_be_gone:
            detail = f"a {ledger.state} reservation is gone before its retention is over"
            remedy = "restored, so that a retry finds its answer"
            yield Invariant.ONCE, Code.ANSWER_MISSING, detail, remedy
    elif live is not None and ledger is None:
        detail = f"a {live.state} reservation of {_lines_text(live)} that no operation made"
        remedy = "removed, or taken over where the ledger lost operations and the rows bear it out"
        yield Invariant.FOLD, Code.RESERVATION_UNKNOWN, detail, remedy
    elif live is not None and ledger is not None and live != ledger:
        same_state = live.state is ledger.state
        yield (
            Invariant.FOLD if same_state else Invariant.ONE_ENDING,
            Code.RESERVATION_DIFFERS,
            f"live {_hold_text(live)}; ledger {_hold_text(ledger)}",
            "the ledger's is restored, or the live one taken over where the ledger lost operations",
        )


def _index_differences(hold: HoldEvidence) -> Iterator[tuple[Invariant, Code, str, str]]:
    if hold.ledger is None and hold.live is not None:
        # What becomes of its places is decided with the reservation.
        return
    ledger = hold.ledger
    due = None
    opened = None
    if ledger is not None and ledger.is_open:
        opened = ledger.body.created_at_ms
        due = ledger.expires_at_ms if ledger.state is ReservationState.HELD else None
    remedy = "made to say what the reservation says"
    if hold.hold_score != due:
        detail = f"the hold index has it at {_time(hold.hold_score)}, not at {_time(due)}"
        yield Invariant.INDEX_MATCH, Code.HOLD_INDEX_DIFFERS, detail, remedy
    if hold.open_score != opened:
        detail = f"the open index has it at {_time(hold.open_score)}, not at {_time(opened)}"
        yield Invariant.INDEX_MATCH, Code.OPEN_INDEX_DIFFERS, detail, remedy


def _time(score: int | None) -> str:
    return "no time" if score is None else f"{score} ms"


def _row_text(row: RowFacts) -> str:
    levels = row.levels
    deficit = f", deficit {levels.deficit}" if levels.deficit else ""
    safety_stock = f", safety stock {levels.safety_stock}" if levels.safety_stock else ""
    threshold = f", low at {levels.low_stock_threshold}" if levels.low_stock_threshold else ""
    backordered = f", backordered {levels.backordered}" if levels.backordered else ""
    terms = "" if row.terms is None else f", terms {msgspec.json.encode(row.terms).decode()}"
    return (
        f"on hand {levels.on_hand}, reserved {levels.reserved}{safety_stock}{deficit}{threshold}"
        f"{backordered}{terms}, version {row.version}"
    )


def _lines_text(reservation: FoldedReservation) -> str:
    lines = reservation.body.lines
    text = ", ".join(f"{line.quantity} {line.sku}" for line in lines[:3])
    return f"{text}, and {len(lines) - 3} more lines" if len(lines) > 3 else text


def _hold_text(reservation: FoldedReservation) -> str:
    return f"{reservation.state}, expires {reservation.expires_at_ms}, {_lines_text(reservation)}"
