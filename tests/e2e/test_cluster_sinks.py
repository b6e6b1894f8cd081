"""The sinks of a cluster: nodes that share the work, are killed, stalled, drained and added.

Real processes on loopback: three NATS servers, cloud nodes, a gateway, a simulated fleet, and one
PostgreSQL that all nodes write. What is stored is read with plain SQL.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cloud.config import StreamConfig
from cloud.sinks.decoded import DecodedEntries
from cloud.stream.opening import open_cluster_stream
from device_sim.config import SimConfig
from device_sim.run import run_sim
from runtime.clock import SystemClock
from tests.kit.nodes import run_command
from tests.kit.postgres import PostgresServer, postgres_server
from tests.kit.processes import get_json, wait_for
from tidegate.cluster_demo import ClusterProcesses


class Cluster:
    """Nodes on one PostgreSQL."""

    def __init__(self, processes: ClusterProcesses, server: PostgresServer, url: str) -> None:
        self.processes = processes
        self.server = server
        self.url = url

    def shares(self, asked: int = 0) -> Counter[str]:
        """Return how many partitions of storage each node has, as one of them sees it."""
        found = get_json(f"{self.processes.urls[asked]}/api/v1/partitions")
        rows = found["partitions"] if found else []
        return Counter(row["owners"]["storage"] for row in rows if "storage" in row["owners"])

    def acked(self) -> int:
        """Return how many readings the gateway has taken."""
        url = f"http://127.0.0.1:{self.processes.edge_http_ports[0]}/status"
        return int(wait_for("its status", lambda: get_json(url))["journal"]["last_seq"])

    async def until(self, what: str, check: Callable[[], Any], *, timeout_s: float = 180) -> float:
        """Wait for something; return how long it took, seconds."""
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                while not await asyncio.to_thread(check):
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"{what}: not in {timeout_s:g} s; {self.shares()}") from None
        return time.monotonic() - started_s

    async def load(self, stop: asyncio.Event) -> int:
        """Publish until `stop`; return how many readings were acknowledged."""
        config = SimConfig(
            broker=f"mqtt://127.0.0.1:{self.processes.edge_ports[0]}",
            devices=40, rate_per_s=400, duration_s=0, seed=5, drain_timeout_s=60,
        )  # fmt: skip
        report = await run_sim(config, stop=stop)
        assert report.unacked == 0
        return report.acked

    async def settle(self, *, asked: int = 0) -> int:
        """Wait until all is stored and balanced; check rows by themselves; return how many."""
        # of what it has not told the cloud knows nothing
        await self.processes.drained(timeout_s=300)
        async with asyncio.timeout(300):
            while True:
                said = await run_command("audit", "--url", self.processes.urls[asked])
                if said.code == 0 and "waiting (" not in said.out:
                    break
                print(said.out)
                await asyncio.sleep(1)
        rows = await self.server.rows(
            self.url,
            "SELECT count(*), count(DISTINCT (gateway, epoch, seq)) FROM tidegate.readings",
        )
        assert rows[0][0] == rows[0][1]
        assert await self.written() == await self.streamed()
        return int(rows[0][0])

    async def number_rows(self) -> None:
        """Have the database note in which order rows are written."""
        await self.server.rows(
            self.url, "ALTER TABLE tidegate.readings ADD COLUMN written bigserial"
        )

    async def written(self) -> dict[str, list[int]]:
        """Return the seqs of each device in the order in which they were stored."""
        found: dict[str, list[int]] = {}
        for device, seq in await self.server.rows(
            self.url, "SELECT device, seq FROM tidegate.readings ORDER BY written"
        ):
            found.setdefault(device, []).append(seq)
        return found

    async def streamed(self) -> dict[str, list[int]]:
        """Return the seqs of each device in the order of the stream."""
        config = StreamConfig(
            url=self.processes.servers.url,
            cluster=self.processes.layout.cluster,
            monitors=tuple(self.processes.servers.monitors),
            file_bytes_max=self.processes.layout.raw_bytes_max,
        )
        stream = await open_cluster_stream(config, SystemClock(), node_id="test")
        decoded = DecodedEntries(0)
        found: dict[str, list[int]] = {}
        for partition in (await stream.stats()).last_positions:
            after = 0
            while some := await stream.read(partition, after, entries_max=512, bytes_max=1 << 20):
                after = some[-1].position
                for readings in (decoded.get(entry).readings for entry in some):
                    for seq, source in zip(readings.seqs, readings.source_index, strict=True):
                        found.setdefault(readings.sources[source][1], []).append(seq)
        await stream.close()
        return found


@asynccontextmanager
async def cluster(folder: Path, nodes: int, *more: str) -> AsyncIterator[Cluster]:
    with postgres_server() as server:
        url = await server.new_database()
        processes = ClusterProcesses(
            folder, nodes=nodes, gateways=1,
            node_flags=["--storage-url", url, "--alerts-limits-history-max", "100", *more],
        )  # fmt: skip
        try:
            await processes.start()
            made = Cluster(processes, server, url)
            await made.number_rows()
            yield made
        finally:
            await asyncio.to_thread(processes.kill)


async def test_nodes_are_killed_stalled_drained_and_added(tmp_path: Path) -> None:
    async with cluster(tmp_path, 3) as one:
        nodes = one.processes.nodes
        stop = asyncio.Event()
        loading = asyncio.create_task(one.load(stop))
        await one.until("shares", lambda: sorted(one.shares().values()) == [21, 21, 22])

        # a node is killed: its work moves when its leases run out
        await asyncio.to_thread(nodes[2].kill)
        took_s = await one.until(
            "moved", lambda: sorted(one.shares().values()) == [32, 32] and len(one.shares()) == 2
        )
        print(f"killed: its partitions moved in {took_s:.1f} s")

        # it comes back: it takes its share, without loss or disorder
        nodes[2].start()
        await one.processes.ready(2)
        took_s = await one.until("joined", lambda: sorted(one.shares().values()) == [21, 21, 22])
        print(f"joined: it had its share in {took_s:.1f} s")

        # PostgreSQL is killed: only the lag grows
        await asyncio.to_thread(one.server.kill)
        await asyncio.sleep(1)
        await asyncio.to_thread(one.server.start)

        # a node stalls past its leases, and wakes in the middle of whatever it did
        os.kill(nodes[1].pid, signal.SIGSTOP)
        await one.until("stalled", lambda: one.shares().get("node-1", 0) == 0)
        await asyncio.sleep(1)
        os.kill(nodes[1].pid, signal.SIGCONT)
        await one.until("awake", lambda: sorted(one.shares().values()) == [21, 21, 22])

        # a node hands over before it leaves
        started_s = time.monotonic()
        said = await run_command(
            "cluster", "drain", "node-0", "--stream", one.processes.servers.url,
            "--stream-cluster", one.processes.layout.cluster,
        )  # fmt: skip
        assert said.code == 0, said.out + said.err
        print(f"drained in {time.monotonic() - started_s:.1f} s")
        await one.until(
            "the others know",
            lambda: (found := one.shares(1)) and "node-0" not in found,
        )
        ready = wait_for("its word", lambda: get_json(f"{one.processes.urls[0]}/readyz"))
        assert "draining" in str(ready)
        nodes[0].ask_to_stop()
        await asyncio.to_thread(nodes[0].wait)
        await one.until("two left", lambda: sorted(one.shares(1).values()) == [32, 32])

        await one.until("enough", lambda: one.acked() > 5_000)
        stop.set()
        acked = await loading
        assert await one.settle(asked=1) >= acked  # a publish may be sent again: a new reading


@pytest.mark.parametrize("limit", ["65536"])
async def test_a_slow_database_and_small_writes(tmp_path: Path, limit: str) -> None:
    """Two nodes, a store that takes its time: order and count hold, nothing is dead."""
    async with cluster(tmp_path, 2, "--sinks-write-bytes-max", limit) as one:
        name = one.url.rpartition("/")[2]
        await one.server.rows(one.url, f"ALTER DATABASE {name} SET commit_delay = 100000")
        await one.server.rows(one.url, f"ALTER DATABASE {name} SET commit_siblings = 0")
        stop = asyncio.Event()
        loading = asyncio.create_task(one.load(stop))
        await one.until("shares", lambda: sorted(one.shares().values()) == [32, 32])
        seen = one.acked()
        await one.until("enough", lambda: one.acked() > seen + 1_000)
        stop.set()
        acked = await loading
        assert await one.settle() >= acked > 1_000
