"""Claims of buyers beside the ledger, and beside the reservations that they are for.

What counts for a buyer over all locations lives in a partition of its own (`engine.claims`). It is
compared with that partition's account, as queues are; and the reservations of each partition are
compared with what is claimed for them elsewhere. A claim may say more than its reservation for a
while, since it is made first and given back last, and never less.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

import msgspec

from engine.claims import Claim, Claims, decode_claims
from engine.keys import PartitionKeys, claim_member, claim_partition
from engine.store import Store
from reconciler.account import Account
from reconciler.findings import ClaimsEvidence, Code, Finding, Invariant
from reconciler.fold import ClaimsKey, FoldedReservation
from reconciler.inspection import Inspection, Look, Value, is_over, score_of, text_token

CHUNK: Final = 50
"""Buyers in one look, with the places in the index of their claims."""

MAX_PLACES: Final = 8
"""Claims of one buyer whose places in the index are looked at."""

OVERDUE_MS: Final = 3_600_000
MARGIN_MS: Final = 60_000
"""Around the moment at which what was picked counts no longer."""

LookAt = Callable[[Sequence[Look]], Awaitable[Inspection]]


class ClaimComparison:
    """Compares the claims of one partition, and what is claimed for its reservations elsewhere."""

    def __init__(
        self, store: Store, account: Account, look: LookAt, partitions: Sequence[PartitionKeys]
    ) -> None:
        """`look` reads keys of the partition, and takes the account to just that place."""
        self._store = store
        self._account = account
        self._keys = account.keys
        self._look = look
        self._partitions = partitions

    async def run(self) -> list[Finding]:
        """Return what is different."""
        return await self.look_at(list(self._account.state.claims)) + await self._unclaimed()

    async def look_at(self, of_buyers: Iterable[ClaimsKey]) -> list[Finding]:
        """Return what is different of these buyers' claims."""
        found: list[Finding] = []
        rest = iter(of_buyers)
        while chunk := list(islice(rest, CHUNK)):
            suspects = [finding.merchant_and_buyer for finding in await self._differing(chunk)]
            # What came while they were looked at is known by now.
            found += [one.finding for one in await self._differing(suspects)]
        return found

    async def _differing(self, chunk: Sequence[ClaimsKey]) -> "list[_Differing]":
        looks: list[Look] = []
        promised: list[list[str]] = []
        for key in chunk:
            claims = self._account.state.claims.get(key, {})
            names = [name for name, claim in claims.items() if claim.is_promised][:MAX_PLACES]
            promised.append(names)
            looks.append(Look("string", self._keys.claims(*key)))
            looks += [
                Look(f"score {claim_member(*key, name)}", self._keys.claiming) for name in names
            ]
        if not looks:
            return []
        inspection = await self._look(looks)
        values = iter(inspection.values)
        found = []
        for key, names in zip(chunk, promised, strict=True):
            value = next(values)
            places = {name: score_of(next(values)) for name in names}
            finding = self._finding(key, value, places, inspection)
            if finding is not None:
                found.append(_Differing(key, finding))
        return found

    def _finding(
        self,
        key: ClaimsKey,
        value: Value,
        places: Mapping[str, int | None],
        inspection: Inspection,
    ) -> Finding | None:
        ledger, live = self._account.state.claims.get(key, {}), _read(value)
        if live is None:
            detail = f"what is claimed for buyer {key[1]} cannot be read"
        elif _lasting(live, inspection) != _lasting(ledger, inspection):
            names = sorted(n for n in live.keys() | ledger.keys() if live.get(n) != ledger.get(n))
            detail = f"what is claimed for buyer {key[1]} is not what the ledger says: {names[0]}"
        elif lost := [n for n, at in places.items() if at is None and n in ledger]:
            detail = f"nobody will look at the claim of buyer {key[1]} for {lost[0]}"
        else:
            return self._overdue(key, places, inspection)
        return Finding(
            invariant=Invariant.HOLDS_SUM,
            code=Code.CLAIMS_DIFFER,
            detail=detail,
            remedy="what is claimed for the buyer is written again as the ledger says",
            partition=self._keys.partition,
            merchant=key[0],
            key=self._keys.claims(*key),
            sequence=self._account.state.sequence,
            claims=ClaimsEvidence(token=text_token(value), buyer=key[1], right=dict(ledger)),
        )

    def _overdue(
        self, key: ClaimsKey, places: Mapping[str, int | None], inspection: Inspection
    ) -> Finding | None:
        latest_ms = inspection.now_ms - OVERDUE_MS
        late = [name for name, at_ms in places.items() if at_ms is not None and at_ms < latest_ms]
        if not late:
            return None
        return Finding(
            invariant=Invariant.HOLDS_SUM,
            code=Code.CLAIM_OVERDUE,
            detail=f"nobody has looked at the claim of buyer {key[1]} for {late[0]} for an hour",
            remedy="start the background process: until then the units are kept from the buyer",
            partition=self._keys.partition,
            merchant=key[0],
            reservation=late[0],
            key=self._keys.claims(*key),
            repairable=False,
        )

    # Reservations whose claims are elsewhere

    async def _unclaimed(self) -> list[Finding]:
        """Return findings of buyers for whom less is claimed than this partition promised them."""
        counting = [
            the_id
            for the_id, reservation in self._account.state.reservations.items()
            if _claimed_lines(reservation)
        ]
        found: list[Finding] = []
        for start in range(0, len(counting), CHUNK):
            # Looked at twice with the claims in between: what stayed must have been claimed.
            before = await self._reservations(counting[start : start + CHUNK])
            of_buyers = {_buyer_of(reservation) for reservation in before.values()}
            claims = {key: await self._claims(key) for key in of_buyers}
            after = await self._reservations(list(before))
            missing: defaultdict[ClaimsKey, Claims] = defaultdict(dict)
            for the_id, reservation in before.items():
                key = _buyer_of(reservation)
                live = _read(claims[key])
                if after.get(the_id) == reservation and live is not None:
                    missing[key] |= _missing(the_id, reservation, live, self._account.state.at_ms)
            found += [
                self._missing_finding(key, claims[key], one) for key, one in missing.items() if one
            ]
        return found

    async def _reservations(self, ids: Sequence[str]) -> dict[str, FoldedReservation]:
        """Return what they are at the place of the ledger that is read now."""
        await self._look([])
        known = self._account.state.reservations
        return {the_id: msgspec.structs.replace(known[the_id]) for the_id in ids if the_id in known}

    async def _claims(self, key: ClaimsKey) -> bytes | None:
        keys = self._partitions[claim_partition(*key, len(self._partitions))]
        (value,) = await self._store.read([("GET", keys.claims(*key))])
        return value if value is None else bytes(value)

    def _missing_finding(self, key: ClaimsKey, value: bytes | None, missing: Claims) -> Finding:
        keys = self._partitions[claim_partition(*key, len(self._partitions))]
        name = next(iter(missing))
        return Finding(
            invariant=Invariant.HOLDS_SUM,
            code=Code.CLAIM_MISSING,
            detail=f"less is claimed for buyer {key[1]} than {name} has: they would get more than "
            "the cap",
            remedy="what the reservation has is claimed",
            partition=keys.partition,
            merchant=key[0],
            key=keys.claims(*key),
            claims=ClaimsEvidence(
                token=text_token(value), buyer=key[1], right=(_read(value) or {}) | missing
            ),
        )


