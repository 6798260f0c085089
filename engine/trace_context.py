"""The trace that a request belongs to (W3C Trace Context), and how it travels through the store.

A caller's `traceparent` goes with what the request does: into the ledger, from there into the
events that tell of it, and with those to webhooks. In the ledger it stands behind the actor, after
a blank (docs/decisions/0024), so that an operation without one is not a byte longer.

Source: https://www.w3.org/TR/trace-context/
"""

import re
from typing import Final

HEADER: Final = "traceparent"

_FORM: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_NO_TRACE: Final = b"0" * 32
_NO_SPAN: Final = b"0" * 16


def parse_traceparent(value: bytes | None) -> str:
    """Return a header's value in the form of version 00; empty where it is none that is valid.

    As the standard asks, one of a later version is read as one of this version, what it has more
    is left out, and one that is malformed is as good as none.
    """
    match = None if value is None else _FORM.fullmatch(value.strip())
    if match is None:
        return ""
    version, trace, span, flags, more = match.groups()
    if version == b"ff" or trace == _NO_TRACE or span == _NO_SPAN or (more and version == b"00"):
        return ""
    return f"00-{trace.decode()}-{span.decode()}-{flags.decode()}"


def with_trace(actor: str, traceparent: str) -> str:
    """Return what the ledger keeps as the actor."""
    return f"{actor} {traceparent}" if traceparent else actor


def split_trace(actor: str) -> tuple[str, str]:
    """Take apart what the ledger keeps as the actor: who it was, and the trace or nothing."""
    who, blank, last = actor.rpartition(" ")
    # An operator's name may have blanks too.
    if blank and last and parse_traceparent(last.encode()) == last:
        return who, last
    return actor, ""
