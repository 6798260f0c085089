"""The invariants, checked by name against what is really in the store.

An `Audit` reads the ledger with a plain client, unpacks it with a plain msgpack, folds it, and
compares the fold with every hash and index in the store. It recomputes each sum for itself and
shares nothing with the product but the spelling of the keys, which is part of the format.
Quantities are units, times milliseconds since 1970.

| name | what is checked |
|---|---|
| Conservation | on_hand - deficit = arrivals - departures - commits, adjusted and counted |
| NoOversell | a reserve never promises more than is available; only a movement makes a shortfall |
| Integer | every number in a hash is canonical and within 0 to 10^12 |
| HoldsSum | a row's reserved, backordered, pools and waits = the sums over live reservations |
| NoOverpromise | no day was promised that all who were promised before it left too little for |
| OneEnding | a reservation ends once, expires only when held and due, and its hash says the same |
| Orders | an order goes from state to state as it may, and its record and indexes say the same |
| IndexMatch | the TTL index, the open index, the queues and the listings name just what there is |
| Dense | sequences and versions rise by one, the clock never falls |
| Once | one effect per operation id, and the idempotency record tells of just that effect |
| Fold | previous + delta = result in every line, and the fold = the live rows |
| Claims | at least what a buyer is promised over all locations is claimed, and as the ledger says |
| Parts | what is at the parts of a split row, under way and at home is the row, no unit twice |
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, cast
from urllib.parse import unquote

import msgpack

from engine.store import Client

MAX_TOTAL: Final = 10**12
SCAN_COUNT: Final = 1_000
READ_COUNT: Final = 1_000
MAX_TOLD: Final = 20
COLUMNS: Final = (
    "on_hand",
    "reserved",
    "safety_stock",
    "deficit",
    "low_stock_threshold",
    "backordered",
)
ARRIVALS: Final = ("receive", "return", "transfer_in")
DEPARTURES: Final = ("sale", "transfer_out")
LIVE: Final = ("held", "confirmed")
LIVE_ENOUGH: Final = ("amend", "decide", "fill", "slip", "commit", "release")
"""What is done to a reservation that is held or confirmed, and not only to a held one."""

MOVEMENTS: Final = ("move", "feed")
NOUNS: Final = (
    "stock",
    "rsv",
    "open",
    "skus",
    "seen",
    "waiting",
    "order",
    "orders",
    "orderrefs",
    "claims",
)
OF_ANY_MERCHANT: Final = ("rsv", "order")
"""Nouns that are followed by an id."""

GAVE_BACK: Final = ("failed", "cancelled", "expired")
MAY_FOLLOW: Final = {
    "": ("placing",),
    "placing": ("placing", "held", "confirmed", *GAVE_BACK),
    "held": ("placing", "held", "confirmed", *GAVE_BACK),
    "confirmed": ("confirmed", "fulfilled", "cancelled", "failed"),
    "fulfilled": ("fulfilled", "confirmed"),
    "failed": ("failed", "placing"),
    "cancelled": ("cancelled",),
    "expired": ("expired",),
}
"""What the state of an order may be after each; a move is `confirmed` before it may still fail."""

RECORDED: Final = (*MOVEMENTS, "configure", "terms", "supply", "extend", "amend")
REPEATED: Final = (
    "repair",
    "shortfall",
    "offline",
    "fill",
    "slip",
    "split",
    "part",
    "claim",
    "settle",
)
"""Kinds whose ids are of what they are about."""

_CANONICAL = re.compile(rb"0|[1-9][0-9]{0,12}")
_COUNTED = re.compile(rb"[1-9][0-9]{0,15}-[0-9a-f]{8}")

RowName = tuple[str, ...]
"""(merchant, location, SKU), and of a part of a split row the partition that it is in."""


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that does not hold, and where."""

    name: str
    what: str


@dataclass(slots=True)
class _Row:
    levels: tuple[int, ...] = (0,) * len(COLUMNS)
    version: int = 0
    books: int = 0
    terms: dict[str, Any] | None = None
    split: str = ""


@dataclass(slots=True)
class _Promise:
    merchant: str
    location: str
    whole: dict[str, int]
    lines: dict[str, int]
    waiting: dict[str, "_Wait"]
    created_at: int
    expires_at: int
    state: str = "held"
    ended_at: int = 0


@dataclass(slots=True)
class _Order:
    merchant: str
    fields: dict[str, Any]
    ref: str
    due_at: int


@dataclass(slots=True)
class _Partition:
    number: int
    last_id: bytes = b"0-0"
    sequence: int = 0
    clock_ms: int = 0
    rows: dict[RowName, _Row] = field(default_factory=dict)
    promises: dict[str, _Promise] = field(default_factory=dict)
    orders: dict[str, _Order] = field(default_factory=dict)
    claims: dict[tuple[str, str], dict[str, list[Any]]] = field(default_factory=dict)
    effects: dict[tuple[str, ...], int] = field(default_factory=dict)
    amendments: Counter[str] = field(default_factory=Counter)
    unrecorded: set[tuple[str, ...]] = field(default_factory=set)


