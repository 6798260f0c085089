"""The records of orders that span locations; `lua/order.lua` writes them.

A record lives in the partition that its id names and says what is wanted, which parts were planned,
and what was decided. Its parts are reservations, in the partitions of their locations. The record
alone says what becomes of them: `engine.order_execution` carries that out.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Final

import msgspec

from engine.dispatch import Command, Dispatcher
from engine.keys import (
    MAX_PARTITIONS,
    MOVED_KEY,
    PartitionKeys,
    encode,
    moved_order_id,
    order_id,
    partition_of_order,
    reservation_hash,
)
from engine.limits import FAILED_ORDER_RETENTION_MS, RETENTION_MS
from engine.model import Line, Promised, StandsFor
from engine.outcomes import (
    IdempotencyKeyReused,
    OrderNotFound,
    Outcome,
    OutcomeUnknown,
    StoreFault,
)
from engine.packing import passed_on
from engine.refusals import refusal
from engine.scripts import script
from engine.served import served
from engine.store import Store
from engine.substitutes import Alternative
from engine.wishes import Fill, Substitution, Wish

GRACE_MS: Final = 5_000
"""How long whoever took a step may take for what follows from it, before somebody else looks."""

MAX_ATTEMPTS: Final = 10
"""How often a record is read anew because somebody took a step on it."""

RECHECK_MS: Final = 3_600_000
"""When a confirmed order is looked at again: its parts may have been ended by their own ids."""

FIELDS: Final = (
    "state",
    "revision",
    "settled",
    "created_at",
    "expires_at",
    "confirmed_at",
    "ended_at",
    "reason",
    "plan",
    "body",
)
"""Of the hash, in the order that `from_hash` takes them."""


class OrderKind(StrEnum):
    """What a record is about."""

    ORDER = "order"
    MOVE = "move"
    """A reservation is moved to another location; `engine.relocation` drives it."""


class OrderState(StrEnum):
    """placing -> held -> confirmed -> fulfilled; or failed, cancelled, expired.

    `confirmed` is the decision: from then on the parts are kept until they are committed.
    """

    PLACING = "placing"
    HELD = "held"
    CONFIRMED = "confirmed"
    FULFILLED = "fulfilled"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_undecided(self) -> bool:
        """True while the parts are to expire unless a decision comes."""
        return self in (OrderState.PLACING, OrderState.HELD)

    @property
    def is_ended(self) -> bool:
        """True once no part is to hold units any more."""
        return self not in (OrderState.PLACING, OrderState.HELD, OrderState.CONFIRMED)

    @property
    def gives_back(self) -> bool:
        """True where every part that is still open is to be released."""
        return self in (OrderState.FAILED, OrderState.CANCELLED, OrderState.EXPIRED)


class PartState(StrEnum):
    """What a part is known to be: not made yet, a reservation's state, or refused."""

    PLANNED = "planned"
    HELD = "held"
    CONFIRMED = "confirmed"
    COMMITTED = "committed"
    RELEASED = "released"
    EXPIRED = "expired"
    REFUSED = "refused"

    @property
    def is_open(self) -> bool:
        """True where it holds units, or may."""
        return self in (PartState.PLANNED, PartState.HELD, PartState.CONFIRMED)


class Aim(StrEnum):
    """What is to become of a part, other than what the order's state says."""

    NONE = ""
    COMMIT = "commit"
    RELEASE = "release"
    DROP = "drop"
    """Released, or never made: another plan does without it."""


class WantedLine(msgspec.Struct, frozen=True, array_like=True):
    """Units of one SKU, at a location or wherever they can be had; the rest is as of a Wish."""

    sku: str
    quantity: int
    location: str = ""
    substitutes: Substitution = Substitution.NONE
    fill: Fill = Fill.MIXED
    alternatives: tuple[Alternative, ...] = ()

    @property
    def wish(self) -> Wish:
        """The line as a reserve takes it."""
        return Wish(
            sku=self.sku,
            quantity=self.quantity,
            substitutes=self.substitutes,
            fill=self.fill,
            alternatives=self.alternatives,
        )


