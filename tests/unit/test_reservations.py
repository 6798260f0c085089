"""Reservations read from their hashes, whole and damaged."""

import msgspec
import pytest

from engine.model import Line, ReservationState
from engine.outcomes import StoreFault
from engine.reservations import Body, from_hash

BODY = msgspec.msgpack.encode(
    Body("acme", "berlin", "key:a", "f", 900_000, "o-1", (Line("milk", 2),), (), 1_000)
)
HELD = (b"held", b"901000", BODY, None, None, None, None, None)


def test_a_hash_as_the_scripts_write_it_is_read_whole() -> None:
    reservation = from_hash("rsv_1_a", HELD)
    assert reservation is not None
    assert reservation.state is ReservationState.HELD
    assert reservation.lines == (Line("milk", 2),)
    assert (reservation.created_at_ms, reservation.expires_at_ms) == (1_000, 901_000)


def test_no_hash_is_no_reservation() -> None:
    assert from_hash("rsv_1_a", (None,) * 8) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (0, b"nonsense"),
        (1, b"soon"),
        (2, b"\xc1"),
        (2, b"\x90"),
        (5, b"\xff"),
        (6, b"\x01"),
        (7, b"\x90"),
    ],
)
def test_a_damaged_hash_is_named(field: int, value: bytes) -> None:
    fields = [*HELD]
    fields[field] = value
    with pytest.raises(StoreFault, match="reservation rsv_1_a is damaged"):
        from_hash("rsv_1_a", fields)
