"""One partition's queues and buyers' counts beside its account: what promises on terms leave there.

Like `reconciler.comparison`, of which it is a part: what looks different is looked at once more, at
a place of the ledger that may know it by then. A row's own terms are compared with the row.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, TypeVar, cast

import msgspec

from reconciler.account import Account
from reconciler.findings import Code, CountEvidence, Finding, Invariant, QueueEvidence
from reconciler.fold import BuyerKey, RowKey
from reconciler.inspection import (
    MAX_INSPECTED,
    Inspection,
    Look,
    Value,
    WrongType,
    is_over,
    reservation_token,
    score_of,
    text_token,
)

MAX_SUSPECTS: Final = 10_000
"""Places in queues, and counts, that are looked at again; the rest are counted."""

MAX_NAMED: Final = 3
"""Reservations that a finding about a buyer's count names."""

Counted = dict[str, tuple[int, int]]
"""Of a reservation, the units that count for a buyer, and until when (ms; 0: while promised)."""

Waits = tuple[RowKey, str]
"""A row, and a reservation that waits for units of it."""

LookAt = Callable[[Sequence[Look]], Awaitable[Inspection]]
Members = Callable[[str], AsyncIterator[str]]
Item = TypeVar("Item")

_decode_counted = msgspec.msgpack.Decoder(Counted).decode


