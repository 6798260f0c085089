"""The OpenAPI and AsyncAPI documents, and Swagger UI, served from here: it works offline."""

from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from gateway import asyncapi, openapi

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
GUARDS: Final = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""The page is where people type their API keys: nothing from elsewhere runs in it or leaves it."""


class Assets(StaticFiles):
    """Files that the pages load, under the same policy."""

    def __init__(self, *, directory: Path, cache_control: str = "") -> None:
        """Serve what is in `directory`."""
        super().__init__(directory=directory)
        self._headers = {**GUARDS, **({"cache-control": cache_control} if cache_control else {})}

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Answer with a file and its headers."""
        response = await super().get_response(path, scope)
        response.headers.update(self._headers)
        return response


def routes() -> list[BaseRoute]:
    """Return the routes of the document, the page and the page's files."""
    folder = Path(str(files("gateway") / "static"))
    document = msgspec.json.encode(openapi.document(version("holdfast")))
    events = msgspec.json.encode(asyncapi.document(version("holdfast")))
    page = (folder / "docs.html").read_bytes()

    async def serve_document(_request: Request) -> Response:
        return Response(document, media_type="application/json")

    async def serve_events(_request: Request) -> Response:
        return Response(events, media_type="application/json")

    async def serve_page(_request: Request) -> Response:
        return Response(page, media_type="text/html", headers=GUARDS)

    return [
        Route("/openapi.json", serve_document),
        Route("/asyncapi.json", serve_events),
        Route("/docs", serve_page),
        Mount("/docs/assets", Assets(directory=folder)),
    ]
