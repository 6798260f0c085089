"""The data directory of `holdfast serve`: who holds it, and where everything in it lies.

One process holds it at a time, by an exclusive lock that the kernel drops with the process, so a
crash leaves nothing to clean up by hand. Everything in it is readable by its owner alone.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import IO, Final, Self

MAX_SOCKET_PATH_BYTES: Final = 100
"""The kernel takes 107 bytes on Linux and 103 on macOS; a longer path fails in bind()."""

MAX_SMALL_FILE_BYTES: Final = 4_096
"""Of the secrets, pids and paths kept in files of their own."""

_PRIVATE_DIR: Final = 0o700
_PRIVATE_FILE: Final = 0o600


class DataDirRefused(Exception):
    """The data directory cannot be used; `path` is it and `reason` says why, for a person."""

    def __init__(self, path: Path, reason: str) -> None:
        """Keep the path and the reason."""
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}")


class DataDirInUse(DataDirRefused):
    """Another process serves from this directory. `pid` is its id, None if it wrote none yet."""

    def __init__(self, pid: int | None, path: Path) -> None:
        """Keep the holder's process id."""
        self.pid = pid
        who = f"process {pid}" if pid is not None else "another process"
        super().__init__(path, f"in use by {who}; stop it, or choose another data directory")


class DataDir:
    """Paths below one directory, and the lock on it.

    Making one touches nothing; entering it creates the directory and takes the lock, and leaving
    it gives the lock back.
    """

    def __init__(self, path: Path) -> None:
        """Take `path`, which need not exist yet; a relative one is made absolute now."""
        self.path = path.absolute()
        self._lock: IO[str] | None = None

    @property
    def lock_file(self) -> Path:
        """Holds the pid of the process that has the lock."""
        return self.path / "holdfast.lock"

    @property
    def store_dir(self) -> Path:
        """Where the embedded store keeps its append-only files."""
        return self.path / "store"

    @property
    def store_config(self) -> Path:
        """The embedded store's configuration, written anew at every start."""
        return self.path / "store.conf"

    @property
    def store_log(self) -> Path:
        """The embedded store's log."""
        return self.path / "store.log"

    @property
    def store_pid(self) -> Path:
        """Says which process the embedded store is."""
        return self.path / "store.pid"

    @property
    def store_password(self) -> Path:
        """The password of the embedded store's one user."""
        return self.path / "store.password"

    @property
    def archive(self) -> Path:
        """Where the archive is, unless another place is named for it."""
        return self.path / "archive"

    @property
    def index(self) -> Path:
        """Where the availability index is, unless another place is named for it."""
        return self.path / "index.db"

    @property
    def metrics(self) -> Path:
        """Where the processes of a running service keep what they count."""
        return self.path / "metrics"

    @property
    def admin_key(self) -> Path:
        """The API key that the first start made."""
        return self.path / "admin.key"

    @property
    def _socket_record(self) -> Path:
        """Names the directory of the socket where that is not the data directory itself."""
        return self.path / "socket-dir"

    def __enter__(self) -> Self:
        """Create the directory and lock it. Raises DataDirInUse or DataDirRefused."""
        self._create()
        try:
            lock = open(self.lock_file, "a+", encoding="ascii", opener=_open_private)
        except OSError as error:
            raise DataDirRefused(self.path, f"the lock cannot be opened: {error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with lock:
                raise DataDirInUse(_read_pid(lock), self.path) from error
        except OSError as error:
            lock.close()
            raise DataDirRefused(self.path, f"cannot be locked: {error}") from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lock back. The file stays: removing it would let two processes lock two."""
        self._remove_socket_dir()
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    def _create(self) -> None:
        try:
            self.path.mkdir(mode=_PRIVATE_DIR, parents=True, exist_ok=True)
            found = self.path.stat()
            if found.st_uid != os.geteuid():
                raise DataDirRefused(self.path, f"belongs to another user (uid {found.st_uid})")
            # A directory that was there before keeps its mode: it may be somebody's home.
            if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise DataDirRefused(self.path, "others may write to it; run chmod go-w on it")
            self.store_dir.mkdir(mode=_PRIVATE_DIR, exist_ok=True)
        except OSError as error:
            raise DataDirRefused(self.path, f"cannot be used: {error}") from error

    @property
    def _near_socket(self) -> Path | None:
        """The socket in the directory itself, None where its path is too long for the kernel."""
        near = self.path / "store.sock"
        return near if len(os.fsencode(near)) <= MAX_SOCKET_PATH_BYTES else None

    def socket(self) -> Path:
        """Return the path of the running store's socket; nothing is touched.

        Raises DataDirRefused where it is not known, because the store was not started.
        """
        if self._near_socket is not None:
            return self._near_socket
        directory = self._recorded_socket_dir()
        if directory is None:
            raise DataDirRefused(self.path, "its store does not run")
        return directory / "store.sock"

    def prepare_socket(self) -> Path:
        """Return the path of the socket to make, short enough for the kernel.

        Where the data directory's own path is too long, the socket lies in a private directory
        below the system's temporary one, which a file here remembers. Raises DataDirRefused.
        """
        if self._near_socket is None and self._recorded_socket_dir() is None:
            write_private(self._socket_record, str(_short_private_dir(self.path)))
        return self.socket()

    def _recorded_socket_dir(self) -> Path | None:
        recorded = read_private(self._socket_record)
        if recorded is None:
            return None
        directory = Path(recorded)
        # Anyone may make a directory of that name once ours is swept away, hence the check.
        try:
            found = directory.lstat()
        except OSError:
            return None
        private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == _PRIVATE_DIR
        return directory if private and found.st_uid == os.geteuid() else None

    def _remove_socket_dir(self) -> None:
        directory = self._recorded_socket_dir()
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
        self._socket_record.unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Put `text` into a file of mode 0600, whole or not at all."""
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    with open(draft, "x", encoding="utf-8", opener=_open_private) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def read_private(path: Path) -> str | None:
    """Return the text of a small file without blanks at its ends, or None where there is none."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(MAX_SMALL_FILE_BYTES).strip()
    except FileNotFoundError:
        return None


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, _PRIVATE_FILE)


def _read_pid(lock: IO[str]) -> int | None:
    lock.seek(0)
    text = lock.read(MAX_SMALL_FILE_BYTES).strip()
    return int(text) if text.isdigit() else None


def _short_private_dir(data_dir: Path) -> Path:
    room = MAX_SOCKET_PATH_BYTES - len("/holdfast-12345678/store.sock")
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - the directory below it is private
        if len(os.fsencode(parent)) <= room and os.access(parent, os.W_OK):
            return Path(tempfile.mkdtemp(prefix="holdfast-", dir=parent))
    raise DataDirRefused(data_dir, "its path is too long for a socket, and so is TMPDIR's")
