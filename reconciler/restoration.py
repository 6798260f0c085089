"""Loading a folded partition into a store that is being rebuilt, through `lua/restore.lua`."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from engine.claims import Claims
from engine.definitions import definitions_key
from engine.keys import (
    MOVED_KEY,
    PartitionKeys,
    claim_member,
    location_member,
    reservation_hash,
    row_member,
)
from engine.limits import RECENT_MS, RETENTION_MS
from engine.model import ReservationState
from engine.packing import passed_on
from engine.reservations import packed_body
from engine.scripts import script
from engine.store import Store
from reconciler.fold import (
    BuyerKey,
    ClaimsKey,
    FoldedOrder,
    FoldedReservation,
    FoldedRow,
    FoldedSeen,
    PartitionState,
    RowKey,
)
from reconciler.past import Past
from reconciler.sources import FoldedSource, SourceKey, quarantine_text, source_texts

MAX_CALL_KEYS: Final = 1_000
"""Keys in one call: some 5 ms of the store's time, so that reads still have their turn."""

MAX_ITEM_ROWS: Final = 500
"""Rows in one item, which the script lists in one command: `unpack` fails near 8,000 values."""

MAX_CALLS_AT_ONCE: Final = 16
"""The store flushes its log once for all calls that wait together; with four of them, it spent half
of its time on that."""

MAX_MOVED_FIELDS: Final = 1_000
"""Fields of one HSET to the hash of moved reservations."""

_encode = msgspec.msgpack.Encoder().encode


class _Item(NamedTuple):
    """One item of `lua/restore.lua`; `size` is how many rows, reservations or records it has."""

    keys: Sequence[str]
    body: tuple[Any, ...]
    size: int


async def restore(
    store: Store,
    keys: PartitionKeys,
    state: PartitionState,
    *,
    rebuild_id: str,
    on_restored: Callable[[int], None],
) -> None:
    """Load a partition; `on_restored` is told how many keys were since it was last told.

    May be repeated. Raises what the store's calls raise, StoreFault also where the store is not
    being rebuilt by this rebuild.
    """
    gate = asyncio.Semaphore(MAX_CALLS_AT_ONCE)
    fixed = (keys.meta, keys.holds, keys.locations)

    async def call(items: Sequence[_Item]) -> None:
        try:
            all_keys = [*fixed]
            for item in items:
                all_keys += item.keys
            await store.call(
                script("restore"), all_keys, rebuild_id, _encode([item.body for item in items])
            )
        finally:
            gate.release()
        on_restored(sum(item.size for item in items))

    try:
        async with asyncio.TaskGroup() as group:
            for items in _calls(_items(keys, state)):
                await gate.acquire()
                group.create_task(call(items))
    except BaseExceptionGroup as errors:
        # One is enough to know; the others failed of the same.
        raise errors.exceptions[0] from errors


async def note_moved(store: Store, partition: int, ids: Iterable[str]) -> None:
    """Write where reservations and orders are now, so that their ids of before find them."""
    hashes = [reservation_hash(the_id) for the_id in ids]
    for start in range(0, len(hashes), MAX_MOVED_FIELDS):
        fields: list[str | int] = []
        for the_hash in hashes[start : start + MAX_MOVED_FIELDS]:
            fields += (the_hash, partition)
        await store.read([("HSET", MOVED_KEY, *fields)])


def _calls(items: Iterator[_Item]) -> Iterator[list[_Item]]:
    call: list[_Item] = []
    size = 0
    for item in items:
        if call and size + len(item.keys) > MAX_CALL_KEYS:
            yield call
            call, size = [], 0
        call.append(item)
        size += len(item.keys)
    if call:
        yield call