class Part(msgspec.Struct, frozen=True, array_like=True):
    """The units of one location, as one reservation, which `key` makes.

    `picks` go with the aim to commit, empty for every line whole; `picked` is what left the shelf.
    `why` says why the location was chosen, `replaces` which part it stands in for (0: none).

    `lines` are what is asked for until the part is held, and what is held from then on; `asked` is
    there where that is not the same. `substitutes` are the SKUs that others may stand for here, and
    `stands_for`, `proposed`, `backordered`, `promised` and `missing` what the reservation says.
    `accepts` are those proposals that are to be accepted, `accepted` those that were. With
    `stock_only` nothing of it is to wait for what comes: the plan was made of what is on shelves.
    """

    number: int
    location: str
    reservation: str
    key: str
    lines: tuple[Line, ...]
    state: PartState = PartState.PLANNED
    aim: Aim = Aim.NONE
    picks: tuple[Line, ...] = ()
    picked: tuple[Line, ...] = ()
    why: str = ""
    replaces: int = 0
    asked: tuple[Line, ...] = ()
    substitutes: tuple[str, ...] = ()
    stands_for: tuple[StandsFor, ...] = ()
    proposed: tuple[str, ...] = ()
    backordered: tuple[Line, ...] = ()
    missing: tuple[Line, ...] = ()
    accepts: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    promised: tuple[Promised, ...] = ()
    stock_only: bool = False

    @property
    def asks(self) -> tuple[Line, ...]:
        """What it is to serve of the order's lines."""
        return self.asked or self.lines

    @property
    def counts(self) -> bool:
        """False where a plan was refused it, or did without it before anything was decided."""
        return self.state is not PartState.REFUSED and self.aim is not Aim.DROP

    @property
    def brings(self) -> tuple[Line, ...]:
        """What it serves of the order's lines, by units that left the shelf or are held."""
        if self.state is PartState.COMMITTED:
            return served(self.lines, self.stands_for, self.picked)
        is_held = self.state in (PartState.HELD, PartState.CONFIRMED)
        if not is_held or self.aim in (Aim.RELEASE, Aim.DROP):
            return ()
        return served(self.lines, self.stands_for, self.lines)


class PassedOver(msgspec.Struct, frozen=True, array_like=True):
    """A location that no part is at, and why."""

    location: str
    why: str


class Resourcing(msgspec.Struct, frozen=True, array_like=True):
    """Units of a location that could not fulfil its part, held elsewhere since or about to be.

    `key` and `fingerprint` are digests of its idempotency key and of what was asked; `options` as
    in OrderBody, `without` the locations that were ruled out beside. The parts that stand in are
    those from number `first` on until it `is_done`.
    """

    key: str
    fingerprint: str
    location: str
    options: str
    without: tuple[str, ...]
    first: int
    is_done: bool = False


class Declined(msgspec.Struct, frozen=True, array_like=True):
    """Somebody declined that `stand_in` stands for a SKU: it is not proposed for it again.

    `key` is the digest of the idempotency key under which that was said; it is empty where it was
    said to a part's own id. `stand_in` is empty where nobody knows any more what stood for the SKU:
    from then on nothing does.
    """

    key: str
    sku: str
    stand_in: str


class Plan(msgspec.Struct, frozen=True, array_like=True):
    """The parts of an order so far, which locations were passed over, what was sourced anew.

    `declined` are the SKUs whose substitutes were declined, and `declines` says which ones those
    were.
    """

    parts: tuple[Part, ...]
    passed_over: tuple[PassedOver, ...] = ()
    resourcings: tuple[Resourcing, ...] = ()
    declined: tuple[str, ...] = ()
    declines: tuple[Declined, ...] = ()

    @property
    def pending(self) -> Resourcing | None:
        """What is being sourced anew; only the latest one may be."""
        latest = self.resourcings[-1] if self.resourcings else None
        return None if latest is None or latest.is_done else latest


