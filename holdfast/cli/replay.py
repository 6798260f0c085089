"""`holdfast replay`: real sales against a running service."""

import asyncio
import secrets
import sys
from pathlib import Path

import click

from holdfast.cli.connection import Service, json_option, service_options
from holdfast.cli.exit_codes import ExitCode
from holdfast.cli.output import Output
from holdfast.client import RetryPolicy
from holdfast.replay import MerchantInUse, Replay, ReplayReport, ReplaySettings
from holdfast.sales_file import Sales, read_sales

MAX_SHOWN_BAD_ROWS = 20
MAX_CONCURRENCY = 500
SHARE = click.FloatRange(0.0, 1.0)


@click.command(short_help="Replay a file of sales and balance the account.")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--merchant", "-m", help="A merchant without stock.  [default: replay-<random>]")
@click.option("--seed", default=1, show_default=True, help="What the draws start from.")
@click.option(
    "--stock-factor",
    type=click.FloatRange(0.0, 1000.0),
    default=1.0,
    show_default=True,
    help="Opening stock, as a multiple of what was sold; below 1 it runs short.",
)
@click.option(
    "--commit",
    type=SHARE,
    default=0.9,
    show_default=True,
    help="Share of the carts that are committed.",
)
@click.option(
    "--release",
    type=SHARE,
    default=0.07,
    show_default=True,
    help="Share that is released; the rest is left to expire.",
)
@click.option(
    "--ttl-seconds",
    type=click.IntRange(1, 3600),
    default=5,
    show_default=True,
    help="How long carts that are left to expire are held.",
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0.0),
    default=0.0,
    show_default=True,
    help="Multiple of real time; 0 is as fast as possible.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, MAX_CONCURRENCY),
    default=32,
    show_default=True,
    help="Carts under way at once.",
)
@click.option(
    "--bulk-quantity",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Lines of more units are fuel and the like: replayed, and counted apart.",
)
@service_options
@json_option
def replay(
    service: Service,
    path: Path,
    merchant: str | None,
    seed: int,
    stock_factor: float,
    commit: float,
    release: float,
    ttl_seconds: int,
    speed: float,
    concurrency: int,
    bulk_quantity: int,
    output: Output,
) -> None:
    """Replay the sales in FILE and check that not one unit was lost or sold twice.

    The columns are sold_at, store_id, basket_id, sku and quantity. Opening stock is received,
    every basket is reserved as one cart and then committed, released or left to expire, and at
    the end the stock is read back: units received must be units on hand + units committed, row
    by row. Exit code 1 where they are not.
    """
    if commit + release > 1:
        raise click.UsageError("--commit and --release together are more than 1")
    run_id = secrets.token_hex(6)
    settings = ReplaySettings(
        merchant=merchant or f"replay-{run_id}",
        run_id=run_id,
        seed=seed,
        stock_factor=stock_factor,
        commit=commit,
        release=release,
        ttl_seconds=ttl_seconds,
        speed=speed,
        concurrency=concurrency,
    )
    # Before the file, which may be long: without a key there is nothing to do.
    service.api_key()
    sales = read_sales(path, bulk_quantity=bulk_quantity)
    for bad in sales.bad_rows[:MAX_SHOWN_BAD_ROWS]:
        column = f", column {bad.column}" if bad.column else ""
        output.note(f"line {bad.line}{column}: {bad.detail}; left out")
    if sales.bad_lines > MAX_SHOWN_BAD_ROWS:
        output.note(f"... and {sales.bad_lines - MAX_SHOWN_BAD_ROWS:,} more bad rows, left out")
    try:
        report = asyncio.run(_run(service, sales, settings, output))
    except MerchantInUse as fault:
        raise click.BadParameter(str(fault), param_hint="--merchant") from fault
    output.document(report)
    _tell(report, output)
    if not report.balanced:
        sys.exit(ExitCode.REFUSED)


async def _run(
    service: Service, sales: Sales, settings: ReplaySettings, output: Output
) -> ReplayReport:
    # A replay outlives a restart of the store or of a gateway.
    retry = RetryPolicy(max_attempts=12, max_wait_seconds=2.0)
    async with service.async_client(retry=retry) as client:
        with output.progress("carts") as bar:
            return await Replay(client, sales, settings, on_progress=bar.show).run()


def _tell(report: ReplayReport, output: Output) -> None:
    output.text(
        f"{report.lines:,} lines, {report.baskets:,} baskets, {report.rows:,} rows at "
        f"{report.locations:,} stores, merchant {report.settings.merchant}"
    )
    output.text(
        f"Left out: {report.zero_lines:,} lines of quantity 0, {report.bad_lines:,} bad lines. "
        f"Kept as bulk: {report.bulk_lines:,} lines of {report.bulk_units:,} units. "
        f"Split: {report.split_baskets:,} baskets."
    )
    output.text(
        f"{report.carts:,} carts: {report.committed_carts:,} committed, "
        f"{report.released_carts:,} released, {report.expired_carts:,} left to expire, "
        f"{report.refused_carts:,} refused for want of stock, {report.failed_carts:,} failed"
    )
    for code, count in sorted(report.failures.items()):
        output.text(f"  {count:,} x {code}")
    output.text(
        f"{report.drive_seconds:,.1f} s: {report.requests_per_second:,.0f} requests/s, "
        f"{report.carts_per_second:,.0f} carts/s, {report.settings.concurrency} at once"
    )
    if report.behind_schedule_seconds >= 1:
        output.text(
            f"Up to {report.behind_schedule_seconds:,.1f} s behind the file's own times: "
            "take a lower --speed or more --concurrency"
        )
    output.table(
        ["call", "calls", "p50 ms", "p95 ms", "p99 ms", "max ms"],
        [
            [name, found.calls, found.p50_ms, found.p95_ms, found.p99_ms, found.max_ms]
            for name, found in report.latency.items()
        ],
    )
    output.text(
        f"Received {report.received_units:,} = on hand {report.on_hand_units:,} + committed "
        f"{report.committed_units:,}; oversold {report.oversold_units:,}"
    )
    output.table(
        ["check", "wanted", "found", "holds"],
        [[check.name, check.wanted, check.found, check.holds] for check in report.account],
    )
    output.text("The account balances." if report.balanced else "THE ACCOUNT DOES NOT BALANCE.")
