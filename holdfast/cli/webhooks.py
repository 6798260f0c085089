"""`holdfast webhooks`: where a merchant's events are sent, and how that goes."""

from typing import Any, Final

import click

from engine.events import EventType
from engine.limits import MAX_PAGE
from engine.outbox import MAX_DEAD, MAX_LOGGED
from holdfast import webhook_calls as calls
from holdfast.cli.connection import (
    Service,
    json_option,
    key_option,
    limit_option,
    merchant_option,
    service_options,
)
from holdfast.cli.exit_codes import ExitCode
from holdfast.cli.output import Output, moment
from holdfast.client import new_key
from holdfast.webhook_calls import Webhook

DEFAULT_SHOWN: Final = 50
DEFAULT_OVERLAP_SECONDS: Final = 86_400

_ID: Final = click.argument("webhook", metavar="ID")


@click.group(short_help="Have events sent to a URL.")
def webhooks() -> None:
    """Manage a merchant's webhooks over the API; the key must be of the role `admin`."""


def _interest_options(command: Any) -> Any:
    for option in (
        click.option("--sku", "skus", multiple=True, help="Only events about this SKU; repeat."),
        click.option(
            "--location", "locations", multiple=True, help="Only events at this location; repeat."
        ),
        click.option(
            "--type",
            "types",
            multiple=True,
            type=click.Choice([one.value for one in EventType]),
            help="Only events of this type; repeat.",
        ),
    ):
        command = option(command)
    return command


@webhooks.command(short_help="Make a webhook and show its secret once.")
@click.argument("address", metavar="URL")
@_interest_options
@click.option("--description", default="", help="What it is for, to know it again.")
@key_option("make one")
@merchant_option
@service_options
@json_option
def create(
    service: Service,
    merchant: str,
    address: str,
    types: tuple[str, ...],
    locations: tuple[str, ...],
    skus: tuple[str, ...],
    description: str,
    idempotency_key: str | None,
    output: Output,
) -> None:
    """Have events sent to URL. Without filters all of the merchant's events are."""
    wanted = {
        "url": address,
        "description": description,
        "types": types,
        "locations": locations,
        "skus": skus,
    }
    with service.client() as client:
        made = client.send(calls.create(merchant, wanted, key=idempotency_key or new_key()))
    _show_secret(made, output)


@webhooks.command("list", short_help="List the webhooks and how they do.")
@merchant_option
@service_options
@json_option
def list_all(service: Service, merchant: str, output: Output) -> None:
    """List a merchant's webhooks, the oldest first; with --json as NDJSON."""
    with service.client() as client:
        found = client.send(calls.list_all(merchant)).data
    for one in found:
        output.document(_document(one))
    if not output.as_json:
        output.table(
            ["id", "status", "url", "waiting", "dead_letters", "failures", "delivered_at"],
            [
                [
                    one.id,
                    one.status + (f" ({one.reason})" if one.reason else ""),
                    one.url,
                    one.waiting,
                    one.dead_letters,
                    one.failures,
                    moment(one.delivered_at),
                ]
                for one in found
            ],
        )


@webhooks.command(short_help="Show a webhook.")
@_ID
@merchant_option
@service_options
@json_option
def show(service: Service, merchant: str, webhook: str, output: Output) -> None:
    """Show the webhook ID and how it does."""
    with service.client() as client:
        _show(client.send(calls.read(merchant, webhook)), output)


@webhooks.command(short_help="Change a webhook, pause or resume it.")
@_ID
@click.option("--to", "address", help="The URL that events are sent to from now on.")
@_interest_options
@click.option("--everything", is_flag=True, help="Send all events, whatever was filtered before.")
@click.option("--description", help="What it is for.")
@click.option("--pause", "status", flag_value="paused", help="Collect events, but send none.")
@click.option("--resume", "status", flag_value="active", help="Send again.")
@merchant_option
@service_options
@json_option
def change(
    service: Service,
    merchant: str,
    webhook: str,
    address: str | None,
    everything: bool,
    description: str | None,
    status: str | None,
    output: Output,
    **filters: tuple[str, ...],
) -> None:
    """Change the webhook ID: what is not named stays as it is."""
    wanted: dict[str, Any] = {name: [] for name in filters} if everything else {}
    wanted |= {name: values for name, values in filters.items() if values}
    named = {"url": address, "description": description, "status": status}
    wanted |= {name: value for name, value in named.items() if value is not None}
    if not wanted:
        raise click.UsageError("say what is to be changed; --help lists what can be")
    with service.client() as client:
        _show(client.send(calls.change(merchant, webhook, wanted)), output)


@webhooks.command(short_help="Remove a webhook.")
@_ID
@merchant_option
@service_options
@json_option
def delete(service: Service, merchant: str, webhook: str, output: Output) -> None:
    """Remove the webhook ID, and all events that wait for it."""
    with service.client() as client:
        client.send(calls.delete(merchant, webhook))
    output.document({"deleted": webhook})
    output.text(f"Webhook {webhook} is gone.")


