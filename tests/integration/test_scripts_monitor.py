"""MONITOR on a real server while every verb runs: no script touches a key that it did not declare.

On a cluster an undeclared key can be applied in part while its slot migrates.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import msgspec
import pytest

from engine.feeds import EventType, FeedEvent, Feeds
from engine.kits import check_kit
from engine.model import BuyerCap, CapScope, Line, MovementType, Pool, ProposalDecision, Terms
from engine.offline import OfflineKeeper
from engine.order_records import WantedLine
from engine.orders import Orders
from engine.outcomes import BuyerCapExceeded, InsufficientStock
from engine.scripts import VERBS, script
from engine.shortfalls import ShortfallKeeper
from engine.store import close_quietly, connect
from engine.substitutes import Alternative
from engine.wishes import Substitution, Wish
from gateway.feeds import read_event
from tests.shop import ACTOR, LOCATION, Shop, new_key, open_shop
from tests.stores import MakeStore, RealStore, set_up

SPLITTING: Final = ("split", "part")
"""Verbs of rows that are spread over partitions, which take a store that has some."""

READ_SECONDS: Final = 10.0
KEYLESS: Final = frozenset(("TIME",))
FIRST_IS_KEY: Final = frozenset(
    [
        "APPEND",
        "DEL",
        "EXISTS",
        "GET",
        "GETRANGE",
        "HDEL",
        "HEXISTS",
        "HGET",
        "HGETALL",
        "HLEN",
        "HMGET",
        "HSET",
        "PEXPIRE",
        "SET",
        "SETRANGE",
        "STRLEN",
        "TYPE",
        "XADD",
        "XLEN",
        "XRANGE",
        "ZADD",
        "ZCARD",
        "ZRANGEBYSCORE",
        "ZREM",
        "ZSCORE",
    ]
)
"""Commands of one key, which comes first. Another one in a script fails the test: say its keys."""

_LINE = re.compile(rb"[\d.]+ \[\d+ (?P<source>.*?)\] (?P<words>\".*\")", re.DOTALL)
_WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|.)", re.DOTALL)
_SINGLE = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}


@dataclass(slots=True)
class Call:
    """One script call: what it declared, and what the server saw it touch."""

    sha: str
    declared: frozenset[bytes]
    touched: set[bytes] = field(default_factory=set)
    unknown: set[bytes] = field(default_factory=set)

    @property
    def undeclared(self) -> set[bytes]:
        """Return the keys that it had no right to touch."""
        return self.touched - self.declared


def words(line: bytes) -> tuple[bytes, list[bytes]]:
    """Read a line of MONITOR: who called (b"lua" for a script), and the words of the command."""
    match = _LINE.fullmatch(line)
    assert match is not None, line
    return match["source"], [
        _ESCAPE.sub(_unescaped, word) for word in _WORD.findall(match["words"])
    ]


def _unescaped(match: re.Match[bytes]) -> bytes:
    code = match[1]
    if len(code) == 3:
        return bytes([int(code[1:], 16)])
    return _SINGLE.get(code, code)


def calls_of(lines: Sequence[bytes]) -> list[Call]:
    """Gather what each script call did; a script's commands follow its call."""
    calls: list[Call] = []
    for line in lines:
        source, command = words(line)
        name = command[0].upper().decode()
        if source != b"lua":
            if name in ("EVAL", "EVALSHA"):
                count = int(command[2])
                sha = command[1].decode() if name == "EVALSHA" else ""
                calls.append(Call(sha, frozenset(command[3 : 3 + count])))
        elif name in FIRST_IS_KEY:
            calls[-1].touched.add(command[1])
        elif name not in KEYLESS:
            calls[-1].unknown.add(command[0])
    return calls


class Watch:
    """What MONITOR told since the watch began."""

    def __init__(self, store: RealStore) -> None:
        """Use `watching`."""
        self._client = connect(store.tester)
        self.lines: list[bytes] = []

    async def calls(self, shop: Shop) -> list[Call]:
        """Read up to now and return the script calls so far."""
        end = uuid4().hex
        await shop.client.execute_command("ECHO", end)
        async with asyncio.timeout(READ_SECONDS):
            while not self.lines or end.encode() not in self.lines[-1]:
                self.lines.append(await self._connection.read_response())
        return calls_of(self.lines)

    async def begin(self) -> None:
        """Send MONITOR on a connection of its own."""
        pool: Any = self._client.connection_pool  # type: ignore[union-attr] # never a cluster's
        self._connection = await pool.get_connection()
        await self._connection.send_command("MONITOR")
        assert await self._connection.read_response() == b"OK"

    async def end(self) -> None:
        """Close the connection."""
        await self._connection.disconnect()
        await close_quietly(self._client)


