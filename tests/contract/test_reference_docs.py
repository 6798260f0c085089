"""The pages of keys and ledger against the code, the calls for integrators, and every link."""

import asyncio
import inspect
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

import msgspec
import pytest

from engine import keys
from engine.access import Role, create_key
from engine.consumer import list_readers
from engine.feeds import SOURCE_FIELDS
from engine.keys import PartitionKeys
from engine.ledger import Levels, Operation, OperationKind, RowChange
from engine.reservations import FIELDS as RESERVATION_FIELDS
from engine.rows import ROW_FIELDS
from engine.store import close_quietly, connect
from engine.sweeper import SweeperStatus
from engine.upkeep import UpkeepStatus
from gateway import delivery
from reconciler.continuous_audit import FindingsOfPartition
from tests.gateways import GatewayProcess
from tests.shop import open_shop
from tests.stores import MakeStore, eventually, set_up

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
KEYS_PAGE: Final = (DOCS / "reference" / "keys.md").read_text("utf-8")
LEDGER_PAGE: Final = (DOCS / "reference" / "ledger.md").read_text("utf-8")
PAGES: Final = (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))

COMMAND_SECONDS: Final = 20.0

_EXAMPLE = re.compile(r"```(sh|python)\n(.*?)```\n\n```(json|text)\n(.*?)```", re.DOTALL)
_EXAMPLE_APART = re.compile(r"```python\n(.*?)```\n\n[^`].*?```text\n(.*?)```", re.DOTALL)
_RESERVATION = re.compile(r"rsv_\d+_[0-9a-f]{24}")
_VARYING = (
    (re.compile(r'"(at|as_of|\w+_at)": ?"[^"]+"'), r'"\1":"(time)"'),
    (re.compile(r'"request_id": ?"[0-9a-f]{32}"'), '"request_id":"(id)"'),
    (re.compile(r'"age_ms": ?\d+'), '"age_ms":0'),
    (re.compile(r'"source": ?"(view|store)"'), '"source":"(source)"'),
    (_RESERVATION, "(reservation)"),
)
_HEADING = re.compile(r"^(#{1,6}) (.+?)\s*$", re.MULTILINE)
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CELL = re.compile(r"`([^`]+)`")
_LEDGER_HEADER = re.compile(r"^-- Ledger\s+(\w+),.*?detail \{([^}]*)\}", re.MULTILINE)
_REPAIR_DETAIL = re.compile(
    r"^local function (repair_\w+)\(.*?\{what, reason, finding, ([^}]*)\}", re.MULTILINE | re.DOTALL
)
_META_READ = re.compile(r"local meta = redis\.call\('HMGET', [^,]+, ([^)]*)\)")
_REPAIR_ENTRY = re.compile(r"(\w+) = (repair_\w+)")


def sections(text: str) -> dict[str, str]:
    """Return a page's text by its headings, each up to the next heading of any level."""
    parts = _HEADING.split(text)
    return dict(zip(parts[2::3], parts[3::3], strict=True))


def rows(text: str) -> Iterator[list[str]]:
    """Yield the cells of each row of the tables in a text, headings included."""
    for line in text.splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def named_in(text: str, column: int) -> list[str]:
    """Return what a column of the tables names in backticks, from the top."""
    return [name for cells in rows(text) for name in _CELL.findall(cells[column])]


# Keys


def key_constants() -> dict[str, str]:
    return {
        name: value
        for name, value in vars(keys).items()
        if name.endswith("_KEY") and isinstance(value, str)
    }


def partition_keys() -> dict[str, str]:
    """Return each builder of a partition's keys with its key, the arguments by their names."""
    built = PartitionKeys(7)
    found: dict[str, str] = {}
    for name in dir(PartitionKeys):
        value = getattr(built, name)
        if name.startswith("_") or name in ("partition", "tag"):
            continue
        if callable(value):
            value = value(*inspect.signature(value).parameters)
        if isinstance(value, list):
            (prefix,) = {key.rpartition(":")[0] for key in value}
            value = f"{prefix}:kind"
        found[f"PartitionKeys.{name}"] = value.replace("{hf.7}", "{hf.p}")
    return found


def webhook_keys() -> dict[str, str]:
    """Return each builder of an endpoint's keys with its key."""
    built = keys.WebhookKeys("endpoint")
    found = {
        f"WebhookKeys.{name}": getattr(built, name)
        for name in ("state", "positions", "outbox", "retries", "dead", "log")
    }
    assert sorted(found.values()) == sorted(built.all())
    return found | {"WebhookKeys.lease": built.lease("job")}


def test_the_page_has_every_key_with_its_builder_and_no_other() -> None:
    page = {
        name: key.translate({ord("<"): None, ord(">"): None})
        for key, name in (
            (_CELL.findall(cells[0])[0], _CELL.findall(cells[2])[0])
            for cells in rows(sections(KEYS_PAGE)["All keys"])
            if cells[0] != "key"
        )
    }
    assert page == key_constants() | partition_keys() | webhook_keys()


