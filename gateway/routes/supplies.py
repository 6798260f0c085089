"""The operations of what is to come to a row, and who waits for it."""

from typing import Final

from engine.access import Role
from engine.outcomes import LimitExceeded, RowNotFound, SupplyNotFound
from gateway import supplies
from gateway.operations import IDEMPOTENCY_KEY, REPLAYED, Operation, Success
from gateway.paging import QUERY
from gateway.routes.paths import ROW

OPERATIONS: Final = (
    Operation(
        name="listSupplies",
        method="GET",
        path=ROW + "/supplies",
        tag="Stock",
        summary="List what is to come to a row",
        handler=supplies.list_supplies,
        role=Role.READ,
        successes=(Success(200, supplies.SupplyList, "The supplies, by the day", ("ETag",)),),
        problems=(RowNotFound,),
    ),
    Operation(
        name="expectSupply",
        method="PUT",
        path=ROW + "/supplies/{supply}",
        tag="Stock",
        summary="Say how many units are still to come with a supply, and on which day",
        handler=supplies.expect,
        request=supplies.SupplyRequest,
        role=Role.FEED,
        changes=True,
        successes=(Success(200, supplies.SupplyChange, "The row just after", ("ETag", REPLAYED)),),
        header_fields=(IDEMPOTENCY_KEY,),
        problems=(LimitExceeded,),
    ),
    Operation(
        name="cancelSupply",
        method="DELETE",
        path=ROW + "/supplies/{supply}",
        tag="Stock",
        summary="Say that nothing more comes with a supply",
        handler=supplies.cancel,
        role=Role.FEED,
        changes=True,
        successes=(Success(200, supplies.SupplyChange, "The row just after", ("ETag", REPLAYED)),),
        header_fields=(IDEMPOTENCY_KEY,),
        problems=(SupplyNotFound,),
    ),
    Operation(
        name="listWaiting",
        method="GET",
        path=ROW + "/waiting",
        tag="Stock",
        summary="List who waits for units of a row, in the order in which they get them",
        handler=supplies.list_waiting,
        role=Role.READ,
        successes=(Success(200, supplies.WaitingPage, "A page"),),
        query=QUERY,
        problems=(RowNotFound,),
    ),
)
