"""Rows as the store keeps them: read one by one, many at once, or a location's in order."""

import asyncio
from collections.abc import Sequence
from typing import Any, Final, cast
from urllib.parse import unquote

import msgspec

from engine.keys import PartitionKeys, encode, location_member
from engine.limits import DEFAULT_PAGE, MAX_BATCH_ROWS
from engine.model import Configured, Page, Row, Terms
from engine.outcomes import Outcome, RowNotFound, StoreFault
from engine.partitions import Partitions
from engine.scripts import script
from engine.splits import Plan, RowName
from engine.validation import check_batch, check_id, check_page

ROW_FIELDS: Final = (
    "on_hand",
    "reserved",
    "safety_stock",
    "deficit",
    "version",
    "low_stock_threshold",
    "offline_buffer",
    "backordered",
    "terms",
    "split",
)
_TERMS_AT: Final = 3
"""Where a row's terms stand among what a reply says at its end, see `lua/lib/rows.lua`."""

_decode_terms = msgspec.msgpack.Decoder(Terms).decode


class Rows:
    """The rows of all merchants, and where there are any."""

    def __init__(self, partitions: Partitions) -> None:
        """Read in `partitions`."""
        self._partitions = partitions
        self._dispatch = partitions.dispatcher
        self._splits = partitions.splits

    async def row(self, merchant: str, location: str, sku: str) -> Row:
        """Read one row. Raises RowNotFound."""
        keys = self._partitions.keys_of(merchant, location)
        check_id("sku", sku)
        key = keys.stock(merchant, location, sku)
        fields = await self._read_row((merchant, location, sku), key)
        row = _row(merchant, location, sku, fields)
        if row is None:
            raise RowNotFound(merchant=merchant, location=location, sku=sku)
        if self._partitions.sold_out.rows:
            self._partitions.sold_out.see(key, row.available)
        return row

    async def rows(self, merchant: str, wanted: Sequence[tuple[str, str]]) -> list[Row | None]:
        """Read up to 500 rows, named by (location, sku), in order; None where there is none."""
        check_batch("rows", len(wanted), MAX_BATCH_ROWS)
        return await self._rows(merchant, wanted)

    async def rows_together(
        self, merchant: str, location: str, skus: Sequence[str]
    ) -> dict[str, Row]:
        """Read rows of one location as they are at one moment; those that there are, by SKU."""
        keys = self._partitions.keys_of(merchant, location)
        names = []
        for sku in skus:
            check_id("sku", sku)
            names.append(keys.stock(merchant, location, sku))
        store = self._partitions.store
        replies: Any = await store.call(script("together"), names, *ROW_FIELDS)
        split = [sku for sku, fields in zip(skus, replies, strict=True) if fields[-1] is not None]
        if split:
            for sku in split:
                await self._splits.report((merchant, location, sku))
            replies = await store.call(script("together"), names, *ROW_FIELDS)
        rows = {
            sku: _row(merchant, location, sku, fields)
            for sku, fields in zip(skus, replies, strict=True)
        }
        return {sku: row for sku, row in rows.items() if row is not None}

    async def _rows(self, merchant: str, wanted: Sequence[tuple[str, str]]) -> list[Row | None]:
        row_keys = []
        for location, sku in wanted:
            check_id("sku", sku)
            row_keys.append(
                self._partitions.keys_of(merchant, location).stock(merchant, location, sku)
            )
        replies = await asyncio.gather(
            *(
                self._read_row((merchant, location, sku), key)
                for (location, sku), key in zip(wanted, row_keys, strict=True)
            )
        )
        rows = [
            _row(merchant, location, sku, fields)
            for (location, sku), fields in zip(wanted, replies, strict=True)
        ]
        if self._partitions.sold_out.rows:
            for key, row in zip(row_keys, rows, strict=True):
                if row is not None:
                    self._partitions.sold_out.see(key, row.available)
        return rows

    async def _read_row(self, name: RowName, key: str) -> list[bytes | None]:
        """Read ROW_FIELDS of a row; of a split one, once its home knows what its parts did."""
        fields: list[bytes | None] = await self._dispatch.read("HMGET", key, *ROW_FIELDS)
        if fields[-1] is None:
            return fields
        await self._splits.report(name)
        return cast(list[bytes | None], await self._dispatch.read("HMGET", key, *ROW_FIELDS))

    async def list_rows(
        self, merchant: str, location: str, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Row]:
        """List a location's rows by SKU in byte order, from past `after`."""
        keys = self._partitions.keys_of(merchant, location)
        check_page(limit)
        start = "-" if after is None else f"({after}"
        found = await self._dispatch.read(
            "ZRANGEBYLEX", keys.skus(merchant, location), start, "+", "LIMIT", 0, limit + 1
        )
        skus = [sku.decode() for sku in found]
        rows = await self._rows(merchant, [(location, sku) for sku in skus[:limit]])
        return Page(
            tuple(row for row in rows if row is not None),
            skus[limit - 1] if len(skus) > limit else None,
        )

    async def list_merchants(
        self, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[str]:
        """List the merchants that ever had stock, from past `after`, in the order of their keys.

        It takes one look a partition, and one for each partition that a merchant is in.
        """
        check_page(limit)
        start = "-" if after is None else f"({encode(after)};"
        heads = await asyncio.gather(
            *(self._first_merchant(keys, start) for keys in self._partitions.keys)
        )
        found: list[str] = []
        while len(found) <= limit and (named := [head for head in heads if head is not None]):
            first = min(named, key=_in_key)
            found.append(unquote(first))
            heads = await asyncio.gather(
                *(
                    self._first_merchant(keys, f"({first};") if head == first else _known(head)
                    for keys, head in zip(self._partitions.keys, heads, strict=True)
                )
            )
        return Page(tuple(found[:limit]), found[limit - 1] if len(found) > limit else None)

    async def _first_merchant(self, keys: PartitionKeys, start: str) -> str | None:
        """Return the first of a partition's merchants from there on, as in its key."""
        members = await self._dispatch.read(
            "ZRANGEBYLEX", keys.locations, start, "+", "LIMIT", 0, 1
        )
        return str(members[0].decode().partition(":")[0]) if members else None

    async def list_locations(
        self, merchant: str, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[str]:
        """List a merchant's locations that ever had stock, from past `after`."""
        check_id("merchant", merchant)
        check_page(limit)
        start = f"[{encode(merchant)}:" if after is None else f"({location_member(merchant, after)}"
        end = f"({encode(merchant)};"
        replies = await asyncio.gather(
            *(
                self._dispatch.read(
                    "ZRANGEBYLEX", keys.locations, start, end, "LIMIT", 0, limit + 1
                )
                for keys in self._partitions.keys
            )
        )
        # A part of a split row is listed in its partition, too.
        members = sorted({member.decode() for reply in replies for member in reply})
        locations = [unquote(member.partition(":")[2]) for member in members[: limit + 1]]
        return Page(
            tuple(locations[:limit]), locations[limit - 1] if len(locations) > limit else None
        )


def _in_key(merchant: str) -> str:
    """Return how a merchant's members begin: `a:` comes after `a-b:`."""
    return f"{merchant}:"


async def _known(head: str | None) -> str | None:
    return head


def _row(merchant: str, location: str, sku: str, fields: Sequence[bytes | None]) -> Row | None:
    """Read a row's ROW_FIELDS. Raises StoreFault where one is no number: someone edited it."""
    if fields[ROW_FIELDS.index("version")] is None:
        return None
    try:
        values: list[Any] = [int(field or 0) for field in fields[:-2]]
        terms, split = fields[-2:]
        values.append(None if terms is None else _decode_terms(terms))
        values.append(len(Plan.parse(split.decode()).places) if split else 0)
    except (ValueError, msgspec.MsgspecError) as error:
        raise StoreFault("HMGET", f"the row of {sku} at {location} is damaged: {error}") from error
    return Row(merchant, location, sku, *values)


def keys_of_change(
    keys: PartitionKeys, merchant: str, location: str, sku: str, operation: str
) -> tuple[str, str, str, str]:
    """Return what a script declares that changes a row once, and may make it."""
    return (
        keys.stock(merchant, location, sku),
        keys.skus(merchant, location),
        keys.locations,
        keys.seen(merchant, operation),
    )


def replied_setting(merchant: str, location: str, sku: str, reply: Sequence[Any]) -> Configured:
    """Read the reply of a script that set something of a row; `lua/lib/settings.lua`."""
    return Configured(
        row=replied_row(merchant, location, sku, reply, settings_at=8),
        at_ms=reply[1],
        sequence=reply[2],
        replayed=Outcome(reply[0]) is Outcome.REPLAYED,
    )


def replied_row(
    merchant: str, location: str, sku: str, reply: Sequence[Any], *, settings_at: int
) -> Row:
    """Read the row of a script's reply; its settings that few rows have begin at `settings_at`."""
    version, on_hand, reserved, safety_stock, deficit = reply[3:8]
    settings = reply[settings_at:]
    if len(settings) > _TERMS_AT:
        settings = [*settings[:_TERMS_AT], msgspec.convert(settings[_TERMS_AT], Terms)]
    return Row(
        merchant,
        location,
        sku,
        on_hand,
        reserved,
        safety_stock,
        deficit,
        version,
        *settings,
    )
