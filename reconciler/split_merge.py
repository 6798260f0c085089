"""A split row put together again, as if it never was split.

That is what a rebuild into another number of partitions does. The home's books have all units,
those on the way too; what its parts did and had not told yet is booked from their own books.
"""

from collections.abc import Iterable, Mapping

from engine.splits import Cell, Plan
from reconciler.fold import FoldedRow, RowKey
from reconciler.past import Past


def is_part(row: FoldedRow) -> bool:
    """Tell whether a folded row is a part of one in another partition."""
    return row.split.startswith("part")


def merge_parts(
    rows: dict[RowKey, FoldedRow], parts: Iterable[tuple[int, RowKey, FoldedRow]]
) -> None:
    """Book into `rows` what its parts did, given with the partitions that they were in."""
    cells: dict[RowKey, Mapping[int, Cell]] = {}
    for key, row in rows.items():
        if row.split:
            cells[key] = Plan.parse(row.split).cells
            row.split = ""
            # Whoever saw the last version may have seen other levels with it.
            row.version += 1
    for partition, key, part in parts:
        row = rows.setdefault(key, FoldedRow(0, 0, 0, 0, part.version, part.sequence))
        cell = cells.get(key, {}).get(partition) or Cell(partition, 0, 0, 0, 0, 0, 0, 0)
        received, returned = map(int, part.split.split(" ")[4:6])
        picked = received - returned - part.on_hand - cell.picked
        _book(row, part, picked)
        row.reserved += part.reserved - cell.reserved


def _book(row: FoldedRow, part: FoldedRow, picked: int) -> None:
    """Book units that left the shelf and that home had not heard of; the last ones did."""
    past = part.past or Past()
    books = row.on_hand - row.deficit
    for left_at_ms, units in reversed(past.deltas):
        some = min(picked, -units)
        if some <= 0:
            break
        picked -= some
        if row.past is None:
            row.past = Past()
        if left_at_ms >= row.past.counted_at_ms:
            row.past.add(left_at_ms, -some, max(past.at_ms, row.past.at_ms))
            books -= some
    books -= picked
    row.on_hand, row.deficit = max(0, books), max(0, -books)
