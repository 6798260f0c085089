"""`holdfast keys`: API keys, written to the store directly."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from engine.access import (
    ApiKey,
    RateLimit,
    Role,
    create_key,
    limit_key,
    list_keys,
    revoke_key,
)
from engine.store import Client, close_quietly, connect
from holdfast.cli.connection import data_dir_option, json_option, store_settings
from holdfast.cli.exit_codes import ExitCode
from holdfast.cli.output import Output, moment

Result = TypeVar("Result")
Command = Callable[..., Any]


@click.group(short_help="Create, list, limit and revoke API keys.")
def keys() -> None:
    """Manage API keys in the store itself, without asking the service.

    The store is --redis-url, or the embedded one of --data-dir while `holdfast serve` runs.
    """


def _store_options(command: Command) -> Command:
    url = click.option(
        "--redis-url",
        envvar="HOLDFAST_REDIS_URL",
        help="The store, unless it is the embedded one of --data-dir.",
    )
    return url(data_dir_option(command))


def _limit_options(command: Command) -> Command:
    rate = click.option(
        "--rate-limit", type=int, help="Units of work it may ask for in a second.  [default: any]"
    )
    burst = click.option(
        "--burst",
        type=int,
        help="Units that it may ask for at once.  [default: what a second brings]",
    )
    return rate(burst(command))


@keys.command(short_help="Make a key and show it once.")
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    required=True,
    help="What it may do.",
)
@click.option("--merchant", "-m", help="Whose data it may see.  [default: the whole platform]")
@click.option("--label", default="", help="What it is for, to know it again.")
@_limit_options
@_store_options
@json_option
def create(
    role: str,
    merchant: str | None,
    label: str,
    rate_limit: int | None,
    burst: int | None,
    redis_url: str | None,
    data_dir: Path,
    output: Output,
) -> None:
    """Make an API key. Its secret is shown this once: only a digest of it is kept."""
    limit = _limit(rate_limit, burst)

    async def make(client: Client) -> tuple[ApiKey, str]:
        return await create_key(
            client, role=Role(role), merchant=merchant, label=label, rate_limit=limit
        )

    key, secret = _with_store(redis_url, data_dir, make)
    output.document({**_document(key), "secret": secret})
    if not output.as_json:
        output.text(secret)
        output.note(f"Key {key.id} ({key.role.value}). Keep it now: it is not shown again.")


@keys.command("list", short_help="List the keys.")
@_store_options
@json_option
def list_all(redis_url: str | None, data_dir: Path, output: Output) -> None:
    """List the keys, revoked ones too, oldest first; with --json as NDJSON."""
    known = _with_store(redis_url, data_dir, list_keys)
    for key in known:
        output.document(_document(key))
    if not output.as_json:
        output.table(
            ["id", "role", "merchant", "label", "limit", "created_at", "revoked_at"],
            [
                [
                    key.id,
                    key.role.value,
                    "(all)" if key.merchant is None else key.merchant,
                    key.label,
                    _limit_text(key),
                    moment(_time(key.created_at_ms)),
                    moment(_time(key.revoked_at_ms)),
                ]
                for key in known
            ],
        )


@keys.command(short_help="Revoke a key.")
@click.argument("key_id", metavar="ID")
@_store_options
@json_option
def revoke(key_id: str, redis_url: str | None, data_dir: Path, output: Output) -> None:
    """Revoke the key ID (the eight characters after `hfk_`) for good, within two seconds."""

    async def end(client: Client) -> ApiKey | None:
        return await revoke_key(client, key_id)

    key = _found(key_id, _with_store(redis_url, data_dir, end), output)
    output.document(_document(key))
    output.text(f"Key {key.id} is revoked.")


@keys.command(short_help="Limit how much a key may ask for.")
@click.argument("key_id", metavar="ID")
@_limit_options
@click.option("--none", "lift", is_flag=True, help="Lift the limit.")
@_store_options
@json_option
def limit(
    key_id: str,
    rate_limit: int | None,
    burst: int | None,
    lift: bool,
    redis_url: str | None,
    data_dir: Path,
    output: Output,
) -> None:
    """Set or lift the rate limit of the key ID, within two seconds."""
    if lift is (rate_limit is not None):
        raise click.UsageError("Give --rate-limit, or --none to lift the limit.")
    wanted = _limit(rate_limit, burst)

    async def change(client: Client) -> ApiKey | None:
        return await limit_key(client, key_id, wanted)

    key = _found(key_id, _with_store(redis_url, data_dir, change), output)
    output.document(_document(key))
    output.text(f"Key {key.id}: {_limit_text(key) or 'no limit'}.")


def _limit(rate_limit: int | None, burst: int | None) -> RateLimit | None:
    """Make the limit that the options ask for. Raises InvalidCommand."""
    if rate_limit is None:
        if burst is not None:
            raise click.UsageError("--burst needs --rate-limit.")
        return None
    return RateLimit.of(rate_limit, burst)


def _limit_text(key: ApiKey) -> str:
    limit = key.rate_limit
    return "" if limit is None else f"{limit.per_second}/s, {limit.burst} at once"


def _found(key_id: str, key: ApiKey | None, output: Output) -> ApiKey:
    if key is None:
        output.document({"error": {"code": "key_not_found", "detail": f"there is no key {key_id}"}})
        output.note(f"There is no key {key_id}; `holdfast keys list` shows them.")
        raise click.exceptions.Exit(ExitCode.REFUSED)
    return key


def _with_store(
    redis_url: str | None, data_dir: Path, ask: Callable[[Client], Awaitable[Result]]
) -> Result:
    """Ask the store something on a connection of its own. Raises SetupProblem, HoldfastError."""
    settings = store_settings(redis_url, data_dir)

    async def run() -> Result:
        client = connect(settings)
        try:
            return await ask(client)
        finally:
            await close_quietly(client)

    return asyncio.run(run())


def _document(key: ApiKey) -> dict[str, object]:
    document: dict[str, object] = msgspec.to_builtins(key)
    return {
        **{name: item for name, item in document.items() if not name.endswith("_at_ms")},
        "created_at": _time(key.created_at_ms),
        "revoked_at": _time(key.revoked_at_ms),
    }


def _time(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)
