"""The embedded store as a real server: how it is set up, and how it ends."""

import os
import select
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from engine.store import Client, close_quietly, connect
from holdfast import embedded, processes
from holdfast.datadir import DataDir, read_private
from holdfast.embedded import EmbeddedStore, StoreFailed
from tests.stores import VALKEY, MakeStore, RealStore, server_of

FORBIDDEN = [
    ("ACL", "LIST"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("CONFIG", "SET", "appendonly", "no"),
    ("DEBUG", "SLEEP", "0"),
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("KEYS", "*"),
    ("MODULE", "LIST"),
    ("REPLICAOF", "NO", "ONE"),
    ("SCRIPT", "FLUSH"),
    ("SHUTDOWN",),
    ("SWAPDB", "0", "0"),
]


async def test_it_listens_on_a_private_socket_alone(store: RealStore) -> None:
    socket = store.data_dir.socket()
    assert stat.S_IMODE(socket.stat().st_mode) == 0o700
    assert await store.run("CONFIG GET", "port") == {"port": "0"}
    for path in (store.data_dir.store_config, store.data_dir.store_log):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_its_password_is_in_a_file_of_its_owner_and_not_in_its_arguments(
    store: RealStore,
) -> None:
    password = read_private(store.data_dir.store_password)
    assert password == store.settings.password
    assert password is not None
    assert len(password) >= 40
    assert password not in store.data_dir.store_config.read_text()
    arguments = Path(f"/proc/{store.pid}/cmdline").read_text()
    assert str(store.data_dir.store_config) in arguments
    assert password not in arguments


async def test_every_write_is_on_disk_before_it_is_acknowledged(client: Client) -> None:
    for name, value in {
        "appendonly": "yes",
        "appendfsync": "always",
        "no-appendfsync-on-rewrite": "no",
        "save": "",
        "maxmemory-policy": "noeviction",
    }.items():
        found = await client.execute_command("CONFIG GET", name)
        assert found == {name: value}


@pytest.mark.parametrize("command", FORBIDDEN, ids=" ".join)
async def test_its_user_may_not_empty_or_reconfigure_it(
    client: Client, command: tuple[str, ...]
) -> None:
    # DEBUG is refused by the server's own configuration before the user's rules are looked at.
    with pytest.raises((NoPermissionError, ResponseError), match=r"permissions|not allowed"):
        await client.execute_command(*command)


async def test_nobody_else_gets_in(store: RealStore) -> None:
    stranger = connect(type(store.settings)(store.settings.url))
    # The driver raises it bare on some servers, and as the cause of a connection error on others.
    with pytest.raises(RedisError) as refusal:
        await stranger.execute_command("PING")
    await close_quietly(stranger)
    assert isinstance(refusal.value.__cause__ or refusal.value, AuthenticationError)


async def test_a_kill_9_loses_nothing_acknowledged(
    make_store: MakeStore, store_kind: str, merchant: str
) -> None:
    real = make_store(store_kind)
    await real.start()
    pid = real.pid
    for number in range(50):
        await real.run("SET", f"{merchant}:{number}", number)
    await real.restart()
    assert real.pid != pid
    found = [await real.run("GET", f"{merchant}:{number}") for number in range(50)]
    assert found == [str(number).encode() for number in range(50)]


async def test_a_server_left_by_an_earlier_run_is_stopped_first(tmp_path: Path) -> None:
    with DataDir(tmp_path / "data") as data_dir:
        left = EmbeddedStore(server_of(VALKEY), data_dir)
        await left.start()
        first_pid = left.pid
        again = EmbeddedStore(server_of(VALKEY), data_dir)
        await again.start()
        assert not left.running
        assert again.pid not in (None, first_pid)
        await again.stop()
        assert read_private(data_dir.store_pid) is None


async def test_a_pid_that_another_program_has_by_now_is_left_alone(tmp_path: Path) -> None:
    with DataDir(tmp_path / "data") as data_dir:
        real = EmbeddedStore(server_of(VALKEY), data_dir)
        await real.start()
        record = data_dir.store_pid.read_text()
        old_pid = real.pid
        await real.stop()
        bystander = processes.spawn(["sleep", "600"])
        data_dir.store_pid.write_text(record.replace(str(old_pid), str(bystander.pid)))
        try:
            await real.start()
            assert bystander.poll() is None
        finally:
            await real.stop()
            await processes.stop(bystander, grace_seconds=5.0)


async def test_a_server_that_ends_at_once_shows_its_last_words(tmp_path: Path) -> None:
    with DataDir(tmp_path / "data") as data_dir:
        broken = EmbeddedStore(server_of(VALKEY), data_dir, extra_config=["no-such-directive yes"])
        with pytest.raises(StoreFailed, match="exit code 1") as failure:
            await broken.start()
        assert failure.value.exit_code == 1
        assert any("no-such-directive" in line for line in failure.value.log_tail)
        assert not broken.running


async def test_a_damaged_append_only_file_is_reported_and_kept(make_store: MakeStore) -> None:
    real = make_store()
    await real.start()
    for number in range(20):
        await real.run("SET", f"key-{number}", "value" * 20)
    await real.stop()
    (part,) = real.data_dir.store_dir.glob("appendonlydir/*.incr.aof")
    content = part.read_bytes()
    damaged = content.replace(
        b"*3\r\n$3\r\nSET\r\n$6\r\nkey-10", b"*x\r\n$3\r\nSET\r\n$6\r\nkey-10"
    )
    assert damaged != content
    part.write_bytes(damaged)
    with pytest.raises(StoreFailed) as failure:
        await real.start()
    assert any("Bad file format" in line for line in failure.value.log_tail)
    assert part.read_bytes() == damaged


async def test_any_path_can_be_its_data_directory(tmp_path: Path) -> None:
    with DataDir(tmp_path / 'a "quoted" ünïcödé\n%20 #1') as data_dir:
        real = EmbeddedStore(server_of(VALKEY), data_dir)
        await real.start()
        assert real.pid is not None
        await real.stop()


async def test_a_long_log_is_set_aside_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "MAX_LOG_BYTES", 10)
    with DataDir(tmp_path / "data") as data_dir:
        real = EmbeddedStore(server_of(VALKEY), data_dir)
        for _ in range(2):
            await real.start()
            await real.stop()
        logs = sorted(path.name for path in data_dir.path.glob("store.log*"))
        assert logs == ["store.log", "store.log.1"]


async def test_stopping_twice_or_before_the_start_does_nothing(tmp_path: Path) -> None:
    with DataDir(tmp_path / "data") as data_dir:
        real = EmbeddedStore(server_of(VALKEY), data_dir)
        with pytest.raises(LookupError):
            _ = real.settings
        await real.stop()
        await real.start()
        await real.stop()
        await real.stop()
        assert real.pid is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_it_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from holdfast.datadir import DataDir; from holdfast.embedded import *\n"
        "with DataDir(Path(sys.argv[1])) as data_dir:\n"
        "    store = EmbeddedStore(find_server(), data_dir)\n"
        "    asyncio.run(store.start())\n"
        "    sys.stdout.write(f'{store.pid}\\n'); sys.stdout.flush(); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "data")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        pidfd = os.pidfd_open(pid)
        parent.kill()
        parent.wait()
    with os.fdopen(pidfd, "rb") as ended:
        # A pidfd becomes readable when its process has ended.
        assert select.select([ended], [], [], 10.0)[0], "the store outlived its parent"
