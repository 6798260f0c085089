"""Amendments of reservations: what is asked for, and the commands of the two scripts that do it.

`lua/amend.lua` changes plain units of rows. What was promised on a row's terms, or is served by
what stands for it, is promised anew by `lua/repromise.lua`.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

from engine.claims import Claimant, Taken, Unclaimed
from engine.definitions import Definitions
from engine.dispatch import Command
from engine.keys import PartitionKeys, digest, digest_of_buyer, reservation_hash
from engine.kits import Kit, Kits
from engine.limits import DEFAULT_CHANNEL, MAX_LINES, MAX_REREADS, MAX_WISH_ROWS
from engine.model import Line, ReservationResult
from engine.outcomes import (
    HoldfastError,
    InvalidCommand,
    Outcome,
    OutcomeUnknown,
    ReservationNotFound,
)
from engine.partitions import Partitions
from engine.reservations import LinesOf, replied
from engine.reserving import MAX_RECLAIM_ROUNDS, REFUSED_FOR_UNITS
from engine.splits import ANYWHERE, GATHERED
from engine.substitutes import Choices, Rules
from engine.validation import check_amendment, check_key, check_name
from engine.wishes import (
    Wish,
    ask,
    check_wishes,
    is_plain,
    needs_rules,
    summed_wishes,
    wish_texts,
)

OTHER_BUYER: Final = "other_buyer"
"""What `lua/repromise.lua` refuses where a reservation is promised to somebody else."""


class Defined(NamedTuple):
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

    def _conflict(self, held: LinesOf) -> str:
        """Return what it says otherwise than the reservation, which the script refuses; or ''."""
        if self.channel and held.channel and self.channel != held.channel:
            return "channel"
        if self.buyer and held.buyer and self.buyer != held.buyer:
            return OTHER_BUYER
        return ""

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
        defined: Defined | None,
        taken: Taken | None = None,
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
        if conflict := self._conflict(held):
            asker["conflict"] = conflict
        work, most_lines = 0, MAX_LINES
        if defined is not None:
            wishes = summed_wishes(self.lines)
            asked = ask(wishes, defined.choices, defined.kits, held.location, held.stands_for)
            skus, work, most_lines = asked.skus, asked.mixed_units, MAX_WISH_ROWS
            asker["wishes"] = asked.wishes
        if taken is not None:
            asker |= taken.ask(keys)
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
            case "channel":
                return InvalidCommand(
                    field, "it was promised through another and stays so: leave this out"
                )
            case _ if field == OTHER_BUYER:
                remedy = "it is promised to somebody else: make a reservation of its own for them"
                return InvalidCommand("buyer", remedy)
            case "buyer":
                return InvalidCommand(field, "say who buys: a row of the cart has a cap a buyer")
            case "stands_for":
                at = [line.sku for line in self.lines].index(sku)
                return InvalidCommand(
                    f"lines[{at}].sku",
                    "only stands for another: amend what was asked for, or reserve it on its own",
                )
        return None


class Amendments:
    """Amends the reservations of all merchants."""

    def __init__(
        self,
        partitions: Partitions,
        kits: Definitions[Kit, Kits],
        substitutes: Definitions[Rules, Choices],
        expire_due: Callable[[int], Awaitable[Any]],
    ) -> None:
        """Amend in `partitions`; `expire_due` takes back what is due in one of them."""
        self._partitions = partitions
        self._dispatch = partitions.dispatcher
        self._splits = partitions.splits
        self._kits = kits
        self._substitutes = substitutes
        self._expire_due = expire_due

    async def amend(
        self,
        merchant: str,
        reservation: str,
        lines: Sequence[Line | Wish],
        *,
        key: str,
        stock_only: bool = False,
        channel: str = "",
        buyer: str = "",
        actor: str,
    ) -> ReservationResult:
        """Hold so many units of each SKU named from now on; 0 drops its line, others stay.

        The units that the reservation has already count as free for it, so it is refused only what
        is not there beyond them, and then keeps what it has. A confirmed one may be amended too.
        More units of a row with terms are promised on these; fewer give back first what is waited
        for. `channel` and `buyer` are of a reservation that has none yet, as for `reserve`.

        Where others stand for a SKU, or it is a kit, its quantity is how much is asked for, and
        that is served anew. Other SKUs than those that stand for it already may do so only where
        the line is a Wish that says so.

        A retry under the same key gets the first answer again. Raises ReservationNotFound,
        ReservationEnded, InsufficientStock, BuyerCapExceeded, LimitExceeded (lines),
        IdempotencyKeyReused, InvalidCommand (also where no line would be left).
        """
        check_key(key)
        check_amendment(lines)
        check_wishes(lines)
        check_name("channel", channel)
        check_name("buyer", buyer)
        who = digest_of_buyer(merchant, buyer)
        amendment = Amendment(merchant, tuple(lines), key, actor, stock_only, channel, who)
        return await self._partitions.wherever(reservation, lambda it: self._amend(it, amendment))

    async def _amend(self, reservation: str, amendment: Amendment) -> ReservationResult:
        keys = self._partitions.keys_of_reservation(reservation)
        held = self._partitions.recent_lines.get(reservation)
        for _ in range(MAX_REREADS):
            held = held or await self._partitions.read_lines(keys, reservation)
            if held is None or held.merchant != amendment.merchant:
                break
            try:
                return await self._amend_for_buyer(reservation, amendment, held)
            except Unclaimed:
                # It has got a buyer since its lines were read.
                held = None
        raise ReservationNotFound(reservation)

    async def _amend_for_buyer(
        self, reservation: str, amendment: Amendment, held: LinesOf
    ) -> ReservationResult:
        merchant, buyer = amendment.merchant, held.buyer or amendment.buyer
        if not buyer:
            return await self._amend_lines(reservation, amendment, held, None)

        async def wanting() -> dict[str, int | None]:
            kits = await self._kits.known(merchant)
            is_served = held.stands_for or not is_plain(amendment.lines, kits)
            return {line.sku: None if is_served else line.quantity for line in amendment.lines}

        return await self._partitions.claiming.around(
            Claimant(reservation, merchant, held.location, buyer, amendment.actor),
            [line.sku for line in amendment.lines],
            wanting,
            lambda taken: self._amend_lines(reservation, amendment, held, taken),
            # It is refused what a first reserve would be, and never what it has.
            takes_less=True,
        )

    async def _amend_lines(
        self, reservation: str, amendment: Amendment, known: LinesOf, taken: Taken | None
    ) -> ReservationResult:
        keys, merchant = self._partitions.keys_of_reservation(reservation), amendment.merchant
        held: LinesOf | None = known
        is_on_terms = False
        as_wishes = not is_plain(amendment.lines, self._kits.known_now(merchant))
        plan, reclaims, rereads = ANYWHERE, 0, 0
        while True:
            if held is None:
                held = await self._partitions.read_lines(keys, reservation)
            if held is None:
                raise ReservationNotFound(reservation)
            place = (held.merchant, held.location)
            amendment.check(held, is_at_part=self._partitions.keys_of(*place) != keys)
            final = reclaims == MAX_RECLAIM_ROUNDS
            if is_on_terms or as_wishes or held.has_extras or taken is not None:
                verb = "repromise"
                defined = None
                if as_wishes or held.stands_for:
                    defined = await self._defined(merchant, amendment.lines)
                command = amendment.command_on_terms(
                    keys, reservation, held, final=final, plan=plan, defined=defined, taken=taken
                )
            else:
                verb, command = "amend", amendment.command(keys, reservation, held, final=final)
            reply = await self._dispatch.run(verb, keys.partition, command)
            code = Outcome(reply[0])
            if code is Outcome.LINES_CHANGED and rereads < MAX_REREADS:
                held, rereads = None, rereads + 1
            elif code is Outcome.TERMS:
                is_on_terms = True
            elif code is Outcome.UNCLAIMED:
                raise Unclaimed(reply)
            elif code is Outcome.SPLIT:
                await self._splits.fetch(place, keys.partition, reply[1])
                reclaims += 1
                plan = ANYWHERE if reclaims < MAX_RECLAIM_ROUNDS else GATHERED
            elif code in REFUSED_FOR_UNITS and reply[1] and not final:
                await self._expire_due(keys.partition)
                reclaims += 1
            elif (
                code is Outcome.INSUFFICIENT_STOCK
                and not as_wishes
                and not is_plain(amendment.lines, await self._kits.known(merchant))
            ):
                # A kit is short of units of its own.
                as_wishes, plan, reclaims = True, ANYWHERE, 0
            else:
                break
        if code is Outcome.LINES_CHANGED:
            raise OutcomeUnknown()
        # Keys that are not of rows do no harm.
        self._partitions.sold_out.forget(command.keys[2:])
        self._partitions.note_at_part(held, keys)
        if code is Outcome.INVALID:
            refused = amendment.refused_field(*reply[1:])
            if refused is not None:
                raise refused
        result = replied(reservation, reply, key=amendment.key)
        self._partitions.recent_lines.keep(result.reservation)
        return result

    async def _defined(self, merchant: str, lines: Sequence[Line | Wish]) -> Defined:
        wishes = summed_wishes(lines)
        choices = await self._substitutes.known(merchant) if needs_rules(wishes) else {}
        return Defined(choices, await self._kits.known(merchant))
