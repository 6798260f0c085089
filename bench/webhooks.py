"""How fast webhooks are delivered: `python -m bench.webhooks`.

A store of its own with fsync always, the worker of the background process and a receiver on the
loopback, all of them but the store in this process. Rows change, each change is an event, and an
event counts once the receiver has answered it. The receiver answers at once; what one costs that
does not is its own endpoint's affair.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench import servers
from bench.figures import Conditions
from bench.load import Window
from bench.shop import ACTOR, MERCHANT, rows_of
from engine.inventory import Inventory
from engine.model import Movement, MovementType
from engine.outcomes import HoldfastError
from engine.webhooks import Interest, Webhooks
from gateway.signing import new_secret
from gateway.webhook_worker import WebhookWorker
from holdfast.embedded import find_server

LOCATIONS: Final = 10
SKUS: Final = 20
EVENTS: Final = 2_000
ENDPOINTS: Final = (1, 8)
MOST_SECONDS: Final = 120.0
DATA: Final = Path("/var/tmp")  # noqa: S108 - each store makes a directory of its own in it

_ANSWER: Final = b"HTTP/1.1 204 No Content\r\n\r\n"


class Receiver:
    """Answers every POST with 204, and counts them."""

    def __init__(self, wanted: int) -> None:
        """Wait for so many."""
        self.all_came = asyncio.Event()
        self._wanted = wanted
        self._came = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer what comes over a connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    int(line.partition(b":")[2])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                )
                await reader.readexactly(length)
                writer.write(_ANSWER)
                self._came += 1
                if self._came >= self._wanted:
                    self.all_came.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def _change_rows(inventory: Inventory) -> None:
    rows = rows_of(LOCATIONS, SKUS)
    movements = [
        Movement(
            key=f"sale-{number}",
            location=rows[number % len(rows)][0],
            type=MovementType.SALE,
            sku=rows[number % len(rows)][1],
            quantity=1,
        )
        for number in range(EVENTS)
    ]
    for start in range(0, EVENTS, 1_000):
        batch = movements[start : start + 1_000]
        for answer in await inventory.move_many(MERCHANT, batch, actor=ACTOR):
            if isinstance(answer, HoldfastError):
                raise answer


async def measure(conditions: Conditions, endpoints: int) -> float:
    """Return deliveries a second, over all endpoints."""
    receiver = Receiver(EVENTS * endpoints)
    async with servers.stocked_inventory(conditions, rows_of(LOCATIONS, SKUS)) as inventory:
        server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        for number in range(endpoints):
            await Webhooks(inventory.store).create(
                MERCHANT,
                key=str(number),
                url=f"http://127.0.0.1:{port}/{number}",
                description="",
                interest=Interest(types=("stock.changed",)),
                new_secret=new_secret,
            )
        stop = asyncio.Event()
        worker = asyncio.create_task(WebhookWorker(inventory, loopback=True).run(stop))
        try:
            # From here on the worker reads what is written.
            await asyncio.sleep(1)
            began = time.perf_counter()
            await _change_rows(inventory)
            async with asyncio.timeout(MOST_SECONDS):
                await receiver.all_came.wait()
            return EVENTS * endpoints / (time.perf_counter() - began)
        finally:
            stop.set()
            await worker
            server.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.webhooks", description=__doc__)
    parser.add_argument(
        "--work-dir", type=Path, default=DATA, help="where the stores keep their data: on a disk"
    )
    asked = parser.parse_args(arguments)
    conditions = Conditions(
        server=find_server(), work_dir=asked.work_dir, window=Window(0.5, 2.0), quick=True
    )
    for endpoints in ENDPOINTS:
        rate = asyncio.run(measure(conditions, endpoints))
        sys.stdout.write(
            f"{endpoints} endpoint(s): {rate:,.0f} deliveries/s of {EVENTS:,} events\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
