"""`holdfast orders`: orders that span locations, and what sourcing knows of locations."""

from collections.abc import Callable
from typing import Any, Final

import click
import msgspec

from engine.limits import MAX_PAGE
from engine.sourcing import Strategy
from engine.wishes import Substitution
from holdfast import order_calls as calls
from holdfast.calls import Call, Line
from holdfast.cli.connection import (
    Command,
    Service,
    json_option,
    key_option,
    limit_option,
    merchant_option,
    service_options,
)
from holdfast.cli.output import Output, moment
from holdfast.cli.reservations import LINE, TTL_SECONDS, held_line
from holdfast.client import new_key
from holdfast.order_calls import LocationSourcing, Order, OrderLine, Sourcing

DEFAULT_SHOWN: Final = 50

_ID: Final = click.argument("order_id", metavar="ID")
_LATITUDE: Final = click.FloatRange(-90, 90)
_LONGITUDE: Final = click.FloatRange(-180, 180)


def _sourcing_options(
    *, default: str | None, told: str, where: str
) -> Callable[[Command], Command]:
    """Have a command say how locations are chosen; `told` is said of the strategy."""
    options = (
        click.option(
            "--strategy",
            type=click.Choice([one.value for one in Strategy]),
            default=default,
            show_default=default is not None,
            help=told,
        ),
        click.option("--latitude", type=_LATITUDE, help=f"Of the destination{where}."),
        click.option("--longitude", type=_LONGITUDE, help=f"Of the destination{where}."),
        click.option(
            "--live-only", is_flag=True, help=f"Leave out locations whose tills are silent{where}."
        ),
    )

    def take(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return take


@click.group(short_help="Hold orders that span locations.")
def orders() -> None:
    """Place, decide and follow orders whose units are at more than one location."""


class _PlacedLineType(click.ParamType[OrderLine]):
    """`SKU=QUANTITY` or `SKU=QUANTITY@LOCATION`."""

    name = "line"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> OrderLine:
        if isinstance(value, OrderLine):
            return value
        text, at, location = str(value).rpartition("@")
        # An SKU may hold an @ itself: then what stands before it is no line.
        if not at or "=" not in text:
            text, location = str(value), ""
        line = LINE.convert(text, param, ctx)
        return OrderLine(line.sku, line.quantity, location or None)


@orders.command(short_help="Hold an order, whole or not at all.")
@click.argument(
    "lines", metavar="SKU=QUANTITY[@LOCATION]...", type=_PlacedLineType(), nargs=-1, required=True
)
@merchant_option
@click.option(
    "--ttl-seconds",
    type=TTL_SECONDS,
    default=900,
    show_default=True,
    help="How long the units are held.",
)
@click.option("--order-ref", default="", help="The order that they are for.")
@click.option("--stock-only", is_flag=True, help="Promise nothing that is not on the shelf.")
@click.option("--channel", default="", help="Through which they are asked for.  [default: online]")
@click.option("--buyer", default="", help="Who buys, where a row has a cap a buyer.")
@click.option("--by", metavar="DAY", default="", help="Promise what is expected by then, too.")
@click.option(
    "--substitutes",
    type=click.Choice([one.value for one in Substitution]),
    default=Substitution.NONE.value,
    show_default=True,
    help="Whether others may stand for what runs short, by the merchant's rules.",
)
@_sourcing_options(
    default=Strategy.FEWEST_SPLITS.value,
    told="How locations are chosen for lines that name none.",
    where="",
)
@key_option("hold once")
@service_options
@json_option
def place(
    service: Service,
    lines: tuple[OrderLine, ...],
    merchant: str,
    ttl_seconds: int,
    order_ref: str,
    stock_only: bool,
    channel: str,
    buyer: str,
    by: str,
    substitutes: str,
    strategy: str,
    latitude: float | None,
    longitude: float | None,
    live_only: bool,
    idempotency_key: str | None,
    output: Output,
) -> None:
    """Hold units at as many locations as it takes: every line, or nothing (exit code 1)."""
    sourcing = _sourcing(strategy, latitude, longitude, live_only=live_only)
    call = calls.place(
        merchant,
        [msgspec.structs.replace(x, substitutes=Substitution(substitutes)) for x in lines],
        key=idempotency_key or new_key(),
        ttl_seconds=ttl_seconds,
        order_ref=order_ref,
        sourcing=sourcing,
        stock_only=stock_only,
        channel=channel,
        buyer=buyer,
        by=by,
    )
    _send(service, call, output)


@orders.command(short_help="Show one order.")
@_ID
@merchant_option
@service_options
@json_option
def show(service: Service, order_id: str, merchant: str, output: Output) -> None:
    """Show order ID and its parts; an ended one is kept for 24 hours."""
    _send(service, calls.order(merchant, order_id), output)


@orders.command("list", short_help="List a merchant's orders, the oldest first.")
@merchant_option
@click.option("--order-ref", default="", help="Only those of this reference.")
@limit_option(DEFAULT_SHOWN, most=MAX_PAGE, told="Orders to show at most.")
@service_options
@json_option
def list_all(service: Service, merchant: str, order_ref: str, limit: int, output: Output) -> None:
    """List orders. With --json it is NDJSON, one document a line."""
    with service.client() as client:
        page = client.send(calls.orders(merchant, order_ref=order_ref, limit=limit))
    for one in page.data:
        output.document(one)
    if not output.as_json:
        output.table(
            ["id", "state", "parts", "units", "order_ref", "created_at"],
            [
                [
                    one.id,
                    one.state.value,
                    len(one.parts),
                    sum(line.quantity for line in one.lines),
                    one.order_ref,
                    moment(one.created_at),
                ]
                for one in page.data
            ],
        )
    if page.has_more:
        output.note(f"There are more than {limit}.")


@orders.command(short_help="Keep an order's parts: it is placed.")
@_ID
@merchant_option
@service_options
@json_option
def confirm(service: Service, order_id: str, merchant: str, output: Output) -> None:
    """Confirm order ID: from here on none of its parts expires."""
    _send(service, calls.confirm(merchant, order_id), output)


@orders.command(short_help="Accept an order's substitutes.")
@_ID
@click.argument("skus", metavar="[SKU]...", nargs=-1)
@merchant_option
@service_options
@json_option
def accept(
    service: Service, order_id: str, skus: tuple[str, ...], merchant: str, output: Output
) -> None:
    """Accept what stands for SKU in order ID, or for all that is proposed."""
    _send(service, calls.accept(merchant, order_id, skus=skus), output)


@orders.command(short_help="Decline an order's substitutes: it is planned anew.")
@_ID
@click.argument("skus", metavar="[SKU]...", nargs=-1)
@merchant_option
@key_option("decline once")
@service_options
@json_option
def decline(
    service: Service,
    order_id: str,
    skus: tuple[str, ...],
    merchant: str,
    idempotency_key: str | None,
    output: Output,
) -> None:
    """Decline what stands for SKU in order ID, which is held anew without that, or fails."""
    call = calls.decline(merchant, order_id, key=idempotency_key or new_key(), skus=skus)
    _send(service, call, output)


@orders.command(short_help="Give back what an order holds.")
@_ID
@merchant_option
@click.option("--reason", default="", help="Why.")
@service_options
@json_option
def cancel(service: Service, order_id: str, merchant: str, reason: str, output: Output) -> None:
    """Cancel order ID; what was committed stays so."""
    _send(service, calls.cancel(merchant, order_id, reason=reason), output)


@orders.command(short_help="Hold elsewhere what a location cannot fulfil.")
@_ID
@click.argument("location")
@merchant_option
@click.option("--without", multiple=True, help="A further location to leave out; repeatable.")
@_sourcing_options(
    default=None,
    told="How locations are chosen.  [default: as the order was placed]",
    where="; with --strategy",
)
@key_option("move once")
@service_options
@json_option
def resource(
    service: Service,
    order_id: str,
    location: str,
    merchant: str,
    without: tuple[str, ...],
    strategy: str | None,
    latitude: float | None,
    longitude: float | None,
    live_only: bool,
    idempotency_key: str | None,
    output: Output,
) -> None:
    """Move what LOCATION cannot fulfil of order ID to other locations: all of it, or nothing."""
    sourcing = None
    if strategy is not None:
        sourcing = _sourcing(strategy, latitude, longitude, live_only=live_only)
    elif latitude is not None or longitude is not None or live_only:
        raise click.UsageError("name the --strategy as well")
    call = calls.resource(
        merchant,
        order_id,
        location,
        key=idempotency_key or new_key(),
        without=without,
        sourcing=sourcing,
    )
    _send(service, call, output)


@orders.command(short_help="Let the units of an order leave the shelves.")
@_ID
@click.argument("picks", metavar="[SKU=QUANTITY]...", type=LINE, nargs=-1)
@merchant_option
@click.option("--location", default="", help="Only this location's part; needed for picks.")
@service_options
@json_option
def commit(
    service: Service,
    order_id: str,
    picks: tuple[Line, ...],
    merchant: str,
    location: str,
    output: Output,
) -> None:
    """Commit order ID, or its part at --location; with SKU=QUANTITY only those were picked."""
    _send(service, calls.commit(merchant, order_id, location=location, picks=picks), output)


@orders.command(short_help="Say where a location is and which comes first.")
@click.argument("location")
@merchant_option
@click.option("--latitude", type=_LATITUDE, help="Degrees north; with --longitude.")
@click.option("--longitude", type=_LONGITUDE, help="Degrees east; with --latitude.")
@click.option("--priority", type=click.IntRange(0), help="The lowest number comes first.")
@click.option(
    "--ships", type=click.Choice(["yes", "no"]), help="Whether orders are sourced from it."
)
@service_options
@json_option
def sourcing(
    service: Service,
    location: str,
    merchant: str,
    latitude: float | None,
    longitude: float | None,
    priority: int | None,
    ships: str | None,
    output: Output,
) -> None:
    """Show what sourcing knows of LOCATION, or change what is named."""
    said = {"latitude": latitude, "longitude": longitude, "priority": priority}
    changes: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
    if ships is not None:
        changes["ships"] = ships == "yes"
    with service.client() as client:
        found = client.send(calls.location_sourcing(merchant, location))
        if changes:
            known = {name: getattr(found, name) for name in LocationSourcing.__struct_fields__}
            wanted = LocationSourcing(**(known | changes))
            found = client.send(calls.set_location_sourcing(merchant, location, wanted))
    output.document(found)
    if not output.as_json:
        place = "no coordinates"
        if found.latitude is not None:
            place = f"at {found.latitude}, {found.longitude}"
        ships_text = "ships" if found.ships else "does not ship"
        output.text(f"{location}: priority {found.priority}, {place}, {ships_text}")


def _sourcing(
    strategy: str, latitude: float | None, longitude: float | None, *, live_only: bool
) -> Sourcing:
    return Sourcing(
        strategy=Strategy(strategy), latitude=latitude, longitude=longitude, degraded=not live_only
    )


def _send(service: Service, call: Call[Order], output: Output) -> None:
    """Send a call, and show the order that it answers with."""
    with service.client() as client:
        _show(client.send(call), output)


def _show(one: Order, output: Output) -> None:
    output.document(one)
    if output.as_json:
        return
    until = f" until {moment(one.expires_at)}" if one.expires_at is not None else ""
    why = f": {one.reason}" if one.reason else ""
    output.text(f"{one.id}  {one.state.value}{until}{why}")
    for part in one.parts:
        instead = f", in place of {part.replaces}" if part.replaces else ""
        why = f"({part.why}{instead})"
        output.text(f"  {part.location}  {part.state.value}  {part.reservation}  {why}")
        for line in part.lines:
            output.text(f"    {held_line(line)}")
        for sku in part.proposed:
            output.text(f"    {sku}: what stands for it is to be accepted")
        for sku in part.declined:
            output.text(f"    {sku}: what stood for it was declined")
    for short in one.missing:
        output.text(f"  {short.sku}  {short.quantity:,} units missing")
    for passed in one.passed_over:
        output.text(f"  not from {passed.location}: {passed.why}")
