"""The headers that tell a retry from a new request.

Idempotency-Key may be quoted, as the IETF draft has it, or bare as most clients send it.
Idempotency-Attempt is our own: it counts the attempts under a key, if a client cares to.
"""

import re
from typing import Final

from engine.limits import MAX_KEY_CHARACTERS
from gateway.calls import Call
from gateway.problems import IdempotencyKeyRequired, InvalidRequest
from gateway.wire import ProblemError

HEADER: Final = "Idempotency-Key"
ATTEMPT_HEADER: Final = "Idempotency-Attempt"
ATTEMPT_FORM: Final = "[1-9][0-9]{0,2}"

_ATTEMPT = re.compile(ATTEMPT_FORM.encode())
_BARE = re.compile(rf"[!#-~][ -~]{{0,{MAX_KEY_CHARACTERS - 1}}}")
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])+)"')
"""A string of RFC 8941: a quote or a backslash in it is escaped by a backslash."""


def key_of(call: Call) -> str:
    """Return the key; `"abc"` and `abc` are the same one.

    Raises IdempotencyKeyRequired where there is none, InvalidRequest where it is not of its form.
    """
    value = call.headers.get(b"idempotency-key", b"").strip().decode("latin-1")
    if not value:
        raise IdempotencyKeyRequired
    quoted = _QUOTED.fullmatch(value)
    key = value if quoted is None else re.sub(r"\\(.)", r"\1", quoted[1])
    if len(key) > MAX_KEY_CHARACTERS or (quoted is None and not _BARE.fullmatch(value)):
        raise InvalidRequest(
            ProblemError(
                header=HEADER,
                detail=f"must be 1 to {MAX_KEY_CHARACTERS} printable ASCII characters, quoted or "
                "bare",
            )
        )
    return key


def is_first_attempt(call: Call) -> bool:
    """Say whether the caller says that the key was never sent before. Raises InvalidRequest."""
    value = call.headers.get(b"idempotency-attempt")
    if value is None:
        return False
    if not _ATTEMPT.fullmatch(value.strip()):
        raise InvalidRequest(ProblemError(header=ATTEMPT_HEADER, detail="must be 1 to 999"))
    return value.strip() == b"1"
