"""A whole service with a receiver, a search and a kill, as its user has them."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook as Verifier

from tests.receivers import Received, Receiver, answer
from tests.services import CommandLine, RunningService
from tests.stores import eventually

pytestmark = pytest.mark.faults

WAIT_SECONDS = 60.0


def background_of(service: RunningService) -> int:
    """Return the process id of a service's background process."""
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children")
    for child in children.read_text().split():
        if b"holdfast.background" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise AssertionError("there is no background process")


async def test_a_killed_worker_sends_the_same_event_again_and_search_goes_on(
    tmp_path: Path,
) -> None:
    service = await asyncio.to_thread(RunningService, tmp_path, "--webhook-loopback")
    try:
        await use(service, tmp_path)
    finally:
        assert await asyncio.to_thread(service.stop) == 0


async def use(service: RunningService, folder: Path) -> None:
    line = CommandLine(service.environment, "acme")

    async def command(*words: object, expect: int = 0) -> Any:
        return await asyncio.to_thread(lambda: line.json(*words, expect=expect))

    async def rows(*words: object) -> Any:
        return await asyncio.to_thread(lambda: line.rows(*words))

    held = asyncio.Event()

    async def hang(_: Received) -> bytes:
        await held.wait()
        return answer(204)

    async with Receiver() as receiver:
        made = await command(
            "webhooks", "create", receiver.url, "--type", "stock.changed", "--type", "stock.out"
        )
        tested = await command("webhooks", "test", made["id"])
        assert (tested["delivered"], tested["status"]) == (True, 204)
        assert Verifier(made["secret"]).verify(
            receiver.received[0].body, receiver.received[0].headers
        )
        assert "secret" not in await command("webhooks", "show", made["id"])

        # Killed while the receiver works on it: it comes again, under the same id.
        receiver.answering = hang
        await command("move", "receive", "leeds", "mug", 5)
        await receiver.until(2)
        os.kill(background_of(service), signal.SIGKILL)
        receiver.answering = receiver._answer
        await receiver.until(3)
        held.set()
        first, again = receiver.received[1:3]
        assert first.id == again.id
        assert first.body == again.body
        assert Verifier(made["secret"]).verify(again.body, again.headers)["subject"] == "mug"

        async def settled() -> bool:
            return bool((await command("webhooks", "show", made["id"]))["waiting"] == 0)

        await eventually(settled, within_seconds=WAIT_SECONDS)
        (attempt,) = await rows("webhooks", "attempts", made["id"])
        assert attempt["outcome"] == "delivered"

    # Nobody listens any more, and somebody looks.
    failed = await command("webhooks", "test", made["id"], expect=1)
    assert failed["outcome"] == "unreachable"
    assert (await command("webhooks", "change", made["id"], "--pause"))["status"] == "paused"
    await search(service, folder, line)
    assert await command("webhooks", "delete", made["id"]) == {"deleted": made["id"]}
    assert await rows("webhooks", "list") == []
    said = service.said()
    assert "whsec_" not in said


async def search(service: RunningService, folder: Path, line: CommandLine) -> None:
    (folder / "items.csv").write_text("sku,title,colour\nmug,Becher,blue\n,nothing,\n")

    async def found(*words: object) -> list[Any]:
        return await asyncio.to_thread(lambda: line.rows("search", *words))

    taken = await asyncio.to_thread(
        lambda: line.json("items", "import", folder / "items.csv", expect=1)
    )
    assert taken["taken"] == 1
    assert [one["sku"] for one in taken["refused"]] == [""]

    async def is_found() -> bool:
        return [one["sku"] for one in await found("bech", "--stock", "in")] == ["mug"]

    await eventually(is_found, within_seconds=WAIT_SECONDS)
    rebuilt = await asyncio.to_thread(lambda: line.json("index", "rebuild"))
    assert rebuilt == {"rows": 1}
    assert await is_found()
    checked = await asyncio.to_thread(lambda: line.json("index", "check"))
    assert checked == {"rows": 1, "mended": 0}
    readers = {one["name"] for one in await asyncio.to_thread(lambda: line.rows("readers", "list"))}
    assert readers == {"index", "shortfalls", "webhooks"}
    async with httpx.AsyncClient(base_url=service.url) as client:
        document = json.loads((await client.get("/asyncapi.json")).text)
    assert "webhook.test" in document["components"]["messages"]