class OrderBody(msgspec.Struct, frozen=True, array_like=True):
    """What was asked for; it never changes. `options` are JSON of the asker's choices."""

    kind: OrderKind
    merchant: str
    actor: str
    fingerprint: str
    order_ref: str
    ttl_ms: int
    lines: tuple[WantedLine, ...]
    options: str = ""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """An order as its record has it. Times are ms since 1970, 0 where they do not apply.

    `settled` is False while something is still to be done to the parts.
    """

    id: str
    state: OrderState
    revision: int
    settled: bool
    created_at_ms: int
    expires_at_ms: int
    confirmed_at_ms: int
    ended_at_ms: int
    reason: str
    plan: Plan
    body: OrderBody

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts, in the order in which they were planned."""
        return self.plan.parts

    def missing(self) -> list[Line]:
        """Return the units that no part brings, one line a SKU.

        Of an undecided order or one that was given back nothing is missing: that is its state.
        """
        if self.state.is_undecided or self.state.gives_back:
            return []
        units: dict[str, int] = {}
        for wanted in self.body.lines:
            units[wanted.sku] = units.get(wanted.sku, 0) + wanted.quantity
        for part in self.parts:
            for line in part.brings:
                units[line.sku] = units.get(line.sku, 0) - line.quantity
        return [Line(sku, quantity) for sku, quantity in units.items() if quantity > 0]

    def part(self, reservation: str) -> Part | None:
        """Return the part of a reservation, by the end of its id."""
        end = reservation.rpartition("_")[2]
        for part in self.parts:
            if part.reservation.endswith(end):
                return part
        return None


_encode = msgspec.msgpack.Encoder().encode
_decode_plan = msgspec.msgpack.Decoder(Plan).decode
_decode_body = msgspec.msgpack.Decoder(OrderBody).decode


class OrderChanged(Exception):
    """Somebody took a step since, so look again: `order` is what the record is now."""

    def __init__(self, order: Order) -> None:
        """Keep the record."""
        self.order = order
        super().__init__(order.id)


class OrderRecords:
    """Reads records and takes them one step on."""

    def __init__(self, store: Store, dispatch: Dispatcher, keys: Sequence[PartitionKeys]) -> None:
        """Read and write in these partitions."""
        self._store = store
        self._dispatch = dispatch
        self._keys = keys

    async def read(self, order: str) -> Order | None:
        """Read a record of any merchant; None where there is none.

        An id of before a rebuild into another number of partitions finds its record, too.
        """
        found = await self._read(order)
        if found is None and partition_of_order(order, MAX_PARTITIONS) is not None:
            partition = await self._dispatch.read("HGET", MOVED_KEY, reservation_hash(order))
            if partition is not None:
                found = await self._read(moved_order_id(order, int(partition)))
        return found

    async def _read(self, order: str) -> Order | None:
        keys = self._keys_of(order)
        if keys is None:
            return None
        return from_hash(order, await self._dispatch.read("HMGET", keys.order(order), *FIELDS))

    async def make(
        self, kind: OrderKind, key: str, body: OrderBody, plan: Plan, *, ttl_ms: int
    ) -> tuple[Order, bool]:
        """Make the record of an idempotency key; return it, and whether it was there before.

        Raises IdempotencyKeyReused.
        """
        made = order_id(kind, body.merchant, key, len(self._keys))
        fresh = Order(
            id=made,
            state=OrderState.PLACING,
            revision=0,
            settled=False,
            created_at_ms=0,
            expires_at_ms=0,
            confirmed_at_ms=0,
            ended_at_ms=0,
            reason="",
            plan=plan,
            body=body,
        )
        reply = await self._run(fresh, "place", actor=body.actor, ttl_ms=ttl_ms, is_new=True)
        if reply[0] == Outcome.KEY_REUSED:
            raise IdempotencyKeyReused(key)
        return _from_reply(made, reply), reply[0] == Outcome.REPLAYED

    async def step(self, order: Order, step: str, *, actor: str, ttl_ms: int = 0) -> Order:
        """Write a record that was read and changed; return it as it is then.

        Raises OrderChanged where somebody took a step since it was read, or its state does not
        allow this one; OrderNotFound.
        """
        reply = await self._run(order, step, actor=actor, ttl_ms=ttl_ms)
        code = Outcome(reply[0])
        if code is Outcome.NOT_FOUND:
            raise OrderNotFound(order.id)
        now = _from_reply(order.id, reply)
        if code is Outcome.ORDER_CHANGED:
            raise OrderChanged(now)
        return now

    async def _run(
        self, order: Order, step: str, *, actor: str, ttl_ms: int, is_new: bool = False
    ) -> list[Any]:
        keys = self._keys_of(order.id)
        if keys is None:
            raise OrderNotFound(order.id)
        body = order.body
        is_listed = body.kind is OrderKind.ORDER
        command = Command(
            (
                keys.order(order.id),
                keys.orders(body.merchant),
                keys.order_refs(body.merchant),
                keys.driving,
            ),
            (
                order.id,
                body.merchant,
                actor,
                body.fingerprint,
                step,
                order.revision,
                order.state,
                order.settled,
                ttl_ms,
                _due_in_ms(order),
                order.reason,
                passed_on(_encode(order.plan)),
                passed_on(_encode(body) if is_new else b""),
                ref_member(body.order_ref, order.id) if is_listed else "",
            ),
            body.merchant,
        )
        reply = await self._dispatch.run("order", keys.partition, command)
        if Outcome(reply[0]) in (Outcome.READ_ONLY, Outcome.INVALID):
            raise refusal(reply)
        return reply

    async def due(self, partition: int, *, now_ms: int, limit: int) -> list[str]:
        """Return records that somebody should look at, the longest overdue first."""
        found = await self._dispatch.read(
            "ZRANGEBYSCORE", self._keys[partition].driving, "-inf", now_ms, "LIMIT", 0, limit
        )
        return [member.decode() for member in found]

    async def put_off(self, order: str, due_ms: int) -> None:
        """Have a record looked at later on."""
        keys = self._keys_of(order)
        if keys is not None:
            await self._store.read([("ZADD", keys.driving, "XX", due_ms, order)])

    async def keeper_of(self, order: str, reservation: str) -> Order | None:
        """Return the order that keeps a part whose time is up; None where it may be taken back.

        The record decides, so that the parts of a decided order never expire: where it is undecided
        it is ended first, and whoever would decide finds that.
        """
        for _ in range(MAX_ATTEMPTS):
            found = await self.read(order)
            part = None if found is None else found.part(reservation)
            if found is None or part is None:
                return None
            if not part.state.is_open or part.aim in (Aim.RELEASE, Aim.DROP):
                return None
            if found.state is OrderState.CONFIRMED:
                return found
            if found.state.is_ended:
                return None
            expired = msgspec.structs.replace(
                found, state=OrderState.EXPIRED, settled=False, reason="its time was up"
            )
            try:
                await self.step(expired, "expire", actor="sweeper")
            except OrderChanged:
                continue
            return None
        raise OutcomeUnknown()

    async def forget(self, order: Order) -> None:
        """Remove a record that ended long ago."""
        keys = self._keys_of(order.id)
        if keys is None:
            return
        merchant = order.body.merchant
        await self._store.call(
            script("forget"),
            (
                keys.meta,
                keys.order(order.id),
                keys.orders(merchant),
                keys.order_refs(merchant),
                keys.driving,
            ),
            order.id,
            ref_member(order.body.order_ref, order.id),
        )

    def _keys_of(self, order: str) -> PartitionKeys | None:
        partition = partition_of_order(order, len(self._keys))
        return None if partition is None else self._keys[partition]


def keep_ms(state: OrderState) -> int:
    """Return how long an ended record stays."""
    return FAILED_ORDER_RETENTION_MS if state is OrderState.FAILED else RETENTION_MS


def _due_in_ms(order: Order) -> int:
    if not order.settled:
        return GRACE_MS
    return keep_ms(order.state) if order.state.is_ended else RECHECK_MS


def ref_member(order_ref: str, order: str) -> str:
    """Return the member of the index of order references; the id follows the last colon."""
    return f"{encode(order_ref)}:{order}"


def _from_reply(order: str, reply: Sequence[Any]) -> Order:
    state, revision, settled, created, expires, confirmed, ended, reason, plan, body = reply[1:11]
    return Order(
        id=order,
        state=OrderState(state),
        revision=revision,
        settled=settled,
        created_at_ms=created,
        expires_at_ms=expires,
        confirmed_at_ms=confirmed,
        ended_at_ms=ended,
        reason=reason,
        plan=msgspec.convert(plan, Plan),
        body=msgspec.convert(body, OrderBody),
    )


def from_hash(order: str, fields: Sequence[bytes | None]) -> Order | None:
    """Make an order of its hash's FIELDS; None where there is no such hash.

    Raises StoreFault where a field is not what the script writes: someone edited it.
    """
    if fields[0] is None:
        return None
    state, revision, settled, created, expires, confirmed, ended, reason, plan, body = (
        field or b"" for field in fields
    )
    try:
        return Order(
            id=order,
            state=OrderState(state.decode()),
            revision=int(revision),
            settled=settled == b"1",
            created_at_ms=int(created),
            expires_at_ms=int(expires),
            confirmed_at_ms=int(confirmed),
            ended_at_ms=int(ended),
            reason=reason.decode(),
            plan=_decode_plan(plan),
            body=_decode_body(body),
        )
    except (ValueError, msgspec.MsgspecError) as error:
        raise StoreFault("HMGET", f"order {order} is damaged: {error}") from error
