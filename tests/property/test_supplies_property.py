"""Promises by the day against a queue that is kept by hand, until the last supply has come.

A row is promised to whoever asks while its supplies are announced, moved, shrunk, cancelled and
come. Beside it stands who waits for how many units, in which order. From that alone it is foretold
what each asker may have and by which day, who gets what comes, and whose day cannot be kept. In the
end all supplies come on their days, and each promise that was not told to be late has been kept.
"""

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.keys import partition_of
from engine.model import Line, MovementType, Pool, Reservation, ReservationState, Row, Terms
from engine.outcomes import BackorderUnfilled, HoldfastError, InsufficientOnHand, InsufficientStock
from engine.supplies import Supplies
from tests.property.bench import PARTITIONS, Bench
from tests.shop import ACTOR, LOCATION, Shop, new_key

SKU: Final = "tea"
DAYS: Final = ("2026-12-07", "2026-12-08", "2026-12-11", "2027-01-04")
NEVER: Final = "9999-12-31"
REFS: Final = ("po-1", "po-2", "po-3")
CHANNELS: Final = ("", "store", "partner")
TTLS_MS: Final = (60_000, 900_000, 3_600_000)
LEAD_MS: Final = 3_600_000
FEWEST_STEPS: Final = 20
MOST_STEPS: Final = 40
STEPS_OF_AUDIT: Final = 10

Step = tuple[str, dict[str, Any]]


class Turn(NamedTuple):
    """When units are served: by the day, those promised it first, then by when they were promised.

    `day` is empty where there was none to stand behind.
    """

    day: str = ""
    is_undated: bool = True
    place: int = 0


@dataclass
class Promise:
    """`units` of a live reservation, `waiting` of them, at a turn. `late` is what was told last."""

    units: int
    waiting: int
    turn: Turn
    channel: str
    expires_at_ms: int | None
    late: str = ""

    @property
    def by(self) -> str:
        """The day that what waits was promised by; empty where nothing waits, or for no day."""
        return self.turn.day if self.waiting and not self.turn.is_undated else ""


class Room(NamedTuple):
    """What an asker may have: `most` units, `shelf` of them now, others by the first of `days`."""

    shelf: int
    most: int
    days: tuple[tuple[str, int], ...]


