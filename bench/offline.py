"""What each offline policy costs, on the sales of a file: `python -m bench.offline sales.csv`.

The stores of the file are taken for one, so that an hour has sales. Every basket is a till's or,
by a draw, an online order. The first part of the file is what the estimator learns from. In the
rest each stretch of --hours is cut once: the shelf holds --stock units of every SKU that anybody
wants in it, the till sells what is there without anybody hearing of it, and online orders are
promised what the policy lets them have. On reconnect the promises meet the shelf.

* oversold: units that were promised and are not there;
* lost: units that were refused though they were there at the end;
* `live` is the same with the till connected: a till may sell what is promised even so.

The policies are those of `engine.offline`, and the buffer is `engine.estimator`'s. Nothing is
drawn but which baskets are online, from --seed.
"""

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from engine.estimator import HOUR_MS, Rate, buffer_units
from holdfast.sales_file import read_sales

BULK_QUANTITY: Final = 1_000
"""Lines of more units are fuel and the like, and are left out."""

LEARNING_SHARE: Final = 0.6
CONFIDENCES: Final = (0.9, 0.99, 0.999)


class Sale(msgspec.Struct, frozen=True):
    """Units of one SKU that somebody wants, at a till or online."""

    at_ms: int
    sku: str
    units: int
    online: bool


class Result(msgspec.Struct):
    """What a policy came to, in units."""

    policy: str
    promised: int = 0
    oversold: int = 0
    lost: int = 0

    def cells(self, wanted: int) -> tuple[str, ...]:
        """Return the cells of its line."""
        return (
            self.policy,
            f"{self.promised:,}",
            f"{self.oversold:,}",
            f"{self.oversold / max(1, self.promised):.2%}",
            f"{self.lost:,}",
            f"{self.lost / max(1, wanted):.2%}",
        )


Buffer = Callable[[str, int, int], int]
"""Units to hold back of a SKU, from (SKU, ms of silence, now in ms)."""


class Watch:
    """The rates of sale, as the background process keeps them."""

    def __init__(self, first_ms: int) -> None:
        """Begin to watch."""
        self._first_ms = first_ms
        self._rates: dict[str, Rate] = {}

    def see(self, sale: Sale) -> None:
        """Count a sale of a till."""
        rate = self._rates.get(sale.sku, Rate(0.0, sale.at_ms))
        self._rates[sale.sku] = rate.after(sale.at_ms, sale.units)

    @property
    def rows(self) -> int:
        """How many SKUs have sold before."""
        return len(self._rates)

    def knows(self, sku: str) -> bool:
        """Tell whether a SKU has sold before."""
        return sku in self._rates

    def buffer(self, sku: str, silent_ms: int, now_ms: int, confidence: float) -> int:
        """Return what is held back of a SKU."""
        rate = self._rates.get(sku)
        if rate is None:
            return 0
        return buffer_units(
            rate,
            watched_ms=now_ms - self._first_ms,
            silent_ms=silent_ms,
            now_ms=now_ms,
            confidence=confidence,
        )


def sales_of(path: Path, *, online: float, seed: int) -> list[Sale]:
    """Read a file, and draw which baskets are online."""
    draw = random.Random(seed)
    sales = []
    for cart in read_sales(path, bulk_quantity=BULK_QUANTITY).carts:
        is_online = draw.random() < online
        sales += [
            Sale(int(cart.at_seconds * 1_000), line.sku, line.quantity, is_online)
            for line in cart.lines
            if line.quantity <= BULK_QUANTITY
        ]
    return sales


