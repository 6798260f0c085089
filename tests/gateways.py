"""Gateways for the tests: in this process over ASGI, and as a real process on a real socket."""

import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import httpx
from starlette.types import ASGIApp

from engine.access import Role, create_key
from engine.history import History
from engine.inventory import Inventory
from engine.outcomes import StoreUnavailable
from engine.store import Client, StoreSettings, close_quietly, connect
from gateway.app import create_app
from gateway.service import OpenHistory, Service
from reconciler.history import LedgerHistory
from tests.stores import eventually

READY_SECONDS: Final = 20.0
EXIT_SECONDS: Final = 20.0
REQUEST_SECONDS: Final = 30.0


class Api:
    """A gateway in this process, over a real store; clients of it by role."""

    def __init__(
        self,
        settings: StoreSettings,
        merchant: str,
        *,
        open_history: OpenHistory | None = None,
    ) -> None:
        """Prepare; entering opens the store. By default there is no archive behind its ledger."""
        self.merchant = merchant
        self._folder = tempfile.TemporaryDirectory(prefix="holdfast-index-")
        self.index_url = f"{self._folder.name}/index.db"
        self.service = Service(
            settings,
            open_history=open_history or _without_archive,
            index_url=self.index_url,
        )
        self.app: ASGIApp = create_app(self.service)
        self.store: Client = connect(settings)
        self._secrets: dict[tuple[Role, str | None], str] = {}
        self._clients: list[httpx.AsyncClient] = []

    async def secret(self, role: Role, merchant: str | None) -> str:
        """Return the secret of a key; one is made for each role and merchant."""
        if (role, merchant) not in self._secrets:
            _, secret = await create_key(
                self.store, role=role, merchant=merchant, label="of a test"
            )
            self._secrets[role, merchant] = secret
        return self._secrets[role, merchant]

    async def client(
        self, role: Role = Role.ADMIN, *, merchant: str | None = ""
    ) -> httpx.AsyncClient:
        """Return a client with a key of the role, by default for the test's own merchant."""
        return self.client_of(
            await self.secret(role, self.merchant if merchant == "" else merchant)
        )

    def client_of(self, secret: str | None) -> httpx.AsyncClient:
        """Return a client that sends the secret, or none."""
        made = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app),
            base_url="http://gateway",
            headers={} if secret is None else {"Authorization": f"Bearer {secret}"},
            timeout=REQUEST_SECONDS,
        )
        self._clients.append(made)
        return made

    async def __aenter__(self) -> Self:
        """Open the store."""
        await self.service.start()
        await eventually(self._is_open, within_seconds=READY_SECONDS)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close everything."""
        for client in self._clients:
            await client.aclose()
        await self.service.stop()
        await close_quietly(self.store)
        self._folder.cleanup()

    async def _is_open(self) -> bool:
        with suppress(StoreUnavailable):
            return self.service.inventory is not None
        return False


class GatewayProcess:
    """`python -m holdfast.web` on a socket that this process bound, as the supervisor starts it."""

    def __init__(
        self, settings: StoreSettings, *, environ: Mapping[str, str] | None = None
    ) -> None:
        """Prepare; entering starts it and waits until it answers at all."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._folder = tempfile.TemporaryDirectory(prefix="holdfast-index-")
        self.index_url = f"{self._folder.name}/index.db"
        self._environ = {
            **{name: value for name, value in os.environ.items() if name[:9] != "HOLDFAST_"},
            "HOLDFAST_REDIS_URL": settings.url + ("?cluster=true" if settings.cluster else ""),
            "HOLDFAST_REDIS_USERNAME": settings.username,
            "HOLDFAST_REDIS_PASSWORD": settings.password,
            "HOLDFAST_LISTEN_FD": str(self._listener.fileno()),
            "HOLDFAST_LOG_FORMAT": "json",
            "HOLDFAST_INDEX_URL": self.index_url,
            **(environ or {}),
        }
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The running process."""
        assert self._process is not None
        return self._process

    def client(self, secret: str | None = None) -> httpx.AsyncClient:
        """Return a client of it; the caller closes it."""
        return httpx.AsyncClient(
            base_url=self.url,
            headers={} if secret is None else {"Authorization": f"Bearer {secret}"},
            timeout=REQUEST_SECONDS,
        )

    async def wait_until_ready(self) -> None:
        """Wait until /readyz says so."""
        async with self.client() as client:

            async def is_ready() -> bool:
                return (await client.get("/readyz")).status_code == 200

            await eventually(is_ready, within_seconds=READY_SECONDS)

    async def stop(self) -> tuple[int, list[str]]:
        """Send SIGTERM; return the exit code and the lines that it logged."""
        if self.process.returncode is None:
            self.process.terminate()
        async with asyncio.timeout(EXIT_SECONDS):
            _, logged = await self.process.communicate()
        return self.process.returncode or 0, logged.decode().splitlines()

    async def run_to_its_end(self) -> tuple[int, list[str]]:
        """Start it where it cannot serve; return the exit code and what it said."""
        await self._start()
        async with asyncio.timeout(EXIT_SECONDS):
            _, logged = await self.process.communicate()
        self._folder.cleanup()
        return self.process.returncode or 0, logged.decode().splitlines()

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "holdfast.web",
            env=self._environ,
            pass_fds=[self._listener.fileno()],
            stderr=asyncio.subprocess.PIPE,
        )
        # From here on only the gateway listens, so a connection after its end is refused.
        self._listener.close()

    async def __aenter__(self) -> Self:
        """Start it and wait until it lives."""
        await self._start()
        async with self.client() as client:
            # The kernel keeps the connection until the process accepts it, or ends.
            try:
                assert (await client.get("/livez")).status_code == 200
            except httpx.TransportError as error:
                _, logged = await self.stop()
                raise AssertionError(f"the gateway did not come up: {logged}") from error
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill it if it still runs."""
        if self.process.returncode is None:
            self.process.kill()
            await self.process.communicate()
        self._folder.cleanup()


