"""The console in a real browser, on a real service, beside other clients of the API."""

import asyncio
from datetime import UTC, datetime
from itertools import pairwise
from urllib.parse import quote, urlsplit

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, Route, expect

from engine.access import Role
from engine.inventory import Inventory
from holdfast.cli.connection import store_settings
from tests.browser.conftest import SignIn, Site
from tests.browser.line import Line
from tests.stores import eventually

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

WAIT_MS = 20_000
HOSTILE = '<script>document.title="owned"</script><img src=x onerror=alert(1)>'

COUNT_PAINTS = """() => {
  window.paints = [];
  new MutationObserver(() => {
    const now = performance.now();
    const last = window.paints[window.paints.length - 1];
    if (last === undefined || now - last > 1) window.paints.push(now);
  }).observe(document.querySelector('.grid-spacer'),
    {subtree: true, childList: true, characterData: true, attributes: true});
}"""


async def accessible(page: Page) -> None:
    """Check the page with axe-core."""
    # A row that flashes is between two colours for a moment.
    await page.emulate_media(reduced_motion="reduce")
    found = await Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


async def fits(page: Page) -> None:
    """Check that nothing is wider than the window."""
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_a_wrong_key_is_refused_and_a_session_ends(
    browser: Browser, site: Site, sign_in: SignIn
) -> None:
    page = await browser.new_page()
    await page.goto(f"{site.url}/console")
    await page.get_by_label("API key").fill("hfk_wrong")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert")).to_contain_text("no valid key", timeout=WAIT_MS)
    await accessible(page)

    signed_in = await sign_in()
    stored = await signed_in.evaluate("JSON.stringify({...localStorage, ...sessionStorage})")
    assert "hf" not in stored.replace("holdfast", ""), stored
    assert await signed_in.evaluate("document.cookie") == ""
    (cookie,) = await signed_in.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    await signed_in.reload()
    await signed_in.get_by_role("button", name="Sign out").click()
    await expect(signed_in.get_by_label("API key")).to_be_visible()
    assert await signed_in.context.cookies() == []


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (360, True)])
async def test_stock_is_live_searched_sorted_and_filtered(
    site: Site, sign_in: SignIn, width: int, dark: bool
) -> None:
    receipt = {"location": "berlin", "type": "receive"}
    movements = [
        {**receipt, "id": str(number), "sku": f"tea-{number:02d}", "quantity": 10 + number}
        for number in range(60)
    ]
    await site.send("POST", "/movements/batch", {"movements": movements})
    await site.send("PUT", "/items/tea-07", {"title": "Assam, loose leaf"})
    page = await sign_in(width=width, dark=dark)
    await page.goto(site.address("stock", "berlin"))
    grid = page.get_by_role("table", name="Stock of berlin")
    await expect(page.get_by_text("60 items")).to_be_visible(timeout=WAIT_MS)
    await expect(grid).to_have_attribute("aria-rowcount", "61")
    # Only what is in sight is in the document.
    assert await grid.locator(".grid-row").count() < 45
    await fits(page)
    await accessible(page)

    row = grid.locator(".grid-row", has_text="tea-03")
    await expect(row.locator(".available")).to_have_text("13")
    await site.move("berlin", "sale", "tea-03", 4)
    await expect(row.locator(".available")).to_have_text("9", timeout=WAIT_MS)

    await page.get_by_role("button", name="Available").click()
    await expect(grid.locator("[aria-rowindex='2'] .available")).to_have_text("69")
    await page.get_by_label("Show").select_option("out")
    await expect(page.get_by_text("Nothing fits")).to_be_visible()
    await page.get_by_label("Show").select_option("all")

    async def is_indexed() -> bool:
        found = await site.send("GET", "/search?q=assam&location=berlin")
        return len(found.json()["data"]) == 1

    await eventually(is_indexed, within_seconds=20)
    await page.keyboard.press("/")
    await page.keyboard.type("assam")
    await expect(page.get_by_text("1 of 60 items")).to_be_visible(timeout=WAIT_MS)
    await page.keyboard.press("Tab")
    await grid.locator(".grid-row a").first.focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Assam, loose leaf")).to_be_visible()


async def test_a_burst_is_painted_at_most_ten_times_a_second(site: Site, sign_in: SignIn) -> None:
    await site.move("berlin", "receive", "tea", 1000)
    page = await sign_in()
    await page.goto(site.address("stock", "berlin"))
    available = page.locator(".grid-row .available")
    await expect(available).to_have_text("1,000", timeout=WAIT_MS)
    await page.evaluate(COUNT_PAINTS)
    sale = {"location": "berlin", "type": "sale", "sku": "tea", "quantity": 1}
    for batch in range(4):
        movements = [{**sale, "id": f"{batch}-{number}"} for number in range(100)]
        await site.send("POST", "/movements/batch", {"movements": movements})
    await expect(available).to_have_text("600", timeout=WAIT_MS)
    paints = await page.evaluate("window.paints")
    gaps = [later - earlier for earlier, later in pairwise(paints)]
    # A frame may come early by the length of one.
    assert all(gap > 80 for gap in gaps if gap > 20), gaps
    assert len(paints) < 400


