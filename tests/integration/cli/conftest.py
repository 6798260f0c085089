"""Fixtures of the tests of the command line: a service of their own, as a user starts it."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.services import CommandLine, RunningService


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service that these tests share, each with a merchant of its own."""
    running = RunningService(tmp_path_factory.mktemp("service"))
    yield running
    assert running.stop() == 0


@pytest.fixture
def cli(service: RunningService) -> CommandLine:
    """The command, for a merchant that nobody else has."""
    return CommandLine(service.environment, f"m-{uuid4().hex[:12]}")