@asynccontextmanager
async def watching(store: RealStore) -> AsyncIterator[Watch]:
    """Watch all that the server does."""
    watch = Watch(store)
    await watch.begin()
    try:
        yield watch
    finally:
        await watch.end()


async def backorders(shop: Shop) -> None:
    """Promise what is not there, and end it in every way."""
    await shop.expect("due", "po-1", "2026-12-07", 5)
    due = await shop.reserve([("due", 2)], by="2026-12-07")
    await shop.arrive("due", "po-1", 1)
    await shop.expect("due", "po-1", "2026-12-08", 4)
    await shop.release(due.reservation.id)
    await shop.set_terms("late", Terms(backorder_limit=20))
    pools = {"online": Pool(cap=9), "store": Pool(minimum=1)}
    await shop.set_terms("later", Terms(20, pools, BuyerCap(9, 60_000)))
    cart = [("late", 2), ("later", 1)]
    held = await asyncio.gather(*(shop.reserve(cart, buyer="ann") for _ in range(2)))
    short = await shop.reserve(cart, ttl_ms=1_000, buyer="bob")
    await shop.receive("late", 1)
    await shop.inventory.amend(
        shop.merchant, held[0].reservation.id, [Line("late", 3)], key=new_key(), actor=ACTOR
    )
    await shop.release(held[0].reservation.id)
    await shop.commit(held[1].reservation.id, [("late", 0)])
    everywhere = Terms(buyer_cap=BuyerCap(2, 60_000, CapScope.MERCHANT))
    await shop.receive("late", 9)
    await shop.set_terms("late", everywhere)
    claimed = await shop.reserve([("late", 1)], partial=True, buyer="a:{n}")
    with suppress(BuyerCapExceeded):
        await shop.reserve([("late", 3)], buyer="a:{n}")
    one = claimed.reservation
    await shop.inventory.claiming.look_after(shop.merchant, one.buyer, one.id)
    await shop.release(one.id)
    await shop.set_clock(short.reservation.expires_at_ms or 0)
    await shop.inventory.expire_due(shop.keys().partition)


async def run_every_verb(shop: Shop) -> None:
    """Bring each verb to each kind of answer, in groups too, with ids that need escaping."""
    inventory, merchant = shop.inventory, shop.merchant
    skus = ["tea", 'a "b"\\c', "кофе {1}:\r\n"]
    for sku in skus:
        await asyncio.gather(*(shop.receive(sku, 10) for _ in range(3)))
        await inventory.configure(
            merchant,
            LOCATION,
            sku,
            key=new_key(),
            safety_stock=1,
            expected_version=3,
            actor=ACTOR,
        )
    kit = check_kit("kit", [Line(sku, 1) for sku in skus])
    await inventory.kits.write(merchant, {"kit": kit}, actor=ACTOR)
    await backorders(shop)
    alternatives = (Alternative(sku="tea"),)
    proposal = Wish(
        sku="jam", quantity=1, substitutes=Substitution.APPROVE, alternatives=alternatives
    )
    for decision in ProposalDecision:
        proposed = await inventory.reserve(
            merchant, LOCATION, [proposal, Line("kit", 1)], key=new_key(), actor=ACTOR
        )
        await inventory.decide(merchant, proposed.reservation.id, decision, actor=ACTOR)
        await shop.release(proposed.reservation.id)
    cart = [(sku, 2) for sku in skus]
    held = await asyncio.gather(
        *(shop.reserve([*cart, ("tea", 1)], key=f"k{i // 2}") for i in range(10))
    )
    ids = [result.reservation.id for result in held[::2]]
    partial = await shop.reserve([("tea", 100)], partial=True)
    with pytest.raises(InsufficientStock):
        await shop.reserve([("tea", 1), ("jam", 1)])
    for _ in range(2):
        # The second time each is a replay or a refusal.
        await asyncio.gather(
            inventory.confirm(merchant, ids[0], order_ref="order", actor=ACTOR),
            inventory.extend(merchant, ids[1], key="k", ttl_ms=3_600_000, actor=ACTOR),
            inventory.amend(merchant, ids[2], [Line("tea", 2)], key="k", actor=ACTOR),
            shop.commit(ids[0]),
            shop.commit(ids[1], [("tea", 1)]),
            shop.release(ids[2]),
            return_exceptions=True,
        )
    orders = Orders(inventory)
    placed = await orders.place(merchant, [WantedLine("tea", 1)], key="k", actor=ACTOR)
    await orders.cancel(merchant, placed.order.id, actor=ACTOR)
    await shop.move(MovementType.SALE, "tea", 30)
    assert await ShortfallKeeper(inventory).round() > 0
    await shop.release(partial.reservation.id)
    await run_feeds(shop, skus)
    keeper = OfflineKeeper(inventory, Feeds(inventory))
    assert await keeper.round(now_ms=await shop.clock_ms() + 10**8) > 0
    await keeper.round()
    await shop.set_clock((held[-1].reservation.expires_at_ms or 0) + 1)
    assert (await inventory.expire_due(shop.keys().partition)).expired == 2


