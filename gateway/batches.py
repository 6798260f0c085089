"""Batches whose items stand or fall alone, but for the store's own failure."""

from collections.abc import Sequence

from engine.outcomes import (
    HoldfastError,
    OutcomeUnknown,
    Overloaded,
    StoreReadOnly,
    StoreUnavailable,
)


def raise_if_store_failed(results: Sequence[object]) -> None:
    """Raise the store's failure where one met any item, as unknown where others were taken.

    Nobody could tell what became of each: a repetition with the same ids finds what was taken.
    """
    for result in results:
        if isinstance(result, OutcomeUnknown):
            raise result
    for result in results:
        if isinstance(result, Overloaded | StoreReadOnly | StoreUnavailable):
            if any(not isinstance(other, HoldfastError) for other in results):
                raise OutcomeUnknown(retry_after_ms=result.retry_after_ms) from result
            raise result
