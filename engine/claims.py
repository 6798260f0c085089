"""Claims: what counts for a buyer where a row's cap is one over all locations of the merchant.

Such a count lives in one partition for each buyer, and the rows in those of their locations, so no
script sees both. Units are claimed first (`lua/claim.lua`), then promised at the location by a
command that brings the claim (`lua/promise.lua`), and then the claim is made to say what is
promised (`lua/settle.lua`). At each moment a claim counts at least what is promised under it; what
a crash left too much of it is given back by whoever looks at it next (`engine.claim_driver`).
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import structlog

from engine.dispatch import Command, Dispatcher
from engine.keys import (
    PartitionKeys,
    claim_member,
    claim_partition,
    partition_of,
    partition_of_reservation,
)
from engine.limits import CLAIM_LOOK_MS, CLAIM_MS
from engine.model import Line, Reservation, ReservationResult, ReservationState
from engine.on_terms import BELIEF_SECONDS, MAX_ROWS
from engine.outcomes import (
    BuyerCapExceeded,
    HoldfastError,
    InsufficientStock,
    LimitExceeded,
    Outcome,
    OutcomeUnknown,
    Overloaded,
    StoreFault,
    StoreUnavailable,
)
from engine.refusals import refusal
from engine.reservations import NO_EXTRAS, Body

ANY: Final = -1
"""The revision that stands for whatever the claim is; see `lua/settle.lua`."""

FORGOTTEN_MS: Final = 12 * 3_600_000
"""How long after a claim lapsed a reservation that is not there may have been there and ended: less
than the 24 hours for which ended ones are kept."""

ACTOR: Final = "claims"
"""Who settles what others left."""

log = structlog.get_logger()


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """What counts under one name, as `lua/lib/claims.lua` keeps it; times in ms.

    `lines` are (units, window, until) by SKU; until is 0 while they are promised.
    """

    location: str
    lines: dict[str, tuple[int, int, int]]
    beside: str
    revision: int
    lapses_at_ms: int
    due_at_ms: int
    is_known: bool

    @property
    def is_promised(self) -> bool:
        """True of units that are promised, or may be; False of those that were picked."""
        return self.due_at_ms > 0

    def holds(self, lines: Sequence[tuple[str, int, int]]) -> bool:
        """Tell whether these lines, (SKU, units, window), are what it says."""
        said = {sku: (units, window_ms) for sku, units, window_ms in lines}
        return said == {sku: line[:2] for sku, line in self.lines.items()}

    def lasting(self, now_ms: int) -> "Claim | None":
        """Return it without what counts no longer; None where nothing does."""
        lines = {sku: line for sku, line in self.lines.items() if line[2] == 0 or line[2] > now_ms}
        return msgspec.structs.replace(self, lines=lines) if lines else None


Claims = dict[str, Claim]
"""What counts for one buyer of a merchant: by reservation, and what was picked by
`<reservation>@<ended_at>`."""

decode_claims = msgspec.msgpack.Decoder(Claims).decode


def reservation_of_claim(name: str) -> tuple[str, str]:
    """Return the reservation that a claim's name begins with, and what follows."""
    the_id, at, ended_at = name.partition("@")
    return the_id, at + ended_at


def counted(claims: Mapping[str, Claim], sku: str, now_ms: int) -> int:
    """Return how many units of a SKU count; `room_of_claim` in `lua/lib/claims.lua` is the twin."""

    def units(claim: Claim | None) -> int:
        line = claim.lines.get(sku) if claim is not None else None
        return line[0] if line is not None and (line[2] == 0 or line[2] > now_ms) else 0

    besides: defaultdict[str, int] = defaultdict(int)
    for claim in claims.values():
        besides[claim.beside] += units(claim)
    return sum(max(0, units(claim) - besides.get(name, 0)) for name, claim in claims.items())


class Cap(NamedTuple):
    """How many units of a SKU one buyer gets over all locations, and for how long they count."""

    units: int
    window_ms: int


