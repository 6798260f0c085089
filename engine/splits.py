"""Split rows: one row whose units are spread over partitions, each of which promises its share.

A row lives in one partition, its home, and so in one server's thread. Where that is not enough,
the row is split: parts of it in other partitions get units of their own, and a reserve of the one
SKU goes to the part that its idempotency key names. Home keeps the totals and takes all that is no
such promise: movements, counts, settings, carts of several SKUs.

Home and parts tell each other sums since the beginning (`lua/lib/split.lua`), so a message that
comes twice, late or in another order than it was sent changes nothing, and whoever finds units on
the way, or a plan that not all parts have heard, drives it to its end. The decision record
docs/decisions/0025-split-rows.md says why it is so.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Self

import msgspec

from engine.dispatch import Command, Dispatcher
from engine.keys import (
    PartitionKeys,
    digest,
    location_member,
    parse_row_member,
    partition_of,
    row_member,
)
from engine.limits import MAX_PARTS, MAX_TOTAL
from engine.outcomes import (
    HoldfastError,
    InvalidCommand,
    Outcome,
    Overloaded,
    RowNotFound,
    StoreUnavailable,
)
from engine.refusals import refusal
from engine.rounds import in_rounds
from engine.store import Store
from engine.validation import check_id

ACTOR: Final = "splitter"

MAX_STEPS: Final = 8
"""How often a plan is driven on before somebody else must have been at it: two steps do."""

MAX_KNOWN: Final = 10_000
"""Split rows whose plans a process remembers; past it all are forgotten and read anew."""

REPORT_SECONDS: Final = 0.025
"""How long changes at a part wait to be told together. The totals, which readers see and events are
made of, are behind by so much."""

THAW_SECONDS: Final = 0.02
"""How long parts stay closed at least where units are free again: somebody closed them to book a
fact, and must come to it."""

MAX_FACT_ATTEMPTS: Final = 8
"""How often a movement that needs units of a split row's parts has them fetched."""

NOT_SPLIT: Final = 0
ANYWHERE: Final = -1
GATHERED: Final = -2
"""What stands for a plan where there is none, see `lua/reserve.lua`."""

RowName = tuple[str, str, str]
"""(merchant, location, SKU)."""


TEND_SECONDS: Final = 1.0
"""How often units are evened out, and what was left undone is looked for."""


class Cell(msgspec.Struct, frozen=True, array_like=True):
    """What home knows of one part, in units since the beginning; see `lua/lib/split.lua`."""

    partition: int
    granted: int
    version: int
    received: int
    returned: int
    picked: int
    reserved: int
    heard: int

    @property
    def free(self) -> int:
        """Units that the part can promise as far as home knows, or that are on the way there."""
        return self.granted - self.returned - self.picked - self.reserved


