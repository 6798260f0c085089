"""A drop at several locations with a cap a buyer over all of them, for the tests of claims."""

from typing import Any, Final

from engine.claim_driver import ClaimDriver
from engine.claims import Claims, counted
from engine.keys import claim_partition, digest_of_buyer
from engine.model import BuyerCap, CapScope, Reservation, Terms
from tests.shop import Shop

HOUR_MS: Final = 3_600_000
PLACES: Final = ("leeds", "york", "hull", "ripon", "selby")
CAP: Final = BuyerCap(2, HOUR_MS, CapScope.MERCHANT)


async def stock(
    shop: Shop,
    *skus: str,
    quantity: int = 20,
    cap: BuyerCap = CAP,
    places: tuple[str, ...] = PLACES,
) -> None:
    """Put units of capped SKUs at all places."""
    for place in places:
        for sku in skus:
            await shop.receive(sku, quantity, location=place)
            await shop.set_terms(sku, Terms(buyer_cap=cap), location=place)


async def buy(
    shop: Shop, quantity: int, place: str, *, buyer: str = "ann", **options: Any
) -> Reservation:
    """Hold units of the one SKU of most tests."""
    made = await shop.reserve([("shoe", quantity)], location=place, buyer=buyer, **options)
    return made.reservation


async def claims_of(shop: Shop, buyer: str = "ann") -> Claims:
    """Return what counts for a buyer."""
    who = digest_of_buyer(shop.merchant, buyer)
    return await shop.inventory.claiming.claims(shop.merchant, who)


async def left(shop: Shop, sku: str = "shoe", buyer: str = "ann", cap: int = 2) -> int:
    """Return how many units the buyer may still have."""
    who = digest_of_buyer(shop.merchant, buyer)
    keys = shop.inventory.keys[claim_partition(shop.merchant, who, shop.inventory.partitions)]
    now_ms = int(await shop.client.execute_command("HGET", keys.meta, "clock_ms") or 0)
    return cap - counted(await claims_of(shop, buyer), sku, now_ms)


async def promised(shop: Shop, sku: str = "shoe", places: tuple[str, ...] = PLACES) -> int:
    """Return how many units are promised at all places."""
    rows = await shop.inventory.rows(shop.merchant, [(place, sku) for place in places])
    return sum(row.reserved for row in rows if row is not None)


async def pass_time(shop: Shop, driver: ClaimDriver, ms: int) -> None:
    """Put every partition's clock ahead, take back what is due, and look at what is to be."""
    seconds, _ = await shop.client.execute_command("TIME")
    for keys in shop.inventory.keys:
        mark = await shop.client.execute_command("HGET", keys.meta, "clock_ms")
        now_ms = max(int(mark or 0), int(seconds) * 1000) + ms
        await shop.client.execute_command("HSET", keys.meta, "clock_ms", str(now_ms))
    for keys in shop.inventory.keys:
        await shop.inventory.expire_due(keys.partition)
    await driver.round()
