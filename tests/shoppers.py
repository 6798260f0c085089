"""Who follows stock as a client of a stream does, straight on a gateway's fan-out."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from engine.events import EventType, StockData
from engine.inventory import Inventory
from engine.kits import kit_row
from engine.store import StoreSettings
from gateway.fanout import Fanout
from gateway.interests import interest_of
from gateway.listening import Anew, Beginning, Listening
from gateway.subscriptions import Subscription

Name = tuple[str, str]
"""(location, SKU)."""


class Heard(NamedTuple):
    """What was said of a row or of a kit."""

    version: int
    available: int


class Follows:
    """What one gateway process has for its streams, over an engine of its own."""

    def __init__(self, inventory: Inventory, settings: StoreSettings) -> None:
        """Follow nothing yet."""
        self.inventory = inventory
        self.fanout = Fanout(inventory, settings)
        self.listening = Listening(self.fanout, inventory)
        self.shoppers: list[Shopper] = []

    async def catch_up(self) -> None:
        """Wait until everything that was written by now was given out."""
        await self.fanout.catch_up(range(self.inventory.partitions))


@asynccontextmanager
async def following(settings: StoreSettings) -> AsyncIterator[Follows]:
    """Open an engine and what streams need of a gateway."""
    inventory = await Inventory.open(settings)
    made = Follows(inventory, settings)
    try:
        await made.fanout.ready()
        yield made
    finally:
        for shopper in made.shoppers:
            shopper.close()
        await made.fanout.stop()
        await inventory.close()


class Shopper:
    """Forgets on a reset, takes what is newer than what it has, and comes back where it stood."""

    def __init__(
        self, merchant: str, skus: Sequence[str], locations: Sequence[str] | None = None
    ) -> None:
        """Listen to nothing yet."""
        self.interest = interest_of(merchant, locations=locations, skus=skus, types=None)
        self.known: dict[Name, Heard] = {}
        self.told: dict[Name, list[Heard]] = {}
        """Every change that was news, in the order in which it came."""
        self.events: list[tuple[EventType, Name, Heard]] = []
        self.beginnings: list[Anew | None] = []
        self.position: str | None = None
        self._at: Follows | None = None
        self._subscription: Subscription | None = None
        self._newest: dict[Name, int] = {}

    @property
    def subscription(self) -> Subscription:
        """The open one."""
        assert self._subscription is not None
        return self._subscription

    @property
    def is_open(self) -> bool:
        """Whether it listens."""
        return self._subscription is not None

    async def open(self, gateway: Follows, *, snapshot: bool = True) -> None:
        """Listen, or go on at this gateway."""
        self._subscription, beginning = await gateway.listening.subscribe(
            self.interest, key_id="shopper", last_event_id=self.position, snapshot=snapshot
        )
        self._at, self._newest = gateway, {}
        gateway.shoppers.append(self)
        self._begin(beginning)

    def close(self) -> None:
        """Go away, perhaps in the middle of what is to be told."""
        if self._at is not None and self._subscription is not None:
            self._at.fanout.unsubscribe(self._subscription)
        self._subscription = None

    async def hear(self, most: int = 1_000) -> None:
        """Take what waits, as a stream does."""
        assert self._at is not None
        subscription = self.subscription
        assert subscription.cut_off is None
        if subscription.reset_because is not None:
            anew = Anew(subscription.reset_because)
            self._begin(await self._at.listening.begin(subscription, anew, snapshot=True))
        for told, position in subscription.take(most, self._at.fanout.edge):
            self.position = position
            data = told.event.data
            if isinstance(data, StockData):
                name, heard = (data.location, data.sku), Heard(data.version, data.available)
                self.events.append((told.event.type_name, name, heard))
                if told.event.type_name is EventType.STOCK_CHANGED:
                    self._take(name, heard)

    def _begin(self, beginning: Beginning) -> None:
        assert self._at is not None
        self.beginnings.append(beginning.anew)
        self.position = self.subscription.position(self._at.fanout.edge)
        if beginning.anew is not None:
            self._newest = {}
            self.known = {
                (row.location, row.sku): Heard(row.version, row.available)
                for row in beginning.rows or ()
            }

    def _take(self, name: Name, heard: Heard) -> None:
        # One connection never tells of anything twice, nor of what is older.
        assert heard.version > self._newest.get(name, -1), (name, heard, self._newest)
        self._newest[name] = heard.version
        known = self.known.get(name)
        if known is not None and heard.version <= known.version:
            assert heard.version < known.version or heard == known
            return
        self.known[name] = heard
        self.told.setdefault(name, []).append(heard)


async def what_a_read_says(
    inventory: Inventory, merchant: str, names: Sequence[Name]
) -> dict[Name, Heard | None]:
    """Return what a read of rows and kits answers, None where there is none."""
    _, kits = await inventory.kits.read_all(merchant)
    said: dict[Name, Heard | None] = {}
    for location, sku in names:
        kit = kits.get(sku)
        skus = [sku, *([] if kit is None else [one.sku for one in kit.components])]
        found = await inventory.rows(merchant, [(location, one) for one in skus])
        rows = dict(zip(skus, found, strict=True))
        row = rows[sku] if kit is None else kit_row(merchant, location, sku, kit, rows)
        said[location, sku] = None if row is None else Heard(row.version, row.available)
    return said
