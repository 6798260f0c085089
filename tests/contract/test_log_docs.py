"""docs/reference/logs.md against every call of a logger in the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = (ROOT / "docs" / "reference" / "logs.md").read_text("utf-8")
FOLDERS: Final = ("engine", "gateway", "holdfast", "projection", "reconciler")
LEVELS: Final = {"debug": "debug", "info": "info", "warning": "warning", "error": "error"} | {
    "exception": "error"
}

Event = tuple[str, str, tuple[str, ...]]
"""What is said, at which level, with which fields."""

_ROW = re.compile(r"^\| (.+?) \| (info|warning|error) \| (.*?) ?\|", re.MULTILINE)


def logged() -> Iterator[Event]:
    for folder in FOLDERS:
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    yield from events_of(node, node.func)


def events_of(call: ast.Call, function: ast.Attribute) -> Iterator[Event]:
    owner = function.value
    name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
    if name not in ("log", "_log") or function.attr not in LEVELS:
        return
    said = call.args[0]
    texts = [said.body, said.orelse] if isinstance(said, ast.IfExp) else [said]
    fields = tuple(
        keyword.arg for keyword in call.keywords if keyword.arg not in (None, "exc_info")
    )
    for text in texts:
        # An event has a name, and what differs from one to the next is in its fields.
        assert isinstance(text, ast.Constant), ast.unparse(call)
        yield str(text.value), LEVELS[function.attr], tuple(map(str, fields))


def test_the_page_has_every_event_with_its_fields_and_no_other() -> None:
    section = PAGE.partition("## All events")[2]
    told = {
        (event, level, tuple(re.findall(r"`(\w+)`", fields)))
        for event, level, fields in _ROW.findall(section)
    }
    assert told == set(logged())