class Unclaimed(Exception):
    """Rows that a command needs have such a cap, and it brought no claim that goes for them."""

    def __init__(self, reply: Sequence[Any]) -> None:
        """Read the reply of the script."""
        _, self.now_ms, caps = reply
        self.caps = {sku: Cap(units, window_ms) for sku, units, window_ms in caps}


class Claimant(NamedTuple):
    """Which reservation, at which location, units are claimed for, and for which buyer (a digest).

    `instead_of` is the reservation whose place it is to take, as a hold does that is moved.
    """

    reservation: str
    merchant: str
    location: str
    buyer: str
    actor: str
    instead_of: str = ""


class Taken(msgspec.Struct, frozen=True):
    """What was claimed: a command may promise so many `units` of each SKU in all, until it lapses.

    `is_alone` where nobody else may have a command for the reservation under way. `claimed_at` is
    this process's clock just before, in seconds, `claimed_at_ms` that of the buyer's partition.
    """

    who: Claimant
    revision: int
    is_alone: bool
    claimed_at: float
    claimed_at_ms: int
    lapses_at_ms: int
    units: dict[str, int]
    caps: dict[str, Cap]

    def ask(self, keys: PartitionKeys) -> dict[str, Any]:
        """Return what a command says of it, as `lua/lib/room.lua` takes it."""
        place = (self.who.merchant, self.who.location)
        return {
            "claims": {
                keys.stock(*place, sku): (self.units[sku], *cap) for sku, cap in self.caps.items()
            },
            "lapses_at": self.lapses_at_ms,
        }


class Seen(NamedTuple):
    """What became of a reservation, by the clock of its location; `lua/look.lua`.

    `now_ms` is 0 of what an answer told that was given just now.
    `lines` are those that count for the buyer over all locations: held, or picked. `state` is None
    where there is no such reservation.
    """

    now_ms: int
    location: str = ""
    state: ReservationState | None = None
    expires_at_ms: int = 0
    ended_at_ms: int = 0
    lines: tuple[tuple[str, int, int], ...] = ()


MAX_ATTEMPTS: Final = 4
"""How often a command claims: the first may not know of all rows, and caps may be set anew."""

RETRY_AFTER_MS: Final = 1_000

Answer = TypeVar("Answer", bound=ReservationResult)


def _nothing(_step: str) -> None:
    """Watch no steps."""


