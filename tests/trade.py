"""A random trade through the real engine, and what a store then holds, in comparable form.

The same seed makes the same calls, so a failure can be repeated. Every call is kept, so that it can
be made again: a retry must get the answer of the first time, before and after a rebuild.
"""

import random
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, cast

import msgpack

from engine import reservations
from engine.feeds import EventType, FeedEvent, Feeds
from engine.inventory import Inventory
from engine.keys import parse_key, reservation_hash
from engine.kits import check_kit
from engine.model import (
    BuyerCap,
    CapScope,
    Line,
    Movement,
    MovementType,
    Pool,
    ProposalDecision,
    Terms,
)
from engine.order_records import WantedLine
from engine.orders import Orders
from engine.outcomes import HoldfastError
from engine.outlook import Supply
from engine.store import Client
from engine.substitutes import Alternative, check_alternatives
from engine.supplies import Supplies
from engine.wishes import Fill, Substitution, Wish
from tests.shop import ACTOR

LOCATIONS: Final = ("high street", "depot:{7}", "harbour", "københavn", "outlet")
SKUS: Final = ("tea", "кофе", "a:{b}\r\n", "mug", "soap")
DAYS: Final = ("2026-12-07", "2026-12-11", "2027-01-04")
OVER_ALL_LOCATIONS: Final = BuyerCap(12, 3_600_000, CapScope.MERCHANT)
SCAN_COUNT: Final = 1_000
INDEXES: Final = ("open", "skus", "holds", "locations", "feeds", "feeding", "waiting")

Retry = Callable[[Inventory], Awaitable[Any]]


@dataclass
class Call:
    """A call that was accepted, how to make it again, and what it answered."""

    name: str
    retry: Retry
    answer: Any


