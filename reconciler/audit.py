"""The audit: the ledger folded and compared with what is in the store, invariant by invariant.

It goes partition by partition, so memory is bounded by the largest one, and at a bounded rate.
Traffic may run meanwhile: see `reconciler.comparison`. Last comes a pass over all keys of the
store, for those that neither the ledger nor an index names.
"""

import asyncio
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec
from redis.exceptions import RedisError

from engine.definitions import definitions_key
from engine.inventory import Inventory
from engine.keys import (
    PARTITION_KEYS,
    ParsedKey,
    PartitionKeys,
    claim_partition,
    parse_key,
    partition_of,
)
from engine.ledger import Operation, OperationKind, decode_operations
from engine.outcomes import StoreFault, StoreUnavailable
from reconciler.account import Account, Snapshots
from reconciler.anomalies import ChangeWatch, Settled, implausible_changes
from reconciler.archive import Archive
from reconciler.comparison import Comparison, Pace
from reconciler.contradictions import RangeNote
from reconciler.findings import (
    AuditReport,
    Code,
    Finding,
    Invariant,
    PartitionAudit,
    Touch,
    rank,
)
from reconciler.fold import RowKey
from reconciler.passage import MAX_STEP_ENTRIES, Backwards
from reconciler.promises import promise_figures
from reconciler.reader import LedgerDamaged
from reconciler.shelf import Shelf
from reconciler.split_comparison import compare_splits
from reconciler.unknown_supplies import SupplyWatch, unknown_supplies

MAX_FINDINGS: Final = 10_000
"""Findings of one audit; a store with more is described well enough by them."""

MAX_STRAYS: Final = 10_000
"""Keys that nothing names, of one audit."""

MAX_TOUCHES: Final = 5
MAX_TRACED_ENTRIES: Final = 50_000
"""Entries looked through, the newest first, for the operations that touched what differs."""

SCAN_COUNT: Final = 500
MAX_KEPT_ITEMS: Final = 200_000
"""Rows, reservations and records of accounts that are kept for a second look, some 100 MB; beyond
them a partition's ledger is read anew where that is needed."""

_FIXED: Final = frozenset(
    {
        "meta",
        "ledger",
        "holds",
        "locations",
        "archive",
        "readers",
        "feeding",
        "intake",
        "shortfalls",
        "splits",
        "claiming",
    }
)
_OF_PARTS: Final = frozenset({"stock", "recent", "open", "skus"})
_WORKING: Final = frozenset(
    {"lease", "probe", "rates", "offline", "order", "orders", "orderrefs", "driving"}
)


class AuditSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How an audit works.

    `keys_per_second` bounds what it asks of the store, None does not. `whole` folds the history
    from its first operation rather than from the newest snapshot; `verify_archive` reads every
    segment; `scan` looks at every key of the store.
    """

    keys_per_second: int | None = None
    whole: bool = True
    verify_archive: bool = True
    scan: bool = True


class Audit:
    """Audits one store; `run` does all of it, once."""

    def __init__(
        self,
        inventory: Inventory,
        archive: Archive | None,
        *,
        settings: AuditSettings | None = None,
        snapshots: Snapshots | None = None,
        on_partition: Callable[[PartitionAudit], None] | None = None,
    ) -> None:
        """`snapshots` finds where a fold may start; `on_partition` is told of each one's end."""
        self.settings = AuditSettings() if settings is None else settings
        self._inventory = inventory
        self._store = inventory.store
        self._archive = archive
        self._snapshots = snapshots
        self._on_partition = on_partition
        self._pace = Pace(self.settings.keys_per_second)
        self._accounts: dict[int, Account] = {}
        self._watches: dict[int, ChangeWatch] = {}
        self._supplies: dict[int, SupplyWatch] = {}
        self._expected: dict[int, array[int]] = {}
        self._broken: set[int] = set()
        self._reported: dict[int, set[tuple[str, ...]]] = {}
        self._started_at_ms = 0
        self.now_ms = 0
        """The server's clock at the last look, in ms since 1970; 0 before the first."""
        self.keys_scanned = 0
        self.dropped = 0

    async def run(self) -> AuditReport:
        """Audit every partition, then every key.

        Raises ArchiveUnavailable, StoreReadOnly while the store is being rebuilt, and what the
        store's calls raise.
        """
        audited = []
        for number in range(self._inventory.partitions):
            audited.append(await self.partition(number))
            if self._on_partition is not None:
                self._on_partition(audited[-1])
        findings = [finding for one in audited for finding in one.findings]
        if self.settings.scan:
            findings += await self.scan()
        findings += self.anomalies()
        findings.sort(key=rank)
        self.dropped += max(0, len(findings) - MAX_FINDINGS)
        return AuditReport(
            started_at_ms=self._started_at_ms,
            ended_at_ms=self.now_ms,
            partitions=len(audited),
            operations=sum(one.operations for one in audited),
            segments=sum(one.segments for one in audited),
            rows=sum(one.rows for one in audited),
            reservations=sum(one.reservations for one in audited),
            records=sum(one.records for one in audited),
            keys_scanned=self.keys_scanned,
            findings=tuple(findings[:MAX_FINDINGS]),
            dropped=self.dropped,
        )

    async def partition(self, number: int, *, verify_archive: bool | None = None) -> PartitionAudit:
        """Audit one partition, all but the keys that nothing names. Raises as `run` does.

        `verify_archive` None does as the settings say. Called again, it goes on from where the
        ledger was then, unless something was found.
        """
        verify = self.settings.verify_archive if verify_archive is None else verify_archive
        account = self._accounts.pop(number, None)
        try:
            if account is None:
                account = await self._open(number)
            # What was broken is looked at again in any case, as it may be mended by now.
            if verify or number in self._broken:
                await account.verify_archive()
            comparison = Comparison(self._store, account, self._pace)
            await comparison.run()
        except StoreFault as fault:
            detail = f"the partition's own keys cannot be read: {fault}"
            remedy = "rebuild into an empty store with: holdfast rebuild"
            return _not_audited(number, Code.PARTITION_UNREADABLE, detail, remedy)
        except LedgerDamaged as damage:
            remedy = "name the archive and see that it is whole; nothing was compared"
            return _not_audited(number, Code.BEGINNING_MISSING, str(damage), remedy)
        self._started_at_ms = self._started_at_ms or comparison.started_at_ms
        self.now_ms = comparison.now_ms
        findings = comparison.findings + ledger_findings(account)
        findings = await self._traced(account.keys, findings[:MAX_FINDINGS])
        self.dropped += comparison.dropped
        if self.settings.scan:
            # Beside the event loop: it goes over a million rows in seconds.
            self._expected[number] = await asyncio.to_thread(_expected_keys, account)
        promises = await asyncio.to_thread(
            promise_figures,
            account.state.rows.values(),
            account.state.reservations.values(),
            comparison.now_ms,
        )
        self._watches[number] = account.watch
        self._supplies[number] = account.supplies
        self._reported[number] = {_identity(finding) for finding in findings}
        self._broken.discard(number)
        if account.broken:
            self._broken.add(number)
        if not findings:
            self._keep(account)
        return PartitionAudit(
            partition=number,
            sequence=account.state.sequence,
            at_ms=comparison.now_ms,
            operations=account.operations,
            segments=account.segments,
            rows=comparison.rows,
            reservations=comparison.reservations,
            records=comparison.records,
            findings=tuple(findings),
            promises=promises,
        )

    def anomalies(self) -> list[Finding]:
        """Return what is implausible in the partitions audited so far."""
        return [
            *implausible_changes(self._watches.values(), self.now_ms),
            *unknown_supplies(self._supplies.values(), Settled(self._watches.values())),
        ]

    async def scan(self) -> list[Finding]:
        """Look for keys that neither the ledger nor an index names, and between partitions.

        Raises as `run` does.

        Keys of partitions that were not audited before are passed over.
        """
        strays: dict[int, list[ParsedKey]] = defaultdict(list)
        # Of a part of a split row, if of anything: it is not in the partition of its location.
        parts: dict[int, list[tuple[str, ParsedKey]]] = defaultdict(list)
        unknown: list[Finding] = []
        count = 0
        try:
            async for raw in self._store.client.scan_iter(match=PARTITION_KEYS, count=SCAN_COUNT):
                self.keys_scanned += 1
                if self.keys_scanned % SCAN_COUNT == 0:
                    await self._pace.spend(SCAN_COUNT)
                name = raw.decode(errors="backslashreplace")
                parsed = parse_key(name)
                if parsed is not None and self._is_expected(name, parsed):
                    continue
                count += 1
                if count > MAX_STRAYS:
                    self.dropped += 1
                elif parsed is not None and self._is_ours(name, parsed):
                    strays[parsed.partition].append(parsed)
                elif parsed is not None and self._may_be_a_parts(name, parsed):
                    parts[parsed.partition].append((name, parsed))
                else:
                    unknown.append(_unknown_key(name, parsed))
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"the scan of the keys broke off: {error}") from error
        found = unknown
        for number, named in parts.items():
            found += await self._unknown_parts(number, named)
        for number, keys in strays.items():
            found += await self._look_at_strays(number, keys)
        return found + await compare_splits(self._inventory)

    async def _open(self, number: int) -> Account:
        account = Account(self._store, self._inventory.keys, number, self._archive)
        await account.open(snapshots=self._snapshots, whole=self.settings.whole)
        return account

    async def _open_archive(self) -> Archive | None:
        return self._archive

    def _keep(self, account: Account) -> None:
        kept = sum(one.size for one in self._accounts.values())
        if kept + account.size <= MAX_KEPT_ITEMS:
            self._accounts[account.keys.partition] = account

    def _is_expected(self, name: str, parsed: ParsedKey) -> bool:
        if parsed.noun in _WORKING or (parsed.noun in _FIXED and not parsed.parts):
            return True
        expected = self._expected.get(parsed.partition)
        if expected is None:
            return parsed.partition < self._inventory.partitions
        return _has(expected, name)

    def _is_ours(self, name: str, parsed: ParsedKey) -> bool:
        """Tell whether a key is one that the engine could have made there."""
        if not self._is_well_formed(name, parsed):
            return False
        if parsed.noun in ("rsv", "seen"):
            return True
        merchant, location = parsed.parts[:2]
        if parsed.noun == "claims":
            number = claim_partition(merchant, location, self._inventory.partitions)
            return number == parsed.partition
        return partition_of(merchant, location, self._inventory.partitions) == parsed.partition

    def _is_well_formed(self, name: str, parsed: ParsedKey) -> bool:
        if parsed.partition >= self._inventory.partitions:
            return False
        return _key_of(self._inventory.keys[parsed.partition], parsed) == name

    def _may_be_a_parts(self, name: str, parsed: ParsedKey) -> bool:
        return parsed.noun in _OF_PARTS and self._is_well_formed(name, parsed)

    async def _unknown_parts(
        self, number: int, named: Sequence[tuple[str, ParsedKey]]
    ) -> list[Finding]:
        """Return findings of those that the ledger, read on to here, knows no part of a row for."""
        account = self._accounts.get(number)
        if account is None:
            account = await self._open(number)
        await Comparison(self._store, account, self._pace).catch_up()
        known = await asyncio.to_thread(_expected_keys, account)
        return [_unknown_key(name, parsed) for name, parsed in named if not _has(known, name)]

    async def _look_at_strays(self, number: int, strays: Sequence[ParsedKey]) -> list[Finding]:
        """Look at keys again, at a place of the ledger that may know them by now."""
        account = self._accounts.get(number)
        if account is None:
            account = await self._open(number)
        comparison = Comparison(self._store, account, self._pace)
        fed: list[ParsedKey] = []
        claimed: list[ParsedKey] = []
        pledged: list[ParsedKey] = []
        for stray in strays:
            if stray.noun in ("stock", "recent"):
                merchant, location, sku = stray.parts
                comparison.suspect(rows=[(merchant, location, sku)])
            elif stray.noun == "rsv":
                comparison.suspect(reservations=stray.parts)
            elif stray.noun in ("feed", "prints", "feeds", "quarantine"):
                fed.append(stray)
            elif stray.noun in ("waiting", "buyer"):
                pledged.append(stray)
            elif stray.noun == "claims":
                claimed.append(stray)
            elif stray.noun == "seen":
                merchant, operation = stray.parts
                comparison.suspect(records=[(merchant, operation)])
            else:
                merchant, location = stray.parts
                await comparison.suspect_members((merchant, location))
        await comparison.look_again()
        await comparison.look_at_feeds(fed)
        await comparison.look_at_pledges(pledged)
        await comparison.look_at_claims(claimed)
        self.dropped += comparison.dropped
        self.now_ms = comparison.now_ms
        # An index that nothing names has members that were found by another way before.
        before = self._reported.get(number, set())
        fresh = [finding for finding in comparison.findings if _identity(finding) not in before]
        return await self._traced(account.keys, fresh)

    async def _traced(self, keys: PartitionKeys, findings: list[Finding]) -> list[Finding]:
        """Add the last operations that touched each finding's row or reservation."""
        touches: dict[RowKey | str, list[Touch]] = {}
        for finding in findings:
            subject = _subject(finding)
            if subject is not None:
                touches[subject] = []
        if not touches:
            return findings
        passage = Backwards(self._store, keys, Shelf.of(self._archive), None)
        wanting = set(touches)
        looked = 0
        while wanting and looked < MAX_TRACED_ENTRIES:
            try:
                entries = await passage.step(MAX_STEP_ENTRIES)
            except (KeyError, ValueError, IndexError):
                # An entry that is none: what lies behind it is told by the archive's own history.
                break
            if entries is None:
                break
            # A step may be empty where a segment cannot be read, and then costs as much.
            looked += max(len(entries), MAX_STEP_ENTRIES)
            for raw in entries:
                operations = decode_operations(raw.operations)
                for offset in range(len(operations) - 1, -1, -1):
                    touch = _touch(operations[offset], raw.sequence + offset, raw.at_ms)
                    for subject in _subjects(operations[offset]):
                        if subject in wanting:
                            touches[subject].append(touch)
                            if len(touches[subject]) == MAX_TOUCHES:
                                wanting.discard(subject)
        return [_with_touches(finding, touches) for finding in findings]


