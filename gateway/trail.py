"""What becomes known of a request on its way in, for the log and the metrics on its way out."""

from dataclasses import dataclass
from typing import Final

from gateway.metrics import OTHER

TRAIL: Final = "holdfast.trail"
"""Where the edge leaves a request's trail in the ASGI scope."""


@dataclass(slots=True)
class Trail:
    """Of one request.

    `operation` is the name in the table of routes, `merchant` whose request it is, `actor` whose
    key made it, `code` that of its refusal, `traceparent` the trace that it belongs to; each is
    empty as long as it is not known. One that `streams` may have no end, so how long it took says
    nothing.
    """

    operation: str = OTHER
    merchant: str = ""
    actor: str = ""
    code: str = ""
    traceparent: str = ""
    streams: bool = False
