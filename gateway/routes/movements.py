"""The operations of movements."""

from typing import Final

from engine.access import Role
from engine.outcomes import InsufficientOnHand, LimitExceeded, SupplyNotFound, VersionConflict
from gateway import movement_wire, movements
from gateway.operations import IDEMPOTENCY_KEY, REPLAYED, Operation, Success
from gateway.routes.paths import LOCATION, MERCHANT

OPERATIONS: Final = (
    Operation(
        name="move",
        method="POST",
        path=LOCATION + "/movements",
        tag="Movements",
        summary="Book units that came to the shelf or left it",
        handler=movements.move,
        request=movement_wire.MovementRequest,
        role=Role.FEED,
        changes=True,
        successes=(Success(201, movement_wire.Movement, "The booked movement", (REPLAYED,)),),
        header_fields=(IDEMPOTENCY_KEY,),
        problems=(InsufficientOnHand, VersionConflict, SupplyNotFound, LimitExceeded),
    ),
    Operation(
        name="moveBatch",
        method="POST",
        path=MERCHANT + "/movements/batch",
        tag="Movements",
        summary="Book up to 1,000 movements that stand or fall alone",
        handler=movements.move_batch,
        request=movement_wire.MovementBatchRequest,
        role=Role.FEED,
        changes=True,
        successes=(Success(200, movement_wire.MovementBatch, "What became of each movement"),),
        items=lambda body: len(body.movements),
    ),
)
