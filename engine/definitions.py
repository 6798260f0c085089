"""What a merchant says of its SKUs as a whole: what stands for what, and what kits are made of.

Definitions are the merchant's and not a location's, so they live in the partition that its empty
location falls into, and that partition's ledger tells of each change. They are few and change
seldom: a process reads all of a merchant's at once and goes by them for CACHE_SECONDS, after which
it asks whether they changed.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from time import monotonic
from typing import Final, Generic, TypeVar

import msgspec

from engine.dispatch import Command, Dispatcher
from engine.keys import PartitionKeys, digest, partition_of
from engine.limits import DEFAULT_PAGE, MAX_BATCH_DEFINITIONS, MAX_DEFINITIONS
from engine.model import Page
from engine.outcomes import (
    LimitExceeded,
    Outcome,
    OutcomeUnknown,
    StoreFault,
    StoreUnavailable,
)
from engine.refusals import refusal
from engine.store import pairs
from engine.validation import check_batch, check_id, check_page

CACHE_SECONDS: Final = 1.0
"""How long a process goes by definitions that were changed elsewhere."""

READING_SECONDS: Final = 60.0
"""How old what is known may be beyond that where it decides of an answer and of no promise."""

MAX_CACHED_SKUS: Final = 100_000
"""SKUs whose definitions a process remembers, of all merchants together: some 50 MB."""

MAX_CACHED_MERCHANTS: Final = 10_000

MAX_ATTEMPTS: Final = 10
"""How often a change is checked anew because someone else changed the definitions meanwhile."""

Definition = TypeVar("Definition", bound=msgspec.Struct)
Known = TypeVar("Known")


class What(StrEnum):
    """What is defined."""

    SUBSTITUTES = "substitutes"
    KITS = "kits"


def definitions_key(keys: PartitionKeys, what: str, merchant: str) -> str:
    """Return the key of a merchant's definitions, `keys` being those of its empty location."""
    if what == What.SUBSTITUTES:
        return keys.substitutes(merchant)
    return keys.kits(merchant)


class _Cached(msgspec.Struct, Generic[Known]):
    revision: int
    known: Known
    skus: int
    until: float


