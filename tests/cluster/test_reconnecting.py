"""A connection to NATS whose servers come, go, and hang up."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

from cloud.cluster.connection import Connection
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

        async with asyncio.timeout(30):
            async with await asyncio.start_server(hang_up, "127.0.0.1", port):
                await enough.wait()
            await asyncio.to_thread(servers.start)
            while not connection.connected:
                await asyncio.sleep(0.01)
        await connection.close()
    gc.collect()  # what was forgotten says so now, and fails the test
