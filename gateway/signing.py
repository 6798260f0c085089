"""Signatures of webhooks as Standard Webhooks 1.0 has them: HMAC-SHA256 over id, time and body.

A secret is `whsec_` and base64 of 24 to 64 bytes. While a secret is being rotated a message carries
a signature of each of the two, so that a receiver that knows either can check it.
"""

import base64
import secrets
from collections.abc import Sequence
from hashlib import sha256
from hmac import digest
from typing import Final

PREFIX: Final = "whsec_"
SECRET_BYTES: Final = 32

ID_HEADER: Final = "webhook-id"
TIMESTAMP_HEADER: Final = "webhook-timestamp"
SIGNATURE_HEADER: Final = "webhook-signature"


def new_secret() -> str:
    """Make a secret that nobody has used."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def headers(
    message_id: str, body: bytes, *, signed_with: Sequence[str], at_seconds: int
) -> list[tuple[str, str]]:
    """Return the three headers of a message that is sent at `at_seconds` since 1970.

    The id stays the same over all attempts, the time and so the signature do not: a receiver that
    refuses old messages, as it should, would otherwise refuse every late attempt.
    """
    signed = f"{message_id}.{at_seconds}.".encode() + body
    signatures = [
        "v1," + base64.b64encode(digest(_key(secret), signed, sha256)).decode()
        for secret in signed_with
    ]
    return [
        (ID_HEADER, message_id),
        (TIMESTAMP_HEADER, str(at_seconds)),
        (SIGNATURE_HEADER, " ".join(signatures)),
    ]


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