async def test_a_row_tells_how_it_came_to_be(site: Site, sign_in: SignIn) -> None:
    await site.move("berlin", "receive", "tea", 12, reference="PO-7")
    held = await site.reserve("berlin", "tea", 5, order_ref="order-9")
    page = await sign_in()
    await page.goto(site.address("stock", "berlin", "tea", query="?range=15m"))
    await expect(page.locator("[data-tile=available]")).to_contain_text("7", timeout=WAIT_MS)
    await expect(page.get_by_role("img", name="Reserved 5, Available 7")).to_be_visible()
    await expect(page.get_by_role("button", name="15m")).to_have_attribute("aria-pressed", "true")
    assert "V" in (await page.locator(".line-on_hand").get_attribute("d") or "")
    await page.get_by_text("Received").click()
    await expect(page.get_by_text("PO-7")).to_be_visible()
    await expect(page.get_by_role("link", name="order-9")).to_be_visible()
    await page.get_by_role("button", name="6h").click()
    assert page.url.endswith("?range=6h")
    await accessible(page)

    # A till sells what was promised: the reservation is in danger.
    await site.move("berlin", "sale", "tea", 9)
    await expect(page.get_by_role("heading", name="Endangered reservations")).to_be_visible(
        timeout=WAIT_MS
    )
    await expect(page.get_by_text("Short of 2")).to_be_visible()
    await site.send("POST", f"/reservations/{held}/release", {})
    await expect(page.get_by_text("Nobody holds units")).to_be_visible(timeout=WAIT_MS)


async def test_a_kits_page_is_live_and_names_its_components(site: Site, sign_in: SignIn) -> None:
    await site.move("berlin", "receive", "mug", 4)
    await site.move("berlin", "receive", "tea", 9)
    parts = [{"sku": "mug", "quantity": 2}, {"sku": "tea", "quantity": 1}]
    await site.send("PUT", "/kits/gift", {"components": parts})
    page = await sign_in()
    await page.goto(site.address("stock", "berlin", "gift"))
    available = page.locator("[data-tile=available]")
    await expect(available).to_contain_text("2", timeout=WAIT_MS)
    made_of = page.get_by_role("region", name="Made of").get_by_role("row")
    await expect(made_of).to_contain_text(["SKU", "mug2", "tea1"])
    await expect(page.get_by_role("button", name="Receive")).to_have_count(0)
    await accessible(page)
    await site.move("berlin", "sale", "mug", 3)
    await expect(available).to_contain_text("Sold out", timeout=WAIT_MS)
    # Another kit from here on, with fewer changes behind it.
    await site.send("PUT", "/kits/gift", {"components": parts[1:]})
    await expect(available).to_contain_text("9", timeout=WAIT_MS)
    await expect(made_of).to_contain_text(["SKU", "tea1"])
    await site.move("berlin", "receive", "tea", 1)
    await expect(available).to_contain_text("10", timeout=WAIT_MS)


