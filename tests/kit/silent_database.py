"""A database whose machine goes without a word amid a write: run by test_silent_cut.py, as root.

    unshare --net python -m tests.kit.silent_database

The sink dials PostgreSQL at an address that one routing rule makes a black hole. It prints a line
of JSON for each moment: the rows there are when the way is free again and the sink has gone on.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from cloud.config import StorageConfig
from cloud.sinks.contract import SinkUnavailable
from cloud.sinks.postgres import PostgresSink
from cloud.sinks.postgres_link import PostgresPlace
from runtime.clock import ManualClock
from tests.kit.cloud import decoded, ends
from tests.kit.postgres import PostgresServer
from tests.kit.readings import one_per_row
from tests.kit.silent_cut import CLOUD, cut, reach_oneself

__all__: list[str] = []

GIVE_UP_S = 60.0  # half of what one statement may take


async def cut_amid(server: PostgresServer, amid: Callable[[Any], Awaitable[None]]) -> int:
    """Cut the way within a write; return the rows of it once it was written again."""
    url = await server.new_database()
    far = url.replace("127.0.0.1", CLOUD) + "?sslmode=disable"
    entries = decoded(one_per_row(100))
    sink = PostgresSink(PostgresPlace(far), StorageConfig(), ManualClock())
    await sink.open(1)
    await sink.claim(dict.fromkeys(range(64), 1))
    finish = sink._writer._finish

    async def cut_first(connection: Any, *arguments: Any) -> None:
        await amid(connection)
        await finish(connection, *arguments)

    sink._writer._finish = cut_first  # type: ignore[method-assign]
    try:
        async with asyncio.timeout(GIVE_UP_S):
            await sink.write(entries, ends(entries))
        raise AssertionError("written over a way that is cut")
    except SinkUnavailable:
        cut(silent=False)
    sink._writer._finish = finish  # type: ignore[method-assign]
    async with asyncio.timeout(GIVE_UP_S):
        while True:
            try:
                await sink.write(entries, ends(entries))
                break
            except SinkUnavailable:  # the server still has the broken write open
                await asyncio.sleep(0.5)
    await sink.close()
    return len(await server.rows(url, "SELECT FROM tidegate.readings"))


async def before_a_statement(_connection: Any) -> None:
    """What is sent from here on is not taken."""
    cut(silent=True)


async def within_a_statement(connection: Any) -> None:
    """All was taken, and the answer does not come."""
    asyncio.get_running_loop().call_later(1.0, cut, True)
    await connection.execute("SELECT pg_sleep(2)")


def main() -> None:
    reach_oneself()
    folder = Path(tempfile.mkdtemp(prefix="tidegate-postgres-"))
    server = PostgresServer(folder)
    try:
        server.create()
        with (folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {CLOUD}/32 trust\n")
        server.start(listen_addresses="*")
        for amid in (before_a_statement, within_a_statement):
            rows = uvloop.run(cut_amid(server, amid))
            print(json.dumps({"cut": amid.__name__, "rows": rows}), flush=True)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
