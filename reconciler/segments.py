"""Segments: stretches of one partition's ledger as immutable files, each chained to the one before.

A file is a header, a body and a seal:

    magic (8 bytes) | header length (4 bytes, big endian) | header (msgpack)
    | body (zstd of msgpack) | SHA-256 of all before it (32 bytes)

The seal is the segment's name in the chain: the next header repeats it as `previous`. So a changed
byte breaks the file's own seal, and an exchanged file breaks the chain.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

import msgspec
import zstandard

from engine.ledger import Entry, decode_operations

MAGIC: Final = b"HFSEG\x00\x00\x01"
SCHEMA_VERSION: Final = 1
SEAL_BYTES: Final = 32
COMPRESSION_LEVEL: Final = 3
MAX_SEGMENT_BYTES: Final = 256 * 2**20
"""Of an unpacked body: a file that claims more is not ours."""


class SegmentDamaged(Exception):
    """A segment that cannot be trusted: `path`, and what is wrong with it."""

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}")


class SegmentHeader(msgspec.Struct, frozen=True):
    """What a segment says of itself. Sequences count operations, `entries` stream entries."""

    schema_version: int
    partition: int
    first_sequence: int
    last_sequence: int
    first_stream_id: str
    last_stream_id: str
    first_at_ms: int
    last_at_ms: int
    entries: int
    previous: str


class RawEntry(msgspec.Struct, frozen=True, array_like=True):
    """A stream entry with its operations still packed."""

    stream_id: str
    sequence: int
    at_ms: int
    operations: bytes
    operation_count: int

    def decode(self) -> Entry:
        """Unpack the operations."""
        return Entry(self.stream_id, self.sequence, self.at_ms, decode_operations(self.operations))


class Segment(msgspec.Struct, frozen=True):
    """A verified segment; `seal` is its name in the chain (hexadecimal)."""

    header: SegmentHeader
    seal: str
    body: bytes

    def entries(self) -> list[RawEntry]:
        """Unpack the body."""
        packed = zstandard.ZstdDecompressor().decompress(
            self.body, max_output_size=MAX_SEGMENT_BYTES
        )
        return _decode_entries(packed)


_encode = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(SegmentHeader).decode
_decode_entries = msgspec.msgpack.Decoder(list[RawEntry]).decode


def segment_path(partition: int, first_sequence: int) -> str:
    """Return where the segment that starts at a sequence stands; zeros keep listings in order."""
    return f"ledger/{partition:04d}/{first_sequence:020d}.segment"


def pack_segment(partition: int, entries: Sequence[RawEntry], *, previous: str) -> bytes:
    """Make the file of consecutive entries; `previous` is the seal of the segment before, or ''."""
    first, last = entries[0], entries[-1]
    header = SegmentHeader(
        schema_version=SCHEMA_VERSION,
        partition=partition,
        first_sequence=first.sequence,
        last_sequence=last.sequence + last.operation_count - 1,
        first_stream_id=first.stream_id,
        last_stream_id=last.stream_id,
        first_at_ms=first.at_ms,
        last_at_ms=last.at_ms,
        entries=len(entries),
        previous=previous,
    )
    packed_header = _encode(header)
    body = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compress(_encode(entries))
    content = MAGIC + len(packed_header).to_bytes(4, "big") + packed_header + body
    return content + sha256(content).digest()


def unpack_segment(path: str, data: bytes) -> Segment:
    """Verify a file and return its segment. Raises SegmentDamaged."""
    if len(data) < len(MAGIC) + 4 + SEAL_BYTES or not data.startswith(MAGIC):
        raise SegmentDamaged(path, "is no segment of this schema")
    content, seal = data[:-SEAL_BYTES], data[-SEAL_BYTES:]
    if sha256(content).digest() != seal:
        raise SegmentDamaged(path, "its SHA-256 does not match: bytes were changed or lost")
    start = len(MAGIC) + 4
    size = int.from_bytes(content[len(MAGIC) : start], "big")
    header = _decode_header(content[start : start + size])
    if header.schema_version != SCHEMA_VERSION:
        raise SegmentDamaged(path, f"has schema version {header.schema_version}")
    return Segment(header, seal.hex(), content[start + size :])
