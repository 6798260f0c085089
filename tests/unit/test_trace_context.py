"""Trace Context as callers send it, and as it stands in the ledger."""

import pytest

from engine.trace_context import parse_traceparent, split_trace, with_trace

GOOD = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        (GOOD, GOOD),
        (f"  {GOOD} ", GOOD),
        ("cc" + GOOD[2:] + "-what-the-future-brings", GOOD),
        ("cc" + GOOD[2:], GOOD),
        (None, ""),
        ("", ""),
        (GOOD + "-more", ""),
        ("ff" + GOOD[2:], ""),
        (GOOD.upper(), ""),
        (GOOD[:-1], ""),
        ("00-" + "0" * 32 + GOOD[35:], ""),
        (GOOD[:36] + "0" * 16 + "-01", ""),
        (GOOD.replace("-", " "), ""),
        (GOOD + "\r\nx: y", ""),
    ],
)
def test_what_is_not_valid_is_as_good_as_none(value: str | None, parsed: str) -> None:
    assert parse_traceparent(None if value is None else value.encode()) == parsed


@pytest.mark.parametrize("actor", ["key:Ab12Cd34", "sweeper", "Jo Bloggs", "", " ", f"x {GOOD} y"])
def test_an_actor_is_what_it_was_with_a_trace_and_without(actor: str) -> None:
    assert split_trace(with_trace(actor, GOOD)) == (actor, GOOD)
    assert split_trace(with_trace(actor, "")) == (actor, "")