class Audit:
    """Folds the ledger as it grows; `check` compares the fold with the store.

    Keep one over many steps to read each entry once. The store must be quiet during a check.
    """

    def __init__(self, client: Client, *, partitions: int) -> None:
        """Start before the first entry of every partition."""
        self._client = cast(Any, client)
        self._partitions = {number: _Partition(number) for number in range(partitions)}
        self._violations: list[Violation] = []
        self._only: str | None = None
        self._owner: str | None = None
        self._found: dict[str, list[str]] = {}
        self._wanted_queues: dict[RowName, dict[str, int]] = {}

    async def check(self, *, merchant: str | None = None) -> None:
        """Read what is new, and compare all that is `merchant`'s, or everybody's.

        Raises AssertionError that lists the first violations.
        """
        violations = await self.violations(merchant=merchant)
        told = [f"{v.name}: {v.what}" for v in violations[:MAX_TOLD]]
        assert not violations, f"{len(violations)} violations\n" + "\n".join(told)

    async def violations(self, *, merchant: str | None = None) -> list[Violation]:
        """Return what does not hold; see `check`."""
        self._violations, self._only = [], merchant
        for number, partition in self._partitions.items():
            await self._catch_up(number, partition)
            self._sequence_is_stored(partition, await self._hash(f"{{hf.{number}}}:meta"), number)
        await self._find_keys(merchant)
        live_rows = await self._live_rows()
        live_promises = await self._live_promises(merchant)
        self._compare_rows(live_rows, merchant)
        self._compare_promises(live_promises, merchant)
        self._compare_sums(live_rows, live_promises)
        await self._compare_orders(merchant)
        await self._compare_claims(live_promises, merchant)
        await self._compare_queues()
        self._compare_parts(live_rows)
        await self._compare_hold_index(live_promises, merchant)
        await self._compare_open_index(live_promises)
        await self._compare_listings(live_rows, merchant)
        await self._compare_records(merchant)
        return self._violations

    def effects(self) -> dict[tuple[str, ...], int]:
        """Return the sequence of every effect so far, by (kind, merchant, id, ...)."""
        return {
            effect: sequence
            for partition in self._partitions.values()
            for effect, sequence in partition.effects.items()
        }

    def _violated(self, name: str, what: str) -> None:
        """Note it, unless the operation that is being folded is of a merchant left out."""
        if self._only is None or self._owner in (None, self._only):
            self._violations.append(Violation(name, what))

    # Folding

    async def _catch_up(self, number: int, partition: _Partition) -> None:
        key = f"{{hf.{number}}}:ledger"
        while True:
            entries = await self._client.xrange(key, min=b"(" + partition.last_id, count=READ_COUNT)
            for stream_id, fields in entries:
                self._fold_entry(partition, fields, f"partition {number} entry {stream_id!r}")
                partition.last_id = stream_id
            if len(entries) < READ_COUNT:
                return

    def _fold_entry(self, partition: _Partition, fields: dict[bytes, bytes], where: str) -> None:
        sequence, at = int(fields[b"seq"]), int(fields[b"at"])
        operations = msgpack.unpackb(fields[b"ops"], raw=False)
        if sequence != partition.sequence + 1:
            self._violated("Dense", f"{where}: {sequence} follows {partition.sequence}")
        if at < partition.clock_ms:
            self._violated("Dense", f"{where}: the clock fell from {partition.clock_ms} to {at}")
        partition.sequence = sequence + len(operations) - 1
        partition.clock_ms = at
        for i, operation in enumerate(operations):
            self._owner = operation[2]
            self._fold_operation(partition, sequence + i, at, operation)
        self._owner = None

    def _fold_operation(
        self, partition: _Partition, sequence: int, at: int, operation: list[Any]
    ) -> None:
        kind, the_id, merchant, location, _, _, lines, detail = operation
        where = f"operation {sequence} ({kind} {the_id} of {merchant})"
        effect: tuple[str, ...] = (kind, merchant, the_id)
        if kind == "extend":
            effect = (*effect, detail[2])
        if kind == "order":
            effect = (*effect, str(detail[3]))
        if kind == "amend":
            effect = (*effect, detail[0])
            partition.amendments[the_id] += 1
        if kind == "decide":
            # What an amendment proposes anew is decided anew.
            effect = (*effect, *detail[1], str(partition.amendments[the_id]))
        if kind == "feed":
            # What was set aside may be booked or dropped later, under the same id.
            settled = detail[11] in ("quarantined", "dropped", "skipped")
            effect = (kind, merchant, detail[11] if settled else "booked", the_id)
        if kind not in REPEATED and effect in partition.effects:
            self._violated("Once", f"{where} was done in {partition.effects[effect]} already")
        partition.effects[effect] = sequence
        if kind == "feed" and (
            detail[10]
            or detail[13]
            or detail[11] in ("dropped", "skipped")
            or (kind, merchant, "quarantined", the_id) in partition.effects.keys() - {effect}
        ):
            # Known by its number, recorded when it was set aside, or no event at all.
            partition.unrecorded.add(effect)
        changes = self._book_changes(kind, detail)
        if kind == "split":
            partition.rows[merchant, location, detail[0]].split = detail[1]
        for sku, version, levels, deltas, *rest in lines:
            # The row's terms, and whether it is a part.
            terms, is_part = [*rest, None, None][:2]
            name = (merchant, location, sku, *([str(partition.number)] if is_part else []))
            row = partition.rows.setdefault(name, _Row())
            row.terms = terms
            if kind == "part":
                # What came to it and went from it again.
                changes = {sku: _brought(detail[0]) - _brought(row.split)}
                row.split = detail[0]
            if kind == "split":
                changes = {sku: -sum(units for _, units in detail[2])}
            self._fold_line(
                row, kind, version, _columns(levels), _columns(deltas), f"{where} {sku}"
            )
            is_count = kind in MOVEMENTS and detail[0] == "count"
            if kind == "repair":
                row.books = levels[0] - levels[3]
            elif is_count and not detail[6]:
                row.books = detail[1] + detail[7]
            else:
                row.books += changes.get(sku, changes.get("", 0))
            if row.levels[0] - row.levels[3] != row.books:
                self._violated(
                    "Conservation", f"{where} {sku}: {row.levels} where the books say {row.books}"
                )
        self._fold_promise(partition, at, operation, where)
        if kind == "order":
            self._fold_order(partition, at, operation, where)
        if kind in ("claim", "settle"):
            buyer, entry, picked_as, picked = detail
            claims = partition.claims.setdefault((merchant, buyer), {})
            if not entry and the_id not in claims and not picked_as:
                self._violated("Claims", f"{where}: there was no such claim")
            claims.pop(the_id, None)
            claims |= {the_id: entry} if entry else {}
            if not entry:
                for other in claims.values():
                    other[2] = "" if other[2] == the_id else other[2]
            claims |= {picked_as: picked} if picked_as else {}
        if kind == "repair" and detail[0] == "claims":
            partition.claims[merchant, detail[3]] = dict(detail[4] or {})

    @staticmethod
    def _book_changes(kind: str, detail: list[Any]) -> dict[str, int]:
        """Return what an operation says happened to the shelf, by SKU; "" is its only row."""
        if kind == "commit":
            return {sku: -quantity for sku, quantity in detail[2]}
        if kind not in MOVEMENTS or detail[6]:
            return {}
        if detail[14:] and detail[14]:
            # Of a kit: its components.
            sign = -1 if detail[0] in DEPARTURES else 1
            return {sku: sign * units for sku, units in detail[14]}
        if detail[0] in DEPARTURES:
            return {"": -detail[1]}
        if detail[0] in (*ARRIVALS, "adjust"):
            return {"": detail[1]}
        return {}

    def _fold_line(
        self,
        row: _Row,
        kind: str,
        version: int,
        levels: tuple[int, ...],
        deltas: tuple[int, ...],
        where: str,
    ) -> None:
        if kind != "repair" and version != row.version + 1:
            self._violated("Dense", f"{where}: version {version} follows {row.version}")
        before = row.levels
        if kind != "repair" and levels != tuple(
            was + delta for was, delta in zip(before, deltas, strict=True)
        ):
            self._violated("Fold", f"{where}: {before} and {deltas} do not make {levels}")
        if any(type(n) is not int or not 0 <= n <= MAX_TOTAL for n in levels):
            self._violated("Integer", f"{where}: {levels}")
        on_hand, reserved, safety_stock, *_ = levels
        promises = kind in ("reserve", "amend") and deltas[1] > 0
        if promises and reserved + safety_stock > on_hand:
            self._violated("NoOversell", f"{where}: promised past what is available: {levels}")
        grew = max(0, reserved - on_hand) - max(0, before[1] - before[0])
        if kind not in (*MOVEMENTS, "repair") and grew > 0:
            self._violated("NoOversell", f"{where}: a {kind} made a shortfall: {levels}")
        row.levels = levels
        row.version = version

    def _fold_promise(
        self, partition: _Partition, at: int, operation: list[Any], where: str
    ) -> None:
        kind, the_id, merchant, location, _, _, lines, detail = operation
        if kind == "reserve":
            changes = {line[0]: _columns(line[3]) for line in lines}
            held = {sku: deltas[1] for sku, deltas in changes.items() if deltas[1]}
            whole = {sku: deltas[1] + deltas[-1] for sku, deltas in changes.items()}
            extras = detail[4] if detail[4:] else {}
            waiting = {
                line[0]: _first_wait(changes[line[0]][-1], line[1], line[0], extras)
                for line in lines
                if changes[line[0]][-1]
            }
            for line in lines:
                if line[0] in waiting:
                    self._check_promise(line, waiting[line[0]], where)
            if detail[3] != at + detail[0]:
                self._violated("Fold", f"{where}: expires at {detail[3]}, not {at} + {detail[0]}")
            partition.promises[the_id] = _Promise(
                merchant, location, whole, held, waiting, at, detail[3]
            )
            return
        if kind not in ("confirm", "extend", "expire", *LIVE_ENOUGH):
            return
        promise = partition.promises.get(the_id)
        if promise is None:
            self._violated("OneEnding", f"{where}: there was no such reservation")
            return
        if promise.state not in (LIVE if kind in LIVE_ENOUGH else ("held",)):
            self._violated("OneEnding", f"{where}: it is {promise.state} already")
        if kind == "confirm":
            promise.state = "confirmed"
            return
        if kind == "extend":
            if detail[0] < promise.expires_at:
                self._violated("Fold", f"{where}: the hold got shorter")
            promise.expires_at = detail[0]
            return
        if kind == "fill":
            sku, units, left = detail
            wait = promise.waiting.pop(sku, _Wait(0, 0))
            promise.lines[sku] = promise.lines.get(sku, 0) + units
            if left:
                promise.waiting[sku] = wait._replace(units=left)
            if wait.units != units + left:
                self._violated("HoldsSum", f"{where}: {wait} waited for, {detail}")
            may_pass = _is_kept_for_pools(lines[0], units)
            earlier = [
                other_id
                for other_id, other in partition.promises.items()
                if (other.merchant, other.location) == (merchant, location)
                and other.waiting.get(sku, wait).turn < wait.turn
                and (other.waiting[sku].dated or not may_pass)
            ]
            if earlier:
                self._violated("Fold", f"{where}: it is the turn of {earlier} before it")
            return
        if kind == "slip":
            sku, units, promised, expected = detail
            wait = promise.waiting[sku]
            if (wait.units, wait.day, wait.dated) != (units, promised, True):
                self._violated("HoldsSum", f"{where}: {wait} slipped, {detail}")
            late = "" if expected == promised else expected
            promise.waiting[sku] = wait._replace(late=late)
            return
        if kind in ("amend", "decide"):
            self._fold_amendment(promise, kind, lines, detail, where)
            return
        if kind == "expire" and promise.expires_at > at:
            self._violated("OneEnding", f"{where}: not due before {promise.expires_at}, at {at}")
        changes = {line[0]: _columns(line[3]) for line in lines}
        held = {sku: -deltas[1] for sku, deltas in changes.items() if deltas[1]}
        if held != promise.lines:
            self._violated("HoldsSum", f"{where}: held {promise.lines}, gave back {held}")
        waited = {sku: -deltas[-1] for sku, deltas in changes.items() if deltas[-1]}
        if waited != {sku: wait.units for sku, wait in promise.waiting.items()}:
            self._violated("HoldsSum", f"{where}: waited for {promise.waiting}, not {waited}")
        promise.waiting = {}
        promise.state = {"commit": "committed", "release": "released", "expire": "expired"}[kind]
        promise.ended_at = at

    def _fold_amendment(
        self, promise: _Promise, kind: str, lines: list[Any], detail: list[Any], where: str
    ) -> None:
        """Change what is held and waited for; who waits for more does so behind all others."""
        told = dict(detail[5]) if kind == "amend" and detail[5:] else {}
        for line in lines:
            sku, version, _, deltas, *_ = line
            changed = _columns(deltas)
            reserved, backordered = changed[1], changed[-1]
            promise.lines[sku] = promise.lines.get(sku, 0) + reserved
            wait = promise.waiting.pop(sku, _Wait(0, 0))
            units = wait.units + backordered
            if backordered > 0:
                # On which day it is their turn is the script's to say.
                wait = _Wait(*told[sku])._replace(place=version)
            if units:
                promise.waiting[sku] = wait._replace(units=units)
            if backordered > 0:
                self._check_promise(line, promise.waiting[sku], where)
        promise.lines = {sku: units for sku, units in promise.lines.items() if units}
        promise.whole = {
            sku: promise.lines.get(sku, 0) + promise.waiting.get(sku, _Wait(0, 0)).units
            for sku in {*promise.lines, *promise.waiting}
        }
        left = dict(detail[1] if kind == "amend" else detail[2])
        if left != promise.whole:
            self._violated("HoldsSum", f"{where}: {left} is not {promise.whole}")
        if kind == "amend" and len(detail) > 5:
            waiting = {sku: _Wait(*entry) for sku, entry in told.items()}
            if waiting != promise.waiting:
                self._violated("HoldsSum", f"{where}: {waiting} is not {promise.waiting}")

    def _fold_order(self, partition: _Partition, at: int, operation: list[Any], where: str) -> None:
        _, the_id, merchant, _, _, _, _, detail = operation
        step, before, state, revision, settled, expires_at, confirmed_at, ended_at = detail[:8]
        due_at, reason, plan, body, ref = detail[8:]
        known = partition.orders.get(the_id)
        was: dict[str, Any] = {"state": "", "revision": 0, "created_at": at}
        if known is not None:
            was = known.fields
        if (before, revision) != (was["state"], was["revision"] + 1):
            self._violated("Dense", f"{where}: revision {revision} of {before} follows {was}")
        if state not in MAY_FOLLOW[before]:
            self._violated("Orders", f"{where}: {step} made it {state} when it was {before}")
        if (state in (*GAVE_BACK, "fulfilled")) != (ended_at > 0):
            self._violated("Orders", f"{where}: it is {state} and ended at {ended_at}")
        fields = {
            "state": state,
            "revision": revision,
            "settled": settled,
            "created_at": was["created_at"],
            "expires_at": expires_at,
            "confirmed_at": confirmed_at,
            "ended_at": ended_at,
            "reason": reason,
            "plan": plan,
            "body": known.fields["body"] if known else body,
        }
        partition.orders[the_id] = _Order(merchant, fields, ref, due_at)

    def _check_promise(self, line: list[Any], wait: "_Wait", where: str) -> None:
        """Check that a promise of what has not come yet was one that could be made."""
        on_hand, reserved, safety_stock, deficit, _, held_back, backordered = [*line[2], 0, 0][:7]
        free, terms = on_hand - deficit - reserved - safety_stock - held_back, line[4]
        supplies, waits = terms.get("supplies", {}).values(), terms.get("waits", {})
        if not wait.dated:
            covered = max(0, sum(units for _, units in supplies) + min(0, free))
            if backordered - covered > terms.get("backorder_limit", 0):
                self._violated("NoOverpromise", f"{where}: beyond the limit: {line}")
            return
        first = backordered - sum(map(sum, waits.values()))
        for last in {wait.day, *(day for day in waits if day > wait.day)}:
            come = free + sum(units for day, units in supplies if day <= last)
            due = first + sum(sum(units) for day, units in waits.items() if day <= last)
            if due > come:
                self._violated("NoOverpromise", f"{where}: {due} by {last}, {come} come: {line}")

    def _sequence_is_stored(
        self, partition: _Partition, meta: dict[bytes, bytes], number: int
    ) -> None:
        if int(meta.get(b"sequence", b"0")) != partition.sequence:
            self._violated("Dense", f"partition {number}: {meta} but {partition.sequence} read")

    # Comparing

    def _compare_rows(self, live: dict[RowName, dict[bytes, bytes]], merchant: str | None) -> None:
        folded = {
            name: row
            for partition in self._partitions.values()
            for name, row in partition.rows.items()
            if merchant in (None, name[0])
        }
        for name in folded.keys() ^ live.keys():
            where = "the ledger" if name in folded else "the store"
            self._violated("Fold", f"row {name} is in {where} only")
        for name in folded.keys() & live.keys():
            fields = live[name]
            terms = fields.pop(b"terms", None)
            if (msgpack.unpackb(terms, raw=False) if terms else None) != folded[name].terms:
                self._violated("Fold", f"row {name}: its terms are {terms!r}")
            buffer = fields.pop(b"offline_buffer", b"1")
            if not _CANONICAL.fullmatch(buffer):
                self._violated("Integer", f"row {name}: the offline buffer is {buffer!r}")
            split = fields.pop(b"split", b"").decode()
            if split != folded[name].split:
                told = folded[name].split
                self._violated("Fold", f"row {name} is split {split!r}, the ledger says {told!r}")
            counted = fields.pop(b"counted", b"1-00000000")
            if not _COUNTED.fullmatch(counted):
                self._violated("Integer", f"row {name}: counted is {counted!r}")
            for column, text in fields.items():
                if not _CANONICAL.fullmatch(text) or int(text) > MAX_TOTAL:
                    self._violated("Integer", f"row {name}: {column!r} is {text!r}")
            row = folded[name]
            wanted = dict(zip(COLUMNS, row.levels, strict=True)) | {"version": row.version}
            if _row_facts(fields) != wanted:
                self._violated("Fold", f"row {name} is {fields}, the ledger says {wanted}")

    def _compare_promises(self, live: dict[str, dict[bytes, bytes]], merchant: str | None) -> None:
        known = [the_id for p in self._partitions.values() for the_id in p.promises]
        for the_id in live.keys() - set(known):
            self._violated("Fold", f"{the_id} is in the store, but not in the ledger")
        for partition in self._partitions.values():
            for the_id, promise in partition.promises.items():
                if merchant not in (None, promise.merchant):
                    continue
                fields = live.get(the_id)
                if fields is None:
                    if promise.state in LIVE:
                        self._violated("Fold", f"{the_id} is {promise.state}, but has no hash")
                    continue
                if fields[b"state"].decode() != promise.state:
                    self._violated("OneEnding", f"{the_id}: {fields}, ledger: {promise.state}")
                body = msgpack.unpackb(fields[b"body"], raw=False)
                said = (body[0], body[1], body[8], dict(body[6]))
                if said != (promise.merchant, promise.location, promise.created_at, promise.whole):
                    self._violated("Fold", f"{the_id}: {body} is not what was promised: {promise}")
                if _waiting(fields) != promise.waiting:
                    self._violated("Fold", f"{the_id}: {fields} waits otherwise: {promise}")
                if promise.state == "held" and int(fields[b"expires_at"]) != promise.expires_at:
                    self._violated("Fold", f"{the_id}: {fields} expires elsewhen: {promise}")
                if promise.ended_at and int(fields[b"ended_at"]) != promise.ended_at:
                    self._violated("Fold", f"{the_id}: {fields} ended elsewhen: {promise}")

    def _compare_sums(
        self,
        live_rows: dict[RowName, dict[bytes, bytes]],
        live_promises: dict[str, dict[bytes, bytes]],
    ) -> None:
        held: dict[RowName, int] = defaultdict(int)
        queues: dict[RowName, dict[str, int]] = defaultdict(dict)
        waited: dict[RowName, int] = defaultdict(int)
        pools: dict[RowName, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        waits: dict[RowName, list[_Wait]] = defaultdict(list)
        for the_id, fields in live_promises.items():
            if fields[b"state"].decode() in LIVE:
                body = msgpack.unpackb(fields[b"body"], raw=False)
                waiting = _waiting(fields)
                extras = body[10] if len(body) > 10 else {}
                for sku in extras.get("pooled", ()):
                    if sku not in dict(body[6]):
                        self._violated("HoldsSum", f"{the_id} has none of {sku} in its pool")
                        continue
                    pools[body[0], body[1], sku][extras["channel"]] += dict(body[6])[sku]
                for sku, quantity in body[6]:
                    wait = waiting.get(sku, _Wait(0, 0))
                    part = (body[0], body[1], sku, the_id.split("_")[1])
                    held[part if part in live_rows else part[:3]] += quantity - wait.units
                    if wait.units:
                        waited[body[0], body[1], sku] += wait.units
                        queues[body[0], body[1], sku][the_id] = wait.turn
                        waits[body[0], body[1], sku].append(wait)
        for name in live_rows:
            for cell in self._cells(name):
                held[name] += cell[6]
        for name, row in live_rows.items():
            reserved = int(row[b"reserved"])
            if reserved != held.pop(name, 0):
                self._violated("HoldsSum", f"row {name}: {reserved} reserved, holds say otherwise")
            if int(row.get(b"backordered", b"0")) != waited.pop(name, 0):
                self._violated("HoldsSum", f"row {name}: {row} is not what its holds wait for")
        for name, quantity in (held | waited).items():
            if quantity:
                self._violated("HoldsSum", f"{quantity} units of {name} are held, without a row")
        self._wanted_queues = dict(queues)
        for partition in self._partitions.values():
            for name, folded in partition.rows.items():
                channels = (folded.terms or {}).get("channels", {})
                found = {channel: pool["held"] for channel, pool in channels.items()}
                if name in live_rows and {c: n for c, n in found.items() if n} != pools[name]:
                    self._violated("HoldsSum", f"row {name}: {channels}, holds {pools[name]}")
                terms = folded.terms or {}
                said = (terms.get("waits", {}), terms.get("late", 0))
                if name in live_rows and said != _waits(waits[name]):
                    self._violated("HoldsSum", f"row {name}: {terms}, waiting {waits[name]}")

    async def _compare_orders(self, merchant: str | None) -> None:
        """Compare the records, and the indexes that find them; what ended may be forgotten."""
        live = dict(
            zip(
                (key.split(":")[2] for key in self._found["order"]),
                await self._hashes(self._found["order"]),
                strict=True,
            )
        )
        listed: dict[str, int] = {}
        references: set[str] = set()
        for key in self._found["orders"]:
            listed.update(await self._sorted_set(key))
        for key in self._found["orderrefs"]:
            references.update(member for member, _ in await self._sorted_set(key))
        for number, partition in self._partitions.items():
            driving = dict(await self._sorted_set(f"{{hf.{number}}}:driving"))
            for the_id, order in partition.orders.items():
                if merchant not in (None, order.merchant):
                    continue
                fields = live.pop(the_id, None)
                if fields is None and order.fields["settled"] and order.fields["ended_at"]:
                    continue
                found = fields and _order_facts(fields)
                if found != order.fields:
                    self._violated("Fold", f"order {the_id} is {found}, not {order.fields}")
                if order.ref and listed.pop(the_id, None) != order.fields["created_at"]:
                    self._violated("IndexMatch", f"order {the_id} is not listed")
                if order.ref and order.ref not in references:
                    self._violated("IndexMatch", f"{order.ref} is not among the references")
                references.discard(order.ref)
                # It may have been put off.
                if driving.get(the_id, -1) < order.due_at:
                    self._violated("IndexMatch", f"order {the_id} is driven {driving}, {order}")
        known = {the_id for one in self._partitions.values() for the_id in one.orders}
        for the_id in live.keys() - known:
            self._violated("Fold", f"order {the_id} is in the store, but not in the ledger")
        if listed or references:
            self._violated("IndexMatch", f"{listed}, {references}: there are no such orders")

    async def _compare_claims(
        self, live_promises: dict[str, dict[bytes, bytes]], merchant: str | None
    ) -> None:
        seconds, microseconds = await self._client.time()
        now = seconds * 1000 + microseconds // 1000
        promised: dict[tuple[str, str], dict[str, dict[str, int]]] = defaultdict(dict)
        for the_id, fields in live_promises.items():
            body = msgpack.unpackb(fields[b"body"], raw=False)
            claimed = body[10].get("claimed", {}) if len(body) > 10 else {}
            if claimed and fields[b"state"].decode() in LIVE:
                lines = {sku: units for sku, units in body[6] if sku in claimed}
                promised[body[0], body[10]["buyer"]][the_id] = lines
        found = {}
        for key in self._found["claims"]:
            name = tuple(unquote(part) for part in key.split(":")[2:])
            text = await self._client.get(key)
            found[name] = msgpack.unpackb(text, raw=False) if text else {}
        for number, partition in self._partitions.items():
            due = dict(await self._sorted_set(f"{{hf.{number}}}:claiming"))
            for name, folded in partition.claims.items():
                if merchant not in (None, name[0]):
                    continue
                there, told = _lasting(found.pop(name, {}), now), _lasting(folded, now)
                if there != told:
                    self._violated("Fold", f"claims of {name} are {there}, not {told}")
                for the_id, lines in promised.pop(name, {}).items():
                    has = {sku: line[0] for sku, line in told.get(the_id, [0, {}])[1].items()}
                    if any(units > has.get(sku, 0) for sku, units in lines.items()):
                        self._violated("Claims", f"{the_id} has {lines}, and {has} are claimed")
                for the_id in told:
                    if "@" not in the_id and not any(m.endswith(f":{the_id}") for m in due):
                        self._violated("IndexMatch", f"nobody will look at the claim for {the_id}")
        if promised or any(_lasting(one, now) for one in found.values()):
            self._violated("Claims", f"{promised} is not claimed, or {found} not in the ledger")

    async def _compare_queues(self) -> None:
        found = {}
        for key in self._found["waiting"]:
            name = cast(RowName, tuple(unquote(part) for part in key.split(":")[2:]))
            found[name] = dict(await self._sorted_set(key))
        if found != self._wanted_queues:
            self._violated("IndexMatch", f"queues {found}, waiting {self._wanted_queues}")

    def _cells(self, name: RowName) -> list[list[int]]:
        """Return what the home of a split row knows of its parts, by the ledger."""
        for partition in self._partitions.values():
            row = partition.rows.get(name)
            if row is not None and row.split.startswith("home") and not row.split.endswith(" -"):
                cells = row.split.split(" ")[5].split(";")
                return [[int(number) for number in cell.split(":")] for cell in cells]
        return []

    def _compare_parts(self, live_rows: dict[RowName, dict[bytes, bytes]]) -> None:
        """Look at every part of a split row beside what its home knows of it."""
        known = set()
        for name in live_rows:
            for number, granted, version, *sums, _ in self._cells(name):
                part = (*name, str(number))
                known.add(part)
                row = self._partitions[number].rows.get(part, _Row())
                received, returned = _moved(row.split)
                found = [received, returned, received - returned - row.levels[0], row.levels[1]]
                where = f"part {part}, of which its home knows {granted} granted, {sums}: {found}"
                if received > granted:
                    self._violated("Parts", f"more came than was granted: {where}")
                if version > row.version or (version == row.version and sums != found):
                    self._violated("Parts", f"version {version}, now {row.version}: {where}")
                if any(told > is_ for told, is_ in zip(sums[:3], found[:3], strict=True)):
                    self._violated("Parts", f"what came and went became less: {where}")
        for name in live_rows:
            if len(name) > len(("merchant", "location", "sku")) and name not in known:
                self._violated("Parts", f"part {name} has no home")

    async def _compare_hold_index(
        self, live: dict[str, dict[bytes, bytes]], merchant: str | None
    ) -> None:
        indexed: dict[str, int] = {}
        for number, partition in self._partitions.items():
            for member, score in await self._sorted_set(f"{{hf.{number}}}:holds"):
                promise = partition.promises.get(member)
                if promise is None:
                    self._violated("IndexMatch", f"the TTL index has {member}, the ledger has not")
                elif merchant in (None, promise.merchant):
                    indexed[member] = score
        held = {
            the_id: int(fields[b"expires_at"])
            for the_id, fields in live.items()
            if fields[b"state"] == b"held"
        }
        if indexed != held:
            self._violated("IndexMatch", f"TTL index {indexed}, held {held}")

    async def _compare_open_index(self, live: dict[str, dict[bytes, bytes]]) -> None:
        indexed: dict[str, int] = {}
        for key in self._found["open"]:
            indexed.update(await self._sorted_set(key))
        wanted = {
            the_id: int(msgpack.unpackb(fields[b"body"], raw=False)[8])
            for the_id, fields in live.items()
            if fields[b"state"].decode() in LIVE
        }
        if indexed != wanted:
            self._violated("IndexMatch", f"open index {indexed}, live {wanted}")

    async def _compare_listings(
        self, live: dict[RowName, dict[bytes, bytes]], merchant: str | None
    ) -> None:
        listed: set[RowName] = set()
        for key in self._found["skus"]:
            owner, location = (unquote(part) for part in key.split(":")[2:4])
            listed.update((owner, location, sku) for sku, _ in await self._sorted_set(key))
        if listed != {name[:3] for name in live}:
            self._violated("IndexMatch", f"SKU index {listed}, rows {set(live)}")
        places: set[tuple[str, ...]] = set()
        for number in self._partitions:
            for member, _ in await self._sorted_set(f"{{hf.{number}}}:locations"):
                place = tuple(unquote(part) for part in member.split(":"))
                if merchant in (None, place[0]):
                    places.add(place)
        if places != {name[:2] for name in live}:
            self._violated("IndexMatch", f"location index {places}, rows {set(live)}")

    async def _compare_records(self, merchant: str | None) -> None:
        """Every effect without a reservation of its own has its record, and the other way round."""
        wanted: dict[tuple[str, str], tuple[str, int]] = {}
        for partition in self._partitions.values():
            for effect, sequence in partition.effects.items():
                if effect in partition.unrecorded:
                    continue
                if effect[0] in RECORDED and merchant in (None, effect[1]):
                    wanted[effect[1], effect[-1]] = (effect[0], sequence)
        found: set[tuple[str, str]] = set()
        for key in self._found["seen"]:
            owner, operation = (unquote(part) for part in key.split(":")[2:])
            found.add((owner, operation))
            kind, sequence = wanted.get((owner, operation), ("", 0))
            _, reply = msgpack.unpackb(await self._client.execute_command("GET", key), raw=False)
            if not kind:
                self._violated("Once", f"{key} tells of an effect that the ledger does not have")
            elif kind not in ("extend", "amend") and reply[2] != sequence:
                self._violated("Once", f"{key} answers {reply}, the effect is {sequence}")
        for name in wanted.keys() - found:
            self._violated("Once", f"{wanted[name]} {name} has no idempotency record")

    # Reading

    async def _live_rows(self) -> dict[RowName, dict[bytes, bytes]]:
        keys = self._found["stock"]
        hashes = await self._hashes(keys)
        names = [cast(RowName, tuple(unquote(part) for part in key.split(":")[2:])) for key in keys]
        found = {}
        for key, name, fields in zip(keys, names, hashes, strict=True):
            is_part = fields.get(b"split", b"").startswith(b"part")
            number = key.partition("}")[0].removeprefix("{hf.")
            found[(*name, number) if is_part else name] = fields
        return found

    async def _live_promises(self, merchant: str | None) -> dict[str, dict[bytes, bytes]]:
        others = {
            the_id
            for partition in self._partitions.values()
            for the_id, promise in partition.promises.items()
            if merchant not in (None, promise.merchant)
        }
        keys = [key for key in self._found["rsv"] if key.split(":")[2] not in others]
        return {
            key.split(":")[2]: fields
            for key, fields in zip(keys, await self._hashes(keys), strict=True)
            if merchant in (None, msgpack.unpackb(fields[b"body"], raw=False)[0])
        }

    async def _find_keys(self, merchant: str | None) -> None:
        """Find the keys `{hf.<p>}:<noun>:...` on all nodes; the merchant follows the noun."""
        owner = "" if merchant is None else _encode(merchant)
        found: dict[str, set[str]] = defaultdict(set)
        async for key in self._client.scan_iter(match="{hf.*}:*:*", count=SCAN_COUNT):
            _, noun, name, *_ = key.decode().split(":")
            if noun in OF_ANY_MERCHANT or owner in ("", name):
                found[noun].add(key.decode())
        self._found = {noun: sorted(found[noun]) for noun in NOUNS}

    async def _hashes(self, keys: Iterable[str]) -> list[dict[bytes, bytes]]:
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.hgetall(key)
        return cast(list[dict[bytes, bytes]], await pipeline.execute())

    async def _hash(self, key: str) -> dict[bytes, bytes]:
        return cast(dict[bytes, bytes], await self._client.hgetall(key))

    async def _sorted_set(self, key: str) -> list[tuple[str, int]]:
        found = await self._client.zrange(key, 0, -1, withscores=True)
        return [(member.decode(), int(score)) for member, score in found]


def _encode(text: str) -> str:
    """Percent-encode all but RFC 3986's unreserved characters, as the key format says."""
    plain = "-._~"
    return "".join(
        chr(byte) if (chr(byte).isalnum() and byte < 128) or chr(byte) in plain else f"%{byte:02X}"
        for byte in text.encode()
    )


def _row_facts(fields: dict[bytes, bytes]) -> dict[str, int | bytes]:
    """Return a row's columns by name; one that is no number stays as it is, unlike any number."""
    facts: dict[str, int | bytes] = {
        column.decode(): int(text) if text.isdigit() else text for column, text in fields.items()
    }
    return {"deficit": 0, "low_stock_threshold": 0, "backordered": 0} | facts


def _order_facts(fields: dict[bytes, bytes]) -> dict[str, Any]:
    """Return the record of an order as the ledger has it."""
    found: dict[str, Any] = {name.decode(): value for name, value in fields.items()}
    for name in ("revision", "created_at", "expires_at", "confirmed_at", "ended_at"):
        found[name] = int(found[name])
    found["settled"] = found["settled"] == b"1"
    for name in ("state", "reason"):
        found[name] = found[name].decode()
    for name in ("plan", "body"):
        found[name] = msgpack.unpackb(found[name], raw=False)
    return found


class _Wait(NamedTuple):
    """Units that wait, as a reservation's hash has them."""

    units: int
    place: int
    day: str = ""
    dated: bool = False
    late: str = ""

    @property
    def turn(self) -> int:
        """Where they stand in the queue."""
        if not self.day:
            return self.place
        year, month, day = [int(part) for part in self.day.split("-")]
        halves = (((year - 2000) * 16 + month) * 32 + day) * 2 + (0 if self.dated else 1)
        return halves * 2**36 + self.place


def _is_kept_for_pools(line: list[Any], filled: int) -> bool:
    """Say whether there was no more on the shelf before a fill than pools may be guaranteed of it.

    Then it may have been left for them by those who wait and have no day.
    """
    _, _, levels, _, *rest = line
    terms: dict[str, Any] = rest[0] if rest and rest[0] else {}
    on_hand, reserved, safety_stock, *_ = levels
    buffer = levels[5] if len(levels) > 5 else 0
    free: int = on_hand - reserved - safety_stock - buffer + filled
    pools = terms.get("channels", {}).values()
    unmet: int = sum([max(0, pool.get("minimum", 0) - pool["held"]) for pool in pools])
    return free <= unmet


def _first_wait(units: int, place: int, sku: str, extras: dict[str, Any]) -> _Wait:
    """Return what a reserve has wait, by what it says of itself."""
    expected = extras.get("expected", {}).get(sku)
    return _Wait(units, place, expected or extras.get("behind", {}).get(sku, ""), bool(expected))


def _waiting(fields: dict[bytes, bytes]) -> dict[str, _Wait]:
    """Return what a reservation waits for, by SKU."""
    packed = fields.get(b"waiting")
    found = msgpack.unpackb(packed, raw=False) if packed else {}
    return {sku: _Wait(*entry) for sku, entry in found.items()}


def _waits(found: list[_Wait]) -> tuple[dict[str, list[int]], int]:
    """Return what a row's terms are to say of those who wait: by days, and how many are late."""
    by_day: dict[str, list[int]] = {}
    for wait in found:
        if wait.day:
            by_day.setdefault(wait.day, [0, 0])[not wait.dated] += wait.units
    return by_day, sum(wait.units for wait in found if wait.late)


async def assert_invariants(
    client: Client, *, partitions: int, merchant: str | None = None
) -> None:
    """Audit a quiet store from its first ledger entry on; see `Audit.check`."""
    await Audit(client, partitions=partitions).check(merchant=merchant)


def _lasting(claims: dict[str, list[Any]], now: int) -> dict[str, list[Any]]:
    """Leave out what counts no longer, or not for long."""
    kept = {}
    for name, entry in claims.items():
        lines = {
            sku: line for sku, line in entry[1].items() if line[2] == 0 or line[2] > now + 5_000
        }
        if lines:
            kept[name] = [entry[0], lines, *entry[2:]]
    return kept


def _moved(split: str) -> tuple[int, int]:
    """Return the units that came to a part, and that went from it, by its column."""
    received, returned = split.split(" ")[4:6] if split else ("0", "0")
    return int(received), int(returned)


def _brought(split: str) -> int:
    received, returned = _moved(split)
    return received - returned


def _columns(levels: list[int]) -> tuple[int, ...]:
    """Return the levels of COLUMNS: a missing one is 0, and the units held back are left out."""
    padded = [*levels, *[0] * (7 - len(levels))]
    return (*padded[:5], padded[6])
