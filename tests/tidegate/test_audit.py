"""`tidegate audit`: the same account from files and from a running node, and an exit code."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from tests.kit.cloud import Uplink
from tests.kit.nodes import run_command, running_node
from tests.kit.readings import one_per_row


async def test_a_running_node_and_its_files_say_the_same(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        uplink = Uplink(node.capture)
        uplink.send(uplink.batch(one_per_row(30)))
        assert await uplink.answered() == [0]
        await node.sinks.drained()
        url = f"http://127.0.0.1:{node.http_port}"
        asked = await run_command("audit", "--url", url, "--settled", 5)
        read = await run_command("audit", "--data", tmp_path)
        assert (asked.code, read.code) == (0, 0), asked.err + read.err
        assert "gw fedcba9876543210: 30 assigned = 30 stored + 0 given up" in asked.out
        assert "  sink alerts: 30 taken, 0 waiting" in asked.out
        assert "  sink storage: 30 taken, 0 waiting" in read.out


async def test_a_row_that_is_gone_ends_with_1_either_way(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        uplink = Uplink(node.capture)
        uplink.send(uplink.batch(one_per_row(30)))
        await uplink.answered()
        await node.sinks.drained()
        with closing(sqlite3.connect(tmp_path / "cloud" / "storage.db")) as connection:
            connection.execute("DELETE FROM readings WHERE seq IN (7, 8)")
            connection.commit()
        url = f"http://127.0.0.1:{node.http_port}"
        asked = await run_command("audit", "--url", url)
        read = await run_command("audit", "--data", tmp_path)
        assert (asked.code, read.code) == (1, 1)
        for said in (asked.out, read.out):
            assert "lost: acknowledged, but neither stored nor waiting: seq 7-8" in said


async def test_nobody_there_is_one_line(tmp_path: Path) -> None:
    asked = await run_command("audit", "--url", "http://127.0.0.1:9")
    assert (asked.code, asked.err.count("\n")) == (1, 1)
    read = await run_command("audit", "--data", tmp_path / "none")
    assert (read.code, read.err.count("\n")) == (1, 1)
    wrong = await run_command("audit", "--url", "ftp://x")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