class Definitions(Generic[Definition, Known]):
    """One kind of definitions of all merchants.

    `check` raises InvalidCommand where a merchant's definitions, taken together, make no sense; it
    is told which SKUs are new. `arrange` makes of them what a reserve looks things up in. `stamp`
    writes the revision that says it into a definition, where that is kept.
    """

    def __init__(
        self,
        what: What,
        form: type[Definition],
        dispatcher: Dispatcher,
        keys: Sequence[PartitionKeys],
        *,
        check: Callable[[Mapping[str, Definition], Sequence[str]], None],
        arrange: Callable[[Mapping[str, Definition]], Known],
        stamp: Callable[[Definition, int], Definition] = lambda definition, _: definition,
    ) -> None:
        """Remember nothing yet."""
        self._what = what
        self._decode = msgspec.json.Decoder(form).decode
        self._dispatcher = dispatcher
        self._keys = keys
        self._check = check
        self._arrange = arrange
        self._stamp = stamp
        self._cached: OrderedDict[str, _Cached[Known]] = OrderedDict()
        self._cached_skus = 0
        self._loads: dict[str, asyncio.Task[Known]] = {}

    async def known(self, merchant: str) -> Known:
        """Return a merchant's definitions, arranged, at most CACHE_SECONDS old."""
        cached = self._cached.get(merchant)
        if cached is not None and cached.until > monotonic():
            return cached.known
        # Whoever goes away must not take it from the others who wait for it.
        return await asyncio.shield(self._loading(merchant))

    def _loading(self, merchant: str) -> "asyncio.Task[Known]":
        """Return the read of a merchant's definitions that is under way; begin it if none is."""
        task = self._loads.get(merchant)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._load(merchant))
            self._loads[merchant] = task
            task.add_done_callback(lambda done: self._loaded(merchant, done))
        return task

    def _loaded(self, merchant: str, task: "asyncio.Task[Known]") -> None:
        del self._loads[merchant]
        if not task.cancelled():
            # Whoever waits gets it raised; where nobody does, the next who asks tries again.
            task.exception()

    async def _load(self, merchant: str) -> Known:
        cached, until = self._cached.get(merchant), monotonic() + CACHE_SECONDS
        if cached is not None:
            revision = await self._dispatcher.read("HGET", self._key(merchant), "")
            if int(revision or 0) == cached.revision:
                cached.until = until
                return cached.known
        revision, definitions = await self.read_all(merchant)
        fresh = _Cached(revision, self._arrange(definitions), len(definitions), until)
        self._keep(merchant, fresh)
        return fresh.known

    async def known_for_reading(self, merchant: str) -> Known:
        """Return a merchant's definitions for an answer that promises nothing.

        What is known already is taken at once, up to READING_SECONDS old, and asked for anew beside
        it; where the store is away it must do.
        """
        cached = self._cached.get(merchant)
        if cached is None or cached.until + READING_SECONDS < monotonic():
            try:
                return await self.known(merchant)
            except StoreUnavailable:
                return self._arrange({}) if cached is None else cached.known
        if cached.until <= monotonic():
            self._loading(merchant)
        return cached.known

    def known_now(self, merchant: str) -> Known | None:
        """Return what `known` would if it need not ask the store; else None."""
        cached = self._cached.get(merchant)
        return None if cached is None or cached.until <= monotonic() else cached.known

    async def read_all(self, merchant: str) -> tuple[int, dict[str, Definition]]:
        """Read all of a merchant's definitions by their SKU, and their revision (0: none ever)."""
        check_id("merchant", merchant)
        fields = await self._dispatcher.read("HGETALL", self._key(merchant))
        revision, definitions = 0, {}
        for name, text in pairs(fields):
            if name == b"":
                revision = int(text)
            else:
                definitions[name[1:].decode()] = self._definition(text)
        return revision, dict(sorted(definitions.items()))

    async def read(self, merchant: str, sku: str) -> Definition | None:
        """Read one definition; None where there is none."""
        check_id("merchant", merchant)
        check_id("sku", sku)
        text = await self._dispatcher.read("HGET", self._key(merchant), f"s{sku}")
        return None if text is None else self._definition(text)

    async def read_some(
        self, merchant: str, skus: Sequence[str]
    ) -> tuple[int, dict[str, Definition]]:
        """Read the definitions of those SKUs that have one, and the merchant's revision."""
        check_id("merchant", merchant)
        names = [f"s{sku}" for sku in skus]
        revision, *texts = await self._dispatcher.read("HMGET", self._key(merchant), "", *names)
        found = {
            sku: self._definition(text)
            for sku, text in zip(skus, texts, strict=True)
            if text is not None
        }
        return int(revision or 0), found

    async def list(
        self, merchant: str, *, after: str | None = None, limit: int = DEFAULT_PAGE
    ) -> Page[tuple[str, Definition]]:
        """List definitions by SKU, from past `after`."""
        check_page(limit)
        _, definitions = await self.read_all(merchant)
        wanted = [pair for pair in definitions.items() if after is None or pair[0] > after]
        page = wanted[:limit]
        return Page(tuple(page), page[-1][0] if len(wanted) > limit else None)

    async def write(
        self, merchant: str, changes: Mapping[str, Definition | None], *, actor: str
    ) -> None:
        """Say these, and no longer those that are None: all of them, or none where one is refused.

        Raises InvalidCommand and LimitExceeded. What is said already is not said again, so a
        repetition changes nothing.
        """
        check_id("merchant", merchant)
        check_batch(self._what, len(changes), MAX_BATCH_DEFINITIONS)
        for sku in changes:
            check_id("sku", sku)
        for _ in range(MAX_ATTEMPTS):
            revision, definitions = await self.read_all(merchant)
            new = {
                sku: one for sku, one in changes.items() if self._differ(definitions.get(sku), one)
            }
            if not new:
                return
            for sku, definition in new.items():
                if definition is None:
                    del definitions[sku]
                else:
                    definitions[sku] = definition
            if len(definitions) > MAX_DEFINITIONS:
                raise LimitExceeded(self._what, most=MAX_DEFINITIONS)
            self._check(definitions, [sku for sku, one in new.items() if one is not None])
            if await self._write(merchant, revision, new, actor):
                return
        raise OutcomeUnknown()

    async def _write(
        self,
        merchant: str,
        revision: int,
        changes: Mapping[str, Definition | None],
        actor: str,
    ) -> bool:
        """Say whether they were written, which they are not where the revision is another."""
        keys = self._partition(merchant)
        texts = [
            (
                sku,
                "" if one is None else msgspec.json.encode(self._stamp(one, revision + 1)).decode(),
            )
            for sku, one in changes.items()
        ]
        operation = digest("define", self._what, merchant, str(revision + 1))
        command = Command(
            (self._key(merchant),),
            (operation, merchant, actor, str(self._what), revision, texts),
            merchant,
        )
        reply = await self._dispatcher.run("define", keys.partition, command)
        self._forget(merchant)
        code = Outcome(reply[0])
        if code is Outcome.VERSION_CONFLICT:
            return False
        if code is not Outcome.OK:
            raise refusal(reply)
        return True

    def _differ(self, found: Definition | None, said: Definition | None) -> bool:
        """Say whether two definitions are not the same, whichever revisions say them."""
        if found is None or said is None:
            return found is not said
        return self._stamp(found, 0) != self._stamp(said, 0)

    def _keep(self, merchant: str, fresh: _Cached[Known]) -> None:
        self._forget(merchant)
        self._cached[merchant] = fresh
        self._cached_skus += fresh.skus
        while len(self._cached) > MAX_CACHED_MERCHANTS or self._cached_skus > MAX_CACHED_SKUS:
            _, oldest = self._cached.popitem(last=False)
            self._cached_skus -= oldest.skus

    def _forget(self, merchant: str) -> None:
        forgotten = self._cached.pop(merchant, None)
        if forgotten is not None:
            self._cached_skus -= forgotten.skus

    def _definition(self, text: bytes) -> Definition:
        try:
            return self._decode(text)
        except msgspec.DecodeError as error:
            raise StoreFault("HGET", f"a definition in {self._what} is damaged: {error}") from error

    def _partition(self, merchant: str) -> PartitionKeys:
        return self._keys[partition_of(merchant, "", len(self._keys))]

    def _key(self, merchant: str) -> str:
        return definitions_key(self._partition(merchant), self._what, merchant)
