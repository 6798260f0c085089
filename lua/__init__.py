"""The atomic scripts, as package data; `engine.scripts` assembles and runs them."""
