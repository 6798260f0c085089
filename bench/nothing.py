"""The do-nothing server: run as a module, with the descriptor of the socket to listen on.

It decodes and encodes the same structs as the gateway's hottest routes, through the same server
with the same settings, and does nothing in between.
"""

import asyncio
import socket
import sys

import msgspec
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engine.model import Line, Reservation, ReservationState, Row
from gateway import reservation_wire, wire

_LOCATION = "/v1/merchants/{merchant}/locations/{location}"
_JSON = "application/json"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(reservation_wire.ReserveRequest).decode

_ROW = wire.stock(Row("bench", "store-0", "sku-0", 1_000_000_000, 12_345, 0, 0, 12_346))
_RESERVATION = reservation_wire.reservation(
    Reservation(
        id="rsv_0_0123456789abcdef01234567",
        merchant="bench",
        location="store-0",
        state=ReservationState.HELD,
        lines=(Line("sku-0", 1),),
        missing=(),
        order_ref="",
        actor="bench",
        created_at_ms=1_795_448_284_123,
        expires_at_ms=1_795_449_184_123,
    )
)


async def read(_: Request) -> Response:
    """Answer a row."""
    return Response(_encode(_ROW), media_type=_JSON)


async def reserve(request: Request) -> Response:
    """Decode a reserve, and answer a reservation."""
    _decode(await request.body())
    return Response(_encode(_RESERVATION), 201, media_type=_JSON)


app = Starlette(
    routes=[
        Route(_LOCATION + "/stock/{sku}", read, methods=["GET"]),
        Route(_LOCATION + "/reservations", reserve, methods=["POST"]),
    ]
)


def main() -> None:
    """Serve until SIGTERM."""
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
    )
    listener = socket.socket(fileno=int(sys.argv[1]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
