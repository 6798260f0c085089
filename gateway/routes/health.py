"""The operations of health and metrics."""

from typing import Final

from engine.access import Role
from gateway import health, scrape, wire
from gateway.operations import Operation, Success

OPERATIONS: Final = (
    Operation(
        name="live",
        method="GET",
        path="/livez",
        tag="Health",
        summary="Whether the process lives",
        handler=health.live,
        role=None,
        successes=(Success(200, wire.Liveness, "It lives"),),
    ),
    Operation(
        name="ready",
        method="GET",
        path="/readyz",
        tag="Health",
        summary="Whether requests can be served",
        handler=health.ready,
        role=None,
        successes=(
            Success(200, wire.Readiness, "They can"),
            Success(503, wire.Readiness, "They cannot; `reasons` say why"),
        ),
    ),
    Operation(
        name="metrics",
        method="GET",
        path="/metrics",
        tag="Health",
        summary="Tell Prometheus how the service and its store are; for a key of all merchants",
        handler=scrape.scrape,
        role=Role.READ,
        successes=(
            Success(
                200,
                None,
                "Metrics, as text or in the format of OpenMetrics",
                media_type="text/plain",
            ),
        ),
    ),
)
