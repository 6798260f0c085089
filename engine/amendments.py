"""Amendments of reservations: what is asked for, and the commands of the two scripts that do it.

`lua/amend.lua` changes plain units of rows. What was promised on a row's terms, or is served by
what stands for it, is promised anew by `lua/repromise.lua`.
"""

from typing import Any, NamedTuple

from engine.dispatch import Command
from engine.keys import PartitionKeys, digest, reservation_hash
from engine.kits import Kits
from engine.limits import DEFAULT_CHANNEL, MAX_LINES, MAX_WISH_ROWS
from engine.model import Line
from engine.outcomes import HoldfastError, InvalidCommand
from engine.reservations import LinesOf
from engine.substitutes import Choices
from engine.wishes import Wish, ask, summed_wishes, wish_texts


class Definitions(NamedTuple):
    """The merchant's rules and kits, where an amendment goes by them."""

    choices: Choices
    kits: Kits


class Amendment(NamedTuple):
    """How much is wanted of each SKU from now on, and on what terms where there is a choice.

    `buyer` is a digest. A reservation that has a channel or a buyer keeps it.
    """

    merchant: str
    lines: tuple[Line | Wish, ...]
    key: str
    actor: str
    stock_only: bool = False
    channel: str = ""
    buyer: str = ""

    def check(self, held: LinesOf, *, is_at_part: bool) -> None:
        """Check it against the reservation that it is for. Raises InvalidCommand."""
        if is_at_part and any(
            isinstance(line, Wish) or (line.quantity and line.sku not in held.skus)
            for line in self.lines
        ):
            # It is at a part of a split row, which has nothing else.
            remedy = "is no line of it, and this row is split: make a reservation of its own for it"
            raise InvalidCommand("lines.sku", remedy)
        if self.channel and held.channel and self.channel != held.channel:
            raise InvalidCommand(
                "channel", f"it was promised through {held.channel} and stays so: leave this out"
            )
        if self.buyer and held.buyer and self.buyer != held.buyer:
            raise InvalidCommand(
                "buyer", "it is promised to somebody else: make a reservation of its own for them"
            )

    def command(
        self, keys: PartitionKeys, reservation: str, held: LinesOf, *, final: bool
    ) -> Command:
        """Make the command of `lua/amend.lua`; `final` once there is nothing more to reclaim."""
        rows = [keys.stock(held.merchant, held.location, line.sku) for line in self.lines]
        wanted = [(line.sku, line.quantity) for line in self.lines]
        return Command(
            (*self._own_keys(keys, reservation), *rows),
            (*self._head(reservation), wanted, MAX_LINES, final),
            self.merchant,
        )

    def command_on_terms(
        self,
        keys: PartitionKeys,
        reservation: str,
        held: LinesOf,
        *,
        final: bool,
        plan: int,
        defined: Definitions | None,
    ) -> Command:
        """Make the command of `lua/repromise.lua`; `defined` where lines are to be taken as wishes.

        Raises LimitExceeded, InvalidCommand.
        """
        skus: tuple[str, ...] = tuple(line.sku for line in self.lines)
        asker: dict[str, Any] = {
            "promise": "stock" if self.stock_only else "",
            "channel": held.channel or self.channel or DEFAULT_CHANNEL,
            "buyer": held.buyer or self.buyer,
        }
        work, most_lines = 0, MAX_LINES
        if defined is not None:
            wishes = summed_wishes(self.lines)
            asked = ask(wishes, defined.choices, defined.kits, held.location, held.stands_for)
            skus, work, most_lines = asked.skus, asked.mixed_units, MAX_WISH_ROWS
            asker["wishes"] = asked.wishes
        its_keys = [*self._own_keys(keys, reservation)]
        for sku in skus:
            row = (held.merchant, held.location, sku)
            its_keys += [keys.stock(*row), keys.waiting(*row)]
            if asker["buyer"]:
                its_keys.append(keys.buyer(*row, asker["buyer"]))
        wanted = [(line.sku, line.quantity) for line in self.lines]
        more = (wanted, most_lines, final, plan, asker, held.stands_for, skus)
        return Command(tuple(its_keys), (*self._head(reservation), *more), self.merchant, work)

    def _operation(self, reservation: str) -> str:
        # Not of the whole id: a retry must find its record after the reservation has moved, too.
        return digest("amend", reservation_hash(reservation), self.key)

    def _own_keys(self, keys: PartitionKeys, reservation: str) -> tuple[str, str]:
        seen = keys.seen(self.merchant, self._operation(reservation))
        return keys.reservation(reservation), seen

    def _head(self, reservation: str) -> tuple[str, ...]:
        asked = [*wish_texts(self.lines)]
        if self.stock_only or self.channel or self.buyer:
            asked += ["stock_only" if self.stock_only else "", self.channel, self.buyer]
        operation = self._operation(reservation)
        return reservation, self.merchant, self.actor, digest(*asked), operation

    def refused_field(self, field: str, sku: str = "") -> HoldfastError | None:
        """Return the refusal of a field that only the script can judge; None of others."""
        match field:
            case "lines":
                return InvalidCommand(field, "would leave nothing: release the reservation instead")
            case "buyer":
                return InvalidCommand(field, "say who buys: a row of the cart has a cap a buyer")
            case "stands_for":
                at = [line.sku for line in self.lines].index(sku)
                return InvalidCommand(
                    f"lines[{at}].sku",
                    "only stands for another: amend what was asked for, or reserve it on its own",
                )
        return None
