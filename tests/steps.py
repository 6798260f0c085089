"""Counts what code does, which is the same on every machine, however loaded it is."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def steps(run: Callable[[], object]) -> int:
    """Return how many lines of Python a call executes, in all that it calls in turn."""
    executed = 0

    def trace(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal executed
        executed += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return executed
