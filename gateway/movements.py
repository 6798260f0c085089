"""Movements: what came to the shelf and left it, one at a time or in a batch."""

from datetime import timedelta

import msgspec
import structlog

from engine import model
from engine.outcomes import (
    HoldfastError,
    StoreFault,
)
from gateway import movement_wire, wire
from gateway.batches import raise_if_store_failed
from gateway.bodies import decode
from gateway.calls import Answer, Call, answer_once
from gateway.idempotency import key_of
from gateway.problems import InvalidRequest, item_problem, pointer

log = structlog.get_logger("gateway.movements")

_MILLISECOND = timedelta(milliseconds=1)


class _Named(msgspec.Struct, frozen=True):
    id: str


_items: msgspec.json.Decoder[movement_wire.BatchMovement] = msgspec.json.Decoder(
    movement_wire.BatchMovement
)
_names: msgspec.json.Decoder[_Named] = msgspec.json.Decoder(_Named)


async def move(call: Call, body: movement_wire.MovementRequest) -> Answer:
    """Book one movement under the request's idempotency key."""
    movement = _movement(body, key=key_of(call), location=call.path["location"])
    moved = await call.inventory.move(call.merchant, movement, actor=call.actor)
    call.service.fanout.view.learn(moved.row)
    return answer_once(201, movement_wire.movement(movement, moved), replayed=moved.replayed)


async def move_batch(call: Call, body: movement_wire.MovementBatchRequest) -> Answer:
    """Book movements that stand or fall alone; a malformed one is refused and the rest booked.

    Where the store failed in mid-course the answer is a refusal of the whole, since nobody could
    tell what became of each: a repetition with the same ids finds what was booked as replayed.
    """
    items = [_item(raw) for raw in body.movements]
    sound = [item for item in items if isinstance(item, model.Movement)]
    booked = iter(
        await call.inventory.move_many(call.merchant, sound, actor=call.actor) if sound else []
    )
    results = [next(booked) if isinstance(item, model.Movement) else item for item in items]
    for result in results:
        if isinstance(result, model.Moved):
            call.service.fanout.view.learn(result.row)
    raise_if_store_failed(results)
    data = [
        _outcome(pointer(["movements", str(i)]), raw, item, result)
        for i, (raw, item, result) in enumerate(zip(body.movements, items, results, strict=True))
    ]
    statuses = [outcome.status for outcome in data]
    return Answer(
        200,
        movement_wire.MovementBatch(
            data,
            applied=statuses.count(movement_wire.BatchStatus.APPLIED),
            replayed=statuses.count(movement_wire.BatchStatus.REPLAYED),
            refused=statuses.count(movement_wire.BatchStatus.REFUSED),
        ),
    )


def _item(raw: msgspec.Raw) -> model.Movement | HoldfastError:
    try:
        request: movement_wire.BatchMovement = decode(bytes(raw), _items)
        return _movement(request, key=request.id, location=request.location)
    except InvalidRequest as refusal:
        return refusal


def _movement(request: movement_wire.MovementRequest, *, key: str, location: str) -> model.Movement:
    """Make the engine's movement. Raises InvalidRequest."""
    occurred_at_ms = 0
    if request.occurred_at is not None:
        occurred_at_ms = (request.occurred_at - wire.FIRST_OCCURRED_AT) // _MILLISECOND
        if occurred_at_ms < 0:
            raise InvalidRequest(
                wire.ProblemError(pointer="#/occurred_at", detail="must not be before 1970")
            )
    return model.Movement(
        key=key,
        location=location,
        type=request.type,
        sku=request.sku,
        quantity=request.quantity,
        reason=request.reason,
        reference=request.reference,
        occurred_at_ms=occurred_at_ms,
        expected_version=request.expected_version,
        supply=request.supply,
    )


def _outcome(
    place: str,
    raw: msgspec.Raw,
    item: model.Movement | HoldfastError,
    result: model.Moved | HoldfastError,
) -> movement_wire.BatchOutcome:
    if isinstance(item, model.Movement) and isinstance(result, model.Moved):
        status = (
            movement_wire.BatchStatus.REPLAYED
            if result.replayed
            else movement_wire.BatchStatus.APPLIED
        )
        return movement_wire.BatchOutcome(
            id=item.key, status=status, movement=movement_wire.movement(item, result)
        )
    if isinstance(result, StoreFault):
        log.error("a movement failed", call=result.call, reply=result.reply)
    assert isinstance(result, HoldfastError)  # noqa: S101 - what is not booked was refused
    return movement_wire.BatchOutcome(
        id=item.key if isinstance(item, model.Movement) else _name(raw),
        status=movement_wire.BatchStatus.REFUSED,
        error=item_problem(result, body=item, prefix=place),
    )


def _name(raw: msgspec.Raw) -> str | None:
    """Return the id of a malformed item, so that its sender finds it; None where it has none."""
    try:
        return _names.decode(bytes(raw)).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
