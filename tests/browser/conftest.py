"""A real Chromium on a real gateway; one browser and one shop for all tests of the console."""

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright

from engine.access import Role
from tests.services import CommandLine, RunningService

REQUIRE_CHROMIUM: Final = "HOLDFAST_REQUIRE_CHROMIUM"
"""Set where a Chromium must be there, so that a test that misses it fails and is not skipped."""

NAMES: Final = ("chromium", "chromium-browser", "google-chrome")

WAIT_MS: Final = 20_000
"""For whatever a page is to show: long, since it costs nothing where all is well."""


def find_chromium() -> str | None:
    """Return the path of the browser, None where there is none."""
    return next((found for found in map(shutil.which, NAMES) if found), None)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of the browser; skips the test where there is none."""
    found = find_chromium()
    if found is not None:
        return found
    reason = f"no Chromium: none of {', '.join(NAMES)} is on PATH"
    if os.environ.get(REQUIRE_CHROMIUM):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    """A browser for all tests, each of which opens contexts of its own in it."""
    async with async_playwright() as playwright:
        # Its sandbox needs rights that a container seldom gives to root.
        opened = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        await opened.close()


@dataclass
class Site:
    """A running service, and the keys of one merchant by role."""

    url: str
    merchant: str
    secrets: dict[Role, str]
    platform: str
    data_dir: Path
    faults: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    """Words of what the browser complains of where a test means it to."""

    def address(self, *parts: str, query: str = "") -> str:
        """Return the address of a page of the console."""
        path = "/".join(quote(part, safe="") for part in parts)
        return f"{self.url}/console#/{self.merchant}/{path}{query}"

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        role: Role = Role.ADMIN,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Ask the API as another client does."""
        headers = {
            "Authorization": f"Bearer {self.secrets[role]}",
            "Idempotency-Key": os.urandom(8).hex(),
            **(headers or {}),
        }
        async with httpx.AsyncClient(base_url=self.url, headers=headers) as client:
            answer = await client.request(method, f"/v1/merchants/{self.merchant}{path}", json=body)
            return answer.raise_for_status()

    async def move(self, location: str, kind: str, sku: str, quantity: int, **more: Any) -> None:
        """Book a movement."""
        body = {"type": kind, "sku": sku, "quantity": quantity, **more}
        await self.send("POST", f"/locations/{location}/movements", body)

    async def reserve(self, location: str, sku: str, quantity: int, **more: Any) -> str:
        """Reserve and return the reservation's id."""
        body = {"lines": [{"sku": sku, "quantity": quantity}], **more}
        made = await self.send("POST", f"/locations/{location}/reservations", body)
        return str(made.json()["id"])


@pytest.fixture(scope="session")
def service(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A whole service that all tests of the console share, each with a merchant of its own."""
    running = RunningService(tmp_path_factory.mktemp("console"))
    yield running
    running.stop()


@pytest.fixture
def site(service: RunningService, merchant: str) -> Site:
    """A merchant's part of it, and a key of each role."""
    command = CommandLine(service.environment, merchant)
    secrets = {
        role: str(command.json("keys", "create", "--role", role, "--merchant", merchant)["secret"])
        for role in Role
    }
    platform = (service.data_dir / "admin.key").read_text().strip()
    return Site(service.url.rstrip("/"), merchant, secrets, platform, service.data_dir)


SignIn = Callable[..., Awaitable[Page]]


@pytest_asyncio.fixture(loop_scope="session")
async def sign_in(browser: Browser, site: Site) -> AsyncIterator[SignIn]:
    """Open a page of the console as whoever has a key; at the end nothing may have gone wrong."""
    contexts: list[BrowserContext] = []

    async def enter(
        secret: str | None = None,
        *,
        width: int = 1440,
        dark: bool = False,
        url: str | None = None,
    ) -> Page:
        context = await browser.new_context(
            viewport={"width": width, "height": 900 if width > 500 else 740},
            color_scheme="dark" if dark else "light",
        )
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        page = await context.new_page()
        page.on("console", lambda message: _note(site, message))
        page.on("pageerror", lambda error: site.faults.append(str(error)))
        await page.goto(f"{url or site.url}/console")
        await page.get_by_label("API key").fill(secret or site.secrets[Role.ADMIN])
        await page.get_by_role("button", name="Sign in").click()
        await page.get_by_role("button", name="Sign out").wait_for()
        return page

    yield enter
    for context in contexts:
        await context.close()
    assert [
        fault for fault in site.faults if not any(words in fault for words in site.expected)
    ] == []


def _note(site: Site, message: ConsoleMessage) -> None:
    if message.type in ("error", "warning"):
        site.faults.append(f"{message.text} ({message.location.get('url', '')})")