def _not_audited(number: int, code: Code, detail: str, remedy: str) -> PartitionAudit:
    finding = Finding(
        invariant=Invariant.FOLD,
        code=code,
        detail=detail,
        remedy=remedy,
        partition=number,
        repairable=False,
    )
    return PartitionAudit(
        partition=number,
        sequence=0,
        at_ms=0,
        operations=0,
        segments=0,
        rows=0,
        reservations=0,
        records=0,
        findings=(finding,),
    )


async def audit(
    inventory: Inventory,
    archive: Archive | None,
    *,
    settings: AuditSettings | None = None,
    snapshots: Snapshots | None = None,
    on_partition: Callable[[PartitionAudit], None] | None = None,
) -> AuditReport:
    """Audit a store once; see `Audit`."""
    return await Audit(
        inventory, archive, settings=settings, snapshots=snapshots, on_partition=on_partition
    ).run()


def ledger_findings(account: Account) -> list[Finding]:
    """Return what is wrong with a partition's ledger and archive, rows and reservations aside."""
    partition = account.keys.partition
    found = [_range_finding(partition, note) for note in account.contradictions.ranges()]
    for broken in account.broken:
        evidence = broken.evidence
        if account.contradictions.is_known(evidence.first, evidence.last):
            continue
        found.append(
            Finding(
                invariant=Invariant.ARCHIVE_COVERS,
                code=broken.code,
                detail=f"{evidence.path} {broken.reason}",
                remedy="written again from the store's stream"
                if evidence.in_ledger
                else "noted as known: a snapshot may cover it, but its history is lost",
                partition=partition,
                key=evidence.path,
                first=evidence.first,
                last=evidence.last,
                segment=evidence,
            )
        )
    found += [
        Finding(
            invariant=Invariant.DENSE,
            code=Code.ENTRY_UNREADABLE,
            detail=f"the stream holds something that is no ledger entry: {reason}",
            remedy="delete the entry from the stream by its id",
            partition=partition,
            repairable=False,
        )
        for reason in account.unreadable
    ]
    return found


