"""`holdfast serve` and `holdfast demo`."""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import click

from holdfast.cli.connection import Service, json_option, service_options
from holdfast.cli.exit_codes import ExitCode
from holdfast.cli.output import Output
from holdfast.client import RetryPolicy
from holdfast.demo import DAY_SECONDS, Demo, DemoSettings
from holdfast.settings import LOG_FORMATS, LOG_LEVELS, Settings
from holdfast.supervisor import EXIT_FORCED, EXIT_OK, run

STATUS_SECONDS: Final = 1.0
QUIET_STATUS_SECONDS: Final = 30.0
"""Between two status lines where standard error is no terminal but somebody's log."""


@click.command(short_help="Run the service.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the embedded store and the admin key live.  [default: data]",
)
@click.option("--redis-url", help="A Redis or Valkey to use instead of the embedded store.")
@click.option("--redis-username", help="The user on that store.")
@click.option(
    "--server",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The valkey-server or redis-server to embed.  [default: the one that is installed]",
)
@click.option("--host", help="The address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="The port to listen on; 0 for any.  [default: 8080]")
@click.option("--workers", type=int, help="Gateway processes.  [default: 1]")
@click.option(
    "--partitions", type=int, help="Partitions of a new store, fixed for its life.  [default: 16]"
)
@click.option(
    "--unsafe-durability",
    is_flag=True,
    default=None,
    help="Serve from a store that may lose acknowledged writes in a crash.",
)
@click.option(
    "--archive",
    "archive_url",
    help="Where the ledger is archived: a folder, or the URL of a bucket such as s3://name/prefix."
    "  [default: archive in the data directory]",
)
@click.option(
    "--index",
    "index_url",
    help="Where the availability index is: a file, a postgresql:// URL, or none."
    "  [default: index.db in the data directory]",
)
@click.option(
    "--webhook-loopback",
    is_flag=True,
    default=None,
    help="Let webhooks be sent to this machine, by http too: for development.",
)
@click.option("--log-level", type=click.Choice(LOG_LEVELS), help="What to log.  [default: info]")
@click.option("--log-format", type=click.Choice(LOG_FORMATS), help="How to log.  [default: auto]")
@click.option(
    "--with-demo", is_flag=True, default=None, help="Also run `holdfast demo` against it."
)
@json_option
def serve(output: Output, **flags: object) -> None:
    """Run the service: the store, the gateways and the background process, until Ctrl-C.

    Every option but --with-demo can be set by a variable too: HOLDFAST_PORT for --port. The
    store's password is read from HOLDFAST_REDIS_PASSWORD alone, because arguments are for all
    users of a machine to read.
    """

    def announce(line: str) -> None:
        output.document({"message": line})
        output.text(line)

    code = run(Settings.read(flags, os.environ), announce)
    ended = {EXIT_OK: ExitCode.OK, EXIT_FORCED: ExitCode.INTERRUPTED}
    sys.exit(ended.get(code, ExitCode.SETUP))


@click.command(short_help="Fill a sample shop with live shoppers.")
@service_options
@click.option("--merchant", "-m", default="demo", show_default=True, help="Whose shop it is.")
@click.option("--seed", default=1, show_default=True, help="What the draws start from.")
@click.option(
    "--carts-per-second",
    type=click.FloatRange(0.1, 500),
    default=4.0,
    show_default=True,
    help="Shoppers that arrive a second, on average.",
)
@click.option(
    "--day-seconds",
    type=click.FloatRange(10, 86_400),
    default=DAY_SECONDS,
    show_default=True,
    help="In how many seconds a shop's day passes; it begins at 10 in the morning.",
)
@click.option(
    "--seconds", type=click.FloatRange(min=0.1), help="Close after that long.  [default: never]"
)
@json_option
def demo(
    service: Service,
    merchant: str,
    seed: int,
    carts_per_second: float,
    day_seconds: float,
    seconds: float | None,
    output: Output,
) -> None:
    """Run a sample shop against a running service, until Ctrl-C.

    Some 250 items in a warehouse and three stores, and a day that passes in ten minutes: shoppers
    reserve, confirm, commit, release or forget their carts, tills sell over the counter, deliveries
    arrive, a store's line drops, an item goes viral, somebody miscounts. What is still held at the
    end expires by itself.
    """
    settings = DemoSettings(
        merchant=merchant, seed=seed, carts_per_second=carts_per_second, day_seconds=day_seconds
    )

    async def keep_open() -> None:
        # A shop waits out the restart of the service that it runs on.
        retry = RetryPolicy(max_attempts=8, max_wait_seconds=2.0)
        async with service.async_client(retry=retry) as client:
            shop = Demo(client, settings)
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.set)
            if seconds is not None:
                loop.call_later(seconds, stop.set)
            reporter = loop.create_task(_report(shop, output))
            try:
                await shop.run(stop)
            finally:
                reporter.cancel()
                with suppress(asyncio.CancelledError):
                    await reporter
        output.document(shop.counts())
        output.text(shop.counts().line())

    asyncio.run(keep_open())


async def _report(shop: Demo, output: Output) -> None:
    """Write the status line: over itself on a terminal, seldom elsewhere."""
    live = sys.stderr.isatty()
    try:
        while True:
            await asyncio.sleep(STATUS_SECONDS if live else QUIET_STATUS_SECONDS)
            output.status(shop.counts().line(), live=live)
    finally:
        if live:
            output.status("", live=True)
