"""Shortfalls: fewer units are on hand than were promised, and what can be done about it.

Promises are refused where they do not fit, but facts are not: a till sells what is on the shelf, a
count finds what is there. The keeper reads the ledger, puts each shortfall on record with the
reservations that it endangers, and closes it once a receipt, a count, a release, an expiry or a
short pick has resolved it. It never changes a promise unless the merchant's policy says so. As it
reads every change of a row, it also has the backorders filled that became possible to fill, and the
promises put on record whose day cannot be kept any more.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
import structlog

from engine.backorders import Fillable
from engine.dispatch import Command
from engine.inventory import Inventory
from engine.keys import PartitionKeys, digest, partition_of
from engine.leases import leases_of
from engine.ledger import MOVEMENTS, Operation, OperationKind, read_entries, reader_place
from engine.limits import MAX_PAGE
from engine.model import Reservation, ReservationState
from engine.outcomes import HoldfastError, Outcome, ReservationEnded, StoreFault
from engine.policies import OnShortfall, Policies
from engine.refusals import refusal
from engine.rounds import in_rounds
from engine.supplies import Reviewable, Supplies

READER: Final = "shortfalls"
"""Its name among the readers of the ledger: what it has not read is not trimmed."""

POLL_SECONDS: Final = 0.5
ROUND_ENTRIES: Final = 500
MAX_ROUNDS: Final = 20
"""Stretches of the ledger that are read of one partition before the next has its turn."""

MAX_OPEN_SCANNED: Final = 5_000
"""Open reservations of a location that are looked through, the newest first."""

MAX_ENDANGERED: Final = 100
"""Reservations that one record names; a listing reads on."""

MAX_ELSEWHERE: Final = 20
"""Other locations that are named as a way out, those with the most units first."""

LOOK_AGAIN_SECONDS: Final = 30.0
"""How often a row that could not be seen to is tried again."""

MAX_LEFT: Final = 1_000
"""Rows of one partition that are tried again by themselves; others once they change."""

ACTOR: Final = "shortfalls"

log = structlog.get_logger()

Place = tuple[str, str, str]
"""(merchant, location, SKU)."""


class Endangered(msgspec.Struct, frozen=True):
    """A reservation some of whose units are not there: `missing` of the `quantity` it holds."""

    reservation: str
    state: ReservationState
    order_ref: str
    quantity: int
    missing: int


class Elsewhere(msgspec.Struct, frozen=True):
    """Another location of the merchant that can promise units of the SKU."""

    location: str
    available: int


class Shortfall(msgspec.Struct, frozen=True, kw_only=True):
    """A shortfall that is on record since `since_ms`, with what is known of it now.

    `how` is what made it. `on_hand` units are there: a commit may pick that many.
    """

    location: str
    sku: str
    units: int
    since_ms: int
    how: str
    on_hand: int
    reserved: int
    endangered: tuple[Endangered, ...]
    elsewhere: tuple[Elsewhere, ...]


class _Change(msgspec.Struct):
    """What a stretch of the ledger did to a row: how many units are short, and by what."""

    units: int
    how: str


class Shortfalls:
    """The shortfalls of all merchants over one store."""

    def __init__(self, inventory: Inventory) -> None:
        """Read and resolve through `inventory`."""
        self._inventory = inventory
        self._store = inventory.store

    async def listed(self, merchant: str, location: str) -> list[Shortfall]:
        """List the shortfalls of a location, the oldest first, with the ways out."""
        keys = self.keys_of(merchant, location)
        (found,) = await self._store.read([("HVALS", keys.shortfalls)])
        bodies = sorted(msgspec.msgpack.decode(text) for text in found)
        mine = [body for body in bodies if (body[3], body[4]) == (merchant, location)]
        rows = await self._rows(merchant, [(location, body[5]) for body in mine])
        elsewhere = await self._elsewhere(merchant, location, [body[5] for body in mine])
        listed = []
        for (since_ms, _, how, _, _, sku), row in zip(mine, rows, strict=True):
            if row is None or row.shortfall == 0:
                # Resolved just now, and not closed yet.
                continue
            endangered = await self.endangered((merchant, location, sku), row.shortfall)
            listed.append(
                Shortfall(
                    location=location,
                    sku=sku,
                    units=row.shortfall,
                    since_ms=since_ms,
                    how=how,
                    on_hand=row.on_hand,
                    reserved=row.reserved,
                    endangered=tuple(endangered),
                    elsewhere=tuple(elsewhere.get(sku, ())),
                )
            )
        return listed

    async def endangered(self, place: Place, units: int) -> list[Endangered]:
        """Name the open reservations whose units are not there, the newest first.

        Confirmed ones come after all holds: an order that was placed is the last to go without.
        """
        merchant, location, sku = place
        held: list[Endangered] = []
        left = units
        for reservation in _in_danger(await self._open(merchant, location), sku):
            waiting = sum(line.quantity for line in reservation.backordered if line.sku == sku)
            quantity = sum(line.quantity for line in reservation.lines if line.sku == sku) - waiting
            missing = min(left, quantity)
            if missing == 0:
                break
            left -= missing
            held.append(
                Endangered(
                    reservation.id, reservation.state, reservation.order_ref, quantity, missing
                )
            )
        return held

    async def _open(self, merchant: str, location: str) -> list[Reservation]:
        found: list[Reservation] = []
        after: str | None = None
        for _ in range(MAX_OPEN_SCANNED // MAX_PAGE):
            page = await self._inventory.open_reservations(
                merchant, location, after=after, limit=MAX_PAGE
            )
            found += page.items
            after = page.next_after
            if after is None:
                break
        return found

    async def _elsewhere(
        self, merchant: str, location: str, skus: Sequence[str]
    ) -> dict[str, list[Elsewhere]]:
        if not skus:
            return {}
        page = await self._inventory.list_locations(merchant, limit=MAX_PAGE)
        others = [one for one in page.items if one != location]
        found: dict[str, list[Elsewhere]] = {}
        for sku in dict.fromkeys(skus):
            rows = await self._rows(merchant, [(one, sku) for one in others])
            having = [
                Elsewhere(row.location, row.available)
                for row in rows
                if row is not None and row.available > 0
            ]
            having.sort(key=lambda one: (-one.available, one.location))
            found[sku] = having[:MAX_ELSEWHERE]
        return found

    async def _rows(self, merchant: str, wanted: Sequence[tuple[str, str]]) -> list[Any]:
        rows: list[Any] = []
        for start in range(0, len(wanted), MAX_PAGE):
            rows += await self._inventory.rows(merchant, wanted[start : start + MAX_PAGE])
        return rows

    def keys_of(self, merchant: str, location: str) -> PartitionKeys:
        """Return the keys of a location's partition."""
        return self._inventory.keys[partition_of(merchant, location, self._inventory.partitions)]


