"""The gateway's hold on the engine: opened when the store is there, however late that is.

A gateway that came up before its store, or that outlives a restart of it, answers 503 meanwhile and
heals by itself; so nothing here ends the process.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from engine import metrics
from engine.access import ApiKey, KeyCache, is_session, parse_secret
from engine.boot import StoreFacts, StoreRefused, check_store
from engine.feeds import Feeds
from engine.figures import Figures, Gatherer
from engine.history import History
from engine.inventory import Inventory
from engine.offline import FreshnessView
from engine.orders import Orders
from engine.outcomes import HistoryUnavailable, IndexUnavailable, StoreUnavailable
from engine.relocation import Relocation
from engine.store import Store, StoreSettings
from engine.sweeper import sweep_warnings
from engine.upkeep import read_upkeep
from gateway.crowd import Crowd
from gateway.egress import Egress
from gateway.fanout import Fanout
from gateway.listening import Listening
from gateway.metrics import SUBSCRIBERS, UNDER_WAY
from gateway.rate_limits import RateLimits, SignIns
from gateway.wire import Health, Readiness
from projection.database import Database, open_database

FIRST_BACKOFF_SECONDS: Final = 0.1
MAX_BACKOFF_SECONDS: Final = 2.0
"""Between two attempts to open the store. There is no last attempt: the process has nothing else to
do, and whoever runs it sees /readyz."""

READY_SECONDS: Final = 1.0
"""How long /readyz waits for the store's sign of life."""

OpenHistory = Callable[[Inventory], History]
"""Makes what answers questions to the ledger of a store; it must not wait for anything."""

_NO_ANSWER: Final = "the store does not answer"

log = structlog.get_logger("gateway.service")


