"""`holdfast feed` and `holdfast feeds`: files of events, sources, quarantine, and policies."""

from pathlib import Path
from typing import Any, Final

import click

from engine.limits import MAX_PAGE
from engine.policies import OnShortfall, WhenOffline
from holdfast import feed_calls
from holdfast.cli.connection import (
    Service,
    json_option,
    limit_option,
    merchant_option,
    service_options,
)
from holdfast.cli.exit_codes import ExitCode
from holdfast.cli.output import Output, moment
from holdfast.epcis import SUPPLIES
from holdfast.feed_file import send_file

MAX_GAPS_SHOWN: Final = 3

location_option = click.option("--location", "-l", required=True, help="The location.")


@click.group(short_help="Tills and suppliers: sources, gaps, quarantine, policies.")
def feeds() -> None:
    """Look after the sources of events: tills and suppliers."""


@feeds.command("list", short_help="List a location's sources.")
@merchant_option
@location_option
@service_options
@json_option
def list_sources(service: Service, merchant: str, location: str, output: Output) -> None:
    """List the sources of a location: their states, what is missing, how far they are behind."""
    with service.client() as client:
        found = client.send(feed_calls.sources(merchant, location))
    if output.as_json:
        output.document(found)
        return
    output.table(
        ["source", "state", "heard", "behind s", "up to", "highest", "missing", "gaps"],
        [
            [
                source.source,
                source.state.value,
                moment(source.heard_at),
                "-" if source.lag_seconds is None else f"{source.lag_seconds:.0f}",
                source.watermark if source.counts else "-",
                source.highest if source.counts else "-",
                source.missing if source.counts else "-",
                _gaps(source.gaps),
            ]
            for source in found.data
        ],
    )
    output.text(f"{found.quarantined:,} events were set aside.")


@feeds.command(short_help="Give up on events that have not come.")
@merchant_option
@location_option
@click.option("--source", required=True, help="The source whose events are missing.")
@click.option(
    "--through",
    type=click.IntRange(min=1),
    required=True,
    help="Give up on all numbers up to this one that have not come.",
)
@service_options
@json_option
def skip(
    service: Service, merchant: str, location: str, source: str, through: int, output: Output
) -> None:
    """Give up on the sequence numbers of a source that have not come."""
    with service.client() as client:
        decision = client.send(feed_calls.skip(merchant, location, source, through=through))
    _show(decision, output)


@feeds.command(short_help="List events that were set aside.")
@merchant_option
@location_option
@limit_option(100, most=MAX_PAGE, told="How many to list.")
@service_options
@json_option
def quarantine(service: Service, merchant: str, location: str, limit: int, output: Output) -> None:
    """List the events of a location that were set aside, and why."""
    with service.client() as client:
        page = client.send(feed_calls.quarantine(merchant, location, limit=limit))
    if output.as_json:
        output.document(page)
        return
    output.table(
        ["id", "set aside", "why", "source", "event", "type", "sku", "quantity", "happened"],
        [
            [
                event.id,
                moment(event.at),
                event.why,
                event.source,
                event.event_id,
                event.type or "-",
                event.sku or "-",
                event.quantity,
                "-" if event.occurred_at is None else moment(event.occurred_at),
            ]
            for event in page.data
        ],
    )
    if page.has_more:
        output.note("There are more; --limit shows up to 500.")


@feeds.command(short_help="Book an event that was set aside.")
@click.argument("event_id", metavar="ID")
@merchant_option
@location_option
@service_options
@json_option
def retry(service: Service, event_id: str, merchant: str, location: str, output: Output) -> None:
    """Look at the event ID anew, and book it if nothing speaks against it any more."""
    with service.client() as client:
        decision = client.send(feed_calls.decide(merchant, location, event_id, "retry"))
    _show(decision, output)


@feeds.command(short_help="Give up on an event that was set aside.")
@click.argument("event_id", metavar="ID")
@merchant_option
@location_option
@service_options
@json_option
def drop(service: Service, event_id: str, merchant: str, location: str, output: Output) -> None:
    """Give up on the event ID; the ledger keeps it."""
    with service.client() as client:
        decision = client.send(feed_calls.decide(merchant, location, event_id, "drop"))
    _show(decision, output)


