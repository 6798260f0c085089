"""The client layer on fakeredis and on stand-ins: what is retried, and what a failure becomes."""

from collections.abc import Callable
from typing import Any

import fakeredis
import pytest
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    NoScriptError,
    OutOfMemoryError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from engine import store as store_module
from engine.outcomes import OutcomeUnknown, StoreFault, StoreUnavailable
from engine.scripts import Script, script
from engine.store import MAX_ATTEMPTS, Store, StoreSettings

SETTINGS = StoreSettings("redis://unused")
A_SCRIPT = Script("a", "return 1", "a" * 40)


class Client:
    """Answers each command by the next of `answers`; an exception is raised."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.commands: list[tuple[object, ...]] = []

    async def execute_command(self, *command: object) -> object:
        self.commands.append(command)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
def make_store(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Store, Any]]:
    monkeypatch.setattr(store_module, "FIRST_BACKOFF_MS", 0)

    def make(*answers: object) -> tuple[Store, Any]:
        client: Any = Client(*answers)
        return Store(client, SETTINGS), client

    return make


def refused() -> RedisConnectionError:
    error = RedisConnectionError("connecting")
    error.__cause__ = ConnectionRefusedError(111, "refused")
    return error


async def test_a_lost_reply_is_asked_for_again_with_the_same_words(make_store: Any) -> None:
    store, client = make_store(RedisTimeoutError(), RedisConnectionError("reset"), b"reply")
    assert await store.call(A_SCRIPT, ["k"], b"blob") == b"reply"
    assert client.commands == [("EVALSHA", A_SCRIPT.sha, 1, "k", b"blob")] * 3


@pytest.mark.parametrize(
    "error", [BusyLoadingError(), ClusterDownError("down"), TryAgainError(), refused()]
)
async def test_what_passes_is_waited_out(make_store: Any, error: Exception) -> None:
    store, _ = make_store(error, b"reply")
    assert await store.call(A_SCRIPT, ["k"]) == b"reply"


async def test_a_lost_reply_that_stays_lost_is_an_unknown_outcome(make_store: Any) -> None:
    store, client = make_store(*[RedisTimeoutError() for _ in range(MAX_ATTEMPTS)])
    with pytest.raises(OutcomeUnknown) as caught:
        await store.call(A_SCRIPT, ["k"])
    assert isinstance(caught.value.__cause__, RedisTimeoutError)
    assert len(client.commands) == MAX_ATTEMPTS


async def test_a_call_that_was_never_sent_is_certainly_not_applied(make_store: Any) -> None:
    store, _ = make_store(*[refused() for _ in range(MAX_ATTEMPTS)])
    with pytest.raises(StoreUnavailable):
        await store.call(A_SCRIPT, ["k"])


async def test_one_lost_reply_among_refused_connections_stays_unknown(make_store: Any) -> None:
    store, _ = make_store(RedisTimeoutError(), *[refused() for _ in range(MAX_ATTEMPTS - 1)])
    with pytest.raises(OutcomeUnknown):
        await store.call(A_SCRIPT, ["k"])


async def test_a_read_has_no_unknown_outcome(make_store: Any) -> None:
    store, _ = make_store(*[RedisTimeoutError() for _ in range(MAX_ATTEMPTS)])
    with pytest.raises(StoreUnavailable):
        await store.read([("GET", "k")])


async def test_a_full_store_says_so_and_is_not_asked_again(make_store: Any) -> None:
    store, client = make_store(OutOfMemoryError("OOM"))
    with pytest.raises(StoreUnavailable, match="memory is full"):
        await store.call(A_SCRIPT, ["k"])
    assert len(client.commands) == 1


async def test_an_error_reply_is_a_fault_with_the_stores_words(make_store: Any) -> None:
    store, client = make_store(ResponseError("WRONGTYPE of a key"))
    with pytest.raises(StoreFault, match="WRONGTYPE of a key"):
        await store.call(A_SCRIPT, ["k"])
    assert len(client.commands) == 1


async def test_a_script_that_the_server_lost_is_sent_whole(make_store: Any) -> None:
    store, client = make_store(NoScriptError(), b"reply")
    assert await store.call(A_SCRIPT, ["k"], b"blob") == b"reply"
    assert client.commands[1] == ("EVAL", A_SCRIPT.text, 1, "k", b"blob")


async def test_reads_come_back_in_order_over_a_pipeline() -> None:
    client: Any = fakeredis.FakeAsyncRedis()
    store = Store(client, SETTINGS)
    await client.set("a", "1")
    await client.hset("h", mapping={"f": "2"})
    assert await store.read([("GET", "a"), ("HGET", "h", "f"), ("GET", "none")]) == [
        b"1",
        b"2",
        None,
    ]
    await store.close()


async def test_a_ping_of_a_dead_store_is_unavailable() -> None:
    server = fakeredis.FakeServer()
    client: Any = fakeredis.FakeAsyncRedis(server=server)
    store = Store(client, SETTINGS)
    await store.ping()
    server.connected = False
    with pytest.raises(StoreUnavailable):
        await store.ping()
    await store.close()


def test_settings_take_the_cluster_flag_out_of_the_url() -> None:
    settings = StoreSettings.from_url("redis://h:1/?cluster=true&db=0", username="u", password="p")
    assert settings.cluster
    assert "cluster" not in settings.url
    assert settings.username == "u"
    environment = {"HOLDFAST_REDIS_URL": "unix:///run/s.sock", "HOLDFAST_REDIS_PASSWORD": "x"}
    assert StoreSettings.from_environment(environment) == StoreSettings(
        "unix:///run/s.sock", "", "x"
    )


def test_the_verbs_differ() -> None:
    assert len({script(name).sha for name in ("reserve", "commit", "release")}) == 3
