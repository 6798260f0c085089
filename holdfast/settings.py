"""What `holdfast serve` is told: by flags, and for what they leave open by the environment.

A variable that starts with HOLDFAST_ and means nothing is refused: a misspelt setting that is
silently ignored is worse than one that stops the start.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import msgspec

from engine.keys import MAX_PARTITIONS
from reconciler.settings import MAX_AUDIT_ROWS_PER_SECOND, MAX_SECONDS, ReconcilerSettings

PREFIX: Final = "HOLDFAST_"

MAX_WORKERS: Final = 64
"""Gateway processes on one machine; more than its cores only cost memory."""

NO_INDEX: Final = "none"
"""The `index_url` of a service that keeps no availability index."""

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("auto", "text", "json")

_SCHEMES: Final = ("redis", "rediss", "unix")
_TRUE: Final = ("1", "true", "yes", "on")
_FALSE: Final = ("0", "false", "no", "off")
_MAX_SUGGESTIONS: Final = 2
_UPKEEP: Final = ReconcilerSettings()

OTHER_VARIABLES: Final = (
    "HOLDFAST_API_KEY",
    "HOLDFAST_LIVE_REDIS_PASSWORD",
    "HOLDFAST_LIVE_REDIS_USERNAME",
    "HOLDFAST_LISTEN_FD",
    "HOLDFAST_MERCHANT",
    "HOLDFAST_PROCESS",
    "HOLDFAST_REQUIRE_POSTGRES",
    "HOLDFAST_REQUIRE_PROMTOOL",
    "HOLDFAST_REQUIRE_REDIS7",
    "HOLDFAST_SALES_CSV",
    "HOLDFAST_TEST_PROFILE",
    "HOLDFAST_URL",
)
"""Read by the client commands, by the children of `serve` and by the tests."""


class SettingProblem(msgspec.Struct, frozen=True):
    """A setting that cannot be taken. `name` is the flag or the variable that said it."""

    name: str
    found: str
    wanted: str

    def __str__(self) -> str:
        """Return it as one line."""
        return f"{self.name}: found {self.found!r}, wanted {self.wanted}"


class SettingsRefused(Exception):
    """The settings do not hold; `problems` lists all that is wrong with them."""

    def __init__(self, problems: Sequence[SettingProblem]) -> None:
        """Keep the problems, of which there is at least one."""
        self.problems = tuple(problems)
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        super().__init__(f"these settings cannot be used:{lines}")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What `serve` does.

    `redis_url` None means the embedded store, with `server` its binary where one is named. `port` 0
    takes any free one. `partitions` None takes the store's own number. `archive_url` None means a
    folder in the data directory, `index_url` None a file there, and `none` no index. See
    `reconciler.settings` for the archive and the four after it.
    """

    data_dir: Path = Path("data")
    redis_url: str | None = None
    redis_username: str = ""
    redis_password: str = ""
    server: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    partitions: int | None = None
    unsafe_durability: bool = False
    archive_url: str | None = None
    resume_window_seconds: int = _UPKEEP.resume_window_seconds
    segment_age_seconds: int = _UPKEEP.segment_age_seconds
    snapshot_interval_seconds: int = _UPKEEP.snapshot_interval_seconds
    audit_rows_per_second: int = _UPKEEP.audit_rows_per_second
    index_url: str | None = None
    webhook_loopback: bool = False
    log_level: str = "info"
    log_format: str = "auto"
    with_demo: bool = False

    @classmethod
    def read(cls, flags: Mapping[str, object], environ: Mapping[str, str]) -> Self:
        """Take each setting from its flag, or its variable, or its default.

        `flags` are by field name, None where one was not given. Raises SettingsRefused, and
        TypeError on a flag that is no setting.
        """
        unknown_flags = flags.keys() - {setting.field for setting in _SETTINGS}
        if unknown_flags:
            raise TypeError(f"no such settings: {', '.join(sorted(unknown_flags))}")
        problems = _unknown_variables(environ)
        values: dict[str, Any] = {}
        for setting in _SETTINGS:
            name, text = _said(setting, flags, environ)
            if text is None:
                continue
            try:
                values[setting.field] = setting.parse(text)
            except ValueError:
                shown = "(not shown)" if setting.secret else text
                problems.append(SettingProblem(name, shown, setting.wanted))
        if "redis_url" in values and "server" in values:
            problems.append(
                SettingProblem("--server", str(values["server"]), "either it or a store's URL")
            )
        if problems:
            raise SettingsRefused(problems)
        return cls(**values)


