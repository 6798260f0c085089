"""What a merchant says of its SKUs: written through the ledger, checked as a whole, all or none."""

import asyncio
from typing import Final

import pytest

from engine import definitions
from engine.kits import check_kit
from engine.ledger import OperationKind, read_entries
from engine.model import Line
from engine.outcomes import InvalidCommand, LimitExceeded
from engine.substitutes import Alternative, check_alternatives
from tests.shop import ACTOR, Shop

SIX: Final = check_alternatives("six", [Alternative(sku="twelve", for_=2)])


async def said(shop: Shop) -> list[tuple[str, int, list[list[str]]]]:
    """Return what the ledger tells of the merchant's definitions."""
    inventory = shop.inventory
    entries = await read_entries(inventory.store, inventory.keys_of(shop.merchant, "x"))
    for keys in inventory.keys:
        entries += await read_entries(inventory.store, keys)
    return [
        (one.detail[0], one.detail[1], one.detail[2])
        for entry in {entry.stream_id: entry for entry in entries}.values()
        for one in entry.operations
        if one.kind is OperationKind.DEFINE and one.merchant == shop.merchant
    ]


async def test_rules_are_written_listed_and_taken_away_through_the_ledger(shop: Shop) -> None:
    substitutes, merchant = shop.inventory.substitutes, shop.merchant
    assert await substitutes.known(merchant) == {}
    await substitutes.write(merchant, {"six": SIX}, actor=ACTOR)
    await substitutes.write(merchant, {"six": SIX}, actor=ACTOR)
    (choice,) = (await substitutes.known(merchant))["six"]
    assert (choice.sku, choice.of, choice.for_) == ("twelve", 1, 2)
    assert await substitutes.read(merchant, "six") == SIX
    more = dict.fromkeys(("c", "a", "b"), SIX)
    await substitutes.write(merchant, more, actor=ACTOR)
    page = await substitutes.list(merchant, limit=2)
    assert ([sku for sku, _ in page.items], page.next_after) == (["a", "b"], "b")
    rest = await substitutes.list(merchant, after="b", limit=2)
    assert ([sku for sku, _ in rest.items], rest.next_after) == (["c", "six"], None)
    await substitutes.write(merchant, {"six": None}, actor=ACTOR)
    assert await substitutes.read(merchant, "six") is None
    told = await said(shop)
    assert [(what, revision) for what, revision, _ in told] == [
        ("substitutes", 1),
        ("substitutes", 2),
        ("substitutes", 3),
    ]
    assert told[2][2] == [["six", ""]]
    await shop.audit()


async def test_a_mistake_in_one_definition_refuses_all_of_them(shop: Shop) -> None:
    back = check_alternatives("twelve", [Alternative(sku="six", of=2)])
    with pytest.raises(InvalidCommand, match=r"six -> twelve -> six|twelve -> six -> twelve"):
        await shop.inventory.substitutes.write(
            shop.merchant, {"six": SIX, "twelve": back}, actor=ACTOR
        )
    assert (await shop.inventory.substitutes.read_all(shop.merchant)) == (0, {})


async def test_rules_that_close_a_cycle_together_are_not_both_taken(shop: Shop) -> None:
    """Each of two writers sees a store in which its own rule makes sense."""
    skus = [f"s{i}" for i in range(8)]
    writes = [
        shop.inventory.substitutes.write(
            shop.merchant,
            {sku: check_alternatives(sku, [Alternative(sku=skus[i - 1])])},
            actor=ACTOR,
        )
        for i, sku in enumerate(skus)
    ]
    answers = await asyncio.gather(*writes, return_exceptions=True)
    refused = [answer for answer in answers if answer is not None]
    assert [type(one) for one in refused] == [InvalidCommand]
    _, rules = await shop.inventory.substitutes.read_all(shop.merchant)
    assert len(rules) == len(skus) - 1


async def test_a_process_goes_by_what_another_said_once_its_time_is_up(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(definitions, "monotonic", lambda: now)
    kits = shop.inventory.kits
    assert await kits.known(shop.merchant) == {}
    other = definitions.Definitions(
        definitions.What.KITS,
        type(check_kit("gift", [Line("mug", 1)])),
        shop.inventory.dispatcher,
        shop.inventory.keys,
        check=lambda _, __: None,
        arrange=dict,
    )
    await other.write(shop.merchant, {"gift": check_kit("gift", [Line("mug", 1)])}, actor=ACTOR)
    assert kits.known_now(shop.merchant) == {}
    now += definitions.CACHE_SECONDS
    assert kits.known_now(shop.merchant) is None
    assert set(await kits.known(shop.merchant)) == {"gift"}


async def test_a_merchant_has_so_many_definitions_and_no_more(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(definitions, "MAX_DEFINITIONS", 2)
    kit = check_kit("gift", [Line("mug", 1)])
    await shop.inventory.kits.write(shop.merchant, {"a": kit, "b": kit}, actor=ACTOR)
    with pytest.raises(LimitExceeded):
        await shop.inventory.kits.write(shop.merchant, {"c": kit}, actor=ACTOR)
