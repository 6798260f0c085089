"""Reserving: a cart is held as a whole or refused, and what is refused is looked for once more.

A refusal for want of units is not the last word: what is due is taken back first, units of split
rows are fetched, and what stands for a SKU or makes up a kit is tried.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple, cast

from engine import metrics, reservations
from engine.carts import Cart, Promise
from engine.claims import Claimant, Taken, Unclaimed
from engine.definitions import Definitions
from engine.keys import (
    digest,
    digest_of_buyer,
    moved_reservation_id,
    reservation_hash,
    reservation_id,
)
from engine.kits import Kit, Kits
from engine.limits import DEFAULT_CHANNEL, DEFAULT_TTL_MS
from engine.model import Line, ReservationResult, StandsFor
from engine.on_terms import OnTerms
from engine.outcomes import (
    HoldfastError,
    InsufficientStock,
    InvalidCommand,
    Outcome,
    Overloaded,
    ShortLine,
)
from engine.partitions import Partitions
from engine.refusals import refusal
from engine.splits import ANYWHERE, GATHERED, NOT_SPLIT
from engine.substitutes import Choices, Rules
from engine.validation import (
    check_day,
    check_key,
    check_lines,
    check_name,
    check_text,
    check_ttl,
)
from engine.wishes import (
    Wish,
    ask,
    check_wishes,
    is_plain,
    needs_rules,
    summed_wishes,
    wish_texts,
)

MAX_RECLAIM_ROUNDS: Final = 2
"""How many groups of due holds a reserve takes back before it says no."""

MAX_SPLIT_ATTEMPTS: Final = 24
"""How often a reserve of a split row asks: units that were fetched for it may go to others, and its
plan may change, but not that often."""

SPLIT_RETRY_MS: Final = 50
"""When to come back where that did not do: a crowd at the last units is gone as fast."""

REFUSED_FOR_UNITS: Final = (Outcome.INSUFFICIENT_STOCK, Outcome.BUYER_CAP_EXCEEDED)


class _Request(NamedTuple):
    """What a caller of `Reserving.reserve` asked for, checked."""

    promise: Promise
    lines: Sequence[Line | Wish]
    key: str
    stands_for: Sequence[StandsFor]
    proposed: Sequence[str]
    asks: bool
    """Whether more is said than which units are wanted."""
    first_attempt: bool


class Reserving:
    """Makes the reservations of all merchants."""

    def __init__(
        self,
        partitions: Partitions,
        kits: Definitions[Kit, Kits],
        substitutes: Definitions[Rules, Choices],
        expire_due: Callable[[int], Awaitable[Any]],
    ) -> None:
        """Reserve in `partitions`; `expire_due` takes back what is due in one of them."""
        self._partitions = partitions
        self._dispatch = partitions.dispatcher
        self._splits = partitions.splits
        self._on_terms = OnTerms()
        self._kits = kits
        self._substitutes = substitutes
        self._expire_due = expire_due

    async def reserve(
        self,
        merchant: str,
        location: str,
        lines: Sequence[Line | Wish],
        *,
        key: str,
        ttl_ms: int = DEFAULT_TTL_MS,
        order_ref: str = "",
        partial: bool = False,
        stock_only: bool = False,
        channel: str = "",
        buyer: str = "",
        buyer_digest: str = "",
        by: str = "",
        stands_for: Sequence[StandsFor] = (),
        proposed: Sequence[str] = (),
        instead_of: str = "",
        first_attempt: bool = False,
        actor: str,
    ) -> ReservationResult:
        """Hold the units of all lines for `ttl_ms`, or with `partial` what there is of them.

        Of a row with terms that allow it, units are promised that are not on the shelf yet, unless
        `stock_only`; the reservation names them as `backordered`. With `by`, a day as YYYY-MM-DD,
        units are promised that are expected by then, and no others.

        `channel` is through which it is asked for (`online` unless it is said), `buyer` who by: 128
        bytes at most, of which a digest is kept where a row has a cap. Who knows only that says
        `buyer_digest`.

        A line that is a Wish may be served by what stands for it, and a kit is served by its
        components: the reservation's `lines` are what is held, its `stands_for` what for. Where the
        lines are those of another reservation, they may be served by what `stands_for` them there,
        no more units of it than there; of the SKUs that are `proposed` that is not accepted yet.
        `instead_of` is the reservation whose place this one is to take: under a cap over all
        locations the units of both count once.

        A retry under the same key gets the first answer again. `first_attempt` says that this is
        no retry: it may then be refused without asking the store (see `engine.sold_out`). Raises
        InsufficientStock with every line that does not fit, IdempotencyKeyReused, InvalidCommand.
        """
        keys = self._partitions.keys_of(merchant, location)
        check_key(key)
        check_lines(lines)
        check_ttl(ttl_ms)
        check_text("order_ref", order_ref)
        the_id = reservation_id(keys.partition, merchant, location, key)
        asked = [str(ttl_ms), order_ref, str(partial), *wish_texts(lines)]
        asks = stock_only or bool(channel) or bool(buyer) or bool(buyer_digest) or bool(by)
        if asks:
            check_name("channel", channel)
            check_name("buyer", buyer)
            asked += ["stock_only" if stock_only else "", channel, buyer or buyer_digest]
        asker = {
            "channel": channel or DEFAULT_CHANNEL,
            "promise": "stock" if stock_only else "",
            "buyer": digest_of_buyer(merchant, buyer) or buyer_digest,
        }
        if by:
            check_day("by", by)
            if stock_only:
                raise InvalidCommand("by", "names a day for what comes: leave stock_only out")
            asked.append(f"by {by}")
            asker["by"] = by
        fingerprint = digest(*asked)
        promise = Promise(
            the_id, merchant, location, ttl_ms, order_ref, partial, asker, actor, fingerprint
        )
        request = _Request(promise, lines, key, stands_for, proposed, asks, first_attempt)
        if not asker["buyer"]:
            return await self._reserve(request, None)

        async def wanting() -> dict[str, int | None]:
            wanted: dict[str, int | None] = {}
            is_served = stands_for or not is_plain(lines, await self._kits.known(merchant))
            for line in lines:
                # What serves others as well is counted together with those.
                units = (wanted.get(line.sku) or 0) + line.quantity
                wanted[line.sku] = None if is_served else units
            return wanted

        return await self._partitions.claiming.around(
            Claimant(the_id, merchant, location, asker["buyer"], actor, instead_of),
            [line.sku for line in lines],
            wanting,
            lambda taken: self._reserve(request, taken),
            takes_less=partial,
            makes_it=True,
        )

    async def _reserve(self, request: "_Request", taken: Taken | None) -> ReservationResult:
        """Hold the units of all lines, with what was `taken` for their buyer."""
        promise, lines, key, stands_for, proposed, asks, first_attempt = request
        merchant, location, partial = promise.merchant, promise.location, promise.partial
        the_id, keys = promise.id, self._partitions.keys_of(merchant, location)
        # A partial reserve would hold the rest of the cart without the kit.
        kits = await self._kits.known(merchant) if partial else self._kits.known_now(merchant)
        if stands_for or not is_plain(lines, kits):
            return await self._serve_wishes(promise, lines, key, taken, stands_for, proposed)
        wishes = lines
        lines = reservations.summed(cast(Sequence[Line], lines))
        cart = Cart(promise, lines, taken=taken)
        plan = NOT_SPLIT
        if len(lines) > 1:
            plan = ANYWHERE
        elif self._splits.known(cart.name) is not None:
            return await self._reserve_split(cart, the_id, key, first_attempt=first_attempt)
        its_keys = cart.keys(keys, the_id)
        if self._partitions.sold_out.rows and not partial:
            await self._refuse_sold_out(the_id, its_keys, lines, first_attempt=first_attempt)
        on_terms = asks or self._on_terms.any_of(its_keys[2:])
        reclaims = 0
        while True:
            final = reclaims == MAX_RECLAIM_ROUNDS
            asked_at = self._partitions.sold_out.mark()
            command = cart.command(
                keys, the_id, partial=partial, reclaimed=final, plan=plan, on_terms=on_terms
            )
            reply = await self._dispatch.run(
                "promise" if on_terms else "reserve", keys.partition, command
            )
            code = Outcome(reply[0])
            if code in (Outcome.OK, Outcome.REPLAYED):
                return self._held(cart, the_id, reply)
            if code is Outcome.TERMS:
                self._on_terms.learn(keys.stock(merchant, location, reply[1]))
                on_terms = True
            elif code is Outcome.UNCLAIMED:
                raise Unclaimed(reply)
            elif code is Outcome.SPLIT and plan == NOT_SPLIT:
                return await self._reserve_split(cart, the_id, key, first_attempt=first_attempt)
            elif code is Outcome.SPLIT:
                await self._splits.fetch((merchant, location), keys.partition, reply[1])
                reclaims += 1
                if reclaims == MAX_RECLAIM_ROUNDS:
                    plan = GATHERED
            elif code in REFUSED_FOR_UNITS and reply[1] and not final:
                await self._expire_due(keys.partition)
                reclaims += 1
            else:
                break
        refused = _refused(reply, key)
        if (
            isinstance(refused, InsufficientStock)
            # A kit is short of units of its own: so it is asked for where something is.
            and not is_plain(wishes, await self._kits.known(merchant))
        ):
            return await self._serve_wishes(promise, wishes, key, taken)
        # What a row with terms has for one asker, it may have more or less of for another.
        if isinstance(refused, InsufficientStock) and not on_terms:
            self._partitions.sold_out.learn(
                [(keys.stock(merchant, location, line.sku), line) for line in refused.lines],
                asked_at=asked_at,
            )
        raise refused

    async def _serve_wishes(
        self,
        promise: Promise,
        lines: Sequence[Line | Wish],
        key: str,
        taken: Taken | None,
        stands_for: Sequence[StandsFor] = (),
        proposed: Sequence[str] = (),
    ) -> ReservationResult:
        """Hold what serves wishes, and the components of kits. Raises as `reserve` does."""
        merchant, location = promise.merchant, promise.location
        check_wishes(lines)
        wishes = summed_wishes(lines)
        choices = await self._substitutes.known(merchant) if needs_rules(wishes) else {}
        kits = await self._kits.known(merchant)
        asked = ask(wishes, choices, kits, location, stands_for, proposed)
        keys = self._partitions.keys_of(merchant, location)
        rows = tuple(Line(sku, 0) for sku in asked.skus)
        cart = Cart(promise, rows, asked.wishes, asked.mixed_units, taken)
        plan, reclaims = ANYWHERE, 0
        while True:
            final = reclaims == MAX_RECLAIM_ROUNDS
            command = cart.command(
                keys,
                promise.id,
                partial=promise.partial,
                reclaimed=final,
                plan=plan,
                on_terms=True,
            )
            reply = await self._dispatch.run("promise", keys.partition, command)
            code = Outcome(reply[0])
            if code in (Outcome.OK, Outcome.REPLAYED):
                return self._held(cart, promise.id, reply)
            if code is Outcome.SPLIT:
                await self._splits.fetch((merchant, location), keys.partition, reply[1])
                plan = GATHERED
                continue
            if code is Outcome.UNCLAIMED:
                raise Unclaimed(reply)
            if code not in REFUSED_FOR_UNITS or not reply[1] or final:
                break
            await self._expire_due(keys.partition)
            reclaims += 1
        raise _refused(reply, key)

    def _held(self, cart: Cart, the_id: str, reply: Sequence[Any]) -> ReservationResult:
        held = reservations.from_reserve(
            the_id,
            reply,
            merchant=cart.promise.merchant,
            location=cart.promise.location,
            lines=cart.lines,
            ttl_ms=cart.promise.ttl_ms,
            order_ref=cart.promise.order_ref,
            actor=cart.promise.actor,
        )
        self._partitions.recent_lines.keep(held)
        return ReservationResult(held, Outcome(reply[0]) is Outcome.REPLAYED)

    async def _reserve_split(
        self, cart: Cart, the_id: str, key: str, *, first_attempt: bool
    ) -> ReservationResult:
        """Reserve of a row that promises at its parts: see `engine.splits`.

        The part is named by the reservation's hash, so that a retry finds its answer there. One
        that has too little is given what the others have before the answer is no.
        """
        name, (line,) = cart.name, cart.lines
        home, the_hash = self._splits.home_of(name), reservation_hash(the_id)
        row_key = self._partitions.keys[home].stock(*name)
        available, asked_at = 0, self._partitions.sold_out.mark()
        takes_less = False
        for attempt in range(MAX_SPLIT_ATTEMPTS):
            final = attempt == MAX_SPLIT_ATTEMPTS - 1
            plan = self._splits.known(name) or (await self._splits.reopen(name)).plan
            place = home if plan is None else plan.place(the_hash, home)
            here = moved_reservation_id(the_id, place)
            earlier = () if plan is None else plan.earlier_places(the_hash, home)
            for one in earlier:
                there = moved_reservation_id(the_id, one)
                if await self._dispatch.read(
                    "EXISTS", self._partitions.keys[one].reservation(there)
                ):
                    place, here = one, there
            if attempt == 0 and self._partitions.sold_out.rows and not cart.promise.partial:
                its_keys = (self._partitions.keys[place].reservation(here), "", row_key)
                await self._refuse_sold_out(here, its_keys, cart.lines, first_attempt=first_attempt)
            keys = self._partitions.keys[place]
            command = cart.command(
                keys,
                here,
                partial=cart.promise.partial and (final or takes_less),
                reclaimed=final,
                plan=NOT_SPLIT if plan is None else plan.epoch,
            )
            asked_at = self._partitions.sold_out.mark()
            reply = await self._dispatch.run("reserve", place, command)
            code = Outcome(reply[0])
            if code in (Outcome.OK, Outcome.REPLAYED):
                if place != home:
                    self._splits.touched(name)
                return self._held(cart, here, reply)
            if code is Outcome.SPLIT:
                at_home = await self._splits.reopen(name)
                if at_home.is_closed:
                    # Units that were given back at the parts go to what is missing first.
                    at_home = await self._splits.shut(name)
                available = at_home.available
                if at_home.is_closed and at_home.free <= 0:
                    break
                continue
            if code is not Outcome.INSUFFICIENT_STOCK:
                raise refusal(reply, key=key)
            if reply[1] and not final:
                await self._expire_due(place)
                continue
            pulled = await self._splits.pull(name, place, line.quantity)
            available = pulled.available
            if pulled.free.get(place, 0) < line.quantity > available:
                if not cart.promise.partial or takes_less:
                    break
                takes_less = True
        if available >= line.quantity:
            # The units are there, but others were always faster, or the plan changed all the time.
            raise Overloaded(retry_after_ms=SPLIT_RETRY_MS)
        short = ShortLine(line.sku, line.quantity, available)
        self._partitions.sold_out.learn([(row_key, short)], asked_at=asked_at)
        raise InsufficientStock((short,))

    async def _refuse_sold_out(
        self, the_id: str, its_keys: Sequence[str], lines: Sequence[Line], *, first_attempt: bool
    ) -> None:
        """Raise InsufficientStock where every line is known not to fit and this is no retry.

        A retry must get the answer of the attempt that it repeats, which another process may have
        made. So where the caller does not say, the store is asked whether there is a reservation:
        one small read, and no place in the queue of the partition's writes.
        """
        reservation_key, _, *rows = its_keys
        wanted = list(zip(rows, lines, strict=True))
        short = self._partitions.sold_out.short_lines(wanted)
        if short is None or self._partitions.recent_lines.get(the_id) is not None:
            return
        if not first_attempt:
            if await self._dispatch.read("EXISTS", reservation_key):
                return
            # Meanwhile the row may have come back, or the time may be up.
            short = self._partitions.sold_out.short_lines(wanted)
            if short is None:
                return
        metrics.SOLD_OUT_REFUSALS.add(())
        raise InsufficientStock(short)


def _refused(reply: Sequence[Any], key: str) -> HoldfastError:
    if reply[0] == Outcome.INVALID and reply[1] == "buyer":
        return InvalidCommand("buyer", "say who buys: a row of the cart has a cap a buyer")
    return refusal(reply, key=key)
