"""Commands on their way to the scripts: one lane a partition and verb, one call a group."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from engine.keys import PartitionKeys
from engine.lane import Backlog, Lane
from engine.limits import (
    MAX_GROUP_COMMANDS,
    MAX_GROUP_KEYS,
    MAX_QUEUED_COMMANDS,
    script_limits,
)
from engine.outcomes import HoldfastError, StoreFault
from engine.packing import packed, packed_list
from engine.scripts import script
from engine.store import Store

MAX_GROUP_READS: Final = 512
"""Reads in one round trip: their replies must not keep the next callers waiting."""

_decode = msgspec.msgpack.Decoder(list[list[Any]]).decode
_LIMITS: Final = msgspec.msgpack.encode(script_limits())


class Command(msgspec.Struct, frozen=True):
    """One command: its own keys, and its arguments as the verb's header in `lua/` lists them."""

    keys: tuple[str, ...]
    arguments: tuple[Any, ...]


ReadCommand = tuple[str | int, ...]


class Dispatcher:
    """Takes commands and reads of many callers and hands them to the store in groups."""

    def __init__(self, store: Store, partitions: Sequence[PartitionKeys]) -> None:
        """Make no lane yet; each comes with its first command."""
        self._store = store
        self._partitions = partitions
        self._backlog = Backlog(MAX_QUEUED_COMMANDS)
        self._lanes: dict[tuple[int, str], Lane[Command, list[Any]]] = {}
        self._reads: Lane[ReadCommand, Any] = Lane(
            self._read,
            self._backlog,
            most_items=MAX_GROUP_READS,
            most_weight=MAX_GROUP_READS,
            weigh=lambda _: 1,
        )

    async def run(self, verb: str, partition: int, command: Command) -> list[Any]:
        """Run one command in whatever group it comes to, and return its reply.

        Raises what `Store.call` raises, and Overloaded.
        """
        lane = self._lanes.get((partition, verb))
        if lane is None:
            lane = self._lanes[partition, verb] = self._lane(verb, partition)
        return await lane.submit(command)

    async def read(self, *command: str | int) -> Any:
        """Run one reading command together with those of other callers; the reply as bytes."""
        return await self._reads.submit(command)

    def _lane(self, verb: str, partition: int) -> Lane[Command, list[Any]]:
        keys = self._partitions[partition]
        fixed = (keys.meta, keys.ledger, keys.holds)
        the_script = script(verb)

        async def call(commands: list[Command]) -> list[list[Any] | HoldfastError]:
            all_keys = list(fixed)
            for command in commands:
                all_keys += command.keys
            own_keys = packed_list([len(command.keys) for command in commands])
            bodies = [packed(*command.arguments) for command in commands]
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
            self._backlog,
            most_items=MAX_GROUP_COMMANDS,
            most_weight=MAX_GROUP_KEYS,
            weigh=lambda command: len(command.keys),
        )

    async def _read(self, commands: list[ReadCommand]) -> list[Any]:
        try:
            return await self._store.read(commands)
        except StoreFault as fault:
            if len(commands) == 1:
                return [fault]
            # As with the verbs: a damaged key is the trouble of those alone who ask for it.
            return [(await self._read([command]))[0] for command in commands]
