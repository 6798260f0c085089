"""Reading orders: one, all of a merchant, or those of a reference."""

from engine import reservations
from engine.keys import encode
from engine.limits import DEFAULT_PAGE
from engine.model import Page
from engine.order_records import Order
from engine.order_steps import OrderSteps
from engine.validation import check_id, check_page, check_text


class OrderReading:
    """Reads orders."""

    def __init__(self, steps: OrderSteps) -> None:
        """Nothing is read yet."""
        self._steps = steps
        self._inventory = steps.inventory
        self._records = steps.records

    async def read(self, merchant: str, order: str) -> Order:
        """Read an order, its parts as they are now. Raises OrderNotFound."""
        found = await self._steps.find(merchant, order)
        return await self._steps.seen_now(found)

    async def listed(
        self,
        merchant: str,
        *,
        order_ref: str = "",
        after: str | None = None,
        limit: int = DEFAULT_PAGE,
    ) -> Page[Order]:
        """List a merchant's orders, the oldest first, or those of an order reference.

        `after` is the `next_after` of the page before. Raises InvalidCommand where it is not.
        """
        check_id("merchant", merchant)
        check_text("order_ref", order_ref)
        check_page(limit)
        position = reservations.parse_position(after)
        if order_ref:
            found = await self._referred(merchant, order_ref)
        else:
            found = await self._of_merchant(merchant, position, limit)
        rest = sorted(one for one in found if position is None or one > position)
        page = rest[:limit]
        orders = [await self._records.read(one.id) for one in page]
        return Page(
            tuple([await self._steps.seen_now(one) for one in orders if one is not None]),
            page[-1].text() if len(rest) > limit else None,
        )

    async def _of_merchant(
        self, merchant: str, position: reservations.Position | None, limit: int
    ) -> list[reservations.Position]:
        start = "-inf" if position is None else position.created_at_ms
        found: list[reservations.Position] = []
        for keys in self._inventory.keys:
            index, already = keys.orders(merchant), 0
            if position is not None:
                # Members of one millisecond stand in byte order: some may have been given.
                already = await self._inventory.dispatcher.read("ZCOUNT", index, start, start)
            flat = await self._inventory.dispatcher.read(
                "ZRANGEBYSCORE", index, start, "+inf", "WITHSCORES", "LIMIT", 0, limit + 1 + already
            )
            found += reservations.positions(flat)
        return found

    async def _referred(self, merchant: str, order_ref: str) -> list[reservations.Position]:
        prefix = f"{encode(order_ref)}:"
        found = []
        for keys in self._inventory.keys:
            members = await self._inventory.dispatcher.read(
                "ZRANGEBYLEX", keys.order_refs(merchant), f"[{prefix}", f"[{prefix}~"
            )
            for member in members:
                order = await self._records.read(member.decode().rpartition(":")[2])
                if order is not None:
                    found.append(reservations.Position(order.created_at_ms, order.id))
        return found
