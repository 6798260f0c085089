"""HTTP over the engine: the API that shops, tills and feeds call."""
