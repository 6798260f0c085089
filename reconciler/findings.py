"""What an audit reports: each difference with the row or reservation, both values and the traces.

A finding names the invariant that is broken, or `anomaly` for a history that is consistent and yet
implausible. It carries what a repair needs, so that a plan is made from findings alone.
"""

from enum import StrEnum
from typing import Any, Final

import msgspec

from engine.claims import Claims
from engine.figures import PromiseFigures
from engine.ledger import Levels, OperationKind
from engine.limits import RETENTION_MS
from reconciler.fold import FoldedReservation
from reconciler.past import Past
from reconciler.sources import FoldedQuarantined, FoldedSource


class Invariant(StrEnum):
    """The rules that an audit checks; docs/operating/audit-and-repair.md says how."""

    CONSERVATION = "Conservation"
    NO_OVERSELL = "NoOversell"
    INTEGER = "Integer"
    ONCE = "Once"
    HOLDS_SUM = "HoldsSum"
    ONE_ENDING = "OneEnding"
    INDEX_MATCH = "IndexMatch"
    DENSE = "Dense"
    ARCHIVE_COVERS = "ArchiveCovers"
    FOLD = "Fold"
    ANOMALY = "anomaly"


class Severity(StrEnum):
    """How soon somebody should look."""

    CRITICAL = "critical"
    """Stock is or was promised wrongly, or history is lost."""
    WARNING = "warning"
    """Nothing is promised wrongly yet, but will be if it stays."""
    NOTICE = "notice"
    """Untidy."""


class Code(StrEnum):
    """What was found, more precisely than the invariant."""

    # A row in the store beside the ledger's.
    ROW_DIFFERS = "row_differs"
    ROW_AHEAD = "row_ahead"
    ROW_BEHIND = "row_behind"
    ROW_MISSING = "row_missing"
    ROW_UNKNOWN = "row_unknown"
    ROW_UNREADABLE = "row_unreadable"
    PAST_DIFFERS = "past_differs"
    SPLIT_DIFFERS = "split_differs"
    PARTS_DIFFER = "parts_differ"
    BOOKS_DIFFER = "books_differ"
    RESERVED_DIFFERS = "reserved_differs"
    OVERSOLD = "oversold"
    # What else promises on a row's terms leave behind.
    BUYER_COUNT_DIFFERS = "buyer_count_differs"
    CLAIMS_DIFFER = "claims_differ"
    CLAIM_MISSING = "claim_missing"
    CLAIM_OVERDUE = "claim_overdue"
    # A reservation in the store beside the ledger's.
    RESERVATION_DIFFERS = "reservation_differs"
    RESERVATION_MISSING = "reservation_missing"
    RESERVATION_UNKNOWN = "reservation_unknown"
    RESERVATION_UNREADABLE = "reservation_unreadable"
    ANSWER_MISSING = "answer_missing"
    # The indexes.
    HOLD_INDEX_DIFFERS = "hold_index_differs"
    OPEN_INDEX_DIFFERS = "open_index_differs"
    QUEUE_DIFFERS = "queue_differs"
    LISTING_DIFFERS = "listing_differs"
    INDEX_UNREADABLE = "index_unreadable"
    # Idempotency records.
    RECORD_DIFFERS = "record_differs"
    RECORD_MISSING = "record_missing"
    RECORD_UNKNOWN = "record_unknown"
    # Sources of events.
    SOURCE_DIFFERS = "source_differs"
    QUARANTINE_DIFFERS = "quarantine_differs"
    # Orders that span locations.
    ORDER_DIFFERS = "order_differs"
    # What a merchant says of its SKUs.
    DEFINITIONS_DIFFER = "definitions_differ"
    # The ledger against itself.
    ENTRIES_MISSING = "entries_missing"
    ENTRIES_OVERLAP = "entries_overlap"
    ENTRY_UNREADABLE = "entry_unreadable"
    SEQUENCE_BEHIND = "sequence_behind"
    CLOCK_FELL = "clock_fell"
    VERSIONS_SKIPPED = "versions_skipped"
    VERSION_FELL = "version_fell"
    LEVELS_JUMPED = "levels_jumped"
    EFFECT_IS_NOT_WHAT_IS_SAID = "effect_is_not_what_is_said"
    LEVELS_OUT_OF_RANGE = "levels_out_of_range"
    PROMISED_PAST_AVAILABLE = "promised_past_available"
    APPLIED_TWICE = "applied_twice"
    ENDED_TWICE = "ended_twice"
    NEVER_RESERVED = "never_reserved"
    HOLDS_DIFFER = "holds_differ"
    # The archive.
    SEGMENT_DAMAGED = "segment_damaged"
    SEGMENT_MISSING = "segment_missing"
    # What a store of ours does not hold, or cannot be audited.
    KEY_UNKNOWN = "key_unknown"
    PARTITION_UNREADABLE = "partition_unreadable"
    BEGINNING_MISSING = "beginning_missing"
    # Histories that are consistent and implausible.
    BULK_CHANGE_IMPLAUSIBLE = "bulk_change_implausible"
    CHANGE_IMPLAUSIBLE = "change_implausible"
    SUPPLY_UNKNOWN = "supply_unknown"


