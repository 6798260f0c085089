"""Times on the command line."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

Command = Callable[..., Any]


def parse_moment(text: str) -> datetime:
    """Read a time of ISO 8601; one without an offset is in UTC, a date alone is its midnight.

    Raises click.BadParameter, so it may be an option's type.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is no time such as 2026-11-23, 2026-11-23T15:38 or 2026-11-23T15:38:04.123Z"
        ) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def time_ms_of(moment: datetime) -> int:
    """Return ms since 1970."""
    return round(moment.timestamp() * 1_000)


def time_options(command: Command) -> Command:
    """Add `--from` and `--to`; the command gets a `from_time` and a `to_time`."""
    since = click.option(
        "--from", "from_time", type=parse_moment, metavar="TIME", help="From this moment on."
    )
    until = click.option(
        "--to", "to_time", type=parse_moment, metavar="TIME", help="Before this moment."
    )
    return since(until(command))
