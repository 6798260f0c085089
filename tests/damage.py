"""A shop whose store is damaged by hand, audited and mended: what the tests of both share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack

from engine.keys import PartitionKeys
from engine.model import BuyerCap, MovementType, Pool, Terms
from reconciler.archive import Archive, open_archive
from reconciler.archiver import Archiver, ArchiverSettings
from reconciler.audit import AuditSettings, audit
from reconciler.findings import AuditReport, Code, Finding
from reconciler.repair import Mended, mend
from tests.shop import ACTOR, LOCATION, Shop, open_shop
from tests.stores import VALKEY, MakeStore, RealStore, set_up

MENDER = "mender"
REASON = "a test damaged it"


class DamagedShop:
    """A shop on a store of the test's own, an archive beside it, and an audit at hand."""

    def __init__(self, shop: Shop, store: RealStore, archive: Archive, folder: Path) -> None:
        """Use `damaged_shop`."""
        self.shop = shop
        self.store = store
        self.archive = archive
        self.folder = folder
        self.inventory = shop.inventory
        self.archiver = Archiver(
            shop.inventory,
            archive,
            owner="test",
            settings=ArchiverSettings(min_age_ms=0, resume_window_ms=0, max_segment_entries=5),
        )

    @property
    def keys(self) -> PartitionKeys:
        """The keys of the partition that the shop's main location is in."""
        return self.shop.keys(LOCATION)

    @property
    def neighbour(self) -> str:
        """A location without stock in the same partition as the main one."""
        names = (f"nowhere-{number}" for number in range(1_000))
        return next(name for name in names if self.shop.keys(name) == self.keys)

    def stock_key(self, sku: str, *, location: str = LOCATION) -> str:
        """Return a row's key."""
        return self.shop.keys(location).stock(self.shop.merchant, location, sku)

    async def run(self, *command: str | bytes | int) -> Any:
        """Run a command as somebody with all rights."""
        return await self.store.run(*command)

    async def audit(self, settings: AuditSettings | None = None) -> AuditReport:
        """Audit the whole store."""
        return await audit(self.inventory, self.archive, settings=settings)

    async def mend(self) -> Mended:
        """Audit and repair until there is nothing left to repair."""
        return await mend(self.inventory, self.archive, actor=MENDER, reason=REASON)

    async def ledger_ids(self) -> list[bytes]:
        """Return the stream ids of the main location's ledger."""
        return [entry[0] for entry in await self.run("XRANGE", self.keys.ledger, "-", "+")]

    async def last_entry(self) -> list[Any]:
        """Return the operations of the ledger's last entry, unpacked without the product's help."""
        ((_, fields),) = await self.run("XREVRANGE", self.keys.ledger, "+", "-", "COUNT", 1)
        flat = fields if isinstance(fields, dict) else dict(zip(*[iter(fields)] * 2, strict=True))
        unpacked: list[Any] = msgpack.unpackb(flat[b"ops"], raw=False)
        return unpacked

    def queue_key(self, sku: str) -> str:
        """Return the key of who waits for units of a row."""
        return self.keys.waiting(self.shop.merchant, LOCATION, sku)

    async def buyer_key(self) -> str:
        """Return the key of what counts for the one buyer."""
        (key,) = await self.run("KEYS", f"{self.keys.tag}:buyer:*")
        return str(key.decode())

    def segments(self) -> list[Path]:
        """Return the files of the main location's segments, in order."""
        folder = self.folder / self.archive.store_id / "ledger" / f"{self.keys.partition:04d}"
        return sorted(folder.glob("*.segment"))


@asynccontextmanager
async def damaged_shop(
    make_store: MakeStore, folder: Path, *, kind: str = VALKEY, partitions: int = 2
) -> AsyncIterator[DamagedShop]:
    """Open a shop on a new store with an archive below `folder`."""
    store = make_store(kind)
    await store.start()
    await set_up(store.settings, partitions=partitions)
    async with open_shop(store.settings) as shop:
        archive = await open_archive(shop.inventory.store, str(folder / "archive"))
        yield DamagedShop(shop, store, archive, folder / "archive")


def codes(findings: tuple[Finding, ...] | list[Finding]) -> set[Code]:
    """Return what was found."""
    return {finding.code for finding in findings}


def only(report: AuditReport, code: Code) -> Finding:
    """Return the one finding of a code."""
    found = [finding for finding in report.findings if finding.code is code]
    assert len(found) == 1, [(finding.code, finding.detail) for finding in report.findings]
    return found[0]


async def trade(shop: Shop) -> list[str]:
    """Make history of every kind; return reservations: held, confirmed, released, committed."""
    await shop.receive("apple", 40)
    await shop.receive("pear", 20)
    await shop.move(MovementType.SALE, "plum", 3)
    row = await shop.row("pear")
    await shop.inventory.configure(
        shop.merchant,
        LOCATION,
        "pear",
        key="keep two",
        safety_stock=2,
        expected_version=row.version,
        actor=ACTOR,
    )
    ids = [
        (await shop.reserve([("apple", 3), ("pear", 1)], key=f"cart-{number}")).reservation.id
        for number in range(4)
    ]
    await shop.inventory.extend(shop.merchant, ids[0], key="more", ttl_ms=950_000, actor=ACTOR)
    await shop.inventory.confirm(shop.merchant, ids[1], order_ref="order-1", actor=ACTOR)
    await shop.release(ids[2])
    await shop.commit(ids[3], [("apple", 2)])
    await shop.receive("quince", 7, location="back room")
    return ids


async def trade_on_terms(shop: Shop) -> list[str]:
    """Promise units before they come, to channels and to capped buyers.

    Returns reservations: three that wait for tea, the first of which got some of it, and two of
    milk for one buyer, the second of which was picked.
    """
    await shop.set_terms("tea", Terms(backorder_limit=9))
    await shop.set_terms(
        "milk",
        Terms(channels={"web": Pool(cap=6)}, buyer_cap=BuyerCap(5, 48 * 3_600_000)),
    )
    await shop.receive("milk", 10)
    ids = [(await shop.reserve([("tea", units)])).reservation.id for units in (3, 2, 1)]
    await shop.receive("tea", 1)
    for units in (2, 1):
        milk = await shop.reserve([("milk", units)], channel="web", buyer="ann")
        ids.append(milk.reservation.id)
    await shop.commit(ids[-1])
    return ids


async def archived(damaged: DamagedShop, count: int = 18) -> list[Path]:
    """Archive some history into segments of five, of which the store forgets nothing."""
    for _ in range(count):
        await damaged.shop.receive("apple", 1)
    # A reader that has read nothing keeps the ledger from being trimmed.
    await damaged.run("HSET", damaged.keys.readers, "test", "0-0")
    await damaged.archiver.archive_all(flush=True)
    return damaged.segments()


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
