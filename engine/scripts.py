"""The Lua scripts: assembled from `lua/` with their includes, and known by their SHA-1."""

import re
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Final

VERBS: Final = (
    "reserve",
    "promise",
    "confirm",
    "extend",
    "amend",
    "repromise",
    "commit",
    "release",
    "decide",
    "expire",
    "fill",
    "slip",
    "move",
    "feed",
    "order",
    "claim",
    "settle",
    "look",
    "shortfall",
    "offline",
    "configure",
    "terms",
    "supply",
    "define",
    "split",
    "part",
    "repair",
)
"""Scripts that take a group of commands; see `lua/lib/group.lua`."""

OTHERS: Final = (
    "due",
    "probe",
    "lease",
    "forget",
    "advance",
    "archived",
    "inspect",
    "together",
    "seek",
    "rebuild_begin",
    "restore",
    "rebuild_finish",
    "webhook_record",
    "webhook_enqueue",
    "webhook_settle",
    "webhook_replay",
    "webhook_notice",
)
"""Scripts that take one call at a time, each in its own way."""

_INCLUDE = re.compile(r"^-- @include (\S+)\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """An assembled script; `sha` is what EVALSHA calls it by."""

    name: str
    text: str
    sha: str


@cache
def script(name: str) -> Script:
    """Assemble `lua/<name>.lua`; every `-- @include x` line gives way to `lua/lib/x.lua`.

    Raises FileNotFoundError where a script or an include does not exist, and ValueError where a
    piece is included twice.
    """
    included: set[str] = set()

    def include(match: re.Match[str]) -> str:
        piece = match[1]
        if piece in included:
            raise ValueError(f"{name}.lua includes {piece} twice")
        included.add(piece)
        # A piece may include others.
        return _INCLUDE.sub(include, _read(f"lib/{piece}.lua"))

    text = _INCLUDE.sub(include, _read(f"{name}.lua"))
    return Script(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def _read(path: str) -> str:
    return files("lua").joinpath(path).read_text(encoding="utf-8")
