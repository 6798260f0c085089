"""A kit over the wire: what its page hears, from any gateway, in either way to listen."""

from collections.abc import Callable
from typing import Any

import httpx

from tests.gateways import Shelf
from tests.integration.test_http_kits import say_kit
from tests.integration.test_http_socket import talking
from tests.integration.test_http_stream import gateway_of, key
from tests.stores import RealStore
from tests.streams import EventReader, is_ready, listening


async def read(client: httpx.AsyncClient, shelf: Shelf) -> dict[str, Any]:
    answer = await client.get(f"{shelf.path}/stock/gift", params={"consistency": "strong"})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def has(available: int) -> Callable[[EventReader], bool]:
    return lambda reader: units(reader)[-1:] == [available]


def units(reader: EventReader) -> list[int]:
    return [e.data["data"]["available"] for e in reader.named("stock.changed")]


async def test_a_kits_page_hears_that_it_sells_out_and_comes_back_on_every_gateway(
    store: RealStore, merchant: str
) -> None:
    secret = await key(store.settings, merchant)
    async with (
        gateway_of(store.settings) as first,
        gateway_of(store.settings) as second,
        first.client(secret) as client,
        second.client(secret) as other,
    ):
        shelf, elsewhere = Shelf(client, merchant), Shelf(other, merchant)
        await shelf.move("receive", "mug", 4)
        await shelf.move("receive", "tea", 9)
        await say_kit(shelf, "gift", mug=2, tea=1)
        async with (
            listening(client, merchant, sku="gift", location="berlin") as page,
            talking(second, secret, merchant) as talk,
        ):
            await page.until(is_ready)
            assert (page.snapshot["gift"]["available"], page.snapshot["gift"]["kit"]) == (2, True)
            await talk.say(type="subscribe", id="kit", skus=["gift"], types=["stock.out"])
            await talk.until(lambda t: t.of("ready") != [])
            assert (await elsewhere.move("sale", "mug", 3)).status_code == 201
            await page.until(lambda r: r.named("stock.out") != [])
            assert has(0)(page)
            await talk.until(lambda t: t.of("event") != [])
            (out,) = page.named("stock.out")
            (heard,) = talk.of("event")
            # Whichever gateway tells of it tells the same.
            assert heard["event"] == out.data
            assert (out.data["subject"], out.data["data"]["kit"]) == ("gift", True)
            said = await read(other, shelf)
            assert (said["available"], said["version"]) == (0, out.data["data"]["version"])
            assert (await elsewhere.move("receive", "mug", 3)).status_code == 201
            await page.until(lambda r: r.named("stock.back") != [])
            last_id = page.last_id
        await shelf.move("receive", "mug", 2)
        await shelf.move("sale", "mug", 6)
        async with (
            listening(other, merchant, last_id=last_id, sku="gift", location="berlin") as back,
            talking(second, secret, merchant) as talk,
        ):
            await back.until(has(0))
            assert back.events[0].name == "resumed"
            assert units(back) == [3, 0]
            await talk.say(type="subscribe", id="anew", skus=["gift"])
            await talk.until(lambda t: t.of("ready", "anew") != [])
            await say_kit(elsewhere, "gift", tea=3)
            await talk.until(lambda t: len(t.of("ready", "anew")) == 2)
            assert [m["reason"] for m in talk.of("reset", "anew")] == ["opened", "kit_changed"]
            assert len(talk.of("subscribed", "anew")) == 1
            await back.until(lambda r: r.named("ready") != [])
            (reset,) = back.named("reset")
            assert reset.data["reason"] == "kit_changed"
            assert back.snapshot["gift"]["available"] == 3
            gone = await client.delete(f"{shelf.merchant_path}/kits/gift")
            assert gone.status_code == 204
            await back.until(lambda r: len(r.named("ready")) == 2)
            # No kit any more, and no row either.
            assert back.snapshot["gift"]["version"] == 0
            assert "kit" not in back.snapshot["gift"]


async def test_who_names_no_kit_hears_of_rows_only(store: RealStore, merchant: str) -> None:
    secret = await key(store.settings, merchant)
    async with gateway_of(store.settings) as gateway, gateway.client(secret) as client:
        shelf = Shelf(client, merchant)
        await say_kit(shelf, "gift", mug=1)
        await shelf.move("receive", "mug", 4)
        async with (
            listening(client, merchant, location="berlin") as dashboard,
            listening(client, merchant, sku="gift") as page,
        ):
            await dashboard.until(is_ready)
            await page.until(is_ready)
            await shelf.move("sale", "mug", 4)
            await page.until(has(0))
            await dashboard.until(lambda r: r.named("stock.out") != [])
        assert set(dashboard.snapshot) == {"mug"}
        assert {e.data["subject"] for e in dashboard.events if "subject" in e.data} == {"mug"}