async def test_what_staff_do_is_in_the_ledger_with_its_actor(site: Site, sign_in: SignIn) -> None:
    await site.move("berlin", "receive", "tea", 10)
    page = await sign_in()
    await page.goto(site.address("stock", "berlin", "tea"))
    on_hand = page.locator("[data-tile=on_hand] dd")
    await expect(on_hand).to_have_text("10", timeout=WAIT_MS)

    await page.get_by_role("button", name="Receive").click()
    await page.get_by_label("Units").fill("5")
    await accessible(page)
    await page.get_by_role("dialog").get_by_role("button", name="Receive").click()
    await expect(on_hand).to_have_text("15", timeout=WAIT_MS)

    # The browser tells of every refusal.
    site.expected.append("status of 409")
    await page.get_by_role("button", name="Adjust").click()
    await page.get_by_label("Change in units").fill("-20")
    await page.get_by_label("Reason").fill("dropped")
    await page.get_by_role("dialog").get_by_role("button", name="Adjust").click()
    await expect(page.get_by_role("alert")).to_contain_text("on hand 15")
    await page.get_by_label("Change in units").fill("-3")
    await page.get_by_role("dialog").get_by_role("button", name="Adjust").click()
    await expect(on_hand).to_have_text("12", timeout=WAIT_MS)

    await page.get_by_role("button", name="Count").click()
    await page.get_by_label("Units counted").fill("11")
    await page.get_by_role("button", name="Book the count").click()
    await expect(page.get_by_text("1 unit fewer than the books said")).to_be_visible()

    await page.get_by_role("button", name="Safety stock").click()
    await page.get_by_role("spinbutton", name="Safety stock").fill("4")
    await page.get_by_role("button", name="Save").click()
    await expect(page.locator("[data-tile=safety_stock] dd")).to_have_text("4", timeout=WAIT_MS)

    ledger = (await site.send("GET", "/ledger?sku=tea&order=oldest")).json()["data"]
    done = [(entry["kind"], entry["details"].get("type")) for entry in ledger[1:]]
    assert done == [
        ("move", "receive"), ("move", "adjust"), ("move", "count"), ("configure", None),
    ]  # fmt: skip
    admin = site.secrets[Role.ADMIN][4:12]
    assert {entry["actor"] for entry in ledger} == {f"key:{admin}"}
    assert ledger[2]["details"]["reason"] == "dropped"


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (360, True)])
async def test_terms_are_seen_and_changed_unless_somebody_else_did(
    site: Site, sign_in: SignIn, width: int, dark: bool
) -> None:
    await site.move("berlin", "receive", "tea", 6)
    row = "/locations/berlin/stock/tea"
    page = await sign_in(width=width, dark=dark)
    await page.goto(site.address("stock", "berlin", "tea"))
    await page.get_by_role("button", name="Terms").click()
    await page.get_by_label("Backorder limit").fill("5")
    await page.get_by_label("Cap a buyer").fill("9")
    await page.get_by_label("Within").fill("36")
    await page.get_by_label("Unit of time").select_option("hours")
    await page.get_by_role("button", name="Add a channel").click()
    await page.get_by_label("Channel").fill(HOSTILE)
    await fits(page)
    await accessible(page)
    save = page.get_by_role("button", name="Save")
    await save.click()
    await expect(page.get_by_role("alert")).to_contain_text("neither a cap nor a minimum")
    await page.get_by_label("Cap", exact=True).fill("8")
    # A sale meanwhile is none of this.
    await site.move("berlin", "sale", "tea", 1)
    await save.click()
    await expect(page.get_by_role("heading", name="Terms", exact=True)).to_be_visible(
        timeout=WAIT_MS
    )
    terms = (await site.send("GET", f"{row}/terms")).json()
    assert terms == {
        "backorder_limit": 5,
        "buyer_cap": {"units": 9, "window_seconds": 129_600},
        "channels": {HOSTILE: {"cap": 8, "minimum": 0, "held": 0}},
    }
    held = await site.reserve("berlin", "tea", 7, channel=HOSTILE, buyer="ann")
    section = page.get_by_label("Terms", exact=True)
    await expect(section.locator("[data-tile=backordered]")).to_contain_text(
        "2 of 5", timeout=WAIT_MS
    )
    await expect(section.locator("[data-tile=buyer_cap]")).to_contain_text("within 36 hours")
    await expect(section.get_by_role("row").last).to_contain_text("78none")
    assert await page.locator("main script, main img").count() == 0
    await expect(page.get_by_text("On backorder")).to_be_visible()
    await expect(page.get_by_text("Still to come").first).to_be_visible()
    await fits(page)
    await accessible(page)

    # Somebody else changes the terms while this one is at it.
    await page.get_by_role("button", name="Terms").click()
    await page.get_by_label("Backorder limit").fill("50")
    await _set_terms(site, row, {"backorder_limit": 6})
    await save.click()
    await expect(page.get_by_role("alert")).to_contain_text("Somebody else changed the terms")
    assert (await site.send("GET", f"{row}/terms")).json()["backorder_limit"] == 6
    await page.get_by_role("button", name="Cancel").click()
    await expect(section.locator("[data-tile=backordered]")).to_contain_text(
        "2 of 6", timeout=WAIT_MS
    )
    await page.get_by_role("button", name="Terms").click()
    await expect(page.get_by_label("Backorder limit")).to_have_value("6")
    await page.get_by_label("Backorder limit").fill("")
    await save.click()
    await expect(section.locator("[data-tile=backordered]")).to_contain_text(
        "more than the limit", timeout=WAIT_MS
    )
    # What was promised is not taken back; once it ends the row is an ordinary one.
    await site.send("POST", f"/reservations/{held}/release", {})
    await _set_terms(site, row, {})
    await expect(section).to_be_hidden(timeout=WAIT_MS)