class _Setting(msgspec.Struct, frozen=True):
    """A setting's field, how its text is read, and what that text should be."""

    field: str
    parse: Callable[[str], object]
    wanted: str
    secret: bool = False
    variable: bool = True
    named: str = ""

    @property
    def flag(self) -> str:
        return self.named or "--" + self.field.replace("_", "-")

    @property
    def variable_name(self) -> str | None:
        return PREFIX + self.field.upper() if self.variable else None


def _text(text: str) -> str:
    if not text:
        raise ValueError("empty")
    return text


def _path(text: str) -> Path:
    return Path(_text(text)).expanduser()


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in _SCHEMES or not (parts.netloc or parts.path):
        raise ValueError("no store's URL")
    return text


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text) if text.isascii() and text.isdecimal() else -1
        if not least <= number <= most:
            raise ValueError("out of range")
        return number

    return parse


def _one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError("no such choice")
        return text.lower()

    return parse


def _switch(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError("neither on nor off")


_SETTINGS: Final = (
    _Setting("data_dir", _path, "a directory"),
    _Setting("redis_url", _url, "redis://, rediss:// or unix://, and an address", secret=True),
    _Setting("redis_username", str, "a user name"),
    _Setting("redis_password", str, "a password", secret=True),
    _Setting("server", _path, "the path of a valkey-server or redis-server"),
    _Setting("host", _text, "an address to listen on"),
    _Setting("port", _whole(0, 65_535), "0 to 65535"),
    _Setting("workers", _whole(1, MAX_WORKERS), f"1 to {MAX_WORKERS}"),
    _Setting("partitions", _whole(1, MAX_PARTITIONS), f"1 to {MAX_PARTITIONS}"),
    _Setting("unsafe_durability", _switch, "true or false"),
    _Setting("archive_url", _text, "a folder, or the URL of a bucket", named="--archive"),
    _Setting("resume_window_seconds", _whole(0, MAX_SECONDS), f"0 to {MAX_SECONDS}"),
    _Setting("segment_age_seconds", _whole(0, MAX_SECONDS), f"0 to {MAX_SECONDS}"),
    _Setting("snapshot_interval_seconds", _whole(1, MAX_SECONDS), f"1 to {MAX_SECONDS}"),
    _Setting(
        "audit_rows_per_second",
        _whole(0, MAX_AUDIT_ROWS_PER_SECOND),
        f"0 to {MAX_AUDIT_ROWS_PER_SECOND}",
    ),
    _Setting(
        "index_url", _text, "a file, a postgresql:// URL, or none", named="--index", secret=True
    ),
    _Setting("webhook_loopback", _switch, "true or false"),
    _Setting("log_level", _one_of(LOG_LEVELS), ", ".join(LOG_LEVELS)),
    _Setting("log_format", _one_of(LOG_FORMATS), ", ".join(LOG_FORMATS)),
    _Setting("with_demo", _switch, "true or false", variable=False),
)

KNOWN_VARIABLES: Final = frozenset(OTHER_VARIABLES).union(
    setting.variable_name for setting in _SETTINGS if setting.variable_name is not None
)
"""Every variable of the prefix that means something to some part of Holdfast."""


def _said(
    setting: _Setting, flags: Mapping[str, object], environ: Mapping[str, str]
) -> tuple[str, str | None]:
    """Return who says what a setting is, and its text; None where nobody does."""
    flag = flags.get(setting.field)
    if flag is not None:
        return setting.flag, str(flag)
    variable = setting.variable_name
    if variable is None or environ.get(variable, "") == "":
        return setting.flag, None
    return variable, environ[variable]


def _unknown_variables(environ: Mapping[str, str]) -> list[SettingProblem]:
    problems = []
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in KNOWN_VARIABLES:
            close = difflib.get_close_matches(name, sorted(KNOWN_VARIABLES), n=_MAX_SUGGESTIONS)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            problems.append(SettingProblem(name, "set", f"no such variable{hint}"))
    return problems
