import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from engine.access import Role
from holdfast.cli import main
from holdfast.cli import stock as stock_commands
from holdfast.client import Client
from tests.services import CommandLine, RunningService, clean_environment


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        # Bound and not listening: the port is refused, and nobody else gets it meanwhile.
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def another_program() -> Iterator[str]:
    """An address at which something else answers."""

    class Quiet(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("command", [("stock",), ("demo",), ("import", "FILE"), ("replay", "FILE")])
def test_a_service_that_is_down_gives_one_clear_line(
    cli: CommandLine, nobody: str, tmp_path: Path, command: tuple[str, ...]
) -> None:
    path = tmp_path / "file.csv"
    path.write_text("location,sku,on_hand\nleeds,mug,5\n")
    if command[0] == "replay":
        path.write_text("sold_at,store_id,basket_id,sku,quantity\n2017-01-01,s,b,mug,1\n")
    words = [str(path) if word == "FILE" else word for word in command]
    result = cli.run(*words, "--url", nobody, "--json", expect=3)
    assert json.loads(result.stdout)["error"]["code"] == "service_unreachable"
    assert len(result.stderr.splitlines()) == 1
    assert nobody in result.stderr
    assert "holdfast doctor" in result.stderr


def test_another_program_at_the_address_is_told(cli: CommandLine, another_program: str) -> None:
    result = cli.run("stock", "--url", another_program, expect=3)
    assert "not as Holdfast does" in result.stderr


def test_a_missing_key_is_told_with_its_remedy(cli: CommandLine, tmp_path: Path) -> None:
    result = cli.run("stock", "--data-dir", tmp_path / "empty", expect=4)
    assert "There is no API key" in result.stderr
    assert "--api-key-file" in result.stderr


def test_a_key_that_is_none_is_not_even_sent(cli: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("hfk_12345678_mistyped")
    result = cli.run("stock", "--api-key-file", path, expect=4)
    assert "is no API key" in result.stderr
    assert "mistyped" not in result.output


def test_a_role_that_is_too_little_is_refused(cli: CommandLine) -> None:
    secret = cli.json("keys", "create", "--role", Role.READ.value)["secret"]
    reader = CommandLine({**cli.environment, "HOLDFAST_API_KEY": secret}, cli.merchant)
    assert reader.rows("stock") == []
    refused = reader.json("move", "receive", "leeds", "mug", 1, expect=1)
    assert refused["error"]["code"] == "forbidden"


@pytest.mark.parametrize(
    "words",
    [
        ("reserve", "leeds", "mug"),
        ("reserve", "leeds", "mug=two"),
        ("reserve", "leeds", "mug=1", "--ttl-seconds", "0"),
        ("move", "steal", "leeds", "mug", "1"),
        ("move", "receive", "leeds", "mug", "1", "--idempotency-key", "schlüssel"),
        ("stock", "--url", "holdfast.example"),
        ("replay", "FILE", "--commit", "0.8", "--release", "0.3"),
        ("import", "-", "--import-id", "two words"),
        ("nonsense",),
        ("serve", "--port", "70000"),
    ],
)
def test_a_mistake_on_the_command_line_is_usage(cli: CommandLine, words: tuple[str, ...]) -> None:
    assert cli.run(*words, expect=2).stderr


def test_an_unknown_variable_stops_serve(cli: CommandLine) -> None:
    cli.environment["HOLDFAST_PROT"] = "80"
    assert "HOLDFAST_PORT" in cli.run("serve", expect=2).stderr


def test_a_second_serve_on_the_data_directory_names_the_first(
    cli: CommandLine, service: RunningService
) -> None:
    ours = clean_environment()
    command = [sys.executable, "-m", "holdfast", "serve", "--port", "0"]
    second = subprocess.run(
        [*command, "--data-dir", str(service.data_dir)],
        env=ours,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 4
    assert f"process {service.process.pid}" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_bug_is_one_line_and_debug_shows_where(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("something nobody thought of")

    monkeypatch.setattr(stock_commands, "_cells", fail)
    cli.run("move", "receive", "leeds", "mug", 1)
    result = cli.run("stock", "leeds", expect=70)
    assert "a bug in Holdfast" in result.stderr
    settings = {**cli.environment, "HOLDFAST_MERCHANT": cli.merchant}
    shown = CliRunner().invoke(main, ["--debug", "stock", "leeds"], env=settings)
    assert shown.exit_code == 70
    assert "Traceback" in shown.stderr
    assert "something nobody thought of" in shown.stderr


def test_ctrl_c_ends_a_replay_with_130(
    cli: CommandLine, service: RunningService, tmp_path: Path
) -> None:
    path = tmp_path / "sales.csv"
    path.write_text(
        "sold_at,store_id,basket_id,sku,quantity\n"
        "2017-01-01T00:00:00Z,s1,b1,mug,1\n"
        "2017-06-01T00:00:00Z,s1,b2,mug,1\n"
    )
    command = [sys.executable, "-m", "holdfast", "replay", str(path), "--speed", "1"]
    process = subprocess.Popen(
        [*command, "--merchant", cli.merchant],
        env=clean_environment() | service.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        key = (service.data_dir / "admin.key").read_text().strip()
        with Client(service.url, key) as client:
            give_up_at = time.monotonic() + 20
            # The first cart is through: now it waits five months for the second.
            while not client.locations(cli.merchant).data:
                assert time.monotonic() < give_up_at
                assert process.poll() is None
                time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said.decode().strip() == "Interrupted."
