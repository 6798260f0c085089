"""What a run was made on: figures without it compare nothing."""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import NamedTemporaryFile
from typing import Final

import msgspec

from holdfast import __version__
from holdfast.embedded import ServerBinary

FSYNCS: Final = 200
WRITTEN_BYTES: Final = 4_096
"""About what the store writes between two syncs under moderate load."""

PACKAGES: Final = ("hiredis", "msgspec", "redis", "starlette", "uvicorn", "uvloop")

_MICROSECONDS: Final = 1e6


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine and the programs. `fsync_median_us` is of a write and its fdatasync()."""

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    python: str
    holdfast: str
    store: str
    packages: dict[str, str]
    filesystem: str
    fsync_median_us: float
    load_average: float


def look(server: ServerBinary, work_dir: Path) -> Machine:
    """Look at this machine, and at the disk below `work_dir`."""
    return Machine(
        cpu=_cpu(),
        cores=_cores(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        holdfast=__version__,
        store=f"{server.kind} {'.'.join(map(str, server.version))}",
        packages={name: version(name) for name in PACKAGES},
        filesystem=_filesystem(work_dir),
        fsync_median_us=round(fsync_median_us(work_dir), 1),
        load_average=os.getloadavg()[0],
    )


def fsync_median_us(directory: Path) -> float:
    """Return how long a small write and its fdatasync() take, in µs."""
    sync = getattr(os, "fdatasync", os.fsync)
    taken = []
    with NamedTemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(FSYNCS):
            began_at = time.perf_counter()
            file.write(b"\0" * WRITTEN_BYTES)
            sync(file.fileno())
            taken.append(time.perf_counter() - began_at)
    return median(taken) * _MICROSECONDS


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _filesystem(directory: Path) -> str:
    """Return the type of the file system, by the longest mount point above the directory."""
    try:
        text = Path("/proc/self/mounts").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    above = {str(directory.resolve()), *map(str, directory.resolve().parents)}
    mounts = [line.split(" ")[1:3] for line in text.splitlines()]
    found = [(len(point), kind) for point, kind in mounts if point in above]
    return max(found)[1] if found else "unknown"
