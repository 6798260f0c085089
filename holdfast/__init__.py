"""What a user touches: the `holdfast` command, the supervisor behind it, the Python client.

`consume` is for programs that follow every change; `holdfast.client` calls the service.
"""

from engine.consumer import (
    Batch,
    Handler,
    Reason,
    Resync,
    Start,
    Told,
    VersionGate,
    consume,
)

__all__ = [
    "Batch",
    "Handler",
    "Reason",
    "Resync",
    "Start",
    "Told",
    "VersionGate",
    "__version__",
    "consume",
]

__version__ = "0.1.0"
