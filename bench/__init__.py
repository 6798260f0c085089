"""Benchmarks: the product, its limits and a peer, measured side by side in one run."""
