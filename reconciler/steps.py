"""The steps of a repair: what each changes, and the command to `lua/repair.lua` that does it.

A step names what it was made from by a token of how the key looked; the script refuses it once the
key looks otherwise. `finding` and the operator's reason go to the ledger with it.
"""

from typing import Any, Final

import msgspec

from engine.dispatch import Command
from engine.keys import PartitionKeys, claim_member, digest, location_member
from engine.ledger import Levels
from engine.packing import passed_on
from reconciler.findings import (
    AsideEvidence,
    ClaimsEvidence,
    CountEvidence,
    RecordEvidence,
    SegmentEvidence,
)
from reconciler.fold import FoldedReservation
from reconciler.past import Past
from reconciler.sources import FoldedSource, quarantine_text

Place = tuple[str, str]
"""(merchant, location)."""


class RowStep(msgspec.Struct, frozen=True, kw_only=True, tag="row"):
    """A row gets `levels` and `version`; `deltas` are its change by the ledger, in units."""

    partition: int
    merchant: str
    location: str
    sku: str
    sequence: int
    finding: str
    why: str
    token: str
    version: int
    levels: Levels
    deltas: Levels
    found: dict[str, str] | None = None
    terms: dict[str, Any] | None = None
    past: Past = msgspec.field(default_factory=Past)
    split: str = ""

    def command(self, keys: PartitionKeys, *, actor: str, reason: str) -> Command:
        """Make the command."""
        found = [] if self.found is None else [list(pair) for pair in self.found.items()]
        return Command(
            (
                keys.stock(self.merchant, self.location, self.sku),
                keys.skus(self.merchant, self.location),
                keys.locations,
                keys.recent(self.merchant, self.location, self.sku),
            ),
            (
                _id(self, self.sku, self.token),
                *_head(self, "row", actor, reason),
                self.sku,
                location_member(self.merchant, self.location),
                self.token,
                self.version,
                self.levels,
                self.deltas,
                found,
                (self.past.counted_at_ms, self.past.counted_by, self.past.deltas),
                self.terms or False,
                self.split,
            ),
        )


class HoldStep(msgspec.Struct, frozen=True, kw_only=True, tag="reservation"):
    """A reservation becomes `right`, and the indexes follow; an ended one stays for `keep_ms`."""

    partition: int
    merchant: str
    location: str
    reservation: str
    sequence: int
    finding: str
    why: str
    token: str
    right: FoldedReservation
    keep_ms: int
    strays: tuple[Place, ...] = ()

    def command(self, keys: PartitionKeys, *, actor: str, reason: str) -> Command:
        """Make the command."""
        return Command(
            (
                keys.reservation(self.reservation),
                keys.open_reservations(self.merchant, self.location),
                *[keys.open_reservations(*place) for place in self.strays],
            ),
            (
                _id(self, self.reservation, self.token),
                *_head(self, "reservation", actor, reason),
                self.reservation,
                self.token,
                self.right,
                self.keep_ms,
            ),
        )


class IndexStep(msgspec.Struct, frozen=True, kw_only=True, tag="index"):
    """The indexes say of a reservation what its hash says; `strays` are to forget it.

    `merchant` is '' where nothing is known of the reservation.
    """

    partition: int
    merchant: str
    location: str
    reservation: str
    sequence: int
    finding: str
    why: str
    strays: tuple[Place, ...] = ()

    def command(self, keys: PartitionKeys, *, actor: str, reason: str) -> Command:
        """Make the command."""
        own = [keys.open_reservations(self.merchant, self.location)] if self.merchant else []
        return Command(
            (
                keys.reservation(self.reservation),
                *own,
                *[keys.open_reservations(*place) for place in self.strays],
            ),
            (
                _id(self, self.reservation),
                *_head(self, "index", actor, reason),
                self.reservation,
                len(own),
            ),
        )


class ListingStep(msgspec.Struct, frozen=True, kw_only=True, tag="listing"):
    """The listings name a row if it is there; an empty `sku` stands for the location alone."""

    partition: int
    merchant: str
    location: str
    sku: str
    sequence: int
    finding: str
    why: str

    def command(self, keys: PartitionKeys, *, actor: str, reason: str) -> Command:
        """Make the command."""
        return Command(
            (
                keys.stock(self.merchant, self.location, self.sku),
                keys.skus(self.merchant, self.location),
                keys.locations,
            ),
            (
                _id(self, self.sku),
                *_head(self, "listing", actor, reason),
                self.sku,
                location_member(self.merchant, self.location),
            ),
        )


