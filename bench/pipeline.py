"""Ready-made commands sent to the store over one connection, always some ahead of the replies."""

import socket
from collections.abc import Sequence
from typing import Any, Final, cast

from hiredis import Reader, pack_command

from bench.load import LoadFailed
from bench.servers import socket_path
from engine.store import StoreSettings

TIMEOUT_SECONDS: Final = 30.0
READ_BYTES: Final = 262_144


def packed(*command: str | bytes | int) -> bytes:
    """Return a command as it travels."""
    # The type stub of hiredis takes tuples of one element only.
    return cast(bytes, cast(Any, pack_command)(command))


def pipeline(
    settings: StoreSettings, chunks: Sequence[bytes], *, replies_each: int, chunks_ahead: int
) -> int:
    """Send every chunk of packed commands; return how many replies came.

    Each chunk is answered by `replies_each` replies; at most `chunks_ahead` are on their way at
    once. It blocks, so call it in a thread. Raises LoadFailed where a reply is an error.
    """
    reader = Reader(replyError=LoadFailed)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT_SECONDS)
        try:
            connection.connect(socket_path(settings))
            connection.sendall(packed("AUTH", settings.username, settings.password))
            _take(connection, reader, 1)
            sent = answered = 0
            for chunk in chunks:
                if sent >= chunks_ahead:
                    answered += _take(connection, reader, replies_each)
                connection.sendall(chunk)
                sent += 1
            return answered + _take(connection, reader, sent * replies_each - answered)
        except OSError as error:
            raise LoadFailed(f"the store does not answer: {error}") from error


def _take(connection: socket.socket, reader: Reader, count: int) -> int:
    """Read `count` replies."""
    for _ in range(count):
        while (reply := reader.gets()) is False:
            data = connection.recv(READ_BYTES)
            if not data:
                raise LoadFailed("the store closed the connection")
            reader.feed(data)
        if isinstance(reply, LoadFailed):
            raise reply
    return count
