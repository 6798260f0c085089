"""One vocabulary: the scripts' literals, the enum, the exceptions, the HTTP table and the docs."""

import inspect
import re
from importlib.resources import files
from pathlib import Path
from typing import Final

import pytest

from engine import limits, outcomes
from engine.outcomes import HoldfastError, Outcome
from engine.refusals import refusal
from engine.scripts import VERBS
from gateway import problems

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "outcomes.md"

_ANSWER = re.compile(
    r"(?:return(?: nil,)?|repl(?:y|ies)(?:\[i\])? =) \{'([a-z_]+)'|describe\w*\('([a-z_]+)'"
)
_QUOTED = re.compile(r"'([a-z_]+)'")
_CELL = re.compile(r"`([^`]+)`")

INSIDE: Final = (
    Outcome.OK,
    Outcome.REPLAYED,
    Outcome.NOT_DUE,
    Outcome.LINES_CHANGED,
    Outcome.ORDER_CHANGED,
    Outcome.TERMS,
    Outcome.SPLIT,
    Outcome.UNCLAIMED,
)
"""What is no refusal of a caller's command."""


_ANSWERING: Final = {
    "seen_reply(": "seen",
    "earlier_answer(": "making",
    "record_amendment(": "amending",
    "record_setting(": "settings",
    "refused_for_units(": "room",
}
"""Functions that return answers, and which include has them."""


def lua(path: str) -> str:
    """Return a script without its comments."""
    text = files("lua").joinpath(path).read_text(encoding="utf-8")
    return re.sub(r"--[^\n]*", "", text)


def answers(verb: str) -> set[str]:
    """Return the codes that a verb answers with, its includes' too, but for the group's."""
    text = lua(f"{verb}.lua")
    found = {one or other for one, other in _ANSWER.findall(text)}
    for function, piece in _ANSWERING.items():
        if function in text:
            found |= {one or other for one, other in _ANSWER.findall(lua(f"lib/{piece}.lua"))}
    return found


def group_answers() -> set[str]:
    """Return the codes that every verb may answer with."""
    return {one or other for one, other in _ANSWER.findall(lua("lib/group.lua"))}


def header(verb: str) -> str:
    """Return the comment block at a verb's head."""
    lines = files("lua").joinpath(f"{verb}.lua").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines[: lines.index("-- @include group")])


def returns(verb: str) -> str:
    """Return the part of the header that lists the answers."""
    return header(verb).split("-- Returns")[1].split("-- Ledger")[0]


def tables() -> list[list[list[str]]]:
    """Return the cells of each table of the page, without its heading."""
    found: list[list[list[str]]] = []
    in_table = False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            in_table = False
        elif not in_table:
            in_table = True
            found.append([])
        elif not line.startswith("|---"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def cell(text: str) -> str:
    """Return the code or name that a cell shows, "" where it is empty."""
    match = _CELL.fullmatch(text)
    return match[1] if match else ""


def documented_exceptions() -> dict[str, tuple[str, str]]:
    """Return each exception that the page names, with its status and problem code."""
    scripts, engine, _ = tables()
    rows = [row[3:] for row in scripts] + [[row[0], *row[2:]] for row in engine]
    return {cell(name): (status, cell(code)) for name, status, code in rows if cell(name)}


def exceptions() -> dict[str, type[HoldfastError]]:
    """Return the engine's refusals by name."""
    return {
        name: cls
        for name, cls in inspect.getmembers(outcomes, inspect.isclass)
        if issubclass(cls, HoldfastError) and cls is not HoldfastError
    }


def test_the_scripts_answer_with_the_codes_of_the_enum_and_no_others() -> None:
    spoken = group_answers().union(*(answers(verb) for verb in VERBS))
    assert spoken == set(Outcome)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_header_lists_its_answers(verb: str) -> None:
    told = set(_QUOTED.findall(returns(verb))) & set(Outcome)
    assert told == answers(verb)


def test_the_page_lists_every_outcome_and_who_answers_it() -> None:
    page = {cell(row[0]): set(row[1].split(", ")) for row in tables()[0]}
    spoken = {
        str(code): {verb for verb in VERBS if code in answers(verb) or code in group_answers()}
        for code in Outcome
    }
    assert page == spoken


def test_the_page_names_every_exception_with_its_code_and_status() -> None:
    assert documented_exceptions() == {
        name: (str(problems.kind_of(cls).status), cls.code) for name, cls in exceptions().items()
    }


def test_the_page_names_what_the_gateway_adds() -> None:
    page = {(cell(code), int(status)) for code, status, _ in tables()[2]}
    added = {
        (cls.code, kind.status)
        for cls, kind in problems.KINDS.items()
        if cls.__name__ not in exceptions()
    }
    assert page == added


@pytest.mark.parametrize("code", [code for code in Outcome if code not in INSIDE])
def test_each_refusal_becomes_the_exception_that_the_page_names(code: Outcome) -> None:
    replies: dict[Outcome, list[object]] = {
        Outcome.INSUFFICIENT_STOCK: ["", False, [["tea", 2, 1, True]]],
        Outcome.INSUFFICIENT_ON_HAND: ["", [["tea", 2, 1, True]]],
        Outcome.BUYER_CAP_EXCEEDED: ["", False, [["tea", 2, 1, True, "buyer"]]],
        Outcome.BACKORDER_UNFILLED: ["", [["tea", 2, 1, True]]],
        Outcome.ENDED: ["", "released", 0, 0, 5],
        Outcome.NOT_HELD: ["", "confirmed"],
        Outcome.PROPOSED: [""] * 7 + [[""] * 10 + [{"proposed": ["tea"]}]],
        Outcome.SUPPLY_NOT_FOUND: ["", ["po-1"]],
        Outcome.VERSION_CONFLICT: ["", 3],
        Outcome.LIMIT_EXCEEDED: ["", "quantity", 5],
        Outcome.INVALID: ["", "quantity"],
    }
    raised = refusal([code, *replies.get(code, [""])[1:]])
    page = {cell(row[0]): (cell(row[3]), cell(row[5])) for row in tables()[0]}
    assert page[code] == (type(raised).__name__, raised.code)


@pytest.mark.parametrize("code", INSIDE)
def test_what_is_no_refusal_has_no_exception(code: Outcome) -> None:
    with pytest.raises(ValueError, match="no refusal"):
        refusal([code])


def test_the_scripts_limits_are_the_engines() -> None:
    constants = re.findall(r"^local (MAX_\w+) = (\d+)$", lua("lib/group.lua"), re.MULTILINE)
    assert {name for name, _ in constants} >= {"MAX_QUANTITY", "MAX_TOTAL"}
    for name, value in constants:
        assert int(value) == getattr(limits, name), name


def test_the_limits_that_travel_are_those_that_the_scripts_read() -> None:
    folder = files("lua")
    paths = [f"{verb}.lua" for verb in VERBS]
    paths += [f"lib/{entry.name}" for entry in folder.joinpath("lib").iterdir()]
    read = {name for path in paths for name in re.findall(r"\blimits\.(\w+)", lua(path))}
    assert read == set(limits.script_limits())
