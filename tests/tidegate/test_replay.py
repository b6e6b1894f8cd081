"""`tidegate replay`: a storage that lost rows gets them back from the stream, each once."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from cloud.node import Node
from tests.kit.cloud import append_readings, query
from tests.kit.nodes import run_command, running_node
from tests.kit.readings import one_per_row

GAP = "lost: acknowledged, but neither stored nor waiting: seq 7-8, 30-40"


def delete_rows(data: Path) -> None:
    with closing(sqlite3.connect(data / "cloud" / "storage.db")) as connection:
        connection.execute("DELETE FROM readings WHERE seq IN (7, 8) OR seq BETWEEN 30 AND 40")
        connection.commit()


async def filled(node: Node) -> None:
    for first in range(1, 60, 20):
        await append_readings(node.stream, one_per_row(20, first_seq=first))
    await node.sinks.drained()


def payloads(data: Path) -> list[tuple[object, ...]]:
    return query(data / "cloud" / "storage.db", "SELECT seq, payload FROM readings ORDER BY seq")


async def test_rows_deleted_by_hand_come_back_while_the_node_runs(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        await filled(node)
        whole = payloads(tmp_path)
        delete_rows(tmp_path)
        url = f"http://127.0.0.1:{node.http_port}"
        before = await run_command("audit", "--url", url)
        assert before.code == 1
        assert GAP in before.out
        done = await run_command("replay", "--url", url)
        assert done.code == 0, done.err
        assert done.out.startswith("13 readings replayed from ")
        assert (await run_command("audit", "--url", url)).code == 0
        assert payloads(tmp_path) == whole
        again = await run_command("replay", "--url", url)
        assert (again.code, again.out) == (0, "0 readings replayed from 0 entries\n")


async def test_rows_deleted_by_hand_come_back_without_the_node(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        await filled(node)
        whole = payloads(tmp_path)
        delete_rows(tmp_path)
        busy = await run_command("replay", "--data", tmp_path)
        assert (busy.code, busy.err.count("\n")) == (1, 1)
    assert GAP in (await run_command("audit", "--data", tmp_path)).out
    done = await run_command("replay", "--data", tmp_path)
    assert done.code == 0, done.err
    assert (await run_command("audit", "--data", tmp_path)).code == 0
    assert payloads(tmp_path) == whole


async def test_a_storage_from_an_old_backup_catches_up_or_says_what_is_gone(tmp_path: Path) -> None:
    storage = tmp_path / "cloud" / "storage.db"
    async with running_node(tmp_path) as node:
        await append_readings(node.stream, one_per_row(20))
        await node.sinks.drained()
    backup = storage.read_bytes()
    async with running_node(tmp_path) as node:
        await append_readings(node.stream, one_per_row(20, first_seq=21))
        await node.sinks.drained()
    storage.write_bytes(backup)
    async with running_node(tmp_path) as node:  # its cursors are as old as its rows
        await node.sinks.drained()
        assert len(payloads(tmp_path)) == 40
        await node.stream.trim((await node.stream.stats()).last_positions)
    storage.write_bytes(backup)
    done = await run_command("replay", "--data", tmp_path)
    assert (done.code, done.out) == (
        1,
        "0 readings replayed from 0 entries; 20 are not in the stream any more\n",
    )


async def test_no_stream_is_one_line(tmp_path: Path) -> None:
    nothing = await run_command("replay", "--data", tmp_path / "none")
    assert (nothing.code, nothing.err.count("\n")) == (1, 1)
