"""The API of the engine: stock, movements and reservations of all merchants.

One `Inventory` serves any number of concurrent callers of one event loop; their commands travel
together (see `engine.dispatch`). Every refusal is a HoldfastError of its own class. A write whose
outcome stays unknown raises OutcomeUnknown: the same call with the same key or id is safe.
"""

from typing import Self

from engine.amendments import Amendments
from engine.backorders import Backorders
from engine.definitions import Definitions, What
from engine.expiry import Expiry
from engine.keys import STORE_KEY
from engine.kits import Kit, Kits, check_kits, stamped
from engine.lifecycle import Lifecycle
from engine.movements import Movements
from engine.order_records import OrderRecords
from engine.outcomes import StoreUnavailable
from engine.partitions import Partitions
from engine.reservation_lookup import ReservationLookup
from engine.reserving import Reserving
from engine.row_settings import RowSettings
from engine.rows import Rows
from engine.store import Store, StoreSettings
from engine.substitutes import Choices, Rules, arrange, check_rules


class Inventory:
    """Stock and reservations over one store; see the module's text.

    Its calls are those of its parts, each of which stands in a file of its own; here is which.
    """

    def __init__(self, store: Store, *, partitions: int) -> None:
        """Use `open` unless the store and its number of partitions are at hand."""
        shared = self._shared = Partitions(store, partitions, expire_due=self._take_back)
        self.store = store
        self.partitions = partitions
        self.keys = shared.keys
        self.dispatcher = shared.dispatcher
        """Carries the commands of other parts of the engine too, in turn with its own."""
        self.splits = shared.splits
        self.claiming = shared.claiming
        self.order_records = OrderRecords(store, self.dispatcher, self.keys)
        self.kits: Definitions[Kit, Kits] = Definitions(
            What.KITS,
            Kit,
            self.dispatcher,
            self.keys,
            check=check_kits,
            arrange=dict,
            stamp=stamped,
        )
        self.substitutes: Definitions[Rules, Choices] = Definitions(
            What.SUBSTITUTES,
            Rules,
            self.dispatcher,
            self.keys,
            check=check_rules,
            arrange=arrange,
        )

        self.keys_of = shared.keys_of
        self.note_change = shared.note_change
        self.now_ms = shared.now_ms
        self.run_fact = self.splits.run_fact

        rows = Rows(shared)
        self.row = rows.row
        self.rows = rows.rows
        self.rows_together = rows.rows_together
        self.list_rows = rows.list_rows
        self.list_merchants = rows.list_merchants
        self.list_locations = rows.list_locations

        lookup = ReservationLookup(shared)
        self.reservation = lookup.reservation
        self.open_count = lookup.open_count
        self.open_reservations = lookup.open_reservations
        self.order_of = lookup.order_of

        backorders = Backorders(shared)
        self.fill = backorders.fill
        movements = Movements(shared, self.kits, backorders)
        self.move = movements.move
        self.move_many = movements.move_many
        settings = RowSettings(shared)
        self.configure = settings.configure
        self.set_terms = settings.set_terms

        lifecycle = Lifecycle(shared, backorders)
        self.confirm = lifecycle.confirm
        self.extend = lifecycle.extend
        self.decide = lifecycle.decide
        self.commit = lifecycle.commit
        self.release = lifecycle.release
        self.hand_over = lifecycle.hand_over
        self._expiry = Expiry(shared, self.order_records, lifecycle)
        self.expire_due = self._expiry.expire_due
        self.reserve = Reserving(shared, self.kits, self.substitutes, self.expire_due).reserve
        self.amend = Amendments(shared, self.kits, self.substitutes, self.expire_due).amend

    @classmethod
    async def open(cls, settings: StoreSettings) -> Self:
        """Connect, and read how many partitions the store was made with.

        Raises StoreUnavailable where it cannot be reached, or was never made (`engine.boot`).
        """
        store = await Store.open(settings)
        try:
            (partitions,) = await store.read([("HGET", STORE_KEY, "partitions")])
            if partitions is None:
                raise StoreUnavailable("the store was not set up: run `holdfast serve` on it once")
        except BaseException:
            await store.close()
            raise
        return cls(store, partitions=int(partitions))

    async def close(self) -> None:
        """Close the connections; callers that still wait get an error."""
        await self.splits.flush()
        await self.store.close()

    async def _take_back(self, partition: int) -> int:
        return (await self.expire_due(partition)).expired