@pytest.mark.parametrize(("width", "dark"), [(1440, True), (360, False)])
async def test_supplies_are_announced_and_who_waits_is_told(
    site: Site, sign_in: SignIn, width: int, dark: bool
) -> None:
    await site.move("berlin", "receive", "tea", 2)
    page = await sign_in(width=width, dark=dark)
    await page.goto(site.address("stock", "berlin", "tea"))
    save = page.get_by_role("button", name="Save")

    async def expect_supply(day: str, units: int) -> None:
        await page.get_by_role("button", name="Expect").click()
        await page.get_by_label("Supply").fill(HOSTILE)
        await page.get_by_label("Expected on").fill(day)
        await page.get_by_label("Units still to come").fill(str(units))
        await save.click()

    await expect_supply("2026-12-10", 5)
    section = page.get_by_label("To come", exact=True)
    promise = section.get_by_role("region", name="Available to promise").get_by_role("row")
    await expect(promise.last).to_contain_text("2026-12-107", timeout=WAIT_MS)
    held = await site.reserve("berlin", "tea", 6, by="2026-12-10")
    waiting = page.get_by_label("Who waits", exact=True).first
    await expect(waiting.get_by_role("row").last).to_contain_text("2026-12-10", timeout=WAIT_MS)
    await expect(promise.last).to_contain_text("2026-12-101", timeout=WAIT_MS)
    await expect_supply("2026-12-24", 4)
    await expect(page.get_by_role("status")).to_contain_text("1 reservation cannot be served")
    await expect(waiting.get_by_role("row").last).to_contain_text(
        "late 2026-12-24", timeout=WAIT_MS
    )
    await expect(section).to_contain_text("4 late")
    await expect(page.get_by_text("promised by 2026-12-10, expected on")).to_be_visible()
    await expect(page.get_by_label("Terms", exact=True)).to_be_hidden()
    assert await page.locator("main script, main img").count() == 0
    await fits(page)
    await accessible(page)
    # What comes names its supply, and goes to who waits.
    await page.get_by_role("button", name="Receive").click()
    await page.get_by_label("Units").fill("3")
    await page.get_by_label("Supply").select_option(HOSTILE)
    await page.get_by_role("dialog").get_by_role("button", name="Receive").click()
    await expect(waiting.get_by_role("row").last).to_contain_text("1", timeout=WAIT_MS)
    await section.get_by_role("button", name="Cancel").click()
    await page.get_by_role("button", name="Cancel the supply").click()
    await expect(waiting.get_by_role("row").last).to_contain_text("nobody can say", timeout=WAIT_MS)
    await site.send("POST", f"/reservations/{held}/release", {})
    await expect(section).to_be_hidden(timeout=WAIT_MS)
    await expect(waiting).to_be_hidden(timeout=WAIT_MS)


async def _set_terms(site: Site, row: str, terms: dict[str, int]) -> None:
    version = (await site.send("GET", f"{row}?consistency=strong")).headers["etag"]
    await site.send("PUT", f"{row}/terms", terms, headers={"If-Match": version})


async def test_a_reader_sees_and_cannot_change(site: Site, sign_in: SignIn) -> None:
    await site.move("berlin", "receive", "tea", 10)
    page = await sign_in(site.secrets[Role.READ])
    await page.goto(site.address("stock", "berlin", "tea"))
    await expect(page.locator("[data-tile=on_hand] dd")).to_have_text("10", timeout=WAIT_MS)
    for name in ("Receive", "Adjust", "Count", "Safety stock", "Terms"):
        await expect(page.get_by_role("button", name=name)).to_have_count(0)


async def test_a_cut_line_is_told_and_the_stream_goes_on_where_it_broke(
    site: Site, sign_in: SignIn
) -> None:
    await site.move("berlin", "receive", "tea", 10)
    # The browser tells of every connection that breaks or cannot be made.
    site.expected.append("Failed to load resource: net::")
    async with Line(urlsplit(site.url).port or 0) as line:
        page = await sign_in(url=line.url)
        await page.goto(f"{line.url}/console#/{site.merchant}/stock/berlin")
        available = page.locator(".grid-row .available")
        await expect(available).to_have_text("10", timeout=WAIT_MS)
        resumed: list[str] = []
        page.on(
            "request",
            lambda request: (
                resumed.append(request.headers.get("last-event-id", ""))
                if "/stream" in request.url
                else None
            ),
        )
        await line.cut()
        await expect(page.locator("#banner")).to_contain_text("Disconnected", timeout=WAIT_MS)
        await site.move("berlin", "sale", "tea", 3)
        await expect(available).to_have_text("10")
        await line.mend()
        await expect(available).to_have_text("7", timeout=WAIT_MS)
        await expect(page.locator("#banner")).to_be_hidden(timeout=WAIT_MS)
        assert resumed
        assert all(resumed)


async def test_a_hostile_name_stays_text(site: Site, sign_in: SignIn) -> None:
    await site.move(_encoded(HOSTILE), "receive", HOSTILE, 3)
    await site.send("PUT", f"/items/{_encoded(HOSTILE)}", {"title": HOSTILE})
    await site.reserve(_encoded(HOSTILE), HOSTILE, 1, order_ref=HOSTILE)
    page = await sign_in()
    await page.goto(site.address("stock"))
    link = page.locator(".grid-row a").first
    await expect(link).to_contain_text("<script>", timeout=WAIT_MS)
    await link.click()
    await expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE, timeout=WAIT_MS)
    await expect(page.locator("[data-tile=reserved] dd")).to_have_text("1")
    assert await page.locator("main script, main img").count() == 0
    assert "Holdfast" in await page.title()