def _range_finding(partition: int, note: RangeNote) -> Finding:
    return Finding(
        invariant=Invariant.DENSE,
        code=note.code,
        detail=note.detail,
        remedy="noted as known; what it changed is found row by row",
        partition=partition,
        sequence=note.first,
        first=note.first,
        last=note.last,
    )


def _unknown_key(name: str, parsed: ParsedKey | None) -> Finding:
    return Finding(
        invariant=Invariant.FOLD,
        code=Code.KEY_UNKNOWN,
        detail="a key in a partition's slot that no part of Holdfast makes there",
        remedy="delete it, or move what put it there to another prefix",
        partition=-1 if parsed is None else parsed.partition,
        key=name,
        repairable=False,
    )


_OF_A_RESERVATION: Final = frozenset({"reservation", "index", "queue"})
"""What a repair is of whose detail names a reservation."""

_PARTS: Final = {
    "stock": 3,
    "recent": 3,
    "rsv": 1,
    "seen": 2,
    "open": 2,
    "skus": 2,
    "feed": 3,
    "prints": 3,
    "feeds": 2,
    "quarantine": 2,
    "waiting": 3,
    "buyer": 4,
    "claims": 2,
}


def _key_of(keys: PartitionKeys, parsed: ParsedKey) -> str | None:
    parts = parsed.parts
    if len(parts) != _PARTS.get(parsed.noun):
        return None
    if parsed.noun == "stock":
        return keys.stock(parts[0], parts[1], parts[2])
    if parsed.noun == "rsv":
        return keys.reservation(parts[0])
    if parsed.noun in ("recent", "feed", "prints", "waiting", "buyer"):
        return str(getattr(keys, parsed.noun)(*parts))
    if parsed.noun in ("feeds", "quarantine", "claims"):
        return str(getattr(keys, parsed.noun)(*parts))
    if parsed.noun == "seen":
        return keys.seen(parts[0], parts[1])
    if parsed.noun == "open":
        return keys.open_reservations(parts[0], parts[1])
    return keys.skus(parts[0], parts[1])


