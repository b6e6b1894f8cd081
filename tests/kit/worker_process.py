"""A worker for tests: echoes a request, or hangs ("h…") or fails ("x…") as its first byte says."""

from __future__ import annotations

import threading

from runtime.worker import serve

__all__ = ["handle"]


def handle(request: bytes) -> bytes:
    """Return the request, if it says nothing else."""
    if request[:1] == b"x":
        raise SystemExit(3)
    if request[:1] == b"h":
        threading.Event().wait()
    return request


if __name__ == "__main__":
    serve(handle)
