"""Commands on their way to the scripts: one lane a partition and verb, one call a group."""

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec

from engine import metrics, tracing
from engine.keys import PartitionKeys
from engine.lane import RETRY_AFTER_MS, Backlog, Lane
from engine.limits import (
    MAX_GROUP_COMMANDS,
    MAX_GROUP_KEYS,
    MAX_QUEUED_COMMANDS,
    MAX_QUEUED_OF_A_MERCHANT,
    MAX_QUEUED_READS,
    script_limits,
)
from engine.outcomes import HoldfastError, Overloaded, StoreFault
from engine.packing import packed, packed_list
from engine.scripts import script
from engine.store import Store

MAX_GROUP_READS: Final = 512
"""Reads in one round trip: their replies must not keep the next callers waiting."""

BULK_GROUPS: Final = 4
"""Groups of bulk callers under way at once in one process: enough to keep the store busy, and half
of what one merchant may have waiting."""

MAX_BULK_CALLERS: Final = 64
"""Bulk callers in one process, each with up to 1,000 items in memory."""

Answer = TypeVar("Answer")

_decode = msgspec.msgpack.Decoder(list[list[Any]]).decode
_LIMITS: Final = msgspec.msgpack.encode(script_limits())


class Command(msgspec.Struct, frozen=True):
    """One command: its own keys, and its arguments as the verb's header in `lua/` lists them.

    `merchant` is whose turn it takes: the merchants of a partition are served one after the other,
    so that one with a queue does not keep the others waiting. `work` is what it costs the store
    beside its keys, in keys: so much less goes out with it in one call.
    """

    keys: tuple[str, ...]
    arguments: tuple[Any, ...]
    merchant: str = ""
    work: int = 0


ReadCommand = tuple[str | int, ...]


class Dispatcher:
    """Takes commands and reads of many callers and hands them to the store in groups."""

    def __init__(self, store: Store, partitions: Sequence[PartitionKeys]) -> None:
        """Make no lane yet; each comes with its first command."""
        self._store = store
        self._partitions = partitions
        self._backlogs = [
            Backlog(MAX_QUEUED_COMMANDS, MAX_QUEUED_OF_A_MERCHANT) for _ in partitions
        ]
        self._bulk_callers = 0
        self._bulk_turns = asyncio.Semaphore(BULK_GROUPS)
        self._lanes: dict[tuple[int, str], Lane[Command, list[Any]]] = {}
        self._read_backlog = Backlog(MAX_QUEUED_READS)
        self._reads: Lane[ReadCommand, Any] = Lane(
            self._read,
            self._read_backlog,
            most_items=MAX_GROUP_READS,
            most_weight=MAX_GROUP_READS,
            weigh=lambda _: 1,
        )

    @property
    def waiting(self) -> int:
        """How many commands wait to go to the store, those that only read included."""
        return sum(backlog.waiting for backlog in self._backlogs) + self._read_backlog.waiting

    async def run(self, verb: str, partition: int, command: Command) -> list[Any]:
        """Run one command in whatever group it comes to, and return its reply.

        Raises what `Store.call` raises, and Overloaded.
        """
        lane = self._lanes.get((partition, verb))
        if lane is None:
            lane = self._lanes[partition, verb] = self._lane(verb, partition)
        spans = tracing.spans()
        if spans is None:
            return await lane.submit(command, command.merchant)
        # Of this command, its waiting included: the call that carries it is of many requests.
        attributes: dict[str, str | int] = {
            "db.system.name": "redis",
            "db.operation.name": verb,
            "holdfast.partition": partition,
        }
        with spans.client(f"store {verb}", attributes):
            return await lane.submit(command, command.merchant)

    async def bulk(self, jobs: Iterator[Coroutine[Any, Any, Answer]]) -> list[Answer | Exception]:
        """Run the jobs of one caller, a group at a time, so that they do not fill the queues.

        Whoever sends a thousand movements can wait; who stands at a checkout cannot. Each job's
        answer or exception, in order. Raises Overloaded where too many such callers wait.
        """
        if self._bulk_callers >= MAX_BULK_CALLERS:
            metrics.SHEDS.add(("bulk",))
            raise Overloaded(retry_after_ms=RETRY_AFTER_MS)
        self._bulk_callers += 1
        answers: list[Answer | Exception] = []
        try:
            while group := list(islice(jobs, MAX_GROUP_COMMANDS)):
                async with self._bulk_turns:
                    done = await asyncio.gather(*group, return_exceptions=True)
                for answer in done:
                    if isinstance(answer, BaseException) and not isinstance(answer, Exception):
                        raise answer
                    answers.append(answer)
        finally:
            self._bulk_callers -= 1
        return answers

    async def read(self, *command: str | int) -> Any:
        """Run one reading command together with those of other callers; the reply as bytes."""
        return await self._reads.submit(command)

    def _lane(self, verb: str, partition: int) -> Lane[Command, list[Any]]:
        keys = self._partitions[partition]
        fixed = (keys.meta, keys.ledger, keys.holds)
        the_script = script(verb)
        batches = metrics.BATCH_COMMANDS.of(verb)

        async def call(commands: list[Command]) -> list[list[Any] | HoldfastError]:
            all_keys = list(fixed)
            for command in commands:
                all_keys += command.keys
            own_keys = packed_list([len(command.keys) for command in commands])
            bodies = [packed(*command.arguments) for command in commands]
            batches.observe(len(commands))
            try:
                reply = await self._store.call(the_script, all_keys, _LIMITS, own_keys, *bodies)
            except StoreFault as fault:
                if len(commands) == 1:
                    return [fault]
                # One damaged key fails a whole group before it has written anything; alone, each
                # command fails or passes for itself.
                return [(await call([command]))[0] for command in commands]
            return [*_decode(reply)]

        return Lane(
            call,
            self._backlogs[partition],
            most_items=MAX_GROUP_COMMANDS,
            most_weight=MAX_GROUP_KEYS,
            weigh=lambda command: len(command.keys) + command.work,
        )

    async def _read(self, commands: list[ReadCommand]) -> list[Any]:
        try:
            return await self._store.read(commands)
        except StoreFault as fault:
            if len(commands) == 1:
                return [fault]
            # As with the verbs: a damaged key is the trouble of those alone who ask for it.
            return [(await self._read([command]))[0] for command in commands]
