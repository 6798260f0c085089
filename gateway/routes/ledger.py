"""The operations of the ledger."""

from typing import Final

from engine.access import Role
from engine.outcomes import HistoryUnavailable
from gateway import entries, ledger
from gateway.operations import Operation, Success
from gateway.routes.paths import MERCHANT

OPERATIONS: Final = (
    Operation(
        name="readLedger",
        method="GET",
        path=MERCHANT + "/ledger",
        tag="Ledger",
        summary="Ask what happened: by location, SKU, reservation, actor, reference, kind, time",
        handler=ledger.read_ledger,
        role=Role.READ,
        successes=(Success(200, entries.LedgerPage, "A page"),),
        query=ledger.QUERY,
        problems=(HistoryUnavailable,),
    ),
)
