"""What becomes of a reservation: it is confirmed, extended, decided on, committed or released.

docs/concepts/state-model.md has the states; `engine.amendments` changes what is held, and
`engine.expiry` ends what nobody ended.
"""

from collections.abc import Sequence
from typing import Any

from engine import reservations
from engine.backorders import Backorders
from engine.dispatch import Command
from engine.keys import digest, reservation_hash
from engine.limits import MAX_LINES, MAX_REREADS
from engine.model import Line, ProposalDecision, Reservation, ReservationResult
from engine.outcomes import InvalidCommand, Outcome, OutcomeUnknown, ReservationNotFound
from engine.partitions import Partitions
from engine.validation import check_id, check_key, check_picks, check_text, check_ttl


class ReservationChanged(Exception):
    """It is not what the caller saw of it any more: look again."""


class Lifecycle:
    """Takes the reservations of all merchants from state to state."""

    def __init__(self, partitions: Partitions, backorders: Backorders) -> None:
        """Change reservations in `partitions`; a commit of what waits fills `backorders` first."""
        self._partitions = partitions
        self._dispatch = partitions.dispatcher
        self._backorders = backorders

    async def confirm(
        self, merchant: str, reservation: str, *, order_ref: str = "", actor: str
    ) -> ReservationResult:
        """Keep a hold until it is committed or released: the order is placed.

        Raises ReservationNotFound, ReservationEnded, IdempotencyKeyReused (confirmed before with
        another `order_ref`).
        """
        check_text("order_ref", order_ref)
        return await self._partitions.wherever(
            reservation, lambda it: self._confirm(merchant, it, order_ref, actor)
        )

    async def _confirm(
        self, merchant: str, reservation: str, order_ref: str, actor: str
    ) -> ReservationResult:
        keys = self._partitions.keys_of_reservation(reservation)
        command = Command(
            (keys.reservation(reservation),), (reservation, merchant, actor, order_ref), merchant
        )
        reply = await self._dispatch.run("confirm", keys.partition, command)
        return reservations.replied(reservation, reply, key=order_ref)

    async def extend(
        self, merchant: str, reservation: str, *, key: str, ttl_ms: int, actor: str
    ) -> ReservationResult:
        """Let a hold run for `ttl_ms` from now, if that is longer than it would.

        Raises ReservationNotFound, ReservationEnded, ReservationNotHeld (confirmed), LimitExceeded
        (7 days in all), IdempotencyKeyReused.
        """
        check_key(key)
        check_ttl(ttl_ms)
        return await self._partitions.wherever(
            reservation, lambda it: self._extend(merchant, it, key, ttl_ms, actor)
        )

    async def _extend(
        self, merchant: str, reservation: str, key: str, ttl_ms: int, actor: str
    ) -> ReservationResult:
        keys = self._partitions.keys_of_reservation(reservation)
        # Not of the whole id: a retry must find its record after the reservation has moved, too.
        operation = digest("extend", reservation_hash(reservation), key)
        command = Command(
            (keys.reservation(reservation), keys.seen(merchant, operation)),
            (reservation, merchant, actor, digest(str(ttl_ms)), ttl_ms, operation),
            merchant,
        )
        reply = await self._dispatch.run("extend", keys.partition, command)
        return reservations.replied(reservation, reply, key=key)

    async def commit(
        self, merchant: str, reservation: str, *, picks: Sequence[Line] = (), actor: str
    ) -> ReservationResult:
        """End a reservation: its units, or those of `picks`, left the shelf; the rest goes back.

        A line that `picks` does not name is picked 0 times; no picks at all means every line whole.
        Raises ReservationNotFound, ReservationEnded, InsufficientOnHand, InvalidCommand.
        """
        check_picks(picks)
        return await self._partitions.wherever(
            reservation, lambda it: self._end("commit", merchant, it, actor, list(picks))
        )

    async def release(
        self, merchant: str, reservation: str, *, reason: str = "", actor: str
    ) -> ReservationResult:
        """End a reservation by giving all its units back.

        Raises ReservationNotFound, ReservationEnded.
        """
        check_text("reason", reason)
        return await self._partitions.wherever(
            reservation, lambda it: self._end("release", merchant, it, actor, reason)
        )

    async def hand_over(
        self, merchant: str, seen: Reservation, move: str, *, to: str, actor: str
    ) -> Reservation:
        """Release a reservation whose units are held elsewhere now, if it is still as `seen`.

        What is answered has the id of the move that it was released for as its `order_ref`, and
        none where somebody released it otherwise. Raises ReservationChanged, ReservationNotFound,
        ReservationEnded.
        """
        as_seen = (
            move,
            str(seen.state),
            seen.expires_at_ms or 0,
            seen.lines,
            seen.stands_for,
            len(seen.proposed),
        )
        result = await self._partitions.wherever(
            seen.id,
            lambda it: self._end("release", merchant, it, actor, f"moved to {to}", as_seen),
        )
        return result.reservation

    async def decide(
        self,
        merchant: str,
        reservation: str,
        decision: ProposalDecision,
        *,
        skus: Sequence[str] = (),
        actor: str,
    ) -> ReservationResult:
        """Accept or decline that others stand for `skus`, without any for all that is proposed.

        What is declined is given back, and missing from then on; a reservation of which nothing is
        left is released. Raises ReservationNotFound, ReservationEnded, ProposalDecided (the other
        way), InvalidCommand (nothing was proposed of one of them).
        """
        if len(skus) > MAX_LINES:
            raise InvalidCommand("skus", f"must have at most {MAX_LINES} items, has {len(skus)}")
        for sku in skus:
            check_id("skus", sku)
        asked = [str(decision), list(dict.fromkeys(skus))]
        return await self._partitions.wherever(
            reservation, lambda it: self._end("decide", merchant, it, actor, asked)
        )

    async def _end(
        self, verb: str, merchant: str, reservation: str, actor: str, argument: Any, *more: Any
    ) -> ReservationResult:
        """Run commit, release or decide, which declare the rows of the reservation's lines."""
        keys = self._partitions.keys_of_reservation(reservation)
        lines = self._partitions.recent_lines.get(reservation)
        if lines is None:
            lines = await self._partitions.read_lines(keys, reservation)
        filled = False
        for _ in range(MAX_REREADS + 1):
            if lines is None:
                raise ReservationNotFound(reservation)
            command = Command(
                lines.commit_keys(keys, reservation)
                if verb == "commit"
                else lines.keys(keys, reservation),
                (reservation, merchant, actor, argument, lines.skus, *more),
                merchant,
            )
            reply = await self._dispatch.run(verb, keys.partition, command)
            if Outcome(reply[0]) is Outcome.BACKORDER_UNFILLED and not filled:
                # What it waits for may be there, and not given out yet.
                filled = True
                for line in reply[1]:
                    await self._backorders.fill(lines.merchant, lines.location, line[0])
                continue
            if Outcome(reply[0]) is Outcome.NOT_DUE:
                raise ReservationChanged(reservation)
            if Outcome(reply[0]) is not Outcome.LINES_CHANGED:
                if verb == "release" or argument:
                    # A commit without picks takes what it held, so no unit comes back.
                    self._partitions.sold_out.forget(lines.row_keys(keys))
                self._partitions.note_at_part(lines, keys)
                result = reservations.replied(reservation, reply)
                await self._partitions.claiming.changed(result.reservation)
                return result
            lines = await self._partitions.read_lines(keys, reservation)
        raise OutcomeUnknown()