def test_the_page_names_every_function_and_bound_of_the_keys_module() -> None:
    functions = {
        name
        for name, value in vars(keys).items()
        if callable(value)
        and not inspect.isclass(value)
        and not name.startswith("_")
        and getattr(value, "__module__", "") == keys.__name__
    }
    assert set(re.findall(r"`(\w+)\(\)`", KEYS_PAGE)) == functions
    bounds = {name for name in vars(keys) if re.fullmatch(r"[A-Z][A-Z_]*", name)}
    named = set(re.findall(r"`([A-Z][A-Z]*_[A-Z_]+)`", KEYS_PAGE))
    assert named == bounds
    assert f"`MAX_PARTITIONS` ({keys.MAX_PARTITIONS})" in KEYS_PAGE
    assert f"`{keys.PARTITION_KEYS}` (`PARTITION_KEYS`)" in KEYS_PAGE


def fields_of(*types: type[msgspec.Struct]) -> list[str]:
    return [name for one in types for name in one.__struct_fields__]


def meta_fields() -> set[str]:
    """Return the fields of `meta` that some script reads."""
    folder = files("lua")
    texts = [
        entry.read_text(encoding="utf-8")
        for place in (folder, folder.joinpath("lib"))
        for entry in place.iterdir()
        if entry.name.endswith(".lua")
    ]
    calls = [call for text in texts for call in _META_READ.findall(text)]
    return {name for call in calls for name in re.findall(r"'(\w+)'", call)}


@pytest.mark.parametrize(
    ("title", "fields"),
    [
        ("A row", [*ROW_FIELDS, "counted"]),
        ("Sources of events", SOURCE_FIELDS),
        ("A reservation", RESERVATION_FIELDS),
        ("Meta", meta_fields()),
        ("Signs of life", fields_of(SweeperStatus, UpkeepStatus)),
        ("What the audit found", fields_of(FindingsOfPartition)),
    ],
)
def test_the_page_has_every_field_of_a_key_and_no_other(title: str, fields: Iterable[str]) -> None:
    assert sorted(named_in(sections(KEYS_PAGE)[title], 0)) == sorted(fields)


# The ledger


def script_details() -> dict[str, list[str]]:
    """Return the elements of each kind's detail, as the headers of the scripts name them."""
    found: dict[str, list[str]] = {}
    for entry in files("lua").iterdir():
        if entry.name.endswith(".lua"):
            for kind, detail in _LEDGER_HEADER.findall(entry.read_text(encoding="utf-8")):
                assert kind not in found, f"{kind} has two scripts"
                found[kind] = re.sub(r"\s*\n--\s*", " ", detail).split(", ")
    return found


def kinds_of_the_page() -> dict[str, str]:
    text = LEDGER_PAGE.split("\n## The kinds\n")[1].split("\n## ")[0]
    return sections(text)


def test_the_page_the_scripts_and_the_enum_have_the_same_kinds() -> None:
    assert sorted(kinds_of_the_page()) == sorted(OperationKind)
    assert sorted(script_details()) == sorted(OperationKind)


@pytest.mark.parametrize("kind", OperationKind)
def test_the_page_has_every_element_of_a_kinds_detail_in_order(kind: OperationKind) -> None:
    page = [
        (cells[0], name)
        for cells in rows(kinds_of_the_page()[kind])
        if cells[0].isdigit()
        for name in _CELL.findall(cells[1])
    ]
    assert page == [(str(i), name) for i, name in enumerate(script_details()[kind])]


def test_the_page_has_what_each_repair_adds() -> None:
    text = files("lua").joinpath("repair.lua").read_text(encoding="utf-8")
    added = dict(_REPAIR_DETAIL.findall(text))
    repairs = dict(_REPAIR_ENTRY.findall(text.split("local REPAIRS = {")[1].split("}")[0]))
    page = {
        _CELL.findall(cells[0])[0]: ", ".join(_CELL.findall(cells[1]))
        for cells in rows(kinds_of_the_page()[OperationKind.REPAIR])
        if _CELL.match(cells[0])
    }
    assert page == {what: added[name] for what, name in repairs.items()}


def test_the_page_has_the_elements_of_an_operation_and_of_a_row() -> None:
    text = sections(LEDGER_PAGE)["An operation"]
    named = [_CELL.findall(cells[1])[0] for cells in rows(text) if cells[0].isdigit()]
    assert named == fields_of(Operation, RowChange)
    assert f"`[{', '.join(fields_of(Levels))}]`" in text


