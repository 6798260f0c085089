"""docs/reference/http.md against what is served: its commands, its paths and its codes."""

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from engine.access import Role, create_key
from engine.inventory import Inventory
from engine.outcomes import HoldfastError
from engine.shortfalls import ShortfallKeeper
from engine.store import StoreSettings, close_quietly, connect
from engine.sweeper import Sweeper, sweep_warnings
from gateway.problems import KINDS
from gateway.routes import OPERATIONS
from projection.database import open_database
from projection.follower import IndexFollower
from tests.gateways import GatewayProcess
from tests.stores import MakeStore, eventually, set_up

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "http.md"
COMMAND_SECONDS: Final = 20.0

_BLOCK = re.compile(r"```sh\n(.*?)```\n\n```(json|http)\n(.*?)```", re.DOTALL)
_ORDER = re.compile(r"ord_\d+_[0-9a-f]{24}")
_RESERVATION = re.compile(r"rsv_\d+_[0-9a-f]{24}")
_VARYING = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"), "(time)"),
    (re.compile(r'"lag_seconds": ?[0-9.]+'), '"lag_seconds":"(lag)"'),
    (re.compile(r'"request_id": ?"[0-9a-f]{32}"'), '"request_id":"(id)"'),
    (re.compile(r'"id": ?"[0-9a-f]{24}"'), '"id":"(id)"'),
    (re.compile(r"job_[0-9a-f]{24}"), "(job)"),
    (re.compile(r'"age_ms": ?\d+'), '"age_ms":0'),
    (re.compile(r'"source": ?"(view|store)"'), '"source":"(source)"'),
    (_RESERVATION, "(reservation)"),
    (_ORDER, "(order)"),
    (re.compile(r'"key:[0-9A-Za-z]{8}"'), '"(actor)"'),
    (re.compile(r'"(id|key)": ?"[0-9A-Za-z]{8}"'), r'"\1":"(key)"'),
    (re.compile(r"hfk_[0-9A-Za-z]{8}_[0-9A-Za-z]{38}"), "(secret)"),
    (re.compile(r"whsec_[0-9A-Za-z+/=]+"), "(secret)"),
    (re.compile(r"test_[0-9a-f]{24}"), "(event)"),
    (re.compile(r'"duration_ms": ?[0-9]+'), '"duration_ms":0'),
    (re.compile(r'"store": ?"[a-z]+ [0-9.]+"'), '"store":"(server)"'),
)


def masked(text: str) -> str:
    for pattern, name in _VARYING:
        text = pattern.sub(name, text)
    return text


async def run(command: str, environ: dict[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        "bash", "-euc", command, env=environ, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(COMMAND_SECONDS):
        said, _ = await process.communicate()
    assert process.returncode == 0, command
    return said.decode()


@asynccontextmanager
async def swept(settings: StoreSettings, index_url: str) -> AsyncIterator[None]:
    """Sweep a store and keep its index as the background process of a whole service does."""
    inventory = await Inventory.open(settings)
    stop = asyncio.Event()
    database = open_database(index_url)
    sweeper = asyncio.create_task(Sweeper(inventory).run(stop))
    keeper = asyncio.create_task(ShortfallKeeper(inventory).run(stop))
    following = asyncio.create_task(IndexFollower(inventory, database).run(stop))

    async def tells() -> bool:
        return not await sweep_warnings(inventory.store)

    await eventually(tells, within_seconds=COMMAND_SECONDS)
    yield
    stop.set()
    await asyncio.gather(sweeper, keeper, following)
    await database.close()
    await inventory.close()


async def test_the_commands_of_the_page_answer_as_it_says(make_store: MakeStore) -> None:
    store = make_store()
    await store.start()
    await set_up(store.settings)
    client = connect(store.settings)
    _, secret = await create_key(client, role=Role.ADMIN, merchant=None, label="")
    await close_quietly(client)
    blocks = _BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) >= len(OPERATIONS)
    async with (
        GatewayProcess(store.settings) as gateway,
        swept(store.settings, gateway.index_url),
    ):
        await gateway.wait_until_ready()
        environ = {
            "PATH": os.environ["PATH"],
            "HOLDFAST_URL": gateway.url,
            "HOLDFAST_API_KEY": secret,
        }
        reservation = order = ""
        for command, kind, expected in blocks:
            # Ids differ from store to store: the page's own stands for the one made here.
            ours = _ORDER.sub(order, _RESERVATION.sub(reservation, command))
            said = await run(ours, environ)
            order = next(iter(_ORDER.findall(said)), order)
            reservation = next(iter(_RESERVATION.findall(said)), reservation)
            if kind == "json":
                assert json.loads(masked(said)) == json.loads(masked(expected)), command
            else:
                lines = masked(said.replace("\r\n", "\n")).splitlines()
                missing = [line for line in masked(expected).splitlines() if line not in lines]
                assert missing == [], command


def test_the_page_has_each_operation_and_no_other() -> None:
    headings = re.findall(r"^### ([A-Z]+) (/\S+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted((one.method, one.path) for one in OPERATIONS)


def test_the_page_has_each_code_with_its_status_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d{3}) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    served = {(cls.code, str(kind.status)) for cls, kind in KINDS.items()}
    assert sorted(rows) == sorted(served)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_the_page_names_the_role_and_the_fields_of_each_operation(operation: Any) -> None:
    text = PAGE.read_text(encoding="utf-8")
    section = text.split(f"### {operation.method} {operation.path}\n")[1].split("\n##")[0]
    if operation.role is not None:
        assert f"Role `{operation.role}`" in section
    for field in operation.header_fields:
        assert field.name in section
    for parameter in operation.query:
        assert f"`{parameter}`" in section
    for name in getattr(operation.request, "__struct_fields__", ()):
        assert name in section


def test_the_engines_refusals_are_all_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    missing = [cls for cls in HoldfastError.__subclasses__() if f"| `{cls.code}` |" not in text]
    assert missing == []
