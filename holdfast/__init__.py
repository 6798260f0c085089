"""What a user touches: the `holdfast` command, the supervisor behind it, the Python client."""

__version__ = "0.1.0"
