"""The account after each measurement: the store must say what its callers were told.

A rate means nothing if a unit was promised twice on the way. So every row is compared with what was
acknowledged, every live hold is counted, and the whole ledger is folded: dense sequences, dense
versions, every result the one before plus its change, and the last results the rows themselves.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from bench.shop import MERCHANT, OPENING_UNITS, Shop
from engine.inventory import Inventory
from engine.ledger import Entry, Levels, read_entries
from engine.limits import MAX_BATCH_ROWS

READ_ENTRIES: Final = 100
"""Ledger entries a read; each may carry 128 carts of ten lines."""

MAX_READS: Final = 1_000_000
MAX_NAMED_ROWS: Final = 3


class AccountWrong(Exception):
    """The store and what it acknowledged differ; the message says where."""


class Books:
    """What the callers of one run were told, as units by (location, SKU)."""

    def __init__(self, shop: Shop) -> None:
        """Begin with the opening units of every row and nothing held."""
        self.shop = shop
        self.held: Counter[tuple[str, str]] = Counter()
        self.gone: Counter[tuple[str, str]] = Counter()
        self.live_holds = 0

    def hold(self, numbers: Iterable[int]) -> None:
        """Book the carts of these requests as held."""
        for number in numbers:
            self._count(self.held, number, 1)
            self.live_holds += 1

    def commit(self, numbers: Iterable[int]) -> None:
        """Book held carts as sold."""
        for number in numbers:
            self._count(self.held, number, -1)
            self._count(self.gone, number, 1)
            self.live_holds -= 1

    def release(self, numbers: Iterable[int]) -> None:
        """Book held carts as given back."""
        for number in numbers:
            self._count(self.held, number, -1)
            self.live_holds -= 1

    def _count(self, units: Counter[tuple[str, str]], number: int, sign: int) -> None:
        cart = self.shop.cart(number)
        for line in cart.lines:
            units[cart.location, line.sku] += sign * line.quantity


async def check(inventory: Inventory, books: Books, fold: "Fold | None" = None) -> None:
    """Compare the store, of which this run was the only user, with the books.

    `fold` is what was folded of the ledger before, where its beginning is gone. Raises
    AccountWrong.
    """
    levels = await _check_rows(inventory, books)
    live = 0
    for keys in inventory.keys:
        (holds,) = await inventory.store.read([("ZCARD", keys.holds)])
        live += int(holds)
    if live != books.live_holds:
        raise AccountWrong(f"{live} live holds, where {books.live_holds} were acknowledged")
    fold = fold or Fold()
    await fold.add_all(inventory)
    if fold.levels != levels:
        differing = sorted(row for row in levels if fold.levels.get(row) != levels[row])
        raise AccountWrong(f"the ledger's fold and the rows differ at {_some(differing)}")


async def _check_rows(inventory: Inventory, books: Books) -> dict[tuple[str, str], Levels]:
    """Return every row's levels, once they are what the books say."""
    rows = books.shop.rows
    levels: dict[tuple[str, str], Levels] = {}
    wrong = []
    for start in range(0, len(rows), MAX_BATCH_ROWS):
        wanted = rows[start : start + MAX_BATCH_ROWS]
        for name, row in zip(wanted, await inventory.rows(MERCHANT, wanted), strict=True):
            expected = Levels(OPENING_UNITS - books.gone[name], books.held[name], 0, 0)
            if row is None:
                raise AccountWrong(f"there is no row {name}")
            levels[name] = Levels(row.on_hand, row.reserved, row.safety_stock, row.deficit)
            if levels[name] != expected:
                wrong.append(name)
    if wrong:
        name = wrong[0]
        raise AccountWrong(
            f"{len(wrong)} rows differ from what was acknowledged, {_some(wrong)}: the first is "
            f"{levels[name]}, with {books.held[name]} units acknowledged as held and "
            f"{books.gone[name]} as sold"
        )
    return levels


class Fold:
    """The levels of each (location, SKU) that follow from the ledger alone."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.levels: dict[tuple[str, str], Levels] = {}
        self._versions: Counter[tuple[str, str]] = Counter()
        self._sequences: Counter[int] = Counter()

    async def add_all(self, inventory: Inventory) -> None:
        """Add all that is in the ledger now, which follows what was added before.

        Raises AccountWrong where a sequence or version is not dense, or a sum does not add up.
        """
        for keys in inventory.keys:
            after = "0-0"
            for _ in range(MAX_READS):
                entries = await read_entries(inventory.store, keys, after=after, count=READ_ENTRIES)
                if not entries:
                    break
                for entry in entries:
                    self.add(keys.partition, entry)
                after = entries[-1].stream_id
            else:
                raise AccountWrong(f"the ledger of partition {keys.partition} does not end")

    def add(self, partition: int, entry: Entry) -> None:
        """Add the next entry of a partition. Raises AccountWrong."""
        last = self._sequences[partition]
        if entry.sequence != last + 1:
            raise AccountWrong(f"sequence {entry.sequence} follows {last} in partition {partition}")
        self._sequences[partition] += len(entry.operations)
        for operation in entry.operations:
            for row in operation.rows:
                name = operation.location, row.sku
                self._versions[name] += 1
                if row.version != self._versions[name]:
                    raise AccountWrong(f"version {row.version} of {name} is not dense")
                before = self.levels.get(name, _NOTHING)
                if row.levels != _sum(before, row.deltas):
                    raise AccountWrong(f"{name}: {before} and {row.deltas} make {row.levels}")
                self.levels[name] = row.levels


_NOTHING: Final = Levels(0, 0, 0, 0)


def _sum(levels: Levels, deltas: Levels) -> Levels:
    return Levels(
        levels.on_hand + deltas.on_hand,
        levels.reserved + deltas.reserved,
        levels.safety_stock + deltas.safety_stock,
        levels.deficit + deltas.deficit,
    )


def _some(rows: list[tuple[str, str]]) -> str:
    named = ", ".join("/".join(row) for row in rows[:MAX_NAMED_ROWS])
    return named if len(rows) <= MAX_NAMED_ROWS else f"{named}, ..."