@feeds.command(short_help="Show or set what is done about late and missing events.")
@merchant_option
@click.option("--location", "-l", help="Decide for this location only.")
@click.option("--late-hours", type=int, help="How late an event may be.")
@click.option("--heartbeat-seconds", type=int, help="How long a source may be silent.")
@click.option("--gap-grace-seconds", type=int, help="How long an event may be missing.")
@click.option(
    "--on-shortfall",
    type=click.Choice([choice.value for choice in OnShortfall]),
    help="What becomes of promises when fewer units are there.",
)
@click.option(
    "--when-offline",
    type=click.Choice([choice.value for choice in WhenOffline]),
    help="What may be promised where the tills are silent.",
)
@click.option("--confidence-percent", type=float, help="Of the offline buffer.")
@click.option("--reset", is_flag=True, help="Forget what was decided before.")
@service_options
@json_option
def policy(
    service: Service,
    merchant: str,
    location: str | None,
    reset: bool,
    output: Output,
    **decided: Any,
) -> None:
    """Show what is decided for a merchant or a location, and change what an option names."""
    changes = {name: value for name, value in decided.items() if value is not None}
    with service.client() as client:
        found = {} if reset else client.send(feed_calls.policy(merchant, location))
        if changes or reset:
            found = client.send(feed_calls.policy(merchant, location, {**found, **changes}))
    if output.as_json:
        output.document(found)
        return
    for name, value in found.items():
        output.text(f"{name:20} {value}")
    if not found:
        output.text("Nothing is decided here: the wider place or the defaults decide.")


def _show(decision: feed_calls.Decision, output: Output) -> None:
    output.document(decision)
    if not output.as_json:
        output.text(f"{decision.verdict.value}{': ' if decision.why else ''}{decision.why}")


def _gaps(gaps: tuple[feed_calls.Missing, ...]) -> str:
    shown = [
        str(gap.first) if gap.first == gap.last else f"{gap.first}-{gap.last}"
        for gap in gaps[:MAX_GAPS_SHOWN]
    ]
    more = [f"and {len(gaps) - MAX_GAPS_SHOWN} more"] if len(gaps) > MAX_GAPS_SHOWN else []
    return ", ".join([*shown, *more]) or "-"


@click.command(short_help="Send a file of events.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@merchant_option
@location_option
@click.option("--source", required=True, help="The till or supplier that tells of them.")
@click.option(
    "--supply-from",
    type=click.Choice([*SUPPLIES, "none"]),
    help="What names the supply of a receipt in an EPCIS document: the despatch advice or the "
    "purchase order. Else the advice, or where there is none the order.",
)
@service_options
@json_option
def feed(
    service: Service,
    file: Path,
    merchant: str,
    location: str,
    source: str,
    supply_from: str | None,
    output: Output,
) -> None:
    """Send the events of FILE: a CSV, or an EPCIS 2.0 document (.json).

    May be repeated: an event is booked once. Exit code 1 where some were not booked.
    """
    with service.client() as client, output.progress("events") as bar:
        done = 0

        def on_sent(count: int) -> None:
            nonlocal done
            done += count
            bar.show("sent", done, None)

        report = send_file(
            client,
            file,
            merchant=merchant,
            location=location,
            source=source,
            on_sent=on_sent,
            supplies=SUPPLIES if supply_from is None else (supply_from,),
        )
    output.document(report)
    if not output.as_json:
        output.text(
            f"{report.events:,} events: {report.applied:,} applied, {report.duplicate:,} had come "
            f"before, {report.superseded:,} superseded, {report.quarantined:,} set aside, "
            f"{report.rejected:,} rejected"
        )
        for problem in report.problems:
            output.note(f"{problem.place} ({problem.event_id or 'no id'}): {problem.detail}")
    if report.quarantined or report.rejected:
        raise click.exceptions.Exit(ExitCode.REFUSED)
