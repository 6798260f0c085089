"""Any order and any repetition of any events leave the row that a pure model says.

The model below is the rule of docs/concepts/feeds.md and nothing else: it is given the set of what
happened, with online commits among them, and knows nothing of when anything arrived.
"""

import random
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.feeds import EventType, FeedEvent, Feeds, Taken, Verdict
from engine.keys import digest, partition_of
from engine.model import Line, Movement, MovementType, Row
from reconciler.fold import Fold, PartitionState
from reconciler.reader import LedgerReader
from tests.property.bench import Bench
from tests.shop import ACTOR

pytestmark = pytest.mark.slow

LOCATION: Final = "high street"
SOURCES: Final = ("till", "depot")
HOUR_MS: Final = 3_600_000

ARRIVALS: Final = (EventType.RETURN, EventType.RECEIPT, EventType.TRANSFER_IN)

kinds = st.sampled_from(list(EventType)[:-1])
moments = st.integers(1, 12)
"""How many steps before now something happened: few, so that many happen at one moment."""

events = st.lists(
    st.tuples(kinds, moments, st.integers(1, 9), st.integers(0, 1)), min_size=1, max_size=14
)


@dataclass(frozen=True)
class Fact:
    """What happened: units that came or went, or, of a count, were there."""

    at_ms: int
    units: int
    count_id: str = ""


def books(facts: set[Fact] | list[Fact]) -> int:
    """Return the latest count and all that happened after it."""
    counts = [fact for fact in facts if fact.count_id]
    if not counts:
        return sum(fact.units for fact in facts)
    latest = max(counts, key=lambda fact: (fact.at_ms, fact.count_id[:8]))
    return latest.units + sum(
        fact.units for fact in facts if not fact.count_id and fact.at_ms > latest.at_ms
    )


def fact_of(event: FeedEvent, merchant: str, source: str) -> Fact:
    """Return what an event says."""
    if event.type is EventType.COUNT:
        parts = (merchant, LOCATION, source, event.event_id, str(event.sequence))
        return Fact(event.occurred_at_ms, event.quantity, digest("feed", *parts))
    signed = event.type in (*ARRIVALS, EventType.ADJUSTMENT)
    return Fact(event.occurred_at_ms, event.quantity if signed else -event.quantity)


def assert_books(row: Row, wanted: int) -> None:
    assert (row.on_hand, row.deficit) == (max(0, wanted), max(0, -wanted))


class Story:
    """One set of events, told in some order to a row of its own."""

    def __init__(self, bench: Bench, drawn: list[tuple[EventType, int, int, int]]) -> None:
        """Make the events of two sources, one of which counts them."""
        self.bench = bench
        self.merchant = f"m-{uuid4().hex[:12]}"
        self.feeds = Feeds(bench.inventory)
        self.told: list[tuple[str, FeedEvent]] = []
        counted = 0
        now_ms = bench.run(self.now_ms())
        for number, (kind, steps, quantity, place) in enumerate(drawn):
            counted += 1 - place
            event = FeedEvent(
                event_id=f"e{number}",
                type=kind,
                sku="tea",
                quantity=quantity,
                reason="found",
                occurred_at_ms=now_ms - steps * 5 * HOUR_MS,
                sequence=0 if place else counted,
            )
            self.told.append((SOURCES[place], event))

    async def now_ms(self) -> int:
        seconds, micros = await self.bench.client.execute_command("TIME")
        return int(seconds) * 1_000 + int(micros) // 1_000

    async def tell(self, order: list[int]) -> list[Verdict]:
        """Send the events that `order` names, one call for each stretch of one source."""
        verdicts = []
        for index in order:
            source, event = self.told[index]
            (answer,) = await self.feeds.take(self.merchant, LOCATION, source, [event], actor=ACTOR)
            assert isinstance(answer, Taken)
            verdicts.append(answer.verdict)
        return verdicts

    async def row(self) -> Row:
        """Read the row; one that was never made is empty."""
        (row,) = await self.bench.inventory.rows(self.merchant, [(LOCATION, "tea")])
        return row or Row(self.merchant, LOCATION, "tea", 0, 0, 0, 0, 0)


@given(drawn=events, seed=st.integers(0, 2**32))
def test_any_order_and_repetition_leaves_what_the_model_says(
    bench: Bench, drawn: list[tuple[EventType, int, int, int]], seed: int
) -> None:
    story = Story(bench, drawn)
    draw = random.Random(seed)
    order = draw.choices(range(len(drawn)), k=len(drawn)) + list(range(len(drawn)))
    draw.shuffle(order)
    verdicts = bench.run(story.tell(order))
    repetitions = len(order) - len(drawn)
    assert verdicts.count(Verdict.DUPLICATE) == repetitions
    facts = [fact_of(event, story.merchant, source) for source, event in story.told]
    assert_books(bench.run(story.row()), books(facts))
    for source in bench.run(story.feeds.sources(story.merchant, LOCATION)):
        assert source.gaps == ()
    bench.run(bench.audit.check(merchant=story.merchant))


