import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from gateway import logs
from gateway.logs import AccessLog
from gateway.settings import GatewaySettings, SettingRefused
from gateway.trail import Trail


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What is logged as JSON; the logging of the other tests is put back after."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure(level="info", log_format="json")
    yield stream
    structlog.reset_defaults()
    root.handlers, root.level = before[0], before[1]


def events(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def record(access_log: AccessLog, **fields: Any) -> None:
    access_log.record(
        **{
            "method": "GET",
            "path": "/livez",
            "status": 200,
            "duration_ms": 1.0,
            "request_id": "r",
            "trail": Trail(),
            **fields,
        }
    )


def test_one_of_many_good_requests_is_logged(logged: io.StringIO) -> None:
    access_log = AccessLog(sample_every=10)
    for _ in range(21):
        record(access_log)
    assert len(events(logged)) == 3


@pytest.mark.parametrize("fields", [{"status": 503}, {"status": 500}, {"duration_ms": 1_000.0}])
def test_failed_and_slow_requests_are_always_logged(
    logged: io.StringIO, fields: dict[str, Any]
) -> None:
    access_log = AccessLog(sample_every=1_000)
    for _ in range(5):
        record(access_log, **fields)
    assert [event["request_id"] for event in events(logged)] == ["r"] * 5


def test_a_secret_is_cut_wherever_it_stands(logged: io.StringIO) -> None:
    secret = "hfk_Ab12Cd34_" + "x" * 38
    record(AccessLog(), path=f"/v1/{secret}/x")
    logging.getLogger("uvicorn.error").error("bad line: %s", secret)
    try:
        raise ValueError(secret)
    except ValueError:
        structlog.get_logger("t").exception("it broke")
    assert "xxx" not in logged.getvalue()
    assert logged.getvalue().count("hfk_Ab12Cd34_(hidden)") == 3


def test_a_line_break_in_a_path_makes_no_second_line(logged: io.StringIO) -> None:
    record(AccessLog(), path='/a\r\n{"event": "forged"}')
    (event,) = events(logged)
    assert event["event"] == "request"


def test_the_environment_is_read() -> None:
    settings = GatewaySettings.from_environment(
        {
            "HOLDFAST_REDIS_URL": "redis://store:6379?cluster=true",
            "HOLDFAST_REDIS_PASSWORD": "p",
            "HOLDFAST_HOST": "0.0.0.0",  # noqa: S104 - it is only read
            "HOLDFAST_PORT": "80",
            "HOLDFAST_PARTITIONS": "256",
            "HOLDFAST_WORKERS": "4",
            "HOLDFAST_UNSAFE_DURABILITY": "true",
            "HOLDFAST_LOG_LEVEL": "DEBUG",
        }
    )
    assert settings.store.cluster
    assert settings.store.password == "p"
    assert (settings.host, settings.port, settings.partitions) == ("0.0.0.0", 80, 256)  # noqa: S104
    assert settings.workers == 4
    assert (settings.unsafe_durability, settings.log_level) == (True, "debug")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOLDFAST_REDIS_URL", ""),
        ("HOLDFAST_PORT", "80a"),
        ("HOLDFAST_PORT", "65536"),
        ("HOLDFAST_PARTITIONS", "-1"),
        ("HOLDFAST_LISTEN_FD", "three"),
        ("HOLDFAST_WORKERS", "many"),
        ("HOLDFAST_UNSAFE_DURABILITY", "maybe"),
        ("HOLDFAST_LOG_LEVEL", "loud"),
        ("HOLDFAST_LOG_FORMAT", "xml"),
    ],
)
def test_a_bad_variable_is_refused_by_its_name(name: str, value: str) -> None:
    environ = {"HOLDFAST_REDIS_URL": "redis://store", name: value}
    with pytest.raises(SettingRefused, match=name):
        GatewaySettings.from_environment(environ)
