"""Every figure in the order of the report: its name, unit and aim, and how it is taken."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

from bench import (
    costs,
    engine,
    fairness,
    http,
    instructions,
    limits,
    memory,
    postgres,
    reconciler,
    refusals,
    scripts,
    shop,
    splits,
    streams,
)
from bench.figures import Aim, Conditions, Experiment, Figure, Sample, Samples

RATE: Final = "/s"
BYTES: Final = "bytes"
MS: Final = "ms"
US: Final = "us"
PERCENT: Final = "%"
SECONDS: Final = "s"
INSTRUCTIONS: Final = "instr"

LIMIT_GET: Final = "limit.get"
LIMIT_POST: Final = "limit.post"
LIMIT_SCRIPT: Final = "limit.script"
PEER_HOT_ROW: Final = "postgres.reserve.hot_row"
PEER_UNIFORM: Final = "postgres.reserve.uniform"

OF_A_POST: Final = Aim(at_least=0.7, of=LIMIT_POST)
OF_A_GET: Final = Aim(at_least=0.9, of=LIMIT_GET)
OF_THE_SCRIPT: Final = Aim(at_least=0.6, of=LIMIT_SCRIPT)
OF_THE_PEER: Final = Aim(at_least=20, of=PEER_HOT_ROW)

ROW_BYTES: Final = Aim(at_most=250)
HOLD_BYTES: Final = Aim(at_most=500)
READ_MS: Final = Aim(at_most=50)
RESERVE_MS: Final = Aim(at_most=150)
REFUSAL_MS: Final = Aim(at_most=50)
PLAIN_RESERVE_INSTRUCTIONS: Final = {"hot_row": 92_000, "uniform": 146_000, "big_carts": 630_000}
"""What a reserve of plain rows took before a row could have terms and a line substitutes (at
f625f34, Valkey 9.1): those who use none of it are not to pay for it."""

REPLAY_RATE: Final = Aim(at_least=200_000)
REBUILD_SECONDS: Final = Aim(at_most=60)

ROW_COUNTS: Final = {"10k": 10_000, "100k": 100_000, "1m": 1_000_000}
LARGEST: Final = "1m"


def _one(figure: Figure, measure: Callable[[Conditions], Awaitable[Sample]]) -> Experiment:
    async def take(conditions: Conditions) -> Samples:
        return {figure.name: [await measure(conditions)]}

    return Experiment(figures=(figure,), measure=take)


def _rate(
    name: str,
    meaning: str,
    measure: Callable[[Conditions], Awaitable[Sample]],
    *aims: Aim,
    beside: tuple[str, ...] = (),
) -> Experiment:
    figure = Figure(name=name, unit=RATE, meaning=meaning, aims=aims, beside=beside)
    return _one(figure, measure)


LIMITS: Final = (
    _rate(LIMIT_GET, "do-nothing GET", limits.get),
    _rate(LIMIT_POST, "do-nothing POST", limits.post),
    _rate(LIMIT_SCRIPT, "bare conditional decrement on the store", limits.bare_script),
)

PEERS: Final = (
    _rate(
        PEER_HOT_ROW,
        "PostgreSQL procedure, one row",
        partial(postgres.reserve, transaction=postgres.HOT_ROW),
    ),
    _rate(
        PEER_UNIFORM,
        "PostgreSQL procedure, 10,000 rows",
        partial(postgres.reserve, transaction=postgres.UNIFORM),
    ),
)

SCRIPTS: Final = (
    _rate(
        "scripts.reserve.hot_row",
        "the reserve script alone, one row, groups of 128",
        partial(scripts.reserve, make_shop=shop.hot_row),
        OF_THE_SCRIPT,
        OF_THE_PEER,
    ),
)


ENGINE: Final = (
    _rate(
        "engine.reserve.hot_row",
        "reserves of one row, in process",
        partial(engine.reserve, make_shop=shop.hot_row),
        OF_THE_SCRIPT,
        OF_THE_PEER,
    ),
    _rate(
        "engine.reserve.uniform",
        "reserves over 10,000 rows, in process",
        partial(engine.reserve, make_shop=shop.uniform),
        beside=(PEER_UNIFORM,),
    ),
    _rate(
        "engine.reserve.driver",
        "the same through redis-py's pool of connections",
        partial(engine.reserve, make_shop=shop.uniform, through_driver=True),
        beside=("engine.reserve.uniform",),
    ),
    _rate(
        "engine.reserve.big_carts",
        "reserves of 10 lines, in process",
        partial(engine.reserve, make_shop=shop.big_carts),
    ),
    _rate(
        "engine.commit",
        "commits over 10,000 rows, in process",
        partial(engine.commit, make_shop=shop.uniform),
    ),
    _rate(
        "engine.release",
        "releases over 10,000 rows, in process",
        partial(engine.release, make_shop=shop.uniform),
    ),
    _rate(
        "engine.read",
        "reads of one row, in process",
        partial(engine.read, make_shop=shop.uniform),
    ),
    _rate(
        "engine.read_batch",
        "reads of 100 rows, in process",
        partial(engine.read_batch, make_shop=shop.uniform),
    ),
)

HTTP: Final = (
    _rate(
        "http.reserve.hot_row",
        "reserves of one row",
        partial(http.reserve, make_shop=shop.hot_row),
        OF_A_POST,
        OF_THE_PEER,
        beside=(LIMIT_SCRIPT,),
    ),
    _rate(
        "http.reserve.uniform",
        "reserves over 10,000 rows",
        partial(http.reserve, make_shop=shop.uniform),
        OF_A_POST,
        beside=(PEER_UNIFORM,),
    ),
    _rate(
        "http.reserve.big_carts",
        "reserves of 10 lines",
        partial(http.reserve, make_shop=shop.big_carts),
        beside=(LIMIT_POST,),
    ),
    _rate(
        "http.commit",
        "commits over 10,000 rows",
        partial(http.commit, make_shop=shop.uniform),
        beside=(LIMIT_POST,),
    ),
    _rate(
        "http.release",
        "releases over 10,000 rows",
        partial(http.release, make_shop=shop.uniform),
        beside=(LIMIT_POST,),
    ),
    _rate("http.read", "reads of one row", partial(http.read, make_shop=shop.uniform), OF_A_GET),
    _rate(
        "http.read_batch",
        "reads of 100 rows",
        partial(http.read_batch, make_shop=shop.uniform),
    ),
    _one(
        Figure(
            name="http.reserve.at_rate",
            unit=MS,
            meaning=f"p95 of {http.RESERVES_PER_SECOND:,} reserves/s, from when they were due",
            aims=(RESERVE_MS,),
        ),
        partial(http.reserve_at_rate, make_shop=shop.uniform),
    ),
    _one(
        Figure(
            name="http.read.at_rate",
            unit=MS,
            meaning=f"p95 of {http.READS_PER_SECOND:,} reads/s, from when they were due",
            aims=(READ_MS,),
        ),
        partial(http.read_at_rate, make_shop=shop.uniform),
    ),
    _one(
        Figure(
            name="http.stream.lag",
            unit=MS,
            meaning=(
                f"p99 from commit to client, {streams.STREAMS:,} streams, "
                f"{streams.CHANGES_PER_SECOND:,} changes/s"
            ),
        ),
        streams.lag,
    ),
)


def _fairness() -> Experiment:
    quiet = f"p95 of a quiet merchant's {fairness.QUIET_PER_SECOND} reserves/s"
    meanings = {
        fairness.ALONE: quiet,
        fairness.ELSEWHERE: f"{quiet} beside a noisy one",
        fairness.TOGETHER: f"{quiet} beside a noisy one in its partition",
        fairness.REFUSAL: "p99 of the time in which the noisy one was refused",
    }
    alone = f"http.fair.{fairness.ALONE}"
    figures = {
        name: Figure(
            name=f"http.fair.{name}",
            unit=MS,
            meaning=meaning,
            aims=(REFUSAL_MS,) if name == fairness.REFUSAL else (RESERVE_MS,),
            beside=(alone,) if name in (fairness.ELSEWHERE, fairness.TOGETHER) else (),
        )
        for name, meaning in meanings.items()
    }

    async def take(conditions: Conditions) -> Samples:
        found = await fairness.fairness(conditions)
        return {figures[name].name: samples for name, samples in found.items()}

    return Experiment(figures=tuple(figures.values()), measure=take)


OVERLOAD: Final = (
    _rate(
        "http.refuse.sold_out",
        "refusals of a sold-out row, of first attempts",
        partial(refusals.refuse, first_attempts=True),
        beside=(LIMIT_POST,),
    ),
    _rate(
        "http.refuse.unmarked",
        "refusals of a sold-out row, of attempts that may be retries",
        partial(refusals.refuse, first_attempts=False),
        beside=(LIMIT_POST,),
    ),
    _one(
        Figure(
            name="http.refuse.restocked",
            unit=MS,
            meaning="the longest time for which units that were back were still refused",
            aims=(REFUSAL_MS,),
        ),
        refusals.restocked,
    ),
    _fairness(),
)


def _row_figures(size: str) -> dict[str, Figure]:
    """Return the figures of a stock of so many rows, by the kind of memory."""
    meanings = {
        memory.ROW: f"a row among {size}, with its listings",
        memory.RECORD: f"an idempotency record among {size}",
        memory.EVERYTHING: f"a row just received among {size}, with record and ledger",
    }
    return {
        kind: Figure(
            name=f"memory.{kind}.{size}",
            unit=BYTES,
            meaning=meaning,
            aims=(ROW_BYTES,) if kind == memory.ROW else (),
        )
        for kind, meaning in meanings.items()
    }


def _named(figures: Mapping[str, Figure], samples: Mapping[str, Sample]) -> Samples:
    return {figures[kind].name: [sample] for kind, sample in samples.items()}


def _costs() -> Experiment:
    figures = {
        name: Figure(name=f"cost.{name}", unit=US, meaning=meaning)
        for name, meaning in costs.MEANINGS.items()
    }

    async def take(conditions: Conditions) -> Samples:
        return _named(figures, await costs.measure(conditions))

    return Experiment(figures=tuple(figures.values()), measure=take)


def _instructions() -> Experiment:
    figures = {
        name: Figure(
            name=f"instructions.{name}",
            unit=INSTRUCTIONS,
            meaning=f"instructions of the server for a reserve in a group of 128, {of}",
            aims=(Aim(at_most=PLAIN_RESERVE_INSTRUCTIONS[name]),),
        )
        for name, of in costs.SHOPS.items()
    }

    async def take(_: Conditions) -> Samples:
        counts = await instructions.measure()
        return _named(figures, {name: Sample(value=count) for name, count in counts.items()})

    return Experiment(figures=tuple(figures.values()), measure=take, once=True)


def _rows(size: str) -> Experiment:
    figures = _row_figures(size)

    async def take(conditions: Conditions) -> Samples:
        return _named(figures, await memory.rows(conditions, ROW_COUNTS[size]))

    return Experiment(figures=tuple(figures.values()), measure=take)


def _rows_and_starts(size: str) -> Experiment:
    figures = _row_figures(size)
    start = Figure(
        name=f"store.start.{size}", unit=SECONDS, meaning=f"start of the store with {size} rows"
    )

    async def take(conditions: Conditions) -> Samples:
        samples, starts = await memory.rows_and_starts(conditions, ROW_COUNTS[size])
        return {**_named(figures, samples), start.name: starts}

    return Experiment(
        figures=(*figures.values(), start), measure=take, once=True, skipped_when_quick=True
    )


def _holds() -> Experiment:
    figures = {
        memory.HOLD: Figure(
            name="memory.hold",
            unit=BYTES,
            meaning="a live hold of one line, with all its indexes",
            aims=(HOLD_BYTES,),
        ),
        memory.OPERATION: Figure(
            name="memory.operation", unit=BYTES, meaning="a reserve's share of a ledger entry"
        ),
    }

    async def take(conditions: Conditions) -> Samples:
        return _named(figures, await memory.holds(conditions))

    return Experiment(figures=tuple(figures.values()), measure=take)


MEMORY: Final = (_rows("10k"), _rows("100k"), _rows_and_starts(LARGEST), _holds())


def _passes() -> Experiment:
    figures = {
        reconciler.ARCHIVE: Figure(
            name="reconciler.archive", unit=RATE, meaning="operations archived and read back"
        ),
        reconciler.FOLD: Figure(
            name="reconciler.fold",
            unit=RATE,
            meaning="operations replayed from the archive",
            aims=(REPLAY_RATE,),
        ),
        reconciler.AUDIT: Figure(
            name="reconciler.audit",
            unit=RATE,
            meaning="rows, reservations and records compared with the ledger",
        ),
    }

    async def take(conditions: Conditions) -> Samples:
        return _named(figures, await reconciler.passes(conditions))

    return Experiment(figures=tuple(figures.values()), measure=take)


def _rebuild(size: str, *aims: Aim) -> Experiment:
    figure = Figure(
        name=f"reconciler.rebuild.{size}",
        unit=SECONDS,
        meaning=f"rebuild of {size} rows with their last hour's ledger",
        aims=aims,
    )

    async def take(conditions: Conditions) -> Samples:
        return {figure.name: [await reconciler.rebuild(conditions, ROW_COUNTS[size])]}

    is_large = size == LARGEST
    return Experiment(figures=(figure,), measure=take, once=is_large, skipped_when_quick=is_large)


RECONCILER: Final = (
    _passes(),
    _rebuild("100k"),
    _rebuild(LARGEST, REBUILD_SECONDS),
    _rate(
        "http.reserve.audited",
        "reserves over 10,000 rows while audits follow each other",
        partial(reconciler.reserve_while_audited, make_shop=shop.uniform),
        beside=("http.reserve.uniform",),
    ),
)

SPLIT_PARTS: Final = (1, 2, 4)


def _split(parts: int) -> Experiment:
    """One row over so many parts, on a cluster of three servers; 1 is not split."""
    return Experiment(
        figures=(
            Figure(
                name=f"split.reserve.{parts}",
                unit=RATE,
                meaning=f"reserves of one row on a local cluster, parts: {parts}",
                beside=("split.reserve.1",) if parts > 1 else (),
            ),
            Figure(
                name=f"split.busiest.{parts}",
                unit=US,
                meaning=f"CPU of the busiest server per reserve, parts: {parts}",
                beside=("split.busiest.1",) if parts > 1 else (),
            ),
            Figure(
                name=f"split.servers.{parts}",
                unit=US,
                meaning=f"CPU of all servers per reserve, parts: {parts}",
                beside=("split.servers.1",) if parts > 1 else (),
            ),
        ),
        measure=partial(splits.reserve, parts=parts),
    )


SPLIT: Final = (
    *[_split(parts) for parts in SPLIT_PARTS],
    Experiment(
        figures=(
            Figure(
                name="split.wrong_refusals",
                unit=PERCENT,
                meaning="of the refusals to a crowd at the last 100 units over 4 parts",
            ),
        ),
        measure=splits.last_units,
    ),
)

EXPERIMENTS: Final = (
    *(*LIMITS, *PEERS, *SCRIPTS, _costs(), _instructions()),
    *(*ENGINE, *SPLIT, *HTTP, *OVERLOAD, *MEMORY, *RECONCILER),
)
"""A reference stands near what is compared with it, so that both meet the same moment."""
