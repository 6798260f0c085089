"""The settings of `serve`: their order, their refusals, and the variables that mean something."""

import re
from pathlib import Path

import pytest

import engine
import gateway
import holdfast
from holdfast.settings import KNOWN_VARIABLES, Settings, SettingsRefused

SECRET_URL = "http://:hunter2@example.com"


def refused(flags: dict[str, object], environ: dict[str, str]) -> dict[str, str]:
    with pytest.raises(SettingsRefused) as refusal:
        Settings.read(flags, environ)
    return {problem.name: problem.wanted for problem in refusal.value.problems}


def test_a_flag_comes_before_its_variable_and_that_before_the_default() -> None:
    settings = Settings.read(
        {"port": 9000, "workers": None}, {"HOLDFAST_PORT": "9001", "HOLDFAST_WORKERS": "2"}
    )
    assert (settings.port, settings.workers, settings.host) == (9000, 2, "127.0.0.1")
    assert settings.partitions is None


def test_every_kind_of_value_is_read_from_the_environment() -> None:
    settings = Settings.read(
        {},
        {
            "HOLDFAST_DATA_DIR": "/srv/holdfast",
            "HOLDFAST_REDIS_URL": "rediss://store.example.com:6380/0",
            "HOLDFAST_REDIS_PASSWORD": "hunter2",
            "HOLDFAST_UNSAFE_DURABILITY": "Yes",
            "HOLDFAST_LOG_LEVEL": "WARNING",
            "HOLDFAST_PARTITIONS": "256",
        },
    )
    assert settings.data_dir == Path("/srv/holdfast")
    assert settings.redis_url == "rediss://store.example.com:6380/0"
    assert settings.redis_password == "hunter2"
    assert settings.unsafe_durability is True
    assert settings.log_level == "warning"
    assert settings.partitions == 256


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    assert Settings.read({}, {"HOLDFAST_PORT": ""}) == Settings()


def test_a_misspelt_variable_is_refused_with_what_it_may_have_meant() -> None:
    wanted = refused({}, {"HOLDFAST_WORKER": "2", "PATH": "/bin"})
    assert wanted == {
        "HOLDFAST_WORKER": "no such variable; did you mean HOLDFAST_WORKERS or HOLDFAST_PORT?"
    }


def test_all_problems_are_told_at_once_under_the_name_that_said_them() -> None:
    wanted = refused(
        {"port": 70_000, "server": "/bin/valkey-server"},
        {
            "HOLDFAST_WORKERS": "0",
            "HOLDFAST_REDIS_URL": "redis://localhost",
            "HOLDFAST_UNSAFE_DURABILITY": "maybe",
        },
    )
    assert wanted == {
        "--port": "0 to 65535",
        "HOLDFAST_WORKERS": "1 to 64",
        "HOLDFAST_UNSAFE_DURABILITY": "true or false",
        "--server": "either it or a store's URL",
    }


def test_a_refused_secret_is_not_shown() -> None:
    with pytest.raises(SettingsRefused) as refusal:
        Settings.read({"redis_url": SECRET_URL}, {})
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("port", ["-1", "0x50", "1e3", "८०८०", " 80", "80.0"])
def test_a_number_is_decimal_digits(port: str) -> None:
    assert refused({}, {"HOLDFAST_PORT": port}) == {"HOLDFAST_PORT": "0 to 65535"}


def test_a_flag_that_is_no_setting_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(TypeError, match="prot"):
        Settings.read({"prot": 1}, {})


def test_every_variable_that_the_code_reads_is_known() -> None:
    named: set[str] = set()
    for package in (engine, gateway, holdfast):
        assert package.__file__ is not None
        for source in Path(package.__file__).parent.rglob("*.py"):
            named |= set(re.findall(r"HOLDFAST_[A-Z0-9_]*[A-Z0-9]", source.read_text("utf-8")))
    assert named <= KNOWN_VARIABLES
    assert "HOLDFAST_LISTEN_FD" in named
