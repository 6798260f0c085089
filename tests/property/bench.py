"""What all examples of a property test share: a store, an engine on it, and its audit.

Hypothesis calls plain functions, so the bench runs the engine on an event loop of its own.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from engine.inventory import Inventory
from engine.store import close_quietly, connect
from tests.invariants import Audit
from tests.stores import RealStore, set_up

Result = TypeVar("Result")

PARTITIONS: Final = 2
"""Few, so that locations share one, and the audit of each step is short."""


class Bench:
    """A store, an engine and an audit that all examples on one kind of server share."""

    def __init__(
        self, runner: asyncio.Runner, store: RealStore, *, partitions: int = PARTITIONS
    ) -> None:
        """Start the store; `close` stops it."""
        self._runner = runner
        self._store = store
        self.run(store.start())
        self.run(set_up(store.settings, partitions=partitions))
        self.inventory = self.run(Inventory.open(store.settings))
        self.client = connect(store.settings)
        self.audit = Audit(self.client, partitions=partitions)

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run to the end on the bench's own loop."""
        return self._runner.run(coroutine)

    def close(self) -> None:
        """Close the connections and stop the store."""
        self.run(self.inventory.close())
        self.run(close_quietly(self.client))
        self.run(self._store.stop())
