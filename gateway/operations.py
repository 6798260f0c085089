"""What an operation of the API is. The tables in `gateway.routes` are made of these."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from engine.access import Role
from engine.limits import MAX_KEY_CHARACTERS
from engine.outcomes import (
    HoldfastError,
    IdempotencyKeyReused,
    InvalidCommand,
    OutcomeUnknown,
    Overloaded,
    StoreReadOnly,
    StoreUnavailable,
)
from gateway.calls import Answer, Call, Streaming
from gateway.problems import (
    Forbidden,
    ForeignOrigin,
    IdempotencyKeyRequired,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    RateLimited,
    Unauthenticated,
    UnsupportedMediaType,
)

Handler = Callable[[Call, Any], Awaitable[Answer]] | Callable[[Call, Any], Awaitable[Streaming]]


@dataclass(frozen=True, slots=True)
class HeaderField:
    """A request header that an operation reads."""

    name: str
    description: str
    required: bool = False
    most_characters: int | None = None
    pattern: str | None = None


@dataclass(frozen=True, slots=True)
class Success:
    """An answer that is no problem; `body` None is no body, `headers` names what it brings.

    `media_type` is of a body that has no schema.
    """

    status: int
    body: type | None
    description: str
    headers: tuple[str, ...] = ()
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    `role` None is open to everyone. `request` None takes no body; without `body_required` an empty
    body stands for `{}`. Query parameters of `lists` may stand many times. `problems` are those of
    its own, beside the ones that its kind brings.
    A path without a merchant is for keys of the whole platform, unless `any_merchant`.
    `items` counts what makes a request of many cost more than one (see `gateway.rate_limits`).
    """

    name: str
    method: str
    path: str
    tag: str
    summary: str
    handler: Handler
    successes: tuple[Success, ...]
    role: Role | None
    any_merchant: bool = False
    request: type | None = None
    body_required: bool = True
    changes: bool = False
    query: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    header_fields: tuple[HeaderField, ...] = ()
    problems: tuple[type[HoldfastError], ...] = ()
    items: Callable[[Any], int] | None = None

    @property
    def all_problems(self) -> tuple[type[HoldfastError], ...]:
        """Every class of refusal that the operation can answer with."""
        if self.role is None:
            return self.problems
        classes: list[type[HoldfastError]] = [*_COMMON]
        if self.changes:
            classes += [OutcomeUnknown, StoreReadOnly]
        if self.request is not None:
            classes += [PayloadTooLarge, UnsupportedMediaType]
        if IDEMPOTENCY_KEY in self.header_fields:
            classes += [IdempotencyKeyRequired, IdempotencyKeyReused]
        return (*classes, *self.problems)


IDEMPOTENCY_KEY: Final = HeaderField(
    "Idempotency-Key",
    "Tells a retry from a new request: send the same key with every retry. Quoted or bare, "
    f"1 to {MAX_KEY_CHARACTERS} printable ASCII characters.",
    required=True,
    most_characters=MAX_KEY_CHARACTERS,
    pattern="^[!#-~][ -~]*$",
)
REPLAYED: Final = "Idempotent-Replayed"
"""The header of an answer that an earlier request got."""

_COMMON: Final[tuple[type[HoldfastError], ...]] = (
    InvalidRequest,
    InvalidCommand,
    Unauthenticated,
    Forbidden,
    ForeignOrigin,
    NotFound,
    RateLimited,
    Overloaded,
    StoreUnavailable,
    HoldfastError,
)
