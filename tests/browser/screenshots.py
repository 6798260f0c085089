"""Takes the pictures of the README from the sample shop: `make screenshots`.

It waits for the afternoon of the shop's first day, when a store's line is down: some two and a half
minutes.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from playwright.sync_api import Page, ViewportSize, sync_playwright

from holdfast.assortment import MISCOUNTED_SKU
from holdfast.demo import FLAKY_STORE, WAREHOUSE
from tests.browser.conftest import find_chromium
from tests.services import RunningService

IMAGES: Final = Path(__file__).parents[2] / "docs" / "images"
WAIT_MS: Final = 300_000
SETTLE_SECONDS: Final = 3.0
"""For charts and flashes, which no element tells of."""

WIDE: Final = ViewportSize(width=1280, height=800)
NARROW: Final = ViewportSize(width=360, height=720)


def main() -> None:
    """Take them all."""
    chromium = find_chromium()
    if chromium is None:
        sys.exit("make screenshots needs a Chromium on PATH")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="holdfast-shots-") as folder:
        service = RunningService(Path(folder), "--with-demo")
        try:
            _take_all(chromium, service)
        finally:
            service.stop()


def _take_all(chromium: str, service: RunningService) -> None:
    key = (service.data_dir / "admin.key").read_text().strip()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(viewport=WIDE, color_scheme="light")
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.goto(f"{service.url}console")
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("heading", name="Overview").wait_for()
        # The charts of the overview begin when it is opened.
        page.get_by_role("row").filter(has_text=FLAKY_STORE).get_by_text("degraded").wait_for()
        _take(page, "overview")
        for name, path in (
            ("stock", f"stock/{WAREHOUSE}?sort=-reserved"),
            ("row", f"stock/{WAREHOUSE}/{MISCOUNTED_SKU}?range=15m"),
            ("feeds", f"feeds/{FLAKY_STORE}"),
        ):
            page.goto(f"{service.url}console#/demo/{path}")
            _take(page, name)
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size(NARROW)
        page.goto(f"{service.url}console#/demo/stock/{WAREHOUSE}")
        _take(page, "stock-phone-dark")
        browser.close()


def _take(page: Page, name: str) -> None:
    page.locator("main h1").wait_for()
    time.sleep(SETTLE_SECONDS)
    page.screenshot(path=IMAGES / f"console-{name}.png")


if __name__ == "__main__":
    main()
