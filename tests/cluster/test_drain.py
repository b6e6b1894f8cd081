"""`tidegate cluster drain`: the others take over; the last node says that nobody does."""

from __future__ import annotations

from pathlib import Path

from tests.kit.cluster_nodes import cluster_nodes, shares
from tests.kit.nats import nats_single
from tests.kit.nodes import Outcome, run_command
from tests.kit.sites import until


async def test_the_last_node_is_drained_too_and_it_is_said(tmp_path: Path) -> None:
    with nats_single(tmp_path, disk_bytes_max=8 << 30) as servers:
        async with cluster_nodes(servers, tmp_path, 2, "alerts") as nodes:

            async def drain(number: int) -> Outcome:
                stream = nodes[number].config.stream
                return await run_command(
                    "cluster", "drain", f"node-{number}", "--stream", stream.url,
                    "--stream-cluster", stream.cluster, "--wait", "120",
                )  # fmt: skip

            first = await drain(0)
            assert (first.code, first.err) == (0, "")
            await until("taken over", lambda: shares(nodes[1], "alerts") == 64)
            last = await drain(1)
            assert (last.code, last.err.count("\n")) == (0, 1)
            assert "node-1: no other node is there to take its work" in last.err
            again = await drain(0)  # asked twice
            assert again.code == 0
            assert "node-0: drained" in again.out
