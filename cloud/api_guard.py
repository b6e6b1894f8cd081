"""What a POST to the HTTP API has to be, whatever its path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import HTTPException, Request

__all__ = ["BODY_BYTES_MAX", "json_body", "json_body_of"]

BODY_BYTES_MAX = 16 * 1024


def json_body_of(bytes_max: int) -> Callable[[Request], Awaitable[None]]:
    """Return what refuses a body that another origin's page could send, or one too large."""

    async def check(request: Request) -> None:
        content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if content_type != "application/json":
            raise HTTPException(415, "send the body as application/json")
        length = request.headers.get("content-length", "")
        if not length.isdigit() or int(length) > bytes_max:
            raise HTTPException(413, f"send a body of at most {bytes_max} bytes, with its length")

    return check


json_body = json_body_of(BODY_BYTES_MAX)
