"""Segments: stretches of one partition's ledger as immutable files, each chained to the one before.

A segment is a sealed file (see `reconciler.sealed`). Its seal is its name in the chain: the next
header repeats it as `previous`. So a changed byte breaks the file's own seal, and an exchanged file
breaks the chain.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from engine.ledger import Entry, decode_operations
from reconciler.sealed import FileDamaged, Form, seal, unpack_body, unseal

SCHEMA_VERSION: Final = 1


class SegmentDamaged(FileDamaged):
    """A segment that cannot be trusted: `path`, and what is wrong with it."""


FORM: Final = Form(b"HFSEG\x00\x00\x01", SegmentDamaged)


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


class RawEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
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
        """Unpack the body. Raises SegmentDamaged where it is not what the header says."""
        path = segment_path(self.header.partition, self.header.first_sequence)
        try:
            entries = _decode_entries(unpack_body(FORM, path, self.body))
        except msgspec.DecodeError as error:
            raise SegmentDamaged(path, f"its body cannot be read: {error}") from error
        if len(entries) != self.header.entries:
            raise SegmentDamaged(path, f"has {len(entries)} entries, not {self.header.entries}")
        return entries


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
    return seal(FORM, _encode(header), _encode(entries))


def unpack_segment(path: str, data: bytes) -> Segment:
    """Verify a file and return its segment. Raises SegmentDamaged."""
    sealed = unseal(FORM, path, data)
    try:
        header = _decode_header(sealed.header)
    except msgspec.DecodeError as error:
        raise SegmentDamaged(path, f"its header cannot be read: {error}") from error
    if header.schema_version != SCHEMA_VERSION:
        raise SegmentDamaged(path, f"has schema version {header.schema_version}")
    return Segment(header, sealed.seal, sealed.body)
