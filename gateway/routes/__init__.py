"""The one table of the API, of which both what is served and the OpenAPI document are made.

Each subject has a table in a file of its own; `gateway.operations` says what stands in them.
"""

from collections.abc import Iterable
from typing import Final

from gateway.operations import Operation
from gateway.routes import (
    definitions,
    feeds,
    health,
    keys,
    ledger,
    movements,
    orders,
    overview,
    reservations,
    search,
    sessions,
    stock,
    streams,
    supplies,
    webhooks,
)

OPERATIONS: Final = (
    # The busiest first: the router looks from the top.
    *stock.READS,
    *reservations.OPERATIONS,
    *movements.OPERATIONS,
    *feeds.OPERATIONS,
    *stock.SETTINGS,
    *orders.OPERATIONS,
    *stock.TERMS,
    *supplies.OPERATIONS,
    *stock.LISTS,
    *ledger.OPERATIONS,
    *search.OPERATIONS,
    *definitions.OPERATIONS,
    *webhooks.OPERATIONS,
    *streams.OPERATIONS,
    *stock.MERCHANTS,
    *overview.OPERATIONS,
    *keys.OPERATIONS,
    *sessions.OPERATIONS,
    *health.OPERATIONS,
)


def by_path(operations: Iterable[Operation] = OPERATIONS) -> dict[str, list[Operation]]:
    """Group operations by their path, in order."""
    paths: dict[str, list[Operation]] = {}
    for operation in operations:
        paths.setdefault(operation.path, []).append(operation)
    return paths
