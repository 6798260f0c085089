"""Events of a till, as the tests of feeds send them."""

import json
from datetime import UTC, datetime
from typing import Any, Final

from engine.feeds import EventType, FeedEvent, Feeds, Taken
from engine.outcomes import HoldfastError
from tests.shop import ACTOR, LOCATION, Shop

TILL: Final = "till 4"


class Till:
    """A source of events of a shop's main location; times are seconds before now."""

    def __init__(self, shop: Shop, source: str = TILL) -> None:
        """Send through an engine of its own."""
        self.shop = shop
        self.source = source
        self.feeds = Feeds(shop.inventory)

    async def now_ms(self) -> int:
        """Return the store's clock."""
        seconds, micros = await self.shop.client.execute_command("TIME")
        return int(seconds) * 1_000 + int(micros) // 1_000

    async def event(
        self, kind: str, quantity: int, *, ago: float = 1, sku: str = "tea", **fields: Any
    ) -> FeedEvent:
        """Make an event; its id is what it says, unless `event_id` is given."""
        fields.setdefault("event_id", f"{kind} {quantity} {sku} {ago} {fields.get('sequence', 0)}")
        at_ms = await self.now_ms() - int(ago * 1_000)
        return FeedEvent(
            type=EventType(kind), sku=sku, quantity=quantity, occurred_at_ms=at_ms, **fields
        )

    async def send(self, *events: FeedEvent) -> list[str]:
        """Take events; return each verdict, with its reason, or the code of its refusal."""
        answers = await self.feeds.take(
            self.shop.merchant, LOCATION, self.source, events, actor=ACTOR
        )
        return [told(answer) for answer in answers]

    async def tell(self, kind: str, quantity: int, **fields: Any) -> str:
        """Make an event, take it and return what became of it."""
        (answer,) = await self.send(await self.event(kind, quantity, **fields))
        return answer


def told(answer: Taken | HoldfastError) -> str:
    """Say what became of an event."""
    if isinstance(answer, Taken):
        return f"{answer.verdict}{': ' if answer.why else ''}{answer.why}"
    return answer.code


def entry(shop: Shop, event: FeedEvent, source: str = TILL) -> dict[str, str]:
    """Return the fields of an entry of the intake."""
    body = {
        "event_id": event.event_id,
        "type": event.type.value,
        "occurred_at": f"{_rfc3339(event.occurred_at_ms)}",
        "sku": event.sku,
        "quantity": event.quantity,
    }
    if event.sequence:
        body["sequence"] = event.sequence
    return {
        "merchant": shop.merchant,
        "location": LOCATION,
        "source": source,
        "event": json.dumps(body),
    }


def _rfc3339(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()
