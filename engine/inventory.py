"""The API of the engine: stock, movements and reservations of all merchants.

One `Inventory` serves any number of concurrent callers of one event loop; their commands travel
together (see `engine.dispatch`). Every refusal is a HoldfastError of its own class. A write whose
outcome stays unknown raises OutcomeUnknown: the same call with the same key or id is safe.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, Self, TypeVar, cast
from urllib.parse import unquote

import msgspec
import structlog

from engine import amendments, metrics, reservations
from engine.amendments import Amendment
from engine.clock import ClockGuard
from engine.definitions import Definitions, What
from engine.dispatch import Command, Dispatcher
from engine.keys import (
    MAX_PARTITIONS,
    MOVED_KEY,
    STORE_KEY,
    PartitionKeys,
    digest,
    encode,
    is_order_id,
    location_member,
    moved_reservation_id,
    partition_of,
    partition_of_reservation,
    reservation_hash,
    reservation_id,
)
from engine.kits import Kit, Kits, check_kits
from engine.limits import (
    DEFAULT_CHANNEL,
    DEFAULT_PAGE,
    DEFAULT_TTL_MS,
    MAX_BATCH_MOVEMENTS,
    MAX_BATCH_ROWS,
    MAX_FILL_ROUNDS,
    MAX_FILLED,
    MAX_GROUP_COMMANDS,
    MAX_LINES,
)
from engine.model import (
    Configured,
    Line,
    Moved,
    Movement,
    MovementType,
    Page,
    ProposalDecision,
    Reservation,
    ReservationResult,
    Row,
    StandsFor,
    Terms,
)
from engine.on_terms import OnTerms
from engine.order_records import OrderRecords
from engine.outcomes import (
    HoldfastError,
    IdempotencyKeyReused,
    InsufficientStock,
    InvalidCommand,
    Outcome,
    OutcomeUnknown,
    Overloaded,
    ProposalOpen,
    ReservationEnded,
    ReservationNotFound,
    RowNotFound,
    ShortLine,
    StoreFault,
    StoreUnavailable,
)
from engine.packing import packed, packed_list, passed_on
from engine.refusals import refusal
from engine.scripts import script
from engine.sold_out import SoldOut
from engine.splits import Plan, RowName, Splits
from engine.store import Store, StoreSettings
from engine.substitutes import Choices, Rules, arrange, check_rules
from engine.validation import (
    check_amendment,
    check_batch,
    check_count,
    check_day,
    check_id,
    check_key,
    check_lines,
    check_name,
    check_page,
    check_picks,
    check_quantity,
    check_terms,
    check_text,
    check_ttl,
)
from engine.wishes import (
    Wish,
    ask,
    check_wishes,
    is_plain,
    needs_rules,
    summed_wishes,
    wish_texts,
)

log = structlog.get_logger()

Answer = TypeVar("Answer")

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

MAX_RECLAIM_ROUNDS: Final = 2
"""How many groups of due holds a reserve takes back before it says no."""

MAX_SPLIT_ATTEMPTS: Final = 24
"""How often a reserve of a split row asks: units that were fetched for it may go to others, and its
plan may change, but not that often."""

SPLIT_RETRY_MS: Final = 50
"""When to come back where that did not do: a crowd at the last units is gone as fast."""

MAX_FACT_ATTEMPTS: Final = 8
"""How often a movement that needs units of a split row's parts has them fetched."""

NOT_SPLIT: Final = 0
ANYWHERE: Final = -1
GATHERED: Final = -2
"""What stands for a plan where there is none, see `lua/reserve.lua`."""

_REFUSED_FOR_UNITS: Final = (Outcome.INSUFFICIENT_STOCK, Outcome.BUYER_CAP_EXCEEDED)

MAX_REREADS: Final = 3
"""How often an ending reads a reservation's lines anew before it gives up."""


_ARRIVE_OR_SELL: Final = frozenset(
    {
        MovementType.RECEIVE,
        MovementType.RETURN,
        MovementType.SALE,
        MovementType.TRANSFER_IN,
    }
)
"""What is refused of a kit. What it was stocked with before may still be counted or taken away."""


def digest_of_buyer(merchant: str, buyer: str) -> str:
    """Return what is kept of a buyer's name; nothing of an empty one."""
    return digest("buyer", merchant, buyer) if buyer else ""


_ARRIVALS: Final = frozenset({MovementType.RECEIVE, MovementType.TRANSFER_IN})
"""What may be the arrival of a supply."""


class DueHolds(msgspec.Struct, frozen=True):
    """What `Inventory.expire_due` found and did in one partition."""

    expired: int
    remaining: bool
    clock_jump_ms: int


class _Promise(NamedTuple):
    """What a reserve says beside its lines."""

    id: str
    merchant: str
    location: str
    ttl_ms: int
    order_ref: str
    partial: bool
    asker: Mapping[str, str]
    """Who asks for what of rows that have terms, as `lua/lib/room.lua` takes it."""
    actor: str
    fingerprint: str


