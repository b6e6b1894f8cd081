"""Serves the API with uvicorn in the node's own event loop.

The socket is bound here, so that a port in use is one line and port 0 can be asked which it got;
signals stay with the process (runtime/service.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from runtime.service import StartError, reason_of

__all__ = ["ApiServer"]

BACKLOG = 128
CONNECTIONS_MAX = 256  # beyond it: 503
HEAD_BYTES_MAX = 16 * 1024
STOP_TIMEOUT_S = 3
KEEP_ALIVE_S = 30


class ApiServer:
    """A service that answers HTTP on one port.

    Attributes:
        port: The port in use; 0 before `start`.
    """

    def __init__(self, app: FastAPI, *, host: str, port: int) -> None:
        self.port = 0
        self._app = app
        self._address = (host, port)
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen; raises StartError when the port cannot be had."""
        bound = _bind(*self._address)
        self.port = bound.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,  # its loggers end in ours
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS_MAX,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=STOP_TIMEOUT_S,
            h11_max_incomplete_event_size=HEAD_BYTES_MAX,
        )
        server = self._server = _Server(config)
        self._task = asyncio.create_task(server.serve([bound]), name="api")
        while not server.started:
            await asyncio.sleep(0.005)
            if self._task.done():
                bound.close()
                await self._task

    async def stop(self) -> None:
        """Finish what is being answered and close the port."""
        if self._server is not None and self._task is not None:
            self._server.should_exit = True
            await self._task
            self._server = None


class _Server(uvicorn.Server):
    """A server that leaves the process's signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _bind(host: str, port: int) -> socket.socket:
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        bound = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise StartError(
            f"http: cannot listen on {host}:{port}: {reason_of(error)}; choose another http.port"
        ) from None
    bound.setblocking(False)
    return bound
