"""One merchant's shop on a real store, as the tests of the engine drive it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from engine.inventory import Inventory
from engine.keys import PartitionKeys, partition_of
from engine.model import (
    Configured,
    Line,
    Moved,
    Movement,
    MovementType,
    ReservationResult,
    Row,
    Terms,
)
from engine.outlook import Supply
from engine.store import Client, StoreSettings, close_quietly, connect
from engine.supplies import Supplies, SupplyChanged
from tests.invariants import assert_invariants

LOCATION = "high street"
ACTOR = "test"


class Shop:
    """An open engine, a plain client beside it, and a merchant of its own."""

    def __init__(self, inventory: Inventory, client: Client, merchant: str) -> None:
        """Use `open_shop`."""
        self.inventory = inventory
        self.client = client
        self.merchant = merchant

    async def receive(self, sku: str, quantity: int, *, location: str = LOCATION) -> Moved:
        """Book an arrival under a new key."""
        return await self.move(MovementType.RECEIVE, sku, quantity, location=location)

    async def move(
        self,
        kind: MovementType,
        sku: str,
        quantity: int,
        *,
        key: str = "",
        location: str = LOCATION,
        reason: str = "",
        expected_version: int | None = None,
        may_overdraw: bool = False,
        supply: str = "",
    ) -> Moved:
        """Book a movement, under a new key unless one is given."""
        movement = Movement(
            key=key or new_key(),
            location=location,
            type=kind,
            sku=sku,
            quantity=quantity,
            reason=reason or ("found" if kind is MovementType.ADJUST else ""),
            expected_version=expected_version,
            may_overdraw=may_overdraw,
            supply=supply,
        )
        return await self.inventory.move(self.merchant, movement, actor=ACTOR)

    async def reserve(
        self,
        lines: Sequence[tuple[str, int]],
        *,
        key: str = "",
        location: str = LOCATION,
        ttl_ms: int = 900_000,
        order_ref: str = "",
        partial: bool = False,
        **options: Any,
    ) -> ReservationResult:
        """Hold a cart, under a new key unless one is given."""
        return await self.inventory.reserve(
            self.merchant,
            location,
            [Line(sku, quantity) for sku, quantity in lines],
            key=key or new_key(),
            ttl_ms=ttl_ms,
            order_ref=order_ref,
            partial=partial,
            actor=ACTOR,
            **options,
        )

    async def set_terms(
        self,
        sku: str,
        terms: Terms,
        *,
        location: str = LOCATION,
        key: str = "",
        expected_version: int | None = None,
    ) -> Configured:
        """Set a row's terms, at the version that it is at unless one is given."""
        if expected_version is None:
            (row,) = await self.inventory.rows(self.merchant, [(location, sku)])
            expected_version = 0 if row is None else row.version
        return await self.inventory.set_terms(
            self.merchant,
            location,
            sku,
            terms,
            key=key or new_key(),
            expected_version=expected_version,
            actor=ACTOR,
        )

    async def expect(
        self,
        sku: str,
        supply: str,
        expected_on: str,
        quantity: int,
        *,
        key: str = "",
        location: str = LOCATION,
    ) -> SupplyChanged:
        """Say what is to come with a supply, and when."""
        return await Supplies(self.inventory).expect(
            self.merchant,
            location,
            sku,
            supply,
            Supply(expected_on, quantity),
            key=key or new_key(),
            actor=ACTOR,
        )

    async def cancel_supply(self, sku: str, supply: str, *, key: str = "") -> SupplyChanged:
        """Say that nothing more comes with a supply."""
        return await Supplies(self.inventory).cancel(
            self.merchant, LOCATION, sku, supply, key=key or new_key(), actor=ACTOR
        )

    async def arrive(self, sku: str, supply: str, quantity: int) -> Moved:
        """Book what came with a supply."""
        return await self.move(MovementType.RECEIVE, sku, quantity, supply=supply)

    async def commit(
        self, reservation: str, picks: Sequence[tuple[str, int]] = ()
    ) -> ReservationResult:
        """Commit whole, or only `picks`."""
        lines = [Line(sku, quantity) for sku, quantity in picks]
        return await self.inventory.commit(self.merchant, reservation, picks=lines, actor=ACTOR)

    async def release(self, reservation: str) -> ReservationResult:
        """Give a reservation back."""
        return await self.inventory.release(self.merchant, reservation, actor=ACTOR)

    async def row(self, sku: str, *, location: str = LOCATION) -> Row:
        """Read a row."""
        return await self.inventory.row(self.merchant, location, sku)

    def keys(self, location: str = LOCATION) -> PartitionKeys:
        """Return the keys of a location's partition."""
        partition = partition_of(self.merchant, location, self.inventory.partitions)
        return self.inventory.keys[partition]

    async def set_clock(self, clock_ms: int, *, location: str = LOCATION) -> None:
        """Put a partition's high-water mark ahead, so that its clock stands at just that time."""
        await self.client.execute_command(
            "HSET", self.keys(location).meta, "clock_ms", str(clock_ms)
        )

    async def clock_ms(self, *, location: str = LOCATION) -> int:
        """Return a partition's high-water mark; 0 where it has none yet."""
        return int(
            await self.client.execute_command("HGET", self.keys(location).meta, "clock_ms") or 0
        )

    async def audit(self) -> None:
        """Check every invariant on what is this merchant's."""
        await assert_invariants(
            self.client, partitions=self.inventory.partitions, merchant=self.merchant
        )


@asynccontextmanager
async def open_shop(settings: StoreSettings, merchant: str = "") -> AsyncIterator[Shop]:
    """Open a shop on a store that is set up; a merchant of its own unless one is given."""
    inventory = await Inventory.open(settings)
    client = connect(settings)
    try:
        yield Shop(inventory, client, merchant or f"m-{uuid4().hex[:12]}")
    finally:
        await close_quietly(client)
        await inventory.close()


def new_key() -> str:
    """Return an idempotency key that nobody used."""
    return uuid4().hex
