"""What the reconciler is told, by the environment that whoever starts it hands in."""

from collections.abc import Mapping
from typing import Final, Self

import msgspec

ARCHIVE_URL: Final = "HOLDFAST_ARCHIVE_URL"
RESUME_WINDOW_SECONDS: Final = "HOLDFAST_RESUME_WINDOW_SECONDS"
SEGMENT_AGE_SECONDS: Final = "HOLDFAST_SEGMENT_AGE_SECONDS"
SNAPSHOT_INTERVAL_SECONDS: Final = "HOLDFAST_SNAPSHOT_INTERVAL_SECONDS"
AUDIT_ROWS_PER_SECOND: Final = "HOLDFAST_AUDIT_ROWS_PER_SECOND"

MAX_SECONDS: Final = 30 * 86_400
MAX_AUDIT_ROWS_PER_SECOND: Final = 100_000


class SettingRefused(Exception):
    """A variable that is not of its form; the message names it and what is wanted."""


class ReconcilerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the archive is, and how often what is done.

    `archive_url` is a folder or the URL of a bucket; without one nothing is archived, and the
    store's ledger only grows. Entries stay in the store for `resume_window_seconds` after they were
    archived; a segment is written once its oldest entry is `segment_age_seconds` old, or it is
    full. `audit_rows_per_second` 0 turns the running audit off.
    """

    archive_url: str = ""
    resume_window_seconds: int = 3_600
    segment_age_seconds: int = 60
    snapshot_interval_seconds: int = 3_600
    audit_rows_per_second: int = 200

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Read the HOLDFAST_ variables above; what is missing or empty takes its default.

        Raises SettingRefused.
        """
        plain = cls()
        return cls(
            archive_url=environ.get(ARCHIVE_URL, ""),
            resume_window_seconds=_number(
                environ, RESUME_WINDOW_SECONDS, plain.resume_window_seconds
            ),
            segment_age_seconds=_number(environ, SEGMENT_AGE_SECONDS, plain.segment_age_seconds),
            snapshot_interval_seconds=_number(
                environ, SNAPSHOT_INTERVAL_SECONDS, plain.snapshot_interval_seconds, least=1
            ),
            audit_rows_per_second=_number(
                environ,
                AUDIT_ROWS_PER_SECOND,
                plain.audit_rows_per_second,
                most=MAX_AUDIT_ROWS_PER_SECOND,
            ),
        )


def _number(
    environ: Mapping[str, str],
    name: str,
    default: int,
    *,
    least: int = 0,
    most: int = MAX_SECONDS,
) -> int:
    text = environ.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal()) or not least <= int(text) <= most:
        raise SettingRefused(f"{name}: found {text!r}, wanted a whole number, {least} to {most}")
    return int(text)