class QueueStep(msgspec.Struct, frozen=True, kw_only=True, tag="queue"):
    """A row's queue has a reservation at `place`, or not at all where that is None."""

    partition: int
    merchant: str
    location: str
    sku: str
    reservation: str
    sequence: int
    finding: str
    why: str
    token: str
    place: int | None

    def command(self, keys: PartitionKeys, *, actor: str, reason: str) -> Command:
        """Make the command."""
        return Command(
            (
                keys.reservation(self.reservation),
                keys.waiting(self.merchant, self.location, self.sku),
            ),
            (
                _id(self, self.sku, self.reservation),
                *_head(self, "queue", actor, reason),
                self.reservation,
                self.sku,
                self.token,
                False if self.place is None else self.place,
            ),
        )


class CountStep(msgspec.Struct, frozen=True, kw_only=True, tag="count"):
    """What counts for a buyer of a row becomes what the ledger says."""

    partition: int
    merchant: str
    location: str
    sku: str
    sequence: int
    finding: str
    why: str
    count: CountEvidence

    def command(self, keys: PartitionKeys, *, actor: str, reason: str) -> Command:
        """Make the command."""
        count = self.count
        entries = [(the_id, *entry) for the_id, entry in count.ledger.items()]
        return Command(
            (keys.buyer(self.merchant, self.location, self.sku, count.buyer),),
            (
                _id(self, self.sku, count.buyer, count.token),
                *_head(self, "count", actor, reason),
                self.sku,
                count.buyer,
                count.token,
                entries,
            ),
        )


class ClaimsStep(msgspec.Struct, frozen=True, kw_only=True, tag="claims"):
    """What counts for a buyer over all locations becomes what is right, and is looked at soon."""

    partition: int
    merchant: str
    location: str
    sequence: int
    finding: str
    why: str
    claims: ClaimsEvidence

    def command(self, keys: PartitionKeys, *, actor: str, reason: str) -> Command:
        """Make the command."""
        claims = self.claims
        due = [
            (claim_member(self.merchant, claims.buyer, name), claim.due_at_ms)
            for name, claim in claims.right.items()
            if claim.is_promised
        ]
        return Command(
            (keys.claims(self.merchant, claims.buyer), keys.claiming),
            (
                _id(self, claims.buyer, claims.token),
                *_head(self, "claims", actor, reason),
                claims.buyer,
                claims.token,
                claims.right,
                due,
            ),
        )


class RecordStep(msgspec.Struct, frozen=True, kw_only=True, tag="seen"):
    """An idempotency record says again what the ledger says."""

    partition: int
    merchant: str
    location: str
    sequence: int
    finding: str
    why: str
    record: RecordEvidence

    def command(self, keys: PartitionKeys, *, actor: str, reason: str) -> Command:
        """Make the command."""
        record = self.record
        return Command(
            (keys.seen(self.merchant, record.operation),),
            (
                _id(self, record.operation, record.token),
                *_head(self, "seen", actor, reason),
                record.operation,
                record.token,
                record.fingerprint,
                record.reply,
                record.keep_ms,
            ),
        )


class SourceStep(msgspec.Struct, frozen=True, kw_only=True, tag="source"):
    """What a source of events has sent becomes `right`."""

    partition: int
    merchant: str
    location: str
    source: str
    sequence: int
    finding: str
    why: str
    token: str
    right: FoldedSource

    def command(self, keys: PartitionKeys, *, actor: str, reason: str) -> Command:
        """Make the command."""
        right, name = self.right, (self.merchant, self.location, self.source)
        place = location_member(self.merchant, self.location)
        state = (right.mode, right.heard_at_ms, right.occurred_at_ms, right.watermark)
        return Command(
            (
                keys.feed(*name),
                keys.prints(*name),
                keys.feeds(self.merchant, self.location),
                keys.feeding,
            ),
            (
                _id(self, self.source, self.token),
                *_head(self, "source", actor, reason),
                self.source,
                self.token,
                (*state, right.highest, right.ahead),
                passed_on(bytes(right.prints)),
                place,
            ),
        )


