"""`holdfast reserve`, `confirm`, `extend`, `amend`, `relocate`, `commit`, `release` and such."""

from itertools import islice
from typing import Any, Final

import click

from engine.limits import MAX_PAGE, MAX_TTL_MS, MIN_TTL_MS
from holdfast.calls import HeldLine, Line, Reservation
from holdfast.cli.connection import (
    Service,
    json_option,
    key_option,
    limit_option,
    merchant_option,
    service_options,
)
from holdfast.cli.output import Output, moment

DEFAULT_RESERVATIONS: Final = 100

TTL_SECONDS: Final = click.IntRange(MIN_TTL_MS // 1000, MAX_TTL_MS // 1000)


class _LineType(click.ParamType[Line]):
    """`SKU=QUANTITY`; the last `=` divides, because a SKU may hold one."""

    name = "line"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Line:
        if isinstance(value, Line):
            return value
        sku, divider, quantity = str(value).rpartition("=")
        if not divider or not sku or not (quantity.isascii() and quantity.isdecimal()):
            self.fail(f"{value!r} is not SKU=QUANTITY, such as mug-blue=2", param, ctx)
        return Line(sku, int(quantity))


LINE: Final = _LineType()


@click.command(short_help="Hold units for a cart.")
@click.argument("location")
@click.argument("lines", metavar="SKU=QUANTITY...", type=LINE, nargs=-1, required=True)
@merchant_option
@click.option(
    "--ttl-seconds",
    type=TTL_SECONDS,
    default=900,
    show_default=True,
    help="How long the units are held.",
)
@click.option("--order-ref", default="", help="The order or cart that they are for.")
@click.option("--partial", is_flag=True, help="Hold what there is where not everything fits.")
@click.option("--stock-only", is_flag=True, help="Promise nothing that is not on the shelf.")
@click.option("--channel", default="", help="Through which they are asked for.  [default: online]")
@click.option("--buyer", default="", help="Who buys, where a row has a cap a buyer.")
@click.option("--by", metavar="DAY", default="", help="Promise what is expected by then, too.")
@key_option("hold once")
@service_options
@json_option
def reserve(
    service: Service,
    location: str,
    lines: tuple[Line, ...],
    merchant: str,
    ttl_seconds: int,
    order_ref: str,
    partial: bool,
    stock_only: bool,
    channel: str,
    buyer: str,
    by: str,
    idempotency_key: str | None,
    output: Output,
) -> None:
    """Hold units at LOCATION for one cart: every line, or nothing (exit code 1)."""
    with service.client() as client:
        held = client.reserve(
            merchant,
            location,
            lines,
            key=idempotency_key,
            ttl_seconds=ttl_seconds,
            order_ref=order_ref,
            partial=partial,
            stock_only=stock_only,
            channel=channel,
            buyer=buyer,
            by=by,
        )
    _show(held, output)


@click.command(short_help="Keep a hold's units for a placed order.")
@click.argument("reservation_id", metavar="ID")
@merchant_option
@click.option("--order-ref", default="", help="The order that was placed.")
@service_options
@json_option
def confirm(
    service: Service, reservation_id: str, merchant: str, order_ref: str, output: Output
) -> None:
    """Confirm reservation ID: its order is placed, so it no longer expires."""
    with service.client() as client:
        _show(client.confirm(merchant, reservation_id, order_ref=order_ref), output)


@click.command(short_help="Give a hold more time.")
@click.argument("reservation_id", metavar="ID")
@merchant_option
@click.option("--ttl-seconds", type=TTL_SECONDS, required=True, help="How long from now.")
@key_option("extend once")
@service_options
@json_option
def extend(
    service: Service,
    reservation_id: str,
    merchant: str,
    ttl_seconds: int,
    idempotency_key: str | None,
    output: Output,
) -> None:
    """Let the hold ID live for --ttl-seconds from now."""
    with service.client() as client:
        held = client.extend(merchant, reservation_id, ttl_seconds=ttl_seconds, key=idempotency_key)
    _show(held, output)


@click.command(short_help="Hold other quantities of a reservation's lines.")
@click.argument("reservation_id", metavar="ID")
@click.argument("lines", metavar="SKU=QUANTITY...", type=LINE, nargs=-1, required=True)
@merchant_option
@click.option("--stock-only", is_flag=True, help="Promise nothing that is not on the shelf.")
@click.option("--channel", default="", help="Through which units are asked for, if none was named.")
@click.option("--buyer", default="", help="Who buys, if a row has a cap and nobody was named.")
@key_option("amend once")
@service_options
@json_option
def amend(
    service: Service,
    reservation_id: str,
    lines: tuple[Line, ...],
    merchant: str,
    stock_only: bool,
    channel: str,
    buyer: str,
    idempotency_key: str | None,
    output: Output,
) -> None:
    """Hold other quantities of the lines of reservation ID: 0 drops one, others stay."""
    with service.client() as client:
        held = client.amend(
            merchant,
            reservation_id,
            lines,
            key=idempotency_key,
            stock_only=stock_only,
            channel=channel,
            buyer=buyer,
        )
    _show(held, output)


@click.command(short_help="Hold the same at another location.")
@click.argument("reservation_id", metavar="ID")
@click.argument("location")
@merchant_option
@key_option("move once")
@service_options
@json_option
def relocate(
    service: Service,
    reservation_id: str,
    location: str,
    merchant: str,
    idempotency_key: str | None,
    output: Output,
) -> None:
    """Hold what reservation ID holds at LOCATION, or leave it where it is (exit code 1)."""
    with service.client() as client:
        _show(client.relocate(merchant, reservation_id, location, key=idempotency_key), output)


@click.command(short_help="Let a reservation's units leave the shelf.")
@click.argument("reservation_id", metavar="ID")
@click.argument("picks", metavar="[SKU=QUANTITY]...", type=LINE, nargs=-1)
@merchant_option
@service_options
@json_option
def commit(
    service: Service,
    reservation_id: str,
    picks: tuple[Line, ...],
    merchant: str,
    output: Output,
) -> None:
    """Commit reservation ID: its units leave the shelf.

    With SKU=QUANTITY only those were found, and the rest goes back: a short pick.
    """
    with service.client() as client:
        _show(client.commit(merchant, reservation_id, picks=picks), output)


@click.command(short_help="Give a reservation's units back.")
@click.argument("reservation_id", metavar="ID")
@merchant_option
@click.option("--reason", default="", help="Why.")
@service_options
@json_option
def release(
    service: Service, reservation_id: str, merchant: str, reason: str, output: Output
) -> None:
    """Release reservation ID: its units can be promised again."""
    with service.client() as client:
        _show(client.release(merchant, reservation_id, reason=reason), output)


@click.command(short_help="Show one reservation.")
@click.argument("reservation_id", metavar="ID")
@merchant_option
@service_options
@json_option
def reservation(service: Service, reservation_id: str, merchant: str, output: Output) -> None:
    """Show reservation ID; an ended one is kept for 24 hours."""
    with service.client() as client:
        _show(client.reservation(merchant, reservation_id), output)


@click.command(short_help="List a location's open reservations.")
@click.argument("location")
@merchant_option
@limit_option(DEFAULT_RESERVATIONS, most=MAX_PAGE, told="Reservations to show at most.")
@service_options
@json_option
def reservations(
    service: Service, location: str, merchant: str, limit: int, output: Output
) -> None:
    """List the held and confirmed reservations of LOCATION, oldest first.

    With --json it is NDJSON, one document a line.
    """
    with service.client() as client:
        page = client.open_reservations(merchant, location, limit=limit)
    for one in page.data:
        output.document(one)
    if not output.as_json:
        output.table(
            ["id", "state", "lines", "units", "order_ref", "expires_at"],
            [
                [
                    one.id,
                    one.state.value,
                    len(one.lines),
                    sum(line.quantity for line in one.lines),
                    one.order_ref,
                    moment(one.expires_at),
                ]
                for one in islice(page.data, limit)
            ],
        )
    if page.has_more:
        output.note(f"There are more than {limit}.")


def _show(one: Reservation, output: Output) -> None:
    output.document(one)
    if output.as_json:
        return
    until = f" until {moment(one.expires_at)}" if one.expires_at is not None else ""
    again = " (answered before)" if one.replayed else ""
    output.text(f"{one.id}  {one.state.value}{until}{again}")
    for line in one.lines:
        output.text(f"  {held_line(line)}")
    for short in one.missing:
        output.text(f"  {short.sku}  {short.quantity:,} units missing")


def held_line(line: HeldLine) -> str:
    """Write a line of a reservation: what it holds, what for, and what became of it."""
    picked = "" if line.picked is None else f", {line.picked:,} picked"
    instead = "".join(f", {one.units:,} for {one.quantity:,} {one.sku}" for one in line.stands_for)
    return f"{line.sku}  {line.quantity:,} units{instead}{_to_come(line)}{picked}"


def _to_come(line: HeldLine) -> str:
    if not line.backordered:
        return ""
    told = f", {line.backordered:,} of them backordered"
    if line.promised_by is None:
        return told
    told += f" and promised by {line.promised_by}"
    if line.expected_on == line.promised_by:
        return told
    return f"{told}, expected {'later' if line.expected_on is None else 'on ' + line.expected_on}"
