"""Terms of a row as the cells of a stock file say them: `backorder_limit`, `buyer_cap`, `channels`.

They are written for people: `5`, `2 per 7 days`, `2 per day per merchant`, `partner:x cap 40; store
minimum 3`. An empty cell leaves a term as it is, `0` or `none` ends it. Quantities are units.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from engine import model
from engine.model import CapScope
from engine.outcomes import InvalidCommand
from engine.validation import check_terms
from holdfast.calls import BuyerCap, Pool, Terms

COLUMNS: Final = ("backorder_limit", "buyer_cap", "channels")

NONE: Final = "none"

_SECONDS: Final = {"week": 604_800, "day": 86_400, "hour": 3_600, "minute": 60, "second": 1}
_CAP_FORM: Final = "write it as 2 per day, 5 per 7 days, 2 per day per merchant or none"
_POOLS_FORM: Final = "write them as partner:x cap 40; store minimum 3, or none"

_UNITS = re.compile(r"[0-9]{1,13}")
_CAP = re.compile(
    r"(?P<units>[0-9]{1,13})\s+per(?:\s+(?P<count>[0-9]{1,9}))?\s+"
    r"(?P<span>week|day|hour|minute|second)s?(?:\s+per\s+(?P<scope>location|merchant))?"
)
_POOL = re.compile(
    r"""\s*(?:(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<bare>[^";,]+?))"""
    r"(?P<limits>(?:\s+(?:cap|minimum)\s+[0-9]{1,13})+)\s*(?:;|$)"
)
_LIMIT = re.compile(r"(cap|minimum)\s+([0-9]+)")
_BARE = re.compile(r"""[^\s";,]+""")


class AskedTerms(msgspec.Struct, frozen=True):
    """What a file says of a row's terms; UNSET is left as it is, 0, no pools and None end it."""

    backorder_limit: int | UnsetType = UNSET
    buyer_cap: BuyerCap | UnsetType | None = UNSET
    channels: dict[str, Pool] | UnsetType = UNSET

    def over(self, before: Terms | None) -> Terms:
        """Return the terms that a row has then which had these before; pools hold nothing."""
        had = before or Terms()
        channels = had.channels if self.channels is UNSET else self.channels
        limit, cap = self.backorder_limit, self.buyer_cap
        return Terms(
            backorder_limit=had.backorder_limit if limit is UNSET else limit,
            channels={
                name: Pool(cap=pool.cap, minimum=pool.minimum) for name, pool in channels.items()
            },
            buyer_cap=had.buyer_cap if cap is UNSET else cap,
        )

    @property
    def column(self) -> str:
        """The first column that says something."""
        return next(name for name in COLUMNS if getattr(self, name) is not UNSET)


def read_terms(cells: Mapping[str, Any]) -> AskedTerms | None:
    """Read the cells of a row; None where none of them says anything.

    Raises InvalidCommand, with the column as its field.
    """
    asked = AskedTerms()
    for column, read in (
        ("backorder_limit", _read_limit),
        ("buyer_cap", _read_cap),
        ("channels", _read_pools),
    ):
        cell = cells.get(column)
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            continue
        if type(cell) is int:
            cell = str(cell)
        if not isinstance(cell, str):
            raise InvalidCommand(column, "must be text, as in a CSV file")
        asked = msgspec.structs.replace(asked, **{column: read(cell.strip())})
    _check(asked)
    return None if asked == AskedTerms() else asked


def write_terms(terms: Terms | None) -> dict[str, str]:
    """Write a row's terms so that `read_terms` makes any row's the same."""
    said = terms or Terms()
    cap = said.buyer_cap
    # A pool that was ended and still holds something is none that could be asked for.
    pools = [
        f"{_name(name)}{'' if pool.cap is None else f' cap {pool.cap}'}"
        f"{f' minimum {pool.minimum}' if pool.minimum else ''}"
        for name, pool in said.channels.items()
        if pool.cap is not None or pool.minimum
    ]
    return {
        "backorder_limit": str(said.backorder_limit),
        "buyer_cap": NONE if cap is None else _cap(cap),
        "channels": "; ".join(pools) or NONE,
    }


def _read_limit(text: str) -> int:
    if text.lower() == NONE:
        return 0
    if not _UNITS.fullmatch(text):
        raise InvalidCommand("backorder_limit", f"must be a whole number, is {_shown(text)}")
    return int(text)


def _read_cap(text: str) -> BuyerCap | None:
    if text.lower() in (NONE, "0"):
        return None
    match = _CAP.fullmatch(text.lower())
    if match is None:
        raise InvalidCommand("buyer_cap", f"is {_shown(text)}; {_CAP_FORM}")
    seconds = int(match["count"] or "1") * _SECONDS[match["span"]]
    scope = CapScope(match["scope"] or CapScope.LOCATION)
    return BuyerCap(int(match["units"]), seconds, scope)


def _cap(cap: BuyerCap) -> str:
    scope = "" if cap.scope is CapScope.LOCATION else f" per {cap.scope}"
    return f"{cap.units} per {_window(cap.window_seconds)}{scope}"


def _read_pools(text: str) -> dict[str, Pool]:
    if text.lower() in (NONE, "0"):
        return {}
    pools: dict[str, Pool] = {}
    text = text.rstrip("; ")
    at = 0
    while at < len(text):
        match = _POOL.match(text, at)
        # Two channels with nothing between them are no name of one.
        if match is None or _LIMIT.search(match["bare"] or ""):
            raise InvalidCommand("channels", f"cannot read {_shown(text[at:])}; {_POOLS_FORM}")
        name = _unquoted(match["quoted"]) if match["quoted"] else match["bare"].strip()
        limits = _LIMIT.findall(match["limits"])
        if len(dict(limits)) != len(limits) or name in pools:
            raise InvalidCommand("channels", f"says something twice of {_shown(name)}")
        said = {word: int(units) for word, units in limits}
        pools[name] = Pool(cap=said.get("cap"), minimum=said.get("minimum", 0))
        at = match.end()
    return pools


def _unquoted(text: str) -> str:
    try:
        return msgspec.json.decode(text.encode("utf-8", "surrogateescape"), type=str)
    except (msgspec.DecodeError, UnicodeDecodeError) as fault:
        detail = f"{_shown(text)} is no quoted name: {fault}"
        raise InvalidCommand("channels", detail) from fault


def _check(asked: AskedTerms) -> None:
    """Check the numbers and names as the service does. Raises InvalidCommand, of the column."""
    terms = asked.over(None)
    cap = terms.buyer_cap
    try:
        check_terms(
            model.Terms(
                terms.backorder_limit,
                {name: model.Pool(pool.cap, pool.minimum) for name, pool in terms.channels.items()},
                None
                if cap is None
                else model.BuyerCap(cap.units, cap.window_seconds * 1000, cap.scope),
            )
        )
    except InvalidCommand as fault:
        column, _, part = fault.field.partition(".")
        detail = f"{part}: {fault.remedy}" if part else fault.remedy
        raise InvalidCommand(column, detail) from fault


def _name(name: str) -> str:
    return name if _BARE.fullmatch(name) else msgspec.json.encode(name).decode()


def _window(seconds: int) -> str:
    span = next(span for span, length in _SECONDS.items() if seconds % length == 0)
    count = seconds // _SECONDS[span]
    return span if count == 1 else f"{count} {span}s"


def _shown(text: str) -> str:
    shown = text.encode("utf-8", "replace").decode()
    return repr(f"{shown[:40]}..." if len(shown) > 40 else shown)
