"""What a command can come to: the codes the scripts answer with, and the exceptions they become.

One enum names the codes, `lua/` uses the same literals, and a contract test compares the two and
the table in docs/reference/outcomes.md in both directions.
"""

from enum import StrEnum
from typing import Any, Final

import msgspec


class Outcome(StrEnum):
    """A script's answer to one command."""

    OK = "ok"
    REPLAYED = "replayed"
    INSUFFICIENT_STOCK = "insufficient_stock"
    INSUFFICIENT_ON_HAND = "insufficient_on_hand"
    BUYER_CAP_EXCEEDED = "buyer_cap_exceeded"
    BACKORDER_UNFILLED = "backorder_unfilled"
    NOT_FOUND = "not_found"
    SUPPLY_NOT_FOUND = "supply_not_found"
    ENDED = "ended"
    NOT_HELD = "not_held"
    NOT_DUE = "not_due"
    PROPOSED = "proposed"
    DECIDED = "decided"
    VERSION_CONFLICT = "version_conflict"
    KEY_REUSED = "key_reused"
    LIMIT_EXCEEDED = "limit_exceeded"
    LINES_CHANGED = "lines_changed"
    TERMS = "terms"
    SPLIT = "split"
    UNCLAIMED = "unclaimed"
    ORDER_CHANGED = "order_changed"
    READ_ONLY = "read_only"
    INVALID = "invalid"


class ShortLine(msgspec.Struct, frozen=True):
    """A line that does not fit: `requested` units against `available` (or on hand) ones.

    `known` is False where the location has no row for the SKU at all. `limited_by` is what there is
    not more for: `stock`, the `channel`'s pool or the `buyer`'s cap.
    """

    sku: str
    requested: int
    available: int
    known: bool = True
    limited_by: str = "stock"


class HoldfastError(Exception):
    """The base of all refusals; every subclass carries what it says as fields.

    `code` is stable and is the `code` of the HTTP problem.
    """

    code: str = "internal"

    def fields(self) -> dict[str, Any]:
        """Return the refusal's fields by name, for an error document or a log line."""
        return dict(vars(self))