@given(
    drawn=events,
    seed=st.integers(0, 2**32),
    sales=st.lists(st.integers(1, 3), max_size=5),
    counted=st.integers(0, 20),
)
def test_online_orders_and_movements_are_part_of_the_set(
    bench: Bench,
    drawn: list[tuple[EventType, int, int, int]],
    seed: int,
    sales: list[int],
    counted: int,
) -> None:
    """Orders commit between the events, and a count of before them comes after all of them."""
    story = Story(bench, drawn)
    draw = random.Random(seed)
    order = list(range(len(drawn)))
    draw.shuffle(order)
    facts = bench.run(_trade(story, order, sales, draw))
    assert_books(bench.run(story.row()), books(facts))
    now_ms = bench.run(story.now_ms())
    last = Movement(
        key="last",
        location=LOCATION,
        type=MovementType.COUNT,
        sku="tea",
        quantity=counted,
        occurred_at_ms=now_ms - 3 * HOUR_MS,
    )
    moved = bench.run(bench.inventory.move(story.merchant, last, actor=ACTOR))
    facts.append(Fact(now_ms - 3 * HOUR_MS, counted, "f" * 24))
    assert_books(moved.row, books(facts))
    bench.run(bench.audit.check(merchant=story.merchant))


async def _trade(
    story: Story, order: list[int], sales: list[int], draw: random.Random
) -> list[Fact]:
    """Tell the events in order, with online orders among them; return all that happened."""
    inventory, merchant = story.bench.inventory, story.merchant
    facts = []
    steps: list[int | tuple[int]] = [*order, *[(units,) for units in sales]]
    draw.shuffle(steps)
    for number, step in enumerate(steps):
        if isinstance(step, int):
            await story.tell([step])
            source, event = story.told[step]
            facts.append(fact_of(event, merchant, source))
            continue
        row = await story.row()
        if row.available < step[0]:
            continue
        held = await inventory.reserve(
            merchant, LOCATION, [Line("tea", step[0])], key=f"k{number}", actor=ACTOR
        )
        done = await inventory.commit(merchant, held.reservation.id, actor=ACTOR)
        facts.append(Fact(done.reservation.ended_at_ms or 0, -step[0]))
    return facts


@given(drawn=events, seed=st.integers(0, 2**32))
def test_the_fold_of_the_ledger_knows_the_same(
    bench: Bench, drawn: list[tuple[EventType, int, int, int]], seed: int
) -> None:
    """What the ledger folds to has the sources, what was set aside, and the row's past."""
    story = Story(bench, drawn)
    order = list(range(len(drawn)))
    random.Random(seed).shuffle(order)
    bench.run(story.tell(order[: len(order) // 2 + 1]))
    far = msgspec.structs.replace(story.told[0][1], event_id="far", occurred_at_ms=1, sequence=0)
    aside = bench.run(story.feeds.take(story.merchant, LOCATION, "other", [far], actor=ACTOR))
    counts = [event for _, event in story.told if event.type is EventType.COUNT]
    assert isinstance(aside[0], Taken)
    assert counts or aside[0].verdict is Verdict.QUARANTINED
    state = bench.run(_folded(bench, story))
    mine = {key[2]: value for key, value in state.sources.items() if key[0] == story.merchant}
    for source in bench.run(story.feeds.sources(story.merchant, LOCATION)):
        folded = mine.pop(source.name)
        assert (folded.watermark, folded.highest) == (source.watermark, source.highest)
        assert len(folded.ahead) == len(source.gaps)
    assert mine == {}
    page = bench.run(story.feeds.quarantined(story.merchant, LOCATION))
    assert {one.id for one in page.items} == {
        the_id for the_id, one in state.quarantine.items() if one.merchant == story.merchant
    }


async def _folded(bench: Bench, story: Story) -> PartitionState:
    keys = bench.inventory.keys[partition_of(story.merchant, LOCATION, bench.inventory.partitions)]
    reader = LedgerReader(bench.inventory.store, bench.inventory.keys, None)
    fold = Fold()
    async for entry in reader.entries(keys.partition, after_sequence=0):
        fold.apply(entry)
    assert fold.disagreements == []
    return fold.state