async def test_nothing_is_painted_or_heard_while_the_page_is_hidden(
    site: Site, sign_in: SignIn
) -> None:
    await site.move("berlin", "receive", "tea", 10)
    page = await sign_in()
    await page.goto(site.address("stock", "berlin"))
    available = page.locator(".grid-row .available")
    await expect(available).to_have_text("10", timeout=WAIT_MS)
    await _hide(page, True)
    await expect(page.locator("body")).to_have_attribute("data-live", "paused")
    await site.move("berlin", "sale", "tea", 3)
    await expect(available).to_have_text("10")
    await _hide(page, False)
    await expect(available).to_have_text("7", timeout=WAIT_MS)
    await expect(page.locator("body")).to_have_attribute("data-live", "live")


async def _hide(page: Page, hidden: bool) -> None:
    await page.evaluate(
        """hidden => {
          Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});
          document.dispatchEvent(new Event('visibilitychange'));
        }""",
        hidden,
    )


def _encoded(text: str) -> str:
    return quote(text, safe="")


async def test_a_reservation_is_found_followed_and_ended_by_typing(
    site: Site, sign_in: SignIn
) -> None:
    await site.move("berlin", "receive", "tea", 10)
    held = await site.reserve("berlin", "tea", 2, order_ref="order-77", ttl_seconds=600)
    page = await sign_in(width=360)
    await page.goto(site.address("reservations"))
    await expect(page.get_by_role("link", name="order-77")).to_be_visible(timeout=WAIT_MS)
    await fits(page)
    await accessible(page)
    await page.get_by_role("searchbox").fill("order-77")
    await page.get_by_role("button", name="Find").click()
    await page.get_by_role("link", name="order-77").click()
    await expect(page.locator("[data-tile=left]")).to_contain_text("min", timeout=WAIT_MS)
    await expect(page.get_by_text("Reserved", exact=True)).to_be_visible()
    await accessible(page)

    await page.get_by_role("button", name="Extend").click()
    await page.get_by_label("Seconds from now").fill("1200")
    go_ahead = page.get_by_role("dialog").get_by_role("button", name="Extend the hold")
    await expect(go_ahead).to_be_disabled()
    await page.get_by_label("to go ahead").fill("extend")
    await go_ahead.click()
    await expect(page.get_by_text("Extended", exact=True)).to_be_visible(timeout=WAIT_MS)
    await page.get_by_role("button", name="Confirm").click()
    await page.get_by_label("to go ahead").fill("confirm")
    await page.get_by_role("button", name="Confirm the order").click()
    await expect(page.locator("h1 .badge")).to_have_text("confirmed", timeout=WAIT_MS)
    await page.get_by_role("button", name="Release").click()
    await page.get_by_label("Reason").fill("customer called")
    await page.get_by_label("to go ahead").fill("release")
    await page.get_by_role("button", name="Release the units").click()
    await expect(page.locator("h1 .badge")).to_have_text("released", timeout=WAIT_MS)
    ended = (await site.send("GET", f"/reservations/{held}")).json()
    assert ended["state"] == "released"


async def test_feeds_show_gaps_and_what_was_set_aside(site: Site, sign_in: SignIn) -> None:
    now = datetime.now(UTC).isoformat()
    event = {"type": "receipt", "occurred_at": now, "sku": "tea", "quantity": 5}
    events = [
        {**event, "event_id": "1", "sequence": 1},
        {**event, "event_id": "4", "sequence": 4},
        {**event, "event_id": "x", "occurred_at": "2020-01-01T00:00:00Z", "sequence": 5},
    ]
    await site.send("POST", "/locations/berlin/feeds/till-1/events", {"events": events})
    page = await sign_in()
    await page.goto(site.address("feeds", "berlin"))
    await expect(page.get_by_role("cell", name="till-1").first).to_be_visible(timeout=WAIT_MS)
    await expect(page.get_by_text("2–3")).to_be_visible()
    await accessible(page)
    await page.get_by_role("button", name="Drop").click()
    await page.get_by_role("dialog").get_by_role("button", name="Drop").click()
    await expect(page.get_by_text("Nothing is set aside")).to_be_visible(timeout=WAIT_MS)
    await page.get_by_role("button", name="Give up").click()
    await page.get_by_label("to go ahead").fill("give up")
    await page.get_by_role("dialog").get_by_role("button", name="Give up").click()
    await expect(page.get_by_text("2–3")).to_be_hidden(timeout=WAIT_MS)


