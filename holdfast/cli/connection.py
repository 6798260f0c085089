"""How a command finds the service and its key, or the store itself."""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote
from urllib.request import getproxies

import click
import httpx

from engine.access import parse_secret
from engine.store import StoreSettings
from holdfast.cli.output import Output
from holdfast.client import AsyncClient, Client, RetryPolicy, is_loopback
from holdfast.datadir import DataDir, read_private
from holdfast.embedded import USER

DEFAULT_URL: Final = "http://127.0.0.1:8080"
DEFAULT_DATA_DIR: Final = "data"

JSON_ASKED: Final = "holdfast.json"
"""Where a command's context says whether `--json` was given."""

Command = Callable[..., Any]


class SetupProblem(Exception):
    """Something is missing on this machine: `reason` says what, `remedy` what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        """Keep both."""
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{reason}; {remedy}")


class NotRunning(SetupProblem):
    """The embedded store is there but does not run."""


class Service:
    """Where the service answers, and the key to call it with."""

    def __init__(self, url: str, api_key_file: Path | None, data_dir: Path) -> None:
        """Keep what the command line and the environment said."""
        self.url = url
        self._api_key_file = api_key_file
        self._data_dir = data_dir

    @property
    def data_dir(self) -> DataDir:
        """The data directory, whose admin key serves where no other was given."""
        return DataDir(self._data_dir)

    def api_key(self) -> tuple[str, str]:
        """Return the key and where it was found: the file, the environment, the data directory.

        Raises SetupProblem where there is none, or one that is no key.
        """
        if self._api_key_file is not None:
            key, source = _read_key(self._api_key_file), str(self._api_key_file)
        elif os.environ.get("HOLDFAST_API_KEY"):
            key, source = os.environ["HOLDFAST_API_KEY"].strip(), "HOLDFAST_API_KEY"
        else:
            key, source = _read_key(self.data_dir.admin_key), str(self.data_dir.admin_key)
        if not key:
            raise SetupProblem(
                f"there is no API key in {source}",
                "set HOLDFAST_API_KEY, name a file with --api-key-file, or run this where the data "
                "directory of `holdfast serve` is (--data-dir)",
            )
        if parse_secret(key) is None:
            raise SetupProblem(
                f"what {source} holds is no API key",
                "a key starts with hfk_ and ends with a checksum: copy it anew, whole",
            )
        return key, source

    def client(self, *, retry: RetryPolicy | None = None) -> Client:
        """Make a client. Raises SetupProblem."""
        key = self.api_key()[0]
        try:
            return Client(self.url, key, retry=retry)
        except (ValueError, httpx.InvalidURL) as fault:
            raise click.UsageError(f"--url: {fault}") from fault

    def async_client(self, *, retry: RetryPolicy | None = None) -> AsyncClient:
        """Make an asyncio client for many calls. Raises SetupProblem."""
        key = self.api_key()[0]
        try:
            # Connections of our own are many times faster, but know nothing of proxies.
            direct = is_loopback(httpx.URL(self.url)) or not getproxies()
            return AsyncClient(self.url, key, retry=retry, direct=direct)
        except (ValueError, httpx.InvalidURL) as fault:
            raise click.UsageError(f"--url: {fault}") from fault


def store_settings(redis_url: str | None, data_dir: Path) -> StoreSettings:
    """Find the store: the one at `redis_url`, or the embedded one of a data directory.

    Raises SetupProblem where the data directory has no embedded store, and NotRunning where that
    store does not run.
    """
    if redis_url:
        return StoreSettings.from_url(
            redis_url,
            username=os.environ.get("HOLDFAST_REDIS_USERNAME", ""),
            password=os.environ.get("HOLDFAST_REDIS_PASSWORD", ""),
        )
    directory = DataDir(data_dir)
    try:
        password = read_private(directory.store_password)
    except OSError as fault:
        reason = f"{directory.store_password} cannot be read: {fault}"
        raise SetupProblem(reason, "run this as the user that runs `holdfast serve`") from fault
    if not password:
        raise SetupProblem(
            f"{directory.path} holds no store",
            "start `holdfast serve` there first, or name it with --data-dir, or name a store with "
            "--redis-url",
        )
    if not directory.store_pid.exists():
        raise NotRunning(
            f"the store in {directory.path} does not run", "start `holdfast serve` there first"
        )
    url = f"unix://{quote(str(directory.socket()))}?db=0"
    return StoreSettings.from_url(url, username=USER, password=password)


def key_option(effect: str) -> Callable[[Command], Command]:
    """Make `--idempotency-key`; `effect` is what a repeated command does with it."""
    return click.option(
        "--idempotency-key", help=f"Makes a repeated command {effect}.  [default: random]"
    )


def limit_option(
    default: int, *, most: int | None = None, told: str = "How many at most."
) -> Callable[[Command], Command]:
    """Make `--limit`, as it is `told`; of `most` where one page has to do."""
    return click.option(
        "--limit", type=click.IntRange(1, most), default=default, show_default=True, help=told
    )


def json_option(command: Command) -> Command:
    """Add `--json`; the command gets an `output`."""

    @click.option("--json", "as_json", is_flag=True, help="Write JSON on standard output.")
    @wraps(command)
    def wrapped(*args: Any, as_json: bool, **options: Any) -> Any:
        # Nested contexts share this, so the edge of the process knows it when a command fails.
        click.get_current_context().meta[JSON_ASKED] = as_json
        return command(*args, output=Output(as_json=as_json), **options)

    return wrapped


def data_dir_option(command: Command) -> Command:
    """Add `--data-dir`."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="HOLDFAST_DATA_DIR",
        default=DEFAULT_DATA_DIR,
        show_default=True,
        help="The directory of `holdfast serve`.",
    )(command)


def service_options(command: Command) -> Command:
    """Add `--url`, `--api-key-file` and `--data-dir`; the command gets a `service`."""

    @click.option(
        "--url",
        envvar="HOLDFAST_URL",
        default=DEFAULT_URL,
        show_default=True,
        help="Where the service answers.",
    )
    @click.option(
        "--api-key-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="A file that holds the API key (else HOLDFAST_API_KEY, else the data directory's).",
    )
    @data_dir_option
    @wraps(command)
    def wrapped(
        *args: Any, url: str, api_key_file: Path | None, data_dir: Path, **options: Any
    ) -> Any:
        return command(*args, service=Service(url, api_key_file, data_dir), **options)

    return wrapped


def merchant_option(command: Command) -> Command:
    """Add `--merchant`, which must be said."""
    return click.option(
        "--merchant", "-m", envvar="HOLDFAST_MERCHANT", required=True, help="Whose stock."
    )(command)


def _read_key(path: Path) -> str:
    try:
        return read_private(path) or ""
    except (OSError, UnicodeDecodeError) as fault:
        reason = f"the API key in {path} cannot be read: {fault}"
        raise SetupProblem(reason, "run this as the user that owns it, or give another") from fault
