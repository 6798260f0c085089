"""One partition's live sources of events, and what was set aside, beside its account.

Like `reconciler.comparison`, of which it is a part: what looks different is looked at once more, at
a place of the ledger that may know it by then. When a source was last heard of is not compared: a
heartbeat is no operation.
"""

from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha1
from typing import Any, Final

import msgspec

from engine.keys import PartitionKeys
from reconciler.account import Account
from reconciler.findings import AsideEvidence, Code, Finding, Invariant, SourceEvidence
from reconciler.inspection import MISSING, Inspection, Look, Value, hash_token
from reconciler.sources import (
    PRINT_BYTES,
    FoldedQuarantined,
    FoldedSource,
    SourceKey,
    quarantine_text,
)

TOKEN_FIELDS: Final = ("mode", "watermark", "highest", "ahead")
"""Of a source's hash, as in `lua/repair.lua`."""

CHUNK: Final = 50
"""Sources in one look: prints have up to 4 kB each."""

LookAt = Callable[[Sequence[Look]], Awaitable[Inspection]]


class FeedComparison:
    """Compares the sources and the quarantines of one partition."""

    def __init__(self, account: Account, look: LookAt) -> None:
        """`look` reads keys and takes the account to just that place."""
        self._account = account
        self._keys: PartitionKeys = account.keys
        self._look = look

    async def run(
        self,
        sources: Sequence[SourceKey] | None = None,
        places: Sequence[tuple[str, str]] | None = None,
    ) -> list[Finding]:
        """Return what is different, of everything unless told of what."""
        state = self._account.state
        if sources is None:
            sources = list(state.sources)
        if places is None:
            quarantined = [(one.merchant, one.location) for one in state.quarantine.values()]
            places = list(dict.fromkeys([*quarantined, *[name[:2] for name in state.sources]]))
        findings = []
        for start in range(0, len(sources), CHUNK):
            suspects = await self._differing(sources[start : start + CHUNK])
            # What came while it was looked at is known by now.
            findings += await self._differing([one.name for one in suspects])
        found = [suspect.finding(self._keys, self._account.state.sequence) for suspect in findings]
        for place in places:
            if await self._aside(place):
                found += await self._aside(place)
        return found

    async def _differing(self, names: Sequence[SourceKey]) -> list["_Suspect"]:
        if not names:
            return []
        looks = []
        for name in names:
            looks += [
                Look("hash", self._keys.feed(*name)),
                Look("string", self._keys.prints(*name)),
                Look(f"score {name[2]}", self._keys.feeds(name[0], name[1])),
            ]
        values = (await self._look(looks)).values
        found = []
        for index, name in enumerate(names):
            value, prints, listed = values[3 * index : 3 * index + 3]
            ledger = self._account.state.sources.get(name)
            live = _source(value, prints)
            if not _is_same(live, ledger) or listed is None:
                token = hash_token(value, TOKEN_FIELDS)
                evidence = SourceEvidence(token=token, source=name[2], live=live, ledger=ledger)
                found.append(_Suspect(name, evidence, value is None))
        return found

    async def _aside(self, place: tuple[str, str]) -> list[Finding]:
        key = self._keys.quarantine(*place)
        (value,) = (await self._look([Look("hash", key)])).values
        live = value if isinstance(value, dict) else {}
        wanted = {
            the_id: one
            for the_id, one in self._account.state.quarantine.items()
            if (one.merchant, one.location) == place
        }
        names = {name.decode(errors="backslashreplace"): text for name, text in live.items()}
        found = []
        for the_id in sorted(wanted.keys() | names.keys()):
            body, text = wanted.get(the_id), names.get(the_id)
            if not _is_same_body(body, text):
                found.append(self._aside_finding(place, the_id, body, text))
        return found

    def _aside_finding(
        self,
        place: tuple[str, str],
        the_id: str,
        body: FoldedQuarantined | None,
        text: bytes | None,
    ) -> Finding:
        looks = b"-" if text is None else b"=" + text
        token = sha1(looks, usedforsecurity=False).hexdigest()
        said = "was not set aside" if body is None else "was set aside, and is not there as it was"
        return Finding(
            invariant=Invariant.FOLD,
            code=Code.QUARANTINE_DIFFERS,
            detail=f"by the ledger event {the_id} {said}",
            remedy="made to be what the ledger says",
            partition=self._keys.partition,
            merchant=place[0],
            location=place[1],
            key=self._keys.quarantine(*place),
            sequence=self._account.state.sequence,
            aside=AsideEvidence(token=token, event=the_id, body=body),
        )


class _Suspect(msgspec.Struct, frozen=True):
    """A source that looks different."""

    name: SourceKey
    evidence: SourceEvidence
    is_missing: bool

    def finding(self, keys: PartitionKeys, sequence: int) -> Finding:
        """Make the finding."""
        live, ledger = self.evidence.live, self.evidence.ledger
        told = "knows none" if ledger is None else f"has {_text(ledger)}"
        if self.evidence.token == MISSING:
            shown = "is gone"
        else:
            shown = "cannot be read" if live is None else f"has {_text(live)}"
        return Finding(
            invariant=Invariant.ONCE,
            code=Code.SOURCE_DIFFERS,
            detail=f"source {self.name[2]} {shown}; the ledger {told}",
            remedy="written again, or taken over where the ledger lost operations",
            partition=keys.partition,
            merchant=self.name[0],
            location=self.name[1],
            key=keys.feed(*self.name),
            sequence=sequence,
            source=self.evidence,
        )


def _source(value: Value, prints: Value) -> FoldedSource | None:
    """Read a source; None where there is none, or it cannot be read as one."""
    if not isinstance(value, dict) or not (prints is None or isinstance(prints, bytes)):
        return None
    try:
        ahead: list[Any] = msgspec.msgpack.decode(value.get(b"ahead", b"\x90"))
        return FoldedSource(
            value[b"mode"].decode(),
            int(value[b"heard_at"]),
            int(value[b"occurred_at"]),
            int(value.get(b"watermark", b"0")),
            int(value.get(b"highest", b"0")),
            msgspec.convert(ahead, list[list[int]]),
            int(value.get(b"skipped", b"0")),
            bytearray(prints or b""),
        )
    except (KeyError, ValueError, msgspec.MsgspecError):
        return None


def _is_same(live: FoldedSource | None, ledger: FoldedSource | None) -> bool:
    if live is None or ledger is None:
        # One that has only sent heartbeats is in no ledger.
        return live is not None and live.mode == "" and live.highest == 0
    return (live.mode, live.watermark, live.highest, live.ahead, live.skipped) == (
        ledger.mode,
        ledger.watermark,
        ledger.highest,
        ledger.ahead,
        ledger.skipped,
    ) and live.prints == ledger.prints


def _is_same_body(body: FoldedQuarantined | None, text: bytes | None) -> bool:
    return text is not None and body is not None and quarantine_text(body) == text


def _text(source: FoldedSource) -> str:
    if source.mode != "sequence":
        return "no numbers"
    prints = len(source.prints) // PRINT_BYTES
    return f"all up to {source.watermark}, the highest {source.highest}, {prints} prints"
