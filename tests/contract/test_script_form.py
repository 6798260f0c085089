"""The form that every script has: a header, checks, the line, and only then writes.

A script does not roll back, so a write before the last check would stay when that check fails.
"""

import re
from importlib.resources import files
from typing import Final

import pytest

from engine.scripts import OTHERS, VERBS, script

MOST_LOCALS: Final = 198
"""Lua 5.1 takes 200 in a function, and a script is one; those that it has for itself are left."""

THE_LINE: Final = "-- After this point nothing may fail."

READS: Final = frozenset(
    (
        "EXISTS",
        "GET",
        "GETRANGE",
        "HEXISTS",
        "HGET",
        "HGETALL",
        "HLEN",
        "HMGET",
        "STRLEN",
        "TIME",
        "TYPE",
        "XLEN",
        "XRANGE",
        "XREVRANGE",
        "ZCARD",
        "ZRANGEBYSCORE",
        "ZSCORE",
    )
)
WRITES: Final = frozenset(
    (
        "APPEND",
        "DEL",
        "HDEL",
        "HSET",
        "PEXPIRE",
        "SET",
        "SETRANGE",
        "XADD",
        "XDEL",
        "XTRIM",
        "ZADD",
        "ZREM",
    )
)

_CALL = re.compile(r"redis\.p?call\(\s*([^,)]+)")
_NAMED = re.compile(r"(?:local function (\w+)|local (\w+) = \{)")


def text_of(name: str) -> str:
    """Return a script as it lies in the folder, without its includes."""
    return files("lua").joinpath(f"{name}.lua").read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    """Split code into its outermost statements: what starts at the margin, up to the next."""
    found: list[str] = []
    for line in text.splitlines():
        if line and not line[0].isspace() and not line.startswith(("end", "}", ")")):
            found.append(line)
        elif found:
            found[-1] += "\n" + line
    return found


def commands(code: str) -> list[str]:
    """Return the commands that code calls, each in quotes; a name where it is no literal."""
    return _CALL.findall(code)


def names_of_writers(definitions: dict[str, str]) -> set[str]:
    """Return which of the definitions write, themselves or through others that do."""
    writers: set[str] = set()
    while True:
        found = {
            name
            for name, code in definitions.items()
            if any(command.strip("'") not in READS for command in commands(code))
            or any(calls(code, writer) for writer in writers - {name})
        }
        if found == writers:
            return writers
        writers = found


def calls(code: str, name: str) -> bool:
    """Return whether code calls a function, or one out of a table, of that name."""
    return re.search(rf"(?<!function )\b{name}[\[(]", code) is not None


@pytest.mark.parametrize("name", [*VERBS, *OTHERS])
def test_a_script_only_calls_commands_of_the_list(name: str) -> None:
    for command in commands(re.sub(r"--[^\n]*", "", script(name).text)):
        if command.startswith("'"):
            assert command.strip("'") in READS | WRITES, command


@pytest.mark.parametrize("name", VERBS)
def test_a_verbs_header_says_what_a_reader_needs(name: str) -> None:
    lines = text_of(name).splitlines()
    head = lines[: lines.index("-- @include group")]
    assert head[0] in ("#!lua", "#!lua flags=allow-oom")
    assert head[1].startswith(f"-- {name}: ")
    assert all(line.startswith("--") for line in head[1:])
    words = [line.split()[1].rstrip(":") for line in head[1:] if len(line.split()) > 1]
    places = [words.index(word) for word in ("Command", "Keys", "Returns", "Ledger")]
    assert places == sorted(places)


@pytest.mark.parametrize("name", OTHERS)
def test_another_scripts_header_names_its_keys_and_what_it_returns(name: str) -> None:
    head = text_of(name).split("\n\n")[0].splitlines()
    assert head[0].startswith("#!lua")
    assert head[1].startswith(f"-- {name}: ")
    words = [line.split()[1] for line in head[1:] if len(line.split()) > 1]
    assert "Returns" in words
    assert "Keys" in words or "KEYS" in words


@pytest.mark.parametrize("name", [*VERBS, *(name for name in OTHERS if name != "probe")])
def test_nothing_is_written_before_the_line(name: str) -> None:
    text = script(name).text
    if "no-writes" in text.splitlines()[0]:
        assert {command.strip("'") for command in commands(text)} <= READS
        return
    assert text.count(THE_LINE) == 1, "the line stands once"
    before, after = (re.sub(r"--[^\n]*", "", part) for part in text.split(THE_LINE))
    definitions, statements = {}, []
    for block in blocks(before):
        named = _NAMED.match(block)
        if named:
            definitions[named[1] or named[2]] = block
        else:
            statements.append(block)
    writers = names_of_writers(definitions)
    for statement in statements:
        wrong = [c for c in commands(statement) if c.strip("'") not in READS]
        assert not wrong, f"{wrong} before the line: {statement}"
        called = [writer for writer in writers if calls(statement, writer)]
        assert not called, f"{called} before the line: {statement}"
    assert writers or commands(after), "a script that may write does so after the line"


@pytest.mark.parametrize("name", VERBS)
def test_after_the_line_there_are_only_writes(name: str) -> None:
    after = re.sub(r"--[^\n]*", "", script(name).text.split(THE_LINE)[1])
    for line in filter(str.strip, after.splitlines()):
        if not line[0].isspace():
            assert re.match(r"write_\w+\(|for |end$|return table\.concat\(replies\)$", line), line


def test_the_boot_probe_tries_every_command_of_the_verbs() -> None:
    used = {
        command.strip("'")
        for verb in VERBS
        for command in commands(re.sub(r"--[^\n]*", "", script(verb).text))
        if command.startswith("'")
    }
    assert used <= {command.strip("'") for command in commands(text_of("probe"))}


def test_the_check_would_notice_an_early_write() -> None:
    definitions = {
        "reader": "local function reader() return redis.call('GET', KEYS[1]) end",
        "deep": "local function deep() redis.call('SET', KEYS[1], '1') end",
        "shallow": "local function shallow() deep() end",
    }
    assert names_of_writers(definitions) == {"deep", "shallow"}
    assert blocks("local x = 1\nif x then\n  y()\nend\nz()") == [
        "local x = 1",
        "if x then\n  y()\nend",
        "z()",
    ]


@pytest.mark.parametrize("name", [*VERBS, *OTHERS])
def test_a_script_has_no_more_local_names_than_lua_takes(name: str) -> None:
    names = 0
    for line in script(name).text.splitlines():
        if line.startswith("local function "):
            names += 1
        elif line.startswith("local "):
            names += len(line.removeprefix("local ").partition("=")[0].split(","))
    assert names <= MOST_LOCALS, "put what is used in one place only in a block of its own"