def _expected_keys(account: Account) -> "array[int]":
    """Return the digests of the keys that the account knows, in order; 8 bytes a key."""
    keys, state = account.keys, account.state
    digests = [hash(keys.stock(*row)) for row in state.rows]
    digests += [hash(keys.reservation(the_id)) for the_id in state.reservations]
    digests += [hash(keys.seen(seen.merchant, the_id)) for the_id, seen in state.seen.items()]
    digests += [hash(keys.recent(*key)) for key, row in state.rows.items() if row.past is not None]
    digests += [hash(keys.waiting(*key)) for key, row in state.rows.items() if row.terms]
    digests += [hash(keys.buyer(*key)) for key in state.buyers]
    digests += [hash(keys.claims(*key)) for key in state.claims]
    for name in state.sources:
        digests += [hash(keys.feed(*name)), hash(keys.prints(*name)), hash(keys.feeds(*name[:2]))]
    digests += [
        hash(keys.quarantine(*place))
        for place in {(one.merchant, one.location) for one in state.quarantine.values()}
    ]
    digests += [hash(definitions_key(keys, *name)) for name in state.definitions]
    for place in dict.fromkeys(row[:2] for row in state.rows):
        digests += [hash(keys.skus(*place)), hash(keys.open_reservations(*place))]
    digests.sort()
    return array("q", digests)


def _has(digests: "array[int]", name: str) -> bool:
    digest = hash(name)
    index = bisect_left(digests, digest)
    return index < len(digests) and digests[index] == digest


def _identity(finding: Finding) -> tuple[str, ...]:
    return (
        finding.code,
        finding.merchant,
        finding.location,
        finding.sku,
        finding.reservation,
        finding.key,
    )


def _subject(finding: Finding) -> RowKey | str | None:
    if finding.reservation:
        return finding.reservation
    if finding.sku and finding.row is not None:
        return (finding.merchant, finding.location, finding.sku)
    return None


def _subjects(operation: Operation) -> Iterable[RowKey | str]:
    for change in operation.changes:
        yield (operation.merchant, operation.location, change.sku)
    if operation.kind is OperationKind.REPAIR and operation.detail[0] in _OF_A_RESERVATION:
        yield operation.detail[3]
    yield operation.id


def _touch(operation: Operation, sequence: int, at_ms: int) -> Touch:
    reference = ""
    if operation.kind is OperationKind.MOVE:
        reference = str(operation.detail[3])
    return Touch(sequence, operation.kind, operation.id, operation.who, at_ms, reference)


def _with_touches(finding: Finding, touches: dict[RowKey | str, list[Touch]]) -> Finding:
    subject = _subject(finding)
    if subject is None:
        return finding
    return msgspec.structs.replace(finding, operations=tuple(touches[subject]))
