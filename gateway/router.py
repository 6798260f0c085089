"""From a path to its endpoint, one segment at a time.

The router of Starlette tries one pattern after the other, and wraps each endpoint in layers that
ours does without: together they took a sixth of a reserve's time in the gateway
(docs/decisions/0012). It still serves whatever is no operation of the API.
"""

from collections.abc import Mapping
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.endpoints import Endpoint

MAX_SEGMENTS: Final = 16
"""Of a path; the API's longest has fewer, and a longer one is not cut up to find that out."""


class _Node:
    """A place in the tree: where the next segment leads, and what is served here."""

    __slots__ = ("any", "endpoint", "literal", "parameter")

    def __init__(self) -> None:
        self.literal: dict[str, _Node] = {}
        self.any: _Node | None = None
        self.parameter = ""
        self.endpoint: Endpoint | None = None


class Router:
    """Serves the endpoints that it is given, and leaves other paths to `otherwise`."""

    def __init__(self, endpoints: Mapping[str, Endpoint], *, otherwise: ASGIApp) -> None:
        """Take endpoints by path, such as `/v1/merchants/{merchant}`.

        Raises ValueError where a parameter stands in the place of a word of another path, for an id
        may be any word, or of a parameter of another name.
        """
        self.endpoints = dict(endpoints)
        self.otherwise = otherwise
        self._root = _Node()
        for path, endpoint in endpoints.items():
            self._add(path, endpoint)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        endpoint = self._find(scope) if scope["type"] == "http" else None
        if endpoint is None:
            await self.otherwise(scope, receive, send)
            return
        await endpoint(scope, receive, send)

    def _add(self, path: str, endpoint: Endpoint) -> None:
        node = self._root
        for segment in path.split("/")[1:]:
            is_parameter = segment.startswith("{")
            if node.literal if is_parameter else node.any:
                raise ValueError(f"{path}: {segment} could be taken for another path's")
            if not is_parameter:
                node = node.literal.setdefault(segment, _Node())
                continue
            name = segment.strip("{}")
            if node.any is None:
                node.any, node.parameter = _Node(), name
            if node.parameter != name:
                raise ValueError(f"{path}: {name} is called {node.parameter} elsewhere")
            node = node.any
        node.endpoint = endpoint

    def _find(self, scope: Scope) -> Endpoint | None:
        """Return the endpoint of the path and leave its parameters in the scope."""
        parameters: dict[str, str] = {}
        node = self._root
        for segment in scope["path"].split("/", MAX_SEGMENTS)[1:]:
            following = node.literal.get(segment)
            if following is None:
                # A parameter is never empty, so `/a//b` is no path of ours.
                if node.any is None or not segment:
                    return None
                parameters[node.parameter] = segment
                following = node.any
            node = following
        if node.endpoint is not None:
            scope["path_params"] = parameters
        return node.endpoint
