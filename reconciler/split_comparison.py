"""Split rows across their partitions: what home knows of a part beside what the part says itself.

Each partition's audit compares its own keys with its own ledger. What is looked at here lies
between two: no unit may be at a part that was not granted to it, and where home has heard of a
part's last change, both say the same. Home is read before and after its parts, so traffic makes no
difference.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from engine.inventory import Inventory
from engine.splits import Cell, Plan, RowName
from reconciler.findings import Code, Finding, Invariant

_FIELDS: Final = ("version", "on_hand", "reserved", "split")


async def compare_splits(inventory: Inventory) -> list[Finding]:
    """Compare every row that is or was split. Raises what the store's calls raise."""
    found: list[Finding] = []
    for name in await inventory.splits.all():
        before = await _plan(inventory, name)
        if before is None:
            continue
        partitions = list(before.cells)
        texts = await inventory.store.read(
            [("HMGET", inventory.keys[p].stock(*name), *_FIELDS) for p in partitions]
        )
        after = await _plan(inventory, name)
        for partition, fields in zip(partitions, texts, strict=True):
            live = _cell(partition, fields)
            if live is None or after is None or partition not in after.cells:
                continue
            found += [
                Finding(
                    invariant=Invariant.CONSERVATION,
                    code=Code.PARTS_DIFFER,
                    detail=detail,
                    remedy="a failover lost operations of one of them: count the row on the shelf",
                    partition=partition,
                    merchant=name[0],
                    location=name[1],
                    sku=name[2],
                    repairable=False,
                )
                for detail in _differences(before.cells[partition], live, after.cells[partition])
            ]
    return found


def _differences(before: Cell, live: Cell, after: Cell) -> Iterator[str]:
    """Say what cannot be, of a part as home knew it before and after it was looked at."""
    part = f"the part in partition {live.partition}"
    if live.received > after.granted:
        yield f"{part} received {live.received} units, home granted {after.granted}"
    if before.version > live.version:
        yield f"{part} is at version {live.version}, and told home of {before.version}"
        return
    for what in ("returned", "picked"):
        if getattr(before, what) > getattr(live, what):
            told, has = getattr(before, what), getattr(live, what)
            yield f"{part} told home of {told} units {what}, and has {has}"
    if before.version == live.version and _sums(before) != _sums(live):
        yield f"{part} has {_sums(live)} at version {live.version}, home has {_sums(before)}"


def _sums(cell: Cell) -> tuple[int, int, int, int]:
    return (cell.received, cell.returned, cell.picked, cell.reserved)


def _cell(partition: int, fields: Sequence[bytes | None]) -> Cell | None:
    """Read a part's row; None where there is none, or its own partition's audit cannot read it."""
    try:
        version, on_hand, reserved = (int(field or 0) for field in fields[:3])
        _, _, epoch, is_open, received, returned = (fields[3] or b"").decode().split(" ")
    except ValueError:
        return None
    picked = int(received) - int(returned) - on_hand
    heard = 2 * int(epoch) + int(is_open)
    return Cell(partition, 0, version, int(received), int(returned), picked, reserved, heard)


async def _plan(inventory: Inventory, name: RowName) -> Plan | None:
    key = inventory.keys[inventory.splits.home_of(name)].stock(*name)
    (text,) = await inventory.store.read([("HGET", key, "split")])
    try:
        return None if text is None else Plan.parse(text.decode())
    except (ValueError, TypeError):
        return None
