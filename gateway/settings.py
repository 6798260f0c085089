"""What the gateway process is told, all of it by the environment."""

from collections.abc import Mapping
from typing import Final, Self

import msgspec

from engine.store import StoreSettings

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8080
MAX_WORKERS: Final = 1_024
"""Gateways that share a service; more than a machine has, where several machines serve one."""
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_FORMATS: Final = ("auto", "text", "json")

_TRUE: Final = ("1", "true", "yes", "on")
_FALSE: Final = ("", "0", "false", "no", "off")


class SettingRefused(Exception):
    """A variable that is missing or not of its form; the message names it and what is wanted."""


class GatewaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where to listen, what store to serve from, and how to log.

    `listen_fd` is an inherited listening socket, in place of host and port. `partitions` None
    takes the store's own number. `workers` is how many gateways take the load of one service.
    """

    store: StoreSettings
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    listen_fd: int | None = None
    partitions: int | None = None
    workers: int = 1
    unsafe_durability: bool = False
    webhook_loopback: bool = False
    index_url: str = ""
    log_level: str = "info"
    log_format: str = "auto"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read HOLDFAST_REDIS_URL and the other HOLDFAST_ variables. Raises SettingRefused."""
        if not environ.get("HOLDFAST_REDIS_URL"):
            raise SettingRefused("HOLDFAST_REDIS_URL: set it to the store's address")
        return cls(
            store=StoreSettings.from_environment(environ),
            host=environ.get("HOLDFAST_HOST") or DEFAULT_HOST,
            port=_number(environ, "HOLDFAST_PORT", most=65_535) or DEFAULT_PORT,
            listen_fd=_number(environ, "HOLDFAST_LISTEN_FD", most=1_048_576),
            partitions=_number(environ, "HOLDFAST_PARTITIONS", most=4_096),
            workers=_number(environ, "HOLDFAST_WORKERS", most=MAX_WORKERS) or 1,
            unsafe_durability=read_switch(environ, "HOLDFAST_UNSAFE_DURABILITY"),
            webhook_loopback=read_switch(environ, "HOLDFAST_WEBHOOK_LOOPBACK"),
            index_url=environ.get("HOLDFAST_INDEX_URL", ""),
            log_level=_choice(environ, "HOLDFAST_LOG_LEVEL", LOG_LEVELS, default="info"),
            log_format=_choice(environ, "HOLDFAST_LOG_FORMAT", LOG_FORMATS, default="auto"),
        )


def _number(environ: Mapping[str, str], name: str, *, most: int) -> int | None:
    text = environ.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdecimal()) or int(text) > most:
        raise SettingRefused(f"{name}: found {text!r}, wanted a number up to {most}")
    return int(text)


def read_switch(environ: Mapping[str, str], name: str) -> bool:
    """Read a variable that is true or false, false where it is not there. Raises SettingRefused."""
    text = environ.get(name, "").lower()
    if text not in (*_TRUE, *_FALSE):
        raise SettingRefused(f"{name}: found {text!r}, wanted true or false")
    return text in _TRUE


def _choice(
    environ: Mapping[str, str], name: str, choices: tuple[str, ...], *, default: str
) -> str:
    text = environ.get(name, "").lower() or default
    if text not in choices:
        raise SettingRefused(f"{name}: found {text!r}, wanted one of {', '.join(choices)}")
    return text
