"""The console: a page with its modules and styles; all else it asks the API for."""

from importlib.resources import files
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from gateway.docs import GUARDS, Assets

PATH: Final = "/console"

_HEADERS: Final = {**GUARDS, "cache-control": "no-cache"}
"""The files change with the product, and an old module beside a new one would be a broken page."""


def routes() -> list[BaseRoute]:
    """Return the routes of the page and of its files."""
    folder = Path(str(files("gateway") / "static" / "console"))
    page = (folder / "console.html").read_bytes()

    async def serve_page(_request: Request) -> Response:
        return Response(page, media_type="text/html", headers=_HEADERS)

    return [
        Route(PATH, serve_page),
        Mount(f"{PATH}/assets", Assets(directory=folder, cache_control="no-cache")),
    ]