class PledgeComparison:
    """Compares the queues of rows and the counts of buyers of one partition."""

    def __init__(self, account: Account, look: LookAt, members: Members) -> None:
        """`look` reads keys and takes the account to just that place; `members` go by in pages."""
        self.dropped = 0
        self._account = account
        self._keys = account.keys
        self._look = look
        self._members = members

    async def run(self) -> list[Finding]:
        """Return what is different of all that the ledger knows."""
        state = self._account.state
        rows = {key: None for key, row in state.rows.items() if row.terms}
        waits = list(self._waits())
        rows |= {key: None for key, _ in waits}
        return await self.look_at(rows, list(state.buyers), waits)

    async def look_at(
        self, rows: Iterable[RowKey], buyers: Iterable[BuyerKey], waits: Iterable[Waits] = ()
    ) -> list[Finding]:
        """Return what is different of these rows' queues and these buyers' counts.

        `waits` are those that wait there by the ledger.
        """
        found, sizes = await self._sizes(rows)
        suspects = {one: None for one in await self._misplaced(waits) if one[0] in sizes}
        for key in [key for key, size in sizes.items() if size]:
            async for the_id in self._members(self._keys.waiting(*key)):
                if self._place(key, the_id) is None:
                    suspects[key, the_id] = None
        for chunk in _chunks(self._bounded(suspects), MAX_INSPECTED // 2):
            found += await self._queue_findings(chunk)
        counts: list[BuyerKey] = []
        for some in _chunks(buyers, MAX_INSPECTED):
            counts += [buyer for buyer, _ in await self._miscounted(some)]
        for some in _chunks(self._bounded(counts), MAX_INSPECTED):
            # What came while they were looked at is known by now.
            found += [self._count_finding(*one) for one in await self._miscounted(some)]
        return found

    # Queues

    def _waits(self) -> Iterator[Waits]:
        for the_id, reservation in self._account.state.reservations.items():
            for sku in reservation.waiting:
                yield (reservation.body.merchant, reservation.body.location, sku), the_id

    def _place(self, key: RowKey, the_id: str) -> int | None:
        reservation = self._account.state.reservations.get(the_id)
        return None if reservation is None else reservation.place_at(key)

    async def _sizes(self, rows: Iterable[RowKey]) -> tuple[list[Finding], dict[RowKey, int]]:
        """Return findings of queues that are none, and how many are in each of the others."""
        found: list[Finding] = []
        sizes: dict[RowKey, int] = {}
        for chunk in _chunks(rows, MAX_INSPECTED):
            looks = [Look("size", self._keys.waiting(*key)) for key in chunk]
            for key, value in zip(chunk, (await self._look(looks)).values, strict=True):
                if not isinstance(value, WrongType):
                    sizes[key] = cast(int, value or 0)
                    continue
                finding = Finding(
                    invariant=Invariant.INDEX_MATCH,
                    code=Code.INDEX_UNREADABLE,
                    detail=f"the queue of the row is a {value.kind}",
                    remedy="removed, then made anew from the ledger",
                    partition=self._keys.partition,
                    merchant=key[0],
                    location=key[1],
                    sku=key[2],
                    key=self._keys.waiting(*key),
                    token=f"type:{value.kind}",
                )
                found.append(finding)
        return found, sizes

    async def _misplaced(self, waits: Iterable[Waits]) -> list[Waits]:
        """Return those that are not at their places."""
        found = []
        for chunk in _chunks(waits, MAX_INSPECTED):
            looks = [Look(f"score {the_id}", self._keys.waiting(*key)) for key, the_id in chunk]
            for one, value in zip(chunk, (await self._look(looks)).values, strict=True):
                if score_of(value) != self._place(*one):
                    found.append(one)
        return found

    async def _queue_findings(self, chunk: Sequence[Waits]) -> list[Finding]:
        looks = []
        for key, the_id in chunk:
            looks.append(Look("hash", self._keys.reservation(the_id)))
            looks.append(Look(f"score {the_id}", self._keys.waiting(*key)))
        values = (await self._look(looks)).values
        found = []
        for index, (key, the_id) in enumerate(chunk):
            value, score = values[2 * index : 2 * index + 2]
            place, at = self._place(key, the_id), score_of(score)
            if at != place:
                evidence = QueueEvidence(token=reservation_token(value), found=at, place=place)
                found.append(self._queue_finding(key, the_id, evidence))
        return found

    def _queue_finding(self, key: RowKey, the_id: str, evidence: QueueEvidence) -> Finding:
        if evidence.place is None:
            detail = "the queue of the row names it, and it waits for no units of the row"
        elif evidence.found is None:
            detail = f"it waits at {evidence.place}, and the queue of the row does not name it"
        else:
            detail = f"the queue of the row has it at {evidence.found}, not at {evidence.place}"
        return self._finding(
            Invariant.INDEX_MATCH,
            Code.QUEUE_DIFFERS,
            key,
            at=self._keys.waiting(*key),
            detail=detail,
            remedy="the queue is made to say what the reservation waits for, in order of promise",
            reservation=the_id,
            evidence=evidence,
        )

    # What counts for buyers

    async def _miscounted(self, chunk: Sequence[BuyerKey]) -> list[tuple[BuyerKey, CountEvidence]]:
        inspection = await self._look([Look("string", self._keys.buyer(*key)) for key in chunk])
        found = []
        for key, value in zip(chunk, inspection.values, strict=True):
            live, ledger = _counted(value), self._account.state.buyers.get(key, {})
            if live is None or _lasting(live, inspection) != _lasting(ledger, inspection):
                evidence = CountEvidence(
                    token=text_token(value), buyer=key[3], live=live, ledger=dict(ledger)
                )
                found.append((key, evidence))
        return found

    def _count_finding(self, key: BuyerKey, evidence: CountEvidence) -> Finding:
        live, ledger = evidence.live, evidence.ledger
        named = sorted(ledger) if live is None else _differing(live, ledger)
        if live is None:
            detail = f"what counts for buyer {key[3]} of the row cannot be read"
        else:
            texts = [f"{the_id} {_text(live, ledger, the_id)}" for the_id in named[:MAX_NAMED]]
            more = f"; and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
            detail = f"for buyer {key[3]} of the row {'; '.join(texts)}{more}"
        return self._finding(
            Invariant.HOLDS_SUM,
            Code.BUYER_COUNT_DIFFERS,
            key[:3],
            at=self._keys.buyer(*key),
            detail=detail,
            remedy="what counts for the buyer is written again as the ledger says",
            reservation=named[0] if named else "",
            evidence=evidence,
        )

    def _finding(
        self,
        invariant: Invariant,
        code: Code,
        row: RowKey,
        *,
        at: str,
        detail: str,
        remedy: str,
        reservation: str,
        evidence: QueueEvidence | CountEvidence,
    ) -> Finding:
        """Make a finding about what a row's key says at the place where the ledger was read to."""
        return Finding(
            invariant=invariant,
            code=code,
            detail=detail,
            remedy=remedy,
            partition=self._keys.partition,
            merchant=row[0],
            location=row[1],
            sku=row[2],
            reservation=reservation,
            key=at,
            sequence=self._account.state.sequence,
            queue=evidence if isinstance(evidence, QueueEvidence) else None,
            count=evidence if isinstance(evidence, CountEvidence) else None,
        )

    def _bounded(self, suspects: Iterable[Item]) -> list[Item]:
        all_of_them = list(suspects)
        self.dropped += max(0, len(all_of_them) - MAX_SUSPECTS)
        return all_of_them[:MAX_SUSPECTS]


def _counted(value: Value) -> Counted | None:
    """Read what counts for a buyer; None where it cannot be read."""
    if value is None:
        return {}
    if not isinstance(value, bytes):
        return None
    try:
        return _decode_counted(value)
    except (ValueError, msgspec.MsgspecError):
        return None


def _lasting(counted: Counted, inspection: Inspection) -> Counted:
    """Leave out what counts no longer, or not for long: it may be there or not."""
    return {
        the_id: (units, until_ms)
        for the_id, (units, until_ms) in counted.items()
        if until_ms == 0 or not is_over(until_ms, inspection)
    }


def _differing(live: Counted, ledger: Counted) -> list[str]:
    return sorted(
        the_id for the_id in live.keys() | ledger.keys() if live.get(the_id) != ledger.get(the_id)
    )


def _text(live: Counted, ledger: Counted, the_id: str) -> str:
    found, told = (_entry_text(counted.get(the_id)) for counted in (live, ledger))
    return f"counts {found}, by the ledger {told}"


def _entry_text(entry: tuple[int, int] | None) -> str:
    if entry is None:
        return "nothing"
    units, until_ms = entry
    return f"{units} until {until_ms} ms" if until_ms else f"{units} while promised"


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
