"""Carts: what a reserve asks for, and the command of the script that promises it."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from engine.claims import Taken
from engine.dispatch import Command
from engine.keys import PartitionKeys
from engine.model import Line
from engine.packing import packed, packed_list, passed_on
from engine.splits import RowName


class Promise(NamedTuple):
    """What a reserve says beside its lines."""

    id: str
    merchant: str
    location: str
    ttl_ms: int
    order_ref: str
    partial: bool
    asker: Mapping[str, str]
    """Who asks for what of rows that have terms, as `lua/lib/room.lua` takes it."""
    actor: str
    fingerprint: str


class Cart(NamedTuple):
    """What is to be reserved, and the command that asks for it."""

    promise: Promise
    lines: tuple[Line, ...]
    wishes: Any = None
    mixed_units: int = 0
    taken: Taken | None = None
    """What was claimed for its buyer, where a row's cap is one over all locations."""

    @property
    def name(self) -> RowName:
        """The row of the first line."""
        return (self.promise.merchant, self.promise.location, self.lines[0].sku)

    def keys(self, keys: PartitionKeys, the_id: str) -> tuple[str, ...]:
        """Return the keys that `lua/reserve.lua` declares in a partition."""
        merchant, location = self.promise.merchant, self.promise.location
        return (
            keys.reservation(the_id),
            keys.open_reservations(merchant, location),
            *[keys.stock(merchant, location, line.sku) for line in self.lines],
        )

    def command(
        self,
        keys: PartitionKeys,
        the_id: str,
        *,
        partial: bool,
        reclaimed: bool,
        plan: int,
        on_terms: bool = False,
    ) -> Command:
        """Make the command of `lua/reserve.lua`, or with `on_terms` of `lua/promise.lua`."""
        its_keys = self.keys(keys, the_id)
        asked: list[Any] = [partial, reclaimed, plan]
        if on_terms:
            its_keys = (*its_keys[:2], *self._keys_on_terms(keys))
            who: dict[str, Any] = {**self.promise.asker}
            if self.wishes is not None:
                who["wishes"] = self.wishes
            if self.taken is not None:
                who |= self.taken.ask(keys)
            asked.append(who)
        return Command(
            its_keys,
            (
                the_id,
                passed_on(
                    packed(
                        self.promise.merchant,
                        self.promise.location,
                        self.promise.actor,
                        self.promise.fingerprint,
                    )
                ),
                passed_on(packed(self.promise.ttl_ms, self.promise.order_ref)),
                passed_on(packed_list(self.lines)),
                self.promise.ttl_ms,
                *asked,
                *[element for line in self.lines for element in (line.sku, line.quantity)],
            ),
            self.promise.merchant,
            self.mixed_units,
        )

    def _keys_on_terms(self, keys: PartitionKeys) -> Iterator[str]:
        """Yield what `lua/promise.lua` declares of each line."""
        merchant, location, buyer = (
            self.promise.merchant,
            self.promise.location,
            self.promise.asker["buyer"],
        )
        for line in self.lines:
            yield keys.stock(merchant, location, line.sku)
            yield keys.waiting(merchant, location, line.sku)
            if buyer:
                yield keys.buyer(merchant, location, line.sku, buyer)
