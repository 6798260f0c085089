"""The listening socket: bound by the supervisor, and inherited by every gateway process."""

import errno
import os
import socket
from typing import Final

BACKLOG: Final = 2_048
"""Connections that the kernel accepts before a gateway takes them, while one restarts for instance;
the kernel's own bound (`net.core.somaxconn`) may be lower."""

_REMEDIES: Final = {
    errno.EADDRINUSE: "another program listens there; stop it, or choose another --port",
    errno.EACCES: "ports below 1024 need a privilege; choose a higher --port",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose another --host",
}


class ListenRefused(Exception):
    """The address cannot be listened on; `remedy` says what to do."""

    def __init__(self, host: str, port: int, reason: str, remedy: str) -> None:
        """Keep the address, the system's reason and the remedy."""
        self.host = host
        self.port = port
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"cannot listen on {host} port {port} ({reason}): {remedy}")


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen; port 0 takes any free one. Raises ListenRefused."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        reason = error.strerror or str(error)
        raise ListenRefused(host, port, reason, "choose another --host") from error
    family, _, _, _, address = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Connections of the process before may still linger in TIME_WAIT on the same port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Listening at once, not later in the gateway: two sockets that are only bound with this
        # option would not notice each other.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = os.strerror(error.errno) if error.errno else str(error)
        remedy = _REMEDIES.get(error.errno or 0, "choose another --host or --port")
        raise ListenRefused(host, port, reason, remedy) from error
    return listener


def reachable_address(listener: socket.socket) -> tuple[str, int]:
    """Return a host and port that this machine reaches the listener by."""
    host, port = listener.getsockname()[:2]
    if host == "0.0.0.0":  # noqa: S104 - it is compared with, not listened on
        return "127.0.0.1", port
    return ("::1" if host == "::" else host), port


def url_of(listener: socket.socket) -> str:
    """Return the URL that the listener serves, with a slash at its end."""
    host, port = reachable_address(listener)
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/"