async def test_webhooks_are_shown_with_their_deliveries(site: Site, sign_in: SignIn) -> None:
    made = await site.send("POST", "/webhooks", {"url": "https://hooks.invalid/stock"})
    await site.move("berlin", "receive", "tea", 1)

    async def was_tried() -> bool:
        path = f"/webhooks/{made.json()['id']}/attempts"
        return bool((await site.send("GET", path)).json()["data"])

    await eventually(was_tried, within_seconds=20)
    page = await sign_in(dark=True)
    await page.goto(site.address("webhooks"))
    await page.get_by_role("link", name="https://hooks.invalid/stock").click()
    await expect(page.get_by_text("stock.changed").first).to_be_visible(timeout=WAIT_MS)
    await accessible(page)
    await page.get_by_role("button", name="Pause").click()
    await expect(page.locator("h1 .badge")).to_have_text("paused", timeout=WAIT_MS)


async def test_the_platform_sees_how_the_service_is_and_who_may_call(
    site: Site, sign_in: SignIn
) -> None:
    await site.move("berlin", "receive", "tea", 10)
    await site.reserve("berlin", "tea", 2)
    page = await sign_in(site.platform)
    await page.goto(site.address("overview"))
    await expect(page.locator("[data-tile=holds]")).to_contain_text("oldest", timeout=WAIT_MS)
    await expect(page.get_by_role("link", name="berlin")).to_be_visible()
    await expect(page.locator("[data-tile=archive]")).to_contain_text("operations")
    await accessible(page)

    await page.goto(site.address("keys"))
    await page.get_by_role("button", name="Make a key").click()
    await page.get_by_label("Label").fill("the window display")
    await page.get_by_role("button", name="Make it").click()
    secret = await page.get_by_label("Key", exact=True).input_value(timeout=WAIT_MS)
    assert secret.startswith("hfk_")
    await page.get_by_role("button", name="I have kept it").click()
    row = page.get_by_role("row").filter(has_text=secret[4:12])
    await accessible(page)
    await row.get_by_role("button", name="Revoke").click()
    await page.get_by_label("to go ahead").fill("revoke")
    await page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    await expect(row.get_by_role("button", name="Revoke")).to_have_count(0, timeout=WAIT_MS)


async def test_an_order_of_two_locations_is_found_and_cancelled(
    site: Site, sign_in: SignIn
) -> None:
    for location in ("berlin", "paris"):
        await site.move(location, "receive", "tea", 10)
    lines = [{"sku": "tea", "quantity": 2, "location": one} for one in ("berlin", "paris")]
    placed = await site.send("POST", "/orders", {"order_ref": "web 7", "lines": lines})
    order = str(placed.json()["id"])
    page = await sign_in()
    await page.goto(site.address("reservations"))
    await page.get_by_label("Find a reservation").fill("web 7")
    await page.get_by_role("button", name="Find").click()
    orders = page.get_by_role("region", name="Orders of several locations")
    await orders.get_by_role("link", name="web 7").click(timeout=WAIT_MS)
    parts = page.get_by_role("region", name="Parts by location").get_by_role("row")
    for location in ("berlin", "paris"):
        await expect(parts.filter(has_text=location)).to_contain_text("held", timeout=WAIT_MS)
    await accessible(page)
    await page.get_by_role("button", name="Cancel the order").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label("Reason").fill("changed their mind")
    await dialog.get_by_label("to go ahead").fill("cancel")
    await dialog.get_by_role("button", name="Cancel the order").click()
    for location in ("berlin", "paris"):
        await expect(parts.filter(has_text=location)).to_contain_text("released", timeout=WAIT_MS)
    await expect(page.get_by_role("button", name="Cancel the order")).to_have_count(0)
    assert (await site.send("GET", f"/orders/{order}")).json()["state"] == "cancelled"
    await page.set_viewport_size({"width": 360, "height": 740})
    await fits(page)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
