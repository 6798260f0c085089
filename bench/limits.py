"""The limits: what the same machine does when there is next to nothing to do.

A do-nothing Starlette + msgspec server under the gateway's settings and the same load; and the
least that a script on the same store can do, which is to take one unit if there is one.
"""

import asyncio
import csv
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from bench import servers
from bench.figures import Conditions, Sample
from bench.http import CONNECTIONS, CREATED, OK, ReserveRequests, row_requests
from bench.load import Address, LoadFailed, ask, closed_loop
from bench.pipeline import packed, pipeline
from bench.shop import OPENING_UNITS, uniform
from engine.keys import PartitionKeys
from engine.store import StoreSettings, close_quietly, connect
from holdfast.embedded import EmbeddedStore
from holdfast.listener import listen, reachable_address

READY_SECONDS: Final = 30.0
NO_KEY: Final = "hfk_nobody_asks_for_it"

BARE_SCRIPT: Final = """#!lua
local units, wanted = tonumber(redis.call('GET', KEYS[1])), tonumber(ARGV[1])
if not units or units < wanted then return -1 end
return redis.call('DECRBY', KEYS[1], ARGV[1])
"""
"""Takes units if there are as many: no row, no hold, no ledger, no retries."""

BARE_CALLS: Final = 1_000_000
BARE_CALLS_WHEN_QUICK: Final = 200_000
BARE_CLIENTS: Final = 8
BARE_PIPELINE: Final = 128
"""Calls that a client sends at once: as many as the product's groups hold."""

BENCHMARK_SECONDS: Final = 120.0


async def get(conditions: Conditions) -> Sample:
    """Measure a do-nothing GET: answer a row that is always the same."""
    async with _doing_nothing(conditions) as address:
        load = await closed_loop(
            address,
            row_requests(uniform(), NO_KEY),
            connections=CONNECTIONS,
            window=conditions.window,
        )
        return Sample.of_rate(load.demand(OK), connections=CONNECTIONS)


async def post(conditions: Conditions) -> Sample:
    """Measure a do-nothing POST: decode a reserve, answer a reservation that is always the same."""
    async with _doing_nothing(conditions) as address:
        load = await closed_loop(
            address,
            ReserveRequests(uniform(), NO_KEY),
            connections=CONNECTIONS,
            window=conditions.window,
        )
        return Sample.of_rate(load.demand(CREATED), connections=CONNECTIONS)


@asynccontextmanager
async def _doing_nothing(conditions: Conditions) -> AsyncIterator[Address]:
    with listen("127.0.0.1", 0) as listener:
        fd = listener.fileno()
        address = reachable_address(listener)
        async with servers.module("nothing", str(fd), pass_fds=[fd], conditions=conditions):
            # The socket listens already: the answer comes as soon as the server takes it up.
            question = row_requests(uniform(), NO_KEY)(0)
            status, _ = await ask(address, question, within_seconds=READY_SECONDS)
            if status != OK:
                raise LoadFailed(f"the do-nothing server answers {status}")
            yield address


async def bare_script(conditions: Conditions) -> Sample:
    """Measure the bare script, pipelined, on a store with the product's own settings."""
    calls = BARE_CALLS_WHEN_QUICK if conditions.quick else BARE_CALLS
    key = PartitionKeys(0).probe()[2]
    program = shutil.which("redis-benchmark")
    async with servers.store(conditions) as server:
        client = connect(server.settings)
        try:
            await client.execute_command("SET", key, OPENING_UNITS)
            sha = str(await client.execute_command("SCRIPT LOAD", BARE_SCRIPT))
            command = ("EVALSHA", sha, "1", key, "1")
            if program is not None:
                rate = await _redis_benchmark(program, server, command, calls)
            else:
                rate = await _own_loop(server.settings, command, calls)
            left = int(await client.execute_command("GET", key))
        finally:
            await close_quietly(client)
    if OPENING_UNITS - left < calls:
        raise LoadFailed(f"{OPENING_UNITS - left} units were taken by {calls} calls")
    return Sample(value=rate, details={"driver": Path(program).name if program else "own loop"})


async def _redis_benchmark(
    program: str, server: EmbeddedStore, command: tuple[str, ...], calls: int
) -> float:
    """Run the store's own benchmark program; return calls a second."""
    settings = server.settings
    argv = [program, "-s", servers.socket_path(settings), "--csv", "-n", str(calls)]
    # The password is a random one of a store that is gone a moment later.
    argv += ["--user", settings.username, "-a", settings.password]
    argv += ["-c", str(BARE_CLIENTS), "-P", str(BARE_PIPELINE), *command]
    output = await servers.run(argv, within_seconds=BENCHMARK_SECONDS)
    # Two lines of CSV, the names of the columns and the figures; warnings may stand before them.
    lines = [line for line in output.splitlines() if line.startswith('"')]
    for row in csv.DictReader(lines):
        return float(row["rps"])
    raise LoadFailed(f"{program} said: {output[:200]}")


async def _own_loop(settings: StoreSettings, command: tuple[str, ...], calls: int) -> float:
    chunks = [packed(*command) * BARE_PIPELINE] * -(-calls // BARE_PIPELINE)
    began_at = time.perf_counter()
    replies = await asyncio.to_thread(
        pipeline, settings, chunks, replies_each=BARE_PIPELINE, chunks_ahead=BARE_CLIENTS
    )
    return replies / (time.perf_counter() - began_at)
