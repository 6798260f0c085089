"""`holdfast supplies`: what is to come to a row, and who waits for it."""

from typing import Final

import click

from engine.limits import MAX_PAGE, MAX_QUANTITY
from holdfast import supply_calls as calls
from holdfast.cli.connection import (
    Service,
    json_option,
    key_option,
    limit_option,
    merchant_option,
    service_options,
)
from holdfast.cli.output import Output
from holdfast.client import new_key
from holdfast.supply_calls import SupplyChange

DEFAULT_SHOWN: Final = 50


@click.group(short_help="Say what is to come, and see who waits.")
def supplies() -> None:
    """Announce units that are expected on a day, and see who was promised them."""


@supplies.command(short_help="Announce units, or move them to another day.")
@click.argument("location")
@click.argument("sku")
@click.argument("supply")
@click.argument("expected_on", metavar="DAY")
@click.argument("quantity", type=click.IntRange(1, MAX_QUANTITY))
@merchant_option
@key_option("change once")
@service_options
@json_option
def expect(
    service: Service,
    location: str,
    sku: str,
    supply: str,
    expected_on: str,
    quantity: int,
    merchant: str,
    idempotency_key: str | None,
    output: Output,
) -> None:
    """Say that QUANTITY units of SKU are still to come to LOCATION on DAY (YYYY-MM-DD).

    SUPPLY is your name of the delivery, such as the number of the purchase order; what is said of
    it again replaces what was said before.
    """
    call = calls.expect(
        merchant,
        location,
        sku,
        supply,
        expected_on=expected_on,
        quantity=quantity,
        key=idempotency_key or new_key(),
    )
    with service.client() as client:
        _show(client.send(call), output)


@supplies.command(short_help="Say that nothing more comes with a supply.")
@click.argument("location")
@click.argument("sku")
@click.argument("supply")
@merchant_option
@key_option("change once")
@service_options
@json_option
def cancel(
    service: Service,
    location: str,
    sku: str,
    supply: str,
    merchant: str,
    idempotency_key: str | None,
    output: Output,
) -> None:
    """Say that nothing more comes to LOCATION with SUPPLY of SKU."""
    call = calls.cancel(merchant, location, sku, supply, key=idempotency_key or new_key())
    with service.client() as client:
        _show(client.send(call), output)


@supplies.command("list", short_help="List what is to come to a row.")
@click.argument("location")
@click.argument("sku")
@merchant_option
@service_options
@json_option
def list_(service: Service, location: str, sku: str, merchant: str, output: Output) -> None:
    """List what is to come to LOCATION of SKU, by the day."""
    with service.client() as client:
        found = client.send(calls.supplies(merchant, location, sku))
    output.document(found)
    if not output.as_json:
        output.table(
            ("expected on", "supply", "units"),
            [[one.expected_on, one.supply, one.quantity] for one in found.data],
        )


@supplies.command(short_help="List who waits for units of a row.")
@click.argument("location")
@click.argument("sku")
@merchant_option
@limit_option(DEFAULT_SHOWN, most=MAX_PAGE, told="How many to show.")
@service_options
@json_option
def waiting(
    service: Service, location: str, sku: str, merchant: str, limit: int, output: Output
) -> None:
    """List the reservations that wait for SKU at LOCATION, in the order in which they get it."""
    with service.client() as client:
        page = client.send(calls.waiting(merchant, location, sku, limit=limit))
    output.document(page)
    if output.as_json:
        return
    output.table(
        ("reservation", "state", "order", "units", "promised by", "expected on"),
        [
            [
                one.reservation,
                one.state.value,
                one.order_ref,
                one.units,
                one.promised_by or "-",
                one.expected_on or "-",
            ]
            for one in page.data
        ],
    )
    if page.has_more:
        output.note(f"There are more than {limit}; ask for more with --limit.")


def _show(changed: SupplyChange, output: Output) -> None:
    output.document(changed)
    if output.as_json:
        return
    row = changed.stock
    output.text(f"{row.sku} at {row.location}: {row.incoming:,} units are to come")
    for one in row.available_to_promise:
        output.text(f"  by {one.by}  {one.quantity:,} can be promised")
    for late in changed.late:
        when = "later" if late.expected_on is None else f"on {late.expected_on}"
        output.text(
            f"  {late.reservation}  {late.units:,} units promised by {late.promised_by} are "
            f"expected {when}"
        )
    if changed.late_count > len(changed.late):
        output.note(f"There are {changed.late_count:,} whose day cannot be kept.")