async def test_substitutes_of_an_order_are_shown_and_decided_by_whoever_may(
    site: Site, sign_in: SignIn, width: int, dark: bool
) -> None:
    for sku, units in (("rye", 1), ("oats", 3), (HOSTILE, 9)):
        await site.move("depot", "receive", sku, units)
    wish = {"substitutes": "approve", "alternatives": [{"sku": HOSTILE, "of": 1, "for": 2}]}
    lines = [{"sku": "rye", "quantity": 4, **wish}, {"sku": "oats", "quantity": 4, **wish}]

    placed = (await site.send("POST", "/orders", {"order_ref": "web 8", "lines": lines})).json()
    order = str(placed["id"])
    assert placed["parts"][0]["proposed"] == ["rye", "oats"]
    reader = await sign_in(site.secrets[Role.READ])
    await reader.goto(site.address("reservations", order))
    seen = reader.get_by_role("region", name="Substitutes to accept")
    await expect(seen).to_contain_text(f"2 × {HOSTILE} for 4 × rye, at depot", timeout=WAIT_MS)
    await expect(reader.get_by_role("button", name="Accept")).to_have_count(0)

    page = await sign_in(site.secrets[Role.RESERVE], width=width, dark=dark)
    await page.goto(site.address("reservations", query="?q=web%208"))
    await expect(page.get_by_text("to accept").first).to_be_visible(timeout=WAIT_MS)
    await page.get_by_role("link", name="web 8").click()
    proposed = page.get_by_role("region", name="Substitutes to accept")
    rows = proposed.get_by_role("row")
    await expect(rows.filter(has_text="rye")).to_contain_text(
        f"2 × {HOSTILE} for 4 × rye, at depot", timeout=WAIT_MS
    )
    parts = page.get_by_role("region", name="Parts by location")
    await expect(parts).to_contain_text("2 for 4 × rye")
    assert await page.locator("main script, main img").count() == 0
    await fits(page)
    await accessible(page)

    # By the keyboard alone; what was decided is read out, and the focus is not lost.
    await page.get_by_role("button", name="Accept substitutes for rye").focus()
    await page.keyboard.press("Enter")
    await page.get_by_role("dialog").get_by_role("button", name="Accept the substitutes").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status")).to_contain_text("the order is held", timeout=WAIT_MS)
    await expect(rows.filter(has_text="for 4 × rye")).to_have_count(0)
    assert await page.evaluate("document.activeElement.id") == "main"
    now = (await site.send("GET", f"/orders/{order}")).json()
    assert now["parts"][0]["proposed"] == ["oats"]
    await page.get_by_role("button", name="Decline substitutes for oats").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text("given back")
    await accessible(page)
    await dialog.get_by_label("to go ahead").fill("decline")
    await dialog.get_by_role("button", name="Decline the substitutes").click()
    answered = (await site.send("GET", f"/orders/{order}")).json()
    await expect(page.locator("h1 .badge")).to_have_text(answered["state"], timeout=WAIT_MS)
    await expect(proposed).to_have_count(0)


async def test_what_a_part_serves_and_is_still_to_come_is_shown_with_who_is_late(
    site: Site, sign_in: SignIn
) -> None:
    await site.move("berlin", "receive", "tea", 1)
    supply = "/locations/berlin/stock/tea/supplies/po"
    await site.send("PUT", supply, {"expected_on": "2026-12-10", "quantity": 5})
    for number, kit in ((1, "pair"), (2, "box")):
        component = {"sku": "tea", "quantity": 2}
        await site.send("PUT", f"/kits/{kit}", {"components": [component]})
        lines = [{"sku": kit, "quantity": 1, "location": "berlin"}]
        body = {"order_ref": f"web {number}", "lines": lines, "by": "2026-12-24"}
        placed = (await site.send("POST", "/orders", body)).json()
    page = await sign_in(width=768)
    await page.goto(site.address("reservations", placed["id"]))
    part = page.get_by_role("region", name="Parts by location").get_by_role("row").last
    await expect(part).to_contain_text("2 × tea (2 part of 1 × box)", timeout=WAIT_MS)
    await expect(part).to_contain_text("2 not here yet, promised by 2026-12-10")
    await expect(page.locator("[data-tile=waiting]")).to_contain_text("2promised before")
    await expect(page.locator("[data-tile=by]")).to_contain_text("2026-12-24")
    await site.send("PUT", supply, {"expected_on": "2026-12-30", "quantity": 5})
    await expect(part).to_contain_text("late expected on 2026-12-30", timeout=WAIT_MS)
    await expect(page.locator("[data-tile=waiting]")).to_contain_text("2 of them late")
    await fits(page)
    await accessible(page)
    # The same of its reservation, which names the order that it is a part of.
    await part.get_by_role("link").click()
    row = page.get_by_role("region", name="Lines").get_by_role("row").last
    await expect(row).to_contain_text("2 part of 1 × box", timeout=WAIT_MS)
    await expect(row).to_contain_text("late expected on 2026-12-30")
    await site.send("DELETE", supply)
    await expect(row).to_contain_text("nobody can say when", timeout=WAIT_MS)
    await accessible(page)
    await expect(page.get_by_role("link", name=placed["id"])).to_be_visible()


