"""What the gateway counts; `engine.metrics` says how, `gateway.scrape` tells it.

No label has values that callers choose: no SKU, no location, no merchant.
"""

from typing import Final

from engine.metrics import SECONDS_BUCKETS, Counts, Spreads, now_gauge

OTHER: Final = "other"
"""The operation of a request for none: the documentation, or a path that is not there."""

REQUESTS: Final = Counts(
    "holdfast_http_requests",
    "Answered requests, by operation, status, and the code of a refusal (empty: none).",
    ["operation", "status", "code"],
)
REQUEST_SECONDS: Final = Spreads(
    "holdfast_http_request_duration_seconds",
    "From a request's headers to the last byte of its answer, by operation; streams left out.",
    "operation",
    SECONDS_BUCKETS,
)
UNDER_WAY: Final = now_gauge(
    "holdfast_http_requests_under_way",
    "Requests that write or ask in bulk and are being served, or wait for their turn.",
)
SUBSCRIBERS: Final = now_gauge("holdfast_subscribers", "Open streams and sockets.")
WEBHOOK_ATTEMPTS: Final = Counts(
    "holdfast_webhook_attempts", "Attempts to deliver an event, by what came of them.", ["outcome"]
)
WEBHOOK_SECONDS: Final = Spreads(
    "holdfast_webhook_attempt_duration_seconds",
    "How long attempts to deliver an event took.",
    None,
    SECONDS_BUCKETS,
)