class Book:
    """A row's queue and supplies, kept by hand."""

    def __init__(self) -> None:
        """Know of nobody."""
        self.promises: dict[str, Promise] = {}
        self.supplies: dict[str, tuple[str, int]] = {}
        self.limit = 0
        self.minimums: dict[str, int] = {}
        self.free = 0
        self.deficit = 0
        self.places = 0

    def waiting(self, without: str = "") -> list[Promise]:
        """Return who waits, in the order of their turns."""
        found = [p for the_id, p in self.promises.items() if p.waiting and the_id != without]
        return sorted(found, key=lambda promise: promise.turn)

    def come(self, day: str) -> int:
        """Return the units that there are for those who wait, by the end of a day."""
        arrived = sum(units for on, units in self.supplies.values() if on <= day)
        return self.free - self.deficit + arrived

    def room(self, by: str, *, stock_only: bool = False, without: str = "") -> Room:
        """Return what there is for an asker who names a day, or none, and has no pool."""
        own = self.promises.get(without)
        freed = own.units - own.waiting if own else 0
        queue = self.waiting(without)
        due = sum(promise.waiting for promise in queue)
        free, kept = max(0, self.free + freed), self.kept_from("")
        shelf = max(0, free - due)
        taken = max(shelf, min(free, kept))
        days = tuple(
            (day, max(0, self._least(day, queue, freed) - taken))
            for day in self._days_of_supplies()
        )
        to_come = 0
        if by:
            to_come = max([units for day, units in days if day <= by], default=0)
        elif self.limit:
            beyond = due - max(0, self.come(NEVER) + freed - free)
            to_come = (days[-1][1] if days else 0) + max(0, self.limit - max(0, beyond))
        shelf = max(0, shelf - kept)
        return Room(shelf, shelf + (0 if stock_only else to_come), days)

    def _days_of_supplies(self) -> list[str]:
        return sorted({day for day, _ in self.supplies.values()})

    def _least(self, day: str, queue: list[Promise], freed: int) -> int:
        """Return what is left by a day, and on each later one, for who was not promised before."""
        later = [other for other in self.days(queue) if other >= day]
        return min(
            self.come(other) + freed - sum(p.waiting for p in queue if p.turn.day <= other)
            for other in later
        )

    def days(self, queue: list[Promise]) -> list[str]:
        """Return the days of the supplies and of those who wait."""
        return sorted({*self._days_of_supplies(), *(p.turn.day for p in queue if p.turn.day)})

    def turn(self, promised_by: str, without: str = "") -> Turn:
        """Return the turn of units that are promised now."""
        self.places += 1
        days = self.days(self.waiting(without))
        day = promised_by or (days[-1] if days else "")
        return Turn(day, not promised_by, self.places)

    def fill(self) -> None:
        """Give what is free to those who wait; pools keep their minimum from who has no day."""
        for promise in self.waiting():
            free = self.free
            if promise.turn.is_undated:
                free -= self.kept_from(promise.channel)
            units = min(promise.waiting, max(0, free))
            promise.waiting -= units
            self.free -= units

    def kept_from(self, channel: str) -> int:
        """Return the units that other channels are guaranteed and do not hold."""
        return sum(
            max(0, minimum - self.held(name))
            for name, minimum in self.minimums.items()
            if name != channel
        )

    def held(self, channel: str) -> int:
        """Return the units that a channel's promises hold."""
        return sum(p.units for p in self.promises.values() if p.channel == channel)

    def review(self) -> None:
        """Note whose day cannot be kept, and when they are expected."""
        for promise in self.promises.values():
            promise.late = ""
        queue, given = self.waiting(), 0
        left, served = [promise.waiting for promise in queue], [NEVER for _ in queue]
        for day in ("", *self._days_of_supplies()):
            for i, promise in enumerate(queue):
                free = self.come(day) - given
                if promise.turn.is_undated:
                    free -= self.kept_from(promise.channel)
                units = min(left[i], max(0, free))
                left[i], given = left[i] - units, given + units
                if not left[i]:
                    served[i] = min(served[i], day)
        for promise, expected in zip(queue, served, strict=True):
            is_late = not promise.turn.is_undated and expected > promise.turn.day
            promise.late = expected if is_late else ""

    def at_risk(self) -> set[str]:
        """Return whose day could not be kept if nobody before them were passed by."""
        found, ahead = set(), 0
        for promise in self.waiting():
            ahead += promise.waiting
            if not promise.turn.is_undated and self.come(promise.turn.day) < ahead:
                found |= {the_id for the_id, one in self.promises.items() if one is promise}
        return found


