"""Segments: what is written is what is read, and nothing else passes for it."""

from pathlib import Path

import msgspec
import pytest

from reconciler import sealed
from reconciler.archive import Archive, Origin, check_succession, list_origins
from reconciler.objects import ArchiveUnavailable, Objects
from reconciler.reader import LedgerDamaged, LedgerReader
from reconciler.sealed import Form, seal
from reconciler.segments import (
    FORM,
    SegmentDamaged,
    SegmentHeader,
    pack_segment,
    segment_path,
    unpack_segment,
)
from tests.ledgers import Book

PATH = "store/ledger/0000/00000000000000000001.segment"


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(Objects.open(str(tmp_path)), "store")


def book_of(operations: int) -> Book:
    book = Book()
    for number in range(operations):
        book.at_ms += 3
        book.receive(f"sku-{number % 3}")
    return book


def test_what_is_packed_is_unpacked() -> None:
    book = book_of(7)
    with book.grouped():
        book.receive()
        book.receive()
    segment = unpack_segment(PATH, book.segment(book.entries, previous="a seal"))
    assert segment.entries() == book.entries
    assert segment.header == SegmentHeader(
        schema_version=1,
        partition=0,
        first_sequence=1,
        last_sequence=9,
        first_stream_id=book.entries[0].stream_id,
        last_stream_id=book.entries[-1].stream_id,
        first_at_ms=book.entries[0].at_ms,
        last_at_ms=book.entries[-1].at_ms,
        entries=8,
        previous="a seal",
    )


def test_the_same_entries_make_the_same_file() -> None:
    book = book_of(7)
    assert book.segment(book.entries) == book.segment(book.entries)
    assert book.segment(book.entries) != book.segment(book.entries, previous="other")


def test_every_flipped_byte_is_found() -> None:
    data = book_of(3).segment(book_of(3).entries)
    for place in range(len(data)):
        spoiled = data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]
        with pytest.raises(SegmentDamaged) as damage:
            unpack_segment(PATH, spoiled)
        assert damage.value.path == PATH


def test_every_cut_is_found() -> None:
    data = book_of(3).segment(book_of(3).entries)
    for size in range(len(data)):
        with pytest.raises(SegmentDamaged):
            unpack_segment(PATH, data[:size])


def test_a_file_of_another_kind_is_none() -> None:
    other = seal(Form(b"HFSNP\x00\x00\x01", SegmentDamaged), b"", b"")
    with pytest.raises(SegmentDamaged, match="no file of its kind"):
        unpack_segment(PATH, other)


@pytest.mark.parametrize(
    ("header", "body", "reason"),
    [
        ({"schema_version": 2}, None, "schema version 2"),
        ({"entries": 4}, None, "has 3 entries, not 4"),
        (None, None, "header cannot be read"),
        ({}, b"\xc1", "body cannot be read"),
    ],
)
def test_a_sealed_file_that_contradicts_itself_is_damaged(
    header: dict[str, int] | None, body: bytes | None, reason: str
) -> None:
    book = book_of(3)
    good = unpack_segment(PATH, book.segment(book.entries)).header
    packed = b"\x01"
    if header is not None:
        packed = msgspec.msgpack.encode(msgspec.structs.replace(good, **header))
    data = seal(FORM, packed, msgspec.msgpack.encode(book.entries) if body is None else body)
    with pytest.raises(SegmentDamaged, match=reason):
        unpack_segment(PATH, data).entries()


def test_a_body_past_the_bound_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    book = book_of(30)
    segment = unpack_segment(PATH, book.segment(book.entries))
    monkeypatch.setattr(sealed, "MAX_BODY_BYTES", 100)
    with pytest.raises(SegmentDamaged, match="does not fit into 100 bytes"):
        segment.entries()
    with pytest.raises(ValueError, match="too large"):
        book.segment(book.entries)


def test_names_stand_in_the_order_of_their_sequences() -> None:
    paths = [segment_path(3, sequence) for sequence in (1, 9, 10, 2**53)]
    assert paths == sorted(paths)


def test_a_segment_must_follow_the_one_before() -> None:
    book = book_of(9)
    first = unpack_segment("1", book.segment(book.entries[:3]))
    second = unpack_segment("4", book.segment(book.entries[3:6], previous=first.seal))
    third = unpack_segment("7", book.segment(book.entries[6:], previous=second.seal))
    check_succession("4", second, 0, first)
    with pytest.raises(SegmentDamaged, match="not chained"):
        check_succession("7", third, 0, first)
    with pytest.raises(SegmentDamaged, match="belongs to partition 0"):
        check_succession("1", first, 1, None)
    skipping = unpack_segment("7", book.segment(book.entries[6:], previous=first.seal))
    with pytest.raises(SegmentDamaged, match="starts at sequence 7, but the one before ends at 3"):
        check_succession("7", skipping, 0, first)