class Plan(msgspec.Struct, frozen=True):
    """Where a row's promises are made: the column `split` of its home, decoded.

    `places` are partitions, none of them where promises are made at home; `earlier` the places of
    earlier plans, at which retries may still look for their answer.
    """

    epoch: int
    is_open: bool
    places: tuple[int, ...]
    earlier: tuple[tuple[int, ...], ...]
    cells: dict[int, Cell]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the column."""
        _, epoch, is_open, places, was, cells = text.split(" ")
        parsed = [Cell(*map(int, cell.split(":"))) for cell in _listed(cells, ";")]
        return cls(
            int(epoch),
            is_open == "1",
            _places(places),
            tuple(_places(one.partition("@")[2]) for one in _listed(was, ";")),
            {cell.partition: cell for cell in parsed},
        )

    @property
    def is_settled(self) -> bool:
        """True once every part knows this plan or is closed by it: none promises by another."""
        return all(cell.heard // 2 == self.epoch for cell in self.cells.values())

    @property
    def unready(self) -> list[int]:
        """The parts that are to be told next: those that do not know the plan, then its places."""
        behind = [p for p, cell in self.cells.items() if cell.heard // 2 != self.epoch]
        if behind or not self.is_open:
            return behind
        return [p for p in self.places if self.cells[p].heard % 2 == 0]

    @property
    def is_over(self) -> bool:
        """True once the row is split no longer, and its parts have nothing left of it."""
        return (
            not self.places
            and self.is_settled
            and all(cell.free == 0 == cell.reserved for cell in self.cells.values())
        )

    def place(self, the_hash: str, home: int) -> int:
        """Return the partition that promises a reservation of this hash."""
        return _place(self.places, the_hash, home)

    def earlier_places(self, the_hash: str, home: int) -> set[int]:
        """Return where else such a reservation may have been made before."""
        found = {_place(places, the_hash, home) for places in self.earlier}
        return found - {self.place(the_hash, home)}


class Home(msgspec.Struct, frozen=True):
    """A row's home as it answered: its plan, None where it was never split.

    `free` can be promised at home, and is negative where more is promised or kept back than is
    there; `available` is what is free in all, as far as home was told.
    """

    plan: Plan | None
    free: int
    version: int
    available: int

    @property
    def is_closed(self) -> bool:
        """True while no part of a split row may promise."""
        return self.plan is not None and bool(self.plan.places) and not self.plan.is_open


class Report(msgspec.Struct, frozen=True, array_like=True):
    """What a part tells of itself; `free` is what it can promise."""

    partition: int
    version: int
    received: int
    returned: int
    picked: int
    reserved: int
    heard: int
    departures: list[list[int]]
    free: int


class Share(msgspec.Struct, frozen=True):
    """What is at one part of a row: units that it can promise, and that are reserved there."""

    partition: int
    free: int
    reserved: int
    is_open: bool


class Spread(msgspec.Struct, frozen=True):
    """How a row is split: over how many `parts`, 0 where it is not, and what is where.

    A part that is not open takes no new promises: its last ones have not ended yet, or what it has
    is needed elsewhere.
    """

    parts: int
    home: int
    free_at_home: int
    shares: tuple[Share, ...]


class Pulled(msgspec.Struct, frozen=True):
    """What a pull found: free units by partition as it left them, and of the row in all."""

    free: dict[int, int]
    available: int


class _Gathering:
    """The pulls of one row: one is under way at a time, and serves all who wait for the next."""

    def __init__(self) -> None:
        self.demands: dict[int, int] = {}
        self.current: asyncio.Task[Pulled] | None = None
        self.next: asyncio.Task[Pulled] | None = None


class Splits:
    """The split rows of all merchants over one store; see the module's text."""

    def __init__(
        self,
        store: Store,
        dispatch: Dispatcher,
        keys: Sequence[PartitionKeys],
        expire_due: Callable[[int], Awaitable[int]],
    ) -> None:
        """`expire_due` takes back what is due in a partition, and returns how many holds."""
        self._store = store
        self._dispatch = dispatch
        self._keys = keys
        self._expire_due = expire_due
        self._plans: dict[RowName, Plan] = {}
        self._gatherings: dict[RowName, _Gathering] = {}
        self._reports: dict[RowName, asyncio.Task[None]] = {}
        self._touched: set[RowName] = set()

    async def flush(self) -> None:
        """Wait until home was told of what this process changed at parts, or could not be.

        What could not be told, the keeper tells.
        """
        while self._reports:
            await asyncio.gather(*self._reports.values())

    # Plans

    def known(self, name: RowName) -> Plan | None:
        """Return the row's plan as this process last saw it; None where it is not known as split.

        A plan that is out of date is refused by the script that is to promise by it.
        """
        return self._plans.get(name)

    def home_of(self, name: RowName) -> int:
        """Return the partition of the row itself."""
        return partition_of(name[0], name[1], len(self._keys))

    async def spread(self, name: RowName) -> Spread:
        """Tell how a row is split just now. Raises RowNotFound."""
        for place, what in (("merchant", name[0]), ("location", name[1]), ("sku", name[2])):
            check_id(place, what)
        home = await self.report(name)
        plan = home.plan
        if plan is None:
            return Spread(0, self.home_of(name), max(0, home.free), ())
        shares = [
            Share(p, cell.free, cell.reserved, cell.heard == 2 * plan.epoch + 1)
            for p, cell in plan.cells.items()
            if p in plan.places or cell.free or cell.reserved
        ]
        return Spread(len(plan.places), self.home_of(name), max(0, home.free), tuple(shares))

    async def change(self, name: RowName, parts: int, *, actor: str) -> Spread:
        """Spread a row over `parts` partitions beside its home, or with 1 over none.

        Takes effect while the row is in use, and once this has returned. Raises RowNotFound,
        InvalidCommand, LimitExceeded (changed too often within a day).
        """
        for place, what in (("merchant", name[0]), ("location", name[1]), ("sku", name[2])):
            check_id(place, what)
        most = min(MAX_PARTS, len(self._keys) - 1)
        if not 1 <= parts <= max(1, most):
            raise InvalidCommand("parts", f"must be 1 (not split) to {most}, as the store is made")
        home = await self.settle(name)
        places = await self._choose(name, home.plan, parts if parts > 1 else 0)
        for _ in range(MAX_STEPS):
            expected = 0 if home.plan is None else home.plan.epoch
            now_at = () if home.plan is None else home.plan.places
            if now_at == places:
                break
            await self._tell_home(name, expected=expected, plan="set", places=places, actor=actor)
            home = await self.settle(name)
        await self.tend(name)
        return await self.spread(name)

    async def _choose(self, name: RowName, plan: Plan | None, parts: int) -> tuple[int, ...]:
        """Choose partitions on as many servers as there are, those that are parts already first."""
        home = self.home_of(name)
        if parts == 0:
            return ()
        known = () if plan is None else tuple(plan.cells)
        others = [(home + i) % len(self._keys) for i in range(1, len(self._keys))]
        ordered = [*known, *[p for p in others if p not in known]]
        nodes = {p: await self._store.node_of(self._keys[p].meta) for p in [home, *ordered]}
        chosen: list[int] = []
        used = dict.fromkeys(nodes.values(), 0)
        # Home does the most for the row: its server comes last.
        used[nodes[home]] += 1
        while len(chosen) < parts:
            best = min((p for p in ordered if p not in chosen), key=lambda p: used[nodes[p]])
            chosen.append(best)
            used[nodes[best]] += 1
        return tuple(chosen)

    async def settle(self, name: RowName) -> Home:
        """Have every part know the row's plan, and its places be open where the plan says so.

        A place opens only when no part promises by an earlier plan any more: a retry looks for its
        answer there, and must not miss one that is being made.
        """
        home = await self._tell_home(name)
        for _ in range(MAX_STEPS):
            if home.plan is None or not home.plan.unready:
                return home
            reports = await self._ask(name, home.plan, home.plan.unready)
            home = await self._tell_home(name, reports=reports)
        raise Overloaded(retry_after_ms=1_000)

    async def reopen(self, name: RowName) -> Home:
        """Let the parts of a row promise again where they are closed and there is something to."""
        home = await self.settle(name)
        plan = home.plan
        if plan is None or not home.is_closed or home.free <= 0:
            return home
        await asyncio.sleep(THAW_SECONDS)
        home = await self._tell_home(name)
        if home.plan is not None and home.plan.epoch == plan.epoch and home.free > 0:
            await self._tell_home(name, expected=plan.epoch, plan="open")
            home = await self.settle(name)
        return home

    async def shut(self, name: RowName) -> Home:
        """Close the parts and take home what is free there: a fact needs it, or it is gone."""
        home = await self._tell_home(name)
        if home.plan is not None and home.plan.is_open:
            await self._tell_home(name, expected=home.plan.epoch, plan="close")
            home = await self.settle(name)
        if home.plan is None:
            return home
        reports = await self._ask(name, home.plan, home.plan.cells, recall=MAX_TOTAL)
        return await self._tell_home(name, reports=reports)

    # Units

    async def pull(self, name: RowName, partition: int, units: int) -> Pulled:
        """Have `units` be free at a partition, home or a part, as far as there are any.

        Who pulls while a pull is under way is served by the next, together with all others.
        """
        gathering = self._gatherings.setdefault(name, _Gathering())
        gathering.demands[partition] = gathering.demands.get(partition, 0) + units
        if gathering.next is None:
            gathering.next = asyncio.create_task(self._gather(name, gathering, gathering.current))
        return await asyncio.shield(gathering.next)

    async def _gather(
        self, name: RowName, gathering: _Gathering, before: asyncio.Task[Pulled] | None
    ) -> Pulled:
        if before is not None:
            await asyncio.wait([before])
        gathering.current, gathering.next = gathering.next, None
        demands, gathering.demands = gathering.demands, {}
        try:
            return await self._serve(name, demands)
        finally:
            if not gathering.demands and self._gatherings.get(name) is gathering:
                del self._gatherings[name]

    async def _serve(self, name: RowName, demands: Mapping[int, int]) -> Pulled:
        """Move units to where they are wanted: first a share of each part, then all there is."""
        home_partition = self.home_of(name)
        home = await self.reopen(name)
        free: dict[int, int] = {}
        for attempt in range(3):
            plan = home.plan
            if plan is None:
                break
            wanted = {p: units - free.get(p, 0) for p, units in demands.items()}
            wanted = {p: units for p, units in wanted.items() if units > 0}
            if attempt == 2 and not await self._reclaim(name, plan):
                break
            if attempt and len(wanted) > 1 and home.available < sum(wanted.values()):
                # Each may have some of what would do for one.
                first = max(wanted, key=lambda p: (home.available >= wanted[p], wanted[p]))
                wanted = {first: wanted[first]}
            at_home = 0 if attempt else home.free
            home, free = await self._move(
                name, home, plan, wanted, recall=at_home < sum(wanted.values()),
                divisor=1 if attempt else len(plan.places) or 1,
            )  # fmt: skip
            free[home_partition] = max(0, home.free)
            if any(free.get(p, 0) >= units for p, units in demands.items()):
                break
        return Pulled(free, home.available)

    async def _move(
        self,
        name: RowName,
        home: Home,
        plan: Plan,
        wanted: Mapping[int, int],
        *,
        recall: bool,
        divisor: int,
    ) -> tuple[Home, dict[int, int]]:
        """Recall units from the parts that are not short, grant them to those that are."""
        givers = [p for p in plan.cells if p not in wanted]
        most = MAX_TOTAL if divisor > 1 else sum(wanted.values())
        reports = await self._ask(
            name, plan, givers, recall=most if recall else 0, divisor=divisor, over_outages=True
        )
        free = {report.partition: report.free for report in reports}
        back = sum(report.returned - plan.cells[report.partition].returned for report in reports)
        takers = [p for p in wanted if p in plan.places]
        total = max(0, home.free + back) + sum(free.values())
        share = total // (len(plan.places) + 1)
        grants = [(p, wanted[p]) for p in takers]
        grants += [(p, share - wanted[p]) for p in takers if share > wanted[p]]
        home = await self._tell_home(name, reports=reports, grants=grants)
        if home.plan is not None and takers:
            took = await self._ask(name, home.plan, takers, over_outages=True)
            free |= {report.partition: report.free for report in took}
            self.touched(name)
        return home, free

    async def _reclaim(self, name: RowName, plan: Plan) -> int:
        """Take back what is due wherever the row has units; return how many holds that were."""
        partitions = {*plan.cells, self.home_of(name)}
        return sum(await asyncio.gather(*(self._expire_due(p) for p in partitions)))

    async def fetch(
        self, place: tuple[str, str], partition: int, wanted: Sequence[tuple[str, int]]
    ) -> None:
        """Have what is wanted of split rows be free in a partition, as far as it can be."""
        await asyncio.gather(*(self.pull((*place, sku), partition, units) for sku, units in wanted))

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
                await self.pull((*place, sku), partition, units)
            else:
                await self.shut((*place, sku))
        raise Overloaded(retry_after_ms=1_000)

    # What parts do

    def touched(self, name: RowName) -> None:
        """Have what this process changed at a part be told to home, with all else, in a moment."""
        self._touched.add(name)
        if name not in self._reports:
            self._reports[name] = asyncio.create_task(self._report_later(name))

    async def _report_later(self, name: RowName) -> None:
        await asyncio.sleep(REPORT_SECONDS)
        self._touched.discard(name)
        try:
            with suppress(HoldfastError):
                await self.report(name)
        finally:
            del self._reports[name]
        if name in self._touched:
            # Changed while it was told.
            self.touched(name)

    async def report(self, name: RowName) -> Home:
        """Have home know all that its parts have done until now."""
        plan = self._plans.get(name)
        if plan is None:
            home = await self._tell_home(name)
            plan = home.plan
            if plan is None:
                return home
        reports = await self._ask(name, plan, plan.cells)
        return await self._tell_home(name, reports=reports)

    async def tend(self, name: RowName) -> None:
        """Do what is to be done for a row now and then: settle it, and even out its units.

        A part gives what it has more than twice its share of, and gets what it lacks of half of it.
        What is free where nothing is to be promised comes home.
        """
        home = await self.reopen(name)
        if home.plan is None or home.plan.is_over:
            return
        home = await self.report(name)
        plan = home.plan
        if plan is None:
            return
        if not plan.is_open or home.free < 0:
            await self.shut(name)
            return
        share = max(0, home.available) // (len(plan.places) + 1)
        cells = plan.cells
        stray = [p for p in cells if p not in plan.places and cells[p].free]
        rich = [p for p in plan.places if cells[p].free > 2 * share + 1]
        reports = [
            *await self._ask(name, plan, stray, recall=MAX_TOTAL),
            *await self._ask_each(name, plan, {p: cells[p].free - share for p in rich}),
        ]
        poor = [(p, share - cells[p].free) for p in plan.places if 2 * cells[p].free < share]
        if reports or poor:
            home = await self._tell_home(name, reports=reports, grants=poor)
            if home.plan is not None:
                reports = await self._ask(name, home.plan, [p for p, _ in poor])
                await self._tell_home(name, reports=reports)

    async def partitions_of(self, merchant: str, location: str) -> list[int]:
        """Return where a location's rows have or had parts, its own partition first."""
        home = partition_of(merchant, location, len(self._keys))
        keys = self._keys[home]
        prefix = location_member(merchant, location)
        (members,) = await self._store.read(
            [("ZRANGEBYLEX", keys.splits, f"[{prefix}:", f"({prefix};")]
        )
        names = [name for one in members if (name := parse_row_member(one.decode()))]
        if not names:
            return [home]
        texts = await self._store.read([("HGET", keys.stock(*name), "split") for name in names])
        found = dict.fromkeys([home])
        for text in texts:
            if text:
                found |= dict.fromkeys(Plan.parse(text.decode()).cells)
        return list(found)

    async def all(self) -> list[RowName]:
        """Return the rows that are or were split."""
        replies = await self._store.read([("ZRANGE", keys.splits, 0, -1) for keys in self._keys])
        members = [one.decode() for reply in replies for one in reply]
        return [name for one in members if (name := parse_row_member(one))]

    # Messages

    async def _tell_home(
        self,
        name: RowName,
        *,
        expected: int = 0,
        plan: str = "keep",
        places: Sequence[int] = (),
        reports: Iterable[Report] = (),
        grants: Sequence[tuple[int, int]] = (),
        actor: str = ACTOR,
    ) -> Home:
        merchant, location, sku = name
        keys = self._keys[self.home_of(name)]
        # A report knows its free units for us alone.
        told = [msgspec.structs.astuple(report)[:-1] for report in reports]
        command = Command(
            (keys.stock(*name), keys.recent(*name), keys.splits),
            (
                digest("split", *name),
                merchant,
                location,
                actor,
                sku,
                row_member(*name),
                expected,
                plan,
                list(places),
                told,
                list(grants),
            ),
            merchant,
        )
        reply = await self._dispatch.run("split", keys.partition, command)
        code = Outcome(reply[0])
        if code is Outcome.NOT_FOUND:
            raise RowNotFound(merchant=merchant, location=location, sku=sku)
        if code is Outcome.INVALID and reply[1] == "terms":
            raise InvalidCommand("parts", "the row has terms: end them first, then split it")
        if code is not Outcome.OK:
            raise refusal(reply)
        text, free, version, available = reply[1:5]
        found = Plan.parse(text) if text else None
        self._learn(name, found)
        return Home(found, free, version, available)

    def _learn(self, name: RowName, plan: Plan | None) -> None:
        if plan is None:
            self._plans.pop(name, None)
            return
        if len(self._plans) >= MAX_KNOWN and name not in self._plans:
            self._plans.clear()
        self._plans[name] = plan

    async def _ask(
        self,
        name: RowName,
        plan: Plan,
        partitions: Iterable[int],
        *,
        recall: int = 0,
        divisor: int = 1,
        over_outages: bool = False,
    ) -> list[Report]:
        """Tell parts the plan, what they were granted and what to give back; hear how they are.

        `over_outages` leaves out those whose server does not answer.
        """
        return await self._ask_each(
            name,
            plan,
            dict.fromkeys(partitions, recall),
            divisor=divisor,
            over_outages=over_outages,
        )

    async def _ask_each(
        self,
        name: RowName,
        plan: Plan,
        recalls: Mapping[int, int],
        *,
        divisor: int = 1,
        over_outages: bool = False,
    ) -> list[Report]:
        answers = await asyncio.gather(
            *(self._ask_one(name, plan, p, recall, divisor) for p, recall in recalls.items()),
            return_exceptions=True,
        )
        reports = []
        for answer in answers:
            if isinstance(answer, Report):
                reports.append(answer)
            elif not over_outages or not isinstance(answer, StoreUnavailable):
                raise answer
        return reports

    async def _ask_one(
        self, name: RowName, plan: Plan, partition: int, recall: int, divisor: int
    ) -> Report:
        merchant, location, sku = name
        keys, cell = self._keys[partition], plan.cells[partition]
        is_open = plan.is_open and plan.is_settled and partition in plan.places
        command = Command(
            (
                keys.stock(*name),
                keys.skus(merchant, location),
                keys.locations,
                keys.recent(*name),
            ),
            (
                digest("split", *name),
                merchant,
                location,
                ACTOR,
                sku,
                location_member(merchant, location),
                self.home_of(name),
                plan.epoch,
                int(is_open),
                cell.granted,
                recall,
                divisor,
                cell.picked,
            ),
            merchant,
        )
        reply = await self._dispatch.run("part", partition, command)
        if Outcome(reply[0]) is not Outcome.OK:
            raise refusal(reply)
        version, received, returned, picked, reserved, heard, free, departures = reply[1:]
        return Report(
            partition, version, received, returned, picked, reserved, heard, departures, free
        )


class SplitKeeper:
    """Tends all split rows until told to stop, and ends what a killed process left undone."""

    def __init__(self, splits: Splits) -> None:
        """Any number may run: whatever they tell a row twice changes nothing."""
        self._splits = splits

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; outages of the store are waited out."""
        await in_rounds("split keeper", self.round, stop, pause_seconds=TEND_SECONDS)

    async def round(self) -> int:
        """Tend every split row; return how many there are.

        One that cannot be tended, as a server with a part of it is away, does not keep the others
        waiting. Raises what the store's calls raise, at the end.
        """
        names = await self._splits.all()
        failure: HoldfastError | None = None
        for name in names:
            try:
                await self._splits.tend(name)
            except HoldfastError as error:
                failure = error
        if failure is not None:
            raise failure
        return len(names)


def _place(places: Sequence[int], the_hash: str, home: int) -> int:
    return places[int(the_hash[:8], 16) % len(places)] if places else home


def _listed(text: str, separator: str) -> list[str]:
    return [] if text == "-" else text.split(separator)


def _places(text: str) -> tuple[int, ...]:
    return tuple(int(place) for place in _listed(text, ","))