@webhooks.command("rotate-secret", short_help="Make a new secret and show it once.")
@_ID
@click.option(
    "--overlap-seconds",
    type=click.IntRange(min=0),
    default=DEFAULT_OVERLAP_SECONDS,
    show_default=True,
    help="How long the old secret stays valid.",
)
@key_option("make one")
@merchant_option
@service_options
@json_option
def rotate_secret(
    service: Service,
    merchant: str,
    webhook: str,
    overlap_seconds: int,
    idempotency_key: str | None,
    output: Output,
) -> None:
    """Make a new secret for the webhook ID; meanwhile each message carries both signatures."""
    with service.client() as client:
        made = client.send(
            calls.rotate(
                merchant,
                webhook,
                overlap_seconds=overlap_seconds,
                key=idempotency_key or new_key(),
            )
        )
    _show_secret(made, output)


@webhooks.command(short_help="Send a test event now.")
@_ID
@merchant_option
@service_options
@json_option
def test(service: Service, merchant: str, webhook: str, output: Output) -> None:
    """Send one event of the type `webhook.test` to the webhook ID, and tell what came of it."""
    with service.client() as client:
        result = client.send(calls.test(merchant, webhook))
    output.document(result)
    status = "" if result.status is None else f", status {result.status}"
    output.text(f"{result.outcome}{status}, {result.duration_ms} ms")
    if not result.delivered:
        raise click.exceptions.Exit(ExitCode.REFUSED)


@webhooks.command(short_help="List the last attempts to deliver.")
@_ID
@limit_option(DEFAULT_SHOWN, most=MAX_LOGGED)
@merchant_option
@service_options
@json_option
def attempts(service: Service, merchant: str, webhook: str, limit: int, output: Output) -> None:
    """List the last attempts for the webhook ID, the newest first; with --json as NDJSON."""
    with service.client() as client:
        found = client.send(calls.attempts(merchant, webhook, limit=limit, cursor=None)).data
    for one in found:
        output.document(one)
    if not output.as_json:
        output.table(
            ["at", "type", "event", "attempt", "outcome", "status", "ms", "next"],
            [
                [
                    moment(one.at),
                    one.type,
                    one.event,
                    one.attempt,
                    one.outcome,
                    one.status,
                    one.duration_ms,
                    moment(one.next_attempt_at),
                ]
                for one in found
            ],
        )


@webhooks.command("dead-letters", short_help="List the events that were given up.")
@_ID
@limit_option(DEFAULT_SHOWN, most=MAX_DEAD)
@merchant_option
@service_options
@json_option
def dead_letters(service: Service, merchant: str, webhook: str, limit: int, output: Output) -> None:
    """List events that were given up, the oldest first; with --json as NDJSON, events and all."""
    left, cursor = limit, None
    with service.client() as client:
        for _ in range(1 + MAX_DEAD // MAX_PAGE):
            page = client.send(calls.dead_letters(merchant, webhook, limit=left, cursor=cursor))
            for one in page.data:
                output.document(one)
                if not output.as_json:
                    output.text(
                        f"{one.id}  {moment(one.given_up_at)}  {one.event.get('type')} of "
                        f"{one.event.get('subject')}: {one.reason} after {one.attempts} attempts"
                    )
            left, cursor = left - len(page.data), page.next_cursor
            if left <= 0 or cursor is None:
                break


@webhooks.command(short_help="Send given-up events again.")
@_ID
@click.argument("dead", metavar="[DEAD_LETTER]...", nargs=-1)
@merchant_option
@service_options
@json_option
def replay(
    service: Service, merchant: str, webhook: str, dead: tuple[str, ...], output: Output
) -> None:
    """Send the webhook ID its dead letters again: all, or those that are named."""
    with service.client() as client:
        result = client.send(calls.replay(merchant, webhook, dead))
    output.document(result)
    output.text(f"{result.replayed} events are on their way again.")


def _document(webhook: Webhook) -> Any:
    document = {
        name: getattr(webhook, name) for name in webhook.__struct_fields__ if name != "secret"
    }
    return document if webhook.secret is None else {**document, "secret": webhook.secret}


def _show_secret(made: Webhook, output: Output) -> None:
    output.document(_document(made))
    if not output.as_json:
        output.text(f"{made.secret}")
        output.note(f"Webhook {made.id}. Keep the secret now: it is not shown again.")


def _show(webhook: Webhook, output: Output) -> None:
    output.document(_document(webhook))
    if not output.as_json:
        rows = [
            [name, ", ".join(value) if isinstance(value, tuple) else value]
            for name, value in _document(webhook).items()
        ]
        output.table(
            ["", ""],
            [[n, moment(v) if n.endswith("_at") or "since" in n or "until" in n else v]
             for n, v in rows],
        )  # fmt: skip
