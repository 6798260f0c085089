"""The ledger's operations as they travel: what each kind keeps as an array gets its names here."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final
from urllib.parse import unquote

import msgspec
from msgspec import UNSET, Meta, UnsetType

from engine import model
from engine.claims import Claim
from engine.feeds import SourceState, Verdict
from engine.history import Found, HistoryPage
from engine.ledger import OperationKind, RowChange, row_after
from engine.model import ProposalDecision, ReservationState, time_text
from engine.order_records import OrderState, PartState, Plan
from engine.outlook import LATER
from gateway.wire import MissingLine, Terms, Time, Version, terms


class Changes(msgspec.Struct, frozen=True):
    """What an operation changed of a row, in units; negative where they became fewer."""

    on_hand: int
    reserved: int
    safety_stock: int
    deficit: int
    low_stock_threshold: int | UnsetType = UNSET
    offline_buffer: int | UnsetType = UNSET
    backordered: int | UnsetType = UNSET


class LedgerRow(msgspec.Struct, frozen=True):
    """A row just after an operation, and what the operation changed of it.

    `part` where that is but the part of a split row that is in this partition.
    """

    sku: str
    on_hand: int
    reserved: int
    safety_stock: int
    available: int
    shortfall: int
    deficit: int
    version: Version
    changes: Changes
    low_stock_threshold: int | UnsetType = UNSET
    offline_buffer: int | UnsetType = UNSET
    backordered: int | UnsetType = UNSET
    part: bool | UnsetType = UNSET


class PickedLine(msgspec.Struct, frozen=True):
    """Units of one SKU: those that left the shelf, are held back, or are held."""

    sku: str
    quantity: int


class PromisedLine(msgspec.Struct, frozen=True):
    """The day `by` which units of a SKU were promised."""

    sku: str
    by: str


class Endangered(msgspec.Struct, frozen=True):
    """A reservation `units` of which are not there."""

    reservation: str
    units: int
    state: ReservationState


class Definition(msgspec.Struct, frozen=True):
    """What was said of a SKU, as JSON; null where that was taken away."""

    sku: str
    text: str | None


class StandsForLine(msgspec.Struct, frozen=True):
    """`units` of `sku` that were held for `served` units of `asked`, at `of` for `for`."""

    asked: str
    sku: str
    units: int
    served: int
    of: int
    for_: int = msgspec.field(name="for")
    kind: str


class OrderPart(msgspec.Struct, frozen=True):
    """One location's part of an order just after the step."""

    location: str
    reservation: str
    state: PartState
    lines: list[PickedLine]
    stands_for: list[StandsForLine] | UnsetType = UNSET
    proposed: list[str] | UnsetType = UNSET


