"""Names that somebody may have meant who said another: the nearest in spelling.

Two names are as near as the part of them that they have in common, in order but not in one piece: a
longest common subsequence, counted twice, over the length of both. That is the similarity that goes
with the distance of insertions and deletions (Navarro, *A Guided Tour to Approximate String
Matching*, ACM Computing Surveys 33, 2001). The names are strangers', and there may be a thousand of
them in one call, so what is compared of each is bounded.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final

MAX_NEAREST: Final = 5
"""Names that one answer tells."""

MAX_COMPARED: Final = 64
"""Characters of two names that are compared, from the first on in which they differ. So a name and
50 others take a millisecond."""

CLOSE: Final = 0.6
"""From this ratio on names look alike."""

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
    folded = name.casefold()
    found = [(_ratio(folded, one.casefold()), one) for one in known]
    return sorted(found, key=lambda ranked: (-ranked[0], ranked[1]))


def _ratio(first: str, second: str) -> float:
    """Return how alike two names are, from 0 to 1."""
    same = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        same += 1
    first, second = (name[same : same + MAX_COMPARED] for name in (first, second))
    length = 2 * same + len(first) + len(second)
    return 2 * (same + _common(first, second)) / length if length else 1.0


def _common(first: str, second: str) -> int:
    """Return the length of a longest common subsequence.

    A row of the table of dynamic programming is one integer, of which a 0 is a step (Hyyrö,
    *Bit-Parallel LCS-length Computation Revisited*, AWOCA 2004).
    """
    places: dict[str, int] = {}
    for place, character in enumerate(first):
        places[character] = places.get(character, 0) | 1 << place
    full = (1 << len(first)) - 1
    row = full
    for character in second:
        matches = row & places.get(character, 0)
        row = (row + matches) | (row - matches)
    return (full & ~row).bit_count()
