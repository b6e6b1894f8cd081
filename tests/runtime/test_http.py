"""The gateway's HTTP server answers GET, refuses the rest in one line, and holds its limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from runtime import http
from runtime.http import HttpServer, Request, Response, telemetry_routes
from runtime.metrics import Metrics
from runtime.service import StartError


def hello(request: Request) -> Response:
    return Response(f"{request.path} {request.query} {request.headers['host']}".encode())


async def later(_request: Request) -> Response:
    await asyncio.sleep(0)
    return Response(b"later")


def broken(_request: Request) -> Response:
    raise RuntimeError("no")


@pytest.fixture(autouse=True)
def _no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that the server ends is not ended by this, but where a test sets it."""
    monkeypatch.setattr(http, "REQUEST_TIMEOUT_S", 3600.0)


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    server = HttpServer({"/hello": hello, "/later": later, "/broken": broken})
    await server.start()
    yield server
    await server.stop()


async def talk(server: HttpServer, sent: bytes) -> bytes:
    """Send bytes and read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(sent)
    async with asyncio.timeout(60):
        received = await reader.read()
    writer.close()
    return received


def get(path: str, *, method: str = "GET", close: bool = True, extra: str = "") -> bytes:
    end = "Connection: close\r\n" if close else ""
    return f"{method} {path} HTTP/1.1\r\nHost: gw\r\n{extra}{end}\r\n".encode()


async def test_answers_a_get(server: HttpServer) -> None:
    answer = await talk(server, get("/hello?x=1"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 13\r\n" in head
    assert body == b"/hello x=1 gw"


async def test_head_sends_no_body(server: HttpServer) -> None:
    answer = await talk(server, get("/later", method="HEAD"))
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"Content-Length: 5\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


async def test_one_connection_takes_several_requests(server: HttpServer) -> None:
    answer = await talk(server, get("/later", close=False) * 3 + get("/later"))
    assert answer.count(b"HTTP/1.1 200 ") == 4
    assert answer.count(b"later") == 4


async def test_request_may_arrive_byte_by_byte(server: HttpServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for byte in get("/later"):
        writer.write(bytes([byte]))
        await writer.drain()
    async with asyncio.timeout(60):
        assert (await reader.read()).endswith(b"later")
    writer.close()


@pytest.mark.parametrize(
    ("sent", "status", "line"),
    [
        (get("/nowhere"), 404, "no such path; there are /broken, /hello, /later"),
        (get("/hello", method="POST"), 405, "POST is not allowed; use GET"),
        (get("/broken"), 500, "this path failed; the log says why"),
        (b"GET /hello HTTP/1.1\r\n\r\n", 400, "Missing mandatory Host: header"),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400, "illegal request line"),
        (get("/" + "x" * 20_000), 431, "Receive buffer too long"),
        (get("/later", extra="Content-Length: 9999\r\n") + b"x" * 2_000, 413, "a body over"),
    ],
)
async def test_refuses_in_one_line(server: HttpServer, sent: bytes, status: int, line: str) -> None:
    answer = await talk(server, sent)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert body.decode().startswith(line)
    assert body.count(b"\n") == 1
    assert (b"Allow: GET, HEAD" in head) == (status == 405)


async def test_slow_request_is_cut(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_TIMEOUT_S", 0.05)
    assert await talk(server, b"GET /hello HTTP/1.1\r\nHost:") == b""


async def test_response_nobody_takes_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "WRITE_TIMEOUT_S", 0.05)
    huge = HttpServer({"/huge": lambda _request: Response(bytes(32_000_000))})
    await huge.start()
    _reader, writer = await asyncio.open_connection("127.0.0.1", huge.port, limit=1_000)
    writer.write(get("/huge"))
    async with asyncio.timeout(60):
        while not huge._connections:
            await asyncio.sleep(0.005)
        while huge._connections:
            await asyncio.sleep(0.005)
    writer.transport.abort()
    await huge.stop()


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECTIONS_MAX", 2)
    server = HttpServer({"/later": later})
    await server.start()
    held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
    for reader, writer in held:
        writer.write(get("/later", close=False))
        await reader.readuntil(b"later")
    assert (await talk(server, b"")).startswith(b"HTTP/1.1 503 ")
    for _reader, writer in held:
        writer.close()
    await server.stop()


async def test_stop_ends_idle_connections() -> None:
    server = HttpServer({"/later": later})
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(get("/later", close=False))
    await reader.readuntil(b"later")
    await server.stop()
    async with asyncio.timeout(60):
        assert await reader.read() == b""
    writer.close()


async def test_port_in_use_is_one_line(server: HttpServer) -> None:
    second = HttpServer({}, port=server.port)
    with pytest.raises(StartError, match=rf"http: cannot listen on 127\.0\.0\.1:{server.port}: .*"):
        await second.start()
    await second.stop()


async def test_telemetry_routes() -> None:
    metrics = Metrics(process=False)
    metrics.gauge("tidegate_uplink_lag_readings", "Lag.", lambda: 5)
    reasons: list[str] = []
    server = HttpServer(
        telemetry_routes(
            metrics, health=list, ready=lambda: reasons, status=lambda: {"backlog_readings": 5}
        )
    )
    await server.start()
    assert b"tidegate_uplink_lag_readings 5.0" in await talk(server, get("/metrics"))
    assert (await talk(server, get("/healthz"))).startswith(b"HTTP/1.1 200 ")
    assert b'"reasons": []' in await talk(server, get("/readyz"))
    reasons.append("journal: disk full")
    answer = await talk(server, get("/readyz"))
    assert answer.startswith(b"HTTP/1.1 503 ")
    body = answer.partition(b"\r\n\r\n")[2]
    assert json.loads(body) == {"ok": False, "reasons": ["journal: disk full"]}
    assert b'{"backlog_readings": 5}' in await talk(server, get("/status"))
    await server.stop()