async def test_an_archive_gives_a_partitions_segments_in_order(archive: Archive) -> None:
    book, other = book_of(12), Book(1)
    other.receive()
    paths = await book.archive(archive, segment_entries=5)
    await other.archive(archive)
    assert [path async for path, _ in archive.segments(0)] == paths
    assert await archive.segment_paths(0, from_sequence=6) == paths[1:]
    assert await archive.segment_paths(0, from_sequence=10) == paths[1:]
    assert await archive.segment_paths(0, from_sequence=99) == paths[2:]
    assert await archive.segment_paths(2) == []
    last = await archive.last_segment(0)
    assert last is not None
    assert last[1].header.last_sequence == 12
    assert await archive.last_segment(2) is None


async def test_an_archive_is_found_by_its_origin(archive: Archive) -> None:
    later = Archive(archive.objects, "later")
    await later.write_origin(Origin("later", 4, 20, source="store", rebuild="r"))
    await archive.write_origin(Origin("store", 4, 10))
    await archive.write_origin(Origin("store", 9, 99))
    await book_of(3).archive(Archive(archive.objects, "without"))
    assert [origin.store_id for origin in await list_origins(archive.objects)] == ["store", "later"]
    assert await archive.read_origin() == Origin("store", 4, 10)


async def test_a_file_is_written_once(archive: Archive) -> None:
    assert await archive.objects.put_new("a/b", b"one")
    assert not await archive.objects.put_new("a/b", b"two")
    assert await archive.objects.get("a/b") == b"one"
    assert await archive.objects.head("a/b", 2) == b"on"
    assert await archive.objects.head("a/b", 99) == b"one"
    await archive.objects.delete("a/b")
    await archive.objects.delete("a/b")
    assert await archive.objects.get("a/b") is None
    assert await archive.objects.head("a/b", 2) is None


def test_an_archive_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ArchiveUnavailable, match="cannot open"):
        Objects.open(str(tmp_path / "file"))
    with pytest.raises(ArchiveUnavailable, match="cannot open"):
        Objects.open("nothing://of/the/kind")


# Reading on, from any sequence


async def read(archive: Archive, **bounds: int | bool) -> list[int]:
    reader = LedgerReader(None, None, archive)
    return [entry.sequence async for entry in reader.entries(0, **bounds)]  # type: ignore[arg-type]


@pytest.mark.parametrize("after", [0, 1, 4, 5, 6, 11, 12, 40])
async def test_reading_starts_behind_any_sequence(archive: Archive, after: int) -> None:
    await book_of(12).archive(archive, segment_entries=5)
    assert await read(archive, after_sequence=after) == list(range(after + 1, 13))


async def test_reading_ends_at_a_sequence(archive: Archive) -> None:
    await book_of(12).archive(archive, segment_entries=5)
    assert await read(archive, after_sequence=3, until_sequence=7) == [4, 5, 6, 7]
    assert await read(archive, until_sequence=0) == []


async def test_an_entry_that_a_bound_cuts_is_given_whole(archive: Archive) -> None:
    book = Book()
    for _ in range(3):
        with book.grouped():
            book.receive()
            book.receive()
    await book.archive(archive, segment_entries=1)
    assert await read(archive, after_sequence=3, until_sequence=4) == [3]
    assert await read(archive, after_sequence=1, until_sequence=3) == [1, 3]


@pytest.mark.parametrize("damage", ["missing", "spoiled", "foreign"])
async def test_damage_ends_the_reading_or_is_passed_over(archive: Archive, damage: str) -> None:
    book = book_of(15)
    paths = await book.archive(archive, segment_entries=5)
    await archive.objects.delete(paths[1])
    if damage == "spoiled":
        await archive.objects.put_new(paths[1], b"HFSEG\x00\x00\x01 and then nothing")
    elif damage == "foreign":
        data = pack_segment(0, book.entries[5:10], previous="of another chain")
        await archive.objects.put_new(paths[1], data)
    with pytest.raises(LedgerDamaged) as found:
        await read(archive)
    assert (found.value.partition, found.value.sequence) == (0, 6)
    assert found.value.path == (paths[2] if damage == "missing" else paths[1])
    assert await read(archive, over_gaps=True) == [*range(1, 6), *range(11, 16)]
    assert await read(archive, after_sequence=10) == list(range(11, 16))


async def test_a_missing_beginning_is_damage(archive: Archive) -> None:
    paths = await book_of(15).archive(archive, segment_entries=5)
    await archive.objects.delete(paths[0])
    with pytest.raises(LedgerDamaged, match="goes on at 6 only"):
        await read(archive)


def test_a_reader_of_a_store_needs_its_keys() -> None:
    with pytest.raises(ValueError, match="come together"):
        LedgerReader(None, [], None)