recents: Final = st.integers(0, 5)
units_asked: Final = st.integers(1, 8)
minimums: Final = st.one_of(
    st.just({}), st.just({}), st.dictionaries(st.sampled_from(CHANNELS[1:]), st.integers(1, 4))
)
limits: Final = st.sampled_from((0, 3, 8))
bys: Final = st.one_of(st.just(""), st.sampled_from(DAYS))
STEPS: Final[dict[str, dict[str, st.SearchStrategy[Any]]]] = {
    "expect": {
        "ref": st.sampled_from(REFS),
        "day": st.sampled_from(DAYS),
        "units": st.integers(1, 9),
    },
    "slip": {"ref": st.sampled_from(REFS), "days": st.integers(0, 2), "fewer": st.integers(0, 4)},
    "cancel": {"ref": st.sampled_from(REFS)},
    "arrive": {"ref": st.sampled_from(REFS), "more": st.sampled_from((-3, -1, 0, 0, 2))},
    "move": {"kind": st.sampled_from(("receive", "sale", "count")), "units": st.integers(1, 5)},
    "keep_back": {"units": st.integers(0, 3)},
    "terms": {"limit": limits, "minimums": minimums},
    "reserve": {
        "units": units_asked,
        "by": bys,
        "partial": st.booleans(),
        "channel": st.sampled_from(CHANNELS),
        "stock_only": st.sampled_from((False, False, False, True)),
        "ttl_ms": st.sampled_from(TTLS_MS),
    },
    "amend": {
        "recent": recents,
        "units": st.integers(1, 12),
        "stock_only": st.sampled_from((False, True)),
    },
    "confirm": {"recent": recents},
    "extend": {"recent": recents, "ttl_ms": st.sampled_from(TTLS_MS)},
    "commit": {"recent": recents, "short": st.integers(0, 3)},
    "release": {"recent": recents},
    "expire": {"recent": recents},
}
OFTEN: Final = {"reserve": 14, "amend": 5, "expect": 6, "arrive": 3, "slip": 2, "terms": 2}
verbs: Final = st.sampled_from([verb for verb in STEPS for _ in range(OFTEN.get(verb, 1))])
steps: Final = verbs.flatmap(
    lambda verb: st.tuples(st.just(verb), st.fixed_dictionaries(STEPS[verb]))
)