class Claiming:
    """Claims units for buyers, and has their claims say what is promised; see the module's text."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        keys: Sequence[PartitionKeys],
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Know of no row yet; `clock` gives seconds that only rise."""
        self.watch: Callable[[str], None] = _nothing
        """Told of each step, before and after it is taken."""
        self._dispatcher = dispatcher
        self._keys = keys
        self._clock = clock
        self._caps: dict[str, tuple[Cap, float]] = {}
        self._ahead_ms: dict[tuple[int, int], int] = {}
        """By how much the clock of one partition was seen to be ahead of another's."""

    # What a command needs

    async def around(
        self,
        who: Claimant,
        skus: Iterable[str],
        wanting: Callable[[], Awaitable[Mapping[str, int | None]]],
        call: Callable[[Taken | None], Awaitable[Answer]],
        *,
        takes_less: bool,
        makes_it: bool = False,
    ) -> Answer:
        """Run a command that may promise units to a buyer, with what it has to claim for that.

        `call` raises Unclaimed where rows have a cap over all locations. Of these, as many units
        are claimed as `wanting` tells, which is asked only then, with `takes_less` what the buyer
        may still have of them. Of a SKU whose units follow from others (None, or not named) all
        that they may have is claimed, until it is known what is needed. `skus` are those that the
        command names. One that `makes_it` makes the reservation: where it is refused for units
        there is none. Raises what `call` does, BuyerCapExceeded, LimitExceeded (the claims of a
        buyer), Overloaded.
        """
        if not who.buyer:
            return await call(None)
        caps, taken, is_known_new = self._known(who, skus), None, False
        wanted: Mapping[str, int | None] | None = None
        for _ in range(MAX_ATTEMPTS):
            try:
                if caps:
                    if wanted is None:
                        wanted = await wanting()
                    taken = await self._take(who, wanted, caps, taken, takes_less=takes_less)
                result = await call(taken)
            except Unclaimed as unclaimed:
                caps, is_known_new = unclaimed.caps, True
                self._learn(who, caps)
                if taken is not None:
                    self._note_clocks(taken, unclaimed.now_ms)
                continue
            except (BuyerCapExceeded, InsufficientStock, LimitExceeded) as refused:
                if not caps or taken is not None or is_known_new:
                    await self._refused(taken, Seen(0) if makes_it else None)
                    raise
                # A retry gets the answer of the attempt that it repeats, and nobody is refused for
                # what was only believed of a cap.
                try:
                    result = await call(None)
                except Unclaimed as unclaimed:
                    believed, caps, is_known_new = caps, unclaimed.caps, True
                    self._learn(who, caps)
                    if caps != believed:
                        continue
                    raise refused from None
            except (StoreUnavailable, OutcomeUnknown):
                # Nobody knows what came of it: whoever looks after the claim finds out.
                raise
            except HoldfastError:
                await self._refused(taken)
                raise
            await self._promised(who, taken, result)
            return result
        await self._refused(taken)
        log.warning("units cannot be claimed", reservation=who.reservation, location=who.location)
        raise Overloaded(retry_after_ms=RETRY_AFTER_MS)

    def _known(self, who: Claimant, skus: Iterable[str]) -> dict[str, Cap]:
        """Return which of the SKUs are believed to have such a cap at the location."""
        if not self._caps:
            return {}
        keys, now, known = self._keys_of(who.merchant, who.location), self._clock(), {}
        for sku in skus:
            believed = self._caps.get(keys.stock(who.merchant, who.location, sku))
            if believed is not None and believed[1] > now:
                known[sku] = believed[0]
        return known

    def _note_clocks(self, taken: Taken, now_ms: int) -> None:
        """Take note of what a location's clock said some time after a claim was made."""
        if len(self._ahead_ms) >= MAX_ROWS:
            self._ahead_ms.clear()
        since_ms = int((self._clock() - taken.claimed_at) * 1_000)
        self._ahead_ms[self._partitions(taken.who)] = max(
            0, now_ms - taken.claimed_at_ms - since_ms
        )

    def _learn(self, who: Claimant, caps: Mapping[str, Cap]) -> None:
        if len(self._caps) + len(caps) > MAX_ROWS:
            self._caps.clear()
        keys, until = self._keys_of(who.merchant, who.location), self._clock() + BELIEF_SECONDS
        for sku, cap in caps.items():
            self._caps[keys.stock(who.merchant, who.location, sku)] = (cap, until)

    async def _take(
        self,
        who: Claimant,
        wanted: Mapping[str, int | None],
        caps: Mapping[str, Cap],
        before: Taken | None,
        *,
        takes_less: bool,
    ) -> Taken:
        """Claim units; `before` is what the same caller has claimed already."""
        asked = []
        for sku, cap in caps.items():
            units = wanted.get(sku)
            if units is None:
                asked.append((sku, cap.units, *cap, True))
            else:
                asked.append((sku, units, *cap, takes_less))
        after = 0 if before is None else before.revision
        ahead_ms = self._ahead_ms.get(self._partitions(who), 0)
        claimed_at = self._clock()
        reply = await self._run("claim", who, who.instead_of, after, ahead_ms, asked)
        if Outcome(reply[0]) is not Outcome.OK:
            raise refusal(reply)
        _, revision, is_alone, lapses_at_ms, units = reply
        is_alone = is_alone and (before is None or before.is_alone)
        granted = dict(zip(caps, units, strict=True))
        claimed_at_ms = lapses_at_ms - ahead_ms - CLAIM_MS
        return Taken(
            who, revision, is_alone, claimed_at, claimed_at_ms, lapses_at_ms, granted, dict(caps)
        )

    # What became of it

    async def _promised(
        self, who: Claimant, taken: Taken | None, result: ReservationResult
    ) -> None:
        """Have the claim say what was promised."""
        if taken is None and not result.replayed:
            # The cap may have ended where more of it is promised now.
            await self.changed(result.reservation)
        if taken is None or not taken.revision:
            return
        try:
            seen = seen_of(result.reservation)
            if result.replayed:
                # It is told as it was then.
                seen = await self._look(who)
            await self._settle_taken(taken, seen)
        except HoldfastError as error:
            _left_behind(who.reservation, error)

    async def _refused(self, taken: Taken | None, seen: Seen | None = None) -> None:
        """Give back what was claimed for nothing, as part of a refusal that is to be told.

        `seen` is what became of the reservation, where that is known without looking.
        """
        if taken is None or not taken.revision:
            return
        who = taken.who
        try:
            seen = seen or await self._look(who)
            await self._settle_taken(taken, seen)
        except HoldfastError as error:
            _left_behind(who.reservation, error)

    async def _settle_taken(self, taken: Taken, seen: Seen) -> None:
        if taken.is_alone or seen.ended_at_ms:
            await self._settle(taken.who, taken.revision, seen)

    async def ended(self, reservation: Reservation) -> None:
        """Have the claim of a reservation that has ended say what of it still counts, if any does.

        It is a part of a call that has had its own effect already and must say so.
        """
        if not reservation.claimed:
            return
        try:
            await self._settle(_claimant(reservation), ANY, seen_of(reservation))
        except HoldfastError as error:
            _left_behind(reservation.id, error)

    async def changed(self, reservation: Reservation) -> None:
        """The same of one that may hold fewer units than before, or none any more."""
        if reservation.state not in _OPEN:
            await self.ended(reservation)
        elif reservation.claimed:
            who = _claimant(reservation)
            try:
                await self.look_after(who.merchant, who.buyer, who.reservation)
            except HoldfastError as error:
                _left_behind(reservation.id, error)

    async def look_after(self, merchant: str, buyer: str, reservation: str) -> int:
        """Have a claim say what its reservation holds, or holds no more. Safe to repeat.

        Returns in how many ms it is to be looked at again; 0 where that was settled.
        """
        claims = await self.claims(merchant, buyer)
        claim = claims.get(reservation)
        who = Claimant(reservation, merchant, "" if claim is None else claim.location, buyer, ACTOR)
        seen = await self._look(who)
        if claim is None:
            await self._settle(who._replace(location=seen.location), 0, seen)
            return 0
        if seen.ended_at_ms:
            await self._settle(who, ANY, seen)
            return 0
        left_ms = claim.lapses_at_ms - seen.now_ms
        if left_ms >= 0:
            # Somebody may be promising units under it just now.
            return left_ms + RETRY_AFTER_MS
        if seen.state is None:
            seen = _gone(claim, seen.now_ms)
        elif not claim.lapses_at_ms and claim.holds(seen.lines) and claim.beside in {"", *claims}:
            due_ms = CLAIM_LOOK_MS
            if seen.expires_at_ms:
                due_ms = min(due_ms, max(0, seen.expires_at_ms - seen.now_ms))
            return due_ms + RETRY_AFTER_MS
        await self._settle(who, claim.revision, seen)
        return 0

    async def claims(self, merchant: str, buyer: str) -> Claims:
        """Read what counts for a buyer, or is over by now. Raises StoreFault where it cannot."""
        keys = self._keys[claim_partition(merchant, buyer, len(self._keys))]
        text = await self._dispatcher.read("GET", keys.claims(merchant, buyer))
        try:
            return {} if text is None else decode_claims(text)
        except (ValueError, msgspec.MsgspecError) as error:
            raise StoreFault("GET", f"what is claimed for buyer {buyer} cannot be read") from error

    async def _look(self, who: Claimant) -> Seen:
        merchant, reservation = who.merchant, who.reservation
        partition = partition_of_reservation(reservation, len(self._keys))
        if partition is None:
            return Seen(0)
        self.watch("before look")
        reply = await self._dispatcher.run(
            "look",
            partition,
            Command(
                (self._keys[partition].reservation(reservation),),
                (reservation, merchant),
                merchant,
            ),
        )
        self.watch("after look")
        if Outcome(reply[0]) is Outcome.NOT_FOUND:
            return Seen(reply[1])
        if Outcome(reply[0]) is not Outcome.OK:
            raise refusal(reply)
        _, now_ms, state, expires_at_ms, ended_at_ms, picked, body = reply
        decoded = msgspec.convert(body, Body)
        extras = decoded.extras or NO_EXTRAS
        # The id may be somebody else's reservation: nothing of that counts for this buyer.
        claimed = extras.claimed if extras.buyer == who.buyer else {}
        lines = msgspec.convert(picked, tuple[Line, ...]) if ended_at_ms else decoded.lines
        return Seen(
            now_ms,
            decoded.location,
            ReservationState(state),
            expires_at_ms,
            ended_at_ms,
            _counting(lines, claimed),
        )

    async def _settle(self, who: Claimant, revision: int, seen: Seen) -> None:
        ago_ms = max(0, seen.now_ms - seen.ended_at_ms) if seen.now_ms and seen.ended_at_ms else 0
        reply = await self._run(
            "settle", who, revision, seen.lines, seen.ended_at_ms, ago_ms, seen.expires_at_ms
        )
        if Outcome(reply[0]) not in (Outcome.OK, Outcome.REPLAYED, Outcome.NOT_DUE):
            raise refusal(reply)

    async def _run(self, verb: str, who: Claimant, *arguments: Any) -> list[Any]:
        _, partition = self._partitions(who)
        keys = self._keys[partition]
        command = Command(
            (keys.claims(who.merchant, who.buyer), keys.claiming),
            (
                who.reservation,
                who.merchant,
                who.actor,
                who.location,
                who.buyer,
                claim_member(who.merchant, who.buyer, who.reservation),
                *arguments,
            ),
            who.merchant,
        )
        self.watch(f"before {verb}")
        reply = await self._dispatcher.run(verb, partition, command)
        self.watch(f"after {verb}")
        return reply

    def _partitions(self, who: Claimant) -> tuple[int, int]:
        """Return where the reservation is, and where its claim is."""
        count = len(self._keys)
        return (
            partition_of(who.merchant, who.location, count),
            claim_partition(who.merchant, who.buyer, count),
        )

    def _keys_of(self, merchant: str, location: str) -> PartitionKeys:
        return self._keys[partition_of(merchant, location, len(self._keys))]


