"""Archive, snapshot, replay, audit and repair, over the ledger that the engine writes."""
