import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from engine.access import POSITIVE_SECONDS
from holdfast.client import ApiError, Client, RetryPolicy
from holdfast.datadir import DataDir
from tests.services import CommandLine, RunningService

SIGN_SECONDS = 10.0
CHECK_SECONDS = 0.05


def findings(result: Result) -> dict[str, dict[str, Any]]:
    return {one["check"]: one for one in json.loads(result.stdout)["findings"]}


def ask_until_refused(client: Client, merchant: str) -> None:
    """Ask again and again, for a little longer than a revoked key may go on."""
    give_up_at = time.monotonic() + POSITIVE_SECONDS + 5
    while time.monotonic() < give_up_at:
        client.stock(merchant, "leeds", "mug")
        time.sleep(0.05)


def ask_in_a_row(client: Client, merchant: str) -> None:
    """Ask far more often than a small limit allows."""
    for _ in range(50):
        client.locations(merchant)


def test_a_key_is_made_used_listed_and_revoked(cli: CommandLine, service: RunningService) -> None:
    made = cli.json("keys", "create", "--role", "feed", "-m", cli.merchant, "--label", "till")
    assert made["secret"].startswith(f"hfk_{made['id']}_")
    listed = {key["id"]: key for key in cli.rows("keys", "list")}
    assert listed[made["id"]]["merchant"] == cli.merchant
    assert "secret" not in listed[made["id"]]
    assert made["secret"] not in cli.run("keys", "list").output
    till = CommandLine({**cli.environment, "HOLDFAST_API_KEY": made["secret"]}, cli.merchant)
    till.run("move", "receive", "leeds", "mug", 1)
    assert cli.json("keys", "revoke", made["id"])["revoked_at"] is not None
    with Client(service.url, made["secret"]) as client, pytest.raises(ApiError) as refused:
        ask_until_refused(client, cli.merchant)
    assert refused.value.code == "unauthenticated"
    till.run("stock", expect=1)


def test_a_key_over_its_limit_is_told_to_come_back(
    cli: CommandLine, service: RunningService
) -> None:
    made = cli.json("keys", "create", "--role", "read", "--rate-limit", 1, "--burst", 2)
    assert made["rate_limit"] == {"per_second": 1, "burst": 2}
    assert "1/s, 2 at once" in cli.run("keys", "list").stdout
    asked = Client(service.url, made["secret"], retry=RetryPolicy(max_attempts=1))
    with asked as client, pytest.raises(ApiError) as refused:
        ask_in_a_row(client, cli.merchant)
    assert (refused.value.status, refused.value.code) == (429, "rate_limited")
    # The command's own client waits as it is told, and gets its answer.
    CommandLine({**cli.environment, "HOLDFAST_API_KEY": made["secret"]}, cli.merchant).run("stock")
    assert cli.json("keys", "limit", made["id"], "--none")["rate_limit"] is None
    assert "9/s, 9 at once" in cli.run("keys", "limit", made["id"], "--rate-limit", 9).stdout


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--burst", 5),
        ("--none", "--rate-limit", 5),
        ("--rate-limit", 0),
        ("--rate-limit", 5, "--burst", 4),
    ],
)
def test_a_limit_that_is_none_is_refused(cli: CommandLine, options: tuple[object, ...]) -> None:
    cli.run("keys", "limit", "AAAAAAAA", *options, expect=2)


def test_a_key_that_is_not_there_cannot_be_limited(cli: CommandLine) -> None:
    said = cli.json("keys", "limit", "AAAAAAAA", "--rate-limit", 5, expect=1)
    assert said["error"]["code"] == "key_not_found"


def test_only_the_secret_goes_to_standard_output(cli: CommandLine) -> None:
    result = cli.run("keys", "create", "--role", "read")
    assert result.stdout.startswith("hfk_")
    assert result.stdout.count("\n") == 1


def test_a_key_that_is_not_there_cannot_be_revoked(cli: CommandLine) -> None:
    assert cli.json("keys", "revoke", "AAAAAAAA", expect=1)["error"]["code"] == "key_not_found"