class Inventory:
    """Stock and reservations over one store; see the module's text."""

    def __init__(self, store: Store, *, partitions: int) -> None:
        """Use `open` unless the store and its number of partitions are at hand."""
        self.store = store
        self.partitions = partitions
        self.keys = [PartitionKeys(number) for number in range(partitions)]
        self._dispatch = Dispatcher(store, self.keys)
        self._lines_of = reservations.RecentLines()
        self._sold_out = SoldOut()
        self._on_terms = OnTerms()
        self._clock = ClockGuard()
        self.order_records = OrderRecords(store, self._dispatch, self.keys)
        self.substitutes: Definitions[Rules, Choices] = Definitions(
            What.SUBSTITUTES,
            Rules,
            self._dispatch,
            self.keys,
            check=check_rules,
            arrange=arrange,
        )
        self.kits: Definitions[Kit, Kits] = Definitions(
            What.KITS, Kit, self._dispatch, self.keys, check=check_kits, arrange=dict
        )
        self.splits = Splits(store, self._dispatch, self.keys, self._take_back)

    @classmethod
    async def open(cls, settings: StoreSettings) -> Self:
        """Connect, and read how many partitions the store was made with.

        Raises StoreUnavailable where it cannot be reached, or was never made (`engine.boot`).
        """
        store = await Store.open(settings)
        try:
            (partitions,) = await store.read([("HGET", STORE_KEY, "partitions")])
            if partitions is None:
                raise StoreUnavailable("the store was not set up: run `holdfast serve` on it once")
        except BaseException:
            await store.close()
            raise
        return cls(store, partitions=int(partitions))

    async def close(self) -> None:
        """Close the connections; callers that still wait get an error."""
        await self.splits.flush()
        await self.store.close()

    @property
    def dispatcher(self) -> Dispatcher:
        """Carries the commands of other parts of the engine too, in turn with its own."""
        return self._dispatch

    # Reading

    async def row(self, merchant: str, location: str, sku: str) -> Row:
        """Read one row. Raises RowNotFound."""
        keys = self._keys_of(merchant, location)
        check_id("sku", sku)
        key = keys.stock(merchant, location, sku)
        fields = await self._read_row((merchant, location, sku), key)
        row = _row(merchant, location, sku, fields)
        if row is None:
            raise RowNotFound(merchant=merchant, location=location, sku=sku)
        if self._sold_out.rows:
            self._sold_out.see(key, row.available)
        return row

    async def rows(self, merchant: str, wanted: Sequence[tuple[str, str]]) -> list[Row | None]:
        """Read up to 500 rows, named by (location, sku), in order; None where there is none."""
        check_batch("rows", len(wanted), MAX_BATCH_ROWS)
        return await self._rows(merchant, wanted)

    async def _rows(self, merchant: str, wanted: Sequence[tuple[str, str]]) -> list[Row | None]:
        row_keys = []
        for location, sku in wanted:
            check_id("sku", sku)
            row_keys.append(self._keys_of(merchant, location).stock(merchant, location, sku))
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
        if self._sold_out.rows:
            for key, row in zip(row_keys, rows, strict=True):
                if row is not None:
                    self._sold_out.see(key, row.available)
        return rows

    async def _read_row(self, name: RowName, key: str) -> list[bytes | None]:
        """Read ROW_FIELDS of a row; of a split one, once its home knows what its parts did."""
        fields: list[bytes | None] = await self._dispatch.read("HMGET", key, *ROW_FIELDS)
        if fields[-1] is None:
            return fields
        await self.splits.report(name)
        return cast(list[bytes | None], await self._dispatch.read("HMGET", key, *ROW_FIELDS))

    async def list_rows(
        self, merchant: str, location: str, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Row]:
        """List a location's rows by SKU in byte order, from past `after`."""
        keys = self._keys_of(merchant, location)
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
        heads = await asyncio.gather(*(self._first_merchant(keys, start) for keys in self.keys))
        found: list[str] = []
        while len(found) <= limit and (named := [head for head in heads if head is not None]):
            first = min(named, key=_in_key)
            found.append(unquote(first))
            heads = await asyncio.gather(
                *(
                    self._first_merchant(keys, f"({first};") if head == first else _known(head)
                    for keys, head in zip(self.keys, heads, strict=True)
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
                for keys in self.keys
            )
        )
        # A part of a split row is listed in its partition, too.
        members = sorted({member.decode() for reply in replies for member in reply})
        locations = [unquote(member.partition(":")[2]) for member in members[: limit + 1]]
        return Page(
            tuple(locations[:limit]), locations[limit - 1] if len(locations) > limit else None
        )

    async def reservation(self, merchant: str, reservation: str) -> Reservation:
        """Read a reservation; ended ones for 24 hours. Raises ReservationNotFound."""
        return await self._wherever(reservation, lambda it: self._reservation(merchant, it))

    async def _reservation(self, merchant: str, reservation: str) -> Reservation:
        keys = self._keys_of_reservation(reservation)
        fields = await self._dispatch.read(
            "HMGET", keys.reservation(reservation), *reservations.FIELDS
        )
        found = reservations.from_hash(reservation, fields)
        if found is None or found.merchant != merchant:
            raise ReservationNotFound(reservation)
        return found

    async def open_count(self, merchant: str, location: str) -> tuple[int, int]:
        """Count a location's open reservations; the second is since when the oldest is there, ms.

        0 where there is none.
        """
        index = self._keys_of(merchant, location).open_reservations(merchant, location)
        count = await self._dispatch.read("ZCARD", index)
        oldest = await self._dispatch.read("ZRANGE", index, 0, 0, "WITHSCORES")
        return int(count), int(float(oldest[1])) if oldest else 0

    async def open_reservations(
        self, merchant: str, location: str, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[Reservation]:
        """List a location's held and confirmed reservations, oldest first.

        `after` is the `next_after` of the page before. Raises InvalidCommand where it is not.
        """
        check_page(limit)
        position = reservations.parse_position(after)
        # Those of split rows are held where their parts are.
        places = [self.keys[p] for p in await self.splits.partitions_of(merchant, location)]
        listed = await asyncio.gather(
            *(self._list_open(keys, merchant, location, position, limit + 1) for keys in places)
        )
        found_at = {p: keys for keys, some in zip(places, listed, strict=True) for p in some}
        positions = sorted(found_at)
        page = positions[:limit]
        replies = await asyncio.gather(
            *(
                self._dispatch.read("HMGET", found_at[p].reservation(p.id), *reservations.FIELDS)
                for p in page
            )
        )
        found = [
            reservations.from_hash(p.id, fields) for p, fields in zip(page, replies, strict=True)
        ]
        return Page(
            tuple(r for r in found if r is not None and r.state.is_open),
            page[-1].text() if len(positions) > limit else None,
        )

    async def _list_open(
        self,
        keys: PartitionKeys,
        merchant: str,
        location: str,
        position: reservations.Position | None,
        most: int,
    ) -> list[reservations.Position]:
        """List up to `most` open reservations of a location in one partition, past `position`."""
        index = keys.open_reservations(merchant, location)
        # Members of one millisecond stand in byte order: skip those that the page before gave.
        already = 0
        if position is not None:
            already = await self._dispatch.read(
                "ZCOUNT", index, position.created_at_ms, position.created_at_ms
            )
        start = "-inf" if position is None else position.created_at_ms
        flat = await self._dispatch.read(
            "ZRANGEBYSCORE", index, start, "+inf", "WITHSCORES", "LIMIT", 0, most + already
        )
        found = [p for p in reservations.positions(flat) if position is None or p > position]
        return found[:most]

    # Stock

    async def move(self, merchant: str, movement: Movement, *, actor: str) -> Moved:
        """Book a movement once under its key.

        Raises InsufficientOnHand (a transfer or adjustment past what is on hand), VersionConflict,
        SupplyNotFound, LimitExceeded, IdempotencyKeyReused, InvalidCommand.
        """
        keys = self._keys_of(merchant, movement.location)
        check_id("sku", movement.sku)
        check_key(movement.key)
        _check_movement(movement)
        # Known before any movement goes out, or else those of a batch would overtake each other.
        kits = self.kits.known_now(merchant)
        if kits is None:
            kits = await self.kits.known(merchant)
        if movement.sku in kits and movement.type in _ARRIVE_OR_SELL:
            raise InvalidCommand(
                "sku",
                "is a kit, which has no shelf: book its components, or what is packed ahead under "
                "a SKU of its own",
            )
        location = movement.location
        operation = digest("move", merchant, location, movement.key)
        command = Command(
            (
                *self._row_keys(keys, merchant, location, movement.sku, operation),
                keys.recent(merchant, location, movement.sku),
            ),
            (
                operation,
                merchant,
                location,
                actor,
                digest(*_told(movement)),
                movement.type,
                movement.sku,
                movement.quantity,
                -1 if movement.expected_version is None else movement.expected_version,
                movement.may_overdraw or movement.type is MovementType.SALE,
                location_member(merchant, location),
                (
                    movement.reason,
                    movement.reference,
                    movement.source,
                    movement.occurred_at_ms,
                    *([movement.supply] if movement.supply else []),
                ),
            ),
            merchant,
        )
        reply = await self.run_fact("move", keys.partition, command, (merchant, location))
        self._sold_out.forget(command.keys[:1])
        code = Outcome(reply[0])
        if code not in (Outcome.OK, Outcome.REPLAYED):
            raise refusal(
                reply,
                key=movement.key,
                sku=movement.sku,
                supply=movement.supply,
                expected=movement.expected_version,
            )
        row = replied_row(merchant, location, movement.sku, reply, settings_at=9)
        if code is Outcome.OK and row.backordered and row.unreserved:
            await self._fill_soon(merchant, location, movement.sku)
        return Moved(
            id=operation,
            row=row,
            on_hand_change=reply[8],
            at_ms=reply[1],
            sequence=reply[2],
            replayed=code is Outcome.REPLAYED,
        )

    async def move_many(
        self, merchant: str, movements: Sequence[Movement], *, actor: str
    ) -> list[Moved | HoldfastError]:
        """Book up to 1,000 movements; each stands alone, and gets its answer or its refusal."""
        check_batch("movements", len(movements), MAX_BATCH_MOVEMENTS)
        answers = await self._dispatch.bulk(
            self.move(merchant, movement, actor=actor) for movement in movements
        )
        for answer in answers:
            if isinstance(answer, Exception) and not isinstance(answer, HoldfastError):
                raise answer
        return cast(list[Moved | HoldfastError], answers)

    async def configure(
        self,
        merchant: str,
        location: str,
        sku: str,
        *,
        key: str,
        safety_stock: int | None = None,
        low_stock_threshold: int | None = None,
        expected_version: int,
        actor: str,
    ) -> Configured:
        """Change a row's settings if it still is at `expected_version` (0: make the row).

        A setting that is None stays as it is; one of them must be given.

        Raises VersionConflict, IdempotencyKeyReused, InvalidCommand.
        """
        keys = self._keys_of(merchant, location)
        check_id("sku", sku)
        check_key(key)
        if safety_stock is None and low_stock_threshold is None:
            raise InvalidCommand("safety_stock", "name one setting at least")
        if safety_stock is not None:
            check_quantity("safety_stock", safety_stock, least=0)
        if low_stock_threshold is not None:
            check_quantity("low_stock_threshold", low_stock_threshold, least=0)
        check_count("expected_version", expected_version)
        asked = [str(safety_stock), str(expected_version)]
        if low_stock_threshold is not None:
            asked.append(str(low_stock_threshold))
        operation = digest("configure", merchant, location, sku, key)
        command = Command(
            self._row_keys(keys, merchant, location, sku, operation),
            (
                operation,
                merchant,
                location,
                actor,
                digest(*asked),
                sku,
                expected_version,
                -1 if safety_stock is None else safety_stock,
                location_member(merchant, location),
                -1 if low_stock_threshold is None else low_stock_threshold,
            ),
            merchant,
        )
        reply = await self.run_fact("configure", keys.partition, command, (merchant, location))
        self._sold_out.forget(command.keys[:1])
        code = Outcome(reply[0])
        if code not in (Outcome.OK, Outcome.REPLAYED):
            raise refusal(reply, key=key, sku=sku, expected=expected_version)
        return replied_setting(merchant, location, sku, reply)

    async def set_terms(
        self,
        merchant: str,
        location: str,
        sku: str,
        terms: Terms,
        *,
        key: str,
        expected_version: int,
        actor: str,
    ) -> Configured:
        """Set on what terms a row's units are promised; what `terms` does not name ends.

        The row must be at `expected_version` (0: it is made). Raises VersionConflict,
        IdempotencyKeyReused, InvalidCommand.
        """
        keys = self._keys_of(merchant, location)
        check_id("sku", sku)
        check_key(key)
        check_terms(terms)
        check_count("expected_version", expected_version)
        asked = msgspec.to_builtins(terms.settings())
        operation = digest("terms", merchant, location, sku, key)
        command = Command(
            self._row_keys(keys, merchant, location, sku, operation),
            (
                operation,
                merchant,
                location,
                actor,
                digest(str(expected_version), msgspec.json.encode(asked, order="sorted").decode()),
                sku,
                expected_version,
                location_member(merchant, location),
                asked,
            ),
            merchant,
        )
        reply = await self._dispatch.run("terms", keys.partition, command)
        self._sold_out.forget(command.keys[:1])
        code = Outcome(reply[0])
        if code is Outcome.INVALID and reply[1] == "split":
            raise InvalidCommand("terms", "the row is split: put it together first (parts 1)")
        if code not in (Outcome.OK, Outcome.REPLAYED):
            raise refusal(reply, key=key, sku=sku, expected=expected_version)
        return replied_setting(merchant, location, sku, reply)

    async def fill(self, merchant: str, location: str, sku: str) -> int:
        """Give what is free on a row's shelf to those who wait for it, in the order of their turns.

        What the pools of other channels are guaranteed is passed by, except by who has a day.
        Returns how many reservations got units, some of them perhaps not all. Safe to repeat.
        """
        keys = self._keys_of(merchant, location)
        row, queue = keys.stock(merchant, location, sku), keys.waiting(merchant, location, sku)
        filled = passed = 0
        for _ in range(MAX_FILL_ROUNDS):
            found = await self._dispatch.read(
                "ZRANGEBYSCORE", queue, "-inf", "+inf", "LIMIT", passed, MAX_FILLED
            )
            if not found:
                break
            ids = [the_id.decode() for the_id in found]
            command = Command(
                (row, queue, *[keys.reservation(the_id) for the_id in ids]),
                (merchant, location, "backorders", sku, ids, passed),
                merchant,
            )
            reply = await self._dispatch.run("fill", keys.partition, command)
            if Outcome(reply[0]) is not Outcome.OK:
                raise refusal(reply)
            filled += reply[1]
            passed += reply[5]
            if not reply[4]:
                break
        return filled

    async def _fill_soon(self, merchant: str, location: str, sku: str) -> None:
        """Fill, as part of a call that has had its own effect already and must say so."""
        try:
            await self.fill(merchant, location, sku)
        except HoldfastError as error:
            # The background process does it.
            log.warning("backorders wait to be filled", sku=sku, error=str(error))

    # Reservations

    async def reserve(
        self,
        merchant: str,
        location: str,
        lines: Sequence[Line | Wish],
        *,
        key: str,
        ttl_ms: int = DEFAULT_TTL_MS,
        order_ref: str = "",
        partial: bool = False,
        stock_only: bool = False,
        channel: str = "",
        buyer: str = "",
        buyer_digest: str = "",
        by: str = "",
        stands_for: Sequence[StandsFor] = (),
        proposed: Sequence[str] = (),
        first_attempt: bool = False,
        actor: str,
    ) -> ReservationResult:
        """Hold the units of all lines for `ttl_ms`, or with `partial` what there is of them.

        Of a row with terms that allow it, units are promised that are not on the shelf yet, unless
        `stock_only`; the reservation names them as `backordered`. With `by`, a day as YYYY-MM-DD,
        units are promised that are expected by then, and no others.

        `channel` is through which it is asked for (`online` unless it is said), `buyer` who by: 128
        bytes at most, of which a digest is kept where a row has a cap. Who knows only that says
        `buyer_digest`.

        A line that is a Wish may be served by what stands for it, and a kit is served by its
        components: the reservation's `lines` are what is held, its `stands_for` what for. Where the
        lines are those of another reservation, they may be served by what `stands_for` them there,
        no more units of it than there; of the SKUs that are `proposed` that is not accepted yet.

        A retry under the same key gets the first answer again. `first_attempt` says that this is
        no retry: it may then be refused without asking the store (see `engine.sold_out`). Raises
        InsufficientStock with every line that does not fit, IdempotencyKeyReused, InvalidCommand.
        """
        keys = self._keys_of(merchant, location)
        check_key(key)
        check_lines(lines)
        check_ttl(ttl_ms)
        check_text("order_ref", order_ref)
        the_id = reservation_id(keys.partition, merchant, location, key)
        asked = [str(ttl_ms), order_ref, str(partial), *wish_texts(lines)]
        asks = stock_only or bool(channel) or bool(buyer) or bool(buyer_digest) or bool(by)
        if asks:
            check_name("channel", channel)
            check_name("buyer", buyer)
            asked += ["stock_only" if stock_only else "", channel, buyer or buyer_digest]
        asker = {
            "channel": channel or DEFAULT_CHANNEL,
            "promise": "stock" if stock_only else "",
            "buyer": digest_of_buyer(merchant, buyer) or buyer_digest,
        }
        if by:
            check_day("by", by)
            if stock_only:
                raise InvalidCommand("by", "names a day for what comes: leave stock_only out")
            asked.append(f"by {by}")
            asker["by"] = by
        fingerprint = digest(*asked)
        promise = _Promise(
            the_id, merchant, location, ttl_ms, order_ref, partial, asker, actor, fingerprint
        )
        # A partial reserve would hold the rest of the cart without the kit.
        kits = await self.kits.known(merchant) if partial else self.kits.known_now(merchant)
        if stands_for or not is_plain(lines, kits):
            return await self._serve_wishes(promise, lines, key, stands_for, proposed)
        wishes = lines
        lines = reservations.summed(cast(Sequence[Line], lines))
        cart = _Cart(promise, lines)
        plan = NOT_SPLIT
        if len(lines) > 1:
            plan = ANYWHERE
        elif self.splits.known(cart.name) is not None:
            return await self._reserve_split(cart, the_id, key, first_attempt=first_attempt)
        its_keys = cart.keys(keys, the_id)
        if self._sold_out.rows and not partial:
            await self._refuse_sold_out(the_id, its_keys, lines, first_attempt=first_attempt)
        on_terms = asks or self._on_terms.any_of(its_keys[2:])
        reclaims = 0
        while True:
            final = reclaims == MAX_RECLAIM_ROUNDS
            asked_at = self._sold_out.mark()
            command = cart.command(
                keys, the_id, partial=partial, reclaimed=final, plan=plan, on_terms=on_terms
            )
            reply = await self._dispatch.run(
                "promise" if on_terms else "reserve", keys.partition, command
            )
            code = Outcome(reply[0])
            if code in (Outcome.OK, Outcome.REPLAYED):
                return self._held(cart, the_id, reply)
            if code is Outcome.TERMS:
                self._on_terms.learn(keys.stock(merchant, location, reply[1]))
                on_terms = True
            elif code is Outcome.SPLIT and plan == NOT_SPLIT:
                return await self._reserve_split(cart, the_id, key, first_attempt=first_attempt)
            elif code is Outcome.SPLIT:
                await self._fetch((merchant, location), keys.partition, reply[1])
                reclaims += 1
                if reclaims == MAX_RECLAIM_ROUNDS:
                    plan = GATHERED
            elif code in _REFUSED_FOR_UNITS and reply[1] and not final:
                await self.expire_due(keys.partition)
                reclaims += 1
            else:
                break
        refused = _refused_promise(reply, key)
        if (
            isinstance(refused, InsufficientStock)
            # A kit is short of units of its own: so it is asked for where something is.
            and not is_plain(wishes, await self.kits.known(merchant))
        ):
            return await self._serve_wishes(promise, wishes, key)
        # What a row with terms has for one asker, it may have more or less of for another.
        if isinstance(refused, InsufficientStock) and not on_terms:
            self._sold_out.learn(
                [(keys.stock(merchant, location, line.sku), line) for line in refused.lines],
                asked_at=asked_at,
            )
        raise refused

    async def _serve_wishes(
        self,
        promise: "_Promise",
        lines: Sequence[Line | Wish],
        key: str,
        stands_for: Sequence[StandsFor] = (),
        proposed: Sequence[str] = (),
    ) -> ReservationResult:
        """Hold what serves wishes, and the components of kits. Raises as `reserve` does."""
        merchant, location = promise.merchant, promise.location
        check_wishes(lines)
        wishes = summed_wishes(lines)
        choices = await self.substitutes.known(merchant) if needs_rules(wishes) else {}
        kits = await self.kits.known(merchant)
        asked = ask(wishes, choices, kits, location, stands_for, proposed)
        keys = self._keys_of(merchant, location)
        rows = tuple(Line(sku, 0) for sku in asked.skus)
        cart = _Cart(promise, rows, asked.wishes, asked.mixed_units)
        plan, reclaims = ANYWHERE, 0
        while True:
            final = reclaims == MAX_RECLAIM_ROUNDS
            command = cart.command(
                keys,
                promise.id,
                partial=promise.partial,
                reclaimed=final,
                plan=plan,
                on_terms=True,
            )
            reply = await self._dispatch.run("promise", keys.partition, command)
            code = Outcome(reply[0])
            if code in (Outcome.OK, Outcome.REPLAYED):
                return self._held(cart, promise.id, reply)
            if code is Outcome.SPLIT:
                await self._fetch((merchant, location), keys.partition, reply[1])
                plan = GATHERED
                continue
            if code not in _REFUSED_FOR_UNITS or not reply[1] or final:
                break
            await self.expire_due(keys.partition)
            reclaims += 1
        raise _refused_promise(reply, key)

    def _held(self, cart: "_Cart", the_id: str, reply: Sequence[Any]) -> ReservationResult:
        held = reservations.from_reserve(
            the_id,
            reply,
            merchant=cart.promise.merchant,
            location=cart.promise.location,
            lines=cart.lines,
            ttl_ms=cart.promise.ttl_ms,
            order_ref=cart.promise.order_ref,
            actor=cart.promise.actor,
        )
        self._lines_of.keep(held)
        return ReservationResult(held, Outcome(reply[0]) is Outcome.REPLAYED)

    async def _fetch(
        self, place: tuple[str, str], partition: int, wanted: Sequence[tuple[str, int]]
    ) -> None:
        """Have what is wanted of split rows be free in a partition, as far as it can be."""
        await asyncio.gather(
            *(self.splits.pull((*place, sku), partition, units) for sku, units in wanted)
        )

    async def _reserve_split(
        self, cart: "_Cart", the_id: str, key: str, *, first_attempt: bool
    ) -> ReservationResult:
        """Reserve of a row that promises at its parts: see `engine.splits`.

        The part is named by the reservation's hash, so that a retry finds its answer there. One
        that has too little is given what the others have before the answer is no.
        """
        name, (line,) = cart.name, cart.lines
        home, the_hash = self.splits.home_of(name), reservation_hash(the_id)
        row_key = self.keys[home].stock(*name)
        available, asked_at = 0, self._sold_out.mark()
        takes_less = False
        for attempt in range(MAX_SPLIT_ATTEMPTS):
            final = attempt == MAX_SPLIT_ATTEMPTS - 1
            plan = self.splits.known(name) or (await self.splits.reopen(name)).plan
            place = home if plan is None else plan.place(the_hash, home)
            here = moved_reservation_id(the_id, place)
            earlier = () if plan is None else plan.earlier_places(the_hash, home)
            for one in earlier:
                there = moved_reservation_id(the_id, one)
                if await self._dispatch.read("EXISTS", self.keys[one].reservation(there)):
                    place, here = one, there
            if attempt == 0 and self._sold_out.rows and not cart.promise.partial:
                its_keys = (self.keys[place].reservation(here), "", row_key)
                await self._refuse_sold_out(here, its_keys, cart.lines, first_attempt=first_attempt)
            keys = self.keys[place]
            command = cart.command(
                keys,
                here,
                partial=cart.promise.partial and (final or takes_less),
                reclaimed=final,
                plan=NOT_SPLIT if plan is None else plan.epoch,
            )
            asked_at = self._sold_out.mark()
            reply = await self._dispatch.run("reserve", place, command)
            code = Outcome(reply[0])
            if code in (Outcome.OK, Outcome.REPLAYED):
                if place != home:
                    self.splits.touched(name)
                return self._held(cart, here, reply)
            if code is Outcome.SPLIT:
                at_home = await self.splits.reopen(name)
                if at_home.is_closed:
                    # Units that were given back at the parts go to what is missing first.
                    at_home = await self.splits.shut(name)
                available = at_home.available
                if at_home.is_closed and at_home.free <= 0:
                    break
                continue
            if code is not Outcome.INSUFFICIENT_STOCK:
                raise refusal(reply, key=key)
            if reply[1] and not final:
                await self.expire_due(place)
                continue
            pulled = await self.splits.pull(name, place, line.quantity)
            available = pulled.available
            if pulled.free.get(place, 0) < line.quantity > available:
                if not cart.promise.partial or takes_less:
                    break
                takes_less = True
        if available >= line.quantity:
            # The units are there, but others were always faster, or the plan changed all the time.
            raise Overloaded(retry_after_ms=SPLIT_RETRY_MS)
        short = ShortLine(line.sku, line.quantity, available)
        self._sold_out.learn([(row_key, short)], asked_at=asked_at)
        raise InsufficientStock((short,))

    async def _refuse_sold_out(
        self, the_id: str, its_keys: Sequence[str], lines: Sequence[Line], *, first_attempt: bool
    ) -> None:
        """Raise InsufficientStock where every line is known not to fit and this is no retry.

        A retry must get the answer of the attempt that it repeats, which another process may have
        made. So where the caller does not say, the store is asked whether there is a reservation:
        one small read, and no place in the queue of the partition's writes.
        """
        reservation_key, _, *rows = its_keys
        wanted = list(zip(rows, lines, strict=True))
        short = self._sold_out.short_lines(wanted)
        if short is None or self._lines_of.get(the_id) is not None:
            return
        if not first_attempt:
            if await self._dispatch.read("EXISTS", reservation_key):
                return
            # Meanwhile the row may have come back, or the time may be up.
            short = self._sold_out.short_lines(wanted)
            if short is None:
                return
        metrics.SOLD_OUT_REFUSALS.add(())
        raise InsufficientStock(short)

    async def confirm(
        self, merchant: str, reservation: str, *, order_ref: str = "", actor: str
    ) -> ReservationResult:
        """Keep a hold until it is committed or released: the order is placed.

        Raises ReservationNotFound, ReservationEnded, IdempotencyKeyReused (confirmed before with
        another `order_ref`).
        """
        check_text("order_ref", order_ref)
        return await self._wherever(
            reservation, lambda it: self._confirm(merchant, it, order_ref, actor)
        )

    async def _confirm(
        self, merchant: str, reservation: str, order_ref: str, actor: str
    ) -> ReservationResult:
        keys = self._keys_of_reservation(reservation)
        command = Command(
            (keys.reservation(reservation),), (reservation, merchant, actor, order_ref), merchant
        )
        reply = await self._dispatch.run("confirm", keys.partition, command)
        return _result(reservation, reply, key=order_ref)

    async def extend(
        self, merchant: str, reservation: str, *, key: str, ttl_ms: int, actor: str
    ) -> ReservationResult:
        """Let a hold run for `ttl_ms` from now, if that is longer than it would.

        Raises ReservationNotFound, ReservationEnded, ReservationNotHeld (confirmed), LimitExceeded
        (7 days in all), IdempotencyKeyReused.
        """
        check_key(key)
        check_ttl(ttl_ms)
        return await self._wherever(
            reservation, lambda it: self._extend(merchant, it, key, ttl_ms, actor)
        )

    async def _extend(
        self, merchant: str, reservation: str, key: str, ttl_ms: int, actor: str
    ) -> ReservationResult:
        keys = self._keys_of_reservation(reservation)
        # Not of the whole id: a retry must find its record after the reservation has moved, too.
        operation = digest("extend", reservation_hash(reservation), key)
        command = Command(
            (keys.reservation(reservation), keys.seen(merchant, operation)),
            (reservation, merchant, actor, digest(str(ttl_ms)), ttl_ms, operation),
            merchant,
        )
        reply = await self._dispatch.run("extend", keys.partition, command)
        return _result(reservation, reply, key=key)

    async def amend(
        self,
        merchant: str,
        reservation: str,
        lines: Sequence[Line | Wish],
        *,
        key: str,
        stock_only: bool = False,
        channel: str = "",
        buyer: str = "",
        actor: str,
    ) -> ReservationResult:
        """Hold so many units of each SKU named from now on; 0 drops its line, others stay.

        The units that the reservation has already count as free for it, so it is refused only what
        is not there beyond them, and then keeps what it has. A confirmed one may be amended too.
        More units of a row with terms are promised on these; fewer give back first what is waited
        for. `channel` and `buyer` are of a reservation that has none yet, as for `reserve`.

        Where others stand for a SKU, or it is a kit, its quantity is how much is asked for, and
        that is served anew. Other SKUs than those that stand for it already may do so only where
        the line is a Wish that says so.

        A retry under the same key gets the first answer again. Raises ReservationNotFound,
        ReservationEnded, InsufficientStock, BuyerCapExceeded, LimitExceeded (lines),
        IdempotencyKeyReused, InvalidCommand (also where no line would be left).
        """
        check_key(key)
        check_amendment(lines)
        check_wishes(lines)
        check_name("channel", channel)
        check_name("buyer", buyer)
        who = digest_of_buyer(merchant, buyer)
        amendment = Amendment(merchant, tuple(lines), key, actor, stock_only, channel, who)
        return await self._wherever(reservation, lambda it: self._amend(it, amendment))

    async def _amend(self, reservation: str, amendment: Amendment) -> ReservationResult:
        keys, merchant = self._keys_of_reservation(reservation), amendment.merchant
        held = self._lines_of.get(reservation)
        is_on_terms, as_wishes = False, not is_plain(amendment.lines, self.kits.known_now(merchant))
        plan, reclaims, rereads = ANYWHERE, 0, 0
        while True:
            if held is None:
                held = await self._read_lines(keys, reservation)
            if held is None:
                raise ReservationNotFound(reservation)
            place = (held.merchant, held.location)
            amendment.check(held, is_at_part=self._keys_of(*place) != keys)
            final = reclaims == MAX_RECLAIM_ROUNDS
            if is_on_terms or as_wishes or held.has_extras:
                verb = "repromise"
                defined = None
                if as_wishes or held.stands_for:
                    defined = await self._definitions(merchant, amendment.lines)
                command = amendment.command_on_terms(
                    keys, reservation, held, final=final, plan=plan, defined=defined
                )
            else:
                verb, command = "amend", amendment.command(keys, reservation, held, final=final)
            reply = await self._dispatch.run(verb, keys.partition, command)
            code = Outcome(reply[0])
            if code is Outcome.LINES_CHANGED and rereads < MAX_REREADS:
                held, rereads = None, rereads + 1
            elif code is Outcome.TERMS:
                is_on_terms = True
            elif code is Outcome.SPLIT:
                await self._fetch(place, keys.partition, reply[1])
                reclaims += 1
                plan = ANYWHERE if reclaims < MAX_RECLAIM_ROUNDS else GATHERED
            elif code in _REFUSED_FOR_UNITS and reply[1] and not final:
                await self.expire_due(keys.partition)
                reclaims += 1
            elif (
                code is Outcome.INSUFFICIENT_STOCK
                and not as_wishes
                and not is_plain(amendment.lines, await self.kits.known(merchant))
            ):
                # A kit is short of units of its own.
                as_wishes, plan, reclaims = True, ANYWHERE, 0
            else:
                break
        if code is Outcome.LINES_CHANGED:
            raise OutcomeUnknown()
        # Keys that are not of rows do no harm.
        self._sold_out.forget(command.keys[2:])
        self._note_at_part(held, keys)
        if code is Outcome.INVALID:
            refused = amendment.refused_field(*reply[1:])
            if refused is not None:
                raise refused
        result = _result(reservation, reply, key=amendment.key)
        self._lines_of.keep(result.reservation)
        return result

    async def _definitions(
        self, merchant: str, lines: Sequence[Line | Wish]
    ) -> amendments.Definitions:
        wishes = summed_wishes(lines)
        choices = await self.substitutes.known(merchant) if needs_rules(wishes) else {}
        return amendments.Definitions(choices, await self.kits.known(merchant))

    async def commit(
        self, merchant: str, reservation: str, *, picks: Sequence[Line] = (), actor: str
    ) -> ReservationResult:
        """End a reservation: its units, or those of `picks`, left the shelf; the rest goes back.

        A line that `picks` does not name is picked 0 times; no picks at all means every line whole.
        Raises ReservationNotFound, ReservationEnded, InsufficientOnHand, InvalidCommand.
        """
        check_picks(picks)
        return await self._wherever(
            reservation, lambda it: self._end("commit", merchant, it, actor, list(picks))
        )

    async def release(
        self, merchant: str, reservation: str, *, reason: str = "", actor: str
    ) -> ReservationResult:
        """End a reservation by giving all its units back.

        Raises ReservationNotFound, ReservationEnded.
        """
        check_text("reason", reason)
        return await self._wherever(
            reservation, lambda it: self._end("release", merchant, it, actor, reason)
        )

    async def hand_over(
        self, merchant: str, seen: Reservation, move: str, *, to: str, actor: str
    ) -> Reservation:
        """Release a reservation whose units are held elsewhere now, if it is still as `seen`.

        What is answered has the id of the move that it was released for as its `order_ref`, and
        none where somebody released it otherwise. Raises ReservationChanged, ReservationNotFound,
        ReservationEnded.
        """
        as_seen = (
            move,
            str(seen.state),
            seen.expires_at_ms or 0,
            seen.lines,
            seen.stands_for,
            len(seen.proposed),
        )
        result = await self._wherever(
            seen.id,
            lambda it: self._end("release", merchant, it, actor, f"moved to {to}", as_seen),
        )
        return result.reservation

    async def order_of(self, reservation: str) -> str:
        """Return the id of the order that a reservation was made as a part of; empty of others.

        Raises ReservationNotFound.
        """
        return await self._wherever(reservation, self._order_of)

    async def _order_of(self, reservation: str) -> str:
        lines = await self._read_lines(self._keys_of_reservation(reservation), reservation)
        if lines is None:
            raise ReservationNotFound(reservation)
        return lines.order_ref if is_order_id(lines.order_ref) else ""

    async def now_ms(self, location: tuple[str, str]) -> int:
        """Return the time as the scripts of a merchant's location have it, in ms since 1970."""
        meta = self._keys_of(*location).meta
        clock, high_water = await self.store.read([("TIME",), ("HGET", meta, "clock_ms")])
        seconds, microseconds = (int(part) for part in clock)
        return max(seconds * 1000 + microseconds // 1000, int(high_water or 0))

    async def decide(
        self,
        merchant: str,
        reservation: str,
        decision: ProposalDecision,
        *,
        skus: Sequence[str] = (),
        actor: str,
    ) -> ReservationResult:
        """Accept or decline that others stand for `skus`, without any for all that is proposed.

        What is declined is given back, and missing from then on; a reservation of which nothing is
        left is released. Raises ReservationNotFound, ReservationEnded, ProposalDecided (the other
        way), InvalidCommand (nothing was proposed of one of them).
        """
        if len(skus) > MAX_LINES:
            raise InvalidCommand("skus", f"must have at most {MAX_LINES} items, has {len(skus)}")
        for sku in skus:
            check_id("skus", sku)
        asked = [str(decision), list(dict.fromkeys(skus))]
        return await self._wherever(
            reservation, lambda it: self._end("decide", merchant, it, actor, asked)
        )

    async def expire_due(self, partition: int, *, limit: int = MAX_GROUP_COMMANDS) -> DueHolds:
        """Take back the holds of a partition whose time is up, the longest overdue first.

        Does nothing while the store's clock is not to be trusted; `clock_jump_ms` says so.
        """
        keys = self.keys[partition]
        reply = await self.store.call(script("due"), (keys.holds, keys.meta), limit)
        now_ms, _, ids = msgspec.msgpack.decode(reply, type=tuple[int, int, list[str]])
        if not self._clock.accept(now_ms):
            return DueHolds(0, bool(ids), self._clock.jump_ms)
        expired = await asyncio.gather(*(self._expire(keys, the_id) for the_id in ids))
        return DueHolds(sum(expired), len(ids) == limit, 0)

    async def _expire(self, keys: PartitionKeys, reservation: str) -> bool:
        for _ in range(MAX_REREADS):
            lines = await self._read_lines(keys, reservation)
            if lines is None:
                return False
            order = None
            if is_order_id(lines.order_ref):
                order = await self.order_records.keeper_of(lines.order_ref, reservation)
            if order is not None:
                # Whoever confirmed or ended it just now did so for good. What was amended since and
                # is to be accepted yet cannot be confirmed, and goes back as any such hold.
                with suppress(ReservationNotFound, ReservationEnded, IdempotencyKeyReused):
                    try:
                        await self.confirm(
                            lines.merchant,
                            reservation,
                            order_ref=order.body.order_ref,
                            actor="sweeper",
                        )
                    except ProposalOpen:
                        order = None
                if order is not None:
                    return False
            reply = await self._dispatch.run(
                "expire",
                keys.partition,
                Command(
                    lines.keys(keys, reservation),
                    (reservation, lines.merchant, "sweeper", lines.skus),
                ),
            )
            if Outcome(reply[0]) is not Outcome.LINES_CHANGED:
                self._sold_out.forget(lines.row_keys(keys))
                self._note_at_part(lines, keys)
                if Outcome(reply[0]) is not Outcome.OK:
                    return False
                metrics.HOLDS_EXPIRED.add(())
                return True
        return False

    async def _wherever(self, reservation: str, call: Callable[[str], Awaitable[Answer]]) -> Answer:
        """Call with the reservation's id, and if there is none of it, with that of its new place.

        So only a miss pays for looking whether a rebuild moved the reservation.
        """
        try:
            return await call(reservation)
        except ReservationNotFound:
            if partition_of_reservation(reservation, MAX_PARTITIONS) is None:
                raise
            partition = await self._dispatch.read("HGET", MOVED_KEY, reservation_hash(reservation))
            if partition is None:
                raise
        return await call(moved_reservation_id(reservation, int(partition)))

    async def run_fact(
        self, verb: str, partition: int, command: Command, place: tuple[str, str]
    ) -> list[Any]:
        """Run what must happen at a row's home, with what it needs of the row's parts.

        A fact is never refused for want of units. But those that parts can still promise must not
        be gone already: they come home first, and if that is not enough the parts are closed.
        """
        for attempt in range(MAX_FACT_ATTEMPTS):
            reply = await self._dispatch.run(verb, partition, command)
            if Outcome(reply[0]) is not Outcome.SPLIT:
                return reply
            ((sku, units),) = reply[1]
            if attempt == 0:
                await self.splits.pull((*place, sku), partition, units)
            else:
                await self.splits.shut((*place, sku))
        raise Overloaded(retry_after_ms=1_000)

    async def _take_back(self, partition: int) -> int:
        return (await self.expire_due(partition)).expired

    def _note_at_part(self, lines: reservations.LinesOf, keys: PartitionKeys) -> None:
        """Have the home of a split row be told of what changed at a part of it."""
        home = self._keys_of(lines.merchant, lines.location)
        if home.partition == keys.partition:
            return
        self._sold_out.forget(lines.row_keys(home))
        for sku in lines.skus:
            self.splits.touched((lines.merchant, lines.location, sku))

    async def _end(
        self, verb: str, merchant: str, reservation: str, actor: str, argument: Any, *more: Any
    ) -> ReservationResult:
        """Run commit, release or decide, which declare the rows of the reservation's lines."""
        keys = self._keys_of_reservation(reservation)
        lines = self._lines_of.get(reservation) or await self._read_lines(keys, reservation)
        filled = False
        for _ in range(MAX_REREADS + 1):
            if lines is None:
                raise ReservationNotFound(reservation)
            command = Command(
                lines.commit_keys(keys, reservation)
                if verb == "commit"
                else lines.keys(keys, reservation),
                (reservation, merchant, actor, argument, lines.skus, *more),
                merchant,
            )
            reply = await self._dispatch.run(verb, keys.partition, command)
            if Outcome(reply[0]) is Outcome.BACKORDER_UNFILLED and not filled:
                # What it waits for may be there, and not given out yet.
                filled = True
                for line in reply[1]:
                    await self.fill(lines.merchant, lines.location, line[0])
                continue
            if Outcome(reply[0]) is Outcome.NOT_DUE:
                raise ReservationChanged(reservation)
            if Outcome(reply[0]) is not Outcome.LINES_CHANGED:
                if verb == "release" or argument:
                    # A commit without picks takes what it held, so no unit comes back.
                    self._sold_out.forget(lines.row_keys(keys))
                self._note_at_part(lines, keys)
                return _result(reservation, reply)
            lines = await self._read_lines(keys, reservation)
        raise OutcomeUnknown()

    async def _read_lines(
        self, keys: PartitionKeys, reservation: str
    ) -> "reservations.LinesOf | None":
        body = await self._dispatch.read("HGET", keys.reservation(reservation), "body")
        return None if body is None else reservations.lines_of(body)

    def _row_keys(
        self, keys: PartitionKeys, merchant: str, location: str, sku: str, operation: str
    ) -> tuple[str, ...]:
        return (
            keys.stock(merchant, location, sku),
            keys.skus(merchant, location),
            keys.locations,
            keys.seen(merchant, operation),
        )

    def keys_of(self, merchant: str, location: str) -> PartitionKeys:
        """Return the keys of a location's partition. Raises InvalidCommand."""
        return self._keys_of(merchant, location)

    def note_change(self, row_key: str) -> None:
        """Take note that this process changed a row, so that units may be had there again."""
        self._sold_out.forget((row_key,))

    def _keys_of(self, merchant: str, location: str) -> PartitionKeys:
        check_id("merchant", merchant)
        check_id("location", location)
        return self.keys[partition_of(merchant, location, self.partitions)]

    def _keys_of_reservation(self, reservation: str) -> PartitionKeys:
        partition = partition_of_reservation(reservation, self.partitions)
        if partition is None:
            raise ReservationNotFound(reservation)
        return self.keys[partition]


def _in_key(merchant: str) -> str:
    """Return how a merchant's members begin: `a:` comes after `a-b:`."""
    return f"{merchant}:"


async def _known(head: str | None) -> str | None:
    return head


class ReservationChanged(Exception):
    """It is not what the caller saw of it any more: look again."""


class _Cart(NamedTuple):
    """What is to be reserved, and the command that asks for it."""

    promise: _Promise
    lines: tuple[Line, ...]
    wishes: Any = None
    mixed_units: int = 0

    @property
    def name(self) -> RowName:
        """The row of the first line."""
        return (self.promise.merchant, self.promise.location, self.lines[0].sku)

    def keys(self, keys: PartitionKeys, the_id: str) -> tuple[str, ...]:
        """Return the keys that `lua/reserve.lua` declares in a partition."""
        merchant, location = self.promise.merchant, self.promise.location
        return (
            keys.reservation(the_id),
            keys.open_reservations(merchant, location),
            *[keys.stock(merchant, location, line.sku) for line in self.lines],
        )

    def command(
        self,
        keys: PartitionKeys,
        the_id: str,
        *,
        partial: bool,
        reclaimed: bool,
        plan: int,
        on_terms: bool = False,
    ) -> Command:
        """Make the command of `lua/reserve.lua`, or with `on_terms` of `lua/promise.lua`."""
        its_keys = self.keys(keys, the_id)
        asked: list[Any] = [partial, reclaimed, plan]
        if on_terms:
            its_keys = (*its_keys[:2], *self._keys_on_terms(keys))
            who = self.promise.asker
            asked.append(who if self.wishes is None else {**who, "wishes": self.wishes})
        return Command(
            its_keys,
            (
                the_id,
                passed_on(
                    packed(
                        self.promise.merchant,
                        self.promise.location,
                        self.promise.actor,
                        self.promise.fingerprint,
                    )
                ),
                passed_on(packed(self.promise.ttl_ms, self.promise.order_ref)),
                passed_on(packed_list(self.lines)),
                self.promise.ttl_ms,
                *asked,
                *[element for line in self.lines for element in (line.sku, line.quantity)],
            ),
            self.promise.merchant,
            self.mixed_units,
        )

    def _keys_on_terms(self, keys: PartitionKeys) -> Iterator[str]:
        """Yield what `lua/promise.lua` declares of each line."""
        merchant, location, buyer = (
            self.promise.merchant,
            self.promise.location,
            self.promise.asker["buyer"],
        )
        for line in self.lines:
            yield keys.stock(merchant, location, line.sku)
            yield keys.waiting(merchant, location, line.sku)
            if buyer:
                yield keys.buyer(merchant, location, line.sku, buyer)


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


def _refused_promise(reply: Sequence[Any], key: str) -> HoldfastError:
    if reply[0] == Outcome.INVALID and reply[1] == "buyer":
        return InvalidCommand("buyer", "say who buys: a row of the cart has a cap a buyer")
    return refusal(reply, key=key)


def _result(reservation: str, reply: list[Any], *, key: str = "") -> ReservationResult:
    """Read the reply of a verb on a reservation. Raises its refusal."""
    code = Outcome(reply[0])
    if code not in (Outcome.OK, Outcome.REPLAYED):
        raise refusal(reply, reservation=reservation, key=key)
    return ReservationResult(reservations.from_reply(reservation, reply), code is Outcome.REPLAYED)


def _told(movement: Movement) -> list[str]:
    """Return what a movement says, for its fingerprint; a supply only where it names one."""
    *told, supply = [str(value) for value in msgspec.structs.astuple(movement)]
    return [*told, supply] if supply else told


def _check_movement(movement: Movement) -> None:
    check_text("reason", movement.reason)
    check_text("reference", movement.reference)
    check_text("source", movement.source)
    check_text("supply", movement.supply)
    if movement.supply and movement.type not in _ARRIVALS:
        raise InvalidCommand("supply", "is of what arrives: a receive or a transfer_in")
    check_count("occurred_at", movement.occurred_at_ms)
    if movement.expected_version is not None:
        check_count("expected_version", movement.expected_version)
    if movement.type is MovementType.ADJUST and not movement.reason:
        raise InvalidCommand("reason", "say why: an adjustment needs a reason")
    if movement.type is MovementType.COUNT:
        check_quantity("quantity", movement.quantity, least=0, total=True)
    elif movement.type is MovementType.ADJUST:
        check_quantity("quantity", movement.quantity, signed=True)
    else:
        check_quantity("quantity", movement.quantity)