class _Differing(msgspec.Struct, frozen=True):
    """A finding, and of which buyer of which merchant."""

    merchant_and_buyer: ClaimsKey
    finding: Finding


def _read(value: Value) -> Claims | None:
    """Read what is claimed for a buyer; None where it cannot be read."""
    if value is None:
        return {}
    if not isinstance(value, bytes):
        return None
    try:
        return decode_claims(value)
    except (ValueError, msgspec.MsgspecError):
        return None


def _lasting(claims: Claims, inspection: Inspection) -> Claims:
    """Leave out what counts no longer, or not for long: it may be there or not."""
    return {
        name: msgspec.structs.replace(claim, lines=lines)
        for name, claim in claims.items()
        if (
            lines := {
                sku: line
                for sku, line in claim.lines.items()
                if line[2] == 0 or not is_over(line[2], inspection)
            }
        )
    }


def _claimed_lines(reservation: FoldedReservation) -> dict[str, tuple[int, int, int]]:
    """Return what has to be claimed for a reservation, (units, window, until) by SKU."""
    extras = reservation.body.extras
    if extras is None or not extras.claimed:
        return {}
    is_open = reservation.is_open
    lines = reservation.body.lines if is_open else reservation.picked
    return {
        line.sku: (
            line.quantity,
            extras.claimed[line.sku],
            0 if is_open else reservation.ended_at_ms + extras.claimed[line.sku],
        )
        for line in lines
        if line.sku in extras.claimed and line.quantity
    }


def _buyer_of(reservation: FoldedReservation) -> ClaimsKey:
    extras = reservation.body.extras
    return reservation.body.merchant, "" if extras is None else extras.buyer


def _missing(the_id: str, reservation: FoldedReservation, live: Claims, now_ms: int) -> Claims:
    """Return the claims that are not there, or say less than the reservation has."""
    wanted = _claimed_lines(reservation)
    if reservation.is_open:
        claim = live.get(the_id)
        said = {} if claim is None else claim.lines
        if all(sku in said and said[sku][0] >= line[0] for sku, line in wanted.items()):
            return {}
        if claim is None:
            return {the_id: Claim(reservation.body.location, wanted, "", 0, 0, 1, True)}
        # Somebody may be promising under it just now: it says no less than before, and stays open.
        lines = dict(said)
        for sku, line in wanted.items():
            lines[sku] = max(line, said.get(sku, line))
        return {the_id: msgspec.structs.replace(claim, lines=lines, due_at_ms=1, is_known=True)}
    name = f"{the_id}@{reservation.ended_at_ms}"
    wanted = {sku: line for sku, line in wanted.items() if line[2] > now_ms + MARGIN_MS}
    # What is to be settled yet counts as it is.
    if not wanted or name in live or the_id in live:
        return {}
    return {name: Claim(reservation.body.location, wanted, "", 0, 0, 0, True)}
