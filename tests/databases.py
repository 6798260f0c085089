"""A PostgreSQL of the tests' own, where this machine has one: on a socket, gone with the tests."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from holdfast import processes

DEBIAN: Final = Path("/usr/lib/postgresql")
USERS: Final = ("postgres", "nobody")
"""PostgreSQL refuses to run as root; the first of these that exists runs it then."""

REQUIRE_POSTGRES: Final = "HOLDFAST_REQUIRE_POSTGRES"
"""Set where a missing PostgreSQL is a failure and no reason to skip."""

READY_SECONDS: Final = 30.0
CHECK_SECONDS: Final = 0.05


@contextmanager
def running_postgres() -> Iterator[str]:
    """Run a cluster and yield its URL; skips where there is none to run."""
    programs = _programs()
    prefix, user = _unprivileged()
    directory = Path(tempfile.mkdtemp(prefix="holdfast-pg-"))
    try:
        if user is not None:
            os.chown(directory, user.pw_uid, user.pw_gid)
        data = directory / "data"
        subprocess.run(
            [*prefix, programs / "initdb", "-D", data, "-U", "tester", "--auth=trust", "--no-sync",
             "--encoding=UTF8", "--no-locale"],
            check=True, capture_output=True, cwd=directory,
        )  # fmt: skip
        with (directory / "output").open("wb") as output:
            server = processes.spawn(
                [*prefix, str(programs / "postgres"), "-D", str(data), "-k", str(directory),
                 "-c", "listen_addresses=", "-c", "fsync=off"],
                output=output,
            )  # fmt: skip
        try:
            _await(directory, server)
            yield f"postgresql:///postgres?host={directory}&user=tester"
        finally:
            server.terminate()
            server.wait(READY_SECONDS)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _programs() -> Path:
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(DEBIAN.glob("*/bin"), reverse=True)
    for place in places:
        if all((place / name).exists() for name in ("initdb", "postgres")):
            return place
    raise _missing("no PostgreSQL on PATH")


def _unprivileged() -> tuple[list[str], pwd.struct_passwd | None]:
    if os.geteuid() != 0:
        return [], None
    setpriv = shutil.which("setpriv")
    for name in USERS:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        if setpriv is not None:
            ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
            # A change of user clears the signal that ends the server with this process.
            return [setpriv, *ids, "--pdeathsig", "KILL"], user
    raise _missing("PostgreSQL does not run as root, and there is no other user to run it")


def _missing(reason: str) -> BaseException:
    """Return what skips the test, or fails it where it must not be skipped."""
    if os.environ.get(REQUIRE_POSTGRES):
        return pytest.fail.Exception(reason)
    return pytest.skip.Exception(reason)


def _await(directory: Path, server: "subprocess.Popen[bytes]") -> None:
    give_up_at = time.monotonic() + READY_SECONDS
    said = directory / "output"
    while time.monotonic() < give_up_at and server.poll() is None:
        if "ready to accept connections" in said.read_text(errors="replace"):
            return
        time.sleep(CHECK_SECONDS)
    raise AssertionError(f"PostgreSQL did not come up: {said.read_text(errors='replace')}")