def test_the_page_has_the_fields_of_a_stream_entry() -> None:
    text = files("lua").joinpath("lib", "ledger.lua").read_text(encoding="utf-8")
    written = text.split("redis.call('XADD', LEDGER, '*', ")[1].split("array_of")[0]
    assert named_in(sections(LEDGER_PAGE)["An entry"], 0) == re.findall(r"'(\w+)'", written)


# The calls for integrators


def masked(text: str) -> str:
    """Leave out what differs from run to run."""
    for pattern, name in _VARYING:
        text = pattern.sub(name, text)
    return text


async def run(arguments: Sequence[str], environ: dict[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *arguments, env=environ, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(COMMAND_SECONDS):
        said, _ = await process.communicate()
    assert process.returncode == 0, arguments[-1]
    return said.decode()


async def test_the_calls_for_integrators_answer_as_their_page_says(make_store: MakeStore) -> None:
    store = make_store()
    await store.start()
    await set_up(store.settings)
    client = connect(store.settings)
    _, secret = await create_key(client, role=Role.ADMIN, merchant="acme", label="")
    await close_quietly(client)
    blocks = _EXAMPLE.findall((DOCS / "start" / "integrators.md").read_text("utf-8"))
    kinds = [kind for kind, *_ in blocks]
    assert kinds.count("sh") >= 5
    assert kinds.count("python") == 1
    reservation = ""
    async with GatewayProcess(store.settings) as gateway:
        await gateway.wait_until_ready()
        environ = {
            "PATH": os.environ["PATH"],
            "HOLDFAST_URL": gateway.url,
            "HOLDFAST_API_KEY": secret,
        }
        for kind, command, answer_kind, expected in blocks:
            # Which partition an id names depends on the store: the page's stands for this one's.
            shell = ["bash", "-euc", _RESERVATION.sub(reservation, command)]
            said = await run(shell if kind == "sh" else [sys.executable, "-c", command], environ)
            reservation = next(iter(_RESERVATION.findall(said)), reservation)
            if answer_kind == "json":
                assert json.loads(masked(said)) == json.loads(masked(expected)), command
            else:
                assert said == expected, command


# The pages for receivers and consumers


async def test_the_receivers_guide_checks_a_signature() -> None:
    text = (DOCS / "start" / "webhooks.md").read_text("utf-8")
    ((kind, code, _, expected),) = _EXAMPLE.findall(text)
    assert kind == "python"
    assert await run([sys.executable, "-c", code], dict(os.environ)) == expected
    waits = next(cells[1:] for cells in rows(text) if cells[0] == "after")
    seconds = {"s": 1, "min": 60, "h": 3600}
    told = tuple(int(number) * seconds[unit] for number, unit in map(str.split, waits))
    assert told == delivery.SCHEDULE_SECONDS


async def test_the_consumer_of_the_page_says_what_the_page_says(make_store: MakeStore) -> None:
    store = make_store()
    await store.start()
    await set_up(store.settings)
    blocks = _EXAMPLE_APART.findall((DOCS / "start" / "consumers.md").read_text("utf-8"))
    ((code, expected),) = blocks
    environ = {
        "PATH": os.environ["PATH"],
        "HOLDFAST_REDIS_URL": store.settings.url,
        "HOLDFAST_REDIS_USERNAME": store.settings.username,
        "HOLDFAST_REDIS_PASSWORD": store.settings.password,
    }
    async with open_shop(store.settings, "acme") as shop:
        await shop.receive("mug", 5, location="leeds")
        await shop.receive("plate", 3, location="leeds")
        running = asyncio.create_task(run([sys.executable, "-c", code], environ))

        async def follows() -> bool:
            names = await list_readers(shop.inventory.store, shop.inventory.keys)
            return [one.name for one in names] == ["out-of-stock"]

        await eventually(follows, within_seconds=COMMAND_SECONDS)
        await shop.reserve([("mug", 5)], location="leeds")
        assert await running == expected


# Links


def anchors(page: Path) -> set[str]:
    """Return the anchors that a page's headings get, as GitHub makes them."""
    found: set[str] = set()
    for _, title in _HEADING.findall(_FENCE.sub("", page.read_text("utf-8"))):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        unique, count = slug, 0
        while unique in found:
            count += 1
            unique = f"{slug}-{count}"
        found.add(unique)
    return found


def local_links(page: Path) -> list[str]:
    text = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text("utf-8")))
    return [link for link in _LINK.findall(text) if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    broken = []
    for link in local_links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        there = target.is_file() and target.is_relative_to(ROOT)
        if not there or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_index_leads_to_every_page() -> None:
    reached: set[Path] = set()
    for index in (DOCS / "README.md", DOCS / "decisions" / "README.md"):
        reached.add(index)
        targets = [link.partition("#")[0] for link in local_links(index)]
        reached |= {(index.parent / target).resolve() for target in targets}
    assert sorted(set(DOCS.rglob("*.md")) - reached) == []
