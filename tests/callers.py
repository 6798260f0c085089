"""Callers that keep their key: they ask again until they know what became of their call."""

from collections.abc import Awaitable, Callable
from typing import Final, ParamSpec, TypeVar

from engine.outcomes import OutcomeUnknown, StoreUnavailable

MAX_TRIES: Final = 40
"""How often a call is made in all; within each the engine retries for itself, and pauses."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


async def persistently(
    call: Callable[Arguments, Awaitable[Result]], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Make the very same call until there is an answer or a refusal; raises the last failure."""
    for _ in range(MAX_TRIES - 1):
        try:
            return await call(*args, **kwargs)
        except (OutcomeUnknown, StoreUnavailable):
            continue
    return await call(*args, **kwargs)
