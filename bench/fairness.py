"""A quiet merchant beside one who asks for ten times of what the service can do.

The quiet one's reserves arrive at a fixed low rate and count from when they were due. The noisy one
is a process of its own (`bench.noise`). A location decides the partition, and so whether the two
have a queue and script calls in common.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from bench import servers
from bench.account import AccountWrong
from bench.figures import Conditions, Sample
from bench.http import CREATED, ReserveRequests
from bench.load import Load, LoadFailed, Window, open_loop
from bench.noise import GOING, KEY_VARIABLE, OVERLOAD, Heard
from bench.servers import Child, Service
from bench.shop import ACTOR, MERCHANT, OPENING_UNITS, Cart, Shop, hot_row
from engine.access import Role, create_key
from engine.boot import DEFAULT_PARTITIONS
from engine.inventory import Inventory
from engine.keys import partition_of
from engine.model import Line, Movement, MovementType
from engine.store import close_quietly, connect

QUIET: Final = "quiet"
QUIET_PER_SECOND: Final = 50
QUIET_CONNECTIONS: Final = 64

MAX_LOCATIONS: Final = 1_000
"""Names tried until one falls into the partition that is wanted."""

NOISE_TAIL_SECONDS: Final = 2.0
"""How much longer the noise lasts than what is measured beside it."""

ALONE: Final = "alone"
ELSEWHERE: Final = "other_partition"
TOGETHER: Final = "same_partition"
REFUSAL: Final = "refusal"


async def fairness(conditions: Conditions) -> Mapping[str, list[Sample]]:
    """Measure the quiet merchant's 95th percentile in ms: ALONE, ELSEWHERE and TOGETHER.

    REFUSAL is the 99th percentile of how long the noisy one's refusals took, over both of its runs;
    it has no sample where nothing was refused.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in (ALONE, ELSEWHERE, TOGETHER, REFUSAL)}
    for name in (ALONE, ELSEWHERE, TOGETHER):
        load, heard = await _measure(conditions, name)
        details: dict[str, float | str] = {
            "due_per_second": QUIET_PER_SECOND,
            "refused_share": round(load.refused_share, 4),
        }
        if heard is not None:
            details |= _of_the_noise(heard)
            if heard.refusal is not None:
                samples[REFUSAL].append(
                    Sample(
                        value=heard.refusal.p99_ms,
                        latency=heard.refusal,
                        details={"partition": name, **_of_the_noise(heard)},
                    )
                )
        samples[name].append(Sample.of_p95(load, **details))
    return samples


def _of_the_noise(heard: Heard) -> dict[str, float | str]:
    return {
        "overload": OVERLOAD,
        "noisy_answered_per_second": round(heard.per_second, 1),
        "noisy_refused_share": round(heard.refused_share, 4),
        "noisy_p95_ms": round(heard.latency.p95_ms, 2),
    }


async def _measure(conditions: Conditions, name: str) -> tuple[Load, Heard | None]:
    """Run the quiet merchant, alone or beside the noisy one, and check both their accounts."""
    shop = _quiet_shop(together=name == TOGETHER)
    async with servers.service(conditions, hot_row().rows) as service:
        quiet_key, noisy_key = await _keys(service)
        async with servers.inventory(service.store) as inventory:
            await _stock_up(inventory, shop)
            heard: Heard | None = None
            if name == ALONE:
                load = await _quiet(conditions, service, shop, quiet_key)
            else:
                async with _noise(conditions, service, noisy_key) as noise:
                    load = await _quiet(conditions, service, shop, quiet_key)
                    heard = await _end_of(noise)
            await _check(inventory, QUIET, shop, len(load.accepted(CREATED)))
            if heard is not None:
                await _check(inventory, MERCHANT, hot_row(), heard.statuses.get(CREATED, 0))
    return load, heard


async def _quiet(conditions: Conditions, service: Service, shop: Shop, api_key: str) -> Load:
    return await open_loop(
        service.address,
        ReserveRequests(shop, api_key, merchant=QUIET),
        connections=QUIET_CONNECTIONS,
        rate_per_second=QUIET_PER_SECOND,
        window=conditions.window,
    )


def _quiet_shop(*, together: bool) -> Shop:
    """Return a shop of one row whose partition is, or is not, that of the noisy merchant's row."""
    noisy = partition_of(MERCHANT, hot_row().rows[0][0], DEFAULT_PARTITIONS)
    for number in range(MAX_LOCATIONS):
        location = f"store-{number}"
        if (partition_of(QUIET, location, DEFAULT_PARTITIONS) == noisy) is together:
            return Shop([(location, "sku-0")], [Cart(location, (Line("sku-0", 1),))])
    raise LoadFailed(f"none of {MAX_LOCATIONS} locations falls into the partition that is wanted")


async def _keys(service: Service) -> tuple[str, str]:
    """Make each merchant a key of its own, as two customers have."""
    client = connect(service.store)
    try:
        _, quiet = await create_key(client, role=Role.RESERVE, merchant=QUIET, label=QUIET)
        _, noisy = await create_key(client, role=Role.RESERVE, merchant=MERCHANT, label="noisy")
    finally:
        await close_quietly(client)
    return quiet, noisy


async def _stock_up(inventory: Inventory, shop: Shop) -> None:
    for location, sku in shop.rows:
        movement = Movement(
            key=f"opening-{sku}",
            location=location,
            type=MovementType.RECEIVE,
            sku=sku,
            quantity=OPENING_UNITS,
        )
        await inventory.move(QUIET, movement, actor=ACTOR)


@asynccontextmanager
async def _noise(conditions: Conditions, service: Service, api_key: str) -> AsyncIterator[Child]:
    """Start the noisy merchant, and wait until it is at it."""
    window = Window(
        conditions.window.warm_up_seconds, conditions.window.seconds + NOISE_TAIL_SECONDS
    )
    async with servers.module_said(
        "noise",
        *(str(part) for part in (*service.address, *window)),
        conditions=conditions,
        environment={KEY_VARIABLE: api_key},
    ) as noise:

        async def is_going() -> bool:
            return noise.said().startswith(GOING)

        await noise.ready("the noisy merchant", is_going)
        yield noise


async def _end_of(noise: Child) -> Heard:
    """Wait until the noise is over, and return what it heard. Raises ServerFailed."""

    async def is_over() -> bool:
        return noise.said().endswith(b"}\n")

    await noise.ready("the noisy merchant", is_over)
    return msgspec.json.decode(noise.said().removeprefix(GOING), type=Heard)


async def _check(inventory: Inventory, merchant: str, shop: Shop, held: int) -> None:
    """Compare a merchant's row with what was acknowledged to them. Raises AccountWrong."""
    ((location, sku),) = shop.rows
    row = await inventory.row(merchant, location, sku)
    if (row.on_hand, row.reserved) != (OPENING_UNITS, held):
        raise AccountWrong(f"{row}, where {held} units were acknowledged as held")
