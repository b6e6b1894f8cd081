"""The console: a page on the node's state at `/`, and the API's reference at `/docs`.

Plain HTML, CSS and JavaScript without a build step. Nothing is loaded from another host, so it
works on a network without one, and a content security policy keeps it so: what a device sends
is only ever shown as text.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Response

__all__ = ["console_routes"]

_FOLDER = Path(__file__).parent
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/console/console.css": ("console.css", "text/css; charset=utf-8"),
    "/console/console.js": ("console.js", "text/javascript; charset=utf-8"),
    "/console/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def console_routes() -> APIRouter:
    """Return the routes of the console's files, held in memory."""
    router = APIRouter()
    for path, (name, content_type) in _FILES.items():
        router.add_api_route(path, _serving((_FOLDER / name).read_bytes(), content_type))
    return router


def _serving(body: bytes, content_type: str) -> Callable[[], Awaitable[Response]]:
    async def serve() -> Response:
        return Response(body, media_type=content_type, headers=_HEADERS)

    return serve
