"""A SQLite connection on a thread of its own: hops, and the end of the process."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from functools import partial
from pathlib import Path

import pytest

from runtime.sqlite import SqliteConnection

__all__: list[str] = []

_LEAVE_OPEN = """
import asyncio, sqlite3, sys
from functools import partial
from runtime.sqlite import SqliteConnection

kept = []  # else aiosqlite ends the thread as the connection is collected

async def main():
    connection = await SqliteConnection(partial(sqlite3.connect, sys.argv[1]))
    kept.append(connection)
    await connection.hop(lambda c: c.execute("CREATE TABLE t (n)") and c.commit())
    print("open", flush=True)

asyncio.run(main())
"""


async def test_a_process_that_left_a_connection_open_ends_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "left.db"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _LEAVE_OPEN, str(path), stdout=asyncio.subprocess.PIPE
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (said, process.returncode) == (b"open\n", 0)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("t",)]
    connection.close()


async def test_a_hop_returns_what_the_function_returns_or_raises(tmp_path: Path) -> None:
    path = tmp_path / "one.db"
    connection = SqliteConnection(partial(sqlite3.connect, path, check_same_thread=False))
    await connection
    assert await connection.hop(lambda c: c.execute("SELECT 7").fetchall()) == [(7,)]
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        await connection.hop(lambda c: c.execute("SELECT * FROM absent"))
    await connection.close()
    await connection.ended()
    with pytest.raises(ValueError, match="onnection"):
        await connection.hop(lambda c: c.execute("SELECT 7"))


async def test_a_file_that_cannot_be_opened_ends_its_thread(tmp_path: Path) -> None:
    connection = SqliteConnection(partial(sqlite3.connect, tmp_path / "no" / "one.db"))
    with pytest.raises(sqlite3.OperationalError):
        await connection
    await connection.ended()