class InsufficientStock(HoldfastError):
    """The reserve does not fit, so nothing was held. `lines` are those that are short.

    `passed_over` are locations with why nothing comes from there, of an order that is sourced anew.
    """

    code = "insufficient_stock"

    def __init__(
        self, lines: tuple[ShortLine, ...], passed_over: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """Keep the short lines; `available` is what could be promised."""
        self.lines = lines
        self.passed_over = passed_over
        first = lines[0]
        super().__init__(
            f"{len(lines)} line(s) do not fit; {first.sku}: requested {first.requested}, "
            f"available {first.available}"
        )


class BuyerCapExceeded(HoldfastError):
    """There are units, but this buyer may have no more of them, so nothing was held."""

    code = "buyer_cap_exceeded"

    def __init__(self, lines: tuple[ShortLine, ...]) -> None:
        """Keep the lines that are too long; `available` is what the buyer may still have."""
        self.lines = lines
        first = lines[0]
        super().__init__(
            f"{len(lines)} line(s) pass the cap of a buyer; {first.sku}: requested "
            f"{first.requested}, of which {first.available} may be had"
        )


class InsufficientOnHand(HoldfastError):
    """Fewer units are on hand than should leave the shelf, so nothing was changed."""

    code = "insufficient_on_hand"

    def __init__(self, lines: tuple[ShortLine, ...]) -> None:
        """Keep the short lines; `available` is what is on hand."""
        self.lines = lines
        first = lines[0]
        super().__init__(
            f"{first.sku}: {first.requested} units should leave the shelf, "
            f"{first.available} are on hand"
        )


class BackorderUnfilled(HoldfastError):
    """Units that should leave the shelf have not come yet, so nothing was changed."""

    code = "backorder_unfilled"

    def __init__(self, lines: tuple[ShortLine, ...]) -> None:
        """Keep the lines that wait; `available` is what there is for them."""
        self.lines = lines
        first = lines[0]
        super().__init__(
            f"{first.sku}: {first.requested} units should leave the shelf, of which "
            f"{first.requested - first.available} are backordered still"
        )


class SupplyNotFound(HoldfastError):
    """The row expects no supply of that name: it was never announced, or all of it has come.

    `expects` are supplies that it does expect, the nearest in spelling first.
    """

    code = "supply_not_found"

    def __init__(self, sku: str, supply: str, *, expects: tuple[str, ...] = ()) -> None:
        """Keep what was asked for."""
        self.sku = sku
        self.supply = supply
        self.expects = expects
        others = f", but with {', '.join(expects)}" if expects else ""
        super().__init__(
            f"nothing of {sku} is to come with a supply {supply}{others}: announce it, or book "
            "what came without naming one"
        )


class ReservationNotFound(HoldfastError):
    """No such reservation of this merchant (ended ones are kept for 24 hours)."""

    code = "reservation_not_found"

    def __init__(self, reservation: str) -> None:
        """Keep the id that was asked for."""
        self.reservation = reservation
        super().__init__(f"there is no reservation {reservation}")


class OrderNotFound(HoldfastError):
    """No such order of this merchant (ended ones are kept for 24 hours)."""

    code = "order_not_found"

    def __init__(self, order: str) -> None:
        """Keep the id that was asked for."""
        self.order = order
        super().__init__(f"there is no order {order}")


class OrderEnded(HoldfastError):
    """The order is `state`, which does not go together with what was asked."""

    code = "order_ended"

    def __init__(self, order: str, *, state: str, ended_at_ms: int, reason: str) -> None:
        """Keep what it came to, when (0: it has not ended) and why."""
        self.order = order
        self.state = state
        self.ended_at_ms = ended_at_ms
        self.reason = reason
        super().__init__(f"order {order} is {state}" + (f": {reason}" if reason else ""))


class RowNotFound(HoldfastError):
    """The location has no row for the SKU."""

    code = "row_not_found"

    def __init__(self, *, merchant: str, location: str, sku: str) -> None:
        """Keep which row was asked for."""
        self.merchant = merchant
        self.location = location
        self.sku = sku
        super().__init__(f"location {location} has no row for SKU {sku}")


class ItemNotFound(HoldfastError):
    """Nobody has described this SKU."""

    code = "item_not_found"

    def __init__(self, sku: str) -> None:
        """Keep the SKU."""
        self.sku = sku
        super().__init__(f"there is no item {sku}")


class SubstitutesNotFound(HoldfastError):
    """Nothing was said to stand for this SKU."""

    code = "substitutes_not_found"

    def __init__(self, sku: str) -> None:
        """Keep the SKU."""
        self.sku = sku
        super().__init__(f"nothing was said to stand for {sku}")


class KitNotFound(HoldfastError):
    """This SKU is no kit."""

    code = "kit_not_found"

    def __init__(self, sku: str) -> None:
        """Keep the SKU."""
        self.sku = sku
        super().__init__(f"{sku} is no kit")


class WebhookNotFound(HoldfastError):
    """There is no such webhook endpoint of this merchant."""

    code = "webhook_not_found"

    def __init__(self, webhook: str) -> None:
        """Keep the id that was asked for."""
        self.webhook = webhook
        super().__init__(f"there is no webhook {webhook}")


class ReservationEnded(HoldfastError):
    """The reservation came to another ending before: `state`, at `ended_at_ms`."""

    code = "reservation_ended"

    def __init__(self, reservation: str, *, state: str, ended_at_ms: int) -> None:
        """Keep the first ending."""
        self.reservation = reservation
        self.state = state
        self.ended_at_ms = ended_at_ms
        super().__init__(f"reservation {reservation} was {state} already")


class ReservationNotHeld(HoldfastError):
    """The reservation is confirmed, so it has no TTL to extend."""

    code = "reservation_not_held"

    def __init__(self, reservation: str, *, state: str) -> None:
        """Keep the state it is in."""
        self.reservation = reservation
        self.state = state
        super().__init__(f"reservation {reservation} is {state}: it has no TTL")


class ProposalOpen(HoldfastError):
    """Somebody has to accept the reservation's substitutes first: those for `skus`."""

    code = "proposal_open"

    def __init__(self, reservation: str, *, skus: tuple[str, ...]) -> None:
        """Keep the SKUs that others would stand for."""
        self.reservation = reservation
        self.skus = skus
        super().__init__(
            f"the substitutes for {', '.join(skus)} in reservation {reservation} were neither "
            "accepted nor declined yet"
        )


class ProposalDecided(HoldfastError):
    """The substitutes were accepted, and now declined, or the other way round."""

    code = "proposal_decided"

    def __init__(self, reservation: str) -> None:
        """Keep the reservation."""
        self.reservation = reservation
        super().__init__(f"the substitutes of reservation {reservation} were decided the other way")


class VersionConflict(HoldfastError):
    """The row changed since the caller saw it."""

    code = "version_conflict"

    def __init__(self, sku: str, *, expected: int, actual: int) -> None:
        """Keep both versions; 0 is a row that does not exist."""
        self.sku = sku
        self.expected = expected
        self.actual = actual
        super().__init__(f"{sku} is at version {actual}, not {expected}")


class IdempotencyKeyReused(HoldfastError):
    """The key was used for another request before."""

    code = "idempotency_key_reused"

    def __init__(self, key: str) -> None:
        """Keep the key."""
        self.key = key
        super().__init__(f"the key {key!r} was used for a different request")


class LimitExceeded(HoldfastError):
    """The command is well formed but would pass a limit: `field` can be at most `most`."""

    code = "limit_exceeded"

    def __init__(self, field: str, *, most: int) -> None:
        """Keep the field and its limit, in the field's own unit (ms for a TTL)."""
        self.field = field
        self.most = most
        super().__init__(f"{field} would pass its limit of {most}")


class InvalidCommand(HoldfastError):
    """A field of the command is not of its form; `remedy` says what is."""

    code = "invalid_request"

    def __init__(self, field: str, remedy: str) -> None:
        """Keep the field's name (dotted for nested ones) and the remedy."""
        self.field = field
        self.remedy = remedy
        super().__init__(f"{field}: {remedy}")


class Overloaded(HoldfastError):
    """Too many commands wait for the store; nothing was done. Come back after `retry_after_ms`."""

    code = "overloaded"

    def __init__(self, *, retry_after_ms: int) -> None:
        """Keep the time to wait."""
        self.retry_after_ms = retry_after_ms
        super().__init__("too many commands are waiting for the store")


class StoreUnavailable(HoldfastError):
    """The store cannot take the command now; nothing was done. `reason` says why."""

    code = "store_unavailable"

    def __init__(
        self, reason: str = "the store does not answer", *, retry_after_ms: int = 1_000
    ) -> None:
        """Keep the reason and the time to wait."""
        self.reason = reason
        self.retry_after_ms = retry_after_ms
        super().__init__(reason)


class StoreReadOnly(HoldfastError):
    """The store is being rebuilt: it answers questions, but takes no writes. Nothing was done."""

    code = "read_only"

    def __init__(self, *, retry_after_ms: int = 5_000) -> None:
        """Keep the time to wait."""
        self.retry_after_ms = retry_after_ms
        super().__init__("the store is being rebuilt and takes no writes until that is done")


class PastNotKept(HoldfastError):
    """The ledger does not reach back to `at_ms`; None as `earliest_ms` means that nobody knows."""

    code = "past_not_kept"

    def __init__(self, *, at_ms: int, earliest_ms: int | None) -> None:
        """Keep the moment that was asked for and the first that the ledger tells of."""
        self.at_ms = at_ms
        self.earliest_ms = earliest_ms
        super().__init__("the ledger does not reach back that far")


class HistoryUnavailable(HoldfastError):
    """What was asked for is in the archive, which does not answer now. `reason` says why."""

    code = "history_unavailable"

    def __init__(self, reason: str, *, retry_after_ms: int = 5_000) -> None:
        """Keep the reason and the time to wait."""
        self.reason = reason
        self.retry_after_ms = retry_after_ms
        super().__init__(reason)


class IndexUnavailable(HoldfastError):
    """The index cannot be asked now. `reason` says why."""

    code = "index_unavailable"

    def __init__(self, reason: str, *, retry_after_ms: int = 5_000) -> None:
        """Keep the reason and the time to wait."""
        self.reason = reason
        self.retry_after_ms = retry_after_ms
        super().__init__(reason)


_REFUSALS: Final = ("NOPERM", "NOAUTH", "MISCONF", "READONLY", "ACL ", "User ", "this user ")
"""How a server begins what is no matter of the keys: rights, and a disk that cannot be written."""


class StoreFault(HoldfastError):
    """The store answered with an error that no input should cause: a bug, or a damaged key."""

    code = "internal"

    def __init__(self, call: str, reply: str) -> None:
        """Keep which call failed and the store's words."""
        self.call = call
        self.reply = reply
        super().__init__(f"{call}: {reply}")

    @property
    def is_of_server(self) -> bool:
        """Whether the server would refuse whatever it is asked for, as far as its words tell."""
        return self.reply.removeprefix("ERR ").startswith(_REFUSALS)


class OutcomeUnknown(HoldfastError):
    """The store did not answer in time: the command may have been applied.

    Retry with the same idempotency key or id: if it was applied, the answer is the same.
    """

    code = "outcome_unknown"

    def __init__(self, *, retry_after_ms: int = 1_000) -> None:
        """Keep the time to wait."""
        self.retry_after_ms = retry_after_ms
        super().__init__("the store did not answer in time; retry with the same key or id")