@dataclass
class Trade:
    """One merchant's random dealings."""

    inventory: Inventory
    merchant: str
    draw: random.Random
    calls: list[Call] = field(default_factory=list)
    reservations: list[str] = field(default_factory=list)
    keys_made: int = 0

    async def run(self, steps: int) -> None:
        """Make `steps` calls, of which some are refused."""
        verbs = (
            (self._receive, 5),
            (self._move, 5),
            (self._configure, 1),
            (self._set_terms, 1),
            (self._expect, 2),
            (self._arrive, 2),
            (self._reserve, 8),
            (self._confirm, 2),
            (self._extend, 2),
            (self._amend, 2),
            (self._order, 2),
            (self._commit, 3),
            (self._release, 1),
            (self._feed, 6),
            (self._define, 1),
            (self._wish, 5),
            (self._decide, 3),
        )
        chosen = self.draw.choices([verb for verb, _ in verbs], [w for _, w in verbs], k=steps)
        for verb in chosen:
            try:
                await verb()
            except HoldfastError:
                continue

    async def retry_all(self, inventory: Inventory) -> list[str]:
        """Make every call again; return those that are not answered as before, and replayed."""
        wrong = []
        for call in self.calls:
            answer = await call.retry(inventory)
            again, first = _plain(answer), _plain(call.answer)
            if call.name == "supply":
                # Whose day cannot be kept is told as things are now.
                again["reviewed"] = first["reviewed"] = ()
            if not answer.replayed or again != first:
                wrong.append(f"{call.name}: {answer} where it was {call.answer}")
        return wrong

    async def _do(self, name: str, retry: Retry) -> Any:
        answer = await retry(self.inventory)
        self.calls.append(Call(name, retry, answer))
        return answer

    def _key(self) -> str:
        self.keys_made += 1
        return f"key {self.keys_made}"

    async def _receive(self) -> None:
        await self._book(MovementType.RECEIVE, self.draw.randint(5, 40))

    async def _move(self) -> None:
        kind = self.draw.choice(list(MovementType))
        quantity = self.draw.randint(1, 9)
        if kind is MovementType.ADJUST:
            quantity = self.draw.choice((-3, -1, 2))
        await self._book(kind, quantity)

    async def _book(self, kind: MovementType, quantity: int) -> None:
        movement = Movement(
            key=self._key(),
            location=self.draw.choice(LOCATIONS),
            type=kind,
            sku=self.draw.choice(SKUS),
            quantity=quantity,
            reason="found" if kind is MovementType.ADJUST else "",
            reference=self.draw.choice(("", "import:7")),
        )
        await self._do(
            "move", lambda inventory: inventory.move(self.merchant, movement, actor=ACTOR)
        )

    async def _configure(self) -> None:
        location, sku = self.draw.choice(LOCATIONS), self.draw.choice(SKUS)
        (row,) = await self.inventory.rows(self.merchant, [(location, sku)])
        key, safety_stock = self._key(), self.draw.choice((None, 0, 1, 2, 3, 4))
        threshold = self.draw.choice((None, 0, 3, 5)) if safety_stock is not None else 2
        version = 0 if row is None else row.version
        await self._do(
            "configure",
            lambda inventory: inventory.configure(
                self.merchant,
                location,
                sku,
                key=key,
                safety_stock=safety_stock,
                low_stock_threshold=threshold,
                expected_version=version,
                actor=ACTOR,
            ),
        )

    async def _set_terms(self) -> None:
        location, sku = self.draw.choice(LOCATIONS), self.draw.choice(SKUS)
        (row,) = await self.inventory.rows(self.merchant, [(location, sku)])
        key, version = self._key(), 0 if row is None else row.version
        pools = {"partner": Pool(cap=self.draw.randint(1, 9)), "online": Pool(minimum=2)}
        terms = Terms(
            backorder_limit=self.draw.choice((0, 3, 20)),
            channels=self.draw.choice(({}, pools, {"store": Pool(minimum=3, cap=5)})),
            buyer_cap=self.draw.choice((None, BuyerCap(5, 3_600_000), OVER_ALL_LOCATIONS)),
        )
        await self._do(
            "terms",
            lambda inventory: inventory.set_terms(
                self.merchant,
                location,
                sku,
                terms,
                key=key,
                expected_version=version,
                actor=ACTOR,
            ),
        )

    async def _expect(self) -> None:
        """Announce a supply, move it to another day or quantity, or cancel it."""
        location, sku, supply = self._supply()
        key, day = self._key(), self.draw.choice(DAYS)
        expected = Supply(day, self.draw.randint(1, 9))
        gone = self.draw.random() < 0.2

        def retry(inventory: Inventory) -> Awaitable[Any]:
            what = {"key": key, "actor": ACTOR}
            if gone:
                return Supplies(inventory).cancel(self.merchant, location, sku, supply, **what)
            return Supplies(inventory).expect(
                self.merchant, location, sku, supply, expected, **what
            )

        await self._do("supply", retry)

    async def _arrive(self) -> None:
        """Book what came with a supply."""
        location, sku, supply = self._supply()
        movement = Movement(
            key=self._key(),
            location=location,
            type=MovementType.RECEIVE,
            sku=sku,
            quantity=self.draw.randint(1, 9),
            supply=supply,
        )
        await self._do(
            "move", lambda inventory: inventory.move(self.merchant, movement, actor=ACTOR)
        )

    def _supply(self) -> tuple[str, str, str]:
        """Name a supply: there are few, so that something happens to each."""
        draw = self.draw
        return draw.choice(LOCATIONS[:2]), draw.choice(SKUS[:3]), draw.choice(("po 1", "po:{2}"))

    async def _reserve(self) -> None:
        skus = self.draw.choices(SKUS, k=self.draw.randint(1, 4))
        lines = [Line(sku, self.draw.randint(1, 4)) for sku in skus]
        key, location = self._key(), self.draw.choice(LOCATIONS)
        partial, order_ref = self.draw.random() < 0.3, self.draw.choice(("", "order 1"))
        ttl_ms = self.draw.choice((60_000, 900_000, 86_400_000))
        stock_only = self.draw.random() < 0.2
        by = "" if stock_only else self.draw.choice(("", *DAYS))
        channel = self.draw.choice(("", "", "partner", "store"))
        buyer = self.draw.choice(("ann", "bob", ""))
        answer = await self._do(
            "reserve",
            lambda inventory: inventory.reserve(
                self.merchant,
                location,
                lines,
                key=key,
                ttl_ms=ttl_ms,
                order_ref=order_ref,
                partial=partial,
                stock_only=stock_only,
                channel=channel,
                buyer=buyer,
                by=by,
                actor=ACTOR,
            ),
        )
        self.reservations.append(answer.reservation.id)

    async def _confirm(self) -> None:
        the_id, order_ref = self._reservation(), self.draw.choice(("", "order 1", "order 2"))
        # Not kept as a call: its retry tells of the reservation as it is by then.
        await self.inventory.confirm(self.merchant, the_id, order_ref=order_ref, actor=ACTOR)

    async def _extend(self) -> None:
        the_id, key = self._reservation(), self._key()
        ttl_ms = self.draw.choice((120_000, 3_600_000))
        await self._do(
            "extend",
            lambda inventory: inventory.extend(
                self.merchant, the_id, key=key, ttl_ms=ttl_ms, actor=ACTOR
            ),
        )

    async def _order(self) -> None:
        """Place an order over some locations, and perhaps decide it, or give it back."""
        orders = Orders(self.inventory)
        skus = self.draw.sample(SKUS, k=2)
        lines = [
            WantedLine(skus[0], self.draw.randint(1, 4)),
            WantedLine(skus[1], 1, self.draw.choice(LOCATIONS)),
        ]
        placed = await orders.place(
            self.merchant,
            lines,
            key=self._key(),
            order_ref=self.draw.choice(("", "web:1")),
            actor=ACTOR,
        )
        fate = self.draw.choice(("wait", "confirm", "cancel", "commit", "resource"))
        if fate == "confirm":
            await orders.confirm(self.merchant, placed.order.id, actor=ACTOR)
        elif fate == "cancel":
            await orders.cancel(self.merchant, placed.order.id, actor=ACTOR)
        elif fate == "commit":
            await orders.commit(self.merchant, placed.order.id, actor=ACTOR)
        elif fate == "resource":
            part = placed.order.parts[0]
            await orders.resource(
                self.merchant, placed.order.id, part.location, key=self._key(), actor=ACTOR
            )

    async def _amend(self) -> None:
        the_id, key = self._reservation(), self._key()
        skus = self.draw.sample(SKUS, k=self.draw.randint(1, 2))
        lines = [Line(sku, self.draw.randint(0, 6)) for sku in skus]
        buyer = self.draw.choice(("", "ann"))
        await self._do(
            "amend",
            lambda inventory: inventory.amend(
                self.merchant, the_id, lines, key=key, buyer=buyer, actor=ACTOR
            ),
        )

    async def _commit(self) -> None:
        the_id = self._reservation()
        reservation = await self.inventory.reservation(self.merchant, the_id)
        picks: list[Line] = []
        if self.draw.random() < 0.4:
            picks = [Line(x.sku, self.draw.randint(0, x.quantity)) for x in reservation.lines]
        await self._do(
            "commit",
            lambda inventory: inventory.commit(self.merchant, the_id, picks=picks, actor=ACTOR),
        )

    async def _release(self) -> None:
        the_id = self._reservation()
        await self._do(
            "release", lambda inventory: inventory.release(self.merchant, the_id, actor=ACTOR)
        )

    async def _feed(self) -> None:
        """Tell of some events, of which some come late, twice or out of order."""
        feeds = Feeds(self.inventory)
        location, source = self.draw.choice(LOCATIONS), self.draw.choice(("till", "depot:{1}"))
        now_ms = time.time_ns() // 1_000_000
        events = []
        for _ in range(self.draw.randint(1, 6)):
            number = self.draw.randint(1, 40)
            hours = self.draw.choice((0, 0, 1, 50, 100))
            kind = self.draw.choice(list(EventType)[:-1])
            comes = kind in (EventType.RECEIPT, EventType.TRANSFER_IN)
            events.append(
                FeedEvent(
                    event_id=f"event {number}",
                    type=kind,
                    sku=self.draw.choice((*SKUS, "kit tea", "kit mug")),
                    quantity=self.draw.randint(1, 9),
                    reason="found",
                    occurred_at_ms=now_ms - hours * 3_600_000 - self.draw.randint(0, 600_000),
                    sequence=number if source == "till" else 0,
                    supply=self.draw.choice(("", "po 1", "po:{2}")) if comes else "",
                )
            )
        if self.draw.random() < 0.3:
            beat = FeedEvent(
                event_id="beat", type=EventType.HEARTBEAT, occurred_at_ms=now_ms - 60_000
            )
            events.append(beat)
        await feeds.take(self.merchant, location, source, events, actor=ACTOR)
        aside = (await feeds.quarantined(self.merchant, location)).items
        if aside and self.draw.random() < 0.3:
            await feeds.drop(self.merchant, location, self.draw.choice(aside).id, actor=ACTOR)
        if source == "till" and self.draw.random() < 0.1:
            (found,) = [
                one for one in await feeds.sources(self.merchant, location) if one.name == source
            ]
            await feeds.skip(self.merchant, location, source, through=found.highest, actor=ACTOR)

    async def _define(self) -> None:
        """Say what stands for a SKU, or what a kit is made of; or no longer."""
        sku, other = self.draw.sample(SKUS, k=2)
        gone = self.draw.random() < 0.3
        if self.draw.random() < 0.5:
            rules = check_alternatives(sku, [Alternative(sku=other, for_=self.draw.randint(1, 9))])
            changes = {sku: None if gone else rules}
            await self.inventory.substitutes.write(self.merchant, changes, actor=ACTOR)
        else:
            kit = check_kit("kit", [Line(sku, self.draw.randint(1, 3)), Line(other, 1)])
            await self.inventory.kits.write(
                self.merchant, {f"kit {sku}": None if gone else kit}, actor=ACTOR
            )

    async def _wish(self) -> None:
        """Reserve what others may stand for, and kits."""
        sku, other, third = self.draw.sample(SKUS, k=3)
        alternatives = (Alternative(sku=other, for_=self.draw.randint(1, 3)),)
        lines: list[Line | Wish] = [
            Wish(
                sku=sku,
                quantity=self.draw.randint(1, 9),
                substitutes=self.draw.choice((Substitution.ALLOWED, Substitution.APPROVE)),
                alternatives=alternatives if self.draw.random() < 0.7 else (),
                fill=self.draw.choice(list(Fill)),
            ),
            Line(self.draw.choice((third, f"kit {third}")), 1),
        ]
        key, location = self._key(), self.draw.choice(LOCATIONS)
        partial = self.draw.random() < 0.3
        answer = await self._do(
            "wish",
            lambda inventory: inventory.reserve(
                self.merchant,
                location,
                lines,
                key=key,
                ttl_ms=86_400_000,
                partial=partial,
                actor=ACTOR,
            ),
        )
        self.reservations.append(answer.reservation.id)

    async def _decide(self) -> None:
        # Not kept as a call: its retry tells of the reservation as it is by then.
        the_id, decision = self._reservation(), self.draw.choice(list(ProposalDecision))
        await self.inventory.decide(self.merchant, the_id, decision, actor=ACTOR)

    def _reservation(self) -> str:
        return self.draw.choice(self.reservations) if self.reservations else "rsv_0_" + "0" * 24


