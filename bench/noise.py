"""A noisy merchant, as a process of its own: `python -m bench.noise HOST PORT`.

It keeps many connections asking for one row over and over, so that its own work does not stand in
the way of whoever measures a quiet merchant beside it. The key comes by the environment. It says
GOING when all connections are made, and at its end what it heard, as one line of JSON.
"""

import os
import sys
from collections import Counter
from typing import Final

import msgspec
import uvloop

from bench.http import CONNECTIONS, CREATED, ReserveRequests
from bench.load import Latency, Window, closed_loop
from bench.shop import hot_row

OVERLOAD: Final = 10
"""Times as many callers as keep a worker busy; each asks again as soon as it is answered, or when
`Retry-After` says where it was refused, as the product's own clients do."""

PAUSE_SECONDS: Final = 1.0
"""What `Retry-After` says."""

GOING: Final = b"going\n"
KEY_VARIABLE: Final = "HOLDFAST_API_KEY"


class Heard(msgspec.Struct, frozen=True):
    """What the noisy merchant was answered."""

    per_second: float
    statuses: dict[int, int]
    refused_share: float
    latency: Latency
    refusal: Latency | None


class _Announced(ReserveRequests):
    """Says when the first request is about to be sent."""

    def __call__(self, number: int, /) -> bytes:
        if number == 0:
            sys.stdout.buffer.write(GOING)
            sys.stdout.buffer.flush()
        return super().__call__(number)


async def _make_noise(host: str, port: int, window: Window) -> Heard:
    requests = _Announced(hot_row(), os.environ[KEY_VARIABLE])
    load = await closed_loop(
        (host, port),
        requests,
        connections=OVERLOAD * CONNECTIONS,
        window=window,
        pause_seconds=PAUSE_SECONDS,
    )
    load.accepted(CREATED)
    return Heard(
        load.rate_per_second,
        dict(Counter(load.statuses)),
        load.refused_share,
        load.latency,
        load.refusal,
    )


def main() -> None:
    """Make noise for as long as asked: HOST PORT WARM_UP_SECONDS SECONDS."""
    host, port, warm_up_seconds, seconds = sys.argv[1:]
    window = Window(float(warm_up_seconds), float(seconds))
    heard = uvloop.run(_make_noise(host, int(port), window))
    sys.stdout.buffer.write(msgspec.json.encode(heard) + b"\n")


if __name__ == "__main__":
    main()
