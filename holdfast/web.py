"""The gateway process: `python -m holdfast.web`; `holdfast serve` starts it.

The gateway and the reconciler do not know each other. Here, at the edge of the process, the gateway
is given the reconciler's way to answer questions to the ledger, which reaches into the archive.
"""

import os
import sys

from engine.history import History
from engine.inventory import Inventory
from gateway import process
from reconciler.archive import Archive, open_archive
from reconciler.history import LedgerHistory
from reconciler.settings import ReconcilerSettings, SettingRefused


def main() -> None:
    """Run as a process."""
    try:
        settings = ReconcilerSettings.from_environment(os.environ)
    except SettingRefused as refusal:
        sys.exit(f"holdfast.web: {refusal}")

    def open_history(inventory: Inventory) -> History:
        async def opened() -> Archive | None:
            if not settings.archive_url:
                return None
            return await open_archive(inventory.store, settings.archive_url)

        return LedgerHistory(inventory, opened)

    process.run(os.environ, open_history=open_history)


if __name__ == "__main__":
    main()