def test_keys_without_a_running_store_say_so(cli: CommandLine, tmp_path: Path) -> None:
    result = cli.run("keys", "list", "--data-dir", tmp_path / "empty", expect=4)
    assert "holds no store" in result.stderr
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (stopped / "store.password").write_text("secret")
    result = cli.run("keys", "list", "--data-dir", stopped, expect=3)
    assert "does not run" in result.stderr
    dead = f"unix://{tmp_path}/nobody.sock"
    assert cli.run("keys", "list", "--redis-url", dead, expect=3).stderr


def test_a_healthy_setup_is_healthy(cli: CommandLine, service: RunningService) -> None:
    give_up_at = time.monotonic() + SIGN_SECONDS
    result = cli.run("doctor", "--json")
    # The background process has its own start, and gives its first sign of life just after it.
    while not json.loads(result.stdout)["healthy"] and time.monotonic() < give_up_at:
        time.sleep(CHECK_SECONDS)
        result = cli.run("doctor", "--json")
    found = findings(result)
    assert json.loads(result.stdout)["healthy"] is True
    assert {one["status"] for one in found.values()} == {"ok"}
    assert str(service.process.pid) in found["lock"]["found"]
    assert {"python", "server binary", "store", "durability", "clock", "API key"} <= set(found)


def test_before_the_first_start_nothing_is_wrong(cli: CommandLine, tmp_path: Path) -> None:
    cli.environment = {"HOLDFAST_URL": "http://127.0.0.1:1"}
    result = cli.run("doctor", "--json", "--data-dir", tmp_path / "new")
    found = findings(result)
    assert found["service"]["status"] == "skipped"
    assert found["API key"]["status"] == "skipped"
    assert not (tmp_path / "new").exists()


def test_a_directory_that_is_served_on_another_store_has_none_to_check(
    cli: CommandLine, tmp_path: Path
) -> None:
    cli.environment = {"HOLDFAST_URL": "http://127.0.0.1:1"}
    with DataDir(tmp_path / "data") as directory:
        result = cli.run("doctor", "--json", "--data-dir", directory.path, expect=4)
    found = findings(result)
    assert found["store"]["status"] == "skipped"
    assert "--redis-url" in found["store"]["remedy"]


def test_what_is_wrong_is_found_with_its_remedy(cli: CommandLine, tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    loose.chmod(0o777)
    cli.environment["HOLDFAST_PROT"] = "80"
    cli.environment["HOLDFAST_API_KEY"] = "hfk_nonsense"
    result = cli.run(
        *("doctor", "--json", "--data-dir", loose, "--url", "http://127.0.0.1:1"),
        *("--redis-url", f"unix://{tmp_path}/nobody.sock"),
        expect=4,
    )
    found = findings(result)
    failed = {name for name, one in found.items() if one["status"] == "failed"}
    assert failed == {"environment", "data directory", "store"}
    assert all(found[name]["remedy"] for name in failed)
    assert "HOLDFAST_PORT" in found["environment"]["found"]
    assert "chmod go-w" in found["data directory"]["remedy"]


def test_a_secret_that_others_may_read_is_found(cli: CommandLine, tmp_path: Path) -> None:
    directory = tmp_path / "data"
    directory.mkdir(mode=0o700)
    key = directory / "admin.key"
    key.write_text("hfk_")
    key.chmod(0o644)
    cli.environment = {"HOLDFAST_URL": "http://127.0.0.1:1"}
    result = cli.run("doctor", "--data-dir", directory, expect=4)
    assert "chmod 600" in result.stdout


def test_a_key_that_the_service_does_not_know_is_found(
    cli: CommandLine, service: RunningService, tmp_path: Path
) -> None:
    made = cli.json("keys", "create", "--role", "read")
    cli.run("keys", "revoke", made["id"])
    cli.environment["HOLDFAST_API_KEY"] = made["secret"]
    result = cli.run("doctor", "--json", expect=4)
    assert findings(result)["API key"]["status"] == "failed"
    assert made["secret"] not in result.output


def test_the_version_is_told(cli: CommandLine) -> None:
    assert set(cli.json("version")) == {"holdfast", "python"}
    assert cli.run("version").stdout.startswith("holdfast ")