_WARNINGS: Final = frozenset(
    {
        Code.ANSWER_MISSING,
        Code.PAST_DIFFERS,
        Code.HOLD_INDEX_DIFFERS,
        Code.OPEN_INDEX_DIFFERS,
        Code.QUEUE_DIFFERS,
        Code.BUYER_COUNT_DIFFERS,
        Code.CLAIMS_DIFFER,
        Code.CLAIM_MISSING,
        Code.CLAIM_OVERDUE,
        Code.RECORD_MISSING,
        Code.RECORD_UNKNOWN,
        Code.CLOCK_FELL,
        Code.SEGMENT_DAMAGED,
        Code.SEGMENT_MISSING,
        Code.BULK_CHANGE_IMPLAUSIBLE,
        Code.CHANGE_IMPLAUSIBLE,
        Code.SUPPLY_UNKNOWN,
    }
)
_NOTICES: Final = frozenset({Code.LISTING_DIFFERS, Code.KEY_UNKNOWN})

LOSSES: Final = frozenset(
    {
        Code.ENTRIES_MISSING,
        Code.ENTRIES_OVERLAP,
        Code.ENTRY_UNREADABLE,
    }
)
"""Signs that a partition's ledger lost operations whose effects may be in the store. A version that
is skipped or ahead is none by itself: it can be edited too."""


def severity_of(code: Code) -> Severity:
    """Return how soon somebody should look at a finding of this code."""
    if code in _WARNINGS:
        return Severity.WARNING
    return Severity.NOTICE if code in _NOTICES else Severity.CRITICAL


class Touch(msgspec.Struct, frozen=True):
    """An operation that touched what a finding is about; `at_ms` since 1970."""

    sequence: int
    kind: OperationKind
    id: str
    actor: str
    at_ms: int
    reference: str = ""


class RowFacts(msgspec.Struct, frozen=True):
    """A row's units and version, and its terms as they are kept."""

    levels: Levels
    version: int
    terms: dict[str, Any] | None = None


class RowEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """A row as it was found beside what the ledger says, at one place of the ledger.

    `live` is None where the row is missing or cannot be read as one, `ledger` where it does not
    know the row. `held` are the units of its open reservations by the ledger that are on the shelf,
    `waiting` those that are not, `pooled` what they have of each channel's pool, and `waits` what
    the row's terms should say of those that wait. The drifts
    are what the row's history changed without an operation that says so: `books` of on_hand -
    deficit.
    `token` is how the key looked; a repair is refused once it looks otherwise. `past` is what the
    row should remember of when its units came and went, `past_differs` that it does not; `split`
    what it should say of its parts or its home, `split_differs` that it says otherwise.
    """

    token: str
    live: RowFacts | None
    live_text: dict[str, str] | None
    ledger: RowFacts | None
    held: int = 0
    waiting: int = 0
    pooled: dict[str, int] = {}
    waits: dict[str, Any] = {}
    books_drift: int = 0
    safety_stock_drift: int = 0
    versions_skipped: bool = False
    past: Past = msgspec.field(default_factory=Past)
    past_differs: bool = False
    split: str = ""
    split_differs: bool = False


class HoldEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """A reservation as it was found beside what the ledger says, and its places in the indexes.

    `hold_score` is its time in the hold index (ms), `open_score` that in its location's open index;
    None where it is not in there. `now_ms` is the server's clock at the look.
    """

    token: str
    now_ms: int
    live: FoldedReservation | None
    ledger: FoldedReservation | None
    hold_score: int | None = None
    open_score: int | None = None


class QueueEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """A reservation's place in a row's queue as it was found, and by the ledger; None for none.

    `token` is of the reservation: what it waits for says what the queue must say.
    """

    token: str
    found: int | None
    place: int | None


class CountEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """What counts for a buyer of a row, as it was found, None where it cannot be read.

    `buyer` is their digest. The units of each reservation, and until when they count (ms since
    1970; 0: as long as they are promised).
    """

    token: str
    buyer: str
    live: dict[str, tuple[int, int]] | None
    ledger: dict[str, tuple[int, int]]


class ClaimsEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """What counts for a buyer over all locations, and what should; `buyer` is their digest."""

    token: str
    buyer: str
    right: Claims


class RecordEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """An idempotency record: how it was found, and what the ledger says that it should say.

    Where the ledger knows no such operation, it is what the record says; `fingerprint` is '' where
    that cannot be read.
    """

    token: str
    operation: str
    fingerprint: str = ""
    reply: tuple[Any, ...] = ()
    keep_ms: int = RETENTION_MS


class SourceEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """A source of events as it was found, None where it cannot be read, and as the ledger says."""

    token: str
    source: str
    live: FoldedSource | None
    ledger: FoldedSource | None


class AsideEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """An event that was set aside by the ledger (`body`, None: it was not), and how it looked."""

    token: str
    event: str
    body: FoldedQuarantined | None


class SegmentEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """A segment that cannot be used, and what its neighbours in the chain say of it.

    `seal` is '' where no neighbour names it; `in_ledger` tells whether the store still has all of
    its entries.
    """

    path: str
    first: int
    last: int
    previous: str
    seal: str
    in_ledger: bool


class ChangeEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """Changes that are implausible: how many, by whom, and some of the rows.

    `judged` are the rows with enough history, `outside` those of them that left it by a factor of
    three or more; `factor` is the typical one. Arrivals with a supply that is not known are judged
    by no history. `units` is the sum of the changes' sizes.
    """

    reference: str
    actor: str
    first_at_ms: int
    last_at_ms: int
    changes: int
    judged: int
    outside: int
    factor: float
    units: int
    examples: tuple[str, ...]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One difference; only the fields that apply are set.

    `sequence` is the place in the ledger where it was seen, or that it is about; `first` and `last`
    are a range of sequences. `remedy` says what repairs it, or what a person has to do.
    """

    invariant: Invariant
    code: Code
    detail: str
    remedy: str
    partition: int = -1
    merchant: str = ""
    location: str = ""
    sku: str = ""
    reservation: str = ""
    key: str = ""
    token: str = ""
    sequence: int = 0
    first: int = 0
    last: int = 0
    row: RowEvidence | None = None
    hold: HoldEvidence | None = None
    queue: QueueEvidence | None = None
    count: CountEvidence | None = None
    claims: ClaimsEvidence | None = None
    record: RecordEvidence | None = None
    source: SourceEvidence | None = None
    aside: AsideEvidence | None = None
    segment: SegmentEvidence | None = None
    change: ChangeEvidence | None = None
    operations: tuple[Touch, ...] = ()
    severity: Severity = Severity.CRITICAL
    repairable: bool = True

    def __post_init__(self) -> None:
        """Set the severity that the code has."""
        msgspec.structs.force_setattr(self, "severity", severity_of(self.code))


class PartitionAudit(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at in one partition, up to `sequence`, at `at_ms` of the server's clock."""

    partition: int
    sequence: int
    at_ms: int
    operations: int
    segments: int
    rows: int
    reservations: int
    records: int
    findings: tuple[Finding, ...]
    promises: PromiseFigures = PromiseFigures()


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """A whole audit. `findings` are all, the worst first; `dropped` were too many to keep."""

    started_at_ms: int
    ended_at_ms: int
    partitions: int
    operations: int
    segments: int
    rows: int
    reservations: int
    records: int
    keys_scanned: int
    findings: tuple[Finding, ...]
    dropped: int = 0

    @property
    def is_clean(self) -> bool:
        """True where every invariant holds; anomalies are for people to judge."""
        return self.dropped == 0 and all(
            finding.invariant is Invariant.ANOMALY for finding in self.findings
        )


_RANKS: Final = {Severity.CRITICAL: 0, Severity.WARNING: 1, Severity.NOTICE: 2}


def rank(finding: Finding) -> tuple[int, str, int, str, str, str]:
    """Sort key: the worst first, then together what belongs together."""
    return (
        _RANKS[finding.severity],
        finding.invariant,
        finding.partition,
        finding.merchant,
        finding.location,
        finding.sku or finding.reservation,
    )