async def test_a_proposal_of_a_reservation_is_declined_in_part(site: Site, sign_in: SignIn) -> None:
    for sku in ("rye", "spelt"):
        await site.move("berlin", "receive", sku, 2)
    wish = {"substitutes": "approve", "alternatives": [{"sku": "spelt"}]}
    line = {"sku": "rye", "quantity": 3, **wish}
    made = await site.send("POST", "/locations/berlin/reservations", {"lines": [line]})
    held = str(made.json()["id"])
    page = await sign_in(site.secrets[Role.RESERVE], width=360)
    await page.goto(site.address("reservations"))
    await page.get_by_role("row").filter(has_text="to accept").get_by_role("link").click()
    await expect(page.get_by_text("1 × spelt for 1 × rye, at berlin")).to_be_visible(
        timeout=WAIT_MS
    )
    await fits(page)
    await accessible(page)
    await page.get_by_role("button", name="Decline substitutes for rye").click()
    await page.get_by_label("to go ahead").fill("decline")
    await page.get_by_role("dialog").get_by_role("button", name="Decline the substitutes").click()
    await expect(page.get_by_role("status")).to_contain_text("missing 1 × rye", timeout=WAIT_MS)
    await expect(page.get_by_text("Missing: 1 × rye")).to_be_visible()
    found = (await site.send("GET", f"/reservations/{held}")).json()
    assert (found["lines"][0]["quantity"], "proposed" in found) == (2, False)


async def test_a_repair_is_planned_seen_and_applied(site: Site, sign_in: SignIn) -> None:
    await site.move("berlin", "receive", "tea", 10, reference=f"note-{site.merchant}")
    inventory = await Inventory.open(store_settings(None, site.data_dir))
    try:
        row = inventory.keys_of(site.merchant, "berlin").stock(site.merchant, "berlin", "tea")
        await inventory.store.read([("HINCRBY", row, "on_hand", 7)])
    finally:
        await inventory.close()
    page = await sign_in(site.platform)
    await page.goto(site.address("audit"))
    await page.get_by_role("button", name="Plan a repair").click()
    plan = page.get_by_role("region", name="Steps of the plan")
    step = plan.get_by_role("row").filter(has_text=site.merchant)
    await expect(step).to_contain_text("on hand 10", timeout=WAIT_MS)
    await accessible(page)

    await page.get_by_role("button", name="Apply this plan").click()
    dialog = page.get_by_role("dialog")
    apply = dialog.get_by_role("button", name="Apply")
    await dialog.get_by_label("Reason").fill("a test edited the row")
    await expect(apply).to_be_disabled()
    await dialog.get_by_label("to go ahead").fill("repair")
    await apply.click()
    repair = page.get_by_role("region", name="Steps of the repair")
    await expect(repair.get_by_role("row").filter(has_text=site.merchant)).to_contain_text(
        "done", timeout=WAIT_MS
    )
    stock = (await site.send("GET", "/locations/berlin/stock/tea?consistency=strong")).json()
    assert stock["on_hand"] == 10
    repairs = (await site.send("GET", "/ledger?kind=repair")).json()["data"]
    assert len(repairs) == 1

    await page.get_by_label("Import, reference or actor").fill(f"note-{site.merchant}")
    await page.get_by_role("button", name="See what undoing would change").click()
    await expect(page.get_by_text(f"rebuild --without note-{site.merchant}")).to_be_visible(
        timeout=WAIT_MS
    )
    await accessible(page)
    await page.set_viewport_size({"width": 360, "height": 740})
    await fits(page)
    # Whoever comes back sees what came of the last ones.
    await page.reload()
    await expect(repair).to_contain_text("done", timeout=WAIT_MS)


async def test_a_merchants_key_sees_its_own_part(site: Site, sign_in: SignIn) -> None:
    await site.move("berlin", "receive", "tea", 10)
    page = await sign_in(site.secrets[Role.READ], width=360)
    await page.goto(site.address("overview"))
    await expect(page.get_by_role("link", name="berlin")).to_be_visible(timeout=WAIT_MS)
    await expect(page.get_by_role("heading", name="Traffic")).to_have_count(0)
    await page.get_by_role("button", name="Menu").click()
    for name in ("Webhooks", "Audit", "Keys"):
        await expect(page.get_by_role("navigation").get_by_role("link", name=name)).to_have_count(0)
    await fits(page)
    await accessible(page)


async def test_a_page_that_was_left_while_it_opened_does_not_take_the_stream(
    site: Site, sign_in: SignIn
) -> None:
    await site.move("berlin", "receive", "tea", 10)
    page = await sign_in()
    await page.goto(site.address("stock", "berlin"))
    available = page.locator(".grid-row .available")
    await expect(available).to_have_text("10", timeout=WAIT_MS)
    held_back = asyncio.Event()

    async def slowly(route: Route) -> None:
        await held_back.wait()
        await route.continue_()

    await page.route("**/stock/tea?*", slowly)
    async with page.expect_request("**/stock/tea?*"):
        await page.locator(".grid-row a").click()
    await page.get_by_role("link", name="Stock", exact=True).click()
    await expect(available).to_have_text("10", timeout=WAIT_MS)
    async with page.expect_response("**/stock/tea?*"):
        held_back.set()
    await site.move("berlin", "sale", "tea", 4)
    await expect(available).to_have_text("6", timeout=WAIT_MS)
    await expect(page.locator("body")).to_have_attribute("data-live", "live")
