"""The operations of rows: read, listed, set, split, and on what terms they promise."""

from typing import Final

from engine.access import Role
from engine.outcomes import HistoryUnavailable, LimitExceeded, PastNotKept, RowNotFound
from gateway import freshness, stock, wire
from gateway.operations import IDEMPOTENCY_KEY, REPLAYED, HeaderField, Operation, Success
from gateway.paging import QUERY
from gateway.problems import PreconditionFailed, PreconditionRequired
from gateway.routes.paths import LOCATION, MERCHANT, ROW

_IF_MATCH: Final = HeaderField(
    "If-Match", 'The version that the change is meant for, in quotes as in the row\'s ETag: `"7"`.'
)
_IF_NONE_MATCH: Final = HeaderField(
    "If-None-Match", "`*` makes a row that does not exist yet; send it in place of If-Match."
)
_IF_CHANGED: Final = HeaderField(
    "If-None-Match", "Versions that the client has, in quotes; 304 where one is still current."
)

READS: Final = (
    Operation(
        name="askAvailability",
        method="POST",
        path=MERCHANT + "/availability",
        tag="Stock",
        summary="Ask what can be promised of up to 500 rows",
        handler=stock.ask_availability,
        request=wire.AvailabilityRequest,
        role=Role.READ,
        successes=(Success(200, wire.Availability, "The rows, in the order of the question"),),
        items=lambda body: len(body.rows),
    ),
    Operation(
        name="readStock",
        method="GET",
        path=ROW,
        tag="Stock",
        summary="Read one row, as it is or as it was",
        handler=stock.read_stock,
        role=Role.READ,
        successes=(
            Success(200, wire.Stock, "The row", ("ETag",)),
            Success(304, None, "The row is still at a version that If-None-Match names", ("ETag",)),
        ),
        header_fields=(_IF_CHANGED,),
        query=("at", *freshness.QUERY),
        problems=(RowNotFound, PastNotKept, HistoryUnavailable),
    ),
)


SETTINGS: Final = (
    Operation(
        name="changeSettings",
        method="PATCH",
        path=ROW + "/settings",
        tag="Stock",
        summary="Set a row's safety stock",
        handler=stock.change_settings,
        request=wire.SettingsRequest,
        role=Role.ADMIN,
        changes=True,
        successes=(Success(200, wire.Stock, "The row just after", ("ETag", REPLAYED)),),
        header_fields=(IDEMPOTENCY_KEY, _IF_MATCH, _IF_NONE_MATCH),
        problems=(PreconditionFailed, PreconditionRequired, LimitExceeded),
    ),
    Operation(
        name="readSplit",
        method="GET",
        path=ROW + "/split",
        tag="Stock",
        summary="Tell over which partitions a row is spread",
        handler=stock.read_split,
        role=Role.ADMIN,
        successes=(Success(200, wire.Split, "How the row is split"),),
        problems=(RowNotFound,),
    ),
    Operation(
        name="changeSplit",
        method="PUT",
        path=ROW + "/split",
        tag="Stock",
        summary="Spread a hot row over partitions, or no longer",
        handler=stock.change_split,
        request=wire.SplitRequest,
        role=Role.ADMIN,
        changes=True,
        successes=(Success(200, wire.Split, "How the row is split from here on"),),
        problems=(RowNotFound, LimitExceeded),
    ),
)


TERMS: Final = (
    Operation(
        name="readTerms",
        method="GET",
        path=ROW + "/terms",
        tag="Stock",
        summary="On what terms a row's units are promised",
        handler=stock.read_terms,
        role=Role.READ,
        successes=(Success(200, wire.Terms, "The terms; of a plain row none", ("ETag",)),),
        problems=(RowNotFound,),
    ),
    Operation(
        name="setTerms",
        method="PUT",
        path=ROW + "/terms",
        tag="Stock",
        summary="Set on what terms a row's units are promised",
        handler=stock.set_terms,
        request=wire.TermsRequest,
        role=Role.ADMIN,
        changes=True,
        successes=(Success(200, wire.Stock, "The row just after", ("ETag", REPLAYED)),),
        header_fields=(IDEMPOTENCY_KEY, _IF_MATCH, _IF_NONE_MATCH),
        problems=(PreconditionFailed, PreconditionRequired, LimitExceeded),
    ),
)


LISTS: Final = (
    Operation(
        name="listStock",
        method="GET",
        path=LOCATION + "/stock",
        tag="Stock",
        summary="List a location's rows by SKU",
        handler=stock.list_stock,
        role=Role.READ,
        successes=(Success(200, wire.StockPage, "A page"),),
        query=QUERY,
    ),
    Operation(
        name="listLocations",
        method="GET",
        path=MERCHANT + "/locations",
        tag="Stock",
        summary="List a merchant's locations",
        handler=stock.list_locations,
        role=Role.READ,
        successes=(Success(200, wire.LocationPage, "A page"),),
        query=QUERY,
    ),
)


MERCHANTS: Final = (
    Operation(
        name="listMerchants",
        method="GET",
        path="/v1/merchants",
        tag="Stock",
        summary="List the merchants that have stock, to a key of the whole platform",
        handler=stock.list_merchants,
        role=Role.READ,
        successes=(Success(200, wire.MerchantPage, "A page"),),
        query=QUERY,
    ),
)
