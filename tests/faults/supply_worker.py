"""A process of its own that cancels a supply, to be killed before it says who is late.

Run as `python -m tests.faults.supply_worker <JSON>`. It prints a line once the supply is gone.
"""

import asyncio
import sys

import msgspec

from engine.inventory import Inventory
from engine.store import StoreSettings
from engine.supplies import Reviewed, Supplies
from tests.shop import LOCATION

KEY = "cancel"


class Job(msgspec.Struct, frozen=True):
    """What the process is told."""

    store: StoreSettings
    merchant: str
    sku: str
    supply: str


class CutOff(Supplies):
    """Changes supplies, and gets no further."""

    async def review(self, merchant: str, location: str, sku: str) -> Reviewed:
        """Say that it was changed, and wait to be killed."""
        sys.stdout.write(f"{merchant} {location} {sku}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()
        return Reviewed()


async def work(job: Job) -> None:
    """Cancel until killed."""
    inventory = await Inventory.open(job.store)
    await CutOff(inventory).cancel(
        job.merchant, LOCATION, job.sku, job.supply, key=KEY, actor="worker"
    )


if __name__ == "__main__":
    asyncio.run(work(msgspec.json.decode(sys.argv[1], type=Job)))
