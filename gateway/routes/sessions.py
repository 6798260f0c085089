"""The operations of sessions of the console."""

from typing import Final

from engine.access import Role
from engine.outcomes import HoldfastError, Overloaded, StoreUnavailable
from gateway import sessions
from gateway.operations import Operation, Success
from gateway.problems import (
    ForeignOrigin,
    InvalidRequest,
    PayloadTooLarge,
    RateLimited,
    Unauthenticated,
    UnsupportedMediaType,
)

_SESSION: Final = "/v1/session"

OPERATIONS: Final = (
    Operation(
        name="createSession",
        method="POST",
        path=_SESSION,
        tag="Sessions",
        summary="Sign in to the console with an API key",
        handler=sessions.create,
        request=sessions.SessionRequest,
        role=None,
        successes=(
            Success(201, sessions.SessionAnswer, "Whose key it is, and a cookie", ("Set-Cookie",)),
        ),
        problems=(
            InvalidRequest,
            Unauthenticated,
            ForeignOrigin,
            PayloadTooLarge,
            UnsupportedMediaType,
            RateLimited,
            Overloaded,
            StoreUnavailable,
            HoldfastError,
        ),
    ),
    Operation(
        name="readSession",
        method="GET",
        path=_SESSION,
        tag="Sessions",
        summary="Tell whose key or session this is",
        handler=sessions.read,
        role=Role.READ,
        any_merchant=True,
        successes=(Success(200, sessions.SessionAnswer, "Whose it is"),),
    ),
    Operation(
        name="deleteSession",
        method="DELETE",
        path=_SESSION,
        tag="Sessions",
        summary="Sign out",
        handler=sessions.delete,
        role=Role.READ,
        any_merchant=True,
        successes=(Success(204, None, "The session is over", ("Set-Cookie",)),),
    ),
)
