"""`tidegate audit`: the same account from files and from a running node, and an exit code."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from cloud.config import LedgerConfig
from tests.kit.cloud import Uplink
from tests.kit.nodes import node_config, run_command, running_node
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


async def test_what_is_on_its_way_is_waited_for_and_told_from_what_is_missing(
    tmp_path: Path,
) -> None:
    async with running_node(tmp_path) as node:
        url = f"http://127.0.0.1:{node.http_port}"
        uplink = Uplink(node.capture)
        uplink.send(uplink.batch(one_per_row(30), assigned=40))  # it does not say what waits
        assert await uplink.answered() == [0]
        await node.sinks.drained()
        asked = await run_command("audit", "--url", url)
        assert (asked.code, "seq 31-40" in asked.out) == (1, True)
        waited = asyncio.create_task(run_command("audit", "--url", url, "--settled", 300))
        uplink.send(uplink.batch(one_per_row(5, first_seq=36), settled=30))
        assert await uplink.answered() == [0, 0]
        await node.sinks.drained()
        asked = await run_command("audit", "--url", url)
        assert asked.code == 0
        assert "35 stored + 0 given up + 5 waiting (5 at the edge, 0 in the stream)" in asked.out
        uplink.encoder.reset()
        uplink.send(uplink.batch(one_per_row(5, first_seq=31), settled=30))
        assert (await waited).code == 0
        uplink.send(uplink.batch(one_per_row(1, first_seq=43), settled=42))
        await uplink.answered()
        await node.sinks.drained()
        asked = await run_command("audit", "--url", url, "--settled", 0.5)
        assert (asked.code, "absent" in asked.out, "seq 41-42" in asked.out) == (1, True, True)


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


async def test_the_picture_shows_the_worst_of_each_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "68")
    async with running_node(tmp_path) as node:
        uplink = Uplink(node.capture)
        uplink.send(uplink.batch(one_per_row(1000)))
        await uplink.answered()
        await node.sinks.drained()
        with closing(sqlite3.connect(tmp_path / "cloud" / "storage.db")) as connection:
            connection.execute("DELETE FROM readings WHERE seq = 500")
            connection.commit()
        url = f"http://127.0.0.1:{node.http_port}"
        asked = await run_command("audit", "--url", url, "--picture")
        read = await run_command("audit", "--data", tmp_path, "--picture", "--hours", 1)
        for said in (asked.out, read.out):
            assert "gw fedcba9876543210  seq 1-1,000  since " in said
            assert f"|{'#' * 31}!{'#' * 32}|" in said
            assert "# stored 999   ! missing 1" in said


async def test_figures_of_the_ledger_in_status_and_metrics(tmp_path: Path) -> None:
    config = node_config(tmp_path, ledger=LedgerConfig(interval_s=0.05))
    async with running_node(tmp_path, config=config) as node:
        uplink = Uplink(node.capture)
        uplink.send(uplink.batch(one_per_row(30)))
        await uplink.answered()
        await node.sinks.drained()
        url = f"http://127.0.0.1:{node.http_port}"

        def ask(path: str) -> str:
            with urllib.request.urlopen(url + path) as answer:
                return str(answer.read().decode())

        line = 'tidegate_ledger_stored{gateway="gw"} 30.0'
        async with asyncio.timeout(60):
            while line not in await asyncio.to_thread(ask, "/metrics"):
                await asyncio.sleep(0.02)
        assert 'tidegate_ledger_missing{gateway="gw"} 0.0' in await asyncio.to_thread(
            ask, "/metrics"
        )
        status = json.loads(await asyncio.to_thread(ask, "/status"))["ledger"]
        assert status["balanced"] is True
        assert status["gateways"]["gw"]["stored"] == 30
        with closing(sqlite3.connect(tmp_path / "cloud" / "storage.db")) as connection:
            connection.execute("DELETE FROM stored")  # what a rolled back storage lacks
            connection.commit()
        async with asyncio.timeout(60):
            while status["balanced"]:
                status = json.loads(await asyncio.to_thread(ask, "/status"))["ledger"]
        assert status["gateways"]["gw"]["gaps"] == ["epoch fedcba9876543210 seq 1-30"]
        shown = await run_command("status", "--url", url)
        assert "epoch fedcba9876543210 seq 1-30" in shown.out


async def test_the_nodes_own_file_says_where_its_data_is(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        uplink = Uplink(node.capture)
        uplink.send(uplink.batch(one_per_row(3)))
        assert await uplink.answered() == [0]
        await node.sinks.drained()
    config = tmp_path / "cloud.toml"
    config.write_text(f'data = "{tmp_path}"\n')
    for command, said in (
        (("audit",), "3 assigned = 3 stored"),
        (("query", "--limit", "1"), "gw/"),
        (("trace", "gw", "2"), "stored"),
        (("replay",), ""),
    ):
        done = await run_command(*command, "-c", config)
        assert (done.code, said in done.out) == (0, True), done.err
    for command in ("audit", "query", "replay"):
        missing = await run_command(command, "--data", tmp_path / "none")
        assert (missing.code, missing.err.count("\n")) == (1, 1)
        assert missing.err.endswith(".db: no such file; is that the --data of a cloud node?\n")
