"""Orders that span locations: all of their parts or none, whatever dies in between.

A part is a plain reservation. The record of the order (`engine.order_records`) is written before
anything is done that it must answer for, and says alone what is to become of the parts: those of an
undecided order are taken back, those of a decided one are kept. So whoever finds a record can drive
it to its end, any number of times; every step is idempotent. This is two-phase commit with presumed
abort (Mohan, Lindsay 1983), the held reservations being the prepared state.
"""

from collections.abc import Callable

from engine.inventory import Inventory
from engine.order_decisions import OrderDecisions
from engine.order_endings import OrderEndings
from engine.order_execution import OrderExecution
from engine.order_placing import OrderPlacing
from engine.order_planning import OrderPlanning
from engine.order_reading import OrderReading
from engine.order_resourcing import OrderResourcing
from engine.order_steps import OrderResult, OrderSteps, watch_nothing

__all__ = ["OrderResult", "Orders"]


class Orders:
    """Orders of all merchants over one engine.

    Its calls are those of its parts, each of which stands in a file of its own; here is which.
    `watch` is called with the name of every step just before and just after it is taken: tests kill
    the coordinator there. They may bring `steps` and `plans` of their own, too.
    """

    def __init__(
        self,
        inventory: Inventory,
        *,
        watch: Callable[[str], None] = watch_nothing,
        steps: OrderSteps | None = None,
        plans: OrderPlanning | None = None,
    ) -> None:
        """Nothing is read yet."""
        steps = steps or OrderSteps(inventory, watch)
        plans = plans or OrderPlanning(inventory)
        execution = OrderExecution(steps, plans)
        self.drive = execution.drive
        self.look_again = execution.look_again

        reading = OrderReading(steps)
        self.read = reading.read
        self.listed = reading.listed

        self.place = OrderPlacing(steps, plans, execution).place
        self.resource = OrderResourcing(steps, plans, execution).resource

        decisions = OrderDecisions(steps, execution)
        self.confirm = decisions.confirm
        self.accept = decisions.accept
        self.decline = decisions.decline
        self.heed = decisions.heed

        endings = OrderEndings(steps, execution, decisions)
        self.commit = endings.commit
        self.cancel = endings.cancel
        self.expire = endings.expire
