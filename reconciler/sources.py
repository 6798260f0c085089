"""Sources of events and what was set aside, folded: the twin of `lua/lib/sources.lua`.

Times are ms since 1970. `heard_at_ms` is of the last operation: a heartbeat leaves none.
"""

from typing import Any, Final

import msgspec

PRINTS: Final = 1_024
PRINT_BYTES: Final = 4
"""As in `lua/lib/sources.lua`; a test compares them."""

SourceKey = tuple[str, str, str]
"""(merchant, location, source)."""


class FoldedSource(msgspec.Struct, array_like=True):
    """What a source has sent; `ahead` are [first, last, since] past the watermark."""

    mode: str = ""
    heard_at_ms: int = 0
    occurred_at_ms: int = 0
    watermark: int = 0
    highest: int = 0
    ahead: list[list[int]] = []
    skipped: int = 0
    prints: bytearray = msgspec.field(default_factory=bytearray)

    def hear(self, at_ms: int, occurred_at_ms: int) -> None:
        """Note that it was heard of."""
        self.heard_at_ms = at_ms
        self.occurred_at_ms = max(self.occurred_at_ms, occurred_at_ms)

    def note(self, number: int, fingerprint: str, at_ms: int) -> None:
        """Note that an event has come under a sequence number."""
        self._print(number, fingerprint)
        if number <= self.watermark or any(x[0] <= number <= x[1] for x in self.ahead):
            return
        ranges = sorted([*self.ahead, [number, number, at_ms]])
        merged: list[list[int]] = []
        for first, last, since in ranges:
            if merged and merged[-1][1] + 1 == first:
                merged[-1][1] = last
                merged[-1][2] = min(merged[-1][2], since)
            else:
                merged.append([first, last, since])
        self._close(merged)
        self.highest = max(self.highest, number)

    def skip(self, number: int) -> None:
        """Give up on all that is missing up to a number."""
        self.watermark = max(self.watermark, number)
        self.skipped = max(self.skipped, number)
        self._close([one for one in self.ahead if one[1] > number])
        self.highest = max(self.highest, self.watermark)

    def _close(self, ranges: list[list[int]]) -> None:
        while ranges and ranges[0][0] <= self.watermark + 1:
            self.watermark = max(self.watermark, ranges[0][1])
            ranges = ranges[1:]
        self.ahead = ranges

    def _print(self, number: int, fingerprint: str) -> None:
        place = (number - 1) % PRINTS * PRINT_BYTES
        if len(self.prints) < place + PRINT_BYTES:
            self.prints.extend(bytes(place + PRINT_BYTES - len(self.prints)))
        value = max(1, int(fingerprint[: 2 * PRINT_BYTES], 16))
        self.prints[place : place + PRINT_BYTES] = value.to_bytes(PRINT_BYTES, "big")


class FoldedQuarantined(msgspec.Struct, array_like=True):
    """An event that was set aside, as `lua/lib/quarantine.lua` keeps it."""

    merchant: str
    location: str
    body: list[Any]


_encode = msgspec.msgpack.Encoder().encode


def source_texts(source: FoldedSource) -> dict[str, bytes]:
    """Return a source's hash as the scripts write it."""
    texts = {
        "mode": source.mode.encode(),
        "heard_at": b"%d" % source.heard_at_ms,
        "occurred_at": b"%d" % source.occurred_at_ms,
    }
    if source.highest:
        texts["watermark"] = b"%d" % source.watermark
        texts["highest"] = b"%d" % source.highest
        # As cmsgpack packs them, which writes an empty array as such too.
        texts["ahead"] = _encode(source.ahead)
        texts["skipped"] = b"%d" % source.skipped
    return texts


def quarantine_text(event: FoldedQuarantined) -> bytes:
    """Return an event that was set aside as the scripts keep it."""
    return _encode(event.body)
