"""Rows: read, listed, asked about in bulk, and their settings."""

from collections.abc import Awaitable

import msgspec
from msgspec import UNSET

from engine.model import Configured, Terms, time_text
from engine.outcomes import InvalidCommand, RowNotFound, VersionConflict
from engine.splits import RowName, Spread
from engine.validation import check_id
from gateway import ledger, wire
from gateway.calls import Answer, Call, answer_once
from gateway.conditions import etag, expected_version, is_unchanged
from gateway.freshness import max_age, max_age_of
from gateway.idempotency import key_of
from gateway.kits import read_all, read_stocked
from gateway.paging import limit_of, page_answer, place_of
from gateway.problems import PreconditionFailed
from gateway.wire import Source


async def list_merchants(call: Call, _body: None) -> Answer:
    """List the merchants that have stock."""
    listing = ("merchants",)
    page = await call.inventory.list_merchants(after=place_of(call, listing), limit=limit_of(call))
    return page_answer(wire.MerchantPage, listing, page, wire.Merchant)


async def list_locations(call: Call, _body: None) -> Answer:
    """List a merchant's locations."""
    listing = ("locations", call.merchant)
    page = await call.inventory.list_locations(
        call.merchant, after=place_of(call, listing), limit=limit_of(call)
    )
    return page_answer(wire.LocationPage, listing, page, wire.Location)


async def list_stock(call: Call, _body: None) -> Answer:
    """List a location's rows."""
    location = call.path["location"]
    listing = ("stock", call.merchant, location)
    page = await call.inventory.list_rows(
        call.merchant, location, after=place_of(call, listing), limit=limit_of(call)
    )
    return page_answer(wire.StockPage, listing, page, wire.stock)


async def read_stock(call: Call, _body: None) -> Answer:
    """Read one row, as it is or with `at` as it was; its version is the ETag."""
    if "at" in call.query:
        return await ledger.read_past_stock(call)
    location, sku = call.path["location"], call.path["sku"]
    reading, is_kit = await read_stocked(call, location, sku, max_age_ms=max_age_of(call))
    row = reading.row
    if row is None:
        raise RowNotFound(merchant=call.merchant, location=location, sku=sku)
    if is_unchanged(call, row.version):
        return Answer(304, None, [etag(row.version)])
    known = await call.service.freshness.of(call.merchant, (location,))
    answer = wire.stock(row, reading, known[location].state)
    if is_kit:
        answer = msgspec.structs.replace(answer, kit=True)
    return Answer(200, answer, [etag(row.version)])


async def ask_availability(call: Call, body: wire.AvailabilityRequest) -> Answer:
    """Answer up to 500 rows in the order of the question."""
    try:
        readings = await read_all(
            call,
            [(wanted.location, wanted.sku) for wanted in body.rows],
            max_age_ms=max_age(body.max_staleness_ms, body.consistency),
        )
    except InvalidCommand:
        for i, wanted in enumerate(body.rows):
            check_id(f"rows[{i}].location", wanted.location)
            check_id(f"rows[{i}].sku", wanted.sku)
        raise
    known = await call.service.freshness.of(call.merchant, [one.location for one in body.rows])
    kits = await call.inventory.kits.known_for_reading(call.merchant)
    data = [
        wire.availability_row(wanted, reading.row, known[wanted.location].state)
        for wanted, reading in zip(body.rows, readings, strict=True)
    ]
    if kits:
        data = [msgspec.structs.replace(x, kit=True) if x.sku in kits else x for x in data]
    oldest = max(readings, key=lambda reading: reading.age_ms)
    in_view = any(reading.source is Source.VIEW for reading in readings)
    return Answer(
        200,
        wire.Availability(
            data,
            time_text(min(reading.as_of_ms for reading in readings)),
            oldest.age_ms,
            Source.VIEW if in_view else Source.STORE,
        ),
    )


async def read_split(call: Call, _body: None) -> Answer:
    """Tell how a row is split."""
    return _split(call, await call.inventory.splits.spread(_name(call)))


async def change_split(call: Call, body: wire.SplitRequest) -> Answer:
    """Spread a row over partitions, or no longer; asking for what is so already changes nothing."""
    spread = await call.inventory.splits.change(_name(call), body.parts, actor=call.actor)
    return _split(call, spread)


def _name(call: Call) -> RowName:
    return (call.merchant, call.path["location"], call.path["sku"])


def _split(call: Call, spread: Spread) -> Answer:
    return Answer(200, wire.split(*_name(call), spread))


async def change_settings(call: Call, body: wire.SettingsRequest) -> Answer:
    """Change a row's settings, if the row is at the version that the request names."""
    key = key_of(call)
    configured = call.inventory.configure(
        call.merchant,
        call.path["location"],
        call.path["sku"],
        key=key,
        safety_stock=None if body.safety_stock is UNSET else body.safety_stock,
        low_stock_threshold=(
            None if body.low_stock_threshold is UNSET else body.low_stock_threshold
        ),
        expected_version=expected_version(call),
        actor=call.actor,
    )
    return await _configured(call, configured)


async def read_terms(call: Call, _body: None) -> Answer:
    """Read on what terms a row's units are promised."""
    row = await call.inventory.row(call.merchant, call.path["location"], call.path["sku"])
    return Answer(200, wire.terms(row.terms or Terms()), [etag(row.version)])


async def set_terms(call: Call, body: wire.TermsRequest) -> Answer:
    """Set on what terms units are promised, if the row is at the version that is named."""
    key = key_of(call)
    configured = call.inventory.set_terms(
        call.merchant,
        call.path["location"],
        call.path["sku"],
        wire.terms_of(body),
        key=key,
        expected_version=expected_version(call),
        actor=call.actor,
    )
    return await _configured(call, configured)


async def _configured(call: Call, doing: Awaitable[Configured]) -> Answer:
    """Answer a change of a row that names the version it was made for."""
    try:
        done = await doing
    except VersionConflict as error:
        raise PreconditionFailed(error.sku, expected=error.expected, actual=error.actual) from error
    call.service.fanout.view.learn(done.row)
    return answer_once(
        200, wire.stock(done.row), replayed=done.replayed, headers=[etag(done.row.version)]
    )
