from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.keys import (
    PartitionKeys,
    digest,
    encode,
    location_member,
    moved_reservation_id,
    partition_of,
    partition_of_reservation,
    reservation_hash,
    reservation_id,
)

clean_ids = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


def test_keys_carry_their_partition_as_the_hash_tag() -> None:
    keys = PartitionKeys(7)
    assert keys.stock("acme", "berlin", "milk-1l") == "{hf.7}:stock:acme:berlin:milk-1l"
    assert keys.reservation("rsv_7_00") == "{hf.7}:rsv:rsv_7_00"
    assert keys.ledger == "{hf.7}:ledger"


def test_a_partition_is_the_crc32_of_merchant_nul_location() -> None:
    assert partition_of("acme", "berlin", 16) == crc32(b"acme\0berlin") % 16


@given(clean_ids, clean_ids, clean_ids)
def test_no_id_reaches_a_key_unescaped(merchant: str, location: str, sku: str) -> None:
    key = PartitionKeys(0).stock(merchant, location, sku)
    assert key.startswith("{hf.0}:stock:")
    rest = key.removeprefix("{hf.0}:stock:")
    assert rest.count(":") == 2
    assert not set(rest) & set("{} \r\n\0")
    assert rest.isascii()


@given(clean_ids, clean_ids)
def test_different_ids_have_different_codes(one: str, other: str) -> None:
    assert (encode(one) == encode(other)) is (one == other)


@given(st.lists(clean_ids, min_size=1, max_size=4), st.lists(clean_ids, min_size=1, max_size=4))
def test_a_digest_depends_on_where_the_parts_end(one: list[str], other: list[str]) -> None:
    assert (digest(*one) == digest(*other)) is (one == other)


def test_a_reservation_id_carries_its_partition() -> None:
    the_id = reservation_id(11, "acme", "berlin", "order-1")
    assert partition_of_reservation(the_id, 16) == 11
    assert partition_of_reservation(the_id, 11) is None
    assert the_id == reservation_id(11, "acme", "berlin", "order-1")
    assert the_id != reservation_id(11, "acme", "berlin", "order-2")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rsv_",
        "rsv_1_short",
        "rsv_01_" + "a" * 24,
        "rsv_1_" + "A" * 24,
        "rsv_1_" + "a" * 24 + "\n",
        "rsv_-1_" + "a" * 24,
        "rsv_1_" + "a" * 23 + "}",
        "{hf.0}:stock:acme",
    ],
)
def test_what_is_no_reservation_id_has_no_partition(text: str) -> None:
    assert partition_of_reservation(text, 16) is None


def test_a_location_member_keeps_its_parts_apart() -> None:
    assert location_member("a:b", "c") != location_member("a", "b:c")


def test_a_moved_reservation_keeps_its_hash_and_carries_its_new_partition() -> None:
    the_id = reservation_id(11, "acme", "berlin", "order-1")
    moved = moved_reservation_id(the_id, 3)
    assert partition_of_reservation(moved, 16) == 3
    assert reservation_hash(moved) == reservation_hash(the_id)
    # A retry in the new place derives just this id, so it finds its first answer.
    assert moved == reservation_id(3, "acme", "berlin", "order-1")
