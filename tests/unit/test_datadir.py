"""The data directory: its lock, its modes, and where the store's socket goes."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from holdfast.datadir import (
    MAX_SOCKET_PATH_BYTES,
    DataDir,
    DataDirInUse,
    DataDirRefused,
    read_private,
    write_private,
)

HOLD_LOCK = """
import sys
from pathlib import Path
from holdfast.datadir import DataDir
with DataDir(Path(sys.argv[1])):
    sys.stdout.write("locked\\n")
    sys.stdout.flush()
    sys.stdin.read()
"""


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_it_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    with DataDir(tmp_path / "deep" / "data") as data_dir:
        write_private(data_dir.store_password, "secret")
        assert mode_of(data_dir.path) == 0o700
        assert mode_of(data_dir.store_dir) == 0o700
        assert mode_of(data_dir.lock_file) == 0o600
        assert mode_of(data_dir.store_password) == 0o600


def test_a_second_holder_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(tmp_path / "data")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        data_dir = DataDir(tmp_path / "data")
        with pytest.raises(DataDirInUse) as refused, data_dir:
            pass
        assert refused.value.pid == holder.pid
        assert str(holder.pid) in str(refused.value)
        assert refused.value.path == data_dir.path
        holder.kill()
        holder.wait()
        # The kernel drops the lock with its holder, however that ended.
        with data_dir:
            assert data_dir.lock_file.read_text() == f"{os.getpid()}\n"


def test_it_can_be_held_again_after_it_was_given_back(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path / "data")
    for _ in range(2):
        with data_dir:
            assert read_private(data_dir.lock_file) == str(os.getpid())
        assert read_private(data_dir.lock_file) == ""


def test_a_directory_that_others_may_write_to_is_refused_and_left_as_it_is(
    tmp_path: Path,
) -> None:
    shared = tmp_path / "data"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(DataDirRefused, match="chmod go-w"), DataDir(shared):
        pass
    assert mode_of(shared) == 0o777
    assert list(shared.iterdir()) == []


def test_a_directory_of_ones_own_keeps_its_mode(tmp_path: Path) -> None:
    mine = tmp_path / "data"
    mine.mkdir()
    mine.chmod(0o755)
    with DataDir(mine):
        assert mode_of(mine) == 0o755


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a directory")
    with pytest.raises(DataDirRefused, match="cannot be used"), DataDir(tmp_path / "data"):
        pass


def test_the_socket_lies_in_the_directory_where_its_path_is_short() -> None:
    with tempfile.TemporaryDirectory(prefix="hf-") as short, DataDir(Path(short)) as data_dir:
        assert data_dir.prepare_socket() == data_dir.socket() == Path(short) / "store.sock"


def test_the_socket_of_a_long_path_lies_in_a_private_directory_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="hf-") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        data_dir = DataDir(tmp_path / ("long" * 30))
        with pytest.raises(DataDirRefused, match="does not run"):
            data_dir.socket()
        with data_dir:
            socket = data_dir.prepare_socket()
            assert len(os.fsencode(socket)) <= MAX_SOCKET_PATH_BYTES
            assert socket.parent.parent == Path(short)
            assert mode_of(socket.parent) == 0o700
            assert data_dir.prepare_socket() == socket, "the same as long as the lock is held"
            assert DataDir(data_dir.path).socket() == socket, "others find it too"
        assert list(Path(short).iterdir()) == []


def test_a_recorded_socket_directory_that_others_may_enter_is_not_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="hf-") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        with DataDir(tmp_path / ("long" * 30)) as data_dir:
            first = data_dir.prepare_socket()
            first.parent.chmod(0o755)
            second = data_dir.prepare_socket()
            assert second.parent != first.parent
            assert mode_of(second.parent) == 0o700


def test_a_small_file_is_replaced_whole_and_read_without_its_line_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert read_private(path) is None
    write_private(path, "one\n")
    write_private(path, "two\n")
    assert read_private(path) == "two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