class AsideStep(msgspec.Struct, frozen=True, kw_only=True, tag="set_aside"):
    """An event is among those set aside, or no longer, as the ledger says."""

    partition: int
    merchant: str
    location: str
    sequence: int
    finding: str
    why: str
    event: AsideEvidence

    def command(self, keys: PartitionKeys, *, actor: str, reason: str) -> Command:
        """Make the command."""
        event = self.event
        body = "" if event.body is None else passed_on(quarantine_text(event.body))
        return Command(
            (keys.quarantine(self.merchant, self.location),),
            (
                _id(self, event.event, event.token),
                *_head(self, "set_aside", actor, reason),
                event.event,
                event.token,
                body,
            ),
        )


class RemoveStep(msgspec.Struct, frozen=True, kw_only=True, tag="remove"):
    """A key goes that no operation made, or that holds another type than it should.

    For a reservation its id is named instead of the key, and the locations whose open index may
    name it.
    """

    partition: int
    merchant: str
    location: str
    key: str
    token: str
    sequence: int
    finding: str
    why: str
    reservation: str = ""
    places: tuple[Place, ...] = ()

    def command(self, keys: PartitionKeys, *, actor: str, reason: str) -> Command:
        """Make the command."""
        key = keys.reservation(self.reservation) if self.reservation else self.key
        return Command(
            (key, *[keys.open_reservations(*place) for place in self.places]),
            (
                _id(self, key, self.token),
                *_head(self, "remove", actor, reason),
                key,
                self.token,
                self.reservation,
            ),
        )


class KnownStep(msgspec.Struct, frozen=True, kw_only=True, tag="known"):
    """It is put on record that sequences are lost (`gap`), or that what they did is known."""

    partition: int
    first: int
    last: int
    finding: str
    why: str
    gap: bool = False
    merchant: str = ""
    location: str = ""

    @property
    def sequence(self) -> int:
        """Where in the ledger it belongs."""
        return self.first

    def command(self, keys: PartitionKeys, *, actor: str, reason: str) -> Command:
        """Make the command."""
        what = "gap" if self.gap else "known"
        return Command(
            (),
            (
                _id(self, what, str(self.last)),
                *_head(self, what, actor, reason),
                self.first,
                self.last,
            ),
        )


class SequenceStep(msgspec.Struct, frozen=True, kw_only=True, tag="sequence"):
    """The partition's count of operations goes on from `least`, if it is behind."""

    partition: int
    least: int
    finding: str
    why: str
    merchant: str = ""
    location: str = ""

    @property
    def sequence(self) -> int:
        """Where in the ledger it belongs."""
        return self.least

    def command(self, keys: PartitionKeys, *, actor: str, reason: str) -> Command:
        """Make the command."""
        return Command(
            (), (_id(self, "sequence"), *_head(self, "sequence", actor, reason), self.least)
        )


class SegmentStep(msgspec.Struct, frozen=True, kw_only=True, tag="segment"):
    """A segment is written again from the store's stream, if it comes out under the same seal."""

    partition: int
    finding: str
    why: str
    segment: SegmentEvidence


ScriptStep = (
    RowStep
    | HoldStep
    | IndexStep
    | ListingStep
    | QueueStep
    | CountStep
    | ClaimsStep
    | RecordStep
    | SourceStep
    | AsideStep
    | RemoveStep
    | KnownStep
    | SequenceStep
)
RepairStep = ScriptStep | SegmentStep

WAVES: Final[tuple[tuple[type[msgspec.Struct], ...], ...]] = (
    (SequenceStep,),
    (RemoveStep,),
    (RowStep, HoldStep, CountStep, ClaimsStep, RecordStep, SourceStep, AsideStep),
    (IndexStep, QueueStep, ListingStep),
    (SegmentStep,),
    (KnownStep,),
)
"""In this order, as what comes later may need what came before. A loss is put on record last: until
then an audit knows that the partition has one, and what to make of the rest."""


def _head(step: Any, what: str, actor: str, reason: str) -> tuple[str, ...]:
    return (step.merchant, step.location, actor, what, reason, step.finding)


def _id(step: ScriptStep, *parts: str) -> str:
    """Derive an id from what the step was made from: planned again, it is the same operation."""
    return digest("repair", str(step.partition), str(step.sequence), step.finding, *parts)