_OPEN: Final = (ReservationState.HELD, ReservationState.CONFIRMED)


def seen_of(reservation: Reservation) -> Seen:
    """Return what is seen of a reservation that is told."""
    lines = reservation.lines if reservation.state in _OPEN else reservation.picked or ()
    return Seen(
        0,
        reservation.location,
        reservation.state,
        reservation.expires_at_ms or 0,
        reservation.ended_at_ms or 0,
        _counting(lines, reservation.claimed),
    )


def _counting(
    lines: Sequence[Line], claimed: Mapping[str, int]
) -> tuple[tuple[str, int, int], ...]:
    """Return the lines that count for the buyer, each with how long it does once it was picked."""
    return tuple(
        [(line.sku, line.quantity, claimed[line.sku]) for line in lines if line.sku in claimed]
    )


def _gone(claim: Claim, now_ms: int) -> Seen:
    """Return what is made of a reservation that is not there.

    Either it was never made, or it ended more than a day ago, or a rebuild went back to before it.
    Where it may have been picked, its units count from now on.
    """
    if not claim.is_known and now_ms - claim.lapses_at_ms < FORGOTTEN_MS:
        return Seen(now_ms)
    lines = [(sku, units, window_ms) for sku, (units, window_ms, _) in claim.lines.items()]
    return Seen(now_ms, claim.location, ReservationState.COMMITTED, 0, now_ms, tuple(lines))


def _claimant(reservation: Reservation) -> Claimant:
    return Claimant(
        reservation.id, reservation.merchant, reservation.location, reservation.buyer, ACTOR
    )


def _left_behind(reservation: str, error: HoldfastError) -> None:
    """Say that a claim is left to the background process."""
    log.warning(
        "a claim waits to be settled", reservation=reservation, code=error.code, error=str(error)
    )
