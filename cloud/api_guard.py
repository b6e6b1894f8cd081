"""What a POST to the HTTP API has to be, whatever its path."""

from __future__ import annotations

from fastapi import HTTPException, Request

__all__ = ["BODY_BYTES_MAX", "json_body"]

BODY_BYTES_MAX = 16 * 1024


async def json_body(request: Request) -> None:
    """Refuse a body that a page of another origin could send, or one that is too large."""
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type != "application/json":
        raise HTTPException(415, "send the body as application/json")
    length = request.headers.get("content-length", "")
    if not length.isdigit() or int(length) > BODY_BYTES_MAX:
        raise HTTPException(413, f"send a body of at most {BODY_BYTES_MAX} bytes, with its length")