async def run_feeds(shop: Shop, skus: Sequence[str]) -> None:
    """Bring events to each kind of verdict, of a source that counts and of one that does not."""
    feeds, now_ms = Feeds(shop.inventory), await shop.clock_ms()
    for source, counts in (("till:{1}", True), ("depot", False)):
        events = [
            FeedEvent(
                event_id=f"e{number}",
                type=kind,
                sku=skus[number % len(skus)],
                quantity=1,
                reason="found",
                occurred_at_ms=now_ms - 1_000 * number,
                sequence=(number % 9 + 1) * counts,
            )
            for number, kind in enumerate([*list(EventType)[:-1]] * 3)
        ]
        now = await shop.clock_ms()
        beat = FeedEvent(event_id="beat", type=EventType.HEARTBEAT, occurred_at_ms=now)
        await feeds.take(shop.merchant, LOCATION, source, [beat], actor=ACTOR)
        late = msgspec.structs.replace(events[0], event_id="late", sku="new", sequence=30 * counts)
        late = msgspec.structs.replace(late, occurred_at_ms=now_ms - 80 * 3_600_000)
        later = msgspec.structs.replace(late, event_id="later", sequence=31 * counts)
        await feeds.take(shop.merchant, LOCATION, source, [*events, late, later], actor=ACTOR)
        await feeds.skip(shop.merchant, LOCATION, source, through=8, actor=ACTOR)
    aside = (await feeds.quarantined(shop.merchant, LOCATION)).items
    assert len(aside) == 4
    await feeds.retry(shop.merchant, LOCATION, aside[0].id, actor=ACTOR, read=read_event)
    await feeds.drop(shop.merchant, LOCATION, aside[1].id, actor=ACTOR)


async def test_no_script_touches_a_key_that_it_did_not_declare(
    own_shop: Shop, own_store: RealStore
) -> None:
    async with watching(own_store) as watch:
        await run_every_verb(own_shop)
        calls = await watch.calls(own_shop)
    names = {script(verb).sha: verb for verb in VERBS}
    seen = {names[call.sha] for call in calls if call.sha in names}
    assert seen == set(VERBS) - {"repair", *SPLITTING}
    for call in calls:
        assert not call.unknown, f"{call.sha}: which keys do {call.unknown} touch?"
        assert not call.undeclared, f"{names.get(call.sha)} touched {call.undeclared}"
    assert any(len(call.touched) > 8 for call in calls), "some calls carried several commands"
    await own_shop.audit()


async def test_no_script_of_a_split_row_does_either(make_store: MakeStore) -> None:
    store = make_store()
    await store.start()
    await set_up(store.settings, partitions=3)
    async with open_shop(store.settings) as shop, watching(store) as watch:
        name = (shop.merchant, LOCATION, 'a "b"\\c')
        await shop.receive(name[2], 10)
        await shop.inventory.splits.change(name, 2, actor=ACTOR)
        held = await asyncio.gather(*(shop.reserve([(name[2], 1)]) for _ in range(8)))
        await asyncio.gather(*(shop.commit(one.reservation.id) for one in held[:4]))
        await shop.release(held[4].reservation.id)
        await shop.move(MovementType.SALE, name[2], 5)
        await shop.inventory.splits.flush()
        calls = await watch.calls(shop)
    names = {script(verb).sha: verb for verb in VERBS}
    assert {names.get(call.sha) for call in calls} >= {*SPLITTING, "reserve", "commit", "move"}
    for call in calls:
        assert not call.unknown | call.undeclared, names.get(call.sha)


async def test_the_watch_would_notice_an_undeclared_key(
    own_shop: Shop, own_store: RealStore
) -> None:
    async with watching(own_store) as watch:
        await own_store.run(
            "EVAL", "return redis.call('SET', KEYS[1] .. ':more', 'x')", 1, 'tidy "key"\n'
        )
        await own_store.run("EVAL", "return redis.call('GETSET', KEYS[1], 'x')", 1, "key")
        calls = await watch.calls(own_shop)
    assert [call.undeclared for call in calls] == [{b'tidy "key"\n:more'}, set()]
    assert [call.unknown for call in calls] == [set(), {b"GETSET"}]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (rb'1.5 [0 lua] "GET" "a b"', (b"lua", [b"GET", b"a b"])),
        (rb'1.5 [0 unix:/s] "SET" "\xd0\"\\" "\r\n"', (b"unix:/s", [b"SET", b'\xd0"\\', b"\r\n"])),
    ],
)
def test_a_line_is_read_as_the_server_wrote_it(
    line: bytes, wanted: tuple[bytes, list[bytes]]
) -> None:
    assert words(line) == wanted
