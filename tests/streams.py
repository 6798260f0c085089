"""A client of the gateway's event streams, as an EventSource would read them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

WAIT_SECONDS: Final = 20.0


@dataclass
class Event:
    """One event: its name, its data, and the id that the client has behind it."""

    name: str
    data: dict[str, Any]
    last_id: str


@dataclass
class EventReader:
    """Reads events from an open stream and keeps them; `last_id` is what it comes back with."""

    response: httpx.Response
    events: list[Event] = field(default_factory=list)
    last_id: str = ""
    retry_ms: int = 0
    heartbeats: int = 0

    def __post_init__(self) -> None:
        """Begin at the first line."""
        self._lines = self.response.aiter_lines()

    async def until(self, condition: Callable[["EventReader"], bool]) -> None:
        """Read on until a condition holds. Raises TimeoutError."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition(self):
                await self.read()

    async def read(self) -> Event | None:
        """Read to the next blank line; None where that was no event. Raises EOFError at the end."""
        name, data = "message", []
        async for line in self._lines:
            if not line:
                break
            what, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if what == "id":
                self.last_id = value
            elif what == "event":
                name = value
            elif what == "data":
                data.append(value)
            elif what == "retry":
                self.retry_ms = int(value)
            elif what == "":
                self.heartbeats += 1
        else:
            raise EOFError(f"the stream has ended after {self.events[-3:]}")
        if not data:
            return None
        event = Event(name, json.loads("\n".join(data)), self.last_id)
        self.events.append(event)
        return event

    def named(self, name: str) -> list[Event]:
        """Return the events of a name so far."""
        return [event for event in self.events if event.name == name]

    def versions(self, sku: str, *, after: int = 0) -> list[int]:
        """Return the versions of a row's changes, in the order in which they came."""
        return [
            event.data["data"]["version"]
            for event in self.events[after:]
            if event.name == "stock.changed" and event.data["data"]["sku"] == sku
        ]

    @property
    def snapshot(self) -> dict[str, dict[str, Any]]:
        """The rows of the last snapshot, by SKU."""
        start = max((i for i, one in enumerate(self.events) if one.name == "reset"), default=0)
        return {
            row["sku"]: row
            for event in self.events[start:]
            if event.name == "snapshot"
            for row in event.data["rows"]
        }


@asynccontextmanager
async def listening(
    client: httpx.AsyncClient,
    merchant: str,
    *,
    last_id: str | None = None,
    **parameters: str | list[str],
) -> AsyncIterator[EventReader]:
    """Open a stream."""
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    path = f"/v1/merchants/{merchant}/stream"
    async with client.stream("GET", path, params=parameters, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"] == "text/event-stream"
        yield EventReader(response)


def is_ready(reader: EventReader) -> bool:
    """Say whether the stream has begun."""
    return bool(reader.named("ready") or reader.named("resumed"))
