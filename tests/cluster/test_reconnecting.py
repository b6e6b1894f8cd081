"""A connection to NATS whose servers come, go, and hang up."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest
from nats.aio.transport import TcpTransport
from nats.errors import StaleConnectionError

from cloud.cluster import connection as module
from cloud.cluster.connection import ClusterError, Connection, Unreachable
from tests.kit.nats import nats_single
from tests.kit.sites import until


async def test_attempts_that_fail_leave_no_socket_open(tmp_path: Path) -> None:
    with nats_single(tmp_path) as servers:
        connection = await Connection.open(servers.url, name="test")
        port = int(servers.url.rpartition(":")[2])
        servers.stop()

        tried = 0
        enough = asyncio.Event()

        def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal tried
            tried += 1
            writer.close()
            if tried == 3:
                enough.set()

        async with asyncio.timeout(60):
            async with await asyncio.start_server(hang_up, "127.0.0.1", port):
                await enough.wait()
            await asyncio.to_thread(servers.start)
            while not connection.connected:
                await asyncio.sleep(0.01)
        await connection.close()
    gc.collect()  # what was forgotten says so now, and fails the test


async def test_a_server_that_lets_nobody_in_has_said_so_whatever_comes_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried, connect_s = 0, 1.0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tried
        tried += 1
        if tried == 1:
            writer.write(b'INFO {"auth_required":true,"max_payload":1048576}\r\n')
            await reader.readuntil(b"PING\r\n")
            writer.write(b"-ERR 'Authorization Violation'\r\n")
            await reader.read()  # until it hangs up
        writer.close()

    async with await asyncio.start_server(once, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        while tried < 2:  # a busy machine may have had no time for the second
            tried, connect_s = 0, 2 * connect_s
            assert connect_s < 100
            monkeypatch.setattr(module, "_CONNECT_S", connect_s)
            with pytest.raises(ClusterError, match="Authorization Violation") as caught:
                await Connection.open(f"nats://127.0.0.1:{port}", name="test", patience_s=connect_s)
            assert not isinstance(caught.value, Unreachable)
    gc.collect()


async def test_a_server_that_takes_nothing_any_more_does_not_keep_the_line() -> None:
    hello = b'INFO {"max_payload":8388608}\r\n'
    ended = asyncio.Event()

    async def take_little(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(hello)
        await reader.readuntil(b"PING\r\n")
        writer.write(b"PONG\r\n")
        await reader.readuntil(b"PING\r\n")  # the client has subscribed
        writer.write(b"PONG\r\n")
        await ended.wait()  # and nothing is read
        writer.transport.abort()

    async with await asyncio.start_server(take_little, "127.0.0.1", 0, limit=1 << 16) as server:
        port = server.sockets[0].getsockname()[1]
        connection = await Connection.open(f"nats://127.0.0.1:{port}", name="test")
        broken, back = asyncio.Event(), asyncio.Event()
        connection.on_line(lambda up: (back if up else broken).set())
        stuck = connection._nc._transport
        assert isinstance(stuck, TcpTransport)
        for _ in range(3):  # more than the kernel takes for a peer that reads nothing
            await connection.send("full", bytes(4 << 20))
        writer = stuck._io_writer
        assert writer is not None
        await until("some waits", lambda: writer.transport.get_write_buffer_size() > 0)
        async with asyncio.timeout(60):
            await connection._nc._process_op_err(StaleConnectionError())
            await broken.wait()
            await back.wait()
            ended.set()
            await connection.close()
