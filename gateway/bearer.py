"""The Authorization header of the scheme Bearer (RFC 6750)."""


def bearer(authorization: bytes | None) -> str | None:
    """Return the token of the header's value; None where it is of another scheme, or not there."""
    if authorization is None or authorization[:7].lower() != b"bearer ":
        return None
    return authorization[7:].strip().decode("latin-1")