def stretches(sales: Sequence[Sale], hours: float) -> Iterator[tuple[int, list[Sale]]]:
    """Yield each stretch of time with its sales."""
    length_ms = int(hours * HOUR_MS)
    by_number: dict[int, list[Sale]] = defaultdict(list)
    for sale in sales:
        by_number[sale.at_ms // length_ms].append(sale)
    for number in sorted(by_number):
        yield number * length_ms, by_number[number]


def cut(
    result: Result, start_ms: int, sales: Sequence[Sale], stock: int, buffer: Buffer | None
) -> None:
    """Cut the till for a stretch and count what comes of it; without `buffer` it stays live."""
    by_sku: dict[str, list[Sale]] = defaultdict(list)
    for sale in sales:
        by_sku[sale.sku].append(sale)
    for sku, wanted in by_sku.items():
        shelf, promised, refused = stock, 0, 0
        for sale in wanted:
            if not sale.online:
                shelf -= min(shelf, sale.units)
                continue
            seen = shelf if buffer is None else stock
            held_back = 0 if buffer is None else buffer(sku, sale.at_ms - start_ms, sale.at_ms)
            if seen - promised - held_back >= sale.units:
                promised += sale.units
            else:
                refused += sale.units
        result.promised += promised
        result.oversold += max(0, promised - shelf)
        result.lost += min(refused, max(0, shelf - promised))


def run(sales: Sequence[Sale], *, hours: float, stock: int) -> tuple[list[Result], int, int, float]:
    """Cut every stretch of the rest once, under each policy.

    Returns the results, the units wanted online, the number of stretches, and the share of rows
    and stretches in which the till sold more than the 99 % buffer.
    """
    learned = int(len(sales) * LEARNING_SHARE)
    watch = Watch(sales[0].at_ms)
    for sale in sales[:learned]:
        if not sale.online:
            watch.see(sale)

    def of(confidence: float) -> Buffer:
        return lambda sku, silent_ms, now_ms: watch.buffer(sku, silent_ms, now_ms, confidence)

    policies: list[tuple[Result, Buffer | None]] = [
        (Result("live (not cut)"), None),
        (Result("trust"), lambda *_: 0),
        *[(Result(f"buffer, {confidence:.1%}"), of(confidence)) for confidence in CONFIDENCES],
        (Result("freeze"), lambda *_: stock + 1),
    ]
    wanted = count = past = judged = 0
    for start_ms, stretch in stretches(sales[learned:], hours):
        count += 1
        wanted += sum(sale.units for sale in stretch if sale.online)
        for result, buffer in policies:
            cut(result, start_ms, stretch, stock, buffer)
        end_ms = start_ms + int(hours * HOUR_MS)
        sold: dict[str, int] = defaultdict(int)
        for sale in stretch:
            sold[sale.sku] += 0 if sale.online else sale.units
        judged += watch.rows
        past += sum(
            units > watch.buffer(sku, end_ms - start_ms, end_ms, 0.99)
            for sku, units in sold.items()
            if watch.knows(sku)
        )
        for sale in stretch:
            if not sale.online:
                watch.see(sale)
    return [result for result, _ in policies], wanted, count, past / max(1, judged)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.offline", description=__doc__)
    parser.add_argument("sales", type=Path, help="a file of sales, as `holdfast replay` takes it")
    parser.add_argument("--hours", type=float, default=1.0, help="how long the tills are cut off")
    parser.add_argument("--stock", type=int, nargs="+", default=[1, 2, 4], help="units of a SKU")
    parser.add_argument("--online", type=float, default=0.3, help="share of the baskets")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(arguments)
    sales = sales_of(asked.sales, online=asked.online, seed=asked.seed)
    out = sys.stdout.write
    for stock in asked.stock:
        results, wanted, count, past = run(sales, hours=asked.hours, stock=stock)
        out(
            f"{stock} on the shelf of each SKU, tills cut off for {asked.hours:g} h, {count:,} "
            f"times; {wanted:,} units wanted online\n"
        )
        head = ("policy", "promised", "oversold", "of promised", "lost", "of wanted")
        for cells in (head, *(result.cells(wanted) for result in results)):
            out(f"{cells[0]:16}" + "".join(f"{cell:>13}" for cell in cells[1:]) + "\n")
        out(f"the till sold more than the 99 % buffer in {past:.2%} of rows and stretches\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