class Shelf:
    """Requests about one location of a merchant, with the headers that they need."""

    def __init__(self, client: httpx.AsyncClient, merchant: str, location: str = "berlin") -> None:
        """Ask through `client`."""
        self.client = client
        self.merchant_path = f"/v1/merchants/{merchant}"
        self.path = f"{self.merchant_path}/locations/{location}"
        self._keys = 0

    def key(self) -> dict[str, str]:
        """Return the header of an idempotency key that was not used before."""
        self._keys += 1
        return {"Idempotency-Key": f"key-{id(self)}-{self._keys}"}

    async def move(
        self, movement_type: str, sku: str, quantity: int, **fields: Any
    ) -> httpx.Response:
        """Book a movement."""
        body = {"type": movement_type, "sku": sku, "quantity": quantity, **fields}
        return await self.client.post(f"{self.path}/movements", json=body, headers=self.key())

    async def reserve(
        self, *lines: tuple[str, int], key: str | None = None, **fields: Any
    ) -> httpx.Response:
        """Reserve lines of (SKU, quantity)."""
        return await self.client.post(
            f"{self.path}/reservations",
            json={"lines": lines_of(lines), **fields},
            headers=self.key() if key is None else {"Idempotency-Key": key},
        )

    async def end(self, verb: str, reservation: str, **fields: Any) -> httpx.Response:
        """Run a verb on a reservation, without a body where there are no fields."""
        return await self.client.post(
            f"{self.merchant_path}/reservations/{reservation}/{verb}",
            json=fields or None,
            headers=self.key() if verb == "extend" else {},
        )


def _without_archive(inventory: Inventory) -> History:
    """Answer questions to the ledger from the store alone."""

    async def opened() -> None:
        return None

    return LedgerHistory(inventory, opened)


def lines_of(lines: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """Make the lines of a request."""
    return [{"sku": sku, "quantity": quantity} for sku, quantity in lines]


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that the answer is a whole problem of the code, and return it."""
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert problem["type"] == f"/problems/{code}"
    assert problem["request_id"] == answer.headers["request-id"]
    assert problem["title"]
    assert problem["detail"]
    for error in problem["errors"]:
        assert error["detail"]
        assert sum(place in error for place in ("pointer", "parameter", "header")) <= 1
    return dict(problem)
