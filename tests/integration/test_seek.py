"""`lua/seek.lua` finds in a stream what a look at every entry finds."""

import random
from typing import Any, Final

import pytest

from engine.keys import PartitionKeys
from engine.scripts import script
from engine.store import Store
from tests.stores import RealStore

ENTRIES: Final = 120
PARTITION: Final = 3_999
"""One that no other test on the shared store uses."""


def _stream(draw: random.Random) -> list[tuple[str, int, int]]:
    """Draw (stream id, seq, at) as a ledger has them: dense in places, with stops of the clock."""
    ms, number, sequence, at = 1_000, 0, 1, 5_000
    entries = []
    for _ in range(ENTRIES):
        entries.append((f"{ms}-{number}", sequence, at))
        sequence += draw.choice((1, 1, 3, 128))
        at += draw.choice((0, 0, 1, 900))
        if draw.random() < 0.5:
            number += draw.choice((1, 7))
        else:
            ms, number = ms + draw.choice((1, 2, 40, 100_000)), 0
    return entries


@pytest.mark.parametrize("seed", range(5))
async def test_it_finds_what_a_look_at_every_entry_finds(store: RealStore, seed: int) -> None:
    entries = _stream(random.Random(seed))
    opened = await Store.open(store.settings)
    ledger = PartitionKeys(PARTITION).ledger
    try:
        for stream_id, sequence, at in entries:
            await opened.read([("XADD", ledger, stream_id, "seq", sequence, "at", at, "ops", "-")])
        for column, field in ((1, "seq"), (2, "at")):
            known = {int(entry[column]) for entry in entries}
            wanted = known | {value + 1 for value in known} | {0, 10**15}
            for value in sorted(wanted):
                below = [entry[0] for entry in entries if int(entry[column]) < value]
                reached = [entry[0] for entry in entries if int(entry[column]) >= value]
                found: Any = await opened.call(script("seek"), (ledger,), field, value)
                assert [each.decode() for each in found] == [
                    below[-1] if below else "",
                    reached[0] if reached else "",
                ], (field, value)
        await opened.read([("DEL", ledger)])
        nothing: Any = await opened.call(script("seek"), (ledger,), "seq", 1)
        assert nothing == [b"", b""]
    finally:
        await opened.read([("DEL", ledger)])
        await opened.close()