class Trade:
    """Makes steps on the engine, and notes in the book what they did."""

    def __init__(self, bench: Bench) -> None:
        """Open the shop of a new merchant."""
        self.bench = bench
        self.shop = Shop(bench.inventory, bench.client, f"m-{uuid4().hex[:12]}")
        self.merchant = self.shop.merchant
        self.partition = partition_of(self.merchant, LOCATION, PARTITIONS)
        self.supplies = Supplies(bench.inventory)
        self.book = Book()
        self.beyond = 0
        self.slipped = False
        self.now_ms = 0

    async def open(self, stock: int, limit: int) -> None:
        """Put the clock ahead of the real one, and units on the shelf."""
        mark = await self.shop.clock_ms()
        await self._set_clock(max(mark, int(time.time() * 1000) + LEAD_MS) + 1)
        await self.shop.move(MovementType.COUNT, SKU, stock)
        await self.terms(limit, {})
        await self.settle()

    async def make(self, one: Step) -> None:
        """Make a step, and check all there is."""
        verb, what = one
        self.slipped = False
        at_risk = self.book.at_risk()
        await getattr(self, verb)(**what)
        await self.settle()
        if not self.slipped:
            assert self.book.at_risk() <= at_risk, f"{one} made others late"

    async def settle(self) -> None:
        """Serve who waits, on both sides, and compare the two."""
        book, inventory = self.book, self.shop.inventory
        await inventory.fill(self.merchant, LOCATION, SKU)
        row = await self.shop.row(SKU)
        reserved = row.reserved
        book.deficit = row.deficit
        held = sum(promise.units - promise.waiting for promise in book.promises.values())
        book.free = row.on_hand - row.safety_stock - held
        book.fill()
        book.review()
        reviewed = await self.supplies.review(self.merchant, LOCATION, SKU)
        assert row.is_at_risk or not reviewed.told, "the background process would not look"
        assert self.late() <= book.at_risk()
        row = await self.shop.row(SKU)
        waiting = book.waiting()
        late = [promise for promise in waiting if promise.late]
        assert row.reserved == reserved == sum(p.units - p.waiting for p in book.promises.values())
        assert row.backordered == sum(promise.waiting for promise in waiting)
        assert (row.terms or Terms()).late == sum(promise.waiting for promise in late)
        assert reviewed.count == len(late)
        await asyncio.gather(*(self._is_in_the_book(*one) for one in book.promises.items()))
        page = await self.supplies.waiting(self.merchant, LOCATION, SKU)
        assert [book.promises[one.reservation] for one in page.items] == waiting
        covered = max(0, row.incoming + book.free - row.deficit)
        beyond = max(0, row.backordered - covered)
        if not self.slipped:
            assert beyond <= max(self.beyond, book.limit)
        self.beyond = beyond
        self._row_says_what_is_promised(row)

    async def _is_in_the_book(self, the_id: str, promise: Promise) -> None:
        found = await self.shop.inventory.reservation(self.merchant, the_id)
        assert sum(line.quantity for line in found.lines) == promise.units
        assert sum(line.quantity for line in found.backordered) == promise.waiting
        expected = promise.late or promise.by
        told = [(one.by, one.expected_on or NEVER) for one in found.promised]
        assert told == ([(promise.by, expected)] if promise.waiting and promise.by else [])

    def _row_says_what_is_promised(self, row: Row) -> None:
        room = self.book.room("")
        assert row.available == max(0, self.book.free - row.backordered)
        said = tuple((one.by, one.quantity - row.available) for one in row.available_to_promise)
        assert said == tuple(
            (day, max(units for d, units in room.days if d <= day)) for day, _ in room.days
        )
        assert row.backorder_available == room.most - room.shelf

    async def audit(self) -> None:
        """Check every invariant."""
        await self.bench.audit.check(merchant=self.merchant)

    def late(self) -> set[str]:
        """Return whose day cannot be kept."""
        return {the_id for the_id, promise in self.book.promises.items() if promise.late}

    async def _set_clock(self, now_ms: int) -> None:
        self.now_ms = now_ms
        await self.shop.set_clock(now_ms)

    def _one(self, recent: int) -> str:
        live = list(self.book.promises)
        return live[-1 - recent % len(live)] if live else ""

    def _takes_waits(self, the_id: str, made: Reservation, channel: str, without: str = "") -> None:
        """Write a promise that was made, or amended to more that waits, into the book."""
        units = sum(line.quantity for line in made.lines)
        waiting = sum(line.quantity for line in made.backordered)
        by = made.promised[0].by if made.promised else ""
        turn = self.book.turn(by, without) if waiting else Turn()
        self.book.promises[the_id] = Promise(units, waiting, turn, channel, made.expires_at_ms)

    async def expect(self, ref: str, day: str, units: int) -> None:
        before = self.book.supplies.get(ref)
        self.slipped = before is not None and (day > before[0] or units < before[1])
        self.book.supplies[ref] = (day, units)
        await self.shop.expect(SKU, ref, day, units)

    async def slip(self, ref: str, days: int, fewer: int) -> None:
        """Have a supply that was announced come later, or with fewer units."""
        if ref in self.book.supplies:
            day, units = self.book.supplies[ref]
            later = DAYS[min(len(DAYS) - 1, DAYS.index(day) + days)]
            await self.expect(ref, later, max(1, units - fewer))

    async def cancel(self, ref: str) -> None:
        if self.book.supplies.pop(ref, None):
            self.slipped = True
            await self.shop.cancel_supply(SKU, ref)

    async def arrive(self, ref: str, more: int) -> None:
        """Book what came with a supply: a part, all of it, or more."""
        if ref in self.book.supplies:
            day, units = self.book.supplies.pop(ref)
            came = max(1, units + more)
            if came < units:
                self.book.supplies[ref] = (day, units - came)
            await self.shop.arrive(SKU, ref, came)

    async def move(self, kind: str, units: int) -> None:
        self.slipped = kind != "receive"
        await self.shop.move(MovementType(kind), SKU, units)

    async def keep_back(self, units: int) -> None:
        row = await self.shop.row(SKU)
        self.slipped = units > row.safety_stock
        await self.shop.inventory.configure(
            self.merchant,
            LOCATION,
            SKU,
            key=new_key(),
            safety_stock=units,
            expected_version=row.version,
            actor=ACTOR,
        )

    async def terms(self, limit: int, minimums: dict[str, int]) -> None:
        self.book.limit, self.book.minimums = limit, minimums
        pools = {name: Pool(None, minimum) for name, minimum in minimums.items()}
        await self.shop.set_terms(SKU, Terms(limit, pools))

    async def reserve(
        self, units: int, by: str, *, partial: bool, channel: str, stock_only: bool, ttl_ms: int
    ) -> None:
        """Ask for units; of who has no pool it is foretold what comes of it."""
        if stock_only:
            by = ""
        ask: dict[str, Any] = {
            "by": by,
            "stock_only": stock_only,
            "channel": channel,
            "partial": partial,
        }
        room = self.book.room(by, stock_only=stock_only)
        is_exact = channel not in self.book.minimums
        got = min(units, room.most)
        try:
            made = (await self.shop.reserve([(SKU, units)], ttl_ms=ttl_ms, **ask)).reservation
        except InsufficientStock as refused:
            told = refused.lines[0].available
            own = max(0, self.book.minimums.get(channel, 0) - self.book.held(channel))
            dated = sum(p.waiting for p in self.book.waiting() if p.by)
            assert min(own, self.book.free - dated) <= told < units
            assert not (partial and told)
            assert not is_exact or told == room.most
            return
        if is_exact:
            assert made.lines == (Line(SKU, got),)
            assert partial or got == units
            self._is_as_foretold(made, got - min(got, room.shelf), room)
        for one in made.promised:
            assert not by or one.by <= by
        if by and made.backordered:
            assert made.promised
        self._takes_waits(made.id, made, self._pool_of(channel))

    def _is_as_foretold(self, made: Reservation, waiting: int, room: Room) -> None:
        assert sum(line.quantity for line in made.backordered) == waiting
        enough = [day for day, units in room.days if units >= waiting]
        assert [one.by for one in made.promised] == (enough[:1] if waiting else [])

    def _pool_of(self, channel: str) -> str:
        """Return the channel whose pool the units count in; '' where it has none."""
        return channel if channel in self.book.minimums else ""

    async def amend(self, recent: int, units: int, *, stock_only: bool) -> None:
        """Want more or fewer of what one has; more that has a day by that day alone."""
        the_id = self._one(recent)
        if not the_id:
            return
        own = self.book.promises[the_id]
        room = self.book.room(own.by if own.waiting else "", stock_only=stock_only, without=the_id)
        shelf, most = max(room.shelf, own.units - own.waiting), max(room.most, own.units)
        # What it keeps on the shelf is not to come as well.
        days = tuple((day, units_by - shelf + room.shelf) for day, units_by in room.days)
        room = room._replace(days=days)
        is_exact = not self.book.minimums
        try:
            amended = await self.shop.inventory.amend(
                self.merchant,
                the_id,
                [Line(SKU, units)],
                key=new_key(),
                stock_only=stock_only,
                actor=ACTOR,
            )
        except InsufficientStock as refused:
            told = refused.lines[0].available
            assert own.units <= told < units
            assert not is_exact or told == most
            return
        made = amended.reservation
        assert made.lines == (Line(SKU, units),)
        waiting = sum(line.quantity for line in made.backordered)
        if units < own.units:
            assert waiting == max(0, own.waiting - (own.units - units))
        elif is_exact:
            assert units <= most
            assert waiting == (max(0, units - shelf) if units > own.units else own.waiting)
            if waiting > own.waiting:
                self._is_as_foretold(made, waiting, room)
        if own.by and waiting:
            assert made.promised[0].by <= own.by
        channel = own.channel
        if units > own.units:
            channel = channel or self._pool_of(made.channel)
        if waiting > own.waiting:
            self._takes_waits(the_id, made, channel, the_id)
        else:
            self.book.promises[the_id] = replace(own, units=units, waiting=waiting, channel=channel)

    async def confirm(self, recent: int) -> None:
        the_id = self._one(recent)
        if the_id:
            await self.shop.inventory.confirm(self.merchant, the_id, actor=ACTOR)
            self.book.promises[the_id].expires_at_ms = None

    async def extend(self, recent: int, ttl_ms: int) -> None:
        the_id = self._one(recent)
        if the_id and self.book.promises[the_id].expires_at_ms is not None:
            extended = await self.shop.inventory.extend(
                self.merchant, the_id, key=new_key(), ttl_ms=ttl_ms, actor=ACTOR
            )
            self.book.promises[the_id].expires_at_ms = extended.reservation.expires_at_ms

    async def commit(self, recent: int, short: int) -> None:
        """Commit what has come, or as much less as that; what has not come cannot leave."""
        the_id = self._one(recent)
        if not the_id:
            return
        own = self.book.promises[the_id]
        units = max(0, own.units - short)
        row = await self.shop.row(SKU)
        try:
            await self.shop.commit(the_id, [(SKU, units)])
        except BackorderUnfilled as refused:
            come = refused.lines[0].available
            assert come == own.units - own.waiting < units
        except InsufficientOnHand:
            assert row.on_hand < units
        else:
            assert units <= own.units - own.waiting
            del self.book.promises[the_id]

    async def release(self, recent: int) -> None:
        the_id = self._one(recent)
        if the_id:
            await self.shop.release(the_id)
            del self.book.promises[the_id]

    async def expire(self, recent: int) -> None:
        """Let time pass up to the end of a hold, and take back what is due."""
        the_id = self._one(recent)
        ends_at_ms = self.book.promises[the_id].expires_at_ms if the_id else None
        if ends_at_ms is None:
            return
        await self._set_clock(max(self.now_ms, ends_at_ms))
        await self.shop.inventory.expire_due(self.partition)
        for other_id, promise in list(self.book.promises.items()):
            if promise.expires_at_ms is not None and promise.expires_at_ms <= self.now_ms:
                found = await self.shop.inventory.reservation(self.merchant, other_id)
                assert found.state is ReservationState.EXPIRED
                del self.book.promises[other_id]

    async def all_comes(self) -> None:
        """Have every supply come on its day: all are served by theirs but those told to be late."""
        told = {the_id: replace(promise) for the_id, promise in self.book.promises.items()}
        # What comes on one day may come in an order in which pools have more of them passed by.
        days = [day for day, _ in self.book.supplies.values()]
        is_exact = not self.book.minimums or len(days) == len(set(days))
        for day in sorted({day for day, _ in self.book.supplies.values()}):
            for ref, (on, _) in list(self.book.supplies.items()):
                if on == day:
                    await self.make(("arrive", {"ref": ref, "more": 0}))
            for the_id, promise in told.items():
                is_served = self.book.promises[the_id].waiting == 0
                if promise.waiting and promise.by and (promise.late or promise.by) <= day:
                    assert is_served, f"{promise} waits after {day}"
                elif promise.late and is_exact:
                    assert not is_served, f"{promise} was served on {day}"
        for the_id in list(self.book.promises):
            await self.shop.release(the_id)
            del self.book.promises[the_id]
            await self.settle()
        row = await self.shop.row(SKU)
        assert (row.reserved, row.backordered, row.incoming) == (0, 0, 0)
        assert row.terms is None or row.terms == row.terms.settings()


async def trade(bench: Bench, stock: int, limit: int, drawn: list[Step]) -> None:
    """Make all steps, and see all supplies in."""
    made = Trade(bench)
    await made.open(stock, limit)
    try:
        for count, one in enumerate(drawn, start=1):
            await made.make(one)
            if count % STEPS_OF_AUDIT == 0:
                await made.audit()
        await made.all_comes()
        await made.audit()
    finally:
        for the_id in made.book.promises:
            try:
                await made.shop.release(the_id)
            except HoldfastError:
                continue


@pytest.mark.slow
def test_what_was_promised_by_a_day_is_served_by_then(bench: Bench) -> None:
    @given(
        stock=st.integers(0, 6),
        limit=limits,
        drawn=st.lists(steps, min_size=FEWEST_STEPS, max_size=MOST_STEPS),
    )
    def check(stock: int, limit: int, drawn: list[Step]) -> None:
        bench.run(trade(bench, stock, limit, drawn))

    check()
