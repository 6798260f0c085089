"""Settings of rows: what is kept back, when stock is low, and on what terms units are promised."""

import msgspec

from engine.dispatch import Command
from engine.keys import digest, location_member
from engine.model import Configured, Terms
from engine.outcomes import InvalidCommand, Outcome
from engine.partitions import Partitions
from engine.refusals import refusal
from engine.rows import keys_of_change, replied_setting
from engine.validation import check_count, check_id, check_key, check_quantity, check_terms


class RowSettings:
    """Changes the settings of all merchants' rows."""

    def __init__(self, partitions: Partitions) -> None:
        """Change rows in `partitions`."""
        self._partitions = partitions
        self._dispatch = partitions.dispatcher
        self._splits = partitions.splits

    async def configure(
        self,
        merchant: str,
        location: str,
        sku: str,
        *,
        key: str,
        safety_stock: int | None = None,
        low_stock_threshold: int | None = None,
        expected_version: int,
        actor: str,
    ) -> Configured:
        """Change a row's settings if it still is at `expected_version` (0: make the row).

        A setting that is None stays as it is; one of them must be given.

        Raises VersionConflict, IdempotencyKeyReused, InvalidCommand.
        """
        keys = self._partitions.keys_of(merchant, location)
        check_id("sku", sku)
        check_key(key)
        if safety_stock is None and low_stock_threshold is None:
            raise InvalidCommand("safety_stock", "name one setting at least")
        if safety_stock is not None:
            check_quantity("safety_stock", safety_stock, least=0)
        if low_stock_threshold is not None:
            check_quantity("low_stock_threshold", low_stock_threshold, least=0)
        check_count("expected_version", expected_version)
        asked = [str(safety_stock), str(expected_version)]
        if low_stock_threshold is not None:
            asked.append(str(low_stock_threshold))
        operation = digest("configure", merchant, location, sku, key)
        command = Command(
            keys_of_change(keys, merchant, location, sku, operation),
            (
                operation,
                merchant,
                location,
                actor,
                digest(*asked),
                sku,
                expected_version,
                -1 if safety_stock is None else safety_stock,
                location_member(merchant, location),
                -1 if low_stock_threshold is None else low_stock_threshold,
            ),
            merchant,
        )
        reply = await self._splits.run_fact(
            "configure", keys.partition, command, (merchant, location)
        )
        self._partitions.sold_out.forget(command.keys[:1])
        code = Outcome(reply[0])
        if code not in (Outcome.OK, Outcome.REPLAYED):
            raise refusal(reply, key=key, sku=sku, expected=expected_version)
        return replied_setting(merchant, location, sku, reply)

    async def set_terms(
        self,
        merchant: str,
        location: str,
        sku: str,
        terms: Terms,
        *,
        key: str,
        expected_version: int,
        actor: str,
    ) -> Configured:
        """Set on what terms a row's units are promised; what `terms` does not name ends.

        The row must be at `expected_version` (0: it is made). Raises VersionConflict,
        IdempotencyKeyReused, InvalidCommand.
        """
        keys = self._partitions.keys_of(merchant, location)
        check_id("sku", sku)
        check_key(key)
        check_terms(terms)
        check_count("expected_version", expected_version)
        asked = msgspec.to_builtins(terms.settings())
        operation = digest("terms", merchant, location, sku, key)
        command = Command(
            keys_of_change(keys, merchant, location, sku, operation),
            (
                operation,
                merchant,
                location,
                actor,
                digest(str(expected_version), msgspec.json.encode(asked, order="sorted").decode()),
                sku,
                expected_version,
                location_member(merchant, location),
                asked,
            ),
            merchant,
        )
        reply = await self._dispatch.run("terms", keys.partition, command)
        self._partitions.sold_out.forget(command.keys[:1])
        code = Outcome(reply[0])
        if code is Outcome.INVALID and reply[1] == "split":
            raise InvalidCommand("terms", "the row is split: put it together first (parts 1)")
        if code not in (Outcome.OK, Outcome.REPLAYED):
            raise refusal(reply, key=key, sku=sku, expected=expected_version)
        return replied_setting(merchant, location, sku, reply)
