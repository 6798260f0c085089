import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from holdfast.cli import main
from holdfast.cli.exit_codes import MEANINGS, ExitCode

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
OPTION = re.compile(r"`(--[a-z-]+)`")


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


COMMANDS = dict(commands(main, "holdfast"))


def sections() -> dict[str, str]:
    """The page's text by its second-level headings."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def long_options(command: click.Command) -> set[str]:
    return {
        name
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for name in parameter.opts
        if name.startswith("--")
    }


@pytest.mark.parametrize("path", COMMANDS)
def test_a_command_has_its_section_with_just_its_options(path: str) -> None:
    section = sections()[path]
    assert set(OPTION.findall(section)) - {"--help"} == long_options(COMMANDS[path])


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_has_json_and_a_word_on_each_option(path: str) -> None:
    command = COMMANDS[path]
    assert "--json" in long_options(command)
    assert command.help
    assert command.short_help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_no_section_is_about_a_command_that_is_not_there() -> None:
    described = {title for title in sections() if title.startswith("holdfast ")}
    assert described == set(COMMANDS)


def test_a_short_option_is_named_with_its_long_one() -> None:
    for path, command in COMMANDS.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and len(parameter.opts) > 1:
                long, short = sorted(parameter.opts, key=len, reverse=True)
                assert f"`{long}`, `{short}`" in sections()[path], (path, long)


def test_the_exit_codes_are_the_documented_ones() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", sections()["Exit codes"], flags=re.MULTILINE)
    assert {ExitCode(int(code)): meaning for code, meaning in rows} == MEANINGS
    assert set(MEANINGS) == set(ExitCode)
