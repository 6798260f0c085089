"""Movements of stock: units that come, go or are counted, each booked once under its key."""

from collections.abc import Sequence
from typing import Final, cast

import msgspec

from engine.backorders import Backorders
from engine.definitions import Definitions
from engine.dispatch import Command
from engine.keys import digest, location_member
from engine.kits import Kit, Kits
from engine.limits import MAX_BATCH_MOVEMENTS
from engine.model import Moved, Movement, MovementType
from engine.outcomes import HoldfastError, InvalidCommand, Outcome
from engine.partitions import Partitions
from engine.refusals import refusal
from engine.rows import keys_of_change, replied_row
from engine.validation import (
    check_batch,
    check_change,
    check_count,
    check_id,
    check_key,
    check_text,
)

_ARRIVE_OR_SELL: Final = frozenset(
    {
        MovementType.RECEIVE,
        MovementType.RETURN,
        MovementType.SALE,
        MovementType.TRANSFER_IN,
    }
)
"""What is refused of a kit. What it was stocked with before may still be counted or taken away."""

_ARRIVALS: Final = frozenset({MovementType.RECEIVE, MovementType.TRANSFER_IN})
"""What may be the arrival of a supply."""


class Movements:
    """Books the movements of all merchants."""

    def __init__(
        self, partitions: Partitions, kits: Definitions[Kit, Kits], backorders: Backorders
    ) -> None:
        """Book in `partitions`; what comes goes to `backorders` first."""
        self._partitions = partitions
        self._dispatch = partitions.dispatcher
        self._splits = partitions.splits
        self._kits = kits
        self._backorders = backorders

    async def move(self, merchant: str, movement: Movement, *, actor: str) -> Moved:
        """Book a movement once under its key.

        Raises InsufficientOnHand (a transfer or adjustment past what is on hand), VersionConflict,
        SupplyNotFound, LimitExceeded, IdempotencyKeyReused, InvalidCommand.
        """
        keys = self._partitions.keys_of(merchant, movement.location)
        check_id("sku", movement.sku)
        check_key(movement.key)
        _check_movement(movement)
        # Known before any movement goes out, or else those of a batch would overtake each other.
        kits = self._kits.known_now(merchant)
        if kits is None:
            kits = await self._kits.known(merchant)
        if movement.sku in kits and movement.type in _ARRIVE_OR_SELL:
            raise InvalidCommand(
                "sku",
                "is a kit, which has no shelf: book its components, or what is packed ahead under "
                "a SKU of its own",
            )
        location = movement.location
        operation = digest("move", merchant, location, movement.key)
        command = Command(
            (
                *keys_of_change(keys, merchant, location, movement.sku, operation),
                keys.recent(merchant, location, movement.sku),
            ),
            (
                operation,
                merchant,
                location,
                actor,
                digest(*_told(movement)),
                movement.type,
                movement.sku,
                movement.quantity,
                -1 if movement.expected_version is None else movement.expected_version,
                movement.may_overdraw or movement.type is MovementType.SALE,
                location_member(merchant, location),
                (
                    movement.reason,
                    movement.reference,
                    movement.source,
                    movement.occurred_at_ms,
                    *([movement.supply] if movement.supply else []),
                ),
            ),
            merchant,
        )
        reply = await self._splits.run_fact("move", keys.partition, command, (merchant, location))
        self._partitions.sold_out.forget(command.keys[:1])
        code = Outcome(reply[0])
        if code not in (Outcome.OK, Outcome.REPLAYED):
            raise refusal(
                reply,
                key=movement.key,
                sku=movement.sku,
                supply=movement.supply,
                expected=movement.expected_version,
            )
        row = replied_row(merchant, location, movement.sku, reply, settings_at=9)
        if code is Outcome.OK and row.backordered and row.unreserved:
            await self._backorders.fill_soon(merchant, location, movement.sku)
        return Moved(
            id=operation,
            row=row,
            on_hand_change=reply[8],
            at_ms=reply[1],
            sequence=reply[2],
            replayed=code is Outcome.REPLAYED,
        )

    async def move_many(
        self, merchant: str, movements: Sequence[Movement], *, actor: str
    ) -> list[Moved | HoldfastError]:
        """Book up to 1,000 movements; each stands alone, and gets its answer or its refusal."""
        check_batch("movements", len(movements), MAX_BATCH_MOVEMENTS)
        answers = await self._dispatch.bulk(
            self.move(merchant, movement, actor=actor) for movement in movements
        )
        for answer in answers:
            if isinstance(answer, Exception) and not isinstance(answer, HoldfastError):
                raise answer
        return cast(list[Moved | HoldfastError], answers)


def _told(movement: Movement) -> list[str]:
    """Return what a movement says, for its fingerprint; a supply only where it names one."""
    *told, supply = [str(value) for value in msgspec.structs.astuple(movement)]
    return [*told, supply] if supply else told


def _check_movement(movement: Movement) -> None:
    check_text("reason", movement.reason)
    check_text("reference", movement.reference)
    check_text("source", movement.source)
    check_text("supply", movement.supply)
    if movement.supply and movement.type not in _ARRIVALS:
        raise InvalidCommand("supply", "is of what arrives: a receive or a transfer_in")
    check_count("occurred_at", movement.occurred_at_ms)
    if movement.expected_version is not None:
        check_count("expected_version", movement.expected_version)
    check_change(
        movement.quantity,
        movement.reason,
        counts=movement.type is MovementType.COUNT,
        adjusts=movement.type is MovementType.ADJUST,
    )
