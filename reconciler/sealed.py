"""The sealed form of everything in the archive that must not change unseen.

A file is a header, a body and a seal:

    magic (8 bytes) | header length (4 bytes, big endian) | header (msgpack)
    | body (zstd of msgpack) | SHA-256 of all before it (32 bytes)

The magic names the kind of file and the version of its form.
"""

from hashlib import sha256
from typing import Final, NamedTuple

import zstandard

MAGIC_BYTES: Final = 8
LENGTH_BYTES: Final = 4
SEAL_BYTES: Final = 32
COMPRESSION_LEVEL: Final = 3

MAX_HEADER_BYTES: Final = 4_096
"""So that a header can be read without the rest of its file."""

MAX_BODY_BYTES: Final = 2 * 2**30
"""Of an unpacked body: a file that claims more is not ours."""


class FileDamaged(Exception):
    """A file of the archive that cannot be trusted: `path`, and what is wrong with it."""

    def __init__(self, path: str, reason: str) -> None:
        """Say which and why."""
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}")


class Form(NamedTuple):
    """A kind of file: its magic, and the exception that says that one of them is damaged."""

    magic: bytes
    damaged: type[FileDamaged]


class Sealed(NamedTuple):
    """A verified file: its header, its body still compressed, and its seal (hexadecimal)."""

    header: bytes
    body: bytes
    seal: str


def seal(form: Form, header: bytes, body: bytes) -> bytes:
    """Make a file of a header and an uncompressed body. Raises ValueError on one too large."""
    if len(header) > MAX_HEADER_BYTES or len(body) > MAX_BODY_BYTES:
        raise ValueError("the header or the body is too large for a file of the archive")
    compressed = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compress(body)
    content = form.magic + len(header).to_bytes(LENGTH_BYTES, "big") + header + compressed
    return content + sha256(content).digest()


def unseal(form: Form, path: str, data: bytes) -> Sealed:
    """Verify a file. Raises the form's exception."""
    header = header_of(form, path, data)
    content, found = data[:-SEAL_BYTES], data[-SEAL_BYTES:]
    if sha256(content).digest() != found:
        raise form.damaged(path, "its SHA-256 does not match: bytes were changed or lost")
    return Sealed(header, content[MAGIC_BYTES + LENGTH_BYTES + len(header) :], found.hex())


def header_of(form: Form, path: str, data: bytes) -> bytes:
    """Return the header from the first bytes of a file, not verified.

    Raises the form's exception.
    """
    start = MAGIC_BYTES + LENGTH_BYTES
    if len(data) < start + SEAL_BYTES or data[:MAGIC_BYTES] != form.magic:
        raise form.damaged(path, "is no file of its kind and version")
    size = int.from_bytes(data[MAGIC_BYTES:start], "big")
    if size > MAX_HEADER_BYTES or start + size > len(data):
        raise form.damaged(path, "is cut off within its header")
    return data[start : start + size]


def unpack_body(form: Form, path: str, body: bytes) -> bytes:
    """Decompress a verified body. Raises the form's exception."""
    try:
        if not 0 <= zstandard.frame_content_size(body) <= MAX_BODY_BYTES:
            raise form.damaged(path, f"its body does not fit into {MAX_BODY_BYTES} bytes")
        return zstandard.ZstdDecompressor().decompress(body)
    except zstandard.ZstdError as error:
        raise form.damaged(path, f"its body cannot be unpacked: {error}") from error
