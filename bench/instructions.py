"""What a reserve costs the server in instructions, here and at another revision.

    python -m bench.instructions [--against REVISION]

Times say little about a few percent on a machine that does other things; a count of instructions
hardly varies: below one percent between runs. The server runs under Valgrind's callgrind, which is
to be installed, and takes the product's own scripts: groups of 128 holds, made before and sent one
after the other (see scripts.py). What it is compared with is the engine of another revision, out of
git, under the benchmarks as they are here; it cannot be so old that these no longer fit it.
"""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import click
import msgspec

from bench import scripts, shop
from bench.figures import Skipped
from bench.pipeline import pipeline
from bench.servers import ServerFailed
from bench.shop import MakeShop, Shop
from engine.boot import check_store
from engine.inventory import Inventory
from engine.limits import MAX_GROUP_COMMANDS
from engine.scripts import script
from engine.store import StoreSettings, close_quietly, connect
from holdfast.embedded import MALLOC_TUNABLES, find_server
from holdfast.processes import spawn

GROUPS: Final = 4
"""What is counted is the second run's as many more: both begin with the same work."""

START_SECONDS: Final = 60.0
DEADLINE_MS: Final = 60_000
"""Of one call: the server is some fifty times slower than it is otherwise."""

USER: Final = "bench"
PASSWORD: Final = "callgrind"  # noqa: S105 - of a server on a socket of its own, gone in a minute
ROOT: Final = Path(__file__).resolve().parent.parent

SHOPS: Final[dict[str, MakeShop]] = {
    "hot_row": shop.hot_row,
    "uniform": shop.one_partition(shop.uniform),
    "big_carts": shop.one_partition(shop.big_carts),
}

IGNORED: Final = shutil.ignore_patterns("__pycache__")

_TOTAL = re.compile(r"^totals: (\d+)", re.MULTILINE)


async def count(make_shop: MakeShop) -> float:
    """Return the server's instructions for a hold of this shop."""
    fewer, more = [await _instructions(make_shop(), groups) for groups in (1, 1 + GROUPS)]
    return (more - fewer) / (GROUPS * MAX_GROUP_COMMANDS)


async def _instructions(goods: Shop, groups: int) -> int:
    """Return those that a server spends in script calls, from its stocking to the last hold."""
    with TemporaryDirectory() as path:
        directory = Path(path)
        with _server(directory) as settings:
            client = connect(settings)
            try:
                await check_store(client, unsafe_durability=True)
            finally:
                await close_quietly(client)
            inventory = await Inventory.open(settings)
            try:
                await shop.stock_up(inventory, goods.rows)
                calls = await scripts.record_reserves(inventory, goods, groups * MAX_GROUP_COMMANDS)
                await inventory.store.client.execute_command("SCRIPT LOAD", script("reserve").text)
            finally:
                await inventory.close()
            await asyncio.to_thread(pipeline, settings, calls, replies_each=1, chunks_ahead=1)
        return int(_TOTAL.findall((directory / "counts").read_text())[-1])


@contextmanager
def _server(directory: Path) -> Iterator[StoreSettings]:
    """Run the server that comes with Holdfast under callgrind, empty and without a log.

    The counts are written when it ends.
    """
    socket = directory / "socket"
    argv = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={directory / 'counts'}"]
    argv += ["--toggle-collect=evalShaCommand"]
    argv += [str(find_server().path), "--port", "0", "--unixsocket", str(socket)]
    argv += ["--save", "", "--appendonly", "no", "--dir", str(directory)]
    argv += ["--user", USER, "on", f">{PASSWORD}", "~*", "&*", "+@all"]
    environment = {**os.environ, "GLIBC_TUNABLES": MALLOC_TUNABLES}
    with (directory / "output").open("wb") as output:
        process = spawn(argv, environment=environment, output=output)
    try:
        until = time.monotonic() + START_SECONDS
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > until:
                said = (directory / "output").read_text(errors="replace")
                raise ServerFailed(f"the server did not start under Valgrind: {said}")
            time.sleep(0.05)
        settings = StoreSettings.from_url(f"unix://{socket}", username=USER, password=PASSWORD)
        yield msgspec.structs.replace(
            settings, deadline_ms=DEADLINE_MS, attempt_timeout_ms=DEADLINE_MS
        )
        process.terminate()
        process.wait(timeout=START_SECONDS)
    finally:
        process.kill()
        process.wait()


async def measure() -> dict[str, float]:
    """Return instructions a hold by the name of the shop. Raises Skipped where Valgrind is not."""
    if shutil.which("valgrind") is None:
        raise Skipped("valgrind is not on PATH; Debian's package has the same name")
    return {name: await count(make_shop) for name, make_shop in SHOPS.items()}


def measure_at(tree: Path) -> dict[str, float]:
    """Return the same of the sources in a directory."""
    argv = [sys.executable, "-P", "-m", "bench.instructions", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    ran = subprocess.run(argv, env=environment, cwd=tree, stdout=subprocess.PIPE, check=False)
    if ran.returncode:
        raise click.ClickException("the other revision could not be measured, see above")
    return msgspec.json.decode(ran.stdout, type=dict[str, float])


@contextmanager
def sources_of(revision: str) -> Iterator[Path]:
    """Lay out a revision in a directory of its own, with the benchmarks as they are here."""
    argv = ["git", "-C", str(ROOT), "archive", "--format=tar", revision]
    packed = subprocess.run(argv, capture_output=True, check=False)
    if packed.returncode:
        raise click.ClickException(packed.stderr.decode(errors="replace").strip())
    with TemporaryDirectory() as path:
        with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
            archive.extractall(path, filter="data")
        tree = Path(path)
        shutil.rmtree(tree / "bench", ignore_errors=True)
        shutil.copytree(ROOT / "bench", tree / "bench", ignore=IGNORED)
        yield tree


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--against", metavar="REVISION", help="A commit, tag or branch to compare with.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as one JSON object.")
def main(*, against: str | None, as_json: bool) -> None:
    """Count the instructions of the server that a reserve takes, in groups of 128."""
    try:
        here = asyncio.run(measure())
    except Skipped as reason:
        raise click.ClickException(str(reason)) from reason
    if as_json:
        click.echo(msgspec.json.encode(here))
        return
    there = {}
    if against is not None:
        with sources_of(against) as tree:
            there = measure_at(tree)
    for name, instructions in here.items():
        compared = ""
        if name in there:
            compared = f"{there[name]:12,.0f} at {against}, {instructions / there[name]:.3f} of it"
        click.echo(f"{name:20}{instructions:12,.0f}{compared}")


if __name__ == "__main__":
    main()
