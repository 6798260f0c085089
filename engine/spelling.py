"""Names that somebody may have meant who said another: the nearest in spelling.

By the ratio of Ratcliff and Metzener (*Pattern Matching: The Gestalt Approach*, 1988), as Python's
`difflib` has it.
"""

from collections.abc import Iterable
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Final

MAX_NEAREST: Final = 5
"""Names that one answer tells."""

CLOSE: Final = 0.6
"""From this ratio on names look alike; `difflib` takes the same."""

_MAX_REMEMBERED: Final = 1_000


def nearest(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """Return the first of the names that are known, the most alike first."""
    return tuple(one for _, one in _ranked(name, frozenset(known))[:MAX_NEAREST])


def close(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """Return those of the known names that look like it; all of them where none does."""
    ranked = _ranked(name, frozenset(known))
    return tuple(one for ratio, one in ranked if ratio >= CLOSE) or tuple(one for _, one in ranked)


# A delivery with one wrong name tells it with each of its lines.
@lru_cache(_MAX_REMEMBERED)
def _ranked(name: str, known: frozenset[str]) -> list[tuple[float, str]]:
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(name.casefold())
    found = []
    for one in known:
        matcher.set_seq1(one.casefold())
        found.append((matcher.ratio(), one))
    return sorted(found, key=lambda ranked: (-ranked[0], ranked[1]))
