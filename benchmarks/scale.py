"""Scale: what a reading costs a cluster, over gateways, devices and nodes, in processor time.

The same number of readings, in batches of the same size, is taken in from 1 to 1,000 gateways of
10 devices each (--axis gateways); from 10 gateways that have 10 to 10,000 devices between them
(--axis devices); or by 1 to 3 nodes, processes of their own with an equal share of 30 gateways
(--axis nodes). So many batches are under way at every point, whoever sends them: what is offered at
a rate and answered in a time is as much, of one gateway or of a thousand (--window). Told is the
processor time a reading of node, decoders and the three NATS servers (R3, fsync always), median of
the rounds, and as a ratio to the cheapest point; beside it what the simulated gateways took, which
is not in it. On a machine that everything shares rates say nothing of scale; processor time does.

    tidegate bench scale
    tidegate bench scale -- --axis devices --mode structured --batch 500 --rounds 3
    tidegate bench scale -- --axis nodes --json
    tidegate bench scale -- --at 1 --window 64
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pstats
import statistics
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.cluster import Ingest, Result, load_of, measured
from benchmarks.wire import cpu_s_of
from cloud.cluster.applying import apply, stream_epoch
from cloud.cluster.connection import Connection
from cloud.cluster.layout import Layout
from cloud.stream.jetstream.engine import JetStreamStream
from runtime.clock import SystemClock
from runtime.service import run as run_loop
from tidegate.nats_servers import NatsServers

__all__ = ["main"]

GATEWAYS = (1, 10, 100, 1000)
DEVICES = (10, 100, 1000, 10_000)
NODES = (1, 2, 3)
_DEVICES_A_GATEWAY = 10
_GATEWAYS_OF_DEVICES = 10
_GATEWAYS_OF_NODES = 30
_LAYOUT = Layout(
    "bench", raw_bytes_max=2 << 30, ledger_bytes_max=64 << 20, bucket_bytes_max=8 << 20
)


class Bench:
    """The axes over one set of servers.

    Args:
        options: The command's.
        servers: Three of them.
    """

    def __init__(self, options: argparse.Namespace, servers: NatsServers) -> None:
        self._options = options
        self._servers = servers
        self._pids = [server.pid for server in servers.servers]
        self._number = 0
        self._most = 2 if options.quick else None  # points of the axis

    async def points(self) -> list[dict[str, object]]:
        """Run the axis and return a row a point."""
        connection = await Connection.open(self._servers.url, name="bench")
        await apply(connection, _LAYOUT)
        await connection.close()
        axis = self._options.axis
        rows = []
        if axis == "nodes":
            for n in NODES[: self._most]:
                found = [await self._nodes(n) for _ in range(self._options.rounds)]
                rows.append(_row("nodes", n, found))
        else:
            points = GATEWAYS if axis == "gateways" else DEVICES
            for n in points[: self._most] if self._options.at is None else [self._options.at]:
                found = [await self._point(n) for _ in range(self._options.rounds)]
                rows.append(_row(axis, n, found))
        least = min(float(str(row["us_a_reading"])) for row in rows)
        for row in rows:
            row["ratio"] = round(float(str(row["us_a_reading"])) / least, 2)
        return rows

    async def _point(self, n: int) -> Result:
        gateways, devices = n, _DEVICES_A_GATEWAY
        if self._options.axis == "devices":
            gateways, devices = _GATEWAYS_OF_DEVICES, n // _GATEWAYS_OF_DEVICES
        self._number += 1
        return await _take(
            self._options, self._servers.url, gateways, devices, self._pids, f"p{self._number}"
        )

    async def _nodes(self, n: int) -> Result:
        """Have `n` processes take their share at the same time."""
        self._number += 1
        flags = [str(_GATEWAYS_OF_NODES // n), str(self._options.readings // n)]
        children = [
            await _child(self._options, self._servers.url, f"n{self._number}-{number}", flags,
                         max(1, self._options.window // n))
            for number in range(n)
        ]  # fmt: skip
        await asyncio.gather(*(_line(child) for child in children))
        servers = sum(map(cpu_s_of, self._pids))
        for child in children:
            assert child.stdin is not None
            child.stdin.write(b"go\n")
        found = [Result(**json.loads(await _line(child))) for child in children]
        for child in children:
            await child.wait()
        return Result(
            sum(one.readings for one in found),
            max(one.seconds for one in found),
            sum(one.client_cpu_s for one in found),
            sum(map(cpu_s_of, self._pids)) - servers,
            sum(one.decoders_cpu_s for one in found),
            sum(one.gateways_cpu_s for one in found),
        )


async def _child(
    options: argparse.Namespace, url: str, name: str, flags: list[str], window: int
) -> Process:
    """Start a node of the benchmark."""
    command = [sys.executable, "-m", "benchmarks.scale", "--node", url, name, *flags]
    command += ["--mode", options.mode, "--batch", str(options.batch)]
    command += ["--window", str(window), "--shape", options.shape]
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)


async def _line(child: Process) -> str:
    assert child.stdout is not None
    async with asyncio.timeout(300):
        line = (await child.stdout.readline()).decode()
    if not line:
        raise RuntimeError("a node of the benchmark ended")
    return line


async def _node(options: argparse.Namespace) -> int:
    """Be one node: make ready, say so, wait for a line, take it all in, tell."""
    url, name, gateways, readings = options.node
    options.readings = int(readings)
    result = await _take(
        options, url, int(gateways), _DEVICES_A_GATEWAY, (), name, wait=sys.stdin.readline
    )
    print(json.dumps(asdict(result)), flush=True)
    return 0


async def _take(
    options: argparse.Namespace,
    url: str,
    gateways: int,
    devices: int,
    servers: Sequence[int],
    name: str,
    *,
    wait: object = None,
) -> Result:
    """Take all readings in at a node made for it, measured without the first batch of each."""
    connection = await Connection.open(url, name=name)
    stream = await JetStreamStream.open(
        connection, _LAYOUT, await stream_epoch(connection, _LAYOUT), SystemClock(),
        durability="r3-fsync", tail_bytes_max=16 << 20, arrivals_max=1000,
    )  # fmt: skip
    batches = max(1, options.readings // options.batch // gateways)
    profile = cProfile.Profile() if options.profile else None
    ingest = Ingest(
        load_of(options.shape, gateways, batches + 1, options.batch, devices),
        structured=options.mode == "structured",
        name=name,
        window=options.window,
        contexts_max=max(256, gateways),
    )
    await ingest.connect(stream)
    if callable(wait):
        print("ready", flush=True)
        await asyncio.to_thread(wait)
    count = gateways * batches * options.batch
    if profile is not None:
        profile.enable()
    result = await measured(ingest.run, count, servers, ingest)
    if profile is not None:
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
    await ingest.close()
    if not callable(wait):
        await stream.trim((await stream.stats()).last_positions)
    await stream.close()
    return result


def _row(axis: str, n: int, found: Sequence[Result]) -> dict[str, object]:
    def us(*names: str) -> float:
        costs = [sum(getattr(one, name) for name in names) / one.readings * 1e6 for one in found]
        return round(statistics.median(costs), 2)

    return {
        "axis": axis,
        "n": n,
        "us_a_reading": us("client_cpu_s", "decoders_cpu_s", "servers_cpu_s"),
        "node_us": us("client_cpu_s"),
        "decoders_us": us("decoders_cpu_s"),
        "servers_us": us("servers_cpu_s"),
        "gateways_us": us("gateways_cpu_s"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run it and print a table, or rows as JSON."""
    parser = argparse.ArgumentParser(
        prog="tidegate bench scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--axis", choices=("gateways", "devices", "nodes"), default="gateways")
    parser.add_argument("--mode", choices=("columnar", "structured"), default="columnar")
    parser.add_argument("--rounds", type=int, default=3, help="of each point [3]")
    parser.add_argument("--readings", type=int, default=100_000, help="a round [100000]")
    parser.add_argument("--batch", type=int, default=100, help="readings a batch [100]")
    parser.add_argument("--window", type=int, default=640, help="batches under way in all [640]")
    parser.add_argument("--shape", default="smart-plug", help="of the payloads [smart-plug]")
    parser.add_argument("--at", type=int, help="only this point of the axis")
    parser.add_argument("--profile", action="store_true", help="where the node's time goes")
    parser.add_argument("--quick", action="store_true", help="one small round of two points")
    parser.add_argument("--json", action="store_true", help="rows as JSON on the last line")
    parser.add_argument("--node", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.node:
        return run_loop(_node(options))
    if options.quick:
        options.rounds, options.readings = 1, 2000
    rows: list[dict[str, object]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        NatsServers(Path(folder), 3, disk_bytes_max=8 << 30) as servers,
    ):

        async def work() -> int:
            rows.extend(await Bench(options, servers).points())
            return 0

        run_loop(work())
    for row in rows:
        print(
            f"{row['n']:>6,} {row['axis']}: {row['us_a_reading']:>6} us a reading "
            f"({row['ratio']}x): node {row['node_us']}, decoders {row['decoders_us']}, "
            f"servers {row['servers_us']}; not counted: gateways {row['gateways_us']}"
        )
    if options.json:
        print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
