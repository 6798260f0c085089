"""One partition's live keys beside its account, at equal places of the ledger.

Two passes: the first goes over everything and keeps what looks different, the second looks at just
that again, together with its surroundings, and makes the findings. Each look reads keys and the
ledger's place in one step and folds the account to just there, so traffic makes no difference.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final, TypeVar, cast

import msgspec

from engine.definitions import definitions_key
from engine.keys import ParsedKey, location_member, parse_location_member
from engine.limits import RETENTION_MS
from engine.model import ReservationState
from engine.store import Store, pairs
from reconciler.account import Account
from reconciler.claim_comparison import ClaimComparison
from reconciler.evidence import (
    ledger_row,
    reservation_findings,
    row_findings,
    to_reservation,
    to_row,
)
from reconciler.feed_comparison import FeedComparison
from reconciler.findings import (
    Code,
    Finding,
    HoldEvidence,
    Invariant,
    RecordEvidence,
    RowEvidence,
)
from reconciler.fold import BuyerKey, ClaimsKey, FoldedReservation, FoldedRow, FoldedSeen, RowKey
from reconciler.inspection import (
    MAX_INSPECTED,
    Inspection,
    Look,
    Value,
    WrongType,
    inspect,
    is_over,
    reservation_token,
    row_token,
    score_of,
    text_token,
)
from reconciler.order_comparison import OrderComparison
from reconciler.past import Past, is_same_past
from reconciler.pledge_comparison import PledgeComparison
from reconciler.sources import SourceKey

MAX_SUSPECTS: Final = 10_000
"""Rows, reservations and records each that are looked at again; the rest are counted."""

INDEX_PAGE: Final = 500
ROW_LOOKS: Final = 4
HOLD_LOOKS: Final = 3
MAX_PLACES: Final = 3
"""Open indexes that a reservation is looked up in, its own not counted; the next audit finds more.
"""

Item = TypeVar("Item")
Place = tuple[str, str]
"""(merchant, location)."""


_decode_record = msgspec.msgpack.Decoder(tuple[str, tuple[Any, ...]]).decode


class Pace:
    """Bounds how many keys are read a second; None reads as fast as it can."""

    def __init__(self, keys_per_second: int | None) -> None:
        """Start with nothing owed."""
        self._rate = keys_per_second
        self._free_at = 0.0

    async def spend(self, keys: int) -> None:
        """Wait until `keys` more may be read."""
        if self._rate is None:
            await asyncio.sleep(0)
            return
        now = asyncio.get_running_loop().time()
        self._free_at = max(now, self._free_at) + keys / self._rate
        await asyncio.sleep(max(0.0, self._free_at - now - keys / self._rate))


class Comparison:
    """Compares one partition; `findings` is complete after `run`."""

    def __init__(self, store: Store, account: Account, pace: Pace) -> None:
        """Nothing is read yet."""
        self.findings: list[Finding] = []
        self.dropped = 0
        self.rows = 0
        self.reservations = 0
        self.records = 0
        self.started_at_ms = 0
        self.now_ms = 0
        self._store = store
        self._account = account
        self._keys = account.keys
        self._pace = pace
        self._bad_indexes: set[str] = set()
        self._suspect_rows: dict[RowKey, None] = {}
        self._suspect_holds: dict[str, set[Place]] = {}
        self._suspect_records: dict[str, str] = {}

    async def run(self) -> None:
        """Compare everything of the partition that the ledger or an index names."""
        await self._look([])
        await self._check_indexes()
        await self._pass_rows()
        await self._pass_reservations()
        await self._pass_records()
        await self._pass_index_members()
        self.findings += await FeedComparison(self._account, self._look).run()
        await self._compare_pledges()
        await self._compare_definitions()
        self.findings += await OrderComparison(self._account, self._look).run()
        self.findings += await self._claims().run()
        await self._suspect_noted()
        await self.look_again()

    async def _suspect_noted(self) -> None:
        """Have looked at what the ledger says against itself."""
        notes = self._account.contradictions
        # Beside the event loop, as it goes over all rows and reservations at once.
        unlike = await asyncio.to_thread(self._account.unlike_holds)
        self.suspect(rows=[*notes.rows, *unlike], reservations=list(notes.reservations))
        self.dropped += notes.dropped

    def suspect(
        self,
        *,
        rows: Iterable[RowKey] = (),
        reservations: Iterable[str] = (),
        records: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Have more looked at by `look_again`; records are (merchant, operation)."""
        for key in rows:
            if len(self._suspect_rows) < MAX_SUSPECTS:
                self._suspect_rows[key] = None
            else:
                self.dropped += 1
        for the_id in reservations:
            self.suspect_hold(the_id)
        for merchant, operation in records:
            if len(self._suspect_records) < MAX_SUSPECTS:
                self._suspect_records[operation] = merchant
            else:
                self.dropped += 1

    def suspect_hold(self, the_id: str, place: Place | None = None) -> None:
        """Have a reservation looked at, also as a member of a location's open index."""
        if the_id not in self._suspect_holds and len(self._suspect_holds) >= MAX_SUSPECTS:
            self.dropped += 1
            return
        places = self._suspect_holds.setdefault(the_id, set())
        if place is not None and len(places) < MAX_PLACES:
            places.add(place)

    async def catch_up(self) -> None:
        """Take the account to where the ledger stands now."""
        await self._look([])

    async def _look(self, looks: Sequence[Look]) -> Inspection:
        """Read keys, and take the account to where the ledger stood at just that moment."""
        await self._pace.spend(len(looks) + 1)
        inspection = await inspect(self._store, self._keys, looks)
        await self._account.read_to(inspection.stream_id)
        self.now_ms = inspection.now_ms
        self.started_at_ms = self.started_at_ms or inspection.now_ms
        counted, reached = inspection.sequence or 0, self._account.state.sequence
        if counted > reached:
            self._account.contradictions.note_missing(reached + 1, counted)
        elif counted < reached and not any(
            finding.code is Code.SEQUENCE_BEHIND for finding in self.findings
        ):
            self.findings.append(
                Finding(
                    invariant=Invariant.DENSE,
                    code=Code.SEQUENCE_BEHIND,
                    detail=f"the store counts {counted} operations, the ledger has {reached}",
                    remedy="the count goes on from the ledger's last operation",
                    partition=self._keys.partition,
                    first=counted + 1,
                    last=reached,
                )
            )
        return inspection

    # The first pass

    async def _check_indexes(self) -> None:
        """Find indexes that are none, as no member can be read from them."""
        keys = self._keys
        names = [keys.holds, keys.locations]
        for merchant, location in self._places():
            names += [
                keys.skus(merchant, location),
                keys.open_reservations(merchant, location),
            ]
        for chunk in _chunks(names, MAX_INSPECTED):
            inspection = await self._look([Look("size", name) for name in chunk])
            for name, value in zip(chunk, inspection.values, strict=True):
                if isinstance(value, WrongType):
                    self._bad_indexes.add(name)
                    self.findings.append(
                        Finding(
                            invariant=Invariant.INDEX_MATCH,
                            code=Code.INDEX_UNREADABLE,
                            detail=f"an index is a {value.kind}",
                            remedy="removed, then made anew from the ledger",
                            partition=keys.partition,
                            key=name,
                            token=f"type:{value.kind}",
                        )
                    )

    def _places(self) -> list[Place]:
        return list(dict.fromkeys(key[:2] for key in self._account.state.rows))

    async def _pass_rows(self) -> None:
        keys, state = self._keys, self._account.state
        for chunk in _chunks(list(state.rows), MAX_INSPECTED // 3):
            looks = []
            for merchant, location, sku in chunk:
                looks.append(Look("hash", keys.stock(merchant, location, sku)))
                looks.append(Look(f"score {sku}", keys.skus(merchant, location)))
                looks.append(Look("string", keys.recent(merchant, location, sku)))
            inspection = await self._look(looks)
            for index, key in enumerate(chunk):
                value, listed, recent = inspection.values[3 * index : 3 * index + 3]
                folded = self._account.state.rows.get(key)
                if (
                    to_row(value) != ledger_row(folded)
                    or not _is_score(listed)
                    or not _is_same_past(folded, value, recent, inspection)
                    or not _is_same_split(folded, value)
                ):
                    self.suspect(rows=[key])
            self.rows += len(chunk)

    async def _pass_reservations(self) -> None:
        keys = self._keys
        for listed in _chunks(list(self._account.state.reservations), MAX_INSPECTED // HOLD_LOOKS):
            looks = []
            # Those that were forgotten since the list was made are of no interest any more.
            chunk = [the_id for the_id in listed if the_id in self._account.state.reservations]
            for the_id in chunk:
                body = self._account.state.reservations[the_id].body
                looks.append(Look("hash", keys.reservation(the_id)))
                looks.append(Look(f"score {the_id}", keys.holds))
                place = keys.open_reservations(body.merchant, body.location)
                looks.append(Look(f"score {the_id}", place))
            inspection = await self._look(looks)
            for index, the_id in enumerate(chunk):
                found = inspection.values[index * HOLD_LOOKS : (index + 1) * HOLD_LOOKS]
                wanted = self._account.state.reservations.get(the_id)
                if wanted is not None and not _is_as_wanted(wanted, found, inspection):
                    self.suspect_hold(the_id)
            self.reservations += len(chunk)

    async def _pass_records(self) -> None:
        for listed in _chunks(list(self._account.state.seen), MAX_INSPECTED):
            records = self._account.state.seen
            chunk = [operation for operation in listed if operation in records]
            looks = [
                Look("string", self._keys.seen(records[operation].merchant, operation))
                for operation in chunk
            ]
            inspection = await self._look(looks)
            for operation, value in zip(chunk, inspection.values, strict=True):
                record = self._account.state.seen.get(operation)
                if record is not None and not _is_record(record, value, inspection):
                    self.suspect(records=[(record.merchant, operation)])
            self.records += len(chunk)

    async def _pass_index_members(self) -> None:
        """Look for members that name nothing that the ledger knows."""
        keys = self._keys
        async for the_id in self._members(keys.holds):
            reservation = self._account.state.reservations.get(the_id)
            if reservation is None or reservation.state is not ReservationState.HELD:
                self.suspect_hold(the_id)
        places = dict.fromkeys(self._places())
        async for member in self._members(keys.locations):
            place = parse_location_member(member)
            if place is not None and place not in places:
                places[place] = None
                self.suspect(rows=[(*place, "")])
        for place in places:
            await self.suspect_members(place)

    async def suspect_members(self, place: Place) -> None:
        """Have looked at what a location's two indexes name and the ledger does not."""
        keys = self._keys
        async for sku in self._members(keys.skus(*place)):
            key = (*place, sku)
            if key not in self._account.state.rows:
                self.suspect(rows=[key])
        async for the_id in self._members(keys.open_reservations(*place)):
            reservation = self._account.state.reservations.get(the_id)
            if (
                reservation is None
                or not reservation.is_open
                or (reservation.body.merchant, reservation.body.location) != place
            ):
                self.suspect_hold(the_id, place)

    async def _members(self, index: str) -> AsyncIterator[str]:
        """Go through the members of a sorted set that stay in it all the while."""
        if index in self._bad_indexes:
            return
        cursor = 0
        while True:
            (reply,) = await self._store.read([("ZSCAN", index, cursor, "COUNT", INDEX_PAGE)])
            cursor, members = int(reply[0]), reply[1]
            await self._pace.spend(len(members))
            for member, _ in pairs(members):
                yield member.decode(errors="backslashreplace")
            if cursor == 0:
                return

    # The second pass

    async def look_again(self) -> None:
        """Make findings of the suspects."""
        # What was seen past the account's place is known by now.
        await self._look([])
        for chunk in _chunks(list(self._suspect_rows), MAX_INSPECTED // ROW_LOOKS):
            await self._look_at_rows(chunk)
        # A reservation may be named by more than one open index, each a look of its own.
        for ids in _chunks(list(self._suspect_holds), MAX_INSPECTED // (2 * HOLD_LOOKS)):
            await self._look_at_reservations(ids)
        for operations in _chunks(list(self._suspect_records), MAX_INSPECTED):
            await self._look_at_records(operations)
        self._suspect_rows.clear()
        self._suspect_holds.clear()
        self._suspect_records.clear()

    async def _compare_definitions(self) -> None:
        """Make findings of what merchants say of their SKUs; there is nothing to mend it from."""
        for name in list(self._account.state.definitions):
            if await self._definitions_differ(*name) and await self._definitions_differ(*name):
                what, merchant = name
                self.findings.append(
                    Finding(
                        invariant=Invariant.FOLD,
                        code=Code.DEFINITIONS_DIFFER,
                        detail=f"the {what} of {merchant} are not what was last said",
                        remedy=f"import the {what} anew, which writes them and the ledger",
                        partition=self._keys.partition,
                        merchant=merchant,
                        key=definitions_key(self._keys, what, merchant),
                        repairable=False,
                    )
                )

    async def _definitions_differ(self, what: str, merchant: str) -> bool:
        look = Look("hash", definitions_key(self._keys, what, merchant))
        (value,) = (await self._look([look])).values
        said = self._account.state.definitions[what, merchant].fields()
        return value != {field.encode(): text.encode() for field, text in said.items()}

    async def _compare_pledges(self) -> None:
        comparison = PledgeComparison(self._account, self._look, self._members)
        self.findings += await comparison.run()
        self.dropped += comparison.dropped

    async def look_at_pledges(self, strays: Sequence[ParsedKey]) -> None:
        """Make findings of queues and buyers' counts that the ledger does not know."""
        rows = [cast(RowKey, one.parts) for one in strays if one.noun == "waiting"]
        buyers = [cast(BuyerKey, one.parts) for one in strays if one.noun == "buyer"]
        comparison = PledgeComparison(self._account, self._look, self._members)
        self.findings += await comparison.look_at(rows, buyers)
        self.dropped += comparison.dropped

    def _claims(self) -> ClaimComparison:
        return ClaimComparison(self._store, self._account, self._look, self._account.partitions)

    async def look_at_claims(self, strays: Sequence[ParsedKey]) -> None:
        """Make findings of claims that the ledger does not know."""
        of_buyers = [cast(ClaimsKey, one.parts) for one in strays]
        self.findings += await self._claims().look_at(of_buyers)

    async def look_at_feeds(self, strays: Sequence[ParsedKey]) -> None:
        """Make findings of keys of sources and quarantines that the ledger does not know."""
        sources = {tuple(one.parts) for one in strays if one.noun in ("feed", "prints")}
        places = {one.parts[:2] for one in strays if one.noun == "quarantine"}
        self.findings += await FeedComparison(self._account, self._look).run(
            cast(list[SourceKey], sorted(sources)), cast(list[Place], sorted(places))
        )

    async def _look_at_rows(self, chunk: Sequence[RowKey]) -> None:
        keys, notes = self._keys, self._account.contradictions
        looks = []
        for merchant, location, sku in chunk:
            looks.append(Look("hash", keys.stock(merchant, location, sku)))
            looks.append(Look(f"score {sku}", keys.skus(merchant, location)))
            looks.append(Look(f"score {location_member(merchant, location)}", keys.locations))
            looks.append(Look("string", keys.recent(merchant, location, sku)))
        inspection = await self._look(looks)
        held, pooled = self._account.held(), self._account.pooled()
        waits = self._account.waits()
        listed_places = set(self._places())
        for index, key in enumerate(chunk):
            value, listed, placed, recent = inspection.values[
                index * ROW_LOOKS : (index + 1) * ROW_LOOKS
            ]
            folded = self._account.state.rows.get(key)
            noted = notes.rows.get(key)
            live = to_row(value)
            if key[2]:
                evidence = RowEvidence(
                    token=row_token(value),
                    live=live,
                    live_text=_texts(value),
                    ledger=ledger_row(folded),
                    held=held.get(key, (0, 0))[0],
                    waiting=held.get(key, (0, 0))[1],
                    pooled=pooled.get(key, {}),
                    waits=waits.get(key, {}),
                    books_drift=0 if noted is None else noted.books_drift,
                    safety_stock_drift=0 if noted is None else noted.safety_stock_drift,
                    versions_skipped=noted is not None and noted.versions_skipped,
                    past=(folded.past if folded is not None else None) or Past(),
                    past_differs=not _is_same_past(folded, value, recent, inspection),
                    split="" if folded is None else folded.split,
                    split_differs=not _is_same_split(folded, value),
                )
                unsettled = [] if noted is None else notes.unsettled(noted.notes)
                self.findings += row_findings(
                    self._keys.partition, key, evidence, self._account.state.sequence, unsettled
                )
            if (_is_score(listed), _is_score(placed)) != (
                folded is not None,
                key[:2] in listed_places,
            ):
                self.findings.append(_listing_finding(keys.partition, key))

    async def _look_at_reservations(self, chunk: Sequence[str]) -> None:
        keys, state = self._keys, self._account.state
        wanted: list[tuple[str, list[Place]]] = []
        looks = []
        for the_id in chunk:
            places = set(self._suspect_holds[the_id])
            reservation = state.reservations.get(the_id)
            if reservation is not None:
                places.add((reservation.body.merchant, reservation.body.location))
            wanted.append((the_id, sorted(places)))
            looks.append(Look("hash", keys.reservation(the_id)))
            looks.append(Look(f"score {the_id}", keys.holds))
            looks += [
                Look(f"score {the_id}", keys.open_reservations(*place)) for place in sorted(places)
            ]
        inspection = await self._look(looks)
        values = iter(inspection.values)
        notes = self._account.contradictions
        again: list[str] = []
        for the_id, ordered in wanted:
            value, hold_score = next(values), next(values)
            scores = {place: score_of(next(values)) for place in ordered}
            live = to_reservation(value)
            ledger = self._account.state.reservations.get(the_id)
            if (
                ledger is None
                and live is not None
                and not live.is_open
                and _is_old(live.ended_at_ms, inspection)
            ):
                # The ledger's side was forgotten a moment before the store's.
                continue
            body = ledger.body if ledger is not None else live.body if live is not None else None
            own = None if body is None else (body.merchant, body.location)
            if own is not None and own not in scores:
                # Only now it is known whose it is, and so which open index is its own.
                others = islice(self._suspect_holds[the_id], MAX_PLACES - 1)
                self._suspect_holds[the_id] = {own, *others}
                again.append(the_id)
                continue
            evidence = HoldEvidence(
                token=reservation_token(value),
                now_ms=inspection.now_ms,
                live=live,
                ledger=ledger,
                hold_score=score_of(hold_score),
                open_score=None if own is None else scores.pop(own, None),
            )
            self.findings += reservation_findings(
                self._keys.partition,
                the_id,
                evidence,
                sequence=self._account.state.sequence,
                strays=[place for place, score in scores.items() if score is not None],
                may_be_gone=ledger is not None
                and not ledger.is_open
                and _is_old(ledger.ended_at_ms, inspection),
                notes=notes.unsettled(notes.reservations.get(the_id, [])),
            )
        if again:
            await self._look_at_reservations(again)

    async def _look_at_records(self, chunk: Sequence[str]) -> None:
        looks = [
            Look("string", self._keys.seen(self._suspect_records[operation], operation))
            for operation in chunk
        ]
        inspection = await self._look(looks)
        for operation, value in zip(chunk, inspection.values, strict=True):
            record = self._account.state.seen.get(operation)
            if record is None:
                if value is not None:
                    self._record_finding(operation, Code.RECORD_UNKNOWN, value, None)
            elif not _is_record(record, value, inspection):
                code = Code.RECORD_MISSING if value is None else Code.RECORD_DIFFERS
                self._record_finding(operation, code, value, record)

    def _record_finding(
        self,
        operation: str,
        code: Code,
        value: Value,
        record: FoldedSeen | None,
    ) -> None:
        location = ""
        fingerprint, reply = _read_record(value)
        remedy = "removed, or taken over where the ledger lost operations"
        keep_ms = RETENTION_MS
        if record is not None:
            keep_ms = record.keep_ms
            location, fingerprint, reply = record.location, record.fingerprint, record.reply
            remedy = "written again as the ledger says: a retry must find its answer"
        evidence = RecordEvidence(
            token=text_token(value),
            operation=operation,
            fingerprint=fingerprint,
            reply=reply,
            keep_ms=keep_ms,
        )
        details = {
            Code.RECORD_UNKNOWN: "tells of an effect that the ledger does not have",
            Code.RECORD_MISSING: "is gone before its time",
            Code.RECORD_DIFFERS: "does not say what the ledger says",
        }
        self.findings.append(
            Finding(
                invariant=Invariant.ONCE,
                code=code,
                detail=f"the idempotency record {operation} {details[code]}",
                remedy=remedy,
                partition=self._keys.partition,
                merchant=self._suspect_records[operation],
                location=location,
                key=self._keys.seen(self._suspect_records[operation], operation),
                sequence=self._account.state.sequence,
                record=evidence,
            )
        )


def _listing_finding(partition: int, key: RowKey) -> Finding:
    merchant, location, sku = key
    what = f"SKU {sku}" if sku else "the location"
    return Finding(
        invariant=Invariant.INDEX_MATCH,
        code=Code.LISTING_DIFFERS,
        detail=f"the listing does not say of {what} what the ledger says",
        remedy="listed if there is such a row, else taken from the list",
        partition=partition,
        merchant=merchant,
        location=location,
        sku=sku,
    )


def _is_same_past(
    folded: FoldedRow | None, value: Value, recent: Value, inspection: Inspection
) -> bool:
    counted = value.get(b"counted") if isinstance(value, dict) else None
    past = None if folded is None else folded.past
    now_ms = max(inspection.now_ms, inspection.clock_ms)
    return is_same_past(past, counted, recent, now_ms)


def _is_same_split(folded: FoldedRow | None, value: Value) -> bool:
    live = value.get(b"split", b"") if isinstance(value, dict) else b""
    return live == (b"" if folded is None else folded.split.encode())


def _is_as_wanted(
    wanted: FoldedReservation, found: Sequence[Value], inspection: Inspection
) -> bool:
    value, hold_score, open_score = found
    wanted_hold = wanted.expires_at_ms if wanted.state is ReservationState.HELD else None
    wanted_open = wanted.body.created_at_ms if wanted.is_open else None
    if (score_of(hold_score), score_of(open_score)) != (wanted_hold, wanted_open):
        return False
    if value is None:
        return not wanted.is_open and _is_old(wanted.ended_at_ms, inspection)
    return to_reservation(value) == wanted


def _is_record(record: FoldedSeen, value: Value, inspection: Inspection) -> bool:
    if value is None:
        return _is_old(record.at_ms, inspection, record.keep_ms)
    return _read_record(value) == (record.fingerprint, tuple(record.reply))


def _read_record(value: Value) -> tuple[str, tuple[Any, ...]]:
    """Read an idempotency record's fingerprint and reply; the former is '' where it is none."""
    if not isinstance(value, bytes):
        return "", ()
    try:
        fingerprint, (_, *reply) = _decode_record(value)
        return fingerprint, tuple(reply)
    except (ValueError, msgspec.MsgspecError):
        return "", ()


def _is_old(ended_at_ms: int, inspection: Inspection, keep_ms: int = RETENTION_MS) -> bool:
    """Tell whether what ended then may be gone: its retention is over, or nearly."""
    return is_over(ended_at_ms + keep_ms, inspection)


def _is_score(value: Value) -> bool:
    return isinstance(value, bytes)


def _texts(value: Value) -> dict[str, str] | None:
    if value is None:
        return None
    if isinstance(value, WrongType):
        return {"type": value.kind}
    found = cast(dict[bytes, bytes], value)
    return {
        name.decode(errors="backslashreplace"): text.decode(errors="backslashreplace")
        for name, text in found.items()
    }


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))