class Service:
    """Opens the engine in the background, and gives it to the handlers once it is open."""

    def __init__(
        self,
        settings: StoreSettings,
        *,
        unsafe_durability: bool = False,
        partitions: int | None = None,
        open_history: OpenHistory | None = None,
        workers: int = 1,
        webhook_loopback: bool = False,
        index_url: str = "",
    ) -> None:
        """Say how to reach the store; `start` begins, and the next two are of `check_store`.

        Whoever starts the gateway hands in `open_history`: the archive is not the gateway's own.
        `workers` is how many processes share the load, and so the rate limits. With
        `webhook_loopback` webhooks may name this machine; `index_url` is where the index is.
        """
        self.rate_limits = RateLimits(workers=workers)
        self.crowd = Crowd()
        self.sign_ins = SignIns()
        self.webhook_loopback = webhook_loopback
        self._index_url = index_url
        self._index: Database | None = None
        self._index_lock = asyncio.Lock()
        self._egress: Egress | None = None
        self._settings = settings
        self._unsafe_durability = unsafe_durability
        self._partitions = partitions
        self._open_history = open_history
        self._inventory: Inventory | None = None
        self._fanout: Fanout | None = None
        self._listening: Listening | None = None
        self._history: History | None = None
        self._feeds: Feeds | None = None
        self._freshness: FreshnessView | None = None
        self._orders: Orders | None = None
        self._keys: KeyCache | None = None
        self._facts: StoreFacts | None = None
        self._reasons = ["the store was not asked yet"]
        self._opening: asyncio.Task[None] | None = None
        self._counting: asyncio.Task[None] | None = None
        self._gatherer: Gatherer | None = None

    async def start(self) -> None:
        """Begin to open the store and return at once."""
        loop = asyncio.get_running_loop()
        self._opening = loop.create_task(self._open())
        self._counting = loop.create_task(self._count())

    async def stop(self) -> None:
        """Stop opening, and close what was opened."""
        for task in (self._opening, self._counting):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        if self._gatherer is not None:
            await self._gatherer.close()
            self._gatherer = None
        if self._index is not None:
            await self._index.close()
            self._index = None
        if self._egress is not None:
            await self._egress.close()
            self._egress = None
        if self._fanout is not None:
            await self._fanout.stop()
            self._fanout = None
            self._listening = None
        if self._inventory is not None:
            await self._inventory.store.close()
            self._inventory = None
            self._history = None
            self._feeds = None
            self._freshness = None
            self._orders = None
            self._keys = None

    @property
    def inventory(self) -> Inventory:
        """The engine. Raises StoreUnavailable while the store was not opened yet."""
        if self._inventory is None:
            raise StoreUnavailable()
        return self._inventory

    @property
    def feeds(self) -> Feeds:
        """The sources of events. Raises StoreUnavailable while the store was not opened yet."""
        if self._feeds is None:
            self._feeds = Feeds(self.inventory)
        return self._feeds

    @property
    def freshness(self) -> FreshnessView:
        """How locations are. Raises StoreUnavailable while the store was not opened yet."""
        if self._freshness is None:
            self._freshness = FreshnessView(self.inventory)
        return self._freshness

    @property
    def orders(self) -> Orders:
        """Orders that span locations. Raises StoreUnavailable while the store was not opened."""
        if self._orders is None:
            self._orders = Orders(self.inventory)
        return self._orders

    @property
    def relocation(self) -> Relocation:
        """Moves of holds to other locations. Raises StoreUnavailable while it was not opened."""
        return Relocation(self.inventory)

    @property
    def fanout(self) -> Fanout:
        """The tail of the ledger, and the view that it keeps. Raises StoreUnavailable."""
        if self._fanout is None:
            raise StoreUnavailable()
        return self._fanout

    @property
    def listening(self) -> Listening:
        """How subscribers begin. Raises StoreUnavailable."""
        if self._listening is None:
            raise StoreUnavailable()
        return self._listening

    async def say_goodbye(self) -> None:
        """End every stream, so that the process can end; requests under way go on."""
        if self._fanout is not None:
            await self._fanout.say_goodbye()

    @property
    def history(self) -> History:
        """What answers questions to the ledger. Raises StoreUnavailable and HistoryUnavailable."""
        if self._inventory is None:
            raise StoreUnavailable()
        if self._open_history is None:
            raise HistoryUnavailable("this gateway was started without the ledger's archive")
        if self._history is None:
            self._history = self._open_history(self._inventory)
        return self._history

    async def figures(self) -> Figures:
        """Return how the store is, all merchants together. Raises StoreUnavailable."""
        if self._gatherer is None:
            self._gatherer = Gatherer(self.inventory)
        return await self._gatherer.figures()

    @property
    def egress(self) -> Egress:
        """What sends test events to the endpoints of webhooks."""
        if self._egress is None:
            self._egress = Egress(loopback=self.webhook_loopback)
        return self._egress

    async def index(self) -> Database:
        """Return the availability index. Raises IndexUnavailable."""
        if not self._index_url:
            raise IndexUnavailable("this gateway was started without an index")
        async with self._index_lock:
            if self._index is None:
                opened = open_database(self._index_url)
                try:
                    await opened.prepare()
                except IndexUnavailable:
                    await opened.close()
                    raise
                self._index = opened
        return self._index

    async def authenticate(self, secret: str) -> ApiKey | None:
        """Return the key of a secret or of a session's token. Raises StoreUnavailable."""
        if self._keys is None:
            if parse_secret(secret) is None and not is_session(secret):
                return None
            raise StoreUnavailable()
        return await self._keys.authenticate(secret)

    def forget(self, credential: str) -> None:
        """Have the store asked the next time that this secret or token comes."""
        if self._keys is not None:
            self._keys.forget(credential)

    async def still_admits(self, credential: str, *, merchant: str) -> bool:
        """Say whether the key of an open stream may go on; where the store is away it may."""
        try:
            key = await self.authenticate(credential)
        except StoreUnavailable:
            return True
        return key is not None and key.merchant in (None, merchant)

    @property
    def unsafe(self) -> list[str]:
        """In what way the store may lose what it acknowledged; empty where in none."""
        return [] if self._facts is None else [str(warning) for warning in self._facts.warnings]

    async def readiness(self) -> Readiness:
        """Ask the store for a sign of life, and say how things are."""
        inventory, facts = self._inventory, self._facts
        if inventory is None or facts is None:
            return Readiness(Health.NOT_READY, list(self._reasons), [], None)
        servers = sorted({f"{node.kind} {node.version}" for node in facts.nodes})
        warnings = [str(warning) for warning in facts.warnings]
        reasons = []
        try:
            async with asyncio.timeout(READY_SECONDS):
                await inventory.store.ping()
                warnings += await sweep_warnings(inventory.store)
                upkeep = await read_upkeep(inventory.store)
            if upkeep is not None:
                # What goes wrong behind the counter does not keep a customer from buying.
                warnings += [f"{alarm.code}: {alarm.text}" for alarm in upkeep.alarms]
        except (StoreUnavailable, TimeoutError):
            reasons.append(_NO_ANSWER)
        status = Health.NOT_READY if reasons else Health.READY
        return Readiness(status, reasons, warnings, ", ".join(servers))

    async def _count(self) -> None:
        """Hand on what was counted, and say what this process has now, once a second."""
        while True:
            UNDER_WAY.set(self.crowd.under_way)
            if self._inventory is not None:
                metrics.QUEUED_COMMANDS.set(self._inventory.dispatcher.waiting)
            if self._fanout is not None:
                SUBSCRIBERS.set(self._fanout.subscribers)
            metrics.settle()
            await asyncio.sleep(metrics.SETTLE_SECONDS)

    async def _open(self) -> None:
        backoff_seconds = FIRST_BACKOFF_SECONDS
        while not await self._open_once():
            await asyncio.sleep(backoff_seconds)
            backoff_seconds = min(MAX_BACKOFF_SECONDS, 2 * backoff_seconds)

    async def _open_once(self) -> bool:
        store = await Store.open(self._settings)
        opened = False
        try:
            facts = await check_store(
                store.client,
                unsafe_durability=self._unsafe_durability,
                partitions=self._partitions,
            )
            self._inventory = Inventory(store, partitions=facts.partitions)
            self._fanout = Fanout(self._inventory, self._settings)
            self._listening = Listening(self._fanout, self._inventory)
            self._keys = KeyCache(store.client)
            self._facts = facts
            opened = True
        except StoreUnavailable as error:
            # The driver's words may name an address, which /readyz tells nobody.
            self._explain([_NO_ANSWER], error)
        except StoreRefused as error:
            self._explain([str(problem) for problem in error.problems], error)
        finally:
            if not opened:
                await store.close()
        if opened:
            for warning in facts.warnings:
                log.warning("the store is not safe", problem=str(warning))
            log.info("the store is open", partitions=facts.partitions)
        return opened

    def _explain(self, reasons: list[str], error: Exception) -> None:
        """Keep why the store is not open, and log it once."""
        if reasons != self._reasons:
            self._reasons = reasons
            log.warning("the store cannot be opened, trying again", error=str(error))