class Details(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an operation says beside its rows; each kind has some of these.

    `supply` is to come with `quantity` units on the day `expected_on`, or a movement is its
    arrival; `promised` says by which days what has not come was promised.

    `type` is a movement's or an event's; `superseded` says that a later count has it already, and
    `event_id`, `sequence`, `verdict`, `why` and `raw` tell of an event of a source. `reference` is
    a movement's, `order_ref` a reservation's, and `lines` what an amended one holds. `units`,
    `since`, `how` and `endangered` are of a shortfall; units of 0 say that it is over. `state` is a
    location's whose tills were silent, and `held_back` the units that are no longer promised there.
    `terms` are those that a row was given; `channel` is through which units were promised on
    some; `filled` units came for a backorder, `left` are to come. `source`, of a rebuild, is the
    store that was rebuilt, and of a movement the system that reported it. `defined` is substitutes
    or kits, of which these `definitions` make the `revision`. `split` says what of a row is in
    which partition, as its column does. `step` is what was done to an order, which is `order_state`
    since. `repaired` is what a repair put right, `finding` what the audit had found there.
    """

    type: str | UnsetType = UNSET
    quantity: int | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    reference: str | UnsetType = UNSET
    source: str | UnsetType = UNSET
    occurred_at: Time | UnsetType = UNSET
    superseded: bool | UnsetType = UNSET
    sku: str | UnsetType = UNSET
    event_id: str | UnsetType = UNSET
    sequence: int | UnsetType = UNSET
    verdict: Verdict | UnsetType = UNSET
    why: str | UnsetType = UNSET
    raw: str | UnsetType = UNSET
    order_ref: str | UnsetType = UNSET
    expires_at: Time | UnsetType = UNSET
    state_before: ReservationState | UnsetType = UNSET
    missing: list[MissingLine] | UnsetType = UNSET
    picked: list[PickedLine] | UnsetType = UNSET
    lines: list[PickedLine] | UnsetType = UNSET
    stands_for: list[StandsForLine] | UnsetType = UNSET
    decision: ProposalDecision | UnsetType = UNSET
    decided: list[str] | UnsetType = UNSET
    safety_stock: int | UnsetType = UNSET
    low_stock_threshold: int | UnsetType = UNSET
    terms: Terms | UnsetType = UNSET
    channel: str | UnsetType = UNSET
    supply: str | UnsetType = UNSET
    expected_on: str | UnsetType = UNSET
    promised: list[PromisedLine] | UnsetType = UNSET
    filled: int | UnsetType = UNSET
    left: int | UnsetType = UNSET
    units: int | UnsetType = UNSET
    since: Time | UnsetType = UNSET
    how: str | UnsetType = UNSET
    endangered: list[Endangered] | UnsetType = UNSET
    state: SourceState | UnsetType = UNSET
    held_back: list[PickedLine] | UnsetType = UNSET
    defined: str | UnsetType = UNSET
    revision: int | UnsetType = UNSET
    definitions: list[Definition] | UnsetType = UNSET
    split: str | UnsetType = UNSET
    step: str | UnsetType = UNSET
    order_state: OrderState | UnsetType = UNSET
    parts: list[OrderPart] | UnsetType = UNSET
    buyer: str | UnsetType = UNSET
    claimed: list[PickedLine] | UnsetType = UNSET
    repaired: str | UnsetType = UNSET
    finding: str | UnsetType = UNSET


class LedgerEntry(msgspec.Struct, frozen=True):
    """One operation, number `sequence` of its partition.

    `id` is the movement's or the reservation's. Where one SKU was asked for, `rows` has that row
    alone; `row_count` says how many the operation touched.
    """

    partition: int
    sequence: Annotated[int, Meta(ge=1, description="Rises by 1 within a partition.")]
    at: Time
    kind: OperationKind
    id: str
    merchant: str
    location: str
    actor: str
    rows: list[LedgerRow]
    row_count: int
    details: Details
    traceparent: str | UnsetType = UNSET


class MissingEntries(msgspec.Struct, frozen=True):
    """Operations that should be in this part of the ledger and cannot be read."""

    partition: int
    first_sequence: int
    last_sequence: int


class LedgerPage(msgspec.Struct, frozen=True):
    """Part of the ledger. A page may be short, or empty, and still `has_more`.

    The oldest first, `next_cursor` is there even at the end: it finds what comes later. `missing`
    names what could not be read.
    """

    data: list[LedgerEntry]
    has_more: bool
    next_cursor: str | None
    missing: list[MissingEntries]


def page(found: HistoryPage, *, sku: str | None, following: str | None) -> LedgerPage:
    """Make the answer of a page; `sku` is the one that was asked for."""
    return LedgerPage(
        [_entry(item, sku) for item in found.items],
        found.has_more,
        following,
        [
            MissingEntries(gap.partition, gap.first_sequence, gap.last_sequence)
            for gap in found.missing
        ],
    )


def _entry(found: Found, sku: str | None) -> LedgerEntry:
    operation = found.operation
    return LedgerEntry(
        found.partition,
        found.sequence,
        time_text(found.at_ms),
        operation.kind,
        operation.id,
        operation.merchant,
        operation.location,
        operation.who,
        [_row(change) for change in operation.changes if sku in (None, change.sku)],
        len(operation.changes),
        _DETAILS[operation.kind](operation.detail),
        operation.traceparent or UNSET,
    )


def _row(change: RowChange) -> LedgerRow:
    levels, deltas = change.levels, change.deltas
    return LedgerRow(
        change.sku,
        levels.on_hand,
        levels.reserved,
        levels.safety_stock,
        row_after("", "", change).available,
        max(0, levels.reserved - levels.on_hand),
        levels.deficit,
        change.version,
        Changes(
            deltas.on_hand,
            deltas.reserved,
            deltas.safety_stock,
            deltas.deficit,
            deltas.low_stock_threshold or UNSET,
            deltas.offline_buffer or UNSET,
            deltas.backordered or UNSET,
        ),
        levels.low_stock_threshold or UNSET,
        levels.offline_buffer or UNSET,
        levels.backordered or UNSET,
        change.is_part or UNSET,
    )


_SUPPLY: Final = 8
"""Where the detail of a movement names the supply that it is the arrival of."""


_FED_SUPPLY: Final = 15
"""The same of an event."""


def _moved(detail: Sequence[Any]) -> Details:
    kind, quantity, reason, reference, source, occurred_at_ms = detail[:6]
    return Details(
        type=kind,
        quantity=quantity,
        reason=reason or UNSET,
        reference=reference or UNSET,
        source=source or UNSET,
        occurred_at=time_text(occurred_at_ms) if occurred_at_ms else UNSET,
        superseded=(len(detail) > 6 and detail[6]) or UNSET,
        supply=detail[_SUPPLY] if len(detail) == _SUPPLY + 1 else UNSET,
    )


def _fed(detail: Sequence[Any]) -> Details:
    sku, event_id, number, verdict, why, raw = detail[8:14]
    return msgspec.structs.replace(
        _moved(detail),
        sku=sku or UNSET,
        event_id=event_id,
        sequence=number or UNSET,
        verdict=Verdict(verdict),
        why=why or UNSET,
        raw=raw or UNSET,
        supply=detail[_FED_SUPPLY] if len(detail) > _FED_SUPPLY else UNSET,
    )


def _reserved(detail: Sequence[Any]) -> Details:
    _, order_ref, missing, expires_at_ms, *extras = detail
    return Details(
        channel=extras[0]["channel"] if extras else UNSET,
        order_ref=order_ref or UNSET,
        expires_at=time_text(expires_at_ms),
        missing=[MissingLine(sku, quantity) for sku, quantity in missing] or UNSET,
        stands_for=_stands_for([extras[0].get("stands_for", ())] if extras else ()) or UNSET,
        promised=_promised(extras[0]) if extras else UNSET,
    )


def _amended(detail: Sequence[Any]) -> Details:
    extras = detail[4:5]
    return Details(
        lines=[PickedLine(sku, quantity) for sku, quantity in detail[1]],
        channel=extras[0]["channel"] if extras else UNSET,
        stands_for=_stands_for([extras[0].get("stands_for", ())] if extras else ()) or UNSET,
    )


def _promised(extras: Mapping[str, Any]) -> list[PromisedLine] | UnsetType:
    return [PromisedLine(sku, by) for sku, by in extras.get("expected", {}).items()] or UNSET


def _committed(detail: Sequence[Any]) -> Details:
    return Details(
        state_before=ReservationState(detail[0]),
        picked=[PickedLine(sku, quantity) for sku, quantity in detail[2]],
        stands_for=_stands_for(detail[3:]),
    )


def _stands_for(told: Sequence[Any]) -> list[StandsForLine] | UnsetType:
    """Read what stands for what, where an operation says so at its end."""
    return [StandsForLine(*one) for one in told[0]] if told and told[0] else UNSET


def _ordered(detail: Sequence[Any]) -> Details:
    step, _, state, revision, _, _, _, _, _, reason, plan, _, ref = detail
    return Details(
        step=step,
        order_state=OrderState(state),
        revision=revision,
        reason=reason or UNSET,
        order_ref=unquote(ref.rpartition(":")[0]) or UNSET,
        parts=[
            OrderPart(
                part.location,
                part.reservation,
                part.state,
                [PickedLine(line.sku, line.quantity) for line in part.lines],
                [StandsForLine(*msgspec.structs.astuple(x)) for x in part.stands_for] or UNSET,
                list(part.proposed) or UNSET,
            )
            for part in msgspec.convert(plan, Plan).parts
        ],
    )


def _claimed(detail: Sequence[Any]) -> Details:
    buyer, claim, _, picked = detail
    return Details(
        buyer=buyer,
        claimed=_lines_of_claim(claim),
        picked=_lines_of_claim(picked) if picked else UNSET,
    )


def _lines_of_claim(claim: Sequence[Any]) -> list[PickedLine]:
    if not claim:
        return []
    lines = msgspec.convert(claim, Claim).lines
    return [PickedLine(sku, units) for sku, (units, _, _) in sorted(lines.items())]


_DETAILS: Final[dict[OperationKind, Callable[[Sequence[Any]], Details]]] = {
    OperationKind.MOVE: _moved,
    OperationKind.FEED: _fed,
    OperationKind.OFFLINE: lambda detail: Details(
        state=SourceState(detail[0]),
        since=time_text(detail[1]),
        held_back=[PickedLine(sku, units) for sku, units in detail[2]],
    ),
    OperationKind.SHORTFALL: lambda detail: Details(
        sku=detail[0],
        units=detail[1],
        since=time_text(detail[2]),
        how=detail[3],
        endangered=[Endangered(*one) for one in detail[4]],
    ),
    OperationKind.RESERVE: _reserved,
    OperationKind.CONFIRM: lambda detail: Details(order_ref=detail[0] or UNSET),
    OperationKind.AMEND: _amended,
    OperationKind.EXTEND: lambda detail: Details(expires_at=time_text(detail[0])),
    OperationKind.COMMIT: _committed,
    OperationKind.RELEASE: lambda detail: Details(
        state_before=ReservationState(detail[0]),
        reason=detail[2] or UNSET,
        stands_for=_stands_for(detail[3:]),
    ),
    OperationKind.DECIDE: lambda detail: Details(
        decision=ProposalDecision(detail[0]),
        decided=list(detail[1]),
        lines=[PickedLine(sku, units) for sku, units in detail[2]],
        missing=[MissingLine(sku, quantity) for sku, quantity in detail[3]] or UNSET,
        stands_for=_stands_for([detail[4].get("stands_for", ())]) or UNSET,
    ),
    OperationKind.EXPIRE: lambda detail: Details(
        state_before=ReservationState(detail[0]), stands_for=_stands_for(detail[2:])
    ),
    OperationKind.CONFIGURE: lambda detail: Details(
        safety_stock=detail[0], low_stock_threshold=detail[1] if len(detail) > 1 else UNSET
    ),
    OperationKind.ORDER: _ordered,
    OperationKind.CLAIM: _claimed,
    OperationKind.SETTLE: _claimed,
    OperationKind.DEFINE: lambda detail: Details(
        defined=detail[0],
        revision=detail[1],
        definitions=[Definition(sku, text or None) for sku, text in detail[2]],
    ),
    OperationKind.TERMS: lambda detail: Details(
        terms=terms(msgspec.convert(detail[0] or {}, model.Terms))
    ),
    OperationKind.SLIP: lambda detail: Details(
        sku=detail[0],
        units=detail[1],
        promised=[PromisedLine(detail[0], detail[2])],
        expected_on=UNSET if detail[3] == LATER else detail[3],
    ),
    OperationKind.SUPPLY: lambda detail: Details(
        supply=detail[0], expected_on=detail[1] or UNSET, quantity=detail[2]
    ),
    OperationKind.FILL: lambda detail: Details(sku=detail[0], filled=detail[1], left=detail[2]),
    OperationKind.SPLIT: lambda detail: Details(sku=detail[0], split=detail[1]),
    OperationKind.PART: lambda detail: Details(split=detail[0]),
    OperationKind.REPAIR: lambda detail: Details(
        repaired=detail[0], reason=detail[1] or UNSET, finding=detail[2] or UNSET
    ),
    OperationKind.REBUILD: lambda detail: Details(source=detail[0] or UNSET),
}
"""How the `detail` of each kind is read; docs/reference/ledger.md names its elements."""
