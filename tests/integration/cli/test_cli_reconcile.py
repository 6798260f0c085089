"""`holdfast reconcile`, `archive`, `snapshot`, `audit`, `repair` and `rebuild`, on real stores."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from engine.keys import STORE_KEY
from engine.leases import Lease
from engine.ledger import Operation, OperationKind, read_entries
from engine.model import Movement, MovementType
from engine.outcomes import StoreReadOnly
from tests.conftest import need
from tests.services import CommandLine
from tests.shop import LOCATION, Shop, new_key, open_shop
from tests.stores import VALKEY, RealStore, set_up

PARTITIONS: Final = 4
MERCHANT: Final = "acme"

Result = TypeVar("Result")


class Site:
    """A store with nobody at work on it, its archive, and the command for both."""

    def __init__(self, path: Path) -> None:
        self.archive = path / "archive"
        self.real = RealStore(VALKEY, path / "store")
        asyncio.run(self.real.start())
        asyncio.run(set_up(self.real.settings, partitions=PARTITIONS))
        settings = self.real.settings
        self.cli = CommandLine(
            {
                "HOLDFAST_REDIS_URL": settings.url,
                "HOLDFAST_REDIS_USERNAME": settings.username,
                "HOLDFAST_REDIS_PASSWORD": settings.password,
                "HOLDFAST_ARCHIVE_URL": str(self.archive),
                "HOLDFAST_DATA_DIR": str(path / "nowhere"),
            },
            MERCHANT,
        )

    def trade(self, work: Callable[[Shop], Awaitable[Result]]) -> Result:
        """Do something in the merchant's shop."""

        async def run() -> Result:
            async with open_shop(self.real.settings, MERCHANT) as shop:
                return await work(shop)

        return asyncio.run(run())

    def receive(self, quantity: int) -> None:
        """Book an arrival of mugs."""
        self.trade(lambda shop: shop.receive("mug", quantity))

    def on_hand(self) -> int:
        """Return the mugs on hand."""
        return self.trade(lambda shop: shop.row("mug")).on_hand

    def run(self, *command: str | int) -> Any:
        """Run a command on the store, behind everybody's back."""
        return asyncio.run(self.real.run(*command))

    def segments(self) -> list[Path]:
        """Return the files of the archived segments."""
        return sorted(self.archive.rglob("*.segment"))


def open_site(path: Path) -> Iterator[Site]:
    need(VALKEY)
    path.mkdir()
    site = Site(path)
    yield site
    asyncio.run(site.real.stop())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield from open_site(tmp_path / "site")


@pytest.fixture
def new_site(tmp_path: Path) -> Iterator[Site]:
    yield from open_site(tmp_path / "new")


@pytest.fixture
def cli(site: Site) -> CommandLine:
    return site.cli


@pytest.fixture
def held(site: Site) -> str:
    """The id of a reservation that is still held, after a little trade."""

    async def trade(shop: Shop) -> str:
        await shop.receive("mug", 12)
        await shop.commit((await shop.reserve([("mug", 3)])).reservation.id)
        return (await shop.reserve([("mug", 2)], order_ref="order 9")).reservation.id

    return site.trade(trade)


def test_reconcile_archives_makes_snapshots_and_finds_nothing(site: Site, held: str) -> None:
    cli = site.cli
    done = cli.json("reconcile")
    assert (done["archived_entries"], done["snapshots"], done["damages"]) == (4, 1, [])
    assert done["audit"]["findings"] == []
    status = cli.json("archive", "status")
    assert status["url"] == str(site.archive)
    (partition,) = [one for one in status["partitions"] if one["sequence"]]
    assert (partition["sequence"], partition["archived"], partition["segments"]) == (4, 4, 1)
    (snapshot,) = cli.rows("snapshot", "list")
    assert (snapshot["sequence"], snapshot["rows"], snapshot["reservations"]) == (4, 1, 2)
    verified = cli.json("archive", "verify")
    assert (verified["operations"], verified["snapshots"], verified["damages"]) == (4, 1, [])
    again = cli.run("reconcile").stdout
    assert "Archived 0 entries" in again
    assert "clean." in again
    assert "behind" in cli.run("archive", "status").stdout
    assert cli.json("reconcile", "--no-audit")["audit"] is None


