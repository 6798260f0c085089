"""Reading live keys of a partition together with the place of its ledger that they stand at.

`lua/inspect.lua` reads them in one step, so that whoever folds the ledger to just that place may
compare the two while traffic runs, and sees no difference that is not there.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha1
from typing import Any, Final, NamedTuple, cast

import msgpack

from engine.keys import PartitionKeys
from engine.outcomes import StoreReadOnly
from engine.reservations import FIELDS as RESERVATION_FIELDS
from engine.rows import ROW_FIELDS
from engine.scripts import script
from engine.store import Store

MAX_INSPECTED: Final = 400
"""Keys in one call: some 1 ms of the server's time."""

RETENTION_MARGIN_MS: Final = 60_000
"""Around the end of its retention a key may be there or not."""

MISSING: Final = "missing"
"""The token of a key that is not there."""

_ROW_FIELDS: Final = tuple(
    field for field in ROW_FIELDS if field not in ("offline_buffer", "split")
)

Hash = dict[bytes, bytes]


class WrongType(NamedTuple):
    """A key that holds another type than it should, and which."""

    kind: str


Value = Hash | bytes | int | WrongType | None


class Look(NamedTuple):
    """A key to read, and how: `hash`, `string`, `size` or `score <member>`."""

    how: str
    key: str


class Inspection(NamedTuple):
    """What was found, at one place of the ledger.

    `sequence` is the partition's count of operations as it is kept, None where it is missing or no
    number; `clock_ms` its high-water mark and `now_ms` the server's clock, in ms since 1970.
    """

    sequence: int | None
    clock_ms: int
    now_ms: int
    stream_id: str
    values: list[Value]


async def inspect(store: Store, keys: PartitionKeys, looks: Sequence[Look]) -> Inspection:
    """Read up to MAX_INSPECTED keys of a partition in one step.

    Raises StoreReadOnly while the partition is being rebuilt, and what `Store.call` raises.
    """
    if len(looks) > MAX_INSPECTED:
        raise ValueError(f"{len(looks)} keys in one inspection; at most {MAX_INSPECTED}")
    reply = await store.call(
        script("inspect"),
        (keys.meta, keys.ledger, *[look.key for look in looks]),
        *[look.how for look in looks],
    )
    # Values may be any bytes, which msgspec refuses as text.
    sequence, clock_ms, now_ms, stream_id, rebuilding, values = msgpack.unpackb(reply, raw=True)
    if rebuilding:
        raise StoreReadOnly()
    return Inspection(
        sequence=_number(sequence),
        clock_ms=_number(clock_ms) or 0,
        now_ms=now_ms,
        stream_id="0-0" if stream_id is False else stream_id.decode(),
        values=[_value(look, value) for look, value in zip(looks, values, strict=True)],
    )


def _number(text: bytes | bool) -> int | None:
    return int(text) if isinstance(text, bytes) and text.isdigit() else None


def _value(look: Look, value: Any) -> Value:
    if value is False:
        return None
    if isinstance(value, list):
        if len(value) == 1:
            return WrongType(value[0].decode())
        return dict(zip(value[::2], value[1::2], strict=True))
    return cast(bytes | int, value)


def score_of(value: Value) -> int | None:
    """Return a member's score; None where it is not in there."""
    return int(float(value)) if isinstance(value, bytes) else None


def is_over(until_ms: int, inspection: Inspection) -> bool:
    """Tell whether what is kept until then may be gone: its time is over, or nearly.

    A key's own time runs on the server's clock, which may have gone back behind the partition's.
    """
    ahead_ms = max(0, inspection.clock_ms - inspection.now_ms)
    return until_ms <= inspection.now_ms + ahead_ms + RETENTION_MARGIN_MS


def row_token(value: Value) -> str:
    """Return the token of a row's hash as it was found; `lua/repair.lua` computes the same."""
    return hash_token(value, _ROW_FIELDS)


def reservation_token(value: Value) -> str:
    """Return the token of a reservation's hash as it was found."""
    return hash_token(value, RESERVATION_FIELDS)


def text_token(value: Value) -> str:
    """Return the token of a string as it was found."""
    if isinstance(value, WrongType):
        return f"type:{value.kind}"
    return MISSING if value is None else _digest([cast(bytes, value)])


def hash_token(value: Value, fields: Iterable[str]) -> str:
    """Return the token of some fields of a hash as it was found."""
    if isinstance(value, WrongType):
        return f"type:{value.kind}"
    if value is None:
        return MISSING
    found = cast(Hash, value)
    return _digest([found.get(field.encode()) for field in fields])


def _digest(values: Sequence[bytes | None]) -> str:
    joined = b"\0".join(b"-" if value is None else b"=" + value for value in values)
    return sha1(joined, usedforsecurity=False).hexdigest()
