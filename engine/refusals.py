"""The one table from a script's refusal to its exception."""

from collections.abc import Sequence
from typing import Any, Final

from engine.model import ReservationState
from engine.outcomes import (
    BackorderUnfilled,
    BuyerCapExceeded,
    HoldfastError,
    IdempotencyKeyReused,
    InsufficientOnHand,
    InsufficientStock,
    InvalidCommand,
    LimitExceeded,
    Outcome,
    ProposalDecided,
    ProposalOpen,
    ReservationEnded,
    ReservationNotFound,
    ReservationNotHeld,
    ShortLine,
    StoreReadOnly,
    SupplyNotFound,
    VersionConflict,
)
from engine.spelling import nearest

_EXTRAS_AT: Final = 10
"""Where a reservation's body has its extras."""


def refusal(
    reply: Sequence[Any],
    *,
    reservation: str = "",
    key: str = "",
    sku: str = "",
    supply: str = "",
    expected: int | None = None,
) -> HoldfastError:
    """Return the exception of a reply that is neither `ok` nor `replayed`.

    The arguments are what the command said, for the exception's fields. Raises ValueError on a
    code that cannot reach a caller.
    """
    match Outcome(reply[0]):
        case Outcome.INSUFFICIENT_STOCK:
            return InsufficientStock(tuple(ShortLine(*line) for line in reply[2]))
        case Outcome.INSUFFICIENT_ON_HAND:
            return InsufficientOnHand(tuple(ShortLine(*line) for line in reply[1]))
        case Outcome.BUYER_CAP_EXCEEDED:
            return BuyerCapExceeded(tuple(ShortLine(*line) for line in reply[2]))
        case Outcome.BACKORDER_UNFILLED:
            return BackorderUnfilled(tuple(ShortLine(*line) for line in reply[1]))
        case Outcome.NOT_FOUND:
            return ReservationNotFound(reservation)
        case Outcome.SUPPLY_NOT_FOUND:
            return SupplyNotFound(sku, supply, expects=nearest(supply, reply[1]))
        case Outcome.ENDED:
            return ReservationEnded(
                reservation, state=ReservationState(reply[1]), ended_at_ms=reply[4]
            )
        case Outcome.NOT_HELD:
            return ReservationNotHeld(reservation, state=ReservationState(reply[1]))
        case Outcome.PROPOSED:
            skus = tuple(reply[7][_EXTRAS_AT]["proposed"])
            return ProposalOpen(reservation, skus=skus)
        case Outcome.DECIDED:
            return ProposalDecided(reservation)
        case Outcome.VERSION_CONFLICT:
            return VersionConflict(sku, expected=expected or 0, actual=reply[1])
        case Outcome.KEY_REUSED:
            return IdempotencyKeyReused(key)
        case Outcome.LIMIT_EXCEEDED:
            return LimitExceeded(reply[1], most=reply[2])
        case Outcome.READ_ONLY:
            return StoreReadOnly()
        case Outcome.INVALID:
            return InvalidCommand(reply[1], "is not of its form")
        case code:
            raise ValueError(f"{code} is no refusal")
