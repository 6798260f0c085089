"""The operations of hearing of changes as they happen."""

from typing import Final

from engine.access import Role
from engine.outcomes import LimitExceeded
from gateway import sse
from gateway.operations import HeaderField, Operation, Success
from gateway.routes.paths import MERCHANT
from gateway.subscriptions import MAX_POSITION_CHARACTERS

_LAST_EVENT_ID: Final = HeaderField(
    "Last-Event-ID",
    "The `id` of the last event that the client has; it hears what it missed, or that it must "
    "start anew.",
    most_characters=MAX_POSITION_CHARACTERS,
)

OPERATIONS: Final = (
    Operation(
        name="listen",
        method="GET",
        path=MERCHANT + "/stream",
        tag="Real time",
        summary="Hear of every change as it happens",
        handler=sse.listen,
        role=Role.READ,
        successes=(
            Success(
                200,
                None,
                "Server-sent events, without an end: a snapshot of the rows, then what changes",
                media_type="text/event-stream",
            ),
        ),
        query=sse.QUERY,
        lists=sse.LISTS,
        header_fields=(_LAST_EVENT_ID,),
        problems=(LimitExceeded,),
    ),
)