def test_what_another_process_archives_is_left_to_it(site: Site, held: str) -> None:
    async def take(shop: Shop) -> None:
        for keys in shop.inventory.keys:
            lease = Lease(shop.inventory.store, keys, "archive", owner="somebody else")
            assert await lease.renew(60_000)

    site.trade(take)
    done = site.cli.json("reconcile")
    assert (done["archived_entries"], done["busy_partitions"]) == (0, PARTITIONS)
    assert done["audit"]["findings"] == []
    assert "another process" in site.cli.run("reconcile").stderr


def test_snapshots_are_made_listed_and_pruned(site: Site, held: str) -> None:
    cli = site.cli
    for number in range(5):
        site.receive(number + 1)
        cli.run("reconcile", "--no-audit")
    made = cli.rows("snapshot", "list")
    assert [one["sequence"] for one in made] == [7, 8, 9], "the policy keeps three of a day"
    site.receive(1)
    assert "0 snapshots made" in cli.run("snapshot", "make").stdout, "nothing new is archived"
    pruned = cli.json("snapshot", "prune", "--keep-last", 2, "--daily-days", 0)
    assert sum(len(one["removed"]) for one in pruned["pruned"]) == 1
    assert cli.rows("snapshot", "list") == made[-2:]
    assert cli.run("snapshot", "list").stdout.count("\n") == 3
    for one in cli.rows("snapshot", "list"):
        (site.archive / one["path"]).unlink()
    assert [one["header"]["sequence"] for one in cli.json("snapshot", "make")["made"]] == [9]


def test_a_flipped_byte_is_found_and_mended(site: Site, held: str) -> None:
    cli = site.cli
    cli.run("reconcile")
    (segment,) = site.segments()
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
    found = cli.json("archive", "verify", expect=1)
    assert [Path(one["path"]).name for one in found["damages"]] == [segment.name]
    report = cli.json("audit", expect=1)
    assert [one["code"] for one in report["findings"]] == ["segment_damaged"]
    assert cli.json("audit", "--no-segments", "--from-snapshots")["findings"] == []
    cli.run("repair", "--apply", "--reason", "a disk fault")
    assert segment.read_bytes() == whole
    cli.run("archive", "verify")


def test_a_row_edited_by_hand_is_repaired_through_the_ledger(site: Site, held: str) -> None:
    cli = site.cli
    assert cli.json("audit")["findings"] == []
    row = site.trade(_row_key)
    site.run("HSET", row, "on_hand", 99)
    report = cli.json("audit", expect=1)
    (finding,) = [one for one in report["findings"] if one["code"] == "row_differs"]
    assert (finding["sku"], finding["row"]["live"]["levels"][0]) == ("mug", 99)
    shown = cli.run("audit", expect=1).stdout
    assert f"{MERCHANT}/{LOCATION}/mug" in shown
    assert "reserve at" in shown
    plan = cli.json("repair", "--plan")
    assert [step["type"] for step in plan["steps"]] == ["row"]
    assert site.on_hand() == 99, "a plan changes nothing"
    mended = cli.json("repair", "--apply", "--reason", "somebody was here", "--actor", "ops")
    assert mended["audit"]["findings"] == []
    assert site.on_hand() == 9
    last = site.trade(_last_operation)
    assert (last.kind, last.actor, last.detail[1]) == (
        OperationKind.REPAIR,
        "ops",
        "somebody was here",
    )
    assert "nothing to repair" in cli.run("repair", "--apply", "--reason", "again").stdout


def test_a_place_in_a_queue_is_told_with_its_row_and_reservation(site: Site, held: str) -> None:
    queue = site.trade(_row_key).replace(":stock:", ":waiting:")
    site.run("ZADD", queue, 1, held)
    shown = site.cli.run("audit", expect=1).stdout
    assert f"queue_differs {MERCHANT}/{LOCATION}/mug/{held}" in shown
    planned = site.cli.run("repair", "--plan").stdout
    assert f"queue {MERCHANT}/{LOCATION}/mug/{held}: in the queue of mug taken out" in planned
    assert "clean." in site.cli.run("repair", "--apply", "--reason", "by hand").stdout
    assert site.run("EXISTS", queue) == 0


async def _row_key(shop: Shop) -> str:
    return shop.keys().stock(MERCHANT, LOCATION, "mug")


async def _last_operation(shop: Shop) -> Operation:
    entries = await read_entries(shop.inventory.store, shop.keys())
    return entries[-1].operations[-1]


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--plan", "--accept", "import:1"),
        ("--apply",),
        ("--accept", "import:1", "--reason", "right"),
        ("--accept", "import:1", "--merchant", "acme"),
    ],
)
def test_a_repair_that_says_too_little_is_usage(cli: CommandLine, words: tuple[str, ...]) -> None:
    assert cli.run("repair", *words, expect=2).stderr


