"""A connection to NATS whose servers come, go, and hang up."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from cloud.cluster import connection as module
from cloud.cluster.connection import ClusterError, Connection, Unreachable
from tests.kit.nats import nats_single


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
