"""Ids of whatever characters: what is kept under one is never seen under another."""

from typing import Final
from uuid import uuid4

from hypothesis import assume, example, given
from hypothesis import strategies as st

from engine.model import MovementType
from tests.property.bench import Bench
from tests.shop import Shop

MAX_ID_BYTES: Final = 200

HOSTILE: Final = (
    ":{}%/\\\0\r\n\t *?[]^-~_.'\"",
    "0123456789abcABC",
    "ée\u0301äß\u0130\u0131",
    "\u202e\u200f\u05d0\u0627\ufeff",
    "😀\U0010ffff",
)
"""What keys, patterns, protocols and eyes trip over: separators, escapes, direction, width."""

ids = st.text(st.sampled_from("".join(HOSTILE)), min_size=1, max_size=12) | st.sampled_from(
    ("%3A", "%", "a%2Fb", "{hf.0}", "*", "stock", "x" * MAX_ID_BYTES, "א" * (MAX_ID_BYTES // 2))
)
triples = st.tuples(ids, ids, ids)


def full(token: str, merchant: str) -> str:
    """Return a merchant id that no other example has, as long as it may be."""
    return token + merchant.encode()[: MAX_ID_BYTES - len(token)].decode(errors="ignore")


@given(one=triples, other=triples)
@example(one=("m", "a:b", "c"), other=("m", "a", "b:c"))
@example(one=("m", "a", ":"), other=("m", "a", "%3A"))
@example(one=("m:a", "b", "c"), other=("m", "a:b", "c"))
@example(one=("m", "é", "c"), other=("m", "e\u0301", "c"))
@example(one=("m", "a", "x"), other=("m", "a", "X"))
@example(one=("m", "a", "x\0"), other=("m", "a", "x"))
def test_two_different_ids_never_share_anything(
    bench: Bench, one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    token = uuid4().hex[:8]
    one, other = ((full(token, m), location, sku) for m, location, sku in (one, other))
    assume(one != other)
    # An idempotency key counts for a merchant's location, so it may come twice at two of them.
    keys = {3: "same", 5: "same" if one[:2] != other[:2] else "not the same"}
    for quantity, (merchant, location, sku) in ((3, one), (5, other)):
        shop, key = Shop(bench.inventory, bench.client, merchant), keys[quantity]
        bench.run(shop.move(MovementType.RECEIVE, sku, quantity, key=key, location=location))
        bench.run(shop.reserve([(sku, quantity - 1)], key=key, location=location))
    for quantity, (merchant, location, sku) in ((3, one), (5, other)):
        inventory = bench.inventory
        row = bench.run(inventory.row(merchant, location, sku))
        assert (row.merchant, row.location, row.sku) == (merchant, location, sku)
        assert (row.on_hand, row.reserved, row.version) == (quantity, quantity - 1, 2)
        (open_one,) = [
            found
            for found in bench.run(inventory.open_reservations(merchant, location)).items
            if found.lines[0].sku == sku
        ]
        assert open_one.lines[0].quantity == quantity - 1
        listed = bench.run(inventory.list_rows(merchant, location)).items
        assert row in listed
        assert all(found.location == location for found in listed)
        assert location in bench.run(inventory.list_locations(merchant)).items
        bench.run(inventory.release(merchant, open_one.id, actor="test"))


def test_the_audit_agrees_after_all_those_ids(bench: Bench) -> None:
    bench.run(bench.audit.check())