def test_what_cannot_be_reached_has_its_exit_code(site: Site, tmp_path: Path) -> None:
    cli = site.cli
    nobody = f"unix://{tmp_path}/nobody.sock"
    blocked = tmp_path / "file"
    blocked.write_text("")
    for command in ("reconcile", "audit"):
        cli.json(command, "--redis-url", nobody, expect=3)
        down = cli.json(command, "--archive", blocked / "archive", expect=4)
        assert down["error"]["code"] == "archive_unavailable"
    del cli.environment["HOLDFAST_ARCHIVE_URL"]
    unknown = cli.json("audit", expect=4)
    assert "--archive" in unknown["error"]["detail"]
    # Once the store has been archived it says itself where.
    cli.run("reconcile", "--archive", site.archive)
    assert site.run("HGET", STORE_KEY, "archive_url") == str(site.archive).encode()
    cli.run("audit")


def test_a_wrong_variable_is_usage(cli: CommandLine) -> None:
    cli.environment["HOLDFAST_SEGMENT_AGE_SECONDS"] = "a while"
    assert "HOLDFAST_SEGMENT_AGE_SECONDS" in cli.run("reconcile", expect=2).stderr


def test_an_import_is_looked_at_and_taken_back(site: Site, held: str) -> None:
    cli = site.cli

    async def spoil(shop: Shop) -> None:
        movement = Movement(
            key=new_key(),
            location=LOCATION,
            type=MovementType.RECEIVE,
            sku="mug",
            quantity=1_000,
            reference="import:spring",
        )
        await shop.inventory.move(MERCHANT, movement, actor="import")

    site.trade(spoil)
    planned = cli.json("rebuild", "--without", "import:spring", "--plan")
    assert (planned["blast"]["rows_differing"], planned["blast"]["units_taken"]) == (1, 1_000)
    assert "1,000" in cli.run("rebuild", "--without", "import:spring", "--plan").stdout
    assert site.on_hand() == 1_009
    cli.run("rebuild", "--without", "import:spring", expect=2)
    undone = cli.json("rebuild", "--without", "import:spring", "--reason", "wrong file")
    assert (undone["rows"], undone["unsettled"]) == (1, [])
    assert site.on_hand() == 9
    again = cli.json("rebuild", "--without", "import:spring", "--reason", "wrong file")
    assert again["rows"] == 0


def test_a_store_is_rebuilt_beside_the_old_one(site: Site, new_site: Site, held: str) -> None:
    cli = new_site.cli
    before = datetime(2020, 1, 1, tzinfo=UTC)
    cli.environment |= {
        "HOLDFAST_ARCHIVE_URL": str(site.archive),
        "HOLDFAST_LIVE_REDIS_USERNAME": site.real.settings.username,
        "HOLDFAST_LIVE_REDIS_PASSWORD": site.real.settings.password,
    }
    words = ("rebuild", "--live", site.real.settings.url)
    planned = cli.json(*words, "--plan")
    assert planned["problems"] == []
    assert sum(part["rows"] for part in planned["parts"]) == 1
    assert "1 rows" in cli.run(*words, "--plan").stdout
    early = cli.json(*words, "--plan", "--until", before.isoformat())
    assert early["until"]["at_ms"] == before.timestamp() * 1_000
    assert sum(part["dropped"] for part in early["parts"]) == 4
    partition = site.trade(_partition)
    cut = cli.json(*words, "--plan", "--until", f"{partition}:1")
    assert sum(part["dropped"] for part in cut["parts"]) == 3
    result = cli.json(*words)
    assert (result["rows"], result["reservations"]) == (1, 2)
    assert new_site.on_hand() == site.on_hand() == 9
    new_site.trade(lambda shop: shop.commit(held))
    assert new_site.on_hand() == 7
    assert cli.json("audit")["findings"] == []
    # The old store is fenced, until somebody says that it shall go on.
    with pytest.raises(StoreReadOnly):
        site.receive(1)
    cli.run(*words, "--lift-fence")
    site.receive(1)


async def _partition(shop: Shop) -> int:
    return shop.keys().partition


def test_rebuilding_into_a_store_that_is_not_empty_is_refused(site: Site, held: str) -> None:
    refused = site.cli.json("rebuild", expect=1)
    assert refused["error"]["code"] == "rebuild_refused"
    site.cli.run("rebuild", "--lift-fence", expect=2)
    site.cli.run("rebuild", "--until", "soon", expect=2)
