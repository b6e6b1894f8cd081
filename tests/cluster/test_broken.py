"""A node that takes nothing any more, as what it reads is not for it: it says so, and ends well."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cloud.cluster.versions import VERSION_KEY
from cloud.stream.jetstream.engine import JetStreamStream
from tests.kit.cluster_nodes import cluster_nodes, shares
from tests.kit.nats import connected, nats_single
from tests.kit.nodes import run_command
from tests.kit.sites import until


async def test_it_answers_what_it_knows_hands_over_and_stops_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with nats_single(tmp_path, disk_bytes_max=8 << 30) as servers:
        async with cluster_nodes(servers, tmp_path, 2, "alerts") as (broken, well):
            assert isinstance(broken.stream, JetStreamStream)
            broken.stream._described({VERSION_KEY: "99"})
            url = f"http://127.0.0.1:{broken.http_port}"
            await until("ready no more", broken.ready)
            said = await run_command("status", "--url", url)
            assert said.code == 1
            assert "NOT READY: cluster" in said.out.splitlines()[0]
            for words in (("status", "--partitions"), ("audit",)):
                said = await run_command(*words, "--url", url)
                assert said.code == 1
                assert said.err.count("\n") == 1, said.err
                assert "has layout 99, this program knows" in said.err
            await until("handed over", lambda: shares(well, "alerts") == 64)
            async with asyncio.timeout(60):
                await broken.stop()
            assert broken.sinks.leases is not None
            assert not broken.sinks.leases._watch  # the sinks were stopped, and the leases
            assert all(runner._task is None for runner in broken.sinks.runners.values())
    assert "Traceback" not in capsys.readouterr().out


async def test_why_nothing_is_committed_is_said_while_it_is_tried(tmp_path: Path) -> None:
    with nats_single(tmp_path, disk_bytes_max=8 << 30) as servers:
        async with (
            cluster_nodes(servers, tmp_path, 1, "alerts") as (node,),
            connected(servers) as connection,
        ):
            assert isinstance(node.stream, JetStreamStream)
            name, subject = node.stream.layout.ledger_stream, node.stream.layout.ledger_subject
            config = (await connection.api(f"STREAM.INFO.{name}"))["config"]
            await connection.api(f"STREAM.UPDATE.{name}", {**config, "subjects": ["elsewhere"]})
            words = f"{subject}: nobody serves it now"
            await until("said", lambda: any(words in why for why in node.ready()))
            await connection.api(f"STREAM.UPDATE.{name}", config)
            await until("ready again", lambda: not node.ready())