class ShortfallKeeper:
    """Puts shortfalls on record until told to stop; see the module's text."""

    def __init__(
        self, inventory: Inventory, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Any number may run on a store: a partition has one keeper at a time."""
        self._inventory = inventory
        self._store = inventory.store
        self._shortfalls = Shortfalls(inventory)
        self._policies = Policies(inventory.store)
        self._dispatch = inventory.dispatcher
        self._supplies = Supplies(inventory)
        self._leases = leases_of(inventory.store, inventory.keys, "shortfalls")
        self._monotonic = monotonic
        self._left: list[dict[Place, str]] = [{} for _ in inventory.keys]
        self._looked_at = [monotonic() for _ in inventory.keys]

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; outages of the store are waited out."""
        await in_rounds(
            "shortfall keeper", self.round, stop, pause_seconds=POLL_SECONDS, leases=self._leases
        )

    async def round(self) -> int:
        """Read what is new in every partition; return how many operations were put on record.

        Raises what the store's calls raise.
        """
        recorded = 0
        for keys in self._inventory.keys:
            for _ in range(MAX_ROUNDS):
                if not await self._leases[keys.partition].hold():
                    break
                count, entries = await self._partition(keys)
                recorded += count
                if entries < ROUND_ENTRIES:
                    break
        return recorded

    async def _partition(self, keys: PartitionKeys) -> tuple[int, int]:
        """Read a stretch; return how many operations it led to, and how many entries it had."""
        position, found = await self._store.read(
            [("HGET", keys.readers, READER), ("HVALS", keys.shortfalls)]
        )
        known: dict[Place, int] = {}
        for text in found:
            body = msgspec.msgpack.decode(text)
            known[body[3], body[4], body[5]] = body[1]
        recorded, now = 0, self._monotonic()
        if now - self._looked_at[keys.partition] >= LOOK_AGAIN_SECONDS:
            self._looked_at[keys.partition] = now
            recorded = await self._look_again(keys, known)
        after = "0-0" if position is None else position.decode().split()[0]
        entries = await read_entries(self._store, keys, after=after, count=ROUND_ENTRIES)
        if not entries:
            return recorded, 0
        changes: dict[Place, _Change] = {}
        fillable, reviewable = Fillable(), Reviewable()
        for entry in entries:
            for operation in entry.operations:
                _note(operation, known, changes)
                fillable.note(operation)
                reviewable.note(operation)
        recorded += await fillable.fill(self._fill)
        recorded += await reviewable.review(self._review)
        for place, change in changes.items():
            settled = self._settle(keys, place, change, known.get(place, 0))
            recorded += await self._or_leave(place, settled, how=change.how)
        await self._store.read([("HSET", keys.readers, READER, reader_place(entries[-1]))])
        return recorded, len(entries)

    async def _fill(self, merchant: str, location: str, sku: str) -> int:
        place = (merchant, location, sku)
        return await self._or_leave(place, self._inventory.fill(*place))

    async def _review(self, merchant: str, location: str, sku: str) -> int:
        place = (merchant, location, sku)

        async def told() -> int:
            return (await self._supplies.review(*place)).told

        return await self._or_leave(place, told())

    async def _or_leave(self, place: Place, work: Awaitable[int], *, how: str = "") -> int:
        """Do something for a row; one with a damaged key is left, and tried again later."""
        try:
            return await work
        except StoreFault as fault:
            if fault.is_of_server:
                raise
            merchant, location, sku = place
            log.error(
                "a row waits", merchant=merchant, location=location, sku=sku, error=str(fault)
            )
            left = self._left[self._shortfalls.keys_of(merchant, location).partition]
            if place in left or len(left) < MAX_LEFT:
                left[place] = how or left.get(place, "")
            return 0

    async def _look_again(self, keys: PartitionKeys, known: dict[Place, int]) -> int:
        """See to the rows that were left; return how many operations were put on record."""
        left, self._left[keys.partition] = self._left[keys.partition], {}
        recorded = 0
        try:
            for place, how in left.items():
                recorded += await self._fill(*place) + await self._review(*place)
                if how:
                    settled = self._settle_anew(keys, place, how, known.get(place, 0))
                    recorded += await self._or_leave(place, settled, how=how)
        except HoldfastError:
            self._left[keys.partition] |= left
            raise
        return recorded

    async def _endangered(self, place: Place, units: int) -> list[Endangered]:
        """Name whose units are missing; nobody where one of the location's cannot be read."""
        try:
            return await self._shortfalls.endangered(place, units)
        except StoreFault as fault:
            if fault.is_of_server:
                raise
            merchant, location, sku = place
            log.error(
                "a shortfall names nobody",
                merchant=merchant,
                location=location,
                sku=sku,
                error=str(fault),
            )
            return []

    async def _settle_anew(self, keys: PartitionKeys, place: Place, how: str, known: int) -> bool:
        (row,) = await self._inventory.rows(place[0], [(place[1], place[2])])
        units = 0 if row is None else row.shortfall
        return await self._settle(keys, place, _Change(units, how), known)

    async def _settle(self, keys: PartitionKeys, place: Place, change: _Change, known: int) -> bool:
        if change.units == known:
            return False
        endangered: list[Endangered] = []
        if change.units > known:
            policy = await self._policies.of(place[0], place[1])
            if policy.on_shortfall is OnShortfall.RELEASE_NEWEST:
                await self._release_newest(place)
            (row,) = await self._inventory.rows(place[0], [(place[1], place[2])])
            if row is not None and row.shortfall:
                endangered = await self._endangered(place, row.shortfall)
        act = "open" if change.units else "close"
        command = Command(
            (keys.stock(*place), keys.shortfalls),
            (
                digest("shortfall", *place),
                *place[:2],
                ACTOR,
                place[2],
                act,
                change.how,
                [(one.reservation, one.missing, one.state) for one in endangered[:MAX_ENDANGERED]],
            ),
        )
        reply = await self._dispatch.run("shortfall", keys.partition, command)
        code = Outcome(reply[0])
        if code not in (Outcome.OK, Outcome.REPLAYED):
            raise refusal(reply)
        if code is Outcome.OK:
            log.warning(
                "a shortfall" if reply[2] else "a shortfall is over",
                merchant=place[0],
                location=place[1],
                sku=place[2],
                units=reply[2],
                how=change.how,
                endangered=len(endangered),
            )
        return code is Outcome.OK

    async def _release_newest(self, place: Place) -> None:
        """Release holds, the newest first, until what is promised is there; never an order."""
        merchant, location, sku = place
        (row,) = await self._inventory.rows(merchant, [(location, sku)])
        if row is None or row.shortfall == 0:
            return
        for one in await self._shortfalls.endangered(place, row.shortfall):
            if one.state is not ReservationState.HELD:
                break
            try:
                await self._inventory.release(
                    merchant, one.reservation, reason=f"shortfall of {sku}", actor=ACTOR
                )
            except ReservationEnded:
                continue


def _in_danger(reservations: Sequence[Reservation], sku: str) -> list[Reservation]:
    """Return those that hold the SKU: holds, then orders, each the newest first."""
    holding = [one for one in reservations if any(line.sku == sku for line in one.lines)]
    # They come oldest first, and reversing keeps the order within one moment.
    holding.reverse()
    return sorted(holding, key=lambda one: one.state is not ReservationState.HELD)


def _note(operation: Operation, known: dict[Place, int], changes: dict[Place, _Change]) -> None:
    for row in operation.rows:
        place = (operation.merchant, operation.location, row.sku)
        units = max(0, row.levels.reserved - row.levels.on_hand)
        before = changes[place].units if place in changes else known.get(place, 0)
        if units == before and place not in changes:
            continue
        if place not in changes:
            changes[place] = _Change(units, _how(operation))
        elif units != before:
            changes[place].units, changes[place].how = units, _how(operation)


def _how(operation: Operation) -> str:
    """Say what an operation is, as the cause or the end of a shortfall."""
    if operation.kind in MOVEMENTS:
        return str(operation.detail[0])
    if operation.kind is OperationKind.COMMIT:
        picked = dict(operation.detail[2])
        held = {row.sku: -row.deltas.reserved for row in operation.rows}
        return "commit" if picked == held else "short_pick"
    return operation.kind.value
