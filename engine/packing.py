"""Msgpack as the scripts take it: a command's elements one after the other, with no array around.

Lua's unpacker returns such elements as so many values, which costs it a tenth of building a table
of them. What a script only passes on, it gets as a text of ready-made msgpack.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

MOST_OF_A_SHORT_ARRAY: Final = 15
"""Elements of an array whose header is one byte; a longer one's has three, up to 65,535."""

_encode = msgspec.msgpack.Encoder().encode


def packed(*values: Any) -> bytes:
    """Return msgpack of the values, one after the other."""
    return _encode(values)[1 if len(values) <= MOST_OF_A_SHORT_ARRAY else 3 :]


def passed_on(pieces: bytes) -> msgspec.Raw:
    """Return msgpack of a text that has these bytes.

    By hand, since Lua's unpacker knows no `bin`, and msgspec would have a `str` be UTF-8.
    """
    return msgspec.Raw(b"\xdb" + len(pieces).to_bytes(4) + pieces)


def packed_list(values: Sequence[Any]) -> bytes:
    """Return msgpack of an array."""
    return _encode(values)
