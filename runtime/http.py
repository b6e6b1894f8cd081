"""A small HTTP server for a gateway: metrics, health and status, and nothing else.

HTTP/1.1 is parsed by h11, which is strict and has no I/O; this module moves the bytes and holds
the limits. Only GET and HEAD are answered. A cloud node serves the same paths through its API.

Invariants: a connection holds at most HEAD_BYTES_MAX of a request and one response; it is closed
when a request does not arrive, or a response is not taken, in time; past CONNECTIONS_MAX a new
connection gets 503.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import h11
import structlog

from runtime.logs import limited
from runtime.metrics import Metrics
from runtime.service import StartError, reason_of

__all__ = ["Handler", "HttpServer", "Request", "Response", "json_response", "telemetry_routes"]

log = structlog.get_logger(component="http")

HEAD_BYTES_MAX = 8 * 1024  # request line and headers
BODY_BYTES_MAX = 1024  # read and ignored, so that keep-alive survives a client that sends one
READ_BYTES = 4 * 1024
CONNECTIONS_MAX = 32
REQUEST_TIMEOUT_S = 10.0  # from the first wait to the last byte, idle keep-alive included
WRITE_TIMEOUT_S = 10.0


@dataclass(slots=True, frozen=True)
class Request:
    """What a handler gets to know."""

    method: str  # "GET" or "HEAD"
    path: str
    query: str
    headers: Mapping[str, str]  # names in lower case


@dataclass(slots=True, frozen=True)
class Response:
    """What a handler answers."""

    body: bytes
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Request], Response | Awaitable[Response]]


class _RefusedError(Exception):
    """A request that gets no handler: its status and one line."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class HttpServer:
    """Serves `routes` on one port.

    Attributes:
        port: The port in use; 0 before `start`.
    """

    def __init__(
        self, routes: Mapping[str, Handler], *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        """Prepare; `routes` maps whole paths to handlers, and port 0 means any free one."""
        self.port = 0
        self._routes = dict(routes)
        self._address = (host, port)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; raises StartError when the port cannot be had."""
        host, port = self._address
        try:
            self._server = await asyncio.start_server(
                self._accept, host, port, limit=HEAD_BYTES_MAX
            )
        except OSError as error:
            raise StartError(
                f"http: cannot listen on {host}:{port}: {reason_of(error)}; "
                "choose another http.port"
            ) from None
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and end the connections."""
        if self._server is None:
            return
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(reader, writer, self._routes)
        crowded = len(self._connections) >= CONNECTIONS_MAX
        task = asyncio.create_task(connection.run(refuse=crowded), name="http-connection")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)


class _Connection:
    """One client: requests one after the other, until an error, a timeout or its end."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        routes: Mapping[str, Handler],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._routes = routes
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)

    async def run(self, *, refuse: bool) -> None:
        try:
            if refuse:
                await self._send(_text(503, "too many connections"), head=False)
                return
            while await self._one_request():
                self._http.start_next_cycle()
        except (OSError, TimeoutError):
            pass  # the client left, or takes and gives nothing: nobody to tell
        except Exception:  # noqa: BLE001 - a task's root
            limited(log, "connection_failed", 60.0).exception("connection_failed")
        finally:
            self._writer.close()

    async def _one_request(self) -> bool:
        """Answer one request; return True when another may follow on this connection."""
        head = False
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                request = await self._receive()
            if request is None:
                return False
            head = request.method == "HEAD"
            response = await self._handle(request)
        except h11.RemoteProtocolError as error:
            response = _text(error.error_status_hint, str(error))
        except _RefusedError as refused:
            allow = (("Allow", "GET, HEAD"),) if refused.status == 405 else ()
            response = _text(refused.status, str(refused), allow)
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await self._send(response, head=head)
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _receive(self) -> Request | None:
        """Read one whole request; None when the client ended instead."""
        request: Request | None = None
        body_bytes = 0
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(READ_BYTES))
            elif isinstance(event, h11.Request):
                request = _request(event)
            elif isinstance(event, h11.Data):
                body_bytes += len(event.data)
                if body_bytes > BODY_BYTES_MAX:
                    raise _RefusedError(413, f"a body over {BODY_BYTES_MAX} bytes is not taken")
            elif isinstance(event, h11.EndOfMessage):
                return request
            else:  # ConnectionClosed
                return None

    async def _handle(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            raise _RefusedError(405, f"{request.method} is not allowed; use GET")
        handler = self._routes.get(request.path)
        if handler is None:
            raise _RefusedError(404, f"no such path; there are {', '.join(sorted(self._routes))}")
        try:
            answer = handler(request)
            return await answer if inspect.isawaitable(answer) else answer
        except Exception:  # noqa: BLE001 - one path's fault must not end the server
            limited(log, request.path, 60.0).exception("handler_failed", path=request.path)
            return _text(500, "this path failed; the log says why")

    async def _send(self, response: Response, *, head: bool) -> None:
        headers = [
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            *response.headers,
        ]
        if self._http.their_state is not h11.DONE:  # what follows could not be told apart
            headers.append(("Connection", "close"))
        reason = HTTPStatus(response.status).phrase
        start = h11.Response(status_code=response.status, headers=headers, reason=reason)
        parts = [self._http.send(start)]
        if not head:
            parts.append(self._http.send(h11.Data(data=response.body)))
        parts.append(self._http.send(h11.EndOfMessage()))
        self._writer.write(b"".join(part for part in parts if part))
        await self._writer.drain()


def telemetry_routes(
    metrics: Metrics,
    *,
    health: Callable[[], Sequence[str]],
    ready: Callable[[], Sequence[str]],
    status: Callable[[], Mapping[str, Any]],
) -> dict[str, Handler]:
    """Return handlers for `/metrics`, `/healthz`, `/readyz` and `/status`.

    Args:
        metrics: What `/metrics` shows.
        health: Reasons why the process should be restarted, one line each; empty is well.
        ready: Reasons why it cannot do its work now; empty is ready.
        status: What an operator wants to see, as JSON has it.
    """

    def on_metrics(request: Request) -> Response:
        body, content_type = metrics.render(request.headers.get("accept", ""))
        return Response(body, content_type=content_type)

    return {
        "/metrics": on_metrics,
        "/healthz": lambda _request: _verdict(health()),
        "/readyz": lambda _request: _verdict(ready()),
        "/status": lambda _request: json_response(status()),
    }


def json_response(value: Any, status: int = 200) -> Response:
    """Return `value` as a JSON response."""
    body = json.dumps(value, allow_nan=False).encode() + b"\n"
    return Response(body, status, "application/json")


def _verdict(reasons: Sequence[str]) -> Response:
    return json_response({"ok": not reasons, "reasons": list(reasons)}, 503 if reasons else 200)


def _text(status: int, detail: str, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    return Response(detail.encode() + b"\n", status, headers=headers)


def _request(event: h11.Request) -> Request:
    # h11 has checked that these are ASCII without controls
    path, _, query = event.target.decode("ascii").partition("?")
    headers = {name.decode("ascii"): value.decode("latin-1") for name, value in event.headers}
    return Request(event.method.decode("ascii"), path, query, headers)
