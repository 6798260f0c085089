"""Whether the process lives, and whether it can serve."""

from gateway.calls import Answer, Call
from gateway.wire import Health, Liveness

_ALIVE = Liveness(Health.OK)


async def live(_call: Call, _body: None) -> Answer:
    """Answer without asking the store."""
    return Answer(200, _ALIVE)


async def ready(call: Call, _body: None) -> Answer:
    """Answer 200 where the store gives a sign of life, else 503 with the reasons."""
    readiness = await call.service.readiness()
    return Answer(503 if readiness.reasons else 200, readiness)