def _claim_name(name: str) -> str:
    """Return the name of a claim whatever partition its reservation is in."""
    return re.sub(r"rsv_[0-9]+_", "", name)


def _plain(answer: Any) -> Any:
    """Return an answer without what may differ in a retry.

    That is its mark, the id's partition, and what is claimed for its buyer: nobody is told that,
    and the claim goes by what it is now.
    """
    reservation = getattr(answer, "reservation", None)
    if reservation is None:
        return {name: getattr(answer, name) for name in answer.__struct_fields__} | {"replayed": 0}
    fields = {name: getattr(reservation, name) for name in reservation.__struct_fields__}
    return fields | {"id": reservation_hash(reservation.id), "claimed": {}}


async def contents(client: Client) -> dict[tuple[str, ...], Any]:
    """Read all rows, reservations, records and indexes of a store, whatever partition they are in.

    A key that is named by a reservation goes by the part of its id that never changes.
    """
    found: dict[tuple[str, ...], Any] = {}
    any_client = cast(Any, client)
    async for raw in any_client.scan_iter(match="{hf.*}:*", count=SCAN_COUNT):
        parsed = parse_key(raw.decode())
        assert parsed is not None, raw
        name = (parsed.noun, *parsed.parts)
        if parsed.noun == "stock":
            fields = await any_client.hgetall(raw)
            if b"terms" in fields:
                fields[b"terms"] = msgpack.unpackb(fields[b"terms"])
            found[name] = {b"deficit": b"0"} | fields
        elif parsed.noun == "rsv":
            fields = await any_client.hmget(raw, *reservations.FIELDS)
            reservation = reservations.from_hash("", fields)
            ends_in_ms = await any_client.pttl(raw)
            found["rsv", reservation_hash(parsed.parts[0])] = (
                reservation,
                msgpack.unpackb(fields[2]),
                ends_in_ms > 0,
            )
        elif parsed.noun == "seen":
            # A map in it may be packed in another order.
            record = msgpack.unpackb(await any_client.get(raw))
            found[name] = (record, await any_client.pttl(raw) > 0)
        elif parsed.noun == "buyer":
            counted = msgpack.unpackb(await any_client.get(raw))
            by_hash = {reservation_hash(the_id): entry for the_id, entry in counted.items()}
            found[name] = (by_hash, await any_client.pttl(raw) > 0)
        elif parsed.noun == "claims":
            claims = msgpack.unpackb(await any_client.get(raw))
            # A retry claims and settles anew, and finds that it was done.
            plain = {
                _claim_name(name): (one[0], one[1], _claim_name(one[2]), one[6])
                for name, one in claims.items()
            }
            found[name] = (plain, await any_client.pttl(raw) > 0)
        elif parsed.noun == "claiming":
            members = await any_client.zrange(raw, 0, -1)
            found.setdefault(name, set()).update(_claim_name(one.decode()) for one in members)
        elif parsed.noun in ("recent", "prints"):
            found[name] = (await any_client.get(raw), await any_client.pttl(raw) > 0)
        elif parsed.noun in ("feed", "quarantine", "offline", "substitutes", "kits"):
            fields = await any_client.hgetall(raw)
            # What a heartbeat says is not in the ledger.
            heard = (b"heard_at", b"occurred_at", b"beats")
            found[name] = {field: fields[field] for field in fields if field not in heard}
        elif parsed.noun == "shortfalls":
            found.setdefault(name, {}).update(await any_client.hgetall(raw))
        elif parsed.noun == "order":
            fields = await any_client.hgetall(raw)
            found["order", reservation_hash(parsed.parts[0])] = fields
        elif parsed.noun in ("orders", "orderrefs", "driving"):
            members = dict(await any_client.zrange(raw, 0, -1, withscores=True))
            found.setdefault(name, {}).update(
                (reservation_hash(member.decode()), score) for member, score in members.items()
            )
        elif parsed.noun in INDEXES:
            members = dict(await any_client.zrange(raw, 0, -1, withscores=True))
            is_ids = parsed.noun in ("open", "holds", "waiting")
            found.setdefault(name, {}).update(
                (reservation_hash(member.decode()) if is_ids else member.decode(), score)
                for member, score in members.items()
            )
    return found