def _items(keys: PartitionKeys, state: PartitionState) -> Iterator[_Item]:
    yield from _row_items(keys, state)
    for the_id, reservation in state.reservations.items():
        yield _reservation_item(keys, the_id, reservation)
    for operation, record in state.seen.items():
        yield _seen_item(keys, operation, record)
    for key, row in state.rows.items():
        if row.past is not None and row.past.deltas:
            yield _recent_item(keys, key, row.past)
    for name, source in state.sources.items():
        yield _source_item(keys, name, source)
    for buyer, counted in state.buyers.items():
        yield _buyer_item(keys, buyer, counted)
    for of_buyer, claims in state.claims.items():
        yield _claims_item(keys, of_buyer, claims)
    yield from _quarantine_items(keys, state)
    for place, told in state.offline.items():
        yield _Item((keys.offline(*place),), ("quarantine", ("", told)), 1)
    for (merchant, location, sku), row in state.rows.items():
        if row.offline_buffer:
            pair = (f"s{sku}", str(row.offline_buffer))
            yield _Item((keys.offline(merchant, location),), ("quarantine", pair), 1)
    for the_id, order in state.orders.items():
        yield _order_item(keys, the_id, order)
    for (what, merchant), said in state.definitions.items():
        where = definitions_key(keys, what, merchant)
        pairs = [text for field in said.fields().items() for text in field]
        for start in range(0, len(pairs), 2 * MAX_ITEM_ROWS):
            some = pairs[start : start + 2 * MAX_ITEM_ROWS]
            yield _Item((where,), ("quarantine", some), len(some) // 2)
    # Of the rows themselves: a part is found by its home.
    split = [row_member(*key) for key, row in state.rows.items() if row.split.startswith("home")]
    for start in range(0, len(split), MAX_ITEM_ROWS):
        some = split[start : start + MAX_ITEM_ROWS]
        yield _Item((keys.splits,), ("splits", some), len(some))
    for the_id, body in state.shortfalls.items():
        yield _Item((keys.shortfalls,), ("quarantine", (the_id, _text(body))), 1)


def _row_items(keys: PartitionKeys, state: PartitionState) -> Iterator[_Item]:
    """Make items of the rows of one location each, which share their index."""
    by_location: defaultdict[tuple[str, str], list[tuple[str, FoldedRow]]] = defaultdict(list)
    for (merchant, location, sku), row in state.rows.items():
        by_location[merchant, location].append((sku, row))
    for (merchant, location), rows in by_location.items():
        member = location_member(merchant, location)
        for start in range(0, len(rows), MAX_ITEM_ROWS):
            some = rows[start : start + MAX_ITEM_ROWS]
            yield _Item(
                [
                    keys.skus(merchant, location),
                    *[keys.stock(merchant, location, sku) for sku, _ in some],
                ],
                ("rows", member, [_row_texts(sku, row) for sku, row in some]),
                len(some),
            )


def _reservation_item(keys: PartitionKeys, the_id: str, reservation: FoldedReservation) -> _Item:
    body = reservation.body
    ended_at_ms = reservation.ended_at_ms
    waits = [(sku, wait.turn) for sku, wait in reservation.waiting.items()]
    return _Item(
        (
            keys.reservation(the_id),
            keys.open_reservations(body.merchant, body.location),
            *[keys.waiting(body.merchant, body.location, sku) for sku, _ in waits],
        ),
        (
            "reservation",
            the_id,
            reservation.state,
            reservation.expires_at_ms,
            reservation.confirmed_at_ms,
            ended_at_ms,
            reservation.order_ref,
            _text(reservation.picked) if reservation.state is ReservationState.COMMITTED else "",
            passed_on(packed_body(body)),
            body.created_at_ms,
            0 if reservation.is_open else ended_at_ms + RETENTION_MS,
            _text(reservation.waiting) if waits else "",
            [turn for _, turn in waits],
        ),
        1 + len(waits),
    )


def _order_item(keys: PartitionKeys, the_id: str, order: FoldedOrder) -> _Item:
    merchant = order.body.merchant
    fields = {
        "state": order.state,
        "revision": str(order.revision),
        "settled": "1" if order.settled else "0",
        "created_at": str(order.created_at_ms),
        "expires_at": str(order.expires_at_ms),
        "confirmed_at": str(order.confirmed_at_ms),
        "ended_at": str(order.ended_at_ms),
        "reason": order.reason,
        "plan": _text(order.plan),
        "body": _text(order.body),
    }
    return _Item(
        (keys.order(the_id), keys.orders(merchant), keys.order_refs(merchant), keys.driving),
        (
            "order",
            the_id,
            # In another partition it has another id.
            order.ref and f"{order.ref.rpartition(':')[0]}:{the_id}",
            order.created_at_ms,
            order.due_at_ms,
            [text for field in fields.items() for text in field],
        ),
        1,
    )


def _buyer_item(
    keys: PartitionKeys, buyer: BuyerKey, counted: Mapping[str, tuple[int, int]]
) -> _Item:
    """A count that still has promises stays until they end, another one until nothing counts."""
    untils = [until_ms for _, until_ms in counted.values()]
    return _Item(
        (keys.buyer(*buyer),), ("buyer", _text(counted), 0 if 0 in untils else max(untils)), 1
    )


def _claims_item(keys: PartitionKeys, of_buyer: ClaimsKey, claims: Claims) -> _Item:
    """As with a count. Those that are promised stand in the index of claims to look at."""
    untils = [line[2] for claim in claims.values() for line in claim.lines.values()]
    due: list[str | int] = []
    for name, claim in claims.items():
        if claim.is_promised:
            due += (claim_member(*of_buyer, name), claim.due_at_ms)
    return _Item(
        (keys.claims(*of_buyer), keys.claiming),
        ("claims", _text(claims), 0 if 0 in untils else max(untils), due),
        1,
    )


def _seen_item(keys: PartitionKeys, operation: str, record: FoldedSeen) -> _Item:
    return _Item(
        (keys.seen(record.merchant, operation),),
        (
            "seen",
            _text((record.fingerprint, ("ok", *record.reply))),
            record.at_ms + record.keep_ms,
        ),
        1,
    )


def _recent_item(keys: PartitionKeys, key: RowKey, past: Past) -> _Item:
    return _Item((keys.recent(*key),), ("recent", past.deltas, past.at_ms + RECENT_MS), 1)


def _source_item(keys: PartitionKeys, name: SourceKey, source: FoldedSource) -> _Item:
    merchant, location, _ = name
    fields: list[Any] = []
    for field, text in source_texts(source).items():
        fields += (field, passed_on(text))
    return _Item(
        (
            keys.feed(*name),
            keys.prints(*name),
            keys.feeds(merchant, location),
            keys.feeding,
        ),
        (
            "source",
            name[2],
            location_member(merchant, location),
            fields,
            passed_on(bytes(source.prints)),
        ),
        1,
    )


def _quarantine_items(keys: PartitionKeys, state: PartitionState) -> Iterator[_Item]:
    by_location: defaultdict[tuple[str, str], list[Any]] = defaultdict(list)
    for the_id, event in state.quarantine.items():
        by_location[event.merchant, event.location] += (
            the_id,
            passed_on(quarantine_text(event)),
        )
    for place, pairs in by_location.items():
        for start in range(0, len(pairs), 2 * MAX_ITEM_ROWS):
            some = pairs[start : start + 2 * MAX_ITEM_ROWS]
            yield _Item((keys.quarantine(*place),), ("quarantine", some), len(some) // 2)


def _row_texts(sku: str, row: FoldedRow) -> tuple[Any, ...]:
    return (
        sku,
        str(row.on_hand),
        str(row.reserved),
        str(row.safety_stock),
        str(row.version),
        str(row.deficit),
        str(row.low_stock_threshold),
        "" if row.past is None else row.past.counted(),
        str(row.offline_buffer),
        str(row.backordered),
        _text(row.terms) if row.terms else "",
        row.split,
    )


def _text(value: Any) -> msgspec.Raw:
    """Pack a value, and that again as a text.

    The script can keep it as it comes: packed here it is byte for byte what the scripts would
    pack themselves. msgpack's type for bytes is none that they could read.
    """
    return passed_on(_encode(value))
