"""Tests, by what they need: nothing (unit), a store (integration), or a store to break (faults)."""
