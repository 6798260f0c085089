"""The way from a path to its endpoint, without a service behind it."""

from typing import Any

import pytest

from gateway.endpoints import Edge, Endpoint
from gateway.logs import AccessLog
from gateway.router import Router

Seen = list[tuple[str, dict[str, str]]]


class Named(Endpoint):
    """Takes note of the requests that reach it."""

    def __init__(self, name: str, seen: Seen, *, error: Exception | None = None) -> None:
        self._name = name
        self._seen = seen
        self._error = error

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._seen.append((self._name, scope["path_params"]))
        if self._error is not None:
            raise self._error


async def unread() -> Any:
    raise AssertionError("nobody reads a body here")


async def unsent(_message: Any) -> None:
    raise AssertionError("nobody answers here")


async def nothing_else(_scope: Any, _receive: Any, _send: Any) -> None:
    raise AssertionError("the path is the endpoint's")


def router_of(*paths: str) -> tuple[Router, Seen]:
    seen: Seen = []

    async def otherwise(_scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(("otherwise", {}))

    return Router({path: Named(path, seen) for path in paths}, otherwise=otherwise), seen


@pytest.mark.parametrize(
    ("path", "name", "parameters"),
    [
        ("/a", "/a", {}),
        ("/a/x", "/a/{one}", {"one": "x"}),
        ("/b/c", "/b/c", {}),
        ("/a/x/c/y", "/a/{one}/c/{two}", {"one": "x", "two": "y"}),
        ("/a/%2F", "/a/{one}", {"one": "%2F"}),
        ("/", "otherwise", {}),
        ("/a/", "otherwise", {}),
        ("/a//c/y", "otherwise", {}),
        ("/a/x/c", "otherwise", {}),
        ("/a/x/c/y/z", "otherwise", {}),
        ("/A", "otherwise", {}),
        ("/a" + "/x" * 1000, "otherwise", {}),
    ],
)
async def test_a_path_leads_to_its_endpoint(
    path: str, name: str, parameters: dict[str, str]
) -> None:
    router, seen = router_of("/a", "/b/c", "/a/{one}", "/a/{one}/c/{two}")
    await router({"type": "http", "path": path}, unread, unsent)
    assert seen == [(name, parameters)]


def test_a_parameter_has_one_name_in_its_place() -> None:
    with pytest.raises(ValueError, match="two is called one elsewhere"):
        router_of("/a/{one}", "/a/{two}/b")


@pytest.mark.parametrize("paths", [("/a/b", "/a/{one}"), ("/a/{one}/c", "/a/b/c")])
def test_an_id_cannot_be_taken_for_a_word(paths: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="taken for another"):
        router_of(*paths)


async def test_a_bug_is_answered_for_and_goes_on_to_the_server() -> None:
    seen: Seen = []
    router = Router({"/a": Named("/a", seen, error=RuntimeError("a bug"))}, otherwise=nothing_else)
    edge = Edge(router, AccessLog())
    scope = {"type": "http", "method": "GET", "raw_path": b"/a", "headers": []}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(RuntimeError, match="a bug"):
        await edge(scope, unread, send)
    assert [message.get("status") for message in sent] == [500, None]
    assert b"internal" in sent[1]["body"]
