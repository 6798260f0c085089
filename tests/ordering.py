"""What an order may be at any moment, and what it may be refused for: the rules, without a driver.

Which locations an order's units come from is the engine's to choose, and so is who does which step
of it when. So a part of an order is not foretold: it is seen, and then the rows of the model have
what it holds. What is foretold is whether units can be had at all, and what the parts must add up
to. Nothing here imports product code; see `tests.model`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final

from tests import model

Wanted = tuple[str, int, str]
"""(SKU, units, location or "" for any)."""

Units = dict[str, int]

NEXT: Final = {
    "": ("held", "confirmed", "committed", "released", "expired"),
    "held": ("confirmed", "committed", "released", "expired"),
    "confirmed": ("committed", "released"),
}
"""What may be seen of a part that was seen so before; somebody may have looked away for long."""


@dataclass(slots=True)
class Part:
    """A reservation that was made for an order."""

    location: str
    lines: Units
    state: str = "held"
    picked: Units = field(default_factory=dict)
    order_ref: str = ""
    by_its_own_id: bool = False
    """Whether somebody may have ended it so."""

    @property
    def is_live(self) -> bool:
        """True while units are kept for it."""
        return self.state in ("held", "confirmed")

    @property
    def brings(self) -> Units:
        """The units that it holds, or that left the shelf."""
        return self.picked if self.state == "committed" else self.lines if self.is_live else {}


class Shelves(model.Shop):
    """A shop whose rows also hold what parts of orders hold."""

    def see(self, part: Part | None, now: Part) -> str:
        """Have the rows be as they are with what a part is now. Returns what cannot be, or ''."""
        before = part or Part(now.location, now.lines, state="")
        if before.state == now.state:
            return "" if before.picked == now.picked else "it was picked twice"
        if now.state not in NEXT.get(before.state, ()):
            return f"it was {before.state}"
        if before.lines != now.lines:
            return f"it held {before.lines}"
        if before.state == "":
            for sku, units in now.lines.items():
                self._change(now.location, sku, reserved=units)
        if not now.is_live:
            for sku, units in now.lines.items():
                left = now.picked.get(sku, 0)
                self._change(now.location, sku, on_hand=-left, reserved=-units)
        return ""

    def expire(self, name: str) -> None:
        """Take back a reservation whose time is up."""
        self._end(self.promises[name], "expired", {})

    def units(self, locations: Iterable[str], skus: Iterable[str]) -> dict[tuple[str, str], int]:
        """Return what can be promised."""
        wanted = list(skus)
        return {(at, sku): self.shelf(at, sku).available for at in locations for sku in wanted}


def named(wanted: Sequence[Wanted]) -> dict[tuple[str, str], int]:
    """Return the units that are wanted of a location."""
    units: dict[tuple[str, str], int] = {}
    for sku, quantity, location in wanted:
        if location:
            units[location, sku] = units.get((location, sku), 0) + quantity
    return units


def free(wanted: Sequence[Wanted]) -> Units:
    """Return the units that may come from anywhere, in the order in which they are named."""
    return summed((sku, quantity) for sku, quantity, location in wanted if not location)


def can_be_had(wanted: Sequence[Wanted], units: Mapping[tuple[str, str], int]) -> bool:
    """Tell whether an order fits: what is named there, and the rest wherever it is."""
    rest = dict(units)
    for name, quantity in named(wanted).items():
        rest[name] = rest.get(name, 0) - quantity
        if rest[name] < 0:
            return False
    return all(
        sum(left for (_, other), left in rest.items() if other == sku) >= quantity
        for sku, quantity in free(wanted).items()
    )


def fewest_locations(wanted: Sequence[Wanted], units: Mapping[tuple[str, str], int]) -> int:
    """Return how few locations have together what may come from anywhere, by trying all sets."""
    rest = dict(units)
    for name, quantity in named(wanted).items():
        rest[name] = rest.get(name, 0) - quantity
    locations = sorted({location for location, _ in units})
    for size in range(len(locations) + 1):
        for some in combinations(locations, size):
            if all(
                sum(rest.get((location, sku), 0) for location in some) >= quantity
                for sku, quantity in free(wanted).items()
            ):
                return size
    raise AssertionError(f"nobody has {wanted}: {units}")


def by_name(
    wanted: Sequence[Wanted], units: Mapping[tuple[str, str], int]
) -> dict[tuple[str, str], int]:
    """Return what each location brings where all have one priority: the lower name comes first."""
    brought, rest = named(wanted), dict(units)
    for name, quantity in brought.items():
        rest[name] = rest.get(name, 0) - quantity
    for sku, quantity in free(wanted).items():
        left = quantity
        for location in sorted({location for location, _ in units}):
            taken = min(left, rest.get((location, sku), 0))
            if taken:
                brought[location, sku] = brought.get((location, sku), 0) + taken
                left -= taken
    return brought


def what_is_wrong(wanted: Sequence[Wanted], state: str, parts: Mapping[str, Part]) -> str:
    """Say what a settled order may not be; '' where all is well. `parts` are those that count."""
    live = [name for name, part in parts.items() if part.is_live]
    if state in ("failed", "cancelled", "expired", "fulfilled") and live:
        return f"it is {state}, and {live} hold units"
    if state not in ("held", "confirmed", "fulfilled"):
        return "" if state in ("failed", "cancelled", "expired") else f"it is {state}, and settled"
    lost = missing(wanted, parts.values())
    excused = summed(
        (sku, units - part.brings.get(sku, 0))
        for part in parts.values()
        if part.by_its_own_id or part.state == "committed"
        for sku, units in part.lines.items()
    )
    if any(units < 0 for units in lost.values()):
        return f"more is brought than was wanted: {lost}"
    if any(units > excused.get(sku, 0) for sku, units in lost.items()):
        return f"{lost} is missing, and only {excused} was left out"
    right = "held" if state == "held" else "confirmed"
    wrong = [name for name in live if parts[name].state not in (right, "confirmed")]
    return f"it is {state}, and {wrong} are not" if wrong else ""


def missing(wanted: Sequence[Wanted], parts: Iterable[Part]) -> Units:
    """Return how many units of each SKU no part brings."""
    units = summed((sku, quantity) for sku, quantity, _ in wanted)
    for part in parts:
        for sku, quantity in part.brings.items():
            units[sku] = units.get(sku, 0) - quantity
    return units


def summed(lines: Iterable[tuple[str, int]]) -> Units:
    """Add up the units of each SKU."""
    units: Units = {}
    for sku, quantity in lines:
        units[sku] = units.get(sku, 0) + quantity
    return units
