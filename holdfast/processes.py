"""Child processes: started so that they never outlive their parent, stopped within a bound."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Final

_PR_SET_PDEATHSIG: Final = 1

EXIT_CHECK_SECONDS: Final = 0.01
"""Between looks at whether a process has gone. A look is one waitpid(); unlike a child watcher it
works in any event loop, whichever started the process."""

KILL_SECONDS: Final = 10.0
"""After SIGKILL; the kernel may still be writing the process's files out."""


def spawn(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    output: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own; it must be called from the main thread.

    A session of its own means that Ctrl-C in a terminal reaches the parent alone, which then stops
    its children in order. `output` takes what the child prints, which else goes where the parent's
    goes. On Linux the kernel kills the child when the thread that started it ends,
    so that not even `kill -9` of the parent leaves it behind. Raises OSError.
    """
    return subprocess.Popen(
        argv,
        env=environment,
        pass_fds=pass_fds,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        # The function only makes two system calls, so it takes no lock that a thread could hold.
        preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509 - see above
    )


def _die_with(parent: int) -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def set_death_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # The parent may have gone before the request was made, and then no signal comes.
        if os.getppid() != parent:
            os._exit(1)

    return set_death_signal


async def stop(process: subprocess.Popen[bytes], *, grace_seconds: float) -> int:
    """Send SIGTERM, and SIGKILL after `grace_seconds`; return the exit code once it has gone.

    Raises TimeoutError where it outlives even SIGKILL by KILL_SECONDS.
    """
    if process.poll() is None:
        process.terminate()
    try:
        return await exited(process, within_seconds=grace_seconds)
    except TimeoutError:
        process.kill()
    return await exited(process, within_seconds=KILL_SECONDS)


async def exited(process: subprocess.Popen[bytes], *, within_seconds: float) -> int:
    """Wait for a child's end and return its exit code. Raises TimeoutError."""
    async with asyncio.timeout(within_seconds):
        while (code := process.poll()) is None:  # noqa: ASYNC110 - see EXIT_CHECK_SECONDS
            await asyncio.sleep(EXIT_CHECK_SECONDS)
    return code
