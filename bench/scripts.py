"""The product's scripts alone: groups as the engine makes them, made before and sent pipelined.

What this figure has more than the engine's is what the engine's Python costs; what the bare script
has more than this is what a hold with its ledger entry costs the server.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from bench import servers
from bench.account import Books, check
from bench.figures import Conditions, Sample
from bench.load import LoadFailed
from bench.pipeline import packed, pipeline
from bench.shop import ACTOR, MERCHANT, MakeShop, Shop
from engine.inventory import Inventory
from engine.limits import MAX_GROUP_COMMANDS
from engine.outcomes import StoreUnavailable
from engine.scripts import Script, script
from engine.store import Store, StoreSettings

GROUPS: Final = 1_500
GROUPS_WHEN_QUICK: Final = 300
GROUPS_AHEAD: Final = 8


async def reserve(conditions: Conditions, make_shop: MakeShop) -> Sample:
    """Measure holds, in groups of 128, as fast as the server takes them."""
    shop = make_shop()
    async with servers.stocked_inventory(conditions, shop.rows) as inventory:
        groups = GROUPS_WHEN_QUICK if conditions.quick else GROUPS
        calls = await record_reserves(inventory, shop, groups * MAX_GROUP_COMMANDS)
        await inventory.store.client.execute_command("SCRIPT LOAD", script("reserve").text)
        began_at = time.perf_counter()
        await asyncio.to_thread(
            pipeline, inventory.store.settings, calls, replies_each=1, chunks_ahead=GROUPS_AHEAD
        )
        seconds = time.perf_counter() - began_at
        books = Books(shop)
        books.hold(range(groups * MAX_GROUP_COMMANDS))
        # A hold that was refused would show here: its reply was not looked at.
        await check(inventory, books)
        return Sample(
            value=books.live_holds / seconds, details={"holds_a_call": MAX_GROUP_COMMANDS}
        )


async def record_reserves(inventory: Inventory, shop: Shop, count: int) -> list[bytes]:
    """Return the calls that the engine would make for reserves 0 to `count` - 1, packed."""
    recorder = _Recorder(inventory.store.settings)
    recording = Inventory(recorder, partitions=inventory.partitions)
    for start in range(0, count, MAX_GROUP_COMMANDS):
        holds = [
            recording.reserve(
                MERCHANT,
                shop.cart(number).location,
                shop.cart(number).lines,
                key=shop.key(number),
                actor=ACTOR,
            )
            for number in range(start, start + MAX_GROUP_COMMANDS)
        ]
        for answer in await asyncio.gather(*holds, return_exceptions=True):
            if not isinstance(answer, StoreUnavailable):
                raise LoadFailed(f"a call could not be recorded: {answer!r}")
    return recorder.calls


class _Recorder(Store):
    """A store that keeps the calls to it, packed for the wire, and makes none."""

    def __init__(self, settings: StoreSettings) -> None:
        self.settings = settings
        self.calls: list[bytes] = []

    async def call(self, script: Script, keys: Sequence[str], *args: str | bytes | int) -> bytes:
        self.calls.append(packed("EVALSHA", script.sha, len(keys), *keys, *args))
        raise StoreUnavailable("it was only recorded")
