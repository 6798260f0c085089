"""One partition's live records of orders beside its account.

Like `reconciler.feed_comparison`: what looks different is looked at once more, at a place of the
ledger that may know it by then.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from engine.order_records import FIELDS, from_hash
from engine.outcomes import StoreFault
from reconciler.account import Account
from reconciler.findings import Code, Finding, Invariant
from reconciler.fold import FoldedOrder
from reconciler.inspection import Inspection, Look, Value

CHUNK: Final = 50
"""Records in one look: some have hundreds of lines."""

LOOKS: Final = 3
MARGIN_MS: Final = 60_000
"""Around the end of its retention a record may be there or not."""

LookAt = Callable[[Sequence[Look]], Awaitable[Inspection]]


class OrderComparison:
    """Compares the records of one partition, and their places in the indexes."""

    def __init__(self, account: Account, look: LookAt) -> None:
        """`look` reads keys and takes the account to just that place."""
        self._account = account
        self._keys = account.keys
        self._look = look

    async def run(self) -> list[Finding]:
        """Return what is different."""
        ids = list(self._account.state.orders)
        found: list[Finding] = []
        for start in range(0, len(ids), CHUNK):
            suspects = await self._differing(ids[start : start + CHUNK])
            for the_id, detail in (await self._differing(list(suspects))).items():
                found.append(self._finding(the_id, detail))
        return found

    async def _differing(self, ids: Sequence[str]) -> dict[str, str]:
        """Return what is wrong with which records."""
        orders = self._account.state.orders
        known = [the_id for the_id in ids if the_id in orders]
        if not known:
            return {}
        looks = []
        for the_id in known:
            looks.append(Look("hash", self._keys.order(the_id)))
            looks.append(Look(f"score {the_id}", self._keys.driving))
            listed = self._keys.orders(orders[the_id].body.merchant)
            looks.append(Look(f"score {the_id}", listed))
        inspection = await self._look(looks)
        now_ms = max(inspection.now_ms, inspection.clock_ms)
        differing = {}
        for index, the_id in enumerate(known):
            order = self._account.state.orders.get(the_id)
            if order is None or order.may_be_gone(now_ms + MARGIN_MS):
                continue
            value, driven, listed_at = inspection.values[index * LOOKS : (index + 1) * LOOKS]
            if not _is_same(the_id, value, order):
                differing[the_id] = "is not what the ledger says"
            elif driven is None or (order.ref and listed_at is None):
                differing[the_id] = "is missing in an index"
        return differing

    def _finding(self, the_id: str, detail: str) -> Finding:
        return Finding(
            invariant=Invariant.FOLD,
            code=Code.ORDER_DIFFERS,
            detail=f"the record of order {the_id} {detail}",
            remedy="nothing: its parts are reservations, and can be released by their own ids",
            partition=self._keys.partition,
            merchant=self._account.state.orders[the_id].body.merchant,
            key=self._keys.order(the_id),
            repairable=False,
        )


def _is_same(the_id: str, value: Value, order: FoldedOrder) -> bool:
    if not isinstance(value, dict):
        return False
    try:
        live = from_hash(the_id, [value.get(field.encode()) for field in FIELDS])
    except StoreFault:
        return False
    return live is not None and (
        live.state,
        live.revision,
        live.settled,
        live.created_at_ms,
        live.expires_at_ms,
        live.confirmed_at_ms,
        live.ended_at_ms,
        live.reason,
        live.plan,
        live.body,
    ) == (
        order.state,
        order.revision,
        order.settled,
        order.created_at_ms,
        order.expires_at_ms,
        order.confirmed_at_ms,
        order.ended_at_ms,
        order.reason,
        order.plan,
        order.body,
    )
